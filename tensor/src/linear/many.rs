//! Many rows of x: block products of the weights, as they lie, with packed x.
//!
//! A task takes a few rows of W against up to 1024 rows of x and keeps the sums, transposed, in the cache while it goes through
//! the blocks of inputs. A block of W is used in place where its numbers are what the product takes; other types are
//! widened into a scratch block first, and for AMX copied there, because rows that stand a multiple of 4 KiB apart meet in one
//! set of the first-level cache.

use super::{
    finish_row,
    panels::{Inputs, PANEL, Panels, blocks},
};
use crate::{
    DType, Isa, Tensor, Weight, bf16,
    parallel::{Shared, for_each_task},
    product::{A, B, ByteTerms, COLUMNS, Units, multiply_bf16, multiply_bytes, multiply_f32},
    transpose::transpose,
    weight::widen_to_bf16,
};
use std::cell::RefCell;

/// Rows of W in a task: a multiple of the register tile's rows, of a vector and, nearly, of AMX's 32.
const N_BLOCK: usize = 96;
/// Rows of x in a task.
const T_BLOCK: usize = 1024;

/// Memory that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    /// Sums, transposed: `[matrix][N_BLOCK][columns]`.
    sums: Vec<f32>,
    /// A block of W.
    block: Vec<u32>,
    /// Finished rows on their way out.
    rows: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

pub(super) fn product<F>(isa: Isa, x_tk: &Tensor, weights: &[&Weight], finish: &F) -> Vec<f32>
where
    F: Fn(usize, usize, &mut [&mut [f32]]) + Sync,
{
    let (t, [n, k]) = (x_tk.shape()[0], weights[0].shape());
    let inputs = Inputs::of(weights[0], true);
    let panels = Panels::pack(isa, x_tk, inputs);
    let mut y = vec![0.0; t * n];
    let out = Shared::new(&mut y);
    let (n_blocks, t_blocks) = (n.div_ceil(N_BLOCK), t.div_ceil(T_BLOCK));
    for_each_task(n_blocks * t_blocks, |task| {
        let (n0, t0) = (task % n_blocks * N_BLOCK, task / n_blocks * T_BLOCK);
        let (n1, t1) = (n.min(n0 + N_BLOCK), t.min(t0 + T_BLOCK));
        SCRATCH.with_borrow_mut(|scratch| {
            let columns = (t1 - t0).next_multiple_of(COLUMNS);
            scratch.sums.clear();
            scratch.sums.resize(weights.len() * N_BLOCK * columns, 0.0);
            for (w, sums) in weights.iter().zip(scratch.sums.chunks_mut(N_BLOCK * columns)) {
                let w = w.rows(n0, n1);
                for (b, (k0, len)) in blocks(k, inputs).enumerate() {
                    let a = left(isa, &w, panels.units, (k0, len), &mut scratch.block);
                    for p in (t0..t1).step_by(PANEL) {
                        let width = (t1 - p).min(PANEL).next_multiple_of(COLUMNS);
                        let block = panels.block(p / PANEL, b, k0, len);
                        let size = (n1 - n0, len.div_ceil(panels.units.len()), width);
                        multiply(isa, panels.units, inputs, size, a, &block, &mut sums[p - t0..], columns);
                    }
                }
            }
            store(isa, weights, scratch, columns, (n0, n1), (t0, t1), finish, &out);
        });
    });
    y
}

/// sums += block of W · block of a panel.
#[allow(clippy::too_many_arguments, reason = "one place of use")]
fn multiply(
    isa: Isa,
    units: Units,
    inputs: Inputs,
    size: (usize, usize, usize),
    a: A<'_>,
    block: &super::panels::PanelBlock<'_>,
    sums: &mut [f32],
    columns: usize,
) {
    let b = B { units: block.units, row: PANEL };
    match units {
        Units::Bf16 => multiply_bf16(isa, size, a, b, sums, columns),
        Units::Bytes => {
            let terms = ByteTerms { start: block.start, scale: block.scale };
            multiply_bytes(isa, size, a, b, sums, columns, terms);
        }
        Units::F32 if inputs == Inputs::Bytes => {
            // Whole numbers as f32: exact sums, scaled afterwards.
            let (rows, _, width) = size;
            let mut whole = vec![0.0; rows * width];
            multiply_f32(isa, size, a, b, &mut whole, width);
            for (sums, whole) in sums.chunks_mut(columns).zip(whole.chunks(width)) {
                for ((sum, x), scale) in sums.iter_mut().zip(whole).zip(block.scale) {
                    *sum += x * scale;
                }
            }
        }
        Units::F32 => multiply_f32(isa, size, a, b, sums, columns),
    }
}

/// All rows of w, inputs k0..k0 + len, as units.
fn left<'a>(
    isa: Isa,
    w: &'a Weight,
    units: Units,
    (k0, len): (usize, usize),
    scratch: &'a mut Vec<u32>,
) -> A<'a> {
    let [n, k] = w.shape();
    let count = len.div_ceil(units.len());
    let in_place = match (w, units) {
        (Weight::Plain(w), Units::F32) if w.dtype() == DType::F32 => Some(w),
        (Weight::Plain(w), Units::Bf16) if w.dtype() == DType::BF16 => Some(w),
        (Weight::Int8 { values, .. }, Units::Bytes) => Some(values),
        _ => None,
    };
    if let Some(w) = in_place
        && len.is_multiple_of(units.len())
        && isa != Isa::Amx
    {
        let size = w.dtype().size();
        return A { bytes: &w.bytes()[k0 * size..], row: k * size, unit: 4 };
    }
    let row_units = count + 16;
    scratch.clear();
    scratch.resize(n * row_units, 0);
    for (j, row) in scratch.chunks_mut(row_units).enumerate() {
        match (w, units) {
            (Weight::Plain(w), Units::Bf16) => {
                let row: &mut [bf16] = bytemuck::cast_slice_mut(row);
                row[..len].copy_from_slice(&w.as_bf16()[j * k + k0..][..len]);
            }
            (w, Units::Bf16) => widen_to_bf16(isa, w, j, k0, &mut bytemuck::cast_slice_mut(row)[..len]),
            (Weight::Int8 { values, .. }, Units::Bytes) => {
                let row: &mut [u8] = bytemuck::cast_slice_mut(row);
                row[..len].copy_from_slice(&values.as_u8()[j * k + k0..][..len]);
            }
            // Whole numbers: the scale of a row comes last.
            (Weight::Int8 { values, .. }, Units::F32) => {
                let row: &mut [f32] = bytemuck::cast_slice_mut(row);
                let from = &values.as_u8()[j * k + k0..][..len];
                row.iter_mut().zip(from).for_each(|(x, &q)| *x = f32::from(q) - 128.0);
            }
            (w, _) => {
                let row: &mut [f32] = &mut bytemuck::cast_slice_mut(row)[..len];
                w.widen(isa, j, k0, row);
                if matches!(w, Weight::Int4 { .. }) {
                    crate::narrow::round_to_bf16(isa, row);
                }
            }
        }
    }
    A { bytes: bytemuck::cast_slice(scratch), row: row_units * 4, unit: 4 }
}

/// Transposes the sums back, sixteen rows of x at a time, scales and finishes them.
#[allow(clippy::too_many_arguments, reason = "one place of use")]
fn store<F>(
    isa: Isa,
    weights: &[&Weight],
    scratch: &mut Scratch,
    columns: usize,
    (n0, n1): (usize, usize),
    (t0, t1): (usize, usize),
    finish: &F,
    out: &Shared<'_, f32>,
) where
    F: Fn(usize, usize, &mut [&mut [f32]]) + Sync,
{
    let (width, n) = (n1 - n0, weights[0].shape()[0]);
    let group = COLUMNS * N_BLOCK;
    scratch.rows.resize(weights.len() * group, 0.0);
    for first in (t0..t1).step_by(COLUMNS) {
        let parts = scratch.sums.chunks(N_BLOCK * columns).zip(scratch.rows.chunks_mut(group));
        for ((sums, rows), w) in parts.zip(weights) {
            let from = bytemuck::cast_slice(&sums[first - t0..]);
            transpose(isa, from, columns, bytemuck::cast_slice_mut(rows), N_BLOCK, (width, COLUMNS));
            if let Weight::Int8 { scale, .. } = w {
                let scale = &scale.as_f32()[n0..n1];
                for row in rows.chunks_mut(N_BLOCK) {
                    row.iter_mut().zip(scale).for_each(|(y, scale)| *y *= scale);
                }
            }
        }
        for row in first..t1.min(first + COLUMNS) {
            let at = (row - first) * N_BLOCK;
            let mut parts = scratch.rows.chunks_mut(group).map(|rows| &mut rows[at..at + width]);
            finish_row(finish, n0, row, &mut parts);
            // SAFETY: each task writes its own columns n0..n1 of its own rows t0..t1.
            unsafe { out.slice(row * n + n0, width) }.copy_from_slice(&scratch.rows[at..at + width]);
        }
    }
}
