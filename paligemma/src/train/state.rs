//! Saved states of a run: written whole or not at all, checked when read, pruned by count.
//!
//! `state/step-000500/` holds `weights.safetensors` (what learns), `optimiser.safetensors` and `manifest.json` with the
//! size and SHA-256 of both. A state is made as `step-000500.tmp`; its files are synced, then its name. What is killed in
//! between leaves a `.tmp`, which the next run removes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use paligemma_tensor::{DType, Tensor};
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value, json};

use crate::checkpoint::{NamedTensors, check_space, safetensors_header};
use crate::{Error, Kind, Result};

const WEIGHTS: &str = "weights.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const MANIFEST: &str = "manifest.json";
const FORMAT: u64 = 1;
/// The manifest's hash of itself without this key.
const OWN_HASH: &str = "sha256";

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// Steps that are done.
    pub step: u64,
    /// Draws that are used up.
    pub draws: u64,
    /// Examples that were left out.
    pub skipped: u64,
}

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// A tensor under a name.
    pub(super) fn of(name: &str, tensor: &'a Tensor) -> Part<'a> {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Part { name: name.to_owned(), dtype, shape, bytes: tensor.bytes() }
    }
}

/// A saved state that is whole.
#[derive(Debug)]
pub(super) struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// How far the run had come.
    pub position: Position,
    /// What learns.
    pub weights: NamedTensors,
    /// What the optimiser keeps.
    pub optimiser: NamedTensors,
}

/// The calls to the operating system; in tests each of them can be made to fail.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) failing: Option<tests::Failing>,
}

impl Disk {
    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests have another")]
    fn call(&self) -> io::Result<()> {
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        fs::create_dir_all(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.call()?;
        File::create(path)
    }

    fn write(&self, file: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.call() {
            // What fails may have written a part.
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.call()?;
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        // Not every system opens folders.
        File::open(path).map_or(Ok(()), |folder| folder.sync_all())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        fs::remove_dir_all(path)
    }
}

/// Saves a state under `root` and prunes older ones, so that `keep` are left → its folder.
///
/// # Errors
/// `Kind::Resource`: no room. `Kind::Io`: a call failed. The states that were there before are then as they were.
pub(super) fn save(
    disk: &Disk,
    root: &Path,
    position: &Position,
    weights: &[Part<'_>],
    optimiser: &[Part<'_>],
    keep: usize,
) -> Result<PathBuf> {
    let target = root.join(name(position.step));
    if target.exists() {
        // A run that goes on from here has nothing to add.
        if check(&target).is_ok() {
            return Ok(target);
        }
        disk.remove_dir(&target).map_err(|e| Error::io(&target, e))?;
    }
    let temporary = root.join(format!("{}.tmp", name(position.step)));
    let written = write(disk, root, &temporary, &target, position, weights, optimiser);
    if let Err(error) = written {
        // Best effort: the error that matters is the first, and what stays is removed by the next run.
        let _ = fs::remove_dir_all(&temporary);
        return Err(error);
    }
    prune(disk, root, keep)?;
    Ok(target)
}

fn write(
    disk: &Disk,
    root: &Path,
    temporary: &Path,
    target: &Path,
    position: &Position,
    weights: &[Part<'_>],
    optimiser: &[Part<'_>],
) -> Result<()> {
    let bytes = |parts: &[Part<'_>]| parts.iter().map(|part| part.bytes.len() as u64 + 256).sum::<u64>();
    disk.create_dir(root).map_err(|e| Error::io(root, e))?;
    check_space(root, bytes(weights) + bytes(optimiser) + 4096, "the state of the run")?;
    if temporary.exists() {
        disk.remove_dir(temporary).map_err(|e| Error::io(temporary, e))?;
    }
    disk.create_dir(temporary).map_err(|e| Error::io(temporary, e))?;
    let mut files = Map::new();
    for (file, parts) in [(WEIGHTS, weights), (OPTIMISER, optimiser)] {
        let path = temporary.join(file);
        let (len, hash) = write_tensors(disk, &path, parts).map_err(|e| Error::io(&path, e))?;
        files.insert(file.into(), json!({ "bytes": len, "sha256": hash }));
    }
    let mut manifest = json!({
        "format": FORMAT,
        "step": position.step,
        "draws": position.draws,
        "skipped": position.skipped,
        "program": concat!("paligemma ", env!("CARGO_PKG_VERSION")),
        "files": files,
    });
    manifest[OWN_HASH] = json!(own_hash(&manifest));
    let path = temporary.join(MANIFEST);
    let written = (|| {
        let mut file = disk.create(&path)?;
        disk.write(&mut file, format!("{manifest:#}\n").as_bytes())?;
        disk.sync(&file)?;
        disk.sync_dir(temporary)
    })();
    written.map_err(|e| Error::io(&path, e))?;
    disk.rename(temporary, target).and_then(|()| disk.sync_dir(root)).map_err(|e| Error::io(target, e))
}

/// → the size and the SHA-256 of what was written.
fn write_tensors(disk: &Disk, path: &Path, parts: &[Part<'_>]) -> io::Result<(u64, String)> {
    const PIECE: usize = 16 << 20;
    let mut out = BufWriter::with_capacity(1 << 20, disk.create(path)?);
    let mut hash = Context::new(&SHA256);
    let header =
        safetensors_header(parts.iter().map(|part| (part.name.as_str(), part.dtype, &part.shape[..])));
    let mut len = 0;
    for bytes in std::iter::once(&header[..]).chain(parts.iter().map(|part| part.bytes)) {
        for piece in bytes.chunks(PIECE) {
            disk.write(&mut out, piece)?;
            hash.update(piece);
            len += piece.len() as u64;
        }
    }
    out.flush()?;
    disk.sync(out.get_ref())?;
    Ok((len, hex(hash.finish().as_ref())))
}

fn own_hash(manifest: &Value) -> String {
    let mut rest = manifest.clone();
    if let Some(keys) = rest.as_object_mut() {
        keys.shift_remove(OWN_HASH);
    }
    hex(ring::digest::digest(&SHA256, rest.to_string().as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `step-000500`
fn name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The states under `root`, whole or not, newest first.
fn states(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(root, error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(root, e))?.path();
        let step =
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step.filter(|&step| path.ends_with(name(step))) {
            all.push((step, path));
        }
    }
    all.sort_unstable_by(|a, b| b.cmp(a));
    Ok(all)
}

/// Removes all but the newest `keep`.
fn prune(disk: &Disk, root: &Path, keep: usize) -> Result<()> {
    for (_, path) in states(root)?.into_iter().skip(keep) {
        // Without its manifest it is no state, however much of it a killed run leaves.
        let removed = disk.remove_file(&path.join(MANIFEST)).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
        removed.and_then(|()| disk.remove_dir(&path)).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

/// Removes what a killed run left half written.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn clean(root: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("step-") && name.ends_with(".tmp") {
            fs::remove_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// The newest state under `root` that is whole; none where there is none at all. `damaged` hears of each that is not.
///
/// # Errors
/// `Kind::Model` if there are states and none is whole.
pub(super) fn latest(root: &Path, damaged: &mut dyn FnMut(&Error)) -> Result<Option<Saved>> {
    let mut last = None;
    for (_, path) in states(root)? {
        match open(&path) {
            Ok(saved) => return Ok(Some(saved)),
            Err(error) => {
                damaged(&error);
                last = Some(error);
            }
        }
    }
    match last {
        None => Ok(None),
        Some(error) => Err(Error::model("no saved state of the run is whole")
            .at(root.display().to_string())
            .hint("restore one from a copy, or begin anew in another folder with out=…")
            .because(error)),
    }
}

fn open(path: &Path) -> Result<Saved> {
    let position = check(path)?;
    let tensors = |file: &str| NamedTensors::open(&path.join(file));
    Ok(Saved {
        path: path.to_path_buf(),
        position,
        weights: tensors(WEIGHTS)?,
        optimiser: tensors(OPTIMISER)?,
    })
}

/// Reads every byte of a state and compares it with the manifest.
///
/// # Errors
/// `Kind::Model`: what is missing, cut off or changed.
pub(super) fn check(path: &Path) -> Result<Position> {
    let place = path.display().to_string();
    let damaged = |what: String| Error::model(what).at(place.clone());
    let manifest = path.join(MANIFEST);
    let text = match fs::metadata(&manifest) {
        Ok(data) if data.len() > 1 << 20 => return Err(damaged("the state's manifest is too large".into())),
        Ok(_) => fs::read(&manifest).map_err(|e| Error::io(&manifest, e))?,
        Err(_) => return Err(damaged("the state has no manifest".into())),
    };
    let json: Value = serde_json::from_slice(&text)
        .map_err(|e| damaged(format!("the state's manifest is no JSON: {e}")))?;
    if json.get(OWN_HASH).and_then(Value::as_str) != Some(&own_hash(&json)) {
        return Err(damaged("the state's manifest has changed since it was written".into()));
    }
    let number = |key: &str| {
        json.get(key)
            .and_then(Value::as_u64)
            .ok_or_else(|| damaged(format!("the state's manifest has no {key}")))
    };
    if number("format")? != FORMAT {
        return Err(damaged("the state is of another version of this program".into()));
    }
    let position = Position { step: number("step")?, draws: number("draws")?, skipped: number("skipped")? };
    if !path.ends_with(name(position.step)) {
        return Err(damaged(format!("the state is that of step {}", position.step)));
    }
    for file in [WEIGHTS, OPTIMISER] {
        let told = json.pointer(&format!("/files/{file}"));
        let told = |key: &str| told.and_then(|file| file.get(key));
        let (Some(len), Some(sha256)) =
            (told("bytes").and_then(Value::as_u64), told("sha256").and_then(Value::as_str))
        else {
            return Err(damaged(format!("the state's manifest does not tell of {file}")));
        };
        let whole = path.join(file);
        let is_there = fs::metadata(&whole).map(|data| data.len());
        if is_there.as_ref().ok() != Some(&len) {
            return Err(match is_there {
                Ok(there) => {
                    damaged(format!("{file} of the state has {there} bytes")).expected(format!("{len}"))
                }
                Err(_) => damaged(format!("the state has no {file}")),
            });
        }
        if hash(&whole)? != sha256 {
            return Err(damaged(format!("{file} of the state has changed since it was written"))
                .expected(format!("SHA-256 {sha256}")));
        }
    }
    Ok(position)
}

fn hash(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(context.finish().as_ref())),
            n => context.update(&buffer[..n]),
        }
    }
}

/// Holds a run folder: no other process may train in it. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Takes the folder's lock.
    ///
    /// # Errors
    /// `Kind::Usage` if another process has it, with what that process wrote of itself.
    pub(super) fn take(folder: &Path) -> Result<Lock> {
        let path = folder.join("lock");
        let io = |e| Error::io(&path, e);
        let mut options = File::options();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            // Some network file systems have no locks.
            Err(fs::TryLockError::Error(_)) => return Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => {
                let mut who = String::new();
                let _ = file.read_to_string(&mut who);
                return Err(Error::new(
                    Kind::Usage,
                    format!("another run is training in {}", folder.display()),
                )
                .expected(format!("a folder of its own; this one is held by {}", who.trim()))
                .hint("wait for it, or give another folder with out=…"));
            }
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        file.set_len(0).map_err(io)?;
        // What stands in it is for people.
        let _ = write!(file, "process {} on {}", std::process::id(), host.trim());
        Ok(Lock(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Fails at a call, and then at every later one if the machine is to have crashed.
    #[derive(Debug)]
    pub(in super::super) struct Failing {
        pub(in super::super) calls_left: Cell<u64>,
        pub(in super::super) has_crashed: bool,
        pub(in super::super) how: io::ErrorKind,
    }

    impl Disk {
        pub(super) fn call(&self) -> io::Result<()> {
            let Some(failing) = &self.failing else { return Ok(()) };
            match failing.calls_left.get() {
                0 if failing.has_crashed => Err(failing.how.into()),
                // Once only: the next call is far away.
                0 => {
                    failing.calls_left.set(u64::MAX);
                    Err(failing.how.into())
                }
                left => {
                    failing.calls_left.set(left - 1);
                    Ok(())
                }
            }
        }
    }

    fn parts(seed: u8) -> Vec<(String, Vec<u8>)> {
        (0..3).map(|i| (format!("t{i}"), vec![seed.wrapping_add(i); 40 * (usize::from(i) + 1)])).collect()
    }

    fn save_step(disk: &Disk, root: &Path, step: u64, keep: usize) -> Result<PathBuf> {
        let tensors = parts(step as u8);
        let part = |(name, bytes): &'static (String, Vec<u8>)| Part {
            name: name.clone(),
            dtype: DType::F32,
            shape: vec![bytes.len() / 4],
            bytes,
        };
        let leaked: &'static [(String, Vec<u8>)] = Vec::leak(tensors);
        let parts: Vec<Part<'_>> = leaked.iter().map(part).collect();
        let position = Position { step, draws: step * 3, skipped: 1 };
        save(disk, root, &position, &parts, &parts[..1], keep)
    }

    fn latest_step(root: &Path) -> Option<u64> {
        let saved = latest(root, &mut |_| ()).unwrap()?;
        let step = saved.position.step;
        assert_eq!(saved.position, Position { step, draws: step * 3, skipped: 1 });
        for (name, bytes) in parts(step as u8) {
            assert_eq!(saved.weights.tensor(&name).unwrap().bytes(), bytes, "{name}");
        }
        assert_eq!(saved.optimiser.names(), ["t0"]);
        Some(step)
    }

    #[test]
    fn states_come_back_and_are_pruned() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(latest_step(root.path()), None);
        for step in 1..=5 {
            save_step(&Disk::default(), root.path(), step, 2).unwrap();
            assert_eq!(latest_step(root.path()), Some(step));
        }
        let names: Vec<u64> = states(root.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(names, [5, 4]);
        // Saved again, nothing changes.
        save_step(&Disk::default(), root.path(), 5, 2).unwrap();
        fs::create_dir(root.path().join("step-000007.tmp")).unwrap();
        clean(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    /// Whichever call fails, alone or with all that follow, the state before or the new one can be read.
    #[test]
    fn every_failing_call_leaves_a_state_that_can_be_read() {
        for has_crashed in [false, true] {
            for how in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
                for calls in 0.. {
                    let root = tempfile::tempdir().unwrap();
                    save_step(&Disk::default(), root.path(), 1, 1).unwrap();
                    let failing = Failing { calls_left: Cell::new(calls), has_crashed, how };
                    let disk = Disk { failing: Some(failing) };
                    let saved = save_step(&disk, root.path(), 2, 1);
                    let step = latest_step(root.path());
                    match &saved {
                        Ok(_) => assert_eq!(step, Some(2), "{calls}"),
                        Err(error) => {
                            assert!(step == Some(1) || step == Some(2), "{calls}: {step:?}");
                            let want =
                                if how == io::ErrorKind::StorageFull { Kind::Resource } else { Kind::Io };
                            assert_eq!(error.kind(), want, "{calls}: {error}");
                        }
                    }
                    // And the next run saves over whatever was left.
                    clean(root.path()).unwrap();
                    save_step(&Disk::default(), root.path(), 2, 1).unwrap();
                    assert_eq!(latest_step(root.path()), Some(2), "{calls}");
                    if saved.is_ok()
                        && disk
                            .failing
                            .is_some_and(|f| f.calls_left.get() > 0 && f.calls_left.get() < u64::MAX / 2)
                    {
                        assert!(calls > 15, "only {calls} calls were made to fail");
                        break;
                    }
                }
            }
        }
    }

    /// Each flipped bit and each cut is found, and the state before is taken.
    #[test]
    fn damage_is_found() {
        let root = tempfile::tempdir().unwrap();
        save_step(&Disk::default(), root.path(), 1, 2).unwrap();
        let path = save_step(&Disk::default(), root.path(), 2, 2).unwrap();
        let mut damages = 0;
        for file in [WEIGHTS, OPTIMISER, MANIFEST] {
            let whole = fs::read(path.join(file)).unwrap();
            let mut check = |bytes: &[u8]| {
                fs::write(path.join(file), bytes).unwrap();
                let mut heard = 0;
                let step = latest(root.path(), &mut |_| heard += 1).unwrap().unwrap().position.step;
                // White space of the manifest may change as it likes: what it says is then the same.
                let is_the_same = file == MANIFEST && latest_step(root.path()) == Some(2);
                assert!((step, heard) == (1, 1) || is_the_same, "{file} {step} {heard}");
                damages += 1;
            };
            for at in (0..whole.len() * 8).step_by(if file == MANIFEST { 7 } else { 3 }) {
                let mut bytes = whole.clone();
                bytes[at / 8] ^= 1 << (at % 8);
                check(&bytes);
            }
            for len in (0..whole.len()).step_by(whole.len() / 100 + 1) {
                check(&whole[..len]);
            }
            fs::write(path.join(file), &whole).unwrap();
        }
        assert!(damages > 1000, "{damages}");
        assert_eq!(latest_step(root.path()), Some(2));
        fs::remove_file(path.join(MANIFEST)).unwrap();
        assert_eq!(latest_step(root.path()), Some(1));
        fs::remove_file(root.path().join("step-000001").join(WEIGHTS)).unwrap();
        let error = latest(root.path(), &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("no saved state of the run is whole"), "{error}");
    }

    #[test]
    fn a_folder_has_one_run() {
        let root = tempfile::tempdir().unwrap();
        let held = Lock::take(root.path()).unwrap();
        let error = Lock::take(root.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        Lock::take(root.path()).unwrap();
    }
}
