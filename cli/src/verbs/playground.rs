//! `playground`: examples about drawn pictures.

use crate::{
    args::Args,
    open,
    output::{note, print_json},
};
use paligemma::{
    Error, Kind, Result,
    checkpoint::write_new,
    data::playground::{Baseline, Played, Playground, Split, Task, Tasks, baselines},
    image::{Mask, Rle, png_of_picture},
    masks::MaskCodec,
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// What is to be drawn.
pub(super) struct Job<'a> {
    pub(super) out: &'a Path,
    pub(super) split: Split,
    pub(super) count: u64,
    pub(super) seed: u64,
    pub(super) side: usize,
    /// The first stage's mixture if empty.
    pub(super) tasks: &'a [Task],
    pub(super) vqvae: Option<&'a Path>,
}

/// Examples that are drawn together, between two looks at Ctrl-C.
const AT_ONCE: u64 = 256;

pub(super) fn playground(args: &Args, job: &Job<'_>) -> anyhow::Result<ExitCode> {
    let name = job.split.name();
    let (lines_file, folder) = (job.out.join(format!("{name}.jsonl")), job.out.join(name));
    for path in [&lines_file, &folder] {
        if path.symlink_metadata().is_ok() {
            return Err(Error::usage(format!("{} exists already", path.display()))
                .hint("nothing is overwritten: give a new name, or remove it first")
                .into());
        }
    }
    let has_masks = job.tasks.is_empty() || job.tasks.iter().any(|task| task.needs_masks());
    super::mask::note_own(args, job.vqvae.is_none() && has_masks);
    let codec = MaskCodec::open(job.vqvae)?;
    let mut playground = Playground::new(job.split, job.seed);
    if !job.tasks.is_empty() {
        playground = playground.with_tasks(equally(job.tasks))?;
    }
    // What cannot be played at all is told before anything is written.
    playground.example(0, Some(&codec))?;
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let _heeding = open::Heeding::begin();
    let mut told = Instant::now();
    let (mut text, mut num_pictures, mut answers) = (String::new(), 0, Vec::new());
    for start in (0..job.count).step_by(AT_ONCE as usize) {
        if open::is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "cancelled").into());
        }
        let drawn: Vec<(Played, Vec<PathBuf>)> = (start..job.count.min(start + AT_ONCE))
            .into_par_iter()
            .map(|index| draw(&playground, index, Some(&codec), job))
            .collect::<Result<_>>()?;
        for (played, pictures) in drawn {
            num_pictures += pictures.len();
            text.push_str(&format!("{}\n", line(&played, &pictures)));
            answers.push((played.task, played.suffixes));
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            note(args.quiet, format_args!("{} of {} examples", start + AT_ONCE, job.count));
        }
    }
    write_new(&lines_file, text.as_bytes())?;
    if args.json {
        let task = |one: Baseline| {
            let figures = json!({
                "count": one.count,
                "majority_answer": one.majority_answer,
                "majority": one.majority,
                "chance": one.chance,
            });
            (one.task.name().to_owned(), figures)
        };
        let tasks: Map<String, Value> = baselines(&answers).into_iter().map(task).collect();
        print_json(&json!({
            "path": lines_file,
            "lines": job.count,
            "pictures": num_pictures,
            "tasks": tasks,
        }))?;
    }
    let quiet = args.quiet || args.json;
    note(quiet, format_args!("{}: {} lines, {num_pictures} pictures", lines_file.display(), job.count));
    Ok(ExitCode::SUCCESS)
}

fn equally(tasks: &[Task]) -> Tasks {
    Task::ALL.map(|task| if tasks.contains(&task) { 1.0 } else { 0.0 })
}

/// Draws one example and writes its pictures; their names stand beside the JSONL.
fn draw(
    playground: &Playground,
    index: u64,
    codec: Option<&MaskCodec>,
    job: &Job<'_>,
) -> Result<(Played, Vec<PathBuf>)> {
    let played = playground.example(index, codec)?;
    let pictures = played.pictures(job.side);
    let mut names = Vec::new();
    for (i, picture) in pictures.iter().enumerate() {
        let more = if pictures.len() > 1 { format!("-{}", i + 1) } else { String::new() };
        let name = Path::new(job.split.name()).join(format!("{index:06}{more}.png"));
        let path = job.out.join(&name);
        fs::write(&path, png_of_picture(picture)?).map_err(|e| Error::io(&path, e))?;
        names.push(name);
    }
    Ok((played, names))
}

fn line(played: &Played, pictures: &[PathBuf]) -> Value {
    // One picture, one answer: not a list.
    let one_or_list =
        |mut list: Vec<Value>| if list.len() == 1 { list.remove(0) } else { Value::Array(list) };
    let mut line = json!({
        "image": one_or_list(pictures.iter().map(|path| json!(path)).collect()),
        "prefix": played.prefix,
        "suffix": one_or_list(played.suffixes.iter().map(|suffix| json!(suffix)).collect()),
        "task": played.task.name(),
        "lang": played.lang.code(),
    });
    if !played.masks().is_empty() {
        let mask = |(label, mask): &(String, Mask)| {
            let rle = Rle::from_mask(mask);
            json!({ "label": label, "size": [rle.height(), rle.width()], "counts": rle.compressed() })
        };
        line["masks"] = played.masks().iter().map(mask).collect();
    }
    line
}
