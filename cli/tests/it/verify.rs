//! `verify`: what agrees, what departs, and what is no golden of the model.

use crate::{Scene, golden, keys};
use serde_json::{Value, json};
use std::fs;

fn model(name: &str) -> String {
    golden(&format!("model/{name}"))
}

#[test]
fn goldens_of_both_references_agree() {
    let scene = Scene::new();
    for (of, held) in [
        ("pg1_mqa", "hf_pg1_mqa.safetensors"),
        ("pg1_mqa", "bv_pg1_mqa.safetensors"),
        ("pg1_mqa", "hf_pg1_mqa_padded.safetensors"),
        ("pg1_gqa", "hf_pg1_gqa.safetensors"),
        ("pg2", "hf_pg2.safetensors"),
        ("pg2", "bv_pg2.safetensors"),
        ("pg2", "hf_pg2_two_images.safetensors"),
        ("pg2_27b_like", "hf_pg2_27b_like.safetensors"),
        // An npz does not tell the id of its image placeholders.
        ("pg1_mha.bf16.npz", "bv_pg1_mha.safetensors"),
    ] {
        let verdict = scene.json(&["verify", &model(of), &model(held)]);
        assert_eq!(keys(&verdict), ["ok", "tensors"]);
        assert_eq!(verdict["ok"], json!(true), "{of} {held}");
        let (mut names, mut gradients) = (Vec::new(), 0);
        for tensor in verdict["tensors"].as_array().unwrap() {
            assert_eq!(keys(tensor), ["name", "max_abs", "max_rel", "tolerance", "ok"]);
            assert_eq!((&tensor["tolerance"], &tensor["ok"]), (&json!(1e-4), &json!(true)));
            assert!(tensor["max_rel"].as_f64().unwrap() <= 1e-4);
            match tensor["name"].as_str().unwrap() {
                name if name.starts_with("grad/") => gradients += 1,
                name => names.push(name),
            }
        }
        let all = ["image_features", "logits", "text_logits", "loss"];
        assert!(names.len() >= 2 && names.iter().all(|name| all.contains(name)), "{of} {held}: {names:?}");
        let has_gradients = ["hf_pg1_mqa.safetensors", "hf_pg2.safetensors"].contains(&held);
        assert_eq!(gradients > 40, has_gradients, "{of} {held}: {gradients}");
        let text = scene.run(&["verify", &model(of), &model(held)]);
        assert!(text.code == 0 && text.out.ends_with("all agree\n"), "{text:?}");
    }
}

#[test]
fn the_first_that_departs_is_named() {
    let scene = Scene::new();
    fs::create_dir(scene.path("bent")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(format!("{}/{file}", model("pg2")), scene.path("bent").join(file)).unwrap();
    }
    // The last norm of the text: pictures are right, logits are not.
    let mut weights = fs::read(scene.path("bent/model.safetensors")).unwrap();
    let len = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + len]).unwrap();
    let (name, info) =
        header.as_object().unwrap().iter().find(|(n, _)| n.ends_with("model.norm.weight")).unwrap();
    let [from, to] = [0, 1].map(|i| 8 + len + info["data_offsets"][i].as_u64().unwrap() as usize);
    assert!(to > from, "{name}");
    weights[from..to].fill(0x3f);
    scene.write("bent/model.safetensors", weights);
    let ran = scene.run(&["verify", "bent", &model("hf_pg2.safetensors"), "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let verdict = ran.json();
    assert_eq!(verdict["ok"], json!(false));
    let of =
        |i: usize| (verdict["tensors"][i]["name"].as_str().unwrap(), verdict["tensors"][i]["ok"].as_bool());
    assert_eq!([of(0), of(1)], [("image_features", Some(true)), ("logits", Some(false))]);
    let ran = scene.run(&["verify", "bent", &model("hf_pg2.safetensors")]);
    assert!(ran.code == 1 && ran.out.ends_with("the first to depart is logits\n"), "{ran:?}");
}

#[test]
fn a_wrong_golden_is_a_wrong_input_and_no_departure() {
    let scene = Scene::new();
    for (of, held) in [
        ("pg1_gqa", model("hf_pg1_mqa.safetensors")),
        ("pg1_mqa", model("hf_pg1_mha.safetensors")),
        ("pg2", model("pg2/model.safetensors")),
        ("pg2", model("absent.safetensors")),
        ("pg2", "a.png".into()),
        ("pg2", "m".into()),
    ] {
        let ran = scene.run(&["verify", &model(of), &held]);
        assert!(
            ran.code == 3 && ran.err.starts_with("error: ") && ran.out.is_empty(),
            "{of} {held}: {ran:?}"
        );
    }
}
