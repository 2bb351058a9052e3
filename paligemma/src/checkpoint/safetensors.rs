//! safetensors files: the header is validated as a whole before a tensor is looked at; the data stays in the
//! file map. Format: <https://huggingface.co/docs/safetensors>.

use crate::{Error, Result};
use paligemma_tensor::{DType, MappedFile};
use safetensors::{Dtype, SafeTensors, tensor::SafeTensorError};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{collections::HashSet, fmt, path::Path, sync::Arc};

/// A tensor of a file, as its header has it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    /// The header's type; only some have a [`DType`].
    pub(crate) stored_as: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Position in the file.
    pub(crate) offset: usize,
    /// Length in bytes.
    pub(crate) len: usize,
}

impl Stored {
    /// The type of the elements, if it is one that PaliGemma comes in.
    pub(crate) fn dtype(&self) -> Option<DType> {
        match self.stored_as {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            _ => None,
        }
    }
}

/// Whether a file that begins so may be safetensors: a header length and a brace.
pub(crate) fn is_likely(start: &[u8]) -> bool {
    matches!(start.get(..9), Some([_, _, _, _, 0, 0, 0, 0, b'{']))
}

/// Maps a file and reads its header.
pub(crate) fn open(path: &Path) -> Result<(Arc<MappedFile>, Vec<Stored>)> {
    let file = MappedFile::open(path).map_err(|e| Error::io(path, e))?;
    let stored = header(&file).map_err(|e| e.at(path.display().to_string()))?;
    Ok((Arc::new(file), stored))
}

/// The tensors of a whole safetensors file, in the order of their data.
///
/// # Errors
/// `Kind::Model` if the file is not exactly a header and the tensors that it declares, without holes,
/// overlaps, or a name that stands twice.
pub(super) fn header(file: &[u8]) -> Result<Vec<Stored>> {
    // The crate keeps the last of two equal keys; which one was meant nobody knows.
    let (n, metadata) = SafeTensors::read_metadata(file).map_err(|e| explain(e, file))?;
    let start = 8 + n;
    no_key_twice(&file[8..start])?;
    let mut all = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let (from, to) = info.data_offsets;
        let (stored_as, shape) = (info.dtype, info.shape.clone());
        all.push(Stored { name, stored_as, shape, offset: start + from, len: to - from });
    }
    Ok(all)
}

/// The entry `key` of a file's metadata, whose header was read before.
pub(super) fn metadata(file: &[u8], key: &str) -> Option<String> {
    let (_, metadata) = SafeTensors::read_metadata(file).ok()?;
    metadata.metadata().as_ref()?.get(key).cloned()
}

fn explain(e: SafeTensorError, file: &[u8]) -> Error {
    let what = match &e {
        SafeTensorError::HeaderTooSmall => format!("safetensors file of {} bytes has no header", file.len()),
        SafeTensorError::HeaderTooLarge => "safetensors header is over 100 MB".into(),
        SafeTensorError::InvalidHeaderLength => "safetensors header is longer than the file".into(),
        SafeTensorError::MetadataIncompleteBuffer => {
            "safetensors file is not as long as its header says".into()
        }
        SafeTensorError::InvalidHeader(e) => format!("safetensors header is not UTF-8: {e}"),
        SafeTensorError::InvalidHeaderDeserialization(e) => format!("safetensors header is wrong: {e}"),
        SafeTensorError::InvalidOffset(name) => {
            format!("safetensors header leaves a hole or an overlap before tensor {name:?}")
        }
        SafeTensorError::TensorInvalidInfo => {
            "a tensor's shape and bytes disagree in the safetensors header".into()
        }
        SafeTensorError::ValidationOverflow => {
            "a tensor's shape in the safetensors header is too large".into()
        }
        e => format!("safetensors header is wrong: {e}"),
    };
    let error = Error::model(what).because(e);
    if file.starts_with(b"version https://git-lfs") {
        return error.hint("this is a git-lfs pointer, not the file; run `git lfs pull` in that repository");
    }
    error.hint("the file may be incomplete; download it again")
}

/// Refuses a header in which a key stands twice.
fn no_key_twice(header: &[u8]) -> Result<()> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object of tensors")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = HashSet::new();
            while let Some(key) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if let Some(key) = seen.replace(key) {
                    return Err(serde::de::Error::custom(format!("tensor {key:?} stands twice")));
                }
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header)
        .deserialize_map(Keys)
        .map_err(|e| Error::model(format!("safetensors header is wrong: {e}")).because(e))
}
