//! The transpose of a strided matrix of 32-bit units, in blocks.

use crate::Isa;

/// to[j, i] = from[i, j] for i < `rows`, j < `cols`; rows of `from` stand `from_row` units apart, those of `to` `to_row`.
pub(crate) fn transpose(
    isa: Isa,
    from: &[u32],
    from_row: usize,
    to: &mut [u32],
    to_row: usize,
    (rows, cols): (usize, usize),
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_row + cols && to.len() >= (cols - 1) * to_row + rows);
    const BLOCK: usize = 16;
    for i0 in (0..rows).step_by(BLOCK) {
        for j0 in (0..cols).step_by(BLOCK) {
            let (tall, wide) = ((rows - i0).min(BLOCK), (cols - j0).min(BLOCK));
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx512 && tall == BLOCK && wide == BLOCK {
                // SAFETY: the machine has AVX-512; the assertion above holds for the last row and column of the block.
                unsafe {
                    avx512_block(
                        from.as_ptr().add(i0 * from_row + j0),
                        from_row,
                        to.as_mut_ptr().add(j0 * to_row + i0),
                        to_row,
                    );
                }
                continue;
            }
            for i in i0..i0 + tall {
                for j in j0..j0 + wide {
                    to[j * to_row + i] = from[i * from_row + j];
                }
            }
        }
    }
    let _ = isa;
}

/// A 16×16 block.
///
/// # Safety
/// Needs AVX-512 F; 16 rows of 16 units on both sides.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_block(from: *const u32, from_row: usize, to: *mut u32, to_row: usize) {
    use std::arch::x86_64::*;
    let mut r = [_mm512_setzero_si512(); 16];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: the caller gives sixteen rows of sixteen units.
        *r = unsafe { _mm512_loadu_si512(from.add(i * from_row).cast()) };
    }
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // Now lane q of r[4i + j] holds column 4q + j of rows 4i..4i+4.
    for i in (0..16).step_by(4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for j in 0..4 {
        t[j] = _mm512_shuffle_i32x4::<0x88>(r[j], r[4 + j]);
        t[4 + j] = _mm512_shuffle_i32x4::<0xdd>(r[j], r[4 + j]);
        t[8 + j] = _mm512_shuffle_i32x4::<0x88>(r[8 + j], r[12 + j]);
        t[12 + j] = _mm512_shuffle_i32x4::<0xdd>(r[8 + j], r[12 + j]);
    }
    for j in 0..4 {
        r[j] = _mm512_shuffle_i32x4::<0x88>(t[j], t[8 + j]);
        r[4 + j] = _mm512_shuffle_i32x4::<0x88>(t[4 + j], t[12 + j]);
        r[8 + j] = _mm512_shuffle_i32x4::<0xdd>(t[j], t[8 + j]);
        r[12 + j] = _mm512_shuffle_i32x4::<0xdd>(t[4 + j], t[12 + j]);
    }
    for (j, row) in r.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.add(j * to_row).cast(), row) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_unit_moves(rows in 1usize..70, cols in 1usize..70, pad in 0usize..5) {
            let (from_row, to_row) = (cols + pad, rows + 2 * pad);
            let from: Vec<u32> = (0..rows * from_row).map(|i| i as u32 + 1).collect();
            for isa in Isa::available() {
                let mut to = vec![0; cols * to_row];
                transpose(isa, &from, from_row, &mut to, to_row, (rows, cols));
                for i in 0..rows {
                    for j in 0..cols {
                        prop_assert_eq!(to[j * to_row + i], from[i * from_row + j]);
                    }
                }
                // What lies between the rows of the target stays.
                prop_assert!((0..cols).all(|j| to[j * to_row + rows..(j + 1) * to_row].iter().all(|&u| u == 0)));
            }
        }
    }
}
