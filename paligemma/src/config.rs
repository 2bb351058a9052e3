//! The shape of a model. Filled from config.json or from the tensors of an npz (`checkpoint`).

use crate::{Error, Result};

/// Limits on a stranger's numbers; every published model lies far below, and every product of
/// dimensions within them fits in 64 bits.
pub(crate) mod limits {
    pub(crate) const LAYERS: usize = 200;
    pub(crate) const DIMENSION: usize = 65_536;
    pub(crate) const HEADS: usize = 1024;
    pub(crate) const ROWS: usize = 1 << 20;
    pub(crate) const IMAGE_SIDE: usize = 16_384;
    pub(crate) const PATCH_SIDE: usize = 1024;
    pub(crate) const IMAGE_TOKENS: usize = 65_536;
}

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

impl Config {
    /// The shape of a published model by its short name: `3b-224`, `3b-448`, `3b-896` (PaliGemma),
    /// `2-3b-224` … `2-28b-896` (PaliGemma 2); `nano-112` and `nano-224`, the models within this program. `tiny` and `2-tiny`
    /// are models of the same build that answer in no time, for tests and first steps. Tables have 64 rows from `<image>` on,
    /// as Hugging Face's have.
    pub fn published(name: &str) -> Option<Config> {
        let (size, side) = match name {
            "tiny" => ("tiny", 224),
            "2-tiny" => ("2-tiny", 224),
            _ => {
                let (size, side) = name.rsplit_once('-')?;
                let sides: &[usize] = if size == "nano" { &[112, 224] } else { &[224, 448, 896] };
                (size, *sides.iter().find(|s| s.to_string() == side)?)
            }
        };
        // Width, MLP, layers, query heads, key heads, head size (big_vision/models/ppp/gemma.py get_config).
        let (generation, [width, mlp, layers, heads, key_heads, head]) = match size {
            "3b" => (GemmaGeneration::Gemma1, [2048, 16_384, 18, 8, 1, 256]),
            "2-3b" => (GemmaGeneration::Gemma2, [2304, 9216, 26, 8, 4, 256]),
            "2-10b" => (GemmaGeneration::Gemma2, [3584, 14_336, 42, 16, 8, 256]),
            "2-28b" => (GemmaGeneration::Gemma2, [4608, 36_864, 46, 32, 16, 128]),
            "nano" => (GemmaGeneration::Gemma1, [192, 768, 4, 4, 1, 64]),
            "tiny" => (GemmaGeneration::Gemma1, [64, 128, 2, 4, 1, 16]),
            "2-tiny" => (GemmaGeneration::Gemma2, [64, 128, 2, 4, 2, 16]),
            _ => return None,
        };
        // Width, MLP, layers, heads.
        let (vision, image_token_index) = match size {
            "nano" => ([192, 768, 6, 3], 3008),
            "tiny" | "2-tiny" => ([64, 128, 2, 4], 1984),
            _ => ([1152, 4304, 27, 16], 257_152),
        };
        let vision = VisionConfig {
            image_size: side,
            patch_size: 14,
            hidden_size: vision[0],
            intermediate_size: vision[1],
            num_hidden_layers: vision[2],
            num_attention_heads: vision[3],
            layer_norm_eps: 1e-6,
        };
        let text = TextConfig::usual(
            generation,
            [image_token_index + 64, width, mlp, layers, heads, key_heads, head],
        );
        Some(Config { vision, text, image_token_index })
    }

    /// The names that [`Config::published`] knows, smallest model first.
    pub fn published_names() -> Vec<String> {
        let sizes = ["3b", "2-3b", "2-10b", "2-28b"];
        let with_side = |size: &&str| ["224", "448", "896"].map(|side| format!("{size}-{side}"));
        let small = ["tiny", "2-tiny", "nano-112", "nano-224"].map(String::from);
        small.into_iter().chain(sizes.iter().flat_map(with_side)).collect()
    }

    /// Whether the numbers make a model.
    ///
    /// # Errors
    /// Names the key of config.json whose value is out of bounds or does not go with another.
    pub fn check(&self) -> Result<()> {
        let (v, t) = (&self.vision, &self.text);
        let bounded = [
            ("vision_config.image_size", v.image_size, limits::IMAGE_SIDE),
            ("vision_config.patch_size", v.patch_size, limits::PATCH_SIDE),
            ("vision_config.hidden_size", v.hidden_size, limits::DIMENSION),
            ("vision_config.intermediate_size", v.intermediate_size, limits::DIMENSION),
            ("vision_config.num_hidden_layers", v.num_hidden_layers, limits::LAYERS),
            ("vision_config.num_attention_heads", v.num_attention_heads, limits::HEADS),
            ("text_config.vocab_size", t.vocab_size, limits::ROWS),
            ("text_config.hidden_size", t.hidden_size, limits::DIMENSION),
            ("text_config.intermediate_size", t.intermediate_size, limits::DIMENSION),
            ("text_config.num_hidden_layers", t.num_hidden_layers, limits::LAYERS),
            ("text_config.num_attention_heads", t.num_attention_heads, limits::HEADS),
            ("text_config.num_key_value_heads", t.num_key_value_heads, limits::HEADS),
            ("text_config.head_dim", t.head_dim, limits::DIMENSION),
        ];
        for (key, value, most) in bounded {
            if !(1..=most).contains(&value) {
                return Err(Error::model(format!("{key} is {value}"))
                    .expected(format!("a whole number from 1 to {most}")));
            }
        }
        let divides = [
            ("vision_config.image_size", v.image_size, "vision_config.patch_size", v.patch_size),
            (
                "vision_config.hidden_size",
                v.hidden_size,
                "vision_config.num_attention_heads",
                v.num_attention_heads,
            ),
            (
                "text_config.num_attention_heads",
                t.num_attention_heads,
                "text_config.num_key_value_heads",
                t.num_key_value_heads,
            ),
            ("text_config.head_dim", t.head_dim, "2, for the rotary halves", 2),
        ];
        for (key, value, divisor_key, divisor) in divides {
            if !value.is_multiple_of(divisor) {
                return Err(Error::model(format!("{key} is {value}, which {divisor} does not divide"))
                    .expected(format!("a multiple of {divisor_key}")));
            }
        }
        if v.num_tokens() > limits::IMAGE_TOKENS {
            return Err(Error::model(format!(
                "vision_config.image_size {} with vision_config.patch_size {} makes {} tokens",
                v.image_size,
                v.patch_size,
                v.num_tokens()
            ))
            .expected(format!("at most {} tokens an image", limits::IMAGE_TOKENS)));
        }
        if t.num_attention_heads * t.head_dim > 4 * limits::DIMENSION {
            return Err(Error::model(format!(
                "text_config.num_attention_heads {} of text_config.head_dim {} are too wide",
                t.num_attention_heads, t.head_dim
            ))
            .expected(format!("at most {} in all", 4 * limits::DIMENSION)));
        }
        let positive = [
            ("vision_config.layer_norm_eps", Some(v.layer_norm_eps)),
            ("text_config.rms_norm_eps", Some(t.rms_norm_eps)),
            ("text_config.rope_theta", Some(t.rope_theta)),
            ("text_config.query_pre_attn_scalar", Some(t.query_pre_attn_scalar)),
            ("text_config.attn_logit_softcapping", t.attn_logit_softcapping),
            ("text_config.final_logit_softcapping", t.final_logit_softcapping),
        ];
        for (key, value) in positive {
            if value.is_some_and(|x| !(x.is_finite() && x > 0.0)) {
                return Err(Error::model(format!("{key} is {}", value.unwrap_or_default()))
                    .expected("a number above 0 that f32 can hold"));
            }
        }
        if t.sliding_window == Some(0) {
            return Err(Error::model("text_config.sliding_window is 0").expected("at least 1 token, or null"));
        }
        if t.sliding_layers.len() != t.num_hidden_layers {
            return Err(Error::model(format!(
                "text_config.layer_types has {} entries and text_config.num_hidden_layers is {}",
                t.sliding_layers.len(),
                t.num_hidden_layers
            )));
        }
        if self.image_token_index > limits::ROWS {
            return Err(Error::model(format!("image_token_index is {}", self.image_token_index))
                .expected(format!("a whole number from 0 to {}", limits::ROWS)));
        }
        Ok(())
    }
}

impl TextConfig {
    /// The Gemma of these sizes with everything that sizes do not tell as published: big_vision's constants,
    /// and of Gemma 2 the window that its config.json carries. Sizes: rows, width, MLP, layers, query heads,
    /// key heads, head size.
    pub(crate) fn usual(generation: GemmaGeneration, sizes: [usize; 7]) -> TextConfig {
        let [vocab_size, hidden_size, intermediate_size, layers, heads, key_heads, head_dim] = sizes;
        let is_gemma2 = generation == GemmaGeneration::Gemma2;
        // Only the 27B scales queries by width / heads (gemma.py "rsqrt_emb_per_head").
        let is_27b = is_gemma2 && (hidden_size, heads, head_dim) == (4608, 32, 128);
        TextConfig {
            generation,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_heads,
            head_dim,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            query_pre_attn_scalar: if is_27b { 144.0 } else { head_dim as f32 },
            attn_logit_softcapping: is_gemma2.then_some(50.0),
            final_logit_softcapping: is_gemma2.then_some(30.0),
            sliding_window: is_gemma2.then_some(4096),
            sliding_layers: (0..layers).map(|i| is_gemma2 && i % 2 == 0).collect(),
        }
    }
}
