//! `data lint`, `data preview`, `data convert`, `data tokenizer`.

use crate::{
    args::{Annotations, Args, DataArgs, DataVerb, GroupArg, TaskArg},
    exit, open,
    output::{note, print_json, print_line},
};
use paligemma::{
    Error, Kind, Result,
    checkpoint::write_new,
    data::{
        Check, Dataset, Fields, Lint, Mixture, Part, Shown,
        convert::{self, Annotated, Converted, Group, Task},
        show,
    },
    image::{Tile, contact_sheet, png_of_picture},
    masks::MaskCodec,
    text::{PixelBox, Tokenizer, train_tokenizer},
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::{
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) fn data(args: &Args, what: &DataVerb) -> anyhow::Result<ExitCode> {
    match what {
        DataVerb::Lint { data, model, tokenizer, text_len, no_images } => {
            let tokenizer = match (model, tokenizer) {
                (Some(model), _) => Some(super::tokenize::of_model(args, model)?),
                (None, Some(file)) => Some(Tokenizer::from_file(file)?),
                (None, None) => None,
            };
            let length = tokenizer.map(|tokenizer| (Arc::new(tokenizer), *text_len));
            lint(args, data, &Lint { decodes_images: !no_images, length })
        }
        DataVerb::Preview { data, number, seed, output, columns, vqvae } => {
            let output = output.as_deref();
            // Without a model of masks boxes are shown all the same.
            let codec = match (&vqvae.vqvae, output) {
                (None, _) | (_, None) => None,
                (Some(file), Some(_)) => Some(MaskCodec::open(Some(file))?),
            };
            preview(
                args,
                data,
                usize::from(*number),
                *seed,
                output.zip(Some(usize::from(*columns))),
                codec.as_ref(),
            )
        }
        DataVerb::Tokenizer { data, output, pieces, examples } => {
            tokenizer(args, data, output, *pieces, *examples)
        }
        DataVerb::Convert { from, input, out, task, group, images, names, spaces, vqvae } => {
            let source = Source { from: *from, input, images: images.as_deref(), names: names.as_deref() };
            let task = task.unwrap_or(match from {
                Annotations::Masks => TaskArg::Segment,
                _ => TaskArg::Detect,
            });
            let codec = match task {
                TaskArg::Detect => None,
                TaskArg::Segment => {
                    super::mask::note_own(args, vqvae.vqvae.is_none());
                    Some(MaskCodec::open(vqvae.vqvae.as_deref())?)
                }
            };
            let task = codec.as_ref().map_or(Task::Detect, Task::Segment);
            let group = match group {
                GroupArg::Picture => Group::Picture,
                GroupArg::Thing => Group::Thing,
            };
            convert(args, &source, out, &task, group, *spaces)
        }
    }
}

fn tokenizer(
    args: &Args,
    data: &DataArgs,
    out: &Path,
    pieces: usize,
    examples: Option<usize>,
) -> anyhow::Result<ExitCode> {
    check_is_free(out)?;
    let data = open_data(data)?;
    let number = examples.unwrap_or(usize::MAX).min(data.len());
    let _heeding = open::Heeding::begin();
    let mut progress = Progress::new(args, "examples");
    let mut texts = Vec::with_capacity(2 * number);
    for start in (0..number).step_by(AT_ONCE) {
        cancelled()?;
        let end = number.min(start + AT_ONCE);
        let read: Vec<_> = (start..end).into_par_iter().map(|i| data.example(i)).collect::<Result<_>>()?;
        texts.extend(read.into_iter().flat_map(|example| [vec![example.prefix], example.suffixes].concat()));
        progress.at(end, number);
    }
    let num_texts = texts.len();
    let bytes = train_tokenizer(texts, pieces)?;
    let read = Tokenizer::from_model_bytes(&bytes)?;
    let loc0 = read.locations()?.start;
    write_new(out, &bytes)?;
    note(
        args.quiet,
        format_args!("wrote {}: {loc0} pieces, <loc0000> to <seg127> behind them", out.display()),
    );
    if args.json {
        print_json(&json!({ "path": out, "pieces": loc0, "texts": num_texts, "examples": number }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Examples that are looked at together, between two looks at Ctrl-C.
const AT_ONCE: usize = 256;

fn open_data(data: &DataArgs) -> Result<Dataset> {
    let fields = Fields::parse(&data.image, &data.prefix, &data.suffix)?;
    Dataset::open(&data.data, data.image_dir.as_deref(), fields)
}

fn cancelled() -> Result<()> {
    match open::is_cancelled() {
        true => Err(Error::new(Kind::Cancelled, "cancelled")),
        false => Ok(()),
    }
}

/// A line on stderr every ten seconds of a long job.
struct Progress {
    quiet: bool,
    what: &'static str,
    told: Instant,
}

impl Progress {
    fn new(args: &Args, what: &'static str) -> Progress {
        Progress { quiet: args.quiet, what, told: Instant::now() }
    }

    fn at(&mut self, done: usize, total: usize) {
        if self.told.elapsed() > Duration::from_secs(10) {
            self.told = Instant::now();
            note(self.quiet, format_args!("{} of {total} {}", done.min(total), self.what));
        }
    }
}

fn lint(args: &Args, data: &DataArgs, lint: &Lint) -> anyhow::Result<ExitCode> {
    let data = open_data(data)?;
    let _heeding = open::Heeding::begin();
    let mut progress = Progress::new(args, "examples");
    let mut problems = Vec::new();
    for start in (0..data.len()).step_by(AT_ONCE) {
        cancelled()?;
        let end = data.len().min(start + AT_ONCE);
        let found: Vec<_> = (start..end).into_par_iter().flat_map_iter(|i| lint.check(&data, i)).collect();
        for problem in found {
            if args.json {
                problems.push(problem);
            } else {
                print_line(format_args!("{}: {}: {}", problem.place, problem.check, problem.what))?;
                problems.push(problem);
            }
        }
        progress.at(end, data.len());
    }
    let count = |check: Check| problems.iter().filter(|problem| problem.check == check).count();
    if args.json {
        let counts: Map<String, Value> =
            Check::ALL.iter().map(|&check| (check.to_string(), count(check).into())).collect();
        let problem = |problem: &paligemma::data::Problem| json!({ "place": problem.place, "check": problem.check.to_string(), "what": problem.what });
        let problems: Vec<Value> = problems.iter().map(problem).collect();
        print_json(&json!({ "examples": data.len(), "problems": problems, "counts": counts }))?;
    }
    if lint.length.is_none() {
        note(args.quiet, "lengths were not checked: that needs --model or --tokenizer");
    }
    note(args.quiet, format_args!("{} examples, {} problems", data.len(), problems.len()));
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::code(Kind::Input)) })
}

fn preview(
    args: &Args,
    data: &DataArgs,
    number: usize,
    seed: Option<u64>,
    sheet: Option<(&Path, usize)>,
    codec: Option<&MaskCodec>,
) -> anyhow::Result<ExitCode> {
    if let Some((path, _)) = sheet {
        check_is_free(path)?;
    }
    let data = open_data(data)?;
    let number = number.min(data.len()) as u64;
    let mixture = match seed {
        None => Mixture::in_order("data", data)?,
        Some(seed) => Mixture::new(seed, vec![Part { name: "data".into(), dataset: data, weight: 1.0 }])?,
    };
    let (mut shown, mut bad) = (Vec::new(), Vec::new());
    let _heeding = open::Heeding::begin();
    for n in 0..number {
        cancelled()?;
        let draw = mixture.draw(n);
        match mixture.example(draw).and_then(|(example, taken)| show(&example, taken, codec)) {
            Ok(one) => shown.push(one),
            Err(error) if error.kind() == Kind::Input => {
                note(false, &error);
                bad.push(mixture.parts()[draw.part].dataset.place(draw.index));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some((path, columns)) = sheet.filter(|_| !shown.is_empty()) {
        let tiles: Vec<Tile> = shown.iter().map(|one| one.tile.clone()).collect();
        write_new(path, &png_of_picture(&contact_sheet(&tiles, columns)?)?)?;
        note(args.quiet, format_args!("wrote {}", path.display()));
    }
    if args.json {
        let object = |object: &(String, PixelBox, bool)| json!({ "label": object.0, "box": object.1, "has_mask": object.2 });
        let example = |one: &Shown| {
            json!({
                "place": one.place,
                "images": one.sizes.iter().map(|(width, height)| json!([width, height])).collect::<Vec<_>>(),
                "prefix": one.prefix,
                "suffix": one.suffix,
                "suffixes": one.num_suffixes,
                "objects": one.objects.iter().map(object).collect::<Vec<_>>(),
            })
        };
        let sheet = sheet.filter(|_| !shown.is_empty()).map(|(path, _)| path);
        let examples: Vec<Value> = shown.iter().map(example).collect();
        print_json(&json!({ "examples": examples, "bad": bad, "sheet": sheet }))?;
    } else {
        for one in &shown {
            print_line(format_args!(
                "{}\n  prefix  {}\n  suffix  {}",
                one.tile.note,
                line(&one.prefix),
                line(&one.suffix)
            ))?;
        }
    }
    Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::code(Kind::Input)) })
}

/// A text as one line.
fn line(text: &str) -> String {
    text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

fn check_is_free(path: &Path) -> Result<()> {
    match path.symlink_metadata().is_ok() {
        false => Ok(()),
        true => Err(Error::usage(format!("{} exists already", path.display()))
            .hint("nothing is overwritten: give a new name, or remove it first")),
    }
}

/// Annotations to be converted.
struct Source<'a> {
    from: Annotations,
    input: &'a Path,
    images: Option<&'a Path>,
    names: Option<&'a Path>,
}

impl Source<'_> {
    fn read(&self) -> Result<Vec<Annotated>> {
        let Source { from, input, images, names } = *self;
        let name = format!("{from:?}").to_lowercase();
        if !input.exists() {
            return Err(Error::input(format!("there are no annotations {}", input.display())));
        }
        let is_needed = matches!(from, Annotations::Yolo | Annotations::Masks);
        let images = match (is_needed, images) {
            (true, None) => {
                return Err(Error::usage(format!("{name} needs --images, the folder of the pictures")));
            }
            (false, Some(_)) => {
                return Err(Error::usage(format!("{name} needs no --images: its pictures are not opened"))
                    .hint("give the folder as --image-dir where the JSONL is used"));
            }
            (_, images) => images.unwrap_or(Path::new("")),
        };
        if is_needed && !images.is_dir() {
            return Err(Error::input(format!("there is no folder {}", images.display())));
        }
        if names.is_some() && from != Annotations::Yolo {
            return Err(Error::usage(format!("{name} needs no --names: the labels stand in it")));
        }
        match from {
            Annotations::Coco => convert::read_coco(input),
            Annotations::Lvis => convert::read_lvis(input),
            Annotations::Voc => convert::read_voc(input),
            Annotations::Masks => convert::read_mask_folder(input, images),
            Annotations::Yolo => {
                let names = names.ok_or_else(|| {
                    Error::usage("yolo needs --names, the names of the classes")
                        .expected("a data.yaml, or a text file of a name a line")
                })?;
                convert::read_yolo(input, images, &convert::read_yolo_names(names)?)
            }
        }
    }
}

fn convert(
    args: &Args,
    source: &Source<'_>,
    out: &Path,
    task: &Task<'_>,
    group: Group,
    spaces: bool,
) -> anyhow::Result<ExitCode> {
    check_is_free(out)?;
    let mut pictures = source.read()?;
    if spaces {
        let annotations = pictures.iter_mut().flat_map(|picture| &mut picture.annotations);
        annotations.for_each(|annotation| annotation.label = annotation.label.replace('_', " "));
    }
    let _heeding = open::Heeding::begin();
    let mut progress = Progress::new(args, "pictures");
    let Converted { lines, num_objects, num_empty, skipped } =
        convert::convert(&pictures, task, group, &mut |done| {
            progress.at(done, pictures.len());
            cancelled()
        })?;
    if lines.is_empty() {
        return Err(Error::input("there is no object in the annotations")
            .at(source.input.display().to_string())
            .into());
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    write_new(out, text.as_bytes())?;
    if args.json {
        print_json(&json!({
            "path": out,
            "lines": lines.len(),
            "objects": num_objects,
            "pictures_without_objects": num_empty,
            "crowds": skipped.crowds,
            "no_area": skipped.no_area,
        }))?;
    }
    let quiet = args.quiet || args.json;
    for place in skipped.no_area.iter().take(10) {
        note(args.quiet, format_args!("{place}: left out: its box has no area on the picture"));
    }
    if skipped.no_area.len() > 10 {
        note(args.quiet, format_args!("and {} more", skipped.no_area.len() - 10));
    }
    if skipped.crowds > 0 {
        note(quiet, format_args!("left out: {} crowds", skipped.crowds));
    }
    if num_empty > 0 {
        note(quiet, format_args!("left out: {num_empty} pictures without objects"));
    }
    note(quiet, format_args!("{}: {} lines, {num_objects} objects", out.display(), lines.len()));
    Ok(ExitCode::SUCCESS)
}
