//! Checkpoints: names, safetensors, npz, the hub.

mod config_json;
mod memory;
pub mod names;
mod npz;
mod open;
mod recognise;
pub(crate) mod safetensors;

pub use memory::{Need, available_memory};
pub use names::canonical;
pub use open::{Checkpoint, Format};
