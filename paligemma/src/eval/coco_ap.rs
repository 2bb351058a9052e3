//! COCO's average precision, as pycocotools computes it (cocoeval.py).

use std::collections::{BTreeMap, BTreeSet};

/// x0, y0, x1, y1.
pub type Box4 = [f64; 4];

/// An object that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// What it is.
    pub label: String,
    /// Where it is, in pixels.
    pub pixels: Box4,
    /// Its area in pixels, which may be less than its box's.
    pub area: f64,
    /// Whether it stands for several objects: what lies in it is neither right nor wrong.
    pub is_crowd: bool,
}

/// An object that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// What it is.
    pub label: String,
    /// Where it is, in pixels.
    pub pixels: Box4,
    /// Those with a higher score count first; among equals, those that stand first.
    pub score: f64,
}

/// A picture: what is there and what was found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pictured {
    /// What is there.
    pub truths: Vec<Truth>,
    /// What was found.
    pub detections: Vec<Detection>,
}

/// COCO's twelve figures, each from 0 to 1; NaN where there is nothing to be found (pycocotools prints −1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Average precision over overlaps from 0.5 to 0.95.
    pub ap: f64,
    /// At an overlap of 0.5.
    pub ap50: f64,
    /// At an overlap of 0.75.
    pub ap75: f64,
    /// Of objects below 32², below 96², and above.
    pub ap_by_area: [f64; 3],
    /// Average recall with at most 1, 10 and 100 detections a picture.
    pub ar: [f64; 3],
    /// Of objects below 32², below 96², and above, with at most 100.
    pub ar_by_area: [f64; 3],
}

const NUM_OVERLAPS: usize = 10;
const MAX_DETECTIONS: [usize; 3] = [1, 10, 100];
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];

/// numpy's `linspace(0.5, 0.95, 10)`.
fn overlap(i: usize) -> f64 {
    if i + 1 == NUM_OVERLAPS { 0.95 } else { i as f64 * ((0.95 - 0.5) / 9.0) + 0.5 }
}

/// One detection of a picture as it was judged: its score, and for each overlap whether it is right, and whether it does
/// not count.
#[derive(Debug, Clone)]
struct Judged {
    score: f64,
    /// Its place among the picture's detections of the label.
    rank: usize,
    is_right: [bool; NUM_OVERLAPS],
    is_ignored: [bool; NUM_OVERLAPS],
}

/// A picture judged for one label and one range of areas.
#[derive(Debug, Clone, Default)]
struct Judgement {
    detections: Vec<Judged>,
    /// Objects that count.
    num_truths: usize,
}

/// Pictures that were judged once, and can be summed up in any choice.
#[derive(Debug)]
pub struct Evaluated {
    /// `[label][area]`: picture → judgement, where it has the label.
    judged: Vec<[BTreeMap<usize, Judgement>; AREAS.len()]>,
    num_pictures: usize,
}

/// Judges every detection of every picture. Labels that no truth has are passed over, as pycocotools does.
pub fn evaluate(pictures: &[Pictured]) -> Evaluated {
    let labels: BTreeSet<&str> =
        pictures.iter().flat_map(|picture| &picture.truths).map(|truth| truth.label.as_str()).collect();
    let judged = labels
        .into_iter()
        .map(|label| {
            AREAS.map(|area| {
                let judge = |(i, picture): (usize, &Pictured)| judge(picture, label, area).map(|j| (i, j));
                pictures.iter().enumerate().filter_map(judge).collect()
            })
        })
        .collect();
    Evaluated { judged, num_pictures: pictures.len() }
}

/// None where the picture neither has nor claims such an object.
fn judge(picture: &Pictured, label: &str, area: [f64; 2]) -> Option<Judgement> {
    let mut truths: Vec<(&Truth, bool)> = picture
        .truths
        .iter()
        .filter(|truth| truth.label == label)
        .map(|truth| (truth, truth.is_crowd || truth.area < area[0] || truth.area > area[1]))
        .collect();
    let mut found: Vec<&Detection> = picture.detections.iter().filter(|found| found.label == label).collect();
    if truths.is_empty() && found.is_empty() {
        return None;
    }
    // Those that count stand first, else in their order.
    truths.sort_by_key(|truth| truth.1);
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(MAX_DETECTIONS[2]);
    let overlaps: Vec<Vec<f64>> = found
        .iter()
        .map(|found| {
            truths.iter().map(|(truth, _)| iou(found.pixels, truth.pixels, truth.is_crowd)).collect()
        })
        .collect();
    let mut detections: Vec<Judged> = found
        .iter()
        .enumerate()
        .map(|(rank, found)| Judged {
            score: found.score,
            rank,
            is_right: [false; NUM_OVERLAPS],
            is_ignored: [false; NUM_OVERLAPS],
        })
        .collect();
    for t in 0..NUM_OVERLAPS {
        let mut is_taken = vec![false; truths.len()];
        for (d, one) in detections.iter_mut().enumerate() {
            let mut least = overlap(t).min(1.0 - 1e-10);
            let mut best: Option<usize> = None;
            for (g, &(truth, is_ignored)) in truths.iter().enumerate() {
                if is_taken[g] && !truth.is_crowd {
                    continue;
                }
                // What counts is never given up for what does not.
                if best.is_some_and(|best| !truths[best].1) && is_ignored {
                    break;
                }
                if overlaps[d][g] >= least {
                    least = overlaps[d][g];
                    best = Some(g);
                }
            }
            match best {
                Some(best) => {
                    is_taken[best] = true;
                    (one.is_right[t], one.is_ignored[t]) = (true, truths[best].1);
                }
                None => {
                    let [x0, y0, x1, y1] = found[d].pixels;
                    let size = (x1 - x0) * (y1 - y0);
                    one.is_ignored[t] = size < area[0] || size > area[1];
                }
            }
        }
    }
    let num_truths = truths.iter().filter(|truth| !truth.1).count();
    Some(Judgement { detections, num_truths })
}

/// The overlap of two boxes; with a crowd, the part of the detection that lies in it.
fn iou(found: Box4, truth: Box4, is_crowd: bool) -> f64 {
    let side = |a: usize| (found[a + 2].min(truth[a + 2]) - found[a].max(truth[a])).max(0.0);
    let both = side(0) * side(1);
    let area = |b: Box4| (b[2] - b[0]) * (b[3] - b[1]);
    let all = if is_crowd { area(found) } else { area(found) + area(truth) - both };
    if both == 0.0 { 0.0 } else { both / all }
}

impl Evaluated {
    /// The figures of all pictures.
    pub fn summary(&self) -> Summary {
        self.summary_of(&(0..self.num_pictures).collect::<Vec<_>>())
    }

    /// The figures of a choice of pictures, in which one may be several times.
    pub fn summary_of(&self, pictures: &[usize]) -> Summary {
        let mut times = vec![0usize; self.num_pictures];
        pictures.iter().for_each(|&picture| times[picture] += 1);
        let precision = |area: usize| {
            let labels: Vec<_> =
                self.judged.iter().filter_map(|label| curve(&label[area], &times, 100)).collect();
            let mean = |of: &dyn Fn(usize) -> bool| {
                let values =
                    labels.iter().flat_map(|curve| (0..NUM_OVERLAPS).filter(|&t| of(t)).map(|t| curve.0[t]));
                mean(values)
            };
            (mean(&|_| true), mean(&|t| t == 0), mean(&|t| t == 5))
        };
        let recall = |area: usize, most: usize| {
            let labels = self.judged.iter().filter_map(|label| curve(&label[area], &times, most));
            mean(labels.flat_map(|curve| curve.1))
        };
        let (ap, ap50, ap75) = precision(0);
        Summary {
            ap,
            ap50,
            ap75,
            ap_by_area: [1, 2, 3].map(|area| precision(area).0),
            ar: MAX_DETECTIONS.map(|most| recall(0, most)),
            ar_by_area: [1, 2, 3].map(|area| recall(area, 100)),
        }
    }

    /// The average precision at an overlap of 0.5 and over all overlaps: what a bootstrap asks for again and again.
    pub(super) fn precision_of(&self, pictures: &[usize]) -> (f64, f64) {
        let mut times = vec![0usize; self.num_pictures];
        pictures.iter().for_each(|&picture| times[picture] += 1);
        let labels: Vec<_> = self.judged.iter().filter_map(|label| curve(&label[0], &times, 100)).collect();
        (mean(labels.iter().map(|curve| curve.0[0])), mean(labels.iter().flat_map(|curve| curve.0)))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { f64::NAN } else { sum / count as f64 }
}

/// For each overlap, the precision averaged over 101 recalls, and the recall that is reached; none without objects.
fn curve(
    judged: &BTreeMap<usize, Judgement>,
    times: &[usize],
    most: usize,
) -> Option<([f64; NUM_OVERLAPS], [f64; NUM_OVERLAPS])> {
    let mut all: Vec<&Judged> = Vec::new();
    let mut num_truths = 0;
    for (&picture, judgement) in judged {
        num_truths += times[picture] * judgement.num_truths;
        for _ in 0..times[picture] {
            all.extend(judgement.detections.iter().filter(|one| one.rank < most));
        }
    }
    if num_truths == 0 {
        return None;
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score));
    let (mut precisions, mut recalls) = ([0.0; NUM_OVERLAPS], [0.0; NUM_OVERLAPS]);
    for t in 0..NUM_OVERLAPS {
        let (mut right, mut wrong) = (0.0, 0.0);
        let mut recall = Vec::with_capacity(all.len());
        let mut precision = Vec::with_capacity(all.len());
        for one in &all {
            if !one.is_ignored[t] {
                if one.is_right[t] { right += 1.0 } else { wrong += 1.0 }
            }
            recall.push(right / num_truths as f64);
            precision.push(right / (right + wrong + f64::EPSILON));
        }
        recalls[t] = recall.last().copied().unwrap_or(0.0);
        for i in (1..precision.len()).rev() {
            if precision[i] > precision[i - 1] {
                precision[i - 1] = precision[i];
            }
        }
        let at = |i: usize| {
            // numpy's `linspace(0, 1, 101)`.
            let wanted = if i == 100 { 1.0 } else { i as f64 * 0.01 };
            let first = recall.partition_point(|&recall| recall < wanted);
            precision.get(first).copied().unwrap_or(0.0)
        };
        precisions[t] = (0..=100).map(at).sum::<f64>() / 101.0;
    }
    Some((precisions, recalls))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn figures_are_those_of_pycocotools() {
        let golden: Value = serde_json::from_str(include_str!("../../../goldens/eval/ap.json")).unwrap();
        let numbers =
            |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
        let all = |value: &Value| value.as_array().unwrap().iter().map(numbers).collect::<Vec<_>>();
        let pictures: Vec<Pictured> = golden["pictures"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| Pictured {
                truths: all(&one["truths"])
                    .into_iter()
                    .map(|v| Truth {
                        label: v[0].to_string(),
                        pixels: [v[1], v[2], v[3], v[4]],
                        area: v[5],
                        is_crowd: v[6] == 1.0,
                    })
                    .collect(),
                detections: all(&one["detections"])
                    .into_iter()
                    .map(|v| Detection {
                        label: v[0].to_string(),
                        pixels: [v[1], v[2], v[3], v[4]],
                        score: v[5],
                    })
                    .collect(),
            })
            .collect();
        let evaluated = evaluate(&pictures);
        let s = evaluated.summary();
        let got = [&[s.ap, s.ap50, s.ap75][..], &s.ap_by_area, &s.ar, &s.ar_by_area].concat();
        for (i, (got, want)) in got.iter().zip(numbers(&golden["stats"])).enumerate() {
            assert!((got - want).abs() < 1e-12, "figure {i}: {got}, {want}");
        }
        assert_eq!(evaluated.precision_of(&(0..pictures.len()).collect::<Vec<_>>()), (s.ap50, s.ap));
    }

    #[test]
    fn nothing_to_be_found_has_no_figure() {
        let s = evaluate(&[Pictured::default()]).summary();
        assert!(s.ap.is_nan() && s.ar[2].is_nan());
    }
}
