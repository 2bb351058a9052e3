//! What transformers and big_vision made of the tiny models is what we make of them.

use paligemma::{
    checkpoint::Checkpoint,
    config::Config,
    model::{PaliGemma, Pass, Turn, Weights},
    verify::{Golden, verify},
};
use paligemma_tensor::{DType, Tensor};
use std::path::PathBuf;

/// `goldens/model/NAME`
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../goldens/model").join(name)
}

/// The tiny model `name` as f32, with `change` made to its configuration.
pub(crate) fn load_changed(name: &str, dtype: Option<DType>, change: impl Fn(&mut Config)) -> PaliGemma {
    let checkpoint = Checkpoint::open(&path(name)).unwrap();
    let mut get = |name: &str| {
        let tensor = checkpoint.tensor(name)?;
        Ok(dtype.map_or_else(|| tensor.clone(), |dtype| tensor.cast(dtype)).into())
    };
    let mut config = checkpoint.config().clone();
    change(&mut config);
    PaliGemma::load(&config, &mut Weights::new(&mut get)).unwrap()
}

/// The tiny model `name` as f32.
pub(crate) fn load(name: &str) -> PaliGemma {
    load_changed(name, Some(DType::F32), |_| {})
}

/// Every tensor of the golden agrees, and they are those of `names`.
fn check(model: &PaliGemma, golden: &str, names: &[&str]) {
    let verdict =
        verify(model, &Golden::open(&path(&format!("{golden}.safetensors"))).unwrap(), DType::F32).unwrap();
    let computed: Vec<_> = verdict.tensors.iter().filter(|t| t.ok.is_some()).collect();
    assert!(verdict.ok(), "{golden}: {:?}", verdict.first_departure());
    assert_eq!(computed.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), names, "{golden}");
}

const MODELS: [&str; 5] = ["pg1_mqa", "pg1_gqa", "pg1_mha", "pg2", "pg2_27b_like"];

#[test]
fn transformers_agrees() {
    let all = ["image_features", "logits", "loss"];
    for model in MODELS {
        check(&load(model), &format!("hf_{model}"), &all);
    }
    check(&load("pg2"), "hf_pg2_two_images", &all);
    check(&load("pg1_mqa"), "hf_pg1_mqa_padded", &all);
}

#[test]
fn big_vision_agrees() {
    for model in MODELS {
        // big_vision's loss is taken on uncapped logits: for Gemma 2 it is another number.
        let names = &["image_features", "logits", "loss"][..if model.starts_with("pg1") { 3 } else { 2 }];
        check(&load(model), &format!("bv_{model}"), names);
    }
    check(&load("pg2"), "bv_pg2_two_images", &["image_features", "logits"]);
}

#[test]
fn the_sliding_window_is_off_unless_asked_for() {
    let windowed = |window| load_changed("pg2", Some(DType::F32), |c| c.text.sliding_window = Some(window));
    check(&windowed(12).with_sliding_window(true), "hf_pg2_window12", &["image_features", "logits", "loss"]);
    check(&windowed(12), "bv_pg2_window_off", &["image_features", "logits"]);
    let off = verify(&windowed(12), &Golden::open(&path("hf_pg2_window12.safetensors")).unwrap(), DType::F32);
    assert!(!off.unwrap().ok(), "without its window the answer is another one");
}

#[test]
fn beyond_4096_tokens() {
    let model = load("pg2_long");
    check(&model, "bv_pg2_long", &["logits"]);
    check(&model.with_sliding_window(true), "hf_pg2_long_window4096", &["logits"]);
}

#[test]
fn a_golden_of_another_model_departs() {
    let golden = Golden::open(&path("hf_pg1_mqa.safetensors")).unwrap();
    let changed = load_changed("pg1_mqa", Some(DType::F32), |c| c.text.rope_theta = 9_000.0);
    let verdict = verify(&changed, &golden, DType::F32).unwrap();
    assert_eq!(verdict.first_departure().unwrap().name, "logits");
    let error = verify(&load("pg1_gqa"), &golden, DType::F32).unwrap_err();
    assert!(error.to_string().contains("pixel values have shape [1, 3, 28, 28]"), "{error}");
}

/// bf16 weights and caches cost no more than in transformers, whose own drift stands here, printed by
/// reference/hf_bf16_drift.py. These models amplify: rounding the weights alone costs up to 0.073 of the logits.
#[test]
fn drift_in_bf16_is_below_transformers() {
    for (model, image_features, logits, loss) in [
        ("pg1_mqa", 0.0136, 0.0678, 0.0014),
        ("pg1_gqa", 0.0188, 0.0602, 0.0166),
        ("pg1_mha", 0.0061, 0.0232, 0.0017),
        ("pg2", 0.0146, 0.1009, 0.0038),
        ("pg2_27b_like", 0.0116, 0.0800, 0.0021),
    ] {
        let golden = Golden::open(&path(&format!("hf_{model}.safetensors"))).unwrap();
        let bf16 = load_changed(model, Some(DType::BF16), |_| {});
        let verdict = verify(&bf16, &golden, DType::BF16).unwrap();
        for (t, theirs) in verdict.tensors.iter().zip([image_features, logits, loss]) {
            // The loss is a single number, in which errors may cancel by luck; it gets the logits' bound.
            let bound = if t.name == "loss" { logits } else { theirs };
            assert!(t.max_rel <= bound, "{model} {}: {} > {theirs}", t.name, t.max_rel);
        }
    }
}

/// A safetensors file of f32 and i64 tensors.
struct File(Vec<u8>);

impl File {
    fn open(name: &str) -> File {
        File(std::fs::read(path(name)).unwrap())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let all = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        all.iter()
            .filter(|(_, v)| v.dtype() == safetensors::Dtype::F32)
            .map(|(name, v)| (name.to_owned(), Tensor::from_bytes(v.data(), DType::F32, v.shape())))
            .collect()
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.tensors().into_iter().find(|(n, _)| n == name).unwrap().1
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let all = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        all.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}

pub(crate) fn images(name: &str) -> Tensor {
    File::open(name).tensor("pixel_values")
}

/// Every intermediate that big_vision names, on its own.
#[test]
fn taps_equal_big_visions_intermediates() {
    for name in ["pg1_mqa", "pg2"] {
        let input = File::open(&format!("bv_{name}.safetensors"));
        let model = load(name);
        let mut pass = Pass::tapped();
        let images = model.encode_images(&input.tensor("pixel_values"), &mut pass).unwrap();
        let ids: Vec<u32> = input.integers("input_ids").iter().map(|&id| id as u32).collect();
        let text = &ids[images.shape()[0]..];
        let prefix_len = input.integers("token_type_ids").iter().filter(|&&t| t == 0).count();
        let x = PaliGemma::join(&images, &model.embed_text(text, &mut pass).unwrap());
        let mut cache = model.new_cache();
        let mut turns = [Turn { len: ids.len(), prefix_len, cache: &mut cache }];
        let y = model.forward(&x, &mut turns, &mut pass).unwrap();
        let taps = pass.taps();
        let golden = File::open(&format!("taps_{name}.safetensors")).tensors();
        assert_eq!(golden.len(), 15);
        for (key, want) in &golden {
            let ours = &taps.iter().find(|(n, _)| n == key).unwrap_or_else(|| panic!("no tap {key}")).1;
            assert_eq!(ours.len(), want.len(), "{key}");
            let scale = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = ours.as_f32().iter().zip(want.as_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-5 * scale, "{name} {key}: {off} of {scale}");
        }
        // Fused and taken apart, the numbers are the same.
        let plain = model.encode_images(&input.tensor("pixel_values"), &mut Pass::plain()).unwrap();
        assert_eq!(plain.as_f32(), images.as_f32());
        if name == "pg2" {
            let want = File::open("bv_text_pg2.safetensors").tensor("text_logits");
            let ours = model.uncapped_logits(&y.rows(images.shape()[0], ids.len()));
            let off = ours.as_f32().iter().zip(want.as_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-4, "text_logits: {off}");
        }
    }
}
