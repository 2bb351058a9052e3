//! COCO, LVIS, YOLO, VOC and folders of masks as examples.

use std::fs;
use std::path::PathBuf;

use paligemma::Kind;
use paligemma::data::convert::{
    Annotated, Converted, Group, Task, convert, read_coco, read_lvis, read_mask_folder, read_voc, read_yolo,
    read_yolo_names,
};
use paligemma::image::{Mask, Rle, png_of_mask};
use paligemma::masks::MaskCodec;
use paligemma::text::parse_answer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::masks::vqvae;

fn done(pictures: &[Annotated], task: &Task<'_>, group: Group) -> paligemma::Result<Converted> {
    convert(pictures, task, group, &mut |_| Ok(()))
}

fn detect(pictures: &[Annotated]) -> paligemma::Result<Converted> {
    done(pictures, &Task::Detect, Group::Picture)
}

fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn coco(images: Value, annotations: Value) -> Value {
    let categories =
        json!([{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 1, "name": "traffic light"}]);
    json!({"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories})
}

/// One annotation of a picture of 640×480.
fn entry(id: u64, category: u64, bbox: [f64; 4]) -> Value {
    json!({"id": id, "image_id": 7, "category_id": category, "bbox": bbox, "iscrowd": 0, "area": 1.0,
           "segmentation": []})
}

/// `round(v * 1023)` of Python 3, which rounds halves to even, of what lies on the picture.
#[test]
fn boxes_of_coco_become_locations() {
    let folder = tempfile::tempdir().unwrap();
    let check = |bbox: [f64; 4], size: (usize, usize), want: Option<&str>| {
        let image = json!([{"id": 7, "file_name": "000007.jpg", "width": size.0, "height": size.1}]);
        let path = write(&folder, "a.json", coco(image, json!([entry(3, 17, bbox)])).to_string());
        let converted = detect(&read_coco(&path).unwrap()).unwrap();
        match want {
            Some(suffix) => assert_eq!(
                converted.lines,
                [json!({"image": "000007.jpg", "prefix": "detect cat", "suffix": format!("{suffix} cat")})],
                "{bbox:?}"
            ),
            None => {
                assert_eq!((converted.lines.len(), converted.num_empty), (0, 1), "{bbox:?}");
                assert_eq!(converted.skipped.no_area, [format!("{}, annotation 3", path.display())]);
            }
        }
    };
    check([10.5, 20.0, 30.0, 40.0], (640, 480), Some("<loc0043><loc0017><loc0128><loc0065>"));
    check([0.0, 0.0, 640.0, 480.0], (640, 480), Some("<loc0000><loc0000><loc1023><loc1023>"));
    // COCO's first annotation of its validation set has these numbers.
    check([472.07, 172.85, 38.77, 106.24], (640, 426), Some("<loc0415><loc0755><loc0670><loc0817>"));
    // Halves: 0.5 → 0, 1.5 → 2.
    check([1.0, 1.0, 2.0, 2.0], (2046, 2046), Some("<loc0000><loc0000><loc0002><loc0002>"));
    check([-5.0, -5.0, 705.0, 505.0], (640, 480), Some("<loc0000><loc0000><loc1023><loc1023>"));
    // 50.0 and 50.5 are one bin; nothing; outside.
    check([100.0, 50.0, 1.0, 10.0], (2046, 2046), None);
    check([5.0, 5.0, 0.0, 10.0], (640, 480), None);
    check([700.0, 5.0, 10.0, 10.0], (640, 480), None);
}

#[test]
fn things_are_asked_for_together_or_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let images = json!([
        {"id": 7, "file_name": "7.jpg", "width": 1023, "height": 1023},
        {"id": 8, "file_name": "8.jpg", "width": 10, "height": 10},
    ]);
    let mut crowd = entry(4, 17, [0.0, 0.0, 9.0, 9.0]);
    crowd["iscrowd"] = json!(1);
    let annotations = json!([
        entry(1, 18, [1.0, 2.0, 3.0, 4.0]),
        entry(2, 17, [5.0, 6.0, 7.0, 8.0]),
        entry(3, 18, [9.0, 9.0, 9.0, 9.0]),
        crowd,
    ]);
    let pictures = read_coco(&write(&folder, "a.json", coco(images, annotations).to_string())).unwrap();
    let dogs = ["<loc0002><loc0001><loc0006><loc0004> dog", "<loc0009><loc0009><loc0018><loc0018> dog"];
    let cat = "<loc0006><loc0005><loc0014><loc0012> cat";
    let converted = detect(&pictures).unwrap();
    let suffix = [dogs[0], cat, dogs[1]].join(" ; ");
    assert_eq!(converted.lines, [json!({"image": "7.jpg", "prefix": "detect dog ; cat", "suffix": suffix})]);
    assert_eq!((converted.num_objects, converted.num_empty, converted.skipped.crowds), (3, 1, 1));
    let converted = done(&pictures, &Task::Detect, Group::Thing).unwrap();
    assert_eq!(
        converted.lines,
        [
            json!({"image": "7.jpg", "prefix": "detect dog", "suffix": dogs.join(" ; ")}),
            json!({"image": "7.jpg", "prefix": "detect cat", "suffix": cat}),
        ]
    );
    // Labels that would end the object are refused with their place.
    let mut pictures = pictures;
    pictures[0].annotations[1].label = "a;b".into();
    let error = detect(&pictures).unwrap_err();
    assert!(error.kind() == Kind::Input && error.to_string().contains("a.json, annotation 2"), "{error}");
    pictures[0].annotations[1].label = "cat".into();
    pictures[0].annotations[1].pixels = Some([9.0, 9.0, 5.0, 10.0]);
    assert!(detect(&pictures).unwrap_err().to_string().contains("inverted"));
}

#[test]
fn broken_coco_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let image = || json!({"id": 7, "file_name": "7.jpg", "width": 9, "height": 9});
    let check = |document: Value, what: &str, place: &str| {
        let path = write(&folder, "a.json", document.to_string());
        let error = read_coco(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains(what) && error.to_string().contains(place), "{error}");
    };
    let entry = |change: &dyn Fn(&mut Value)| {
        let mut entry = entry(3, 17, [1.0, 1.0, 5.0, 5.0]);
        change(&mut entry);
        coco(json!([image()]), json!([entry]))
    };
    check(json!([]), "no COCO annotation file", "a.json");
    check(json!({"images": []}), "missing field `annotations`", "a.json");
    check(coco(json!([{"id": 7, "width": 9, "height": 9}]), json!([])), "no `file_name`", "image 7");
    check(coco(json!([{"id": 7, "file_name": "x", "width": 0, "height": 9}]), json!([])), "0×9", "image 7");
    check(coco(json!([image(), image()]), json!([])), "twice", "image 7");
    check(entry(&|e| e["image_id"] = json!(1)), "of image 1, which is not there", "annotation 3");
    check(entry(&|e| e["category_id"] = json!(99)), "of category 99, which is not there", "annotation 3");
    check(entry(&|e| e["bbox"] = json!([1, 2, 3])), "invalid length 3", "a.json");
    check(entry(&|e| e["bbox"] = json!(null)), "invalid type: null", "a.json");
    check(entry(&|e| e["segmentation"] = json!([[1, 2, 3]])), "3 numbers", "annotation 3");
    check(entry(&|e| e["segmentation"] = json!("x")), "did not match", "a.json");
    check(
        entry(&|e| e["segmentation"] = json!({"counts": [1], "size": [9, 9]})),
        "add up to 1",
        "annotation 3",
    );
    check(entry(&|e| e["segmentation"] = json!({"counts": "1", "size": [8, 9]})), "of 9×8", "annotation 3");
}

#[test]
fn lvis_names_pictures_by_their_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let image = json!([{"id": 7, "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg", "width": 9, "height": 9}]);
    let path = write(&folder, "a.json", coco(image, json!([])).to_string());
    assert_eq!(read_lvis(&path).unwrap()[0].image, "val2017/000000000139.jpg");
}

#[test]
fn label_files_of_yolo_become_locations() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["cat".to_owned(), "dog".to_owned()];
    write(&folder, "images/b.png", png_of_mask(&mask(20, 10, |_, _| false)).unwrap());
    write(&folder, "images/a.jpg", b"never opened");
    let (labels, images) = (folder.path().join("labels"), folder.path().join("images"));
    write(&folder, "labels/classes.txt", "cat\ndog\n");
    write(
        &folder,
        "labels/a.txt",
        "0 0.5 0.5 1 1\r\n\n1 0.25 0.75 0.1 0.2\n1 0.9 0.5 0.4 0.4\n0 0.5 0.5 0 0.2",
    );
    write(&folder, "labels/b.txt", "");
    let pictures = read_yolo(&labels, &images, &names).unwrap();
    let converted = detect(&pictures).unwrap();
    let suffix = "<loc0000><loc0000><loc1023><loc1023> cat ; <loc0665><loc0205><loc0870><loc0307> dog ; \
                  <loc0307><loc0716><loc0716><loc1023> dog";
    assert_eq!(converted.lines, [json!({"image": "a.jpg", "prefix": "detect cat ; dog", "suffix": suffix})]);
    assert_eq!((converted.num_empty, converted.skipped.no_area.len()), (1, 1));
    assert!(converted.skipped.no_area[0].ends_with("a.txt:5"));
    // A shape: its box is around it, its picture is opened for the size.
    write(&folder, "labels/b.txt", "1 0.1 0.2 0.6 0.2 0.6 0.9 0.1 0.9");
    let pictures = read_yolo(&labels, &images, &names).unwrap();
    assert_eq!((pictures[1].width, pictures[1].height), (20, 10));
    assert_eq!(detect(&pictures).unwrap().lines[1]["suffix"], "<loc0205><loc0102><loc0921><loc0614> dog");

    let check = |line: &str, what: &str| {
        write(&folder, "labels/b.txt", format!("0 0.5 0.5 1 1\n{line}"));
        let error = read_yolo(&labels, &images, &names).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains(what) && error.to_string().contains("b.txt:2"), "{error}");
    };
    check("2 0.5 0.5 1 1", "the class 2 has no name");
    check("cat 0.5 0.5 1 1", "the class cat has no name");
    check("-1 0.5 0.5 1 1", "the class -1 has no name");
    check("0 0.5 0.5 1", "3 numbers");
    check("0 0.5 0.5 1 1 0.9", "5 numbers");
    check("0 0.5 0.5 1 x", "x is no number");
    check("0 0.5 0.5 1 NaN", "NaN is no number");
    check("0 320 240 100 50", "320 is far outside");
    write(&folder, "labels/c.txt", "0 0.5 0.5 1 1");
    write(&folder, "labels/b.txt", "");
    let error = read_yolo(&labels, &images, &names).unwrap_err();
    assert!(error.to_string().contains("there is no picture c"), "{error}");
    let error = read_yolo(&images, &images, &names).unwrap_err();
    assert!(error.to_string().contains("no label file"), "{error}");

    let yaml = write(&folder, "data.yaml", "path: .\nnames:\n  0: cat\n  1: hot dog\n");
    assert_eq!(read_yolo_names(&yaml).unwrap(), ["cat", "hot dog"]);
    assert_eq!(read_yolo_names(&labels.join("classes.txt")).unwrap(), ["cat", "dog"]);
    let error = read_yolo_names(&write(&folder, "odd.yaml", "names: {0: cat}")).unwrap_err();
    assert!(error.kind() == Kind::Input && error.to_string().contains("odd.yaml"), "{error}");
    let error = read_yolo_names(&write(&folder, "gap.txt", "cat\n\ndog")).unwrap_err();
    assert!(error.to_string().contains("gap.txt:2"), "{error}");
}

#[test]
fn annotations_of_voc_become_locations() {
    let folder = tempfile::tempdir().unwrap();
    let object = |name: &str, corners: [f64; 4]| {
        let [xmin, ymin, xmax, ymax] = corners;
        format!(
            "<object><name>{name}</name><pose>Left</pose><difficult>0</difficult><bndbox><xmin>{xmin}</xmin>\
             <ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox><part><name>head</name><bndbox/>\
             </part></object>\n"
        )
    };
    let document = |objects: &str| {
        format!(
            "<?xml version=\"1.0\"?>\n<!-- VOC2007 -->\n<annotation><folder>VOC2007</folder><filename>000001.jpg</filename>\n\
             <size><width>353</width><height>500</height><depth>3</depth></size>\n{objects}</annotation>"
        )
    };
    // The first picture of VOC2007 has these two objects.
    let objects = object("dog", [48.0, 240.0, 195.0, 371.0]) + &object("person", [8.0, 12.0, 352.0, 498.0]);
    let path = write(&folder, "voc/000001.xml", document(&objects));
    write(&folder, "voc/readme.txt", "");
    let suffix = "<loc0489><loc0136><loc0759><loc0565> dog ; <loc0023><loc0020><loc1019><loc1020> person";
    let want = [json!({"image": "000001.jpg", "prefix": "detect dog ; person", "suffix": suffix})];
    assert_eq!(detect(&read_voc(&path).unwrap()).unwrap().lines, want);
    assert_eq!(detect(&read_voc(path.parent().unwrap()).unwrap()).unwrap().lines, want);
    // The whole picture.
    let path = write(&folder, "whole.xml", document(&object("x &amp; y", [1.0, 1.0, 353.0, 500.0])));
    let lines = detect(&read_voc(&path).unwrap()).unwrap().lines;
    assert_eq!(lines[0]["suffix"], "<loc0000><loc0000><loc1023><loc1023> x & y");

    let check = |text: &str, what: &str, place: &str| {
        let path = write(&folder, "bad.xml", text);
        let error = read_voc(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Input, "{error}");
        assert!(error.to_string().contains(what) && error.to_string().contains(place), "{error}");
    };
    check("", "no XML", "bad.xml");
    check("<annotation>", "no XML", "bad.xml");
    check("<html></html>", "its root is `html`", "bad.xml");
    check("<annotation></annotation>", "no `size`", "bad.xml");
    check(&document("").replace("353", "0"), "`width` is 0", "bad.xml");
    check(&document("").replace("353", "x"), "`width` is x", "bad.xml");
    check(&document("").replace("000001.jpg", ""), "`filename` is empty", "bad.xml");
    check(&document("<object><name>x</name></object>"), "no `bndbox`", "bad.xml:5");
    check(&document(&object("", [1.0; 4])), "`name` is empty", "bad.xml:5");
    check(&document(&object("x", [1.0, f64::NAN, 1.0, 1.0])), "`ymin` is NaN", "bad.xml:5");
    // Entities that grow without end are not followed.
    let bomb = "<!DOCTYPE a [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\">\
                <!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY d \"&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;\">]>\
                <annotation>&d;</annotation>";
    check(bomb, "no XML", "bad.xml");
    let error = read_voc(folder.path()).unwrap_err();
    assert!(error.to_string().contains("bad.xml"), "{error}");
}

fn mask(width: usize, height: usize, is_mask: impl Fn(usize, usize) -> bool) -> Mask {
    let bits = (0..width * height).map(|i| is_mask(i % width, i / width)).collect();
    Mask { width, height, bits }
}

/// The codes in the suffix of the only line.
fn codes(converted: &Converted) -> [u8; 16] {
    assert_eq!(converted.lines.len(), 1, "{converted:?}");
    let parsed = parse_answer(converted.lines[0]["suffix"].as_str().unwrap());
    assert_eq!((parsed.objects.len(), parsed.malformed.len()), (1, 0), "{converted:?}");
    parsed.objects[0].object.codes.unwrap()
}

#[test]
fn shapes_of_every_kind_become_the_codes_of_their_masks() {
    let folder = tempfile::tempdir().unwrap();
    let codec = MaskCodec::new(vqvae());
    // An L of 30×20 on a picture of 64×48.
    let shape = mask(64, 48, |x, y| (10..40).contains(&x) && (5..25).contains(&y) && !(x >= 20 && y < 15));
    let want = codec.encode(&shape.to_plane(), [10.0, 5.0, 40.0, 25.0]).unwrap();
    let corners = [[10, 5], [20, 5], [20, 15], [40, 15], [40, 25], [10, 25]].map(|c| c.map(f64::from));
    let rle = Rle::from_mask(&shape);

    let image = json!([{"id": 7, "file_name": "7.png", "width": 64, "height": 48}]);
    for segmentation in [
        json!([corners.concat()]),
        json!({"counts": rle.counts(), "size": [48, 64]}),
        json!({"counts": rle.compressed(), "size": [48, 64]}),
    ] {
        let mut entry = entry(3, 17, [10.0, 5.0, 30.0, 20.0]);
        entry["segmentation"] = segmentation.clone();
        let path = write(&folder, "a.json", coco(image.clone(), json!([entry])).to_string());
        let converted = done(&read_coco(&path).unwrap(), &Task::Segment(&codec), Group::Picture).unwrap();
        assert_eq!(codes(&converted), want, "{segmentation}");
        assert_eq!(converted.lines[0]["prefix"], "segment cat");
        assert!(
            converted.lines[0]["suffix"]
                .as_str()
                .unwrap()
                .starts_with("<loc0107><loc0160><loc0533><loc0639><seg")
        );
    }
    // Without a shape there is no mask.
    let path =
        write(&folder, "a.json", coco(image, json!([entry(3, 17, [10.0, 5.0, 30.0, 20.0])])).to_string());
    let error = done(&read_coco(&path).unwrap(), &Task::Segment(&codec), Group::Picture).unwrap_err();
    assert!(error.to_string().contains("no shape") && error.to_string().contains("annotation 3"), "{error}");

    write(&folder, "images/7.png", png_of_mask(&shape).unwrap());
    let images = folder.path().join("images");
    let parts: Vec<String> = corners.iter().map(|[x, y]| format!("{} {}", x / 64.0, y / 48.0)).collect();
    write(&folder, "labels/7.txt", format!("0 {}", parts.join(" ")));
    let pictures = read_yolo(&folder.path().join("labels"), &images, &["cat".to_owned()]).unwrap();
    assert_eq!(codes(&done(&pictures, &Task::Segment(&codec), Group::Picture).unwrap()), want);

    // A folder of masks; the box is around what is white.
    let masks = folder.path().join("masks");
    write(&folder, "masks/cat/7.png", png_of_mask(&shape).unwrap());
    let pictures = read_mask_folder(&masks, &images).unwrap();
    assert_eq!(codes(&done(&pictures, &Task::Segment(&codec), Group::Picture).unwrap()), want);
    assert_eq!(detect(&pictures).unwrap().lines[0]["suffix"], "<loc0107><loc0160><loc0533><loc0639> cat");
    write(&folder, "masks/cat/7.2.png", png_of_mask(&mask(64, 48, |x, y| x < 4 && y < 4)).unwrap());
    write(&folder, "masks/dog/7.png", png_of_mask(&mask(64, 48, |_, _| false)).unwrap());
    let converted = detect(&read_mask_folder(&masks, &images).unwrap()).unwrap();
    assert_eq!((converted.lines.len(), converted.num_objects, converted.skipped.no_area.len()), (1, 2, 1));
    write(&folder, "masks/dog/7.png", png_of_mask(&mask(64, 47, |_, _| true)).unwrap());
    let error = detect(&read_mask_folder(&masks, &images).unwrap()).unwrap_err();
    assert!(error.to_string().contains("64×47") && error.to_string().contains("dog/7.png"), "{error}");
    write(&folder, "masks/dog/8.png", png_of_mask(&shape).unwrap());
    let error = read_mask_folder(&masks, &images).unwrap_err();
    assert!(error.to_string().contains("there is no picture 8"), "{error}");
}
