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
