//! Checkpoints of other programs are read, and conversions lose no bit.

use paligemma::{
    Kind,
    checkpoint::{Checkpoint, Format, convert, names, write_folder},
    config::{Config, GemmaGeneration, TextConfig, VisionConfig},
};
use paligemma_tensor::{DType, Tensor};
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/checkpoint").join(name)
}

pub(crate) fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All tensors: type, shape, bytes.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let one = |name: String| {
        let t = checkpoint.tensor(&name).unwrap();
        assert_eq!(checkpoint.form(&name), Some(t.dtype().into()));
        assert_eq!(checkpoint.shape(&name), Some(t.shape()));
        (name, (t.dtype(), t.shape().to_vec(), t.bytes().to_vec()))
    };
    checkpoint.names().into_iter().map(one).collect()
}

/// The same without the embedding rows from `rows` on.
fn without_rows(checkpoint: &Checkpoint, rows: usize) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let mut all = contents(checkpoint);
    let (dtype, shape, bytes) = all.get_mut("language_model.embed_tokens.weight").unwrap();
    bytes.truncate(rows * shape[1] * dtype.size());
    shape[0] = rows;
    all
}

/// A small model: Gemma 1 with one, Gemma 1 with all, or Gemma 2 with half as many key heads as query heads.
pub(crate) fn small(generation: GemmaGeneration, key_heads: usize) -> Config {
    let mut config = Config::published(match generation {
        GemmaGeneration::Gemma1 => "tiny",
        GemmaGeneration::Gemma2 => "2-tiny",
    })
    .unwrap();
    config.vision = VisionConfig {
        image_size: 12,
        patch_size: 3,
        hidden_size: 6,
        intermediate_size: 10,
        num_attention_heads: 2,
        ..config.vision
    };
    config.text = TextConfig {
        vocab_size: 20,
        hidden_size: 12,
        intermediate_size: 14,
        num_attention_heads: 4,
        num_key_value_heads: key_heads,
        head_dim: 6,
        query_pre_attn_scalar: 6.0,
        ..config.text
    };
    config.image_token_index = 17;
    config
}

/// A tensor of every bit pattern that pseudo-random numbers make, NaNs with payloads among them.
pub(crate) fn bits(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let mut state = name.bytes().fold(1u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let len = shape.iter().product::<usize>() * dtype.size();
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    // -0.0, infinity, and a signalling NaN with a payload, where they fit.
    let special: &[&[u8]] = match dtype {
        DType::F32 => &[&[0, 0, 0, 0x80], &[0, 0, 0x80, 0x7f], &[1, 0x20, 0xa0, 0x7f]],
        DType::BF16 => &[&[0, 0x80], &[0x80, 0x7f], &[0xa1, 0x7f]],
        DType::F16 => &[&[0, 0x80], &[0, 0x7c], &[0x21, 0x7d]],
        DType::U8 => &[],
    };
    for (i, value) in special.iter().enumerate().filter(|(i, v)| (i + 1) * v.len() <= len) {
        bytes[i * value.len()..(i + 1) * value.len()].copy_from_slice(value);
    }
    Tensor::from_bytes(&bytes, dtype, shape)
}

/// Writes `config` with such tensors.
pub(crate) fn write(config: &Config, folder: &Path, dtype: DType) {
    write_folder(config, folder, dtype, &[], &mut |name, shape| Ok(bits(name, shape, dtype))).unwrap();
}

fn quietly(input: &Checkpoint, out: &Path, dtype: Option<DType>) -> paligemma::Result<()> {
    let (mut last, mut total) = (0, 0);
    let summary = convert(input, out, dtype.map(Into::into), &mut |done, all| {
        assert!(done >= last && done <= all);
        (last, total) = (done, all);
        ControlFlow::Continue(())
    })?;
    assert_eq!((last, total), (summary.num_bytes, summary.num_bytes));
    Ok(())
}

#[test]
fn files_of_other_programs_hold_the_same_numbers() {
    // Each folder of transformers and the npz that numpy wrote of the same model.
    let cases = [
        ("gemma1-mqa", "mqa.npz", DType::F32),
        ("gemma1-mqa", "mqa-deflated.npz", DType::F32),
        ("gemma1-mha", "mha.npz", DType::F16),
        ("gemma2-gqa", "gqa.npz", DType::BF16),
        ("gemma2-gqa", "gqa-split.npz", DType::BF16),
        ("gemma2-gqa", "gqa-split.npz.part1", DType::BF16),
        ("gemma1-mqa/model.safetensors", "mqa.npz", DType::F32),
    ];
    for (folder, npz, dtype) in cases {
        let (theirs, ours) = (open(&golden(folder)), open(&golden(npz)));
        assert_eq!((theirs.format(), ours.format()), (Format::Safetensors, Format::Npz));
        assert_eq!(theirs.forms().len(), 1, "{folder}");
        assert_eq!(theirs.forms()[0].0, dtype.into(), "{folder}");
        assert_eq!(without_rows(&theirs, 20), contents(&ours), "{folder} and {npz}");
        ours.verify().unwrap();
        // The shapes of the npz tell the model, but for the rows that it does not have.
        let mut expected = theirs.config().clone();
        expected.text.vocab_size = 20;
        assert_eq!(ours.config(), &expected, "{npz}");
        assert_eq!(theirs.num_parameters() - ours.num_parameters(), 4 * 12);
    }
}

#[test]
fn any_order_of_reading_a_deflated_npz_gives_the_same() {
    let expected = contents(&open(&golden("mqa.npz")));
    let deflated = open(&golden("mqa-deflated.npz"));
    let mut names = deflated.names();
    names.reverse();
    for _ in 0..2 {
        for name in &names {
            assert_eq!(deflated.tensor(name).unwrap().bytes(), expected[name].2, "{name}");
        }
    }
}

#[test]
fn round_trips_keep_every_bit() {
    let models = [(GemmaGeneration::Gemma1, 1), (GemmaGeneration::Gemma1, 4), (GemmaGeneration::Gemma2, 2)];
    for (generation, key_heads) in models {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let at = tempfile::tempdir().unwrap();
            let (folder, npz, back, npz2) =
                (at.path().join("a"), at.path().join("b.npz"), at.path().join("c"), at.path().join("d.npz"));
            let config = small(generation, key_heads);
            write(&config, &folder, dtype);
            let first = open(&folder);
            assert_eq!(first.config(), &config);

            quietly(&first, &npz, None).unwrap();
            let second = open(&npz);
            assert!(!at.path().join("b.config.json").exists(), "shapes tell this model");
            assert_eq!(without_rows(&first, 17), contents(&second));
            let mut fewer = config.clone();
            fewer.text.vocab_size = 17;
            assert_eq!(second.config(), &fewer);

            quietly(&second, &back, None).unwrap();
            let third = open(&back);
            assert_eq!(contents(&third), contents(&second));
            assert_eq!(third.config(), &fewer);

            quietly(&third, &npz2, None).unwrap();
            assert_eq!(
                fs::read(&npz).unwrap(),
                fs::read(&npz2).unwrap(),
                "an npz of an npz is the same file"
            );
        }
    }
}

#[test]
fn the_npz_of_other_programs_comes_back_to_the_bit() {
    for name in ["mqa.npz", "mqa-deflated.npz", "mha.npz", "gqa.npz", "gqa-split.npz"] {
        let at = tempfile::tempdir().unwrap();
        let (folder, npz) = (at.path().join("a"), at.path().join("b.npz"));
        let theirs = open(&golden(name));
        quietly(&theirs, &folder, None).unwrap();
        assert_eq!(open(&folder).config().text.vocab_size, theirs.config().text.vocab_size, "{name}");
        quietly(&open(&folder), &npz, None).unwrap();
        assert_eq!(contents(&open(&npz)), contents(&theirs), "{name}");
    }
}

#[test]
fn types_may_differ_between_tensors_but_not_within_a_stack() {
    let at = tempfile::tempdir().unwrap();
    let config = small(GemmaGeneration::Gemma2, 2);
    let path = at.path().join("mixed");
    // The image encoder in f32, norms in f16, the rest in bf16: each stack has one type.
    let dtype = |name: &str| match name {
        n if n.starts_with("vision_tower") => DType::F32,
        n if n.contains("norm") => DType::F16,
        _ => DType::BF16,
    };
    write_mixed(&config, &path, &dtype);
    let mixed = open(&path);
    assert_eq!(mixed.forms().len(), 3);
    let (npz, back) = (at.path().join("mixed.npz"), at.path().join("back"));
    quietly(&mixed, &npz, None).unwrap();
    assert_eq!(without_rows(&mixed, 17), contents(&open(&npz)));
    quietly(&open(&npz), &back, None).unwrap();
    assert_eq!(without_rows(&mixed, 17), contents(&open(&back)));

    let uneven = at.path().join("uneven");
    let odd = "language_model.layers.1.mlp.up_proj.weight";
    write_mixed(&config, &uneven, &|name| if name == odd { DType::F32 } else { DType::BF16 });
    let uneven = open(&uneven);
    let e = quietly(&uneven, &at.path().join("uneven.npz"), None).unwrap_err();
    assert_eq!(e.kind(), Kind::Usage);
    let text = e.to_string();
    assert!(text.contains("gating_einsum") && text.contains(odd) && text.contains("--dtype"), "{text}");
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), 4, "nothing is left of it");
    quietly(&uneven, &at.path().join("even.npz"), Some(DType::BF16)).unwrap();
}

/// A safetensors folder whose types differ, written by the safetensors crate under the new names.
fn write_mixed(config: &Config, folder: &Path, dtype: &dyn Fn(&str) -> DType) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_json(None).to_string()).unwrap();
    let tensors: Vec<(String, Tensor)> = names::tensors(config, names::is_fused(config))
        .into_iter()
        .map(|t| (format!("model.{}", t.name), bits(&t.name, &t.shape, dtype(&t.name))))
        .collect();
    let views = tensors.iter().map(|(name, t)| {
        let dtype = match t.dtype() {
            DType::F32 => safetensors::Dtype::F32,
            DType::BF16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
            DType::U8 => safetensors::Dtype::U8,
        };
        (name, safetensors::tensor::TensorView::new(dtype, t.shape().to_vec(), t.bytes()).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn a_type_may_be_asked_for() {
    let at = tempfile::tempdir().unwrap();
    let source = open(&golden("mqa.npz"));
    for dtype in [DType::BF16, DType::F16] {
        let out = at.path().join(dtype.name());
        quietly(&source, &out, Some(dtype)).unwrap();
        let cast = open(&out);
        for name in source.names() {
            let expected = source.tensor(&name).unwrap().cast(dtype);
            assert_eq!(cast.tensor(&name).unwrap().bytes(), expected.bytes(), "{name}");
        }
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        let name = if dtype == DType::BF16 { "bfloat16" } else { "float16" };
        assert_eq!(json["torch_dtype"], name);
    }
    // 1e30 is no number of f16.
    let big = at.path().join("big");
    let config = small(GemmaGeneration::Gemma1, 1);
    let ones = |_: &str, shape: &[usize]| Ok(Tensor::from_f32(vec![1e30; shape.iter().product()], shape));
    write_folder(&config, &big, DType::F32, &[], &mut { ones }).unwrap();
    let e = quietly(&open(&big), &at.path().join("big.npz"), Some(DType::F16)).unwrap_err();
    assert!(e.to_string().contains("f16") && e.hint_text().unwrap().contains("bf16"), "{e}");
}

#[test]
fn what_an_npz_cannot_tell_goes_beside_it() {
    let changes: [fn(&mut Config); 7] = [
        |c| c.text.query_pre_attn_scalar = 3.0,
        |c| c.text.attn_logit_softcapping = None,
        |c| c.text.rms_norm_eps = 1e-5,
        |c| c.text.rope_theta = 500.0,
        |c| c.text.sliding_window = Some(8),
        |c| c.vision.layer_norm_eps = 1e-5,
        |c| c.image_token_index = 50,
    ];
    for change in changes {
        let at = tempfile::tempdir().unwrap();
        let mut config = small(GemmaGeneration::Gemma2, 2);
        change(&mut config);
        let folder = at.path().join("a");
        write(&config, &folder, DType::F16);
        let npz = at.path().join("b.npz");
        quietly(&open(&folder), &npz, None).unwrap();
        assert!(at.path().join("b.config.json").exists());
        config.text.vocab_size = config.text.vocab_size.min(config.image_token_index);
        assert_eq!(open(&npz).config(), &config);
        // And back again.
        quietly(&open(&npz), &at.path().join("c"), None).unwrap();
        assert_eq!(open(&at.path().join("c")).config(), &config);
        // A config that does not fit the npz beside it is an error, not a guess.
        fs::write(
            at.path().join("b.config.json"),
            Config::published("tiny").unwrap().to_json(None).to_string(),
        )
        .unwrap();
        let e = Checkpoint::open(&npz).unwrap_err();
        assert_eq!(e.kind(), Kind::Model);
    }
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let at = tempfile::tempdir().unwrap();
    let source = open(&golden("mqa.npz"));
    let (folder, npz) = (at.path().join("folder"), at.path().join("x.npz"));
    fs::create_dir(&folder).unwrap();
    quietly(&source, &folder, None).unwrap(); // An empty folder may be filled.
    quietly(&source, &npz, None).unwrap();
    let before = fs::read(&npz).unwrap();
    for out in [&folder, &npz] {
        let e = quietly(&source, out, None).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        assert!(e.hint_text().is_some());
    }
    assert_eq!(fs::read(&npz).unwrap(), before);
    // A run that stops on the way leaves nothing under the name.
    let out = at.path().join("stopped");
    let config = small(GemmaGeneration::Gemma1, 1);
    let mut left = 7;
    let e = write_folder(&config, &out, DType::F32, &[], &mut |_, shape| {
        left -= 1;
        if left == 0 { Err(paligemma::Error::input("stop")) } else { Ok(Tensor::zeros(shape)) }
    });
    assert!(e.unwrap_err().to_string().contains("stop"));
    let mut names: Vec<_> = fs::read_dir(at.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["folder", "x.npz"]);
    // What a killed run left is begun anew; what is not ours is in the way.
    let left = at.path().join("stopped.unfinished");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("model.safetensors"), "half").unwrap();
    write(&config, &out, DType::F32);
    open(&out);
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&left).unwrap();
    fs::write(left.join("thesis.txt"), "mine").unwrap();
    let e = quietly(&source, &out, None).unwrap_err();
    assert!(e.to_string().contains("thesis.txt"), "{e}");
    assert!(left.join("thesis.txt").exists());
}

#[test]
fn a_conversion_that_is_broken_off_leaves_nothing() {
    let at = tempfile::tempdir().unwrap();
    let mut config = small(GemmaGeneration::Gemma2, 2);
    // The npz gets a config beside it, and the tokenizer goes along.
    config.text.rope_theta = 500.0;
    let folder = at.path().join("a");
    write(&config, &folder, DType::BF16);
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    for out in ["b", "b.npz"] {
        for part in [0, 1, 2] {
            let mut stop = |done, total| match done * 2 >= total * part {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            let e = convert(&open(&folder), &at.path().join(out), None, &mut stop);
            match (e, part) {
                (Err(e), 0 | 1) => assert_eq!(e.kind(), Kind::Cancelled, "{out}"),
                // Told at the very end it has nothing to stop any more.
                (Ok(_), 2) => continue,
                (e, _) => panic!("{out} {part}: {e:?}"),
            }
            assert_eq!(fs::read_dir(at.path()).unwrap().count(), if out == "b" { 1 } else { 2 }, "{out}");
        }
    }
}

#[test]
fn a_disk_without_room_is_said_before_writing() {
    let at = tempfile::tempdir().unwrap();
    let mut config = small(GemmaGeneration::Gemma1, 1);
    // Ten terabytes.
    config.text = TextConfig {
        vocab_size: 1 << 20,
        hidden_size: 65_536,
        intermediate_size: 65_536,
        num_hidden_layers: 200,
        sliding_layers: vec![false; 200],
        ..config.text
    };
    config.vision.num_hidden_layers = 1;
    let e = write_folder(&config, &at.path().join("out"), DType::F32, &[], &mut |name, _| {
        panic!("{name} is asked for")
    });
    let e = e.unwrap_err();
    assert_eq!(e.kind(), Kind::Resource);
    assert!(e.what().starts_with("the checkpoint needs 9859.0 GiB, the disk has "), "{e}");
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0);
}

#[test]
fn companions_travel_with_the_weights() {
    let at = tempfile::tempdir().unwrap();
    let folder = at.path().join("a");
    write(&small(GemmaGeneration::Gemma1, 1), &folder, DType::BF16);
    for name in ["tokenizer.json", "tokenizer.model", "preprocessor_config.json", "README.md"] {
        fs::write(folder.join(name), format!("the {name}")).unwrap();
    }
    let config_path = folder.join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config_path).unwrap()).unwrap();
    json["a_key_of_another_version"] = serde_json::json!([1, 2]);
    fs::write(&config_path, json.to_string()).unwrap();
    let source = open(&folder);

    let again = at.path().join("again");
    quietly(&source, &again, Some(DType::F32)).unwrap();
    for name in ["tokenizer.json", "tokenizer.model", "preprocessor_config.json"] {
        assert_eq!(fs::read(again.join(name)).unwrap(), fs::read(folder.join(name)).unwrap());
    }
    assert!(!again.join("README.md").exists());
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(again.join("config.json")).unwrap()).unwrap();
    assert_eq!(json["a_key_of_another_version"], serde_json::json!([1, 2]));
    assert_eq!(json["torch_dtype"], "float32");

    let beside = at.path().join("npz");
    quietly(&source, &beside.join("x.npz"), None).unwrap();
    let mut names: Vec<_> = fs::read_dir(&beside).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokenizer.json", "tokenizer.model", "x.npz"]);
    // The same tokenizer may serve a second npz; another one must not.
    quietly(&source, &beside.join("y.npz"), None).unwrap();
    fs::write(beside.join("tokenizer.json"), "another").unwrap();
    let e = quietly(&source, &beside.join("z.npz"), None).unwrap_err();
    assert!(e.to_string().contains("tokenizer.json"), "{e}");
    assert!(!beside.join("z.npz").exists());
    // The folder of an npz has its tokenizer and what transformers' processor needs, not what lies about.
    fs::write(beside.join("preprocessor_config.json"), "{}").unwrap();
    let back = at.path().join("back");
    quietly(&open(&beside.join("x.npz")), &back, None).unwrap();
    let mut names: Vec<_> = fs::read_dir(&back).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let all = [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ];
    assert_eq!(names, all);
    let settings = paligemma::image::ProcessorSettings::from_folder(&back, 12).unwrap();
    assert_eq!(settings, Some(paligemma::image::ProcessorSettings::published(12)));
}

/// Writes a safetensors file of `tensors` and whatever else stands in `more`.
fn write_file(
    path: &Path,
    tensors: &[(String, Tensor)],
    more: &[(&str, safetensors::Dtype, &[usize], &[u8])],
) {
    let view = |dtype, shape: &[usize], bytes| {
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap()
    };
    let ours = tensors.iter().map(|(n, t)| (n.as_str(), view(safetensors::Dtype::F32, t.shape(), t.bytes())));
    let theirs = more.iter().map(|(name, dtype, shape, bytes)| (*name, view(*dtype, shape, bytes)));
    safetensors::serialize_to_file(ours.chain(theirs), None, path).unwrap();
}

/// A folder's tensors under the names of published files, in f32.
fn published(config: &Config) -> Vec<(String, Tensor)> {
    let all = names::tensors(config, names::is_fused(config)).into_iter();
    all.map(|t| (names::hugging_face(&t.name), bits(&t.name, &t.shape, DType::F32))).collect()
}

#[test]
fn known_extras_are_passed_over_and_strangers_are_not() {
    use safetensors::Dtype::{F32, I64};
    let config = small(GemmaGeneration::Gemma1, 1);
    let tensors = published(&config);
    let table =
        tensors.iter().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap().1.bytes().to_vec();
    let (places, angles) = ([0u8; 16 * 8], [0u8; 3 * 4]);
    // What stands there, and whether it is known.
    let position_ids = (I64, &[1, 16][..], &places[..]);
    let numbers = (F32, &[3][..], &angles[..]);
    let head = (F32, &[20, 12][..], &table[..]);
    let cases = [
        ("vision_tower.vision_model.embeddings.position_ids", position_ids, true),
        ("model.vision_tower.embeddings.position_ids", position_ids, true),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", numbers, true),
        ("model.language_model.rotary_emb.inv_freq", numbers, true),
        ("language_model.lm_head.weight", head, true),
        ("lm_head.weight", head, true),
        ("model.lm_head.weight", head, true),
        // SigLIP's head is known only where the config says that the file may hold it.
        ("vision_tower.vision_model.head.probe", numbers, false),
        ("vision_tower.vision_model.embeddings.position_idx", position_ids, false),
        ("language_model.model.layers.0.self_attn.q_proj.bias", numbers, false),
    ];
    let mut first = None;
    for (name, (dtype, shape, bytes), is_known) in cases {
        let at = tempfile::tempdir().unwrap();
        fs::write(at.path().join("config.json"), config.to_json(None).to_string()).unwrap();
        write_file(&at.path().join("model.safetensors"), &tensors, &[(name, dtype, shape, bytes)]);
        match Checkpoint::open(at.path()) {
            Ok(found) if is_known => {
                let all = contents(&found);
                assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{name}");
            }
            Err(e) if !is_known => assert!(e.to_string().contains(name), "{name}: {e}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let at = tempfile::tempdir().unwrap();
    let mut json = config.to_json(None);
    json["vision_config"]["vision_use_head"] = serde_json::json!(true);
    fs::write(at.path().join("config.json"), json.to_string()).unwrap();
    let probe: (&str, _, &[usize], &[u8]) = ("vision_tower.vision_model.head.probe", F32, &[3], &angles);
    write_file(&at.path().join("model.safetensors"), &tensors, &[probe]);
    assert_eq!(contents(&open(at.path())), first.unwrap());
}

#[test]
fn of_a_folder_only_the_named_files_are_read() {
    let config = small(GemmaGeneration::Gemma1, 1);
    let at = tempfile::tempdir().unwrap();
    write(&config, at.path(), DType::F32);
    let alone = contents(&open(at.path()));
    for name in [
        "adapter_model.safetensors",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "pt_224.npz",
        // The one file comes before an index, as in transformers.
        "model.safetensors.index.json",
    ] {
        fs::write(at.path().join(name), "junk").unwrap();
        assert_eq!(contents(&open(at.path())), alone, "{name}");
    }
    // Two shards and a third that the index does not name.
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("config.json"), config.to_json(None).to_string()).unwrap();
    let tensors = published(&config);
    let (front, back) = tensors.split_at(30);
    write_file(&at.path().join("a.safetensors"), front, &[]);
    write_file(&at.path().join("b.safetensors"), back, &[]);
    fs::write(at.path().join("c.safetensors"), "junk").unwrap();
    let shard_of = |i| if i < 30 { "a.safetensors" } else { "b.safetensors" };
    let map: serde_json::Map<String, serde_json::Value> =
        tensors.iter().enumerate().map(|(i, (name, _))| (name.clone(), shard_of(i).into())).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(at.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(contents(&open(at.path())), alone);
}

/// Weights of twice this machine's memory, in a file that takes no room: nothing of them is read.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_loaded() {
    let memory = paligemma::checkpoint::available_memory().unwrap();
    let mut config = Config::published("2-28b-224").unwrap();
    (config.text.hidden_size, config.text.intermediate_size) = (16_384, 65_536);
    (config.text.num_hidden_layers, config.text.sliding_layers) = (0, vec![]);
    while config.num_parameters() * 4 < 2 * memory + (8 << 30) {
        config.text.num_hidden_layers += 1;
        config.text.sliding_layers.push(false);
    }
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("config.json"), config.to_json(None).to_string()).unwrap();
    let tokenizer = paligemma::text::stand_in_tokenizer(256_000, 257_152).unwrap();
    fs::write(at.path().join("tokenizer.json"), tokenizer).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for t in names::tensors(&config, false) {
        let from = end;
        end += t.len() * 4;
        let info = serde_json::json!({ "dtype": "F32", "shape": t.shape, "data_offsets": [from, end] });
        header.insert(names::hugging_face(&t.name), info);
    }
    // Aligned, so that it would be mapped and not copied.
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let path = at.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + end as u64).unwrap();
    for dtype in [None, Some(DType::F32), Some(DType::BF16)] {
        let options = paligemma::session::SessionOptions { dtype, ..Default::default() };
        let e = paligemma::session::Session::open(at.path(), &options).err().unwrap();
        assert_eq!(e.kind(), Kind::Resource, "{e}");
        assert!(e.what().starts_with("the model needs ") && e.what().ends_with(" are available"), "{e}");
        let hint = e.hint_text().unwrap();
        assert!(
            hint.starts_with("these would fit: ") || hint.starts_with("no published model fits"),
            "{hint}"
        );
    }
}

#[test]
fn all_prefix_styles_load() {
    let config = small(GemmaGeneration::Gemma2, 2);
    let renames: [fn(&str) -> String; 5] = [
        |n| n.to_string(),
        |n| format!("model.{n}"),
        names::hugging_face,
        |n| format!("model.{}", names::hugging_face(n).replace("language_model.model.", "language_model.")),
        |n| names::hugging_face(n).replace("vision_tower.vision_model.", "vision_tower."),
    ];
    let mut first = None;
    for rename in renames {
        let at = tempfile::tempdir().unwrap();
        fs::write(at.path().join("config.json"), config.to_json(None).to_string()).unwrap();
        let tensors: Vec<(String, Tensor)> = names::tensors(&config, false)
            .into_iter()
            .map(|t| (rename(&t.name), bits(&t.name, &t.shape, DType::F32)))
            .collect();
        let view = |t: &Tensor| {
            let bytes = t.bytes().to_vec();
            (safetensors::Dtype::F32, t.shape().to_vec(), bytes)
        };
        let raw: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), view(t))).collect();
        let views = raw
            .iter()
            .map(|(n, (d, s, b))| (n, safetensors::tensor::TensorView::new(*d, s.clone(), b).unwrap()));
        safetensors::serialize_to_file(views, None, &at.path().join("model.safetensors")).unwrap();
        let all = contents(&open(at.path()));
        assert_eq!(first.get_or_insert_with(|| all.clone()), &all);
    }
}
