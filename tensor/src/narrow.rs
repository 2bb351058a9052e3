//! Numbers between f32 and the narrower types: bf16, f16, signed bytes with a scale.

use crate::{Isa, bf16, f16, isa::multiversion, lane::Lane};
use rayon::prelude::*;

/// Numbers that one thread takes at a time.
const GROUP: usize = 1 << 14;

/// A type of weights, and how a vector of it is read.
pub(crate) trait Element: Copy {
    /// # Safety
    /// As [`Lane::load`].
    unsafe fn load<L: Lane>(from: *const Self) -> L;
    fn widen(self) -> f32;
    /// The elements as f32; both slices have one length.
    fn widen_slice(isa: Isa, from: &[Self], to: &mut [f32]);
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
    fn widen_slice(_: Isa, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
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
    fn widen_slice(isa: Isa, from: &[bf16], to: &mut [f32]) {
        widen_bf16(isa, from, to);
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lane>(from: *const f16) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load_f16(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn widen_slice(isa: Isa, from: &[f16], to: &mut [f32]) {
        widen_f16(isa, from, to);
    }
}

/// The elements of `from` as f32.
pub(crate) fn widen<E: Element>(isa: Isa, from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    E::widen_slice(isa, from, to);
}

#[inline(always)]
unsafe fn widen_bf16_body<L: Lane>(from: &[bf16], to: &mut [f32]) {
    // SAFETY: passed on to the caller.
    unsafe { widen_body::<L, bf16>(from, to) }
}
#[inline(always)]
unsafe fn widen_f16_body<L: Lane>(from: &[f16], to: &mut [f32]) {
    // SAFETY: passed on to the caller.
    unsafe { widen_body::<L, f16>(from, to) }
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
    fn widen_f16(from: &[f16], to: &mut [f32]) = widen_f16_body
}

multiversion! {
    /// Numbers rounded to bf16, to nearest even.
    fn narrow(from: &[f32], to: &mut [bf16]) = narrow_body
}

/// Numbers of `from` rounded to bf16, to nearest even. Panics where the lengths differ.
pub fn round_into_bf16(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len());
    let parts = from.par_chunks(GROUP).zip(to.par_chunks_mut(GROUP));
    parts.for_each(|(from, to)| narrow(Isa::best(), from, to));
}

/// Numbers of `from` as f32. Panics where the lengths differ.
pub fn widen_from_bf16(from: &[bf16], to: &mut [f32]) {
    widen(Isa::best(), from, to);
}

#[inline(always)]
unsafe fn narrow_body<L: Lane>(from: &[f32], to: &mut [bf16]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = round_bf16(*x);
    }
}

/// `bf16::from_f32` without a branch, so that the compiler can vectorise it.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16 | 0x40) as u16;
    bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded })
}

multiversion! {
    /// Two rows of one length, rounded to bf16, as units: the first's numbers in the low halves.
    fn pair(first: &[f32], second: &[f32], to: &mut [u32]) = pair_body
}

#[inline(always)]
unsafe fn pair_body<L: Lane>(first: &[f32], second: &[f32], to: &mut [u32]) {
    for ((to, &a), &b) in to.iter_mut().zip(first).zip(second) {
        *to = u32::from(round_bf16(a).to_bits()) | u32::from(round_bf16(b).to_bits()) << 16;
    }
}

multiversion! {
    /// [`pair`] of rows that are bf16 already.
    fn pair_bf16(first: &[bf16], second: &[bf16], to: &mut [u32]) = pair_bf16_body
}

#[inline(always)]
unsafe fn pair_bf16_body<L: Lane>(first: &[bf16], second: &[bf16], to: &mut [u32]) {
    for ((to, a), b) in to.iter_mut().zip(first).zip(second) {
        *to = u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
    }
}

multiversion! {
    /// x ↦ x rounded to bf16, still as f32.
    fn round_to_bf16(x: &mut [f32]) = round_to_bf16_body
}

#[inline(always)]
unsafe fn round_to_bf16_body<L: Lane>(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = round_bf16(*x).to_f32());
}

multiversion! {
    /// The largest magnitude; not a number where one is not.
    fn largest(x: &[f32]) -> f32 = largest_body
}

#[inline(always)]
unsafe fn largest_body<L: Lane>(x: &[f32]) -> f32 {
    // Magnitudes of floats are in the order of their bits, and what is no number stands above infinity.
    let mut strands = [0u32; 32];
    let (whole, rest) = x.as_chunks::<32>();
    for chunk in whole {
        for (top, x) in strands.iter_mut().zip(chunk) {
            *top = (*top).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    let top = rest.iter().map(|x| x.to_bits() & 0x7fff_ffff).chain(strands).fold(0, u32::max);
    f32::from_bits(top)
}

multiversion! {
    /// x · inverse rounded to whole numbers of -127…127.
    fn round_to_bytes(x: &[f32], inverse: f32, to: &mut [i8]) = round_to_bytes_body
}

#[inline(always)]
unsafe fn round_to_bytes_body<L: Lane>(x: &[f32], inverse: f32, to: &mut [i8]) {
    for (to, x) in to.iter_mut().zip(x) {
        // Adding 1.5·2²³ leaves the nearest whole number, ties to even, in the low bits.
        *to = (x * inverse + 12_582_912.0).to_bits() as i8;
    }
}

/// x as signed bytes times a scale, which is returned; not a number where x has one that is not, or an infinity.
pub(crate) fn quantise(isa: Isa, x: &[f32], to: &mut [i8]) -> f32 {
    let top = largest(isa, x);
    if !top.is_finite() {
        to.fill(0);
        return f32::NAN;
    }
    // Below this 127/top is no longer finite; such numbers are nothing beside the rest of a model.
    if top < 1e-36 {
        to.fill(0);
        return 0.0;
    }
    round_to_bytes(isa, x, 127.0 / top, to);
    top / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn bf16_rounds_as_the_library_does() {
        let mut x = random(1, &[3001]).to_f32_vec();
        x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-40, f32::from_bits(0x3f80_8000)]);
        x.extend((0..100).map(|i| f32::from_bits(0x3f80_8000 + (i << 15))));
        for isa in Isa::available() {
            let mut y = vec![bf16::ZERO; x.len()];
            narrow(isa, &x, &mut y);
            let mut wide = x.clone();
            round_to_bf16(isa, &mut wide);
            for ((&x, y), wide) in x.iter().zip(y).zip(wide) {
                assert_eq!(y, bf16::from_f32(x), "{x}");
                assert_eq!(wide, y.to_f32());
            }
            let mut nan = [bf16::ZERO];
            narrow(isa, &[f32::NAN], &mut nan);
            assert!(nan[0].is_nan());
        }
    }

    #[test]
    fn bytes_are_the_nearest() {
        for isa in Isa::available() {
            for n in [1, 31, 32, 33, 1000] {
                let x: Vec<f32> = random(2, &[n]).as_f32().iter().map(|x| x * 3.0).collect();
                let mut q = vec![0i8; n];
                let scale = quantise(isa, &x, &mut q);
                for (x, q) in x.iter().zip(&q) {
                    assert!((x - f32::from(*q) * scale).abs() <= scale * 0.5001, "{x} {q} {scale}");
                }
                assert!(q.iter().any(|q| q.abs() == 127));
            }
            let mut q = [1i8; 3];
            assert_eq!((quantise(isa, &[0.0; 3], &mut q), q), (0.0, [0; 3]));
            assert!(quantise(isa, &[0.0, f32::NAN, 1.0], &mut q).is_nan());
            assert!(quantise(isa, &[f32::NEG_INFINITY, 0.0, 1.0], &mut q).is_nan());
        }
    }
}
