//! TensorBoard's event files: records of TFRecord, each a protocol buffer `Event`.
//! Reference: tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.cc.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// An event file that is being written.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`; TensorBoard reads several of one run one after the other.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub(super) fn create(folder: &Path) -> Result<EventFile> {
        let path = folder.join(format!("events.out.tfevents.{}.{}", now() as u64, std::process::id()));
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = EventFile { path, file };
        let version = field(3, b"brain.Event:2");
        events.write(&[double(1, now()), version].concat())?;
        Ok(events)
    }

    /// A number under a name.
    ///
    /// # Errors
    /// `Kind::Io` or `Kind::Resource`.
    pub(super) fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<()> {
        self.write(&scalar(now(), step, tag, value))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn scalar(time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    let value = [&field(1, tag.as_bytes())[..], &[2 << 3 | 5], &value.to_le_bytes()].concat();
    let summary = field(1, &value);
    [double(1, time), vec![2 << 3], varint(step), field(5, &summary)].concat()
}

fn double(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while x >= 0x80 {
        bytes.push(x as u8 | 0x80);
        x >>= 7;
    }
    bytes.push(x as u8);
    bytes
}

/// The length and its checksum, the data and theirs.
fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked(crc32c(&len)), data, &masked(crc32c(data))].concat()
}

fn masked(crc: u32) -> [u8; 4] {
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The CRC of Castagnoli's polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_tensorflows() {
        // The check value of the CRC catalogue.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // event_pb2.Event(wall_time=1.5, step=300, summary=Summary(value=[Value(tag="loss", simple_value=0.25)])), by
        // protobuf 6.33's SerializeToString.
        let want = b"\x09\x00\x00\x00\x00\x00\x00\xf8?\x10\xac\x02*\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x80>";
        assert_eq!(scalar(1.5, 300, "loss", 0.25), want);
        let record = record(want);
        assert_eq!(record.len(), 8 + 4 + want.len() + 4);
        assert_eq!(record[..8], (want.len() as u64).to_le_bytes());
    }
}
