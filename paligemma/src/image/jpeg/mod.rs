//! JPEG to RGB, bit for bit what libjpeg-turbo and Pillow make of it.
//!
//! The pure-Rust decoders differ from libjpeg by up to tens of levels in small or subsampled
//! pictures, because they interpolate colour differently. This one does libjpeg's integer arithmetic
//! (accurate integer DCT, "fancy" upsampling, 16-bit colour tables), so that a JPEG gives
//! the same pixels, and the same answer, as in Python.
//!
//! Baseline, extended and progressive Huffman, 8 bits, 1, 3 or 4 components, any sampling factors that
//! divide each other, restart intervals. Not: arithmetic coding, lossless, 12 bits; each is an error
//! that says so. Broken data is an error too: half a picture is not answered about.
//!
//! The picture is made in bands of one row of blocks, so that memory beyond the output is small,
//! except for progressive files, whose coefficients must be kept (2 bytes a sample).

mod entropy;
mod file;
mod frame;
mod samples;

pub(super) use file::{Header, decode, header};
