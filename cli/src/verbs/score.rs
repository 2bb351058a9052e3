//! `score`: answers beside what should have been answered.

use crate::{
    args::Args,
    output::{print, print_json},
};
use paligemma::{
    Error, Kind, Result,
    eval::{self, Line, Metric, Score},
    masks::MaskCodec,
};
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::ExitCode,
};

/// The longest line that is read.
const MAX_LINE: u64 = 32 << 20;

pub(super) fn score(
    args: &Args,
    predictions: &Path,
    metric: Metric,
    seed: u64,
    vqvae: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let lines = read(predictions)?;
    // Only this metric looks at masks.
    let codec = match metric {
        Metric::Miou => Some(MaskCodec::open(vqvae)?),
        _ => None,
    };
    super::mask::note_own(args, codec.is_some() && vqvae.is_none());
    let place = |error: Error| error.at(predictions.display().to_string());
    let (all, tasks) = eval::score(&lines, metric, codec.as_ref(), seed).map_err(place)?;
    if args.json {
        let figures = |score: &Score| -> Map<String, Value> {
            let figure = |(name, figure): &(&'static str, eval::Figure)| {
                let (low, high) = figure.interval;
                ((*name).to_owned(), json!({ "value": figure.value, "low": low, "high": high }))
            };
            score.figures.iter().map(figure).collect()
        };
        let by_task: Map<String, Value> = tasks
            .iter()
            .map(|(task, score)| (task.clone(), json!({ "count": score.count, "figures": figures(score) })))
            .collect();
        print_json(&json!({
            "metric": all.figures[0].0,
            "count": all.count,
            "seed": seed,
            "figures": figures(&all),
            "tasks": by_task,
        }))?;
    } else {
        let rows = [("", &all)].into_iter().chain(tasks.iter().map(|(task, score)| (task.as_str(), score)));
        print(rows.map(|(task, score)| row(task, score)).collect::<String>().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures of all lines or of a task, a line each.
fn row(task: &str, score: &Score) -> String {
    let figure = |(name, figure): &(&'static str, eval::Figure)| {
        let (low, high) = figure.interval;
        let task = if task.is_empty() { "all" } else { task };
        format!("{name}\t{task}\t{:.4}\t{low:.4} to {high:.4}\t{} lines\n", figure.value, score.count)
    };
    score.figures.iter().map(figure).collect()
}

/// Every line of the file; a wrong one stops, since a score without it would be another's.
fn read(path: &Path) -> Result<Vec<Line>> {
    let name = path.display().to_string();
    if path.is_dir() {
        return Err(Error::input(format!("{name} is a folder")).expected("a JSONL file"));
    }
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::input(format!("there is no file {name}")),
        _ => Error::io(path, e).of_kind(Kind::Input),
    })?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    for number in 1.. {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        let at = |error: Error| error.at(format!("{name}:{number}"));
        if line.len() as u64 > MAX_LINE {
            return Err(at(Error::input("the line is over 32 MiB")));
        }
        let text = std::str::from_utf8(&line).map_err(|e| at(Error::input(format!("not UTF-8: {e}"))))?;
        if !text.trim().is_empty() {
            lines.push(Line::read(text).map_err(at)?);
        }
    }
    Ok(lines)
}
