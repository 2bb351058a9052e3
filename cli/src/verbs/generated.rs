//! Completions and man pages, generated from the arguments' definitions.

use crate::args::Args;
use clap::CommandFactory;
use paligemma::Error;
use std::{io::Write, process::ExitCode};

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "paligemma", &mut script);
    write(&script)
}

pub(super) fn man(verb: Option<&str>) -> anyhow::Result<ExitCode> {
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
    write(&page)
}

fn write(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
