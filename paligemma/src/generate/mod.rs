//! Generation: the loop, sampling, beam search, the grammar of objects.

mod beam;
mod coordinate;
mod decode;
mod grammar;
mod options;
mod sample;

pub use coordinate::{Coordinate, NEAR};
pub use decode::{Answer, FinishReason, Generator, Prompt, Step, Timings};
pub use grammar::{Grammar, LabelIds};
pub use options::{BeamRule, Options, Sampling};
