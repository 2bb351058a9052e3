//! Convolutions of small pictures, their activation and the gradients of both, in f32.
//!
//! Contract. Pictures are `[n, h, w, c]`, channels last; weights stand as PyTorch stores them. A convolution is a product
//! with [`linear`]: its patches are laid out as rows, or the rows of its product are added up where they fall; each of the two
//! is the other's gradient. Padding is of zeros. An element does not depend on the number of threads.
//!
//! Legend: n pictures, h and w their sides, c channels in, o channels out, i and j rows and columns of the kernel.

use crate::{
    DType, Epilogue, Tensor, Weight, bias_gradient, input_gradient, linear,
    parallel::{Shared, for_each_task},
    weight_gradient,
};

/// Which pixels of a large picture belong to a patch of a small one: pixel (y·stride + i − padding, …) to patch y.
#[derive(Clone, Copy)]
struct Patches {
    /// Pictures.
    n: usize,
    /// Sides of the large picture.
    large: (usize, usize),
    /// Sides of the small picture, whose pixels are the patches.
    small: (usize, usize),
    kernel: (usize, usize),
    stride: usize,
    padding: usize,
}

impl Patches {
    /// Of the large picture's pixels, `c` numbers each → `[n · patches, i · j · c]`.
    fn gather(&self, x: &[f32], c: usize) -> Tensor {
        let Patches { n, large: (h, w), small: (sh, sw), kernel: (ki, kj), stride, padding } = *self;
        let patch = ki * kj * c;
        let mut patches = vec![0.0; n * sh * sw * patch];
        let out = Shared::new(&mut patches);
        for_each_task(n * sh, |task| {
            let (picture, y) = (task / sh, task % sh);
            // SAFETY: each task writes the patches of its own row of one picture.
            let row = unsafe { out.slice(task * sw * patch, sw * patch) };
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
        Tensor::from_f32(patches, &[n * sh * sw, patch])
    }

    /// The sums of what falls on each pixel of the large picture: `parts` `[n · patches, i · j · o]`, on top of `start` `[o]`
    /// → `[n, h, w, o]`.
    fn add_up(&self, parts: &[f32], start: &[f32]) -> Tensor {
        let Patches { n, large: (h, w), small: (sh, sw), kernel: (ki, kj), stride, padding } = *self;
        let o = start.len();
        let mut y = vec![0.0; n * h * w * o];
        let out = Shared::new(&mut y);
        // The patch that reaches place `at` through the kernel's index k, if there is one.
        let source = |at: usize, k: usize, len: usize| {
            let s = (at + padding).checked_sub(k)?;
            (s.is_multiple_of(stride) && s / stride < len).then_some(s / stride)
        };
        for_each_task(n * h, |task| {
            let (picture, y) = (task / h, task % h);
            // SAFETY: each task writes its own row of one picture.
            let row = unsafe { out.slice(task * w * o, w * o) };
            for (x, pixel) in row.chunks_mut(o).enumerate() {
                pixel.copy_from_slice(start);
                for i in 0..ki {
                    let Some(sy) = source(y, i, sh) else { continue };
                    for j in 0..kj {
                        let Some(sx) = source(x, j, sw) else { continue };
                        let from = (((picture * sh + sy) * sw + sx) * ki * kj + i * kj + j) * o;
                        pixel.iter_mut().zip(&parts[from..from + o]).for_each(|(y, p)| *y += p);
                    }
                }
            }
        });
        Tensor::from_f32(y, &[n, h, w, o])
    }
}

/// What [`conv2d`] of these shapes does.
fn convolved(x_nhwc: &Tensor, w_ocij: &Tensor, stride: usize, padding: usize) -> Patches {
    let [n, h, w, c] = four(x_nhwc);
    let [_, wc, ki, kj] = four(w_ocij);
    assert_eq!(c, wc, "channels of {x_nhwc:?} and {w_ocij:?}");
    assert!(h + 2 * padding >= ki && w + 2 * padding >= kj, "kernel {w_ocij:?} on {x_nhwc:?}");
    let small = ((h + 2 * padding - ki) / stride + 1, (w + 2 * padding - kj) / stride + 1);
    Patches { n, large: (h, w), small, kernel: (ki, kj), stride, padding }
}

/// What [`conv_transpose2d`] of these shapes does.
fn transposed(x_nhwc: &Tensor, w_coij: &Tensor, stride: usize, padding: usize) -> Patches {
    let [n, h, w, c] = four(x_nhwc);
    let [wc, _, ki, kj] = four(w_coij);
    assert_eq!(c, wc, "channels of {x_nhwc:?} and {w_coij:?}");
    let large = transposed_size((h, w), (ki, kj), stride, padding);
    Patches { n, large, small: (h, w), kernel: (ki, kj), stride, padding }
}

/// A kernel as (row, column, channel), so that a pixel's channels lie in one piece: `[o, i·j·c]`.
fn conv_weight(w_ocij: &Tensor) -> Weight {
    let [o, c, ki, kj] = four(w_ocij);
    w_ocij.permute(&[0, 2, 3, 1]).reshape(&[o, ki * kj * c]).into()
}

/// The same of a transposed convolution: `[i·j·o, c]`.
fn transposed_weight(w_coij: &Tensor) -> Weight {
    let [c, o, ki, kj] = four(w_coij);
    w_coij.permute(&[2, 3, 1, 0]).reshape(&[ki * kj * o, c]).into()
}

/// Cross-correlation (`torch.nn.Conv2d`): `x_nhwc`, `w_ocij`, bias `[o]` → `[n, h', w', o]` with
/// h' = (h + 2·padding − i) / stride + 1. Panics where the kernel is larger than the padded picture.
pub fn conv2d(x_nhwc: &Tensor, w_ocij: &Tensor, bias_o: &Tensor, stride: usize, padding: usize) -> Tensor {
    let places = convolved(x_nhwc, w_ocij, stride, padding);
    let ([n, _, _, c], [o, ..]) = (four(x_nhwc), four(w_ocij));
    let bias = Epilogue { bias: Some(bias_o), ..Epilogue::default() };
    let rows = patch_rows(x_nhwc, places, c);
    linear(&rows, &conv_weight(w_ocij), bias).reshape(&[n, places.small.0, places.small.1, o])
}

/// The patches of x; where they are its pixels, those.
fn patch_rows(x_nhwc: &Tensor, places: Patches, c: usize) -> Tensor {
    if (places.kernel, places.stride, places.padding) == ((1, 1), 1, 0) {
        return x_nhwc.reshape(&[x_nhwc.len() / c.max(1), c]);
    }
    places.gather(x_nhwc.as_f32(), c)
}

/// The gradients of a convolution.
#[derive(Debug, Clone)]
pub struct ConvolutionGradients {
    /// By the picture, `[n, h, w, c]`, if asked for.
    pub dx: Option<Tensor>,
    /// By the weights, in their shape.
    pub dweight: Tensor,
    /// By the bias, `[o]`.
    pub dbias: Tensor,
}

/// The gradients of [`conv2d`], given that of its result.
pub fn conv2d_backward(
    x_nhwc: &Tensor,
    w_ocij: &Tensor,
    stride: usize,
    padding: usize,
    dy_nhwo: &Tensor,
    wants_dx: bool,
) -> ConvolutionGradients {
    let places = convolved(x_nhwc, w_ocij, stride, padding);
    let ([_, _, _, c], [o, _, ki, kj]) = (four(x_nhwc), four(w_ocij));
    let dy = dy_nhwo.reshape(&[dy_nhwo.len() / o.max(1), o]);
    let rows = patch_rows(x_nhwc, places, c);
    let dweight = weight_gradient(&dy, &rows, DType::F32).reshape(&[o, ki, kj, c]).permute(&[0, 3, 1, 2]);
    let dx = wants_dx.then(|| {
        let parts = input_gradient(&dy, &conv_weight(w_ocij));
        places.add_up(parts.as_f32(), &vec![0.0; c])
    });
    ConvolutionGradients { dx, dweight, dbias: bias_gradient(&dy) }
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
    let places = transposed(x_nhwc, w_coij, stride, padding);
    let ([n, h, w, c], [_, o, ..]) = (four(x_nhwc), four(w_coij));
    let bias = bias_o.to_f32_vec();
    assert_eq!(bias.len(), o, "bias of {w_coij:?}");
    // What each pixel gives to each place of the kernel, then the sums of what falls together.
    let x = x_nhwc.reshape(&[n * h * w, c]);
    let parts = linear(&x, &transposed_weight(w_coij), Epilogue::default());
    places.add_up(parts.as_f32(), &bias)
}

/// The gradients of [`conv_transpose2d`], given that of its result.
pub fn conv_transpose2d_backward(
    x_nhwc: &Tensor,
    w_coij: &Tensor,
    stride: usize,
    padding: usize,
    dy_nhwo: &Tensor,
    wants_dx: bool,
) -> ConvolutionGradients {
    let places = transposed(x_nhwc, w_coij, stride, padding);
    let ([n, h, w, c], [_, o, ki, kj]) = (four(x_nhwc), four(w_coij));
    let dparts = places.gather(dy_nhwo.as_f32(), o);
    let x = x_nhwc.reshape(&[n * h * w, c]);
    let dweight = weight_gradient(&dparts, &x, DType::F32).reshape(&[ki, kj, o, c]).permute(&[3, 2, 0, 1]);
    let dx = wants_dx.then(|| input_gradient(&dparts, &transposed_weight(w_coij)).reshape(x_nhwc.shape()));
    let dbias = bias_gradient(&dy_nhwo.reshape(&[dy_nhwo.len() / o.max(1), o]));
    ConvolutionGradients { dx, dweight, dbias }
}

/// max(x, 0) on every element, f32.
pub fn relu(x: &Tensor) -> Tensor {
    Tensor::from_f32(x.as_f32().iter().map(|x| x.max(0.0)).collect(), x.shape())
}

/// The gradient of [`relu`], given its result `y`: dy where y is positive.
pub fn relu_backward(y: &Tensor, dy: &Tensor) -> Tensor {
    let pairs = y.as_f32().iter().zip(dy.as_f32());
    Tensor::from_f32(pairs.map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }).collect(), y.shape())
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
    use crate::testing::{assert_close, check_gradient, random};
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

    #[test]
    fn gradients_are_finite_differences() {
        for (h, w, k, stride, padding) in [(6, 5, 4, 2, 1), (4, 7, 3, 1, 1), (3, 3, 1, 1, 0), (7, 6, 2, 3, 0)]
        {
            let (c, o) = (3, 5);
            let (x, bias) = (random(1, &[2, h, w, c]), random(3, &[o]));
            let weight = random(2, &[o, c, k, k]);
            let f = |x: &Tensor, w: &Tensor, b: &Tensor| conv2d(x, w, b, stride, padding);
            let dy = random(4, f(&x, &weight, &bias).shape());
            let got = conv2d_backward(&x, &weight, stride, padding, &dy, true);
            check_gradient("conv x", &x, &got.dx.unwrap(), &dy, |x| f(x, &weight, &bias));
            check_gradient("conv w", &weight, &got.dweight, &dy, |w| f(&x, w, &bias));
            check_gradient("conv bias", &bias, &got.dbias, &dy, |b| f(&x, &weight, b));

            let weight = random(2, &[c, o, k, k]);
            let f = |x: &Tensor, w: &Tensor, b: &Tensor| conv_transpose2d(x, w, b, stride, padding);
            let dy = random(4, f(&x, &weight, &bias).shape());
            let got = conv_transpose2d_backward(&x, &weight, stride, padding, &dy, true);
            check_gradient("transposed x", &x, &got.dx.unwrap(), &dy, |x| f(x, &weight, &bias));
            check_gradient("transposed w", &weight, &got.dweight, &dy, |w| f(&x, w, &bias));
            check_gradient("transposed bias", &bias, &got.dbias, &dy, |b| f(&x, &weight, b));
        }
        let (y, dy) = ([-1.0, 0.0, 2.0], [3.0, 4.0, 5.0]);
        let [y, dy] = [y, dy].map(|x| Tensor::from_f32(x.to_vec(), &[3]));
        assert_eq!(relu_backward(&relu(&y), &dy).as_f32(), [0.0, 0.0, 5.0]);
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
