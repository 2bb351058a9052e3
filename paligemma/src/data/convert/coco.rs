//! COCO's and LVIS's annotation files.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;

use super::objects::{Annotated, Annotation, Shape};
use crate::image::{Polygon, Rle};
use crate::{Error, Result};

#[derive(Deserialize)]
struct Document {
    images: Vec<Image>,
    annotations: Vec<Entry>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    /// LVIS has none, but the address.
    file_name: Option<String>,
    coco_url: Option<String>,
    width: usize,
    height: usize,
}

#[derive(Deserialize)]
struct Entry {
    id: u64,
    image_id: u64,
    category_id: u64,
    bbox: [f64; 4],
    segmentation: Option<Segmentation>,
    #[serde(default)]
    iscrowd: u8,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Segmentation {
    Polygons(Vec<Vec<f64>>),
    Counts { counts: Vec<u32>, size: [usize; 2] },
    Compressed { counts: String, size: [usize; 2] },
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

/// Reads a COCO annotation file (`instances_val2017.json`).
///
/// # Errors
/// [`crate::Kind::Input`]: a file that is no such JSON, an image or a category that is not there or twice, a picture
/// without a name or a size, a shape that is none.
pub fn read_coco(path: &Path) -> Result<Vec<Annotated>> {
    read(path, &|image| image.file_name.clone())
}

/// Reads an LVIS annotation file (`lvis_v1_val.json`), whose pictures are COCO's: `val2017/000000000139.jpg`, from the end
/// of their addresses.
///
/// # Errors
/// Those of [`read_coco`].
pub fn read_lvis(path: &Path) -> Result<Vec<Annotated>> {
    read(path, &|image| {
        let url = image.coco_url.as_deref().or(image.file_name.as_deref())?;
        let parts: Vec<&str> = url.rsplitn(3, '/').collect();
        match parts[..] {
            [file, folder, ..] => Some(format!("{folder}/{file}")),
            _ => Some(url.to_owned()),
        }
    })
}

fn read(path: &Path, name: &dyn Fn(&Image) -> Option<String>) -> Result<Vec<Annotated>> {
    let place = || path.display().to_string();
    let file = File::open(path).map_err(|error| Error::io(path, error).of_kind(crate::Kind::Input))?;
    let document: Document =
        serde_json::from_reader(BufReader::with_capacity(1 << 20, file)).map_err(|error| {
            Error::input(format!("this is no COCO annotation file: {error}"))
                .at(place())
                .expected("an object with `images`, `annotations` and `categories`")
                .because(error)
        })?;
    let mut labels = HashMap::new();
    for category in document.categories {
        if labels.insert(category.id, category.name).is_some() {
            return Err(Error::input(format!("the category {} is there twice", category.id)).at(place()));
        }
    }
    let mut pictures = Vec::with_capacity(document.images.len());
    let mut numbers = HashMap::new();
    for image in &document.images {
        let at = |error: Error| error.at(format!("{}, image {}", path.display(), image.id));
        let image_name = name(image).filter(|name| !name.is_empty());
        let image_name = image_name.ok_or_else(|| at(Error::input("the image has no `file_name`")))?;
        if image.width == 0 || image.height == 0 {
            return Err(at(Error::input(format!("the image's size is {}×{}", image.width, image.height))));
        }
        if numbers.insert(image.id, pictures.len()).is_some() {
            return Err(at(Error::input("the image is there twice")));
        }
        let (width, height) = (image.width, image.height);
        pictures.push(Annotated { image: image_name, width, height, annotations: Vec::new() });
    }
    for entry in document.annotations {
        let place = format!("{}, annotation {}", path.display(), entry.id);
        let at = |error: Error| error.at(&place);
        let picture = numbers.get(&entry.image_id).ok_or_else(|| {
            at(Error::input(format!("it is of image {}, which is not there", entry.image_id)))
        })?;
        let picture = &mut pictures[*picture];
        let label = labels.get(&entry.category_id).ok_or_else(|| {
            at(Error::input(format!("it is of category {}, which is not there", entry.category_id)))
        })?;
        let [x, y, w, h] = entry.bbox;
        let shape = shape(entry.segmentation, picture.width, picture.height).map_err(at)?;
        picture.annotations.push(Annotation {
            label: label.clone(),
            pixels: Some([x, y, x + w, y + h]),
            shape,
            is_crowd: entry.iscrowd != 0,
            place,
        });
    }
    Ok(pictures)
}

fn shape(segmentation: Option<Segmentation>, width: usize, height: usize) -> Result<Shape> {
    let check = |[h, w]: [usize; 2]| match (w, h) == (width, height) {
        true => Ok(()),
        false => Err(Error::input(format!("its run lengths are of {w}×{h}"))
            .expected(format!("{width}×{height}, the image's size"))),
    };
    Ok(match segmentation {
        None => Shape::None,
        Some(Segmentation::Polygons(polygons)) if polygons.is_empty() => Shape::None,
        Some(Segmentation::Polygons(polygons)) => {
            let corners = |numbers: Vec<f64>| -> Result<Polygon> {
                match numbers.as_chunks::<2>() {
                    (corners, []) => Ok(corners.to_vec()),
                    _ => Err(Error::input(format!("a polygon has {} numbers", numbers.len()))
                        .expected("two for each corner")),
                }
            };
            Shape::Polygons(polygons.into_iter().map(corners).collect::<Result<_>>()?)
        }
        Some(Segmentation::Counts { counts, size }) => {
            check(size)?;
            Shape::Rle(Rle::from_counts(counts, width, height)?)
        }
        Some(Segmentation::Compressed { counts, size }) => {
            check(size)?;
            Shape::Rle(Rle::from_compressed(&counts, width, height)?)
        }
    })
}
