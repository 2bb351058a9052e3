//! y = x·Wᵀ with its epilogues: the linear layers and the gated MLP.
//!
//! Contract. `x_tk` is f32; W is a [`Weight`] `[n, k]`, row-major with the inputs contiguous, as checkpoints store it, and is
//! used where it lies. Sums are f32. What x is rounded to first depends on W alone, so that every machine multiplies the
//! same numbers:
//!
//! | W | x |
//! |---|---|
//! | f32, f16 | as it is |
//! | bf16 | bf16 |
//! | int8 | bytes, with a scale for each row and block of up to 1024 inputs |
//! | int4 | the same for few rows; for many x and W are both rounded to bf16 |
//!
//! An element's value depends neither on the number of threads nor on the other rows of x of its path.
//!
//! Three paths. Few rows (decoding, [`few`]): each row of W is read once and multiplied with every row of x. Many rows
//! (prefill, [`many`]): blocks of W are the left operand of a block product, as they lie, and x is packed for the right one. Many rows of a small plain matrix: it is packed for the right one itself (`resident.rs`).
//!
//! Legend: t rows of x, k inputs, n outputs.

mod few;
mod many;
mod panels;

pub(crate) use panels::{Inputs, blocks};

use crate::{
    DType, Isa, Tensor, Weight, bf16,
    math::{self, gelu_slice, gelu_times_slice},
    narrow,
    resident::Resident,
};

/// What happens to a linear layer's product before it is stored.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a Tensor>,
    /// Whether GELU (tanh approximation) follows.
    pub gelu: bool,
    /// Added last, `[t, n]`.
    pub residual: Option<&'a Tensor>,
}

/// The most rows of x that are taken one by one.
const MOST_FEW_ROWS: usize = 16;

/// What a product is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// An answer.
    Answer,
    /// A gradient, too: x beside half bytes is rounded as the way back rounds it, to bf16, however few its rows are.
    Gradient,
}

/// Whether t rows are taken one by one. Half bytes would have to be widened for block products, which pays for many rows only.
fn are_few(t: usize, w: &Weight, used: Use) -> bool {
    match (w, used) {
        (Weight::Int4 { .. }, Use::Answer) => t <= MOST_FEW_ROWS,
        (Weight::Int4 { .. }, Use::Gradient) => false,
        _ => t <= 4,
    }
}

/// `x_tk` f32 `[t, k]`, `w_nk` `[n, k]` → f32 `[t, n]`.
pub fn linear(x_tk: &Tensor, w_nk: &Weight, epilogue: Epilogue<'_>) -> Tensor {
    linear_on(Isa::best(), x_tk, w_nk, epilogue)
}

/// [`linear`] on a given instruction set.
pub fn linear_on(isa: Isa, x_tk: &Tensor, w_nk: &Weight, epilogue: Epilogue<'_>) -> Tensor {
    linear_for(Use::Answer, isa, x_tk, w_nk, epilogue)
}

/// [`linear_on`] of a given use.
pub(crate) fn linear_for(
    used: Use,
    isa: Isa,
    x_tk: &Tensor,
    w_nk: &Weight,
    epilogue: Epilogue<'_>,
) -> Tensor {
    let (t, [n, _]) = (x_tk.shape()[0], w_nk.shape());
    let bias = epilogue.bias.map(Tensor::to_f32_vec);
    let residual = epilogue.residual.map(|r| {
        assert_eq!(r.shape(), [t, n], "residual");
        r.as_f32()
    });
    if let Some(bias) = &bias {
        assert_eq!(bias.len(), n, "bias");
    }
    product(used, isa, x_tk, &[w_nk], |n0, row, values: &mut [&mut [f32]]| {
        let y = &mut *values[0];
        let width = y.len();
        if let Some(bias) = &bias {
            y.iter_mut().zip(&bias[n0..n0 + width]).for_each(|(y, b)| *y += b);
        }
        if epilogue.gelu {
            gelu_slice(isa, y);
        }
        if let Some(residual) = residual {
            let from = row * n + n0;
            y.iter_mut().zip(&residual[from..from + width]).for_each(|(y, r)| *y += r);
        }
    })
}

/// The gated MLP's first half: GELU(x·Wgᵀ) ⊙ (x·Wuᵀ). `x_tk` `[t, k]`, both weights `[n, k]` of one kind → `[t, n]`.
pub fn geglu(x_tk: &Tensor, gate_nk: &Weight, up_nk: &Weight) -> Tensor {
    geglu_on(Isa::best(), x_tk, gate_nk, up_nk)
}

/// [`geglu`] on a given instruction set.
pub fn geglu_on(isa: Isa, x_tk: &Tensor, gate_nk: &Weight, up_nk: &Weight) -> Tensor {
    geglu_for(Use::Answer, isa, x_tk, gate_nk, up_nk)
}

/// [`geglu_on`] of a given use.
pub(crate) fn geglu_for(used: Use, isa: Isa, x_tk: &Tensor, gate_nk: &Weight, up_nk: &Weight) -> Tensor {
    product(used, isa, x_tk, &[gate_nk, up_nk], |_, _, values: &mut [&mut [f32]]| {
        let (gate, up) = values.split_at_mut(1);
        gelu_times_slice(isa, gate[0], up[0]);
    })
}

/// The slow, obvious [`linear`]: one loop per index, sums in f64.
pub fn linear_plain(x_tk: &Tensor, w_nk: &Weight, epilogue: Epilogue<'_>) -> Tensor {
    linear_plain_for(Use::Answer, x_tk, w_nk, epilogue)
}

fn linear_plain_for(used: Use, x_tk: &Tensor, w_nk: &Weight, epilogue: Epilogue<'_>) -> Tensor {
    let (t, k, [n, _]) = (x_tk.shape()[0], x_tk.shape()[1], w_nk.shape());
    let mut x = x_tk.as_f32().to_vec();
    match Inputs::of(w_nk, !are_few(t, w_nk, used)) {
        Inputs::Exact => {}
        Inputs::Bf16 => x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        Inputs::Bytes => {
            for row in x.chunks_mut(k) {
                for (from, len) in blocks(k, Inputs::Bytes) {
                    let mut q = vec![0; len];
                    let part = &mut row[from..from + len];
                    let scale = narrow::quantise(Isa::Portable, part, &mut q);
                    part.iter_mut().zip(q).for_each(|(x, q)| *x = f32::from(q) * scale);
                }
            }
        }
    }
    let mut w = w_nk.to_f32();
    if matches!(w_nk, Weight::Int4 { .. }) && !are_few(t, w_nk, used) {
        w = w.cast(DType::BF16).cast(DType::F32);
    }
    let bias = epilogue.bias.map(Tensor::to_f32_vec);
    let mut y = vec![0.0; t * n];
    for i in 0..t {
        for j in 0..n {
            let mut sum = 0f64;
            for l in 0..k {
                sum += f64::from(x[i * k + l]) * f64::from(w.as_f32()[j * k + l]);
            }
            sum += bias.as_ref().map_or(0.0, |b| f64::from(b[j]));
            let mut value = sum as f32;
            if epilogue.gelu {
                value = math::gelu_plain(value);
            }
            y[i * n + j] = value + epilogue.residual.map_or(0.0, |r| r.as_f32()[i * n + j]);
        }
    }
    Tensor::from_f32(y, &[t, n])
}

/// The products of x with one or two matrices of one kind; `finish(n0, row, values)` gets, for every row of x, the
/// values of outputs n0… of each matrix and leaves the result in the first.
fn product<F>(used: Use, isa: Isa, x_tk: &Tensor, weights: &[&Weight], finish: F) -> Tensor
where
    F: Fn(usize, usize, &mut [&mut [f32]]) + Sync,
{
    let (t, [n, k]) = (x_tk.shape()[0], weights[0].shape());
    assert!(x_tk.dtype() == DType::F32 && x_tk.shape() == [t, k], "weights [{n}, {k}] of {x_tk:?}");
    for w in weights {
        assert!(w.is_like(weights[0]), "both matrices of one shape and type");
    }
    let y = if are_few(t, weights[0], used) {
        few::product(isa, x_tk, weights, &finish)
    } else if let Some(all) = weights.iter().map(|w| Resident::forward(isa, w)).collect::<Option<Vec<_>>>() {
        Resident::product(&all, x_tk, |row, values| finish(0, row, values))
    } else {
        many::product(isa, x_tk, weights, &finish)
    };
    Tensor::from_f32(y, &[t, n])
}

/// Calls `finish` with one row's values of one or two matrices.
fn finish_row<'a, F>(finish: &F, n0: usize, row: usize, parts: &mut impl Iterator<Item = &'a mut [f32]>)
where
    F: Fn(usize, usize, &mut [&mut [f32]]),
{
    match (parts.next(), parts.next()) {
        (Some(one), None) => finish(n0, row, &mut [one]),
        (Some(one), Some(two)) => finish(n0, row, &mut [one, two]),
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    /// The kinds of weights.
    const KINDS: [&str; 5] = ["f32", "bf16", "f16", "int8", "int4"];

    fn weight(kind: &str, seed: u64, n: usize, k: usize) -> Weight {
        let w = random(seed, &[n, k]);
        match kind {
            "f32" => w.into(),
            "bf16" => w.cast(DType::BF16).into(),
            "f16" => w.cast(DType::F16).into(),
            "int8" => Weight::quantise_int8(&w),
            _ => Weight::quantise_int4(&w),
        }
    }

    fn check(t: usize, k: usize, n: usize, kind: &str, gelu: bool) {
        let k = if kind == "int4" { k.next_multiple_of(32) } else { k };
        let x = random(1, &[t, k]);
        let (w, u) = (weight(kind, 2, n, k), weight(kind, 5, n, k));
        let bias = random(3, &[n]);
        let residual = random(4, &[t, n]);
        let epilogue = Epilogue { bias: Some(&bias), gelu, residual: Some(&residual) };
        for used in [Use::Answer, Use::Gradient] {
            let want = linear_plain_for(used, &x, &w, epilogue);
            let gate = linear_plain_for(used, &x, &w, Epilogue { gelu: true, ..Epilogue::default() });
            let up = linear_plain_for(used, &x, &u, Epilogue::default());
            let gated: Vec<f32> = gate.as_f32().iter().zip(up.as_f32()).map(|(g, u)| g * u).collect();
            for isa in Isa::available() {
                let got = linear_for(used, isa, &x, &w, epilogue);
                assert_close(&got, &want, 2e-6 * (k as f32).sqrt());
                let got = geglu_for(used, isa, &x, &w, &u);
                assert_close(&got, &Tensor::from_f32(gated.clone(), &[t, n]), 4e-6 * k as f32);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_the_plain_twin_on_ragged_shapes(
            t in 1usize..90, k in 1usize..150, n in 1usize..130, kind in 0..5usize, gelu: bool,
        ) {
            check(t, k, n, KINDS[kind], gelu);
        }
    }

    #[test]
    fn equals_the_plain_twin_across_blocks() {
        for kind in KINDS {
            check(530, 1030, 100, kind, false);
            check(17, 513, 197, kind, true);
            check(16, 513, 197, kind, true);
            check(1, 2100, 5, kind, false);
        }
        check(1100, 70, 50, "f32", false);
    }

    /// Within a path, a row's value does not depend on the rows beside it, nor on the number of threads.
    #[test]
    fn rows_and_threads_do_not_matter() {
        for kind in KINDS {
            let w = weight(kind, 2, 300, 704);
            rows_and_threads(&w);
        }
    }

    fn rows_and_threads(w: &Weight) {
        for t in [4, 16, 75] {
            let x = random(1, &[t, 704]);
            let all = linear(&x, w, Epilogue::default());
            let few = linear(&x.rows(0, t.min(17 + t / 10)), w, Epilogue::default());
            assert_eq!(few.as_f32(), &all.as_f32()[..few.len()]);
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let again = pool.install(|| linear(&x, w, Epilogue::default()));
                assert_eq!(again.as_f32(), all.as_f32());
            }
        }
        let x = random(1, &[4, 704]);
        let all = linear(&x, w, Epilogue::default());
        for i in 0..4 {
            let one = linear(&x.rows(i, i + 1), w, Epilogue::default());
            assert_eq!(one.as_f32(), all.rows(i, i + 1).as_f32());
        }
    }
}
