//! The program's tests: one file a subject.
