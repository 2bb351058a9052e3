//! From coefficients to colours, in libjpeg's integer arithmetic: inverse DCT, upsampling, colour conversion.

use super::frame::{B, Block, Component, Frame, unsupported};
use crate::Result;

/// libjpeg's accurate integer inverse DCT (Loeffler, Ligtenberg and Moschytz): 13 fractional bits in
/// the constants, 2 kept between the passes. Writes 8 × 8 samples.
pub(super) fn inverse_dct(coefficients: &Block, quantisation: &[i32; 64], out: &mut [u8], stride: usize) {
    if coefficients[1..] == [0; 63] {
        // A flat block, of which the passes would make just this.
        let level = (i32::from(coefficients[0]).wrapping_mul(quantisation[0]).wrapping_add(4) >> 3) + 128;
        out.chunks_mut(stride).take(B).for_each(|row| row[..B].fill(level.clamp(0, 255) as u8));
        return;
    }
    let mut work = [0i32; 64];
    for x in 0..B {
        let column: [i32; B] = std::array::from_fn(|y| {
            let at = y * B + x;
            i32::from(coefficients[at]).wrapping_mul(quantisation[at])
        });
        for (y, value) in inverse_dct_line(column, 13 - 2).into_iter().enumerate() {
            work[y * B + x] = value;
        }
    }
    for (y, row) in work.chunks_exact(B).enumerate() {
        let row: [i32; B] = std::array::from_fn(|x| row[x]);
        let samples = inverse_dct_line(row, 13 + 2 + 3);
        for (out, sample) in out[y * stride..][..B].iter_mut().zip(samples) {
            *out = sample.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}

/// One row or column; the result is divided by 2 to the power of `shift`, rounded. Hostile
/// coefficients may overflow: then the picture is nonsense, as it is in libjpeg.
#[inline(always)]
fn inverse_dct_line(input: [i32; B], shift: u32) -> [i32; B] {
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = input;

    // Even part.
    let z = mul(add(s2, s6), 4433);
    let e2 = sub(z, mul(s6, 15137));
    let e3 = add(z, mul(s2, 6270));
    let e0 = add(s0, s4) << 13;
    let e1 = sub(s0, s4) << 13;
    let even = [add(e0, e3), add(e1, e2), sub(e1, e2), sub(e0, e3)];

    // Odd part.
    let z1 = mul(add(s7, s1), -7373);
    let z2 = mul(add(s5, s3), -20995);
    let (z3, z4) = (add(s7, s3), add(s5, s1));
    let z5 = mul(add(z3, z4), 9633);
    let z3 = add(mul(z3, -16069), z5);
    let z4 = add(mul(z4, -3196), z5);
    let odd = [
        add(mul(s1, 12299), add(z1, z4)),
        add(mul(s3, 25172), add(z2, z3)),
        add(mul(s5, 16819), add(z2, z4)),
        add(mul(s7, 2446), add(z1, z3)),
    ];

    let half = 1 << (shift - 1);
    std::array::from_fn(|i| {
        let sum = if i < 4 { add(even[i], odd[i]) } else { sub(even[7 - i], odd[7 - i]) };
        add(sum, half) >> shift
    })
}

/// One line of a component at the picture's resolution, as libjpeg's "fancy" upsampling makes it: a
/// triangle filter where the factor is two and the row has more than two samples, repetition elsewhere.
/// `sample(row)` is a row of the component; `y` counts the picture's lines.
pub(super) fn upsample<'s>(
    frame: &Frame,
    component: &Component,
    y: usize,
    sample: impl Fn(usize) -> &'s [u8],
    scratch: &mut Vec<u16>,
    line: &mut Vec<u8>,
) {
    let (across, down) = (frame.h / component.h, frame.v / component.v);
    let row = y / down;
    let near = sample(row);
    let far = || if y.is_multiple_of(2) { sample(row.saturating_sub(1)) } else { sample(row + 1) };
    let smooth = across == 2 && component.width > 2;
    line.clear();
    match (across, down) {
        (1, 1) => line.extend_from_slice(near),
        (2, 1) if smooth => {
            let last = near.len() - 1;
            let value = |i: usize| u16::from(near[i]);
            line.push(near[0]);
            line.push(((value(0) * 3 + value(1) + 2) >> 2) as u8);
            for window in near.windows(3) {
                let [before, here, after] = [window[0], window[1], window[2]].map(u16::from);
                line.push(((here * 3 + before + 1) >> 2) as u8);
                line.push(((here * 3 + after + 2) >> 2) as u8);
            }
            line.push(((value(last) * 3 + value(last - 1) + 1) >> 2) as u8);
            line.push(near[last]);
        }
        (1, 2) => {
            // The rounding alternates, so that no level is favoured.
            let bias = if y.is_multiple_of(2) { 1 } else { 2 };
            let blend =
                |(&near, &far): (&u8, &u8)| ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
            line.extend(near.iter().zip(far()).map(blend));
        }
        (2, 2) if smooth => {
            scratch.clear();
            scratch.extend(near.iter().zip(far()).map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)));
            let (first, last) = (scratch[0], scratch[scratch.len() - 1]);
            line.push(((first * 4 + 8) >> 4) as u8);
            line.push(((first * 3 + scratch[1] + 7) >> 4) as u8);
            for window in scratch.windows(3) {
                let [before, here, after] = [window[0], window[1], window[2]];
                line.push(((here * 3 + before + 8) >> 4) as u8);
                line.push(((here * 3 + after + 7) >> 4) as u8);
            }
            line.push(((last * 3 + scratch[scratch.len() - 2] + 8) >> 4) as u8);
            line.push(((last * 4 + 7) >> 4) as u8);
        }
        _ => near.iter().for_each(|&value| line.extend(std::iter::repeat_n(value, across))),
    }
}

/// What the components are.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// libjpeg's tables from YCbCr to RGB, 16 fractional bits.
pub(super) struct Colours {
    space: Space,
    cr_to_red: [i32; 256],
    cb_to_blue: [i32; 256],
    /// Not yet shifted down: the two are added first.
    cr_to_green: [i32; 256],
    cb_to_green: [i32; 256],
}

impl Colours {
    /// The colour space by libjpeg's rules: JFIF is YCbCr, Adobe says which, otherwise the numbers of
    /// the components tell.
    pub(super) fn of(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<Colours> {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        let space = match (&ids[..], adobe) {
            ([_], _) => Space::Grey,
            ([_, _, _], _) if jfif => Space::YCbCr,
            ([_, _, _], Some(0)) => Space::Rgb,
            ([_, _, _], Some(_)) => Space::YCbCr,
            (b"RGB", None) => Space::Rgb,
            ([_, _, _], None) => Space::YCbCr,
            ([_, _, _, _], Some(0) | None) => Space::Cmyk,
            ([_, _, _, _], Some(_)) => Space::Ycck,
            _ => return Err(unsupported(format!("{} components", ids.len()))),
        };
        let fixed = |factor: f64| (factor * 65536.0 + 0.5) as i32;
        let table = |factor: i32, half: i32, shift: u32| {
            std::array::from_fn(|i| (factor * (i as i32 - 128) + half) >> shift)
        };
        Ok(Colours {
            space,
            cr_to_red: table(fixed(1.402), 1 << 15, 16),
            cb_to_blue: table(fixed(1.772), 1 << 15, 16),
            cr_to_green: table(-fixed(0.71414), 0, 0),
            cb_to_green: table(-fixed(0.34414), 1 << 15, 0),
        })
    }

    /// Colours one line of the picture; `out` is [width, 3].
    pub(super) fn line(&self, lines: &[Vec<u8>], out: &mut [u8]) {
        let pixels = out.chunks_exact_mut(3).enumerate();
        match (self.space, lines) {
            (Space::Grey, [grey, ..]) => pixels.for_each(|(x, pixel)| pixel.fill(grey[x])),
            (Space::Rgb, [r, g, b, ..]) => {
                pixels.for_each(|(x, pixel)| pixel.copy_from_slice(&[r[x], g[x], b[x]]));
            }
            (Space::YCbCr, [y, cb, cr, ..]) => {
                let width = out.len() / 3;
                let (y, cb, cr) = (&y[..width], &cb[..width], &cr[..width]);
                for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
                    pixel.copy_from_slice(&self.rgb(y, cb, cr));
                }
            }
            (Space::Cmyk, [c, m, y, k, ..]) => {
                pixels.for_each(|(x, pixel)| pixel.copy_from_slice(&under_black([c[x], m[x], y[x]], k[x])));
            }
            (Space::Ycck, [y, cb, cr, k, ..]) => pixels.for_each(|(x, pixel)| {
                let inks = self.rgb(y[x], cb[x], cr[x]).map(|value| 255 - value);
                pixel.copy_from_slice(&under_black(inks, k[x]));
            }),
            // `of` has matched the space to the number of components.
            _ => {}
        }
    }

    fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (y, cb, cr) = (i32::from(y), usize::from(cb), usize::from(cr));
        let green = (self.cb_to_green[cb] + self.cr_to_green[cr]) >> 16;
        [y + self.cr_to_red[cr], y + green, y + self.cb_to_blue[cb]].map(|value| value.clamp(0, 255) as u8)
    }
}

/// The inks of a JPEG, which by Adobe's custom count from full (0) to none (255), as Pillow turns
/// them into RGB: what black leaves, less the ink's part of it.
fn under_black(inks: [u8; 3], black: u8) -> [u8; 3] {
    let left = i32::from(black);
    inks.map(|ink| {
        let product = i32::from(255 - ink) * left + 128;
        let ink = ((product >> 8) + product) >> 8;
        (left - ink).clamp(0, 255) as u8
    })
}
