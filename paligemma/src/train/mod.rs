//! Training: recipes, what learns and how fast, the loop, its state and its record.

mod built_in;
mod metrics;
mod optimiser;
mod parameters;
mod plan;
mod plot;
mod recipe;
mod run;
mod schedule;
mod state;
mod tensorboard;
mod vqvae;

pub use built_in::RECIPES;
pub use metrics::{EvalLine, METRICS, StepLine, curves};
pub use optimiser::{Kept, Numbers, Optimiser, Rate, State};
pub use parameters::{Pace, Selection, Wanted};
pub use plan::{ExampleSize, Plan};
pub use plot::panels;
pub use recipe::{KEYS, Recipe};
pub use run::{Event, Job, Outcome, RECIPE};
pub use schedule::{Decay, Schedule};
pub use vqvae::MaskJob;
