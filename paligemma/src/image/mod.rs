//! Pictures: decoding within limits, the two resizers, pixel values.

pub mod decode;
mod jpeg;
pub mod preprocess;
pub mod resize;
mod tensorflow;

pub use decode::{Grey16, Picture, decode, decode_as, decode_file, decode_file_as};
pub use preprocess::{Choice, Preprocess, ProcessorSettings, pixel_values};
pub use resize::Resample;
pub use tensorflow::Method;
