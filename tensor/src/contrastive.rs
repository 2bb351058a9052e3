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
    fn far_logits_neither_overflow_nor_vanish() {
        let x = Tensor::from_f32(vec![1.0, 0.0, 0.0, 1.0], &[2, 2]);
        let close = sigmoid_contrastive(&x, &x, 1000.0, -500.0);
        assert!(close.loss.abs() < 1e-9 && close.dx.as_f32().iter().all(|g| g.abs() < 1e-9));
        let far = sigmoid_contrastive(&x, &x, -1000.0, 500.0);
        assert!((far.loss - 1000.0).abs() < 1e-3, "{}", far.loss);
    }
}
