//! From what a user types to a place on the disk: a folder, a file, a big_vision name or a Hub id.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::hub::{self, HubId, HubOptions, Report};
use crate::nano::BuiltIn;
use crate::{Error, Result};

/// big_vision's names for the pretrained checkpoints and their files in `$BV_GEMMA_DIR`
/// (`VANITY_NAMES` of `big_vision/models/proj/paligemma/paligemma.py`).
const BIG_VISION: [(&str, &str); 18] = [
    ("pt_224", "pt_224.npz"),
    ("pt_224.bf16", "pt_224.bf16.npz"),
    ("pt_224.f16", "pt_224.f16.npz"),
    ("pt_448", "pt_448.npz"),
    ("pt_448.bf16", "pt_448.bf16.npz"),
    ("pt_448.f16", "pt_448.f16.npz"),
    ("pt_896", "pt_896.npz"),
    ("pt_896.bf16", "pt_896.bf16.npz"),
    ("pt_896.f16", "pt_896.f16.npz"),
    ("pt_3b_224", "pt_3b_224.bf16.npz"),
    ("pt_3b_448", "pt_3b_448.bf16.npz"),
    ("pt_3b_896", "pt_3b_896.bf16.npz"),
    ("pt_10b_224", "pt_10b_224.bf16.npz"),
    ("pt_10b_448", "pt_10b_448.bf16.npz"),
    ("pt_10b_896", "pt_10b_896.bf16.npz"),
    ("pt_28b_224", "pt_28b_224.bf16.npz"),
    ("pt_28b_448", "pt_28b_448.bf16.npz"),
    ("pt_28b_896", "pt_28b_896.bf16.npz"),
];

/// The pretrained and mixed models that Google publishes; only for "did you mean", never a list of what may be used.
const PUBLISHED: [&str; 20] = [
    "google/paligemma-3b-pt-224",
    "google/paligemma-3b-pt-448",
    "google/paligemma-3b-pt-896",
    "google/paligemma-3b-mix-224",
    "google/paligemma-3b-mix-448",
    "google/paligemma2-3b-pt-224",
    "google/paligemma2-3b-pt-448",
    "google/paligemma2-3b-pt-896",
    "google/paligemma2-10b-pt-224",
    "google/paligemma2-10b-pt-448",
    "google/paligemma2-10b-pt-896",
    "google/paligemma2-28b-pt-224",
    "google/paligemma2-28b-pt-448",
    "google/paligemma2-28b-pt-896",
    "google/paligemma2-3b-mix-224",
    "google/paligemma2-3b-mix-448",
    "google/paligemma2-10b-mix-224",
    "google/paligemma2-10b-mix-448",
    "google/paligemma2-28b-mix-224",
    "google/paligemma2-28b-mix-448",
];

/// What a name turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder on the disk.
    Folder,
    /// A file on the disk.
    File,
    /// A model within this program.
    BuiltIn,
    /// A big_vision name, such as `pt_224`.
    BigVision(String),
    /// A model of the Hub, at a commit.
    Hub {
        /// What was asked for.
        id: HubId,
        /// 40 hexadecimal digits.
        commit: String,
    },
}

/// A model's place on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// What the name was.
    pub source: Source,
    /// A folder, or a file that exists, or the name of a model within this program. Of a split npz it is the first part.
    pub path: PathBuf,
    /// The parts of a split npz (`x.npz.part*`) in order, `path` among them; empty for everything else.
    pub parts: Vec<PathBuf>,
}

impl fmt::Display for Location {
    /// One line for people: `Hub model google/… (commit 0123456789ab) in /cache/…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.source {
            Source::Folder => write!(f, "folder {path}"),
            Source::File => write!(f, "file {path}"),
            Source::BuiltIn => write!(f, "{path}, within this program"),
            Source::BigVision(name) => write!(f, "big_vision checkpoint {name} in {path}"),
            Source::Hub { id, commit } => {
                write!(f, "Hub model {id} (commit {}) in {path}", commit.get(..12).unwrap_or(commit))
            }
        }?;
        if self.parts.len() > 1 {
            write!(f, " and {} parts more", self.parts.len() - 1)?;
        }
        Ok(())
    }
}

/// Finds the model called `name`; fetches it if it is a Hub id that is not in the cache.
///
/// In this order: what exists on the disk (of a split npz, `x.npz` names the parts `x.npz.part*`); `nano`, `nano-112` and
/// `nano-224`, which are within this program; a big_vision name in `$BV_GEMMA_DIR`; `org/name[@revision]`, with `hf://` in front or not.
///
/// # Errors
/// [`crate::Kind::Usage`] if `name` is none of these, with what it may have been meant to be;
/// for a Hub id those of [`hub::snapshot`].
pub fn locate(name: &str, options: &HubOptions, report: &mut Report) -> Result<Location> {
    if let Some(location) = on_disk(name)? {
        return Ok(location);
    }
    if let Some(model) = BuiltIn::named(name) {
        return Ok(Location { source: Source::BuiltIn, path: model.name.into(), parts: vec![] });
    }
    if let Some((_, file)) = BIG_VISION.iter().find(|(n, _)| *n == name) {
        return big_vision(name, file, options);
    }
    if name.starts_with("hf://") || (!looks_like_path(name) && name.contains('/')) {
        let id = HubId::parse(name).map_err(|e| match nearest(name, PUBLISHED) {
            Some(near) => e.hint(format!("did you mean {near}?")),
            None => e,
        })?;
        let snapshot = hub::snapshot(&id, options, report)?;
        return in_snapshot(id, snapshot, options);
    }
    Err(unknown(name))
}

/// A name that only a path has, so that a mistyped path is no question to the network.
fn looks_like_path(name: &str) -> bool {
    name.starts_with(['/', '.', '~', '\\'])
        || name.ends_with(['/', '\\'])
        || name.contains('\\')
        || name.get(1..3).is_some_and(|s| s == ":/")
        || name.ends_with(".safetensors")
        // A Hub id has one slash, that of an npz in a repository two; a revision may have more.
        || (!name.contains('@') && name.matches('/').count() > if name.ends_with(".npz") { 2 } else { 1 })
        || (name.ends_with(".npz") && name.matches('/').count() < 2)
}

fn on_disk(name: &str) -> Result<Option<Location>> {
    let path = Path::new(name);
    let at = |source: Source, path: &Path, parts| Ok(Some(Location { source, path: path.to_owned(), parts }));
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => at(Source::Folder, path, vec![]),
        Ok(m) if m.is_file() && name.contains(".npz.part") => {
            // One part stands for all of them.
            let whole = name.rsplit_once(".part").map_or(name, |(whole, _)| whole);
            let parts = parts_of(Path::new(whole))?;
            at(Source::File, parts.first().map_or(path, |p| p), parts.clone())
        }
        Ok(m) if m.is_file() => at(Source::File, path, vec![]),
        Ok(_) => Err(Error::usage(format!("'{name}' is neither a file nor a folder"))),
        Err(_) if name.ends_with(".npz") => match parts_of(path)?.as_slice() {
            [] => Ok(None),
            parts => at(Source::File, &parts[0], parts.to_vec()),
        },
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(Error::io(path, e)),
        Err(_) => Ok(None),
    }
}

/// The files `x.npz.part*` beside the `whole` x.npz, in the order of their numbers or letters.
fn parts_of(whole: &Path) -> Result<Vec<PathBuf>> {
    let folder = match whole.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let Some(prefix) = whole.file_name().and_then(|n| n.to_str()).map(|n| format!("{n}.part")) else {
        return Ok(vec![]);
    };
    let mut names: Vec<String> = names_in(folder).into_iter().filter(|n| n.starts_with(&prefix)).collect();
    sort_parts(&mut names, &prefix)?;
    Ok(names.into_iter().map(|n| whole.with_file_name(n)).collect())
}

/// Sorts part names and refuses a series with a gap: the bytes would be joined wrongly.
fn sort_parts(names: &mut [String], prefix: &str) -> Result<()> {
    // `.part0`, `.part-00001`, `.part_1`, `.part-00001-of-00004`: the first number counts.
    let number = |name: &str| {
        let tail = name.strip_prefix(prefix)?.trim_start_matches(['-', '_', '.']);
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        tail[..end].parse::<u64>().ok()
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| number(n)).collect();
    if numbers.len() < names.len() {
        names.sort_unstable();
        return Ok(());
    }
    names.sort_by_key(|n| number(n));
    numbers.sort_unstable();
    if numbers.first().is_some_and(|&n| n > 1) {
        return Err(Error::model("the first part of the npz is missing")
            .at(names[0].clone())
            .expected("parts from 0 or 1 on"));
    }
    match numbers.windows(2).zip(names.iter()).find(|(pair, _)| pair[1] - pair[0] != 1) {
        None => Ok(()),
        Some((_, name)) => Err(Error::model("a part of the npz is missing, or is there twice")
            .at(format!("after {name}"))
            .expected("parts numbered one by one")),
    }
}

fn big_vision(name: &str, file: &str, options: &HubOptions) -> Result<Location> {
    let Some(folder) = &options.gemma_dir else {
        return Err(Error::usage(format!("{name} is a big_vision name, and BV_GEMMA_DIR is not set")).hint(
            format!("set BV_GEMMA_DIR to the folder that holds {file}; or give a folder, a file or a Hub id such as {}", PUBLISHED[0]),
        ));
    };
    if folder.to_str().is_some_and(|f| f.contains("://")) {
        return Err(Error::usage("BV_GEMMA_DIR names a bucket")
            .at(folder.display().to_string())
            .expected("a folder on this machine")
            .hint("copy the checkpoint here first"));
    }
    let plain = format!("{name}.npz");
    for file in [file, &plain] {
        let path = folder.join(file);
        if let Some(found) = path.to_str().map(on_disk).transpose()?.flatten() {
            return Ok(Location { source: Source::BigVision(name.to_owned()), ..found });
        }
    }
    let here: Vec<String> = names_in(folder).into_iter().filter(|n| n.contains(".npz")).collect();
    let error = Error::usage(format!("{name} is not in $BV_GEMMA_DIR"))
        .at(folder.display().to_string())
        .expected(format!("a file {file}"));
    Err(match nearest(file, here.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("there is {near}: give its path if that is meant")),
        None if here.is_empty() => error.hint("the folder holds no npz"),
        None => error.hint(format!("there is {}", here.join(", "))),
    })
}

/// The folder of a Hub model, or its npz.
fn in_snapshot(id: HubId, snapshot: hub::Snapshot, options: &HubOptions) -> Result<Location> {
    let names = names_in(&snapshot.path);
    let source = |id| Source::Hub { id, commit: snapshot.commit.clone() };
    let is_folder = names.iter().any(|n| n == "model.safetensors" || n == "model.safetensors.index.json");
    if options.want == hub::Want::Tokenizer || (is_folder && id.file.is_none()) {
        return Ok(Location { source: source(id), path: snapshot.path, parts: vec![] });
    }
    // The names without `.part…`, each once.
    let mut wholes: Vec<&str> = names.iter().filter_map(|n| n.find(".npz").map(|at| &n[..at + 4])).collect();
    wholes.sort_unstable();
    wholes.dedup();
    let whole = match (&id.file, wholes.as_slice()) {
        (Some(file), _) => file.clone(),
        (None, [whole]) => (*whole).to_owned(),
        _ => {
            let choice: Vec<String> = wholes.iter().map(|w| format!("{id}/{w}")).collect();
            return Err(Error::usage(format!("{id} holds several npz files"))
                .at(snapshot.path.display().to_string())
                .hint(format!("name one: {}", choice.join(", "))));
        }
    };
    let path = snapshot.path.join(&whole);
    match path.to_str().map(on_disk).transpose()?.flatten() {
        Some(found) => Ok(Location { source: source(id), ..found }),
        None => Err(Error::model(format!("{id} has no {whole}")).at(snapshot.path.display().to_string())),
    }
}

/// The names in a folder that are text, sorted; none if it cannot be listed.
fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()).filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn unknown(name: &str) -> Error {
    let error = if looks_like_path(name) {
        Error::usage(format!("there is no file or folder '{name}'"))
    } else {
        Error::usage(format!("no model is called '{name}'")).expected(
            "a folder, a file, nano, a big_vision name (pt_224) or a Hub id (google/paligemma-3b-pt-224)",
        )
    };
    let path = Path::new(name);
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let beside = names_in(folder);
    let beside = beside.iter().map(String::as_str);
    let near_path = path.file_name().and_then(|n| n.to_str()).and_then(|file| nearest(file, beside));
    let near = near_path
        .map(|near| path.with_file_name(near).display().to_string())
        .or_else(|| nearest(name, BuiltIn::all().iter().map(|model| model.name)).map(str::to_owned))
        .or_else(|| nearest(name, BIG_VISION.iter().map(|(n, _)| *n)).map(str::to_owned))
        .or_else(|| nearest_published(name).map(str::to_owned));
    match near {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error,
    }
}

/// The published Hub id that `name` resembles and is not, with or without its organisation.
pub(super) fn nearest_published(name: &str) -> Option<&'static str> {
    let near = match name.contains('/') {
        true => nearest(name, PUBLISHED)?,
        false => {
            let tails = PUBLISHED.iter().filter_map(|p| p.split_once('/')).map(|(_, tail)| tail);
            let tail = nearest(name, tails)?;
            PUBLISHED.iter().find(|p| p.ends_with(&format!("/{tail}")))?
        }
    };
    (near != name).then_some(near)
}

/// The candidate with the fewest edits, if those are few for its length.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    // The distance costs the product of the lengths; nobody mistypes a thousand characters.
    if name.len() > 200 {
        return None;
    }
    candidates
        .into_iter()
        .map(|c| (strsim::osa_distance(&name, &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= (c.len() / 4).clamp(1, 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use std::ops::ControlFlow;

    fn ask(name: &str, options: &HubOptions) -> Result<Location> {
        locate(name, options, &mut |_| ControlFlow::Continue(()))
    }

    /// A folder with the named empty files, and options that reach no network.
    fn folder(files: &[&str]) -> (tempfile::TempDir, HubOptions) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut options = HubOptions::new(folder.path().join("cache"));
        options.offline = true;
        (folder, options)
    }

    #[test]
    fn what_exists_comes_first_and_says_what_it_is() {
        let (dir, options) = folder(&["m/config.json", "pt_224.npz", "a.npz.part0", "a.npz.part1"]);
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, source, first, parts) in [
            ("m", Source::Folder, "m", 0),
            ("pt_224.npz", Source::File, "pt_224.npz", 0),
            ("a.npz", Source::File, "a.npz.part0", 2),
            ("a.npz.part1", Source::File, "a.npz.part0", 2),
        ] {
            let found = ask(&path(name), &options).unwrap();
            assert_eq!(
                (found.source, found.path, found.parts.len()),
                (source, path(first).into(), parts),
                "{name}"
            );
        }
    }

    #[test]
    fn parts_are_joined_in_the_order_of_their_numbers() {
        for (names, expected) in [
            (vec!["a.npz.part10", "a.npz.part9", "a.npz.part8"], None),
            (vec!["a.npz.part1", "a.npz.part0", "a.npz.part3"], None),
            (vec!["a.npz.part0", "a.npz.part00"], None),
            (vec!["a.npz.partab", "a.npz.partaa"], Some("a.npz.partaa")),
            (
                vec!["a.npz.part-00002-of-00002", "a.npz.part-00001-of-00002"],
                Some("a.npz.part-00001-of-00002"),
            ),
        ] {
            let mut sorted: Vec<String> = names.iter().map(|n| (*n).to_string()).collect();
            let result = sort_parts(&mut sorted, "a.npz.part").map(|()| sorted[0].clone());
            assert_eq!(result.ok().as_deref(), expected, "{names:?}");
        }
        let mut many: Vec<String> = (0..12).rev().map(|i| format!("a.npz.part{i}")).collect();
        sort_parts(&mut many, "a.npz.part").unwrap();
        assert_eq!(many[2], "a.npz.part2");
        assert_eq!(many[10], "a.npz.part10");
    }

    #[test]
    fn big_vision_names_live_in_bv_gemma_dir() {
        let (dir, mut options) = folder(&[
            "pt_224.npz",
            "pt_3b_448.bf16.npz",
            "pt_28b_896.bf16.npz.part0",
            "pt_28b_896.bf16.npz.part1",
            "pt_3b_896.npz",
        ]);
        let unset = ask("pt_224", &options).unwrap_err().to_string();
        assert!(unset.contains("BV_GEMMA_DIR is not set"), "{unset}");
        options.gemma_dir = Some(dir.path().to_owned());
        for (name, file, parts) in [
            ("pt_224", "pt_224.npz", 0),
            ("pt_3b_448", "pt_3b_448.bf16.npz", 0),
            ("pt_3b_896", "pt_3b_896.npz", 0),
            ("pt_28b_896", "pt_28b_896.bf16.npz.part0", 2),
        ] {
            let found = ask(name, &options).unwrap();
            assert_eq!(found.source, Source::BigVision(name.into()));
            assert_eq!((found.path, found.parts.len()), (dir.path().join(file), parts), "{name}");
        }
        let missing = ask("pt_224.bf16", &options).unwrap_err().to_string();
        assert!(missing.contains("pt_224.bf16 is not in $BV_GEMMA_DIR"), "{missing}");
        assert!(missing.contains("there is pt_"), "{missing}");
        options.gemma_dir = Some("gs://bucket/x".into());
        assert!(ask("pt_224", &options).unwrap_err().to_string().contains("bucket"));
    }

    #[test]
    fn an_unknown_name_says_what_it_may_have_meant() {
        let (dir, options) = folder(&["model-a/config.json", "pt_448.npz"]);
        let here = |name: &str| dir.path().join(name).display().to_string();
        for (name, near) in [
            ("pt_242".to_owned(), "pt_224".to_owned()),
            ("pt3b_224".to_owned(), "pt_3b_224".to_owned()),
            ("paligemma-3b-pt-224".to_owned(), "google/paligemma-3b-pt-224".to_owned()),
            ("PaliGemma2-3b-mix-448".to_owned(), "google/paligemma2-3b-mix-448".to_owned()),
            (here("model-b"), here("model-a")),
            (here("pt_44.npz"), here("pt_448.npz")),
        ] {
            let error = ask(&name, &options).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{name}");
            let hint = error.hint_text().unwrap_or_default().to_owned();
            assert_eq!(hint, format!("did you mean {near}?"), "{name}");
        }
        for name in ["", "zebra", "gs://a/b", &"x".repeat(100_000), "a/b/c/d", "google/../x", "\0"] {
            assert_eq!(ask(name, &options).unwrap_err().kind(), Kind::Usage, "{:.20}", name);
        }
    }

    #[test]
    fn the_big_vision_table_has_one_file_a_name() {
        for (name, file) in BIG_VISION {
            assert!(file.starts_with(name) && file.ends_with(".npz"), "{name}");
        }
        assert_eq!(nearest_published("google/paligemma-3b-pt-224"), None);
    }
}
