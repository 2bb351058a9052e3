//! What is drawn by lot for one example: a stream of its own for every example of every split.

use rand_chacha::ChaCha8Rng;

use super::Split;
use crate::data::random::{Purpose, below, shuffle, stream, unit};

/// The stream of one example.
#[derive(Debug)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// Example `index` of a split; `try_number` counts the tries until one is a good example.
    pub(super) fn new(split: Split, seed: u64, index: u64, try_number: u64) -> Dice {
        Dice(stream(seed, Purpose::Playground, split as usize, try_number, index))
    }

    /// 64×64 mask number `index`.
    pub(super) fn of_mask(split: Split, seed: u64, index: u64) -> Dice {
        Dice(stream(seed, Purpose::PlaygroundMask, split as usize, 0, index))
    }

    /// What does not change what the example says: tints, grass, noise.
    pub(super) fn of_dressing(seed: u64) -> Dice {
        Dice(stream(seed, Purpose::PlaygroundDressing, 0, 0, 0))
    }

    pub(super) fn seed(&mut self) -> u64 {
        below(&mut self.0, u64::MAX)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        below(&mut self.0, n as u64) as usize
    }

    /// From `low` to `high`, both included.
    pub(super) fn in_range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * unit(&mut self.0) as f32
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        (unit(&mut self.0) as f32) < probability
    }

    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// The number of an item, as often as its weight says.
    pub(super) fn weighted(&mut self, weights: &[f32]) -> usize {
        let mut at = self.between(0.0, weights.iter().sum());
        for (i, &weight) in weights.iter().enumerate() {
            if at < weight {
                return i;
            }
            at -= weight;
        }
        // Rounding: the last that can be drawn at all.
        weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        shuffle(&mut self.0, items);
    }
}
