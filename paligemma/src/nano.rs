//! What of our own small models is within this program; models/nano.md says how they were made.

/// The tokenizer of `nano-112` and `nano-224`: 1,856 pieces, `<loc0000>` to `<seg127>` behind them.
pub const TOKENIZER: &[u8] = include_bytes!("../../models/nano/tokenizer.model");

/// Tensors are read where they stand, which must suit their numbers.
#[repr(align(64))]
struct Aligned<B: ?Sized>(B);

static NANO_112: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/nano/nano-112.safetensors"));
static NANO_224: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/nano/nano-224.safetensors"));

/// A model within this program.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    /// Of the model, and of its shape in [`crate::config::Config::published`].
    pub name: &'static str,
    /// A safetensors file.
    pub weights: &'static [u8],
}

impl BuiltIn {
    /// All of them.
    pub fn all() -> [BuiltIn; 2] {
        [
            BuiltIn { name: "nano-112", weights: &NANO_112.0 },
            BuiltIn { name: "nano-224", weights: &NANO_224.0 },
        ]
    }

    /// The model called `name`; `nano` is `nano-112`, which answers better than `nano-224` as yet (models/nano.md).
    pub fn named(name: &str) -> Option<BuiltIn> {
        let name = if name == "nano" { "nano-112" } else { name };
        BuiltIn::all().into_iter().find(|model| model.name == name)
    }
}
