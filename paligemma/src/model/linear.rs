//! A linear layer as checkpoints hold it, and the taking of weights by name.

use crate::{Error, Result, model::Pass};
use paligemma_tensor::{DType, Epilogue, Tensor, Weight, add, linear};
use std::fmt;

/// Where a model takes its weights from: canonical name → tensor in Hugging Face's layout, plain or quantised.
pub struct Weights<'a>(&'a mut dyn FnMut(&str) -> Result<Weight>);

impl<'a> Weights<'a> {
    /// Weights from a function.
    pub fn new(get: &'a mut dyn FnMut(&str) -> Result<Weight>) -> Self {
        Weights(get)
    }

    /// The plain tensor `name`, which must have `shape`.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match (self.0)(name)? {
            Weight::Plain(tensor) if tensor.shape() == shape => Ok(tensor),
            Weight::Plain(tensor) => Err(wrong_shape(name, tensor.shape(), shape)),
            weight => Err(Error::model(format!("tensor \"{name}\" is {}", weight.type_name()))
                .expected("f32, bf16 or f16: only matrices are quantised")),
        }
    }

    /// The matrix `name`, which must have `shape`.
    pub(crate) fn take_matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let weight = (self.0)(name)?;
        match &weight {
            Weight::Plain(tensor) if tensor.shape() != shape => {
                Err(wrong_shape(name, tensor.shape(), &shape))
            }
            quantised if quantised.shape() != shape => Err(wrong_shape(name, &quantised.shape(), &shape)),
            _ => Ok(weight),
        }
    }
}

fn wrong_shape(name: &str, shape: &[usize], wanted: &[usize]) -> Error {
    Error::model(format!("tensor \"{name}\" has shape {shape:?}"))
        .expected(format!("{wanted:?}, as the configuration says"))
}

impl fmt::Debug for Weights<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weights")
    }
}

/// What keys and values made by these weights are kept as, and so what attention multiplies: bf16 beside bf16 and quantised
/// weights, f32 beside f32 and f16.
pub(crate) fn attention_dtype(weight: &Weight) -> DType {
    match weight {
        Weight::Plain(w) if w.dtype() != DType::BF16 => DType::F32,
        Weight::Plain(_) | Weight::Int8 { .. } | Weight::Int4 { .. } => DType::BF16,
    }
}

/// y = x·Wᵀ + b.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `{name}.weight` and, with `bias`, `{name}.bias`.
    pub(crate) fn load(
        w: &mut Weights<'_>,
        name: &str,
        (out, inputs): (usize, usize),
        bias: bool,
    ) -> Result<Self> {
        let weight = w.take_matrix(&format!("{name}.weight"), [out, inputs])?;
        let bias = if bias { Some(w.take(&format!("{name}.bias"), &[out])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Its tensors.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.parts().into_iter().chain(&self.bias)
    }

    /// `x_tk` → `[t, out]`
    pub fn forward(&self, x_tk: &Tensor) -> Tensor {
        linear(x_tk, &self.weight, Epilogue { bias: self.bias.as_ref(), ..Epilogue::default() })
    }

    /// GELU(x·Wᵀ + b)
    pub(crate) fn forward_gelu(&self, x_tk: &Tensor) -> Tensor {
        linear(x_tk, &self.weight, Epilogue { bias: self.bias.as_ref(), gelu: true, residual: None })
    }

    /// residual + x·Wᵀ + b; with taps on, the summand is kept as `{block}/{name}` and the sum as `{block}/+{name}`.
    pub(crate) fn add_to(
        &self,
        residual: &Tensor,
        x_tk: &Tensor,
        block: fmt::Arguments<'_>,
        name: &str,
        pass: &mut Pass<'_>,
    ) -> Tensor {
        if !pass.is_tapped() {
            let bias = self.bias.as_ref();
            return linear(x_tk, &self.weight, Epilogue { bias, gelu: false, residual: Some(residual) });
        }
        let y = self.forward(x_tk);
        pass.put(format_args!("{block}/{name}"), &y);
        let x = add(residual, &y);
        pass.put(format_args!("{block}/+{name}"), &x);
        x
    }
}
