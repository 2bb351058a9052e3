//! SigLIP: an image becomes (side/patch)² tokens; no pooling, every token is kept.
//! Reference: big_vision/models/vit.py (`_Model` with pool_type="none"); paper section 3.1.
//!
//! Legend: B images, T tokens of an image, D width.

use super::{
    Pass,
    encoder::{Encoder, EncoderShape},
    linear::{Linear, Weights},
};
use crate::{Result, config::VisionConfig};
use paligemma_tensor::{Parameter, Tensor, Value, patches};

/// The image encoder.
#[derive(Debug, Clone)]
pub struct Siglip {
    config: VisionConfig,
    /// `[D, 3·p·p]`: the patch convolution as a linear layer.
    embedding: Linear,
    /// `[T, D]`
    pos_embedding: Parameter,
    encoder: Encoder,
}

impl Siglip {
    /// Takes `vision_tower.*`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(config: &VisionConfig, w: &mut Weights<'_>) -> Result<Self> {
        let (d, p) = (config.hidden_size, config.patch_size);
        let patch = w.take("vision_tower.embeddings.patch_embedding.weight", &[d, 3, p, p])?;
        let embedding = Linear {
            weight: patch.reshape(&[d, 3 * p * p]),
            bias: Some(w.take("vision_tower.embeddings.patch_embedding.bias", &[d])?),
            lora: None,
        };
        Ok(Siglip {
            embedding,
            pos_embedding: w
                .take("vision_tower.embeddings.position_embedding.weight", &[config.num_tokens(), d])?,
            encoder: Encoder::load(w, shape(config), "vision_tower", "vision_tower.post_layernorm")?,
            config: config.clone(),
        })
    }

    /// What it is made of.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.embedding.parameters().chain([&self.pos_embedding]).chain(self.encoder.parameters())
    }

    /// The weight whose gradient is wanted as `id`.
    pub(crate) fn wanted_mut(&mut self, id: usize) -> Option<&mut Parameter> {
        let Siglip { embedding, pos_embedding, encoder, .. } = self;
        let mut all = embedding.parameters_mut().chain([pos_embedding]).chain(encoder.parameters_around(id));
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
        let x = pass.tape.add_to_each(&x, &self.pos_embedding);
        pass.put(format_args!("img/with_posemb"), &x); // x = out["with_posemb"] = x + get_posemb(...)
        self.encoder.forward(&x, num_images, "img", pass)
    }
}

/// The sizes of its transformer.
pub(super) fn shape(config: &VisionConfig) -> EncoderShape {
    EncoderShape {
        width: config.hidden_size,
        mlp: config.intermediate_size,
        depth: config.num_hidden_layers,
        heads: config.num_attention_heads,
        eps: config.layer_norm_eps,
    }
}
