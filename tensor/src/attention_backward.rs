//! Attention of whole sequences and its gradient, with the probabilities computed again: a strip of them at a time, never an
//! S×S matrix.
//!
//! Contract. What is multiplied is rounded as in the forward pass: beside bf16 keys and values, both factors of all five
//! products to bf16. Sums and everything else are f32. Each sequence is whole: its keys and values stand in the same rows
//! as its queries. A task takes some query blocks of one head of keys and keeps its own sums for keys and values, which
//! are added in the order of the tasks; how many tasks there are follows from the shapes alone, so results do not depend
//! on the number of threads.
//!
//! Strips lie transposed, `[S, R]`: probabilities and slopes are then the left factors of the gradients of values and keys
//! as they lie, and softmax goes along whole vectors.
//!
//! Legend: T queries, S keys, N query heads, K key heads, G = N/K, H head size, R rows of a strip (positions times G).

use crate::{
    DType, Isa, KeyValues, Mask, Segment, Tensor, attention,
    isa::multiversion,
    lane::Lane,
    math,
    packing::Packing,
    parallel::{Shared, for_each_task},
    product::{A, B, COLUMNS},
    transpose::transpose,
};
use rayon::prelude::*;
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
/// Tasks of a batch, at least, roughly: each has sums of its own for keys and values. A sequence is one task a head of keys
/// where there are many.
const TASKS: usize = 8;
/// Units between rows of left factors beyond their own: rows a power of two apart would meet in one set of the cache.
const GAP: usize = 16;

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
        .par_iter()
        .with_max_len(1)
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
    attention_backward_on(Isa::best(), q_tnh, k_tkh, v_tkh, spans, rule, dy)
}

fn attention_backward_on(
    isa: Isa,
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
        packing: Packing::new(isa, rule.dtype),
        q: q_tnh.as_f32(),
        k: k_tkh.as_f32(),
        v: v_tkh.as_f32(),
        dy: dy.as_f32(),
        group: n / num_key_heads,
        num_key_heads,
        h,
        rule,
    };
    let positions_per_strip = (STRIP / head.group).max(1);
    let tasks_per_head = TASKS.div_ceil(num_key_heads * spans.len().max(1));
    let width = h.next_multiple_of(COLUMNS);
    // What tasks write their sums for keys and values to: (span, key head, positions), and where those begin.
    let (mut tasks, mut end) = (Vec::new(), 0);
    let mut of_span = Vec::new();
    for span in spans {
        let positions = span.rows.len();
        let chunk = positions.div_ceil(tasks_per_head).next_multiple_of(positions_per_strip).max(1);
        of_span.push((tasks.len(), positions.div_ceil(chunk)));
        for key_head in 0..num_key_heads {
            for first in (0..positions).step_by(chunk) {
                tasks.push((span, key_head, first..positions.min(first + chunk), end));
                end += 2 * positions * width;
            }
        }
    }
    let mut sums = vec![0.0; end];
    {
        let (dq, out) = (Shared::new(&mut dq), Shared::new(&mut sums));
        for_each_task(tasks.len(), |task| {
            let (span, key_head, positions, at) = &tasks[task];
            let size = 2 * span.rows.len() * width;
            // SAFETY: every task has sums of its own.
            let (dk, dv) = unsafe { out.slice(*at, size) }.split_at_mut(size / 2);
            head.run(*key_head, span, positions.clone(), positions_per_strip, &dq, dk, dv);
        });
    }
    // The sums of a head's tasks, in their order.
    let (to_k, to_v) = (Shared::new(&mut dk), Shared::new(&mut dv));
    let rows: Vec<(usize, usize)> =
        spans.iter().enumerate().flat_map(|(s, span)| (0..span.rows.len()).map(move |i| (s, i))).collect();
    const GROUP: usize = 32;
    for_each_task(rows.len().div_ceil(GROUP), |group| {
        for &(s, position) in rows.iter().skip(group * GROUP).take(GROUP) {
            let (first_task, chunks) = of_span[s];
            let positions = spans[s].rows.len();
            for key_head in 0..num_key_heads {
                let at = ((spans[s].rows.start + position) * num_key_heads + key_head) * h;
                for (to, half) in [(&to_k, 0), (&to_v, positions * width)] {
                    // SAFETY: every row of every head is written by one task.
                    let to = unsafe { to.slice(at, h) };
                    for chunk in 0..chunks {
                        let from = tasks[first_task + key_head * chunks + chunk].3 + half + position * width;
                        to.iter_mut().zip(&sums[from..from + h]).for_each(|(to, sum)| *to += sum);
                    }
                }
            }
        }
    });
    [
        Tensor::from_f32(dq, q_tnh.shape()),
        Tensor::from_f32(dk, k_tkh.shape()),
        Tensor::from_f32(dv, v_tkh.shape()),
    ]
}

/// What all tasks share.
struct Head<'a> {
    packing: Packing,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    dy: &'a [f32],
    group: usize,
    num_key_heads: usize,
    h: usize,
    rule: AttentionRule,
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
        let (h, group, packing) = (self.h, self.group, self.packing);
        let (n, len) = (group * self.num_key_heads, span.rows.len());
        let width = h.next_multiple_of(COLUMNS);
        let numbers = packing.units().len();
        let row = |j: usize| ((span.rows.start + j) * self.num_key_heads + key_head) * h;
        // Left factors: keys and values [S, H], keys transposed [H, S].
        let key_row = packing.depth(h) + GAP;
        let (mut keys, mut values) = (vec![0; len * key_row], vec![0; len * key_row]);
        for j in 0..len {
            packing.row(&self.k[row(j)..][..h], &mut keys[j * key_row..][..key_row]);
            packing.row(&self.v[row(j)..][..h], &mut values[j * key_row..][..key_row]);
        }
        let hs_row = packing.depth(len) + GAP;
        let mut keys_hs = vec![0; h * hs_row];
        packing.columns_as_rows(|j| &self.k[row(j)..][..h], (len, h), &mut keys_hs, hs_row);
        for first in positions.clone().step_by(positions_per_strip) {
            let strip = first..positions.end.min(first + positions_per_strip);
            let rows = strip.len() * group;
            let padded = rows.next_multiple_of(COLUMNS);
            let place = |r: usize| {
                ((span.rows.start + strip.start + r / group) * n + key_head * group + r % group) * h
            };
            let visible: Vec<Range<usize>> = strip.clone().map(|p| span.mask.visible(p, len)).collect();
            // Units along the keys begin at whole units.
            let from = visible.iter().map(|v| v.start).min().unwrap_or(0) / numbers * numbers;
            let to = visible.iter().map(|v| v.end).max().unwrap_or(0);
            let seen = to - from;
            // Right factors: queries and dy, [H, R] and [R, H].
            let (q, dy) = (|r: usize| &self.q[place(r)..][..h], |r: usize| &self.dy[place(r)..][..h]);
            let (mut q_hr, mut dy_hr) =
                (vec![0; packing.depth(h) * padded], vec![0; packing.depth(h) * padded]);
            packing.rows_as_columns(q, (rows, h), &mut q_hr, padded);
            packing.rows_as_columns(dy, (rows, h), &mut dy_hr, padded);
            let depth = packing.depth(rows);
            let (mut q_rh, mut dy_rh) = (vec![0; depth * width], vec![0; depth * width]);
            packing.columns(q, (rows, h), &mut q_rh, width);
            packing.columns(dy, (rows, h), &mut dy_rh, width);
            // scores[j, r] = k_j·q_r, then probabilities; slopes[j, r] = v_j·dy_r, then the gradient of k_j·q_r.
            let (mut scores, mut slopes) = (vec![0.0; seen * padded], vec![0.0; seen * padded]);
            for (a, b, c) in [(&keys, &q_hr, &mut scores), (&values, &dy_hr, &mut slopes)] {
                let a = A { bytes: bytemuck::cast_slice(&a[from * key_row..]), row: key_row * 4, unit: 4 };
                let b = B { units: b, row: padded };
                packing.multiply((seen, packing.depth(h), padded), a, b, c, padded);
            }
            let hidden = |i: usize| {
                (from..visible[i].start)
                    .chain(visible[i].end..to)
                    .map(move |j| (j - from) * padded + i * group)
            };
            let hidden: Vec<usize> = (0..strip.len()).flat_map(hidden).collect();
            softmax_gradient(packing.isa, &mut scores, &mut slopes, padded, self.rule, &hidden, group);
            // dv += p·dy and dk += slopes·q, both [S, R]·[R, H].
            let a_row = packing.depth(padded) + GAP;
            let mut left = vec![0; seen * a_row];
            for (strip, b, sums) in [(&scores, &dy_rh, &mut *dv), (&slopes, &q_rh, &mut *dk)] {
                for (from, to) in strip.chunks(padded).zip(left.chunks_mut(a_row)) {
                    packing.row(from, to);
                }
                let a = A { bytes: bytemuck::cast_slice(&left), row: a_row * 4, unit: 4 };
                let sums = &mut sums[from * width..to * width];
                packing.multiply((seen, depth, width), a, B { units: b, row: width }, sums, width);
            }
            // dqᵀ = kᵀ·slopes, [H, S]·[S, R]
            let depth = packing.depth(seen);
            let mut right = vec![0; depth * padded];
            packing.columns(|j| &slopes[j * padded..][..padded], (seen, padded), &mut right, padded);
            let mut dq_hr = vec![0.0; h * padded];
            let a = A { bytes: bytemuck::cast_slice(&keys_hs[from / numbers..]), row: hs_row * 4, unit: 4 };
            packing.multiply((h, depth, padded), a, B { units: &right, row: padded }, &mut dq_hr, padded);
            let mut dq_rh = vec![0u32; rows * h];
            transpose(packing.isa, bytemuck::cast_slice(&dq_hr), padded, &mut dq_rh, h, (h, rows));
            for (r, row) in dq_rh.chunks(h).enumerate() {
                // SAFETY: the heads of a group at a position are one task's.
                unsafe { dq.slice(place(r), h) }.copy_from_slice(bytemuck::cast_slice(row));
            }
        }
    }
}

multiversion! {
    /// Products k·q and v·dy, `[S, R]`, become probabilities and the gradient of k·q. The scores of `hidden`, and of the
    /// `group` - 1 behind each, are not seen.
    fn softmax_gradient(
        scores: &mut [f32], slopes: &mut [f32], padded: usize, rule: AttentionRule, hidden: &[usize], group: usize,
    ) = softmax_gradient_body
}

#[inline(always)]
unsafe fn softmax_gradient_body<L: Lane>(
    scores: &mut [f32],
    slopes: &mut [f32],
    padded: usize,
    rule: AttentionRule,
    hidden: &[usize],
    group: usize,
) {
    let AttentionRule { scale, softcap, .. } = rule;
    scores.iter_mut().for_each(|s| *s *= scale);
    // The gradient of a score by k·q.
    let mut caps = Vec::new();
    if let Some(cap) = softcap {
        scores.iter_mut().for_each(|s| *s = math::tanh::<L>(*s / cap) * cap);
        caps.extend(scores.iter().map(|s| 1.0 - (s / cap) * (s / cap)));
    }
    for &at in hidden {
        scores[at..at + group].fill(f32::NEG_INFINITY);
    }
    let mut maximum = vec![f32::MIN; padded];
    for row in scores.chunks(padded) {
        maximum.iter_mut().zip(row).for_each(|(m, s)| *m = if *s > *m { *s } else { *m });
    }
    let mut sum = vec![0f32; padded];
    for row in scores.chunks_mut(padded) {
        for ((s, m), sum) in row.iter_mut().zip(&maximum).zip(&mut sum) {
            *s = math::exp::<L>(*s - m);
            *sum += *s;
        }
    }
    let inverse: Vec<f32> = sum.iter().map(|sum| 1.0 / sum).collect();
    // Σ_j p_j · slope_j, of these very probabilities: what is added to all scores of a query alike then has no gradient.
    let mut along = vec![0f32; padded];
    for (scores, slopes) in scores.chunks_mut(padded).zip(slopes.chunks(padded)) {
        for (((p, slope), inverse), along) in scores.iter_mut().zip(slopes).zip(&inverse).zip(&mut along) {
            *p *= inverse;
            *along += *p * slope;
        }
    }
    for (scores, slopes) in scores.chunks(padded).zip(slopes.chunks_mut(padded)) {
        for ((p, slope), along) in scores.iter().zip(slopes).zip(&along) {
            *slope = p * (*slope - along) * scale;
        }
    }
    slopes.iter_mut().zip(&caps).for_each(|(slope, cap)| *slope *= cap);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, check_gradient, random};

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

    /// Beside bf16 the gradients are those of the rounded numbers, but for the rounding of probabilities and slopes; on every
    /// instruction set.
    #[test]
    fn gradients_beside_bf16_are_near() {
        let spans = [span(0..70, 30, None), span(70..201, 33, Some(40))];
        let round = |x: Tensor| x.cast(DType::BF16).cast(DType::F32);
        let q = round(random(1, &[201, 4, 24]));
        let (k, v) = (round(random(2, &[201, 2, 24])), round(random(3, &[201, 2, 24])));
        let dy = round(random(4, &[201, 96]));
        let rule = |dtype| AttentionRule { scale: 0.2, softcap: Some(5.0), dtype };
        let want = attention_backward(&q, &k, &v, &spans, rule(DType::F32), &dy);
        for isa in Isa::available() {
            for (dtype, near) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
                let got = attention_backward_on(isa, &q, &k, &v, &spans, rule(dtype), &dy);
                for (got, want) in got.iter().zip(&want) {
                    let largest = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
                    assert_close(got, want, near * largest);
                }
            }
        }
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
