//! Random tensors and comparison, for this crate's tests.

use crate::Tensor;

/// Numbers in [-1, 1) from a fixed generator.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let numbers = (0..shape.iter().product()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    Tensor::from_f32(numbers.collect(), shape)
}

/// Fails where the two differ by more than `tolerance`.
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.shape(), want.shape());
    for (i, (g, w)) in got.as_f32().iter().zip(want.as_f32()).enumerate() {
        assert!((g - w).abs() <= tolerance, "element {i} of {got:?}: {g}, want {w}");
    }
}

/// Holds `gradient` against finite differences of Σ weights·f(x), at 200 of the numbers of `x` (all, if there are fewer):
/// apart by at most 1e-3 of the larger of the number itself and the gradient's root mean square.
pub(crate) fn check_gradient(
    name: &str,
    x: &Tensor,
    gradient: &Tensor,
    weights: &Tensor,
    f: impl Fn(&Tensor) -> Tensor,
) {
    assert_eq!(gradient.shape(), x.shape(), "{name}");
    let rms = (gradient.as_f32().iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / x.len() as f64).sqrt();
    assert!(rms > 0.0, "{name}: the gradient is zero");
    let objective = |at: usize, step: f32| -> f64 {
        let mut moved = x.clone();
        moved.as_f32_mut()[at] += step;
        let y = f(&moved);
        assert_eq!(y.len(), weights.len(), "{name}");
        y.as_f32().iter().zip(weights.as_f32()).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    const STEP: f32 = 1.0 / 64.0;
    let points = x.len().min(200);
    for point in 0..points {
        let at = point * x.len() / points;
        // Central differences at one and two steps, weighted so that the third derivative cancels.
        let near = objective(at, STEP) - objective(at, -STEP);
        let far = objective(at, 2.0 * STEP) - objective(at, -2.0 * STEP);
        let slope = (8.0 * near - far) / (12.0 * f64::from(STEP));
        let ours = f64::from(gradient.as_f32()[at]);
        let off = (slope - ours).abs() / rms.max(ours.abs());
        assert!(off <= 1e-3, "{name}[{at}]: {ours}, by differences {slope}: off by {off:.1e}");
    }
}
