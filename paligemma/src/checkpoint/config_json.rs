//! config.json ⇄ [`Config`]. Absent keys take the defaults of transformers 5.23; keys that no part of the
//! model reads are ignored, as files of many versions carry many of them.
//! Source: transformers/models/{paligemma,gemma,gemma2,siglip}/configuration_*.py.

use super::quantised::Scheme;
use crate::{
    Error, Result,
    config::{Config, GemmaGeneration, TextConfig, VisionConfig, limits},
    model::{TextTowerConfig, TwoTowersConfig},
};
use paligemma_tensor::DType;
use serde_json::{Map, Number, Value, json};

/// No published config.json is longer than a few kilobytes.
const LONGEST: usize = 1 << 20;

/// A config.json: the shape of the model, and what concerns only the file beside it.
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile {
    pub(crate) config: Config,
    /// Whether the file may hold SigLIP's pooling head, which PaliGemma never runs.
    pub(crate) has_pooling_head: bool,
    /// Whether the output head is the embedding table.
    pub(crate) is_tied: bool,
    /// How the matrices are quantised, if they are.
    pub(crate) scheme: Option<Scheme>,
    /// All keys as they stand.
    pub(crate) json: Value,
}

impl Config {
    /// Reads the text of a config.json.
    ///
    /// # Errors
    /// `Kind::Model`, naming the key, if a value has the wrong type, is out of bounds, does not go with
    /// another, or asks for something that this program does not do.
    pub fn from_json(text: &[u8]) -> Result<Config> {
        ConfigFile::parse(text).map(|file| file.config)
    }

    /// A config.json that transformers, old and new, and [`Config::from_json`] load. `dtype` is noted as
    /// the type of the weights.
    pub fn to_json(&self, dtype: Option<DType>) -> Value {
        let (v, t) = (&self.vision, &self.text);
        let is_gemma2 = t.generation == GemmaGeneration::Gemma2;
        let mut text = json!({
            "model_type": if is_gemma2 { "gemma2" } else { "gemma" },
            "vocab_size": t.vocab_size,
            "hidden_size": t.hidden_size,
            "intermediate_size": t.intermediate_size,
            "num_hidden_layers": t.num_hidden_layers,
            "num_attention_heads": t.num_attention_heads,
            "num_key_value_heads": t.num_key_value_heads,
            "head_dim": t.head_dim,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": float(t.rms_norm_eps),
            "rope_theta": float(t.rope_theta),
            "rope_parameters": { "rope_theta": float(t.rope_theta), "rope_type": "default" },
            "attention_bias": false,
            "max_position_embeddings": 8192,
            "num_image_tokens": v.num_tokens(),
            "tie_word_embeddings": true,
        });
        let optional = |x: Option<f32>| x.map_or(Value::Null, float);
        if is_gemma2 {
            // transformers takes whole numbers only, and every published one is.
            text["query_pre_attn_scalar"] = match t.query_pre_attn_scalar {
                x if x.fract() == 0.0 => json!(x as u64),
                x => float(x),
            };
            text["attn_logit_softcapping"] = optional(t.attn_logit_softcapping);
            text["final_logit_softcapping"] = optional(t.final_logit_softcapping);
            text["sliding_window"] = json!(t.sliding_window);
            let kind = |&sliding: &bool| if sliding { "sliding_attention" } else { "full_attention" };
            text["layer_types"] = t.sliding_layers.iter().map(kind).collect();
        } else if t.final_logit_softcapping.is_some() {
            text["final_logit_softcapping"] = optional(t.final_logit_softcapping);
        }
        let mut all = json!({
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "model_type": "paligemma",
            "image_token_index": self.image_token_index,
            "vocab_size": t.vocab_size,
            "hidden_size": t.hidden_size,
            "projection_dim": t.hidden_size,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": true,
            "text_config": text,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "image_size": v.image_size,
                "patch_size": v.patch_size,
                "num_channels": 3,
                "hidden_size": v.hidden_size,
                "intermediate_size": v.intermediate_size,
                "num_hidden_layers": v.num_hidden_layers,
                "num_attention_heads": v.num_attention_heads,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": float(v.layer_norm_eps),
                "num_image_tokens": v.num_tokens(),
                "projection_dim": t.hidden_size,
                "vision_use_head": false,
            },
        });
        if let Some(dtype) = dtype {
            all["torch_dtype"] = json!(torch_name(dtype));
        }
        all
    }
}

/// The name of a type in config.json.
pub(crate) fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::U8 => "uint8",
    }
}

/// The shortest decimal that reads back as this f32; through f64 1e-6 would become 9.999999974752427e-7.
fn float(x: f32) -> Value {
    x.to_string().parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

impl ConfigFile {
    /// Reads the text of a config.json; see [`Config::from_json`].
    pub(crate) fn parse(text: &[u8]) -> Result<ConfigFile> {
        if text.len() > LONGEST {
            return Err(Error::model(format!("config.json is {} bytes long", text.len()))
                .expected(format!("at most {LONGEST} bytes")));
        }
        let json: Value = serde_json::from_slice(text)
            .map_err(|e| Error::model(format!("config.json is not JSON: {e}")).because(e))?;
        let Value::Object(top) = &json else {
            return Err(
                Error::model("config.json holds no object").expected("{\"model_type\": \"paligemma\", …}")
            );
        };
        let top = Section { path: "", keys: top };
        top.one_of("model_type", "paligemma", &["paligemma"])?;
        let set = |key| top.keys.get(key).filter(|v| !v.is_null());
        if set("compression_config").is_some() {
            return Err(Error::model("compression_config is set, and compressed files are not supported")
                .hint("use the repository with the bfloat16 or float32 weights"));
        }
        let scheme = set("quantization_config").map(Scheme::from_json).transpose()?;
        let empty = Map::new();
        let (vision, is_vision_absent) = top.section("vision_config", &empty)?;
        let (text, is_text_absent) = top.section("text_config", &empty)?;

        let vision_config = vision_config(&vision, is_vision_absent)?;
        let text_config = text_config(&text, is_text_absent)?;

        if top.int("projection_dim", 2048, 1, limits::DIMENSION)? != text_config.hidden_size {
            return Err(top.wrong(
                "projection_dim",
                format!("{}, as text_config.hidden_size says", text_config.hidden_size),
            ));
        }
        // `image_token_id` is transformers' other name of the same key.
        let image_token_index = top.int("image_token_index", 256_000, 0, limits::ROWS)?;
        let image_token_id = top.int("image_token_id", image_token_index, 0, limits::ROWS)?;
        if top.keys.contains_key("image_token_index") && image_token_index != image_token_id {
            return Err(
                top.wrong("image_token_id", format!("{image_token_index}, as image_token_index says"))
            );
        }
        let config = Config { vision: vision_config, text: text_config, image_token_index: image_token_id };
        config.check()?;
        Ok(ConfigFile {
            config,
            has_pooling_head: vision.flag("vision_use_head", !is_vision_absent)?,
            is_tied: top.flag("tie_word_embeddings", true)?,
            scheme,
            json,
        })
    }
}

/// The image encoder of a SigLIP's config.json, or of its vision tower's alone, or of a PaliGemma's.
pub(super) fn siglip_config(json: &Value) -> Result<VisionConfig> {
    let empty = Map::new();
    let top = Section { path: "", keys: object(json)? };
    match top.one_of("model_type", "", &["siglip", "siglip_vision_model", "paligemma"])? {
        "siglip_vision_model" => vision_config(&top, false),
        model_type => {
            let (vision, is_absent) = top.section("vision_config", &empty)?;
            // SigLIP's own defaults are those of its class.
            vision_config(&vision, is_absent && model_type == "paligemma")
        }
    }
}

/// The language model of a Gemma's config.json, or of a PaliGemma's.
pub(super) fn gemma_config(json: &Value) -> Result<TextConfig> {
    let empty = Map::new();
    let top = Section { path: "", keys: object(json)? };
    match top.one_of("model_type", "", &["gemma", "gemma2", "paligemma"])? {
        "paligemma" => {
            let (text, is_absent) = top.section("text_config", &empty)?;
            text_config(&text, is_absent)
        }
        _ => text_config(&top, false),
    }
}

/// Both towers of a SiglipModel's config.json.
pub(super) fn two_towers_config(json: &Value) -> Result<TwoTowersConfig> {
    let vision = siglip_config(json)?;
    let empty = Map::new();
    let (text, _) = Section { path: "", keys: object(json)? }.section("text_config", &empty)?;
    text.is_tanh_gelu("hidden_act", &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"])?;
    let hidden_size = text.int("hidden_size", 768, 1, limits::DIMENSION)?;
    if text.int("projection_size", hidden_size, 1, limits::DIMENSION)? != vision.hidden_size {
        return Err(text.wrong("projection_size", "the width of the image encoder"));
    }
    let text = TextTowerConfig {
        vocab_size: text.int("vocab_size", 32_000, 1, limits::ROWS)?,
        length: text.int("max_position_embeddings", 64, 1, limits::IMAGE_TOKENS)?,
        hidden_size,
        intermediate_size: text.int("intermediate_size", 3072, 1, limits::DIMENSION)?,
        num_hidden_layers: text.int("num_hidden_layers", 12, 1, limits::LAYERS)?,
        num_attention_heads: text.int("num_attention_heads", 12, 1, limits::HEADS)?,
        layer_norm_eps: text.float("layer_norm_eps", 1e-6)?,
    };
    Ok(TwoTowersConfig { vision, text })
}

fn object(json: &Value) -> Result<&Map<String, Value>> {
    json.as_object().ok_or_else(|| Error::model("config.json holds no object"))
}

/// An absent section takes PaliGemmaConfig's own defaults, an empty one those of its class.
fn vision_config(vision: &Section<'_>, is_absent: bool) -> Result<VisionConfig> {
    vision.one_of("model_type", "siglip_vision_model", &["siglip_vision_model"])?;
    vision.is_tanh_gelu("hidden_act", &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"])?;
    if vision.int("num_channels", 3, 1, limits::DIMENSION)? != 3 {
        return Err(vision.wrong("num_channels", "3, for RGB"));
    }
    let or = |of_paligemma, of_class| if is_absent { of_paligemma } else { of_class };
    Ok(VisionConfig {
        image_size: vision.int("image_size", 224, 1, limits::IMAGE_SIDE)?,
        patch_size: vision.int("patch_size", or(14, 16), 1, limits::PATCH_SIDE)?,
        hidden_size: vision.int("hidden_size", or(1152, 768), 1, limits::DIMENSION)?,
        intermediate_size: vision.int("intermediate_size", or(4096, 3072), 1, limits::DIMENSION)?,
        num_hidden_layers: vision.int("num_hidden_layers", or(27, 12), 1, limits::LAYERS)?,
        num_attention_heads: vision.int("num_attention_heads", or(16, 12), 1, limits::HEADS)?,
        layer_norm_eps: vision.float("layer_norm_eps", 1e-6)?,
    })
}

fn text_config(text: &Section, is_absent: bool) -> Result<TextConfig> {
    let model_type = text.one_of("model_type", "gemma", &["gemma", "gemma2"])?;
    let generation = if model_type == "gemma2" { GemmaGeneration::Gemma2 } else { GemmaGeneration::Gemma1 };
    let is_gemma2 = generation == GemmaGeneration::Gemma2;
    // The three sets of defaults: PaliGemmaConfig's, Gemma2Config's, GemmaConfig's.
    let or = |of_paligemma, of_gemma2, of_gemma1| match (is_absent, is_gemma2) {
        (true, _) => of_paligemma,
        (_, true) => of_gemma2,
        _ => of_gemma1,
    };
    let layers = text.int("num_hidden_layers", or(18, 26, 28), 1, limits::LAYERS)?;
    let head_dim = text.int("head_dim", 256, 1, limits::DIMENSION)?;
    if is_gemma2 {
        text.is_tanh_gelu("hidden_activation", &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"])?;
    } else {
        // Gemma's first files say "gelu" and mean the approximation (GemmaConfig.__post_init__).
        text.is_tanh_gelu("hidden_act", &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"])?;
    }
    if text.flag("attention_bias", false)? {
        return Err(text.wrong("attention_bias", "false; biases in Gemma's attention are not supported"));
    }
    if !text.flag_or_null("use_bidirectional_attention", true)? {
        let expected = "true or null; a PaliGemma whose prefix is causal is not supported";
        return Err(text.wrong("use_bidirectional_attention", expected));
    }
    let softcap = |key, default: f32| {
        if text.keys.get(key).is_some_and(Value::is_null) {
            Ok(None)
        } else {
            text.float(key, default).map(Some)
        }
    };
    let (sliding_window, sliding_layers) =
        if is_gemma2 { (window(text)?, layer_types(text, layers)?) } else { (None, vec![false; layers]) };
    Ok(TextConfig {
        generation,
        vocab_size: text.int("vocab_size", or(257_152, 256_000, 256_000), 1, limits::ROWS)?,
        hidden_size: text.int("hidden_size", or(2048, 2304, 3072), 1, limits::DIMENSION)?,
        intermediate_size: text.int("intermediate_size", or(16_384, 9216, 24_576), 1, limits::DIMENSION)?,
        num_hidden_layers: layers,
        num_attention_heads: text.int("num_attention_heads", or(8, 8, 16), 1, limits::HEADS)?,
        num_key_value_heads: text.int("num_key_value_heads", or(1, 4, 16), 1, limits::HEADS)?,
        head_dim,
        rms_norm_eps: text.float("rms_norm_eps", 1e-6)?,
        rope_theta: rope_theta(text)?,
        query_pre_attn_scalar: if is_gemma2 {
            text.float("query_pre_attn_scalar", 256.0)?
        } else {
            head_dim as f32
        },
        attn_logit_softcapping: if is_gemma2 { softcap("attn_logit_softcapping", 50.0)? } else { None },
        // PaliGemma applies this cap to whatever Gemma it holds, if the key is there.
        final_logit_softcapping: match (is_gemma2, text.keys.contains_key("final_logit_softcapping")) {
            (false, false) => None,
            _ => softcap("final_logit_softcapping", 30.0)?,
        },
        sliding_window,
        sliding_layers,
    })
}

fn window(text: &Section) -> Result<Option<usize>> {
    match text.keys.get("sliding_window") {
        Some(Value::Null) => Ok(None),
        _ => text.int("sliding_window", 4096, 1, 1 << 24).map(Some),
    }
}

fn layer_types(text: &Section, layers: usize) -> Result<Vec<bool>> {
    let expected = format!("{layers} of \"sliding_attention\" and \"full_attention\", one a layer");
    match text.keys.get("layer_types") {
        None | Some(Value::Null) => Ok((0..layers).map(|i| i % 2 == 0).collect()),
        Some(Value::Array(kinds)) if kinds.len() == layers => {
            let is_sliding = |kind: &Value| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(text.wrong("layer_types", &expected)),
            };
            kinds.iter().map(is_sliding).collect()
        }
        _ => Err(text.wrong("layer_types", expected)),
    }
}

/// Base of the rotary wavelengths: `rope_parameters`, of which `rope_scaling` is the old name and goes first,
/// else `rope_theta` beside it.
fn rope_theta(text: &Section) -> Result<f32> {
    let beside = text.float("rope_theta", 10_000.0)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let inner = match text.keys.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(inner)) if inner.is_empty() => continue,
            Some(Value::Object(inner)) => inner,
            Some(_) => return Err(text.wrong(key, "an object or null")),
        };
        let inner = Section { path: &format!("{}{key}.", text.path), keys: inner };
        for name in ["rope_type", "type"] {
            inner.one_of(name, "default", &["default"])?;
        }
        if inner.float("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(inner.wrong("partial_rotary_factor", "1; other factors are not supported"));
        }
        if let Some((layer_type, _)) = inner.keys.iter().find(|(_, value)| value.is_object()) {
            return Err(inner.wrong(layer_type, "one rotary setting for all layers"));
        }
        return inner.float("rope_theta", beside);
    }
    Ok(beside)
}

/// An object of config.json. Every error of its methods names the key with its path.
struct Section<'a> {
    /// `text_config.`, or nothing at the top.
    path: &'a str,
    keys: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The object under `key`, and whether it is absent or null.
    fn section(&self, key: &'static str, empty: &'a Map<String, Value>) -> Result<(Section<'a>, bool)> {
        let path = if key == "text_config" { "text_config." } else { "vision_config." };
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok((Section { path, keys: empty }, true)),
            Some(Value::Object(keys)) => Ok((Section { path, keys }, false)),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let mut found = self.keys.get(key).map_or("absent".to_string(), Value::to_string);
        if found.chars().count() > 80 {
            found = found.chars().take(80).chain(['…']).collect();
        }
        Error::model(format!("{}{key} is {found}", self.path)).expected(expected)
    }

    fn int(&self, key: &str, default: usize, least: usize, most: usize) -> Result<usize> {
        let Some(value) = self.keys.get(key) else { return Ok(default) };
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| self.wrong(key, format!("a whole number from {least} to {most}")))
    }

    fn float(&self, key: &str, default: f32) -> Result<f32> {
        let Some(value) = self.keys.get(key) else { return Ok(default) };
        value
            .as_f64()
            .map(|x| x as f32)
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| self.wrong(key, "a number above 0 that f32 can hold"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.keys.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn flag_or_null(&self, key: &str, default: bool) -> Result<bool> {
        if self.keys.get(key).is_some_and(Value::is_null) { Ok(default) } else { self.flag(key, default) }
    }

    fn one_of(&self, key: &str, default: &'static str, allowed: &[&'static str]) -> Result<&'static str> {
        let Some(value) = self.keys.get(key) else { return Ok(default) };
        let found = allowed.iter().find(|a| value.as_str() == Some(**a));
        found.copied().ok_or_else(|| self.wrong(key, format!("{:?}", allowed.join("\" or \""))))
    }

    /// Every name in `allowed` is the tanh approximation; the exact GELU and others are not supported.
    fn is_tanh_gelu(&self, key: &str, allowed: &[&'static str]) -> Result<()> {
        self.one_of(key, "gelu_pytorch_tanh", allowed).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<Config> {
        Config::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn json_and_back_is_the_same_model() {
        for name in Config::published_names() {
            let config = Config::published(&name).unwrap();
            assert_eq!(parse(config.to_json(Some(DType::BF16))).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn odd_numbers_survive_json() {
        let mut config = Config::published("2-tiny").unwrap();
        config.text.query_pre_attn_scalar = 12.34;
        config.text.attn_logit_softcapping = None;
        config.text.final_logit_softcapping = Some(7.7);
        config.text.sliding_window = None;
        config.text.sliding_layers = vec![false, true];
        config.text.rms_norm_eps = 3.3e-5;
        config.text.rope_theta = 1_234_567.9;
        config.vision.layer_norm_eps = 1.1e-12;
        config.image_token_index = 7;
        assert_eq!(parse(config.to_json(None)).unwrap(), config);
    }

    #[test]
    fn absent_keys_are_transformers_defaults() {
        // The numbers are printed by transformers 5.23: PaliGemmaConfig(**value).to_json_string(use_diff=False).
        let config = parse(json!({})).unwrap();
        assert_eq!(config.image_token_index, 256_000);
        let v = &config.vision;
        let sizes = [v.image_size, v.patch_size, v.hidden_size, v.intermediate_size, v.num_hidden_layers];
        assert_eq!((sizes, v.num_attention_heads), ([224, 14, 1152, 4096, 27], 16));
        let t = TextConfig::usual(GemmaGeneration::Gemma1, [257_152, 2048, 16_384, 18, 8, 1, 256]);
        assert_eq!(config.text, t);

        let config =
            parse(json!({ "text_config": {}, "vision_config": {}, "projection_dim": 3072 })).unwrap();
        let v = &config.vision;
        let sizes = [v.image_size, v.patch_size, v.hidden_size, v.intermediate_size, v.num_hidden_layers];
        assert_eq!((sizes, v.num_attention_heads), ([224, 16, 768, 3072, 12], 12));
        let t = TextConfig::usual(GemmaGeneration::Gemma1, [256_000, 3072, 24_576, 28, 16, 16, 256]);
        assert_eq!(config.text, t);

        let config =
            parse(json!({ "text_config": { "model_type": "gemma2" }, "projection_dim": 2304 })).unwrap();
        let t = TextConfig::usual(GemmaGeneration::Gemma2, [256_000, 2304, 9216, 26, 8, 4, 256]);
        assert_eq!(config.text, t);
    }

    #[test]
    fn published_files_are_read() {
        // As they stand in google/paligemma-3b-pt-224 and google/paligemma2-28b-pt-896 (keys that matter).
        let v1 = json!({
            "architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2, "eos_token_id": 1,
            "hidden_size": 2048, "ignore_index": -100, "image_token_index": 257152, "model_type": "paligemma",
            "pad_token_id": 0, "projection_dim": 2048, "torch_dtype": "float32",
            "text_config": { "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma",
                "num_attention_heads": 8, "num_hidden_layers": 18, "num_image_tokens": 256,
                "num_key_value_heads": 1, "torch_dtype": "float32", "vocab_size": 257216 },
            "vision_config": { "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
                "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "vision_use_head": false },
        });
        assert_eq!(parse(v1).unwrap(), Config::published("3b-224").unwrap());
        let v2 = json!({
            "image_token_index": 257152, "model_type": "paligemma", "projection_dim": 4608, "hidden_size": 2048,
            "text_config": { "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50,
                "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 128,
                "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                "hidden_size": 4608, "intermediate_size": 36864, "model_type": "gemma2",
                "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16,
                "query_pre_attn_scalar": 144, "sliding_window": 4096, "vocab_size": 257216 },
            "vision_config": { "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
                "num_image_tokens": 4096, "patch_size": 14, "projection_dim": 4608, "vision_use_head": false },
        });
        assert_eq!(parse(v2).unwrap(), Config::published("2-28b-896").unwrap());
    }

    #[test]
    fn spellings_of_one_thing_are_one_thing() {
        let base = Config::published("2-tiny").unwrap().to_json(None);
        let with = |path: &str, value: Value| {
            let mut all = base.clone();
            *all.pointer_mut(path).unwrap() = value;
            parse(all)
        };
        let mut theta = Config::published("2-tiny").unwrap();
        theta.text.rope_theta = 500.0;
        let rope = json!({ "rope_theta": 500, "rope_type": "default" });
        assert_eq!(with("/text_config/rope_parameters", rope).unwrap(), theta);
        let mut all = base.clone();
        all["text_config"].as_object_mut().unwrap().remove("rope_parameters");
        all["text_config"]["rope_theta"] = json!(500.0);
        assert_eq!(parse(all).unwrap(), theta);
        let mut all = base.clone();
        all.as_object_mut().unwrap().remove("image_token_index");
        all["image_token_id"] = json!(1984);
        assert_eq!(parse(all).unwrap(), Config::published("2-tiny").unwrap());
    }

    #[test]
    fn five_hundred_broken_configs_each_name_the_key() {
        // Each key that the model reads, with values of the wrong type, out of bounds, or at odds with the rest.
        let keys = [
            ("", "model_type", vec![json!("llava"), json!("colpali")]),
            ("", "image_token_index", vec![json!(1 << 21)]),
            ("", "image_token_id", vec![json!(5), json!(1 << 21)]),
            ("", "projection_dim", vec![json!(65), json!(0)]),
            ("", "tie_word_embeddings", vec![json!(0)]),
            ("", "quantization_config", vec![]),
            ("", "text_config", vec![]),
            ("", "vision_config", vec![]),
            ("vision_config", "model_type", vec![json!("clip_vision_model"), json!("siglip")]),
            ("vision_config", "hidden_act", vec![json!("gelu"), json!("quick_gelu"), json!("relu")]),
            ("vision_config", "num_channels", vec![json!(1), json!(4)]),
            ("vision_config", "image_size", vec![json!(225), json!([224, 224]), json!(1 << 15)]),
            ("vision_config", "patch_size", vec![json!(15), json!(0), json!(225)]),
            ("vision_config", "hidden_size", vec![json!(65), json!(0), json!(65_537)]),
            ("vision_config", "intermediate_size", vec![json!(0), json!(70_000)]),
            ("vision_config", "num_hidden_layers", vec![json!(0), json!(201)]),
            ("vision_config", "num_attention_heads", vec![json!(0), json!(5), json!(2000)]),
            ("vision_config", "layer_norm_eps", vec![json!(0), json!(1e-300), json!(1e300)]),
            ("vision_config", "vision_use_head", vec![json!(1)]),
            ("text_config", "model_type", vec![json!("gemma3_text"), json!("llama")]),
            ("text_config", "vocab_size", vec![json!(0), json!((1 << 20) + 1)]),
            ("text_config", "hidden_size", vec![json!(65), json!(0), json!(65_537)]),
            ("text_config", "intermediate_size", vec![json!(0), json!(70_000)]),
            ("text_config", "num_hidden_layers", vec![json!(0), json!(201)]),
            ("text_config", "num_attention_heads", vec![json!(0), json!(5), json!(2000)]),
            ("text_config", "num_key_value_heads", vec![json!(0), json!(3), json!(8), json!(2000)]),
            ("text_config", "head_dim", vec![json!(0), json!(15), json!(65_538)]),
            ("text_config", "hidden_activation", vec![json!("gelu"), json!("silu"), json!("relu")]),
            ("text_config", "attention_bias", vec![json!(true), json!(1)]),
            ("text_config", "use_bidirectional_attention", vec![json!(false), json!(1)]),
            ("text_config", "rms_norm_eps", vec![json!(0), json!(1e-300), json!(1e300)]),
            ("text_config", "rope_theta", vec![json!(0), json!(-10_000)]),
            (
                "text_config",
                "rope_parameters",
                vec![json!({ "rope_type": "yarn" }), json!({ "rope_theta": "x" })],
            ),
            ("text_config", "rope_scaling", vec![json!({ "type": "linear", "factor": 2.0 })]),
            ("text_config", "query_pre_attn_scalar", vec![json!(0), json!(1e300)]),
            ("text_config", "attn_logit_softcapping", vec![json!(0), json!(1e-60)]),
            ("text_config", "final_logit_softcapping", vec![json!(0.0), json!(1e-60)]),
            ("text_config", "sliding_window", vec![json!(0), json!(1u64 << 40)]),
            ("text_config", "layer_types", vec![json!([]), json!(["full_attention"]), json!(["x", "y"])]),
        ];
        let any = [
            json!("12"),
            json!(""),
            json!(-1),
            json!(0.5),
            json!(1e18),
            json!(u64::MAX),
            json!([1]),
            json!([]),
            json!([[[{}]]]),
            json!({ "a": { "b": 1 } }),
            json!(i64::MIN),
            json!(-0.5),
            json!("\u{0}😀"),
        ];
        let base = Config::published("2-tiny").unwrap().to_json(None);
        let (mut tried, mut refused) = (0, 0);
        for (section, key, own) in keys {
            for value in own.iter().chain(&any) {
                let mut all = base.clone();
                let target = if section.is_empty() { &mut all } else { &mut all[section] };
                // The new spelling of the rotary base hides the old one.
                if key == "rope_theta" {
                    target.as_object_mut().unwrap().remove("rope_parameters");
                }
                target[key] = value.clone();
                tried += 1;
                match parse(all) {
                    Ok(config) => config.check().unwrap(),
                    Err(e) => {
                        refused += 1;
                        assert_eq!(e.kind(), crate::Kind::Model);
                        assert!(e.to_string().contains(key), "{section}.{key} = {value}: {e}");
                    }
                }
            }
        }
        // Of the general values a few are right for a few keys (0.5 is an epsilon, [1] a broken section no more).
        assert!(tried >= 500 && refused >= tried - 30, "{tried} tried, {refused} refused");
        for text in
            ["", "{", "[]", "null", "1", "\"x\"", "{\"text_config\":{\"head_dim\":NaN}}", "\u{feff}{}", "{}x"]
        {
            assert!(Config::from_json(text.as_bytes()).is_err(), "{text:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(Config::from_json(deep.as_bytes()).is_err());
        assert!(Config::from_json(&vec![b' '; LONGEST + 1]).is_err());
    }
}
