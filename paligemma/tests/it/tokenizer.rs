//! Tokenizers against the Python packages that read the same files (reference/tokenizer_goldens.py), control
//! tokens in user text, broken files, and the prompt.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use paligemma::text::{Tokenizer, prompt_ids, stand_in_tokenizer, stand_in_tokenizer_config, suffix_ids};
use serde_json::{Value, json};

const TOKENIZERS: [&str; 5] = ["gemma.model", "bare.model", "table.model", "gemma.json", "trained.json"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/tokenizer").join(name)
}

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_file(&golden(name)).unwrap()
}

/// xorshift64, as in the script.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % n as u64) as usize
    }
}

/// The 10,000 strings of the script's `strings`.
fn strings() -> Vec<String> {
    let table = golden_json("strings.json");
    let list = |key: &str| -> Vec<String> { serde_json::from_value(table[key].clone()).unwrap() };
    let (fragments, runs) = (list("fragments"), list("runs"));
    let ranges: Vec<[u32; 2]> = serde_json::from_value(table["ranges"].clone()).unwrap();
    let mut r = Random(0x9E37_79B9_7F4A_7C15);
    let string = |_| {
        let mut text = String::new();
        for _ in 0..1 + r.below(12) {
            match r.below(8) {
                0 => {
                    let [low, high] = ranges[r.below(ranges.len())];
                    text.extend(char::from_u32(low + r.below((high - low + 1) as usize) as u32));
                }
                1 => {
                    let run = &runs[r.below(runs.len())];
                    text.push_str(&run.repeat(1 + r.below(40)));
                }
                2..5 => text.push_str(&fragments[r.below(fragments.len())]),
                _ => {
                    text.push_str(&fragments[r.below(fragments.len())]);
                    text.push(' ');
                }
            }
        }
        text
    };
    (0..10_000).map(string).collect()
}

/// The lists of ids of the script's `random_ids`.
fn random_ids(vocab_size: usize, byte0: Option<u32>) -> Vec<Vec<u32>> {
    let mut r = Random(0xD1B5_4A32_D192_ED03);
    let list = |_| {
        let mut ids = Vec::new();
        for _ in 0..1 + r.below(16) {
            match (r.below(4), byte0) {
                (2, Some(byte0)) => ids.push(byte0 + 0x80 + r.below(0x80) as u32),
                (3, Some(byte0)) => {
                    let char = char::from_u32(0xA0 + r.below(0x2000) as u32).unwrap().to_string();
                    let taken = char.len().min(1 + r.below(3));
                    ids.extend(char.bytes().take(taken).map(|b| byte0 + u32::from(b)));
                }
                _ => ids.push(r.below(vocab_size) as u32),
            }
        }
        ids
    };
    (0..2_000).map(list).collect()
}

/// One hash for ten items, as the script's `blocks`.
fn blocks(items: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
    let items: Vec<Vec<u8>> = items.into_iter().collect();
    let hash = |block: &[Vec<u8>]| {
        let bytes = block.iter().flat_map(|item| item.iter().copied().chain([0xFF; 4]));
        let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3);
        format!("{:08x}", bytes.fold(0xCBF2_9CE4_8422_2325, fnv) as u32)
    };
    items.chunks(10).map(hash).collect()
}

fn join(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn ten_thousand_strings_have_pythons_ids_and_texts() {
    let texts = strings();
    for name in TOKENIZERS {
        let t = tokenizer(name);
        let expected = golden_json(&format!("{}.expected.json", name.replace('.', "-")));
        assert_eq!(t.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap(), "{name}");
        for example in expected["examples"].as_array().unwrap() {
            let text = example[0].as_str().unwrap();
            assert_eq!(join(&t.encode(text).unwrap()), example[1].as_str().unwrap(), "{name}: {text:?}");
        }
        let ids: Vec<Vec<u32>> = texts.iter().map(|s| t.encode(s).unwrap()).collect();
        let check = |what: &str, found: Vec<String>| {
            let expected = expected[what].as_str().unwrap().split(' ');
            let differ: Vec<usize> =
                expected.zip(&found).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
            assert!(differ.is_empty(), "{name}: {what}: blocks of ten {differ:?} of {} differ", found.len());
        };
        check("ids", blocks(ids.iter().map(|ids| ids.iter().flat_map(|id| id.to_le_bytes()).collect())));
        check("text", blocks(ids.iter().map(|ids| t.decode(ids).into_bytes())));
        let byte0 = expected["byte0"].as_u64().map(|id| id as u32);
        let random = random_ids(t.vocab_size(), byte0);
        check("random", blocks(random.iter().map(|ids| t.decode(ids).into_bytes())));

        for ids in ids.iter().chain(&random) {
            let mut stream = t.decode_stream();
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, t.decode(ids), "{name}: {ids:?}");
        }
    }
}

#[test]
fn ids_come_from_the_file() {
    for name in TOKENIZERS {
        let t = tokenizer(name);
        let expected = golden_json(&format!("{}.expected.json", name.replace('.', "-")));
        let special = |piece: &str| expected["special"][piece].as_u64().map(|id| id as u32);
        assert_eq!(t.pad().ok(), special("<pad>"), "{name}");
        assert_eq!(t.eos().ok(), special("<eos>"), "{name}");
        assert_eq!(t.bos().ok(), special("<bos>"), "{name}");
        assert_eq!(t.image(), special("<image>"), "{name}");
        assert_eq!(t.loc(0), special("<loc0000>"), "{name}");
        assert_eq!(t.loc(1023), special("<loc1023>"), "{name}");
        assert_eq!(t.loc(1024), None);
        assert_eq!(t.seg(0), special("<seg000>"), "{name}");
        assert_eq!(t.seg(127), special("<seg127>"), "{name}");
        assert_eq!(t.seg(128), None);
        match expected["newline"].as_array().unwrap().as_slice() {
            [id] => assert_eq!(u64::from(t.newline().unwrap()), id.as_u64().unwrap(), "{name}"),
            _ => assert_eq!(t.newline().unwrap_err().what(), "a line break becomes 0 tokens"),
        }
    }
}

#[test]
fn every_loc_and_seg_is_one_id_and_is_said_back() {
    let mut stand_in = Tokenizer::from_json_bytes(&stand_in_tokenizer(512, 512 + 1152).unwrap()).unwrap();
    for name in TOKENIZERS.iter().chain(&["stand-in"]) {
        let t = if *name == "stand-in" { stand_in } else { tokenizer(name) };
        let named = (0..1024).map(|i| (format!("<loc{i:04}>"), t.loc(i)));
        for (text, id) in named.chain((0..128).map(|i| (format!("<seg{i:03}>"), t.seg(i)))) {
            let ids = t.encode(&text).unwrap();
            // A dummy prefix stands before it where the file asks for one.
            assert_eq!(ids.last().copied(), id, "{name}: {text}");
            assert_eq!(ids.len(), if *name == "table.model" { 2 } else { 1 }, "{name}: {text}");
            assert_eq!(t.decode(&ids[ids.len() - 1..]), text, "{name}");
        }
        stand_in = t;
    }
}

#[test]
fn control_tokens_in_user_text_stay_plain_text() {
    const CONTROL: [&str; 10] = [
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
        "<mask>",
        "<image>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<image><image>",
        "<bos><eos>",
    ];
    const AROUND: [(&str, &str); 10] = [
        ("", ""),
        ("caption en", ""),
        ("", " cat"),
        ("a ", " b"),
        ("\n", "\n"),
        ("<", ">"),
        ("<loc0001>", "<seg001>"),
        ("  ", "  "),
        ("1", "2"),
        ("é", "猫"),
    ];
    let stand_in = Tokenizer::from_json_bytes(&stand_in_tokenizer(512, 512 + 1152).unwrap()).unwrap();
    let files = TOKENIZERS.iter().filter(|n| **n != "table.model").map(|n| (*n, tokenizer(n)));
    for (name, t) in files.chain([("stand-in", stand_in)]) {
        let control: Vec<u32> =
            [t.bos(), t.eos(), t.pad()].into_iter().map(Result::unwrap).chain(t.image()).collect();
        for (token, (before, after)) in CONTROL.iter().flat_map(|c| AROUND.iter().map(move |a| (c, a))) {
            let text = format!("{before}{token}{after}");
            let ids = t.encode(&text).unwrap();
            assert!(!ids.iter().any(|id| control.contains(id)), "{name}: {text:?} {ids:?}");
            assert!(!t.pieces(&ids).iter().any(|p| CONTROL.contains(&p.as_str())), "{name}: {text:?}");
            assert_eq!(t.decode(&ids), text, "{name}");
        }
    }
}

#[test]
fn a_control_token_that_merges_could_spell_stays_plain_text() {
    // The merges reach <bos> and, through it, a piece that holds it.
    let file = edited(|file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let first_free = vocab.len();
        for (i, piece) in ["<", ">", "<b", "<bo", "<bos", "<bos>s"].iter().enumerate() {
            vocab.insert((*piece).to_owned(), json!(first_free + i));
        }
        file["model"]["merges"] =
            json!([["<", "b"], ["<b", "o"], ["<bo", "s"], ["<bos", ">"], ["<bos>", "s"]]);
    });
    let t = Tokenizer::from_json_bytes(&file).unwrap();
    let ids = t.encode("<bos>s").unwrap();
    assert_eq!(t.pieces(&ids), ["<bos", ">", "s"]);
}

#[test]
fn an_added_token_found_in_normalised_text_is_decoded_from_it() {
    let file = edited(|file| {
        let id = file["model"]["vocab"].as_object().unwrap().len();
        let token = json!({
            "id": id, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": true, "special": false,
        });
        file["added_tokens"].as_array_mut().unwrap().push(token);
        file["normalizer"] = json!({"type": "Prepend", "prepend": "▁"});
    });
    let t = Tokenizer::from_json_bytes(&file).unwrap();
    let ids = t.encode("<x>a").unwrap();
    // As the Python package has it, though it looks odd.
    assert_eq!(
        (t.pieces(&ids), t.decode(&ids)),
        (vec!["<x>".to_owned(), "a".to_owned()], " <x>a".to_owned())
    );
}

#[test]
fn the_stream_never_shows_half_a_character() {
    for name in TOKENIZERS.iter().filter(|n| **n != "table.model") {
        let t = tokenizer(name);
        for text in ["😀", "Ж猫é", "a👩‍👩‍👧‍👦b", "𐍈<loc0001>𐍈"] {
            let mut stream = t.decode_stream();
            for id in t.encode(text).unwrap() {
                assert!(!stream.push(id).contains('\u{FFFD}'), "{name}: {text}");
            }
        }
    }
}

#[test]
fn twelve_prompts_have_the_processors_ids() {
    let expected = golden_json("prompts.json");
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    assert_eq!(texts.len(), 12);
    let bytes = std::fs::read(golden("gemma.json")).unwrap();
    let mut file: Value = serde_json::from_slice(&bytes).unwrap();
    assert!(file["post_processor"].is_object(), "the first file asks for BOS");
    for generation in ["paligemma1", "paligemma2"] {
        let t = Tokenizer::from_json_bytes(&serde_json::to_vec(&file).unwrap()).unwrap();
        for (text, expected) in texts.iter().zip(expected[generation].as_array().unwrap()) {
            let mut ids = vec![t.image().unwrap()];
            ids.extend(prompt_ids(&t, text).unwrap());
            assert_eq!(join(&ids), expected.as_str().unwrap(), "{generation}: {text:?}");
        }
        // The second file does not.
        file["post_processor"] = Value::Null;
    }
}

#[test]
fn the_line_break_is_tokenised_apart() {
    for name in ["gemma.model", "gemma.json"] {
        let t = tokenizer(name);
        let newline = t.newline().unwrap();
        let both = t.encode("ocr\n\n").unwrap();
        let apart = prompt_ids(&t, "ocr\n").unwrap();
        // Two line breaks in one text are one piece; the prompt's own is never part of it.
        assert_eq!(apart[1..], [&both[..both.len() - 1], &[newline, newline]].concat(), "{name}");
        assert_eq!(
            suffix_ids(&t, "cat").unwrap(),
            [t.encode("cat").unwrap(), vec![t.eos().unwrap()]].concat()
        );
    }
}

/// Sixteen times the text takes some sixteen times as long, or forty as it leaves the caches: 256 times, were the time in
/// proportion to the square.
#[test]
fn a_long_line_takes_time_in_proportion_to_its_length() {
    const LEN: usize = 1 << 19;
    // trained.json cuts at each line break, which is the crate's time and no form of Gemma's.
    for name in TOKENIZERS.iter().filter(|n| **n != "trained.json") {
        let t = tokenizer(name);
        for part in ["a", " ", "\n", "ab", "the cat sat on the mat ", "thecatsat", "猫"] {
            // The better of two: other work on the machine takes the caches away.
            let seconds = |len: usize| {
                let line = part.repeat(len / part.len());
                let time = || {
                    let start = thread_seconds();
                    t.encode(&line).unwrap();
                    thread_seconds() - start
                };
                (0..2).map(|_| time()).fold(f64::INFINITY, f64::min)
            };
            let (short, long) = (seconds(LEN / 16), seconds(LEN));
            assert!(long < 100.0 * short.max(3e-3), "{name}: {part:?}: {short} s, {long} s");
        }
    }
}

/// Time this thread has been running, so that a busy machine does not fail the test.
fn thread_seconds() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let wall = START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.map_or(wall, |n| n / 1e9)
}

/// trained.json with something changed.
fn edited(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut file = golden_json("trained.json");
    change(&mut file);
    serde_json::to_vec(&file).unwrap()
}

/// A protocol-buffer field of bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = content.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend(content);
    out
}

/// A piece with its score and kind (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte).
fn piece(text: &str, kind: u8) -> Vec<u8> {
    let mut inside = field(1, text.as_bytes());
    inside.extend([0x15]);
    inside.extend((-1f32).to_le_bytes());
    inside.extend([0x18, kind]);
    field(1, &inside)
}

/// A SentencePiece model of `pieces`, BPE without byte fallback, with `trainer` and `normalizer` on top.
fn model(pieces: &[(&str, u8)], trainer: &[u8], normalizer: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = pieces.iter().flat_map(|&(text, kind)| piece(text, kind)).collect();
    out.extend(field(2, &[&[0x18, 2], trainer].concat()));
    out.extend(field(3, normalizer));
    out
}

#[test]
fn a_broken_tokenizer_is_a_named_error() {
    let json = |change: fn(&mut Value)| edited(change);
    let gemma_json = std::fs::read(golden("trained.json")).unwrap();
    let gemma_model = std::fs::read(golden("gemma.model")).unwrap();
    let unk = ("<unk>", 2);
    // A table whose first rule's text lies outside it, and one that says it is longer than it is.
    let mut units = vec![0u32; 256];
    units[0] = 1 << 10;
    units[1 ^ usize::from(b'a')] = u32::from(b'a') | 1 << 8 | 2 << 10;
    units[1 ^ usize::from(b'a') ^ 2] = 1 << 31 | 99_999;
    let table: Vec<u8> =
        1024u32.to_le_bytes().into_iter().chain(units.iter().flat_map(|u| u.to_le_bytes())).collect();
    // The same rule, to a text of two thousand bytes.
    units[1 ^ usize::from(b'a') ^ 2] = 1 << 31;
    let growing = [
        &1024u32.to_le_bytes()[..],
        &units.iter().flat_map(|u| u.to_le_bytes()).collect::<Vec<u8>>(),
        &[b'x'; 2000],
    ]
    .concat();
    let long_piece = "x".repeat(70_000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("the SentencePiece model has no pieces", vec![]),
        (
            "the SentencePiece model is broken or cut short",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        ),
        ("tokenizer.json cannot be read: EOF while parsing", gemma_json[..gemma_json.len() / 2].to_vec()),
        ("tokenizer.json cannot be read: missing field `model`", b"{}".to_vec()),
        (
            "tokenizer.json cannot be read: recursion limit exceeded",
            [b"{\"normalizer\":".to_vec(), vec![b'['; 100_000]].concat(),
        ),
        (
            "tokenizer.json is of type Unigram, which is not supported",
            json(|f| f["model"]["type"] = json!("Unigram")),
        ),
        ("tokenizer.json is of version \"2.0\"", json(|f| f["version"] = json!("2.0"))),
        ("tokenizer.json asks for dropout", json(|f| f["model"]["dropout"] = json!(0.1))),
        ("continuing_subword_prefix \"##\"", json(|f| f["model"]["continuing_subword_prefix"] = json!("##"))),
        ("ignore_merges in tokenizer.json", json(|f| f["model"]["ignore_merges"] = json!(true))),
        ("the unknown token \"<none>\"", json(|f| f["model"]["unk_token"] = json!("<none>"))),
        ("merge 0, \"a\" with \"QQQ\"", json(|f| f["model"]["merges"][0] = json!(["a", "QQQ"]))),
        (
            "merge 0, \"<loc0000>\" with \"<loc0001>\"",
            json(|f| f["model"]["merges"][0] = json!(["<loc0000>", "<loc0001>"])),
        ),
        (
            "tokenizer.json cannot be read: merge \"a b c\" is not two words",
            json(|f| f["model"]["merges"][0] = json!("a b c")),
        ),
        (
            "tokenizer.json cannot be read: invalid value: integer `-1`",
            json(|f| f["model"]["vocab"]["a"] = json!(-1)),
        ),
        ("piece \"a\" has id 4000000000", json(|f| f["model"]["vocab"]["a"] = json!(4_000_000_000u32))),
        ("pieces \"<pad>\" and \"a\" have the same id 0", json(|f| f["model"]["vocab"]["a"] = json!(0))),
        (
            "tokenizer.json cannot be read: a piece of 70000 bytes",
            json(|f| f["model"]["vocab"]["x".repeat(70_000)] = json!(9999)),
        ),
        ("added token \"<bos>\" has id 7 and id 2", json(|f| f["added_tokens"][2]["id"] = json!(7))),
        (
            "added token \"<extra>\" has id 1000000",
            json(|f| {
                f["added_tokens"][2]["content"] = json!("<extra>");
                f["added_tokens"][2]["id"] = json!(1_000_000);
            }),
        ),
        ("an added token is empty", json(|f| f["added_tokens"][2]["content"] = json!(""))),
        (
            "the normalizer Precompiled of tokenizer.json is not supported",
            json(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ),
        (
            "the normalizer Teleport of tokenizer.json is not supported",
            json(|f| f["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Teleport"}]})),
        ),
        (
            "the normalizer of tokenizer.json: ",
            json(|f| f["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})),
        ),
        (
            "the pre_tokenizer ByteLevel of tokenizer.json",
            json(|f| f["pre_tokenizer"] = json!({"type": "ByteLevel"})),
        ),
        ("the decoder WordPiece of tokenizer.json", json(|f| f["decoder"] = json!({"type": "WordPiece"}))),
        (
            "the normalizer of tokenizer.json can make text 729 times longer",
            json(|f| {
                let triple = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaa"});
                f["normalizer"] = json!({"type": "Sequence", "normalizers": vec![triple; 6]});
            }),
        ),
        (
            "the decoder of tokenizer.json can make text 300 times longer",
            json(|f| {
                f["decoder"] =
                    json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(300)});
            }),
        ),
        (
            "the normalizer of tokenizer.json: ",
            json(|f| {
                f["normalizer"] =
                    json!({"type": "Replace", "pattern": {"Regex": "((a{999}){999}){999}"}, "content": ""});
            }),
        ),
        (
            "a Strip decoder in tokenizer.json",
            json(|f| f["decoder"] = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1})),
        ),
        ("the SentencePiece model is broken or cut short", gemma_model[..gemma_model.len() - 5].to_vec()),
        ("the SentencePiece model has no trainer or normalizer", piece("<unk>", 2)),
        ("the SentencePiece model has no pieces", field(2, &[0x18, 2])),
        ("the SentencePiece model cannot be read", field(1, &[0x0A, 0x05, b'a'])),
        ("piece 1 has 70011 bytes", model(&[unk, (&long_piece, 1)], &[], &[])),
        ("the SentencePiece model has 1048577 pieces", piece("a", 1).repeat((1 << 20) + 1)),
        (
            "the SentencePiece model is of type Unigram, which is not supported",
            model(&[unk], &[0x18, 1], &[]),
        ),
        ("the SentencePiece model has no unknown piece", model(&[("a", 1)], &[], &[])),
        ("a second unknown piece, \"<unk2>\"", model(&[unk, ("<unk2>", 2)], &[], &[])),
        ("piece 1 is empty", model(&[unk, ("", 1)], &[], &[])),
        ("piece \"a\" is there twice", model(&[unk, ("a", 1), ("a", 4)], &[], &[])),
        ("byte piece \"<0x-1>\" (id 1) names no byte", model(&[unk, ("<0x-1>", 6)], &[], &[])),
        (
            "byte fallback is true and there are 1 byte pieces",
            model(&[unk, ("<0x00>", 6)], &[0x98, 0x02, 1], &[]),
        ),
        ("treat_whitespace_as_suffix is not supported", model(&[unk], &[0xC0, 0x01, 1], &[])),
        (
            "the normalisation table is shorter than it says",
            model(&[unk], &[], &field(2, &[255, 255, 255, 255, 0])),
        ),
        ("the normalisation table blows the text up", model(&[unk, ("a", 1)], &[], &field(2, &growing))),
        ("the normalisation table points outside itself", model(&[unk, ("a", 1)], &[], &field(2, &table))),
    ];
    assert!(cases.len() >= 40, "{}", cases.len());
    let folder = tempfile::tempdir().unwrap();
    let mut failed = String::new();
    for (expected, bytes) in cases {
        let path = folder.path().join("tokenizer");
        std::fs::write(&path, bytes).unwrap();
        match Tokenizer::from_file(&path).and_then(|t| t.encode("a cat")) {
            Ok(ids) => writeln!(failed, "{expected}: read, {ids:?}").unwrap(),
            Err(e) if e.what().starts_with(expected) => {}
            Err(e) => writeln!(failed, "{expected}: {}", e.what()).unwrap(),
        }
    }
    assert!(failed.is_empty(), "{failed}");
}

#[test]
fn a_cut_or_flipped_file_never_panics() {
    let mut r = Random(7);
    for name in ["bare.model", "table.model", "trained.json"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let parse =
            if name.ends_with("json") { Tokenizer::from_json_bytes } else { Tokenizer::from_model_bytes };
        let mut read = 0;
        for i in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + r.below(4) {
                let at = r.below(bytes.len());
                bytes[at] =
                    if name.ends_with("json") { b"\"{}[],:09a-"[r.below(11)] } else { r.below(256) as u8 };
            }
            if i % 10 == 0 {
                bytes.truncate(r.below(whole.len()));
            }
            if let Ok(t) = parse(&bytes) {
                read += 1;
                let ids = t.encode("the cat\n  sat 1é\u{fb01}…<loc0001>").unwrap_or_default();
                t.decode(&ids);
                t.decode(&random_ids(t.vocab_size(), None)[i]);
            }
        }
        assert!(read > 10, "{name}: {read} of 300 were still read");
    }
}

#[test]
fn a_piece_may_be_a_nul() {
    let bytes = model(&[("<unk>", 2), ("\0", 1), ("a", 1), ("\0a", 1)], &[], &[0x18, 0, 0x20, 0]);
    let t = Tokenizer::from_model_bytes(&bytes).unwrap();
    assert_eq!(t.encode("\0\0a").unwrap(), [1, 3]);
    assert_eq!(t.decode(&[1, 3]), "\0\0a");
}

#[test]
fn a_folder_uses_tokenizer_json_and_does_not_pass_over_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let put = |from: &str, name: &str| std::fs::copy(golden(from), folder.path().join(name)).unwrap();
    let size = || Tokenizer::from_folder(folder.path()).map(|t| t.vocab_size());
    assert_eq!(size().unwrap_err().what(), "there is no tokenizer");
    put("gemma.model", "gemma_tokenizer.model");
    assert_eq!(size().unwrap(), tokenizer("gemma.model").vocab_size());
    put("bare.model", "paligemma_tokenizer.model");
    assert_eq!(size().unwrap(), tokenizer("bare.model").vocab_size());
    put("table.model", "tokenizer.model");
    assert_eq!(size().unwrap(), tokenizer("table.model").vocab_size());
    put("trained.json", "tokenizer.json");
    assert_eq!(size().unwrap(), tokenizer("trained.json").vocab_size());
    std::fs::write(folder.path().join("tokenizer.json"), "{\"model\":").unwrap();
    let error = size().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json cannot be read") && error.contains("EOF"), "{error}");
}

#[test]
fn the_content_decides_what_a_file_is() {
    let folder = tempfile::tempdir().unwrap();
    for (from, name) in [("gemma.json", "x.model"), ("gemma.model", "x.json"), ("gemma.model", "x")] {
        let path = folder.path().join(name);
        std::fs::copy(golden(from), &path).unwrap();
        assert_eq!(Tokenizer::from_file(&path).unwrap().vocab_size(), tokenizer(from).vocab_size());
    }
}

#[test]
fn the_stand_in_has_gemmas_ids() {
    let t = Tokenizer::from_json_bytes(&stand_in_tokenizer(256_000, 257_152).unwrap()).unwrap();
    assert_eq!(t.pieces(&[0, 1, 2, 3, 4]), ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]);
    assert_eq!((t.newline().unwrap(), t.bos().unwrap(), t.eos().unwrap(), t.pad().unwrap()), (108, 2, 1, 0));
    assert_eq!(
        (t.loc(0), t.loc(1023), t.seg(0), t.seg(127)),
        (Some(256_000), Some(257_023), Some(257_024), Some(257_151))
    );
    assert_eq!((t.image(), t.vocab_size()), (Some(257_152), 257_153));
    assert_eq!(t.pieces(&[217, 472]), ["<0x00>", "<0xFF>"]);
    assert_eq!(
        t.pieces(&t.encode("detect the cat").unwrap()),
        ["d", "e", "t", "e", "c", "t", "▁the", "▁cat"]
    );
}

#[test]
fn the_stand_in_says_any_text_at_any_size() {
    for (loc0, image) in [
        (263, 1415),
        (300, 1500),
        (472, 1700),
        (473, 1625),
        (474, 1626),
        (512, 1664),
        (1000, 2152),
        (4096, 5248),
    ] {
        let t = Tokenizer::from_json_bytes(&stand_in_tokenizer(loc0, image).unwrap()).unwrap();
        assert_eq!((t.loc(0), t.image(), t.vocab_size()), (Some(loc0 as u32), Some(image as u32), image + 1));
        for text in ["caption en", "Ωμέγα 猫 😀\n\n  1234", "<loc0005> cat ; <seg003>", ""] {
            assert_eq!(t.decode(&t.encode(text).unwrap()), text, "{loc0}");
        }
    }
    for (loc0, image) in [(262, 1414), (512, 1663), (0, 0), (512, 1 << 20)] {
        let error = stand_in_tokenizer(loc0, image).unwrap_err();
        assert!(error.what().ends_with("has no room"), "{error}");
    }
    let config: Value = serde_json::from_slice(&stand_in_tokenizer_config()).unwrap();
    assert_eq!(config["tokenizer_class"], "GemmaTokenizer");
}
