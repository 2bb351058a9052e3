//! A checkpoint of random weights: the shape of a published model without its knowledge, for measuring.

use super::{
    convert::new_companions,
    names::{self, Named},
    quantised::Form,
    write::write_folder,
};
use crate::{Error, Kind, Result, config::Config, nano, text::stand_in_tokenizer};
use paligemma_tensor::{DType, Tensor, Weight, bf16, f16, mix};
use rayon::prelude::*;
use std::{collections::HashMap, ops::ControlFlow, path::Path};

/// Ids of `<loc…>` and `<seg…>`, which stand before `<image>`.
const NUM_LOC_AND_SEG: usize = 1024 + 128;

/// Writes a folder with config.json, the weights, a stand-in tokenizer (or nano's own) and the published processor settings.
/// Equal seeds give equal bytes; a scheme quantises the model that bf16 would be. `progress(done, total)` is told in
/// bytes before quantisation, and may break off: then nothing is left.
///
/// # Errors
/// A folder that holds something else; a disk without room; `Kind::Cancelled`.
pub fn random_folder(
    config: &Config,
    folder: &Path,
    form: Form,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let loc0 = config.image_token_index.saturating_sub(NUM_LOC_AND_SEG);
    // The models of our own have their own words.
    let is_nano =
        ["nano-112", "nano-224"].iter().any(|name| Config::published(name).as_ref() == Some(config));
    let (name, tokenizer) = match is_nano {
        true => ("tokenizer.model", nano::TOKENIZER.to_vec()),
        false => ("tokenizer.json", stand_in_tokenizer(loc0, config.image_token_index)?),
    };
    let files = new_companions(config, name, tokenizer);
    let dtype = form.plain();
    let total = config.num_parameters() * dtype.size() as u64;
    let mut done = 0;
    write_folder(config, folder, form, &files, &mut |name, shape| {
        let tensor = random_tensor(name, shape, dtype, seed);
        done += tensor.bytes().len() as u64;
        match progress(done, total) {
            ControlFlow::Continue(()) => Ok(tensor),
            ControlFlow::Break(()) => Err(Error::new(Kind::Cancelled, "cancelled")),
        }
    })
}

/// The weights that [`random_folder`] writes: their bytes, and each made when its canonical name asks for it.
///
/// # Errors
/// Those of the function given back: a name that the model of `config` does not have.
pub fn random_weights(
    config: &Config,
    form: Form,
    seed: u64,
) -> (u64, impl FnMut(&str) -> Result<Weight> + use<>) {
    let tensors: HashMap<String, Named> =
        names::tensors(config, false).into_iter().map(|named| (named.name.clone(), named)).collect();
    let bytes = tensors.values().map(|named| form.of(named).num_bytes(&named.shape)).sum();
    let weight = move |name: &str| {
        let named =
            tensors.get(name).ok_or_else(|| Error::model(format!("the model has no tensor \"{name}\"")))?;
        let tensor = random_tensor(name, &named.shape, form.plain(), seed);
        Ok(match form.of(named) {
            Form::Plain(_) => tensor.into(),
            Form::Quantised(scheme) => scheme.quantise(&tensor),
        })
    };
    (bytes, weight)
}

/// Numbers around zero (around one for the scales of layer norms), so spread that activations keep their size
/// from layer to layer.
fn random_tensor(name: &str, shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let is_layer_norm = name.contains("layer_norm") || name.contains("vision_tower.post_layernorm");
    let centre = if is_layer_norm && name.ends_with(".weight") { 1.0 } else { 0.0 };
    let deviation = match shape {
        // Scales, biases.
        [_] => 0.02,
        // A linear layer: one over the root of its inputs.
        [_, inputs @ ..] => (inputs.iter().product::<usize>() as f32).powf(-0.5),
        [] => 0.0,
    };
    // A uniform distribution of this half-width has that deviation.
    let half_width = deviation * 3f32.sqrt();
    let key = name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    let number = |i: usize| {
        let unit = (mix(key.wrapping_add(i as u64)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        centre + half_width * unit
    };
    let n = shape.iter().product();
    match dtype {
        DType::F32 => Tensor::from_f32((0..n).into_par_iter().map(number).collect(), shape),
        DType::BF16 => {
            Tensor::from_bf16((0..n).into_par_iter().map(|i| bf16::from_f32(number(i))).collect(), shape)
        }
        DType::F16 => {
            Tensor::from_f16((0..n).into_par_iter().map(|i| f16::from_f32(number(i))).collect(), shape)
        }
        DType::U8 => panic!("random numbers of a model are floats"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_seed_and_the_name() {
        let make = |name, seed| random_tensor(name, &[300, 200], DType::F32, seed);
        let x = make("a.weight", 1);
        assert_eq!(x.as_f32(), make("a.weight", 1).as_f32());
        assert_ne!(x.as_f32(), make("a.weight", 2).as_f32());
        assert_ne!(x.as_f32(), make("b.weight", 1).as_f32());
        let n = x.len() as f32;
        let mean = x.as_f32().iter().sum::<f32>() / n;
        let deviation = (x.as_f32().iter().map(|x| x * x).sum::<f32>() / n).sqrt();
        assert!(mean.abs() < 1e-3 && (deviation * 200f32.sqrt() - 1.0).abs() < 0.01, "{mean} {deviation}");
    }
}
