//! Outlines written as text: SVG's path commands with absolute numbers, and two more.
//!
//! `M x y`, `L x y`, `Q x1 y1 x y`, `C x1 y1 x2 y2 x y`, `Z`; `O x y rx ry` is an ellipse around a point, `R x y w h r`
//! a rectangle from its upper left corner with round corners. A thing stands in a square of 100 × 100.

use tiny_skia::{Path, PathBuilder, Rect};

/// The path that `text` writes down. Panics on what it does not know: all outlines are constants, and a test reads them.
pub(super) fn outline(text: &str) -> Path {
    let mut path = PathBuilder::new();
    let mut words = text.split_whitespace().peekable();
    while let Some(command) = words.next() {
        let mut numbers = Vec::new();
        while let Some(number) = words.peek().and_then(|word| word.parse::<f32>().ok()) {
            numbers.push(number);
            words.next();
        }
        match (command, &numbers[..]) {
            ("M", &[x, y]) => path.move_to(x, y),
            ("L", &[x, y]) => path.line_to(x, y),
            ("Q", &[x1, y1, x, y]) => path.quad_to(x1, y1, x, y),
            ("C", &[x1, y1, x2, y2, x, y]) => path.cubic_to(x1, y1, x2, y2, x, y),
            ("Z", []) => path.close(),
            ("O", &[x, y, rx, ry]) => {
                let around = Rect::from_ltrb(x - rx, y - ry, x + rx, y + ry);
                path.push_oval(around.unwrap_or_else(|| panic!("an ellipse without area in {text:?}")));
            }
            ("R", &[x, y, w, h, r]) => rectangle(&mut path, [x, y, w, h], r),
            _ => panic!("{command} {numbers:?} in {text:?}"),
        }
    }
    path.finish().unwrap_or_else(|| panic!("no path in {text:?}"))
}

/// Adds a rectangle with round corners.
pub(super) fn rectangle(path: &mut PathBuilder, [x, y, w, h]: [f32; 4], radius: f32) {
    let r = radius.min(w / 2.0).min(h / 2.0);
    path.move_to(x + r, y);
    path.line_to(x + w - r, y);
    path.quad_to(x + w, y, x + w, y + r);
    path.line_to(x + w, y + h - r);
    path.quad_to(x + w, y + h, x + w - r, y + h);
    path.line_to(x + r, y + h);
    path.quad_to(x, y + h, x, y + h - r);
    path.line_to(x, y + r);
    path.quad_to(x, y, x + r, y);
    path.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_have_their_bounds() {
        let check = |text: &str, want: [f32; 4]| {
            let b = outline(text).bounds();
            let got = [b.left(), b.top(), b.right(), b.bottom()];
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.01), "{text}: {got:?}");
        };
        check("M 1 2 L 9 2 L 5 8 Z", [1.0, 2.0, 9.0, 8.0]);
        check("O 50 40 30 20", [20.0, 20.0, 80.0, 60.0]);
        check("R 10 20 30 40 5 O 90 90 5 5", [10.0, 20.0, 95.0, 95.0]);
    }

    #[test]
    #[should_panic(expected = "M [1.0]")]
    fn what_is_no_command_is_refused() {
        outline("M 1 L 2 3");
    }
}
