//! What the model thought of a coordinate when it chose one: the distribution over the location tokens.
//!
//! Location tokens are numbers on a scale, so that more can be asked of them than which is the likeliest: how much
//! probability lies around the chosen one, and where its middle is.

use std::ops::Range;

/// Bins on either side that count as the same place: 1.6 % of the picture's side.
pub const NEAR: usize = 16;

/// The distribution at a location token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinate {
    /// The probability of any location token, among all tokens.
    pub any: f32,
    /// The probability of those at most [`NEAR`] bins from the chosen one, among the location tokens.
    pub near: f32,
    /// The mean bin of those, weighted by their probabilities. Others do not count: they may mean another object.
    pub mean: f32,
}

impl Coordinate {
    /// The distribution of `values_v` (logits or log-probabilities, `total` their log-sum-exp) over the ids `locations`,
    /// of which `chosen` is one; none if it is not.
    pub(super) fn of(
        values_v: &[f32],
        total: f64,
        locations: &Range<u32>,
        chosen: u32,
    ) -> Option<Coordinate> {
        if !locations.contains(&chosen) {
            return None;
        }
        let row = values_v.get(locations.start as usize..locations.end as usize)?;
        let chosen = (chosen - locations.start) as usize;
        let (mut any, mut near, mut moment) = (0f64, 0f64, 0f64);
        for (bin, &value) in row.iter().enumerate() {
            let p = (f64::from(value) - total).exp();
            any += p;
            if bin.abs_diff(chosen) <= NEAR {
                near += p;
                moment += p * bin as f64;
            }
        }
        // Probabilities too small for f64 say nothing more than the choice itself.
        if near <= 0.0 || !moment.is_finite() {
            return Some(Coordinate { any: 0.0, near: 0.0, mean: chosen as f32 });
        }
        Some(Coordinate { any: any as f32, near: (near / any) as f32, mean: (moment / near) as f32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paligemma_tensor::log_sum_exp;

    #[test]
    fn the_mean_is_of_what_lies_near() {
        // Two tokens of text, then a hundred locations: 40 and 43 around a place, 90 at another.
        let mut logits = vec![f32::NEG_INFINITY; 102];
        for (id, p) in [(0usize, 0.5f32), (42, 0.2), (45, 0.1), (92, 0.2)] {
            logits[id] = p.ln();
        }
        let check = |chosen: u32, want: Option<[f32; 3]>| {
            let got = Coordinate::of(&logits, log_sum_exp(&logits), &(2..102), chosen);
            let got = got.map(|c| [c.any, c.near, c.mean]);
            match (got, want) {
                (Some(got), Some(want)) => {
                    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4), "{chosen}: {got:?}");
                }
                (got, want) => assert_eq!(got, want),
            }
        };
        check(42, Some([0.5, 0.6, 41.0]));
        check(92, Some([0.5, 0.4, 90.0]));
        check(12, Some([0.0, 0.0, 10.0]));
        check(1, None);
        check(102, None);
    }
}
