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
