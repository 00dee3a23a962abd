//! Text files: blocks of whole lines.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Payload, Position, RecordBlock};

use super::super::stream::Output;
use super::LoggedFile;

/// Bytes of a block, give or take a line.
const BLOCK: u64 = 2 << 20;
/// Bytes that are read at a time to find the end of a line.
const STEP: u64 = 64 << 10;
/// The longest line. Blocks are indexed by 32 bits, and a line of this length is no record any more.
const LONGEST_LINE: u64 = 1 << 30;

/// How a file is compressed, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip,
    Zstd,
}

impl Codec {
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "gz" | "gzip" => Some(Self::Gzip),
            "zst" | "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The parts in which a file of `size` bytes is read.
pub(super) fn parts(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size).step_by(BLOCK as usize).map(move |start| (start, (start + BLOCK).min(size)))
}

/// The block of the lines that begin in `start..end`; they may end behind it. `None` where no line begins there.
pub(super) fn read_part(logged: &LoggedFile, file: &mut File, start: u64, end: u64) -> Result<Option<Input>> {
    // With the byte before it one sees whether a line begins at `start`.
    let from = start.saturating_sub(1);
    file.seek(SeekFrom::Start(from)).map_err(|e| logged.read_error(e))?;
    let mut text = Vec::with_capacity((end - from + STEP) as usize);
    append(logged, file, &mut text, end - from)?;
    let first = match start {
        0 => 0,
        _ => match memchr::memchr(b'\n', &text) {
            Some(at) => at + 1,
            None => return Ok(None),
        },
    };
    if first == text.len() {
        return Ok(None);
    }
    let mut read_to = end;
    while text.last() != Some(&b'\n') && read_to < logged.size {
        let known = text.len();
        let step = STEP.min(logged.size - read_to);
        append(logged, file, &mut text, step)?;
        read_to += step;
        if let Some(at) = memchr::memchr(b'\n', &text[known..]) {
            text.truncate(known + at + 1);
        }
        check_length(logged, text.len(), start)?;
    }
    Ok(Some(block(logged, from + first as u64, Bytes::from(text).slice(first..))))
}

/// Reads exactly `count` more bytes.
fn append(logged: &LoggedFile, file: &mut File, text: &mut Vec<u8>, count: u64) -> Result<()> {
    let read = file.take(count).read_to_end(text).map_err(|e| logged.read_error(e))?;
    if (read as u64) < count { Err(logged.read_error(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
}

/// Sends the blocks of a compressed file. `false`: nobody listens any more.
pub(super) fn read_compressed(logged: &LoggedFile, codec: Codec, output: &Output) -> Result<bool> {
    let damaged = |error: io::Error| {
        let name = match codec {
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        };
        let message = format!(
            "{} does not decompress ({name}): {error}; replace it by a sound file, or take it away and start with another checkpoint",
            logged.shown
        );
        Error::new(class::MALFORMED_RECORD, message).caused_by(error)
    };
    let compressed = io::BufReader::with_capacity(STEP as usize, logged.open()?.take(logged.size));
    let mut reader: Box<dyn Read> = match codec {
        Codec::Gzip => Box::new(MultiGzDecoder::new(compressed)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(compressed).map_err(damaged)?),
    };
    let mut offset = 0;
    let mut text: Vec<u8> = Vec::new();
    loop {
        // Whole blocks, or more where a line is longer.
        let target = BLOCK.max(text.len() as u64 * 2);
        let wanted = target - text.len() as u64;
        text.reserve_exact(wanted as usize);
        let read = reader.by_ref().take(wanted).read_to_end(&mut text).map_err(damaged)?;
        let is_end = (read as u64) < wanted;
        let cut = if is_end { text.len() } else { memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1) };
        if cut == 0 && !is_end {
            check_length(logged, text.len(), offset)?;
            continue;
        }
        let rest = text.split_off(cut);
        let length = text.len() as u64;
        if length > 0 && !output.send(block(logged, offset, text.into())) {
            return Ok(false);
        }
        if is_end {
            return Ok(true);
        }
        offset += length;
        text = rest;
    }
}

fn check_length(logged: &LoggedFile, length: usize, offset: u64) -> Result<()> {
    if length as u64 <= LONGEST_LINE {
        return Ok(());
    }
    Err(Error::new(
        class::MALFORMED_RECORD,
        format!(
            "{}: the line behind byte {offset} is longer than {LONGEST_LINE} bytes: this is not a file of text lines",
            logged.shown
        ),
    ))
}

fn block(logged: &LoggedFile, offset: u64, text: Bytes) -> Input {
    let position = Position::File { path: logged.shown.clone(), offset };
    Input::Records(RecordBlock { payload: Payload::Lines(text), position })
}
