//! The program `paligemma`.
fn main() {}
