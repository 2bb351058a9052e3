//! Folders of masks: `MASKS/cat/0007.png` is a cat on the picture `0007`; a second cat on it is `cat/0007.2.png`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::objects::{Annotated, Annotation, Shape};
use crate::image::decode_file;
use crate::{Error, Result};

/// Endings of pictures, in the order in which they are looked for.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "JPG", "PNG"];

/// Reads a folder that has a folder of masks for each label. What stands before the first dot of a mask's name is the
/// name of its picture in the folder `images`. Pictures come in the order of their names, their objects in the order of
/// labels and names.
///
/// # Errors
/// [`crate::Kind::Input`]: a folder without masks, a mask without its picture, a picture that cannot be read.
pub fn read_mask_folder(masks: &Path, images: &Path) -> Result<Vec<Annotated>> {
    let mut by_picture: BTreeMap<String, Vec<(String, PathBuf)>> = BTreeMap::new();
    for (label, folder) in entries(masks)?.into_iter().filter(|(_, path)| path.is_dir()) {
        for (name, path) in entries(&folder)? {
            if !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png")) {
                continue;
            }
            let key = name.split('.').next().unwrap_or(&name).to_owned();
            by_picture.entry(key).or_default().push((label.clone(), path));
        }
    }
    if by_picture.is_empty() {
        return Err(Error::input(format!("there is no mask in {}", masks.display()))
            .expected("a folder for each label, with a PNG for each object: cat/0007.png"));
    }
    let annotated = |(key, found): (String, Vec<(String, PathBuf)>)| -> Result<Annotated> {
        let place = found[0].1.display().to_string();
        let name = PICTURES.iter().map(|ending| format!("{key}.{ending}"));
        let image = name.into_iter().find(|name| images.join(name).is_file()).ok_or_else(|| {
            Error::input(format!("there is no picture {key} in {}", images.display()))
                .at(&place)
                .expected(format!("one that ends in {}", PICTURES[..4].join(", ")))
        })?;
        let picture = decode_file(&images.join(&image))?;
        let annotation = |(label, path): (String, PathBuf)| Annotation {
            place: path.display().to_string(),
            label,
            pixels: None,
            shape: Shape::File(path),
            is_crowd: false,
        };
        let (width, height) = (picture.width, picture.height);
        Ok(Annotated { image, width, height, annotations: found.into_iter().map(annotation).collect() })
    };
    by_picture.into_iter().map(annotated).collect()
}

/// What is in a folder, by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let io = |error| Error::io(folder, error).of_kind(crate::Kind::Input);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| Error::input("a file's name is not UTF-8").at(entry.path().display().to_string()))?;
        found.push((name, entry.path()));
    }
    found.sort_unstable();
    Ok(found)
}
