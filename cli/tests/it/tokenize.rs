//! `tokenize`.

use crate::{Scene, golden};
use serde_json::json;
use std::fs;

#[test]
fn the_text_may_be_anything_and_no_bos_is_added() {
    let scene = Scene::new();
    for (text, pieces) in [
        ("", json!([])),
        ("-5", json!(["-", "5"])),
        ("--json", json!(["-", "-", "j", "s", "o", "n"])),
        ("a\n", json!(["a", "\n"])),
        ("<loc0000>", json!(["<loc0000>"])),
    ] {
        let args = ["tokenize", "m", "--json", "--", text];
        assert_eq!(scene.run(&args).json()["pieces"], pieces, "{text:?}");
        let piped = scene.run_with_stdin(&["tokenize", "m", "-", "--json"], text.as_bytes()).json();
        assert_eq!(piped, scene.run(&args).json(), "{text:?}");
    }
    let answer = scene.json(&["tokenize", "m", "caption en"]);
    assert_eq!(crate::keys(&answer), ["ids", "pieces"]);
    assert_eq!(answer["ids"].as_array().unwrap().len(), answer["pieces"].as_array().unwrap().len());
    let plain = scene.run(&["tokenize", "m", "-\n"]).out;
    assert!(plain.lines().count() == 2 && plain.ends_with("\\n\n"), "{plain:?}");
    let ran = scene.run_with_stdin(&["tokenize", "m", "-"], b"caf\xc3");
    assert!(ran.code == 3 && ran.err.contains("UTF-8"), "{ran:?}");
}

#[test]
fn only_the_tokenizer_is_needed() {
    let scene = Scene::new();
    let whole = scene.json(&["tokenize", "m", "caption en"]);
    fs::remove_file(scene.path("m/model.safetensors")).unwrap();
    fs::remove_file(scene.path("m/config.json")).unwrap();
    assert_eq!(scene.json(&["tokenize", "m", "caption en"]), whole);
    assert_eq!(scene.json(&["tokenize", "m/tokenizer.json", "caption en"]), whole);
    assert_eq!(scene.json(&["tokenize", "absent", "caption en", "--tokenizer", "m/tokenizer.json"]), whole);
}

#[test]
fn a_broken_tokenizer_json_is_an_error_though_another_file_is_there() {
    let scene = Scene::new();
    fs::copy(golden("tokenizer/gemma.model"), scene.path("m/tokenizer.model")).unwrap();
    let json = scene.json(&["tokenize", "m", "caption en"]);
    assert_ne!(json, scene.json(&["tokenize", "m/tokenizer.model", "caption en"]));
    scene.write("m/tokenizer.json", "{}");
    let ran = scene.run(&["tokenize", "m", "caption en"]);
    assert!(ran.code == 1 && ran.err.contains("tokenizer.json"), "{ran:?}");
    fs::remove_file(scene.path("m/tokenizer.json")).unwrap();
    assert_eq!(scene.run(&["tokenize", "m", "caption en"]).code, 0);
}
