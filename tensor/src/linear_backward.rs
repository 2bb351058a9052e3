//! The two products of a linear layer's backward pass: dX = dY·W and dW = dYᵀ·X.
//!
//! Contract. As in the forward pass both factors are rounded to bf16 where the computation is in bf16 (for dX where W is),
//! and sums are f32. Results do not depend on the number of threads.
//!
//! Legend: t rows, k inputs, n outputs.

use crate::{DType, Epilogue, Tensor, linear};

/// Rows of dW, or columns of W, that are made at a time: what is held besides the result stays small.
const BLOCK: usize = 4096;

/// dX = dY·W: `dy_tn` f32 `[t, n]`, `w_nk` `[n, k]` → f32 `[t, k]`.
pub fn input_gradient(dy_tn: &Tensor, w_nk: &Tensor) -> Tensor {
    let mut dx = Tensor::zeros(&[dy_tn.shape()[0], w_nk.shape()[1]]);
    add_input_gradient(dy_tn, w_nk, &mut dx);
    dx
}

/// dX += dY·W; see [`input_gradient`].
pub fn add_input_gradient(dy_tn: &Tensor, w_nk: &Tensor, dx_tk: &mut Tensor) {
    let n = w_nk.shape()[0];
    assert_eq!(dy_tn.shape()[1], n, "gradient of {w_nk:?}");
    for from in (0..n).step_by(BLOCK) {
        let to = n.min(from + BLOCK);
        let w_kn = w_nk.rows(from, to).permute(&[1, 0]);
        let residual = Some(&*dx_tk);
        *dx_tk = linear(&columns(dy_tn, from, to), &w_kn, Epilogue { residual, ..Epilogue::default() });
    }
}

/// dW = dYᵀ·X: `dy_tn` and `x_tk` f32, multiplied as `compute` (f32 or bf16) → f32 `[n, k]`.
pub fn weight_gradient(dy_tn: &Tensor, x_tk: &Tensor, compute: DType) -> Tensor {
    let mut dw = Tensor::zeros(&[dy_tn.shape()[1], x_tk.shape()[1]]);
    add_weight_gradient(dy_tn, x_tk, compute, &mut dw);
    dw
}

/// dW += dYᵀ·X; see [`weight_gradient`].
pub fn add_weight_gradient(dy_tn: &Tensor, x_tk: &Tensor, compute: DType, dw_nk: &mut Tensor) {
    let (t, n, k) = (dy_tn.shape()[0], dy_tn.shape()[1], x_tk.shape()[1]);
    assert!(x_tk.shape()[0] == t && dw_nk.shape() == [n, k], "gradient {dw_nk:?} of {dy_tn:?} and {x_tk:?}");
    let x_kt = x_tk.permute(&[1, 0]).cast(compute);
    for from in (0..n).step_by(BLOCK) {
        let to = n.min(from + BLOCK);
        let dy_nt = columns(dy_tn, from, to).permute(&[1, 0]);
        let part = linear(&dy_nt, &x_kt, Epilogue::default());
        let sum = &mut dw_nk.as_f32_mut()[from * k..to * k];
        sum.iter_mut().zip(part.as_f32()).for_each(|(sum, part)| *sum += part);
    }
}

/// Σ of the rows, row after row: the gradient of a bias → f32 `[n]`.
pub fn bias_gradient(dy_tn: &Tensor) -> Tensor {
    let n = dy_tn.shape()[1];
    let mut sums = vec![0.0; n];
    for row in dy_tn.as_f32().chunks(n.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    Tensor::from_f32(sums, &[n])
}

/// Columns `from..to` of an f32 matrix.
fn columns(x_tn: &Tensor, from: usize, to: usize) -> Tensor {
    let (t, n) = (x_tn.shape()[0], x_tn.shape()[1]);
    if (from, to) == (0, n) {
        return x_tn.clone();
    }
    let x = x_tn.as_f32();
    let rows = (0..t).flat_map(|row| x[row * n + from..row * n + to].iter().copied());
    Tensor::from_f32(rows.collect(), &[t, to - from])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, check_gradient, random};

    #[test]
    fn gradients_are_finite_differences() {
        for (t, k, n) in [(3, 19, 11), (40, 23, 35)] {
            let (x, w, b, dy) = (random(1, &[t, k]), random(2, &[n, k]), random(3, &[n]), random(4, &[t, n]));
            let f = |x: &Tensor, w: &Tensor, b: &Tensor| {
                linear(x, w, Epilogue { bias: Some(b), ..Epilogue::default() })
            };
            check_gradient("x", &x, &input_gradient(&dy, &w), &dy, |x| f(x, &w, &b));
            check_gradient("w", &w, &weight_gradient(&dy, &x, DType::F32), &dy, |w| f(&x, w, &b));
            check_gradient("bias", &b, &bias_gradient(&dy), &dy, |b| f(&x, &w, b));
        }
    }

    /// More outputs than a block, and sums on top of what is there.
    #[test]
    fn blocks_and_sums() {
        let (t, k, n) = (3, 5, 2 * BLOCK + 7);
        let (x, w, dy) = (random(1, &[t, k]), random(2, &[n, k]), random(3, &[t, n]));
        let (mut dx, mut dw) = (input_gradient(&dy, &w), weight_gradient(&dy, &x, DType::F32));
        for (name, at) in [("dx", 2 * k + 1), ("dw", (BLOCK + 3) * k + 2)] {
            let (x, w, dy) = (x.as_f32(), w.as_f32(), dy.as_f32());
            let sum: f64 = match name {
                "dx" => (0..n).map(|j| f64::from(dy[2 * n + j]) * f64::from(w[j * k + 1])).sum(),
                _ => (0..t).map(|i| f64::from(dy[i * n + BLOCK + 3]) * f64::from(x[i * k + 2])).sum(),
            };
            let got = if name == "dx" { dx.as_f32()[at] } else { dw.as_f32()[at] };
            assert!((f64::from(got) - sum).abs() < 1e-3, "{name}: {got}, want {sum}");
        }
        let twice = |x: &Tensor| Tensor::from_f32(x.as_f32().iter().map(|x| 2.0 * x).collect(), x.shape());
        let (want_dx, want_dw) = (twice(&dx), twice(&dw));
        add_input_gradient(&dy, &w, &mut dx);
        add_weight_gradient(&dy, &x, DType::F32, &mut dw);
        assert_close(&dx, &want_dx, 1e-3);
        assert_close(&dw, &want_dw, 1e-5);
    }

    /// In bf16 both factors are rounded first.
    #[test]
    fn bf16_products_are_products_of_rounded_numbers() {
        let (x, w, dy) = (random(1, &[20, 31]), random(2, &[33, 31]), random(3, &[20, 33]));
        let round = |x: &Tensor| x.cast(DType::BF16).cast(DType::F32);
        let got = input_gradient(&dy, &w.cast(DType::BF16));
        assert_close(&got, &input_gradient(&round(&dy), &round(&w)), 1e-5);
        let got = weight_gradient(&dy, &x, DType::BF16);
        assert_close(&got, &weight_gradient(&round(&dy), &round(&x), DType::F32), 1e-5);
    }
}
