//! Pictures are read, resized and scaled as Pillow, TensorFlow and transformers do it, to the bit.
//!
//! The goldens are made by `reference/pictures.py`.

use std::path::{Path, PathBuf};

use paligemma::image::decode::{Grey16, decode_as};
use paligemma::image::resize::{as_pillow, as_tensorflow};
use paligemma::image::{Method, Picture, Preprocess, ProcessorSettings, Resample, decode_file, pixel_values};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/image")
}

/// The rows of a tab-separated table, without its head.
fn rows(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(goldens().join(name)).unwrap();
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn crc32(bytes: impl IntoIterator<Item = u8>) -> String {
    let crc = bytes.into_iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    format!("{:08x}", !crc)
}

fn crc32_of_values(values: &[f32]) -> String {
    crc32(values.iter().flat_map(|value| value.to_le_bytes()))
}

fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The picture that `made` in `reference/pictures.py` makes.
pub(crate) fn made(kind: &str, seed: u64, width: usize, height: usize) -> Picture {
    let key = |y: u64, x: u64, c: u64| mixed((seed << 40) ^ (y << 20) ^ (x << 2) ^ c);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in 0..height as u64 {
        for x in 0..width as u64 {
            for c in 0..3 {
                rgb.push(match kind {
                    "noise" => (key(y, x, c) >> 56) as u8,
                    "blocks" => (key(y / 7, x / 5, c) >> 63) as u8 * 255,
                    "waves" => {
                        let steps = key(0, 0, c);
                        let (across, down) = ((steps >> 8) % 13, (steps >> 16) % 11);
                        let at = (x * across + y * down + (steps >> 24) % 512) % 512;
                        if at < 256 { at as u8 } else { (511 - at) as u8 }
                    }
                    other => panic!("no picture of {other}"),
                });
            }
        }
    }
    Picture { width, height, rgb }
}

/// kind, seed, width, height at the head of a row.
fn made_by(row: &[String]) -> Picture {
    made(&row[0], row[1].parse().unwrap(), row[2].parse().unwrap(), row[3].parse().unwrap())
}

#[test]
fn files_decode_to_the_pixels_of_pillow() {
    let rows = rows("files.tsv");
    assert!(rows.len() > 100, "only {} files", rows.len());
    for row in rows {
        let [file, width, height, crc] = &row[..] else { panic!("{row:?}") };
        let picture = decode_file(&goldens().join("files").join(file)).unwrap();
        assert_eq!((&picture.width.to_string(), &picture.height.to_string()), (width, height), "{file}");
        assert_eq!(&crc32(picture.rgb), crc, "{file}");
    }
}

#[test]
fn grey_of_16_bits_has_both_rules() {
    let bytes = std::fs::read(goldens().join("files/png-0-16.png")).unwrap();
    let clipped = decode_as(&bytes, Grey16::Clip).unwrap();
    let high = decode_as(&bytes, Grey16::HighByte).unwrap();
    // The samples are noise: nearly all are above 255, so that clipping makes them white.
    let white = clipped.rgb.iter().filter(|&&value| value == 255).count();
    assert!(white * 100 > clipped.rgb.len() * 95, "{white}");
    // Row by row: two bytes a sample, the high one first.
    let noise = made("noise", 1, 26, 9);
    let expected =
        (0..9 * 13).flat_map(|i| [noise.rgb[(i / 13 * 26 + i % 13 * 2) * 3]; 3]).collect::<Vec<u8>>();
    assert_eq!(high.rgb, expected);
}

#[test]
fn pictures_are_resized_as_by_pillow() {
    let rows = rows("pillow.tsv");
    assert!(rows.len() >= 200, "only {} cases", rows.len());
    for row in rows {
        let filters = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"];
        let number = filters.iter().position(|&name| name == row[5]).unwrap();
        let target = row[4].parse().unwrap();
        let resized =
            as_pillow(&made_by(&row), target, target, Resample::from_number(number as u64).unwrap());
        assert_eq!(crc32(resized.rgb), row[6], "{row:?}");
    }
}

#[test]
fn pictures_are_resized_as_by_tensorflow() {
    let rows = rows("tensorflow.tsv");
    assert!(rows.len() >= 100, "only {} cases", rows.len());
    for row in rows {
        let (target, antialias) = (row[4].parse().unwrap(), row[5] == "1");
        let picture = made_by(&row);
        let resized = as_tensorflow(&picture, target, target, antialias);
        assert_eq!(crc32(resized.rgb), row[6], "{row:?}");
        let values = pixel_values(&picture, target, &Preprocess::Reference { antialias }).unwrap();
        assert_eq!(crc32_of_values(&values), row[7], "{row:?}");
    }
}

#[test]
fn pixel_values_are_those_of_transformers() {
    for row in rows("processor.tsv") {
        let settings = ProcessorSettings::from_json(&serde_json::from_str(&row[4]).unwrap()).unwrap();
        let values =
            pixel_values(&made_by(&row), row[5].parse().unwrap(), &Preprocess::HuggingFace(settings))
                .unwrap();
        assert_eq!(crc32_of_values(&values), row[6], "{row:?}");
    }
}

#[test]
fn pictures_are_resized_by_every_method_of_tensorflow() {
    let rows = rows("methods.tsv");
    assert!(rows.len() >= 150, "only {} cases", rows.len());
    for row in rows {
        let names = ["bilinear", "bicubic", "lanczos3", "area", "mitchellcubic"];
        let method = Method::ALL[names.iter().position(|&name| name == row[5]).unwrap()];
        let (target, antialias) = (row[4].parse().unwrap(), row[6] == "1");
        let resized = method.resize(&made_by(&row), target, target, antialias);
        assert_eq!(crc32(resized.rgb), row[7], "{row:?}");
    }
}
