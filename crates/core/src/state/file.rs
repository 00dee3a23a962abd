//! The files of state: a checksummed container around Arrow IPC streams.
//!
//! ```text
//! bytes   content
//! 8       "PERSTATE"
//! 2       version of the container, little-endian: 1
//! 2       0
//! 4       length of the header, little-endian
//! …       the header: JSON, a `Header`
//! …       the sections, one behind the other: each one is an Arrow IPC stream (LZ4), which any Arrow tool can read
//! 4       CRC-32C of all bytes before, little-endian
//! ```
//!
//! Later versions of the container keep the first ten bytes and the checksum at the end where they are, so that an older program can
//! tell a newer file from a damaged one.

use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::ipc::{CompressionType, MetadataVersion};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::error::{Error, Result, class};

const MAGIC: &[u8; 8] = b"PERSTATE";
/// The version of the container that is written.
const FORMAT: u16 = 1;
/// The version of the columns' meaning that is written; their types are in the stream itself.
pub(super) const SCHEMA_VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// What one batch changed.
    Delta,
    /// A part of all rows.
    Snapshot,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// Whole rows, to be put.
    Rows,
    /// Keys, to be removed.
    Removed,
}

/// One delta: its name, and what makes sure that it is the one that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaId {
    /// Version of the state after it.
    pub version: u64,
    /// Epoch of its writer.
    pub epoch: u64,
    /// Checksum of the file.
    pub crc32c: u32,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub kind: Kind,
    /// Version of the state; of a snapshot, the one from which deltas follow.
    pub version: u64,
    /// Epoch of the writer.
    pub epoch: u64,
    /// Number of the part of a snapshot.
    #[serde(default)]
    pub part: u64,
    /// The delta before this one, if there is one.
    #[serde(default)]
    pub previous: Option<DeltaId>,
    /// In how many partitions the writer kept the state. A reader spreads the rows anew.
    pub partitions: usize,
    pub sections: Vec<Section>,
}

/// What a section is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Section {
    pub operator: usize,
    pub name: String,
    pub partition: usize,
    pub content: Content,
    /// How many of the columns are the key.
    pub keys: usize,
    pub schema_version: u32,
    pub rows: u64,
    pub bytes: u64,
}

/// A file that is ready to be written.
pub(super) struct Encoded {
    pub pieces: Vec<Bytes>,
    pub crc32c: u32,
    pub bytes: u64,
}

/// A file that was read and whose checksum is right.
pub(super) struct Decoded {
    pub header: Header,
    pub sections: Vec<Bytes>,
    pub crc32c: u32,
    pub bytes: u64,
}

/// How sections are written.
pub(super) fn ipc_options() -> Result<IpcWriteOptions> {
    let options = IpcWriteOptions::try_new(64, false, MetadataVersion::V5)?;
    Ok(options.try_with_compression(Some(CompressionType::LZ4_FRAME))?)
}

/// Encodes batches as one section.
pub(super) fn encode_section(schema: &Schema, batches: &[RecordBatch]) -> Result<Bytes> {
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), schema, ipc_options()?)?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?.into())
}

/// Puts a file together.
pub(super) fn encode(header: &Header, sections: Vec<Bytes>) -> Result<Encoded> {
    let header = serde_json::to_vec(header).map_err(|error| Error::bug("header of a state file").caused_by(error))?;
    let length = u32::try_from(header.len()).map_err(|error| Error::bug("header of a state file").caused_by(error))?;
    let mut start = Vec::with_capacity(PREFIX_BYTES + header.len());
    start.extend_from_slice(MAGIC);
    start.extend_from_slice(&FORMAT.to_le_bytes());
    start.extend_from_slice(&[0, 0]);
    start.extend_from_slice(&length.to_le_bytes());
    start.extend_from_slice(&header);
    let mut pieces = vec![Bytes::from(start)];
    pieces.extend(sections);
    let crc32c = pieces.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
    pieces.push(Bytes::copy_from_slice(&crc32c.to_le_bytes()));
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    Ok(Encoded { pieces, crc32c, bytes })
}

/// Takes a file apart. Fails with the class `CheckpointCorrupt` when anything in it is not as it was written.
pub(super) fn decode(path: &Path, file: Bytes) -> Result<Decoded> {
    if file.is_empty() {
        return Err(damaged(path, "it is empty"));
    }
    if file.len() < PREFIX_BYTES + CHECKSUM_BYTES {
        return Err(damaged(path, &format!("it has only {} bytes", file.len())));
    }
    if file[..MAGIC.len()] != MAGIC[..] {
        return Err(damaged(path, "it does not begin as a file of state does"));
    }
    let end = file.len() - CHECKSUM_BYTES;
    let crc32c = crc32c::crc32c(&file[..end]);
    if crc32c.to_le_bytes() != file[end..] {
        return Err(damaged(path, "its checksum is wrong: bytes were changed, or its end is missing"));
    }
    let format = u16::from_le_bytes([file[8], file[9]]);
    if format > FORMAT {
        return Err(Error::new(
            class::CHECKPOINT_NEWER,
            format!("{path} has format {format}, this version reads up to {FORMAT}: use the version that wrote it"),
        ));
    }
    let length = u32::from_le_bytes([file[12], file[13], file[14], file[15]]) as usize;
    let header = file.get(PREFIX_BYTES..PREFIX_BYTES + length).filter(|_| PREFIX_BYTES + length <= end);
    let header: Header = serde_json::from_slice(header.ok_or_else(|| damaged(path, "its header is too long"))?)
        .map_err(|error| damaged(path, "its header cannot be read").caused_by(error))?;
    let mut at = PREFIX_BYTES + length;
    let mut sections = Vec::with_capacity(header.sections.len());
    for section in &header.sections {
        let next = usize::try_from(section.bytes).ok().and_then(|bytes| at.checked_add(bytes));
        let next = next.filter(|next| *next <= end).ok_or_else(|| damaged(path, "a section is too long"))?;
        sections.push(file.slice(at..next));
        at = next;
    }
    if at != end {
        return Err(damaged(path, "it has bytes that belong to no section"));
    }
    Ok(Decoded { header, sections, crc32c, bytes: file.len() as u64 })
}

/// Decodes a section batch by batch. `check` sees the schema first.
pub(super) fn decode_section(
    path: &Path,
    section: &Section,
    bytes: &[u8],
    check: impl FnOnce(&Schema) -> Result<()>,
    mut each: impl FnMut(RecordBatch) -> Result<()>,
) -> Result<()> {
    let unreadable = |error| damaged(path, "a section cannot be read").caused_by(error);
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(unreadable)?;
    check(&reader.schema())?;
    let mut rows = 0;
    for batch in reader {
        let batch = batch.map_err(unreadable)?;
        rows += batch.num_rows() as u64;
        each(batch)?;
    }
    if rows != section.rows {
        return Err(damaged(path, &format!("a section has {rows} rows instead of {}", section.rows)));
    }
    Ok(())
}

/// A file that is there but is not what was written.
pub(super) fn damaged(path: &Path, what: &str) -> Error {
    Error::new(class::CHECKPOINT_CORRUPT, format!("{path} is damaged: {what}"))
}

/// Reads a file. A missing one has the class `CheckpointCorrupt`: the checkpoint says that it is there.
pub(super) async fn read(env: &Env, path: &Path) -> Result<Bytes> {
    match env.storage.get(path).await {
        Ok(found) => Ok(found.bytes().await?),
        Err(object_store::Error::NotFound { .. }) => {
            Err(Error::new(class::CHECKPOINT_CORRUPT, format!("{path} is missing")))
        }
        Err(error) => Err(error.into()),
    }
}

/// How a write came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The file is there, with this content, durably.
    Written,
    /// There is a file of this name with another content.
    Occupied,
}

/// Writes a file that does not exist yet. One that has the same content is an earlier attempt's, and fine.
pub(super) async fn create(env: &Env, path: &Path, file: &Encoded) -> Result<Outcome> {
    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
    let payload: PutPayload = file.pieces.iter().cloned().collect();
    match env.storage.put_opts(path, payload, options).await {
        Ok(_) => Ok(Outcome::Written),
        Err(object_store::Error::AlreadyExists { .. }) => {
            let found = env.storage.get(path).await?.bytes().await?;
            let mut rest = found.as_ref();
            let same = file.pieces.iter().all(|piece| match rest.strip_prefix(piece.as_ref()) {
                Some(after) => {
                    rest = after;
                    true
                }
                None => false,
            });
            Ok(if same && rest.is_empty() { Outcome::Written } else { Outcome::Occupied })
        }
        Err(error) => Err(error.into()),
    }
}
