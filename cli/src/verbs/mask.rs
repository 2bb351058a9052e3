//! `mask decode`, `mask encode`: between a mask and its sixteen codes.

use crate::{
    args::{Args, Size},
    output::{note, print, print_json, print_line, write_file},
};
use paligemma::{
    Error, Kind, Result,
    image::{Plane, Rect, Rle, decode_file, mask_of_picture, png_of_mask},
    masks::MaskCodec,
    text::{Bins, PixelBox, write_codes},
};
use serde_json::json;
use std::{path::Path, process::ExitCode};

/// What the mask is decoded onto, and where it goes.
pub(super) struct Paste<'a> {
    pub(super) onto: Option<(PixelBox, Size)>,
    pub(super) output: Option<&'a Path>,
}

/// Says whose codes they are where no file was named.
pub(super) fn note_own(args: &Args, is_own: bool) {
    note(
        args.quiet || args.json || !is_own,
        "codes of this program's own masks' model; Google's checkpoints need --vqvae vae-oid.npz",
    );
}

pub(super) fn decode(
    args: &Args,
    codes: &str,
    vqvae: Option<&Path>,
    paste: &Paste<'_>,
) -> anyhow::Result<ExitCode> {
    let codes = read_codes(codes)?;
    note_own(args, vqvae.is_none());
    let values = MaskCodec::open(vqvae)?.decode(&[codes])?.swap_remove(0);
    let mask = match paste.onto {
        Some((pixels, Size { width, height })) => {
            values.paste(Rect::truncated(pixels, width, height), width, height)
        }
        None => values.paste(Rect::whole(values.width, values.height), values.width, values.height),
    };
    if let Some(path) = paste.output {
        write_file(path, &png_of_mask(&mask)?)?;
        note(args.quiet, format_args!("wrote {}", path.display()));
    }
    if args.json {
        let rows: Vec<&[f32]> = values.values.chunks(values.width).collect();
        let rle = Rle::from_mask(&mask);
        print_json(&json!({
            "codes": codes,
            "values": rows,
            "rle": { "size": [rle.height(), rle.width()], "counts": rle.compressed() },
        }))?;
    } else if paste.output.is_none() {
        print(blocks(&values).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn encode(
    args: &Args,
    mask: &Path,
    vqvae: Option<&Path>,
    pixels: Option<PixelBox>,
) -> anyhow::Result<ExitCode> {
    note_own(args, vqvae.is_none());
    let codec = MaskCodec::open(vqvae)?;
    let picture = decode_file(mask).map_err(|e| match e.kind() {
        Kind::Io => e.of_kind(Kind::Input),
        _ => e,
    })?;
    let plane = mask_of_picture(&picture).map_err(|e| e.at(mask.display().to_string()))?;
    let whole = [0.0, 0.0, plane.width as f64, plane.height as f64];
    let codes = codec.encode(&plane, pixels.unwrap_or(whole))?;
    let mut text = write_codes(&codes);
    if let Some(pixels) = pixels {
        let Bins { y_min, x_min, y_max, x_max } = Bins::from_pixels(pixels, plane.width, plane.height);
        let bins = [y_min, x_min, y_max, x_max].map(|n| format!("<loc{n:04}>")).concat();
        text.insert_str(0, &bins);
    }
    if args.json {
        print_json(&json!({ "codes": codes, "text": text }))?;
    } else {
        print_line(text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Sixteen numbers with commas between them, or sixteen `<seg…>`.
fn read_codes(text: &str) -> Result<[u8; 16]> {
    let wrong = |what: String| Error::usage(what).expected("sixteen numbers from 0 to 127, as in 5,0,127,…");
    let listed = text.replace("<seg", ",").replace('>', "");
    let codes = listed
        .trim_start_matches(',')
        .split(',')
        .map(|code| match code.trim().parse::<u8>() {
            Ok(n) if n < 128 => Ok(n),
            _ => Err(wrong(format!("\"{code}\" is no mask code"))),
        })
        .collect::<Result<Vec<u8>>>()?;
    let count = codes.len();
    codes.try_into().map_err(|_| wrong(format!("there are {count} mask codes")))
}

/// A plane as text, two rows a line.
fn blocks(plane: &Plane) -> String {
    let is_mask = |x: usize, y: usize| plane.values[y * plane.width + x] > 0.0;
    let cell = |x: usize, y: usize| match (is_mask(x, y), is_mask(x, y + 1)) {
        (true, true) => '█',
        (true, false) => '▀',
        (false, true) => '▄',
        (false, false) => ' ',
    };
    let line = |y: usize| (0..plane.width).map(|x| cell(x, y)).chain(['\n']).collect::<String>();
    (0..plane.height).step_by(2).map(line).collect()
}
