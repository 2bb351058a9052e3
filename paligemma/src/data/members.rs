//! Files that belong together by their names, as webdataset has them: `0007.jpg`, `0007.json` and `0007.txt` are one
//! example. What stands before the first dot of a name is the key, what stands behind it the ending.
//!
//! The fields of an example are the keys of its `.json` and, by their endings, its other files as text.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::example::{ImageFile, Record};
use super::jsonl::{MAX_IMAGES, MAX_LINE, object};
use crate::{Error, Result};

/// Endings of pictures.
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// The examples of a tar or a folder: keys, endings, and where the bytes are.
#[derive(Debug, Default)]
pub(super) struct Members {
    groups: Vec<Group>,
    members: Vec<Member>,
    endings: Vec<Box<str>>,
    ids: HashMap<Box<str>, u16>,
}

#[derive(Debug)]
struct Group {
    key: Box<str>,
    /// The first of its members; the next group's first is the end.
    first: usize,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    ending: u16,
    offset: u64,
    len: u64,
}

/// A member, to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'m> {
    pub(super) key: &'m str,
    pub(super) ending: &'m str,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Members {
    /// Adds a file; those with one key come one after the other. Names without an ending are passed over.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: a name that stands there twice, or too many endings.
    pub(super) fn push(&mut self, name: &str, offset: u64, len: u64) -> Result<()> {
        let start = name.rfind('/').map_or(0, |at| at + 1);
        let Some(dot) = name[start..].find('.').map(|at| start + at) else { return Ok(()) };
        let (key, ending) = (&name[..dot], &name[dot + 1..]);
        // `.hidden` has no key.
        if dot == start || ending.is_empty() {
            return Ok(());
        }
        let next = self.endings.len();
        let ending = match self.ids.get(ending) {
            Some(&id) => id,
            None => {
                let id = u16::try_from(next)
                    .map_err(|_| Error::input("the files have more than 65,536 different endings"))?;
                self.endings.push(ending.into());
                self.ids.insert(ending.into(), id);
                id
            }
        };
        match self.groups.last() {
            Some(group) if *group.key == *key => {
                if self.members[group.first..].iter().any(|member| member.ending == ending) {
                    return Err(Error::input(format!("the file {name} is there twice")));
                }
            }
            _ => self.groups.push(Group { key: key.into(), first: self.members.len() }),
        }
        self.members.push(Member { ending, offset, len });
        Ok(())
    }

    /// The number of examples.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// What the names of an example have in common.
    pub(super) fn key(&self, i: usize) -> &str {
        &self.groups[i].key
    }

    /// An example: its pictures are the files whose ending is `image`, or all pictures in the order of their endings
    /// where that is "image", or none where it is empty; its fields are those of `needed` that are there. `read` gives a file's bytes, `image_file`
    /// the place of a picture.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: no picture, a text that is not UTF-8 or too long, a field that is there twice.
    pub(super) fn record(
        &self,
        i: usize,
        image: &str,
        needed: &[&str],
        read: &dyn Fn(Found<'_>) -> Result<Vec<u8>>,
        image_file: &dyn Fn(Found<'_>) -> ImageFile,
    ) -> Result<Record> {
        let group = &self.groups[i];
        let end = self.groups.get(i + 1).map_or(self.members.len(), |next| next.first);
        let mut found: Vec<Found<'_>> = self.members[group.first..end]
            .iter()
            .map(|&Member { ending, offset, len }| Found {
                key: &group.key,
                ending: &self.endings[usize::from(ending)],
                offset,
                len,
            })
            .collect();
        found.sort_by_key(|member| member.ending);
        let is_picture = |ending: &str| match image {
            "" => false,
            "image" => {
                let last = ending.rsplit('.').next().unwrap_or(ending);
                PICTURES.iter().any(|picture| picture.eq_ignore_ascii_case(last))
            }
            named => ending == named,
        };
        let images: Vec<ImageFile> = found
            .iter()
            .filter(|member| is_picture(member.ending))
            .map(|&member| image_file(member))
            .collect();
        if (images.is_empty() && !image.is_empty()) || images.len() > MAX_IMAGES {
            let endings: Vec<&str> = found.iter().map(|member| member.ending).collect();
            return Err(Error::input(format!("the example has {} pictures", images.len()))
                .at(format!("files {}.{{{}}}", group.key, endings.join(",")))
                .expected(match image {
                    "image" => format!("1 to {MAX_IMAGES} files that end in {}", PICTURES.join(", ")),
                    named => format!("a file that ends in {named}"),
                }));
        }
        let mut values = Map::new();
        let name = |member: &Found<'_>| format!("file {}.{}", member.key, member.ending);
        let bounded = |member: Found<'_>| {
            if member.len > MAX_LINE {
                return Err(Error::input("the text is over 16 MiB"));
            }
            read(member)
        };
        for member in found.iter().filter(|member| member.ending == "json") {
            let bytes = bounded(*member).map_err(|error| error.at(name(member)))?;
            values = object(&bytes).map_err(|(error, column)| match column {
                0 => error.at(name(member)),
                column => error.at(format!("{}, column {column}", name(member))),
            })?;
        }
        for member in found.iter().filter(|member| member.ending != "json" && !is_picture(member.ending)) {
            // Texts that nobody asks for are not read: they may be anything.
            if !needed.contains(&member.ending) {
                continue;
            }
            let bytes = bounded(*member).map_err(|error| error.at(name(member)))?;
            let text = String::from_utf8(bytes)
                .map_err(|_| Error::input("the text is not UTF-8").at(name(member)))?;
            // The line break at the end is the file's, not the text's.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if values.insert(member.ending.to_owned(), Value::String(text.to_owned())).is_some() {
                return Err(Error::input(format!("the field `{}` is there twice", member.ending))
                    .at(name(member))
                    .expected("it in the .json or as a file of its own"));
            }
        }
        Ok(Record { values, images })
    }
}
