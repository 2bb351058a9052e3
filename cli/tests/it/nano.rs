//! `nano`, the models within the program: they answer without anything beside them, and the first steps of every stage that
//! made them have the losses that stand in `models/nano/losses.json`.

use crate::Scene;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The program with the repository as its folder, where the recipes of nano find their data.
fn at_root(args: &[&str]) {
    let ran = Command::new(env!("CARGO_BIN_EXE_paligemma")).args(args).current_dir(root()).output().unwrap();
    assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// The first losses of a recipe.
fn losses(recipe: &str, changes: &[&str], out: &Path, steps: usize) -> Vec<f64> {
    let (out_is, steps) = (format!("out={}", out.display()), steps.to_string());
    let how = [out_is.as_str(), "log_every=1", "save_every=0", "--steps", &steps, "-q"];
    at_root(&[&["train", recipe], changes, &how].concat());
    let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

#[test]
fn the_first_steps_of_every_stage_have_the_recorded_losses() {
    let scene = Scene::new();
    let path = |name: &str| scene.path(name).display().to_string();
    let init = |name: &str| format!("model.init={}", path(name));
    at_root(&["random", "nano-112", &path("random"), "--dtype", "f32", "-q"]);
    // The parts as Stage 0 left them, joined and quantised.
    at_root(&["random", "nano-112", &path("start8"), "--dtype", "int8", "-q"]);
    fs::copy(root().join("models/nano/start.safetensors"), scene.path("start8/model.safetensors")).unwrap();
    for (from, to, size) in [
        (path("start8"), path("start"), "112"),
        (path("start8"), path("start-56"), "56"),
        ("nano-112".into(), path("start-224"), "224"),
    ] {
        at_root(&["convert", &from, &to, "--image-size", size, "--dtype", "f32", "-q"]);
    }
    let recorded: Value =
        serde_json::from_slice(&fs::read(root().join("models/nano/losses.json")).unwrap()).unwrap();
    let [random, start, start_56, start_224] = ["random", "start", "start-56", "start-224"].map(init);
    // Sixteen examples of each batch: whole ones take minutes.
    for (recipe, changes) in [
        ("nano-stage0-language", vec![random.as_str(), "batch=16", "micro_batch=16"]),
        ("nano-stage0-image", vec!["batch=16"]),
        ("nano-stage1-one", vec![start_56.as_str(), "batch=16", "micro_batch=16"]),
        ("nano-stage1", vec![start.as_str(), "batch=16"]),
        ("nano-stage2", vec![start_224.as_str(), "batch=16"]),
        ("nano-transfer-count", vec!["batch=16"]),
        ("nano-transfer-refer", vec!["batch=16"]),
        ("nano-transfer-aerial", vec!["batch=16"]),
    ] {
        let want: Vec<f64> =
            recorded[recipe].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
        let found = losses(recipe, &changes, &scene.path(recipe), want.len());
        assert_eq!(found.len(), want.len(), "{recipe}");
        for (found, want) in found.iter().zip(want) {
            // Instruction sets round bf16 products otherwise.
            assert!((found / want - 1.0).abs() < 0.02, "{recipe}: {found} in place of {want}");
        }
    }
}

#[test]
fn nano_is_a_model_like_others() {
    let scene = Scene::new();
    let shown = scene.json(&["show", "nano"]);
    assert_eq!(shown["config"]["vision_config"]["image_size"], json!(112));
    assert_eq!(scene.json(&["show", "nano-224"])["config"]["vision_config"]["image_size"], json!(224));
    let example = root().join("examples/playground.png").display().to_string();
    let run = |model: &str| scene.json(&["run", model, &example, "caption en"])["text"].clone();
    let answer = run("nano");
    assert!(answer.as_str().unwrap().split(' ').count() > 3, "{answer}");
    // As a folder and as an npz it is the same model.
    scene.json(&["convert", "nano", "folder"]);
    assert_eq!(run("folder"), answer);
    scene.json(&["convert", "nano", "n.npz", "--dtype", "f32"]);
    assert_eq!(
        scene.json(&["show", "n.npz"])["parameters"],
        json!(shown["parameters"].as_u64().unwrap() - 64 * 192)
    );
    // A folder of that name goes before it, and a name like it is asked about.
    let ran = scene.run(&["run", "nano-122", &example, "caption en"]);
    assert!(ran.code == 2 && ran.err.contains("did you mean nano-112?"), "{ran:?}");
    scene.json(&["random", "tiny", "nano"]);
    assert_eq!(scene.json(&["show", "nano"])["parameters"], json!(326_336));
}
