//! Many rows times a small matrix, one that stays in the second-level cache: it is packed once, as the right factor, and a
//! task takes some rows of x from end to end, so that neither packed rows nor sums ever leave the cache.
//!
//! Contract. Factors are rounded as [`Packing`] says, sums are f32. Which matrices are taken follows from their shape alone,
//! and an element's value depends neither on the number of threads nor on other rows (but see `product.rs` on AMX).
//!
//! Legend: t rows of x, k inputs, n outputs.

use crate::{
    Isa, Tensor, Weight, bf16, gradient_dtype,
    linear_backward::pack_weights,
    packing::Packing,
    parallel::{Shared, filled, for_each_task},
    product::{A, B, COLUMNS, Units},
    transpose::transpose,
};
use std::cell::RefCell;

/// Columns of the matrix in a panel.
const PANEL: usize = 64;
/// The most bytes of a packed matrix.
const MOST_BYTES: usize = 1 << 20;
/// The most rows of x in a task, and what their number is a multiple of.
const ROWS: (usize, usize) = (96, 32);
/// Units of the sum that are taken at a time.
const DEPTH: usize = 512;
/// Units between packed rows beyond their own: rows a power of two apart would meet in one set of the cache.
const GAP: usize = 16;

/// Memory that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    /// Packed rows.
    rows: Vec<u32>,
    /// Sums that do not lie in the result.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A packed matrix `[k, n]`.
pub(crate) struct Resident {
    packing: Packing,
    /// `[panel][units of k][64]`
    panels: Vec<u32>,
    k: usize,
    n: usize,
}

impl Resident {
    /// Wᵀ of `w_nk`, for x·Wᵀ; `None` where W is large or quantised.
    pub(crate) fn forward(isa: Isa, w_nk: &Weight) -> Option<Resident> {
        let Weight::Plain(w) = w_nk else { return None };
        let [n, k] = w_nk.shape();
        let half = (w.dtype() == crate::DType::BF16).then(|| w.as_bf16());
        Resident::pack(isa, w_nk, (k, n), |packing, column, panel| {
            let (depth, width) = (packing.depth(k), PANEL.min(n - column));
            let (mut stage, mut wide) = (vec![0u32; width * depth], vec![0f32; k]);
            for (j, row) in (column..column + width).zip(stage.chunks_mut(depth)) {
                match half {
                    Some(half) if packing.units() == Units::Bf16 => {
                        let row = &mut bytemuck::cast_slice_mut::<u32, bf16>(row)[..k];
                        row.copy_from_slice(&half[j * k..][..k]);
                    }
                    _ => {
                        w_nk.widen(isa, j, 0, &mut wide);
                        packing.row(&wide, row);
                    }
                }
            }
            transpose(isa, &stage, depth, panel, PANEL, (width, depth));
        })
    }

    /// `w_nk` itself, for dy·W; `None` where W is large or quantised.
    pub(crate) fn backward(isa: Isa, w_nk: &Weight) -> Option<Resident> {
        let [n, k] = w_nk.shape();
        Resident::pack(isa, w_nk, (n, k), |packing, column, panel| {
            pack_weights(packing, w_nk, 0..n, column, panel);
        })
    }

    fn pack(
        isa: Isa,
        w_nk: &Weight,
        (k, n): (usize, usize),
        pack: impl Fn(Packing, usize, &mut [u32]) + Sync + Send,
    ) -> Option<Resident> {
        let packing = Packing::new(isa, gradient_dtype(w_nk));
        let (depth, num_panels) = (packing.depth(k), n.div_ceil(PANEL));
        let units = num_panels.checked_mul(depth * PANEL)?;
        if !matches!(w_nk, Weight::Plain(_)) || units > MOST_BYTES / 4 || units == 0 {
            return None;
        }
        let mut panels = vec![0u32; units];
        let all = Shared::new(&mut panels);
        for_each_task(num_panels, |p| {
            // SAFETY: each task has its own panel.
            pack(packing, p * PANEL, unsafe { all.slice(p * depth * PANEL, depth * PANEL) });
        });
        Some(Resident { packing, panels, k, n })
    }

    /// The products of `x_tk` with matrices of one shape; `finish(row, values)` gets the values of each row and leaves the
    /// result in the first → `[t, n]`.
    pub(crate) fn product(
        all: &[Resident],
        x_tk: &Tensor,
        finish: impl Fn(usize, &mut [&mut [f32]]) + Sync + Send,
    ) -> Vec<f32> {
        let (t, n) = (x_tk.shape()[0], all[0].n);
        let x = x_tk.as_f32();
        let rows = rows_of_task(t);
        filled(t * n, rows * n, |task, y| Resident::run(all, x, task * rows, y, &finish))
    }

    /// dx `[t, n]` += x·W.
    pub(crate) fn add_to(&self, x_tk: &Tensor, y_tn: &mut [f32]) {
        use rayon::prelude::*;
        let rows = rows_of_task(x_tk.shape()[0]);
        let (x, all) = (x_tk.as_f32(), std::slice::from_ref(self));
        y_tn.par_chunks_mut(rows * self.n).with_max_len(1).enumerate().for_each(|(task, y)| {
            Resident::run(all, x, task * rows, y, &|_, _| ());
        });
    }

    /// Adds the products of the rows of x from `first` on to `y`, as many as that has, and finishes them.
    fn run(
        all: &[Resident],
        x: &[f32],
        first: usize,
        y: &mut [f32],
        finish: &(impl Fn(usize, &mut [&mut [f32]]) + Sync),
    ) {
        let &Resident { packing, k, n, .. } = &all[0];
        let (depth, count) = (packing.depth(k), y.len() / n);
        let row = depth + GAP;
        SCRATCH.with_borrow_mut(|Scratch { rows, sums }| {
            rows.resize(rows.len().max(count * row), 0);
            for (i, units) in rows.chunks_mut(row).enumerate().take(count) {
                units[depth - 1] = 0;
                packing.row(&x[(first + i) * k..][..k], units);
            }
            let a = A { bytes: bytemuck::cast_slice(rows), row: row * 4, unit: 4 };
            // The first product goes to y where its columns are whole vectors, all others into the scratch.
            let width = n.next_multiple_of(COLUMNS);
            let in_place = usize::from(width == n);
            sums.clear();
            sums.resize((all.len() - in_place) * count * width, 0.0);
            let mut blocks = sums.chunks_mut(count * width);
            if in_place == 0 {
                let sums = blocks.next().unwrap_or_default();
                sums.chunks_mut(width).zip(y.chunks(n)).for_each(|(sums, y)| sums[..n].copy_from_slice(y));
                all[0].multiply(a, count, sums, width);
            } else {
                all[0].multiply(a, count, y, width);
            }
            blocks.zip(&all[1..]).for_each(|(sums, matrix)| matrix.multiply(a, count, sums, width));
            for (i, y) in y.chunks_mut(n).enumerate() {
                let mut others = sums.chunks_mut(count * width).map(|sums| &mut sums[i * width..][..n]);
                if in_place == 0
                    && let Some(sums) = others.next()
                {
                    y.copy_from_slice(sums);
                }
                match others.next() {
                    None => finish(first + i, &mut [y]),
                    Some(other) => finish(first + i, &mut [y, other]),
                }
            }
        });
    }

    fn multiply(&self, a: A<'_>, rows: usize, c: &mut [f32], c_row: usize) {
        let depth = self.packing.depth(self.k);
        for (p, panel) in self.panels.chunks(depth * PANEL).enumerate() {
            let width = (self.n - p * PANEL).min(PANEL).next_multiple_of(COLUMNS);
            for from in (0..depth).step_by(DEPTH) {
                let a = A { bytes: &a.bytes[from * 4..], ..a };
                let b = B { units: &panel[from * PANEL..], row: PANEL };
                let size = (rows, DEPTH.min(depth - from), width);
                self.packing.multiply(size, a, b, &mut c[p * PANEL..], c_row);
            }
        }
    }
}

/// Rows of x in a task, of t.
fn rows_of_task(t: usize) -> usize {
    t.div_ceil(8).next_multiple_of(ROWS.1).clamp(ROWS.1, ROWS.0)
}
