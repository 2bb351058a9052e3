//! Table rows by index, and images as rows of patches.

use crate::{Isa, Tensor, Weight};

/// Rows `ids` of `table_vd`, each multiplied by `scale` → f32 `[ids, d]`. Panics on an id beyond the table.
pub fn embedding(table_vd: &Weight, ids: &[u32], scale: f32) -> Tensor {
    let [_, d] = table_vd.shape();
    let mut y = vec![0.0; ids.len() * d];
    for (&id, row) in ids.iter().zip(y.chunks_mut(d)) {
        table_vd.widen(Isa::best(), id as usize, 0, row);
        row.iter_mut().for_each(|x| *x *= scale);
    }
    Tensor::from_f32(y, &[ids.len(), d])
}

/// The gradient of [`embedding`], added to that of the table, f32 `[v, d]`: row `ids[i]` gets `dy_td[i]` times `scale`,
/// one after the other.
pub fn add_embedding_gradient(dy_td: &Tensor, ids: &[u32], scale: f32, table_vd: &mut [f32]) {
    let d = dy_td.shape()[1];
    for (&id, dy) in ids.iter().zip(dy_td.as_f32().chunks(d)) {
        let row = &mut table_vd[id as usize * d..][..d];
        row.iter_mut().zip(dy).for_each(|(row, dy)| *row += dy * scale);
    }
}

/// Square patches of images `[b, c, side, side]`, row by row of the grid, each as its c·p·p numbers in the order of a
/// convolution's weights `[d, c, p, p]`: a patch convolution is then a linear layer. → `[b·(side/p)², c·p·p]`
pub fn patches(images_bchw: &Tensor, patch: usize) -> Tensor {
    let &[b, c, height, width] = images_bchw.shape() else { panic!("patches of {images_bchw:?}") };
    let (rows, cols) = (height / patch, width / patch);
    let x = images_bchw.as_f32();
    let mut y = Vec::with_capacity(b * rows * cols * c * patch * patch);
    for image in 0..b {
        for row in 0..rows {
            for col in 0..cols {
                for channel in 0..c {
                    for line in 0..patch {
                        let at = ((image * c + channel) * height + row * patch + line) * width + col * patch;
                        y.extend_from_slice(&x[at..at + patch]);
                    }
                }
            }
        }
    }
    Tensor::from_f32(y, &[b * rows * cols, c * patch * patch])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        testing::{check_gradient, random},
    };

    #[test]
    fn the_gradient_is_finite_differences() {
        let (table, dy) = (random(1, &[5, 43]), random(2, &[6, 43]));
        let ids = [4, 0, 4, 2, 4, 0];
        let mut gradient = Tensor::zeros(&[5, 43]);
        add_embedding_gradient(&dy, &ids, 1.5, gradient.as_f32_mut());
        check_gradient("table", &table, &gradient, &dy, |table| embedding(&table.clone().into(), &ids, 1.5));
    }

    #[test]
    fn embedding_scales_rows() {
        let table = random(1, &[5, 3]).cast(DType::BF16);
        let y = embedding(&table.clone().into(), &[4, 0, 4], 2.0);
        let wide = table.to_f32_vec();
        let want: Vec<f32> =
            [4, 0, 4].iter().flat_map(|&r| wide[r * 3..r * 3 + 3].to_vec()).map(|x| x * 2.0).collect();
        assert_eq!(y.as_f32(), want);
    }

    /// Every number of the image stands where its patch, channel, line and column say; a margin that fills no patch is left out.
    #[test]
    fn patches_follow_the_convolution() {
        let (b, c, side, p) = (2, 3, 7, 3);
        let x = random(1, &[b, c, side, side]);
        let y = patches(&x, p);
        assert_eq!(y.shape(), [b * 4, c * p * p]);
        for (at, &value) in y.as_f32().iter().enumerate() {
            let (token, inner) = (at / (c * p * p), at % (c * p * p));
            let (image, grid) = (token / 4, token % 4);
            let (channel, line, col) = (inner / (p * p), inner / p % p, inner % p);
            let (row, column) = (grid / 2 * p + line, grid % 2 * p + col);
            assert_eq!(value, x.as_f32()[((image * c + channel) * side + row) * side + column]);
        }
    }
}
