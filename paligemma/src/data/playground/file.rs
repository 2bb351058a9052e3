//! What describes a part of the playground, so that it is a data set like others: its pictures are drawn when they are
//! asked for, and stand nowhere. It is a file of its own, or the table `playground` of a recipe's data.
//!
//! ```toml
//! split = "train"        # or val, test, compositional
//! seed = 0
//! count = 1_000_000
//! size = 112             # of the pictures
//! most_things = 1        # in a picture; as the tasks have them if not given
//! vqvae = "vae.npz"      # beside the file, or where the program runs; the masks' model within the program if not given
//! [tasks]                # how often each comes; the first stage's mixture if not given
//! caption = 2
//! detect = 1.5
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ask::{Task, Tasks};
use super::split::Split;
use super::stream::{Drawing, Playground};
use crate::data::example::{ImageFile, Record};
use crate::masks::MaskCodec;
use crate::{Error, Result};

/// Sides of a picture.
const SIZES: std::ops::RangeInclusive<usize> = 14..=2048;
/// The longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A part of the playground.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The name of a split.
    pub split: String,
    /// Another seed gives other examples.
    #[serde(default)]
    pub seed: u64,
    /// The number of examples.
    pub count: usize,
    /// Width and height of the pictures, in pixels.
    pub size: usize,
    /// The most things in a picture; as the tasks have them if not given.
    pub most_things: Option<usize>,
    /// The masks' model, in place of the one within the program.
    pub vqvae: Option<PathBuf>,
    /// How often each task comes; the first stage's mixture if not given.
    pub tasks: Option<BTreeMap<String, f64>>,
}

/// A part of the playground as a data set.
#[derive(Debug)]
pub(in crate::data) struct Drawn {
    path: PathBuf,
    playground: Playground,
    count: usize,
    side: usize,
    codec: Box<MaskCodec>,
}

impl Drawn {
    /// Reads the description.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: what is wrong with it; those of the masks' model.
    pub(in crate::data) fn open(path: &Path) -> Result<Drawn> {
        let place = path.display().to_string();
        let length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
        if length > MAX_FILE {
            return Err(Error::input(format!("{place} is too long for a playground")).expected("a few lines"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        Drawn::read(&text, path).map_err(|error| error.at(place))
    }

    fn read(text: &str, path: &Path) -> Result<Drawn> {
        let mut description: Description = toml::from_str(text)
            .map_err(|error| Error::input(error.to_string().trim_end()).because(error))?;
        description.vqvae = description.vqvae.map(|file| path.parent().unwrap_or(Path::new("")).join(file));
        Drawn::of(description, path)
    }

    /// The part of the playground, whose examples are told as those of `path`.
    ///
    /// # Errors
    /// As [`Drawn::open`].
    pub(in crate::data) fn of(description: Description, path: &Path) -> Result<Drawn> {
        let Description { split, seed, count, size, most_things, vqvae, tasks } = description;
        let names = |names: Vec<&str>| names.join(", ");
        let Some(split) = Split::ALL.into_iter().find(|known| known.name() == split) else {
            return Err(Error::input(format!("there is no split \"{split}\""))
                .expected(names(Split::ALL.iter().map(|split| split.name()).collect())));
        };
        if !SIZES.contains(&size) {
            return Err(Error::input(format!("size is {size}")).expected("14 to 2048 pixels"));
        }
        if count == 0 {
            return Err(Error::input("count is 0").expected("the number of examples"));
        }
        let mut playground = Playground::new(split, seed);
        if let Some(given) = tasks {
            let mut weights: Tasks = [0.0; Task::ALL.len()];
            for (name, weight) in given {
                let Some(i) = Task::ALL.iter().position(|task| task.name() == name) else {
                    return Err(Error::input(format!("there is no task \"{name}\""))
                        .expected(names(Task::ALL.iter().map(|task| task.name()).collect())));
                };
                weights[i] = weight as f32;
            }
            playground = playground.with_tasks(weights).map_err(|error| error.of_kind(crate::Kind::Input))?;
        }
        if let Some(most) = most_things {
            playground =
                playground.with_most_things(most).map_err(|error| error.of_kind(crate::Kind::Input))?;
        }
        let codec = Box::new(MaskCodec::open(vqvae.as_deref())?);
        playground.example(0, Some(&codec)).map_err(|error| error.of_kind(crate::Kind::Input))?;
        Ok(Drawn { path: path.to_path_buf(), playground, count, side: size, codec })
    }

    /// The number of examples.
    pub(in crate::data) fn len(&self) -> usize {
        self.count
    }

    /// `train.playground:7`
    pub(in crate::data) fn place(&self, i: usize) -> String {
        format!("{}:{}", self.path.display(), i + 1)
    }

    /// `prefix`, `suffix` (a list), `task` and `lang` of an example, and its pictures, not drawn yet.
    ///
    /// # Errors
    /// None that [`Drawn::open`] has not found.
    pub(in crate::data) fn record(&self, i: usize) -> Result<Record> {
        let played =
            self.playground.example(i as u64, Some(&self.codec)).map_err(|error| error.at(self.place(i)))?;
        let Value::Object(values) = json!({
            "prefix": played.prefix,
            "suffix": played.suffixes,
            "task": played.task.name(),
            "lang": played.lang.code(),
        }) else {
            return Err(Error::input("an example is no object"));
        };
        let image = |drawing: Drawing| ImageFile::Drawn(Arc::new(drawing));
        Ok(Record { values, images: played.drawings(self.side).into_iter().map(image).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Grey16;

    #[test]
    fn a_description_is_a_data_set() {
        let text = "split = \"val\"\nseed = 3\ncount = 40\nsize = 28\n[tasks]\ncolour = 1\npair = 2.5\n";
        let drawn = Drawn::read(text, Path::new("a/val.playground")).unwrap();
        assert_eq!((drawn.len(), drawn.place(6).as_str()), (40, "a/val.playground:7"));
        for i in 0..40 {
            let record = drawn.record(i).unwrap();
            let task = record.values["task"].as_str().unwrap();
            assert!(matches!(task, "colour" | "pair"), "{task}");
            assert_eq!(record.images.len(), if task == "pair" { 2 } else { 1 });
            let picture = record.images[0].decode(Grey16::default()).unwrap();
            assert_eq!((picture.width, picture.height), (28, 28));
            assert_eq!(record, drawn.record(i).unwrap());
        }
    }

    #[test]
    fn a_wrong_description_is_refused() {
        let check = |text: &str, why: &str| {
            let error = Drawn::read(text, Path::new("x.playground")).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        };
        check("split = \"train\"\ncount = 1", "size");
        check("split = \"train\"\ncount = 1\nsize = 28\nsides = 1", "sides");
        check("split = \"all\"\ncount = 1\nsize = 28", "compositional");
        check("split = \"val\"\ncount = 1\nsize = 3", "2048");
        check("split = \"val\"\ncount = 0\nsize = 28", "count");
        check("split = \"val\"\ncount = 1\nsize = 28\n[tasks]\ncolor = 1", "colour");
        check("split = \"val\"\ncount = 1\nsize = 28\n[tasks]\ncount = -1", "weights");
        check("split = \"val\"\ncount = 1\nsize = 28\nmost_things = 1\n[tasks]\ncompare = 1", "`compare`");
        check("split = \"val\"\ncount = 1\nsize = 28\nvqvae = \"absent.npz\"", "absent.npz");
    }
}
