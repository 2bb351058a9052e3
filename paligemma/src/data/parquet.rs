//! Parquet files as Hugging Face's `datasets` writes them: a picture is a struct of `bytes` and `path`, or bytes alone;
//! texts, numbers and lists of them are columns.
//!
//! The crate `parquet` reads the format. It believes a page's header about the size that the page will have, and a
//! dictionary's about its entries; so all headers of the columns that are used are read here once, and what asks for too
//! much is refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::{ColumnDescriptor, Type};
use serde_json::{Map, Value};

use super::example::{ImageFile, Record};
use super::jsonl::MAX_IMAGES;
use crate::{Error, Result};

/// The most bytes of a file's description of itself.
const MAX_FOOTER: u64 = 64 << 20;
/// The most bytes that a page may have when it is small in the file.
const MAX_PAGE: u64 = 64 << 20;
/// The most bytes of a page for each of its bytes in the file, beyond [`MAX_PAGE`].
const MAX_GROWTH: u64 = 4;
/// Values that a page may have whatever its size: absent ones take no room.
const FREE_VALUES: u64 = 1 << 20;

/// A Parquet file: its description, not its data.
#[derive(Debug)]
pub(super) struct Parquet {
    path: PathBuf,
    metadata: ParquetMetaData,
    /// The first row of each row group, and the number of rows.
    starts: Vec<usize>,
    images: Images,
    /// The fields of the templates and their columns.
    texts: Vec<(String, usize)>,
    /// Where pictures are looked for of which the file has the path only.
    image_dir: PathBuf,
}

/// The columns of the pictures; neither where the data are texts.
#[derive(Debug, PartialEq)]
struct Images {
    bytes: Option<usize>,
    path: Option<usize>,
}

/// What a row has in a column.
#[derive(Debug)]
enum Cells {
    One(Option<Cell>),
    List(Vec<Option<Cell>>),
}

#[derive(Debug)]
enum Cell {
    Bytes(Vec<u8>),
    Other(Value),
}

impl Parquet {
    /// Reads the description and all page headers of the columns that `image` and `fields` name. Pictures without bytes
    /// are looked for in `image_dir`, or else beside the file.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: not a Parquet file, broken or beyond a limit, compressed in another way than Snappy; a
    /// column that is not there or of an unsupported type.
    pub(super) fn open(
        path: &Path,
        image_dir: Option<&Path>,
        image: &str,
        fields: &[&str],
    ) -> Result<Parquet> {
        let place = |error: Error| error.at(path.display().to_string());
        let metadata = read_metadata(path).map_err(place)?;
        let columns = leaves(metadata.file_metadata().schema_descr().root_schema());
        let images = image_columns(&columns, &metadata, image).map_err(place)?;
        let mut texts = Vec::new();
        for &field in fields {
            let column = *columns.get(field).ok_or_else(|| place(missing(&columns, field)))?;
            check_text(field, &metadata.file_metadata().schema_descr().column(column)).map_err(place)?;
            if !texts.iter().any(|(name, _)| name == field) {
                texts.push((field.to_owned(), column));
            }
        }
        let image_dir = image_dir.or(path.parent()).unwrap_or(Path::new("")).to_path_buf();
        let mut parquet =
            Parquet { path: path.to_path_buf(), metadata, starts: vec![0], images, texts, image_dir };
        parquet.check().map_err(place)?;
        Ok(parquet)
    }

    /// Checks the row groups and the pages of the columns that are used.
    fn check(&mut self) -> Result<()> {
        let file = File::open(&self.path).map_err(|error| Error::io(&self.path, error))?;
        let size = file.metadata().map_err(|error| Error::io(&self.path, error))?.len();
        let mut reader = BufReader::new(file);
        let used: Vec<usize> = self.columns().collect();
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            let place = |error: Error| error.at(format!("row group {number}"));
            // A row takes room, if only that of its picture's size: more rows than bytes are a lie that would be
            // believed when they are shuffled.
            let start = self.starts[number];
            let rows = u64::try_from(group.num_rows()).ok().filter(|rows| start as u64 + rows <= size);
            let rows = rows.ok_or_else(|| {
                place(Error::input(format!("this Parquet file claims {} rows", group.num_rows())))
                    .expected("no more rows than bytes")
            })?;
            for &column in &used {
                let chunk =
                    group.columns().get(column).ok_or_else(|| place(broken("a column is missing")))?;
                check_pages(&mut reader, size, chunk, rows)
                    .map_err(|error| place(error).at(format!("column {}", chunk.column_path().string())))?;
            }
            self.starts.push(start + rows as usize);
        }
        Ok(())
    }

    fn columns(&self) -> impl Iterator<Item = usize> {
        let texts = self.texts.iter().map(|&(_, column)| column);
        self.images.bytes.into_iter().chain(self.images.path).chain(texts)
    }

    /// The number of rows.
    pub(super) fn len(&self) -> usize {
        *self.starts.last().unwrap_or(&0)
    }

    /// `part.parquet:7`; rows count from 0, as pandas and `datasets` count them.
    pub(super) fn place(&self, i: usize) -> String {
        format!("{}:{i}", self.path.display())
    }

    /// A row.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: broken data, no picture, a text that is not UTF-8.
    pub(super) fn record(&self, i: usize) -> Result<Record> {
        let read = || -> Result<Record> {
            // The file's handles share one position, so that each reader opens it anew.
            let file = Arc::new(File::open(&self.path).map_err(|error| Error::io(&self.path, error))?);
            let cells = |column: usize| {
                self.cells(&file, i, column)
                    .map_err(|error| broken(&error.to_string()))
                    .map_err(|error| error.at(format!("column {}", self.name(column))))
            };
            let images = self.images(&cells)?;
            let mut values = Map::new();
            for (name, column) in &self.texts {
                let value = |cell: Option<Cell>| match cell {
                    None => Ok(Value::Null),
                    Some(Cell::Other(value)) => Ok(value),
                    Some(Cell::Bytes(bytes)) => text(bytes, name).map(Value::String),
                };
                let value = match cells(*column)? {
                    Cells::One(cell) => value(cell)?,
                    Cells::List(list) => Value::Array(list.into_iter().map(value).collect::<Result<_>>()?),
                };
                values.insert(name.clone(), value);
            }
            Ok(Record { values, images })
        };
        // The crate asserts what a broken file can violate.
        let record = catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|_| Err(broken("its data contradict each other")));
        record.map_err(|error| error.at(self.place(i)))
    }

    fn name(&self, column: usize) -> String {
        self.metadata.file_metadata().schema_descr().column(column).path().string()
    }

    fn images(&self, cells: &dyn Fn(usize) -> Result<Cells>) -> Result<Vec<ImageFile>> {
        let list = |column: Option<usize>| -> Result<Vec<Option<Vec<u8>>>> {
            let bytes = |cell: Option<Cell>| match cell {
                Some(Cell::Bytes(bytes)) => Some(bytes),
                _ => None,
            };
            Ok(match column.map(cells).transpose()? {
                None => Vec::new(),
                Some(Cells::One(cell)) => vec![bytes(cell)],
                Some(Cells::List(list)) => list.into_iter().map(bytes).collect(),
            })
        };
        let (bytes, paths) = (list(self.images.bytes)?, list(self.images.path)?);
        let count = bytes.len().max(paths.len());
        if count == 0 && self.images == (Images { bytes: None, path: None }) {
            return Ok(Vec::new());
        }
        if !(1..=MAX_IMAGES).contains(&count) {
            return Err(Error::input(format!("the example has {count} pictures"))
                .expected(format!("1 to {MAX_IMAGES}")));
        }
        let mut paths = paths.into_iter();
        let mut bytes = bytes.into_iter();
        let mut image = || match (bytes.next().flatten(), paths.next().flatten()) {
            (Some(bytes), _) => Ok(ImageFile::Bytes(bytes)),
            (None, Some(path)) => {
                let path = self.image_dir.join(text(path, "path")?);
                match path.is_file() {
                    true => Ok(ImageFile::Path(path)),
                    false => Err(Error::input(format!("there is no image {}", path.display()))),
                }
            }
            (None, None) => Err(Error::input("the row has no picture").expected("its bytes or its path")),
        };
        (0..count).map(|_| image()).collect()
    }

    /// What row `i` has in a column.
    fn cells(&self, file: &Arc<File>, i: usize, column: usize) -> Result<Cells, ParquetError> {
        let number = self.starts.partition_point(|&start| start <= i) - 1;
        let group = self.metadata.row_group(number);
        let description = self.metadata.file_metadata().schema_descr().column(column);
        let pages =
            SerializedPageReader::new(file.clone(), group.column(column), group.num_rows() as usize, None)?;
        let skip = i - self.starts[number];
        let number = |n: i64| Cell::Other(n.into());
        let real = |x: f64| Cell::Other(Value::from(x));
        let is_unsigned = matches!(
            description.converted_type(),
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64
        );
        match get_column_reader(description.clone(), Box::new(pages)) {
            ColumnReader::ByteArrayColumnReader(reader) => {
                read_row(reader, &description, skip, |bytes| Cell::Bytes(bytes.data().to_vec()))
            }
            ColumnReader::Int32ColumnReader(reader) => read_row(reader, &description, skip, |n| {
                number(if is_unsigned { i64::from(n as u32) } else { i64::from(n) })
            }),
            ColumnReader::Int64ColumnReader(reader) => read_row(reader, &description, skip, |n| {
                if is_unsigned { Cell::Other((n as u64).into()) } else { number(n) }
            }),
            ColumnReader::FloatColumnReader(reader) => {
                // The shortest decimal of the f32, not that of the f64 nearest to it.
                read_row(reader, &description, skip, |x| real(x.to_string().parse().unwrap_or(f64::from(x))))
            }
            ColumnReader::DoubleColumnReader(reader) => read_row(reader, &description, skip, real),
            ColumnReader::BoolColumnReader(reader) => {
                read_row(reader, &description, skip, |truth| Cell::Other(truth.into()))
            }
            _ => Err(ParquetError::NYI("this type of column".into())),
        }
    }
}

fn read_row<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    description: &ColumnDescriptor,
    skip: usize,
    cell: impl Fn(T::T) -> Cell,
) -> Result<Cells, ParquetError> {
    let short = || ParquetError::EOF("the column has fewer rows than its row group".into());
    if reader.skip_records(skip)? != skip {
        return Err(short());
    }
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (rows, _, _) = reader.read_records(1, Some(&mut definitions), Some(&mut repetitions), &mut values)?;
    if rows != 1 {
        return Err(short());
    }
    let mut values = values.into_iter().map(cell);
    if description.max_def_level() == 0 {
        return Ok(Cells::One(values.next()));
    }
    let mut next = |level: i16| if level == description.max_def_level() { values.next() } else { None };
    if description.max_rep_level() == 0 {
        return Ok(Cells::One(definitions.first().and_then(|&level| next(level))));
    }
    // Below this level there is no element: the list is empty or absent.
    let element = description.repeated_ancestor_def_level();
    let elements = definitions.iter().filter(|&&level| level >= element);
    Ok(Cells::List(elements.map(|&level| next(level)).collect()))
}

fn broken(why: &str) -> Error {
    Error::input(format!("this Parquet file is broken: {why}"))
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::input(format!("the column `{name}` is not UTF-8")))
}

fn read_metadata(path: &Path) -> Result<ParquetMetaData> {
    let io = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    // The end: the description, its length in four bytes, the magic.
    let mut end = [0; 8];
    if size >= 12 {
        file.seek(SeekFrom::Start(size - 8)).and_then(|_| file.read_exact(&mut end)).map_err(io)?;
    }
    if end[4..] != *b"PAR1" {
        let is_encrypted = end[4..] == *b"PARE";
        let what = if is_encrypted { "this Parquet file is encrypted" } else { "this is not a Parquet file" };
        return Err(Error::input(what).expected("\"PAR1\" at its end").hint("is the file whole?"));
    }
    let footer = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if footer > MAX_FOOTER || footer > size - 12 {
        return Err(broken(&format!("its description claims {footer} bytes"))
            .expected(format!("at most {} MiB, and within the file", MAX_FOOTER >> 20)));
    }
    let read = || ParquetMetaDataReader::new().parse_and_finish(&file);
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(metadata) => metadata.map_err(|error| broken(&error.to_string()).because(error)),
        Err(_) => Err(broken("its description contradicts itself")),
    }
}

/// The columns by the names that a reader of the data has for them: the levels that only make a list are left out.
fn leaves(root: &Type) -> BTreeMap<String, usize> {
    fn walk(
        field: &Type,
        prefix: &str,
        is_element: bool,
        next: &mut usize,
        found: &mut BTreeMap<String, usize>,
    ) {
        let name = match (is_element, prefix.is_empty()) {
            (true, _) => prefix.to_owned(),
            (false, true) => field.name().to_owned(),
            (false, false) => format!("{prefix}.{}", field.name()),
        };
        if field.is_primitive() {
            found.insert(name, *next);
            *next += 1;
            return;
        }
        let info = field.get_basic_info();
        let is_list = info.converted_type() == ConvertedType::LIST
            || matches!(info.logical_type_ref(), Some(LogicalType::List));
        // optional group NAME (LIST) { repeated group list { optional TYPE element } }
        let is_middle = is_element
            && info.has_repetition()
            && info.repetition() == Repetition::REPEATED
            && field.get_fields().len() == 1;
        for child in field.get_fields() {
            walk(child, &name, is_list || is_middle, next, found);
        }
    }
    let (mut next, mut found) = (0, BTreeMap::new());
    for field in root.get_fields() {
        walk(field, "", false, &mut next, &mut found);
    }
    found
}

fn missing(columns: &BTreeMap<String, usize>, name: &str) -> Error {
    let below = format!("{name}.");
    let has: Vec<&str> = columns.keys().map(String::as_str).take(24).collect();
    let error = Error::input(format!("there is no column `{name}`"));
    match columns.keys().find(|column| column.starts_with(&below)) {
        Some(inner) => error.hint(format!("`{name}` has columns in it, as `{inner}`")),
        None => error.expected(format!("one of {}", has.join(", "))),
    }
}

fn image_columns(
    columns: &BTreeMap<String, usize>,
    metadata: &ParquetMetaData,
    image: &str,
) -> Result<Images> {
    let schema = metadata.file_metadata().schema_descr();
    let is_bytes = |column: usize| schema.column(column).physical_type() == parquet::basic::Type::BYTE_ARRAY;
    let inner = |name: &str| columns.get(&format!("{image}.{name}")).copied();
    let images = match columns.get(image) {
        Some(&column) if schema.column(column).converted_type() == ConvertedType::UTF8 => {
            Images { bytes: None, path: Some(column) }
        }
        Some(&column) => Images { bytes: Some(column), path: None },
        None => Images { bytes: inner("bytes"), path: inner("path") },
    };
    let found: Vec<usize> = images.bytes.into_iter().chain(images.path).collect();
    if image.is_empty() {
        return Ok(Images { bytes: None, path: None });
    }
    if found.is_empty() {
        return Err(missing(columns, image));
    }
    if !found.iter().all(|&column| is_bytes(column)) {
        return Err(Error::input(format!("the column `{image}` holds no pictures"))
            .expected("the bytes of image files, or a struct of `bytes` and `path`"));
    }
    for &column in &found {
        check_depth(image, &schema.column(column))?;
    }
    Ok(images)
}

fn check_depth(name: &str, column: &ColumnDescriptor) -> Result<()> {
    if column.max_rep_level() > 1 {
        return Err(Error::input(format!("the column `{name}` is a list of lists, which is not supported")));
    }
    Ok(())
}

/// Refuses a column whose values are not what they seem: a date is stored as a number.
fn check_text(name: &str, column: &ColumnDescriptor) -> Result<()> {
    use parquet::basic::Type as Physical;
    check_depth(name, column)?;
    let is_plain = matches!(
        column.converted_type(),
        ConvertedType::NONE
            | ConvertedType::UTF8
            | ConvertedType::ENUM
            | ConvertedType::JSON
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64
            | ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32
            | ConvertedType::UINT_64
    ) && !matches!(
        column.logical_type_ref(),
        Some(
            LogicalType::Decimal(_)
                | LogicalType::Date
                | LogicalType::Time(_)
                | LogicalType::Timestamp(_)
                | LogicalType::Variant(_)
        )
    );
    let physical = column.physical_type();
    if !is_plain || matches!(physical, Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY) {
        return Err(Error::input(format!("the column `{name}` is of a type that is not supported"))
            .expected("texts, whole or real numbers, truth values, or lists of them"));
    }
    Ok(())
}

/// Reads the headers of all pages of a column in a row group, and refuses what would take too much memory or is not
/// within the file.
fn check_pages(
    reader: &mut BufReader<File>,
    size: u64,
    chunk: &ColumnChunkMetaData,
    rows: u64,
) -> Result<()> {
    match chunk.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY => {}
        other => {
            let name = other.to_string();
            let name = name.split('(').next().unwrap_or(&name).to_owned();
            return Err(Error::input(format!(
                "this Parquet file is compressed with {name}, which is not supported"
            ))
            .expected("Snappy, as `datasets` writes, or none")
            .hint("write it anew: `pyarrow.parquet.write_table(table, path, compression=\"snappy\")`"));
        }
    }
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let (start, len) = (u64::try_from(start).ok(), u64::try_from(chunk.compressed_size()).ok());
    let range = start.zip(len).filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= size));
    let Some((start, len)) = range else { return Err(broken("a column lies outside the file")) };
    let (mut at, end) = (start, start + len);
    let is_list = chunk.column_descr().max_rep_level() > 0;
    let mut found = 0u64;
    while at < end {
        reader.seek(SeekFrom::Start(at)).map_err(|_| broken("a page lies outside the file"))?;
        let header = PageHeader::read(&mut Counted { reader, read: 0, limit: end - at })?;
        let inside = header.compressed <= end - at - header.len;
        if !inside || header.uncompressed > MAX_PAGE.max(header.compressed.saturating_mul(MAX_GROWTH)) {
            return Err(broken(&format!(
                "a page of {} bytes claims to become {}",
                header.compressed, header.uncompressed
            ))
            .expected(format!("at most {} MiB or {MAX_GROWTH} times its size", MAX_PAGE >> 20)));
        }
        let room =
            if header.is_dictionary { header.uncompressed } else { header.uncompressed.max(FREE_VALUES) };
        // Without lists a page has a value of each row, and rows are bounded already.
        if header.values > room && (is_list || header.is_dictionary) {
            return Err(broken(&format!(
                "a page of {} bytes claims {} values",
                header.uncompressed, header.values
            )));
        }
        if !header.is_dictionary {
            found += header.values;
        }
        at += header.len + header.compressed;
    }
    if !is_list && found != rows {
        return Err(broken(&format!("a column has {found} values in {rows} rows")));
    }
    Ok(())
}

/// What is checked of a page's header (Thrift's compact protocol; parquet-format, `PageHeader`).
#[derive(Debug, Default)]
struct PageHeader {
    /// Bytes of the header itself.
    len: u64,
    uncompressed: u64,
    compressed: u64,
    values: u64,
    is_dictionary: bool,
}

impl PageHeader {
    fn read(input: &mut Counted<'_>) -> Result<PageHeader> {
        const DICTIONARY: i64 = 2;
        let size = |n: i64| u64::try_from(n).map_err(|_| broken("a page's size is negative"));
        let mut header = PageHeader::default();
        let mut field = 0;
        while let Some((id, kind)) = input.field(field)? {
            field = id;
            match (id, kind) {
                (1, INT) => header.is_dictionary = input.int()? == DICTIONARY,
                (2, INT) => header.uncompressed = size(input.int()?)?,
                (3, INT) => header.compressed = size(input.int()?)?,
                // The headers of data pages, dictionaries and data pages of version 2: each begins with its values.
                (5 | 7 | 8, STRUCT) => {
                    let mut inner = 0;
                    while let Some((id, kind)) = input.field(inner)? {
                        inner = id;
                        match (id, kind) {
                            (1, INT) => header.values = size(input.int()?)?,
                            _ => input.skip(kind, 0)?,
                        }
                    }
                }
                _ => input.skip(kind, 0)?,
            }
        }
        header.len = input.read;
        Ok(header)
    }
}

/// Thrift's numbers for i32 and for a struct.
const INT: u8 = 5;
const STRUCT: u8 = 12;

/// Reads Thrift's compact protocol up to a limit.
struct Counted<'r> {
    reader: &'r mut BufReader<File>,
    read: u64,
    limit: u64,
}

impl Counted<'_> {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.advance(1)?;
        self.reader.read_exact(&mut byte).map_err(|_| broken("a page's header is cut off"))?;
        Ok(byte[0])
    }

    fn advance(&mut self, count: u64) -> Result<()> {
        self.read = self.read.saturating_add(count);
        if self.read > self.limit { Err(broken("a page's header is cut off")) } else { Ok(()) }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken("a number in a page's header is too long"))
    }

    /// Zigzag: 0, -1, 1, -2, …
    fn int(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The number and the type of the next field of a struct, or none at its end.
    fn field(&mut self, last: i64) -> Result<Option<(i64, u8)>> {
        let byte = self.byte()?;
        Ok(match (byte >> 4, byte & 15) {
            (_, 0) => None,
            (0, kind) => Some((self.int()?, kind)),
            (step, kind) => Some((last.wrapping_add(i64::from(step)), kind)),
        })
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<()> {
        if depth > 8 {
            return Err(broken("a page's header is too deep"));
        }
        match kind {
            1 | 2 => {} // True and false stand in the type itself.
            3 => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            7 => self.pass(8)?,
            8 => {
                let len = self.varint()?;
                self.pass(len)?;
            }
            9 | 10 => {
                let byte = self.byte()?;
                let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                // A truth value in a list takes a byte.
                let element = if byte & 15 <= 2 { 3 } else { byte & 15 };
                for _ in 0..len {
                    self.skip(element, depth + 1)?;
                }
            }
            STRUCT => {
                let mut field = 0;
                while let Some((id, kind)) = self.field(field)? {
                    field = id;
                    self.skip(kind, depth + 1)?;
                }
            }
            other => return Err(broken(&format!("a page's header has a field of type {other}"))),
        }
        Ok(())
    }

    fn pass(&mut self, count: u64) -> Result<()> {
        self.advance(count)?;
        // Within the file, whose size fits.
        self.reader.seek_relative(count as i64).map_err(|_| broken("a page's header is cut off"))
    }
}
