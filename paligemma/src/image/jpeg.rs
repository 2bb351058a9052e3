//! JPEG to RGB, bit for bit what libjpeg-turbo and Pillow make of it.
//!
//! The pure-Rust decoders differ from libjpeg by up to tens of levels in small or subsampled
//! pictures, because they interpolate colour differently. This one does libjpeg's integer arithmetic
//! (accurate integer DCT, "fancy" upsampling, 16-bit colour tables), so that a JPEG gives
//! the same pixels, and the same answer, as in Python.
//!
//! Baseline, extended and progressive Huffman, 8 bits, 1, 3 or 4 components, any sampling factors that
//! divide each other, restart intervals. Not: arithmetic coding, lossless, 12 bits; each is an error
//! that says so. Broken data is an error too: half a picture is not answered about.
//!
//! The picture is made in bands of one row of blocks, so that memory beyond the output is small,
//! except for progressive files, whose coefficients must be kept (2 bytes a sample).

use super::decode::{Picture, Upright, orientation, too_much_memory};
use crate::{Error, Result};

/// Side of a block.
const B: usize = 8;

/// The scans that a progressive file may have. Encoders write about ten; each costs a pass over the
/// whole picture for as little as a few bytes, so a file with thousands is an attack.
const MAX_SCANS: usize = 100;

/// What the headers up to the frame say.
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Reads the segments up to the frame header; decodes nothing.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    let mut decoder = Decoder::new(bytes);
    loop {
        let marker = decoder.next_marker()?;
        if marker == SOS || marker == EOI {
            return Err(broken("it has no frame header"));
        }
        decoder.segment(marker)?;
        if let Some(frame) = &decoder.frame {
            return Ok(Header { width: frame.width, height: frame.height });
        }
    }
}

/// Decodes the whole file, holding at most `memory` bytes, and turns it upright as its EXIF or XMP segment says.
/// The caller has checked the size by [`header`].
pub(super) fn decode(bytes: &[u8], memory: u64) -> Result<Picture> {
    Decoder::new(bytes).run(memory)
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::input(format!("this JPEG is broken: {what}"))
}

fn truncated() -> Error {
    broken("it ends before its picture does")
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::input(format!("this JPEG is of a kind that is not supported: {what}"))
        .expected("baseline or progressive Huffman-coded JPEG of 8 bits and 1, 3 or 4 components")
        .hint("convert it, for example to PNG")
}

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

/// Where the coefficient that is k-th in the file lies in the block, row by row.
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

type Block = [i16; 64];

/// A picture component: Y, Cb, Cr, K …
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    /// Number of its quantisation table.
    table: usize,
    /// The table as it stood when the component's first scan began, in block order.
    quantisation: Option<[i32; 64]>,
    /// Size in samples, padding excluded.
    width: usize,
    height: usize,
    /// Size in blocks, padded to whole minimum coded units.
    across: usize,
    down: usize,
}

struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    /// The largest sampling factors.
    h: usize,
    v: usize,
    /// Minimum coded units of an interleaved scan.
    units_across: usize,
    units_down: usize,
}

/// What one scan codes.
struct Scan {
    /// (component, number of its DC table, number of its AC table).
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    band: (usize, usize),
    /// Successive approximation: the bit before (0 in a first scan), and this one.
    high: u32,
    low: u32,
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    quantisation: [Option<[i32; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart_interval: usize,
    jfif: bool,
    /// The `transform` byte of an Adobe segment.
    adobe: Option<u8>,
    exif: Vec<u8>,
    xmp: Vec<u8>,
}

impl<'a> Decoder<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Decoder {
            bytes,
            at: 0,
            frame: None,
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            jfif: false,
            adobe: None,
            exif: Vec::new(),
            xmp: Vec::new(),
        }
    }

    fn run(&mut self, memory: u64) -> Result<Picture> {
        // The coefficients of each component, once a scan has come that is not the only one.
        let mut kept: Vec<Vec<Block>> = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..=MAX_SCANS {
            loop {
                match self.next_marker()? {
                    SOS => break,
                    EOI if kept.is_empty() => return Err(broken("it has no picture data")),
                    EOI => return self.paint_kept(&kept, &seen),
                    marker => self.segment(marker)?,
                }
            }
            let scan = self.scan_header()?;
            let frame = self.frame.as_mut().ok_or_else(|| broken("its picture data precede its frame"))?;
            for &(part, ..) in &scan.parts {
                let component = &mut frame.components[part];
                if component.quantisation.is_none() {
                    component.quantisation = self.quantisation[component.table];
                }
                if component.quantisation.is_none() {
                    return Err(broken("a quantisation table is missing"));
                }
            }
            let frame = self.frame.as_ref().ok_or_else(truncated)?;
            if !frame.progressive && kept.is_empty() && scan.parts.len() == frame.components.len() {
                // The usual file: one scan holds everything, and bands are painted as they come.
                return self.paint_as_decoded(frame, &scan);
            }
            if kept.is_empty() {
                let blocks: u64 = frame.components.iter().map(|c| (c.across * c.down) as u64).sum();
                let needed = blocks * size_of::<Block>() as u64 + (frame.width * frame.height * 3) as u64;
                if needed > memory {
                    return Err(too_much_memory(frame.width, frame.height, needed));
                }
                kept = frame.components.iter().map(|c| vec![[0; 64]; c.across * c.down]).collect();
                seen = vec![false; frame.components.len()];
            }
            if scan.band.0 == 0 {
                scan.parts.iter().for_each(|part| seen[part.0] = true);
            }
            let mut entropy = Entropy::new(self, &scan)?;
            scan_into(&mut entropy, frame, &scan, self.restart_interval, &mut kept)?;
            let end = entropy.bits.at;
            self.at = end;
        }
        Err(Error::input(format!("this JPEG has more than {MAX_SCANS} scans")))
    }

    /// Decodes band by band from the entropy-coded data.
    fn paint_as_decoded(&self, frame: &Frame, scan: &Scan) -> Result<Picture> {
        let mut entropy = Entropy::new(self, scan)?;
        let single = frame.components.len() == 1;
        let mut unit = 0;
        self.paint(frame, |row, band| {
            // The only component of a grey picture is coded block by block, without padding.
            let (across, rows) = if single {
                let component = &frame.components[0];
                let rows = component.height.div_ceil(B).saturating_sub(row * component.v).min(component.v);
                (component.width.div_ceil(B), rows)
            } else {
                (frame.units_across, 1)
            };
            for unit_row in 0..rows {
                for column in 0..across {
                    entropy.restart_if_due(unit, self.restart_interval)?;
                    unit += 1;
                    for (part, &(index, dc, ac)) in scan.parts.iter().enumerate() {
                        let component = &frame.components[index];
                        let Some(quantisation) = &component.quantisation else { return Err(truncated()) };
                        let (h, v) = if single { (1, 1) } else { (component.h, component.v) };
                        for block in 0..h * v {
                            let (x, y) = (column * h + block % h, unit_row + block / h);
                            let mut coefficients = [0; 64];
                            entropy.baseline(part, dc, ac, &mut coefficients)?;
                            let plane = &mut band.planes[index];
                            let stride = component.across * B;
                            inverse_dct(
                                &coefficients,
                                quantisation,
                                &mut plane[y * B * stride + x * B..],
                                stride,
                            );
                        }
                    }
                    entropy.bits.check()?;
                }
            }
            Ok(())
        })
    }

    /// Paints from coefficients that several scans have filled.
    fn paint_kept(&self, kept: &[Vec<Block>], seen: &[bool]) -> Result<Picture> {
        let frame = self.frame.as_ref().ok_or_else(truncated)?;
        if seen.contains(&false) {
            return Err(truncated());
        }
        self.paint(frame, |row, band| {
            for ((component, blocks), plane) in frame.components.iter().zip(kept).zip(&mut band.planes) {
                let Some(quantisation) = &component.quantisation else { return Err(truncated()) };
                let stride = component.across * B;
                let first = row * component.v * component.across;
                for (i, block) in blocks[first..first + component.v * component.across].iter().enumerate() {
                    let (x, y) = (i % component.across, i / component.across);
                    inverse_dct(block, quantisation, &mut plane[y * B * stride + x * B..], stride);
                }
            }
            Ok(())
        })
    }

    /// Upsamples and colours the bands that `fill` makes, each when its lower neighbour is there.
    fn paint(&self, frame: &Frame, mut fill: impl FnMut(usize, &mut Band) -> Result<()>) -> Result<Picture> {
        let colours = Colours::of(frame, self.jfif, self.adobe)?;
        let upright = Upright::new(frame.width, frame.height, orientation(&self.exif, &self.xmp));
        let stride = frame.width * 3;
        let mut rgb = vec![0; stride * frame.height];
        let mut painted = vec![0; stride * frame.v * B];
        // Above, here, below.
        let mut bands = [Band::of(frame), Band::of(frame), Band::of(frame)];
        let mut lines: Vec<Vec<u8>> = frame.components.iter().map(|_| Vec::new()).collect();
        let mut scratch = Vec::new();
        let height = frame.v * B;
        fill(0, &mut bands[2])?;
        for row in 0..frame.units_down {
            bands.rotate_left(1);
            if row + 1 < frame.units_down {
                fill(row + 1, &mut bands[2])?;
            }
            for y in row * height..((row + 1) * height).min(frame.height) {
                for (index, (component, line)) in frame.components.iter().zip(&mut lines).enumerate() {
                    let sample = |at: usize| {
                        let at = at.min(component.height - 1);
                        let (band, inside) = (at / (component.v * B), at % (component.v * B));
                        let stride = component.across * B;
                        // `band` is `row`, or the one above or below it.
                        &bands[band + 1 - row].planes[index][inside * stride..][..component.width]
                    };
                    upsample(frame, component, y, sample, &mut scratch, line);
                }
                colours.line(&lines, &mut painted[(y - row * height) * stride..][..stride]);
            }
            let rows = height.min(frame.height - row * height);
            upright.place(&painted[..rows * stride], row * height, &mut rgb);
        }
        Ok(Picture { width: upright.width, height: upright.height, rgb })
    }

    // --- segments ---

    fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).ok_or_else(truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next marker; what lies before it is skipped, as libjpeg does.
    fn next_marker(&mut self) -> Result<u8> {
        loop {
            while self.byte()? != 0xff {}
            let mut marker = self.byte()?;
            while marker == 0xff {
                marker = self.byte()?;
            }
            // A stuffed zero, a restart marker left over, the start of the image: no segment follows.
            if !matches!(marker, 0 | 1 | 0xd0..=0xd7 | SOI) {
                return Ok(marker);
            }
        }
    }

    /// The contents of the segment that starts here.
    fn contents(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
        let end = self.at + length.checked_sub(2).ok_or_else(|| broken("a segment's length is below 2"))?;
        let contents = self.bytes.get(self.at..end).ok_or_else(truncated)?;
        self.at = end;
        Ok(contents)
    }

    /// Reads any segment but a scan.
    fn segment(&mut self, marker: u8) -> Result<()> {
        let contents = self.contents()?;
        match marker {
            0xc0..=0xc2 => self.frame_header(contents, marker == 0xc2)?,
            0xc4 => self.huffman_tables(contents)?,
            0xc3 | 0xc7 | 0xcb | 0xcf => return Err(unsupported("lossless")),
            0xc5 | 0xc6 | 0xcd | 0xce => return Err(unsupported("hierarchical")),
            0xc9 | 0xca | 0xcc => return Err(unsupported("arithmetic coding")),
            0xdb => self.quantisation_tables(contents)?,
            0xdd => match contents {
                &[high, low] => self.restart_interval = usize::from(u16::from_be_bytes([high, low])),
                _ => return Err(broken("its restart interval has a wrong length")),
            },
            0xe0 => self.jfif |= contents.starts_with(b"JFIF\0") && contents.len() >= 14,
            0xe1 => {
                if let Some(exif) = contents.strip_prefix(b"Exif\0\0") {
                    self.exif.extend_from_slice(exif);
                } else if let Some(xmp) = contents.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                    self.xmp = xmp.to_vec();
                }
            }
            0xee if contents.starts_with(b"Adobe") && contents.len() >= 12 => self.adobe = Some(contents[11]),
            _ => {}
        }
        Ok(())
    }

    fn frame_header(&mut self, contents: &[u8], progressive: bool) -> Result<()> {
        if self.frame.is_some() {
            return Err(broken("it has two frames"));
        }
        let [bits, h1, h0, w1, w0, count, specifications @ ..] = contents else {
            return Err(broken("its frame header is too short"));
        };
        if *bits != 8 {
            return Err(unsupported(format!("{bits} bits a sample")));
        }
        let height = usize::from(u16::from_be_bytes([*h1, *h0]));
        let width = usize::from(u16::from_be_bytes([*w1, *w0]));
        if width == 0 || height == 0 {
            return Err(broken(format!("its size is {width}×{height}")));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(format!("{count} components")));
        }
        if specifications.len() != usize::from(*count) * 3 {
            return Err(broken("its frame header has a wrong length"));
        }
        let factors = |s: &[u8]| (usize::from(s[1] >> 4), usize::from(s[1] & 15));
        let (mut max_h, mut max_v) = (1, 1);
        for specification in specifications.chunks_exact(3) {
            let (h, v) = factors(specification);
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || specification[2] > 3 {
                return Err(broken("a component's sampling factors or table are out of range"));
            }
            max_h = max_h.max(h);
            max_v = max_v.max(v);
        }
        let units_across = width.div_ceil(max_h * B);
        let units_down = height.div_ceil(max_v * B);
        let mut components: Vec<Component> = Vec::new();
        for specification in specifications.chunks_exact(3) {
            let (h, v) = factors(specification);
            if max_h % h != 0 || max_v % v != 0 {
                return Err(unsupported("sampling factors that do not divide each other"));
            }
            if components.iter().any(|c| c.id == specification[0]) {
                return Err(broken("two components have the same number"));
            }
            components.push(Component {
                id: specification[0],
                h,
                v,
                table: usize::from(specification[2]),
                quantisation: None,
                width: (width * h).div_ceil(max_h),
                height: (height * v).div_ceil(max_v),
                across: units_across * h,
                down: units_down * v,
            });
        }
        self.frame = Some(Frame {
            width,
            height,
            progressive,
            components,
            h: max_h,
            v: max_v,
            units_across,
            units_down,
        });
        Ok(())
    }

    fn quantisation_tables(&mut self, mut contents: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = contents {
            let wide = head >> 4 != 0;
            let size = if wide { 128 } else { 64 };
            let number = usize::from(head & 15);
            if number > 3 || rest.len() < size {
                return Err(broken("a quantisation table is out of range or too short"));
            }
            let mut table = [0; 64];
            for (k, &at) in ZIGZAG.iter().enumerate() {
                table[at] = if wide {
                    i32::from(u16::from_be_bytes([rest[2 * k], rest[2 * k + 1]]))
                } else {
                    i32::from(rest[k])
                };
            }
            self.quantisation[number] = Some(table);
            contents = &rest[size..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut contents: &[u8]) -> Result<()> {
        while let [head, rest @ ..] = contents {
            let (kind, number) = (head >> 4, usize::from(head & 15));
            if kind > 1 || number > 3 || rest.len() < 16 {
                return Err(broken("a Huffman table is out of range or too short"));
            }
            let (counts, rest) = rest.split_at(16);
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            if total > 256 || rest.len() < total {
                return Err(broken("a Huffman table is too short or too long"));
            }
            let (symbols, rest) = rest.split_at(total);
            if kind == 0 && symbols.iter().any(|&symbol| symbol > 15) {
                return Err(broken("a DC Huffman table holds a size above 15"));
            }
            let table = Some(Huffman::new(counts, symbols)?);
            if kind == 0 {
                self.dc[number] = table
            } else {
                self.ac[number] = table
            }
            contents = rest;
        }
        Ok(())
    }

    fn scan_header(&mut self) -> Result<Scan> {
        let contents = self.contents()?;
        let frame = self.frame.as_ref().ok_or_else(|| broken("its picture data precede its frame"))?;
        let count = usize::from(*contents.first().ok_or_else(truncated)?);
        if count == 0 || count > frame.components.len() || contents.len() != count * 2 + 4 {
            return Err(broken("a scan header has a wrong length"));
        }
        let mut parts: Vec<(usize, usize, usize)> = Vec::new();
        for part in contents[1..1 + count * 2].chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == part[0]);
            let index = index.ok_or_else(|| broken("a scan names a component that the frame lacks"))?;
            let (dc, ac) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            if dc > 3 || ac > 3 || parts.iter().any(|p| p.0 == index) {
                return Err(broken("a scan header is out of range"));
            }
            parts.push((index, dc, ac));
        }
        let [start, end, approximation] =
            [contents[1 + count * 2], contents[2 + count * 2], contents[3 + count * 2]];
        let (start, end) = (usize::from(start), usize::from(end));
        let (high, low) = (u32::from(approximation >> 4), u32::from(approximation & 15));
        if !frame.progressive {
            return Ok(Scan { parts, band: (0, 63), high: 0, low: 0 });
        }
        let band_is_sound = if start == 0 { end == 0 } else { start <= end && end < 64 && count == 1 };
        if !band_is_sound || low > 13 || (high != 0 && high != low + 1) {
            return Err(broken("a progressive scan header is out of range"));
        }
        Ok(Scan { parts, band: (start, end), high, low })
    }
}

/// Decodes one scan of several into the blocks kept for each component.
fn scan_into(
    entropy: &mut Entropy,
    frame: &Frame,
    scan: &Scan,
    restart_interval: usize,
    kept: &mut [Vec<Block>],
) -> Result<()> {
    let mut unit = 0;
    if let &[(index, dc, ac)] = &scan.parts[..] {
        // A scan of one component goes block by block and leaves the padding out.
        let component = &frame.components[index];
        let (across, down) = (component.width.div_ceil(B), component.height.div_ceil(B));
        for y in 0..down {
            for x in 0..across {
                entropy.restart_if_due(unit, restart_interval)?;
                unit += 1;
                entropy.block(frame, scan, 0, dc, ac, &mut kept[index][y * component.across + x])?;
            }
            entropy.bits.check()?;
        }
        return Ok(());
    }
    for row in 0..frame.units_down {
        for column in 0..frame.units_across {
            entropy.restart_if_due(unit, restart_interval)?;
            unit += 1;
            for (part, &(index, dc, ac)) in scan.parts.iter().enumerate() {
                let component = &frame.components[index];
                for block in 0..component.h * component.v {
                    let x = column * component.h + block % component.h;
                    let y = row * component.v + block / component.h;
                    entropy.block(frame, scan, part, dc, ac, &mut kept[index][y * component.across + x])?;
                }
            }
        }
        entropy.bits.check()?;
    }
    Ok(())
}

// --- entropy-coded data ------------------------------------------------------------------------

/// Bits looked up at once.
const LOOKUP: u32 = 9;

/// A Huffman code.
struct Huffman {
    /// For each prefix of `LOOKUP` bits: symbol and length, length 0 where the code is longer.
    short: Vec<(u8, u8)>,
    /// For each length: the first code beyond that length, left-aligned in 16 bits, and the
    /// difference between a code and its symbol's place.
    limit: [u32; 17],
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8], symbols: &[u8]) -> Result<Huffman> {
        let mut short = vec![(0, 0); 1 << LOOKUP];
        let (mut limit, mut offset) = ([0; 17], [0; 17]);
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = usize::from(counts[length as usize - 1]);
            offset[length as usize] = place as i32 - code as i32;
            for &symbol in &symbols[place..place + count] {
                if code >= 1 << length {
                    return Err(broken("a Huffman table has more codes than bits"));
                }
                if length <= LOOKUP {
                    let first = (code << (LOOKUP - length)) as usize;
                    short[first..first + (1 << (LOOKUP - length))].fill((symbol, length as u8));
                }
                code += 1;
            }
            place += count;
            limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(Huffman { short, limit, offset, symbols: symbols.to_vec() })
    }
}

/// The bits of entropy-coded data, up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, left-aligned.
    buffer: u64,
    count: u32,
    /// Of `count`, how many are zeros that stand for data that is not there.
    missing: u32,
}

impl Bits<'_> {
    fn refill(&mut self) {
        while self.count <= 48 {
            let byte = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                // A marker, or the end of the file.
                (Some(0xff) | None, _) => {
                    self.missing += 8;
                    0
                }
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// An error once bits have been used that the file does not have.
    fn check(&self) -> Result<()> {
        if self.missing > self.count { Err(truncated()) } else { Ok(()) }
    }

    /// Drops the bits in hand and goes to the marker that ends them.
    fn finish(&mut self) -> Result<()> {
        self.check()?;
        (self.buffer, self.count, self.missing) = (0, 0, 0);
        Ok(())
    }

    fn peek(&self, count: u32) -> u32 {
        ((self.buffer >> 32) as u32) >> (32 - count)
    }

    fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.count -= count;
        // `missing` may now exceed `count`; `check` sees it.
    }

    /// The next `count` bits, 1 to 16.
    fn take(&mut self, count: u32) -> i32 {
        if self.count < count {
            self.refill();
        }
        let value = self.peek(count);
        self.skip(count);
        value as i32
    }

    /// The next `size` bits as a signed number in JPEG's way: below half the range is negative.
    fn signed(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.take(size);
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    fn symbol(&mut self, table: &Huffman) -> Result<u8> {
        if self.count < 16 {
            self.refill();
        }
        let (symbol, length) = table.short[self.peek(LOOKUP) as usize];
        if length > 0 {
            self.skip(u32::from(length));
            return Ok(symbol);
        }
        let code = self.peek(16);
        for length in LOOKUP + 1..=16 {
            if code < table.limit[length as usize] {
                let place = (code >> (16 - length)) as i32 + table.offset[length as usize];
                self.skip(length);
                return table
                    .symbols
                    .get(place as usize)
                    .copied()
                    .ok_or_else(|| broken("a bad Huffman code"));
            }
        }
        Err(if self.missing > 0 { truncated() } else { broken("a bad Huffman code") })
    }
}

/// The state of a scan.
struct Entropy<'a> {
    bits: Bits<'a>,
    dc: &'a [Option<Huffman>; 4],
    ac: &'a [Option<Huffman>; 4],
    /// Last DC value of each part of the scan.
    previous: [i32; 4],
    /// Blocks still to come that a run has declared at their end.
    end_of_band: u32,
}

impl<'a> Entropy<'a> {
    /// The scan that starts where the decoder stands; the tables that it needs are there.
    fn new<'d: 'a>(decoder: &'d Decoder<'d>, scan: &Scan) -> Result<Entropy<'a>> {
        for &(_, dc, ac) in &scan.parts {
            let needs_dc = scan.band.0 == 0 && scan.high == 0;
            let needs_ac = scan.band.1 > 0;
            if (needs_dc && decoder.dc[dc].is_none()) || (needs_ac && decoder.ac[ac].is_none()) {
                return Err(broken("a Huffman table is missing"));
            }
        }
        Ok(Entropy {
            bits: Bits { bytes: decoder.bytes, at: decoder.at, buffer: 0, count: 0, missing: 0 },
            dc: &decoder.dc,
            ac: &decoder.ac,
            previous: [0; 4],
            end_of_band: 0,
        })
    }

    /// Reads the restart marker that stands before the `unit`-th unit, if one does.
    fn restart_if_due(&mut self, unit: usize, interval: usize) -> Result<()> {
        if interval == 0 || unit == 0 || !unit.is_multiple_of(interval) {
            return Ok(());
        }
        self.bits.finish()?;
        let rest = self.bits.bytes.get(self.bits.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xff).count();
        match rest.get(fill) {
            Some(0xd0..=0xd7) if fill > 0 => self.bits.at += fill + 1,
            Some(_) => return Err(broken("a restart marker is missing")),
            None => return Err(truncated()),
        }
        self.previous = [0; 4];
        self.end_of_band = 0;
        Ok(())
    }

    fn table(tables: &'a [Option<Huffman>; 4], number: usize) -> Result<&'a Huffman> {
        tables[number].as_ref().ok_or_else(|| broken("a Huffman table is missing"))
    }

    /// The difference to the last DC value, added to it.
    fn next_dc(&mut self, part: usize, table: usize) -> Result<i32> {
        let size = self.bits.symbol(Self::table(self.dc, table)?)?;
        let difference = self.bits.signed(u32::from(size));
        self.previous[part] = self.previous[part].wrapping_add(difference);
        Ok(self.previous[part])
    }

    /// A block of a sequential scan.
    fn baseline(&mut self, part: usize, dc: usize, ac: usize, block: &mut Block) -> Result<()> {
        block[0] = self.next_dc(part, dc)? as i16;
        let table = Self::table(self.ac, ac)?;
        let mut k = 1;
        while k < 64 {
            let symbol = self.bits.symbol(table)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if run != 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += run;
            let value = self.bits.signed(size);
            match ZIGZAG.get(k) {
                Some(&at) => block[at] = value as i16,
                None => return Err(broken("a block has more than 64 coefficients")),
            }
            k += 1;
        }
        Ok(())
    }

    /// A block of any scan that does not hold everything at once.
    fn block(
        &mut self,
        frame: &Frame,
        scan: &Scan,
        part: usize,
        dc: usize,
        ac: usize,
        block: &mut Block,
    ) -> Result<()> {
        match (frame.progressive, scan.band.0, scan.high) {
            (false, ..) => self.baseline(part, dc, ac, block),
            (true, 0, 0) => {
                block[0] = (self.next_dc(part, dc)? << scan.low) as i16;
                Ok(())
            }
            (true, 0, _) => {
                if self.bits.take(1) == 1 {
                    block[0] |= 1 << scan.low;
                }
                Ok(())
            }
            (true, _, 0) => self.first_ac(scan, ac, block),
            (true, ..) => self.refine_ac(scan, ac, block),
        }
    }

    /// The number of blocks that an end-of-band symbol covers.
    fn band_run(&mut self, size: u32) -> u32 {
        (1 << size) + if size > 0 { self.bits.take(size) as u32 } else { 0 }
    }

    fn first_ac(&mut self, scan: &Scan, ac: usize, block: &mut Block) -> Result<()> {
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return Ok(());
        }
        let table = Self::table(self.ac, ac)?;
        let mut k = scan.band.0;
        while k <= scan.band.1 {
            let symbol = self.bits.symbol(table)?;
            let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if run != 15 {
                    self.end_of_band = self.band_run(run) - 1;
                    break;
                }
                k += 16;
                continue;
            }
            k += run as usize;
            let value = self.bits.signed(size);
            match ZIGZAG.get(k) {
                Some(&at) => block[at] = (value << scan.low) as i16,
                None => return Err(broken("a block has more than 64 coefficients")),
            }
            k += 1;
        }
        Ok(())
    }

    fn refine_ac(&mut self, scan: &Scan, ac: usize, block: &mut Block) -> Result<()> {
        let one = 1i16 << scan.low;
        let mut k = scan.band.0;
        if self.end_of_band == 0 {
            let table = Self::table(self.ac, ac)?;
            while k <= scan.band.1 {
                let symbol = self.bits.symbol(table)?;
                let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
                let mut fresh = 0;
                match size {
                    0 if run < 15 => {
                        self.end_of_band = self.band_run(run);
                        break;
                    }
                    0 => {}
                    1 => fresh = if self.bits.take(1) == 1 { one } else { -one },
                    _ => return Err(broken("a refinement is larger than one bit")),
                }
                // Coefficients already known get a bit each; `run` counts the zeros passed over.
                while k <= scan.band.1 {
                    let coefficient = &mut block[ZIGZAG[k]];
                    if *coefficient != 0 {
                        refine(&mut self.bits, coefficient, one);
                    } else if run == 0 {
                        *coefficient = fresh;
                        k += 1;
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
            }
        }
        if self.end_of_band > 0 {
            for &at in &ZIGZAG[k..=scan.band.1] {
                if block[at] != 0 {
                    refine(&mut self.bits, &mut block[at], one);
                }
            }
            self.end_of_band -= 1;
        }
        Ok(())
    }
}

/// Reads the next bit of a coefficient that is not zero.
fn refine(bits: &mut Bits, coefficient: &mut i16, one: i16) {
    if bits.take(1) == 1 && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient > 0 { one } else { -one });
    }
}

// --- from coefficients to samples --------------------------------------------------------------

/// libjpeg's accurate integer inverse DCT (Loeffler, Ligtenberg and Moschytz): 13 fractional bits in
/// the constants, 2 kept between the passes. Writes 8 × 8 samples.
fn inverse_dct(coefficients: &Block, quantisation: &[i32; 64], out: &mut [u8], stride: usize) {
    if coefficients[1..] == [0; 63] {
        // A flat block, of which the passes would make just this.
        let level = (i32::from(coefficients[0]).wrapping_mul(quantisation[0]).wrapping_add(4) >> 3) + 128;
        out.chunks_mut(stride).take(B).for_each(|row| row[..B].fill(level.clamp(0, 255) as u8));
        return;
    }
    let mut work = [0i32; 64];
    for x in 0..B {
        let column: [i32; B] = std::array::from_fn(|y| {
            let at = y * B + x;
            i32::from(coefficients[at]).wrapping_mul(quantisation[at])
        });
        for (y, value) in inverse_dct_line(column, 13 - 2).into_iter().enumerate() {
            work[y * B + x] = value;
        }
    }
    for (y, row) in work.chunks_exact(B).enumerate() {
        let row: [i32; B] = std::array::from_fn(|x| row[x]);
        let samples = inverse_dct_line(row, 13 + 2 + 3);
        for (out, sample) in out[y * stride..][..B].iter_mut().zip(samples) {
            *out = sample.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
}

/// One row or column; the result is divided by 2 to the power of `shift`, rounded. Hostile
/// coefficients may overflow: then the picture is nonsense, as it is in libjpeg.
#[inline(always)]
fn inverse_dct_line(input: [i32; B], shift: u32) -> [i32; B] {
    let add = i32::wrapping_add;
    let sub = i32::wrapping_sub;
    let mul = i32::wrapping_mul;
    let [s0, s1, s2, s3, s4, s5, s6, s7] = input;

    // Even part.
    let z = mul(add(s2, s6), 4433);
    let e2 = sub(z, mul(s6, 15137));
    let e3 = add(z, mul(s2, 6270));
    let e0 = add(s0, s4) << 13;
    let e1 = sub(s0, s4) << 13;
    let even = [add(e0, e3), add(e1, e2), sub(e1, e2), sub(e0, e3)];

    // Odd part.
    let z1 = mul(add(s7, s1), -7373);
    let z2 = mul(add(s5, s3), -20995);
    let (z3, z4) = (add(s7, s3), add(s5, s1));
    let z5 = mul(add(z3, z4), 9633);
    let z3 = add(mul(z3, -16069), z5);
    let z4 = add(mul(z4, -3196), z5);
    let odd = [
        add(mul(s1, 12299), add(z1, z4)),
        add(mul(s3, 25172), add(z2, z3)),
        add(mul(s5, 16819), add(z2, z4)),
        add(mul(s7, 2446), add(z1, z3)),
    ];

    let half = 1 << (shift - 1);
    std::array::from_fn(|i| {
        let sum = if i < 4 { add(even[i], odd[i]) } else { sub(even[7 - i], odd[7 - i]) };
        add(sum, half) >> shift
    })
}

/// The samples of one row of minimum coded units.
struct Band {
    /// For each component, `v` × 8 rows of `across` × 8 samples.
    planes: Vec<Vec<u8>>,
}

impl Band {
    fn of(frame: &Frame) -> Band {
        Band { planes: frame.components.iter().map(|c| vec![0; c.across * B * c.v * B]).collect() }
    }
}

/// One line of a component at the picture's resolution, as libjpeg's "fancy" upsampling makes it: a
/// triangle filter where the factor is two and the row has more than two samples, repetition elsewhere.
/// `sample(row)` is a row of the component; `y` counts the picture's lines.
fn upsample<'s>(
    frame: &Frame,
    component: &Component,
    y: usize,
    sample: impl Fn(usize) -> &'s [u8],
    scratch: &mut Vec<u16>,
    line: &mut Vec<u8>,
) {
    let (across, down) = (frame.h / component.h, frame.v / component.v);
    let row = y / down;
    let near = sample(row);
    let far = || if y % 2 == 0 { sample(row.saturating_sub(1)) } else { sample(row + 1) };
    let smooth = across == 2 && component.width > 2;
    line.clear();
    match (across, down) {
        (1, 1) => line.extend_from_slice(near),
        (2, 1) if smooth => {
            let last = near.len() - 1;
            let value = |i: usize| u16::from(near[i]);
            line.push(near[0]);
            line.push(((value(0) * 3 + value(1) + 2) >> 2) as u8);
            for window in near.windows(3) {
                let [before, here, after] = [window[0], window[1], window[2]].map(u16::from);
                line.push(((here * 3 + before + 1) >> 2) as u8);
                line.push(((here * 3 + after + 2) >> 2) as u8);
            }
            line.push(((value(last) * 3 + value(last - 1) + 1) >> 2) as u8);
            line.push(near[last]);
        }
        (1, 2) => {
            // The rounding alternates, so that no level is favoured.
            let bias = if y.is_multiple_of(2) { 1 } else { 2 };
            let blend =
                |(&near, &far): (&u8, &u8)| ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
            line.extend(near.iter().zip(far()).map(blend));
        }
        (2, 2) if smooth => {
            scratch.clear();
            scratch.extend(near.iter().zip(far()).map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)));
            let (first, last) = (scratch[0], scratch[scratch.len() - 1]);
            line.push(((first * 4 + 8) >> 4) as u8);
            line.push(((first * 3 + scratch[1] + 7) >> 4) as u8);
            for window in scratch.windows(3) {
                let [before, here, after] = [window[0], window[1], window[2]];
                line.push(((here * 3 + before + 8) >> 4) as u8);
                line.push(((here * 3 + after + 7) >> 4) as u8);
            }
            line.push(((last * 3 + scratch[scratch.len() - 2] + 8) >> 4) as u8);
            line.push(((last * 4 + 7) >> 4) as u8);
        }
        _ => near.iter().for_each(|&value| line.extend(std::iter::repeat_n(value, across))),
    }
}

// --- from components to colours ------------------------------------------------------------------

/// What the components are.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// libjpeg's tables from YCbCr to RGB, 16 fractional bits.
struct Colours {
    space: Space,
    cr_to_red: [i32; 256],
    cb_to_blue: [i32; 256],
    /// Not yet shifted down: the two are added first.
    cr_to_green: [i32; 256],
    cb_to_green: [i32; 256],
}

impl Colours {
    /// The colour space by libjpeg's rules: JFIF is YCbCr, Adobe says which, otherwise the numbers of
    /// the components tell.
    fn of(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<Colours> {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        let space = match (&ids[..], adobe) {
            ([_], _) => Space::Grey,
            ([_, _, _], _) if jfif => Space::YCbCr,
            ([_, _, _], Some(0)) => Space::Rgb,
            ([_, _, _], Some(_)) => Space::YCbCr,
            (b"RGB", None) => Space::Rgb,
            ([_, _, _], None) => Space::YCbCr,
            ([_, _, _, _], Some(0) | None) => Space::Cmyk,
            ([_, _, _, _], Some(_)) => Space::Ycck,
            _ => return Err(unsupported(format!("{} components", ids.len()))),
        };
        let fixed = |factor: f64| (factor * 65536.0 + 0.5) as i32;
        let table = |factor: i32, half: i32, shift: u32| {
            std::array::from_fn(|i| (factor * (i as i32 - 128) + half) >> shift)
        };
        Ok(Colours {
            space,
            cr_to_red: table(fixed(1.402), 1 << 15, 16),
            cb_to_blue: table(fixed(1.772), 1 << 15, 16),
            cr_to_green: table(-fixed(0.71414), 0, 0),
            cb_to_green: table(-fixed(0.34414), 1 << 15, 0),
        })
    }

    /// Colours one line of the picture; `out` is [width, 3].
    fn line(&self, lines: &[Vec<u8>], out: &mut [u8]) {
        let pixels = out.chunks_exact_mut(3).enumerate();
        match (self.space, lines) {
            (Space::Grey, [grey, ..]) => pixels.for_each(|(x, pixel)| pixel.fill(grey[x])),
            (Space::Rgb, [r, g, b, ..]) => {
                pixels.for_each(|(x, pixel)| pixel.copy_from_slice(&[r[x], g[x], b[x]]));
            }
            (Space::YCbCr, [y, cb, cr, ..]) => {
                let width = out.len() / 3;
                let (y, cb, cr) = (&y[..width], &cb[..width], &cr[..width]);
                for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
                    pixel.copy_from_slice(&self.rgb(y, cb, cr));
                }
            }
            (Space::Cmyk, [c, m, y, k, ..]) => {
                pixels.for_each(|(x, pixel)| pixel.copy_from_slice(&under_black([c[x], m[x], y[x]], k[x])));
            }
            (Space::Ycck, [y, cb, cr, k, ..]) => pixels.for_each(|(x, pixel)| {
                let inks = self.rgb(y[x], cb[x], cr[x]).map(|value| 255 - value);
                pixel.copy_from_slice(&under_black(inks, k[x]));
            }),
            // `of` has matched the space to the number of components.
            _ => {}
        }
    }

    fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (y, cb, cr) = (i32::from(y), usize::from(cb), usize::from(cr));
        let green = (self.cb_to_green[cb] + self.cr_to_green[cr]) >> 16;
        [y + self.cr_to_red[cr], y + green, y + self.cb_to_blue[cb]].map(|value| value.clamp(0, 255) as u8)
    }
}

/// The inks of a JPEG, which by Adobe's custom count from full (0) to none (255), as Pillow turns
/// them into RGB: what black leaves, less the ink's part of it.
fn under_black(inks: [u8; 3], black: u8) -> [u8; 3] {
    let left = i32::from(black);
    inks.map(|ink| {
        let product = i32::from(255 - ink) * left + 128;
        let ink = ((product >> 8) + product) >> 8;
        (left - ink).clamp(0, 255) as u8
    })
}
