//! How the masks' VQ-VAE learns: the mean square of what the decoder makes of the codes, straight through the look-up, and a
//! commitment of the encoder to the entries; the codebook itself follows moving averages of what chose its entries.
//! Reference: AiT (arXiv 2301.02229), vae/models/VQVAE.py, after arXiv 1711.00937 (appendix A.1).
//!
//! Legend: N masks, E = 512 width of a code, K = 128 entries.

use super::{
    VqVae,
    vqvae::{CODEBOOK, NUM_CODES, WIDTH, centred},
};
use paligemma_tensor::{Contribution, Tape, Tensor};

/// What may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VqVaeOptions {
    /// How much of a moving average stays at each step.
    pub decay: f64,
    /// The factor of the commitment.
    pub commitment: f64,
    /// An entry that fewer vectors choose in a step, on the moving average, is put on one of the step's vectors; 0 never does.
    pub revive_below: f64,
}

impl Default for VqVaeOptions {
    /// AiT's, which revives none.
    fn default() -> Self {
        VqVaeOptions { decay: 0.99, commitment: 0.25, revive_below: 0.0 }
    }
}

/// The moving averages that the codebook is made of.
#[derive(Debug, Clone)]
pub struct CodebookAverage {
    /// Of how many vectors chose an entry, `[K]`.
    pub counts: Tensor,
    /// Of the sum of those vectors, `[K, E]`.
    pub sums: Tensor,
}

/// The parts of a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VqVaeLoss {
    /// Mean square of decoded against wanted masks, from -1 to 1.
    pub reconstruction: f64,
    /// Mean square of embedded vectors against their entries, times its factor.
    pub commitment: f64,
    /// Entries that the batch chose.
    pub used: usize,
}

impl CodebookAverage {
    /// As if the codebook of `model` had been chosen once by each of its entries.
    pub fn of(model: &VqVae) -> CodebookAverage {
        CodebookAverage {
            counts: Tensor::from_f32(vec![1.0; CODEBOOK], &[CODEBOOK]),
            sums: model.embedding.clone(),
        }
    }

    /// Takes in that `x_te` chose `codes` → the codebook.
    fn follow(&mut self, x_te: &Tensor, codes: &[u8], options: &VqVaeOptions) -> Tensor {
        let (mut counts, mut sums) = (vec![0f64; CODEBOOK], vec![0f64; CODEBOOK * WIDTH]);
        for (x, &code) in x_te.as_f32().chunks_exact(WIDTH).zip(codes) {
            let code = usize::from(code);
            counts[code] += 1.0;
            let sums = &mut sums[code * WIDTH..][..WIDTH];
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let average = |old: &mut Tensor, new: &[f64]| {
            for (old, new) in old.as_f32_mut().iter_mut().zip(new) {
                *old = (f64::from(*old) * options.decay + new * (1.0 - options.decay)) as f32;
            }
        };
        average(&mut self.counts, &counts);
        average(&mut self.sums, &sums);
        self.revive(x_te, options.revive_below);
        // Laplace smoothing keeps the size of an entry that nothing chooses finite.
        const SMALL: f64 = 1e-5;
        let all: f64 = self.counts.as_f32().iter().map(|&n| f64::from(n)).sum();
        let size = |n: f32| (f64::from(n) + SMALL) / (all + CODEBOOK as f64 * SMALL) * all;
        let rows = self.sums.as_f32().chunks_exact(WIDTH).zip(self.counts.as_f32());
        let entries = rows.flat_map(|(row, &n)| row.iter().map(move |x| (f64::from(*x) / size(n)) as f32));
        Tensor::from_f32(entries.collect(), &[CODEBOOK, WIDTH])
    }

    /// Entries that fewer than `below` choose are put on vectors of the step, evenly apart, and count as chosen so often.
    fn revive(&mut self, x_te: &Tensor, below: f64) {
        let rows = x_te.shape()[0];
        let is_dead = |n: &f32| f64::from(*n) < below;
        let dead: Vec<usize> = (0..CODEBOOK).filter(|&i| is_dead(&self.counts.as_f32()[i])).collect();
        for (i, &entry) in dead.iter().enumerate() {
            let from = &x_te.as_f32()[i * rows / dead.len() * WIDTH..][..WIDTH];
            self.counts.as_f32_mut()[entry] = below as f32;
            let to = &mut self.sums.as_f32_mut()[entry * WIDTH..][..WIDTH];
            to.iter_mut().zip(from).for_each(|(to, x)| *to = x * below as f32);
        }
    }
}

impl VqVae {
    /// One step on masks `[N, 64, 64]` from 0 to 1: each weight, at its place in [`VqVae::tensors`], and its gradient are told
    /// to `update`; the codebook follows `average` afterwards.
    pub fn learn(
        &mut self,
        masks_nhw: &Tensor,
        average: &mut CodebookAverage,
        options: &VqVaeOptions,
        update: &mut dyn FnMut(usize, &mut Tensor, Contribution),
    ) -> VqVaeLoss {
        let mut tape = Tape::on();
        let x_te = self.encoder(masks_nhw, &mut tape);
        let codes = self.nearest(x_te.tensor());
        assert_eq!(codes.len(), masks_nhw.shape()[0] * NUM_CODES);
        let entries = self.look_up(&codes);
        // e_latent_loss = F.mse_loss(quantized.detach(), inputs); quantized = inputs + (quantized - inputs).detach()
        let (committed, commitment) = tape.mean_square(&x_te, &entries, options.commitment);
        let quantized = tape.straight_through(&x_te, entries);
        let masks = self.decoder(&quantized, &mut tape);
        let (reconstructed, reconstruction) = tape.mean_square(&masks, &centred(masks_nhw), 1.0);
        let loss = tape.add(&committed, &reconstructed);
        let embedded = x_te.into_tensor();
        tape.backward(&loss, Tensor::from_f32(vec![1.0], &[1]), &mut |id, part| {
            if let Some(weight) = self.wanted_mut(id) {
                update(id, weight, part);
            }
        });
        self.embedding = average.follow(&embedded, &codes, options);
        let mut used = [false; CODEBOOK];
        codes.iter().for_each(|&code| used[usize::from(code)] = true);
        VqVaeLoss { reconstruction, commitment, used: used.iter().filter(|used| **used).count() }
    }
}
