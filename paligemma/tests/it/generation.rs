//! Generated ids: transformers' greedy and beam answers, big_vision's beams, and what must not change an answer.

use crate::goldens::{images, load, load_changed, path};
use paligemma::{
    Kind,
    generate::{Answer, BeamRule, FinishReason, Generator, Options, Prompt, Sampling},
    model::{PaliGemma, Pass, Turn},
};
use paligemma_tensor::{DType, Tensor, concat_rows, log_sum_exp};
use serde_json::Value;
use std::{ops::ControlFlow, sync::atomic::AtomicBool};

const EOS: u32 = 1;

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn prompts(golden: &Value) -> Vec<Prompt> {
    let pixels = images(golden["images"].as_str().unwrap());
    let prompt = |case: &Value| {
        let image = case["image"].as_u64().unwrap() as usize;
        Prompt { pixels: pixels.rows(image, image + 1), ids: ids(&case["prompt"]), grammar: None }
    };
    golden["cases"].as_array().unwrap().iter().map(prompt).collect()
}

fn run(model: &PaliGemma, prompts: &[Prompt], options: &Options) -> Vec<Answer> {
    Generator::new(model, EOS).run(prompts, options, &mut |_, _, _| ControlFlow::Continue(())).unwrap().0
}

/// `answer` has the golden's tokens (which include an EOS) and its score within rounding.
fn check(what: &str, answer: &Answer, golden: &Value, score: f64) {
    let mut want = ids(&golden["tokens"]);
    let ended = want.last() == Some(&EOS);
    if ended {
        want.pop();
    }
    assert_eq!(answer.tokens, want, "{what}");
    assert_eq!(answer.finish_reason == FinishReason::Eos, ended, "{what}");
    assert!((f64::from(answer.score) - score).abs() < 2e-4, "{what}: score {} want {score}", answer.score);
}

#[test]
fn greedy_is_transformers() {
    for name in ["pg1_mqa", "pg2", "pg1_gqa"] {
        let golden = json(&format!("gen_{name}.json"));
        let model = load(name);
        let options = Options { max_tokens: 20, ..Options::default() };
        // All prompts in one ragged batch: each row must be its single run.
        let answers = run(&model, &prompts(&golden), &options);
        for (i, (answer, case)) in answers.iter().zip(golden["cases"].as_array().unwrap()).enumerate() {
            let logprobs: Vec<f64> =
                case["greedy"]["logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            check(&format!("{name} {i}"), answer, &case["greedy"], logprobs.iter().sum());
            for (ours, want) in answer.logprobs.iter().zip(&logprobs) {
                assert!((f64::from(*ours) - want).abs() < 1e-4, "{name} {i}: {ours} want {want}");
            }
        }
    }
}

#[test]
fn beams_are_transformers() {
    for name in ["pg1_mqa", "pg2", "pg1_gqa"] {
        let golden = json(&format!("gen_{name}.json"));
        let model = load(name);
        for beams in [2, 3, 4] {
            let options = Options { max_tokens: 12, beams, ..Options::default() };
            let answers = run(&model, &prompts(&golden), &options);
            for (i, (answer, case)) in answers.iter().zip(golden["cases"].as_array().unwrap()).enumerate() {
                let want = &case["beams"][beams.to_string()];
                check(&format!("{name} {i}, {beams} beams"), answer, want, want["score"].as_f64().unwrap());
            }
        }
    }
}

#[test]
fn beams_by_the_reference_rule_are_big_visions() {
    for (name, setting) in [("pg1_mqa", "plain"), ("pg2", "capped"), ("pg2", "uncapped")] {
        let golden = &json(&format!("bv_gen_{name}.json"))["settings"][setting];
        let prompts = prompts(&json(&format!("gen_{name}.json")));
        let model = load_changed(name, Some(DType::F32), |c| {
            if setting == "uncapped" {
                c.text.final_logit_softcapping = None;
            }
        });
        for beams in [2, 3, 4] {
            let options =
                Options { max_tokens: 12, beams, beam_rule: BeamRule::Reference, ..Options::default() };
            let answers = run(&model, &prompts, &options);
            let want = golden[beams.to_string()].as_array().unwrap();
            assert_eq!(answers.len(), want.len());
            for (i, (answer, want)) in answers.iter().zip(want).enumerate() {
                check(
                    &format!("{name} {setting} {i}, {beams} beams"),
                    answer,
                    want,
                    want["score"].as_f64().unwrap(),
                );
            }
        }
    }
}

/// One row of hidden states per token, after the whole model, computed at once.
fn states(model: &PaliGemma, pixels: &Tensor, ids: &[u32], prefix_len: usize) -> Tensor {
    let mut pass = Pass::plain();
    let images = model.encode_images(pixels, &mut pass).unwrap();
    let text = model.embed_text(ids, &mut pass).unwrap();
    let x = PaliGemma::join(&images, &text, &mut pass);
    let mut cache = model.new_cache();
    let prefix_len = images.shape()[0] + prefix_len;
    let mut turns = [Turn { len: x.shape()[0], prefix_len, cache: &mut cache }];
    model.forward(&x, &mut turns, &mut pass).unwrap().into_tensor()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    a.as_f32().iter().zip(b.as_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
}

/// Pitfall 1: an image token sees the last prompt token; nothing sees a later suffix token.
#[test]
fn the_prefix_sees_itself_and_the_suffix_is_causal() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name);
        let pixels = images("gen_images_28.safetensors").rows(0, 1);
        let tokens = model.config().vision.num_tokens();
        for prefix_len in 1..12 {
            for suffix_len in 1..11 {
                let ids: Vec<u32> = (0..prefix_len + suffix_len).map(|i| 3 + (i * 7 % 90) as u32).collect();
                let base = states(&model, &pixels, &ids, prefix_len);
                let mut changed = ids.clone();
                changed[prefix_len - 1] = 99;
                let other = states(&model, &pixels, &changed, prefix_len);
                assert!(
                    distance(&base.rows(0, tokens), &other.rows(0, tokens)) > 1e-3,
                    "image sees the prompt"
                );
                let mut changed = ids.clone();
                changed[prefix_len + suffix_len - 1] = 99;
                let other = states(&model, &pixels, &changed, prefix_len);
                let before = tokens + prefix_len + suffix_len - 1;
                assert_eq!(
                    distance(&base.rows(0, before), &other.rows(0, before)),
                    0.0,
                    "nothing looks ahead"
                );
                assert!(distance(&base, &other) > 1e-3);
                let mut changed = ids.clone();
                changed[prefix_len] = 99;
                let other = states(&model, &pixels, &changed, prefix_len);
                let prefix = tokens + prefix_len;
                assert_eq!(
                    distance(&base.rows(0, prefix), &other.rows(0, prefix)),
                    0.0,
                    "the prefix is before it"
                );
            }
        }
    }
}

/// Pitfall 2: with the cache or all anew, at every split, the same logits.
#[test]
fn cached_decoding_equals_full_recomputation() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name);
        let pixels = images("gen_images_28.safetensors").rows(1, 2);
        let ids: Vec<u32> = (0..60).map(|i| 3 + (i * 11 % 90) as u32).collect();
        let prefix_len = 9;
        let all = model.logits(&states(&model, &pixels, &ids, prefix_len));
        let tokens = model.config().vision.num_tokens();
        for split in prefix_len..59 {
            let mut pass = Pass::plain();
            let images = model.encode_images(&pixels, &mut pass).unwrap();
            let text = model.embed_text(&ids[..split], &mut pass).unwrap();
            let x = PaliGemma::join(&images, &text, &mut pass);
            let mut cache = model.new_cache();
            let prefix_len = tokens + prefix_len;
            let mut turns = [Turn { len: tokens + split, prefix_len, cache: &mut cache }];
            model.forward(&x, &mut turns, &mut pass).unwrap();
            let x = model.embed_text(&ids[split..split + 1], &mut pass).unwrap();
            let mut turns = [Turn { len: 1, prefix_len, cache: &mut cache }];
            let step = model.logits(model.forward(&x, &mut turns, &mut pass).unwrap().tensor());
            let want = all.rows(tokens + split, tokens + split + 1);
            let scale = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(
                distance(&step, &want) <= 1e-5 * scale,
                "{name} split at {split}: {}",
                distance(&step, &want)
            );
        }
    }
}

/// Pitfall 2 again, as decoding does it: one cache, one token after the other, every row's logits and every choice.
#[test]
fn a_token_at_a_time_over_one_cache_is_full_recomputation() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name);
        let pixels = images("gen_images_28.safetensors").rows(1, 2);
        let ids: Vec<u32> = (0..60).map(|i| 3 + (i * 11 % 90) as u32).collect();
        let prefix_len = 9;
        let all = model.logits(&states(&model, &pixels, &ids, prefix_len));
        let tokens = model.config().vision.num_tokens();
        let mut pass = Pass::plain();
        let images = model.encode_images(&pixels, &mut pass).unwrap();
        let text = model.embed_text(&ids[..prefix_len], &mut pass).unwrap();
        let mut x = PaliGemma::join(&images, &text, &mut pass);
        let mut cache = model.new_cache();
        for next in prefix_len..=ids.len() {
            let mut turns = [Turn { len: x.shape()[0], prefix_len: tokens + prefix_len, cache: &mut cache }];
            let y = model.forward(&x, &mut turns, &mut pass).unwrap();
            let last = y.shape()[0] - 1;
            let step = model.logits(&y.tensor().rows(last, last + 1));
            let want = all.rows(tokens + next - 1, tokens + next);
            let scale = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(distance(&step, &want) <= 1e-5 * scale, "{name} at {next}: {}", distance(&step, &want));
            assert_eq!(first_of_largest(step.as_f32()), first_of_largest(want.as_f32()), "{name} at {next}");
            if next < ids.len() {
                x = model.embed_text(&ids[next..=next], &mut pass).unwrap();
            }
        }
    }
}

fn first_of_largest(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// Pitfall 3: the first token stands at position 0; shifting all positions changes nothing, shifting some does.
#[test]
fn only_distances_between_positions_matter() {
    let model = load("pg1_mqa");
    let mut pass = Pass::plain();
    let x = model.embed_text(&[5, 6, 7, 8], &mut pass).unwrap();
    let junk = model.embed_text(&[9; 3], &mut pass).unwrap();
    let read = |from: usize, gap: usize| {
        let mut cache = model.new_cache();
        let mut pass = Pass::plain();
        // Tokens that nobody sees (a window of four) move everything behind them.
        let model = load_changed("pg1_mqa", Some(DType::F32), |c| {
            c.text.sliding_window = Some(2);
            c.text.sliding_layers = vec![true; 2];
        })
        .with_sliding_window(true);
        for _ in 0..from {
            model
                .forward(&junk, &mut [Turn { len: 3, prefix_len: 0, cache: &mut cache }], &mut pass)
                .unwrap();
        }
        let first = model
            .forward(
                &x.tensor().rows(0, 2).into(),
                &mut [Turn { len: 2, prefix_len: 0, cache: &mut cache }],
                &mut pass,
            )
            .unwrap();
        for _ in 0..gap {
            model
                .forward(&junk, &mut [Turn { len: 3, prefix_len: 0, cache: &mut cache }], &mut pass)
                .unwrap();
        }
        let second = model
            .forward(
                &x.tensor().rows(2, 4).into(),
                &mut [Turn { len: 2, prefix_len: 0, cache: &mut cache }],
                &mut pass,
            )
            .unwrap();
        concat_rows(&[first.tensor(), second.tensor()]).rows(3, 4)
    };
    // The last row sees itself and the one before: two layers deep that is three tokens.
    assert!(distance(&read(3, 0), &read(9, 0)) < 1e-4, "shifted alike");
    assert!(distance(&read(3, 0), &read(3, 2)) > 1e-3, "moved apart");
}

/// Pitfall 4: soft tokens enter as they leave the projector, text is scaled by √D.
#[test]
fn text_is_scaled_and_images_are_not() {
    let model = load("pg1_mqa");
    let mut pass = Pass::tapped();
    let images = model.encode_images(&images("gen_images_28.safetensors").rows(0, 1), &mut pass).unwrap();
    let text = model.embed_text(&[7], &mut pass).unwrap();
    let x = PaliGemma::join(&images, &text, &mut pass).into_tensor();
    let (images, text) = (images.into_tensor(), text.into_tensor());
    assert_eq!(&x.as_f32()[..images.len()], images.as_f32());
    let checkpoint = paligemma::checkpoint::Checkpoint::open(&path("pg1_mqa")).unwrap();
    let table = checkpoint.tensor("language_model.embed_tokens.weight").unwrap();
    let root = (model.config().text.hidden_size as f32).sqrt();
    let want: Vec<f32> = table.rows(7, 8).to_f32_vec().iter().map(|x| x * root).collect();
    assert_eq!(text.as_f32(), want);
}

/// Pitfall 5: prompts of 3, 17 and 60 tokens together give each row its single answer; logits to rounding.
#[test]
fn a_ragged_batch_is_its_single_runs() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name);
        let pixels = images("gen_images_28.safetensors");
        let prompts: Vec<Prompt> = [3, 17, 60]
            .iter()
            .enumerate()
            .map(|(row, &len)| Prompt {
                pixels: pixels.rows(row, row + 1),
                ids: (0..len).map(|i| 3 + ((i * 13 + row) % 90) as u32).collect(),
                grammar: None,
            })
            .collect();
        let random = Sampling::Random { temperature: 1.0, top_k: Some(20), top_p: Some(0.9), seed: 3 };
        for sampling in [Sampling::Greedy, random] {
            let options = Options { max_tokens: 15, sampling, ..Options::default() };
            let together = run(&model, &prompts, &options);
            for (prompt, row) in prompts.iter().zip(&together) {
                let alone = &run(&model, std::slice::from_ref(prompt), &options)[0];
                assert_eq!(alone.tokens, row.tokens);
                for (a, b) in alone.logprobs.iter().zip(&row.logprobs) {
                    assert!((a - b).abs() < 1e-5);
                }
            }
        }
    }
}

/// Pitfall 8: the model has strong padding rows; they stay in the softmax and are never chosen.
#[test]
fn padding_rows_are_never_chosen() {
    let golden = json("gen_pg1_gqa.json");
    let first = golden["first_padding"].as_u64().unwrap() as u32;
    let cases = golden["cases"].as_array().unwrap();
    let would_be = cases.iter().filter(|c| ids(&c["free"]["tokens"]).iter().any(|&id| id >= first)).count();
    assert!(would_be > 0, "the golden shows that it matters");
    let model = load("pg1_gqa");
    let random = Sampling::Random { temperature: 2.0, top_k: None, top_p: None, seed: 5 };
    for options in [
        Options { max_tokens: 20, ..Options::default() },
        Options { max_tokens: 20, sampling: random, ..Options::default() },
        Options { max_tokens: 12, beams: 3, ..Options::default() },
        Options { max_tokens: 12, beams: 3, beam_rule: BeamRule::Reference, ..Options::default() },
    ] {
        for answer in run(&model, &prompts(&golden), &options) {
            assert!(answer.tokens.iter().all(|&id| id < first), "{options:?}");
        }
    }
}

/// Pitfall 11: the final cap changes log-probabilities, not the greedy choice.
#[test]
fn the_final_cap_changes_logprobs_and_not_the_choice() {
    let prompts = prompts(&json("gen_pg2.json"));
    let options = Options { max_tokens: 1, ..Options::default() };
    let capped = run(&load("pg2"), &prompts, &options);
    let model = load_changed("pg2", Some(DType::F32), |c| c.text.final_logit_softcapping = None);
    for (a, b) in capped.iter().zip(run(&model, &prompts, &options)) {
        assert_eq!(a.tokens, b.tokens);
        assert!((a.score - b.score).abs() > 1e-3);
    }
}

/// Pitfall 16: two images in the other order are another prompt.
#[test]
fn the_order_of_images_matters() {
    let model = load("pg2");
    let pixels = images("gen_images_28.safetensors");
    let ids = vec![2, 9, 108];
    let last = |a: usize, b: usize| {
        let both = concat_rows(&[&pixels.rows(a, a + 1), &pixels.rows(b, b + 1)]);
        let y = states(&model, &both, &ids, ids.len());
        model.logits(&y.rows(y.shape()[0] - 1, y.shape()[0]))
    };
    assert!(distance(&last(0, 1), &last(1, 0)) > 1e-3);
}

/// The loss on a hand-made example (pitfall 7): the mean over the labelled tokens of -log p.
#[test]
fn the_loss_is_the_mean_over_labelled_tokens() {
    let model = load("pg1_mqa");
    let pixels = images("gen_images_28.safetensors").rows(0, 1);
    let ids = [2, 50, 108, 60, 61, 1];
    let y = states(&model, &pixels, &ids, 3);
    let first = y.shape()[0] - ids.len();
    let targets: Vec<(usize, u32)> = (2..5).map(|i| (first + i, ids[i + 1])).collect();
    let logits = model.logits(&y);
    let v = logits.shape()[1];
    let by_hand: f64 = targets
        .iter()
        .map(|&(row, id)| {
            let row = &logits.as_f32()[row * v..(row + 1) * v];
            log_sum_exp(row) - f64::from(row[id as usize])
        })
        .sum::<f64>()
        / 3.0;
    assert!((paligemma::model::mean_loss(&model, &y, &targets) - by_hand).abs() < 1e-6);
}

#[test]
fn cancellation_and_stopping() {
    let model = load("pg1_mqa");
    let prompts = prompts(&json("gen_pg1_mqa.json"));
    let cancel = AtomicBool::new(true);
    let error = Generator::new(&model, EOS)
        .cancelled_by(&cancel)
        .run(&prompts, &Options::default(), &mut |_, _, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    // A caller that stops a row after two tokens gets two, and the others go on.
    let mut told = vec![0; prompts.len()];
    let (answers, _) = Generator::new(&model, EOS)
        .run(&prompts, &Options { max_tokens: 5, ..Options::default() }, &mut |row, _, _| {
            told[row] += 1;
            if row == 0 && told[0] == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((answers[0].tokens.len(), answers[0].finish_reason), (2, FinishReason::Stop));
    assert!(answers.iter().enumerate().all(|(i, a)| a.tokens.len() == told[i]));
    assert!(answers[1..].iter().any(|a| a.tokens.len() > 2));
}
