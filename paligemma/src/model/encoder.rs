//! The transformer of SigLIP's towers: blocks of attention in which every token sees every other, then a layer norm.
//! Reference: big_vision/models/vit.py (`Encoder`, `Encoder1DBlock`).
//!
//! Legend: B sequences (images, texts), T tokens of each, D width, N heads, H = D/N.

use super::{
    Pass,
    linear::{Linear, Weights, attention_dtype},
};
use crate::Result;
use paligemma_tensor::{AttentionRule, Mask, Parameter, Span, Value};
use std::sync::Arc;

/// The sizes of an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EncoderShape {
    /// D
    pub(super) width: usize,
    /// Width of the MLP.
    pub(super) mlp: usize,
    /// Number of blocks.
    pub(super) depth: usize,
    /// N
    pub(super) heads: usize,
    /// Epsilon of the layer norms.
    pub(super) eps: f32,
}

/// Blocks and the norm behind them.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    shape: EncoderShape,
    blocks: Vec<Arc<Block>>,
    norm: Norm,
}

#[derive(Debug, Clone)]
struct Block {
    norm0: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm1: Norm,
    dense0: Linear,
    dense1: Linear,
}

/// Scale and bias of a layer norm, `[D]` each.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) weight: Parameter,
    pub(super) bias: Parameter,
}

impl Norm {
    pub(super) fn load(w: &mut Weights<'_>, name: &str, d: usize) -> Result<Self> {
        Ok(Norm {
            weight: w.take(&format!("{name}.weight"), &[d])?,
            bias: w.take(&format!("{name}.bias"), &[d])?,
        })
    }

    pub(super) fn forward(&self, x_td: &Value, eps: f32, pass: &mut Pass<'_>) -> Value {
        pass.tape.layer_norm(x_td, &self.weight, &self.bias, eps)
    }
}

impl Encoder {
    /// Takes `{name}.encoder.layers.*`, and the norm by its own name.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub(super) fn load(w: &mut Weights<'_>, shape: EncoderShape, name: &str, norm: &str) -> Result<Self> {
        let (d, mlp) = (shape.width, shape.mlp);
        let blocks = (0..shape.depth).map(|i| {
            let name = |part: &str| format!("{name}.encoder.layers.{i}.{part}");
            Ok(Arc::new(Block {
                norm0: Norm::load(w, &name("layer_norm1"), d)?,
                query: Linear::load(w, &name("self_attn.q_proj"), (d, d), true)?,
                key: Linear::load(w, &name("self_attn.k_proj"), (d, d), true)?,
                value: Linear::load(w, &name("self_attn.v_proj"), (d, d), true)?,
                out: Linear::load(w, &name("self_attn.out_proj"), (d, d), true)?,
                norm1: Norm::load(w, &name("layer_norm2"), d)?,
                dense0: Linear::load(w, &name("mlp.fc1"), (mlp, d), true)?,
                dense1: Linear::load(w, &name("mlp.fc2"), (d, mlp), true)?,
            }))
        });
        Ok(Encoder { blocks: blocks.collect::<Result<_>>()?, norm: Norm::load(w, norm, d)?, shape })
    }

    /// What it is made of.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let blocks = self.blocks.iter().flat_map(|block| block.parameters());
        blocks.chain([&self.norm.weight, &self.norm.bias])
    }

    /// The norm, and of the blocks the one with the weight whose gradient is wanted as `id`: a tape may still hold the
    /// others, which are left alone.
    pub(super) fn parameters_around(&mut self, id: usize) -> impl Iterator<Item = &mut Parameter> {
        let block = self.blocks.iter_mut().find(|block| block.parameters().any(|p| p.id() == Some(id)));
        let of_block = block.into_iter().flat_map(|block| Arc::make_mut(block).parameters_mut());
        of_block.chain([&mut self.norm.weight, &mut self.norm.bias])
    }

    /// `x_td` `[B·T, D]`, sequence after sequence → the same shape. Intermediates are named after the tower.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`].
    pub(super) fn forward(
        &self,
        x_td: &Value,
        num_sequences: usize,
        tower: &'static str,
        pass: &mut Pass<'_>,
    ) -> Result<Value> {
        let mut x = x_td.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            pass.go_on()?;
            let (block, shape) = (Arc::clone(block), self.shape);
            x = pass.block(&x, move |pass, x| {
                pass.at_block(i);
                let name = format_args!("{tower}/encoder/block{i:02}");
                block.forward(x, &shape, num_sequences, name, pass)
            });
        }
        let x = self.norm.forward(&x, self.shape.eps, pass); // nn.LayerNorm(name="encoder_norm")(x)
        pass.put(format_args!("{tower}/encoded"), &x);
        Ok(x)
    }
}

impl Block {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let Block { norm0, query, key, value, out, norm1, dense0, dense1 } = self;
        let norms = [norm0, norm1].into_iter().flat_map(|norm| [&norm.weight, &norm.bias]);
        [query, key, value, out, dense0, dense1].into_iter().flat_map(Linear::parameters).chain(norms)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Block { norm0, query, key, value, out, norm1, dense0, dense1 } = self;
        let norms = [norm0, norm1].into_iter().flat_map(|norm| [&mut norm.weight, &mut norm.bias]);
        [query, key, value, out, dense0, dense1].into_iter().flat_map(Linear::parameters_mut).chain(norms)
    }

    /// `Encoder1DBlock`, `x_td` `[B·T, D]` → the same.
    fn forward(
        &self,
        x_td: &Value,
        shape: &EncoderShape,
        num_sequences: usize,
        name: std::fmt::Arguments<'_>,
        pass: &mut Pass<'_>,
    ) -> Value {
        let eps = shape.eps;
        let y = self.norm0.forward(x_td, eps, pass); // y = nn.LayerNorm()(x)
        let y = self.attend(&y, shape, num_sequences, pass);
        let x = self.out.add_to(x_td, &y, name, "sa", pass); // x = out["+sa"] = x + y
        let y = self.norm1.forward(&x, eps, pass); // y = nn.LayerNorm()(x)
        let y = self.dense0.forward_gelu(&y, pass); // x = nn.gelu(nn.Dense(self.mlp_dim)(x))
        self.dense1.add_to(&x, &y, name, "mlp", pass) // x = out["+mlp"] = x + y
    }

    /// nn.MultiHeadDotProductAttention(num_heads)(y, y) up to its output projection; images do not see each other.
    fn attend(&self, y_td: &Value, shape: &EncoderShape, num_sequences: usize, pass: &mut Pass<'_>) -> Value {
        let (rows, d, n) = (y_td.tensor().shape()[0], shape.width, shape.heads);
        let (h, t) = (d / n, rows / num_sequences);
        let mut heads = |linear: &Linear| linear.forward(y_td, pass).reshape(&[rows, n, h]);
        let (q_tnh, k_tnh, v_tnh) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let images = (0..num_sequences).map(|b| Span { rows: b * t..(b + 1) * t, mask: Mask::FULL });
        let images: Vec<Span> = images.collect();
        let dtype = attention_dtype(self.key.weight.weight());
        let rule = AttentionRule { scale: (h as f32).powf(-0.5), softcap: None, dtype };
        pass.tape.attention(&q_tnh, &k_tnh, &v_tnh, &images, rule)
    }
}
