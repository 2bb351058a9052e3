//! Recomputes what a golden holds and names the first tensor that departs.
//!
//! A golden is a safetensors file of one example (batch 1) in Hugging Face's layout. Inputs: `pixel_values`
//! `[images, 3, H, W]`, `input_ids` `[1, T]` with the image placeholders in place, `token_type_ids` `[1, T]` (0 image
//! and prefix, 1 suffix), `attention_mask`, `labels` `[1, T]` (-100 ignored). Outputs, each optional: `image_features`
//! `[images, N, D]`, `logits` `[1, T, V]`, `loss` `[1]`, `text_logits` `[1, T - image tokens, V]` (big_vision's: before
//! the final soft cap), `grad/<tensor name>`.

use crate::{
    Error, Kind, Result,
    checkpoint::{Checkpoint, canonical, dequantise, names, safetensors},
    config::Config,
    model::{PaliGemma, Part, Pass, Sequence, Turn, Weights, mean_loss},
};
use ::safetensors::Dtype;
use paligemma_tensor::{DType, LossRule, Parameter, Target, Tensor, Value, Weight};
use std::{collections::BTreeMap, path::Path};

/// One output of the golden beside ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Its key in the golden.
    pub name: String,
    /// Largest difference.
    pub max_abs: f64,
    /// Largest difference over the golden's largest magnitude.
    pub max_rel: f64,
    /// The most that `max_rel` may be.
    pub tolerance: f64,
    /// Whether they agree.
    pub ok: bool,
}

/// What `verify` found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Every output of the golden, in the order of its computation.
    pub tensors: Vec<Compared>,
}

impl Verdict {
    /// Whether everything agrees.
    pub fn ok(&self) -> bool {
        self.tensors.iter().all(|t| t.ok)
    }

    /// The first tensor that departs.
    pub fn first_departure(&self) -> Option<&Compared> {
        self.tensors.iter().find(|t| !t.ok)
    }
}

/// The largest relative difference that a weight type explains: in f32 only the order of sums differs.
pub fn default_tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-4,
        DType::BF16 | DType::F16 | DType::U8 => 2e-2,
    }
}

/// A golden's tensors by their keys.
#[derive(Debug)]
pub struct Golden {
    numbers: BTreeMap<String, Tensor>,
    integers: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
}

const INPUTS: [&str; 5] = ["pixel_values", "input_ids", "token_type_ids", "attention_mask", "labels"];
const OUTPUTS: [&str; 4] = ["image_features", "logits", "text_logits", "loss"];

impl Golden {
    /// Reads a golden.
    ///
    /// # Errors
    /// A broken file; a key that no golden has; a missing input.
    pub fn open(path: &Path) -> Result<Golden> {
        let place = |e: Error| e.at(path.display().to_string());
        // Whatever is wrong with the golden is wrong with the input: a failed run (exit 1) means that something departs.
        let (file, stored) = safetensors::open(path).map_err(|e| e.of_kind(Kind::Input))?;
        let mut golden = Golden { numbers: BTreeMap::new(), integers: BTreeMap::new() };
        for tensor in stored {
            let bytes = &file[tensor.offset..tensor.offset + tensor.len];
            if let Some(dtype) = tensor.dtype() {
                golden
                    .numbers
                    .insert(tensor.name, Tensor::from_mapped(&file, tensor.offset, dtype, &tensor.shape));
            } else {
                let integers = match tensor.stored_as {
                    Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
                    Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
                    Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| b.into()).collect(),
                    other => {
                        return Err(place(
                            Error::input(format!("tensor \"{}\" is of type {other:?}", tensor.name))
                                .expected("F32, BF16, F16, I64, I32, U8 or BOOL"),
                        ));
                    }
                };
                golden.integers.insert(tensor.name, (tensor.shape, integers));
            }
        }
        for key in golden.numbers.keys().chain(golden.integers.keys()) {
            let known = match key.strip_prefix("grad/") {
                Some(name) => canonical(name).is_some(),
                None => INPUTS.contains(&key.as_str()) || OUTPUTS.contains(&key.as_str()),
            };
            if !known {
                return Err(place(Error::input(format!("a golden has no tensor \"{key}\"")).expected(
                    format!("{}, {} or grad/<tensor name>", INPUTS.join(", "), OUTPUTS.join(", ")),
                )));
            }
        }
        golden.rows("input_ids").map_err(place)?;
        Ok(golden)
    }

    /// How many images it has, and how many positions: for the memory that checking needs.
    pub fn num_tokens(&self) -> (usize, usize) {
        let images = self.numbers.get("pixel_values").and_then(|p| p.shape().first().copied()).unwrap_or(0);
        (images, self.integers.get("input_ids").map_or(0, |(_, ids)| ids.len()))
    }

    /// Whether gradients are to be checked.
    pub fn has_gradients(&self) -> bool {
        self.numbers.keys().any(|key| key.starts_with("grad/"))
    }

    /// The checkpoint as a model that can be checked against this golden, gradients included: each tensor as `dtype`, or as
    /// it is stored.
    ///
    /// # Errors
    /// `Kind::Resource` if the machine cannot hold it and its gradients; a broken tensor.
    pub fn load_model(&self, checkpoint: &Checkpoint, dtype: Option<DType>) -> Result<PaliGemma> {
        let config = checkpoint.config();
        let (images, text) = self.num_tokens();
        let mut bytes =
            dtype.map_or(checkpoint.num_bytes(), |dtype| checkpoint.num_parameters() * dtype.size() as u64);
        if self.has_gradients() {
            bytes += checkpoint.num_parameters() * DType::F32.size() as u64;
        }
        let image_tokens = images * config.vision.num_tokens();
        config.memory_needed(bytes, image_tokens, text, 1).check_available()?;
        load_wanting_gradients(config, &mut |name| {
            let weight = checkpoint.weight(name)?;
            Ok(dtype.map_or_else(|| weight.clone(), |dtype| dequantise(&weight, dtype).into()))
        })
    }

    /// An integer input `[1, T]`, as a row.
    fn rows(&self, key: &str) -> Result<&[i64]> {
        let Some((shape, values)) = self.integers.get(key) else {
            return Err(Error::input(format!("the golden has no integer tensor \"{key}\"")));
        };
        match shape.as_slice() {
            [1, _] => Ok(values),
            _ => {
                Err(Error::input(format!("\"{key}\" has shape {shape:?}")).expected("[1, T]: a batch of one"))
            }
        }
    }
}

/// The golden's example as the model takes it.
struct Example {
    /// For each position that is not masked out, its place in the golden's sequence.
    places: Vec<usize>,
    /// Ids of the positions that are not masked out.
    ids: Vec<u32>,
    prefix_len: usize,
    /// (row whose logits predict it, id)
    targets: Vec<(usize, u32)>,
}

impl Example {
    fn of(golden: &Golden) -> Result<Example> {
        let ids = golden.rows("input_ids")?;
        let optional = |key: &str| -> Result<Option<&[i64]>> {
            if !golden.integers.contains_key(key) {
                return Ok(None);
            }
            let row = golden.rows(key)?;
            if row.len() != ids.len() {
                return Err(Error::input(format!("\"{key}\" has {} positions", row.len()))
                    .expected(format!("{}, as input_ids", ids.len())));
            }
            Ok(Some(row))
        };
        let mask = optional("attention_mask")?;
        let places: Vec<usize> = (0..ids.len()).filter(|&i| mask.is_none_or(|m| m[i] != 0)).collect();
        let types = optional("token_type_ids")?.ok_or_else(|| {
            Error::input("the golden has no tensor \"token_type_ids\"")
                .expected("0 for image and prefix, 1 for the suffix")
        })?;
        let prefix_len = places.iter().take_while(|&&i| types[i] == 0).count();
        if places.iter().skip(prefix_len).any(|&i| types[i] != 1) {
            return Err(Error::input("\"token_type_ids\" goes back to the prefix")
                .expected("zeros (image and prefix), then ones (suffix)"));
        }
        let narrow = |id: i64| {
            u32::try_from(id).map_err(|_| Error::input(format!("\"input_ids\" or \"labels\" has {id}")))
        };
        let mut targets = Vec::new();
        if let Some(labels) = optional("labels")? {
            // Labels are shifted by one: the logits of a position predict the label of the next.
            for (row, &place) in places.iter().enumerate() {
                if place + 1 < labels.len() && labels[place + 1] != -100 {
                    targets.push((row, narrow(labels[place + 1])?));
                }
            }
        }
        let ids = places.iter().map(|&i| narrow(ids[i])).collect::<Result<_>>()?;
        Ok(Example { places, ids, prefix_len, targets })
    }
}

/// The model of `config` with the weights that `weight` gives by name, the gradient of each plain one of which is wanted.
///
/// # Errors
/// A missing tensor or one of another shape.
pub fn load_wanting_gradients(
    config: &Config,
    weight: &mut dyn FnMut(&str) -> Result<Weight>,
) -> Result<PaliGemma> {
    let ids: BTreeMap<String, usize> =
        names::tensors(config, false).into_iter().enumerate().map(|(id, named)| (named.name, id)).collect();
    let mut get = |name: &str| {
        Ok(match (weight(name)?, ids.get(name)) {
            (Weight::Plain(tensor), Some(&id)) => Parameter::wanted(tensor, id),
            (weight, _) => weight.into(),
        })
    };
    PaliGemma::load(config, &mut Weights::new(&mut get))
}

/// Recomputes the golden's outputs with `model` and compares; `dtype` is the model's, for the tolerance: U8
/// stands for quantised weights. A golden with gradients needs a model that [`Golden::load_model`] or
/// [`load_wanting_gradients`] made; those of a quantised model are not compared.
///
/// # Errors
/// A golden that is not for this model: other shapes, other image tokens, ids beyond the table.
pub fn verify(model: &PaliGemma, golden: &Golden, dtype: DType) -> Result<Verdict> {
    let example = Example::of(golden)?;
    let tolerance = default_tolerance(dtype);
    let mut tensors = Vec::new();
    let mut pass = Pass::plain();
    let features = match golden.numbers.get("pixel_values") {
        Some(pixels) => Some(model.encode_images(&pixels.cast(DType::F32), &mut pass)?),
        None => None,
    };
    let num_features = features.as_ref().map_or(0, |f| f.shape()[0]);
    let placeholder = placeholder(&example.ids, model.config().image_token_index as u32, num_features);
    let is_image = |id: &u32| *id == placeholder;
    let num_image_tokens = example.ids.iter().filter(|id| is_image(id)).count();
    if num_features != num_image_tokens {
        return Err(Error::input(format!(
            "the golden has {num_image_tokens} image placeholders (id {placeholder})"
        ))
        .expected(format!("{num_features}, as its pixel_values give")));
    }
    if let (Some(want), Some(features)) = (golden.numbers.get("image_features"), &features) {
        let images = golden.numbers["pixel_values"].shape()[0];
        let ours = features.tensor().reshape(&[images, num_features / images, features.shape()[1]]);
        let mut difference = Difference::new("image_features", want);
        check_shape("image_features", want, ours.shape())?;
        difference.add(ours.as_f32(), want.to_f32_vec().as_slice());
        tensors.push(difference.result(tolerance));
    }

    let text: Vec<u32> = example.ids.iter().copied().filter(|id| !is_image(id)).collect();
    let parts: Vec<Part> = example
        .ids
        .chunk_by(|a, b| is_image(a) == is_image(b))
        .map(|run| if is_image(&run[0]) { Part::Image(run.len()) } else { Part::Text(run.len()) })
        .collect();
    let soft_tokens = features.unwrap_or_else(|| Tensor::zeros(&[0, model.config().text.hidden_size]).into());
    let x = PaliGemma::join_parts(&soft_tokens, &model.embed_text(&text, &mut pass)?, &parts, &mut pass);
    let mut cache = model.new_cache();
    let mut turns = [Turn { len: example.ids.len(), prefix_len: example.prefix_len, cache: &mut cache }];
    let y = model.forward(&x, &mut turns, &mut pass)?.into_tensor();

    let total = golden.rows("input_ids")?.len();
    let v = model.config().text.vocab_size;
    if let Some(want) = golden.numbers.get("logits") {
        check_shape("logits", want, &[1, total, v])?;
        let rows: Vec<(usize, usize)> = example.places.iter().copied().enumerate().collect();
        let compared = compare_rows("logits", want, &rows, v, |from, to| model.logits(&y.rows(from, to)));
        tensors.push(compared.result(tolerance));
    }
    if let Some(want) = golden.numbers.get("text_logits") {
        check_shape("text_logits", want, &[1, total - num_image_tokens, v])?;
        if example.ids.len() != total || !example.ids[..num_image_tokens].iter().all(is_image) {
            return Err(Error::input("\"text_logits\" needs the image first and no padding"));
        }
        let rows: Vec<(usize, usize)> =
            (num_image_tokens..total).map(|i| (i, i - num_image_tokens)).collect();
        let compared =
            compare_rows("text_logits", want, &rows, v, |from, to| model.uncapped_logits(&y.rows(from, to)));
        tensors.push(compared.result(tolerance));
    }
    if let Some(want) = golden.numbers.get("loss") {
        check_targets(&example, v)?;
        let loss = mean_loss(model, &y, &example.targets);
        let mut difference = Difference::new("loss", want);
        if want.len() != 1 {
            return Err(Error::input(format!("\"loss\" has shape {:?}", want.shape())).expected("[1]"));
        }
        difference.add(&[loss as f32], &want.to_f32_vec());
        tensors.push(difference.result(tolerance));
    }
    if golden.has_gradients() && dtype != DType::U8 {
        check_targets(&example, v)?;
        tensors.extend(verify_gradients(model, golden, &example, &text, &parts, tolerance)?);
    }
    Ok(Verdict { tensors })
}

/// The golden's gradients beside ours, in the order in which the model uses the weights.
fn verify_gradients(
    model: &PaliGemma,
    golden: &Golden,
    example: &Example,
    text: &[u32],
    parts: &[Part],
    tolerance: f64,
) -> Result<Vec<Compared>> {
    let mut pass = Pass::recorded(false, None, None);
    let images: Value = match golden.numbers.get("pixel_values") {
        Some(pixels) => model.encode_images(&pixels.cast(DType::F32), &mut pass)?,
        None => Tensor::zeros(&[0, model.config().text.hidden_size]).into(),
    };
    let x = PaliGemma::join_parts(&images, &model.embed_text(text, &mut pass)?, parts, &mut pass);
    let sequence = Sequence { len: example.ids.len(), prefix_len: example.prefix_len };
    let y = model.forward_whole(&x, &[sequence], None, &mut pass)?;
    let weight = 1.0 / example.targets.len().max(1) as f32;
    let targets: Vec<Target> = example.targets.iter().map(|&(row, id)| Target { row, id, weight }).collect();
    let rule = LossRule { softcap: model.config().text.final_logit_softcapping, ..LossRule::default() };
    let (loss, _) = model.loss(&y, &targets, &rule, &mut pass);

    let named = names::tensors(model.config(), false);
    let mut ours: Vec<Option<Tensor>> = vec![None; named.len()];
    let one = Tensor::from_f32(vec![1.0], &[1]);
    pass.into_tape().backward(&loss, one, &mut |id, part| match &mut ours[id] {
        Some(sum) => part.add_to(sum),
        none => *none = Some(part.into_tensor(&named[id].shape)),
    });
    let wanted: BTreeMap<String, (&String, &Tensor)> = golden
        .numbers
        .iter()
        .filter_map(|(key, want)| Some((canonical(key.strip_prefix("grad/")?)?, (key, want))))
        .collect();
    let largest = wanted.values().fold(0.0, |m, (key, want)| larger(m, Difference::new(key, want).scale));
    let mut tensors = Vec::new();
    for (named, ours) in named.iter().zip(ours) {
        let Some((key, want)) = wanted.get(&named.name) else { continue };
        check_shape(key, want, &named.shape)?;
        let mut difference = Difference::new(key, want);
        // Some gradients are zero in exact arithmetic, as that of SigLIP's key bias: noise is not compared with noise.
        difference.scale = difference.scale.max(1e-3 * largest);
        let zeros = Tensor::zeros(&named.shape);
        difference.add(ours.as_ref().unwrap_or(&zeros).as_f32(), &want.to_f32_vec());
        tensors.push(difference.result(tolerance));
    }
    if let Some((key, _)) =
        wanted.iter().find(|(name, _)| !named.iter().any(|n| n.name == **name)).map(|(_, v)| v)
    {
        return Err(Error::input(format!("the model has no tensor for \"{key}\"")));
    }
    Ok(tensors)
}

/// The id that stands in the image's places. An npz does not tell it: where the model's own is not among `ids`, it is
/// the one id that fills the first `num_features` places and no other.
fn placeholder(ids: &[u32], of_model: u32, num_features: usize) -> u32 {
    let first = ids.first().copied().unwrap_or(of_model);
    let fills = |id: u32| {
        ids.iter().take(num_features).all(|&i| i == id)
            && ids.iter().filter(|&&i| i == id).count() == num_features
    };
    if !ids.contains(&of_model) && num_features > 0 && fills(first) { first } else { of_model }
}

fn check_shape(name: &str, golden: &Tensor, ours: &[usize]) -> Result<()> {
    if golden.shape() == ours {
        return Ok(());
    }
    Err(Error::input(format!("the golden's \"{name}\" has shape {:?}", golden.shape()))
        .expected(format!("{ours:?}, as the model gives")))
}

fn check_targets(example: &Example, v: usize) -> Result<()> {
    match example.targets.iter().find(|(_, id)| *id as usize >= v) {
        Some((_, id)) => Err(Error::input(format!("\"labels\" has {id}")).expected(format!("ids below {v}"))),
        None => Ok(()),
    }
}

/// Compares logits a few rows at a time: `ours(from, to)` are our rows; `rows` pairs our row with the golden's.
fn compare_rows(
    name: &str,
    want: &Tensor,
    rows: &[(usize, usize)],
    v: usize,
    ours: impl Fn(usize, usize) -> Tensor,
) -> Difference {
    const ROWS: usize = 64;
    let mut difference = Difference::new(name, want);
    let golden = want.reshape(&[want.shape()[1], v]);
    for chunk in rows.chunks(ROWS) {
        let first = chunk[0].0;
        let logits = ours(first, first + chunk.len());
        for (row, (_, place)) in logits.as_f32().chunks(v).zip(chunk) {
            difference.add(row, &golden.rows(*place, place + 1).to_f32_vec());
        }
    }
    difference
}

/// A running comparison.
struct Difference {
    name: String,
    scale: f64,
    max_abs: f64,
}

impl Difference {
    fn new(name: &str, want: &Tensor) -> Self {
        let scale = want.to_f32_vec().iter().fold(0f64, |m, &x| larger(m, f64::from(x).abs()));
        Difference { name: name.to_owned(), scale, max_abs: 0.0 }
    }

    fn add(&mut self, ours: &[f32], want: &[f32]) {
        for (&o, &w) in ours.iter().zip(want) {
            self.max_abs = larger(self.max_abs, (f64::from(o) - f64::from(w)).abs());
        }
    }

    fn result(self, tolerance: f64) -> Compared {
        let max_rel = if self.max_abs == 0.0 { 0.0 } else { self.max_abs / self.scale };
        // A NaN on either side is no agreement.
        Compared { ok: max_rel <= tolerance, name: self.name, max_abs: self.max_abs, max_rel, tolerance }
    }
}

/// The larger; a NaN wins.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
