//! Masks of 64×64 to train the masks' model on: what is cut out of a picture along an object's box.

use tiny_skia::{LineCap, Path, PathBuilder, Rect as Bounds, Stroke, Transform};

use super::Split;
use super::dice::Dice;
use super::paint::covered;
use super::things::{THINGS, outlines};
use crate::image::{Mask, Plane};

/// Masks are drawn on a grid of this side, then cut along their box and shrunk as the reference does.
const SIDE: usize = 160;

/// Mask number `index` of a split and a seed: the things' shapes, whole or partly hidden, blobs, polygons, rings and thin
/// shapes; `[64, 64]`, from 0 to 1, touching all four edges.
pub fn mask_crop(split: Split, seed: u64, index: u64) -> Plane {
    let mut dice = Dice::of_mask(split, seed, index);
    loop {
        let mut bits = draw(&mut dice);
        if dice.chance(0.35) {
            hide(&mut bits, &mut dice);
        }
        let mask = Mask { width: SIDE, height: SIDE, bits };
        // A shape that is hidden or lies outside is drawn anew; every stream comes to one that is seen.
        if let (Some(bounds), true) = (mask.bounds(), mask.area() > 150)
            && let Ok(plane) = mask.to_plane().crop(bounds)
        {
            return plane;
        }
    }
}

/// One shape on the grid.
fn draw(dice: &mut Dice) -> Vec<bool> {
    let turn = dice.between(0.0, 360.0);
    let (wide, high) = (dice.between(0.25, 0.9), dice.between(0.25, 0.9));
    // Shapes lie around the origin, at most 1 from it.
    let place = Transform::from_rotate(turn)
        .post_scale(wide, high)
        .post_scale(SIDE as f32 / 2.0, SIDE as f32 / 2.0)
        .post_translate(SIDE as f32 / 2.0, SIDE as f32 / 2.0);
    let path = match dice.weighted(&[0.45, 0.2, 0.12, 0.08, 0.15]) {
        0 => {
            let parts = &outlines(dice.below(THINGS.len())).parts;
            let flip = if dice.chance(0.5) { -1.0 } else { 1.0 };
            // Things stand upright, more or less.
            let place = Transform::from_translate(-50.0, -50.0)
                .post_scale(flip * wide / 50.0, high / 50.0)
                .post_concat(Transform::from_rotate(dice.between(-25.0, 25.0)))
                .post_scale(SIDE as f32 / 2.3, SIDE as f32 / 2.3)
                .post_translate(SIDE as f32 / 2.0, SIDE as f32 / 2.0);
            return covered(parts.iter().map(|(_, path)| (path, place)), SIDE);
        }
        1 => blob(dice),
        2 => polygon(dice),
        3 => ring(dice),
        _ => thin(dice),
    };
    path.map_or_else(|| vec![false; SIDE * SIDE], |path| covered([(&path, place)], SIDE))
}

/// Points around the origin at changing distances.
fn around(dice: &mut Dice, n: usize, nearest: f32) -> Vec<(f32, f32)> {
    (0..n)
        .map(|i| {
            let angle = (i as f32 + dice.between(-0.3, 0.3)) * std::f32::consts::TAU / n as f32;
            let r = dice.between(nearest, 1.0);
            (angle.cos() * r, angle.sin() * r)
        })
        .collect()
}

/// A smooth closed line.
fn blob(dice: &mut Dice) -> Option<Path> {
    let n = dice.in_range(4, 9);
    let points = around(dice, n, 0.45);
    let middle = |i: usize| {
        let (a, b) = (points[i % n], points[(i + 1) % n]);
        ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0)
    };
    let mut path = PathBuilder::new();
    let start = middle(n - 1);
    path.move_to(start.0, start.1);
    for (i, &(x, y)) in points.iter().enumerate() {
        let to = middle(i);
        path.quad_to(x, y, to.0, to.1);
    }
    path.close();
    path.finish()
}

fn polygon(dice: &mut Dice) -> Option<Path> {
    let n = dice.in_range(3, 10);
    let nearest = dice.pick(&[0.4, 0.8, 1.0]);
    let mut path = PathBuilder::new();
    for (i, (x, y)) in around(dice, n, nearest).into_iter().enumerate() {
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    path.close();
    path.finish()
}

fn ring(dice: &mut Dice) -> Option<Path> {
    let mut path = PathBuilder::new();
    let inner = dice.between(0.25, 0.8);
    let (x, y) = (dice.between(-0.1, 0.1), dice.between(-0.1, 0.1));
    path.push_oval(Bounds::from_ltrb(-1.0, -1.0, 1.0, 1.0)?);
    path.push_oval(Bounds::from_ltrb(x - inner, y - inner, x + inner, y + inner)?);
    path.finish()
}

/// Strokes: sticks, legs, letters' worth of bends.
fn thin(dice: &mut Dice) -> Option<Path> {
    let mut path = PathBuilder::new();
    for _ in 0..dice.in_range(1, 3) {
        let mut point = || (dice.between(-0.9, 0.9), dice.between(-0.9, 0.9));
        let (a, b, c) = (point(), point(), point());
        path.move_to(a.0, a.1);
        path.quad_to(b.0, b.1, c.0, c.1);
    }
    let stroke = Stroke { width: dice.between(0.08, 0.3), line_cap: LineCap::Round, ..Stroke::default() };
    path.finish()?.stroke(&stroke, 50.0)
}

/// Takes away what something in front hides: a disc, or all on one side of a line.
fn hide(bits: &mut [bool], dice: &mut Dice) {
    let side = SIDE as f32;
    let (x, y, r) = (dice.between(0.0, side), dice.between(0.0, side), dice.between(0.1, 0.35) * side);
    let angle = dice.between(0.0, std::f32::consts::TAU);
    let is_disc = dice.chance(0.6);
    for (i, bit) in bits.iter_mut().enumerate() {
        let (dx, dy) = ((i % SIDE) as f32 - x, (i / SIDE) as f32 - y);
        let is_hidden =
            if is_disc { dx.hypot(dy) < r } else { dx * angle.cos() + dy * angle.sin() > 0.25 * side };
        *bit &= !is_hidden;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MASK_SIDE;

    #[test]
    fn crops_fill_their_square_and_differ() {
        let mut areas = Vec::new();
        for index in 0..200 {
            let plane = mask_crop(Split::Train, 3, index);
            assert_eq!(plane, mask_crop(Split::Train, 3, index));
            assert_eq!((plane.width, plane.height), (MASK_SIDE, MASK_SIDE));
            let at = |x: usize, y: usize| plane.values[y * MASK_SIDE + x];
            let last = MASK_SIDE - 1;
            for edge in [
                (0..64).map(|i| at(i, 0)).fold(0.0, f32::max),
                (0..64).map(|i| at(i, last)).fold(0.0, f32::max),
                (0..64).map(|i| at(0, i)).fold(0.0, f32::max),
                (0..64).map(|i| at(last, i)).fold(0.0, f32::max),
            ] {
                assert!(edge > 0.0, "{index}");
            }
            areas.push(plane.values.iter().sum::<f32>() / 4096.0);
        }
        areas.sort_by(f32::total_cmp);
        assert!(areas[10] < 0.4 && areas[190] > 0.7, "{areas:?}");
        assert_ne!(mask_crop(Split::Train, 3, 0), mask_crop(Split::Val, 3, 0));
    }
}
