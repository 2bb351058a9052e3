//! The program `paligemma`.
//!
//! stdout is data, stderr is everything else. Exit codes stand in [`exit`].

mod args;
mod exit;
mod frames;
mod open;
mod output;
mod verbs;

use clap::Parser;
use std::process::ExitCode;

/// Memory that the system does not give is a lack of resources, wherever it is asked for.
#[global_allocator]
static MEMORY: paligemma::OrExit = paligemma::OrExit { code: exit::code(paligemma::Kind::Resource) as i32 };

fn main() -> ExitCode {
    let args = args::Args::parse();
    match verbs::run(&args) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
