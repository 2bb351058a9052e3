//! Huffman-coded data: bits, codes, and the coefficients of a block in each kind of scan.

use super::file::Decoder;
use super::frame::{B, Block, Frame, Scan, broken, truncated};
use crate::Result;

/// Where the coefficient that is k-th in the file lies in the block, row by row.
#[rustfmt::skip]
pub(super) const ZIGZAG: [usize; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10,
    17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34,
    27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46,
    53, 60, 61, 54, 47, 55, 62, 63,
];

/// Bits looked up at once.
const LOOKUP: u32 = 9;

/// A Huffman code.
pub(super) struct Huffman {
    /// For each prefix of `LOOKUP` bits: symbol and length, length 0 where the code is longer.
    short: Vec<(u8, u8)>,
    /// For each length: the first code beyond that length, left-aligned in 16 bits, and the
    /// difference between a code and its symbol's place.
    limit: [u32; 17],
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Result<Huffman> {
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
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
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
    pub(super) fn check(&self) -> Result<()> {
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
pub(super) struct Entropy<'a> {
    pub(super) bits: Bits<'a>,
    dc: &'a [Option<Huffman>; 4],
    ac: &'a [Option<Huffman>; 4],
    /// Last DC value of each part of the scan.
    previous: [i32; 4],
    /// Blocks still to come that a run has declared at their end.
    end_of_band: u32,
}

impl<'a> Entropy<'a> {
    /// The scan that starts where the decoder stands; the tables that it needs are there.
    pub(super) fn new<'d: 'a>(decoder: &'d Decoder<'d>, scan: &Scan) -> Result<Entropy<'a>> {
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
    pub(super) fn restart_if_due(&mut self, unit: usize, interval: usize) -> Result<()> {
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
    pub(super) fn baseline(&mut self, part: usize, dc: usize, ac: usize, block: &mut Block) -> Result<()> {
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

/// Decodes one scan of several into the blocks kept for each component.
pub(super) fn scan_into(
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
