//! Several data sets as one endless row of draws. What draw `n` is follows from the seed and `n` alone: it can be asked
//! for in any order, by any thread, and after a restart.
//!
//! - Draws come in blocks. In each, every data set has its part by weight, exactly, in a random order.
//! - A data set's own draws go through all its examples once an epoch, in an order of that epoch.
//! - Of an example's suffixes each is taken once before any is taken again (big_vision's `choice_no_replacement`, which
//!   counts in memory instead and forgets when it is restarted).

use std::sync::{Arc, Mutex};

use super::dataset::Dataset;
use super::example::Example;
use super::random::{Purpose, below, shuffle, stream};
use crate::{Error, Result};

/// The most draws of a block. Weights are kept exactly where a block of at most so many can, else to 1 in so many.
const MAX_BLOCK: u64 = 1 << 16;
/// The most data sets of a mixture.
pub const MAX_PARTS: usize = 1024;

/// A data set's part of a mixture.
#[derive(Debug)]
pub struct Part {
    /// What it is called.
    pub name: String,
    /// Its examples.
    pub dataset: Dataset,
    /// How often it is drawn from, in proportion to the others.
    pub weight: f64,
}

/// Data sets that are drawn from by weight.
#[derive(Debug)]
pub struct Mixture {
    seed: u64,
    parts: Vec<Part>,
    /// How many draws of a block are from each part.
    counts: Vec<u64>,
    is_shuffled: bool,
    /// The blocks and orders that were asked for last: draws come nearly in a row.
    blocks: Recent<u64, Block>,
    orders: Recent<(usize, u64), Vec<u32>>,
}

/// What a draw is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draw {
    /// The number of the draw.
    pub number: u64,
    /// Which data set.
    pub part: usize,
    /// How often all of that data set has been drawn before.
    pub epoch: u64,
    /// Which of its examples.
    pub index: usize,
}

/// A block: for each draw its part, and how many draws of that part stand before it in the block.
#[derive(Debug)]
struct Block {
    draws: Vec<(u16, u32)>,
}

/// The values for the two keys that were asked for last.
#[derive(Debug)]
struct Recent<K, V>(Mutex<Vec<(K, Arc<V>)>>);

impl<K: PartialEq, V> Recent<K, V> {
    /// `kept` values of other keys stay.
    fn get(&self, key: K, kept: usize, make: impl FnOnce() -> V) -> Arc<V> {
        // Held while the value is made: other threads want the same one. What a panic left behind is whole, since a
        // value is only ever added whole.
        let mut recent = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, value)) = recent.iter().find(|(k, _)| *k == key) {
            return value.clone();
        }
        let value = Arc::new(make());
        recent.insert(0, (key, value.clone()));
        recent.truncate(kept + 1);
        value
    }
}

impl Mixture {
    /// Data sets with their weights, in random order.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: no data set, too many, or a weight that is not above 0.
    pub fn new(seed: u64, parts: Vec<Part>) -> Result<Mixture> {
        if parts.is_empty() || parts.len() > MAX_PARTS {
            return Err(Error::usage(format!("a mixture of {} data sets", parts.len()))
                .expected(format!("1 to {MAX_PARTS}")));
        }
        for part in &parts {
            if !(part.weight > 0.0 && part.weight.is_finite()) {
                return Err(Error::usage(format!("the weight of {} is {}", part.name, part.weight))
                    .expected("a number above 0"));
            }
            if part.dataset.is_empty() {
                return Err(Error::input(format!("the data set {} has no example", part.name)));
            }
        }
        let counts = counts(&parts.iter().map(|part| part.weight).collect::<Vec<_>>())?;
        Ok(Mixture {
            seed,
            parts,
            counts,
            is_shuffled: true,
            blocks: Recent(Mutex::default()),
            orders: Recent(Mutex::default()),
        })
    }

    /// One data set from its first example to its last, again and again: draw `n` is example `n` modulo its size.
    ///
    /// # Errors
    /// Those of [`Mixture::new`].
    pub fn in_order(name: &str, dataset: Dataset) -> Result<Mixture> {
        let part = Part { name: name.to_owned(), dataset, weight: 1.0 };
        Ok(Mixture { is_shuffled: false, ..Mixture::new(0, vec![part])? })
    }

    /// Its data sets.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The number of examples of all data sets together: an epoch of a mixture by size.
    pub fn num_examples(&self) -> u64 {
        self.parts.iter().map(|part| part.dataset.len() as u64).sum()
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// What draw `number` is.
    pub fn draw(&self, number: u64) -> Draw {
        let size: u64 = self.counts.iter().sum();
        let (block, at) = (number / size, (number % size) as usize);
        let (part, before) = match self.counts.len() {
            1 => (0, 0),
            _ => {
                let (part, before) = self.blocks.get(block, 1, || self.block(block)).draws[at];
                (usize::from(part), u64::from(before))
            }
        };
        let nth = block * self.counts[part] + before;
        let len = self.parts[part].dataset.len();
        let (epoch, at) = (nth / len as u64, (nth % len as u64) as usize);
        let index = match self.is_shuffled {
            true => self.orders.get((part, epoch), self.parts.len(), || self.order(part, epoch))[at] as usize,
            false => at,
        };
        Draw { number, part, epoch, index }
    }

    fn block(&self, number: u64) -> Block {
        let mut parts: Vec<u16> = Vec::new();
        for (part, &count) in self.counts.iter().enumerate() {
            parts.extend(std::iter::repeat_n(part as u16, count as usize));
        }
        shuffle(&mut stream(self.seed, Purpose::Mixture, 0, 0, number), &mut parts);
        let mut before = vec![0; self.counts.len()];
        let draws = parts.into_iter().map(|part| {
            let nth = before[usize::from(part)];
            before[usize::from(part)] += 1;
            (part, nth)
        });
        Block { draws: draws.collect() }
    }

    fn order(&self, part: usize, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.parts[part].dataset.len() as u32).collect();
        shuffle(&mut stream(self.seed, Purpose::Order, part, epoch, 0), &mut order);
        order
    }

    /// The example of a draw, and which of its suffixes is taken.
    ///
    /// # Errors
    /// Those of [`Dataset::example`].
    pub fn example(&self, draw: Draw) -> Result<(Example, usize)> {
        let example = self.parts[draw.part].dataset.example(draw.index)?;
        let taken = self.suffix(draw, example.suffixes.len());
        Ok((example, taken))
    }

    /// Which of `count` suffixes a draw takes.
    fn suffix(&self, draw: Draw, count: usize) -> usize {
        if count == 1 || !self.is_shuffled {
            return 0;
        }
        let (round, at) = (draw.epoch / count as u64, (draw.epoch % count as u64) as usize);
        let mut rng = stream(self.seed, Purpose::Suffix, draw.part, round, draw.index as u64);
        // The first `at + 1` steps of a shuffle from the front decide.
        let mut order: Vec<usize> = (0..count).collect();
        for i in 0..=at {
            let other = i + below(&mut rng, (count - i) as u64) as usize;
            order.swap(i, other);
        }
        order[at]
    }
}

/// How many draws of a block are from each part: the smallest block in which all weights come out even, or else the
/// largest one with the nearest whole numbers, at least 1 each.
fn counts(weights: &[f64]) -> Result<Vec<u64>> {
    let sum: f64 = weights.iter().sum();
    if !sum.is_finite() {
        return Err(Error::usage("the weights are too large").expected("a finite sum"));
    }
    let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
    let exact = |size: u64| -> Option<Vec<u64>> {
        let counts: Vec<f64> = shares.iter().map(|share| share * size as f64).collect();
        // Weights are decimals of recipes: sums of their roundings are far below one part in a billion.
        let is_even = counts.iter().all(|c| c.round() >= 1.0 && (c - c.round()).abs() < 1e-9 * size as f64);
        is_even.then(|| counts.iter().map(|c| c.round() as u64).collect())
    };
    if let Some(counts) = (1..=MAX_BLOCK).find_map(exact) {
        return Ok(counts);
    }
    // Largest remainders: whole parts first, then one more where most is left.
    let ideal: Vec<f64> = shares.iter().map(|share| share * MAX_BLOCK as f64).collect();
    let mut counts: Vec<u64> = ideal.iter().map(|x| (x.floor() as u64).max(1)).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|&a, &b| (ideal[b] - ideal[b].floor()).total_cmp(&(ideal[a] - ideal[a].floor())));
    let missing = MAX_BLOCK.saturating_sub(counts.iter().sum());
    for &part in order.iter().cycle().take(missing as usize) {
        counts[part] += 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_come_out_even_where_they_can() {
        let check = |weights: &[f64], want: &[u64]| assert_eq!(counts(weights).unwrap(), want, "{weights:?}");
        check(&[1.0], &[1]);
        check(&[0.7, 0.2, 0.1], &[7, 2, 1]);
        check(&[1.0, 1.0, 1.0], &[1, 1, 1]);
        check(&[0.333, 0.667], &[333, 667]);
        // ChartQA's two sets, by size.
        check(&[7398.0, 20901.0], &[2466, 6967]);
        check(&[1e-9, 1.0], &[1, 65535]);
        check(&[1e300, 1e300], &[1, 1]);
        let counted = counts(&[std::f64::consts::PI, 1.0, 1e-4]).unwrap();
        let total: u64 = counted.iter().sum();
        let share = |i: usize| counted[i] as f64 / total as f64;
        let sum = std::f64::consts::PI + 1.0 + 1e-4;
        assert!((share(0) - std::f64::consts::PI / sum).abs() < 1.0 / 65536.0, "{counted:?}");
        assert!((share(2) - 1e-4 / sum).abs() < 1.0 / 65536.0, "{counted:?}");
        assert!(counts(&[f64::MAX, f64::MAX]).is_err());
    }
}
