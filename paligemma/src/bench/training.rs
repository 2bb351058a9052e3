//! How long a step of training takes: one example, its loss, all gradients and the update.
//!
//! | | learns | is frozen | update |
//! |---|---|---|---|
//! | [`Learning::Lora`] | adapters of rank 8 beside every linear layer of the decoder, f32 | all weights | AdamW |
//! | [`Learning::Full`] | the decoder, with its table | image encoder, projector | SGD, as soon as a gradient is whole |
//!
//! What learns is of the weights' own type in a full step, and is changed in place. Operations of a step, of T tokens of which S
//! have a loss (a multiplication and an addition each count one):
//!
//! ```text
//! image encoder forward
//! + f · 2·T·(the matrices of the decoder)     forward 1, gradients of inputs 1, of weights 1 where they learn: f = 2 or 3
//! + 3 · L·2·2·T·T·N·H                         attention: forward 1, backward 2; its recomputation does not count
//! + f · 2·S·D·V                               the head
//! ```

use super::{Settings, Spread};
use crate::{
    Error, Result,
    adapter::linear_layers,
    config::Config,
    model::{Lesson, Lora, LossOptions, PaliGemma, Weights},
    train::{Numbers, Optimiser, Rate, State},
};
use paligemma_tensor::{Contribution, DType, Isa, Parameter, Tensor, Weight, gemm_peak, peak_rss};
use std::{cell::RefCell, collections::HashMap, sync::atomic::AtomicBool, time::Instant};

/// Rank of the adapters.
const RANK: usize = 8;

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// Adapters.
    Lora,
    /// The whole decoder.
    Full,
}

/// A model that learns on the bench.
#[derive(Debug)]
pub struct TrainingBench {
    model: PaliGemma,
    learning: Learning,
    lesson: Lesson,
    /// What the optimiser keeps of each adapter.
    states: Vec<State>,
    /// Of the table, whose gradient comes in parts.
    table: Option<(usize, Tensor)>,
    step: u64,
}

/// What came out. Times are in seconds.
#[derive(Debug, Clone, Copy)]
pub struct TrainingFigures {
    /// A step: forward, backward and update.
    pub train_step_s: Spread,
    /// Of a step's operations over its time over the peak.
    pub train_of_peak: f64,
    /// Of all threads on registers, with the instruction that the kernels have for these weights, operations a second.
    pub gemm_peak_flops: f64,
    /// The most memory that the process has held.
    pub peak_rss_bytes: u64,
    /// All weights as they lie in memory, adapters among them.
    pub weights_bytes: u64,
}

impl TrainingBench {
    /// Takes the weights, of so many bytes, by their names. `settings` has the tokens of the prompt and those that are learned.
    ///
    /// # Errors
    /// `Kind::Resource` if the machine cannot hold them and the table's gradient. What the function reports; settings that mean
    /// nothing; weights that cannot learn.
    pub fn new(
        config: &Config,
        weight_bytes: u64,
        weight: &mut dyn FnMut(&str) -> Result<Weight>,
        learning: Learning,
        settings: &Settings,
    ) -> Result<TrainingBench> {
        settings.check()?;
        let text_tokens = settings.text_tokens();
        let mut need = config.memory_needed(weight_bytes, config.vision.num_tokens(), text_tokens, 1);
        if learning == Learning::Full {
            need.activations += (config.text.vocab_size * config.text.hidden_size * 4) as u64;
        }
        need.check_available()?;
        let mut ids = HashMap::new();
        let mut next = 0;
        let mut take = |name: &str| -> Result<Parameter> {
            let weight = weight(name)?;
            if learning == Learning::Lora || !name.starts_with("language_model.") {
                return Ok(weight.into());
            }
            let Weight::Plain(tensor) = weight else {
                return Err(Error::usage(format!(
                    "the decoder is {}, which does not learn",
                    weight.type_name()
                ))
                .expected("bf16 or f32; adapters learn beside any (--train lora)"));
            };
            if tensor.dtype() == DType::F16 {
                return Err(Error::usage("f16 does not learn").expected("--dtype bf16 or f32"));
            }
            ids.insert(name.to_owned(), next);
            next += 1;
            // What learns is changed in place, so it is no part of a file.
            let own = Tensor::from_bytes(tensor.bytes(), tensor.dtype(), tensor.shape());
            Ok(Parameter::wanted(own, next - 1))
        };
        let shapes: HashMap<String, [usize; 2]> = linear_layers(config).into_iter().collect();
        let optimiser = adamw();
        let states = RefCell::new(Vec::new());
        let adapter = |layer: &str| {
            if learning == Learning::Full || !layer.starts_with("language_model.") {
                return None;
            }
            let &[out, inputs] = shapes.get(layer)?;
            let half = |shape: [usize; 2], size: f32| {
                let n = shape[0] * shape[1];
                let values = (0..n).map(|i| size * ((i * 7919 % 1000) as f32 / 500.0 - 1.0)).collect();
                states.borrow_mut().push(optimiser.new_state(&shape, DType::F32));
                Parameter::wanted(Tensor::from_f32(values, &shape), states.borrow().len() - 1)
            };
            let (a, b) = (half([RANK, inputs], (inputs as f32).powf(-0.5)), half([out, RANK], 1e-3));
            Some(Lora { a, b, scale: 2.0, dropout: 0.0 })
        };
        let model = PaliGemma::load(config, &mut Weights::new(&mut take).with_adapters(&adapter))?;
        let prompt = super::made_up_prompt(config, settings.prompt_tokens + settings.new_tokens);
        let lesson = Lesson {
            images_bchw: prompt.pixels,
            ids: prompt.ids,
            prefix_len: settings.prompt_tokens,
            key: 0,
        };
        let table = ids.get("language_model.embed_tokens.weight").copied();
        let table = table.map(|id| (id, Tensor::zeros(&[config.text.vocab_size, config.text.hidden_size])));
        Ok(TrainingBench { model, learning, lesson, states: states.into_inner(), table, step: 0 })
    }

    /// The model.
    pub fn model(&self) -> &PaliGemma {
        &self.model
    }

    /// One step → its seconds.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn step(&mut self, cancel: &AtomicBool) -> Result<f64> {
        let start = Instant::now();
        let TrainingBench { model, learning, lesson, states, table, step } = self;
        let rate = Rate { step: *step, lr: 1e-6, schedule: 1.0, decay: 0.0 };
        let optimiser = match learning {
            Learning::Lora => adamw(),
            Learning::Full => Optimiser::Sgd { momentum: 0.0 },
        };
        model.learn(
            std::slice::from_ref(lesson),
            &LossOptions::default(),
            Some(cancel),
            &mut |id, weight, part| {
                let shape = weight.shape().to_vec();
                let mut change = |weight: &mut Tensor, from: usize, gradient: &[f32]| {
                    let mut none = State::default();
                    let state = states.get_mut(id).unwrap_or(&mut none);
                    let numbers = match weight.dtype() {
                        DType::BF16 => Numbers::Bf16(weight.as_bf16_mut()),
                        _ => Numbers::F32(weight.as_f32_mut()),
                    };
                    optimiser.update_part(state, numbers, &shape, (from, gradient), &rate);
                };
                match table {
                    Some((table, sum)) if *table == id => {
                        // The rows of the prompt's ids come last.
                        let is_last = matches!(part, Contribution::Rows { .. });
                        part.add_to(sum);
                        if is_last {
                            change(weight, 0, sum.as_f32());
                            sum.as_f32_mut().fill(0.0);
                        }
                    }
                    _ => part.in_parts(&shape, &mut |from, gradient| change(weight, from, gradient)),
                }
            },
        )?;
        *step += 1;
        Ok(start.elapsed().as_secs_f64())
    }

    /// What came out of one step or more. Panics without any.
    pub fn figures(&self, seconds: &[f64]) -> TrainingFigures {
        let train_step_s = Spread::of(seconds.to_vec());
        let peak = gemm_peak(Isa::best(), super::factors(&self.model));
        TrainingFigures {
            train_step_s,
            train_of_peak: self.operations() / train_step_s.median / peak,
            gemm_peak_flops: peak,
            peak_rss_bytes: peak_rss().unwrap_or(0),
            weights_bytes: self.model.weights().map(|w| w.bytes().len() as u64).sum(),
        }
    }

    /// See the head of this file.
    fn operations(&self) -> f64 {
        let config = self.model.config();
        let n = |x: usize| x as f64;
        let (v, t) = (&config.vision, &config.text);
        let (w, patches) = (n(v.hidden_size), n(v.num_tokens()));
        let matrices = 4.0 * w * w + 2.0 * w * n(v.intermediate_size);
        let encoder = n(v.num_hidden_layers) * (2.0 * patches * matrices + 4.0 * patches * patches * w);
        let (d, tokens) = (n(t.hidden_size), patches + n(self.lesson.ids.len()));
        let (q, kv) = (n(t.num_attention_heads * t.head_dim), n(t.num_key_value_heads * t.head_dim));
        let matrices = 2.0 * d * q + 2.0 * d * kv + 3.0 * d * n(t.intermediate_size);
        let ways = if self.learning == Learning::Full { 3.0 } else { 2.0 };
        let attention = 3.0 * 4.0 * tokens * tokens * q;
        let head = ways * 2.0 * n(self.lesson.num_targets()) * d * n(t.vocab_size);
        encoder + n(t.num_hidden_layers) * (ways * 2.0 * tokens * matrices + attention) + head
    }
}

fn adamw() -> Optimiser {
    Optimiser::AdamW { b1: 0.9, b2: 0.999, eps: 1e-8 }
}
