//! `predict`: order, batches, bad lines, and being taken up again.

use crate::{Scene, keys};
use serde_json::{Value, json};
use std::{fs, thread::sleep, time::Duration};

/// Nine lines of which four are bad: 3, 5, 7 and 8.
const DATA: &str = r#"{"image":"a.png","prefix":"caption en","id":1}
{"image":"b.jpg","prefix":"answer en what is this thing?","answers":["a","b"]}
not json

{"image":"absent.png","prefix":"x"}
{"image":["a.png","b.jpg"],"prefix":"x"}
{"prefix":"x"}
["a.png","x"]
{"image":"a.png","prefix":"","f":1.10,"nested":{"answer":null}}
{"image":"a.png","prefix":"q\u00e9"}"#;

const BAD: [usize; 4] = [3, 5, 7, 8];

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("d.jsonl", DATA);
    scene
}

fn lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_out_is_the_line_in_and_its_answer_in_the_same_order() {
    let scene = scene();
    let ran = scene.run(&["predict", "m", "d.jsonl", "-n", "5"]);
    assert_eq!(ran.code, 3);
    let out = lines(&ran.out);
    let good: Vec<Value> = DATA
        .lines()
        .enumerate()
        .filter(|(i, _)| ![2, 3, 4, 6, 7].contains(i))
        .map(|(_, l)| l.parse().unwrap())
        .collect();
    assert_eq!(out.len(), good.len());
    for (out, good) in out.iter().zip(&good) {
        assert_eq!(keys(out), [keys(good), vec!["answer", "tokens", "logprob"]].concat());
        for (key, value) in good.as_object().unwrap() {
            assert_eq!(&out[key], value);
        }
        let images: Vec<&str> = match &good["image"] {
            Value::String(image) => vec![image],
            images => images.as_array().unwrap().iter().map(|i| i.as_str().unwrap()).collect(),
        };
        let alone = scene
            .json(&[&["run", "m"], &images[..], &[good["prefix"].as_str().unwrap(), "-n", "5"]].concat());
        assert_eq!((&out["answer"], &out["tokens"]), (&alone["text"], &alone["tokens"]));
        // No answer of this model ends by itself, so that no EOS is in the sum.
        let sum: f64 = alone["logprobs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((out["logprob"].as_f64().unwrap() - sum).abs() < 1e-3, "{out} {sum}");
    }
}

#[test]
fn batches_of_any_size_give_the_same_answers() {
    let scene = scene();
    let of = |batch: &str, how: &[&str]| {
        let args = ["predict", "m", "d.jsonl", "-n", "6", "--batch", batch];
        lines(&scene.run(&[&args, how].concat()).out)
    };
    for how in [&[][..], &["--beams", "3"], &["--stop", "never"]] {
        let (one, three) = (of("1", how), of("3", how));
        assert_eq!(one.len(), 5);
        for (one, three) in one.iter().zip(&three) {
            assert_eq!((&one["tokens"], &one["prefix"]), (&three["tokens"], &three["prefix"]), "{how:?}");
            let difference = one["logprob"].as_f64().unwrap() - three["logprob"].as_f64().unwrap();
            assert!(difference.abs() < 1e-3, "{one} {three}");
        }
    }
}

#[test]
fn bad_lines_are_reported_by_number_and_the_rest_goes_on() {
    let scene = scene();
    let ran = scene.run(&["predict", "m", "d.jsonl", "-n", "2", "-o", "o.jsonl", "--json", "-q"]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.json(), json!({ "answered": 5, "resumed": 0, "bad_lines": BAD }));
    for number in BAD {
        assert!(ran.err.contains(&format!("d.jsonl:{number}: ")), "{}", ran.err);
    }
    assert_eq!(ran.err.matches("d.jsonl:").count(), BAD.len(), "{}", ran.err);

    let long = format!("{{\"image\":\"a.png\",\"prefix\":\"{}\"}}\n", "x".repeat(17 << 20));
    let bytes: Vec<&[u8]> = vec![
        long.as_bytes(),
        b"{\"image\":\"a.png\",\"prefix\":\"\xff\"}\n",
        b"{\"image\":\".\",\"prefix\":\"x\"}\n",
        b"{\"image\":[],\"prefix\":\"x\"}\n",
        b"{\"image\":7,\"prefix\":\"x\"}\n",
        b"{\"image\":\"a.png\",\"prefix\":7}\n",
        b"{\"image\":\"m/config.json\",\"prefix\":\"x\"}\r\n",
        b"{\"image\":\"a.png\",\"prefix\":\"x\"}\r\n",
    ];
    scene.write("odd.jsonl", bytes.concat());
    let ran = scene.run(&["predict", "m", "odd.jsonl", "-n", "2", "-o", "odd.out", "--json"]);
    assert_eq!(
        ran.json(),
        json!({ "answered": 1, "resumed": 0, "bad_lines": [1, 2, 3, 4, 5, 6, 7] }),
        "{}",
        ran.err
    );
}

#[test]
fn it_goes_on_where_it_stopped() {
    let scene = scene();
    let args = ["predict", "m", "d.jsonl", "-n", "3", "-o", "o.jsonl", "--json"];
    assert_eq!(scene.run(&args).code, 3);
    let whole = scene.read("o.jsonl");
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    // Whole lines, half a line, one byte of a line, all but the last byte, nothing.
    for cut in
        [ends[4], ends[3], ends[0], ends[0] + 20, ends[1] + 1, ends[2] - 1, ends[4] - 1, ends[0] + 60, 0]
    {
        scene.write("o.jsonl", &whole[..cut]);
        let ran = scene.run(&args);
        assert_eq!(scene.read("o.jsonl"), whole, "cut at {cut}");
        let before = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!(
            ran.json(),
            json!({ "answered": 5 - before, "resumed": before, "bad_lines": BAD }),
            "cut at {cut}"
        );
    }
    // A line more in the data is a line more in the answers, and nothing else is touched.
    scene.write("d.jsonl", format!("{DATA}\n{{\"image\":\"a.png\",\"prefix\":\"more\"}}"));
    assert_eq!(scene.run(&args).json()["answered"], json!(1));
    assert!(scene.read("o.jsonl").starts_with(&whole));
}

#[test]
fn killed_or_interrupted_it_leaves_what_the_next_run_takes_up() {
    let scene = Scene::new();
    let data: String =
        (0..60).map(|i| format!("{{\"image\":\"a.png\",\"prefix\":\"caption en {i}\"}}\n")).collect();
    scene.write("d.jsonl", data);
    fn args(out: &str) -> [&str; 8] {
        ["predict", "m", "d.jsonl", "-n", "100", "-q", "-o", out]
    }
    assert_eq!(scene.run(&args("whole.jsonl")).code, 0);
    let stopped = |out: &str, stop: &dyn Fn(&mut std::process::Child) -> i32| {
        let mut child = scene.command(&args(out)).spawn().unwrap();
        while fs::read(scene.path(out)).map_or(0, |o| o.len()) < 1000 {
            sleep(Duration::from_millis(1));
        }
        let code = stop(&mut child);
        let lines = scene.read(out).lines().count();
        assert!((1..60).contains(&lines), "{lines}");
        assert_eq!(scene.run(&args(out)).code, 0);
        assert_eq!(scene.read(out), scene.read("whole.jsonl"));
        code
    };
    stopped("killed.jsonl", &|child| {
        child.kill().unwrap();
        child.wait().unwrap();
        0
    });
    #[cfg(unix)]
    {
        let code = stopped("interrupted.jsonl", &|child| {
            crate::interrupt(child);
            child.wait().unwrap().code().unwrap_or(-1)
        });
        assert_eq!(code, 130);
    }
}

#[test]
fn a_file_of_somebody_else_is_refused_and_not_touched() {
    let scene = scene();
    let answer = r#""answer":"","tokens":[],"logprob":0.0}"#;
    for theirs in [
        "a note without a line break".to_owned(),
        "a note\n".to_owned(),
        "{}\n".to_owned(),
        "{\"image\":\"c.jpg\"".to_owned(),
        // Answers to other questions, or in another order.
        format!("{{\"image\":\"a.png\",\"prefix\":\"other\",\"id\":1,{answer}\n"),
        format!(
            "{{\"image\":\"a.png\",\"prefix\":\"q\u{e9}\",{answer}\n{{\"image\":\"a.png\",\"prefix\":\"caption en\",\"id\":1,{answer}\n"
        ),
        DATA.to_owned(),
    ] {
        scene.write("theirs", &theirs);
        let ran = scene.run(&["predict", "m", "d.jsonl", "-o", "theirs", "-q"]);
        assert!(ran.code == 3 && ran.err.contains("something else than answers"), "{theirs:?}: {ran:?}");
        assert_eq!(scene.read("theirs"), theirs);
    }
    let ran = scene.run(&["predict", "m", "d.jsonl", "-o", "./d.jsonl"]);
    assert_eq!((ran.code, scene.read("d.jsonl").as_str()), (2, DATA));
}

#[test]
fn images_are_looked_for_beside_the_data_then_here() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("sub/pictures")).unwrap();
    fs::copy(scene.path("b.jpg"), scene.path("sub/pictures/c.jpg")).unwrap();
    fs::copy(scene.path("b.jpg"), scene.path("sub/a.png")).unwrap();
    let line = |image: &str| format!("{{\"image\":{},\"prefix\":\"x\"}}\n", json!(image));
    let absolute = scene.path("b.jpg").to_string_lossy().into_owned();
    scene.write(
        "sub/d.jsonl",
        [line("pictures/c.jpg"), line("a.png"), line("b.jpg"), line(&absolute)].concat(),
    );
    let ran = scene.run(&["predict", "m", "sub/d.jsonl", "-n", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let scores: Vec<Value> = lines(&ran.out).into_iter().map(|l| l["logprob"].clone()).collect();
    assert!(scores.len() == 4 && scores.iter().all(|s| *s == scores[0]), "{scores:?}");
}

#[test]
fn objects_are_added_where_they_are_asked_for() {
    let scene = Scene::new();
    scene.write_vqvae("vae");
    let prefixes = ["detect cat", "segment dog ; cat", "caption en"];
    let line = |prefix: &&str| format!("{{\"image\":\"a.png\",\"prefix\":\"{prefix}\"}}\n");
    scene.write("d.jsonl", prefixes.iter().map(line).collect::<String>());
    let args = ["predict", "m", "d.jsonl", "-n", "80", "--temperature", "1", "--seed", "2"];
    let of = |more: &[&str]| lines(&scene.run(&[&args, more].concat()).out);
    let constrained = of(&["--constrain", "--vqvae", "vae"]);
    assert!(keys(&constrained[0]).ends_with(&["answer", "tokens", "logprob", "detections"]));
    assert!(keys(&constrained[2]).ends_with(&["answer", "tokens", "logprob"]), "{}", constrained[2]);
    for (answer, masks) in constrained[..2].iter().zip([false, true]) {
        let objects = answer["detections"].as_array().unwrap();
        assert!(!objects.is_empty(), "{answer}");
        let alone = scene.json(
            &[&["run", "m", "a.png", answer["prefix"].as_str().unwrap(), "--constrain"], &args[3..]].concat(),
        );
        assert_eq!(alone["text"], answer["answer"]);
        for object in objects {
            let mut want = vec!["label", "box", "score"];
            if masks {
                want.extend(["codes", "mask"]);
            }
            assert_eq!(keys(object), want);
            assert!(["cat", "dog"].contains(&object["label"].as_str().unwrap()));
        }
    }
    // Free, this model says no object; the key is there all the same, and the lines are taken up again.
    let free = of(&[]);
    assert_eq!((&free[0]["detections"], free[2].get("detections")), (&json!([]), None));
    assert_eq!(scene.run(&[&args[..], &["-o", "o.jsonl"]].concat()).code, 0);
    let ran = scene.run(&[&args[..], &["-o", "o.jsonl", "--json"]].concat());
    assert_eq!(ran.json()["resumed"], json!(3));
}
