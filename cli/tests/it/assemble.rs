//! `assemble`: parts in each of their formats become one model.

use crate::{Scene, golden};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

type Bytes = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// The tensors of a folder, by their names.
fn tensors(folder: &Path) -> Bytes {
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&file).unwrap();
    all.tensors().into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write(folder: &Path, config: &Value, tensors: &Bytes) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let view = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<u8>))| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data.clone().leak()).unwrap())
    };
    let bytes = safetensors::serialize(tensors.iter().map(view), None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// `m` of the scene taken apart as SigLIP and Gemma are published: (`siglip`, `gemma`).
fn take_apart(scene: &Scene) {
    scene.json(&["random", "tiny", "whole", "--dtype", "f32"]);
    let config: Value = serde_json::from_slice(&fs::read(scene.path("whole/config.json")).unwrap()).unwrap();
    let all = tensors(&scene.path("whole"));
    let renamed = |from: &str, to: &str| -> Bytes {
        let pick = |(name, t): (&String, &(Vec<usize>, Vec<u8>))| {
            name.strip_prefix(from).map(|rest| (format!("{to}{rest}"), t.clone()))
        };
        all.iter().filter_map(pick).collect()
    };
    let mut siglip = renamed("vision_tower.vision_model.", "vision_model.");
    // What PaliGemma has not.
    siglip.insert("logit_scale".into(), (vec![1], vec![0; 4]));
    siglip.insert("text_model.head.bias".into(), (vec![3], vec![0; 12]));
    siglip.insert("vision_model.head.probe".into(), (vec![1, 1, 4], vec![0; 16]));
    let vision = json!({"model_type": "siglip", "vision_config": config["vision_config"]});
    write(&scene.path("siglip"), &vision, &siglip);
    let mut gemma = renamed("language_model.model.", "model.");
    // Gemma's table ends before PaliGemma's own tokens, which begin at 832 here.
    let (shape, data) = gemma.get_mut("model.embed_tokens.weight").unwrap();
    data.truncate(832 * shape[1] * 4);
    shape[0] = 832;
    let mut text = config["text_config"].clone();
    text["vocab_size"] = json!(832);
    write(&scene.path("gemma"), &text, &gemma);
    fs::copy(scene.path("whole/tokenizer.json"), scene.path("gemma/tokenizer.json")).unwrap();
}

#[test]
fn parts_of_each_format_become_a_model() {
    let scene = Scene::new();
    take_apart(&scene);
    let whole = tensors(&scene.path("whole"));
    for (i, (vision, language)) in
        [("siglip", "gemma"), ("whole", "gemma"), ("siglip/model.safetensors", "gemma")]
            .into_iter()
            .enumerate()
    {
        let out = format!("out{i}");
        let told = scene.json(&["assemble", "--vision", vision, "--language", language, &out]);
        assert_eq!((&told["new_rows"], &told["image_token_index"]), (&json!(2048 - 832), &json!(1984)));
        for (name, (shape, data)) in tensors(&scene.path(&out)) {
            let (want_shape, want) = &whole[&name];
            assert_eq!(&shape, want_shape, "{name}");
            if name.starts_with("multi_modal_projector") {
                assert!(data.iter().all(|&b| b == 0), "{name}");
            } else if name.ends_with("embed_tokens.weight") {
                let known = 832 * shape[1] * 4;
                assert!(data[..known] == want[..known] && data[known..] != want[known..], "{name}");
            } else {
                assert!(&data == want, "{name}");
            }
        }
        // It answers.
        scene.json(&["run", &out, "a.png", "caption en", "--max-tokens", "2"]);
    }
    // big_vision's npz, and the same seed the same rows.
    let npz = golden("model/pg1_mha.bf16.npz");
    let args = ["assemble", "--vision", &npz, "--language", "gemma", "--seed", "3"];
    scene.json(&[&args[..], &["n1"]].concat());
    scene.json(&[&args[..], &["n2"]].concat());
    assert!(tensors(&scene.path("n1")) == tensors(&scene.path("n2")));
}

#[test]
fn what_makes_no_model_is_named() {
    let scene = Scene::new();
    take_apart(&scene);
    fs::create_dir(scene.path("empty")).unwrap();
    for (vision, language, code, named) in [
        ("gemma", "gemma", 1, "model_type"),
        ("siglip", "siglip", 1, "model_type"),
        ("absent", "gemma", 2, "absent"),
        ("siglip", "empty", 1, "empty"),
        ("a.png", "gemma", 1, "a.png"),
    ] {
        let ran = scene.run(&["assemble", "--vision", vision, "--language", language, "out"]);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.err.contains(named) && ran.out.is_empty(), "{ran:?}");
        assert!(!scene.path("out").exists());
    }
    // A tensor that is not there.
    let mut gemma = tensors(&scene.path("gemma"));
    gemma.remove("model.layers.1.mlp.up_proj.weight");
    let config: Value = serde_json::from_slice(&fs::read(scene.path("gemma/config.json")).unwrap()).unwrap();
    write(&scene.path("gemma"), &config, &gemma);
    let ran = scene.run(&["assemble", "--vision", "siglip", "--language", "gemma", "out"]);
    assert!(ran.code == 1 && ran.err.contains("layers.1.mlp.up_proj"), "{ran:?}");
    assert!(!scene.path("out").exists());
}
