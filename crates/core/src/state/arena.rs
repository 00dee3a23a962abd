//! Records in chunks of memory: no allocation per key, and growth never copies what is there.
//!
//! A record is a header of 8 bytes, the key, the value, and padding to a multiple of 8 bytes. Chunks have 1 MiB; a large record gets
//! a chunk of its own. The place of a freed record is taken by the next record of the same size, so a state whose keys come and
//! go keeps its size. Records describe themselves: a chunk can be read from its first byte to its last.

use std::collections::BTreeMap;

use super::row::KeyValue;
use crate::error::{Error, Result, class};

/// Records start at multiples of this many bytes.
const UNIT: usize = 8;
/// Bits of a location that tell the place in the chunk.
const CHUNK_BITS: u32 = 17;
const CHUNK_BYTES: usize = UNIT << CHUNK_BITS;
/// A record that is larger gets a chunk of its own, which goes with it.
const LARGE_BYTES: usize = CHUNK_BYTES / 4;
const MAX_CHUNKS: usize = 1 << (u32::BITS - CHUNK_BITS);
const HEADER_BYTES: usize = 8;

/// Where a record lies: the chunk in the upper bits, the place in it, in units of 8 bytes, in the lower ones. 32 GiB can be addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location(u32);

impl Location {
    fn new(chunk: usize, offset: usize) -> Self {
        Self(((chunk as u32) << CHUNK_BITS) | (offset / UNIT) as u32)
    }

    fn chunk(self) -> usize {
        (self.0 >> CHUNK_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << CHUNK_BITS) - 1)) as usize * UNIT
    }
}

/// What is known of a record without looking into it.
///
/// Packed, from the lowest bit: 28 bits of size in units, 3 of padding in bytes, 30 of the key's length, `live`, `fresh`, `changed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    units: usize,
    padding: usize,
    key: usize,
    flags: Flags,
}

/// The state of a record in the running batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags {
    /// The record counts; otherwise it is free, or waits for the commit to become free.
    pub live: bool,
    /// Its key was not there when the batch began.
    pub fresh: bool,
    /// It was written in this batch.
    pub changed: bool,
}

const UNITS_BITS: u32 = 28;
const PADDING_BITS: u32 = 3;
const KEY_BITS: u32 = 30;

impl Header {
    fn pack(self) -> [u8; HEADER_BYTES] {
        let flags = u64::from(self.flags.live) | u64::from(self.flags.fresh) << 1 | u64::from(self.flags.changed) << 2;
        let packed = self.units as u64
            | (self.padding as u64) << UNITS_BITS
            | (self.key as u64) << (UNITS_BITS + PADDING_BITS)
            | flags << (UNITS_BITS + PADDING_BITS + KEY_BITS);
        packed.to_le_bytes()
    }

    fn unpack(bytes: &[u8]) -> Self {
        let mut packed = [0; HEADER_BYTES];
        packed.copy_from_slice(&bytes[..HEADER_BYTES]);
        let packed = u64::from_le_bytes(packed);
        let field = |shift: u32, bits: u32| ((packed >> shift) & ((1 << bits) - 1)) as usize;
        let flags = packed >> (UNITS_BITS + PADDING_BITS + KEY_BITS);
        Self {
            units: field(0, UNITS_BITS),
            padding: field(UNITS_BITS, PADDING_BITS),
            key: field(UNITS_BITS + PADDING_BITS, KEY_BITS),
            flags: Flags { live: flags & 1 != 0, fresh: flags & 2 != 0, changed: flags & 4 != 0 },
        }
    }

    fn bytes(self) -> usize {
        self.units * UNIT
    }

    fn value(self) -> std::ops::Range<usize> {
        HEADER_BYTES + self.key..self.bytes() - self.padding
    }
}

/// A record as it lies in its chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// The encoded key.
    pub key: &'a [u8],
    /// The encoded value.
    pub value: &'a [u8],
    /// Its state in the batch.
    pub flags: Flags,
}

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8]) -> (Header, Self) {
        let header = Header::unpack(bytes);
        let value = header.value();
        (header, Self { key: &bytes[HEADER_BYTES..value.start], value: &bytes[value], flags: header.flags })
    }

    /// Bytes that it takes in its chunk.
    fn padded_bytes(self) -> usize {
        (HEADER_BYTES + self.key.len() + self.value.len()).div_ceil(UNIT) * UNIT
    }

    /// Key and value.
    pub fn bytes(self) -> KeyValue<'a> {
        (self.key, self.value)
    }
}

/// The records of a chunk, or of a copy of one, that are live.
pub(super) fn live_records(chunk: &[u8]) -> impl Iterator<Item = Record<'_>> {
    records(chunk).map(|(_, record)| record).filter(|record| record.flags.live)
}

/// All records of a chunk, with their offsets.
fn records(chunk: &[u8]) -> impl Iterator<Item = (usize, Record<'_>)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = chunk.get(offset..).filter(|rest| !rest.is_empty())?;
        let (header, record) = Record::at(rest);
        let found = (offset, record);
        offset += header.bytes();
        Some(found)
    })
}

/// All records of a partition.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: Vec<Vec<u8>>,
    /// The chunk that new records are appended to.
    open: Option<usize>,
    /// Free places by their size in units.
    free: BTreeMap<usize, Vec<Location>>,
    /// Chunks that held one large record and are empty now.
    empty: Vec<usize>,
    /// Bytes in `free`.
    free_bytes: usize,
    /// Bytes in records that are not in `free`.
    used_bytes: usize,
}

impl Arena {
    /// Bytes in the places of freed records.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Bytes in records, their headers and padding.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Bytes of memory held.
    pub fn allocated_bytes(&self) -> usize {
        let lists: usize = self.free.values().map(|list| list.capacity() * size_of::<Location>()).sum();
        self.chunks.iter().map(Vec::capacity).sum::<usize>() + self.chunks.capacity() * size_of::<Vec<u8>>() + lists
    }

    /// The record at a location.
    pub fn record(&self, at: Location) -> Record<'_> {
        Record::at(self.bytes(at)).1
    }

    /// The record at a location that may be stale: it is whatever lies there now, if anything.
    pub fn record_if_any(&self, at: Location) -> Option<Record<'_>> {
        let bytes = self.chunks.get(at.chunk())?.get(at.offset()..)?;
        (!bytes.is_empty()).then(|| Record::at(bytes).1)
    }

    /// The key at a location.
    pub fn key(&self, at: Location) -> &[u8] {
        self.record(at).key
    }

    fn bytes(&self, at: Location) -> &[u8] {
        &self.chunks[at.chunk()][at.offset()..]
    }

    fn bytes_mut(&mut self, at: Location) -> &mut [u8] {
        &mut self.chunks[at.chunk()][at.offset()..]
    }

    /// Adds a record. Fails with the class `MemoryLimit` when a record or the whole is too large to be addressed.
    pub fn insert(&mut self, (key, value): KeyValue<'_>, flags: Flags) -> Result<Location> {
        let length = HEADER_BYTES + key.len() + value.len();
        let units = length.div_ceil(UNIT);
        if units >> UNITS_BITS != 0 || key.len() >> KEY_BITS != 0 {
            return Err(Error::new(
                class::MEMORY_LIMIT,
                format!(
                    "one row of state has {length} bytes, the limit is 1 GiB for a key and 2 GiB for a row: make its values smaller"
                ),
            ));
        }
        let header = Header { units, padding: units * UNIT - length, key: key.len(), flags }.pack();
        self.used_bytes += units * UNIT;
        if let Some(at) = self.reuse(units) {
            let place = self.bytes_mut(at);
            place[..HEADER_BYTES].copy_from_slice(&header);
            place[HEADER_BYTES..HEADER_BYTES + key.len()].copy_from_slice(key);
            place[HEADER_BYTES + key.len()..length].copy_from_slice(value);
            return Ok(at);
        }
        let chunk = self.chunk_for(units * UNIT).inspect_err(|_| self.used_bytes -= units * UNIT)?;
        let bytes = &mut self.chunks[chunk];
        let at = Location::new(chunk, bytes.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        bytes.resize(at.offset() + units * UNIT, 0);
        Ok(at)
    }

    /// A free place of exactly this size.
    fn reuse(&mut self, units: usize) -> Option<Location> {
        if self.free.is_empty() {
            return None;
        }
        let list = self.free.get_mut(&units)?;
        let at = list.pop();
        if list.is_empty() {
            self.free.remove(&units);
        }
        self.free_bytes -= units * UNIT;
        at
    }

    /// A chunk with room for a record at its end.
    fn chunk_for(&mut self, bytes: usize) -> Result<usize> {
        let large = bytes > LARGE_BYTES;
        if let Some(open) = self.open
            && !large
            && self.chunks[open].len() + bytes <= CHUNK_BYTES
        {
            return Ok(open);
        }
        let chunk = match self.empty.pop() {
            Some(chunk) => chunk,
            None if self.chunks.len() == MAX_CHUNKS => {
                return Err(Error::new(
                    class::MEMORY_LIMIT,
                    "a partition of state has more than 32 GiB: make windows and keys fewer, or use more cores",
                ));
            }
            None => {
                self.chunks.push(Vec::new());
                self.chunks.len() - 1
            }
        };
        if large {
            self.chunks[chunk] = Vec::with_capacity(bytes);
        } else {
            // The first chunk grows with the state: most states are small.
            if self.open.is_some() {
                self.chunks[chunk] = Vec::with_capacity(CHUNK_BYTES);
            }
            self.open = Some(chunk);
        }
        Ok(chunk)
    }

    /// Writes another value into a record; false when it has another size and the record must move.
    pub fn overwrite(&mut self, at: Location, value: &[u8]) -> bool {
        let place = self.bytes_mut(at);
        let mut header = Header::unpack(place);
        let length = HEADER_BYTES + header.key + value.len();
        if length.div_ceil(UNIT) != header.units {
            return false;
        }
        header.padding = header.bytes() - length;
        place[..HEADER_BYTES].copy_from_slice(&header.pack());
        place[header.value()].copy_from_slice(value);
        true
    }

    /// Changes the state of a record.
    pub fn set_flags(&mut self, at: Location, flags: Flags) {
        let place = self.bytes_mut(at);
        let header = Header { flags, ..Header::unpack(place) };
        place[..HEADER_BYTES].copy_from_slice(&header.pack());
    }

    /// Gives the place of a record back.
    pub fn free(&mut self, at: Location) {
        self.set_flags(at, Flags::default());
        let header = Header::unpack(self.bytes(at));
        self.used_bytes -= header.bytes();
        if header.bytes() > LARGE_BYTES {
            self.chunks[at.chunk()] = Vec::new();
            self.empty.push(at.chunk());
        } else {
            self.free_bytes += header.bytes();
            self.free.entry(header.units).or_default().push(at);
        }
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The bytes of a chunk; empty when there is none of this number.
    pub fn chunk(&self, chunk: usize) -> &[u8] {
        self.chunks.get(chunk).map_or(&[], Vec::as_slice)
    }

    /// Live records with their locations, chunk by chunk.
    pub fn live(&self) -> impl Iterator<Item = (Location, Record<'_>)> {
        self.chunks.iter().enumerate().flat_map(|(chunk, bytes)| {
            records(bytes)
                .filter(|(_, record)| record.flags.live)
                .map(move |(offset, record)| (Location::new(chunk, offset), record))
        })
    }

    /// Live records from a place (chunk and offset) on, each with the place behind it.
    pub fn live_from(&self, (first, from): (usize, usize)) -> impl Iterator<Item = ((usize, usize), Record<'_>)> {
        self.chunks.iter().enumerate().skip(first).flat_map(move |(chunk, bytes)| {
            let start = if chunk == first { from } else { 0 };
            records(bytes.get(start..).unwrap_or_default())
                .filter(|(_, record)| record.flags.live)
                .map(move |(offset, record)| ((chunk, start + offset + record.padded_bytes()), record))
        })
    }

    /// Takes the chunks out, in order.
    pub fn into_chunks(self) -> impl Iterator<Item = Vec<u8>> {
        self.chunks.into_iter()
    }
}
