//! Checkpoints: names, safetensors, npz, the hub.
