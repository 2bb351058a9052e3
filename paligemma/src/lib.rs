//! PaliGemma 1 and 2: load a published checkpoint, look at a picture, answer.
//!
//! The modules stand in the order in which they may import each other, top to bottom
//! (see `ARCHITECTURE.md`); a test holds that order.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod generate;
pub mod image;
pub mod model;
pub mod session;
pub mod text;
pub mod verify;

pub use error::{Error, Kind, Result};
