//! Examples made ready for the model on threads of their own, ahead of when they are needed, in the order of the draws
//! whatever the number of threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rayon::ThreadPoolBuilder;

use super::augment::Augmentation;
use super::mixture::{Draw, Mixture};
use super::random::{Purpose, stream};
use super::tokens::Tokens;
use crate::image::{Preprocess, pixel_values};
use crate::text::Tokenizer;
use crate::{Error, Kind, Result};

/// How an example becomes what the model reads.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// Whose ids.
    pub tokenizer: Arc<Tokenizer>,
    /// How pictures become pixel values.
    pub preprocess: Preprocess,
    /// The side of the model's images.
    pub image_size: usize,
    /// The text length N; see [`Tokens::new`].
    pub text_len: usize,
    /// What happens to pictures before.
    pub augmentation: Option<Augmentation>,
}

/// An example that is ready for the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// Which draw it is.
    pub draw: Draw,
    /// Where it stands.
    pub place: String,
    /// For each picture `[3, S, S]`; none of a text.
    pub pixels: Vec<Vec<f32>>,
    /// The prompt, without the line break.
    pub prefix: String,
    /// The suffix that was taken.
    pub suffix: String,
    /// Both as ids.
    pub tokens: Tokens,
}

impl Preparation {
    /// Makes draw `number` of a mixture ready.
    ///
    /// # Errors
    /// [`Kind::Input`], with the example's place, for what is wrong with the example; others for what would be wrong
    /// with every example.
    pub fn prepare(&self, mixture: &Mixture, number: u64) -> Result<Ready> {
        let draw = mixture.draw(number);
        let (mut example, taken) = mixture.example(draw)?;
        let suffix = example.suffixes.swap_remove(taken);
        let (place, prefix) = (example.place, example.prefix);
        let read = || {
            let tokens = match (prefix.as_str(), &example.images[..]) {
                ("", []) => Tokens::of_text(&self.tokenizer, &suffix, self.text_len)?,
                _ => Tokens::new(&self.tokenizer, &prefix, &suffix, self.text_len)?,
            };
            let has_boxes = [&prefix, &suffix].iter().any(|text| text.contains("<loc"));
            let pixels = example.images.iter().map(|image| {
                let mut picture = image.decode(self.preprocess.grey16())?;
                if let Some(augmentation) = &self.augmentation {
                    // One stream for all pictures of an example: the frames of a video stay together.
                    let mut rng = stream(
                        mixture.seed(),
                        Purpose::Augmentation,
                        draw.part,
                        draw.epoch,
                        draw.index as u64,
                    );
                    picture = augmentation.apply(picture, self.image_size, !has_boxes, &mut rng)?;
                }
                pixel_values(&picture, self.image_size, &self.preprocess)
            });
            Ok((tokens, pixels.collect::<Result<Vec<_>>>()?))
        };
        let (tokens, pixels) = read().map_err(|error: Error| error.at(place.clone()))?;
        Ok(Ready { draw, place, pixels, prefix, suffix, tokens })
    }
}

/// What becomes of an example that cannot be made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// Its error is the loader's.
    #[default]
    Stop,
    /// It is left out and counted; the order of the others stays.
    Skip,
}

/// Hands out the draws of a mixture, ready for the model.
#[derive(Debug)]
pub struct Loader {
    mixture: Arc<Mixture>,
    preparation: Arc<Preparation>,
    on_error: OnError,
    /// Draws to come.
    draws: Range<u64>,
    num_skipped: u64,
    /// Skipped since the last that was good.
    in_a_row: u64,
    threads: Option<Threads>,
}

impl Loader {
    /// The draws of `draws`, in order, on `threads` threads that are at most `ahead` draws ahead; without threads each
    /// draw is made when it is asked for. Neither number changes what comes.
    ///
    /// # Errors
    /// [`Kind::Usage`]: an augmentation out of range. [`Kind::Resource`]: the system gives no more threads.
    pub fn new(
        mixture: Arc<Mixture>,
        preparation: Preparation,
        on_error: OnError,
        draws: Range<u64>,
        threads: usize,
        ahead: usize,
    ) -> Result<Loader> {
        if let Some(augmentation) = &preparation.augmentation {
            augmentation.check()?;
        }
        let preparation = Arc::new(preparation);
        let threads = match threads {
            0 => None,
            n => Some(Threads::start(&mixture, &preparation, draws.clone(), n, ahead.max(1) as u64)?),
        };
        Ok(Loader { mixture, preparation, on_error, draws, num_skipped: 0, in_a_row: 0, threads })
    }

    /// The next example, or none behind the last draw. `skipped` is told each error that is passed over.
    ///
    /// # Errors
    /// [`OnError::Stop`]: what is wrong with the next example; asked again, the loader goes on behind it.
    /// [`OnError::Skip`]: no error of an example, unless all of them are bad; but whatever is not [`Kind::Input`].
    pub fn next(&mut self, skipped: &mut dyn FnMut(&Error)) -> Result<Option<Ready>> {
        for number in self.draws.by_ref() {
            let ready = match &self.threads {
                Some(threads) => threads.take(number),
                None => prepare(&self.preparation, &self.mixture, number),
            };
            match ready {
                Ok(ready) => {
                    self.in_a_row = 0;
                    return Ok(Some(ready));
                }
                Err(error) if self.on_error == OnError::Skip && error.kind() == Kind::Input => {
                    self.num_skipped += 1;
                    self.in_a_row += 1;
                    if self.in_a_row > self.mixture.num_examples() {
                        return Err(error.hint("no example of the data is good; this is the last of them"));
                    }
                    skipped(&error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The number of the next draw: what a loader that takes over from here starts with.
    pub fn position(&self) -> u64 {
        self.draws.start
    }

    /// How many examples were left out.
    pub fn num_skipped(&self) -> u64 {
        self.num_skipped
    }
}

/// A panic is an error too: a thread that vanished would be waited for without end.
fn prepare(preparation: &Preparation, mixture: &Mixture, number: u64) -> Result<Ready> {
    catch_unwind(AssertUnwindSafe(|| preparation.prepare(mixture, number))).unwrap_or_else(|_| {
        let draw = mixture.draw(number);
        let place = mixture.parts()[draw.part].dataset.place(draw.index);
        Err(Error::input("this example breaks its reader").at(place))
    })
}

#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    /// A draw is ready.
    is_ready: Condvar,
    /// There is room for another, or nothing more to do.
    is_free: Condvar,
}

#[derive(Debug)]
struct Work {
    /// Draws that nobody has begun.
    draws: Range<u64>,
    /// Draws below this may be begun.
    limit: u64,
    ready: BTreeMap<u64, Result<Ready>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing panics while it is held.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    fn start(
        mixture: &Arc<Mixture>,
        preparation: &Arc<Preparation>,
        draws: Range<u64>,
        threads: usize,
        ahead: u64,
    ) -> Result<Threads> {
        let limit = draws.start.saturating_add(ahead);
        let work = Work { draws, limit, ready: BTreeMap::new() };
        let shared =
            Arc::new(Shared { work: Mutex::new(work), is_ready: Condvar::new(), is_free: Condvar::new() });
        let mut started = Threads { shared, running: Vec::new() };
        for number in 0..threads {
            let (shared, mixture, preparation) =
                (started.shared.clone(), mixture.clone(), preparation.clone());
            let run = move || {
                // Resizing is shared among threads; here it stays on this one, and off those that compute.
                let alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                while let Some(number) = shared.begin() {
                    let ready = match &alone {
                        Ok(pool) => pool.install(|| prepare(&preparation, &mixture, number)),
                        Err(_) => prepare(&preparation, &mixture, number),
                    };
                    shared.lock().ready.insert(number, ready);
                    shared.is_ready.notify_all();
                }
            };
            let thread = std::thread::Builder::new().name(format!("loader {number}")).spawn(run);
            started.running.push(thread.map_err(|error| {
                Error::new(Kind::Resource, format!("loader thread {number} cannot be started: {error}"))
                    .hint("ask for fewer loader threads")
                    .because(error)
            })?);
        }
        Ok(started)
    }

    /// Waits for a draw; all before it have been taken.
    fn take(&self, number: u64) -> Result<Ready> {
        let mut work = self.shared.lock();
        loop {
            if let Some(ready) = work.ready.remove(&number) {
                work.limit += 1;
                self.shared.is_free.notify_one();
                return ready;
            }
            work = self.shared.is_ready.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// The next draw to be made ready, as soon as there is room for it; none when there is no more.
    fn begin(&self) -> Option<u64> {
        let mut work = self.lock();
        loop {
            if work.draws.is_empty() {
                return None;
            }
            if work.draws.start < work.limit {
                return work.draws.next();
            }
            work = self.is_free.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().draws = 0..0;
        self.shared.is_free.notify_all();
        for thread in self.running.drain(..) {
            // What a thread panicked about is nobody's any more.
            let _ = thread.join();
        }
    }
}
