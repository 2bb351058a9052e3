//! `predict`: every line of a JSONL file answered in batches, in order, to be taken up again where it stopped.

use crate::{
    args::{Args, Choosing, MaskFormat, Opening},
    open,
    output::{note, print_json},
    verbs::find,
};
use paligemma::{
    Error, Kind, Result,
    detection::{Detection, Finding, detections},
    generate::{Options, Prompt},
    image::Rle,
    masks::MaskCodec,
    session::Session,
    text::Asked,
};
use serde_json::{Map, Value, json};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// The longest line that is read.
const MAX_LINE: u64 = 16 << 20;
/// The longest line that may have been written: a line in and its answer.
const MAX_ANSWER: u64 = 32 << 20;

/// What is to be answered.
pub(super) struct Job<'a> {
    pub(super) data: &'a Path,
    pub(super) output: Option<&'a Path>,
    pub(super) batch: usize,
    /// Only valid answers where the prefix asks for things.
    pub(super) constrain: bool,
    pub(super) finding: Finding,
    /// The masks' model, if masks are wanted.
    pub(super) vqvae: Option<&'a Path>,
}

/// A line that can be answered.
struct Question {
    object: Map<String, Value>,
    images: Vec<PathBuf>,
    prefix: String,
}

/// A question that the model can be asked.
struct Ready {
    question: Question,
    prompt: Prompt,
    /// Of the first image: what boxes are in pixels of.
    size: (usize, usize),
}

/// What answers are made with.
struct Answering<'a> {
    session: Session,
    options: Options,
    stops: &'a [String],
    finding: Finding,
    masks: Option<MaskCodec>,
    quiet: bool,
}

pub(super) fn predict(
    args: &Args,
    model: &str,
    job: &Job<'_>,
    opening: &Opening,
    choosing: &Choosing,
) -> anyhow::Result<ExitCode> {
    let options = choosing.options()?;
    job.finding.check()?;
    let masks = job.vqvae.map(|file| MaskCodec::open(Some(file))).transpose()?;
    let folder = job.data.parent().unwrap_or(Path::new("")).to_path_buf();
    let mut lines = Lines::open(job.data)?;
    if let Some(output) = job.output
        && output.canonicalize().is_ok_and(|output| job.data.canonicalize().is_ok_and(|data| data == output))
    {
        return Err(Error::usage("the answers would go into the file of the questions")
            .hint("give another -o")
            .into());
    }
    let mut state = State::default();
    let mut out = match job.output {
        Some(path) => Output::resume(path, job.data, &folder, &mut lines, &mut state)?,
        None => Output { to: Box::new(io::stdout()) },
    };
    let session = open::session(args, model, &opening.options(1, job.batch, choosing))?;
    let answering =
        Answering { session, options, stops: &choosing.stop, finding: job.finding, masks, quiet: args.quiet };
    let mut batch: Vec<Ready> = Vec::new();
    let _heeding = open::Heeding::begin();
    while let Some((number, line)) = lines.next()? {
        if open::is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "cancelled").into());
        }
        let prepared = line
            .and_then(|line| question(&line, &folder))
            .and_then(|q| prepare(&answering.session, q, job.constrain));
        match prepared {
            Ok(ready) => batch.push(ready),
            Err(e) => state.report(number, job.data, &e),
        }
        if batch.len() == job.batch {
            answer(&answering, &mut batch, &mut out, &mut state)?;
        }
    }
    answer(&answering, &mut batch, &mut out, &mut state)?;
    if args.json && job.output.is_some() {
        print_json(&json!({
            "answered": state.answered,
            "resumed": state.resumed,
            "bad_lines": state.bad,
        }))?;
    }
    let skipped = if state.bad.is_empty() { String::new() } else { format!(", {} bad", state.bad.len()) };
    note(
        args.quiet,
        format_args!("{} answered, {} were there before{skipped}", state.answered, state.resumed),
    );
    Ok(if state.bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(crate::exit::code(Kind::Input)) })
}

#[derive(Default)]
struct State {
    bad: Vec<usize>,
    answered: usize,
    resumed: usize,
    /// When the progress was last told.
    told: Option<Instant>,
}

impl State {
    fn report(&mut self, number: usize, data: &Path, error: &Error) {
        self.bad.push(number);
        note(false, format_args!("{}:{number}: {error}", data.display()));
    }
}

fn prepare(session: &Session, question: Question, constrain: bool) -> Result<Ready> {
    let pictures =
        question.images.iter().map(|image| session.read_image(image)).collect::<Result<Vec<_>>>()?;
    let mut prompt = session.prompt(&pictures, &question.prefix)?;
    if let (true, Some(asked)) = (constrain, Asked::of(&question.prefix)) {
        prompt = session.constrained(prompt, &asked)?;
    }
    let size = pictures.first().map_or((1, 1), |picture| (picture.width, picture.height));
    Ok(Ready { question, prompt, size })
}

fn answer(
    answering: &Answering<'_>,
    batch: &mut Vec<Ready>,
    out: &mut Output,
    state: &mut State,
) -> anyhow::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let Answering { session, options, stops, .. } = answering;
    let mut questions = Vec::new();
    let mut prompts = Vec::new();
    for Ready { question, prompt, size } in batch.drain(..) {
        questions.push((question, size));
        prompts.push(prompt);
    }
    let (replies, _) = session.answer(&prompts, options, stops, Some(open::cancel_flag()), &mut |_, _| {})?;
    if state.told.is_none_or(|told| told.elapsed() > Duration::from_secs(10)) {
        // The first time nothing is said: a short run has nothing to tell on its way.
        if state.told.replace(Instant::now()).is_some() {
            note(answering.quiet, format_args!("{} answered", state.answered));
        }
    }
    for ((question, size), reply) in questions.into_iter().zip(replies) {
        let found = detections(session.tokenizer(), &reply.answer, size, &answering.finding);
        let is_objects = !found.detections.is_empty() && found.malformed.is_empty();
        let is_asked = Asked::of(&question.prefix).is_some();
        let mut object = question.object;
        object.insert("answer".into(), json!(reply.text));
        object.insert("tokens".into(), json!(reply.answer.tokens));
        object.insert("logprob".into(), json!(reply.answer.score));
        if is_asked || is_objects {
            let objects = found.detections.iter().map(|d| answering.json(d, size)).collect::<Result<_>>()?;
            object.insert("detections".into(), Value::Array(objects));
        }
        out.write(&object)?;
        state.answered += 1;
    }
    out.flush()
}

impl Answering<'_> {
    fn json(&self, d: &Detection, (width, height): (usize, usize)) -> Result<Value> {
        let mut object = json!({ "label": d.label, "box": d.pixels, "score": d.score });
        if let Some(codes) = d.codes {
            object["codes"] = json!(codes);
            if let Some(codec) = &self.masks {
                let mask = codec.paste(codes, d.pixels, width, height)?;
                object["mask"] = find::mask_json(&Rle::from_mask(&mask), MaskFormat::Rle)?;
            }
        }
        Ok(object)
    }
}

/// The lines of the data, with their numbers. Blank ones are passed over.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines> {
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::input(format!("there is no data file {}", path.display())),
            _ => Error::io(path, e).of_kind(Kind::Input),
        })?;
        if path.is_dir() {
            return Err(Error::input(format!("{} is a folder", path.display())).expected("a JSONL file"));
        }
        Ok(Lines { path: path.to_path_buf(), reader: BufReader::new(file), number: 0 })
    }

    /// The next line's number and what stands there; a line that is too long to be read is an error of its own.
    fn next(&mut self) -> Result<Option<(usize, Result<Vec<u8>>)>> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.reader).take(MAX_LINE + 1).read_until(b'\n', &mut line);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if line.len() as u64 > MAX_LINE {
                if line.last() != Some(&b'\n') {
                    self.reader.skip_until(b'\n').map_err(|e| Error::io(&self.path, e))?;
                }
                let error = Error::input("the line is over 16 MiB").expected("one JSON object a line");
                return Ok(Some((self.number, Err(error))));
            }
            let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line).trim_ascii().to_vec();
            if !line.is_empty() {
                return Ok(Some((self.number, Ok(line))));
            }
        }
    }
}

/// A line as a question; images are looked for beside the data, then in the current folder.
fn question(line: &[u8], folder: &Path) -> Result<Question> {
    let value: Value = serde_json::from_slice(line).map_err(|e| Error::input(format!("not JSON: {e}")))?;
    let Value::Object(object) = value else {
        return Err(Error::input("not a JSON object").expected("{\"image\": …, \"prefix\": …}"));
    };
    let prefix = match object.get("prefix") {
        Some(Value::String(prefix)) => prefix.clone(),
        Some(_) => return Err(Error::input("\"prefix\" is not a string")),
        None => return Err(Error::input("no key \"prefix\"").expected("the prompt, as in \"caption en\"")),
    };
    let names: Option<Vec<&str>> = match object.get("image") {
        Some(Value::String(image)) => Some(vec![image]),
        Some(Value::Array(images)) => images.iter().map(Value::as_str).collect(),
        Some(_) => None,
        None => return Err(Error::input("no key \"image\"").expected("the path of an image")),
    };
    let Some(names) = names else {
        return Err(Error::input("\"image\" is not a path").expected("a string, or a list of strings"));
    };
    let place = |name: &str| {
        let beside = folder.join(name);
        if beside.exists() { beside } else { PathBuf::from(name) }
    };
    let images = names.into_iter().map(place).collect();
    Ok(Question { object, images, prefix })
}

/// Where the answers go.
struct Output {
    to: Box<dyn Write>,
}

impl Output {
    fn write(&mut self, object: &Map<String, Value>) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(object).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.to.write_all(&line)?)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.to.flush()?)
    }

    /// Opens `path` behind the answers that it already holds, and moves `lines` behind their questions. Each answer
    /// must be a line of the data with its three keys more, in the data's order; lines without one were bad, or
    /// stand at the end and are still to do. Half a line at the end, left by a killed run, is dropped.
    fn resume(
        path: &Path,
        data: &Path,
        folder: &Path,
        lines: &mut Lines,
        state: &mut State,
    ) -> Result<Output> {
        let io = |e| Error::io(path, e);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut reader = BufReader::new(file);
        let mut end = 0u64;
        loop {
            let mut line = Vec::new();
            let read = (&mut reader).take(MAX_ANSWER + 1).read_until(b'\n', &mut line).map_err(io)?;
            if read == 0 {
                break;
            }
            let place = format!("{}:{}", path.display(), state.resumed + 1);
            let foreign = || {
                Error::input("the output file holds something else than answers to this data")
                    .at(place.clone())
                    .hint(format!("give another -o, or remove {}", path.display()))
            };
            if line.last() != Some(&b'\n') {
                if !is_half_an_answer(&line, data, folder, lines.number)? {
                    return Err(foreign());
                }
                break;
            }
            let answered: Map<String, Value> = serde_json::from_slice(&line).map_err(|_| foreign())?;
            if !ADDED[..ALWAYS_ADDED].iter().all(|key| answered.contains_key(*key)) {
                return Err(foreign());
            }
            // The question of this answer: the next line of the data that has all its other keys.
            loop {
                let Some((number, line)) = lines.next()? else { return Err(foreign()) };
                match line.and_then(|line| question(&line, folder)) {
                    Ok(question) if is_answer_to(&answered, &question.object) => break,
                    Ok(_) => {
                        state.report(
                            number,
                            data,
                            &Error::input("it was bad in the run before, and is left out"),
                        );
                    }
                    Err(e) => state.report(number, data, &e),
                }
            }
            state.resumed += 1;
            end += read as u64;
        }
        let mut file = reader.into_inner();
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(io)?;
        Ok(Output { to: Box::new(BufWriter::new(file)) })
    }
}

/// Whether `half` is the beginning of an answer to a line of `data` behind number `after`. Only such may be cut off: any
/// other text is somebody's, and stays.
fn is_half_an_answer(half: &[u8], data: &Path, folder: &Path, after: usize) -> Result<bool> {
    let mut lines = Lines::open(data)?;
    while let Some((number, line)) = lines.next()? {
        let Some(question) =
            line.ok().filter(|_| number > after).and_then(|line| question(&line, folder).ok())
        else {
            continue;
        };
        let mut object = question.object;
        // The beginning that does not depend on the answer.
        let first_added = object.keys().position(|key| ADDED.contains(&key.as_str()));
        if let Some(at) = first_added {
            object = object.into_iter().take(at).collect();
        }
        object.insert(ADDED[0].into(), Value::Null);
        let whole = Value::Object(object).to_string().into_bytes();
        let fixed = &whole[..whole.len() - "\"answer\":null}".len()];
        if half.iter().zip(fixed).all(|(a, b)| a == b) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What an answer's line has more than its question's.
const ADDED: [&str; 4] = ["answer", "tokens", "logprob", "detections"];
/// Those that every answer has.
const ALWAYS_ADDED: usize = 3;

fn is_answer_to(answered: &Map<String, Value>, question: &Map<String, Value>) -> bool {
    let kept = |object: &Map<String, Value>| {
        object
            .iter()
            .filter(|(k, _)| !ADDED.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (a, q): (Map<String, Value>, Map<String, Value>) = (kept(answered), kept(question));
    a == q
}
