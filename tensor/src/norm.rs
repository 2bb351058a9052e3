//! Layer normalisation and RMS normalisation, in f32 throughout.
//!
//! Contract. Rows of `x_td` are normalised one by one; the result of a row depends on that row alone. The weights may be
//! of any type and are widened first. Sums run in sixteen fixed strands, so every instruction set adds in one order.

use crate::{
    Isa, Tensor,
    isa::multiversion,
    lane::Lane,
    parallel::{Shared, for_each_task},
};

/// (x - mean) / √(variance + eps) · weight + bias; `weight_d`, `bias_d` `[d]` (flax `nn.LayerNorm`).
pub fn layer_norm(x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    layer_norm_on(Isa::best(), x_td, weight_d, bias_d, eps)
}

/// [`layer_norm`] on a given instruction set.
pub fn layer_norm_on(isa: Isa, x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    let (weight, bias) = (weight_d.to_f32_vec(), bias_d.to_f32_vec());
    each_row(x_td, weight.len(), |x, y| layer_norm_row(isa, x, &weight, &bias, eps, y))
}

/// x / √(mean(x²) + eps) · (1 + weight) (Gemma's `RMSNorm`; the sum 1 + weight is taken in f32 too).
pub fn rms_norm(x_td: &Tensor, weight_d: &Tensor, eps: f32) -> Tensor {
    rms_norm_on(Isa::best(), x_td, weight_d, eps)
}

/// [`rms_norm`] on a given instruction set.
pub fn rms_norm_on(isa: Isa, x_td: &Tensor, weight_d: &Tensor, eps: f32) -> Tensor {
    let scale: Vec<f32> = weight_d.to_f32_vec().iter().map(|w| 1.0 + w).collect();
    each_row(x_td, scale.len(), |x, y| rms_norm_row(isa, x, &scale, eps, y))
}

/// The slow, obvious [`layer_norm`], in f64.
pub fn layer_norm_plain(x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    let (weight, bias) = (weight_d.to_f32_vec(), bias_d.to_f32_vec());
    each_row(x_td, weight.len(), |x, y| {
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        for (i, y) in y.iter_mut().enumerate() {
            let normed = (f64::from(x[i]) - mean) / (variance + f64::from(eps)).sqrt();
            *y = (normed * f64::from(weight[i]) + f64::from(bias[i])) as f32;
        }
    })
}

/// The slow, obvious [`rms_norm`], in f64.
pub fn rms_norm_plain(x_td: &Tensor, weight_d: &Tensor, eps: f32) -> Tensor {
    let weight = weight_d.to_f32_vec();
    each_row(x_td, weight.len(), |x, y| {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        for (i, y) in y.iter_mut().enumerate() {
            let normed = f64::from(x[i]) / (mean + f64::from(eps)).sqrt();
            *y = (normed * (1.0 + f64::from(weight[i]))) as f32;
        }
    })
}

fn each_row(x_td: &Tensor, d: usize, row: impl Fn(&[f32], &mut [f32]) + Sync + Send) -> Tensor {
    assert_eq!(x_td.shape().last(), Some(&d), "norm of {x_td:?}");
    let x = x_td.as_f32();
    let t = x.len() / d;
    let mut y = vec![0.0; x.len()];
    let out = Shared::new(&mut y);
    // Rows in groups: one alone is too little to hand to a thread.
    const GROUP: usize = 32;
    for_each_task(t.div_ceil(GROUP), |task| {
        for i in task * GROUP..t.min((task + 1) * GROUP) {
            // SAFETY: every row is written by one task.
            row(&x[i * d..(i + 1) * d], unsafe { out.slice(i * d, d) });
        }
    });
    Tensor::from_f32(y, x_td.shape())
}

/// Σ f(x) in sixteen strands.
#[inline(always)]
pub(crate) fn strand_sum(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut strands = [0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for chunk in whole {
        for (s, &x) in strands.iter_mut().zip(chunk) {
            *s = f(x, *s);
        }
    }
    for (s, &x) in strands.iter_mut().zip(rest) {
        *s = f(x, *s);
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            strands[i] += strands[i + width];
        }
        width /= 2;
    }
    strands[0]
}

#[inline(always)]
unsafe fn layer_norm_body<L: Lane>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let n = x.len() as f32;
    let mean = strand_sum(x, |x, s| s + x) / n;
    let variance = strand_sum(x, |x, s| L::mul_add_scalar(x - mean, x - mean, s)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = L::mul_add_scalar((x - mean) * scale, *w, *b);
    }
}

#[inline(always)]
unsafe fn rms_norm_body<L: Lane>(x: &[f32], scale: &[f32], eps: f32, y: &mut [f32]) {
    let mean = strand_sum(x, |x, s| L::mul_add_scalar(x, x, s)) / x.len() as f32;
    let norm = 1.0 / (mean + eps).sqrt();
    for ((y, x), s) in y.iter_mut().zip(x).zip(scale) {
        *y = x * norm * s;
    }
}

multiversion! {
    fn layer_norm_row(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = layer_norm_body
}
multiversion! {
    fn rms_norm_row(x: &[f32], scale: &[f32], eps: f32, y: &mut [f32]) = rms_norm_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        testing::{assert_close, random},
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_the_plain_twins(t in 1usize..70, d in 1usize..200, half: bool) {
            let x = random(1, &[t, d]);
            let dtype = if half { DType::BF16 } else { DType::F32 };
            let (w, b) = (random(2, &[d]).cast(dtype), random(3, &[d]).cast(dtype));
            for isa in Isa::available() {
                assert_close(&layer_norm_on(isa, &x, &w, &b, 1e-6), &layer_norm_plain(&x, &w, &b, 1e-6), 2e-5);
                assert_close(&rms_norm_on(isa, &x, &w, 1e-6), &rms_norm_plain(&x, &w, 1e-6), 4e-6);
            }
        }
    }
}
