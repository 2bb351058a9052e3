//! What a run needs in memory is what `plan` says, for each way of training. Each runs in a process of its own, whose peak is
//! then only its own.
#![cfg(target_os = "linux")]

use crate::train::goldens;
use paligemma::{
    checkpoint::{Form, Scheme, random_folder},
    config::Config,
    train::{Job, Recipe},
};
use paligemma_tensor::{DType, keep_freed_memory, peak_rss};
use std::{ops::ControlFlow, path::Path, process::Command};

/// 42 million parameters: large enough that what the program itself needs is little beside it.
fn config() -> Config {
    let mut config = Config::published("3b-224").unwrap();
    let (v, t) = (&mut config.vision, &mut config.text);
    (v.hidden_size, v.intermediate_size, v.num_hidden_layers, v.num_attention_heads) = (384, 1536, 6, 6);
    (t.hidden_size, t.intermediate_size, t.num_hidden_layers) = (512, 2048, 6);
    t.sliding_layers.truncate(6);
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

/// Run by the other tests in a process of its own.
#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let (Some(folder), Ok(changes)) = (std::env::var_os("RUN_MODEL"), std::env::var("RUN_CHANGES")) else {
        return;
    };
    keep_freed_memory();
    let job = job(Path::new(&folder), &changes.split(' ').collect::<Vec<_>>());
    let planned = job.plan().total();
    job.run(None, &mut |_| ControlFlow::Continue(())).unwrap();
    let peak = peak_rss().unwrap();
    eprintln!("plan {:?}", job.plan());
    eprintln!("planned and peak: {planned} {peak}");
}

/// The plan is within a tenth of the peak.
fn check(form: Form, changes: &str) {
    let at = tempfile::tempdir().unwrap();
    let folder = at.path().join("model");
    random_folder(&config(), &folder, form, 1, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "memory::child", "--nocapture"])
        .env("RUN_MODEL", &folder)
        .env("RUN_CHANGES", changes)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{text}");
    let told = text.lines().find_map(|line| line.strip_prefix("planned and peak: ")).unwrap();
    let (planned, peak) = told.split_once(' ').unwrap();
    let (planned, peak): (f64, f64) = (planned.parse().unwrap(), peak.parse().unwrap());
    let ratio = planned / peak;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "{} {changes}: planned {:.0} MiB, peak {:.0} MiB, {ratio:.3} {text}",
        form.name(),
        mib(planned),
        mib(peak)
    );
    assert!((0.9..=1.1).contains(&ratio), "{changes}: planned {planned}, peak {peak}: {ratio:.3}\n{text}");
}

const F32: Form = Form::Plain(DType::F32);

#[test]
fn a_run_takes_what_was_planned() {
    check(F32, "micro_batch=1");
}

/// `cargo test --release -p paligemma --test it -- --ignored --nocapture memory::every`
#[test]
#[ignore = "a minute; its figures stand in docs/performance.md"]
fn every_way_of_training_takes_what_was_planned() {
    let mut wrong = Vec::new();
    for (form, changes) in [
        (F32, "micro_batch=4"),
        (F32, "recompute=true"),
        (F32, "freeze=img/.*"),
        (F32, "freeze=img/.* recompute=true micro_batch=2"),
        (F32, "optimiser=sgd clip=0"),
        (F32, "optimiser=adafactor"),
        (F32, "lora.rank=8"),
        (F32, "lora.rank=8 recompute=true"),
        (Form::Plain(DType::BF16), "micro_batch=4"),
        (Form::Plain(DType::BF16), "lora.rank=8"),
        (Form::Plain(DType::BF16), "dtype=f32 freeze=img/.*"),
        (Scheme::Int8.into(), "lora.rank=8"),
        (Scheme::Int4.into(), "lora.rank=8 recompute=true"),
    ] {
        if std::panic::catch_unwind(|| check(form, changes)).is_err() {
            wrong.push(changes);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
