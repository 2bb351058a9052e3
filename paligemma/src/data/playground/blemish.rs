//! What photographs suffer from: noise, blur, JPEG.

use super::dice::Dice;
use crate::data::augment::through_jpeg;
use crate::image::Picture;

/// The picture as a camera might have it; half of them are clean.
pub(super) fn add(mut picture: Picture, dice: &mut Dice) -> Picture {
    if dice.chance(0.5) {
        return picture;
    }
    if dice.chance(0.25) {
        blur(&mut picture);
    }
    if dice.chance(0.5) {
        noise(&mut picture, dice);
    }
    if dice.chance(0.3) {
        let quality = dice.in_range(45, 92) as u8;
        // Only a picture that is too large for JPEG stays as it is.
        picture = through_jpeg(&picture, quality).unwrap_or(picture);
    }
    picture
}

/// The mean of three neighbours, weighted 1 2 1, along rows and along columns; edges stay.
fn blur(picture: &mut Picture) {
    let row = picture.width * 3;
    for step in [3, row] {
        let source = picture.rgb.clone();
        for y in 1..picture.height.saturating_sub(1) {
            for i in y * row + 3..(y + 1) * row - 3 {
                let [a, b, c] = [source[i - step], source[i], source[i + step]].map(u32::from);
                picture.rgb[i] = ((a + 2 * b + c + 2) / 4) as u8;
            }
        }
    }
}

/// Grain of equal strength everywhere.
fn noise(picture: &mut Picture, dice: &mut Dice) {
    let strength = dice.in_range(3, 16) as i32;
    let mut state = dice.seed() | 1;
    for value in &mut picture.rgb {
        // xorshift: noise needs no better.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let grain = ((state >> 40) as u8 as i32 + (state >> 48) as u8 as i32 - 255) * strength / 255;
        *value = (i32::from(*value) + grain).clamp(0, 255) as u8;
    }
}
