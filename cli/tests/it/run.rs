//! `run` and the task verbs.

use crate::{Scene, code_in_time, keys};
use serde_json::{Value, json};
use std::{fs, process::Stdio};

/// Tokens drawn at random, so that the tiny model says more than one thing.
const DRAWN: [&str; 6] = ["--temperature", "1", "--seed", "3", "-n", "12"];

fn drawn<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["run", "m"], args, &DRAWN].concat()
}

/// What must not depend on how the answer was asked for.
fn said(answer: &Value) -> Value {
    json!([
        answer["text"],
        answer["tokens"],
        answer["prompt_tokens"],
        answer["image_tokens"],
        answer["finish_reason"]
    ])
}

#[test]
fn json_has_the_promised_keys_and_no_more() {
    let scene = Scene::new();
    let answer = scene.json(&drawn(&["a.png", "caption en"]));
    let want = [
        "text",
        "tokens",
        "logprobs",
        "prompt_tokens",
        "image_tokens",
        "finish_reason",
        "timings",
        "peak_rss_bytes",
    ];
    assert_eq!(keys(&answer), want);
    let want =
        ["load_s", "image_decode_s", "image_encode_s", "prefill_s", "ttft_s", "decode_s", "tokens_per_s"];
    assert_eq!(keys(&answer["timings"]), want);
    assert!(answer["timings"].as_object().unwrap().values().all(|v| v.as_f64().is_some_and(|s| s >= 0.0)));
    assert!(answer["timings"]["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(answer["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 12);
    assert!(answer["tokens"].as_array().unwrap().iter().all(|t| t.as_u64().is_some_and(|t| t < 1984)));
    assert!(answer["logprobs"].as_array().unwrap().iter().all(|p| p.as_f64().is_some_and(|p| p < 0.0)));
    assert_eq!(answer["logprobs"].as_array().unwrap().len(), 12);
    assert_eq!((&answer["image_tokens"], &answer["finish_reason"]), (&json!(256), &json!("length")));
    // BOS, the prompt's ids, the line break.
    let ids = scene.json(&["tokenize", "m", "caption en"])["ids"].as_array().unwrap().len();
    assert_eq!(answer["prompt_tokens"], json!(ids + 2));
}

#[test]
fn stdout_is_the_text_and_a_line_break() {
    let scene = Scene::new();
    for more in [&[][..], &["--seed", "7"], &["--temperature", "0"], &["--stop", "e"], &["-n", "1"]] {
        let base = ["run", "m", "a.png", "caption en"];
        let settings: &[&str] = if more.contains(&"--temperature") { &[] } else { &["--temperature", "1"] };
        let args = [&base[..], settings, more].concat();
        let (plain, answer) = (scene.run(&args), scene.json(&args));
        assert_eq!(plain.out, format!("{}\n", answer["text"].as_str().unwrap()), "{more:?}");
    }
}

#[test]
fn equal_seeds_give_equal_answers_on_any_number_of_threads() {
    let scene = Scene::new();
    let tokens = |more: &[&str]| {
        let answer = scene.json(&[&["run", "m", "a.png", "caption en", "-n", "12"], more].concat());
        answer["tokens"].clone()
    };
    let seeded = ["--temperature", "1", "--top-k", "50", "--seed", "3"];
    assert_eq!(tokens(&seeded), tokens(&seeded));
    assert_ne!(tokens(&seeded), tokens(&["--temperature", "1", "--top-k", "50", "--seed", "4"]));
    assert_eq!(tokens(&["--temperature", "1", "--top-k", "1"]), tokens(&[]));
    for how in
        [&["--temperature", "1"][..], &["--beams", "3"], &["--beams", "3", "--beam-rule", "reference"], &[]]
    {
        let on = |threads| tokens(&[how, &["--threads", threads]].concat());
        assert_eq!(on("1"), on("2"), "{how:?}");
    }
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let scene = Scene::new();
    let whole = scene.json(&drawn(&["a.png", "caption en"]));
    let whole = whole["text"].as_str().unwrap();
    // Two characters from the middle, wherever their tokens' borders are.
    let stop: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let answer = scene.json(&drawn(&["a.png", "caption en", "--stop", "never said", "--stop", &stop]));
    assert_eq!(answer["text"], json!(whole[..whole.find(&stop).unwrap()]));
    assert_eq!(answer["finish_reason"], json!("stop"));
}

#[test]
fn the_end_of_the_answer_is_not_among_its_tokens() {
    let scene = Scene::new();
    let args = ["run", "m", "a.png", "caption en", "--temperature", "3", "--seed", "1", "-n", "30000"];
    let answer = scene.json(&args);
    assert_eq!(answer["finish_reason"], json!("eos"));
    let tokens = answer["tokens"].as_array().unwrap();
    assert!(!tokens.contains(&json!(1)));
    assert_eq!(tokens.len(), answer["logprobs"].as_array().unwrap().len());
}

#[test]
fn the_task_verbs_put_the_papers_words_around_ours() {
    let scene = Scene::new();
    scene.write_vqvae("vae");
    for (task, prompt) in [
        (&["caption", "m", "a.png"][..], "caption en"),
        (&["caption", "m", "a.png", "--lang", "de"], "caption de"),
        (&["ask", "m", "a.png", "Where", "is it?"], "answer en Where is it?"),
        (&["ask", "m", "a.png", "Wo?", "--lang", "de"], "answer de Wo?"),
        (&["ocr", "m", "a.png"], "ocr"),
        (&["detect", "m", "a.png", "cat", "--free"], "detect cat"),
        (&["detect", "m", "a.png", "cat ; dog", "coffee cup", "--free"], "detect cat ; dog ; coffee cup"),
        (&["segment", "m", "a.png", "cat", "--free", "--vqvae", "vae"], "segment cat"),
    ] {
        let asked = scene.json(&[task, &DRAWN[..]].concat());
        let ours = scene.json(&drawn(&["a.png", prompt]));
        assert_eq!((said(&asked), &asked["logprobs"]), (said(&ours), &ours["logprobs"]), "{task:?}");
    }
}

#[test]
fn constrained_answers_are_of_what_the_prompt_asks_for() {
    let scene = Scene::new();
    const SEED: [&str; 6] = ["--temperature", "1", "--seed", "3", "-n", "60"];
    let of = |args: &[&str]| scene.json(&[args, &SEED].concat());
    let answer = of(&["run", "m", "a.png", "detect cat ; dog", "--constrain"]);
    assert_eq!(said(&answer), said(&of(&["detect", "m", "a.png", "cat", "dog"])));
    let objects = paligemma::text::parse_answer(answer["text"].as_str().unwrap());
    assert!(objects.malformed.is_empty() && !objects.objects.is_empty(), "{answer}");
    assert_eq!(answer["finish_reason"], json!("eos"));
}

#[test]
fn images_come_from_files_and_from_stdin_in_their_order() {
    let scene = Scene::new();
    let from_file = scene.json(&drawn(&["b.jpg", "caption en"]));
    let bytes = fs::read(scene.path("b.jpg")).unwrap();
    let piped = scene.run_with_stdin(&drawn(&["-", "caption en", "--json"]), &bytes).json();
    assert_eq!((said(&piped), &piped["logprobs"]), (said(&from_file), &from_file["logprobs"]));
    let two = scene.json(&drawn(&["a.png", "b.jpg", "caption en"]));
    assert_eq!(two["image_tokens"], json!(512));
    let mixed = scene.run_with_stdin(&drawn(&["a.png", "-", "caption en", "--json"]), &bytes).json();
    assert_eq!(mixed["logprobs"], two["logprobs"]);
    let swapped = scene.json(&drawn(&["b.jpg", "a.png", "caption en"]));
    assert_ne!(swapped["logprobs"], two["logprobs"]);
}

#[test]
fn any_text_is_a_prompt() {
    let scene = Scene::new();
    let long = "word ".repeat(200);
    for prompt in ["", " ", "Привет 世界 😀", "a\nb", "<bos><image><loc0001>", &long] {
        let answer = scene.json(&["run", "m", "a.png", prompt, "-n", "2"]);
        let ids = scene.json(&["tokenize", "m", prompt])["ids"].as_array().unwrap().len();
        assert_eq!(answer["prompt_tokens"], json!(ids + 2), "{prompt:?}");
    }
}

#[test]
fn a_model_is_a_folder_a_file_or_an_npz() {
    let scene = Scene::new();
    assert_eq!(scene.run(&["convert", "m", "m.npz", "-q"]).code, 0);
    let of = |model: &str| {
        said(&scene.json(
            &[&["run", model, "a.png", "caption en", "--preprocess", "reference"], &DRAWN[..]].concat(),
        ))
    };
    assert_eq!(of("m"), of("m/model.safetensors"));
    assert_eq!(of("m"), of("m.npz"));
    let of = |preprocess: &str| {
        scene.json(&drawn(&["a.png", "caption en", "--preprocess", preprocess]))["logprobs"].clone()
    };
    assert_eq!(of("auto"), of("hf"));
    assert_ne!(of("hf"), of("reference"));
}

#[test]
fn the_tokenizer_may_lie_elsewhere() {
    let scene = Scene::new();
    let with_it = scene.json(&drawn(&["a.png", "caption en"]));
    fs::rename(scene.path("m/tokenizer.json"), scene.path("t.json")).unwrap();
    let ran = scene.run(&drawn(&["a.png", "caption en"]));
    assert!(ran.code == 1 && ran.err.contains("--tokenizer FILE"), "{ran:?}");
    let without = scene.json(&drawn(&["a.png", "caption en", "--tokenizer", "t.json"]));
    assert_eq!(said(&without), said(&with_it));
    // None of these needs one.
    assert_eq!(scene.run(&["show", "m"]).code, 0);
    assert_eq!(scene.run(&["convert", "m", "m.npz"]).code, 0);
}

#[test]
fn what_cannot_fit_in_memory_is_refused_before_it_is_loaded() {
    let scene = Scene::new();
    // A tiny model and an answer so long that no machine holds its keys and values.
    for tokens in ["1000000000000", "18446744073709551615"] {
        let args = ["run", "m", "a.png", "x", "-n", tokens];
        let child = scene.command(&args).stdout(Stdio::null()).spawn().unwrap();
        assert_eq!(code_in_time(child), Some(5));
        let ran = scene.run(&args);
        assert!(ran.code == 5 && ran.out.is_empty(), "{ran:?}");
        assert!(ran.err.contains(" are available") && ran.err.contains("--max-tokens"), "{ran:?}");
    }
}

#[test]
fn frames_of_a_folder_are_taken_with_a_stride_and_short_clips_repeated() {
    let scene = Scene::new();
    fs::create_dir(scene.path("clip")).unwrap();
    for (i, image) in ["a.png", "b.jpg", "b.jpg", "a.png", "b.jpg"].iter().enumerate() {
        fs::copy(scene.path(image), scene.path(&format!("clip/{i:03}.{}", &image[2..]))).unwrap();
    }
    scene.write("clip/notes.txt", "");
    let of = |args: &[&str]| said(&scene.json(&[args, &DRAWN[..]].concat()));
    // Frames 0, 2, 4, and again.
    let clip = of(&["caption", "m", "clip", "--frames", "4", "--stride", "2"]);
    assert_eq!(clip, of(&["run", "m", "a.png", "b.jpg", "b.jpg", "a.png", "caption en"]));
    let clip = of(&["ask", "m", "clip", "what?", "--frames", "2", "--stride", "1"]);
    assert_eq!(clip, of(&["run", "m", "a.png", "b.jpg", "answer en what?"]));
    let usual = scene.json(&["caption", "m", "clip", "-n", "1"]);
    assert_eq!(usual["image_tokens"], json!(16 * 256));
    fs::create_dir(scene.path("none")).unwrap();
    let ran = scene.run(&["caption", "m", "none"]);
    assert!(ran.code == 3 && ran.err.contains("no picture in none"), "{ran:?}");
}

#[cfg(unix)]
#[test]
fn a_video_is_read_by_ffmpeg() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    scene.write("clip.mp4", "a video");
    // There is no PATH, and no ffmpeg.
    let ran = scene.run(&["caption", "m", "clip.mp4"]);
    assert!(ran.code == 3 && ran.err.contains("ffmpeg") && ran.err.contains("clip.mp4"), "{ran:?}");
    // One that gives two frames and keeps what it was asked.
    let ffmpeg = |script: &str| {
        scene.write("ffmpeg", format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(scene.path("ffmpeg"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let run = |args: &[&str]| {
        let path = format!("{}:/usr/bin:/bin", scene.path("").display());
        crate::Ran::from(scene.command(args).env("PATH", path).output().unwrap())
    };
    ffmpeg("echo \"$@\" > asked; cat a.png a.png");
    let args = ["caption", "m", "clip.mp4", "--frames", "3", "--stride", "7"];
    let ran = run(&[&args[..], &DRAWN, &["--json"]].concat());
    let three = [&["run", "m", "a.png", "a.png", "a.png", "caption en"], &DRAWN[..]].concat();
    assert_eq!(said(&ran.json()), said(&scene.json(&three)));
    let asked = scene.read("asked");
    assert!(
        asked.contains("-i file:clip.mp4") && asked.contains("mod(n\\,7)") && asked.contains("-frames:v 3"),
        "{asked}"
    );
    ffmpeg("echo clip.mp4: broken >&2; exit 1");
    let ran = run(&args);
    assert!(ran.code == 3 && ran.err.contains("cannot read the video: clip.mp4: broken"), "{ran:?}");
    ffmpeg("exit 0");
    let ran = run(&args);
    assert!(ran.code == 3 && ran.err.contains("no frames"), "{ran:?}");
}
