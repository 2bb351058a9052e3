//! The keys and values of one sequence, layer by layer, as far as it has been read.

use crate::config::TextConfig;
use paligemma_tensor::{DType, KeyValues};

/// A sequence's cache. Rows are appended as tokens pass through the decoder; a clone is a fork (beams) and shares what was
/// read before.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Keys, already turned by RoPE, and values.
    pub(crate) layers: Vec<KeyValues>,
}

impl KvCache {
    /// Empty, to hold numbers as `dtype` (f32 or bf16).
    pub fn new(config: &TextConfig, dtype: DType) -> Self {
        let layer = || KeyValues::new(config.num_key_value_heads, config.head_dim, dtype);
        KvCache { layers: (0..config.num_hidden_layers).map(|_| layer()).collect() }
    }

    /// Tokens read so far: the position of the next one.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, KeyValues::len)
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// Bytes of what was read so far.
    pub fn num_bytes(&self) -> usize {
        self.layers.iter().map(KeyValues::num_bytes).sum()
    }
}
