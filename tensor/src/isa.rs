//! Which vector instructions the kernels use, chosen once at run time.

use std::sync::OnceLock;

/// An instruction set that a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// The best set of this machine; `PALIGEMMA_ISA` (`portable`, `avx2`, `avx512`) may name a lesser one.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wanted = std::env::var("PALIGEMMA_ISA").unwrap_or_default();
            let here = Isa::available();
            here.iter().copied().find(|isa| isa.name() == wanted).unwrap_or(here[here.len() - 1])
        })
    }

    /// Every set that this machine has, the best last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "only x86-64 adds to it")]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    sets.push(Isa::Avx512);
                }
            }
        }
        sets
    }

    /// The name used in `PALIGEMMA_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

/// Compiles one body for every [`Isa`] and calls the version for `isa`.
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
                    $crate::isa::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::isa::Isa::Avx2 => avx2($($arg),*),
                    _ => $body::<$crate::lane::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use multiversion;
