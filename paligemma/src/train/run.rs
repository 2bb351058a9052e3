//! A run: everything opened and checked, then step after step, saved, measured and stopped as asked.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use paligemma_tensor::{DType, Isa, Tensor, peak_rss};
use serde_json::json;

use super::metrics::{EvalLine, Record, StepLine};
use super::parameters::{Parameters, Selection, is_fused};
use super::plan::{ExampleSize, Plan};
use super::recipe::{EvalRecipe, Loss, OnErrorName, Recipe, Source};
use super::state::{self, Disk, Lock, Position};
use crate::checkpoint::{Checkpoint, Format, companions, dequantise, write_folder};
use crate::data::{Dataset, Fields, Loader, Mixture, OnError, Part, Preparation, Ready, Template};
use crate::generate::{Generator, Options, Prompt};
use crate::image::Preprocess;
use crate::model::{Lesson, LossOptions, Mean, dropout_key};
use crate::text::Tokenizer;
use crate::{Error, Kind, Result};

/// The recipe's name in a run folder.
pub const RECIPE: &str = "recipe.toml";
/// The folder of saved states in a run folder.
pub(super) const STATES: &str = "state";
/// The examples of a batch whose loss was not finite.
const BAD_BATCH: &str = "bad-batch.json";

/// A recipe with all that it names opened; no weight is read yet.
#[derive(Debug)]
pub struct Job {
    recipe: Recipe,
    checkpoint: Checkpoint,
    mixture: Arc<Mixture>,
    preparation: Preparation,
    selection: Selection,
    total: u64,
    eval: Option<(EvalRecipe, Arc<Mixture>)>,
}

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

/// Makes the run folder, takes its lock, finds that it is this recipe's or makes it so, and clears away what a killed run left.
pub(super) fn claim(recipe: &Recipe) -> Result<Lock> {
    fs::create_dir_all(&recipe.out).map_err(|e| Error::io(&recipe.out, e))?;
    let lock = Lock::take(&recipe.out)?;
    name_it(recipe)?;
    state::clean(&recipe.out.join(STATES))?;
    Ok(lock)
}

/// Writes the recipe into its folder, or finds the same one there.
fn name_it(recipe: &Recipe) -> Result<()> {
    let path = recipe.out.join(RECIPE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let earlier = Recipe::read(&text, &path.display().to_string(), &[])?;
            return recipe.check_same(&earlier);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(&path, error)),
    }
    if recipe.out.join(STATES).exists() {
        return Err(Error::usage(format!("{} holds states of a run and no recipe", recipe.out.display()))
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

fn open_source(source: &Source) -> Result<Dataset> {
    let fields = Fields {
        image: source.image.clone(),
        prefix: Template::parse(&source.prefix)?,
        suffix: Template::parse(&source.suffix)?,
    };
    Dataset::open(&source.files, source.image_dir.as_deref(), fields)
}

impl Job {
    /// Opens what a recipe names; `model` is where its model is found.
    ///
    /// # Errors
    /// Whatever is wrong with the model, its tokenizer, the data, or the recipe's patterns.
    pub fn open(recipe: Recipe, model: &Path) -> Result<Job> {
        let checkpoint = Checkpoint::open(model)?;
        let image_size = checkpoint.config().vision.image_size;
        let folder = (checkpoint.format() == Format::Safetensors).then(|| checkpoint.folder());
        let mut preprocess = Preprocess::choose(recipe.model.preprocess.into(), folder, image_size)?;
        if let Preprocess::Reference { antialias } = &mut preprocess {
            *antialias = recipe.model.antialias;
        }
        let tokenizer = match &recipe.model.tokenizer {
            Some(file) => Tokenizer::from_file(file)?,
            None => Tokenizer::from_folder(checkpoint.folder())?,
        };
        let mut parts = Vec::new();
        for (name, source) in &recipe.data {
            let dataset = open_source(source).map_err(|error| error.at(format!("data.{name}")))?;
            let weight = recipe.mix.get(name).copied().unwrap_or(dataset.len() as f64);
            parts.push(Part { name: name.clone(), dataset, weight });
        }
        let mixture = Mixture::new(recipe.seed, parts)?;
        let eval = match &recipe.eval {
            Some(eval) => {
                let dataset = open_source(&eval.source).map_err(|error| error.at("eval"))?;
                Some((eval.clone(), Arc::new(Mixture::in_order("eval", dataset)?)))
            }
            None => None,
        };
        let total = recipe.num_steps(mixture.num_examples());
        let selection = Selection::new(&recipe, &checkpoint, total)?;
        let preparation = Preparation {
            tokenizer: Arc::new(tokenizer),
            preprocess,
            image_size,
            text_len: recipe.text_len,
            augmentation: recipe.augmentation(),
        };
        Ok(Job { recipe, checkpoint, mixture: Arc::new(mixture), preparation, selection, total, eval })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Examples of all data sets together.
    pub fn num_examples(&self) -> u64 {
        self.mixture.num_examples()
    }

    /// What learns and how.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Whose ids the examples have.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.preparation.tokenizer
    }

    /// The first examples of the run, as the model will read them.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn first(&self, count: u64) -> Result<Vec<Ready>> {
        (0..count).map(|number| self.preparation.prepare(&self.mixture, number)).collect()
    }

    /// How large its examples are at most, as far as its first ones tell.
    pub fn example_size(&self) -> ExampleSize {
        let images = (0..8).filter_map(|n| self.mixture.example(self.mixture.draw(n)).ok());
        ExampleSize {
            images: images.map(|(example, _)| example.images.len()).max().unwrap_or(1),
            text: self.recipe.text_len,
        }
    }

    /// The memory it needs.
    pub fn plan(&self) -> Plan {
        Plan::new(&self.recipe, self.checkpoint.config(), &self.selection, self.example_size())
    }

    /// Refuses what does not fit into this machine's memory.
    ///
    /// # Errors
    /// `Kind::Resource`, with what would make it fit.
    pub fn check_memory(&self) -> Result<()> {
        self.plan().check_available(&self.recipe, &self.checkpoint, self.example_size())
    }

    /// Seconds of one step, by doing the way there and back of one batch that is computed together.
    ///
    /// # Errors
    /// What is wrong with a tensor or an example.
    pub fn time_of_a_step(&self) -> Result<f64> {
        let parameters = Parameters::new(&self.recipe, &self.checkpoint, &self.selection)?;
        let examples = self.first(self.recipe.micro_batch() as u64)?;
        let start = Instant::now();
        let lessons = self.lessons(&examples, 0);
        parameters
            .model()
            .loss_and_gradients(&lessons, &self.loss_options(), None, &mut |_, part| drop(part))?;
        Ok(start.elapsed().as_secs_f64() * (self.recipe.batch / self.recipe.micro_batch()) as f64)
    }

    fn loss_options(&self) -> LossOptions {
        let mean = match self.recipe.loss {
            Loss::Example => Mean::Example,
            Loss::Token => Mean::Token,
        };
        LossOptions {
            mean,
            batch: None,
            label_smoothing: self.recipe.label_smoothing as f32,
            z_loss: self.recipe.z_loss as f32,
            final_softcap: self.recipe.model.final_softcap,
            dropout: self.recipe.dropout as f32,
            recompute: self.recipe.recompute,
        }
    }

    /// Examples as the model learns them in a step.
    fn lessons(&self, examples: &[Ready], step: u64) -> Vec<Lesson> {
        let side = self.preparation.image_size;
        let lesson = |ready: &Ready| Lesson {
            images_bchw: Tensor::from_f32(ready.pixels.concat(), &[ready.pixels.len(), 3, side, side]),
            ids: ready.tokens.ids.clone(),
            prefix_len: ready.tokens.num_prefix,
            key: dropout_key(self.recipe.seed, step, ready.draw.number),
        };
        examples.iter().map(lesson).collect()
    }

    fn states(&self) -> PathBuf {
        self.recipe.out.join(STATES)
    }

    /// Trains, from where the run folder is, up to step `until` of the run or its end. `listen` hears what happens, and
    /// asks to stop by breaking: the step at hand is done and saved first.
    ///
    /// # Errors
    /// `Kind::Usage`: the folder belongs to another recipe or another process. `Kind::Training`: a number that is not
    /// finite. `Kind::Resource`: memory or disk. What is wrong with an example, if the recipe says so. Saved states stay.
    pub fn run(
        &self,
        until: Option<u64>,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let out = &self.recipe.out;
        let _lock = claim(&self.recipe)?;
        let saved = state::latest(&self.states(), &mut |error| {
            // Whoever wants to stop will say so again.
            let _ = listen(Event::Damaged(error));
        })?;
        let mut at = saved.as_ref().map_or(Position::default(), |saved| saved.position);
        let end = until.map_or(self.total, |until| until.min(self.total));
        let mut outcome =
            Outcome { step: at.step, total: self.total, is_stopped: false, eval: None, loss: None };
        if at.step >= end {
            return Ok(outcome);
        }
        self.check_memory()?;
        let mut parameters = Parameters::new(&self.recipe, &self.checkpoint, &self.selection)?;
        if let Some(saved) = &saved {
            let tensor = |name: &str| saved.weights.tensor(name);
            parameters
                .restore(&tensor, &|name| saved.optimiser.tensor(name))
                .map_err(|error| error.at(saved.path.display().to_string()))?;
        }
        drop(saved);
        let mut record = Record::open(out, at.step, self.recipe.tensorboard)?;
        let on_error = match self.recipe.on_error {
            OnErrorName::Stop => OnError::Stop,
            OnErrorName::Skip => OnError::Skip,
        };
        let (threads, batch) = (self.recipe.loader_threads, self.recipe.batch);
        let mut loader = Loader::new(
            self.mixture.clone(),
            self.preparation.clone(),
            on_error,
            at.draws..u64::MAX,
            threads,
            2 * batch,
        )?;
        let mut is_stopped = listen(Event::Begun { step: at.step, total: self.total }).is_break();
        let mut pace = Pace::new();
        let mut last_save = at.step;
        while at.step < end && !is_stopped {
            let mut examples = Vec::with_capacity(batch);
            while examples.len() < batch {
                let skipped = &mut |error: &Error| is_stopped |= listen(Event::Skipped(error)).is_break();
                match loader.next(skipped)? {
                    Some(ready) => examples.push(ready),
                    None => return Err(Error::input("the data has no more draws")),
                }
            }
            let lessons = self.lessons(&examples, at.step);
            let stepped = parameters.step(at.step, &lessons, self.recipe.micro_batch(), &self.loss_options());
            drop(lessons);
            let (loss, norm) = match stepped {
                Ok(done) => done,
                Err(error) if error.kind() == Kind::Training => {
                    return Err(self.stop_broken(error, &mut parameters, &at, &examples));
                }
                Err(error) => return Err(error),
            };
            let lr = parameters.lr(at.step);
            at = Position { step: at.step + 1, draws: loader.position(), skipped: at.skipped };
            outcome.step = at.step;
            outcome.loss = Some(loss);
            pace.add(&examples, parameters.config().vision.num_tokens());
            let (examples_per_s, tokens_per_s) = pace.rates();
            let line = StepLine {
                step: at.step,
                loss,
                lr,
                grad_norm: norm,
                examples_per_s,
                tokens_per_s,
                peak_rss_bytes: peak_rss(),
            };
            if at.step % self.recipe.log_every == 0 || at.step == end {
                record.add(&line)?;
                pace = Pace::new();
            }
            is_stopped |= listen(Event::Step(line)).is_break();
            let is_last = at.step == end || is_stopped;
            let is_due = |every: Option<u64>| every.is_some_and(|every| every > 0 && at.step % every == 0);
            if is_due(Some(self.recipe.save_every)) || is_last {
                let now = Position { skipped: at.skipped + loader.num_skipped(), ..at };
                let saved = self.save(&parameters, &now, last_save == 0);
                let path = saved.map_err(|error| match error.kind() {
                    Kind::Training => self.tell_batch(error, at.step, &examples),
                    _ => error,
                })?;
                last_save = at.step;
                is_stopped |= listen(Event::Saved(&path)).is_break();
            }
            if self.eval.is_some() && (is_due(self.recipe.eval_every) || at.step == self.total) {
                let started = Instant::now();
                let line = self.evaluate(&parameters, at.step)?;
                record.add(&line)?;
                outcome.eval = Some(line);
                is_stopped |= listen(Event::Eval(line)).is_break();
                pace.skip(started.elapsed().as_secs_f64());
            }
        }
        if is_stopped && last_save < at.step {
            let now = Position { skipped: at.skipped + loader.num_skipped(), ..at };
            self.save(&parameters, &now, false)?;
        }
        outcome.is_stopped = is_stopped && at.step < end;
        Ok(outcome)
    }

    /// Keeps what a broken step leaves: its examples, and the weights before it, if they are as they were.
    fn stop_broken(
        &self,
        error: Error,
        parameters: &mut Parameters,
        at: &Position,
        examples: &[Ready],
    ) -> Error {
        if !is_fused(&self.recipe) && at.step > 0 {
            let _ = self.save(parameters, at, false);
        }
        self.tell_batch(error.at(format!("step {}", at.step + 1)), at.step + 1, examples)
    }

    /// Writes the examples of a broken step beside the run, and says so.
    fn tell_batch(&self, error: Error, step: u64, examples: &[Ready]) -> Error {
        let list = examples.iter().map(|ready| {
            json!({ "place": ready.place, "draw": ready.draw.number, "prefix": ready.prefix, "suffix": ready.suffix })
        });
        let batch = json!({ "step": step, "examples": list.collect::<Vec<_>>() });
        let path = self.recipe.out.join(BAD_BATCH);
        // The error that matters is the one that is being told.
        let _ = replace(&path, format!("{batch:#}\n").as_bytes());
        error.expected("a finite number").hint(format!(
            "the batch is told in {}; a lower lr, a longer warmup or clip=1 may help",
            path.display()
        ))
    }

    fn save(&self, parameters: &Parameters, at: &Position, is_first: bool) -> Result<PathBuf> {
        if let Some(name) = parameters.broken() {
            return Err(Error::new(
                Kind::Training,
                format!("{name} holds a number that is not finite, and is not saved"),
            )
            .at(format!("step {}", at.step)));
        }
        let kept = parameters.kept();
        let weights: Vec<state::Part<'_>> = kept
            .iter()
            .map(|(name, tensor)| state::Part {
                name: name.clone(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: tensor.bytes(),
            })
            .collect();
        let optimiser: Vec<state::Part<'_>> = parameters
            .optimiser_state()
            .map(|(name, dtype, len, bytes)| state::Part { name, dtype, shape: vec![len], bytes })
            .collect();
        let path = state::save(&Disk::default(), &self.states(), at, &weights, &optimiser, self.recipe.keep)?;
        if is_first {
            // A disk that does not give back what it was given is found out before a day of work is on it.
            state::check(&path)?;
        }
        Ok(path)
    }

    fn evaluate(&self, parameters: &Parameters, step: u64) -> Result<EvalLine> {
        let Some((recipe, mixture)) = &self.eval else {
            return Err(Error::usage("there is nothing to evaluate on"));
        };
        let count = mixture.num_examples().min(recipe.examples.unwrap_or(usize::MAX) as u64);
        let options =
            LossOptions { mean: Mean::Example, label_smoothing: 0.0, z_loss: 0.0, ..self.loss_options() };
        let preparation = Preparation { augmentation: None, ..self.preparation.clone() };
        let (mut sum, mut exact) = (0.0, 0);
        let model = parameters.model();
        let eos = self.tokenizer().eos()?;
        for from in (0..count).step_by(self.recipe.micro_batch()) {
            let numbers = from..count.min(from + self.recipe.micro_batch() as u64);
            let examples: Vec<Ready> =
                numbers.map(|number| preparation.prepare(mixture, number)).collect::<Result<_>>()?;
            let loss = model.batch_loss(&self.lessons(&examples, step), &options, None)?;
            sum += loss.value * examples.len() as f64 / count as f64;
            if !recipe.answers {
                continue;
            }
            let side = self.preparation.image_size;
            let prompts: Vec<Prompt> = examples
                .iter()
                .map(|ready| Prompt {
                    pixels: Tensor::from_f32(ready.pixels.concat(), &[ready.pixels.len(), 3, side, side]),
                    ids: ready.tokens.ids[..ready.tokens.num_prefix].to_vec(),
                    grammar: None,
                })
                .collect();
            // No answer that is exact has more tokens.
            let longest = examples.iter().map(|ready| ready.tokens.ids.len() - ready.tokens.num_prefix).max();
            let options = Options { max_tokens: longest.unwrap_or(1), ..Options::default() };
            let (answers, _) = Generator::new(model, eos)
                .run(&prompts, &options, &mut |_, _, _| ControlFlow::Continue(()))?;
            for (ready, answer) in examples.iter().zip(answers) {
                let text = self.tokenizer().decode(&answer.tokens);
                let (example, _) = mixture.example(ready.draw)?;
                exact += usize::from(example.suffixes.contains(&text));
            }
        }
        Ok(EvalLine {
            step,
            eval_loss: sum,
            eval_examples: count as usize,
            eval_exact: recipe.answers.then(|| exact as f64 / count.max(1) as f64),
            eval_miou: None,
        })
    }

    /// Writes the newest saved state as an ordinary checkpoint, its tensors as `dtype` or as those of the model it began
    /// with; of adapters an adapter's folder, or with `merge` the model with them merged in. `out` must not exist. → its step.
    ///
    /// # Errors
    /// `Kind::Usage`: nothing is saved yet, or `out` exists. A state that is damaged; writing.
    pub fn export(&self, out: &Path, dtype: Option<DType>, merge: bool) -> Result<u64> {
        let saved = state::latest(&self.states(), &mut |_| ())?;
        let saved = saved
            .ok_or_else(|| Error::usage(format!("{} holds no saved state", self.recipe.out.display())))?;
        let mut parameters = Parameters::new(&self.recipe, &self.checkpoint, &self.selection)?;
        parameters.restore(&|name| saved.weights.tensor(name), &|name| saved.optimiser.tensor(name))?;
        let adapter = parameters.adapter();
        if let (Some(adapter), false) = (&adapter, merge) {
            adapter.write(out, &self.recipe.model.init)?;
            return Ok(saved.position.step);
        }
        let stored = match self.checkpoint.forms()[..] {
            [(crate::checkpoint::Form::Plain(dtype), ..)] => dtype,
            _ => DType::BF16,
        };
        let files = companions(&self.checkpoint)?;
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        let mut config = parameters.config().clone();
        if !self.recipe.model.final_softcap {
            config.text.final_logit_softcapping = None;
        }
        let learned: HashMap<String, Tensor> = parameters.kept().into_iter().collect();
        write_folder(&config, out, dtype.unwrap_or(stored), &files, &mut |name, _| {
            if let Some(tensor) = learned.get(name) {
                return Ok(tensor.clone());
            }
            let weight = dequantise(&self.checkpoint.weight(name)?, DType::F32);
            Ok(match (&adapter, name.strip_suffix(".weight")) {
                (Some(adapter), Some(layer)) => adapter.merged(layer, &weight),
                _ => weight,
            })
        })?;
        Ok(saved.position.step)
    }
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

    fn add(&mut self, examples: &[Ready], image_tokens: usize) {
        self.examples += examples.len();
        self.tokens += examples
            .iter()
            .map(|ready| ready.pixels.len() * image_tokens + ready.tokens.inputs().len())
            .sum::<usize>();
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
