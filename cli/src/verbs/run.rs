//! `run`, and the task verbs of text, which put the paper's words around the user's.

use crate::{
    args::{Args, Choosing, Opening, TaskArgs},
    frames::{Frame, frames},
    open,
    output::{note, print, print_json, size},
};
use paligemma::{
    Error, Kind, Result,
    generate::Timings,
    image::Picture,
    peak_rss,
    session::{Reply, Session},
    text::{Asked, Task},
};
use serde_json::{Map, Value, json};
use std::{
    io::{self, IsTerminal, Read},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// The most bytes of an image that are read from stdin.
const MAX_STDIN: u64 = 128 << 20;

pub(super) fn run(
    args: &Args,
    model: &str,
    images_and_prompt: &[String],
    constrain: bool,
    opening: &Opening,
    choosing: &Choosing,
) -> anyhow::Result<ExitCode> {
    let Some((prompt, images)) = images_and_prompt.split_last().filter(|(_, images)| !images.is_empty())
    else {
        return Err(Error::usage(format!(
            "there is one argument after the model: {}",
            images_and_prompt.join("")
        ))
        .expected("an image or more, then the prompt")
        .hint("as in `paligemma run MODEL cat.jpg 'caption en'`; an empty prompt is ''")
        .into());
    };
    if Path::new(prompt).is_file() && !images.iter().any(|image| image == "-" || Path::new(image).is_file()) {
        return Err(Error::usage(format!("the prompt \"{prompt}\" is a file, and \"{}\" is not", images[0]))
            .expected("the images first, then the prompt")
            .into());
    }
    let images: Vec<Frame> = images.iter().cloned().map(Frame::Named).collect();
    answer(args, model, &images, prompt, constrain, opening, choosing)
}

/// Words that a verb has no use for are a mistake.
pub(super) fn no_words(task: &TaskArgs) -> Result<()> {
    if task.words.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!("this verb takes no words, and got \"{}\"", task.words.join(" ")))
        .hint("to ask a question use `ask`; to give a prompt of your own use `run`"))
}

pub(super) fn task(args: &Args, task: &TaskArgs, prompt: &Task<'_>) -> anyhow::Result<ExitCode> {
    let prefix = prompt.prefix()?;
    let images = frames(&task.image, task.sampling())?;
    answer(args, &task.model.model, &images, &prefix, false, &task.opening, &task.choosing)
}

fn answer(
    args: &Args,
    model: &str,
    images: &[Frame],
    prefix: &str,
    constrain: bool,
    opening: &Opening,
    choosing: &Choosing,
) -> anyhow::Result<ExitCode> {
    let options = choosing.options()?;
    let asked = if constrain { Some(asked(prefix)?) } else { None };
    let mut names = Vec::new();
    for image in images {
        if let Frame::Named(name) = image {
            names.push(name.as_str());
        }
    }
    check_images(&names)?;
    let start = Instant::now();
    let session = open::session(args, model, &opening.options(images.len(), 1, choosing))?;
    let load = start.elapsed();
    let first = Instant::now();
    let picture = |image: &Frame| match image {
        Frame::Named(name) => read(&session, name),
        Frame::Bytes(bytes) => session.decode_image(bytes),
    };
    let pictures = images.iter().map(picture).collect::<Result<Vec<_>>>()?;
    let mut prompt = session.prompt(&pictures, prefix)?;
    if let Some(asked) = &asked {
        prompt = session.constrained(prompt, asked)?;
    }
    let image_decode = first.elapsed();
    let facts = Facts { load, image_decode, prompt_tokens: prompt.ids.len(), images: pictures.len() };

    let mut broken: Option<anyhow::Error> = None;
    let stream = !args.json;
    let cancel = Some(open::cancel_flag());
    let heeding = open::Heeding::begin();
    let (replies, timings) = session
        .answer(std::slice::from_ref(&prompt), &options, &choosing.stop, cancel, &mut |_, text| {
            if stream && broken.is_none() {
                broken = print(text.as_bytes()).err();
                if broken.is_some() {
                    // Nobody reads on: the rest need not be computed.
                    open::cancel_flag().store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
        })
        .map_err(|e| broken.take().unwrap_or(e.into()))?;
    drop(heeding);
    if let Some(broken) = broken {
        return Err(broken);
    }
    let Some(reply) = replies.into_iter().next() else {
        return Err(Error::model("no answer").into());
    };
    if args.json {
        print_json(&facts.json(&session, &reply, &timings))?;
    } else {
        print(b"\n")?;
    }
    note(
        args.quiet || args.json,
        format_args!(
            "load {:.1} s · image {:.2} s · prefill {:.2} s · {} tokens at {:.1}/s · {} · {}",
            load.as_secs_f64(),
            (image_decode + timings.image_encode).as_secs_f64(),
            timings.prefill.as_secs_f64(),
            reply.answer.tokens.len(),
            tokens_per_s(&timings),
            reply.answer.finish_reason.name(),
            size(peak_rss().unwrap_or(0)),
        ),
    );
    Ok(ExitCode::SUCCESS)
}

/// What a prompt must ask for so that its answer can be constrained.
fn asked(prefix: &str) -> Result<Asked<'_>> {
    Asked::of(prefix).ok_or_else(|| {
        Error::usage(format!("--constrain is for things to find, and the prompt is \"{prefix}\""))
            .expected("`detect THING ; THING` or `segment THING ; THING`")
    })
}

/// The first token comes with the prefill; the others are decoded.
fn tokens_per_s(timings: &Timings) -> f64 {
    match timings.tokens.saturating_sub(1) {
        0 => 0.0,
        decoded => decoded as f64 / timings.decode.as_secs_f64(),
    }
}

/// What is known of an answer beside itself.
pub(super) struct Facts {
    pub(super) load: Duration,
    pub(super) image_decode: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) images: usize,
}

impl Facts {
    /// What JSON says of an answer.
    pub(super) fn json(&self, session: &Session, reply: &Reply, timings: &Timings) -> Map<String, Value> {
        let Reply { text, answer } = reply;
        let ttft = self.image_decode + timings.image_encode + timings.prefill;
        let all = json!({
            "text": text,
            "tokens": answer.tokens,
            "logprobs": answer.logprobs,
            "prompt_tokens": self.prompt_tokens,
            "image_tokens": self.images * session.model().config().vision.num_tokens(),
            "finish_reason": answer.finish_reason.name(),
            "timings": {
                "load_s": self.load.as_secs_f64(),
                "image_decode_s": self.image_decode.as_secs_f64(),
                "image_encode_s": timings.image_encode.as_secs_f64(),
                "prefill_s": timings.prefill.as_secs_f64(),
                "ttft_s": ttft.as_secs_f64(),
                "decode_s": timings.decode.as_secs_f64(),
                "tokens_per_s": tokens_per_s(timings),
            },
            "peak_rss_bytes": peak_rss().unwrap_or(0),
        });
        match all {
            Value::Object(all) => all,
            _ => Map::new(),
        }
    }
}

/// What can be said of the images before a model is loaded.
pub(super) fn check_images(images: &[&str]) -> Result<()> {
    let hint = "the last argument is the prompt; quote a prompt of several words";
    for &image in images.iter().filter(|image| **image != "-") {
        let path = Path::new(image);
        if !path.exists() {
            return Err(Error::input(format!("there is no image {image}")).hint(hint));
        }
        if path.is_dir() {
            return Err(Error::input(format!("{image} is a folder")).expected("an image file"));
        }
    }
    match images.iter().filter(|image| **image == "-").count() {
        0 => Ok(()),
        1 if io::stdin().is_terminal() => {
            Err(Error::input("the image `-` is read from stdin, which is a terminal")
                .hint("pipe it in: cat cat.jpg | paligemma run MODEL - PROMPT"))
        }
        1 => Ok(()),
        n => Err(Error::usage(format!("`-` is given {n} times")).expected("one image at most from stdin")),
    }
}

pub(super) fn read(session: &Session, image: &str) -> Result<Picture> {
    if image != "-" {
        // A file that cannot be read is a wrong input, whatever the system says of it.
        return session.read_image(Path::new(image)).map_err(|e| match e.kind() {
            Kind::Io => e.of_kind(Kind::Input),
            _ => e,
        });
    }
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_STDIN + 1).read_to_end(&mut bytes).map_err(|e| Error::io("stdin", e))?;
    if bytes.len() as u64 > MAX_STDIN {
        return Err(Error::input("the image on stdin is over 128 MiB"));
    }
    session.decode_image(&bytes).map_err(|e| e.at("stdin"))
}
