//! From the bytes of a PNG, JPEG or WebP file to an RGB picture, within limits.
//!
//! The pixels are those of Pillow's `ImageOps.exif_transpose(Image.open(file)).convert("RGB")`, which is
//! transformers' `load_image`:
//!
//! - The format is recognised by the contents, never by the name.
//! - The EXIF (or else XMP) orientation is applied. TensorFlow ignores it; nobody who shows a photo means that.
//! - Alpha is dropped, not blended: what lies under transparent pixels shows. (transformers' image processor blends
//!   with white when it is handed a picture that still has alpha; `load_image` never hands it one.)
//! - Samples of 16 bits keep their high byte, except grey without alpha: see [`Grey16`].
//! - CMYK is turned into RGB without a colour profile. No colour profile is applied anywhere.
//! - Of an animation the first picture is taken.
//!
//! Width, height and the memory needed are read from the header and checked before anything is decoded.
//! Each decoder runs under `catch_unwind`: a broken file is an error, whatever the decoder does.

use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageError, Limits};

use super::jpeg;
use crate::{Error, Result};

/// The most pixels that a picture may have.
pub const MAX_PIXELS: u64 = 50_000_000;
/// The longest side that a picture may have.
pub const MAX_SIDE: usize = 16_384;
/// The most bytes that a decoder may hold.
pub const MAX_MEMORY: u64 = 256 << 20;
/// The most bytes that an image file may have.
pub const MAX_FILE: u64 = 128 << 20;

/// A decoded picture, upright.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels across, at least 1.
    pub width: usize,
    /// Pixels down, at least 1.
    pub height: usize,
    /// [height, width, 3]: red, green, blue; 0 to 255.
    pub rgb: Vec<u8>,
}

/// What becomes of a grey PNG of 16 bits without alpha, where the references differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grey16 {
    /// Values above 255 become 255: Pillow's rule for its mode `I;16`, hence transformers'. Most such pictures
    /// come out nearly white.
    #[default]
    Clip,
    /// The high byte is kept: TensorFlow's rule, hence big_vision's.
    HighByte,
}

/// Decodes a file's bytes with Pillow's rule for 16-bit grey.
///
/// # Errors
/// [`crate::Kind::Input`]: empty, not PNG, JPEG or WebP (the error names what it is), beyond a limit, truncated or broken.
pub fn decode(bytes: &[u8]) -> Result<Picture> {
    decode_as(bytes, Grey16::default())
}

/// Decodes the file at `path`; as [`decode`].
///
/// # Errors
/// As [`decode`], and [`crate::Kind::Input`] for a file beyond [`MAX_FILE`], [`crate::Kind::Io`] for one that cannot be read.
pub fn decode_file(path: &Path) -> Result<Picture> {
    decode_file_as(path, Grey16::default())
}

/// Decodes the file at `path`; as [`decode_as`].
///
/// # Errors
/// As [`decode_file`].
pub fn decode_file_as(path: &Path, grey16: Grey16) -> Result<Picture> {
    let io = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    // A pipe has no size; reading stops one byte beyond the limit.
    if size <= MAX_FILE {
        (&mut file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    }
    if size.max(bytes.len() as u64) > MAX_FILE {
        return Err(file_too_large().at(path.display().to_string()));
    }
    decode_as(&bytes, grey16).map_err(|error| error.at(path.display().to_string()))
}

/// Decodes a file's bytes; `grey16` says what becomes of 16-bit grey.
///
/// # Errors
/// As [`decode`].
pub fn decode_as(bytes: &[u8], grey16: Grey16) -> Result<Picture> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(file_too_large());
    }
    let decoder = match format(bytes) {
        Format::Png => decode_png,
        Format::Jpeg => decode_jpeg,
        Format::Webp => decode_webp,
        Format::Other(what) => {
            return Err(Error::input(what)
                .expected("a PNG, JPEG or WebP picture (recognised by its contents)")
                .hint("convert it to PNG"));
        }
    };
    let decoded = catch_unwind(AssertUnwindSafe(|| decoder(bytes, grey16)));
    decoded.unwrap_or_else(|_| Err(Error::input("this picture breaks its decoder")))
}

fn file_too_large() -> Error {
    Error::input("this image file is too large").expected(format!("at most {} MiB", MAX_FILE >> 20))
}

pub(super) fn too_much_memory(width: usize, height: usize, needed: u64) -> Error {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Error::input(format!("decoding this picture of {width}×{height} needs {} MiB", mib(needed)))
        .expected(format!("at most {} MiB", mib(MAX_MEMORY)))
        .hint("make it smaller; the model sees at most 896×896 pixels of it")
}

/// Refuses a picture by its size; `bytes_per_pixel` is what decoding holds at its peak.
fn check_size(width: usize, height: usize, bytes_per_pixel: u64) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::input(format!("this picture's size is {width}×{height}")).expected("at least 1×1"));
    }
    let pixels = width as u64 * height as u64;
    if pixels > MAX_PIXELS || width > MAX_SIDE || height > MAX_SIDE {
        return Err(Error::input(format!("this picture's size is {width}×{height}"))
            .expected(format!("at most {} million pixels, no side beyond {MAX_SIDE}", MAX_PIXELS / 1_000_000))
            .hint("make it smaller; the model sees at most 896×896 pixels of it"));
    }
    let needed = pixels * bytes_per_pixel;
    if needed > MAX_MEMORY { Err(too_much_memory(width, height, needed)) } else { Ok(()) }
}

enum Format {
    Png,
    Jpeg,
    Webp,
    /// What it is instead, as a sentence.
    Other(String),
}

/// Recognises a format by the first bytes.
fn format(bytes: &[u8]) -> Format {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let brand = bytes.get(8..12).unwrap_or_default();
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Format::Png;
    }
    if starts(&[0xff, 0xd8, 0xff]) {
        return Format::Jpeg;
    }
    if starts(b"RIFF") && brand == b"WEBP" {
        return Format::Webp;
    }
    let name = if bytes.is_empty() {
        return Format::Other("this image file is empty".into());
    } else if bytes.get(4..8) == Some(b"ftyp") {
        match brand {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => "HEIC",
            _ => "an MP4 or similar video",
        }
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        "GIF"
    } else if starts(b"BM") {
        "BMP"
    } else if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        "TIFF"
    } else if starts(b"\0\0\0\x0cjP  ") || starts(&[0xff, 0x4f, 0xff, 0x51]) {
        "JPEG 2000"
    } else if starts(b"\0\0\0\x0cJXL ") || starts(&[0xff, 0x0a]) {
        "JPEG XL"
    } else if starts(b"%PDF") {
        "PDF"
    } else if starts(b"8BPS") {
        "PSD"
    } else if starts(b"\0\0\x01\0") {
        "ICO"
    } else if starts(b"qoif") {
        "QOI"
    } else if starts(b"v/1\x01") {
        "OpenEXR"
    } else if bytes.len() > 2
        && bytes[0] == b'P'
        && (b'1'..=b'7').contains(&bytes[1])
        && bytes[2].is_ascii_whitespace()
    {
        "PNM"
    } else if starts(b"\x1f\x8b") || starts(b"PK\x03\x04") {
        "a compressed archive"
    } else {
        // The cut may fall inside a character.
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]);
        let text = text.trim_end_matches('\u{fffd}').trim_start_matches('\u{feff}').trim_start();
        if text.is_empty()
            || text.contains(|c: char| c == '\u{fffd}' || (c.is_control() && !c.is_whitespace()))
        {
            return Format::Other("this is not a picture of a known format".into());
        }
        let text = text.to_ascii_lowercase();
        if text.contains("<svg") {
            "SVG"
        } else if text.starts_with("<!doctype html") || text.starts_with("<html") {
            "HTML"
        } else {
            "text"
        }
    };
    Format::Other(format!("this image file is {name}, which is not supported"))
}

fn decode_jpeg(bytes: &[u8], _: Grey16) -> Result<Picture> {
    let jpeg::Header { width, height } = jpeg::header(bytes)?;
    check_size(width, height, 3)?;
    jpeg::decode(bytes, MAX_MEMORY)
}

fn decode_png(bytes: &[u8], grey16: Grey16) -> Result<Picture> {
    // Signature, then the chunk that must be the first: length, "IHDR", width, height.
    let side = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_be_bytes(bytes) as usize)
    };
    let (Some(width), Some(height)) = (side(16), side(20)) else {
        return Err(Error::input("this PNG is broken: it ends before its picture does"));
    };
    check_size(width, height, 1)?;
    check_png_palette(bytes)?;
    // With alpha of its own Pillow keeps the high byte; a transparent colour (tRNS), which the decoder turns into
    // alpha, changes nothing for it.
    let grey16 = if bytes.get(25) == Some(&0) { grey16 } else { Grey16::HighByte };
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_MEMORY);
    let mut decoder =
        PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(|error| broken("PNG", &error))?;
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    let picture = read(decoder, (width, height), "PNG", grey16)?;
    upright(picture, orientation(&exif, &xmp))
}

/// Refuses a palette that is no whole number of colours: the png crate (0.18.1) would index beyond it.
fn check_png_palette(bytes: &[u8]) -> Result<()> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((&head, after)) = rest.split_first_chunk::<8>() {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        match &head[4..] {
            b"PLTE" if !(1..=256 * 3).contains(&len) || !len.is_multiple_of(3) => {
                return Err(Error::input(format!("this PNG is broken: its palette has {len} bytes"))
                    .expected("three for each of 1 to 256 colours"));
            }
            b"IDAT" => break,
            _ => {}
        }
        // The chunk's data and its checksum.
        rest = after.get(len.saturating_add(4)..).unwrap_or_default();
    }
    Ok(())
}

fn decode_webp(bytes: &[u8], grey16: Grey16) -> Result<Picture> {
    let (width, height, bytes_per_pixel) = webp_header(bytes)?;
    check_size(width, height, bytes_per_pixel)?;
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| broken("WebP", &error))?;
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    let picture = read(decoder, (width, height), "WebP", grey16)?;
    upright(picture, orientation(&exif, &xmp))
}

/// Width, height and the bytes per pixel that decoding holds at its peak, from a WebP's first chunk.
fn webp_header(bytes: &[u8]) -> Result<(usize, usize, u64)> {
    let short = || Error::input("this WebP is broken: it ends before its picture does");
    let word = |at: usize, count: usize| {
        let bytes = bytes.get(at..at + count).ok_or_else(short)?;
        Ok::<_, Error>(bytes.iter().rev().fold(0usize, |word, &byte| word << 8 | usize::from(byte)))
    };
    match bytes.get(12..16).ok_or_else(short)? {
        // Lossy: 14 bits each after a tag and a start code. Luma, chroma, and the RGB.
        b"VP8 " => Ok((word(26, 2)? & 0x3fff, word(28, 2)? & 0x3fff, 5)),
        // Lossless: 14 bits each, less one. Decoded as RGBA, then RGB.
        b"VP8L" => {
            let bits = word(21, 4)?;
            let alpha = bits >> 28 & 1 != 0;
            Ok(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1, if alpha { 4 } else { 7 }))
        }
        // Extended: flags, then the canvas, 24 bits each, less one.
        b"VP8X" => {
            let animated = word(20, 1)? & 2 != 0;
            // The canvas, the frame and the output, or the picture and its alpha.
            Ok((word(24, 3)? + 1, word(27, 3)? + 1, if animated { 12 } else { 7 }))
        }
        _ => Err(Error::input("this WebP is broken: its first chunk is unknown")),
    }
}

fn broken(format: &str, error: &ImageError) -> Error {
    match error {
        ImageError::Limits(_) => Error::input(format!("this {format} needs too much memory to decode"))
            .expected(format!("at most {} MiB", MAX_MEMORY >> 20)),
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::input(format!("this {format} is broken: it ends before its picture does"))
        }
        error => Error::input(format!("this {format} is broken: {error}")),
    }
}

/// Runs a decoder and brings its samples to RGB in place.
fn read(decoder: impl ImageDecoder, size: (usize, usize), format: &str, grey16: Grey16) -> Result<Picture> {
    let (width, height) = size;
    let (w, h) = decoder.dimensions();
    if (w as usize, h as usize) != size {
        return Err(Error::input(format!("this {format} is broken: its headers disagree about its size")));
    }
    let colour = decoder.color_type();
    check_size(width, height, u64::from(colour.bytes_per_pixel()))?;
    let pixels = width * height;
    // Room for three bytes a pixel, even if the file has fewer, so that grey is spread in place.
    let count = pixels * usize::from(colour.bytes_per_pixel());
    let mut bytes = vec![0; count.max(pixels * 3)];
    decoder.read_image(&mut bytes[..count]).map_err(|error| broken(format, &error))?;
    to_rgb(&mut bytes, pixels, colour, grey16)
        .ok_or_else(|| Error::input(format!("this {format} has an unknown kind of pixels: {colour:?}")))?;
    bytes.truncate(pixels * 3);
    bytes.shrink_to_fit();
    Ok(Picture { width, height, rgb: bytes })
}

/// Rewrites `pixels` pixels of a kind as RGB, at the front of the same bytes; none for an unknown kind.
fn to_rgb(bytes: &mut [u8], pixels: usize, colour: ColorType, grey16: Grey16) -> Option<()> {
    let high_byte = |pair| (u16::from_ne_bytes(pair) >> 8) as u8;
    let from_16 = |pair| match grey16 {
        Grey16::Clip => u16::from_ne_bytes(pair).min(255) as u8,
        Grey16::HighByte => high_byte(pair),
    };
    match colour {
        ColorType::Rgb8 => {}
        ColorType::L8 => {
            for i in (0..pixels).rev() {
                let grey = bytes[i];
                bytes[i * 3..i * 3 + 3].fill(grey);
            }
        }
        ColorType::La8 => {
            for i in (0..pixels).rev() {
                let grey = bytes[i * 2];
                bytes[i * 3..i * 3 + 3].fill(grey);
            }
        }
        ColorType::L16 => {
            for i in (0..pixels).rev() {
                let grey = from_16([bytes[i * 2], bytes[i * 2 + 1]]);
                bytes[i * 3..i * 3 + 3].fill(grey);
            }
        }
        ColorType::Rgba8 => (0..pixels).for_each(|i| bytes.copy_within(i * 4..i * 4 + 3, i * 3)),
        ColorType::La16 => {
            for i in 0..pixels {
                let grey = from_16([bytes[i * 4], bytes[i * 4 + 1]]);
                bytes[i * 3..i * 3 + 3].fill(grey);
            }
        }
        ColorType::Rgb16 | ColorType::Rgba16 => {
            let stride = usize::from(colour.bytes_per_pixel());
            for i in 0..pixels {
                for c in 0..3 {
                    let at = i * stride + c * 2;
                    bytes[i * 3 + c] = high_byte([bytes[at], bytes[at + 1]]);
                }
            }
        }
        _ => return None,
    }
    Some(())
}

/// The orientation that EXIF says, or else XMP, as Pillow looks for it.
pub(super) fn orientation(exif: &[u8], xmp: &[u8]) -> Orientation {
    let mut exif = exif;
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    let from_xmp = || {
        let tag = b"tiff:Orientation";
        let values = xmp.windows(tag.len()).enumerate().filter(|(_, window)| window == tag);
        values.map(|(at, _)| &xmp[at + tag.len()..]).find_map(|value| {
            let digit = value.strip_prefix(b"=\"").or_else(|| value.strip_prefix(b">"))?.first()?;
            digit.is_ascii_digit().then(|| Orientation::from_exif(digit - b'0')).flatten()
        })
    };
    Orientation::from_exif_chunk(exif).or_else(from_xmp).unwrap_or(Orientation::NoTransforms)
}

/// Where the pixels of a picture as it lies in the file go in the upright one.
pub(super) struct Upright {
    /// Size in the file.
    from_width: usize,
    /// Size upright.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Place of the first pixel, and the steps to the next in the row and in the column, in pixels.
    origin: isize,
    across: isize,
    down: isize,
}

impl Upright {
    /// For a picture of `width` × `height` in the file.
    pub(super) fn new(width: usize, height: usize, orientation: Orientation) -> Upright {
        let (w, h) = (width as isize, height as isize);
        let (turned, origin, across, down) = match orientation {
            Orientation::NoTransforms => (false, 0, 1, w),
            Orientation::FlipHorizontal => (false, w - 1, -1, w),
            Orientation::Rotate180 => (false, w * h - 1, -1, -w),
            Orientation::FlipVertical => (false, (h - 1) * w, 1, -w),
            Orientation::Rotate90FlipH => (true, 0, h, 1),
            Orientation::Rotate90 => (true, h - 1, h, -1),
            Orientation::Rotate270FlipH => (true, w * h - 1, -h, -1),
            Orientation::Rotate270 => (true, (w - 1) * h, -h, 1),
        };
        let (upright_width, upright_height) = if turned { (height, width) } else { (width, height) };
        Upright { from_width: width, width: upright_width, height: upright_height, origin, across, down }
    }

    /// Writes whole rows, of which the first is the picture's `first`, to their places in `out`. A few rows at a
    /// time, so that a turned picture is not written byte by byte across all of memory.
    pub(super) fn place(&self, rows: &[u8], first: usize, out: &mut [u8]) {
        let stride = self.from_width * 3;
        if self.across == 1 {
            for (y, row) in rows.chunks_exact(stride).enumerate() {
                let at = (self.origin + (first + y) as isize * self.down) as usize * 3;
                out[at..at + stride].copy_from_slice(row);
            }
            return;
        }
        for x in 0..self.from_width {
            for y in 0..rows.len() / stride {
                let at = self.origin + x as isize * self.across + (first + y) as isize * self.down;
                let at = at as usize * 3;
                out[at..at + 3].copy_from_slice(&rows[y * stride + x * 3..][..3]);
            }
        }
    }
}

/// Turns a picture upright; needs a second one meanwhile.
fn upright(picture: Picture, orientation: Orientation) -> Result<Picture> {
    const ROWS: usize = 16;
    if orientation == Orientation::NoTransforms {
        return Ok(picture);
    }
    check_size(picture.width, picture.height, 6)?;
    let upright = Upright::new(picture.width, picture.height, orientation);
    let mut rgb = vec![0; picture.rgb.len()];
    for (i, rows) in picture.rgb.chunks(picture.width * 3 * ROWS).enumerate() {
        upright.place(rows, i * ROWS, &mut rgb);
    }
    Ok(Picture { width: upright.width, height: upright.height, rgb })
}
