//! The steps of a run, whatever it trains: learned, recorded, saved, measured and stopped as asked.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use paligemma_tensor::{DType, Isa, Tensor, bf16, peak_rss};
use serde_json::{Value, json};

use super::learner::is_fused;
use super::metrics::{EvalLine, Record, StepLine};
use super::optimiser::sum_of_squares;
use super::recipe::Recipe;
use super::state::{self, Disk, Lock, Part, Position, Saved};
use crate::data::Ready;
use crate::{Error, Kind, Result};

/// The recipe's name in a run folder.
pub const RECIPE: &str = "recipe.toml";
/// The folder of saved states in a run folder.
const STATES: &str = "state";
/// The examples of a batch whose loss was not finite.
const BAD_BATCH: &str = "bad-batch.json";

/// What a run tells as it goes.
#[derive(Debug)]
pub enum Event<'a> {
    /// It begins at a step, and has so many in all.
    Begun {
        /// Steps that were done before.
        step: u64,
        /// Steps of the whole run.
        total: u64,
    },
    /// A step is done.
    Step(StepLine),
    /// An evaluation is done.
    Eval(EvalLine),
    /// A state was saved.
    Saved(&'a Path),
    /// An example was left out.
    Skipped(&'a Error),
    /// A saved state is damaged; an older one is taken.
    Damaged(&'a Error),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Steps that are done.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Whether it was asked to stop.
    pub is_stopped: bool,
    /// The last evaluation of this start.
    pub eval: Option<EvalLine>,
    /// The loss of the last step of this start.
    pub loss: Option<f64>,
}

/// Hears what happens in a run, and asks it to stop by breaking.
pub(super) type Listen<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// What a run trains.
pub(super) trait Trainer {
    /// Learns the batch of a step, the first being 0. `skipped` hears of each example that is left out.
    ///
    /// # Errors
    /// `Kind::Training`: a number that is not finite; others stop the run too.
    fn step(&mut self, step: u64, skipped: &mut dyn FnMut(&Error)) -> Result<Learned>;

    /// The draw that comes next.
    fn draws(&self) -> u64;

    /// The examples of the last batch, for people.
    fn batch(&self) -> Option<Value>;

    /// What learns, as it is to be saved.
    fn weights(&self) -> Vec<(String, Tensor)>;

    /// All else that a run needs to go on.
    fn rest(&self) -> Vec<Part<'_>>;

    /// An evaluation behind a step, if there is something to evaluate on.
    ///
    /// # Errors
    /// What is wrong with an example.
    fn evaluate(&self, step: u64) -> Result<Option<EvalLine>>;
}

/// What became of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learned {
    /// The loss of its batch, before the update.
    pub(super) loss: f64,
    /// The norm of all gradients, before clipping.
    pub(super) grad_norm: f64,
    /// The learning rate of what no group has.
    pub(super) lr: f64,
    /// Image tokens and text tokens.
    pub(super) tokens: usize,
}

/// A run folder with the run's length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    /// Of the run.
    pub(super) recipe: &'a Recipe,
    /// Steps of the whole run.
    pub(super) total: u64,
}

impl Run<'_> {
    /// Trains what `begin` makes of a saved state or of nothing, up to step `until` of the run or its end.
    ///
    /// # Errors
    /// `Kind::Usage`: the folder belongs to another recipe or another process. `Kind::Training`: a number that is not
    /// finite. What `begin` and the trainer return. Saved states stay.
    pub(super) fn train<T: Trainer>(
        &self,
        until: Option<u64>,
        listen: Listen<'_>,
        begin: impl FnOnce(u64, Option<&Saved>) -> Result<T>,
    ) -> Result<Outcome> {
        let Run { recipe, total } = *self;
        let _lock = self.claim()?;
        let saved = state::latest(&self.states(), &mut |error| {
            // Whoever wants to stop will say so again.
            let _ = listen(Event::Damaged(error));
        })?;
        let mut at = saved.as_ref().map_or(Position::default(), |saved| saved.position);
        let end = until.map_or(total, |until| until.min(total));
        let mut outcome = Outcome { step: at.step, total, is_stopped: false, eval: None, loss: None };
        if at.step >= end {
            return Ok(outcome);
        }
        let mut trainer = begin(at.draws, saved.as_ref())?;
        drop(saved);
        let mut record = Record::open(&recipe.out, at.step, recipe.tensorboard)?;
        let mut is_stopped = listen(Event::Begun { step: at.step, total }).is_break();
        let mut pace = Pace::new();
        let mut last_save = at.step;
        while at.step < end && !is_stopped {
            let mut num_skipped = 0;
            let learned = trainer.step(at.step, &mut |error| {
                num_skipped += 1;
                is_stopped |= listen(Event::Skipped(error)).is_break();
            });
            let learned = match learned {
                Err(error) if error.kind() == Kind::Training => {
                    return Err(self.stop_broken(error, &trainer, &at));
                }
                learned => learned?,
            };
            at = Position { step: at.step + 1, draws: trainer.draws(), skipped: at.skipped + num_skipped };
            (outcome.step, outcome.loss) = (at.step, Some(learned.loss));
            pace.add(recipe.batch, learned.tokens);
            let (examples_per_s, tokens_per_s) = pace.rates();
            let line = StepLine {
                step: at.step,
                loss: learned.loss,
                lr: learned.lr,
                grad_norm: learned.grad_norm,
                examples_per_s,
                tokens_per_s,
                peak_rss_bytes: peak_rss(),
            };
            if at.step % recipe.log_every == 0 || at.step == end {
                record.add(&line)?;
                pace = Pace::new();
            }
            is_stopped |= listen(Event::Step(line)).is_break();
            let is_last = at.step == end || is_stopped;
            let is_due = |every: u64| every > 0 && at.step % every == 0;
            if is_due(recipe.save_every) || is_last {
                let saved = self.save(&trainer, &at, last_save == 0);
                let path = saved.map_err(|error| match error.kind() {
                    Kind::Training => self.tell_batch(error, &trainer, at.step),
                    _ => error,
                })?;
                last_save = at.step;
                is_stopped |= listen(Event::Saved(&path)).is_break();
            }
            if is_due(recipe.eval_every.unwrap_or(0)) || at.step == total {
                let started = Instant::now();
                if let Some(line) = trainer.evaluate(at.step)? {
                    record.add(&line)?;
                    outcome.eval = Some(line);
                    is_stopped |= listen(Event::Eval(line)).is_break();
                }
                pace.skip(started.elapsed().as_secs_f64());
            }
        }
        if is_stopped && last_save < at.step {
            self.save(&trainer, &at, false)?;
        }
        outcome.is_stopped = is_stopped && at.step < end;
        Ok(outcome)
    }

    /// The newest state that is whole.
    ///
    /// # Errors
    /// `Kind::Usage`: nothing is saved yet. States that are damaged.
    pub(super) fn saved(&self) -> Result<Saved> {
        state::latest(&self.states(), &mut |_| ())?
            .ok_or_else(|| Error::usage(format!("{} holds no saved state", self.recipe.out.display())))
    }

    fn states(&self) -> PathBuf {
        self.recipe.out.join(STATES)
    }

    /// Makes the run folder, takes its lock, finds that it is this recipe's or makes it so, and clears away what a killed
    /// run left.
    fn claim(&self) -> Result<Lock> {
        let out = &self.recipe.out;
        fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let lock = Lock::take(out)?;
        self.name_it()?;
        state::clean(&self.states())?;
        Ok(lock)
    }

    /// Writes the recipe into its folder, or finds the same one there.
    fn name_it(&self) -> Result<()> {
        let recipe = self.recipe;
        let path = recipe.out.join(RECIPE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let earlier = Recipe::read(&text, &path.display().to_string(), &[])?;
                return recipe.check_same(&earlier);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path, error)),
        }
        if self.states().exists() {
            return Err(Error::usage(format!(
                "{} holds states of a run and no recipe",
                recipe.out.display()
            ))
            .hint("give another folder with out=…"));
        }
        let environment = json!({
            "program": concat!("paligemma ", env!("CARGO_PKG_VERSION")),
            "kernels": Isa::best().name(),
            "threads": rayon::current_num_threads(),
        });
        replace(&recipe.out.join("env.json"), format!("{environment:#}\n").as_bytes())?;
        replace(&path, recipe.to_toml().as_bytes())
    }

    /// Keeps what a broken step leaves: its examples, and the weights before it, if they are as they were.
    fn stop_broken(&self, error: Error, trainer: &impl Trainer, at: &Position) -> Error {
        if !is_fused(self.recipe) && at.step > 0 {
            // The error that matters is the one that is being told.
            let _ = self.save(trainer, at, false);
        }
        self.tell_batch(error.at(format!("step {}", at.step + 1)), trainer, at.step + 1)
    }

    /// Writes the examples of a broken step beside the run, and says so.
    fn tell_batch(&self, error: Error, trainer: &impl Trainer, step: u64) -> Error {
        let error = error.expected("a finite number");
        let Some(examples) = trainer.batch() else {
            return error.hint("a lower lr or a longer warmup may help; the saved states are as they were");
        };
        let path = self.recipe.out.join(BAD_BATCH);
        let batch = json!({ "step": step, "examples": examples });
        let _ = replace(&path, format!("{batch:#}\n").as_bytes());
        error.hint(format!(
            "the batch is told in {}; a lower lr, a longer warmup or clip=1 may help",
            path.display()
        ))
    }

    fn save(&self, trainer: &impl Trainer, at: &Position, is_first: bool) -> Result<PathBuf> {
        let weights = trainer.weights();
        let weights: Vec<Part<'_>> = weights.iter().map(|(name, weight)| Part::of(name, weight)).collect();
        let rest = trainer.rest();
        if let Some(part) = weights.iter().chain(&rest).find(|part| is_broken(part)) {
            return Err(Error::new(
                Kind::Training,
                format!("{} holds a number that is not finite, and is not saved", part.name),
            )
            .at(format!("step {}", at.step)));
        }
        let path = state::save(&Disk::default(), &self.states(), at, &weights, &rest, self.recipe.keep)?;
        if is_first {
            // A disk that does not give back what it was given is found out before a day of work is on it.
            state::check(&path)?;
        }
        Ok(path)
    }
}

/// Whether a part holds a number that is not finite. What the optimiser keeps counts too: an infinite second moment would pass
/// unseen, as what it divides stands still for ever.
fn is_broken(part: &Part<'_>) -> bool {
    match part.dtype {
        DType::F32 => !sum_of_squares(bytemuck::cast_slice(part.bytes)).is_finite(),
        _ => bytemuck::cast_slice::<u8, bf16>(part.bytes).iter().any(|x| !x.is_finite()),
    }
}

/// Examples of a batch, for people.
pub(super) fn told(examples: &[Ready]) -> Value {
    let list = examples.iter().map(|ready| {
        json!({ "place": ready.place, "draw": ready.draw.number, "prefix": ready.prefix, "suffix": ready.suffix })
    });
    list.collect()
}

/// How fast it goes.
struct Pace {
    started: Instant,
    not_counted: f64,
    examples: usize,
    tokens: usize,
}

impl Pace {
    fn new() -> Pace {
        Pace { started: Instant::now(), not_counted: 0.0, examples: 0, tokens: 0 }
    }

    fn add(&mut self, examples: usize, tokens: usize) {
        self.examples += examples;
        self.tokens += tokens;
    }

    /// Time that was not spent on steps.
    fn skip(&mut self, seconds: f64) {
        self.not_counted += seconds;
    }

    fn rates(&self) -> (f64, f64) {
        let seconds = (self.started.elapsed().as_secs_f64() - self.not_counted).max(1e-9);
        (self.examples as f64 / seconds, self.tokens as f64 / seconds)
    }
}

/// Writes a file whole or not at all, in place of one of that name.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = fs::write(&temporary, bytes).and_then(|()| fs::File::open(&temporary)?.sync_all());
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|e| Error::io(path, e))
}
