//! Any bytes as tokenizer.json or tokenizer.model: a tokenizer or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paligemma::text::Tokenizer;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let _ = if kind % 2 == 0 { Tokenizer::from_json_bytes(data) } else { Tokenizer::from_model_bytes(data) };
});
