//! `random`: a checkpoint of random weights.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, size},
};
use paligemma::{
    Error, Result,
    checkpoint::{Checkpoint, Form, random_folder},
    config::Config,
};
use serde_json::json;
use std::{path::Path, process::ExitCode};

/// The shape of the published model of that name.
pub(super) fn published(name: &str) -> Result<Config> {
    Config::published(name).ok_or_else(|| {
        Error::usage(format!("there is no size \"{name}\""))
            .expected(format!("one of {}", Config::published_names().join(", ")))
    })
}

pub(super) fn random(args: &Args, name: &str, out: &Path, form: Form, seed: u64) -> anyhow::Result<ExitCode> {
    let config = published(name)?;
    let mut meter = Meter::new("random", args.quiet);
    let heeding = open::Heeding::begin();
    random_folder(&config, out, form, seed, &mut |done, total| meter.at(done, total))?;
    drop((meter, heeding));
    let parameters = config.num_parameters();
    let bytes = Checkpoint::open(out)?.num_bytes();
    if args.json {
        print_json(&json!({
            "path": out,
            "config": name,
            "dtype": form.name(),
            "seed": seed,
            "parameters": parameters,
            "bytes": bytes,
        }))?;
    }
    note(
        args.quiet || args.json,
        format_args!("{}: random weights, {}; answers will be noise", out.display(), size(bytes)),
    );
    Ok(ExitCode::SUCCESS)
}
