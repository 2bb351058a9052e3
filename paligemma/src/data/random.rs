//! Random numbers as a pure function of what they are for: each (seed, purpose, data set, epoch, index) has a stream
//! of its own, so that no draw depends on the draws before it, nor on which thread makes it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream is for. The numbers are part of the order of every training run: they never change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Which data set each draw of a block is from; `index` is the block.
    Mixture = 1,
    /// The order of a data set in an epoch.
    Order = 2,
    /// The order of an example's suffixes; `epoch` counts the rounds through them.
    Suffix = 3,
    /// What happens to an example's pictures.
    Augmentation = 4,
    /// An example of the playground; `part` is the split, `epoch` counts tries.
    Playground = 5,
    /// A mask of the playground; `part` is the split.
    PlaygroundMask = 6,
    /// What does not change what an example of the playground says; `seed` is the picture's.
    PlaygroundDressing = 7,
}

/// A stream; its whole key is spelled out, so that no two are alike.
pub(super) fn stream(seed: u64, purpose: Purpose, part: usize, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&(purpose as u32).to_le_bytes());
    key[12..16].copy_from_slice(&(part as u32).to_le_bytes());
    key[16..24].copy_from_slice(&epoch.to_le_bytes());
    key[24..].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// A number below `n`, each as likely as the others. Panics when `n` is 0.
pub(super) fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    assert!(n > 0, "nothing is below 0");
    // Multiples of n fill all but the last part of the range, which is drawn again.
    let odd = (u64::MAX % n + 1) % n;
    loop {
        let draw = rng.next_u64();
        if draw <= u64::MAX - odd {
            return draw % n;
        }
    }
}

/// A number in [0, 1).
pub(super) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Brings `items` into a random order, each as likely as the others.
pub(super) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn every_part_of_the_key_makes_another_stream() {
        let first = |seed, purpose, part, epoch, index| stream(seed, purpose, part, epoch, index).next_u64();
        let draws = [
            first(0, Purpose::Order, 0, 0, 0),
            first(1, Purpose::Order, 0, 0, 0),
            first(0, Purpose::Suffix, 0, 0, 0),
            first(0, Purpose::Order, 1, 0, 0),
            first(0, Purpose::Order, 0, 1, 0),
            first(0, Purpose::Order, 0, 0, 1),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[..i].iter().all(|b| a != b), "{i}: {draws:?}");
        }
        assert_eq!(draws[0], first(0, Purpose::Order, 0, 0, 0));
    }

    #[test]
    fn all_orders_are_equally_likely() {
        let mut counts: HashMap<Vec<u8>, usize> = HashMap::new();
        for index in 0..24_000 {
            let mut items = vec![0, 1, 2, 3];
            shuffle(&mut stream(7, Purpose::Order, 0, 0, index), &mut items);
            *counts.entry(items).or_default() += 1;
        }
        // Each is expected 1000 times; its standard deviation is 31.
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|n| (850..1150).contains(n)), "{counts:?}");
    }

    #[test]
    fn draws_stay_below() {
        let mut rng = stream(1, Purpose::Order, 0, 0, 0);
        for n in [1, 2, 3, 10, 1 << 40, u64::MAX] {
            assert!((0..1000).all(|_| below(&mut rng, n) < n), "{n}");
        }
        assert!((0..1000).map(|_| unit(&mut rng)).all(|x| (0.0..1.0).contains(&x)));
    }
}
