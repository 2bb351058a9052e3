//! The segments of a JPEG file, and the picture painted band by band.

use super::entropy::{Entropy, Huffman, ZIGZAG, scan_into};
use super::frame::{B, Block, Component, Frame, Scan, broken, truncated, unsupported};
use super::samples::{Colours, inverse_dct, upsample};
use crate::image::decode::{Picture, Upright, orientation, too_much_memory};
use crate::{Error, Result};

/// The scans that a progressive file may have. Encoders write about ten; each costs a pass over the
/// whole picture for as little as a few bytes, so a file with thousands is an attack.
const MAX_SCANS: usize = 100;

/// What the headers up to the frame say.
pub(in crate::image) struct Header {
    pub(in crate::image) width: usize,
    pub(in crate::image) height: usize,
}

/// Reads the segments up to the frame header; decodes nothing.
pub(in crate::image) fn header(bytes: &[u8]) -> Result<Header> {
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
pub(in crate::image) fn decode(bytes: &[u8], memory: u64) -> Result<Picture> {
    Decoder::new(bytes).run(memory)
}

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

pub(super) struct Decoder<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    frame: Option<Frame>,
    quantisation: [Option<[i32; 64]>; 4],
    pub(super) dc: [Option<Huffman>; 4],
    pub(super) ac: [Option<Huffman>; 4],
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
