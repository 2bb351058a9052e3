//! The folder that Python's `huggingface_hub` and this program share.
//!
//! ```text
//! <cache>/models--org--name/refs/main             the commit that `main` was when it was last asked for
//!                          /blobs/<etag>          the bytes, named by their hash
//!                          /snapshots/<commit>/   links into blobs, with the names of the repository
//! <cache>/.locks/models--org--name/<etag>.lock    held while a blob is written or removed
//! ```
//! A blob appears under its name only when it is whole; a ref only when its snapshot is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{HubId, HubOptions, Progress, Readiness, Report, cancelled, is_commit, readiness};
use crate::{Error, Result, checkpoint::disk};

/// The part of the cache that belongs to one repository.
pub(super) struct Layout {
    cache: PathBuf,
    folder_name: String,
}

impl Layout {
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        Layout { cache: cache.to_owned(), folder_name: hf_hub::Repo::model(repo.to_owned()).folder_name() }
    }

    fn root(&self) -> PathBuf {
        self.cache.join(&self.folder_name)
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root().join("blobs")
    }

    fn snapshots(&self) -> PathBuf {
        self.root().join("snapshots")
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(&self.folder_name)
    }

    /// The commit that `revision` is known to be here, if any. The file is one that others may write.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.root().join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// The names of the files of a snapshot whose bytes are here (a dangling link is no file).
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.snapshot(commit)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|e| e.ok())
            .filter(|e| fs::metadata(e.path()).is_ok_and(|m| m.is_file()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// Makes the folders and marks the cache as one that a backup may leave out, as Python does.
    pub(super) fn create(&self, commit: &str) -> Result<()> {
        for folder in [self.blobs(), self.snapshot(commit), self.locks()] {
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        let tag = self.cache.join("CACHEDIR.TAG");
        if !tag.exists() {
            let text = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of Hugging Face models.\n";
            fs::write(&tag, text).map_err(|e| Error::io(&tag, e))?;
        }
        Ok(())
    }

    /// Remembers that `revision` is `commit`, whole or not at all.
    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root().join("refs").join(revision);
        let folder = path.parent().unwrap_or(&path).to_owned();
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        // The process and a count make the name unique, so that two writers never share one.
        let temporary = folder.join(format!(".{}.{}.tmp", std::process::id(), unique()));
        fs::write(&temporary, commit).map_err(|e| Error::io(&temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| Error::io(&path, e))
    }

    /// Waits until this process alone may write the blob; the lock ends when the file is dropped.
    pub(super) fn lock(&self, etag: &str, file: &str, report: &mut Report) -> Result<File> {
        let path = self.locks().join(format!("{etag}.lock"));
        let lock = open_lock(&path)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => {
                    if report(Progress::Waiting { file }).is_break() {
                        return Err(cancelled());
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                // Some network file systems have no locks. The hash of the bytes is then the only guard.
                Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(lock),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
        }
    }

    /// Gives the blob its name in the snapshot.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let link = self.snapshot(commit).join(file);
        let blob = self.blobs().join(etag);
        let target = Path::new("..").join("..").join("blobs").join(etag);
        if fs::metadata(&link).is_ok() && fs::read_link(&link).map_or(true, |t| t.ends_with(etag)) {
            return Ok(());
        }
        // What stands there is a dangling link or one to other bytes.
        match fs::remove_file(&link) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&link, e)),
            _ => {}
        }
        match symlink(&target, &link) {
            Ok(()) => Ok(()),
            // Another process was quicker and linked the same bytes.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            // No symlinks on this file system: the bytes move, as Python does it.
            Err(_) => fs::rename(&blob, &link).map_err(|e| Error::io(&link, e)),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().create(true).write(true).truncate(false).open(path).map_err(|e| Error::io(path, e))
}

fn unique() -> u64 {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A model of the cache at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `org/name`.
    pub id: String,
    /// 40 hexadecimal digits.
    pub commit: String,
    /// The branches and tags that were this commit when they were last asked for.
    pub revisions: Vec<String>,
    /// The snapshot's folder.
    pub path: PathBuf,
    /// Bytes of its files; files that several snapshots share are counted in each.
    pub size_bytes: u64,
    /// Whether everything a run needs is here.
    pub is_complete: bool,
    /// Whether `config.json` says `paligemma`, or the weights are an npz.
    pub is_paligemma: bool,
}

/// Every model in the cache, by name and commit. The cache is shared: most may be no PaliGemma.
///
/// # Errors
/// [`crate::Kind::Io`] if the cache exists and cannot be listed.
pub fn cached_models(options: &HubOptions) -> Result<Vec<CachedModel>> {
    let entries = match fs::read_dir(&options.cache) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(&options.cache, e))?,
    };
    let mut models = Vec::new();
    for entry in entries.filter_map(|e| e.ok()) {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|n| n.strip_prefix("models--")).map(|n| n.replace("--", "/"))
        else {
            continue;
        };
        // Whatever else is called so is not ours to show, and removing it by name would not be safe.
        if HubId::parse(&id).is_err() {
            continue;
        }
        let layout = Layout::new(&options.cache, &id);
        let refs = refs(&layout.root().join("refs"));
        for commit in commits(&layout) {
            let files = layout.files(&commit);
            let path = layout.snapshot(&commit);
            let size_of = |f: &String| fs::metadata(path.join(f)).map_or(0, |m| m.len());
            models.push(CachedModel {
                id: id.clone(),
                revisions: refs.iter().filter(|(_, c)| **c == commit).map(|(r, _)| r.clone()).collect(),
                size_bytes: files.iter().map(size_of).sum(),
                is_complete: readiness(&path, &files, None) != Readiness::Partial,
                is_paligemma: is_paligemma(&path, &files),
                commit,
                path,
            });
        }
    }
    models.sort_by(|a, b| (&a.id, &a.commit).cmp(&(&b.id, &b.commit)));
    Ok(models)
}

fn is_paligemma(snapshot: &Path, files: &[String]) -> bool {
    if files.iter().any(|f| super::is_npz(f)) {
        return true;
    }
    let config = snapshot.join("config.json");
    // A config of more than a megabyte is none of ours.
    if fs::metadata(&config).map_or(true, |m| m.len() > 1 << 20) {
        return false;
    }
    fs::read(&config)
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .is_some_and(|config| config["model_type"].as_str().is_some_and(|t| t.starts_with("paligemma")))
}

/// The commits that have a snapshot.
fn commits(layout: &Layout) -> Vec<String> {
    let Ok(entries) = fs::read_dir(layout.snapshots()) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()).filter_map(|e| e.file_name().into_string().ok());
    names.filter(|n| is_commit(n)).collect()
}

/// Every ref below `folder` with its commit: `refs/pr/1` stands in folders of its own.
fn refs(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(|e| e.ok()) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            // What a writer left that was killed before its rename.
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            // A revision is at most a few folders deep; a link could make it endless.
            if kind.is_dir() && name.matches('/').count() < 8 {
                open.push((entry.path(), format!("{name}/")));
            } else if kind.is_file()
                && let Ok(commit) = fs::read_to_string(entry.path())
            {
                found.insert(name, commit.trim().to_owned());
            }
        }
    }
    found
}

/// What [`remove`] took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The snapshots' commits.
    pub commits: Vec<String>,
    /// Bytes that are free again; less than the snapshots' size where others share a file.
    pub freed_bytes: u64,
}

/// Removes a model from the cache: the snapshot of `revision` (a branch, a tag or a commit), or all of them
/// if it is `None`, with the bytes that no other snapshot of the model needs.
///
/// # Errors
/// [`crate::Kind::Usage`] if it is not in the cache or is being downloaded; [`crate::Kind::Io`] if it cannot be removed.
pub fn remove(options: &HubOptions, repo: &str, revision: Option<&str>) -> Result<Removed> {
    // The names become paths that are deleted: only those that are ids and revisions pass.
    let id = HubId::parse(&match revision {
        Some(revision) => format!("{repo}@{revision}"),
        None => repo.to_owned(),
    })?;
    let layout = Layout::new(&options.cache, &id.repo);
    let all = commits(&layout);
    let gone: Vec<String> = match id.revision.as_deref() {
        None => all.clone(),
        Some(revision) => {
            all.iter().filter(|c| layout.commit_of(revision).as_ref() == Some(c)).cloned().collect()
        }
    };
    let root = layout.root();
    if gone.is_empty() && !(revision.is_none() && root.is_dir()) {
        return Err(Error::usage(format!("{id} is not in the cache"))
            .at(options.cache.display().to_string())
            .hint("`paligemma ls` shows what is"));
    }
    let _locks = hold_all(&layout, &id)?;
    if gone.len() == all.len() {
        let freed_bytes = tree_size(&root.join("blobs")) + tree_size(&root.join("snapshots"));
        fs::remove_dir_all(&root).map_err(|e| Error::io(&root, e))?;
        // The lock files stay: another process may hold one open this very moment.
        return Ok(Removed { commits: gone, freed_bytes });
    }
    // Refs first: what remains after a crash is then unreferenced, never half a model under a name.
    for (name, commit) in refs(&root.join("refs")) {
        if gone.contains(&commit) {
            let path = root.join("refs").join(name);
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    let mut freed_bytes = 0;
    let mut needed = BTreeSet::new();
    let mut candidates = BTreeSet::new();
    for commit in &all {
        let blobs = linked_blobs(&layout.snapshot(commit));
        if gone.contains(commit) { candidates.extend(blobs) } else { needed.extend(blobs) }
    }
    for commit in &gone {
        let snapshot = layout.snapshot(commit);
        freed_bytes += tree_size(&snapshot);
        fs::remove_dir_all(&snapshot).map_err(|e| Error::io(&snapshot, e))?;
        // Python's notes about the commit: what it lacks, and its list of files.
        let _ = fs::remove_dir_all(root.join(".no_exist").join(commit));
        let _ = fs::remove_file(root.join("trees").join(format!("{commit}.json")));
    }
    for blob in candidates.difference(&needed) {
        let path = layout.blobs().join(blob);
        // A blob may itself be a link into a store that several repositories share; only the link is ours.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        freed_bytes += if metadata.is_file() { metadata.len() } else { 0 };
    }
    Ok(Removed { commits: gone, freed_bytes })
}

/// Takes every lock of the repository, or says that a download is under way.
fn hold_all(layout: &Layout, id: &HubId) -> Result<Vec<File>> {
    let Ok(entries) = fs::read_dir(layout.locks()) else { return Ok(Vec::new()) };
    let mut held = Vec::new();
    for entry in entries.filter_map(|e| e.ok()) {
        let lock = open_lock(&entry.path())?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::usage(format!("{id} is being downloaded"))
                .at(entry.path().display().to_string())
                .hint("wait for the other process, or end it"));
        }
        held.push(lock);
    }
    Ok(held)
}

/// The names of the blobs that a snapshot's links lead to, in its folders too.
fn linked_blobs(snapshot: &Path) -> BTreeSet<std::ffi::OsString> {
    let mut blobs = BTreeSet::new();
    walk(snapshot, &mut |path, _| {
        if let Ok(target) = fs::read_link(path)
            && let Some(name) = target.file_name()
        {
            blobs.insert(name.to_owned());
        }
    });
    blobs
}

/// Bytes of the files below `folder`; links count nothing.
fn tree_size(folder: &Path) -> u64 {
    let mut size = 0;
    walk(folder, &mut |_, metadata| size += if metadata.is_file() { metadata.len() } else { 0 });
    size
}

/// Visits everything below `folder` that is no folder, without following links.
fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(|e| e.ok()) {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            if metadata.is_dir() { open.push(entry.path()) } else { visit(&entry.path(), &metadata) }
        }
    }
}

/// Refuses when the file system of the cache has no room for `needed` more bytes.
pub(super) fn check_space(cache: &Path, needed: u64) -> Result<()> {
    disk::check_space(cache, needed, "the download").map_err(|e| {
        e.hint("remove models with `paligemma rm`, or set HF_HUB_CACHE to a folder on a larger disk")
    })
}

/// Makes the bytes survive a power cut before their name does.
pub(super) fn commit_blob(file: &mut File, temporary: &Path, blob: &Path) -> Result<()> {
    file.flush().and_then(|()| file.sync_all()).map_err(|e| Error::io(temporary, e))?;
    fs::rename(temporary, blob).map_err(|e| Error::io(blob, e))?;
    // A folder cannot be synced everywhere; the rename has happened all the same.
    if let Some(folder) = blob.parent().and_then(|p| File::open(p).ok()) {
        let _ = folder.sync_all();
    }
    Ok(())
}
