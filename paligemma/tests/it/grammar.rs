//! Under the grammar every answer of every model is valid and ends.

use paligemma::{
    DType, Kind,
    checkpoint::random_folder,
    config::Config,
    detection::{Finding, detections},
    generate::{BeamRule, FinishReason, Options, Prompt, Sampling},
    image::Picture,
    session::{Session, SessionOptions},
    text::{Asked, parse_answer},
};
use std::{collections::HashSet, ops::ControlFlow};

/// A session with random weights whose pictures have 28 pixels a side.
fn session(config: &str, seed: u64) -> Session {
    let mut config = Config::published(config).unwrap();
    config.vision.image_size = 28;
    let folder = tempfile::tempdir().unwrap();
    random_folder(&config, folder.path(), DType::F32.into(), seed, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    Session::open(folder.path(), &SessionOptions::default()).unwrap()
}

const PREFIXES: [&str; 6] = [
    "detect cat",
    "detect cat ; coffee cup ; cat litter",
    "segment dog",
    "segment 猫 ; der Löffel",
    "detect a ; b ; c ; d ; e ; f ; g ; h",
    "segment a ; man standing in front of a green bus",
];

fn sampling(temperature: f32, seed: u64) -> Sampling {
    Sampling::Random { temperature, top_k: None, top_p: None, seed }
}

/// Checks an answer of at most `most` tokens; how many objects it has.
fn check(session: &Session, prefix: &str, most: usize, prompt: &Prompt, options: &Options) -> usize {
    let prompts = std::slice::from_ref(prompt);
    let (replies, _) = session.answer(prompts, options, &[], None, &mut |_, _| {}).unwrap();
    let reply = &replies[0];
    let what = format!("{prefix:?}, {options:?}: {}", reply.text);
    assert_eq!(reply.answer.finish_reason, FinishReason::Eos, "{what}");
    assert!(reply.answer.tokens.len() < most, "{what}");
    let parsed = parse_answer(&reply.text);
    assert!(parsed.malformed.is_empty(), "{what}: {:?}", parsed.malformed);
    let asked = Asked::of(prefix).unwrap();
    let mut seen = HashSet::new();
    for found in &parsed.objects {
        assert!(asked.things.contains(&found.object.label.as_str()), "{what}");
        assert_eq!(found.object.codes.is_some(), asked.masks, "{what}");
        assert!(seen.insert(found.object.clone()), "twice: {what}");
    }
    // The tokens are those of the text as a whole: what the model was trained on.
    assert_eq!(session.tokenizer().encode(&reply.text).unwrap(), reply.answer.tokens, "{what}");
    let found = detections(session.tokenizer(), &reply.answer, (640, 480), &Finding::default());
    assert_eq!(found.detections.len(), parsed.objects.len(), "{what}");
    for detection in &found.detections {
        let [x0, y0, x1, y1] = detection.pixels;
        assert!(0.0 <= x0 && x0 < x1 && x1 <= 640.0 && 0.0 <= y0 && y0 < y1 && y1 <= 480.0, "{what}");
        assert!((0.0..=1.0).contains(&detection.score), "{what}: {detection:?}");
    }
    parsed.objects.len()
}

#[test]
fn a_thousand_answers_of_random_models_are_valid_and_end() {
    let picture = Picture { width: 28, height: 28, rgb: (0..28 * 28 * 3).map(|i| (i % 251) as u8).collect() };
    let (mut answers, mut objects) = (0, 0);
    for model in 0..10 {
        let session = session(if model % 2 == 0 { "tiny" } else { "2-tiny" }, model);
        for i in 0..100 {
            let prefix = PREFIXES[i % PREFIXES.len()];
            let prompt = session.prompt(std::slice::from_ref(&picture), prefix).unwrap();
            let prompt = session.constrained(prompt, &Asked::of(prefix).unwrap()).unwrap();
            let max_tokens = 1 + (i * 37) % 90;
            let options = match i % 10 {
                0 => Options { max_tokens, ..Options::default() },
                1 => Options { max_tokens, beams: 3, ..Options::default() },
                2 => Options { max_tokens, beams: 2, beam_rule: BeamRule::Reference, ..Options::default() },
                n => Options {
                    max_tokens,
                    sampling: sampling([0.3, 1.0, 5.0][n % 3], i as u64),
                    ..Options::default()
                },
            };
            objects += check(&session, prefix, max_tokens, &prompt, &options);
            answers += 1;
        }
    }
    assert_eq!(answers, 1000);
    assert!(objects > 1000, "{objects}");
}

#[test]
fn free_answers_of_random_models_are_not() {
    let picture = Picture { width: 28, height: 28, rgb: vec![99; 28 * 28 * 3] };
    let session = session("tiny", 3);
    let prompt = session.prompt(&[picture], "detect cat").unwrap();
    let options = Options { max_tokens: 40, sampling: sampling(1.0, 1), ..Options::default() };
    let (replies, _) = session.answer(&[prompt], &options, &[], None, &mut |_, _| {}).unwrap();
    assert!(!parse_answer(&replies[0].text).malformed.is_empty(), "{}", replies[0].text);
}

#[test]
fn a_tokenizer_of_another_model_is_named() {
    let mut config = Config::published("tiny").unwrap();
    config.vision.image_size = 28;
    let folder = tempfile::tempdir().unwrap();
    random_folder(&config, folder.path(), DType::F32.into(), 1, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    let tokenizer = paligemma::text::stand_in_tokenizer(256_000, 257_152).unwrap();
    let file = folder.path().join("other.json");
    std::fs::write(&file, tokenizer).unwrap();
    let options = SessionOptions { tokenizer: Some(file), ..SessionOptions::default() };
    let session = Session::open(folder.path(), &options).unwrap();
    let picture = Picture { width: 1, height: 1, rgb: vec![0; 3] };
    let asked = Asked::of("detect cat").unwrap();
    let prompt = session.prompt(&[picture], "x").unwrap();
    let prompt = session.constrained(prompt, &asked).unwrap();
    let error = session.answer(&[prompt], &Options::default(), &[], None, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Model);
}
