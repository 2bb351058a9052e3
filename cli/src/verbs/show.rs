//! `show`: what a model is, and what it needs.

use crate::{
    args::Args,
    open,
    output::{print_json, print_line, size},
};
use paligemma::{
    DType,
    checkpoint::{Form, Scheme},
    config::GemmaGeneration,
};
use serde_json::{Value, json};
use std::process::ExitCode;

pub(super) fn show(args: &Args, model: &str, list: bool) -> anyhow::Result<ExitCode> {
    let checkpoint = open::checkpoint(args, model)?;
    let config = checkpoint.config();
    let forms = checkpoint.forms();
    let memory: Vec<(usize, Vec<(String, u64)>)> = [224, 448, 896]
        .iter()
        .map(|&side| {
            let tokens = (side / config.vision.patch_size).pow(2);
            let need = |weights| config.memory_needed(weights, tokens, 256, 1).total();
            let of = |dtype: DType| checkpoint.num_parameters() * dtype.size() as u64;
            let mut needs = vec![("as stored".to_owned(), need(checkpoint.num_bytes()))];
            needs.extend([DType::F32, DType::BF16].map(|d| (d.name().to_owned(), need(of(d)))));
            (side, needs)
        })
        .collect();
    let tensors = || {
        checkpoint.names().into_iter().map(|name| {
            let form = checkpoint.form(&name).map_or("", Form::name);
            let shape = checkpoint.shape(&name).unwrap_or_default().to_vec();
            (name, form, shape)
        })
    };
    let generation = match config.text.generation {
        GemmaGeneration::Gemma1 => "PaliGemma",
        GemmaGeneration::Gemma2 => "PaliGemma 2",
    };
    if args.json {
        let memory: serde_json::Map<String, Value> = memory
            .into_iter()
            .map(|(side, needs)| {
                let needs: serde_json::Map<String, Value> =
                    needs.into_iter().map(|(k, v)| (k.replace(' ', "_"), v.into())).collect();
                (side.to_string(), needs.into())
            })
            .collect();
        print_json(&json!({
            "model": generation,
            "path": checkpoint.path(),
            "files": checkpoint.files(),
            "format": checkpoint.format().to_string(),
            "config": config.to_json(None),
            "parameters": checkpoint.num_parameters(),
            "bytes": checkpoint.num_bytes(),
            "quantisation": checkpoint.scheme().map(Scheme::name),
            "dtypes": forms.iter().map(|(d, n, b)| json!({"dtype": d.name(), "tensors": n, "bytes": b}))
                .collect::<Vec<_>>(),
            "memory_bytes": memory,
            "tensors": tensors().map(|(n, d, s)| json!({"name": n, "dtype": d, "shape": s})).collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (v, t) = (&config.vision, &config.text);
    let kinds: Vec<String> = forms.iter().map(|(d, n, b)| format!("{n} {d} ({})", size(*b))).collect();
    let mut text = format!(
        "{generation}, {} parameters{}\n\
         \x20 {} {}\n\
         \x20 tensors     {}\n\
         \x20 image       {} px, patches of {}: {} tokens\n\
         \x20 SigLIP      {} blocks, width {}, MLP {}, {} heads\n\
         \x20 Gemma       {} blocks, width {}, MLP {}, {} heads of {} on {} key heads\n\
         \x20 vocabulary  {} rows, <image> is {}\n",
        grouped(checkpoint.num_parameters()),
        checkpoint.scheme().map_or(String::new(), |scheme| format!(", quantised {scheme}")),
        checkpoint.format(),
        checkpoint.path().display(),
        kinds.join(", "),
        v.image_size,
        v.patch_size,
        v.num_tokens(),
        v.num_hidden_layers,
        v.hidden_size,
        v.intermediate_size,
        v.num_attention_heads,
        t.num_hidden_layers,
        t.hidden_size,
        t.intermediate_size,
        t.num_attention_heads,
        t.head_dim,
        t.num_key_value_heads,
        grouped(t.vocab_size as u64),
        config.image_token_index,
    );
    text.push_str("  memory for one image and 256 tokens of text\n");
    for (side, needs) in memory {
        let here = if side == v.image_size { " (this model)" } else { "" };
        let needs: Vec<String> = needs.into_iter().map(|(k, b)| format!("{k} {}", size(b))).collect();
        text.push_str(&format!("    {side} px  {}{here}\n", needs.join(", ")));
    }
    if list {
        for (name, dtype, shape) in tensors() {
            text.push_str(&format!("  {name}  {dtype}  {shape:?}\n"));
        }
    }
    print_line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// `2 923 335 408`
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}
