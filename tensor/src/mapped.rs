//! Read-only file maps, the storage of checkpoints; and bytes that are within the program, as if they were one.

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
    path::Path,
};

/// A whole file mapped read-only. Dereferences to its bytes.
#[derive(Debug)]
pub struct MappedFile(Bytes);

#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    /// Within the program; an empty file, which cannot be mapped, too.
    Static(&'static [u8]),
}

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// What opening and mapping report; a directory is an error too.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        if file.metadata()?.len() == 0 {
            return Ok(MappedFile(Bytes::Static(&[])));
        }
        // SAFETY: the map is read-only and private to this process's view. Its bytes may change only
        // if another process writes the file meanwhile; every reader treats them as plain numbers whose
        // value may be anything, never as references, lengths that were checked before, or UTF-8.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile(Bytes::Mapped(map)))
    }

    /// A file that is within the program.
    pub fn built_in(bytes: &'static [u8]) -> Self {
        MappedFile(Bytes::Static(bytes))
    }

    /// Gives the pages of a range back to the system. They are read from the file again when they are looked at again.
    pub(crate) fn let_go(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.0
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the map is one of a file and is never written to, so a page that is given back comes back with the
            // bytes of the file, as it came in the first place. Neighbours on the same pages lose as little.
            let given = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // A system that keeps them loses nothing but room.
            let _ = given;
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}
