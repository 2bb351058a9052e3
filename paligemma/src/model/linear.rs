//! A linear layer as checkpoints hold it, and the taking of weights by name.

use crate::{Error, Result, model::Pass};
use paligemma_tensor::{Epilogue, Tensor, add, linear};
use std::fmt;

/// Where a model takes its weights from: canonical name → tensor in Hugging Face's layout.
pub struct Weights<'a>(&'a mut dyn FnMut(&str) -> Result<Tensor>);

impl<'a> Weights<'a> {
    /// Weights from a function.
    pub fn new(get: &'a mut dyn FnMut(&str) -> Result<Tensor>) -> Self {
        Weights(get)
    }

    /// The tensor `name`, which must have `shape`.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = (self.0)(name)?;
        if tensor.shape() != shape {
            return Err(Error::model(format!("tensor \"{name}\" has shape {:?}", tensor.shape()))
                .expected(format!("{shape:?}, as the configuration says")));
        }
        Ok(tensor)
    }
}

impl fmt::Debug for Weights<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weights")
    }
}

/// y = x·Wᵀ + b.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
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
        let weight = w.take(&format!("{name}.weight"), &[out, inputs])?;
        let bias = if bias { Some(w.take(&format!("{name}.bias"), &[out])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Its tensors.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.weight).chain(&self.bias)
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
