//! `tokenizer.json` through the crate `tokenizers`, which is also the Python package underneath: the same
//! ids and the same text.
//!
//! The file is read and checked here and the crate is handed what has passed, because the crate trusts its
//! files (a merge longer than any piece panics) and because two rules of ours differ from it: control tokens
//! inside user text stay plain text, and `<loc>`/`<seg>` are always one id.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Decoder as _, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::tokenizer::{MAX_PIECE_BYTES, MAX_VOCAB, STAYS_PLAIN, loc_and_seg_names};
use crate::{Error, Result};

/// Gemma's largest has 34 MB.
const MAX_JSON_BYTES: usize = 128 << 20;
/// Gemma has 580,604 merges.
const MAX_MERGES: usize = 4 << 20;

/// Gemma's normalizer makes three bytes of one.
const MAX_GROWTH: usize = 256;

const NORMALIZERS: &[&str] =
    &["Sequence", "Replace", "Prepend", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip"];
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "Split",
    "Metaspace",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "CharDelimiterSplit",
];
/// Each works on one token after the other, or only at the start of the text: that is what lets an answer be
/// streamed token by token.
const DECODERS: &[&str] = &["Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];

/// A `tokenizer.json`.
#[derive(Debug)]
pub(super) struct HuggingFace {
    inner: tokenizers::Tokenizer,
    /// The piece of each id; ids may have gaps.
    pieces: Vec<Option<Box<str>>>,
    ids: HashMap<Box<str>, u32>,
    /// Ids that decoding drops: the file's special tokens, without `<loc>` and `<seg>`.
    dropped: HashSet<u32>,
}

#[derive(Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    vocab: Pieces,
    merges: Merges,
}

/// Only what names the kind of a file that could not be read.
#[derive(Deserialize)]
struct Peek {
    model: PeekModel,
}

#[derive(Deserialize)]
struct PeekModel {
    #[serde(rename = "type")]
    kind: String,
}

impl HuggingFace {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is broken, too large, not BPE, or that asks for something not supported here.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_JSON_BYTES {
            return Err(Error::model(format!("tokenizer.json has {} bytes", bytes.len()))
                .expected(format!("at most {} MiB", MAX_JSON_BYTES >> 20)));
        }
        // The kind comes first: another kind would otherwise be reported as a wrong type somewhere inside.
        if let Ok(Peek { model: PeekModel { kind } }) = serde_json::from_slice(bytes)
            && kind != "BPE"
        {
            return Err(Error::model(format!("tokenizer.json is of type {kind}, which is not supported"))
                .expected("type BPE, as all Gemma tokenizers are"));
        }
        let file: File = serde_json::from_slice(bytes).map_err(|e| {
            Error::model(format!("tokenizer.json cannot be read: {e}"))
                .expected("what the Python package `tokenizers` writes")
                .because(e)
        })?;
        Self::build(file)
    }

    fn build(file: File) -> Result<Self> {
        if let Some(version) = file.version.filter(|v| v != "1.0") {
            return Err(
                Error::model(format!("tokenizer.json is of version {version:?}")).expected("version \"1.0\"")
            );
        }
        let mut ids: HashMap<Box<str>, u32> = HashMap::with_capacity(file.model.vocab.0.len());
        let mut pieces: Vec<Option<Box<str>>> = vec![None; file.model.vocab.0.len()];
        for (piece, id) in &file.model.vocab.0 {
            place(&mut pieces, &mut ids, piece, *id)?;
        }
        // The crate numbers new tokens itself, from the number of pieces upward. A file that says otherwise
        // would get other ids here and there.
        let mut next = file.model.vocab.0.len() as u32;
        let mut added = file.added_tokens;
        for Added { id, token } in &added {
            check_piece(&token.content)?;
            match ids.get(token.content.as_str()) {
                Some(have) if have == id => {}
                Some(have) => {
                    return Err(Error::model(format!(
                        "added token {:?} has id {id} and id {have}",
                        token.content
                    )));
                }
                None if *id == next => {
                    place(&mut pieces, &mut ids, &token.content, *id)?;
                    next += 1;
                }
                None => {
                    return Err(Error::model(format!("added token {:?} has id {id}", token.content))
                        .expected(format!("id {next}, the next free one")));
                }
            }
        }
        // One id each, also where the file lacks them as added tokens or altogether.
        let have: HashSet<&str> = added.iter().map(|a| a.token.content.as_str()).collect();
        let missing: Vec<String> = loc_and_seg_names().filter(|n| !have.contains(n.as_str())).collect();
        for name in missing {
            let id = match ids.get(name.as_str()) {
                Some(id) => *id,
                None => {
                    let id = pieces.len() as u32;
                    place(&mut pieces, &mut ids, &name, id)?;
                    id
                }
            };
            added.push(Added { id, token: AddedToken::from(name, false).normalized(false) });
        }

        let loc_and_seg: HashSet<String> = loc_and_seg_names().collect();
        let is_named = |t: &AddedToken| loc_and_seg.contains(&t.content);
        // A special newline or run of spaces is no control token: it is how some trainers keep one whole.
        let control: HashSet<&str> = added
            .iter()
            .filter(|a| a.token.special && !is_named(&a.token) && !a.token.content.trim().is_empty())
            .map(|a| a.token.content.as_str())
            .chain(STAYS_PLAIN.iter().copied())
            .collect();
        let bpe = build_bpe(file.model, &ids, &control)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        if let Some(part) = checked("normalizer", file.normalizer, NORMALIZERS)? {
            check_growth("normalizer", &part)?;
            let part: NormalizerWrapper = parse("normalizer", part)?;
            inner.with_normalizer(Some(part)).map_err(|e| broken("normalizer", e))?;
        }
        if let Some(part) = checked("pre_tokenizer", file.pre_tokenizer, PRE_TOKENIZERS)? {
            let part: PreTokenizerWrapper = parse("pre_tokenizer", part)?;
            inner.with_pre_tokenizer(Some(part));
        }
        if let Some(part) = checked("decoder", file.decoder, DECODERS)? {
            check_decoder(&part)?;
            check_growth("decoder", &part)?;
            let part: DecoderWrapper = parse("decoder", part)?;
            inner.with_decoder(Some(part));
        }
        let matched = added.iter().map(|a| &a.token).filter(|t| !control.contains(t.content.as_str()));
        inner.add_tokens(matched.cloned().collect::<Vec<_>>()).map_err(|e| broken("added_tokens", e))?;
        let dropped = added
            .iter()
            .filter(|a| a.token.special && !is_named(&a.token))
            .map(|a| a.id)
            .chain(
                ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"].iter().filter_map(|n| ids.get(*n).copied()),
            )
            .collect();
        Ok(HuggingFace { inner, pieces, ids, dropped })
    }

    /// One more than the largest id.
    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The piece of an id as the file writes it.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize)?.as_deref()
    }

    /// The id whose piece is exactly `piece`.
    pub(super) fn id_of(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Text to ids.
    ///
    /// # Errors
    /// A part of the crate that refuses the text; none of the published files has one.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::input(format!("the text cannot be tokenised: {e}")).because(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids to text; special and unknown ids become nothing.
    pub(super) fn decode(&self, ids: impl IntoIterator<Item = u32>) -> String {
        let added = self.inner.get_added_vocabulary();
        let tokens: Vec<String> = ids
            .into_iter()
            .filter(|id| !self.dropped.contains(id))
            // An added token that is matched in normalised text is also decoded from it.
            .filter_map(|id| added.simple_id_to_token(id).or_else(|| self.piece(id).map(str::to_owned)))
            .collect();
        match self.inner.get_decoder() {
            // The decoders that are let through cannot fail.
            Some(decoder) => decoder.decode(tokens).unwrap_or_default(),
            None => tokens.join(" "),
        }
    }

    /// Whether the text of an id depends on the ids that follow: it is one byte of a character.
    fn is_open(&self, id: u32) -> bool {
        self.piece(id).is_some_and(is_byte)
    }

    /// Decodes one more id and appends the text that is complete by now.
    pub(super) fn push(&self, state: &mut Decoder, id: u32, out: &mut String) {
        if self.dropped.contains(&id) || self.piece(id).is_none() {
            return;
        }
        state.pending.push(id);
        if !self.is_open(id) {
            self.flush(state, out);
            state.last = Some(id);
        }
    }

    /// Appends the text of the ids held back.
    pub(super) fn flush(&self, state: &mut Decoder, out: &mut String) {
        // What stands at the start of a text is decoded otherwise than what stands inside it, so the token
        // before is decoded with the new ones, and its own text taken off again.
        let before = self.decode(state.last);
        let text = self.decode(state.last.into_iter().chain(state.pending.drain(..)));
        out.push_str(text.strip_prefix(before.as_str()).unwrap_or(&text));
    }
}

/// What decoding must remember between two ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Decoder {
    /// The last id whose text is settled.
    last: Option<u32>,
    /// Bytes since; one wrong byte makes the whole run unreadable, so they wait for its end.
    pending: Vec<u32>,
}

/// The crate's model without the control tokens: what is not in its table, text cannot become.
fn build_bpe(model: Model, ids: &HashMap<Box<str>, u32>, control: &HashSet<&str>) -> Result<BPE> {
    if model.dropout.is_some_and(|p| p != 0.0) {
        return Err(Error::model("tokenizer.json asks for dropout, which makes ids random")
            .expected("\"dropout\": null"));
    }
    for (name, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_ref().filter(|a| !a.is_empty()) {
            return Err(Error::model(format!("{name} {affix:?} in tokenizer.json is not supported"))
                .expected("null, as in all Gemma tokenizers"));
        }
    }
    let unk = model.unk_token.as_deref();
    if let Some(unk) = unk.filter(|u| !ids.contains_key(*u)) {
        return Err(Error::model(format!("the unknown token {unk:?} is not in the vocabulary")));
    }
    if model.ignore_merges == Some(true) {
        return Err(Error::model("ignore_merges in tokenizer.json is not supported")
            .expected("false, as in all Gemma tokenizers"));
    }
    let byte_fallback = model.byte_fallback.unwrap_or(false) && has_bytes(&model.vocab, ids)?;
    let is_control = |piece: &str| control.contains(piece);
    let mut merges = Vec::with_capacity(model.merges.0.len());
    for (rank, (left, right)) in model.merges.0.into_iter().enumerate() {
        let whole = format!("{left}{right}");
        for piece in [&left, &right, &whole] {
            if !ids.contains_key(piece.as_str()) {
                return Err(Error::model(format!(
                    "merge {rank}, {left:?} with {right:?}: {piece:?} is not in the vocabulary"
                )));
            }
        }
        if !is_control(&left) && !is_control(&right) && !is_control(&whole) {
            merges.push((left, right));
        }
    }
    let vocab: Vocab = ids
        .iter()
        .filter(|(piece, _)| !is_control(piece) || is_byte(piece) || Some(&***piece) == unk)
        .map(|(piece, id)| (piece.to_string(), *id))
        .collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        // Prompts seldom repeat, and the crate's cache lives as long as the thread.
        .cache_capacity(0)
        .fuse_unk(model.fuse_unk.unwrap_or(false))
        .byte_fallback(byte_fallback);
    if let Some(unk) = model.unk_token {
        builder = builder.unk_token(unk);
    }
    builder.build().map_err(|e| broken("model", e))
}

/// Whether the bytes are pieces of the model. The crate does not find those that are only added tokens, and
/// then falls back on nothing.
fn has_bytes(vocab: &Pieces, ids: &HashMap<Box<str>, u32>) -> Result<bool> {
    let codes = || (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let own = vocab.0.iter().filter(|(piece, _)| is_byte(piece)).count();
    let all = codes().filter(|code| ids.contains_key(code.as_str())).count();
    if own > 0 && own < all {
        return Err(Error::model(format!(
            "{own} of {all} bytes are pieces of the model, the others added tokens"
        ))
        .expected("all bytes in the model's vocabulary"));
    }
    Ok(own > 0)
}

fn is_byte(piece: &str) -> bool {
    piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>')
}

fn broken(part: &str, e: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::model(format!("the {part} of tokenizer.json: {e}")).because(e)
}

fn parse<T: serde::de::DeserializeOwned>(part: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| broken(part, e.into()))
}

/// Refuses a part whose type, or the type of one inside it, is not on the list. The reader of the JSON
/// has already bounded the depth.
fn checked(part: &str, value: Option<Value>, supported: &[&str]) -> Result<Option<Value>> {
    let Some(value) = value else { return Ok(None) };
    let kind = value.get("type").and_then(Value::as_str).ok_or_else(|| {
        Error::model(format!("the {part} of tokenizer.json has no type")).expected(supported.join(", "))
    })?;
    if !supported.contains(&kind) {
        return Err(Error::model(format!("the {part} {kind} of tokenizer.json is not supported"))
            .expected(supported.join(", ")));
    }
    for inside in ["normalizers", "pretokenizers", "decoders"] {
        for part_inside in value.get(inside).and_then(Value::as_array).into_iter().flatten() {
            checked(part, Some(part_inside.clone()), supported)?;
        }
    }
    Ok(Some(value))
}

/// Refuses parts that could blow a short text up beyond all memory.
fn check_growth(part: &str, value: &Value) -> Result<()> {
    fn growth(value: &Value) -> usize {
        let len = |key: &str| value.get(key).and_then(Value::as_str).map_or(0, str::len);
        // A regular expression may match between all bytes, and a prefix stand before each of them.
        let own = len("prepend") + len("content") + usize::from(value.pointer("/pattern/String").is_none());
        let inside =
            ["normalizers", "decoders"].iter().filter_map(|key| value.get(key)?.as_array()).flatten();
        inside.map(growth).fold(own.max(1), usize::saturating_mul)
    }
    match growth(value) {
        0..=MAX_GROWTH => Ok(()),
        times => {
            Err(Error::model(format!("the {part} of tokenizer.json can make text {times} times longer"))
                .expected(format!("at most {MAX_GROWTH} times")))
        }
    }
}

fn check_decoder(value: &Value) -> Result<()> {
    for inside in value.get("decoders").and_then(Value::as_array).into_iter().flatten() {
        check_decoder(inside)?;
    }
    let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    if number("start") > 1 || number("stop") > 0 {
        return Err(Error::model(
            "a Strip decoder in tokenizer.json that strips more than one leading character is not supported",
        )
        .expected("start 0 or 1, stop 0"));
    }
    if value.pointer("/pattern/Regex").is_some() {
        return Err(Error::model(
            "a Replace decoder with a regular expression in tokenizer.json is not supported",
        )
        .expected("a plain string"));
    }
    Ok(())
}

fn check_piece(piece: &str) -> Result<()> {
    if piece.is_empty() {
        return Err(Error::model("an added token is empty").expected("at least one character"));
    }
    if piece.len() > MAX_PIECE_BYTES {
        return Err(Error::model(format!("a piece has {} bytes", piece.len()))
            .expected(format!("at most {MAX_PIECE_BYTES}")));
    }
    Ok(())
}

fn place(
    pieces: &mut Vec<Option<Box<str>>>,
    ids: &mut HashMap<Box<str>, u32>,
    piece: &str,
    id: u32,
) -> Result<()> {
    let at = id as usize;
    if at >= MAX_VOCAB {
        return Err(
            Error::model(format!("piece {piece:?} has id {id}")).expected(format!("less than {MAX_VOCAB}"))
        );
    }
    if at >= pieces.len() {
        pieces.resize(at + 1, None);
    }
    if let Some(other) = &pieces[at] {
        return Err(Error::model(format!("pieces {other:?} and {piece:?} have the same id {id}")));
    }
    pieces[at] = Some(piece.into());
    ids.insert(piece.into(), id);
    Ok(())
}

/// `vocab`: pieces with their ids, bounded while they are read.
struct Pieces(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pieces;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of pieces to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
                let mut pieces = Vec::new();
                let mut seen = HashSet::new();
                while let Some((piece, id)) = map.next_entry::<String, u32>()? {
                    if pieces.len() == MAX_VOCAB {
                        return Err(A::Error::custom(format!("more than {MAX_VOCAB} pieces")));
                    }
                    if piece.len() > MAX_PIECE_BYTES {
                        return Err(A::Error::custom(format!(
                            "a piece of {} bytes, more than {MAX_PIECE_BYTES}",
                            piece.len()
                        )));
                    }
                    if !seen.insert(piece.clone()) {
                        return Err(A::Error::custom(format!("piece {piece:?} is there twice")));
                    }
                    pieces.push((piece, id));
                }
                Ok(Pieces(pieces))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// `merges`: pairs, or in older files two words in one string.
struct Merges(Vec<(String, String)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Words(String),
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Merges;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
                let mut merges = Vec::new();
                while let Some(merge) = seq.next_element::<Merge>()? {
                    if merges.len() == MAX_MERGES {
                        return Err(A::Error::custom(format!("more than {MAX_MERGES} merges")));
                    }
                    merges.push(match merge {
                        Merge::Pair(left, right) => (left, right),
                        Merge::Words(words) if words.starts_with("#version") => continue,
                        Merge::Words(words) => match words.split_once(' ') {
                            Some((left, right)) if !right.contains(' ') => {
                                (left.to_owned(), right.to_owned())
                            }
                            _ => return Err(A::Error::custom(format!("merge {words:?} is not two words"))),
                        },
                    });
                }
                Ok(Merges(merges))
            }
        }
        deserializer.deserialize_seq(Read)
    }
}
