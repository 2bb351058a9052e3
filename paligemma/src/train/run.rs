//! A PaliGemma's run: everything opened and checked, then trained.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use paligemma_tensor::{DType, Tensor};
use serde_json::Value;

use super::batches::{Batches, open_data, open_eval};
use super::metrics::EvalLine;
use super::parameters::{Parameters, Selection};
use super::plan::{ExampleSize, Plan};
use super::recipe::{EvalRecipe, Loss, Recipe};
use super::state::Part;
use super::steps::{Event, Learned, Outcome, Run, Trainer, told};
use crate::checkpoint::{Checkpoint, companions, dequantise, write_folder};
use crate::data::{Mixture, Preparation, Ready};
use crate::generate::{Generator, Options, Prompt};
use crate::model::{Lesson, LossOptions, Mean, dropout_key};
use crate::session::{load_preprocess, load_tokenizer};
use crate::text::Tokenizer;
use crate::{Error, Result};

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

impl Job {
    /// Opens what a recipe names; `model` is where its model is found.
    ///
    /// # Errors
    /// Whatever is wrong with the model, its tokenizer, the data, or the recipe's patterns.
    pub fn open(recipe: Recipe, model: &Path) -> Result<Job> {
        let checkpoint = Checkpoint::open(model)?;
        let image_size = checkpoint.config().vision.image_size;
        let preprocess =
            load_preprocess(&checkpoint, recipe.model.preprocess.into(), recipe.model.antialias)?;
        let tokenizer = load_tokenizer(&checkpoint, recipe.model.tokenizer.as_deref())?;
        let (mixture, eval) = (open_data(&recipe)?, open_eval(&recipe)?);
        let total = recipe.num_steps(mixture.num_examples());
        let selection = Selection::new(&recipe, &checkpoint, total)?;
        let preparation = Preparation {
            tokenizer: Arc::new(tokenizer),
            preprocess,
            image_size,
            text_len: recipe.text_len,
            augmentation: recipe.augmentation(),
        };
        Ok(Job { recipe, checkpoint, mixture, preparation, selection, total, eval })
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

    fn as_run(&self) -> Run<'_> {
        Run { recipe: &self.recipe, total: self.total }
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
        self.as_run().train(until, listen, |first, saved| {
            self.check_memory()?;
            let mut parameters = Parameters::new(&self.recipe, &self.checkpoint, &self.selection)?;
            if let Some(saved) = saved {
                parameters
                    .restore(&|name| saved.weights.tensor(name), &|name| saved.optimiser.tensor(name))
                    .map_err(|error| error.at(saved.path.display().to_string()))?;
            }
            let batches = Batches::new(&self.recipe, &self.mixture, &self.preparation, first)?;
            Ok(Training { job: self, parameters, batches, examples: Vec::new() })
        })
    }

    fn evaluate(&self, parameters: &Parameters, step: u64) -> Result<Option<EvalLine>> {
        let Some((recipe, mixture)) = &self.eval else { return Ok(None) };
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
        Ok(Some(EvalLine {
            eval_exact: recipe.answers.then(|| exact as f64 / count.max(1) as f64),
            ..EvalLine::new(step, sum, count as usize)
        }))
    }

    /// Writes the newest saved state as an ordinary checkpoint, its tensors as `dtype` or as those of the model it began
    /// with; of adapters an adapter's folder, or with `merge` the model with them merged in. `out` must not exist. → its step.
    ///
    /// # Errors
    /// `Kind::Usage`: nothing is saved yet, or `out` exists. A state that is damaged; writing.
    pub fn export(&self, out: &Path, dtype: Option<DType>, merge: bool) -> Result<u64> {
        let saved = self.as_run().saved()?;
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

/// A model that learns, and what it learns from.
struct Training<'a> {
    job: &'a Job,
    parameters: Parameters,
    batches: Batches,
    /// The last batch.
    examples: Vec<Ready>,
}

impl Trainer for Training<'_> {
    fn step(&mut self, step: u64, skipped: &mut dyn FnMut(&Error)) -> Result<Learned> {
        let Training { job, parameters, batches, examples } = self;
        *examples = batches.next(skipped)?;
        let lessons = job.lessons(examples, step);
        let (loss, grad_norm) =
            parameters.step(step, &lessons, job.recipe.micro_batch(), &job.loss_options())?;
        let image_tokens = parameters.config().vision.num_tokens();
        let tokens =
            examples.iter().map(|ready| ready.pixels.len() * image_tokens + ready.tokens.inputs().len());
        Ok(Learned { loss, grad_norm, lr: parameters.lr(step), tokens: tokens.sum() })
    }

    fn draws(&self) -> u64 {
        self.batches.position()
    }

    fn batch(&self) -> Option<Value> {
        Some(told(&self.examples))
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        self.parameters.kept()
    }

    fn rest(&self) -> Vec<Part<'_>> {
        self.parameters.optimiser_state()
    }

    fn evaluate(&self, step: u64) -> Result<Option<EvalLine>> {
        self.job.evaluate(&self.parameters, step)
    }
}
