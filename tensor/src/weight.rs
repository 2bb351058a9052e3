//! A matrix of weights `[n, k]`, plain or quantised, and how its numbers are read.
//!
//! Quantised numbers are unsigned with a fixed middle, because the products of bytes take one unsigned side:
//!
//! - [`Weight::Int8`]: (byte - 128) · scale of the row.
//! - [`Weight::Int4`]: (nibble - 8) · scale of its group of 32 along the inputs. Byte i of a group's 16 holds number i in its
//!   low half and number 16 + i in its high half.
//!
//! Legend: n outputs, k inputs.

use crate::{
    DType, Isa, Tensor, bf16,
    narrow::{narrow, widen},
    nibbles::{INT4_GROUP, quantise_nibbles, widen_nibbles, widen_nibbles_to_bf16},
};
use rayon::prelude::*;

/// The weights of a linear layer.
#[derive(Debug, Clone)]
pub enum Weight {
    /// `[n, k]` in f32, bf16 or f16.
    Plain(Tensor),
    /// Bytes with a scale for each row.
    Int8 {
        /// `[n, k]` u8
        values: Tensor,
        /// `[n]` f32
        scale: Tensor,
    },
    /// Half bytes with a scale for each 32 inputs of a row.
    Int4 {
        /// `[n, k/2]` u8
        values: Tensor,
        /// `[n, k/32]` bf16
        scale: Tensor,
    },
}

impl From<Tensor> for Weight {
    fn from(w_nk: Tensor) -> Self {
        Weight::Plain(w_nk)
    }
}

impl Weight {
    /// Bytes and their scales. Panics on shapes and types other than [`Weight::Int8`]'s.
    pub fn int8(values: Tensor, scale: Tensor) -> Self {
        assert!(values.dtype() == DType::U8 && scale.dtype() == DType::F32, "{values:?} {scale:?}");
        assert!(values.shape().len() == 2 && scale.shape() == &values.shape()[..1], "{values:?} {scale:?}");
        Weight::Int8 { values, scale }
    }

    /// Half bytes and their scales. Panics on shapes and types other than [`Weight::Int4`]'s.
    pub fn int4(values: Tensor, scale: Tensor) -> Self {
        assert!(values.dtype() == DType::U8 && scale.dtype() == DType::BF16, "{values:?} {scale:?}");
        let &[n, half] = values.shape() else { panic!("{values:?}") };
        assert!(half.is_multiple_of(INT4_GROUP / 2) && scale.shape() == [n, half * 2 / INT4_GROUP]);
        Weight::Int4 { values, scale }
    }

    /// n, k.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Weight::Plain(w) => [w.shape()[0], w.shape()[1]],
            Weight::Int8 { values, .. } => [values.shape()[0], values.shape()[1]],
            Weight::Int4 { values, .. } => [values.shape()[0], values.shape()[1] * 2],
        }
    }

    /// `f32`, `bf16`, `f16`, `int8` or `int4`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Weight::Plain(w) => w.dtype().name(),
            Weight::Int8 { .. } => "int8",
            Weight::Int4 { .. } => "int4",
        }
    }

    /// The tensors it is made of.
    pub fn parts(&self) -> Vec<&Tensor> {
        match self {
            Weight::Plain(w) => vec![w],
            Weight::Int8 { values, scale } | Weight::Int4 { values, scale } => vec![values, scale],
        }
    }

    /// Bytes of all parts.
    pub fn num_bytes(&self) -> usize {
        self.parts().iter().map(|part| part.bytes().len()).sum()
    }

    /// Whether both are kept in one way, so that they can be multiplied together.
    pub(crate) fn is_like(&self, other: &Weight) -> bool {
        self.shape() == other.shape() && self.type_name() == other.type_name()
    }

    /// Rows `from..to`, sharing the elements.
    #[must_use]
    pub fn rows(&self, from: usize, to: usize) -> Weight {
        match self {
            Weight::Plain(w) => Weight::Plain(w.rows(from, to)),
            Weight::Int8 { values, scale } => {
                Weight::Int8 { values: values.rows(from, to), scale: scale.rows(from, to) }
            }
            Weight::Int4 { values, scale } => {
                Weight::Int4 { values: values.rows(from, to), scale: scale.rows(from, to) }
            }
        }
    }

    /// Numbers `from..from + to.len()` of row j; `from` is a multiple of 32 in [`Weight::Int4`].
    pub(crate) fn widen(&self, isa: Isa, j: usize, from: usize, to: &mut [f32]) {
        let [_, k] = self.shape();
        assert!(from + to.len() <= k);
        match self {
            Weight::Plain(w) => {
                let at = j * k + from;
                let range = at..at + to.len();
                match w.dtype() {
                    DType::F32 => to.copy_from_slice(&w.as_f32()[range]),
                    DType::BF16 => widen::<bf16>(isa, &w.as_bf16()[range], to),
                    DType::F16 => widen::<crate::f16>(isa, &w.as_f16()[range], to),
                    DType::U8 => panic!("plain weights of bytes"),
                }
            }
            Weight::Int8 { values, scale } => {
                let at = j * k + from;
                let scale = scale.as_f32()[j];
                let bytes = &values.as_u8()[at..at + to.len()];
                to.iter_mut().zip(bytes).for_each(|(x, &q)| *x = (f32::from(q) - 128.0) * scale);
            }
            Weight::Int4 { values, scale } => {
                let row = &values.as_u8()[j * k / 2..(j + 1) * k / 2];
                let scales = &scale.as_bf16()[j * k / INT4_GROUP..(j + 1) * k / INT4_GROUP];
                assert!(from.is_multiple_of(INT4_GROUP));
                widen_nibbles(isa, &row[from / 2..], &scales[from / INT4_GROUP..], to);
            }
        }
    }

    /// Every number as f32, `[n, k]`.
    pub fn to_f32(&self) -> Tensor {
        let [n, k] = self.shape();
        let mut out = vec![0.0; n * k];
        out.par_chunks_mut(k.max(1)).enumerate().for_each(|(j, row)| self.widen(Isa::best(), j, 0, row));
        Tensor::from_f32(out, &[n, k])
    }

    /// Each row in 255 equal steps around zero, the largest magnitude at the end of the range.
    pub fn quantise_int8(w_nk: &Tensor) -> Weight {
        let w = Weight::Plain(w_nk.clone());
        let [n, k] = w.shape();
        let (mut values, mut scale) = (vec![0u8; n * k], vec![0f32; n]);
        values.par_chunks_mut(k.max(1)).zip(&mut scale).enumerate().for_each_init(
            || vec![0.0; k],
            |row, (j, (to, scale))| {
                w.widen(Isa::best(), j, 0, row);
                let top = row.iter().fold(0f32, |top, x| top.max(x.abs()));
                *scale = top / 127.0;
                let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
                for (to, x) in to.iter_mut().zip(row.iter()) {
                    *to = ((x * inverse).round_ties_even() + 128.0) as u8;
                }
            },
        );
        Weight::int8(Tensor::from_u8(values, &[n, k]), Tensor::from_f32(scale, &[n]))
    }

    /// Groups of 32 in sixteen steps. Of several scales around the group's largest magnitude the one with the least squared
    /// error is kept. Panics unless k is a multiple of 32.
    pub fn quantise_int4(w_nk: &Tensor) -> Weight {
        let w = Weight::Plain(w_nk.clone());
        let [n, k] = w.shape();
        assert!(k.is_multiple_of(INT4_GROUP), "int4 of {w_nk:?}");
        let groups = k / INT4_GROUP;
        let (mut values, mut scale) = (vec![0u8; n * k / 2], vec![bf16::ZERO; n * groups]);
        let rows = values.par_chunks_mut((k / 2).max(1)).zip(scale.par_chunks_mut(groups.max(1)));
        rows.enumerate().for_each_init(
            || vec![0.0; k],
            |row, (j, (values, scales))| {
                w.widen(Isa::best(), j, 0, row);
                quantise_nibbles(Isa::best(), row, values, scales);
            },
        );
        Weight::int4(Tensor::from_u8(values, &[n, k / 2]), Tensor::from_bf16(scale, &[n, groups]))
    }
}

/// Numbers `from..from + to.len()` of row j as bf16.
pub(crate) fn widen_to_bf16(isa: Isa, w: &Weight, j: usize, from: usize, to: &mut [bf16]) {
    if let Weight::Int4 { values, scale } = w {
        let [_, k] = w.shape();
        assert!(from.is_multiple_of(INT4_GROUP) && from + to.len() <= k);
        let (values, scale) =
            (&values.as_u8()[(j * k + from) / 2..], &scale.as_bf16()[(j * k + from) / INT4_GROUP..]);
        return widen_nibbles_to_bf16(isa, values, scale, to);
    }
    let mut wide = [0f32; 256];
    for (i, to) in to.chunks_mut(wide.len()).enumerate() {
        let wide = &mut wide[..to.len()];
        w.widen(isa, j, from + i * 256, wide);
        narrow(isa, wide, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn quantised_numbers_are_near() {
        for (n, k) in [(1, 32), (7, 96), (5, 160)] {
            let w = random(3, &[n, k]);
            let top = |j: usize| w.as_f32()[j * k..(j + 1) * k].iter().fold(0f32, |t, x| t.max(x.abs()));
            let int8 = Weight::quantise_int8(&w).to_f32();
            let int4 = Weight::quantise_int4(&w).to_f32();
            for (i, &x) in w.as_f32().iter().enumerate() {
                assert!((int8.as_f32()[i] - x).abs() <= top(i / k) / 127.0 * 0.501, "int8 {i}");
                assert!((int4.as_f32()[i] - x).abs() <= top(i / k) / 6.4, "int4 {i}");
            }
            let square = |a: &Tensor| -> f32 {
                a.as_f32().iter().zip(w.as_f32()).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / w.len() as f32
            };
            // Uniform numbers of half-width one in sixteen steps: 1/15 wide, variance 1/15²/3.
            assert!(square(&int4) < 1.0 / 15.0f32.powi(2) / 3.0 * 1.1, "{}", square(&int4));
            assert!(square(&int8) < 1.0 / 127.0f32.powi(2) / 11.0, "{}", square(&int8));
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for w in
            [Weight::quantise_int8(&Tensor::zeros(&[2, 32])), Weight::quantise_int4(&Tensor::zeros(&[2, 32]))]
        {
            assert!(w.to_f32().as_f32().iter().all(|&x| x == 0.0), "{w:?}");
        }
    }

    #[test]
    fn parts_of_rows_are_read() {
        let w = random(3, &[4, 128]).cast(DType::BF16);
        for w in [w.clone().into(), Weight::quantise_int8(&w), Weight::quantise_int4(&w)] {
            let whole = w.to_f32();
            let mut part = vec![0.0; 64];
            w.rows(1, 3).widen(Isa::best(), 1, 32, &mut part);
            assert_eq!(part, whole.as_f32()[2 * 128 + 32..2 * 128 + 96]);
        }
    }
}
