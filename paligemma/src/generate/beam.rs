//! Beam search by two rules: transformers' and big_vision's.
//!
//! Both sum log-probabilities without a length penalty. Sums are taken in f32, as the references do.

use super::{Answer, BeamRule, Coordinate, FinishReason, Generator, Options, grammar::State as GrammarState};
use crate::{
    Result,
    model::{KvCache, Turn},
};
use paligemma_tensor::{Tensor, log_sum_exp};

/// An unfinished or finished hypothesis.
#[derive(Clone)]
struct Beam<'a> {
    /// EOS included where it was chosen.
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    coordinates: Vec<Option<Coordinate>>,
    score: f32,
    grammar: Option<GrammarState<'a>>,
}

/// A continuation: which live beam, which token, its log-probability and the sum.
#[derive(Clone, Copy)]
struct Candidate {
    beam: usize,
    id: u32,
    logprob: f32,
    score: f32,
}

/// The best answer that `options.beams` beams find. `pre_logits` `[1, D]` is the prompt's last row.
pub(super) fn search(
    generator: &Generator<'_>,
    cache: KvCache,
    pre_logits: &Tensor,
    grammar: Option<GrammarState<'_>>,
    options: &Options,
) -> Result<Answer> {
    // big_vision's prefill_cache returns compute_logits, which stops before the final soft cap; its extend_cache caps.
    let first = match options.beam_rule {
        BeamRule::Transformers => generator.model().logits(pre_logits),
        BeamRule::Reference => generator.model().uncapped_logits(pre_logits),
    };
    let mut live = Live {
        generator,
        prefix_len: cache.len(),
        max_tokens: options.max_tokens,
        beams: vec![Beam {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            coordinates: Vec::new(),
            score: 0.0,
            grammar,
        }],
        caches: vec![cache],
        logprobs: log_softmax(&first),
    };
    let best = match options.beam_rule {
        BeamRule::Transformers => transformers(&mut live, options)?,
        BeamRule::Reference => reference(&mut live, options)?,
    };
    let finish_reason =
        if best.tokens.last() == Some(&generator.eos()) { FinishReason::Eos } else { FinishReason::Length };
    let mut answer = Answer {
        tokens: best.tokens,
        logprobs: best.logprobs,
        coordinates: best.coordinates,
        score: best.score,
        finish_reason,
    };
    if finish_reason == FinishReason::Eos {
        answer.tokens.pop();
        answer.logprobs.pop();
        answer.coordinates.pop();
    }
    Ok(answer)
}

/// transformers' `_beam_search` for one row: the top 2N continuations of all beams; an EOS finishes a beam only among
/// the first N of them; at the maximum length the live ones compete; it ends when the best live beam cannot pass the
/// worst of N finished ones.
fn transformers<'a>(live: &mut Live<'a>, options: &Options) -> Result<Beam<'a>> {
    let n = options.beams;
    let eos = live.generator.eos();
    let mut finished: Vec<Beam<'a>> = Vec::new();
    for step in 1.. {
        let mut top = live.best_continuations(2 * n);
        top.truncate(2 * n);
        let at_end = step == options.max_tokens;
        let ends = |c: &Candidate| c.id == eos || at_end;
        for c in top.iter().take(n).filter(|c| ends(c)) {
            finished.push(live.with(c));
        }
        // A stable sort: among equals the earlier one stays.
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(n);
        let next: Vec<Candidate> = top.into_iter().filter(|c| !ends(c)).take(n).collect();
        let Some(best_live) = next.first() else { break };
        if finished.len() == n && best_live.score <= finished[n - 1].score {
            break;
        }
        live.go_on(&next)?;
    }
    Ok(finished.swap_remove(0))
}

/// big_vision's `_beam_sample_output`: every live beam is also scored as if it ended now; each is expanded into N + 1
/// continuations, of which the best N without EOS live on; it ends when every live beam is worse than the best
/// finished one.
fn reference<'a>(live: &mut Live<'a>, options: &Options) -> Result<Beam<'a>> {
    let n = options.beams;
    let eos = live.generator.eos();
    let mut best: Option<Beam<'a>> = None;
    for step in 1.. {
        for beam in (0..live.beams.len()).filter(|&beam| live.may_end(beam)) {
            let ended = live.with(&live.candidate(beam, eos));
            if best.as_ref().is_none_or(|best| ended.score > best.score) {
                best = Some(ended);
            }
        }
        let next: Vec<Candidate> =
            live.best_continuations(n + 1).into_iter().filter(|c| c.id != eos).take(n).collect();
        let Some(best_live) = next.first() else { break };
        // Under a grammar no beam may have been at an end yet.
        if best.as_ref().is_some_and(|finished| best_live.score < finished.score)
            || step == options.max_tokens
        {
            break;
        }
        live.go_on(&next)?;
    }
    best.ok_or_else(|| crate::Error::model("beam search found no answer"))
}

/// The live beams of one row.
struct Live<'a> {
    generator: &'a Generator<'a>,
    prefix_len: usize,
    max_tokens: usize,
    beams: Vec<Beam<'a>>,
    caches: Vec<KvCache>,
    /// Log-probabilities of every next token, a row a beam.
    logprobs: Vec<Vec<f32>>,
}

impl<'a> Live<'a> {
    /// The `count` best continuations of each beam, all together, best first; the earlier beam, then the smaller id,
    /// among equals. The first `count` are the best of all beams.
    fn best_continuations(&self, count: usize) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = (0..self.beams.len()).flat_map(|b| self.top(b, count)).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all
    }

    /// The `count` best continuations of one beam. Padding rows of the table are no continuations.
    fn top(&self, beam: usize, count: usize) -> Vec<Candidate> {
        let row = &self.logprobs[beam];
        let mut ids: Vec<usize> = match self.allowed(beam) {
            Some(ids) => ids.into_iter().map(|id| id as usize).collect(),
            None => (0..self.generator.model().config().image_token_index.min(row.len())).collect(),
        };
        let likelier = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
        if count < ids.len() {
            ids.select_nth_unstable_by(count, likelier);
            ids.truncate(count);
        }
        ids.sort_unstable_by(likelier);
        ids.into_iter().map(|id| self.candidate(beam, id as u32)).collect()
    }

    /// The ids that a beam's grammar allows; none if it has no grammar.
    fn allowed(&self, beam: usize) -> Option<Vec<u32>> {
        let beam = &self.beams[beam];
        beam.grammar.as_ref().map(|grammar| grammar.allowed(self.max_tokens - beam.tokens.len()))
    }

    fn may_end(&self, beam: usize) -> bool {
        self.allowed(beam).is_none_or(|ids| ids.contains(&self.generator.eos()))
    }

    fn candidate(&self, beam: usize, id: u32) -> Candidate {
        let logprob = self.logprobs[beam][id as usize];
        Candidate { beam, id, logprob, score: self.beams[beam].score + logprob }
    }

    /// A beam and its continuation.
    fn with(&self, c: &Candidate) -> Beam<'a> {
        let mut next = self.beams[c.beam].clone();
        next.tokens.push(c.id);
        next.logprobs.push(c.logprob);
        // Log-probabilities are logits whose log-sum-exp is 0.
        next.coordinates.push(self.generator.coordinate(&self.logprobs[c.beam], 0.0, c.id));
        next.score = c.score;
        if let Some(grammar) = &mut next.grammar {
            grammar.accept(c.id);
        }
        next
    }

    /// Lives on with `next`: caches follow their beams, and the model reads the new tokens.
    fn go_on(&mut self, next: &[Candidate]) -> Result<()> {
        self.beams = next.iter().map(|c| self.with(c)).collect();
        // A cache is copied only for the second and later children of a beam.
        let mut caches: Vec<Option<KvCache>> =
            std::mem::take(&mut self.caches).into_iter().map(Some).collect();
        for (i, c) in next.iter().enumerate() {
            let last_child = next[i + 1..].iter().all(|other| other.beam != c.beam);
            let cache = if last_child { caches[c.beam].take() } else { caches[c.beam].clone() };
            self.caches.extend(cache);
        }
        let ids: Vec<u32> = next.iter().map(|c| c.id).collect();
        let mut turns: Vec<Turn<'_>> =
            self.caches.iter_mut().map(|cache| Turn { len: 1, prefix_len: self.prefix_len, cache }).collect();
        self.logprobs = log_softmax(&self.generator.step(&ids, &mut turns)?);
        Ok(())
    }
}

/// Log-probabilities of each row of `[rows, V]`.
fn log_softmax(logits: &Tensor) -> Vec<Vec<f32>> {
    let v = logits.shape()[1];
    let row = |row: &[f32]| {
        let total = log_sum_exp(row);
        row.iter().map(|&x| (f64::from(x) - total) as f32).collect()
    };
    logits.as_f32().chunks(v).map(row).collect()
}
