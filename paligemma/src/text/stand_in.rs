//! A stand-in tokenizer for checkpoints of random weights: Gemma's layout of ids, without Gemma's pieces.
//!
//! It is a real `tokenizer.json`, which the Python packages load too: letters, digits, bytes and a few words,
//! so that any text can be said and any id be shown.

use serde_json::{Map, Value, json};

use super::tokenizer::{NUM_LOC, NUM_SEG, loc_and_seg_names};
use crate::{Error, Result};

/// Where Gemma's own file has them.
const NEWLINE: usize = 108;
const FIRST_BYTE: usize = 217;
/// The id after the last byte.
const AFTER_BYTES: usize = FIRST_BYTE + 256;

const CONTROL: [&str; 5] = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"];
const WORDS: &str = "a the is are in on of and to with at it no yes what where how many who color there \
    image picture photo man woman people person dog cat cow car bus tree house street beach water sky \
    red green blue white black yellow left right front back standing sitting caption answer ocr detect \
    segment question describe en de fr es it ja zh";

/// The bytes of a `tokenizer.json` with Gemma's ids: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, `<mask>` 4,
/// `"\n"` 108, the bytes from 217; then letters, digits, words and filler up to `loc0`, from there
/// `<loc0000>` to `<seg127>`, and `<image>` at `image_token_index`. A published checkpoint has `loc0` =
/// 256000 and `image_token_index` = 257152. Below 474 the same pieces stand closer together.
///
/// # Errors
/// Numbers that leave no room: `loc0` under 263, or an `image_token_index` before the end of `<seg127>`.
pub fn stand_in_tokenizer(loc0: usize, image_token_index: usize) -> Result<Vec<u8>> {
    let after_seg = loc0 + NUM_LOC + NUM_SEG;
    // The space at least comes after the bytes: without a piece of its own it would not be said back.
    let roomy = loc0 > AFTER_BYTES;
    let (newline, first_byte) = if roomy { (NEWLINE, FIRST_BYTE) } else { (5, 6) };
    if loc0 <= first_byte + 256 || image_token_index < after_seg || image_token_index >= 1 << 20 {
        return Err(Error::usage(format!(
            "a vocabulary with <loc0000> at {loc0} and <image> at {image_token_index} has no room"
        ))
        .expected("<loc0000> from 263 on and <image> at least 1152 ids later, below 1048576"));
    }
    let mut pieces: Vec<Option<String>> = vec![None; image_token_index + 1];
    for (id, name) in CONTROL.into_iter().enumerate() {
        pieces[id] = Some(name.to_owned());
    }
    pieces[newline] = Some("\n".to_owned());
    for byte in 0..256 {
        pieces[first_byte + byte] = Some(format!("<0x{byte:02X}>"));
    }
    for (i, name) in loc_and_seg_names().enumerate() {
        pieces[loc0 + i] = Some(name);
    }
    pieces[image_token_index] = Some("<image>".to_owned());

    // A word is merged letter by letter, so each of its beginnings is a piece. Only whole chains get in.
    let mut merges: Vec<[String; 2]> = Vec::new();
    let mut room = loc0 - (first_byte + 256);
    let mut at = first_byte + 256;
    let mut known = std::collections::HashSet::new();
    let mut put = |piece: String| {
        pieces[at] = Some(piece);
        at += 1;
    };
    let letters =
        std::iter::once('▁').chain('a'..='z').chain('0'..='9').chain('A'..='Z').chain(".,?!'-:;<>".chars());
    for letter in letters.take(room) {
        room -= 1;
        known.insert(letter.to_string());
        put(letter.to_string());
    }
    for word in WORDS.split_whitespace() {
        let word = format!("▁{word}");
        let ends = word.char_indices().map(|(at, c)| (at, at + c.len_utf8())).skip(1);
        let new: Vec<(usize, usize)> = ends.filter(|&(_, end)| !known.contains(&word[..end])).collect();
        let letters_known = word.chars().all(|c| known.contains(c.encode_utf8(&mut [0; 4]) as &str));
        if new.len() > room || !letters_known {
            continue;
        }
        room -= new.len();
        for (start, end) in new {
            merges.push([word[..start].to_owned(), word[start..end].to_owned()]);
            known.insert(word[..end].to_owned());
            put(word[..end].to_owned());
        }
    }

    let mut vocab = Map::new();
    let mut added = Vec::new();
    let mut num_unused = 0;
    for (id, piece) in pieces.into_iter().enumerate() {
        let piece = piece.unwrap_or_else(|| {
            num_unused += 1;
            format!("<unused{}>", num_unused - 1)
        });
        let special = id < CONTROL.len() || id == image_token_index;
        if special || (loc0..after_seg).contains(&id) {
            added.push(json!({
                "id": id, "content": piece, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }));
        }
        vocab.insert(piece, Value::from(id));
    }
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false,
        },
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    Ok(file.to_string().into_bytes())
}

/// The bytes of the `tokenizer_config.json` that transformers wants beside it to load a PaliGemma processor.
pub fn stand_in_tokenizer_config() -> Vec<u8> {
    let config = json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": false,
        "eos_token": "<eos>",
        "extra_special_tokens": {"image_token": "<image>"},
        "mask_token": "<mask>",
        "model_max_length": 1_000_000_000,
        "pad_token": "<pad>",
        "processor_class": "PaliGemmaProcessor",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    });
    format!("{config:#}\n").into_bytes()
}
