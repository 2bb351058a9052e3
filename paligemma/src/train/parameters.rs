//! What learns and what does not: each parameter that learns with what is kept of it, how fast it goes, and its update.

use std::collections::{BTreeMap, HashMap};

use fancy_regex::Regex;
use paligemma_tensor::{Contribution, DType, Parameter, Tensor, Weight, bf16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::lora::{Adapter, Pair, linear_layers};
use super::optimiser::{Numbers, Optimiser, Rate, State, sum_of_squares};
use super::recipe::{ComputeType, Course, KeptType, Recipe};
use super::schedule::Schedule;
use crate::checkpoint::{Checkpoint, Form, dequantise, names};
use crate::config::Config;
use crate::model::{Lora, PaliGemma, Weights};
use crate::{Error, Result};

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

/// A parameter that learns.
#[derive(Debug)]
struct Learning {
    wanted: Wanted,
    /// What the model computes with.
    weight: Tensor,
    /// The same in f32, from which `weight` is rounded after each step.
    master: Option<Tensor>,
    state: State,
}

impl Learning {
    fn new(wanted: Wanted, start: &Tensor, optimiser: &Optimiser, state: DType) -> Learning {
        // Owned, so that it may change in place; what the checkpoint maps is not ours.
        let owned = |dtype| match dtype {
            DType::BF16 => Tensor::from_bf16(start.cast(DType::BF16).as_bf16().to_vec(), start.shape()),
            _ => Tensor::from_f32(start.to_f32_vec(), start.shape()),
        };
        Learning {
            weight: owned(wanted.dtype),
            master: wanted.has_master.then(|| owned(DType::F32)),
            state: optimiser.new_state(&wanted.shape, state),
            wanted,
        }
    }

    /// The numbers that count: those that the next ones are made of.
    fn kept(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(&self.weight)
    }

    fn set(&mut self, kept: &Tensor) {
        match &mut self.master {
            Some(master) => {
                *master = kept.clone();
                self.weight = master.cast(self.wanted.dtype);
            }
            None => self.weight = kept.clone(),
        }
    }

    fn update(&mut self, optimiser: &Optimiser, gradient: &[f32], rate: &Rate) {
        let (state, shape) = (&mut self.state, &self.wanted.shape[..]);
        match (&mut self.master, self.wanted.dtype) {
            (Some(master), _) => {
                optimiser.update(state, Numbers::F32(master.as_f32_mut()), shape, gradient, rate);
                let wide = master.as_f32();
                self.weight
                    .as_bf16_mut()
                    .iter_mut()
                    .zip(wide)
                    .for_each(|(x, &wide)| *x = bf16::from_f32(wide));
            }
            (None, DType::BF16) => {
                optimiser.update(state, Numbers::Bf16(self.weight.as_bf16_mut()), shape, gradient, rate);
            }
            (None, _) => {
                optimiser.update(state, Numbers::F32(self.weight.as_f32_mut()), shape, gradient, rate)
            }
        }
    }
}

/// A model that learns.
#[derive(Debug)]
pub(super) struct Parameters {
    config: Config,
    sliding_window: bool,
    optimiser: Optimiser,
    paces: Vec<Pace>,
    lr: f64,
    weight_decay: f32,
    clip: Option<f64>,
    /// Whether a parameter is updated as soon as its gradient is whole.
    is_fused: bool,
    learning: Vec<Learning>,
    frozen: HashMap<String, Weight>,
    /// By layer: where its two halves stand in `learning`.
    adapters: BTreeMap<String, [usize; 2]>,
    lora: Option<AdapterKind>,
}

/// What all adapters of a run have in common.
#[derive(Debug, Clone, Copy)]
struct AdapterKind {
    rank: usize,
    alpha: f64,
    dropout: f64,
}

/// Whether gradients are never held for a whole model: there is no norm to wait for, and no sum.
pub(super) fn is_fused(recipe: &Recipe) -> bool {
    recipe.clip == 0.0 && recipe.micro_batch() == recipe.batch
}

/// The gradients of a step, as they come.
#[derive(Debug)]
pub(super) struct Gradients {
    step: u64,
    /// So far, of each parameter.
    sums: Vec<Option<Tensor>>,
    /// Contributions so far.
    parts: Vec<usize>,
    squares: Vec<f64>,
    /// A parameter whose gradient is not finite; nothing is updated from then on.
    broken: Option<usize>,
}

impl Parameters {
    /// Reads what learns and what does not.
    ///
    /// # Errors
    /// A tensor that cannot be read; an adapter to begin with that does not fit.
    pub(super) fn new(recipe: &Recipe, checkpoint: &Checkpoint, selection: Selection) -> Result<Parameters> {
        let optimiser = recipe.optimiser();
        let state = match recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let mut config = checkpoint.config().clone();
        if !recipe.model.final_softcap {
            config.text.final_logit_softcapping = None;
        }
        let begin = match recipe.lora.as_ref().and_then(|lora| lora.init.as_deref()) {
            Some(folder) => Some(Adapter::open(folder, &config)?),
            None => None,
        };
        let lora =
            recipe.lora.as_ref().map(|l| AdapterKind { rank: l.rank, alpha: l.alpha, dropout: l.dropout });
        if let (Some(begin), Some(kind)) = (&begin, lora) {
            let layers = selection.wanted.iter().filter_map(|w| w.name.strip_suffix(".lora_a"));
            if begin.rank != kind.rank
                || begin.alpha != kind.alpha
                || !layers.eq(sorted_as(&selection, begin))
            {
                return Err(Error::usage("lora.init is an adapter of other layers, rank or alpha than lora.targets, lora.rank and lora.alpha say")
                    .expected(format!("rank {}, alpha {}, {} layers", begin.rank, begin.alpha, begin.layers.len())));
            }
        }
        let mut learning = Vec::with_capacity(selection.wanted.len());
        let mut adapters: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for (i, wanted) in selection.wanted.into_iter().enumerate() {
            let start =
                match wanted.name.strip_suffix(".lora_a").or_else(|| wanted.name.strip_suffix(".lora_b")) {
                    Some(layer) => {
                        let is_b = wanted.name.ends_with(".lora_b");
                        adapters.entry(layer.to_string()).or_default()[usize::from(is_b)] = i;
                        match begin.as_ref().and_then(|begin| begin.layers.get(layer)) {
                            Some(Pair { a, b }) => {
                                if is_b {
                                    b.clone()
                                } else {
                                    a.clone()
                                }
                            }
                            None => new_half(recipe.seed, &wanted, is_b),
                        }
                    }
                    None => checkpoint.tensor(&wanted.name)?,
                };
            learning.push(Learning::new(wanted, &start, &optimiser, state));
        }
        let mut frozen = HashMap::new();
        for (named, form) in selection.frozen {
            let stored = checkpoint.weight(&named.name)?;
            let weight = match (recipe.dtype, form) {
                (ComputeType::Auto, _) => stored,
                (_, Form::Plain(dtype)) => dequantise(&stored, dtype).into(),
                (_, Form::Quantised(_)) => stored,
            };
            frozen.insert(named.name, weight);
        }
        Ok(Parameters {
            config,
            sliding_window: recipe.model.sliding_window,
            optimiser,
            paces: selection.paces,
            lr: recipe.lr.unwrap_or(0.0),
            weight_decay: recipe.weight_decay as f32,
            clip: (recipe.clip > 0.0).then_some(recipe.clip),
            is_fused: is_fused(recipe),
            learning,
            frozen,
            adapters,
            lora,
        })
    }

    /// The shape of the model.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The model as it is now. Of one that records, the gradients of what learns are wanted.
    ///
    /// # Errors
    /// None but those of a mistake here.
    pub(super) fn model(&self, records: bool) -> Result<PaliGemma> {
        let ids: HashMap<&str, usize> =
            self.learning.iter().enumerate().map(|(i, l)| (l.wanted.name.as_str(), i)).collect();
        let parameter = |i: usize| match records {
            true => Parameter::wanted(self.learning[i].weight.clone(), i),
            false => self.learning[i].weight.clone().into(),
        };
        let mut get = |name: &str| match (ids.get(name), self.frozen.get(name)) {
            (Some(&i), _) => Ok(parameter(i)),
            (None, Some(weight)) => Ok(weight.clone().into()),
            (None, None) => Err(Error::model(format!("tensor \"{name}\" is missing"))),
        };
        let adapter = |layer: &str| {
            let (&[a, b], kind) = (self.adapters.get(layer)?, self.lora?);
            let scale = (kind.alpha / kind.rank as f64) as f32;
            Some(Lora { a: parameter(a), b: parameter(b), scale, dropout: kind.dropout as f32 })
        };
        let mut weights = Weights::new(&mut get).with_adapters(&adapter);
        Ok(PaliGemma::load(&self.config, &mut weights)?.with_sliding_window(self.sliding_window))
    }

    /// The learning rate of a step, of the parameters that no group has.
    pub(super) fn lr(&self, step: u64) -> f64 {
        self.lr * self.paces.last().map_or(1.0, |pace| pace.schedule.at(step))
    }

    /// Whether adapters drop what goes into them.
    pub(super) fn drops_inputs(&self) -> bool {
        self.lora.is_some_and(|lora| lora.dropout > 0.0)
    }

    /// What counts of what learns: each name with its numbers.
    pub(super) fn kept(&self) -> Vec<(String, Tensor)> {
        self.learning.iter().map(|l| (l.wanted.name.clone(), l.kept().clone())).collect()
    }

    /// What the optimiser keeps: `NAME/first` and so on with type, shape and bytes.
    pub(super) fn optimiser_state(&self) -> impl Iterator<Item = (String, DType, usize, &[u8])> {
        self.learning.iter().flat_map(|l| {
            l.state.kept.iter().map(|(what, kept)| {
                (format!("{}/{what}", l.wanted.name), kept.dtype(), kept.len(), kept.bytes())
            })
        })
    }

    /// Takes up what [`Parameters::kept`] and [`Parameters::optimiser_state`] gave; both by name.
    ///
    /// # Errors
    /// What `tensor` returns; a tensor of another type or shape.
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
        for learning in &mut self.learning {
            let name = &learning.wanted.name;
            let tensor = weights(name)?;
            check(name, &tensor, learning.kept().dtype(), &learning.wanted.shape)?;
            for (what, kept) in &mut learning.state.kept {
                let name = format!("{name}/{what}");
                let tensor = state(&name)?;
                check(&name, &tensor, kept.dtype(), &[kept.len()])?;
                kept.bytes_mut().copy_from_slice(tensor.bytes());
            }
            learning.set(&tensor);
        }
        Ok(())
    }

    /// A parameter that holds a number that is not finite.
    pub(super) fn broken(&self) -> Option<&str> {
        let is_broken = |l: &&Learning| !sum_of_squares(&l.kept().to_f32_vec()).is_finite();
        self.learning.iter().find(is_broken).map(|l| l.wanted.name.as_str())
    }

    /// The adapters as they are now.
    pub(super) fn adapter(&self) -> Option<Adapter> {
        let kind = self.lora?;
        let half = |i: usize| self.learning[i].kept().cast(DType::F32);
        let layers =
            self.adapters.iter().map(|(layer, &[a, b])| (layer.clone(), Pair { a: half(a), b: half(b) }));
        Some(Adapter { rank: kind.rank, alpha: kind.alpha, dropout: kind.dropout, layers: layers.collect() })
    }

    /// A weight as it is now, plain, without adapters.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn weight(&self, name: &str) -> Result<Tensor> {
        if let Some(learning) = self.learning.iter().find(|l| l.wanted.name == name) {
            return Ok(learning.kept().clone());
        }
        let frozen = self.frozen.get(name);
        frozen
            .map(|weight| dequantise(weight, DType::F32))
            .ok_or_else(|| Error::model(format!("tensor \"{name}\" is missing")))
    }

    /// The gradients of step `step`, of which none has come.
    pub(super) fn begin(&self, step: u64) -> Gradients {
        let count = self.learning.len();
        Gradients {
            step,
            sums: vec![None; count],
            parts: vec![0; count],
            squares: vec![0.0; count],
            broken: None,
        }
    }

    /// A part of the gradient of parameter `id`.
    pub(super) fn add(&mut self, gradients: &mut Gradients, id: usize, part: Contribution) {
        match &mut gradients.sums[id] {
            Some(sum) => part.add_to(sum),
            none => *none = Some(part.into_tensor(&self.learning[id].wanted.shape)),
        }
        gradients.parts[id] += 1;
        // The embedding table is the head too: its gradient is whole when both have come.
        let is_table = self.learning[id].wanted.name.ends_with(".embed_tokens.weight");
        if self.is_fused && gradients.parts[id] == 1 + usize::from(is_table) {
            self.finish_one(gradients, id, 1.0);
        }
    }

    fn finish_one(&mut self, gradients: &mut Gradients, id: usize, factor: f32) {
        let Some(mut sum) = gradients.sums[id].take() else { return };
        if self.is_fused {
            gradients.squares[id] = sum_of_squares(sum.as_f32());
            if !gradients.squares[id].is_finite() {
                gradients.broken.get_or_insert(id);
            }
            if gradients.broken.is_some() {
                return;
            }
        }
        if factor != 1.0 {
            sum.as_f32_mut().iter_mut().for_each(|x| *x *= factor);
        }
        let wanted = &self.learning[id].wanted;
        let pace = &self.paces[wanted.pace];
        let rate = Rate {
            step: gradients.step,
            lr: (self.lr * pace.lr_factor) as f32,
            schedule: pace.schedule.at(gradients.step) as f32,
            decay: if wanted.decays { self.weight_decay } else { 0.0 },
        };
        self.learning[id].update(&self.optimiser, sum.as_f32(), &rate);
    }

    /// Does what is left of the step → the norm of all gradients.
    ///
    /// # Errors
    /// `Kind::Training`: a gradient that is not finite. Nothing is then changed; but with fused updates what came before
    /// it is.
    pub(super) fn finish(&mut self, mut gradients: Gradients) -> Result<f64> {
        if !self.is_fused {
            for (sum, squares) in gradients.sums.iter().zip(&mut gradients.squares) {
                *squares = sum.as_ref().map_or(0.0, |sum| sum_of_squares(sum.as_f32()));
            }
            gradients.broken = gradients.squares.iter().position(|squares| !squares.is_finite());
        }
        if let Some(id) = gradients.broken {
            return Err(Error::new(
                crate::Kind::Training,
                format!("the gradient of {} is not finite", self.learning[id].wanted.name),
            ));
        }
        let norm = gradients.squares.iter().sum::<f64>().sqrt();
        let factor = self.clip.filter(|&clip| norm > clip).map_or(1.0, |clip| (clip / norm) as f32);
        for id in 0..self.learning.len() {
            // A parameter that took no part in the loss has no gradient, which is a gradient of zeros: its momenta fade.
            if gradients.parts[id] == 0 {
                gradients.sums[id] = Some(Tensor::zeros(&self.learning[id].wanted.shape));
            }
            self.finish_one(&mut gradients, id, factor);
        }
        Ok(norm)
    }
}

/// The layers of an adapter in the order of a selection.
fn sorted_as<'a>(selection: &'a Selection, adapter: &'a Adapter) -> impl Iterator<Item = &'a str> {
    let layers = selection.wanted.iter().filter_map(|w| w.name.strip_suffix(".lora_a"));
    let count = adapter.layers.len();
    layers.filter(|layer| adapter.layers.contains_key(*layer)).take(count)
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
