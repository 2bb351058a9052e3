//! Exit codes, stdout and stderr, pipes, Ctrl-C, and the sentences of errors.

use crate::{Scene, golden};
use expect_test::expect_file;
use std::{
    fs::{self, File},
    io::Read,
    process::Stdio,
    time::{Duration, Instant},
};

#[test]
fn wrong_things_have_their_code_and_their_sentence() {
    let scene = Scene::new();
    scene.write("text.jpg", "hello");
    scene.write("empty.png", "");
    let png = fs::read(scene.path("a.png")).unwrap();
    scene.write("cut.png", &png[..png.len() / 2]);
    fs::create_dir(scene.path("empty")).unwrap();
    fs::create_dir(scene.path("old")).unwrap();
    scene.write("old/config.json", scene.read("m/config.json"));
    scene.write("old/pytorch_model.bin", "x");
    scene.write("pickle.npz", "no zip");
    let cases: &[(&[&str], i32)] = &[
        (&["frob"], 2),
        (&["rum", "m", "a.png", "x"], 2),
        (&["run", "m", "a.png"], 2),
        (&["run", "m", "a.png", "x", "--max-token", "3"], 2),
        (&["run", "m", "a.png", "x", "--dtype", "int3"], 2),
        (&["run", "m", "a.png", "x", "--max-tokens", "0"], 2),
        (&["run", "m", "a.png", "x", "--threads", "0"], 2),
        (&["run", "m", "a.png", "x", "--beams", "0"], 2),
        (&["run", "m", "a.png", "x", "--beams", "3", "--temperature", "1"], 2),
        (&["run", "m", "a.png", "x", "--beams", "3", "--stop", "a"], 2),
        (&["run", "m", "a.png", "x", "--stop", ""], 2),
        (&["run", "m", "a.png", "x", "--temperature", "-1"], 2),
        (&["run", "m", "a.png", "x", "--temperature", "nan"], 2),
        (&["run", "m", "a.png", "x", "--top-k", "3"], 2),
        (&["run", "m", "a.png", "x", "--temperature", "1", "--top-p", "2"], 2),
        (&["run", "m", "x", "a.png"], 2),
        (&["run", "m", "-", "-", "x"], 2),
        (&["run", "m", "absent.png", "x"], 3),
        (&["run", "m", "a.png", "caption", "en"], 3),
        (&["run", "m", ".", "x"], 3),
        (&["run", "m", "text.jpg", "x"], 3),
        (&["run", "m", "empty.png", "x"], 3),
        (&["run", "m", "cut.png", "x"], 3),
        (&["run", "m", "-", "x"], 3),
        (&["run", "absent", "a.png", "x"], 2),
        (&["run", "empty", "a.png", "x"], 1),
        (&["run", "old", "a.png", "x"], 1),
        (&["run", "a.png", "a.png", "x"], 1),
        (&["run", "pickle.npz", "a.png", "x"], 1),
        (&["run", "m", "a.png", "x", "--tokenizer", "absent.json"], 1),
        (&["ocr", "m", "a.png", "word"], 2),
        (&["ask", "m", "a.png"], 2),
        (&["detect", "m", "a.png", " ; "], 2),
        (&["detect", "m", "a.png", "cat", "--threshold", "2"], 2),
        (&["detect", "m", "a.png", "cat", "--nms", "-1"], 2),
        (&["detect", "m", "a.png", "cat", "--box-scale", "1000"], 2),
        (&["detect", "m", "a.png", "cat", "--stop", "a"], 2),
        (&["detect", "m", "a.png", "cat", "--free", "--constrain"], 2),
        (&["detect", "m", "a.png", "cat", "-o", "found.jpg"], 2),
        (&["detect", "m", ".", "cat", "-o", "found.png"], 2),
        (&["detect", "m", "a.png", "<loc0001>"], 2),
        (&["detect", "m", "*.gif", "cat"], 3),
        (&["detect", "m", "***", "cat"], 2),
        (&["detect", "m", "empty", "cat"], 3),
        (&["segment", "m", "a.png", "cat", "--vqvae", "absent.npz"], 2),
        (&["run", "m", "a.png", "caption en", "--constrain"], 2),
        (&["predict", "m", "absent.jsonl"], 3),
        (&["predict", "m", "."], 3),
        (&["predict", "m", "a.png", "--batch", "0"], 2),
        (&["playground", "out", "--split", "all"], 2),
        (&["playground", "out", "--tasks", "colour,color"], 2),
        (&["playground", "out", "--tasks", "segment", "--vqvae", "none.npz"], 2),
        (&["playground", "out", "--size", "3"], 2),
        (&["score", "absent.jsonl", "--metric", "exact"], 3),
        (&["score", ".", "--metric", "exact"], 3),
        (&["score", "a.png", "--metric", "bleu"], 2),
        (&["score", "a.png", "--metric", "exact"], 3),
        (&["score", "empty", "--metric", "exact"], 3),
        (&["convert", "m", "m"], 2),
        (&["convert", "absent", "out"], 2),
        (&["random", "4b-224", "out"], 2),
        (&["tokenize", "empty", "x"], 1),
        (&["man", "frob"], 2),
        (&["completions", "csh"], 2),
        (&["rm", "org/name"], 2),
        (&["pull", "name"], 2),
    ];
    let mut all = String::new();
    for (args, code) in cases {
        let ran = scene.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (*code, ""), "{args:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: ") && !ran.err.contains("panicked"), "{args:?}: {}", ran.err);
        all.push_str(&format!("$ paligemma {}\n{}\n", args.join(" "), ran.err));
    }
    expect_file!["errors.txt"].assert_eq(&all);
}

#[test]
fn stdout_is_data_and_stderr_the_rest() {
    let scene = Scene::new();
    let ran = scene.run(&["run", "m", "a.png", "x", "-n", "2"]);
    assert!(ran.err.contains("prefill") && !ran.out.contains("prefill"), "{ran:?}");
    assert_eq!(scene.run(&["run", "m", "a.png", "x", "-n", "2", "-q"]).err, "");
    assert_eq!(scene.run(&["run", "m", "a.png", "x", "-n", "2", "--json"]).err, "");
    let ran = scene.run(&["random", "tiny", "n"]);
    assert_eq!(ran.out, "");
    assert!(ran.err.contains("noise"), "{ran:?}");
}

#[test]
fn every_verb_prints_one_object_as_json() {
    let scene = Scene::new();
    scene.write("d.jsonl", r#"{"image":"a.png","prefix":"x"}"#);
    scene.write_vqvae("vae");
    let (model, held) = (golden("model/pg2"), golden("model/hf_pg2.safetensors"));
    let verbs: &[&[&str]] = &[
        &["run", "m", "a.png", "x", "-n", "2"],
        &["caption", "m", "a.png", "-n", "2"],
        &["ask", "m", "a.png", "what", "-n", "2"],
        &["ocr", "m", "a.png", "-n", "2"],
        &["detect", "m", "a.png", "cat", "-n", "2"],
        &["segment", "m", "a.png", "cat", "-n", "2", "--vqvae", "vae"],
        &["mask", "decode", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", "--vqvae", "vae"],
        &["predict", "m", "d.jsonl", "-n", "2"],
        &["predict", "m", "d.jsonl", "-n", "2", "-o", "o.jsonl"],
        &["show", "m"],
        &["convert", "m", "m.npz"],
        &["tokenize", "m", "x"],
        &["verify", &model, &held],
        &["random", "tiny", "n"],
        &["bench", "m", "--repeat", "1"],
        &["ls"],
        &["doctor"],
        &["completions", "bash"],
        &["man", "run"],
    ];
    for args in verbs {
        assert!(!scene.json(args).as_object().unwrap().is_empty(), "{args:?}");
    }
}

#[test]
fn flags_have_twins_in_the_environment() {
    let scene = Scene::new();
    let with = |name: &str, value: &str, more: &[&str]| {
        let args = [&["run", "m", "a.png", "caption en", "-q"], more].concat();
        crate::Ran::from(scene.command(&args).env(name, value).output().unwrap())
    };
    let tokens = |ran: crate::Ran| ran.json()["tokens"].as_array().unwrap().len();
    for (value, is_json) in [("1", true), ("true", true), ("0", false), ("false", false), ("", false)] {
        let ran = with("PALIGEMMA_JSON", value, &["-n", "2"]);
        assert_eq!((ran.code, ran.out.starts_with('{')), (0, is_json), "{value:?}: {}", ran.err);
    }
    assert_eq!(tokens(with("PALIGEMMA_MAX_TOKENS", "3", &["--json"])), 3);
    // The flag wins.
    assert_eq!(tokens(with("PALIGEMMA_MAX_TOKENS", "3", &["--json", "-n", "2"])), 2);
    for (name, value) in [
        ("PALIGEMMA_DTYPE", "int3"),
        ("PALIGEMMA_THREADS", "0"),
        ("PALIGEMMA_BEAMS", "0"),
        ("PALIGEMMA_TOP_K", "3"),
        ("PALIGEMMA_PREPROCESS", "x"),
        ("PALIGEMMA_TEMPERATURE", "-1"),
        ("PALIGEMMA_SEED", "-1"),
        ("PALIGEMMA_BEAM_RULE", "mine"),
    ] {
        assert_eq!(with(name, value, &[]).code, 2, "{name} is not heard");
    }
}

#[test]
fn odd_surroundings_change_nothing() {
    let scene = Scene::new();
    let verbs: &[&[&str]] = &[
        &["--help"],
        &["run", "m", "a.png", "x", "-n", "2"],
        &["show", "m"],
        &["tokenize", "m", "x"],
        &["doctor"],
        &["ls"],
        &["man", "run"],
        &["run", "--frob"],
    ];
    for (name, value) in [
        ("NO_COLOR", "1"),
        ("TERM", "dumb"),
        ("COLUMNS", "40"),
        ("HOME", "/nonexistent"),
        ("HF_HOME", "/nonexistent"),
    ] {
        for args in verbs {
            let ran = crate::Ran::from(scene.command(args).env(name, value).output().unwrap());
            let want = if args.contains(&"--frob") { 2 } else { 0 };
            assert_eq!(ran.code, want, "{name} {args:?}: {}", ran.err);
            assert!(!ran.out.contains('\x1b') && !ran.err.contains('\x1b'), "{name} {args:?}");
        }
    }
    // No variable at all.
    for args in verbs {
        let status = scene.command(args).env_clear().output().unwrap().status;
        assert!(matches!(status.code(), Some(0 | 2)), "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scene = Scene::new();
    scene.write("d.jsonl", "{\"image\":\"a.png\",\"prefix\":\"x\"}\n".repeat(2000));
    let verbs: &[&[&str]] = &[
        &["run", "m", "a.png", "x", "-n", "200000"],
        &["predict", "m", "d.jsonl", "-n", "20"],
        &["completions", "bash"],
        &["man"],
        &["show", "m", "--json"],
        &["tokenize", "m", "x"],
        &["ls", "--json"],
    ];
    for args in verbs {
        let start = Instant::now();
        let mut child = scene.command(args).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        if args[0] == "run" || args[0] == "predict" {
            out.read_exact(&mut [0]).unwrap();
        }
        drop(out);
        let ran = crate::Ran::from(child.wait_with_output().unwrap());
        assert!(ran.code == 0 && !ran.err.contains("error"), "{args:?}: {ran:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn full_and_closed_streams_do_not_crash() {
    let scene = Scene::new();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for args in
        [&["run", "m", "a.png", "x", "-n", "2"][..], &["show", "m"], &["man"], &["tokenize", "m", "x"]]
    {
        let ran = crate::Ran::from(scene.command(args).stdout(full()).output().unwrap());
        assert!(ran.code == 5 && ran.err.contains("in stdout"), "{args:?}: {ran:?}");
        let status = scene.command(args).stderr(full()).output().unwrap().status;
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
    let status = scene.command(&["run", "m", "absent.png", "x"]).stderr(full()).output().unwrap().status;
    assert_eq!(status.code(), Some(3));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_any_work_with_130() {
    let scene = Scene::new();
    // During generation.
    let mut child = scene.command(&["run", "m", "a.png", "x", "-n", "200000"]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    crate::interrupt(&child);
    let ran = crate::Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (130, "error: cancelled\n"));
    // While a checkpoint is written: nothing of it is left.
    let stopped = |args: &[&str], unfinished: &str| {
        let child = scene.command(args).spawn().unwrap();
        while !scene.path(unfinished).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        crate::interrupt(&child);
        assert_eq!(crate::code_in_time(child), Some(130), "{args:?}");
        let left: Vec<_> =
            fs::read_dir(scene.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("large")), "{args:?}: {left:?}");
    };
    stopped(&["random", "3b-224", "large"], "large.unfinished");
}
