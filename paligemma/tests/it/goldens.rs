//! What transformers and big_vision made of the tiny models is what we make of them.

use paligemma::{
    checkpoint::Checkpoint,
    config::Config,
    model::{PaliGemma, Pass, Turn, Weights},
    verify::{Golden, load_wanting_gradients, verify},
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
    load_wanting_gradients(&config, &mut get).unwrap()
}

/// The tiny model `name` as f32.
pub(crate) fn load(name: &str) -> PaliGemma {
    load_changed(name, Some(DType::F32), |_| {})
}

/// Every tensor of the golden agrees, and they are those of `names`.
fn check(model: &PaliGemma, golden: &str, names: &[&str]) {
    let verdict =
        verify(model, &Golden::open(&path(&format!("{golden}.safetensors"))).unwrap(), DType::F32).unwrap();
    assert!(verdict.ok(), "{golden}: {:?}", verdict.first_departure());
    let computed: Vec<&str> = verdict.tensors.iter().map(|t| t.name.as_str()).collect();
    let (gradients, others): (Vec<&str>, Vec<&str>) =
        computed.into_iter().partition(|name| name.starts_with("grad/"));
    assert_eq!(others, names, "{golden}");
    let stored = File::open(&format!("{golden}.safetensors")).tensors();
    assert_eq!(
        gradients.len(),
        stored.iter().filter(|(name, _)| name.starts_with("grad/")).count(),
        "{golden}"
    );
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

/// Every position's likeliest token is the reference's, wherever the golden's first is ahead of its second by more than
/// the logits may differ.
#[test]
fn the_likeliest_token_is_the_references_at_thousands_of_positions() {
    let mut compared = 0;
    let goldens =
        MODELS.iter().flat_map(|model| [(*model, format!("hf_{model}")), (*model, format!("bv_{model}"))]);
    let more = [("pg2", "bv_pg2_two_images".to_owned()), ("pg2_long", "bv_pg2_long".to_owned())];
    for (model, golden) in goldens.chain(more) {
        let file = File::open(&format!("{golden}.safetensors"));
        let model = load(model);
        let ours = model.logits(&read_whole(&model, &file, &mut Pass::plain()));
        let want = file.tensor("logits");
        let (rows, v) = (want.shape()[1], want.shape()[2]);
        assert_eq!(ours.shape(), [rows, v], "{golden}");
        let scale = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
        for (i, (ours, want)) in ours.as_f32().chunks(v).zip(want.as_f32().chunks(v)).enumerate() {
            let order = |row: &[f32]| {
                let mut ids: Vec<usize> = (0..v).collect();
                ids.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
                ids
            };
            let likeliest = order(want);
            if want[likeliest[0]] - want[likeliest[1]] > 2e-4 * scale {
                compared += 1;
                assert_eq!(order(ours)[0], likeliest[0], "{golden}, position {i}");
            }
        }
    }
    assert!(compared >= 4000, "{compared}");
}

/// Pitfall 1: what stands where `attention_mask` is 0 changes nothing.
#[test]
fn what_is_padding_does_not_matter() {
    let model = load("pg1_mqa");
    let bytes = std::fs::read(path("hf_pg1_mqa_padded.safetensors")).unwrap();
    let of = |bytes: &[u8]| {
        let at = tempfile::tempdir().unwrap();
        std::fs::write(at.path().join("golden"), bytes).unwrap();
        verify(&model, &Golden::open(&at.path().join("golden")).unwrap(), DType::F32).unwrap()
    };
    let base = of(&bytes);
    assert!(base.ok());
    let file = File(bytes);
    let all = safetensors::SafeTensors::deserialize(&file.0).unwrap();
    let ids = all.tensor("input_ids").unwrap().data().as_ptr() as usize - file.0.as_ptr() as usize;
    let mask = file.integers("attention_mask");
    let mut changed = file.0.clone();
    for (i, _) in mask.iter().enumerate().filter(|(_, m)| **m == 0) {
        changed[ids + 8 * i..ids + 8 * i + 8].copy_from_slice(&(40 + i as i64).to_le_bytes());
    }
    assert_ne!(changed, file.0);
    assert_eq!(of(&changed), base);
    // A token beside them does.
    let first = mask.iter().position(|m| *m == 1).unwrap();
    let last = mask.len() - 2;
    assert!(first > 0 && mask[last] == 1);
    changed[ids + 8 * last..ids + 8 * last + 8].copy_from_slice(&40i64.to_le_bytes());
    assert_ne!(of(&changed), base);
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

/// Pitfall 12: how far bf16 is from f32 along the stream, from the first convolution to the head: nowhere farther than
/// transformers' image features and logits are in the end (see the test before). What a block adds is left out: its own
/// scale is smaller than that of the stream it is added to. `--nocapture` prints the report.
#[allow(clippy::print_stdout, reason = "the report")]
#[test]
fn drift_in_bf16_layer_by_layer() {
    for (model, image_features, logits) in [("pg1_mqa", 0.0136, 0.0678), ("pg2", 0.0146, 0.1009)] {
        let golden = File::open(&format!("bv_{model}.safetensors"));
        let taps = |dtype| {
            let mut pass = Pass::tapped();
            read_whole(&load_changed(model, Some(dtype), |_| {}), &golden, &mut pass);
            let is_stream = |name: &str| !name.ends_with("/sa") && !name.ends_with("/mlp");
            pass.taps().into_iter().filter(|(name, _)| is_stream(name)).collect::<Vec<_>>()
        };
        let (f32, bf16) = (taps(DType::F32), taps(DType::BF16));
        assert!(f32.len() >= 12 && f32.len() == bf16.len());
        for ((name, want), (also, ours)) in f32.iter().zip(&bf16) {
            assert_eq!(name, also);
            let scale = want.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = ours.as_f32().iter().zip(want.as_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            println!("{model} {name:28} {:.4}", off / scale);
            let most = if name.starts_with("img/") { image_features } else { logits };
            assert!(off <= most * scale, "{model} {name}: {off} of {scale}");
        }
    }
}

/// Pitfall 12: activations beyond what f16 can hold are numbers all the same, as they are f32 beside f16 weights.
#[test]
fn beside_f16_weights_nothing_overflows() {
    let checkpoint = Checkpoint::open(&path("pg1_mqa")).unwrap();
    let load = |dtype| {
        let mut get = |name: &str| {
            let tensor = checkpoint.tensor(name)?;
            let is_raised =
                name.ends_with("patch_embedding.bias") || name.ends_with("position_embedding.weight");
            let raise = |(i, x): (usize, f32)| if is_raised { x + [6e4, -6e4][i % 2] } else { x };
            let raised = tensor.to_f32_vec().into_iter().enumerate().map(raise).collect();
            Ok(Tensor::from_f32(raised, tensor.shape()).cast(DType::F16).cast(dtype).into())
        };
        PaliGemma::load(checkpoint.config(), &mut Weights::new(&mut get)).unwrap()
    };
    let golden = File::open("bv_pg1_mqa.safetensors");
    let mut pass = Pass::tapped();
    let half = read_whole(&load(DType::F16), &golden, &mut pass);
    let taps = pass.taps();
    let largest = taps.iter().flat_map(|(_, x)| x.as_f32()).fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 1e5 && largest.is_finite(), "{largest}");
    let whole = read_whole(&load(DType::F32), &golden, &mut Pass::plain());
    let scale = whole.as_f32().iter().fold(0f32, |m, x| m.max(x.abs()));
    for (a, b) in half.as_f32().iter().zip(whole.as_f32()) {
        assert!((a - b).abs() <= 1e-3 * scale, "{a} {b} of {scale}");
    }
}

/// The names of gradients in a golden may have any prefix of any version; other names are refused.
#[test]
fn gradients_of_every_spelling_are_known() {
    let golden = File::open("hf_pg1_mqa.safetensors");
    let all = safetensors::SafeTensors::deserialize(&golden.0).unwrap();
    let at = tempfile::tempdir().unwrap();
    let open_renamed = |rename: &dyn Fn(&str) -> String| {
        let renamed = all.iter().map(|(name, view)| match name.strip_prefix("grad/") {
            Some(ours) => (format!("grad/{}", rename(ours)), view),
            None => (name.to_owned(), view),
        });
        safetensors::serialize_to_file(renamed, None, &at.path().join("golden")).unwrap();
        Golden::open(&at.path().join("golden"))
    };
    let ours = |name: &str| paligemma::checkpoint::canonical(name).unwrap();
    let known: [&dyn Fn(&str) -> String; 5] = [
        &str::to_owned,
        &ours,
        &|name| format!("model.{}", ours(name)),
        &|name| paligemma::checkpoint::names::hugging_face(&ours(name)),
        &|name| format!("model.{}", paligemma::checkpoint::names::hugging_face(&ours(name))),
    ];
    for rename in known {
        open_renamed(rename).unwrap();
    }
    let strange: [&dyn Fn(&str) -> String; 2] =
        [&|name| format!("{name}.x"), &|name| format!("encoder.{name}")];
    for rename in strange {
        let e = open_renamed(rename).unwrap_err();
        assert!(
            e.kind() == paligemma::Kind::Input && e.what().contains("a golden has no tensor \"grad/"),
            "{e}"
        );
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

/// A golden's images and text through the whole model at once → `pre_logits`, a row a position.
fn read_whole(model: &PaliGemma, golden: &File, pass: &mut Pass<'_>) -> Tensor {
    let images = model.encode_images(&golden.tensor("pixel_values"), pass).unwrap();
    let ids: Vec<u32> = golden.integers("input_ids").iter().map(|&id| id as u32).collect();
    let text = &ids[images.shape()[0]..];
    let prefix_len = golden.integers("token_type_ids").iter().filter(|&&t| t == 0).count();
    let x = PaliGemma::join(&images, &model.embed_text(text, pass).unwrap(), pass);
    let mut cache = model.new_cache();
    let mut turns = [Turn { len: ids.len(), prefix_len, cache: &mut cache }];
    model.forward(&x, &mut turns, pass).unwrap().into_tensor()
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
        let y = read_whole(&model, &input, &mut pass);
        let taps = pass.taps();
        let images = &taps.iter().find(|(n, _)| n == "img/zimg").unwrap().1;
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
        assert_eq!(plain.tensor().as_f32(), images.as_f32());
        if name == "pg2" {
            let want = File::open("bv_text_pg2.safetensors").tensor("text_logits");
            let ours = model.uncapped_logits(&y.rows(images.shape()[0], y.shape()[0]));
            let off = ours.as_f32().iter().zip(want.as_f32()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-4, "text_logits: {off}");
        }
    }
}
