//! Scores: answers beside what should have been answered, by the metrics of the paper's benchmarks.

mod bootstrap;
pub mod cider;
pub mod coco_ap;
mod exact;
mod line;
mod miou;
pub mod ptb;
mod score;

pub use line::Line;
pub use score::{Figure, Metric, Score, score};
