//! The playground: pictures that are drawn, and examples of every task of the paper about them.
//!
//! From the dice of one example comes a task, then a scene (`scene`) that it can be asked about (`ask`), then words in one
//! of four languages (`say`) and pictures (`paint`). Example `i` of a split and a seed is the same whoever asks for it
//! (`stream`), and no two splits share one: each has dice of its own.

mod ask;
mod baselines;
mod blemish;
mod colours;
mod dice;
mod file;
mod letters;
mod mask_crops;
mod outline;
mod paint;
mod say;
mod scene;
mod split;
mod stream;
mod things;

pub use ask::{MIXTURE, Task, Tasks};
pub use baselines::{Baseline, baselines};
pub use file::Description;
pub(super) use file::Drawn;
pub use mask_crops::mask_crop;
pub use say::Lang;
pub use split::Split;
pub use stream::{Drawing, Played, Playground};
