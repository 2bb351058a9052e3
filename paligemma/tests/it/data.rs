//! Data sets: formats, order, mixtures, loaders. The goldens are made by `reference/data_files.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paligemma::data::{
    Augmentation, Dataset, Draw, Fields, ImageFile, Loader, Mixture, OnError, Part, Preparation, Ready,
    Template,
};
use paligemma::image::Preprocess;
use paligemma::text::{Tokenizer, stand_in_tokenizer};
use paligemma::{Error, Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/data")
}

fn open(files: &[PathBuf]) -> paligemma::Result<Dataset> {
    Dataset::open(files, None, Fields::default())
}

fn bytes(image: &ImageFile) -> Vec<u8> {
    match image {
        ImageFile::Path(path) => std::fs::read(path).unwrap(),
        ImageFile::Part { file, offset, len } => {
            std::fs::read(file).unwrap()[*offset as usize..][..*len as usize].to_vec()
        }
        ImageFile::Bytes(bytes) => bytes.clone(),
        ImageFile::Drawn(drawing) => drawing.picture().rgb,
    }
}

fn crc32(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

#[test]
fn a_playground_is_a_file_like_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("val.playground");
    std::fs::write(&path, "split = \"val\"\ncount = 5\nsize = 28\n[tasks]\ncolour = 1\n").unwrap();
    let data = open(&[path.clone(), path]).unwrap();
    assert_eq!(data.len(), 10);
    let (first, again) = (data.example(3).unwrap(), data.example(8).unwrap());
    assert_eq!((&first.prefix, &first.suffixes), (&again.prefix, &again.suffixes));
    assert!(first.prefix.starts_with("answer en ") && first.place.ends_with("val.playground:4"));
    assert_eq!(bytes(&first.images[0]).len(), 28 * 28 * 3);
    assert_eq!(bytes(&first.images[0]), bytes(&again.images[0]));
}

#[test]
fn without_an_image_field_data_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, contents: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    };
    let fields = || Fields {
        image: String::new(),
        prefix: Template::parse("").unwrap(),
        suffix: Template::parse("{prefix}: {suffix}").unwrap(),
    };
    let check = |path: &Path, want: &[&str]| {
        let data = Dataset::open(&[path.to_path_buf()], None, fields()).unwrap();
        let examples: Vec<_> = (0..data.len()).map(|i| data.example(i).unwrap()).collect();
        assert!(examples.iter().all(|example| example.images.is_empty() && example.prefix.is_empty()));
        let suffixes: Vec<&String> = examples.iter().flat_map(|example| &example.suffixes).collect();
        assert_eq!(suffixes, want, "{}", path.display());
    };
    let lines = "{\"image\": \"absent.png\", \"prefix\": \"a\", \"suffix\": [\"b\", \"c\"]}\n{\"prefix\": \"d\", \"suffix\": \"e\"}\n";
    check(&write("texts.jsonl", lines), &["a: b", "a: c", "d: e"]);
    write("folder/0.prefix", "f");
    check(write("folder/0.suffix", "g\n").parent().unwrap(), &["f: g"]);
    check(&goldens().join("webdataset.tar"), &["p0: s0", "p1: s1", "p2: s2", "p3: s3"]);
    let rows = Fields { prefix: Template::parse("{question}").unwrap(), ..fields() };
    let rows = Fields { suffix: Template::parse("{captions}").unwrap(), ..rows };
    let row = Dataset::open(&[goldens().join("hf.parquet")], None, rows).unwrap().example(0).unwrap();
    assert_eq!(
        (row.images.len(), &row.prefix[..], &row.suffixes[..]),
        (0, "what is 0? é中", &["caption 0.0".to_owned()][..])
    );

    // A text is BOS, its tokens and EOS, all of it with loss.
    let tokenizer = Tokenizer::from_json_bytes(&stand_in_tokenizer(512, 512 + 1152).unwrap()).unwrap();
    let ids =
        [&[tokenizer.bos().unwrap()], &tokenizer.encode("d: e").unwrap()[..], &[tokenizer.eos().unwrap()]];
    let dataset = Dataset::open(&[folder.path().join("texts.jsonl")], None, fields()).unwrap();
    let mixture = Mixture::in_order("texts", dataset).unwrap();
    let preparation = Preparation {
        tokenizer: Arc::new(tokenizer),
        preprocess: Preprocess::Reference { antialias: true },
        image_size: 28,
        text_len: 32,
        augmentation: None,
    };
    let ready = preparation.prepare(&mixture, 1).unwrap();
    assert_eq!((ready.tokens.ids, ready.tokens.num_prefix, ready.pixels.len()), (ids.concat(), 1, 0));
}

#[test]
fn files_of_other_programs_hold_the_examples_that_were_put_in() {
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(goldens().join("data.json")).unwrap()).unwrap();
    for (name, file) in expected.as_object().unwrap() {
        let template = |key: &str| match file[key].as_str() {
            Some(text) => Template::parse(text).unwrap(),
            None => Template::parse(&format!("{{{key}}}")).unwrap(),
        };
        let fields = Fields {
            image: file["image"].as_str().unwrap().to_owned(),
            prefix: template("prefix"),
            suffix: template("suffix"),
        };
        let data = Dataset::open(&[goldens().join(name)], None, fields).unwrap();
        let examples: Vec<Value> = (0..data.len())
            .map(|i| {
                let example = data.example(i).unwrap();
                assert!(example.place.contains(name), "{}", example.place);
                assert!(example.images.iter().all(|image| image.decode(Default::default()).is_ok()));
                json!({
                    "images": example.images.iter().map(|image| crc32(&bytes(image))).collect::<Vec<_>>(),
                    "prefix": example.prefix,
                    "suffixes": example.suffixes,
                })
            })
            .collect();
        assert_eq!(&Value::Array(examples), &file["examples"], "{name}");
    }
}

#[test]
fn compression_that_is_not_read_is_named() {
    for (file, codec) in [("zstd.parquet", "ZSTD"), ("gzip.parquet", "GZIP")] {
        let error = open(&[goldens().join(file)]).unwrap_err();
        assert_eq!(error.kind(), Kind::Input);
        let what = format!("this Parquet file is compressed with {codec}, which is not supported");
        assert_eq!(error.what(), what, "{error}");
    }
}

/// A picture file of `number`'s own colour.
fn png(number: usize) -> Vec<u8> {
    let colour = image::Rgb([(number * 7 % 256) as u8, (number * 31 % 256) as u8, (number / 8 % 256) as u8]);
    let mut file = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(20, 14, colour).write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A folder with a JSONL file of `len` examples called `name`; `suffixes` gives each its suffixes.
fn jsonl(folder: &TempDir, name: &str, len: usize, suffixes: impl Fn(usize) -> Value) -> PathBuf {
    let mut lines = String::new();
    for i in 0..len {
        let image = format!("{name}-{i}.png");
        std::fs::write(folder.path().join(&image), png(i)).unwrap();
        let line = json!({"image": image, "prefix": format!("{name} {i}"), "suffix": suffixes(i)});
        lines += &format!("{line}\n");
    }
    let path = folder.path().join(format!("{name}.jsonl"));
    std::fs::write(&path, lines).unwrap();
    path
}

fn mixture(seed: u64, parts: &[(&Path, f64)]) -> Mixture {
    let part = |&(path, weight): &(&Path, f64)| Part {
        name: path.display().to_string(),
        dataset: open(&[path.to_path_buf()]).unwrap(),
        weight,
    };
    Mixture::new(seed, parts.iter().map(part).collect()).unwrap()
}

#[test]
fn an_epoch_has_every_example_once_and_each_epoch_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = jsonl(&folder, "a", 50, |_| json!("x"));
    let mixture = mixture(3, &[(&path, 1.0)]);
    let epoch = |n: u64| -> Vec<usize> {
        (n * 50..(n + 1) * 50)
            .map(|number| {
                let draw = mixture.draw(number);
                assert_eq!((draw.number, draw.part, draw.epoch), (number, 0, n));
                draw.index
            })
            .collect()
    };
    let orders: Vec<Vec<usize>> = (0..4).map(epoch).collect();
    for (i, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..50), "{order:?}");
        assert!(orders[..i].iter().all(|other| other != order), "epoch {i}");
    }
    // Another seed, another order; the same one asked for backwards, the same.
    let other = self::mixture(4, &[(&path, 1.0)]);
    assert!((0..50).any(|n| other.draw(n).index != orders[0][n as usize]));
    let again = self::mixture(3, &[(&path, 1.0)]);
    let backwards: Vec<usize> = (0..200).rev().map(|n| again.draw(n).index).collect();
    assert!(backwards.into_iter().rev().eq(orders.concat()));
    // In order, without a seed.
    let plain = Mixture::in_order("a", open(&[path]).unwrap()).unwrap();
    assert!((0..120).all(|n| plain.draw(n).index as u64 == n % 50 && plain.draw(n).epoch == n / 50));
}

#[test]
fn mixtures_keep_their_proportions() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) = (
        jsonl(&folder, "a", 7, |_| json!("x")),
        jsonl(&folder, "b", 30, |_| json!("x")),
        jsonl(&folder, "c", 11, |_| json!("x")),
    );
    for (weights, block) in [([0.7, 0.2, 0.1], 10), ([1.0, 1.0, 2.0], 4), ([0.333, 0.333, 0.334], 1000)] {
        let mixture = mixture(9, &[(&a, weights[0]), (&b, weights[1]), (&c, weights[2])]);
        let draws: Vec<Draw> = (0..block * 7).map(|n| mixture.draw(n)).collect();
        let sum: f64 = weights.iter().sum();
        for part in 0..3 {
            // Exact in every block.
            for block in draws.chunks(block as usize) {
                let count = block.iter().filter(|draw| draw.part == part).count();
                let ideal = weights[part] / sum * block.len() as f64;
                assert!((count as f64 - ideal).abs() < 1e-6, "{weights:?} {part}: {count} {ideal}");
            }
            // A part's own draws go through its examples epoch by epoch.
            let len = mixture.parts()[part].dataset.len();
            let own: Vec<Draw> = draws.iter().copied().filter(|draw| draw.part == part).collect();
            for (epoch, draws) in own.chunks(len).enumerate() {
                let mut seen: Vec<usize> = draws.iter().map(|draw| draw.index).collect();
                assert!(draws.iter().all(|draw| draw.epoch == epoch as u64));
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len(), draws.len(), "{weights:?} {part}");
            }
        }
        // The order within blocks differs.
        let parts = |n: usize| draws[n * block as usize..][..block as usize].iter().map(|d| d.part);
        assert!((1..7).any(|n| !parts(n).eq(parts(0))), "{weights:?}");
    }
    let wrong = |weight: f64| {
        let part = Part { name: "a".into(), dataset: open(std::slice::from_ref(&a)).unwrap(), weight };
        Mixture::new(0, vec![part]).unwrap_err().kind()
    };
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(wrong(weight), Kind::Usage, "{weight}");
    }
    assert_eq!(Mixture::new(0, Vec::new()).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn every_suffix_is_taken_once_before_any_is_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let texts = |i: usize| (0..=i % 4).map(|k| format!("{i}.{k}")).collect::<Vec<_>>();
    let path = jsonl(&folder, "a", 12, |i| json!(texts(i)));
    let mixture = mixture(5, &[(&path, 1.0)]);
    let mut taken: HashMap<usize, Vec<String>> = HashMap::new();
    for number in 0..12 * 24 {
        let draw = mixture.draw(number);
        let (example, which) = mixture.example(draw).unwrap();
        taken.entry(draw.index).or_default().push(example.suffixes[which].clone());
    }
    let mut orders = Vec::new();
    for (i, taken) in taken {
        assert_eq!(taken.len(), 24);
        for round in taken.chunks(i % 4 + 1) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, texts(i), "{i}: {taken:?}");
            orders.push(
                round.iter().map(|text| text.split('.').nth(1).unwrap().to_owned()).collect::<Vec<_>>(),
            );
        }
    }
    // All orders of the three suffixes occur, in 3 examples times 8 rounds.
    let mut three: Vec<_> = orders.into_iter().filter(|order| order.len() == 3).collect();
    three.sort_unstable();
    three.dedup();
    assert_eq!(three.len(), 6);
}

fn preparation(augmentation: Option<Augmentation>) -> Preparation {
    Preparation {
        tokenizer: Arc::new(
            Tokenizer::from_json_bytes(&stand_in_tokenizer(512, 512 + 1152).unwrap()).unwrap(),
        ),
        preprocess: Preprocess::Reference { antialias: true },
        image_size: 14,
        text_len: 64,
        augmentation,
    }
}

/// All that a loader gives, and what it skips.
fn load(
    mixture: &Arc<Mixture>,
    on_error: OnError,
    draws: std::ops::Range<u64>,
    threads: usize,
) -> (Vec<Ready>, Vec<String>) {
    let preparation = preparation(Some(Augmentation::default()));
    let mut loader = Loader::new(mixture.clone(), preparation, on_error, draws.clone(), threads, 5).unwrap();
    let (mut ready, mut skipped) = (Vec::new(), Vec::new());
    while let Some(one) = loader.next(&mut |error: &Error| skipped.push(error.to_string())).unwrap() {
        assert_eq!(loader.position(), one.draw.number + 1);
        ready.push(one);
    }
    assert_eq!((loader.position(), loader.num_skipped()), (draws.end, skipped.len() as u64));
    (ready, skipped)
}

#[test]
fn neither_threads_nor_restarts_change_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let a = jsonl(&folder, "a", 9, |i| json!([format!("{i} one"), format!("{i} two")]));
    let b = jsonl(&folder, "b", 4, |i| json!(format!("<loc0001><loc0002><loc0003><loc0004> {i}")));
    let mixture = || Arc::new(mixture(11, &[(&a, 2.0), (&b, 1.0)]));
    let whole = load(&mixture(), OnError::Stop, 0..40, 0).0;
    assert_eq!(whole.len(), 40);
    assert!(whole.iter().all(|ready| ready.pixels.len() == 1 && ready.pixels[0].len() == 3 * 14 * 14));
    // Augmentation is drawn anew each epoch: an example's pixels differ from one epoch to the next.
    let of = |part: usize, index: usize| -> Vec<&Ready> {
        whole.iter().filter(|ready| (ready.draw.part, ready.draw.index) == (part, index)).collect()
    };
    assert!((0..9).any(|i| of(0, i).windows(2).any(|pair| pair[0].pixels != pair[1].pixels)));
    for threads in [1, 4] {
        assert!(load(&mixture(), OnError::Stop, 0..40, threads).0 == whole, "{threads} threads");
    }
    for start in 0..40 {
        let rest = load(&mixture(), OnError::Stop, start..40, [0, 1, 4][start as usize % 3]).0;
        assert!(rest == whole[start as usize..], "from {start}");
    }
}

#[test]
fn bad_examples_stop_or_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = jsonl(&folder, "a", 10, |i| if i == 3 { json!(null) } else { json!("x") });
    std::fs::write(folder.path().join("a-7.png"), b"no picture").unwrap();
    let mixture = Arc::new(mixture(2, &[(&path, 1.0)]));
    let good: Vec<Draw> =
        (0..30).map(|n| mixture.draw(n)).filter(|draw| ![3, 7].contains(&draw.index)).collect();
    for threads in [0, 1, 4] {
        let (ready, skipped) = load(&mixture, OnError::Skip, 0..30, threads);
        assert!(ready.iter().map(|ready| ready.draw).eq(good.iter().copied()), "{threads} threads");
        assert_eq!(skipped.len(), 6);
        assert!(skipped.iter().all(|e| e.contains("a.jsonl:4") || e.contains("a.jsonl:8")), "{skipped:?}");

        // With the other policy the error comes at its place, and the loader can go on behind it.
        let mut loader =
            Loader::new(mixture.clone(), preparation(None), OnError::Stop, 0..30, threads, 5).unwrap();
        let mut errors = 0;
        for number in 0..30 {
            match loader.next(&mut |_| unreachable!()) {
                Ok(ready) => assert_eq!(ready.unwrap().draw.number, number),
                Err(error) => {
                    assert!([3, 7].contains(&mixture.draw(number).index), "{error}");
                    errors += 1;
                }
            }
        }
        assert_eq!(errors, 6);
        assert!(loader.next(&mut |_| unreachable!()).unwrap().is_none());
    }
    // Where nothing is good it does not search for ever.
    let bad = jsonl(&folder, "bad", 5, |_| json!(null));
    let mixture = Arc::new(self::mixture(2, &[(&bad, 1.0)]));
    let mut loader = Loader::new(mixture, preparation(None), OnError::Skip, 0..u64::MAX, 2, 5).unwrap();
    let error = loader.next(&mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no example of the data is good"), "{error}");
}

#[test]
fn a_loader_that_is_dropped_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = jsonl(&folder, "a", 10, |_| json!("x"));
    let mixture = Arc::new(mixture(2, &[(&path, 1.0)]));
    for taken in [0, 1, 7] {
        let mut loader =
            Loader::new(mixture.clone(), preparation(None), OnError::Stop, 0..u64::MAX, 3, 4).unwrap();
        for _ in 0..taken {
            loader.next(&mut |_| {}).unwrap().unwrap();
        }
        drop(loader);
        // The threads held the mixture.
        assert_eq!(Arc::strong_count(&mixture), 1, "{taken}");
    }
}

#[test]
fn big_visions_jsonl_reads_as_it_is() {
    // Keys in any order, others beside them, the prefix from the configuration, the images' folder given beside it.
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for i in 0..2 {
        std::fs::write(images.join(format!("{i}.png")), png(i)).unwrap();
    }
    let path = folder.path().join("data_train90.jsonl");
    let text = "{\"suffix\": \"a cow\", \"image\": \"0.png\", \"id\": 7}\n{\"suffix\": \"a cat\", \"image\": \"1.png\"}";
    std::fs::write(&path, text).unwrap();
    let fields = Fields { prefix: Template::parse("caption en").unwrap(), ..Fields::default() };
    let data = Dataset::open(&[path], Some(&images), fields).unwrap();
    let examples: Vec<_> = (0..data.len()).map(|i| data.example(i).unwrap()).collect();
    assert_eq!(examples.len(), 2);
    assert_eq!((&*examples[0].prefix, &examples[0].suffixes[..]), ("caption en", &["a cow".to_owned()][..]));
    assert_eq!(examples[1].images, [ImageFile::Path(images.join("1.png"))]);
}

#[test]
fn folders_of_every_kind_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let texts = |name: &str, fields: Fields| -> paligemma::Result<Vec<String>> {
        let data = Dataset::open(&[folder.path().join(name)], None, fields)?;
        (0..data.len())
            .map(|i| data.example(i).map(|e| format!("{}: {}", e.prefix, e.suffixes.join("|"))))
            .collect()
    };
    let check =
        |name: &str, fields: Fields, want: &[&str]| assert_eq!(texts(name, fields).unwrap(), want, "{name}");
    let fails = |name: &str, what: &str| {
        let error = texts(name, Fields::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    };

    // Pictures with their texts beside them, in the order of their names whatever the file system's is.
    for (i, key) in ["b/2", "a/10", "a/9", "a-/1"].into_iter().enumerate() {
        write(&format!("side/{key}.png"), &png(i));
        write(&format!("side/{key}.json"), json!({"prefix": key, "suffix": i}).to_string().as_bytes());
    }
    write("side/.hidden", b"");
    write("side/LICENSE", b"");
    check("side", Fields::default(), &["a-/1: 3", "a/10: 1", "a/9: 2", "b/2: 0"]);
    write("captions/x.PNG", &png(0));
    write("captions/x.txt", "né\r\n".as_bytes());
    let caption = Fields {
        prefix: Template::parse("caption en").unwrap(),
        suffix: Template::parse("{txt}").unwrap(),
        ..Fields::default()
    };
    check("captions", caption, &["caption en: né"]);
    // Hugging Face's image folder.
    write("hf/metadata.jsonl", b"{\"file_name\": \"p/1.png\", \"prefix\": \"p\", \"suffix\": \"s\"}\n");
    write("hf/p/1.png", &png(1));
    check("hf", Fields::default(), &["p: s"]);
    // Shards, in order.
    for shard in ["t-1.jsonl", "t-0.jsonl"] {
        write(
            &format!("shards/{shard}"),
            json!({"image": "i.png", "prefix": shard, "suffix": ""}).to_string().as_bytes(),
        );
    }
    write("shards/i.png", &png(1));
    check("shards", Fields::default(), &["t-0.jsonl: ", "t-1.jsonl: "]);
    check("shards/t-*.jsonl", Fields::default(), &["t-0.jsonl: ", "t-1.jsonl: "]);
    check("shards/*1.jsonl", Fields::default(), &["t-1.jsonl: "]);

    std::fs::copy(goldens().join("gnu.tar"), folder.path().join("shards/a.tar")).unwrap();
    fails("shards", "several kinds");
    fails("shards/x*.tar", "no file is called");
    fails("nothing", "there is no data file");
    write("empty/readme", b"");
    fails("empty", "there is no example");
    write("x.csv", b"a,b");
    fails("x.csv", "no known kind of data");
    write("x.tar.gz", b"\x1f\x8b");
    fails("x.tar.gz", "is compressed");
    write("alone/x.txt", b"text");
    fails("alone", "the example has 0 pictures");
    write("both/x.png", &png(0));
    write("both/x.json", b"{\"prefix\": \"p\", \"suffix\": \"s\"}");
    write("both/x.suffix", b"t");
    fails("both", "the field `suffix` is there twice");
    write("utf8/x.png", &png(0));
    write("utf8/x.json", b"{\"prefix\": \"p\"}");
    write("utf8/x.suffix", b"\xff");
    fails("utf8", "the text is not UTF-8");
    write("json/x.png", &png(0));
    write("json/x.json", b"{\"prefix\": }");
    fails("json", "column 12");
}
