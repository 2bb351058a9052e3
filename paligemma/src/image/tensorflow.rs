//! The five methods of `tf.image.resize` that the pre-training drew from at random (big_vision
//! pp/proj/paligemma/robustness.py, `resize_r`), each with and without antialiasing, truncated to bytes.
//!
//! Their spans and weights are TensorFlow's, in f32: `ScaleAndTranslate` for what is antialiased, for Lanczos and for
//! Mitchell; `ResizeBilinear`, `ResizeBicubic` and `ResizeArea` for the rest.

use rayon::prelude::*;

use super::decode::Picture;
use super::resize::{C, Kernel, as_tensorflow, span};

/// How `tf.image.resize` resizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = -1/2.
    Bicubic,
    /// Sinc windowed by sinc, three lobes.
    Lanczos3,
    /// The mean of the area covered; the same with and without antialiasing.
    Area,
    /// Mitchell's and Netravali's cubic.
    MitchellCubic,
}

impl Method {
    /// All of them, in the order of the reference.
    pub const ALL: [Method; 5] =
        [Method::Bilinear, Method::Bicubic, Method::Lanczos3, Method::Area, Method::MitchellCubic];

    /// `picture` at `width` × `height`, as
    /// `tf.cast(tf.clip_by_value(tf.image.resize(picture, (height, width), method, antialias=antialias), 0, 255), tf.uint8)`.
    ///
    /// Panics when a side of either picture is zero.
    pub fn resize(self, picture: &Picture, width: usize, height: usize, antialias: bool) -> Picture {
        assert!(width > 0 && height > 0 && picture.width > 0 && picture.height > 0, "a side is zero");
        match self {
            Method::Bilinear => as_tensorflow(picture, width, height, antialias),
            Method::Bicubic if !antialias => bicubic(picture, width, height),
            Method::Bicubic => span(picture, width, height, Kernel::KeysCubic, antialias),
            Method::Lanczos3 => span(picture, width, height, Kernel::Lanczos3, antialias),
            Method::MitchellCubic => span(picture, width, height, Kernel::MitchellCubic, antialias),
            Method::Area => area(picture, width, height),
        }
    }
}

/// Steps of the table of the cubic's weights.
const STEPS: usize = 1 << 10;

/// The four neighbours of every output position and their weights; those beyond the picture count nothing.
fn bicubic_taps(from: usize, to: usize) -> Vec<[(usize, f32); 4]> {
    const A: f64 = -0.5;
    let near = |i: usize| {
        let x = f64::from((i as f64 / STEPS as f64) as f32);
        (((A + 2.0) * x - (A + 3.0)) * x * x + 1.0) as f32
    };
    let far = |i: usize| {
        let x = f64::from((i as f64 / STEPS as f64) as f32 + 1.0);
        (((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A) as f32
    };
    let scale = from as f32 / to as f32;
    let taps = |i: usize| {
        let at = (i as f32 + 0.5) * scale - 0.5;
        let first = at.floor() as i64;
        let offset = ((at - first as f32) * STEPS as f32).round_ties_even() as usize;
        let weights = [far(offset), near(offset), near(STEPS - offset), far(STEPS - offset)];
        let mut taps: [(usize, f32); 4] = std::array::from_fn(|k| {
            let source = first - 1 + k as i64;
            match usize::try_from(source).ok().filter(|&source| source < from) {
                Some(source) => (source, weights[k]),
                None => (source.clamp(0, from as i64 - 1) as usize, 0.0),
            }
        });
        let sum: f32 = taps.iter().map(|tap| tap.1).sum();
        if sum.abs() >= 1000.0 * f32::MIN_POSITIVE {
            taps.iter_mut().for_each(|tap| tap.1 *= 1.0 / sum);
        }
        taps
    };
    (0..to).map(taps).collect()
}

fn bicubic(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = bicubic_taps(picture.height, height);
    let rows = bicubic_taps(picture.width, width);
    let stride = picture.width * C;
    let mut rgb = vec![0; width * height * C];
    rgb.par_chunks_exact_mut(width * C).zip(&columns).for_each(|(out, down)| {
        for (pixel, along) in out.chunks_exact_mut(C).zip(&rows) {
            for (c, value) in pixel.iter_mut().enumerate() {
                let column = |x: usize| {
                    let at = |k: usize| f32::from(picture.rgb[down[k].0 * stride + x * C + c]) * down[k].1;
                    at(0) + at(1) + at(2) + at(3)
                };
                let sum = along.map(|(x, weight)| column(x) * weight);
                *value = (sum[0] + sum[1] + sum[2] + sum[3]).clamp(0.0, 255.0) as u8;
            }
        }
    });
    Picture { width, height, rgb }
}

/// The input positions that an output position covers, each with the part of it that is covered.
fn area_taps(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f32 / to as f32;
    let taps = |i: usize| {
        let (start, end) = (i as f32 * scale, (i + 1) as f32 * scale);
        let part = |source: i64| {
            let (left, right) = (source as f32, (source + 1) as f32);
            match (left < start, right > end) {
                (true, true) => scale,
                (true, false) => right - start,
                (false, true) => end - left,
                (false, false) => 1.0,
            }
        };
        let sources = start.floor() as i64..end.ceil() as i64;
        sources.map(|source| (source.clamp(0, from as i64 - 1) as usize, part(source))).collect()
    };
    (0..to).map(taps).collect()
}

fn area(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = area_taps(picture.height, height);
    let rows = area_taps(picture.width, width);
    let scale = |from: usize, to: usize| from as f32 / to as f32;
    let whole = (1.0 / f64::from(scale(picture.height, height) * scale(picture.width, width))) as f32;
    let stride = picture.width * C;
    let mut rgb = vec![0; width * height * C];
    rgb.par_chunks_exact_mut(width * C).zip(&columns).for_each(|(out, down)| {
        for (pixel, along) in out.chunks_exact_mut(C).zip(&rows) {
            let mut sums = [0f32; C];
            for &(y, part) in down {
                let mut line = [0f32; C];
                for &(x, part) in along {
                    for (c, sum) in line.iter_mut().enumerate() {
                        *sum += f32::from(picture.rgb[y * stride + x * C + c]) * part;
                    }
                }
                for c in 0..C {
                    sums[c] += line[c] * part;
                }
            }
            for c in 0..C {
                pixel[c] = (sums[c] * whole).clamp(0.0, 255.0) as u8;
            }
        }
    });
    Picture { width, height, rgb }
}
