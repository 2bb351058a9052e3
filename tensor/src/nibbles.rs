//! Half bytes: groups of 32 numbers that share a scale. A number is (nibble - 8) · scale; byte i of a group's 16 holds number
//! i in its low half and number 16 + i in its high half.

use crate::{bf16, isa::multiversion, lane::Lane, narrow::round_bf16};

/// Inputs that share a scale; the inputs of a matrix are a multiple of it.
pub const INT4_GROUP: usize = 32;
/// Bytes of a group.
const BYTES: usize = INT4_GROUP / 2;
/// f32 of so great a magnitude have no fraction: what is added to it and taken off again is rounded to a whole number.
const WHOLE: f32 = 12_582_912.0;

multiversion! {
    /// A row in half bytes. Of several scales around a group's largest magnitude the one with the least squared error is kept.
    /// Panics unless there are whole groups.
    fn quantise_nibbles(row: &[f32], values: &mut [u8], scales: &mut [bf16]) = quantise_body
}

#[inline(always)]
unsafe fn quantise_body<L: Lane>(row: &[f32], values: &mut [u8], scales: &mut [bf16]) {
    let (groups, rest) = row.as_chunks::<INT4_GROUP>();
    let (values, _) = values.as_chunks_mut::<BYTES>();
    assert!(rest.is_empty() && groups.len() == values.len() && groups.len() == scales.len());
    for g in 0..groups.len() {
        let scale = best_scale(&groups[g]);
        let steps = steps(&groups[g], scale.to_f32());
        for i in 0..BYTES {
            values[g][i] = (steps[i] + 8.0) as u8 | ((steps[BYTES + i] + 8.0) as u8) << 4;
        }
        scales[g] = scale;
    }
}

/// The whole number of -8…7 nearest to each x / scale.
#[inline(always)]
fn steps(group: &[f32; INT4_GROUP], scale: f32) -> [f32; INT4_GROUP] {
    let mut steps = [0.0; INT4_GROUP];
    if scale != 0.0 {
        for i in 0..INT4_GROUP {
            let x = group[i] / scale;
            let x = if x < 7.0 { x } else { 7.0 };
            let x = if x > -8.0 { x } else { -8.0 };
            steps[i] = (x + WHOLE) - WHOLE;
        }
    }
    steps
}

/// The scale with the least squared error, of those that put the largest magnitude at -8.8 … -6.4 or 6.4 … 8.8 steps.
#[inline(always)]
fn best_scale(group: &[f32; INT4_GROUP]) -> bf16 {
    // The side with the eighth step goes to the sign of the largest magnitude.
    let mut top = 0f32;
    for x in group {
        top = if x.abs() > top.abs() { *x } else { top };
    }
    let mut best = (f32::INFINITY, bf16::ZERO);
    for i in 0..26 {
        let at = (6.4 + 0.2 * (i / 2) as f32) * if i % 2 == 0 { -1.0 } else { 1.0 };
        let scale = round_bf16(top / at);
        let error = error(group, scale.to_f32());
        if i == 0 || error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// The sum of squares of what the steps of `scale` miss.
#[inline(always)]
fn error(group: &[f32; INT4_GROUP], scale: f32) -> f32 {
    let steps = steps(group, scale);
    let mut sums = [0.0; INT4_GROUP];
    for i in 0..INT4_GROUP {
        let miss = group[i] - steps[i] * scale;
        sums[i] = miss * miss;
    }
    let mut half = BYTES;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[half + i];
        }
        half /= 2;
    }
    sums[0]
}

multiversion! {
    /// Groups as f32; the last may be asked for in part.
    fn widen_nibbles(values: &[u8], scales: &[bf16], to: &mut [f32]) = widen_body
}

#[inline(always)]
unsafe fn widen_body<L: Lane>(values: &[u8], scales: &[bf16], to: &mut [f32]) {
    let (values, _) = values.as_chunks::<BYTES>();
    let (whole, rest) = to.as_chunks_mut::<INT4_GROUP>();
    for g in 0..whole.len() {
        widen_group(&values[g], scales[g].to_f32(), &mut whole[g]);
    }
    if !rest.is_empty() {
        let mut last = [0.0; INT4_GROUP];
        widen_group(&values[whole.len()], scales[whole.len()].to_f32(), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

multiversion! {
    /// Groups rounded to bf16; the last may be asked for in part.
    fn widen_nibbles_to_bf16(values: &[u8], scales: &[bf16], to: &mut [bf16]) = widen_to_bf16_body
}

#[inline(always)]
unsafe fn widen_to_bf16_body<L: Lane>(values: &[u8], scales: &[bf16], to: &mut [bf16]) {
    let (values, _) = values.as_chunks::<BYTES>();
    let (whole, rest) = to.as_chunks_mut::<INT4_GROUP>();
    let mut wide = [0.0; INT4_GROUP];
    for g in 0..whole.len() {
        widen_group(&values[g], scales[g].to_f32(), &mut wide);
        for i in 0..INT4_GROUP {
            whole[g][i] = round_bf16(wide[i]);
        }
    }
    if !rest.is_empty() {
        widen_group(&values[whole.len()], scales[whole.len()].to_f32(), &mut wide);
        for (to, x) in rest.iter_mut().zip(wide) {
            *to = round_bf16(x);
        }
    }
}

#[inline(always)]
fn widen_group(values: &[u8; BYTES], scale: f32, to: &mut [f32; INT4_GROUP]) {
    for i in 0..BYTES {
        to[i] = (f32::from(values[i] & 15) - 8.0) * scale;
    }
    for i in 0..BYTES {
        to[BYTES + i] = (f32::from(values[i] >> 4) - 8.0) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, testing::random};

    /// The number nearest x among (0…15 - 8) · scale.
    fn nibble_plain(x: f32, scale: f32) -> u8 {
        let steps = if scale == 0.0 { 0.0 } else { x / scale };
        (steps.round_ties_even() + 8.0).clamp(0.0, 15.0) as u8
    }

    fn best_scale_plain(group: &[f32]) -> bf16 {
        let top = group.iter().copied().fold(0f32, |top, x| if x.abs() > top.abs() { x } else { top });
        let error = |scale: bf16| -> f64 {
            let scale = scale.to_f32();
            let miss = |x: f32| f64::from(x) - f64::from((f32::from(nibble_plain(x, scale)) - 8.0) * scale);
            group.iter().map(|&x| miss(x).powi(2)).sum()
        };
        let tried = (0..=12).map(|i| 6.4 + 0.2 * i as f32);
        let tried = tried.flat_map(|steps| [bf16::from_f32(-top / steps), bf16::from_f32(top / steps)]);
        tried.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap()
    }

    #[test]
    fn every_instruction_set_does_as_the_plain_one() {
        for (seed, size) in [(1, 1.0), (2, 1e-3), (3, 1e-38), (4, 1e30), (5, 0.0)] {
            let row: Vec<f32> = random(seed, &[96]).as_f32().iter().map(|x| x * size).collect();
            for isa in Isa::available() {
                let (mut values, mut scales) = ([0; 48], [bf16::ZERO; 3]);
                quantise_nibbles(isa, &row, &mut values, &mut scales);
                let (mut wide, mut narrow) = ([0.0; 90], [bf16::ZERO; 90]);
                widen_nibbles(isa, &values, &scales, &mut wide);
                widen_nibbles_to_bf16(isa, &values, &scales, &mut narrow);
                for (g, group) in row.chunks(32).enumerate() {
                    if (1e-15..1e15).contains(&size) {
                        assert_eq!(scales[g], best_scale_plain(group), "{isa:?} {size} group {g}");
                    }
                    for (i, &x) in group.iter().enumerate().filter(|(i, _)| g * 32 + i < 90) {
                        let scale = scales[g].to_f32();
                        let want = (f32::from(nibble_plain(x, scale)) - 8.0) * scale;
                        assert_eq!(wide[g * 32 + i], want, "{isa:?} {size} {g} {i}");
                        assert_eq!(narrow[g * 32 + i], bf16::from_f32(want), "{isa:?} {size} {g} {i}");
                    }
                }
            }
        }
    }
}
