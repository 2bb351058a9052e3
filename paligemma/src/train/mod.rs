//! Training: recipes, what learns and how fast, the loop, its state and its record.

mod optimiser;
mod recipe;
mod schedule;

pub use optimiser::{Kept, Numbers, Optimiser, Rate, State, sum_of_squares};
pub use recipe::{KEYS, Recipe};
pub use schedule::{Decay, Schedule};
