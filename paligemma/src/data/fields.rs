//! Which fields of a record make an example: templates as in `answer en {question}`.
//!
//! `{name}` stands for a field's text, `{a.b}` for field `b` of field `a`; where `a` is a list it stands for the list of
//! all its `b`. `{{` and `}}` are braces. A suffix template with a list makes a suffix of each element.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The most bytes of a prefix or a suffix: far beyond the longest text of any task, 4096 tokens.
pub const MAX_TEXT: usize = 1 << 20;

/// How the fields of a record become an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields {
    /// The field that holds the picture or the pictures. In a folder or a tar it is an ending (`jpg`, `left.png`);
    /// `image` is all files that are pictures. Empty: the data are texts, and no picture is looked for.
    pub image: String,
    /// The prefix.
    pub prefix: Template,
    /// The suffix.
    pub suffix: Template,
}

impl Default for Fields {
    /// The fields `image`, `prefix` and `suffix`, as big_vision's JSONL files have them.
    fn default() -> Self {
        let field = |name: &str| Template { pieces: vec![Piece::Field(name.to_owned())] };
        Fields { image: "image".to_owned(), prefix: field("prefix"), suffix: field("suffix") }
    }
}

impl Fields {
    /// A field of pictures, and two templates.
    ///
    /// # Errors
    /// Those of [`Template::parse`].
    pub fn parse(image: &str, prefix: &str, suffix: &str) -> Result<Fields> {
        let (prefix, suffix) = (Template::parse(prefix)?, Template::parse(suffix)?);
        Ok(Fields { image: image.to_owned(), prefix, suffix })
    }

    /// The fields that the templates need.
    pub(super) fn needed(&self) -> impl Iterator<Item = &str> {
        self.prefix.fields().chain(self.suffix.fields())
    }
}

/// A text with fields in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    /// A name, or several joined by dots.
    Field(String),
}

impl Template {
    /// Reads `answer en {question}`.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: a brace without its partner, or without a name.
    pub fn parse(text: &str) -> Result<Template> {
        let wrong = |what: &str| {
            Error::usage(format!("the template {text:?} has {what}"))
                .expected("field names in braces, as in `answer en {question}`")
                .hint("`{{` and `}}` are braces themselves")
        };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            let (name, after) = match brace {
                "{" => rest.split_once('}').ok_or_else(|| wrong("an open brace"))?,
                _ => return Err(wrong("a closing brace without an opening one")),
            };
            let name = name.trim();
            if name.split('.').any(str::is_empty) || name.contains('{') {
                return Err(wrong("braces without a field's name"));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Field(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Template { pieces })
    }

    fn fields(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Field(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text for a record.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: a field that is not there, has no text, or is a list.
    pub(super) fn one(&self, values: &Map<String, Value>) -> Result<String> {
        match self.fill(values)? {
            Filled::One(text) => Ok(text),
            Filled::List { name, .. } => {
                Err(Error::input(format!("the field `{name}` is a list")).expected("one text"))
            }
        }
    }

    /// The texts for a record: one, or one for each element of a list.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: a field that is not there or has no text, an empty list, two lists.
    pub(super) fn several(&self, values: &Map<String, Value>) -> Result<Vec<String>> {
        match self.fill(values)? {
            Filled::One(text) => Ok(vec![text]),
            Filled::List { name, texts } if texts.is_empty() => {
                Err(Error::input(format!("the field `{name}` is an empty list"))
                    .expected("at least one text"))
            }
            Filled::List { texts, .. } => Ok(texts),
        }
    }

    fn fill(&self, values: &Map<String, Value>) -> Result<Filled> {
        let mut list: Option<(&str, Vec<String>)> = None;
        let mut texts = vec![String::new()];
        for piece in &self.pieces {
            let found = match piece {
                Piece::Text(text) => Found::One(text.clone()),
                Piece::Field(name) => find(values, name)?,
            };
            match found {
                Found::One(text) => texts.iter_mut().for_each(|t| t.push_str(&text)),
                Found::Several(several) => {
                    let Piece::Field(name) = piece else { continue };
                    if let Some((other, _)) = &list {
                        return Err(Error::input(format!(
                            "the fields `{other}` and `{name}` are both lists"
                        ))
                        .expected("at most one list in a template"));
                    }
                    let head = texts[0].clone();
                    texts = several.iter().map(|text| format!("{head}{text}")).collect();
                    list = Some((name, several));
                }
            }
            // Checked at every piece: a long list times a long text would otherwise grow without bound.
            if let Some(size) = texts.iter().map(String::len).find(|&size| size > MAX_TEXT) {
                return Err(too_long("a text", size));
            }
            if texts.iter().map(String::len).sum::<usize>() > 16 * MAX_TEXT {
                return Err(Error::input("all the texts together are too long")
                    .expected(format!("at most {} MiB", (16 * MAX_TEXT) >> 20)));
            }
        }
        Ok(match list {
            None => Filled::One(texts.swap_remove(0)),
            Some((name, _)) => Filled::List { name: name.to_owned(), texts },
        })
    }
}

enum Filled {
    One(String),
    List { name: String, texts: Vec<String> },
}

enum Found {
    One(String),
    Several(Vec<String>),
}

fn too_long(what: &str, size: usize) -> Error {
    Error::input(format!("{what} has {size} bytes")).expected(format!("at most {} MiB", MAX_TEXT >> 20))
}

/// The field `name` of a record: its whole name first, then step by step at its dots.
fn find(values: &Map<String, Value>, name: &str) -> Result<Found> {
    if let Some(value) = values.get(name) {
        return texts(name, value);
    }
    let mut steps = name.split('.');
    let first = steps.next().unwrap_or(name);
    let mut found = vec![values.get(first).ok_or_else(|| missing(values, first))?];
    let mut is_list = false;
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            let objects = match value {
                Value::Array(list) if !is_list => {
                    is_list = true;
                    list.iter().collect()
                }
                one => vec![one],
            };
            for object in objects {
                let Value::Object(fields) = object else {
                    return Err(Error::input(format!("the field `{name}` leads through {}", kind(object)))
                        .expected("objects up to the last name"));
                };
                next.push(fields.get(step).ok_or_else(|| missing(fields, step))?);
            }
        }
        found = next;
    }
    if !is_list {
        return texts(name, found[0]);
    }
    let text = |value| match texts(name, value)? {
        Found::One(text) => Ok(text),
        Found::Several(_) => Err(Error::input(format!("the field `{name}` is a list of lists"))),
    };
    found.into_iter().map(text).collect::<Result<_>>().map(Found::Several)
}

fn missing(values: &Map<String, Value>, name: &str) -> Error {
    let error = Error::input(format!("there is no field `{name}`"));
    let near = values.keys().map(|key| (strsim::damerau_levenshtein(key, name), key)).min();
    match near {
        None => error,
        Some((distance, key)) if distance <= 2 => error.hint(format!("did you mean `{key}`?")),
        Some(_) => {
            let shown: Vec<String> = values.keys().take(12).map(|key| format!("`{key:.40}`")).collect();
            error.expected(format!("one of {}", shown.join(", ")))
        }
    }
}

/// The text of a value, or the texts of a list.
fn texts(name: &str, value: &Value) -> Result<Found> {
    let text = |value: &Value| match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            Err(too_long(&format!("the field `{name}`"), text.len()))
        }
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => {
            Err(Error::input(format!("the field `{name}` is {}", kind(other))).expected("a text or a number"))
        }
    };
    match value {
        Value::Array(list) => list.iter().map(text).collect::<Result<_>>().map(Found::Several),
        one => text(one).map(Found::One),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Map<String, Value> {
        let value = json!({
            "question": "where?", "n": 7, "yes": true, "none": null, "empty": [], "a.b": "dotted",
            "answers": ["x", "y"], "votes": [{"answer": "cat", "of": {"by": 1}}, {"answer": "dog", "of": {"by": 2}}],
            "deep": {"er": {"text": "down"}}, "lists": [["x"]], "mixed": ["x", {}],
        });
        value.as_object().unwrap().clone()
    }

    #[test]
    fn templates_are_filled() {
        let check = |template: &str, want: &[&str]| {
            let got = Template::parse(template).unwrap().several(&record()).unwrap();
            assert_eq!(got, want, "{template}");
        };
        check("caption en", &["caption en"]);
        check("", &[""]);
        check("answer en {question}", &["answer en where?"]);
        check("{{{ question }}}", &["{where?}"]);
        check("{n} {yes}", &["7 true"]);
        check("{a.b}", &["dotted"]);
        check("{deep.er.text}!", &["down!"]);
        check("{answers}", &["x", "y"]);
        check("It is {answers}.", &["It is x.", "It is y."]);
        check("{votes.answer}", &["cat", "dog"]);
        check("{votes.of.by}", &["1", "2"]);
    }

    #[test]
    fn what_has_no_text_is_named() {
        let check = |template: &str, what: &str, more: &str| {
            let error = Template::parse(template).unwrap().several(&record()).unwrap_err();
            assert_eq!((error.kind(), error.what()), (crate::Kind::Input, what), "{template}");
            assert!(error.to_string().contains(more), "{error}");
        };
        check("{qestion}", "there is no field `qestion`", "did you mean `question`?");
        check("{suffix}", "there is no field `suffix`", "one of `question`, `n`");
        check("{none}", "the field `none` is null", "a text or a number");
        check("{deep}", "the field `deep` is an object", "a text");
        check("{mixed}", "the field `mixed` is an object", "a text");
        check("{lists}", "the field `lists` is a list", "a text");
        check("{empty}", "the field `empty` is an empty list", "at least one");
        check("{question.x}", "the field `question.x` leads through a text", "objects");
        check("{votes.name}", "there is no field `name`", "one of `answer`, `of`");
        check(
            "{answers} {votes.answer}",
            "the fields `answers` and `votes.answer` are both lists",
            "one list",
        );
        let error = Template::parse("{answers}").unwrap().one(&record()).unwrap_err();
        assert_eq!(error.what(), "the field `answers` is a list");
    }

    #[test]
    fn broken_templates_are_usage_errors() {
        let check = |template: &str, what: &str| {
            let error = Template::parse(template).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Usage, "{template}");
            assert!(error.what().ends_with(what), "{template}: {error}");
        };
        check("a {b", "an open brace");
        check("a }", "a closing brace without an opening one");
        check("{}", "braces without a field's name");
        check("{a..b}", "braces without a field's name");
        check("{a{b}", "braces without a field's name");
    }

    #[test]
    fn texts_are_bounded() {
        let mut record = record();
        record.insert("long".into(), Value::String("x".repeat(MAX_TEXT)));
        record.insert("list".into(), Value::Array(vec![json!("y"); 20]));
        let check = |template: &str, fits: bool| {
            assert_eq!(Template::parse(template).unwrap().several(&record).is_ok(), fits, "{template}");
        };
        check("{long}", true);
        check("{long}.", false);
        check("{long}{long}", false);
        check("{list}", true);
        check("{long}{list}", false);
    }
}
