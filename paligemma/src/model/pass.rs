//! One pass through the model: which intermediates are wanted, and whether the answer still is.

use crate::{Error, Kind, Result};
use paligemma_tensor::Tensor;
use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

/// What goes along with the numbers through the layers.
///
/// Intermediates are kept under big_vision's names (`img/encoder/block00/+sa`, `llm/pre_logits`, …) when taps are on.
#[derive(Debug, Default)]
pub struct Pass<'a> {
    taps: Option<Vec<(String, Tensor)>>,
    wanted: Option<fn(&str) -> bool>,
    cancel: Option<&'a AtomicBool>,
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

    /// Whether intermediates are kept; fused operations are then taken apart.
    pub fn is_tapped(&self) -> bool {
        self.taps.is_some()
    }

    /// The intermediates kept so far, in the order of their computation.
    pub fn taps(self) -> Vec<(String, Tensor)> {
        self.taps.unwrap_or_default()
    }

    /// Keeps `x` under `name` if taps are on.
    pub(crate) fn put(&mut self, name: fmt::Arguments<'_>, x: &Tensor) {
        if let Some(taps) = &mut self.taps {
            let name = name.to_string();
            if self.wanted.is_none_or(|wanted| wanted(&name)) {
                taps.push((name, x.clone()));
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
}
