//! SigLIP: an image becomes (side/patch)² tokens; no pooling, every token is kept.
//! Reference: big_vision/models/vit.py (`_Model` with pool_type="none"); paper section 3.1.
//!
//! Legend: B images, T tokens of an image, D width, N heads, H = D/N.

use super::{
    Pass,
    linear::{Linear, Weights, attention_dtype},
};
use crate::{Result, config::VisionConfig};
use paligemma_tensor::{KeyValues, Mask, Segment, Tensor, add, attention, concat_rows, layer_norm, patches};

/// The image encoder.
#[derive(Debug, Clone)]
pub struct Siglip {
    config: VisionConfig,
    /// `[D, 3·p·p]`: the patch convolution as a linear layer.
    embedding: Linear,
    /// `[T, D]`
    pos_embedding: Tensor,
    blocks: Vec<Block>,
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
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn load(w: &mut Weights<'_>, name: &str, d: usize) -> Result<Self> {
        Ok(Norm {
            weight: w.take(&format!("{name}.weight"), &[d])?,
            bias: w.take(&format!("{name}.bias"), &[d])?,
        })
    }

    fn weights(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    fn forward(&self, x_td: &Tensor, eps: f32) -> Tensor {
        layer_norm(x_td, &self.weight, &self.bias, eps)
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
            weight: patch.reshape(&[d, 3 * p * p]).into(),
            bias: Some(w.take("vision_tower.embeddings.patch_embedding.bias", &[d])?),
        };
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let name = |part: &str| format!("vision_tower.encoder.layers.{i}.{part}");
            Ok(Block {
                norm0: Norm::load(w, &name("layer_norm1"), d)?,
                query: Linear::load(w, &name("self_attn.q_proj"), (d, d), true)?,
                key: Linear::load(w, &name("self_attn.k_proj"), (d, d), true)?,
                value: Linear::load(w, &name("self_attn.v_proj"), (d, d), true)?,
                out: Linear::load(w, &name("self_attn.out_proj"), (d, d), true)?,
                norm1: Norm::load(w, &name("layer_norm2"), d)?,
                dense0: Linear::load(w, &name("mlp.fc1"), (mlp, d), true)?,
                dense1: Linear::load(w, &name("mlp.fc2"), (d, mlp), true)?,
            })
        });
        Ok(Siglip {
            blocks: blocks.collect::<Result<_>>()?,
            embedding,
            pos_embedding: w
                .take("vision_tower.embeddings.position_embedding.weight", &[config.num_tokens(), d])?,
            encoder_norm: Norm::load(w, "vision_tower.post_layernorm", d)?,
            config: config.clone(),
        })
    }

    /// Every tensor.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let Block { norm0, query, key, value, out, norm1, dense0, dense1 } = block;
            let linear = [query, key, value, out, dense0, dense1].into_iter().flat_map(Linear::weights);
            linear.chain(norm0.weights()).chain(norm1.weights())
        });
        self.embedding.weights().chain([&self.pos_embedding]).chain(blocks).chain(self.encoder_norm.weights())
    }

    /// Pixel values in [-1, 1], `[B, 3, S, S]` f32 → `[B·T, D]`, image after image, row after row of the patch grid.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`].
    pub fn forward(&self, images_bchw: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let num_images = images_bchw.shape()[0];
        let x = self.embedding.forward(&patches(images_bchw, self.config.patch_size));
        pass.put(format_args!("img/stem"), &x); // x = out["stem"] = nn.Conv(...)(image)
        let positions = self.pos_embedding.cast(paligemma_tensor::DType::F32);
        let positions = concat_rows(&vec![&positions; num_images]);
        let mut x = add(&x, &positions);
        pass.put(format_args!("img/with_posemb"), &x); // x = out["with_posemb"] = x + get_posemb(...)
        for (i, block) in self.blocks.iter().enumerate() {
            pass.go_on()?;
            x = block.forward(&x, &self.config, num_images, format_args!("img/encoder/block{i:02}"), pass);
        }
        let x = self.encoder_norm.forward(&x, self.config.layer_norm_eps); // nn.LayerNorm(name="encoder_norm")(x)
        pass.put(format_args!("img/encoded"), &x);
        Ok(x)
    }
}

impl Block {
    /// `Encoder1DBlock`, `x_td` `[B·T, D]` → the same.
    fn forward(
        &self,
        x_td: &Tensor,
        config: &VisionConfig,
        num_images: usize,
        name: std::fmt::Arguments<'_>,
        pass: &mut Pass<'_>,
    ) -> Tensor {
        let eps = config.layer_norm_eps;
        let y = self.norm0.forward(x_td, eps); // y = nn.LayerNorm()(x)
        let y = self.attend(&y, config, num_images);
        let x = self.out.add_to(x_td, &y, name, "sa", pass); // x = out["+sa"] = x + y
        let y = self.norm1.forward(&x, eps); // y = nn.LayerNorm()(x)
        let y = self.dense0.forward_gelu(&y); // x = nn.gelu(nn.Dense(self.mlp_dim)(x))
        self.dense1.add_to(&x, &y, name, "mlp", pass) // x = out["+mlp"] = x + y
    }

    /// nn.MultiHeadDotProductAttention(num_heads)(y, y) up to its output projection; images do not see each other.
    fn attend(&self, y_td: &Tensor, config: &VisionConfig, num_images: usize) -> Tensor {
        let (rows, d, n) = (y_td.shape()[0], config.hidden_size, config.num_attention_heads);
        let h = d / n;
        let q_tnh = self.query.forward(y_td).reshape(&[rows, n, h]);
        let (k, v) = (self.key.forward(y_td), self.value.forward(y_td));
        let t = rows / num_images;
        let key_values = |b: usize| {
            let mut key_values = KeyValues::new(n, h, attention_dtype(&self.key.weight));
            key_values.append(&k.rows(b * t, b * t + t), &v.rows(b * t, b * t + t));
            key_values
        };
        let images: Vec<KeyValues> = (0..num_images).map(key_values).collect();
        let segment = |(b, key_values)| Segment {
            queries: b * t..(b + 1) * t,
            first_position: 0,
            key_values,
            mask: Mask::FULL,
        };
        let segments: Vec<Segment<'_>> = images.iter().enumerate().map(segment).collect();
        attention(&q_tnh, &segments, (h as f32).powf(-0.5), None)
    }
}
