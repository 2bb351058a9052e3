//! Conversion between the two formats, or within one. Bytes are moved, never computed, unless a type is asked for.

use super::{
    names,
    open::{Checkpoint, Format, sidecar},
    quantised::{Form, Scheme, dequantise},
    recognise::recognise,
    write::{Target, check_is_free, write_file, write_npz, write_safetensors},
};
use crate::{
    Error, Kind, Result, config::Config, image::ProcessorSettings, nano, text::stand_in_tokenizer_config,
};
use paligemma_tensor::{DType, Weight};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// What a conversion wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The file or folder.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Number of tensors, under our names.
    pub num_tensors: usize,
    /// How its matrices are quantised.
    pub scheme: Option<Scheme>,
    /// Bytes of the tensors, scales included.
    pub num_bytes: u64,
    /// Rows of the embedding table from `<image>` on, which an npz does not have.
    pub dropped_rows: usize,
    /// Other files written beside or in it: tokenizer, settings, an npz's config.
    pub files: Vec<PathBuf>,
}

/// Files of a folder that go with the weights, other than config.json.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
];
/// Of these, what stands beside an npz. A processor's settings do not: an npz is read with the reference's
/// preprocessing, and a folder made of one stays without, so that it answers the same.
const TOKENIZER: [&str; 5] = [COMPANIONS[0], COMPANIONS[1], COMPANIONS[2], COMPANIONS[3], COMPANIONS[4]];
/// What our tokenizer reads.
const TOKENS: [&str; 2] = [COMPANIONS[0], COMPANIONS[1]];

/// Writes `input` to `out`: a big_vision npz if `out` ends in `.npz`, else a Hugging Face folder. Tensors
/// keep their forms unless `form` is given; with a scheme, those that it does not take keep theirs. An npz has no
/// embedding rows from `<image>` on; all else is carried over to the bit, and what the tensors of an npz cannot tell
/// stands in `STEM.config.json` beside
/// it. `progress` is told the bytes written and the bytes in all, and may break off. One tensor is held in memory at a
/// time.
///
/// # Errors
/// `Kind::Usage` if `out` exists, a quantised model shall become an npz or be quantised anew, or layers of one stacked
/// tensor differ in type; `Kind::Model` if the input turns out damaged; `Kind::Io` or `Kind::Resource` from writing;
/// `Kind::Cancelled`. Nothing is then left under `out`.
pub fn convert(
    input: &Checkpoint,
    out: &Path,
    form: Option<Form>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Summary> {
    check_is_free(out)?;
    let is_npz = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"));
    let plain = "--dtype f32, bf16 or f16 makes plain numbers of a quantised model";
    match (input.scheme(), form) {
        (_, Some(Form::Quantised(scheme))) if is_npz => {
            Err(Error::usage(format!("an npz cannot be {scheme}: big_vision has no quantised weights"))
                .expected("a folder as OUT"))
        }
        (Some(from), None) if is_npz => {
            Err(Error::usage(format!("the model is {from}, and big_vision has no quantised weights"))
                .at(input.path().display().to_string())
                .hint(plain))
        }
        (Some(from), Some(Form::Quantised(to))) if from != to => {
            Err(Error::usage(format!("the model is {from} and would lose twice as {to}"))
                .at(input.path().display().to_string())
                .expected(format!("the model from which it was made, to quantise that as {to}"))
                .hint(plain))
        }
        (_, Some(Form::Plain(dtype))) if is_npz => to_npz(input, out, Some(dtype), progress),
        _ if is_npz => to_npz(input, out, None, progress),
        _ => to_folder(input, out, form, progress),
    }
}

/// Between two tensors: whether `progress` broke off.
fn check_stopped(is_stopped: &Cell<bool>) -> Result<()> {
    if is_stopped.get() { Err(Error::new(Kind::Cancelled, "cancelled")) } else { Ok(()) }
}

/// Each tensor of `config` with the form that it shall have.
fn targets(input: &Checkpoint, config: &Config, form: Option<Form>) -> Vec<Target> {
    let form_of = |named: &names::Named| {
        let stored = input.form(&named.name).unwrap_or(Form::Plain(DType::F32));
        match (form, stored) {
            (Some(Form::Plain(dtype)), _) => Form::Plain(dtype),
            (Some(Form::Quantised(scheme)), Form::Plain(dtype)) => scheme.form_of(named, dtype),
            _ => stored,
        }
    };
    let named = names::tensors(config, names::is_fused(config)).into_iter();
    named.map(|named| Target { form: form_of(&named), named }).collect()
}

fn num_bytes(targets: &[Target]) -> u64 {
    targets.iter().map(Target::len).sum()
}

fn to_folder(
    input: &Checkpoint,
    out: &Path,
    form: Option<Form>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Summary> {
    let targets = targets(input, input.config(), form);
    let (num_tensors, total) = (targets.len(), num_bytes(&targets));
    let (dtype, scheme) = match form {
        Some(Form::Plain(dtype)) => (Some(dtype), None),
        Some(Form::Quantised(scheme)) => (None, Some(scheme)),
        None => (None, input.scheme()),
    };
    let uniform = dtype.or(match &input.forms()[..] {
        [(Form::Plain(dtype), ..)] => Some(*dtype),
        _ => None,
    });
    let mut config = match (input.format(), input.json()) {
        (Format::Safetensors, Some(json)) => carried_over(json, dtype),
        _ => input.config().to_json(uniform),
    };
    match (scheme, config.as_object_mut()) {
        (Some(scheme), _) => config["quantization_config"] = scheme.to_json(),
        (None, Some(keys)) => drop(keys.shift_remove("quantization_config")),
        (None, None) => {}
    }
    let files = companions(input)?;
    let is_stopped = Cell::new(false);
    let mut done = 0;
    let mut wrote = |bytes| {
        done += bytes;
        is_stopped.set(is_stopped.get() || progress(done, total).is_break());
    };
    let mut weight = |target: &Target| {
        check_stopped(&is_stopped)?;
        input.weight(&target.named.name)
    };
    write_safetensors(out, &config, scheme, targets, &files, &mut weight, &mut wrote)?;
    Ok(Summary {
        path: out.to_path_buf(),
        format: Format::Safetensors,
        num_tensors,
        scheme,
        num_bytes: total,
        dropped_rows: 0,
        files: files.into_iter().map(|(name, _)| out.join(name)).collect(),
    })
}

/// The files that go with the weights of a new folder: its tokenizer, and the settings of the published ones.
pub(super) fn new_companions(config: &Config, name: &str, tokenizer: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let vision = &config.vision;
    let processor = ProcessorSettings::published(vision.image_size).to_json(vision.num_tokens());
    let files = [
        (name, tokenizer),
        ("tokenizer_config.json", stand_in_tokenizer_config()),
        ("preprocessor_config.json", processor.to_string().into_bytes()),
    ];
    files.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}

/// The files that go with the weights into a folder.
pub(crate) fn companions(input: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>> {
    let names = if input.format() == Format::Npz { &TOKENIZER[..] } else { &COMPANIONS[..] };
    let mut files = Vec::new();
    let Some(folder) = input.folder() else {
        return Ok(new_companions(input.config(), "tokenizer.model", nano::TOKENIZER.to_vec()));
    };
    for name in names {
        if let Some(bytes) = read_if_there(&folder.join(name))? {
            files.push((name.to_string(), bytes));
        }
    }
    if input.format() == Format::Npz {
        // transformers loads no processor without it; the settings are those of the published folders.
        let vision = &input.config().vision;
        let processor = ProcessorSettings::published(vision.image_size).to_json(vision.num_tokens());
        files.push(("preprocessor_config.json".into(), processor.to_string().into_bytes()));
        let has = |name: &str| files.iter().any(|(n, _)| n == name);
        if has("tokenizer.json") && !has("tokenizer_config.json") {
            // Without it transformers does not know which pieces are BOS and EOS.
            files.push(("tokenizer_config.json".into(), stand_in_tokenizer_config()));
        }
    }
    Ok(files)
}

/// A config.json with all its keys, true for the tensors that are written with it.
fn carried_over(json: &Value, dtype: Option<DType>) -> Value {
    let mut config = json.clone();
    // The tied head and SigLIP's pooling head are not written.
    if config.get("tie_word_embeddings") == Some(&json!(false)) {
        config["tie_word_embeddings"] = json!(true);
    }
    if let Some(vision) = config.get_mut("vision_config").filter(|v| v.is_object()) {
        vision["vision_use_head"] = json!(false);
    }
    if let Some(dtype) = dtype {
        let name = json!(super::config_json::torch_name(dtype));
        for section in ["", "/text_config", "/vision_config"] {
            for key in ["torch_dtype", "dtype"] {
                let found = config.pointer_mut(section).and_then(|s| s.get_mut(key)).filter(|v| !v.is_null());
                if let Some(value) = found {
                    *value = name.clone();
                }
            }
        }
    }
    config
}

fn to_npz(
    input: &Checkpoint,
    out: &Path,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Summary> {
    let mut config = input.config().clone();
    let rows = config.text.vocab_size.min(config.image_token_index);
    if rows == 0 {
        return Err(Error::model("image_token_index is 0, and an npz has no embedding rows from <image> on"));
    }
    let dropped_rows = config.text.vocab_size - rows;
    config.text.vocab_size = rows;
    let targets = targets(input, &config, dtype.map(Form::Plain));
    let mut of_key: Vec<&Target> = targets.iter().collect();
    of_key.sort_by_key(|t| t.named.key);
    for pair in of_key.windows(2) {
        if pair[0].named.key == pair[1].named.key && pair[0].form != pair[1].form {
            return Err(Error::usage(format!(
                "{:?} is {} and {:?} is {}, and an npz stacks both in {:?}",
                pair[0].named.name, pair[0].form, pair[1].named.name, pair[1].form, pair[0].named.key
            ))
            .hint("choose one type for all with --dtype"));
        }
    }
    // The config goes beside the npz only if its tensors alone would be taken for another model.
    let shapes: Vec<(&str, &[usize])> = targets.iter().map(|t| (t.named.key, &t.named.whole[..])).collect();
    let is_told_by_shapes = recognise(&shapes).is_ok_and(|recognised| recognised == config);
    let config_path = sidecar(out).ok_or_else(|| Error::usage("the npz needs a name in UTF-8"))?;
    if config_path.exists() {
        return Err(Error::usage(format!("{} exists already", config_path.display()))
            .hint("it would be taken for the config of the new npz: remove it, or give another name"));
    }
    let tokens = tokens_to_copy(input, out)?;

    let total = num_bytes(&targets);
    let mut files = Vec::new();
    let written = (|| {
        if !is_told_by_shapes {
            write_file(&config_path, |file| file.json(&config.to_json(dtype)))?;
            files.push(config_path.clone());
        }
        for (path, bytes) in &tokens {
            write_file(path, |file| file.bytes(bytes))?;
            files.push(path.clone());
        }
        let is_stopped = Cell::new(false);
        let mut done = 0;
        let mut wrote = |bytes| {
            done += bytes;
            is_stopped.set(is_stopped.get() || progress(done, total).is_break());
        };
        let mut tensor = |target: &Target| {
            check_stopped(&is_stopped)?;
            let tensor = match (input.weight(&target.named.name)?, dtype) {
                (Weight::Plain(tensor), _) => tensor,
                // What was asked for is plain, as this is an npz.
                (quantised, dtype) => dequantise(&quantised, dtype.unwrap_or(DType::F32)),
            };
            let is_cut = tensor.shape()[0] > target.named.shape[0];
            Ok(if is_cut { tensor.rows(0, target.named.shape[0]) } else { tensor })
        };
        write_npz(out, &targets, &mut tensor, &mut wrote)
    })();
    if let Err(e) = written {
        // Without its npz a config or tokenizer beside it would only mislead.
        for file in &files {
            let _ = fs::remove_file(file);
        }
        return Err(e);
    }
    Ok(Summary {
        path: out.to_path_buf(),
        format: Format::Npz,
        num_tensors: targets.len(),
        scheme: None,
        num_bytes: total,
        dropped_rows,
        files,
    })
}

/// The tokenizer files that shall go beside the npz and are not there yet.
fn tokens_to_copy(input: &Checkpoint, npz: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let read = |name: &str| match input.folder() {
        Some(folder) => read_if_there(&folder.join(name)),
        None => Ok((name == "tokenizer.model").then(|| nano::TOKENIZER.to_vec())),
    };
    let sources = TOKENS.map(|name| read(name).map(|bytes| (npz.with_file_name(name), bytes)));
    let sources: Vec<(PathBuf, Option<Vec<u8>>)> = sources.into_iter().collect::<Result<_>>()?;
    let mut missing = Vec::new();
    if sources.iter().all(|(_, bytes)| bytes.is_none()) {
        return Ok(missing);
    }
    for (path, bytes) in sources {
        match (read_if_there(&path)?, bytes) {
            (None, Some(bytes)) => missing.push((path, bytes)),
            (Some(there), bytes) if bytes.as_ref() != Some(&there) => {
                return Err(Error::usage(format!(
                    "{} is of another tokenizer than the checkpoint's",
                    path.display()
                ))
                .hint("the npz would be read with it: write the npz to another folder"));
            }
            _ => {}
        }
    }
    Ok(missing)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}
