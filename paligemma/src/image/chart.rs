//! Charts: curves over a common x in panels below each other, as PNG or SVG.

use std::fmt::Write;

use tiny_skia::{FillRule, LineCap, LineJoin, PathBuilder, Pixmap, Stroke, Transform};

use super::draw::{Letters, face, paint, text_width};
use super::{Picture, encode::png_of_picture};
use crate::{Error, Kind, Result};

/// A curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What it is, for the legend; none for what needs no name.
    pub name: String,
    /// Its colour.
    pub colour: [u8; 3],
    /// How thick it is, in pixels.
    pub width: f32,
    /// Its points, x ascending.
    pub points: Vec<(f64, f64)>,
}

/// Curves with one y axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What y is.
    pub title: String,
    /// The curves, later ones above.
    pub curves: Vec<Curve>,
}

/// A panel, around it, and its axes.
const PANEL: (f32, f32) = (860.0, 300.0);
const LEFT: f32 = 84.0;
const RIGHT: f32 = 24.0;
const TOP: f32 = 44.0;
const BOTTOM: f32 = 44.0;
const LETTERS: f32 = 14.0;
const PAPER: [u8; 3] = [255, 255, 255];
const DARK: [u8; 3] = [40, 44, 52];
const GRID: [u8; 3] = [226, 229, 233];
/// Curves with more points are drawn by so many.
const MOST_POINTS: usize = 2000;

/// What is drawn, in order.
enum Mark {
    Line {
        points: Vec<(f32, f32)>,
        colour: [u8; 3],
        width: f32,
    },
    /// `end` is where the text ends, else where it begins or, `centre`d, its middle.
    Text {
        x: f32,
        y: f32,
        text: String,
        place: Place,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Begin,
    Middle,
    End,
}

/// The panels as a PNG file.
///
/// # Errors
/// `Kind::Input`: no point to draw.
pub fn chart_png(panels: &[Panel], x: &str) -> Result<Vec<u8>> {
    let (marks, width, height) = marks(panels, x)?;
    let mut pixels = Pixmap::new(width as u32, height as u32)
        .ok_or_else(|| Error::new(Kind::Resource, "the chart is too large"))?;
    pixels.fill(tiny_skia::Color::from_rgba8(PAPER[0], PAPER[1], PAPER[2], 255));
    for mark in &marks {
        match mark {
            Mark::Line { points, colour, width } => {
                let mut path = PathBuilder::new();
                for (i, &(x, y)) in points.iter().enumerate() {
                    if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
                }
                let stroke = Stroke {
                    width: *width,
                    line_cap: LineCap::Round,
                    line_join: LineJoin::Round,
                    ..Stroke::default()
                };
                if let Some(path) = path.finish() {
                    pixels.stroke_path(&path, &paint(*colour, 1.0), &stroke, Transform::identity(), None);
                }
            }
            Mark::Text { x, y, text, place } => write_text(&mut pixels, (*x, *y), text, *place),
        }
    }
    let rgb = pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    png_of_picture(&Picture { width: pixels.width() as usize, height: pixels.height() as usize, rgb })
}

fn write_text(pixels: &mut Pixmap, (x, y): (f32, f32), text: &str, place: Place) {
    let Some(face) = face() else { return };
    let scale = LETTERS / f32::from(face.units_per_em());
    let width = text_width(text, &face) * scale;
    let x = match place {
        Place::Begin => x,
        Place::Middle => x - width / 2.0,
        Place::End => x - width,
    };
    let mut letters = Letters { path: PathBuilder::new(), scale, x, y };
    for glyph in text.chars().filter_map(|c| face.glyph_index(c)) {
        let _ = face.outline_glyph(glyph, &mut letters);
        letters.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
    }
    if let Some(path) = letters.path.finish() {
        pixels.fill_path(&path, &paint(DARK, 1.0), FillRule::Winding, Transform::identity(), None);
    }
}

/// The panels as an SVG file.
///
/// # Errors
/// `Kind::Input`: no point to draw.
pub fn chart_svg(panels: &[Panel], x: &str) -> Result<String> {
    let (marks, width, height) = marks(panels, x)?;
    let hex = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Roboto, Helvetica, Arial, sans-serif\" font-size=\"{LETTERS}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n",
        hex(PAPER)
    );
    for mark in &marks {
        // Writing into a string never fails.
        let _ = match mark {
            Mark::Line { points, colour, width } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                writeln!(
                    svg,
                    "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" points=\"{}\"/>",
                    hex(*colour),
                    points.join(" ")
                )
            }
            Mark::Text { x, y, text, place } => {
                let anchor = match place {
                    Place::Begin => "start",
                    Place::Middle => "middle",
                    Place::End => "end",
                };
                let text = text.replace('&', "&amp;").replace('<', "&lt;");
                writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{}\">{text}</text>",
                    hex(DARK)
                )
            }
        };
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// What is drawn, and how large the whole is.
fn marks(panels: &[Panel], x_title: &str) -> Result<(Vec<Mark>, f32, f32)> {
    let points = || panels.iter().flat_map(|panel| &panel.curves).flat_map(|curve| &curve.points);
    let Some((x_low, x_high)) = range(points().map(|p| p.0)) else {
        return Err(Error::input("there is nothing to draw yet"));
    };
    let mut marks = Vec::new();
    for (i, panel) in panels.iter().enumerate() {
        let top = i as f32 * (PANEL.1 + TOP + BOTTOM) + TOP;
        let (left, right, bottom) = (LEFT, LEFT + PANEL.0, top + PANEL.1);
        let (low, high) =
            range(panel.curves.iter().flat_map(|c| &c.points).map(|p| p.1)).unwrap_or((0.0, 1.0));
        let at = |(x, y): (f64, f64)| {
            let across = ((x - x_low) / (x_high - x_low)) as f32;
            let up = ((y - low) / (high - low)) as f32;
            (left + across * PANEL.0, bottom - up * PANEL.1)
        };
        let line = |from: (f32, f32), to: (f32, f32)| Mark::Line {
            points: vec![from, to],
            colour: GRID,
            width: 1.0,
        };
        for tick in ticks(low, high) {
            let (_, y) = at((x_low, tick));
            marks.push(line((left, y), (right, y)));
            marks.push(Mark::Text {
                x: left - 8.0,
                y: y + LETTERS * 0.35,
                text: label(tick),
                place: Place::End,
            });
        }
        for tick in ticks(x_low, x_high) {
            let (x, _) = at((tick, low));
            marks.push(line((x, top), (x, bottom)));
            marks.push(Mark::Text { x, y: bottom + LETTERS * 1.4, text: label(tick), place: Place::Middle });
        }
        let name = format!("{} by {x_title}", panel.title);
        marks.push(Mark::Text { x: left, y: top - 14.0, text: name, place: Place::Begin });
        let mut x = right;
        for curve in
            panel.curves.iter().rev().filter(|curve| !curve.name.is_empty() && !curve.points.is_empty())
        {
            marks.push(Mark::Text { x, y: top - 14.0, text: curve.name.clone(), place: Place::End });
            x -= LETTERS * 0.62 * curve.name.chars().count() as f32 + 8.0;
            let y = top - 14.0 - LETTERS * 0.35;
            marks.push(Mark::Line {
                points: vec![(x - 24.0, y), (x, y)],
                colour: curve.colour,
                width: curve.width,
            });
            x -= 42.0;
        }
        for curve in &panel.curves {
            let finite: Vec<(f64, f64)> =
                curve.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
            let every = finite.len().div_ceil(MOST_POINTS).max(1);
            let mut shown: Vec<(f32, f32)> = finite.iter().step_by(every).map(|&p| at(p)).collect();
            // A point alone is a dot.
            if let [(x, y)] = shown[..] {
                shown.push((x + 0.1, y));
            }
            marks.push(Mark::Line { points: shown, colour: curve.colour, width: curve.width });
        }
    }
    let height = panels.len() as f32 * (PANEL.1 + TOP + BOTTOM) + 8.0;
    Ok((marks, LEFT + PANEL.0 + RIGHT, height))
}

/// The least and the largest of the finite ones, never equal.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values = values.filter(|x| x.is_finite());
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    match high - low {
        spread if spread > 0.0 => Some((low, high)),
        _ if low.is_finite() => Some((low - low.abs().max(1e-9) * 0.5, low + low.abs().max(1e-9) * 0.5)),
        _ => None,
    }
}

/// Round numbers from `low` to `high`, about six.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|x| *x <= high + step * 1e-9).take(20).collect()
}

/// `0.25`, `2e-5`, `15000`
fn label(x: f64) -> String {
    let size = x.abs();
    let text = match size {
        0.0 => return "0".into(),
        _ if !(1e-3..1e6).contains(&size) => {
            let text = format!("{x:.2e}");
            let (number, power) = text.split_once('e').unwrap_or((&text, "0"));
            return format!("{}e{power}", number.trim_end_matches('0').trim_end_matches('.'));
        }
        _ => format!("{x:.4}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_labels_short() {
        let check = |low: f64, high: f64, want: &[&str]| {
            assert_eq!(ticks(low, high).into_iter().map(label).collect::<Vec<_>>(), want, "{low} {high}");
        };
        check(0.0, 6.0, &["0", "1", "2", "3", "4", "5", "6"]);
        check(1.3, 2.6, &["1.5", "2", "2.5"]);
        check(0.0, 2e-5, &["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]);
        check(0.0, 100_000.0, &["0", "20000", "40000", "60000", "80000", "100000"]);
    }

    #[test]
    fn curves_are_drawn_in_both_formats() {
        let red = [220, 30, 30];
        let curve = |points: Vec<(f64, f64)>| Curve { name: "a<b".into(), colour: red, width: 3.0, points };
        let panel = Panel {
            title: "loss".into(),
            curves: vec![curve(vec![(0.0, 1.0), (5.0, f64::NAN), (10.0, 3.0)])],
        };
        let svg = chart_svg(std::slice::from_ref(&panel), "step").unwrap();
        // From the lower left corner to the upper right one.
        assert!(svg.contains("points=\"84.0,344.0 944.0,44.0\""), "{svg}");
        assert!(svg.contains("a&lt;b") && svg.contains("loss by step"), "{svg}");
        let png = super::super::decode(&chart_png(&[panel.clone(), panel], "step").unwrap()).unwrap();
        assert_eq!((png.width, png.height), (968, 2 * 388 + 8));
        let middle = (194 * 968 + 514) * 3;
        assert_eq!(png.rgb[middle..middle + 3], red);
        // One point, and none.
        assert!(
            chart_svg(&[Panel { title: "x".into(), curves: vec![curve(vec![(1.0, 2.0)])] }], "step").is_ok()
        );
        assert!(chart_svg(&[Panel { title: "x".into(), curves: vec![] }], "step").is_err());
    }
}
