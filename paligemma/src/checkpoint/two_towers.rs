//! SigLIP's two towers as Hugging Face holds them: a folder of transformers' `SiglipModel`.
//!
//! Its names are ours but for `vision_model.` in place of `vision_tower.`, and for the pooling's attention, whose three
//! matrices are one: `vision_model.head.attention.in_proj_weight`, `[3D, D]`.

use super::{
    config_json::{torch_name, two_towers_config},
    tensors::NamedTensors,
    write::{safetensors_bytes, write_files},
};
use crate::{Error, Result, model::TwoTowersConfig};
use paligemma_tensor::{DType, Tensor};
use serde_json::{Value, json};
use std::{fs, path::Path};

const MODEL: &str = "model.safetensors";
/// The attention of the pooling, by our name.
const ATTENTION: &str = "vision_tower.head.attention.";
/// The parts of its joined matrix, in order.
const JOINED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Such a folder, opened.
#[derive(Debug)]
pub(crate) struct SiglipFolder {
    /// The sizes of both towers.
    pub(crate) config: TwoTowersConfig,
    tensors: NamedTensors,
}

impl SiglipFolder {
    /// Opens a folder.
    ///
    /// # Errors
    /// `Kind::Usage`: no such file; `Kind::Model`: what is wrong with it.
    pub(crate) fn open(folder: &Path) -> Result<SiglipFolder> {
        let path = folder.join("config.json");
        let at = |error: Error| error.at(path.display().to_string());
        let text = fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!("there is no {}", path.display()))
                .expected("a folder of a SigLIP with both towers"),
            _ => Error::io(&path, e),
        })?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| at(Error::model(format!("it is no JSON: {e}"))))?;
        let config = two_towers_config(&json).map_err(at)?;
        Ok(SiglipFolder { config, tensors: NamedTensors::open(&folder.join(MODEL))? })
    }

    /// A tensor by our name, of [`TwoTowersConfig::tensors`].
    ///
    /// # Errors
    /// `Kind::Model`: it is missing or of another shape.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        let d = self.config.vision.hidden_size;
        if name == "vision_tower.head.probe" {
            return self.shaped("vision_model.head.probe", &[1, 1, d]).map(|probe| probe.reshape(&[1, d]));
        }
        if let Some((at, kind)) = joined(name) {
            let shape = if kind == "weight" { vec![3 * d, d] } else { vec![3 * d] };
            let whole = self.shaped(&format!("vision_model.head.attention.in_proj_{kind}"), &shape)?;
            return Ok(match kind {
                "weight" => whole.rows(at * d, (at + 1) * d),
                _ => whole.reshape(&[3, d]).rows(at, at + 1).reshape(&[d]),
            });
        }
        self.tensors.tensor(&theirs(name))
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensors.tensor(name)?;
        if tensor.shape() == shape {
            return Ok(tensor);
        }
        Err(Error::model(format!("tensor \"{name}\" has shape {:?}", tensor.shape()))
            .expected(format!("{shape:?}, as the configuration says")))
    }
}

/// Which part of the joined matrix a tensor of ours is, and whether `weight` or `bias`.
fn joined(name: &str) -> Option<(usize, &str)> {
    let (part, kind) = name.strip_prefix(ATTENTION)?.split_once('.')?;
    Some((JOINED.iter().position(|known| *known == part)?, kind))
}

fn theirs(name: &str) -> String {
    name.strip_prefix("vision_tower.").map_or_else(|| name.to_owned(), |rest| format!("vision_model.{rest}"))
}

/// Writes such a folder: config.json, the weights as `dtype`, and `files` beside them. `tensor` gives each tensor by our
/// name; `eos` ends and fills up texts.
///
/// # Errors
/// `Kind::Usage` if `folder` exists and is not empty; `Kind::Io` or `Kind::Resource` from writing; what `tensor` returns.
pub(crate) fn write_siglip(
    config: &TwoTowersConfig,
    folder: &Path,
    dtype: DType,
    eos: u32,
    files: Vec<(&str, Vec<u8>)>,
    tensor: &mut dyn FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    let d = config.vision.hidden_size;
    let mut tensors = Vec::new();
    for (name, _) in config.tensors() {
        if joined(&name).is_some() {
            continue;
        }
        let whole = tensor(&name)?.cast(dtype);
        let whole = if name.ends_with(".head.probe") { whole.reshape(&[1, 1, d]) } else { whole };
        tensors.push((theirs(&name), whole));
    }
    for (kind, shape) in [("weight", vec![3 * d, d]), ("bias", vec![3 * d])] {
        let mut numbers = Vec::with_capacity(shape.iter().product());
        for part in JOINED {
            numbers.extend(tensor(&format!("{ATTENTION}{part}.{kind}"))?.to_f32_vec());
        }
        let name = format!("vision_model.head.attention.in_proj_{kind}");
        tensors.push((name, Tensor::from_f32(numbers, &shape).cast(dtype)));
    }
    let config = format!("{:#}\n", config_json(config, dtype, eos)).into_bytes();
    let mut all = vec![("config.json", config), (MODEL, safetensors_bytes(&tensors))];
    all.extend(files);
    write_files(folder, &all)
}

fn config_json(config: &TwoTowersConfig, dtype: DType, eos: u32) -> Value {
    let (vision, text) = (&config.vision, &config.text);
    // As JSON reads best: 1e-6, not its nearest f32.
    let eps = |eps: f32| eps.to_string().parse::<f64>().unwrap_or(f64::from(eps));
    json!({
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "torch_dtype": torch_name(dtype),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": eps(vision.layer_norm_eps),
            "attention_dropout": 0.0,
            "vision_use_head": true,
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.length,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "projection_size": vision.hidden_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": eps(text.layer_norm_eps),
            "attention_dropout": 0.0,
            "eos_token_id": eos,
            "pad_token_id": eos,
        },
    })
}
