//! `convert`: one checkpoint format to another.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, size},
};
use paligemma::{
    Error,
    checkpoint::{self, Form, Scheme},
};
use serde_json::json;
use std::{path::Path, process::ExitCode};

pub(super) fn convert(
    args: &Args,
    input: &str,
    out: &Path,
    form: Option<Form>,
    image_size: Option<usize>,
) -> anyhow::Result<ExitCode> {
    let input = open::checkpoint(args, input)?;
    let mut meter = Meter::new("convert", args.quiet);
    let heeding = open::Heeding::begin();
    let mut progress = |done, total| meter.at(done, total);
    let summary = match (image_size, form) {
        (None, _) => checkpoint::convert(&input, out, form, &mut progress)?,
        (Some(_), Some(Form::Quantised(scheme))) => {
            return Err(Error::usage(format!("--image-size goes with plain numbers, not with {scheme}"))
                .hint("convert twice: first to the image size, then to the scheme")
                .into());
        }
        (Some(size), Some(Form::Plain(dtype))) => {
            checkpoint::with_image_size(&input, out, size, Some(dtype), &mut progress)?
        }
        (Some(size), None) => checkpoint::with_image_size(&input, out, size, None, &mut progress)?,
    };
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
