//! Objects drawn on their picture: masks, boxes, labels.
//!
//! Lines have a dark rim, so that they stand out on light and on dark. A label's colour depends on the label alone, so
//! that it is the same in every picture. A small picture is enlarged by a whole number first; lines and letters grow with
//! a large one.

use tiny_skia::{
    Color, FillRule, LineJoin, Paint, PathBuilder, Pixmap, PremultipliedColorU8, Rect, Stroke, Transform,
};

use super::{
    Mask, Picture, Rle,
    polygon::outlines,
    resize::{Resample, as_pillow},
};
use crate::{Error, Result};

/// A picture whose longer side is shorter than this is enlarged.
const SMALL: usize = 480;
/// Letters that can be drawn: Latin, Greek, Cyrillic. Roboto Medium, Apache-2.0; see reference/label_font.py.
const FONT: &[u8] = include_bytes!("label.ttf");
/// Around lines and behind letters.
const DARK: [u8; 3] = [17, 19, 24];

/// What is drawn of an object.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Its label; its number is drawn in place of one that has letters which cannot be drawn.
    pub label: &'a str,
    /// x0, y0, x1, y1 in pixels of the picture.
    pub pixels: [f64; 4],
    /// Drawn behind the label if given.
    pub score: Option<f32>,
    /// As large as the picture.
    pub mask: Option<&'a Rle>,
}

/// The picture with objects drawn on it, and by how much it was enlarged.
///
/// # Errors
/// `Kind::Resource`: the picture is too large to be drawn on. `Kind::Input`: a mask of another size.
pub fn draw(picture: &Picture, shapes: &[Shape<'_>]) -> Result<(Picture, usize)> {
    let zoom = SMALL.div_ceil(picture.width.max(picture.height)).max(1);
    let (width, height) = (picture.width * zoom, picture.height * zoom);
    let large = if zoom > 1 { as_pillow(picture, width, height, Resample::Bicubic) } else { picture.clone() };
    let mut canvas = Canvas::new(&large)?;
    for shape in shapes {
        if let Some(rle) = shape.mask {
            if (rle.width(), rle.height()) != (picture.width, picture.height) {
                return Err(Error::input(format!("a mask is {}×{}", rle.width(), rle.height()))
                    .expected(format!("{}×{}, as its picture", picture.width, picture.height)));
            }
            canvas.mask(&rle.to_mask(), zoom as f32, colour(shape.label));
        }
    }
    let zoomed = |shape: &Shape<'_>| shape.pixels.map(|v| (v * zoom as f64) as f32);
    for shape in shapes {
        canvas.frame(zoomed(shape), shape.mask.is_some(), colour(shape.label));
    }
    for (i, shape) in shapes.iter().enumerate() {
        let (label, score) = tag_text(shape, i + 1);
        canvas.tag(&label, &score, zoomed(shape), colour(shape.label));
    }
    Ok((canvas.into_picture(), zoom))
}

/// A label's colour: red, green, blue.
pub fn colour(label: &str) -> [u8; 3] {
    // FNV-1a, then mixed; of 20,000 factors this one keeps thirty common labels farthest apart.
    let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xc498_72c6_7c08_1bb7);
    let hue = (hash >> 40) as f32 / (1 << 24) as f32 * std::f32::consts::TAU;
    // Oklch: any hue, and light enough for dark letters.
    let lightness = [0.70, 0.79, 0.88][((hash >> 32 & 0xff) as usize * 3) >> 8];
    let chroma = 0.15;
    let (a, b) = (chroma * hue.cos(), chroma * hue.sin());
    let cube = |x: f32| x * x * x;
    let l = cube(lightness + 0.396_337_78 * a + 0.215_803_76 * b);
    let m = cube(lightness - 0.105_561_346 * a - 0.063_854_17 * b);
    let s = cube(lightness - 0.089_484_18 * a - 1.291_485_5 * b);
    let byte = |linear: f32| {
        let x = linear.clamp(0.0, 1.0);
        let x = if x <= 0.003_130_8 { 12.92 * x } else { 1.055 * x.powf(1.0 / 2.4) - 0.055 };
        (x * 255.0).round() as u8
    };
    [
        byte(4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s),
        byte(-1.268_438 * l + 2.609_757_4 * m - 0.341_319_38 * s),
        byte(-0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s),
    ]
}

/// What is written beside an object, the `number`th: its label and its score.
fn tag_text(shape: &Shape<'_>, number: usize) -> (String, String) {
    let is_drawable = face().is_some_and(|face| shape.label.chars().all(|c| face.glyph_index(c).is_some()));
    let label = if is_drawable { shape.label.to_owned() } else { format!("#{number}") };
    let score = shape.score.map(|score| format!("{score:.2}")).unwrap_or_default();
    let gap = if label.is_empty() || score.is_empty() { "" } else { " " };
    (label, format!("{gap}{score}"))
}

pub(super) fn face() -> Option<ttf_parser::Face<'static>> {
    ttf_parser::Face::parse(FONT, 0).ok()
}

/// What is being drawn on.
struct Canvas {
    pixels: Pixmap,
    /// Height of capital letters and what hangs below them, in pixels.
    letters: f32,
    /// Width of a line.
    line: f32,
    /// Where tags stand already.
    tags: Vec<Rect>,
}

impl Canvas {
    fn new(picture: &Picture) -> Result<Canvas> {
        let (width, height) = (picture.width, picture.height);
        let size = |side: usize| u32::try_from(side).unwrap_or(0);
        let mut pixels = Pixmap::new(size(width), size(height)).ok_or_else(|| {
            Error::new(
                crate::Kind::Resource,
                format!("a picture of {width}×{height} is too large to draw on"),
            )
        })?;
        for (pixel, &[r, g, b]) in pixels.pixels_mut().iter_mut().zip(picture.rgb.as_chunks::<3>().0) {
            // Opaque: the colour is within its alpha.
            *pixel = PremultipliedColorU8::from_rgba(r, g, b, 255).unwrap_or(*pixel);
        }
        let letters = ((width as f32 * height as f32).sqrt() / 32.0).max(13.0);
        Ok(Canvas { pixels, letters, line: letters / 6.5, tags: Vec::new() })
    }

    fn into_picture(self) -> Picture {
        let rgb = self.pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
        Picture { width: self.pixels.width() as usize, height: self.pixels.height() as usize, rgb }
    }

    fn mask(&mut self, mask: &Mask, zoom: f32, colour: [u8; 3]) {
        let mut path = PathBuilder::new();
        for line in outlines(mask) {
            for (i, &(x, y)) in line.iter().enumerate() {
                let (x, y) = (x as f32 * zoom, y as f32 * zoom);
                if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
            }
            path.close();
        }
        let Some(path) = path.finish() else { return };
        self.pixels.fill_path(&path, &paint(colour, 0.42), FillRule::EvenOdd, Transform::identity(), None);
        self.stroke(&path, self.line * 0.8, colour);
    }

    fn frame(&mut self, pixels: [f32; 4], is_thin: bool, colour: [u8; 3]) {
        let line = if is_thin { self.line * 0.55 } else { self.line };
        let (width, height) = (self.pixels.width() as f32, self.pixels.height() as f32);
        // The line lies inside the box, and is seen where the box ends with the picture.
        let side = |a: f32, b: f32, most: f32| {
            let (a, b) = (a.clamp(0.0, most), b.clamp(0.0, most));
            let inset = (line * 0.5).min((b - a) * 0.5);
            (a + inset, b - inset)
        };
        let (x0, x1) = side(pixels[0], pixels[2], width);
        let (y0, y1) = side(pixels[1], pixels[3], height);
        let Some(rect) = Rect::from_ltrb(x0, y0, x1.max(x0 + 0.01), y1.max(y0 + 0.01)) else { return };
        let path = PathBuilder::from_rect(rect);
        self.stroke(&path, line, colour);
    }

    /// A line with a dark rim.
    fn stroke(&mut self, path: &tiny_skia::Path, width: f32, colour: [u8; 3]) {
        for (width, colour, alpha) in [(width * 2.0, DARK, 0.55), (width, colour, 1.0)] {
            let stroke = Stroke { width, line_join: LineJoin::Round, ..Stroke::default() };
            self.pixels.stroke_path(path, &paint(colour, alpha), &stroke, Transform::identity(), None);
        }
    }

    /// A label and a score on the label's colour, at a corner of the box where no other stands.
    fn tag(&mut self, label: &str, score: &str, pixels: [f32; 4], colour: [u8; 3]) {
        let Some(face) = face().filter(|_| !label.is_empty() || !score.is_empty()) else { return };
        let scale = self.letters / f32::from(face.units_per_em());
        let (pad, height) = (self.letters * 0.35, self.letters * 1.35);
        let (most_x, most_y) = (self.pixels.width() as f32, self.pixels.height() as f32);
        let [x0, y0, x1, y1] = pixels;
        // No wider than its box, or not much of the picture.
        let most = (x1 - x0).max(0.4 * most_x).min(most_x) - 2.0 * pad;
        let text = shortened(label, most / scale - text_width(score, &face), &face) + score;
        let width = (text_width(&text, &face) * scale + 2.0 * pad).min(most_x);
        // Above and below the box, then within it, from the left and from the right.
        let places = [
            (x0, y0 - height),
            (x0, y1),
            (x0, y0),
            (x1 - width, y0 - height),
            (x1 - width, y1),
            (x1 - width, y0),
            (x0, y1 - height),
            (x1 - width, y1 - height),
            (x0, (y0 + y1 - height) / 2.0),
        ];
        let mut best: Option<(f32, Rect)> = None;
        for (x, y) in places {
            let at = (x.clamp(0.0, most_x - width), y.clamp(0.0, (most_y - height).max(0.0)));
            let Some(rect) = Rect::from_xywh(at.0, at.1, width, height) else { continue };
            // A place that would lie outside the picture was moved, and is worse by as much.
            let moved = (at.0 - x).abs() * height + (at.1 - y).abs() * width;
            let badness = moved + self.tags.iter().map(|&tag| 2.0 * overlap(tag, rect)).sum::<f32>();
            if best.is_none_or(|(least, _)| badness < least - 0.5) {
                best = Some((badness, rect));
            }
        }
        let Some((_, rect)) = best else { return };
        self.tags.push(rect);
        if let Some(path) = rounded(rect, self.letters * 0.2) {
            self.stroke(&path, self.line * 0.35, DARK);
            self.pixels.fill_path(&path, &paint(colour, 1.0), FillRule::Winding, Transform::identity(), None);
        }
        // Letters stand on a line such that capitals are in the middle of the tag.
        let capitals = f32::from(face.capital_height().unwrap_or(1456)) * scale;
        let mut letters = Letters { path: PathBuilder::new(), scale, x: rect.left() + pad, y: 0.0 };
        letters.y = rect.top() + (height + capitals) / 2.0;
        for glyph in text.chars().filter_map(|c| face.glyph_index(c)) {
            let _ = face.outline_glyph(glyph, &mut letters);
            letters.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
        }
        if let Some(path) = letters.path.finish() {
            self.pixels.fill_path(&path, &paint(DARK, 1.0), FillRule::Winding, Transform::identity(), None);
        }
    }
}

pub(super) fn paint(colour: [u8; 3], alpha: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    let [r, g, b] = colour;
    let mut colour = Color::from_rgba8(r, g, b, 255);
    colour.set_alpha(alpha);
    paint.set_color(colour);
    paint
}

/// In the font's units.
pub(super) fn text_width(text: &str, face: &ttf_parser::Face<'_>) -> f32 {
    let advance = |c| face.glyph_hor_advance(face.glyph_index(c)?);
    text.chars().filter_map(advance).map(f32::from).sum()
}

/// The text, or its beginning and "…" if it is wider than `most`.
fn shortened(text: &str, most: f32, face: &ttf_parser::Face<'_>) -> String {
    let mut short = text.to_owned();
    while text_width(&short, face) > most && short.chars().count() > 1 {
        let mut chars: Vec<char> = short.trim_end_matches('…').chars().collect();
        chars.pop();
        short = chars.into_iter().collect::<String>().trim_end().to_owned() + "…";
    }
    short
}

fn overlap(a: Rect, b: Rect) -> f32 {
    let width = a.right().min(b.right()) - a.left().max(b.left());
    let height = a.bottom().min(b.bottom()) - a.top().max(b.top());
    width.max(0.0) * height.max(0.0)
}

/// A rectangle with round corners.
pub(super) fn rounded(rect: Rect, radius: f32) -> Option<tiny_skia::Path> {
    let (l, t, r, b) = (rect.left(), rect.top(), rect.right(), rect.bottom());
    let radius = radius.min(rect.width() / 2.0).min(rect.height() / 2.0);
    let mut path = PathBuilder::new();
    path.move_to(l + radius, t);
    path.line_to(r - radius, t);
    path.quad_to(r, t, r, t + radius);
    path.line_to(r, b - radius);
    path.quad_to(r, b, r - radius, b);
    path.line_to(l + radius, b);
    path.quad_to(l, b, l, b - radius);
    path.line_to(l, t + radius);
    path.quad_to(l, t, l + radius, t);
    path.close();
    path.finish()
}

/// The outlines of letters, placed: the font's y goes up.
pub(crate) struct Letters {
    pub(crate) path: PathBuilder,
    pub(crate) scale: f32,
    pub(crate) x: f32,
    pub(crate) y: f32,
}

impl Letters {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl ttf_parser::OutlineBuilder for Letters {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize, level: u8) -> Picture {
        Picture { width, height, rgb: vec![level; width * height * 3] }
    }

    fn shape(label: &str, pixels: [f64; 4]) -> Shape<'_> {
        Shape { label, pixels, score: Some(0.5), mask: None }
    }

    #[test]
    fn what_is_drawn_is_seen_on_any_ground_and_only_where_it_belongs() {
        for level in [0, 90, 128, 170, 255] {
            let picture = grey(640, 480, level);
            let (drawn, zoom) = draw(&picture, &[shape("cat", [200.0, 200.0, 400.0, 400.0])]).unwrap();
            assert_eq!((drawn.width, drawn.height, zoom), (640, 480, 1));
            let at = |x: usize, y: usize| &drawn.rgb[(y * 640 + x) * 3..][..3];
            assert_eq!(at(300, 300), [level; 3], "inside");
            assert_eq!(at(100, 300), [level; 3], "outside");
            // Somewhere on the way across the line there is a great step in brightness.
            let brightness = |x: usize| at(x, 300).iter().map(|&v| i32::from(v)).sum::<i32>() / 3;
            let steps = (195..215).map(|x| (brightness(x) - brightness(x - 1)).abs()).max();
            assert!(steps > Some(60), "{level}: {steps:?}");
        }
    }

    #[test]
    fn a_small_picture_is_enlarged_and_any_shape_is_drawn() {
        for (width, height, want) in [(1, 1, 480), (64, 48, 8), (479, 3, 2), (480, 1, 1), (2, 3000, 1)] {
            let (w, h) = (width as f64, height as f64);
            let shapes = [
                shape("", [0.0, 0.0, w, h]),
                shape("a label that is far too long for it", [0.0, 0.0, 0.1, 0.1]),
                shape("猫", [w * 0.9, h * 0.9, w, h]),
                shape("out", [-5.0, -5.0, w + 5.0, h + 5.0]),
                shape("none", [w, h, w, h]),
                shape("cat", [f64::NAN, 0.0, f64::INFINITY, h]),
            ];
            let (drawn, zoom) = draw(&grey(width, height, 77), &shapes).unwrap();
            assert_eq!((drawn.width, drawn.height, zoom), (width * want, height * want, want));
        }
    }

    #[test]
    fn a_mask_colours_its_pixels() {
        let mask = Mask { width: 500, height: 500, bits: (0..250_000).map(|i| i % 500 < 250).collect() };
        let rle = Rle::from_mask(&mask);
        let shape = Shape { mask: Some(&rle), ..shape("", [0.0, 0.0, 250.0, 500.0]) };
        let (drawn, _) = draw(&grey(500, 500, 0), &[Shape { score: None, ..shape }]).unwrap();
        let at = |x: usize| &drawn.rgb[(250 * 500 + x) * 3..][..3];
        assert!(at(125).iter().any(|&v| v > 60), "{:?}", at(125));
        assert_eq!(at(375), [0; 3]);
        assert!(draw(&grey(500, 400, 0), &[shape]).unwrap_err().to_string().contains("500×500"));
    }

    #[test]
    fn a_label_has_one_colour_and_others_have_others() {
        assert_eq!(colour("cat"), colour("cat"));
        let labels = ["cat", "dog", "person", "car", "bus", "tree", "bicycle", "truck"];
        for (i, a) in labels.iter().enumerate() {
            // Light enough for the dark letters: WCAG's contrast of 4.5 at least.
            let luminance = |rgb: [u8; 3]| {
                let [r, g, b] = rgb.map(|v| (f32::from(v) / 255.0).powf(2.2));
                0.2126 * r + 0.7152 * g + 0.0722 * b
            };
            assert!((luminance(colour(a)) + 0.05) / (luminance(DARK) + 0.05) > 4.5, "{a}");
            for b in &labels[..i] {
                let distance: u32 =
                    colour(a).iter().zip(colour(b)).map(|(&x, y)| u32::from(x.abs_diff(y))).sum();
                assert!(distance > 40, "{a} {b}: {distance}");
            }
        }
    }

    #[test]
    fn labels_that_cannot_be_drawn_are_numbers() {
        let check = |label: &str, score: Option<f32>, want: &str| {
            let shape = Shape { label, pixels: [0.0; 4], score, mask: None };
            let (label, score) = tag_text(&shape, 3);
            assert_eq!(label + &score, want);
        };
        check("cat", None, "cat");
        check("Œil Привет άλφα", Some(0.876), "Œil Привет άλφα 0.88");
        check("猫", Some(1.0), "#3 1.00");
        check("", Some(0.5), "0.50");
        check("", None, "");
    }
}
