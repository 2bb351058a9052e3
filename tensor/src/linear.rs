//! y = x·Wᵀ with its epilogues: the linear layers and the gated MLP.
//!
//! Contract. `x_tk` is f32; `w_nk` is f32, bf16 or f16, row-major with the inputs contiguous, as checkpoints store it.
//! Products are accumulated in f32. Where W is bf16, x is first rounded to bf16, so that every machine multiplies the
//! same numbers. An element's value depends neither on the number of threads nor on the other rows of x of its path.
//!
//! Two paths. Few rows (decoding): each row of W is read once, as a dot product with every row of x. Many rows
//! (prefill): blocks of W are widened into the cache and multiplied with a packed copy of x; W itself is never
//! copied or rearranged, so a mapped file is used as it lies.
//!
//! Legend: t rows of x, k inputs, n outputs.
#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and column")]

use crate::{
    DType, Isa, Tensor, bf16,
    isa::multiversion,
    lane::Lane,
    math::{self, gelu_slice, gelu_times_slice},
    parallel::{Shared, for_each_task},
};

/// What happens to a linear layer's product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a Tensor>,
    /// Whether GELU (tanh approximation) follows.
    pub gelu: bool,
    /// Added last, `[t, n]`.
    pub residual: Option<&'a Tensor>,
}

/// Up to this many rows are taken as dot products.
const FEW_ROWS: usize = 16;
/// Rows of W in a task of the packed path.
const N_BLOCK: usize = 96;
/// Rows of x in a task of the packed path.
const T_BLOCK: usize = 512;
/// Inputs in a block: a block of W and a panel of x stay in the second-level cache.
const K_BLOCK: usize = 512;
/// Rows of W that a register tile holds.
const TILE_ROWS: usize = 6;
/// Vectors of x that a register tile holds.
const TILE_VECTORS: usize = 4;

/// `x_tk` f32 `[t, k]`, `w_nk` `[n, k]` → f32 `[t, n]`.
pub fn linear(x_tk: &Tensor, w_nk: &Tensor, epilogue: Epilogue<'_>) -> Tensor {
    linear_on(Isa::best(), x_tk, w_nk, epilogue)
}

/// [`linear`] on a given instruction set.
pub fn linear_on(isa: Isa, x_tk: &Tensor, w_nk: &Tensor, epilogue: Epilogue<'_>) -> Tensor {
    let (t, n) = (x_tk.shape()[0], w_nk.shape()[0]);
    let bias = epilogue.bias.map(Tensor::to_f32_vec);
    let residual = epilogue.residual.map(|r| {
        assert_eq!(r.shape(), [t, n], "residual");
        r.as_f32()
    });
    if let Some(bias) = &bias {
        assert_eq!(bias.len(), n, "bias");
    }
    product(isa, x_tk, &[w_nk], |n0, row, values: &mut [&mut [f32]]| {
        let y = &mut *values[0];
        let width = y.len();
        if let Some(bias) = &bias {
            y.iter_mut().zip(&bias[n0..n0 + width]).for_each(|(y, b)| *y += b);
        }
        if epilogue.gelu {
            gelu_slice(isa, y);
        }
        if let Some(residual) = residual {
            let from = row * n + n0;
            y.iter_mut().zip(&residual[from..from + width]).for_each(|(y, r)| *y += r);
        }
    })
}

/// The gated MLP's first half: GELU(x·Wgᵀ) ⊙ (x·Wuᵀ). `x_tk` `[t, k]`, both weights `[n, k]` → `[t, n]`.
pub fn geglu(x_tk: &Tensor, gate_nk: &Tensor, up_nk: &Tensor) -> Tensor {
    geglu_on(Isa::best(), x_tk, gate_nk, up_nk)
}

/// [`geglu`] on a given instruction set.
pub fn geglu_on(isa: Isa, x_tk: &Tensor, gate_nk: &Tensor, up_nk: &Tensor) -> Tensor {
    assert_eq!(gate_nk.shape(), up_nk.shape());
    product(isa, x_tk, &[gate_nk, up_nk], |_, _, values: &mut [&mut [f32]]| {
        let (gate, up) = values.split_at_mut(1);
        gelu_times_slice(isa, gate[0], up[0]);
    })
}

/// The slow, obvious [`linear`]: one loop per index, sums in f64.
pub fn linear_plain(x_tk: &Tensor, w_nk: &Tensor, epilogue: Epilogue<'_>) -> Tensor {
    let (t, k, n) = (x_tk.shape()[0], x_tk.shape()[1], w_nk.shape()[0]);
    let x = rounded_like(x_tk.as_f32(), w_nk.dtype());
    let w = w_nk.to_f32_vec();
    let bias = epilogue.bias.map(Tensor::to_f32_vec);
    let mut y = vec![0.0; t * n];
    for i in 0..t {
        for j in 0..n {
            let mut sum = 0f64;
            for l in 0..k {
                sum += f64::from(x[i * k + l]) * f64::from(w[j * k + l]);
            }
            sum += bias.as_ref().map_or(0.0, |b| f64::from(b[j]));
            let mut value = sum as f32;
            if epilogue.gelu {
                value = math::gelu_plain(value);
            }
            y[i * n + j] = value + epilogue.residual.map_or(0.0, |r| r.as_f32()[i * n + j]);
        }
    }
    Tensor::from_f32(y, &[t, n])
}

/// x as the products see it: rounded to bf16 where the weights are.
fn rounded_like(x: &[f32], weights: DType) -> Vec<f32> {
    match weights {
        DType::BF16 => x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        DType::F32 | DType::F16 => x.to_vec(),
    }
}

/// The products of x with one or two matrices of one shape; `finish(n0, row, values)` gets, for every row of x, the
/// values of outputs n0… of each matrix and leaves the result in the first.
fn product<F>(isa: Isa, x_tk: &Tensor, weights: &[&Tensor], finish: F) -> Tensor
where
    F: Fn(usize, usize, &mut [&mut [f32]]) + Sync,
{
    let (t, k, n) = (x_tk.shape()[0], x_tk.shape()[1], weights[0].shape()[0]);
    for w in weights {
        assert_eq!(w.shape(), [n, k], "weights of {:?}", x_tk);
        assert_eq!(w.dtype(), weights[0].dtype(), "both matrices of one type");
    }
    let mut y = vec![0.0; t * n];
    let out = Shared::new(&mut y);
    if t <= FEW_ROWS {
        let x = rounded_like(x_tk.as_f32(), weights[0].dtype());
        // Rows of W per task: enough work to hide the hand-over, few enough to share out evenly.
        let block = (65_536 / k.max(1)).clamp(4, 1024).next_multiple_of(4);
        for_each_task(n.div_ceil(block), |task| {
            let (n0, n1) = (task * block, n.min((task + 1) * block));
            let width = n1 - n0;
            let mut sums = vec![0.0; weights.len() * t * width];
            for (w, sums) in weights.iter().zip(sums.chunks_mut(t * width)) {
                dot_rows(isa, &x, k, &w.rows(n0, n1), sums);
            }
            for row in 0..t {
                let mut parts =
                    sums.chunks_mut(t * width).map(|part| &mut part[row * width..(row + 1) * width]);
                finish_row(&finish, n0, row, &mut parts);
                let done = &sums[row * width..(row + 1) * width];
                // SAFETY: each task writes its own columns n0..n1 of each row.
                unsafe { out.slice(row * n + n0, width) }.copy_from_slice(done);
            }
        });
    } else {
        let packed = PackedRows::new(isa, x_tk, weights[0].dtype());
        let (n_blocks, t_blocks) = (n.div_ceil(N_BLOCK), t.div_ceil(T_BLOCK));
        for_each_task(n_blocks * t_blocks, |task| {
            let (n0, t0) = (task % n_blocks * N_BLOCK, task / n_blocks * T_BLOCK);
            let (n1, t1) = (n.min(n0 + N_BLOCK), t.min(t0 + T_BLOCK));
            let (width, columns) = (n1 - n0, packed.columns(t0, t1));
            // The tile is transposed: [N_BLOCK, columns], a row of W against all its rows of x.
            let mut tiles = vec![0.0; weights.len() * N_BLOCK * columns];
            for (w, tile) in weights.iter().zip(tiles.chunks_mut(N_BLOCK * columns)) {
                packed.multiply(isa, t0, t1, &w.rows(n0, n1), tile);
            }
            let mut rows = vec![0.0; weights.len() * width];
            for row in t0..t1 {
                for (tile, values) in tiles.chunks(N_BLOCK * columns).zip(rows.chunks_mut(width)) {
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = tile[j * columns + row - t0];
                    }
                }
                finish_row(&finish, n0, row, &mut rows.chunks_mut(width));
                // SAFETY: each task writes its own columns n0..n1 of its own rows t0..t1.
                unsafe { out.slice(row * n + n0, width) }.copy_from_slice(&rows[..width]);
            }
        });
    }
    Tensor::from_f32(y, &[t, n])
}

/// Calls `finish` with one row's values of one or two matrices.
fn finish_row<'a, F>(finish: &F, n0: usize, row: usize, parts: &mut impl Iterator<Item = &'a mut [f32]>)
where
    F: Fn(usize, usize, &mut [&mut [f32]]),
{
    match (parts.next(), parts.next()) {
        (Some(one), None) => finish(n0, row, &mut [one]),
        (Some(one), Some(two)) => finish(n0, row, &mut [one, two]),
        (None, _) => {}
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Few rows: dot products.

/// sums[i, j] = x[i]·w[j] for all rows of x and of `w_nk`.
fn dot_rows(isa: Isa, x: &[f32], k: usize, w_nk: &Tensor, sums: &mut [f32]) {
    let n = w_nk.shape()[0];
    assert!(w_nk.len() == n * k && x.len() * n == sums.len() * k);
    match w_nk.dtype() {
        DType::F32 => dot_rows_f32(isa, x, k, w_nk.as_f32(), sums),
        DType::BF16 => dot_rows_bf16(isa, x, k, w_nk.as_bf16(), sums),
        DType::F16 => dot_rows_f16(isa, x, k, w_nk.as_f16(), sums),
    }
}

/// One element type of the weights, and how a vector of it is read.
trait Element: Copy {
    /// # Safety
    /// As [`Lane::load`].
    unsafe fn load<L: Lane>(from: *const Self) -> L;
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lane>(from: *const f32) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lane>(from: *const bf16) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load_bf16(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Element for crate::f16 {
    #[inline(always)]
    unsafe fn load<L: Lane>(from: *const crate::f16) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load_f16(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

macro_rules! dot_rows_of {
    ($name:ident, $body:ident, $element:ty) => {
        #[inline(always)]
        unsafe fn $body<L: Lane>(x: &[f32], k: usize, w: &[$element], sums: &mut [f32]) {
            // SAFETY: lengths were checked by `dot_rows`.
            unsafe { dot_rows_body::<L, $element>(x, k, w, sums) }
        }
        multiversion! {
            fn $name(x: &[f32], k: usize, w: &[$element], sums: &mut [f32]) = $body
        }
    };
}
dot_rows_of!(dot_rows_f32, dot_rows_f32_body, f32);
dot_rows_of!(dot_rows_bf16, dot_rows_bf16_body, bf16);
dot_rows_of!(dot_rows_f16, dot_rows_f16_body, crate::f16);

/// Four rows of W are streamed at once against up to four rows of x.
#[inline(always)]
unsafe fn dot_rows_body<L: Lane, E: Element>(x: &[f32], k: usize, w: &[E], sums: &mut [f32]) {
    if k == 0 {
        return;
    }
    let (t, n) = (x.len() / k, w.len() / k);
    let mut j = 0;
    while j < n {
        let wide = (n - j).min(4);
        let mut i = 0;
        while i < t {
            let tall = (t - i).min(4);
            // SAFETY: rows i..i+tall of x, j..j+wide of w and those elements of sums lie within their slices.
            unsafe {
                let (x, w) = (x.as_ptr().add(i * k), w.as_ptr().add(j * k));
                let out = sums.as_mut_ptr().add(i * n + j);
                match (wide, tall) {
                    (4, 4) => dot_tile::<L, E, 4, 4>(k, x, w, out, n),
                    (4, 1) => dot_tile::<L, E, 4, 1>(k, x, w, out, n),
                    _ => {
                        for a in 0..tall {
                            for b in 0..wide {
                                dot_tile::<L, E, 1, 1>(k, x.add(a * k), w.add(b * k), out.add(a * n + b), n);
                            }
                        }
                    }
                }
            }
            i += tall;
        }
        j += wide;
    }
}

/// out[a, b] = x[a]·w[b]. Every element is summed in the same order whatever R and C are, so that a row's result does
/// not depend on how many rows stand beside it.
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

// ---------------------------------------------------------------------------------------------------------------
// Many rows: blocks.

/// x rearranged into panels: `[panel][k][rows of the panel]`, rows padded with zeros to whole vectors.
struct PackedRows {
    data: Vec<f32>,
    t: usize,
    k: usize,
    /// Lanes of a vector.
    lanes: usize,
}

impl PackedRows {
    /// Packs `x_tk`, rounded as the weights' type asks.
    fn new(isa: Isa, x_tk: &Tensor, weights: DType) -> Self {
        let (t, k) = (x_tk.shape()[0], x_tk.shape()[1]);
        let lanes = lanes(isa);
        let panel = lanes * TILE_VECTORS;
        let mut data = vec![0.0; t.next_multiple_of(lanes) * k];
        let x = x_tk.as_f32();
        let out = Shared::new(&mut data);
        for_each_task(t.div_ceil(panel), |p| {
            let rows = (t - p * panel).min(panel);
            let width = rows.next_multiple_of(lanes);
            // SAFETY: every panel is written by its own task.
            let panel_data = unsafe { out.slice(p * panel * k, width * k) };
            // Blocks of columns, so that both sides of the transpose stay in the cache.
            for l0 in (0..k).step_by(64) {
                for i in 0..rows {
                    let row = &x[(p * panel + i) * k..][..k];
                    for l in l0..k.min(l0 + 64) {
                        panel_data[l * width + i] = match weights {
                            DType::BF16 => bf16::from_f32(row[l]).to_f32(),
                            DType::F32 | DType::F16 => row[l],
                        };
                    }
                }
            }
        });
        PackedRows { data, t, k, lanes }
    }

    /// Columns of a transposed tile of rows t0..t1, padding included. t0 is a multiple of [`T_BLOCK`].
    fn columns(&self, t0: usize, t1: usize) -> usize {
        (t1 - t0).next_multiple_of(self.lanes)
    }

    /// tile[j, i] = w[j]·x[t0 + i], for all rows of `w_nk` (at most [`N_BLOCK`]).
    fn multiply(&self, isa: Isa, t0: usize, t1: usize, w_nk: &Tensor, tile: &mut [f32]) {
        let (n, k) = (w_nk.shape()[0], self.k);
        let columns = self.columns(t0, t1);
        assert!(tile.len() >= n.next_multiple_of(TILE_ROWS) * columns && t1 <= self.t);
        let panel = self.lanes * TILE_VECTORS;
        // Whole tiles of rows: the missing ones of the last tile stay zero and their results are not read.
        let mut block = vec![0.0; n.next_multiple_of(TILE_ROWS) * K_BLOCK];
        for k0 in (0..k).step_by(K_BLOCK) {
            let depth = (k - k0).min(K_BLOCK);
            widen_block(isa, w_nk, k0, depth, &mut block);
            for p0 in (t0..t1).step_by(panel) {
                let width = (t1 - p0).min(panel).next_multiple_of(self.lanes);
                let x = &self.data[p0 * k + k0 * width..][..depth * width];
                for j in (0..n).step_by(TILE_ROWS) {
                    let a = Strided { data: &block[j * K_BLOCK..], row: K_BLOCK, step: 1 };
                    let c = &mut tile[j * columns + p0 - t0..];
                    tile_product(isa, TILE_ROWS, depth, a, x, width, width, c, columns);
                }
            }
        }
    }
}

/// block[j, l] = w[j, k0 + l] as f32, rows [`K_BLOCK`] apart.
fn widen_block(isa: Isa, w_nk: &Tensor, k0: usize, depth: usize, block: &mut [f32]) {
    let (n, k) = (w_nk.shape()[0], w_nk.shape()[1]);
    for j in 0..n {
        let to = &mut block[j * K_BLOCK..][..depth];
        widen(isa, &w_nk.rows(j, j + 1).reshape(&[k]).rows(k0, k0 + depth), to);
    }
}

/// The elements of `from` as f32.
pub(crate) fn widen(isa: Isa, from: &Tensor, to: &mut [f32]) {
    match from.dtype() {
        DType::F32 => to.copy_from_slice(from.as_f32()),
        DType::BF16 => widen_bf16(isa, from.as_bf16(), to),
        DType::F16 => widen_f16(isa, from.as_f16(), to),
    }
}

#[inline(always)]
unsafe fn widen_bf16_body<L: Lane>(from: &[bf16], to: &mut [f32]) {
    // SAFETY: passed on to the caller.
    unsafe { widen_body::<L, bf16>(from, to) }
}
#[inline(always)]
unsafe fn widen_f16_body<L: Lane>(from: &[crate::f16], to: &mut [f32]) {
    // SAFETY: passed on to the caller.
    unsafe { widen_body::<L, crate::f16>(from, to) }
}
#[inline(always)]
unsafe fn widen_body<L: Lane, E: Element>(from: &[E], to: &mut [f32]) {
    let n = from.len().min(to.len());
    let whole = n / L::WIDTH * L::WIDTH;
    // SAFETY: whole vectors within both slices.
    unsafe {
        for i in (0..whole).step_by(L::WIDTH) {
            E::load::<L>(from.as_ptr().add(i)).store(to.as_mut_ptr().add(i));
        }
    }
    for i in whole..n {
        to[i] = from[i].widen();
    }
}
multiversion! {
    fn widen_bf16(from: &[bf16], to: &mut [f32]) = widen_bf16_body
}
multiversion! {
    fn widen_f16(from: &[crate::f16], to: &mut [f32]) = widen_f16_body
}

/// Lanes of a vector of `isa`.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 | Isa::Portable => 8,
    }
}

/// A matrix of which element (m, l) stands at `data[m * row + l * step]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row: usize,
    pub(crate) step: usize,
}

/// c[m, i] += Σ_l a[m, l]·b[l, i] for m < `rows`, i < `width`, a multiple of the lanes.
/// Rows of b stand `b_row` apart, rows of c `c_row`. Each element is summed in the order of l.
#[allow(clippy::too_many_arguments, reason = "two strided matrices and a packed one")]
pub(crate) fn tile_product(
    isa: Isa,
    rows: usize,
    depth: usize,
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    width: usize,
    c: &mut [f32],
    c_row: usize,
) {
    if rows == 0 || depth == 0 || width == 0 {
        return;
    }
    assert!(width.is_multiple_of(lanes(isa)));
    assert!(a.data.len() > (rows - 1) * a.row + (depth - 1) * a.step);
    assert!(b.len() >= (depth - 1) * b_row + width && c.len() >= (rows - 1) * c_row + width);
    tile_product_checked(isa, rows, depth, a, b, b_row, width, c, c_row);
}

multiversion! {
    #[allow(clippy::too_many_arguments, reason = "as tile_product")]
    fn tile_product_checked(
        rows: usize, depth: usize, a: Strided<'_>, b: &[f32], b_row: usize, width: usize, c: &mut [f32], c_row: usize,
    ) = tile_product_body
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "as tile_product")]
unsafe fn tile_product_body<L: Lane>(
    rows: usize,
    depth: usize,
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    width: usize,
    c: &mut [f32],
    c_row: usize,
) {
    let mut m = 0;
    while m < rows {
        let tall = (rows - m).min(TILE_ROWS);
        let mut i = 0;
        while i < width {
            let vectors = ((width - i) / L::WIDTH).min(TILE_VECTORS);
            // SAFETY: `tile_product` checked that rows m..m+tall of a and c and vectors i.. of b and c lie within.
            unsafe {
                let a = (a.data.as_ptr().add(m * a.row), a.row, a.step);
                let b = b.as_ptr().add(i);
                let c = c.as_mut_ptr().add(m * c_row + i);
                match (tall, vectors) {
                    (TILE_ROWS, 4) => tile::<L, TILE_ROWS, 4>(depth, a, b, b_row, c, c_row),
                    (TILE_ROWS, 3) => tile::<L, TILE_ROWS, 3>(depth, a, b, b_row, c, c_row),
                    (TILE_ROWS, 2) => tile::<L, TILE_ROWS, 2>(depth, a, b, b_row, c, c_row),
                    (TILE_ROWS, 1) => tile::<L, TILE_ROWS, 1>(depth, a, b, b_row, c, c_row),
                    _ => {
                        for r in 0..tall {
                            let a = (a.0.add(r * a.1), a.1, a.2);
                            for v in 0..vectors {
                                let (b, c) = (b.add(v * L::WIDTH), c.add(r * c_row + v * L::WIDTH));
                                tile::<L, 1, 1>(depth, a, b, b_row, c, c_row);
                            }
                        }
                    }
                }
            }
            i += vectors * L::WIDTH;
        }
        m += tall;
    }
}

/// The register tile: c[M, V vectors] += a[M, depth]·b[depth, V vectors].
#[inline(always)]
unsafe fn tile<L: Lane, const M: usize, const V: usize>(
    depth: usize,
    (a, a_row, a_step): (*const f32, usize, usize),
    b: *const f32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
) {
    // SAFETY: the caller gives matrices that hold the tile.
    unsafe {
        let mut sums: [[L; V]; M] =
            std::array::from_fn(|m| std::array::from_fn(|v| L::load(c.add(m * c_row + v * L::WIDTH))));
        for l in 0..depth {
            let bs: [L; V] = std::array::from_fn(|v| L::load(b.add(l * b_row + v * L::WIDTH)));
            for m in 0..M {
                let a = L::splat(*a.add(m * a_row + l * a_step));
                for v in 0..V {
                    sums[m][v] = a.mul_add(bs[v], sums[m][v]);
                }
            }
        }
        for m in 0..M {
            for v in 0..V {
                sums[m][v].store(c.add(m * c_row + v * L::WIDTH));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    fn check(t: usize, k: usize, n: usize, dtype: DType, gelu: bool) {
        let x = random(1, &[t, k]);
        let w = random(2, &[n, k]).cast(dtype);
        let u = random(5, &[n, k]).cast(dtype);
        let bias = random(3, &[n]);
        let residual = random(4, &[t, n]);
        let epilogue = Epilogue { bias: Some(&bias), gelu, residual: Some(&residual) };
        let want = linear_plain(&x, &w, epilogue);
        let gate = linear_plain(&x, &w, Epilogue { gelu: true, ..Epilogue::default() });
        let up = linear_plain(&x, &u, Epilogue::default());
        let gated: Vec<f32> = gate.as_f32().iter().zip(up.as_f32()).map(|(g, u)| g * u).collect();
        for isa in Isa::available() {
            assert_close(&linear_on(isa, &x, &w, epilogue), &want, 2e-6 * (k as f32).sqrt());
            let got = geglu_on(isa, &x, &w, &u);
            assert_close(&got, &Tensor::from_f32(gated.clone(), &[t, n]), 4e-6 * k as f32);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_the_plain_twin_on_ragged_shapes(
            t in 1usize..90, k in 1usize..150, n in 1usize..130, dtype in 0..3, gelu: bool,
        ) {
            check(t, k, n, [DType::F32, DType::BF16, DType::F16][dtype as usize], gelu);
        }
    }

    #[test]
    fn equals_the_plain_twin_across_blocks() {
        check(530, 1030, 100, DType::BF16, false);
        check(17, 513, 197, DType::F32, true);
        check(16, 513, 197, DType::F32, true);
    }

    /// Within a path, a row's value does not depend on the rows beside it, nor on the number of threads.
    #[test]
    fn rows_and_threads_do_not_matter() {
        let w = random(2, &[300, 700]);
        for t in [16, 75] {
            let x = random(1, &[t, 700]);
            let all = linear(&x, &w, Epilogue::default());
            let few = linear(&x.rows(0, t.min(17 + t / 10)), &w, Epilogue::default());
            assert_eq!(few.as_f32(), &all.as_f32()[..few.len()]);
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let again = pool.install(|| linear(&x, &w, Epilogue::default()));
                assert_eq!(again.as_f32(), all.as_f32());
            }
        }
        let x = random(1, &[9, 700]);
        let all = linear(&x, &w, Epilogue::default());
        for i in 0..9 {
            let one = linear(&x.rows(i, i + 1), &w, Epilogue::default());
            assert_eq!(one.as_f32(), all.rows(i, i + 1).as_f32());
        }
    }
}
