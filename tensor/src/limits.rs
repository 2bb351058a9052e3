//! What this machine can do at most, measured: reading memory, and multiplying numbers that are in registers already.
//!
//! Both run on all threads of the current pool. Other work on the machine lowers them as it lowers everything, so they
//! are worth measuring beside what is compared with them.

use crate::{Isa, parallel::for_each_task};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// What a matrix product multiplies; sums are f32, of int8 factors i32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    /// f32 by f32, or narrower numbers that are widened first.
    F32,
    /// bf16 by bf16.
    Bf16,
    /// int8 by int8.
    Int8,
}

/// A measurement takes at least this long.
const AT_LEAST: Duration = Duration::from_millis(30);

// ---------------------------------------------------------------------------------------------------------------
// Memory.

/// Bytes that a thread takes at a time.
const PIECE: usize = 4 << 20;

/// Bytes a second at which all threads together read `parts` from first to last; 0 if there are none. Parts that fit in
/// a cache are read from there.
pub fn read_bandwidth(parts: &[&[u8]]) -> f64 {
    let pieces: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks(PIECE)).collect();
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    if bytes == 0 {
        return 0.0;
    }
    let isa = Isa::best();
    let (mut passes, start) = (0, Instant::now());
    while passes == 0 || start.elapsed() < AT_LEAST {
        for_each_task(pieces.len(), |i| {
            black_box(xor_words(isa, pieces[i]));
        });
        passes += 1;
    }
    bytes as f64 * f64::from(passes) / start.elapsed().as_secs_f64()
}

/// All words of eight bytes, combined by exclusive or; the bytes after the last whole one make a word with zeros.
fn xor_words(isa: Isa, bytes: &[u8]) -> u64 {
    // SAFETY: an `Isa` comes from detection on this machine.
    #[cfg(target_arch = "x86_64")]
    let (word, done) = unsafe {
        match isa {
            Isa::Portable => (0, 0),
            Isa::Avx2 => x86::avx2_xor(bytes),
            _ => x86::avx512_xor(bytes),
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (word, done) = (0, 0);
    let _ = isa;
    let (words, rest) = bytes[done..].as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).fold(word, |all, word| all ^ u64::from_ne_bytes(*word))
}

// ---------------------------------------------------------------------------------------------------------------
// Arithmetic.

/// Operations a second, a multiplication and an addition each counting one, that all threads together do on registers,
/// with the instruction that `isa` has for `factors`; where it has none, numbers are widened to f32.
pub fn gemm_peak(isa: Isa, factors: Factors) -> f64 {
    let rates = rayon::broadcast(|_| {
        let (mut done, start) = (0.0, Instant::now());
        while done == 0.0 || start.elapsed() < AT_LEAST {
            done += multiply_add(isa, factors);
        }
        // Each thread's work over its own time: they neither begin nor end together.
        2.0 * done / start.elapsed().as_secs_f64()
    });
    rates.into_iter().sum()
}

/// How often a loop below repeats its row of instructions. Every sum stays a whole number that f32 holds.
const ROUNDS: u32 = 1 << 16;

/// Adds 1·1 to sums in registers, many times → how many such products the sums hold. The count is what was computed, not
/// what the loop believes to have done.
fn multiply_add(isa: Isa, factors: Factors) -> f64 {
    // SAFETY: an `Isa` comes from detection on this machine, and for amx from Linux's permission to use tiles.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match (isa, factors) {
            (Isa::Amx, Factors::Bf16) => x86::amx_bf16(),
            (Isa::Amx, Factors::Int8) => x86::amx_int8(),
            (Isa::Avx512Bf16, Factors::Bf16) => x86::avx512_bf16(),
            (Isa::Avx512Vnni | Isa::Avx512Bf16, Factors::Int8) => x86::avx512_vnni(),
            (isa, _) if isa >= Isa::Avx512 => x86::avx512_f32(),
            (Isa::Avx2, _) => x86::avx2_f32(),
            _ => x86::sse_f32(),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, factors);
        let one = black_box(1.0);
        let mut sums = [0f32; 48];
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = *sum * one + one);
        }
        sums.into_iter().map(f64::from).sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::ROUNDS;
    use std::{arch::asm, arch::x86_64::*, hint::black_box, mem::transmute};

    /// bf16 1, twice.
    const BF16_ONES: u32 = 0x3f80_3f80;
    /// int8 1, four times.
    const INT8_ONES: i32 = 0x0101_0101;

    /// All words up to some byte, combined, and which byte that is. Parts are read side by side, a few cache lines of each in
    /// turn: more lines are then under way than one part's prefetcher asks for. Their numbers were found by trying.
    macro_rules! streams {
        (fn $name:ident, $features:literal, $vector:ty: $load:ident, $xor:ident; $streams:literal parts, $lines:literal lines) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(bytes: &[u8]) -> (u64, usize) {
                const STEP: usize = $lines * 64;
                const VECTOR: usize = size_of::<$vector>();
                let part = bytes.len() / ($streams * STEP) * STEP;
                // SAFETY: a register may have any bits.
                let mut sums = [unsafe { transmute::<[u8; VECTOR], $vector>([0; VECTOR]) }; 4];
                for at in (0..part).step_by(STEP) {
                    for i in 0..$streams {
                        for j in 0..STEP / VECTOR {
                            // SAFETY: part `i` has STEP bytes from `at` on, and all parts lie in `bytes`.
                            let vector =
                                unsafe { $load(bytes.as_ptr().add(i * part + at + j * VECTOR).cast()) };
                            sums[j % 4] = $xor(sums[j % 4], vector);
                        }
                    }
                }
                // SAFETY: as above.
                let words = sums.map(|sum| unsafe { transmute::<$vector, [u64; VECTOR / 8]>(sum) });
                (words.into_iter().flatten().fold(0, |all, word| all ^ word), $streams * part)
            }
        };
    }
    streams! {
        fn avx2_xor, "avx2", __m256i: _mm256_loadu_si256, _mm256_xor_si256; 4 parts, 8 lines
    }
    streams! {
        fn avx512_xor, "avx512f", __m512i: _mm512_loadu_si512, _mm512_xor_si512; 6 parts, 4 lines
    }

    /// A loop on as many sums as hide the latency of two units. Assembly, because compilers shuffle such registers about.
    macro_rules! registers {
        (
            $(#[$meta:meta])*
            fn $name:ident, $features:literal, $class:ident as $vector:ty,
            $sums:literal sums of [$lane:ty; $lanes:literal] += $one:expr => $($instruction:literal),+
        ) => {
            $(#[$meta])*
            #[target_feature(enable = $features)]
            pub(super) fn $name() -> f64 {
                type Lanes = [$lane; $lanes];
                // SAFETY: a register is its lanes, and these may have any bits.
                let one = unsafe { transmute::<Lanes, $vector>(black_box([$one; $lanes])) };
                // SAFETY: as above.
                let zero = unsafe { transmute::<Lanes, $vector>([Default::default(); $lanes]) };
                let mut sums = [zero; $sums];
                for _ in 0..ROUNDS {
                    for sum in &mut sums {
                        // SAFETY: arithmetic on registers, with instructions of the function's target features.
                        unsafe {
                            asm!(
                                $($instruction,)+
                                sum = inout($class) *sum,
                                one = in($class) one,
                                out("xmm15") _,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                    }
                }
                // SAFETY: as above.
                let lanes = sums.map(|sum| unsafe { transmute::<$vector, Lanes>(sum) });
                lanes.into_iter().flatten().map(f64::from).sum()
            }
        };
    }
    registers! {
        /// What plain Rust is compiled to: a product, then a sum.
        fn sse_f32, "sse2", xmm_reg as __m128, 12 sums of [f32; 4] += 1.0 =>
            "movaps xmm15, {one}", "mulps xmm15, {one}", "addps {sum}, xmm15"
    }
    registers! {
        fn avx2_f32, "avx2,fma", ymm_reg as __m256, 12 sums of [f32; 8] += 1.0 => "vfmadd231ps {sum}, {one}, {one}"
    }
    registers! {
        fn avx512_f32, "avx512f", zmm_reg as __m512, 16 sums of [f32; 16] += 1.0 => "vfmadd231ps {sum}, {one}, {one}"
    }
    registers! {
        /// Two products a lane. A lane of ones is a pair of them.
        fn avx512_bf16, "avx512f,avx512bf16", zmm_reg as __m512, 16 sums of [f32; 16] += f32::from_bits(BF16_ONES) =>
            "vdpbf16ps {sum}, {one}, {one}"
    }
    registers! {
        /// Four products a lane.
        fn avx512_vnni, "avx512f,avx512vnni", zmm_reg as __m512i, 16 sums of [i32; 16] += INT8_ONES =>
            "vpdpbusd {sum}, {one}, {one}"
    }

    /// Rows of a tile.
    const TILE_ROWS: usize = 16;
    /// Bytes of a tile's row.
    const TILE_ROW: usize = 64;

    /// What `ldtilecfg` reads: all eight tiles, whole.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl TileConfig {
        const NONE: TileConfig =
            TileConfig { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        const WHOLE: TileConfig = {
            let (mut config, mut tile) = (TileConfig::NONE, 0);
            config.palette = 1;
            while tile < 8 {
                config.row_bytes[tile] = TILE_ROW as u16;
                config.rows[tile] = TILE_ROWS as u8;
                tile += 1;
            }
            config
        };
    }

    /// A loop of `$instruction` on four tiles of sums, which hide its latency. `$ones` fills the factors. The thread's
    /// own configuration of tiles is put back.
    macro_rules! tiles {
        ($(#[$meta:meta])* fn $name:ident = $instruction:literal, $ones:expr, $sum:ty) => {
            $(#[$meta])*
            ///
            /// # Safety
            /// The machine has the instruction, and Linux allows this process to use tiles.
            pub(super) unsafe fn $name() -> f64 {
                let ones = [black_box($ones); TILE_ROWS * TILE_ROW / size_of::<i32>()];
                let mut sums: [[$sum; TILE_ROWS * TILE_ROW / 4]; 4] = [[Default::default(); TILE_ROWS * TILE_ROW / 4]; 4];
                let (whole, mut before) = (TileConfig::WHOLE, TileConfig::NONE);
                // SAFETY: the caller promises the instructions. Tiles are as large as `ones` and as each of `sums`, to
                // which the pointers lead; nothing else is written but the registers named.
                unsafe {
                    asm!(
                        "sttilecfg [{before}]",
                        "ldtilecfg [{whole}]",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "tileloadd tmm4, [{ones} + 1*{row}]",
                        "tileloadd tmm5, [{ones} + 1*{row}]",
                        "2:",
                        concat!($instruction, " tmm0, tmm4, tmm5"),
                        concat!($instruction, " tmm1, tmm4, tmm5"),
                        concat!($instruction, " tmm2, tmm4, tmm5"),
                        concat!($instruction, " tmm3, tmm4, tmm5"),
                        "dec {rounds:e}",
                        "jnz 2b",
                        "tilestored [{sums} + 1*{row}], tmm0",
                        "tilestored [{sums} + 1*{row} + 1024], tmm1",
                        "tilestored [{sums} + 1*{row} + 2048], tmm2",
                        "tilestored [{sums} + 1*{row} + 3072], tmm3",
                        "ldtilecfg [{before}]",
                        before = in(reg) &raw mut before,
                        whole = in(reg) &raw const whole,
                        ones = in(reg) ones.as_ptr(),
                        sums = in(reg) sums.as_mut_ptr(),
                        row = in(reg) TILE_ROW,
                        rounds = inout(reg) ROUNDS => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                        options(nostack),
                    );
                }
                sums.into_iter().flatten().map(f64::from).sum()
            }
        };
    }
    tiles! {
        /// `tdpbf16ps`: 32 products an element.
        fn amx_bf16 = "tdpbf16ps", f32::from_bits(BF16_ONES), f32
    }
    tiles! {
        /// `tdpbssd`: 64 products an element.
        fn amx_int8 = "tdpbssd", INT8_ONES, i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Factors; 3] = [Factors::F32, Factors::Bf16, Factors::Int8];

    /// Every byte is read: each changes the word that comes out.
    #[test]
    fn no_byte_is_left_out() {
        for len in [0, 1, 7, 8, 63, 255, 256, 257, 1000, 4096 + 77, 6 * 1024 + 5] {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 31 + 7) as u8).collect();
            let mut want = [0; 8];
            bytes.iter().enumerate().for_each(|(i, byte)| want[i % 8] ^= byte);
            // Streams begin at multiples of a line, so that a byte's place in its word is its place in `bytes`.
            for isa in Isa::available() {
                assert_eq!(xor_words(isa, &bytes), u64::from_ne_bytes(want), "{isa:?} {len}");
                for i in 0..len {
                    bytes[i] ^= 0x10;
                    assert_ne!(xor_words(isa, &bytes), u64::from_ne_bytes(want), "{isa:?} {len} byte {i}");
                    bytes[i] ^= 0x10;
                }
            }
        }
    }

    /// The sums hold a whole number of products for every round, the same each time.
    #[test]
    fn what_is_counted_was_computed() {
        for isa in Isa::available() {
            for factors in ALL {
                let done = multiply_add(isa, factors);
                assert_eq!(done, multiply_add(isa, factors), "{isa:?} {factors:?}");
                let a_round = done / f64::from(ROUNDS);
                assert!(a_round.fract() == 0.0 && a_round >= 48.0, "{isa:?} {factors:?}: {a_round}");
            }
        }
    }

    #[test]
    fn the_limits_of_any_machine_are_numbers() {
        for isa in Isa::available() {
            for factors in ALL {
                let peak = gemm_peak(isa, factors);
                assert!(peak.is_finite() && peak > 1e7, "{isa:?} {factors:?}: {peak}");
            }
        }
        let bytes = vec![1; 100_000];
        let bandwidth = read_bandwidth(&[&bytes, &[], &bytes[..10]]);
        assert!(bandwidth.is_finite() && bandwidth > 1e6, "{bandwidth}");
        assert_eq!(read_bandwidth(&[&[]]), 0.0);
    }
}
