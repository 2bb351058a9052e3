//! Completions and man pages, generated from the arguments' definitions.

use crate::{
    args::Args,
    output::{print, print_json},
};
use clap::CommandFactory;
use paligemma::Error;
use serde_json::json;
use std::process::ExitCode;

pub(super) fn completions(args: &Args, shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "paligemma", &mut script);
    if args.json {
        print_json(&json!({ "shell": shell.to_string(), "script": String::from_utf8_lossy(&script) }))?;
    } else {
        print(&script)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &Args, verb: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut program = Args::command();
    program.build();
    let command = match verb {
        None => program,
        Some(verb) => {
            let Some(found) = program.find_subcommand(verb) else {
                let verbs: Vec<&str> = program.get_subcommands().map(|c| c.get_name()).collect();
                return Err(Error::usage(format!("there is no verb \"{verb}\""))
                    .expected(format!("one of {}", verbs.join(", ")))
                    .into());
            };
            found.clone()
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    if args.json {
        print_json(&json!({ "page": String::from_utf8_lossy(&page) }))?;
    } else {
        print(&page)?;
    }
    Ok(ExitCode::SUCCESS)
}
