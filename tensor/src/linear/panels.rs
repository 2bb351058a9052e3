//! x packed as the right operand of block products: its rows become columns, 64 side by side in a panel.

use super::super::product::Units;
use crate::{
    Isa, Tensor, Weight, bf16,
    narrow::{narrow, quantise, round_to_bf16},
    parallel::{Shared, for_each_task},
    transpose::transpose,
};

/// Rows of x in a panel.
pub(super) const PANEL: usize = 64;

/// What the kind of the weights asks of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// f32 as it is.
    Exact,
    /// Rounded to bf16.
    Bf16,
    /// Signed bytes with a scale for each row and block.
    Bytes,
}

impl Inputs {
    pub(crate) fn of(w: &Weight, many: bool) -> Inputs {
        match w {
            Weight::Plain(w) if w.dtype() == crate::DType::BF16 => Inputs::Bf16,
            Weight::Plain(_) => Inputs::Exact,
            Weight::Int4 { .. } if many => Inputs::Bf16,
            Weight::Int8 { .. } | Weight::Int4 { .. } => Inputs::Bytes,
        }
    }

    /// How the products take them on `isa`: as f32 where it has no narrower ones.
    pub(crate) fn units(self, isa: Isa) -> Units {
        let units = match self {
            Inputs::Exact => Units::F32,
            Inputs::Bf16 => Units::Bf16,
            Inputs::Bytes => Units::Bytes,
        };
        if units.are_of(isa) { units } else { Units::F32 }
    }
}

/// The blocks (first input, number of inputs) that k inputs are taken in: nearly equal, each but the last a multiple of 128.
///
/// Blocks of a panel (64 rows) stay in the second-level cache. Of bytes at most 1024 are summed at once, so that sums
/// of their products are exact in f32 too, where an instruction set has no integer products.
pub(crate) fn blocks(k: usize, inputs: Inputs) -> impl Iterator<Item = (usize, usize)> + Clone {
    let most = if inputs == Inputs::Exact { 512 } else { 1024 };
    let len = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(128);
    (0..k).step_by(len.max(1)).map(move |from| (from, len.min(k - from)))
}

/// Packed rows of x.
pub(super) struct Panels {
    pub(super) units: Units,
    /// `[panel][unit][64]`
    data: Vec<u32>,
    /// Units of a column, all blocks together.
    depth: usize,
    /// Of bytes: scale of every row in every block, `[panel][block][64]`.
    scale: Vec<f32>,
    /// Of bytes: -128 · the sum of the block, what undoes the middle of unsigned weights.
    start: Vec<i32>,
    num_blocks: usize,
}

/// One block of one panel.
pub(super) struct PanelBlock<'a> {
    pub(super) units: &'a [u32],
    pub(super) scale: &'a [f32],
    pub(super) start: &'a [i32],
}

impl Panels {
    pub(super) fn pack(isa: Isa, x_tk: &Tensor, inputs: Inputs) -> Panels {
        let (t, k) = (x_tk.shape()[0], x_tk.shape()[1]);
        let units = inputs.units(isa);
        // A block but the last has whole units, so each begins at a whole unit.
        let depth = k.div_ceil(units.len());
        let (num_panels, num_blocks) = (t.div_ceil(PANEL), blocks(k, inputs).count());
        let mut data = vec![0; num_panels * depth * PANEL];
        let terms = if inputs == Inputs::Bytes { num_panels * num_blocks * PANEL } else { 0 };
        let (mut scale, mut start) = (vec![0.0; terms], vec![0; terms]);
        {
            let (data, scale, start) =
                (Shared::new(&mut data), Shared::new(&mut scale), Shared::new(&mut start));
            for_each_task(num_panels * num_blocks, |task| {
                let (p, b) = (task / num_blocks, task % num_blocks);
                let Some((k0, len)) = blocks(k, inputs).nth(b) else { return };
                let rows = (t - p * PANEL).min(PANEL);
                let x = &x_tk.as_f32()[p * PANEL * k + k0..];
                let (first, count) = (k0 / units.len(), len.div_ceil(units.len()));
                // SAFETY: each task has its own block of its own panel.
                let (to, scale, start) = unsafe {
                    let terms = if inputs == Inputs::Bytes { PANEL } else { 0 };
                    (
                        data.slice((p * depth + first) * PANEL, count * PANEL),
                        scale.slice(task * terms, terms),
                        start.slice(task * terms, terms),
                    )
                };
                pack_block(isa, inputs, units, x, k, (rows, len), to, scale, start);
            });
        }
        Panels { units, data, depth, scale, start, num_blocks }
    }

    /// Block b, which begins at input k0 and has `len`, of panel p.
    pub(super) fn block(&self, p: usize, b: usize, k0: usize, len: usize) -> PanelBlock<'_> {
        let (first, count) = (k0 / self.units.len(), len.div_ceil(self.units.len()));
        let terms = (p * self.num_blocks + b) * PANEL;
        let terms = if self.scale.is_empty() { 0..0 } else { terms..terms + PANEL };
        PanelBlock {
            units: &self.data[(p * self.depth + first) * PANEL..][..count * PANEL],
            scale: &self.scale[terms.clone()],
            start: &self.start[terms],
        }
    }
}

/// Rows of one block: converted row by row, then transposed as units.
#[allow(clippy::too_many_arguments, reason = "one place of use")]
fn pack_block(
    isa: Isa,
    inputs: Inputs,
    units: Units,
    x: &[f32],
    k: usize,
    (rows, len): (usize, usize),
    to: &mut [u32],
    scale: &mut [f32],
    start: &mut [i32],
) {
    if inputs == Inputs::Exact {
        transpose(isa, bytemuck::cast_slice(x), k, to, PANEL, (rows, len));
        return;
    }
    let count = len.div_ceil(units.len());
    // Rows of the staging area are a vector apart from a power of two, so that they do not meet in one cache set.
    let stage_row = count + 16;
    let mut stage = vec![0u32; rows * stage_row];
    for (i, row) in stage.chunks_mut(stage_row).enumerate() {
        let x = &x[i * k..][..len];
        let row = &mut row[..count];
        match (inputs, units) {
            (Inputs::Bf16, Units::Bf16) => {
                narrow(isa, x, &mut bytemuck::cast_slice_mut::<u32, bf16>(row)[..len])
            }
            (Inputs::Bytes, Units::Bytes) => {
                let q = &mut bytemuck::cast_slice_mut::<u32, i8>(row)[..len];
                scale[i] = quantise(isa, x, q);
                start[i] = -128 * q.iter().map(|&q| i32::from(q)).sum::<i32>();
            }
            (Inputs::Bytes, _) => {
                let mut q = vec![0; len];
                scale[i] = quantise(isa, x, &mut q);
                bytemuck::cast_slice_mut::<u32, f32>(row)
                    .iter_mut()
                    .zip(q)
                    .for_each(|(x, q)| *x = f32::from(q));
            }
            _ => {
                let row: &mut [f32] = bytemuck::cast_slice_mut(row);
                row.copy_from_slice(x);
                round_to_bf16(isa, row);
            }
        }
    }
    transpose(isa, &stage, stage_row, to, PANEL, (rows, count));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_inputs() {
        for (k, inputs, want) in [
            (2048, Inputs::Bf16, vec![(0, 1024), (1024, 1024)]),
            (1152, Inputs::Bytes, vec![(0, 640), (640, 512)]),
            (4304, Inputs::Bf16, vec![(0, 896), (896, 896), (1792, 896), (2688, 896), (3584, 720)]),
            (513, Inputs::Exact, vec![(0, 384), (384, 129)]),
            (3, Inputs::Exact, vec![(0, 3)]),
            (0, Inputs::Exact, vec![]),
        ] {
            assert_eq!(blocks(k, inputs).collect::<Vec<_>>(), want, "{k}");
        }
    }
}
