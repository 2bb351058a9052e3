//! The sigmoid contrastive loss of SigLIP, by which its image encoder was trained (arXiv 2303.15343, algorithm 1).
//!
//! Legend: B pairs, D width.

use crate::{DType, Epilogue, Tensor, input_gradient, linear, weight_gradient};

/// A loss and its gradients.
#[derive(Debug, Clone)]
pub struct SigmoidContrastive {
    /// -1/B · Σ over all B² pairs of ln σ(±(temperature · x·y + bias)), plus for the pairs that belong together.
    pub loss: f64,
    /// By the images' embeddings, f32 `[B, D]`.
    pub dx: Tensor,
    /// By the texts' embeddings, f32 `[B, D]`.
    pub dy: Tensor,
    /// By the temperature.
    pub dtemperature: f64,
    /// By the bias.
    pub dbias: f64,
}

/// The loss of embeddings `x_bd` and `y_bd`, f32 `[B, D]` and of length 1 by the caller; row i of each belongs together.
pub fn sigmoid_contrastive(x_bd: &Tensor, y_bd: &Tensor, temperature: f32, bias: f32) -> SigmoidContrastive {
    let b = x_bd.shape()[0];
    assert_eq!(x_bd.shape(), y_bd.shape());
    let mut products = linear(x_bd, &y_bd.clone().into(), Epilogue::default());
    let (mut loss, mut dtemperature, mut dbias) = (0.0, 0.0, 0.0);
    for (at, product) in products.as_f32_mut().iter_mut().enumerate() {
        let sign = if at / b == at % b { 1.0 } else { -1.0 };
        let logit = sign * (f64::from(temperature) * f64::from(*product) + f64::from(bias));
        // -ln σ(z) = ln(1 + e^-z), without overflow.
        loss += (-logit.abs()).exp().ln_1p() - logit.min(0.0);
        let slope = -sign / (1.0 + logit.exp()) / b as f64;
        dtemperature += slope * f64::from(*product);
        dbias += slope;
        *product = (slope * f64::from(temperature)) as f32;
    }
    SigmoidContrastive {
        loss: loss / b as f64,
        dx: input_gradient(&products, &y_bd.clone().into()),
        dy: weight_gradient(&products, x_bd, DType::F32),
        dtemperature,
        dbias,
    }
}

/// What keeps rows of zeros finite (big_vision's).
const SMALL: f32 = 1e-8;

/// Rows of length 1: x / (|x| + 1e-8), `x_bd` f32.
pub fn unit_rows(x_bd: &Tensor) -> Tensor {
    let d = x_bd.shape()[1];
    let rows = x_bd.as_f32().chunks(d.max(1));
    let unit = rows.flat_map(|row| {
        let length = length(row) + SMALL;
        row.iter().map(move |x| x / length)
    });
    Tensor::from_f32(unit.collect(), x_bd.shape())
}

/// The gradient of [`unit_rows`].
pub fn unit_rows_backward(x_bd: &Tensor, dy_bd: &Tensor) -> Tensor {
    let d = x_bd.shape()[1];
    let rows = x_bd.as_f32().chunks(d.max(1)).zip(dy_bd.as_f32().chunks(d.max(1)));
    let dx = rows.flat_map(|(x, dy)| {
        let length = length(x);
        let along: f32 = x.iter().zip(dy).map(|(x, dy)| x * dy).sum();
        // d(x / (|x| + ε)) = dx / (|x| + ε) - x·(x·dx) / (|x|·(|x| + ε)²)
        let (of_dy, of_x) = (1.0 / (length + SMALL), along / (length.max(SMALL) * (length + SMALL).powi(2)));
        x.iter().zip(dy).map(move |(x, dy)| dy * of_dy - x * of_x)
    });
    Tensor::from_f32(dx.collect(), x_bd.shape())
}

fn length(row: &[f32]) -> f32 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, random};

    #[test]
    fn gradients_are_finite_differences() {
        let (x, y) = (random(1, &[12, 9]), random(2, &[12, 9]));
        let (t, b) = (Tensor::from_f32(vec![3.0], &[1]), Tensor::from_f32(vec![-2.0], &[1]));
        let ones = Tensor::from_f32(vec![1.0; 2], &[2]);
        let loss = |x: &Tensor, y: &Tensor, t: &Tensor, b: &Tensor| {
            let loss = sigmoid_contrastive(x, y, t.as_f32()[0], b.as_f32()[0]).loss;
            Tensor::from_f32(vec![loss as f32, (loss - f64::from(loss as f32)) as f32], &[2])
        };
        let all = sigmoid_contrastive(&x, &y, 3.0, -2.0);
        let number = |x: f64| Tensor::from_f32(vec![x as f32], &[1]);
        check_gradient("x", &x, &all.dx, &ones, |x| loss(x, &y, &t, &b));
        check_gradient("y", &y, &all.dy, &ones, |y| loss(&x, y, &t, &b));
        check_gradient("temperature", &t, &number(all.dtemperature), &ones, |t| loss(&x, &y, t, &b));
        check_gradient("bias", &b, &number(all.dbias), &ones, |b| loss(&x, &y, &t, b));
    }

    #[test]
    fn rows_of_length_one() {
        let (x, dy) = (random(1, &[7, 13]), random(2, &[7, 13]));
        check_gradient("x", &x, &unit_rows_backward(&x, &dy), &dy, unit_rows);
        assert!(unit_rows(&x).as_f32().chunks(13).all(|row| (length(row) - 1.0).abs() < 1e-6));
        let zeros = Tensor::zeros(&[1, 3]);
        assert_eq!(unit_rows(&zeros).as_f32(), [0.0; 3]);
        assert!(unit_rows_backward(&zeros, &zeros).as_f32().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn far_logits_neither_overflow_nor_vanish() {
        let x = Tensor::from_f32(vec![1.0, 0.0, 0.0, 1.0], &[2, 2]);
        let close = sigmoid_contrastive(&x, &x, 1000.0, -500.0);
        assert!(close.loss.abs() < 1e-9 && close.dx.as_f32().iter().all(|g| g.abs() < 1e-9));
        let far = sigmoid_contrastive(&x, &x, -1000.0, 500.0);
        assert!((far.loss - 1000.0).abs() < 1e-3, "{}", far.loss);
    }
}
