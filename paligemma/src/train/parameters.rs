//! What learns and what does not: each parameter that learns with what is kept of it, how fast it goes, and its update.

use std::collections::HashMap;

use fancy_regex::Regex;
use paligemma_tensor::{Contribution, DType, Parameter, Tensor, round_into_bf16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

use super::optimiser::{Numbers, Optimiser, Rate, State, sum_of_squares};
use super::recipe::{ComputeType, Course, KeptType, LoraRecipe, Recipe};
use super::schedule::Schedule;
use crate::adapter::{Adapter, Pair, linear_layers};
use crate::checkpoint::{Checkpoint, Form, dequantise, names};
use crate::config::Config;
use crate::model::{BatchSize, Lesson, Lora, LossOptions, PaliGemma, Weights};
use crate::{Error, Kind, Result};

/// How fast a group of parameters goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// The pattern of its names; none is all others.
    pub pattern: Option<String>,
    /// Factor of the learning rate.
    pub lr_factor: f64,
    /// Its schedule.
    pub schedule: Schedule,
}

/// A parameter that learns, before anything is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Our name, or `LAYER.lora_a` and `LAYER.lora_b`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Which of the paces.
    pub pace: usize,
    /// Whether weight decay applies.
    pub decays: bool,
    /// What the model computes with: f32 or bf16.
    pub dtype: DType,
    /// Whether it is kept in f32 beside that.
    pub has_master: bool,
}

impl Wanted {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

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

/// A pattern that must match a whole name.
fn pattern(text: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{text})$")).map_err(|error| {
        Error::usage(format!("{text:?} is no pattern: {error}")).expected("a regular expression")
    })
}

/// Patterns with whether each has matched a name.
struct Patterns(Vec<(String, Regex, bool)>);

impl Patterns {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Patterns> {
        texts.map(|text| Ok((text.to_string(), pattern(text)?, false))).collect::<Result<_>>().map(Patterns)
    }

    /// The first that matches one of a parameter's names.
    fn first(&mut self, names: &[&str]) -> Option<usize> {
        let at = self
            .0
            .iter()
            .position(|(_, regex, _)| names.iter().any(|name| regex.is_match(name).unwrap_or(false)))?;
        self.0[at].2 = true;
        Some(at)
    }

    fn check_all_matched(&self, key: &str, example: &str) -> Result<()> {
        match self.0.iter().find(|(_, _, has_matched)| !has_matched) {
            None => Ok(()),
            Some((text, ..)) => Err(Error::usage(format!("{key}: no parameter is called {text:?}"))
                .expected(format!("a pattern of whole names, as {example}"))
                .hint("`paligemma show MODEL --tensors` lists the names")),
        }
    }
}

impl Selection {
    /// What `recipe` makes learn of a checkpoint, in a run of `total` steps.
    ///
    /// # Errors
    /// `Kind::Usage`: a pattern that is none or matches nothing, nothing that learns, quantised weights that should.
    pub fn new(recipe: &Recipe, checkpoint: &Checkpoint, total: u64) -> Result<Selection> {
        let config = checkpoint.config();
        let mut paces = Vec::new();
        for group in &recipe.groups {
            paces.push(Pace {
                pattern: Some(group.r#match.clone()),
                lr_factor: group.lr_factor,
                schedule: recipe.schedule(&group.course, total)?,
            });
        }
        paces.push(Pace {
            pattern: None,
            lr_factor: 1.0,
            schedule: recipe.schedule(&Course::default(), total)?,
        });
        let mut groups = Patterns::new(recipe.groups.iter().map(|group| group.r#match.as_str()))?;
        let mut freeze = Patterns::new(recipe.freeze.iter().map(String::as_str))?;
        let decay = pattern(recipe.weight_decay_on())?;
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
            let is_frozen = freeze.first(&[named.key, &named.name]).is_some();
            if recipe.lora.is_some() || is_frozen {
                frozen.push((named, form));
                continue;
            }
            let Form::Plain(dtype) = form else {
                quantised.get_or_insert(named.name.clone());
                continue;
            };
            let pace = groups.first(&[named.key, &named.name]).unwrap_or(paces.len() - 1);
            let decays = recipe.weight_decay > 0.0
                && [named.key, &named.name].iter().any(|name| decay.is_match(name).unwrap_or(false));
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
                    let pace = groups.first(&[&name]).unwrap_or(paces.len() - 1);
                    let decays = recipe.weight_decay > 0.0 && decay.is_match(&name).unwrap_or(false);
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
        let example = "img/.* or vision_tower\\..*";
        freeze.check_all_matched("freeze", example)?;
        groups.check_all_matched("groups.match", example)?;
        if let Some(name) = quantised {
            return Err(Error::usage(format!("{name} shall learn and is quantised"))
                .expected("plain numbers, or adapters beside it")
                .hint("lora.rank=16 trains adapters; dtype=bf16 makes plain numbers of the model"));
        }
        if wanted.is_empty() {
            return Err(Error::usage("nothing learns: freeze names every parameter"));
        }
        Ok(Selection { paces, wanted, frozen })
    }
}

/// What is kept of a parameter that learns, beside what the model computes with.
#[derive(Debug)]
struct Learning {
    wanted: Wanted,
    /// The same in f32, from which the model's is rounded after each step.
    master: Option<Tensor>,
    state: State,
}

impl Learning {
    /// The numbers from `from` on that the gradient is of.
    fn update(
        &mut self,
        optimiser: &Optimiser,
        weight: &mut Tensor,
        (from, gradient): (usize, &[f32]),
        rate: &Rate,
    ) {
        let (state, shape) = (&mut self.state, &self.wanted.shape[..]);
        let numbers = match (&mut self.master, self.wanted.dtype) {
            (Some(master), _) => Numbers::F32(master.as_f32_mut()),
            (None, DType::BF16) => Numbers::Bf16(weight.as_bf16_mut()),
            (None, _) => Numbers::F32(weight.as_f32_mut()),
        };
        optimiser.update_part(state, numbers, shape, (from, gradient), rate);
        if let Some(master) = &self.master {
            let part = from..from + gradient.len();
            round_into_bf16(&master.as_f32()[part.clone()], &mut weight.as_bf16_mut()[part]);
        }
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
}

/// All that a step needs beside the model.
#[derive(Debug)]
struct Learner {
    optimiser: Optimiser,
    paces: Vec<Pace>,
    lr: f64,
    weight_decay: f32,
    clip: Option<f64>,
    /// Whether a parameter is updated as soon as its gradient is whole.
    is_fused: bool,
    learning: Vec<Learning>,
}

/// Whether gradients are never held for a whole model: there is no norm to wait for, and no sum.
pub(super) fn is_fused(recipe: &Recipe) -> bool {
    recipe.clip == 0.0 && recipe.micro_batch() == recipe.batch
}

/// The gradients of a step, as they come.
struct Gradients {
    step: u64,
    /// So far, of each parameter.
    sums: Vec<Option<Tensor>>,
    /// Parts that have come.
    parts: Vec<usize>,
    squares: Vec<f64>,
    /// A parameter whose gradient is not finite; nothing is updated from then on.
    broken: Option<usize>,
}

impl Gradients {
    fn new(step: u64, count: usize) -> Gradients {
        Gradients {
            step,
            sums: vec![None; count],
            parts: vec![0; count],
            squares: vec![0.0; count],
            broken: None,
        }
    }

    fn add(&mut self, id: usize, part: Contribution, shape: &[usize]) {
        match &mut self.sums[id] {
            Some(sum) => part.add_to(sum),
            none => *none = Some(part.into_tensor(shape)),
        }
        self.parts[id] += 1;
    }
}

impl Learner {
    /// A part of a gradient, of a step whose updates are fused with it.
    fn hear(&mut self, gradients: &mut Gradients, id: usize, weight: &mut Tensor, part: Contribution) {
        let wanted = &self.learning[id].wanted;
        // The embedding table is the head too: its gradient is whole when both have come.
        let is_table = wanted.name.ends_with(".embed_tokens.weight");
        if !is_table && self.optimiser.takes_parts(&wanted.shape) {
            // Part by part, so that the whole of it is never held: one that is broken stops at the part that is.
            let shape = wanted.shape.clone();
            gradients.parts[id] += 1;
            return part.in_parts(&shape, &mut |from, part| {
                let squares = sum_of_squares(part);
                gradients.squares[id] += squares;
                if !squares.is_finite() {
                    gradients.broken.get_or_insert(id);
                }
                if gradients.broken.is_none() {
                    self.update(id, weight, (from, part), gradients.step);
                }
            });
        }
        gradients.add(id, part, &wanted.shape);
        if gradients.parts[id] == 1 + usize::from(is_table) {
            let Some(sum) = gradients.sums[id].take() else { return };
            gradients.squares[id] = sum_of_squares(sum.as_f32());
            if !gradients.squares[id].is_finite() {
                gradients.broken.get_or_insert(id);
            }
            if gradients.broken.is_none() {
                self.update(id, weight, (0, sum.as_f32()), gradients.step);
            }
        }
    }

    fn update(&mut self, id: usize, weight: &mut Tensor, gradient: (usize, &[f32]), step: u64) {
        let wanted = &self.learning[id].wanted;
        let pace = &self.paces[wanted.pace];
        let rate = Rate {
            step,
            lr: (self.lr * pace.lr_factor) as f32,
            schedule: pace.schedule.at(step) as f32,
            decay: if wanted.decays { self.weight_decay } else { 0.0 },
        };
        self.learning[id].update(&self.optimiser, weight, gradient, &rate);
    }
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
                let start = checkpoint.tensor(name)?;
                if wanted.has_master {
                    starts[id] = Some(owned(&start, DType::F32));
                }
                return Ok(Parameter::wanted(owned(&start, wanted.dtype), id));
            }
            let stored = checkpoint.weight(name)?;
            Ok(match (recipe.dtype, forms.get(name)) {
                (ComputeType::F32 | ComputeType::Bf16, Some(&Form::Plain(dtype))) => {
                    dequantise(&stored, dtype).into()
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
        let optimiser = recipe.optimiser();
        let state = match recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let learning = selection.wanted.iter().zip(starts).map(|(wanted, start)| Learning {
            master: start
                .or_else(|| wanted.has_master.then(|| halves.get(wanted.name.as_str()).cloned()).flatten()),
            state: optimiser.new_state(&wanted.shape, state),
            wanted: wanted.clone(),
        });
        let learner = Learner {
            optimiser,
            paces: selection.paces.clone(),
            lr: recipe.lr.unwrap_or(0.0),
            weight_decay: recipe.weight_decay as f32,
            clip: (recipe.clip > 0.0).then_some(recipe.clip),
            is_fused: is_fused(recipe),
            learning: learning.collect(),
        };
        Ok(Parameters { config: config.clone(), model, learner, lora })
    }

    /// The model as it is now.
    pub(super) fn model(&self) -> &PaliGemma {
        &self.model
    }

    /// The learning rate of a step, of the parameters that no group has.
    pub(super) fn lr(&self, step: u64) -> f64 {
        self.learner.lr * self.learner.paces.last().map_or(1.0, |pace| pace.schedule.at(step))
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
        let Parameters { model, learner, .. } = self;
        let mut gradients = Gradients::new(step, learner.learning.len());
        let mut loss = 0.0;
        for part in batch.chunks(together) {
            loss += match learner.is_fused {
                true => model.learn(part, options, None, &mut |id, weight, part| {
                    learner.hear(&mut gradients, id, weight, part);
                }),
                false => model.loss_and_gradients(part, options, None, &mut |id, part| {
                    gradients.add(id, part, &learner.learning[id].wanted.shape);
                }),
            }?
            .value;
            if !loss.is_finite() {
                return Err(Error::new(Kind::Training, format!("the loss is {loss}")));
            }
        }
        if !learner.is_fused {
            for (sum, squares) in gradients.sums.iter().zip(&mut gradients.squares) {
                *squares = sum.as_ref().map_or(0.0, |sum| sum_of_squares(sum.as_f32()));
            }
            gradients.broken = gradients.squares.iter().position(|squares| !squares.is_finite());
        }
        if let Some(id) = gradients.broken {
            let name = &learner.learning[id].wanted.name;
            return Err(Error::new(Kind::Training, format!("the gradient of {name} is not finite")));
        }
        let norm = gradients.squares.iter().sum::<f64>().sqrt();
        let factor = learner.clip.filter(|&clip| norm > clip).map_or(1.0, |clip| (clip / norm) as f32);
        for id in 0..learner.learning.len() {
            let sum = gradients.sums[id].take();
            let mut sum = match gradients.parts[id] {
                // What took no part in the loss has a gradient of zeros: its momenta fade, and it decays.
                0 => Tensor::zeros(&learner.learning[id].wanted.shape),
                _ => match sum {
                    Some(sum) => sum,
                    None => continue,
                },
            };
            if factor != 1.0 {
                sum.as_f32_mut()
                    .par_chunks_mut(1 << 14)
                    .for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
            }
            if let Some(weight) = model.wanted_mut(id) {
                learner.update(id, weight, (0, sum.as_f32()), step);
            }
        }
        Ok((loss, norm))
    }

    /// What counts of what learns: each name with its numbers, those that the next ones are made of.
    pub(super) fn kept(&self) -> Vec<(String, Tensor)> {
        let mut weights: Vec<Option<&Tensor>> = vec![None; self.learner.learning.len()];
        for parameter in self.model.parameters() {
            if let Some(id) = parameter.id() {
                weights[id] = Some(parameter.tensor());
            }
        }
        let learning = self.learner.learning.iter().zip(weights);
        let kept = learning.filter_map(|(l, weight)| Some((l, l.master.as_ref().or(weight)?)));
        kept.map(|(l, kept)| (l.wanted.name.clone(), kept.reshape(&l.wanted.shape))).collect()
    }

    /// What the optimiser keeps: `NAME/first` and so on with type, length and bytes.
    pub(super) fn optimiser_state(&self) -> impl Iterator<Item = (String, DType, usize, &[u8])> {
        self.learner.learning.iter().flat_map(|l| {
            l.state.kept.iter().map(|(what, kept)| {
                (format!("{}/{what}", l.wanted.name), kept.dtype(), kept.len(), kept.bytes())
            })
        })
    }

    /// Takes up what [`Parameters::kept`] and [`Parameters::optimiser_state`] gave; both by name.
    ///
    /// # Errors
    /// What `weights` and `state` return; a tensor of another type or shape.
    pub(super) fn restore(
        &mut self,
        weights: &dyn Fn(&str) -> Result<Tensor>,
        state: &dyn Fn(&str) -> Result<Tensor>,
    ) -> Result<()> {
        let check = |name: &str, tensor: &Tensor, dtype: DType, shape: &[usize]| {
            if tensor.dtype() == dtype && tensor.shape() == shape {
                return Ok(());
            }
            Err(Error::model(format!(
                "\"{name}\" of the saved state is {} {:?}",
                tensor.dtype(),
                tensor.shape()
            ))
            .expected(format!("{dtype} {shape:?}, as the recipe says")))
        };
        for (id, learning) in self.learner.learning.iter_mut().enumerate() {
            let name = &learning.wanted.name;
            let tensor = weights(name)?;
            let dtype = if learning.master.is_some() { DType::F32 } else { learning.wanted.dtype };
            check(name, &tensor, dtype, &learning.wanted.shape)?;
            for (what, kept) in &mut learning.state.kept {
                let name = format!("{name}/{what}");
                let tensor = state(&name)?;
                check(&name, &tensor, kept.dtype(), &[kept.len()])?;
                kept.bytes_mut().copy_from_slice(tensor.bytes());
            }
            let Some(weight) = self.model.wanted_mut(id) else { continue };
            match &mut learning.master {
                Some(master) => {
                    round_into_bf16(tensor.as_f32(), weight.as_bf16_mut());
                    *master = owned(&tensor, DType::F32);
                }
                None => *weight = owned(&tensor.reshape(weight.shape()), dtype),
            }
        }
        Ok(())
    }

    /// A parameter that holds a number that is not finite.
    pub(super) fn broken(&self) -> Option<String> {
        let is_broken = |(_, kept): &(String, Tensor)| match kept.dtype() {
            DType::F32 => !sum_of_squares(kept.as_f32()).is_finite(),
            _ => kept.as_bf16().iter().any(|x| !x.is_finite()),
        };
        self.kept().into_iter().find(is_broken).map(|(name, _)| name)
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

/// A tensor of its own, that may change in place: what the checkpoint maps is not ours.
fn owned(tensor: &Tensor, dtype: DType) -> Tensor {
    match dtype {
        DType::BF16 => Tensor::from_bf16(tensor.cast(DType::BF16).as_bf16().to_vec(), tensor.shape()),
        _ => Tensor::from_f32(tensor.to_f32_vec(), tensor.shape()),
    }
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
