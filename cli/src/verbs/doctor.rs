//! `doctor`: what this machine is, for a bug report and for oneself.

use crate::{
    args::Args,
    open,
    output::{print_json, print_line, size},
};
use paligemma::{
    Isa,
    checkpoint::{available_memory, free_space, hub::token_status},
};
use serde_json::json;
use std::process::ExitCode;

pub(super) fn doctor(args: &Args) -> anyhow::Result<ExitCode> {
    let options = open::hub_options(args)?;
    let threads = rayon::current_num_threads();
    let isa = Isa::best().name();
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let memory = available_memory();
    let disk = free_space(&options.cache);
    let token = token_status(&options);
    if args.json {
        print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "isa": isa,
            "isa_available": available,
            "threads": threads,
            "available_memory_bytes": memory,
            "cache": options.cache,
            "cache_free_bytes": disk,
            "endpoint": options.endpoint,
            "offline": options.offline,
            "token": token,
            "big_vision_folder": options.gemma_dir,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let or_unknown = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), size);
    print_line(format_args!(
        "paligemma    {} on {} {}\n\
         kernels      {isa} (of {})\n\
         threads      {threads}\n\
         memory       {} available\n\
         cache        {}, {} free\n\
         hub          {}{}\n\
         token        {}\n\
         BV_GEMMA_DIR {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        available.join(", "),
        or_unknown(memory),
        options.cache.display(),
        or_unknown(disk),
        options.endpoint,
        if options.offline { ", offline" } else { "" },
        token.map_or(
            "none: PaliGemma's repositories are gated; run `hf auth login`, or set HF_TOKEN".to_owned(),
            |source| format!("from {source}")
        ),
        options.gemma_dir.as_ref().map_or("not set".to_owned(), |d| d.display().to_string()),
    ))?;
    Ok(ExitCode::SUCCESS)
}
