//! Everything needed to answer: a model, its tokenizer and its way with pictures, opened together.

use crate::{
    Error, Kind, Result,
    adapter::Adapter,
    checkpoint::{Checkpoint, Form, Format, Scheme, dequantise},
    detection::{Detection, Finding, Found, Reader, grammar},
    generate::{Answer, FinishReason, Generator, Options, Prompt, Timings},
    image::{Choice, Picture, Preprocess, decode_as, decode_file_as, pixel_values},
    model::{PaliGemma, Weights},
    nano,
    text::{Asked, DecodeStream, Tokenizer, prompt_ids},
};
use paligemma_tensor::{DType, Parameter, Tensor};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// What may be chosen when a model is opened.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The weights' type; `None` leaves each tensor as it is stored, quantised or not.
    pub dtype: Option<DType>,
    /// How pictures become pixel values.
    pub preprocess: Choice,
    /// Whether big_vision's resizing is antialiased.
    pub antialias: bool,
    /// A tokenizer file in place of the one that lies with the model.
    pub tokenizer: Option<PathBuf>,
    /// The folder of an adapter that goes with the model.
    pub adapter: Option<PathBuf>,
    /// Whether the config's sliding window holds (transformers) or not (big_vision).
    pub sliding_window: bool,
    /// Pictures of a prompt and prompts at a time, for the memory that is asked for before loading.
    pub images: usize,
    /// Prompts that are answered together.
    pub batch: usize,
    /// Tokens of prompt and answer.
    pub text_tokens: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            dtype: None,
            preprocess: Choice::Auto,
            antialias: true,
            tokenizer: None,
            adapter: None,
            sliding_window: false,
            images: 1,
            batch: 1,
            text_tokens: 256,
        }
    }
}

/// A model that is ready to look and answer.
#[derive(Debug)]
pub struct Session {
    model: PaliGemma,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    eos: u32,
    dequantised: Option<Scheme>,
}

/// An answer as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Without EOS, cut before a stop string; `<loc…>` and `<seg…>` stand in it.
    pub text: String,
    /// The tokens behind it.
    pub answer: Answer,
}

/// The weights of a checkpoint as a model, each tensor as `dtype` or as it is stored; a `dtype` makes plain numbers of
/// quantised ones. An adapter's matrices are f32 beside f32 and f16, else bf16.
///
/// # Errors
/// `Kind::Resource` if the machine cannot hold it (nothing is read then); a broken tensor.
pub fn load_model(
    checkpoint: &Checkpoint,
    dtype: Option<DType>,
    adapter: Option<&Adapter>,
    image_tokens: usize,
    text_tokens: usize,
    batch: usize,
) -> Result<PaliGemma> {
    let weights = match dtype {
        Some(dtype) => checkpoint.num_parameters() * dtype.size() as u64,
        None => checkpoint.num_bytes(),
    };
    let config = checkpoint.config();
    config.memory_needed(weights, image_tokens, text_tokens, batch).check_available()?;
    let mut get = |name: &str| {
        let weight = checkpoint.weight(name)?;
        Ok(Parameter::from(match dtype {
            Some(dtype) => dequantise(&weight, dtype).into(),
            None => weight,
        }))
    };
    let lora = |layer: &str| {
        let form = checkpoint.form(&format!("{layer}.weight")).unwrap_or(Form::Plain(DType::BF16));
        let narrow = !matches!(dtype.map_or(form, Form::Plain), Form::Plain(DType::F32 | DType::F16));
        adapter?.lora(layer, if narrow { DType::BF16 } else { DType::F32 })
    };
    PaliGemma::load(config, &mut Weights::new(&mut get).with_adapters(&lora))
}

/// The tokenizer of a checkpoint: `file` if given, else the one beside its weights.
///
/// # Errors
/// None there, or a broken one.
pub fn load_tokenizer(checkpoint: &Checkpoint, file: Option<&Path>) -> Result<Tokenizer> {
    match (file, checkpoint.folder()) {
        (Some(file), _) => Tokenizer::from_file(file),
        (None, Some(folder)) => Tokenizer::from_folder(folder),
        (None, None) => Tokenizer::from_model_bytes(nano::TOKENIZER),
    }
}

/// How a checkpoint's pictures become pixel values: as its folder says, as the reference does of an npz, as the published
/// folders say of a model within this program. `antialias` is for the reference's way.
///
/// # Errors
/// Those of [`Preprocess::choose`].
pub fn load_preprocess(checkpoint: &Checkpoint, choice: Choice, antialias: bool) -> Result<Preprocess> {
    let folder = checkpoint.folder().filter(|_| checkpoint.format() == Format::Safetensors);
    let choice = match (choice, checkpoint.folder()) {
        (Choice::Auto, None) => Choice::HuggingFace,
        (choice, _) => choice,
    };
    let mut preprocess = Preprocess::choose(choice, folder, checkpoint.config().vision.image_size)?;
    if let Preprocess::Reference { antialias: set } = &mut preprocess {
        *set = antialias;
    }
    Ok(preprocess)
}

impl Session {
    /// Opens the checkpoint at `path`, a folder or a file.
    ///
    /// # Errors
    /// Whatever is wrong with its files, by name; `Kind::Resource` if it does not fit in memory.
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Session> {
        let checkpoint = Checkpoint::open(path)?;
        let vision = &checkpoint.config().vision;
        let preprocess = load_preprocess(&checkpoint, options.preprocess, options.antialias)?;
        let tokenizer = load_tokenizer(&checkpoint, options.tokenizer.as_deref())?;
        let eos = tokenizer.eos()?;
        let image_tokens = options.images.max(1) * vision.num_tokens();
        let adapter = match &options.adapter {
            Some(folder) => Some(Adapter::open(folder, checkpoint.config())?),
            None => None,
        };
        let model = load_model(
            &checkpoint,
            options.dtype,
            adapter.as_ref(),
            image_tokens,
            options.text_tokens,
            options.batch,
        )?
        .with_sliding_window(options.sliding_window);
        let dequantised = options.dtype.and(checkpoint.scheme());
        Ok(Session { model, tokenizer, preprocess, eos, dequantised })
    }

    /// The scheme of the stored weights, if a dtype was asked for and made plain numbers of them.
    pub fn dequantised(&self) -> Option<Scheme> {
        self.dequantised
    }

    /// The model.
    pub fn model(&self) -> &PaliGemma {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Decodes an image file, upright, as this model's way with pictures asks.
    ///
    /// # Errors
    /// `Kind::Input`, naming the file.
    pub fn read_image(&self, path: &Path) -> Result<Picture> {
        decode_file_as(path, self.preprocess.grey16())
    }

    /// The same for the bytes of an image file.
    ///
    /// # Errors
    /// `Kind::Input`.
    pub fn decode_image(&self, bytes: &[u8]) -> Result<Picture> {
        decode_as(bytes, self.preprocess.grey16())
    }

    /// Pictures and a prefix as the model takes them. The tokens of all pictures (or video frames) stand in their
    /// order before the text.
    ///
    /// # Errors
    /// No picture; a picture or a prefix that cannot be used.
    pub fn prompt(&self, pictures: &[Picture], prefix: &str) -> Result<Prompt> {
        if pictures.is_empty() {
            return Err(Error::input("no image").expected("at least one, before the prompt"));
        }
        let side = self.model.config().vision.image_size;
        let mut pixels = Vec::with_capacity(pictures.len() * 3 * side * side);
        for picture in pictures {
            pixels.extend(pixel_values(picture, side, &self.preprocess)?);
        }
        Ok(Prompt {
            pixels: Tensor::from_f32(pixels, &[pictures.len(), 3, side, side]),
            ids: prompt_ids(&self.tokenizer, prefix)?,
            grammar: None,
        })
    }

    /// The prompt, its answer constrained to what was asked for: boxes, and masks if `asked` says so, of its things.
    ///
    /// # Errors
    /// Those of [`grammar`].
    pub fn constrained(&self, prompt: Prompt, asked: &Asked<'_>) -> Result<Prompt> {
        Ok(Prompt { grammar: Some(Arc::new(grammar(&self.tokenizer, asked)?)), ..prompt })
    }

    /// Answers a prompt with objects, in a picture of `size` (width, height). `on_object` hears of each as it is
    /// complete.
    ///
    /// # Errors
    /// Those of [`Generator::run`]; a value of `finding` that means nothing.
    pub fn find(
        &self,
        prompt: &Prompt,
        size: (usize, usize),
        options: &Options,
        finding: &Finding,
        cancel: Option<&AtomicBool>,
        on_object: &mut dyn FnMut(&Detection),
    ) -> Result<(Found, Reply, Timings)> {
        finding.check()?;
        let mut reader = Reader::new(&self.tokenizer, size, *finding);
        let prompts = std::slice::from_ref(prompt);
        let (mut answers, timings) = self.generator(cancel).run_steps(prompts, options, &mut |step| {
            reader.push(step, on_object);
            ControlFlow::Continue(())
        })?;
        let found = reader.finish(on_object);
        let answer = answers.pop().ok_or_else(|| Error::model("no answer"))?;
        Ok((found, Reply { text: self.tokenizer.decode(&answer.tokens), answer }, timings))
    }

    fn generator<'a>(&'a self, cancel: Option<&'a AtomicBool>) -> Generator<'a> {
        // A tokenizer whose locations do not follow each other has answers, but no scores.
        let locations = self.tokenizer.locations().unwrap_or(0..0);
        let generator = Generator::new(&self.model, self.eos).watching(locations);
        match cancel {
            Some(cancel) => generator.cancelled_by(cancel),
            None => generator,
        }
    }

    /// Answers all prompts, in their order. `on_text(row, text)` hears each row's text as it comes, never half a
    /// character, and never what may yet be the beginning of a stop string.
    ///
    /// # Errors
    /// Those of [`Generator::run`]; an empty stop string.
    pub fn answer(
        &self,
        prompts: &[Prompt],
        options: &Options,
        stops: &[String],
        cancel: Option<&AtomicBool>,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<(Vec<Reply>, Timings)> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::new(Kind::Usage, "--stop is empty").expected("at least one character"));
        }
        if !stops.is_empty() && options.beams > 1 {
            return Err(Error::usage("stop strings and beam search together are not supported")
                .hint("drop --stop or --beams"));
        }
        let mut texts: Vec<RowText<'_>> =
            prompts.iter().map(|_| RowText::new(self.tokenizer.decode_stream(), stops)).collect();
        let (answers, timings) = self.generator(cancel).run(prompts, options, &mut |row, id, _| {
            let (new, stopped) = texts[row].push(id);
            if !new.is_empty() {
                on_text(row, &new);
            }
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let mut replies = Vec::with_capacity(answers.len());
        for (row, (mut answer, text)) in answers.into_iter().zip(texts).enumerate() {
            let (text, rest, stopped) = text.finish();
            if !rest.is_empty() {
                on_text(row, &rest);
            }
            if stopped {
                answer.finish_reason = FinishReason::Stop;
            }
            replies.push(Reply { text, answer });
        }
        Ok((replies, timings))
    }
}

/// The text of a row as far as it has come.
struct RowText<'a> {
    stream: Option<DecodeStream<'a>>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that were told.
    told: usize,
    stopped: bool,
}

impl<'a> RowText<'a> {
    fn new(stream: DecodeStream<'a>, stops: &'a [String]) -> Self {
        RowText { stream: Some(stream), stops, text: String::new(), told: 0, stopped: false }
    }

    /// → what may be told now, and whether a stop string has come.
    fn push(&mut self, id: u32) -> (String, bool) {
        if let Some(stream) = &mut self.stream {
            let new = stream.push(id);
            self.text.push_str(&new);
        }
        (self.tell(false), self.stopped)
    }

    /// → the whole text, what was not told yet, and whether a stop string came.
    fn finish(mut self) -> (String, String, bool) {
        if let Some(stream) = self.stream.take()
            && !self.stopped
        {
            self.text.push_str(&stream.finish());
        }
        let rest = self.tell(true);
        (self.text, rest, self.stopped)
    }

    fn tell(&mut self, at_end: bool) -> String {
        if self.stopped {
            return String::new();
        }
        // A stop string may begin in what was held back, never in what was told.
        if let Some(at) = self.stops.iter().filter_map(|s| self.text[self.told..].find(s.as_str())).min() {
            self.text.truncate(self.told + at);
            self.stopped = true;
        }
        let untold = &self.text[self.told..];
        let held = if self.stopped || at_end { 0 } else { beginning_of_a_stop(untold, self.stops) };
        let new = untold[..untold.len() - held].to_owned();
        self.told += new.len();
        new
    }
}

/// Bytes at the end of `text` that are the longest beginning of a stop string.
fn beginning_of_a_stop(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        (1..stop.len().min(text.len() + 1))
            .rev()
            .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
            .unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_stop_is_held_back() {
        let stops = ["END".to_owned(), "\n\n".to_owned(), "né".to_owned()];
        for (text, want) in
            [("", 0), ("abc", 0), ("abE", 1), ("abEN", 2), ("a\n", 1), ("an", 1), ("E", 1), ("ENN", 0)]
        {
            assert_eq!(beginning_of_a_stop(text, &stops), want, "{text:?}");
        }
    }
}
