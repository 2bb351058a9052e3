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

fn main() -> ExitCode {
    let args = args::Args::parse();
    match verbs::run(&args) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
