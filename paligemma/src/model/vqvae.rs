//! The masks' VQ-VAE: a mask of 64×64 ⇄ sixteen codes.
//! Reference: big_vision pp/proj/paligemma/segmentation.py (encoder), evaluators/proj/paligemma/transfers/segmentation.py
//! (decoder); after AiT (arXiv 2301.02229), whose tensor names and layouts the published `vae-oid.npz` has.
//!
//! Legend: N masks, E = 512 width of a code, C = 128 channels.

use crate::{Error, Result};
use paligemma_tensor::{Tensor, add, conv_transpose2d, conv2d, relu};

/// Sides of a mask.
const SIDE: usize = 64;
/// Sides of the grid of codes.
const GRID: usize = 4;
/// Codes of a mask, row by row.
const NUM_CODES: usize = GRID * GRID;
/// Entries of the codebook.
const CODEBOOK: usize = 128;
/// Width of an entry.
const WIDTH: usize = 512;
/// Channels around the residual blocks.
const CHANNELS: usize = 128;
/// Channels that the encoder goes through, halving the sides at each step.
const DOWN: [usize; 5] = [1, 16, 32, 64, CHANNELS];
/// Channels that the decoder goes through, doubling the sides at each step.
const UP: [usize; 5] = [CHANNELS, CHANNELS, 64, 32, 16];

/// The masks' encoder, codebook and decoder.
#[derive(Debug, Clone)]
pub struct VqVae {
    down: Vec<Layer>,
    encoder_blocks: [Block; 2],
    to_code: Layer,
    /// `[CODEBOOK, E]`
    embedding: Tensor,
    from_code: Layer,
    decoder_blocks: [Block; 2],
    up: Vec<Layer>,
    to_mask: Layer,
}

/// A convolution: weights as PyTorch stores them, and the bias.
#[derive(Debug, Clone)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

/// x + three convolutions of x.
#[derive(Debug, Clone)]
struct Block([Layer; 3]);

impl VqVae {
    /// The published names and shapes of all tensors.
    pub fn tensors() -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut layer = |name: String, shape: [usize; 4], out: usize| {
            all.push((format!("{name}.weight"), shape.to_vec()));
            all.push((format!("{name}.bias"), vec![out]));
        };
        let c = CHANNELS;
        let block = |layer: &mut dyn FnMut(String, [usize; 4], usize), name: &str| {
            layer(format!("{name}.net.0"), [c, c, 3, 3], c);
            layer(format!("{name}.net.2"), [c, c, 3, 3], c);
            layer(format!("{name}.net.4"), [c, c, 1, 1], c);
        };
        for (i, step) in DOWN.windows(2).enumerate() {
            layer(format!("encoder.{}", 2 * i), [step[1], step[0], 4, 4], step[1]);
        }
        block(&mut layer, "encoder.8");
        block(&mut layer, "encoder.9");
        layer("encoder.10".into(), [WIDTH, c, 1, 1], WIDTH);
        layer("decoder.0".into(), [c, WIDTH, 1, 1], c);
        block(&mut layer, "decoder.2");
        block(&mut layer, "decoder.3");
        for (i, step) in UP.windows(2).enumerate() {
            layer(format!("decoder.{}", 4 + 2 * i), [step[0], step[1], 4, 4], step[1]);
        }
        layer("decoder.12".into(), [1, UP[4], 1, 1], 1);
        all.push(("_vq_vae._embedding".into(), vec![CODEBOOK, WIDTH]));
        all
    }

    /// Whether a tensor of a published file only served its training.
    pub fn is_ignorable(name: &str) -> bool {
        name.starts_with("_vq_vae._ema_")
    }

    /// Takes the tensors of [`VqVae::tensors`] from a function.
    ///
    /// # Errors
    /// What the function reports; a tensor of another shape.
    pub fn load(get: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<VqVae> {
        let shapes: std::collections::HashMap<_, _> = VqVae::tensors().into_iter().collect();
        let mut take = |name: String| {
            let tensor = get(&name)?.cast(paligemma_tensor::DType::F32);
            let shape = &shapes[&name];
            if tensor.shape() != shape {
                return Err(Error::model(format!("tensor \"{name}\" has shape {:?}", tensor.shape()))
                    .expected(format!("{shape:?}, as in the published vae-oid.npz")));
            }
            Ok(tensor)
        };
        let mut layer = |name: String| -> Result<Layer> {
            Ok(Layer { weight: take(format!("{name}.weight"))?, bias: take(format!("{name}.bias"))? })
        };
        let block = |layer: &mut dyn FnMut(String) -> Result<Layer>, name: &str| -> Result<Block> {
            Ok(Block([
                layer(format!("{name}.net.0"))?,
                layer(format!("{name}.net.2"))?,
                layer(format!("{name}.net.4"))?,
            ]))
        };
        Ok(VqVae {
            down: (0..4).map(|i| layer(format!("encoder.{}", 2 * i))).collect::<Result<_>>()?,
            encoder_blocks: [block(&mut layer, "encoder.8")?, block(&mut layer, "encoder.9")?],
            to_code: layer("encoder.10".into())?,
            from_code: layer("decoder.0".into())?,
            decoder_blocks: [block(&mut layer, "decoder.2")?, block(&mut layer, "decoder.3")?],
            up: (0..4).map(|i| layer(format!("decoder.{}", 4 + 2 * i))).collect::<Result<_>>()?,
            to_mask: layer("decoder.12".into())?,
            embedding: take("_vq_vae._embedding".into())?,
        })
    }

    /// Masks `[N, 64, 64]` from 0 to 1 → what is looked up in the codebook, `[N·16, E]`.
    pub fn embed(&self, masks_nhw: &Tensor) -> Tensor {
        let n = masks_nhw.shape()[0];
        let centred = masks_nhw.as_f32().iter().map(|x| 2.0 * (x - 0.5)).collect(); // x = _norm(x)
        let mut x = Tensor::from_f32(centred, &[n, SIDE, SIDE, 1]);
        for layer in &self.down {
            x = relu(&conv2d(&x, &layer.weight, &layer.bias, 2, 1));
        }
        for block in &self.encoder_blocks {
            x = block.forward(&x);
        }
        self.to_code.forward(&x, 0).reshape(&[n * NUM_CODES, WIDTH])
    }

    /// Masks `[N, 64, 64]` from 0 to 1 → their codes: the nearest entry each, the first of equally near ones.
    pub fn encode(&self, masks_nhw: &Tensor) -> Vec<[u8; NUM_CODES]> {
        let embedding = self.embedding.as_f32();
        let nearest = |x: &[f32]| {
            let mut best = (0, f64::INFINITY);
            for (i, entry) in embedding.chunks_exact(WIDTH).enumerate() {
                let distance: f64 = x.iter().zip(entry).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                if distance < best.1 {
                    best = (i as u8, distance);
                }
            }
            best.0
        };
        let codes: Vec<u8> = self.embed(masks_nhw).as_f32().chunks_exact(WIDTH).map(nearest).collect();
        codes.as_chunks().0.to_vec()
    }

    /// Codes → masks `[N, 64, 64]`, about −1 outside and 1 inside. Panics on a code beyond 127.
    pub fn decode(&self, codes: &[[u8; NUM_CODES]]) -> Tensor {
        let n = codes.len();
        let embedding = self.embedding.as_f32();
        let entry = |&code: &u8| &embedding[usize::from(code) * WIDTH..][..WIDTH];
        let quantized = codes.iter().flatten().flat_map(entry).copied().collect();
        let x = Tensor::from_f32(quantized, &[n, GRID, GRID, WIDTH]);
        let mut x = relu(&self.from_code.forward(&x, 0));
        for block in &self.decoder_blocks {
            x = block.forward(&x);
        }
        for layer in &self.up {
            x = relu(&conv_transpose2d(&x, &layer.weight, &layer.bias, 2, 1));
        }
        self.to_mask.forward(&x, 0).reshape(&[n, SIDE, SIDE])
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, padding: usize) -> Tensor {
        conv2d(x, &self.weight, &self.bias, 1, padding)
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, third] = &self.0;
        let y = relu(&first.forward(x, 1));
        let y = relu(&second.forward(&y, 1));
        add(x, &third.forward(&y, 0)) // return x + original_x
    }
}
