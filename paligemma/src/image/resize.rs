//! The two resizers, each equal to the program whose pictures the weights have seen.
//!
//! [`as_pillow`] works in fixed point, as Pillow's `Image.resize` does on 8-bit pictures: a weight is
//! an integer of 22 fractional bits, and what the first pass makes is rounded to bytes before the second. Its
//! bytes equal Pillow's. [`as_tensorflow`] works in f32, as `tf.image.resize(method="bilinear")` does,
//! and truncates to bytes, as big_vision does after it.
//!
//! Ready-made resizers differ from both by several grey levels, enough to flip an answer.

use rayon::prelude::*;

use super::decode::Picture;
use super::mask::Plane;

/// Channels of a picture.
pub(super) const C: usize = 3;

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

    /// The number that Pillow and transformers write.
    pub fn number(self) -> u64 {
        match self {
            Resample::Nearest => 0,
            Resample::Lanczos => 1,
            Resample::Bilinear => 2,
            Resample::Bicubic => 3,
            Resample::Box => 4,
            Resample::Hamming => 5,
        }
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
                    // Pillow writes these two as f32.
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
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
/// `Image.resize((width, height), resample)` gives (Pillow 13.0.0).
///
/// Panics when a side of either picture is zero.
pub fn as_pillow(picture: &Picture, width: usize, height: usize, resample: Resample) -> Picture {
    assert!(width > 0 && height > 0 && picture.width > 0 && picture.height > 0, "a side is zero");
    if resample == Resample::Nearest {
        return nearest(picture, width, height);
    }
    let rows = |picture: &Picture| match picture.width == width {
        true => picture.clone(),
        false => pillow_rows(picture, width, resample),
    };
    let columns = |picture: &Picture| match picture.height == height {
        true => picture.clone(),
        false => pillow_columns(picture, height, resample),
    };
    let size = (picture.width, picture.height);
    if columns_first(size, (width, height)) { rows(&columns(picture)) } else { columns(&rows(picture)) }
}

/// Whether Pillow resizes the columns first, which decides what is rounded in between: when the height shrinks
/// by more than twice what the width does. (Before Pillow 13 rows always came first.)
fn columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let down = shrinks(from.1, to.1);
    down > 0 && down > shrinks(from.0, to.0) * 2
}

/// Pillow's weights for one axis: the first input position of every output position, its weights and their sum.
fn pillow_weights(from: usize, to: usize, resample: Resample, mut each: impl FnMut(usize, &[f64], f64)) {
    let scale = from as f64 / to as f64;
    // Enlarging reads the kernel as it is; reducing stretches it over the pixels that fall together.
    let stretch = scale.max(1.0);
    let support = resample.support() * stretch;
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
        each(start, &weights, sum);
    }
}

/// Pillow's weights for one axis of bytes.
fn pillow_taps(from: usize, to: usize, resample: Resample) -> Taps<i32> {
    let mut taps = Taps::with_capacity(to);
    pillow_weights(from, to, resample, |start, weights, sum| {
        taps.push(
            start,
            weights.iter().map(|&weight| {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                let fixed = weight * f64::from(1 << PRECISION);
                (if fixed < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32
            }),
        );
    });
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

/// One channel of f32 at `width` × `height`, bit for bit what Pillow's `Image.resize((width, height), BILINEAR)` gives
/// for mode `F` (Pillow 13.0.0): weights and sums in f64, f32 between the passes.
///
/// Panics when a side of either is zero.
pub fn plane_as_pillow(plane: &Plane, width: usize, height: usize) -> Plane {
    assert!(width > 0 && height > 0 && plane.width > 0 && plane.height > 0, "a side is zero");
    let rows = |plane: Plane| match plane.width == width {
        true => plane,
        false => pillow_plane_rows(&plane, width),
    };
    let columns = |plane: Plane| match plane.height == height {
        true => plane,
        false => pillow_plane_columns(&plane, height),
    };
    let size = (plane.width, plane.height);
    if columns_first(size, (width, height)) {
        rows(columns(plane.clone()))
    } else {
        columns(rows(plane.clone()))
    }
}

/// Pillow's weights for one axis in f64, bilinear.
fn pillow_plane_taps(from: usize, to: usize) -> Taps<f64> {
    let mut taps = Taps::with_capacity(to);
    pillow_weights(from, to, Resample::Bilinear, |start, weights, sum| {
        taps.push(start, weights.iter().map(|&weight| if sum == 0.0 { weight } else { weight / sum }));
    });
    taps
}

fn pillow_plane_rows(plane: &Plane, width: usize) -> Plane {
    let taps = pillow_plane_taps(plane.width, width);
    let mut values = vec![0.0; width * plane.height];
    values.par_chunks_exact_mut(width).zip(plane.values.par_chunks_exact(plane.width)).for_each(
        |(out, row)| {
            for (x, value) in out.iter_mut().enumerate() {
                let (start, weights) = taps.at(x);
                let sum = row[start..].iter().zip(weights).fold(0.0, |sum, (&v, w)| sum + f64::from(v) * w);
                *value = sum as f32;
            }
        },
    );
    Plane { width, height: plane.height, values }
}

fn pillow_plane_columns(plane: &Plane, height: usize) -> Plane {
    let taps = pillow_plane_taps(plane.height, height);
    let width = plane.width;
    let mut values = vec![0.0; width * height];
    values.par_chunks_exact_mut(width).enumerate().for_each_init(
        || vec![0f64; width],
        |sums, (y, out)| {
            let (start, weights) = taps.at(y);
            sums.fill(0.0);
            for (row, &weight) in plane.values[start * width..].chunks_exact(width).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(sums.iter()) {
                *out = sum as f32;
            }
        },
    );
    Plane { width, height, values }
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
    match antialias {
        true => span(picture, width, height, Kernel::Triangle, true),
        false => point_bilinear(picture, width, height),
    }
}

/// The kernels of TensorFlow's ScaleAndTranslate.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kernel {
    Triangle,
    KeysCubic,
    Lanczos3,
    MitchellCubic,
}

impl Kernel {
    fn radius(self) -> f32 {
        match self {
            Kernel::Triangle => 1.0,
            Kernel::KeysCubic | Kernel::MitchellCubic => 2.0,
            Kernel::Lanczos3 => 3.0,
        }
    }

    /// At distance `x`, which is not negative.
    fn weight(self, x: f32) -> f32 {
        match self {
            Kernel::Triangle => (1.0 - x).max(0.0),
            Kernel::KeysCubic if x >= 2.0 => 0.0,
            Kernel::KeysCubic if x >= 1.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Kernel::KeysCubic => ((1.5 * x - 2.5) * x) * x + 1.0,
            Kernel::MitchellCubic if x >= 2.0 => 0.0,
            Kernel::MitchellCubic if x >= 1.0 => {
                (((-7.0 / 18.0) * x + 2.0) * x - 10.0 / 3.0) * x + 16.0 / 9.0
            }
            Kernel::MitchellCubic => (((7.0 / 6.0) * x - 2.0) * x) * x + 8.0 / 9.0,
            Kernel::Lanczos3 => {
                let pi = std::f32::consts::PI;
                if x > 3.0 {
                    0.0
                } else if x <= 1e-3 {
                    1.0
                } else {
                    3.0 * (pi * x).sin() * (pi * x / 3.0).sin() / (pi * pi * x * x)
                }
            }
        }
    }
}

/// The weights of TensorFlow's ScaleAndTranslate for one axis.
fn span_taps(from: usize, to: usize, kernel: Kernel, antialias: bool) -> Taps<f32> {
    let inverse = (1.0 / f64::from(to as f32 / from as f32)) as f32;
    let stretch = if antialias { inverse.max(1.0) } else { 1.0 };
    let reach = kernel.radius() * stretch;
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
        let start = ((centre - reach - 0.5).ceil() as i64).clamp(0, last) as usize;
        let end = ((centre + reach - 0.5).floor() as i64).clamp(0, last) as usize + 1;
        weights.clear();
        let mut sum = 0.0f32;
        for source in start..end {
            let weight = kernel.weight(((source as f32 + 0.5 - centre) * (1.0 / stretch)).abs());
            weights.push(weight);
            sum += weight;
        }
        let scale = if sum.abs() >= 1000.0 * f32::MIN_POSITIVE { 1.0 / sum } else { 1.0 };
        taps.push(start, weights.iter().map(|weight| weight * scale));
    }
    taps
}

/// Columns first, then rows, as TensorFlow adds them up; one output row at a time.
pub(super) fn span(
    picture: &Picture,
    width: usize,
    height: usize,
    kernel: Kernel,
    antialias: bool,
) -> Picture {
    let columns = span_taps(picture.height, height, kernel, antialias);
    let rows = span_taps(picture.width, width, kernel, antialias);
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

/// One channel of f32 at `width` × `height`: `tf.image.resize(method="bilinear", antialias=True)`, not truncated, as
/// big_vision makes the 64×64 of a mask.
///
/// Panics when a side of either is zero.
pub fn plane_as_tensorflow(plane: &Plane, width: usize, height: usize) -> Plane {
    assert!(width > 0 && height > 0 && plane.width > 0 && plane.height > 0, "a side is zero");
    let columns = span_taps(plane.height, height, Kernel::Triangle, true);
    let rows = span_taps(plane.width, width, Kernel::Triangle, true);
    let mut values = Vec::with_capacity(width * height);
    let mut sums = vec![0f32; plane.width];
    for y in 0..height {
        let (start, weights) = columns.at(y);
        sums.fill(0.0);
        for (row, &weight) in plane.values[start * plane.width..].chunks_exact(plane.width).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += value * weight;
            }
        }
        for x in 0..width {
            let (start, weights) = rows.at(x);
            values.push(sums[start..].iter().zip(weights).fold(0.0, |total, (v, w)| total + v * w));
        }
    }
    Plane { width, height, values }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Pixel<T> = [T; C];

    type Line<T> = Vec<Pixel<T>>;

    fn turned<T: Copy>(rows: &[Line<T>]) -> Vec<Line<T>> {
        (0..rows[0].len()).map(|x| rows.iter().map(|row| row[x]).collect()).collect()
    }

    /// Applies a resizer of one line to the rows and one to the columns, the columns first if asked.
    fn by_lines<T: Copy>(
        rows: &[Line<T>],
        columns_first: bool,
        along: impl Fn(&Line<T>) -> Line<T>,
        down: impl Fn(&Line<T>) -> Line<T>,
    ) -> Vec<Line<T>> {
        let along = |rows: &[Line<T>]| -> Vec<Line<T>> { rows.iter().map(&along).collect() };
        let down = |rows: &[Line<T>]| -> Vec<Line<T>> {
            turned(&turned(rows).iter().map(&down).collect::<Vec<_>>())
        };
        if columns_first { along(&down(rows)) } else { down(&along(rows)) }
    }

    fn rows_of(picture: &Picture) -> Vec<Vec<Pixel<u8>>> {
        let pixels = picture.rgb.as_chunks::<C>().0;
        pixels.chunks(picture.width).map(<[Pixel<u8>]>::to_vec).collect()
    }

    fn bytes_of(rows: Vec<Vec<Pixel<u8>>>) -> Vec<u8> {
        rows.concat().concat()
    }

    /// The plain twin of [`as_pillow`]: one line, every weight over every pixel, sums in i64.
    fn plain_pillow_line(line: &[Pixel<u8>], to: usize, resample: Resample) -> Vec<Pixel<u8>> {
        if line.len() == to {
            return line.to_vec();
        }
        let scale = line.len() as f64 / to as f64;
        let stretch = if scale < 1.0 { 1.0 } else { scale };
        let reach = resample.support() * stretch;
        let pixel = |position: usize| {
            let centre = (position as f64 + 0.5) * scale;
            let inside = |source: usize| {
                let source = source as i64;
                source >= (centre - reach + 0.5) as i64 && source < (centre + reach + 0.5) as i64
            };
            let weight = |source: usize| resample.weight((source as f64 - centre + 0.5) * (1.0 / stretch));
            let sum: f64 = (0..line.len()).filter(|&source| inside(source)).map(weight).sum();
            std::array::from_fn(|c| {
                let mut total = 1i64 << 21;
                for source in (0..line.len()).filter(|&source| inside(source)) {
                    let fixed = weight(source) / sum * 4_194_304.0;
                    total += i64::from(line[source][c]) * (fixed + 0.5_f64.copysign(fixed)) as i64;
                }
                (total >> 22).clamp(0, 255) as u8
            })
        };
        (0..to).map(pixel).collect()
    }

    fn plain_pillow(picture: &Picture, width: usize, height: usize, resample: Resample) -> Vec<u8> {
        let (down, along) = (picture.height as f64 - height as f64, picture.width as f64 - width as f64);
        bytes_of(by_lines(
            &rows_of(picture),
            down > 0.0 && down > 2.0 * along,
            |line| plain_pillow_line(line, width, resample),
            |line| plain_pillow_line(line, height, resample),
        ))
    }

    /// The plain twin of [`as_tensorflow`] with antialiasing: one line, a triangle over every pixel in reach.
    fn plain_span_line(line: &[Pixel<f32>], to: usize) -> Vec<Pixel<f32>> {
        let scale = (1.0 / f64::from(to as f32 / line.len() as f32)) as f32;
        let stretch = if scale < 1.0 { 1.0 } else { scale };
        let pixel = |position: usize| {
            let centre = (position as f32 + 0.5) * scale;
            let weight = |source: usize| {
                let distance = (source as f32 + 0.5 - centre).abs() * (1.0 / stretch);
                if distance < 1.0 { 1.0 - distance } else { 0.0 }
            };
            let sum: f32 = (0..line.len()).map(weight).sum();
            std::array::from_fn(|c| {
                (0..line.len()).map(|source| line[source][c] * (weight(source) * (1.0 / sum))).sum()
            })
        };
        (0..to).map(pixel).collect()
    }

    fn plain_span(picture: &Picture, width: usize, height: usize) -> Vec<u8> {
        let rows = rows_of(picture)
            .into_iter()
            .map(|row| row.into_iter().map(|pixel| pixel.map(f32::from)).collect());
        let rows = by_lines(
            &rows.collect::<Vec<_>>(),
            true,
            |line| plain_span_line(line, width),
            |line| plain_span_line(line, height),
        );
        rows.concat().concat().into_iter().map(|value| value as u8).collect()
    }

    /// The plain twin of [`as_tensorflow`] without antialiasing: four neighbours a pixel.
    fn plain_point(picture: &Picture, width: usize, height: usize) -> Vec<u8> {
        let neighbours = |position: usize, from: usize, to: usize| {
            let at = (position as f32 + 0.5) * (from as f32 / to as f32) - 0.5;
            let clamp = |at: f32| at.clamp(0.0, from as f32 - 1.0) as usize;
            (clamp(at.floor()), clamp(at.ceil()), at - at.floor())
        };
        let value = |y: usize, x: usize, c: usize| f32::from(picture.rgb[(y * picture.width + x) * C + c]);
        let mut out = Vec::new();
        for y in 0..height {
            let (top, bottom, down) = neighbours(y, picture.height, height);
            for x in 0..width {
                let (left, right, along) = neighbours(x, picture.width, width);
                for c in 0..C {
                    let t = value(top, left, c) + (value(top, right, c) - value(top, left, c)) * along;
                    let b =
                        value(bottom, left, c) + (value(bottom, right, c) - value(bottom, left, c)) * along;
                    out.push((t + (b - t) * down) as u8);
                }
            }
        }
        out
    }

    fn picture() -> impl Strategy<Value = Picture> {
        (1usize..40, 1usize..60).prop_flat_map(|(width, height)| {
            prop::collection::vec(any::<u8>(), width * height * C).prop_map(move |rgb| Picture {
                width,
                height,
                rgb,
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_fast_resizers_equal_their_plain_twins(
            picture in picture(), width in 1usize..50, height in 1usize..50, number in 1u64..6,
        ) {
            let resample = Resample::from_number(number).unwrap();
            prop_assert_eq!(
                as_pillow(&picture, width, height, resample).rgb,
                plain_pillow(&picture, width, height, resample)
            );
            prop_assert_eq!(as_tensorflow(&picture, width, height, true).rgb, plain_span(&picture, width, height));
            prop_assert_eq!(as_tensorflow(&picture, width, height, false).rgb, plain_point(&picture, width, height));
        }

        #[test]
        fn a_flat_picture_stays_flat(level in any::<u8>(), from in 1usize..300, to in 1usize..300, number in 0u64..6) {
            let picture = Picture { width: from, height: 3, rgb: vec![level; from * 3 * C] };
            let resample = Resample::from_number(number).unwrap();
            prop_assert!(as_pillow(&picture, to, 2, resample).rgb.iter().all(|&value| value == level));
        }
    }
}
