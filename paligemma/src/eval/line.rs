//! A line of predictions: what `predict` wrote beside what was to be answered.

use serde_json::{Map, Value};

use crate::image::Rle;
use crate::text::{Object, parse_object};
use crate::{Error, Result};

/// An answer and its references.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// What was answered.
    pub answer: String,
    /// What may be answered; at least one.
    pub references: Vec<String>,
    /// What the line is counted under beside the whole.
    pub task: Option<String>,
    /// What was found, with the scores of `detections`; none where the line has no such key.
    pub detections: Option<Vec<(Object, f64)>>,
    /// Labels and true masks, where the line has them as COCO run lengths.
    pub masks: Vec<(String, Rle)>,
}

impl Line {
    /// Reads a line of JSON: `answer`, `suffix` (a string or a list), and, if there, `task`, `detections`, `masks`.
    ///
    /// # Errors
    /// [`crate::Kind::Input`]: no JSON object, a key that is missing or of another kind.
    pub fn read(text: &str) -> Result<Line> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::input(format!("not JSON: {e}")).because(e))?;
        let Value::Object(object) = value else {
            return Err(Error::input("not a JSON object").expected("{\"suffix\": …, \"answer\": …}"));
        };
        let answer = match object.get("answer") {
            Some(Value::String(answer)) => answer.clone(),
            Some(_) => return Err(Error::input("\"answer\" is not a string")),
            None => {
                return Err(Error::input("no key \"answer\"").hint("`paligemma predict` writes it"));
            }
        };
        let wrong = || Error::input("\"suffix\" is not a string or a list of strings");
        let references = match object.get("suffix") {
            Some(Value::String(suffix)) => vec![suffix.clone()],
            Some(Value::Array(list)) if !list.is_empty() => {
                let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
                list.iter().map(text).collect::<Result<_>>()?
            }
            Some(_) => return Err(wrong()),
            None => return Err(Error::input("no key \"suffix\"").expected("what should have been answered")),
        };
        let task = match object.get("task") {
            Some(Value::String(task)) => Some(task.clone()),
            None | Some(Value::Null) => None,
            Some(_) => return Err(Error::input("\"task\" is not a string")),
        };
        let detections = scores(&object)?;
        let detections = detections.map(|scores| objects(&answer, &scores)).transpose()?;
        Ok(Line { answer, references, task, detections, masks: masks(&object)? })
    }
}

/// The scores of `detections`, in their order.
fn scores(object: &Map<String, Value>) -> Result<Option<Vec<f64>>> {
    let wrong = || {
        Error::input("\"detections\" is not what predict writes").expected("a list of objects with a score")
    };
    match object.get("detections") {
        None => Ok(None),
        Some(Value::Array(list)) => {
            list.iter().map(|one| one["score"].as_f64().ok_or_else(wrong)).collect::<Result<_>>().map(Some)
        }
        Some(_) => Err(wrong()),
    }
}

/// The objects of an answer with their scores. `predict` leaves some out, by a threshold or because they repeat others;
/// then the objects cannot be told apart by the scores alone.
fn objects(answer: &str, scores: &[f64]) -> Result<Vec<(Object, f64)>> {
    let objects: Vec<Object> = answer.split(';').filter_map(|piece| parse_object(piece).ok()).collect();
    if objects.len() != scores.len() {
        return Err(Error::input(format!(
            "the answer has {} objects and \"detections\" has {}",
            objects.len(),
            scores.len()
        ))
        .hint("let predict keep all: no --threshold, no --nms"));
    }
    Ok(objects.into_iter().zip(scores.iter().copied()).collect())
}

/// `masks`: a list of `label`, `size` (height, width), `counts` (compressed run lengths).
fn masks(object: &Map<String, Value>) -> Result<Vec<(String, Rle)>> {
    let wrong =
        || Error::input("\"masks\" is not a list of masks").expected("objects with label, size and counts");
    let list = match object.get("masks") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong()),
    };
    let mask = |value: &Value| {
        let side = |i: usize| value["size"][i].as_u64().and_then(|side| usize::try_from(side).ok());
        match (value["label"].as_str(), side(0), side(1), value["counts"].as_str()) {
            (Some(label), Some(height), Some(width), Some(counts)) => {
                Ok((label.to_owned(), Rle::from_compressed(counts, width, height)?))
            }
            _ => Err(wrong()),
        }
    };
    list.iter().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_or_refused() {
        let line =
            Line::read(r#"{"image": "a.png", "suffix": ["a", "b"], "answer": "c", "task": "t", "x": 1}"#)
                .unwrap();
        assert_eq!((line.answer.as_str(), line.references.len(), line.task.as_deref()), ("c", 2, Some("t")));
        let line = Line::read(
            r#"{"suffix": "s", "answer": "<loc0001><loc0002><loc0003><loc0004> cat ; half",
                "detections": [{"label": "cat", "score": 0.5}],
                "masks": [{"label": "cat", "size": [2, 3], "counts": "6"}]}"#,
        )
        .unwrap();
        let (object, score) = &line.detections.unwrap()[0];
        assert_eq!((object.label.as_str(), *score, line.masks[0].1.width()), ("cat", 0.5, 3));
        let refused = |text: &str, why: &str| {
            let error = Line::read(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        };
        refused("x", "not JSON");
        refused("[]", "not a JSON object");
        refused(r#"{"suffix": "a"}"#, "\"answer\"");
        refused(r#"{"answer": "a"}"#, "\"suffix\"");
        refused(r#"{"answer": "a", "suffix": []}"#, "\"suffix\"");
        refused(r#"{"answer": 1, "suffix": "a"}"#, "\"answer\"");
        refused(r#"{"answer": "a", "suffix": "a", "task": 1}"#, "\"task\"");
        refused(r#"{"answer": "a", "suffix": "a", "detections": [{"score": 1}]}"#, "0 objects");
        refused(r#"{"answer": "a", "suffix": "a", "detections": [{}]}"#, "a score");
        refused(r#"{"answer": "a", "suffix": "a", "masks": [{"label": "a"}]}"#, "\"masks\"");
        refused(
            r#"{"answer": "a", "suffix": "a", "masks": [{"label": "a", "size": [2, 3], "counts": "0"}]}"#,
            "add up",
        );
    }
}
