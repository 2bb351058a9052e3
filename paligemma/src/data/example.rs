//! One example: pictures, a prefix, and what may be answered.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::playground::Drawing;
use crate::image::decode::MAX_FILE;
use crate::image::{Grey16, Picture, decode_as, decode_file_as};
use crate::{Error, Kind, Result};

/// One example of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Where it stands: `data.jsonl:7`, `shard.tar:0007`, `part.parquet:7`.
    pub place: String,
    /// Its pictures, in order; none of a text.
    pub images: Vec<ImageFile>,
    /// The prompt, without the line break behind it.
    pub prefix: String,
    /// What may be answered; at least one. Each time one of them is taken.
    pub suffixes: Vec<String>,
}

/// An image file that is not yet decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageFile {
    /// A file of its own.
    Path(PathBuf),
    /// A part of a file.
    Part {
        /// The file.
        file: Arc<Path>,
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Its bytes.
    Bytes(Vec<u8>),
    /// A picture of the playground, drawn when it is asked for.
    Drawn(Arc<Drawing>),
}

impl ImageFile {
    /// The picture, upright; `grey16` as in [`decode_as`].
    ///
    /// # Errors
    /// [`Kind::Input`]: no such file, and those of [`decode_as`].
    pub fn decode(&self, grey16: Grey16) -> Result<Picture> {
        match self {
            ImageFile::Path(path) => decode_file_as(path, grey16).map_err(|error| match error.kind() {
                // A file that a line of data names is that line's.
                Kind::Io if !path.exists() => {
                    Error::input(format!("there is no image {}", path.display())).because(error)
                }
                Kind::Io => error.of_kind(Kind::Input),
                _ => error,
            }),
            ImageFile::Part { file, offset, len } => {
                decode_as(&read_part(file, *offset, *len, MAX_FILE)?, grey16)
            }
            ImageFile::Bytes(bytes) => decode_as(bytes, grey16),
            ImageFile::Drawn(drawing) => Ok(drawing.picture()),
        }
    }
}

/// `len` bytes of a file, refused when there are more than `limit`.
pub(super) fn read_part(file: &Path, offset: u64, len: u64, limit: u64) -> Result<Vec<u8>> {
    if len > limit {
        return Err(Error::input(format!("{len} bytes are too many"))
            .at(file.display().to_string())
            .expected(format!("at most {} MiB", limit >> 20)));
    }
    let io = |error| Error::io(file, error);
    let mut open = File::open(file).map_err(io)?;
    open.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut bytes = Vec::with_capacity(len as usize);
    open.take(len).read_to_end(&mut bytes).map_err(io)?;
    if (bytes.len() as u64) < len {
        return Err(Error::input("the file has become shorter").at(file.display().to_string()));
    }
    Ok(bytes)
}

/// What a line, a row or a group of files holds: texts and numbers by name, and pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Record {
    /// Texts, numbers, and lists and objects of them.
    pub(super) values: Map<String, Value>,
    /// The pictures, in order.
    pub(super) images: Vec<ImageFile>,
}
