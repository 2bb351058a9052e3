//! The memory that a run needs, from its recipe alone, and what would make it fit.

use paligemma_tensor::DType;

use super::learner::{Wanted, is_fused};
use super::parameters::{Selection, num_lanes};
use super::recipe::{KeptType, LoraRecipe, OptimiserName, Recipe};
use crate::checkpoint::{Checkpoint, available_memory};
use crate::config::{Config, GemmaGeneration};
use crate::{Error, Kind, Result};

/// Bytes that a run needs. An estimate from above of what the operations hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What the model computes with.
    pub weights: u64,
    /// The same in f32, of what learns in bf16.
    pub masters: u64,
    /// Gradients of what learns.
    pub gradients: u64,
    /// What the optimiser keeps.
    pub optimiser: u64,
    /// What the way back needs of a batch that is computed together, and pictures that wait.
    pub activations: u64,
}

/// How large examples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleSize {
    /// Pictures.
    pub images: usize,
    /// Tokens of text.
    pub text: usize,
}

impl Plan {
    /// What training a selection by a recipe needs.
    pub fn new(recipe: &Recipe, config: &Config, selection: &Selection, size: ExampleSize) -> Plan {
        let kept = match recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let optimiser = recipe.optimiser();
        let wanted = &selection.wanted;
        let frozen: u64 = selection.frozen.iter().map(|(named, form)| form.num_bytes(&named.shape)).sum();
        let elements = |w: &Wanted| w.len() as u64;
        let activations = activations(recipe, config, selection, size);
        let gradient_bytes = wanted.iter().map(|w| 4 * elements(w));
        let whole: u64 = gradient_bytes.clone().sum();
        let parts = recipe.batch.div_ceil(recipe.micro_batch()) as u64;
        let gradients = match num_lanes(recipe, selection).map(|lanes| lanes as u64) {
            // Each part that is done keeps its own until all are; the others' grow while their activations go.
            Some(lanes) => (parts - lanes) * whole + lanes * whole.saturating_sub(activations / lanes),
            None if !is_fused(recipe) => whole,
            // One at a time, beside that of the embedding table, which is whole only at the end.
            None => {
                let is_table = |w: &&Wanted| w.name.ends_with(".embed_tokens.weight");
                gradient_bytes.max().unwrap_or(0)
                    + wanted.iter().filter(is_table).map(|w| 4 * elements(w)).sum::<u64>()
            }
        };
        Plan {
            weights: frozen + wanted.iter().map(|w| elements(w) * w.dtype.size() as u64).sum::<u64>(),
            masters: wanted.iter().filter(|w| w.has_master).map(|w| 4 * elements(w)).sum(),
            gradients,
            optimiser: wanted.iter().map(|w| optimiser.num_bytes(&w.shape, kept)).sum(),
            activations,
        }
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.rows().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts by name.
    pub fn rows(&self) -> [(&'static str, u64); 5] {
        [
            ("weights", self.weights),
            ("masters", self.masters),
            ("gradients", self.gradients),
            ("optimiser", self.optimiser),
            ("activations", self.activations),
        ]
    }

    /// Refuses a run that this machine's memory cannot hold, with what would make it fit.
    ///
    /// # Errors
    /// `Kind::Resource`.
    pub fn check_available(&self, recipe: &Recipe, checkpoint: &Checkpoint, size: ExampleSize) -> Result<()> {
        available_memory().map_or(Ok(()), |have| self.check_against(have, recipe, checkpoint, size))
    }

    /// The same for `have` bytes.
    ///
    /// # Errors
    /// `Kind::Resource`.
    pub fn check_against(
        &self,
        have: u64,
        recipe: &Recipe,
        checkpoint: &Checkpoint,
        size: ExampleSize,
    ) -> Result<()> {
        if self.total() <= have {
            return Ok(());
        }
        let tried: Vec<(String, u64)> = changes(recipe)
            .into_iter()
            .filter_map(|(what, changed)| {
                let selection = Selection::new(&changed, checkpoint, changed.num_steps(1)).ok()?;
                Some((what, Plan::new(&changed, checkpoint.config(), &selection, size).total()))
            })
            .filter(|(_, total)| *total < self.total())
            .collect();
        let told = tried.iter().map(|(what, total)| {
            format!("{what} → {}{}", gib(*total), if *total <= have { " (fits)" } else { "" })
        });
        let told = told.collect::<Vec<_>>().join(" · ");
        let error = Error::new(
            Kind::Resource,
            format!("the run needs {} of memory, and {} are available", gib(self.total()), gib(have)),
        )
        .expected(self.rows().map(|(name, bytes)| format!("{name} {}", gib(bytes))).join(" + "));
        Err(if told.is_empty() { error } else { error.hint(told) })
    }
}

/// `5.8 GiB`
fn gib(bytes: u64) -> String {
    match bytes {
        0..104_857_600 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// What one may change of a recipe to need less, mildest first.
fn changes(recipe: &Recipe) -> Vec<(String, Recipe)> {
    let with = |what: &str, change: &dyn Fn(&mut Recipe)| {
        let mut changed = recipe.clone();
        change(&mut changed);
        (what.to_string(), changed)
    };
    let all = [
        with("recompute=true", &|r| r.recompute = true),
        with("micro_batch=1", &|r| r.micro_batch = Some(1)),
        with("recompute=true micro_batch=1", &|r| (r.recompute, r.micro_batch) = (true, Some(1))),
        with("state_dtype=bf16", &|r| r.state_dtype = KeptType::Bf16),
        with("freeze=\"img/.*\"", &|r| r.freeze.push("img/.*".into())),
        with("optimiser=sgd clip=0 recompute=true", &|r| {
            (r.optimiser, r.b1, r.b2, r.eps, r.momentum) = (OptimiserName::Sgd, None, None, None, None);
            (r.clip, r.recompute, r.micro_batch) = (0.0, true, None);
        }),
        with("lora.rank=16", &|r| r.lora = Some(LoraRecipe { rank: 16, ..LoraRecipe::default() })),
        with("lora.rank=16 recompute=true micro_batch=1", &|r| {
            r.lora = Some(LoraRecipe { rank: 16, ..LoraRecipe::default() });
            (r.recompute, r.micro_batch) = (true, Some(1));
        }),
    ];
    all.into_iter().filter(|(_, changed)| changed != recipe).collect()
}

fn activations(recipe: &Recipe, config: &Config, selection: &Selection, size: ExampleSize) -> u64 {
    let (v, t) = (&config.vision, &config.text);
    let n = |x: usize| x as u64;
    let micro = n(recipe.micro_batch());
    let lanes = n(num_lanes(recipe, selection).unwrap_or(1));
    let image_rows = micro * n(size.images) * n(v.num_tokens());
    let text_rows = image_rows + micro * n(size.text);
    let learns = |head: &str| selection.wanted.iter().any(|w| w.name.starts_with(head));
    let (vision_learns, joined_learns) = (
        learns("vision_tower."),
        learns("vision_tower.") || learns("multi_modal_projector.") || learns("language_model.embed_tokens"),
    );
    // Below the first layer that learns nothing is kept.
    let first = |head: &str| {
        let layer = |w: &Wanted| w.name.strip_prefix(head)?.split('.').next()?.parse::<usize>().ok();
        selection.wanted.iter().filter_map(layer).min()
    };
    let (d, m) = (n(v.hidden_size), n(v.intermediate_size));
    let vision_from = match first("vision_tower.encoder.layers.") {
        Some(layer) if !learns("vision_tower.embeddings.") => layer,
        _ if vision_learns => 0,
        _ => v.num_hidden_layers,
    };
    let vision_layers = n(v.num_hidden_layers - vision_from.min(v.num_hidden_layers));
    let vision_layer = 8 * d + 2 * m;
    let (d, f) = (n(t.hidden_size), n(t.intermediate_size));
    let heads = n(t.head_dim) * n(t.num_attention_heads + t.num_key_value_heads);
    let text_from = match first("language_model.layers.") {
        Some(layer) if !joined_learns => layer,
        None if !joined_learns => t.num_hidden_layers,
        _ => 0,
    };
    let text_layers = n(t.num_hidden_layers - text_from.min(t.num_hidden_layers));
    let post_norms = if t.generation == GemmaGeneration::Gemma2 { 2 * d } else { 0 };
    let (mut inputs, mut products) = (2 * d, f);
    if !selection.wanted.iter().any(|w| w.name.starts_with("language_model.layers.") && w.shape.len() == 2) {
        // What goes into a frozen matrix is not kept.
        (inputs, products) = (0, 0);
    }
    let text_layer = 2 * d + 2 * heads + 2 * f + inputs + products + post_norms;
    let kept = |layers: u64, layer: u64, x: u64| match recipe.recompute {
        true => layers * x + layer,
        false => layers * layer,
    };
    // Beside it, a layer's gradients on their way.
    let vision =
        image_rows * (kept(vision_layers, vision_layer, n(v.hidden_size)) + 4 * n(v.hidden_size) + 2 * m);
    let text = text_rows * (kept(text_layers, text_layer, d) + 5 * d + 2 * f + heads);
    let logits_rows = (micro * n(size.text)).min(((64 << 20) / n(t.vocab_size).max(1)).clamp(16, 1024));
    let logits = logits_rows * n(t.vocab_size) * 2;
    let pixels = 3 * n(v.image_size) * n(v.image_size) * n(size.images);
    // The batch, those made ready ahead, and what is computed together once more.
    let waiting = pixels * (3 * n(recipe.batch) + lanes * micro);
    4 * (lanes * (vision + text + logits) + waiting)
}
