//! YOLO's label files: `CLASS CX CY W H` in parts of the picture, or `CLASS X Y X Y …` around an object's shape.

use std::fs;
use std::path::{Path, PathBuf};

use super::objects::{Annotated, Annotation, Shape};
use crate::image::decode_file;
use crate::{Error, Result};

/// The most bytes of a label file or of a file of names.
const MAX_TEXT: u64 = 16 << 20;
/// Endings of pictures, in the order in which they are looked for.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "JPG", "PNG"];

/// Reads all `.txt` files of the folder `labels`, in the order of their names; the picture of each has its name, in the
/// folder `images`. Pictures are opened for their sizes where shapes are outlined, since a mask is of pixels; boxes need
/// none, and stay parts of a picture of 1 × 1.
///
/// # Errors
/// [`crate::Kind::Input`]: a folder without label files, a line that is none, a class without a name, a picture that is
/// not there.
pub fn read_yolo(labels: &Path, images: &Path, names: &[String]) -> Result<Vec<Annotated>> {
    let io = |error| Error::io(labels, error).of_kind(crate::Kind::Input);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(labels).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let is_names = path.file_name().is_some_and(|name| name == "classes.txt");
        if path.extension().is_some_and(|ending| ending == "txt") && !is_names {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::input(format!("there is no label file in {}", labels.display()))
            .expected("a .txt for each picture"));
    }
    files.sort_unstable();
    files.iter().map(|path| read_file(path, images, names)).collect()
}

fn read_file(path: &Path, images: &Path, names: &[String]) -> Result<Annotated> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let stem =
        stem.ok_or_else(|| Error::input("the file's name is not UTF-8").at(path.display().to_string()))?;
    let picture =
        PICTURES.iter().map(|ending| format!("{stem}.{ending}")).find(|name| images.join(name).is_file());
    let picture = picture.ok_or_else(|| {
        Error::input(format!("there is no picture {stem} in {}", images.display()))
            .at(path.display().to_string())
            .expected(format!("one that ends in {}", PICTURES[..4].join(", ")))
    })?;
    let text = read_text(path)?;
    let mut annotations = Vec::new();
    let mut size = None;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}:{}", path.display(), number + 1);
        let read = || -> Result<(String, Vec<f64>)> {
            let mut words = line.split_whitespace();
            let class = words.next().unwrap_or("");
            let label = class.parse::<usize>().ok().and_then(|class| names.get(class)).ok_or_else(|| {
                Error::input(format!("the class {class} has no name"))
                    .expected(format!("a number below {}, the number of names", names.len()))
            })?;
            let number = |word: &str| {
                let number = word.parse::<f64>().ok().filter(|number| number.is_finite());
                number.ok_or_else(|| Error::input(format!("{word} is no number")))
            };
            Ok((label.clone(), words.map(number).collect::<Result<_>>()?))
        };
        let (label, numbers) = read().map_err(|error| error.at(&place))?;
        let is_shape = numbers.len() >= 6 && numbers.len().is_multiple_of(2);
        // A fifth number is a prediction's confidence, which no truth has.
        if numbers.len() != 4 && !is_shape {
            return Err(Error::input(format!("the line has {} numbers behind its class", numbers.len()))
                .at(&place)
                .expected("4: centre x, centre y, width, height; or x and y of 3 corners or more"));
        }
        if let Some(part) = numbers.iter().find(|&&part| !(-0.5..=1.5).contains(&part)) {
            return Err(Error::input(format!("the position {part} is far outside the picture"))
                .at(&place)
                .expected("parts of the picture, from 0 to 1"));
        }
        if is_shape && size.is_none() {
            let picture = decode_file(&images.join(&picture)).map_err(|error| error.at(&place))?;
            size = Some((picture.width, picture.height));
        }
        annotations.push((place, label, numbers));
    }
    let (width, height) = size.unwrap_or((1, 1));
    let (w, h) = (width as f64, height as f64);
    let annotation = |(place, label, numbers): (String, String, Vec<f64>)| {
        let (pixels, shape) = match numbers[..] {
            [x, y, across, down] => (
                [(x - across / 2.0) * w, (y - down / 2.0) * h, (x + across / 2.0) * w, (y + down / 2.0) * h],
                Shape::None,
            ),
            _ => {
                let corners: Vec<[f64; 2]> =
                    numbers.chunks_exact(2).map(|corner| [corner[0] * w, corner[1] * h]).collect();
                let least = |i: usize| corners.iter().map(|corner| corner[i]).fold(f64::INFINITY, f64::min);
                let most =
                    |i: usize| corners.iter().map(|corner| corner[i]).fold(f64::NEG_INFINITY, f64::max);
                ([least(0), least(1), most(0), most(1)], Shape::Polygons(vec![corners.clone()]))
            }
        };
        Annotation { place, label, pixels: Some(pixels), shape, is_crowd: false }
    };
    let annotations = annotations.into_iter().map(annotation).collect();
    Ok(Annotated { image: picture, width, height, annotations })
}

/// Reads the names of the classes: a text file of a name a line (`classes.txt`, `obj.names`), or the `names` of a
/// `data.yaml` as a list or as numbers with names.
///
/// # Errors
/// [`crate::Kind::Input`]: a file that is neither, or without a name.
pub fn read_yolo_names(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let names = match is_yaml {
        false => text.lines().map(|line| line.trim().to_owned()).collect(),
        true => yaml_names(&text).map_err(|what| {
            Error::input(what)
                .at(path.display().to_string())
                .expected("`names: [cat, dog]`, or below `names:` lines as `- cat` or `0: cat`")
                .hint("put the names into a text file, one a line")
        })?,
    };
    let mut names: Vec<String> = names;
    while names.last().is_some_and(String::is_empty) {
        names.pop();
    }
    match names.iter().position(String::is_empty) {
        _ if names.is_empty() => {
            Err(Error::input("there is no name of a class").at(path.display().to_string()))
        }
        Some(empty) => Err(Error::input(format!("the class {empty} has no name")).at(format!(
            "{}:{}",
            path.display(),
            empty + 1
        ))),
        None => Ok(names),
    }
}

/// The `names` of a data.yaml in the three forms in which they are written; any other is an error.
fn yaml_names(text: &str) -> std::result::Result<Vec<String>, String> {
    let plain = |name: &str| {
        let name = name.trim();
        for quote in ['\'', '"'] {
            if let Some(inner) = name.strip_prefix(quote) {
                let inner = inner.strip_suffix(quote).filter(|inner| !inner.contains([quote, '\\']));
                return inner.map(str::to_owned).ok_or_else(|| format!("the name {name} is not understood"));
            }
        }
        let is_odd = name.is_empty() || name.contains(['[', ']', '{', '}', ':', '"']) || name.contains(" #");
        if is_odd { Err(format!("the name {name:?} is not understood")) } else { Ok(name.to_owned()) }
    };
    let mut lines = text.lines().skip_while(|line| !line.starts_with("names:"));
    let Some(first) = lines.next() else { return Err("there are no `names`".into()) };
    let first = first["names:".len()..].split(" #").next().unwrap_or("").trim();
    if !first.is_empty() {
        let list = first.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
        let list = list.ok_or_else(|| format!("`names: {first}` is not understood"))?;
        return list.split(',').map(plain).collect();
    }
    let mut names = Vec::new();
    for line in lines {
        let line = line.split(" #").next().unwrap_or("");
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let name = if let Some(name) = line.trim_start().strip_prefix("- ") {
            name
        } else if line.starts_with([' ', '\t']) {
            let (number, name) =
                line.split_once(':').ok_or_else(|| format!("the line {line:?} is not understood"))?;
            if number.trim() != names.len().to_string() {
                return Err(format!("the class {} stands in place of {}", number.trim(), names.len()));
            }
            name
        } else {
            break; // The next key.
        };
        names.push(plain(name)?);
    }
    Ok(names)
}

fn read_text(path: &Path) -> Result<String> {
    let io = |error| Error::io(path, error).of_kind(crate::Kind::Input);
    let size = fs::metadata(path).map_err(io)?.len();
    if size > MAX_TEXT {
        return Err(Error::input(format!("the file has {size} bytes"))
            .at(path.display().to_string())
            .expected(format!("at most {} MiB", MAX_TEXT >> 20)));
    }
    let bytes = fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map_err(|_| Error::input("the text is not UTF-8").at(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_yaml_are_read_in_three_forms() {
        let check = |text: &str, want: &[&str]| assert_eq!(yaml_names(text).unwrap(), want, "{text}");
        check(
            "path: x\nnames: [cat, 'hot dog', \"fire hydrant\"] # three\nnc: 3\n",
            &["cat", "hot dog", "fire hydrant"],
        );
        check("nc: 2\nnames:\n- cat\n- hot dog\n", &["cat", "hot dog"]);
        check("names:\n  # all of them\n  - cat # a cat\n\n  - dog\ndownload: x", &["cat", "dog"]);
        check("names:\n  0: person\n  1: bicycle\n\ntrain: y", &["person", "bicycle"]);
        let fails = |text: &str, what: &str| {
            let error = yaml_names(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        };
        fails("nc: 2", "no `names`");
        fails("names: {0: cat}", "not understood");
        fails("names: [cat\n dog]", "not understood");
        fails("names:\n  0: cat\n  2: dog", "class 2 stands in place of 1");
        fails("names: ['a'b']", "not understood");
        fails("names:\n  - [x]", "not understood");
    }
}
