//! Quantised checkpoints: the two schemes, which matrices each takes, and how a quantised matrix stands in a file.
//!
//! A quantised matrix `NAME.weight` is two tensors of an ordinary safetensors file, whose numbers
//! [`Weight`] explains:
//!
//! | | `NAME.weight` | `NAME.weight_scale` |
//! |---|---|---|
//! | int8 | U8 `[n, k, 1]` | F32 `[n]` |
//! | int4 | U8 `[n, k/2]` | BF16 `[n, k/32]` |
//!
//! The last axis of int8 is the one byte of a number. Without it the shape would be that of plain weights, and
//! transformers, which only warns of a `quant_method` that it does not know, would take the bytes for weights; so it
//! refuses the shape. The file's metadata and config.json both name the scheme.

use super::names::Named;
use crate::{Error, Result};
use paligemma_tensor::{DType, INT4_GROUP, Tensor, Weight, bf16, f16};
use serde_json::{Value, json};
use std::fmt;

/// The key of the scheme in a safetensors file's metadata.
pub(crate) const METADATA: &str = "paligemma_quantisation";
/// What the name of a matrix gets for its scales.
pub(crate) const SCALE: &str = "_scale";
/// About this many numbers are quantised, or made plain again, at a time.
const BLOCK: usize = 1 << 22;

/// How the matrices of a checkpoint are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Every matrix in bytes with a scale for each row.
    Int8,
    /// The decoder's layers in half bytes with a scale for each 32 inputs; the image encoder, the projector, the
    /// embedding, which is the head too, and matrices whose inputs are no multiple of 32 in bytes as [`Scheme::Int8`].
    Int4,
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain(DType),
    /// As steps and their scales.
    Quantised(Scheme),
}

impl From<DType> for Form {
    fn from(dtype: DType) -> Self {
        Form::Plain(dtype)
    }
}

impl From<Scheme> for Form {
    fn from(scheme: Scheme) -> Self {
        Form::Quantised(scheme)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scheme {
    /// `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Int8 => "int8",
            Scheme::Int4 => "int4",
        }
    }

    /// The scheme of a config.json's `quantization_config`.
    ///
    /// # Errors
    /// `Kind::Model`, naming the key, if it is no scheme of ours.
    pub(crate) fn from_json(quantization: &Value) -> Result<Scheme> {
        let wrong = |key: &str, expected: &str| {
            let found = quantization
                .get(key)
                .map_or("absent".to_owned(), |v| v.to_string().chars().take(80).collect());
            Error::model(format!("quantization_config.{key} is {found}"))
                .expected(expected)
                .hint("quantised files of other programs are not supported; convert the plain weights with --dtype int8")
        };
        let scheme = match quantization.get("quant_method").and_then(Value::as_str) {
            Some("paligemma_int8") => Scheme::Int8,
            Some("paligemma_int4") => Scheme::Int4,
            _ => return Err(wrong("quant_method", "\"paligemma_int8\" or \"paligemma_int4\"")),
        };
        if scheme == Scheme::Int4 && quantization.get("group_size") != Some(&json!(INT4_GROUP)) {
            return Err(wrong("group_size", &INT4_GROUP.to_string()));
        }
        Ok(scheme)
    }

    /// What stands under `quantization_config` in config.json.
    pub(crate) fn to_json(self) -> Value {
        match self {
            Scheme::Int8 => json!({ "quant_method": "paligemma_int8", "bits": 8 }),
            Scheme::Int4 => json!({ "quant_method": "paligemma_int4", "bits": 4, "group_size": INT4_GROUP }),
        }
    }

    /// The form of a tensor in a checkpoint of this scheme; `plain` is the type of what is not quantised.
    pub(crate) fn form_of(self, named: &Named, plain: DType) -> Form {
        match (self, &named.shape[..]) {
            _ if !is_quantisable(named) => Form::Plain(plain),
            (Scheme::Int4, [_, k])
                if named.name.starts_with("language_model.layers.") && k.is_multiple_of(INT4_GROUP) =>
            {
                Form::Quantised(Scheme::Int4)
            }
            _ => Form::Quantised(Scheme::Int8),
        }
    }

    /// The shape of the bytes of a matrix `[n, k]`; `None` if this scheme cannot take it.
    pub(crate) fn values_shape(self, n: usize, k: usize) -> Option<Vec<usize>> {
        match self {
            Scheme::Int8 => Some(vec![n, k, 1]),
            Scheme::Int4 => k.is_multiple_of(INT4_GROUP).then(|| vec![n, k / 2]),
        }
    }

    /// Type and shape of the scales of a matrix `[n, k]`.
    pub(crate) fn scale(self, n: usize, k: usize) -> (DType, Vec<usize>) {
        match self {
            Scheme::Int8 => (DType::F32, vec![n]),
            Scheme::Int4 => (DType::BF16, vec![n, k / INT4_GROUP]),
        }
    }

    /// A weight from its parts, as they stand in the file.
    pub(crate) fn weight(self, values: &Tensor, scale: Tensor) -> Weight {
        match self {
            Scheme::Int8 => Weight::int8(values.reshape(&values.shape()[..2]), scale),
            Scheme::Int4 => Weight::int4(values.clone(), scale),
        }
    }

    /// Plain numbers `[n, k]` in steps.
    pub(crate) fn quantise(self, w_nk: &Tensor) -> Weight {
        match self {
            Scheme::Int8 => Weight::quantise_int8(w_nk),
            Scheme::Int4 => Weight::quantise_int4(w_nk),
        }
    }
}

/// Whether a scheme may take this tensor: matrices of products and the embedding. The position embedding is added, and
/// the patch embedding is a small convolution.
pub(crate) fn is_quantisable(named: &Named) -> bool {
    named.shape.len() == 2 && named.name != "vision_tower.embeddings.position_embedding.weight"
}

impl Form {
    /// `f32`, `bf16`, `f16`, `int8` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Plain(dtype) => dtype.name(),
            Form::Quantised(scheme) => scheme.name(),
        }
    }

    /// The type of what is not quantised.
    pub(crate) fn plain(self) -> DType {
        match self {
            Form::Plain(dtype) => dtype,
            Form::Quantised(Scheme::Int8 | Scheme::Int4) => DType::BF16,
        }
    }

    /// The form of a tensor in a new checkpoint of this form.
    pub(crate) fn of(self, named: &Named) -> Form {
        match self {
            Form::Plain(_) => self,
            Form::Quantised(scheme) => scheme.form_of(named, self.plain()),
        }
    }

    /// Bytes of a tensor of `shape`, scales included.
    pub(crate) fn num_bytes(self, shape: &[usize]) -> u64 {
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let bytes = match (self, shape) {
            (Form::Quantised(scheme), &[n, k]) => {
                let (dtype, scale) = scheme.scale(n, k);
                scheme.values_shape(n, k).map_or(0, |values| elements(&values))
                    + elements(&scale) * dtype.size()
            }
            (Form::Plain(dtype), shape) => elements(shape) * dtype.size(),
            (Form::Quantised(_), shape) => elements(shape),
        };
        bytes as u64
    }
}

/// Rows of a matrix in blocks: first and end of each.
pub(crate) fn row_blocks(n: usize, k: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = (BLOCK / k.max(1)).max(1);
    (0..n).step_by(rows).map(move |from| (from, n.min(from + rows)))
}

/// A weight as plain numbers of `dtype`; shares them if nothing changes.
pub fn dequantise(weight: &Weight, dtype: DType) -> Tensor {
    let [n, k] = match weight {
        Weight::Plain(tensor) => return tensor.cast(dtype),
        quantised => quantised.shape(),
    };
    let mut wide = Vec::new();
    let (mut bf, mut half) = (Vec::<bf16>::new(), Vec::<f16>::new());
    for (from, to) in row_blocks(n, k) {
        let block = weight.rows(from, to).to_f32().cast(dtype);
        match dtype {
            DType::F32 => wide.extend_from_slice(block.as_f32()),
            DType::BF16 => bf.extend_from_slice(block.as_bf16()),
            DType::F16 => half.extend_from_slice(block.as_f16()),
            DType::U8 => panic!("plain weights of bytes"),
        }
    }
    match dtype {
        DType::F32 | DType::U8 => Tensor::from_f32(wide, &[n, k]),
        DType::BF16 => Tensor::from_bf16(bf, &[n, k]),
        DType::F16 => Tensor::from_f16(half, &[n, k]),
    }
}
