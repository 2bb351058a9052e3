//! What a run needs in memory is what `plan` says. Each runs in a process of its own, whose peak is then only its own.
#![cfg(target_os = "linux")]

use crate::train::goldens;
use paligemma::{
    checkpoint::{Form, Scheme, random_folder},
    config::Config,
    train::{Job, Recipe},
};
use paligemma_tensor::{DType, keep_freed_memory, peak_rss};
use std::{fs, ops::ControlFlow, path::Path, process::Command};

/// 37 million parameters with eight layers in the decoder, 28 with four: large enough that what the program itself needs is little
/// beside it, and narrow, so that there is more to be kept than to be computed.
fn config(layers: usize) -> Config {
    let mut config = Config::published("3b-224").unwrap();
    let (v, t) = (&mut config.vision, &mut config.text);
    (v.hidden_size, v.intermediate_size, v.num_hidden_layers, v.num_attention_heads) = (256, 1024, 8, 4);
    (t.hidden_size, t.intermediate_size, t.num_hidden_layers) = (384, 1536, layers);
    t.sliding_layers.truncate(layers);
    (t.num_attention_heads, t.head_dim, t.query_pre_attn_scalar) = (3, 128, 128.0);
    config.image_token_index = 32_704;
    t.vocab_size = config.image_token_index + 64;
    config
}

/// A run on the model in `folder`, of two steps if `changes` say nothing else.
fn job(folder: &Path, changes: &[&str]) -> Job {
    let mut all = vec![
        format!("model.init={}", folder.display()),
        format!("data.a.files={}", goldens("train/data.jsonl")),
        format!("data.a.image_dir={}", goldens("image/files")),
        format!("out={}", folder.join("run").display()),
    ];
    all.extend(changes.iter().map(|change| (*change).to_owned()));
    // Texts are about as long as this. What the optimiser keeps is first touched behind the first step.
    let recipe = "steps = 2\nlr = 1e-3\nbatch = 4\nsave_every = 0\ntext_len = 16\noptimiser = 'adam'";
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

/// A name and what it changes of the recipe.
type Case = (&'static str, &'static str);

/// Runs on models of so many layers and such a form.
const CASES: [(usize, Form, &[Case]); 5] = [
    // Small enough that parts are computed side by side.
    (4, Form::Plain(DType::F32), &[("f32, parts side by side", "micro_batch=1")]),
    (
        8,
        Form::Plain(DType::F32),
        &[
            ("f32, parts one after the other", "batch=2 micro_batch=1"),
            ("f32, updates fused", "optimiser=sgd clip=0 steps=1"),
            ("f32, adapters", "lora.rank=8 steps=1"),
        ],
    ),
    (
        8,
        Form::Plain(DType::BF16),
        &[
            ("bf16 beside f32", "batch=2"),
            ("bf16, momenta in bf16", "batch=2 state_dtype=bf16"),
            ("bf16, Adafactor", "batch=2 optimiser=adafactor"),
            ("bf16, blocks computed again", "batch=6 optimiser=sgd recompute=true steps=1"),
            ("bf16, image encoder frozen", "optimiser=sgd freeze=img/.* steps=1"),
            ("bf16, adapters", "batch=6 lora.rank=8 steps=1"),
        ],
    ),
    (8, Form::Quantised(Scheme::Int8), &[("int8, adapters", "batch=6 lora.rank=8 steps=1")]),
    (8, Form::Quantised(Scheme::Int4), &[("int4, adapters", "batch=6 lora.rank=8 steps=1")]),
];

/// Tells what was planned for a run on the model in `folder` and the most that it took; gives this where they are not near.
#[allow(clippy::print_stdout, reason = "the rows of a table for people")]
fn check(folder: &Path, (name, changes): Case) -> Option<String> {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "memory::child", "--nocapture"])
        .env("RUN_MODEL", folder)
        .env("RUN_CHANGES", changes)
        // The program trains on its main thread, whose memory is one piece. A test's thread would get pieces of 64 MiB, in which
        // large tensors leave holes, now more, now fewer.
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{name}: {ran:?}");
    fs::remove_dir_all(folder.join("run")).unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    let (_, told) = text.split_once("planned and peak: ").unwrap();
    let mut numbers = told.split_whitespace().map(|number| number.parse::<f64>());
    let mut next = || numbers.next().unwrap().unwrap() / f64::from(1 << 20);
    let (planned, peak) = (next(), next());
    let ratio = planned / peak;
    let row = format!("| {name} | {planned:.0} | {peak:.0} | {ratio:.2} |");
    println!("{row}");
    (!(0.9..=1.1).contains(&ratio)).then_some(row)
}

#[test]
fn a_run_takes_what_was_planned() {
    let mut wrong = Vec::new();
    for (layers, form, cases) in CASES {
        let at = tempfile::tempdir().unwrap();
        let folder = at.path().join("model");
        random_folder(&config(layers), &folder, form, 1, &mut |_, _| ControlFlow::Continue(())).unwrap();
        // Once more where they are not near: how threads come together decides where tensors lie, and now and then a case takes
        // 40 MiB more.
        wrong.extend(
            cases.iter().filter_map(|case| check(&folder, *case).and_then(|_| check(&folder, *case))),
        );
    }
    assert!(wrong.is_empty(), "MiB planned, taken:\n{}", wrong.join("\n"));
}
