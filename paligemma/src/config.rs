//! The shape of a model. Filled from config.json or from the tensors of an npz (`checkpoint`).

/// The SigLIP image encoder (big_vision/models/vit.py; transformers SiglipVisionConfig).
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// D, the width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// N, heads; the head size is hidden_size / N.
    pub num_attention_heads: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
}

impl VisionConfig {
    /// Tokens that one image becomes: (image_size / patch_size)².
    pub fn num_tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// Gemma 1 or Gemma 2 (big_vision/models/ppp/gemma.py; transformers GemmaConfig, Gemma2Config).
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Gemma 1 or 2.
    pub generation: GemmaGeneration,
    /// V, rows of the embedding table.
    pub vocab_size: usize,
    /// D, the width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// N, query heads.
    pub num_attention_heads: usize,
    /// K, key and value heads; N is a multiple of K.
    pub num_key_value_heads: usize,
    /// H, the size of a head.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary wavelengths.
    pub rope_theta: f32,
    /// Queries are multiplied by this value to the power of -1/2.
    pub query_pre_attn_scalar: f32,
    /// Soft cap on attention logits.
    pub attn_logit_softcapping: Option<f32>,
    /// Soft cap on the final logits.
    pub final_logit_softcapping: Option<f32>,
    /// The window of the sliding layers; big_vision ignores it, and so do we unless asked.
    pub sliding_window: Option<usize>,
    /// For each block, whether it is a sliding one.
    pub sliding_layers: Vec<bool>,
}

/// Which Gemma.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmaGeneration {
    /// PaliGemma (2024): pre-norms only.
    Gemma1,
    /// PaliGemma 2: pre- and post-norms.
    Gemma2,
}

/// A whole PaliGemma.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The image encoder.
    pub vision: VisionConfig,
    /// The language model.
    pub text: TextConfig,
    /// The id of `<image>`: the first row of the table that is never chosen.
    pub image_token_index: usize,
}
