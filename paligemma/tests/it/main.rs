//! The library's integration tests: one file a subject.
mod annotations;
mod answers;
mod broken_files;
mod checkpoint;
mod data;
mod end_to_end;
mod generation;
mod goldens;
mod grammar;
mod hostile_data;
mod hostile_images;
mod hub;
mod image;
mod masks;
mod quantised;
mod tidy;
mod tokenizer;
