//! What the paper's pre-training does to pictures so that the model does not mind how they were prepared: a slight crop,
//! a resize method drawn at random, and JPEG (section 3.2.6; big_vision pp/proj/paligemma/robustness.py).
//!
//! The reference draws among five methods with and without antialiasing, and a quality of 75 to 95. How often it encodes,
//! how much it crops and in which order is not published; ours is crop, resize, JPEG. It also draws between two of
//! libjpeg's inverse transforms, which differ by a level here and there; ours has the accurate one.

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use rand_chacha::ChaCha8Rng;

use super::random::{below, unit};
use crate::image::{Method, Picture, decode};
use crate::{Error, Result};

/// What happens to pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Whether the resize method is drawn at random.
    pub resize: bool,
    /// The probability that a picture is encoded as JPEG and decoded again.
    pub jpeg: f64,
    /// The largest part of a picture's area that is cut off; 0 crops nothing. Examples with `<loc` in their text are not
    /// cropped: their boxes would no longer be where they say.
    pub crop: f64,
}

impl Default for Augmentation {
    /// All three. How often and how much are ours: half of the pictures, up to a twentieth of the area.
    fn default() -> Self {
        Augmentation { resize: true, jpeg: 0.5, crop: 0.05 }
    }
}

impl Augmentation {
    /// Refuses what is no probability or leaves nothing.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: `jpeg` outside 0 to 1, `crop` below 0 or above 1/2.
    pub fn check(&self) -> Result<()> {
        let range = |name: &str, value: f64, most: f64| match (0.0..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::usage(format!("augmentation: {name} is {value}"))
                .expected(format!("a number from 0 to {most}"))),
        };
        range("jpeg", self.jpeg, 1.0)?;
        range("crop", self.crop, 0.5)
    }

    /// A picture of `size` × `size`, or of its own size where nothing asks for resizing.
    pub(super) fn apply(
        &self,
        mut picture: Picture,
        size: usize,
        may_crop: bool,
        rng: &mut ChaCha8Rng,
    ) -> Result<Picture> {
        // All draws are made whatever is done with them, so that one setting does not change what another draws.
        let (area, shape, x, y) = (unit(rng), unit(rng), unit(rng), unit(rng));
        let method = Method::ALL[below(rng, Method::ALL.len() as u64) as usize];
        let antialias = below(rng, 2) == 0;
        let (encode, quality) = (unit(rng), 75 + below(rng, 21) as u8);
        if self.crop > 0.0 && may_crop {
            picture = crop(&picture, 1.0 - self.crop * area, shape, x, y);
        }
        if self.resize {
            picture = method.resize(&picture, size, size, antialias);
        }
        if encode < self.jpeg {
            picture = through_jpeg(&picture, quality)?;
        }
        Ok(picture)
    }
}

/// The part `area` of a picture. `shape`, `x` and `y` from 0 to 1 say how its sides differ from the picture's and where
/// it lies.
fn crop(picture: &Picture, area: f64, shape: f64, x: f64, y: f64) -> Picture {
    // From full height to full width.
    let ratio = area.powf(2.0 * shape - 1.0);
    let side = |full: usize, part: f64| ((full as f64 * part.sqrt()).round() as usize).clamp(1, full);
    let (width, height) = (side(picture.width, area * ratio), side(picture.height, area / ratio));
    let start =
        |full: usize, part: usize, at: f64| (((full - part + 1) as f64 * at) as usize).min(full - part);
    let (left, top) = (start(picture.width, width, x), start(picture.height, height, y));
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in picture.rgb.chunks_exact(picture.width * 3).skip(top).take(height) {
        rgb.extend_from_slice(&row[left * 3..(left + width) * 3]);
    }
    Picture { width, height, rgb }
}

/// A picture after JPEG as TensorFlow writes it: colour at half the resolution.
pub(super) fn through_jpeg(picture: &Picture, quality: u8) -> Result<Picture> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    // No side of a picture is beyond 16,384.
    let (width, height) = (picture.width as u16, picture.height as u16);
    encoder
        .encode(&picture.rgb, width, height, ColorType::Rgb)
        .map_err(|error| Error::input(format!("the picture cannot be encoded: {error}")).because(error))?;
    decode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::random::{Purpose, stream};
    use super::*;

    fn waves(width: usize, height: usize) -> Picture {
        let value = |i: usize| ((i % width * 5 + i / width * 3) % 200) as u8;
        let rgb = (0..width * height).flat_map(|i| [value(i), 255 - value(i), value(i) / 2]).collect();
        Picture { width, height, rgb }
    }

    #[test]
    fn crops_have_their_area_and_lie_inside() {
        let picture = waves(100, 60);
        let check = |area: f64, shape: f64, x: f64, y: f64, want: (usize, usize), first: (usize, usize)| {
            let part = crop(&picture, area, shape, x, y);
            assert_eq!((part.width, part.height), want, "{area} {shape}");
            let at = (first.1 * 100 + first.0) * 3;
            assert_eq!(part.rgb[..3], picture.rgb[at..at + 3], "{area} {shape} {x} {y}");
            assert_eq!(part.rgb.len(), want.0 * want.1 * 3);
        };
        check(1.0, 0.3, 0.5, 0.5, (100, 60), (0, 0));
        check(0.9, 0.0, 0.0, 0.999, (100, 54), (0, 6));
        check(0.9, 1.0, 0.999, 0.0, (90, 60), (10, 0));
        check(0.81, 0.5, 0.5, 0.5, (90, 54), (5, 3));
        // One pixel stays one pixel.
        assert_eq!(crop(&waves(1, 1), 0.5, 0.7, 0.9, 0.9), waves(1, 1));
    }

    #[test]
    fn jpeg_changes_little_and_each_quality_differs() {
        let picture = waves(64, 64);
        let of = |quality| through_jpeg(&picture, quality).unwrap();
        let error = |a: &Picture| {
            let squares =
                a.rgb.iter().zip(&picture.rgb).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
            (squares.sum::<f64>() / picture.rgb.len() as f64).sqrt()
        };
        let (low, high) = (of(75), of(95));
        assert_eq!((low.width, low.height), (64, 64));
        assert!(
            low != high && low != picture && error(&high) < error(&low),
            "{} {}",
            error(&high),
            error(&low)
        );
        assert!(error(&low) < 25.0, "{}", error(&low));
    }

    #[test]
    fn equal_streams_give_equal_pictures_and_settings_do_not_mix() {
        let all = Augmentation { resize: true, jpeg: 1.0, crop: 0.05 };
        let of = |how: Augmentation, may_crop: bool, index: u64| {
            how.apply(waves(100, 60), 28, may_crop, &mut stream(1, Purpose::Augmentation, 0, 0, index))
                .unwrap()
        };
        assert_eq!(of(all, true, 0), of(all, true, 0));
        assert_ne!(of(all, true, 0), of(all, true, 1));
        assert_ne!(of(all, true, 0), of(all, false, 0));
        assert_eq!(of(all, false, 0), of(Augmentation { crop: 0.0, ..all }, true, 0));
        let none = Augmentation { resize: false, jpeg: 0.0, crop: 0.0 };
        assert_eq!(of(none, true, 0), waves(100, 60));
        // Every method is drawn, and with and without antialiasing: pictures without JPEG tell them apart.
        let resized = Augmentation { resize: true, jpeg: 0.0, crop: 0.0 };
        let mut seen: Vec<Picture> = Vec::new();
        for index in 0..300 {
            let picture = of(resized, true, index);
            if !seen.contains(&picture) {
                seen.push(picture);
            }
        }
        assert_eq!(seen.len(), 9); // Area is one method, antialiased or not.
    }

    #[test]
    fn settings_out_of_range_are_usage_errors() {
        let check = |jpeg: f64, crop: f64, fits: bool| {
            let checked = Augmentation { resize: true, jpeg, crop }.check();
            assert_eq!(checked.is_ok(), fits, "{jpeg} {crop}");
        };
        check(0.0, 0.0, true);
        check(1.0, 0.5, true);
        check(1.1, 0.0, false);
        check(-0.1, 0.0, false);
        check(f64::NAN, 0.0, false);
        check(0.0, 0.6, false);
    }
}
