//! `train`, `recipes`, `plot`.

use crate::{Ran, Scene, code_in_time, interrupt, keys};
use paligemma::image::{Picture, png_of_picture};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A scene with `d.jsonl`: `count` drawn pictures of a coloured shape and what they show.
fn drawn(count: usize) -> Scene {
    let scene = Scene::new();
    let colours =
        [("red", [220, 30, 30]), ("green", [30, 170, 60]), ("blue", [40, 60, 220]), ("black", [10, 10, 10])];
    let shapes = ["square", "circle", "triangle", "cross"];
    let mut lines = String::new();
    for i in 0..count {
        let (colour, rgb) = colours[i % 4];
        let shape = shapes[i / 4 % 4];
        let (x, y, r) = (14 + (i * 7) % 28, 14 + (i * 11) % 28, 8 + i % 5);
        let light = 150 + (i * 37 % 100) as u8;
        let inside = |px: usize, py: usize| {
            let (dx, dy) = (px.abs_diff(x), py.abs_diff(y));
            match shape {
                "square" => dx <= r && dy <= r,
                "circle" => dx * dx + dy * dy <= r * r,
                "triangle" => py <= y + r && py + r >= y && 2 * dx <= py + r - y,
                _ => dx.min(dy) <= 2 && dx.max(dy) <= r,
            }
        };
        let rgb = (0..56 * 56).flat_map(|p| if inside(p % 56, p / 56) { rgb } else { [light; 3] }).collect();
        let png = png_of_picture(&Picture { width: 56, height: 56, rgb }).unwrap();
        scene.write(&format!("{i}.png"), png);
        let line = json!({ "image": format!("{i}.png"), "prefix": "caption en", "suffix": format!("a {colour} {shape}") });
        lines += &format!("{line}\n");
    }
    scene.write("d.jsonl", lines);
    assert_eq!(scene.run(&["random", "tiny", "m32", "--dtype", "f32", "-q"]).code, 0);
    scene
}

const SMALL: [&str; 8] = [
    "train",
    "overfit",
    "model.init=m32",
    "data.train.files=d.jsonl",
    "eval.files=d.jsonl",
    "batch=2",
    "out=run",
    "save_every=1",
];

fn steps(scene: &Scene) -> Vec<u64> {
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap();
    let metrics = scene.read("run/metrics.jsonl");
    metrics.lines().filter(|line| line.contains("\"loss\"")).map(step).collect()
}

#[test]
fn a_run_is_begun_looked_at_stopped_and_gone_on_with() {
    let scene = drawn(4);
    let dry = scene.json(&[&SMALL[..], &["--dry-run"]].concat());
    assert_eq!(dry["examples"].as_array().unwrap().len(), 3);
    assert!(dry["examples"][0]["suffix"].as_str().unwrap().starts_with("a "), "{dry}");
    let loss = dry["examples"][0]["loss"].as_array().unwrap();
    assert!(loss.first() == Some(&json!(false)) && loss.last() == Some(&json!(true)), "{dry}");
    assert!(dry["memory_total"].as_u64().unwrap() > 1 << 20 && dry["step_s"].as_f64().unwrap() > 0.0);
    assert!(!scene.path("run").exists());
    let told = scene.run(&[&SMALL[..], &["epochs=3", "--dry-run"]].concat());
    assert_eq!(told.code, 0);
    for part in ["caption en⏎[a ", "<eos>]", "optimiser", "together", "all others", "6 steps of 2 examples"]
    {
        assert!(told.out.contains(part), "{part}: {}", told.out);
    }

    let small = [&SMALL[..], &["log_every=1", "epochs=3"]].concat();
    let first = scene.json(&[&small[..], &["--steps", "2"]].concat());
    assert_eq!(
        keys(&first),
        [
            "run",
            "step",
            "total",
            "stopped",
            "loss",
            "eval_loss",
            "eval_exact",
            "eval_miou",
            "eval_image_to_text",
            "eval_text_to_image"
        ]
    );
    assert_eq!((&first["step"], &first["total"], &first["stopped"]), (&json!(2), &json!(6), &json!(false)));
    let second = scene.json(&["train", "run"]);
    assert_eq!((&second["step"], &second["stopped"]), (&json!(6), &json!(false)));
    assert!(second["eval_loss"].as_f64().unwrap() > 0.0 && second["eval_exact"].is_number());
    assert_eq!(steps(&scene), [1, 2, 3, 4, 5, 6]);
    assert_eq!(fs::read_dir(scene.path("run/state")).unwrap().count(), 1);
    // Another recipe in the same folder is refused.
    let ran = scene.run(&[&small[..], &["lr=1"]].concat());
    assert!(ran.code == 2 && ran.err.contains("another lr"), "{ran:?}");

    let exported = scene.json(&["train", "run", "--export", "tuned"]);
    assert_eq!(exported, json!({ "path": "tuned", "step": 6 }));
    assert_eq!(scene.run(&["run", "tuned", "a.png", "caption en", "-n", "3"]).code, 0);
    assert_eq!(scene.run(&["train", "run", "--export", "tuned"]).code, 2);
    for name in ["curves.png", "curves.svg"] {
        let plotted = scene.json(&["plot", "run", "-o", name]);
        assert_eq!(plotted, json!({ "path": name, "steps": 6 }));
    }
    assert!(scene.read("curves.svg").contains("learning rate by step"));
    paligemma::image::decode_file(&scene.path("curves.png")).unwrap();
    let ran = scene.run(&["plot", "run", "-o", "curves.gif"]);
    assert!(ran.code == 2 && ran.err.contains("neither PNG nor SVG"), "{ran:?}");
}

#[test]
fn adapters_are_trained_written_and_used() {
    let scene = drawn(4);
    for (model, dtype) in [("m4", "int4"), ("m8", "int8"), ("m16", "bf16")] {
        assert_eq!(scene.run(&["random", "tiny", model, "--dtype", dtype, "-q"]).code, 0);
        let init = format!("model.init={model}");
        let out = format!("out=run-{model}");
        let files = "data.train.files=d.jsonl";
        let train =
            ["train", "lora", &init, files, &out, "epochs=4", "batch=2", "lr=1e-2", "tensorboard=true"];
        let trained = scene.json(&train);
        assert_eq!((&trained["step"], &trained["total"]), (&json!(8), &json!(8)));
        let losses: Vec<f64> = scene
            .read(&format!("run-{model}/metrics.jsonl"))
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect();
        assert!(losses.len() == 8 && losses[6] + losses[7] < 0.9 * (losses[0] + losses[1]), "{losses:?}");
        let adapter = format!("adapter-{model}");
        scene.json(&["train", &format!("run-{model}"), "--export", &adapter]);
        let answer = |args: &[&str]| {
            let ran =
                scene.run(&[&["run", model, "a.png", "caption en", "-n", "8", "--json"], args].concat());
            assert_eq!(ran.code, 0, "{ran:?}");
            ran.json()["logprobs"].clone()
        };
        assert_ne!(answer(&[]), answer(&["--adapter", &adapter]));
        let events: Vec<_> = fs::read_dir(scene.path(&format!("run-{model}")))
            .unwrap()
            .filter(|entry| {
                entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents.")
            })
            .collect();
        assert_eq!(events.len(), 1);
    }
    // What is quantised cannot learn itself.
    let ran = scene.run(&["train", "transfer", "model.init=m8", "data.train.files=d.jsonl", "out=x"]);
    assert!(ran.code == 2 && ran.err.contains("is quantised") && ran.err.contains("lora.rank"), "{ran:?}");
    let ran = scene.run(&["run", "m16", "a.png", "x", "--adapter", "m16"]);
    assert!(ran.code == 2 && ran.err.contains("holds no adapter"), "{ran:?}");
}

/// Killed at fifty moments, a run loses no state that was there, and goes on from it.
#[cfg(unix)]
#[test]
fn kills_lose_nothing() {
    let scene = drawn(4);
    let args = [&SMALL[..], &["epochs=1000", "log_every=1", "keep=2", "eval_every=100000", "-q"]].concat();
    let started = Instant::now();
    assert_eq!(scene.run(&[&args[..], &["out=measure", "--steps", "2"]].concat()).code, 0);
    let two_steps = started.elapsed();
    let mut last = 0;
    for i in 0..50 {
        let mut child = scene.command(&args).stderr(Stdio::null()).spawn().unwrap();
        // From before the first step to the middle of a later one.
        sleep(two_steps.mul_f64(0.4 + f64::from(i * 53 % 240) / 150.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let states = fs::read_dir(scene.path("run/state")).map(|entries| {
            let name =
                |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
            entries
                .map(name)
                .filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok())
                .max()
                .unwrap_or(0)
        });
        let newest = states.unwrap_or(0);
        assert!(newest >= last, "{newest} after {last}");
        last = newest;
    }
    assert!(last > 10, "only {last} steps were done in fifty starts");
    let ran = scene.run(&[&args[..], &["--steps", &(last + 2).to_string()]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(steps(&scene).iter().copied().eq(1..=last + 2), "{:?}", steps(&scene));
}

/// The program under `limit`, a line of the shell.
#[cfg(target_os = "linux")]
fn run_under(scene: &Scene, limit: &str, args: &[&str]) -> Ran {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]);
    through(scene, shell, args).unwrap()
}

/// The program with `args` as the arguments of another one, where and with what it would be run itself.
#[cfg(target_os = "linux")]
fn through(scene: &Scene, mut other: Command, args: &[&str]) -> std::io::Result<Ran> {
    let program = scene.command(args);
    other
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(scene.path(""))
        .env_clear()
        .envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .stdin(Stdio::null());
    other.output().map(Ran::from)
}

/// Every file of the saved states with what is in it.
#[cfg(target_os = "linux")]
fn states(scene: &Scene) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = fs::read_dir(scene.path("run/state")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Writes a recipe in which one vector of 64 numbers learns, so that a state is smaller than its manifest.
#[cfg(target_os = "linux")]
fn write_little(scene: &Scene) {
    let recipe = r"
        lr = 1e-3
        optimiser = 'sgd'
        freeze = ['(?!llm/final_norm/scale$|language_model\.norm\.weight$).*']
        model.init = 'm32'
        data.train.files = 'd.jsonl'
        batch = 2
        out = 'run'
        save_every = 1
    ";
    scene.write("little.toml", recipe);
}

/// A file that may not grow, as a limit or a quota has it: whichever file it is, the run stops, the states are as they were, and
/// it goes on when there is room.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr, reason = "what was skipped and why")]
fn no_room_for_a_file_stops_a_run_and_loses_nothing() {
    let scene = drawn(4);
    write_little(&scene);
    // In a limit that is asked of `ulimit -f` a manifest has room.
    let limit = |bytes: u32| format!("/usr/bin/prlimit --fsize={bytes} --pid $$ || exit 99");
    if run_under(&scene, &limit(1 << 30), &["show", "m32"]).code != 0 {
        eprintln!("skipped: there is no prlimit here");
        return;
    }
    let check = |file: &str, recipe: &[&str], first: &str, bytes: u32| {
        let _ = fs::remove_dir_all(scene.path("run"));
        let _ = fs::remove_dir_all(scene.path("whole"));
        let args = [recipe, &["epochs=5", "log_every=1", "keep=2"]].concat();
        let whole = [&args[..], &["out=whole"]].concat();
        assert_eq!(scene.run(&whole).code, 0);
        assert_eq!(scene.run(&[&args[..], &["--steps", first]].concat()).code, 0);
        let before = states(&scene);
        let ran = run_under(&scene, &format!("trap '' XFSZ; {}", limit(bytes)), &args);
        assert_eq!(ran.code, 5, "{file}: {ran:?}");
        assert!(ran.err.contains(file) && ran.err.contains("too large"), "{file}: {ran:?}");
        assert!(before == states(&scene), "{file}: the states have changed");
        // A system that does not ask whether the program wants to hear of it ends it there.
        let killed = run_under(&scene, &limit(bytes), &args);
        assert!(killed.code != 0 && killed.code != 101, "{file}: {killed:?}");
        assert!(states(&scene).starts_with(&before), "{file}: the states have changed");
        let ran = scene.run(&args);
        assert!(ran.code == 0 && ran.err.contains("going on behind step"), "{file}: {ran:?}");
        let hashes = |run: &str| scene.read(&format!("{run}/state/step-000010/manifest.json"));
        assert_eq!(hashes("run"), hashes("whole"), "{file}");
        assert!(steps(&scene).iter().copied().eq(1..=10), "{file}");
    };
    let (usual, little) = ([&SMALL[..], &["eval.answers=false"]].concat(), ["train", "little.toml"]);
    check("weights.safetensors", &usual, "1", 600_000);
    check("optimiser.safetensors", &usual, "2", 2_000_000);
    check("manifest.json", &little, "1", 420);
    check("metrics.jsonl", &little, "4", 600);
}

/// Disks of thirty sizes, a page more each: the run ends as it should or stops for want of room; on a larger disk it goes on,
/// and ends with the same bytes.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr, reason = "what was skipped and why")]
fn full_disks_of_thirty_sizes_lose_nothing() {
    let scene = drawn(2);
    write_little(&scene);
    let args = ["train", "little.toml", "epochs=4", "keep=1"];
    assert_eq!(scene.run(&[&args[..], &["out=whole"]].concat()).code, 0);
    let want = scene.read("whole/state/step-000004/manifest.json");
    fs::create_dir(scene.path("run")).unwrap();
    // Whoever may have a name space of their own may mount a disk of memory in it.
    let on_disk = |kib: u32, then: &str| {
        let script = format!("/bin/mount -t tmpfs -o size={kib}k none run || exit 99\n{then}");
        let mut shell = Command::new("/usr/bin/unshare");
        shell.args(["-Urm", "/bin/sh", "-c", &script]);
        through(&scene, shell, &args)
    };
    match on_disk(64, "exit 0") {
        Ok(ran) if ran.code == 0 => {}
        no => {
            eprintln!("skipped: this system lets nobody mount a small disk: {no:?}");
            return;
        }
    }
    let (mut stopped, mut done) = (0, 0);
    for kib in (1..=30).map(|pages| pages * 4) {
        let then = "\"$0\" \"$@\"; echo first $?; /bin/mount -o remount,size=64m run || exit 99\n\
            ls run/state/*.tmp 2>/dev/null; \"$0\" \"$@\" || exit 98; cat run/state/*/manifest.json";
        let ran = on_disk(kib, then).unwrap();
        assert_eq!(ran.code, 0, "{kib} KiB: {ran:?}");
        let (first, rest) = ran.out.split_once('\n').unwrap();
        assert_eq!(rest, want, "{kib} KiB: {ran:?}");
        match first {
            "first 0" => done += 1,
            "first 5" => {
                stopped += 1;
                assert!(ran.err.contains("error: ") && !ran.err.contains("panicked"), "{ran:?}");
            }
            other => panic!("{kib} KiB: {other}: {ran:?}"),
        }
    }
    assert!(stopped >= 5 && done >= 5, "{stopped} stopped, {done} done");
}

/// Under twelve limits of its memory a run is refused before it begins, with what would make it fit; and where it fits, it ends
/// as it should.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_does_not_fit_is_refused() {
    let scene = drawn(2);
    let large = [&SMALL[..], &["epochs=1", "batch=128", "eval.answers=false"]].concat();
    let dry = run_under(&scene, "ulimit -v 400000", &[&large[..], &["--dry-run", "--json"]].concat());
    assert_eq!(dry.code, 5, "{dry:?}");
    let total = dry.json()["memory_total"].as_u64().unwrap() >> 10;
    assert!(total > 400_000, "{total} kB");
    let mut told = 0;
    for i in 0..12 {
        let kb = 100_000 + (total - 100_000) * i / 12;
        let ran = run_under(&scene, &format!("ulimit -v {kb}"), &large);
        assert!(ran.code == 5 && ran.err.contains("error: "), "{kb} kB: {ran:?}");
        told += usize::from(
            ["the run needs ", " are available", "micro_batch=1 → "]
                .iter()
                .all(|part| ran.err.contains(part)),
        );
        assert!(!scene.path("run/state").exists());
    }
    // The C library sets address space aside for each thread, now more, now less: under the lowest limits the program may not
    // get as far as that.
    assert!(told >= 8, "{told}");
    let small = [&SMALL[..], &["epochs=1", "eval.answers=false"]].concat();
    for kb in (1..=12).map(|i| 40_000 + i * 20_000) {
        let _ = fs::remove_dir_all(scene.path("run"));
        let ran = run_under(&scene, &format!("ulimit -v {kb}"), &small);
        assert!(ran.code == 0 || ran.code == 5 && ran.err.contains("error: "), "{kb} kB: {ran:?}");
    }
    let _ = fs::remove_dir_all(scene.path("run"));
    let ran = run_under(&scene, "ulimit -v 2000000", &small);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_a_folder_has_one_run() {
    let scene = drawn(4);
    let args = [&SMALL[..], &["epochs=100000", "save_every=0"]].concat();
    let child = scene.command(&args).spawn().unwrap();
    let metrics = scene.path("run/metrics.jsonl");
    for _ in 0..2000 {
        if fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 1) {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    let other = scene.run(&args);
    assert!(other.code == 2 && other.err.contains("another run is training"), "{other:?}");
    assert!(other.err.contains(&format!("process {}", child.id())), "{other:?}");
    interrupt(&child);
    assert_eq!(code_in_time(child), Some(130));
    let saved = fs::read_dir(scene.path("run/state")).unwrap().count();
    assert_eq!(saved, 1);
}

#[test]
fn recipes_are_listed_shown_copied_and_run() {
    let scene = drawn(1);
    let listed = scene.json(&["recipes", "ls"]);
    let names: Vec<&str> =
        listed["recipes"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    let known = [
        "transfer",
        "lora",
        "low-memory",
        "siglip",
        "stage1-3b",
        "stage2-3b-448",
        "stage2-3b-896",
        "vqvae",
        "overfit",
        "nano-stage0-image",
        "nano-stage0-language",
        "nano-stage1-one",
        "nano-stage1",
        "nano-stage2",
        "nano-transfer-count",
        "nano-transfer-refer",
        "nano-transfer-aerial",
    ];
    assert_eq!(names, known);
    for name in names {
        let text = scene.json(&["recipes", "show", name])["text"].as_str().unwrap().to_owned();
        // Its head holds a command that runs it, and a sentence that says what it is for.
        assert!(text.starts_with("# ") && text.contains(&format!("#   paligemma train {name} ")), "{name}");
        let file = format!("{name}.toml");
        scene.json(&["recipes", "copy", name, &file]);
        assert_eq!(scene.read(&file), text);
        // These begin with no model; nano's have their own data, and a test of their own.
        if ["vqvae", "siglip"].contains(&name) || name.starts_with("nano-") {
            continue;
        }
        let eval = ["eval.files=d.jsonl"];
        let eval: &[&str] = if name == "overfit" { &eval } else { &[] };
        let args =
            [&["train", &file, "model.init=m32", "data.train.files=d.jsonl", "batch=8", "--dry-run"], eval]
                .concat();
        let args = if name == "low-memory" { [&args[..], &["batch=1"]].concat() } else { args };
        assert_eq!(scene.json(&args)["examples"].as_array().unwrap().len(), 3, "{name}");
    }
    assert_eq!(scene.run(&["recipes", "copy", "lora", "lora.toml"]).code, 2);
    let keys = scene.json(&["recipes", "ls", "--keys"]);
    assert!(keys["keys"]["lora.rank"].is_string());
    for (args, part) in [
        (vec!["recipes", "show", "lore"], "no recipe lore"),
        (vec!["train", "lore"], "no recipe lore"),
        (vec!["train", "lora", "lr=1", "batchsize=3"], "unknown key, batchsize"),
        (vec!["train", "lora", "model.init=m32", "data.train.files=absent.jsonl"], "absent.jsonl"),
        (
            vec!["train", "lora", "model.init=m32", "data.train.files=d.jsonl", "lora.targets=q_proj"],
            "lora.targets",
        ),
        (vec!["train", "transfer", "model.init=m32", "data.train.files=d.jsonl", "freeze=vision"], "freeze"),
    ] {
        let ran = scene.run(&args);
        assert!(ran.code >= 2 && ran.out.is_empty() && ran.err.contains(part), "{args:?}: {ran:?}");
    }
}

/// From pictures to answers by heart, by one recipe: eight pictures here, two hundred in `--ignored`.
#[test]
fn a_tiny_model_learns_pictures_by_heart() {
    by_heart(8, "epochs=100");
}

#[test]
#[ignore = "two hundred pictures take minutes in a build for debugging"]
fn a_tiny_model_learns_two_hundred_pictures_by_heart() {
    by_heart(200, "keep=1");
}

fn by_heart(count: usize, change: &str) {
    let scene = drawn(count);
    let args = [
        "train",
        "overfit",
        "model.init=m32",
        "data.train.files=d.jsonl",
        "eval.files=d.jsonl",
        "out=run",
        change,
    ];
    let trained = scene.json(&args);
    assert_eq!(trained["eval_exact"], json!(1.0), "{trained}");
}
