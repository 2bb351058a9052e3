//! The playground's parts for training and for scoring.

/// A part of the playground. No example is in two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// To learn from.
    Train = 0,
    /// To choose by.
    Val = 1,
    /// To score on.
    Test = 2,
    /// To score on: each thing in the two colours that it has in no other split.
    Compositional = 3,
}

impl Split {
    /// All four.
    pub const ALL: [Split; 4] = [Split::Train, Split::Val, Split::Test, Split::Compositional];

    /// As a file's name has it.
    pub fn name(self) -> &'static str {
        ["train", "val", "test", "compositional"][self as usize]
    }
}
