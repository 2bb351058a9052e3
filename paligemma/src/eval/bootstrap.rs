//! How far a figure would move with other examples of the same kind.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The middle 95 % of a statistic over `resamples` draws of `n` examples out of `n`, with replacement: the percentile
/// bootstrap. The same seed gives the same interval.
pub(super) fn interval(
    n: usize,
    resamples: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> f64,
) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut values: Vec<f64> = (0..resamples)
        .map(|_| {
            // The bias of the remainder is below 2⁻³².
            let drawn: Vec<usize> = (0..n).map(|_| (rng.next_u64() % n as u64) as usize).collect();
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    (at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_a_mean() {
        let hits: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| hits[i]).sum::<f64>() / drawn.len() as f64;
        let (low, high) = interval(400, 2000, 1, mean);
        // √(0.25 · 0.75 / 400) · 1.96 = 0.0424
        assert!((low - 0.2076).abs() < 0.006 && (high - 0.2924).abs() < 0.006, "{low} {high}");
        assert_eq!(interval(400, 100, 1, mean), interval(400, 100, 1, mean));
        assert_ne!(interval(400, 100, 1, mean), interval(400, 100, 2, mean));
    }
}
