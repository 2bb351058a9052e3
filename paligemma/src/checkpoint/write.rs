//! Writing checkpoints. A file or folder appears under its name whole or not at all: it is written beside
//! it as `NAME.unfinished`, synced, then renamed. Nothing that exists is overwritten.

use super::{
    disk::check_space,
    names::{self, Named},
    quantised::{self, Form, Scheme, row_blocks},
};
use crate::{Error, Result, config::Config};
use paligemma_tensor::{DType, Tensor, Weight};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Hugging Face cuts larger checkpoints into shards of at most this many bytes.
const SHARD_BYTES: u64 = 5_000_000_000;
/// Tensors are cast this many elements at a time.
const CAST_ELEMENTS: usize = 1 << 20;

/// A tensor to be written and the form in which it shall stand.
pub(crate) struct Target {
    pub(crate) named: Named,
    pub(crate) form: Form,
}

impl Target {
    pub(crate) fn len(&self) -> u64 {
        self.form.num_bytes(&self.named.shape)
    }

    /// What stands in the file for it, in order: name, type, shape.
    fn parts(&self) -> Vec<(String, DType, Vec<usize>)> {
        let name = names::hugging_face(&self.named.name);
        match (self.form, &self.named.shape[..]) {
            (Form::Quantised(scheme), &[n, k]) => {
                let (dtype, shape) = scheme.scale(n, k);
                let scale = (format!("{name}{}", quantised::SCALE), dtype, shape);
                vec![(name, DType::U8, scheme.values_shape(n, k).unwrap_or_default()), scale]
            }
            (Form::Plain(dtype), shape) => vec![(name, dtype, shape.to_vec())],
            (Form::Quantised(_), _) => unreachable!("only matrices are quantised"),
        }
    }
}

/// Writes a Hugging Face folder: config.json, the tensors of `config` in `form` (with a scheme, what it does not take
/// in bf16), and `files` beside them. `tensor` gives each tensor by its name and shape, in the order in which it is written; one is held at a time.
///
/// # Errors
/// `Kind::Usage` if `folder` exists and is not empty; `Kind::Io` or `Kind::Resource` from writing; what
/// `tensor` returns.
pub fn write_folder(
    config: &Config,
    folder: &Path,
    form: impl Into<Form>,
    files: &[(String, Vec<u8>)],
    tensor: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<()> {
    config.check()?;
    let form = form.into();
    let scheme = match form {
        Form::Plain(_) => None,
        Form::Quantised(scheme) => Some(scheme),
    };
    let targets: Vec<Target> = names::tensors(config, names::is_fused(config))
        .into_iter()
        .map(|named| Target { form: form.of(&named), named })
        .collect();
    let mut json = config.to_json(Some(form.plain()));
    if let Some(scheme) = scheme {
        json["quantization_config"] = scheme.to_json();
    }
    let mut of_target = |target: &Target| tensor(&target.named.name, &target.named.shape).map(Weight::Plain);
    write_safetensors(folder, &json, scheme, targets, files, &mut of_target, &mut |_| ())
}

/// Writes a Hugging Face folder. `scheme` is what `config` says. `wrote` is told how many bytes of tensors were written
/// since its last call.
pub(crate) fn write_safetensors(
    folder: &Path,
    config: &Value,
    scheme: Option<Scheme>,
    mut targets: Vec<Target>,
    files: &[(String, Vec<u8>)],
    weight: &mut dyn FnMut(&Target) -> Result<Weight>,
    wrote: &mut dyn FnMut(u64),
) -> Result<()> {
    // Wide elements first, as the safetensors crate does: every plain tensor is then aligned for its type. A matrix
    // and its scales go last and stay together, so that each is quantised once; scales that the bytes of a matrix of
    // odd size leave unaligned are copied where they are read.
    targets.sort_by_key(|t| match t.form {
        Form::Plain(dtype) => std::cmp::Reverse(dtype.size()),
        Form::Quantised(_) => std::cmp::Reverse(0),
    });
    let shards = shards(targets);
    let staged = StagedFolder::create(folder, files)?;
    check_space(folder, shards.iter().flatten().map(Target::len).sum(), "the checkpoint")?;
    let (mut weight_map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        for target in shard {
            for (name, ..) in target.parts() {
                weight_map.insert(name, json!(file));
            }
            total += target.len();
        }
        staged.write(&file, |out| {
            out.bytes(&header(shard, scheme))?;
            for target in shard {
                out.weight(&weight(target)?, target, wrote)?;
            }
            Ok(())
        })?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        staged.write("model.safetensors.index.json", |out| out.json(&index))?;
    }
    for (name, bytes) in files {
        staged.write(name, |out| out.bytes(bytes))?;
    }
    staged.write("config.json", |out| out.json(config))?;
    staged.finish()
}

fn shards(targets: Vec<Target>) -> Vec<Vec<Target>> {
    let mut shards: Vec<Vec<Target>> = Vec::new();
    let mut room = 0;
    for target in targets {
        match shards.last_mut().filter(|_| target.len() <= room) {
            Some(shard) => {
                room -= target.len();
                shard.push(target);
            }
            None => {
                room = SHARD_BYTES.saturating_sub(target.len());
                shards.push(vec![target]);
            }
        }
    }
    shards
}

/// The header of a safetensors file, padded so that the data behind it is aligned.
fn header(shard: &[Target], scheme: Option<Scheme>) -> Vec<u8> {
    let mut metadata = json!({ "format": "pt" });
    if let Some(scheme) = scheme {
        metadata[quantised::METADATA] = json!(scheme.name());
    }
    let parts: Vec<_> = shard.iter().flat_map(Target::parts).collect();
    header_of(metadata, parts.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, &shape[..])))
}

/// The header of a safetensors file of these tensors, in this order, without its quantisation.
pub(crate) fn safetensors_header<'a>(
    tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>,
) -> Vec<u8> {
    header_of(json!({ "format": "pt" }), tensors)
}

fn header_of<'a>(metadata: Value, tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>) -> Vec<u8> {
    let mut all = Map::new();
    all.insert("__metadata__".into(), metadata);
    let mut at = 0;
    for (name, dtype, shape) in tensors {
        let end = at + shape.iter().product::<usize>() * dtype.size();
        let info = json!({ "dtype": dtype.name().to_uppercase(), "shape": shape, "data_offsets": [at, end] });
        all.insert(name.to_owned(), info);
        at = end;
    }
    let mut text = Value::Object(all).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// A safetensors file of a few tensors of one type.
pub(crate) fn safetensors_bytes(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut bytes = safetensors_header(tensors.iter().map(|(name, x)| (name.as_str(), x.dtype(), x.shape())));
    tensors.iter().for_each(|(_, x)| bytes.extend_from_slice(x.bytes()));
    bytes
}

/// Writes a new folder of these files, whole or not at all.
pub(crate) fn write_files(folder: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    check_is_free(folder)?;
    check_space(folder, files.iter().map(|(_, bytes)| bytes.len() as u64).sum(), "the folder")?;
    let temporary = unfinished(folder);
    let io = |e| Error::io(&temporary, e);
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(io)?;
    }
    fs::create_dir_all(&temporary).map_err(io)?;
    let written = files.iter().try_for_each(|(name, bytes)| {
        let mut file = File::create_new(temporary.join(name))?;
        file.write_all(bytes).and_then(|()| file.sync_all())
    });
    let written = written.map_err(io).and_then(|()| {
        check_is_free(folder)?;
        sync_parent(&temporary.join("any"));
        fs::rename(&temporary, folder).map_err(|e| Error::io(folder, e))
    });
    match written {
        Ok(()) => sync_parent(folder),
        Err(error) => {
            // The error that led here is the one to report.
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
    }
    Ok(())
}

/// Writes an npz as big_vision has it: `params/` keys, layers stacked, members stored. All targets of one
/// key have one type, and none is quantised.
pub(crate) fn write_npz(
    path: &Path,
    targets: &[Target],
    tensor: &mut dyn FnMut(&Target) -> Result<Tensor>,
    wrote: &mut dyn FnMut(u64),
) -> Result<()> {
    // The slices of a key in their order: they stand behind each other in the stacked tensor.
    let mut sorted: Vec<&Target> = targets.iter().collect();
    sorted.sort_by_key(|t| (t.named.key, t.named.slice));
    write_file(path, |out| {
        check_space(path, targets.iter().map(Target::len).sum(), "the npz")?;
        let place = out.path.to_path_buf();
        let broken = |e: zip::result::ZipError| Error::io(&place, io::Error::from(e));
        let mut zip = zip::ZipWriter::new(out.file.try_clone().map_err(|e| Error::io(&place, e))?);
        for slices in sorted.chunk_by(|a, b| a.named.key == b.named.key) {
            let whole = &slices[0].named.whole;
            let Form::Plain(dtype) = slices[0].form else { unreachable!("no npz is quantised") };
            let header = npy_header(dtype, whole);
            let size = header.len() as u64 + slices.iter().map(|t| t.len()).sum::<u64>();
            let options = zip::write::SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Stored)
                .large_file(size >= u64::from(u32::MAX))
                // The data is read in place from a file map, and npy headers are multiples of 64 too.
                .with_alignment(64);
            zip.start_file(format!("params/{}.npy", slices[0].named.key), options).map_err(broken)?;
            let mut member = Out { file: BufWriter::with_capacity(1 << 20, &mut zip), path: &place };
            member.bytes(&header)?;
            for target in slices {
                let ours = tensor(target)?;
                let theirs =
                    if target.named.is_in_place() { ours } else { to_big_vision(&ours, &target.named) };
                member.tensor(&theirs, dtype, target, wrote)?;
            }
            member.file.flush().map_err(|e| Error::io(&place, e))?;
        }
        zip.finish().map_err(broken)?.flush().map_err(|e| Error::io(&place, e))
    })
}

/// A tensor of ours in the layout of its slice in big_vision's: the reverse of what reading does.
fn to_big_vision(ours: &Tensor, named: &Named) -> Tensor {
    let apart: Vec<usize> = named.order.iter().map(|&axis| named.slice_shape[axis]).collect();
    let mut back = vec![0; apart.len()];
    for (to, &from) in named.order.iter().enumerate() {
        back[from] = to;
    }
    ours.reshape(&apart).permute(&back)
}

/// The bytes before an npy array's data, as numpy writes them (bfloat16 as ml_dtypes makes it).
fn npy_header(dtype: DType, shape: &[usize]) -> Vec<u8> {
    let descr = match dtype {
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::BF16 => "<V2",
        DType::U8 => "|u1",
    };
    let shape = match shape {
        [one] => format!("({one},)"),
        many => format!("({})", many.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(padded - text.len() - 1));
    text.push('\n');
    // Eight dimensions below a million fit in two bytes of length many times over.
    [b"\x93NUMPY\x01\x00", &(padded as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A file being written, and its name for errors.
pub(crate) struct Out<'a, W> {
    file: W,
    path: &'a Path,
}

impl<W: Write> Out<'_, W> {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(self.path, e))
    }

    pub(crate) fn json(&mut self, value: &Value) -> Result<()> {
        self.bytes(format!("{value:#}\n").as_bytes())
    }

    fn weight(&mut self, weight: &Weight, target: &Target, wrote: &mut dyn FnMut(u64)) -> Result<()> {
        let [n, k] = match (weight, target.form) {
            (Weight::Plain(tensor), Form::Plain(dtype)) => return self.tensor(tensor, dtype, target, wrote),
            _ => weight.shape(),
        };
        let name = &target.named.name;
        // Scales stand behind the bytes of all rows; there are few of them.
        let mut scales = Vec::new();
        for (from, to) in row_blocks(n, k) {
            let rows = weight.rows(from, to);
            let plain = |rows: &Weight| match rows {
                Weight::Plain(tensor) => tensor.clone(),
                quantised => quantised.to_f32(),
            };
            let rows = match target.form {
                Form::Plain(dtype) => {
                    self.tensor(&plain(&rows), dtype, target, wrote)?;
                    continue;
                }
                Form::Quantised(scheme) if rows.type_name() == scheme.name() => rows,
                Form::Quantised(scheme) => {
                    let plain = plain(&rows);
                    if let Some(x) = plain.to_f32_vec().iter().find(|x| !x.is_finite()) {
                        return Err(Error::model(format!(
                            "tensor {name:?} holds {x}, which {scheme} cannot"
                        ))
                        .expected("finite numbers"));
                    }
                    scheme.quantise(&plain)
                }
            };
            if let [values, scale] = rows.parts()[..] {
                self.bytes(values.bytes())?;
                wrote(values.bytes().len() as u64);
                scales.extend_from_slice(scale.bytes());
            }
        }
        self.bytes(&scales)?;
        wrote(scales.len() as u64);
        Ok(())
    }

    fn tensor(
        &mut self,
        tensor: &Tensor,
        dtype: DType,
        target: &Target,
        wrote: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let flat = tensor.reshape(&[tensor.len()]);
        for from in (0..flat.len()).step_by(CAST_ELEMENTS) {
            let part = flat.rows(from, flat.len().min(from + CAST_ELEMENTS));
            let cast = part.cast(dtype);
            if dtype == DType::F16 && part.dtype() != DType::F16 {
                check_range(&part, &cast, &target.named.name)?;
            }
            self.bytes(cast.bytes())?;
            wrote(cast.bytes().len() as u64);
        }
        Ok(())
    }
}

/// Refuses finite numbers that f16 would turn into infinity.
fn check_range(wide: &Tensor, narrow: &Tensor, name: &str) -> Result<()> {
    for (x, y) in wide.to_f32_vec().into_iter().zip(narrow.as_f16()) {
        if x.is_finite() && y.is_infinite() {
            return Err(Error::usage(format!("tensor {name:?} holds {x}, which f16 cannot"))
                .expected("numbers up to 65504")
                .hint("use bf16 instead"));
        }
    }
    Ok(())
}

/// Writes a new file whole or not at all.
pub(crate) fn write_file(path: &Path, fill: impl FnOnce(&mut Out<'_, &File>) -> Result<()>) -> Result<()> {
    check_is_free(path)?;
    create_parent(path)?;
    let unfinished = Unfinished::lock(unfinished(path), path)?;
    fill(&mut Out { file: &unfinished.file, path: &unfinished.path })?;
    unfinished.file.sync_all().map_err(|e| Error::io(&unfinished.path, e))?;
    unfinished.rename(path)
}

/// Writes a new file of `bytes`, whole or not at all: beside its name, synced, then renamed.
///
/// # Errors
/// `Kind::Usage` if something of that name exists, or another run is writing it; `Kind::Io` or `Kind::Resource` from
/// writing.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |out| out.bytes(bytes))
}

/// `out` does not exist, or is an empty folder.
///
/// # Errors
/// `Kind::Usage` otherwise.
pub(crate) fn check_is_free(out: &Path) -> Result<()> {
    let is_free = match out.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(e) => return Err(Error::io(out, e)),
        Ok(data) => data.is_dir() && out.read_dir().is_ok_and(|mut entries| entries.next().is_none()),
    };
    if is_free {
        return Ok(());
    }
    Err(Error::usage(format!("{} exists already", out.display()))
        .hint("nothing is overwritten: give a new name, or remove it first"))
}

fn create_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| Error::io(parent, e)),
        None => Ok(()),
    }
}

fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".unfinished");
    path.with_file_name(name)
}

/// Makes a rename in the folder of `path` last through a power cut, where the system can.
fn sync_parent(path: &Path) {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Not every system opens folders; the rename itself is done, so there is nothing to report.
    let _ = File::open(parent).and_then(|folder| folder.sync_all());
}

/// A locked temporary file that is removed unless it is renamed. A killed run leaves it, unlocked, and the
/// next run to the same name begins it anew.
struct Unfinished {
    path: PathBuf,
    file: File,
    is_done: bool,
}

impl Unfinished {
    fn lock(path: PathBuf, of: &Path) -> Result<Unfinished> {
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            // Some network file systems have no locks; two runs to one name at once are then the user's care.
            Ok(()) | Err(fs::TryLockError::Error(_)) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::usage(format!("another run is writing {}", of.display()))
                    .hint("wait for it, or give another name"));
            }
        }
        file.set_len(0).map_err(|e| Error::io(&path, e))?;
        Ok(Unfinished { path, file, is_done: false })
    }

    fn rename(mut self, to: &Path) -> Result<()> {
        check_is_free(to)?;
        fs::rename(&self.path, to).map_err(|e| Error::io(to, e))?;
        self.is_done = true;
        sync_parent(to);
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_done {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A folder being written beside its name, and removed unless it is finished. Its config.json is the lock.
struct StagedFolder {
    target: PathBuf,
    temporary: PathBuf,
    config: Option<Unfinished>,
}

impl StagedFolder {
    fn create(target: &Path, files: &[(String, Vec<u8>)]) -> Result<StagedFolder> {
        check_is_free(target)?;
        let temporary = unfinished(target);
        fs::create_dir_all(&temporary).map_err(|e| Error::io(&temporary, e))?;
        // What a killed run left is written anew; what is not ours is not touched.
        for entry in temporary.read_dir().map_err(|e| Error::io(&temporary, e))? {
            let name = entry.map_err(|e| Error::io(&temporary, e))?.file_name();
            let name = name.to_string_lossy();
            let is_ours =
                name.starts_with("model") || name == "config.json" || files.iter().any(|(n, _)| *n == name);
            if !is_ours {
                return Err(Error::usage(format!("{} is in the way", temporary.join(&*name).display()))
                    .hint("remove that folder, or give another name"));
            }
        }
        let config = Unfinished::lock(temporary.join("config.json"), target)?;
        for entry in temporary.read_dir().map_err(|e| Error::io(&temporary, e))? {
            let path = entry.map_err(|e| Error::io(&temporary, e))?.path();
            if path != config.path {
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        Ok(StagedFolder { target: target.to_path_buf(), temporary, config: Some(config) })
    }

    fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut Out<'_, BufWriter<&File>>) -> Result<()>,
    ) -> Result<()> {
        let path = self.temporary.join(name);
        let failed = |e| Error::io(&path, e);
        let created;
        let file = match &self.config {
            Some(config) if config.path == path => &config.file,
            _ => {
                created = File::create_new(&path).map_err(failed)?;
                &created
            }
        };
        let mut out = Out { file: BufWriter::with_capacity(1 << 20, file), path: &path };
        fill(&mut out)?;
        out.file.flush().map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    fn finish(mut self) -> Result<()> {
        check_is_free(&self.target)?;
        sync_parent(&self.temporary.join("config.json"));
        fs::rename(&self.temporary, &self.target).map_err(|e| Error::io(&self.target, e))?;
        if let Some(config) = &mut self.config {
            config.is_done = true;
        }
        self.config = None;
        sync_parent(&self.target);
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // Only files of ours are in it; the lock goes last.
        if let Some(config) = self.config.take() {
            for entry in self.temporary.read_dir().into_iter().flatten().flatten() {
                if entry.path() != config.path {
                    let _ = fs::remove_file(entry.path());
                }
            }
            drop(config);
            let _ = fs::remove_dir(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_all_tensors_in_order_and_stay_below_the_limit() {
        for (name, dtype, expected) in [
            ("3b-224", DType::BF16, 2),
            ("2-3b-224", DType::F32, 3),
            ("2-28b-224", DType::BF16, 12),
            ("tiny", DType::F32, 1),
        ] {
            let all = names::tensors(&Config::published(name).unwrap(), false);
            let targets =
                all.iter().map(|named| Target { named: named.clone(), form: dtype.into() }).collect();
            let shards = shards(targets);
            assert_eq!(shards.len(), expected, "{name}");
            assert!(shards.iter().flatten().map(|t| &t.named).eq(&all), "{name}");
            for shard in &shards {
                let bytes: u64 = shard.iter().map(Target::len).sum();
                assert!(bytes <= SHARD_BYTES, "{name}: {bytes}");
                let header = header(shard, None);
                assert_eq!(header.len() % 8, 0);
            }
        }
    }

    #[test]
    fn npy_headers_are_numpys() {
        // Printed by numpy 2.4.6: numpy.save of zeros of shape (2, 3) and (), bfloat16 of ml_dtypes 0.6.0.
        let start = b"\x93NUMPY\x01\x00v\x00{'descr': '<V2', 'fortran_order': False, 'shape': (2, 3), } ";
        let header = npy_header(DType::BF16, &[2, 3]);
        assert!(header.starts_with(start) && header.len() == 128 && header.ends_with(b" \n"));
        let start = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (), } ";
        assert!(npy_header(DType::F32, &[]).starts_with(start));
        assert!(npy_header(DType::F16, &[7]).windows(14).any(|w| w == b"'shape': (7,),"));
    }
}
