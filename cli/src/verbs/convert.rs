//! `convert`: one checkpoint format to another.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, size},
};
use paligemma::checkpoint::{self, Form, Scheme};
use serde_json::json;
use std::{path::Path, process::ExitCode};

pub(super) fn convert(args: &Args, input: &str, out: &Path, form: Option<Form>) -> anyhow::Result<ExitCode> {
    let input = open::checkpoint(args, input)?;
    let mut meter = Meter::new("convert", args.quiet);
    let heeding = open::Heeding::begin();
    let summary = checkpoint::convert(&input, out, form, &mut |done, total| meter.at(done, total))?;
    drop((meter, heeding));
    if args.json {
        print_json(&json!({
            "path": summary.path,
            "format": summary.format.to_string(),
            "quantisation": summary.scheme.map(Scheme::name),
            "tensors": summary.num_tensors,
            "bytes": summary.num_bytes,
            "dropped_rows": summary.dropped_rows,
            "files": summary.files,
        }))?;
    }
    note(
        args.quiet || args.json,
        format_args!(
            "{}{} {}: {} tensors, {}",
            summary.scheme.map_or(String::new(), |scheme| format!("{scheme} ")),
            summary.format,
            summary.path.display(),
            summary.num_tensors,
            size(summary.num_bytes)
        ),
    );
    if let (Some(from), None) = (input.scheme(), summary.scheme) {
        note(args.quiet, format_args!("made plain numbers of {from}; what it lost stays lost"));
    }
    if summary.dropped_rows > 0 {
        note(
            args.quiet,
            format_args!(
                "left out: {} embedding rows from <image> on, which big_vision has not",
                summary.dropped_rows
            ),
        );
    }
    Ok(ExitCode::SUCCESS)
}
