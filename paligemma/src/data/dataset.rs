//! A data set: files of one kind or of several, one behind the other, as examples with numbers.

use std::path::{Path, PathBuf};

use super::example::{Example, Record};
use super::fields::Fields;
use super::folder::Folder;
use super::jsonl::Jsonl;
use super::parquet::Parquet;
use super::playground::{Description, Drawn};
use super::tar::Tar;
use crate::{Error, Result};

/// The most examples of a data set; their order in an epoch takes four bytes each.
pub const MAX_EXAMPLES: usize = u32::MAX as usize;

/// The endings of files that hold examples.
const KINDS: [&str; 5] = ["jsonl", "ndjson", "tar", "parquet", "playground"];

/// Examples by number. Only where they are is in memory, not what they are.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    /// The number of the first example of each shard, and of all.
    starts: Vec<usize>,
    fields: Fields,
}

#[derive(Debug)]
enum Shard {
    Jsonl(Jsonl),
    Tar(Tar),
    Parquet(Parquet),
    Folder(Folder),
    Drawn(Drawn),
}

impl Dataset {
    /// Opens files, in this order. Each is a JSONL, tar, Parquet or `.playground` file by its ending, or a folder: of such files, of a
    /// `metadata.jsonl` with `file_name` (Hugging Face's image folder), or of pictures with texts beside them. A `*` in a
    /// file's name stands for anything.
    ///
    /// `image_dir` is where the pictures are that a file names by a path; without it, beside the file.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: no such file, no example, an unknown ending, a folder of several kinds, and what is wrong
    /// with a file as a whole.
    pub fn open(files: &[PathBuf], image_dir: Option<&Path>, fields: Fields) -> Result<Dataset> {
        let mut data = Dataset { shards: Vec::new(), starts: vec![0], fields };
        if let Some(folder) = image_dir
            && !folder.is_dir()
        {
            return Err(Error::input(format!("there is no image folder {}", folder.display())));
        }
        for path in files {
            for path in expand(path)? {
                match path.is_dir() {
                    true => data.open_folder(&path, image_dir)?,
                    false => data.open_file(&path, image_dir)?,
                }
            }
        }
        if data.is_empty() {
            let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            return Err(Error::input("there is no example").at(names.join(", ")));
        }
        Ok(data)
    }

    /// A part of the playground, called `name`.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: what is wrong with it.
    pub fn drawn(description: Description, name: &str, fields: Fields) -> Result<Dataset> {
        let mut data = Dataset { shards: Vec::new(), starts: vec![0], fields };
        data.push(Shard::Drawn(Drawn::of(description, Path::new(name))?))?;
        Ok(data)
    }

    fn push(&mut self, shard: Shard) -> Result<()> {
        let len = match &shard {
            Shard::Jsonl(shard) => shard.len(),
            Shard::Tar(shard) => shard.len(),
            Shard::Parquet(shard) => shard.len(),
            Shard::Folder(shard) => shard.len(),
            Shard::Drawn(shard) => shard.len(),
        };
        let end = self.len().checked_add(len).filter(|&end| end <= MAX_EXAMPLES);
        let end = end.ok_or_else(|| {
            Error::input("the data set has too many examples").expected(format!("at most {MAX_EXAMPLES}"))
        })?;
        self.shards.push(shard);
        self.starts.push(end);
        Ok(())
    }

    fn open_file(&mut self, path: &Path, image_dir: Option<&Path>) -> Result<()> {
        let shard = match ending(path).as_deref() {
            Some("jsonl" | "ndjson") => Shard::Jsonl(Jsonl::open(path, image_dir, &self.fields.image)?),
            Some("tar") => Shard::Tar(Tar::open(path)?),
            Some("playground") => Shard::Drawn(Drawn::open(path)?),
            Some("parquet") => {
                let fields: Vec<&str> = self.fields.needed().collect();
                Shard::Parquet(Parquet::open(path, image_dir, &self.fields.image, &fields)?)
            }
            Some("gz" | "tgz" | "zst" | "bz2" | "xz" | "zip") => {
                return Err(Error::input(format!("{} is compressed", path.display()))
                    .expected("a file in which every example can be read by itself")
                    .hint("unpack it; the pictures in it are compressed already"));
            }
            _ => {
                return Err(Error::input(format!("{} is no known kind of data", path.display()))
                    .expected(format!("a folder, or a file that ends in {}", KINDS.join(", "))));
            }
        };
        self.push(shard)
    }

    fn open_folder(&mut self, folder: &Path, image_dir: Option<&Path>) -> Result<()> {
        let metadata = folder.join("metadata.jsonl");
        if metadata.is_file() {
            // Hugging Face's image folder names the picture in `file_name`.
            let image = if self.fields.image == "image" { "file_name" } else { &self.fields.image };
            let image_dir = Some(image_dir.unwrap_or(folder));
            return self.push(Shard::Jsonl(Jsonl::open(&metadata, image_dir, image)?));
        }
        let entries = std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| Error::io(folder, error))?.path();
            if path.is_file() && ending(&path).is_some_and(|ending| KINDS.contains(&ending.as_str())) {
                files.push(path);
            }
        }
        if files.is_empty() {
            return self.push(Shard::Folder(Folder::open(folder)?));
        }
        let mut endings: Vec<String> = files.iter().filter_map(|path| ending(path)).collect();
        endings.sort_unstable();
        endings.dedup();
        if endings.len() > 1 {
            return Err(Error::input(format!("the folder {} holds data of several kinds", folder.display()))
                .expected(format!("one of {}", endings.join(", ")))
                .hint("name the files instead of the folder"));
        }
        files.sort_unstable();
        files.iter().try_for_each(|path| self.open_file(path, image_dir))
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        *self.starts.last().unwrap_or(&0)
    }

    /// Whether there is no example; an open data set has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, i: usize) -> (&Shard, usize) {
        assert!(i < self.len(), "example {i} of {}", self.len());
        let number = self.starts.partition_point(|&start| start <= i) - 1;
        (&self.shards[number], i - self.starts[number])
    }

    /// Where example `i` stands: `data.jsonl:7`, `shard.tar:0007`, `part.parquet:7`. Panics beyond the last.
    pub fn place(&self, i: usize) -> String {
        match self.shard(i) {
            (Shard::Jsonl(shard), i) => shard.place(i),
            (Shard::Tar(shard), i) => shard.place(i),
            (Shard::Parquet(shard), i) => shard.place(i),
            (Shard::Folder(shard), i) => shard.place(i),
            (Shard::Drawn(shard), i) => shard.place(i),
        }
    }

    /// Example `i`; its pictures are not decoded yet. Panics beyond the last.
    ///
    /// # Errors
    /// [`crate::Kind::Input`], with the example's place: what is wrong with it.
    pub fn example(&self, i: usize) -> Result<Example> {
        let fields = &self.fields;
        let needed: Vec<&str> = fields.needed().collect();
        let Record { values, mut images } = match self.shard(i) {
            (Shard::Jsonl(shard), i) => shard.record(i)?,
            (Shard::Tar(shard), i) => shard.record(i, &fields.image, &needed)?,
            (Shard::Parquet(shard), i) => shard.record(i)?,
            (Shard::Folder(shard), i) => shard.record(i, &fields.image, &needed)?,
            (Shard::Drawn(shard), i) => shard.record(i)?,
        };
        if fields.image.is_empty() {
            images.clear();
        }
        let place = self.place(i);
        let texts =
            fields.prefix.one(&values).and_then(|prefix| Ok((prefix, fields.suffix.several(&values)?)));
        let (prefix, suffixes) = texts.map_err(|error| error.at(place.clone()))?;
        Ok(Example { place, images, prefix, suffixes })
    }
}

fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase())
}

/// The files that a name with `*` stands for, sorted; a name that is there stands for itself.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    if path.exists() || !name.contains('*') {
        return match path.exists() {
            true => Ok(vec![path.to_path_buf()]),
            false => Err(Error::input(format!("there is no data file {}", path.display()))),
        };
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        if entry.file_name().to_str().is_some_and(|file| matches(name, file)) {
            found.push(path.with_file_name(entry.file_name()));
        }
    }
    if found.is_empty() {
        return Err(Error::input(format!("no file is called {}", path.display())));
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether `name` is `pattern`, in which each `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match() {
        let check = |pattern: &str, name: &str, want: bool| {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        };
        check("a.tar", "a.tar", true);
        check("a.tar", "a.tar.gz", false);
        check("*", "", true);
        check("*.tar", "a-000.tar", true);
        check("*.tar", "a-000.tar.md5", false);
        check("train-*-of-*.parquet", "train-00000-of-00002.parquet", true);
        check("train-*-of-*.parquet", "train-00000.parquet", false);
        check("a*a", "a", false);
        check("a*a", "aa", true);
        check("*ab*ab", "ab", false);
        check("*ab*ab", "xabab", true);
    }
}
