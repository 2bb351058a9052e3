//! Recipes: what is trained, on what, and how, as a TOML file with overrides from the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::optimiser::Optimiser;
use super::schedule::{Decay, Schedule};
use crate::config::limits;
use crate::data::Augmentation;
use crate::data::playground::Description;
use crate::image::Choice;
use crate::model::VqVaeOptions;
use crate::{Error, Result};

/// Every key with what it means; `NAME` stands for any name of a data set.
pub const KEYS: &[(&str, &str)] = &[
    ("out", "the run folder; started again with the same one, a run goes on"),
    ("seed", "of the order of examples, of augmentation, dropout and new adapters"),
    ("steps", "length: steps of the optimiser (one of steps, epochs, examples)"),
    ("epochs", "length: passes through all data sets together"),
    ("examples", "length: examples"),
    ("batch", "examples of a step"),
    ("micro_batch", "examples that are computed together; their gradients are summed to those of a batch"),
    ("text_len", "the most tokens of a text: BOS, prefix, line break, suffix and EOS, less one"),
    ("on_error", "what becomes of a broken example: stop or skip"),
    ("loader_threads", "threads that make examples ready"),
    ("dtype", "what weights are computed with: auto (as stored), f32 or bf16"),
    ("master_dtype", "what weights that learn are kept in: f32 or bf16"),
    ("state_dtype", "what the optimiser's momenta are kept in: f32 or bf16"),
    ("recompute", "keep only what goes into each block, and compute the block again on the way back"),
    ("loss", "mean over each example, then over the batch (example), or over all tokens (token)"),
    ("label_smoothing", "probability that is spread over the other tokens"),
    ("z_loss", "factor of the square of the logarithm of the softmax's sum"),
    ("dropout", "rate on what the language model's attention and MLP add"),
    (
        "optimiser",
        "adam (as big_vision composes it), adamw, adafactor, sgd, or muon (of matrices; adam of all else and of tables)",
    ),
    ("lr", "learning rate"),
    ("b1", "decay of the first moment (adam, adamw, muon's adam)"),
    ("b2", "decay of the second moment (adam, adamw, muon's adam; the most of it for adafactor)"),
    ("eps", "added to the root of the second moment (adam, adamw, muon's adam) or to squares (adafactor)"),
    ("momentum", "of sgd, adafactor and muon"),
    ("weight_decay", "for adamw multiplied by the learning rate, for others not"),
    ("weight_decay_on", "pattern of the names that decay"),
    ("clip", "the largest norm of all gradients together; 0 is none"),
    ("decay", "of the learning rate: constant, linear, cosine or rsqrt"),
    ("warmup", "part of the run over which the learning rate grows"),
    ("warmup_steps", "the same in steps"),
    ("cooldown", "part of the run at its end over which the learning rate shrinks to 0"),
    ("cooldown_steps", "the same in steps"),
    ("timescale", "of rsqrt, in steps"),
    ("freeze", "patterns of the names that do not learn"),
    ("save_every", "steps between two saved states; 0 saves at the end only"),
    ("keep", "how many saved states are kept"),
    ("log_every", "steps between two lines of metrics.jsonl"),
    ("eval_every", "steps between two evaluations"),
    ("tensorboard", "write event files too"),
    ("model.init", "where the weights come from: a folder, a file, a big_vision name or a Hub id"),
    ("model.tokenizer", "a tokenizer file in place of the model's"),
    ("model.preprocess", "how pictures become pixels: auto, reference or hf"),
    ("model.antialias", "antialiased resizing (reference)"),
    ("model.sliding_window", "use the config's sliding window"),
    ("model.final_softcap", "use the config's cap on final logits; big_vision's transfers do not"),
    ("data.mix.NAME", "how often a data set is drawn from, in proportion to the others"),
    ("data.NAME.files", "JSONL, tar or Parquet files, or folders"),
    ("data.NAME.image_dir", "where the pictures are that the data name by a path"),
    ("data.NAME.image", "the field of the pictures"),
    ("data.NAME.prefix", "the prefix, with fields in braces"),
    ("data.NAME.suffix", "the suffix, with fields in braces"),
    (
        "data.NAME.playground.split",
        "pictures that are drawn as they are read, in place of files: train, val, …",
    ),
    ("data.NAME.playground.seed", "another seed gives others"),
    ("data.NAME.playground.count", "how many examples"),
    ("data.NAME.playground.size", "side of the pictures in pixels"),
    ("data.NAME.playground.most_things", "the most things in a picture; as the tasks have them if not given"),
    ("data.NAME.playground.vqvae", "another masks' model than that within the program"),
    ("data.NAME.playground.tasks.NAME", "how often a task comes; all as in Stage 1 if none is given"),
    ("augment.resize", "draw the resize method"),
    ("augment.jpeg", "probability of JPEG"),
    ("augment.crop", "the largest part of the area that is cut off"),
    ("eval.files", "held-out data, as in data.NAME"),
    ("eval.image_dir", "as in data.NAME"),
    ("eval.image", "as in data.NAME"),
    ("eval.prefix", "as in data.NAME"),
    ("eval.suffix", "as in data.NAME"),
    ("eval.playground.split", "as in data.NAME"),
    ("eval.playground.seed", "as in data.NAME"),
    ("eval.playground.count", "as in data.NAME"),
    ("eval.playground.size", "as in data.NAME"),
    ("eval.playground.most_things", "as in data.NAME"),
    ("eval.playground.vqvae", "as in data.NAME"),
    ("eval.playground.tasks.NAME", "as in data.NAME"),
    ("eval.examples", "how many of its examples are looked at, from the first on"),
    ("eval.answers", "let the model answer, and count the answers that are exactly a suffix"),
    ("groups.match", "pattern of the names of a group; the first group that matches has the parameter"),
    ("groups.lr_factor", "factor of its learning rate"),
    ("groups.decay", "its own schedule; what is not given is the recipe's"),
    ("groups.warmup", "as above"),
    ("groups.warmup_steps", "as above"),
    ("groups.cooldown", "as above"),
    ("groups.cooldown_steps", "as above"),
    ("groups.timescale", "as above"),
    ("lora.rank", "rank of the adapters; all else is then frozen"),
    ("lora.alpha", "what they add is multiplied by alpha / rank"),
    ("lora.dropout", "rate on what goes into them"),
    ("lora.targets", "pattern of the linear layers that get one"),
    ("lora.init", "an adapter's folder to begin with, in place of new ones"),
    ("vqvae.codebook_decay", "of the moving averages that the masks' codebook is made of"),
    ("vqvae.commitment", "factor of the encoder's commitment to the codebook"),
    ("vqvae.revive_below", "entries that fewer masks choose in a step are put on others; 0 never does"),
    ("vqvae.held_out", "masks that are held out, to be encoded and decoded in an evaluation"),
    ("siglip.tokenizer", "the tokenizer file of the text encoder, or nano"),
    ("siglip.lower", "make texts lower case, as big_vision does (A to Z only)"),
    ("siglip.temperature", "by which products of embeddings are multiplied at first"),
    ("siglip.bias", "what is added to them at first"),
    ("siglip.vision.image_size", "side of the square image in pixels"),
    ("siglip.vision.patch", "side of a patch in pixels"),
    ("siglip.vision.width", "width of the image encoder and of both embeddings"),
    ("siglip.vision.depth", "its blocks"),
    ("siglip.vision.mlp", "width of its MLPs"),
    ("siglip.vision.heads", "its attention heads"),
    (
        "siglip.vision.whiten",
        "how far its first filters even out the spectrum of pictures: 0 not at all, 0.5 by half",
    ),
    (
        "siglip.vision.positions",
        "deviation of its first position embeddings, sines and cosines; 0 for independent numbers of 1/√width",
    ),
    ("siglip.text.length", "tokens of every text: cut, or filled up with EOS"),
    ("siglip.text.width", "width of the text encoder"),
    ("siglip.text.depth", "its blocks"),
    ("siglip.text.mlp", "width of its MLPs"),
    ("siglip.text.heads", "its attention heads"),
];

/// Keys that may differ when a run goes on: they change no weight.
const FREE: [&str; 7] =
    ["out", "loader_threads", "save_every", "keep", "log_every", "eval_every", "tensorboard"];

/// A recipe: every key has a value, but for those that have none unless they are given.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is, to people too")]
pub struct Recipe {
    pub out: PathBuf,
    pub seed: u64,
    pub steps: Option<u64>,
    pub epochs: Option<f64>,
    pub examples: Option<u64>,
    pub batch: usize,
    pub micro_batch: Option<usize>,
    pub text_len: usize,
    pub on_error: OnErrorName,
    pub loader_threads: usize,
    pub dtype: ComputeType,
    pub master_dtype: KeptType,
    pub state_dtype: KeptType,
    pub recompute: bool,
    pub loss: Loss,
    pub label_smoothing: f64,
    pub z_loss: f64,
    pub dropout: f64,
    pub optimiser: OptimiserName,
    pub lr: Option<f64>,
    pub b1: Option<f64>,
    pub b2: Option<f64>,
    pub eps: Option<f64>,
    pub momentum: Option<f64>,
    pub weight_decay: f64,
    pub weight_decay_on: Option<String>,
    pub clip: f64,
    #[serde(flatten)]
    pub course: Course,
    #[serde(deserialize_with = "one_or_more")]
    pub freeze: Vec<String>,
    pub save_every: u64,
    pub keep: usize,
    pub log_every: u64,
    pub eval_every: Option<u64>,
    pub tensorboard: bool,
    pub model: ModelRecipe,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mix: BTreeMap<String, f64>,
    pub data: BTreeMap<String, Source>,
    pub augment: Option<Augment>,
    pub eval: Option<EvalRecipe>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRecipe>,
    pub lora: Option<LoraRecipe>,
    pub vqvae: Option<VqVaeRecipe>,
    pub siglip: Option<SiglipRecipe>,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            out: PathBuf::new(),
            seed: 0,
            steps: None,
            epochs: None,
            examples: None,
            batch: 1,
            micro_batch: None,
            text_len: 128,
            on_error: OnErrorName::Stop,
            loader_threads: 1,
            dtype: ComputeType::Auto,
            master_dtype: KeptType::F32,
            state_dtype: KeptType::F32,
            recompute: false,
            loss: Loss::Example,
            label_smoothing: 0.0,
            z_loss: 0.0,
            dropout: 0.0,
            optimiser: OptimiserName::Adam,
            lr: None,
            b1: None,
            b2: None,
            eps: None,
            momentum: None,
            weight_decay: 0.0,
            weight_decay_on: None,
            clip: 1.0,
            course: Course::default(),
            freeze: Vec::new(),
            save_every: 500,
            keep: 2,
            log_every: 1,
            eval_every: None,
            tensorboard: false,
            model: ModelRecipe::default(),
            mix: BTreeMap::new(),
            data: BTreeMap::new(),
            augment: None,
            eval: None,
            groups: Vec::new(),
            lora: None,
            vqvae: None,
            siglip: None,
        }
    }
}

/// The model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct ModelRecipe {
    pub init: String,
    pub tokenizer: Option<PathBuf>,
    pub preprocess: PreprocessName,
    pub antialias: bool,
    pub sliding_window: bool,
    pub final_softcap: bool,
}

impl Default for ModelRecipe {
    fn default() -> ModelRecipe {
        ModelRecipe {
            init: String::new(),
            tokenizer: None,
            preprocess: PreprocessName::Auto,
            antialias: true,
            sliding_window: false,
            final_softcap: true,
        }
    }
}

/// How the learning rate goes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct Course {
    pub decay: Option<DecayName>,
    pub warmup: Option<f64>,
    pub warmup_steps: Option<u64>,
    pub cooldown: Option<f64>,
    pub cooldown_steps: Option<u64>,
    pub timescale: Option<f64>,
}

/// A data set.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct Source {
    #[serde(deserialize_with = "one_or_more")]
    pub files: Vec<PathBuf>,
    pub image_dir: Option<PathBuf>,
    pub image: String,
    pub prefix: String,
    pub suffix: String,
    pub playground: Option<Description>,
}

impl Default for Source {
    fn default() -> Source {
        Source {
            files: Vec::new(),
            image_dir: None,
            image: "image".into(),
            prefix: "{prefix}".into(),
            suffix: "{suffix}".into(),
            playground: None,
        }
    }
}

impl Source {
    /// Refuses no data, and data of two kinds.
    fn check(&self, key: &str) -> Result<()> {
        match (self.files.is_empty(), &self.playground) {
            (true, None) => Err(Error::usage(format!("{key} has no files"))),
            (false, Some(_)) => Err(Error::usage(format!("{key} has both files and a playground"))
                .hint("leave one out, or give it a name of its own")),
            _ => Ok(()),
        }
    }
}

/// Augmentation.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct Augment {
    pub resize: bool,
    pub jpeg: f64,
    pub crop: f64,
}

impl Default for Augment {
    fn default() -> Augment {
        let Augmentation { resize, jpeg, crop } = Augmentation::default();
        Augment { resize, jpeg, crop }
    }
}

/// Evaluation on held-out examples.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct EvalRecipe {
    #[serde(flatten)]
    pub source: Source,
    pub examples: Option<usize>,
    pub answers: bool,
}

/// Parameters that go at their own pace.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct GroupRecipe {
    pub r#match: String,
    pub lr_factor: f64,
    #[serde(flatten)]
    pub course: Course,
}

impl Default for GroupRecipe {
    fn default() -> GroupRecipe {
        GroupRecipe { r#match: String::new(), lr_factor: 1.0, course: Course::default() }
    }
}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct LoraRecipe {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub targets: String,
    pub init: Option<PathBuf>,
}

impl Default for LoraRecipe {
    /// All linear layers of the language model, and none of the image encoder's.
    fn default() -> LoraRecipe {
        LoraRecipe {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            init: None,
            targets: r"language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)".into(),
        }
    }
}

/// The masks' model, in place of a PaliGemma: it learns drawn masks, and needs no data.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct VqVaeRecipe {
    pub codebook_decay: f64,
    pub commitment: f64,
    pub revive_below: f64,
    pub held_out: u64,
}

impl Default for VqVaeRecipe {
    fn default() -> VqVaeRecipe {
        let VqVaeOptions { decay, commitment, revive_below } = VqVaeOptions::default();
        VqVaeRecipe { codebook_decay: decay, commitment, revive_below, held_out: 500 }
    }
}

/// SigLIP's two towers, in place of a PaliGemma: they learn which pictures and suffixes belong together. The sizes are
/// So400m's at 224 px.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct SiglipRecipe {
    pub tokenizer: PathBuf,
    pub lower: bool,
    pub temperature: f64,
    pub bias: f64,
    pub vision: VisionTowerRecipe,
    pub text: TextTowerRecipe,
}

impl Default for SiglipRecipe {
    fn default() -> SiglipRecipe {
        SiglipRecipe {
            tokenizer: PathBuf::new(),
            lower: true,
            temperature: 10.0,
            bias: -10.0,
            vision: VisionTowerRecipe::default(),
            text: TextTowerRecipe::default(),
        }
    }
}

/// The sizes of the image encoder.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct VisionTowerRecipe {
    pub image_size: usize,
    pub patch: usize,
    pub width: usize,
    pub depth: usize,
    pub mlp: usize,
    pub heads: usize,
    pub whiten: f64,
    pub positions: f64,
}

impl Default for VisionTowerRecipe {
    fn default() -> VisionTowerRecipe {
        let (whiten, positions) = (0.0, 0.0);
        let (width, depth, mlp, heads) = (1152, 27, 4304, 16);
        VisionTowerRecipe { image_size: 224, patch: 14, width, depth, mlp, heads, whiten, positions }
    }
}

/// The sizes of the text encoder.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
#[allow(missing_docs, reason = "KEYS says what each is")]
pub struct TextTowerRecipe {
    pub length: usize,
    pub width: usize,
    pub depth: usize,
    pub mlp: usize,
    pub heads: usize,
}

impl Default for TextTowerRecipe {
    fn default() -> TextTowerRecipe {
        TextTowerRecipe { length: 16, width: 1152, depth: 27, mlp: 4304, heads: 16 }
    }
}

/// A choice among words, which are those of the recipe.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$one:meta])* $variant:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$one])* $variant),* }
    };
}

words!(
    /// What becomes of a broken example.
    OnErrorName {
        /// The run ends.
        Stop,
        /// It is left out.
        Skip,
    }
);
words!(
    /// What weights are computed with.
    ComputeType {
        /// As they are stored.
        Auto,
        /// f32.
        F32,
        /// bf16.
        Bf16,
    }
);
words!(
    /// What numbers are kept in.
    KeptType {
        /// f32.
        F32,
        /// bf16.
        Bf16,
    }
);
words!(
    /// The mean that is the loss.
    Loss {
        /// Over the tokens of each example, then over the batch: big_vision's.
        Example,
        /// Over all tokens of the batch: transformers'.
        Token,
    }
);
words!(
    /// The optimisers.
    OptimiserName {
        /// [`Optimiser::Adam`]
        Adam,
        /// [`Optimiser::AdamW`]
        AdamW,
        /// [`Optimiser::Adafactor`]
        Adafactor,
        /// [`Optimiser::Sgd`]
        Sgd,
        /// [`Optimiser::Muon`], and [`Optimiser::Adam`] of what is no matrix between layers
        Muon,
    }
);
words!(
    /// The decays.
    DecayName {
        /// [`Decay::Constant`]
        Constant,
        /// [`Decay::Linear`]
        Linear,
        /// [`Decay::Cosine`]
        Cosine,
        /// [`Decay::Rsqrt`]
        Rsqrt,
    }
);
words!(
    /// How pictures become pixels.
    PreprocessName {
        /// As the checkpoint's format says.
        Auto,
        /// As big_vision does.
        Reference,
        /// As transformers does.
        Hf,
    }
);

impl From<PreprocessName> for Choice {
    fn from(name: PreprocessName) -> Choice {
        match name {
            PreprocessName::Auto => Choice::Auto,
            PreprocessName::Reference => Choice::Reference,
            PreprocessName::Hf => Choice::HuggingFace,
        }
    }
}

/// A value alone is a list of one.
fn one_or_more<'de, D, T>(from: D) -> std::result::Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text or a list of texts")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Vec<T>, E> {
            T::deserialize(serde::de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> std::result::Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    from.deserialize_any(Visitor(std::marker::PhantomData))
}

impl Recipe {
    /// Reads a recipe; `place` is its file or name. Each override is `key=value`: a value is TOML, or else a text.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: no TOML, an unknown key (with the nearest known one), a value of the wrong kind or out of
    /// range.
    pub fn read(text: &str, place: &str, overrides: &[String]) -> Result<Recipe> {
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(text));
            let line = before.matches('\n').count() + 1;
            Error::usage(format!("the recipe is no TOML: {}", error.message())).at(format!("{place}:{line}"))
        })?;
        check_keys(&table).map_err(|error| error.at(place))?;
        for pair in overrides {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::usage(format!("\"{pair}\" is no change to the recipe"))
                    .expected("key=value, as in lr=1e-5")
            })?;
            set(&mut table, key.trim(), parse_value(value.trim()))?;
        }
        check_keys(&table)?;
        if let Some(mix) =
            table.get_mut("data").and_then(Value::as_table_mut).and_then(|data| data.remove("mix"))
        {
            table.insert("mix".into(), mix);
        }
        let recipe: Recipe = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            // What it says of the place is a second line: "in `lr`".
            let text = error.to_string().trim().replace('\n', " ");
            Error::usage(format!("the recipe has a wrong value: {text}")).at(place)
        })?;
        recipe.check().map_err(|error| error.at(place))?;
        Ok(recipe)
    }

    /// The recipe as TOML, with every key that has a value.
    pub fn to_toml(&self) -> String {
        let mut table = Table::try_from(self).unwrap_or_default();
        if let (Some(mix), Some(Value::Table(data))) = (table.remove("mix"), table.get_mut("data")) {
            data.insert("mix".into(), mix);
        }
        table.to_string()
    }

    fn check(&self) -> Result<()> {
        let wrong = |key: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::usage(format!("{key} is {value}")).expected(expected))
        };
        if let Some(vqvae) = &self.vqvae {
            self.check_vqvae(vqvae)?;
        } else if let Some(siglip) = &self.siglip {
            self.check_siglip(siglip)?;
        } else if self.model.init.is_empty() {
            return Err(Error::usage("the recipe does not say where the weights come from")
                .expected("model.init: a folder, a file, a big_vision name or a Hub id")
                .hint("add it to the command: model.init=./model"));
        }
        if self.data.is_empty() && self.vqvae.is_none() {
            return Err(Error::usage("the recipe names no data")
                .hint("add it to the command: data.train.files=train.jsonl"));
        }
        for (name, source) in &self.data {
            source.check(&format!("data.{name}"))?;
        }
        if let Some(name) = self.mix.keys().find(|name| !self.data.contains_key(*name)) {
            return Err(Error::usage(format!("data.mix.{name} is no data set of the recipe")));
        }
        if let Some(name) =
            self.data.keys().find(|name| !self.mix.is_empty() && !self.mix.contains_key(*name))
        {
            return Err(Error::usage(format!("data.{name} has no weight in data.mix")));
        }
        let lengths: Vec<&str> = [
            ("steps", self.steps.is_some()),
            ("epochs", self.epochs.is_some()),
            ("examples", self.examples.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, is_given)| is_given.then_some(name))
        .collect();
        match lengths[..] {
            [_] => {}
            [] => return Err(Error::usage("the recipe has no length").expected("steps, epochs or examples")),
            _ => {
                return Err(Error::usage(format!("the recipe has several lengths: {}", lengths.join(", ")))
                    .expected("one of steps, epochs and examples"));
            }
        }
        if self.steps == Some(0) || self.examples == Some(0) {
            return wrong("the length", &0, "1 or more");
        }
        if let Some(epochs) = self.epochs.filter(|epochs| !(*epochs > 0.0 && epochs.is_finite())) {
            return wrong("epochs", &epochs, "a number above 0");
        }
        if self.batch == 0 || self.batch > 1 << 20 {
            return wrong("batch", &self.batch, "1 to 1048576");
        }
        if let Some(micro) = self.micro_batch.filter(|&m| m == 0 || !self.batch.is_multiple_of(m)) {
            return wrong("micro_batch", &micro, &format!("a divisor of the batch, which is {}", self.batch));
        }
        if self.text_len == 0 || self.text_len > 1 << 16 {
            return wrong("text_len", &self.text_len, "1 to 65536");
        }
        if self.loader_threads > 256 {
            return wrong("loader_threads", &self.loader_threads, "0 to 256");
        }
        let Some(lr) = self.lr else {
            return Err(
                Error::usage("the recipe has no learning rate").hint("add it to the command: lr=1e-5")
            );
        };
        let adapters = self.lora.clone().unwrap_or_default();
        for (key, value, most) in [
            ("lr", lr, 1e3),
            ("label_smoothing", self.label_smoothing, 0.999),
            ("z_loss", self.z_loss, 1e3),
            ("dropout", self.dropout, 0.999),
            ("weight_decay", self.weight_decay, 1e3),
            ("clip", self.clip, 1e30),
            ("lora.dropout", adapters.dropout, 0.999),
            ("b1", self.b1.unwrap_or(0.0), 0.999_999),
            ("b2", self.b2.unwrap_or(0.0), 0.999_999_9),
            ("eps", self.eps.unwrap_or(0.0), 1.0),
            ("momentum", self.momentum.unwrap_or(0.0), 0.999_999),
        ] {
            if !(0.0..=most).contains(&value) {
                return wrong(key, &value, &format!("a number from 0 to {most}"));
            }
        }
        if adapters.rank == 0 || adapters.rank > 4096 {
            return wrong("lora.rank", &adapters.rank, "1 to 4096");
        }
        if !(adapters.alpha > 0.0 && adapters.alpha.is_finite()) {
            return wrong("lora.alpha", &adapters.alpha, "a number above 0");
        }
        for group in &self.groups {
            if group.r#match.is_empty() {
                return Err(Error::usage("a group has no match").expected("groups.match: a pattern of names"));
            }
            if !(group.lr_factor > 0.0 && group.lr_factor.is_finite()) {
                return wrong(
                    "groups.lr_factor",
                    &group.lr_factor,
                    "a number above 0; what shall not learn is named by freeze",
                );
            }
        }
        let unused = match self.optimiser {
            OptimiserName::Adam | OptimiserName::AdamW => {
                [("momentum", self.momentum), ("", None), ("", None)]
            }
            OptimiserName::Adafactor => [("b1", self.b1), ("", None), ("", None)],
            OptimiserName::Sgd => [("b1", self.b1), ("b2", self.b2), ("eps", self.eps)],
            OptimiserName::Muon => [("", None); 3],
        };
        if let Some((key, _)) = unused.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::usage(format!("{key} means nothing to this optimiser")));
        }
        if self.eval_every == Some(0) {
            return wrong("eval_every", &0, "1 or more; leave it out to evaluate at the end only");
        }
        if self.log_every == 0 {
            return wrong("log_every", &0, "1 or more");
        }
        if self.keep == 0 {
            return wrong("keep", &0, "1 or more");
        }
        if let Some(eval) = &self.eval {
            if eval.examples == Some(0) {
                return wrong("eval.examples", &0, "1 or more");
            }
            eval.source.check("eval")?;
        }
        if self.eval_every.is_some() && self.eval.is_none() && self.vqvae.is_none() {
            return Err(
                Error::usage("eval_every is given, and no data to evaluate on").expected("eval.files")
            );
        }
        self.augmentation().map_or(Ok(()), |augmentation| augmentation.check())
    }

    /// Refuses what means nothing to the masks' model.
    fn check_vqvae(&self, vqvae: &VqVaeRecipe) -> Result<()> {
        let usual = Recipe::default();
        let others = [
            ("epochs", self.epochs.is_some()),
            ("micro_batch", self.micro_batch.is_some()),
            ("clip", self.clip != 0.0),
            ("freeze", !self.freeze.is_empty()),
            ("model", self.model != usual.model),
            ("data", !self.data.is_empty()),
            ("augment", self.augment.is_some()),
            ("eval", self.eval.is_some()),
            ("groups", !self.groups.is_empty()),
            ("lora", self.lora.is_some()),
            ("siglip", self.siglip.is_some()),
            ("dropout", self.dropout != 0.0),
            ("label_smoothing", self.label_smoothing != 0.0),
            ("z_loss", self.z_loss != 0.0),
            ("weight_decay", self.weight_decay != 0.0),
            ("master_dtype", self.master_dtype != usual.master_dtype),
            ("dtype", self.dtype != usual.dtype),
        ];
        if let Some((key, _)) = others.iter().find(|(_, is_given)| *is_given) {
            return Err(Error::usage(format!("{key} means nothing to the masks' model"))
                .hint(if *key == "clip" { "clip=0" } else { "leave it out" }));
        }
        for (key, value, most) in [
            ("vqvae.codebook_decay", vqvae.codebook_decay, 0.999_999),
            ("vqvae.commitment", vqvae.commitment, 1e3),
            ("vqvae.revive_below", vqvae.revive_below, 1e6),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(
                    Error::usage(format!("{key} is {value}")).expected(format!("a number from 0 to {most}"))
                );
            }
        }
        Ok(())
    }

    /// Refuses what means nothing to SigLIP's two towers, and sizes that are none.
    fn check_siglip(&self, siglip: &SiglipRecipe) -> Result<()> {
        let wrong = |key: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::usage(format!("{key} is {value}")).expected(expected))
        };
        if let Some(micro) = self.micro_batch.filter(|&micro| micro != self.batch) {
            return wrong(
                "micro_batch",
                &micro,
                &format!("the batch, which is {}: every image is compared with every text of it", self.batch),
            );
        }
        let usual = Recipe::default();
        let is_asked =
            |source: &Source| !source.prefix.is_empty() && source.prefix != Source::default().prefix;
        let eval = self.eval.as_ref();
        let others = [
            ("text_len", self.text_len != usual.text_len),
            ("lora", self.lora.is_some()),
            ("loss", self.loss != usual.loss),
            ("label_smoothing", self.label_smoothing != 0.0),
            ("z_loss", self.z_loss != 0.0),
            ("dropout", self.dropout != 0.0),
            ("model.tokenizer", self.model.tokenizer.is_some()),
            ("model.sliding_window", self.model.sliding_window != usual.model.sliding_window),
            ("model.final_softcap", self.model.final_softcap != usual.model.final_softcap),
            ("data.NAME.prefix", self.data.values().any(is_asked)),
            ("eval.prefix", eval.is_some_and(|eval| is_asked(&eval.source))),
            ("eval.answers", eval.is_some_and(|eval| eval.answers)),
        ];
        if let Some((key, _)) = others.iter().find(|(_, is_given)| *is_given) {
            return Err(Error::usage(format!("{key} means nothing to SigLIP's two towers")).hint(
                match *key {
                    "text_len" => "siglip.text.length is the length of texts",
                    "model.tokenizer" => "siglip.tokenizer is its tokenizer",
                    _ => "leave it out",
                },
            ));
        }
        for (key, value) in [
            ("siglip.vision.whiten", siglip.vision.whiten),
            ("siglip.vision.positions", siglip.vision.positions),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return wrong(key, &value, "a number from 0 to 1");
            }
        }
        if siglip.tokenizer.as_os_str().is_empty() {
            return Err(Error::usage("the recipe does not say what tokenizer the texts have")
                .expected("siglip.tokenizer: a tokenizer.json or a SentencePiece model"));
        }
        if !(siglip.temperature > 0.0 && siglip.temperature <= 1e6) {
            return wrong("siglip.temperature", &siglip.temperature, "a number above 0, at most 1000000");
        }
        if siglip.bias.is_nan() || siglip.bias.abs() > 1e6 {
            return wrong("siglip.bias", &siglip.bias, "a number from -1000000 to 1000000");
        }
        let SiglipRecipe { vision, text, .. } = siglip;
        for (key, value, most) in [
            ("siglip.vision.image_size", vision.image_size, limits::IMAGE_SIDE),
            ("siglip.vision.patch", vision.patch, limits::PATCH_SIDE),
            ("siglip.vision.width", vision.width, limits::DIMENSION),
            ("siglip.vision.depth", vision.depth, limits::LAYERS),
            ("siglip.vision.mlp", vision.mlp, limits::DIMENSION),
            ("siglip.vision.heads", vision.heads, limits::HEADS),
            ("siglip.text.length", text.length, limits::IMAGE_TOKENS),
            ("siglip.text.width", text.width, limits::DIMENSION),
            ("siglip.text.depth", text.depth, limits::LAYERS),
            ("siglip.text.mlp", text.mlp, limits::DIMENSION),
            ("siglip.text.heads", text.heads, limits::HEADS),
        ] {
            if value == 0 || value > most {
                return wrong(key, &value, &format!("1 to {most}"));
            }
        }
        for (key, value, part, of) in [
            ("siglip.vision.patch", vision.patch, "image_size", vision.image_size),
            ("siglip.vision.heads", vision.heads, "width", vision.width),
            ("siglip.text.heads", text.heads, "width", text.width),
        ] {
            if !of.is_multiple_of(value) {
                return wrong(key, &value, &format!("a divisor of the {part}, which is {of}"));
            }
        }
        if (vision.image_size / vision.patch).pow(2) > limits::IMAGE_TOKENS {
            return wrong(
                "siglip.vision.patch",
                &vision.patch,
                &format!("one that makes at most {} tokens of an image", limits::IMAGE_TOKENS),
            );
        }
        Ok(())
    }

    /// What happens to pictures.
    pub fn augmentation(&self) -> Option<Augmentation> {
        self.augment.map(|Augment { resize, jpeg, crop }| Augmentation { resize, jpeg, crop })
    }

    /// The optimiser of a parameter.
    pub fn optimiser(&self, name: &str, shape: &[usize]) -> Optimiser {
        // Muon is for what maps one hidden vector to another. A table's rows are learned one by one.
        let is_table =
            ["embed_tokens.", "position_embedding.", "token_embedding."].iter().any(|t| name.contains(t));
        let or = |value: Option<f64>, usual: f64| value.unwrap_or(usual) as f32;
        match self.optimiser {
            OptimiserName::Muon if shape.len() == 2 && !is_table => {
                Optimiser::Muon { momentum: or(self.momentum, 0.95) }
            }
            OptimiserName::Adam | OptimiserName::Muon => {
                Optimiser::Adam { b1: or(self.b1, 0.9), b2: or(self.b2, 0.999), eps: or(self.eps, 1e-8) }
            }
            OptimiserName::AdamW => {
                Optimiser::AdamW { b1: or(self.b1, 0.9), b2: or(self.b2, 0.999), eps: or(self.eps, 1e-8) }
            }
            OptimiserName::Adafactor => Optimiser::Adafactor {
                momentum: or(self.momentum, 0.9),
                decay_rate: 0.8,
                b2: or(self.b2, 0.999),
                eps: or(self.eps, 1e-30),
            },
            OptimiserName::Sgd => Optimiser::Sgd { momentum: or(self.momentum, 0.0) },
        }
    }

    /// Which names decay: kernels, as big_vision has it; with AdamW all, as torch has it.
    pub fn weight_decay_on(&self) -> &str {
        match (&self.weight_decay_on, self.optimiser) {
            (Some(pattern), _) => pattern,
            (None, OptimiserName::AdamW) => ".*",
            // SigLIP's towers have transformers' names only.
            (None, _) if self.siglip.is_some() => {
                r".*\.(patch_embedding|[qkv]_proj|out_proj|fc1|fc2)\.weight|text_model\.head\.weight"
            }
            (None, _) => ".*/kernel",
        }
    }

    /// The number of steps, of a mixture of so many examples.
    pub fn num_steps(&self, num_examples: u64) -> u64 {
        let steps = |examples: f64| ((examples / self.batch as f64).round() as u64).max(1);
        match (self.steps, self.epochs, self.examples) {
            (Some(n), ..) => n,
            (_, Some(epochs), _) => steps(epochs * num_examples as f64),
            (.., examples) => steps(examples.unwrap_or(1) as f64),
        }
    }

    /// The examples that are computed together.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch)
    }

    /// The schedule of a course in a run of `total` steps; what it does not say the recipe's own does.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: a part and a number of steps both, what is out of range or has no room.
    pub fn schedule(&self, own: &Course, total: u64) -> Result<Schedule> {
        let usual = &self.course;
        let length = |key: &str, own: (Option<f64>, Option<u64>), usual: (Option<f64>, Option<u64>)| {
            let (part, steps) = if own == (None, None) { usual } else { own };
            match (part, steps) {
                (Some(_), Some(_)) => {
                    Err(Error::usage(format!("{key} and {key}_steps are both given")).expected("one of them"))
                }
                (Some(part), _) if !(0.0..=1.0).contains(&part) => {
                    Err(Error::usage(format!("{key} is {part}"))
                        .expected("a part of the run, from 0 to 1")
                        .hint(format!("{key}_steps takes a number of steps")))
                }
                (Some(part), _) => Ok((part * total as f64).round() as u64),
                (None, steps) => Ok(steps.unwrap_or(0)),
            }
        };
        let warmup = length("warmup", (own.warmup, own.warmup_steps), (usual.warmup, usual.warmup_steps))?;
        let cooldown =
            length("cooldown", (own.cooldown, own.cooldown_steps), (usual.cooldown, usual.cooldown_steps))?;
        let decay = own.decay.or(usual.decay).unwrap_or(DecayName::Cosine);
        let timescale = own.timescale.or(usual.timescale);
        let decay = match decay {
            DecayName::Constant => Decay::Constant,
            DecayName::Linear => Decay::Linear,
            DecayName::Cosine => Decay::Cosine,
            DecayName::Rsqrt => Decay::Rsqrt { timescale: timescale.unwrap_or(10_000.0) },
        };
        if timescale.is_some() && !matches!(decay, Decay::Rsqrt { .. }) {
            return Err(Error::usage("timescale means something to decay=\"rsqrt\" only"));
        }
        let schedule = Schedule { decay, total, warmup, cooldown };
        schedule.check()?;
        Ok(schedule)
    }

    /// Refuses to go on with a run by another recipe, unless what differs changes no weight.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] with the keys that differ.
    pub fn check_same(&self, earlier: &Recipe) -> Result<()> {
        let table = |recipe: &Recipe| Table::try_from(recipe).unwrap_or_default();
        let (ours, theirs) = (table(self), table(earlier));
        let mut keys: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let differ: Vec<String> = keys
            .into_iter()
            .filter(|key| {
                !FREE.contains(&key.as_str()) && *key != "eval" && ours.get(*key) != theirs.get(*key)
            })
            .cloned()
            .collect();
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::usage(format!("the run was begun with another {}", differ.join(", ")))
            .at(self.out.display().to_string())
            .expected("the recipe in that folder")
            .hint("give another folder with out=…, or leave the recipe as it was"))
    }

    /// Paths as they are from anywhere, so that a run may go on from anywhere.
    ///
    /// # Errors
    /// [`crate::Kind::Io`]: there is no current folder.
    pub fn absolute(mut self) -> Result<Recipe> {
        let absolute = |path: &mut PathBuf| -> Result<()> {
            *path = std::path::absolute(&*path).map_err(|error| Error::io(&*path, error))?;
            Ok(())
        };
        let eval = self.eval.iter_mut().map(|eval| &mut eval.source);
        for source in self.data.values_mut().chain(eval) {
            let vqvae = source.playground.iter_mut().filter_map(|part| part.vqvae.as_mut());
            source.files.iter_mut().chain(&mut source.image_dir).chain(vqvae).try_for_each(absolute)?;
        }
        let lora = self.lora.iter_mut().filter_map(|lora| lora.init.as_mut());
        self.model.tokenizer.iter_mut().chain(lora).try_for_each(absolute)?;
        absolute(&mut self.out)?;
        // What is no file here may be the name of something else.
        let tokenizer = self.siglip.iter_mut().map(|siglip| &mut siglip.tokenizer);
        tokenizer.filter(|file| file.exists()).try_for_each(absolute)?;
        if Path::new(&self.model.init).exists() {
            let mut path = PathBuf::from(&self.model.init);
            absolute(&mut path)?;
            self.model.init = path.to_string_lossy().into_owned();
        }
        Ok(self)
    }
}

/// A value of the command line: TOML, or else a text.
fn parse_value(text: &str) -> Value {
    format!("x = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("x"))
        .unwrap_or(Value::String(text.into()))
}

/// Sets `a.b` of a table.
fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let known = known(key);
    if known != Known::Yes {
        return Err(unknown(key, known));
    }
    let mut here = table;
    let mut names = key.split('.').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            here.insert(name.into(), value);
            return Ok(());
        }
        let next = here.entry(name.to_string()).or_insert_with(|| Value::Table(Table::new()));
        here = match next {
            Value::Table(table) => table,
            Value::Array(_) => {
                return Err(Error::usage(format!(
                    "{key} cannot be given on the command line: there may be several {name}"
                ))
                .hint("change the recipe's file"));
            }
            _ => return Err(Error::usage(format!("{name} has a value already, and {key} cannot be in it"))),
        };
    }
    Ok(())
}

/// Whether there is such a key.
#[derive(Debug, PartialEq)]
enum Known {
    Yes,
    /// It is the name of a table.
    Table,
    /// The nearest one that there is.
    No(Option<String>),
}

fn known(key: &str) -> Known {
    let names: Vec<&str> = key.split('.').collect();
    let matches = |known: &[&str]| {
        known.len() >= names.len()
            && known
                .iter()
                .zip(&names)
                .all(|(known, name)| known == name || (*known == "NAME" && !name.is_empty()))
    };
    let all: Vec<Vec<&str>> = KEYS.iter().map(|(known, _)| known.split('.').collect()).collect();
    if all.iter().any(|known| known.len() == names.len() && matches(known)) {
        return Known::Yes;
    }
    if all.iter().any(|known| matches(known)) {
        return Known::Table;
    }
    // What NAME stands for is not a mistake.
    let as_given = |known: &[&str]| -> String {
        let part = |(i, known): (usize, &&str)| match (*known, names.get(i)) {
            ("NAME", Some(name)) => (*name).to_string(),
            (known, _) => known.to_string(),
        };
        known.iter().enumerate().map(part).collect::<Vec<_>>().join(".")
    };
    let candidates = all.iter().map(|known| as_given(known));
    let near = candidates.map(|known| (strsim::osa_distance(key, &known), known)).min();
    Known::No(near.filter(|(distance, _)| *distance <= 3.min(key.len() / 2)).map(|(_, known)| known))
}

fn unknown(key: &str, known: Known) -> Error {
    match known {
        Known::Table => Error::usage(format!("{key} is a table of the recipe, not a key")),
        Known::No(Some(near)) => Error::usage(format!("the recipe has an unknown key, {key}"))
            .hint(format!("did you mean {near}?")),
        _ => Error::usage(format!("the recipe has an unknown key, {key}"))
            .hint("`paligemma recipes ls --keys` lists all keys"),
    }
}

/// Every key of a recipe is known.
fn check_keys(table: &Table) -> Result<()> {
    fn walk(table: &Table, above: &str) -> Result<()> {
        for (name, value) in table {
            let key = format!("{above}{name}");
            match value {
                Value::Table(inner) => match known(&key) {
                    Known::Table => walk(inner, &format!("{key}."))?,
                    Known::Yes => return Err(Error::usage(format!("{key} is no table")).expected("a value")),
                    no => return Err(unknown(&key, no)),
                },
                Value::Array(list) if list.iter().any(Value::is_table) => {
                    for inner in list.iter().filter_map(Value::as_table) {
                        walk(inner, &format!("{key}."))?;
                    }
                }
                _ => match known(&key) {
                    Known::Yes => {}
                    no => return Err(unknown(&key, no)),
                },
            }
        }
        Ok(())
    }
    walk(table, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "steps = 10\nlr = 1\n[model]\ninit = \"m\"\n[data.a]\nfiles = \"a.jsonl\"\n";
    const FILES: &str = "files = \"a.jsonl\"";
    const DRAWN: &str = "[data.a.playground]\nsplit = \"train\"\ncount = 4\nsize = 28\n";

    fn read(text: &str, overrides: &[&str]) -> Result<Recipe> {
        Recipe::read(text, "r.toml", &overrides.iter().map(|o| o.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn overrides_change_keys_of_all_kinds() {
        let recipe = read(
            LEAST,
            &[
                "lr=1e-5",
                "batch = 4",
                "model.init=./a b",
                "freeze=img/.*",
                "data.b.files=[\"x\", \"y\"]",
                "data.mix.a=0.7",
                "data.mix.b=1",
                "lora.rank=4",
                "decay=rsqrt",
                "warmup_steps=3",
                "eval.files=v.jsonl",
                "eval.answers=true",
            ],
        )
        .unwrap();
        assert_eq!((recipe.lr, recipe.batch, recipe.model.init.as_str()), (Some(1e-5), 4, "./a b"));
        assert_eq!(recipe.freeze, ["img/.*"]);
        assert_eq!(recipe.data["b"].files, [PathBuf::from("x"), PathBuf::from("y")]);
        assert_eq!(recipe.mix, BTreeMap::from([("a".into(), 0.7), ("b".into(), 1.0)]));
        assert_eq!(recipe.lora.as_ref().unwrap(), &LoraRecipe { rank: 4, ..LoraRecipe::default() });
        let schedule = recipe.schedule(&Course::default(), 10).unwrap();
        assert_eq!((schedule.decay, schedule.warmup), (Decay::Rsqrt { timescale: 10_000.0 }, 3));
        assert!(recipe.eval.as_ref().unwrap().answers);
        // What it says of itself is the same recipe.
        let again = read(&recipe.to_toml(), &[]).unwrap();
        assert_eq!(again, recipe, "{}", recipe.to_toml());
    }

    /// The list of keys is that of the structs: each key is taken, changes something, and comes out again.
    #[test]
    fn every_key_is_known_to_the_structs() {
        let value = |key: &str| match key.rsplit('.').next().unwrap() {
            "on_error" => "skip",
            "dtype" | "master_dtype" | "state_dtype" => "bf16",
            "loss" => "token",
            "optimiser" => "sgd",
            "decay" => "linear",
            "preprocess" => "hf",
            "recompute" | "tensorboard" | "sliding_window" | "answers" => "true",
            "antialias" | "final_softcap" | "resize" | "lower" => "false",
            "label_smoothing" | "dropout" | "jpeg" | "warmup" | "cooldown" | "b1" | "b2" | "eps"
            | "momentum" => "0.25",
            "crop" => "0.01",
            "steps" => "7",
            "files" | "image_dir" | "image" | "prefix" | "suffix" | "init" | "tokenizer" | "out"
            | "match" | "targets" | "freeze" | "weight_decay_on" | "split" | "vqvae" => "other",
            _ => "3",
        };
        for (key, about) in KEYS {
            let key = key.replace("NAME", "a");
            let mut table: Table =
                format!("{LEAST}{DRAWN}{}", DRAWN.replace("data.a", "eval")).parse().unwrap();
            let before: Recipe = Value::Table(table.clone()).try_into().unwrap();
            match key.strip_prefix("groups.") {
                Some(inner) => {
                    let group = Table::from_iter([(inner.to_string(), parse_value(value(&key)))]);
                    table.insert("groups".into(), Value::Array(vec![group.into()]));
                }
                None => set(&mut table, &key, parse_value(value(&key))).unwrap(),
            }
            if let Some(mix) = table["data"].as_table_mut().unwrap().remove("mix") {
                table.insert("mix".into(), mix);
            }
            let after: Recipe = Value::Table(table).try_into().unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_ne!(before, after, "{key} changes nothing");
            assert!(!about.is_empty());
        }
        // And nothing in a whole recipe is unknown.
        let text = read(LEAST, &["lora.rank=1", "augment.crop=0.1", "eval.files=a"]).unwrap().to_toml();
        check_keys(&text.parse().unwrap()).unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, overrides: &[&str], parts: &[&str]| {
            let error = read(text, overrides).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Usage);
            let error = error.to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check("steps = = 3", &[], &["no TOML", "r.toml:1"]);
        check("steps = 1\nsteps = 2", &[], &["r.toml:2"]);
        check(&format!("learning_rat = 1\n{LEAST}"), &[], &["learning_rat", "recipes ls --keys"]);
        check(&format!("warm_up = 1\n{LEAST}"), &[], &["did you mean warmup?"]);
        check(LEAST, &["lrr=1"], &["unknown key, lrr", "did you mean lr?"]);
        check(LEAST, &["data.a.file=x"], &["did you mean data.a.files?"]);
        check(LEAST, &["lora=4"], &["lora is a table"]);
        check(LEAST, &["lora.rank"], &["key=value"]);
        check(LEAST, &["lr=fast"], &["wrong value", "lr"]);
        check(LEAST, &["decay=cosin"], &["cosin", "cosine"]);
        check(LEAST, &["epochs=1"], &["several lengths: steps, epochs"]);
        check(&LEAST.replace("steps = 10\n", ""), &[], &["no length"]);
        check(LEAST, &["batch=6", "micro_batch=4"], &["micro_batch is 4", "divisor"]);
        check(LEAST, &["batch=0"], &["batch is 0"]);
        check(LEAST, &["lr=-1"], &["lr is -1"]);
        check(LEAST, &["clip=nan"], &["clip is NaN"]);
        check(LEAST, &["momentum=0.9"], &["momentum means nothing"]);
        check(LEAST, &["data.mix.b=1"], &["data.mix.b is no data set"]);
        check(LEAST, &["data.b.files=x", "data.mix.b=1"], &["data.a has no weight"]);
        check(LEAST, &["eval_every=5"], &["eval.files"]);
        check(LEAST, &["eval.examples=2"], &["eval has no files"]);
        check(&format!("{LEAST}{DRAWN}"), &[], &["data.a has both files and a playground"]);
        check(LEAST, &["data.b.playground.splits=train"], &["did you mean data.b.playground.split?"]);
        check(&LEAST.replace(FILES, DRAWN), &["data.a.playground.size=x"], &["wrong value"]);
        check(LEAST, &["augment.jpeg=2"], &["jpeg is 2"]);
        check("steps = 1", &[], &["model.init"]);
        check("steps = 1", &["model.init=m"], &["names no data"]);
        let recipe = read(LEAST, &["warmup=2"]).unwrap();
        assert!(recipe.schedule(&Course::default(), 10).unwrap_err().to_string().contains("warmup_steps"));
    }

    #[test]
    fn data_may_be_drawn() {
        let drawn = LEAST.replace(FILES, DRAWN);
        let tasks = ["data.a.playground.tasks.colour=0.3", "data.a.playground.tasks.count=2"];
        let recipe = read(&drawn, &tasks).unwrap();
        let part = recipe.data["a"].playground.clone().unwrap();
        assert_eq!((part.split.as_str(), part.seed, part.count, part.size), ("train", 0, 4, 28));
        assert_eq!(part.tasks, Some(BTreeMap::from([("colour".into(), 0.3), ("count".into(), 2.0)])));
        assert_eq!(read(&recipe.to_toml(), &[]).unwrap(), recipe);
    }

    #[test]
    fn a_run_goes_on_with_what_changes_no_weight() {
        let recipe = read(LEAST, &[]).unwrap();
        let other = |overrides: &[&str]| read(LEAST, overrides).unwrap().check_same(&recipe);
        assert!(other(&["keep=9", "log_every=2", "loader_threads=4", "eval.files=x", "out=b"]).is_ok());
        let error = other(&["lr=2", "batch=3"]).unwrap_err().to_string();
        assert!(error.contains("another batch, lr"), "{error}");
    }

    #[test]
    fn muon_is_of_matrices_between_layers() {
        let recipe = read(LEAST, &["optimiser=muon", "momentum=0.9", "b2=0.98"]).unwrap();
        let check = |name: &str, shape: &[usize], is_muon: bool| {
            let want = match is_muon {
                true => Optimiser::Muon { momentum: 0.9 },
                false => Optimiser::Adam { b1: 0.9, b2: 0.98, eps: 1e-8 },
            };
            assert_eq!(recipe.optimiser(name, shape), want, "{name}");
        };
        check("language_model.layers.0.mlp.gate_proj.weight", &[8, 4], true);
        check("vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight", &[4, 4], true);
        check("multi_modal_projector.linear.weight", &[4, 4], true);
        check("language_model.layers.0.self_attn.q_proj.lora_a", &[2, 4], true);
        check("vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.bias", &[4], false);
        check("vision_tower.vision_model.embeddings.patch_embedding.weight", &[4, 3, 2, 2], false);
        check("vision_tower.vision_model.embeddings.position_embedding.weight", &[4, 4], false);
        check("language_model.embed_tokens.weight", &[9, 4], false);
        check("text_model.embeddings.token_embedding.weight", &[9, 4], false);
    }

    #[test]
    fn lengths_are_steps() {
        let check = |length: &str, examples: u64, want: u64| {
            let recipe = read(&LEAST.replace("steps = 10", length), &["batch=32"]).unwrap();
            assert_eq!(recipe.num_steps(examples), want, "{length}");
        };
        check("steps = 7", 1000, 7);
        check("examples = 100", 1000, 3);
        check("epochs = 1.5", 1000, 47);
        check("epochs = 0.001", 1000, 1);
    }
}
