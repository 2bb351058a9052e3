//! `convert`, `random` and `show`.

use crate::{Scene, golden};
use serde_json::{Value, json};
use std::fs;

#[test]
fn there_and_back_is_lossless() {
    let scene = Scene::new();
    let summary = scene.json(&["convert", "m", "m.npz"]);
    assert_eq!(summary["dropped_rows"], json!(64));
    assert_eq!(scene.json(&["convert", "m.npz", "back"])["dropped_rows"], json!(0));
    assert_eq!(scene.json(&["convert", "back", "again.npz"])["dropped_rows"], json!(0));
    assert_eq!(fs::read(scene.path("m.npz")).unwrap(), fs::read(scene.path("again.npz")).unwrap());
    // The folder keeps the npz's number of rows; another folder made of it is the same to the byte.
    assert_eq!(scene.json(&["show", "back"])["config"]["text_config"]["vocab_size"], json!(1984));
    assert_eq!(scene.json(&["convert", "back", "same"])["tensors"], json!(59));
    let weights = |folder: &str| fs::read(scene.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("back"), weights("same"));
    let answer = |model: &str| {
        let how = ["--preprocess", "reference", "--temperature", "1", "-n", "9"];
        scene.json(&[&["run", model, "a.png", "caption en"], &how[..]].concat())["logprobs"].clone()
    };
    assert_eq!(answer("back"), answer("m.npz"));
}

#[test]
fn tensors_keep_their_types_unless_told() {
    let scene = Scene::new();
    let types = |model: &str| {
        let shown = scene.json(&["show", model]);
        let types = shown["dtypes"].as_array().unwrap().iter();
        types.map(|d| d["dtype"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
    };
    for (i, dtype) in ["", "f32", "bf16", "f16"].into_iter().enumerate() {
        let want = if dtype.is_empty() { "bf16" } else { dtype };
        for out in [format!("o{i}"), format!("o{i}.npz")] {
            let flag: &[&str] = if dtype.is_empty() { &[] } else { &["--dtype", dtype] };
            scene.json(&[&["convert", "m", &out], flag].concat());
            assert_eq!(types(&out), want, "{out}");
        }
    }
    // bf16 → f32 → bf16 is the identity.
    scene.json(&["convert", "o1", "narrow", "--dtype", "bf16"]);
    let weights = |folder: &str| fs::read(scene.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("narrow"), weights("o0"));
}

#[test]
fn nothing_is_overwritten_and_nothing_half_done_is_left() {
    let scene = Scene::new();
    scene.write("there.npz", "mine");
    for args in [
        ["convert", "m", "there.npz"],
        ["convert", "m", "m"],
        ["random", "tiny", "m"],
        ["random", "tiny", "a.png"],
    ] {
        let before = fs::read(scene.path("m/config.json")).unwrap();
        let ran = scene.run(&args);
        assert!(ran.code == 2 && ran.err.contains("exists already"), "{args:?}: {ran:?}");
        assert_eq!(fs::read(scene.path("m/config.json")).unwrap(), before);
    }
    assert_eq!(scene.read("there.npz"), "mine");
    // A checkpoint that ends early.
    let weights = fs::read(scene.path("m/model.safetensors")).unwrap();
    scene.write("m/model.safetensors", &weights[..weights.len() - 10]);
    assert_eq!(scene.run(&["convert", "m", "out"]).code, 1);
    assert_eq!(scene.run(&["convert", "m", "out.npz"]).code, 1);
    let mut names: Vec<String> = fs::read_dir(scene.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["a.png", "b.jpg", "m", "there.npz"]);
}

#[test]
fn random_follows_its_seed() {
    let scene = Scene::new();
    let weights = |folder: &str, how: &[&str]| {
        assert_eq!(scene.run(&[&["random", "tiny", folder, "-q"], how].concat()).code, 0);
        fs::read(scene.path(folder).join("model.safetensors")).unwrap()
    };
    let zero = weights("r0", &["--seed", "0"]);
    assert_eq!(zero, fs::read(scene.path("m/model.safetensors")).unwrap());
    assert_ne!(zero, weights("r1", &["--seed", "1"]));
    assert!(weights("r2", &["--dtype", "f32"]).len() > zero.len() * 3 / 2);
    let shown = scene.json(&["random", "2-tiny", "two"]);
    assert_eq!(scene.json(&["show", "two"])["model"], json!("PaliGemma 2"));
    assert_eq!(shown["parameters"], scene.json(&["show", "two"])["parameters"]);
}

#[test]
fn another_image_size_has_the_same_answers_where_nothing_was_zoomed() {
    let scene = Scene::new();
    let weights = |folder: &str| fs::read(scene.path(folder).join("model.safetensors")).unwrap();
    scene.json(&["convert", "m", "same", "--image-size", "224"]);
    assert_eq!(weights("m"), weights("same"));
    let larger = scene.json(&["convert", "m", "larger", "--image-size", "448", "--dtype", "f32"]);
    let shown = scene.json(&["show", "larger"]);
    assert_eq!(shown["config"]["vision_config"]["image_size"], json!(448));
    assert_eq!(larger["bytes"], shown["bytes"]);
    let settings: Value = serde_json::from_str(&scene.read("larger/preprocessor_config.json")).unwrap();
    assert_eq!(
        (&settings["size"], &settings["image_seq_length"]),
        (&json!({"height": 448, "width": 448}), &json!(1024))
    );
    assert_eq!(scene.run(&["run", "larger", "a.png", "caption en", "-n", "2"]).code, 0);
    // Twice as fine and back again: corners are corners, and every other one of an odd grid stays.
    scene.json(&["convert", "m", "odd", "--image-size", "434", "--dtype", "f32"]);
    scene.json(&["convert", "odd", "back", "--image-size", "224", "--dtype", "bf16"]);
    assert_eq!(weights("m"), weights("back"));
    scene.json(&["convert", "m", "m8", "--dtype", "int8"]);
    for (args, why) in [
        (vec!["m", "x", "--image-size", "225"], "a multiple of 14"),
        (vec!["m", "x", "--image-size", "0"], "a multiple of 14"),
        (vec!["m", "x", "--image-size", "140000000000"], "from 1 to 16384"),
        (vec!["m", "x.npz", "--image-size", "448"], "a folder"),
        (vec!["m", "x", "--image-size", "448", "--dtype", "int8"], "convert twice"),
        (vec!["m8", "x", "--image-size", "448"], "quantised"),
    ] {
        let ran = scene.run(&[&["convert"], &args[..]].concat());
        assert!(ran.code == 2 && ran.err.contains(why), "{args:?}: {}", ran.err);
    }
}

#[test]
fn nano_has_its_own_tokenizer() {
    let scene = Scene::new();
    assert_eq!(scene.run(&["random", "nano-112", "n", "--dtype", "bf16", "-q"]).code, 0);
    let ids = |model: &str| scene.json(&["tokenize", model, "detect mushroom <loc0007>"])["ids"].clone();
    assert_eq!(ids("n"), ids("nano"));
    assert_eq!(ids("n").as_array().unwrap().len(), 4);
}

#[test]
fn show_tells_shapes_types_and_memory() {
    let scene = Scene::new();
    let shown = scene.json(&["show", "m"]);
    let tensors = shown["tensors"].as_array().unwrap();
    let elements =
        |t: &Value| t["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
    assert_eq!(tensors.iter().map(elements).sum::<u64>(), shown["parameters"].as_u64().unwrap());
    assert_eq!(shown["bytes"].as_u64().unwrap(), 2 * shown["parameters"].as_u64().unwrap());
    for side in ["224", "448", "896"] {
        assert!(shown["memory_bytes"][side]["f32"].as_u64() > shown["memory_bytes"][side]["bf16"].as_u64());
    }
    let text = scene.run(&["show", "m"]).out;
    assert!(text.starts_with("PaliGemma, 326 336 parameters\n") && text.contains("224 px"), "{text}");
    assert_eq!(
        scene.run(&["show", "m", "--tensors"]).out.lines().count(),
        text.lines().count() + tensors.len()
    );
    // A split npz is one model.
    assert_eq!(
        scene.json(&["show", &golden("checkpoint/gqa.npz")])["tensors"],
        scene.json(&["show", &golden("checkpoint/gqa-split.npz")])["tensors"]
    );
}
