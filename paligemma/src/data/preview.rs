//! An example to be looked at: its texts, and its pictures with the boxes and masks that the texts speak of.

use super::example::Example;
use crate::image::{Grey16, Picture, Resample, Rle, Shape, Tile, draw, resize::as_pillow};
use crate::masks::MaskCodec;
use crate::text::{BoxScale, Found, PixelBox, parse_answer};
use crate::{Error, Result};

/// Pictures of an example that are shown; a video has more.
const MAX_SHOWN: usize = 4;
/// The height at which several pictures stand beside each other, and the longest side of one that is drawn on: on a
/// sheet lines and letters must not shrink with a large picture.
const STRIP: usize = 480;

/// An example to be looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Where it stands.
    pub place: String,
    /// Width and height of its pictures.
    pub sizes: Vec<(usize, usize)>,
    /// The prefix.
    pub prefix: String,
    /// The suffix that was taken.
    pub suffix: String,
    /// How many suffixes it has.
    pub num_suffixes: usize,
    /// The objects in its texts: label, box in pixels of the first picture, whether it has a mask.
    pub objects: Vec<(String, PixelBox, bool)>,
    /// The pictures, drawn on, and the texts with `[box]` and `[mask]` in place of tokens.
    pub tile: Tile,
}

/// Makes an example ready to be looked at, with suffix number `taken`. Masks are drawn with `codec`, boxes always; both
/// are those of the suffix, or of the prefix of a grounded caption, and belong to the first picture.
///
/// # Errors
/// [`crate::Kind::Input`]: a picture that is missing or broken.
pub fn show(example: &Example, taken: usize, codec: Option<&MaskCodec>) -> Result<Shown> {
    let at = |error: Error| error.at(&example.place);
    let decode = |image: &super::example::ImageFile| image.decode(Grey16::default());
    let mut pictures = example.images.iter().map(decode).collect::<Result<Vec<_>>>().map_err(at)?;
    let sizes: Vec<(usize, usize)> = pictures.iter().map(|picture| (picture.width, picture.height)).collect();
    if pictures.is_empty() {
        pictures.push(Picture { width: STRIP, height: STRIP / 4, rgb: vec![0xdd; STRIP * (STRIP / 4) * 3] });
    }
    let suffix = &example.suffixes[taken];
    let found: Vec<Found> = [&example.prefix, suffix]
        .into_iter()
        .filter_map(|text| text.find("<loc").map(|start| parse_answer(&text[start..])))
        .flat_map(|parsed| parsed.objects)
        .collect();
    if !found.is_empty() {
        pictures[0] = drawn(&pictures[0], &found, codec).map_err(at)?;
    }
    let (width, height) = (pictures[0].width, pictures[0].height);
    let object = |Found { object, .. }: &Found| {
        let pixels = object.bins.to_pixels(width, height, BoxScale::Reference);
        (object.label.clone(), pixels, object.codes.is_some())
    };
    let objects = found.iter().map(object).collect();
    let size: Vec<String> = sizes.iter().take(MAX_SHOWN).map(|(w, h)| format!("{w}×{h}")).collect();
    let more = if sizes.len() > MAX_SHOWN {
        format!(" and {} more", sizes.len() - MAX_SHOWN)
    } else {
        String::new()
    };
    let count = example.suffixes.len();
    let of = if count > 1 { format!("  suffix {} of {count}", taken + 1) } else { String::new() };
    let tile = Tile {
        picture: strip(pictures),
        note: format!("{}  {}{more}{of}", example.place, size.join(" ")),
        title: without_tokens(&example.prefix),
        text: without_tokens(suffix),
    };
    Ok(Shown {
        place: example.place.clone(),
        sizes,
        prefix: example.prefix.clone(),
        suffix: suffix.clone(),
        num_suffixes: count,
        objects,
        tile,
    })
}

/// The picture with its objects, no larger than [`STRIP`] unless it is small.
fn drawn(picture: &Picture, found: &[Found], codec: Option<&MaskCodec>) -> Result<Picture> {
    let longest = picture.width.max(picture.height);
    let side = |side: usize| (side * STRIP / longest.max(STRIP)).max(1);
    let (width, height) = (side(picture.width), side(picture.height));
    let small = as_pillow(picture, width, height, Resample::Lanczos);
    let mut masks = Vec::new();
    for Found { object, .. } in found {
        let pixels = object.bins.to_pixels(width, height, BoxScale::Reference);
        masks.push(match (object.codes, codec) {
            (Some(codes), Some(codec)) => Some(Rle::from_mask(&codec.paste(codes, pixels, width, height)?)),
            _ => None,
        });
    }
    let mut shapes = Vec::new();
    for (Found { object, .. }, mask) in found.iter().zip(&masks) {
        let pixels = object.bins.to_pixels(width, height, BoxScale::Reference);
        shapes.push(Shape { label: &object.label, pixels, score: None, mask: mask.as_ref() });
    }
    Ok(draw(&small, &shapes)?.0)
}

/// Several pictures side by side, in their order.
fn strip(mut pictures: Vec<Picture>) -> Picture {
    if pictures.len() == 1 {
        return pictures.swap_remove(0);
    }
    pictures.truncate(MAX_SHOWN);
    let scaled: Vec<Picture> = pictures
        .iter()
        .map(|picture| {
            let width = (picture.width * STRIP / picture.height).clamp(1, 4 * STRIP);
            as_pillow(picture, width, STRIP, Resample::Bilinear)
        })
        .collect();
    let mut rgb = Vec::new();
    for y in 0..STRIP {
        for picture in &scaled {
            rgb.extend_from_slice(&picture.rgb[y * picture.width * 3..(y + 1) * picture.width * 3]);
        }
    }
    Picture { width: scaled.iter().map(|picture| picture.width).sum(), height: STRIP, rgb }
}

/// The text with `[box]` for four locations in a row and `[mask]` for sixteen codes.
fn without_tokens(text: &str) -> String {
    let token = |text: &str, head: &str, digits: usize| -> Option<usize> {
        let rest = text.strip_prefix(head)?;
        let is_number = rest.len() > digits && rest.as_bytes()[..digits].iter().all(u8::is_ascii_digit);
        (is_number && rest.as_bytes()[digits] == b'>').then_some(head.len() + digits + 1)
    };
    let several = |text: &str, head: &str, digits: usize, count: usize| -> Option<usize> {
        (0..count).try_fold(0, |at, _| Some(at + token(&text[at..], head, digits)?))
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(len) = several(rest, "<loc", 4, 4) {
            out.push_str("[box]");
            rest = &rest[len..];
        } else if let Some(len) = several(rest, "<seg", 3, 16) {
            out.push_str("[mask]");
            rest = &rest[len..];
        } else {
            out.push('<');
            rest = &rest[1..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_named_in_short() {
        let check = |text: &str, want: &str| assert_eq!(without_tokens(text), want);
        let (loc, seg) = ("<loc0001><loc0002><loc0003><loc1023>", "<seg001>".repeat(16));
        check("a cat", "a cat");
        check(&format!("{loc} cat ; {loc}{seg} dog"), "[box] cat ; [box][mask] dog");
        check(&format!("caption {loc}"), "caption [box]");
        check("<loc0001> <b> <", "<loc0001> <b> <");
    }

    #[test]
    fn several_pictures_stand_side_by_side() {
        let picture = |width: usize, height: usize, level: u8| Picture {
            width,
            height,
            rgb: vec![level; width * height * 3],
        };
        assert_eq!(strip(vec![picture(7, 9, 1)]), picture(7, 9, 1));
        let two = strip(vec![picture(10, 10, 1), picture(20, 10, 2)]);
        assert_eq!((two.width, two.height, two.rgb.len()), (1440, 480, 1440 * 480 * 3));
        assert_eq!((two.rgb[0], two.rgb[479 * 3], two.rgb[480 * 3], two.rgb[1440 * 3]), (1, 1, 2, 1));
        assert_eq!(strip(vec![picture(10, 10, 1); 9]).width, 4 * 480);
    }
}
