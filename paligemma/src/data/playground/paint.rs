//! Scenes drawn: pictures, and which pixels each thing is seen at.

use tiny_skia::{
    Color, FillRule, FilterQuality, GradientStop, LineCap, LinearGradient, Mask as Coverage, Paint, Path,
    PathBuilder, Pattern, Pixmap, Point, PremultipliedColorU8, RadialGradient, Rect, SpreadMode, Stroke,
    Transform,
};

use super::blemish;
use super::colours::{COLOURS, shade};
use super::dice::Dice;
use super::letters;
use super::outline::rectangle;
use super::scene::{Chart, Ground, Item, Scene, Sign, Texture};
use super::things::{Fill, outlines};
use crate::image::{Mask, Picture};

/// The scene as a picture of `side` × `side` pixels. A picture of another side shows the same at another resolution; only
/// its blemishes are others.
pub(super) fn paint(scene: &Scene, side: usize) -> Picture {
    let mut dice = Dice::of_dressing(scene.dressing);
    let mut easel = Easel::new(side);
    easel.ground(scene.ground, &mut dice);
    let has_shadows = dice.chance(0.6);
    let has_rims = dice.chance(0.75);
    for item in &scene.items {
        easel.item(item, has_shadows && scene.ground != Ground::Night, has_rims, &mut dice);
    }
    for sign in &scene.signs {
        easel.sign(sign);
    }
    match &scene.chart {
        Some(Chart::Bars(bars)) => easel.bars(bars),
        Some(Chart::Gauge(value)) => easel.gauge(*value),
        Some(Chart::Clock(hour, is_half)) => easel.clock(*hour, *is_half),
        None => {}
    }
    easel.lighting(&mut dice);
    let rgb = easel.pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    blemish::add(Picture { width: side, height: side, rgb }, &mut dice)
}

/// Where each item of the scene is seen, in pixels of a picture of `side` × `side`: without what stands before it.
pub(super) fn visible(scene: &Scene, side: usize) -> Vec<Mask> {
    let mut hidden = vec![false; side * side];
    for sign in &scene.signs {
        // Letters without a board hide too little to count.
        if let (Some(path), true) = (board(sign), sign.board.is_some()) {
            let shape = covered([(&path, place_of_sign(sign).post_scale(side as f32, side as f32))], side);
            hidden.iter_mut().zip(shape).for_each(|(hidden, shape)| *hidden |= shape);
        }
    }
    let mut masks = Vec::with_capacity(scene.items.len());
    for item in scene.items.iter().rev() {
        let mut bits = shape(item, side);
        for (bit, hidden) in bits.iter_mut().zip(&mut hidden) {
            (*bit, *hidden) = (*bit && !*hidden, *hidden || *bit);
        }
        masks.push(Mask { width: side, height: side, bits });
    }
    masks.reverse();
    masks
}

/// Where an item would be seen by itself.
pub(super) fn shape(item: &Item, side: usize) -> Vec<bool> {
    let at = place(item).post_scale(side as f32, side as f32);
    covered(outlines(item.thing).parts.iter().map(|(_, path)| (path, at)), side)
}

/// The pixels that are covered by half at least.
pub(super) fn covered<'a>(paths: impl IntoIterator<Item = (&'a Path, Transform)>, side: usize) -> Vec<bool> {
    let Some(mut coverage) = Coverage::new(side as u32, side as u32) else { return vec![false; side * side] };
    for (path, at) in paths {
        coverage.fill_path(path, FillRule::EvenOdd, true, at);
    }
    coverage.data().iter().map(|&c| c >= 128).collect()
}

/// From a thing's square of 100 × 100 to the picture's unit square.
fn place(item: &Item) -> Transform {
    let scale = item.radius / 50.0;
    let flip = if item.is_flipped { -1.0 } else { 1.0 };
    let stretch = item.stretch.sqrt();
    Transform::from_translate(-50.0, -50.0)
        .post_scale(scale * stretch * flip, scale / stretch)
        .post_concat(Transform::from_rotate(item.turn))
        .post_translate(item.at[0], item.at[1])
}

/// From around a sign's middle, in heights of its letters, to the picture's unit square.
fn place_of_sign(sign: &Sign) -> Transform {
    Transform::from_scale(sign.height, sign.height)
        .post_concat(Transform::from_rotate(sign.turn))
        .post_translate(sign.at[0], sign.at[1])
}

/// A sign's board around its middle, in heights of its letters.
fn board(sign: &Sign) -> Option<Path> {
    let half = letters::width(sign.font, &sign.text) / 2.0 + 0.5;
    let mut path = PathBuilder::new();
    rectangle(&mut path, [-half, -1.0, 2.0 * half, 2.0], 0.25);
    path.finish()
}

fn solid(rgb: [u8; 3], alpha: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(colour(rgb, alpha));
    paint
}

fn colour([r, g, b]: [u8; 3], alpha: f32) -> Color {
    let mut colour = Color::from_rgba8(r, g, b, 255);
    colour.set_alpha(alpha);
    colour
}

/// From the first colour at the one point to the last at the other; tiny-skia moves them with the shape that is filled,
/// after `at`.
fn gradient(
    from: [f32; 2],
    to: [f32; 2],
    stops: &[(f32, [u8; 3], f32)],
    at: Transform,
) -> Option<Paint<'static>> {
    let stops = stops.iter().map(|&(x, rgb, alpha)| GradientStop::new(x, colour(rgb, alpha))).collect();
    let (from, to) = (Point::from_xy(from[0], from[1]), Point::from_xy(to[0], to[1]));
    let shader = LinearGradient::new(from, to, stops, SpreadMode::Pad, at)?;
    Some(Paint { shader, anti_alias: true, ..Paint::default() })
}

/// A repeated tile of 16 × 16.
fn tile(texture: Texture, front: [u8; 3], back: [u8; 3]) -> Option<Pixmap> {
    let mut tile = Pixmap::new(16, 16)?;
    for (i, pixel) in tile.pixels_mut().iter_mut().enumerate() {
        let (x, y) = ((i % 16) as f32 - 7.5, (i / 16) as f32 - 7.5);
        let is_front = match texture {
            Texture::Plain => false,
            Texture::Striped => x.abs() < 3.6,
            Texture::Dotted => x.hypot(y) < 4.6,
        };
        let [r, g, b] = if is_front { front } else { back };
        *pixel = PremultipliedColorU8::from_rgba(r, g, b, 255)?;
    }
    Some(tile)
}

/// What is being drawn on. Everything is drawn in the unit square.
struct Easel {
    pixels: Pixmap,
    /// From the unit square to pixels.
    scale: Transform,
}

impl Easel {
    fn new(side: usize) -> Easel {
        // The side is checked where the playground is made.
        let pixels = Pixmap::new(side as u32, side as u32).unwrap_or_else(|| panic!("a side of {side}"));
        Easel { pixels, scale: Transform::from_scale(side as f32, side as f32) }
    }

    /// Fills a path given in the square that `at` places.
    fn fill(&mut self, path: &Path, paint: &Paint<'_>, at: Transform) {
        self.pixels.fill_path(path, paint, FillRule::EvenOdd, at.post_concat(self.scale), None);
    }

    fn stroke(&mut self, path: &Path, width: f32, rgb: [u8; 3], alpha: f32, at: Transform) {
        let stroke = Stroke { width, line_cap: LineCap::Round, ..Stroke::default() };
        self.pixels.stroke_path(path, &solid(rgb, alpha), &stroke, at.post_concat(self.scale), None);
    }

    fn rectangle(&mut self, [x, y, w, h]: [f32; 4], radius: f32, paint: &Paint<'_>) {
        let mut path = PathBuilder::new();
        rectangle(&mut path, [x, y, w, h], radius);
        if let Some(path) = path.finish() {
            self.fill(&path, paint, Transform::identity());
        }
    }

    fn oval(&mut self, x: f32, y: f32, rx: f32, ry: f32, paint: &Paint<'_>) {
        let oval = Rect::from_ltrb(x - rx, y - ry, x + rx, y + ry).and_then(PathBuilder::from_oval);
        if let Some(path) = oval {
            self.fill(&path, paint, Transform::identity());
        }
    }

    fn line(&mut self, from: [f32; 2], to: [f32; 2], width: f32, rgb: [u8; 3]) {
        let mut path = PathBuilder::new();
        path.move_to(from[0], from[1]);
        path.line_to(to[0], to[1]);
        if let Some(path) = path.finish() {
            self.stroke(&path, width, rgb, 1.0, Transform::identity());
        }
    }

    fn write(&mut self, font: usize, text: &str, [x, y]: [f32; 2], height: f32, rgb: [u8; 3]) {
        let start = x - letters::width(font, text) * height / 2.0;
        if let Some(path) = letters::line(font, text, [start, y + height / 2.0], height) {
            // Letters overlap in no font of ours; by the winding rule their joints would stay filled all the same.
            self.pixels.fill_path(&path, &solid(rgb, 1.0), FillRule::Winding, self.scale, None);
        }
    }

    /// The whole picture, from one colour at its top to another at its bottom, between two heights.
    fn band(&mut self, top: f32, bottom: f32, from: [u8; 3], to: [u8; 3]) {
        let stops = [(0.0, from, 1.0), (1.0, to, 1.0)];
        let paint = gradient([0.0, top], [0.0, bottom], &stops, Transform::identity());
        if let (Some(paint), Some(rect)) = (paint, Rect::from_ltrb(0.0, top, 1.0, bottom)) {
            self.pixels.fill_rect(rect, &paint, self.scale, None);
        }
    }

    fn ground(&mut self, ground: Ground, dice: &mut Dice) {
        let tint = dice.between(-0.06, 0.06);
        let rgb = shade(ground.rgb(), tint);
        match ground {
            Ground::Plain(_) => {
                let slope = dice.between(0.0, 0.16);
                self.band(0.0, 1.0, shade(rgb, slope), shade(rgb, -slope));
                if dice.chance(0.25) {
                    self.dust(dice, shade(rgb, -0.12), 30, 0.012);
                }
            }
            Ground::Checked(_) => {
                self.band(0.0, 1.0, rgb, rgb);
                let n = dice.in_range(4, 8);
                let step = 1.0 / n as f32;
                let other = solid(shade(rgb, if rgb[1] < 60 { 0.12 } else { -0.11 }), 1.0);
                for i in (0..n * n).filter(|i| (i % n + i / n).is_multiple_of(2)) {
                    let (x, y) = ((i % n) as f32 * step, (i / n) as f32 * step);
                    if let Some(rect) = Rect::from_xywh(x, y, step, step) {
                        self.pixels.fill_rect(rect, &other, self.scale, None);
                    }
                }
            }
            Ground::Meadow => {
                let horizon = dice.between(0.25, 0.5);
                self.band(0.0, horizon, [150, 202, 244], [214, 236, 250]);
                self.hills(dice, horizon, [122, 176, 96]);
                self.band(horizon, 1.0, rgb, shade(rgb, -0.22));
                self.blades(dice, horizon, shade(rgb, -0.25));
            }
            Ground::Sea => {
                let horizon = dice.between(0.2, 0.4);
                self.band(0.0, horizon, [176, 216, 244], [230, 242, 250]);
                self.band(horizon, 1.0, rgb, shade(rgb, -0.3));
                for _ in 0..9 {
                    let (x, y) = (dice.between(0.0, 0.9), dice.between(horizon + 0.04, 0.98));
                    self.rectangle([x, y, dice.between(0.05, 0.16), 0.008], 0.004, &solid([255; 3], 0.35));
                }
            }
            Ground::Beach => {
                let horizon = dice.between(0.2, 0.35);
                self.band(0.0, horizon, [158, 208, 246], [222, 240, 250]);
                self.band(horizon, horizon + 0.14, [76, 158, 196], [120, 196, 210]);
                self.band(horizon + 0.14, 1.0, rgb, shade(rgb, -0.1));
                self.dust(dice, shade(rgb, -0.2), 40, 0.006);
            }
            Ground::Snow => {
                let horizon = dice.between(0.3, 0.5);
                self.band(0.0, horizon, [170, 188, 212], [206, 218, 234]);
                self.hills(dice, horizon, [216, 226, 240]);
                self.band(horizon, 1.0, [246, 249, 252], [222, 230, 242]);
                self.dust(dice, [255; 3], 40, 0.012);
            }
            Ground::Night => {
                self.band(0.0, 1.0, shade(rgb, -0.4), [52, 58, 104]);
                self.dust(dice, [250, 246, 214], 40, 0.006);
            }
            Ground::Room => {
                let floor = dice.between(0.6, 0.75);
                self.band(0.0, floor, shade([226, 214, 196], tint), shade([214, 200, 180], tint));
                self.band(floor, 1.0, shade([176, 134, 96], tint), shade([150, 110, 76], tint));
                self.rectangle([0.0, floor - 0.02, 1.0, 0.02], 0.0, &solid([244, 238, 228], 1.0));
            }
            Ground::Land => {
                self.band(0.0, 1.0, rgb, shade(rgb, -0.06));
                for _ in 0..7 {
                    let (x, y) = (dice.between(-0.2, 0.9), dice.between(-0.2, 0.9));
                    let field =
                        dice.pick(&[[172, 184, 112], [126, 160, 96], [196, 180, 128], [140, 172, 116]]);
                    let (w, h) = (dice.between(0.2, 0.5), dice.between(0.2, 0.5));
                    self.rectangle([x, y, w, h], 0.0, &solid(field, 1.0));
                }
                self.dust(dice, [92, 124, 74], 50, 0.01);
            }
        }
    }

    /// Small round specks here and there.
    fn dust(&mut self, dice: &mut Dice, rgb: [u8; 3], count: usize, most: f32) {
        let mut path = PathBuilder::new();
        for _ in 0..count {
            let (x, y, r) = (dice.between(0.0, 1.0), dice.between(0.0, 1.0), dice.between(most * 0.4, most));
            rectangle(&mut path, [x - r, y - r, 2.0 * r, 2.0 * r], r);
        }
        if let Some(path) = path.finish() {
            self.pixels.fill_path(&path, &solid(rgb, 0.7), FillRule::Winding, self.scale, None);
        }
    }

    fn hills(&mut self, dice: &mut Dice, horizon: f32, rgb: [u8; 3]) {
        for _ in 0..2 {
            let (x, rx, ry) = (dice.between(0.0, 1.0), dice.between(0.3, 0.6), dice.between(0.05, 0.16));
            self.oval(x, horizon, rx, ry, &solid(rgb, 1.0));
        }
    }

    fn blades(&mut self, dice: &mut Dice, horizon: f32, rgb: [u8; 3]) {
        let mut path = PathBuilder::new();
        for _ in 0..40 {
            let (x, y) = (dice.between(0.0, 1.0), dice.between(horizon + 0.02, 1.0));
            let h = 0.05 * (0.4 + y);
            path.move_to(x - 0.006, y);
            path.line_to(x + dice.between(-0.01, 0.01), y - h);
            path.line_to(x + 0.006, y);
            path.close();
        }
        if let Some(path) = path.finish() {
            self.pixels.fill_path(&path, &solid(rgb, 0.5), FillRule::Winding, self.scale, None);
        }
    }

    fn item(&mut self, item: &Item, has_shadow: bool, has_rim: bool, dice: &mut Dice) {
        let at = place(item);
        let parts = &outlines(item.thing).parts;
        if has_shadow {
            let off = at.post_translate(item.radius * 0.07, item.radius * 0.10);
            for (fill, path) in parts {
                if *fill == Fill::Body {
                    self.fill(path, &solid([20, 20, 40], 0.22), off);
                }
            }
        }
        let jitter = [dice.between(-12.0, 12.0), dice.between(-12.0, 12.0), dice.between(-12.0, 12.0)];
        let base = COLOURS[item.colour].rgb;
        let mut rgb = base;
        for (c, j) in rgb.iter_mut().zip(jitter) {
            *c = (f32::from(*c) + j).clamp(0.0, 255.0) as u8;
        }
        // A texture is of the colour's own tints, so that the colour stays the colour.
        let is_dark = base.iter().map(|&c| u32::from(c)).sum::<u32>() < 330;
        let front = shade(rgb, if is_dark { 0.45 } else { -0.38 });
        let tile = tile(item.texture, front, rgb);
        let grain = item.radius * dice.between(0.022, 0.03);
        let slant = dice.pick(&[0.0, 45.0, 90.0, -45.0]);
        let middle = Transform::from_scale(grain, grain)
            .post_concat(Transform::from_rotate(slant))
            .post_translate(item.at[0], item.at[1]);
        // Light from above the left.
        let [x, y] = item.at;
        let r = item.radius;
        let deep = if is_dark { shade(rgb, 0.18) } else { shade(rgb, -0.3) };
        for (fill, path) in parts {
            let paint = match (fill, &tile) {
                (Fill::Body, Some(tile)) if item.texture != Texture::Plain => Paint {
                    shader: Pattern::new(
                        tile.as_ref(),
                        SpreadMode::Repeat,
                        FilterQuality::Bilinear,
                        1.0,
                        at.invert().map_or(middle, |back| middle.post_concat(back)),
                    ),
                    anti_alias: true,
                    ..Paint::default()
                },
                (Fill::Body, _) => solid(rgb, 1.0),
                (Fill::Deep, _) => solid(deep, 1.0),
                (Fill::Pale, _) => solid(shade(rgb, 0.35), 1.0),
                (Fill::Ink, _) => solid([42, 42, 48], 1.0),
                (Fill::Paper, _) => solid([250, 248, 240], 1.0),
                (Fill::Wood, _) => solid([142, 96, 58], 1.0),
                (Fill::Green, _) => solid([66, 140, 66], 1.0),
                (Fill::Metal, _) => solid([168, 172, 180], 1.0),
                (Fill::Glass, _) => solid([198, 228, 244], 1.0),
                (Fill::Flame, _) => solid([252, 186, 44], 1.0),
            };
            self.fill(path, &paint, at);
            if *fill == Fill::Body {
                let stops =
                    [(0.0, [255; 3], 0.26), (0.5, [255; 3], 0.0), (0.5, [0; 3], 0.0), (1.0, [0; 3], 0.24)];
                let back = at.invert().unwrap_or_else(Transform::identity);
                if let Some(light) =
                    gradient([x - r * 0.7, y - r * 0.8], [x + r * 0.7, y + r * 0.8], &stops, back)
                {
                    self.fill(path, &light, at);
                }
                if has_rim {
                    let rim = if is_dark { shade(base, 0.28) } else { shade(base, -0.5) };
                    self.stroke(path, 2.6, rim, 0.8, at);
                }
            }
        }
    }

    fn sign(&mut self, sign: &Sign) {
        let at = place_of_sign(sign);
        if let (Some(path), Some(number)) = (board(sign), sign.board) {
            let rgb = COLOURS[number].rgb;
            self.fill(
                &path,
                &solid([20, 20, 40], 0.25),
                at.post_translate(sign.height * 0.08, sign.height * 0.1),
            );
            self.fill(&path, &solid(rgb, 1.0), at);
            self.stroke(&path, 0.1, COLOURS[sign.ink].rgb, 0.8, at);
        }
        let start = -letters::width(sign.font, &sign.text) / 2.0;
        if let Some(path) = letters::line(sign.font, &sign.text, [start, 0.5], 1.0) {
            let at = at.post_concat(self.scale);
            self.pixels.fill_path(&path, &solid(COLOURS[sign.ink].rgb, 1.0), FillRule::Winding, at, None);
        }
    }

    fn bars(&mut self, bars: &[(usize, usize)]) {
        let ink = [50, 54, 60];
        self.rectangle([0.04, 0.06, 0.92, 0.88], 0.03, &solid([253, 253, 251], 1.0));
        let (left, top, bottom, right) = (0.2, 0.14, 0.86, 0.92);
        let y = |value: f32| bottom - (bottom - top) * value / 10.0;
        for tick in 0..=5 {
            let value = (tick * 2) as f32;
            self.line([left, y(value)], [right, y(value)], 0.006, [206, 210, 216]);
            self.write(0, &(tick * 2).to_string(), [0.13, y(value)], 0.055, ink);
        }
        let step = (right - left) / bars.len() as f32;
        for (i, &(number, value)) in bars.iter().enumerate() {
            let x = left + step * (i as f32 + 0.18);
            let rgb = COLOURS[number].rgb;
            self.rectangle(
                [x, y(value as f32), step * 0.64, bottom - y(value as f32)],
                0.008,
                &solid(rgb, 1.0),
            );
        }
        self.line([left, bottom], [right, bottom], 0.012, ink);
    }

    fn gauge(&mut self, value: usize) {
        let ink = [40, 42, 48];
        let (x, y, r) = (0.5, 0.55, 0.42);
        self.oval(x, y, r, r, &solid([60, 64, 72], 1.0));
        self.oval(x, y, r * 0.93, r * 0.93, &solid([252, 252, 248], 1.0));
        // From the lower left over the top to the lower right.
        let angle = |value: f32| (225.0 - 27.0 * value).to_radians();
        let point =
            |value: f32, part: f32| [x + angle(value).cos() * r * part, y - angle(value).sin() * r * part];
        for tick in 0..=10 {
            let value = tick as f32;
            self.line(point(value, 0.78), point(value, 0.88), 0.012, ink);
            self.write(0, &tick.to_string(), point(value, 0.64), 0.06, ink);
        }
        self.line([x, y], point(value as f32, 0.74), 0.028, [206, 40, 40]);
        self.oval(x, y, 0.045, 0.045, &solid(ink, 1.0));
    }

    fn clock(&mut self, hour: usize, is_half: bool) {
        let ink = [40, 42, 48];
        let (x, y, r) = (0.5, 0.5, 0.44);
        self.oval(x, y, r, r, &solid([120, 84, 56], 1.0));
        self.oval(x, y, r * 0.91, r * 0.91, &solid([252, 251, 246], 1.0));
        let point = |hours: f32, part: f32| {
            let angle = (90.0 - 30.0 * hours).to_radians();
            [x + angle.cos() * r * part, y - angle.sin() * r * part]
        };
        for mark in 1..=12 {
            self.write(0, &mark.to_string(), point(mark as f32, 0.74), 0.068, ink);
        }
        let past = if is_half { 0.5 } else { 0.0 };
        self.line([x, y], point(hour as f32 + past, 0.42), 0.036, ink);
        self.line([x, y], point(12.0 * past, 0.62), 0.02, [206, 40, 40]);
        self.oval(x, y, 0.035, 0.035, &solid(ink, 1.0));
    }

    /// Brighter on one side, darker at the corners.
    fn lighting(&mut self, dice: &mut Dice) {
        if dice.chance(0.4) {
            let (x, y) = (dice.between(0.2, 0.8), dice.between(0.1, 0.6));
            let stops = vec![
                GradientStop::new(0.0, colour([255, 250, 230], 0.10)),
                GradientStop::new(0.5, colour([128, 128, 128], 0.0)),
                GradientStop::new(1.0, colour([0, 0, 20], dice.between(0.08, 0.26))),
            ];
            let (from, radius) = (Point::from_xy(x, y), 0.95);
            let light =
                RadialGradient::new(from, 0.0, from, radius, stops, SpreadMode::Pad, Transform::identity());
            if let (Some(shader), Some(all)) = (light, Rect::from_ltrb(0.0, 0.0, 1.0, 1.0)) {
                self.pixels.fill_rect(all, &Paint { shader, ..Paint::default() }, self.scale, None);
            }
        }
    }
}
