//! Masks as polygons: filled as pycocotools fills them, and drawn around a mask so that filling gives it back.
//!
//! A polygon is a closed line of corners x, y in pixels; a pixel's upper left corner has whole numbers.

use super::{Mask, Rle, rle::check_size};
use crate::{Error, Result};

/// A closed line of corners.
pub type Polygon = Vec<[f64; 2]>;

/// Farther from the picture no corner may lie: the points along an edge are counted one by one.
const FARTHEST: f64 = 100_000.0;
/// The most corners of all polygons of a mask; COCO's largest has some thousand.
const MOST_CORNERS: usize = 1_000_000;
/// The longest way around a polygon, in steps: a comb through every row of the largest picture stays below it.
const LONGEST: i64 = 1 << 29;
/// Edges are followed in steps of a fifth of a pixel.
const STEPS: i64 = 5;

/// The mask that polygons cover together, on a picture of `width` × `height`: pycocotools' `frPyObjects` and `merge`.
///
/// # Errors
/// `Kind::Input`: fewer than three corners, a corner that is no number or lies far away, too many, a wrong size.
pub fn fill_polygons(polygons: &[Polygon], width: usize, height: usize) -> Result<Mask> {
    check_size(width, height)?;
    if polygons.iter().map(Vec::len).sum::<usize>() > MOST_CORNERS {
        return Err(Error::input("the polygons have too many corners")
            .expected(format!("at most {MOST_CORNERS} in all")));
    }
    let mut mask = Mask { width, height, bits: vec![false; width * height] };
    for polygon in polygons {
        let filled = fill(polygon, width, height)?.to_mask();
        mask.bits.iter_mut().zip(&filled.bits).for_each(|(all, bit)| *all |= bit);
    }
    Ok(mask)
}

/// One polygon. Every place where its line passes from one column's middle to the next begins or ends a run in that
/// column; a pixel is inside if an odd number of them lie above it.
fn fill(polygon: &Polygon, width: usize, height: usize) -> Result<Rle> {
    if polygon.len() < 3 {
        return Err(Error::input(format!("a polygon has {} corners", polygon.len())).expected("at least 3"));
    }
    let mut corners = Vec::with_capacity(polygon.len() + 1);
    for &[x, y] in polygon {
        if !(x.abs() <= FARTHEST && y.abs() <= FARTHEST) {
            return Err(Error::input(format!("a polygon has a corner at {x}, {y}"))
                .expected(format!("numbers up to {FARTHEST}")));
        }
        let step = |v: f64| (STEPS as f64 * v + 0.5) as i64;
        corners.push((step(x), step(y)));
    }
    corners.push(corners[0]);
    let longer = |e: &[(i64, i64)]| (e[1].0 - e[0].0).abs().max((e[1].1 - e[0].1).abs());
    if corners.windows(2).map(longer).sum::<i64>() > LONGEST {
        return Err(Error::input("the way around a polygon is too long")
            .expected(format!("at most {} million pixels", LONGEST / STEPS / 1_000_000)));
    }
    let mut places = Vec::new();
    let mut last: Option<(i64, i64)> = None;
    for edge in corners.windows(2) {
        for_each_step(edge[0], edge[1], |u, v| {
            if let Some((u0, v0)) = last.replace((u, v))
                && u != u0
            {
                // The step between u and its neighbour on the left lies in the middle of a pixel's column or between.
                let left = u.min(u0);
                let column = left.div_euclid(STEPS);
                if left.rem_euclid(STEPS) == STEPS / 2 && (0..width as i64).contains(&column) {
                    // The row whose middle is the first at or below it.
                    let row =
                        ((v.min(v0) as f64 + 0.5) / STEPS as f64 - 0.5).clamp(0.0, height as f64).ceil();
                    places.push(column as usize * height + row as usize);
                }
            }
        });
    }
    places.push(width * height);
    places.sort_unstable();
    // Two at one place undo each other.
    let mut counts: Vec<u32> = Vec::new();
    let mut before = 0;
    let mut joined = false;
    for place in places {
        let run = (place - before) as u32;
        before = place;
        if joined {
            if let Some(last) = counts.last_mut() {
                *last += run;
            }
            joined = false;
        } else if run > 0 || counts.is_empty() {
            counts.push(run);
        } else {
            joined = true;
        }
    }
    Rle::from_counts(counts, width, height)
}

/// The points on the way from one corner to the next, both included, one a step of the longer side. The way back has
/// the same points, in turned order.
fn for_each_step((xs, ys): (i64, i64), (xe, ye): (i64, i64), mut each: impl FnMut(i64, i64)) {
    let (dx, dy) = ((xe - xs).abs(), (ye - ys).abs());
    let is_flat = dx >= dy;
    let steps = dx.max(dy);
    let is_turned = if is_flat { xs > xe } else { ys > ye };
    let ((xs, ys), (xe, ye)) = if is_turned { ((xe, ye), (xs, ys)) } else { ((xs, ys), (xe, ye)) };
    let slope = if is_flat { (ye - ys) as f64 / dx as f64 } else { (xe - xs) as f64 / dy as f64 };
    for d in 0..=steps {
        let t = if is_turned { steps - d } else { d };
        // Rounded towards zero after the half is added. A point alone has no slope, and its height is never used.
        let across = |from: i64| (from as f64 + slope * t as f64 + 0.5) as i64;
        if is_flat { each(xs + t, across(ys)) } else { each(across(xs), ys + t) }
    }
}

/// The polygons around a mask. Filling them gives exactly the mask back. A hole is joined to the line around it by a cut
/// that is followed there and back, since COCO's polygons have no holes. Pixels that touch at a corner alone are apart.
pub fn outline_polygons(mask: &Mask) -> Vec<Polygon> {
    let mut rings: Vec<Vec<(isize, isize)>> = Vec::new();
    let mut holes = Vec::new();
    for line in outlines(mask) {
        if is_outer(&line) { rings.push(line) } else { holes.push(line) }
    }
    // From left to right: the line that a hole is joined to then has its own holes to the left already.
    holes.sort_by_key(|hole| hole.iter().min().copied());
    for hole in holes {
        join(&mut rings, &hole, mask);
    }
    rings.into_iter().map(|ring| ring.into_iter().map(|(x, y)| [x as f64, y as f64]).collect()).collect()
}

/// Joins a hole to the ring on its left.
fn join(rings: &mut [Vec<(isize, isize)>], hole: &[(isize, isize)], mask: &Mask) {
    let Some(start) = (0..hole.len()).min_by_key(|&i| hole[i]) else { return };
    let (x, y) = hole[start];
    // The pixel to the left of the hole's first corner is mask; go on to where the mask ends.
    let mut end = x;
    while mask.at(end - 1, y) {
        end -= 1;
    }
    // The line that goes up there, with the mask on its right.
    for ring in rings {
        for i in 0..ring.len() {
            let (from, to) = (ring[i], ring[(i + 1) % ring.len()]);
            if from.0 == end && to.0 == end && to.1 <= y && y < from.1 {
                let there_and_back = [(end, y)]
                    .into_iter()
                    .chain(hole[start..].iter().copied())
                    .chain(hole[..=start].iter().copied())
                    .chain([(end, y)]);
                ring.splice(i + 1..i + 1, there_and_back);
                return;
            }
        }
    }
}

/// Whether a line goes around mask, not around a hole.
fn is_outer(line: &[(isize, isize)]) -> bool {
    let next = line.iter().cycle().skip(1);
    line.iter().zip(next).map(|(&(x0, y0), &(x1, y1))| x0 * y1 - x1 * y0).sum::<isize>() > 0
}

/// All lines between mask and no mask, corner by corner, the mask on their right.
pub(super) fn outlines(mask: &Mask) -> Vec<Vec<(isize, isize)>> {
    let (width, height) = (mask.width as isize, mask.height as isize);
    // Every line has a stretch that goes right, along the upper side of a pixel; each such side is walked once.
    let mut walked = vec![false; mask.bits.len()];
    let mut lines = Vec::new();
    for y in 0..height {
        for x in 0..width {
            if !mask.at(x, y) || mask.at(x, y - 1) || walked[(y * width + x) as usize] {
                continue;
            }
            let mut line = Vec::new();
            let (mut at, mut way) = ((x, y), (1, 0));
            loop {
                if way == (1, 0) {
                    let side = &mut walked[(at.1 * width + at.0) as usize];
                    if *side {
                        break;
                    }
                    *side = true;
                }
                at = (at.0 + way.0, at.1 + way.1);
                // The pixels ahead, to the right and to the left of the way.
                let ahead = |side: isize| {
                    let (ax, ay) = (way.0 - side * way.1, way.1 + side * way.0);
                    mask.at(at.0 + (ax - 1) / 2, at.1 + (ay - 1) / 2)
                };
                let turned = match (ahead(1), ahead(-1)) {
                    (false, _) => (-way.1, way.0),
                    (true, true) => (way.1, -way.0),
                    (true, false) => way,
                };
                if turned != way {
                    line.push(at);
                    way = turned;
                }
            }
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(picture: &[&str]) -> Mask {
        let bits = picture.iter().flat_map(|row| row.bytes().map(|b| b == b'#')).collect();
        Mask { width: picture[0].len(), height: picture.len(), bits }
    }

    proptest! {
        #[test]
        fn filling_the_outline_gives_the_mask_back(
            bits in prop::collection::vec(prop::bool::weighted(0.7), 1..400), width in 1usize..30,
        ) {
            let width = width.min(bits.len());
            let height = bits.len() / width;
            let mask = Mask { width, height, bits: bits[..width * height].to_vec() };
            let back = fill_polygons(&outline_polygons(&mask), width, height).unwrap();
            prop_assert_eq!(back, mask);
        }
    }

    #[test]
    fn outlines_have_corners_only_where_they_turn() {
        let square = mask(&["....", ".##.", ".##.", "...."]);
        assert_eq!(outline_polygons(&square), [[[3.0, 1.0], [3.0, 3.0], [1.0, 3.0], [1.0, 1.0]]]);
        let ring = mask(&["###", "#.#", "###"]);
        assert_eq!((outlines(&ring).len(), outline_polygons(&ring).len()), (2, 1));
        let corner = mask(&["#.", ".#"]);
        assert_eq!(outline_polygons(&corner).len(), 2);
        assert!(outline_polygons(&mask(&["..", ".."])).is_empty());
    }

    #[test]
    fn polygons_that_are_none_say_why() {
        let check = |polygon: &[[f64; 2]], why: &str| {
            let error = fill_polygons(&[polygon.to_vec()], 9, 9).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        check(&[[0.0, 0.0], [1.0, 1.0]], "2 corners");
        check(&[[0.0, 0.0], [1.0, f64::NAN], [1.0, 1.0]], "NaN");
        check(&[[0.0, 0.0], [1e9, 0.0], [1.0, 1.0]], "1000000000");
        assert!(fill_polygons(&[], 0, 9).is_err());
    }
}
