//! The program's tests: one file a subject. Each plays in a folder of its own with a tiny random model.

mod assemble;
mod bench;
mod convert;
mod data;
mod drift;
mod find;
mod help;
mod hub;
mod manners;
mod mask;
mod nano;
mod playground;
mod predict;
mod run;
mod tokenize;
mod train;
mod verify;

use paligemma::model::VqVae;
use serde_json::{Map, Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};
use tempfile::TempDir;

const VERBS: [&str; 28] = [
    "run",
    "caption",
    "ask",
    "ocr",
    "detect",
    "segment",
    "predict",
    "mask",
    "data",
    "playground",
    "score",
    "train",
    "recipes",
    "plot",
    "show",
    "convert",
    "assemble",
    "drift",
    "tokenize",
    "verify",
    "random",
    "bench",
    "pull",
    "ls",
    "rm",
    "doctor",
    "completions",
    "man",
];

/// A file of the repository's goldens.
fn golden(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens").join(path).to_string_lossy().into_owned()
}

/// A folder with the model `m`, the pictures `a.png` and `b.jpg`, and an empty Hugging Face cache `hf`.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let scene = Scene { folder: tempfile::tempdir().unwrap() };
        fs::copy(golden("image/files/png-2-8.png"), scene.path("a.png")).unwrap();
        fs::copy(golden("image/files/exif-6.jpg"), scene.path("b.jpg")).unwrap();
        assert_eq!(scene.run(&["random", "tiny", "m", "-q"]).code, 0);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// A masks' model of random weights, as a file of its published names.
    fn write_vqvae(&self, name: &str) {
        let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 0x9e37_79b9_7f4a_7c15u64);
        for (name, shape) in VqVae::tensors() {
            let from = data.len();
            let inputs = if shape.len() == 4 { shape[1..].iter().product() } else { 3 };
            let scale = (6.0 / inputs as f32).sqrt();
            for _ in 0..shape.iter().product() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let number = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                data.extend((number * scale).to_le_bytes());
            }
            let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, data.len()] });
            header.insert(name, tensor);
        }
        let header = Value::Object(header).to_string().into_bytes();
        self.write(name, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat());
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program, in this folder, told nothing by the environment and with nothing on stdin.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paligemma"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("HF_HOME", self.path("hf"))
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("COLUMNS", "100")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A program that does not read its stdin closes it; that is for the test to notice elsewhere.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap().into()
    }

    /// The one JSON object that the program prints.
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        ran.json()
    }
}

/// What a run gave.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {:?}", self.out));
        assert!(
            value.is_object() && self.out.ends_with('\n') && self.out.lines().count() == 1,
            "{:?}",
            self.out
        );
        value
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// The exit code of a program that may never end if it is wrong: it is given twenty seconds.
fn code_in_time(mut child: Child) -> Option<i32> {
    // `wait` would close its stdin, which is a way to end too.
    let stdin = child.stdin.take();
    for _ in 0..2000 {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stdin);
    None
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}
