//! Masks of any size ⇄ sixteen codes: the masks' model opened, and the way through its 64×64.

use crate::{
    Error, Result,
    checkpoint::NamedTensors,
    config::Config,
    image::{MASK_SIDE, Mask, Plane, Rect},
    model::VqVae,
};
use paligemma_tensor::Tensor;
use std::path::Path;

/// The model within this program, trained on drawn masks; models/masks.md says how.
const BUILT_IN: &[u8] = include_bytes!("../../models/masks.safetensors");
/// Where `<image>` stands in the tables of Google's checkpoints, which learned the codes of their own masks' model.
const GOOGLES_IMAGE_TOKEN: usize = 257_152;

/// Turns masks into codes and codes into masks.
#[derive(Debug)]
pub struct MaskCodec {
    vqvae: VqVae,
}

impl MaskCodec {
    /// The model in `file`, an npz or safetensors with the published names (`vae-oid.npz`), else the one within this
    /// program. The codes of one mean nothing to the other.
    ///
    /// # Errors
    /// A file that is broken, or lacks a tensor, or has one that the model does not know.
    pub fn open(file: Option<&Path>) -> Result<MaskCodec> {
        match file {
            Some(file) => {
                let tensors = NamedTensors::open(file)?;
                MaskCodec::from_tensors(&tensors).map_err(|e| e.at(file.display().to_string()))
            }
            None => MaskCodec::from_tensors(&NamedTensors::built_in(BUILT_IN)?),
        }
    }

    /// [`MaskCodec::open`] for the answers of a model. Google's checkpoints need Google's file: other codes would give wrong masks.
    ///
    /// # Errors
    /// `Kind::Usage` for such a model without a file; those of [`MaskCodec::open`].
    pub fn of_model(config: &Config, file: Option<&Path>) -> Result<MaskCodec> {
        if file.is_none() && config.image_token_index == GOOGLES_IMAGE_TOKEN {
            return Err(Error::usage(
                "the model's masks are codes of Google's masks' model, which is not within this program",
            )
            .expected("--vqvae FILE with Google's vae-oid.npz, or the masks' model that it was trained with")
            .hint("`run MODEL IMAGE 'segment THING'` gives the codes as text without it"));
        }
        MaskCodec::open(file)
    }

    fn from_tensors(tensors: &NamedTensors) -> Result<MaskCodec> {
        let known: Vec<String> = VqVae::tensors().into_iter().map(|(name, _)| name).collect();
        for name in tensors.names() {
            if !known.iter().any(|k| k == name) && !VqVae::is_ignorable(name) {
                return Err(Error::model(format!("tensor \"{name}\" is no part of the masks' model"))
                    .expected("the tensors of vae-oid.npz: encoder, decoder, _vq_vae._embedding"));
            }
        }
        Ok(MaskCodec { vqvae: VqVae::load(&mut |name| tensors.tensor(name))? })
    }

    /// A codec of a model that is at hand.
    pub fn new(vqvae: VqVae) -> MaskCodec {
        MaskCodec { vqvae }
    }

    /// What the decoder makes of each mask's codes: 64×64 numbers, about −1 outside and 1 inside.
    ///
    /// # Errors
    /// `Kind::Input`: a code beyond 127.
    pub fn decode(&self, codes: &[[u8; 16]]) -> Result<Vec<Plane>> {
        if let Some(code) = codes.iter().flatten().find(|&&code| code > 127) {
            return Err(Error::input(format!("there is no mask code {code}")).expected("0 to 127"));
        }
        let values = self.vqvae.decode(codes);
        let plane = |values: &[f32]| Plane { width: MASK_SIDE, height: MASK_SIDE, values: values.to_vec() };
        Ok(values.as_f32().chunks_exact(MASK_SIDE * MASK_SIDE).map(plane).collect())
    }

    /// The mask of one object on a picture of `width` × `height`; `pixels` is its box (x0, y0, x1, y1), not rounded.
    ///
    /// # Errors
    /// As [`MaskCodec::decode`].
    pub fn paste(&self, codes: [u8; 16], pixels: [f64; 4], width: usize, height: usize) -> Result<Mask> {
        let rect = Rect::truncated(pixels, width, height);
        Ok(self.decode(&[codes])?[0].paste(rect, width, height))
    }

    /// The codes of what `mask` (0 to 1) holds in a box (x0, y0, x1, y1 in pixels, rounded to whole ones).
    ///
    /// # Errors
    /// `Kind::Input`: the box holds no pixel of the mask's picture.
    pub fn encode(&self, mask: &Plane, pixels: [f64; 4]) -> Result<[u8; 16]> {
        let small = mask.crop(Rect::rounded(pixels, mask.width, mask.height))?;
        Ok(self.vqvae.encode(&Tensor::from_f32(small.values, &[1, MASK_SIDE, MASK_SIDE]))[0])
    }
}
