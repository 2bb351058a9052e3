//! JSONL files: one JSON object a line, its image a path or a list of paths.
//!
//! big_vision's own files read as they are (`big_vision/datasets/jsonl.py`): an object of any keys a line, the image's
//! folder given beside it (`fopen_keys`), the prefix often by the configuration (`strfmt`) instead of the file.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::de::{Deserializer as _, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::example::{ImageFile, Record, read_part};
use crate::{Error, Result};

/// The longest line that is read.
pub const MAX_LINE: u64 = 16 << 20;
/// The most pictures of an example; the paper's videos have 16.
pub const MAX_IMAGES: usize = 64;

/// A JSONL file: where its lines are, not what stands in them.
#[derive(Debug)]
pub(super) struct Jsonl {
    path: PathBuf,
    lines: Vec<Line>,
    /// The field of the pictures' paths; empty for texts.
    image: String,
    /// Where they are looked for, in this order.
    image_dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    offset: u64,
    /// Without the line break.
    len: u64,
    /// From 1 on; blank lines count.
    number: u64,
}

impl Jsonl {
    /// Finds the lines. The field `image` names pictures, which are looked for in `image_dir`, or else beside the file,
    /// then in the current folder.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn open(path: &Path, image_dir: Option<&Path>, image: &str) -> Result<Jsonl> {
        let io = |error| Error::io(path, error);
        let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
        let mut lines = Vec::new();
        let mut line = Line { offset: 0, len: 0, number: 1 };
        let mut is_blank = true;
        loop {
            // A line may be longer than memory: piece by piece, and only its place is kept.
            let buffer = reader.fill_buf().map_err(io)?;
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let piece = &buffer[..end.unwrap_or(buffer.len())];
            is_blank &= piece.trim_ascii().is_empty();
            line.len += piece.len() as u64;
            let used = piece.len() + usize::from(end.is_some());
            if end.is_some() {
                if !is_blank {
                    lines.push(line);
                }
                line = Line { offset: line.offset + line.len + 1, len: 0, number: line.number + 1 };
                is_blank = true;
            }
            reader.consume(used);
        }
        if !is_blank {
            lines.push(line);
        }
        let image_dirs = match image_dir {
            Some(folder) => vec![folder.to_path_buf()],
            None => vec![path.parent().unwrap_or(Path::new("")).to_path_buf(), PathBuf::new()],
        };
        Ok(Jsonl { path: path.to_path_buf(), lines, image: image.to_owned(), image_dirs })
    }

    /// The number of lines that are not blank.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// `data.jsonl:7`
    pub(super) fn place(&self, i: usize) -> String {
        format!("{}:{}", self.path.display(), self.lines[i].number)
    }

    /// What stands in a line.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: a line that is too long, not UTF-8, no JSON object, or without a picture's path.
    pub(super) fn record(&self, i: usize) -> Result<Record> {
        let Line { offset, len, .. } = self.lines[i];
        if len > MAX_LINE {
            return Err(Error::input("the line is over 16 MiB")
                .at(self.place(i))
                .expected("one JSON object a line"));
        }
        let bytes = read_part(&self.path, offset, len, MAX_LINE)?;
        let values = object(&bytes).map_err(|(error, column)| match column {
            0 => error.at(self.place(i)),
            column => error.at(format!("{}:{column}", self.place(i))),
        })?;
        let images = self.images(&values).map_err(|error| error.at(self.place(i)))?;
        Ok(Record { values, images })
    }

    fn images(&self, values: &Map<String, Value>) -> Result<Vec<ImageFile>> {
        let image = &self.image;
        if image.is_empty() {
            return Ok(Vec::new());
        }
        let names: Option<Vec<&str>> = match values.get(image.as_str()) {
            Some(Value::String(name)) => Some(vec![name]),
            Some(Value::Array(names)) => names.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            return Err(Error::input(format!("the field `{image}` is no path"))
                .expected("the path of an image file, or a list of them"));
        };
        if names.len() > MAX_IMAGES {
            return Err(Error::input(format!("the example has {} pictures", names.len()))
                .expected(format!("at most {MAX_IMAGES}")));
        }
        let place = |name: &str| {
            if name.contains("://") {
                return Err(Error::input(format!("the image {name} is an address"))
                    .expected("the path of an image file")
                    .hint("download it first: data is never fetched from the network"));
            }
            let there = self.image_dirs.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            there.map(ImageFile::Path).ok_or_else(|| {
                let error = Error::input(format!("there is no image {name}"));
                match self.image_dirs[0].as_os_str().is_empty() {
                    true => error,
                    false => error.expected(format!("it in {}", self.image_dirs[0].display())),
                }
            })
        };
        names.into_iter().map(place).collect()
    }
}

/// A JSON object; an error goes with its column, from 1 on, or 0 where there is none.
pub(super) fn object(bytes: &[u8]) -> std::result::Result<Map<String, Value>, (Error, usize)> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        (Error::input("the text is not UTF-8").expected("one JSON object a line"), error.valid_up_to() + 1)
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = reader.deserialize_any(Object).and_then(|object| reader.end().map(|()| object));
    read.map_err(|error| {
        // serde_json puts the place at the end of its sentence; it stands in ours already.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what);
        (Error::input(format!("the line is not a JSON object: {what}")), error.column())
    })
}

/// Reads an object and refuses a key that stands in it twice: which of both is meant nobody knows.
struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} stands in it twice")));
            }
            object.insert(key, access.next_value()?);
        }
        Ok(object)
    }
}
