//! From what the user calls a model to a model, and Ctrl-C.

use crate::{
    args::Args,
    output::{Meter, note},
};
use paligemma::{
    Error, Kind, Result,
    checkpoint::{
        Checkpoint,
        hub::{HubOptions, Want},
        locate::{Location, locate},
    },
    session::{Session, SessionOptions},
};
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

static CANCEL: AtomicBool = AtomicBool::new(false);
static HEEDED: AtomicBool = AtomicBool::new(false);

/// Whether the user pressed Ctrl-C.
pub(crate) fn is_cancelled() -> bool {
    CANCEL.load(Ordering::Relaxed)
}

/// What generation looks at between two layers.
pub(crate) fn cancel_flag() -> &'static AtomicBool {
    &CANCEL
}

/// While it lives, the work at hand looks at [`is_cancelled`] and stops by itself.
pub(crate) struct Heeding;

impl Heeding {
    pub(crate) fn begin() -> Heeding {
        HEEDED.store(true, Ordering::Relaxed);
        Heeding
    }
}

impl Drop for Heeding {
    fn drop(&mut self) {
        HEEDED.store(false, Ordering::Relaxed);
    }
}

/// Ctrl-C asks work that heeds it to stop and to leave nothing half-written; a second one, or one during other work,
/// ends the process at once. Files that were being written then stay under their unfinished names, which the next run
/// takes over.
#[allow(clippy::exit, reason = "the user asked for it")]
pub(crate) fn watch_ctrl_c() {
    // Without a handler Ctrl-C ends the process at once, which is acceptable too.
    let _ = ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::Relaxed) || !HEEDED.load(Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// The environment's say about the Hub, and `--offline`.
pub(crate) fn hub_options(args: &Args) -> Result<HubOptions> {
    let mut options = HubOptions::from_env()?;
    options.offline |= args.offline;
    Ok(options)
}

/// Finds or fetches the model called `name`.
pub(crate) fn find(args: &Args, name: &str, want: Want) -> Result<Location> {
    let options = HubOptions { want, ..hub_options(args)? };
    let mut meter = Meter::new("pull", args.quiet);
    let _heeding = Heeding::begin();
    locate(name, &options, &mut |progress| meter.hear(progress))
}

/// Opens the checkpoint of the model called `name`.
pub(crate) fn checkpoint(args: &Args, name: &str) -> Result<Checkpoint> {
    Checkpoint::open(&find(args, name, Want::Model)?.path)
}

/// Opens the model called `name`, ready to answer.
pub(crate) fn session(args: &Args, name: &str, options: &SessionOptions) -> Result<Session> {
    let location = find(args, name, Want::Model)?;
    if !Path::new(name).exists() {
        note(args.quiet, &location);
    }
    let session = Session::open(&location.path, options).map_err(|e| {
        // No published model was trained on more; the answer's length is what asks for the memory.
        let is_long = options.text_tokens > 8192;
        if is_long && e.kind() == Kind::Resource {
            e.hint("ask for fewer tokens with --max-tokens")
        } else {
            e
        }
    })?;
    if let Some(scheme) = session.dequantised() {
        note(args.quiet, format_args!("the weights are {scheme}; --dtype makes plain numbers of them"));
    }
    Ok(session)
}

/// Sets the instruction set, the number of threads and the ways of memory for everything that follows.
pub(crate) fn set_up_machine(args: &Args) -> Result<()> {
    paligemma::Isa::chosen().map_err(|e| Error::usage(e.to_string()))?;
    paligemma::keep_freed_memory();
    // The first use would start them too, and panic where it cannot. 0 is as many as the machine has.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.threads.map_or(0, Into::into));
    threads.build_global().map_err(|e| {
        Error::new(Kind::Resource, format!("the threads cannot be started: {e}"))
            .hint("ask for fewer by --threads, or raise the limits on threads and memory")
            .because(e)
    })
}
