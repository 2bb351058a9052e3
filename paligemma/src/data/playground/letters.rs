//! The letters that words are written with.

use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder};
use ttf_parser::Face;

use crate::image::Letters;

/// Roboto in five cuts, Apache-2.0; see reference/label_font.py and reference/playground_fonts.py.
const FONTS: [&[u8]; NUM_FONTS] = [
    include_bytes!("../../image/label.ttf"),
    include_bytes!("fonts/slab.otf"),
    include_bytes!("fonts/italic.ttf"),
    include_bytes!("fonts/black.ttf"),
];
pub(super) const NUM_FONTS: usize = 4;

fn face(font: usize) -> Option<&'static Face<'static>> {
    static FACES: LazyLock<Vec<Option<Face<'static>>>> =
        LazyLock::new(|| FONTS.iter().map(|bytes| Face::parse(bytes, 0).ok()).collect());
    FACES[font].as_ref()
}

/// How wide a line is, in heights of a capital letter.
pub(super) fn width(font: usize, text: &str) -> f32 {
    let Some(face) = face(font) else { return 0.0 };
    let advance = |c| face.glyph_hor_advance(face.glyph_index(c)?);
    let units: f32 = text.chars().filter_map(advance).map(f32::from).sum();
    units / capital(face)
}

fn capital(face: &Face<'_>) -> f32 {
    f32::from(face.capital_height().unwrap_or(1456))
}

/// A line from (`x`, `y`) on, the left end of its base, with capitals of `height`.
pub(super) fn line(font: usize, text: &str, [x, y]: [f32; 2], height: f32) -> Option<Path> {
    let face = face(font)?;
    let mut pen = Letters { path: PathBuilder::new(), scale: height / capital(face), x, y };
    for glyph in text.chars().filter_map(|c| face.glyph_index(c)) {
        // A space has no outline.
        let _ = face.outline_glyph(glyph, &mut pen);
        pen.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * pen.scale;
    }
    pen.path.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_font_writes_every_letter() {
        for font in 0..NUM_FONTS {
            for c in ('a'..='z').chain('A'..='Z').chain('0'..='9') {
                let path = line(font, &c.to_string(), [0.0, 0.0], 10.0).unwrap();
                assert!(path.bounds().height() > 4.0, "{font} {c}");
            }
            let bounds = line(font, "HAT", [5.0, 20.0], 10.0).unwrap().bounds();
            assert!((bounds.top() - 10.0).abs() < 0.3 && (bounds.bottom() - 20.0).abs() < 0.3, "{bounds:?}");
            assert!((bounds.width() - 10.0 * width(font, "HAT")).abs() < 3.0, "{bounds:?}");
        }
    }
}
