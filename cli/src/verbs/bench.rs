//! `bench`: how fast a model runs here, and how fast the machine could.

use super::random::published;
use crate::{
    args::Args,
    open,
    output::{note, print_json, print_line, size},
};
use paligemma::{
    DType, Error, Isa,
    bench::{Bench, Figures, Learning, Settings, Spread, TrainingBench, random_model},
    checkpoint::{Checkpoint, Form, dequantise, hub::Want, random_weights},
    model::PaliGemma,
    session::load_model,
};
use serde_json::{Value, json};
use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

/// How the verb measures and tells.
pub(super) struct Job {
    pub(super) settings: Settings,
    pub(super) repeat: u16,
    pub(super) turns: bool,
    pub(super) train: Option<Learning>,
    pub(super) table: bool,
}

pub(super) fn bench(
    args: &Args,
    model: Option<&str>,
    random: Option<&str>,
    form: Option<Form>,
    job: &Job,
) -> anyhow::Result<ExitCode> {
    if let Some(learning) = job.train {
        return train(args, model, random, form, job, learning);
    }
    let settings = &job.settings;
    let quiet = args.quiet || args.json;
    let (name, model, load) = match (model, random) {
        (Some(name), _) => {
            // A download is no part of loading.
            let path = open::find(args, name, Want::Model)?.path;
            let start = Instant::now();
            let checkpoint = Checkpoint::open(&path)?;
            let image_tokens = checkpoint.config().vision.num_tokens();
            let dtype = plain_type(&checkpoint, form)?;
            let model =
                load_model(&checkpoint, dtype, None, image_tokens, settings.text_tokens(), settings.batch)?;
            (name, model, start.elapsed())
        }
        (None, random) => {
            let name = random.unwrap_or_default();
            let config = published(name)?;
            note(quiet, format_args!("making random weights"));
            let start = Instant::now();
            let model = random_model(&config, form.unwrap_or(DType::BF16.into()), settings)?;
            (name, model, start.elapsed())
        }
    };
    let bench = Bench::new(&model, settings)?;
    let heeding = open::Heeding::begin();
    bench.warm_up(open::cancel_flag())?;
    if job.turns {
        drop(heeding);
        for line in io::stdin().lines() {
            line.map_err(|e| Error::io("stdin", e))?;
            let _heeding = open::Heeding::begin();
            let run = bench.run(open::cancel_flag())?;
            print_json(&as_json(&bench.figures(&[run]), load))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut runs = Vec::new();
    for i in 0..job.repeat {
        runs.push(bench.run(open::cancel_flag())?);
        note(quiet, format_args!("run {} of {}", i + 1, job.repeat));
    }
    drop(heeding);
    let figures = bench.figures(&runs);
    if job.table {
        print_line(as_table(name, &model, job, &figures, load))?;
    } else if args.json {
        print_json(&as_json(&figures, load))?;
    } else {
        print_line(as_lines(&as_json(&figures, load)).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The type that a stored model's numbers are to have; as they are stored if none is returned.
fn plain_type(checkpoint: &Checkpoint, form: Option<Form>) -> paligemma::Result<Option<DType>> {
    match form {
        None => Ok(None),
        Some(Form::Plain(dtype)) => Ok(Some(dtype)),
        Some(scheme) if checkpoint.scheme().map(Form::from) == Some(scheme) => Ok(None),
        Some(scheme) => Err(Error::usage(format!("--dtype {scheme}: the model is not stored in {scheme}"))
            .hint(format!("paligemma convert MODEL OUT --dtype {scheme}"))),
    }
}

/// Steps of training.
fn train(
    args: &Args,
    model: Option<&str>,
    random: Option<&str>,
    form: Option<Form>,
    job: &Job,
    learning: Learning,
) -> anyhow::Result<ExitCode> {
    let quiet = args.quiet || args.json;
    let start = Instant::now();
    let mut bench = match (model, random) {
        (Some(name), _) => {
            let checkpoint = Checkpoint::open(&open::find(args, name, Want::Model)?.path)?;
            let dtype = plain_type(&checkpoint, form)?;
            let mut weight = |name: &str| {
                let weight = checkpoint.weight(name)?;
                Ok(dtype.map_or(weight.clone(), |dtype| dequantise(&weight, dtype).into()))
            };
            TrainingBench::new(
                checkpoint.config(),
                checkpoint.num_bytes(),
                &mut weight,
                learning,
                &job.settings,
            )?
        }
        (None, random) => {
            let config = published(random.unwrap_or_default())?;
            note(quiet, format_args!("making random weights"));
            let (bytes, mut weight) = random_weights(&config, form.unwrap_or(DType::BF16.into()), 0);
            TrainingBench::new(&config, bytes, &mut weight, learning, &job.settings)?
        }
    };
    let load = start.elapsed();
    let heeding = open::Heeding::begin();
    bench.step(open::cancel_flag())?;
    let mut seconds = Vec::new();
    for i in 0..job.repeat {
        seconds.push(bench.step(open::cancel_flag())?);
        note(quiet, format_args!("step {} of {}", i + 1, job.repeat));
    }
    drop(heeding);
    let figures = bench.figures(&seconds);
    let Spread { median, min, max } = figures.train_step_s;
    let json = json!({
        "train_step_s": { "median": median, "min": min, "max": max },
        "load_s": load.as_secs_f64(),
        "peak_rss_bytes": figures.peak_rss_bytes,
        "weights_bytes": figures.weights_bytes,
        "threads": rayon::current_num_threads(),
        "isa": Isa::best().name(),
        "gemm_peak_flops": figures.gemm_peak_flops,
        "train_of_peak": figures.train_of_peak,
    });
    match args.json {
        true => print_json(&json)?,
        false => print_line(as_lines(&json).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(figures: &Figures, load: Duration) -> Value {
    let spread = |s: Spread| json!({ "median": s.median, "min": s.min, "max": s.max });
    json!({
        "image_encode_s": spread(figures.image_encode_s),
        "prefill_s": spread(figures.prefill_s),
        "ttft_s": spread(figures.ttft_s),
        "decode_token_s": spread(figures.decode_token_s),
        "load_s": load.as_secs_f64(),
        "peak_rss_bytes": figures.peak_rss_bytes,
        "weights_bytes": figures.weights_bytes,
        "threads": rayon::current_num_threads(),
        "isa": Isa::best().name(),
        "memory_bandwidth_bytes_per_s": figures.memory_bandwidth_bytes_per_s,
        "gemm_peak_flops": figures.gemm_peak_flops,
        "prefill_of_peak": figures.prefill_of_peak,
        "decode_of_bandwidth": figures.decode_of_bandwidth,
    })
}

/// A line a key.
fn as_lines(json: &Value) -> String {
    let number = |value: &Value| match value.as_f64() {
        Some(x) if !value.is_u64() && x < 1e3 => format!("{x:.6}"),
        Some(x) if !value.is_u64() => format!("{x:.3e}"),
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    };
    let line = |(key, value): (&String, &Value)| match value["median"] {
        Value::Null => format!("{key:<30}{}\n", number(value)),
        ref median => {
            format!("{key:<30}{} ({} to {})\n", number(median), number(&value["min"]), number(&value["max"]))
        }
    };
    json.as_object().into_iter().flatten().map(line).collect()
}

/// What was measured, and a Markdown table.
fn as_table(name: &str, model: &PaliGemma, job: &Job, figures: &Figures, load: Duration) -> String {
    let settings = &job.settings;
    let seconds = |s: f64| if s < 1.0 { format!("{:.2} ms", 1e3 * s) } else { format!("{s:.3} s") };
    let time = |what: &str, s: Spread| {
        format!("| {what} | {} | {} | {} |\n", seconds(s.median), seconds(s.min), seconds(s.max))
    };
    let plain = |what: &str, value: String| format!("| {what} | {value} | | |\n");
    let percent = |fraction: f64| format!("{:.1} %", 100.0 * fraction);
    [
        format!(
            "{name}: {} image and {} prompt tokens, {} new tokens, batch {}; {} kernels, {} threads; {} runs\n\n",
            model.config().vision.num_tokens(),
            settings.prompt_tokens,
            settings.new_tokens,
            settings.batch,
            Isa::best().name(),
            rayon::current_num_threads(),
            job.repeat,
        ),
        "| | median | min | max |\n|---|---:|---:|---:|\n".to_owned(),
        time("image encode", figures.image_encode_s),
        time("prefill", figures.prefill_s),
        time("first token (both)", figures.ttft_s),
        time("a token", figures.decode_token_s),
        plain(
            &format!("prefill, of {:.2} TFLOP/s in registers", figures.gemm_peak_flops / 1e12),
            percent(figures.prefill_of_peak),
        ),
        plain(
            &format!("a token, of {:.1} GB/s read", figures.memory_bandwidth_bytes_per_s / 1e9),
            percent(figures.decode_of_bandwidth),
        ),
        plain("load", format!("{:.2} s", load.as_secs_f64())),
        plain("weights", size(figures.weights_bytes)),
        plain("peak memory", size(figures.peak_rss_bytes)),
    ]
    .concat()
    .trim_end()
    .to_owned()
}
