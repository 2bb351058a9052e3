//! Any bytes as tokenizer.json or tokenizer.model: an error, or a tokenizer that reads and says any text; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paligemma::text::Tokenizer;

/// What a user may type: spaces, digits, line breaks, control tokens, characters of one to four bytes, nothing.
const TEXTS: [&str; 5] =
    ["", "caption en", "  a\u{0}\n\n1234 <loc0001><seg127><bos>", "é世界😀\u{301}\u{200d}", "▁▁<unk>\u{ffff}"];

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let read = if kind % 2 == 0 { Tokenizer::from_json_bytes(data) } else { Tokenizer::from_model_bytes(data) };
    let Ok(tokenizer) = read else { return };
    for text in TEXTS {
        if let Ok(ids) = tokenizer.encode(text) {
            let _ = tokenizer.pieces(&ids);
            let mut stream = tokenizer.decode_stream();
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
    }
    // Ids that no text gave: an answer may have any.
    let mut stream = tokenizer.decode_stream();
    for id in data.iter().take(64).map(|&byte| u32::from(byte) * 1001) {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
});
