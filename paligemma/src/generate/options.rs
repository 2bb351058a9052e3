//! What the caller may choose about an answer.

use crate::{Error, Result};

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The most tokens of an answer, its EOS included.
    pub max_tokens: usize,
    /// Greedy or random.
    pub sampling: Sampling,
    /// Beams; 1 is no beam search.
    pub beams: usize,
    /// Whose beam search.
    pub beam_rule: BeamRule,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_tokens: 128, sampling: Sampling::Greedy, beams: 1, beam_rule: BeamRule::Transformers }
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest; the smaller id where two are equal.
    Greedy,
    /// At random.
    Random {
        /// Logits are divided by this.
        temperature: f32,
        /// Only the k likeliest.
        top_k: Option<usize>,
        /// Only the likeliest that together reach this probability.
        top_p: Option<f32>,
        /// Equal seeds give equal answers.
        seed: u64,
    },
}

/// Whose beam search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeamRule {
    /// transformers' `num_beams=N, length_penalty=0, early_stopping=False`.
    Transformers,
    /// big_vision's `_beam_decode`: an EOS is scored for every live beam at every step.
    Reference,
}

impl Options {
    /// # Errors
    /// A value that means nothing, by its flag's name.
    pub fn check(&self) -> Result<()> {
        let wrong = |flag: &str, value: String, expected: &str| {
            Err(Error::usage(format!("{flag} is {value}")).expected(expected))
        };
        if self.max_tokens == 0 {
            return wrong("--max-tokens", "0".into(), "at least 1");
        }
        if !(1..=64).contains(&self.beams) {
            return wrong("--beams", self.beams.to_string(), "1 to 64");
        }
        if let Sampling::Random { temperature, top_k, top_p, .. } = self.sampling {
            if !(temperature > 0.0 && temperature.is_finite()) {
                return wrong("--temperature", temperature.to_string(), "0 (greedy) or a positive number");
            }
            if top_k == Some(0) {
                return wrong("--top-k", "0".into(), "at least 1");
            }
            if let Some(p) = top_p
                && !(p > 0.0 && p <= 1.0)
            {
                return wrong("--top-p", p.to_string(), "more than 0 and at most 1");
            }
            if self.beams > 1 {
                return Err(Error::usage("beam search and random sampling together are not supported")
                    .hint("drop --beams, or leave --temperature at 0"));
            }
        }
        Ok(())
    }
}
