//! A tokenizer trained on texts: SentencePiece's BPE with Gemma's options (byte fallback, digits split, no
//! normalisation, no dummy prefix, white space kept), as a `tokenizer.model`.
//!
//! Each word's characters begin as symbols. The pair that is found most often becomes a piece, again and again; equally
//! frequent ones in the order shorter, then smaller. A piece is of one script, no digit is in one, and a space only at its
//! beginning (google/sentencepiece src/bpe_model_trainer.cc, trainer_interface.cc).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use prost::Message;

use super::model_proto::{ModelProto, ModelType, NormalizerSpec, SentencePiece, TrainerSpec, Type};
use super::tokenizer::loc_and_seg_names;
use crate::{Error, Result};

/// The longest piece in characters.
const LONGEST: usize = 16;
/// As it stands in pieces.
const SPACE: char = '▁';
/// Ids 0 to 5.
const FIRST: [(&str, Type); 6] = [
    ("<pad>", Type::Control),
    ("<eos>", Type::Control),
    ("<bos>", Type::Control),
    ("<unk>", Type::Unknown),
    ("<mask>", Type::UserDefined),
    ("\n", Type::UserDefined),
];

/// The bytes of a `tokenizer.model` of `num_pieces` pieces, and behind them `<loc0000>` to `<seg127>`. The first six are
/// `<pad>`, `<eos>`, `<bos>`, `<unk>`, `<mask>` and the line break; then come the 256 bytes, the pieces from the most
/// frequent on, and the characters. There are fewer pieces where the texts have no more. Tokens of places and masks in the
/// texts are passed over.
///
/// # Errors
/// [`crate::Kind::Usage`]: no room for a piece beside the bytes and the characters of the texts.
pub fn train_tokenizer(texts: impl IntoIterator<Item = String>, num_pieces: usize) -> Result<Vec<u8>> {
    let (words, characters) = words(texts);
    let fixed = FIRST.len() + 256 + characters.len();
    let Some(room) = num_pieces.checked_sub(fixed) else {
        return Err(Error::usage(format!("a tokenizer of {num_pieces} pieces has no room"))
            .expected(format!("{fixed} at least: {} characters are in the texts", characters.len())));
    };
    let piece = |piece: String, score: f32, kind: Type| SentencePiece {
        piece: Some(piece),
        score: Some(score),
        r#type: Some(kind.into()),
    };
    let mut pieces: Vec<SentencePiece> =
        FIRST.iter().map(|&(name, kind)| piece(name.to_owned(), 0.0, kind)).collect();
    pieces.extend((0..=255u8).map(|byte| piece(format!("<0x{byte:02X}>"), 0.0, Type::Byte)));
    let merged = merged(words, room);
    let scored = merged.into_iter().chain(characters.iter().map(char::to_string));
    pieces.extend(scored.enumerate().map(|(i, text)| piece(text, -(i as f32), Type::Normal)));
    pieces.extend(loc_and_seg_names().map(|name| piece(name, 0.0, Type::UserDefined)));
    Ok(model(pieces).encode_to_vec())
}

/// How often each word comes, and the characters from the most frequent on.
fn words(texts: impl IntoIterator<Item = String>) -> (Vec<(Vec<char>, u64)>, Vec<char>) {
    let symbols: HashSet<String> = loc_and_seg_names().collect();
    let mut words: HashMap<Vec<char>, u64> = HashMap::new();
    let mut characters: HashMap<char, u64> = HashMap::new();
    for text in texts {
        for line in text.split('\n') {
            for piece in without_symbols(line, &symbols) {
                let piece: Vec<char> = piece.chars().map(|c| if c == ' ' { SPACE } else { c }).collect();
                piece.iter().for_each(|&c| *characters.entry(c).or_default() += 1);
                // Spaces belong to the word that follows.
                let begins = |i: usize| i > 0 && piece[i] == SPACE && piece[i - 1] != SPACE;
                let mut start = 0;
                for end in (1..piece.len()).filter(|&i| begins(i)).chain([piece.len()]) {
                    if end > start {
                        *words.entry(piece[start..end].to_vec()).or_default() += 1;
                    }
                    start = end;
                }
            }
        }
    }
    let mut characters: Vec<(char, u64)> = characters.into_iter().collect();
    characters.sort_by_key(|&(c, count)| (Reverse(count), c));
    let mut words: Vec<(Vec<char>, u64)> = words.into_iter().collect();
    words.sort();
    (words, characters.into_iter().map(|(c, _)| c).collect())
}

/// The parts of a line between the symbols.
fn without_symbols<'a>(line: &'a str, symbols: &HashSet<String>) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(found) = line[at..].find('<') {
        let open = at + found;
        let end = line[open..].find('>').map_or(line.len(), |i| open + i + 1);
        if symbols.contains(&line[open..end]) {
            parts.push(&line[start..open]);
            (start, at) = (end, end);
        } else {
            at = open + 1;
        }
    }
    parts.push(&line[start..]);
    parts
}

/// Two symbols that stand side by side, by number.
type Pair = (u32, u32);

/// Up to `room` pieces, in the order in which they are made.
fn merged(words: Vec<(Vec<char>, u64)>, room: usize) -> Vec<String> {
    let mut symbols: Vec<Vec<char>> = Vec::new();
    let mut numbers: HashMap<char, u32> = HashMap::new();
    let mut words: Vec<(Vec<u32>, u64)> = words
        .into_iter()
        .map(|(word, count)| {
            let number = |c: char| {
                *numbers.entry(c).or_insert_with(|| {
                    symbols.push(vec![c]);
                    symbols.len() as u32 - 1
                })
            };
            (word.into_iter().map(number).collect(), count)
        })
        .collect();
    let mut counts: HashMap<Pair, u64> = HashMap::new();
    let mut places: HashMap<Pair, HashSet<usize>> = HashMap::new();
    for (i, (word, count)) in words.iter().enumerate() {
        for pair in pairs(word) {
            *counts.entry(pair).or_default() += count;
            places.entry(pair).or_default().insert(i);
        }
    }
    let mut made: Vec<String> = Vec::new();
    let mut known: HashSet<Vec<char>> = HashSet::new();
    let mut out: HashSet<Pair> = HashSet::new();
    while made.len() < room {
        let joined = |pair: &Pair| [&symbols[pair.0 as usize][..], &symbols[pair.1 as usize]].concat();
        let mut best: Option<(u64, Pair, Vec<char>)> = None;
        for (pair, &count) in &counts {
            let is_worse = best.as_ref().is_some_and(|best| count < best.0);
            if count == 0 || is_worse || out.contains(pair) {
                continue;
            }
            let piece = joined(pair);
            // Among equals, the pair itself decides where even the pieces are equal: hash maps have no order.
            let rank =
                |count: u64, pair: Pair, piece: &[char]| (Reverse(count), piece.len(), utf8(piece), pair);
            if best.as_ref().is_none_or(|best| rank(count, *pair, &piece) < rank(best.0, best.1, &best.2)) {
                best = Some((count, *pair, piece));
            }
        }
        let Some((_, pair, piece)) = best else { break };
        // A piece that cannot be, or was made in another way, is passed over.
        if !is_valid(&piece) || !known.insert(piece.clone()) {
            out.insert(pair);
            continue;
        }
        made.push(piece.iter().collect());
        symbols.push(piece);
        let number = symbols.len() as u32 - 1;
        for i in places.remove(&pair).unwrap_or_default() {
            let (word, count) = &mut words[i];
            for pair in pairs(word) {
                if let Some(of_pair) = counts.get_mut(&pair) {
                    *of_pair -= *count;
                }
            }
            *word = join(word, pair, number);
            for pair in pairs(word) {
                *counts.entry(pair).or_default() += *count;
                places.entry(pair).or_default().insert(i);
            }
        }
        counts.retain(|_, count| *count > 0);
    }
    made
}

fn utf8(piece: &[char]) -> String {
    piece.iter().collect()
}

/// The pairs of a word. Of three equal symbols in a row both pairs count, though one alone can be joined.
fn pairs(word: &[u32]) -> impl Iterator<Item = Pair> {
    word.windows(2).map(|two| (two[0], two[1]))
}

fn join(word: &[u32], pair: Pair, number: u32) -> Vec<u32> {
    let mut joined = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        if word.get(at + 1).is_some_and(|&next| (word[at], next) == pair) {
            joined.push(number);
            at += 2;
        } else {
            joined.push(word[at]);
            at += 1;
        }
    }
    joined
}

/// Whether characters may be one piece.
fn is_valid(piece: &[char]) -> bool {
    if piece.len() > LONGEST || piece.contains(&'\t') || piece.contains(&'\0') {
        return false;
    }
    let spaces = piece.iter().take_while(|&&c| c == SPACE).count();
    // One space before a word, or nothing but spaces.
    if piece[spaces..].contains(&SPACE) || (spaces > 1 && spaces < piece.len()) {
        return false;
    }
    if piece.iter().any(|c| matches!(c, '0'..='9' | '０'..='９')) {
        return false;
    }
    let mut scripts = piece[spaces..].iter().map(|&c| script(c));
    let first = scripts.next();
    scripts.all(|other| Some(other) == first)
}

/// The script of a character, as far as alphabets go that stand side by side in our texts; all else is common.
fn script(c: char) -> u8 {
    match c {
        'a'..='z' | 'A'..='Z' | 'ª' | 'º' | 'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ʸ' | 'Ḁ'..='ỿ' => 1,
        'Ͱ'..='ͽ' | 'Ά' | 'Έ'..='Ͽ' | 'ἀ'..='῾' => 2,
        'Ѐ'..='ԯ' => 3,
        'Ա'..='֏' => 4,
        '֑'..='ת' => 5,
        'ؠ'..='ۿ' => 6,
        'ऀ'..='ॣ' => 7,
        'ก'..='๛' => 8,
        '가'..='힣' | 'ᄀ'..='ᇿ' => 9,
        // Japanese writes with three, and SentencePiece takes them for one.
        'ぁ'..='ゖ' | 'ァ'..='ヺ' | 'ー' | '々' | '㐀'..='䶿' | '一'..='鿿' => 10,
        _ => 0,
    }
}

/// The file, with the specifications that readers ask for.
fn model(pieces: Vec<SentencePiece>) -> ModelProto {
    let name = |name: &str| Some(name.to_owned());
    ModelProto {
        trainer_spec: Some(TrainerSpec {
            model_type: Some(ModelType::Bpe.into()),
            vocab_size: i32::try_from(pieces.len()).ok(),
            split_digits: Some(true),
            allow_whitespace_only_pieces: Some(true),
            byte_fallback: Some(true),
            unk_id: Some(3),
            bos_id: Some(2),
            eos_id: Some(1),
            pad_id: Some(0),
            unk_piece: name("<unk>"),
            bos_piece: name("<bos>"),
            eos_piece: name("<eos>"),
            pad_piece: name("<pad>"),
            ..TrainerSpec::default()
        }),
        normalizer_spec: Some(NormalizerSpec {
            name: name("identity"),
            add_dummy_prefix: Some(false),
            remove_extra_whitespaces: Some(false),
            escape_whitespaces: Some(true),
            ..NormalizerSpec::default()
        }),
        pieces,
        ..ModelProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Tokenizer;

    /// Texts, and what SentencePiece made of them: pieces, then the ids of each text.
    fn golden() -> (Vec<String>, Vec<String>, Vec<Vec<u32>>) {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../goldens/tokenizer/training.json")).unwrap();
        let list = |key: &str| golden[key].as_array().unwrap().clone();
        let texts = list("texts").iter().map(|v| v.as_str().unwrap().to_owned()).collect();
        let pieces = list("pieces").iter().map(|v| v.as_str().unwrap().to_owned()).collect();
        let ids = list("ids")
            .into_iter()
            .map(|v| v.as_str().unwrap().split(' ').map(|n| n.parse().unwrap()).collect());
        (texts, pieces, ids.collect())
    }

    #[test]
    fn pieces_and_ids_are_those_of_sentencepiece() {
        let (texts, pieces, ids) = golden();
        let bytes = train_tokenizer(texts.clone(), 6 + 256 + pieces.len()).unwrap();
        let tokenizer = Tokenizer::from_model_bytes(&bytes).unwrap();
        assert_eq!(tokenizer.vocab_size(), 6 + 256 + pieces.len() + 1152);
        let all: Vec<u32> = (262..262 + pieces.len() as u32).collect();
        for (i, (got, want)) in tokenizer.pieces(&all).iter().zip(&pieces).enumerate() {
            assert_eq!(got, want, "piece {i}");
        }
        for (text, want) in texts.iter().zip(&ids) {
            assert_eq!(&tokenizer.encode(text).unwrap(), want, "{text}");
            assert_eq!(&tokenizer.decode(want), text);
        }
    }

    #[test]
    fn what_is_no_word_keeps_its_place() {
        let text = "detect a star\n<loc0000><loc0001><loc0002><loc1023> star ; 1234 <loc é".to_owned();
        let bytes = train_tokenizer([text.clone()], 300).unwrap();
        let tokenizer = Tokenizer::from_model_bytes(&bytes).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        let pieces = tokenizer.pieces(&ids);
        for whole in ["\n", "<loc0000>", "<loc1023>", "1", "2", "3", "4"] {
            assert!(pieces.iter().any(|piece| piece == whole), "{whole}: {pieces:?}");
        }
        // A character that was never seen is said in bytes.
        let ids = tokenizer.encode("猫").unwrap();
        assert_eq!((ids.len(), tokenizer.decode(&ids).as_str()), (3, "猫"));
        assert!(train_tokenizer([text], 270).unwrap_err().to_string().contains("no room"));
    }
}
