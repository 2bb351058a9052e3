//! `assemble`: an image encoder and a language model joined.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, size},
};
use paligemma::{
    DType,
    checkpoint::{self, Checkpoint, LanguagePart, VisionPart, hub::Want},
    text::tokenizer_file,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// How they are joined.
pub(super) struct Job<'a> {
    pub(super) tokenizer: Option<&'a Path>,
    pub(super) dtype: DType,
    pub(super) seed: u64,
}

pub(super) fn assemble(
    args: &Args,
    vision: &str,
    language: &str,
    out: &Path,
    job: &Job<'_>,
) -> anyhow::Result<ExitCode> {
    let find = |name: &str| -> anyhow::Result<PathBuf> {
        // A path is taken as it stands; anything else may be a repository of the Hub.
        let path = PathBuf::from(name);
        Ok(if path.exists() { path } else { open::find(args, name, Want::Model)?.path })
    };
    let vision = VisionPart::open(&find(vision)?)?;
    let language = LanguagePart::open(&find(language)?)?;
    let tokenizer = match job.tokenizer {
        Some(file) => file.to_path_buf(),
        None => tokenizer_file(language.folder())?,
    };
    let mut meter = Meter::new("assemble", args.quiet);
    let heeding = open::Heeding::begin();
    let progress = &mut |done, total| meter.at(done, total);
    let config = checkpoint::assemble(&vision, &language, &tokenizer, out, job.dtype, job.seed, progress)?;
    drop((meter, heeding));
    let bytes = Checkpoint::open(out)?.num_bytes();
    if args.json {
        print_json(&json!({
            "path": out,
            "parameters": config.num_parameters(),
            "bytes": bytes,
            "new_rows": config.text.vocab_size - language.config.vocab_size,
            "image_token_index": config.image_token_index,
            "dtype": job.dtype.name(),
            "seed": job.seed,
        }))?;
    }
    note(args.quiet || args.json, format_args!("{}: {}", out.display(), size(bytes)));
    Ok(ExitCode::SUCCESS)
}
