//! Exit codes and the last words of a failed run.

use crate::output::to_stderr;
use paligemma::Kind;
use std::{io, process::ExitCode};

/// What `--help` says of exit codes.
pub(crate) const CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 input (image, prompt, data), 4 training stopped itself, \
    5 resources (memory, disk), 6 network or access, 130 Ctrl-C.";

/// The code of a kind of error.
pub(crate) const fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Model | Kind::Io => 1,
        Kind::Usage => 2,
        Kind::Input => 3,
        Kind::Training => 4,
        Kind::Resource => 5,
        Kind::Network => 6,
        Kind::Cancelled => 130,
    }
}

/// Says what went wrong and gives the code. A reader that closed the pipe wanted no more: that is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    to_stderr(format_args!("error: {error}"));
    match error.downcast_ref::<paligemma::Error>() {
        Some(e) => ExitCode::from(code(e.kind())),
        None => ExitCode::FAILURE,
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
