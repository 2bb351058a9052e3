//! The two resizers, each equal to the program whose pictures the weights have seen.
//!
//! [`as_pillow`] works in fixed point, as Pillow's `Image.resize` does on 8-bit pictures: a weight is
//! an integer of 22 fractional bits, rows are resized first and rounded to bytes, columns second. Its
//! bytes equal Pillow's. [`as_tensorflow`] works in f32, as `tf.image.resize(method="bilinear")` does,
//! and truncates to bytes, as big_vision does after it.
//!
//! Ready-made resizers differ from both by several grey levels, enough to flip an answer.

use rayon::prelude::*;

use super::decode::Picture;

/// Channels of a picture.
const C: usize = 3;

/// Pillow's filters, under the numbers that a processor configuration calls `resample`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// 0: the pixel below the centre.
    Nearest,
    /// 1: sinc windowed by sinc, three lobes.
    Lanczos,
    /// 2: a triangle.
    Bilinear,
    /// 3: Keys' cubic with a = -1/2; what PaliGemma's processor asks for.
    Bicubic,
    /// 4: the mean of the pixels covered.
    Box,
    /// 5: sinc windowed by Hamming, one lobe.
    Hamming,
}

impl Resample {
    /// The filter that Pillow numbers `number`; none beyond 5.
    pub fn from_number(number: u64) -> Option<Resample> {
        Some(match number {
            0 => Resample::Nearest,
            1 => Resample::Lanczos,
            2 => Resample::Bilinear,
            3 => Resample::Bicubic,
            4 => Resample::Box,
            5 => Resample::Hamming,
            _ => return None,
        })
    }

    /// Half the width of the kernel, in source pixels when enlarging.
    fn support(self) -> f64 {
        match self {
            Resample::Nearest => 0.0,
            Resample::Box => 0.5,
            Resample::Bilinear | Resample::Hamming => 1.0,
            Resample::Bicubic => 2.0,
            Resample::Lanczos => 3.0,
        }
    }

    /// The kernel at distance `x` from its centre.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                let x = x * std::f64::consts::PI;
                x.sin() / x
            }
        };
        let distance = x.abs();
        match self {
            Resample::Nearest => 0.0,
            // The box is half open: a pixel on the boundary counts once.
            Resample::Box => f64::from(x > -0.5 && x <= 0.5),
            Resample::Bilinear => (1.0 - distance).max(0.0),
            Resample::Hamming => {
                if distance == 0.0 {
                    1.0
                } else if distance >= 1.0 {
                    0.0
                } else {
                    let x = distance * std::f64::consts::PI;
                    x.sin() / x * (0.54 + 0.46 * x.cos())
                }
            }
            Resample::Bicubic => {
                const A: f64 = -0.5;
                if distance < 1.0 {
                    ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
                } else {
                    0.0
                }
            }
            Resample::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

/// For every output position: the first input position and the weights from there on.
struct Taps<W> {
    /// (first input position, first weight, number of weights) of each output position.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<W>,
}

impl<W> Taps<W> {
    fn with_capacity(positions: usize) -> Self {
        Taps { spans: Vec::with_capacity(positions), weights: Vec::new() }
    }

    fn push(&mut self, start: usize, weights: impl IntoIterator<Item = W>) {
        let first = self.weights.len();
        self.weights.extend(weights);
        self.spans.push((start, first, self.weights.len() - first));
    }

    /// The first input position and the weights of output position `i`.
    fn at(&self, i: usize) -> (usize, &[W]) {
        let (start, first, count) = self.spans[i];
        (start, &self.weights[first..first + count])
    }
}

// ---------------------------------------------------------------------------------------------
// Pillow

/// Fractional bits of a weight: 32, less 8 for the pixel and 2 for the sign and the overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// `picture` at `width` × `height`, byte for byte what Pillow's
/// `Image.resize((width, height), resample)` gives (checked against Pillow 13.0.0, `Resample.c`).
///
/// Panics when a side of either picture is zero.
pub fn as_pillow(picture: &Picture, width: usize, height: usize, resample: Resample) -> Picture {
    assert!(width > 0 && height > 0 && picture.width > 0 && picture.height > 0, "a side is zero");
    if resample == Resample::Nearest {
        return nearest(picture, width, height);
    }
    let rows = (width != picture.width).then(|| pillow_rows(picture, width, resample));
    let picture = match &rows {
        Some(rows) => rows,
        None => picture,
    };
    if height == picture.height { picture.clone() } else { pillow_columns(picture, height, resample) }
}

/// Pillow's weights for one axis.
fn pillow_taps(from: usize, to: usize, resample: Resample) -> Taps<i32> {
    let scale = from as f64 / to as f64;
    // Enlarging reads the kernel as it is; reducing stretches it over the pixels that fall together.
    let stretch = scale.max(1.0);
    let support = resample.support() * stretch;
    let mut taps = Taps::with_capacity(to);
    let mut weights = Vec::new();
    for position in 0..to {
        let centre = (position as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        weights.clear();
        let mut sum = 0.0;
        for source in start..end {
            let weight = resample.weight((source as f64 - centre + 0.5) * (1.0 / stretch));
            weights.push(weight);
            sum += weight;
        }
        taps.push(
            start,
            weights.iter().map(|&weight| {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                let fixed = weight * f64::from(1 << PRECISION);
                (if fixed < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32
            }),
        );
    }
    taps
}

/// A sum of weighted pixels, which already holds the half, as a byte.
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// What a sum starts from: a half, so that the shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn pillow_rows(picture: &Picture, width: usize, resample: Resample) -> Picture {
    let taps = pillow_taps(picture.width, width, resample);
    let mut rgb = vec![0; width * picture.height * C];
    rgb.par_chunks_exact_mut(width * C).zip(picture.rgb.par_chunks_exact(picture.width * C)).for_each(
        |(out, row)| {
            for (x, pixel) in out.chunks_exact_mut(C).enumerate() {
                let (start, weights) = taps.at(x);
                let mut sums = [HALF; C];
                for (source, &weight) in row[start * C..].chunks_exact(C).zip(weights) {
                    for c in 0..C {
                        sums[c] += i32::from(source[c]) * weight;
                    }
                }
                for c in 0..C {
                    pixel[c] = clip(sums[c]);
                }
            }
        },
    );
    Picture { width, height: picture.height, rgb }
}

fn pillow_columns(picture: &Picture, height: usize, resample: Resample) -> Picture {
    let taps = pillow_taps(picture.height, height, resample);
    let stride = picture.width * C;
    let mut rgb = vec![0; stride * height];
    // Whole rows are added up, so that the inner loop runs along memory.
    rgb.par_chunks_exact_mut(stride).enumerate().for_each_init(
        || vec![0i32; stride],
        |sums, (y, out)| {
            let (start, weights) = taps.at(y);
            sums.fill(HALF);
            for (row, &weight) in picture.rgb[start * stride..].chunks_exact(stride).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(sums.iter()) {
                *out = clip(sum);
            }
        },
    );
    Picture { width: picture.width, height, rgb }
}

/// Pillow's nearest neighbour. It adds the step up instead of multiplying, and so do we: after many
/// steps the sum of roundings decides which side of a boundary a position falls.
fn nearest(picture: &Picture, width: usize, height: usize) -> Picture {
    let positions = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        let mut at = step * 0.5;
        let mut positions = Vec::with_capacity(to);
        for _ in 0..to {
            positions.push((at as usize).min(from - 1));
            at += step;
        }
        positions
    };
    let columns = positions(picture.width, width);
    let mut rgb = Vec::with_capacity(width * height * C);
    for y in positions(picture.height, height) {
        for &x in &columns {
            let at = (y * picture.width + x) * C;
            rgb.extend_from_slice(&picture.rgb[at..at + C]);
        }
    }
    Picture { width, height, rgb }
}

// ---------------------------------------------------------------------------------------------
// TensorFlow

/// `picture` at `width` × `height`, what
/// `tf.cast(tf.image.resize(picture, (height, width), "bilinear", antialias=antialias), tf.uint8)`
/// gives: half-pixel centres, f32 sums, truncated to bytes (big_vision `pp/ops_image.py:get_resize`).
///
/// Panics when a side of either picture is zero.
pub fn as_tensorflow(picture: &Picture, width: usize, height: usize, antialias: bool) -> Picture {
    assert!(width > 0 && height > 0 && picture.width > 0 && picture.height > 0, "a side is zero");
    if antialias { span_bilinear(picture, width, height) } else { point_bilinear(picture, width, height) }
}

/// The weights of TensorFlow's ScaleAndTranslate with a triangle kernel, for one axis.
fn span_taps(from: usize, to: usize) -> Taps<f32> {
    let inverse = (1.0 / f64::from(to as f32 / from as f32)) as f32;
    let stretch = inverse.max(1.0);
    let last = from as i64 - 1;
    let mut taps = Taps::with_capacity(to);
    let mut weights = Vec::new();
    for position in 0..to {
        let centre = (position as f32 + 0.5) * inverse;
        // Only rounding can push a centre outside the picture; TensorFlow then leaves zeros.
        if centre > from as f32 {
            taps.push(0, []);
            continue;
        }
        let start = ((centre - stretch - 0.5).ceil() as i64).clamp(0, last) as usize;
        let end = ((centre + stretch - 0.5).floor() as i64).clamp(0, last) as usize + 1;
        weights.clear();
        let mut sum = 0.0f32;
        for source in start..end {
            let distance = ((source as f32 + 0.5 - centre) * (1.0 / stretch)).abs();
            let weight = (1.0 - distance).max(0.0);
            weights.push(weight);
            sum += weight;
        }
        let scale = if sum >= 1000.0 * f32::MIN_POSITIVE { 1.0 / sum } else { 0.0 };
        taps.push(start, weights.iter().map(|weight| weight * scale));
    }
    taps
}

/// Columns first, then rows, as TensorFlow adds them up; one output row at a time.
fn span_bilinear(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = span_taps(picture.height, height);
    let rows = span_taps(picture.width, width);
    let stride = picture.width * C;
    let mut rgb = vec![0; width * height * C];
    rgb.par_chunks_exact_mut(width * C).enumerate().for_each_init(
        || vec![0f32; stride],
        |sums, (y, out)| {
            let (start, weights) = columns.at(y);
            sums.fill(0.0);
            for (row, &weight) in picture.rgb[start * stride..].chunks_exact(stride).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f32::from(value) * weight;
                }
            }
            for (x, pixel) in out.chunks_exact_mut(C).enumerate() {
                let (start, weights) = rows.at(x);
                let mut total = [0f32; C];
                for (source, &weight) in sums[start * C..].chunks_exact(C).zip(weights) {
                    for c in 0..C {
                        total[c] += source[c] * weight;
                    }
                }
                for c in 0..C {
                    pixel[c] = total[c].clamp(0.0, 255.0) as u8;
                }
            }
        },
    );
    Picture { width, height, rgb }
}

/// The two neighbours of every output position and how far it lies towards the second.
fn point_taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    let position = |i: usize| {
        let at = (i as f32 + 0.5) * scale - 0.5;
        let upper = (at.ceil() as i64).min(from as i64 - 1) as usize;
        let lower = (at.floor().max(0.0) as usize).min(upper);
        (lower, upper, at - at.floor())
    };
    (0..to).map(position).collect()
}

fn point_bilinear(picture: &Picture, width: usize, height: usize) -> Picture {
    let columns = point_taps(picture.height, height);
    let rows = point_taps(picture.width, width);
    let stride = picture.width * C;
    let mut rgb = vec![0; width * height * C];
    rgb.par_chunks_exact_mut(width * C).zip(&columns).for_each(|(out, &(top, bottom, down))| {
        let (top, bottom) = (&picture.rgb[top * stride..], &picture.rgb[bottom * stride..]);
        for (pixel, &(left, right, along)) in out.chunks_exact_mut(C).zip(&rows) {
            for (c, value) in pixel.iter_mut().enumerate() {
                let between = |row: &[u8]| {
                    let (l, r) = (f32::from(row[left * C + c]), f32::from(row[right * C + c]));
                    l + (r - l) * along
                };
                let (t, b) = (between(top), between(bottom));
                *value = (t + (b - t) * down).clamp(0.0, 255.0) as u8;
            }
        }
    });
    Picture { width, height, rgb }
}
