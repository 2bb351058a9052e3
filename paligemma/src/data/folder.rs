//! A folder of pictures, each with its texts beside it: `cats/0007.jpg` and `cats/0007.json` or `cats/0007.txt`.

use std::fs;
use std::path::{Path, PathBuf};

use super::example::{ImageFile, Record, read_part};
use super::jsonl::MAX_LINE;
use super::members::{Found, Members};
use crate::{Error, Result};

/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 32;

/// A folder: the names of its files.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    members: Members,
}

impl Folder {
    /// Finds all files below `path`, in the order of their names. Links to folders are not followed: they may lead in
    /// circles.
    ///
    /// # Errors
    /// A folder that cannot be read or is too deep; [`crate::Kind::Input`] for a name that is not UTF-8.
    pub(super) fn open(path: &Path) -> Result<Folder> {
        let mut names = Vec::new();
        find(path, "", 0, &mut names)?;
        // By whole path, so that the order depends neither on the file system nor on the machine; the slash first, so
        // that the files of one example stand together whatever else the folder is called.
        names.sort_unstable();
        let mut members = Members::default();
        for (name, len) in names {
            members.push(&name, 0, len)?;
        }
        Ok(Folder { path: path.to_path_buf(), members })
    }

    /// The number of examples.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// `folder/0007`
    pub(super) fn place(&self, i: usize) -> String {
        self.path.join(self.members.key(i)).display().to_string()
    }

    /// An example's files; see [`Members::record`].
    ///
    /// # Errors
    /// Those of [`Members::record`].
    pub(super) fn record(&self, i: usize, image: &str, needed: &[&str]) -> Result<Record> {
        let path = |found: Found<'_>| self.path.join(format!("{}.{}", found.key, found.ending));
        let read = |found: Found<'_>| read_part(&path(found), 0, found.len, MAX_LINE);
        let image_file = |found: Found<'_>| ImageFile::Path(path(found));
        self.members
            .record(i, image, needed, &read, &image_file)
            .map_err(|error| error.at(self.path.display().to_string()))
    }
}

fn find(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<(String, u64)>) -> Result<()> {
    let io = |error| Error::io(folder, error);
    if depth > MAX_DEPTH {
        return Err(
            Error::input(format!("folders lie more than {MAX_DEPTH} deep")).at(folder.display().to_string())
        );
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(Error::input("a file's name is not UTF-8").at(path.display().to_string()));
        };
        let name = format!("{prefix}{name}");
        if entry.file_type().map_err(io)?.is_dir() {
            find(&path, &format!("{name}/"), depth + 1, names)?;
            continue;
        }
        // Through a link to its file; a link that leads nowhere is no example.
        match fs::metadata(&path) {
            Ok(file) if file.is_file() => names.push((name, file.len())),
            _ => {}
        }
    }
    Ok(())
}
