//! Numbers that are not finite, put in at many places of a run: it stops on that step and says where, its saved states stay as
//! they were, and the batch can be looked at.

use crate::train::{hashes, job, run};
use paligemma::{Kind, train::Job};
use ring::digest::{SHA256, digest};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

const SAVED: &str = "state/step-000002";

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where in a tensor.
#[derive(Clone, Copy)]
enum At {
    One(usize),
    All,
}

/// Puts a number into a saved state, whose manifest then says that this is how it was written.
fn put(state: &Path, file: &str, tensor: &str, at: At, value: f32) {
    let path = state.join(file);
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let told: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let offset = |i: usize| told[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    let numbers = bytes[header + offset(0)..header + offset(1)].chunks_mut(4).enumerate();
    for (_, number) in numbers.filter(|(i, _)| matches!(at, At::All) || matches!(at, At::One(j) if j == *i)) {
        number.copy_from_slice(&value.to_le_bytes());
    }
    let path = state.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["files"][file]["sha256"] = sha256(&bytes).into();
    manifest.as_object_mut().unwrap().shift_remove("sha256");
    manifest["sha256"] = sha256(manifest.to_string().as_bytes()).into();
    fs::write(&path, manifest.to_string()).unwrap();
    fs::write(state.join(file), bytes).unwrap();
}

/// Every file of the saved states.
fn states(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for state in fs::read_dir(out.join("state")).unwrap() {
        for file in fs::read_dir(state.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            all.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    all
}

/// Copies the files of a folder and of the folders in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// The run stops on `step` and says `part`; what was saved is as it was.
fn check_stop(job: &Job, out: &Path, step: u64, part: &str, what: &str) {
    let before = states(out);
    let error = run(job, None).unwrap_err();
    assert_eq!(error.kind(), Kind::Training, "{what}: {error}");
    let text = error.to_string();
    for part in [part, &format!("step {step}"), "bad-batch.json"] {
        assert!(text.contains(part), "{what}: no \"{part}\" in {text}");
    }
    assert!(states(out) == before, "{what}: the saved states have changed");
    let bad: Value = serde_json::from_slice(&fs::read(out.join("bad-batch.json")).unwrap()).unwrap();
    assert_eq!(bad["step"].as_u64(), Some(step), "{what}");
    let examples = bad["examples"].as_array().unwrap();
    assert!(examples.len() == 6 && examples[0]["place"].as_str().unwrap().contains("data.jsonl:"), "{bad}");
}

#[test]
fn a_number_that_is_not_finite_stops_the_run_wherever_it_is() {
    const WEIGHTS: &str = "weights.safetensors";
    const OPTIMISER: &str = "optimiser.safetensors";
    const DOWN: &str = "language_model.layers.0.mlp.down_proj.weight";
    let (first, second) = (format!("{DOWN}/first"), format!("{DOWN}/second"));
    let loss = "the loss is";
    let (nan, inf, one) = (f32::NAN, f32::INFINITY, At::One(3));
    let weights = |name| (WEIGHTS, name, one, nan, loss);
    let sites: [(&str, &str, At, f32, &str); 11] = [
        weights("vision_tower.embeddings.patch_embedding.weight"),
        weights("vision_tower.encoder.layers.0.mlp.fc1.weight"),
        weights("multi_modal_projector.linear.weight"),
        weights("language_model.embed_tokens.weight"),
        weights("language_model.layers.0.input_layernorm.weight"),
        weights("language_model.layers.1.self_attn.q_proj.weight"),
        weights(DOWN),
        // The logit of the end is infinite at every position.
        (WEIGHTS, "language_model.embed_tokens.weight", At::One(70), inf, loss),
        (WEIGHTS, "language_model.norm.weight", At::All, -inf, loss),
        (OPTIMISER, &first, one, nan, DOWN),
        // What an infinite number divides would stand still, and nobody would see it.
        (OPTIMISER, &second, one, inf, &second),
    ];
    let usual = ["save_every=1", "keep=9", "lr=1e-3"];
    for changes in [
        &["optimiser=adam"][..],
        &["optimiser=adam", "micro_batch=2"],
        &["optimiser=sgd", "momentum=0.9", "micro_batch=3", "clip=0"],
        // Each of these two updates a parameter as soon as its gradient is there.
        &["optimiser=adam", "clip=0"],
        &["optimiser=sgd", "momentum=0.9", "clip=0", "recompute=true"],
    ] {
        let changes = [&usual[..], changes].concat();
        let good = tempfile::tempdir().unwrap();
        run(&job("pg1", good.path(), &changes).unwrap(), Some(2)).unwrap();
        for (file, tensor, at, value, part) in sites {
            if tensor == second && changes.contains(&"optimiser=sgd") {
                continue;
            }
            let out = tempfile::tempdir().unwrap();
            copy(good.path(), out.path());
            put(&out.path().join(SAVED), file, tensor, at, value);
            let what = format!("{tensor} {value} {changes:?}");
            check_stop(&job("pg1", out.path(), &changes).unwrap(), out.path(), 3, part, &what);
        }
    }
}

/// A loss that is finite, and gradients that are not: what A gets comes through B, and is multiplied by a number too large.
#[test]
fn a_gradient_that_overflows_stops_the_run() {
    let layer = "language_model.layers.0.self_attn.q_proj";
    for clip in ["clip=1", "clip=0"] {
        let changes = ["lora.rank=2", "lora.alpha=1e25", "lr=0", "optimiser=sgd", clip, "save_every=1"];
        let out = tempfile::tempdir().unwrap();
        let job = job("pg1", out.path(), &changes).unwrap();
        run(&job, Some(2)).unwrap();
        let saved = out.path().join(SAVED);
        put(&saved, "weights.safetensors", &format!("{layer}.lora_a"), At::All, 0.0);
        put(&saved, "weights.safetensors", &format!("{layer}.lora_b"), At::All, 1e25);
        check_stop(&job, out.path(), 3, &format!("the gradient of {layer}.lora_a is not finite"), clip);
    }
}

/// Each step multiplies every weight by -999, until the model says nothing finite any more.
const WILD: [&str; 4] = ["lr=1e-3", "decay=constant", "weight_decay=1e3", "weight_decay_on=.*"];

/// Where gradients are summed before anything changes, a step that fails leaves the one before it: that is then saved, as a run
/// that ends there saves it.
#[test]
fn the_last_good_step_is_saved() {
    for changes in [
        &["micro_batch=1", "clip=0", "optimiser=sgd"][..],
        &["micro_batch=2", "clip=0", "optimiser=sgd", "momentum=0.9", "dtype=bf16"],
        &["clip=1e30", "optimiser=sgd"],
    ] {
        let wild = [&WILD[..], &["save_every=0"]].concat();
        let changes = [&wild[..], changes].concat();
        let (out, shorter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = run(&job("pg1", out.path(), &changes).unwrap(), None).unwrap_err();
        assert_eq!(error.kind(), Kind::Training, "{error}");
        let bad: Value =
            serde_json::from_slice(&fs::read(out.path().join("bad-batch.json")).unwrap()).unwrap();
        let good = bad["step"].as_u64().unwrap() - 1;
        assert!(good > 1, "{error}");
        run(&job("pg1", shorter.path(), &changes).unwrap(), Some(good)).unwrap();
        assert_eq!(hashes(out.path(), good), hashes(shorter.path(), good), "{changes:?}");
        assert_eq!(fs::read_dir(out.path().join("state")).unwrap().count(), 1);
    }
    // Where a parameter has changed as soon as its gradient was there, nothing is saved.
    let out = tempfile::tempdir().unwrap();
    let fused = [&WILD[..], &["save_every=0", "clip=0", "optimiser=sgd"]].concat();
    let error = run(&job("pg1", out.path(), &fused).unwrap(), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Training, "{error}");
    assert!(!out.path().join("state").exists());
}
