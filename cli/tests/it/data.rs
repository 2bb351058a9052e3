//! `data`: what is wrong with data, and other programs' annotations as data.

use crate::{Scene, keys};
use serde_json::{Value, json};

/// Lines with a problem each but the first and the last.
const DATA: &str = r#"{"image":"a.png","prefix":"caption en","suffix":"a thing"}
{"image":"absent.png","prefix":"caption en","suffix":"a thing"}
{"image":"c.png","prefix":"caption en","suffix":"a thing"}
not json
{"image":"a.png","prefix":"caption en","suffix":""}
{"image":"a.png","prefix":"<image>caption en","suffix":"a thing"}
{"image":"a.png","prefix":"caption en\n","suffix":"a thing"}
{"image":"a.png","prefix":"caption en","suffix":" a thing"}
{"image":"a.png","prefix":"detect cat","suffix":"<loc0900><loc0000><loc0100><loc0100> cat"}
{"image":"a.png","prefix":"detect cat","suffix":"<loc0000><loc0000><loc0000><loc0100> cat"}
{"image":"a.png","prefix":"detect cat","suffix":"<loc0000><loc0000><loc0100><loc1024> cat"}
{"image":"a.png","prefix":"detect cat","suffix":"a cat"}
{"image":"a.png","prefix":"detect cat","suffix":"<loc0000><loc0000><loc0100><loc0100> dog"}
{"image":"a.png","prefix":"segment cat","suffix":"<loc0000><loc0000><loc0100><loc0100> cat"}
{"image":"a.png","prefix":"caption en","suffix":["a thing","LONG"]}

{"image":["a.png","b.jpg"],"prefix":"detect cat ; dog","suffix":"<loc0000><loc0000><loc0100><loc0100> dog"}
"#;

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("d.jsonl", DATA.replace("LONG", "a long thing, ".repeat(40).trim_end()));
    scene.write("c.png", b"no picture");
    scene
}

#[test]
fn a_tokenizer_is_trained_on_prefixes_and_suffixes() {
    let scene = Scene::new();
    scene.write(
        "t.playground",
        "split = \"train\"\ncount = 300\nsize = 28\n[tasks]\ncaption = 1\ncolour = 1\n",
    );
    let args = ["data", "tokenizer", "t.playground", "--pieces", "700", "-o", "t.model"];
    let json = scene.json(&args);
    assert_eq!(keys(&json), ["path", "pieces", "texts", "examples"]);
    assert_eq!((&json["pieces"], &json["examples"]), (&json!(700), &json!(300)));
    let tokens = scene.json(&["tokenize", "m", "answer en <loc0000>", "--tokenizer", "t.model"]);
    assert_eq!(tokens["ids"].as_array().unwrap().last(), Some(&json!(700)));
    let check = |args: &[&str], code: i32, why: &str| {
        let ran = scene.run(args);
        assert!(ran.code == code && ran.err.contains(why), "{args:?}: {ran:?}");
    };
    check(&args, 2, "exists");
    check(&["data", "tokenizer", "t.playground", "--pieces", "100", "-o", "x.model"], 2, "no room");
    check(&["data", "tokenizer", "absent.jsonl", "--pieces", "700", "-o", "x.model"], 3, "absent.jsonl");
}

#[test]
fn lint_names_every_problem_with_its_place() {
    let scene = scene();
    let ran = scene.run(&["data", "lint", "d.jsonl", "--model", "m", "--text-len", "64"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let want = [
        "d.jsonl:2: example: there is no image absent.png",
        "d.jsonl:3: image: this image file is text, which is not supported, in c.png, expected a PNG",
        "d.jsonl:4: example: the line is not a JSON object: expected ident, in d.jsonl:4:2",
        "d.jsonl:5: empty-suffix: the suffix is empty",
        "d.jsonl:6: text: the prefix has <image>, which is only text there",
        "d.jsonl:7: text: the prefix ends in a line break",
        "d.jsonl:8: text: the suffix begins or ends with white space",
        "d.jsonl:9: box: its box is inverted: <loc0900>",
        "d.jsonl:10: box: its box has no area",
        "d.jsonl:11: box: it has a location beyond 1023",
        "d.jsonl:12: box: it does not begin with a location: a cat",
        "d.jsonl:13: answer: the answer has a \"dog\"",
        "d.jsonl:14: answer: \"segment cat\" asks for masks",
        "d.jsonl:15: too-long: the text needs a length of ",
    ];
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), want.len(), "{}", ran.out);
    for (line, want) in lines.iter().zip(want) {
        assert!(line.starts_with(want), "{line}\n{want}");
    }
    assert!(ran.err.contains("16 examples, 14 problems"), "{}", ran.err);

    let json =
        scene.run(&["data", "lint", "d.jsonl", "--model", "m", "--text-len", "64", "--json", "-q"]).json();
    assert_eq!(keys(&json), ["examples", "problems", "counts"]);
    assert_eq!(json["examples"], 16);
    let counts =
        json!({"example": 2, "image": 1, "empty-suffix": 1, "text": 3, "box": 4, "answer": 2, "too-long": 1});
    assert_eq!(json["counts"], counts);
    let first = json!({"place": "d.jsonl:2", "check": "example"});
    assert_eq!(
        (&json["problems"][0]["place"], &json["problems"][0]["check"]),
        (&first["place"], &first["check"])
    );

    // Without pictures and tokens, two less; with the wrong fields, every line.
    let ran = scene.run(&["data", "lint", "d.jsonl", "--no-images"]);
    assert!(ran.err.contains("lengths were not checked") && ran.err.contains("12 problems"), "{}", ran.err);
    let ran = scene.run(&["data", "lint", "d.jsonl", "--suffix", "{answer}"]);
    assert_eq!((ran.code, ran.out.lines().count()), (3, 16), "{}", ran.out);
}

#[test]
fn lint_of_good_data_is_silent() {
    let scene = Scene::new();
    scene.write("d.jsonl", r#"{"image":"a.png","suffix":"a thing"}"#);
    let ran = scene.run(&["data", "lint", "d.jsonl", "--prefix", "caption en", "--model", "m"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", "1 examples, 0 problems\n"));
    for (args, code, what) in [
        (&["data", "lint", "nothing.jsonl"][..], 3, "there is no data file nothing.jsonl"),
        (&["data", "lint", "a.png"], 3, "no known kind of data"),
        (&["data", "lint", "d.jsonl", "--prefix", "{x"], 2, "an open brace"),
        (&["data", "lint", "d.jsonl", "--image-dir", "nowhere"], 3, "there is no image folder nowhere"),
        (&["data", "lint", "d.jsonl", "--model", "nowhere"], 2, "nowhere"),
        (&["data", "lint"], 2, "DATA"),
        (&["data"], 2, "Usage"),
    ] {
        let ran = scene.run(args);
        assert!(ran.code == code && ran.err.contains(what), "{args:?}: {ran:?}");
    }
}

#[test]
fn annotations_are_converted_and_nothing_is_overwritten() {
    let scene = Scene::new();
    let coco = json!({
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40], "iscrowd": 0,
             "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [10, 20, 0, 40], "iscrowd": 0, "segmentation": []},
            {"id": 3, "image_id": 1, "category_id": 5, "bbox": [10, 20, 3, 4], "iscrowd": 1, "segmentation": []},
        ],
        "categories": [{"id": 5, "name": "traffic_light"}],
    });
    scene.write("coco.json", coco.to_string());
    let ran = scene.run(&["data", "convert", "coco", "coco.json", "out.jsonl", "--spaces", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.json(),
        json!({"path": "out.jsonl", "lines": 1, "objects": 1, "pictures_without_objects": 0, "crowds": 1,
               "no_area": ["coco.json, annotation 2"]})
    );
    let line: Value = serde_json::from_str(&scene.read("out.jsonl")).unwrap();
    let suffix = "<loc0205><loc0102><loc0614><loc0409> traffic light";
    assert_eq!(line, json!({"image": "a.png", "prefix": "detect traffic light", "suffix": suffix}));
    // What comes out is good data.
    let ran = scene.run(&["data", "lint", "out.jsonl"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));

    let before = scene.read("out.jsonl");
    let ran = scene.run(&["data", "convert", "coco", "coco.json", "out.jsonl"]);
    assert!(ran.code == 2 && ran.err.contains("out.jsonl exists already"), "{ran:?}");
    assert_eq!(scene.read("out.jsonl"), before);

    // Masks, with the masks' model.
    scene.write_vqvae("vqvae.safetensors");
    let segment = ["--task", "segment", "--vqvae", "vqvae.safetensors"];
    scene.write("one.json", {
        let mut one = coco.clone();
        one["annotations"].as_array_mut().unwrap().truncate(1);
        one.to_string()
    });
    let ran = scene.run(&[&["data", "convert", "coco", "one.json", "masks.jsonl"], &segment[..]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(scene.read("masks.jsonl").matches("<seg").count(), 16);

    for (args, code, what) in [
        (
            &["data", "convert", "coco", "absent.json", "x.jsonl"][..],
            3,
            "there are no annotations absent.json",
        ),
        (&["data", "convert", "coco", "a.png", "x.jsonl"], 3, "no COCO annotation file"),
        (&["data", "convert", "yolo", "m", "x.jsonl"], 2, "yolo needs --images"),
        (&["data", "convert", "yolo", "m", "x.jsonl", "--images", "."], 2, "yolo needs --names"),
        (&["data", "convert", "coco", "coco.json", "x.jsonl", "--images", "."], 2, "coco needs no --images"),
        (&["data", "convert", "voc", "m", "x.jsonl", "--names", "a.png"], 2, "voc needs no --names"),
        (
            &["data", "convert", "masks", "m", "x.jsonl", "--images", ".", "--vqvae", "vqvae.safetensors"],
            3,
            "no mask",
        ),
        (&["data", "convert", "pascal", "m", "x.jsonl"], 2, "pascal"),
    ] {
        let ran = scene.run(args);
        assert!(ran.code == code && ran.err.contains(what), "{args:?}: {ran:?}");
        assert!(!scene.path("x.jsonl").exists() && !scene.path("x.jsonl.unfinished").exists(), "{args:?}");
    }
}

#[test]
fn preview_prints_and_draws_examples() {
    let scene = scene();
    scene.write_vqvae("vqvae.safetensors");
    let seg = "<seg005>".repeat(16);
    let lines = [
        json!({"image": "a.png", "prefix": "segment cat", "suffix": format!("<loc0000><loc0102><loc0512><loc1023>{seg} cat")}),
        json!({"image": ["a.png", "b.jpg"], "prefix": "answer en \"why\"?", "suffix": ["because\nof 猫", "never"]}),
        json!({"image": "absent.png", "prefix": "x", "suffix": "y"}),
    ];
    scene.write("p.jsonl", lines.map(|line| format!("{line}\n")).concat());
    let ran = scene.run(&["data", "preview", "p.jsonl"]);
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("there is no image absent.png") && ran.err.contains("p.jsonl:3"), "{}", ran.err);
    let text = format!(
        "p.jsonl:1  13×9\n  prefix  segment cat\n  suffix  <loc0000><loc0102><loc0512><loc1023>{seg} cat\n\
         p.jsonl:2  13×9 13×21  suffix 1 of 2\n  prefix  answer en \"why\"?\n  suffix  because\\nof 猫\n"
    );
    assert_eq!(ran.out, text);

    let args = ["data", "preview", "p.jsonl", "-n", "2", "-o", "sheet.png", "--vqvae", "vqvae.safetensors"];
    let json = scene.json(&args);
    assert_eq!(keys(&json), ["examples", "bad", "sheet"]);
    assert_eq!((&json["sheet"], &json["bad"]), (&json!("sheet.png"), &json!([])));
    let first = &json["examples"][0];
    assert_eq!(keys(first), ["place", "images", "prefix", "suffix", "suffixes", "objects"]);
    assert_eq!(first["images"], json!([[13, 9]]));
    assert_eq!(
        (&first["objects"][0]["label"], &first["objects"][0]["has_mask"]),
        (&json!("cat"), &json!(true))
    );
    let sheet = paligemma::image::decode_file(&scene.path("sheet.png")).unwrap();
    assert!(sheet.width > 800 && sheet.height > 300, "{}×{}", sheet.width, sheet.height);
    // Nothing is overwritten.
    let ran = scene.run(&args);
    assert!(ran.code == 2 && ran.err.contains("sheet.png exists already"), "{ran:?}");

    // With a seed they come in the order of training, which is another one for some seed.
    let places = |seed: &str| -> Vec<Value> {
        let json = scene.run(&["data", "preview", "d.jsonl", "-n", "16", "--json", "--seed", seed]).json();
        json["examples"].as_array().unwrap().iter().map(|example| example["place"].clone()).collect()
    };
    assert_eq!(places("1"), places("1"));
    assert_ne!(places("1"), places("2"));
    let mut all = places("1");
    assert_eq!(all.len(), 13);
    all.dedup();
    assert_eq!(all.len(), 13);
}
