//! What a run needs in memory is what `plan` says. Each runs in a process of its own, whose peak is then only its own.
#![cfg(target_os = "linux")]

use crate::train::goldens;
use paligemma::{
    checkpoint::{Form, random_folder},
    config::Config,
    train::{Job, Recipe},
};
use paligemma_tensor::{DType, keep_freed_memory, peak_rss};
use std::{ops::ControlFlow, path::Path, process::Command};

/// 42 million parameters with six layers in the decoder, 31 with three: large enough that what the program itself needs is little beside it.
fn config(layers: usize) -> Config {
    let mut config = Config::published("3b-224").unwrap();
    let (v, t) = (&mut config.vision, &mut config.text);
    (v.hidden_size, v.intermediate_size, v.num_hidden_layers, v.num_attention_heads) = (384, 1536, 6, 6);
    (t.hidden_size, t.intermediate_size, t.num_hidden_layers) = (512, 2048, layers);
    t.sliding_layers.truncate(layers);
    (t.num_attention_heads, t.head_dim, t.query_pre_attn_scalar) = (4, 128, 128.0);
    config.image_token_index = 16_384;
    t.vocab_size = config.image_token_index + 64;
    config
}

/// A run of two steps on the model in `folder`.
fn job(folder: &Path, changes: &[&str]) -> Job {
    let mut all = vec![
        format!("model.init={}", folder.display()),
        format!("data.a.files={}", goldens("train/data.jsonl")),
        format!("data.a.image_dir={}", goldens("image/files")),
        format!("out={}", folder.join("run").display()),
    ];
    all.extend(changes.iter().map(|change| (*change).to_owned()));
    let recipe = "steps = 2\nlr = 1e-3\nbatch = 4\nsave_every = 0\ntext_len = 64\noptimiser = 'adam'";
    Job::open(Recipe::read(recipe, "test", &all).unwrap().absolute().unwrap(), folder).unwrap()
}

/// Run by the other test in a process of its own.
#[test]
#[ignore = "a part of the other test"]
#[allow(clippy::print_stdout, reason = "what the other test reads")]
fn child() {
    let (Some(folder), Ok(changes)) = (std::env::var_os("RUN_MODEL"), std::env::var("RUN_CHANGES")) else {
        return;
    };
    keep_freed_memory();
    let job = job(Path::new(&folder), &changes.split(' ').collect::<Vec<_>>());
    let planned = job.plan().total();
    job.run(None, &mut |_| ControlFlow::Continue(())).unwrap();
    println!("planned and peak: {planned} {}", peak_rss().unwrap());
}

/// What was planned for a run, and the most that it took, in MiB.
fn planned_and_peak(layers: usize, form: Form, changes: &str) -> (f64, f64) {
    let at = tempfile::tempdir().unwrap();
    let folder = at.path().join("model");
    random_folder(&config(layers), &folder, form, 1, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "memory::child", "--nocapture"])
        .env("RUN_MODEL", &folder)
        .env("RUN_CHANGES", changes)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let text = String::from_utf8_lossy(&ran.stdout);
    let (_, told) = text.split_once("planned and peak: ").unwrap();
    let mut numbers = told.split_whitespace().map(|number| number.parse::<f64>());
    let mut next = || numbers.next().unwrap().unwrap() / f64::from(1 << 20);
    (next(), next())
}

#[test]
fn a_run_takes_what_was_planned() {
    // The smaller model's parts are computed side by side.
    for layers in [6, 3] {
        let (planned, peak) = planned_and_peak(layers, Form::Plain(DType::F32), "micro_batch=1");
        let ratio = planned / peak;
        assert!(
            (0.9..=1.1).contains(&ratio),
            "{layers} layers: planned {planned:.0} MiB, took {peak:.0} MiB"
        );
    }
}
