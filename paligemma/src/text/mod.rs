//! Text: the tokenizers and the prompt.

mod hugging_face;
mod prompt;
mod sentencepiece;
mod stand_in;
mod tokenizer;

pub use prompt::{LANGUAGES, Task, prompt_ids, suffix_ids};
pub use stand_in::{stand_in_tokenizer, stand_in_tokenizer_config};
pub use tokenizer::{DecodeStream, NUM_LOC, NUM_SEG, Tokenizer};
