//! Masks: the VQ-VAE is PyTorch's, pasting is Pillow's, run lengths and filled polygons are pycocotools'.
//!
//! The goldens are made by `reference/masks.py`, whose generators stand here again.

use paligemma::{
    Kind,
    config::Config,
    data::playground::{Split, mask_crop},
    image::{Mask, Plane, Polygon, Rle, fill_polygons, outline_polygons},
    masks::MaskCodec,
    model::{CodebookAverage, VqVae, VqVaeOptions},
    text::{Bins, BoxScale},
};
use paligemma_tensor::Tensor;
use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/masks").join(name)
}

fn lines(name: &str) -> Vec<String> {
    fs::read_to_string(golden(name)).unwrap().lines().skip(1).map(str::to_owned).collect()
}

fn crc(bytes: &[u8]) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    format!("{:08x}", crc.finalize())
}

fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(crate) fn uniform(stream: u64, count: usize) -> Vec<f32> {
    let number = |i| ((mixed((stream << 32) + i) >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32;
    (0..count as u64).map(number).collect()
}

fn integers(stream: u64, bounds: &[usize]) -> Vec<usize> {
    let number = |(i, &bound)| (mixed((stream << 32) + i as u64) >> 33) as usize % bound;
    bounds.iter().enumerate().map(number).collect()
}

/// The weights of the golden, by their published names.
fn weights() -> HashMap<String, Tensor> {
    let mut tensors = VqVae::tensors();
    tensors.sort();
    let filled = |(stream, (name, shape)): (usize, (String, Vec<usize>))| {
        let scale = if name == "_vq_vae._embedding" {
            1.0
        } else if name.ends_with(".bias") {
            0.125
        } else {
            let transposed = name.starts_with("decoder.") && shape[2..] == [4, 4];
            let inputs = if transposed { shape[0] * 4 } else { shape[1..].iter().product() };
            (6.0 / inputs as f64).sqrt() as f32
        };
        let numbers = uniform(stream as u64, shape.iter().product()).into_iter().map(|x| x * scale).collect();
        (name, Tensor::from_f32(numbers, &shape))
    };
    tensors.into_iter().enumerate().map(filled).collect()
}

pub(crate) fn vqvae() -> VqVae {
    let weights = weights();
    VqVae::load(&mut |name| Ok(weights[name].clone())).unwrap()
}

/// An npz of tensors, as numpy.savez writes it.
fn npz<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, tensor) in tensors {
        let shape: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n");
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
        zip.write_all(header.as_bytes()).unwrap();
        zip.write_all(tensor.bytes()).unwrap();
    }
    zip.finish().unwrap();
}

/// A safetensors file of tensors.
fn safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) {
    let view = |tensor: &'a Tensor| {
        let shape = tensor.shape().to_vec();
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, tensor.bytes()).unwrap()
    };
    let views: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, view(tensor))).collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The tensor `name` of the golden.
fn of_golden(name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(golden("vqvae.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values = tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    (tensor.shape().to_vec(), values)
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1f32, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(worst <= 1e-5 * scale, "{what}: {worst} at a scale of {scale}");
}

fn soft_mask(stream: u64) -> Vec<f32> {
    let (blocks, noise) = (uniform(stream, 64), uniform(stream + 1, 4096));
    let value = |i: usize| 0.5 + blocks[i / 512 * 8 + i % 64 / 8] * 2.0 + noise[i] * 0.25;
    (0..4096).map(|i| value(i).clamp(0.0, 1.0)).collect()
}

#[test]
fn the_vqvae_is_pytorchs() {
    let vqvae = vqvae();
    let codes: Vec<[u8; 16]> = (0..3)
        .map(|i| integers(1000 + i, &[128; 16]).into_iter().map(|c| c as u8).collect::<Vec<_>>())
        .map(|codes| codes.try_into().unwrap())
        .collect();
    close("decoded", vqvae.decode(&codes).as_f32(), &of_golden("decoded").1);
    // One alone is as one of several.
    close("decoded alone", vqvae.decode(&codes[1..2]).as_f32(), &of_golden("decoded").1[4096..8192]);

    let masks: Vec<f32> = (0..40).flat_map(|i| soft_mask(2000 + 2 * i)).collect();
    let masks = Tensor::from_f32(masks, &[40, 64, 64]);
    close("embedded", vqvae.embed(&masks.rows(0, 2)).as_f32(), &of_golden("embedded").1);
    let want: Vec<u8> = of_golden("codes").1.iter().map(|&c| c as u8).collect();
    assert_eq!(vqvae.encode(&masks).as_flattened(), want);
}

/// Losses, every gradient and the codebook of one step.
#[test]
fn a_step_of_learning_is_pytorchs() {
    let mut model = vqvae();
    let masks = Tensor::from_f32([3490, 3322].into_iter().flat_map(soft_mask).collect(), &[2, 64, 64]);
    let mut average = CodebookAverage::of(&model);
    let names: Vec<(String, Vec<usize>)> = VqVae::tensors();
    let mut ours: HashMap<String, Tensor> = HashMap::new();
    let loss = model.learn(&masks, &mut average, &VqVaeOptions::default(), &mut |id, weight, part| {
        let (name, shape) = &names[id];
        assert_eq!(weight.shape(), shape);
        assert!(ours.insert(name.clone(), part.into_tensor(shape)).is_none(), "{name} twice");
    });
    let codebook = model.named().into_iter().find(|(name, _)| name == "_vq_vae._embedding").unwrap();
    ours.insert(codebook.0, codebook.1);
    let text = fs::read_to_string(golden("vqvae_step.tsv")).unwrap();
    let mut tensors = 0;
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (norm, dot): (f64, f64) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
        let near = |what: &str, got: f64, want: f64| {
            assert!((got - want).abs() <= 1e-5 * norm, "{} {what}: {got}, want {want}", fields[0]);
        };
        match fields[0] {
            "reconstruction" => near("loss", loss.reconstruction, norm),
            "commitment" => near("loss", loss.commitment, norm),
            name => {
                let x = &ours[name];
                let weights = uniform(5_000 + tensors, x.len());
                tensors += 1;
                let numbers = || x.as_f32().iter().map(|&x| f64::from(x));
                near("norm", numbers().map(|x| x * x).sum::<f64>().sqrt(), norm);
                near("sum", numbers().zip(weights).map(|(x, w)| x * f64::from(w)).sum(), dot);
            }
        }
    }
    assert_eq!(tensors as usize, names.len());
}

/// Learning: the loss falls on one batch, and entries that nothing chooses are put to use.
#[test]
fn the_vqvae_learns() {
    let mut model = vqvae();
    let masks: Vec<f32> = (0..4).flat_map(|i| soft_mask(2000 + 2 * i)).collect();
    let masks = Tensor::from_f32(masks, &[4, 64, 64]);
    let mut average = CodebookAverage::of(&model);
    let options = VqVaeOptions { revive_below: 0.9, ..VqVaeOptions::default() };
    let losses: Vec<_> = (0..12)
        .map(|_| {
            model.learn(&masks, &mut average, &options, &mut |_, weight, part| {
                let gradient = part.into_tensor(weight.shape());
                // The sign of the gradient: Adam's first step.
                let pairs = weight.as_f32_mut().iter_mut().zip(gradient.as_f32());
                pairs.for_each(|(w, g)| *w -= 1e-3 * g.signum());
            })
        })
        .collect();
    let (first, last) = (losses[0], losses[11]);
    assert!(last.reconstruction < 0.7 * first.reconstruction, "{first:?} {last:?}");
    assert!(last.used > 16, "{last:?}");
}

#[test]
fn the_published_file_and_ours_are_read_and_others_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (at, safe) = (folder.path().join("vae-oid.npz"), folder.path().join("ours.safetensors"));
    let mut all = weights();
    let ema = Tensor::zeros(&[128]);
    all.insert("_vq_vae._ema_cluster_size".into(), ema.clone());
    fn named(all: &HashMap<String, Tensor>) -> impl Iterator<Item = (&str, &Tensor)> {
        all.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
    npz(&at, named(&all));
    safetensors(&safe, named(&all));
    let codes = [[7; 16], [100; 16]];
    let want = MaskCodec::new(vqvae()).decode(&codes).unwrap();
    for file in [&at, &safe] {
        assert_eq!(MaskCodec::open(Some(file)).unwrap().decode(&codes).unwrap(), want);
    }
    let codec = MaskCodec::open(Some(&at)).unwrap();
    assert_eq!(codec.decode(&[[128; 16]]).unwrap_err().kind(), Kind::Input);

    let check = |change: &dyn Fn(&mut HashMap<String, Tensor>), what: &str| {
        let mut broken = all.clone();
        change(&mut broken);
        npz(&at, named(&broken));
        let error = MaskCodec::open(Some(&at)).unwrap_err();
        assert_eq!(error.kind(), Kind::Model);
        assert!(error.to_string().contains(what) && error.to_string().contains("vae-oid.npz"), "{error}");
    };
    check(&|all| drop(all.remove("decoder.12.bias")), "\"decoder.12.bias\" is missing");
    check(&|all| drop(all.insert("encoder.12.bias".into(), ema.clone())), "\"encoder.12.bias\" is no part");
    check(&|all| drop(all.insert("decoder.0.bias".into(), Tensor::zeros(&[127]))), "has shape [127]");
    fs::write(&at, "not an npz").unwrap();
    assert!(MaskCodec::open(Some(&at)).unwrap_err().to_string().contains("neither"));
    assert_eq!(MaskCodec::open(Some(&folder.path().join("absent"))).unwrap_err().kind(), Kind::Usage);
    // Google's checkpoints mean Google's codes.
    let config = |name| Config::published(name).unwrap();
    assert!(MaskCodec::of_model(&config("tiny"), None).is_ok());
    assert!(MaskCodec::of_model(&config("3b-224"), Some(&safe)).is_ok());
    let error = MaskCodec::of_model(&config("2-3b-448"), None).unwrap_err().to_string();
    assert!(error.contains("--vqvae FILE") && error.contains("vae-oid.npz"), "{error}");
}

/// The model within the program, on masks that it has not seen: as good as its card says.
#[test]
fn drawn_masks_come_back_from_their_codes() {
    let codec = MaskCodec::open(None).unwrap();
    let (mut sum, count) = (0.0, 300);
    for i in 0..count {
        let mask = mask_crop(Split::Test, 0, i);
        let codes = codec.encode(&mask, [0.0, 0.0, 64.0, 64.0]).unwrap();
        let decoded = codec.decode(&[codes]).unwrap().swap_remove(0);
        let of = |rule: fn(bool, bool) -> bool| {
            let pairs = mask.values.iter().zip(&decoded.values);
            pairs.filter(|(want, got)| rule(**want > 0.5, **got > 0.0)).count() as f64
        };
        sum += of(|a, b| a && b) / of(|a, b| a || b);
    }
    let mean = sum / count as f64;
    assert!(mean >= 0.90, "{mean}");
}

#[test]
fn pasting_is_pillows_and_run_lengths_are_pycocotools() {
    let lines = lines("paste.tsv");
    assert_eq!(lines.len(), 1000);
    for (i, line) in lines.iter().enumerate() {
        let stream = 3_000_000 + i as u64;
        let n = integers(stream, &[300, 300, 1023, 1023, 1023, 1023]);
        let (width, height) = (n[0] + 1, n[1] + 1);
        let bin = |a: usize| a as u16;
        let bins = Bins {
            y_min: bin(n[2].min(n[3])),
            x_min: bin(n[4].min(n[5])),
            y_max: bin(n[2].max(n[3]) + 1),
            x_max: bin(n[4].max(n[5]) + 1),
        };
        let plane = Plane { width: 64, height: 64, values: uniform(stream + 100_000, 4096) };
        let pixels = bins.to_pixels(width, height, BoxScale::Reference);
        let mask = plane.paste(paligemma::image::Rect::truncated(pixels, width, height), width, height);
        let bytes: Vec<u8> = mask.bits.iter().map(|&bit| u8::from(bit)).collect();
        let rle = Rle::from_mask(&mask);
        let got = format!("{}\t{}", crc(&bytes), crc(rle.compressed().as_bytes()));
        assert_eq!(&got, line, "case {i}: {width}×{height} {bins:?}");
        if i % 50 == 0 {
            assert_eq!(Rle::from_compressed(&rle.compressed(), width, height).unwrap().to_mask(), mask);
            assert_eq!(fill_polygons(&outline_polygons(&mask), width, height).unwrap(), mask);
        }
    }
}

#[test]
fn filled_polygons_are_pycocotools() {
    let lines = lines("polygons.tsv");
    assert_eq!(lines.len(), 1000);
    for (i, line) in lines.iter().enumerate() {
        let stream = 4_000_000 + 100 * i as u64;
        let n = integers(stream, &[80, 80, 3]);
        let (width, height) = (n[0] + 1, n[1] + 1);
        let polygon = |p: u64| -> Polygon {
            let corners = integers(stream + 10 + p, &[9])[0] + 3;
            let numbers = integers(stream + 20 + p, &[10 * width, 10 * height].repeat(corners));
            let eighths = |n: usize, side: usize| n as f64 / 8.0 - side as f64 / 8.0;
            numbers.as_chunks().0.iter().map(|&[x, y]| [eighths(x, width), eighths(y, height)]).collect()
        };
        let polygons: Vec<Polygon> = (0..=n[2] as u64).map(polygon).collect();
        let mask = fill_polygons(&polygons, width, height).unwrap();
        assert_eq!(&crc(Rle::from_mask(&mask).compressed().as_bytes()), line, "case {i}: {polygons:?}");
    }
}

/// What is cut from a mask and pasted back is the mask, if the model in between keeps it.
#[test]
fn cutting_and_pasting_are_each_others_inverse() {
    let (width, height) = (200, 150);
    let inside = |x: usize, y: usize| {
        let (x, y) = ((x as f64 - 90.0) / 50.0, (y as f64 - 70.0) / 40.0);
        x * x + y * y < 1.0
    };
    let bits = (0..width * height).map(|i| inside(i % width, i / width)).collect();
    let mask = Mask { width, height, bits };
    let rect = mask.bounds().unwrap();
    let mut small = mask.to_plane().crop(rect).unwrap();
    small.values.iter_mut().for_each(|v| *v = 2.0 * *v - 1.0);
    let back = small.paste(rect, width, height);
    let both = mask.bits.iter().zip(&back.bits).filter(|(a, b)| **a && **b).count();
    let iou = both as f64 / (mask.area() + back.area() - both) as f64;
    assert!(iou > 0.97, "{iou}");
}
