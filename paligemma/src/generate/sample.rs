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
    let mut best = 0;
    for (i, value) in x.iter().enumerate() {
        if *value > x[best] || x[best].is_nan() {
            best = i;
        }
    }
    best
}

/// The id at which the running probability passes `uniform`, likeliest first. Temperature, then top-k, then top-p,
/// as transformers orders them.
fn draw(logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: Option<f32>, uniform: f64) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Equal logits stand in the order of their ids, so that a draw is reproducible.
    let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if let Some(k) = top_k
        && k < order.len()
    {
        order.select_nth_unstable_by(k - 1, likelier);
        order.truncate(k);
    }
    order.sort_unstable_by(likelier);
    let scaled: Vec<f32> = order.iter().map(|&i| logits[i] / temperature).collect();
    let total = log_sum_exp(&scaled);
    let probabilities: Vec<f64> = scaled.iter().map(|&x| (f64::from(x) - total).exp()).collect();
    let mut kept = probabilities.len();
    if let Some(p) = top_p {
        let mut sum = 0.0;
        kept = probabilities
            .iter()
            .position(|q| {
                sum += q;
                sum >= f64::from(p)
            })
            .map_or(kept, |at| at + 1);
    }
    let mass: f64 = probabilities[..kept].iter().sum();
    let mut rest = uniform * mass;
    for (&id, q) in order[..kept].iter().zip(&probabilities) {
        rest -= q;
        if rest < 0.0 {
            return id;
        }
    }
    order[kept - 1]
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
