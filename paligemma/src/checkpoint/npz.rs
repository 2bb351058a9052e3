//! big_vision's npz files: a zip of npy members, whole or cut into `.npz.part*` files. Nothing is trusted
//! before it agrees with the bytes that are there: the size that the zip declares, the size that the npy
//! header's shape makes, and the length of the file. Stored members are read in place from the file maps;
//! deflated ones are streamed.
//! Format: numpy/lib/format.py; bfloat16 stands as a raw 2-byte void (big_vision/utils.py recover_dtype).

use crate::{Error, Result, config::limits};
use paligemma_tensor::{DType, MappedFile};
use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// No checkpoint has more members; with optimizer state it would have about a hundred.
const MOST_MEMBERS: usize = 10_000;
/// Weights hardly compress: bfloat16 numbers stored as f32 halve, and tensors of zeros are small. Deflated
/// members that together claim more than this many times the file, and 8 MiB, are a bomb.
const MOST_RATIO: u64 = 16;
const FREE_INFLATION: u64 = 8 << 20;
/// An npy header is one line with a shape; numpy itself refuses to evaluate longer ones.
const LONGEST_HEADER: usize = 10_000;

/// Files that are one byte string, as the parts of a split npz.
#[derive(Debug)]
pub(crate) struct Pieces {
    files: Vec<(u64, Arc<MappedFile>)>,
    len: u64,
}

impl Pieces {
    fn new(files: Vec<Arc<MappedFile>>) -> Pieces {
        let mut len = 0;
        let mut placed = Vec::new();
        for file in files {
            let start = len;
            len += file.len() as u64;
            placed.push((start, file));
        }
        Pieces { files: placed, len }
    }

    /// The bytes from `offset` to the end of the file that holds them; empty beyond the end.
    fn rest(&self, offset: u64) -> (&[u8], Option<(&Arc<MappedFile>, usize)>) {
        for (start, file) in &self.files {
            if let Some(within) = offset.checked_sub(*start).and_then(|w| usize::try_from(w).ok())
                && within < file.len()
            {
                return (&file[within..], Some((file, within)));
            }
        }
        (&[], None)
    }
}

/// Reads pieces from one position to another.
#[derive(Debug)]
struct Cursor {
    pieces: Arc<Pieces>,
    at: u64,
    end: u64,
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let (bytes, _) = self.pieces.rest(self.at);
        let n = bytes.len().min(buf.len()).min(left);
        buf[..n].copy_from_slice(&bytes[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// A tensor of the archive.
#[derive(Debug)]
pub(crate) struct Member {
    /// The key without `params/` and `.npy`.
    pub(crate) key: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Where the member's bytes start in the pieces, and how many there are, packed and unpacked.
    start: u64,
    packed: u64,
    size: u64,
    is_deflated: bool,
    crc: u32,
    /// Bytes of the npy header.
    header: u64,
    /// Set when the checksum of a stored member was found right.
    is_right: OnceLock<()>,
    /// A deflated member, unpacked up to somewhere.
    stream: Mutex<Option<Stream>>,
}

struct Stream {
    decoder: flate2::read::DeflateDecoder<Cursor>,
    at: u64,
    crc: crc32fast::Hasher,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Stream(at {})", self.at)
    }
}

/// An open archive.
#[derive(Debug)]
pub(crate) struct Npz {
    pub(crate) members: Vec<Member>,
    pieces: Arc<Pieces>,
}

/// Whether a file that begins so may be a zip.
pub(crate) fn is_likely(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

impl Npz {
    /// Opens the archive that `paths` make when put after each other, and reads all headers.
    ///
    /// # Errors
    /// `Kind::Model` for everything that is not an npz of `f32`, `f16` and 2-byte void tensors in C order.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Npz> {
        let map = |path: &PathBuf| MappedFile::open(path).map(Arc::new).map_err(|e| Error::io(path, e));
        Npz::read_directory(paths.iter().map(map).collect::<Result<_>>()?)
    }

    fn read_directory(files: Vec<Arc<MappedFile>>) -> Result<Npz> {
        let pieces = Arc::new(Pieces::new(files));
        let cursor = Cursor { pieces: Arc::clone(&pieces), at: 0, end: pieces.len };
        let broken = |e: zip::result::ZipError| {
            Error::model(format!("npz is not a whole zip archive: {e}"))
                .because(e)
                .hint("the file, or one of its parts, may be incomplete or missing; download it again")
        };
        let mut zip = zip::ZipArchive::new(cursor).map_err(broken)?;
        if zip.len() > MOST_MEMBERS {
            return Err(Error::model(format!("npz has {} members", zip.len()))
                .expected(format!("at most {MOST_MEMBERS}")));
        }
        if zip.has_duplicate_names() {
            return Err(Error::model("npz has two members of one name"));
        }
        if zip.offset() != 0 {
            return Err(Error::model(format!("npz has {} bytes before its first member", zip.offset())));
        }
        let directory = zip.central_directory_start();
        let mut members: Vec<Member> = Vec::with_capacity(zip.len());
        let mut inflation = 0u64;
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(broken)?;
            let name = entry.name().map_err(broken)?.into_owned();
            let at = |e: Error| e.at(format!("member {name:?}"));
            if entry.encrypted() {
                return Err(at(Error::model("npz member is encrypted")));
            }
            let is_deflated = match entry.compression() {
                zip::CompressionMethod::Stored => false,
                zip::CompressionMethod::Deflated => true,
                other => {
                    return Err(at(Error::model(format!("npz member is compressed by {other:?}"))
                        .expected("stored or deflated, as numpy writes")));
                }
            };
            let (packed, size, crc) = (entry.compressed_size(), entry.size(), entry.crc32());
            let start = entry.data_start().unwrap_or(u64::MAX);
            drop(entry);
            if start.checked_add(packed).is_none_or(|end| end > directory) {
                return Err(at(Error::model("npz member reaches beyond the data of the archive")));
            }
            if !is_deflated && packed != size {
                return Err(at(Error::model(format!(
                    "stored npz member declares {packed} and {size} bytes"
                ))));
            }
            if is_deflated {
                inflation = inflation.saturating_add(size);
                if inflation > pieces.len.saturating_mul(MOST_RATIO).saturating_add(FREE_INFLATION) {
                    return Err(at(Error::model(format!(
                        "npz of {} bytes would unpack to over {inflation}",
                        pieces.len
                    ))
                    .expected(format!("at most {MOST_RATIO} times its size; weights compress little"))));
                }
            }
            let Some(key) = name.strip_suffix(".npy") else {
                return Err(at(Error::model("npz member is not an npy array"))
                    .hint("this zip is no big_vision checkpoint; PyTorch's .bin and .pt are zips too: use the safetensors files"));
            };
            let mut member = Member {
                key: key.strip_prefix("params/").unwrap_or(key).to_string(),
                dtype: DType::F32,
                shape: Vec::new(),
                start,
                packed,
                size,
                is_deflated,
                crc,
                header: 0,
                is_right: OnceLock::new(),
                stream: Mutex::new(None),
            };
            let mut reader: Box<dyn Read> = if is_deflated {
                Box::new(flate2::read::DeflateDecoder::new(member.cursor(&pieces)))
            } else {
                Box::new(member.cursor(&pieces))
            };
            let header = NpyHeader::read(&mut reader).map_err(at)?;
            let bytes = header
                .shape
                .iter()
                .try_fold(header.dtype.size() as u64, |n, &d| n.checked_mul(d as u64))
                .and_then(|n| n.checked_add(header.len));
            if bytes != Some(size) {
                return Err(at(Error::model(format!(
                    "npy array of {} {:?} does not fill its member of {size} bytes",
                    header.dtype, header.shape
                ))));
            }
            (member.dtype, member.shape, member.header) = (header.dtype, header.shape, header.len);
            members.push(member);
        }
        // What each member says of itself must be what the directory says of it.
        zip.validate_header_consistency().map_err(broken)?;
        Ok(Npz { members, pieces })
    }

    /// `len` bytes of a member's data from byte `from` on, if they lie in one piece of a stored member: the
    /// file and the position within it. The member's checksum is verified before the first.
    pub(crate) fn in_place(
        &self,
        member: usize,
        from: u64,
        len: u64,
    ) -> Result<Option<(Arc<MappedFile>, usize)>> {
        let member = &self.members[member];
        if member.is_deflated {
            return Ok(None);
        }
        member.verify(&self.pieces)?;
        let (bytes, place) = self.pieces.rest(member.start + member.header + from);
        Ok(place.filter(|_| bytes.len() as u64 >= len).map(|(file, at)| (Arc::clone(file), at)))
    }

    /// `len` bytes of a member's data from byte `from` on. Deflated members are cheap to read in order: each
    /// goes on where the last read of it stopped. Their checksum is verified where a read reaches their end.
    pub(crate) fn read(&self, member: usize, from: u64, len: usize) -> Result<Vec<u8>> {
        let member = &self.members[member];
        let mut bytes = vec![0; len];
        if member.is_deflated {
            member.inflate(&self.pieces, member.header + from, &mut bytes)?;
        } else {
            member.verify(&self.pieces)?;
            let start = member.start + member.header + from;
            let mut cursor = Cursor { pieces: Arc::clone(&self.pieces), at: start, end: start + len as u64 };
            cursor.read_exact(&mut bytes).map_err(|e| member.broken(&e))?;
        }
        Ok(bytes)
    }

    /// Verifies every checksum: reads the whole file once.
    pub(crate) fn verify(&self) -> Result<()> {
        for member in &self.members {
            if member.is_deflated {
                let mut from = 0;
                let mut buf = vec![0; 1 << 20];
                while from < member.size {
                    let n = (member.size - from).min(buf.len() as u64);
                    member.inflate(&self.pieces, from, &mut buf[..n as usize])?;
                    from += n;
                }
            } else {
                member.verify(&self.pieces)?;
            }
        }
        Ok(())
    }
}

impl Member {
    fn cursor(&self, pieces: &Arc<Pieces>) -> Cursor {
        Cursor { pieces: Arc::clone(pieces), at: self.start, end: self.start + self.packed }
    }

    fn broken(&self, e: &dyn std::fmt::Display) -> Error {
        Error::model(format!("npz tensor {:?} is damaged: {e}", self.key)).hint("download the file again")
    }

    /// Verifies the checksum of a stored member, once.
    fn verify(&self, pieces: &Arc<Pieces>) -> Result<()> {
        if self.is_right.get().is_some() {
            return Ok(());
        }
        let mut crc = crc32fast::Hasher::new();
        let (mut at, end) = (self.start, self.start + self.packed);
        while at < end {
            let (bytes, _) = pieces.rest(at);
            let n = (bytes.len() as u64).min(end - at);
            if n == 0 {
                return Err(self.broken(&"it ends too early"));
            }
            crc.update(&bytes[..n as usize]);
            at += n;
        }
        if crc.finalize() != self.crc {
            return Err(self.broken(&"its checksum is wrong"));
        }
        self.is_right.get_or_init(|| ());
        Ok(())
    }

    /// Unpacks the member's bytes from `from` on into `out`.
    fn inflate(&self, pieces: &Arc<Pieces>, from: u64, out: &mut [u8]) -> Result<()> {
        let mut guard = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // A stream is put back only after a read without error.
        let mut stream = guard.take().filter(|s| s.at <= from).unwrap_or_else(|| Stream {
            decoder: flate2::read::DeflateDecoder::new(self.cursor(pieces)),
            at: 0,
            crc: crc32fast::Hasher::new(),
        });
        let mut skipped = [0; 16 << 10];
        while stream.at < from {
            let n = (from - stream.at).min(skipped.len() as u64) as usize;
            stream.read(&mut skipped[..n]).map_err(|e| self.broken(&e))?;
        }
        stream.read(out).map_err(|e| self.broken(&e))?;
        if stream.at == self.size {
            let beyond = stream.decoder.read(&mut [0]).map_err(|e| self.broken(&e))?;
            if beyond != 0 || stream.crc.clone().finalize() != self.crc {
                return Err(self.broken(&"its checksum is wrong"));
            }
        } else {
            *guard = Some(stream);
        }
        Ok(())
    }
}

impl Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.decoder.read_exact(out)?;
        self.crc.update(out);
        self.at += out.len() as u64;
        Ok(())
    }
}

/// The header of an npy array.
#[derive(Debug, PartialEq)]
struct NpyHeader {
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes before the data.
    len: u64,
}

impl NpyHeader {
    fn read(reader: &mut dyn Read) -> Result<NpyHeader> {
        let cut = |e: io::Error| Error::model(format!("npy header is cut short: {e}")).because(e);
        let mut start = [0; 8];
        reader.read_exact(&mut start).map_err(cut)?;
        let [b'\x93', b'N', b'U', b'M', b'P', b'Y', major, _] = start else {
            return Err(Error::model("npz member does not begin as an npy array does"));
        };
        let (len, prefix) = match major {
            1 => {
                let mut n = [0; 2];
                reader.read_exact(&mut n).map_err(cut)?;
                (usize::from(u16::from_le_bytes(n)), 10)
            }
            2 | 3 => {
                let mut n = [0; 4];
                reader.read_exact(&mut n).map_err(cut)?;
                (u32::from_le_bytes(n) as usize, 12)
            }
            v => return Err(Error::model(format!("npy version {v} is unknown")).expected("1, 2 or 3")),
        };
        if len > LONGEST_HEADER {
            return Err(Error::model(format!("npy header is {len} bytes long"))
                .expected(format!("at most {LONGEST_HEADER}")));
        }
        let mut text = vec![0; len];
        reader.read_exact(&mut text).map_err(cut)?;
        let text = str::from_utf8(&text).map_err(|e| Error::model("npy header is not UTF-8").because(e))?;
        let (dtype, shape) = Literal { rest: text }.header().map_err(|what| {
            let shown: String = text.trim_end().chars().take(120).collect();
            Error::model(format!("npy header {what}: {shown}"))
                .expected("{'descr': '<f4', 'fortran_order': False, 'shape': (…)}, or '<f2' or '|V2'")
        })?;
        Ok(NpyHeader { dtype, shape, len: prefix + len as u64 })
    }
}

/// The Python literal of an npy header: one dictionary of a string, a bool and a tuple of whole numbers.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn header(mut self) -> Result<(DType, Vec<usize>), String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.take("}") {
            let key = self.string()?;
            self.expect(":")?;
            let stood = match key {
                "descr" => descr.replace(self.descr()?).is_some(),
                "fortran_order" => fortran.replace(self.flag()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => return Err(format!("has an unknown key {key:?}")),
            };
            if stood {
                return Err(format!("has {key:?} twice"));
            }
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err("goes on after its end".into());
        }
        let shape: Vec<usize> = shape.ok_or("has no 'shape'")?;
        // A column order of one dimension is the row order.
        if fortran.ok_or("has no 'fortran_order'")? && shape.iter().filter(|&&d| d != 1).count() > 1 {
            return Err(
                "is in Fortran order, which is not supported (numpy.ascontiguousarray mends it)".into()
            );
        }
        let dtype = match descr.ok_or("has no 'descr'")? {
            "<f4" => DType::F32,
            "<f2" => DType::F16,
            // A void of 2 bytes is how numpy saves the bfloat16 of ml_dtypes.
            "|V2" | "<V2" | "V2" | "bfloat16" | "<bfloat16" => DType::BF16,
            other if other.contains('O') => return Err("is of Python objects, which are never read".into()),
            other => return Err(format!("is of the unsupported type {other:?}")),
        };
        Ok((dtype, shape))
    }

    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(format!("lacks a {token:?}")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take("'") { '\'' } else { self.expect("\"").map(|()| '"')? };
        let (text, rest) = self.rest.split_once(quote).ok_or("has an open string")?;
        if text.contains('\\') {
            return Err("has an escape in a string".into());
        }
        self.rest = rest;
        Ok(text)
    }

    fn descr(&mut self) -> Result<&'a str, String> {
        if self.take("[") {
            return Err("is of records, which are not supported".into());
        }
        self.string()
    }

    fn flag(&mut self) -> Result<bool, String> {
        if self.take("False") { Ok(false) } else { self.expect("True").map(|()| true) }
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            self.rest = self.rest.trim_start();
            let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: usize = self.rest[..digits].parse().map_err(|_| "has a wrong 'shape'")?;
            // One bound for every dimension of every tensor; the tables of names check the exact ones.
            if number > limits::ROWS || shape.len() == 8 {
                return Err("has a 'shape' that is too large".into());
            }
            shape.push(number);
            self.rest = &self.rest[digits..];
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(shape)
    }
}

/// The parts of a split npz, in order, given any of them or the name of the whole.
///
/// # Errors
/// `Kind::Model` if numbered parts leave a gap.
pub(crate) fn parts(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return Ok(None) };
    let stem = match name.find(".npz.part") {
        Some(at) => &name[..at + 4],
        None if path.exists() => return Ok(None),
        None if name.ends_with(".npz") => name,
        None => return Ok(None),
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = folder.read_dir() else { return Ok(None) };
    let mut found: Vec<(Vec<u64>, String, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(suffix) = name.strip_prefix(stem).and_then(|s| s.strip_prefix(".part")) else { continue };
        let suffix = suffix.trim_start_matches(['-', '_', '.']);
        // A part that a browser or a downloader is still fetching is `.part`, `.partial` or has a further extension.
        if suffix.is_empty() || suffix == "ial" || suffix.contains('.') {
            continue;
        }
        let numbers = suffix.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        found.push((numbers, suffix.to_string(), entry.path()));
    }
    if found.is_empty() {
        return Ok(None);
    }
    found.sort();
    let is_numbered = found.iter().all(|(_, suffix, _)| suffix.bytes().all(|b| b.is_ascii_digit()));
    if is_numbered {
        let first = found[0].0.first().copied().unwrap_or(0).min(1);
        for (i, (numbers, ..)) in found.iter().enumerate() {
            if numbers.first() != Some(&(first + i as u64)) {
                return Err(Error::model(format!("part {} of {stem} is missing", first + i as u64))
                    .at(folder.display().to_string())
                    .hint("download the missing part into the same folder"));
            }
        }
    }
    Ok(Some(found.into_iter().map(|(.., path)| path).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_headers() {
        let parse = |text: &str| Literal { rest: text }.header();
        let right = [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n", DType::F32, vec![2, 3]),
            ("{'descr':'|V2','fortran_order':False,'shape':(7,)}", DType::BF16, vec![7]),
            ("{\"shape\": (), \"descr\": \"<f2\", \"fortran_order\": False}", DType::F16, vec![]),
            ("{'descr': '<V2', 'fortran_order': True, 'shape': (1, 9, 1)}", DType::BF16, vec![1, 9, 1]),
        ];
        for (text, dtype, shape) in right {
            assert_eq!(parse(text), Ok((dtype, shape)), "{text}");
        }
        let wrong = [
            ("", "lacks a \"{\""),
            ("{", "lacks"),
            ("{'descr': '<f4', 'fortran_order': False}", "no 'shape'"),
            ("{'descr': '<f4', 'shape': (1,)}", "no 'fortran_order'"),
            ("{'fortran_order': False, 'shape': (1,)}", "no 'descr'"),
            ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "twice"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Python objects"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "records"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", "\">f4\""),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", "\"<f8\""),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", "Fortran"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "wrong 'shape'"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "wrong 'shape'"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,)}", "too large"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", "too large"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", "after its end"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", "unknown key"),
            ("{'descr': '<f4", "open string"),
            ("{'descr': '<f4', 'fortran_order': None, 'shape': (1,)}", "lacks"),
        ];
        for (text, what) in wrong {
            assert!(parse(text).unwrap_err().contains(what), "{text}: {:?}", parse(text));
        }
    }
}
