//! stdout and stderr: data here, everything else there.

use paligemma::{Error, checkpoint::hub::Progress};
use serde::Serialize;
use std::{
    fs,
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

/// One JSON value and a line break on stdout.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
    line.push(b'\n');
    print(&line)
}

/// Text and a line break on stdout.
pub(crate) fn print_line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    print(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, at once.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Error::io("stdout", e).into())
}

/// Writes a file whole or not at all, in place of one of that name.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> paligemma::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    fs::write(unfinished, bytes).and_then(|()| fs::rename(unfinished, path)).map_err(|e| {
        // Best effort: the error that matters is the first.
        let _ = fs::remove_file(unfinished);
        Error::io(path, e)
    })
}

/// A line on stderr unless `quiet`.
pub(crate) fn note(quiet: bool, text: impl std::fmt::Display) {
    if !quiet {
        to_stderr(text);
    }
}

/// A line on stderr.
pub(crate) fn to_stderr(text: impl std::fmt::Display) {
    // Where stderr is closed or full there is nobody left to tell.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// `5.4 GiB`
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A long job's progress: a bar on a terminal, else a line every ten seconds.
pub(crate) struct Meter {
    bar: Option<indicatif::ProgressBar>,
    quiet: bool,
    what: &'static str,
    last: Instant,
}

impl Meter {
    pub(crate) fn new(what: &'static str, quiet: bool) -> Meter {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style = "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}";
            let bar = indicatif::ProgressBar::new(0).with_message(what);
            bar.set_style(indicatif::ProgressStyle::with_template(style).unwrap_or_else(|_| {
                // The template above is a constant; were it wrong, the default bar would do.
                indicatif::ProgressStyle::default_bar()
            }));
            bar
        });
        Meter { bar, quiet, what, last: Instant::now() }
    }

    /// Tells how far the job is; hears Ctrl-C.
    pub(crate) fn at(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.last.elapsed() > Duration::from_secs(10) {
            self.last = Instant::now();
            let percent = 100.0 * done as f64 / total.max(1) as f64;
            note(self.quiet, format_args!("{} {} of {}  {percent:.0}%", self.what, size(done), size(total)));
        }
        go_on()
    }

    /// The same for what a download tells.
    pub(crate) fn hear(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        match progress {
            Progress::Bytes { done, total, .. } => return self.at(done, total),
            Progress::Waiting { file } => {
                if self.last.elapsed() > Duration::from_secs(10) {
                    self.last = Instant::now();
                    note(self.quiet, format_args!("waiting: another process is fetching {file}"));
                }
            }
            Progress::Retrying { why, wait } => {
                note(self.quiet, format_args!("{why}; trying again in {:.0} s", wait.as_secs_f64()));
            }
        }
        go_on()
    }
}

fn go_on() -> ControlFlow<()> {
    if crate::open::is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
