//! Writes snapshots while batches go on.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use object_store::path::Path;

use super::backend::{OwnedRow, Picture};
use super::file::{self, Content, Header, Kind, Outcome, Section};
use super::manifest::{SnapshotRef, StateRef, snapshot_path};
use super::memory::committed_rows;
use super::partitions::{Operator, blocking, lock, peek};
use super::row::BATCH_ROWS;
use crate::crash::CrashPoint;
use crate::env::Env;
use crate::error::{Error, Result, class};

/// A snapshot that is being written.
pub(super) struct Snapshot {
    env: Env,
    dir: Path,
    version: u64,
    epoch: u64,
    part_bytes: usize,
    /// What is still to be written.
    sources: VecDeque<Source>,
    /// Keeps what the pictures need.
    _pin: Arc<()>,
}

/// A partition.
struct Source {
    operator: Operator,
    number: usize,
    picture: Picture,
    done: bool,
}

/// Rows that are not in chunks are decoded together up to this many bytes: as many as a chunk has.
const GROUP_BYTES: usize = 1 << 20;

impl Snapshot {
    /// A snapshot of the committed version, of which the partitions take their pictures now.
    pub fn of(env: &Env, dir: &Path, current: &StateRef, part_bytes: usize, operators: &[Operator]) -> Self {
        let pin = Arc::new(());
        let sources = operators.iter().flat_map(|operator| {
            let pin = &pin;
            operator.partitions.iter().enumerate().map(move |(number, partition)| {
                let picture = peek(partition).picture(pin);
                Source { operator: operator.clone(), number, picture, done: false }
            })
        });
        Self {
            sources: sources.collect(),
            env: env.clone(),
            dir: dir.clone(),
            version: current.version,
            epoch: current.epoch,
            part_bytes,
            _pin: pin,
        }
    }

    /// Writes it.
    pub async fn write(mut self) -> Result<SnapshotRef> {
        let mut written = SnapshotRef { version: self.version, epoch: self.epoch, parts: 0, rows: 0, bytes: 0 };
        while !self.sources.is_empty() {
            let (rest, encoded) = blocking(move || {
                let encoded = self.encode_part()?;
                Ok((self, encoded))
            })
            .await?;
            self = rest;
            let (sections, payload): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
            if sections.is_empty() {
                break;
            }
            written.rows += sections.iter().map(|section: &Section| section.rows).sum::<u64>();
            let header = Header {
                kind: Kind::Snapshot,
                version: self.version,
                epoch: self.epoch,
                part: written.parts,
                previous: None,
                partitions: sections.iter().map(|section| section.partition + 1).max().unwrap_or(0),
                sections,
            };
            let file = file::encode(&header, payload)?;
            let path = snapshot_path(&self.dir, self.version, self.epoch, written.parts);
            self.env.crash.pass(CrashPoint::BeforeSnapshot).await;
            if file::create(&self.env, &path, &file).await? == Outcome::Occupied {
                return Err(Error::new(class::FENCED, format!("{path} was written by another process")));
            }
            self.env.crash.pass(CrashPoint::AfterSnapshot).await;
            written.parts += 1;
            written.bytes += file.bytes;
        }
        Ok(written)
    }

    /// The sections of the next file. Partitions take turns, so that a reader can fill several at a time.
    fn encode_part(&mut self) -> Result<Vec<(Section, Bytes)>> {
        let mut sections = Vec::new();
        let mut bytes = 0;
        while bytes < self.part_bytes
            && let Some(mut source) = self.sources.pop_front()
        {
            if let Some((section, payload)) = source.encode_section(self.part_bytes)? {
                bytes += payload.len();
                sections.push((section, payload));
            }
            if !source.done {
                self.sources.push_back(source);
            }
        }
        Ok(sections)
    }
}

impl Source {
    /// The next rows as a section of about this size.
    fn encode_section(&mut self, max_bytes: usize) -> Result<Option<(Section, Bytes)>> {
        let layout = Arc::clone(&self.operator.layout);
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), layout.schema(), file::ipc_options()?)?;
        let mut rows = 0;
        loop {
            for batch in self.next_rows()? {
                rows += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
            if self.done || writer.get_ref().len() >= max_bytes {
                break;
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let bytes = Bytes::from(writer.into_inner()?);
        Ok(Some((self.operator.section(self.number, Content::Rows, rows, &bytes), bytes)))
    }

    /// The next rows, as many as are worked on at a time.
    fn next_rows(&mut self) -> Result<Vec<RecordBatch>> {
        let layout = &self.operator.layout;
        match &mut self.picture {
            Picture::Chunks(chunks) => {
                let partition = &self.operator.partitions[self.number];
                let Some(chunk) = chunks.next() else {
                    self.done = true;
                    return Ok(Vec::new());
                };
                // The partition is held only while the chunk is copied.
                let copy = lock(partition)?.copy_chunk(chunk);
                committed_rows(layout, &copy)
            }
            Picture::Rows(rows) => {
                let (mut group, mut bytes) = (Vec::new(), 0);
                while group.len() < BATCH_ROWS && bytes < GROUP_BYTES {
                    let Some(row) = rows.next().transpose()? else {
                        self.done = true;
                        break;
                    };
                    bytes += row.key.len() + row.value.len();
                    group.push(row);
                }
                layout.decode(group.iter().map(OwnedRow::bytes))
            }
        }
    }
}
