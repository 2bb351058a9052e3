//! SentencePiece BPE read from a `tokenizer.model`: the ids and texts that the Python package
//! `sentencepiece` gives.
//!
//! The merging is written here and not handed to a rank-list BPE, because the two rules differ: SentencePiece
//! merges by the score of the *resulting piece*, equal scores from left to right whatever the split, never
//! across user-defined symbols, and takes apart pieces marked unused. A rank list cannot say these things, and
//! files turned into one differ on runs of spaces and newlines.
//! Reference: google/sentencepiece src/{bpe_model,normalizer,model_interface,sentencepiece_processor}.cc.

use std::collections::{BinaryHeap, HashMap, HashSet};

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use prost::Message;

use super::model_proto::{ModelProto, ModelType, NormalizerSpec, Type};
use super::tokenizer::{MAX_PIECE_BYTES, MAX_VOCAB, STAYS_PLAIN, loc_and_seg_names};
use crate::{Error, Result};

/// Gemma's file has 4.2 MB.
const MAX_MODEL_BYTES: usize = 64 << 20;
/// User-defined symbols are compiled into an automaton of about twenty bytes for each of theirs.
const MAX_SYMBOL_BYTES: usize = 4 << 20;
/// The longest replacement in Unicode's own tables makes eleven bytes of one.
const MAX_GROWTH: usize = 256;
/// How SentencePiece writes a space inside a piece.
const SPACE: &str = "▁";
/// What the reference lets a malformed byte become.
const REPLACEMENT: char = '\u{FFFD}';

/// A SentencePiece BPE model with `<loc>` and `<seg>` appended where the file lacks them.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: Vec<Piece>,
    /// Pieces that text can become: normal, user-defined and unused ones.
    mergeable: AHashMap<String, u32>,
    /// Length in bytes of the longest of them.
    longest: usize,
    has_unused: bool,
    /// User-defined symbols: found first, longest first, never normalised, never merged.
    symbols: Option<AhoCorasick>,
    /// The id of each byte's piece, where the file has byte fallback.
    bytes: Option<Box<[u32; 256]>>,
    unk: u32,
    /// What an unknown id becomes in decoded text.
    unk_surface: String,
    normalizer: Normalizer,
}

#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: Type,
}

impl SentencePiece {
    /// Reads the protocol-buffer bytes of a `tokenizer.model`.
    ///
    /// # Errors
    /// A file that is broken, too large, not BPE, or that asks for something not supported here.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        check_wire(bytes)?;
        let proto = ModelProto::decode(bytes).map_err(|e| {
            Error::model(format!("the SentencePiece model cannot be read: {e}"))
                .expected("the protocol buffer that `sentencepiece` writes")
                .because(e)
        })?;
        let (Some(trainer), Some(spec)) = (&proto.trainer_spec, &proto.normalizer_spec) else {
            return Err(Error::model("the SentencePiece model has no trainer or normalizer specification")
                .expected("both, as `sentencepiece` writes them")
                .hint("the file may be cut short"));
        };
        if trainer.model_type() != ModelType::Bpe {
            return Err(Error::model(format!(
                "the SentencePiece model is of type {:?}, which is not supported",
                trainer.model_type()
            ))
            .expected("type Bpe, as all Gemma tokenizers are"));
        }
        if trainer.treat_whitespace_as_suffix() {
            return Err(Error::model("treat_whitespace_as_suffix is not supported")
                .expected("a model whose spaces stand before words"));
        }
        if proto.denormalizer_spec.as_ref().is_some_and(|d| !d.precompiled_charsmap().is_empty()) {
            return Err(Error::model("a denormalizer in a SentencePiece model is not supported")
                .expected("a model without denormalizer_spec"));
        }
        let mut pieces = Vec::with_capacity(proto.pieces.len() + 1152);
        for (id, p) in proto.pieces.iter().enumerate() {
            let score = p.score();
            if score.is_nan() {
                return Err(Error::model(format!("the score of piece {id} is not a number")));
            }
            // Adding zero turns -0 into 0, so that equal scores also compare equal.
            pieces.push(Piece { text: p.piece().to_owned(), score: score + 0.0, kind: p.r#type() });
        }
        append_loc_and_seg(&mut pieces);
        Self::new(pieces, trainer.byte_fallback(), trainer.unk_surface().to_owned(), spec)
    }

    fn new(
        pieces: Vec<Piece>,
        byte_fallback: bool,
        unk_surface: String,
        spec: &NormalizerSpec,
    ) -> Result<Self> {
        let mut seen = HashSet::with_capacity(pieces.len());
        let mut mergeable = AHashMap::with_capacity(pieces.len());
        let mut symbols: Vec<&str> = Vec::new();
        let mut byte_ids = [None; 256];
        let mut unk = None;
        for (id, piece) in (0u32..).zip(&pieces) {
            let text = piece.text.as_str();
            if text.is_empty() {
                return Err(Error::model(format!("piece {id} is empty")).expected("at least one character"));
            }
            // The reference keeps ordinary and reserved names apart; a name in both would be ambiguous.
            if !seen.insert(text) {
                return Err(Error::model(format!("piece {text:?} is there twice (again as id {id})")));
            }
            let plain = STAYS_PLAIN.contains(&text);
            match piece.kind {
                Type::Normal | Type::UserDefined | Type::Unused if plain => {}
                Type::UserDefined => {
                    symbols.push(text);
                    mergeable.insert(text.to_owned(), id);
                }
                Type::Normal | Type::Unused => {
                    mergeable.insert(text.to_owned(), id);
                }
                Type::Unknown if unk.is_some() => {
                    return Err(Error::model(format!("a second unknown piece, {text:?} (id {id})")));
                }
                Type::Unknown => unk = Some(id),
                Type::Control => {}
                Type::Byte => {
                    let byte = byte_of(text).ok_or_else(|| {
                        Error::model(format!("byte piece {text:?} (id {id}) names no byte"))
                            .expected("<0x00> to <0xFF>")
                    })?;
                    byte_ids[usize::from(byte)] = Some(id);
                }
            }
        }
        let unk = unk.ok_or_else(|| Error::model("the SentencePiece model has no unknown piece"))?;
        let num_bytes = byte_ids.iter().flatten().count();
        let bytes = match (byte_fallback, num_bytes) {
            (true, 256) => Some(Box::new(byte_ids.map(|id| id.unwrap_or(unk)))),
            (false, 0) => None,
            _ => {
                return Err(Error::model(format!(
                    "byte fallback is {byte_fallback} and there are {num_bytes} byte pieces"
                ))
                .expected("byte fallback with 256 byte pieces, or none of both"));
            }
        };
        if symbols.iter().map(|s| s.len()).sum::<usize>() > MAX_SYMBOL_BYTES {
            return Err(Error::model("the user-defined symbols are too long together")
                .expected(format!("at most {} MiB", MAX_SYMBOL_BYTES >> 20)));
        }
        let symbols = if symbols.is_empty() {
            None
        } else {
            Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .start_kind(StartKind::Anchored)
                    .build(&symbols)
                    .map_err(|e| Error::model(format!("the user-defined symbols: {e}")).because(e))?,
            )
        };
        Ok(SentencePiece {
            longest: mergeable.keys().map(String::len).max().unwrap_or(0),
            has_unused: pieces.iter().any(|p| p.kind == Type::Unused),
            normalizer: Normalizer::new(spec)?,
            pieces,
            mergeable,
            symbols,
            bytes,
            unk,
            unk_surface,
        })
    }

    /// Number of ids, `<loc>` and `<seg>` included.
    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The piece of an id as the file writes it.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(|p| p.text.as_str())
    }

    /// The id whose piece is exactly `piece`, of whatever kind.
    pub(super) fn id_of(&self, piece: &str) -> Option<u32> {
        match self.mergeable.get(piece) {
            Some(&id) => Some(id),
            None => self.pieces.iter().position(|p| p.text == piece).map(|id| id as u32),
        }
    }

    /// Text to ids. Time grows as n log n with the length of the text.
    ///
    /// # Errors
    /// A text of 4 GiB; a normalisation table in the file that points outside itself.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let text = self.normalizer.normalize(text, self.symbols.as_ref())?;
        if text.len() >= NONE as usize {
            return Err(
                Error::input(format!("the text has {} bytes", text.len())).expected("less than 4 GiB")
            );
        }
        let mut ids = Vec::new();
        let mut after_unknown = false;
        for piece in self.merge(&text) {
            // An unused piece that no merge has made cannot fall apart, and is as good as none.
            let known =
                self.mergeable.get(piece).filter(|&&id| self.pieces[id as usize].kind != Type::Unused);
            match known {
                Some(&id) => {
                    ids.push(id);
                    after_unknown = false;
                }
                None => {
                    match &self.bytes {
                        Some(bytes) => ids.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                        // A run of unknown characters is one unknown token.
                        None if after_unknown => {}
                        None => ids.push(self.unk),
                    }
                    after_unknown = true;
                }
            }
        }
        Ok(ids)
    }

    /// Splits normalised text into pieces: characters and user-defined symbols, merged best score first.
    fn merge<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut parts: Vec<Part> = Vec::with_capacity(text.len());
        let (mut at, mut after_symbol) = (0, true);
        while at < text.len() {
            let symbol = self.symbols.as_ref().and_then(|s| longest_at(s, text, at));
            let end = symbol.unwrap_or_else(|| at + char_len(text, at));
            let index = parts.len() as u32;
            // Links that merging may follow: none leads to or from a symbol.
            let prev = if after_symbol || symbol.is_some() { NONE } else { index - 1 };
            if prev != NONE {
                parts[prev as usize].next = index;
            }
            parts.push(Part { start: at as u32, end: end as u32, prev, next: NONE });
            after_symbol = symbol.is_some();
            at = end;
        }
        let of = |part: Part| &text[part.start as usize..part.end as usize];
        let mut splits: HashMap<&str, (&str, &str)> = HashMap::new();
        let mut agenda: BinaryHeap<Merge> = BinaryHeap::new();
        let mut consider = |parts: &[Part], left: u32, right: u32, agenda: &mut BinaryHeap<Merge>| {
            let (l, r) = (parts[left as usize], parts[right as usize]);
            let size = r.end - l.start;
            if size as usize > self.longest {
                return;
            }
            let whole = of(Part { end: r.end, ..l });
            let Some(&id) = self.mergeable.get(whole) else { return };
            let piece = &self.pieces[id as usize];
            agenda.push(Merge { urgency: urgency(piece.score, left), right, size });
            if piece.kind == Type::Unused {
                splits.insert(whole, (of(l), of(r)));
            }
        };
        for (left, part) in (0u32..).zip(&parts) {
            if part.next != NONE {
                consider(&parts, left, part.next, &mut agenda);
            }
        }
        while let Some(Merge { urgency, right, size }) = agenda.pop() {
            let left = !(urgency as u32);
            let (l, r) = (parts[left as usize], parts[right as usize]);
            // An entry is stale once either side has been merged otherwise.
            if l.is_gone() || r.is_gone() || l.len() + r.len() != size {
                continue;
            }
            parts[left as usize] = Part { end: r.end, next: r.next, ..l };
            parts[right as usize].end = r.start;
            if r.next != NONE {
                parts[r.next as usize].prev = left;
                consider(&parts, left, r.next, &mut agenda);
            }
            if l.prev != NONE {
                consider(&parts, l.prev, left, &mut agenda);
            }
        }
        let whole = parts.iter().filter(|p| !p.is_gone()).map(|p| of(*p));
        if self.has_unused { self.take_unused_apart(whole, &splits) } else { whole.collect() }
    }

    /// A piece marked unused may be merged through but not stay: it falls back into its two halves.
    fn take_unused_apart<'t>(
        &self,
        whole: impl Iterator<Item = &'t str>,
        splits: &HashMap<&'t str, (&'t str, &'t str)>,
    ) -> Vec<&'t str> {
        let mut out = Vec::new();
        for piece in whole {
            let mut stack = vec![piece];
            while let Some(piece) = stack.pop() {
                let unused = self
                    .mergeable
                    .get(piece)
                    .is_some_and(|&id| self.pieces[id as usize].kind == Type::Unused);
                match splits.get(piece).filter(|_| unused) {
                    Some((left, right)) => stack.extend([right, left]),
                    None => out.push(piece),
                }
            }
        }
        out
    }

    /// A decoder at the start of a text.
    pub(super) fn decoder(&self) -> Decoder {
        Decoder { bytes: Vec::new(), at_start: true, start_space_eaten: false, has_text: false }
    }

    /// Decodes one more id and appends the text that is complete by now.
    pub(super) fn push(&self, state: &mut Decoder, id: u32, out: &mut String) {
        let Some(piece) = self.pieces.get(id as usize) else { return };
        let start = out.len();
        if piece.kind == Type::Byte {
            state.bytes.extend(byte_of(&piece.text));
            state.take_whole_characters(out);
            state.has_text |= out.len() > start;
            return;
        }
        state.flush(out);
        state.has_text |= out.len() > start;
        if state.start_space_eaten || state.has_text {
            state.at_start = false;
        }
        state.start_space_eaten = false;
        match piece.kind {
            Type::Control => {}
            Type::Unknown => out.push_str(&self.unk_surface),
            _ => {
                let n = &self.normalizer;
                let mut text = piece.text.as_str();
                if state.at_start
                    && (n.add_dummy_prefix || n.remove_extra_whitespaces)
                    && let Some(rest) = text.strip_prefix(SPACE)
                {
                    text = rest;
                    // Where extra spaces are removed, all that lead are eaten, not only the first.
                    state.start_space_eaten = !n.remove_extra_whitespaces;
                }
                out.push_str(&text.replace(SPACE, " "));
            }
        }
        state.has_text |= out.len() > start;
    }
}

/// What decoding must remember between two ids.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    /// Bytes of a character that is not yet whole.
    bytes: Vec<u8>,
    at_start: bool,
    start_space_eaten: bool,
    has_text: bool,
}

impl Decoder {
    /// Moves what is decided from the bytes to the text: whole characters, and � for each byte that can no
    /// longer belong to one.
    fn take_whole_characters(&mut self, out: &mut String) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    out.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(e) => {
                    let whole = e.valid_up_to();
                    let bad = e.error_len().unwrap_or(0);
                    out.push_str(&String::from_utf8_lossy(&self.bytes[..whole]));
                    out.extend(std::iter::repeat_n(REPLACEMENT, bad));
                    self.bytes.drain(..whole + bad);
                    if bad == 0 {
                        return;
                    }
                }
            }
        }
    }

    /// The run of bytes is over: what is left of it can no longer become a character.
    pub(super) fn flush(&mut self, out: &mut String) {
        out.extend(self.bytes.drain(..).map(|_| REPLACEMENT));
    }
}

/// No neighbour to merge with.
const NONE: u32 = u32::MAX;

/// A stretch of the text that is one piece for now; small, because there is one for each character.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: u32,
    end: u32,
    prev: u32,
    next: u32,
}

impl Part {
    fn len(self) -> u32 {
        self.end - self.start
    }
    fn is_gone(self) -> bool {
        self.end == self.start
    }
}

/// Two neighbours that would make a piece, the most urgent first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    urgency: u64,
    right: u32,
    size: u32,
}

/// The best score is the most urgent, among equals the leftmost.
fn urgency(score: f32, left: u32) -> u64 {
    let bits = score.to_bits();
    // As unsigned numbers, the bits of floats are in order once the negative ones are turned round.
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!left)
}

/// As the reference appends them (big_vision/pp/ops_text.py, `_add_pieces`): a name that is there becomes
/// user-defined where it stands, a new one goes to the end.
fn append_loc_and_seg(pieces: &mut Vec<Piece>) {
    let places: HashMap<String, usize> =
        pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id)).collect();
    for text in loc_and_seg_names() {
        let piece = Piece { text, score: 0.0, kind: Type::UserDefined };
        match places.get(&piece.text) {
            Some(&id) => pieces[id] = piece,
            None => pieces.push(piece),
        }
    }
}

/// `<0x1F>` → 0x1F.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let valid = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    valid.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The end of the longest symbol that starts at `at`.
fn longest_at(symbols: &AhoCorasick, text: &str, at: usize) -> Option<usize> {
    symbols.find(Input::new(text).range(at..).anchored(Anchored::Yes)).map(|m| m.end())
}

/// Length in bytes of the character at `at`.
fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(1, char::len_utf8)
}

/// How text is changed before it is split (`normalizer_spec`).
#[derive(Debug)]
struct Normalizer {
    table: Option<CharsMap>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Normalizer {
    fn new(spec: &NormalizerSpec) -> Result<Self> {
        let table = match spec.precompiled_charsmap() {
            [] => None,
            blob => Some(CharsMap::from_bytes(blob)?),
        };
        Ok(Normalizer {
            table,
            add_dummy_prefix: spec.add_dummy_prefix(),
            remove_extra_whitespaces: spec.remove_extra_whitespaces(),
            escape_whitespaces: spec.escape_whitespaces(),
        })
    }

    fn normalize(&self, text: &str, symbols: Option<&AhoCorasick>) -> Result<String> {
        let mut out = String::with_capacity(text.len() + text.len() / 2);
        let space = if self.escape_whitespaces { SPACE } else { " " };
        let mut at = 0;
        if self.remove_extra_whitespaces {
            while at < text.len() {
                let (part, end) = self.prefix(text, at, symbols)?;
                if part != " " {
                    break;
                }
                at = end;
            }
        }
        if at == text.len() {
            return Ok(out);
        }
        if self.add_dummy_prefix {
            out.push_str(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while at < text.len() {
            let (part, end) = self.prefix(text, at, symbols)?;
            let part = if after_space { part.trim_start_matches(' ') } else { part };
            for c in part.chars() {
                if c == ' ' { out.push_str(space) } else { out.push(c) }
            }
            if out.len() > MAX_GROWTH * text.len() {
                return Err(Error::model("the normalisation table blows the text up")
                    .expected(format!("at most {MAX_GROWTH} times its length")));
            }
            if !part.is_empty() {
                after_space = self.remove_extra_whitespaces && part.ends_with(' ');
            }
            at = end;
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        Ok(out)
    }

    /// What the text at `at` becomes, and where the rest starts: a user-defined symbol as it is, else the
    /// longest rule of the table, else one character.
    fn prefix<'a>(
        &'a self,
        text: &'a str,
        at: usize,
        symbols: Option<&AhoCorasick>,
    ) -> Result<(&'a str, usize)> {
        if let Some(end) = symbols.and_then(|s| longest_at(s, text, at)) {
            return Ok((&text[at..end], end));
        }
        if let Some(table) = &self.table
            && let Some((part, len)) = table.longest(&text.as_bytes()[at..])?
        {
            // A rule that ends inside a character would leave malformed text behind.
            if text.is_char_boundary(at + len) {
                return Ok((part, at + len));
            }
            return Err(broken_table());
        }
        let end = at + char_len(text, at);
        Ok((&text[at..end], end))
    }
}

/// `precompiled_charsmap`: a double-array trie (darts-clone) whose values point into a block of
/// NUL-terminated replacements. No number in it is trusted.
#[derive(Debug)]
struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    fn from_bytes(blob: &[u8]) -> Result<Self> {
        let broken = |what: &str| {
            Error::model(format!("the normalisation table {what}"))
                .expected("a precompiled_charsmap as `sentencepiece` writes it")
        };
        let (head, rest) = blob.split_first_chunk::<4>().ok_or_else(|| broken("has no length"))?;
        let size = u32::from_le_bytes(*head) as usize;
        if size > rest.len() || !size.is_multiple_of(4) {
            return Err(broken("is shorter than it says"));
        }
        let (trie, texts) = rest.split_at(size);
        let units =
            trie.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect::<Vec<_>>();
        let replacements =
            std::str::from_utf8(texts).map_err(|e| broken("holds malformed UTF-8").because(e))?.to_owned();
        Ok(CharsMap { units, replacements })
    }

    /// The replacement of the longest rule that `text` starts with, and the rule's length in bytes.
    fn longest(&self, text: &[u8]) -> Result<Option<(&str, usize)>> {
        let unit = |at: usize| self.units.get(at).copied().ok_or_else(broken_table);
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut found = None;
        let mut node = offset(unit(0)?);
        for (i, &byte) in text.iter().enumerate() {
            node ^= usize::from(byte);
            let Some(&here) = self.units.get(node) else { break };
            if here & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            node ^= offset(here);
            if (here >> 8) & 1 == 1 {
                found = Some(((unit(node)? & !(1 << 31)) as usize, i + 1));
            }
        }
        let Some((at, len)) = found else { return Ok(None) };
        let text = self.replacements.get(at..).ok_or_else(broken_table)?;
        Ok(Some((text.split('\0').next().unwrap_or(""), len)))
    }
}

fn broken_table() -> Error {
    Error::model("the normalisation table points outside itself")
        .expected("a precompiled_charsmap as `sentencepiece` writes it")
}

/// Walks the outermost fields without allocating, so that the number and the size of the pieces are known to
/// be bounded before they are read.
fn check_wire(bytes: &[u8]) -> Result<()> {
    let cut = || {
        Error::model("the SentencePiece model is broken or cut short")
            .expected("the protocol buffer that `sentencepiece` writes")
            .hint("download the file again; a Git LFS pointer is not the file itself")
    };
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(Error::model(format!("the SentencePiece model has {} bytes", bytes.len()))
            .expected(format!("at most {} MiB", MAX_MODEL_BYTES >> 20)));
    }
    let mut rest = bytes;
    let mut num_pieces = 0usize;
    while !rest.is_empty() {
        let key = varint(&mut rest).ok_or_else(cut)?;
        let len = match key & 7 {
            0 => {
                varint(&mut rest).ok_or_else(cut)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest).ok_or_else(cut)?).map_err(|_| cut())?,
            5 => 4,
            _ => return Err(cut()),
        };
        if len > rest.len() {
            return Err(cut());
        }
        if key == (1 << 3 | 2) {
            num_pieces += 1;
            // Thirty-two bytes are room for the score and the kind.
            if len > MAX_PIECE_BYTES + 32 {
                return Err(Error::model(format!("piece {} has {len} bytes", num_pieces - 1))
                    .expected(format!("at most {MAX_PIECE_BYTES}")));
            }
        }
        rest = &rest[len..];
    }
    match num_pieces {
        0 => Err(Error::model("the SentencePiece model has no pieces")),
        n if n > MAX_VOCAB => Err(Error::model(format!("the SentencePiece model has {n} pieces"))
            .expected(format!("at most {MAX_VOCAB}"))),
        _ => Ok(()),
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
