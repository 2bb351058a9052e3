//! SigLIP's two towers beside transformers: loss and every gradient of one step.

use crate::masks::uniform;
use paligemma::{
    config::VisionConfig,
    model::{Pass, TextTowerConfig, TwoTowers, TwoTowersConfig, Weights},
};
use paligemma_tensor::{Parameter, Tensor};
use std::{collections::BTreeMap, fs, path::Path};

const PAIRS: usize = 5;

fn config() -> TwoTowersConfig {
    TwoTowersConfig {
        vision: VisionConfig {
            image_size: 28,
            patch_size: 14,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            layer_norm_eps: 1e-6,
        },
        text: TextTowerConfig {
            vocab_size: 50,
            length: 6,
            hidden_size: 16,
            intermediate_size: 36,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            layer_norm_eps: 1e-6,
        },
    }
}

/// The weights of reference/two_towers.py; ids are places in the sorted list of names.
fn load() -> (TwoTowers, Vec<(String, Vec<usize>)>) {
    let mut tensors = config().tensors();
    tensors.sort();
    let mut get = |name: &str| {
        let at = tensors.iter().position(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}"));
        let shape = &tensors[at].1;
        let inputs: usize = shape.iter().skip(1).product();
        let (scale, start) = match name {
            "logit_scale" => (0.0, 1.5),
            "logit_bias" => (0.0, -1.0),
            _ if name.contains("norm") => (0.25, f32::from(name.ends_with("weight"))),
            _ if name.ends_with("bias") => (0.125, 0.0),
            _ if name.contains("embedding") && !name.contains("patch") || name.ends_with("probe") => {
                (0.5, 0.0)
            }
            _ => ((3.0 / inputs as f64).sqrt() as f32, 0.0),
        };
        let numbers = uniform(at as u64, shape.iter().product()).into_iter().map(|x| x * scale + start);
        Ok(Parameter::wanted(Tensor::from_f32(numbers.collect(), shape), at))
    };
    (TwoTowers::load(&config(), &mut Weights::new(&mut get)).unwrap(), tensors)
}

fn pairs() -> (Tensor, Vec<u32>) {
    let images = Tensor::from_f32(uniform(900, PAIRS * 3 * 28 * 28), &[PAIRS, 3, 28, 28]);
    let ids = uniform(901, PAIRS * 6).into_iter().map(|x| ((f64::from(x) + 1.0) / 2.0 * 50.0) as u32);
    (images, ids.collect())
}

#[test]
fn a_step_of_siglip_is_transformers() {
    let (images, ids) = pairs();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/towers/siglip_step.tsv");
    let golden: BTreeMap<String, [f64; 2]> = fs::read_to_string(file)
        .unwrap()
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            (fields[0].to_owned(), [fields[1], fields[2]].map(|number| number.parse().unwrap()))
        })
        .collect();
    let largest = golden.values().fold(0f64, |m, [norm, _]| m.max(*norm));
    for recompute in [false, true] {
        let (mut model, tensors) = load();
        assert_eq!(model.parameters().count(), tensors.len());
        let mut ours: BTreeMap<usize, Tensor> = BTreeMap::new();
        let loss = model
            .learn(&images, &ids, recompute, None, &mut |id, weight, part| {
                let gradient = part.into_tensor(weight.shape());
                assert!(ours.insert(id, gradient).is_none(), "{} twice", tensors[id].0);
            })
            .unwrap();
        assert_eq!(model.pairs_loss(&images, &ids, None).unwrap(), loss);
        let want = golden["loss"][0];
        assert!((loss - want).abs() < 1e-6 * want, "{loss}, want {want}");
        assert_eq!(ours.len() + 1, golden.len());
        for (id, gradient) in &ours {
            let name = &tensors[*id].0;
            let [norm, dot] = golden[name];
            let numbers = || gradient.as_f32().iter().map(|&x| f64::from(x));
            let ours = [
                numbers().map(|x| x * x).sum::<f64>().sqrt(),
                numbers()
                    .zip(uniform(1000 + *id as u64, gradient.len()))
                    .map(|(x, w)| x * f64::from(w))
                    .sum(),
            ];
            for (got, want) in ours.into_iter().zip([norm, dot]) {
                // The bias of keys has no gradient but for rounding.
                let near = 1e-5 * norm.max(1e-3 * largest);
                assert!((got - want).abs() <= near, "{name}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn pairs_are_found_again_by_their_products() {
    let (model, _) = load();
    let (images, ids) = pairs();
    let mut pass = Pass::plain();
    let embedded =
        [model.embed_images(&images, &mut pass).unwrap(), model.embed_texts(&ids, &mut pass).unwrap()];
    let [x, y] = embedded.map(|value| value.tensor().to_f32_vec());
    let width = x.len() / PAIRS;
    let product = |i: usize, j: usize| -> f32 {
        x[i * width..][..width].iter().zip(&y[j * width..][..width]).map(|(x, y)| x * y).sum()
    };
    let own = |of: &dyn Fn(usize, usize) -> f32| {
        (0..PAIRS).filter(|&i| (0..PAIRS).all(|j| j == i || of(i, j) < of(i, i))).count()
    };
    let found = model.retrieve(&images, &ids, None).unwrap();
    assert_eq!(found.loss, model.pairs_loss(&images, &ids, None).unwrap());
    assert_eq!(found.image_to_text, own(&product));
    assert_eq!(found.text_to_image, own(&|i, j| product(j, i)));
    assert!(found.image_to_text < PAIRS, "every pair is found: the test cannot fail");
    // Pairs of one text are not counted against each other.
    let same = ids[..6].repeat(PAIRS);
    let found = model.retrieve(&images, &same, None).unwrap();
    assert_eq!((found.image_to_text, found.text_to_image), (PAIRS, PAIRS));
}

#[test]
fn what_does_not_fit_is_named() {
    let (model, _) = load();
    let (images, ids) = pairs();
    let cases: [(&Tensor, &[u32], &str); 4] = [
        (&images.rows(0, 2), &ids, "2 images and 5 texts"),
        (&images, &ids[..29], "5 images and 4 texts"),
        (&images, &[50; 30], "token id 50 is beyond"),
        (&Tensor::zeros(&[5, 3, 14, 14]), &ids, "pixel values have shape [5, 3, 14, 14]"),
    ];
    for (images, ids, want) in cases {
        let error = model.pairs_loss(images, ids, None).unwrap_err();
        assert!(error.what().contains(want), "{error}");
    }
}
