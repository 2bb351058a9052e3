//! The choice of one token from a row of logits.
//!
//! Rows of the table from `<image>` on are padding: they stay in the softmax, but are never chosen.

use super::Sampling;
use paligemma_tensor::log_sum_exp;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Chooses tokens for one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    /// Ids below this may be chosen.
    choices: usize,
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, choices: usize) -> Self {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Random { seed, .. } => seed,
        };
        Sampler { sampling, choices, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The id chosen of all, or of those in `among` if given.
    pub(crate) fn choose(&mut self, logits_v: &[f32], among: Option<&[u32]>) -> u32 {
        let Some(among) = among else {
            return self.choose_index(&logits_v[..self.choices.min(logits_v.len())]) as u32;
        };
        let logits: Vec<f32> = among.iter().map(|&id| logits_v[id as usize]).collect();
        among[self.choose_index(&logits)]
    }

    fn choose_index(&mut self, logits: &[f32]) -> usize {
        match self.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::Random { temperature, top_k, top_p, .. } => {
                let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                draw(logits, temperature, top_k, top_p, uniform)
            }
        }
    }
}

/// The first of the largest.
fn argmax(x: &[f32]) -> usize {
    let top = maximum(x);
    x.iter().position(|&value| value == top).unwrap_or(0)
}

/// The largest, in strands that the compiler can take side by side; what is no number is passed over.
fn maximum(x: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; 32];
    let (whole, rest) = x.as_chunks::<32>();
    for part in whole {
        for (top, &value) in tops.iter_mut().zip(part) {
            *top = if value > *top { value } else { *top };
        }
    }
    rest.iter().chain(&tops).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The id at which the running probability passes `uniform`, likeliest first. Temperature, then top-k, then top-p,
/// as transformers orders them.
fn draw(logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: Option<f32>, uniform: f64) -> usize {
    let scaled = |ids: &[usize]| ids.iter().map(|&i| logits[i] / temperature).collect::<Vec<f32>>();
    let (order, total) = match top_k {
        Some(k) if k < logits.len() => {
            let mut order = likeliest(logits, temperature, |ids| ids.len() >= k);
            order.truncate(k);
            let total = log_sum_exp(&scaled(&order));
            (order, total)
        }
        _ => {
            let total = log_sum_exp(&logits.iter().map(|x| x / temperature).collect::<Vec<f32>>());
            // Those after the running probability's goal do not matter. Sums in another order differ in their last digits.
            let goal = top_p.map_or(uniform, f64::from) + 1e-9;
            let mass = |ids: &[usize]| scaled(ids).iter().map(|&x| (f64::from(x) - total).exp()).sum::<f64>();
            (likeliest(logits, temperature, |ids| mass(ids) > goal), total)
        }
    };
    let probabilities: Vec<f64> = scaled(&order).iter().map(|&x| (f64::from(x) - total).exp()).collect();
    let (mut kept, mut mass) = (probabilities.len(), 1.0);
    if let Some(p) = top_p {
        let mut sum = 0.0;
        let reached = probabilities.iter().position(|q| {
            sum += q;
            sum >= f64::from(p)
        });
        (kept, mass) = (reached.map_or(kept, |at| at + 1), sum);
    }
    let mut rest = uniform * mass;
    for (&id, q) in order[..kept].iter().zip(&probabilities) {
        rest -= q;
        if rest < 0.0 {
            return id;
        }
    }
    order[kept - 1]
}

/// The likeliest ids in their order, at least as many as it takes until `is_enough`. A table is long, and nearly all of
/// it far below the top: sorting the whole would take longer than the choice.
fn likeliest(logits: &[f32], temperature: f32, is_enough: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let top = maximum(logits);
    let mut order: Vec<usize> = Vec::new();
    for reach in [2.0, 4.0, 8.0, 16.0, 32.0, f32::INFINITY] {
        let bound = top - reach * temperature;
        order.clear();
        order.extend((0..logits.len()).filter(|&i| logits[i] >= bound || reach == f32::INFINITY));
        if is_enough(&order) {
            break;
        }
    }
    // Equal logits stand in the order of their ids, so that a draw is reproducible.
    order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_filters() {
        // Probabilities 0.5, 0.25, 0.125, 0.125 for ids 2, 0, 1, 3.
        let logits: Vec<f32> = [0.25f32, 0.125, 0.5, 0.125].iter().map(|p| p.ln()).collect();
        for (top_k, top_p, uniform, want) in [
            (None, None, 0.0, 2),
            (None, None, 0.49, 2),
            (None, None, 0.51, 0),
            (None, None, 0.80, 1),
            (None, None, 0.99, 3),
            (Some(1), None, 0.99, 2),
            (Some(2), None, 0.99, 0),
            (None, Some(0.5), 0.99, 2),
            (None, Some(0.51), 0.99, 0),
            (None, Some(1.0), 0.99, 3),
            (Some(3), Some(0.9), 0.99, 1),
        ] {
            assert_eq!(draw(&logits, 1.0, top_k, top_p, uniform), want, "{top_k:?} {top_p:?} {uniform}");
        }
        // A low temperature sharpens, a high one flattens.
        assert_eq!(draw(&logits, 0.01, None, None, 0.999), 2);
        assert_eq!(draw(&logits, 100.0, None, None, 0.3), 0);
    }

    /// As if the whole table were sorted.
    fn draw_plain(logits: &[f32], temperature: f32, k: Option<usize>, p: Option<f32>, uniform: f64) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        order.truncate(k.unwrap_or(order.len()));
        let powers: Vec<f64> = order.iter().map(|&i| f64::from(logits[i] / temperature).exp()).collect();
        let all: f64 = powers.iter().sum();
        let mut kept = 0;
        let mut sum = 0.0;
        while kept < order.len() && p.is_none_or(|p| sum < f64::from(p)) {
            sum += powers[kept] / all;
            kept += 1;
        }
        let mut rest = uniform * sum;
        for (&id, q) in order[..kept].iter().zip(&powers) {
            rest -= q / all;
            if rest < 0.0 {
                return id;
            }
        }
        order[kept - 1]
    }

    #[test]
    fn the_likeliest_are_enough() {
        // Steep, flat, and all equal.
        for (n, steepness) in [(1, 1.0), (40, 1.0), (5000, 12.0), (5000, 0.01), (300, 0.0)] {
            let mut logits: Vec<f32> =
                (0..n).map(|i| steepness * ((i * 7919 % n) as f32 / n as f32 - 0.5) * 3.0).collect();
            if n > 1 {
                logits[n / 2] = f32::NEG_INFINITY;
            }
            for (k, p) in
                [(None, None), (Some(3), None), (Some(4000), Some(0.9)), (None, Some(0.7)), (None, Some(1.0))]
            {
                for (temperature, uniform) in [(1.0, 0.00137), (0.3, 0.70311), (2.0, 0.99907)] {
                    let got = draw(&logits, temperature, k, p, uniform);
                    let want = draw_plain(&logits, temperature, k, p, uniform);
                    assert_eq!(got, want, "{n} {steepness} {k:?} {p:?} {temperature} {uniform}");
                }
            }
        }
    }

    #[test]
    fn the_first_of_the_largest() {
        for (x, want) in [
            (vec![1.0, 3.0, 3.0], 1),
            (vec![f32::NAN, 2.0, f32::NAN], 1),
            (vec![f32::NEG_INFINITY; 2], 0),
            (vec![f32::NAN], 0),
            ((0..99).map(|i| -((i - 70) as f32).abs()).collect(), 70),
        ] {
            assert_eq!(argmax(&x), want, "{x:?}");
        }
    }

    #[test]
    fn padding_rows_are_never_chosen() {
        let logits = [0.0, 1.0, 9.0, 9.0];
        assert_eq!(Sampler::new(Sampling::Greedy, 2).choose(&logits, None), 1);
        let random = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed: 7 };
        let mut sampler = Sampler::new(random, 2);
        assert!((0..1000).all(|_| sampler.choose(&logits, None) < 2));
    }

    #[test]
    fn only_those_allowed_are_chosen() {
        let logits = [5.0, 1.0, 2.0, 9.0, 2.0];
        assert_eq!(Sampler::new(Sampling::Greedy, 4).choose(&logits, Some(&[1, 4, 2])), 4);
        let random = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed: 7 };
        let mut sampler = Sampler::new(random, 5);
        assert!((0..1000).all(|_| [1, 4].contains(&sampler.choose(&logits, Some(&[1, 4])))));
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits: Vec<f32> = [0.6f32, 0.3, 0.1].iter().map(|p| p.ln()).collect();
        let random = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed: 1 };
        let mut sampler = Sampler::new(random, 3);
        let mut counts = [0; 3];
        for _ in 0..20_000 {
            counts[sampler.choose(&logits, None) as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.6, 0.3, 0.1]) {
            assert!((f64::from(*count) / 20_000.0 - p).abs() < 0.02, "{counts:?}");
        }
    }
}
