//! Optimisers: from a gradient to a parameter's next value, in place.
//!
//! All compose as big_vision does (big_vision/optax.py, `make`): the parameter loses `schedule · (lr · direction + decay ·
//! parameter)`, so weight decay is not multiplied by the learning rate; but AdamW's is, as torch and optax have it.
//! Arithmetic is f32. What is kept is f32; with `state = bf16` the first moment (or momentum) is bf16, as optax's
//! `mu_dtype` has it. The second moment stays f32: bf16 would not notice the thousandth that a step changes it by.

use paligemma_tensor::{DType, bf16, round_into_bf16, widen_from_bf16};
use rayon::prelude::*;

use super::muon::orthogonal;

/// Elements that are taken at a time: results do not depend on the number of threads.
const CHUNK: usize = 1 << 14;
/// Below this side a matrix's second moment is kept whole (big_vision's `min_dim_size_to_factor`).
const MIN_FACTORED: usize = 32;
/// The deviation of what Muon moves numbers by, at a rate of 1: about that of Adam, so that rates for the one suit the other.
const CONSISTENT_RMS: f32 = 0.2;

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimiser {
    /// optax's `scale_by_adam`.
    Adam {
        /// The decay of the first moment.
        b1: f32,
        /// The decay of the second moment.
        b2: f32,
        /// Added to its root.
        eps: f32,
    },
    /// The same with weight decay multiplied by the learning rate: `torch.optim.AdamW`.
    AdamW {
        /// The decay of the first moment.
        b1: f32,
        /// The decay of the second moment.
        b2: f32,
        /// Added to its root.
        eps: f32,
    },
    /// big_vision's `scale_by_adafactor`. A matrix is factored as it stands here, with its heads merged.
    Adafactor {
        /// The decay of the update's mean; 0 keeps none.
        momentum: f32,
        /// The second moment's decay in step t (from 1) is 1 - t^-decay_rate, …
        decay_rate: f32,
        /// … but at most this.
        b2: f32,
        /// Added to the squares.
        eps: f32,
    },
    /// optax's `scale_by_muon` with `consistent_rms` of 0.2, of a matrix alone: every direction of it goes equally far.
    /// Keller Jordan's Muon, arXiv 2502.16982.
    Muon {
        /// The decay of the mean of gradients.
        momentum: f32,
    },
    /// optax's `trace`, torch's `SGD`; 0 keeps nothing.
    Sgd {
        /// The decay of the sum of gradients.
        momentum: f32,
    },
}

/// Numbers that are kept from step to step.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// Four bytes each.
    F32(Vec<f32>),
    /// Two bytes each.
    Bf16(Vec<bf16>),
}

impl Kept {
    fn zeros(len: usize, dtype: DType) -> Kept {
        match dtype {
            DType::BF16 => Kept::Bf16(vec![bf16::ZERO; len]),
            _ => Kept::F32(vec![0.0; len]),
        }
    }

    /// As they stand in memory and in files.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Kept::F32(x) => bytemuck::cast_slice(x),
            Kept::Bf16(x) => bytemuck::cast_slice(x),
        }
    }

    /// The same, to be read into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Kept::F32(x) => bytemuck::cast_slice_mut(x),
            Kept::Bf16(x) => bytemuck::cast_slice_mut(x),
        }
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        match self {
            Kept::F32(_) => DType::F32,
            Kept::Bf16(_) => DType::BF16,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Kept::F32(x) => x.len(),
            Kept::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Numbers that change in place.
#[derive(Debug)]
pub enum Numbers<'a> {
    /// Four bytes each.
    F32(&'a mut [f32]),
    /// Rounded to nearest after each change.
    Bf16(&'a mut [bf16]),
}

impl<'a> Numbers<'a> {
    /// Parts of [`CHUNK`] elements.
    fn chunks(self) -> Vec<Numbers<'a>> {
        match self {
            Numbers::F32(x) => x.chunks_mut(CHUNK).map(Numbers::F32).collect(),
            Numbers::Bf16(x) => x.chunks_mut(CHUNK).map(Numbers::Bf16).collect(),
        }
    }

    /// Those from `from` on, `len` of them.
    fn part(self, from: usize, len: usize) -> Numbers<'a> {
        match self {
            Numbers::F32(x) => Numbers::F32(&mut x[from..from + len]),
            Numbers::Bf16(x) => Numbers::Bf16(&mut x[from..from + len]),
        }
    }

    /// Changes them as f32.
    fn change(self, f: impl FnOnce(&mut [f32])) {
        match self {
            Numbers::F32(x) => f(x),
            Numbers::Bf16(x) => {
                let mut wide = vec![0.0; x.len()];
                widen_from_bf16(x, &mut wide);
                f(&mut wide);
                round_into_bf16(&wide, x);
            }
        }
    }
}

/// What an optimiser keeps of one parameter, by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// `first`, `second`, or `rows` and `columns` in place of `second`.
    pub kept: Vec<(&'static str, Kept)>,
}

/// How far a step goes for one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// The step, the first being 0.
    pub step: u64,
    /// The learning rate, with the group's factor.
    pub lr: f32,
    /// The schedule's factor.
    pub schedule: f32,
    /// Weight decay; 0 where the parameter has none.
    pub decay: f32,
}

impl Optimiser {
    /// What it keeps of a parameter of `shape` before the first step; momenta as `dtype`, f32 or bf16.
    pub fn new_state(&self, shape: &[usize], dtype: DType) -> State {
        let kept = self.sizes(shape).into_iter().map(|(name, len)| {
            let dtype = if name == "first" { dtype } else { DType::F32 };
            (name, Kept::zeros(len, dtype))
        });
        State { kept: kept.collect() }
    }

    /// Bytes that it keeps of such a parameter.
    pub fn num_bytes(&self, shape: &[usize], dtype: DType) -> u64 {
        let bytes =
            |(name, len): (&str, usize)| len as u64 * if name == "first" { dtype.size() as u64 } else { 4 };
        self.sizes(shape).into_iter().map(bytes).sum()
    }

    fn sizes(&self, shape: &[usize]) -> Vec<(&'static str, usize)> {
        let len = shape.iter().product();
        match *self {
            Optimiser::Adam { .. } | Optimiser::AdamW { .. } => vec![("first", len), ("second", len)],
            Optimiser::Muon { .. } => vec![("first", len)],
            Optimiser::Sgd { momentum } => {
                if momentum > 0.0 {
                    vec![("first", len)]
                } else {
                    Vec::new()
                }
            }
            Optimiser::Adafactor { momentum, .. } => {
                let mut sizes = if momentum > 0.0 { vec![("first", len)] } else { Vec::new() };
                match factored(shape) {
                    Some((rows, columns)) => sizes.extend([("rows", rows), ("columns", columns)]),
                    None => sizes.push(("second", len)),
                }
                sizes
            }
        }
    }

    /// Whether a parameter of `shape` may be updated part by part: each number by its own gradient alone.
    pub fn takes_parts(&self, shape: &[usize]) -> bool {
        match self {
            Optimiser::Adafactor { .. } => factored(shape).is_none(),
            Optimiser::Muon { .. } => false,
            Optimiser::Adam { .. } | Optimiser::AdamW { .. } | Optimiser::Sgd { .. } => true,
        }
    }

    /// One step of a parameter `w` of `shape` with its gradient.
    pub fn update(&self, state: &mut State, w: Numbers<'_>, shape: &[usize], gradient: &[f32], rate: &Rate) {
        self.update_part(state, w, shape, (0, gradient), rate);
    }

    /// The same of the numbers from `from` on that the gradient is of. Panics if it is not of all, unless
    /// [`Optimiser::takes_parts`].
    pub fn update_part(
        &self,
        state: &mut State,
        w: Numbers<'_>,
        shape: &[usize],
        (from, gradient): (usize, &[f32]),
        rate: &Rate,
    ) {
        let len = gradient.len();
        assert!(len == shape.iter().product::<usize>() || self.takes_parts(shape), "a part of {shape:?}");
        let w = w.part(from, len);
        let Rate { lr, schedule, decay, .. } = *rate;
        let count = rate.step as i32 + 1;
        let (mut first, mut second, mut sides) = (Vec::new(), Vec::new(), Vec::new());
        for (name, kept) in &mut state.kept {
            match (*name, kept) {
                ("first", Kept::F32(x)) => first = Numbers::F32(x).part(from, len).chunks(),
                ("first", Kept::Bf16(x)) => first = Numbers::Bf16(x).part(from, len).chunks(),
                ("second", Kept::F32(x)) => second = x[from..from + len].chunks_mut(CHUNK).collect(),
                (_, Kept::F32(x)) => sides.push(x),
                (name, Kept::Bf16(_)) => unreachable!("{name} is kept as f32"),
            }
        }
        let step = |w: &mut f32, direction: f32| *w -= schedule * (lr * direction + decay * *w);
        match *self {
            Optimiser::Adam { b1, b2, eps } | Optimiser::AdamW { b1, b2, eps } => {
                let corrected = |b: f32| (1.0 - f64::from(b).powi(count)) as f32;
                let (c1, c2) = (corrected(b1), corrected(b2));
                let is_torch = matches!(self, Optimiser::AdamW { .. });
                each(w, first, second, gradient, |w, m, v, g, _| {
                    for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                        *m = b1 * *m + (1.0 - b1) * g;
                        *v = b2 * *v + (1.0 - b2) * g * g;
                        let direction = (*m / c1) / ((*v / c2).sqrt() + eps);
                        match is_torch {
                            true => *w -= schedule * lr * (direction + decay * *w),
                            false => step(w, direction),
                        }
                    }
                });
            }
            Optimiser::Muon { momentum } => {
                let &[rows, columns] = shape else { panic!("Muon is of matrices, not of {shape:?}") };
                // Nesterov's momentum; the mean that will be and the gradient, as if they had not begun with zeros.
                let share = |count: i32| (1.0 - f64::from(momentum).powi(count)) as f32;
                let (of_mean, of_gradient) = (momentum / share(count + 1), (1.0 - momentum) / share(count));
                let mut ahead = vec![0.0; len];
                let parts =
                    first.into_par_iter().zip(ahead.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
                parts.for_each(|((first, ahead), g)| {
                    first.change(|m| {
                        for ((m, ahead), &g) in m.iter_mut().zip(ahead).zip(g) {
                            *m = momentum * *m + (1.0 - momentum) * g;
                            *ahead = of_mean * *m + of_gradient * g;
                        }
                    });
                });
                let far = CONSISTENT_RMS * (rows.max(columns) as f32).sqrt();
                each(w, Vec::new(), Vec::new(), &orthogonal(ahead, [rows, columns]), |w, _, _, x, _| {
                    w.iter_mut().zip(x).for_each(|(w, &x)| step(w, far * x));
                });
            }
            Optimiser::Sgd { momentum } if momentum > 0.0 => {
                each(w, first, second, gradient, |w, m, _, g, _| {
                    for ((w, m), &g) in w.iter_mut().zip(m).zip(g) {
                        *m = momentum * *m + g;
                        step(w, *m);
                    }
                });
            }
            Optimiser::Sgd { .. } => {
                each(w, first, second, gradient, |w, _, _, g, _| {
                    w.iter_mut().zip(g).for_each(|(w, &g)| step(w, g));
                });
            }
            Optimiser::Adafactor { momentum, decay_rate, b2, eps } => {
                let b = b2.min(1.0 - (count as f32).powf(-decay_rate));
                let moved = |w: &mut f32, m: Option<&mut f32>, direction: f32| match m {
                    Some(m) => {
                        *m = momentum * *m + (1.0 - momentum) * direction;
                        step(w, *m);
                    }
                    None => step(w, direction),
                };
                let Some((num_rows, num_columns)) = factored(shape) else {
                    each(w, first, second, gradient, |w, m, v, g, _| {
                        let mut m = m.iter_mut();
                        for ((w, v), &g) in w.iter_mut().zip(v).zip(g) {
                            *v = b * *v + (1.0 - b) * (g * g + eps);
                            moved(w, m.next(), g / v.sqrt());
                        }
                    });
                    return;
                };
                let [rows, columns] = &mut sides[..] else { unreachable!("a factored state has both sides") };
                let squares = |row: &[f32]| row.iter().map(|g| g * g + eps).sum::<f32>();
                rows.par_iter_mut().zip(gradient.par_chunks(num_columns)).for_each(|(row, g)| {
                    *row = b * *row + (1.0 - b) * squares(g) / num_columns as f32;
                });
                columns.par_chunks_mut(64).enumerate().for_each(|(block, columns)| {
                    let mut sums = [0.0; 64];
                    for row in gradient.chunks(num_columns) {
                        let g = &row[block * 64..block * 64 + columns.len()];
                        sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += g * g + eps);
                    }
                    for (column, sum) in columns.iter_mut().zip(sums) {
                        *column = b * *column + (1.0 - b) * sum / num_rows as f32;
                    }
                });
                let mean = rows.iter().map(|&x| f64::from(x)).sum::<f64>() / num_rows as f64;
                let row_factors: Vec<f32> = rows.iter().map(|&x| (x / mean as f32).powf(-0.5)).collect();
                let column_factors: Vec<f32> = columns.iter().map(|&x| x.powf(-0.5)).collect();
                each(w, first, second, gradient, |w, m, _, g, from| {
                    let (mut row, mut column) = (from / num_columns, from % num_columns);
                    let mut m = m.iter_mut();
                    for (w, &g) in w.iter_mut().zip(g) {
                        moved(w, m.next(), g * row_factors[row] * column_factors[column]);
                        column += 1;
                        if column == num_columns {
                            (row, column) = (row + 1, 0);
                        }
                    }
                });
            }
        }
    }
}

/// The sides of a matrix whose second moment is kept as rows and columns: the first dimension, and all others.
fn factored(shape: &[usize]) -> Option<(usize, usize)> {
    let (&rows, others) = shape.split_first()?;
    let columns = others.iter().product();
    (!others.is_empty() && rows.min(columns) >= MIN_FACTORED).then_some((rows, columns))
}

/// Calls `f` with each part of all: parameter, first and second moment (empty where not kept), gradient, and where the
/// part begins.
fn each(
    w: Numbers<'_>,
    first: Vec<Numbers<'_>>,
    second: Vec<&mut [f32]>,
    gradient: &[f32],
    f: impl Fn(&mut [f32], &mut [f32], &mut [f32], &[f32], usize) + Sync,
) {
    let w = w.chunks();
    let mut first: Vec<Option<Numbers<'_>>> = first.into_iter().map(Some).collect();
    first.resize_with(w.len(), || None);
    let mut second: Vec<Option<&mut [f32]>> = second.into_iter().map(Some).collect();
    second.resize_with(w.len(), || None);
    let gradients: Vec<&[f32]> = gradient.chunks(CHUNK).collect();
    let parts = w.into_par_iter().zip(first).zip(second).zip(gradients).enumerate();
    parts.for_each(|(i, (((w, first), second), g))| {
        let second = second.unwrap_or_default();
        w.change(|w| match first {
            Some(first) => first.change(|first| f(w, first, second, g, i * CHUNK)),
            None => f(w, &mut [], second, g, i * CHUNK),
        });
    });
}

/// The sum of squares, in an order that does not depend on the number of threads; not finite if an element is not.
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    // In strands, since an addition waits for the one before it.
    let square = |sum: &mut f64, x: f32| *sum += f64::from(x) * f64::from(x);
    let part = |part: &[f32]| {
        let mut strands = [0f64; 16];
        let (whole, rest) = part.as_chunks::<16>();
        for chunk in whole.iter().map(|chunk| &chunk[..]).chain([rest]) {
            strands.iter_mut().zip(chunk).for_each(|(sum, &x)| square(sum, x));
        }
        strands.iter().sum()
    };
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(part).collect();
    parts.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{Decay, Schedule};
    use super::*;
    use serde_json::Value;

    const SHAPES: [(&str, &[usize]); 4] =
        [("matrix", &[40, 33]), ("tall", &[64, 32]), ("small", &[5, 31]), ("vector", &[17])];
    const STEPS: u64 = 20;

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../goldens/train/optimisers.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn schedule(name: &str) -> Schedule {
        let (decay, warmup, cooldown) = match name {
            "linear" => (Decay::Linear, 5, 0),
            "cosine" => (Decay::Cosine, 4, 0),
            "rsqrt" => (Decay::Rsqrt { timescale: 7.0 }, 3, 6),
            _ => (Decay::Constant, 0, 0),
        };
        Schedule { decay, total: STEPS, warmup, cooldown }
    }

    #[test]
    fn schedules_are_big_visions() {
        let golden = golden();
        for (name, want) in golden["schedules"].as_object().unwrap() {
            for (step, want) in want.as_array().unwrap().iter().enumerate() {
                let (got, want) = (schedule(name).at(step as u64), want.as_f64().unwrap());
                assert!((got - want).abs() < 1e-6, "{name} {step}: {got} {want}");
            }
        }
    }

    /// `numbers` of reference/optimisers.py.
    fn numbers(seed: u64, shape: &[usize]) -> Vec<f32> {
        let number = |i: u64| ((i * 7919 + seed * 104_729) % 1009) as f32 - 504.0;
        (0..shape.iter().product::<usize>() as u64).map(|i| number(i) / 512.0).collect()
    }

    #[test]
    fn twenty_steps_are_those_of_optax_and_torch() {
        let golden = golden();
        let (eps, b1) = (1e-8, 0.9);
        let adam = Optimiser::Adam { b1, b2: 0.999, eps };
        let adafactor = |momentum| Optimiser::Adafactor { momentum, decay_rate: 0.8, b2: 0.999, eps: 1e-30 };
        let check =
            |name: &str, rule: Optimiser, dtype, clip: Option<f64>, lr: f32, decay: f32, along: &str| {
                let mut w: Vec<Vec<f32>> =
                    SHAPES.iter().enumerate().map(|(i, (_, shape))| numbers(i as u64, shape)).collect();
                let rule_of = |shape: &[usize]| match (rule, shape.len()) {
                    (Optimiser::Muon { .. }, 1) => adam,
                    _ => rule,
                };
                let mut states: Vec<State> =
                    SHAPES.iter().map(|(_, shape)| rule_of(shape).new_state(shape, dtype)).collect();
                for step in 0..STEPS {
                    let mut gradients: Vec<Vec<f32>> = (0..SHAPES.len())
                        .map(|i| {
                            let moving = numbers(100 + step * 10 + i as u64, SHAPES[i].1);
                            w[i].iter().zip(moving).map(|(w, x)| w * 0.5 + x).collect()
                        })
                        .collect();
                    let norm = gradients.iter().map(|g| sum_of_squares(g)).sum::<f64>().sqrt();
                    if let Some(clip) = clip.filter(|&clip| norm > clip) {
                        gradients.iter_mut().flatten().for_each(|g| *g *= (clip / norm) as f32);
                    }
                    let rate = Rate { step, lr, schedule: schedule(along).at(step) as f32, decay };
                    for i in 0..SHAPES.len() {
                        let (w, shape) = (Numbers::F32(&mut w[i]), SHAPES[i].1);
                        rule_of(shape).update(&mut states[i], w, shape, &gradients[i], &rate);
                    }
                }
                for ((shape, _), w) in SHAPES.iter().zip(&w) {
                    let every = (w.len() / 40).max(1);
                    let want = golden["runs"][name][shape].as_array().unwrap();
                    assert_eq!(w.iter().step_by(every).count(), want.len());
                    for (i, (got, want)) in w.iter().step_by(every).zip(want).enumerate() {
                        let want = want.as_f64().unwrap() as f32;
                        assert!((got - want).abs() <= 1e-5, "{name} {shape} {i}: {got} {want}");
                    }
                }
            };
        check("adam", adam, DType::F32, Some(1.0), 0.01, 1e-3, "cosine");
        check("adam_bf16", adam, DType::BF16, None, 0.01, 0.0, "constant");
        let adamw = Optimiser::AdamW { b1, b2: 0.95, eps };
        check("adamw", adamw, DType::F32, Some(1.0), 0.01, 0.1, "cosine");
        check("adafactor", adafactor(0.9), DType::F32, None, 0.01, 1e-3, "cosine");
        check("adafactor_plain", adafactor(0.0), DType::F32, None, 0.01, 0.0, "constant");
        let muon = Optimiser::Muon { momentum: 0.95 };
        check("muon", muon, DType::F32, Some(1.0), 0.05, 1e-3, "cosine");
        check("sgd", Optimiser::Sgd { momentum: 0.0 }, DType::F32, Some(1.0), 0.05, 0.0, "cosine");
        check("sgd_momentum", Optimiser::Sgd { momentum: 0.9 }, DType::F32, None, 0.02, 0.0, "cosine");
    }

    /// A gradient that comes in parts does what it does as a whole; of what is factored there are no parts.
    #[test]
    fn gradients_in_parts() {
        let shape = [300, 170];
        let check = |rule: Optimiser, state: DType| {
            assert!(rule.takes_parts(&shape), "{rule:?}");
            let mut w = [numbers(1, &shape), numbers(1, &shape)];
            let mut states = [rule.new_state(&shape, state), rule.new_state(&shape, state)];
            for step in 0..3 {
                let rate = Rate { step, lr: 0.01, schedule: 1.0, decay: 0.1 };
                let g = numbers(step + 9, &shape);
                rule.update(&mut states[0], Numbers::F32(&mut w[0]), &shape, &g, &rate);
                for (i, part) in g.chunks(170 * 64).enumerate() {
                    let part = (i * 170 * 64, part);
                    rule.update_part(&mut states[1], Numbers::F32(&mut w[1]), &shape, part, &rate);
                }
            }
            assert!(w[0] == w[1] && states[0] == states[1], "{rule:?}");
        };
        check(Optimiser::Adam { b1: 0.9, b2: 0.999, eps: 1e-8 }, DType::BF16);
        check(Optimiser::AdamW { b1: 0.9, b2: 0.999, eps: 1e-8 }, DType::F32);
        check(Optimiser::Sgd { momentum: 0.0 }, DType::F32);
        check(Optimiser::Sgd { momentum: 0.9 }, DType::F32);
        let adafactor = Optimiser::Adafactor { momentum: 0.9, decay_rate: 0.8, b2: 0.999, eps: 1e-30 };
        assert!(!adafactor.takes_parts(&shape) && adafactor.takes_parts(&[170]));
    }

    /// Parameters of bf16 are those of f32, rounded after each step; large ones are taken in parts.
    #[test]
    fn bf16_parameters_and_parts() {
        let shape = [300, 170];
        let rule = Optimiser::Adafactor { momentum: 0.9, decay_rate: 0.8, b2: 0.999, eps: 1e-30 };
        let mut narrow: Vec<bf16> = numbers(1, &shape).into_iter().map(bf16::from_f32).collect();
        let mut wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        let mut states = [rule.new_state(&shape, DType::F32), rule.new_state(&shape, DType::F32)];
        for step in 0..3 {
            let rate = Rate { step, lr: 0.01, schedule: 1.0, decay: 0.0 };
            let g = numbers(step + 9, &shape);
            rule.update(&mut states[0], Numbers::Bf16(&mut narrow), &shape, &g, &rate);
            rule.update(&mut states[1], Numbers::F32(&mut wide), &shape, &g, &rate);
            wide.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            assert!(narrow.iter().zip(&wide).all(|(a, b)| a.to_f32() == *b), "{step}");
        }
        assert_eq!(states[0], states[1]);
        assert_eq!(rule.num_bytes(&shape, DType::BF16), 300 * 170 * 2 + (300 + 170) * 4);
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan() && sum_of_squares(&[3.0, 4.0]) == 25.0);
    }
}
