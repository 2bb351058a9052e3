//! Lines of predictions scored by a metric: the figure, how sure it is, and the same for each task.

use std::collections::BTreeMap;

use super::bootstrap::interval;
use super::cider::cider_d;
use super::coco_ap::{Detection, Evaluated, Pictured, Truth, evaluate};
use super::exact::exact;
use super::line::Line;
use super::miou::miou;
use crate::masks::MaskCodec;
use crate::text::{Bins, BoxScale, Object, parse_answer};
use crate::{Error, Result};

/// How answers are compared with references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The part of the answers that are a reference.
    Exact,
    /// CIDEr-D, 0 to 10; papers print it times 100.
    Cider,
    /// COCO's average precision of boxes.
    Ap,
    /// Mean intersection over union of masks or boxes.
    Miou,
}

/// A figure and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// The interval's ends, by a bootstrap over the lines; for CIDEr the n-grams' weights stay those of all lines.
    pub interval: (f64, f64),
}

/// What lines score.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// How many lines.
    pub count: usize,
    /// The metric's main figure, then others that belong to it, by name.
    pub figures: Vec<(&'static str, Figure)>,
}

/// Draws of the bootstrap; average precision sorts all detections for each.
const RESAMPLES: usize = 1000;
const AP_RESAMPLES: usize = 200;

/// Scores lines, all together and those of each task.
///
/// # Errors
/// [`crate::Kind::Input`]: no line; a reference that the metric cannot read, with its line's number.
pub fn score(
    lines: &[Line],
    metric: Metric,
    codec: Option<&MaskCodec>,
    seed: u64,
) -> Result<(Score, BTreeMap<String, Score>)> {
    if lines.is_empty() {
        return Err(Error::input("there is nothing to be scored").expected("a line at least"));
    }
    let numbered: Vec<(usize, &Line)> = (1..).zip(lines).collect();
    let mut tasks: BTreeMap<String, Vec<(usize, &Line)>> = BTreeMap::new();
    for &(number, line) in &numbered {
        if let Some(task) = &line.task {
            tasks.entry(task.clone()).or_default().push((number, line));
        }
    }
    let of = |lines: &[(usize, &Line)]| score_together(lines, metric, codec, seed);
    let by_task = tasks.into_iter().map(|(task, lines)| Ok((task, of(&lines)?))).collect::<Result<_>>()?;
    Ok((of(&numbered)?, by_task))
}

fn score_together(
    lines: &[(usize, &Line)],
    metric: Metric,
    codec: Option<&MaskCodec>,
    seed: u64,
) -> Result<Score> {
    let count = lines.len();
    let at = |number: usize| move |error: Error| error.at(format!("answer {number}"));
    let of_means = |values: &[f64]| {
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64;
        let all: Vec<usize> = (0..count).collect();
        Figure { value: mean(&all), interval: interval(count, RESAMPLES, seed, mean) }
    };
    let figures = match metric {
        Metric::Exact => {
            let values: Vec<f64> =
                lines.iter().map(|(_, line)| exact(&line.answer, &line.references)).collect();
            vec![("exact", of_means(&values))]
        }
        Metric::Cider => {
            let pictures: Vec<(String, Vec<String>)> =
                lines.iter().map(|(_, line)| (line.answer.clone(), line.references.clone())).collect();
            vec![("cider", of_means(&cider_d(&pictures)))]
        }
        Metric::Miou => {
            let value = |&(number, line): &(usize, &Line)| miou(line, codec).map_err(at(number));
            let values = lines.iter().map(value).collect::<Result<Vec<f64>>>()?;
            vec![("miou", of_means(&values))]
        }
        Metric::Ap => {
            let picture = |&(number, line): &(usize, &Line)| pictured(line).map_err(at(number));
            let evaluated = evaluate(&lines.iter().map(picture).collect::<Result<Vec<_>>>()?);
            average_precision(&evaluated, count, seed)
        }
    };
    Ok(Score { count, figures })
}

fn average_precision(evaluated: &Evaluated, count: usize, seed: u64) -> Vec<(&'static str, Figure)> {
    let summary = evaluated.summary();
    // A draw without any object has no precision; it says nothing and counts as 0.
    let of = |value: f64| if value.is_nan() { 0.0 } else { value };
    let ap = interval(count, AP_RESAMPLES, seed, |drawn| of(evaluated.precision_of(drawn).1));
    let ap50 = interval(count, AP_RESAMPLES, seed, |drawn| of(evaluated.precision_of(drawn).0));
    vec![
        ("ap", Figure { value: of(summary.ap), interval: ap }),
        ("ap50", Figure { value: of(summary.ap50), interval: ap50 }),
    ]
}

/// A line's objects: those of its first reference, and those of its answer, all of the same score where `predict` gave none.
fn pictured(line: &Line) -> Result<Pictured> {
    let reference = &line.references[0];
    let wanted = parse_answer(reference);
    if !wanted.malformed.is_empty() {
        return Err(Error::input(format!("the reference {reference:?} is no list of objects"))
            .expected("boxes, as in <loc0100><loc0200><loc0300><loc0400> cat"));
    }
    // Overlaps are the same in parts of the picture as in its pixels.
    let pixels = |bins: Bins| bins.to_pixels(1000, 1000, BoxScale::Reference);
    let truth = |object: Object| {
        let pixels = pixels(object.bins);
        let area = (pixels[2] - pixels[0]) * (pixels[3] - pixels[1]);
        Truth { label: object.label, pixels, area, is_crowd: false }
    };
    let found = match &line.detections {
        Some(scored) => scored.clone(),
        None => parse_answer(&line.answer).objects.into_iter().map(|found| (found.object, 1.0)).collect(),
    };
    let detection = |(object, score): (Object, f64)| Detection {
        pixels: pixels(object.bins),
        label: object.label,
        score,
    };
    Ok(Pictured {
        truths: wanted.objects.into_iter().map(|found| truth(found.object)).collect(),
        detections: found.into_iter().map(detection).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(task: &str, answer: &str, reference: &str) -> Line {
        Line {
            answer: answer.into(),
            references: vec![reference.into()],
            task: (!task.is_empty()).then(|| task.into()),
            ..Line::default()
        }
    }

    #[test]
    fn the_whole_and_each_task_have_their_figures() {
        let lines = [line("a", "x", "x"), line("a", "y", "x"), line("b", "z", "z"), line("", "z", "y")];
        let (all, tasks) = score(&lines, Metric::Exact, None, 0).unwrap();
        let value = |score: &Score| (score.count, score.figures[0].0, score.figures[0].1.value);
        assert_eq!(value(&all), (4, "exact", 0.5));
        assert_eq!(
            tasks.iter().map(|(task, s)| (task.as_str(), value(s))).collect::<Vec<_>>(),
            [("a", (2, "exact", 0.5)), ("b", (1, "exact", 1.0)),]
        );
        let (low, high) = all.figures[0].1.interval;
        assert!(low < 0.5 && high > 0.5);
        assert!(score(&[], Metric::Exact, None, 0).is_err());
    }

    #[test]
    fn boxes_are_found_by_label_and_order() {
        let (a, b) = ("<loc0000><loc0000><loc0100><loc0100>", "<loc0500><loc0500><loc0600><loc0600>");
        let check = |answers: &[&str], want: f64| {
            let lines: Vec<Line> =
                answers.iter().map(|answer| line("", answer, &format!("{a} cat"))).collect();
            let (all, _) = score(&lines, Metric::Ap, None, 0).unwrap();
            let got = all.figures[1].1.value;
            assert!((got - want).abs() < 1e-9, "{answers:?}: {got}");
        };
        check(&[&format!("{a} cat")], 1.0);
        check(&[&format!("{a} dog")], 0.0);
        check(&[&format!("{b} cat ; {a} cat")], 0.5);
        check(&[&format!("{a} cat ; {b} cat")], 1.0);
        check(&[&format!("{a} cat"), "nothing"], 51.0 / 101.0);
        assert!(score(&[line("", "", "a cat")], Metric::Ap, None, 0).is_err());
    }
}
