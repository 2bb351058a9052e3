//! `playground` and `score`: examples about drawn pictures, and answers scored.

use crate::{Scene, keys};
use paligemma::image::decode_file;
use serde_json::{Value, json};
use std::fs;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn examples_and_their_pictures_are_written() {
    let scene = Scene::new();
    let words = ["playground", "drawn", "--split", "val", "--count", "30", "--size", "56", "--seed", "3"];
    let said = scene.json(&words);
    assert_eq!(keys(&said), ["path", "lines", "pictures", "tasks"]);
    assert_eq!((said["lines"].as_u64(), said["path"].as_str()), (Some(30), Some("drawn/val.jsonl")));
    let tasks = said["tasks"].as_object().unwrap();
    assert_eq!(tasks.values().map(|task| task["count"].as_u64().unwrap()).sum::<u64>(), 30);
    let text = scene.read("drawn/val.jsonl");
    let mut pictures = 0;
    for line in lines(&text) {
        let has_masks = line["suffix"].to_string().contains("<seg");
        let all = ["image", "prefix", "suffix", "task", "lang", "masks"];
        assert_eq!(keys(&line), all[..all.len() - usize::from(!has_masks)]);
        let images = line["image"].as_array().cloned().unwrap_or_else(|| vec![line["image"].clone()]);
        for image in images {
            let picture = decode_file(&scene.path("drawn").join(image.as_str().unwrap())).unwrap();
            assert_eq!((picture.width, picture.height), (56, 56));
            pictures += 1;
        }
    }
    assert_eq!(said["pictures"].as_u64(), Some(pictures));
    assert_eq!(fs::read_dir(scene.path("drawn/val")).unwrap().count() as u64, pictures);
    // Nothing is overwritten; another split stands beside it; the same again is the same.
    let ran = scene.run(&words);
    assert!(ran.code == 2 && ran.err.contains("exists already"), "{ran:?}");
    assert_eq!(scene.run(&["playground", "drawn", "--count", "2", "--size", "28"]).code, 0);
    assert_eq!(lines(&scene.read("drawn/train.jsonl")).len(), 2);
    let again = ["playground", "again", "--split", "val", "--count", "12", "--size", "28", "--seed", "3"];
    assert_eq!(scene.run(&again).code, 0);
    assert!(text.starts_with(&scene.read("again/val.jsonl")));
    // What is written is clean data.
    let ran = scene.run(&["data", "lint", "drawn/val.jsonl"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
}

#[test]
fn masks_are_drawn_and_scored_with_the_programs_own_model_or_a_named_one() {
    let scene = Scene::new();
    scene.write_vqvae("vae.safetensors");
    let named = ["--vqvae", "vae.safetensors"];
    let miou = |model: &[&str]| {
        let (folder, answers) = (format!("drawn{}", model.len()), format!("answers{}.jsonl", model.len()));
        let words = ["playground", &folder, "--tasks", "segment,refer", "--count", "8", "--size", "28"];
        let ran = scene.run(&[&words[..], model].concat());
        assert_eq!((ran.code, ran.err.contains("own masks' model")), (0, model.is_empty()), "{ran:?}");
        let mut text = String::new();
        for line in lines(&scene.read(&format!("{folder}/train.jsonl"))) {
            let suffix = line["suffix"].as_str().unwrap();
            let masks = line["masks"].as_array().unwrap();
            assert_eq!(suffix.matches("<seg").count(), 16 * masks.len());
            assert_eq!(suffix.contains("> "), line["task"] == "segment", "{suffix}");
            let mut line = line.clone();
            line["answer"] = json!(suffix);
            text.push_str(&format!("{line}\n"));
        }
        scene.write(&answers, &text);
        let words = ["score", &answers, "--metric", "miou"];
        scene.json(&[&words[..], model].concat())["figures"]["miou"]["value"].as_f64().unwrap()
    };
    // Against the true masks: codes of a model that was trained, and of one of random weights.
    let (own, random) = (miou(&[]), miou(&named));
    assert!(own > 0.85 && random > 0.0 && random < 0.7, "{own} {random}");
}

#[test]
fn answers_are_scored() {
    let scene = Scene::new();
    let (a, b) = ("<loc0000><loc0000><loc0100><loc0100>", "<loc0000><loc0000><loc0100><loc0200>");
    let found = |label: &str| json!([{ "label": label, "score": 0.5 }]);
    scene.write(
        "found.jsonl",
        format!(
            "{}\n\n{}\n",
            json!({ "suffix": format!("{a} cat"), "answer": format!("{a} cat"), "detections": found("cat"), "task": "x" }),
            json!({ "suffix": format!("{a} cat"), "answer": format!("{b} cat"), "task": "y" }),
        ),
    );
    scene.write(
        "said.jsonl",
        format!(
            "{}\n{}\n",
            json!({ "suffix": ["a red cat", "one red cat"], "answer": "one red cat" }),
            json!({ "suffix": "a dog in the sun", "answer": "a dog in the rain" }),
        ),
    );
    let said = scene.json(&["score", "said.jsonl", "--metric", "exact"]);
    assert_eq!(keys(&said), ["metric", "count", "seed", "figures", "tasks"]);
    assert_eq!((&said["metric"], &said["count"]), (&json!("exact"), &json!(2)));
    assert_eq!(said["figures"]["exact"]["value"], json!(0.5));
    assert_eq!(keys(&said["figures"]["exact"]), ["value", "low", "high"]);
    assert!(said["tasks"].as_object().unwrap().is_empty());
    assert_eq!(said, scene.json(&["score", "said.jsonl", "--metric", "exact", "--seed", "0"]));
    let cider = scene.json(&["score", "said.jsonl", "--metric", "cider"]);
    assert!(cider["figures"]["cider"]["value"].as_f64().unwrap() > 2.0, "{cider}");
    let miou = scene.json(&["score", "found.jsonl", "--metric", "miou"]);
    assert_eq!(miou["figures"]["miou"]["value"], json!(0.75));
    assert_eq!(miou["tasks"]["y"]["figures"]["miou"]["value"], json!(0.5));
    // Without a score a detection counts as sure: the looser box, of an overlap of 0.5, comes first.
    let ap = scene.json(&["score", "found.jsonl", "--metric", "ap"]);
    assert_eq!((&ap["metric"], &ap["figures"]["ap50"]["value"]), (&json!("ap"), &json!(1.0)));
    let ran = scene.run(&["score", "found.jsonl", "--metric", "miou"]);
    let first: Vec<&str> = ran.out.lines().next().unwrap().split('\t').collect();
    assert_eq!((first[0], first[1], first[2], first[4]), ("miou", "all", "0.7500", "2 lines"));
    assert_eq!(ran.out.lines().count(), 3);
    scene.write("bad.jsonl", "{\"suffix\": \"a\", \"answer\": \"a\"}\nhalf\n");
    let ran = scene.run(&["score", "bad.jsonl", "--metric", "exact"]);
    assert!(ran.code == 3 && ran.err.contains("bad.jsonl:2") && ran.out.is_empty(), "{ran:?}");
}
