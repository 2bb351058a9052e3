//! Attention with grouped heads, a soft cap, a window and the prefix rule; never an S×S matrix.
//!
//! Contract. Queries are f32; keys and values are a [`KeyValues`]. Where those are bf16, queries and probabilities are rounded
//! to bf16 for the products, as the reference does in bf16; sums, softmax and its running maximum are f32. A segment is one
//! sequence: its queries see its own keys alone. Keys are taken in panels of 64 with a running maximum and sum. A query's
//! result does not depend on the number of threads.
//!
//! The mask is a rule, not a matrix ([`Mask`]): query and key positions decide.
//!
//! Legend: T queries, S keys, N query heads, K key heads, G = N/K, H head size.

use crate::{
    KeyValues, Tensor, bf16,
    isa::multiversion,
    key_values::PANEL,
    lane::Lane,
    math,
    narrow::narrow,
    parallel::{Shared, for_each_task},
    product::{A, B, Units, multiply_bf16, multiply_f32},
};
use std::ops::Range;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Positions before this see each other, whatever their order (image, prefix); later ones are causal.
    pub prefix_len: usize,
    /// A query at or beyond the prefix sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
}

impl Mask {
    /// Every position sees every other.
    pub const FULL: Mask = Mask { prefix_len: usize::MAX, window: None };

    /// The keys that the query at `position` sees, of `len` keys from position 0 on.
    ///
    /// Inside the prefix a window changes nothing (transformers joins the window with the prefix block by "or").
    pub fn visible(&self, position: usize, len: usize) -> Range<usize> {
        if position < self.prefix_len {
            return 0..self.prefix_len.max(position + 1).min(len);
        }
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        first..(position + 1).min(len)
    }
}

/// One sequence's share of the queries.
#[derive(Debug, Clone)]
pub struct Segment<'a> {
    /// Its rows of `q_tnh`.
    pub queries: Range<usize>,
    /// Position of its first query; its keys stand at positions 0, 1, ….
    pub first_position: usize,
    /// Its keys and values.
    pub key_values: &'a KeyValues,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// Query rows in a task, roughly: positions times heads of a group.
const QUERY_ROWS: usize = 96;

/// softmax(cap(q·kᵀ · scale))·v for every segment. `q_tnh` f32 `[T, N, H]` → f32 `[T, N·H]`; the segments' queries are
/// disjoint and cover T. N is a multiple of the key heads.
pub fn attention(q_tnh: &Tensor, segments: &[Segment<'_>], scale: f32, softcap: Option<f32>) -> Tensor {
    let &[t, n, h] = q_tnh.shape() else { panic!("attention of {q_tnh:?}") };
    let mut tasks = Vec::new();
    for segment in segments {
        let heads = segment.key_values.heads();
        assert!(n.is_multiple_of(heads), "{n} query heads on {heads} key heads");
        assert!(segment.queries.end <= t);
        let positions = (QUERY_ROWS / (n / heads)).max(1);
        for first in segment.queries.clone().step_by(positions) {
            let queries = first..segment.queries.end.min(first + positions);
            tasks.extend((0..heads).map(|head| (segment, queries.clone(), head)));
        }
    }
    let mut y = vec![0.0; t * n * h];
    let out = Shared::new(&mut y);
    for_each_task(tasks.len(), |task| {
        let (segment, queries, head) = &tasks[task];
        let group = n / segment.key_values.heads();
        let block = QueryBlock { group, n, h, head: *head, scale, softcap };
        let result = block.run(q_tnh.as_f32(), segment, queries.clone());
        for (i, row) in result.chunks(segment.key_values.width()).enumerate() {
            let (query, g) = (queries.start + i / group, i % group);
            // SAFETY: each task writes the heads of its own group of its own queries.
            unsafe { out.slice((query * n + head * group + g) * h, h) }.copy_from_slice(&row[..h]);
        }
    });
    Tensor::from_f32(y, &[t, n * h])
}

/// Some queries of one segment and the query heads that share one key head.
struct QueryBlock {
    group: usize,
    n: usize,
    h: usize,
    head: usize,
    scale: f32,
    softcap: Option<f32>,
}

impl QueryBlock {
    /// → `[queries·group, width]`, query by query, head by head.
    fn run(&self, q: &[f32], segment: &Segment<'_>, queries: Range<usize>) -> Vec<f32> {
        let kv = segment.key_values;
        let (isa, h, group) = (kv.isa(), self.h, self.group);
        let (depth, width) = (kv.depth(), kv.width());
        let rows = queries.len() * group;
        // Queries as units, [rows, depth].
        let mut units = vec![0u32; rows * depth];
        for (r, units) in units.chunks_mut(depth).enumerate() {
            let (query, g) = (queries.start + r / group, r % group);
            let from = &q[(query * self.n + self.head * group + g) * h..][..h];
            match kv.units() {
                Units::Bf16 => narrow(isa, from, &mut bytemuck::cast_slice_mut::<u32, bf16>(units)[..h]),
                _ => bytemuck::cast_slice_mut(units).copy_from_slice(from),
            }
        }
        let visible: Vec<Range<usize>> = queries
            .clone()
            .map(|query| {
                segment.mask.visible(segment.first_position + query - segment.queries.start, kv.len())
            })
            .collect();
        let first = visible.iter().map(|v| v.start).min().unwrap_or(0) / PANEL;
        let last = visible.iter().map(|v| v.end).max().unwrap_or(0).div_ceil(PANEL);

        let mut scores = vec![0.0; rows * PANEL];
        let probability_units = PANEL / kv.units().len();
        let mut probabilities = vec![0u32; rows * probability_units];
        // Finite, so that a panel in which a row sees nothing leaves it as it was (e^(-inf + 1e30) = 0).
        let mut running: Vec<Running> = vec![Running { maximum: -1e30, sum: 0.0, shrink: 1.0 }; rows];
        let mut y = vec![0.0; rows * width];
        for p in first..last {
            let a = A { bytes: bytemuck::cast_slice(&units), row: depth * 4, unit: 4 };
            let keys = B { units: kv.keys(p, self.head), row: PANEL };
            scores.fill(0.0);
            match kv.units() {
                Units::Bf16 => multiply_bf16(isa, (rows, depth, PANEL), a, keys, &mut scores, PANEL),
                _ => multiply_f32(isa, (rows, depth, PANEL), a, keys, &mut scores, PANEL),
            }
            for (i, scores) in scores.chunks_mut(group * PANEL).enumerate() {
                let start = p * PANEL;
                let clip = |at: usize| at.clamp(start, start + PANEL) - start;
                let seen = clip(visible[i].start)..clip(visible[i].end);
                let running = &mut running[i * group..(i + 1) * group];
                softmax_rows(isa, scores, seen, self.scale, self.softcap, running);
            }
            for ((y, scores), (to, running)) in y
                .chunks_mut(width)
                .zip(scores.chunks(PANEL))
                .zip(probabilities.chunks_mut(probability_units).zip(&running))
            {
                match kv.units() {
                    Units::Bf16 => narrow(isa, scores, bytemuck::cast_slice_mut(to)),
                    _ => bytemuck::cast_slice_mut(to).copy_from_slice(scores),
                }
                if running.shrink != 1.0 {
                    y.iter_mut().for_each(|y| *y *= running.shrink);
                }
            }
            // y[r] += Σ_j p[r, j]·v_j
            let a = A { bytes: bytemuck::cast_slice(&probabilities), row: probability_units * 4, unit: 4 };
            let values = B { units: kv.values(p, self.head), row: width };
            let size = (rows, probability_units, width);
            match kv.units() {
                Units::Bf16 => multiply_bf16(isa, size, a, values, &mut y, width),
                _ => multiply_f32(isa, size, a, values, &mut y, width),
            }
        }
        for (y, running) in y.chunks_mut(width).zip(&running) {
            let inverse = 1.0 / running.sum;
            y.iter_mut().for_each(|y| *y *= inverse);
        }
        y
    }
}

/// What a query row knows of the panels so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    maximum: f32,
    sum: f32,
    /// What the sums of earlier panels are multiplied with, now that the maximum has grown.
    shrink: f32,
}

multiversion! {
    /// Rows of 64 scores become e^(score - maximum), scaled and capped first; those outside `seen` become 0.
    fn softmax_rows(
        scores: &mut [f32], seen: Range<usize>, scale: f32, softcap: Option<f32>, running: &mut [Running],
    ) = softmax_rows_body
}

#[inline(always)]
unsafe fn softmax_rows_body<L: Lane>(
    scores: &mut [f32],
    seen: Range<usize>,
    scale: f32,
    softcap: Option<f32>,
    running: &mut [Running],
) {
    const STRANDS: usize = 16;
    let (rows, _) = scores.as_chunks_mut::<PANEL>();
    for (row, running) in rows.iter_mut().zip(running) {
        row.iter_mut().for_each(|s| *s *= scale);
        if let Some(cap) = softcap {
            row.iter_mut().for_each(|s| *s = math::tanh::<L>(*s / cap) * cap);
        }
        row[..seen.start].fill(f32::NEG_INFINITY);
        row[seen.end..].fill(f32::NEG_INFINITY);
        let mut top = [f32::NEG_INFINITY; STRANDS];
        for part in row.as_chunks::<STRANDS>().0 {
            for (top, s) in top.iter_mut().zip(part) {
                *top = if *s > *top { *s } else { *top };
            }
        }
        let maximum = top.iter().fold(running.maximum, |top, &s| top.max(s));
        row.iter_mut().for_each(|s| *s = math::exp::<L>(*s - maximum));
        let mut sum = [0f32; STRANDS];
        for part in row.as_chunks::<STRANDS>().0 {
            sum.iter_mut().zip(part).for_each(|(sum, p)| *sum += p);
        }
        let mut strands = STRANDS / 2;
        while strands > 0 {
            (0..strands).for_each(|i| sum[i] += sum[i + strands]);
            strands /= 2;
        }
        running.shrink = math::exp::<L>(running.maximum - maximum);
        running.sum = running.sum * running.shrink + sum[0];
        running.maximum = maximum;
    }
}

/// The slow, obvious [`attention`]: all scores of a query at once, in f64, of the keys and values as they are kept.
pub fn attention_plain(q_tnh: &Tensor, segments: &[Segment<'_>], scale: f32, softcap: Option<f32>) -> Tensor {
    let &[t, n, h] = q_tnh.shape() else { panic!("attention of {q_tnh:?}") };
    let q = q_tnh.as_f32();
    let mut y = vec![0.0; t * n * h];
    for segment in segments {
        let kv = segment.key_values;
        for query in segment.queries.clone() {
            let position = segment.first_position + query - segment.queries.start;
            for head in 0..n {
                let key_head = head / (n / kv.heads());
                let visible = segment.mask.visible(position, kv.len());
                let scores: Vec<f64> = visible
                    .clone()
                    .map(|s| {
                        let dot: f64 = (0..h)
                            .map(|i| {
                                f64::from(q[(query * n + head) * h + i]) * f64::from(kv.get(s, key_head, i).0)
                            })
                            .sum();
                        let score = dot * f64::from(scale);
                        softcap.map_or(score, |cap| f64::from(math::softcap_plain(score as f32, cap)))
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..h {
                    let values = visible.clone().map(|s| f64::from(kv.get(s, key_head, i).1));
                    let mix: f64 = values.zip(&weights).map(|(v, w)| w * v).sum();
                    y[(query * n + head) * h + i] = (mix / total) as f32;
                }
            }
        }
    }
    Tensor::from_f32(y, &[t, n * h])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType, Isa,
        testing::{assert_close, random},
    };
    use proptest::prelude::*;

    #[test]
    fn visible_is_the_prefix_rule() {
        let mask = |prefix_len, window| Mask { prefix_len, window };
        // (mask, position, keys) → what is seen
        for (m, position, len, want) in [
            (mask(3, None), 0, 6, 0..3),
            (mask(3, None), 2, 6, 0..3),
            (mask(3, None), 3, 6, 0..4),
            (mask(3, None), 5, 6, 0..6),
            (mask(0, None), 0, 6, 0..1),
            (mask(3, Some(2)), 1, 6, 0..3),
            (mask(3, Some(2)), 3, 6, 2..4),
            (mask(3, Some(2)), 5, 6, 4..6),
            (mask(3, Some(100)), 5, 6, 0..6),
            (Mask::FULL, 4, 6, 0..6),
        ] {
            assert_eq!(m.visible(position, len), want, "{m:?} at {position}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        /// Ragged sequences, some of them continued from a cache, against the plain twin.
        #[test]
        fn equals_the_plain_twin(
            lengths in prop::collection::vec((1usize..100, 0usize..80, 0usize..120), 1..4),
            key_heads in 1usize..4, group in 1usize..9, h in 1usize..80,
            window in prop::option::of(1usize..90), capped: bool, half: bool,
        ) {
            let n = key_heads * group;
            let total: usize = lengths.iter().map(|l| l.0).sum();
            let dtype = if half { DType::BF16 } else { DType::F32 };
            // Queries that bf16 holds: what is compared is the arithmetic, and of it only probabilities are rounded.
            let q = random(1, &[total, n, h]).cast(dtype).cast(DType::F32);
            for isa in Isa::available() {
                let caches: Vec<KeyValues> = lengths.iter().enumerate().map(|(i, l)| {
                    let mut kv = KeyValues::new_on(isa, key_heads, h, dtype);
                    let shape = [l.0 + l.1, key_heads * h];
                    kv.append(&random(10 + i as u64, &shape), &random(20 + i as u64, &shape));
                    kv
                }).collect();
                let mut start = 0;
                let segments: Vec<Segment<'_>> = lengths.iter().zip(&caches).map(|(l, kv)| {
                    start += l.0;
                    Segment {
                        queries: start - l.0..start,
                        first_position: l.1,
                        key_values: kv,
                        mask: Mask { prefix_len: l.2, window },
                    }
                }).collect();
                let cap = capped.then_some(2.0);
                let want = attention_plain(&q, &segments, 0.7, cap);
                // A probability rounded to bf16 is off by 2^-9 of itself, and values are below one.
                let near = if caches[0].units() == Units::Bf16 { 2e-3 } else { 5e-6 };
                assert_close(&attention(&q, &segments, 0.7, cap), &want, near);
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        for dtype in [DType::F32, DType::BF16] {
            let (q, k, v) = (random(1, &[300, 4, 24]), random(2, &[300, 48]), random(3, &[300, 48]));
            let mask = Mask { prefix_len: 100, window: None };
            let run = || {
                let mut kv = KeyValues::new(2, 24, dtype);
                kv.append(&k, &v);
                let segment = Segment { queries: 0..300, first_position: 0, key_values: &kv, mask };
                attention(&q, std::slice::from_ref(&segment), 0.2, Some(5.0))
            };
            let all = run();
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(run).as_f32(), all.as_f32());
            }
        }
    }
}
