//! The parts a PaliGemma begins with, as others publish them: a SigLIP, of which the image encoder is taken, and a Gemma.
//!
//! | from | image encoder | language model |
//! |---|---|---|
//! | Hugging Face | `siglip`, `siglip_vision_model`: `vision_model.…` | `gemma`, `gemma2`: `model.…` |
//! | big_vision npz | `params/img/…` | `params/…` or `params/llm/…` |
//!
//! A PaliGemma of either format gives both. In an npz the layers stand stacked or one by one
//! (`encoderblock_0/…`, `layer_0/…`). What PaliGemma does not have (a text tower, a pooling head, an output head) is
//! passed over.

use super::{
    config_json::{gemma_config, siglip_config},
    names::{self, Named},
    recognise::{recognise_gemma, recognise_siglip},
    tensors::NamedTensors,
};
use crate::{
    Error, Result,
    config::{Config, TextConfig, VisionConfig},
};
use paligemma_tensor::Tensor;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// No published config.json is longer than a few kilobytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// An image encoder, with its shape.
#[derive(Debug)]
pub struct VisionPart {
    /// Its shape.
    pub config: VisionConfig,
    files: Files,
}

/// A language model, with its shape.
#[derive(Debug)]
pub struct LanguagePart {
    /// Its shape.
    pub config: TextConfig,
    files: Files,
}

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tower {
    Vision,
    Language,
}

impl VisionPart {
    /// Opens a folder, a safetensors file with config.json beside it, or an npz.
    ///
    /// # Errors
    /// `Kind::Usage` if there is nothing, `Kind::Model` if it is broken or no image encoder.
    pub fn open(path: &Path) -> Result<VisionPart> {
        let files = Files::open(path, Tower::Vision)?;
        let config = match &files.json {
            Some(json) => siglip_config(json),
            None => recognise_siglip(&files.shapes()),
        };
        Ok(VisionPart { config: config.map_err(|e| e.at(path.display().to_string()))?, files })
    }
}

impl LanguagePart {
    /// Opens a folder, a safetensors file with config.json beside it, or an npz.
    ///
    /// # Errors
    /// `Kind::Usage` if there is nothing, `Kind::Model` if it is broken or no Gemma.
    pub fn open(path: &Path) -> Result<LanguagePart> {
        let files = Files::open(path, Tower::Language)?;
        let config = match &files.json {
            Some(json) => gemma_config(json),
            None => recognise_gemma(&files.shapes()),
        };
        Ok(LanguagePart { config: config.map_err(|e| e.at(path.display().to_string()))?, files })
    }

    /// The folder in which its tokenizer is looked for.
    pub fn folder(&self) -> &Path {
        folder_of(&self.files.path)
    }
}

/// Every tensor of `config` that one of the parts has, by our name.
pub(super) struct Parts<'a> {
    vision: &'a VisionPart,
    language: &'a LanguagePart,
    /// As the parts' own shapes have them.
    named: BTreeMap<String, Named>,
    fused: BTreeMap<String, Named>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(vision: &'a VisionPart, language: &'a LanguagePart) -> Parts<'a> {
        let config =
            Config { vision: vision.config.clone(), text: language.config.clone(), image_token_index: 0 };
        let named = |fused| names::tensors(&config, fused).into_iter().map(|n| (n.name.clone(), n)).collect();
        Parts { vision, language, named: named(false), fused: named(true) }
    }

    /// The tensor under our name, in Hugging Face's layout and as it is stored; `None` for the projector's.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let files = match name.split('.').next() {
            Some("vision_tower") => &self.vision.files,
            Some("language_model") => &self.language.files,
            _ => return Ok(None),
        };
        let named = [&self.named, &self.fused].map(|table| table.get(name)).into_iter().flatten();
        let found = named.filter_map(|named| files.find(named).map(|at| (named, at))).next();
        let Some((named, at)) = found else {
            return Err(Error::model(format!("the tensor {name:?} is missing"))
                .at(files.path.display().to_string())
                .expected("every tensor of the part, under Hugging Face's or big_vision's names"));
        };
        files.read(named, &at).map(Some).map_err(|e| e.at(files.path.display().to_string()))
    }
}

/// The files of a part.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    tower: Tower,
    all: Vec<NamedTensors>,
    /// config.json, where there is one; an npz has none.
    json: Option<Value>,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    name: String,
    /// Which slice of it, in slices; of a tensor in Hugging Face's layout it is all.
    slice: Option<usize>,
}

impl Files {
    fn open(path: &Path, tower: Tower) -> Result<Files> {
        let at = |e: Error| e.at(path.display().to_string());
        let paths = if path.is_dir() { shards(path)? } else { vec![path.to_path_buf()] };
        let all = paths.iter().map(|path| NamedTensors::open(path)).collect::<Result<Vec<_>>>()?;
        let is_npz = all.iter().any(NamedTensors::is_npz);
        let json = if is_npz { None } else { Some(config(&folder_of(path).join("config.json"))?) };
        let files = Files { path: path.to_path_buf(), tower, all, json };
        if files.json.is_none() && files.shapes().is_empty() {
            return Err(at(Error::model("the npz has no tensor of such a part")));
        }
        Ok(files)
    }

    /// The names under which a tensor may stand, likeliest first.
    fn candidates(&self, named: &Named) -> Vec<Place> {
        let whole = |name: String| Place { file: 0, name, slice: None };
        if self.json.is_some() {
            let name = &named.name;
            return match self.tower {
                Tower::Vision => {
                    let rest = name.strip_prefix("vision_tower.").unwrap_or(name);
                    [
                        "vision_model.",
                        "vision_tower.vision_model.",
                        "model.vision_tower.vision_model.",
                        "vision_tower.",
                        "",
                    ]
                    .map(|prefix| whole(format!("{prefix}{rest}")))
                    .into()
                }
                Tower::Language => {
                    let rest = name.strip_prefix("language_model.").unwrap_or(name);
                    ["model.", "language_model.model.", "model.language_model.", "language_model.", ""]
                        .map(|prefix| whole(format!("{prefix}{rest}")))
                        .into()
                }
            };
        }
        // Stacked, or a layer by itself: then the slice is one within the layer's own tensor.
        let stacked = |name: String| Place { file: 0, name, slice: Some(named.slice) };
        let mut places = Vec::new();
        for prefix in PREFIXES {
            let Some(key) = named.key.strip_prefix(self.inner()) else { continue };
            places.push(stacked(format!("{prefix}{key}")));
            for (all, one) in LAYERS {
                if let Some(rest) = key.split_once(all) {
                    let layers = named.whole[0];
                    let slices = named.whole.iter().product::<usize>() / named.len().max(1) / layers;
                    let (layer, within) = (named.slice / slices, named.slice % slices);
                    let name = format!("{prefix}{}{one}{layer}/{}", rest.0, rest.1);
                    places.push(Place { file: 0, name, slice: Some(within) });
                }
            }
        }
        places
    }

    /// What the table of names puts before this part's keys.
    fn inner(&self) -> &'static str {
        match self.tower {
            Tower::Vision => "img/",
            Tower::Language => "llm/",
        }
    }

    fn find(&self, named: &Named) -> Option<Place> {
        self.candidates(named).into_iter().find_map(|place| {
            let file = self.all.iter().position(|file| file.shape(&place.name).is_some())?;
            Some(Place { file, ..place })
        })
    }

    fn read(&self, named: &Named, place: &Place) -> Result<Tensor> {
        let file = &self.all[place.file];
        let stored = file.shape(&place.name).unwrap_or_default();
        let wrong = |expected: &[usize]| {
            Error::model(format!("tensor {:?} has shape {stored:?}", place.name))
                .expected(format!("{expected:?}"))
        };
        let Some(slice) = place.slice else {
            if stored != named.shape {
                return Err(wrong(&named.shape));
            }
            return file.tensor(&place.name);
        };
        // Outer axes of one are no matter: (1, tokens, width).
        let len = named.len();
        if len == 0
            || !stored.ends_with(&named.slice_shape)
            || stored.iter().product::<usize>() < (slice + 1) * len
        {
            return Err(wrong(&named.slice_shape));
        }
        let tensor = file.slice(&place.name, slice * len, &named.slice_shape)?;
        Ok(if named.is_in_place() { tensor } else { tensor.permute(&named.order) }.reshape(&named.shape))
    }

    /// Keys and shapes of an npz as the table of names has them: under `img/` or `llm/`, layers stacked.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut layers: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for file in &self.all {
            for name in file.names() {
                let shape = file.shape(name).unwrap_or_default().to_vec();
                for prefix in PREFIXES {
                    let Some(key) = name.strip_prefix(prefix) else { continue };
                    let key = format!("{}{key}", self.inner());
                    match LAYERS.iter().find_map(|(all, one)| one_layer(&key, all, one)) {
                        Some((key, layer)) => {
                            let known = layers.entry(key.clone()).or_default();
                            known.insert(layer);
                            let shape = [&[known.len()], &shape[..]].concat();
                            shapes.insert(key, shape);
                        }
                        None => {
                            shapes.entry(key).or_insert(shape);
                        }
                    }
                    break;
                }
            }
        }
        shapes.into_iter().collect()
    }
}

/// What may stand before a part's own keys in an npz, longest first.
const PREFIXES: [&str; 4] = ["img/", "llm/", "transformer/", ""];
/// How stacked layers are named, and one by one.
const LAYERS: [(&str, &str); 2] = [("encoderblock/", "encoderblock_"), ("layers/", "layer_")];

/// `…encoderblock_3/rest` → (`…encoderblock/rest`, 3)
fn one_layer(key: &str, all: &str, one: &str) -> Option<(String, usize)> {
    let (head, tail) = key.split_once(one)?;
    let (layer, rest) = tail.split_once('/')?;
    Some((format!("{head}{all}{rest}"), layer.parse().ok()?))
}

/// A folder itself, or that of a file.
fn folder_of(path: &Path) -> &Path {
    if path.is_dir() {
        return path;
    }
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn config(path: &Path) -> Result<Value> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::model("there is no config.json").at(path.display().to_string())
        }
        _ => Error::io(path, e),
    })?;
    file.take(LONGEST_CONFIG).read_to_end(&mut text).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::model(format!("config.json is not JSON: {e}")).at(path.display().to_string()).because(e)
    })
}

/// model.safetensors of a folder, or its shards.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut shards: Vec<PathBuf> = folder
        .read_dir()
        .map_err(|e| Error::io(folder, e))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("model")))
        .collect();
    shards.sort();
    let whole = folder.join("model.safetensors");
    match shards.len() {
        0 => Err(Error::model("the folder has no weights")
            .at(folder.display().to_string())
            .expected("model.safetensors, or its shards model-00001-of-….safetensors")),
        _ if shards.contains(&whole) => Ok(vec![whole]),
        _ => Ok(shards),
    }
}
