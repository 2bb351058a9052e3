//! Low-rank adapters as PEFT's folders hold them: `adapter_config.json` and `adapter_model.safetensors`.
//! Reference: peft 0.21, `LoraConfig`, `get_peft_model_state_dict`; arXiv 2106.09685.

use std::collections::BTreeMap;
use std::path::Path;

use paligemma_tensor::{DType, Tensor};
use serde_json::{Map, Value, json};

use crate::checkpoint::{NamedTensors, canonical, names, safetensors_bytes, write_files};
use crate::config::Config;
use crate::model::Lora;
use crate::{Error, Result};

/// The most bytes of a configuration.
const MAX_CONFIG: u64 = 1 << 20;

/// An adapter of one layer.
#[derive(Debug, Clone)]
pub struct Pair {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
}

/// Adapters of a model's linear layers.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Their rank.
    pub rank: usize,
    /// What they add is multiplied by alpha / rank.
    pub alpha: f64,
    /// The rate of dropout they were made with.
    pub dropout: f64,
    /// By the layer's name, without `.weight`.
    pub layers: BTreeMap<String, Pair>,
}

/// The linear layers of a model with their shapes `[out, in]`, in the order of their use.
pub fn linear_layers(config: &Config) -> Vec<(String, [usize; 2])> {
    let layers = names::tensors(config, false).into_iter().filter_map(|named| {
        let layer = named.name.strip_suffix(".weight")?;
        let is_table = layer.ends_with("embed_tokens") || layer.ends_with("position_embedding");
        match named.shape[..] {
            [out, inputs] if !is_table => Some((layer.to_string(), [out, inputs])),
            _ => None,
        }
    });
    layers.collect()
}

impl Adapter {
    /// Opens an adapter for a model of `config`.
    ///
    /// # Errors
    /// `Kind::Usage` for a folder without adapter; `Kind::Model` for what is broken, is not for this model, or is a kind
    /// of adapter that is not supported: DoRA, rsLoRA, modules saved whole, and others, by name.
    pub fn open(folder: &Path, config: &Config) -> Result<Adapter> {
        let path = folder.join("adapter_config.json");
        let place = path.display().to_string();
        if !path.is_file() {
            return Err(Error::usage(format!("{} holds no adapter", folder.display())).expected(
                "a folder with adapter_config.json and adapter_model.safetensors, as peft writes it",
            ));
        }
        let io = |error| Error::io(&path, error);
        if path.metadata().map_err(io)?.len() > MAX_CONFIG {
            return Err(Error::model("the adapter's configuration is too large").at(place));
        }
        let json: Value = serde_json::from_slice(&std::fs::read(&path).map_err(io)?).map_err(|error| {
            Error::model(format!("the adapter's configuration is no JSON: {error}")).at(place.clone())
        })?;
        let (rank, alpha, dropout) = check_config(&json).map_err(|error| error.at(place))?;
        let file = folder.join("adapter_model.safetensors");
        let place = file.display().to_string();
        let tensors = NamedTensors::open(&file)?;
        let shapes: BTreeMap<String, [usize; 2]> = linear_layers(config).into_iter().collect();
        let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for name in tensors.names() {
            let of_layer =
                [".lora_A.weight", ".lora_B.weight"].iter().enumerate().find_map(|(half, ending)| {
                    let module = name.strip_prefix("base_model.model.")?.strip_suffix(ending)?;
                    Some((half, canonical(&format!("{module}.weight"))?.strip_suffix(".weight")?.to_string()))
                });
            let Some((half, layer)) = of_layer.filter(|(_, layer)| shapes.contains_key(layer)) else {
                return Err(Error::model(format!(
                    "the adapter has a tensor for no linear layer of this model, \"{name}\""
                ))
                .at(place));
            };
            let [out, inputs] = shapes[&layer];
            let want = [[rank, inputs], [out, rank]][half];
            let tensor = tensors.tensor(name)?.cast(DType::F32);
            if tensor.shape() != want {
                return Err(Error::model(format!("tensor \"{name}\" has shape {:?}", tensor.shape()))
                    .at(place)
                    .expected(format!("{want:?}: rank {rank}, and the layer's size")));
            }
            if tensor.as_f32().iter().any(|x| !x.is_finite()) {
                return Err(
                    Error::model(format!("tensor \"{name}\" holds numbers that are not finite")).at(place)
                );
            }
            halves.entry(layer).or_default()[half] = Some(tensor);
        }
        let mut layers = BTreeMap::new();
        for (layer, halves) in halves {
            let [Some(a), Some(b)] = halves else {
                return Err(Error::model(format!(
                    "the adapter of {layer} has only one of lora_A and lora_B"
                ))
                .at(place));
            };
            layers.insert(layer, Pair { a, b });
        }
        if layers.is_empty() {
            return Err(Error::model("the adapter has no tensor").at(place));
        }
        Ok(Adapter { rank, alpha, dropout, layers })
    }

    /// Writes the folder, which must not exist. `base` is what the model is called.
    ///
    /// # Errors
    /// `Kind::Usage` if it exists; `Kind::Io` or `Kind::Resource` from writing.
    pub fn write(&self, folder: &Path, base: &str) -> Result<()> {
        let mut tensors = Vec::new();
        for (layer, Pair { a, b }) in &self.layers {
            let module = peft_module(layer);
            tensors.push((format!("base_model.model.{module}.lora_A.weight"), a.clone()));
            tensors.push((format!("base_model.model.{module}.lora_B.weight"), b.clone()));
        }
        let mut config = self.config();
        config["base_model_name_or_path"] = json!(base);
        let files = [
            ("adapter_config.json", format!("{config:#}\n").into_bytes()),
            ("adapter_model.safetensors", safetensors_bytes(&tensors)),
        ];
        write_files(folder, &files)
    }

    fn config(&self) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": null,
            "auto_mapping": {
                "base_model_class": "PaliGemmaForConditionalGeneration",
                "parent_library": "transformers.models.paligemma.modeling_paligemma",
            },
            "base_model_name_or_path": null,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": target_modules(self.layers.keys().map(String::as_str)),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": null,
            "use_dora": false,
            "use_rslora": false,
            "rank_pattern": {},
            "alpha_pattern": {},
        })
    }

    /// alpha / rank
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// What stands beside a layer when the model answers; matrices as `dtype`.
    pub fn lora(&self, layer: &str, dtype: DType) -> Option<Lora> {
        let Pair { a, b } = self.layers.get(layer)?;
        let part = |x: &Tensor| x.cast(dtype).into();
        Some(Lora { a: part(a), b: part(b), scale: self.scale(), dropout: 0.0 })
    }

    /// `weight` of a layer with what the adapter adds, f32.
    pub fn merged(&self, layer: &str, weight: &Tensor) -> Tensor {
        let Some(Pair { a, b }) = self.layers.get(layer) else { return weight.clone() };
        let (inputs, scale) = (a.shape()[1], self.scale());
        let mut sum = weight.to_f32_vec();
        for (row, b) in sum.chunks_mut(inputs).zip(b.as_f32().chunks(self.rank)) {
            for (b, a) in b.iter().zip(a.as_f32().chunks(inputs)) {
                row.iter_mut().zip(a).for_each(|(sum, a)| *sum += scale * b * a);
            }
        }
        Tensor::from_f32(sum, weight.shape())
    }
}

/// The rank, alpha and dropout of a configuration that asks for nothing else.
fn check_config(json: &Value) -> Result<(usize, f64, f64)> {
    if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        let kind = json.get("peft_type").cloned().unwrap_or_default();
        return Err(Error::model(format!("the adapter is of the kind {kind}")).expected("\"LORA\""));
    }
    // What each key says where nothing is asked for.
    let is_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    const UNSUPPORTED: [(&str, &str); 17] = [
        ("use_dora", "DoRA"),
        ("use_rslora", "rsLoRA"),
        ("modules_to_save", "modules that are saved whole (modules_to_save)"),
        ("use_qalora", "QALoRA"),
        ("use_bdlora", "BD-LoRA"),
        ("lora_bias", "adapters with biases (lora_bias)"),
        ("fan_in_fan_out", "transposed weights (fan_in_fan_out)"),
        ("rank_pattern", "several ranks (rank_pattern)"),
        ("alpha_pattern", "several alphas (alpha_pattern)"),
        ("layer_replication", "repeated layers (layer_replication)"),
        ("trainable_token_indices", "trained tokens (trainable_token_indices)"),
        ("target_parameters", "adapters of parameters (target_parameters)"),
        ("alora_invocation_tokens", "activated LoRA (alora_invocation_tokens)"),
        ("arrow_config", "Arrow"),
        ("kasa_config", "KaSA"),
        ("velora_config", "VeLoRA"),
        ("monteclora_config", "MonteCLoRA"),
    ];
    for (key, what) in UNSUPPORTED {
        if json.get(key).is_some_and(|value| !is_nothing(value)) {
            return Err(Error::model(format!("the adapter has {what}, which is not supported"))
                .expected("plain LoRA"));
        }
    }
    if json.get("bias").is_some_and(|bias| bias != "none" && !bias.is_null()) {
        return Err(
            Error::model("the adapter has trained biases, which is not supported").expected("bias: none")
        );
    }
    // These ways to begin change the weights of the base model.
    let init = json.get("init_lora_weights").and_then(Value::as_str).unwrap_or("");
    if ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|name| init.starts_with(name)) {
        return Err(Error::model(format!("the adapter was begun as {init}, beside another base model"))
            .hint("convert it to plain LoRA with peft first"));
    }
    let number = |key: &str| json.get(key).and_then(Value::as_f64);
    let rank = json.get("r").and_then(Value::as_u64).filter(|r| (1..=65_536).contains(r));
    let rank =
        rank.ok_or_else(|| Error::model("the adapter's r is no rank").expected("a whole number from 1"))?;
    let alpha = number("lora_alpha").filter(|alpha| alpha.is_finite());
    let alpha = alpha.ok_or_else(|| Error::model("the adapter's lora_alpha is no number"))?;
    Ok((rank as usize, alpha, number("lora_dropout").unwrap_or(0.0)))
}

/// What transformers calls a layer of ours.
fn peft_module(layer: &str) -> String {
    format!("model.{layer}")
}

/// A pattern of exactly these layers, in Python's dialect: bare names would hit the image encoder's too.
fn target_modules<'a>(layers: impl Iterator<Item = &'a str>) -> String {
    let (mut by_number, mut others): (Map<String, Value>, Vec<String>) = (Map::new(), Vec::new());
    for layer in layers {
        let module = peft_module(layer);
        let parts = module
            .split_once(".layers.")
            .and_then(|(head, tail)| Some((head.to_string(), tail.split_once('.')?)));
        match parts {
            Some((head, (number, tail))) => {
                let key = format!("{head} {tail}");
                let numbers = by_number.entry(key).or_insert_with(|| json!([]));
                if let Value::Array(numbers) = numbers {
                    numbers.push(json!(number));
                }
            }
            None => others.push(module.replace('.', r"\.")),
        }
    }
    // Layers that have the same parts are written together.
    let mut together: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (key, numbers) in by_number {
        let (head, tail) = key.split_once(' ').unwrap_or((&key, ""));
        let numbers: Vec<&str> = numbers.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        together
            .entry((head.replace('.', r"\."), numbers.join("|")))
            .or_default()
            .push(tail.replace('.', r"\."));
    }
    let patterns = together
        .into_iter()
        .map(|((head, numbers), tails)| format!(r"{head}\.layers\.({numbers})\.({})", tails.join("|")));
    patterns.chain(others).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_hit_exactly_their_layers() {
        let check = |layers: &[&str], want: &str| {
            assert_eq!(target_modules(layers.iter().copied()), want);
            let pattern = fancy_regex::Regex::new(&format!("^(?:{want})$")).unwrap();
            let config = Config::published("2-tiny").unwrap();
            for (layer, _) in linear_layers(&config) {
                let hit = pattern.is_match(&peft_module(&layer)).unwrap();
                assert_eq!(hit, layers.contains(&layer.as_str()), "{layer}");
            }
        };
        check(
            &[
                "language_model.layers.0.self_attn.q_proj",
                "language_model.layers.1.self_attn.q_proj",
                "language_model.layers.0.mlp.up_proj",
                "language_model.layers.1.mlp.up_proj",
            ],
            r"model\.language_model\.layers\.(0|1)\.(self_attn\.q_proj|mlp\.up_proj)",
        );
        check(
            &["vision_tower.encoder.layers.1.self_attn.q_proj", "multi_modal_projector.linear"],
            r"model\.vision_tower\.encoder\.layers\.(1)\.(self_attn\.q_proj)|model\.multi_modal_projector\.linear",
        );
    }

    #[test]
    fn what_is_not_plain_lora_is_refused_by_name() {
        let plain = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": false, "modules_to_save": null });
        assert_eq!(check_config(&plain).unwrap(), (4, 8.0, 0.0));
        let check = |key: &str, value: Value, name: &str| {
            let mut config = plain.clone();
            config[key] = value;
            let error = check_config(&config).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Model);
            assert!(error.to_string().contains(name), "{error}");
        };
        check("use_dora", json!(true), "DoRA");
        check("use_rslora", json!(true), "rsLoRA");
        check("modules_to_save", json!(["lm_head"]), "modules_to_save");
        check("rank_pattern", json!({ "q_proj": 8 }), "rank_pattern");
        check("bias", json!("all"), "biases");
        check("peft_type", json!("LOHA"), "LOHA");
        check("init_lora_weights", json!("pissa_niter_4"), "pissa");
        check("r", json!(0), "r is no rank");
        check("lora_alpha", json!("x"), "lora_alpha");
    }
}
