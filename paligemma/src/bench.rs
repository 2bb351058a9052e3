//! How fast this machine runs a model, beside what the machine can do at most.
//!
//! Every run answers made-up pictures and prompts through [`Generator`], the way of every answer, to the same number of
//! tokens. The machine's limits are measured between the runs and in the middle of decoding, so that what else the
//! machine does meanwhile lowers both. A fraction of a limit is the median of the runs' own fractions.
//!
//! Work of the language model's prefill, in operations (a multiplication and an addition each count one), of T tokens
//! that all see each other:
//!
//! ```text
//! L layers · ( 2·T·(D·N·H + 2·D·K·H + N·H·D + 3·D·F)      query, key and value, output, gate and up and down
//!            + 2·2·T·T·N·H )                              queries by keys, weights by values
//! + 2·D·V                                                 the head, one row
//! ```
//!
//! Bytes of a step of decoding: every tensor of the decoder once, the embedding table as its head, and the keys and
//! values of all tokens so far.
//!
//! Legend: D width, N query heads, K key heads, H head size, F width of the MLP, V vocabulary.

mod training;

pub use training::{Learning, TrainingBench, TrainingFigures};

use crate::{
    Error, Result,
    checkpoint::{Form, random_weights},
    config::{Config, TextConfig},
    generate::{Generator, Options, Prompt, Timings},
    model::{PaliGemma, Weights},
};
use paligemma_tensor::{Factors, Isa, Parameter, Tensor, gemm_peak, peak_rss, read_bandwidth};
use std::{
    ops::ControlFlow,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Tokens of text behind each picture.
    pub prompt_tokens: usize,
    /// Tokens of each answer; the first comes with the prefill, the others are decoded. At least 2.
    pub new_tokens: usize,
    /// Pictures with their prompts that are answered together.
    pub batch: usize,
}

/// A figure over all runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// What came out. Times are in seconds, of the whole batch.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Pixels to projected tokens.
    pub image_encode_s: Spread,
    /// The language model over image and prompt tokens, one row of logits each.
    pub prefill_s: Spread,
    /// The two together.
    pub ttft_s: Spread,
    /// A step of decoding, which gives every answer of the batch a token, its choice included.
    pub decode_token_s: Spread,
    /// The most memory that the process has held.
    pub peak_rss_bytes: u64,
    /// All weights as they lie in memory.
    pub weights_bytes: u64,
    /// At which all threads read the decoder's weights from first to last, bytes a second.
    pub memory_bandwidth_bytes_per_s: f64,
    /// Of all threads on registers, with the instruction that the kernels have for these weights, operations a second.
    pub gemm_peak_flops: f64,
    /// The prefill's operations over its time over the peak.
    pub prefill_of_peak: f64,
    /// Bytes that a step of decoding reads over its time over the bandwidth.
    pub decode_of_bandwidth: f64,
}

/// A model of random weights, made in memory.
///
/// # Errors
/// `Kind::Resource` if the machine cannot hold it with what `settings` asks for; nothing is made then.
pub fn random_model(config: &Config, form: Form, settings: &Settings) -> Result<PaliGemma> {
    let (bytes, mut weight) = random_weights(config, form, 0);
    config
        .memory_needed(bytes, config.vision.num_tokens(), settings.text_tokens(), settings.batch)
        .check_available()?;
    PaliGemma::load(config, &mut Weights::new(&mut |name| weight(name).map(Parameter::from)))
}

/// A model on the bench.
#[derive(Debug)]
pub struct Bench<'a> {
    model: &'a PaliGemma,
    settings: Settings,
    prompts: Vec<Prompt>,
    /// Everything that a step of decoding reads but keys and values.
    decoder: Vec<&'a [u8]>,
}

/// One run's figures, times in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    image_encode: f64,
    prefill: f64,
    decode_token: f64,
    bandwidth: f64,
    peak: f64,
    prefill_of_peak: f64,
    decode_of_bandwidth: f64,
}

impl<'a> Bench<'a> {
    /// Puts `model` on the bench.
    ///
    /// # Errors
    /// Settings that mean nothing.
    pub fn new(model: &'a PaliGemma, settings: &Settings) -> Result<Self> {
        settings.check()?;
        let prompt = made_up_prompt(model.config(), settings.prompt_tokens);
        Ok(Bench {
            model,
            settings: *settings,
            prompts: vec![prompt; settings.batch],
            decoder: model.gemma().weights().map(Tensor::bytes).collect(),
        })
    }

    /// A short run that does not count: memory and threads are warm behind it.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn warm_up(&self, cancel: &AtomicBool) -> Result<()> {
        self.answer(2, cancel).map(|_| ())
    }

    /// A run.
    ///
    /// # Errors
    /// Only cancellation.
    pub fn run(&self, cancel: &AtomicBool) -> Result<Run> {
        let (model, settings) = (self.model, &self.settings);
        let batch = settings.batch as f64;
        let tokens = model.config().vision.num_tokens() + settings.prompt_tokens;
        let peak = gemm_peak(Isa::best(), factors(model));
        let (timings, bandwidth) = self.answer(settings.new_tokens, cancel)?;
        let prefill = timings.prefill.as_secs_f64();
        let decode_token = timings.decode.as_secs_f64() / (settings.new_tokens - 1) as f64;
        let operations = batch * prefill_operations(&model.config().text, tokens);
        // A step reads its own token's keys and values too: of tokens + 1 in the first, tokens + new_tokens - 1 in the last.
        let cached = batch * (tokens as f64 + settings.new_tokens as f64 / 2.0);
        let weights: usize = self.decoder.iter().map(|bytes| bytes.len()).sum();
        let step_bytes = weights as f64 + cached * model.cache_bytes_per_token() as f64;
        Ok(Run {
            image_encode: timings.image_encode.as_secs_f64(),
            prefill,
            decode_token,
            bandwidth,
            peak,
            prefill_of_peak: operations / prefill / peak,
            decode_of_bandwidth: step_bytes / decode_token / bandwidth,
        })
    }

    /// What came out of one run or more. Panics without any.
    pub fn figures(&self, runs: &[Run]) -> Figures {
        let spread = |of: fn(&Run) -> f64| Spread::of(runs.iter().map(of).collect());
        Figures {
            image_encode_s: spread(|run| run.image_encode),
            prefill_s: spread(|run| run.prefill),
            ttft_s: spread(|run| run.image_encode + run.prefill),
            decode_token_s: spread(|run| run.decode_token),
            peak_rss_bytes: peak_rss().unwrap_or(0),
            weights_bytes: self.model.weights().map(|w| w.bytes().len() as u64).sum(),
            memory_bandwidth_bytes_per_s: spread(|run| run.bandwidth).median,
            gemm_peak_flops: spread(|run| run.peak).median,
            prefill_of_peak: spread(|run| run.prefill_of_peak).median,
            decode_of_bandwidth: spread(|run| run.decode_of_bandwidth).median,
        }
    }

    /// Answers the prompts → where the time went, and the bandwidth as it was meanwhile.
    fn answer(&self, new_tokens: usize, cancel: &AtomicBool) -> Result<(Timings, f64)> {
        // No id is this one, so every answer has its full length.
        let generator = Generator::new(self.model, u32::MAX).cancelled_by(cancel);
        let options = Options { max_tokens: new_tokens, ..Options::default() };
        let (mut steps, mut readings, mut reading_time) = (0, Vec::new(), Duration::ZERO);
        let (_, mut timings) = generator.run(&self.prompts, &options, &mut |row, _, _| {
            // The first token is the prefill's. Between two steps, at the beginning, in the middle and at the end:
            if row == 0 {
                if [1, new_tokens / 2, new_tokens - 1].contains(&steps) {
                    let start = Instant::now();
                    readings.push(read_bandwidth(&self.decoder));
                    reading_time += start.elapsed();
                }
                steps += 1;
            }
            ControlFlow::Continue(())
        })?;
        timings.decode = timings.decode.saturating_sub(reading_time);
        Ok((timings, Spread::of(readings).median))
    }
}

impl Settings {
    /// Tokens of prompt and answer.
    pub fn text_tokens(&self) -> usize {
        self.prompt_tokens.saturating_add(self.new_tokens)
    }

    fn check(&self) -> Result<()> {
        let least = [
            ("--prompt-tokens", self.prompt_tokens, 1),
            ("--new-tokens", self.new_tokens, 2),
            ("--batch", self.batch, 1),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            None => Ok(()),
            Some((flag, value, least)) => {
                Err(Error::usage(format!("{flag} is {value}")).expected(format!("at least {least}")))
            }
        }
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        Spread { median: (values[(n - 1) / 2] + values[n / 2]) / 2.0, min: values[0], max: values[n - 1] }
    }
}

/// What the decoder's products multiply in prefill, as the kernels take them: half bytes are widened to bf16.
fn factors(model: &PaliGemma) -> Factors {
    match model.gemma().matrix_type() {
        "bf16" | "int4" => Factors::Bf16,
        "int8" => Factors::Int8,
        _ => Factors::F32,
    }
}

/// A picture of grey bars and tokens from all over the table.
fn made_up_prompt(config: &Config, tokens: usize) -> Prompt {
    let side = config.vision.image_size;
    let pixels = (0..3 * side * side).map(|i| (i % 255) as f32 / 127.0 - 1.0).collect();
    let ids = (0..tokens).map(|i| (i * 7919 % config.image_token_index.max(1)) as u32).collect();
    Prompt { pixels: Tensor::from_f32(pixels, &[1, 3, side, side]), ids, grammar: None }
}

/// Operations of one sequence's prefill; see the head of this file.
fn prefill_operations(text: &TextConfig, tokens: usize) -> f64 {
    let n = |x: usize| x as f64;
    let (d, f, t) = (n(text.hidden_size), n(text.intermediate_size), n(tokens));
    let (q, kv) = (n(text.num_attention_heads * text.head_dim), n(text.num_key_value_heads * text.head_dim));
    let matrices = 2.0 * t * (d * q + 2.0 * d * kv + q * d + 3.0 * d * f);
    let attention = 4.0 * t * t * q;
    n(text.num_hidden_layers) * (matrices + attention) + 2.0 * d * n(text.vocab_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_a_prefill() {
        for (name, tokens, want) in [
            // 18 layers of 110 100 480 weights, 2 · 272 operations each; 10.9 G for attention, 1.1 G for the head.
            ("3b-224", 272, 1_090_066_841_600_f64),
            ("3b-896", 4112, 18_792_714_076_160.0),
            ("2-3b-224", 272, 1_118_149_378_048.0),
        ] {
            let text = Config::published(name).unwrap().text;
            assert_eq!(prefill_operations(&text, tokens), want, "{name}");
        }
    }

    #[test]
    fn medians() {
        for (values, want) in [
            (vec![3.0], (3.0, 3.0, 3.0)),
            (vec![4.0, 1.0], (2.5, 1.0, 4.0)),
            (vec![9.0, 1.0, 2.0], (2.0, 1.0, 9.0)),
            (vec![4.0, 1.0, 3.0, 2.0], (2.5, 1.0, 4.0)),
        ] {
            let (median, min, max) = want;
            assert_eq!(Spread::of(values.clone()), Spread { median, min, max }, "{values:?}");
        }
    }
}
