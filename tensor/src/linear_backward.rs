//! The two products of a linear layer's backward pass: dX = dY·W and dW = dYᵀ·X.
//!
//! Contract. Sums are f32. What is multiplied depends on the types alone, so that every machine multiplies the same numbers:
//! beside f32 and f16 the factors as they are, beside bf16 and quantised weights both rounded to bf16 (of quantised weights
//! their numbers). Results do not depend on the number of threads.
//!
//! Both are one product C += A·B: A's rows lie as units along the sum, B is packed in panels of 64 columns, of W as it is
//! needed, of X once. A task takes up to 512 rows and 128 columns of C and keeps its sums in the cache.
//!
//! Legend: t rows, k inputs, n outputs.

use crate::{
    DType, Isa, Tensor, Weight,
    narrow::pair_bf16,
    packing::Packing,
    parallel::{Shared, filled, for_each_task},
    product::{A, B, COLUMNS},
    resident::Resident,
};
use std::{cell::RefCell, ops::Range};

/// Rows of C in a task.
const ROWS: usize = 512;
/// Columns of B in a panel.
const PANEL: usize = 64;
/// Panels in a task.
const PANELS: usize = 2;
/// Units of the sum that are taken at a time.
const DEPTH: usize = 512;
/// Units between rows of A beyond their own: rows a power of two apart would meet in one set of the cache.
const GAP: usize = 16;

/// Numbers of a gradient that is taken in parts, roughly, in each of them: they shall stay in a cache.
pub const GRADIENT_PART: usize = 1 << 20;

/// What the products of a backward pass with these weights are computed in: f32 or bf16.
pub fn gradient_dtype(w_nk: &Weight) -> DType {
    match w_nk {
        Weight::Plain(w) if w.dtype() != DType::BF16 => DType::F32,
        Weight::Plain(_) | Weight::Int8 { .. } | Weight::Int4 { .. } => DType::BF16,
    }
}

/// dX = dY·W: `dy_tn` f32 `[t, n]`, `w_nk` `[n, k]` → f32 `[t, k]`.
pub fn input_gradient(dy_tn: &Tensor, w_nk: &Weight) -> Tensor {
    let shape = [dy_tn.shape()[0], w_nk.shape()[1]];
    if let Some(w) = Resident::backward(Isa::best(), w_nk) {
        assert!(dy_tn.shape() == [shape[0], w_nk.shape()[0]], "{:?} of {dy_tn:?}", w_nk.shape());
        return Tensor::from_f32(Resident::product(&[w], dy_tn, |_, _| ()), &shape);
    }
    let mut dx = Tensor::zeros(&shape);
    add_input_gradient(dy_tn, w_nk, &mut dx);
    dx
}

/// dX += dY·W; see [`input_gradient`].
pub fn add_input_gradient(dy_tn: &Tensor, w_nk: &Weight, dx_tk: &mut Tensor) {
    add_input_gradient_on(Isa::best(), dy_tn, w_nk, dx_tk);
}

fn add_input_gradient_on(isa: Isa, dy_tn: &Tensor, w_nk: &Weight, dx_tk: &mut Tensor) {
    let (t, [n, k]) = (dy_tn.shape()[0], w_nk.shape());
    assert!(dy_tn.shape() == [t, n] && dx_tk.shape() == [t, k], "[{n}, {k}] of {dy_tn:?} → {dx_tk:?}");
    if let Some(w) = Resident::backward(isa, w_nk) {
        return w.add_to(dy_tn, dx_tk.as_f32_mut());
    }
    let packing = Packing::new(isa, gradient_dtype(w_nk));
    let rows = Rows::of(packing, dy_tn.as_f32(), (t, n));
    add_product(packing, (t, n, k), (&rows.units, rows.row), &Panels::Weights(w_nk), dx_tk.as_f32_mut());
}

/// dW = dYᵀ·X: `dy_tn` and `x_tk` f32, multiplied as `compute` (f32 or bf16) → f32 `[n, k]`.
pub fn weight_gradient(dy_tn: &Tensor, x_tk: &Tensor, compute: DType) -> Tensor {
    let mut dw = Tensor::zeros(&[dy_tn.shape()[1], x_tk.shape()[1]]);
    add_weight_gradient(dy_tn, x_tk, compute, dw.as_f32_mut());
    dw
}

/// dW += dYᵀ·X, dW's numbers `[n, k]`; see [`weight_gradient`].
pub fn add_weight_gradient(dy_tn: &Tensor, x_tk: &Tensor, compute: DType, dw_nk: &mut [f32]) {
    add_weight_gradient_on(Isa::best(), dy_tn, x_tk, compute, dw_nk);
}

fn add_weight_gradient_on(isa: Isa, dy_tn: &Tensor, x_tk: &Tensor, compute: DType, dw_nk: &mut [f32]) {
    let all = WeightGradient::pack(isa, dy_tn, x_tk, compute);
    assert!(dw_nk.len() == all.n * all.k, "{} of {dy_tn:?} and {x_tk:?}", dw_nk.len());
    all.add(0..all.n, dw_nk);
}

/// [`weight_gradient`], some whole rows at a time: `f(from, numbers)` gets those from number `from` on. No buffer of the size
/// of dW is needed.
pub(crate) fn weight_gradient_in_parts(
    dy_tn: &Tensor,
    x_tk: &Tensor,
    compute: DType,
    f: &mut dyn FnMut(usize, &[f32]),
) {
    let all = WeightGradient::pack(Isa::best(), dy_tn, x_tk, compute);
    let rows = (GRADIENT_PART / all.k.max(1)).max(1).next_multiple_of(PANEL);
    let mut part = Vec::new();
    for from in (0..all.n).step_by(rows) {
        let to = all.n.min(from + rows);
        part.clear();
        part.resize((to - from) * all.k, 0.0);
        all.add(from..to, &mut part);
        f(from * all.k, &part);
    }
}

/// The factors of dW = dYᵀ·X, packed.
struct WeightGradient {
    packing: Packing,
    dy: Left,
    /// As [`packed`] has it.
    x: Vec<u32>,
    t: usize,
    n: usize,
    k: usize,
}

/// dYᵀ.
enum Left {
    /// Rows along the sum, which AMX takes.
    Rows(Rows),
    /// As [`packed`] has it: the units of a row stand a panel's width apart.
    Panels(Vec<u32>),
}

impl WeightGradient {
    fn pack(isa: Isa, dy_tn: &Tensor, x_tk: &Tensor, compute: DType) -> WeightGradient {
        let (t, n, k) = (dy_tn.shape()[0], dy_tn.shape()[1], x_tk.shape()[1]);
        assert!(x_tk.shape() == [t, k], "{dy_tn:?} and {x_tk:?}");
        let packing = Packing::new(isa, compute);
        let dy = match isa {
            Isa::Amx => Left::Rows(Rows::transposed(packing, dy_tn.as_f32(), (t, n))),
            _ => Left::Panels(packed(packing, dy_tn.as_f32(), (t, n))),
        };
        WeightGradient { packing, dy, x: packed(packing, x_tk.as_f32(), (t, k)), t, n, k }
    }

    /// Rows `rows` of dW, the first one's number a multiple of 64, are added to `dw`.
    fn add(&self, rows: Range<usize>, dw: &mut [f32]) {
        let &WeightGradient { packing, ref dy, ref x, t, k, .. } = self;
        let (depth, n) = (packing.depth(t), rows.len());
        let dy = match dy {
            Left::Panels(panels) => &panels[rows.start * depth..],
            Left::Rows(all) => {
                let b = Panels::Packed { panels: x, depth };
                return add_product(
                    packing,
                    (n, t, k),
                    (&all.units[rows.start * all.row..], all.row),
                    &b,
                    dw,
                );
            }
        };
        // Units of a panel of each that the first-level cache holds.
        const DEPTH: usize = 128;
        let (row_panels, column_panels) = (n.div_ceil(PANEL), k.div_ceil(PANEL));
        // Some panels of x to a task, but tasks for all threads.
        let group = (row_panels * column_panels / 16).clamp(1, 4);
        let groups = column_panels.div_ceil(group);
        let out = Shared::new(dw);
        for_each_task(row_panels * groups, |task| {
            let (p, i0) = (task / groups, task % groups * group * PANEL);
            let (rows, i1) = (PANEL.min(n - p * PANEL), k.min(i0 + group * PANEL));
            SCRATCH.with_borrow_mut(|Scratch { sums, .. }| {
                let columns = (i1 - i0).next_multiple_of(COLUMNS);
                sums.clear();
                sums.resize(rows * columns, 0.0);
                for first in (0..depth).step_by(DEPTH) {
                    let a = bytemuck::cast_slice(&dy[(p * depth + first) * PANEL..]);
                    let a = A { bytes: a, row: 4, unit: 4 * PANEL };
                    for i in (i0..i1).step_by(PANEL) {
                        let b = B { units: &x[(i / PANEL * depth + first) * PANEL..], row: PANEL };
                        let width = PANEL.min(i1 - i).next_multiple_of(COLUMNS);
                        let size = (rows, DEPTH.min(depth - first), width);
                        packing.multiply(size, a, b, &mut sums[i - i0..], columns);
                    }
                }
                for (j, sums) in sums.chunks(columns).enumerate() {
                    // SAFETY: each task has its own columns of its own rows.
                    let to = unsafe { out.slice((p * PANEL + j) * k + i0, i1 - i0) };
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                }
            });
        });
    }
}

/// A matrix `[rows, cols]` in panels of 64 columns, rows along the sum: `[panel][units of rows][64]`.
fn packed(packing: Packing, x: &[f32], (rows, cols): (usize, usize)) -> Vec<u32> {
    const UNITS: usize = 256;
    let (depth, numbers) = (packing.depth(rows), packing.units().len());
    let (num_panels, num_parts) = (cols.div_ceil(PANEL), depth.div_ceil(UNITS));
    let mut panels = vec![0u32; num_panels * depth * PANEL];
    let all = Shared::new(&mut panels);
    for_each_task(num_panels * num_parts, |task| {
        let (p, first) = (task % num_panels, task / num_panels * UNITS);
        let (len, width) = (UNITS.min(depth - first), PANEL.min(cols - p * PANEL));
        let from = first * numbers;
        let row = |i: usize| &x[(from + i) * cols + p * PANEL..][..width];
        // SAFETY: each task has its own units of its own panel.
        let to = unsafe { all.slice((p * depth + first) * PANEL, len * PANEL) };
        packing.columns(row, (rows.min(from + len * numbers) - from, width), to, PANEL);
    });
    panels
}

/// Σ of the rows, some hundred at a time and then of these sums, in their order: the gradient of a bias → f32 `[n]`.
pub fn bias_gradient(dy_tn: &Tensor) -> Tensor {
    const GROUP: usize = 256;
    let n = dy_tn.shape()[1];
    let add = |sums: &mut [f32], row: &[f32]| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    let groups = dy_tn.shape()[0].div_ceil(GROUP);
    let parts = filled(groups * n, n, |group, sums| {
        dy_tn.as_f32()[group * GROUP * n..].chunks(n).take(GROUP).for_each(|row| add(sums, row));
    });
    let mut sums = vec![0.0; n];
    parts.chunks(n.max(1)).for_each(|part| add(&mut sums, part));
    Tensor::from_f32(sums, &[n])
}

/// A: rows of units, `GAP` of them between one row and the next.
struct Rows {
    units: Vec<u32>,
    /// Units from one row to the next.
    row: usize,
}

impl Rows {
    /// The rows of a matrix `[rows, cols]`.
    fn of(packing: Packing, x: &[f32], (rows, cols): (usize, usize)) -> Rows {
        let row = packing.depth(cols) + GAP;
        let mut all = vec![0u32; rows * row];
        let to = Shared::new(&mut all);
        const GROUP: usize = 16;
        for_each_task(rows.div_ceil(GROUP), |group| {
            for i in group * GROUP..rows.min((group + 1) * GROUP) {
                // SAFETY: each task has its own rows.
                packing.row(&x[i * cols..][..cols], unsafe { to.slice(i * row, row) });
            }
        });
        Rows { units: all, row }
    }

    /// The columns of a matrix `[rows, cols]`.
    fn transposed(packing: Packing, x: &[f32], (rows, cols): (usize, usize)) -> Rows {
        let row = packing.depth(rows) + GAP;
        let mut all = vec![0u32; cols * row];
        let to = Shared::new(&mut all);
        for_each_task(cols.div_ceil(PANEL), |p| {
            let width = PANEL.min(cols - p * PANEL);
            // SAFETY: each task has the rows of its own columns.
            let to = unsafe { to.slice(p * PANEL * row, width * row) };
            packing.columns_as_rows(|i| &x[i * cols + p * PANEL..][..width], (rows, width), to, row);
        });
        Rows { units: all, row }
    }
}

/// Rows `rows` of W and 64 columns from `column` on, as a panel `[units of rows, 64]`.
pub(crate) fn pack_weights(
    packing: Packing,
    w_nk: &Weight,
    rows: Range<usize>,
    column: usize,
    panel: &mut [u32],
) {
    let [_, k] = w_nk.shape();
    let (isa, width) = (packing.isa, PANEL.min(k - column));
    if let Weight::Plain(w) = w_nk
        && w.dtype() == DType::F32
    {
        let w = &w.as_f32()[rows.start * k + column..];
        return packing.columns(|i| &w[i * k..][..width], (rows.len(), width), panel, PANEL);
    }
    let half = match w_nk {
        Weight::Plain(w) if w.dtype() == DType::BF16 => Some(w.as_bf16()),
        _ => None,
    };
    let numbers = packing.units().len();
    let mut wide = [[0f32; PANEL]; 2];
    for (first, to) in rows.clone().step_by(numbers).zip(panel.chunks_mut(PANEL)) {
        let these = first..rows.end.min(first + numbers);
        if let Some(half) = half
            && these.len() == 2
        {
            let row = |j: usize| &half[j * k + column..][..width];
            pair_bf16(isa, row(first), row(first + 1), &mut to[..width]);
            continue;
        }
        for (j, wide) in these.clone().zip(&mut wide) {
            w_nk.widen(isa, j, column, &mut wide[..width]);
        }
        packing.columns(|i| &wide[i][..width], (these.len(), width), to, PANEL);
    }
}

/// Memory that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    sums: Vec<f32>,
    panel: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// B, 64 columns at a time.
enum Panels<'a> {
    /// `[panel][depth][64]`
    Packed { panels: &'a [u32], depth: usize },
    /// Packed when they are needed.
    Weights(&'a Weight),
}

impl Panels<'_> {
    /// Units `first..first + len` of the columns from `column` on.
    fn block<'s>(
        &'s self,
        packing: Packing,
        (first, len): (usize, usize),
        column: usize,
        scratch: &'s mut Vec<u32>,
    ) -> B<'s> {
        let units = match *self {
            Panels::Packed { panels, depth } => {
                &panels[(column / PANEL * depth + first) * PANEL..][..len * PANEL]
            }
            Panels::Weights(w_nk) => {
                scratch.clear();
                scratch.resize(len * PANEL, 0);
                let numbers = packing.units().len();
                let rows = first * numbers..w_nk.shape()[0].min((first + len) * numbers);
                pack_weights(packing, w_nk, rows, column, scratch);
                scratch
            }
        };
        B { units, row: PANEL }
    }
}

/// c `[m, width]` += a `[m, depth]` · b `[depth, width]`; depth counts numbers.
fn add_product(
    packing: Packing,
    (m, depth, width): (usize, usize, usize),
    (a, a_row): (&[u32], usize),
    b: &Panels<'_>,
    c: &mut [f32],
) {
    let depth = packing.depth(depth);
    let (row_blocks, column_blocks) = (m.div_ceil(ROWS), width.div_ceil(PANEL * PANELS));
    let out = Shared::new(c);
    for_each_task(row_blocks * column_blocks, |task| {
        let (m0, i0) = (task / column_blocks * ROWS, task % column_blocks * PANEL * PANELS);
        let (m1, i1) = (m.min(m0 + ROWS), width.min(i0 + PANEL * PANELS));
        SCRATCH.with_borrow_mut(|Scratch { sums, panel }| {
            let columns = (i1 - i0).next_multiple_of(COLUMNS);
            sums.clear();
            sums.resize((m1 - m0) * columns, 0.0);
            for first in (0..depth).step_by(DEPTH) {
                let len = DEPTH.min(depth - first);
                let a = A { bytes: bytemuck::cast_slice(&a[m0 * a_row + first..]), row: a_row * 4, unit: 4 };
                for i in (i0..i1).step_by(PANEL) {
                    let b = b.block(packing, (first, len), i, panel);
                    let size = (m1 - m0, len, PANEL.min(columns - (i - i0)));
                    packing.multiply(size, a, b, &mut sums[i - i0..], columns);
                }
            }
            for (i, sums) in (m0..m1).zip(sums.chunks(columns)) {
                // SAFETY: each task has its own columns of its own rows.
                let to = unsafe { out.slice(i * width + i0, i1 - i0) };
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Epilogue, linear,
        testing::{assert_close, check_gradient, random},
    };
    use proptest::prelude::*;

    #[test]
    fn gradients_are_finite_differences() {
        for (t, k, n) in [(3, 19, 11), (40, 23, 35)] {
            let (x, w, b, dy) = (random(1, &[t, k]), random(2, &[n, k]), random(3, &[n]), random(4, &[t, n]));
            let f = |x: &Tensor, w: &Tensor, b: &Tensor| {
                linear(x, &w.clone().into(), Epilogue { bias: Some(b), ..Epilogue::default() })
            };
            check_gradient("x", &x, &input_gradient(&dy, &w.clone().into()), &dy, |x| f(x, &w, &b));
            check_gradient("w", &w, &weight_gradient(&dy, &x, DType::F32), &dy, |w| f(&x, w, &b));
            check_gradient("bias", &b, &bias_gradient(&dy), &dy, |b| f(&x, &w, b));
        }
    }

    fn weight(kind: &str, n: usize, k: usize) -> Weight {
        let w = random(2, &[n, k]);
        match kind {
            "f32" => w.into(),
            "bf16" => w.cast(DType::BF16).into(),
            "f16" => w.cast(DType::F16).into(),
            "int8" => Weight::quantise_int8(&w),
            _ => Weight::quantise_int4(&w),
        }
    }

    /// Both gradients on top of what is there, beside three loops in f64.
    fn check(t: usize, k: usize, n: usize, kind: &str) {
        let k = if kind == "int4" { k.next_multiple_of(32) } else { k };
        let (w, x, dy) = (weight(kind, n, k), random(3, &[t, k]), random(4, &[t, n]));
        let compute = gradient_dtype(&w);
        let round = |x: &Tensor| x.cast(compute).to_f32_vec();
        let (rw, rx, rdy) = (round(&w.to_f32()), round(&x), round(&dy));
        let before = (random(5, &[t, k]), random(6, &[n, k]));
        let (mut dx, mut dw) = (before.0.clone(), before.1.clone());
        for i in 0..t {
            for j in 0..k {
                let sum: f64 = (0..n).map(|l| f64::from(rdy[i * n + l]) * f64::from(rw[l * k + j])).sum();
                dx.as_f32_mut()[i * k + j] += sum as f32;
            }
        }
        for i in 0..n {
            for j in 0..k {
                let sum: f64 = (0..t).map(|l| f64::from(rdy[l * n + i]) * f64::from(rx[l * k + j])).sum();
                dw.as_f32_mut()[i * k + j] += sum as f32;
            }
        }
        for isa in Isa::available() {
            let (mut got_dx, mut got_dw) = before.clone();
            add_input_gradient_on(isa, &dy, &w, &mut got_dx);
            add_weight_gradient_on(isa, &dy, &x, compute, got_dw.as_f32_mut());
            assert_close(&got_dx, &dx, 3e-6 * (n as f32).sqrt());
            assert_close(&got_dw, &dw, 3e-6 * (t as f32).sqrt());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equal_three_loops_on_ragged_shapes(
            t in 1usize..90, k in 1usize..150, n in 1usize..130, kind in 0..5usize,
        ) {
            check(t, k, n, ["f32", "bf16", "f16", "int8", "int4"][kind]);
        }
    }

    #[test]
    fn equal_three_loops_across_blocks() {
        for kind in ["f32", "bf16", "int4"] {
            check(5, 33, 2100, kind);
            check(1300, 40, 13, kind);
            check(520, 200, 530, kind);
        }
    }

    #[test]
    fn parts_are_the_whole() {
        for (t, n, k) in [(300, 200, 7000), (5, 70, 3), (33, 1, 64)] {
            let (x, dy) = (random(3, &[t, k]), random(4, &[t, n]));
            for compute in [DType::F32, DType::BF16] {
                let whole = weight_gradient(&dy, &x, compute);
                let mut all = Vec::new();
                weight_gradient_in_parts(&dy, &x, compute, &mut |from, part| {
                    assert_eq!(from, all.len());
                    all.extend_from_slice(part);
                });
                assert!(all == whole.as_f32(), "{t} {n} {k}");
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        for kind in ["f32", "bf16", "int8"] {
            let (w, x, dy) = (weight(kind, 600, 300), random(3, &[530, 300]), random(4, &[530, 600]));
            let both = || (input_gradient(&dy, &w), weight_gradient(&dy, &x, gradient_dtype(&w)));
            let want = both();
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(both);
                assert!(got.0.as_f32() == want.0.as_f32() && got.1.as_f32() == want.1.as_f32(), "{kind}");
            }
        }
    }
}
