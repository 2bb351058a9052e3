//! Element by element: sums, soft caps, GELU; rows one after the other; log-probabilities.

use crate::{
    Isa, Tensor,
    isa::multiversion,
    lane::Lane,
    math::{
        exp_slice, gelu_backward_slice, gelu_slice, gelu_times_backward_slice, gelu_times_slice,
        softcap_slice,
    },
    norm::strand_sum,
    parallel::filled,
};
use rayon::prelude::*;

/// Elements that one thread takes at a time.
const GROUP: usize = 1 << 14;

/// a + b, of one shape, f32.
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape());
    let b = b.as_f32();
    each_part(a, |from, y| y.iter_mut().zip(&b[from..]).for_each(|(y, b)| *y += b))
}

/// a += b, of one length, f32.
pub(crate) fn add_to(a: &mut Tensor, b: &Tensor) {
    let parts = a.as_f32_mut().par_chunks_mut(GROUP).zip(b.as_f32().par_chunks(GROUP));
    parts.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
}

/// A copy of x, each part of which `f(from, part)` has changed.
fn each_part(x: &Tensor, f: impl Fn(usize, &mut [f32]) + Sync + Send) -> Tensor {
    let from = x.as_f32();
    let y = filled(from.len(), GROUP, |i, y| {
        y.copy_from_slice(&from[i * GROUP..][..y.len()]);
        f(i * GROUP, y);
    });
    Tensor::from_f32(y, x.shape())
}

/// cap · tanh(x / cap) on every element, f32.
pub fn softcap(x: &Tensor, cap: f32) -> Tensor {
    let mut y = x.as_f32().to_vec();
    softcap_slice(Isa::best(), &mut y, cap);
    Tensor::from_f32(y, x.shape())
}

/// The gradient of [`softcap`], from its result: dy · (1 - (y / cap)²).
pub fn softcap_backward(y: &Tensor, cap: f32, dy: &Tensor) -> Tensor {
    let slope = |y: f32| 1.0 - (y / cap) * (y / cap);
    Tensor::from_f32(y.as_f32().iter().zip(dy.as_f32()).map(|(&y, dy)| dy * slope(y)).collect(), y.shape())
}

/// GELU, tanh approximation, of every element, f32.
pub fn gelu(x: &Tensor) -> Tensor {
    each_part(x, |_, y| gelu_slice(Isa::best(), y))
}

/// The gradient of [`gelu`].
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Tensor {
    let x = x.as_f32();
    each_part(dy, |from, dx| gelu_backward_slice(Isa::best(), &x[from..][..dx.len()], dx))
}

/// GELU(gate) · up, element by element, f32.
pub fn gelu_times(gate: &Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape());
    let up = up.as_f32();
    each_part(gate, |from, y| gelu_times_slice(Isa::best(), y, &up[from..][..y.len()]))
}

/// The gradients of [`gelu_times`] by its two factors, which they take the place of where nobody else has these.
pub fn gelu_times_backward(mut gate: Tensor, mut up: Tensor, dy: &Tensor) -> (Tensor, Tensor) {
    let (gates, ups) = (gate.as_f32_mut().par_chunks_mut(GROUP), up.as_f32_mut().par_chunks_mut(GROUP));
    gates.zip(ups).zip(dy.as_f32().par_chunks(GROUP)).for_each(|((gate, up), dy)| {
        gelu_times_backward_slice(Isa::best(), gate, up, dy);
    });
    (gate, up)
}

/// Rows of several f32 tensors of one width, one after the other.
pub fn concat_rows(parts: &[&Tensor]) -> Tensor {
    let mut shape = parts[0].shape().to_vec();
    shape[0] = parts.iter().map(|p| p.shape()[0]).sum();
    let mut y = Vec::with_capacity(shape.iter().product());
    for part in parts {
        assert_eq!(part.shape()[1..], shape[1..]);
        y.extend_from_slice(part.as_f32());
    }
    Tensor::from_f32(y, &shape)
}

/// ln Σ e^x of a row. Exponentials are f32, sums of a few thousand of them too, in strands; those are added in f64.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    const PART: usize = 4096;
    let isa = Isa::best();
    let tops: Vec<f32> = row.par_chunks(PART).map(|part| maximum(isa, part)).collect();
    let top = tops.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if !top.is_finite() {
        return f64::from(top);
    }
    let part = |part: &[f32]| {
        let mut powers = [0f32; PART];
        let powers = &mut powers[..part.len()];
        powers.iter_mut().zip(part).for_each(|(p, x)| *p = x - top);
        exp_slice(isa, powers);
        f64::from(strand_sum(powers, |x, sum| x + sum))
    };
    let sums: Vec<f64> = row.par_chunks(PART).map(part).collect();
    f64::from(top) + sums.iter().sum::<f64>().ln()
}

multiversion! {
    /// The largest of a row; minus infinity without any.
    fn maximum(row: &[f32]) -> f32 = maximum_body
}

#[inline(always)]
unsafe fn maximum_body<L: Lane>(row: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 64];
    let (whole, rest) = row.as_chunks::<64>();
    for part in whole {
        for (top, x) in tops.iter_mut().zip(part) {
            *top = if *x > *top { *x } else { *top };
        }
    }
    rest.iter().chain(&tops).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, random};

    #[test]
    fn gradients_are_finite_differences() {
        let (mut x, up, dy) = (random(1, &[20, 13]), random(2, &[20, 13]), random(3, &[20, 13]));
        // Both tails, too.
        x.as_f32_mut().iter_mut().for_each(|x| *x *= 4.0);
        check_gradient("gelu", &x, &gelu_backward(&x, &dy), &dy, gelu);
        let (dgate, dup) = gelu_times_backward(x.clone(), up.clone(), &dy);
        check_gradient("gate", &x, &dgate, &dy, |x| gelu_times(x, &up));
        check_gradient("up", &up, &dup, &dy, |up| gelu_times(&x, up));
        let dx = softcap_backward(&softcap(&x, 3.0), 3.0, &dy);
        check_gradient("softcap", &x, &dx, &dy, |x| softcap(x, 3.0));
    }

    #[test]
    fn log_sum_exp_of_small_rows() {
        for (row, want) in [
            (vec![0.0f32, 0.0], 2f64.ln()),
            (vec![1000.0, 0.0], 1000.0),
            (vec![f32::NEG_INFINITY, 3.0], 3.0),
            (vec![-1e9, -1e9], -1e9 + 2f64.ln()),
            (vec![-3.0; 100_000], 1e5f64.ln() - 3.0),
        ] {
            assert!((log_sum_exp(&row) - want).abs() <= 1e-7 * want.abs(), "{row:?}");
        }
    }
}
