//! Rotary position embedding, split halves: element i is turned with element i + H/2.
//!
//! Contract. Angles are computed in f64 and their sines and cosines rounded once to f32, so that a position beyond 4096
//! is as exact as the first one (in f32 the angle itself would be off by 2e-4 there).

use crate::{Isa, Tensor, isa::multiversion, lane::Lane, parallel::filled};
use rayon::prelude::*;

/// Turns every head of `x_tnh` `[t, heads, H]` by its row's position (big_vision `_apply_rope`): the angle of pair i is
/// position · base^(-2i/H). H is even.
pub fn rope(x_tnh: &Tensor, positions_t: &[usize], base: f32) -> Tensor {
    turn(x_tnh, positions_t, base, 1.0)
}

/// The gradient of [`rope`]: every head turned back.
pub fn rope_backward(dy_tnh: &Tensor, positions_t: &[usize], base: f32) -> Tensor {
    turn(dy_tnh, positions_t, base, -1.0)
}

/// Turns by each row's position times `direction`.
fn turn(x_tnh: &Tensor, positions_t: &[usize], base: f32, direction: f64) -> Tensor {
    let &[t, heads, h] = x_tnh.shape() else { panic!("rope of {x_tnh:?}") };
    assert!(t == positions_t.len() && h % 2 == 0, "rope of {x_tnh:?}");
    let half = h / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| f64::from(base).powf(-2.0 * i as f64 / h as f64)).collect();
    let turns_of = |position: usize, to: &mut [f32]| {
        let (sines, cosines) = to.split_at_mut(half);
        for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(&frequencies) {
            let (sin, cos) = (direction * position as f64 * frequency).sin_cos();
            (*sine, *cosine) = (sin as f32, cos as f32);
        }
    };
    // Several sequences have the same positions: each is worked out once then.
    let end = positions_t.iter().max().map_or(0, |last| last + 1);
    let mut table = vec![0.0; if end < t { end * h } else { 0 }];
    table.par_chunks_mut(h.max(1)).enumerate().for_each(|(position, to)| turns_of(position, to));
    let (x, row) = (x_tnh.as_f32(), heads * h);
    const GROUP: usize = 16;
    let y = filled(x.len(), GROUP * row, |task, y| {
        let mut own = vec![0.0; h];
        for (i, y) in y.chunks_mut(row).enumerate() {
            let i = task * GROUP + i;
            let turns = match table.get(positions_t[i] * h..(positions_t[i] + 1) * h) {
                Some(turns) => turns,
                None => {
                    turns_of(positions_t[i], &mut own);
                    &own
                }
            };
            for (x, y) in x[i * row..][..row].chunks(h).zip(y.chunks_mut(h)) {
                turn_head(Isa::best(), x, turns, y);
            }
        }
    });
    Tensor::from_f32(y, x_tnh.shape())
}

multiversion! {
    /// One head turned; first its sines, then its cosines.
    fn turn_head(x: &[f32], turns: &[f32], y: &mut [f32]) = turn_head_body
}

#[inline(always)]
unsafe fn turn_head_body<L: Lane>(x: &[f32], turns: &[f32], y: &mut [f32]) {
    let half = x.len() / 2;
    let ((x1, x2), (sines, cosines)) = (x.split_at(half), turns.split_at(half));
    let (y1, y2) = y.split_at_mut(half);
    for ((((y1, y2), x1), x2), (sin, cos)) in
        y1.iter_mut().zip(y2).zip(x1).zip(x2).zip(sines.iter().zip(cosines))
    {
        *y1 = x1 * cos - x2 * sin;
        *y2 = x2 * cos + x1 * sin;
    }
}

/// The slow, obvious [`rope`].
pub fn rope_plain(x_tnh: &Tensor, positions_t: &[usize], base: f32) -> Tensor {
    let &[_, heads, h] = x_tnh.shape() else { panic!("rope of {x_tnh:?}") };
    let x = x_tnh.as_f32();
    let y = (0..x.len()).map(|at| {
        let (row, i) = (at / (heads * h), at % h);
        let pair = i % (h / 2);
        let angle = positions_t[row] as f64 / f64::from(base).powf(2.0 * pair as f64 / h as f64);
        let (sin, cos) = angle.sin_cos();
        let (this, other) = (f64::from(x[at]), f64::from(x[if i < h / 2 { at + h / 2 } else { at - h / 2 }]));
        (if i < h / 2 { this * cos - other * sin } else { this * cos + other * sin }) as f32
    });
    Tensor::from_f32(y.collect(), x_tnh.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, check_gradient, random};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_plain_twin(t in 1usize..40, heads in 1usize..5, half in 1usize..40, first in 0usize..9000) {
            let x = random(1, &[t, heads, 2 * half]);
            let positions: Vec<usize> = (first..first + t).collect();
            assert_close(&rope(&x, &positions, 10_000.0), &rope_plain(&x, &positions, 10_000.0), 1e-6);
        }
    }

    #[test]
    fn the_gradient_is_finite_differences() {
        let (x, dy) = (random(1, &[7, 3, 10]), random(2, &[7, 3, 10]));
        let positions = [0, 1, 2, 9, 10, 11, 4000];
        let dx = rope_backward(&dy, &positions, 1e4);
        check_gradient("x", &x, &dx, &dy, |x| rope(x, &positions, 1e4));
    }

    /// Turning q and k by one more position each leaves their product: only distances matter.
    #[test]
    fn a_constant_shift_keeps_products() {
        let (q, k) = (random(1, &[1, 1, 64]), random(2, &[1, 1, 64]));
        let product = |shift: usize| -> f32 {
            let (q, k) = (rope(&q, &[40 + shift], 1e4), rope(&k, &[7 + shift], 1e4));
            q.as_f32().iter().zip(k.as_f32()).map(|(q, k)| q * k).sum()
        };
        assert!((product(0) - product(1000)).abs() < 1e-5);
        assert!(
            (product(0) - {
                let (q, k) = (rope(&q, &[41], 1e4), rope(&k, &[7], 1e4));
                q.as_f32().iter().zip(k.as_f32()).map(|(q, k)| q * k).sum::<f32>()
            })
            .abs()
                > 1e-3
        );
    }
}
