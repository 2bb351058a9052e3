//! The pictures of a prompt: named ones, or the frames of a folder or a video.
//!
//! Frames are taken as the paper's video tasks take them: from the first on, every `stride`th, until there are enough; a
//! clip that has fewer is repeated as a whole (arXiv 2407.07726 section 3.2.4; big_vision pp/proj/paligemma/video.py).
//! Videos are read by the program `ffmpeg`.

use paligemma::{Error, Kind, Result};
use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
};

/// What is taken for a video: what `image` does not read and ffmpeg does.
const VIDEOS: [&str; 13] =
    ["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "wmv", "flv", "ts", "gif"];
/// The most bytes of all frames of a video: 64 of 4K.
const MAX_BYTES: u64 = 2 << 30;

/// A picture that is to be read.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A file, or `-` for stdin.
    Named(String),
    /// The bytes of a picture.
    Bytes(Vec<u8>),
}

/// Which frames of a video are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampling {
    /// How many.
    pub(crate) frames: usize,
    /// One of how many.
    pub(crate) stride: usize,
}

/// The pictures that `image` means: itself, or frames if it is a folder or a video.
///
/// # Errors
/// A folder without pictures; no ffmpeg; a video that ffmpeg cannot read.
pub(crate) fn frames(image: &str, sampling: Sampling) -> Result<Vec<Frame>> {
    let path = Path::new(image);
    if path.is_dir() {
        let all = pictures_in(path)?;
        let taken: Vec<String> = all.into_iter().step_by(sampling.stride).take(sampling.frames).collect();
        return Ok(repeated(taken, sampling.frames).into_iter().map(Frame::Named).collect());
    }
    if is_video(path) && path.is_file() {
        let taken = split_pngs(&run_ffmpeg(image, sampling)?);
        if taken.is_empty() {
            return Err(Error::input("the video has no frames").at(image));
        }
        return Ok(repeated(taken, sampling.frames).into_iter().map(Frame::Bytes).collect());
    }
    Ok(vec![Frame::Named(image.to_owned())])
}

/// The pictures in a folder, sorted by name.
///
/// # Errors
/// There is none; the folder cannot be read; a name that is not UTF-8.
pub(crate) fn pictures_in(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if has_extension(&path, &["png", "jpg", "jpeg", "webp"]) && path.is_file() {
            found.push(utf8(path)?);
        }
    }
    found.sort();
    if found.is_empty() { Err(no_picture(&folder.display())) } else { Ok(found) }
}

pub(crate) fn no_picture(place: &dyn std::fmt::Display) -> Error {
    Error::input(format!("there is no picture in {place}"))
        .expected("files ending in .png, .jpg, .jpeg or .webp")
}

/// # Errors
/// `Kind::Input`: a name that is not UTF-8.
pub(crate) fn utf8(path: std::path::PathBuf) -> Result<String> {
    path.into_os_string()
        .into_string()
        .map_err(|name| Error::input(format!("the name {} is not UTF-8", name.display())))
}

fn is_video(path: &Path) -> bool {
    has_extension(path, &VIDEOS)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| extensions.contains(&e.as_str()))
}

/// `taken`, repeated as a whole and cut to `count`.
fn repeated<T: Clone>(taken: Vec<T>, count: usize) -> Vec<T> {
    taken.iter().cycle().take(count).cloned().collect()
}

/// The frames of a video as PNG files, one after the other.
fn run_ffmpeg(video: &str, Sampling { frames, stride }: Sampling) -> Result<Vec<u8>> {
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-v", "error"])
        // A playlist may name other files, but nothing on a network.
        .args(["-protocol_whitelist", "file,pipe", "-i", &format!("file:{video}")])
        // Renumbered, so that no frame is repeated to fill the gaps.
        .args(["-vf", &format!("select=not(mod(n\\,{stride})),setpts=N/FRAME_RATE/TB")])
        .args(["-frames:v", &frames.to_string(), "-f", "image2pipe", "-c:v", "png", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::input("a video is read by the program ffmpeg, which is not here")
                .at(video)
                .hint("install ffmpeg, or give a folder of frames: ffmpeg -i VIDEO FOLDER/%05d.png")
        }
        _ => Error::io("ffmpeg", e),
    })?;
    let mut pngs = Vec::new();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    // What it complains of is read beside, so that neither pipe fills while the other is waited for.
    let complaint = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(err) = err {
            // What cannot be read is not told.
            let _ = err.take(64 << 10).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    if let Some(out) = out {
        out.take(MAX_BYTES + 1).read_to_end(&mut pngs).map_err(|e| Error::io("ffmpeg", e))?;
    }
    if pngs.len() as u64 > MAX_BYTES {
        // It waits for a reader that does not come.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| Error::io("ffmpeg", e))?;
    let complaint = complaint.join().unwrap_or_default();
    if pngs.len() as u64 > MAX_BYTES {
        return Err(Error::input("the video's frames are too large")
            .at(video)
            .expected(format!("at most {} MiB in all", MAX_BYTES >> 20)));
    }
    if !status.success() {
        return Err(Error::new(Kind::Input, format!("ffmpeg cannot read the video: {complaint}")).at(video));
    }
    Ok(pngs)
}

/// PNG files that stand one after the other, each up to the end of its IEND chunk.
fn split_pngs(bytes: &[u8]) -> Vec<Vec<u8>> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    let mut all = Vec::new();
    let mut start = 0;
    while bytes[start..].starts_with(SIGNATURE) {
        let mut at = start + SIGNATURE.len();
        loop {
            // Length, name, data, checksum.
            let Some(&[a, b, c, d, ref name @ ..]) = bytes.get(at..at + 8) else { return all };
            let end = at + 12 + u32::from_be_bytes([a, b, c, d]) as usize;
            let is_last = name == b"IEND";
            at = end.min(bytes.len());
            if is_last {
                break;
            }
        }
        all.push(bytes[start..at].to_vec());
        start = at;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_pngs_is_taken_apart() {
        let chunk = |name: &[u8; 4], data: &[u8]| {
            [&(data.len() as u32).to_be_bytes()[..], name, data, &[1, 2, 3, 4]].concat()
        };
        let png =
            |data: &[u8]| [b"\x89PNG\r\n\x1a\n", &chunk(b"IDAT", data)[..], &chunk(b"IEND", &[])].concat();
        // Data that looks like another file's beginning is data.
        let (a, b) = (png(b"\x89PNG\r\n\x1a\nIEND"), png(&[]));
        assert_eq!(split_pngs(&[a.clone(), b.clone()].concat()), [a.clone(), b.clone()]);
        assert_eq!(split_pngs(&[]), Vec::<Vec<u8>>::new());
        for cut in 0..a.len() {
            let got = split_pngs(&[&b[..], &a[..cut]].concat());
            assert_eq!(got[0], b, "{cut}");
            assert!(got.len() == 1 || cut >= a.len() - 4, "{cut}");
        }
    }

    #[test]
    fn short_clips_are_repeated_as_a_whole() {
        assert_eq!(repeated(vec![1, 2, 3], 8), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(repeated(vec![1, 2, 3], 2), [1, 2]);
    }
}
