//! Broken and hostile checkpoints: each is an error of kind `Model` that says what is wrong, in bounded memory.

use crate::checkpoint::{bits, golden, open, small, write};
use paligemma::{
    Kind,
    checkpoint::{Checkpoint, canonical},
    config::GemmaGeneration,
};
use paligemma_tensor::DType;
use serde_json::{Value, json};
use std::{fs, io::Write, path::Path};

/// What a change breaks, the change, and what the error has to say.
type Change<T> = (&'static str, Box<dyn Fn(&mut T)>, &'static str);

/// Opens the file and reads every tensor, as loading does.
fn load(path: &Path) -> paligemma::Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    for name in checkpoint.names() {
        checkpoint.tensor(&name)?;
    }
    Ok(())
}

#[track_caller]
fn check(what: &str, path: &Path, expected: &str) {
    let e = load(path).expect_err(what);
    assert_eq!(e.kind(), Kind::Model, "{what}: {e}");
    assert!(e.to_string().contains(expected), "{what} says\n{e}\ninstead of {expected:?}");
}

/// The header and the data of a safetensors file.
fn split(file: &[u8]) -> (Value, Vec<u8>) {
    let n = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..8 + n]).unwrap(), file[8 + n..].to_vec())
}

fn join(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

const NORM: &str = "language_model.model.norm.weight";
const TABLE: &str = "language_model.model.embed_tokens.weight";

#[test]
fn forty_broken_safetensors_are_named_errors() {
    let at = tempfile::tempdir().unwrap();
    let folder = at.path().join("a");
    write(&small(GemmaGeneration::Gemma2, 2), &folder, DType::BF16);
    let path = folder.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let (header, data) = split(&whole);
    let text = header.to_string();
    open(&folder);

    // Raw bytes.
    let n = whole.len() as u64 - 8;
    let with_len = |n: u64| [&n.to_le_bytes()[..], &whole[8..]].concat();
    let raw: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "no header"),
        ("seven bytes", whole[..7].to_vec(), "no header"),
        ("eight bytes", whole[..8].to_vec(), "longer than the file"),
        ("half a header", whole[..100].to_vec(), "longer than the file"),
        ("half the data", whole[..whole.len() - 100].to_vec(), "not as long"),
        ("one byte short", whole[..whole.len() - 1].to_vec(), "not as long"),
        ("one byte more", [&whole[..], b"x"].concat(), "not as long"),
        ("a length of all ones", with_len(u64::MAX), "over 100 MB"),
        ("a length of 2^63", with_len(1 << 63), "over 100 MB"),
        ("a length of 100 MB", with_len(100_000_000), "longer than the file"),
        ("a length over the file", with_len(n + 1), "longer than the file"),
        ("a length of nothing", with_len(0), "header is wrong"),
        ("a length of one", with_len(1), "header is wrong"),
        (
            "a git-lfs pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
            "git-lfs",
        ),
        ("an HTML page", b"<!DOCTYPE html><html><body>404</body></html>".to_vec(), "header"),
        ("no object", join("[1, 2]", &[]), "header is wrong"),
        ("no JSON", join("{{{{{{{{", &[]), "header is wrong"),
        ("deep JSON", join(&"{\"a\":".repeat(50_000), &[]), "header is wrong"),
        ("deep arrays", join(&format!("{{\"a\":{}", "[".repeat(100_000)), &[]), "header is wrong"),
        ("bad UTF-8", [&8u64.to_le_bytes()[..], b"{\"\xff\xfe\":1}"].concat(), "UTF-8"),
        ("an empty object", join("{}", &[]), "no tensor"),
        (
            "metadata of numbers",
            join(&text.replacen("{\"format\":\"pt\"}", "{\"format\":1}", 1), &data),
            "header is wrong",
        ),
        (
            "a tensor twice",
            {
                let info = header[NORM].to_string();
                join(&text.replacen('{', &format!("{{\"{NORM}\":{info},"), 1), &data)
            },
            "stands twice",
        ),
        (
            "a field twice",
            join(&text.replacen("\"shape\":[12]", "\"shape\":[12],\"shape\":[12]", 1), &data),
            "duplicate field",
        ),
    ];
    let mut count = 0;
    for (what, bytes, expected) in raw {
        fs::write(&path, bytes).unwrap();
        check(what, &folder, expected);
        count += 1;
    }

    // Changes of the header.
    let rename = |from: &'static str, to: &'static str| {
        move |h: &mut Value| {
            let info = h.as_object_mut().unwrap().shift_remove(from).unwrap();
            h[to] = info;
        }
    };
    let changes: Vec<Change<Value>> = vec![
        ("an unknown type", Box::new(|h| h[NORM]["dtype"] = json!("Q4")), "Q4"),
        ("a type of no sense", Box::new(|h| h[NORM]["dtype"] = json!(7)), "header is wrong"),
        ("a wider type", Box::new(|h| h[NORM]["dtype"] = json!("F32")), "disagree"),
        ("an unsupported type", Box::new(|h| h[NORM]["dtype"] = json!("I16")), "I16"),
        (
            "8-bit floats",
            Box::new(|h| {
                h[NORM]["dtype"] = json!("F8_E4M3");
                h[NORM]["shape"] = json!([24]);
            }),
            "F8_E4M3",
        ),
        ("a negative dimension", Box::new(|h| h[NORM]["shape"] = json!([-12])), "header is wrong"),
        ("a fractional dimension", Box::new(|h| h[NORM]["shape"] = json!([12.5])), "header is wrong"),
        ("an overflowing shape", Box::new(|h| h[NORM]["shape"] = json!([u64::MAX, u64::MAX])), "too large"),
        ("2^63 elements", Box::new(|h| h[NORM]["shape"] = json!([1u64 << 62, 2])), "too large"),
        ("a shape of fewer elements", Box::new(|h| h[NORM]["shape"] = json!([11])), "disagree"),
        ("a shape of no elements", Box::new(|h| h[NORM]["shape"] = json!([0])), "disagree"),
        ("another shape of as many", Box::new(|h| h[NORM]["shape"] = json!([3, 4])), "expected shape [12]"),
        ("a transposed shape", Box::new(|h| h[TABLE]["shape"] = json!([12, 20])), "text_config.vocab_size"),
        ("no shape", Box::new(|h| drop(h[NORM].as_object_mut().unwrap().shift_remove("shape"))), "shape"),
        (
            "no offsets",
            Box::new(|h| drop(h[NORM].as_object_mut().unwrap().shift_remove("data_offsets"))),
            "data_offsets",
        ),
        ("three offsets", Box::new(|h| h[NORM]["data_offsets"] = json!([0, 1, 2])), "header is wrong"),
        (
            "offsets backwards",
            Box::new(|h| {
                let o = h[NORM]["data_offsets"].clone();
                h[NORM]["data_offsets"] = json!([o[1], o[0]]);
            }),
            "overlap",
        ),
        (
            "offsets over the end",
            Box::new(|h| {
                h[NORM]["data_offsets"] = json!([u64::MAX - 24, u64::MAX]);
            }),
            "overlap",
        ),
        ("an overlap", Box::new(|h| h[NORM]["data_offsets"] = json!([0, 24])), "overlap"),
        ("a missing tensor", Box::new(|h| drop(h.as_object_mut().unwrap().shift_remove(NORM))), ""),
        (
            "a misspelt tensor",
            Box::new(rename(NORM, "language_model.model.nrom.weight")),
            "did \"language_model.model.nrom.weight\" mean",
        ),
        (
            "a layer too many",
            Box::new(rename(NORM, "language_model.model.layers.2.input_layernorm.weight")),
            "layers.2.input",
        ),
        (
            "a layer of another model",
            Box::new(rename(NORM, "vision_tower.vision_model.head.probe")),
            "head.probe",
        ),
        ("an adapter", Box::new(rename(NORM, "base_model.model.lora_A.weight")), "LoRA"),
        ("an empty name", Box::new(rename(NORM, "")), "unknown tensor \"\""),
        (
            "one tensor in two spellings",
            Box::new(|h| {
                let info = h
                    .as_object_mut()
                    .unwrap()
                    .shift_remove("language_model.model.layers.0.input_layernorm.weight")
                    .unwrap();
                h["model.language_model.norm.weight"] = info;
            }),
            "are the same tensor",
        ),
        (
            "an untied head",
            Box::new(|h| {
                let info = h.as_object_mut().unwrap().shift_remove(NORM).unwrap();
                h["lm_head.weight"] = info;
                h["x"] = json!(null);
            }),
            "",
        ),
    ];
    for (what, change, expected) in changes {
        let mut broken = header.clone();
        change(&mut broken);
        fs::write(&path, join(&broken.to_string(), &data)).unwrap();
        check(what, &folder, expected);
        count += 1;
    }
    assert!(count >= 40, "{count}");

    // A head that is not the table, though all the rest is right.
    let mut untied = header.clone();
    let size = data.len();
    let table = 20 * 12 * 2;
    untied["lm_head.weight"] =
        json!({ "dtype": "BF16", "shape": [20, 12], "data_offsets": [size, size + table] });
    let place = header[TABLE]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut with_head = [&data[..], &data[place..place + table]].concat();
    fs::write(&path, join(&untied.to_string(), &with_head)).unwrap();
    load(&folder).unwrap();
    *with_head.last_mut().unwrap() ^= 1;
    fs::write(&path, join(&untied.to_string(), &with_head)).unwrap();
    check("an untied head", &folder, "not the embedding table");
    fs::write(&path, &whole).unwrap();
    load(&folder).unwrap();
}

#[test]
fn broken_folders_are_named_errors() {
    let source = golden("gemma2-gqa");
    let index: Value =
        serde_json::from_slice(&fs::read(source.join("model.safetensors.index.json")).unwrap()).unwrap();
    let fresh = || {
        let at = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&source).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), at.path().join(entry.file_name())).unwrap();
        }
        at
    };
    load(fresh().path()).unwrap();
    let name = "model.safetensors.index.json";
    let shard = "model-00001-of-00002.safetensors";
    let with = |shard: &str| {
        let mut index = index.clone();
        *index["weight_map"].as_object_mut().unwrap().values_mut().next().unwrap() = json!(shard);
        index.to_string()
    };
    let cases = [
        ("../model.safetensors", "a .safetensors file in the same folder"),
        ("/etc/passwd", "a .safetensors file in the same folder"),
        ("sub/model.safetensors", "a .safetensors file in the same folder"),
        ("..\\model.safetensors", "a .safetensors file in the same folder"),
        ("..safetensors", "a .safetensors file in the same folder"),
        ("pytorch_model.bin", "a .safetensors file in the same folder"),
        ("", "a .safetensors file in the same folder"),
    ];
    for (path, expected) in cases {
        let at = fresh();
        fs::write(at.path().join(name), with(path)).unwrap();
        check(path, at.path(), expected);
    }
    for (text, expected) in [
        ("", "index of shards"),
        ("{}", "weight_map"),
        ("{\"weight_map\": {}}", "weight_map"),
        ("{\"weight_map\": [1]}", "index of shards"),
        ("{\"weight_map\": {\"a\": 1}}", "index of shards"),
        ("[[[[", "index of shards"),
    ] {
        let at = fresh();
        fs::write(at.path().join(name), text).unwrap();
        check(text, at.path(), expected);
    }
    // The index and the shards disagree.
    let at = fresh();
    let mut extra = index.clone();
    extra["weight_map"]["language_model.model.norm.bias"] = json!(shard);
    fs::write(at.path().join(name), extra.to_string()).unwrap();
    check("a tensor that no shard has", at.path(), "norm.bias");
    let at = fresh();
    fs::copy(at.path().join(shard), at.path().join("copy.safetensors")).unwrap();
    let mut twice = index.clone();
    for value in twice["weight_map"].as_object_mut().unwrap().values_mut().filter(|v| *v == shard).take(1) {
        *value = json!("copy.safetensors");
    }
    fs::write(at.path().join(name), twice.to_string()).unwrap();
    check("two shards of the same tensors", at.path(), "stands in two files");
    // A shard is missing.
    let at = fresh();
    fs::remove_file(at.path().join(shard)).unwrap();
    let e = load(at.path()).unwrap_err();
    assert!(e.to_string().contains(shard), "{e}");
    // No config, no weights, other weights only.
    let at = fresh();
    fs::remove_file(at.path().join("config.json")).unwrap();
    check("no config", at.path(), "config.json");
    let at = tempfile::tempdir().unwrap();
    check("an empty folder", at.path(), "model.safetensors");
    fs::write(at.path().join("pytorch_model.bin"), "PK").unwrap();
    check("a pickle", at.path(), "pickles are never read");
    fs::write(at.path().join("pt_224.npz"), "PK").unwrap();
    check("an npz in a folder", at.path(), "pt_224.npz");
    // Config and tensors disagree.
    for (pointer, value, expected) in [
        ("/text_config/vocab_size", json!(23), "vocab_size"),
        ("/text_config/num_hidden_layers", json!(2), "layers.2."),
        ("/text_config/num_hidden_layers", json!(4), "layers.3."),
        ("/text_config/model_type", json!("gemma"), "feedforward_layernorm"),
        ("/text_config/num_key_value_heads", json!(4), "k_proj"),
        ("/vision_config/image_size", json!(12), "vision_config.image_size"),
        ("/vision_config/num_hidden_layers", json!(3), "vision_tower.encoder.layers.2."),
    ] {
        let at = fresh();
        let path = at.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if pointer.ends_with("num_hidden_layers") {
            config["text_config"].as_object_mut().unwrap().shift_remove("layer_types");
        }
        *config.pointer_mut(pointer).unwrap() = value;
        fs::write(&path, config.to_string()).unwrap();
        check(pointer, at.path(), expected);
    }
    let missing = Checkpoint::open(Path::new("/nonexistent/model")).unwrap_err();
    assert_eq!(missing.kind(), Kind::Usage);
    assert_eq!(canonical(NORM).as_deref(), Some("language_model.norm.weight"));
}

/// A member of an archive: name, npy bytes, and whether it is deflated.
type Members = Vec<(String, Vec<u8>, bool)>;

fn members() -> Members {
    let mut zip = zip::ZipArchive::new(fs::File::open(golden("mqa.npz")).unwrap()).unwrap();
    (0..zip.len())
        .map(|i| {
            let mut entry = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            (entry.name().unwrap().into_owned(), bytes, false)
        })
        .collect()
}

fn archive(members: &Members) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes, deflated) in members {
        let method =
            if *deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), data].concat()
}

fn zeros(shape: &str, n: usize) -> Vec<u8> {
    npy("'<f4'", "False", shape, &vec![0; n * 4])
}

/// Positions of the 4-byte signature.
fn find(bytes: &[u8], signature: &[u8]) -> Vec<usize> {
    (0..bytes.len() - 4).filter(|&i| bytes[i..].starts_with(signature)).collect()
}

const SCALE: &str = "params/llm/final_norm/scale.npy";

#[test]
fn sixty_broken_npz_are_named_errors() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("x.npz");
    let right = members();
    let whole = archive(&right);
    fs::write(&path, &whole).unwrap();
    load(&path).unwrap();
    let mut count = 0;

    // Raw bytes of the archive.
    let entry = find(&whole, b"PK\x01\x02")[0];
    let end = find(&whole, b"PK\x05\x06")[0];
    let number = find(&whole, b"NUMP")[0] + 127 + 5;
    let patched = |at: usize, new: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let raw: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an empty zip", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), "img/embedding/kernel"),
        ("only a signature", b"PK\x03\x04".to_vec(), "whole zip"),
        ("half", whole[..whole.len() / 2].to_vec(), "whole zip"),
        ("no end", whole[..end].to_vec(), "whole zip"),
        ("an end cut short", whole[..whole.len() - 1].to_vec(), "whole zip"),
        ("no beginning", whole[50..].to_vec(), ""),
        ("bytes before", [b"PK\x03\x04 and more", &whole[..]].concat(), "before its first member"),
        ("no signature of an entry", patched(entry, b"XX"), "npz"),
        ("no signature of a member", patched(0, b"PK\x03\x05"), ""),
        ("an encrypted member", patched(entry + 8, &[1, 0]), "encrypted"),
        ("an unknown compression", patched(entry + 10, &[99, 0]), ""),
        ("bzip2", patched(entry + 10, &[12, 0]), "compressed by"),
        ("a stored size too large", patched(entry + 20, &[0xff; 4]), ""),
        ("an unpacked size too large", patched(entry + 24, &[0xff, 0xff, 0xff, 0x7f]), "declares"),
        ("an unpacked size of nothing", patched(entry + 24, &[0; 4]), "declares"),
        ("a member beyond the end", patched(entry + 42, &(whole.len() as u32).to_le_bytes()), ""),
        ("a member at the directory", patched(entry + 42, &(entry as u32).to_le_bytes()), ""),
        ("a wrong checksum", patched(entry + 16, &[1, 2, 3, 4]), "checksum"),
        ("a damaged number", patched(number, &[whole[number] ^ 0x40]), "checksum"),
        ("a damaged name of a member", patched(40, b"?"), ""),
        ("another size in the member", patched(18, &[7]), ""),
        ("a directory beyond the end", patched(end + 16, &[0xff, 0xff, 0xff, 0x7f]), ""),
        ("more entries than there are", patched(end + 10, &[0xff, 0xff]), ""),
    ];
    for (what, bytes, expected) in raw {
        fs::write(&path, &bytes).unwrap();
        check(what, &path, expected);
        count += 1;
    }

    // Changes of one npy member.
    let data = vec![0u8; 12 * 4];
    let scale = |bytes: Vec<u8>| {
        let mut all = right.clone();
        all.iter_mut().find(|m| m.0 == SCALE).unwrap().1 = bytes;
        all
    };
    let versioned = |version: u8| {
        let mut bytes = npy("'<f4'", "False", "(12,)", &data);
        bytes[6] = version;
        bytes
    };
    let arrays: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an empty member", vec![], "cut short"),
        ("only the magic", b"\x93NUMPY".to_vec(), "cut short"),
        ("another magic", b"\x93NUMPX\x01\x00\x10\x00{}              ".to_vec(), "does not begin"),
        ("a pickle", b"\x80\x04\x95\x0c\0\0\0\0\0\0\0\x8c\x08builtins".to_vec(), "does not begin"),
        ("version 0", versioned(0), "version 0"),
        ("version 9", versioned(9), "version 9"),
        ("version 2 with a short header", versioned(2), "npy header"),
        ("a header of 4 GB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec(), "at most"),
        ("a header longer than the member", b"\x93NUMPY\x01\x00\x00\x10{}".to_vec(), "cut short"),
        ("a header that is no UTF-8", [b"\x93NUMPY\x01\x00\x02\x00", &[0xff, 0xfe][..]].concat(), "UTF-8"),
        ("a header of nothing", b"\x93NUMPY\x01\x00\x00\x00".to_vec(), "lacks"),
        (
            "a thousand brackets",
            {
                let text = format!("{{'descr': {}", "(".repeat(9000));
                [b"\x93NUMPY\x01\x00", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
            },
            "lacks",
        ),
        ("Python objects", npy("'|O'", "False", "(12,)", &data), "Python objects"),
        ("records", npy("[('a', '<f4')]", "False", "(12,)", &data), "records"),
        ("big-endian numbers", npy("'>f4'", "False", "(12,)", &data), ">f4"),
        ("doubles", npy("'<f8'", "False", "(6,)", &data), "<f8"),
        ("integers", npy("'<i4'", "False", "(12,)", &data), "<i4"),
        ("voids of four bytes", npy("'|V4'", "False", "(12,)", &data), "|V4"),
        ("strings", npy("'<U12'", "False", "(1,)", &data), "<U12"),
        ("columns first", npy("'<f4'", "True", "(3, 4)", &data), "Fortran"),
        ("neither order", npy("'<f4'", "0", "(12,)", &data), "lacks"),
        ("a negative shape", npy("'<f4'", "False", "(-12,)", &data), "wrong 'shape'"),
        ("a shape of words", npy("'<f4'", "False", "('a',)", &data), "wrong 'shape'"),
        ("a shape of a billion", npy("'<f4'", "False", "(1000000000,)", &data), "too large"),
        (
            "a shape that overflows",
            npy("'<f4'", "False", "(1048576, 1048576, 1048576, 1048576)", &data),
            "does not fill",
        ),
        ("a shape of more", npy("'<f4'", "False", "(13,)", &data), "does not fill"),
        ("a shape of fewer", npy("'<f4'", "False", "(11,)", &data), "does not fill"),
        ("a shape of nothing", npy("'<f4'", "False", "(0,)", &data), "does not fill"),
        ("half the data", npy("'<f4'", "False", "(12,)", &data[..24]), "does not fill"),
        ("more data", npy("'<f4'", "False", "(12,)", &[&data[..], &data].concat()), "does not fill"),
        ("another shape", npy("'<f4'", "False", "(3, 4)", &data), "expected shape [12]"),
        ("a scalar", npy("'<f4'", "False", "()", &data[..4]), "expected shape [12]"),
        ("another width", npy("'<f4'", "False", "(6,)", &data[..24]), "expected shape [12]"),
        ("a shape twice", npy("'<f4'", "False", "(12,), 'shape': (12,)", &data), "twice"),
        ("an unknown field", npy("'<f4'", "False", "(12,), 'x': 1", &data), "unknown key"),
    ];
    for (what, bytes, expected) in arrays {
        fs::write(&path, archive(&scale(bytes))).unwrap();
        check(what, &path, expected);
        count += 1;
    }

    // Changes of the set of members.
    let changes: Vec<Change<Members>> = vec![
        ("a missing tensor", Box::new(|m| m.retain(|m| m.0 != SCALE)), "llm/final_norm/scale"),
        (
            "a missing table",
            Box::new(|m| m.retain(|m| !m.0.contains("input_embedding"))),
            "llm/embedder/input_embedding",
        ),
        ("no language model", Box::new(|m| m.retain(|m| m.0.contains("/img/"))), "llm/"),
        ("no image encoder", Box::new(|m| m.retain(|m| !m.0.contains("/img/"))), "img/"),
        (
            "a misspelt tensor",
            Box::new(|m| m.iter_mut().for_each(|m| m.0 = m.0.replace("final_norm", "finalnorm"))),
            "llm/finalnorm/scale",
        ),
        (
            "an optimizer's state",
            Box::new(|m| m.push(("opt/0/count.npy".into(), zeros("(1,)", 1), false))),
            "opt/0/count",
        ),
        ("a text file", Box::new(|m| m.push(("README.txt".into(), b"hello".to_vec(), false))), "README.txt"),
        (
            "a torch archive",
            Box::new(|m| *m = vec![("archive/data.pkl".into(), b"\x80\x02".to_vec(), false)]),
            "PyTorch",
        ),
        (
            "a tensor with and without params",
            Box::new(|m| {
                let again = m.iter().find(|m| m.0 == SCALE).unwrap().clone();
                m.push((SCALE.replace("params/", ""), again.1, false));
            }),
            "with and without",
        ),
        (
            "layers one by one",
            Box::new(|m| m.iter_mut().for_each(|m| m.0 = m.0.replace("encoderblock/", "encoderblock_0/"))),
            "one by one",
        ),
        (
            "one post-norm of two",
            Box::new(|m| {
                m.push(("params/llm/layers/post_ffw_norm/scale.npy".into(), zeros("(3, 12)", 36), false));
            }),
            "post_attention_norm",
        ),
        (
            "a grid that is no square",
            Box::new(|m| {
                m.iter_mut().find(|m| m.0.contains("pos_embedding")).unwrap().1 = zeros("(1, 8, 6)", 48);
            }),
            "square",
        ),
        (
            "no image tokens",
            Box::new(|m| {
                m.iter_mut().find(|m| m.0.contains("pos_embedding")).unwrap().1 = zeros("(1, 0, 6)", 0);
            }),
            "square",
        ),
        (
            "no heads",
            Box::new(|m| {
                m.iter_mut().find(|m| m.0.contains("q_einsum")).unwrap().1 = zeros("(3, 0, 12, 4)", 0);
            }),
            "num_attention_heads",
        ),
        (
            "two sorts of heads",
            Box::new(|m| {
                m.push((
                    "params/llm/layers/attn/qkv_einsum/w.npy".into(),
                    zeros("(3, 3, 4, 12, 4)", 1728),
                    false,
                ));
            }),
            "unknown tensor",
        ),
        (
            "three key tensors",
            Box::new(|m| {
                m.iter_mut().find(|m| m.0.contains("kv_einsum")).unwrap().1 = zeros("(3, 3, 1, 12, 4)", 432);
            }),
            "kv_einsum",
        ),
        (
            "a bomb",
            Box::new(|m| {
                m.iter_mut().find(|m| m.0 == SCALE).unwrap().1 = zeros("(16, 1048576)", 16 << 20);
                m.iter_mut().for_each(|m| m.2 = true);
            }),
            "would unpack to",
        ),
    ];
    for (what, change, expected) in changes {
        let mut broken = right.clone();
        change(&mut broken);
        fs::write(&path, archive(&broken)).unwrap();
        check(what, &path, expected);
        count += 1;
    }
    assert!(count >= 60, "{count}");

    // Deflated members: a damaged stream and a wrong checksum are found when they are read.
    let mut deflated = right.clone();
    deflated.iter_mut().for_each(|m| m.2 = true);
    let packed = archive(&deflated);
    fs::write(&path, &packed).unwrap();
    load(&path).unwrap();
    let entry = find(&packed, b"PK\x01\x02")[0];
    for (at, value) in [(entry + 16, 0x55), (entry / 2, 0xff), (entry / 3, 0xff)] {
        let mut bytes = packed.clone();
        bytes[at] ^= value;
        fs::write(&path, &bytes).unwrap();
        check("a damaged stream", &path, "");
    }
}

#[test]
fn parts_must_all_be_there() {
    let at = tempfile::tempdir().unwrap();
    for i in 0..3 {
        let name = format!("gqa-split.npz.part{i}");
        fs::copy(golden(&name), at.path().join(name)).unwrap();
    }
    let path = at.path().join("gqa-split.npz");
    load(&path).unwrap();
    // A file that is still being fetched is no part.
    fs::write(at.path().join("gqa-split.npz.part2.crdownload"), "x").unwrap();
    fs::write(at.path().join("gqa-split.npz.partial"), "x").unwrap();
    load(&path).unwrap();
    fs::remove_file(at.path().join("gqa-split.npz.part1")).unwrap();
    check("a part in the middle", &path, "part 1");
    fs::remove_file(at.path().join("gqa-split.npz.part2")).unwrap();
    check("the last parts", &path, "whole zip");
}

#[test]
fn a_thousand_flipped_bytes_never_panic() {
    let at = tempfile::tempdir().unwrap();
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for name in ["mqa.npz", "mqa-deflated.npz"] {
        let whole = fs::read(golden(name)).unwrap();
        let path = at.path().join(name);
        let mut refused = 0;
        for round in 0..500 {
            let mut bytes = whole.clone();
            for _ in 0..=round % 4 {
                // Half of the flips hit the directory at the end, where all sizes and places stand.
                let at = if next() % 2 == 0 { next() % bytes.len() } else { bytes.len() - 1 - next() % 4000 };
                bytes[at] = next() as u8;
            }
            fs::write(&path, &bytes).unwrap();
            refused += usize::from(load(&path).is_err());
        }
        assert!(refused > 300, "{name}: {refused} of 500 refused");
    }
    let folder = at.path().join("folder");
    write(&small(GemmaGeneration::Gemma1, 1), &folder, DType::F16);
    let path = folder.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let n = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for _ in 0..500 {
        let mut bytes = whole.clone();
        bytes[next() % (n + 8)] = next() as u8;
        fs::write(&path, &bytes).unwrap();
        let _ = load(&folder);
    }
}

/// Hostile files below a megabyte that ask for far more.
fn hostile_files(at: &Path) {
    let write_npz = |name: &str, members: &Members| {
        let bytes = archive(members);
        assert!(bytes.len() < 1 << 20, "{name}: {}", bytes.len());
        fs::write(at.join(name), bytes).unwrap();
    };
    // The most that still opens: half a million rows of zeros, beside noise that makes the file large.
    let mut rows = members();
    let mut noise = bits("noise", &[220_000], DType::F32).bytes().to_vec();
    noise.resize(400_000 * 12 * 4, 0);
    rows.iter_mut().find(|m| m.0.contains("input_embedding")).unwrap().1 =
        npy("'<f4'", "False", "(400000, 12)", &noise);
    rows.iter_mut().for_each(|m| m.2 = true);
    write_npz("rows.npz", &rows);
    rows.iter_mut().find(|m| m.0.contains("input_embedding")).unwrap().1 =
        npy("'<f4'", "False", "(1048576, 200)", &vec![0; 1_048_576 * 200 * 4]);
    write_npz("bomb.npz", &rows);
    let many: Members = (0..4500)
        .map(|i| (format!("params/{i}.npy"), npy("'<f4'", "False", "(1,)", &[0; 4]), false))
        .collect();
    write_npz("many.npz", &many);

    let folder = |name: &str, config: &str, file: &str, bytes: &[u8]| {
        assert!(bytes.len() < 1 << 20 && config.len() < 1 << 20, "{name}");
        fs::create_dir(at.join(name)).unwrap();
        fs::write(at.join(name).join("config.json"), config).unwrap();
        fs::write(at.join(name).join(file), bytes).unwrap();
    };
    let config = small(GemmaGeneration::Gemma1, 1).to_json(None).to_string();
    let tensors: Vec<String> = (0..15_000)
        .map(|i| format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
        .collect();
    let weights = "model.safetensors";
    folder("names", &config, weights, &join(&format!("{{{}}}", tensors.join(",")), &[]));
    let long = "9,".repeat(500_000);
    let shape = format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{long}1],\"data_offsets\":[0,0]}}}}");
    folder("shape", &config, weights, &join(&shape, &[]));
    folder("lists", &config, weights, &join(&format!("{{\"a\":[{}[]]}}", "[],".repeat(330_000)), &[]));
    let index: Vec<String> = (0..40_000).map(|i| format!("\"{i}\":\"a.safetensors\"")).collect();
    let index = format!("{{\"weight_map\":{{{}}}}}", index.join(","));
    folder("index", &config, "model.safetensors.index.json", index.as_bytes());
    folder("config", &format!("{{\"a\":[{}{{}}]}}", "{},".repeat(300_000)), weights, &join("{}", &[]));
}

/// The most memory that this process held, in kB, without the files that are mapped now: how much of the tests' own file stands in
/// memory differs between machines, and is not what was taken for what they read.
#[cfg(target_os = "linux")]
pub(crate) fn peak_without_files() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| -> u64 {
        let value = status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")).unwrap();
        value.trim().parse().unwrap()
    };
    kib("VmHWM:") - kib("RssFile:")
}

/// Run by the next test in a process of its own, whose memory is then only its own.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "a part of hostile_files_take_little_memory"]
fn hostile_files_child() {
    let Some(at) = std::env::var_os("HOSTILE_FILES") else { return };
    let mut opened = 0;
    for entry in fs::read_dir(at).unwrap() {
        opened += usize::from(load(&entry.unwrap().path()).is_ok());
    }
    assert_eq!(opened, 1, "only rows.npz is a checkpoint");
    let peak = peak_without_files();
    assert!(peak <= 64 << 10, "{peak} kB at the peak");
}

#[test]
#[cfg(target_os = "linux")]
fn hostile_files_take_little_memory() {
    let at = tempfile::tempdir().unwrap();
    hostile_files(at.path());
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "broken_files::hostile_files_child", "--nocapture"])
        .env("HOSTILE_FILES", at.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}
