//! Dropout whose mask is a pure function of a key and of the place of an element.
//!
//! Contract. Rows come in runs, each with its key: the mask of a run depends neither on the runs beside it, nor on the
//! number of threads, nor on what was drawn before. The backward pass draws the mask again; none is kept.

use crate::{
    Tensor, mix,
    parallel::{Shared, for_each_task},
};

/// Rows with a key of their own: an example's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyedRows {
    /// How many.
    pub len: usize,
    /// What their masks are drawn from.
    pub key: u64,
}

/// Sets each element of `x_td` to zero with probability `rate` and divides the others by 1 - `rate`. The runs cover all
/// rows; `site` tells the places of a pass apart. The function is linear and its own gradient: `dropout(dy, …)` with the
/// same runs and site.
pub fn dropout(x_td: &Tensor, rate: f32, runs: &[KeyedRows], site: u64) -> Tensor {
    let d = x_td.shape()[1..].iter().product::<usize>();
    assert_eq!(runs.iter().map(|run| run.len).sum::<usize>(), x_td.shape()[0], "rows of all runs");
    assert!((0.0..1.0).contains(&rate), "rate {rate}");
    let x = x_td.as_f32();
    let mut y = vec![0.0; x.len()];
    let out = Shared::new(&mut y);
    // An element is dropped where its 24 random bits are below this.
    let threshold = (f64::from(rate) * f64::from(1 << 24)) as u64;
    let scale = 1.0 / (1.0 - rate);
    let mut rows = Vec::with_capacity(x_td.shape()[0]);
    for run in runs {
        let key = mix(run.key ^ mix(site));
        rows.extend((0..run.len).map(|row| (key, row)));
    }
    for_each_task(rows.len(), |i| {
        let (key, row) = rows[i];
        // SAFETY: every row is written by one task.
        let y = unsafe { out.slice(i * d, d) };
        for (j, (y, x)) in y.iter_mut().zip(&x[i * d..(i + 1) * d]).enumerate() {
            let bits = mix(key ^ mix((row * d + j) as u64)) >> 40;
            *y = if bits < threshold { 0.0 } else { x * scale };
        }
    });
    Tensor::from_f32(y, x_td.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, random};

    #[test]
    fn the_gradient_is_finite_differences() {
        let (x, dy) = (random(1, &[9, 31]), random(2, &[9, 31]));
        let runs = [KeyedRows { len: 4, key: 7 }, KeyedRows { len: 5, key: 8 }];
        check_gradient("x", &x, &dropout(&dy, 0.3, &runs, 5), &dy, |x| dropout(x, 0.3, &runs, 5));
    }

    #[test]
    fn masks_have_the_rate_and_follow_the_key_alone() {
        let ones = Tensor::from_f32(vec![1.0; 400 * 100], &[400, 100]);
        let run = |len, key| KeyedRows { len, key };
        let y = dropout(&ones, 0.25, &[run(150, 1), run(250, 2)], 9);
        let kept = y.as_f32().iter().filter(|&&y| y > 0.0).count() as f64 / y.len() as f64;
        assert!((kept - 0.75).abs() < 0.01, "{kept}");
        assert!(y.as_f32().iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
        // The second run alone, split at no matter which row of a batch.
        let alone = dropout(&ones.rows(0, 250), 0.25, &[run(250, 2)], 9);
        assert_eq!(alone.as_f32(), y.rows(150, 400).as_f32());
        assert_ne!(alone.as_f32(), dropout(&ones.rows(0, 250), 0.25, &[run(250, 3)], 9).as_f32());
        assert_ne!(alone.as_f32(), dropout(&ones.rows(0, 250), 0.25, &[run(250, 2)], 8).as_f32());
        assert_eq!(dropout(&ones, 0.0, &[run(400, 5)], 9).as_f32(), ones.as_f32());
    }
}
