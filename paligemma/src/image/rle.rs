//! Masks as run lengths, as COCO keeps them: equal to pycocotools, string by string.
//!
//! Runs go down the columns, left to right; the first is of pixels that are not mask and may be 0. The string holds
//! each run, from the fourth on less the run before the last, in digits of five bits with a sign, least first.

use super::{Mask, decode::MAX_PIXELS};
use crate::{Error, Result};

/// A mask as run lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rle {
    width: usize,
    height: usize,
    counts: Vec<u32>,
}

impl Rle {
    /// The run lengths of a mask.
    pub fn from_mask(mask: &Mask) -> Rle {
        let mut counts = Vec::new();
        let (mut run, mut last) = (0, false);
        for x in 0..mask.width {
            for y in 0..mask.height {
                let bit = mask.bits[y * mask.width + x];
                if bit != last {
                    counts.push(run);
                    (run, last) = (0, bit);
                }
                run += 1;
            }
        }
        counts.push(run);
        Rle { width: mask.width, height: mask.height, counts }
    }

    /// The mask.
    pub fn to_mask(&self) -> Mask {
        let mut bits = vec![false; self.width * self.height];
        let mut at = 0;
        for (i, &run) in self.counts.iter().enumerate() {
            let run = at..at + run as usize;
            at = run.end;
            if i % 2 == 1 {
                run.for_each(|p| bits[p % self.height * self.width + p / self.height] = true);
            }
        }
        Mask { width: self.width, height: self.height, bits }
    }

    /// Run lengths as an uncompressed COCO annotation has them.
    ///
    /// # Errors
    /// `Kind::Input` if they do not add up to the picture, or it is too large.
    pub fn from_counts(counts: Vec<u32>, width: usize, height: usize) -> Result<Rle> {
        check_size(width, height)?;
        let sum: u64 = counts.iter().map(|&run| u64::from(run)).sum();
        let pixels = width as u64 * height as u64;
        if sum != pixels || counts.is_empty() {
            return Err(Error::input(format!("the run lengths add up to {sum} pixels"))
                .expected(format!("{width}×{height} = {pixels}")));
        }
        Ok(Rle { width, height, counts })
    }

    /// Run lengths as a compressed COCO annotation has them.
    ///
    /// # Errors
    /// `Kind::Input` if the string is no run lengths, or they do not add up to the picture.
    pub fn from_compressed(text: &str, width: usize, height: usize) -> Result<Rle> {
        let broken = |why: &str| Error::input(format!("the compressed run lengths are broken: {why}"));
        let mut counts: Vec<u32> = Vec::new();
        let mut digits = text.bytes();
        while let Some(first) = digits.next() {
            let (mut value, mut shift, mut digit) = (0i64, 0, first);
            loop {
                let d = digit.checked_sub(48).filter(|&d| d < 64);
                let d = i64::from(d.ok_or_else(|| broken("they have an unknown character"))?);
                // Seven digits hold every run of a picture.
                if shift >= 35 {
                    return Err(broken("a number is too long"));
                }
                value |= (d & 0x1f) << shift;
                shift += 5;
                if d & 0x20 == 0 {
                    if d & 0x10 != 0 {
                        value |= -1 << shift;
                    }
                    break;
                }
                digit = digits.next().ok_or_else(|| broken("the last number is cut short"))?;
            }
            if counts.len() > 2 {
                value += i64::from(counts[counts.len() - 2]);
            }
            counts.push(u32::try_from(value).map_err(|_| broken("a run is negative or too long"))?);
        }
        Rle::from_counts(counts, width, height)
    }

    /// The string of a compressed COCO annotation.
    pub fn compressed(&self) -> String {
        let mut text = String::new();
        for (i, &run) in self.counts.iter().enumerate() {
            let mut value = i64::from(run);
            if i > 2 {
                value -= i64::from(self.counts[i - 2]);
            }
            loop {
                let digit = (value & 0x1f) as u8;
                value >>= 5;
                // The sign is the last digit's highest bit.
                let is_last = value == if digit & 0x10 == 0 { 0 } else { -1 };
                text.push(char::from(48 + digit + if is_last { 0 } else { 0x20 }));
                if is_last {
                    break;
                }
            }
        }
        text
    }

    /// Columns of the picture.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows of the picture.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The run lengths.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Pixels that are mask.
    pub fn area(&self) -> usize {
        self.counts.iter().skip(1).step_by(2).map(|&run| run as usize).sum()
    }
}

/// Refuses a mask larger than a picture may be.
pub(super) fn check_size(width: usize, height: usize) -> Result<()> {
    let pixels = (width as u64).checked_mul(height as u64);
    if width == 0 || height == 0 || pixels.is_none_or(|pixels| pixels > MAX_PIXELS) {
        return Err(Error::input(format!("the mask's size is {width}×{height}"))
            .expected(format!("1×1 to {} million pixels", MAX_PIXELS / 1_000_000)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn masks_come_back(bits in prop::collection::vec(any::<bool>(), 1..400), width in 1usize..40) {
            let width = width.min(bits.len());
            let height = bits.len() / width;
            let mask = Mask { width, height, bits: bits[..width * height].to_vec() };
            let rle = Rle::from_mask(&mask);
            prop_assert_eq!(&rle.to_mask(), &mask);
            prop_assert_eq!(rle.area(), mask.area());
            prop_assert_eq!(&Rle::from_compressed(&rle.compressed(), width, height).unwrap(), &rle);
        }

        #[test]
        fn any_text_is_run_lengths_or_an_error(text in "\\PC{0,40}", w in 0usize..50, h in 0usize..50) {
            let _ = Rle::from_compressed(&text, w, h);
        }
    }

    #[test]
    fn broken_run_lengths_say_why() {
        for (text, why) in [
            ("", "add up"),
            ("1", "add up"),
            ("é", "unknown character"),
            ("!", "unknown character"),
            ("P", "cut short"),
            ("PPPPPPPPPP", "too long"),
            ("@", "negative"),
        ] {
            let error = Rle::from_compressed(text, 3, 3).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        assert!(Rle::from_counts(vec![9], 0, 9).is_err());
        assert!(Rle::from_counts(vec![u32::MAX; 2], usize::MAX, 2).is_err());
        // An empty mask has one run.
        assert_eq!(Rle::from_counts(vec![9], 3, 3).unwrap().area(), 0);
    }
}
