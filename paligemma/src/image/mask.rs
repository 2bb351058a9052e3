//! Masks of objects, and the way between a picture and the 64×64 that the mask's model sees.
//!
//! The reference crops a mask to its box in whole pixels and shrinks it (big_vision pp/proj/paligemma/segmentation.py);
//! what comes back is stretched over the box, its corners cut to whole pixels, and is mask where it is above zero
//! (big_vision evaluators/proj/paligemma/transfers/segmentation.py).

use super::{
    decode::Picture,
    resize::{plane_as_pillow, plane_as_tensorflow},
};
use crate::{Error, Result};

/// Sides of what the mask's model reads and writes.
pub const MASK_SIDE: usize = 64;

/// One channel of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`
    pub values: Vec<f32>,
}

/// Which pixels of a picture belong to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`
    pub bits: Vec<bool>,
}

/// Whole pixels of a picture; `x1` and `y1` are outside. It may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x0: usize,
    /// First row.
    pub y0: usize,
    /// The column after the last.
    pub x1: usize,
    /// The row after the last.
    pub y1: usize,
}

impl Rect {
    /// A box (x0, y0, x1, y1 in pixels) with its corners cut to whole pixels, within a picture: what a mask is pasted in.
    pub fn truncated(pixels: [f64; 4], width: usize, height: usize) -> Rect {
        Rect::within(pixels, width, height)
    }

    /// A box with its corners rounded to whole pixels, halves to even, within a picture: what a mask is cut from.
    pub fn rounded(pixels: [f64; 4], width: usize, height: usize) -> Rect {
        Rect::within(pixels.map(f64::round_ties_even), width, height)
    }

    fn within([x0, y0, x1, y1]: [f64; 4], width: usize, height: usize) -> Rect {
        // The conversion cuts, makes 0 of negative numbers and of NaN, and stops at the largest number.
        let (x, y) = (|x: f64| (x as usize).min(width), |y: f64| (y as usize).min(height));
        Rect { x0: x(x0), y0: y(y0), x1: x(x1), y1: y(y1) }
    }

    /// A whole picture.
    pub fn whole(width: usize, height: usize) -> Rect {
        Rect { x0: 0, y0: 0, x1: width, y1: height }
    }

    /// Whether it holds no pixel.
    pub fn is_empty(self) -> bool {
        self.x1 <= self.x0 || self.y1 <= self.y0
    }
}

impl Plane {
    /// The 64×64 that the mask's model reads of the pixels in `rect`: bilinear, antialiased.
    ///
    /// # Errors
    /// `Kind::Input` if `rect` is empty or reaches beyond the plane.
    pub fn crop(&self, rect: Rect) -> Result<Plane> {
        let Rect { x0, y0, x1, y1 } = rect;
        if rect.is_empty() || x1 > self.width || y1 > self.height {
            return Err(Error::input(format!("the box {x0},{y0},{x1},{y1} holds no pixel"))
                .expected(format!("x0 below x1, y0 below y1, within {}×{}", self.width, self.height)));
        }
        let values = self.values[y0 * self.width..y1 * self.width]
            .chunks_exact(self.width)
            .flat_map(|row| &row[x0..x1])
            .copied()
            .collect();
        let cut = Plane { width: x1 - x0, height: y1 - y0, values };
        Ok(plane_as_tensorflow(&cut, MASK_SIDE, MASK_SIDE))
    }

    /// The mask of a picture of `width` × `height` that this plane is of the pixels in `rect`: stretched bilinearly, then
    /// where it is above zero. Nothing is mask in an empty `rect`.
    pub fn paste(&self, rect: Rect, width: usize, height: usize) -> Mask {
        let mut mask = Mask { width, height, bits: vec![false; width * height] };
        let rect = Rect { x1: rect.x1.min(width), y1: rect.y1.min(height), ..rect };
        if rect.is_empty() {
            return mask;
        }
        let stretched = plane_as_pillow(self, rect.x1 - rect.x0, rect.y1 - rect.y0);
        for (row, y) in stretched.values.chunks_exact(stretched.width).zip(rect.y0..) {
            let bits = &mut mask.bits[y * width + rect.x0..y * width + rect.x1];
            bits.iter_mut().zip(row).for_each(|(bit, value)| *bit = *value > 0.0);
        }
        mask
    }
}

impl Mask {
    /// 1 where it is mask, else 0.
    pub fn to_plane(&self) -> Plane {
        let values = self.bits.iter().map(|&bit| f32::from(u8::from(bit))).collect();
        Plane { width: self.width, height: self.height, values }
    }

    /// Pixels that are mask.
    pub fn area(&self) -> usize {
        self.bits.iter().filter(|&&bit| bit).count()
    }

    /// The smallest rectangle that holds all of it; none if nothing is mask.
    pub fn bounds(&self) -> Option<Rect> {
        let mut bounds: Option<Rect> = None;
        for (y, row) in self.bits.chunks_exact(self.width.max(1)).enumerate() {
            let Some(first) = row.iter().position(|&bit| bit) else { continue };
            let last = row.iter().rposition(|&bit| bit).unwrap_or(first);
            let b = bounds.get_or_insert(Rect { x0: first, y0: y, x1: 0, y1: 0 });
            *b = Rect { x0: b.x0.min(first), x1: b.x1.max(last + 1), y0: b.y0, y1: y + 1 };
        }
        bounds
    }

    /// Whether the pixel is mask; none outside is.
    pub(super) fn at(&self, x: isize, y: isize) -> bool {
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else { return false };
        x < self.width && y < self.height && self.bits[y * self.width + x]
    }
}

/// A picture of a mask as numbers from 0 (black) to 1 (white).
///
/// # Errors
/// `Kind::Input` if it has colours, or nothing in it is brighter than 1 of 255: what it means is then unknown.
pub fn mask_of_picture(picture: &Picture) -> Result<Plane> {
    let pixels = picture.rgb.as_chunks::<3>().0;
    if let Some([r, g, b]) = pixels.iter().find(|[r, g, b]| r != g || g != b) {
        return Err(Error::input(format!("the mask has colours: red {r}, green {g}, blue {b}"))
            .expected("a grey picture: white is the object, black is not"));
    }
    if pixels.iter().map(|p| p[0]).max() == Some(1) {
        return Err(Error::input("no pixel of the mask is brighter than 1 of 255")
            .expected("white (255) where the object is")
            .hint("a mask of 0 and 1 must be multiplied by 255"));
    }
    let values = pixels.iter().map(|p| f32::from(p[0]) / 255.0).collect();
    Ok(Plane { width: picture.width, height: picture.height, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::resize::as_tensorflow;
    use proptest::prelude::*;

    proptest! {
        /// The bytes of the picture's resizer, which equals TensorFlow, are this one's numbers cut to bytes.
        #[test]
        fn shrinking_is_the_pictures_resizer_before_it_cuts(w in 1usize..200, h in 1usize..200, seed: u64) {
            let mut state = seed | 1;
            let values: Vec<f32> = (0..w * h).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                f32::from((state >> 40) as u8)
            }).collect();
            let rgb = values.iter().flat_map(|&v| [v as u8; 3]).collect();
            let want = as_tensorflow(&Picture { width: w, height: h, rgb }, 64, 64, true);
            let got = plane_as_tensorflow(&Plane { width: w, height: h, values }, 64, 64);
            let got: Vec<u8> = got.values.iter().flat_map(|&v| [v.clamp(0.0, 255.0) as u8; 3]).collect();
            prop_assert_eq!(got, want.rgb);
        }
    }

    #[test]
    fn boxes_become_whole_pixels() {
        let check = |pixels: [f64; 4], cut: [usize; 4], round: [usize; 4]| {
            let of = |r: Rect| [r.x0, r.y0, r.x1, r.y1];
            assert_eq!(of(Rect::truncated(pixels, 100, 50)), cut, "{pixels:?}");
            assert_eq!(of(Rect::rounded(pixels, 100, 50)), round, "{pixels:?}");
        };
        check([0.9, 1.5, 2.5, 49.99], [0, 1, 2, 49], [1, 2, 2, 50]);
        check([-3.0, f64::NAN, 1e300, f64::INFINITY], [0, 0, 100, 50], [0, 0, 100, 50]);
    }

    #[test]
    fn an_empty_box_is_no_mask_and_cannot_be_cut() {
        let plane = Plane { width: 64, height: 64, values: vec![1.0; 4096] };
        let empty = Rect { x0: 3, y0: 3, x1: 3, y1: 9 };
        assert_eq!(plane.paste(empty, 10, 10).area(), 0);
        assert!(plane.crop(empty).is_err());
        assert!(plane.crop(Rect { x0: 0, y0: 0, x1: 65, y1: 1 }).is_err());
        let mask = plane.paste(Rect { x0: 2, y0: 3, x1: 5, y1: 4 }, 10, 10);
        assert_eq!((mask.area(), mask.bounds()), (3, Some(Rect { x0: 2, y0: 3, x1: 5, y1: 4 })));
    }

    #[test]
    fn a_picture_that_is_no_mask_is_refused() {
        let of = |grey: &[u8]| Picture {
            width: grey.len(),
            height: 1,
            rgb: grey.iter().flat_map(|&v| [v; 3]).collect(),
        };
        assert_eq!(mask_of_picture(&of(&[0, 255, 51])).unwrap().values, [0.0, 1.0, 0.2]);
        assert_eq!(mask_of_picture(&of(&[0, 0])).unwrap().values, [0.0, 0.0]);
        assert!(mask_of_picture(&of(&[0, 1])).unwrap_err().to_string().contains("255"));
        let colour = Picture { width: 1, height: 1, rgb: vec![1, 2, 3] };
        assert!(mask_of_picture(&colour).unwrap_err().to_string().contains("colours"));
    }
}
