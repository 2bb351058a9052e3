//! The prompt: which ids the model is given around a user's words.
//!
//! `[BOS] prefix "\n"`, the line break tokenised apart from the prefix (big_vision
//! configs/proj/paligemma/transfers/common.py, `separator`). transformers tokenises prefix and line break in
//! one go; both give the same ids unless the prefix itself ends in line breaks, which a tokenizer with pieces
//! for runs of them would join with the separator. There we follow big_vision, with which the model was
//! trained.

use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The ids after the image tokens: BOS, the prefix, the line break. BOS is there exactly once, whatever the
/// tokenizer's configuration says of adding it.
///
/// # Errors
/// A tokenizer without BOS or line break.
pub fn prompt_ids(tokenizer: &Tokenizer, prefix: &str) -> Result<Vec<u32>> {
    let mut ids = vec![tokenizer.bos()?];
    ids.extend(tokenizer.encode(prefix)?);
    ids.push(tokenizer.newline()?);
    Ok(ids)
}

/// The ids of an answer as the model was trained on them: the suffix, then EOS.
///
/// # Errors
/// A tokenizer without EOS.
pub fn suffix_ids(tokenizer: &Tokenizer, suffix: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(suffix)?;
    ids.push(tokenizer.eos()?);
    Ok(ids)
}

/// A task with the words around which the paper puts its prefix (arXiv 2407.07726, section 3.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task<'a> {
    /// `caption {lang}`: describe the image.
    Caption {
        /// Language code, as in [`LANGUAGES`].
        lang: &'a str,
    },
    /// `answer {lang} {question}`: answer a question about the image.
    Answer {
        /// Language code of the answer.
        lang: &'a str,
        /// The question.
        question: &'a str,
    },
    /// `ocr`: read all text.
    Ocr,
    /// `detect {thing} ; {thing}`: a box for each thing.
    Detect {
        /// The things.
        things: &'a [&'a str],
    },
    /// `segment {thing} ; {thing}`: a box and a mask for each thing.
    Segment {
        /// The things.
        things: &'a [&'a str],
    },
}

/// The 35 languages of COCO-35L, which the captions of the pre-training cover (facts: big_vision
/// configs/proj/paligemma/transfers/coco35l.py). Others are passed through: WebLI has over a hundred.
pub const LANGUAGES: [&str; 35] = [
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id",
    "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi",
    "zh",
];

impl Task<'_> {
    /// The prefix that the model was trained on, without the line break.
    ///
    /// # Errors
    /// A language that is no code, an empty question or thing, no things at all: each would make a prompt
    /// that the model has never seen.
    pub fn prefix(&self) -> Result<String> {
        match *self {
            Task::Caption { lang } => Ok(format!("caption {}", language(lang)?)),
            Task::Answer { lang, question } => {
                Ok(format!("answer {} {}", language(lang)?, words("question", question)?))
            }
            Task::Ocr => Ok("ocr".to_owned()),
            Task::Detect { things } => Ok(format!("detect {}", list(things)?)),
            Task::Segment { things } => Ok(format!("segment {}", list(things)?)),
        }
    }
}

/// What a prefix of [`Task::Detect`] or [`Task::Segment`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The things, each once.
    pub things: Vec<&'a str>,
    /// Whether masks are asked for, not only boxes.
    pub masks: bool,
}

impl<'a> Asked<'a> {
    /// Reads a prefix; none if it is of another task.
    pub fn of(prefix: &'a str) -> Option<Asked<'a>> {
        let (words, masks) = match prefix.trim().split_once(' ')? {
            ("detect", words) => (words, false),
            ("segment", words) => (words, true),
            _ => return None,
        };
        let mut things = Vec::new();
        for thing in words.split(';').map(str::trim).filter(|thing| !thing.is_empty()) {
            if !things.contains(&thing) {
                things.push(thing);
            }
        }
        (!things.is_empty()).then_some(Asked { things, masks })
    }
}

fn language(lang: &str) -> Result<&str> {
    let is_code = (2..=12).contains(&lang.len())
        && lang.starts_with(|c: char| c.is_ascii_lowercase())
        && lang.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if is_code {
        return Ok(lang);
    }
    Err(Error::usage(format!("{lang:?} is no language code"))
        .expected(format!("one of {}", LANGUAGES.join(" "))))
}

fn words<'a>(what: &str, text: &'a str) -> Result<&'a str> {
    match text.trim() {
        "" => Err(Error::usage(format!("the {what} is empty")).expected("at least one word")),
        text => Ok(text),
    }
}

fn list(things: &[&str]) -> Result<String> {
    if things.is_empty() {
        return Err(Error::usage("no thing is named").expected("at least one, as in `detect cat`"));
    }
    let things = things.iter().map(|t| words("thing", t)).collect::<Result<Vec<_>>>()?;
    Ok(things.join(" ; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_the_papers_prefix() {
        let check = |task: Task<'_>, prefix: &str| assert_eq!(task.prefix().unwrap(), prefix);
        check(Task::Caption { lang: "en" }, "caption en");
        check(Task::Caption { lang: "fil" }, "caption fil");
        check(Task::Answer { lang: "de", question: "Wo ist die Kuh?" }, "answer de Wo ist die Kuh?");
        check(Task::Ocr, "ocr");
        check(Task::Detect { things: &["cat"] }, "detect cat");
        check(Task::Detect { things: &["cat", " dog "] }, "detect cat ; dog");
        check(Task::Segment { things: &["left eye", "nose"] }, "segment left eye ; nose");
    }

    #[test]
    fn what_is_asked_for_is_read_from_the_prefix() {
        let check = |prefix: &str, want: Option<(&[&str], bool)>| {
            let want = want.map(|(things, masks)| Asked { things: things.to_vec(), masks });
            assert_eq!(Asked::of(prefix), want, "{prefix:?}");
        };
        check("detect cat", Some((&["cat"], false)));
        check("segment left eye ; nose;left eye ", Some((&["left eye", "nose"], true)));
        check("detect", None);
        check("detect  ; ", None);
        check("detection cat", None);
        check("caption en", None);
        check("", None);
    }

    #[test]
    fn a_prompt_nobody_trained_on_is_a_usage_error() {
        let check = |task: Task<'_>, what: &str| {
            let error = task.prefix().unwrap_err();
            assert_eq!((error.kind(), error.what()), (crate::Kind::Usage, what));
        };
        check(Task::Caption { lang: "" }, "\"\" is no language code");
        check(Task::Caption { lang: "en\nocr" }, "\"en\\nocr\" is no language code");
        check(Task::Answer { lang: "en", question: "  " }, "the question is empty");
        check(Task::Detect { things: &[] }, "no thing is named");
        check(Task::Segment { things: &["cat", ""] }, "the thing is empty");
    }
}
