//! Pascal VOC's annotations: an XML file a picture.

use std::fs;
use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::objects::{Annotated, Annotation, Shape};
use crate::{Error, Result};

/// The most bytes of an annotation file.
const MAX_XML: u64 = 16 << 20;

/// Reads an XML file, or all `.xml` files of a folder in the order of their names. Corners are numbers of pixels, from 1
/// on and both inside, as the challenge defines them: the box of `xmin` 1 and `xmax` 500 covers a picture of 500.
///
/// # Errors
/// [`crate::Kind::Input`]: a folder without annotations, broken XML, a missing element, a number that is none.
pub fn read_voc(path: &Path) -> Result<Vec<Annotated>> {
    let io = |error| Error::io(path, error).of_kind(crate::Kind::Input);
    let mut files: Vec<PathBuf> = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file.extension().is_some_and(|ending| ending == "xml") {
                files.push(file);
            }
        }
        files.sort_unstable();
    } else {
        files.push(path.to_path_buf());
    }
    if files.is_empty() {
        return Err(Error::input(format!("there is no annotation in {}", path.display()))
            .expected("an .xml for each picture"));
    }
    files.iter().map(|file| read_file(file)).collect()
}

fn read_file(path: &Path) -> Result<Annotated> {
    let io = |error| Error::io(path, error).of_kind(crate::Kind::Input);
    let at_file = |error: Error| error.at(path.display().to_string());
    let size = fs::metadata(path).map_err(io)?.len();
    if size > MAX_XML {
        return Err(at_file(Error::input(format!("the file has {size} bytes")))
            .expected(format!("at most {} MiB", MAX_XML >> 20)));
    }
    let text = fs::read_to_string(path).map_err(io)?;
    let document = Document::parse(&text)
        .map_err(|error| at_file(Error::input(format!("this is no XML: {error}")).because(error)))?;
    let root = document.root_element();
    if !root.has_tag_name("annotation") {
        let name = root.tag_name().name();
        return Err(at_file(Error::input(format!("this is no VOC annotation: its root is `{name}`")))
            .expected("`annotation`"));
    }
    let whole = |parent: Node<'_, '_>, name: &str| -> Result<usize> {
        let number = number(parent, name)?;
        match number >= 1.0 && number.fract() == 0.0 && number <= 1e6 {
            true => Ok(number as usize),
            false => Err(Error::input(format!("`{name}` is {number}")).expected("a number of pixels")),
        }
    };
    let size = child(root, "size").map_err(at_file)?;
    let (width, height) =
        whole(size, "width").and_then(|w| Ok((w, whole(size, "height")?))).map_err(at_file)?;
    let image = value(root, "filename").map_err(at_file)?;
    let mut annotations = Vec::new();
    for object in root.children().filter(|node| node.has_tag_name("object")) {
        let place = format!("{}:{}", path.display(), document.text_pos_at(object.range().start).row);
        let read = || -> Result<Annotation> {
            let corners = child(object, "bndbox")?;
            let corner = |name: &str| number(corners, name);
            let pixels = [corner("xmin")? - 1.0, corner("ymin")? - 1.0, corner("xmax")?, corner("ymax")?];
            Ok(Annotation {
                place: place.clone(),
                label: value(object, "name")?,
                pixels: Some(pixels),
                shape: Shape::None,
                is_crowd: false,
            })
        };
        annotations.push(read().map_err(|error| error.at(&place))?);
    }
    Ok(Annotated { image, width, height, annotations })
}

fn child<'a, 'd>(parent: Node<'a, 'd>, name: &str) -> Result<Node<'a, 'd>> {
    let found = parent.children().find(|node| node.has_tag_name(name));
    found.ok_or_else(|| {
        Error::input(format!("`{}` has no `{name}`", parent.tag_name().name()))
            .expected("the elements of a VOC annotation")
    })
}

fn value(parent: Node<'_, '_>, name: &str) -> Result<String> {
    let text = child(parent, name)?.text().unwrap_or("").trim().to_owned();
    if text.is_empty() {
        return Err(Error::input(format!("`{name}` is empty")));
    }
    Ok(text)
}

fn number(parent: Node<'_, '_>, name: &str) -> Result<f64> {
    let text = value(parent, name)?;
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| Error::input(format!("`{name}` is {text}")).expected("a number"))
}
