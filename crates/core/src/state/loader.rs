//! Reads a version of the state back.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Schema;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::convert::Conversion;
use super::file::{self, Content, Decoded, DeltaId, Kind, SCHEMA_VERSION, Section};
use super::manifest::{SnapshotRef, StateRef, delta_path, snapshot_path};
use super::partitions::{Operator, blocking, lock};
use super::store::PartitionOf;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result, class};

/// Reads versions back.
#[derive(Clone)]
pub(super) struct Loader {
    pub env: Env,
    pub dir: Path,
    pub operators: Arc<[Operator]>,
    pub partition_of: PartitionOf,
    /// How to read what an earlier form of the query wrote.
    pub conversion: Option<Arc<Conversion>>,
}

impl Loader {
    /// How many files are read or worked on at a time.
    fn concurrency(&self) -> usize {
        self.operators.first().map_or(1, |operator| operator.partitions.len()) + 1
    }

    /// Loads a snapshot, or nothing for the beginning; returns the bytes read. Its rows may come in any order.
    pub async fn load_snapshot(&self, snapshot: Option<&SnapshotRef>) -> Result<u64> {
        let Some(snapshot) = snapshot else { return Ok(0) };
        let (rows, bytes) = stream::iter(0..snapshot.parts)
            .map(|part| async move {
                let path = snapshot_path(&self.dir, snapshot.version, snapshot.epoch, part);
                let file = self.read(&path, (Kind::Snapshot, snapshot.version, snapshot.epoch, part)).await?;
                let rows: u64 = file.header.sections.iter().map(|section| section.rows).sum();
                let bytes = file.bytes;
                self.apply(&path, file).await?;
                Ok::<_, Error>((rows, bytes))
            })
            .buffer_unordered(self.concurrency())
            .try_fold((0, 0), |sum, part| async move { Ok((sum.0 + part.0, sum.1 + part.1)) })
            .await?;
        if rows != snapshot.rows {
            let path = snapshot_path(&self.dir, snapshot.version, snapshot.epoch, 0);
            return Err(file::damaged(&path, &format!("the snapshot has {rows} rows instead of {}", snapshot.rows)));
        }
        Ok(bytes)
    }

    /// Applies the deltas after a version, in order; returns their versions and sizes.
    pub async fn apply_deltas(&self, at: &StateRef, base: u64) -> Result<Vec<(u64, u64)>> {
        let mut files = stream::iter(at.deltas_behind(base))
            .map(|(version, epoch)| async move {
                let path = delta_path(&self.dir, version, epoch);
                let file = self.read(&path, (Kind::Delta, version, epoch, 0)).await;
                (path, file)
            })
            .buffered(self.concurrency());
        let mut chain = Vec::new();
        let mut known = base;
        let mut previous: Option<DeltaId> = None;
        let incomplete = |known: u64, error: Error| {
            if error.kind() != ErrorKind::Corrupt {
                return error;
            }
            Error::new(
                class::CHECKPOINT_CORRUPT,
                format!(
                    "{}; version {} of the state cannot be rebuilt without it, version {known} can: restore the file from a backup, \
                     or go back to the commit of that version",
                    error.message(),
                    at.version
                ),
            )
            .caused_by(error)
        };
        while let Some((path, file)) = files.next().await {
            let file = file.map_err(|error| incomplete(known, error))?;
            let id = DeltaId {
                version: file.header.version,
                epoch: file.header.epoch,
                crc32c: file.crc32c,
                bytes: file.bytes,
            };
            let follows = previous.is_none() || file.header.previous == previous;
            let is_newest = at.newest.is_none_or(|newest| newest.version != id.version || newest == id);
            if !follows || !is_newest {
                return Err(incomplete(known, file::damaged(&path, "it is not the file that the commit log means")));
            }
            self.apply(&path, file).await.map_err(|error| incomplete(known, error))?;
            chain.push((id.version, id.bytes));
            known = id.version;
            previous = Some(id);
        }
        Ok(chain)
    }

    /// Tells all partitions that their rows are complete; returns the rows of each operator.
    pub async fn finish(&self) -> Result<Vec<u64>> {
        let mut rows = Vec::new();
        for operator in self.operators.iter() {
            let loaded = operator.partitions.iter().map(|partition| {
                let partition = Arc::clone(partition);
                blocking(move || {
                    let mut partition = lock(&partition)?;
                    partition.loaded()?;
                    Ok(partition.rows())
                })
            });
            rows.push(try_join_all(loaded).await?.into_iter().sum());
        }
        Ok(rows)
    }

    async fn read(&self, path: &Path, expected: (Kind, u64, u64, u64)) -> Result<Decoded> {
        let bytes = file::read(&self.env, path).await?;
        let file = {
            let path = path.clone();
            blocking(move || file::decode(&path, bytes)).await?
        };
        let header = &file.header;
        if (header.kind, header.version, header.epoch, header.part) != expected {
            return Err(file::damaged(path, "it is another file under this name"));
        }
        Ok(file)
    }

    /// Applies a file, its sections side by side.
    async fn apply(&self, path: &Path, file: Decoded) -> Result<()> {
        let sections = file.header.sections.into_iter().zip(file.sections).map(|(section, bytes)| {
            let (loader, path) = (self.clone(), path.clone());
            blocking(move || loader.apply_section(&path, &section, &bytes))
        });
        try_join_all(sections).await?;
        Ok(())
    }

    fn apply_section(&self, path: &Path, section: &Section, bytes: &[u8]) -> Result<()> {
        let mismatch = |what: String| {
            Error::new(
                class::CHECKPOINT_MISMATCH,
                format!("{path}: {what}: use another checkpoint, or the query it was written by"),
            )
        };
        let conversion = self.conversion.as_deref();
        let origin = conversion.map(|conversion| (conversion, conversion.successor(section.operator)));
        let found = match &origin {
            Some((_, successor)) => {
                // Nobody goes on with it.
                let Some((number, origin)) = successor else { return Ok(()) };
                (origin.name == section.name && origin.keys == section.keys).then_some(*number)
            }
            None => self.operators.iter().position(|operator| {
                let spec = &operator.spec;
                (spec.operator, &spec.name, spec.keys) == (section.operator, &section.name, section.keys)
            }),
        };
        let (number, operator) = found.map(|number| (number, &self.operators[number])).ok_or_else(|| {
            mismatch(format!(
                "it has state of operator {} ({}, {} key columns), which the query does not have",
                section.operator, section.name, section.keys
            ))
        })?;
        if section.schema_version > SCHEMA_VERSION {
            return Err(Error::new(
                class::CHECKPOINT_NEWER,
                format!(
                    "{path} has schema version {}, this version reads up to {SCHEMA_VERSION}: use the version that wrote it",
                    section.schema_version
                ),
            ));
        }
        let layout = &operator.layout;
        let expected = match section.content {
            Content::Rows => layout.schema(),
            Content::Removed => layout.key_schema(),
        };
        let origin = origin.and_then(|(conversion, successor)| Some((conversion, successor?.1)));
        let check = |schema: &Schema| {
            let fits = match &origin {
                Some((_, origin)) => {
                    let width = if section.content == Content::Rows { origin.width } else { origin.keys };
                    schema.fields().len() == width
                }
                None => types(schema).eq(types(expected)),
            };
            if fits {
                return Ok(());
            }
            Err(mismatch(format!(
                "operator {} ({}) has the columns {}, the query keeps {}",
                section.operator,
                section.name,
                types(schema).collect::<Vec<_>>().join(", "),
                types(expected).collect::<Vec<_>>().join(", ")
            )))
        };
        file::decode_section(path, section, bytes, check, |batch| {
            let batch = match origin {
                Some((conversion, origin)) => conversion.convert(number, origin, &batch, expected)?,
                None => batch,
            };
            for (partition, rows) in self.spread(number, batch)? {
                let partition = &operator.partitions[partition];
                match section.content {
                    // Only the last step holds the partition.
                    Content::Rows => {
                        let rows = layout.encode(&rows)?;
                        lock(partition)?.load(&rows)?;
                    }
                    Content::Removed => {
                        let keys = layout.encode_keys(rows.columns())?;
                        lock(partition)?.unload(&keys)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Divides rows by the partition that they belong to.
    fn spread(&self, operator: usize, batch: RecordBatch) -> Result<Vec<(usize, RecordBatch)>> {
        let (keys, partitions) = (self.operators[operator].spec.keys, self.operators[operator].partitions.len());
        if keys == 0 || partitions == 1 || batch.num_rows() == 0 {
            return Ok(vec![(0, batch)]);
        }
        let targets = (self.partition_of)(operator, &batch.columns()[..keys], partitions)?;
        if targets.len() != batch.num_rows() {
            return Err(Error::bug(format!("{} partitions for {} rows", targets.len(), batch.num_rows())));
        }
        let mut rows = vec![Vec::new(); partitions];
        for (row, target) in (0u32..).zip(&targets) {
            rows.get_mut(*target as usize)
                .ok_or_else(|| Error::bug(format!("partition {target} of {partitions}")))?
                .push(row);
        }
        if let Some(only) = rows.iter().position(|rows| rows.len() == batch.num_rows()) {
            return Ok(vec![(only, batch)]);
        }
        rows.into_iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(partition, rows)| Ok((partition, take_record_batch(&batch, &UInt32Array::from(rows))?)))
            .collect()
    }
}

/// The types of all columns, for comparison and for people.
fn types(schema: &Schema) -> impl Iterator<Item = String> {
    schema.fields().iter().map(|field| field.data_type().to_string())
}
