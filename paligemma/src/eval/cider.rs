//! CIDEr-D, as pycocoevalcap computes it (Vedantam et al. 2015, arXiv 1411.5726).

use std::collections::{HashMap, HashSet};

use super::ptb;

/// n-grams of one to four tokens.
const MAX_N: usize = 4;
/// Of the penalty for a difference in length.
const SIGMA: f64 = 6.0;

/// Counts of a text's n-grams.
type Counts = HashMap<Vec<String>, f64>;

/// The score of each answer, of which 10 is the highest; the corpus' is their mean, and papers print it times 100. How
/// much an n-gram weighs follows from the references of all pictures together. Both are tokenised as [`ptb::tokenize`] does.
pub fn cider_d<S: AsRef<str>>(pictures: &[(S, Vec<S>)]) -> Vec<f64> {
    let count = |text: &S| counts(&ptb::tokenize(&text.as_ref().replace('\n', " ")));
    let cooked: Vec<(Counts, Vec<Counts>)> = pictures
        .iter()
        .map(|(answer, references)| (count(answer), references.iter().map(count).collect()))
        .collect();
    // In how many pictures an n-gram is in a reference.
    let mut pictures_with: HashMap<&[String], f64> = HashMap::new();
    for (_, references) in &cooked {
        let distinct: HashSet<&[String]> =
            references.iter().flat_map(HashMap::keys).map(Vec::as_slice).collect();
        for gram in distinct {
            *pictures_with.entry(gram).or_default() += 1.0;
        }
    }
    let log_pictures = (pictures.len() as f64).ln();
    let vector = |counts: &Counts| {
        Weighted::new(counts, |gram| {
            log_pictures - pictures_with.get(gram).copied().unwrap_or(0.0).max(1.0).ln()
        })
    };
    cooked
        .iter()
        .map(|(answer, references)| {
            let answer = vector(answer);
            let sum: f64 = references.iter().map(|reference| answer.similarity(&vector(reference))).sum();
            sum / references.len() as f64 * 10.0
        })
        .collect()
}

fn counts(tokens: &[String]) -> Counts {
    let mut counts = Counts::new();
    for n in 1..=MAX_N {
        for gram in tokens.windows(n) {
            *counts.entry(gram.to_vec()).or_default() += 1.0;
        }
    }
    counts
}

/// A text's n-grams with their weights.
struct Weighted {
    /// For each n.
    grams: [HashMap<Vec<String>, f64>; MAX_N],
    norms: [f64; MAX_N],
    /// The number of its bigrams, which the reference takes for its length.
    length: f64,
}

impl Weighted {
    fn new(counts: &Counts, idf: impl Fn(&[String]) -> f64) -> Weighted {
        let mut all = Weighted { grams: Default::default(), norms: [0.0; MAX_N], length: 0.0 };
        for (gram, &count) in counts {
            let n = gram.len() - 1;
            let weight = count * idf(gram);
            all.norms[n] += weight * weight;
            all.grams[n].insert(gram.clone(), weight);
            if n == 1 {
                all.length += count;
            }
        }
        all.norms = all.norms.map(f64::sqrt);
        all
    }

    fn similarity(&self, reference: &Weighted) -> f64 {
        let delta = self.length - reference.length;
        let penalty = (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp();
        let one = |n: usize| {
            let product = |(gram, &weight): (&Vec<String>, &f64)| {
                let other = reference.grams[n].get(gram).copied().unwrap_or(0.0);
                weight.min(other) * other
            };
            let sum: f64 = self.grams[n].iter().map(product).sum();
            let norms = self.norms[n] * reference.norms[n];
            (if norms == 0.0 { sum } else { sum / norms }) * penalty
        };
        (0..MAX_N).map(one).sum::<f64>() / MAX_N as f64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn scores_are_those_of_pycocoevalcap() {
        let golden: Value = serde_json::from_str(include_str!("../../../goldens/eval/cider.json")).unwrap();
        let pictures = golden["pictures"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let given: Vec<(String, Vec<String>)> = pictures
            .iter()
            .map(|one| {
                (text(&one["answer"]), one["references"].as_array().unwrap().iter().map(text).collect())
            })
            .collect();
        let got = cider_d(&given);
        for ((one, got), i) in pictures.iter().zip(&got).zip(0..) {
            let want = one["score"].as_f64().unwrap();
            assert!((got - want).abs() < 1e-9, "{i}: {got}, {want}: {one}");
        }
        let mean = got.iter().sum::<f64>() / got.len() as f64;
        assert!((mean - golden["mean"].as_f64().unwrap()).abs() < 1e-9, "{mean}");
    }

    #[test]
    fn one_picture_alone_weighs_nothing() {
        let words = |text: &str| text.to_owned();
        assert_eq!(cider_d(&[(words("a cat"), vec![words("a cat")])]), [0.0]);
        assert!(cider_d::<String>(&[]).is_empty());
    }
}
