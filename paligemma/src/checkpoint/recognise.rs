//! The shape of a model from the tensors of a big_vision npz, which has no config.json.

use crate::{
    Error, Result,
    config::{Config, GemmaGeneration, TextConfig, VisionConfig},
};

/// What the shapes of the tensors, by their keys without `params/`, say; everything that shapes do not tell is as published.
///
/// # Errors
/// `Kind::Model` naming a tensor that is missing or has the wrong number of dimensions.
pub(crate) fn recognise<K: AsRef<str>, S: AsRef<[usize]>>(tensors: &[(K, S)]) -> Result<Config> {
    let vision = recognise_siglip(tensors)?;
    let text = recognise_gemma(tensors)?;
    // big_vision's table ends where Hugging Face's has `<image>`.
    let config = Config { vision, image_token_index: text.vocab_size, text };
    config.check().map_err(|e| e.at("the shape recognised from the tensors of the npz"))?;
    Ok(config)
}

fn shape<'a, K: AsRef<str>, S: AsRef<[usize]>>(tensors: &'a [(K, S)], wanted: &str) -> Option<&'a [usize]> {
    tensors.iter().find(|(key, _)| key.as_ref() == wanted).map(|(_, shape)| shape.as_ref())
}

fn missing<K: AsRef<str>, S: AsRef<[usize]>>(tensors: &[(K, S)], key: &str, form: &str) -> Error {
    let found = shape(tensors, key).map_or("is missing".to_string(), |s| format!("has shape {s:?}"));
    let error = Error::model(format!("npz tensor {key:?} {found}")).expected(form.to_string());
    if tensors.iter().any(|(key, _)| key.as_ref().contains("encoderblock_0/")) {
        return error.hint("the layers stand one by one; only stacked layers, as published, are supported");
    }
    error.hint("only npz checkpoints of big_vision's PaliGemma and PaliGemma 2 are supported")
}

// Each pattern is the shape as names.rs has it; the table checks every tensor against the result.
macro_rules! dimensions {
    ($tensors:ident, $key:literal, $form:literal, $pattern:pat => $value:expr) => {
        match shape($tensors, $key) {
            Some($pattern) => $value,
            _ => return Err(missing($tensors, $key, $form)),
        }
    };
}

/// The image encoder alone, by keys that begin with `img/`.
pub(super) fn recognise_siglip<K: AsRef<str>, S: AsRef<[usize]>>(tensors: &[(K, S)]) -> Result<VisionConfig> {
    let patch = dimensions!(tensors, "img/embedding/kernel", "[patch, patch, 3, width]", &[p, _, 3, _] => p);
    let tokens = dimensions!(tensors, "img/pos_embedding", "[1, tokens, width]", &[1, n, _] => n);
    let (layers, width, heads) = dimensions!(tensors,
        "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel",
        "[layers, width, heads, head size]", &[l, w, a, _] => (l, w, a));
    let mlp = dimensions!(tensors, "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel",
        "[layers, width, mlp]", &[_, _, m] => m);
    let grid = tokens.isqrt();
    if grid * grid != tokens || tokens == 0 {
        return Err(Error::model(format!("npz tensor \"img/pos_embedding\" is of {tokens} image tokens"))
            .expected("a square number of them"));
    }
    Ok(VisionConfig {
        image_size: grid.saturating_mul(patch),
        patch_size: patch,
        hidden_size: width,
        intermediate_size: mlp,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        layer_norm_eps: 1e-6,
    })
}

/// The language model alone, by keys that begin with `llm/`.
pub(super) fn recognise_gemma<K: AsRef<str>, S: AsRef<[usize]>>(tensors: &[(K, S)]) -> Result<TextConfig> {
    let (rows, width) =
        dimensions!(tensors, "llm/embedder/input_embedding", "[rows, width]", &[v, d] => (v, d));
    let (layers, mlp) = dimensions!(tensors, "llm/layers/mlp/gating_einsum", "[layers, 2, width, mlp]",
        &[l, 2, _, f] => (l, f));
    let (heads, key_heads, head) = if shape(tensors, "llm/layers/attn/qkv_einsum/w").is_some() {
        dimensions!(tensors, "llm/layers/attn/qkv_einsum/w", "[layers, 3, heads, width, head size]",
            &[_, 3, n, _, h] => (n, n, h))
    } else {
        let k = dimensions!(tensors, "llm/layers/attn/kv_einsum/w",
            "[layers, 2, key heads, width, head size]", &[_, 2, k, _, _] => k);
        dimensions!(tensors, "llm/layers/attn/q_einsum/w", "[layers, heads, width, head size]",
            &[_, n, _, h] => (n, k, h))
    };
    let has_post_norms = ["llm/layers/post_attention_norm/scale", "llm/layers/post_ffw_norm/scale"]
        .iter()
        .any(|k| shape(tensors, k).is_some());
    let generation = if has_post_norms { GemmaGeneration::Gemma2 } else { GemmaGeneration::Gemma1 };
    Ok(TextConfig::usual(generation, [rows, width, mlp, layers, heads, key_heads, head]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names;

    #[test]
    fn every_published_size_is_recognised() {
        for name in Config::published_names() {
            let mut config = Config::published(&name).unwrap();
            // The table of an npz ends before `<image>`, and its window is Gemma 2's.
            config.text.vocab_size = config.image_token_index;
            for fused in [false, true] {
                if fused {
                    config.text.num_key_value_heads = config.text.num_attention_heads;
                }
                let tensors = names::tensors(&config, fused);
                let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|t| (t.key, &t.whole[..])).collect();
                assert_eq!(recognise(&shapes).unwrap(), config, "{name}");
            }
        }
    }
}
