//! Named tensors of an npz or a safetensors file that is no checkpoint of a PaliGemma: the masks' model.

use super::{
    npz::{self, Npz},
    safetensors::{self, Stored},
};
use crate::{Error, Result};
use paligemma_tensor::{MappedFile, Tensor};
use std::{collections::HashMap, path::Path};

/// A file's tensors by the names that it gives them. All headers are checked when it is opened.
#[derive(Debug)]
pub struct NamedTensors {
    source: Source,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
enum Source {
    Safetensors { file: MappedFile, stored: Vec<Stored> },
    Npz(Box<Npz>),
}

impl NamedTensors {
    /// Opens a file; its first bytes say whether it is npz or safetensors.
    ///
    /// # Errors
    /// `Kind::Usage` if there is no such file, `Kind::Model` if it is neither or broken.
    pub fn open(path: &Path) -> Result<NamedTensors> {
        let at = |e: Error| e.at(path.display().to_string());
        let file = MappedFile::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!("there is no file {}", path.display())),
            _ => Error::io(path, e),
        })?;
        if npz::is_likely(&file) {
            let npz = Npz::open(&[path.to_path_buf()]).map_err(at)?;
            let by_name = npz.members.iter().enumerate().map(|(i, m)| (m.key.clone(), i)).collect();
            return Ok(NamedTensors { source: Source::Npz(Box::new(npz)), by_name });
        }
        if safetensors::is_likely(&file) {
            return NamedTensors::from_safetensors(file).map_err(at);
        }
        Err(at(Error::model("the file is neither safetensors nor npz")))
    }

    /// The tensors of a safetensors file within this program.
    ///
    /// # Errors
    /// `Kind::Model` if it is broken.
    pub fn built_in(bytes: &'static [u8]) -> Result<NamedTensors> {
        NamedTensors::from_safetensors(MappedFile::built_in(bytes))
    }

    fn from_safetensors(file: MappedFile) -> Result<NamedTensors> {
        let stored = safetensors::header(&file)?;
        let by_name = stored.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        Ok(NamedTensors { source: Source::Safetensors { file, stored }, by_name })
    }

    /// Whether the file is an npz.
    pub(super) fn is_npz(&self) -> bool {
        matches!(self.source, Source::Npz(_))
    }

    /// The shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        let &i = self.by_name.get(name)?;
        Some(match &self.source {
            Source::Safetensors { stored, .. } => &stored[i].shape,
            Source::Npz(npz) => &npz.members[i].shape,
        })
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A tensor, copied.
    ///
    /// # Errors
    /// `Kind::Model`, naming it: it is missing, damaged, or of a type that no weight has.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let shape = self.shape(name).ok_or_else(|| missing(name))?;
        self.slice(name, 0, shape)
    }

    /// A slice of a tensor, from element `from` on, copied. Panics beyond its end.
    ///
    /// # Errors
    /// As [`NamedTensors::tensor`].
    pub(super) fn slice(&self, name: &str, from: usize, shape: &[usize]) -> Result<Tensor> {
        let &i = self.by_name.get(name).ok_or_else(|| missing(name))?;
        let num = shape.iter().product::<usize>();
        match &self.source {
            Source::Safetensors { file, stored } => {
                let Stored { stored_as, offset, len, .. } = &stored[i];
                let dtype = stored[i].dtype().ok_or_else(|| {
                    Error::model(format!("tensor \"{name}\" is of the unsupported type {stored_as:?}"))
                        .expected("F32, BF16 or F16")
                })?;
                let whole = &file[*offset..offset + len];
                Ok(Tensor::from_bytes(&whole[from * dtype.size()..][..num * dtype.size()], dtype, shape))
            }
            Source::Npz(npz) => {
                let dtype = npz.members[i].dtype;
                let bytes = npz.read(i, (from * dtype.size()) as u64, num * dtype.size())?;
                Ok(Tensor::from_bytes(&bytes, dtype, shape))
            }
        }
    }
}

fn missing(name: &str) -> Error {
    Error::model(format!("tensor \"{name}\" is missing"))
}
