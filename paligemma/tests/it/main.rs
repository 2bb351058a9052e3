//! The library's integration tests: one file a subject.

mod hostile_images;
mod image;
