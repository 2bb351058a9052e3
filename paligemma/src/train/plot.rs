//! The curves of a run: its loss, that of held-out data, and its learning rate.

use std::path::Path;

use super::metrics::curves;
use crate::Result;
use crate::image::{Curve, Panel};

const BLUE: [u8; 3] = [31, 96, 186];
const PALE: [u8; 3] = [178, 202, 232];
const RED: [u8; 3] = [206, 58, 44];
const GREEN: [u8; 3] = [36, 138, 84];

/// The panels of a run's folder, and how many steps they have.
///
/// # Errors
/// Those of [`curves`].
pub fn panels(folder: &Path) -> Result<(Vec<Panel>, usize)> {
    let [loss, eval, exact, lr] = curves(folder, ["loss", "eval_loss", "eval_exact", "lr"])?;
    let steps = loss.len();
    let curve = |name: &str, colour, width, points| Curve { name: name.into(), colour, width, points };
    let mut panels = vec![Panel {
        title: "loss".into(),
        curves: vec![
            curve("", PALE, 1.0, loss.clone()),
            curve("training", BLUE, 2.5, smoothed(&loss)),
            curve("held out", RED, 2.5, eval),
        ],
    }];
    if !exact.is_empty() {
        panels.push(Panel { title: "exact answers".into(), curves: vec![curve("", GREEN, 2.5, exact)] });
    }
    panels.push(Panel { title: "learning rate".into(), curves: vec![curve("", BLUE, 2.5, lr)] });
    Ok((panels, steps))
}

/// A running mean over about a fiftieth of the curve, the same from its beginning on.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let decay = 1.0 - 1.0 / (points.len() as f64 / 50.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mean = |&(x, y): &(f64, f64)| {
        (sum, weight) = (decay * sum + y, decay * weight + 1.0);
        (x, sum / weight)
    };
    points.iter().filter(|(_, y)| y.is_finite()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_run_behind() {
        let points: Vec<(f64, f64)> =
            (0..200).map(|i| (f64::from(i), if i < 100 { 1.0 } else { 0.0 })).collect();
        let smooth = smoothed(&points);
        assert!((smooth[0].1 - 1.0).abs() < 1e-12 && (smooth[99].1 - 1.0).abs() < 1e-12);
        assert!(smooth[101].1 < 1.0 && smooth[101].1 > 0.4 && smooth[199].1 < 1e-6, "{smooth:?}");
        // A short curve is itself.
        assert_eq!(smoothed(&points[98..103]), points[98..103]);
    }
}
