//! What learns of a PaliGemma by a recipe and what does not, and the step of what learns.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use paligemma_tensor::{DType, Parameter, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::learner::{Gradients, Learner, Pace, Rules, Wanted, owned, pattern};
use super::recipe::{ComputeType, KeptType, LoraRecipe, Recipe};
use super::state::Part;
use crate::adapter::{Adapter, Pair, linear_layers};
use crate::checkpoint::{Checkpoint, Form, dequantise, names};
use crate::config::Config;
use crate::model::{BatchSize, Lesson, Lora, LossOptions, PaliGemma, Weights};
use crate::{Error, Kind, Result};

/// What a recipe makes of a model: which parameters learn and how.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The paces, the last being that of all others.
    pub paces: Vec<Pace>,
    /// What learns, in the order in which the model uses it.
    pub wanted: Vec<Wanted>,
    /// What does not, with how it is held.
    pub frozen: Vec<(names::Named, Form)>,
}

impl Selection {
    /// What `recipe` makes learn of a checkpoint, in a run of `total` steps.
    ///
    /// # Errors
    /// `Kind::Usage`: a pattern that is none or matches nothing, nothing that learns, quantised weights that should.
    pub fn new(recipe: &Recipe, checkpoint: &Checkpoint, total: u64) -> Result<Selection> {
        let config = checkpoint.config();
        let mut rules = Rules::new(recipe, total)?;
        let is_plain = |dtype: DType| if dtype == DType::BF16 { DType::BF16 } else { DType::F32 };
        let held = |stored: Form| match (recipe.dtype, stored) {
            (ComputeType::F32, _) => Form::Plain(DType::F32),
            (ComputeType::Bf16, _) => Form::Plain(DType::BF16),
            (ComputeType::Auto, stored) => stored,
        };
        let (mut wanted, mut frozen) = (Vec::new(), Vec::new());
        let mut quantised = None;
        for named in names::tensors(config, false) {
            let form = held(checkpoint.form(&named.name).unwrap_or(Form::Plain(DType::F32)));
            let is_frozen = rules.is_frozen(&[named.key, &named.name]);
            if recipe.lora.is_some() || is_frozen {
                frozen.push((named, form));
                continue;
            }
            let Form::Plain(dtype) = form else {
                quantised.get_or_insert(named.name.clone());
                continue;
            };
            let (pace, decays) = rules.of(&[named.key, &named.name]);
            let dtype = is_plain(dtype);
            let has_master = dtype == DType::BF16 && recipe.master_dtype == KeptType::F32;
            wanted.push(Wanted { name: named.name, shape: named.shape, pace, decays, dtype, has_master });
        }
        if let Some(lora) = &recipe.lora {
            let targets = pattern(&lora.targets)?;
            let mut has_matched = false;
            for (layer, [out, inputs]) in linear_layers(config) {
                if !targets.is_match(&layer).unwrap_or(false)
                    && !targets.is_match(&format!("model.{layer}")).unwrap_or(false)
                {
                    continue;
                }
                has_matched = true;
                let form =
                    held(checkpoint.form(&format!("{layer}.weight")).unwrap_or(Form::Plain(DType::F32)));
                let dtype = match form {
                    Form::Plain(dtype) => is_plain(dtype),
                    Form::Quantised(_) => DType::BF16,
                };
                for (half, shape) in [("lora_a", [lora.rank, inputs]), ("lora_b", [out, lora.rank])] {
                    let name = format!("{layer}.{half}");
                    let (pace, decays) = rules.of(&[&name]);
                    let has_master = dtype == DType::BF16 && recipe.master_dtype == KeptType::F32;
                    wanted.push(Wanted { name, shape: shape.to_vec(), pace, decays, dtype, has_master });
                }
            }
            if !has_matched {
                return Err(Error::usage(format!(
                    "lora.targets: no linear layer is called {:?}",
                    lora.targets
                ))
                .expected(
                    r"a pattern of whole names, as language_model\.layers\.\d+\.self_attn\.[qv]_proj",
                ));
            }
        }
        rules.check_all_matched("img/.* or vision_tower\\..*")?;
        if let Some(name) = quantised {
            return Err(Error::usage(format!("{name} shall learn and is quantised"))
                .expected("plain numbers, or adapters beside it")
                .hint("lora.rank=16 trains adapters; dtype=bf16 makes plain numbers of the model"));
        }
        if wanted.is_empty() {
            return Err(Error::usage("nothing learns: freeze names every parameter"));
        }
        Ok(Selection { paces: rules.paces, wanted, frozen })
    }
}

/// A model that learns.
#[derive(Debug)]
pub(super) struct Parameters {
    config: Config,
    model: PaliGemma,
    learner: Learner,
    /// What all adapters have in common, with the layers that have one.
    lora: Option<(LoraRecipe, Vec<String>)>,
    /// For a small model, threads that each compute parts of a batch from end to end.
    lanes: Option<Vec<ThreadPool>>,
}

/// The most numbers of a model whose parts of a batch are computed side by side: each part keeps gradients of its own. The
/// operations of a small model are too short to be shared among threads; those of a large one are not, though little of it learns.
const SIDE_BY_SIDE: usize = 1 << 25;

/// How many parts of a batch are computed side by side, each on a thread of its own, where they are.
pub(super) fn num_lanes(recipe: &Recipe, selection: &Selection) -> Option<usize> {
    let frozen = selection.frozen.iter().map(|(named, _)| named.len());
    let numbers: usize = selection.wanted.iter().map(Wanted::len).chain(frozen).sum();
    let parts = recipe.batch.div_ceil(recipe.micro_batch());
    (numbers <= SIDE_BY_SIDE && parts > 1).then(|| parts.min(rayon::current_num_threads()))
}

impl Parameters {
    /// Reads what learns and what does not.
    ///
    /// # Errors
    /// A tensor that cannot be read; an adapter to begin with that does not fit.
    pub(super) fn new(recipe: &Recipe, checkpoint: &Checkpoint, selection: &Selection) -> Result<Parameters> {
        let config = checkpoint.config();
        let ids: HashMap<&str, usize> =
            selection.wanted.iter().enumerate().map(|(id, wanted)| (wanted.name.as_str(), id)).collect();
        let forms: HashMap<&str, Form> =
            selection.frozen.iter().map(|(named, form)| (named.name.as_str(), *form)).collect();
        let mut starts: Vec<Option<Tensor>> = vec![None; selection.wanted.len()];
        let mut get = |name: &str| -> Result<Parameter> {
            if let Some(&id) = ids.get(name) {
                let wanted = &selection.wanted[id];
                let stored = checkpoint.weight(name)?;
                let start = dequantise(&stored, DType::F32);
                stored.parts().into_iter().for_each(Tensor::let_go);
                if wanted.has_master {
                    starts[id] = Some(owned(&start, DType::F32));
                }
                return Ok(Parameter::wanted(owned(&start, wanted.dtype), id));
            }
            let stored = checkpoint.weight(name)?;
            Ok(match (recipe.dtype, forms.get(name)) {
                (ComputeType::F32 | ComputeType::Bf16, Some(&Form::Plain(dtype))) => {
                    let plain = dequantise(&stored, dtype);
                    stored.parts().into_iter().for_each(Tensor::let_go);
                    plain.into()
                }
                _ => stored.into(),
            })
        };
        let begin = match recipe.lora.as_ref().and_then(|lora| lora.init.as_deref()) {
            Some(folder) => Some(Adapter::open(folder, config)?),
            None => None,
        };
        let layers: Vec<String> = selection
            .wanted
            .iter()
            .filter_map(|w| Some(w.name.strip_suffix(".lora_a")?.to_string()))
            .collect();
        let lora = recipe.lora.clone().map(|lora| (lora, layers));
        let mut halves = HashMap::new();
        if let Some((lora, layers)) = &lora {
            if let Some(begin) = &begin {
                check_begin(begin, lora, layers)?;
            }
            for wanted in &selection.wanted {
                let is_b = wanted.name.ends_with(".lora_b");
                let layer = wanted.name.rsplit_once('.').map_or("", |(layer, _)| layer);
                let half = match begin.as_ref().and_then(|begin| begin.layers.get(layer)) {
                    Some(Pair { a, b }) => {
                        if is_b {
                            b.clone()
                        } else {
                            a.clone()
                        }
                    }
                    None => new_half(recipe.seed, wanted, is_b),
                };
                halves.insert(wanted.name.as_str(), half);
            }
        }
        let half = |name: &str| {
            let id = *ids.get(name)?;
            Some(Parameter::wanted(owned(halves.get(name)?, selection.wanted[id].dtype), id))
        };
        let adapter = |layer: &str| {
            let (kind, _) = lora.as_ref()?;
            let (a, b) = (half(&format!("{layer}.lora_a"))?, half(&format!("{layer}.lora_b"))?);
            Some(Lora { a, b, scale: (kind.alpha / kind.rank as f64) as f32, dropout: kind.dropout as f32 })
        };
        let model = PaliGemma::load(config, &mut Weights::new(&mut get).with_adapters(&adapter))?
            .with_sliding_window(recipe.model.sliding_window);
        let masters = selection.wanted.iter().zip(starts).map(|(wanted, start)| {
            start.or_else(|| wanted.has_master.then(|| halves.get(wanted.name.as_str()).cloned()).flatten())
        });
        let learner = Learner::new(recipe, &selection.paces, &selection.wanted, masters);
        let lane = |_| {
            ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| {
                Error::new(Kind::Resource, "the system gives no more threads").because(error)
            })
        };
        let lanes = num_lanes(recipe, selection)
            .map(|count| (0..count).map(lane).collect::<Result<_>>())
            .transpose()?;
        Ok(Parameters { config: config.clone(), model, learner, lora, lanes })
    }

    /// The model as it is now.
    pub(super) fn model(&self) -> &PaliGemma {
        &self.model
    }

    /// The learning rate of a step, of the parameters that no group has.
    pub(super) fn lr(&self, step: u64) -> f64 {
        self.learner.lr(step)
    }

    /// Learns a batch, so many lessons at a time → its loss and the norm of its gradients, before clipping.
    ///
    /// # Errors
    /// `Kind::Training`: a loss or a gradient that is not finite. Nothing is then changed; but with fused updates what came
    /// before it is. A lesson that the model cannot read.
    pub(super) fn step(
        &mut self,
        step: u64,
        batch: &[Lesson],
        together: usize,
        options: &LossOptions,
    ) -> Result<(f64, f64)> {
        let options = &LossOptions { batch: Some(BatchSize::of(batch)), ..*options };
        let Parameters { model, learner, lanes, .. } = self;
        let mut gradients = learner.gradients(step);
        let mut loss = 0.0;
        let mut add = |value: f64| {
            loss += value;
            match loss.is_finite() {
                true => Ok(()),
                false => Err(Error::new(Kind::Training, format!("the loss is {loss}"))),
            }
        };
        match lanes {
            Some(lanes) => {
                for part in side_by_side(lanes, model, learner, batch, step, together, options) {
                    let (value, sums) = part?;
                    add(value)?;
                    learner.merge(&mut gradients, sums);
                }
            }
            None => {
                for part in batch.chunks(together) {
                    let done = match learner.is_fused() {
                        true => model.learn(part, options, None, &mut |id, weight, part| {
                            learner.hear(&mut gradients, id, weight, part);
                        }),
                        false => model.loss_and_gradients(part, options, None, &mut |id, part| {
                            learner.add(&mut gradients, id, part);
                        }),
                    };
                    add(done?.value)?;
                }
            }
        }
        let norm = learner.finish(gradients, model, PaliGemma::wanted_mut)?;
        Ok((loss, norm))
    }

    /// [`Learner::kept`] of the model.
    pub(super) fn kept(&self) -> Vec<(String, Tensor)> {
        self.learner.kept(self.model.parameters())
    }

    /// [`Learner::optimiser_state`]
    pub(super) fn optimiser_state(&self) -> Vec<Part<'_>> {
        self.learner.optimiser_state()
    }

    /// [`Learner::restore`]
    pub(super) fn restore(
        &mut self,
        weights: &dyn Fn(&str) -> Result<Tensor>,
        state: &dyn Fn(&str) -> Result<Tensor>,
    ) -> Result<()> {
        self.learner.restore(&mut self.model, PaliGemma::wanted_mut, weights, state)
    }

    /// The adapters as they are now.
    pub(super) fn adapter(&self) -> Option<Adapter> {
        let (lora, layers) = self.lora.as_ref()?;
        let kept: HashMap<String, Tensor> = self.kept().into_iter().collect();
        let half = |layer: &str, half: &str| kept.get(&format!("{layer}.{half}")).map(|x| x.cast(DType::F32));
        let pair = |layer: &String| {
            Some((layer.clone(), Pair { a: half(layer, "lora_a")?, b: half(layer, "lora_b")? }))
        };
        let layers = layers.iter().filter_map(pair).collect();
        Some(Adapter { rank: lora.rank, alpha: lora.alpha, dropout: lora.dropout, layers })
    }

    /// The shape of the model.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

/// The parts of a batch, each with its loss and its gradients, in their order, whatever the number of lanes.
fn side_by_side(
    lanes: &[ThreadPool],
    model: &PaliGemma,
    learner: &Learner,
    batch: &[Lesson],
    step: u64,
    together: usize,
    options: &LossOptions,
) -> Vec<Result<(f64, Gradients)>> {
    let parts: Vec<&[Lesson]> = batch.chunks(together).collect();
    let done: Vec<OnceLock<Result<(f64, Gradients)>>> = parts.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let compute = |part: &[Lesson]| {
        let mut gradients = learner.gradients(step);
        let loss = model
            .loss_and_gradients(part, options, None, &mut |id, part| learner.add(&mut gradients, id, part))?;
        Ok((loss.value, gradients))
    };
    thread::scope(|scope| {
        for lane in lanes {
            let (parts, done, next, compute) = (&parts, &done, &next, &compute);
            let work = move || {
                lane.install(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(part) = parts.get(i) else { break };
                        // Nobody else has this number.
                        let _ = done[i].set(compute(part));
                    }
                });
            };
            // Where the system gives no thread to wait for the lane, this one does.
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                work();
            }
        }
    });
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// An adapter to begin with is of the recipe's kind.
fn check_begin(begin: &Adapter, lora: &LoraRecipe, layers: &[String]) -> Result<()> {
    let is_same = begin.rank == lora.rank
        && begin.alpha == lora.alpha
        && layers.len() == begin.layers.len()
        && layers.iter().all(|layer| begin.layers.contains_key(layer));
    if is_same {
        return Ok(());
    }
    Err(Error::usage(
        "lora.init is of other layers, rank or alpha than lora.targets, lora.rank and lora.alpha say",
    )
    .expected(format!("rank {}, alpha {}, {} layers", begin.rank, begin.alpha, begin.layers.len())))
}

/// A new half of an adapter, as PEFT begins it: A uniform within 1/√in (Kaiming's rule with a = √5), B zero.
fn new_half(seed: u64, wanted: &Wanted, is_b: bool) -> Tensor {
    if is_b {
        return Tensor::zeros(&wanted.shape);
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    // Each name has a stream of its own, whatever else learns.
    let digest = ring::digest::digest(&ring::digest::SHA256, wanted.name.as_bytes());
    key[8..].copy_from_slice(&digest.as_ref()[..24]);
    let mut rng = ChaCha8Rng::from_seed(key);
    let bound = (wanted.shape[1] as f32).powf(-0.5);
    let number = |_| ((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0) * bound;
    Tensor::from_f32((0..wanted.len()).map(number).collect(), &wanted.shape)
}
