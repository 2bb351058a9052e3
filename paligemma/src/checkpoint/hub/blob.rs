//! The bytes of one file: fetched, taken up again where they were cut, checked, and only then named.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use ring::digest;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::cache::{Layout, commit_blob};
use super::wire::{Remote, Trouble, Wire};
use super::{Progress, Report, cancelled};
use crate::{Error, Kind, Result};

/// Bytes between two looks at the callback.
const BLOCK: usize = 256 << 10;

/// Counts of a whole pull, so that progress is one bar and not one a file.
pub(super) struct Tally {
    /// Bytes of the files that are done.
    pub(super) before: u64,
    /// Bytes of all files of the pull.
    pub(super) total: u64,
}

/// Bytes of `remote` that need not be fetched: all of them, or what an earlier download left.
pub(super) fn bytes_here(layout: &Layout, remote: &Remote) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    let blob = layout.blobs().join(&remote.etag);
    if length(&blob) == remote.size {
        return remote.size;
    }
    let left = length(&partial_path(&blob));
    if left <= remote.size { left } else { 0 }
}

/// The name that Python's older versions gave a blob that is not whole, too: theirs is taken up as well.
fn partial_path(blob: &Path) -> std::path::PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

/// Brings the blob of `remote` into the cache and gives it its name in the snapshot of `commit`.
pub(super) fn fetch(
    wire: &Wire,
    layout: &Layout,
    commit: &str,
    remote: &Remote,
    tally: &Tally,
    report: &mut Report,
) -> Result<()> {
    let blob = layout.blobs().join(&remote.etag);
    let _lock = layout.lock(&remote.etag, &remote.file, report)?;
    // Where links are impossible the bytes lie in the snapshot itself.
    let copy = layout.snapshot(commit).join(&remote.file);
    if fs::symlink_metadata(&copy).is_ok_and(|m| m.is_file() && m.len() == remote.size) {
        return Ok(());
    }
    // Looked at under the lock: another process may have brought it meanwhile.
    if !fs::metadata(&blob).is_ok_and(|m| m.len() == remote.size) {
        let partial = partial_path(&blob);
        let mut download = Download::open(&partial, remote)?;
        // Bytes of an earlier process may have been damaged by a power cut: they get one second chance.
        let had_earlier = download.have > 0;
        if let Err(error) = download.run(wire, tally, report) {
            let retry = had_earlier && matches!(error, Stop::Damaged(_));
            if !retry {
                return Err(error.into_error(&partial));
            }
            download.restart()?;
            download.run(wire, tally, report).map_err(|e| e.into_error(&partial))?;
        }
        commit_blob(&mut download.file, &partial, &blob)?;
    }
    layout.link(commit, &remote.file, &remote.etag)
}

/// Why a download ended without its bytes.
enum Stop {
    /// What lies in the partial file can still become the file.
    Kept(Error),
    /// It cannot: other bytes, or too many.
    Damaged(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Kept(error)
    }
}

impl Stop {
    fn into_error(self, partial: &Path) -> Error {
        match self {
            Stop::Kept(error) => error,
            Stop::Damaged(error) => {
                // Kept, it would spoil every later try. If it cannot go, the next try finds that out.
                let _ = fs::remove_file(partial);
                error
            }
        }
    }
}

/// A file under way: its first `have` bytes are on the disk and in the digest.
struct Download<'a> {
    remote: &'a Remote,
    partial: &'a Path,
    file: File,
    have: u64,
    digest: digest::Context,
}

impl<'a> Download<'a> {
    /// Takes up what an earlier download left.
    fn open(partial: &'a Path, remote: &'a Remote) -> Result<Self> {
        let io = |e| Error::io(partial, e);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(partial).map_err(io)?;
        let left = file.metadata().map_err(io)?.len();
        let mut download =
            Download { remote, partial, file, have: 0, digest: digest::Context::new(&digest::SHA256) };
        if left > remote.size {
            download.restart()?;
            return Ok(download);
        }
        let mut block = vec![0; BLOCK];
        while download.have < left {
            let n = download.file.read(&mut block).map_err(io)?;
            if n == 0 {
                break;
            }
            download.digest.update(&block[..n]);
            download.have += n as u64;
        }
        Ok(download)
    }

    /// Forgets everything.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(self.partial, e))?;
        self.have = 0;
        self.digest = digest::Context::new(&digest::SHA256);
        Ok(())
    }

    /// Fetches until the file is whole, then checks it.
    fn run(&mut self, wire: &Wire, tally: &Tally, report: &mut Report) -> Result<(), Stop> {
        let mut failures = 0;
        // The farthest byte reached: only going beyond it is progress, or a server that always starts
        // again and always breaks would never be given up.
        let mut farthest = self.have;
        while self.have < self.remote.size {
            let why = match wire.open(self.remote, self.have) {
                Ok(response) => self.receive(response, tally, report)?,
                Err(Trouble::Final(error)) => return Err(error.into()),
                Err(Trouble::Unreachable(why)) => Some((format!("the Hub cannot be reached ({why})"), None)),
                Err(Trouble::Passing(why, wait)) => Some((why, wait)),
            };
            if self.have > farthest {
                farthest = self.have;
                failures = 0;
            }
            if let Some((why, wait)) = why {
                failures += 1;
                let why = format!("{}: {why}", self.remote.file);
                wire.pause(failures, &why, wait, &self.remote.url, report)?;
            }
        }
        self.check()
    }

    /// Takes in one answer. Gives the reason if it ended too early.
    #[allow(clippy::type_complexity)]
    fn receive(
        &mut self,
        mut response: Response<Body>,
        tally: &Tally,
        report: &mut Report,
    ) -> Result<Option<(String, Option<std::time::Duration>)>, Stop> {
        let size = self.remote.size;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let is_encoded = header("content-encoding").is_some_and(|e| !e.eq_ignore_ascii_case("identity"));
        if is_encoded {
            return Err(self.wrong("arrives compressed", "bytes as they are").into());
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header("content-range").unwrap_or("").to_owned();
                if !is_range_from(&range, self.have, size) {
                    let expected = format!("Content-Range: bytes {}-{}/{size}", self.have, size - 1);
                    return Err(self
                        .wrong(&format!("arrives from the wrong place ('{range}')"), &expected)
                        .into());
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.have > 0 => {
                // The server has fewer bytes than lie here, or cannot begin in the middle.
                self.restart()?;
                return Ok(Some(("the server refuses to go on from the middle (416)".into(), None)));
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.wrong("is refused (416) though asked for from the start", "200").into());
            }
            // All bytes though only the rest was asked for: this server cannot resume.
            _ => {
                if let Some(length) = header("content-length").and_then(|l| l.trim().parse::<u64>().ok())
                    && length != size
                {
                    let what = format!("has {length} bytes");
                    return Err(Stop::Damaged(self.wrong(&what, &format!("{size} bytes, as the Hub said"))));
                }
                if self.have > 0 {
                    self.restart()?;
                }
            }
        }
        let io = |partial: &Path, e| Error::io(partial, e);
        self.file.seek(SeekFrom::Start(self.have)).map_err(|e| io(self.partial, e))?;
        let mut block = vec![0; BLOCK];
        let mut reader = response.body_mut().as_reader();
        while self.have < size {
            let n = match reader.read(&mut block) {
                Ok(0) => {
                    return Ok(Some((format!("the connection ended at byte {} of {size}", self.have), None)));
                }
                Ok(n) => n,
                Err(e) => {
                    let why = format!("the connection broke at byte {} of {size} ({e})", self.have);
                    return Ok(Some((why, None)));
                }
            };
            if n as u64 > size - self.have {
                return Err(Stop::Damaged(self.too_long()));
            }
            self.file.write_all(&block[..n]).map_err(|e| io(self.partial, e))?;
            self.digest.update(&block[..n]);
            self.have += n as u64;
            let progress = Progress::Bytes {
                file: &self.remote.file,
                done: tally.before + self.have,
                total: tally.total,
            };
            if report(progress).is_break() {
                return Err(cancelled().into());
            }
        }
        // One byte more than was announced is as wrong as one less.
        match reader.read(&mut block[..1]) {
            Ok(1..) => Err(Stop::Damaged(self.too_long())),
            _ => Ok(None),
        }
    }

    /// Large files are named by their SHA-256; the git id of a small one is taken on trust.
    fn check(&mut self) -> Result<(), Stop> {
        let length = self.file.metadata().map_err(|e| Error::io(self.partial, e))?.len();
        if length != self.remote.size {
            let what = format!("has {length} bytes on the disk");
            return Err(Stop::Damaged(self.wrong(&what, &format!("{} bytes", self.remote.size))));
        }
        let named = self.remote.etag.to_ascii_lowercase();
        if named.len() != 64 || !named.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let sum: String = self.digest.clone().finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        if sum == named {
            return Ok(());
        }
        Err(Stop::Damaged(
            self.wrong(&format!("has SHA-256 {sum}"), &format!("{named}, as the Hub said"))
                .hint("what arrived is thrown away; pull again, and if it stays so the server or the line is broken"),
        ))
    }

    fn too_long(&self) -> Error {
        self.wrong("has more bytes than the Hub said", &format!("{} bytes", self.remote.size))
    }

    fn wrong(&self, what: &str, expected: &str) -> Error {
        Error::new(Kind::Network, format!("{} {what}", self.remote.file))
            .at(&self.remote.url)
            .expected(expected)
    }
}

/// Whether `bytes a-b/n` begins at `start` of a file of `size` bytes and does not leave it.
fn is_range_from(range: &str, start: u64, size: u64) -> bool {
    let Some((span, total)) = range.trim().strip_prefix("bytes ").and_then(|r| r.split_once('/')) else {
        return false;
    };
    let Some((first, last)) = span.split_once('-') else { return false };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    number(first) == Some(start)
        && number(last).is_some_and(|last| last >= start && last < size)
        && (total.trim() == "*" || number(total) == Some(size))
}

#[cfg(test)]
mod tests {
    use super::is_range_from;

    #[test]
    fn a_range_must_begin_where_it_was_asked_to() {
        for (range, ok) in [
            ("bytes 10-99/100", true),
            ("bytes 10-50/100", true),
            ("bytes 10-99/*", true),
            ("bytes 0-99/100", false),
            ("bytes 11-99/100", false),
            ("bytes 10-100/100", false),
            ("bytes 10-9/100", false),
            ("bytes 10-99/101", false),
            ("bytes */100", false),
            ("10-99/100", false),
            ("", false),
        ] {
            assert_eq!(is_range_from(range, 10, 100), ok, "{range}");
        }
    }
}
