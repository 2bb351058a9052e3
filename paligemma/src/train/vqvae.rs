//! A run of the masks' model: it learns masks that are drawn as they are needed, mask number i being a function of i alone.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use paligemma_tensor::{DType, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde_json::Value;

use super::metrics::EvalLine;
use super::optimiser::{Numbers, Rate, State, sum_of_squares};
use super::recipe::{Course, KeptType, Recipe, VqVaeRecipe};
use super::schedule::Schedule;
use super::state::{Part, Saved};
use super::steps::{Event, Learned, Outcome, Run, Trainer};
use crate::checkpoint::{safetensors_bytes, write_new};
use crate::data::playground::{Split, mask_crop};
use crate::image::MASK_SIDE;
use crate::model::{CodebookAverage, VqVae, VqVaeOptions};
use crate::{Error, Kind, Result};

/// Batches that are drawn ahead.
const AHEAD: usize = 4;
/// Held-out masks that are encoded together.
const TOGETHER: usize = 64;

/// A recipe of the masks' model.
#[derive(Debug)]
pub struct MaskJob {
    recipe: Recipe,
    vqvae: VqVaeRecipe,
    schedule: Schedule,
    total: u64,
}

/// Everything that changes.
struct Learner {
    model: VqVae,
    average: CodebookAverage,
    states: Vec<State>,
}

impl MaskJob {
    /// The run that a recipe with a table `vqvae` describes; `None` of another.
    ///
    /// # Errors
    /// A schedule that has no room.
    pub fn of(recipe: &Recipe) -> Result<Option<MaskJob>> {
        let Some(vqvae) = recipe.vqvae.clone() else { return Ok(None) };
        let total = recipe.num_steps(0);
        let schedule = recipe.schedule(&Course::default(), total)?;
        Ok(Some(MaskJob { recipe: recipe.clone(), vqvae, schedule, total }))
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    fn as_run(&self) -> Run<'_> {
        Run { recipe: &self.recipe, total: self.total }
    }

    fn options(&self) -> VqVaeOptions {
        let VqVaeRecipe { codebook_decay, commitment, revive_below, .. } = self.vqvae;
        VqVaeOptions { decay: codebook_decay, commitment, revive_below }
    }

    /// Trains, as [`Job::run`](super::Job::run) does.
    ///
    /// # Errors
    /// As there.
    pub fn run(
        &self,
        until: Option<u64>,
        listen: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let (seed, batch) = (self.recipe.seed, self.recipe.batch);
        self.as_run().train(until, listen, |first, saved| {
            let learner = self.learner(saved)?;
            let (send, batches) = sync_channel(AHEAD);
            std::thread::spawn(move || {
                // Ends with the run, which lets go of its side.
                for from in (first..).step_by(batch) {
                    if send.send(masks(Split::Train, seed, from, batch)).is_err() {
                        return;
                    }
                }
            });
            Ok(Training { job: self, learner, batches, draws: first })
        })
    }

    /// As it was saved, or at the beginning.
    fn learner(&self, saved: Option<&Saved>) -> Result<Learner> {
        let dtype = match self.recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let state =
            |(name, shape): &(String, Vec<usize>)| self.recipe.optimiser(name, shape).new_state(shape, dtype);
        let states = || VqVae::tensors().iter().map(state).collect();
        let Some(saved) = saved else {
            let model = VqVae::load(&mut initial(self.recipe.seed))?;
            let average = CodebookAverage::of(&model);
            return Ok(Learner { model, average, states: states() });
        };
        let restore = || -> Result<Learner> {
            let model = VqVae::load(&mut |name| saved.weights.tensor(name))?;
            let kept = |name: &str| saved.optimiser.tensor(name);
            let average = CodebookAverage { counts: kept("average.counts")?, sums: kept("average.sums")? };
            let mut states: Vec<State> = states();
            for (state, (name, _)) in states.iter_mut().zip(VqVae::tensors()) {
                for (key, numbers) in &mut state.kept {
                    let name = format!("{name}.{key}");
                    let tensor = kept(&name)?;
                    if tensor.dtype() != numbers.dtype() || tensor.len() != numbers.len() {
                        return Err(Error::model(format!("\"{name}\" of the saved state is {tensor:?}"))
                            .expected(format!("{} numbers of {}", numbers.len(), numbers.dtype())));
                    }
                    numbers.bytes_mut().copy_from_slice(tensor.bytes());
                }
            }
            Ok(Learner { model, average, states })
        };
        restore().map_err(|error| error.at(saved.path.display().to_string()))
    }

    /// One step → its loss and the norm of its gradients.
    fn step(&self, learner: &mut Learner, step: u64, masks_nhw: &Tensor) -> Result<(f64, f64)> {
        let Learner { model, average, states } = learner;
        let tensors = VqVae::tensors();
        let (lr, schedule) = (self.recipe.lr.unwrap_or(0.0) as f32, self.schedule.at(step) as f32);
        let rate = Rate { step, lr, schedule, decay: 0.0 };
        let mut squares = 0.0;
        let loss = model.learn(masks_nhw, average, &self.options(), &mut |id, weight, part| {
            let shape = weight.shape().to_vec();
            let gradient = part.into_tensor(&shape);
            squares += sum_of_squares(gradient.as_f32());
            let numbers = Numbers::F32(weight.as_f32_mut());
            let optimiser = self.recipe.optimiser(&tensors[id].0, &shape);
            optimiser.update(&mut states[id], numbers, &shape, gradient.as_f32(), &rate);
        });
        let (loss, norm) = (loss.reconstruction + loss.commitment, squares.sqrt());
        if !(loss.is_finite() && norm.is_finite()) {
            return Err(Error::new(
                Kind::Training,
                format!("the loss is {loss}, the gradients' norm {norm}"),
            ));
        }
        Ok((loss, norm))
    }

    /// Mean square and mean intersection over union of the held-out masks with what comes back of their codes.
    fn evaluate(&self, model: &VqVae, step: u64) -> EvalLine {
        let count = self.vqvae.held_out;
        let (mut square, mut iou) = (0.0, 0.0);
        for from in (0..count).step_by(TOGETHER) {
            let n = (count - from).min(TOGETHER as u64) as usize;
            let masks_nhw = masks(Split::Val, self.recipe.seed, from, n);
            let decoded = model.decode(&model.encode(&masks_nhw));
            let size = MASK_SIDE * MASK_SIDE;
            for (want, got) in masks_nhw.as_f32().chunks(size).zip(decoded.as_f32().chunks(size)) {
                let miss = |(want, got): (&f32, &f32)| f64::from(2.0 * want - 1.0 - got).powi(2);
                square += want.iter().zip(got).map(miss).sum::<f64>() / size as f64;
                let both = |of: fn(bool, bool) -> bool| {
                    want.iter().zip(got).filter(|(want, got)| of(**want > 0.5, **got > 0.0)).count()
                };
                iou += both(|a, b| a && b) as f64 / both(|a, b| a || b).max(1) as f64;
            }
        }
        let n = count.max(1) as f64;
        EvalLine { eval_miou: Some(iou / n), ..EvalLine::new(step, square / n, count as usize) }
    }

    /// Writes the newest saved model as a safetensors file of the published names. `out` must not exist. → its step.
    ///
    /// # Errors
    /// `Kind::Usage`: nothing is saved yet, or `out` exists. A state that is damaged; writing.
    pub fn export(&self, out: &Path, dtype: Option<DType>) -> Result<u64> {
        let saved = self.as_run().saved()?;
        let learner = self.learner(Some(&saved))?;
        let dtype = dtype.unwrap_or(DType::F32);
        let tensors: Vec<(String, Tensor)> =
            learner.model.named().into_iter().map(|(name, tensor)| (name, tensor.cast(dtype))).collect();
        write_new(out, &safetensors_bytes(&tensors))?;
        Ok(saved.position.step)
    }
}

/// A model that learns, and the masks that are drawn for it.
struct Training<'a> {
    job: &'a MaskJob,
    learner: Learner,
    batches: Receiver<Tensor>,
    draws: u64,
}

impl Trainer for Training<'_> {
    fn step(&mut self, step: u64, _skipped: &mut dyn FnMut(&Error)) -> Result<Learned> {
        let Training { job, learner, batches, draws } = self;
        let masks_nhw = batches
            .recv()
            .map_err(|_| Error::new(Kind::Training, "the thread that draws masks has ended"))?;
        *draws += job.recipe.batch as u64;
        let (loss, grad_norm) = job.step(learner, step, &masks_nhw)?;
        let lr = job.recipe.lr.unwrap_or(0.0) * job.schedule.at(step);
        Ok(Learned { loss, grad_norm, lr, tokens: 0 })
    }

    fn draws(&self) -> u64 {
        self.draws
    }

    fn batch(&self) -> Option<Value> {
        None
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        self.learner.model.named()
    }

    fn rest(&self) -> Vec<Part<'_>> {
        let Learner { average, states, .. } = &self.learner;
        let of_average =
            [Part::of("average.counts", &average.counts), Part::of("average.sums", &average.sums)];
        let of_states = states.iter().zip(VqVae::tensors()).flat_map(|(state, (name, _))| {
            state.kept.iter().map(move |(key, numbers)| Part {
                name: format!("{name}.{key}"),
                dtype: numbers.dtype(),
                shape: vec![numbers.len()],
                bytes: numbers.bytes(),
            })
        });
        of_average.into_iter().chain(of_states).collect()
    }

    fn evaluate(&self, step: u64) -> Result<Option<EvalLine>> {
        Ok(Some(self.job.evaluate(&self.learner.model, step)))
    }
}

/// Masks `from..from + count` of a split, `[count, 64, 64]`.
fn masks(split: Split, seed: u64, from: u64, count: usize) -> Tensor {
    let all: Vec<f32> = (0..count as u64)
        .into_par_iter()
        .flat_map_iter(|i| mask_crop(split, seed, from + i).values)
        .collect();
    Tensor::from_f32(all, &[count, MASK_SIDE, MASK_SIDE])
}

/// Weights as PyTorch begins with: uniform within one over the root of the inputs; the codebook normal.
fn initial(seed: u64) -> impl FnMut(&str) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    move |name| {
        let tensors = VqVae::tensors();
        let shape_of =
            |wanted: &str| tensors.iter().find(|(name, _)| name == wanted).map(|(_, shape)| &shape[..]);
        let shape = shape_of(name).unwrap_or_default();
        let weight = shape_of(&name.replace(".bias", ".weight")).unwrap_or_default();
        let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let len = shape.iter().product();
        let values: Vec<f32> = if name.contains("_embedding") {
            (0..len).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32).collect()
        } else {
            let bound = (weight.iter().skip(1).product::<usize>() as f64).powf(-0.5);
            (0..len).map(|_| ((2.0 * uniform() - 1.0) * bound) as f32).collect()
        };
        Ok(Tensor::from_f32(values, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn job(out: &Path, changes: &[&str]) -> MaskJob {
        let text = include_str!("../../../recipes/vqvae.toml");
        let usual =
            ["batch=4", "examples=24", "warmup_steps=0", "save_every=2", "eval_every=6", "vqvae.held_out=3"];
        let out = format!("out=\"{}\"", out.display());
        let changes: Vec<String> =
            usual.iter().copied().chain(changes.iter().copied()).chain([&*out]).map(str::to_owned).collect();
        MaskJob::of(&Recipe::read(text, "vqvae", &changes).unwrap()).unwrap().unwrap()
    }

    fn run(job: &MaskJob, until: Option<u64>) -> Outcome {
        job.run(until, &mut |_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn a_run_that_is_taken_up_again_ends_as_one_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let whole = run(&job(&at("whole"), &[]), None);
        assert_eq!((whole.step, whole.total, whole.is_stopped), (6, 6, false));
        assert!(whole.eval.unwrap().eval_miou.unwrap() > 0.0);
        for stop in 1..6 {
            let name = format!("stopped-{stop}");
            let halves = job(&at(&name), &[]);
            run(&halves, Some(stop));
            assert_eq!(run(&halves, None).loss, whole.loss, "{stop}");
            let file = |run: &str| {
                let out = at(&format!("{run}.safetensors"));
                job(&at(run), &[]).export(&out, None).unwrap();
                fs::read(out).unwrap()
            };
            assert!(
                file(&name) == {
                    let _ = fs::remove_file(at("whole.safetensors"));
                    file("whole")
                },
                "{stop}"
            );
        }
    }

    #[test]
    fn what_means_nothing_is_named() {
        let text = include_str!("../../../recipes/vqvae.toml");
        for (change, named) in [
            ("clip=1", "clip"),
            ("lora.rank=2", "lora"),
            ("data.a.files=x", "data"),
            ("model.init=x", "model"),
            ("vqvae.commitment=-1", "vqvae.commitment"),
            ("vqvae.codebok_decay=0.9", "codebook_decay"),
        ] {
            let error = Recipe::read(text, "vqvae", &[change.to_owned()]).unwrap_err();
            assert!(
                error.to_string().contains(named) || format!("{error:?}").contains(named),
                "{change}: {error:?}"
            );
        }
    }
}
