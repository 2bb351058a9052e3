//! `pull`, `ls` and `rm` without a network. The transfer itself is tested in the library.

use crate::Scene;
use serde_json::json;
use std::fs;

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
