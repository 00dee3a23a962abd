//! The table files of RocksDB (`.sst`), as far as reading all of a table needs: footer, properties, index and blocks of the block-based format.
//!
//! The C++ library is the only complete reader there is, and too much for reading a table from its front to its end. What is not known here
//! (partitioned indexes, other checksums and compressions, removed ranges) is refused.

use std::collections::BTreeMap;

use twox_hash::XxHash3_64;

/// Why a table cannot be read.
pub(crate) type Broken = String;

/// An entry: its key, its place in the order of writes, and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) sequence: u64,
    pub(crate) change: Change,
}

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Vec<u8>),
    Remove,
    /// Stands behind what the key has.
    Merge(Vec<u8>),
}

const FOOTER: usize = 53;
const MAGIC: u64 = 0x88e2_41b7_85f4_cff7;
/// Compression and checksum behind each block.
const TRAILER: usize = 5;

/// Where a block is.
#[derive(Debug, Clone, Copy)]
struct Handle {
    offset: usize,
    size: usize,
}

/// Reads numbers from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("a number is torn")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".into())
    }

    fn length(&mut self) -> Result<usize, Broken> {
        usize::try_from(self.varint()?).map_err(|_| "a length is too large".into())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("an entry is torn")?;
        self.0 = rest;
        Ok(taken)
    }

    fn handle(&mut self) -> Result<Handle, Broken> {
        Ok(Handle { offset: self.length()?, size: self.length()? })
    }
}

/// All entries of a table, in the order of their keys.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Entry>, Broken> {
    let start = bytes.len().checked_sub(FOOTER).ok_or("it is too short")?;
    let footer = &bytes[start..];
    let fixed = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    if u64::from(fixed(45)) | u64::from(fixed(49)) << 32 != MAGIC {
        return Err("it is not a table of RocksDB, or its end is damaged".into());
    }
    let (checksum, version) = (footer[0], fixed(41));
    if !(2..=5).contains(&version) {
        return Err(format!("it has the format {version}; 2 to 5 are known"));
    }
    let file = Table { bytes: &bytes[..start], checksum };
    let mut handles = Reader(&footer[1..41]);
    let (meta, index) = (handles.handle()?, handles.handle()?);

    let meta = file.block(meta)?;
    let mut properties = BTreeMap::new();
    for (name, value) in entries(&meta, false)? {
        if name == b"rocksdb.properties" {
            let block = file.block(Reader(&value).handle()?)?;
            properties = entries(&block, false)?.into_iter().collect::<BTreeMap<_, _>>();
        } else if name == b"rocksdb.range_del" {
            return Err("it removes ranges of keys, which is not known".into());
        }
    }
    let number = |name: &str| match properties.get(name.as_bytes()) {
        Some(value) => Reader(value).varint().map(Some),
        None => Ok(None),
    };
    let index_type = properties.get(b"rocksdb.block.based.table.index.type".as_slice());
    if index_type.is_some_and(|kind| kind.first() != Some(&0)) {
        return Err("its index is in parts, which is not known".into());
    }
    let is_delta = number("rocksdb.index.value.is.delta.encoded")?.unwrap_or(0) > 0;

    let index = file.block(index)?;
    let mut found = Vec::new();
    for handle in index_handles(&index, is_delta)? {
        for (key, value) in entries(&file.block(handle)?, false)? {
            let (key, rest) = key.split_last_chunk::<8>().ok_or("a key has no number")?;
            let packed = u64::from_le_bytes(*rest);
            let change = match packed & 0xff {
                0 | 7 => Change::Remove,
                1 => Change::Put(value),
                2 => Change::Merge(value),
                kind => return Err(format!("it has an entry of the kind {kind}, which is not known")),
            };
            found.push(Entry { key: key.to_vec(), sequence: packed >> 8, change });
        }
    }
    match number("rocksdb.num.entries")? {
        Some(expected) if expected != found.len() as u64 => {
            Err(format!("it has {} entries and says {expected}", found.len()))
        }
        _ => Ok(found),
    }
}

struct Table<'a> {
    bytes: &'a [u8],
    /// The kind of the checksums.
    checksum: u8,
}

impl Table<'_> {
    /// A block, whole and not compressed.
    fn block(&self, at: Handle) -> Result<Vec<u8>, Broken> {
        let end = at.offset.checked_add(at.size).and_then(|end| end.checked_add(TRAILER));
        let bytes = end.and_then(|end| self.bytes.get(at.offset..end)).ok_or("a block lies outside of it")?;
        let (content, trailer) = bytes.split_at(at.size);
        let (kind, sum) = (trailer[0], u32::from_le_bytes([trailer[1], trailer[2], trailer[3], trailer[4]]));
        let with_kind = &bytes[..=at.size];
        let expected = match self.checksum {
            0 => sum,
            // A checksum of content that has checksums in it is rotated and shifted.
            1 => crc32c::crc32c(with_kind).rotate_right(15).wrapping_add(0xa282_ead8),
            4 => (XxHash3_64::oneshot(content) as u32) ^ u32::from(kind).wrapping_mul(0x6b90_83d9),
            other => return Err(format!("its checksums are of the kind {other}, which is not known")),
        };
        if sum != expected {
            return Err(format!("the block at {} does not fit its checksum", at.offset));
        }
        match kind {
            0 => Ok(content.to_vec()),
            4 | 5 => {
                let mut reader = Reader(content);
                let size = reader.length()?;
                let block = lz4_flex::block::decompress(reader.0, size);
                block.map_err(|error| format!("the block at {}: {error}", at.offset))
            }
            7 => {
                let mut reader = Reader(content);
                reader.varint()?;
                zstd::decode_all(reader.0).map_err(|error| format!("the block at {}: {error}", at.offset))
            }
            other => Err(format!("its blocks are compressed in the way {other}, which is not known")),
        }
    }
}

/// The bytes of the entries of a block: without the list of restart points at its end.
fn without_restarts(block: &[u8]) -> Result<&[u8], Broken> {
    let (rest, count) = block.split_last_chunk::<4>().ok_or("a block is too short")?;
    let packed = u32::from_le_bytes(*count);
    if packed >> 31 == 1 {
        return Err("its blocks have hash indexes, which are not known".into());
    }
    let length = rest.len().checked_sub(4 * packed as usize).ok_or("a block is too short")?;
    Ok(&rest[..length])
}

type Pair = (Vec<u8>, Vec<u8>);

/// Keys and values of a block. Of the index (`keys_only`) there are no lengths of values.
fn entries(block: &[u8], keys_only: bool) -> Result<Vec<Pair>, Broken> {
    let mut reader = Reader(without_restarts(block)?);
    let mut key: Vec<u8> = Vec::new();
    let mut found = Vec::new();
    while !reader.0.is_empty() {
        let (shared, new) = (reader.length()?, reader.length()?);
        let length = if keys_only { 0 } else { reader.length()? };
        if shared > key.len() {
            return Err("a key shares more than there is".into());
        }
        key.truncate(shared);
        key.extend_from_slice(reader.take(new)?);
        found.push((key.clone(), reader.take(length)?.to_vec()));
    }
    Ok(found)
}

/// Where the data is. With deltas, an entry that shares nothing has a whole handle, the others the difference of their size.
fn index_handles(block: &[u8], is_delta: bool) -> Result<Vec<Handle>, Broken> {
    if !is_delta {
        return entries(block, false)?.iter().map(|(_, value)| Reader(value).handle()).collect();
    }
    let mut reader = Reader(without_restarts(block)?);
    let mut handles: Vec<Handle> = Vec::new();
    while !reader.0.is_empty() {
        let (shared, new) = (reader.length()?, reader.length()?);
        reader.take(new)?;
        let handle = match (shared, handles.last()) {
            (0, _) => reader.handle()?,
            (_, Some(last)) => {
                let zigzag = reader.varint()?;
                let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                let size = (last.size as i64).checked_add(difference).and_then(|size| usize::try_from(size).ok());
                Handle { offset: last.offset + last.size + TRAILER, size: size.ok_or("a size is negative")? }
            }
            (_, None) => return Err("its index is damaged".into()),
        };
        handles.push(handle);
    }
    Ok(handles)
}
