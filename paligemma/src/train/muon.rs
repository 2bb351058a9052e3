//! A matrix made nearly orthogonal: what Muon makes of the mean of gradients.
//!
//! Keller Jordan's quintic Newton–Schulz iteration, as optax has it (optax/contrib/_muon.py,
//! `orthogonalize_via_newton_schulz`): singular values come to lie between 0.7 and 1.2, singular vectors stay.

use paligemma_tensor::{DType, Epilogue, Tensor, Weight, input_gradient, linear, weight_gradient};

use super::optimiser::sum_of_squares;

/// Of X, (X·Xᵀ)·X and (X·Xᵀ)²·X.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
const STEPS: usize = 5;
const EPS: f64 = 1e-8;

/// `x` `[rows, columns]`, row after row → the same shape.
pub(super) fn orthogonal(mut x: Vec<f32>, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let norm = sum_of_squares(&x).sqrt() + EPS;
    x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    let mut x = Tensor::from_f32(x, &[rows, columns]);
    let [one, three, five] = COEFFICIENTS;
    let product = |x: &Tensor, w: &Tensor| linear(x, &Weight::from(w.clone()), Epilogue::default());
    // a: of the shorter side, symmetric. a = x @ x.T, or x.T @ x: the iteration of the transpose is the transposed one.
    let is_wide = rows <= columns;
    for _ in 0..STEPS {
        let a = if is_wide { product(&x, &x) } else { weight_gradient(&x, &x, DType::F32) };
        let b = sum(three, &a, five, product(&a, &a)); // b = coeffs[1] * a + coeffs[2] * a @ a
        let bx = if is_wide { input_gradient(&b, &Weight::from(x.clone())) } else { product(&x, &b) };
        x = sum(one, &x, 1.0, bx); // coeffs[0] * x + b @ x
    }
    x.to_f32_vec()
}

/// p·x + q·y
fn sum(p: f32, x: &Tensor, q: f32, mut y: Tensor) -> Tensor {
    y.as_f32_mut().iter_mut().zip(x.as_f32()).for_each(|(y, x)| *y = p * x + q * *y);
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use paligemma_tensor::mix;

    /// Singular values within the iteration's bounds, both ways round; of zeros nothing comes.
    #[test]
    fn rows_or_columns_become_orthogonal() {
        let check = |rows: usize, columns: usize| {
            let x: Vec<f32> =
                (0..rows * columns).map(|i| (mix(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
            let y = orthogonal(x.clone(), [rows, columns]);
            let short = rows.min(columns);
            let dot = |a: usize, b: usize| -> f64 {
                let pair = |i: usize| match rows <= columns {
                    true => (y[a * columns + i], y[b * columns + i]),
                    false => (y[i * columns + a], y[i * columns + b]),
                };
                (0..rows.max(columns)).map(|i| f64::from(pair(i).0) * f64::from(pair(i).1)).sum()
            };
            for a in 0..short {
                assert!((0.4..1.5).contains(&dot(a, a)), "{rows} {columns}: {}", dot(a, a));
            }
            let transposed: Vec<f32> = (0..columns)
                .flat_map(|c| (0..rows).map(move |r| (r, c)))
                .map(|(r, c)| x[r * columns + c])
                .collect();
            let other = orthogonal(transposed, [columns, rows]);
            for r in 0..rows {
                for c in 0..columns {
                    let (got, want) = (other[c * rows + r], y[r * columns + c]);
                    assert!((got - want).abs() < 1e-4, "{rows} {columns} {r} {c}: {got} {want}");
                }
            }
        };
        for (rows, columns) in [(1, 1), (1, 7), (5, 31), (64, 33), (40, 40)] {
            check(rows, columns);
        }
        assert_eq!(orthogonal(vec![0.0; 6], [2, 3]), [0.0; 6]);
    }
}
