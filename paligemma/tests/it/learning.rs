//! Losses of batches and their gradients: what adds up, what learns and what does not.

use crate::goldens::{images, path};
use paligemma::{
    checkpoint::{Checkpoint, names},
    model::{BatchSize, Lesson, Lora, LossOptions, Mean, PaliGemma, Pass, Turn, Weights, dropout_key},
};
use paligemma_tensor::{DType, INT4_GROUP, Parameter, Tensor, Weight, log_sum_exp};
use std::collections::BTreeMap;

type Gradients = BTreeMap<usize, Tensor>;

/// The tiny model with the weights that `wanted` says learning, each under its place in the table of names.
fn load(name: &str, wanted: impl Fn(&str) -> bool) -> PaliGemma {
    load_with(name, wanted, plain, &|_| None)
}

fn plain(_: &str, tensor: Tensor) -> Weight {
    tensor.into()
}

/// Every matrix in bytes.
fn int8(name: &str, tensor: Tensor) -> Weight {
    match tensor.shape().len() == 2 && !name.contains("position_embedding") {
        true => Weight::quantise_int8(&tensor),
        false => tensor.into(),
    }
}

/// Every matrix in half bytes, but for the embedding table, which files have in bytes, and those whose inputs have no groups.
fn int4(name: &str, tensor: Tensor) -> Weight {
    match int8(name, tensor.clone()) {
        Weight::Int8 { .. } if tensor.shape()[1].is_multiple_of(INT4_GROUP) && !name.contains("embed") => {
            Weight::quantise_int4(&tensor)
        }
        _ => tensor.into(),
    }
}

/// The numbers that it stands for.
fn widened(weight: Weight) -> Weight {
    if let Weight::Plain(_) = weight { weight } else { weight.to_f32().into() }
}

/// The same in bf16.
fn rounded(weight: Weight) -> Weight {
    if let Weight::Plain(_) = weight { weight } else { weight.to_f32().cast(DType::BF16).into() }
}

fn load_with(
    name: &str,
    wanted: impl Fn(&str) -> bool,
    frozen: impl Fn(&str, Tensor) -> Weight,
    lora: &dyn Fn(&str) -> Option<Lora>,
) -> PaliGemma {
    let checkpoint = Checkpoint::open(&path(name)).unwrap();
    let all = names::tensors(checkpoint.config(), false);
    let mut get = |name: &str| {
        let tensor = checkpoint.tensor(name)?.cast(DType::F32);
        let id = all.iter().position(|named| named.name == name).unwrap();
        Ok(if wanted(name) { Parameter::wanted(tensor, id) } else { frozen(name, tensor).into() })
    };
    PaliGemma::load(checkpoint.config(), &mut Weights::new(&mut get).with_adapters(lora)).unwrap()
}

/// Three examples of 9 to 17 ids; the last has two pictures.
fn lessons() -> Vec<Lesson> {
    let pixels = images("gen_images_28.safetensors");
    let lesson = |i: u64, from: usize, to: usize, len: u32, prefix_len| Lesson {
        images_bchw: pixels.rows(from, to),
        ids: (0..len).map(|t| 3 + (t * 7 + i as u32 * 5) % 80).collect(),
        prefix_len,
        key: dropout_key(3, 4, i),
    };
    vec![lesson(0, 0, 1, 9, 4), lesson(1, 1, 2, 17, 6), lesson(2, 0, 2, 11, 10)]
}

fn gradients(model: &PaliGemma, batch: &[Lesson], options: &LossOptions) -> (f64, Gradients) {
    let mut all = Gradients::new();
    let shapes: BTreeMap<usize, Vec<usize>> =
        model.parameters().filter_map(|p| p.id().map(|id| (id, p.tensor().shape().to_vec()))).collect();
    let loss = model
        .loss_and_gradients(batch, options, None, &mut |id, part| match all.get_mut(&id) {
            Some(sum) => part.add_to(sum),
            None => {
                all.insert(id, part.into_tensor(&shapes[&id]));
            }
        })
        .unwrap();
    (loss.value, all)
}

/// The two agree to rounding: 1e-5 of the largest gradient.
fn assert_near(a: &Gradients, b: &Gradients, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}");
    let largest = b.values().flat_map(Tensor::as_f32).fold(0f32, |m, x| m.max(x.abs()));
    for (id, a) in a {
        for (x, y) in a.as_f32().iter().zip(b[id].as_f32()) {
            assert!((x - y).abs() <= 1e-5 * largest, "{what}: {id}: {x} {y} of {largest}");
        }
    }
}

#[test]
fn losses_are_those_of_the_tokens() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name, |_| false);
        let (mut examples, mut sum, mut count) = (0.0, 0.0, 0);
        for lesson in lessons() {
            let mut pass = Pass::plain();
            let soft = model.encode_images(&lesson.images_bchw, &mut pass).unwrap();
            let text = model.embed_text(&lesson.ids, &mut pass).unwrap();
            let x = PaliGemma::join(&soft, &text, &mut pass);
            let mut cache = model.new_cache();
            let first = soft.shape()[0];
            let turn = Turn { len: x.shape()[0], prefix_len: first + lesson.prefix_len, cache: &mut cache };
            let y = model.forward(&x, &mut [turn], &mut pass).unwrap();
            let logits = model.uncapped_logits(y.tensor());
            let losses = (lesson.prefix_len..lesson.ids.len()).map(|i| {
                let row = logits.rows(first + i - 1, first + i);
                log_sum_exp(row.as_f32()) - f64::from(row.as_f32()[lesson.ids[i] as usize])
            });
            let losses: Vec<f64> = losses.collect();
            examples += losses.iter().sum::<f64>() / losses.len() as f64 / 3.0;
            sum += losses.iter().sum::<f64>();
            count += losses.len();
        }
        for (mean, want) in [(Mean::Example, examples), (Mean::Token, sum / count as f64)] {
            let options = LossOptions { mean, ..LossOptions::default() };
            let loss = model.batch_loss(&lessons(), &options, None).unwrap();
            assert!((loss.value - want).abs() < 1e-5 * want, "{name} {mean:?}: {} {want}", loss.value);
            assert_eq!(loss.size, BatchSize { examples: 3, targets: count });
        }
    }
}

/// Whatever comes last changes the loss by its own probability alone: those of all tokens add up to one. If it were seen by
/// what stands before it, or if the prefix had a loss, they would not.
#[test]
fn nothing_leaks() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name, |_| false);
        let one = Some(BatchSize { examples: 1, targets: 1 });
        let options = LossOptions { mean: Mean::Token, batch: one, ..LossOptions::default() };
        let mut lesson = lessons()[0].clone();
        let loss = |lesson: &Lesson| model.batch_loss(std::slice::from_ref(lesson), &options, None).unwrap();
        let all = lesson.ids.clone();
        for len in [lesson.prefix_len, all.len() - 2] {
            lesson.ids = all[..len].to_vec();
            let before = loss(&lesson);
            assert_eq!(before.size.targets, len - lesson.prefix_len);
            let sum: f64 = (0..model.config().text.vocab_size as u32)
                .map(|last| {
                    lesson.ids.truncate(len);
                    lesson.ids.push(last);
                    (before.value - loss(&lesson).value).exp()
                })
                .sum();
            assert!((sum - 1.0).abs() < 1e-4, "{name} {len}: {sum}");
        }
    }
}

/// Parts of a batch add up to it; recomputing, the number of threads and repeating change no bit.
#[test]
fn parts_add_up_and_nothing_else_matters() {
    for name in ["pg1_mqa", "pg2"] {
        let model = load(name, |_| true);
        let all = lessons();
        let options = LossOptions {
            label_smoothing: 0.1,
            z_loss: 1e-3,
            dropout: 0.2,
            final_softcap: true,
            ..LossOptions::default()
        };
        let (loss, whole) = gradients(&model, &all, &options);
        assert_eq!(whole.len(), model.parameters().count(), "every weight has a gradient");
        for recompute in [false, true] {
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let options = LossOptions { recompute, ..options };
                let (again, same) = pool.install(|| gradients(&model, &all, &options));
                assert_eq!(again, loss, "{recompute} {threads}");
                assert!(same.iter().all(|(id, g)| g.as_f32() == whole[id].as_f32()), "{recompute} {threads}");
            }
        }
        for mean in [Mean::Example, Mean::Token] {
            let options = LossOptions { mean, batch: Some(BatchSize::of(&all)), ..options };
            let (loss, whole) = gradients(&model, &all, &options);
            let (mut sum, mut sums) = (0.0, Gradients::new());
            for part in [&all[..1], &all[1..]] {
                let (loss, part) = gradients(&model, part, &options);
                sum += loss;
                for (id, part) in part {
                    let to = sums.entry(id).or_insert_with(|| Tensor::zeros(part.shape()));
                    to.as_f32_mut().iter_mut().zip(part.as_f32()).for_each(|(to, x)| *to += x);
                }
            }
            assert!((sum - loss).abs() < 1e-6 * loss, "{mean:?}: {sum} {loss}");
            assert_near(&sums, &whole, "parts");
        }
    }
}

/// What is frozen gets no gradient and changes no other's; dropout follows its key.
#[test]
fn frozen_weights_have_no_gradients() {
    let options = LossOptions { dropout: 0.3, ..LossOptions::default() };
    let (loss, all) = gradients(&load("pg2", |_| true), &lessons(), &options);
    let cases: [fn(&str) -> bool; 4] = [
        |name| !name.starts_with("vision_tower"),
        |name| name.starts_with("vision_tower"),
        |name| name.contains("layers.1.mlp") || name.contains("projector"),
        |name| name.contains("embed_tokens"),
    ];
    for wanted in cases {
        let model = load("pg2", wanted);
        let (again, some) = gradients(&model, &lessons(), &options);
        assert_eq!(again, loss);
        assert_eq!(some.len(), model.parameters().filter(|p| p.is_wanted()).count());
        assert!(!some.is_empty() && some.iter().all(|(id, g)| g.as_f32() == all[id].as_f32()));
    }
    let mut other = lessons();
    other[1].key += 1;
    assert_ne!(gradients(&load("pg2", |_| false), &other, &options).0, loss);
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    Tensor::from_f32((0..shape.iter().product()).map(|_| next()).collect(), shape)
}

/// Adapters on every linear layer of the decoder's attention and MLP, and of the encoder's values: A as given times 0.3.
fn adapters(checkpoint: &Checkpoint, b_factor: f32) -> impl Fn(&str) -> Option<Lora> {
    let all = names::tensors(checkpoint.config(), false);
    move |name| {
        let at = all.iter().position(|named| named.name == format!("{name}.weight"))?;
        let is_target = name.starts_with("language_model") || name.ends_with("v_proj");
        let shape = &all[at].shape;
        let times =
            |x: Tensor, f: f32| Tensor::from_f32(x.as_f32().iter().map(|x| x * f).collect(), x.shape());
        is_target.then(|| Lora {
            a: Parameter::wanted(times(random(at as u64, &[4, shape[1]]), 0.3), 2 * at),
            b: Parameter::wanted(times(random(7 + at as u64, &[shape[0], 4]), b_factor), 2 * at + 1),
            scale: 2.0,
            dropout: 0.1,
        })
    }
}

#[test]
fn adapters_learn_beside_frozen_weights() {
    for name in ["pg1_mqa", "pg2"] {
        let checkpoint = Checkpoint::open(&path(name)).unwrap();
        let load = |b: f32, frozen: fn(&str, Tensor) -> Weight| {
            load_with(name, |_| false, frozen, &adapters(&checkpoint, b))
        };
        let options = LossOptions::default();
        // While B is zero the model is the base, and A has no gradient.
        let new = load(0.0, plain);
        let base = self::load(name, |_| false).batch_loss(&lessons(), &options, None).unwrap();
        assert_eq!(new.batch_loss(&lessons(), &options, None).unwrap(), base);
        let (_, first) = gradients(&new, &lessons(), &options);
        for (id, gradient) in &first {
            let is_zero = gradient.as_f32().iter().all(|&x| x == 0.0);
            assert_eq!(is_zero, id % 2 == 0, "{id}");
        }
        // Finite differences along the gradient itself.
        let mut model = load(0.3, plain);
        let (_, all) = gradients(&model, &lessons(), &LossOptions { recompute: true, ..options });
        assert_eq!(all.len(), first.len());
        let square: f64 = all.values().flat_map(Tensor::as_f32).map(|g| f64::from(*g).powi(2)).sum();
        let step = 1e-3 / square.sqrt();
        let at = |model: &mut PaliGemma, by: f64| {
            for (id, gradient) in &all {
                let weight = model.wanted_mut(*id).unwrap().as_f32_mut();
                weight.iter_mut().zip(gradient.as_f32()).for_each(|(w, g)| *w += (by * f64::from(*g)) as f32);
            }
            gradients(model, &lessons(), &options).0
        };
        let (up, down) = (at(&mut model, step), at(&mut model, -2.0 * step));
        let slope = (up - down) / (2.0 * step);
        assert!((slope - square).abs() < 5e-3 * square, "{name}: {slope}, want {square}");
        // Beside bytes (QLoRA) the gradients point where those beside the numbers that they stand for do; the products themselves
        // are tested one by one. Here x is rounded to bytes too, in a model of random weights, which makes much of little: from one
        // B to the next the cosine jumps between 0.91 and 0.99, so the one in the middle counts.
        let mut cosines = [0.1, 0.2, 0.25, 0.28, 0.29, 0.3, 0.31, 0.32, 0.35].map(|b| {
            let ours = gradients(&load(b, int8), &lessons(), &options).1;
            let wanted = gradients(&load(b, |name, w| widened(int8(name, w))), &lessons(), &options).1;
            cosine(&ours, &wanted)
        });
        cosines.sort_by(f64::total_cmp);
        assert!(cosines[4] > 0.96, "{name}: {cosines:?}");
    }
}

/// Beside half bytes the gradients of adapters are those beside their numbers, to the precision of bf16, in which both ways
/// multiply: also of so few rows that an answer would multiply bytes.
#[test]
fn adapters_learn_beside_half_bytes() {
    let name = "pg1_mha";
    let checkpoint = Checkpoint::open(&path(name)).unwrap();
    let load =
        |frozen: fn(&str, Tensor) -> Weight| load_with(name, |_| false, frozen, &adapters(&checkpoint, 0.3));
    for lessons in [&lessons()[..], &lessons()[..1]] {
        let gradients =
            |frozen: fn(&str, Tensor) -> Weight| gradients(&load(frozen), lessons, &LossOptions::default()).1;
        let ours = gradients(int4);
        type Held = fn(&str, Tensor) -> Weight;
        let wanted: [(Held, f64); 2] =
            [(|name, w| widened(int4(name, w)), 0.999), (|name, w| rounded(int4(name, w)), 0.999_999)];
        for (wanted, least) in wanted {
            let found = cosine(&ours, &gradients(wanted));
            assert!(found > least, "{} lessons: {found}, want {least}", lessons.len());
        }
    }
}

fn cosine(a: &Gradients, b: &Gradients) -> f64 {
    let dot = |a: &Gradients, b: &Gradients| -> f64 {
        let pairs = a.iter().flat_map(|(id, a)| a.as_f32().iter().zip(b[id].as_f32()));
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
