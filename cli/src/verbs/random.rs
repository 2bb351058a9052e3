//! `random`: a checkpoint of random weights.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, size},
};
use paligemma::{DType, Error, Result, checkpoint::random_folder, config::Config};
use serde_json::json;
use std::{path::Path, process::ExitCode};

/// The shape of the published model of that name.
pub(super) fn published(name: &str) -> Result<Config> {
    Config::published(name).ok_or_else(|| {
        Error::usage(format!("there is no size \"{name}\""))
            .expected(format!("one of {}", Config::published_names().join(", ")))
    })
}

pub(super) fn random(
    args: &Args,
    name: &str,
    out: &Path,
    dtype: DType,
    seed: u64,
) -> anyhow::Result<ExitCode> {
    let config = published(name)?;
    let mut meter = Meter::new("random", args.quiet);
    let heeding = open::Heeding::begin();
    random_folder(&config, out, dtype, seed, &mut |done, total| meter.at(done, total))?;
    drop((meter, heeding));
    let parameters = config.num_parameters();
    if args.json {
        print_json(&json!({
            "path": out,
            "config": name,
            "dtype": dtype.name(),
            "seed": seed,
            "parameters": parameters,
            "bytes": parameters * dtype.size() as u64,
        }))?;
    }
    note(
        args.quiet || args.json,
        format_args!(
            "{}: random weights, {}; answers will be noise",
            out.display(),
            size(parameters * dtype.size() as u64)
        ),
    );
    Ok(ExitCode::SUCCESS)
}
