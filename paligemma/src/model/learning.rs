//! The loss of a batch of examples and its gradients: one step of learning, but for what the optimiser does.
//!
//! How gradients are asked for:
//!
//! 1. Load the model with [`Parameter::wanted`](paligemma_tensor::Parameter::wanted) for each weight that learns, under an id
//!    of the caller's; every other weight is frozen: no gradient is computed for it, and below the first weight that learns
//!    nothing is kept. [`Weights::with_adapters`] puts a [`Lora`](super::Lora) beside linear layers, by their names.
//! 2. [`PaliGemma::loss_and_gradients`] of the batch hands out each part of each gradient as soon as it is there. A weight that
//!    is used twice (the embedding table, which is also the head) gets its gradient in several parts, which add up.
//! 3. [`PaliGemma::wanted_mut`] is the way to change a weight; [`PaliGemma::learn`] lets weights be changed while the gradients
//!    come, so that none need be kept.
//!
//! Losses and gradients of the parts of a batch add up to those of the batch ([`LossOptions::batch`]), and depend neither on
//! the number of threads nor on recomputation. Reference: big_vision/trainers/proj/paligemma/train.py.

use super::{Dropout, PaliGemma, Part, Pass, Sequence};
use crate::{Error, Result};
use paligemma_tensor::{Contribution, LossRule, Tape, Target, Tensor, Value, concat_rows, mix};
use std::sync::atomic::AtomicBool;

/// One example, as the model learns it.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// Pixel values `[images, 3, S, S]`, f32 in [-1, 1]. Their soft tokens stand first.
    pub images_bchw: Tensor,
    /// BOS, prefix, line break, suffix, EOS; no image tokens.
    pub ids: Vec<u32>,
    /// How many of the ids are prefix: they see each other and have no loss. All later ones have.
    pub prefix_len: usize,
    /// What its dropout is drawn from; see [`dropout_key`].
    pub key: u64,
}

impl Lesson {
    /// The tokens that have a loss. The first token of a sequence without images has none: nothing predicts it.
    pub fn num_targets(&self) -> usize {
        let first = self.prefix_len.max(usize::from(self.images_bchw.shape()[0] == 0));
        self.ids.len().saturating_sub(first)
    }
}

/// How the losses of a batch's tokens become one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mean {
    /// The mean of each example, then of the batch (big_vision).
    #[default]
    Example,
    /// The mean of all tokens (transformers).
    Token,
}

/// What a batch is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Its examples.
    pub examples: usize,
    /// Their tokens with a loss.
    pub targets: usize,
}

impl BatchSize {
    /// The size of these examples.
    pub fn of(lessons: &[Lesson]) -> BatchSize {
        BatchSize { examples: lessons.len(), targets: lessons.iter().map(Lesson::num_targets).sum() }
    }
}

/// What may be chosen about a loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossOptions {
    /// How tokens become one number.
    pub mean: Mean,
    /// The size of the whole batch, where only a part of it is given at a time; `None` where all of it is.
    pub batch: Option<BatchSize>,
    /// ε: a target's probability is 1 - ε, that of every other token ε / (V - 1).
    pub label_smoothing: f32,
    /// Multiplies the square of ln Σ e^logits.
    pub z_loss: f32,
    /// Whether Gemma 2's final soft cap stands before the loss (transformers) or not (big_vision).
    pub final_softcap: bool,
    /// The rate of dropout on what Gemma's attention and MLP add (big_vision's `dropout`), in learning.
    pub dropout: f32,
    /// Whether only what goes into each block is kept, and the block computed again on the way back.
    pub recompute: bool,
}

/// The loss of a batch, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Its mean, as [`LossOptions`] say; parts of a batch add up.
    pub value: f64,
    /// Examples and targets of this part.
    pub size: BatchSize,
}

/// What dropout is drawn from: a pure function of the run's seed, the step and the example's number.
pub fn dropout_key(seed: u64, step: u64, example: u64) -> u64 {
    mix(mix(mix(seed) ^ step) ^ example)
}

impl PaliGemma {
    /// The loss alone, without dropout: what is measured on held-out examples.
    ///
    /// # Errors
    /// As [`PaliGemma::loss_and_gradients`].
    pub fn batch_loss(
        &self,
        batch: &[Lesson],
        options: &LossOptions,
        cancel: Option<&AtomicBool>,
    ) -> Result<Loss> {
        let mut pass = cancel.map_or_else(Pass::plain, Pass::cancelled_by);
        Ok(self.read_lessons(batch, options, &mut pass)?.1)
    }

    /// The loss of a batch. Each part of a wanted gradient is told to `gradients` with the id of its weight; the order of the
    /// parts, and so every sum of them, is always the same.
    ///
    /// # Errors
    /// An example whose pictures, ids or prefix do not fit the model; cancellation, before any gradient is told.
    pub fn loss_and_gradients(
        &self,
        batch: &[Lesson],
        options: &LossOptions,
        cancel: Option<&AtomicBool>,
        gradients: &mut dyn FnMut(usize, Contribution),
    ) -> Result<Loss> {
        let (tape, value, loss) = self.record_lessons(batch, options, cancel)?;
        tape.backward(&value, Tensor::from_f32(vec![1.0], &[1]), gradients);
        Ok(loss)
    }

    /// [`PaliGemma::loss_and_gradients`], with the weight itself beside each part of its gradient: what it holds may be changed
    /// on the spot, for the rest of the way back no longer needs it. The embedding table may not before its last part
    /// (`Contribution::Rows`) has come.
    ///
    /// # Errors
    /// As [`PaliGemma::loss_and_gradients`].
    pub fn learn(
        &mut self,
        batch: &[Lesson],
        options: &LossOptions,
        cancel: Option<&AtomicBool>,
        update: &mut dyn FnMut(usize, &mut Tensor, Contribution),
    ) -> Result<Loss> {
        let (tape, value, loss) = self.record_lessons(batch, options, cancel)?;
        tape.backward(&value, Tensor::from_f32(vec![1.0], &[1]), &mut |id, part| {
            if let Some(weight) = self.wanted_mut(id) {
                update(id, weight, part);
            }
        });
        Ok(loss)
    }

    fn record_lessons(
        &self,
        batch: &[Lesson],
        options: &LossOptions,
        cancel: Option<&AtomicBool>,
    ) -> Result<(Tape, Value, Loss)> {
        let images = batch
            .iter()
            .flat_map(|lesson| (0..lesson.images_bchw.shape()[0]).map(|i| mix(lesson.key ^ i as u64)));
        let dropout = Dropout {
            residual: options.dropout,
            examples: batch.iter().map(|lesson| lesson.key).collect(),
            images: images.collect(),
        };
        let mut pass = Pass::recorded(options.recompute, Some(dropout), cancel);
        let (value, loss) = self.read_lessons(batch, options, &mut pass)?;
        Ok((pass.into_tape(), value, loss))
    }

    /// Forward through everything.
    fn read_lessons(
        &self,
        batch: &[Lesson],
        options: &LossOptions,
        pass: &mut Pass<'_>,
    ) -> Result<(Value, Loss)> {
        for (i, lesson) in batch.iter().enumerate() {
            if lesson.prefix_len > lesson.ids.len() {
                return Err(Error::input(format!("example {i} has a prefix of {} ids", lesson.prefix_len))
                    .expected(format!("at most {}, as it has in all", lesson.ids.len())));
            }
        }
        let tokens = self.config().vision.num_tokens();
        let pictures: Vec<&Tensor> =
            batch.iter().map(|lesson| &lesson.images_bchw).filter(|images| images.shape()[0] > 0).collect();
        let soft_tokens = if pictures.is_empty() {
            Tensor::zeros(&[0, self.config().text.hidden_size]).into()
        } else {
            pictures.iter().try_for_each(|images| self.check_images(images))?;
            self.encode_images(&concat_rows(&pictures), pass)?
        };
        let ids: Vec<u32> = batch.iter().flat_map(|lesson| &lesson.ids).copied().collect();
        let text = self.embed_text(&ids, pass)?;
        let (mut parts, mut sequences, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        // The rows that predict something.
        let mut wanted = Vec::new();
        let size = BatchSize::of(batch);
        let whole = options.batch.unwrap_or(size);
        let mut first = 0;
        for lesson in batch {
            let num_soft = lesson.images_bchw.shape()[0] * tokens;
            parts.extend([Part::Image(num_soft), Part::Text(lesson.ids.len())]);
            let len = num_soft + lesson.ids.len();
            sequences.push(Sequence { len, prefix_len: num_soft + lesson.prefix_len });
            let num_targets = lesson.num_targets();
            let weight = match options.mean {
                Mean::Example => 1.0 / (num_targets.max(1) * whole.examples.max(1)) as f64,
                Mean::Token => 1.0 / whole.targets.max(1) as f64,
            };
            for &id in &lesson.ids[lesson.ids.len() - num_targets..] {
                targets.push(Target { row: targets.len(), id, weight: weight as f32 });
            }
            // The row before a token predicts it.
            let end = first + len.saturating_sub(1);
            wanted.push(end - num_targets..end);
            first += len;
        }
        let x = PaliGemma::join_parts(&soft_tokens, &text, &parts, pass);
        let wanted = (!targets.is_empty()).then_some(&wanted[..]);
        let y = self.forward_whole(&x, &sequences, wanted, pass)?;
        let rule = LossRule {
            softcap: self.config().text.final_logit_softcapping.filter(|_| options.final_softcap),
            label_smoothing: options.label_smoothing,
            z_loss: options.z_loss,
        };
        let (value, loss) = self.loss(&y, &targets, &rule, pass);
        Ok((value, Loss { value: loss, size }))
    }
}
