//! Checkpoints: names, safetensors, npz, the hub.

mod assemble;
mod config_json;
mod convert;
mod disk;
pub mod hub;
pub mod locate;
mod memory;
pub mod names;
mod npz;
mod open;
mod parts;
mod quantised;
mod random;
mod recognise;
mod resolution;
pub(crate) mod safetensors;
mod tensors;
mod two_towers;
mod write;

pub use assemble::assemble;
pub(crate) use convert::companions;
pub use convert::{Summary, convert};
pub(crate) use disk::check_space;
pub use disk::free_space;
pub use memory::{Need, available_memory};
pub use names::canonical;
pub use open::{Checkpoint, Format};
pub use parts::{LanguagePart, VisionPart};
pub use quantised::dequantise;
pub use quantised::{Form, Scheme};
pub use random::{random_folder, random_weights};
pub use resolution::with_image_size;
pub use tensors::NamedTensors;
pub(crate) use two_towers::{SiglipFolder, write_siglip};
pub(crate) use write::{safetensors_bytes, safetensors_header, write_files};
pub use write::{write_folder, write_new};
