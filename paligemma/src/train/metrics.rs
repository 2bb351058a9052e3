//! The record of a run: `metrics.jsonl`, a line for each step that is logged and for each evaluation. It is the truth;
//! event files and curves are made of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::tensorboard::EventFile;
use crate::{Error, Result};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepLine {
    /// Steps that are done.
    pub step: u64,
    /// The loss of its batch, before the update.
    pub loss: f64,
    /// The learning rate of what no group has.
    pub lr: f64,
    /// The norm of all gradients, before clipping.
    pub grad_norm: f64,
    /// Since the line before.
    pub examples_per_s: f64,
    /// Image tokens and text tokens, since the line before.
    pub tokens_per_s: f64,
    /// The most memory that the process has had; none where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
}

/// An evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EvalLine {
    /// Steps that are done.
    pub step: u64,
    /// The mean loss of the held-out examples.
    pub eval_loss: f64,
    /// Of how many examples.
    pub eval_examples: usize,
    /// The part of the answers that are exactly a suffix, if the model was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_exact: Option<f64>,
    /// Mean intersection over union of masks with what is decoded of their codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_miou: Option<f64>,
    /// The part of the images whose own text is the likeliest of its batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_image_to_text: Option<f64>,
    /// The part of the texts whose own image is the likeliest of its batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_text_to_image: Option<f64>,
}

impl EvalLine {
    /// A loss alone.
    pub(super) fn new(step: u64, eval_loss: f64, eval_examples: usize) -> EvalLine {
        EvalLine {
            step,
            eval_loss,
            eval_examples,
            eval_exact: None,
            eval_miou: None,
            eval_image_to_text: None,
            eval_text_to_image: None,
        }
    }
}

/// The files of a record.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    lines: File,
    events: Option<EventFile>,
}

/// The name of the record in a run folder.
pub const METRICS: &str = "metrics.jsonl";

impl Record {
    /// Opens the record of a run that has done `step` steps: lines beyond them are of steps that will be done again, and
    /// go; so does half a line.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub(super) fn open(folder: &Path, step: u64, tensorboard: bool) -> Result<Record> {
        let path = folder.join(METRICS);
        let io = |e| Error::io(&path, e);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io(error)),
        };
        let is_done = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line.get("step")?.as_u64()).is_some_and(|of| of <= step)
        };
        let kept: String = text.lines().filter(is_done).map(|line| format!("{line}\n")).collect();
        if kept != text {
            let temporary = folder.join("metrics.jsonl.tmp");
            fs::write(&temporary, &kept).and_then(|()| fs::rename(&temporary, &path)).map_err(io)?;
        }
        let lines = File::options().create(true).append(true).open(&path).map_err(io)?;
        let events = if tensorboard { Some(EventFile::create(folder)?) } else { None };
        Ok(Record { path, lines, events })
    }

    /// Adds a line, at once, so that others may follow the file.
    ///
    /// # Errors
    /// `Kind::Io` or `Kind::Resource`.
    pub(super) fn add(&mut self, line: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(line).unwrap_or_default();
        let io = |e| Error::io(&self.path, e);
        self.lines.write_all(format!("{value}\n").as_bytes()).map_err(io)?;
        if let Some(events) = &mut self.events {
            let step = value.get("step").and_then(Value::as_u64).unwrap_or(0);
            let scalars = value.as_object().into_iter().flatten().filter(|(key, _)| *key != "step");
            for (tag, number) in scalars.filter_map(|(tag, value)| Some((tag, value.as_f64()?))) {
                events.scalar(step, tag, number as f32)?;
            }
        }
        Ok(())
    }
}

/// The values of some keys in a record: for each line that has the key, its step and value.
///
/// # Errors
/// `Kind::Usage` if there is no record; `Kind::Input` with its line for what is none.
pub fn curves<const N: usize>(folder: &Path, keys: [&str; N]) -> Result<[Vec<(f64, f64)>; N]> {
    let path = folder.join(METRICS);
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::usage(format!("{} is no run folder", folder.display()))
            .expected("a folder with metrics.jsonl, which `paligemma train` writes"),
        _ => Error::io(&path, error),
    })?;
    let mut curves = [const { Vec::new() }; N];
    // A run that is writing may be in the middle of its last line.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for (i, line) in whole.lines().enumerate() {
        let wrong = |what: &str| Error::input(what).at(format!("{}:{}", path.display(), i + 1));
        let line: Value = serde_json::from_str(line).map_err(|_| wrong("the line is no JSON"))?;
        let step = line.get("step").and_then(Value::as_f64).ok_or_else(|| wrong("the line has no step"))?;
        for (curve, key) in curves.iter_mut().zip(keys) {
            curve.extend(line.get(key).and_then(Value::as_f64).map(|value| (step, value)));
        }
    }
    Ok(curves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepLine {
        StepLine {
            step,
            loss: 0.1 * step as f64,
            lr: 1e-5,
            grad_norm: 2.0,
            examples_per_s: 3.0,
            tokens_per_s: 4.5,
            peak_rss_bytes: Some(7),
        }
    }

    #[test]
    fn a_record_goes_on_where_its_state_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(curves(folder.path(), ["loss"]).unwrap_err().to_string().contains("no run folder"));
        let mut record = Record::open(folder.path(), 0, false).unwrap();
        (1..=5).for_each(|i| record.add(&step(i)).unwrap());
        record.add(&EvalLine::new(4, 1.5, 3)).unwrap();
        let path = folder.path().join(METRICS);
        let text = fs::read_to_string(&path).unwrap();
        let first = r#"{"step":1,"loss":0.1,"lr":0.00001,"grad_norm":2.0,"examples_per_s":3.0,"tokens_per_s":4.5,"peak_rss_bytes":7}"#;
        assert_eq!(text.lines().next(), Some(first));
        assert!(text.ends_with("{\"step\":4,\"eval_loss\":1.5,\"eval_examples\":3}\n"), "{text}");
        fs::write(&path, format!("{text}{{\"step\":6,\"lo")).unwrap();
        let mut record = Record::open(folder.path(), 3, false).unwrap();
        record.add(&step(4)).unwrap();
        let [loss, eval] = curves(folder.path(), ["loss", "eval_loss"]).unwrap();
        assert_eq!(loss.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(eval, []);
    }
}
