//! Training: recipes, what learns and how fast, the loop, its state and its record.

mod batches;
mod built_in;
mod filters;
mod learner;
mod metrics;
mod muon;
mod optimiser;
mod parameters;
mod plan;
mod plot;
mod recipe;
mod run;
mod schedule;
mod state;
mod steps;
mod tensorboard;
mod two_towers;
mod vqvae;
mod waves;

pub use built_in::RECIPES;
pub use learner::{Pace, Wanted};
pub use metrics::{EvalLine, METRICS, StepLine, curves};
pub use optimiser::{Kept, Numbers, Optimiser, Rate, State};
pub use parameters::Selection;
pub use plan::{ExampleSize, Plan};
pub use plot::panels;
pub use recipe::{KEYS, Recipe};
pub use run::Job;
pub use schedule::{Decay, Schedule};
pub use steps::{Event, Outcome, RECIPE};
pub use two_towers::{Pair, PairJob};
pub use vqvae::MaskJob;
