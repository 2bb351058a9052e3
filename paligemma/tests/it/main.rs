//! The library's integration tests: one file a subject.
mod generation;
mod goldens;
mod broken_files;
mod checkpoint;

mod tokenizer;
