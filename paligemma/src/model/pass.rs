//! One pass through the model: which intermediates are wanted, whether the answer still is, and what training adds.

use crate::{Error, Kind, Result};
use paligemma_tensor::{KeyedRows, Tape, Tensor, Value};
use std::{
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What goes along with the numbers through the layers.
///
/// Intermediates are kept under big_vision's names (`img/encoder/block00/+sa`, `llm/pre_logits`, …) when taps are on.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    taps: Option<Vec<(String, Tensor)>>,
    wanted: Option<fn(&str) -> bool>,
    cancel: Option<&'a AtomicBool>,
    /// Off in inference.
    pub(crate) tape: Tape,
    /// Whether blocks are computed again on the way back, so that only their inputs are kept.
    recompute: bool,
    dropout: Option<Arc<Dropout>>,
    /// The rows of x at this place, example after example or image after image.
    rows: Arc<[KeyedRows]>,
    /// The next place of dropout.
    site: u64,
}

/// What is dropped in training. A mask follows from its example's key and its place alone.
#[derive(Debug, Clone, Default)]
pub struct Dropout {
    /// The rate on what Gemma's attention and MLP add (big_vision's `dropout`).
    pub residual: f32,
    /// A key an example, in the order of the sequences.
    pub examples: Vec<u64>,
    /// A key an image, in their order.
    pub images: Vec<u64>,
}

impl<'a> Pass<'a> {
    /// Nothing kept, never cancelled.
    pub fn plain() -> Self {
        Pass::default()
    }

    /// Keeps every named intermediate.
    pub fn tapped() -> Self {
        Pass { taps: Some(Vec::new()), ..Pass::default() }
    }

    /// Keeps the intermediates whose names are `wanted`.
    pub fn tapping(wanted: fn(&str) -> bool) -> Self {
        Pass { wanted: Some(wanted), ..Pass::tapped() }
    }

    /// Stops with [`Kind::Cancelled`] between two layers once `cancel` is true.
    pub fn cancelled_by(cancel: &'a AtomicBool) -> Self {
        Pass { cancel: Some(cancel), ..Pass::default() }
    }

    /// Keeps what the gradients of the wanted weights need; with `recompute` only what goes into each block.
    pub fn recorded(recompute: bool, dropout: Option<Dropout>, cancel: Option<&'a AtomicBool>) -> Self {
        Pass { tape: Tape::on(), recompute, dropout: dropout.map(Arc::new), cancel, ..Pass::default() }
    }

    /// Whether intermediates are kept; fused operations are then taken apart.
    pub fn is_tapped(&self) -> bool {
        self.taps.is_some()
    }

    /// The intermediates kept so far, in the order of their computation.
    pub fn taps(self) -> Vec<(String, Tensor)> {
        self.taps.unwrap_or_default()
    }

    /// The way back.
    pub fn into_tape(self) -> Tape {
        self.tape
    }

    /// Keeps `x` under `name` if taps are on.
    pub(crate) fn put(&mut self, name: fmt::Arguments<'_>, x: &Value) {
        if let Some(taps) = &mut self.taps {
            let name = name.to_string();
            if self.wanted.is_none_or(|wanted| wanted(&name)) {
                taps.push((name, x.tensor().clone()));
            }
        }
    }

    /// An error if the caller no longer wants the answer.
    pub(crate) fn go_on(&self) -> Result<()> {
        match self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::new(Kind::Cancelled, "cancelled")),
            _ => Ok(()),
        }
    }

    /// The rows from here on are those of images.
    pub(crate) fn at_images(&mut self, rows_each: usize) {
        if let Some(dropout) = &self.dropout {
            self.rows = dropout.images.iter().map(|&key| KeyedRows { len: rows_each, key }).collect();
        }
    }

    /// The rows from here on are those of sequences of these lengths.
    pub(crate) fn at_examples(&mut self, lengths: impl Iterator<Item = usize>) {
        if let Some(dropout) = &self.dropout {
            self.rows =
                dropout.examples.iter().zip(lengths).map(|(&key, len)| KeyedRows { len, key }).collect();
        }
    }

    /// Dropout's places of a block have numbers of their own: they are the same when it is computed again.
    pub(crate) fn at_block(&mut self, block: usize) {
        const PLACES: u64 = 64;
        self.site = block as u64 * PLACES;
    }

    /// Whether residuals are dropped.
    pub(crate) fn drops_residuals(&self) -> bool {
        self.dropout.as_ref().is_some_and(|dropout| dropout.residual > 0.0)
    }

    /// Dropout on what a block adds.
    pub(crate) fn drop_residual(&mut self, x: &Value) -> Value {
        let rate = self.dropout.as_ref().map_or(0.0, |dropout| dropout.residual);
        self.drop(x, rate)
    }

    /// Dropout, in training.
    pub(crate) fn drop(&mut self, x: &Value, rate: f32) -> Value {
        self.site += 1;
        match self.dropout {
            Some(_) => self.tape.dropout(x, rate, &self.rows, self.site),
            None => x.clone(),
        }
    }

    /// A block: f(x), computed again on the way back if the pass was begun so.
    pub(crate) fn block(
        &mut self,
        x: &Value,
        f: impl Fn(&mut Pass<'_>, &Value) -> Value + Send + 'static,
    ) -> Value {
        if !self.recompute {
            return f(self, x);
        }
        let (dropout, rows) = (self.dropout.clone(), Arc::clone(&self.rows));
        self.tape.recompute(x, move |tape, x| {
            let mut pass = Pass {
                tape: mem::take(tape),
                dropout: dropout.clone(),
                rows: Arc::clone(&rows),
                ..Pass::default()
            };
            let y = f(&mut pass, x);
            *tape = pass.tape;
            y
        })
    }
}
