//! What is wrong with examples that can be read, and with those that cannot.

use std::fmt;
use std::sync::Arc;

use super::dataset::Dataset;
use super::example::Example;
use super::tokens::Tokens;
use crate::image::Grey16;
use crate::text::{Fault as AnswerFault, Tokenizer, parse_answer};

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// The example cannot be read.
    Example,
    /// A picture is missing or broken.
    Image,
    /// A suffix is empty.
    EmptySuffix,
    /// The text has what is probably meant otherwise.
    Text,
    /// An answer with boxes has a box or a piece that is none.
    Box,
    /// An answer names what was not asked for, or has no masks where masks were asked for.
    Answer,
    /// The text is cut off.
    TooLong,
}

impl Check {
    /// All of them.
    pub const ALL: [Check; 7] = [
        Check::Example,
        Check::Image,
        Check::EmptySuffix,
        Check::Text,
        Check::Box,
        Check::Answer,
        Check::TooLong,
    ];
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Check::Example => "example",
            Check::Image => "image",
            Check::EmptySuffix => "empty-suffix",
            Check::Text => "text",
            Check::Box => "box",
            Check::Answer => "answer",
            Check::TooLong => "too-long",
        })
    }
}

/// Something wrong with an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the example stands: `data.jsonl:7`.
    pub place: String,
    /// What kind of problem it is.
    pub check: Check,
    /// What is wrong, in a line.
    pub what: String,
}

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Lint {
    /// Whether pictures are decoded, which takes most of the time.
    pub decodes_images: bool,
    /// The tokenizer and the text length, for texts that are too long.
    pub length: Option<(Arc<Tokenizer>, usize)>,
}

/// Control tokens that in a text are only text: whoever writes them means something else.
const CONTROL: [&str; 5] = ["<image>", "<bos>", "<eos>", "<pad>", "<unk>"];

impl Lint {
    /// What is wrong with example `i`.
    pub fn check(&self, data: &Dataset, i: usize) -> Vec<Problem> {
        let place = data.place(i);
        let mut problems = Vec::new();
        let mut tell = |check: Check, what: String| {
            // One line each, without the hint and without the place, which stands before it.
            let what = what.split("\n\nhint: ").next().unwrap_or("");
            let what =
                what.replace(&format!("in {place}, "), "in ").replace(&format!("\n  in {place}\n"), "\n");
            let what = what.strip_suffix(&format!("\n  in {place}")).unwrap_or(&what).replace("\n  ", ", ");
            problems.push(Problem { place: place.clone(), check, what });
        };
        match data.example(i) {
            Err(error) => tell(Check::Example, error.to_string()),
            Ok(example) => self.check_example(&example, &mut tell),
        }
        problems
    }

    fn check_example(&self, example: &Example, tell: &mut dyn FnMut(Check, String)) {
        if self.decodes_images {
            for image in &example.images {
                if let Err(error) = image.decode(Grey16::default()) {
                    tell(Check::Image, error.to_string());
                }
            }
        }
        check_text("prefix", &example.prefix, tell);
        for suffix in &example.suffixes {
            if suffix.trim().is_empty() {
                tell(Check::EmptySuffix, "the suffix is empty".into());
                continue;
            }
            check_text("suffix", suffix, tell);
            check_answer(&example.prefix, suffix, tell);
            if let Some((tokenizer, text_len)) = &self.length {
                match Tokens::new(tokenizer, &example.prefix, suffix, *text_len) {
                    Err(error) => tell(Check::TooLong, error.to_string()),
                    Ok(Tokens { num_cut: 0, .. }) => {}
                    Ok(tokens) => {
                        let needed = tokens.ids.len() + tokens.num_cut - 1;
                        tell(
                            Check::TooLong,
                            format!("the text needs a length of {needed} tokens, and {text_len} are there"),
                        );
                    }
                }
            }
        }
    }
}

fn check_text(name: &str, text: &str, tell: &mut dyn FnMut(Check, String)) {
    if let Some(token) = CONTROL.iter().find(|token| text.contains(**token)) {
        tell(
            Check::Text,
            format!("the {name} has {token}, which is only text there: images, BOS and EOS are added"),
        );
    }
    if text.ends_with('\n') {
        tell(
            Check::Text,
            format!("the {name} ends in a line break; the one between prefix and suffix is added"),
        );
    } else if text != text.trim() {
        tell(Check::Text, format!("the {name} begins or ends with white space"));
    }
}

/// Boxes and masks: where the prompt asks for them, or the answer has them.
fn check_answer(prefix: &str, suffix: &str, tell: &mut dyn FnMut(Check, String)) {
    let words = prefix.strip_prefix("detect ").map(|things| (things, false));
    let words = words.or_else(|| prefix.strip_prefix("segment ").map(|things| (things, true)));
    if words.is_none() && !suffix.contains("<loc") && !suffix.contains("<seg") {
        return;
    }
    let parsed = parse_answer(suffix);
    for piece in &parsed.malformed {
        let shown: String = suffix[piece.at.clone()].chars().take(60).collect();
        let what = match piece.fault {
            AnswerFault::Empty => "there is nothing between two `;`".to_owned(),
            fault => format!("{fault}: {shown}"),
        };
        tell(Check::Box, what);
    }
    let Some((things, wants_masks)) = words else { return };
    let things: Vec<&str> = things.split(';').map(str::trim).collect();
    for found in &parsed.objects {
        let object = &found.object;
        // "detect all classes" and the like name no class.
        if !object.label.is_empty()
            && !things.contains(&object.label.as_str())
            && !prefix.starts_with("detect all ")
        {
            tell(
                Check::Answer,
                format!("the answer has a {:?}, and {prefix:?} does not ask for it", object.label),
            );
        }
        if wants_masks && object.codes.is_none() {
            tell(Check::Answer, format!("{prefix:?} asks for masks, and an object has none"));
        }
    }
}
