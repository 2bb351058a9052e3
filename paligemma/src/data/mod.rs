//! Data: examples of many formats, mixed by weight, in an order that follows from a seed, made ready ahead of need.

mod augment;
pub mod convert;
mod dataset;
mod example;
mod fields;
mod folder;
mod jsonl;
mod lint;
mod loader;
mod members;
mod mixture;
mod parquet;
pub mod playground;
mod preview;
mod random;
mod tar;
mod tokens;

pub use augment::Augmentation;
pub use dataset::{Dataset, MAX_EXAMPLES};
pub use example::{Example, ImageFile};
pub use fields::{Fields, MAX_TEXT, Template};
pub use jsonl::{MAX_IMAGES, MAX_LINE};
pub use lint::{Check, Lint, Problem};
pub use loader::{Loader, OnError, Preparation, Ready};
pub use mixture::{Draw, MAX_PARTS, Mixture, Part};
pub use preview::{Shown, show};
pub use tokens::Tokens;
