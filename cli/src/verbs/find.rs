//! `detect`, `segment`: objects found in one picture or many, told as they come, drawn, written as masks.

use crate::{
    args::{Args, FindArgs, MaskArgs, MaskFormat},
    frames::{no_picture, pictures_in, utf8},
    open,
    output::{note, print, print_json, write_file},
    verbs::run,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use paligemma::{
    Error, Kind, Result,
    detection::{Detection, Finding, Found},
    generate::{Options, Timings},
    image::{Picture, Rle, Shape, draw, outline_polygons, png_of_mask, png_of_picture},
    masks::MaskCodec,
    session::{Reply, Session},
    text::{Asked, Task},
};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// What is done with every picture.
struct Job<'a> {
    args: &'a Args,
    find: &'a FindArgs,
    masks: Option<(&'a MaskArgs, MaskCodec)>,
    session: Session,
    /// The prompt's words.
    prefix: String,
    options: Options,
    finding: Finding,
    /// More than one picture was asked for: each line says which it is of.
    several: bool,
    load: Duration,
}

pub(super) fn detect(args: &Args, find: &FindArgs) -> anyhow::Result<ExitCode> {
    let prefix = Task::Detect { things: &things(&find.things) }.prefix()?;
    find_all(args, find, prefix, None)
}

pub(super) fn segment(args: &Args, find: &FindArgs, masks: &MaskArgs) -> anyhow::Result<ExitCode> {
    let prefix = Task::Segment { things: &things(&find.things) }.prefix()?;
    find_all(args, find, prefix, Some(masks))
}

/// Each argument is a thing, and `;` separates things within one.
fn things(words: &[String]) -> Vec<&str> {
    words.iter().flat_map(|words| words.split(';')).map(str::trim).filter(|w| !w.is_empty()).collect()
}

fn find_all(
    args: &Args,
    find: &FindArgs,
    prefix: String,
    masks: Option<&MaskArgs>,
) -> anyhow::Result<ExitCode> {
    let options = find.choosing.options()?;
    let finding = find.finding.finding();
    finding.check()?;
    if !find.choosing.stop.is_empty() {
        return Err(Error::usage("--stop ends text, and here objects are found").hint("drop --stop").into());
    }
    let images = images(&find.image)?;
    let several = images.len() > 1 || Path::new(&find.image).is_dir();
    if let Some(output) = &find.output {
        check_output(output, several)?;
    }
    let folders = [find.output.as_deref().filter(|_| several), masks.and_then(|m| m.masks.as_deref())];
    for folder in folders.into_iter().flatten() {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let start = Instant::now();
    let session = open::session(args, &find.model.model, &find.opening.options(1, 1, &find.choosing))?;
    let load = start.elapsed();
    let masks = match masks {
        Some(masks) => {
            let file = masks.vqvae.vqvae.as_deref();
            Some((masks, MaskCodec::of_model(session.model().config(), file)?))
        }
        None => None,
    };
    let job = Job { args, find, masks, session, prefix, options, finding, several, load };
    let mut bad = 0;
    for image in &images {
        match job.one(image) {
            Ok(()) => {}
            // One of many that cannot be read is told, and the others go on.
            Err(e) if several && is_input(&e) => {
                note(false, format_args!("{image}: {e}"));
                bad += 1;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(crate::exit::code(Kind::Input)) })
}

fn is_input(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|e| e.kind() == Kind::Input)
}

/// The pictures that the user means: a file, stdin, all in a folder, or all of a pattern; sorted.
fn images(image: &str) -> Result<Vec<String>> {
    let path = Path::new(image);
    let is_pattern = image.contains(['*', '?', '[']) && !path.exists();
    if path.is_dir() {
        return pictures_in(path);
    }
    if !is_pattern {
        run::check_images(&[image])?;
        return Ok(vec![image.to_owned()]);
    }
    let wrong = |e: glob::PatternError| Error::usage(format!("\"{image}\" is no pattern: {e}"));
    let found = glob::glob(image).map_err(wrong)?.filter_map(Result::ok).filter(|path| path.is_file());
    let found = found.map(utf8).collect::<Result<Vec<_>>>()?;
    if found.is_empty() { Err(no_picture(&image)) } else { Ok(found) }
}

/// One picture is written to a file, several into a folder.
fn check_output(output: &Path, several: bool) -> Result<()> {
    let is_png = output.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
    let output = output.display();
    match (several, is_png) {
        (false, false) => {
            Err(Error::usage(format!("the drawn picture is to be {output}"))
                .expected("a name ending in .png"))
        }
        (true, true) => Err(Error::usage(format!("several drawn pictures are to be {output}"))
            .expected("a folder to write them into")),
        _ => Ok(()),
    }
}

impl Job<'_> {
    fn one(&self, image: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let picture = run::read(&self.session, image)?;
        let mut prompt = self.session.prompt(std::slice::from_ref(&picture), &self.prefix)?;
        if let (false, Some(asked)) = (self.find.free, Asked::of(&self.prefix)) {
            prompt = self.session.constrained(prompt, &asked)?;
        }
        let (image_decode, prompt_tokens) = (start.elapsed(), prompt.ids.len());
        let mut broken: Option<anyhow::Error> = None;
        let heeding = open::Heeding::begin();
        let (found, reply, timings) = self
            .session
            .find(
                &prompt,
                (picture.width, picture.height),
                &self.options,
                &self.finding,
                Some(open::cancel_flag()),
                &mut |detection| {
                    if !self.args.json && broken.is_none() {
                        broken = print(self.line(image, detection).as_bytes()).err();
                        if broken.is_some() {
                            // Nobody reads on: the rest need not be computed.
                            open::cancel_flag().store(true, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                },
            )
            .map_err(|e| broken.take().unwrap_or(e.into()))?;
        drop(heeding);
        if let Some(broken) = broken {
            return Err(broken);
        }
        let masks = self.masks(&found, &picture, image)?;
        if let Some(output) = &self.find.output {
            self.draw(&picture, &found, &masks, &self.place(output, image))?;
        }
        if self.args.json {
            let run = run::Facts { load: self.load, image_decode, prompt_tokens, images: 1 };
            print_json(&self.json(image, &picture, &found, &masks, &reply, &run, &timings)?)?;
        } else {
            self.say(&found, &reply);
        }
        Ok(())
    }

    /// One object as text: score, box, label, and the picture in front if there are several.
    fn line(&self, image: &str, d: &Detection) -> String {
        let [x0, y0, x1, y1] = d.pixels;
        let image = if self.several { format!("{image}\t") } else { String::new() };
        format!("{image}{:.2}\t{x0:.1},{y0:.1},{x1:.1},{y1:.1}\t{}\n", d.score, d.label)
    }

    /// What is not data.
    fn say(&self, found: &Found, reply: &Reply) {
        let quiet = self.args.quiet;
        for (fault, piece) in &found.malformed {
            note(quiet, format_args!("no object: \"{piece}\": {fault}"));
        }
        if found.detections.is_empty() {
            note(quiet, "nothing was found");
        }
        // Under the grammar an answer ends early where another object would not fit.
        let tokens = reply.answer.tokens.len();
        let per_object = tokens / found.detections.len().max(1) + 4;
        if tokens + per_object > self.options.max_tokens {
            note(quiet, "there was no room for another object: ask for more with --max-tokens");
        }
    }

    /// The objects' masks, on the whole picture; written as files if asked for.
    fn masks(&self, found: &Found, picture: &Picture, image: &str) -> Result<Vec<Option<Rle>>> {
        let Some((args, codec)) = &self.masks else { return Ok(vec![None; found.detections.len()]) };
        let mut all = Vec::new();
        for (i, detection) in found.detections.iter().enumerate() {
            let Some(codes) = detection.codes else {
                all.push(None);
                continue;
            };
            let mask = codec.paste(codes, detection.pixels, picture.width, picture.height)?;
            if let Some(folder) = &args.masks {
                write_file(&folder.join(mask_file(image, i)), &png_of_mask(&mask)?)?;
            }
            all.push(Some(Rle::from_mask(&mask)));
        }
        Ok(all)
    }

    /// Where the drawn picture goes.
    fn place(&self, output: &Path, image: &str) -> PathBuf {
        if self.several { output.join(format!("{}.png", file_name(image))) } else { output.to_path_buf() }
    }

    fn draw(&self, picture: &Picture, found: &Found, masks: &[Option<Rle>], to: &Path) -> Result<()> {
        let shapes: Vec<Shape<'_>> = found
            .detections
            .iter()
            .zip(masks)
            .map(|(d, mask)| Shape {
                label: &d.label,
                pixels: d.pixels,
                score: Some(d.score),
                mask: mask.as_ref(),
            })
            .collect();
        let (drawn, zoom) = draw(picture, &shapes)?;
        write_file(to, &png_of_picture(&drawn)?)?;
        let enlarged = if zoom > 1 { format!(", enlarged {zoom} times") } else { String::new() };
        note(self.args.quiet, format_args!("wrote {}{enlarged}", to.display()));
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "all that is known of one answer")]
    fn json(
        &self,
        image: &str,
        picture: &Picture,
        found: &Found,
        masks: &[Option<Rle>],
        reply: &Reply,
        run: &run::Facts,
        timings: &Timings,
    ) -> Result<Map<String, Value>> {
        let mut detections = Vec::new();
        for (i, (d, mask)) in found.detections.iter().zip(masks).enumerate() {
            let mut object = json!({ "label": d.label, "box": d.pixels, "score": d.score });
            if let (Some(mask), Some((args, _))) = (mask, &self.masks) {
                let mut json = mask_json(mask, args.mask_format)?;
                if let Some(folder) = &args.masks {
                    json["file"] = json!(folder.join(mask_file(image, i)));
                }
                object["mask"] = json;
            }
            detections.push(object);
        }
        let malformed: Vec<Value> = found
            .malformed
            .iter()
            .map(|(fault, text)| json!({ "text": text, "why": fault.to_string() }))
            .collect();
        let mut all = Map::new();
        all.insert("image".into(), json!(image));
        all.insert("width".into(), json!(picture.width));
        all.insert("height".into(), json!(picture.height));
        all.insert("detections".into(), json!(detections));
        all.insert("malformed".into(), json!(malformed));
        all.extend(run.json(&self.session, reply, timings));
        Ok(all)
    }
}

/// A mask in one of JSON's forms.
pub(super) fn mask_json(mask: &Rle, format: MaskFormat) -> Result<Value> {
    Ok(match format {
        MaskFormat::Rle => {
            json!({ "rle": { "size": [mask.height(), mask.width()], "counts": mask.compressed() } })
        }
        MaskFormat::Polygons => {
            let flat = |polygon: Vec<[f64; 2]>| polygon.into_flattened();
            let polygons: Vec<_> = outline_polygons(&mask.to_mask()).into_iter().map(flat).collect();
            json!({ "polygons": polygons })
        }
        MaskFormat::Png => json!({ "png": BASE64_STANDARD.encode(png_of_mask(&mask.to_mask())?) }),
    })
}

fn file_name(image: &str) -> String {
    match Path::new(image).file_name() {
        Some(name) if image != "-" => name.to_string_lossy().into_owned(),
        _ => "stdin".into(),
    }
}

/// `cat.jpg-0.png` of the first object.
fn mask_file(image: &str, index: usize) -> String {
    format!("{}-{index}.png", file_name(image))
}
