//! Any bytes as model.safetensors, beside the config.json of a tiny model: an error or a checkpoint, never a panic.
//! Half of the inputs are whole files, half are headers before the data of a file that is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paligemma::checkpoint::Checkpoint;
use std::{env, fs, path::PathBuf, process, sync::LazyLock};

static RIGHT: &[u8] = include_bytes!("../../goldens/checkpoint/gemma1-mqa/model.safetensors");
static CONFIG: &[u8] = include_bytes!("../../goldens/checkpoint/gemma1-mqa/config.json");

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = env::temp_dir().join(format!("fuzz-safetensors-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    folder
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let file = if kind % 2 == 0 {
        data.to_vec()
    } else {
        let start = 8 + u64::from_le_bytes(RIGHT[..8].try_into().unwrap()) as usize;
        [&(data.len() as u64).to_le_bytes()[..], data, &RIGHT[start..]].concat()
    };
    fs::write(FOLDER.join("model.safetensors"), file).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&FOLDER) {
        for name in checkpoint.names() {
            checkpoint.tensor(&name).unwrap();
        }
    }
});
