//! Dense tensors and the fused operations of a transformer, on the CPU.
//!
//! This crate is the machine floor: memory, threads, SIMD. It knows nothing of transformers'
//! files, images or text. It is the only crate with `unsafe`, each block with its reason.
//!
//! A [`Tensor`] is contiguous, immutable and cheap to clone; its elements lie in memory that it
//! owns or in a read-only file map. Activations are `f32`; weights are `f32`, `bf16` or `f16`.
//! Wrong shapes are a programmer's error and panic: whoever reads shapes from a file checks them first.

mod dtype;
mod mapped;
mod tensor;

pub use dtype::DType;
pub use half::{bf16, f16};
pub use mapped::MappedFile;
pub use tensor::Tensor;
