//! Attention with grouped heads, a soft cap, a window and the prefix rule; never an S×S matrix.
//!
//! Contract. Queries are f32, keys and values f32 or bf16; all arithmetic is f32. A segment is one sequence: its
//! queries see its own keys alone. Keys are taken in tiles with a running maximum and sum (softmax over tiles).
//! A query's result does not depend on the number of threads.
//!
//! The mask is a rule, not a matrix ([`Mask`]): query and key positions decide.
//!
//! Legend: T queries, S keys, N query heads, K key heads, G = N/K, H head size.

use crate::{
    DType, Isa, Tensor, bf16,
    linear::{Strided, lanes, tile_product, widen_bf16},
    math::{self, exp_slice, softcap_slice},
    parallel::{Shared, for_each_task},
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
    /// Keys `[S, K·H]`.
    pub keys: Rows<'a>,
    /// Values `[S, K·H]`.
    pub values: Rows<'a>,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// Rows of numbers, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As bf16.
    Bf16(&'a [bf16]),
}

impl<'a> Rows<'a> {
    /// The rows of an f32 or bf16 tensor.
    pub fn of(tensor: &'a Tensor) -> Self {
        match tensor.dtype() {
            DType::BF16 => Rows::Bf16(tensor.as_bf16()),
            _ => Rows::F32(tensor.as_f32()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Rows::F32(x) => x.len(),
            Rows::Bf16(x) => x.len(),
        }
    }

    fn get(&self, i: usize) -> f32 {
        match self {
            Rows::F32(x) => x[i],
            Rows::Bf16(x) => x[i].to_f32(),
        }
    }
}

/// Rows of one width that grow at the end: the keys or the values of a sequence in one layer.
#[derive(Debug, Clone)]
pub struct RowBuffer {
    width: usize,
    data: Elements,
}

#[derive(Debug, Clone)]
enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl RowBuffer {
    /// No rows yet; kept as `dtype`, f32 or bf16 (anything else is kept as f32).
    pub fn new(width: usize, dtype: DType) -> Self {
        let data = match dtype {
            DType::BF16 => Elements::Bf16(Vec::new()),
            _ => Elements::F32(Vec::new()),
        };
        RowBuffer { width, data }
    }

    /// Appends the rows of an f32 tensor.
    pub fn append(&mut self, x: &Tensor) {
        assert!(x.len().is_multiple_of(self.width), "{x:?} in rows of {}", self.width);
        match &mut self.data {
            Elements::F32(data) => data.extend_from_slice(x.as_f32()),
            Elements::Bf16(data) => data.extend(x.as_f32().iter().map(|&x| bf16::from_f32(x))),
        }
    }

    /// Drops all rows from `len` on.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.data {
            Elements::F32(data) => data.truncate(len * self.width),
            Elements::Bf16(data) => data.truncate(len * self.width),
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows().len() / self.width
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows.
    pub fn rows(&self) -> Rows<'_> {
        match &self.data {
            Elements::F32(data) => Rows::F32(data),
            Elements::Bf16(data) => Rows::Bf16(data),
        }
    }
}

/// Keys in a tile.
const KEYS: usize = 64;
/// Query rows in a task, roughly: positions times heads of a group.
const QUERY_ROWS: usize = 64;

/// softmax(cap(q·kᵀ · scale))·v for every segment. `q_tnh` f32 `[T, N, H]` → f32 `[T, N·H]`; the segments' queries are
/// disjoint and cover T. Keys and values have `num_key_heads` heads.
pub fn attention(
    q_tnh: &Tensor,
    segments: &[Segment<'_>],
    num_key_heads: usize,
    scale: f32,
    softcap: Option<f32>,
) -> Tensor {
    attention_on(Isa::best(), q_tnh, segments, num_key_heads, scale, softcap)
}

/// [`attention`] on a given instruction set.
pub fn attention_on(
    isa: Isa,
    q_tnh: &Tensor,
    segments: &[Segment<'_>],
    num_key_heads: usize,
    scale: f32,
    softcap: Option<f32>,
) -> Tensor {
    let &[t, n, h] = q_tnh.shape() else { panic!("attention of {q_tnh:?}") };
    assert!(n.is_multiple_of(num_key_heads), "{n} query heads on {num_key_heads} key heads");
    let group = n / num_key_heads;
    let positions_per_task = (QUERY_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for segment in segments {
        assert!(segment.queries.end <= t && segment.keys.len() == segment.values.len());
        for first in segment.queries.clone().step_by(positions_per_task) {
            let queries = first..segment.queries.end.min(first + positions_per_task);
            tasks.extend((0..num_key_heads).map(|head| (segment, queries.clone(), head)));
        }
    }
    let mut y = vec![0.0; t * n * h];
    let out = Shared::new(&mut y);
    for_each_task(tasks.len(), |task| {
        let (segment, queries, head) = &tasks[task];
        let block = QueryBlock { isa, group, h, num_key_heads, head: *head, scale, softcap };
        let result = block.run(q_tnh.as_f32(), segment, queries.clone());
        for (i, row) in result.chunks(block.value_width()).enumerate().take(queries.len() * group) {
            let (query, g) = (queries.start + i / group, i % group);
            // SAFETY: each task writes the heads of its own group of its own queries.
            unsafe { out.slice((query * n + head * group + g) * h, h) }.copy_from_slice(&row[..h]);
        }
    });
    Tensor::from_f32(y, &[t, n * h])
}

/// Some queries of one segment and the query heads that share one key head.
struct QueryBlock {
    isa: Isa,
    group: usize,
    h: usize,
    num_key_heads: usize,
    head: usize,
    scale: f32,
    softcap: Option<f32>,
}

impl QueryBlock {
    /// Head size rounded up to whole vectors.
    fn value_width(&self) -> usize {
        self.h.next_multiple_of(lanes(self.isa))
    }

    /// → `[queries·group, value_width]`, query by query, head by head.
    fn run(&self, q: &[f32], segment: &Segment<'_>, queries: Range<usize>) -> Vec<f32> {
        let (h, group) = (self.h, self.group);
        let n = group * self.num_key_heads;
        let len = segment.keys.len() / (self.num_key_heads * h);
        let rows = queries.len() * group;
        let width = rows.next_multiple_of(lanes(self.isa));
        // Queries transposed and scaled, [H, width]: a lane is a query row, so keys are read as they lie.
        let mut q_hr = vec![0.0; h * width];
        for r in 0..rows {
            let (query, g) = (queries.start + r / group, r % group);
            let from = &q[(query * n + self.head * group + g) * h..][..h];
            from.iter().enumerate().for_each(|(i, x)| q_hr[i * width + r] = x * self.scale);
        }
        let visible: Vec<Range<usize>> = queries
            .clone()
            .map(|query| segment.mask.visible(segment.first_position + query - segment.queries.start, len))
            .collect();
        let first = visible.iter().map(|v| v.start).min().unwrap_or(0) / KEYS * KEYS;
        let last = visible.iter().map(|v| v.end).max().unwrap_or(0);

        let value_width = self.value_width();
        let mut tile_keys = vec![0.0; KEYS * h];
        let mut tile_values = vec![0.0; KEYS * value_width];
        let mut scores = vec![0.0; KEYS * width];
        // Finite, so that a tile in which a row sees nothing leaves it as it was (e^(-inf + 1e30) = 0).
        let mut maximum = vec![-1e30f32; width];
        let mut sum = vec![0.0f32; width];
        let mut y = vec![0.0; rows * value_width];
        for s0 in (first..last).step_by(KEYS) {
            let keys = (last - s0).min(KEYS);
            for j in 0..keys {
                let at = ((s0 + j) * self.num_key_heads + self.head) * h;
                self.load(segment.keys, at, &mut tile_keys[j * h..(j + 1) * h]);
                self.load(segment.values, at, &mut tile_values[j * value_width..j * value_width + h]);
            }
            // scores[j, r] = k_j·q_r, soft-capped, with what is not visible at minus infinity.
            let scores = &mut scores[..keys * width];
            scores.fill(0.0);
            let a = Strided { data: &tile_keys, row: h, step: 1 };
            tile_product(self.isa, keys, h, a, &q_hr, width, width, scores, width);
            if let Some(cap) = self.softcap {
                softcap_slice(self.isa, scores, cap);
            }
            for (i, visible) in visible.iter().enumerate() {
                let seen = visible.start.max(s0).min(s0 + keys)..visible.end.max(s0).min(s0 + keys);
                for j in (s0..seen.start).chain(seen.end..s0 + keys) {
                    let at = (j - s0) * width + i * group;
                    scores[at..at + group].fill(f32::NEG_INFINITY);
                }
            }
            // The running maximum and sum of each row; what was summed before shrinks to the new maximum.
            let before = maximum.clone();
            for row in scores.chunks(width) {
                maximum.iter_mut().zip(row).for_each(|(m, &s)| *m = m.max(s));
            }
            for row in scores.chunks_mut(width) {
                row.iter_mut().zip(&maximum).for_each(|(s, m)| *s -= m);
            }
            exp_slice(self.isa, scores);
            let mut shrink: Vec<f32> = before.iter().zip(&maximum).map(|(b, m)| b - m).collect();
            exp_slice(self.isa, &mut shrink);
            sum.iter_mut().zip(&shrink).for_each(|(s, f)| *s *= f);
            for row in scores.chunks(width) {
                sum.iter_mut().zip(row).for_each(|(s, p)| *s += p);
            }
            for (y, &factor) in y.chunks_mut(value_width).zip(&shrink) {
                if factor != 1.0 {
                    y.iter_mut().for_each(|y| *y *= factor);
                }
            }
            // y[r] += Σ_j p[j, r]·v_j
            let a = Strided { data: scores, row: 1, step: width };
            tile_product(
                self.isa,
                rows,
                keys,
                a,
                &tile_values,
                value_width,
                value_width,
                &mut y,
                value_width,
            );
        }
        for (y, sum) in y.chunks_mut(value_width).zip(&sum) {
            let inverse = 1.0 / sum;
            y.iter_mut().for_each(|y| *y *= inverse);
        }
        y
    }

    /// One head of one row as f32.
    fn load(&self, rows: Rows<'_>, at: usize, to: &mut [f32]) {
        match rows {
            Rows::F32(x) => to.copy_from_slice(&x[at..at + self.h]),
            Rows::Bf16(x) => widen_bf16(self.isa, &x[at..at + self.h], to),
        }
    }
}

/// The slow, obvious [`attention`]: all scores of a query at once, in f64.
pub fn attention_plain(
    q_tnh: &Tensor,
    segments: &[Segment<'_>],
    num_key_heads: usize,
    scale: f32,
    softcap: Option<f32>,
) -> Tensor {
    let &[t, n, h] = q_tnh.shape() else { panic!("attention of {q_tnh:?}") };
    let q = q_tnh.as_f32();
    let mut y = vec![0.0; t * n * h];
    for segment in segments {
        let len = segment.keys.len() / (num_key_heads * h);
        for query in segment.queries.clone() {
            let position = segment.first_position + query - segment.queries.start;
            for head in 0..n {
                let key_head = head / (n / num_key_heads);
                let visible = segment.mask.visible(position, len);
                let at = |s: usize, i: usize| (s * num_key_heads + key_head) * h + i;
                let scores: Vec<f64> = visible
                    .clone()
                    .map(|s| {
                        let dot: f64 = (0..h)
                            .map(|i| {
                                f64::from(q[(query * n + head) * h + i])
                                    * f64::from(segment.keys.get(at(s, i)))
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
                    let mix: f64 = visible
                        .clone()
                        .zip(&weights)
                        .map(|(s, w)| w * f64::from(segment.values.get(at(s, i))))
                        .sum();
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
    use crate::testing::{assert_close, random};
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
            let q = random(1, &[total, n, h]);
            let dtype = if half { DType::BF16 } else { DType::F32 };
            let caches: Vec<(RowBuffer, RowBuffer)> = lengths.iter().enumerate().map(|(i, l)| {
                let mut pair = (RowBuffer::new(key_heads * h, dtype), RowBuffer::new(key_heads * h, dtype));
                pair.0.append(&random(10 + i as u64, &[l.0 + l.1, key_heads * h]));
                pair.1.append(&random(20 + i as u64, &[l.0 + l.1, key_heads * h]));
                pair
            }).collect();
            let mut start = 0;
            let segments: Vec<Segment<'_>> = lengths.iter().zip(&caches).map(|(l, (k, v))| {
                start += l.0;
                Segment {
                    queries: start - l.0..start,
                    first_position: l.1,
                    keys: k.rows(),
                    values: v.rows(),
                    mask: Mask { prefix_len: l.2, window },
                }
            }).collect();
            let cap = capped.then_some(2.0);
            let want = attention_plain(&q, &segments, key_heads, 0.7, cap);
            for isa in Isa::available() {
                assert_close(&attention_on(isa, &q, &segments, key_heads, 0.7, cap), &want, 5e-6);
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (q, k, v) = (random(1, &[300, 4, 24]), random(2, &[300, 48]), random(3, &[300, 48]));
        let mask = Mask { prefix_len: 100, window: None };
        let segment =
            Segment { queries: 0..300, first_position: 0, keys: Rows::of(&k), values: Rows::of(&v), mask };
        let run = || attention(&q, std::slice::from_ref(&segment), 2, 0.2, Some(5.0));
        let all = run();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(run).as_f32(), all.as_f32());
        }
    }
}
