//! The model: SigLIP, the projector, Gemma, and the prefix-LM join.

mod cache;
mod gemma;
mod linear;
mod paligemma;
mod pass;
mod siglip;
mod vqvae;

pub use cache::KvCache;
pub use gemma::{Gemma, Turn};
pub use linear::{Linear, Weights};
pub use paligemma::{PaliGemma, mean_loss};
pub use pass::Pass;
pub use siglip::Siglip;
pub use vqvae::VqVae;
