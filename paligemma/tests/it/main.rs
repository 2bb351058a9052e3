//! The library's integration tests: one file a subject.
mod broken_files;
mod checkpoint;
mod generation;
mod goldens;
mod hub;
mod tokenizer;

mod hostile_images;
mod image;
