//! Tells the program which commit it is built from, where it is built in its own repository.

use std::{env, path::Path, process::Command};

fn main() {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    println!("cargo::rerun-if-changed=build.rs");
    // A copy of the source may lie inside somebody else's repository.
    let ours =
        env::var("CARGO_MANIFEST_DIR").ok().and_then(|cli| Path::new(&cli).parent()?.canonicalize().ok());
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|top| Path::new(&top).canonicalize().ok());
    if top.is_none() || top != ours {
        return;
    }
    // Every commit and every checkout writes a line there.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=PALIGEMMA_COMMIT={commit}");
    }
}
