//! The records in the files of the state: puts and removals of a key.

use perennial_core::error::Result;

use crate::damaged;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    Put(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
    /// Adds a value to those of the key.
    Merge(&'a [u8], &'a [u8]),
}

/// The end of a delta, and the length of a value that is removed.
const NONE: i32 = -1;

/// Reads a file's bytes from the front.
struct Reader<'a> {
    path: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(damaged(self.path, "it ends within a record")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn sized(&mut self, length: i32) -> Result<&'a [u8]> {
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => Err(damaged(self.path, "a length is negative")),
        }
    }

    /// Java's `writeUTF`.
    fn utf(&mut self) -> Result<&'a str> {
        let length = self.take(2)?;
        let bytes = self.take(usize::from(u16::from_be_bytes([length[0], length[1]])))?;
        std::str::from_utf8(bytes).map_err(|_| damaged(self.path, "a text is not UTF-8"))
    }

    fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(damaged(self.path, "something stands behind its end")) }
    }
}

/// The records of a delta or a snapshot.
pub(crate) fn read<'a>(path: &'a str, bytes: &'a [u8], checksums: bool) -> Result<Vec<Change<'a>>> {
    let mut reader = Reader { path, rest: bytes };
    let records = plain(&mut reader, checksums)?;
    reader.end()?;
    Ok(records)
}

fn plain<'a>(reader: &mut Reader<'a>, checksums: bool) -> Result<Vec<Change<'a>>> {
    let mut records = Vec::new();
    loop {
        let length = reader.int()?;
        if length == NONE {
            return Ok(records);
        }
        let key = reader.sized(length)?;
        let record = match reader.int()? {
            NONE => Change::Remove(key),
            length => Change::Put(key, reader.sized(length)?),
        };
        records.push(if checksums { without_checksum(reader.path, record)? } else { record });
    }
}

/// The records of a changelog of RocksDB. Versions 3 and 4 are 1 and 2 with the line of files that it continues.
pub(crate) fn read_changelog<'a>(path: &'a str, bytes: &'a [u8], checksums: bool) -> Result<Vec<Change<'a>>> {
    let mut reader = Reader { path, rest: bytes };
    let version = match bytes {
        [0, 2, b'v', digit @ b'2'..=b'9', ..] => digit - b'0',
        _ => 1,
    };
    if version > 4 {
        return Err(crate::refused(format!("{path}: changelogs of version {version} are not known")));
    }
    if version > 1 {
        reader.utf()?;
    }
    if version > 2 {
        reader.utf()?;
    }
    if version % 2 == 1 {
        let records = plain(&mut reader, checksums)?;
        reader.end()?;
        return Ok(records);
    }
    let mut records = Vec::new();
    loop {
        let kind = reader.byte()?;
        if kind == 0 {
            break;
        }
        let length = reader.int()?;
        let key = reader.sized(length)?;
        let length = reader.int()?;
        let record = match (kind, length) {
            (0x10, NONE) => Change::Remove(key),
            (0x01, length) => Change::Put(key, reader.sized(length)?),
            (0x11, length) => Change::Merge(key, reader.sized(length)?),
            _ => return Err(damaged(path, format!("a record of the kind {kind:#x} is not known"))),
        };
        records.push(if checksums { without_checksum(path, record)? } else { record });
    }
    reader.end()?;
    Ok(records)
}

/// With `rowChecksum.enabled` each record has a checksum in front: a put's before its value, a removal's before its key.
fn without_checksum<'a>(path: &str, record: Change<'a>) -> Result<Change<'a>> {
    let split = |bytes: &'a [u8]| match bytes.split_at_checked(4) {
        Some((sum, rest)) => Ok((u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]), rest)),
        None => Err(damaged(path, "a record has no checksum")),
    };
    let (sum, expected, record) = match record {
        Change::Put(key, value) | Change::Merge(key, value) => {
            let (sum, rest) = split(value)?;
            let expected = crc32c::crc32c_append(crc32c::crc32c(key), rest);
            let is_put = matches!(record, Change::Put(..));
            (sum, expected, if is_put { Change::Put(key, rest) } else { Change::Merge(key, rest) })
        }
        Change::Remove(key) => {
            let (sum, rest) = split(key)?;
            (sum, crc32c::crc32c(rest), Change::Remove(rest))
        }
    };
    if sum == expected { Ok(record) } else { Err(damaged(path, "a record does not fit its checksum")) }
}

/// A delta or a snapshot that puts these.
pub(crate) fn write<'a>(puts: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in puts {
        for part in [key, value] {
            out.extend_from_slice(&(part.len() as i32).to_be_bytes());
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(&NONE.to_be_bytes());
    out
}

/// The versions that a changelog continues, back to a snapshot, and the identities in the names of their files.
pub(crate) fn lineage(path: &str, bytes: &[u8]) -> Result<Vec<(u64, String)>> {
    let mut reader = Reader { path, rest: bytes };
    let broken = || damaged(path, "it does not tell which files it continues");
    if !matches!(bytes, [0, 2, b'v', b'3' | b'4', ..]) {
        return Err(broken());
    }
    reader.utf()?;
    let told: Vec<serde_json::Value> = serde_json::from_str(reader.utf()?).map_err(|_| broken())?;
    let version =
        |of: &serde_json::Value| Some((of["version"].as_u64()?, of["checkpointUniqueId"].as_str()?.to_owned()));
    told.iter().map(version).collect::<Option<_>>().ok_or_else(broken)
}
