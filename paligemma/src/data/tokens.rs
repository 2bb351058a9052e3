//! The text of an example as the model is trained on it: `[BOS] prefix "\n" | suffix [EOS]`.
//!
//! big_vision (configs/proj/paligemma/transfers/common.py, `combine_and_keep_train`) makes it one token longer than the
//! text length N, cutting off what is beyond; the model reads all but the last token and is to answer all but the first.
//! Only tokens of the suffix and EOS carry loss; everything up to the line break is seen by everything. There is no
//! padding here: a sequence is as long as it is.

use crate::text::{Tokenizer, prompt_ids, suffix_ids};
use crate::{Error, Result};

/// The ids of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// BOS, prefix, line break, suffix, EOS.
    pub ids: Vec<u32>,
    /// How many of them are BOS, prefix and line break: they attend to each other and carry no loss.
    pub num_prefix: usize,
    /// How many of the suffix and EOS were cut off.
    pub num_cut: usize,
}

impl Tokens {
    /// Tokenises an example for text length `text_len`, as recipes count it: BOS, prefix, line break, suffix and EOS,
    /// less the token that is only answered.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: a prefix that leaves no room for a token of the suffix, from which nothing could be
    /// learned. A tokenizer without BOS, EOS or line break.
    pub fn new(tokenizer: &Tokenizer, prefix: &str, suffix: &str, text_len: usize) -> Result<Tokens> {
        let mut ids = prompt_ids(tokenizer, prefix)?;
        let num_prefix = ids.len();
        let room = text_len.saturating_add(1);
        if num_prefix >= room {
            return Err(Error::input(format!(
                "the prefix has {num_prefix} tokens, BOS and line break included"
            ))
            .expected(format!("fewer than {room}, so that a token of the suffix fits into the text length"))
            .hint("raise the text length, or leave this example out"));
        }
        ids.extend(suffix_ids(tokenizer, suffix)?);
        let num_cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        Ok(Tokens { ids, num_prefix, num_cut })
    }

    /// A text without a picture or a prefix, as a language model learns it: `[BOS] text [EOS]`, all of it with loss.
    ///
    /// # Errors
    /// A tokenizer without BOS or EOS.
    pub fn of_text(tokenizer: &Tokenizer, text: &str, text_len: usize) -> Result<Tokens> {
        let mut ids = vec![tokenizer.bos()?];
        ids.extend(suffix_ids(tokenizer, text)?);
        let room = text_len.saturating_add(1).max(2);
        let num_cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        Ok(Tokens { ids, num_prefix: 1, num_cut })
    }

    /// What the model reads: all but the last id.
    pub fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// What it is to answer at each of [`Tokens::inputs`]: all but the first id.
    pub fn targets(&self) -> &[u32] {
        &self.ids[1..]
    }

    /// Which of [`Tokens::targets`] carry loss: the suffix and EOS.
    pub fn loss_mask(&self) -> impl ExactSizeIterator<Item = bool> {
        (1..self.ids.len()).map(|i| i >= self.num_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::stand_in_tokenizer;

    #[test]
    fn an_example_is_laid_out_as_big_vision_lays_it_out() {
        let tokenizer = Tokenizer::from_json_bytes(&stand_in_tokenizer(512, 512 + 1152).unwrap()).unwrap();
        let (bos, eos, newline) =
            (tokenizer.bos().unwrap(), tokenizer.eos().unwrap(), tokenizer.newline().unwrap());
        let prefix = tokenizer.encode("caption en").unwrap();
        let suffix = tokenizer.encode("a cat").unwrap();
        let whole = [&[bos], &prefix[..], &[newline], &suffix, &[eos]].concat();
        let num_prefix = prefix.len() + 2;
        let check = |text_len: usize, len: usize| {
            let tokens = Tokens::new(&tokenizer, "caption en", "a cat", text_len).unwrap();
            assert_eq!(tokens.ids, whole[..len], "{text_len}");
            assert_eq!((tokens.num_prefix, tokens.num_cut), (num_prefix, whole.len() - len), "{text_len}");
            assert_eq!(
                (tokens.inputs(), tokens.targets()),
                (&whole[..len - 1], &whole[1..len]),
                "{text_len}"
            );
            let carry: Vec<u32> = tokens
                .targets()
                .iter()
                .zip(tokens.loss_mask())
                .filter(|(_, has)| *has)
                .map(|(id, _)| *id)
                .collect();
            assert_eq!(carry, whole[num_prefix..len], "{text_len}");
        };
        check(128, whole.len());
        check(whole.len() - 1, whole.len());
        check(whole.len() - 2, whole.len() - 1);
        check(num_prefix, num_prefix + 1);
        let error = Tokens::new(&tokenizer, "caption en", "a cat", num_prefix - 1).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Input);
        assert!(error.what().contains(&format!("{num_prefix} tokens")), "{error}");
        let text = Tokens::of_text(&tokenizer, "a cat", 128).unwrap();
        assert_eq!(text.ids, [&[bos], &suffix[..], &[eos]].concat());
        assert_eq!((text.num_prefix, text.num_cut, text.loss_mask().all(|has| has)), (1, 0, true));
        let text = Tokens::of_text(&tokenizer, "a cat", suffix.len()).unwrap();
        assert_eq!((text.ids, text.num_cut), ([&[bos], &suffix[..]].concat(), 1));
        // An empty suffix still teaches the model to end.
        let tokens = Tokens::new(&tokenizer, "caption en", "", 128).unwrap();
        assert_eq!((tokens.ids.last(), tokens.loss_mask().filter(|has| *has).count()), (Some(&eos), 1));
    }
}
