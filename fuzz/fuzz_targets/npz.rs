//! Any bytes as an npz: an error or a checkpoint, never a panic. Half of the inputs are whole archives, half
//! stand in for one npy member of an archive that is right, so that its checksum does not hide them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paligemma::checkpoint::Checkpoint;
use std::{
    env, fs,
    io::{Cursor, Read, Write},
    path::PathBuf,
    process,
    sync::LazyLock,
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

static PATH: LazyLock<PathBuf> = LazyLock::new(|| env::temp_dir().join(format!("fuzz-{}.npz", process::id())));

static MEMBERS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let right = include_bytes!("../../goldens/checkpoint/mqa.npz");
    let mut zip = ZipArchive::new(Cursor::new(right)).unwrap();
    (0..zip.len())
        .map(|i| {
            let mut entry = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.name().unwrap().into_owned(), bytes)
        })
        .collect()
});

fuzz_target!(|data: &[u8]| {
    let [kind, which, data @ ..] = data else { return };
    let file = if kind % 2 == 0 { data.to_vec() } else { archive(*which, data, kind % 4 == 3) };
    fs::write(&*PATH, file).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&PATH) {
        for name in checkpoint.names() {
            let _ = checkpoint.tensor(&name);
        }
    }
});

/// The right archive with one member replaced; of a deflated one that member alone, as deflating takes most of the time.
fn archive(which: u8, data: &[u8], is_deflated: bool) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (i, (name, bytes)) in MEMBERS.iter().enumerate() {
        let is_ours = i == usize::from(which) % MEMBERS.len();
        let method = if is_ours && is_deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        zip.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(if is_ours { data } else { bytes }).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
