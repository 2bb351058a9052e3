//! The product at the heart of linear layers and attention: c += a·b on blocks that lie in the cache.
//!
//! Contract. All three matrices are strided. a and b hold *units* of 32 bits, so that one loop serves every type: an
//! f32, two bf16 or four bytes, each unit a piece of the inner dimension. a is row-major, as weights, queries and
//! probabilities lie; b has the columns side by side, `[depth, columns]`, which is what packing is for. Sums are f32, of
//! bytes i32. An element does not depend on the rows and columns beside it, but for the order of its sum, which tiles
//! choose by 32 rows and columns.
//!
//! A register tile holds 6 rows of a against 4 vectors of columns: 24 sums, 4 vectors of b and one splat unit of a fit the
//! 32 registers of AVX-512, and need 10 loads for 24 products. Of AVX2's 16 registers 6 rows and 2 vectors take 15.
#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and column")]

use crate::{Isa, isa::multiversion, lane::Lane};
use std::marker::PhantomData;

/// What a unit of 32 bits holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    /// One f32.
    F32,
    /// Two bf16.
    Bf16,
    /// Four bytes, unsigned in a and signed in b.
    Bytes,
}

impl Units {
    /// Numbers in a unit.
    pub(crate) fn len(self) -> usize {
        match self {
            Units::F32 => 1,
            Units::Bf16 => 2,
            Units::Bytes => 4,
        }
    }

    /// Whether `isa` multiplies them.
    pub(crate) fn are_of(self, isa: Isa) -> bool {
        match self {
            Units::F32 => true,
            Units::Bf16 => isa >= Isa::Avx512Bf16,
            Units::Bytes => isa >= Isa::Avx512Vnni,
        }
    }
}

/// Rows of a: unit l of row m stands at byte m·`row` + l·`unit`, aligned or not.
#[derive(Clone, Copy)]
pub(crate) struct A<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) row: usize,
    pub(crate) unit: usize,
}

/// b: unit l of column i stands at l·`row` + i.
#[derive(Clone, Copy)]
pub(crate) struct B<'a> {
    pub(crate) units: &'a [u32],
    pub(crate) row: usize,
}

/// Columns are taken by whole vectors: widths are multiples of this on every machine.
pub(crate) const COLUMNS: usize = 16;
/// Rows of a in a register tile.
pub(crate) const ROWS: usize = 6;

/// For bytes, column by column: c += (`start` + Σ a·b) · `scale`.
#[derive(Clone, Copy)]
pub(crate) struct ByteTerms<'a> {
    /// What undoes the offset of the unsigned bytes.
    pub(crate) start: &'a [i32],
    pub(crate) scale: &'a [f32],
}

/// c[m, i] += Σ_l a[m, l]·b[l, i] in f32, for m < rows, l < depth (in units), i < width.
pub(crate) fn multiply_f32(
    isa: Isa,
    (rows, depth, width): (usize, usize, usize),
    a: A<'_>,
    b: B<'_>,
    c: &mut [f32],
    c_row: usize,
) {
    check((rows, depth, width), a, b, c.len(), c_row);
    f32_tiles(isa, (rows, depth, width), a, b, c, c_row);
}

/// [`multiply_f32`] on units of two bf16. Panics where `isa` does not multiply them.
pub(crate) fn multiply_bf16(
    isa: Isa,
    (rows, depth, width): (usize, usize, usize),
    a: A<'_>,
    b: B<'_>,
    c: &mut [f32],
    c_row: usize,
) {
    check((rows, depth, width), a, b, c.len(), c_row);
    assert!(Units::Bf16.are_of(isa));
    #[cfg(target_arch = "x86_64")]
    {
        let terms = ByteTerms { start: &[], scale: &[] };
        // SAFETY: the machine has the instructions and `check` has looked at the lengths.
        unsafe { x86::bf16((rows, depth, width), isa == Isa::Amx, a, b, c, c_row, terms) }
    }
}

/// c[m, i] += (start[i] + Σ_l a[m, l]·b[l, i]) · scale[i] on units of four bytes. Panics where `isa` does not multiply them.
pub(crate) fn multiply_bytes(
    isa: Isa,
    (rows, depth, width): (usize, usize, usize),
    a: A<'_>,
    b: B<'_>,
    c: &mut [f32],
    c_row: usize,
    terms: ByteTerms<'_>,
) {
    check((rows, depth, width), a, b, c.len(), c_row);
    assert!(Units::Bytes.are_of(isa) && terms.start.len() >= width && terms.scale.len() >= width);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the machine has the instructions; all lengths have been looked at.
    unsafe {
        x86::bytes((rows, depth, width), isa == Isa::Amx, a, b, c, c_row, terms);
    }
}

/// Panics where a matrix is smaller than the product asks.
fn check((rows, depth, width): (usize, usize, usize), a: A<'_>, b: B<'_>, c: usize, c_row: usize) {
    assert!(width.is_multiple_of(COLUMNS));
    if rows == 0 || width == 0 {
        return;
    }
    assert!(c >= (rows - 1) * c_row + width);
    if depth > 0 {
        assert!(
            a.bytes.len() >= (rows - 1) * a.row + (depth - 1) * a.unit + 4
                && b.units.len() >= (depth - 1) * b.row + width
        );
    }
}

multiversion! {
    fn f32_tiles(
        size: (usize, usize, usize), a: A<'_>, b: B<'_>, c: &mut [f32], c_row: usize,
    ) = f32_tiles_body
}

#[inline(always)]
unsafe fn f32_tiles_body<L: Lane>(
    size: (usize, usize, usize),
    a: A<'_>,
    b: B<'_>,
    c: &mut [f32],
    c_row: usize,
) {
    let terms = ByteTerms { start: &[], scale: &[] };
    // SAFETY: `multiply_f32` has checked the lengths; the features are the caller's.
    unsafe { tiles::<Floats<L>>(size, 0, a, b, c, c_row, terms) }
}

/// How one instruction set multiplies units.
///
/// # Safety
/// Methods need the implementor's target features, and pointers to `WIDTH` units or numbers.
trait Dot {
    const WIDTH: usize;
    /// Vectors of columns in a register tile: 4, or what the registers hold.
    const VECTORS: usize = 4;
    type Unit: Copy;
    type Sum: Copy;
    unsafe fn splat(unit: *const u8) -> Self::Unit;
    unsafe fn load(units: *const u32) -> Self::Unit;
    unsafe fn dot(a: Self::Unit, b: Self::Unit, sum: Self::Sum) -> Self::Sum;
    unsafe fn zero() -> Self::Sum;
    unsafe fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// The first value of a sum, from what c holds or from the column's start.
    unsafe fn begin(c: *const f32, start: *const i32) -> Self::Sum;
    unsafe fn end(sum: Self::Sum, c: *mut f32, scale: *const f32);
}

/// f32, over any [`Lane`].
struct Floats<L>(PhantomData<L>);

impl<L: Lane> Dot for Floats<L> {
    const WIDTH: usize = L::WIDTH;
    const VECTORS: usize = if L::WIDTH == 16 { 4 } else { 2 };
    type Unit = L;
    type Sum = L;

    #[inline(always)]
    unsafe fn splat(unit: *const u8) -> L {
        // SAFETY: one unit, aligned or not.
        unsafe { L::splat(unit.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load(units: *const u32) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load(units.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(a: L, b: L, sum: L) -> L {
        // SAFETY: passed on to the caller.
        unsafe { a.mul_add(b, sum) }
    }

    #[inline(always)]
    unsafe fn zero() -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn add(a: L, b: L) -> L {
        // SAFETY: passed on to the caller.
        unsafe { a.mul_add(L::splat(1.0), b) }
    }

    #[inline(always)]
    unsafe fn begin(c: *const f32, _: *const i32) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load(c) }
    }

    #[inline(always)]
    unsafe fn end(sum: L, c: *mut f32, _: *const f32) {
        // SAFETY: passed on to the caller.
        unsafe { sum.store(c) }
    }
}

/// All rows and columns in register tiles, from column `first` on.
///
/// # Safety
/// The features of `D`; lengths as `check` asks.
#[inline(always)]
unsafe fn tiles<D: Dot>(
    (rows, depth, width): (usize, usize, usize),
    first: usize,
    a: A<'_>,
    b: B<'_>,
    c: &mut [f32],
    c_row: usize,
    terms: ByteTerms<'_>,
) {
    for m in (0..rows).step_by(ROWS) {
        let mut i = first;
        while i < width {
            let vectors = ((width - i) / D::WIDTH).min(D::VECTORS);
            // SAFETY: rows m.. and columns i.. lie within, by `check`.
            unsafe {
                let at = Tile::at((m, i), depth, a, b, c, c_row, terms);
                macro_rules! tall {
                    ($rows:literal) => {
                        match vectors {
                            4 => at.run::<D, $rows, 4>(),
                            3 => at.run::<D, $rows, 3>(),
                            2 => at.run::<D, $rows, 2>(),
                            _ => at.run_deep::<D, $rows>(),
                        }
                    };
                }
                match rows - m {
                    1 => tall!(1),
                    2 => tall!(2),
                    3 => tall!(3),
                    4 => tall!(4),
                    5 => tall!(5),
                    _ => tall!(6),
                }
            }
            i += vectors * D::WIDTH;
        }
    }
}

/// Where a register tile lies.
struct Tile {
    depth: usize,
    a: *const u8,
    a_row: usize,
    a_unit: usize,
    b: *const u32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
    start: *const i32,
    scale: *const f32,
}

impl Tile {
    /// The tile of row m and column i.
    ///
    /// # Safety
    /// Both lie within the matrices.
    #[inline(always)]
    unsafe fn at(
        (m, i): (usize, usize),
        depth: usize,
        a: A<'_>,
        b: B<'_>,
        c: &mut [f32],
        c_row: usize,
        terms: ByteTerms<'_>,
    ) -> Tile {
        // SAFETY: passed on to the caller.
        unsafe {
            Tile {
                depth,
                a: a.bytes.as_ptr().add(m * a.row),
                a_row: a.row,
                a_unit: a.unit,
                b: b.units.as_ptr().add(i),
                b_row: b.row,
                c: c.as_mut_ptr().add(m * c_row + i),
                c_row,
                start: terms.start.as_ptr().wrapping_add(i),
                scale: terms.scale.as_ptr().wrapping_add(i),
            }
        }
    }

    /// A single vector of columns: four sums for each row, one for each of four units in turn, hide the product's latency. a is
    /// streamed then, as in decoding, and the rows of the next tile are fetched meanwhile.
    #[inline(always)]
    unsafe fn run_deep<D: Dot, const M: usize>(&self) {
        // SAFETY: the caller's matrices hold M rows and one vector from these pointers on; a prefetch may go anywhere.
        unsafe {
            let mut sums = [[D::zero(); 4]; M];
            for m in 0..M {
                sums[m][0] = D::begin(self.c.add(m * self.c_row), self.start);
            }
            let whole = self.depth / 4 * 4;
            for l in (0..whole).step_by(4) {
                for m in 0..M {
                    let a = self.a.add(m * self.a_row + l * self.a_unit);
                    #[cfg(target_arch = "x86_64")]
                    if l % 16 == 0 {
                        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                        _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(M * self.a_row).cast());
                    }
                    for part in 0..4 {
                        let b = D::load(self.b.add((l + part) * self.b_row));
                        sums[m][part] = D::dot(D::splat(a.add(part * self.a_unit)), b, sums[m][part]);
                    }
                }
            }
            for l in whole..self.depth {
                for m in 0..M {
                    let a = D::splat(self.a.add(m * self.a_row + l * self.a_unit));
                    sums[m][0] = D::dot(a, D::load(self.b.add(l * self.b_row)), sums[m][0]);
                }
            }
            for m in 0..M {
                let [a, b, c, d] = sums[m];
                D::end(D::add(D::add(a, b), D::add(c, d)), self.c.add(m * self.c_row), self.scale);
            }
        }
    }

    #[inline(always)]
    unsafe fn run<D: Dot, const M: usize, const V: usize>(&self) {
        // SAFETY: the caller's matrices hold M rows and V vectors from these pointers on.
        unsafe {
            // Loops, for a closure does not have the features of its caller unless it happens to be inlined.
            let mut sums = [[D::zero(); V]; M];
            for m in 0..M {
                for v in 0..V {
                    let column = v * D::WIDTH;
                    let c = self.c.add(m * self.c_row + column);
                    sums[m][v] = D::begin(c, self.start.wrapping_add(column));
                }
            }
            for l in 0..self.depth {
                let mut bs = [D::load(self.b.add(l * self.b_row)); V];
                for v in 1..V {
                    bs[v] = D::load(self.b.add(l * self.b_row + v * D::WIDTH));
                }
                for m in 0..M {
                    let a = D::splat(self.a.add(m * self.a_row + l * self.a_unit));
                    for v in 0..V {
                        sums[m][v] = D::dot(a, bs[v], sums[m][v]);
                    }
                }
            }
            for m in 0..M {
                for v in 0..V {
                    let column = v * D::WIDTH;
                    D::end(sums[m][v], self.c.add(m * self.c_row + column), self.scale.wrapping_add(column));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{A, B, ByteTerms, Dot, tiles};
    use crate::amx::{TileKind, Tiles, product_32x32};
    use std::arch::x86_64::*;

    /// Two bf16 a unit.
    struct Pairs;

    // SAFETY of the blocks below: `Dot` asks its callers for the features and for valid pointers.
    impl Dot for Pairs {
        const WIDTH: usize = 16;
        type Unit = __m512i;
        type Sum = __m512;

        #[inline(always)]
        unsafe fn splat(unit: *const u8) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_set1_epi32(unit.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load(units: *const u32) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_si512(units.cast()) }
        }

        #[inline(always)]
        unsafe fn dot(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
            // SAFETY: see the impl; the two types are the same 64 bytes.
            unsafe {
                _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            }
        }

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: see the impl.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the impl.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn begin(c: *const f32, _: *const i32) -> __m512 {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_ps(c) }
        }

        #[inline(always)]
        unsafe fn end(sum: __m512, c: *mut f32, _: *const f32) {
            // SAFETY: see the impl.
            unsafe { _mm512_storeu_ps(c, sum) }
        }
    }

    /// Four bytes a unit.
    struct Quads;

    // SAFETY of the blocks below: `Dot` asks its callers for the features and for valid pointers.
    impl Dot for Quads {
        const WIDTH: usize = 16;
        type Unit = __m512i;
        type Sum = __m512i;

        #[inline(always)]
        unsafe fn splat(unit: *const u8) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_set1_epi32(unit.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load(units: *const u32) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_si512(units.cast()) }
        }

        #[inline(always)]
        unsafe fn dot(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_dpbusd_epi32(sum, a, b) }
        }

        #[inline(always)]
        unsafe fn zero() -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_add_epi32(a, b) }
        }

        #[inline(always)]
        unsafe fn begin(_: *const f32, start: *const i32) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_si512(start.cast()) }
        }

        #[inline(always)]
        unsafe fn end(sum: __m512i, c: *mut f32, scale: *const f32) {
            // SAFETY: see the impl.
            unsafe {
                let sum =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(scale), _mm512_loadu_ps(c));
                _mm512_storeu_ps(c, sum);
            }
        }
    }

    /// Side of the block of c that four AMX tiles hold.
    const SIDE: usize = 32;
    /// Units of the inner dimension in a tile.
    const STEP: usize = 16;

    /// # Safety
    /// Needs the instructions named, AMX too if `amx`; lengths as `check` asks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) unsafe fn bf16(
        size: (usize, usize, usize),
        amx: bool,
        a: A<'_>,
        b: B<'_>,
        c: &mut [f32],
        c_row: usize,
        terms: ByteTerms<'_>,
    ) {
        // SAFETY: passed on to the caller.
        unsafe { tiled::<Pairs>(size, amx.then_some(TileKind::Bf16), a, b, c, c_row, terms) }
    }

    /// # Safety
    /// As [`bf16`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub(super) unsafe fn bytes(
        size: (usize, usize, usize),
        amx: bool,
        a: A<'_>,
        b: B<'_>,
        c: &mut [f32],
        c_row: usize,
        terms: ByteTerms<'_>,
    ) {
        // SAFETY: passed on to the caller.
        unsafe { tiled::<Quads>(size, amx.then_some(TileKind::Bytes), a, b, c, c_row, terms) }
    }

    /// Whole blocks of 32×32 by AMX where there is a kind for it and units lie side by side; the margins, and everything elsewhere, in registers.
    #[inline(always)]
    unsafe fn tiled<D: Dot>(
        (rows, depth, width): (usize, usize, usize),
        amx: Option<TileKind>,
        a: A<'_>,
        b: B<'_>,
        c: &mut [f32],
        c_row: usize,
        terms: ByteTerms<'_>,
    ) {
        let (tall, wide, steps) = (rows / SIDE * SIDE, width / SIDE * SIDE, depth / STEP);
        let Some(kind) = amx.filter(|_| a.unit == 4 && tall > 0 && wide > 0 && steps > 0) else {
            // SAFETY: passed on to the caller.
            return unsafe { tiles::<D>((rows, depth, width), 0, a, b, c, c_row, terms) };
        };
        let tile = Tiles::configure();
        for m in (0..tall).step_by(SIDE) {
            for i in (0..wide).step_by(SIDE) {
                // SAFETY: rows m..m+32 and columns i..i+32 lie within, by `check`; the scratch holds 32×32.
                unsafe {
                    let (at, units) = (a.bytes.as_ptr().add(m * a.row), b.units.as_ptr().add(i).cast());
                    let sums = c.as_mut_ptr().add(m * c_row + i);
                    match kind {
                        TileKind::Bf16 => {
                            product_32x32(
                                &tile,
                                kind,
                                steps,
                                at,
                                a.row,
                                units,
                                b.row * 4,
                                sums.cast(),
                                c_row * 4,
                            );
                        }
                        TileKind::Bytes => {
                            let mut scratch = [[0i32; SIDE]; SIDE];
                            scratch.iter_mut().for_each(|row| row.copy_from_slice(&terms.start[i..i + SIDE]));
                            let to = scratch.as_mut_ptr().cast();
                            product_32x32(&tile, kind, steps, at, a.row, units, b.row * 4, to, SIDE * 4);
                            for (row, sums) in scratch.iter().zip(c[m * c_row + i..].chunks_mut(c_row)) {
                                for ((sum, part), scale) in sums.iter_mut().zip(row).zip(&terms.scale[i..]) {
                                    *sum = (*part as f32).mul_add(*scale, *sum);
                                }
                            }
                        }
                    }
                }
            }
        }
        drop(tile);
        const NONE: [i32; 64] = [0; 64];
        // SAFETY: parts of what the caller gives. What is left of the inner dimension, then columns, then rows.
        unsafe {
            let done = steps * STEP;
            if done < depth {
                let a = A { bytes: &a.bytes[done * 4..], ..a };
                for i in (0..wide).step_by(NONE.len()) {
                    let b = B { units: &b.units[done * b.row + i..], ..b };
                    let terms = ByteTerms { start: &NONE, scale: terms.scale.get(i..).unwrap_or(&[]) };
                    let width = (wide - i).min(NONE.len());
                    tiles::<D>((tall, depth - done, width), 0, a, b, &mut c[i..], c_row, terms);
                }
            }
            if wide < width {
                tiles::<D>((tall, depth, width), wide, a, b, c, c_row, terms);
            }
            if tall < rows {
                let a = A { bytes: &a.bytes[tall * a.row..], ..a };
                tiles::<D>((rows - tall, depth, width), 0, a, b, &mut c[tall * c_row..], c_row, terms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bf16, testing::random};
    use proptest::prelude::*;

    /// A column's start and scale are some numbers; what lies beside c must stay.
    fn check((rows, depth, width): (usize, usize, usize), units: Units, pad: usize) {
        let numbers = depth * units.len();
        let (a_row, b_row, c_row) = (numbers + pad * units.len(), width + pad, width + pad);
        let a = random(1, &[rows, a_row]).to_f32_vec();
        let b = random(2, &[depth * units.len(), b_row]).to_f32_vec();
        let before = random(3, &[rows, c_row]).to_f32_vec();
        let start: Vec<i32> = (0..width as i32).map(|i| i * 37 - 500).collect();
        let scale: Vec<f32> = (0..width).map(|i| 1e-4 * (i as f32 + 1.0)).collect();
        let byte_a: Vec<u8> = a.iter().map(|x| (x * 127.0 + 128.0) as u8).collect();
        let byte_b: Vec<i8> = b.iter().map(|x| (x * 127.0) as i8).collect();
        let half_a: Vec<bf16> = a.iter().map(|&x| bf16::from_f32(x)).collect();
        let half_b: Vec<bf16> = b.iter().map(|&x| bf16::from_f32(x)).collect();
        // Number l of column i stands in unit l / len of that column.
        let place = |l: usize, i: usize| (l / units.len() * b_row + i) * units.len() + l % units.len();
        let want = |m: usize, i: usize| -> f64 {
            let dot = |f: &dyn Fn(usize, usize) -> f64| {
                (0..numbers).map(|l| f(m * a_row + l, place(l, i))).sum::<f64>()
            };
            let sum = match units {
                Units::F32 => dot(&|x, y| f64::from(a[x]) * f64::from(b[y])),
                Units::Bf16 => dot(&|x, y| f64::from(half_a[x].to_f32()) * f64::from(half_b[y].to_f32())),
                Units::Bytes => {
                    let sum = dot(&|x, y| f64::from(byte_a[x]) * f64::from(byte_b[y]));
                    (sum + f64::from(start[i])) * f64::from(scale[i])
                }
            };
            sum + f64::from(before[m * c_row + i])
        };
        let (bytes, b_units): (&[u8], Vec<u32>) = match units {
            Units::F32 => (bytemuck::cast_slice(&a), bytemuck::pod_collect_to_vec(&b)),
            Units::Bf16 => (bytemuck::cast_slice(&half_a), bytemuck::pod_collect_to_vec(&half_b)),
            Units::Bytes => (&byte_a, bytemuck::pod_collect_to_vec(&byte_b)),
        };
        let row = a_row * 4 / units.len();
        // The same with the units of a column side by side.
        let across: Vec<u8> = (0..depth)
            .flat_map(|l| (0..rows).flat_map(move |m| &bytes[m * row + 4 * l..][..4]))
            .copied()
            .collect();
        let b = B { units: &b_units, row: b_row };
        let lying = [A { bytes, row, unit: 4 }, A { bytes: &across, row: 4, unit: 4 * rows }];
        let isas = Isa::available().into_iter().filter(|&isa| units.are_of(isa));
        for (isa, a) in isas.flat_map(|isa| lying.map(|a| (isa, a))) {
            let mut c = before.clone();
            let size = (rows, depth, width);
            match units {
                Units::F32 => multiply_f32(isa, size, a, b, &mut c, c_row),
                Units::Bf16 => multiply_bf16(isa, size, a, b, &mut c, c_row),
                Units::Bytes => {
                    let terms = ByteTerms { start: &start, scale: &scale };
                    multiply_bytes(isa, size, a, b, &mut c, c_row, terms);
                }
            }
            for m in 0..rows {
                for i in 0..width {
                    let (got, want) = (f64::from(c[m * c_row + i]), want(m, i));
                    let near = 1e-6 * (numbers as f64 + want.abs());
                    assert!(
                        (got - want).abs() <= near,
                        "{units:?} {}: c[{m}, {i}] = {got}, want {want}",
                        isa.name()
                    );
                }
                assert_eq!(c[m * c_row + width..(m + 1) * c_row], before[m * c_row + width..(m + 1) * c_row]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_three_loops_on_ragged_shapes(
            rows in 1usize..80, depth in 1usize..80, vectors in 1usize..8, pad in 0usize..20, kind in 0..3usize,
        ) {
            check((rows, depth, vectors * COLUMNS), [Units::F32, Units::Bf16, Units::Bytes][kind], pad);
        }
    }
}
