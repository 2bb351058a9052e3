//! The model: SigLIP, the projector, Gemma, and the prefix-LM join.

mod cache;
mod encoder;
mod gemma;
mod learning;
mod linear;
mod paligemma;
mod pass;
mod siglip;
mod two_towers;
mod vqvae;
mod vqvae_learning;

pub use cache::KvCache;
pub use gemma::{Gemma, Sequence, Turn};
pub use learning::{BatchSize, Lesson, Loss, LossOptions, Mean, dropout_key};
pub use linear::{Linear, Lora, Weights};
pub use paligemma::{PaliGemma, Part, mean_loss};
pub use pass::{Dropout, Pass};
pub use siglip::Siglip;
pub use two_towers::{Retrieval, TextTowerConfig, TwoTowers, TwoTowersConfig};
pub use vqvae::VqVae;
pub use vqvae_learning::{CodebookAverage, VqVaeLoss, VqVaeOptions};
