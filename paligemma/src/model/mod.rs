//! The model: SigLIP, the projector, Gemma, and the prefix-LM join.

mod cache;
mod gemma;
mod linear;
mod paligemma;
mod pass;
mod siglip;
mod vqvae;

pub use cache::KvCache;
pub use gemma::{Gemma, Sequence, Turn};
pub use linear::{Linear, Lora, Weights};
pub use paligemma::{PaliGemma, Part, mean_loss};
pub use pass::{Dropout, Pass};
pub use siglip::Siglip;
pub use vqvae::VqVae;
