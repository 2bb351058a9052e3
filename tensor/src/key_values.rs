//! The keys and values of one sequence in one layer, kept as the products of attention take them.
//!
//! They lie in panels of 64 positions, which are added as the sequence grows: nothing that was written moves. In a panel a
//! head's keys are `[unit of H][64 positions]`, its values `[unit of positions][H]`, in units of 32 bits: scores and their
//! mixtures are then plain block products, in prefill as in decoding. Clones share panels until one of them writes.
//!
//! Legend: K heads, H head size, S positions.

use crate::{
    DType, Isa, Tensor, bf16,
    narrow::narrow,
    parallel::{Shared, for_each_task},
    product::{COLUMNS, Units},
    transpose::transpose,
};
use std::{ops::Range, sync::Arc};

/// Positions in a panel.
pub(crate) const PANEL: usize = 64;

/// Keys and values of a sequence in one layer; rows are appended as tokens pass.
#[derive(Debug, Clone)]
pub struct KeyValues {
    isa: Isa,
    units: Units,
    /// Whether numbers are rounded to bf16 though they are kept as f32.
    rounds: bool,
    heads: usize,
    head_dim: usize,
    len: usize,
    panels: Vec<Arc<Panel>>,
}

#[derive(Debug, Clone)]
struct Panel {
    /// `[K][depth][64]`
    keys: Vec<u32>,
    /// `[K][64 / numbers of a unit][width]`
    values: Vec<u32>,
}

impl KeyValues {
    /// Nothing yet. Numbers are kept as `dtype`: bf16, or f32 for anything else. Where the machine has no products of
    /// bf16 they are rounded and kept as f32.
    pub fn new(heads: usize, head_dim: usize, dtype: DType) -> Self {
        KeyValues::new_on(Isa::best(), heads, head_dim, dtype)
    }

    /// [`KeyValues::new`] with the kernels of a given instruction set.
    pub fn new_on(isa: Isa, heads: usize, head_dim: usize, dtype: DType) -> Self {
        let rounds = dtype == DType::BF16;
        let units = if rounds && Units::Bf16.are_of(isa) { Units::Bf16 } else { Units::F32 };
        KeyValues { isa, units, rounds, heads, head_dim, len: 0, panels: Vec::new() }
    }

    /// Positions read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.panels.truncate(self.len.div_ceil(PANEL));
    }

    /// Bytes of what was read so far.
    pub fn num_bytes(&self) -> usize {
        2 * self.len * self.heads * self.head_dim * 4 / self.units.len()
    }

    /// Adds rows: both f32 `[t, K·H]`.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) {
        let row = self.heads * self.head_dim;
        assert!(
            keys.len() == values.len() && keys.len().is_multiple_of(row),
            "{keys:?} {values:?} in rows of {row}"
        );
        let t = keys.len() / row;
        let end = self.len + t;
        let (depth, width) = (self.depth(), self.width());
        let value_rows = PANEL / self.units.len();
        self.panels.resize_with(end.div_ceil(PANEL), || {
            Arc::new(Panel {
                keys: vec![0; self.heads * depth * PANEL],
                values: vec![0; self.heads * value_rows * width],
            })
        });
        let first = self.len / PANEL;
        let (heads, head_dim, units, rounds, isa, len) =
            (self.heads, self.head_dim, self.units, self.rounds, self.isa, self.len);
        let mut panels: Vec<&mut Panel> = self.panels[first..].iter_mut().map(Arc::make_mut).collect();
        let count = panels.len();
        let panels = Shared::new(&mut panels);
        for_each_task(count, |p| {
            // SAFETY: each task has its own panel.
            let panel = &mut unsafe { panels.slice(p, 1) }[0];
            // Rows of the panel that are new, and where they come from.
            let from = ((first + p) * PANEL).max(len);
            let rows = from % PANEL..from % PANEL + (((first + p + 1) * PANEL).min(end) - from);
            for head in 0..heads {
                let at = (from - len) * row + head * head_dim;
                let write = Write { isa, units, rounds, head_dim, row };
                let to = &mut panel.keys[head * depth * PANEL..][..depth * PANEL];
                write.keys(&keys.as_f32()[at..], rows.clone(), to);
                let to = &mut panel.values[head * value_rows * width..][..value_rows * width];
                write.values(&values.as_f32()[at..], rows.clone(), width, to);
            }
        });
        self.len = end;
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn units(&self) -> Units {
        self.units
    }

    /// Units of a key.
    pub(crate) fn depth(&self) -> usize {
        self.head_dim.div_ceil(self.units.len())
    }

    /// Columns of values: H rounded up to whole vectors.
    pub(crate) fn width(&self) -> usize {
        self.head_dim.next_multiple_of(COLUMNS)
    }

    /// Keys of a head in panel p, `[depth, 64]`.
    pub(crate) fn keys(&self, p: usize, head: usize) -> &[u32] {
        let size = self.depth() * PANEL;
        &self.panels[p].keys[head * size..(head + 1) * size]
    }

    /// Values of a head in panel p, `[64 / numbers of a unit, width]`.
    pub(crate) fn values(&self, p: usize, head: usize) -> &[u32] {
        let size = PANEL / self.units.len() * self.width();
        &self.panels[p].values[head * size..(head + 1) * size]
    }

    /// Number i of a head's key and value at a position, as kept.
    pub(crate) fn get(&self, position: usize, head: usize, i: usize) -> (f32, f32) {
        let (p, column) = (position / PANEL, position % PANEL);
        let number = |unit: u32, part: usize| match self.units {
            Units::Bf16 => bf16::from_bits((unit >> (16 * part)) as u16).to_f32(),
            _ => f32::from_bits(unit),
        };
        let n = self.units.len();
        let key = number(self.keys(p, head)[i / n * PANEL + column], i % n);
        let value = number(self.values(p, head)[column / n * self.width() + i], column % n);
        (key, value)
    }
}

/// How rows are written into a panel.
struct Write {
    isa: Isa,
    units: Units,
    rounds: bool,
    head_dim: usize,
    /// Numbers from one row to the next.
    row: usize,
}

impl Write {
    /// Numbers of a row as units.
    fn units_of(&self, x: &[f32], to: &mut [u32]) {
        match self.units {
            Units::Bf16 => narrow(self.isa, x, &mut bytemuck::cast_slice_mut::<u32, bf16>(to)[..x.len()]),
            _ => {
                let to: &mut [f32] = bytemuck::cast_slice_mut(to);
                to.copy_from_slice(x);
                if self.rounds {
                    crate::narrow::round_to_bf16(self.isa, to);
                }
            }
        }
    }

    /// Rows of x become columns.
    fn keys(&self, x: &[f32], rows: Range<usize>, to: &mut [u32]) {
        let depth = self.head_dim.div_ceil(self.units.len());
        let mut stage = vec![0; rows.len() * depth];
        for (i, stage) in stage.chunks_mut(depth).enumerate() {
            self.units_of(&x[i * self.row..][..self.head_dim], stage);
        }
        transpose(self.isa, &stage, depth, &mut to[rows.start..], PANEL, (rows.len(), depth));
    }

    /// Rows of x stay rows; two bf16 of one column stand in a unit.
    fn values(&self, x: &[f32], rows: Range<usize>, width: usize, to: &mut [u32]) {
        let mut units = vec![0; self.head_dim];
        let mut halves = vec![bf16::ZERO; self.head_dim];
        for (i, column) in rows.enumerate() {
            let x = &x[i * self.row..][..self.head_dim];
            match self.units {
                Units::Bf16 => {
                    narrow(self.isa, x, &mut halves);
                    let to = &mut to[column / 2 * width..][..self.head_dim];
                    let (shift, keep) = if column % 2 == 0 { (0, 0xffff_0000) } else { (16, 0x0000_ffff) };
                    for (to, half) in to.iter_mut().zip(&halves) {
                        *to = *to & keep | u32::from(half.to_bits()) << shift;
                    }
                }
                _ => {
                    self.units_of(x, &mut units);
                    to[column * width..][..self.head_dim].copy_from_slice(&units);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Rows come back as they were put in, however they came; a clone goes its own way.
        #[test]
        fn rows_come_back(parts in prop::collection::vec(1usize..90, 1..4), heads in 1usize..4, h in 1usize..40, half: bool) {
            let total: usize = parts.iter().sum();
            let (k, v) = (random(1, &[total, heads * h]), random(2, &[total, heads * h]));
            let dtype = if half { DType::BF16 } else { DType::F32 };
            for isa in Isa::available() {
                let mut kv = KeyValues::new_on(isa, heads, h, dtype);
                let mut from = 0;
                for &part in &parts {
                    kv.append(&k.rows(from, from + part), &v.rows(from, from + part));
                    from += part;
                }
                let mut fork = kv.clone();
                fork.truncate(total / 2);
                fork.append(&v.rows(0, 1), &k.rows(0, 1));
                let (k, v) = (k.cast(dtype).to_f32_vec(), v.cast(dtype).to_f32_vec());
                for position in 0..total {
                    for head in 0..heads {
                        for i in 0..h {
                            let at = (position * heads + head) * h + i;
                            prop_assert_eq!(kv.get(position, head, i), (k[at], v[at]));
                            let first = head * h + i;
                            if position == total / 2 {
                                prop_assert_eq!(fork.get(position, head, i), (v[first], k[first]));
                            }
                        }
                    }
                }
                prop_assert_eq!((kv.len(), fork.len()), (total, total / 2 + 1));
            }
        }
    }
}
