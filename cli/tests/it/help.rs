//! `--help`, `man` and `completions`: all made from one definition.

use crate::{Scene, VERBS};
use expect_test::expect_file;
use std::time::{Duration, Instant};

#[test]
fn the_help_of_the_program() {
    let scene = Scene::new();
    let ran = scene.run(&["--help"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    expect_file!["help.txt"].assert_eq(&ran.out);
    // No verb at all is a mistake that shows the same.
    let ran = scene.run(&[]);
    assert!(ran.code == 2 && ran.out.is_empty() && ran.err.contains("Usage: paligemma"), "{ran:?}");
}

#[test]
fn every_verb_has_help_with_an_example_and_a_man_page() {
    let scene = Scene::new();
    let help = scene.run(&["--help"]).out;
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .filter(|verb| *verb != "help")
        .collect();
    assert_eq!(listed, VERBS);
    for verb in VERBS {
        let help = scene.run(&[verb, "--help"]);
        assert!(help.code == 0 && help.err.is_empty(), "{help:?}");
        let (_, examples) = help.out.split_once("Example").unwrap_or_else(|| panic!("{verb}: {}", help.out));
        assert!(examples.contains(&format!("paligemma {verb}")), "{verb}: {}", help.out);
        assert!(help.out.lines().all(|line| line.chars().count() <= 100), "{verb}: {}", help.out);
        assert!(help.out.contains("--json"), "{verb}");
        let man = scene.run(&["man", verb]);
        assert!(man.code == 0 && man.out.contains(&format!(".TH paligemma-{verb} 1")), "{man:?}");
        assert!(man.out.contains(".SH SYNOPSIS"), "{verb}");
    }
    let man = scene.run(&["man"]).out;
    assert!(VERBS.iter().all(|verb| man.contains(&format!("paligemma\\-{verb}"))), "{man}");
}

/// The flags of a verb's help, and the variables that are their twins.
fn flags(scene: &Scene, verb: &str) -> (Vec<String>, Vec<String>) {
    let help = scene.run(&[verb, "--help"]).out;
    let options = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = options.filter_map(|line| line.split([' ', ',']).find(|word| word.starts_with("--")));
    let twins = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
    (flags.map(str::to_owned).collect(), twins.map(str::to_owned).collect())
}

#[test]
fn every_verb_has_its_flags() {
    let scene = Scene::new();
    let answering = "--max-tokens --temperature --top-k --top-p --seed --beams --beam-rule --stop --dtype --preprocess --no-antialias --tokenizer --sliding-window";
    for (verbs, promised) in [
        (&VERBS[..], "--json --quiet --threads --offline --help"),
        (&["run", "caption", "ask", "ocr", "detect", "segment", "predict"], answering),
        (&["caption", "ask", "ocr", "detect", "segment"], "--lang"),
        (&["predict"], "--output --batch"),
        (&["show"], "--tensors"),
        (&["convert"], "--dtype"),
        (&["tokenize"], "--tokenizer"),
        (&["verify"], "--dtype --sliding-window"),
        (&["random"], "--dtype --seed"),
        (&["rm"], "--yes"),
    ] {
        for verb in verbs {
            let (flags, _) = flags(&scene, verb);
            for flag in promised.split(' ') {
                assert!(flags.iter().any(|f| f == flag), "{verb} {flag}: {flags:?}");
            }
        }
    }
    // Greedy, one beam, 128 tokens: nothing that wrecks a list of boxes unless it is asked for.
    let help = scene.run(&["run", "--help"]).out.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, default) in [("max-tokens", "128"), ("temperature", "0"), ("beams", "1"), ("seed", "0")] {
        let (_, about) = help.split_once(&format!(" --{flag} ")).unwrap();
        let (about, _) = about.split_once(" --").unwrap();
        assert!(about.contains(&format!("[default: {default}]")), "{flag}: {about}");
    }
}

#[test]
fn the_readme_names_every_variable() {
    let scene = Scene::new();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let mut seen = 0;
    for verb in VERBS {
        for variable in flags(&scene, verb).1 {
            let short = variable.strip_prefix("PALIGEMMA").unwrap();
            assert!(
                readme.contains(&format!("`{variable}`")) || readme.contains(&format!("`{short}`")),
                "{verb}: {variable}"
            );
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn completions_of_every_shell_know_every_verb() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = scene.run(&["completions", shell]);
        assert!(ran.code == 0 && ran.err.is_empty(), "{ran:?}");
        for word in VERBS.iter().chain(&["max-tokens", "beam-rule"]) {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_version_says_what_it_computes_with() {
    let scene = Scene::new();
    let short = format!("paligemma {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(scene.run(&["-V"]).out, short);
    let long = scene.run(&["--version"]).out;
    assert!(long.starts_with(&short) && long.contains("kernels"), "{long}");
    // Which commit it is, where it is built from one.
    if let Some((_, commit)) = long.split_once("commit ") {
        let id = commit.split_once(',').unwrap().0;
        assert!(id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{long}");
    }
}

#[test]
fn help_comes_at_once() {
    let scene = Scene::new();
    let time = || {
        let start = Instant::now();
        assert_eq!(scene.run(&["--help"]).code, 0);
        start.elapsed()
    };
    // The best of many: other tests run beside this one.
    let best = (0..20).map(|_| time()).min().unwrap();
    assert!(best < Duration::from_millis(20), "{best:?}");
}
