//! Checkpoints: names, safetensors, npz, the hub.

pub mod hub;
pub mod locate;
