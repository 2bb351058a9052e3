//! `bench`: its keys, its table, and what it refuses. How fast is no question for a test.

use crate::{Scene, keys};
use serde_json::Value;

const SPREADS: [&str; 4] = ["image_encode_s", "prefill_s", "ttft_s", "decode_token_s"];
const NUMBERS: [&str; 7] = [
    "load_s",
    "peak_rss_bytes",
    "weights_bytes",
    "memory_bandwidth_bytes_per_s",
    "gemm_peak_flops",
    "prefill_of_peak",
    "decode_of_bandwidth",
];

fn check(figures: &Value) {
    let mut want = [&SPREADS[..], &NUMBERS, &["threads", "isa"]].concat();
    let mut got = keys(figures);
    want.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, want);
    let number = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
    for name in SPREADS {
        assert_eq!(keys(&figures[name]), ["median", "min", "max"], "{name}");
        let of = |key: &str| number(&figures[name][key]).unwrap_or_else(|| panic!("{name} {key}: {figures}"));
        assert!(of("min") <= of("median") && of("median") <= of("max"), "{name}: {figures}");
    }
    for name in NUMBERS {
        assert!(number(&figures[name]).is_some(), "{name}: {figures}");
    }
    // The parts are parts of the same runs.
    let median = |name: &str| figures[name]["median"].as_f64().unwrap();
    assert!(median("ttft_s") > median("image_encode_s").max(median("prefill_s")), "{figures}");
}

#[test]
fn figures_of_files_and_of_random_weights() {
    let scene = Scene::new();
    // The tiny model; Gemma 2 has another key head and two more norms a layer.
    let weights = 326_336;
    for (args, bytes) in [
        (&["m"][..], 2 * weights),
        (&["m", "--dtype", "f32", "--repeat", "1"], 4 * weights),
        (&["--random", "tiny"], 2 * weights),
        (&["--random", "tiny", "--dtype", "f32", "--batch", "3", "--new-tokens", "2"], 4 * weights),
        (
            &["--random", "2-tiny", "--prompt-tokens", "3", "--repeat", "2", "--dtype", "f16"],
            2 * (weights + 4352),
        ),
        (&["--random", "tiny", "--dtype", "int8", "--repeat", "1"], 398_208),
        (&["--random", "tiny", "--dtype", "int4", "--repeat", "1"], 363_904),
    ] {
        let figures = scene.json(&[&["bench", "--threads", "2"], args].concat());
        check(&figures);
        assert_eq!(figures["weights_bytes"], bytes, "{args:?}");
        assert_eq!(figures["threads"], 2, "{args:?}");
        assert!(
            ["portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"]
                .contains(&figures["isa"].as_str().unwrap())
        );
    }
    let ran = scene
        .command(&["bench", "--random", "tiny", "--repeat", "1", "--json"])
        .env("PALIGEMMA_ISA", "portable")
        .output()
        .unwrap();
    assert_eq!(crate::Ran::from(ran).json()["isa"], "portable");
}

#[test]
fn steps_of_training() {
    let scene = Scene::new();
    for args in [
        &["m", "--train", "lora"][..],
        &["--random", "tiny", "--dtype", "int4", "--train", "lora"],
        &["--random", "2-tiny", "--train", "full"],
        &["m", "--dtype", "f32", "--train", "full"],
    ] {
        let figures = scene.json(&[&["bench", "--repeat", "2", "--new-tokens", "3"], args].concat());
        assert_eq!(
            keys(&figures),
            [
                "train_step_s",
                "load_s",
                "peak_rss_bytes",
                "weights_bytes",
                "threads",
                "isa",
                "gemm_peak_flops",
                "train_of_peak"
            ]
        );
        assert!(figures["train_step_s"]["median"].as_f64().unwrap() > 0.0, "{figures}");
        assert!(figures["train_of_peak"].as_f64().unwrap() > 0.0, "{figures}");
    }
    let ran = scene.run(&["bench", "--random", "tiny", "--dtype", "int8", "--train", "full"]);
    assert!(ran.code == 2 && ran.err.contains("int8"), "{ran:?}");
}

#[test]
fn for_people() {
    let scene = Scene::new();
    let ran = scene.run(&["bench", "m", "--repeat", "2"]);
    let names: Vec<&str> = ran.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, keys(&scene.json(&["bench", "m", "--repeat", "1"])), "{ran:?}");
    assert!(ran.err.contains("run 2 of 2"), "{ran:?}");
    let ran = scene.run(&["bench", "m", "--repeat", "2", "--table", "-q"]);
    assert!(ran.code == 0 && ran.err.is_empty(), "{ran:?}");
    let (head, table) = ran.out.split_once("\n\n").unwrap();
    assert!(head.starts_with("m: 256 image and 16 prompt tokens, 32 new tokens, batch 1; "), "{head}");
    assert!(table.lines().count() == 11 && table.lines().all(|row| row.matches('|').count() == 5), "{table}");
}

/// A line of figures for each line on stdin.
#[test]
fn turns() {
    let scene = Scene::new();
    let args = ["bench", "m", "--turns", "--json", "--new-tokens", "3"];
    for lines in ["", "\n", "1\n2\n", "1\n2\n3"] {
        let ran = scene.run_with_stdin(&args, lines.as_bytes());
        assert_eq!((ran.code, ran.out.lines().count()), (0, lines.lines().count()), "{ran:?}");
        for line in ran.out.lines() {
            let figures: Value = serde_json::from_str(line).unwrap();
            check(&figures);
            assert_eq!(figures["prefill_s"]["min"], figures["prefill_s"]["max"]);
        }
    }
}

#[test]
fn what_makes_no_sense_is_named() {
    let scene = Scene::new();
    for (args, code, named) in [
        (&[][..], 2, "MODEL"),
        (&["m", "--random", "tiny"], 2, "--random"),
        (&["--random", "4b-224"], 2, "4b-224"),
        (&["--random"], 2, "--random"),
        (&["absent"], 2, "absent"),
        (&["a.png"], 1, "a.png"),
        (&["m", "--dtype", "int3"], 2, "int3"),
        (&["m", "--dtype", "int8"], 2, "convert"),
        (&["m", "--dtype", "int4", "--train", "lora"], 2, "convert"),
        (&["m", "--prompt-tokens", "0"], 2, "--prompt-tokens"),
        (&["m", "--new-tokens", "1"], 2, "--new-tokens"),
        (&["m", "--batch", "0"], 2, "--batch"),
        (&["m", "--repeat", "0"], 2, "--repeat"),
        (&["m", "--threads", "0"], 2, "--threads"),
        (&["m", "--table", "--json"], 2, "--table"),
        (&["m", "--turns"], 2, "--json"),
        (&["m", "--turns", "--json", "--repeat", "2"], 2, "--repeat"),
        (&["m", "--frob"], 2, "--frob"),
    ] {
        let ran = scene.run(&[&["bench"], args].concat());
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: ") && ran.err.contains(named), "{args:?}: {}", ran.err);
    }
}
