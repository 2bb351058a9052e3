//! Which vector instructions the kernels use, chosen once at run time.

use std::sync::OnceLock;

/// An instruction set that kernels are written for. Each has what the ones before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bytes (VNNI).
    Avx512Vnni,
    /// AVX-512 with products of bf16 too.
    Avx512Bf16,
    /// Tiles of bf16 and of bytes (AMX).
    Amx,
}

/// `PALIGEMMA_ISA` names a set that is unknown or not on this machine.
#[derive(Debug, Clone, thiserror::Error)]
#[error("PALIGEMMA_ISA={wanted}: this machine has {}", .available.join(", "))]
pub struct IsaError {
    wanted: String,
    available: Vec<&'static str>,
}

impl Isa {
    /// The set that kernels use: the fastest of this machine, or the lesser one that `PALIGEMMA_ISA` names.
    ///
    /// # Errors
    /// A name that is unknown or not of this machine.
    pub fn chosen() -> Result<Isa, IsaError> {
        static CHOSEN: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| {
                let here = Isa::available();
                match std::env::var("PALIGEMMA_ISA") {
                    Ok(wanted) if !wanted.is_empty() => {
                        here.iter().copied().find(|isa| isa.name() == wanted).ok_or_else(|| IsaError {
                            wanted,
                            available: here.iter().map(|isa| isa.name()).collect(),
                        })
                    }
                    _ => Ok(Isa::fastest()),
                }
            })
            .clone()
    }

    /// [`Isa::chosen`], or the fastest set where the environment's choice is an error: a program asks for
    /// `chosen` once and reports it.
    pub fn best() -> Isa {
        Isa::chosen().unwrap_or_else(|_| Isa::fastest())
    }

    /// The last of [`Isa::available`], but for one: Intel's products of bf16 outside tiles run at half the speed of f32.
    fn fastest() -> Isa {
        let here = Isa::available();
        match here[here.len() - 1] {
            Isa::Avx512Bf16 if !is_amd() => Isa::Avx512Vnni,
            isa => isa,
        }
    }

    /// Every set that this machine has, in ascending order.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "only x86-64 adds to it")]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let has = [
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c"),
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl"),
                is_x86_feature_detected!("avx512vnni"),
                is_x86_feature_detected!("avx512bf16"),
                crate::amx::is_available(),
            ];
            let names = [Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];
            sets.extend(names.into_iter().zip(has).take_while(|(_, has)| *has).map(|(isa, _)| isa));
        }
        sets
    }

    /// The name used in `PALIGEMMA_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }
}

fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        (leaf.ebx, leaf.edx, leaf.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Compiles one body for every kind of [`Lane`](crate::lane::Lane) and calls the version for `isa`.
///
/// `multiversion!(fn name(args) = body_fn::<Lane>)`: the body is an `#[inline(always)] unsafe fn` that is generic over
/// a [`Lane`](crate::lane::Lane); inlined into a function with the target features, its vector operations become single
/// instructions.
macro_rules! multiversion {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        pub(crate) fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of `avx512` promises what the body asks for.
                unsafe { $body::<$crate::lane::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of `avx2` promises what the body asks for.
                unsafe { $body::<$crate::lane::Avx2>($($arg),*) }
            }
            // SAFETY: `Isa` values other than Portable come from detection on this machine only, and the bodies
            // check the lengths of the slices they are given before they use pointers into them.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    isa if isa >= $crate::isa::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Isa::Avx2 => avx2($($arg),*),
                    _ => $body::<$crate::lane::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use multiversion;
