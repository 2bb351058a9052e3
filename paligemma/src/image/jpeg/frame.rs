//! The shape of a JPEG as its headers give it, and the errors of this decoder.

use crate::Error;

/// Side of a block.
pub(super) const B: usize = 8;

pub(super) type Block = [i16; 64];

/// A picture component: Y, Cb, Cr, K …
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Number of its quantisation table.
    pub(super) table: usize,
    /// The table as it stood when the component's first scan began, in block order.
    pub(super) quantisation: Option<[i32; 64]>,
    /// Size in samples, padding excluded.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Size in blocks, padded to whole minimum coded units.
    pub(super) across: usize,
    pub(super) down: usize,
}

pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// The largest sampling factors.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Minimum coded units of an interleaved scan.
    pub(super) units_across: usize,
    pub(super) units_down: usize,
}

/// What one scan codes.
pub(super) struct Scan {
    /// (component, number of its DC table, number of its AC table).
    pub(super) parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub(super) band: (usize, usize),
    /// Successive approximation: the bit before (0 in a first scan), and this one.
    pub(super) high: u32,
    pub(super) low: u32,
}

pub(super) fn broken(what: impl std::fmt::Display) -> Error {
    Error::input(format!("this JPEG is broken: {what}"))
}

pub(super) fn truncated() -> Error {
    broken("it ends before its picture does")
}

pub(super) fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::input(format!("this JPEG is of a kind that is not supported: {what}"))
        .expected("baseline or progressive Huffman-coded JPEG of 8 bits and 1, 3 or 4 components")
        .hint("convert it, for example to PNG")
}
