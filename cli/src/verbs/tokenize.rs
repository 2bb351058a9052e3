//! `tokenize`: text to ids.

use crate::{
    args::Args,
    open,
    output::{print_json, print_line},
};
use paligemma::{Error, Result, checkpoint::hub::Want, text::Tokenizer};
use serde_json::json;
use std::{
    io::{self, Read},
    path::Path,
    process::ExitCode,
};

/// The most text that is read from stdin.
const MAX_STDIN: u64 = 64 << 20;

pub(super) fn tokenize(
    args: &Args,
    model: &str,
    text: &str,
    file: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let tokenizer = match file {
        Some(file) => Tokenizer::from_file(file)?,
        None => of_model(args, model)?,
    };
    let ids = if text == "-" {
        let mut text = String::new();
        io::stdin().lock().take(MAX_STDIN).read_to_string(&mut text).map_err(|e| Error::io("stdin", e))?;
        tokenizer.encode(&text)?
    } else {
        tokenizer.encode(text)?
    };
    let pieces = tokenizer.pieces(&ids);
    if args.json {
        print_json(&json!({ "ids": ids, "pieces": pieces }))?;
    } else {
        for (id, piece) in ids.iter().zip(&pieces) {
            print_line(format_args!("{id}\t{}", piece.escape_debug()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tokenizer of a model: in its folder, beside its file, or the file itself.
fn of_model(args: &Args, model: &str) -> Result<Tokenizer> {
    let path = open::find(args, model, Want::Tokenizer)?.path;
    if path.is_dir() {
        return Tokenizer::from_folder(&path);
    }
    let is_weights =
        path.to_string_lossy().contains(".npz") || path.extension().is_some_and(|e| e == "safetensors");
    if is_weights {
        Tokenizer::from_folder(path.parent().unwrap_or(Path::new(".")))
    } else {
        Tokenizer::from_file(&path)
    }
}
