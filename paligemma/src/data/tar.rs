//! Tar files as webdataset has them: shards of examples, each some files whose names begin alike. Nothing is ever
//! extracted: members are read where they lie, and their names are only names.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tar::{Archive, EntryType, PaxExtensions};

use super::example::{ImageFile, Record, read_part};
use super::jsonl::MAX_LINE;
use super::members::{Found, Members};
use crate::{Error, Kind, Result};

/// The most bytes that describe a name; longer names than any file system has.
const MAX_NAME: u64 = 64 << 10;

/// A tar file: where its members are, not what is in them.
#[derive(Debug)]
pub(super) struct Tar {
    path: Arc<Path>,
    members: Members,
}

impl Tar {
    /// Reads all headers.
    ///
    /// # Errors
    /// [`Kind::Input`]: not a tar file, one that is cut off, a header that is broken or asks for too much.
    pub(super) fn open(path: &Path) -> Result<Tar> {
        let io = |error| Error::io(path, error);
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut members = Members::default();
        let mut archive = Archive::new(file);
        // Raw: the crate would read the names of names, however long they say they are, into memory.
        let entries = archive.entries_with_seek().map_err(io)?.raw(true);
        let mut long_name: Option<Vec<u8>> = None;
        let mut number = 0u64;
        for entry in entries {
            number += 1;
            let broken = |what: String| {
                Error::input(what)
                    .at(format!("{}, member {number}", path.display()))
                    .hint("is the file whole?")
            };
            let mut entry = entry.map_err(|error| broken(format!("this tar file is broken: {error}")))?;
            let (offset, len) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(len).is_none_or(|end| end > size) {
                return Err(broken(format!(
                    "this tar file is cut off: a member of {len} bytes ends beyond it"
                )));
            }
            let kind = entry.header().entry_type();
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                if len > MAX_NAME {
                    return Err(broken(format!("a name is described in {len} bytes"))
                        .expected(format!("at most {} KiB", MAX_NAME >> 10)));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(io)?;
                if kind.is_gnu_longname() {
                    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
                    long_name = Some(bytes);
                } else if let Some(name) =
                    pax_path(&bytes).map_err(|what| broken(format!("this tar file is broken: {what}")))?
                {
                    long_name = Some(name);
                }
                continue;
            }
            let name = long_name.take();
            if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
                if kind.is_gnu_sparse() {
                    return Err(broken("this tar file has sparse members, which are not supported".into()));
                }
                continue; // Folders, links and global headers are no examples.
            }
            let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
            let name = String::from_utf8(name).map_err(|error| {
                broken(format!("a name is not UTF-8: {:?}", error.into_bytes().escape_ascii()))
            })?;
            members.push(&name, offset, len).map_err(|error| error.at(path.display().to_string()))?;
        }
        if number == 0 {
            return Err(Error::input("this tar file is empty").at(path.display().to_string()));
        }
        Ok(Tar { path: path.into(), members })
    }

    /// The number of examples.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// `shard.tar:0007`
    pub(super) fn place(&self, i: usize) -> String {
        format!("{}:{}", self.path.display(), self.members.key(i))
    }

    /// An example's files; see [`Members::record`].
    ///
    /// # Errors
    /// Those of [`Members::record`].
    pub(super) fn record(&self, i: usize, image: &str, needed: &[&str]) -> Result<Record> {
        let read = |found: Found<'_>| read_part(&self.path, found.offset, found.len, MAX_LINE);
        let image_file = |found: Found<'_>| ImageFile::Part {
            file: self.path.clone(),
            offset: found.offset,
            len: found.len,
        };
        let record = self.members.record(i, image, needed, &read, &image_file);
        record.map_err(|error| match error.kind() {
            Kind::Input => error.at(self.path.display().to_string()),
            _ => error,
        })
    }
}

/// The path that a pax header gives, if it gives one. A size in it would move all that follows, and no
/// picture needs one.
fn pax_path(bytes: &[u8]) -> std::result::Result<Option<Vec<u8>>, String> {
    let mut path = None;
    for extension in PaxExtensions::new(bytes) {
        let extension = extension.map_err(|error| error.to_string())?;
        match extension.key_bytes() {
            b"path" => path = Some(extension.value_bytes().to_vec()),
            b"size" => return Err("a pax header gives a size, which is not supported".into()),
            key if key.starts_with(b"GNU.sparse") => {
                return Err("it has sparse members, which are not supported".into());
            }
            _ => {}
        }
    }
    Ok(path)
}
