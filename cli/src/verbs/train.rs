//! `train`, and `recipes ls|show|copy`.

use crate::{
    args::{Args, RecipesVerb, TrainArgs},
    exit, open,
    output::{note, print_json, print_line, size},
};
use indicatif::{ProgressBar, ProgressStyle};
use paligemma::{
    Error, Kind, Result,
    checkpoint::{available_memory, hub::Want, write_new},
    data::Ready,
    text::Tokenizer,
    train::{Event, Job, KEYS, MaskJob, Outcome, Pace, PairJob, RECIPE, RECIPES, Recipe, StepLine, Wanted},
};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    io::{self, IsTerminal},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

pub(super) fn train(args: &Args, train: &TrainArgs) -> anyhow::Result<ExitCode> {
    let recipe = read(&train.recipe, &train.changes)?.absolute()?;
    if let Some(job) = MaskJob::of(&recipe)? {
        return masks(args, train, &job);
    }
    if let Some(job) = PairJob::of(&recipe)? {
        return pairs(args, train, &job);
    }
    let model = open::find(args, &recipe.model.init, Want::Model)?.path;
    let job = Job::open(recipe, &model)?;
    if let Some(out) = &train.export {
        let dtype = train.dtype.map(Into::into);
        let step = job.export(out, dtype, train.merge)?;
        return wrote(args, out, step);
    }
    if train.dry_run {
        return dry_run(args, &job);
    }
    run(args, &job.recipe().out, |listen| job.run(train.steps, listen))
}

/// The masks' model.
fn masks(args: &Args, train: &TrainArgs, job: &MaskJob) -> anyhow::Result<ExitCode> {
    if let Some(out) = &train.export {
        let step = job.export(out, train.dtype.map(Into::into))?;
        return wrote(args, out, step);
    }
    if train.dry_run || train.merge {
        return Err(Error::usage("--dry-run and --merge mean nothing to the masks' model").into());
    }
    run(args, &job.recipe().out, |listen| job.run(train.steps, listen))
}

/// SigLIP's two towers.
fn pairs(args: &Args, train: &TrainArgs, job: &PairJob) -> anyhow::Result<ExitCode> {
    if train.merge {
        return Err(Error::usage("--merge means nothing to SigLIP's two towers").into());
    }
    if let Some(out) = &train.export {
        let step = job.export(out, train.dtype.map(Into::into))?;
        return wrote(args, out, step);
    }
    if train.dry_run {
        return dry_run_of_pairs(args, job);
    }
    run(args, &job.recipe().out, |listen| job.run(train.steps, listen))
}

/// Tells what was exported.
fn wrote(args: &Args, out: &Path, step: u64) -> anyhow::Result<ExitCode> {
    if args.json {
        print_json(&json!({ "path": out, "step": step }))?;
    }
    note(args.quiet || args.json, format_args!("wrote {}, of step {}", out.display(), step));
    Ok(ExitCode::SUCCESS)
}

/// Hears a run to its end.
fn run(
    args: &Args,
    out: &Path,
    run: impl FnOnce(&mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<Outcome>,
) -> anyhow::Result<ExitCode> {
    let _heeding = open::Heeding::begin();
    let mut teller = Teller::new(args.quiet);
    let outcome = run(&mut |event| {
        teller.hear(&event);
        if open::is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    teller.end();
    let outcome = outcome?;
    if args.json {
        print_json(&json!({
            "run": out,
            "step": outcome.step,
            "total": outcome.total,
            "stopped": outcome.is_stopped,
            "loss": outcome.loss,
            "eval_loss": outcome.eval.map(|eval| eval.eval_loss),
            "eval_exact": outcome.eval.and_then(|eval| eval.eval_exact),
            "eval_miou": outcome.eval.and_then(|eval| eval.eval_miou),
            "eval_image_to_text": outcome.eval.and_then(|eval| eval.eval_image_to_text),
            "eval_text_to_image": outcome.eval.and_then(|eval| eval.eval_text_to_image),
        }))?;
    }
    let (step, total) = (outcome.step, outcome.total);
    let how = if step == total { "done" } else { "the same command goes on" };
    note(
        args.quiet || args.json,
        format_args!("step {step} of {total} is saved in {}; {how}", out.display()),
    );
    Ok(if outcome.is_stopped { ExitCode::from(exit::code(Kind::Cancelled)) } else { ExitCode::SUCCESS })
}

/// A recipe's file, a run's folder, or a name of our own.
fn read(name: &str, changes: &[String]) -> Result<Recipe> {
    let path = Path::new(name);
    let file = if path.is_dir() { path.join(RECIPE) } else { path.to_path_buf() };
    let built_in = RECIPES.iter().find(|(known, _)| *known == name);
    let (text, stem) = match built_in.filter(|_| !path.exists()) {
        Some((name, text)) => ((*text).to_owned(), (*name).to_owned()),
        None if file.is_file() => {
            let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            (text, path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
        }
        None if path.is_dir() => {
            return Err(
                Error::usage(format!("{name} is no run folder")).expected(format!("a {RECIPE} in it"))
            );
        }
        None => return Err(unknown(name)),
    };
    let mut recipe = Recipe::read(&text, name, changes)?;
    if path.is_dir() && !changes.iter().any(|change| change.starts_with("out")) {
        recipe.out = path.to_path_buf();
    }
    if recipe.out.as_os_str().is_empty() {
        recipe.out = Path::new("runs").join(stem);
    }
    Ok(recipe)
}

fn unknown(name: &str) -> Error {
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    Error::usage(format!("there is no recipe {name}"))
        .expected(format!("a file, a run's folder, or one of {}", names.join(", ")))
}

/// What a run would do, on stdout.
fn dry_run(args: &Args, job: &Job) -> anyhow::Result<ExitCode> {
    let examples = job.first(3)?;
    let plan = job.plan();
    let selection = job.selection();
    let fits = job.check_memory();
    // Only a run that fits can be tried.
    let step_s = match &fits {
        Ok(()) => Some(job.time_of_a_step()?),
        Err(_) => None,
    };
    let groups = groups(&selection.paces, &selection.wanted);
    let frozen: u64 = selection.frozen.iter().map(|(named, _)| named.len() as u64).sum();
    let have = available_memory();
    if args.json {
        let examples: Vec<Value> = examples
            .iter()
            .map(|ready| {
                json!({
                    "place": ready.place,
                    "images": ready.pixels.len(),
                    "prefix": ready.prefix,
                    "suffix": ready.suffix,
                    "ids": ready.tokens.ids,
                    "loss": ready.tokens.loss_mask().collect::<Vec<_>>(),
                })
            })
            .collect();
        let memory: serde_json::Map<String, Value> =
            plan.rows().iter().map(|(name, bytes)| ((*name).to_string(), json!(bytes))).collect();
        print_json(&json!({
            "examples": examples,
            "groups": groups_json(&groups),
            "frozen_parameters": frozen,
            "memory": memory,
            "memory_total": plan.total(),
            "memory_available": have,
            "steps": job.total(),
            "step_s": step_s,
        }))?;
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut text = String::new();
        for ready in &examples {
            let _ = writeln!(
                text,
                "{}  {} picture(s)\n  {}",
                ready.place,
                ready.pixels.len(),
                shown(ready, job.tokenizer(), colour)
            );
        }
        let _ = writeln!(text, "\n{}\n\nmemory", groups_text(&groups, frozen));
        for (name, bytes) in plan.rows() {
            let _ = writeln!(text, "  {name:<12} {:>10}", size(bytes));
        }
        let have = have.map_or(String::new(), |have| format!("   have {}", size(have)));
        let _ = writeln!(text, "  {:<12} {:>10}{have}", "together", size(plan.total()));
        let _ = write!(text, "\n{}", length_text(job.total(), job.recipe().batch, step_s));
        print_line(text)?;
    }
    fits?;
    Ok(ExitCode::SUCCESS)
}

/// What a run of pairs would do, on stdout.
fn dry_run_of_pairs(args: &Args, job: &PairJob) -> anyhow::Result<ExitCode> {
    let pairs = job.first(3)?;
    let groups = groups(job.paces(), job.wanted());
    let step_s = job.time_of_a_step()?;
    if args.json {
        let pairs: Vec<Value> = pairs
            .iter()
            .map(|pair| json!({ "place": pair.place, "text": pair.text, "ids": pair.ids }))
            .collect();
        print_json(&json!({
            "examples": pairs,
            "groups": groups_json(&groups),
            "frozen_parameters": job.num_frozen(),
            "steps": job.total(),
            "step_s": step_s,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for pair in &pairs {
        let read = job.tokenizer().pieces(&pair.ids).join("|");
        let _ = writeln!(text, "{}\n  {}\n  {read}", pair.place, pair.text.replace('\n', "⏎"));
    }
    let _ = writeln!(text, "\n{}\n", groups_text(&groups, job.num_frozen()));
    let _ = write!(text, "{}", length_text(job.total(), job.recipe().batch, Some(step_s)));
    print_line(text)?;
    Ok(ExitCode::SUCCESS)
}

/// What learns at a pace: a name, tensors, numbers.
type Group = (String, usize, u64);

fn groups(paces: &[Pace], wanted: &[Wanted]) -> Vec<Group> {
    let group = |(i, pace): (usize, &Pace)| {
        let own = || wanted.iter().filter(move |wanted| wanted.pace == i);
        let name = pace.pattern.clone().unwrap_or_else(|| "all others".into());
        let elements = own().map(|wanted| wanted.len() as u64).sum();
        (format!("{name}  lr × {}  {}", pace.lr_factor, course(&pace.schedule)), own().count(), elements)
    };
    paces.iter().enumerate().map(group).collect()
}

fn groups_json(groups: &[Group]) -> Value {
    let group = |(name, tensors, elements): &Group| json!({ "group": name, "tensors": tensors, "parameters": elements });
    groups.iter().map(group).collect()
}

fn groups_text(groups: &[Group], frozen: u64) -> String {
    let mut text = String::from("learns\n");
    for (name, tensors, elements) in groups {
        let _ = writeln!(text, "  {name}: {tensors} tensors, {} parameters", millions(*elements));
    }
    text + &format!("  frozen: {} parameters", millions(frozen))
}

fn length_text(total: u64, batch: usize, step_s: Option<f64>) -> String {
    let length = format!("{total} steps of {batch} examples");
    let Some(seconds) = step_s else { return length };
    let whole = Duration::from_secs_f64((seconds * total as f64).min(1e15));
    let each = brief(Duration::from_secs_f64(seconds));
    format!("{length}, about {each} each (the first is the slowest): {}", brief(whole))
}

fn course(schedule: &paligemma::train::Schedule) -> String {
    let decay = format!("{:?}", schedule.decay).to_lowercase();
    format!("{decay}, warm-up {}, cooldown {} steps", schedule.warmup, schedule.cooldown)
}

/// An example's text; what carries loss is green, or in brackets.
fn shown(ready: &Ready, tokenizer: &Tokenizer, colour: bool) -> String {
    let tokens = &ready.tokens;
    let (seen, learned) = tokens.ids.split_at(tokens.num_prefix);
    let text = |ids: &[u32]| {
        let text = tokenizer.decode(ids).replace('\n', "⏎");
        let ends = ids.last().copied() == tokenizer.eos().ok();
        if ends { format!("{text}<eos>") } else { text }
    };
    let (on, off) = if colour { ("\x1b[1;32m", "\x1b[0m") } else { ("[", "]") };
    format!("{}{on}{}{off}", text(seen), text(learned))
}

fn millions(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        _ => format!("{:.1} million", n as f64 / 1e6),
    }
}

/// `41m`
fn brief(time: Duration) -> String {
    let s = time.as_secs_f64();
    match s {
        0.0..1.0 => format!("{:.0}ms", s * 1e3),
        1.0..60.0 => format!("{s:.1}s"),
        60.0..3600.0 => format!("{:.0}m", s / 60.0),
        3600.0..172_800.0 => format!("{:.1}h", s / 3600.0),
        _ => format!("{:.1}d", s / 86_400.0),
    }
}

/// Tells on stderr how a run goes: a bar on a terminal, else a line each ten seconds or twentieth of the run.
struct Teller {
    quiet: bool,
    bar: Option<ProgressBar>,
    total: u64,
    begun: (Instant, u64),
    told: Instant,
    told_step: u64,
    skipped: u64,
}

impl Teller {
    fn new(quiet: bool) -> Teller {
        Teller {
            quiet,
            bar: None,
            total: 0,
            begun: (Instant::now(), 0),
            told: Instant::now(),
            told_step: 0,
            skipped: 0,
        }
    }

    fn hear(&mut self, event: &Event<'_>) {
        match event {
            Event::Begun { step, total } => {
                (self.total, self.begun, self.told_step) = (*total, (Instant::now(), *step), *step);
                if !self.quiet && io::stderr().is_terminal() {
                    let bar = ProgressBar::new(*total);
                    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.set_position(*step);
                    self.bar = Some(bar);
                }
                if *step > 0 {
                    self.say(format_args!("going on behind step {step}"));
                }
            }
            Event::Step(line) => self.step(line),
            Event::Eval(eval) => {
                let parts: String = [
                    ("exact", eval.eval_exact),
                    ("mean IoU", eval.eval_miou),
                    ("image to text", eval.eval_image_to_text),
                    ("text to image", eval.eval_text_to_image),
                ]
                .into_iter()
                .filter_map(|(name, part)| Some(format!("  {name} {:.1}%", part? * 100.0)))
                .collect();
                self.say(format_args!("step {}  eval loss {:.4}{parts}", eval.step, eval.eval_loss));
            }
            Event::Saved(path) => {
                if self.bar.is_none() {
                    self.say(format_args!("saved {}", path.display()));
                }
            }
            Event::Skipped(error) => {
                self.skipped += 1;
                // A data set that is mostly broken does not fill the screen.
                if self.skipped <= 20 {
                    self.say(format_args!("left out: {error}"));
                }
            }
            Event::Damaged(error) => self.say(format_args!("{error}; an older state is taken")),
        }
    }

    fn step(&mut self, line: &StepLine) {
        let done = line.step - self.begun.1;
        let each = self.begun.0.elapsed().as_secs_f64() / done.max(1) as f64;
        let left = Duration::from_secs_f64((each * self.total.saturating_sub(line.step) as f64).min(1e15));
        let memory = line.peak_rss_bytes.map_or(String::new(), |bytes| format!("  mem {}", size(bytes)));
        let text = format!(
            "step {}/{}  loss {:.4}  lr {:.2e}  grad {:.3}  ex/s {:.2}{memory}  eta {}",
            line.step,
            self.total,
            line.loss,
            line.lr,
            line.grad_norm,
            line.examples_per_s,
            brief(left)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(line.step);
            bar.println(text);
            return;
        }
        let is_twentieth = (line.step - self.told_step) * 20 >= self.total;
        if self.told.elapsed() > Duration::from_secs(10) || is_twentieth || line.step == self.total {
            (self.told, self.told_step) = (Instant::now(), line.step);
            note(self.quiet, text);
        }
    }

    fn say(&self, text: std::fmt::Arguments<'_>) {
        match &self.bar {
            Some(bar) => bar.println(text.to_string()),
            None => note(self.quiet, text),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

pub(super) fn recipes(args: &Args, what: &RecipesVerb) -> anyhow::Result<ExitCode> {
    let find =
        |name: &str| RECIPES.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown_built_in(name));
    match what {
        RecipesVerb::Ls { keys: true } => {
            if args.json {
                let keys: serde_json::Map<String, Value> =
                    KEYS.iter().map(|(key, about)| ((*key).to_string(), json!(about))).collect();
                print_json(&json!({ "keys": keys }))?;
            } else {
                for (key, about) in KEYS {
                    print_line(format_args!("{key:<22} {about}"))?;
                }
            }
        }
        RecipesVerb::Ls { keys: false } => {
            if args.json {
                let all: Vec<Value> = RECIPES
                    .iter()
                    .map(|(name, text)| json!({ "name": name, "about": about(text) }))
                    .collect();
                print_json(&json!({ "recipes": all }))?;
            } else {
                for (name, text) in RECIPES {
                    print_line(format_args!("{name:<12} {}", about(text)))?;
                }
            }
        }
        RecipesVerb::Show { name } => {
            let (name, text) = find(name)?;
            match args.json {
                true => print_json(&json!({ "name": name, "text": text }))?,
                false => print_line(text.trim_end())?,
            }
        }
        RecipesVerb::Copy { name, out } => {
            let (_, text) = find(name)?;
            write_new(out, text.as_bytes())?;
            if args.json {
                print_json(&json!({ "path": out }))?;
            }
            note(args.quiet || args.json, format_args!("wrote {}", out.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown_built_in(name: &str) -> Error {
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    Error::usage(format!("there is no recipe {name} in this program"))
        .expected(format!("one of {}", names.join(", ")))
}

/// The first sentence of a recipe's head.
fn about(text: &str) -> String {
    let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
    let head = head.join(" ");
    head.split_once(": ")
        .or_else(|| head.split_once(". "))
        .map_or(head.clone(), |(first, _)| first.to_string())
}
