//! Few rows of x: every row of W is read once and multiplied with each of them. This is decoding, which memory bounds: the
//! work per byte of W must stay below what reading the byte takes.
//!
//! Several rows of W are streamed at once against up to four rows of x. A sum runs over the inputs in vectors, lane by lane, in
//! one order whatever stands beside it, so that a row's result does not depend on its neighbours.
#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and column")]

use super::{
    finish_row,
    panels::{Inputs, blocks},
};
use crate::{
    DType, Isa, Tensor, Weight, bf16, f16,
    isa::multiversion,
    lane::Lane,
    narrow::{Element, narrow, quantise, round_to_bf16},
    nibbles::INT4_GROUP,
    parallel::{Shared, for_each_task},
    product::Units,
};

/// Bytes of W in a task: enough to hide the hand-over, few enough to share out evenly.
const TASK_BYTES: usize = 256 << 10;
/// Rows of W, and of x, in a register tile.
const TILE: usize = 4;
/// Inputs whose bytes and half bytes are taken at once.
const CHUNK: usize = 128;
/// Lanes of a vector of sums of bytes.
const LANES: usize = 16;

pub(super) fn product<F>(isa: Isa, x_tk: &Tensor, weights: &[&Weight], finish: &F) -> Vec<f32>
where
    F: Fn(usize, usize, &mut [&mut [f32]]) + Sync,
{
    let (t, [n, k]) = (x_tk.shape()[0], weights[0].shape());
    let mut y = vec![0.0; t * n];
    let x = Rows::new(isa, x_tk, weights[0]);
    let out = Shared::new(&mut y);
    let row_bytes = (weights[0].num_bytes() / n.max(1)).max(1);
    let block = (TASK_BYTES / row_bytes).clamp(TILE, 1024).next_multiple_of(TILE);
    for_each_task(n.div_ceil(block), |task| {
        let (n0, n1) = (task * block, n.min((task + 1) * block));
        let width = n1 - n0;
        let mut sums = vec![0.0; weights.len() * t * width];
        for (w, sums) in weights.iter().zip(sums.chunks_mut(t * width)) {
            if k > 0 {
                x.dot(isa, t, &w.rows(n0, n1), sums);
            }
        }
        for row in 0..t {
            let mut parts = sums.chunks_mut(t * width).map(|part| &mut part[row * width..(row + 1) * width]);
            finish_row(finish, n0, row, &mut parts);
            let done = &sums[row * width..(row + 1) * width];
            // SAFETY: each task writes its own columns n0..n1 of each row.
            unsafe { out.slice(row * n + n0, width) }.copy_from_slice(done);
        }
    });
    y
}

/// Rows of x as the products take them.
enum Rows {
    /// `[t, k]`, rounded to bf16 where the weights are.
    Floats(Vec<f32>),
    /// `[t, pairs_row(k)]`
    Pairs(Vec<bf16>),
    /// Bytes with scales.
    Bytes(Bytes),
    /// The same numbers as [`Bytes`] in f32: value and scale of each block, `[t, blocks]`.
    Whole(Vec<f32>, Vec<f32>),
}

/// Rows of x as signed bytes.
struct Bytes {
    /// `[t, row]`; for half bytes of weights the sixteens of a chunk are ordered as those lie.
    q: Vec<i8>,
    /// k rounded up to a whole chunk, and one chunk more: see [`pairs_row`].
    row: usize,
    /// `[t, blocks]`
    scale: Vec<f32>,
    /// What undoes the middle of unsigned weights, lane by lane: `[t, blocks or chunks, 16]`.
    start: Vec<i32>,
    /// First and end of the blocks.
    blocks: Vec<(usize, usize)>,
}

impl Rows {
    fn new(isa: Isa, x_tk: &Tensor, w: &Weight) -> Rows {
        let [_, k] = w.shape();
        let inputs = Inputs::of(w, false);
        let x = x_tk.as_f32();
        match (inputs, inputs.units(isa)) {
            (Inputs::Bf16, Units::Bf16) => {
                let row = pairs_row(k);
                let mut pairs = vec![bf16::ZERO; x_tk.shape()[0] * row];
                x.chunks(k.max(1))
                    .zip(pairs.chunks_mut(row.max(1)))
                    .for_each(|(x, p)| narrow(isa, x, &mut p[..k]));
                Rows::Pairs(pairs)
            }
            (Inputs::Bytes, Units::Bytes) => Rows::Bytes(Bytes::new(isa, x, k, w)),
            (Inputs::Bytes, _) => {
                let mut whole = vec![0.0; x.len()];
                let mut scales = Vec::new();
                for (x, whole) in x.chunks(k.max(1)).zip(whole.chunks_mut(k.max(1))) {
                    for (from, len) in blocks(k, Inputs::Bytes) {
                        let mut q = vec![0; len];
                        scales.push(quantise(isa, &x[from..from + len], &mut q));
                        whole[from..from + len].iter_mut().zip(q).for_each(|(x, q)| *x = f32::from(q));
                    }
                }
                Rows::Whole(whole, scales)
            }
            (inputs, _) => {
                let mut x = x.to_vec();
                if inputs == Inputs::Bf16 {
                    round_to_bf16(isa, &mut x);
                }
                Rows::Floats(x)
            }
        }
    }

    /// sums[i, j] = x[i]·w[j] for all rows of x and of `w_nk`.
    fn dot(&self, isa: Isa, t: usize, w_nk: &Weight, sums: &mut [f32]) {
        let [n, k] = w_nk.shape();
        assert_eq!(sums.len(), t * n);
        match (self, w_nk) {
            (Rows::Floats(x), Weight::Plain(w)) => {
                assert!(x.len() == t * k && w.len() == n * k);
                match w.dtype() {
                    DType::F32 => dot_rows_f32(isa, x, k, w.as_f32(), sums),
                    DType::BF16 => dot_rows_bf16(isa, x, k, w.as_bf16(), sums),
                    DType::F16 => dot_rows_f16(isa, x, k, w.as_f16(), sums),
                    DType::U8 => panic!("plain weights of bytes"),
                }
            }
            (Rows::Whole(x, scale), w) => {
                // Row by row: this is for machines without products of bytes.
                let (mut wide, mut part) = (vec![0.0; k], [0.0]);
                let num_blocks = blocks(k, Inputs::Bytes).count();
                for j in 0..n {
                    let row_scale = widen_whole(isa, w, j, &mut wide);
                    for i in 0..t {
                        let mut sum = 0.0;
                        for (b, (from, len)) in blocks(k, Inputs::Bytes).enumerate() {
                            let x = &x[i * k + from..][..len];
                            dot_rows_f32(isa, x, len, &wide[from..from + len], &mut part);
                            sum += part[0] * scale[i * num_blocks + b];
                        }
                        sums[i * n + j] = sum * row_scale;
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            (Rows::Pairs(x), Weight::Plain(w)) => {
                assert!(x.len() == t * pairs_row(k) && w.len() == n * k);
                // SAFETY: `Rows::new` made pairs because the machine multiplies them; lengths were just checked.
                unsafe { x86::bf16_rows(x, w.as_bf16(), (t, n, k), sums) }
            }
            #[cfg(target_arch = "x86_64")]
            (Rows::Bytes(x), Weight::Int8 { values, scale }) => {
                assert!(x.q.len() == t * x.row && values.len() == n * k && scale.len() == n);
                // SAFETY: as above.
                unsafe { x86::int8_rows(x, values.as_u8(), scale.as_f32(), (t, n, k), sums) }
            }
            #[cfg(target_arch = "x86_64")]
            (Rows::Bytes(x), Weight::Int4 { values, scale }) => {
                assert!(
                    x.q.len() == t * x.row && values.len() == n * k / 2 && scale.len() == n * k / INT4_GROUP
                );
                // SAFETY: as above.
                unsafe { x86::int4_rows(x, values.as_u8(), scale.as_bf16(), (t, n, k), sums) }
            }
            _ => unreachable!("rows of x are made for the kind of the weights"),
        }
    }
}

/// Numbers from one row of x to the next: k rounded up to a whole vector, and one vector more, since rows a power of two apart
/// meet in one set of the first-level cache.
fn pairs_row(k: usize) -> usize {
    k.next_multiple_of(32) + 32
}

/// Row j as f32 without its row scale, which is returned.
fn widen_whole(isa: Isa, w: &Weight, j: usize, to: &mut [f32]) -> f32 {
    let Weight::Int8 { values, scale } = w else {
        w.widen(isa, j, 0, to);
        return 1.0;
    };
    let row = &values.as_u8()[j * to.len()..(j + 1) * to.len()];
    to.iter_mut().zip(row).for_each(|(x, &q)| *x = f32::from(q) - 128.0);
    scale.as_f32()[j]
}

impl Bytes {
    fn new(isa: Isa, x: &[f32], k: usize, w: &Weight) -> Bytes {
        let row = k.next_multiple_of(CHUNK) + CHUNK;
        let t = x.len() / k.max(1);
        let (mut q, mut scale, mut start) = (vec![0i8; t * row], Vec::new(), Vec::new());
        for (x, q) in x.chunks(k.max(1)).zip(q.chunks_mut(row.max(1))) {
            for (from, len) in blocks(k, Inputs::Bytes) {
                scale.push(quantise(isa, &x[from..from + len], &mut q[from..from + len]));
                let block = &mut q[from..(from + len).next_multiple_of(CHUNK)];
                if matches!(w, Weight::Int4 { .. }) {
                    for chunk in block.chunks_mut(CHUNK) {
                        let mut ordered = [0i8; CHUNK];
                        for (i, sixteen) in chunk.chunks(16).enumerate() {
                            // Even sixteens meet the low halves of the weights' bytes, odd ones the high halves.
                            ordered[(i % 2) * 64 + i / 2 * 16..][..16].copy_from_slice(sixteen);
                        }
                        chunk.copy_from_slice(&ordered);
                        start.extend(lane_sums(&ordered).map(|sum| -8 * sum));
                    }
                } else {
                    start.extend(lane_sums(block).map(|sum| -128 * sum));
                }
            }
        }
        let blocks = blocks(k, Inputs::Bytes).map(|(from, len)| (from, from + len)).collect();
        Bytes { q, row, scale, start, blocks }
    }
}

#[cfg(target_arch = "x86_64")]
impl Bytes {
    /// The block that begins at input `from`.
    fn block_at(&self, from: usize) -> usize {
        self.blocks.first().map_or(0, |&(_, len)| from / len)
    }
}

/// Sums of whole vectors of 64 bytes, four bytes to a lane.
fn lane_sums(q: &[i8]) -> [i32; LANES] {
    let mut sums = [0; LANES];
    for vector in q.chunks(64) {
        for (sum, four) in sums.iter_mut().zip(vector.chunks(4)) {
            *sum += four.iter().map(|&q| i32::from(q)).sum::<i32>();
        }
    }
    sums
}

macro_rules! dot_rows_of {
    ($name:ident, $body:ident, $element:ty) => {
        #[inline(always)]
        unsafe fn $body<L: Lane>(x: &[f32], k: usize, w: &[$element], sums: &mut [f32]) {
            // SAFETY: lengths were checked by the caller.
            unsafe { dot_rows_body::<L, $element>(x, k, w, sums) }
        }
        multiversion! {
            fn $name(x: &[f32], k: usize, w: &[$element], sums: &mut [f32]) = $body
        }
    };
}
dot_rows_of!(dot_rows_f32, dot_rows_f32_body, f32);
dot_rows_of!(dot_rows_bf16, dot_rows_bf16_body, bf16);
dot_rows_of!(dot_rows_f16, dot_rows_f16_body, f16);

#[inline(always)]
unsafe fn dot_rows_body<L: Lane, E: Element>(x: &[f32], k: usize, w: &[E], sums: &mut [f32]) {
    if k == 0 {
        return;
    }
    let (t, n) = (x.len() / k, w.len() / k);
    let mut j = 0;
    while j < n {
        let wide = if n - j >= TILE { TILE } else { 1 };
        for i in (0..t).step_by(TILE) {
            // SAFETY: rows i.. of x, j.. of w and those elements of sums lie within their slices.
            unsafe {
                let (x, w) = (x.as_ptr().add(i * k), w.as_ptr().add(j * k));
                let out = sums.as_mut_ptr().add(i * n + j);
                match ((t - i).min(TILE), wide) {
                    (1, TILE) => dot_tile::<L, E, TILE, 1>(k, x, w, out, n),
                    (2, TILE) => dot_tile::<L, E, TILE, 2>(k, x, w, out, n),
                    (3, TILE) => dot_tile::<L, E, TILE, 3>(k, x, w, out, n),
                    (_, TILE) => dot_tile::<L, E, TILE, TILE>(k, x, w, out, n),
                    (1, _) => dot_tile::<L, E, 1, 1>(k, x, w, out, n),
                    (2, _) => dot_tile::<L, E, 1, 2>(k, x, w, out, n),
                    (3, _) => dot_tile::<L, E, 1, 3>(k, x, w, out, n),
                    (_, _) => dot_tile::<L, E, 1, TILE>(k, x, w, out, n),
                }
            }
        }
        j += wide;
    }
}

/// out[a, b] = x[a]·w[b].
#[inline(always)]
unsafe fn dot_tile<L: Lane, E: Element, const C: usize, const R: usize>(
    k: usize,
    x: *const f32,
    w: *const E,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller gives R rows of x, C rows of w, each of k elements, and an [R, C] window of out.
    unsafe {
        let mut sums = [[L::splat(0.0); C]; R];
        let mut l = 0;
        while l + L::WIDTH <= k {
            let xs: [L; R] = std::array::from_fn(|a| L::load(x.add(a * k + l)));
            for b in 0..C {
                let wide = E::load::<L>(w.add(b * k + l));
                for a in 0..R {
                    sums[a][b] = xs[a].mul_add(wide, sums[a][b]);
                }
            }
            l += L::WIDTH;
        }
        for a in 0..R {
            for b in 0..C {
                let mut sum = sums[a][b].sum();
                for m in l..k {
                    sum = L::mul_add_scalar(*x.add(a * k + m), (*w.add(b * k + m)).widen(), sum);
                }
                *out.add(a * stride + b) = sum;
            }
        }
    }
}

/// Products of narrow numbers, on AVX-512.
///
/// The rows of W in a task are read as four streams, each of consecutive rows, and each is fetched a little ahead: rows alone are
/// short, and end a page. More than four rows of x are taken in fours over the same rows of W.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Bytes, CHUNK, LANES, TILE};
    use crate::{bf16, nibbles::INT4_GROUP};
    use std::{arch::x86_64::*, mem::MaybeUninit};

    /// Bytes that a stream is fetched ahead.
    const AHEAD: usize = 1024;
    /// How one kind of weights is multiplied.
    ///
    /// # Safety
    /// `block` needs the features of the kind, rows i..i + R of x, rows j, j + spread, … (C of them) of W, and inputs from..end
    /// of both; `from` is a multiple of 128.
    trait Kernel {
        /// sums[a][b] += x[i + a]·w[j + b·spread] over inputs from..end, lane by lane.
        unsafe fn block<const R: usize, const C: usize>(
            &self,
            i: usize,
            j_spread: (usize, usize),
            from_end: (usize, usize),
            sums: &mut [[__m512; C]],
        );
    }

    /// out[i, j] = x[i]·w[j].
    ///
    /// # Safety
    /// The features of the kernel, t rows of x, n of W; the blocks are within the inputs.
    #[inline(always)]
    unsafe fn rows<K: Kernel>(
        kernel: &K,
        (t, n): (usize, usize),
        blocks: &[(usize, usize)],
        out: &mut [f32],
    ) {
        let spread = n / TILE;
        // SAFETY: passed on to the caller.
        unsafe {
            for j in 0..spread {
                columns::<K, TILE>(kernel, (t, n), (j, spread), blocks, out);
            }
            for j in spread * TILE..n {
                columns::<K, 1>(kernel, (t, n), (j, 0), blocks, out);
            }
        }
    }

    /// C rows of W against all rows of x, four of them at a time.
    #[inline(always)]
    unsafe fn columns<K: Kernel, const C: usize>(
        kernel: &K,
        (t, n): (usize, usize),
        (j, spread): (usize, usize),
        blocks: &[(usize, usize)],
        out: &mut [f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe {
            // Only the groups that there are get a value: clearing all would cost as much as a short row.
            let mut all =
                [const { MaybeUninit::<[[__m512; C]; TILE]>::uninit() }; super::super::MOST_FEW_ROWS / TILE];
            let groups = &mut all[..t.div_ceil(TILE)];
            groups.iter_mut().for_each(|group| {
                group.write([[_mm512_setzero_ps(); C]; TILE]);
            });
            let groups = groups.assume_init_mut();
            for &block in blocks {
                for (i, sums) in (0..t).step_by(TILE).zip(groups.iter_mut()) {
                    match t - i {
                        1 => kernel.block::<1, C>(i, (j, spread), block, sums),
                        2 => kernel.block::<2, C>(i, (j, spread), block, sums),
                        3 => kernel.block::<3, C>(i, (j, spread), block, sums),
                        _ => kernel.block::<TILE, C>(i, (j, spread), block, sums),
                    }
                }
            }
            for (out, sums) in out.chunks_mut(n).zip(groups.as_flattened()) {
                for (b, sum) in sums.iter().enumerate() {
                    out[j + b * spread] = _mm512_reduce_add_ps(*sum);
                }
            }
        }
    }

    /// bf16 by bf16.
    struct Pairs<'a> {
        /// `[t, pairs_row(k)]`
        x: &'a [bf16],
        w: &'a [bf16],
        k: usize,
    }

    /// sums[i, j] = x[i]·w[j]; rows of x are padded to whole vectors.
    ///
    /// # Safety
    /// Needs the features; t rows of x, n of w.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn bf16_rows(
        x: &[bf16],
        w: &[bf16],
        (t, n, k): (usize, usize, usize),
        sums: &mut [f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe { rows(&Pairs { x, w, k }, (t, n), &[(0, k)], sums) }
    }

    impl Kernel for Pairs<'_> {
        #[inline(always)]
        unsafe fn block<const R: usize, const C: usize>(
            &self,
            i: usize,
            (j, spread): (usize, usize),
            (from, end): (usize, usize),
            sums: &mut [[__m512; C]],
        ) {
            // SAFETY: the caller gives these rows and inputs; rows of x are padded, a mask keeps the last vector of a row of W
            // within it, and a prefetch may go anywhere.
            unsafe {
                let x_row = super::pairs_row(self.k);
                let x = self.x.as_ptr().add(i * x_row);
                let w = self.w.as_ptr().add(j * self.k);
                let mut local = [[_mm512_setzero_ps(); C]; R];
                local.copy_from_slice(&sums[..R]);
                for l in (from..end).step_by(32) {
                    let mut xs = [_mm512_setzero_si512(); R];
                    for a in 0..R {
                        xs[a] = _mm512_loadu_si512(x.add(a * x_row + l).cast());
                    }
                    for b in 0..C {
                        let at = w.add(b * spread * self.k + l);
                        let w = if l + 32 <= end {
                            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                            _mm512_loadu_si512(at.cast())
                        } else {
                            _mm512_maskz_loadu_epi16((1 << (end - l)) - 1, at.cast())
                        };
                        for a in 0..R {
                            local[a][b] = _mm512_dpbf16_ps(
                                local[a][b],
                                std::mem::transmute::<__m512i, __m512bh>(w),
                                std::mem::transmute::<__m512i, __m512bh>(xs[a]),
                            );
                        }
                    }
                }
                sums[..R].copy_from_slice(&local);
            }
        }
    }

    /// Unsigned bytes around 128.
    struct Int8<'a> {
        x: &'a Bytes,
        w: &'a [u8],
        k: usize,
    }

    /// sums[i, j] = x[i]·w[j] for unsigned bytes around 128 with a scale a row.
    ///
    /// # Safety
    /// Needs the features; t rows of x, n of w and n scales.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn int8_rows(
        x: &Bytes,
        w: &[u8],
        scale: &[f32],
        (t, n, k): (usize, usize, usize),
        sums: &mut [f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe { rows(&Int8 { x, w, k }, (t, n), &x.blocks, sums) }
        for row in sums.chunks_mut(n) {
            row.iter_mut().zip(scale).for_each(|(sum, scale)| *sum *= scale);
        }
    }

    impl Kernel for Int8<'_> {
        #[inline(always)]
        unsafe fn block<const R: usize, const C: usize>(
            &self,
            i: usize,
            (j, spread): (usize, usize),
            (from, end): (usize, usize),
            totals: &mut [[__m512; C]],
        ) {
            let (x, num_blocks, block) = (self.x, self.x.blocks.len(), self.x.block_at(from));
            // SAFETY: as in `Pairs`.
            unsafe {
                let q = x.q.as_ptr().add(i * x.row);
                let w = self.w.as_ptr().add(j * self.k);
                let mut sums = [[_mm512_setzero_si512(); C]; R];
                for a in 0..R {
                    let start = x.start.as_ptr().add(((i + a) * num_blocks + block) * LANES);
                    sums[a] = [_mm512_loadu_si512(start.cast()); C];
                }
                for l in (from..end).step_by(64) {
                    let mut xs = [_mm512_setzero_si512(); R];
                    for a in 0..R {
                        xs[a] = _mm512_loadu_si512(q.add(a * x.row + l).cast());
                    }
                    for b in 0..C {
                        let at = w.add(b * spread * self.k + l);
                        let w = if l + 64 <= end {
                            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                            _mm512_loadu_si512(at.cast())
                        } else {
                            _mm512_maskz_loadu_epi8((1 << (end - l)) - 1, at.cast())
                        };
                        for a in 0..R {
                            sums[a][b] = _mm512_dpbusd_epi32(sums[a][b], w, xs[a]);
                        }
                    }
                }
                for a in 0..R {
                    let scale = _mm512_set1_ps(x.scale[(i + a) * num_blocks + block]);
                    for b in 0..C {
                        totals[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[a][b]), scale, totals[a][b]);
                    }
                }
            }
        }
    }

    /// Half bytes around 8.
    struct Int4<'a> {
        x: &'a Bytes,
        w: &'a [u8],
        scale: &'a [bf16],
        k: usize,
    }

    /// sums[i, j] = x[i]·w[j] for half bytes around 8 with a scale for each group.
    ///
    /// # Safety
    /// Needs the features; t rows of x, n of w and of scales; k is a multiple of the group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn int4_rows(
        x: &Bytes,
        w: &[u8],
        scale: &[bf16],
        (t, n, k): (usize, usize, usize),
        sums: &mut [f32],
    ) {
        // SAFETY: passed on to the caller.
        unsafe { rows(&Int4 { x, w, scale, k }, (t, n), &x.blocks, sums) }
    }

    impl Kernel for Int4<'_> {
        #[inline(always)]
        unsafe fn block<const R: usize, const C: usize>(
            &self,
            i: usize,
            (j, spread): (usize, usize),
            (from, end): (usize, usize),
            totals: &mut [[__m512; C]],
        ) {
            let (x, num_blocks, num_chunks) = (self.x, self.x.blocks.len(), self.x.row / CHUNK - 1);
            let block = x.block_at(from);
            // SAFETY: as in `Pairs`; rows of x are padded to whole chunks.
            unsafe {
                let w = self.w.as_ptr().add(j * self.k / 2);
                let scale = self.scale.as_ptr().add(j * self.k / INT4_GROUP);
                // Quarter g of a vector belongs to group g of the chunk: its scale in the upper halves of four lanes.
                let spread_scales = _mm512_set_epi64(
                    0x0706_8080_0706_8080,
                    0x0706_8080_0706_8080,
                    0x0504_8080_0504_8080,
                    0x0504_8080_0504_8080,
                    0x0302_8080_0302_8080,
                    0x0302_8080_0302_8080,
                    0x0100_8080_0100_8080,
                    0x0100_8080_0100_8080,
                );
                let low = _mm512_set1_epi8(15);
                let mut parts = [[_mm512_setzero_ps(); C]; R];
                for l in (from..end).step_by(CHUNK) {
                    for b in 0..C {
                        let number = b * spread * self.k + l;
                        let (at, scales) = (w.add(number / 2), scale.add(number / INT4_GROUP));
                        let (bytes, scales) = if l + CHUNK <= end {
                            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                            (_mm512_loadu_si512(at.cast()), scales.cast::<i64>().read_unaligned())
                        } else {
                            let bytes = _mm512_maskz_loadu_epi8((1 << ((end - l) / 2)) - 1, at.cast());
                            let scales =
                                _mm_maskz_loadu_epi16((1 << ((end - l) / INT4_GROUP)) - 1, scales.cast());
                            (bytes, _mm_cvtsi128_si64(scales))
                        };
                        let scales = _mm512_castsi512_ps(_mm512_shuffle_epi8(
                            _mm512_set1_epi64(scales),
                            spread_scales,
                        ));
                        let lows = _mm512_and_si512(bytes, low);
                        let highs = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
                        for a in 0..R {
                            let q = x.q.as_ptr().add((i + a) * x.row + l);
                            let start = x.start.as_ptr().add(((i + a) * num_chunks + l / CHUNK) * LANES);
                            let sum = _mm512_loadu_si512(start.cast());
                            let sum = _mm512_dpbusd_epi32(sum, lows, _mm512_loadu_si512(q.cast()));
                            let sum = _mm512_dpbusd_epi32(sum, highs, _mm512_loadu_si512(q.add(64).cast()));
                            parts[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, parts[a][b]);
                        }
                    }
                }
                for a in 0..R {
                    let scale = _mm512_set1_ps(x.scale[(i + a) * num_blocks + block]);
                    for b in 0..C {
                        totals[a][b] = _mm512_fmadd_ps(parts[a][b], scale, totals[a][b]);
                    }
                }
            }
        }
    }
}
