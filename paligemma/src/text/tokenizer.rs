//! The tokenizer: text ⇄ ids, from a `tokenizer.json` or a SentencePiece `tokenizer.model`.
//!
//! Every id comes from the file. In user text `<locNNNN>` and `<segNNN>` are tokens, because the model was
//! trained so; control tokens (`<bos>`, `<image>` …) stay plain text, because a text must not be able to say
//! them. No BOS is ever added here: that is the prompt's business.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use super::hugging_face::{self, HuggingFace};
use super::sentencepiece::{self, SentencePiece};
use crate::{Error, Result};

/// Number of location tokens, `<loc0000>` to `<loc1023>`.
pub const NUM_LOC: usize = 1024;
/// Number of segmentation tokens, `<seg000>` to `<seg127>`.
pub const NUM_SEG: usize = 128;

/// A vocabulary larger than this is not read.
pub(super) const MAX_VOCAB: usize = 1 << 20;
/// A piece longer than this is not read.
pub(super) const MAX_PIECE_BYTES: usize = 64 << 10;

/// Names that user text cannot say, whatever the file calls them; those the file marks as special or control
/// come on top.
pub(super) const STAYS_PLAIN: [&str; 8] =
    ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<image>", "<start_of_turn>", "<end_of_turn>"];

/// `<loc0000>` … `<loc1023>`, `<seg000>` … `<seg127>`: the order in which the reference appends them
/// (big_vision/pp/tokenizer.py).
pub(super) fn loc_and_seg_names() -> impl Iterator<Item = String> {
    let loc = (0..NUM_LOC).map(|i| format!("<loc{i:04}>"));
    loc.chain((0..NUM_SEG).map(|i| format!("<seg{i:03}>")))
}

/// The file of [`Tokenizer::from_folder`].
///
/// # Errors
/// A folder that holds none.
pub fn tokenizer_file(folder: &Path) -> Result<PathBuf> {
    const NAMES: [&str; 4] =
        ["tokenizer.json", "tokenizer.model", "paligemma_tokenizer.model", "gemma_tokenizer.model"];
    // A link that leads nowhere is there too, and reading it says so.
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    NAMES.into_iter().map(|name| folder.join(name)).find(is_there).ok_or_else(|| {
        Error::model("there is no tokenizer")
            .at(folder.display().to_string())
            .expected(format!("one of {}", NAMES.join(", ")))
            .hint("put it beside the checkpoint, or name it with --tokenizer FILE")
    })
}

/// A tokenizer read from a file.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    image: Option<u32>,
    loc: Vec<u32>,
    seg: Vec<u32>,
}

#[derive(Debug)]
enum Kind {
    HuggingFace(Box<HuggingFace>),
    SentencePiece(Box<SentencePiece>),
}

impl Tokenizer {
    /// Reads a `tokenizer.json` or a SentencePiece model; the content decides which it is, not the name.
    ///
    /// # Errors
    /// A file that is missing, neither of both, broken, or unsupported; each names the file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path)?;
        let read = if is_json(&bytes) { Self::from_json_bytes } else { Self::from_model_bytes };
        read(&bytes).map_err(|e| e.at(path.display().to_string()))
    }

    /// Reads the tokenizer of a checkpoint's folder: `tokenizer.json` where there is one (a broken one is an
    /// error, never passed over), else `tokenizer.model`, `paligemma_tokenizer.model` or
    /// `gemma_tokenizer.model`.
    ///
    /// # Errors
    /// A folder that holds none of them, and all of [`Tokenizer::from_file`].
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::from_file(&tokenizer_file(folder)?)
    }

    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// Bytes that are broken, too large (128 MiB, 1 Mi pieces, 64 KiB a piece), or ask for something that is
    /// not supported.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        Self::new(Kind::HuggingFace(Box::new(HuggingFace::from_bytes(bytes)?)))
    }

    /// Reads the bytes of a SentencePiece model.
    ///
    /// # Errors
    /// Bytes that are broken, too large (64 MiB, 1 Mi pieces, 64 KiB a piece), or ask for something that is
    /// not supported.
    pub fn from_model_bytes(bytes: &[u8]) -> Result<Self> {
        Self::new(Kind::SentencePiece(Box::new(SentencePiece::from_bytes(bytes)?)))
    }

    fn new(kind: Kind) -> Result<Self> {
        let id_of = |piece: &str| match &kind {
            Kind::HuggingFace(t) => t.id_of(piece),
            Kind::SentencePiece(t) => t.id_of(piece),
        };
        let first_of = |names: [&str; 2]| names.into_iter().find_map(id_of);
        // Both readers have made sure of them.
        let named = loc_and_seg_names()
            .map(|name| id_of(&name).ok_or_else(|| Error::model(format!("the tokenizer has no {name}"))))
            .collect::<Result<Vec<u32>>>()?;
        Ok(Tokenizer {
            bos: first_of(["<bos>", "<s>"]),
            eos: first_of(["<eos>", "</s>"]),
            pad: id_of("<pad>"),
            image: id_of("<image>"),
            loc: named[..NUM_LOC].to_vec(),
            seg: named[NUM_LOC..].to_vec(),
            kind,
        })
    }

    /// The ids of a user's text, without BOS. `<locNNNN>` and `<segNNN>` are one id each; control tokens are
    /// spelled out as the text they are.
    ///
    /// # Errors
    /// A normalisation rule of the file that fails on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::HuggingFace(t) => t.encode(text),
            Kind::SentencePiece(t) => t.encode(text),
        }
    }

    /// The piece of each id as the file writes it (`▁` is a space); an id that the file does not have gives
    /// an empty string.
    pub fn pieces(&self, ids: &[u32]) -> Vec<String> {
        let piece = |id| match &self.kind {
            Kind::HuggingFace(t) => t.piece(id),
            Kind::SentencePiece(t) => t.piece(id),
        };
        ids.iter().map(|&id| piece(id).unwrap_or("").to_owned()).collect()
    }

    /// The text of ids. Special tokens and ids that the file does not have become nothing; `<loc>` and
    /// `<seg>` stay. Bytes that form no character become `�`.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::HuggingFace(t) => t.decode(ids.iter().copied()),
            Kind::SentencePiece(_) => {
                let mut stream = self.decode_stream();
                let mut text = String::new();
                ids.iter().for_each(|&id| stream.push_onto(id, &mut text));
                text.push_str(&stream.finish());
                text
            }
        }
    }

    /// Decodes ids as they come. The texts of all calls, [`DecodeStream::finish`] included, are together what
    /// [`Tokenizer::decode`] gives.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        let state = match &self.kind {
            Kind::HuggingFace(t) => State::HuggingFace(t, hugging_face::Decoder::default()),
            Kind::SentencePiece(t) => State::SentencePiece(t, t.decoder()),
        };
        DecodeStream { state }
    }

    /// The id of `<bos>`.
    ///
    /// # Errors
    /// A file without one.
    pub fn bos(&self) -> Result<u32> {
        self.bos.ok_or_else(|| lacks("<bos>"))
    }

    /// The id of `<eos>`.
    ///
    /// # Errors
    /// A file without one.
    pub fn eos(&self) -> Result<u32> {
        self.eos.ok_or_else(|| lacks("<eos>"))
    }

    /// The id of `<pad>`.
    ///
    /// # Errors
    /// A file without one.
    pub fn pad(&self) -> Result<u32> {
        self.pad.ok_or_else(|| lacks("<pad>"))
    }

    /// The id that a line break becomes: its own piece in Gemma's files, else the byte's.
    ///
    /// # Errors
    /// A file in which a line break is no token or several.
    pub fn newline(&self) -> Result<u32> {
        match self.encode("\n")?[..] {
            [id] => Ok(id),
            ref ids => Err(Error::model(format!("a line break becomes {} tokens", ids.len()))
                .expected("one token, as in all Gemma tokenizers")),
        }
    }

    /// The id of `<image>`, if the file has one. big_vision's files have none.
    pub fn image(&self) -> Option<u32> {
        self.image
    }

    /// The id of `<locNNNN>` for NNNN = `i`, or none from 1024 on.
    pub fn loc(&self, i: usize) -> Option<u32> {
        self.loc.get(i).copied()
    }

    /// The id of `<segNNN>` for NNN = `i`, or none from 128 on.
    pub fn seg(&self, i: usize) -> Option<u32> {
        self.seg.get(i).copied()
    }

    /// The ids of `<loc0000>` to `<loc1023>`.
    ///
    /// # Errors
    /// A file in which they do not follow each other.
    pub fn locations(&self) -> Result<Range<u32>> {
        in_a_row(&self.loc, "<loc0000>")
    }

    /// The ids of `<seg000>` to `<seg127>`.
    ///
    /// # Errors
    /// A file in which they do not follow each other.
    pub fn codes(&self) -> Result<Range<u32>> {
        in_a_row(&self.seg, "<seg000>")
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::HuggingFace(t) => t.vocab_size(),
            Kind::SentencePiece(t) => t.vocab_size(),
        }
    }
}

/// Decodes ids as they come; see [`Tokenizer::decode_stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream<'t> {
    state: State<'t>,
}

#[derive(Debug, Clone)]
enum State<'t> {
    HuggingFace(&'t HuggingFace, hugging_face::Decoder),
    SentencePiece(&'t SentencePiece, sentencepiece::Decoder),
}

impl DecodeStream<'_> {
    /// The text that is complete with this id; empty while a character is not yet whole.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_onto(id, &mut text);
        text
    }

    /// The rest: bytes at the end that form no character become `�`.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        match &mut self.state {
            State::HuggingFace(t, state) => t.flush(state, &mut text),
            State::SentencePiece(_, state) => state.flush(&mut text),
        }
        text
    }

    fn push_onto(&mut self, id: u32, text: &mut String) {
        match &mut self.state {
            State::HuggingFace(t, state) => t.push(state, id, text),
            State::SentencePiece(t, state) => t.push(state, id, text),
        }
    }
}

fn in_a_row(ids: &[u32], first: &str) -> Result<Range<u32>> {
    match (ids.first(), ids.last()) {
        (Some(&a), Some(&z)) if ids.iter().copied().eq(a..=z) => Ok(a..z + 1),
        _ => Err(Error::model(format!("the ids from {first} on do not follow each other"))
            .expected("as in all PaliGemma tokenizers")),
    }
}

fn lacks(name: &str) -> Error {
    Error::model(format!("the tokenizer has no {name}"))
        .hint("PaliGemma's own tokenizer has one: is this the tokenizer of another model?")
}

/// JSON starts with a brace. A SentencePiece model starts with a line feed, its first field's tag, and may
/// go on with a brace; but it is never UTF-8 throughout, since it holds negative scores.
fn is_json(bytes: &[u8]) -> bool {
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    bytes.first() == Some(&b'{') || (first == Some(&b'{') && std::str::from_utf8(bytes).is_ok())
}

/// Reads a file, but never more of it than the larger of both limits.
fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    const LIMIT: u64 = 128 << 20;
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::model("the tokenizer's file is too large")
            .at(path.display().to_string())
            .expected(format!("at most {} MiB", LIMIT >> 20)));
    }
    Ok(bytes)
}
