//! `verify`: a golden recomputed.

use crate::{
    args::Args,
    open,
    output::{print_json, print_line},
};
use paligemma::{
    DType,
    verify::{Golden, verify as compare},
};
use serde_json::json;
use std::{path::Path, process::ExitCode};

pub(super) fn verify(
    args: &Args,
    model: &str,
    golden: &Path,
    dtype: Option<DType>,
    sliding_window: bool,
) -> anyhow::Result<ExitCode> {
    let golden = Golden::open(golden)?;
    let checkpoint = open::checkpoint(args, model)?;
    // A quantised model is itself only as it is stored.
    let dtype = dtype.or(checkpoint.scheme().is_none().then_some(DType::F32));
    let model = golden.load_model(&checkpoint, dtype)?.with_sliding_window(sliding_window);
    // Made plain again, its numbers are still those of bytes.
    let held = dtype.filter(|_| checkpoint.scheme().is_none()).unwrap_or(DType::U8);
    let verdict = compare(&model, &golden, held)?;
    if args.json {
        let tensors: Vec<_> = verdict
            .tensors
            .iter()
            .map(|t| {
                json!({
                    "name": t.name,
                    "max_abs": t.max_abs,
                    "max_rel": t.max_rel,
                    "tolerance": t.tolerance,
                    "ok": t.ok,
                })
            })
            .collect();
        print_json(&json!({ "ok": verdict.ok(), "tensors": tensors }))?;
    } else {
        for t in &verdict.tensors {
            print_line(format_args!(
                "{} {}  max_abs {:.2e}  max_rel {:.2e}  tolerance {:.0e}",
                if t.ok { "ok     " } else { "DEPARTS" },
                t.name,
                t.max_abs,
                t.max_rel,
                t.tolerance
            ))?;
        }
        match verdict.first_departure() {
            Some(t) => print_line(format_args!("the first to depart is {}", t.name))?,
            None => print_line("all agree")?,
        }
    }
    Ok(if verdict.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
