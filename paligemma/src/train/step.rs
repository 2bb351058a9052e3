//! A batch through the model: the loss, and the gradients on the way back.

use paligemma_tensor::{Contribution, LossRule, Target, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::Result;
use crate::data::Ready;
use crate::model::{Dropout, PaliGemma, Part, Pass, Sequence};

/// How the loss is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Objective {
    /// Smoothing, z-loss, soft cap.
    pub rule: LossRule,
    /// Whether it is the mean over all tokens of the batch, not over the examples' means.
    pub is_token_mean: bool,
}

/// What a whole batch has: the loss of its parts is divided by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    /// Examples.
    pub examples: usize,
    /// Tokens that carry loss.
    pub tokens: usize,
}

impl Share {
    /// That of these examples.
    pub(super) fn of(examples: &[Ready]) -> Share {
        let tokens = examples.iter().map(num_targets).sum();
        Share { examples: examples.len(), tokens }
    }
}

fn num_targets(ready: &Ready) -> usize {
    ready.tokens.loss_mask().filter(|carries| *carries).count()
}

/// Tokens that the model reads of an example.
pub(super) fn num_tokens(ready: &Ready, image_tokens: usize) -> usize {
    ready.pixels.len() * image_tokens + ready.tokens.inputs().len()
}

/// What is dropped of these examples. A mask follows from the seed and the number of the draw.
pub(super) fn dropout(examples: &[Ready], rate: f32, seed: u64) -> Dropout {
    let key = |ready: &Ready, image: u64| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&ready.draw.number.to_le_bytes());
        key[16..24].copy_from_slice(&image.to_le_bytes());
        key[24..].copy_from_slice(b"dropout\0");
        ChaCha8Rng::from_seed(key).next_u64()
    };
    let images =
        examples.iter().flat_map(|ready| (1..=ready.pixels.len() as u64).map(move |image| (ready, image)));
    Dropout {
        residual: rate,
        examples: examples.iter().map(|ready| key(ready, 0)).collect(),
        images: images.map(|(ready, image)| key(ready, image)).collect(),
    }
}

/// The part of the batch's loss that these examples make; with `give`, also their gradients, each part with the number of
/// its parameter. A loss that is not finite has none.
///
/// The model is let go of before the way back, so that its parameters may be changed as their gradients come.
///
/// # Errors
/// Ids beyond the model's table.
pub(super) fn loss(
    model: PaliGemma,
    examples: &[Ready],
    objective: &Objective,
    share: Share,
    mut pass: Pass<'_>,
    give: Option<&mut dyn FnMut(usize, Contribution)>,
) -> Result<f64> {
    let (side, image_tokens) = (model.config().vision.image_size, model.config().vision.num_tokens());
    let num_images: usize = examples.iter().map(|ready| ready.pixels.len()).sum();
    let pixels = examples.iter().flat_map(|ready| &ready.pixels).flatten().copied().collect();
    let pixels = Tensor::from_f32(pixels, &[num_images, 3, side, side]);
    let ids: Vec<u32> = examples.iter().flat_map(|ready| ready.tokens.inputs()).copied().collect();
    let (mut parts, mut sequences, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for ready in examples {
        let (images, text) = (ready.pixels.len() * image_tokens, ready.tokens.inputs().len());
        parts.extend([Part::Image(images), Part::Text(text)]);
        sequences.push(Sequence { len: images + text, prefix_len: images + ready.tokens.num_prefix });
        let weight = match objective.is_token_mean {
            true => 1.0 / share.tokens.max(1) as f64,
            false => 1.0 / (share.examples * num_targets(ready).max(1)) as f64,
        };
        for (i, (&id, carries)) in ready.tokens.targets().iter().zip(ready.tokens.loss_mask()).enumerate() {
            if carries {
                targets.push(Target { row: first + images + i, id, weight: weight as f32 });
            }
        }
        first += images + text;
    }
    let images = model.encode_images(&pixels, &mut pass)?;
    drop(pixels);
    let text = model.embed_text(&ids, &mut pass)?;
    let x = PaliGemma::join_parts(&images, &text, &parts, &mut pass);
    drop((images, text));
    let y = model.forward_whole(&x, &sequences, &mut pass)?;
    drop(x);
    let (value, loss) = model.loss(&y, &targets, &objective.rule, &mut pass);
    drop((model, y));
    if let Some(give) = give.filter(|_| loss.is_finite()) {
        pass.into_tape().backward(&value, Tensor::from_f32(vec![1.0], &[1]), give);
    }
    Ok(loss)
}
