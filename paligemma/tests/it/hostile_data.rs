//! Broken and hostile data: each is an error of kind `Input` that says what is wrong and where, in bounded memory.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::Arc;

use paligemma::Kind;
use paligemma::data::{Dataset, Fields, ImageFile, Template};
use parquet::basic::Compression;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter,
    RowGroupMetaData,
};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::SchemaDescriptor;

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/data").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(golden_path(name)).unwrap()
}

fn fields(prefix: &str, suffix: &str) -> Fields {
    Fields {
        prefix: Template::parse(prefix).unwrap(),
        suffix: Template::parse(suffix).unwrap(),
        ..Fields::default()
    }
}

/// Writes a file anew. What is cut to nothing and written again is flushed to the disk when it is closed, thousands of times.
fn write(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// Reads all of a data set, pictures too; the first error, or the number of examples.
fn read(path: &Path, fields: Fields) -> paligemma::Result<usize> {
    let data = Dataset::open(&[path.to_path_buf()], None, fields)?;
    for i in 0..data.len() {
        let example = data.example(i)?;
        for image in &example.images {
            image.decode(Default::default()).map_err(|error| error.at(&example.place))?;
        }
    }
    Ok(data.len())
}

#[test]
fn every_bad_line_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/image/files/png-2-8.png"),
        folder.path().join("p.png"),
    )
    .unwrap();
    let path = folder.path().join("d.jsonl");
    let open = |line: &[u8]| {
        // A good line before and one behind.
        let good = br#"{"image":"p.png","prefix":"x","suffix":"y"}"#;
        fs::write(&path, [good, &b"\n"[..], line, b"\n", good].concat()).unwrap();
        Dataset::open(from_ref(&path), None, Fields::default()).unwrap()
    };
    // The column, from 1 on, or 0 where the whole line is meant.
    let mut wrong = Vec::new();
    let mut check = |line: &[u8], column: usize, what: &str| {
        let shown = line[..line.len().min(80)].escape_ascii();
        let data = open(line);
        assert_eq!(data.len(), 3, "{shown}");
        assert!(data.example(0).is_ok() && data.example(2).is_ok(), "{shown}");
        let error = data.example(1).expect_err(&shown.to_string());
        assert_eq!(error.kind(), Kind::Input, "{shown}: {error}");
        let place = match column {
            0 => format!("\n  in {}:2\n", path.display()),
            column => format!("\n  in {}:2:{column}\n", path.display()),
        };
        if !format!("{error}\n").contains(&place) || !error.to_string().contains(what) {
            wrong.push(format!("{shown}: expected {place} {what}, got {error}"));
        }
    };
    check(b"not json", 2, "not a JSON object: expected ident");
    check(b"nul", 3, "EOF while parsing a value");
    check(b"null", 4, "invalid type: null, expected a JSON object");
    check(b"7", 1, "expected a JSON object");
    check(b"\"x\"", 3, "expected a JSON object");
    check(b"[]", 2, "invalid type: sequence");
    check(b"{", 1, "EOF while parsing an object");
    check(b"{}", 0, "the field `image` is no path");
    check(b"}", 1, "expected value");
    check(b"{}}", 3, "trailing characters");
    check(br#"{"image":"p.png","prefix":"x","suffix":"y"} {}"#, 45, "trailing characters");
    check(br#"{"image":"p.png","prefix":"x","suffix":"y"}x"#, 44, "trailing characters");
    check(br#"{"image":"p.png","prefix":"x" "suffix":"y"}"#, 31, "expected `,`");
    check(br#"{"image":"p.png","prefix":"x","suffix":"y",}"#, 44, "trailing comma");
    check(br#"{'image':'p.png'}"#, 2, "key must be a string");
    check(br#"{image:"p.png"}"#, 2, "key must be a string");
    check(br#"{"image":p.png}"#, 10, "expected value");
    check(br#"{"image":"p.png"#, 15, "EOF while parsing a string");
    check(b"{\"image\":\"p.png\",\"prefix\":\"\0\",\"suffix\":\"y\"}", 28, "control character");
    check(b"{\"image\":\"p.png\",\"prefix\":\"a\tb\",\"suffix\":\"y\"}", 29, "control character");
    check(b"\0", 1, "expected value");
    check(b"{\"image\":\"p.png\",\"prefix\":\"\xff\",\"suffix\":\"y\"}", 28, "not UTF-8");
    check(b"{\"image\":\"p.png\",\"prefix\":\"\xed\xa0\x80\",\"suffix\":\"y\"}", 28, "not UTF-8");
    check(b"\xff\xfe{\0}\0", 1, "not UTF-8");
    check(b"{\"image\":\"p.png\",\"prefix\":\"\xc3", 28, "not UTF-8");
    check(br#"{"image":"p.png","prefix":"\ud800","suffix":"y"}"#, 34, "hex escape");
    check(br#"{"image":"p.png","prefix":"\x","suffix":"y"}"#, 29, "invalid escape");
    check(
        br#"{"image":"p.png","image":"q.png","prefix":"x","suffix":"y"}"#,
        24,
        "\"image\" stands in it twice",
    );
    check(
        br#"{"image":"p.png","prefix":"x","suffix":"y","suffix":"z"}"#,
        51,
        "\"suffix\" stands in it twice",
    );
    check(br#"{"image":"p.png","prefix":"x","suffix":NaN}"#, 40, "expected value");
    check(br#"{"image":"p.png","prefix":"x","suffix":1e999}"#, 44, "number out of range");
    check(br#"{"image":"p.png","prefix":"x","suffix":01}"#, 41, "invalid number");
    check(&[b"{\"a\":".as_slice(), &b"[".repeat(200), b"}"].concat(), 132, "recursion limit exceeded");
    check(&b"[".repeat(100_000), 1, "expected a JSON object");
    check(br#"{"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":null,"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":7,"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":[],"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":["p.png",7],"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":{"path":"p.png"},"prefix":"x","suffix":"y"}"#, 0, "the field `image` is no path");
    check(br#"{"image":"","prefix":"x","suffix":"y"}"#, 0, "there is no image");
    check(br#"{"image":"q.png","prefix":"x","suffix":"y"}"#, 0, "there is no image q.png");
    check(br#"{"image":".","prefix":"x","suffix":"y"}"#, 0, "there is no image .");
    check(br#"{"image":"p.png/","prefix":"x","suffix":"y"}"#, 0, "there is no image p.png/");
    check(br#"{"image":"../../../../nowhere.png","prefix":"x","suffix":"y"}"#, 0, "there is no image ../");
    check(br#"{"image":"p.png\u0000","prefix":"x","suffix":"y"}"#, 0, "there is no image p.png");
    check(br#"{"image":"https://example.org/p.png","prefix":"x","suffix":"y"}"#, 0, "is an address");
    check(br#"{"image":["p.png","q.png"],"prefix":"x","suffix":"y"}"#, 0, "there is no image q.png");
    let many =
        format!("{{\"image\":[{}\"p.png\"],\"prefix\":\"x\",\"suffix\":\"y\"}}", "\"p.png\",".repeat(64));
    check(many.as_bytes(), 0, "the example has 65 pictures");
    check(br#"{"image":"p.png","suffix":"y"}"#, 0, "there is no field `prefix`");
    check(br#"{"image":"p.png","Prefix":"x","suffix":"y"}"#, 0, "did you mean `Prefix`?");
    check(br#"{"image":"p.png","prefix":"x"}"#, 0, "there is no field `suffix`");
    check(br#"{"image":"p.png","prefix":null,"suffix":"y"}"#, 0, "the field `prefix` is null");
    check(br#"{"image":"p.png","prefix":["x"],"suffix":"y"}"#, 0, "the field `prefix` is a list");
    check(br#"{"image":"p.png","prefix":{},"suffix":"y"}"#, 0, "the field `prefix` is an object");
    check(br#"{"image":"p.png","prefix":"x","suffix":null}"#, 0, "the field `suffix` is null");
    check(br#"{"image":"p.png","prefix":"x","suffix":[]}"#, 0, "the field `suffix` is an empty list");
    check(br#"{"image":"p.png","prefix":"x","suffix":["y",null]}"#, 0, "the field `suffix` is null");
    check(br#"{"image":"p.png","prefix":"x","suffix":[["y"]]}"#, 0, "the field `suffix` is a list");
    let long =
        format!("{{\"image\":\"p.png\",\"prefix\":\"{}\",\"suffix\":\"y\"}}", "x".repeat((1 << 20) + 1));
    check(long.as_bytes(), 0, "the field `prefix` has 1048577 bytes");
    let long = format!("{{\"image\":\"p.png\",\"prefix\":\"{}\",\"suffix\":\"y\"}}", "x".repeat(17 << 20));
    check(long.as_bytes(), 0, "the line is over 16 MiB");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What looks odd and is right.
    let fine = |line: &[u8], len: usize| {
        let data = open(line);
        assert_eq!(data.len(), len, "{}", line.escape_ascii());
        (0..len).for_each(|i| drop(data.example(i).unwrap()));
    };
    fine(b"", 2);
    fine(b" \t\r", 2);
    fine(b"\n\n", 2);
    fine(b"{\"image\":\"p.png\",\"prefix\":\"x\",\"suffix\":\"y\"}\r", 3);
    fine(b"\xef\xbb\xbf{\"image\":\"p.png\",\"prefix\":\"x\",\"suffix\":\"y\"}", 3);
    fine(br#" { "image" : [ "p.png" , "./p.png" ] , "prefix" : "" , "suffix" : "" } "#, 3);
    fine(br#"{"image":"p.png","prefix":"\u0000","suffix":7,"other":{"image":[null]}}"#, 3);
}

/// A tar header of a file; `change` may spoil it before its checksum is made.
fn header(name: &str, size: u64, kind: u8, change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_entry_type(tar::EntryType::new(kind));
    change(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn every_bad_tar_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tar");
    let check = |name: &str, bytes: &[u8], what: &str| {
        write(&path, bytes);
        let error = read(&path, fields("p", "s")).expect_err(name);
        assert_eq!(error.kind(), Kind::Input, "{name}: {error}");
        assert!(error.to_string().contains("s.tar"), "{name}: {error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    };
    let plain = |change: fn(&mut tar::Header)| header("a.png", 4, b'0', change);
    let end = [0; 1024];
    let data = [b'x'; 512];
    check("empty", b"", "empty");
    check("zeros", &end, "empty");
    check("half a header", &plain(|_| ())[..300], "broken");
    check("no tar", &b"text".repeat(256), "broken");
    check("checksum", &[&plain(|_| ())[..100], b"7", &plain(|_| ())[101..], &data].concat(), "checksum");
    check("cut off", &plain(|_| ()), "cut off");
    check("huge", &plain(|h| h.set_size(u64::MAX >> 2)), "cut off");
    check("beyond all", &plain(|h| h.as_old_mut().size = [0xff; 12]), "broken");
    check("size of letters", &plain(|h| h.as_old_mut().size = *b"not a number"), "broken");
    check("long name beyond the file", &header("././@LongLink", 1 << 40, b'L', |_| ()), "cut off");
    let long_name = [header("././@LongLink", 100_000, b'L', |_| ()), vec![b'n'; 100_352]].concat();
    check("long name", &long_name, "100000 bytes");
    let name_only = [header("././@LongLink", 4, b'L', |_| ()), b"a.png".to_vec(), vec![0; 507]].concat();
    check("nothing behind a name", &[&name_only[..], &end].concat(), "there is no example");
    let pax = |text: &[u8]| {
        let mut bytes = [header("pax", text.len() as u64, b'x', |_| ()), text.to_vec()].concat();
        bytes.resize(1024, 0);
        [bytes, plain(|_| ()), data.to_vec(), end.to_vec()].concat()
    };
    check("pax size", &pax(b"12 size=999\n"), "a pax header gives a size");
    check("pax sparse", &pax(b"22 GNU.sparse.major=1\n"), "sparse");
    check("pax nonsense", &pax(b"no pax\n"), "broken");
    check(
        "sparse",
        &[plain(|h| h.set_entry_type(tar::EntryType::GNUSparse)), data.to_vec()].concat(),
        "sparse",
    );
    let bad_name = plain(|h| h.as_old_mut().name[..2].copy_from_slice(b"\xff\xfe"));
    check("name", &[&bad_name[..], &data].concat(), "not UTF-8");
    let twice = [plain(|_| ()), data.to_vec(), plain(|_| ()), data.to_vec()].concat();
    check("twice", &twice, "the file a.png is there twice");
    check("no picture", &[&plain(|_| ())[..], &data, &end].concat(), "not supported");
    let text = [header("a.json", 2, b'0', |_| ()), b"{}".to_vec(), vec![0; 510]].concat();
    check("no pictures", &[&text[..], &end].concat(), "the example has 0 pictures");
    let big = [header("a.json", 20 << 20, b'0', |_| ()), vec![0; 20 << 20]].concat();
    check("big json", &[&plain(|_| ())[..], &data, &big, &end].concat(), "over 16 MiB");

    // Cut at every block: an error, or the examples before the cut.
    let whole = golden("webdataset.tar");
    for len in (0..whole.len()).step_by(256) {
        write(&path, &whole[..len]);
        match read(&path, fields("{prefix}", "{suffix}")) {
            Ok(examples) => assert!(examples <= 4, "{len}"),
            Err(error) => assert_eq!(error.kind(), Kind::Input, "{len}: {error}"),
        }
    }
}

/// A Parquet file of pictures with another description.
fn described(change: impl Fn(i64) -> i64) -> Vec<u8> {
    let whole = golden("pages.parquet");
    let file = File::open(golden_path("pages.parquet")).unwrap();
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let groups = metadata.row_groups().iter().map(|group| {
        let rows = change(group.num_rows());
        group.clone().into_builder().set_num_rows(rows).build().unwrap()
    });
    let metadata = metadata.clone().into_builder().set_row_groups(groups.collect()).build();
    let footer = u32::from_le_bytes(whole[whole.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut file = whole[..whole.len() - 8 - footer].to_vec();
    ParquetMetaDataWriter::new(&mut file, &metadata).finish().unwrap();
    file
}

#[test]
fn every_bad_parquet_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.parquet");
    let check = |name: &str, bytes: &[u8], what: &str| {
        write(&path, bytes);
        let error = read(&path, Fields::default()).expect_err(name);
        assert_eq!(error.kind(), Kind::Input, "{name}: {error}");
        assert!(error.to_string().contains("p.parquet"), "{name}: {error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    };
    let whole = golden("pages.parquet");
    let end = |footer: u32, magic: &[u8]| [&whole[..whole.len() - 8], &footer.to_le_bytes(), magic].concat();
    check("empty", b"", "not a Parquet file");
    check("short", b"PAR1PAR1", "not a Parquet file");
    check("cut", &whole[..whole.len() - 1], "not a Parquet file");
    check("encrypted", &end(100, b"PARE"), "encrypted");
    check("footer beyond the file", &end(u32::MAX, b"PAR1"), "claims 4294967295 bytes");
    check("footer of nothing", &end(0, b"PAR1"), "broken");
    check("footer of half", &end(100, b"PAR1"), "broken");
    fs::write(&path, described(|rows| rows)).unwrap();
    assert_eq!(read(&path, Fields::default()).unwrap(), 120);
    check("rows beyond counting", &described(|_| 1 << 60), "claims 1152921504606846976 rows");
    check("less than no rows", &described(|_| -1), "claims -1 rows");
    check("more rows than values", &described(|rows| rows + 1), "a column has 120 values in 121 rows");

    let column = |fields: Fields, what: &str| {
        fs::write(&path, golden("hf.parquet")).unwrap();
        let error = read(&path, fields).unwrap_err();
        assert!(error.kind() == Kind::Input && error.to_string().contains(what), "{error}");
    };
    column(Fields::default(), "there is no column `prefix`");
    column(fields("{votes}", "x"), "`votes` has columns in it, as `votes.answer`");
    column(Fields { image: "picture".into(), ..fields("x", "x") }, "there is no column `picture`");
    column(Fields { image: "n".into(), ..fields("x", "x") }, "the column `n` holds no pictures");
    column(Fields { image: "question".into(), ..fields("x", "x") }, "there is no image");
}

/// Hostile files beside a good one: small, but asking for much.
fn hostile_files(at: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(at.join(name), bytes).unwrap();
    let sparse = |name: &str, head: &[u8], len: u64| {
        let mut file = File::create(at.join(name)).unwrap();
        file.write_all(head).unwrap();
        file.set_len(len).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file
    };
    // A line of a gigabyte, and a good one behind.
    let mut file = sparse("line.jsonl", b"{\"image\":\"", 1 << 30);
    file.write_all(b"\n{\"image\":\"p.png\",\"prefix\":\"x\",\"suffix\":\"y\"}").unwrap();
    // A name of a gigabyte, in a file that is as long; a picture and a text of a gigabyte.
    sparse("name.tar", &header("././@LongLink", 1 << 30, b'L', |_| ()), (1 << 30) + 4096);
    sparse("pax.tar", &header("pax", 1 << 30, b'x', |_| ()), (1 << 30) + 4096);
    sparse("picture.tar", &header("a.png", 1 << 30, b'0', |_| ()), (1 << 30) + 4096);
    let text = [header("a.png", 0, b'0', |_| ()), header("a.json", 1 << 30, b'0', |_| ())].concat();
    sparse("text.tar", &text, (1 << 30) + 4096);
    write("rows.parquet", &described(|_| 1 << 60));
    sparse("end.parquet", b"PAR1", 1 << 30).write_all(b"\xff\xff\xff\x3fPAR1").unwrap();
    // Pages and dictionaries that claim to become large.
    for (name, page) in hostile_pages() {
        write(&format!("{name}.parquet"), &parquet_of(&page));
    }
}

/// Thrift's compact protocol: an i32 field that follows the last, zigzag.
fn int(value: i64) -> Vec<u8> {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    let mut bytes = vec![0x15];
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A page's header: its kind (0 data, 2 dictionary), sizes and number of values.
fn page_header(kind: i64, uncompressed: i64, compressed: i64, values: i64) -> Vec<u8> {
    let (begin, encodings) = match kind {
        0 => (0x2c, [int(0), int(3), int(3)].concat()),
        _ => (0x4c, int(0)),
    };
    let sizes = [int(kind), int(uncompressed), int(compressed)].concat();
    [&sizes[..], &[begin], &int(values), &encodings, &[0, 0]].concat()
}

/// A page of the one text "x", uncompressed.
fn good_page() -> Vec<u8> {
    [page_header(0, 5, 5, 1), b"\x01\0\0\0x".to_vec()].concat()
}

/// A Parquet file of one row with the columns image, prefix and suffix, whose image column is `pages`.
fn parquet_of(pages: &[u8]) -> Vec<u8> {
    let schema =
        "message m { required binary image; required binary prefix (UTF8); required binary suffix (UTF8); }";
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(parse_message_type(schema).unwrap())));
    let mut file = b"PAR1".to_vec();
    let mut chunk = |column: usize, pages: &[u8]| {
        let start = file.len() as i64;
        file.extend_from_slice(pages);
        ColumnChunkMetaData::builder(schema.column(column))
            .set_compression(if column == 0 { Compression::SNAPPY } else { Compression::UNCOMPRESSED })
            .set_data_page_offset(start)
            .set_dictionary_page_offset((column == 0 && pages.get(1) == Some(&4)).then_some(start))
            .set_total_compressed_size(pages.len() as i64)
            .set_num_values(1)
            .build()
            .unwrap()
    };
    let columns = vec![chunk(0, pages), chunk(1, &good_page()), chunk(2, &good_page())];
    let group = RowGroupMetaData::builder(schema.clone()).set_num_rows(1).set_column_metadata(columns);
    let description = FileMetaData::new(1, 1, None, None, schema, None);
    let metadata = ParquetMetaDataBuilder::new(description).add_row_group(group.build().unwrap()).build();
    ParquetMetaDataWriter::new(&mut file, &metadata).finish().unwrap();
    file
}

/// Pages of an image that ask for too much, or lie.
fn hostile_pages() -> Vec<(&'static str, Vec<u8>)> {
    // Snappy: the length that it will have, then a literal.
    let snappy = |len: u32| {
        let mut bytes = Vec::new();
        let mut rest = len;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes.extend(b"\x10\x01\0\0\0x");
        bytes
    };
    let page = |kind, uncompressed, compressed, values, body: Vec<u8>| {
        [page_header(kind, uncompressed, compressed, values), body].concat()
    };
    let bomb = snappy(0x7fff_ffff);
    vec![
        ("inflated", page(0, 0x7fff_ffff, bomb.len() as i64, 1, bomb)),
        ("negative", page(0, -1, 7, 1, snappy(5))),
        ("longer", page(0, 5, 0x7fff_ffff, 1, snappy(5))),
        ("dictionary", [page(2, 5, 7, 0x7fff_ffff, snappy(5)), page(0, 5, 7, 1, snappy(5))].concat()),
        ("disagreeing", page(0, 5, 10, 1, snappy(0xffff_ffff))),
        ("values", page(0, 5, 7, 0x7fff_ffff, snappy(5))),
        ("none", page(0, 5, 7, 0, snappy(5))),
        ("text", page(0, 5, 7, 1, b"\x05\x10\xff\xff\xff\xff".to_vec())),
        ("nothing", vec![0]),
        ("strings", vec![0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ("lists", [&[0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0; 64]].concat()),
        ("nested", vec![0x1c; 200]),
        ("endless number", vec![0x15; 1].into_iter().chain([0xff; 40]).collect()),
    ]
}

#[test]
fn every_bad_page_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.parquet");
    let read = |page: &[u8]| {
        fs::write(&path, parquet_of(page)).unwrap();
        Dataset::open(from_ref(&path), None, Fields::default()).and_then(|data| data.example(0))
    };
    // The same way a good one is made.
    let example = read(&[page_header(0, 5, 7, 1), b"\x05\x10\x01\0\0\0x".to_vec()].concat()).unwrap();
    assert_eq!((example.prefix.as_str(), &example.images[..]), ("x", &[ImageFile::Bytes(b"x".to_vec())][..]));
    for (name, page) in hostile_pages() {
        let error = read(&page).expect_err(name);
        assert_eq!(error.kind(), Kind::Input, "{name}: {error}");
        assert!(error.what().starts_with("this Parquet file is broken"), "{name}: {error}");
        assert!(error.to_string().contains("p.parquet"), "{name}: {error}");
    }
}

#[test]
fn no_byte_of_a_parquet_breaks_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.parquet");
    let whole = golden("lists.parquet");
    let fields = || Fields { image: "images".into(), ..Fields::default() };
    let mut read_all = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            write(&path, &bytes);
            match read(&path, fields()) {
                Ok(_) => read_all += 1,
                Err(error) => assert_eq!(error.kind(), Kind::Input, "{at} {change}: {error}"),
            }
        }
    }
    // Many bytes are statistics, names of writers and indices, which nobody reads.
    assert!(read_all > 100 && read_all < whole.len() * 4, "{read_all} of {}", whole.len() * 4);
    for len in (0..whole.len()).step_by(7) {
        write(&path, &whole[..len]);
        assert_eq!(read(&path, fields()).unwrap_err().kind(), Kind::Input, "{len}");
    }
}

/// Run by the next test in a process of its own, whose memory is then only its own.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "a part of hostile_data_take_little_memory"]
fn hostile_data_child() {
    let Some(at) = std::env::var_os("HOSTILE_DATA") else { return };
    let mut files = 0;
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let error = read(&path, Fields::default()).expect_err(&path.display().to_string());
        assert_eq!(error.kind(), Kind::Input, "{error}");
        files += 1;
    }
    assert!(files > 15, "{files}");
    let peak = crate::broken_files::peak_without_files();
    assert!(peak <= 64 << 10, "{peak} kB at the peak");
}

#[test]
#[cfg(target_os = "linux")]
fn hostile_data_take_little_memory() {
    let at = tempfile::tempdir().unwrap();
    hostile_files(at.path());
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "hostile_data::hostile_data_child", "--nocapture"])
        .env("HOSTILE_DATA", at.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}
