//! SigLIP: an image becomes (side/patch)² tokens; no pooling, every token is kept.
//! Reference: big_vision/models/vit.py (`_Model` with pool_type="none"); paper section 3.1.
//!
//! Legend: B images, T tokens of an image, D width, N heads, H = D/N.

use super::{
    Pass,
    linear::{Linear, Weights, attention_dtype},
};
use crate::{Result, config::VisionConfig};
use paligemma_tensor::{AttentionRule, Mask, Parameter, Span, Tensor, Value, patches};
use std::sync::Arc;

/// The image encoder.
#[derive(Debug, Clone)]
pub struct Siglip {
    config: Arc<VisionConfig>,
    /// `[D, 3·p·p]`: the patch convolution as a linear layer.
    embedding: Linear,
    /// `[T, D]`
    pos_embedding: Parameter,
    blocks: Vec<Arc<Block>>,
    encoder_norm: Norm,
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
struct Norm {
    weight: Parameter,
    bias: Parameter,
}

impl Norm {
    fn load(w: &mut Weights<'_>, name: &str, d: usize) -> Result<Self> {
        Ok(Norm {
            weight: w.take(&format!("{name}.weight"), &[d])?,
            bias: w.take(&format!("{name}.bias"), &[d])?,
        })
    }

    fn forward(&self, x_td: &Value, eps: f32, pass: &mut Pass<'_>) -> Value {
        pass.tape.layer_norm(x_td, &self.weight, &self.bias, eps)
    }
}

impl Siglip {
    /// Takes `vision_tower.*`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(config: &VisionConfig, w: &mut Weights<'_>) -> Result<Self> {
        let (d, p, mlp) = (config.hidden_size, config.patch_size, config.intermediate_size);
        let patch = w.take("vision_tower.embeddings.patch_embedding.weight", &[d, 3, p, p])?;
        let embedding = Linear {
            weight: patch.reshape(&[d, 3 * p * p]),
            bias: Some(w.take("vision_tower.embeddings.patch_embedding.bias", &[d])?),
            lora: None,
        };
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let name = |part: &str| format!("vision_tower.encoder.layers.{i}.{part}");
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
        Ok(Siglip {
            blocks: blocks.collect::<Result<_>>()?,
            embedding,
            pos_embedding: w
                .take("vision_tower.embeddings.position_embedding.weight", &[config.num_tokens(), d])?,
            encoder_norm: Norm::load(w, "vision_tower.post_layernorm", d)?,
            config: Arc::new(config.clone()),
        })
    }

    /// What it is made of.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let Siglip { embedding, pos_embedding, blocks, encoder_norm, .. } = self;
        let blocks = blocks.iter().flat_map(|block| block.parameters());
        let norm = [&encoder_norm.weight, &encoder_norm.bias];
        embedding.parameters().chain([pos_embedding]).chain(blocks).chain(norm)
    }

    /// The weight whose gradient is wanted as `id`.
    pub(crate) fn wanted_mut(&mut self, id: usize) -> Option<&mut Parameter> {
        let Siglip { embedding, pos_embedding, blocks, encoder_norm, .. } = self;
        let block = blocks.iter_mut().find(|block| block.parameters().any(|p| p.id() == Some(id)));
        // A tape may still hold the other blocks: those are left alone.
        let of_block = block.into_iter().flat_map(|block| Arc::make_mut(block).parameters_mut());
        let norm = [&mut encoder_norm.weight, &mut encoder_norm.bias];
        let mut all = embedding.parameters_mut().chain([pos_embedding]).chain(of_block).chain(norm);
        all.find(|parameter| parameter.id() == Some(id))
    }

    /// Pixel values in [-1, 1], `[B, 3, S, S]` f32 → `[B·T, D]`, image after image, row after row of the patch grid.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`].
    pub fn forward(&self, images_bchw: &Tensor, pass: &mut Pass<'_>) -> Result<Value> {
        let num_images = images_bchw.shape()[0];
        pass.at_images(self.config.num_tokens());
        let x = self.embedding.forward(&patches(images_bchw, self.config.patch_size).into(), pass);
        pass.put(format_args!("img/stem"), &x); // x = out["stem"] = nn.Conv(...)(image)
        let mut x = pass.tape.add_to_each(&x, &self.pos_embedding);
        pass.put(format_args!("img/with_posemb"), &x); // x = out["with_posemb"] = x + get_posemb(...)
        for (i, block) in self.blocks.iter().enumerate() {
            pass.go_on()?;
            let (block, config) = (Arc::clone(block), Arc::clone(&self.config));
            x = pass.block(&x, move |pass, x| {
                pass.at_block(i);
                block.forward(x, &config, num_images, format_args!("img/encoder/block{i:02}"), pass)
            });
        }
        let x = self.encoder_norm.forward(&x, self.config.layer_norm_eps, pass); // nn.LayerNorm(name="encoder_norm")(x)
        pass.put(format_args!("img/encoded"), &x);
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
        config: &VisionConfig,
        num_images: usize,
        name: std::fmt::Arguments<'_>,
        pass: &mut Pass<'_>,
    ) -> Value {
        let eps = config.layer_norm_eps;
        let y = self.norm0.forward(x_td, eps, pass); // y = nn.LayerNorm()(x)
        let y = self.attend(&y, config, num_images, pass);
        let x = self.out.add_to(x_td, &y, name, "sa", pass); // x = out["+sa"] = x + y
        let y = self.norm1.forward(&x, eps, pass); // y = nn.LayerNorm()(x)
        let y = self.dense0.forward_gelu(&y, pass); // x = nn.gelu(nn.Dense(self.mlp_dim)(x))
        self.dense1.add_to(&x, &y, name, "mlp", pass) // x = out["+mlp"] = x + y
    }

    /// nn.MultiHeadDotProductAttention(num_heads)(y, y) up to its output projection; images do not see each other.
    fn attend(&self, y_td: &Value, config: &VisionConfig, num_images: usize, pass: &mut Pass<'_>) -> Value {
        let (rows, d, n) = (y_td.tensor().shape()[0], config.hidden_size, config.num_attention_heads);
        let (h, t) = (d / n, rows / num_images);
        let mut heads = |linear: &Linear| linear.forward(y_td, pass).reshape(&[rows, n, h]);
        let (q_tnh, k_tnh, v_tnh) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let images = (0..num_images).map(|b| Span { rows: b * t..(b + 1) * t, mask: Mask::FULL });
        let images: Vec<Span> = images.collect();
        let dtype = attention_dtype(self.key.weight.weight());
        let rule = AttentionRule { scale: (h as f32).powf(-0.5), softcap: None, dtype };
        pass.tape.attention(&q_tnh, &k_tnh, &v_tnh, &images, rule)
    }
}
