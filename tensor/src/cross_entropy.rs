//! The loss of next-token prediction through the tied head, and its gradients, some rows at a time: logits of a whole
//! sequence are never held.
//!
//! Contract. Logits, probabilities and gradients are f32, a row's loss f64. Rows are added in their order; results do not
//! depend on the number of threads.
//!
//! Legend: T rows, D width, V rows of the table.

use crate::{
    Epilogue, Isa, Tensor, Weight, add_input_gradient, add_weight_gradient, gradient_dtype,
    linear::{Use, linear_for},
    math::{exp_slice, softcap_slice},
};
use rayon::prelude::*;

/// What a row shall predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// A row of x.
    pub row: usize,
    /// The class.
    pub id: u32,
    /// What its loss is multiplied by.
    pub weight: f32,
}

/// How the loss of a row is made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossRule {
    /// Soft cap on the logits.
    pub softcap: Option<f32>,
    /// ε: the target's probability is 1 - ε, that of every other class ε / (V - 1).
    pub label_smoothing: f32,
    /// Multiplies the square of ln Σ e^logits.
    pub z_loss: f32,
}

/// A loss and its gradients.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Σ weight · loss of the row.
    pub loss: f64,
    /// By x, f32 `[T, D]`, if asked for.
    pub dx: Option<Tensor>,
    /// By the table, f32 `[V, D]`, if asked for.
    pub dtable: Option<Tensor>,
}

/// Bytes of logits that are held at a time, roughly.
const LOGITS: usize = 128 << 20;

/// Rows of logits that [`cross_entropy`] holds at a time, of a table of so many rows.
pub fn logits_rows(table_rows: usize) -> usize {
    (LOGITS / 4 / table_rows.max(1)).clamp(16, 1024)
}

/// The weighted loss of predicting `targets` from the rows of `x_td` with the head `table_vd`, and the gradients asked for.
/// Panics on a target beyond x or the table.
pub fn cross_entropy(
    x_td: &Tensor,
    table_vd: &Weight,
    targets: &[Target],
    rule: &LossRule,
    wants_dx: bool,
    wants_dtable: bool,
) -> CrossEntropy {
    let (d, v) = (x_td.shape()[1], table_vd.shape()[0]);
    let compute = gradient_dtype(table_vd);
    let used = if wants_dx || wants_dtable { Use::Gradient } else { Use::Answer };
    let mut loss = 0.0;
    let mut dx = wants_dx.then(|| Tensor::zeros(x_td.shape()));
    let mut dtable = wants_dtable.then(|| Tensor::zeros(&table_vd.shape()));
    for chunk in targets.chunks(logits_rows(v)) {
        let rows = chunk.iter().flat_map(|target| &x_td.as_f32()[target.row * d..(target.row + 1) * d]);
        let x = Tensor::from_f32(rows.copied().collect(), &[chunk.len(), d]);
        let mut logits = linear_for(used, Isa::best(), &x, table_vd, Epilogue::default());
        let losses: Vec<f64> = (logits.as_f32_mut().par_chunks_mut(v), chunk)
            .into_par_iter()
            .map(|(logits, target)| row_loss(logits, target, rule, wants_dx || wants_dtable))
            .collect();
        loss += losses.iter().sum::<f64>();
        if let Some(dx) = &mut dx {
            let mut rows = Tensor::zeros(x.shape());
            add_input_gradient(&logits, table_vd, &mut rows);
            for (target, row) in chunk.iter().zip(rows.as_f32().chunks(d)) {
                let to = &mut dx.as_f32_mut()[target.row * d..(target.row + 1) * d];
                to.iter_mut().zip(row).for_each(|(to, row)| *to += row);
            }
        }
        if let Some(dtable) = &mut dtable {
            add_weight_gradient(&logits, &x, compute, dtable.as_f32_mut());
        }
    }
    CrossEntropy { loss, dx, dtable }
}

/// The weighted loss of one row; the logits become its gradient by the logits before the soft cap, if wanted.
fn row_loss(logits: &mut [f32], target: &Target, rule: &LossRule, wants_gradient: bool) -> f64 {
    let mut slopes = None;
    if let Some(cap) = rule.softcap {
        softcap_slice(Isa::best(), logits, cap);
        slopes =
            wants_gradient.then(|| logits.iter().map(|x| 1.0 - (x / cap) * (x / cap)).collect::<Vec<f32>>());
    }
    let (id, weight) = (target.id as usize, f64::from(target.weight));
    let smoothing = f64::from(rule.label_smoothing);
    let others = (logits.len() - 1).max(1) as f64;
    let of_target = f64::from(logits[id]);
    let of_others = if smoothing > 0.0 { sum(logits) - of_target } else { 0.0 };
    // Probabilities, but for their sum.
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|x| *x -= top);
    exp_slice(Isa::best(), logits);
    let all = sum(logits);
    let total = f64::from(top) + all.ln();
    let mut loss = (1.0 - smoothing) * (total - of_target);
    if smoothing > 0.0 {
        loss += smoothing / others * ((logits.len() - 1) as f64 * total - of_others);
    }
    loss += f64::from(rule.z_loss) * total * total;
    if wants_gradient {
        // d loss / d logit = p·(1 + 2·z·total) - the wanted probability.
        let grow = (weight * (1.0 + 2.0 * f64::from(rule.z_loss) * total) / all) as f32;
        let off = (weight * smoothing / others) as f32;
        let on = (weight * (1.0 - smoothing)) as f32;
        logits.iter_mut().for_each(|x| *x = *x * grow - off);
        logits[id] += off - on;
        for (x, slope) in logits.iter_mut().zip(slopes.iter().flatten()) {
            *x *= slope;
        }
    }
    loss * weight
}

/// Σ x in f64, in eight strands.
fn sum(x: &[f32]) -> f64 {
    let mut strands = [0f64; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for chunk in whole {
        strands.iter_mut().zip(chunk).for_each(|(s, &x)| *s += f64::from(x));
    }
    strands.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, random};

    #[test]
    fn gradients_are_finite_differences() {
        let (x, mut table) = (random(1, &[9, 13]), random(2, &[37, 13]));
        table.as_f32_mut().iter_mut().for_each(|w| *w *= 3.0);
        let target = |row, id, weight| Target { row, id, weight };
        let targets = [target(0, 3, 0.5), target(4, 36, 0.25), target(8, 3, 0.25), target(8, 0, 1.0)];
        let plain = LossRule::default();
        for rule in [
            plain,
            LossRule { softcap: Some(2.0), ..plain },
            LossRule { label_smoothing: 0.3, ..plain },
            LossRule { z_loss: 0.1, ..plain },
            LossRule { softcap: Some(4.0), label_smoothing: 0.1, z_loss: 0.01 },
        ] {
            let all = cross_entropy(&x, &table.clone().into(), &targets, &rule, true, true);
            // The loss as two f32, so that differences keep the bits of an f64.
            let ones = Tensor::from_f32(vec![1.0; 2], &[2]);
            let loss = |x: &Tensor, table: &Tensor| {
                let loss = cross_entropy(x, &table.clone().into(), &targets, &rule, false, false).loss;
                Tensor::from_f32(vec![loss as f32, (loss - f64::from(loss as f32)) as f32], &[2])
            };
            check_gradient("x", &x, &all.dx.unwrap(), &ones, |x| loss(x, &table));
            check_gradient("table", &table, &all.dtable.unwrap(), &ones, |table| loss(&x, table));
        }
    }

    /// A hand-made example: three classes, one row.
    #[test]
    fn losses_by_hand() {
        let x = Tensor::from_f32(vec![1.0], &[1, 1]);
        let table = Tensor::from_f32(vec![1.0, 2.0, 4.0], &[3, 1]);
        let total = (1f64.exp() + 2f64.exp() + 4f64.exp()).ln();
        let target = [Target { row: 0, id: 1, weight: 0.5 }];
        let plain = LossRule::default();
        for (rule, want) in [
            (plain, total - 2.0),
            (
                LossRule { label_smoothing: 0.2, ..plain },
                0.8 * (total - 2.0) + 0.1 * (total - 1.0) + 0.1 * (total - 4.0),
            ),
            (LossRule { z_loss: 0.01, ..plain }, total - 2.0 + 0.01 * total * total),
        ] {
            let got = cross_entropy(&x, &table.clone().into(), &target, &rule, false, false).loss;
            assert!((got - 0.5 * want).abs() < 1e-6, "{rule:?}: {got}, want {}", 0.5 * want);
        }
    }
}
