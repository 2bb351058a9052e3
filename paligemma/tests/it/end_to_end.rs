//! From image file and prompt to the answer: what transformers answers, through every format.
//!
//! The goldens are made by `reference/hf_end_to_end.py`.

use paligemma::{
    DType,
    checkpoint::{Checkpoint, convert},
    generate::{FinishReason, Options, Prompt},
    image::Choice,
    session::{Reply, Session, SessionOptions},
};
use serde::Deserialize;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const EOS: u32 = 1;
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens")
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    images: Vec<String>,
    prompt: String,
    /// After the image tokens.
    ids: Vec<u32>,
    /// CRC-32 of the pixel values.
    pixels: String,
    #[serde(flatten)]
    whole: Answers,
    /// With the table cut before `<image>`, where that changes anything.
    cut: Option<Answers>,
}

#[derive(Deserialize)]
struct Answers {
    greedy: Answer,
    beams: Answer,
}

#[derive(Deserialize)]
struct Answer {
    /// With the EOS where it came.
    tokens: Vec<u32>,
    text: String,
    score: f64,
}

impl Answer {
    fn ended(&self) -> bool {
        self.tokens.last() == Some(&EOS)
    }

    fn without_eos(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - usize::from(self.ended())]
    }
}

impl Case {
    fn name(&self) -> String {
        format!("{} {:?}", self.images.join(" "), self.prompt)
    }
}

fn cases(model: &str) -> Vec<Case> {
    let file = fs::read(goldens().join(format!("e2e/{model}.json"))).unwrap();
    let golden: Golden = serde_json::from_slice(&file).unwrap();
    assert!(golden.cases.len() >= 24, "{model}");
    golden.cases
}

/// A complete folder as published ones are: the golden's, and the tokenizer that both goldens share.
fn folder(model: &str, into: &Path) -> PathBuf {
    let folder = into.join(model);
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(goldens().join("e2e").join(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    for name in TOKENIZER {
        fs::copy(goldens().join("e2e").join(name), folder.join(name)).unwrap();
    }
    folder
}

fn open(path: &Path, dtype: DType, preprocess: Choice) -> Session {
    let options = SessionOptions { dtype: Some(dtype), preprocess, images: 2, ..SessionOptions::default() };
    Session::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn prompt(session: &Session, case: &Case) -> Prompt {
    let read = |name: &String| session.read_image(&goldens().join("image/files").join(name)).unwrap();
    session.prompt(&case.images.iter().map(read).collect::<Vec<_>>(), &case.prompt).unwrap()
}

fn answer(session: &Session, prompts: &[Prompt], beams: usize) -> Vec<Reply> {
    let options = Options { max_tokens: 12, beams, ..Options::default() };
    session.answer(prompts, &options, &[], None, &mut |_, _| {}).unwrap().0
}

/// `reply` is the golden's answer; its score within rounding.
fn check(what: &str, reply: &Reply, golden: &Answer) {
    assert_eq!(reply.answer.tokens, golden.without_eos(), "{what}");
    assert_eq!(reply.text, golden.text, "{what}");
    assert_eq!(reply.answer.finish_reason == FinishReason::Eos, golden.ended(), "{what}");
    let off = (f64::from(reply.answer.score) - golden.score).abs();
    assert!(off < 1e-4, "{what}: score {} want {}", reply.answer.score, golden.score);
}

/// Ids, pixels, and greedy and beam answers of every case, each on its own and all together.
fn check_all(what: &str, session: &Session, cases: &[Case], is_cut: bool) {
    let prompts: Vec<Prompt> = cases.iter().map(|case| prompt(session, case)).collect();
    for (case, prompt) in cases.iter().zip(&prompts) {
        let what = format!("{what} {}", case.name());
        assert_eq!(prompt.ids, case.ids, "{what}");
        assert_eq!(prompt.pixels.shape()[0], case.images.len(), "{what}");
        let pixels: Vec<u8> = prompt.pixels.as_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(format!("{:08x}", crc32fast::hash(&pixels)), case.pixels, "{what}: pixels");
    }
    for (rule, beams) in [("greedy", 1), ("beams", 3)] {
        let together = answer(session, &prompts, beams);
        assert_eq!(together.len(), cases.len());
        for ((case, prompt), row) in cases.iter().zip(&prompts).zip(&together) {
            let answers = if is_cut { case.cut.as_ref().unwrap_or(&case.whole) } else { &case.whole };
            let golden = if beams == 1 { &answers.greedy } else { &answers.beams };
            let alone = answer(session, std::slice::from_ref(prompt), beams).remove(0);
            check(&format!("{what} {rule} {}", case.name()), &alone, golden);
            check(&format!("{what} {rule} {}, in a batch", case.name()), row, golden);
        }
    }
}

#[test]
fn from_the_image_file_on_a_folder_answers_as_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["pg1", "pg2"] {
        let folder = folder(model, dir.path());
        check_all(model, &open(&folder, DType::F32, Choice::Auto), &cases(model), false);
    }
}

/// An npz has no rows from `<image>` on, so that log-probabilities are of a smaller table: transformers' answers with
/// its table cut are what is wanted there.
#[test]
fn through_an_npz_and_back_the_answers_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["pg1", "pg2"] {
        let cases = cases(model);
        assert_eq!(cases[0].cut.is_some(), model == "pg1");
        let folder = folder(model, dir.path());
        let convert_to = |from: &Path, to: PathBuf| {
            convert(&Checkpoint::open(from).unwrap(), &to, None, &mut |_, _| ControlFlow::Continue(()))
                .unwrap();
            to
        };
        let npz = convert_to(&folder, dir.path().join(format!("{model}-npz/{model}.npz")));
        check_all(&format!("{model} npz"), &open(&npz, DType::F32, Choice::HuggingFace), &cases, true);
        let back = convert_to(&npz, dir.path().join(format!("{model}-back")));
        check_all(&format!("{model} back"), &open(&back, DType::F32, Choice::HuggingFace), &cases, true);
    }
}

/// The goldens would notice: other pixels give other answers, and so does the other picture or prompt.
#[test]
fn the_answers_hang_on_pixels_pictures_and_prompts() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["pg1", "pg2"] {
        let cases = cases(model);
        let session = open(&folder(model, dir.path()), DType::F32, Choice::Reference);
        let prompts: Vec<Prompt> = cases.iter().map(|case| prompt(&session, case)).collect();
        let changed = |prompts: &[Prompt]| {
            let replies = answer(&session, prompts, 1);
            let differ =
                |(reply, case): (&Reply, &Case)| reply.answer.tokens != case.whole.greedy.without_eos();
            replies.iter().zip(&cases).filter(|&pair| differ(pair)).count()
        };
        let bilinear = changed(&prompts);
        let mut swapped = prompts.clone();
        swapped.rotate_left(1);
        let moved = changed(&swapped);
        assert!(bilinear >= 3, "{model}: {bilinear}");
        assert!(moved * 10 >= cases.len() * 8, "{model}: {moved}");
        let ended = |answer: fn(&Case) -> &Answer| cases.iter().filter(|case| answer(case).ended()).count();
        assert!(ended(|case| &case.whole.greedy) >= 3 && ended(|case| &case.whole.beams) >= 3, "{model}");
    }
}

/// In bf16 the tokens may be others; the answers are still answers, and the same alone as in a batch.
#[test]
fn in_bf16_it_answers_too() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["pg1", "pg2"] {
        let cases = cases(model);
        let session = open(&folder(model, dir.path()), DType::BF16, Choice::Auto);
        let prompts: Vec<Prompt> = cases.iter().map(|case| prompt(&session, case)).collect();
        for beams in [1, 3] {
            let together = answer(&session, &prompts, beams);
            let same = |(reply, case): (&Reply, &Case)| {
                let golden = if beams == 1 { &case.whole.greedy } else { &case.whole.beams };
                reply.answer.tokens == golden.without_eos()
            };
            let same = together.iter().zip(&cases).filter(|&pair| same(pair)).count();
            assert!(same * 2 > cases.len(), "{model}, {beams} beams: {same} answers are those of f32");
            for ((prompt, row), case) in prompts.iter().zip(&together).zip(&cases) {
                let alone = answer(&session, std::slice::from_ref(prompt), beams).remove(0);
                assert_eq!(alone.answer.tokens, row.answer.tokens, "{model} {}", case.name());
                assert!(row.answer.score.is_finite() && row.answer.tokens.len() <= 12);
            }
        }
    }
}
