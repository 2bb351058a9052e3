//! Training: what transformers, torch and peft make of the tiny models in fifty steps, runs that stop and go on, and what
//! stops a run.

use paligemma::{
    Error, Kind, Result,
    adapter::Adapter,
    checkpoint::Checkpoint,
    model::{PaliGemma, Pass, Turn},
    session::{Session, SessionOptions},
    train::{Event, Job, Outcome, Recipe},
};
use serde_json::Value;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub(crate) fn goldens(path: &str) -> String {
    format!("{}/../goldens/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// A job on the end-to-end model `model`, by changes to a recipe.
pub(crate) fn job(model: &str, out: &Path, changes: &[&str]) -> Result<Job> {
    let data = goldens("train/data.jsonl");
    let mut all = vec![
        format!("model.init={model}"),
        format!("model.tokenizer={}", goldens("e2e/tokenizer.json")),
        format!("data.a.files={data}"),
        format!("data.a.image_dir={}", goldens("image/files")),
        format!("out={}", out.display()),
        "dtype=f32".into(),
        "text_len=64".into(),
    ];
    all.extend(changes.iter().map(|change| change.to_string()));
    let recipe = Recipe::read("steps = 50\nlr = 1e-3\nbatch = 6\nsave_every = 0", "test", &all)?;
    let folder = PathBuf::from(goldens(&format!("e2e/{model}")));
    Job::open(recipe.absolute()?, &folder)
}

pub(crate) fn run(job: &Job, until: Option<u64>) -> Result<Outcome> {
    job.run(until, &mut |_| ControlFlow::Continue(()))
}

/// The losses and gradient norms of each step.
fn curve(job: &Job) -> Vec<(f64, f64)> {
    let mut curve = Vec::new();
    let outcome = job.run(None, &mut |event| {
        if let Event::Step(line) = event {
            curve.push((line.loss, line.grad_norm));
        }
        ControlFlow::Continue(())
    });
    outcome.unwrap();
    curve
}

#[test]
fn fifty_steps_are_those_of_transformers_torch_and_peft() {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(goldens("train/losses.json")).unwrap()).unwrap();
    let check = |model: &str, run: &str, changes: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let cosine = ["warmup_steps=5", "decay=cosine"];
        let job = job(model, out.path(), &[&cosine[..], changes].concat()).unwrap();
        let ours = curve(&job);
        let theirs = |key: &str| golden[format!("{model}_{run}")][key].as_array().unwrap().clone();
        assert_eq!(ours.len(), 50);
        for (step, ((loss, norm), (want, want_norm))) in
            ours.iter().zip(theirs("loss").iter().zip(theirs("norm"))).enumerate()
        {
            let (want, want_norm) = (want.as_f64().unwrap(), want_norm.as_f64().unwrap());
            assert!((loss - want).abs() <= 1e-4, "{model} {run} {changes:?} step {step}: {loss} {want}");
            assert!(
                (norm - want_norm).abs() <= 1e-4 * want_norm,
                "{model} {run} step {step}: {norm} {want_norm}"
            );
        }
        out
    };
    for model in ["pg1", "pg2"] {
        // Accumulation 1, 3 and 6: the sum of the parts is the batch.
        for parts in ["micro_batch=6", "micro_batch=2", "micro_batch=1"] {
            check(model, "full", &["optimiser=adamw", "lr=3e-4", parts]);
        }
        check(model, "full", &["optimiser=adamw", "lr=3e-4", "recompute=true"]);
        let frozen = ["freeze=[\"img/.*\"]", "loss=token", "label_smoothing=0.1", "optimiser=adam"];
        check(model, "frozen", &frozen);
        check(model, "frozen", &[&frozen[..], &["micro_batch=1", "recompute=true"]].concat());
        // Without a norm to wait for, each parameter is updated as soon as its gradient is whole.
        check(model, "sgd", &["optimiser=sgd", "momentum=0.9", "lr=5e-4", "clip=0"]);
        check(model, "sgd", &["optimiser=sgd", "momentum=0.9", "lr=5e-4", "clip=0", "recompute=true"]);
        check(model, "sgd", &["optimiser=sgd", "momentum=0.9", "lr=5e-4", "clip=0", "micro_batch=2"]);
        let start = goldens(if model == "pg1" { "train/adapter_pg1" } else { "train/adapter_start" });
        let lora =
            ["optimiser=adamw", "lr=5e-3", "lora.rank=4", "lora.alpha=8", &format!("lora.init={start}")];
        check(model, "lora", &[&lora[..], &["micro_batch=1"]].concat());
        check(model, "lora", &lora);
    }
}

#[test]
fn adapters_are_pefts() {
    let config = Checkpoint::open(Path::new(&goldens("e2e/pg2"))).unwrap().config().clone();
    let open = |path: &Path| Adapter::open(path, &config).unwrap();
    let (start, end) = (goldens("train/adapter_start"), open(Path::new(&goldens("train/adapter_end"))));
    let out = tempfile::tempdir().unwrap();
    let lora = ["optimiser=adamw", "lr=5e-3", "lora.rank=4", "lora.alpha=8", &format!("lora.init={start}")];
    let changes = [&lora[..], &["warmup_steps=5"]].concat();
    let job = job("pg2", &out.path().join("run"), &changes).unwrap();
    run(&job, None).unwrap();
    let folder = out.path().join("adapter");
    job.export(&folder, None, false).unwrap();
    let ours = open(&folder);
    assert_eq!((ours.rank, ours.alpha), (4, 8.0));
    assert!(ours.layers.keys().eq(end.layers.keys()) && ours.layers.len() == 14);
    for (layer, pair) in &ours.layers {
        let theirs = &end.layers[layer];
        for (ours, theirs) in [(&pair.a, &theirs.a), (&pair.b, &theirs.b)] {
            let largest = theirs.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, y) in ours.as_f32().iter().zip(theirs.as_f32()) {
                assert!((x - y).abs() <= 2e-3 * largest, "{layer}: {x} {y}");
            }
        }
    }
    // What it writes of itself names these layers and no others, as peft wants to read it.
    let written: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap();
    let theirs: Value =
        serde_json::from_str(&fs::read_to_string(goldens("train/adapter_end/adapter_config.json")).unwrap())
            .unwrap();
    for key in
        ["peft_type", "r", "lora_alpha", "bias", "use_dora", "use_rslora", "modules_to_save", "auto_mapping"]
    {
        let number = |value: &Value| value.as_f64().map_or_else(|| value.clone(), |x| x.into());
        assert_eq!(number(&written[key]), number(&theirs[key]), "{key}");
    }
    // Merged into the model, and beside it, it answers the same.
    let merged = out.path().join("merged");
    job.export(&merged, Some(paligemma::DType::F32), true).unwrap();
    let tokenizer = Some(goldens("e2e/tokenizer.json").into());
    let session = |path: &Path, adapter: Option<&Path>| {
        let options = SessionOptions {
            tokenizer: tokenizer.clone(),
            adapter: adapter.map(Path::to_path_buf),
            dtype: Some(paligemma::DType::F32),
            ..SessionOptions::default()
        };
        Session::open(path, &options).unwrap()
    };
    let base = PathBuf::from(goldens("e2e/pg2"));
    let answer = |session: &Session| {
        let picture = session.read_image(Path::new(&goldens("image/files/exif-6.jpg"))).unwrap();
        let prompt = session.prompt(&[picture], "caption en").unwrap();
        let options = paligemma::generate::Options { max_tokens: 12, ..Default::default() };
        let (mut replies, _) = session.answer(&[prompt], &options, &[], None, &mut |_, _| ()).unwrap();
        replies.remove(0)
    };
    let (plain, beside, inside) = (
        answer(&session(&base, None)),
        answer(&session(&base, Some(&folder))),
        answer(&session(&merged, None)),
    );
    assert_eq!(beside.answer.tokens, inside.answer.tokens);
    assert_ne!(plain.answer.tokens, beside.answer.tokens);
    for (a, b) in beside.answer.logprobs.iter().zip(&inside.answer.logprobs) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

/// What we write, peft reads: adapters for exactly the layers that have one, and with them it says what we say.
#[test]
fn peft_reads_our_adapters() {
    let folder = PathBuf::from(goldens("train/adapter_ours"));
    let base = PathBuf::from(goldens("e2e/pg2"));
    let adapter = Adapter::open(&folder, Checkpoint::open(&base).unwrap().config()).unwrap();
    // The folder that peft has read is the one that we write.
    let out = tempfile::tempdir().unwrap();
    let again = out.path().join("again");
    adapter.write(&again, "pg2").unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(fs::read(again.join(file)).unwrap() == fs::read(folder.join(file)).unwrap(), "{file}");
    }
    let options = SessionOptions {
        tokenizer: Some(goldens("e2e/tokenizer.json").into()),
        adapter: Some(folder),
        dtype: Some(paligemma::DType::F32),
        ..SessionOptions::default()
    };
    let session = Session::open(&base, &options).unwrap();
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(goldens("train/adapter_ours.json")).unwrap()).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let (stride, each) = (number(&golden["step"]), number(&golden["each"]));
    let mut compared = 0;
    for (case, picture) in golden["cases"].as_array().unwrap().iter().zip(["exif-6.jpg", "png-6-8.png"]) {
        let picture = session.read_image(Path::new(&goldens(&format!("image/files/{picture}")))).unwrap();
        let pixels = session.prompt(&[picture], "").unwrap().pixels;
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| number(id) as u32).collect();
        let (model, mut pass) = (session.model(), Pass::plain());
        let soft = model.encode_images(&pixels, &mut pass).unwrap();
        let text = model.embed_text(&ids, &mut pass).unwrap();
        let x = PaliGemma::join(&soft, &text, &mut pass);
        let mut cache = model.new_cache();
        let turn = Turn { len: x.shape()[0], prefix_len: number(&case["prefix"]), cache: &mut cache };
        let y = model.forward(&x, &mut [turn], &mut pass).unwrap();
        let logits = model.logits(y.tensor());
        let rows = case["logits"].as_array().unwrap();
        assert_eq!(rows.len(), x.shape()[0].div_ceil(each));
        for (i, row) in rows.iter().enumerate() {
            let ours = logits.rows(i * each, i * each + 1);
            for (want, got) in row.as_array().unwrap().iter().zip(ours.as_f32().iter().step_by(stride)) {
                let want = want.as_f64().unwrap();
                assert!((want - f64::from(*got)).abs() <= 1e-4, "row {i}: {got}, want {want}");
                compared += 1;
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

/// Three data sets, and all that is drawn at random.
fn mixed(out: &Path, changes: &[&str]) -> Job {
    let (data, images) = (goldens("train/data.jsonl"), goldens("image/files"));
    let mut all: Vec<String> = Vec::new();
    for (name, weight) in [("a", 3), ("b", 2), ("c", 1)] {
        all.extend([
            format!("data.{name}.files={data}"),
            format!("data.{name}.image_dir={images}"),
            format!("data.mix.{name}={weight}"),
        ]);
    }
    let more = ["steps=40", "batch=4", "dropout=0.2", "augment.jpeg=0.5", "seed=7", "keep=3", "warmup=0.1"];
    all.extend(more.into_iter().chain(changes.iter().copied()).map(str::to_owned));
    job("pg1", out, &all.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

/// The SHA-256 of what the last saved state holds.
pub(crate) fn hashes(out: &Path, step: u64) -> [String; 2] {
    let path = out.join(format!("state/step-{step:06}/manifest.json"));
    let manifest: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    ["weights", "optimiser"]
        .map(|file| manifest["files"][format!("{file}.safetensors")]["sha256"].as_str().unwrap().to_owned())
}

fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// At every step 1 to 39, with the loader's threads and those that compute taking turns; and at five steps with each pair of
/// them before and after.
#[test]
fn a_run_that_stops_at_any_step_goes_on_as_if_it_had_not() {
    for (micro, kind) in [("micro_batch=1", "optimiser=adam"), ("micro_batch=4", "optimiser=adafactor")] {
        let whole = tempfile::tempdir().unwrap();
        let job = |out: &Path, loader: usize| mixed(out, &[micro, kind, &format!("loader_threads={loader}")]);
        on_threads(2, || run(&job(whole.path(), 0), None)).unwrap();
        let want = hashes(whole.path(), 40);
        let check = |stop: u64, loaders: [usize; 2], threads: [usize; 2]| {
            let out = tempfile::tempdir().unwrap();
            let outcome = on_threads(threads[0], || run(&job(out.path(), loaders[0]), Some(stop))).unwrap();
            assert_eq!((outcome.step, outcome.total, outcome.is_stopped), (stop, 40, false));
            let outcome = on_threads(threads[1], || run(&job(out.path(), loaders[1]), None)).unwrap();
            assert_eq!(outcome.step, 40);
            assert_eq!(hashes(out.path(), 40), want, "{micro} stopped at {stop}: {loaders:?} {threads:?}");
            let metrics = fs::read_to_string(out.path().join("metrics.jsonl")).unwrap();
            let steps: Vec<u64> = metrics
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
                .collect();
            assert!(steps.iter().copied().eq(1..=40), "{steps:?}");
        };
        let loaders = [0, 1, 4];
        for stop in 1..40 {
            let threads = [1 + stop % 2, 1 + (stop / 2) % 2];
            check(stop as u64, [loaders[stop % 3], loaders[(stop / 3) % 3]], threads);
        }
        for loader in loaders {
            for threads in [1, 2] {
                for stop in [1, 10, 20, 31, 39] {
                    check(stop, [loader; 2], [threads; 2]);
                }
            }
        }
    }
}

/// Four parts give what one gives, and so the losses of the goldens, whose batches have one, three and six parts.
#[test]
fn a_batch_in_four_parts_is_that_batch() {
    for model in ["pg1", "pg2"] {
        for (batch, mean) in [(4, "loss=example"), (8, "loss=token")] {
            let curve = |parts: usize| {
                let out = tempfile::tempdir().unwrap();
                let (micro, batch) = (format!("micro_batch={}", batch / parts), format!("batch={batch}"));
                let cosine = ["warmup_steps=5", "decay=cosine", "optimiser=adamw", "lr=3e-4"];
                curve(&job(model, out.path(), &[&cosine[..], &[mean, &micro, &batch]].concat()).unwrap())
            };
            let (one, four) = (curve(1), curve(4));
            assert!(one.len() == 50 && one[0].0 > one[49].0 + 0.05, "{one:?}");
            for (step, ((a, a_norm), (b, b_norm))) in one.iter().zip(&four).enumerate() {
                assert!((a - b).abs() <= 1e-4, "{model} {batch} step {step}: {a} {b}");
                assert!((a_norm - b_norm).abs() <= 1e-4 * a_norm, "{model} {batch} step {step}");
            }
        }
    }
}

/// Whoever listens stops the run after the step at hand, which is saved.
#[test]
fn a_run_stops_when_it_is_asked() {
    let out = tempfile::tempdir().unwrap();
    let job = mixed(out.path(), &["keep=1"]);
    let outcome = job.run(None, &mut |event| match event {
        Event::Step(line) if line.step == 3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.step, outcome.is_stopped), (3, true));
    hashes(out.path(), 3);
    assert!(!run(&job, Some(5)).unwrap().is_stopped);
    assert!(!out.path().join("state/step-000003").exists(), "one state is kept");
}

/// What is frozen does not change, and keeps nothing.
#[test]
fn frozen_parts_stay_as_they_are() {
    let out = tempfile::tempdir().unwrap();
    let job =
        job("pg1", &out.path().join("run"), &["freeze=[\"img/.*\", \"llm/final_norm/scale\"]", "steps=3"])
            .unwrap();
    run(&job, None).unwrap();
    let exported = out.path().join("model");
    job.export(&exported, None, false).unwrap();
    let (before, after) =
        (Checkpoint::open(Path::new(&goldens("e2e/pg1"))).unwrap(), Checkpoint::open(&exported).unwrap());
    let mut changed = 0;
    for name in before.names() {
        let is_same = before.tensor(&name).unwrap().bytes() == after.tensor(&name).unwrap().bytes();
        let is_frozen = name.starts_with("vision_tower")
            || name.starts_with("multi_modal")
            || name == "language_model.norm.weight";
        assert_eq!(is_same, is_frozen, "{name}");
        changed += usize::from(!is_same);
    }
    assert_eq!(changed, 19);
}

#[test]
fn what_is_not_finite_stops_the_run_and_changes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let wild = |lr: &str, clip: &str| {
        mixed(
            out.path(),
            &[lr, clip, "optimiser=sgd", "save_every=1", "decay=constant", "warmup=0", "keep=100"],
        )
    };
    // Without a clip this step is too long: the loss of the next one is no number.
    let job = wild("lr=1e3", "clip=0");
    let error = run(&job, None).unwrap_err();
    assert_eq!(error.kind(), Kind::Training, "{error}");
    let text = error.to_string();
    assert!(text.contains("step ") && text.contains("bad-batch.json"), "{text}");
    let bad: Value =
        serde_json::from_str(&fs::read_to_string(out.path().join("bad-batch.json")).unwrap()).unwrap();
    let step = bad["step"].as_u64().unwrap();
    assert_eq!(bad["examples"].as_array().unwrap().len(), 4);
    assert!(bad["examples"][0]["place"].as_str().unwrap().contains("data.jsonl:"), "{bad}");
    assert!(step > 1, "{bad}");
    // The last good state is there, and the run stops at the same step again.
    let before = hashes(out.path(), step - 1);
    assert_eq!(run(&job, None).unwrap_err().kind(), Kind::Training);
    assert_eq!(hashes(out.path(), step - 1), before);
}

#[test]
fn a_folder_belongs_to_its_recipe() {
    let out = tempfile::tempdir().unwrap();
    run(&mixed(out.path(), &[]), Some(2)).unwrap();
    let error: Error = run(&mixed(out.path(), &["lr=0.5"]), None).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("another lr"), "{error}");
    run(&mixed(out.path(), &["loader_threads=2", "keep=9"]), Some(3)).unwrap();
    // A damaged state is passed over, told, and made again.
    let path = out.path().join("state/step-000003/weights.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut told = Vec::new();
    let outcome = mixed(out.path(), &[]).run(Some(3), &mut |event| {
        match event {
            Event::Damaged(error) => told.push(error.to_string()),
            Event::Begun { step, .. } => told.push(step.to_string()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.unwrap().step, 3);
    assert!(told.len() == 2 && told[0].contains("has changed since") && told[1] == "2", "{told:?}");
    assert_eq!(run(&mixed(out.path(), &[]), Some(3)).unwrap().step, 3);
}

/// Broken examples are left out and counted, and the rest keeps its order.
#[test]
fn broken_examples_stop_or_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(goldens("train/data.jsonl")).unwrap();
    let broken =
        format!("{text}{{\"image\": \"absent.png\", \"prefix\": \"x\", \"suffix\": \"y\"}}\nnonsense\n");
    let data = folder.path().join("data.jsonl");
    fs::write(&data, broken).unwrap();
    let file = format!("data.a.files={}", data.display());
    let stop = job("pg1", &folder.path().join("stop"), &[&file, "steps=5"]).unwrap();
    let error = run(&stop, None).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    assert!(error.to_string().contains("data.jsonl:"), "{error}");
    let skip = job("pg1", &folder.path().join("skip"), &[&file, "steps=8", "on_error=skip"]).unwrap();
    let mut skipped = 0;
    let outcome = skip.run(None, &mut |event| {
        skipped += usize::from(matches!(event, Event::Skipped(_)));
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.unwrap().step, 8);
    let path = folder.path().join("skip/state/step-000008/manifest.json");
    let manifest: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let skipped = skipped as u64;
    assert_eq!(manifest["skipped"].as_u64(), Some(skipped));
    assert!(skipped >= 12 && manifest["draws"].as_u64() == Some(48 + skipped), "{manifest}");
}
