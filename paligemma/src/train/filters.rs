//! The filters with which the patches of an image encoder are read at first, their spectrum evened out.
//!
//! Of the energy of a picture's patches most is their mean colour: in the playground's, three of 588 dimensions hold 88 %, nine
//! 95 %. Filters of white noise (big_vision's) hand this on, so that a small encoder sees colours for a long time before it sees
//! a shape. Here a filter is a sum of cosines, of which each has the larger a part the less of it is in pictures: their
//! deviations to the power of -`whiten`. 0.5 halves the spectrum's slope; 1 would make noise as strong as shapes.

/// How far deviations fall from frequency 0 on: 1 / (1 + SLOPE · f^1.5). By eye, from the
/// principal components of patches of the playground.
const SLOPE: f64 = 6.0;
/// Brightness, red against blue, green against both, of any length; and their deviations in pictures.
const COLOURS: [([f64; 3], f64); 3] =
    [([1.0, 1.0, 1.0], 1.0), ([1.0, 0.0, -1.0], 0.38), ([1.0, -2.0, 1.0], 0.2)];

/// Filters `[width, 3, patch, patch]` from independent numbers of variance 1. On pictures of this spectrum what they find has the
/// variance that white filters of variance 1 / (3 · patch²) would find. The upper half of the frequencies is left out.
pub(super) fn filters(width: usize, patch: usize, whiten: f64, number: &mut dyn FnMut() -> f64) -> Vec<f32> {
    let half = patch.div_ceil(2);
    // The orthonormal cosines of DCT-II.
    let cosine = |u: usize, i: usize| {
        let scale = if u == 0 { 1.0 } else { 2.0 } / patch as f64;
        scale.sqrt() * (std::f64::consts::PI * (i as f64 + 0.5) * u as f64 / patch as f64).cos()
    };
    let cosines: Vec<Vec<f64>> = (0..half).map(|u| (0..patch).map(|i| cosine(u, i)).collect()).collect();
    let deviation = |(_, strength): ([f64; 3], f64), u: usize, v: usize| {
        strength / (1.0 + SLOPE * ((u * u + v * v) as f64).powf(0.75))
    };
    let each = || COLOURS.into_iter().flat_map(|c| (0..half * half).map(move |f| (c, f / half, f % half)));
    let (mut white, mut found) = (0.0, 0.0);
    for (colour, u, v) in each() {
        let s = deviation(colour, u, v);
        white += s.powi(2);
        found += (s * s.powf(-whiten)).powi(2);
    }
    let scale = (white / found / (3 * patch * patch) as f64).sqrt();
    let mut all = vec![0f32; width * 3 * patch * patch];
    for filter in all.chunks_mut(3 * patch * patch) {
        for (colour, u, v) in each() {
            let length = colour.0.iter().map(|x| x * x).sum::<f64>().sqrt();
            let part = number() * scale / length * deviation(colour, u, v).powf(-whiten);
            for (channel, mix) in filter.chunks_mut(patch * patch).zip(colour.0) {
                for (row, &down) in channel.chunks_mut(patch).zip(&cosines[u]) {
                    row.iter_mut()
                        .zip(&cosines[v])
                        .for_each(|(x, across)| *x += (part * mix * down * across) as f32);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::super::two_towers::normal;
    use super::*;
    use crate::data::playground::{Playground, Split};

    /// As many as nano has: of few, the variance is a matter of chance.
    const WIDTH: usize = 192;

    /// The variance of what filters find in patches of the playground, and which part of it is not of the patches' mean colours.
    fn found(filters: &[f32], patch: usize) -> (f64, f64) {
        let side = 8 * patch;
        let (mut sums, mut squares, mut details, mut count) = (vec![0.0; WIDTH], vec![0.0; WIDTH], 0.0, 0.0);
        for index in 0..6 {
            let picture = &Playground::new(Split::Train, 3).example(index, None).unwrap().pictures(side)[0];
            for at in 0..64 {
                let (y, x) = (at / 8 * patch, at % 8 * patch);
                let pixel = |c: usize, i: usize, j: usize| {
                    f64::from(picture.rgb[((y + i) * side + x + j) * 3 + c]) / 127.5 - 1.0
                };
                let all =
                    || (0..3 * patch * patch).map(|k| (k, k / (patch * patch), k / patch % patch, k % patch));
                let mut mean = [0.0; 3];
                all().for_each(|(_, c, i, j)| mean[c] += pixel(c, i, j) / (patch * patch) as f64);
                for (d, filter) in filters.chunks(3 * patch * patch).enumerate() {
                    let (mut whole, mut detail) = (0.0, 0.0);
                    for (k, c, i, j) in all() {
                        whole += f64::from(filter[k]) * pixel(c, i, j);
                        detail += f64::from(filter[k]) * (pixel(c, i, j) - mean[c]);
                    }
                    sums[d] += whole;
                    squares[d] += whole * whole;
                    details += detail * detail;
                }
                count += 1.0;
            }
        }
        let variance: f64 =
            sums.iter().zip(&squares).map(|(sum, square)| square / count - (sum / count).powi(2)).sum();
        (variance / WIDTH as f64, details / count / variance)
    }

    #[test]
    fn they_find_as_much_and_more_of_it_is_detail() {
        let patch = 14;
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut number = || normal(&mut rng);
        let flat = (3.0 * (patch * patch) as f64).powf(-0.5);
        let white: Vec<f32> = (0..WIDTH * 3 * patch * patch).map(|_| (flat * number()) as f32).collect();
        let (usual, little) = found(&white, patch);
        let mut last = little;
        for whiten in [0.25, 0.5] {
            let (variance, detail) = found(&filters(WIDTH, patch, whiten, &mut number), patch);
            assert!((0.4..2.5).contains(&(variance / usual)), "{whiten}: {variance} in place of {usual}");
            assert!(detail > 1.25 * last, "{whiten}: {detail}, with less {last}");
            last = detail;
        }
    }
}
