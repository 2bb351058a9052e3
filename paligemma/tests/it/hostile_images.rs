//! Odd and hostile pictures: each is an answer or a named error, within two seconds and 300 MB.
//!
//! The files are built here, byte by byte, so that no blob is committed. The corpus is read in a process of its own,
//! whose memory and processor time are then known.

use std::io::Cursor;
use std::time::Instant;

use image::ExtendedColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use paligemma::Kind;
use paligemma::image::{Preprocess, ProcessorSettings, decode, decode_file, pixel_values};

use crate::image::made;

/// What must come of a file.
enum Outcome {
    /// A picture of this width and height.
    Picture(usize, usize),
    /// An error that says this.
    Error(&'static str),
    /// Either; which one is the decoder's affair.
    Any,
}
use Outcome::{Any, Error, Picture};

struct Case {
    name: String,
    bytes: Vec<u8>,
    outcome: Outcome,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, outcome: Outcome) -> Case {
    Case { name: name.into(), bytes: bytes.into(), outcome }
}

// --- PNG -------------------------------------------------------------------------------------------

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat()
}

/// A zlib stream of `count` zeros: with fixed codes 13 bits stand for 258 of them.
fn zeros(count: u64) -> Vec<u8> {
    let mut out = vec![0x78, 0x9c];
    let (mut bits, mut held) = (0u64, 0);
    let mut push = |value: u64, count: u32, out: &mut Vec<u8>| {
        bits |= value << held;
        held += count;
        while held >= 8 {
            out.push(bits as u8);
            bits >>= 8;
            held -= 8;
        }
    };
    // Codes go in from their highest bit: they are written mirrored.
    let literal = (0b0011_0000u64.reverse_bits() >> 56, 8);
    push(0b011, 3, &mut out);
    push(literal.0, literal.1, &mut out);
    let mut left = count - 1;
    while left >= 258 {
        push(0b1100_0101u64.reverse_bits() >> 56, 8, &mut out);
        push(0, 5, &mut out);
        left -= 258;
    }
    (0..left).for_each(|_| push(literal.0, literal.1, &mut out));
    push(0, 7, &mut out);
    push(0, 7, &mut out);
    let adler = ((count % 65521) as u32) << 16 | 1;
    [out, adler.to_be_bytes().to_vec()].concat()
}

fn png_header(width: u32, height: u32, bits: u8, colour: u8, interlaced: u8) -> Vec<u8> {
    let sides = [width.to_be_bytes(), height.to_be_bytes()].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &[sides, vec![bits, colour, 0, 0, interlaced]].concat())]
        .concat()
}

/// A black PNG with extra chunks before its pixels.
fn black_png(width: u32, height: u32, bits: u8, colour: u8, extra: &[Vec<u8>]) -> Vec<u8> {
    let samples = [1, 0, 3, 1, 2, 0, 4][usize::from(colour)];
    let row = 1 + (u64::from(width) * samples * u64::from(bits)).div_ceil(8);
    let data = chunk(b"IDAT", &zeros(row * u64::from(height)));
    [png_header(width, height, bits, colour, 0), extra.concat(), data, chunk(b"IEND", b"")].concat()
}

fn noise_png(width: u32, height: u32, colour: ExtendedColorType) -> Vec<u8> {
    let bytes = usize::from(colour.bits_per_pixel() / 8) * width as usize * height as usize;
    let noise = made("noise", 1, bytes.div_ceil(3), 1).rgb;
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(&noise[..bytes], width, height, colour).unwrap();
    out
}

fn pngs() -> Vec<Case> {
    let mut cases = vec![
        case("bomb 50000x50000", black_png(50_000, 1, 8, 2, &[]), Error("50000×1")),
        case("claims 50000x50000", png_header(50_000, 50_000, 8, 2, 0), Error("50000×50000")),
        case("claims 2^31", png_header(1 << 31, 1 << 31, 8, 2, 0), Error("2147483648×2147483648")),
        case("0x0", black_png(1, 1, 8, 2, &[])[..8].to_vec(), Error("ends before")),
        case("no width", png_header(0, 5, 8, 2, 0), Error("0×5")),
        case("no height", png_header(5, 0, 8, 2, 0), Error("5×0")),
        case("1x1", black_png(1, 1, 8, 2, &[]), Picture(1, 1)),
        case("1x16384", black_png(1, 16_384, 8, 2, &[]), Picture(1, 16_384)),
        case("16384x1", black_png(16_384, 1, 8, 2, &[]), Picture(16_384, 1)),
        case("16385x1", black_png(16_385, 1, 8, 2, &[]), Error("16385×1")),
        case("1x16385", black_png(1, 16_385, 8, 2, &[]), Error("1×16385")),
        case("50 million pixels", black_png(7071, 7071, 8, 2, &[]), Picture(7071, 7071)),
        case("50 million pixels, RGBA", black_png(7071, 7071, 8, 6, &[]), Picture(7071, 7071)),
        case("50 million pixels, bits", black_png(7071, 7071, 1, 0, &[]), Picture(7071, 7071)),
        case("one row more", black_png(7072, 7072, 8, 2, &[]), Error("7072×7072")),
        case("16-bit RGBA beyond memory", black_png(6000, 6000, 16, 6, &[]), Error("MiB")),
        case(
            "claims 5000x5000, holds 9 zeros",
            [png_header(5000, 5000, 8, 2, 0), chunk(b"IDAT", &zeros(9)), chunk(b"IEND", b"")].concat(),
            Error("broken"),
        ),
        case(
            "more data than pixels",
            [png_header(2, 2, 8, 2, 0), chunk(b"IDAT", &zeros(1 << 24)), chunk(b"IEND", b"")].concat(),
            Any,
        ),
        case(
            "text bomb",
            black_png(3, 2, 8, 2, &[chunk(b"zTXt", &[b"k\0\0".to_vec(), zeros(1 << 27)].concat())]),
            Picture(3, 2),
        ),
        case(
            "profile bomb",
            black_png(3, 2, 8, 2, &[chunk(b"iCCP", &[b"k\0\0".to_vec(), zeros(1 << 27)].concat())]),
            Any,
        ),
        case(
            "XMP bomb",
            {
                let xmp = [b"XML:com.adobe.xmp\0\x01\0\0\0".to_vec(), zeros(1 << 27)].concat();
                black_png(3, 2, 8, 2, &[chunk(b"iTXt", &xmp)])
            },
            Picture(3, 2),
        ),
        case("no pixels", [png_header(2, 2, 8, 2, 0), chunk(b"IEND", b"")].concat(), Error("broken")),
        case("no end", [png_header(2, 2, 8, 2, 0), chunk(b"IDAT", &zeros(14))].concat(), Any),
        case("3 bits", png_header(2, 2, 3, 0, 0), Error("broken")),
        case("colour type 5", png_header(2, 2, 8, 5, 0), Error("broken")),
        case("no palette", black_png(2, 2, 8, 3, &[]), Error("broken")),
        case("palette too short", black_png(2, 2, 8, 3, &[chunk(b"PLTE", &[1, 2])]), Any),
        case(
            "palette of a colour and a third, found by fuzzing",
            black_png(2, 2, 1, 3, &[chunk(b"PLTE", &[9; 4]), chunk(b"tRNS", &[0, 1])]),
            Error("palette has 4 bytes"),
        ),
        case("palette of 257", black_png(2, 2, 8, 3, &[chunk(b"PLTE", &[9; 771])]), Any),
        case(
            "palette",
            black_png(2, 2, 4, 3, &[chunk(b"PLTE", &[9; 6]), chunk(b"tRNS", &[0])]),
            Picture(2, 2),
        ),
        case(
            "transparency too long",
            black_png(2, 2, 8, 3, &[chunk(b"PLTE", &[9; 6]), chunk(b"tRNS", &[0; 300])]),
            Any,
        ),
        case(
            "two headers",
            black_png(2, 2, 8, 2, &[png_header(9000, 9000, 8, 2, 0)[8..].to_vec()]),
            Error("broken"),
        ),
        case("unknown critical chunk", black_png(2, 2, 8, 2, &[chunk(b"CRIT", b"x")]), Any),
        case("chunk of 4 GB", black_png(2, 2, 8, 2, &[b"\xff\xff\xff\xfftEXt".to_vec()]), Error("broken")),
        case(
            "exif that loops",
            {
                let exif = [&b"MM\0*\0\0\0\x08\xff\xff"[..], &[0; 24]].concat();
                black_png(2, 3, 8, 2, &[chunk(b"eXIf", &exif)])
            },
            Picture(2, 3),
        ),
        case(
            "animated",
            {
                let control = [&[0, 0, 0, 2, 0, 0, 0, 0][..]].concat();
                let frame =
                    [&[0; 4][..], &2u32.to_be_bytes(), &2u32.to_be_bytes(), &[0; 12], &[0, 0]].concat();
                black_png(2, 2, 8, 2, &[chunk(b"acTL", &control), chunk(b"fcTL", &frame)])
            },
            Picture(2, 2),
        ),
        case(
            "interlaced 1x1",
            [png_header(1, 1, 8, 2, 1), chunk(b"IDAT", &zeros(4)), chunk(b"IEND", b"")].concat(),
            Picture(1, 1),
        ),
        case(
            "interlaced and huge",
            [png_header(7000, 7000, 8, 2, 1), chunk(b"IDAT", &zeros(1000)), chunk(b"IEND", b"")].concat(),
            Error("broken"),
        ),
    ];
    let mut bad = noise_png(9, 9, Rgb8);
    bad[30] ^= 1;
    cases.push(case("bad CRC of the header", bad, Error("broken")));
    let mut bad = noise_png(9, 9, Rgb8);
    let last = bad.len() - 14;
    bad[last] ^= 1;
    cases.push(case("bad CRC of the pixels", bad, Error("broken")));
    for colour in [L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16] {
        cases.push(case(format!("PNG of {colour:?}"), noise_png(31, 7, colour), Picture(31, 7)));
    }
    cases
}

// --- JPEG ------------------------------------------------------------------------------------------

fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, marker][..], &(data.len() as u16 + 2).to_be_bytes(), data].concat()
}

/// A frame header; components are (sampling factors, table).
fn jpeg_frame(marker: u8, bits: u8, width: u16, height: u16, components: &[u8]) -> Vec<u8> {
    let mut data =
        [&[bits][..], &height.to_be_bytes(), &width.to_be_bytes(), &[components.len() as u8]].concat();
    components.iter().zip(1..).for_each(|(&factors, id)| data.extend([id, factors, 0]));
    segment(marker, &data)
}

fn jpeg_scan(components: u8, band: [u8; 3]) -> Vec<u8> {
    let mut data = vec![components];
    (1..=components).for_each(|id| data.extend([id, 0]));
    data.extend(band);
    segment(0xda, &data)
}

/// Tables with which a 0 bit means "no difference" and "end of block", and a 1 bit (of AC) "end of band, 32767 blocks".
fn jpeg_tables() -> Vec<u8> {
    let table = |number: u8, symbols: &[u8]| {
        let mut counts = [0; 16];
        symbols.iter().enumerate().for_each(|(i, _)| counts[i] = 1);
        segment(0xc4, &[&[number][..], &counts, symbols].concat())
    };
    [segment(0xdb, &[&[0][..], &[16; 64]].concat()), table(0x00, &[0]), table(0x10, &[0, 0xe0])].concat()
}

/// A grey JPEG, in which every block is two zero bits.
fn flat_jpeg(width: u16, height: u16, components: &[u8], extra: &[u8]) -> Vec<u8> {
    let blocks = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8) * components.len();
    let data = vec![0; blocks.div_ceil(4)];
    let head = [&[0xff, 0xd8][..], extra, &jpeg_tables()].concat();
    let frame = jpeg_frame(0xc0, 8, width, height, components);
    [head, frame, jpeg_scan(components.len() as u8, [0, 63, 0]), data, vec![0xff, 0xd9]].concat()
}

fn exif(orientation: u16, big: bool) -> Vec<u8> {
    let word = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let long = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let magic = if big { b"MM\0*" } else { b"II*\0" };
    let entry = [&word(0x112)[..], &word(3), &long(1), &word(orientation), &word(0)].concat();
    [b"Exif\0\0", &magic[..], &long(8), &word(1), &entry, &long(0)].concat()
}

fn encoded_jpeg(width: u32, height: u32) -> Vec<u8> {
    let picture = made("noise", 2, width as usize, height as usize);
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, 90).write_image(&picture.rgb, width, height, Rgb8).unwrap();
    out
}

fn jpegs() -> Vec<Case> {
    let start = || vec![0xff, 0xd8];
    let join = |parts: &[&[u8]]| [&[0xff, 0xd8], &parts.concat()[..]].concat();
    let tables = jpeg_tables();
    let rgb = [0x11, 0x11, 0x11];
    let frame = jpeg_frame(0xc0, 8, 9, 9, &rgb);
    let scan = jpeg_scan(3, [0, 63, 0]);
    let progressive = |width, height, scans: usize, runs: usize| {
        // Ends of bands of 16384 blocks each: a 1, a 0, and fourteen bits of zeros.
        let ac = [jpeg_scan(1, [1, 63, 0]), [0x80, 0x00].repeat(runs), vec![0]].concat();
        let dc_bits = usize::from(width) / 8 * (usize::from(height) / 8) * 3;
        let dc = [jpeg_scan(3, [0, 0, 0]), vec![0; dc_bits.div_ceil(8)]].concat();
        let frame = jpeg_frame(0xc2, 8, width, height, &rgb);
        join(&[&tables, &frame, &dc, &ac.repeat(scans), &[0xff, 0xd9]])
    };
    let mut cases = vec![
        case("JPEG 9x9", flat_jpeg(9, 9, &rgb, &[]), Picture(9, 9)),
        case("JPEG 1x1", flat_jpeg(1, 1, &rgb, &[]), Picture(1, 1)),
        case("JPEG 16384x1", flat_jpeg(16_384, 1, &rgb, &[]), Picture(16_384, 1)),
        case("JPEG 1x16384", flat_jpeg(1, 16_384, &rgb, &[]), Picture(1, 16_384)),
        case("JPEG 16385x1", flat_jpeg(16_385, 1, &rgb, &[]), Error("16385×1")),
        case("JPEG of 49 million pixels", flat_jpeg(7000, 7000, &rgb, &[]), Picture(7000, 7000)),
        case(
            "JPEG of 49 million pixels, turned",
            flat_jpeg(8000, 6125, &rgb, &segment(0xe1, &exif(6, true))),
            Picture(6125, 8000),
        ),
        case(
            "JPEG claims 65535x65535",
            flat_jpeg(8, 8, &rgb, &jpeg_frame(0xc0, 8, 65535, 65535, &rgb)),
            Error("65535×65535"),
        ),
        case(
            "JPEG claims 7000x7000, holds nothing",
            join(&[&tables, &jpeg_frame(0xc0, 8, 7000, 7000, &rgb), &scan]),
            Error("ends before"),
        ),
        case("grey JPEG", flat_jpeg(19, 9, &[0x11], &[]), Picture(19, 9)),
        case("grey JPEG sampled 4x4", flat_jpeg(19, 9, &[0x44], &[]), Picture(19, 9)),
        case("CMYK JPEG", flat_jpeg(19, 9, &[0x11; 4], &[]), Picture(19, 9)),
        case(
            "YCCK JPEG",
            flat_jpeg(19, 9, &[0x11; 4], &segment(0xee, b"Adobe\0\0\0\0\0\0\x02")),
            Picture(19, 9),
        ),
        case("JPEG of 2 components", flat_jpeg(9, 9, &[0x11; 2], &[]), Error("2 components")),
        case("JPEG of 5 components", flat_jpeg(9, 9, &[0x11; 5], &[]), Error("5 components")),
        case(
            "JPEG of 0 components",
            join(&[&tables, &jpeg_frame(0xc0, 8, 9, 9, &[])]),
            Error("0 components"),
        ),
        case("JPEG of 12 bits", join(&[&jpeg_frame(0xc1, 12, 9, 9, &rgb)]), Error("12 bits")),
        case("lossless JPEG", join(&[&jpeg_frame(0xc3, 8, 9, 9, &rgb)]), Error("lossless")),
        case("arithmetic JPEG", join(&[&jpeg_frame(0xc9, 8, 9, 9, &rgb)]), Error("arithmetic")),
        case("hierarchical JPEG", join(&[&jpeg_frame(0xc5, 8, 9, 9, &rgb)]), Error("hierarchical")),
        case("JPEG without height", join(&[&tables, &jpeg_frame(0xc0, 8, 9, 0, &rgb), &scan]), Error("9×0")),
        case("JPEG without width", join(&[&tables, &jpeg_frame(0xc0, 8, 0, 9, &rgb), &scan]), Error("0×9")),
        case("JPEG sampled 0", flat_jpeg(9, 9, &[0x11, 0x01, 0x11], &[]), Error("sampling")),
        case("JPEG sampled 5", flat_jpeg(9, 9, &[0x51, 0x11, 0x11], &[]), Error("sampling")),
        case("JPEG sampled 3:2", flat_jpeg(9, 9, &[0x31, 0x21, 0x11], &[]), Error("sampling")),
        case("JPEG with two frames", join(&[&tables, &frame, &frame, &scan]), Error("two frames")),
        case("JPEG, scan before frame", join(&[&tables, &scan, &frame]), Error("no frame")),
        case("JPEG without tables", join(&[&frame, &scan, &[0; 9]]), Error("table is missing")),
        case(
            "JPEG with an overfull code",
            join(&[&segment(0xc4, &[&[0][..], &[3], &[0; 15], &[1, 2, 3]].concat()), &frame]),
            Error("more codes than bits"),
        ),
        case(
            "JPEG with a code of 4080 symbols",
            join(&[&segment(0xc4, &[&[0][..], &[255; 16], &[0; 4080]].concat()), &frame]),
            Error("Huffman"),
        ),
        case(
            "JPEG with a short quantisation table",
            join(&[&segment(0xdb, &[0; 9]), &frame]),
            Error("quantisation"),
        ),
        case("JPEG with a segment of length 1", join(&[&[0xff, 0xe0, 0, 1], &frame]), Error("length")),
        case(
            "JPEG with a segment beyond its end",
            join(&[&[0xff, 0xe0, 0xff, 0xff], &frame]),
            Error("ends before"),
        ),
        case("JPEG of one marker", start(), Error("known format")),
        case("JPEG of two markers", vec![0xff, 0xd8, 0xff, 0xd9], Error("broken")),
        case(
            "JPEG that restarts, without restarts",
            flat_jpeg(64, 64, &rgb, &segment(0xdd, &[0, 1])),
            Error("restart"),
        ),
        case("JPEG with fill bytes", flat_jpeg(9, 9, &rgb, &[0xff; 99]), Picture(9, 9)),
        case(
            "JPEG with junk between segments",
            flat_jpeg(9, 9, &rgb, &[segment(0xfe, b"remark"), vec![7; 99]].concat()),
            Picture(9, 9),
        ),
        case(
            "JPEG whose scan repeats a component",
            join(&[&tables, &frame, &segment(0xda, &[3, 1, 0, 1, 0, 1, 0, 0, 63, 0]), &[0; 9]]),
            Error("scan header"),
        ),
        case(
            "JPEG whose scan names a stranger",
            join(&[&tables, &frame, &segment(0xda, &[1, 9, 0, 0, 63, 0]), &[0; 9]]),
            Error("frame lacks"),
        ),
        case("progressive JPEG", progressive(64, 64, 1, 1), Picture(64, 64)),
        case("progressive JPEG beyond memory", progressive(7000, 7000, 0, 0), Error("MiB")),
        case("progressive JPEG of 98 scans", progressive(4000, 4000, 98, 16), Picture(4000, 4000)),
        case("progressive JPEG of 5000 scans", progressive(64, 64, 5000, 1), Error("scans")),
        case(
            "progressive JPEG without its first scan",
            {
                join(&[
                    &tables,
                    &jpeg_frame(0xc2, 8, 64, 64, &rgb),
                    &jpeg_scan(1, [1, 63, 0]),
                    &[0x80, 0, 0, 0xff, 0xd9],
                ])
            },
            Error("ends before"),
        ),
        case(
            "progressive JPEG, band out of range",
            join(&[&tables, &jpeg_frame(0xc2, 8, 64, 64, &rgb), &jpeg_scan(1, [9, 3, 0]), &[0; 9]]),
            Error("out of range"),
        ),
        case("exif that is cut", flat_jpeg(9, 7, &rgb, &segment(0xe1, b"Exif\0\0MM\0*")), Picture(9, 7)),
        case(
            "exif that points away",
            flat_jpeg(9, 7, &rgb, &segment(0xe1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
            Picture(9, 7),
        ),
        case("exif orientation 0", flat_jpeg(9, 7, &rgb, &segment(0xe1, &exif(0, true))), Picture(9, 7)),
        case(
            "exif orientation 65535",
            flat_jpeg(9, 7, &rgb, &segment(0xe1, &exif(65535, false))),
            Picture(9, 7),
        ),
    ];
    for orientation in 1..=8 {
        let file = flat_jpeg(9, 7, &rgb, &segment(0xe1, &exif(orientation, orientation % 2 == 0)));
        let outcome = if orientation < 5 { Picture(9, 7) } else { Picture(7, 9) };
        cases.push(case(format!("exif orientation {orientation}"), file, outcome));
    }
    cases
}

// --- WebP ------------------------------------------------------------------------------------------

fn riff_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let padding = vec![0; data.len() % 2];
    [kind, &(data.len() as u32).to_le_bytes()[..], data, &padding].concat()
}

fn webp(chunks: &[Vec<u8>]) -> Vec<u8> {
    riff_chunk(b"RIFF", &[b"WEBP".to_vec(), chunks.concat()].concat())
}

fn lossless_webp(width: u32, height: u32, kind: &str) -> Vec<u8> {
    let picture = made(kind, 3, width as usize, height as usize);
    let mut out = Vec::new();
    WebPEncoder::new_lossless(&mut out).write_image(&picture.rgb, width, height, Rgb8).unwrap();
    out
}

fn extended(flags: u8, width: u32, height: u32) -> Vec<u8> {
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    riff_chunk(b"VP8X", &[vec![flags, 0, 0, 0], side(width), side(height)].concat())
}

/// A frame of an animation that covers `width` × `height` from a file made by [`lossless_webp`].
fn frame(width: u32, height: u32, file: &[u8]) -> Vec<u8> {
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    riff_chunk(
        b"ANMF",
        &[vec![0; 6], side(width), side(height), vec![100, 0, 0, 0], file[12..].to_vec()].concat(),
    )
}

fn webps() -> Vec<Case> {
    let small = lossless_webp(9, 7, "noise");
    let animation = riff_chunk(b"ANIM", &[0; 6]);
    let lossless = |width: u32, height: u32, data: &[u8]| {
        let bits = (width - 1) | (height - 1) << 14;
        webp(&[riff_chunk(b"VP8L", &[&[0x2f][..], &bits.to_le_bytes(), data].concat())])
    };
    let lossy = |width: u16, height: u16, data: &[u8]| {
        let head =
            [&[0x10, 0, 0, 0x9d, 0x01, 0x2a][..], &width.to_le_bytes(), &height.to_le_bytes(), data].concat();
        webp(&[riff_chunk(b"VP8 ", &head)])
    };
    vec![
        case("WebP", small.clone(), Picture(9, 7)),
        case("WebP 1x1", lossless_webp(1, 1, "noise"), Picture(1, 1)),
        case("WebP 1x16383", lossless_webp(1, 16_383, "waves"), Picture(1, 16_383)),
        case("WebP 16383x1", lossless_webp(16_383, 1, "waves"), Picture(16_383, 1)),
        case("WebP claims 16384x16384", lossless(16_384, 16_384, &[0; 64]), Error("16384×16384")),
        case("WebP claims 16384x1", lossless(16_384, 1, &[0; 64]), Error("broken")),
        case("WebP claims 6000x6000", lossless(6000, 6000, &[0; 64]), Any),
        case("WebP claims 7000x7000", lossless(7000, 7000, &[0; 64]), Error("MiB")),
        case("lossy WebP claims 16383x16383", lossy(16_383, 16_383, &[0; 64]), Error("16383×16383")),
        case("lossy WebP claims 7000x7000", lossy(7000, 7000, &[0; 64]), Any),
        case("lossy WebP without size", lossy(0, 0, &[0; 64]), Error("0×0")),
        case("lossy WebP without data", lossy(64, 64, &[]), Error("broken")),
        case("extended WebP of 2^24", webp(&[extended(0, 1 << 24, 1 << 24)]), Error("16777216×16777216")),
        case("extended WebP without picture", webp(&[extended(0, 9, 7)]), Error("broken")),
        case("extended WebP", webp(&[extended(0, 9, 7), small[12..].to_vec()]), Picture(9, 7)),
        case(
            "extended WebP of another size",
            webp(&[extended(0, 70, 70), small[12..].to_vec()]),
            Error("broken"),
        ),
        case(
            "extended WebP, exif 6",
            webp(&[extended(8, 9, 7), small[12..].to_vec(), riff_chunk(b"EXIF", &exif(6, true)[6..])]),
            Picture(7, 9),
        ),
        case(
            "extended WebP, exif 6 with a prefix",
            webp(&[extended(8, 9, 7), small[12..].to_vec(), riff_chunk(b"EXIF", &exif(6, false))]),
            Picture(7, 9),
        ),
        case(
            "animated WebP",
            webp(&[extended(2, 9, 7), animation.clone(), frame(9, 7, &small), frame(9, 7, &small)]),
            Picture(9, 7),
        ),
        case(
            "animated WebP, frame smaller than canvas",
            webp(&[extended(2, 99, 77), animation.clone(), frame(9, 7, &small)]),
            Picture(99, 77),
        ),
        case(
            "animated WebP, frame larger than canvas",
            webp(&[extended(2, 5, 5), animation.clone(), frame(9, 7, &small)]),
            Error("broken"),
        ),
        case(
            "animated WebP, frame lies about its size",
            webp(&[extended(2, 9, 7), animation.clone(), frame(8, 7, &small)]),
            Error("broken"),
        ),
        case("animated WebP without frames", webp(&[extended(2, 9, 7), animation.clone()]), Error("broken")),
        case(
            "animated WebP beyond memory",
            webp(&[extended(2, 7000, 7000), animation.clone(), frame(9, 7, &small)]),
            Error("MiB"),
        ),
        case(
            "large animated WebP",
            webp(&[extended(2, 4600, 4600), animation, frame(9, 7, &small)]),
            Picture(4600, 4600),
        ),
        case("WebP with an unknown first chunk", webp(&[riff_chunk(b"ABCD", &[0; 40])]), Error("unknown")),
        case("WebP of its head alone", webp(&[]), Error("ends before")),
        case("WebP whose chunk is too long", [&small[..16], &[0xff; 4], &small[20..]].concat(), Any),
    ]
}

// --- no pictures -----------------------------------------------------------------------------------

fn strangers() -> Vec<Case> {
    vec![
        case("empty", b"", Error("empty")),
        case("text", b"hello, this is no picture\n", Error("text")),
        case("GIF", b"GIF89a\x01\0\x01\0\0\0\0;", Error("GIF")),
        case("BMP", b"BM\x3a\0\0\0\0\0\0\0", Error("BMP")),
        case("TIFF", b"II*\0\x08\0\0\0\0\0", Error("TIFF")),
        case("AVIF", b"\0\0\0\x1cftypavif\0\0\0\0", Error("AVIF")),
        case("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", Error("HEIC")),
        case("SVG", b"<?xml version=\"1.0\"?><svg width=\"99999\"/>", Error("SVG")),
        case("PDF", b"%PDF-1.7\n", Error("PDF")),
        case("HTML", b"<!DOCTYPE html><p>404</p>", Error("HTML")),
        case("JPEG XL", b"\xff\x0a\0\0", Error("JPEG XL")),
        case("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n", Error("JPEG 2000")),
        case("PNM", b"P6 1 1 255\nabc", Error("PNM")),
        case("noise", made("noise", 4, 999, 1).rgb, Error("known format")),
        case("RIFF that is sound", b"RIFF\x24\0\0\0WAVEfmt ", Error("known format")),
        case("half a PNG signature", b"\x89PNG", Error("known format")),
    ]
}

/// Files cut at every 512th byte, and with single bytes spoilt.
fn damaged() -> Vec<Case> {
    let sources = [
        ("PNG", noise_png(64, 64, Rgb8)),
        ("16-bit PNG", noise_png(40, 40, Rgba16)),
        ("JPEG", encoded_jpeg(120, 100)),
        ("flat JPEG", flat_jpeg(600, 600, &[0x22, 0x11, 0x11], &segment(0xe1, &exif(5, true)))),
        ("WebP", lossless_webp(64, 64, "noise")),
    ];
    let mut cases = Vec::new();
    for (name, whole) in sources {
        for length in (0..whole.len()).step_by(512) {
            // The flat one has more data than its blocks need: what is cut off may be nothing.
            let outcome = if name == "flat JPEG" { Any } else { Error("") };
            cases.push(case(format!("{name} cut to {length}"), &whole[..length], outcome));
        }
        for i in 0..40 {
            let mut spoilt = whole.clone();
            // Half of the damage goes to the headers.
            let range = if i % 2 == 0 { whole.len().min(700) } else { whole.len() };
            let at = 8 + (i * 7919 + i * i * 31) % (range - 8);
            spoilt[at] ^= 1 << (i % 8);
            cases.push(case(format!("{name} spoilt at {at}"), spoilt, Any));
        }
    }
    cases
}

/// Decodes and resizes a file, → its sides, and the seconds that it took.
fn take(name: &str, bytes: &[u8]) -> (paligemma::Result<(usize, usize)>, f64) {
    let started = (processor_time(), Instant::now());
    let result = decode(bytes).and_then(|picture| {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3, "{name}");
        for size in [224, 448, 896] {
            let how = match size {
                224 => Preprocess::Reference { antialias: true },
                448 => Preprocess::Reference { antialias: false },
                _ => Preprocess::HuggingFace(ProcessorSettings::published(size)),
            };
            let values = pixel_values(&picture, size, &how)?;
            assert_eq!(values.len(), 3 * size * size, "{name}");
            assert!(values.iter().all(|value| (-1.0..=1.0).contains(value)), "{name}");
        }
        Ok((picture.width, picture.height))
    });
    // Other work on the machine must not fail the test: processor time counts where it is known.
    let seconds = match (started.0, processor_time()) {
        (Some(before), Some(after)) => after - before,
        _ => started.1.elapsed().as_secs_f64(),
    };
    (result, seconds)
}

/// None takes longer than `longest` seconds.
fn check(case: &Case, longest: f64) {
    let name = &case.name;
    let (result, seconds) = take(name, &case.bytes);
    assert!(seconds <= longest, "{name}: {seconds} s of {longest}");
    if let Err(error) = &result {
        assert_eq!(error.kind(), Kind::Input, "{name}: {error}");
        assert!(!error.what().contains("breaks its decoder"), "{name}: {error}");
    }
    match (&case.outcome, result) {
        (Picture(width, height), Ok(size)) => assert_eq!(size, (*width, *height), "{name}"),
        (Error(says), Err(error)) => assert!(error.to_string().contains(says), "{name}: {error}"),
        (Any, _) => {}
        (_, result) => panic!("{name}: {result:?}"),
    }
}

/// A number of kB in /proc/self/status, in bytes; none where there is no such file.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Seconds of processor time that this process has used, in all threads.
fn processor_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?) / 100.0)
}

const CHILD: &str = "PALIGEMMA_TEST_HOSTILE_IMAGES";

#[test]
fn odd_and_hostile_pictures_are_answered_or_refused() {
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "hostile_images::odd_and_hostile_pictures_are_answered_or_refused",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success(), "{out}\n{err}");
        return;
    }
    let groups = [pngs(), jpegs(), webps(), strangers()];
    assert!(groups.iter().map(Vec::len).sum::<usize>() >= 100);
    let before = status("VmHWM");
    // Machines differ, so the measure is an honest picture: the largest of the others has 12 times its pixels.
    let plain = noise_png(2000, 2000, Rgb8);
    let longest = 40.0 * (0..3).map(|_| take("plain", &plain).1).fold(f64::INFINITY, f64::min);
    groups.iter().flatten().for_each(|case| check(case, longest));
    damaged().iter().for_each(|case| check(case, longest));
    if let (Some(before), Some(after)) = (before, status("VmHWM")) {
        let rise = (after - before) / 1_000_000;
        assert!(rise <= 300, "memory rose by {rise} MB");
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.png");
    // A sparse file takes no room.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = decode_file(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    assert!(error.to_string().contains("large.png") && error.to_string().contains("MiB"), "{error}");
    assert_eq!(decode_file(&folder.path().join("absent.png")).unwrap_err().kind(), Kind::Io);
    assert_eq!(decode_file(folder.path()).unwrap_err().kind(), Kind::Io);
}

#[test]
fn the_name_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.gif");
    std::fs::write(&path, noise_png(5, 3, Rgb8)).unwrap();
    let picture = decode_file(&path).unwrap();
    assert_eq!((picture.width, picture.height), (5, 3));
    let by_library =
        image::ImageReader::new(Cursor::new(noise_png(5, 3, Rgb8))).with_guessed_format().unwrap();
    assert_eq!(picture.rgb, by_library.decode().unwrap().into_rgb8().into_raw());
}
