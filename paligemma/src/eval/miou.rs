//! Mean intersection over union of boxes and masks, read from answers.
//!
//! As big_vision's evaluator has it (evaluators/proj/paligemma/transfers/segmentation.py), an answer that cannot be read
//! scores 0. It knows one object an expression; where an answer names several, those of a label are taken together.

use std::collections::BTreeMap;

use super::line::Line;
use crate::image::{Mask, Rle};
use crate::masks::MaskCodec;
use crate::text::{Bins, BoxScale, Object, parse_answer};
use crate::{Error, Result};

/// Masks that are known from codes alone are compared on a grid of this side, the picture squeezed onto it.
const GRID: usize = 512;

/// The intersection over union of a line, averaged over the labels of its first reference. Masks are compared where the
/// line has masks or the reference has codes, which needs a codec; else boxes are.
///
/// # Errors
/// [`crate::Kind::Input`]: a reference without an object. [`crate::Kind::Usage`]: codes without a codec.
pub(super) fn miou(line: &Line, codec: Option<&MaskCodec>) -> Result<f64> {
    let reference = &line.references[0];
    let wanted = parse_answer(reference);
    if wanted.objects.is_empty() || !wanted.malformed.is_empty() {
        return Err(Error::input(format!("the reference {reference:?} is no list of objects"))
            .expected("boxes, as in <loc0100><loc0200><loc0300><loc0400> cat"));
    }
    let wanted = by_label(wanted.objects.into_iter().map(|found| found.object));
    let found = by_label(parse_answer(&line.answer).objects.into_iter().map(|found| found.object));
    let has_masks = !line.masks.is_empty() || wanted.values().flatten().any(|object| object.codes.is_some());
    let mut sum = 0.0;
    for (label, objects) in &wanted {
        let answered = found.get(label).map_or(&[][..], Vec::as_slice);
        sum += if has_masks {
            of_masks(line, label, objects, answered, codec)?
        } else {
            of_boxes(
                &objects.iter().map(|o| o.bins).collect::<Vec<_>>(),
                &answered.iter().map(|o| o.bins).collect::<Vec<_>>(),
            )
        };
    }
    Ok(sum / wanted.len() as f64)
}

fn by_label(objects: impl Iterator<Item = Object>) -> BTreeMap<String, Vec<Object>> {
    let mut labels: BTreeMap<String, Vec<Object>> = BTreeMap::new();
    objects.for_each(|object| labels.entry(object.label.clone()).or_default().push(object));
    labels
}

/// Of the pixels that some mask of the label covers. An object of the answer without a mask covers none.
fn of_masks(
    line: &Line,
    label: &str,
    wanted: &[Object],
    answered: &[Object],
    codec: Option<&MaskCodec>,
) -> Result<f64> {
    let codec = codec.ok_or_else(|| {
        Error::usage("the references have masks, and there is no model of masks").hint("give --vqvae FILE")
    })?;
    let truths: Vec<&Rle> = line.masks.iter().filter(|(of, _)| of == label).map(|(_, rle)| rle).collect();
    let (width, height) = truths.first().map_or((GRID, GRID), |rle| (rle.width(), rle.height()));
    let painted = |objects: &[Object]| -> Result<Vec<bool>> {
        let mut all = vec![false; width * height];
        for object in objects {
            if let Some(codes) = object.codes {
                let pixels = object.bins.to_pixels(width, height, BoxScale::Reference);
                add(&mut all, &codec.paste(codes, pixels, width, height)?);
            }
        }
        Ok(all)
    };
    let mut truth = vec![false; width * height];
    if line.masks.is_empty() {
        truth = painted(wanted)?;
    } else if truths.iter().any(|rle| (rle.width(), rle.height()) != (width, height)) {
        return Err(Error::input("the masks of a line differ in size"));
    } else {
        truths.iter().for_each(|rle| add(&mut truth, &rle.to_mask()));
    }
    let answer = painted(answered)?;
    let count =
        |of: &dyn Fn(bool, bool) -> bool| answer.iter().zip(&truth).filter(|&(&a, &t)| of(a, t)).count();
    let (both, either) = (count(&|a, t| a && t), count(&|a, t| a || t));
    Ok(if either == 0 { 0.0 } else { both as f64 / either as f64 })
}

fn add(all: &mut [bool], mask: &Mask) {
    all.iter_mut().zip(&mask.bits).for_each(|(all, bit)| *all |= bit);
}

/// Of the area that some box of the label covers; exact, since bins are whole numbers.
fn of_boxes(wanted: &[Bins], answered: &[Bins]) -> f64 {
    let sides = |axis: fn(&Bins) -> [u16; 2]| {
        let mut at: Vec<u16> = wanted.iter().chain(answered).flat_map(axis).collect();
        at.sort_unstable();
        at.dedup();
        at
    };
    let (xs, ys) = (sides(|b| [b.x_min, b.x_max]), sides(|b| [b.y_min, b.y_max]));
    let (mut both, mut either) = (0u64, 0u64);
    for x in xs.windows(2) {
        for y in ys.windows(2) {
            let covers = |b: &Bins| b.x_min <= x[0] && x[1] <= b.x_max && b.y_min <= y[0] && y[1] <= b.y_max;
            let area = u64::from(x[1] - x[0]) * u64::from(y[1] - y[0]);
            let (is_wanted, is_answered) = (wanted.iter().any(covers), answered.iter().any(covers));
            both += if is_wanted && is_answered { area } else { 0 };
            either += if is_wanted || is_answered { area } else { 0 };
        }
    }
    if either == 0 { 0.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_overlap_by_label() {
        let check = |suffix: &str, answer: &str, want: f64| {
            let line = Line { answer: answer.into(), references: vec![suffix.into()], ..Line::default() };
            let got = miou(&line, None).unwrap();
            assert!((got - want).abs() < 1e-12, "{suffix} {answer}: {got}");
        };
        let (left, right) = ("<loc0000><loc0000><loc0100><loc0100>", "<loc0000><loc0100><loc0100><loc0200>");
        let both = "<loc0000><loc0000><loc0100><loc0200>";
        check(&format!("{left} cat"), &format!("{left} cat"), 1.0);
        check(&format!("{left} cat"), &format!("{both} cat"), 0.5);
        check(&format!("{left} cat ; {right} cat"), &format!("{both} cat"), 1.0);
        check(&format!("{left} cat ; {right} dog"), &format!("{left} cat"), 0.5);
        check(&format!("{left} cat"), &format!("{left} dog"), 0.0);
        check(left, &format!("{left} ; nonsense"), 1.0);
        check(left, "", 0.0);
        check(left, "<loc0100><loc0000><loc0000><loc0100>", 0.0);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let line = |suffix: &str| Line { references: vec![suffix.into()], ..Line::default() };
        assert!(miou(&line("a cat"), None).unwrap_err().to_string().contains("list of objects"));
        let codes = format!("<loc0000><loc0000><loc0100><loc0100>{} cat", "<seg001>".repeat(16));
        assert!(miou(&line(&codes), None).unwrap_err().to_string().contains("--vqvae"));
    }
}
