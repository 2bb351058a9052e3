//! The answer language: objects as text.
//!
//! ```text
//! answer = [ object { " ; " object } ]
//! object = <loc>×4 [ <seg>×16 ] [ " " label ]
//! ```
//!
//! The four locations are y_min, x_min, y_max, x_max in bins of 1/1023 of the picture (paper section 3.2.5; big_vision
//! pp/proj/paligemma/segmentation.py), the sixteen codes are a 4×4 mask read row by row (see `crate::model::VqVae`).
//! A label is any text without `;`, line breaks, `<loc…>` and `<seg…>`.
//!
//! Reading is exact: a piece between two `;` is an object as written down here, or it is reported with its fault.
//! Nothing is guessed from half an object. Only white space around `;` and around a label is passed over.

use super::tokenizer::{NUM_LOC, NUM_SEG};
use crate::{Error, Result};
use std::{fmt, ops::Range};

/// The largest bin of a location; positions are bins over this number.
pub const LAST_BIN: u16 = NUM_LOC as u16 - 1;
/// Codes of a mask.
pub const NUM_CODES: usize = 16;
/// What stands between two objects.
pub const SEPARATOR: &str = " ; ";

/// A box in bins, as an answer has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bins {
    /// 0 to 1023, below `y_max`.
    pub y_min: u16,
    /// 0 to 1023, below `x_max`.
    pub x_min: u16,
    /// 0 to 1023.
    pub y_max: u16,
    /// 0 to 1023.
    pub x_max: u16,
}

/// How a bin becomes a part of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BoxScale {
    /// bin / 1023: big_vision's rule, with which the answers were written.
    #[default]
    Reference,
    /// bin / 1024: what many demos do, for comparison with them.
    Demos,
}

/// A box of a picture in pixels, as in JSON: x0, y0, x1, y1; the right and lower edges are outside.
pub type PixelBox = [f64; 4];

/// An object of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Object {
    /// Where it is.
    pub bins: Bins,
    /// Its mask, if one was asked for; each code is below 128.
    pub codes: Option<[u8; NUM_CODES]>,
    /// What it is; empty where the answer has no label.
    pub label: String,
}

/// An object and where it stands in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The object.
    pub object: Object,
    /// Bytes of the answer, from the first `<` to the end of the label.
    pub at: Range<usize>,
}

/// A piece of an answer that is no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong with it.
    pub fault: Fault,
    /// Bytes of the answer, without the white space around it.
    pub at: Range<usize>,
}

/// What is wrong with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing stands between two `;`, or before the first or behind the last.
    Empty,
    /// It begins with something else than a location: text, or a code.
    NoBox,
    /// One to three locations, or more than four.
    Locations(usize),
    /// One to fifteen codes, or more than sixteen.
    Codes(usize),
    /// A location or a code stands behind the place where it belongs.
    Misplaced,
    /// A location or a code of a number that there is not, or of too few or too many digits.
    UnknownToken,
    /// A label follows without a space.
    NoSpace,
    /// A line break, or another control character, stands in the label.
    ControlCharacter,
    /// y_max is below y_min, or x_max below x_min.
    Inverted,
    /// y_max is y_min, or x_max is x_min.
    NoArea,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Empty => f.write_str("nothing stands there"),
            Fault::NoBox => f.write_str("it does not begin with a location"),
            Fault::Locations(n) => write!(f, "it has {n} locations, not 4"),
            Fault::Codes(n) => write!(f, "it has {n} mask codes, not 16"),
            Fault::Misplaced => f.write_str("a location or a mask code stands behind its place"),
            Fault::UnknownToken => f.write_str("it has a location beyond 1023 or a mask code beyond 127"),
            Fault::NoSpace => f.write_str("no space stands before the label"),
            Fault::ControlCharacter => f.write_str("a line break or control character stands in the label"),
            Fault::Inverted => f.write_str("its box is inverted"),
            Fault::NoArea => f.write_str("its box has no area"),
        }
    }
}

/// An answer as read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// In their order.
    pub objects: Vec<Found>,
    /// What is no object, in its order.
    pub malformed: Vec<Malformed>,
}

impl Bins {
    /// The bins of a box given in parts of the picture (0 to 1): round(v · 1023), halves to even, as NumPy and
    /// TensorFlow round; clipped to the picture.
    pub fn from_parts(y_min: f64, x_min: f64, y_max: f64, x_max: f64) -> Bins {
        let bin = |part: f64| {
            let bin = (part * f64::from(LAST_BIN)).round_ties_even();
            // NaN becomes 0.
            bin.clamp(0.0, f64::from(LAST_BIN)) as u16
        };
        Bins { y_min: bin(y_min), x_min: bin(x_min), y_max: bin(y_max), x_max: bin(x_max) }
    }

    /// The bins of a box in pixels of a picture of `width` × `height`.
    pub fn from_pixels([x0, y0, x1, y1]: PixelBox, width: usize, height: usize) -> Bins {
        let (w, h) = (width as f64, height as f64);
        Bins::from_parts(y0 / h, x0 / w, y1 / h, x1 / w)
    }

    /// The box in pixels of a picture of `width` × `height`, not rounded.
    pub fn to_pixels(self, width: usize, height: usize, scale: BoxScale) -> PixelBox {
        let [y0, x0, y1, x1] = [self.y_min, self.x_min, self.y_max, self.x_max].map(f64::from);
        bins_to_pixels([y0, x0, y1, x1], width, height, scale)
    }

    /// What is wrong with it as a box, if anything.
    pub fn fault(self) -> Option<Fault> {
        if self.y_max < self.y_min || self.x_max < self.x_min {
            Some(Fault::Inverted)
        } else if self.y_max == self.y_min || self.x_max == self.x_min {
            Some(Fault::NoArea)
        } else {
            None
        }
    }
}

/// Positions in bins, whole or between two, as y_min, x_min, y_max, x_max → the box in pixels.
pub fn bins_to_pixels([y0, x0, y1, x1]: [f64; 4], width: usize, height: usize, scale: BoxScale) -> PixelBox {
    let last = match scale {
        BoxScale::Reference => f64::from(LAST_BIN),
        BoxScale::Demos => f64::from(LAST_BIN) + 1.0,
    };
    let (w, h) = (width as f64, height as f64);
    [x0 / last * w, y0 / last * h, x1 / last * w, y1 / last * h]
}

/// Reads an answer. Text without any object and without `;` is one malformed piece; an answer of white space alone is
/// no object at all.
pub fn parse_answer(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    if text.trim().is_empty() {
        return parsed;
    }
    let mut start = 0;
    for piece in text.split(';') {
        let end = start + piece.len();
        let trimmed = piece.trim();
        let from = start + (piece.len() - piece.trim_start().len());
        let at = from..from + trimmed.len();
        match parse_trimmed(trimmed) {
            Ok(object) => parsed.objects.push(Found { object, at }),
            Err(fault) => parsed.malformed.push(Malformed { fault, at }),
        }
        start = end + 1;
    }
    parsed
}

/// Reads one piece: what stands between two `;`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_object(piece: &str) -> Result<Object, Fault> {
    parse_trimmed(piece.trim())
}

/// One piece, without the white space around it.
fn parse_trimmed(piece: &str) -> Result<Object, Fault> {
    if piece.is_empty() {
        return Err(Fault::Empty);
    }
    let mut rest = piece;
    let mut locations = Vec::new();
    while let Some((n, after)) = token(rest, "<loc", 4)? {
        locations.push(n);
        rest = after;
    }
    let mut codes = Vec::new();
    while let Some((n, after)) = token(rest, "<seg", 3)? {
        codes.push(n);
        rest = after;
    }
    if locations.is_empty() {
        return Err(Fault::NoBox);
    }
    let &[y_min, x_min, y_max, x_max] = &locations[..] else {
        return Err(Fault::Locations(locations.len()));
    };
    if !codes.is_empty() && codes.len() != NUM_CODES {
        return Err(Fault::Codes(codes.len()));
    }
    // Any `<loc…>` or `<seg…>` in the label, even of a wrong number, is a token that lost its place.
    let mut tail = rest;
    while let Some(at) = tail.find('<') {
        tail = &tail[at..];
        if token(tail, "<loc", 4)?.is_some() || token(tail, "<seg", 3)?.is_some() {
            return Err(Fault::Misplaced);
        }
        tail = &tail[1..];
    }
    let label = rest.trim_start();
    if label.len() == rest.len() && !label.is_empty() {
        return Err(Fault::NoSpace);
    }
    if rest.contains(char::is_control) {
        return Err(Fault::ControlCharacter);
    }
    let bins = Bins { y_min, x_min, y_max, x_max };
    if let Some(fault) = bins.fault() {
        return Err(fault);
    }
    let codes = codes.iter().map(|&n| n as u8).collect::<Vec<_>>().try_into().ok();
    Ok(Object { bins, codes, label: label.to_owned() })
}

/// The number of the token `{head}{digits}>` that `text` begins with, and what follows it. `head` with digits behind it
/// is meant as a token, whatever its number.
fn token<'a>(text: &'a str, head: &str, digits: usize) -> Result<Option<(u16, &'a str)>, Fault> {
    let Some(rest) = text.strip_prefix(head) else { return Ok(None) };
    let Some((number, rest)) = rest.split_once('>') else { return Ok(None) };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let count = if digits == 4 { NUM_LOC } else { NUM_SEG };
    match number.parse::<usize>() {
        Ok(n) if number.len() == digits && n < count => Ok(Some((n as u16, rest))),
        _ => Err(Fault::UnknownToken),
    }
}

impl Object {
    /// Checks that the object can be written so that it is read as the same.
    ///
    /// # Errors
    /// `Kind::Input`: a box without area, a code beyond 127, a label with `;`, a line break, a token, or white space
    /// around it.
    pub fn check(&self) -> Result<()> {
        let piece = self.write_unchecked();
        let wrong = |why: String| Err(Error::input(why).at(format!("the object \"{piece}\"")));
        if self.label.contains(';') {
            return wrong("a label cannot have a `;`: it would end the object".into());
        }
        match parse_object(&piece) {
            Ok(read) if read == *self => Ok(()),
            Ok(_) => wrong("a label cannot begin or end with white space".into()),
            Err(fault) => wrong(format!("it cannot be written: {fault}")),
        }
    }

    fn write_unchecked(&self) -> String {
        let Bins { y_min, x_min, y_max, x_max } = self.bins;
        let mut text = String::new();
        for n in [y_min, x_min, y_max, x_max] {
            text.push_str(&format!("<loc{n:04}>"));
        }
        if let Some(codes) = &self.codes {
            text.push_str(&write_codes(codes));
        }
        if !self.label.is_empty() {
            text.push(' ');
            text.push_str(&self.label);
        }
        text
    }
}

/// Sixteen codes as text, `<seg000>…`.
pub fn write_codes(codes: &[u8; NUM_CODES]) -> String {
    codes.iter().map(|n| format!("<seg{n:03}>")).collect()
}

/// Writes an answer, as the model was trained on it.
///
/// # Errors
/// An object that would not be read as the same: see [`Object::check`].
pub fn write_answer<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<String> {
    let mut text = String::new();
    for (i, object) in objects.into_iter().enumerate() {
        object.check()?;
        if i > 0 {
            text.push_str(SEPARATOR);
        }
        text.push_str(&object.write_unchecked());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_and_everything_is_clipped() {
        let check =
            |part: f64, bin: u16| assert_eq!(Bins::from_parts(part, 0.0, 1.0, 1.0).y_min, bin, "{part}");
        check(0.0, 0);
        check(1.0, 1023);
        check(0.5 / 1023.0, 0);
        check(1.5 / 1023.0, 2);
        check(2.5 / 1023.0, 2);
        check(0.4999 / 1023.0, 0);
        check(0.5, 512); // 511.5
        check(-0.1, 0);
        check(7.0, 1023);
        check(f64::NAN, 0);
    }

    #[test]
    fn bins_are_parts_of_the_original_picture() {
        let bins = Bins { y_min: 0, x_min: 341, y_max: 1023, x_max: 1023 };
        assert_eq!(bins.to_pixels(300, 77, BoxScale::Reference), [100.0, 0.0, 300.0, 77.0]);
        assert_eq!(bins.to_pixels(1024, 1024, BoxScale::Demos), [341.0, 0.0, 1023.0, 1023.0]);
        assert_eq!(Bins::from_pixels([100.0, 0.0, 300.0, 77.0], 300, 77), bins);
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written() {
        let good = Object {
            bins: Bins { y_min: 1, x_min: 2, y_max: 3, x_max: 4 },
            codes: None,
            label: "chat noir".into(),
        };
        assert_eq!(write_answer([&good]).unwrap(), "<loc0001><loc0002><loc0003><loc0004> chat noir");
        for label in ["a;b", " a", "a ", "a\nb", "<loc0001>", "a <seg999>", "\t"] {
            let error = write_answer([&Object { label: label.into(), ..good.clone() }]).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Input, "{label:?}");
        }
        for bins in [[3, 2, 3, 4], [4, 2, 3, 4], [0, 0, 1024, 9]] {
            let [y_min, x_min, y_max, x_max] = bins;
            let bins = Bins { y_min, x_min, y_max, x_max };
            assert!(Object { bins, ..good.clone() }.check().is_err(), "{bins:?}");
        }
        assert!(Object { codes: Some([128; 16]), ..good }.check().is_err());
    }
}
