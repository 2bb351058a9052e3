//! A contact sheet: pictures in rows, each with lines of text below it.

use tiny_skia::{FillRule, Paint, PathBuilder, Pixmap, PremultipliedColorU8, Rect, Transform};

use super::draw::{Letters, face, paint, rounded, text_width};
use super::{Picture, Resample, resize::as_pillow};
use crate::{Error, Kind, Result};

/// A picture and what stands below it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// Shown as a whole, whatever its shape.
    pub picture: Picture,
    /// One line, small and grey.
    pub note: String,
    /// One line or two.
    pub title: String,
    /// Up to four lines.
    pub text: String,
}

/// Room for a picture, around which it is centred.
const ROOM: (usize, usize) = (480, 360);
/// Around tiles and within them.
const GAP: f32 = 18.0;
/// Height of the letters, and from one line to the next.
const LETTERS: f32 = 16.0;
const LINE: f32 = 21.0;
const NOTE_LETTERS: f32 = 13.0;
/// Lines below a picture: the note, the title's and the text's.
const LINES: usize = 1 + 2 + 4;
const TITLE_LINES: usize = 2;
const TEXT_LINES: usize = 4;
const PAPER: [u8; 3] = [236, 238, 241];
const CARD: [u8; 3] = [255, 255, 255];
const DARK: [u8; 3] = [26, 28, 33];
const SOFT: [u8; 3] = [84, 90, 100];
const GREY: [u8; 3] = [122, 128, 138];

/// The tiles in rows of `columns`, from left to right. Letters that cannot be drawn are `?`.
///
/// # Errors
/// [`Kind::Usage`]: no tile or no column. [`Kind::Resource`]: the sheet is too large.
pub fn contact_sheet(tiles: &[Tile], columns: usize) -> Result<Picture> {
    if tiles.is_empty() || columns == 0 {
        return Err(Error::usage("a contact sheet of nothing").expected("a tile and a column, at least"));
    }
    let columns = columns.min(tiles.len());
    let card = (ROOM.0 as f32 + 2.0 * GAP, ROOM.1 as f32 + 2.0 * GAP + LINES as f32 * LINE + GAP * 0.5);
    let side = |count: usize, one: f32| (count as f32 * (one + GAP) + GAP).ceil() as u32;
    let rows = tiles.len().div_ceil(columns);
    let (width, height) = (side(columns, card.0), side(rows, card.1));
    let mut pixels = Pixmap::new(width, height).filter(|_| rows <= 1000).ok_or_else(|| {
        Error::new(Kind::Resource, format!("a contact sheet of {width}×{height} is too large"))
    })?;
    pixels.fill(tiny_skia::Color::from_rgba8(PAPER[0], PAPER[1], PAPER[2], 255));
    for (i, tile) in tiles.iter().enumerate() {
        let x = GAP + (i % columns) as f32 * (card.0 + GAP);
        let y = GAP + (i / columns) as f32 * (card.1 + GAP);
        draw_tile(&mut pixels, tile, (x, y), card);
    }
    let rgb = pixels.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
    Ok(Picture { width: width as usize, height: height as usize, rgb })
}

fn draw_tile(pixels: &mut Pixmap, tile: &Tile, (x, y): (f32, f32), card: (f32, f32)) {
    let path = Rect::from_xywh(x, y, card.0, card.1).and_then(|rect| rounded(rect, 10.0));
    if let Some(path) = path {
        fill(pixels, &path, &paint(CARD, 1.0));
    }
    let thumbnail = fit(&tile.picture);
    let left = (x + GAP) as usize + (ROOM.0 - thumbnail.width) / 2;
    let top = (y + GAP) as usize + (ROOM.1 - thumbnail.height) / 2;
    let stride = pixels.width() as usize;
    for (row, line) in thumbnail.rgb.chunks_exact(thumbnail.width * 3).enumerate() {
        let at = (top + row) * stride + left;
        let out = &mut pixels.pixels_mut()[at..at + thumbnail.width];
        for (pixel, &[r, g, b]) in out.iter_mut().zip(line.as_chunks::<3>().0) {
            // Opaque: the colour is within its alpha.
            *pixel = PremultipliedColorU8::from_rgba(r, g, b, 255).unwrap_or(*pixel);
        }
    }
    let mut baseline = y + 2.0 * GAP + ROOM.1 as f32 + LETTERS * 0.8;
    let mut write = |text: &str, most: usize, letters: f32, colour: [u8; 3]| {
        for line in wrapped(text, ROOM.0 as f32 / letters, most) {
            write_line(pixels, &line, (x + GAP, baseline), letters, colour);
            baseline += LINE;
        }
    };
    write(&tile.note, 1, NOTE_LETTERS, GREY);
    write(&tile.title, TITLE_LINES, LETTERS, DARK);
    write(&tile.text, TEXT_LINES, LETTERS, SOFT);
}

/// The picture in its room: never enlarged by more than twice.
fn fit(picture: &Picture) -> Picture {
    let part = |room: usize, side: usize| room as f64 / side as f64;
    let scale = part(ROOM.0, picture.width).min(part(ROOM.1, picture.height)).min(2.0);
    let side = |side: usize, room: usize| ((side as f64 * scale).round() as usize).clamp(1, room);
    let (width, height) = (side(picture.width, ROOM.0), side(picture.height, ROOM.1));
    as_pillow(picture, width, height, Resample::Lanczos)
}

fn fill(pixels: &mut Pixmap, path: &tiny_skia::Path, paint: &Paint<'_>) {
    pixels.fill_path(path, paint, FillRule::Winding, Transform::identity(), None);
}

fn write_line(pixels: &mut Pixmap, text: &str, (x, y): (f32, f32), size: f32, colour: [u8; 3]) {
    let Some(face) = face() else { return };
    let scale = size / f32::from(face.units_per_em());
    let mut letters = Letters { path: PathBuilder::new(), scale, x, y };
    for glyph in text.chars().filter_map(|c| face.glyph_index(c)) {
        let _ = face.outline_glyph(glyph, &mut letters);
        letters.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
    }
    if let Some(path) = letters.path.finish() {
        fill(pixels, &path, &paint(colour, 1.0));
    }
}

/// The text in lines no wider than `most_width` letter heights; what does not fit in `most` lines ends in `…`.
fn wrapped(text: &str, most_width: f32, most: usize) -> Vec<String> {
    let Some(face) = face() else { return Vec::new() };
    let units = f32::from(face.units_per_em());
    let drawable = |c: char| match c {
        c if c.is_whitespace() || c.is_control() => ' ',
        c if face.glyph_index(c).is_some() => c,
        _ => '?',
    };
    let fits = |line: &str| text_width(line, &face) / units <= most_width;
    let text: String = text.chars().map(drawable).collect();
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if fits(&longer) {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        // A word that is too long by itself is cut where it must be.
        for c in word.chars() {
            if !line.is_empty() && !fits(&format!("{line}{c}")) {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
        if lines.len() > most {
            break;
        }
    }
    lines.push(line);
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            while !last.is_empty() && !fits(&format!("{last}…")) {
                last.pop();
            }
            last.push('…');
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_words_and_cut_at_the_end() {
        let check = |text: &str, width: f32, most: usize, want: &[&str]| {
            assert_eq!(wrapped(text, width, most), want, "{text:?}");
        };
        check("", 10.0, 2, &[]);
        check("one  two\nthree", 100.0, 2, &["one two three"]);
        check("one two three", 4.5, 3, &["one two", "three"]);
        check("one two three", 4.5, 1, &["one two…"]);
        check("mmmmmmmm", 3.0, 9, &["mmm", "mmm", "mm"]);
        check("猫 é", 10.0, 1, &["? é"]);
        assert!(wrapped(&"x".repeat(100_000), 3.0, 4).len() == 4);
    }

    #[test]
    fn tiles_stand_in_rows_and_pictures_keep_their_shape() {
        let tile = |width: usize, height: usize| Tile {
            picture: Picture { width, height, rgb: [200, 10, 10].repeat(width * height) },
            note: "data.jsonl:1".into(),
            title: "detect cat".into(),
            text: String::new(),
        };
        let red =
            |sheet: &Picture| sheet.rgb.as_chunks::<3>().0.iter().filter(|p| **p == [200, 10, 10]).count();
        let sheet = contact_sheet(&[tile(480, 360)], 3).unwrap();
        assert_eq!(red(&sheet), 480 * 360);
        let three = contact_sheet(&[tile(4000, 300), tile(3, 3), tile(30, 9000)], 2).unwrap();
        assert_eq!(three.width as f32, 2.0 * (sheet.width as f32 - GAP) + GAP);
        assert_eq!(three.height as f32, 2.0 * (sheet.height as f32 - GAP) + GAP);
        assert_eq!(red(&three), 480 * 36 + 6 * 6 + 360);
        // There are letters.
        assert!(three.rgb.as_chunks::<3>().0.contains(&DARK));
        assert!(contact_sheet(&[], 1).is_err() && contact_sheet(&[tile(1, 1)], 0).is_err());
    }
}
