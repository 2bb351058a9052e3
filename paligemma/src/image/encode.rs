//! Pictures and masks as the bytes of PNG files.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::{Mask, Picture};
use crate::{Error, Result};

/// A picture as PNG.
///
/// # Errors
/// `Kind::Input`: a side that PNG cannot have.
pub fn png_of_picture(picture: &Picture) -> Result<Vec<u8>> {
    png(&picture.rgb, picture.width, picture.height, ExtendedColorType::Rgb8)
}

/// A mask as grey PNG: white where it is mask, else black.
///
/// # Errors
/// `Kind::Input`: a side that PNG cannot have.
pub fn png_of_mask(mask: &Mask) -> Result<Vec<u8>> {
    let grey: Vec<u8> = mask.bits.iter().map(|&bit| if bit { 255 } else { 0 }).collect();
    png(&grey, mask.width, mask.height, ExtendedColorType::L8)
}

fn png(samples: &[u8], width: usize, height: usize, colour: ExtendedColorType) -> Result<Vec<u8>> {
    let wrong = || Error::input(format!("a picture of {width}×{height} cannot be written as PNG"));
    let side = |side: usize| u32::try_from(side).map_err(|_| wrong());
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(samples, side(width)?, side(height)?, colour)
        .map_err(|e| wrong().because(e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::decode;

    #[test]
    fn what_is_written_is_read_back() {
        let picture = Picture { width: 3, height: 2, rgb: (0..18).collect() };
        assert_eq!(decode(&png_of_picture(&picture).unwrap()).unwrap(), picture);
        let mask = Mask { width: 2, height: 2, bits: vec![true, false, false, true] };
        let back = decode(&png_of_mask(&mask).unwrap()).unwrap();
        assert_eq!(back.rgb, [[255u8; 3], [0; 3], [0; 3], [255; 3]].concat());
        assert!(png_of_picture(&Picture { width: 0, height: 0, rgb: Vec::new() }).is_err());
    }
}
