//! What has no better home: sums, soft caps, log-probabilities.

use crate::{Isa, Tensor, math::softcap_slice};

/// a + b, of one shape, f32.
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape());
    Tensor::from_f32(a.as_f32().iter().zip(b.as_f32()).map(|(a, b)| a + b).collect(), a.shape())
}

/// cap · tanh(x / cap) on every element, f32.
pub fn softcap(x: &Tensor, cap: f32) -> Tensor {
    let mut y = x.as_f32().to_vec();
    softcap_slice(Isa::best(), &mut y, cap);
    Tensor::from_f32(y, x.shape())
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

/// ln Σ e^x of a row, in f64 inside.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !top.is_finite() {
        return f64::from(top);
    }
    f64::from(top) + row.iter().map(|&x| f64::from(x - top).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_of_small_rows() {
        for (row, want) in [
            (vec![0.0f32, 0.0], 2f64.ln()),
            (vec![1000.0, 0.0], 1000.0),
            (vec![f32::NEG_INFINITY, 3.0], 3.0),
            (vec![-1e9, -1e9], -1e9 + 2f64.ln()),
        ] {
            assert!((log_sum_exp(&row) - want).abs() < 1e-9, "{row:?}");
        }
    }
}
