//! PaliGemma 1 and 2: load a published checkpoint, look at a picture, answer.
//!
//! [`session::Session`] opens a model and answers; everything under it may be used by itself. Which module may use
//! which stands in `ARCHITECTURE.md`, and a test holds it.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod detection;
pub mod drift;
pub mod error;
pub mod eval;
pub mod generate;
pub mod image;
pub mod masks;
pub mod model;
pub mod nano;
pub mod session;
pub mod text;
pub mod train;
pub mod verify;

pub use error::{Error, Kind, Result};
pub use paligemma_tensor::{DType, Isa, OrExit, keep_freed_memory, peak_rss};
