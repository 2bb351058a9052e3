//! Quantised models by the program: `convert --dtype int8`, what tells of them, and `drift`.

use crate::{Scene, golden, keys};
use serde_json::{Value, json};
use std::fs;

#[test]
fn a_quantised_folder_is_shown_run_and_verified() {
    let scene = Scene::new();
    for scheme in ["int8", "int4"] {
        let summary = scene.json(&["convert", "m", scheme, "--dtype", scheme]);
        assert_eq!(summary["quantisation"], json!(scheme));
        let shown = scene.json(&["show", scheme]);
        assert_eq!((&shown["quantisation"], &shown["bytes"]), (&json!(scheme), &summary["bytes"]));
        let text = scene.run(&["show", scheme]).out;
        assert!(text.contains(&format!("quantised {scheme}\n")), "{text}");
        let made = scene.json(&["random", "tiny", &format!("r{scheme}"), "--dtype", scheme]);
        assert_eq!((&made["dtype"], &made["bytes"]), (&json!(scheme), &summary["bytes"]));
        let answer = |more: &[&str]| {
            let ran =
                scene.run(&[&["run", scheme, "a.png", "caption en", "-n", "4", "--json"], more].concat());
            assert_eq!(ran.code, 0, "{ran:?}");
            ran
        };
        assert!(answer(&[]).err.is_empty());
        let wide = answer(&["--dtype", "bf16"]).err;
        assert!(wide.contains(&format!("the weights are {scheme}; --dtype makes plain numbers")), "{wide}");
        let ran = scene.run(&["convert", scheme, "x.npz"]);
        assert!(ran.code == 2 && ran.err.contains("--dtype f32"), "{ran:?}");
        let ran = scene.run(&["convert", "m", "x.npz", "--dtype", scheme]);
        assert!(ran.code == 2 && ran.err.contains(&format!("an npz cannot be {scheme}")), "{ran:?}");
        let ran = scene.run(&["convert", scheme, &format!("{scheme}.npz"), "--dtype", "bf16"]);
        assert!(ran.code == 0 && ran.err.contains("what it lost stays lost"), "{ran:?}");
    }
    let tolerances = |flags: &[&str]| {
        let ran =
            scene.run(&[&["verify", "q", &golden("model/hf_pg2.safetensors"), "--json"], flags].concat());
        let verdict: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        let all = verdict["tensors"].as_array().unwrap().iter();
        all.filter_map(|t| t["tolerance"].as_f64()).collect::<Vec<_>>()
    };
    scene.json(&["convert", &golden("model/pg2"), "q", "--dtype", "int8"]);
    assert_eq!(tolerances(&[]), [2e-2; 3]);
    assert_eq!(tolerances(&["--dtype", "f32"]), [2e-2; 3]);
}

#[test]
fn drift_tells_how_far_two_models_are_apart() {
    let scene = Scene::new();
    scene.json(&["convert", "m", "q", "--dtype", "int8"]);
    fs::create_dir(scene.path("pictures")).unwrap();
    fs::copy(scene.path("a.png"), scene.path("pictures/a.PNG")).unwrap();
    fs::copy(scene.path("b.jpg"), scene.path("pictures/b.jpg")).unwrap();
    scene.write("pictures/notes.txt", "no picture");
    let drift = scene.json(&["drift", "m", "q", "--images", "pictures", "-n", "3"]);
    assert_eq!(
        keys(&drift),
        [
            "model_a",
            "model_b",
            "inputs",
            "positions",
            "top1_agreement",
            "mean_kl",
            "max_kl",
            "image_features",
            "worst_layer",
            "layers"
        ]
    );
    assert_eq!(drift["inputs"], json!(8));
    assert!(drift["mean_kl"].as_f64().unwrap() > 0.0);
    assert!(drift["layers"].as_array().unwrap().contains(&drift["worst_layer"]));
    let same = scene.json(&["drift", "m", "m", "-n", "2"]);
    assert_eq!((&same["top1_agreement"], &same["max_kl"]), (&json!(1.0), &json!(0.0)));
    let text = scene.run(&["drift", "m", "m", "-n", "2"]).out;
    assert!(text.contains("top-1 agreement  100.00 %") && text.contains("worst layer"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_told() {
    let scene = Scene::new();
    scene.json(&["random", "2-tiny", "two"]);
    fs::create_dir(scene.path("none")).unwrap();
    fs::create_dir(scene.path("bad")).unwrap();
    scene.write("bad/x.png", "no picture");
    let cases: [(&[&str], i32, &str); 5] = [
        (&["m", "two"], 2, "configurations differ"),
        (&["m", "absent"], 2, "absent"),
        (&["m", "m", "--images", "none"], 3, "no picture"),
        (&["m", "m", "--images", "gone"], 3, "no folder gone"),
        (&["m", "m", "--images", "bad"], 3, "x.png"),
    ];
    for (args, code, says) in cases {
        let ran = scene.run(&[&["drift"], args].concat());
        assert!(ran.code == code && ran.err.contains(says) && ran.out.is_empty(), "{args:?}: {ran:?}");
    }
}
