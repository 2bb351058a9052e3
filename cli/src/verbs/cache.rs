//! `pull`, `ls`, `rm`: the Hugging Face cache.

use crate::{
    args::Args,
    open,
    output::{Meter, note, print_json, print_line, size},
};
use paligemma::{
    Error,
    checkpoint::hub::{self, HubId, cached_models, remove},
};
use serde_json::json;
use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

pub(super) fn pull(args: &Args, id: &str) -> anyhow::Result<ExitCode> {
    let id = HubId::parse(id)?;
    let mut meter = Meter::new("pull", args.quiet);
    let heeding = open::Heeding::begin();
    let snapshot = hub::pull(&id, &open::hub_options(args)?, &mut |progress| meter.hear(progress))?;
    drop((meter, heeding));
    if args.json {
        print_json(&json!({ "id": id.to_string(), "commit": snapshot.commit, "path": snapshot.path }))?;
    } else {
        print_line(snapshot.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn ls(args: &Args) -> anyhow::Result<ExitCode> {
    let models: Vec<_> =
        cached_models(&open::hub_options(args)?)?.into_iter().filter(|m| m.is_paligemma).collect();
    if args.json {
        let list: Vec<_> = models
            .iter()
            .map(|m| {
                json!({
                    "id": m.id,
                    "commit": m.commit,
                    "revisions": m.revisions,
                    "path": m.path,
                    "size_bytes": m.size_bytes,
                    "complete": m.is_complete,
                })
            })
            .collect();
        print_json(&json!({ "models": list }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for m in models {
        if args.quiet {
            print_line(&m.id)?;
        } else {
            let state = if m.is_complete { "" } else { "  incomplete" };
            let short = m.commit.get(..12).unwrap_or(&m.commit);
            print_line(format_args!(
                "{}  {}  {}  {}{state}",
                m.id,
                m.revisions.join(","),
                short,
                size(m.size_bytes)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rm(args: &Args, id: &str, yes: bool) -> anyhow::Result<ExitCode> {
    let options = open::hub_options(args)?;
    let id = HubId::parse(id)?;
    if !yes {
        if !io::stdin().is_terminal() {
            return Err(Error::usage(format!("{id} would be removed, and there is no terminal to ask"))
                .hint("add -y")
                .into());
        }
        let mut err = io::stderr().lock();
        write!(err, "remove {id} from {}? [y/N] ", options.cache.display())?;
        err.flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        if !matches!(line.trim(), "y" | "Y" | "yes") {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let removed = remove(&options, &id.repo, id.revision.as_deref())?;
    if args.json {
        print_json(&json!({ "commits": removed.commits, "freed_bytes": removed.freed_bytes }))?;
    }
    note(
        args.quiet || args.json,
        format_args!("{} snapshots removed, {} freed", removed.commits.len(), size(removed.freed_bytes)),
    );
    Ok(ExitCode::SUCCESS)
}
