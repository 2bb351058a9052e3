//! The generation loop: prompts in, token ids out. It knows no text; a caller that does may stop a row.
//!
//! Every row has its own cache and is read without padding, so that a ragged batch gives each row its single-run
//! answer. The rows share nothing but the reading of the weights.

use super::{BeamRule, Coordinate, Grammar, Options, beam, grammar::State as GrammarState, sample::Sampler};
use crate::{
    Error, Result,
    model::{KvCache, PaliGemma, Pass, Turn},
};
use paligemma_tensor::{Tensor, log_sum_exp};
use std::{
    ops::{ControlFlow, Range},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

/// What a row starts from.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Pixel values `[images, 3, S, S]`, in order; their tokens stand before the text.
    pub pixels: Tensor,
    /// BOS, prefix, "\n".
    pub ids: Vec<u32>,
    /// What the answer may be; anything if not given.
    pub grammar: Option<Arc<Grammar>>,
}

/// One row's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Without EOS.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the model, among all tokens, whatever a grammar allowed.
    pub logprobs: Vec<f32>,
    /// What the model thought of each token that is a location, where locations are watched.
    pub coordinates: Vec<Option<Coordinate>>,
    /// Log-probability of the whole answer, EOS included where it came.
    pub score: f32,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// It has `max_tokens`.
    Length,
    /// The caller ended it: a stop string.
    Stop,
}

impl FinishReason {
    /// `eos`, `length` or `stop`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Eos => "eos",
            FinishReason::Length => "length",
            FinishReason::Stop => "stop",
        }
    }
}

/// Where the time of a call went, over all its rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Pixels to projected tokens.
    pub image_encode: Duration,
    /// The language model over images and prompts, one row of logits each.
    pub prefill: Duration,
    /// Everything after the first token.
    pub decode: Duration,
    /// Tokens that were decoded, EOS included.
    pub tokens: usize,
}

/// A model ready to answer.
#[derive(Debug)]
pub struct Generator<'a> {
    model: &'a PaliGemma,
    eos: u32,
    locations: Range<u32>,
    cancel: Option<&'a AtomicBool>,
}

/// A token as it comes.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Which prompt's answer it is of.
    pub row: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability under the model.
    pub logprob: f32,
    /// What the model thought of it, if it is a location and locations are watched.
    pub coordinate: Option<Coordinate>,
}

/// A row that is being answered.
struct Row<'a> {
    index: usize,
    cache: KvCache,
    prefix_len: usize,
    sampler: Sampler,
    grammar: Option<GrammarState<'a>>,
    next: u32,
    answer: Answer,
}

/// Told of every token as it comes, EOS excepted; may end that row.
type OnStep<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

impl<'a> Generator<'a> {
    /// `eos` is the tokenizer's.
    pub fn new(model: &'a PaliGemma, eos: u32) -> Self {
        Generator { model, eos, locations: 0..0, cancel: None }
    }

    /// Keeps what the model thinks of each location it chooses; `locations` are their ids, in order.
    #[must_use]
    pub fn watching(mut self, locations: Range<u32>) -> Self {
        self.locations = locations;
        self
    }

    /// Gives up with [`crate::Kind::Cancelled`] once `cancel` is true.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &'a AtomicBool) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Answers all prompts, in their order. `on_token` (row, id, its log-probability) is told of every token as it comes,
    /// EOS excepted, and may end that row. With beams it hears of a row's tokens at its end.
    ///
    /// # Errors
    /// Options that mean nothing; pixels or ids that are not the model's; cancellation.
    pub fn run(
        &self,
        prompts: &[Prompt],
        options: &Options,
        on_token: &mut dyn FnMut(usize, u32, f32) -> ControlFlow<()>,
    ) -> Result<(Vec<Answer>, Timings)> {
        self.run_steps(prompts, options, &mut |step| on_token(step.row, step.id, step.logprob))
    }

    /// [`Generator::run`], with all that is known of a token.
    ///
    /// # Errors
    /// As there.
    pub fn run_steps(
        &self,
        prompts: &[Prompt],
        options: &Options,
        on_step: &mut OnStep<'_>,
    ) -> Result<(Vec<Answer>, Timings)> {
        options.check()?;
        let mut timings = Timings::default();
        let mut answers: Vec<Option<Answer>> = vec![None; prompts.len()];
        if options.beams > 1 || options.beam_rule == BeamRule::Reference {
            for (index, prompt) in prompts.iter().enumerate() {
                let (cache, last) = self.prefill(prompt, &mut timings)?;
                let start = Instant::now();
                let grammar = prompt.grammar.as_deref().map(Grammar::begin);
                let answer = beam::search(self, cache, &last, grammar, options)?;
                timings.decode += start.elapsed();
                timings.tokens += answer.tokens.len();
                for (i, &id) in answer.tokens.iter().enumerate() {
                    let (logprob, coordinate) = (answer.logprobs[i], answer.coordinates[i]);
                    let _ = on_step(Step { row: index, id, logprob, coordinate });
                }
                answers[index] = Some(answer);
            }
        } else {
            let mut rows = Vec::new();
            for (index, prompt) in prompts.iter().enumerate() {
                let (cache, last) = self.prefill(prompt, &mut timings)?;
                let mut row = Row {
                    index,
                    prefix_len: cache.len(),
                    cache,
                    sampler: Sampler::new(options.sampling, self.model.config().image_token_index),
                    grammar: prompt.grammar.as_deref().map(Grammar::begin),
                    next: 0,
                    answer: Answer {
                        tokens: Vec::new(),
                        logprobs: Vec::new(),
                        coordinates: Vec::new(),
                        score: 0.0,
                        finish_reason: FinishReason::Length,
                    },
                };
                let start = Instant::now();
                let logits = self.model.logits(&last);
                let done = self.advance(&mut row, logits.as_f32(), options, on_step);
                timings.prefill += start.elapsed();
                timings.tokens += 1;
                if done { answers[index] = Some(row.answer) } else { rows.push(row) }
            }
            let start = Instant::now();
            while !rows.is_empty() {
                let ids: Vec<u32> = rows.iter().map(|row| row.next).collect();
                let mut turns: Vec<Turn<'_>> = rows
                    .iter_mut()
                    .map(|row| Turn { len: 1, prefix_len: row.prefix_len, cache: &mut row.cache })
                    .collect();
                let logits = self.step(&ids, &mut turns)?;
                timings.tokens += rows.len();
                let v = logits.shape()[1];
                let mut logits = logits.as_f32().chunks(v);
                let mut going = Vec::new();
                for mut row in rows {
                    let Some(row_logits) = logits.next() else { break };
                    if self.advance(&mut row, row_logits, options, on_step) {
                        answers[row.index] = Some(row.answer);
                    } else {
                        going.push(row);
                    }
                }
                rows = going;
            }
            timings.decode += start.elapsed();
        }
        let answers: Option<Vec<Answer>> = answers.into_iter().collect();
        Ok((answers.ok_or_else(|| Error::model("a row was left without an answer"))?, timings))
    }

    /// Reads a prompt → its cache, and `pre_logits` of its last token `[1, D]`.
    fn prefill(&self, prompt: &Prompt, timings: &mut Timings) -> Result<(KvCache, Tensor)> {
        if prompt.ids.is_empty() {
            return Err(Error::input("the prompt has no tokens").expected("at least BOS"));
        }
        if let Some(grammar) = &prompt.grammar {
            grammar.check_within(self.model.config().text.vocab_size)?;
        }
        let mut pass = self.pass();
        let start = Instant::now();
        let images = self.model.encode_images(&prompt.pixels, &mut pass)?;
        timings.image_encode += start.elapsed();
        let start = Instant::now();
        let text = self.model.embed_text(&prompt.ids, &mut pass)?;
        let x = PaliGemma::join(&images, &text, &mut pass);
        let len = x.shape()[0];
        let mut cache = self.model.new_cache();
        let mut turns = [Turn { len, prefix_len: len, cache: &mut cache }];
        let y = self.model.forward(&x, &mut turns, &mut pass)?;
        timings.prefill += start.elapsed();
        Ok((cache, y.tensor().rows(len - 1, len)))
    }

    /// One token of every turn → its logits `[turns, V]`.
    pub(crate) fn step(&self, ids: &[u32], turns: &mut [Turn<'_>]) -> Result<Tensor> {
        let mut pass = self.pass();
        // On one of the pool's threads: a hundred products a token are then handed over without waking a thread each time.
        rayon::scope(|_| {
            let x = self.model.embed_text(ids, &mut pass)?;
            Ok(self.model.logits(self.model.forward(&x, turns, &mut pass)?.tensor()))
        })
    }

    /// Chooses the row's next token; true when the row is done.
    fn advance(
        &self,
        row: &mut Row<'_>,
        logits: &[f32],
        options: &Options,
        on_step: &mut OnStep<'_>,
    ) -> bool {
        let left = options.max_tokens - row.answer.tokens.len();
        let allowed = row.grammar.as_ref().map(|grammar| grammar.allowed(left));
        let id = row.sampler.choose(logits, allowed.as_deref());
        let total = log_sum_exp(logits);
        let logprob = (f64::from(logits[id as usize]) - total) as f32;
        row.answer.score += logprob;
        if id == self.eos {
            row.answer.finish_reason = FinishReason::Eos;
            return true;
        }
        if let Some(grammar) = &mut row.grammar {
            grammar.accept(id);
        }
        let coordinate = self.coordinate(logits, total, id);
        row.next = id;
        row.answer.tokens.push(id);
        row.answer.logprobs.push(logprob);
        row.answer.coordinates.push(coordinate);
        if on_step(Step { row: row.index, id, logprob, coordinate }).is_break() {
            row.answer.finish_reason = FinishReason::Stop;
            return true;
        }
        row.answer.tokens.len() >= options.max_tokens
    }

    /// What is thought of a token that is a watched location; `values` are logits or log-probabilities, `total` their
    /// log-sum-exp.
    pub(super) fn coordinate(&self, values: &[f32], total: f64, id: u32) -> Option<Coordinate> {
        Coordinate::of(values, total, &self.locations, id)
    }

    fn pass(&self) -> Pass<'a> {
        self.cancel.map_or_else(Pass::plain, Pass::cancelled_by)
    }

    pub(crate) fn model(&self) -> &'a PaliGemma {
        self.model
    }

    pub(crate) fn eos(&self) -> u32 {
        self.eos
    }
}
