//! The position embeddings with which an image encoder begins: sines and cosines along both axes.
//!
//! Reference: big_vision/models/vit.py, `posemb_sincos_2d`, whose wave lengths reach from 6 to 63,000 patches, so that in a small
//! picture most are all but constant. Here they reach from 4 patches to 32. Neighbours are alike, as an encoder that is to see
//! shapes wants them, and stay so where the positions are resampled; independent numbers do not.

/// Embeddings `[side², width]` of mean 0 in each number and deviation `deviation` over all. A quarter of the numbers each are
/// sines and cosines along y and along x; what is left of a width that is no multiple of 4 is 0.
pub(super) fn waves(side: usize, width: usize, deviation: f64) -> Vec<f32> {
    let n = width / 4;
    let frequency = |i: usize| std::f64::consts::FRAC_PI_2 * 8f64.powf(-(i as f64) / (n.max(2) - 1) as f64);
    let mut all = vec![0f64; side * side * width];
    for (place, row) in all.chunks_mut(width).enumerate() {
        let axes = [place / side, place % side];
        for (k, x) in row.iter_mut().enumerate().take(4 * n) {
            let at = (axes[k / (2 * n)] as f64 - (side - 1) as f64 / 2.0) * frequency(k % n);
            *x = if (k / n).is_multiple_of(2) { at.sin() } else { at.cos() };
        }
    }
    for k in 0..width {
        let mean = all.iter().skip(k).step_by(width).sum::<f64>() / (side * side) as f64;
        all.iter_mut().skip(k).step_by(width).for_each(|x| *x -= mean);
    }
    let found = (all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64).sqrt();
    // A single patch has no place.
    let scale = if found > 0.0 { deviation / found } else { 0.0 };
    all.iter().map(|x| (x * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_alike_and_no_two_places_are_the_same() {
        for (side, width) in [(4, 192), (8, 192), (16, 192), (8, 66), (2, 8), (3, 4)] {
            let all = waves(side, width, 0.7);
            assert_eq!(all.len(), side * side * width);
            let variance = all.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / all.len() as f64;
            assert!((variance.sqrt() - 0.7).abs() < 1e-6, "{side} {width}: {variance}");
            let apart = |a: usize, b: usize| -> f32 {
                (0..width).map(|k| (all[a * width + k] - all[b * width + k]).powi(2)).sum()
            };
            let least = (1..side * side).map(|b| apart(0, b)).fold(f32::MAX, f32::min);
            assert!(least > 1e-2, "{side} {width}: {least}");
            if side > 2 {
                assert!(apart(0, 1) < apart(0, 2) && apart(0, side) < apart(0, 2 * side), "{side} {width}");
            }
        }
        assert_eq!(waves(1, 8, 0.7), [0.0; 8]);
    }
}
