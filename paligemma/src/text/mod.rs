//! Text: the tokenizers, the prompt, and answers that name objects.

mod answer;
mod extend;
mod hugging_face;
mod model_proto;
mod prompt;
mod sentencepiece;
mod stand_in;
mod tokenizer;
mod training;

pub use answer::{
    Bins, BoxScale, Fault, Found, LAST_BIN, Malformed, NUM_CODES, Object, Parsed, PixelBox, SEPARATOR,
    bins_to_pixels, parse_answer, parse_object, write_answer, write_codes,
};
pub use extend::with_loc_and_seg;
pub use prompt::{Asked, LANGUAGES, Task, prompt_ids, suffix_ids};
pub use stand_in::{stand_in_tokenizer, stand_in_tokenizer_config};
pub use tokenizer::{DecodeStream, NUM_LOC, NUM_SEG, Tokenizer, tokenizer_file};
pub use training::train_tokenizer;
