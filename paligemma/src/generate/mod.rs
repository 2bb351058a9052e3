//! Generation: the loop, sampling, beam search.

mod beam;
mod decode;
mod options;
mod sample;

pub use decode::{Answer, FinishReason, Generator, Prompt, Timings};
pub use options::{BeamRule, Options, Sampling};
