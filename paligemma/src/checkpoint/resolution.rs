//! A model for pictures of another size, as Stage 2 begins: the grid of position embeddings is zoomed, all else stays
//! (big_vision models/vit.py `resample_posemb`, scipy.ndimage.zoom of order 1).

use super::{
    convert::{Summary, companions},
    open::{Checkpoint, Format},
    quantised::{Form, dequantise},
    write::write_folder,
};
use crate::{Error, Kind, Result};
use paligemma_tensor::{DType, Tensor, Weight};
use serde_json::{Value, json};
use std::{ops::ControlFlow, path::Path};

/// Our name of the position embeddings.
const POSITIONS: &str = "vision_tower.embeddings.position_embedding.weight";

/// Writes a folder with the model of `input` for pictures of `image_size` × `image_size`. `progress(done, total)` is told in
/// bytes, and may break off: then nothing is left.
///
/// # Errors
/// `Kind::Usage`: a size that is no multiple of the patch's, a quantised model without a `dtype`, an npz as `out`; writing; `Kind::Cancelled`.
pub fn with_image_size(
    input: &Checkpoint,
    out: &Path,
    image_size: usize,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Summary> {
    let patch = input.config().vision.patch_size;
    if image_size == 0 || !image_size.is_multiple_of(patch) {
        return Err(Error::usage(format!("pictures of {image_size} pixels have no whole patches"))
            .expected(format!("a multiple of {patch}")));
    }
    if out.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz")) {
        return Err(Error::usage("another image size is written as a folder").expected("a folder as OUT"));
    }
    let dtype = match (dtype, input.scheme(), &input.forms()[..]) {
        (Some(dtype), ..) => dtype,
        (None, None, [(Form::Plain(stored), ..), ..]) => *stored,
        (None, ..) => {
            return Err(Error::usage(
                "the model is quantised, and position embeddings are zoomed as plain numbers",
            )
            .expected("--dtype f32, bf16 or f16"));
        }
    };
    let mut config = input.config().clone();
    config.vision.image_size = image_size;
    // Before anything is multiplied by it.
    config.check().map_err(|e| e.of_kind(Kind::Usage))?;
    let tokens = config.vision.num_tokens();
    let mut files = companions(input)?;
    for (name, bytes) in &mut files {
        if matches!(name.as_str(), "preprocessor_config.json" | "processor_config.json") {
            *bytes = resized(bytes, image_size, tokens).map_err(|e| e.at(name.clone()))?;
        }
    }
    let num_bytes = config.num_parameters() * dtype.size() as u64;
    let (mut num_tensors, mut done) = (0, 0);
    write_folder(&config, out, dtype, &files, &mut |name, shape| {
        let mut tensor = match input.weight(name)? {
            Weight::Plain(tensor) => tensor,
            quantised => dequantise(&quantised, dtype),
        };
        if name == POSITIONS {
            tensor = zoomed(&tensor, shape[0].isqrt());
        }
        num_tensors += 1;
        done += shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        match progress(done, num_bytes) {
            ControlFlow::Continue(()) => Ok(tensor),
            ControlFlow::Break(()) => Err(Error::new(Kind::Cancelled, "cancelled")),
        }
    })?;
    Ok(Summary {
        path: out.to_path_buf(),
        format: Format::Safetensors,
        num_tensors,
        scheme: None,
        num_bytes,
        dropped_rows: 0,
        files: files.into_iter().map(|(name, _)| out.join(name)).collect(),
    })
}

/// A processor's settings for another size.
fn resized(bytes: &[u8], image_size: usize, tokens: usize) -> Result<Vec<u8>> {
    let mut json: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::model("the processor's settings are no JSON").because(error))?;
    for section in ["", "/image_processor"] {
        let Some(keys) = json.pointer_mut(section).and_then(Value::as_object_mut) else { continue };
        if keys.contains_key("size") {
            keys.insert("size".into(), json!({ "height": image_size, "width": image_size }));
        }
        if keys.contains_key("image_seq_length") {
            keys.insert("image_seq_length".into(), tokens.into());
        }
    }
    Ok(json.to_string().into_bytes())
}

/// `[from·from, D]` → `[to·to, D]`: corners stay corners, between them it is linear.
fn zoomed(positions_td: &Tensor, to: usize) -> Tensor {
    let [tokens, width] = positions_td.shape()[..] else { unreachable!("a table of position embeddings") };
    let from = tokens.isqrt();
    let old = positions_td.to_f32_vec();
    // Where each new row or column lies among the old ones, and how far behind the first of two.
    let places: Vec<(usize, usize, f64)> = (0..to)
        .map(|i| {
            let at = if to > 1 { (i * (from - 1)) as f64 / (to - 1) as f64 } else { 0.0 };
            let first = (at as usize).min(from - 1);
            (first, (first + 1).min(from - 1), at - first as f64)
        })
        .collect();
    let mut new = Vec::with_capacity(to * to * width);
    for &(top, bottom, down) in &places {
        for &(left, right, along) in &places {
            for d in 0..width {
                let value = |row: usize, column: usize| f64::from(old[(row * from + column) * width + d]);
                let upper = value(top, left) * (1.0 - along) + value(top, right) * along;
                let lower = value(bottom, left) * (1.0 - along) + value(bottom, right) * along;
                new.push((upper * (1.0 - down) + lower * down) as f32);
            }
        }
    }
    Tensor::from_f32(new, &[to * to, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy 1.17.1: `zoom(numpy.arange(18.).reshape(3, 3, 2) ** 2, (5/3, 5/3, 1), order=1)`, and (2/3, 2/3, 1).
    #[test]
    fn positions_are_zoomed_as_scipy_zooms() {
        let old: Vec<f32> = (0..18).map(|i| (i * i) as f32).collect();
        let old = Tensor::from_f32(old, &[9, 2]);
        let check = |to: usize, want: &[f32]| assert_eq!(zoomed(&old, to).as_f32(), want, "{to}");
        check(3, old.as_f32());
        check(
            5,
            &[
                0.0, 1.0, 2.0, 5.0, 4.0, 9.0, 10.0, 17.0, 16.0, 25.0, 18.0, 25.0, 26.0, 35.0, 34.0, 45.0,
                46.0, 59.0, 58.0, 73.0, 36.0, 49.0, 50.0, 65.0, 64.0, 81.0, 82.0, 101.0, 100.0, 121.0, 90.0,
                109.0, 110.0, 131.0, 130.0, 153.0, 154.0, 179.0, 178.0, 205.0, 144.0, 169.0, 170.0, 197.0,
                196.0, 225.0, 226.0, 257.0, 256.0, 289.0,
            ],
        );
        check(2, &[0.0, 1.0, 16.0, 25.0, 144.0, 169.0, 256.0, 289.0]);
    }
}
