//! An open checkpoint: whichever files it lies in, its tensors have one set of names and one layout.

use super::{
    config_json::ConfigFile,
    names::{self, Extra, Named},
    npz::{self, Npz},
    quantised::{self, Form, Scheme},
    recognise::recognise,
    safetensors::{self, Stored},
};
use crate::{Error, Result, config::Config, nano::BuiltIn};
use ::safetensors::Dtype;
use paligemma_tensor::{DType, MappedFile, Tensor, Weight};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The index of a sharded folder names each tensor once; published ones are below a megabyte.
const LONGEST_INDEX: u64 = 16 << 20;

/// What a checkpoint lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face: config.json and one or more safetensors files.
    Safetensors,
    /// big_vision: one npz, perhaps in parts.
    Npz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Npz => "npz",
        })
    }
}

/// A checkpoint whose files were checked whole and whose tensors are exactly those that its model has.
/// Nothing is copied before [`Checkpoint::tensor`] asks for it.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    /// config.json as it stands, where there is one.
    json: Option<Value>,
    path: PathBuf,
    files: Vec<PathBuf>,
    source: Source,
    scheme: Option<Scheme>,
    is_built_in: bool,
    /// In the order in which the model uses them.
    tensors: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
enum Source {
    Safetensors(Vec<Arc<MappedFile>>),
    Npz(Box<Npz>),
}

#[derive(Debug)]
struct Entry {
    named: Named,
    form: Form,
    /// The file of a safetensors tensor or the member of an npz.
    part: usize,
    /// Byte position of the tensor in its file, or of its slice in the member's data.
    offset: usize,
    /// File and byte position of a quantised tensor's scales.
    scale: Option<(usize, usize)>,
}

impl Entry {
    fn num_bytes(&self) -> u64 {
        self.form.num_bytes(&self.named.shape)
    }
}

impl Checkpoint {
    /// Opens a folder (config.json with model.safetensors or the shards of its index), a safetensors file
    /// with config.json beside it, an npz, or the parts of a split one given any part or the whole's name.
    /// Files are recognised by their first bytes. Where there is nothing, `nano-112` and `nano-224` are the models within
    /// this program.
    ///
    /// # Errors
    /// `Kind::Usage` if there is nothing at `path`; `Kind::Io` if it cannot be read; `Kind::Model`, naming
    /// the tensor or the key, if the files are broken, unknown or do not agree with each other.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        if path.is_dir() {
            return Checkpoint::open_folder(path);
        }
        if let Some(parts) = npz::parts(path)? {
            return Checkpoint::open_npz(path, parts);
        }
        let mut start = [0; 16];
        let n = match fs::File::open(path).and_then(|file| read_up_to(file, &mut start)) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some(model) = path.to_str().and_then(BuiltIn::named) {
                    return Checkpoint::open_built_in(path, &model);
                }
                return Err(Error::usage(format!("there is no checkpoint at {}", path.display()))
                    .expected("a folder with config.json and model.safetensors, or an npz file"));
            }
            Err(e) => return Err(Error::io(path, e)),
        };
        if npz::is_likely(&start[..n]) {
            return Checkpoint::open_npz(path, vec![path.to_path_buf()]);
        }
        let is_named_so = path.extension().is_some_and(|e| e == "safetensors");
        if is_named_so || safetensors::is_likely(&start[..n]) {
            let folder = folder_of(path);
            let config = read_config(&folder.join("config.json"))?;
            return Checkpoint::open_safetensors(path, config, vec![path.to_path_buf()], None);
        }
        Err(Error::model("the file is neither safetensors nor npz")
            .at(path.display().to_string())
            .expected("a folder with config.json and model.safetensors, or an npz file")
            .hint(match path.extension().and_then(|e| e.to_str()) {
                Some("json") => "give the folder in which this file lies",
                Some("bin" | "pt" | "pth") => "PyTorch's pickles are never read; use the safetensors files",
                Some("gguf") => "GGUF is not supported; use the safetensors files",
                _ => "the file may be incomplete; download it again",
            }))
    }

    fn open_folder(folder: &Path) -> Result<Checkpoint> {
        let whole = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let has = |path: &Path| path.try_exists().map_err(|e| Error::io(path, e));
        if has(&whole)? {
            let config = read_config(&folder.join("config.json"))?;
            return Checkpoint::open_safetensors(folder, config, vec![whole], None);
        }
        if has(&index)? {
            let config = read_config(&folder.join("config.json"))?;
            let weight_map = read_index(&index).map_err(|e| e.at(index.display().to_string()))?;
            let mut shards: Vec<&String> = weight_map.values().collect();
            shards.sort_unstable();
            shards.dedup();
            let shards = shards.into_iter().map(|name| folder.join(name)).collect();
            return Checkpoint::open_safetensors(folder, config, shards, Some(weight_map));
        }
        let mut others: Vec<String> = folder
            .read_dir()
            .map_err(|e| Error::io(folder, e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.contains(".npz") || name.ends_with(".safetensors") || name.ends_with(".bin"))
            .collect();
        others.sort();
        let error = Error::model("the folder has no checkpoint")
            .at(folder.display().to_string())
            .expected("config.json with model.safetensors or model.safetensors.index.json");
        Err(match others.iter().find(|name| !name.ends_with(".bin")).or(others.first()) {
            Some(name) if name.ends_with(".bin") => {
                error.hint("PyTorch's pickles are never read; use a repository with safetensors files")
            }
            Some(name) => error.hint(format!("to open one file, name it: {}", folder.join(name).display())),
            None => error,
        })
    }

    fn open_built_in(path: &Path, model: &BuiltIn) -> Result<Checkpoint> {
        let map = Arc::new(MappedFile::built_in(model.weights));
        let config = Config::published(model.name)
            .ok_or_else(|| Error::model(format!("no shape is known of {}", model.name)))?;
        let scheme = safetensors::metadata(&map, quantised::METADATA)
            .and_then(|name| [Scheme::Int8, Scheme::Int4].into_iter().find(|scheme| scheme.name() == name));
        let mut json = config.to_json(None);
        if let Some(scheme) = scheme {
            json["quantization_config"] = scheme.to_json();
        }
        let file = ConfigFile { config, has_pooling_head: false, is_tied: true, scheme, json };
        let stored = safetensors::header(&map)?.into_iter().map(|tensor| (0, tensor)).collect::<Vec<_>>();
        let maps = vec![map];
        let tensors = match_safetensors(&file, &stored, &maps)?;
        let source = Source::Safetensors(maps);
        let mut checkpoint =
            Checkpoint::assemble(file.config, Some(file.json), path, vec![], source, tensors);
        checkpoint.scheme = file.scheme;
        checkpoint.is_built_in = true;
        Ok(checkpoint)
    }

    fn open_safetensors(
        path: &Path,
        file: ConfigFile,
        paths: Vec<PathBuf>,
        index: Option<BTreeMap<String, String>>,
    ) -> Result<Checkpoint> {
        let mut maps = Vec::new();
        let mut stored: Vec<(usize, Stored)> = Vec::new();
        for (part, path) in paths.iter().enumerate() {
            let (map, tensors) = safetensors::open(path)?;
            let says = safetensors::metadata(&map, quantised::METADATA);
            if says.as_deref() != file.scheme.map(Scheme::name) {
                let or_none = |name: Option<&str>| name.map_or("none".to_owned(), |name| format!("{name:?}"));
                return Err(Error::model(format!(
                    "{} in the file's metadata is {}",
                    quantised::METADATA,
                    or_none(says.as_deref())
                ))
                .at(path.display().to_string())
                .expected(format!(
                    "{}, as quantization_config in config.json says",
                    or_none(file.scheme.map(Scheme::name))
                ))
                .hint("config.json and the weights are of different conversions"));
            }
            maps.push(map);
            stored.extend(tensors.into_iter().map(|tensor| (part, tensor)));
        }
        if let Some(index) = index {
            let names: HashSet<(&str, Option<&str>)> = stored
                .iter()
                .map(|(part, t)| (t.name.as_str(), paths[*part].file_name().and_then(|n| n.to_str())))
                .collect();
            if let Some((name, shard)) =
                index.iter().find(|(n, s)| !names.contains(&(n.as_str(), Some(s.as_str()))))
            {
                return Err(Error::model(format!(
                    "shard {shard} has no tensor {name:?}, which the index says it has"
                ))
                .at(path.display().to_string())
                .hint("the shards may be of different downloads; download all of them again"));
            }
        }
        let place = path.display().to_string();
        let tensors = match_safetensors(&file, &stored, &maps).map_err(|e| e.at(place))?;
        let source = Source::Safetensors(maps);
        let mut checkpoint = Checkpoint::assemble(file.config, Some(file.json), path, paths, source, tensors);
        checkpoint.scheme = file.scheme;
        Ok(checkpoint)
    }

    fn open_npz(path: &Path, paths: Vec<PathBuf>) -> Result<Checkpoint> {
        let place = path.display().to_string();
        let npz = Npz::open(&paths).map_err(|e| e.at(place.clone()))?;
        let sidecar = sidecar(path).filter(|sidecar| sidecar.exists());
        let file = sidecar.as_deref().map(read_config).transpose()?;
        let (tensors, config) = (|| {
            if let Some(scheme) = file.as_ref().and_then(|file| file.scheme) {
                return Err(Error::model(format!("the config beside the npz says that it is {scheme}"))
                    .expected("plain numbers; no npz is quantised"));
            }
            let config = match &file {
                Some(file) => file.config.clone(),
                None => {
                    let shapes: Vec<(&str, &[usize])> =
                        npz.members.iter().map(|m| (m.key.as_str(), &m.shape[..])).collect();
                    recognise(&shapes)?
                }
            };
            Ok((match_npz(&config, &npz)?, config))
        })()
        .map_err(|e: Error| e.at(place))?;
        let json = file.map(|file| file.json);
        Ok(Checkpoint::assemble(config, json, path, paths, Source::Npz(Box::new(npz)), tensors))
    }

    fn assemble(
        config: Config,
        json: Option<Value>,
        path: &Path,
        files: Vec<PathBuf>,
        source: Source,
        tensors: Vec<Entry>,
    ) -> Checkpoint {
        let by_name = tensors.iter().enumerate().map(|(i, e)| (e.named.name.clone(), i)).collect();
        Checkpoint {
            config,
            json,
            path: path.to_path_buf(),
            files,
            source,
            scheme: None,
            is_built_in: false,
            tensors,
            by_name,
        }
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// config.json, or an npz's sidecar, with all its keys; `None` if the shape was recognised.
    pub(crate) fn json(&self) -> Option<&Value> {
        self.json.as_ref()
    }

    /// What the checkpoint lies in.
    pub fn format(&self) -> Format {
        match self.source {
            Source::Safetensors(_) => Format::Safetensors,
            Source::Npz(_) => Format::Npz,
        }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The folder in which the tokenizer and the processor's settings are looked for; none if the model is within this
    /// program, whose tokenizer is [`crate::nano::TOKENIZER`] and whose settings are the published ones.
    pub fn folder(&self) -> Option<&Path> {
        let folder = if self.path.is_dir() { &self.path } else { folder_of(&self.path) };
        (!self.is_built_in).then_some(folder)
    }

    /// The tensors' names in the order in which the model uses them (see [`names`]).
    pub fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|e| e.named.name.clone()).collect()
    }

    /// How the matrices are quantised, if they are.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// How a tensor is stored.
    pub fn form(&self, name: &str) -> Option<Form> {
        self.by_name.get(name).map(|&i| self.tensors[i].form)
    }

    /// The shape of a tensor, in Hugging Face's layout.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.by_name.get(name).map(|&i| &self.tensors[i].named.shape[..])
    }

    /// The forms in which tensors are stored, with the number of tensors and their bytes, largest first.
    pub fn forms(&self) -> Vec<(Form, usize, u64)> {
        let mut all: Vec<(Form, usize, u64)> = Vec::new();
        for entry in &self.tensors {
            let bytes = entry.num_bytes();
            match all.iter_mut().find(|(form, ..)| *form == entry.form) {
                Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
                None => all.push((entry.form, 1, bytes)),
            }
        }
        all.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        all
    }

    /// Number of parameters; the tied head counts once.
    pub fn num_parameters(&self) -> u64 {
        self.tensors.iter().map(|e| e.named.len() as u64).sum()
    }

    /// Bytes of all tensors as stored, scales included.
    pub fn num_bytes(&self) -> u64 {
        self.forms().iter().map(|(.., bytes)| bytes).sum()
    }

    /// A plain tensor in Hugging Face's layout and in the type in which it is stored. From safetensors it reads
    /// the file in place; from an npz it is copied where its layout differs. An npz is read fastest in the
    /// order of [`Checkpoint::names`], and each of its members is checked against its checksum when first
    /// read (deflated ones where their last tensor is read).
    ///
    /// # Errors
    /// `Kind::Usage` if the model has no such tensor or it is quantised, `Kind::Model` if an npz turns out damaged.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.weight(name)? {
            Weight::Plain(tensor) => Ok(tensor),
            quantised => Err(Error::usage(format!("tensor {name:?} is {}", quantised.type_name()))
                .expected("f32, bf16 or f16")),
        }
    }

    /// A tensor as it is stored, plain as [`Checkpoint::tensor`] gives it or quantised; the file's bytes in place.
    ///
    /// # Errors
    /// `Kind::Usage` if the model has no such tensor, `Kind::Model` if an npz turns out damaged.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let Some(&i) = self.by_name.get(name) else {
            let error = Error::usage(format!("the model has no tensor {name:?}"));
            return Err(match names::nearest(name, self.by_name.keys().map(String::as_str)) {
                Some(near) => error.hint(format!("did you mean {near:?}?")),
                None => error,
            });
        };
        let entry = &self.tensors[i];
        match (&self.source, entry.form, entry.scale, &entry.named.shape[..]) {
            (
                Source::Safetensors(maps),
                Form::Quantised(scheme),
                Some((scale_part, scale_offset)),
                &[n, k],
            ) => {
                let mapped = |part: usize, offset, dtype, shape: &[usize]| {
                    Tensor::from_mapped(&maps[part], offset, dtype, shape)
                };
                let values = scheme.values_shape(n, k).unwrap_or_default();
                let (dtype, shape) = scheme.scale(n, k);
                let scale = mapped(scale_part, scale_offset, dtype, &shape);
                Ok(scheme.weight(&mapped(entry.part, entry.offset, DType::U8, &values), scale))
            }
            (_, Form::Plain(dtype), ..) => self.plain(entry, dtype).map(Weight::Plain),
            (_, Form::Quantised(_), ..) => unreachable!("a quantised tensor is a matrix with scales"),
        }
    }

    fn plain(&self, entry: &Entry, dtype: DType) -> Result<Tensor> {
        let Entry { named, part, offset, .. } = entry;
        match &self.source {
            Source::Safetensors(maps) => Ok(Tensor::from_mapped(&maps[*part], *offset, dtype, &named.shape)),
            Source::Npz(npz) => {
                let bytes = named.len() * dtype.size();
                let at = |e: Error| e.at(self.path.display().to_string());
                let in_place = npz.in_place(*part, *offset as u64, bytes as u64).map_err(at)?;
                let slice = match in_place {
                    Some((file, at)) => Tensor::from_mapped(&file, at, dtype, &named.slice_shape),
                    None => {
                        let bytes = npz.read(*part, *offset as u64, bytes).map_err(at)?;
                        Tensor::from_bytes(&bytes, dtype, &named.slice_shape)
                    }
                };
                Ok(if named.is_in_place() { slice } else { slice.permute(&named.order) }
                    .reshape(&named.shape))
            }
        }
    }

    /// Verifies what a format can verify beyond what opening does: the checksums of all members of an npz.
    ///
    /// # Errors
    /// `Kind::Model` naming the damaged tensor.
    pub fn verify(&self) -> Result<()> {
        match &self.source {
            Source::Safetensors(_) => Ok(()),
            Source::Npz(npz) => npz.verify().map_err(|e| e.at(self.path.display().to_string())),
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where the config of an npz stands when its tensors alone would be taken for another model.
pub(crate) fn sidecar(npz: &Path) -> Option<PathBuf> {
    let name = npz.file_name()?.to_str()?;
    let stem = name.find(".npz.part").map_or(name, |at| &name[..at]);
    Some(npz.with_file_name(format!("{}.config.json", stem.strip_suffix(".npz").unwrap_or(stem))))
}

fn read_up_to(mut file: impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read(&mut buf[n..])? {
            0 => break,
            read => n += read,
        }
    }
    Ok(n)
}

fn read_config(path: &Path) -> Result<ConfigFile> {
    let text = match read_at_most(path, 2 << 20) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::model("the checkpoint has no config.json")
                .at(path.display().to_string())
                .hint("download config.json of the same repository into this folder"));
        }
        Err(e) => return Err(Error::io(path, e)),
    };
    ConfigFile::parse(&text).map_err(|e| e.at(path.display().to_string()))
}

/// A file's bytes, cut after `most` of them; what is too long fails where it is parsed.
fn read_at_most(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// The index of a sharded folder: tensor → shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = read_at_most(path, LONGEST_INDEX).map_err(|e| Error::io(path, e))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::model(format!("the index of shards is wrong: {e}")).because(e))?;
    if index.weight_map.is_empty() {
        return Err(Error::model("the index of shards has an empty \"weight_map\""));
    }
    for shard in index.weight_map.values() {
        let is_plain =
            shard.ends_with(".safetensors") && !shard.contains(['/', '\\', '\0']) && !shard.contains("..");
        if !is_plain {
            return Err(Error::model(format!("the index of shards names {shard:?}"))
                .expected("a .safetensors file in the same folder"));
        }
    }
    Ok(index.weight_map)
}

/// At most this many names in one message.
const SHOWN: usize = 3;

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// The error for tensors that are unknown or missing. Both lists in the order of the files or the model.
fn unknown_or_missing(unknown: &[String], missing: &[String], all: usize) -> Error {
    let error = match (unknown, missing) {
        ([], missing) => Error::model(format!("checkpoint has no tensor {}", listed(missing)))
            .expected(format!("all {all} tensors of the model that config and tensors describe")),
        (unknown, []) => Error::model(format!("checkpoint has unknown tensor {}", listed(unknown)))
            .expected("the tensors of a PaliGemma and no others"),
        (unknown, missing) => Error::model(format!(
            "checkpoint has unknown tensor {} and no tensor {}",
            listed(unknown),
            listed(missing)
        )),
    };
    let is_adapter = |name: &String| name.contains("lora_");
    if unknown.iter().any(is_adapter) {
        return error
            .hint("this is a LoRA adapter or a model that holds one; merge it into its base model first");
    }
    let near = unknown.first().and_then(|name| names::nearest(name, missing.iter().map(String::as_str)));
    match near {
        Some(near) => error.hint(format!("did {:?} mean {near:?}?", unknown[0])),
        None => error,
    }
}

fn wrong_shape(name: &str, found: &[usize], expected: &[usize]) -> Error {
    let error = Error::model(format!("tensor {name:?} has shape {found:?}"))
        .expected(format!("shape {expected:?}, as the config says"));
    match name {
        n if n.contains("embed_tokens") || n.contains("input_embedding") => {
            error.hint("see text_config.vocab_size")
        }
        n if n.contains("pos") && n.contains("embedding") => error.hint("see vision_config.image_size"),
        _ => error,
    }
}

fn match_safetensors(
    file: &ConfigFile,
    stored: &[(usize, Stored)],
    maps: &[Arc<MappedFile>],
) -> Result<Vec<Entry>> {
    let expected = names::tensors(&file.config, names::is_fused(&file.config));
    let known: HashSet<&str> = expected.iter().map(|t| t.name.as_str()).collect();
    let mut found: HashMap<String, &(usize, Stored)> = HashMap::new();
    let mut scales: HashMap<String, &(usize, Stored)> = HashMap::new();
    let (mut unknown, mut heads) = (Vec::new(), Vec::new());
    for tensor in stored {
        let name = &tensor.1.name;
        if let Some(of) = name.strip_suffix(quantised::SCALE).and_then(names::canonical)
            && known.contains(of.as_str())
        {
            if scales.insert(of, tensor).is_some() {
                return Err(Error::model(format!("tensor {name:?} stands twice")));
            }
            continue;
        }
        match names::extra(name) {
            Some(Extra::Buffer) => continue,
            Some(Extra::LmHead) => {
                heads.push(tensor);
                continue;
            }
            Some(Extra::PoolingHead) if file.has_pooling_head => continue,
            _ => {}
        }
        match names::canonical(name).filter(|ours| known.contains(ours.as_str())) {
            None => unknown.push(name.clone()),
            Some(ours) => {
                if let Some((_, other)) = found.insert(ours, tensor) {
                    let error = if other.name == *name {
                        Error::model(format!("tensor {name:?} stands in two files"))
                    } else {
                        Error::model(format!("{name:?} and {:?} are the same tensor", other.name))
                    };
                    return Err(error);
                }
            }
        }
    }
    let missing: Vec<String> =
        expected.iter().filter(|t| !found.contains_key(&t.name)).map(|t| t.name.clone()).collect();
    if !unknown.is_empty() || !missing.is_empty() {
        // The next of kin of an unknown name are ours; say both without the prefixes of a version.
        return Err(unknown_or_missing(&unknown, &missing, expected.len()));
    }
    let mut entries = Vec::with_capacity(expected.len());
    for named in expected {
        let Some((part, tensor)) = found.get(&named.name) else { continue };
        let scale = scales.remove(&named.name);
        let form = form_of(&named, tensor, scale.map(|(_, scale)| scale), file.scheme)?;
        let scale = scale.map(|(part, scale)| (*part, scale.offset));
        entries.push(Entry { named, form, part: *part, offset: tensor.offset, scale });
    }
    if let Some(scheme) = file.scheme
        && !entries.iter().any(|e| matches!(e.form, Form::Quantised(_)))
    {
        return Err(Error::model(format!("quantization_config says {scheme}, and no tensor is quantised")));
    }
    let table = entries.iter().find(|e| e.named.name == "language_model.embed_tokens.weight");
    for (part, head) in &heads {
        let table = table.and_then(|e| match e.form {
            Form::Plain(dtype) => Some((&maps[e.part][e.offset..][..e.named.len() * dtype.size()], dtype)),
            Form::Quantised(_) => None,
        });
        let head_bytes = head.dtype().map(|dtype| (&maps[*part][head.offset..][..head.len], dtype));
        let is_tied = table.is_some() && table == head_bytes;
        if !is_tied {
            return Err(Error::model(format!("the output head {:?} is not the embedding table", head.name))
                .expected("a head tied to language_model.embed_tokens.weight, as PaliGemma has")
                .hint("models whose head was trained apart are not supported"));
        }
    }
    if !file.is_tied && heads.is_empty() {
        return Err(Error::model("tie_word_embeddings is false and the checkpoint has no lm_head.weight"));
    }
    Ok(entries)
}

/// How `tensor` stands in the file, if it stands there as `scheme` allows.
fn form_of(named: &Named, tensor: &Stored, scale: Option<&Stored>, scheme: Option<Scheme>) -> Result<Form> {
    let name = &tensor.name;
    let (scheme, n, k) = match (tensor.dtype(), scheme, &named.shape[..]) {
        (Some(_), ..) if scale.is_some() => {
            return Err(Error::model(format!("tensor {name:?} is {:?} and has a scale", tensor.stored_as))
                .expected("no scale beside plain numbers"));
        }
        (Some(_), ..) if tensor.shape != named.shape => {
            return Err(wrong_shape(name, &tensor.shape, &named.shape));
        }
        (Some(dtype), ..) => return Ok(Form::Plain(dtype)),
        (None, Some(scheme), &[n, k])
            if tensor.stored_as == Dtype::U8 && quantised::is_quantisable(named) =>
        {
            (scheme, n, k)
        }
        _ => {
            return Err(Error::model(format!("tensor {name:?} is of type {:?}", tensor.stored_as))
                .expected("F32, BF16 or F16")
                .hint(match scheme {
                    Some(_) => "only matrices are quantised, and only in bytes",
                    None => "quantised files of other programs are not supported; use the bfloat16 or float32 weights",
                }));
        }
    };
    let schemes = match scheme {
        Scheme::Int8 => &[Scheme::Int8][..],
        Scheme::Int4 => &[Scheme::Int4, Scheme::Int8],
    };
    let shapes = schemes.iter().filter_map(|scheme| Some((*scheme, scheme.values_shape(n, k)?)));
    let Some((scheme, _)) = shapes.clone().find(|(_, shape)| *shape == tensor.shape) else {
        let all: Vec<String> = shapes.map(|(scheme, shape)| format!("{shape:?} for {scheme}")).collect();
        return Err(Error::model(format!("quantised tensor {name:?} has shape {:?}", tensor.shape))
            .expected(format!("{}, as the config says", all.join(" or "))));
    };
    let Some(scale) = scale else {
        return Err(Error::model(format!("quantised tensor {name:?} has no scale"))
            .expected(format!("a tensor {:?}", format!("{name}{}", quantised::SCALE))));
    };
    let (dtype, shape) = scheme.scale(n, k);
    if scale.dtype() != Some(dtype) || scale.shape != shape {
        let (stored_as, found) = (scale.stored_as, &scale.shape);
        return Err(Error::model(format!("scale {:?} is {stored_as:?} of shape {found:?}", scale.name))
            .expected(format!("{} of shape {shape:?}, as {scheme} has it", dtype.name().to_uppercase())));
    }
    Ok(Form::Quantised(scheme))
}

fn match_npz(config: &Config, npz: &Npz) -> Result<Vec<Entry>> {
    // big_vision fuses exactly when the numbers of heads are equal; a file that does not is understood too.
    let is_fused = npz.members.iter().any(|m| m.key == "llm/layers/attn/qkv_einsum/w");
    let expected = names::tensors(config, is_fused);
    let known: HashSet<&str> = expected.iter().map(|t| t.key).collect();
    let mut found: HashMap<&str, usize> = HashMap::new();
    let mut unknown = Vec::new();
    for (i, member) in npz.members.iter().enumerate() {
        if !known.contains(member.key.as_str()) {
            unknown.push(member.key.clone());
        } else if found.insert(&member.key, i).is_some() {
            return Err(Error::model(format!("npz has {:?} with and without \"params/\"", member.key)));
        }
    }
    let mut missing: Vec<String> =
        expected.iter().filter(|t| !found.contains_key(t.key)).map(|t| t.key.to_string()).collect();
    missing.dedup();
    if !unknown.is_empty() || !missing.is_empty() {
        return Err(unknown_or_missing(&unknown, &missing, known.len()));
    }
    let mut entries = Vec::with_capacity(expected.len());
    for named in expected {
        let Some(&part) = found.get(named.key) else { continue };
        let member = &npz.members[part];
        if member.shape != named.whole {
            return Err(wrong_shape(named.key, &member.shape, &named.whole));
        }
        let offset = named.slice * named.len() * member.dtype.size();
        entries.push(Entry { named, form: Form::Plain(member.dtype), part, offset, scale: None });
    }
    Ok(entries)
}
