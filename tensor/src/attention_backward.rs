//! The gradient of attention, with the probabilities computed again: a strip of them at a time, never an S×S matrix.
//!
//! Contract. As the forward pass, f32 throughout. Each sequence is whole: its keys and values stand in the same rows as
//! its queries. A task takes some query blocks of one head of keys and keeps its own sums for keys and values, which are
//! added in the order of the tasks; how many tasks there are follows from the shapes alone, so results do not depend on the
//! number of threads.
//!
//! Legend: T queries, S keys, N query heads, K key heads, G = N/K, H head size, R rows of a strip (positions times G).

use crate::{
    DType, Isa, KeyValues, Mask, Segment, Tensor, attention,
    isa::multiversion,
    lane::Lane,
    math::exp_slice,
    parallel::{Shared, for_each_task},
};
use std::ops::Range;

/// One sequence of a batch that is read at once: rows of q, k and v, and which of them see each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its rows.
    pub rows: Range<usize>,
    /// Positions count from the first of the rows.
    pub mask: Mask,
}

/// Rows of a strip.
const STRIP: usize = 64;
/// Tasks of one sequence, roughly: each has sums of its own for keys and values.
const TASKS: usize = 8;
/// Widths are padded to this many numbers, the lanes of the widest instruction set.
const LANES: usize = 16;

/// How scores are made, and what is multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRule {
    /// Multiplies every score.
    pub scale: f32,
    /// Soft cap on the scores.
    pub softcap: Option<f32>,
    /// What keys and values are kept as, as in [`KeyValues::new`].
    pub dtype: DType,
}

/// [`attention`] of whole sequences: `q_tnh` `[T, N, H]`, `k_tkh` and `v_tkh` `[T, K, H]`, all f32 → `[T, N·H]`.
pub fn attention_whole(
    q_tnh: &Tensor,
    k_tkh: &Tensor,
    v_tkh: &Tensor,
    spans: &[Span],
    rule: AttentionRule,
) -> Tensor {
    let (heads, h) = (k_tkh.shape()[1], k_tkh.shape()[2]);
    let all: Vec<KeyValues> = spans
        .iter()
        .map(|span| {
            let rows = |x: &Tensor| x.rows(span.rows.start, span.rows.end);
            let mut key_values = KeyValues::new(heads, h, rule.dtype);
            key_values.append(&rows(k_tkh), &rows(v_tkh));
            key_values
        })
        .collect();
    let segments: Vec<Segment<'_>> = spans
        .iter()
        .zip(&all)
        .map(|(span, key_values)| Segment {
            queries: span.rows.clone(),
            first_position: 0,
            key_values,
            mask: span.mask,
        })
        .collect();
    attention(q_tnh, &segments, rule.scale, rule.softcap)
}

/// The gradients of [`attention_whole`] by q, k and v, given the gradient of its result, `dy` `[T, N·H]`.
pub fn attention_backward(
    q_tnh: &Tensor,
    k_tkh: &Tensor,
    v_tkh: &Tensor,
    spans: &[Span],
    rule: AttentionRule,
    dy: &Tensor,
) -> [Tensor; 3] {
    let (&[t, n, h], num_key_heads) = (q_tnh.shape(), k_tkh.shape()[1]) else {
        panic!("attention of {q_tnh:?}");
    };
    assert!(n.is_multiple_of(num_key_heads) && dy.len() == t * n * h);
    let (mut dq, mut dk, mut dv) =
        (vec![0.0; t * n * h], vec![0.0; t * num_key_heads * h], vec![0.0; t * num_key_heads * h]);
    let head = Head {
        isa: Isa::best(),
        q: q_tnh.as_f32(),
        k: k_tkh.as_f32(),
        v: v_tkh.as_f32(),
        dy: dy.as_f32(),
        group: n / num_key_heads,
        num_key_heads,
        h,
        scale: rule.scale,
        softcap: rule.softcap,
    };
    let positions_per_strip = (STRIP / head.group).max(1);
    let tasks_per_head = TASKS.div_ceil(num_key_heads);
    for span in spans {
        let positions = span.rows.len();
        let chunk = positions.div_ceil(tasks_per_head).next_multiple_of(positions_per_strip).max(1);
        let chunks = positions.div_ceil(chunk);
        let width = h.next_multiple_of(LANES);
        // [key head][chunk] → the sums of a task for keys and values.
        let size = 2 * positions * width;
        let mut sums = vec![0.0; num_key_heads * chunks * size];
        let (dq, out) = (Shared::new(&mut dq), Shared::new(&mut sums));
        for_each_task(num_key_heads * chunks, |task| {
            let (key_head, first) = (task / chunks, task % chunks * chunk);
            // SAFETY: every task has sums of its own.
            let (dk, dv) = unsafe { out.slice(task * size, size) }.split_at_mut(size / 2);
            head.run(key_head, span, first..positions.min(first + chunk), positions_per_strip, &dq, dk, dv);
        });
        // The sums of a head's tasks, in their order.
        let (to_k, to_v) = (Shared::new(&mut dk), Shared::new(&mut dv));
        for_each_task(positions, |position| {
            for key_head in 0..num_key_heads {
                let at = ((span.rows.start + position) * num_key_heads + key_head) * h;
                for (to, half) in [(&to_k, 0), (&to_v, size / 2)] {
                    // SAFETY: every row of every head is written by one task.
                    let to = unsafe { to.slice(at, h) };
                    for chunk in 0..chunks {
                        let from = (key_head * chunks + chunk) * size + half + position * width;
                        to.iter_mut().zip(&sums[from..from + h]).for_each(|(to, sum)| *to += sum);
                    }
                }
            }
        });
    }
    [
        Tensor::from_f32(dq, q_tnh.shape()),
        Tensor::from_f32(dk, k_tkh.shape()),
        Tensor::from_f32(dv, v_tkh.shape()),
    ]
}

/// What all tasks share.
struct Head<'a> {
    isa: Isa,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    dy: &'a [f32],
    group: usize,
    num_key_heads: usize,
    h: usize,
    scale: f32,
    softcap: Option<f32>,
}

impl Head<'_> {
    /// The queries at `positions` of `span` against one head of keys: their gradient into `dq`, their share of that of
    /// keys and values into `dk` and `dv` `[S, width]`.
    #[allow(clippy::too_many_arguments, reason = "one task: where it reads and where it writes")]
    fn run(
        &self,
        key_head: usize,
        span: &Span,
        positions: Range<usize>,
        positions_per_strip: usize,
        dq: &Shared<'_, f32>,
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (h, group, isa) = (self.h, self.group, self.isa);
        let (n, len) = (group * self.num_key_heads, span.rows.len());
        let width = h.next_multiple_of(LANES);
        let gather = |from: &[f32]| {
            let mut to = vec![0.0; len * width];
            for (row, to) in span.rows.clone().zip(to.chunks_mut(width)) {
                to[..h].copy_from_slice(&from[(row * self.num_key_heads + key_head) * h..][..h]);
            }
            to
        };
        let (keys, values) = (gather(self.k), gather(self.v));
        for first in positions.clone().step_by(positions_per_strip) {
            let strip = first..positions.end.min(first + positions_per_strip);
            let rows = strip.len() * group;
            let padded = rows.next_multiple_of(LANES);
            let place = |r: usize| {
                ((span.rows.start + strip.start + r / group) * n + key_head * group + r % group) * h
            };
            let visible: Vec<Range<usize>> = strip.clone().map(|p| span.mask.visible(p, len)).collect();
            let from = visible.iter().map(|v| v.start).min().unwrap_or(0);
            let to = visible.iter().map(|v| v.end).max().unwrap_or(0);
            let seen = to - from;
            // Queries (scaled) and dy, as rows and transposed.
            let mut q_rh = vec![0.0; rows * width];
            let mut dy_rh = vec![0.0; rows * width];
            let (mut q_hr, mut dy_hr) = (vec![0.0; h * padded], vec![0.0; h * padded]);
            for r in 0..rows {
                let at = place(r);
                for i in 0..h {
                    let (q, dy) = (self.q[at + i] * self.scale, self.dy[at + i]);
                    (q_rh[r * width + i], dy_rh[r * width + i]) = (q, dy);
                    (q_hr[i * padded + r], dy_hr[i * padded + r]) = (q, dy);
                }
            }
            // scores[j, r] = k_j·q_r, then probabilities; slopes[j, r] = v_j·dy_r, then the gradient of the scores.
            let (keys, values) = (&keys[from * width..to * width], &values[from * width..to * width]);
            let mut scores = vec![0.0; seen * padded];
            let mut slopes = vec![0.0; seen * padded];
            add_product(isa, [seen, h, padded], keys, [width, 1], &q_hr, &mut scores);
            add_product(isa, [seen, h, padded], values, [width, 1], &dy_hr, &mut slopes);
            let caps = self.softcap.map(|cap| {
                crate::math::softcap_slice(isa, &mut scores, cap);
                scores.iter().map(|s| 1.0 - (s / cap) * (s / cap)).collect::<Vec<f32>>()
            });
            for (i, visible) in visible.iter().enumerate() {
                for j in (from..visible.start).chain(visible.end..to) {
                    scores[(j - from) * padded + i * group..][..group].fill(f32::NEG_INFINITY);
                }
            }
            let mut maximum = vec![f32::MIN; padded];
            for row in scores.chunks(padded) {
                maximum.iter_mut().zip(row).for_each(|(m, s)| *m = m.max(*s));
            }
            for row in scores.chunks_mut(padded) {
                row.iter_mut().zip(&maximum).for_each(|(s, m)| *s -= m);
            }
            exp_slice(isa, &mut scores);
            let mut inverse = vec![0.0; padded];
            for row in scores.chunks(padded) {
                inverse.iter_mut().zip(row).for_each(|(sum, p)| *sum += p);
            }
            inverse.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
            // Σ_j p_j · slope_j, of these very probabilities: what is added to all scores of a query alike then has no gradient.
            let mut along = vec![0.0; padded];
            for (scores, slopes) in scores.chunks_mut(padded).zip(slopes.chunks(padded)) {
                for r in 0..padded {
                    scores[r] *= inverse[r];
                    along[r] += scores[r] * slopes[r];
                }
            }
            for (scores, slopes) in scores.chunks(padded).zip(slopes.chunks_mut(padded)) {
                for r in 0..padded {
                    slopes[r] = scores[r] * (slopes[r] - along[r]);
                }
            }
            if let Some(caps) = &caps {
                slopes.iter_mut().zip(caps).for_each(|(slope, cap)| *slope *= cap);
            }
            let (dk, dv) = (&mut dk[from * width..to * width], &mut dv[from * width..to * width]);
            add_product(isa, [seen, rows, width], &scores, [padded, 1], &dy_rh, dv);
            add_product(isa, [seen, rows, width], &slopes, [padded, 1], &q_rh, dk);
            let mut dq_rh = vec![0.0; rows * width];
            add_product(isa, [rows, seen, width], &slopes, [1, padded], keys, &mut dq_rh);
            for (r, row) in dq_rh.chunks(width).enumerate() {
                // SAFETY: the heads of a group at a position are one task's.
                let dq = unsafe { dq.slice(place(r), h) };
                dq.iter_mut().zip(row).for_each(|(dq, x)| *dq = x * self.scale);
            }
        }
    }
}

/// c[m, i] += Σ_l a[m, l]·b[l, i] for `[rows, depth, width]`: element (m, l) of a stands at m · a_row + l · a_step; b and c
/// are contiguous, and the width a multiple of [`LANES`].
fn add_product(
    isa: Isa,
    shape: [usize; 3],
    a: &[f32],
    [a_row, a_step]: [usize; 2],
    b: &[f32],
    c: &mut [f32],
) {
    let [rows, depth, width] = shape;
    if rows == 0 || depth == 0 || width == 0 {
        return;
    }
    assert!(width.is_multiple_of(LANES) && b.len() >= depth * width && c.len() >= rows * width);
    assert!(a.len() > (rows - 1) * a_row + (depth - 1) * a_step);
    add_product_checked(isa, shape, a, [a_row, a_step], b, c);
}

multiversion! {
    fn add_product_checked(shape: [usize; 3], a: &[f32], a_strides: [usize; 2], b: &[f32], c: &mut [f32])
        = add_product_body
}

/// Rows of c in a register tile.
const TILE_ROWS: usize = 6;

#[inline(always)]
unsafe fn add_product_body<L: Lane>(
    [rows, depth, width]: [usize; 3],
    a: &[f32],
    [a_row, a_step]: [usize; 2],
    b: &[f32],
    c: &mut [f32],
) {
    for m in (0..rows).step_by(TILE_ROWS) {
        let tall = (rows - m).min(TILE_ROWS);
        let mut i = 0;
        while i < width {
            let vectors = ((width - i) / L::WIDTH).min(4);
            // SAFETY: `add_product` checked that rows m..m+tall of a and c and vectors i.. of b and c lie within.
            unsafe {
                let (a, b) = (a.as_ptr().add(m * a_row), b.as_ptr().add(i));
                let c = c.as_mut_ptr().add(m * width + i);
                match (tall, vectors) {
                    (TILE_ROWS, 4) => tile::<L, TILE_ROWS, 4>(depth, a, a_row, a_step, b, c, width),
                    _ => {
                        for r in 0..tall {
                            for v in 0..vectors {
                                let (a, b) = (a.add(r * a_row), b.add(v * L::WIDTH));
                                let c = c.add(r * width + v * L::WIDTH);
                                tile::<L, 1, 1>(depth, a, a_row, a_step, b, c, width);
                            }
                        }
                    }
                }
            }
            i += vectors * L::WIDTH;
        }
    }
}

/// c[M, V vectors] += a[M, depth]·b[depth, V vectors]; rows of b and c stand `width` apart.
#[inline(always)]
unsafe fn tile<L: Lane, const M: usize, const V: usize>(
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    c: *mut f32,
    width: usize,
) {
    // SAFETY: the caller gives matrices that hold the tile.
    unsafe {
        let mut sums: [[L; V]; M] =
            std::array::from_fn(|m| std::array::from_fn(|v| L::load(c.add(m * width + v * L::WIDTH))));
        for l in 0..depth {
            let bs: [L; V] = std::array::from_fn(|v| L::load(b.add(l * width + v * L::WIDTH)));
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = L::splat(*a.add(m * a_row + l * a_step));
                for (sum, b) in sums.iter_mut().zip(bs) {
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(c.add(m * width + v * L::WIDTH));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, random};

    fn check(spans: &[Span], key_heads: usize, group: usize, h: usize, softcap: Option<f32>) {
        let t = spans.iter().map(|span| span.rows.len()).sum();
        let q = random(1, &[t, key_heads * group, h]);
        let (k, v) = (random(2, &[t, key_heads, h]), random(3, &[t, key_heads, h]));
        let dy = random(4, &[t, key_heads * group * h]);
        let rule = AttentionRule { scale: 1.5 / (h as f32).sqrt(), softcap, dtype: DType::F32 };
        let f = |q: &Tensor, k: &Tensor, v: &Tensor| attention_whole(q, k, v, spans, rule);
        let [dq, dk, dv] = attention_backward(&q, &k, &v, spans, rule, &dy);
        check_gradient("q", &q, &dq, &dy, |q| f(q, &k, &v));
        check_gradient("k", &k, &dk, &dy, |k| f(&q, k, &v));
        check_gradient("v", &v, &dv, &dy, |v| f(&q, &k, v));
    }

    fn span(rows: Range<usize>, prefix_len: usize, window: Option<usize>) -> Span {
        Span { rows, mask: Mask { prefix_len, window } }
    }

    #[test]
    fn gradients_are_finite_differences() {
        check(&[span(0..21, 9, None)], 1, 4, 10, None);
        check(&[span(0..9, 4, None), span(9..26, 12, None)], 2, 2, 12, Some(1.5));
        check(&[span(0..40, 7, Some(5))], 3, 1, 17, None);
        check(&[Span { rows: 0..25, mask: Mask::FULL }], 2, 1, 8, None);
        // Several strips and tasks.
        check(&[span(0..150, 70, None)], 1, 8, 6, Some(3.0));
    }

    #[test]
    fn threads_do_not_matter() {
        let spans = [span(0..100, 30, None), span(100..300, 50, Some(64))];
        let (q, k, v) = (random(1, &[300, 4, 24]), random(2, &[300, 2, 24]), random(3, &[300, 2, 24]));
        let dy = random(4, &[300, 96]);
        let rule = AttentionRule { scale: 0.2, softcap: Some(5.0), dtype: DType::F32 };
        let run = || attention_backward(&q, &k, &v, &spans, rule, &dy);
        let all = run();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (again, all) in pool.install(run).iter().zip(&all) {
                assert_eq!(again.as_f32(), all.as_f32());
            }
        }
    }
}
