//! Annotated pictures, whoever annotated them, and the examples made of them.
//!
//! The prompt names the things as the paper has them, `detect cat ; dog`; the answer has an object for each annotation,
//! in the annotations' order: the pre-training's own is not published.

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::image::{Mask, Plane, Polygon, Rect, Rle, decode_file, fill_polygons, mask_of_picture};
use crate::masks::MaskCodec;
use crate::text::{Bins, Object, PixelBox, Task as Prompt, write_answer};
use crate::{Error, Result};

/// A picture and what is on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotated {
    /// The picture's file, as the annotations name it.
    pub image: String,
    /// Its size in pixels.
    pub width: usize,
    /// Its size in pixels.
    pub height: usize,
    /// In the order of the file.
    pub annotations: Vec<Annotation>,
}

/// An object on a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// Where the annotation stands, for errors.
    pub place: String,
    /// What it is.
    pub label: String,
    /// Where it is, in pixels; it may reach beyond the picture. None means around its shape.
    pub pixels: Option<PixelBox>,
    /// Its shape, if that is known.
    pub shape: Shape,
    /// Whether it stands for several objects together.
    pub is_crowd: bool,
}

/// The shape of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Not known.
    None,
    /// In pixels.
    Polygons(Vec<Polygon>),
    /// Of the whole picture.
    Rle(Rle),
    /// A file with a mask of the whole picture.
    File(std::path::PathBuf),
}

/// What the examples ask for.
#[derive(Debug)]
pub enum Task<'c> {
    /// Boxes.
    Detect,
    /// Boxes and masks, which the codec turns into codes.
    Segment(&'c MaskCodec),
}

/// How annotations become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Group {
    /// An example for a picture, with all its things.
    #[default]
    Picture,
    /// An example for each thing on a picture.
    Thing,
}

/// Annotations that make no object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// They stand for several objects together.
    pub crowds: usize,
    /// Their boxes have no area, or none within the picture, in steps of 1/1023.
    pub no_area: Vec<String>,
}

/// What came of annotations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Converted {
    /// Lines of JSONL: `image`, `prefix`, `suffix`.
    pub lines: Vec<Value>,
    /// Objects in them.
    pub num_objects: usize,
    /// Pictures without any object, which make no example.
    pub num_empty: usize,
    /// Annotations that were left out.
    pub skipped: Skipped,
}

/// Pictures that are worked on at once.
const AT_ONCE: usize = 256;

/// Makes examples of annotated pictures. `each` is told again and again how many are done.
///
/// # Errors
/// [`crate::Kind::Input`], with the annotation's place: a label that an answer cannot have, a shape that is none, no
/// shape where masks are asked for. What `each` returns.
pub fn convert(
    pictures: &[Annotated],
    task: &Task<'_>,
    group: Group,
    each: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Converted> {
    let mut converted = Converted::default();
    for (done, pictures) in pictures.chunks(AT_ONCE).enumerate() {
        // In the order of the pictures, whatever the threads do.
        let objects: Vec<Vec<Option<Object>>> =
            pictures.par_iter().map(|picture| objects(picture, task)).collect::<Result<_>>()?;
        for (picture, objects) in pictures.iter().zip(objects) {
            for (annotation, object) in picture.annotations.iter().zip(&objects) {
                match (annotation.is_crowd, object) {
                    (true, _) => converted.skipped.crowds += 1,
                    (false, None) => converted.skipped.no_area.push(annotation.place.clone()),
                    (false, Some(_)) => {}
                }
            }
            let objects: Vec<Object> = objects.into_iter().flatten().collect();
            converted.lines.extend(lines(picture, &objects, task, group)?);
            converted.num_objects += objects.len();
            converted.num_empty += usize::from(objects.is_empty());
        }
        each((done + 1) * AT_ONCE)?;
    }
    Ok(converted)
}

/// The object of each annotation, or none where it makes none.
fn objects(picture: &Annotated, task: &Task<'_>) -> Result<Vec<Option<Object>>> {
    let one = |annotation: &Annotation| match annotation.is_crowd {
        true => Ok(None),
        false => object(picture, annotation, task).map_err(|error| error.at(&annotation.place)),
    };
    picture.annotations.iter().map(one).collect()
}

/// The lines for a picture: none without objects.
fn lines(picture: &Annotated, objects: &[Object], task: &Task<'_>, group: Group) -> Result<Vec<Value>> {
    // In the order in which they first stand.
    let mut labels: Vec<&str> = Vec::new();
    for object in objects {
        if !labels.contains(&object.label.as_str()) {
            labels.push(&object.label);
        }
    }
    let size = match group {
        Group::Picture => labels.len().max(1),
        Group::Thing => 1,
    };
    let line = |things: &[&str]| {
        let prompt = match task {
            Task::Detect => Prompt::Detect { things },
            Task::Segment(_) => Prompt::Segment { things },
        };
        let chosen = objects.iter().filter(|object| things.contains(&object.label.as_str()));
        let suffix = write_answer(chosen).map_err(|error| error.at(&picture.image))?;
        Ok(json!({ "image": picture.image, "prefix": prompt.prefix()?, "suffix": suffix }))
    };
    labels.chunks(size).map(line).collect()
}

/// The object of an annotation, or none if nothing of it is on the picture.
fn object(picture: &Annotated, annotation: &Annotation, task: &Task<'_>) -> Result<Option<Object>> {
    let (width, height) = (picture.width, picture.height);
    let is_segment = matches!(task, Task::Segment(_));
    // Shapes are only filled when they are needed: that is what takes time.
    let mask = match (is_segment || annotation.pixels.is_none(), &annotation.shape) {
        (false, _) => None,
        (true, shape) => Some(shape.to_plane(width, height)?),
    };
    let pixels = match (annotation.pixels, &mask) {
        (Some(pixels), _) => Some(pixels),
        (None, Some(mask)) => bounds(mask),
        (None, None) => None,
    };
    let Some([x0, y0, x1, y1]) = pixels else { return Ok(None) };
    if ![x0, y0, x1, y1].into_iter().all(f64::is_finite) {
        return Err(Error::input(format!("the box {x0}, {y0}, {x1}, {y1} is none")).expected("four numbers"));
    }
    if x1 < x0 || y1 < y0 {
        return Err(Error::input(format!("the box {x0}, {y0}, {x1}, {y1} is inverted"))
            .expected("corners from the upper left to the lower right"));
    }
    let (w, h) = (width as f64, height as f64);
    let pixels = [x0.clamp(0.0, w), y0.clamp(0.0, h), x1.clamp(0.0, w), y1.clamp(0.0, h)];
    let bins = Bins::from_pixels(pixels, width, height);
    if bins.fault().is_some() {
        return Ok(None);
    }
    let codes = match (task, &mask) {
        (Task::Segment(codec), Some(mask)) => {
            // Above zero in 1023 parts, and yet no whole pixel.
            if Rect::rounded(pixels, width, height).is_empty() {
                return Ok(None);
            }
            Some(codec.encode(mask, pixels)?)
        }
        _ => None,
    };
    let object = Object { bins, codes, label: annotation.label.clone() };
    object.check()?;
    Ok(Some(object))
}

/// The box around what is mask.
fn bounds(mask: &Plane) -> Option<PixelBox> {
    let bits = mask.values.iter().map(|&value| value > 0.5).collect();
    let rect = Mask { width: mask.width, height: mask.height, bits }.bounds()?;
    Some([rect.x0, rect.y0, rect.x1, rect.y1].map(|side| side as f64))
}

impl Shape {
    fn to_plane(&self, width: usize, height: usize) -> Result<Plane> {
        let plane = match self {
            Shape::None => {
                return Err(
                    Error::input("the object has no shape").expected("a segmentation, to make masks of")
                );
            }
            Shape::Polygons(polygons) => fill_polygons(polygons, width, height)?.to_plane(),
            Shape::Rle(rle) => rle.to_mask().to_plane(),
            Shape::File(path) => {
                let picture = decode_file(path)?;
                mask_of_picture(&picture).map_err(|error| error.at(path.display().to_string()))?
            }
        };
        if (plane.width, plane.height) != (width, height) {
            return Err(Error::input(format!("the mask's size is {}×{}", plane.width, plane.height))
                .expected(format!("{width}×{height}, the picture's")));
        }
        Ok(plane)
    }
}
