//! Objects in a picture: an answer's tokens as boxes in pixels, labels and scores.
//!
//! The score of an object is the model's own probability, of three things multiplied:
//!
//! - that there is an object to name here, and not the answer's end: the probability of the separator before it and, at
//!   its first coordinate, of any location at all;
//! - that it is here: for each coordinate, how much of the locations' probability lies near the chosen one
//!   ([`NEAR`](crate::generate::NEAR) bins, 1.6 % of a side), and the geometric mean of the four. The probability of the
//!   very bin would say more about how finely a place is divided than about the object;
//! - that it is called so: the probability of the label's tokens.
//!
//! The mask's codes are left out: many sequences of codes make the same mask.

use crate::{
    Error, Result,
    generate::{Answer, Coordinate, Grammar, LabelIds, Step},
    text::{
        Asked, BoxScale, DecodeStream, Fault, NUM_CODES, Object, PixelBox, SEPARATOR, Tokenizer,
        bins_to_pixels, parse_object,
    },
};

/// What may be chosen about detections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// How bins become pixels.
    pub scale: BoxScale,
    /// Whether a coordinate is the mean of the locations around the chosen one, which is finer than its bin.
    pub expected: bool,
    /// Objects of a lower score are left out.
    pub threshold: f32,
    /// Of two objects of one label that overlap more than this (intersection over union), the one of the lower score is
    /// left out.
    pub nms: Option<f32>,
}

impl Default for Finding {
    fn default() -> Self {
        Finding { scale: BoxScale::Reference, expected: false, threshold: 0.0, nms: None }
    }
}

impl Finding {
    /// # Errors
    /// A value that means nothing, by its flag's name.
    pub fn check(&self) -> Result<()> {
        let wrong = |flag: &str, value: f32| {
            Err(Error::usage(format!("{flag} is {value}")).expected("a number from 0 to 1"))
        };
        if !(0.0..=1.0).contains(&self.threshold) {
            return wrong("--threshold", self.threshold);
        }
        match self.nms {
            Some(nms) if !(0.0..=1.0).contains(&nms) => wrong("--nms", nms),
            _ => Ok(()),
        }
    }
}

/// An object in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// What it is; empty where the answer has no label.
    pub label: String,
    /// x0, y0, x1, y1 in pixels of the original picture.
    pub pixels: PixelBox,
    /// From 0 to 1; the module says how it is computed.
    pub score: f32,
    /// Its mask, if one was asked for: see [`crate::masks::MaskCodec::paste`].
    pub codes: Option<[u8; NUM_CODES]>,
}

/// All that an answer holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// In the order of the answer, but for those left out.
    pub detections: Vec<Detection>,
    /// Pieces that are no object.
    pub malformed: Vec<(Fault, String)>,
}

/// The rules for the answer to a prompt: boxes, and masks if asked for, of the things asked for.
///
/// # Errors
/// A tokenizer whose locations or codes do not follow each other, or that cannot say a thing.
pub fn grammar(tokenizer: &Tokenizer, asked: &Asked<'_>) -> Result<Grammar> {
    let locations = tokenizer.locations()?;
    let codes = if asked.masks { Some((tokenizer.codes()?, NUM_CODES)) } else { None };
    // Between tokens that stand around it, as in the answers that the model was trained on.
    let first = locations.start;
    let between = |text: &str, has_end: bool| -> Result<Vec<u32>> {
        let end = if has_end { "<loc0000>" } else { "" };
        let ids = tokenizer.encode(&format!("<loc0000>{text}{end}"))?;
        match &ids[..] {
            [a, text @ .., z] if has_end && *a == first && *z == first => Ok(text.to_vec()),
            [a, text @ ..] if !has_end && *a == first => Ok(text.to_vec()),
            _ => Err(Error::model("the tokenizer does not keep locations and text apart")),
        }
    };
    let label = |thing: &&str| {
        Ok(LabelIds {
            last: between(&format!(" {thing}"), false)?,
            followed: between(&format!(" {thing}{SEPARATOR}"), true)?,
        })
    };
    let labels = asked.things.iter().map(label).collect::<Result<Vec<_>>>()?;
    Grammar::new(locations, codes, tokenizer.eos()?, &labels)
}

/// The objects of a whole answer on a picture of `width` × `height`. Scores need an answer whose locations were watched.
pub fn detections(
    tokenizer: &Tokenizer,
    answer: &Answer,
    (width, height): (usize, usize),
    finding: &Finding,
) -> Found {
    let mut reader = Reader::new(tokenizer, (width, height), *finding);
    for (i, &id) in answer.tokens.iter().enumerate() {
        let coordinate = answer.coordinates.get(i).copied().flatten();
        reader.push(Step { row: 0, id, logprob: answer.logprobs[i], coordinate }, &mut |_| {});
    }
    reader.finish(&mut |_| {})
}

/// Reads objects from tokens as they come.
#[derive(Debug)]
pub struct Reader<'t> {
    stream: DecodeStream<'t>,
    size: (usize, usize),
    finding: Finding,
    text: String,
    tokens: Vec<Token>,
    /// Where the piece at hand begins in the text; 0 or behind a `;`.
    piece: usize,
    /// Where the last object ends.
    last_end: usize,
    found: Found,
}

#[derive(Debug)]
struct Token {
    /// Where its text begins.
    at: usize,
    logprob: f32,
    coordinate: Option<Coordinate>,
}

/// Told of every object that is not left out.
type OnObject<'a> = dyn FnMut(&Detection) + 'a;

impl<'t> Reader<'t> {
    /// Reads the answer about a picture of `width` × `height`.
    pub fn new(tokenizer: &'t Tokenizer, size: (usize, usize), finding: Finding) -> Self {
        Reader {
            stream: tokenizer.decode_stream(),
            size,
            finding,
            text: String::new(),
            tokens: Vec::new(),
            piece: 0,
            last_end: 0,
            found: Found::default(),
        }
    }

    /// The next token. `on_object` is told of an object when the separator behind it has come; where overlapping ones
    /// are left out, only at the end.
    pub fn push(&mut self, step: Step, on_object: &mut OnObject<'_>) {
        self.tokens.push(Token { at: self.text.len(), logprob: step.logprob, coordinate: step.coordinate });
        let new = self.stream.push(step.id);
        self.text.push_str(&new);
        while let Some(at) = self.text[self.piece..].find(';') {
            self.read_piece(self.piece + at, on_object);
            self.piece += at + 1;
        }
    }

    /// The end of the answer.
    pub fn finish(mut self, on_object: &mut OnObject<'_>) -> Found {
        let rest = self.stream.clone().finish();
        self.text.push_str(&rest);
        if self.piece > 0 || !self.text.trim().is_empty() {
            self.read_piece(self.text.len(), on_object);
        }
        if let Some(most) = self.finding.nms {
            self.found.detections = without_overlaps(std::mem::take(&mut self.found.detections), most);
            self.found.detections.iter().for_each(on_object);
        }
        self.found
    }

    /// Reads the piece up to byte `end`.
    fn read_piece(&mut self, end: usize, on_object: &mut OnObject<'_>) {
        let piece = &self.text[self.piece..end];
        let from = self.piece + (piece.len() - piece.trim_start().len());
        let object_end = from + piece.trim().len();
        match parse_object(piece) {
            Err(fault) => self.found.malformed.push((fault, piece.trim().to_owned())),
            Ok(object) => {
                let detection = self.detection(object, from, object_end);
                if detection.score >= self.finding.threshold {
                    if self.finding.nms.is_none() {
                        on_object(&detection);
                    }
                    self.found.detections.push(detection);
                }
            }
        }
        self.last_end = object_end;
    }

    /// The object whose text is the bytes from `from` to `end`.
    fn detection(&self, object: Object, from: usize, end: usize) -> Detection {
        let within =
            |from: usize, end: usize| self.tokens.iter().filter(move |token| (from..end).contains(&token.at));
        let coordinates: Vec<Coordinate> =
            within(from, end).filter_map(|token| token.coordinate).take(4).collect();
        let label: f32 =
            within(from, end).skip(4 + object.codes.map_or(0, |codes| codes.len())).map(|t| t.logprob).sum();
        let separator: f32 = within(self.last_end, from).map(|token| token.logprob).sum();
        let &[y0, x0, y1, x1] = &coordinates[..] else {
            // Locations were not watched.
            let pixels = object.bins.to_pixels(self.size.0, self.size.1, self.finding.scale);
            return Detection { label: object.label, pixels, score: 0.0, codes: object.codes };
        };
        let near = coordinates.iter().map(|c| c.near.max(f32::MIN_POSITIVE).ln()).sum::<f32>() / 4.0;
        let score = y0.any * (near + label + separator).exp();
        let bins = object.bins;
        // Two means may cross where the box is narrower than what counts as near.
        let side = |min: u16, max: u16, means: (Coordinate, Coordinate)| match means {
            (a, b) if self.finding.expected && a.mean < b.mean => (f64::from(a.mean), f64::from(b.mean)),
            _ => (f64::from(min), f64::from(max)),
        };
        let (y_min, y_max) = side(bins.y_min, bins.y_max, (y0, y1));
        let (x_min, x_max) = side(bins.x_min, bins.x_max, (x0, x1));
        let pixels =
            bins_to_pixels([y_min, x_min, y_max, x_max], self.size.0, self.size.1, self.finding.scale);
        Detection { label: object.label, pixels, score: score.clamp(0.0, 1.0), codes: object.codes }
    }
}

/// Leaves out each that overlaps a better one of its label more than `most`; the order stays.
fn without_overlaps(detections: Vec<Detection>, most: f32) -> Vec<Detection> {
    let mut order: Vec<usize> = (0..detections.len()).collect();
    // A stable sort: the earlier of equals wins.
    order.sort_by(|&a, &b| detections[b].score.total_cmp(&detections[a].score));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        let d = &detections[i];
        let overlaps = |&k: &usize| {
            let other = &detections[k];
            other.label == d.label && iou(other.pixels, d.pixels) > f64::from(most)
        };
        if !kept.iter().any(overlaps) {
            kept.push(i);
        }
    }
    let mut i = 0;
    let mut all = detections;
    all.retain(|_| {
        i += 1;
        kept.contains(&(i - 1))
    });
    all
}

/// Intersection over union of two boxes.
pub fn iou(a: PixelBox, b: PixelBox) -> f64 {
    let area = |[x0, y0, x1, y1]: PixelBox| (x1 - x0).max(0.0) * (y1 - y0).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let either = area(a) + area(b) - both;
    if either > 0.0 { both / either } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::stand_in_tokenizer;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json_bytes(&stand_in_tokenizer(1000, 2152).unwrap()).unwrap()
    }

    /// An answer of this text; every location has been chosen with these thoughts, every other token with `p`.
    fn answer(tokenizer: &Tokenizer, text: &str, [any, near, shift]: [f32; 3], p: f32) -> Answer {
        let tokens = tokenizer.encode(text).unwrap();
        let locations = tokenizer.locations().unwrap();
        let coordinates = tokens
            .iter()
            .map(|id| {
                locations.contains(id).then(|| Coordinate {
                    any,
                    near,
                    mean: (id - locations.start) as f32 + shift,
                })
            })
            .collect();
        Answer {
            logprobs: vec![p.ln(); tokens.len()],
            tokens,
            coordinates,
            score: 0.0,
            finish_reason: crate::generate::FinishReason::Eos,
        }
    }

    #[test]
    fn scores_are_of_place_existence_and_label() {
        let t = tokenizer();
        let text = "<loc0000><loc0000><loc1023><loc1023> cat ; <loc0100><loc0200><loc0300><loc0400> q";
        let found =
            detections(&t, &answer(&t, text, [0.5, 0.8, 0.0], 1.0), (1023, 2046), &Finding::default());
        let of = |d: &Detection| (d.label.clone(), d.pixels, d.score);
        let got: Vec<_> = found.detections.iter().map(of).collect();
        assert_eq!(got[0].1, [0.0, 0.0, 1023.0, 2046.0]);
        assert_eq!(got[1].1, [200.0, 200.0, 400.0, 600.0]);
        assert!(got.iter().all(|d| (d.2 - 0.4).abs() < 1e-6), "{got:?}");
        // " cat" is one token, " q" two; " ; " three before the second.
        let found = detections(&t, &answer(&t, text, [1.0, 1.0, 0.0], 0.5), (9, 9), &Finding::default());
        let separators = t.encode("<loc0000> cat ; ").unwrap().len() - 2;
        let label = t.encode("<loc0000> q").unwrap().len() - 1;
        let scores: Vec<f32> = found.detections.iter().map(|d| d.score).collect();
        let want = [0.5, 0.5f32.powi((separators + label) as i32)];
        assert!(scores.iter().zip(want).all(|(s, w)| (s - w).abs() < 1e-6), "{scores:?} {want:?}");
        let finding = Finding { threshold: 0.3, ..Finding::default() };
        let kept = detections(&t, &answer(&t, text, [1.0, 1.0, 0.0], 0.5), (9, 9), &finding).detections;
        assert!(kept.len() == 1 && kept[0].label == "cat");
    }

    #[test]
    fn expected_coordinates_lie_between_bins() {
        let t = tokenizer();
        let text = "<loc0100><loc0200><loc0300><loc0400>";
        let finding = Finding { expected: true, ..Finding::default() };
        let found = detections(&t, &answer(&t, text, [1.0, 1.0, 0.5], 1.0), (1023, 1023), &finding);
        assert_eq!(found.detections[0].pixels, [200.5, 100.5, 400.5, 300.5]);
    }

    #[test]
    fn what_is_malformed_is_told_and_the_rest_is_found() {
        let t = tokenizer();
        let check = |text: &str, labels: &[&str], faults: &[Fault]| {
            let found = detections(&t, &answer(&t, text, [1.0; 3], 1.0), (9, 9), &Finding::default());
            let got: Vec<&str> = found.detections.iter().map(|d| d.label.as_str()).collect();
            assert_eq!(got, labels, "{text}");
            assert_eq!(found.malformed.iter().map(|m| m.0).collect::<Vec<_>>(), faults, "{text}");
        };
        check("", &[], &[]);
        check(" ", &[], &[]);
        check("cat", &[], &[Fault::NoBox]);
        check("<loc0001><loc0002><loc0003><loc0004> é猫 ; ", &["é猫"], &[Fault::Empty]);
        check(
            "<loc0001><loc0002> a ; <loc0001><loc0002><loc0003><loc0004> b",
            &["b"],
            &[Fault::Locations(2)],
        );
    }

    #[test]
    fn the_better_of_two_that_overlap_stays() {
        let d = |label: &str, x: f64, score: f32| Detection {
            label: label.into(),
            pixels: [x, 0.0, x + 10.0, 10.0],
            score,
            codes: None,
        };
        let all = vec![d("a", 0.0, 0.5), d("a", 1.0, 0.9), d("b", 1.0, 0.1), d("a", 9.0, 0.2)];
        let kept: Vec<f32> = without_overlaps(all.clone(), 0.5).iter().map(|d| d.score).collect();
        assert_eq!(kept, [0.9, 0.1, 0.2]);
        assert_eq!(without_overlaps(all, 1.0).len(), 4);
        assert!((iou([0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(iou([0.0; 4], [0.0; 4]), 0.0);
    }

    #[test]
    fn labels_are_tokenised_as_they_stand_in_an_answer() {
        let t = tokenizer();
        let grammar = |prefix: &str| grammar(&t, &Asked::of(prefix).unwrap());
        assert!(grammar("detect cat ; coffee cup").is_ok());
        assert!(grammar("segment 猫").is_ok());
        assert!(grammar("detect <loc0001>").unwrap_err().to_string().contains("label"));
    }
}
