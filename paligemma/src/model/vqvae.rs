//! The masks' VQ-VAE: a mask of 64×64 ⇄ sixteen codes.
//! Reference: big_vision pp/proj/paligemma/segmentation.py (encoder), evaluators/proj/paligemma/transfers/segmentation.py
//! (decoder); after AiT (arXiv 2301.02229), whose tensor names and layouts the published `vae-oid.npz` has.
//!
//! Legend: N masks, E = 512 width of a code, C = 128 channels.

use crate::{Error, Result};
use paligemma_tensor::{Parameter, Tape, Tensor, Value};
use rayon::prelude::*;
use std::collections::HashMap;

/// Sides of a mask.
pub(super) const SIDE: usize = 64;
/// Sides of the grid of codes.
const GRID: usize = 4;
/// Codes of a mask, row by row.
pub(super) const NUM_CODES: usize = GRID * GRID;
/// Entries of the codebook.
pub(super) const CODEBOOK: usize = 128;
/// Width of an entry.
pub(super) const WIDTH: usize = 512;
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
    pub(super) embedding: Tensor,
    from_code: Layer,
    decoder_blocks: [Block; 2],
    up: Vec<Layer>,
    to_mask: Layer,
}

/// A convolution: weights as PyTorch stores them, and the bias.
#[derive(Debug, Clone)]
struct Layer {
    weight: Parameter,
    bias: Parameter,
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

    /// Takes the tensors of [`VqVae::tensors`] from a function. The gradients of all but the codebook are wanted, under their
    /// places in that list.
    ///
    /// # Errors
    /// What the function reports; a tensor of another shape.
    pub fn load(get: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<VqVae> {
        let all = VqVae::tensors();
        let places: HashMap<&str, usize> =
            all.iter().enumerate().map(|(i, (name, _))| (&**name, i)).collect();
        let mut take = |name: String| {
            let tensor = get(&name)?.cast(paligemma_tensor::DType::F32);
            let place = places[&*name];
            let shape = &all[place].1;
            if tensor.shape() != shape {
                return Err(Error::model(format!("tensor \"{name}\" has shape {:?}", tensor.shape()))
                    .expected(format!("{shape:?}, as in the published vae-oid.npz")));
            }
            Ok(Parameter::wanted(tensor, place))
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
            embedding: take("_vq_vae._embedding".into())?.tensor().clone(),
        })
    }

    /// Every tensor under its published name.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let mut named: Vec<(String, Tensor)> =
            VqVae::tensors().into_iter().map(|(name, _)| (name, self.embedding.clone())).collect();
        for layer in self.layers() {
            for parameter in [&layer.weight, &layer.bias] {
                if let Some(at) = parameter.id() {
                    named[at].1 = parameter.tensor().clone();
                }
            }
        }
        named
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        let VqVae { down, encoder_blocks, to_code, from_code, decoder_blocks, up, to_mask, .. } = self;
        let blocks = encoder_blocks.iter().chain(decoder_blocks).flat_map(|block| &block.0);
        down.iter().chain(up).chain(blocks).chain([to_code, from_code, to_mask])
    }

    /// The weight at a place of [`VqVae::tensors`], to be changed; the codebook is none.
    pub(super) fn wanted_mut(&mut self, id: usize) -> Option<&mut Tensor> {
        let VqVae { down, encoder_blocks, to_code, from_code, decoder_blocks, up, to_mask, .. } = self;
        let blocks = encoder_blocks.iter_mut().chain(decoder_blocks).flat_map(|block| &mut block.0);
        let layers = down.iter_mut().chain(up).chain(blocks).chain([to_code, from_code, to_mask]);
        let mut all = layers.flat_map(|layer| [&mut layer.weight, &mut layer.bias]);
        all.find(|parameter| parameter.id() == Some(id)).and_then(Parameter::wanted_mut)
    }

    /// Masks `[N, 64, 64]` from 0 to 1 → what is looked up in the codebook, `[N·16, E]`.
    pub fn embed(&self, masks_nhw: &Tensor) -> Tensor {
        self.encoder(masks_nhw, &mut Tape::off()).into_tensor()
    }

    /// [`VqVae::embed`] on a tape.
    pub(super) fn encoder(&self, masks_nhw: &Tensor, tape: &mut Tape) -> Value {
        let n = masks_nhw.shape()[0];
        let mut x: Value = centred(masks_nhw).reshape(&[n, SIDE, SIDE, 1]).into();
        for layer in &self.down {
            let y = tape.conv2d(&x, &layer.weight, &layer.bias, 2, 1);
            x = tape.relu(&y);
        }
        for block in &self.encoder_blocks {
            x = block.forward(&x, tape);
        }
        self.to_code.forward(&x, 0, tape).reshape(&[n * NUM_CODES, WIDTH])
    }

    /// Masks `[N, 64, 64]` from 0 to 1 → their codes: the nearest entry each, the first of equally near ones.
    pub fn encode(&self, masks_nhw: &Tensor) -> Vec<[u8; NUM_CODES]> {
        let codes = self.nearest(&self.embed(masks_nhw));
        codes.as_chunks().0.to_vec()
    }

    /// The nearest entry of each row of `x_te`.
    pub(super) fn nearest(&self, x_te: &Tensor) -> Vec<u8> {
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
        x_te.as_f32().par_chunks_exact(WIDTH).map(nearest).collect()
    }

    /// The entries of codes, `[codes, E]`. Panics on a code beyond 127.
    pub(super) fn look_up(&self, codes: &[u8]) -> Tensor {
        let embedding = self.embedding.as_f32();
        let entry = |&code: &u8| &embedding[usize::from(code) * WIDTH..][..WIDTH];
        Tensor::from_f32(codes.iter().flat_map(entry).copied().collect(), &[codes.len(), WIDTH])
    }

    /// Codes → masks `[N, 64, 64]`, about −1 outside and 1 inside. Panics on a code beyond 127.
    pub fn decode(&self, codes: &[[u8; NUM_CODES]]) -> Tensor {
        let quantized = self.look_up(codes.as_flattened());
        self.decoder(&quantized.into(), &mut Tape::off()).into_tensor()
    }

    /// Entries `[N·16, E]` → masks `[N, 64, 64]`.
    pub(super) fn decoder(&self, quantized: &Value, tape: &mut Tape) -> Value {
        let n = quantized.shape()[0] / NUM_CODES;
        let x = self.from_code.forward(&quantized.reshape(&[n, GRID, GRID, WIDTH]), 0, tape);
        let mut x = tape.relu(&x);
        for block in &self.decoder_blocks {
            x = block.forward(&x, tape);
        }
        for layer in &self.up {
            let y = tape.conv_transpose2d(&x, &layer.weight, &layer.bias, 2, 1);
            x = tape.relu(&y);
        }
        self.to_mask.forward(&x, 0, tape).reshape(&[n, SIDE, SIDE])
    }
}

/// From 0 … 1 to −1 … 1.
pub(super) fn centred(masks: &Tensor) -> Tensor {
    Tensor::from_f32(masks.as_f32().iter().map(|x| 2.0 * (x - 0.5)).collect(), masks.shape()) // x = _norm(x)
}

impl Layer {
    fn forward(&self, x: &Value, padding: usize, tape: &mut Tape) -> Value {
        tape.conv2d(x, &self.weight, &self.bias, 1, padding)
    }
}

impl Block {
    fn forward(&self, x: &Value, tape: &mut Tape) -> Value {
        let [first, second, third] = &self.0;
        let y = first.forward(x, 1, tape);
        let y = tape.relu(&y);
        let y = second.forward(&y, 1, tape);
        let y = tape.relu(&y);
        let y = third.forward(&y, 0, tape);
        tape.add(x, &y) // return x + original_x
    }
}
