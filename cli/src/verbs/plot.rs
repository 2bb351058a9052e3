//! `plot`

use crate::{
    args::Args,
    output::{note, print_json, write_file},
};
use paligemma::{
    Error,
    image::{chart_png, chart_svg},
    train::panels,
};
use serde_json::json;
use std::{path::Path, process::ExitCode};

pub(super) fn plot(args: &Args, run: &Path, output: Option<&Path>) -> anyhow::Result<ExitCode> {
    let usual = run.join("curves.png");
    let output = output.unwrap_or(&usual);
    let (panels, steps) = panels(run)?;
    let bytes = match output.extension().and_then(|e| e.to_str()) {
        Some("png") => chart_png(&panels, "step")?,
        Some("svg") => chart_svg(&panels, "step")?.into_bytes(),
        _ => {
            return Err(Error::usage(format!("{} is neither PNG nor SVG", output.display()))
                .expected("a name that ends in .png or .svg")
                .into());
        }
    };
    write_file(output, &bytes)?;
    if args.json {
        print_json(&json!({ "path": output, "steps": steps }))?;
    }
    note(args.quiet || args.json, format_args!("wrote {}", output.display()));
    Ok(ExitCode::SUCCESS)
}
