//! Dense tensors and the fused operations of a transformer, on the CPU.
//!
//! This crate is the machine floor: memory, threads, SIMD. It knows nothing of checkpoints, images or text.
//! It is the only crate with `unsafe`, each block with its reason.
//!
//! A [`Tensor`] is contiguous, immutable and cheap to clone; its elements lie in memory that it
//! owns or in a read-only file map. Activations are `f32`; weights are `f32`, `bf16` or `f16`.
//! Wrong shapes are a programmer's error and panic: whoever reads shapes from a file checks them first.

mod amx;
mod attention;
mod attention_backward;
mod contrastive;
mod convolution;
mod cross_entropy;
mod dropout;
mod dtype;
mod elementwise;
mod embedding;
mod isa;
mod key_values;
mod lane;
mod limits;
mod linear;
mod linear_backward;
mod mapped;
mod math;
mod memory;
mod mix;
mod narrow;
mod nibbles;
mod norm;
mod packing;
mod parallel;
mod product;
mod recorded;
mod resident;
mod rope;
mod tape;
mod tensor;
#[cfg(test)]
mod testing;
mod transpose;
mod weight;

pub use attention::{Mask, Segment, attention, attention_plain};
pub use attention_backward::{AttentionRule, Span, attention_backward, attention_whole};
pub use contrastive::{SigmoidContrastive, sigmoid_contrastive, unit_rows, unit_rows_backward};
pub use convolution::{
    ConvolutionGradients, conv_transpose2d, conv_transpose2d_backward, conv_transpose2d_plain, conv2d,
    conv2d_backward, conv2d_plain, relu, relu_backward,
};
pub use cross_entropy::{CrossEntropy, LossRule, Target, cross_entropy, logits_rows};
pub use dropout::{KeyedRows, dropout};
pub use dtype::DType;
pub use elementwise::{
    add, concat_rows, gelu, gelu_backward, gelu_times, gelu_times_backward, log_sum_exp, softcap,
    softcap_backward,
};
pub use embedding::{add_embedding_gradient, embedding, patches};
pub use half::{bf16, f16};
pub use isa::{Isa, IsaError};
pub use key_values::KeyValues;
pub use limits::{Factors, gemm_peak, read_bandwidth};
pub use linear::{Epilogue, geglu, geglu_on, linear, linear_on, linear_plain};
pub use linear_backward::{
    GRADIENT_PART, add_input_gradient, add_weight_gradient, bias_gradient, gradient_dtype, input_gradient,
    weight_gradient,
};
pub use mapped::MappedFile;
pub use memory::{OrExit, keep_freed_memory, peak_rss};
pub use mix::mix;
pub use narrow::{round_into_bf16, widen_from_bf16};
pub use nibbles::INT4_GROUP;
pub use norm::{
    layer_norm, layer_norm_backward, layer_norm_on, layer_norm_plain, rms_norm, rms_norm_backward,
    rms_norm_on, rms_norm_plain,
};
pub use recorded::LinearParts;
pub use rope::{rope, rope_backward, rope_plain};
pub use tape::{Contribution, Parameter, Tape, Value};
pub use tensor::Tensor;
pub use weight::Weight;
