//! The keys and values of one sequence, layer by layer, as far as it has been read.

use crate::config::TextConfig;
use paligemma_tensor::{DType, RowBuffer};

/// A sequence's cache. Rows are appended as tokens pass through the decoder; a clone is a fork (beams).
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Keys, already turned by RoPE, and values, both `[S, K·H]`, a pair a layer.
    pub(crate) layers: Vec<(RowBuffer, RowBuffer)>,
}

impl KvCache {
    /// Empty, to hold numbers as `dtype` (f32 or bf16).
    pub fn new(config: &TextConfig, dtype: DType) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let layer = || (RowBuffer::new(width, dtype), RowBuffer::new(width, dtype));
        KvCache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect() }
    }

    /// Tokens read so far: the position of the next one.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, |(keys, _)| keys.len())
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for (keys, values) in &mut self.layers {
            keys.truncate(len);
            values.truncate(len);
        }
    }
}
