//! A run of SigLIP's two towers: of each batch they learn which picture and which text belong together.
//! Reference: big_vision/trainers/proj/image_text/siglip.py; the beginning of the weights is that of models/vit.py and
//! models/proj/image_text/text_transformer.py (with flax's own where these say nothing).

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use paligemma_tensor::{DType, Parameter, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

use super::batches::{Batches, open_data, open_eval};
use super::filters::filters;
use super::learner::{Learner, Pace, Rules, Wanted, owned};
use super::metrics::EvalLine;
use super::recipe::{ComputeType, EvalRecipe, KeptType, Recipe, SiglipRecipe};
use super::state::{Part, Saved};
use super::steps::{Event, Learned, Outcome, Run, Trainer, told};
use super::waves::waves;
use crate::checkpoint::{SiglipFolder, write_siglip};
use crate::config::VisionConfig;
use crate::data::{Mixture, Preparation, Ready};
use crate::image::Preprocess;
use crate::model::{TextTowerConfig, TwoTowers, TwoTowersConfig, Weights};
use crate::text::Tokenizer;
use crate::{Error, Kind, Result, nano};

/// big_vision's, and transformers'.
const LAYER_NORM_EPS: f32 = 1e-6;
/// The deviation of a normal distribution that is cut off at two of its deviations.
const CUT_OFF: f64 = 0.879_625_661_034_239_8;

/// A recipe of two towers with all that it names opened.
#[derive(Debug)]
pub struct PairJob {
    recipe: Recipe,
    siglip: SiglipRecipe,
    config: TwoTowersConfig,
    /// What the run begins with, if not with new weights.
    start: Option<SiglipFolder>,
    mixture: Arc<Mixture>,
    eval: Option<(EvalRecipe, Arc<Mixture>)>,
    preparation: Preparation,
    eos: u32,
    paces: Vec<Pace>,
    wanted: Vec<Wanted>,
    total: u64,
}

/// A picture and a text that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Where the example stands.
    pub place: String,
    /// The text.
    pub text: String,
    /// Its ids, cut or filled up to the length of texts.
    pub ids: Vec<u32>,
    /// The picture, `[3, S, S]`.
    pub pixels: Vec<f32>,
}

impl PairJob {
    /// The run that a recipe with a table `siglip` describes; `None` of another.
    ///
    /// # Errors
    /// Whatever is wrong with the tokenizer, the data, the folder to begin with, or the recipe's patterns and schedules.
    pub fn of(recipe: &Recipe) -> Result<Option<PairJob>> {
        let Some(siglip) = recipe.siglip.clone() else { return Ok(None) };
        let tokenizer = match is_built_in(&siglip.tokenizer) {
            true => Tokenizer::from_model_bytes(nano::TOKENIZER)?,
            false => Tokenizer::from_file(&siglip.tokenizer)?,
        };
        let eos = tokenizer.eos()?;
        let config = sizes(&siglip, tokenizer.vocab_size());
        let start = match recipe.model.init.as_str() {
            "" => None,
            folder => Some(SiglipFolder::open(Path::new(folder))?),
        };
        if let Some(start) = start.as_ref().filter(|start| start.config != config) {
            return Err(Error::usage("model.init is of other sizes than the tables siglip say")
                .at(recipe.model.init.clone())
                .expected(format!("{config:?}, found {:?}", start.config)));
        }
        let mut recipe = recipe.clone();
        for source in recipe.data.values_mut().chain(recipe.eval.iter_mut().map(|eval| &mut eval.source)) {
            // Nothing is asked: data without a prefix are pairs too.
            source.prefix.clear();
        }
        let (mixture, eval) = (open_data(&recipe)?, open_eval(&recipe)?);
        let total = recipe.num_steps(mixture.num_examples());
        let (paces, wanted) = select(&recipe, &config, total)?;
        let mut preprocess =
            Preprocess::choose(recipe.model.preprocess.into(), None, config.vision.image_size)?;
        if let Preprocess::Reference { antialias } = &mut preprocess {
            *antialias = recipe.model.antialias;
        }
        let preparation = Preparation {
            tokenizer: Arc::new(tokenizer),
            preprocess,
            image_size: config.vision.image_size,
            text_len: recipe.text_len,
            augmentation: recipe.augmentation(),
        };
        Ok(Some(PairJob {
            recipe,
            siglip,
            config,
            start,
            mixture,
            eval,
            preparation,
            eos,
            paces,
            wanted,
            total,
        }))
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps of the whole run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How fast the groups of parameters go, the last being that of all others.
    pub fn paces(&self) -> &[Pace] {
        &self.paces
    }

    /// What learns.
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// Numbers that do not learn.
    pub fn num_frozen(&self) -> u64 {
        let all = self
            .config
            .tensors()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>() as u64)
            .sum::<u64>();
        all - self.wanted.iter().map(|wanted| wanted.len() as u64).sum::<u64>()
    }

    /// Whose ids the texts have.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.preparation.tokenizer
    }

    /// The first pairs of the run, as the model will read them.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn first(&self, count: u64) -> Result<Vec<Pair>> {
        (0..count).map(|number| self.pair(&self.preparation.prepare(&self.mixture, number)?)).collect()
    }

    /// Seconds of one step, by doing its way there and back.
    ///
    /// # Errors
    /// What is wrong with a tensor or an example.
    pub fn time_of_a_step(&self) -> Result<f64> {
        let (mut model, _) = self.begin(None)?;
        let (images, ids) = self.together(&self.first(self.recipe.batch as u64)?);
        let start = Instant::now();
        model.learn(&images, &ids, self.recipe.recompute, None, &mut |_, _, part| drop(part))?;
        Ok(start.elapsed().as_secs_f64())
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
        self.as_run().train(until, listen, |first, saved| {
            let (model, learner) = self.begin(saved)?;
            let batches = Batches::new(&self.recipe, &self.mixture, &self.preparation, first)?;
            Ok(Training { job: self, model, learner, batches, examples: Vec::new() })
        })
    }

    /// Writes the newest saved state as a folder of transformers' `SiglipModel`, its tensors as `dtype` or f32. `out` must
    /// not exist. → its step.
    ///
    /// # Errors
    /// `Kind::Usage`: nothing is saved yet, or `out` exists. A state that is damaged; writing.
    pub fn export(&self, out: &Path, dtype: Option<DType>) -> Result<u64> {
        let saved = self.as_run().saved()?;
        let shapes: HashMap<String, Vec<usize>> = self.config.tensors().into_iter().collect();
        let learns = |name: &str| self.wanted.iter().any(|wanted| wanted.name == name);
        let file = &self.siglip.tokenizer;
        let tokenizer = match is_built_in(file) {
            true => nano::TOKENIZER.to_vec(),
            false => std::fs::read(file).map_err(|e| Error::io(file, e))?,
        };
        let is_json = file.extension().is_some_and(|ending| ending == "json");
        let files = vec![(if is_json { "tokenizer.json" } else { "tokenizer.model" }, tokenizer)];
        let mut tensor = |name: &str| match learns(name) {
            true => saved.weights.tensor(name),
            false => self.beginning(name, &shapes[name]),
        };
        write_siglip(&self.config, out, dtype.unwrap_or(DType::F32), self.eos, files, &mut tensor)?;
        Ok(saved.position.step)
    }

    fn as_run(&self) -> Run<'_> {
        Run { recipe: &self.recipe, total: self.total }
    }

    /// The weights as they were saved, or at the beginning.
    fn begin(&self, saved: Option<&Saved>) -> Result<(TwoTowers, Learner)> {
        let shapes: HashMap<String, Vec<usize>> = self.config.tensors().into_iter().collect();
        let mut masters = vec![None; self.wanted.len()];
        let mut get = |name: &str| -> Result<Parameter> {
            let start = self.beginning(name, &shapes[name])?;
            let Some(id) = self.wanted.iter().position(|wanted| wanted.name == name) else {
                return Ok(owned(&start, computed_as(&self.recipe, name)).into());
            };
            let wanted = &self.wanted[id];
            if wanted.has_master {
                masters[id] = Some(owned(&start, DType::F32));
            }
            Ok(Parameter::wanted(owned(&start, wanted.dtype), id))
        };
        let mut model = TwoTowers::load(&self.config, &mut Weights::new(&mut get))?;
        let mut learner = Learner::new(&self.recipe, &self.paces, &self.wanted, masters);
        if let Some(saved) = saved {
            let (weights, state) =
                (|name: &str| saved.weights.tensor(name), |name: &str| saved.optimiser.tensor(name));
            learner
                .restore(&mut model, TwoTowers::wanted_mut, &weights, &state)
                .map_err(|error| error.at(saved.path.display().to_string()))?;
        }
        Ok((model, learner))
    }

    /// A weight at the beginning of the run.
    fn beginning(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.start {
            Some(folder) => folder.tensor(name),
            None => Ok(new_weight(name, shape, &self.siglip, self.recipe.seed)),
        }
    }

    /// An example as a pair.
    fn pair(&self, ready: &Ready) -> Result<Pair> {
        let [pixels] = &ready.pixels[..] else {
            return Err(Error::input(format!("the example has {} pictures", ready.pixels.len()))
                .at(ready.place.clone())
                .expected("one, which belongs to its text"));
        };
        let length = self.config.text.length;
        let text = if self.siglip.lower { ready.suffix.to_ascii_lowercase() } else { ready.suffix.clone() };
        let mut ids = self.preparation.tokenizer.encode(&text).map_err(|e| e.at(ready.place.clone()))?;
        // EOS is always there, and is the padding too: the last position, which stands for the text, is always EOS.
        ids.truncate(length - 1);
        ids.resize(length, self.eos);
        Ok(Pair { place: ready.place.clone(), text, ids, pixels: pixels.clone() })
    }

    fn pairs(&self, examples: &[Ready]) -> Result<(Tensor, Vec<u32>)> {
        let pairs = examples.iter().map(|ready| self.pair(ready)).collect::<Result<Vec<_>>>()?;
        Ok(self.together(&pairs))
    }

    /// Pictures `[B, 3, S, S]` and ids `[B·T]`.
    fn together(&self, pairs: &[Pair]) -> (Tensor, Vec<u32>) {
        let side = self.config.vision.image_size;
        let pixels = pairs.iter().flat_map(|pair| pair.pixels.iter().copied()).collect();
        let ids = pairs.iter().flat_map(|pair| pair.ids.iter().copied()).collect();
        (Tensor::from_f32(pixels, &[pairs.len(), 3, side, side]), ids)
    }

    /// Loss and retrieval of held-out pairs, in batches as large as those of training; a rest that fills none is left out,
    /// as it would be told apart more easily.
    fn evaluate(&self, model: &TwoTowers, step: u64) -> Result<Option<EvalLine>> {
        let Some((recipe, mixture)) = &self.eval else { return Ok(None) };
        let count = mixture.num_examples().min(recipe.examples.unwrap_or(usize::MAX) as u64);
        let batch = count.min(self.recipe.batch as u64);
        let count = count - count % batch;
        let preparation = Preparation { augmentation: None, ..self.preparation.clone() };
        let (mut loss, mut image_to_text, mut text_to_image) = (0.0, 0, 0);
        for from in (0..count).step_by(batch as usize) {
            let examples: Vec<Ready> = (from..from + batch)
                .map(|number| preparation.prepare(mixture, number))
                .collect::<Result<_>>()?;
            let (images, ids) = self.pairs(&examples)?;
            let retrieval = model.retrieve(&images, &ids, None)?;
            loss += retrieval.loss * batch as f64 / count as f64;
            image_to_text += retrieval.image_to_text;
            text_to_image += retrieval.text_to_image;
        }
        Ok(Some(EvalLine {
            eval_image_to_text: Some(image_to_text as f64 / count as f64),
            eval_text_to_image: Some(text_to_image as f64 / count as f64),
            ..EvalLine::new(step, loss, count as usize)
        }))
    }
}

/// Whether it is the tokenizer within this program, which a recipe calls as the model that has it. A file goes first.
fn is_built_in(tokenizer: &Path) -> bool {
    tokenizer.to_str().and_then(nano::BuiltIn::named).is_some() && !tokenizer.exists()
}

/// The model that a recipe describes.
fn sizes(siglip: &SiglipRecipe, vocab_size: usize) -> TwoTowersConfig {
    let SiglipRecipe { vision, text, .. } = siglip;
    TwoTowersConfig {
        vision: VisionConfig {
            image_size: vision.image_size,
            patch_size: vision.patch,
            hidden_size: vision.width,
            intermediate_size: vision.mlp,
            num_hidden_layers: vision.depth,
            num_attention_heads: vision.heads,
            layer_norm_eps: LAYER_NORM_EPS,
        },
        text: TextTowerConfig {
            vocab_size,
            length: text.length,
            hidden_size: text.width,
            intermediate_size: text.mlp,
            num_hidden_layers: text.depth,
            num_attention_heads: text.heads,
            layer_norm_eps: LAYER_NORM_EPS,
        },
    }
}

/// What learns and how fast, by the recipe's patterns.
fn select(recipe: &Recipe, config: &TwoTowersConfig, total: u64) -> Result<(Vec<Pace>, Vec<Wanted>)> {
    let mut rules = Rules::new(recipe, total)?;
    let mut wanted = Vec::new();
    for (name, shape) in config.tensors() {
        if rules.is_frozen(&[&name]) {
            continue;
        }
        let (pace, decays) = rules.of(&[&name]);
        let dtype = computed_as(recipe, &name);
        let has_master = dtype == DType::BF16 && recipe.master_dtype == KeptType::F32;
        wanted.push(Wanted { name, shape, pace, decays, dtype, has_master });
    }
    rules.check_all_matched("vision_tower\\..* or text_model\\..*")?;
    if wanted.is_empty() {
        return Err(Error::usage("nothing learns: freeze names every parameter"));
    }
    Ok((rules.paces, wanted))
}

/// What a weight is computed as: new weights are f32 unless the recipe says bf16. The temperature and the bias, one number
/// each, always are.
fn computed_as(recipe: &Recipe, name: &str) -> DType {
    match recipe.dtype {
        ComputeType::Bf16 if !name.starts_with("logit_") => DType::BF16,
        _ => DType::F32,
    }
}

/// A weight before anything is learned. Each name has a stream of its own, whatever else there is.
fn new_weight(name: &str, shape: &[usize], siglip: &SiglipRecipe, seed: u64) -> Tensor {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    key[8..].copy_from_slice(&digest.as_ref()[..24]);
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut fill = |number: &dyn Fn(&mut ChaCha8Rng) -> f64| {
        Tensor::from_f32((0..shape.iter().product()).map(|_| number(&mut rng) as f32).collect(), shape)
    };
    let inputs: usize = shape.iter().skip(1).product();
    let is_norm = name.contains("norm");
    match name.rsplit_once('.').unwrap_or(("", name)) {
        (_, "logit_scale") => fill(&|_| siglip.temperature.ln()),
        (_, "logit_bias") => fill(&|_| siglip.bias),
        (_, "weight") if is_norm => fill(&|_| 1.0),
        // MlpBlock's bias_init.
        (layer, "bias") if layer.ends_with("fc1") || layer.ends_with("fc2") => {
            fill(&|rng| 1e-6 * normal(rng))
        }
        (_, "bias") => fill(&|_| 0.0),
        (layer, _) if layer.ends_with("patch_embedding") && siglip.vision.whiten > 0.0 => {
            let all = filters(shape[0], siglip.vision.patch, siglip.vision.whiten, &mut || normal(&mut rng));
            Tensor::from_f32(all, shape)
        }
        (layer, _)
            if layer == "vision_tower.embeddings.position_embedding" && siglip.vision.positions > 0.0 =>
        {
            Tensor::from_f32(waves(shape[0].isqrt(), shape[1], siglip.vision.positions), shape)
        }
        // normal(1/√D), and nn.Embed's own.
        (layer, _) if layer.ends_with("position_embedding") || layer.ends_with("token_embedding") => {
            fill(&|rng| (inputs as f64).powf(-0.5) * normal(rng))
        }
        // lecun_normal, which flax cuts off at two deviations and then widens to the variance of before.
        (layer, _) if layer.ends_with("patch_embedding") || layer == "text_model.head" => fill(&|rng| loop {
            let x = normal(rng);
            if x.abs() <= 2.0 {
                return (inputs as f64).powf(-0.5) / CUT_OFF * x;
            }
        }),
        // xavier_uniform; the probe is a matrix of one row.
        _ => {
            let bound = (6.0 / (shape[0] + inputs) as f64).sqrt();
            fill(&|rng| bound * (2.0 * unit(rng) - 1.0))
        }
    }
}

/// In [0, 1).
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Twelve numbers below 1 have a sum that is all but normal, with variance 1; and it is the same on every machine.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| unit(rng)).sum::<f64>() - 6.0
}

/// Two towers that learn, and what they learn from.
struct Training<'a> {
    job: &'a PairJob,
    model: TwoTowers,
    learner: Learner,
    batches: Batches,
    /// The last batch.
    examples: Vec<Ready>,
}

impl Trainer for Training<'_> {
    fn step(&mut self, step: u64, skipped: &mut dyn FnMut(&Error)) -> Result<Learned> {
        let Training { job, model, learner, batches, examples } = self;
        *examples = batches.next(skipped)?;
        let (images, ids) = job.pairs(examples)?;
        let mut gradients = learner.gradients(step);
        let loss =
            model.learn(&images, &ids, job.recipe.recompute, None, &mut |id, weight, part| match learner
                .is_fused()
            {
                true => learner.hear(&mut gradients, id, weight, part),
                false => learner.add(&mut gradients, id, part),
            })?;
        if !loss.is_finite() {
            return Err(Error::new(Kind::Training, format!("the loss is {loss}")));
        }
        let grad_norm = learner.finish(gradients, model, TwoTowers::wanted_mut)?;
        let tokens = ids.len() + examples.len() * job.config.vision.num_tokens();
        Ok(Learned { loss, grad_norm, lr: learner.lr(step), tokens })
    }

    fn draws(&self) -> u64 {
        self.batches.position()
    }

    fn batch(&self) -> Option<Value> {
        Some(told(&self.examples))
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        self.learner.kept(self.model.parameters())
    }

    fn rest(&self) -> Vec<Part<'_>> {
        self.learner.optimiser_state()
    }

    fn evaluate(&self, step: u64) -> Result<Option<EvalLine>> {
        self.job.evaluate(&self.model, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_begin_as_big_visions() {
        let siglip = SiglipRecipe::default();
        // The deviation, and the largest number that may come, in deviations.
        let check = |name: &str, shape: &[usize], mean: f64, deviation: f64, most: f64| {
            let x = new_weight(name, shape, &siglip, 7);
            assert_eq!(x.as_f32(), new_weight(name, shape, &siglip, 7).as_f32());
            let n = x.len() as f64;
            let numbers = || x.as_f32().iter().map(|&x| f64::from(x));
            let found = numbers().sum::<f64>() / n;
            let spread = (numbers().map(|x| (x - found).powi(2)).sum::<f64>() / n).sqrt();
            let largest = numbers().map(|x| (x - mean).abs()).fold(0.0, f64::max);
            assert!(
                (found - mean).abs() <= 4.0 * deviation / n.sqrt() + 1e-6 * mean.abs(),
                "{name}: {found}"
            );
            assert!((spread - deviation).abs() <= 0.02 * deviation, "{name}: {spread}, want {deviation}");
            let bound = most * deviation;
            assert!((0.95 * bound..=1.0001 * bound).contains(&largest) || most > 2.5, "{name}: {largest}");
        };
        let (xavier, uniform) = (|a: f64, b: f64| (2.0 / (a + b)).sqrt(), 3f64.sqrt());
        check(
            "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
            &[96, 96],
            0.0,
            xavier(96.0, 96.0),
            uniform,
        );
        check("text_model.encoder.layers.1.mlp.fc1.weight", &[200, 96], 0.0, xavier(96.0, 200.0), uniform);
        check("vision_tower.head.probe", &[1, 9000], 0.0, xavier(1.0, 9000.0), uniform);
        check("vision_tower.head.attention.k_proj.weight", &[96, 96], 0.0, xavier(96.0, 96.0), uniform);
        let cut = 2.0 / CUT_OFF;
        check("vision_tower.embeddings.patch_embedding.weight", &[64, 3, 8, 8], 0.0, 192f64.powf(-0.5), cut);
        check("text_model.head.weight", &[128, 100], 0.0, 0.1, cut);
        check("text_model.embeddings.token_embedding.weight", &[500, 100], 0.0, 0.1, 9.0);
        check("vision_tower.embeddings.position_embedding.weight", &[256, 64], 0.0, 0.125, 9.0);
        check("text_model.encoder.layers.0.mlp.fc2.bias", &[9000], 0.0, 1e-6, 9.0);
        for (name, value) in [
            ("text_model.encoder.layers.0.self_attn.q_proj.bias", 0.0),
            ("vision_tower.embeddings.patch_embedding.bias", 0.0),
            ("text_model.head.bias", 0.0),
            ("vision_tower.head.layernorm.weight", 1.0),
            ("vision_tower.post_layernorm.weight", 1.0),
            ("text_model.final_layer_norm.bias", 0.0),
            ("text_model.encoder.layers.0.layer_norm1.weight", 1.0),
            ("logit_scale", 10f64.ln()),
            ("logit_bias", -10.0),
        ] {
            check(name, &[3], value, 0.0, 9.0);
        }
        let mut other = SiglipRecipe::default();
        (other.vision.whiten, other.vision.positions) = (0.5, 0.25);
        let (image, text) = ("vision_tower.embeddings.", "text_model.embeddings.");
        let new = |tower: &str, part: &str, shape: &[usize], siglip: &SiglipRecipe| {
            new_weight(&format!("{tower}{part}_embedding.weight"), shape, siglip, 7).as_f32().to_vec()
        };
        assert_eq!(new(image, "position", &[256, 64], &other), waves(16, 64, 0.25));
        assert_eq!(new(text, "position", &[256, 64], &other), new(text, "position", &[256, 64], &siglip));
        let shape = [8, 3, 14, 14];
        let (x, usual) = (new(image, "patch", &shape, &other), new(image, "patch", &shape, &siglip));
        assert!(x.iter().zip(&usual).all(|(x, usual)| x != usual));
    }
}
