//! What is kept of each parameter that learns, of whatever model, and its update from gradients as they come.

use fancy_regex::Regex;
use paligemma_tensor::{Contribution, DType, Parameter, Tensor, round_into_bf16};
use rayon::prelude::*;

use super::optimiser::{Numbers, Optimiser, Rate, State, sum_of_squares};
use super::recipe::{Course, KeptType, Recipe};
use super::schedule::Schedule;
use super::state::Part;
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

/// A pattern that must match a whole name.
pub(super) fn pattern(text: &str) -> Result<Regex> {
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

/// What a recipe says of parameters by their names.
pub(super) struct Rules {
    /// The paces, the last being that of all others.
    pub(super) paces: Vec<Pace>,
    groups: Patterns,
    freeze: Patterns,
    decay: Option<Regex>,
}

impl Rules {
    /// Those of a run of `total` steps.
    ///
    /// # Errors
    /// `Kind::Usage`: a pattern that is none; a schedule that has no room.
    pub(super) fn new(recipe: &Recipe, total: u64) -> Result<Rules> {
        let mut paces = Vec::new();
        for group in &recipe.groups {
            paces.push(Pace {
                pattern: Some(group.r#match.clone()),
                lr_factor: group.lr_factor,
                schedule: recipe.schedule(&group.course, total)?,
            });
        }
        let schedule = recipe.schedule(&Course::default(), total)?;
        paces.push(Pace { pattern: None, lr_factor: 1.0, schedule });
        let decay = pattern(recipe.weight_decay_on())?;
        Ok(Rules {
            paces,
            groups: Patterns::new(recipe.groups.iter().map(|group| group.r#match.as_str()))?,
            freeze: Patterns::new(recipe.freeze.iter().map(String::as_str))?,
            decay: (recipe.weight_decay > 0.0).then_some(decay),
        })
    }

    /// Whether a parameter of these names does not learn.
    pub(super) fn is_frozen(&mut self, names: &[&str]) -> bool {
        self.freeze.first(names).is_some()
    }

    /// Its pace, and whether it decays.
    pub(super) fn of(&mut self, names: &[&str]) -> (usize, bool) {
        let pace = self.groups.first(names).unwrap_or(self.paces.len() - 1);
        let matches = |decay: &Regex| names.iter().any(|name| decay.is_match(name).unwrap_or(false));
        (pace, self.decay.as_ref().is_some_and(matches))
    }

    /// Refuses patterns that no parameter has had.
    ///
    /// # Errors
    /// `Kind::Usage`, with an `example`.
    pub(super) fn check_all_matched(&self, example: &str) -> Result<()> {
        self.freeze.check_all_matched("freeze", example)?;
        self.groups.check_all_matched("groups.match", example)
    }
}

/// What is kept of a parameter that learns, beside what the model computes with.
#[derive(Debug)]
struct Learning {
    wanted: Wanted,
    optimiser: Optimiser,
    /// The same in f32, from which the model's is rounded after each step.
    master: Option<Tensor>,
    state: State,
}

impl Learning {
    /// The numbers from `from` on that the gradient is of.
    fn update(&mut self, weight: &mut Tensor, (from, gradient): (usize, &[f32]), rate: &Rate) {
        let (state, shape) = (&mut self.state, &self.wanted.shape[..]);
        let numbers = match (&mut self.master, self.wanted.dtype) {
            (Some(master), _) => Numbers::F32(master.as_f32_mut()),
            (None, DType::BF16) => Numbers::Bf16(weight.as_bf16_mut()),
            (None, _) => Numbers::F32(weight.as_f32_mut()),
        };
        self.optimiser.update_part(state, numbers, shape, (from, gradient), rate);
        if let Some(master) = &self.master {
            let part = from..from + gradient.len();
            round_into_bf16(&master.as_f32()[part.clone()], &mut weight.as_bf16_mut()[part]);
        }
    }
}

/// All that a step needs beside the model.
#[derive(Debug)]
pub(super) struct Learner {
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
pub(super) struct Gradients {
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

/// The weight of a model whose gradient is wanted as an id.
type WantedMut<M> = for<'m> fn(&'m mut M, usize) -> Option<&'m mut Tensor>;

impl Learner {
    /// What learns from the start; `masters` has those that are kept in f32 beside what the model computes with.
    pub(super) fn new(
        recipe: &Recipe,
        paces: &[Pace],
        wanted: &[Wanted],
        masters: impl IntoIterator<Item = Option<Tensor>>,
    ) -> Learner {
        let state = match recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let learning = wanted.iter().zip(masters).map(|(wanted, master)| {
            let optimiser = recipe.optimiser(&wanted.name, &wanted.shape);
            let state = optimiser.new_state(&wanted.shape, state);
            Learning { wanted: wanted.clone(), optimiser, master, state }
        });
        Learner {
            paces: paces.to_vec(),
            lr: recipe.lr.unwrap_or(0.0),
            weight_decay: recipe.weight_decay as f32,
            clip: (recipe.clip > 0.0).then_some(recipe.clip),
            is_fused: is_fused(recipe),
            learning: learning.collect(),
        }
    }

    /// The learning rate of a step, of the parameters that no group has.
    pub(super) fn lr(&self, step: u64) -> f64 {
        self.lr * self.paces.last().map_or(1.0, |pace| pace.schedule.at(step))
    }

    /// Whether a parameter is updated as soon as its gradient is whole.
    pub(super) fn is_fused(&self) -> bool {
        self.is_fused
    }

    /// The gradients of a step, before any has come.
    pub(super) fn gradients(&self, step: u64) -> Gradients {
        Gradients::new(step, self.learning.len())
    }

    /// A part of a gradient, of a step whose updates come behind it.
    pub(super) fn add(&self, gradients: &mut Gradients, id: usize, part: Contribution) {
        gradients.add(id, part, &self.learning[id].wanted.shape);
    }

    /// The gradients of a part of a batch, beside those of the parts before it.
    pub(super) fn merge(&self, gradients: &mut Gradients, part: Gradients) {
        for (id, sum) in part.sums.into_iter().enumerate() {
            let Some(sum) = sum else { continue };
            self.add(gradients, id, Contribution::Whole(sum));
        }
    }

    /// A part of a gradient, of a step whose updates are fused with it.
    pub(super) fn hear(
        &mut self,
        gradients: &mut Gradients,
        id: usize,
        weight: &mut Tensor,
        part: Contribution,
    ) {
        let Learning { wanted, optimiser, .. } = &self.learning[id];
        // The embedding table is the head too: its gradient is whole when both have come.
        let is_table = wanted.name.ends_with(".embed_tokens.weight");
        if !is_table && optimiser.takes_parts(&wanted.shape) {
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
        self.add(gradients, id, part);
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

    /// Updates what is not updated yet → the norm of all gradients, before clipping.
    ///
    /// # Errors
    /// `Kind::Training`: a gradient that is not finite.
    pub(super) fn finish<M>(
        &mut self,
        mut gradients: Gradients,
        model: &mut M,
        wanted_mut: WantedMut<M>,
    ) -> Result<f64> {
        if !self.is_fused {
            for (sum, squares) in gradients.sums.iter().zip(&mut gradients.squares) {
                *squares = sum.as_ref().map_or(0.0, |sum| sum_of_squares(sum.as_f32()));
            }
            gradients.broken = gradients.squares.iter().position(|squares| !squares.is_finite());
        }
        if let Some(id) = gradients.broken {
            let name = &self.learning[id].wanted.name;
            return Err(Error::new(Kind::Training, format!("the gradient of {name} is not finite")));
        }
        let norm = gradients.squares.iter().sum::<f64>().sqrt();
        let factor = self.clip.filter(|&clip| norm > clip).map_or(1.0, |clip| (clip / norm) as f32);
        for id in 0..self.learning.len() {
            let sum = gradients.sums[id].take();
            let mut sum = match gradients.parts[id] {
                // What took no part in the loss has a gradient of zeros: its momenta fade, and it decays.
                0 => Tensor::zeros(&self.learning[id].wanted.shape),
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
            if let Some(weight) = wanted_mut(model, id) {
                self.update(id, weight, (0, sum.as_f32()), gradients.step);
            }
        }
        Ok(norm)
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
        self.learning[id].update(weight, gradient, &rate);
    }

    /// What counts of what learns: each name with its numbers, those that the next ones are made of.
    pub(super) fn kept<'m>(&self, parameters: impl Iterator<Item = &'m Parameter>) -> Vec<(String, Tensor)> {
        let mut weights: Vec<Option<&Tensor>> = vec![None; self.learning.len()];
        for parameter in parameters {
            if let Some(id) = parameter.id() {
                weights[id] = Some(parameter.tensor());
            }
        }
        let learning = self.learning.iter().zip(weights);
        let kept = learning.filter_map(|(l, weight)| Some((l, l.master.as_ref().or(weight)?)));
        kept.map(|(l, kept)| (l.wanted.name.clone(), kept.reshape(&l.wanted.shape))).collect()
    }

    /// What the optimiser keeps: `NAME/first` and so on.
    pub(super) fn optimiser_state(&self) -> Vec<Part<'_>> {
        let kept = self.learning.iter().flat_map(|l| {
            l.state.kept.iter().map(|(what, kept)| Part {
                name: format!("{}/{what}", l.wanted.name),
                dtype: kept.dtype(),
                shape: vec![kept.len()],
                bytes: kept.bytes(),
            })
        });
        kept.collect()
    }

    /// Takes up what [`Learner::kept`] and [`Learner::optimiser_state`] gave; both by name.
    ///
    /// # Errors
    /// What `weights` and `state` return; a tensor of another type or shape.
    pub(super) fn restore<M>(
        &mut self,
        model: &mut M,
        wanted_mut: WantedMut<M>,
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
        for (id, learning) in self.learning.iter_mut().enumerate() {
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
            let Some(weight) = wanted_mut(model, id) else { continue };
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
}

/// A tensor of its own, that may change in place: what the checkpoint maps is not ours.
pub(super) fn owned(tensor: &Tensor, dtype: DType) -> Tensor {
    let owned = match dtype {
        DType::BF16 => Tensor::from_bf16(tensor.cast(DType::BF16).as_bf16().to_vec(), tensor.shape()),
        _ => Tensor::from_f32(tensor.to_f32_vec(), tensor.shape()),
    };
    // What it was copied from would stay in memory beside it.
    tensor.let_go();
    owned
}
