//! `mask`: codes to masks and masks to codes.

use crate::{Scene, keys};
use paligemma::image::{Mask, Rle, decode_file, png_of_mask};
use serde_json::{Value, json};

const CODES: &str = "5,0,127,9,5,0,127,9,5,0,127,9,5,0,127,9";

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write_vqvae("vae.safetensors");
    scene
}

/// `mask` with these words and the masks' model.
fn mask<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["mask"], words, &["--vqvae", "vae.safetensors"]].concat()
}

fn rle(value: &Value) -> Mask {
    let size = |i: usize| value["size"][i].as_u64().unwrap() as usize;
    Rle::from_compressed(value["counts"].as_str().unwrap(), size(1), size(0)).unwrap().to_mask()
}

#[test]
fn codes_become_a_mask() {
    let scene = scene();
    let json = scene.json(&mask(&["decode", CODES, "-o", "m.png"]));
    assert_eq!(keys(&json), ["codes", "values", "rle"]);
    assert_eq!(json["codes"][2], json!(127));
    let rows = json["values"].as_array().unwrap();
    assert!(rows.len() == 64 && rows.iter().all(|row| row.as_array().unwrap().len() == 64));
    let values: Vec<f64> =
        rows.iter().flat_map(|r| r.as_array().unwrap()).map(|v| v.as_f64().unwrap()).collect();
    let small = rle(&json["rle"]);
    assert_eq!(small.bits, values.iter().map(|&v| v > 0.0).collect::<Vec<_>>());
    assert!((1..4096).contains(&small.area()), "{}", small.area());
    let grey = |name: &str| decode_file(&scene.path(name)).unwrap();
    let picture = grey("m.png");
    assert_eq!((picture.width, picture.height), (64, 64));
    assert!(picture.rgb.chunks(3).zip(&small.bits).all(|(p, &bit)| p == if bit { [255; 3] } else { [0; 3] }));

    // On a picture, where the box's corners are cut to whole pixels.
    let onto = ["decode", CODES, "--box", "10.9,20,200,150", "--size", "320x240", "-o", "m.png", "-q"];
    assert_eq!(scene.run(&mask(&onto)).code, 0);
    assert_eq!((grey("m.png").width, grey("m.png").height), (320, 240));
    let pasted = rle(&scene.json(&mask(&onto))["rle"]);
    let bounds = pasted.bounds().unwrap();
    assert!(bounds.x0 >= 10 && bounds.y0 >= 20 && bounds.x1 <= 200 && bounds.y1 <= 150, "{bounds:?}");
    assert!(grey("m.png").rgb.chunks(3).zip(&pasted.bits).all(|(p, &bit)| (p[0] == 255) == bit));

    // Without a file and without JSON it is shown, two rows a line.
    let shown = scene.run(&mask(&["decode", CODES])).out;
    assert_eq!(shown.lines().count(), 32);
    let of = |c: char| match c {
        '█' => 2,
        '▀' | '▄' => 1,
        _ => 0,
    };
    assert_eq!(shown.chars().map(of).sum::<usize>(), small.area());
    // The same codes as an answer has them.
    let segs: String = CODES.split(',').map(|n| format!("<seg{:03}>", n.parse::<u8>().unwrap())).collect();
    assert_eq!(scene.json(&mask(&["decode", &segs])), scene.json(&mask(&["decode", CODES])));
}

#[test]
fn a_mask_becomes_codes() {
    let scene = scene();
    let bits = (0..200 * 100).map(|i| (40..120).contains(&(i % 200)) && i / 200 < 50).collect();
    let picture = Mask { width: 200, height: 100, bits };
    scene.write("m.png", png_of_mask(&picture).unwrap());
    let whole = scene.json(&mask(&["encode", "m.png"]));
    assert_eq!(keys(&whole), ["codes", "text"]);
    let codes: Vec<u64> = whole["codes"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).collect();
    assert!(codes.len() == 16 && codes.iter().all(|&c| c < 128));
    let text: String = codes.iter().map(|c| format!("<seg{c:03}>")).collect();
    assert_eq!(whole["text"], json!(text));
    assert_eq!(scene.run(&mask(&["encode", "m.png"])).out, format!("{text}\n"));
    // A box is cut out first, and said in the text.
    let boxed = scene.json(&mask(&["encode", "m.png", "--box", "40,0,120,50"]));
    assert_ne!(boxed["codes"], whole["codes"]);
    let text = boxed["text"].as_str().unwrap();
    assert!(text.starts_with("<loc0000><loc0205><loc0512><loc0614><seg"), "{text}");
    let full = Mask { width: 80, height: 50, bits: vec![true; 4000] };
    scene.write("full.png", png_of_mask(&full).unwrap());
    assert_eq!(scene.json(&mask(&["encode", "full.png"]))["codes"], boxed["codes"]);
}

#[test]
fn the_model_within_the_program_says_whose_codes_are_its() {
    let scene = Scene::new();
    let from_middle = |i: usize| (i % 64).abs_diff(32).pow(2) + (i / 64).abs_diff(32).pow(2);
    let bits = (0..64 * 64).map(|i| from_middle(i) < 900).collect();
    let disc = Mask { width: 64, height: 64, bits };
    scene.write("disc.png", png_of_mask(&disc).unwrap());
    let ran = scene.run(&["mask", "encode", "disc.png"]);
    assert!(ran.code == 0 && ran.err.contains("vae-oid.npz"), "{ran:?}");
    let ran = scene.run(&["mask", "decode", ran.out.trim(), "-o", "back.png", "-q"]);
    assert!(ran.code == 0 && ran.err.is_empty(), "{ran:?}");
    let back = decode_file(&scene.path("back.png")).unwrap();
    let is_in = |i: usize| back.rgb[3 * i] > 127;
    let pairs = || disc.bits.iter().enumerate().map(|(i, &bit)| (bit, is_in(i)));
    let both = pairs().filter(|(a, b)| *a && *b).count();
    let either = pairs().filter(|(a, b)| *a || *b).count();
    assert!(both as f64 / either as f64 > 0.9, "{both} of {either}");
}

#[test]
fn wrong_codes_boxes_and_masks_are_named() {
    let scene = scene();
    let check = |words: &[&str], code: i32, says: &str| {
        let ran = scene.run(words);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{words:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: ") && ran.err.contains(says), "{words:?}: {}", ran.err);
    };
    check(&mask(&["decode", "1,2,3"]), 2, "3 mask codes");
    check(&mask(&["decode", &CODES.replace("127", "128")]), 2, "\"128\"");
    check(&mask(&["decode", ""]), 2, "\"\"");
    check(&mask(&["decode", CODES, "--box", "0,0,9,9"]), 2, "--size");
    check(&mask(&["decode", CODES, "--size", "9x9"]), 2, "--box");
    check(&mask(&["decode", CODES, "--box", "9,0,0,9", "--size", "9x9"]), 2, "X0 below X1");
    check(&mask(&["decode", CODES, "--box", "0,0,9", "--size", "9x9"]), 2, "X0,Y0,X1,Y1");
    check(&mask(&["decode", CODES, "--box", "0,0,9,9", "--size", "9by9"]), 2, "640x480");
    check(&mask(&["decode", CODES, "--box", "0,0,9,9", "--size", "16384x16384"]), 2, "pixels");
    check(&mask(&["decode", CODES, "-o", "absent/m.png"]), 1, "absent/m.png");
    check(&mask(&["encode", "absent.png"]), 3, "absent.png");
    check(&mask(&["encode", "b.jpg"]), 3, "colours");
    scene.write("m.png", png_of_mask(&Mask { width: 9, height: 9, bits: vec![true; 81] }).unwrap());
    check(&mask(&["encode", "m.png", "--box", "900,900,950,950"]), 3, "no pixel");
    scene.write("broken.npz", "PK\x03\x04");
    check(&["mask", "decode", CODES, "--vqvae", "broken.npz"], 1, "broken.npz");
    check(&["mask", "decode", CODES, "--vqvae", "m/model.safetensors"], 1, "no part of the masks' model");
    check(&["mask", "decode", CODES, "--vqvae", "absent"], 2, "absent");
}
