//! Layer normalisation and RMS normalisation, in f32 throughout.
//!
//! Contract. Rows of `x_td` are normalised one by one; the result of a row depends on that row alone. The weights may be
//! of any type and are widened first. Sums run in sixteen fixed strands, so every instruction set adds in one order.

use crate::{
    Isa, Tensor,
    isa::multiversion,
    lane::Lane,
    parallel::{Shared, filled},
};

/// (x - mean) / √(variance + eps) · weight + bias; `weight_d`, `bias_d` `[d]` (flax `nn.LayerNorm`).
pub fn layer_norm(x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    layer_norm_on(Isa::best(), x_td, weight_d, bias_d, eps)
}

/// [`layer_norm`] on a given instruction set.
pub fn layer_norm_on(isa: Isa, x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    let (weight, bias) = (weight_d.to_f32_vec(), bias_d.to_f32_vec());
    each_row(x_td, weight.len(), |_, x, y| layer_norm_row(isa, x, &weight, &bias, eps, y))
}

/// x / √(mean(x²) + eps) · (1 + weight) (Gemma's `RMSNorm`; the sum 1 + weight is taken in f32 too).
pub fn rms_norm(x_td: &Tensor, weight_d: &Tensor, eps: f32) -> Tensor {
    rms_norm_on(Isa::best(), x_td, weight_d, eps)
}

/// [`rms_norm`] on a given instruction set.
pub fn rms_norm_on(isa: Isa, x_td: &Tensor, weight_d: &Tensor, eps: f32) -> Tensor {
    let scale: Vec<f32> = weight_d.to_f32_vec().iter().map(|w| 1.0 + w).collect();
    each_row(x_td, scale.len(), |_, x, y| rms_norm_row(isa, x, &scale, eps, y))
}

/// The slow, obvious [`layer_norm`], in f64.
pub fn layer_norm_plain(x_td: &Tensor, weight_d: &Tensor, bias_d: &Tensor, eps: f32) -> Tensor {
    let (weight, bias) = (weight_d.to_f32_vec(), bias_d.to_f32_vec());
    each_row(x_td, weight.len(), |_, x, y| {
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
    each_row(x_td, weight.len(), |_, x, y| {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        for (i, y) in y.iter_mut().enumerate() {
            let normed = f64::from(x[i]) / (mean + f64::from(eps)).sqrt();
            *y = (normed * (1.0 + f64::from(weight[i]))) as f32;
        }
    })
}

/// The gradients of [`rms_norm`] → dx `[t, d]` and, if `wants_weight`, that of the weight, f32 `[d]`.
pub fn rms_norm_backward(
    x_td: &Tensor,
    weight_d: &Tensor,
    eps: f32,
    dy_td: &Tensor,
    wants_weight: bool,
) -> (Tensor, Option<Tensor>) {
    let scale: Vec<f32> = weight_d.to_f32_vec().iter().map(|w| 1.0 + w).collect();
    let (d, isa) = (scale.len(), Isa::best());
    let width = if wants_weight { d } else { 0 };
    let (dx, sums) = each_row_back(x_td, dy_td, d, width, |x, dy, dx, dweight| {
        rms_norm_backward_row(isa, x, &scale, eps, dy, dx, dweight);
    });
    (dx, wants_weight.then(|| Tensor::from_f32(sums, &[d])))
}

/// The gradients of [`layer_norm`] → dx `[t, d]` and, if `wants_weights`, those of weight and bias, f32 `[d]`.
pub fn layer_norm_backward(
    x_td: &Tensor,
    weight_d: &Tensor,
    eps: f32,
    dy_td: &Tensor,
    wants_weights: bool,
) -> (Tensor, Option<(Tensor, Tensor)>) {
    let weight = weight_d.to_f32_vec();
    let (d, isa) = (weight.len(), Isa::best());
    let width = if wants_weights { 2 * d } else { 0 };
    let (dx, mut dweight) = each_row_back(x_td, dy_td, d, width, |x, dy, dx, sums| {
        let (dweight, dbias) = sums.split_at_mut(sums.len() / 2);
        layer_norm_backward_row(isa, x, &weight, eps, dy, dx, dweight, dbias);
    });
    let weights = wants_weights.then(|| {
        let dbias = dweight.split_off(d);
        (Tensor::from_f32(dweight, &[d]), Tensor::from_f32(dbias, &[d]))
    });
    (dx, weights)
}

/// Rows that a task takes: one alone is too little to hand to a thread.
const GROUP: usize = 32;

/// `row(x, dy, dx, sums)` for every row → dx, and the sums over the rows, `[width]`: each task's own first, then those in
/// the order of the tasks, so that threads do not matter.
fn each_row_back(
    x_td: &Tensor,
    dy_td: &Tensor,
    d: usize,
    width: usize,
    row: impl Fn(&[f32], &[f32], &mut [f32], &mut [f32]) + Sync + Send,
) -> (Tensor, Vec<f32>) {
    assert!(x_td.shape().last() == Some(&d) && x_td.len() == dy_td.len(), "norm of {x_td:?} and {dy_td:?}");
    let (x, dy) = (x_td.as_f32(), dy_td.as_f32());
    let mut parts = vec![0.0; x.len().div_ceil((GROUP * d).max(1)) * width];
    let sums = Shared::new(&mut parts);
    let dx = filled(x.len(), GROUP * d, |task, dx| {
        // SAFETY: each task has sums of its own.
        let sums = unsafe { sums.slice(task * width, width) };
        let from = task * GROUP * d;
        for ((x, dy), dx) in x[from..].chunks(d).zip(dy[from..].chunks(d)).zip(dx.chunks_mut(d)) {
            row(x, dy, dx, sums);
        }
    });
    let mut all = vec![0.0; width];
    for part in parts.chunks(width.max(1)) {
        all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
    }
    (Tensor::from_f32(dx, x_td.shape()), all)
}

fn each_row(x_td: &Tensor, d: usize, row: impl Fn(usize, &[f32], &mut [f32]) + Sync + Send) -> Tensor {
    assert_eq!(x_td.shape().last(), Some(&d), "norm of {x_td:?}");
    let x = x_td.as_f32();
    let y = filled(x.len(), GROUP * d, |task, y| {
        for (i, y) in y.chunks_mut(d).enumerate() {
            let i = task * GROUP + i;
            row(i, &x[i * d..(i + 1) * d], y);
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

/// dx = r·g - x·r³·mean(g·x), with g = dy·scale and r = 1 / √(mean(x²) + eps); dweight += dy·x·r, where it is wanted.
#[inline(always)]
unsafe fn rms_norm_backward_body<L: Lane>(
    x: &[f32],
    scale: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let n = x.len() as f32;
    let norm = 1.0 / (strand_sum(x, |x, s| L::mul_add_scalar(x, x, s)) / n + eps).sqrt();
    for ((dx, dy), s) in dx.iter_mut().zip(dy).zip(scale) {
        *dx = dy * s;
    }
    for ((dweight, dy), x) in dweight.iter_mut().zip(dy).zip(x) {
        *dweight += dy * x * norm;
    }
    let along = strand_sum_of_products(dx, x) / n * norm * norm * norm;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = *dx * norm - x * along;
    }
}

/// dx = r·(g - mean(g) - z·mean(g·z)), with g = dy·weight, z = (x - mean)·r and r = 1 / √(variance + eps); dweight += dy·z
/// and dbias += dy, where they are wanted.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "two rows, their gradients and what they are made of")]
unsafe fn layer_norm_backward_body<L: Lane>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let n = x.len() as f32;
    let mean = strand_sum(x, |x, s| s + x) / n;
    let variance = strand_sum(x, |x, s| L::mul_add_scalar(x - mean, x - mean, s)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
        *dx = dy * w;
    }
    for (((dweight, dbias), dy), x) in dweight.iter_mut().zip(dbias).zip(dy).zip(x) {
        *dweight += dy * (x - mean) * scale;
        *dbias += dy;
    }
    let level = strand_sum(dx, |g, s| s + g) / n;
    // Σ g·z without z: Σ g·(x - mean), times r once for z and once for what follows.
    let along = (strand_sum_of_products(dx, x) / n - level * mean) * scale * scale;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = (*dx - level - (x - mean) * along) * scale;
    }
}

/// Σ a·b in sixteen strands.
#[inline(always)]
fn strand_sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut strands = [0f32; 16];
    let (whole_a, rest_a) = a.as_chunks::<16>();
    let (whole_b, rest_b) = b.as_chunks::<16>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        strands.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
    strands.iter_mut().zip(rest_a.iter().zip(rest_b)).for_each(|(s, (a, b))| *s += a * b);
    strands.iter().sum()
}

multiversion! {
    fn rms_norm_backward_row(
        x: &[f32], scale: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32],
    ) = rms_norm_backward_body
}
multiversion! {
    #[allow(clippy::too_many_arguments, reason = "as the body")]
    fn layer_norm_backward_row(
        x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32], dbias: &mut [f32],
    ) = layer_norm_backward_body
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
        testing::{assert_close, check_gradient, random},
    };
    use proptest::prelude::*;

    #[test]
    fn gradients_are_finite_differences() {
        for (t, d) in [(5, 43), (40, 17)] {
            let (x, w, b) = (random(1, &[t, d]), random(2, &[d]), random(3, &[d]));
            let dy = random(4, &[t, d]);
            let (dx, dw) = rms_norm_backward(&x, &w, 1e-6, &dy, true);
            check_gradient("rms x", &x, &dx, &dy, |x| rms_norm(x, &w, 1e-6));
            check_gradient("rms weight", &w, &dw.unwrap(), &dy, |w| rms_norm(&x, w, 1e-6));
            let (dx, weights) = layer_norm_backward(&x, &w, 1e-6, &dy, true);
            let (dw, db) = weights.unwrap();
            check_gradient("layer x", &x, &dx, &dy, |x| layer_norm(x, &w, &b, 1e-6));
            check_gradient("layer weight", &w, &dw, &dy, |w| layer_norm(&x, w, &b, 1e-6));
            check_gradient("layer bias", &b, &db, &dy, |b| layer_norm(&x, &w, b, 1e-6));
        }
    }

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
