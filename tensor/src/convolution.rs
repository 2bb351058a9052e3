//! Convolutions of small pictures and their activation, in f32.
//!
//! Contract. Pictures are `[n, h, w, c]`, channels last; weights stand as PyTorch stores them. A convolution is a product
//! with [`linear`]: its patches are laid out as rows, or the rows of its product are added up where they fall. Padding
//! is of zeros. An element does not depend on the number of threads.
//!
//! Legend: n pictures, h and w their sides, c channels in, o channels out, i and j rows and columns of the kernel.

use crate::{
    Epilogue, Tensor, linear,
    parallel::{Shared, for_each_task},
};

/// Cross-correlation (`torch.nn.Conv2d`): `x_nhwc`, `w_ocij`, bias `[o]` → `[n, h', w', o]` with
/// h' = (h + 2·padding − i) / stride + 1. Panics where the kernel is larger than the padded picture.
pub fn conv2d(x_nhwc: &Tensor, w_ocij: &Tensor, bias_o: &Tensor, stride: usize, padding: usize) -> Tensor {
    let [n, h, w, c] = four(x_nhwc);
    let [o, wc, ki, kj] = four(w_ocij);
    assert_eq!(c, wc, "channels of {x_nhwc:?} and {w_ocij:?}");
    assert!(h + 2 * padding >= ki && w + 2 * padding >= kj, "kernel {w_ocij:?} on {x_nhwc:?}");
    let (oh, ow) = ((h + 2 * padding - ki) / stride + 1, (w + 2 * padding - kj) / stride + 1);
    // A kernel as (row, column, channel), so that a pixel's channels are copied in one piece.
    let w_ok = w_ocij.permute(&[0, 2, 3, 1]).reshape(&[o, ki * kj * c]).into();
    let bias = Epilogue { bias: Some(bias_o), ..Epilogue::default() };
    if (ki, kj, stride, padding) == (1, 1, 1, 0) {
        return linear(&x_nhwc.reshape(&[n * h * w, c]), &w_ok, bias).reshape(&[n, h, w, o]);
    }
    let x = x_nhwc.as_f32();
    let patch = ki * kj * c;
    let mut patches = vec![0.0; n * oh * ow * patch];
    let out = Shared::new(&mut patches);
    for_each_task(n * oh, |task| {
        let (picture, y) = (task / oh, task % oh);
        // SAFETY: each task writes the patches of its own row of one picture.
        let row = unsafe { out.slice(task * ow * patch, ow * patch) };
        for i in 0..ki {
            let Some(sy) = (y * stride + i).checked_sub(padding).filter(|&sy| sy < h) else { continue };
            for (at, patch) in row.chunks_mut(patch).enumerate() {
                for j in 0..kj {
                    let Some(sx) = (at * stride + j).checked_sub(padding).filter(|&sx| sx < w) else {
                        continue;
                    };
                    let from = ((picture * h + sy) * w + sx) * c;
                    let to = (i * kj + j) * c;
                    patch[to..to + c].copy_from_slice(&x[from..from + c]);
                }
            }
        }
    });
    let rows = Tensor::from_f32(patches, &[n * oh * ow, patch]);
    linear(&rows, &w_ok, bias).reshape(&[n, oh, ow, o])
}

/// Transposed convolution (`torch.nn.ConvTranspose2d`): `x_nhwc`, `w_coij`, bias `[o]` → `[n, h', w', o]` with
/// h' = (h − 1)·stride + i − 2·padding. Panics where that is not positive.
pub fn conv_transpose2d(
    x_nhwc: &Tensor,
    w_coij: &Tensor,
    bias_o: &Tensor,
    stride: usize,
    padding: usize,
) -> Tensor {
    let [n, h, w, c] = four(x_nhwc);
    let [wc, o, ki, kj] = four(w_coij);
    assert_eq!(c, wc, "channels of {x_nhwc:?} and {w_coij:?}");
    let (oh, ow) = transposed_size((h, w), (ki, kj), stride, padding);
    let w_kc = w_coij.permute(&[2, 3, 1, 0]).reshape(&[ki * kj * o, c]).into();
    // What each pixel gives to each place of the kernel, then the sums of what falls together.
    let parts = linear(&x_nhwc.reshape(&[n * h * w, c]), &w_kc, Epilogue::default());
    let (parts, bias) = (parts.as_f32(), bias_o.to_f32_vec());
    assert_eq!(bias.len(), o, "bias of {w_coij:?}");
    let mut y = vec![0.0; n * oh * ow * o];
    let out = Shared::new(&mut y);
    // The source of place `at` through the kernel's index k, if one falls there.
    let source = |at: usize, k: usize, len: usize| {
        let s = (at + padding).checked_sub(k)?;
        (s.is_multiple_of(stride) && s / stride < len).then_some(s / stride)
    };
    for_each_task(n * oh, |task| {
        let (picture, y) = (task / oh, task % oh);
        // SAFETY: each task writes its own row of one picture.
        let row = unsafe { out.slice(task * ow * o, ow * o) };
        for (x, pixel) in row.chunks_mut(o).enumerate() {
            pixel.copy_from_slice(&bias);
            for i in 0..ki {
                let Some(sy) = source(y, i, h) else { continue };
                for j in 0..kj {
                    let Some(sx) = source(x, j, w) else { continue };
                    let from = (((picture * h + sy) * w + sx) * ki * kj + i * kj + j) * o;
                    pixel.iter_mut().zip(&parts[from..from + o]).for_each(|(y, p)| *y += p);
                }
            }
        }
    });
    Tensor::from_f32(y, &[n, oh, ow, o])
}

/// max(x, 0) on every element, f32.
pub fn relu(x: &Tensor) -> Tensor {
    Tensor::from_f32(x.as_f32().iter().map(|x| x.max(0.0)).collect(), x.shape())
}

/// The slow, obvious [`conv2d`]: one loop per index, sums in f64.
pub fn conv2d_plain(
    x_nhwc: &Tensor,
    w_ocij: &Tensor,
    bias_o: &Tensor,
    stride: usize,
    padding: usize,
) -> Tensor {
    let [n, h, w, c] = four(x_nhwc);
    let [o, _, ki, kj] = four(w_ocij);
    let (oh, ow) = ((h + 2 * padding - ki) / stride + 1, (w + 2 * padding - kj) / stride + 1);
    let (x, weight, bias) = (x_nhwc.as_f32(), w_ocij.to_f32_vec(), bias_o.to_f32_vec());
    let mut y = Vec::with_capacity(n * oh * ow * o);
    for (picture, row, column, channel) in indices([n, oh, ow, o]) {
        let mut sum = f64::from(bias[channel]);
        for (cc, i, j, _) in indices([c, ki, kj, 1]) {
            let (sy, sx) = (row * stride + i, column * stride + j);
            if (padding..h + padding).contains(&sy) && (padding..w + padding).contains(&sx) {
                let from = ((picture * h + sy - padding) * w + sx - padding) * c + cc;
                sum += f64::from(x[from]) * f64::from(weight[((channel * c + cc) * ki + i) * kj + j]);
            }
        }
        y.push(sum as f32);
    }
    Tensor::from_f32(y, &[n, oh, ow, o])
}

/// The slow, obvious [`conv_transpose2d`]: every pixel is strewn through the kernel, sums in f64.
pub fn conv_transpose2d_plain(
    x_nhwc: &Tensor,
    w_coij: &Tensor,
    bias_o: &Tensor,
    stride: usize,
    padding: usize,
) -> Tensor {
    let [n, h, w, c] = four(x_nhwc);
    let [_, o, ki, kj] = four(w_coij);
    let (oh, ow) = transposed_size((h, w), (ki, kj), stride, padding);
    let (x, weight) = (x_nhwc.as_f32(), w_coij.to_f32_vec());
    let bias: Vec<f64> = bias_o.to_f32_vec().into_iter().map(f64::from).collect();
    let mut y = bias.repeat(n * oh * ow);
    for (picture, row, column, cc) in indices([n, h, w, c]) {
        for (channel, i, j, _) in indices([o, ki, kj, 1]) {
            let (ty, tx) = (row * stride + i, column * stride + j);
            if (padding..oh + padding).contains(&ty) && (padding..ow + padding).contains(&tx) {
                let to = ((picture * oh + ty - padding) * ow + tx - padding) * o + channel;
                y[to] += f64::from(x[((picture * h + row) * w + column) * c + cc])
                    * f64::from(weight[((cc * o + channel) * ki + i) * kj + j]);
            }
        }
    }
    Tensor::from_f32(y.into_iter().map(|y| y as f32).collect(), &[n, oh, ow, o])
}

fn four(x: &Tensor) -> [usize; 4] {
    *x.shape().as_array().unwrap_or_else(|| panic!("four dimensions, not {x:?}"))
}

fn transposed_size(
    (h, w): (usize, usize),
    (ki, kj): (usize, usize),
    stride: usize,
    padding: usize,
) -> (usize, usize) {
    let side = |from: usize, k: usize| {
        let side = ((from - 1) * stride + k).checked_sub(2 * padding).filter(|&side| side > 0);
        side.unwrap_or_else(|| panic!("{padding} of padding leave nothing of {from}"))
    };
    (side(h, ki), side(w, kj))
}

/// All indices below four bounds, the last fastest.
fn indices([a, b, c, d]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equal_the_plain_twins(
            (n, h, w) in (1usize..4, 1usize..12, 1usize..12),
            (c, o) in (1usize..20, 1usize..20),
            (ki, kj) in (1usize..5, 1usize..5),
            stride in 1usize..4,
            padding in 0usize..3,
        ) {
            let x = random(1, &[n, h, w, c]);
            let bias = random(3, &[o]);
            if h + 2 * padding >= ki && w + 2 * padding >= kj {
                let weight = random(2, &[o, c, ki, kj]);
                let got = conv2d(&x, &weight, &bias, stride, padding);
                assert_close(&got, &conv2d_plain(&x, &weight, &bias, stride, padding), 2e-5);
            }
            if (h - 1) * stride + ki > 2 * padding && (w - 1) * stride + kj > 2 * padding {
                let weight = random(2, &[c, o, ki, kj]);
                let got = conv_transpose2d(&x, &weight, &bias, stride, padding);
                assert_close(&got, &conv_transpose2d_plain(&x, &weight, &bias, stride, padding), 2e-5);
            }
        }
    }

    /// Small enough to be done by hand: PyTorch gives the same.
    #[test]
    fn by_hand() {
        let x = Tensor::from_f32(vec![1.0, 2.0, 3.0, 4.0], &[1, 2, 2, 1]);
        let weight = Tensor::from_f32(vec![1.0, 10.0, 100.0, 1000.0], &[1, 1, 2, 2]);
        let bias = Tensor::from_f32(vec![0.5], &[1]);
        assert_eq!(conv2d(&x, &weight, &bias, 1, 0).as_f32(), [4321.5]);
        assert_eq!(conv2d(&x, &weight, &bias, 2, 1).as_f32(), [1000.5, 200.5, 30.5, 4.5]);
        assert_eq!(
            conv_transpose2d(&x, &weight, &bias, 1, 0).as_f32(),
            [1.5, 12.5, 20.5, 103.5, 1234.5, 2040.5, 300.5, 3400.5, 4000.5]
        );
        assert_eq!(relu(&Tensor::from_f32(vec![-1.0, 0.0, 2.0], &[3])).as_f32(), [0.0, 0.0, 2.0]);
    }
}
