//! The house is in order: what ARCHITECTURE.md, goldens/README.md and CHANGELOG.md say is what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every file under `folder`, as paths from the root, sorted.
fn files(folder: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}")) {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// The Rust files under `folder`.
fn sources(folder: &str) -> Vec<String> {
    files(folder).into_iter().filter(|path| path.ends_with(".rs")).collect()
}

/// The part of a document under the heading that starts with `heading`, to the next one of its level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n{heading}")).unwrap_or_else(|| panic!("no {heading}"));
    let level = heading.split(' ').next().unwrap();
    rest.split(&format!("\n{level} ")).next().unwrap()
}

/// The rows of all tables of a text, cell by cell, without heads.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let mut is_body = false;
    text.lines().filter_map(move |line| {
        let is_rule = line.starts_with("|---");
        let is_row = is_body && line.starts_with('|');
        is_body = is_rule || is_row;
        is_row.then(|| line.trim_matches('|').split('|').map(str::trim).collect())
    })
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Rust without its line comments and its unit tests, which stand at the end of a file.
fn code(source: &str) -> String {
    let program = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let without_comment = |line: &str| line.split("//").next().unwrap().to_owned() + "\n";
    program.lines().map(without_comment).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Byte positions at which `word` stands as a whole word.
fn positions(text: &str, word: &str) -> Vec<usize> {
    let ends = |at: usize| text[at + word.len()..].chars().next().is_none_or(|c| !is_word(c));
    let begins = |at: usize| text[..at].chars().next_back().is_none_or(|c| !is_word(c));
    text.match_indices(word).map(|(at, _)| at).filter(|&at| begins(at) && ends(at)).collect()
}

/// The first names of a path's tail: `a::b` → a; `{a::{x, y}, b}` → a, b.
fn first_names(tail: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|&c| is_word(c)).collect::<String>();
    let Some(list) = tail.strip_prefix('{') else { return vec![name(tail)] };
    let (mut depth, mut start, mut names) = (1, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            names.push(name(&list[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

/// Modules of the library that the source of `path` (from `src/` on) names, by `crate::` or `super::`.
fn imports(path: &str, source: &str) -> BTreeSet<String> {
    let mut place: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    if place.last() == Some(&"mod") {
        place.pop();
    }
    let code = code(source);
    let mut named: Vec<String> = Vec::new();
    for at in positions(&code, "crate") {
        // `pub(crate)` is no path.
        if let Some(tail) = code[at..].strip_prefix("crate::") {
            named.extend(first_names(tail));
        }
    }
    for at in positions(&code, "super") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let (mut up, mut tail) = (0, &code[at..]);
        while let Some(rest) = tail.strip_prefix("super::") {
            (up, tail) = (up + 1, rest);
        }
        if up > 0 && up >= place.len() {
            named.extend(first_names(tail));
        }
    }
    let module = |name: String| match name.as_str() {
        "Error" | "Kind" | "Result" => Some("error".to_owned()),
        // These are the tensor crate's.
        "DType" | "Isa" | "peak_rss" => None,
        _ => Some(name),
    };
    named.into_iter().filter_map(module).filter(|m| m != place[0]).collect()
}

#[test]
fn modules_import_what_the_table_says() {
    let architecture = read("ARCHITECTURE.md");
    let names = |cell: &str| quoted(cell).map(str::to_owned).collect::<BTreeSet<_>>();
    let table: BTreeMap<String, BTreeSet<String>> = rows(section(&architecture, "## Who imports whom"))
        .map(|row| (quoted(row[0]).next().unwrap().to_owned(), names(row[1])))
        .collect();
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources("paligemma/src") {
        let inner = path.strip_prefix("paligemma/src/").unwrap();
        if inner != "lib.rs" {
            let module = inner.split(['/', '.']).next().unwrap().to_owned();
            used.entry(module).or_default().extend(imports(inner, &read(&path)));
        }
    }
    for (module, modules) in &used {
        let says = table.get(module).unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {module}"));
        assert_eq!(
            modules, says,
            "{module}: on the left what its source uses, on the right what the table says"
        );
    }
    assert_eq!(used.len(), table.len(), "the table has a row for a module that is not there");
}

#[test]
fn imports_are_found() {
    let check = |path: &str, source: &str, want: &[&str]| {
        assert_eq!(imports(path, source).into_iter().collect::<Vec<_>>(), want, "{path}: {source}");
    };
    check("a/b.rs", "use crate::{Error, c::{self, d::{X, Y}}, e};", &["c", "e", "error"]);
    check("a/b.rs", "fn f() -> crate::Result<crate::c::D> {}", &["c", "error"]);
    check("a/b.rs", "use super::super::c; use super::d; use crate::a::e;", &["c"]);
    check("a/mod.rs", "pub(crate) use super::c;\npub(in crate::a) fn f() {}", &["c"]);
    check(
        "a.rs",
        "use super::c; use crate::DType; // crate::d\n#[cfg(test)]\nmod tests { use crate::e; }",
        &["c"],
    );
}

#[test]
fn the_map_names_every_source_file_once() {
    let architecture = read("ARCHITECTURE.md");
    let mut mapped: Vec<&str> =
        rows(section(&architecture, "## Map")).filter_map(|row| quoted(row[0]).next()).collect();
    mapped.sort_unstable();
    let there: Vec<String> = ["cli/src", "paligemma/src", "tensor/src"].into_iter().flat_map(files).collect();
    let missing: Vec<_> = there.iter().filter(|f| !mapped.contains(&f.as_str())).collect();
    let dead: Vec<_> = mapped.iter().filter(|m| !there.iter().any(|f| f == *m)).collect();
    let twice: Vec<_> = mapped.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
    assert!(
        missing.is_empty() && dead.is_empty() && twice.is_empty(),
        "missing {missing:?}, dead {dead:?}, twice {twice:?}"
    );
}

/// Whether the `pattern` of goldens/README.md covers the file `name`; `models` may stand for `<model>`.
fn covers(pattern: &str, name: &str, models: &BTreeSet<String>) -> bool {
    match pattern.split_once("<model>") {
        Some((head, tail)) => models.iter().any(|m| name == format!("{head}{m}{tail}")),
        None if pattern.ends_with('/') => name.starts_with(pattern),
        None => name == pattern,
    }
}

#[test]
fn every_golden_names_its_script() {
    let readme = read("goldens/README.md");
    let there = files("goldens");
    let in_folder =
        |f: &str| f.strip_prefix("goldens/model/").and_then(|f| f.split_once('/')).map(|f| f.0.to_owned());
    let models: BTreeSet<String> = there.iter().filter_map(|f| in_folder(f)).collect();
    let mut patterns: Vec<(String, &str)> = Vec::new();
    let mut named_scripts = BTreeSet::new();
    for folder in
        ["model", "checkpoint", "towers", "tokenizer", "image", "data", "masks", "eval", "train", "e2e"]
    {
        let mut script = None;
        for row in rows(section(&readme, &format!("## {folder}/"))) {
            if row[1] != "same" {
                script = quoted(row[1]).next();
            }
            named_scripts
                .insert(script.unwrap_or_else(|| panic!("goldens/README.md: no script for {}", row[0])));
            patterns.extend(quoted(row[0]).map(|name| (format!("goldens/{folder}/"), name)));
        }
    }
    for script in named_scripts {
        let path = root().join("reference").join(script);
        assert!(path.is_file(), "goldens/README.md names reference/{script}, which is not there");
    }
    let is_covered = |file: &str, (folder, pattern): &(String, &str)| {
        file.strip_prefix(folder.as_str()).is_some_and(|name| covers(pattern, name, &models))
    };
    let unnamed: Vec<_> = there
        .iter()
        .filter(|f| !f.ends_with("/README.md") && !patterns.iter().any(|p| is_covered(f, p)))
        .collect();
    assert!(unnamed.is_empty(), "goldens/README.md names no script for {unnamed:?}");
    let dead: Vec<_> = patterns.iter().filter(|p| !there.iter().any(|f| is_covered(f, p))).collect();
    assert!(dead.is_empty(), "goldens/README.md names what is not there: {dead:?}");
}

#[test]
fn the_changelog_has_this_version() {
    let heading = format!("\n## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").contains(&heading), "CHANGELOG.md has no heading{heading}");
}

#[test]
fn unsafe_code_is_in_the_tensor_crate_alone_and_says_why() {
    const WORD: &str = concat!("un", "safe");
    for path in ["paligemma/src", "paligemma/tests", "cli/src", "cli/tests"].into_iter().flat_map(sources) {
        assert!(positions(&code(&read(&path)), WORD).is_empty(), "{path} has {WORD} code");
    }
    let mut blocks = 0;
    for path in sources("tensor/src") {
        let source = read(&path);
        let lines: Vec<&str> = source.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let line_code = line.split("//").next().unwrap();
            let opens = |at: usize| {
                let next = line_code[at + WORD.len()..].trim_start();
                next.starts_with('{') || next.starts_with("impl")
            };
            if positions(line_code, WORD).into_iter().any(opens) {
                blocks += 1;
                let above = &lines[i.saturating_sub(4)..i];
                let says = above.iter().any(|l| l.trim_start().starts_with("// SAFETY:"));
                assert!(says, "{path}:{}: no SAFETY comment above: {}", i + 1, line.trim());
            }
        }
    }
    assert!(blocks > 0, "no block found: the search is wrong");
}
