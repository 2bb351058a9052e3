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

use super::{Gemma, KvCache, Linear, Pass, Sequence, Siglip, Turn, Weights};
use crate::{Error, Result, config::Config};
use paligemma_tensor::{DType, LossRule, Parameter, Target, Tensor, Value};
use std::ops::Range;

/// The next rows of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// So many soft tokens.
    Image(usize),
    /// So many tokens of text.
    Text(usize),
}

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
        self.parameters().flat_map(|parameter| parameter.weight().parts())
    }

    /// Every weight, adapters among them.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.siglip.parameters().chain(self.projector.parameters()).chain(self.gemma.parameters())
    }

    /// The weight whose gradient is wanted as `id`, to be changed.
    pub fn wanted_mut(&mut self, id: usize) -> Option<&mut Tensor> {
        let PaliGemma { siglip, projector, gemma, .. } = self;
        siglip
            .wanted_mut(id)
            .or_else(|| projector.parameters_mut().find(|parameter| parameter.id() == Some(id)))
            .or_else(|| gemma.wanted_mut(id))
            .and_then(Parameter::wanted_mut)
    }

    /// The decoder.
    pub fn gemma(&self) -> &Gemma {
        &self.gemma
    }

    /// Pixel values `[B, 3, S, S]` f32 in [-1, 1] → `[B·T, D]`, the soft tokens as they enter Gemma: unscaled.
    ///
    /// # Errors
    /// Images of another side than the model's; cancellation.
    pub fn encode_images(&self, images_bchw: &Tensor, pass: &mut Pass<'_>) -> Result<Value> {
        self.check_images(images_bchw)?;
        let x = self.siglip.forward(images_bchw, pass)?;
        let x = self.projector.forward(&x, pass);
        pass.put(format_args!("img/zimg"), &x); // zimg, out_img = self._img_model(image); out["img/zimg"]
        Ok(x)
    }

    /// An error where pixel values are not what the model takes.
    pub(super) fn check_images(&self, images_bchw: &Tensor) -> Result<()> {
        let side = self.config.vision.image_size;
        match images_bchw.shape() {
            [_, 3, height, width] if *height == side && *width == side => Ok(()),
            other => Err(Error::input(format!("pixel values have shape {other:?}"))
                .expected(format!("[images, 3, {side}, {side}]"))),
        }
    }

    /// Token ids → `[ids, D]`, scaled by √D.
    ///
    /// # Errors
    /// An id beyond the table.
    pub fn embed_text(&self, ids: &[u32], pass: &mut Pass<'_>) -> Result<Value> {
        let rows = self.config.text.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::input(format!("token id {id} is beyond the embedding table"))
                .expected(format!("ids below {rows}"))
                .hint("the tokenizer belongs to another model"));
        }
        let x = self.gemma.embed(ids, pass);
        pass.put(format_args!("llm/ztxt"), &x); // ztxt = out["llm/ztxt"]
        Ok(x)
    }

    /// The soft tokens of a sequence's images, then its text: x = jnp.concatenate([zimg, ztxt], axis=1).
    pub fn join(image_tokens_td: &Value, text_td: &Value, pass: &mut Pass<'_>) -> Value {
        let rows = |x: &Value| x.tensor().shape()[0];
        let parts = [Part::Image(rows(image_tokens_td)), Part::Text(rows(text_td))];
        PaliGemma::join_parts(image_tokens_td, text_td, &parts, pass)
    }

    /// Rows of soft tokens and of text in the order that `parts` say; each part takes the next rows of its kind.
    pub fn join_parts(images_td: &Value, text_td: &Value, parts: &[Part], pass: &mut Pass<'_>) -> Value {
        let (mut image, mut text) = (0, 0);
        let rows: Vec<_> = parts
            .iter()
            .map(|part| match *part {
                Part::Image(rows) => {
                    image += rows;
                    (images_td, image - rows..image)
                }
                Part::Text(rows) => {
                    text += rows;
                    (text_td, text - rows..text)
                }
            })
            .collect();
        pass.tape.concat_rows(&rows)
    }

    /// A cache for a new sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config.text, self.gemma.cache_dtype())
    }

    /// Reads the rows of `x_td`, turn after turn, → `pre_logits` `[T, D]`.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn forward(&self, x_td: &Value, turns: &mut [Turn<'_>], pass: &mut Pass<'_>) -> Result<Value> {
        self.gemma.forward(x_td, turns, self.sliding_window, pass)
    }

    /// The same for whole sequences, without caches; what a recorded pass goes through. With `wanted`, a range of rows of each
    /// sequence, only these come out, one after the other.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn forward_whole(
        &self,
        x_td: &Value,
        sequences: &[Sequence],
        wanted: Option<&[Range<usize>]>,
        pass: &mut Pass<'_>,
    ) -> Result<Value> {
        self.gemma.forward_whole(x_td, sequences, wanted, self.sliding_window, pass)
    }

    /// The loss of predicting `targets` from rows of `pre_logits`, as a value and as f64.
    pub fn loss(
        &self,
        pre_logits_td: &Value,
        targets: &[Target],
        rule: &LossRule,
        pass: &mut Pass<'_>,
    ) -> (Value, f64) {
        self.gemma.loss(pre_logits_td, targets, rule, pass)
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

/// Mean cross-entropy of `targets`, given as (row of `pre_logits`, id), with the final soft cap; 0 without targets.
///
/// The head is applied to a few rows at a time: logits of a whole sequence are never held.
pub fn mean_loss(model: &PaliGemma, pre_logits_td: &Tensor, targets: &[(usize, u32)]) -> f64 {
    let ones: Vec<Target> = targets.iter().map(|&(row, id)| Target { row, id, weight: 1.0 }).collect();
    let rule = LossRule { softcap: model.config.text.final_logit_softcapping, ..LossRule::default() };
    let (_, sum) = model.loss(&pre_logits_td.clone().into(), &ones, &rule, &mut Pass::plain());
    sum / targets.len().max(1) as f64
}
