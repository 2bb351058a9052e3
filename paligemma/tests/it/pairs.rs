//! Runs of SigLIP's two towers: they learn, stop and go on, and are exported to begin a PaliGemma or another run with.

use paligemma::{
    DType, Kind, Result,
    checkpoint::{Checkpoint, LanguagePart, NamedTensors, VisionPart, assemble},
    train::{Event, Outcome, PairJob, Recipe},
};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn goldens(path: &str) -> String {
    format!("{}/../goldens/{path}", env!("CARGO_MANIFEST_DIR"))
}

const TINY: &str = "
    steps = 6
    batch = 6
    lr = 3e-3
    save_every = 0
    [siglip.vision]
    image_size = 28
    patch = 14
    width = 24
    depth = 2
    mlp = 40
    heads = 3
    [siglip.text]
    length = 8
    width = 16
    depth = 2
    mlp = 36
    heads = 2
";

/// A job on the pairs of goldens/train, by changes to a recipe.
fn job(out: &Path, changes: &[&str]) -> Result<PairJob> {
    let mut all = vec![
        format!("siglip.tokenizer={}", goldens("e2e/tokenizer.json")),
        format!("data.a.files={}", goldens("train/data.jsonl")),
        format!("data.a.image_dir={}", goldens("image/files")),
        format!("eval.files={}", goldens("train/data.jsonl")),
        format!("eval.image_dir={}", goldens("image/files")),
        format!("out={}", out.display()),
    ];
    all.extend(changes.iter().map(|change| change.to_string()));
    Ok(PairJob::of(&Recipe::read(TINY, "test", &all)?.absolute()?)?.expect("a table siglip"))
}

fn run(job: &PairJob, until: Option<u64>) -> Outcome {
    job.run(until, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn losses(job: &PairJob) -> Vec<f64> {
    let mut losses = Vec::new();
    let outcome = job.run(None, &mut |event| {
        if let Event::Step(line) = event {
            losses.push(line.loss);
        }
        ControlFlow::Continue(())
    });
    outcome.unwrap();
    losses
}

#[test]
fn pairs_are_learned() {
    let check = |changes: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let job = job(out.path(), &[&["steps=150", "warmup_steps=5"], changes].concat()).unwrap();
        let losses = losses(&job);
        let (first, last) = (losses[0], losses[149]);
        assert!(last < 0.05 * first, "{changes:?}: {first} {last}");
        let metrics = fs::read_to_string(out.path().join("metrics.jsonl")).unwrap();
        let eval = "\"eval_examples\":6,\"eval_image_to_text\":1.0,\"eval_text_to_image\":1.0}\n";
        assert!(metrics.ends_with(eval), "{changes:?}: {metrics}");
        losses
    };
    let usual = check(&[]);
    // Updates fused with gradients, or after all of them; blocks computed once, or again on the way back.
    assert_eq!(check(&["clip=0"]), check(&["clip=1e30"]));
    assert_eq!(usual, check(&["recompute=true", "loader_threads=0"]));
    check(&["dtype=bf16"]);
    check(&["optimiser=adamw", "weight_decay=0.01"]);
    assert_ne!(usual, check(&["weight_decay=1e-4"]));
    assert_ne!(usual, check(&["seed=1"]));
}

#[test]
fn texts_end_with_eos_and_are_filled_up_with_it() {
    let out = tempfile::tempdir().unwrap();
    let check = |changes: &[&str], text: &str, pieces: &[&str]| {
        let job = job(out.path(), changes).unwrap();
        let pairs = job.first(6).unwrap();
        let pair = pairs.iter().find(|pair| pair.text == text).unwrap_or_else(|| panic!("no {text}"));
        assert_eq!(job.tokenizer().pieces(&pair.ids), pieces, "{text}");
        assert_eq!(pair.pixels.len(), 3 * 28 * 28);
    };
    let eos = "<eos>";
    check(&[], "x", &["x", eos, eos, eos, eos, eos, eos, eos]);
    check(&[], "ein bild", &["e", "i", "n", "▁b", "i", "l", "d", eos]);
    check(&["siglip.lower=false", "siglip.text.length=4"], "ein Bild", &["e", "i", "n", eos]);
    check(&["siglip.text.length=1"], "x", &[eos]);
}

#[test]
fn a_run_that_is_taken_up_again_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    for changes in [&["batch=4"][..], &["batch=4", "dtype=bf16", "state_dtype=bf16", "augment.jpeg=0.5"]] {
        let at = |name: String| folder.path().join(format!("{}-{name}", changes.len()));
        let bytes = |name: String| {
            let out = at(format!("{name}-exported"));
            job(&at(name), changes).unwrap().export(&out, None).unwrap();
            fs::read(out.join("model.safetensors")).unwrap()
        };
        let whole = run(&job(&at("whole".into()), changes).unwrap(), None);
        assert_eq!((whole.step, whole.total, whole.is_stopped), (6, 6, false));
        let want = bytes("whole".into());
        for stop in 1..6 {
            let name = format!("stopped-{stop}");
            run(&job(&at(name.clone()), changes).unwrap(), Some(stop));
            let threads = [changes, &["loader_threads=3", "save_every=1"]].concat();
            assert_eq!(run(&job(&at(name.clone()), &threads).unwrap(), None).eval, whole.eval, "{stop}");
            assert!(bytes(name) == want, "{stop}");
        }
    }
}

#[test]
fn what_is_exported_begins_a_paligemma_and_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    run(&job(&at("run"), &[]).unwrap(), None);
    let siglip = at("siglip");
    assert_eq!(job(&at("run"), &[]).unwrap().export(&siglip, None).unwrap(), 6);
    // Every tensor of the image encoder is in a PaliGemma that is made with it.
    let vision = VisionPart::open(&siglip).unwrap();
    let language = LanguagePart::open(&PathBuf::from(goldens("e2e/pg1"))).unwrap();
    let tokenizer = siglip.join("tokenizer.json");
    let model = at("model");
    assemble(&vision, &language, &tokenizer, &model, DType::F32, 0, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    let (made, exported) =
        (Checkpoint::open(&model).unwrap(), NamedTensors::open(&siglip.join("model.safetensors")).unwrap());
    assert_eq!((made.config().vision.hidden_size, made.config().vision.image_size), (24, 28));
    let mut compared = 0;
    for name in exported.names() {
        let Some(rest) = name.strip_prefix("vision_model.").filter(|rest| !rest.starts_with("head.")) else {
            continue;
        };
        let made = made.tensor(&format!("vision_tower.{rest}")).unwrap();
        assert_eq!(made.to_f32_vec(), exported.tensor(name).unwrap().to_f32_vec(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 2 * 16 + 5);
    // A run that begins with it and learns nothing ends with it; frozen or not, each tensor is where it was.
    let init = format!("model.init={}", siglip.display());
    let want = fs::read(siglip.join("model.safetensors")).unwrap();
    for (name, change) in [("still", "steps=1"), ("frozen", "freeze=vision_tower.*")] {
        let job = job(&at(name), &[&init, "lr=0", "steps=1", change]).unwrap();
        run(&job, None);
        job.export(&at(&format!("{name}-exported")), None).unwrap();
        let got = fs::read(at(&format!("{name}-exported")).join("model.safetensors")).unwrap();
        assert!(got == want, "{name}");
    }
    let wider = job(&at("wider"), &[&init, "siglip.text.mlp=37"]).unwrap_err();
    assert!(wider.what().contains("model.init is of other sizes"), "{wider}");
}

#[test]
fn what_means_nothing_is_named() {
    let out = tempfile::tempdir().unwrap();
    for (change, named) in [
        ("micro_batch=3", "micro_batch is 3"),
        ("text_len=64", "siglip.text.length"),
        ("lora.rank=2", "lora"),
        ("loss=token", "loss"),
        ("label_smoothing=0.1", "label_smoothing"),
        ("z_loss=0.1", "z_loss"),
        ("dropout=0.1", "dropout"),
        ("model.tokenizer=x", "siglip.tokenizer"),
        ("model.final_softcap=false", "model.final_softcap"),
        ("data.a.prefix=caption", "data.NAME.prefix"),
        ("eval.prefix=caption", "eval.prefix"),
        ("eval.answers=true", "eval.answers"),
        ("vqvae.held_out=3", "the masks' model"),
        ("siglip.tokenizer=", "siglip.tokenizer"),
        ("siglip.temperature=0", "siglip.temperature is 0"),
        ("siglip.bias=nan", "siglip.bias is NaN"),
        ("siglip.vision.patch=13", "siglip.vision.patch is 13"),
        ("siglip.vision.heads=5", "siglip.vision.heads is 5"),
        ("siglip.text.heads=3", "siglip.text.heads is 3"),
        ("siglip.text.length=0", "siglip.text.length is 0"),
        ("siglip.vision.depth=201", "siglip.vision.depth is 201"),
        ("siglip.vision.with=3", "did you mean siglip.vision.width?"),
        ("freeze=img/.*", "freeze: no parameter is called"),
        ("model.init=nowhere", "nowhere"),
    ] {
        let error = job(out.path(), &["clip=0", change]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{change}: {error}");
        assert!(error.to_string().contains(named), "{change}: {error}");
    }
    let job = job(out.path(), &[]).unwrap();
    assert!(job.export(&out.path().join("x"), None).unwrap_err().what().contains("no saved state"));
}
