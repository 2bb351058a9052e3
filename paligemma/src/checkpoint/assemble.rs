//! The start of Stage 1: an image encoder and a language model joined (paper section 3.2; big_vision
//! models/proj/paligemma/paligemma.py, models/ppp/gemma.py).
//!
//! The projector is zero, so that the language model at first reads as if there were no picture. The table of tokens gets rows
//! for `<loc0000>` to `<seg127>`, drawn from N(0, 0.02²), which after a thousand steps are better than rows that begin as the
//! mean of the others (section 5.3). Position embeddings stay.

use super::{
    convert::new_companions,
    parts::{LanguagePart, Parts, VisionPart},
    write::write_folder,
};
use crate::{
    Error, Kind, Result,
    config::Config,
    text::{NUM_LOC, NUM_SEG, Tokenizer, with_loc_and_seg},
};
use paligemma_tensor::{DType, Tensor};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::{fs, ops::ControlFlow, path::Path};

/// Hugging Face's tables end at a multiple of it.
const ROWS: usize = 64;
/// Deviation of the new rows.
const DEVIATION: f64 = 0.02;

/// Writes a folder with the model that the two parts make, and the file `tokenizer` with the new tokens. `progress(done, total)` is told
/// in tensors, and may break off: then nothing is left.
///
/// # Errors
/// Parts or a tokenizer that do not go together; a folder that holds something else; a disk without room; `Kind::Cancelled`.
pub fn assemble(
    vision: &VisionPart,
    language: &LanguagePart,
    tokenizer: &Path,
    folder: &Path,
    dtype: DType,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Config> {
    let known = language.config.vocab_size;
    let read = Tokenizer::from_file(tokenizer)?;
    let (loc, seg) = (read.locations()?, read.codes()?);
    let (loc0, end) = (loc.start as usize, seg.end as usize);
    if loc0 > known || seg.start != loc.end || end - loc0 != NUM_LOC + NUM_SEG {
        return Err(Error::model(format!(
            "the tokenizer has <loc0000> to <seg127> at {loc0} to {}",
            end - 1
        ))
        .at(tokenizer.display().to_string())
        .expected(format!(
            "one after the other, the first at {known} or before, where the model's table ends"
        )));
    }
    let image_token_index = read.image().map_or(end, |id| id as usize);
    let mut text = language.config.clone();
    text.vocab_size = (image_token_index + 1).max(known).next_multiple_of(ROWS);
    let config = Config { vision: vision.config.clone(), text, image_token_index };
    config.check()?;

    let bytes = fs::read(tokenizer).map_err(|e| Error::io(tokenizer, e))?;
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let tokens = if is_json { with_loc_and_seg(&bytes)? } else { bytes };
    let files = new_companions(&config, if is_json { "tokenizer.json" } else { "tokenizer.model" }, tokens);

    let parts = Parts::new(vision, language);
    let total = super::names::tensors(&config, false).len() as u64;
    let mut done = 0;
    write_folder(&config, folder, dtype, &files, &mut |name, shape| {
        done += 1;
        if progress(done, total).is_break() {
            return Err(Error::new(Kind::Cancelled, "cancelled"));
        }
        match parts.tensor(name)? {
            None => Ok(Tensor::zeros(shape)),
            Some(table) if name == "language_model.embed_tokens.weight" => {
                Ok(with_new_rows(&table, shape, seed))
            }
            Some(tensor) => Ok(tensor),
        }
    })?;
    Ok(config)
}

/// The table with random rows up to `shape`.
fn with_new_rows(table: &Tensor, shape: &[usize], seed: u64) -> Tensor {
    let mut rows = table.to_f32_vec();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let len = shape.iter().product();
    while rows.len() < len {
        // Box and Muller.
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        rows.push((DEVIATION * radius * angle.cos()) as f32);
    }
    Tensor::from_f32(rows, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rows_are_normal() {
        let table = Tensor::from_f32(vec![7.0; 6], &[2, 3]);
        let rows = with_new_rows(&table, &[20_002, 3], 1);
        let (old, new) = rows.as_f32().split_at(6);
        assert_eq!(old, [7.0; 6]);
        let n = new.len() as f64;
        let mean = new.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let deviation = (new.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 3e-4 && (deviation - 0.02).abs() < 3e-4, "{mean} {deviation}");
        assert_ne!(new, &with_new_rows(&table, &[20_002, 3], 2).as_f32()[6..]);
    }
}
