//! A linear layer as checkpoints hold it, with the adapter that LoRA puts beside it, and the taking of weights by name.

use crate::{Error, Result, model::Pass};
use paligemma_tensor::{DType, LinearParts, Parameter, Value, Weight};
use std::fmt;

/// Which adapter stands beside a linear layer, by the layer's name.
type Adapters<'a> = &'a dyn Fn(&str) -> Option<Lora>;

/// Where a model takes its weights from: canonical name → tensor in Hugging Face's layout, plain or quantised.
pub struct Weights<'a> {
    get: &'a mut dyn FnMut(&str) -> Result<Parameter>,
    adapter: Option<Adapters<'a>>,
}

impl<'a> Weights<'a> {
    /// Weights from a function.
    pub fn new(get: &'a mut dyn FnMut(&str) -> Result<Parameter>) -> Self {
        Weights { get, adapter: None }
    }

    /// The adapters that stand beside linear layers, by the layer's name without `.weight`.
    #[must_use]
    pub fn with_adapters(mut self, adapter: Adapters<'a>) -> Self {
        self.adapter = Some(adapter);
        self
    }

    /// The plain tensor `name`, which must have `shape`.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Parameter> {
        let parameter = (self.get)(name)?;
        match parameter.weight() {
            Weight::Plain(tensor) if tensor.shape() == shape => Ok(parameter),
            Weight::Plain(tensor) => Err(wrong_shape(name, tensor.shape(), shape)),
            weight => Err(Error::model(format!("tensor \"{name}\" is {}", weight.type_name()))
                .expected("f32, bf16 or f16: only matrices are quantised")),
        }
    }

    /// The matrix `name`, which must have `shape`.
    pub(crate) fn take_matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Parameter> {
        let parameter = (self.get)(name)?;
        match parameter.weight() {
            Weight::Plain(tensor) if tensor.shape() != shape => {
                Err(wrong_shape(name, tensor.shape(), &shape))
            }
            quantised if quantised.shape() != shape => Err(wrong_shape(name, &quantised.shape(), &shape)),
            _ => Ok(parameter),
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

/// y = x·Wᵀ + b, and scale · dropout(x)·Aᵀ·Bᵀ where there is an adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Parameter,
    /// `[out]`
    pub bias: Option<Parameter>,
    /// What LoRA adds.
    pub lora: Option<Lora>,
}

/// A low-rank adapter (arXiv 2106.09685).
#[derive(Debug, Clone)]
pub struct Lora {
    /// A, `[rank, in]`
    pub a: Parameter,
    /// B, `[out, rank]`
    pub b: Parameter,
    /// alpha / rank
    pub scale: f32,
    /// The rate of dropout on x, in training.
    pub dropout: f32,
}

impl Lora {
    fn forward(&self, x_tk: &Value, pass: &mut Pass<'_>) -> Value {
        let x = pass.drop(x_tk, self.dropout);
        let x_tr = pass.tape.linear(&x, &self.a, LinearParts::default());
        let x_tr = pass.tape.scale(&x_tr, self.scale);
        pass.tape.linear(&x_tr, &self.b, LinearParts::default())
    }
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
        let lora = w.adapter.and_then(|adapter| adapter(name));
        Ok(Linear { weight, bias, lora })
    }

    /// What it is made of.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let lora = self.lora.iter().flat_map(|lora| [&lora.a, &lora.b]);
        [&self.weight].into_iter().chain(&self.bias).chain(lora)
    }

    /// The same, to be changed.
    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let lora = self.lora.iter_mut().flat_map(|lora| [&mut lora.a, &mut lora.b]);
        [&mut self.weight].into_iter().chain(&mut self.bias).chain(lora)
    }

    /// `x_tk` → `[t, out]`
    pub(crate) fn forward(&self, x_tk: &Value, pass: &mut Pass<'_>) -> Value {
        self.sum(x_tk, None, pass)
    }

    /// GELU(x·Wᵀ + b)
    pub(crate) fn forward_gelu(&self, x_tk: &Value, pass: &mut Pass<'_>) -> Value {
        if self.lora.is_some() {
            let y = self.forward(x_tk, pass);
            return pass.tape.gelu(&y);
        }
        let parts = LinearParts { bias: self.bias.as_ref(), gelu: true, residual: None };
        pass.tape.linear(x_tk, &self.weight, parts)
    }

    /// x·Wᵀ + b + residual
    pub(crate) fn sum(&self, x_tk: &Value, residual: Option<&Value>, pass: &mut Pass<'_>) -> Value {
        let delta = self.lora.as_ref().map(|lora| lora.forward(x_tk, pass));
        let sum = match (&delta, residual) {
            (Some(delta), Some(residual)) => Some(pass.tape.add(delta, residual)),
            (Some(one), None) => Some(one.clone()),
            (None, residual) => residual.cloned(),
        };
        let parts = LinearParts { bias: self.bias.as_ref(), gelu: false, residual: sum.as_ref() };
        pass.tape.linear(x_tk, &self.weight, parts)
    }

    /// residual + x·Wᵀ + b; with taps on, the summand is kept as `{block}/{name}` and the sum as `{block}/+{name}`.
    pub(crate) fn add_to(
        &self,
        residual: &Value,
        x_tk: &Value,
        block: fmt::Arguments<'_>,
        name: &str,
        pass: &mut Pass<'_>,
    ) -> Value {
        if !pass.is_tapped() {
            return self.sum(x_tk, Some(residual), pass);
        }
        let y = self.forward(x_tk, pass);
        pass.put(format_args!("{block}/{name}"), &y);
        let x = pass.tape.add(residual, &y);
        pass.put(format_args!("{block}/+{name}"), &x);
        x
    }
}
