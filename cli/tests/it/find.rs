//! `detect` and `segment`: objects as text, as JSON, drawn, and as masks; one picture or many.

use crate::{Ran, Scene, keys};
use paligemma::{
    image::{Rle, decode_file, fill_polygons},
    text::{BoxScale, parse_answer},
};
use serde_json::{Value, json};
use std::fs;

/// Random draws, so that the tiny model finds something.
const DRAWN: [&str; 6] = ["--temperature", "1", "--seed", "3", "-n", "100"];

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write_vqvae("vae");
    fs::create_dir(scene.path("shots")).unwrap();
    fs::copy(scene.path("a.png"), scene.path("shots/1.png")).unwrap();
    fs::copy(scene.path("b.jpg"), scene.path("shots/2.JPG")).unwrap();
    scene.write("shots/notes.txt", "no picture");
    scene
}

fn detect<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["detect", "m"], args, &DRAWN].concat()
}

fn segment<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["segment", "m"], args, &["--vqvae", "vae"], &DRAWN].concat()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn json_has_every_object_in_pixels_of_the_picture() {
    let scene = scene();
    // The picture is turned upright by its EXIF: boxes are of what one sees.
    for (image, things) in [("a.png", &["cat", "dog ; coffee cup"][..]), ("b.jpg", &["cat"])] {
        let answer = scene.json(&detect(&[&[image], things].concat()));
        let want = ["image", "width", "height", "detections", "malformed", "text", "tokens"];
        assert!(keys(&answer).starts_with(&want), "{:?}", keys(&answer));
        let picture = decode_file(&scene.path(image)).unwrap();
        assert_eq!((&answer["width"], &answer["height"]), (&json!(picture.width), &json!(picture.height)));
        let parsed = parse_answer(answer["text"].as_str().unwrap());
        let objects = answer["detections"].as_array().unwrap();
        assert!(!objects.is_empty() && objects.len() == parsed.objects.len(), "{answer}");
        assert_eq!(answer["malformed"], json!([]));
        for (json, found) in objects.iter().zip(parsed.objects) {
            assert_eq!(keys(json), ["label", "box", "score"]);
            assert_eq!(json["label"], json!(found.object.label));
            let bins = found.object.bins;
            let want = bins.to_pixels(picture.width, picture.height, BoxScale::Reference);
            assert_eq!(numbers(&json["box"]), want);
            assert!((0.0..=1.0).contains(&json["score"].as_f64().unwrap()));
        }
    }
}

#[test]
fn text_is_a_line_an_object() {
    let scene = scene();
    let answer = scene.json(&detect(&["a.png", "cat"]));
    let lines: String = answer["detections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| {
            let b: Vec<String> = numbers(&d["box"]).iter().map(|v| format!("{v:.1}")).collect();
            format!(
                "{:.2}\t{}\t{}\n",
                d["score"].as_f64().unwrap() as f32,
                b.join(","),
                d["label"].as_str().unwrap()
            )
        })
        .collect();
    let ran = scene.run(&detect(&["a.png", "cat"]));
    assert_eq!((ran.code, ran.out), (0, lines));
    // Too few tokens for an object: nothing is found, and it says why.
    let ran = scene.run(&["detect", "m", "a.png", "cat", "-n", "3"]);
    assert!(ran.code == 0 && ran.out.is_empty(), "{ran:?}");
    assert!(ran.err.contains("nothing was found") && ran.err.contains("--max-tokens"), "{ran:?}");
    assert_eq!(scene.run(&["detect", "m", "a.png", "cat", "-n", "3", "-q"]).err, "");
    // Free, it says noise, which is told piece by piece.
    let ran = scene.run(&detect(&["a.png", "cat", "--free"]));
    assert!(ran.code == 0 && ran.err.contains("no object: "), "{ran:?}");
    let answer = scene.json(&detect(&["a.png", "cat", "--free"]));
    assert_eq!(keys(&answer["malformed"][0]), ["text", "why"]);
}

#[test]
fn objects_are_left_out_and_made_finer_as_asked() {
    let scene = scene();
    let of = |more: &[&str]| {
        let all = scene.json(&detect(&[&["a.png", "cat"], more].concat()));
        all["detections"].as_array().unwrap().clone()
    };
    let all = of(&[]);
    let best = all.iter().map(|d| d["score"].as_f64().unwrap()).fold(0.0, f64::max);
    let threshold = (best * 0.999).to_string();
    let kept = of(&["--threshold", &threshold]);
    assert!(!kept.is_empty() && kept.len() < all.len() && kept.iter().all(|d| all.contains(d)), "{kept:?}");
    // Of one label, with any overlap at all forbidden, no two that are left overlap.
    let apart = of(&["--nms", "0"]);
    let boxes: Vec<[f64; 4]> = apart.iter().map(|d| numbers(&d["box"]).try_into().unwrap()).collect();
    for (i, &a) in boxes.iter().enumerate() {
        assert!(boxes[..i].iter().all(|&b| paligemma::detection::iou(a, b) == 0.0), "{boxes:?}");
    }
    assert!(apart.len() < all.len());
    let ran = scene.run(&detect(&["a.png", "cat", "--nms", "0"]));
    assert_eq!(ran.out.lines().count(), apart.len());
    // Sixteen bins at most away, and between bins.
    let picture = decode_file(&scene.path("a.png")).unwrap();
    let expected = of(&["--expected"]);
    let mut moved = 0;
    for (a, b) in all.iter().zip(&expected) {
        for (i, (a, b)) in numbers(&a["box"]).into_iter().zip(numbers(&b["box"])).enumerate() {
            let side = [picture.width, picture.height][i % 2] as f64;
            assert!((a - b).abs() <= 16.0 / 1023.0 * side, "{a} {b}");
            moved += usize::from(a != b);
        }
    }
    assert!(moved > 0);
    let demos = of(&["--box-scale", "1024"]);
    for (a, b) in all.iter().zip(&demos) {
        let pairs = numbers(&a["box"]).into_iter().zip(numbers(&b["box"]));
        assert!(pairs.into_iter().all(|(a, b)| (a * 1023.0 / 1024.0 - b).abs() < 1e-9));
    }
}

#[test]
fn masks_come_in_three_forms_and_as_files() {
    let scene = scene();
    let of = |more: &[&str]| scene.json(&segment(&[&["a.png", "cat"], more].concat()));
    let rle = of(&["--masks", "masks"]);
    let polygons = of(&["--mask-format", "polygons"]);
    let png = of(&["--mask-format", "png"]);
    let objects = rle["detections"].as_array().unwrap();
    assert!(!objects.is_empty());
    let mut any = 0;
    for (i, object) in objects.iter().enumerate() {
        assert_eq!(keys(object), ["label", "box", "score", "mask"]);
        assert_eq!(keys(&object["mask"]), ["rle", "file"]);
        let size = numbers(&object["mask"]["rle"]["size"]);
        assert_eq!(json!([size[1], size[0]]), json!([rle["width"].as_f64(), rle["height"].as_f64()]));
        let counts = object["mask"]["rle"]["counts"].as_str().unwrap();
        let mask = Rle::from_compressed(counts, size[1] as usize, size[0] as usize).unwrap().to_mask();
        any += mask.area();
        let file = decode_file(&scene.path(object["mask"]["file"].as_str().unwrap())).unwrap();
        let of_file = |rgb: &[u8]| rgb.as_chunks::<3>().0.iter().map(|p| p[0] == 255).collect::<Vec<_>>();
        assert_eq!(of_file(&file.rgb), mask.bits);
        let outline: Vec<Vec<[f64; 2]>> = polygons["detections"][i]["mask"]["polygons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| numbers(p).as_chunks().0.to_vec())
            .collect();
        assert_eq!(fill_polygons(&outline, mask.width, mask.height).unwrap(), mask);
        let text = png["detections"][i]["mask"]["png"].as_str().unwrap();
        assert!(text.starts_with("iVBORw0KGgo"), "{text}");
        // Nothing is mask outside the box.
        if let Some(bounds) = mask.bounds() {
            let b = numbers(&object["box"]);
            assert!(bounds.x0 as f64 >= b[0].floor() && bounds.x1 as f64 <= b[2], "{bounds:?} {b:?}");
            assert!(bounds.y0 as f64 >= b[1].floor() && bounds.y1 as f64 <= b[3], "{bounds:?} {b:?}");
        }
    }
    assert!(any > 0);
}

#[test]
fn what_was_found_is_drawn() {
    let scene = scene();
    let ran = scene.run(&segment(&["a.png", "cat", "-o", "found.png"]));
    assert!(ran.code == 0 && ran.err.contains("wrote found.png, enlarged"), "{ran:?}");
    let (drawn, picture) =
        (decode_file(&scene.path("found.png")), decode_file(&scene.path("a.png")).unwrap());
    let drawn = drawn.unwrap();
    assert_eq!(drawn.width % picture.width, 0);
    assert!(drawn.width.max(drawn.height) >= 480);
    // Its file may be written again.
    assert_eq!(scene.run(&detect(&["a.png", "cat", "-o", "found.png", "-q"])).code, 0);
}

#[test]
fn many_pictures_are_a_folder_or_a_pattern() {
    let scene = scene();
    let lines =
        |ran: &Ran| -> Vec<Value> { ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    let one = scene.json(&detect(&["b.jpg", "cat"]));
    for images in ["shots", "shots/*.[pJ]*"] {
        let ran = scene.run(&detect(&[images, "cat", "--json", "-o", "drawn"]));
        assert_eq!(ran.code, 0, "{ran:?}");
        let answers = lines(&ran);
        assert_eq!(
            answers.iter().map(|a| a["image"].as_str().unwrap()).collect::<Vec<_>>(),
            ["shots/1.png", "shots/2.JPG"]
        );
        assert_eq!(answers[1]["detections"], one["detections"]);
        assert!(scene.path("drawn/1.png.png").is_file() && scene.path("drawn/2.JPG.png").is_file());
    }
    let ran = scene.run(&detect(&["shots", "cat"]));
    assert!(
        ran.out.lines().all(|line| line.starts_with("shots/") && line.split('\t').count() == 4),
        "{ran:?}"
    );
    // A bad one is told, and the others go on.
    scene.write("shots/0.png", "no picture");
    let ran = scene.run(&detect(&["shots", "cat", "--json"]));
    assert_eq!((ran.code, lines(&ran).len()), (3, 2), "{ran:?}");
    assert!(ran.err.contains("shots/0.png"), "{ran:?}");
    // From stdin.
    let bytes = fs::read(scene.path("b.jpg")).unwrap();
    let piped = scene.run_with_stdin(&detect(&["-", "cat", "--json"]), &bytes).json();
    assert_eq!(piped["detections"], one["detections"]);
    // A name with the signs of a pattern is that file.
    fs::copy(scene.path("b.jpg"), scene.path("[1].jpg")).unwrap();
    assert_eq!(scene.json(&detect(&["[1].jpg", "cat"]))["detections"], one["detections"]);
}
