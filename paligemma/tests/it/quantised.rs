//! Quantised checkpoints: written, read, compared with the model that they were made of, and refused when broken.

use crate::checkpoint::{open, small, write};
use paligemma::{
    Kind, Result,
    checkpoint::{Checkpoint, Form, Scheme, convert, random_folder, write_folder},
    config::{Config, GemmaGeneration},
    drift::{Drift, drawn_pictures, drift, open_both},
    session::{SessionOptions, load_model},
};
use paligemma_tensor::{DType, Tensor, Weight};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const SCHEMES: [Scheme; 2] = [Scheme::Int8, Scheme::Int4];

/// A random model of a published shape, with its tokenizer.
fn random(config: &str, form: impl Into<Form>, folder: &Path) -> PathBuf {
    let config = Config::published(config).unwrap();
    random_folder(&config, folder, form.into(), 3, &mut |_, _| ControlFlow::Continue(())).unwrap();
    folder.to_path_buf()
}

fn convert_to(from: &Path, to: &Path, form: Option<Form>) -> Result<()> {
    let (mut last, mut total) = (0, 0);
    let summary = convert(&open(from), to, form, &mut |done, all| {
        (last, total) = (done, all);
        ControlFlow::Continue(())
    })?;
    assert_eq!((last, total), (summary.num_bytes, summary.num_bytes), "progress ends at its end");
    Ok(())
}

fn bytes(weight: &Weight) -> Vec<&[u8]> {
    weight.parts().iter().map(|part| part.bytes()).collect()
}

fn json_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn matrices_are_quantised_and_the_rest_is_as_it_was() {
    for config in ["tiny", "2-tiny"] {
        let at = tempfile::tempdir().unwrap();
        let plain = random(config, DType::BF16, &at.path().join("plain"));
        let first = open(&plain);
        for scheme in SCHEMES {
            let folder = at.path().join(scheme.name());
            convert_to(&plain, &folder, Some(scheme.into())).unwrap();
            let quantised = open(&folder);
            assert_eq!((quantised.scheme(), quantised.config()), (Some(scheme), first.config()));
            for name in first.names() {
                let before = first.tensor(&name).unwrap();
                let is_matrix = before.shape().len() == 2 && !name.contains("position_embedding");
                let of_decoder = name.starts_with("language_model.layers");
                let want = match (is_matrix, scheme) {
                    (false, _) => Weight::Plain(before),
                    (true, Scheme::Int4) if of_decoder => Weight::quantise_int4(&before),
                    _ => Weight::quantise_int8(&before),
                };
                let found = quantised.weight(&name).unwrap();
                assert_eq!(found.type_name(), want.type_name(), "{name}");
                assert_eq!(quantised.form(&name).unwrap().name(), want.type_name(), "{name}");
                assert!(bytes(&found) == bytes(&want), "{name}");
                assert_eq!(quantised.shape(&name), first.shape(&name), "{name}");
                assert_eq!(quantised.tensor(&name).is_err(), is_matrix, "{name}");
            }
            let bytes_of = |name: &String| match (first.shape(name).unwrap(), quantised.form(name).unwrap()) {
                (&[n, k], Form::Quantised(Scheme::Int8)) => n * k + 4 * n,
                (&[n, k], Form::Quantised(Scheme::Int4)) => n * k / 2 + n * k / 16,
                (shape, _) => 2 * shape.iter().product::<usize>(),
            };
            let sum = first.names().iter().map(bytes_of).sum::<usize>() as u64;
            assert!(quantised.num_bytes() == sum && sum < first.num_bytes() * 2 / 3, "{scheme}: {sum}");
            let file = fs::read(folder.join("model.safetensors")).unwrap();
            let header = u64::from_le_bytes(file[..8].try_into().unwrap());
            assert_eq!(file.len() as u64, 8 + header + sum, "the file has nothing else");
            let quantization = &json_of(&folder)["quantization_config"];
            assert_eq!(quantization["quant_method"], json!(format!("paligemma_{scheme}")));

            // The same again is the same to the byte, and a random model of this form is that of bf16 converted.
            let [again, asked, made] =
                ["again", "asked", "made"].map(|name| at.path().join(format!("{name}-{scheme}")));
            convert_to(&folder, &again, None).unwrap();
            convert_to(&folder, &asked, Some(scheme.into())).unwrap();
            random(config, scheme, &made);
            for other in [again, asked, made] {
                for file in ["model.safetensors", "config.json"] {
                    let of = |folder: &Path| fs::read(folder.join(file)).unwrap();
                    assert!(of(&folder) == of(&other), "{} {file}", other.display());
                }
            }
        }
    }
}

#[test]
fn a_type_makes_plain_numbers_again() {
    let at = tempfile::tempdir().unwrap();
    for scheme in SCHEMES {
        let folder = random("tiny", scheme, &at.path().join(scheme.name()));
        let quantised = open(&folder);
        for (dtype, out) in [(DType::F32, "f32"), (DType::BF16, "bf16"), (DType::F16, "f16.npz")] {
            let out = at.path().join(format!("{scheme}-{out}"));
            convert_to(&folder, &out, Some(dtype.into())).unwrap();
            let plain = open(&out);
            assert_eq!(plain.scheme(), None);
            for name in plain.names().iter().filter(|name| *name != "language_model.embed_tokens.weight") {
                let want = match quantised.weight(name).unwrap() {
                    Weight::Plain(tensor) => tensor,
                    weight => weight.to_f32(),
                };
                assert_eq!(plain.tensor(name).unwrap().bytes(), want.cast(dtype).bytes(), "{name}");
            }
            if out.is_dir() {
                assert!(json_of(&out).get("quantization_config").is_none());
            }
        }
    }
}

#[test]
fn what_would_lose_twice_or_has_no_place_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let plain = random("tiny", DType::BF16, &at.path().join("plain"));
    let [int8, int4] = SCHEMES.map(|scheme| random("tiny", scheme, &at.path().join(scheme.name())));
    let before = fs::read_dir(at.path()).unwrap().count();
    let cases: [(&Path, &str, Option<Form>, &[&str]); 6] = [
        (&plain, "a.npz", Some(Scheme::Int8.into()), &["an npz cannot be int8", "a folder"]),
        (&int8, "a.npz", None, &["the model is int8", "--dtype f32"]),
        (&int8, "a.npz", Some(Scheme::Int8.into()), &["an npz cannot be int8"]),
        (&int4, "a.npz", None, &["the model is int4", "--dtype f32"]),
        (&int8, "a", Some(Scheme::Int4.into()), &["the model is int8", "as int4"]),
        (&int4, "a", Some(Scheme::Int8.into()), &["the model is int4", "as int8"]),
    ];
    for (from, out, form, says) in cases {
        let e = convert_to(from, &at.path().join(out), form).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        let text = e.to_string();
        assert!(says.iter().all(|say| text.contains(say)), "{from:?} {out}: {text}");
    }
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), before, "nothing is left of them");
    // Infinity has no place among steps.
    let infinite = at.path().join("infinite");
    let config = small(GemmaGeneration::Gemma1, 1);
    let mut make =
        |_: &str, shape: &[usize]| Ok(Tensor::from_f32(vec![f32::INFINITY; shape.iter().product()], shape));
    write_folder(&config, &infinite, DType::F32, &[], &mut make).unwrap();
    let e = convert_to(&infinite, &at.path().join("a"), Some(Scheme::Int8.into())).unwrap_err();
    assert!(e.kind() == Kind::Model && e.to_string().contains("holds inf, which int8 cannot"), "{e}");
}

/// Inputs that are no multiple of 32 have no groups: such a matrix is int8 in a model of int4 too.
#[test]
fn ragged_inputs_are_int8() {
    let at = tempfile::tempdir().unwrap();
    let config = small(GemmaGeneration::Gemma2, 2);
    let folder = at.path().join("plain");
    let mut make = |_: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        Ok(Tensor::from_f32((0..n).map(|i| (i as f32).sin()).collect(), shape))
    };
    write_folder(&config, &folder, DType::F32, &[], &mut make).unwrap();
    let out = at.path().join("out");
    convert_to(&folder, &out, Some(Scheme::Int4.into())).unwrap();
    let (plain, quantised) = (open(&folder), open(&out));
    assert_eq!(quantised.scheme(), Some(Scheme::Int4));
    let forms: Vec<&str> = quantised.forms().iter().map(|(form, ..)| form.name()).collect();
    assert_eq!(forms, ["int8", "f32"]);
    for name in plain.names() {
        let (before, after) = (plain.tensor(&name).unwrap(), quantised.weight(&name).unwrap());
        match after {
            Weight::Plain(tensor) => assert_eq!(tensor.bytes(), before.bytes(), "{name}"),
            weight => assert!(bytes(&weight) == bytes(&Weight::quantise_int8(&before)), "{name}"),
        }
    }
}

/// A tensor of a file: name, type, shape, bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);
type Change = dyn Fn(&mut Vec<Stored>, &mut HashMap<String, String>);

/// Writes the weights of `folder` anew with `change` made to their tensors and metadata.
fn rewrite(folder: &Path, change: &Change) {
    let path = folder.join("model.safetensors");
    let file = fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let mut all: Vec<Stored> = tensors
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec()))
        .collect();
    change(&mut all, &mut metadata);
    let views = all
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn a_broken_one_is_refused_by_name() {
    const UP: &str = "language_model.model.layers.1.mlp.up_proj.weight";
    const UP_SCALE: &str = "language_model.model.layers.1.mlp.up_proj.weight_scale";
    const NORM: &str = "language_model.model.norm.weight";
    const POSITIONS: &str = "vision_tower.vision_model.embeddings.position_embedding.weight";
    fn of<'a>(all: &'a mut [Stored], name: &str) -> &'a mut Stored {
        all.iter_mut().find(|t| t.0 == name).unwrap()
    }
    let cases: [(Scheme, &Change, &[&str]); 13] = [
        (Scheme::Int8, &|all, _| all.retain(|t| t.0 != UP_SCALE), &[UP, "no scale", UP_SCALE]),
        (Scheme::Int4, &|all, _| all.retain(|t| t.0 != UP_SCALE), &[UP, "no scale", UP_SCALE]),
        (Scheme::Int8, &|all, _| all.retain(|t| t.0 != UP), &["no tensor", "mlp.up_proj.weight"]),
        (
            Scheme::Int8,
            &|all, _| {
                let scale = of(all, UP_SCALE);
                scale.2 = vec![scale.2[0], 1];
            },
            &[UP_SCALE, "of shape", "expected F32"],
        ),
        (
            Scheme::Int4,
            &|all, _| {
                let scale = of(all, UP_SCALE);
                (scale.1, scale.2[1]) = (Dtype::U8, scale.2[1] * 2);
            },
            &[UP_SCALE, "U8", "expected BF16"],
        ),
        (
            Scheme::Int8,
            &|all, _| {
                let values = of(all, UP);
                values.2.pop();
            },
            &[UP, "has shape", "for int8"],
        ),
        (
            Scheme::Int4,
            &|all, _| {
                let values = of(all, UP);
                values.2.reverse();
            },
            &[UP, "has shape", "for int4 or", "for int8"],
        ),
        (
            Scheme::Int8,
            &|all, _| {
                let values = of(all, UP);
                values.1 = Dtype::I8;
            },
            &[UP, "of type I8"],
        ),
        (
            Scheme::Int8,
            &|all, _| {
                let scale = of(all, UP_SCALE).clone();
                all.push((format!("{NORM}_scale"), scale.1, scale.2, scale.3));
            },
            &[NORM, "has a scale"],
        ),
        (
            Scheme::Int8,
            &|all, _| {
                let positions = of(all, POSITIONS);
                (positions.1, positions.2[1]) = (Dtype::U8, positions.2[1] * 2);
            },
            &[POSITIONS, "of type U8", "only matrices"],
        ),
        (
            Scheme::Int8,
            &|_, metadata| drop(metadata.remove("paligemma_quantisation")),
            &["is none", "\"int8\""],
        ),
        (
            Scheme::Int8,
            &|_, metadata| drop(metadata.insert("paligemma_quantisation".into(), "int2".into())),
            &["is \"int2\"", "\"int8\""],
        ),
        (
            Scheme::Int8,
            &|all, _| {
                all.retain(|t| !t.0.ends_with("_scale"));
                for t in all.iter_mut().filter(|t| t.1 == Dtype::U8) {
                    t.2.pop();
                    let len = t.2.iter().product::<usize>();
                    (t.1, t.3) = (Dtype::BF16, vec![0; 2 * len]);
                }
            },
            &["quantization_config says int8", "no tensor is quantised"],
        ),
    ];
    for (i, (scheme, change, says)) in cases.into_iter().enumerate() {
        let at = tempfile::tempdir().unwrap();
        let folder = random("tiny", scheme, &at.path().join("m"));
        rewrite(&folder, &|_, _| {});
        open(&folder);
        rewrite(&folder, change);
        let e = Checkpoint::open(&folder).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.kind(), Kind::Model, "{i}: {text}");
        assert!(says.iter().all(|say| text.contains(say)), "{i}: {text}");
    }
}

/// A stranger's file may mix forms where the model multiplies two matrices at once.
#[test]
fn gate_and_up_have_one_form() {
    let at = tempfile::tempdir().unwrap();
    let folder = random("tiny", Scheme::Int4, &at.path().join("m"));
    rewrite(&folder, &|all, _| {
        all.retain(|t| !t.0.ends_with("layers.1.mlp.up_proj.weight_scale"));
        let up = all.iter_mut().find(|t| t.0.ends_with("layers.1.mlp.up_proj.weight")).unwrap();
        up.2[1] *= 2;
        (up.1, up.3) = (Dtype::BF16, vec![0; 2 * up.2[0] * up.2[1]]);
    });
    let checkpoint = open(&folder);
    let e = load_model(&checkpoint, None, None, 16, 16, 1).unwrap_err().to_string();
    assert!(
        e.contains("gate_proj") && e.contains("is int4 and") && e.contains("up_proj.weight\" is bf16"),
        "{e}"
    );
    assert!(load_model(&checkpoint, Some(DType::BF16), None, 16, 16, 1).is_ok());
}

#[test]
fn config_and_weights_say_the_same() {
    let cases = [
        (json!({ "quant_method": "gptq", "bits": 4 }), "quantization_config.quant_method is \"gptq\""),
        (json!({ "load_in_8bit": true }), "quantization_config.quant_method is absent"),
        (json!("int8"), "quantization_config.quant_method is absent"),
        (
            json!({ "quant_method": "paligemma_int4", "group_size": 64 }),
            "quantization_config.group_size is 64",
        ),
        (
            json!({ "quant_method": "paligemma_int4", "group_size": 32 }),
            "paligemma_quantisation in the file's metadata is \"int8\"",
        ),
        (Value::Null, "paligemma_quantisation in the file's metadata is \"int8\""),
    ];
    for (quantization, says) in cases {
        let at = tempfile::tempdir().unwrap();
        let folder = random("tiny", Scheme::Int8, &at.path().join("m"));
        let mut config = json_of(&folder);
        config["quantization_config"] = quantization;
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let e = Checkpoint::open(&folder).unwrap_err();
        assert!(e.kind() == Kind::Model && e.to_string().contains(says), "{e}");
    }
    // Plain weights whose config says that they are not.
    let at = tempfile::tempdir().unwrap();
    let folder = at.path().join("m");
    write(&small(GemmaGeneration::Gemma1, 1), &folder, DType::BF16);
    let mut config = json_of(&folder);
    config["quantization_config"] = json!({ "quant_method": "paligemma_int8" });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let e = Checkpoint::open(&folder).unwrap_err();
    assert!(e.to_string().contains("metadata is none"), "{e}");
}

fn compare(a: &Path, b: &Path) -> Drift {
    let [a, b] = open_both(a, b, 6).unwrap();
    drift([&a, &b], drawn_pictures().map(Ok), 6).unwrap()
}

#[test]
fn int8_is_nearer_than_int4_and_the_same_is_the_same() {
    for config in ["tiny", "2-tiny"] {
        let at = tempfile::tempdir().unwrap();
        let plain = random(config, DType::BF16, &at.path().join("plain"));
        let same = compare(&plain, &plain);
        assert_eq!((same.inputs, same.top1_agreement, same.mean_kl, same.max_kl), (12, 1.0, 0.0, 0.0));
        assert!(same.positions >= 24 && same.image_features == 0.0);
        let c = Config::published(config).unwrap();
        assert_eq!(same.layers.len(), c.vision.num_hidden_layers + c.text.num_hidden_layers);
        assert!(same.layers.iter().all(|(_, rms)| *rms == 0.0), "{same:?}");
        let [int8, int4] = SCHEMES.map(|scheme| {
            let folder = at.path().join(scheme.name());
            convert_to(&plain, &folder, Some(scheme.into())).unwrap();
            compare(&plain, &folder)
        });
        for (drift, kl, layer) in [(&int8, 2e-3, 0.05), (&int4, 0.1, 0.4)] {
            assert!(drift.mean_kl > 0.0 && drift.mean_kl <= drift.max_kl, "{drift:?}");
            assert!(drift.mean_kl < kl && drift.worst_layer().unwrap().1 < layer, "{drift:?}");
            assert!(drift.image_features > 0.0 && drift.image_features < 0.05, "{drift:?}");
        }
        assert!(int8.mean_kl * 3.0 < int4.mean_kl, "{int8:?} {int4:?}");
        assert!(int8.worst_layer().unwrap().1 < int4.worst_layer().unwrap().1);
        assert!(int4.worst_layer().unwrap().0.starts_with("llm/layers/"), "{int4:?}");
    }
}

#[test]
fn other_models_are_no_drift() {
    let at = tempfile::tempdir().unwrap();
    let one = random("tiny", DType::BF16, &at.path().join("one"));
    let two = random("2-tiny", DType::BF16, &at.path().join("two"));
    let e = open_both(&one, &two, 4).unwrap_err();
    assert!(e.kind() == Kind::Usage && e.to_string().contains("configurations differ in"), "{e}");
    let other = random("tiny", DType::F32, &at.path().join("other"));
    let text = fs::read_to_string(other.join("tokenizer.json")).unwrap();
    assert!(text.contains("<loc0007>"));
    let swapped =
        text.replace("<loc0007>", "<x>").replace("<loc0008>", "<loc0007>").replace("<x>", "<loc0008>");
    fs::write(other.join("tokenizer.json"), swapped).unwrap();
    let e = open_both(&one, &other, 4).unwrap_err();
    assert!(e.kind() == Kind::Usage && e.to_string().contains("tokenizers differ: id"), "{e}");
    let [a, b] = open_both(&one, &one, 4).unwrap();
    let e = drift([&a, &b], [], 4).unwrap_err();
    assert!(e.kind() == Kind::Input && e.to_string().contains("no picture"), "{e}");
}

/// Made plain in memory, the model is the one that `convert --dtype` writes; the memory asked for is what the file has.
#[test]
fn a_quantised_model_is_opened_as_plain_numbers_too() {
    let at = tempfile::tempdir().unwrap();
    for scheme in SCHEMES {
        let folder = random("tiny", scheme, &at.path().join(scheme.name()));
        let plain = at.path().join(format!("{scheme}-plain"));
        convert_to(&folder, &plain, Some(DType::F32.into())).unwrap();
        let answer = |path: &Path, dtype| {
            let options = SessionOptions { dtype, ..SessionOptions::default() };
            let session = paligemma::session::Session::open(path, &options).unwrap();
            let prompt = session.prompt(&drawn_pictures()[1..2], "caption en").unwrap();
            let options = paligemma::generate::Options { max_tokens: 5, ..Default::default() };
            let (replies, _) = session.answer(&[prompt], &options, &[], None, &mut |_, _| {}).unwrap();
            (session.dequantised(), replies[0].answer.logprobs.clone())
        };
        let (said, wide) = answer(&folder, Some(DType::F32));
        assert_eq!(said, Some(scheme));
        assert_eq!((None, wide.clone()), answer(&plain, None));
        let (said, stored) = answer(&folder, None);
        assert!(said.is_none() && stored.len() == wide.len());
        assert!(load_model(&open(&folder), None, None, 16, 16, 1).is_ok());
    }
}
