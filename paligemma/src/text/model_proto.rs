//! The protocol buffer of a `tokenizer.model`: what of it is read or written here. Other fields are passed over.
//!
//! Reference: google/sentencepiece src/sentencepiece_model.proto, names, numbers and defaults.

use prost::{Enumeration, Message};

/// The file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    /// Ids count from 0.
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<SentencePiece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer_spec: Option<NormalizerSpec>,
    #[prost(message, optional, tag = "5")]
    pub(super) denormalizer_spec: Option<NormalizerSpec>,
}

/// A piece.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SentencePiece {
    #[prost(string, optional, tag = "1")]
    pub(super) piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub(super) score: Option<f32>,
    #[prost(enumeration = "Type", optional, tag = "3", default = "Normal")]
    pub(super) r#type: Option<i32>,
}

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(super) enum Type {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// How the pieces were found; little of it matters afterwards.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    #[prost(enumeration = "ModelType", optional, tag = "3", default = "Unigram")]
    pub(super) model_type: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    pub(super) vocab_size: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub(super) treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "25")]
    pub(super) split_digits: Option<bool>,
    #[prost(bool, optional, tag = "26")]
    pub(super) allow_whitespace_only_pieces: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    pub(super) byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    pub(super) unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    pub(super) bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub(super) eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pub(super) pad_id: Option<i32>,
    #[prost(string, optional, tag = "44", default = " \u{2047} ")]
    pub(super) unk_surface: Option<String>,
    #[prost(string, optional, tag = "45")]
    pub(super) unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    pub(super) bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    pub(super) eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pub(super) pad_piece: Option<String>,
}

/// How pieces are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(super) enum ModelType {
    Unigram = 1,
    Bpe = 2,
    Word = 3,
    Char = 4,
}

/// How text is changed before it is split.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    pub(super) remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    pub(super) escape_whitespaces: Option<bool>,
}
