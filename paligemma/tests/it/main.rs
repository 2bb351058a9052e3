//! The library's integration tests: one file a subject.

mod hub;
