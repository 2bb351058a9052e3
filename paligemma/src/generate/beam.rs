//! Beam search by two rules: transformers' and big_vision's.
//!
//! Both sum log-probabilities without a length penalty. Sums are taken in f32, as the references do.

use super::{Answer, BeamRule, FinishReason, Generator, Options};
use crate::{
    Result,
    model::{KvCache, Turn},
};
use paligemma_tensor::{Tensor, log_sum_exp};

/// An unfinished or finished hypothesis.
#[derive(Clone)]
struct Beam {
    /// EOS included where it was chosen.
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    score: f32,
}

impl Beam {
    fn with(&self, id: u32, logprob: f32) -> Beam {
        let mut next = self.clone();
        next.tokens.push(id);
        next.logprobs.push(logprob);
        next.score += logprob;
        next
    }
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
        beams: vec![Beam { tokens: Vec::new(), logprobs: Vec::new(), score: 0.0 }],
        caches: vec![cache],
        logprobs: log_softmax(&first),
    };
    let best = match options.beam_rule {
        BeamRule::Transformers => transformers(&mut live, options)?,
        BeamRule::Reference => reference(&mut live, options)?,
    };
    let finish_reason =
        if best.tokens.last() == Some(&generator.eos()) { FinishReason::Eos } else { FinishReason::Length };
    let mut answer =
        Answer { tokens: best.tokens, logprobs: best.logprobs, score: best.score, finish_reason };
    if finish_reason == FinishReason::Eos {
        answer.tokens.pop();
        answer.logprobs.pop();
    }
    Ok(answer)
}

/// transformers' `_beam_search` for one row: the top 2N continuations of all beams; an EOS finishes a beam only among
/// the first N of them; at the maximum length the live ones compete; it ends when the best live beam cannot pass the
/// worst of N finished ones.
fn transformers(live: &mut Live<'_>, options: &Options) -> Result<Beam> {
    let n = options.beams;
    let eos = live.generator.eos();
    let mut finished: Vec<Beam> = Vec::new();
    for step in 1.. {
        let mut top = live.best_continuations(2 * n);
        top.truncate(2 * n);
        let at_end = step == options.max_tokens;
        let ends = |c: &Candidate| c.id == eos || at_end;
        for c in top.iter().take(n).filter(|c| ends(c)) {
            finished.push(live.beams[c.beam].with(c.id, c.logprob));
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
fn reference(live: &mut Live<'_>, options: &Options) -> Result<Beam> {
    let n = options.beams;
    let eos = live.generator.eos();
    let mut best: Option<Beam> = None;
    for step in 1.. {
        for (beam, logprobs) in live.beams.iter().zip(&live.logprobs) {
            let ended = beam.with(eos, logprobs[eos as usize]);
            if best.as_ref().is_none_or(|best| ended.score > best.score) {
                best = Some(ended);
            }
        }
        let next: Vec<Candidate> =
            live.best_continuations(n + 1).into_iter().filter(|c| c.id != eos).take(n).collect();
        let (Some(finished), Some(best_live)) = (&best, next.first()) else { break };
        if best_live.score < finished.score || step == options.max_tokens {
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
    beams: Vec<Beam>,
    caches: Vec<KvCache>,
    /// Log-probabilities of every next token, a row a beam.
    logprobs: Vec<Vec<f32>>,
}

impl Live<'_> {
    /// The `count` best continuations of each beam, all together, best first; the earlier beam, then the smaller id,
    /// among equals. The first `count` are the best of all beams.
    fn best_continuations(&self, count: usize) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = (0..self.beams.len()).flat_map(|b| self.top(b, count)).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all
    }

    /// The `count` best continuations of one beam. Padding rows of the table are no continuations.
    fn top(&self, beam: usize, count: usize) -> Vec<Candidate> {
        let choices = self.generator.model().config().image_token_index;
        let row = &self.logprobs[beam];
        let mut ids: Vec<usize> = (0..choices.min(row.len())).collect();
        let likelier = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
        if count < ids.len() {
            ids.select_nth_unstable_by(count, likelier);
            ids.truncate(count);
        }
        ids.sort_unstable_by(likelier);
        let score = self.beams[beam].score;
        ids.into_iter()
            .map(|id| Candidate { beam, id: id as u32, logprob: row[id], score: score + row[id] })
            .collect()
    }

    /// Lives on with `next`: caches follow their beams, and the model reads the new tokens.
    fn go_on(&mut self, next: &[Candidate]) -> Result<()> {
        self.beams = next.iter().map(|c| self.beams[c.beam].with(c.id, c.logprob)).collect();
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
