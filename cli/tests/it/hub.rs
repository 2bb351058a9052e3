//! `pull`, `ls` and `rm` without a network. The transfer itself is tested in the library.

use crate::Scene;
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The tiny model as `org/paligemma-tiny` in the cache, as Python's huggingface_hub lays it out.
fn cached(scene: &Scene) {
    let repo = scene.path("hf/hub/models--org--paligemma-tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for entry in fs::read_dir(scene.path("m")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
}

#[test]
fn an_empty_cache_is_no_error() {
    let scene = Scene::new();
    let ran = scene.run(&["ls"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    assert_eq!(scene.json(&["ls"]), json!({ "models": [] }));
    let ran = scene.run(&["rm", "org/absent", "-y"]);
    assert!(ran.code == 2 && ran.err.contains("is not in the cache"), "{ran:?}");
}

#[test]
fn no_network_is_said_in_one_sentence() {
    let scene = Scene::new();
    for (args, code, says) in [
        (&["pull", "org/absent", "--offline"][..], 6, "the network is off"),
        (&["pull", "org/absent"], 6, "cannot reach http://127.0.0.1:9"),
        (&["run", "org/absent", "a.png", "x", "--offline"], 6, "paligemma pull org/absent"),
        (&["show", "org/absent@v1", "--offline"], 6, "org/absent@v1 is not in the cache"),
        (&["pull", "absent"], 2, "no Hub id"),
        (&["rm", "org/absent"], 2, "add -y"),
    ] {
        let ran = scene.run(args);
        assert!(ran.code == code && ran.err.contains(says) && ran.out.is_empty(), "{args:?}: {ran:?}");
    }
    let ran = scene.command(&["pull", "org/absent"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(ran.status.code(), Some(6));
}

/// A Hub that answers every request so, until the test's process ends.
fn hub_that_says(reply: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A request without a body ends with an empty line; what it asks for does not matter.
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                asked.push(byte[0]);
            }
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    address
}

#[test]
fn a_model_that_is_not_ours_to_read_says_the_next_step() {
    let scene = Scene::new();
    let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
    let gated = format!("HTTP/1.1 403 Forbidden\r\nX-Error-Code: GatedRepo\r\n{end}").leak();
    let absent = format!("HTTP/1.1 404 Not Found\r\nX-Error-Code: RepoNotFound\r\n{end}").leak();
    for (reply, token, says) in [
        (
            &*gated,
            "",
            &["is gated", "https://huggingface.co/org/name", "`hf auth login`, or set HF_TOKEN"][..],
        ),
        (gated, "hf_secret", &["is gated", "token from HF_TOKEN was sent"]),
        (absent, "", &["the Hub has no model org/name", "HF_TOKEN"]),
    ] {
        let hub = hub_that_says(reply);
        for args in [&["run", "org/name", "a.png", "x"][..], &["pull", "org/name"], &["show", "org/name@v1"]]
        {
            let mut command = scene.command(args);
            command.env("HF_ENDPOINT", &hub).env("HF_TOKEN", token);
            let ran = crate::Ran::from(command.output().unwrap());
            assert!(ran.code == 6 && ran.out.is_empty(), "{args:?}: {ran:?}");
            assert!(says.iter().all(|words| ran.err.contains(words)), "{args:?}: {ran:?}");
            assert!(!ran.err.contains("hf_secret"), "{ran:?}");
        }
    }
    assert_eq!(scene.json(&["ls"]), json!({ "models": [] }));
}

#[test]
fn a_model_in_the_cache_is_listed_run_and_removed() {
    let scene = Scene::new();
    cached(&scene);
    let listed = scene.json(&["ls"]);
    let model = &listed["models"][0];
    assert_eq!((&model["id"], &model["commit"]), (&json!("org/paligemma-tiny"), &json!(COMMIT)));
    assert_eq!((&model["revisions"], &model["complete"]), (&json!(["main"]), &json!(true)));
    assert_eq!(scene.run(&["ls", "-q"]).out, "org/paligemma-tiny\n");
    for name in ["org/paligemma-tiny".to_owned(), format!("org/paligemma-tiny@{COMMIT}")] {
        let ran = scene.run(&["run", &name, "a.png", "x", "-n", "2", "--offline"]);
        assert!(ran.code == 0 && ran.err.contains(COMMIT), "{ran:?}");
    }
    assert_eq!(scene.json(&["rm", "org/paligemma-tiny", "-y"])["commits"], json!([COMMIT]));
    assert_eq!(scene.json(&["ls"]), json!({ "models": [] }));
}
