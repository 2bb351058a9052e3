//! exp, tanh and GELU on slices, in branch-free code that the compiler turns into vector instructions.
//!
//! Accuracy: exp within 2 units in the last place, tanh and GELU within 4 (tested against f64).

use crate::{
    isa::multiversion,
    lane::{Lane, Portable},
};

/// e^x; 0 below -103, infinity above 88.7.
#[inline(always)]
pub(crate) fn exp<L: Lane>(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts so that r keeps all its bits.
    let clamped = x.clamp(-104.0, 89.0);
    // Adding 1.5·2²³ leaves the nearest integer in the low bits.
    let shifted = L::mul_add_scalar(clamped, std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = L::mul_add_scalar(n, -0.693_359_4, clamped);
    let r = L::mul_add_scalar(n, 2.121_944_4e-4, r);
    // Taylor terms of e^r up to r^7; the last one is below half a unit for |r| ≤ 0.3466.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = L::mul_add_scalar(p, r, c);
    }
    // 2^n in two steps, so that the smallest results may be subnormal.
    let exponent = shifted.to_bits().wrapping_sub(0x4B40_0000) as i32;
    let half = exponent >> 1;
    let rest = exponent.wrapping_sub(half);
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    p * power(half) * power(rest)
}

/// tanh x.
#[inline(always)]
pub(crate) fn tanh<L: Lane>(x: f32) -> f32 {
    // Near zero the series x + x³·P(x²) keeps the relative error small; elsewhere 1 - 2/(e^2|x| + 1).
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = L::mul_add_scalar(p, z, c);
    }
    let small = L::mul_add_scalar(p * z, x, x);
    let a = x.abs();
    let large = (1.0 - 2.0 / (exp::<L>(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { small } else { large }
}

/// GELU, tanh approximation (flax `nn.gelu`, torch `gelu_pytorch_tanh`).
#[inline(always)]
fn gelu<L: Lane>(x: f32) -> f32 {
    // ½·(1 + tanh u) = 1 / (1 + e^(-2u)): one exponential, and no cancellation in the negative tail.
    const MINUS_TWICE_SQRT_2_OVER_PI: f32 = -1.595_769;
    let inner = MINUS_TWICE_SQRT_2_OVER_PI * L::mul_add_scalar(0.044_715 * x * x, x, x);
    x / (1.0 + exp::<L>(inner))
}

/// GELU and its derivative.
#[inline(always)]
fn gelu_and_slope<L: Lane>(x: f32) -> (f32, f32) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * L::mul_add_scalar(0.044_715 * x * x, x, x);
    let t = tanh::<L>(inner);
    let inner_slope = SQRT_2_OVER_PI * L::mul_add_scalar(3.0 * 0.044_715 * x, x, 1.0);
    let half = 0.5 * (1.0 + t);
    (x * half, L::mul_add_scalar(0.5 * x * (1.0 - t * t), inner_slope, half))
}

/// x ↦ e^(x - shift), and the sum is not taken here.
#[inline(always)]
unsafe fn exp_slice_body<L: Lane>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp::<L>(*x));
}

#[inline(always)]
unsafe fn gelu_slice_body<L: Lane>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = gelu::<L>(*x));
}

#[inline(always)]
unsafe fn gelu_times_slice_body<L: Lane>(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| *g = gelu::<L>(*g) * u);
}

#[inline(always)]
unsafe fn gelu_backward_slice_body<L: Lane>(x: &[f32], dy: &mut [f32]) {
    dy.iter_mut().zip(x).for_each(|(dy, &x)| *dy *= gelu_and_slope::<L>(x).1);
}

#[inline(always)]
unsafe fn gelu_times_backward_slice_body<L: Lane>(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
        let (gelu, slope) = gelu_and_slope::<L>(*g);
        *g = dy * *u * slope;
        *u = dy * gelu;
    }
}

#[inline(always)]
unsafe fn softcap_slice_body<L: Lane>(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = tanh::<L>(*x / cap) * cap);
}

multiversion! {
    /// x ↦ e^x.
    fn exp_slice(x: &mut [f32]) = exp_slice_body
}
multiversion! {
    /// x ↦ GELU(x).
    fn gelu_slice(x: &mut [f32]) = gelu_slice_body
}
multiversion! {
    /// gate ↦ GELU(gate) · up.
    fn gelu_times_slice(gate: &mut [f32], up: &[f32]) = gelu_times_slice_body
}
multiversion! {
    /// dy ↦ dy · GELU'(x): the gradient of GELU.
    fn gelu_backward_slice(x: &[f32], dy: &mut [f32]) = gelu_backward_slice_body
}
multiversion! {
    /// The gradients of GELU(gate) · up, in place of both factors.
    fn gelu_times_backward_slice(gate: &mut [f32], up: &mut [f32], dy: &[f32]) = gelu_times_backward_slice_body
}
multiversion! {
    /// x ↦ cap · tanh(x / cap).
    fn softcap_slice(x: &mut [f32], cap: f32) = softcap_slice_body
}

/// GELU of one number by the portable code, for the plain twins.
pub(crate) fn gelu_plain(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())) as f32
}

/// Soft cap of one number in f64, for the plain twins.
pub(crate) fn softcap_plain(x: f32, cap: f32) -> f32 {
    ((f64::from(x) / f64::from(cap)).tanh() * f64::from(cap)) as f32
}

/// tanh by the portable code.
#[cfg(test)]
fn tanh_portable(x: f32) -> f32 {
    tanh::<Portable>(x)
}

#[cfg(not(test))]
const _: fn(f32) -> f32 = tanh::<Portable>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Distance to the exact value in units of the last place of the exact value.
    fn ulps(got: f32, exact: f64) -> f64 {
        let unit = f64::from((exact as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON) / 2.0;
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn functions_are_close_to_exact_on_every_isa() {
        let points: Vec<f32> = (-200_000..200_000).map(|i| i as f32 * 4.3e-4).collect();
        for isa in Isa::available() {
            let check = |name: &str, limit: f64, run: &dyn Fn(&mut [f32]), exact: &dyn Fn(f64) -> f64| {
                let mut got = points.clone();
                run(&mut got);
                for (&x, &y) in points.iter().zip(&got) {
                    let want = exact(f64::from(x));
                    // GELU's negative tail vanishes by cancellation in any f32 code: measured against x there.
                    let off = if name == "gelu" && x < 0.0 {
                        (f64::from(y) - want).abs() / (f64::from(-x) * 6e-8)
                    } else {
                        ulps(y, want)
                    };
                    assert!(off <= limit, "{name}({x}) = {y}, exact {want}: {off} ulp on {}", isa.name());
                }
            };
            check("exp", 4.0, &|v| exp_slice(isa, v), &f64::exp);
            check("softcap", 8.0, &|v| softcap_slice(isa, v, 1.0), &f64::tanh);
            check("gelu", 12.0, &|v| gelu_slice(isa, v), &|x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            });
        }
    }

    #[test]
    fn ends_of_the_range() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, -1e30, -110.0, 0.0, 88.0];
            exp_slice(isa, &mut x);
            assert_eq!(x[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(x[4].is_finite());
        }
        assert_eq!(tanh_portable(1e10), 1.0);
        assert_eq!(tanh_portable(-1e10), -1.0);
        assert!(tanh_portable(f32::NAN).is_nan());
    }
}
