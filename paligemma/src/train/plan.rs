//! The memory that a run needs, from its recipe alone, and what would make it fit.

use paligemma_tensor::{DType, GRADIENT_PART, logits_rows};

use super::learner::{Wanted, is_fused};
use super::parameters::{Selection, num_lanes};
use super::recipe::{KeptType, LoraRecipe, OptimiserName, Recipe};
use crate::checkpoint::{Checkpoint, available_memory};
use crate::config::{Config, GemmaGeneration};
use crate::{Error, Kind, Result};

/// Bytes that a run needs. An estimate of what the operations hold; the program itself and its tokenizer come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What the model computes with.
    pub weights: u64,
    /// The same in f32, of what learns in bf16.
    pub masters: u64,
    /// Gradients of what learns, as far as they are there when most is held.
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
    /// What training a selection by a recipe needs: gradients and activations as they are when both together are most.
    pub fn new(recipe: &Recipe, config: &Config, selection: &Selection, size: ExampleSize) -> Plan {
        let kept = match recipe.state_dtype {
            KeptType::F32 => DType::F32,
            KeptType::Bf16 => DType::BF16,
        };
        let wanted = &selection.wanted;
        let frozen: u64 = selection.frozen.iter().map(|(named, form)| form.num_bytes(&named.shape)).sum();
        let elements = |w: &Wanted| w.len() as u64;
        let whole: u64 = wanted.iter().map(|w| 4 * elements(w)).sum();
        let parts = recipe.batch.div_ceil(recipe.micro_batch()) as u64;
        let lanes = num_lanes(recipe, selection).map(|lanes| lanes as u64);
        // Parts that are done: side by side each keeps its own until all are, one after the other they are one sum.
        let done = match lanes {
            Some(lanes) => (parts - lanes) * whole,
            None if parts > 1 => whole,
            None => 0,
        };
        let adds = lanes.is_none() && parts > 1;
        let most = moments(recipe, config, selection, size, adds).into_iter().max_by_key(Moment::total);
        let Moment { activations, gradients } = most.unwrap_or_default();
        let (v, lanes) = (&config.vision, lanes.unwrap_or(1));
        let pixels = 4 * 3 * (v.image_size * v.image_size * size.images) as u64;
        // Two batches that are made ready ahead, the one at hand as it came and as it is learned; and what is computed of it,
        // in patches.
        let waiting = pixels * (4 * recipe.batch as u64 + lanes * recipe.micro_batch() as u64);
        Plan {
            weights: frozen + wanted.iter().map(|w| elements(w) * w.dtype.size() as u64).sum::<u64>(),
            masters: wanted.iter().filter(|w| w.has_master).map(|w| 4 * elements(w)).sum(),
            gradients: done + lanes * gradients,
            optimiser: wanted
                .iter()
                .map(|w| recipe.optimiser(&w.name, &w.shape).num_bytes(&w.shape, kept))
                .sum(),
            activations: lanes * activations + waiting,
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

/// Bytes that a part of a batch holds at a moment, beside what was there before it.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    activations: u64,
    gradients: u64,
}

impl Moment {
    fn total(&self) -> u64 {
        self.activations + self.gradients
    }
}

/// The moments that may be the highest. On the way back activations go as gradients come, layer by layer, so that the most is
/// held at one end of a tower. `adds`: gradients are added to sums that are there.
fn moments(
    recipe: &Recipe,
    config: &Config,
    selection: &Selection,
    size: ExampleSize,
    adds: bool,
) -> [Moment; 6] {
    let (v, t) = (&config.vision, &config.text);
    let n = |x: usize| x as u64;
    let micro = n(recipe.micro_batch());
    let image_rows = micro * n(size.images) * n(v.num_tokens());
    let text_rows = image_rows + micro * n(size.text);
    let learns = |head: &str| selection.wanted.iter().any(|w| w.name.starts_with(head));

    let (d, m) = (n(v.hidden_size), n(v.intermediate_size));
    let vision_learns = learns("vision_tower.");
    let head = "vision_tower.encoder.layers.";
    let from = match first_layer(selection, head) {
        _ if learns("vision_tower.embeddings.") => 0,
        Some(layer) => layer,
        None => v.num_hidden_layers,
    };
    let inputs: [(u64, &[&str]); 4] =
        [(d, &["q_proj", "k_proj", "v_proj"]), (d, &["out_proj"]), (d, &["fc1"]), (m, &["fc2"])];
    let layer = |i| 5 * d + m + inputs_kept(recipe, selection, &format!("{head}{i}."), &inputs);
    let vision = Tower::new(recipe, image_rows, (d, m), (from..v.num_hidden_layers).map(layer));
    // What goes into the last norm, and into the projector.
    let ends = [vision_learns, learns("multi_modal_projector.")].into_iter().filter(|learns| *learns);
    let image_ends = 4 * image_rows * d * ends.count() as u64;

    let (d, f) = (n(t.hidden_size), n(t.intermediate_size));
    let (q, kv) = (n(t.head_dim * t.num_attention_heads), n(t.head_dim * t.num_key_value_heads));
    let head = "language_model.layers.";
    let from = match first_layer(selection, head) {
        _ if vision_learns || learns("multi_modal_projector.") || learns("language_model.embed_tokens") => 0,
        Some(layer) => layer,
        None => t.num_hidden_layers,
    };
    let post_norms = if t.generation == GemmaGeneration::Gemma2 { 2 * d } else { 0 };
    let inputs: [(u64, &[&str]); 4] = [
        (d, &["q_proj", "k_proj", "v_proj"]),
        (q, &["o_proj"]),
        (d, &["gate_proj", "up_proj"]),
        (f, &["down_proj"]),
    ];
    let always = 2 * d + q + 2 * kv + 2 * f + post_norms;
    let layer = |i| always + inputs_kept(recipe, selection, &format!("{head}{i}."), &inputs);
    let text = Tower::new(recipe, text_rows, (d, f), (from..t.num_hidden_layers).map(layer));
    // What goes into the last norm, and the gradient of what comes out.
    let text_ends = 4 * text_rows * 2 * d;
    // What comes out, its rows before they were joined, and logits, of which so many are held at a time (`cross_entropy`), with
    // a packed copy.
    let logits_rows = (micro * n(size.text)).min(n(logits_rows(t.vocab_size)));
    let loss = 4 * (text_rows * 2 * d + logits_rows * n(t.vocab_size) * 2);

    let sum = |head: &str| -> u64 {
        selection.wanted.iter().filter(|w| w.name.starts_with(head)).map(|w| 4 * n(w.len())).sum()
    };
    // The head's gradient is made whole with the loss, sums or not; those of layers come as it goes back.
    let table = sum(TABLE);
    let come = |all: u64| match is_fused(recipe) {
        _ if adds => 0,
        true => table + largest_at_hand(recipe, selection),
        false => table + all,
    };
    let of_text = sum("language_model.") - table;
    let of_both = of_text + sum("multi_modal_projector.");
    let kept = vision.kept + image_ends;
    let moment = |activations, gradients| Moment { activations, gradients };
    [
        // The way there through an image encoder of which nothing is kept.
        moment(4 * image_rows * (8 * n(v.hidden_size) + 2 * m), 0),
        moment(kept + text.kept + text_ends + loss, table),
        moment(kept + text.kept + text_ends + text.at_hand, come(0)),
        moment(kept + text.first + text.at_hand, come(of_text)),
        moment(kept + vision.at_hand, come(of_both)),
        moment(vision.first + vision.at_hand, come(of_both + sum("vision_tower."))),
    ]
}

/// Bytes of a tower's layers on the tape.
struct Tower {
    /// All that is kept of them, the last one at hand.
    kept: u64,
    /// What is kept of the first one when it is at hand.
    first: u64,
    /// What the way back through a layer takes beside that.
    at_hand: u64,
}

impl Tower {
    /// Layers that keep so many numbers a row each, of `width` and with an MLP of `mlp`.
    fn new(recipe: &Recipe, rows: u64, (width, mlp): (u64, u64), layers: impl Iterator<Item = u64>) -> Tower {
        let layers: Vec<u64> = layers.collect();
        let (count, largest) = (layers.len() as u64, layers.iter().copied().max().unwrap_or(0));
        let kept = match recipe.recompute {
            // What goes into each, and one that is computed again.
            true => count * width + largest,
            false => layers.iter().sum(),
        };
        // The gradients of what comes out and of the MLP's product, and what they are multiplied with, packed.
        let at_hand = if count > 0 { 2 * (width + mlp) } else { 0 };
        let first = layers.first().copied().unwrap_or(0);
        Tower { kept: 4 * rows * kept, first: 4 * rows * first, at_hand: 4 * rows * at_hand }
    }
}

/// The first layer of which something learns.
fn first_layer(selection: &Selection, head: &str) -> Option<usize> {
    let layer = |w: &Wanted| w.name.strip_prefix(head)?.split('.').next()?.parse::<usize>().ok();
    selection.wanted.iter().filter_map(layer).min()
}

/// Numbers that a layer keeps of a row for the gradients of its matrices: `inputs` are widths and who shares them.
fn inputs_kept(recipe: &Recipe, selection: &Selection, layer: &str, inputs: &[(u64, &[&str])]) -> u64 {
    // Dropout makes an input of its own for each adapter.
    let is_shared = recipe.lora.as_ref().is_none_or(|lora| lora.dropout == 0.0);
    let of_layer: Vec<&Wanted> = selection.wanted.iter().filter(|w| w.name.starts_with(layer)).collect();
    let learns = |name: &str| {
        let of_input = |w: &str| w.ends_with(".weight") || w.ends_with(".lora_a");
        of_layer.iter().any(|w| w.name.contains(name) && of_input(&w.name))
    };
    let kept = inputs.iter().map(|(width, names)| {
        let count = names.iter().filter(|name| learns(name)).count() as u64;
        width * if is_shared { count.min(1) } else { count }
    });
    // What goes from A into B.
    let between = of_layer.iter().filter(|w| w.name.ends_with(".lora_b")).map(|w| w.shape[1] as u64);
    kept.chain(between).sum()
}

/// The embedding table, which is the head too.
const TABLE: &str = "language_model.embed_tokens.";

/// The most bytes of a gradient, but for the table's, that are there at a time where each is taken up as it comes.
fn largest_at_hand(recipe: &Recipe, selection: &Selection) -> u64 {
    let takes_parts = |w: &Wanted| recipe.optimiser(&w.name, &w.shape).takes_parts(&w.shape);
    let others = selection.wanted.iter().filter(|w| !w.name.starts_with(TABLE));
    let at_hand = others.map(|w| if takes_parts(w) { w.len().min(GRADIENT_PART) } else { w.len() });
    4 * at_hand.max().unwrap_or(0) as u64
}
