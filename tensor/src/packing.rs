//! The factors of the backward products, packed as units: rows along the sum for the left one, columns side by side for the
//! right one. Both are rounded to bf16 first where the contract of the product says so, on every machine.

use crate::{
    DType, Isa, bf16,
    narrow::{narrow, pair, round_to_bf16},
    product::{A, B, Units, multiply_bf16, multiply_f32},
    transpose::transpose,
};

/// What factors are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    Exact,
    Bf16,
}

impl Factor {
    /// bf16 for bf16, as they are for anything else.
    pub(crate) fn of(compute: DType) -> Factor {
        if compute == DType::BF16 { Factor::Bf16 } else { Factor::Exact }
    }

    /// As what `isa` multiplies them.
    pub(crate) fn units(self, isa: Isa) -> Units {
        match self {
            Factor::Bf16 if Units::Bf16.are_of(isa) => Units::Bf16,
            Factor::Bf16 | Factor::Exact => Units::F32,
        }
    }
}

/// An instruction set, and what the factors of a product are rounded to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing {
    pub(crate) isa: Isa,
    pub(crate) factor: Factor,
}

impl Packing {
    pub(crate) fn new(isa: Isa, compute: DType) -> Packing {
        Packing { isa, factor: Factor::of(compute) }
    }

    pub(crate) fn units(self) -> Units {
        self.factor.units(self.isa)
    }

    /// Units of so many numbers.
    pub(crate) fn depth(self, numbers: usize) -> usize {
        numbers.div_ceil(self.units().len())
    }

    /// One row along the sum.
    pub(crate) fn row(self, from: &[f32], to: &mut [u32]) {
        if self.units() == Units::Bf16 {
            narrow(self.isa, from, &mut bytemuck::cast_slice_mut::<u32, bf16>(to)[..from.len()]);
        } else {
            self.exact(from, to);
        }
    }

    /// f32, rounded if need be.
    fn exact(self, from: &[f32], to: &mut [u32]) {
        let to = &mut bytemuck::cast_slice_mut(to)[..from.len()];
        to.copy_from_slice(from);
        if self.factor == Factor::Bf16 {
            round_to_bf16(self.isa, to);
        }
    }

    /// Rows along the columns become units along the sum: row u of `to` holds rows u (f32) or 2u and 2u + 1 (bf16) of the matrix,
    /// whose row i is `from(i)`. All rows have `width` numbers; those of `to` stand `to_row` apart.
    pub(crate) fn columns<'a>(
        self,
        from: impl Fn(usize) -> &'a [f32],
        (rows, width): (usize, usize),
        to: &mut [u32],
        to_row: usize,
    ) {
        for (unit, to) in to.chunks_mut(to_row).enumerate().take(self.depth(rows)) {
            let to = &mut to[..width];
            if self.units() != Units::Bf16 {
                self.exact(from(unit), to);
            } else if 2 * unit + 1 < rows {
                pair(self.isa, from(2 * unit), from(2 * unit + 1), to);
            } else {
                pair(self.isa, from(2 * unit), &vec![0.0; width], to);
            }
        }
    }

    /// The transpose of [`Packing::columns`]: row j of `to` is column j of the matrix, along the sum.
    pub(crate) fn columns_as_rows<'a>(
        self,
        from: impl Fn(usize) -> &'a [f32],
        (rows, width): (usize, usize),
        to: &mut [u32],
        to_row: usize,
    ) {
        let depth = self.depth(rows);
        let mut stage = vec![0; depth * width];
        self.columns(from, (rows, width), &mut stage, width);
        transpose(self.isa, &stage, width, to, to_row, (depth, width));
    }

    /// Rows along the sum become columns: the transpose of [`Packing::row`] of each row.
    pub(crate) fn rows_as_columns<'a>(
        self,
        from: impl Fn(usize) -> &'a [f32],
        (rows, width): (usize, usize),
        to: &mut [u32],
        to_row: usize,
    ) {
        let depth = self.depth(width);
        let mut stage = vec![0; rows * depth];
        for (i, stage) in stage.chunks_mut(depth).enumerate() {
            self.row(from(i), stage);
        }
        transpose(self.isa, &stage, depth, to, to_row, (rows, depth));
    }

    /// c += a·b; the size is (rows, units, columns).
    pub(crate) fn multiply(
        self,
        size: (usize, usize, usize),
        a: A<'_>,
        b: B<'_>,
        c: &mut [f32],
        c_row: usize,
    ) {
        match self.units() {
            Units::Bf16 => multiply_bf16(self.isa, size, a, b, c, c_row),
            _ => multiply_f32(self.isa, size, a, b, c, c_row),
        }
    }
}
