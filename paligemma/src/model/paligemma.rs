//! PaliGemma: images and a prefix go in, logits of the suffix come out.
//! Reference: big_vision/models/proj/paligemma/paligemma.py; paper section 3.1.
//!
//! ```text
//!   images → SigLIP → projector ─┐
//!                                ├→ [image … image  BOS prefix "\n" | suffix EOS] → Gemma → logits
//!   token ids → embedding · √D ──┘    full attention                | causal
//! ```
//!
//! Legend: B images, T tokens, D Gemma's width, V vocabulary.

use super::{Gemma, KvCache, Linear, Pass, Siglip, Turn, Weights};
use crate::{Error, Result, config::Config};
use paligemma_tensor::{DType, Tensor, concat_rows, log_sum_exp};

/// A loaded model.
#[derive(Debug, Clone)]
pub struct PaliGemma {
    config: Config,
    siglip: Siglip,
    projector: Linear,
    gemma: Gemma,
    sliding_window: bool,
}

impl PaliGemma {
    /// Takes every tensor that `config` asks for.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(config: &Config, w: &mut Weights<'_>) -> Result<Self> {
        Ok(PaliGemma {
            siglip: Siglip::load(&config.vision, w)?,
            projector: Linear::load(
                w,
                "multi_modal_projector.linear",
                (config.text.hidden_size, config.vision.hidden_size),
                true,
            )?,
            gemma: Gemma::load(&config.text, w)?,
            config: config.clone(),
            sliding_window: false,
        })
    }

    /// Turns the config's sliding window on, as transformers has it; big_vision, and we by default, have none.
    /// It matters beyond 4096 tokens only.
    #[must_use]
    pub fn with_sliding_window(mut self, on: bool) -> Self {
        self.sliding_window = on;
        self
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every tensor.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.siglip.weights().chain(self.projector.weights()).chain(self.gemma.weights())
    }

    /// The decoder.
    pub fn gemma(&self) -> &Gemma {
        &self.gemma
    }

    /// Pixel values `[B, 3, S, S]` f32 in [-1, 1] → `[B·T, D]`, the soft tokens as they enter Gemma: unscaled.
    ///
    /// # Errors
    /// Images of another side than the model's; cancellation.
    pub fn encode_images(&self, images_bchw: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let side = self.config.vision.image_size;
        match images_bchw.shape() {
            [_, 3, height, width] if *height == side && *width == side => {}
            other => {
                return Err(Error::input(format!("pixel values have shape {other:?}"))
                    .expected(format!("[images, 3, {side}, {side}]")));
            }
        }
        let x = self.siglip.forward(images_bchw, pass)?;
        let x = self.projector.forward(&x);
        pass.put(format_args!("img/zimg"), &x); // zimg, out_img = self._img_model(image); out["img/zimg"]
        Ok(x)
    }

    /// Token ids → `[ids, D]`, scaled by √D.
    ///
    /// # Errors
    /// An id beyond the table.
    pub fn embed_text(&self, ids: &[u32], pass: &mut Pass<'_>) -> Result<Tensor> {
        let rows = self.config.text.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::input(format!("token id {id} is beyond the embedding table"))
                .expected(format!("ids below {rows}"))
                .hint("the tokenizer belongs to another model"));
        }
        let x = self.gemma.embed(ids);
        pass.put(format_args!("llm/ztxt"), &x); // ztxt = out["llm/ztxt"]
        Ok(x)
    }

    /// The soft tokens of a sequence's images, then its text: x = jnp.concatenate([zimg, ztxt], axis=1).
    pub fn join(image_tokens_td: &Tensor, text_td: &Tensor) -> Tensor {
        concat_rows(&[image_tokens_td, text_td])
    }

    /// A cache for a new sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config.text, self.gemma.cache_dtype())
    }

    /// Reads the rows of `x_td`, turn after turn, → `pre_logits` `[T, D]`.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn forward(&self, x_td: &Tensor, turns: &mut [Turn<'_>], pass: &mut Pass<'_>) -> Result<Tensor> {
        self.gemma.forward(x_td, turns, self.sliding_window, pass)
    }

    /// `pre_logits` `[T, D]` → `[T, V]` with the final soft cap, as transformers returns them.
    pub fn logits(&self, x_td: &Tensor) -> Tensor {
        self.gemma.logits(x_td)
    }

    /// `pre_logits` `[T, D]` → `[T, V]` without the final soft cap: big_vision's `text_logits`.
    pub fn uncapped_logits(&self, x_td: &Tensor) -> Tensor {
        self.gemma.uncapped_logits(x_td)
    }

    /// Bytes of keys and values that a token adds to a cache.
    pub fn cache_bytes_per_token(&self) -> usize {
        let text = &self.config.text;
        let size = if self.gemma.cache_dtype() == DType::BF16 { 2 } else { 4 };
        2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size
    }
}

/// Mean cross-entropy of `targets`, given as (row of `pre_logits`, id); 0 without targets.
///
/// The head is applied to a few rows at a time: logits of a whole sequence are never held.
pub fn mean_loss(model: &PaliGemma, pre_logits_td: &Tensor, targets: &[(usize, u32)]) -> f64 {
    const ROWS: usize = 32;
    let mut sum = 0.0;
    for chunk in targets.chunks(ROWS) {
        let rows: Vec<Tensor> = chunk.iter().map(|&(row, _)| pre_logits_td.rows(row, row + 1)).collect();
        let logits = model.logits(&concat_rows(&rows.iter().collect::<Vec<_>>()));
        let v = logits.shape()[1];
        for (row, &(_, id)) in logits.as_f32().chunks(v).zip(chunk) {
            sum += log_sum_exp(row) - f64::from(row[id as usize]);
        }
    }
    sum / targets.len().max(1) as f64
}
