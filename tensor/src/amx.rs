//! Tiles of Intel AMX: permission, configuration and the 32×32 product, in assembler, since Rust's intrinsics for them
//! are not stable. Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
//!
//! Tiles hold 16 rows of 64 bytes. A product of one step takes 16 units of 32 bits (two bf16 or four bytes each) of 16
//! rows of A, and the same units of 16 columns of B.

use std::sync::OnceLock;

/// Whether the processor has bf16 and byte tiles and the system lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILE_BF16_BYTE: u32 = 1 << 24 | 1 << 22 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILE_BF16_BYTE == TILE_BF16_BYTE
}

/// Linux hands out the state of tiles on request, once for all threads of a process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call changes nothing but the process's permission, and takes plain numbers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_instructions() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn is_permitted() -> bool {
    false
}

/// What the tiles of this thread hold while it lives: all eight at their full size.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Tiles(());

#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
impl Tiles {
    /// Configures this thread's tiles. Panics where there are none.
    pub(crate) fn configure() -> Tiles {
        assert!(is_available(), "no AMX on this machine");
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        configuration.bytes_per_row[..8].fill(64);
        configuration.rows[..8].fill(16);
        // SAFETY: the instruction exists and is permitted; it reads the 64 bytes of the configuration.
        unsafe {
            std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Tiles(())
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the instruction exists, since `configure` was called; nobody holds numbers in tiles between calls.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// What a tile product multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TileKind {
    /// bf16 by bf16, sums in f32.
    Bf16,
    /// Unsigned bytes (A) by signed bytes (B), sums in i32.
    Bytes,
}

/// c[32, 32] += a[32, 16·steps]·b[16·steps, 32], in units of 32 bits; c holds f32 or i32 as the kind says.
///
/// # Safety
/// `tiles` is this thread's; a has 32 rows `a_row` bytes apart, each of `steps`·64 bytes; b has 16·`steps` rows `b_row` bytes
/// apart, each of 128 bytes; c has 32 rows `c_row` bytes apart, each of 128 bytes.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments, reason = "three strided matrices")]
pub(crate) unsafe fn product_32x32(
    _tiles: &Tiles,
    kind: TileKind,
    steps: usize,
    a: *const u8,
    a_row: usize,
    b: *const u8,
    b_row: usize,
    c: *mut u8,
    c_row: usize,
) {
    // One block of assembler from load to store: nothing else may touch the tiles in between.
    macro_rules! product {
        ($multiply:literal) => {
            std::arch::asm!(
                "tileloadd tmm0, [{c} + {c_row}]",
                "tileloadd tmm1, [{c} + {c_row} + 64]",
                "tileloadd tmm2, [{c_low} + {c_row}]",
                "tileloadd tmm3, [{c_low} + {c_row} + 64]",
                "2:",
                "tileloadd tmm6, [{b} + {b_row}]",
                "tileloadd tmm4, [{a} + {a_row}]",
                concat!($multiply, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b} + {b_row} + 64]",
                concat!($multiply, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{a_low} + {a_row}]",
                concat!($multiply, " tmm2, tmm5, tmm6"),
                concat!($multiply, " tmm3, tmm5, tmm7"),
                "add {a}, 64",
                "add {a_low}, 64",
                "add {b}, {b_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {c_row}], tmm0",
                "tilestored [{c} + {c_row} + 64], tmm1",
                "tilestored [{c_low} + {c_row}], tmm2",
                "tilestored [{c_low} + {c_row} + 64], tmm3",
                a = inout(reg) a => _,
                a_low = inout(reg) a.add(16 * a_row) => _,
                a_row = in(reg) a_row,
                b = inout(reg) b => _,
                b_row = in(reg) b_row,
                b_step = in(reg) 16 * b_row,
                c = in(reg) c,
                c_low = in(reg) c.add(16 * c_row),
                c_row = in(reg) c_row,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    if steps == 0 {
        return;
    }
    // SAFETY: the tiles are configured at full size; the caller gives matrices that hold what is read and written.
    unsafe {
        match kind {
            TileKind::Bf16 => product!("tdpbf16ps"),
            TileKind::Bytes => product!("tdpbusd"),
        }
    }
}
