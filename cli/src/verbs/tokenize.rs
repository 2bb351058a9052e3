//! `tokenize`: text to ids.

use crate::{
    args::Args,
    open,
    output::{print, print_json},
};
use paligemma::{
    Error, Kind, Result,
    checkpoint::{
        hub::Want,
        locate::{Location, Source},
    },
    nano,
    text::Tokenizer,
};
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
    let ids = tokenizer.encode(&if text == "-" { read_stdin()? } else { text.to_owned() })?;
    let pieces = tokenizer.pieces(&ids);
    if args.json {
        print_json(&json!({ "ids": ids, "pieces": pieces }))?;
    } else {
        let line = |(id, piece): (&u32, &String)| format!("{id}\t{}\n", piece.escape_debug());
        print(ids.iter().zip(&pieces).map(line).collect::<String>().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut bytes).map_err(|e| Error::io("stdin", e))?;
    if bytes.len() as u64 > MAX_STDIN {
        return Err(Error::input("the text on stdin is over 64 MiB"));
    }
    String::from_utf8(bytes)
        .map_err(|e| Error::new(Kind::Input, format!("the text is not UTF-8: {e}")).at("stdin"))
}

/// The tokenizer of a model: in its folder, beside its file, or the file itself.
pub(super) fn of_model(args: &Args, model: &str) -> Result<Tokenizer> {
    let Location { source, path, .. } = open::find(args, model, Want::Tokenizer)?;
    if source == Source::BuiltIn {
        return Tokenizer::from_model_bytes(nano::TOKENIZER);
    }
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
