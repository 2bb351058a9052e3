//! What two models make of the same inputs: what a quantisation, or another type, costs.
//!
//! Model A answers each prompt greedily; both models then read image, prompt and A's answer in one pass, so that every
//! position compares two distributions of the next token after the same tokens.

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    generate::{Generator, Options},
    image::Picture,
    model::{PaliGemma, Pass, Turn},
    session::{Session, SessionOptions},
};
use paligemma_tensor::{Tensor, log_sum_exp};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// What is asked about each picture: the kinds of task that the paper trains.
pub const PROMPTS: [&str; 4] = ["caption en", "answer en what is in the picture?", "detect cat ; car", "ocr"];
/// Tokens that the longest of [`PROMPTS`] may come to.
const PROMPT_TOKENS: usize = 64;

/// How far B is from A over all inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// Pictures and prompts, in pairs.
    pub inputs: usize,
    /// Positions at which the next token was compared.
    pub positions: usize,
    /// Share of the positions at which the likeliest token is the same.
    pub top1_agreement: f64,
    /// Mean of KL(A‖B) over the positions, in nats.
    pub mean_kl: f64,
    /// The largest.
    pub max_kl: f64,
    /// Root mean square of the difference of the projected image tokens, over that of A's.
    pub image_features: f64,
    /// The same for the output of every layer, `img/encoder/blockNN/+mlp` and `llm/layers/NN`.
    pub layers: Vec<(String, f64)>,
}

impl Drift {
    /// The layer with the largest difference.
    pub fn worst_layer(&self) -> Option<&(String, f64)> {
        self.layers.iter().max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Opens both models at once, each as it is stored, for answers of `max_tokens`.
///
/// # Errors
/// `Kind::Usage` if their configurations or tokenizers differ; `Kind::Resource` if they do not fit in memory
/// together; what [`Session::open`] returns.
pub fn open_both(a: &Path, b: &Path, max_tokens: usize) -> Result<[Session; 2]> {
    let options = SessionOptions { text_tokens: PROMPT_TOKENS + max_tokens, ..SessionOptions::default() };
    let of_a = Checkpoint::open(a)?;
    let of_b = Checkpoint::open(b)?;
    let differ = |what: String| {
        Error::usage(what)
            .at(format!("{} and {}", a.display(), b.display()))
            .expected("two forms of one model")
    };
    if let Some(key) = first_difference(&of_a.config().to_json(None), &of_b.config().to_json(None)) {
        return Err(differ(format!("the configurations differ in {key}")));
    }
    let config = of_a.config();
    let (v, t) = (&config.vision, &config.text);
    let weights = of_a.num_bytes().saturating_add(of_b.num_bytes());
    let mut need = config.memory_needed(weights, v.num_tokens(), options.text_tokens, 1);
    // The outputs of all layers of both models are held until they are compared.
    let vision = v.num_hidden_layers * v.num_tokens() * v.hidden_size;
    let text = t.num_hidden_layers * (v.num_tokens() + options.text_tokens) * t.hidden_size;
    need.activations = need.activations.saturating_add(2 * 4 * (vision + text) as u64);
    need.check_available().map_err(|e| e.at("both models, which are held at once"))?;
    let sessions = [Session::open(a, &options)?, Session::open(b, &options)?];
    let [one, other] = [&sessions[0], &sessions[1]].map(Session::tokenizer);
    let size = one.vocab_size();
    if size != other.vocab_size() {
        return Err(differ(format!("the tokenizers have {size} and {} pieces", other.vocab_size())));
    }
    let ids: Vec<u32> = (0..size as u32).collect();
    let pairs = one.pieces(&ids).into_iter().zip(other.pieces(&ids));
    if let Some((id, (one, other))) = pairs.enumerate().find(|(_, (one, other))| one != other) {
        return Err(differ(format!("the tokenizers differ: id {id} is {one:?} and {other:?}")));
    }
    Ok(sessions)
}

/// The path of the first key in which two objects differ.
fn first_difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys());
            let of_key = |key: &String| {
                let inner = first_difference(one.get(key)?, other.get(key)?)?;
                Some(if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") })
            };
            keys.map(|key| {
                if one.contains_key(key) && other.contains_key(key) { of_key(key) } else { Some(key.clone()) }
            })
            .find_map(|found| found)
        }
        _ if a == b => None,
        _ => Some(String::new()),
    }
}

/// Compares `b` with `a` on [`PROMPTS`] about each picture, preprocessed as `a` has it.
///
/// # Errors
/// No picture, or one that is an error; a prompt that a tokenizer cannot encode; numbers that are not finite.
pub fn drift(
    [a, b]: [&Session; 2],
    pictures: impl IntoIterator<Item = Result<Picture>>,
    max_tokens: usize,
) -> Result<Drift> {
    let models = [a.model(), b.model()];
    let generator = Generator::new(a.model(), a.tokenizer().eos()?);
    let options = Options { max_tokens, ..Options::default() };
    let mut sums = Sums::default();
    for picture in pictures {
        let pictures = [picture?];
        let prompts = PROMPTS.iter().map(|prefix| a.prompt(&pictures, prefix)).collect::<Result<Vec<_>>>()?;
        let (image_a, taps_a) = image(models[0], &prompts[0].pixels)?;
        let (image_b, taps_b) = image(models[1], &prompts[0].pixels)?;
        sums.features.add(&image_a, &image_b);
        sums.add_layers(taps_a, taps_b);
        for prompt in &prompts {
            let (answers, _) = generator.run(std::slice::from_ref(prompt), &options, &mut |_, _, _| {
                std::ops::ControlFlow::Continue(())
            })?;
            let answer = &answers[0].tokens;
            let (logits_a, taps_a) = text(models[0], &image_a, &prompt.ids, answer)?;
            let (logits_b, taps_b) = text(models[1], &image_b, &prompt.ids, answer)?;
            sums.inputs += 1;
            sums.add_logits(&logits_a, &logits_b)?;
            sums.add_layers(taps_a, taps_b);
        }
    }
    sums.finish()
}

/// Names of the intermediates that are compared: the output of each layer.
fn is_layer(name: &str) -> bool {
    name.starts_with("llm/layers/") || (name.starts_with("img/encoder/") && name.ends_with("/+mlp"))
}

type Taps = Vec<(String, Tensor)>;

/// The projected tokens of a picture, and every block's output.
fn image(model: &PaliGemma, pixels: &Tensor) -> Result<(Tensor, Taps)> {
    let mut pass = Pass::tapping(is_layer);
    let tokens = model.encode_images(pixels, &mut pass)?;
    Ok((tokens.into_tensor(), pass.taps()))
}

/// Logits of what follows the prompt and each token of the answer, and every layer's output.
fn text(model: &PaliGemma, image: &Tensor, prompt: &[u32], answer: &[u32]) -> Result<(Tensor, Taps)> {
    let mut pass = Pass::tapping(is_layer);
    let text = model.embed_text(&[prompt, answer].concat(), &mut pass)?;
    let x = PaliGemma::join(&image.clone().into(), &text, &mut pass);
    let (len, prefix_len) = (x.shape()[0], x.shape()[0] - answer.len());
    let mut cache = model.new_cache();
    let y = model.forward(&x, &mut [Turn { len, prefix_len, cache: &mut cache }], &mut pass)?;
    Ok((model.logits(&y.tensor().rows(prefix_len - 1, len)), pass.taps()))
}

/// Squares of the differences and of A's numbers.
#[derive(Debug, Default)]
struct Squares {
    difference: f64,
    of_a: f64,
}

impl Squares {
    fn add(&mut self, a: &Tensor, b: &Tensor) {
        for (&a, &b) in a.as_f32().iter().zip(b.as_f32()) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.difference += (a - b).powi(2);
            self.of_a += a.powi(2);
        }
    }

    fn relative_rms(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { (self.difference / self.of_a).sqrt() }
    }
}

#[derive(Debug, Default)]
struct Sums {
    inputs: usize,
    positions: usize,
    agreements: usize,
    kl: f64,
    max_kl: f64,
    features: Squares,
    /// By name, which is in the order of the layers.
    layers: BTreeMap<String, Squares>,
}

impl Sums {
    fn add_layers(&mut self, a: Taps, b: Taps) {
        for ((name, a), (_, b)) in a.into_iter().zip(b) {
            self.layers.entry(name).or_default().add(&a, &b);
        }
    }

    fn add_logits(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        let v = a.shape()[1];
        for (a, b) in a.as_f32().chunks(v).zip(b.as_f32().chunks(v)) {
            for (model, row) in [("A", a), ("B", b)] {
                if let Some(x) = row.iter().find(|x| !x.is_finite()) {
                    return Err(
                        Error::model(format!("a logit of model {model} is {x}")).expected("finite numbers")
                    );
                }
            }
            let kl = divergence(a, b);
            self.positions += 1;
            self.agreements += usize::from(likeliest(a) == likeliest(b));
            self.kl += kl;
            self.max_kl = self.max_kl.max(kl);
        }
        Ok(())
    }

    fn finish(self) -> Result<Drift> {
        if self.positions == 0 {
            return Err(Error::input("there is no picture to compare on").expected("at least one"));
        }
        let positions = self.positions as f64;
        Ok(Drift {
            inputs: self.inputs,
            positions: self.positions,
            top1_agreement: self.agreements as f64 / positions,
            mean_kl: self.kl / positions,
            max_kl: self.max_kl,
            image_features: self.features.relative_rms(),
            layers: self.layers.into_iter().map(|(name, squares)| (name, squares.relative_rms())).collect(),
        })
    }
}

/// KL(A‖B) of the distributions that two rows of logits give, in nats.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let (sum_a, sum_b) = (log_sum_exp(a), log_sum_exp(b));
    let terms = a.iter().zip(b).map(|(&a, &b)| {
        let (log_a, log_b) = (f64::from(a) - sum_a, f64::from(b) - sum_b);
        log_a.exp() * (log_a - log_b)
    });
    // It is never negative but by rounding.
    terms.sum::<f64>().max(0.0)
}

/// Index of the largest, the first of equals.
fn likeliest(row: &[f32]) -> usize {
    row.iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best })
        .0
}

/// Three pictures of 224 pixels for those who give none: a slope of colours, a disc on a chequered ground, stripes of
/// noise.
pub fn drawn_pictures() -> [Picture; 3] {
    const SIDE: usize = 224;
    let draw = |colour: &dyn Fn(usize, usize) -> [u8; 3]| Picture {
        width: SIDE,
        height: SIDE,
        rgb: (0..SIDE * SIDE).flat_map(|i| colour(i % SIDE, i / SIDE)).collect(),
    };
    let slope = draw(&|x, y| [x as u8, y as u8, ((x + y) / 2) as u8]);
    let disc = draw(&|x, y| {
        let is_inside = x.abs_diff(SIDE / 2).pow(2) + y.abs_diff(SIDE / 2).pow(2) < 70 * 70;
        match (is_inside, (x / 28 + y / 28) % 2) {
            (true, _) => [200, 40, 40],
            (false, 0) => [240, 240, 230],
            (false, _) => [30, 60, 90],
        }
    });
    let stripes = draw(&|x, y| {
        let noise = (x * 7919 + y * 104_729 + x * y * 31) % 97;
        let base = if x / 16 % 2 == 0 { 130 } else { 20 };
        [base + noise as u8, base, base + (noise / 2) as u8]
    });
    [slope, disc, stripes]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let log = |p: [f32; 3]| p.map(|p| p.ln() + 5.0);
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]);
        assert_eq!(divergence(&log(p), &log(p)), 0.0);
        // 0.5 ln 2 + 0.25 ln 0.5
        assert!((divergence(&log(p), &log(q)) - 0.25 * 2f64.ln()).abs() < 1e-6);
        assert_eq!([likeliest(&p), likeliest(&q), likeliest(&[1.0, 1.0])], [0, 2, 0]);
    }

    #[test]
    fn the_first_difference_is_named_with_its_path() {
        let a = json!({ "x": 1, "y": { "z": [1, 2] }, "w": null });
        let check = |b: Value, want: Option<&str>| {
            assert_eq!(first_difference(&a, &b).as_deref(), want, "{b}");
        };
        check(a.clone(), None);
        check(json!({ "x": 2, "y": { "z": [1, 2] }, "w": null }), Some("x"));
        check(json!({ "x": 1, "y": { "z": [1] }, "w": null }), Some("y.z"));
        check(json!({ "x": 1, "y": { "z": [1, 2] } }), Some("w"));
        check(json!({ "x": 1, "y": { "z": [1, 2] }, "w": null, "v": 0 }), Some("v"));
    }
}
