//! `drift`: what a quantisation or another type costs.

use crate::{
    args::Args,
    open,
    output::{print_json, print_line},
};
use paligemma::{
    Error,
    checkpoint::hub::Want,
    drift::{drawn_pictures, drift as compare, open_both},
};
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

pub(super) fn drift(
    args: &Args,
    names: [&str; 2],
    images: Option<&Path>,
    max_tokens: usize,
) -> anyhow::Result<ExitCode> {
    let files = images.map(pictures_of).transpose()?;
    let [a, b] = [open::find(args, names[0], Want::Model)?, open::find(args, names[1], Want::Model)?];
    let [a, b] = open_both(&a.path, &b.path, max_tokens)?;
    let drift = match files {
        Some(files) => compare([&a, &b], files.iter().map(|file| a.read_image(file)), max_tokens)?,
        None => compare([&a, &b], drawn_pictures().map(Ok), max_tokens)?,
    };
    let worst = drift.worst_layer();
    if args.json {
        let layer = |(name, rms): &(String, f64)| json!({ "name": name, "relative_rms": rms });
        print_json(&json!({
            "model_a": names[0],
            "model_b": names[1],
            "inputs": drift.inputs,
            "positions": drift.positions,
            "top1_agreement": drift.top1_agreement,
            "mean_kl": drift.mean_kl,
            "max_kl": drift.max_kl,
            "image_features": drift.image_features,
            "worst_layer": worst.map(layer),
            "layers": drift.layers.iter().map(layer).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(format_args!(
        "{} pictures and prompts, {} positions\n\
         top-1 agreement  {:.2} %\n\
         KL(A||B)         mean {:.3e}, max {:.3e} nats\n\
         image features   {:.3e} relative",
        drift.inputs,
        drift.positions,
        100.0 * drift.top1_agreement,
        drift.mean_kl,
        drift.max_kl,
        drift.image_features,
    ))?;
    if let Some((name, rms)) = worst {
        print_line(format_args!("worst layer      {rms:.3e} relative, {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The pictures of a folder, by name.
fn pictures_of(folder: &Path) -> paligemma::Result<Vec<PathBuf>> {
    let failed = |e| match io::Error::kind(&e) {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::input(format!("there is no folder {}", folder.display()))
        }
        _ => Error::io(folder, e),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        if ["png", "jpg", "jpeg", "webp"].contains(&extension.as_str()) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::input("the folder has no picture")
            .at(folder.display().to_string())
            .expected("files named .png, .jpg, .jpeg or .webp"));
    }
    files.sort();
    Ok(files)
}
