//! The Hugging Face Hub: which files make a model, and how they come into the shared cache.
//!
//! A model that is in the cache is used as it is, without a word to the network, whoever brought it there:
//! this program or Python's `huggingface_hub`. [`pull`] asks the Hub for what is new.
//!
//! Names and folders are those of the `hf-hub` crate. Its transfer is not used: version 0.5 sends the token
//! to the storage host after a redirect, writes without checking length or hash, and appends whatever a
//! server answers to a resumed request. The requests here go through `ureq`, with TLS by `rustls` and the
//! Mozilla roots. Nothing is sent but the requests for the files: no telemetry.

mod blob;
mod cache;
mod wire;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache::{CachedModel, Removed, cached_models, remove};

use super::locate;
use crate::{Error, Kind, Result};
use blob::Tally;
use cache::Layout;
use wire::{Remote, Wire};

/// Everything about the Hub that the environment decides.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// The Hub or a mirror, without a slash at the end: `HF_ENDPOINT`.
    pub endpoint: String,
    /// Sent to the endpoint and to no other host: `HF_TOKEN`, or the file `HF_TOKEN_PATH`.
    pub token: Option<Token>,
    /// No network at all: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// The folder of big_vision checkpoints: `BV_GEMMA_DIR`.
    pub gemma_dir: Option<PathBuf>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` apply.
    pub use_proxy: bool,
    /// Which files are wanted.
    pub want: Want,
    /// How often a request is made that fails in a way that may pass (at least 1).
    pub attempts: u32,
    /// The pause before the second attempt; it doubles three times.
    pub first_delay: Duration,
    /// A connection that brings nothing for so long is given up.
    pub stall: Duration,
}

/// Which of a model's files a caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All that a run reads: configuration, tokenizer, weights.
    Model,
    /// The tokenizer and the small files around it.
    Tokenizer,
}

/// A secret and where it is from. It does not show itself in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: String,
    source: String,
}

impl Token {
    /// A token as found in `source` (`HF_TOKEN`, a path); line breaks and spaces around it are cut off.
    /// None if nothing is left.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it holds what no header can: spaces, control characters, other alphabets.
    pub fn new(secret: &str, source: impl Into<String>) -> Result<Option<Self>> {
        let (secret, source) = (secret.trim(), source.into());
        if secret.is_empty() {
            return Ok(None);
        }
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::usage(format!("the token from {source} holds characters that no token has"))
                .expected("letters, digits and signs in one line (hf_…)"));
        }
        Ok(Some(Token { secret: secret.to_owned(), source }))
    }

    fn expose(&self) -> &str {
        &self.secret
    }

    /// Where it was found: `HF_TOKEN` or the path of a file.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(hidden, from {})", self.source)
    }
}

impl HubOptions {
    /// No token, the public Hub, `cache` as the cache: what a program sets that reads no environment.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        HubOptions {
            cache: cache.into(),
            endpoint: "https://huggingface.co".into(),
            token: None,
            offline: false,
            gemma_dir: None,
            use_proxy: true,
            want: Want::Model,
            attempts: 5,
            first_delay: Duration::from_secs(1),
            stall: Duration::from_secs(30),
        }
    }

    /// Reads the process's environment, and the token's file if there is one.
    ///
    /// # Errors
    /// [`Kind::Usage`] if a token cannot be one; [`Kind::Io`] if its file exists and cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// As [`HubOptions::from_env`], from any source of variables. An empty variable is an unset one.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let text = |name: &str| var(name).and_then(|v| v.into_string().ok());
        let is_set = |name: &str| {
            text(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let folder = |name: &str| var(name).map(|v| expand(v, &var));
        let user_cache = || match folder("XDG_CACHE_HOME") {
            Some(folder) => folder,
            None => expand("~/.cache".into(), &var),
        };
        let home = folder("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let mut options = HubOptions::new(cache.unwrap_or_else(|| home.join("hub")));
        if let Some(endpoint) = text("HF_ENDPOINT") {
            options.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        options.offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
        options.gemma_dir = folder("BV_GEMMA_DIR");
        if !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|n| Some((text(n)?, *n)));
            if let Some((secret, name)) = named {
                options.token = Token::new(&secret, name)?;
            }
            let path = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            if options.token.is_none() && path.is_file() {
                let secret = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
                options.token = Token::new(&secret, path.display().to_string())?;
            }
        }
        Ok(options)
    }

    fn token_source(&self) -> &str {
        self.token.as_ref().map_or("nowhere", Token::source)
    }
}

/// Where the token is from, for `doctor`; none if there is no token. Nothing is sent anywhere.
pub fn token_status(options: &HubOptions) -> Option<&str> {
    options.token.as_ref().map(Token::source)
}

/// `~` and `$NAME` in a variable that names a folder, as Python expands them.
fn expand(value: OsString, var: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else { return value.into() };
    let mut out = OsString::new();
    let mut rest = text;
    let at_home = rest.strip_prefix('~').filter(|r| r.is_empty() || r.starts_with(['/', '\\']));
    if let (Some(tail), Some(home)) = (at_home, std::env::home_dir()) {
        out.push(var("HOME").unwrap_or_else(|| home.into()));
        rest = tail;
    }
    while let Some(at) = rest.find('$') {
        out.push(&rest[..at]);
        let tail = &rest[at + 1..];
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match tail.strip_prefix('{').and_then(|t| t.split_once('}')) {
            Some(braced) => braced,
            None => tail.split_at(tail.find(|c| !is_word(c)).unwrap_or(tail.len())),
        };
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push(value),
            // An unknown name stays as it is written.
            None => out.push(&rest[at..rest.len() - after.len()]),
        }
        rest = after;
    }
    out.push(rest);
    out.into()
}

/// A model on the Hub: `org/name`, `org/name@revision`, and for a repository with several npz files
/// `org/name[@revision]/file.npz`; `hf://` may stand in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` if none.
    pub revision: Option<String>,
    /// One npz of the repository.
    pub file: Option<String>,
}

impl HubId {
    /// Reads a Hub id.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is none; a part of it that could leave the cache's folder makes it none.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::usage(format!("'{text}' is no Hub id: {why}"))
                .expected("org/name or org/name@revision, as in google/paligemma-3b-pt-224")
        };
        let mut rest = text.strip_prefix("hf://").unwrap_or(text);
        let mut file = None;
        if let Some((front, tail)) = rest.rsplit_once('/')
            && tail.ends_with(".npz")
            && front.contains('/')
        {
            (rest, file) = (front, Some(tail.to_owned()));
        }
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (rest, None),
        };
        let (org, name) = repo.split_once('/').ok_or_else(|| bad("the organisation is missing"))?;
        if ![org, name].into_iter().all(is_repo_part) {
            return Err(bad("organisation and name have letters, digits, '-', '_' and '.'"));
        }
        if let Some(revision) = &revision
            && !is_revision(revision)
        {
            return Err(bad("the revision is none"));
        }
        if let Some(file) = &file
            && !is_plain_name(file)
        {
            return Err(bad("the file name is none"));
        }
        Ok(HubId { repo: repo.to_owned(), revision, file })
    }

    /// The revision, `main` if none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        Ok(())
    }
}

/// The Hub's own rule for either half of an id.
fn is_repo_part(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("--")
        && !part.contains("..")
        && !part.ends_with(".git")
}

/// A revision becomes a path below `refs`: no part of it may lead out.
fn is_revision(revision: &str) -> bool {
    (1..=200).contains(&revision.len())
        && revision.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
        })
}

/// 40 lower-case hexadecimal digits.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A name that stays in the folder it is put in, on every system.
fn is_plain_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
}

/// What happens during a pull. Breaking off leaves what has arrived for the next time.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Bytes have arrived.
    Bytes {
        /// The file they belong to.
        file: &'a str,
        /// Bytes of the model that are here, those of earlier downloads included.
        done: u64,
        /// Bytes of the model.
        total: u64,
    },
    /// Another process is fetching the file; called again and again while that lasts.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// A request failed and will be made again.
    Retrying {
        /// What failed.
        why: &'a str,
        /// The pause before the next attempt.
        wait: Duration,
    },
}

/// A callback for [`Progress`]; it may break off the pull.
pub type Report<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the download was stopped")
        .hint("what has arrived is kept: pull again to go on")
}

/// A model of the Hub that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// The folder of its files.
    pub path: PathBuf,
}

/// The files a model is read from, as the configuration and the weights are named in its folder.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// `x.npz`, or a part of one that was split: `x.npz.part0`.
fn is_npz(name: &str) -> bool {
    name.ends_with(".npz") || name.contains(".npz.part")
}

/// The weights among a model's files. The order is that of the loader: one file, an index, an npz.
enum Weights {
    Single,
    Index,
    Npz(Vec<String>),
    None,
}

fn weights(names: &[String], file: Option<&str>) -> Weights {
    let has = |name: &str| names.iter().any(|n| n == name);
    match file {
        None if has(SINGLE) => Weights::Single,
        None if has(INDEX) => Weights::Index,
        _ => {
            let is_wanted = |n: &&String| {
                is_npz(n)
                    && file.is_none_or(|f| {
                        n.strip_prefix(f).is_some_and(|r| r.is_empty() || r.starts_with(".part"))
                    })
            };
            let npz: Vec<String> = names.iter().filter(is_wanted).cloned().collect();
            if npz.is_empty() { Weights::None } else { Weights::Npz(npz) }
        }
    }
}

/// Whether a small file of the repository is wanted. Beside an npz a tokenizer has any name.
fn is_small_file(name: &str, weights: &Weights) -> bool {
    SMALL_FILES.contains(&name) || (matches!(weights, Weights::Npz(_)) && name.ends_with(".model"))
}

/// How much of a model is in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Nothing more is to be asked for.
    Whole,
    /// It runs; a small file that the repository may or may not have is not here.
    Usable,
    /// Weights or configuration are missing.
    Partial,
}

fn readiness(snapshot: &Path, names: &[String], id: Option<(&HubId, Want)>) -> Readiness {
    let has = |name: &str| names.iter().any(|n| n == name);
    let has_tokenizer = names.iter().any(|n| n == "tokenizer.json" || n.ends_with(".model"));
    if id.is_some_and(|(_, want)| want == Want::Tokenizer) {
        // With tokenizer.json nothing else is read; a lone .model may have a tokenizer.json on the Hub.
        return match (has("tokenizer.json"), has_tokenizer) {
            (true, _) => Readiness::Whole,
            (_, true) => Readiness::Usable,
            _ => Readiness::Partial,
        };
    }
    match weights(names, id.and_then(|(id, _)| id.file.as_deref())) {
        Weights::None => Readiness::Partial,
        Weights::Npz(npz) if npz.len() == 1 && npz[0].ends_with(".npz") => Readiness::Whole,
        // How many parts a split npz has, only the Hub knows.
        Weights::Npz(_) => Readiness::Usable,
        Weights::Index | Weights::Single if !has("config.json") => Readiness::Partial,
        Weights::Index if !shards(&snapshot.join(INDEX)).is_ok_and(|s| s.iter().all(|f| has(f))) => {
            Readiness::Partial
        }
        _ if has_tokenizer && (has("preprocessor_config.json") || has("processor_config.json")) => {
            Readiness::Whole
        }
        _ => Readiness::Usable,
    }
}

/// The files that an index names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bad = |what: &str| Error::model(what.to_owned()).at(index.display().to_string());
    let metadata = fs::metadata(index).map_err(|e| Error::io(index, e))?;
    if metadata.len() > 32 << 20 {
        return Err(bad("the index of the shards is too long").expected("at most 32 MiB"));
    }
    let text = fs::read(index).map_err(|e| Error::io(index, e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| {
        bad("the index of the shards is not understood").expected("{\"weight_map\": {…}}").because(e)
    })?;
    let files: std::collections::BTreeSet<String> = parsed.weight_map.into_values().collect();
    match files.iter().find(|f| !is_plain_name(f) || !f.ends_with(".safetensors")) {
        Some(f) => {
            Err(bad(&format!("the index names a shard {f:?}"))
                .expected("a plain name ending in .safetensors"))
        }
        None => Ok(files.into_iter().collect()),
    }
}

/// The model as it is in the cache; fetched if it is not there.
///
/// A cached branch is not asked after: [`pull`] does that.
///
/// # Errors
/// As [`pull`]; and [`Kind::Network`] if `options.offline` is set and the model is not in the cache.
pub fn snapshot(id: &HubId, options: &HubOptions, report: &mut Report) -> Result<Snapshot> {
    let layout = Layout::new(&options.cache, &id.repo);
    let cached = layout.commit_of(id.revision()).map(|commit| {
        let path = layout.snapshot(&commit);
        let ready = readiness(&path, &layout.files(&commit), Some((id, options.want)));
        (Snapshot { commit, path }, ready)
    });
    match cached {
        Some((snapshot, Readiness::Whole)) => Ok(snapshot),
        Some((snapshot, Readiness::Usable)) if options.offline => Ok(snapshot),
        // A small file more would be good; that it cannot be had is no reason not to run.
        Some((snapshot, Readiness::Usable)) => match pull(id, options, report) {
            Err(error) if error.kind() != Kind::Cancelled => Ok(snapshot),
            other => other,
        },
        _ => pull(id, options, report),
    }
}

/// Asks the Hub what the revision is now and fetches what is not here yet.
///
/// A download that was cut goes on where it ended, in this call or a later one. A file gets its name in the
/// cache only after its length and, for large files, its SHA-256 are those that the Hub named.
///
/// # Errors
/// [`Kind::Network`] if the Hub cannot be reached or refuses, if the model is gated, or if what arrives is not
/// what was announced; [`Kind::Resource`] if the disk has no room; [`Kind::Cancelled`] if `report` breaks off;
/// [`Kind::Model`] if the repository holds no weights of a known kind.
pub fn pull(id: &HubId, options: &HubOptions, report: &mut Report) -> Result<Snapshot> {
    if options.offline {
        return Err(Error::new(Kind::Network, format!("{id} is not in the cache, and the network is off"))
            .at(options.cache.display().to_string())
            .hint(format!(
                "without --offline and HF_HUB_OFFLINE, `paligemma pull {id}` fetches it; or give a folder"
            )));
    }
    let layout = Layout::new(&options.cache, &id.repo);
    let wire = Wire::new(options, id);
    let listing = wire.listing(report)?;
    let commit = listing.sha.clone();
    let names = root_names(listing.names(), id)?;
    let weights = weights(&names, id.file.as_deref());

    let mut wanted: Vec<String> = names.iter().filter(|n| is_small_file(n, &weights)).cloned().collect();
    if options.want == Want::Model {
        match &weights {
            Weights::Single => wanted.push(SINGLE.into()),
            Weights::Npz(npz) => wanted.extend(npz.iter().cloned()),
            Weights::Index => wanted.push(INDEX.into()),
            Weights::None => return Err(no_weights(id, &names)),
        }
    }
    if wanted.is_empty() {
        return Err(
            Error::model(format!("{id} holds no tokenizer")).expected("tokenizer.json or tokenizer.model")
        );
    }

    layout.create(&commit)?;
    let mut remotes = Vec::new();
    if wanted.iter().any(|n| n == INDEX) {
        // Only the index knows which shards there are.
        let index = wire.head(&commit, INDEX, report)?;
        fetch_all(&wire, &layout, &commit, options, std::slice::from_ref(&index), report)?;
        remotes.push(index);
        let shards = shards(&layout.snapshot(&commit).join(INDEX))?;
        if let Some(missing) = shards.iter().find(|s| !names.contains(s)) {
            return Err(Error::model(format!("{id} lacks the shard {missing} that its index names")));
        }
        wanted.retain(|n| n != INDEX);
        wanted.extend(shards);
    }
    for name in &wanted {
        remotes.push(wire.head(&commit, name, report)?);
    }
    fetch_all(&wire, &layout, &commit, options, &remotes, report)?;
    layout.set_ref(id.revision(), &commit)?;
    Ok(Snapshot { path: layout.snapshot(&commit), commit })
}

/// Fetches the files in order, the room for all of them known to be there.
fn fetch_all(
    wire: &Wire,
    layout: &Layout,
    commit: &str,
    options: &HubOptions,
    remotes: &[Remote],
    report: &mut Report,
) -> Result<()> {
    let total = remotes.iter().try_fold(0u64, |sum, r| sum.checked_add(r.size)).ok_or_else(|| {
        Error::new(Kind::Network, "the lengths that the Hub names are beyond all measure")
            .at(&options.endpoint)
    })?;
    let here: u64 = remotes.iter().map(|r| blob::bytes_here(layout, r)).sum();
    cache::check_space(&options.cache, total - here)?;
    let mut tally = Tally { before: 0, total };
    for remote in remotes {
        blob::fetch(wire, layout, commit, remote, &tally, report)?;
        tally.before += remote.size;
        if report(Progress::Bytes { file: &remote.file, done: tally.before, total }).is_break() {
            return Err(cancelled());
        }
    }
    Ok(())
}

/// The files at the top of the repository. A name that could lead out of the cache refuses the whole model.
fn root_names(names: Vec<String>, id: &HubId) -> Result<Vec<String>> {
    if let Some(name) = names.iter().find(|n| !n.split('/').all(is_plain_name)) {
        return Err(Error::new(Kind::Network, format!("the Hub lists a file {name:?} in {id}"))
            .expected("names that stay in the model's folder")
            .hint("do not trust this server: check HF_ENDPOINT"));
    }
    let mut names: Vec<String> = names.into_iter().filter(|n| !n.contains('/')).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn no_weights(id: &HubId, names: &[String]) -> Error {
    let error = Error::model(format!("{id} holds no weights that can be read"))
        .expected("model.safetensors, its shards with an index, or an npz");
    match (&id.file, names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".gguf"))) {
        (Some(_), _) => error.hint(format!(
            "its npz files: {}",
            names.iter().filter(|n| is_npz(n)).cloned().collect::<Vec<_>>().join(", ")
        )),
        (None, Some(other)) => error.hint(format!("it has {other}, which is of another kind")),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_read_and_hostile_ones_refused() {
        let id = |repo: &str, revision: Option<&str>, file: Option<&str>| HubId {
            repo: repo.into(),
            revision: revision.map(Into::into),
            file: file.map(Into::into),
        };
        for (text, expected) in [
            ("google/paligemma-3b-pt-224", id("google/paligemma-3b-pt-224", None, None)),
            ("hf://google/x@v1.0", id("google/x", Some("v1.0"), None)),
            ("a/b@refs/pr/1", id("a/b", Some("refs/pr/1"), None)),
            ("a/b/c.npz", id("a/b", None, Some("c.npz"))),
            ("a/b@float16/c.npz", id("a/b", Some("float16"), Some("c.npz"))),
            ("a/b.npz", id("a/b.npz", None, None)),
        ] {
            assert_eq!(HubId::parse(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "a",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "a--b/c",
            "a/b@",
            "a/b@../x",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@x//y",
            "a/b@-x",
            "a/b@.x",
            "a/b@x y",
            "a/b c",
            "a/b.git",
            "a\\b/c",
            "hf://",
            "a/b@x\0",
            "é/b",
            "a/b@x\\y",
        ] {
            let error = HubId::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn names_from_a_server_stay_in_their_folder() {
        for good in ["config.json", "model-00001-of-00002.safetensors", "a b", "...", "é"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "\\a", "C:a", "a\0", "a\n", &"x".repeat(256)] {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_environment_means_what_it_means_to_python() {
        let options = |vars: &[(&str, &str)]| {
            HubOptions::from_vars(|name| {
                vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
            })
            .unwrap()
        };
        for (vars, cache) in [
            (&[("HF_HOME", "/h")][..], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/l")], "/l"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/u"), ("HF_HOME", "~/h")], "/u/h/hub"),
            (&[("HOME", "/u"), ("HF_HOME", "")], "/u/.cache/huggingface/hub"),
            (&[("D", "/d"), ("HF_HUB_CACHE", "$D/a${D}b$E")], "/d/a/db$E"),
        ] {
            assert_eq!(options(vars).cache, PathBuf::from(cache), "{vars:?}");
        }
        assert_eq!(options(&[("HF_ENDPOINT", "http://m:1/")]).endpoint, "http://m:1");
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(options(&[("HF_HUB_OFFLINE", "true")]).offline);
        let token = |vars: &[(&str, &str)]| options(vars).token.map(|t| (t.expose().to_owned(), t.source));
        assert_eq!(
            token(&[("HF_HOME", "/none"), ("HF_TOKEN", " hf_x\n")]),
            Some(("hf_x".into(), "HF_TOKEN".into()))
        );
        assert_eq!(token(&[("HF_HOME", "/none"), ("HF_TOKEN", " ")]), None);
        assert_eq!(token(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn a_token_file_is_read_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_secret\n").unwrap();
        let home = folder.path().as_os_str().to_owned();
        let options = HubOptions::from_vars(|n| (n == "HF_HOME").then(|| home.clone())).unwrap();
        assert_eq!(options.token.as_ref().map(Token::expose), Some("hf_secret"));
        assert!(!format!("{options:?}").contains("hf_secret"));
        assert!(token_status(&options).unwrap().ends_with("token"));
        let moved = folder.path().join("elsewhere");
        fs::write(&moved, "hf_moved").unwrap();
        let options =
            HubOptions::from_vars(|n| (n == "HF_TOKEN_PATH").then(|| moved.clone().into_os_string()))
                .unwrap();
        assert_eq!(options.token.as_ref().map(Token::expose), Some("hf_moved"));
        assert!(Token::new("hf_a\nb", "HF_TOKEN").is_err());
    }
}
