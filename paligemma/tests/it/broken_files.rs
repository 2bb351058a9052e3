//! Broken checkpoints.
