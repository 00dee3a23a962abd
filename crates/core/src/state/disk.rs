//! The partition of state on a local disk, for more rows than fit into memory.
//!
//! The rows lie in a log-structured merge tree ([fjall](https://docs.rs/fjall)): state is written much more than it is read from disk, by keys in no
//! order, and such a tree turns these writes into long sequential ones. What a batch changes stays in memory until it is committed, so
//! taking it back is free, and the tree holds committed rows only.
//!
//! The tree is a cache and never the truth: it is made anew from the checkpoint when the store is opened, nothing waits for it to be
//! durable, and where it fails it is thrown away. It does its own file I/O, in a directory that comes from outside.
//!
//! All partitions of a query share one tree, in which each has a prefix, and a second one for the times at which rows expire, whose keys
//! are the expiry and the key of the row.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, Slice};
use foldhash::fast::FixedState;

use super::backend::{Changes, DiskOptions, OwnedRow, Picture, Stored};
use super::row::{BATCH_BYTES, BATCH_ROWS, EncodedKeys, EncodedRows, KeyValue, Layout};
use super::{ScanPosition, StatePartition};
use crate::error::{Error, Result, class};
use crate::memory::MemoryShare;

/// What the tree can have as a key, less what stands before it.
const MAX_KEY_BYTES: usize = 65_000;

/// So many rows are given to the tree together.
const WRITE_ROWS: usize = 10_000;

/// The trees of a query.
pub(super) struct DiskStore {
    database: Database,
    rows: Keyspace,
    expiries: Keyspace,
    partitions: u64,
    /// Something went wrong with the files: what is in the trees is not known any more.
    broken: AtomicBool,
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskStore({:?})", self.rows.path())
    }
}

impl DiskStore {
    /// Empty trees for so many partitions. The files go with the last user.
    pub fn create(options: &DiskOptions, name: &str, partitions: usize) -> Result<Arc<Self>> {
        let directory = options.scratch.empty(name)?;
        // Two trees write, and each may have a full buffer that waits for the disk beside the one that is filled.
        let buffer = (options.cache_bytes / 4).clamp(4 << 20, 64 << 20);
        let open = || {
            let database = Database::builder(&directory)
                .cache_size(options.cache_bytes)
                .worker_threads(2)
                .temporary(true)
                // Nothing has to outlive the process.
                .manual_journal_persist(true)
                .open()?;
            let tree = || KeyspaceCreateOptions::default().max_memtable_size(buffer).manual_journal_persist(true);
            let (rows, expiries) = (database.keyspace("rows", tree)?, database.keyspace("expiries", tree)?);
            Ok((database, rows, expiries))
        };
        let (database, rows, expiries) = open().map_err(|error| failure(&error, &directory))?;
        Ok(Arc::new(Self { database, rows, expiries, partitions: partitions.max(1) as u64, broken: false.into() }))
    }

    /// Whether the files failed, so that the store has to be loaded anew from the checkpoint.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Bytes of memory of one partition's share.
    fn share(&self) -> u64 {
        (self.database.write_buffer_size() + self.database.cache_size()) / self.partitions
    }

    fn check<T>(&self, result: fjall::Result<T>) -> Result<T> {
        result.map_err(|error| {
            self.broken.store(true, Ordering::Relaxed);
            failure(&error, self.rows.path())
        })
    }
}

/// What went wrong with the files. It heals when the disk does: the trees are made anew from the checkpoint.
fn failure(error: &fjall::Error, path: &std::path::Path) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut class = class::STORAGE_UNAVAILABLE;
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            class = match io.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => class::DISK_FULL,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    class::STORAGE_PERMISSION_DENIED
                }
                _ => class,
            };
        }
        cause = inner.source();
    }
    Error::new(
        class,
        format!(
            "the state in {} failed ({error}): it is loaded anew from the checkpoint, nothing is lost; check that disk",
            path.display()
        ),
    )
}

/// A partition of state on disk.
#[derive(Debug)]
pub(super) struct DiskPartition {
    layout: Arc<Layout>,
    store: Arc<DiskStore>,
    /// Stands before all keys of the partition.
    prefix: [u8; 4],
    /// What the batch changed, by key with its prefix.
    changes: BTreeMap<Slice, Change>,
    /// What the last `get` found of keys that the batch has not changed: operators put what they got.
    read: HashMap<Slice, Option<Slice>, FixedState>,
    /// Rows now, and when the batch began.
    rows: u64,
    committed_rows: u64,
    /// No row in the tree expires before. Without it every look for due rows would pass over the traces of all that were removed.
    first_expiry: i64,
    /// Bytes in `changes`.
    changed_bytes: usize,
    /// Bytes in `read`.
    read_bytes: usize,
    /// What all this counts for in the memory of the job.
    memory: MemoryShare,
}

/// What became of a key in the batch.
#[derive(Debug)]
struct Change {
    /// The value when the batch began.
    before: Option<Slice>,
    /// The value now.
    now: Option<Slice>,
}

impl Change {
    fn is_change(&self) -> bool {
        self.before != self.now
    }
}

/// What a key and a value cost in the maps.
fn entry_bytes(key: &Slice, value: &Option<Slice>) -> usize {
    key.len() + value.as_ref().map_or(0, |value| value.len()) + 2 * size_of::<(Slice, Option<Slice>)>()
}

impl DiskPartition {
    /// An empty partition. The numbers of its operator and of itself tell its rows from those of others in the same trees.
    pub fn new(
        layout: Arc<Layout>,
        store: Arc<DiskStore>,
        (operator, number): (usize, usize),
        mut memory: MemoryShare,
    ) -> Result<Self> {
        let short = |what: usize| u16::try_from(what).map_err(|_| Error::bug(format!("{what} partitions of state")));
        let ([a, b], [c, d]) = (short(operator)?.to_be_bytes(), short(number)?.to_be_bytes());
        memory.resize(store.share())?;
        Ok(Self {
            layout,
            store,
            prefix: [a, b, c, d],
            changes: BTreeMap::new(),
            read: HashMap::default(),
            rows: 0,
            committed_rows: 0,
            first_expiry: i64::MAX,
            changed_bytes: 0,
            read_bytes: 0,
            memory,
        })
    }

    fn full_key(&self, key: &[u8]) -> Result<Slice> {
        if key.len() > MAX_KEY_BYTES {
            return Err(Error::new(
                class::STATE_UNSUPPORTED,
                format!(
                    "a key of state has {} bytes, on disk the limit is {MAX_KEY_BYTES}: make the grouping columns shorter (a hash of \
                     them, for example), or use `state: {{ backend: memory }}`",
                    key.len()
                ),
            ));
        }
        Ok(Slice::from([&self.prefix, key].concat()))
    }

    fn expiry_key(&self, expiry: i64, full_key: &[u8]) -> Slice {
        let order = (expiry ^ i64::MIN).to_be_bytes();
        Slice::from([&self.prefix[..], &order, &full_key[self.prefix.len()..]].concat())
    }

    fn expiry_of(&self, full_key: &[u8], value: &[u8]) -> Option<i64> {
        self.layout.expiry((&full_key[self.prefix.len()..], value))
    }

    /// The committed value. A copy: what the tree gives keeps a whole block in memory.
    fn stored(&self, full_key: &[u8]) -> Result<Option<Slice>> {
        let found = self.store.check(self.store.rows.get(full_key))?;
        Ok(found.map(|value| Slice::new(&value)))
    }

    /// The value of a key that the batch has not changed.
    fn before(&mut self, full_key: &Slice) -> Result<Option<Slice>> {
        match self.read.remove(full_key) {
            Some(value) => {
                self.read_bytes -= entry_bytes(full_key, &value);
                Ok(value)
            }
            None => self.stored(full_key),
        }
    }

    fn set(&mut self, full_key: Slice, now: Option<Slice>) -> Result<()> {
        let has = now.is_some();
        let had = match self.changes.get_mut(&full_key) {
            Some(change) => {
                self.changed_bytes += entry_bytes(&full_key, &now);
                self.changed_bytes -= entry_bytes(&full_key, &change.now);
                std::mem::replace(&mut change.now, now).is_some()
            }
            None => {
                let before = self.before(&full_key)?;
                if before == now {
                    return Ok(());
                }
                let had = before.is_some();
                self.changed_bytes += entry_bytes(&full_key, &before) + entry_bytes(&full_key, &now);
                self.changes.insert(full_key, Change { before, now });
                had
            }
        };
        self.rows = self.rows + u64::from(has) - u64::from(had);
        Ok(())
    }

    /// Writes the changes into the trees.
    fn write(&mut self) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        let mut batch = self.store.database.batch();
        for (key, Change { before, now }) in changes {
            if before == now {
                continue;
            }
            let was = before.and_then(|value| self.expiry_of(&key, &value));
            let is = now.as_ref().and_then(|value| self.expiry_of(&key, value));
            if was != is {
                if let Some(was) = was {
                    batch.remove(&self.store.expiries, self.expiry_key(was, &key));
                }
                if let Some(is) = is {
                    self.first_expiry = self.first_expiry.min(is);
                    batch.insert(&self.store.expiries, self.expiry_key(is, &key), Slice::empty());
                }
            }
            match now {
                Some(value) => batch.insert(&self.store.rows, key, value),
                None => batch.remove(&self.store.rows, key),
            }
            if batch.len() >= WRITE_ROWS {
                let full = std::mem::replace(&mut batch, self.store.database.batch());
                self.store.check(full.commit())?;
            }
        }
        self.store.check(batch.commit())
    }

    fn forget_read(&mut self) {
        // A table that was large once would be walked through for ever.
        self.read = HashMap::default();
        self.read_bytes = 0;
    }

    fn forget(&mut self) {
        self.changes.clear();
        self.changed_bytes = 0;
        self.forget_read();
        self.memory.settle(self.bytes());
    }

    /// Where keys that begin with these bytes, in this partition, end.
    fn end(&self) -> Bound<Vec<u8>> {
        match u32::from_be_bytes(self.prefix).checked_add(1) {
            Some(next) => Bound::Excluded(next.to_be_bytes().to_vec()),
            None => Bound::Unbounded,
        }
    }

    /// The rows of the tree behind a key of the partition (`None`: all), in the order of their keys, as they are at this moment.
    fn stored_rows(&self, after: Option<&[u8]>) -> impl Iterator<Item = Result<(Slice, Slice)>> + Send + 'static {
        let start = match after {
            Some(key) => Bound::Excluded(key.to_vec()),
            None => Bound::Included(self.prefix.to_vec()),
        };
        let store = Arc::clone(&self.store);
        self.store.rows.range((start, self.end())).map(move |entry| store.check(entry.into_inner()))
    }

    /// Keys of committed rows that expire at a time or before.
    fn stored_due(&mut self, at: i64) -> Result<Vec<Slice>> {
        if self.first_expiry > at {
            return Ok(Vec::new());
        }
        let start = Bound::Included(self.expiry_key(self.first_expiry, &self.prefix).to_vec());
        let end = match at.checked_add(1) {
            Some(next) => Bound::Excluded(self.expiry_key(next, &self.prefix).to_vec()),
            None => self.end(),
        };
        let mut due = Vec::new();
        let mut first = None;
        for entry in self.store.expiries.range((start, end)) {
            let entry = self.store.check(entry.key())?;
            let (expiry, key) = entry[self.prefix.len()..].split_at(size_of::<i64>());
            if first.is_none() {
                first = expiry.first_chunk().map(|bytes| i64::from_be_bytes(*bytes) ^ i64::MIN);
            }
            due.push(self.full_key(key)?);
        }
        // What lies between was removed by batches that are committed.
        self.first_expiry = first.unwrap_or(at.saturating_add(1));
        Ok(due)
    }
}

/// Rows that are decoded as soon as there are enough for a batch.
struct Decoding<'a> {
    partition: &'a DiskPartition,
    rows: Vec<(Slice, Slice)>,
    bytes: usize,
    batches: Vec<RecordBatch>,
}

impl<'a> Decoding<'a> {
    fn new(partition: &'a DiskPartition) -> Self {
        Self { partition, rows: Vec::new(), bytes: 0, batches: Vec::new() }
    }

    fn push(&mut self, key: Slice, value: Slice) -> Result<()> {
        self.bytes += key.len() + value.len();
        self.rows.push((key, value));
        if self.is_full() { self.flush() } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    fn flush(&mut self) -> Result<()> {
        let prefix = self.partition.prefix.len();
        let rows = self.rows.iter().map(|(key, value)| -> KeyValue<'_> { (&key[prefix..], value) });
        self.batches.extend(self.partition.layout.decode(rows)?);
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<RecordBatch>> {
        self.flush()?;
        Ok(self.batches)
    }
}

impl StatePartition for DiskPartition {
    fn get(&mut self, keys: &[ArrayRef]) -> Result<(UInt32Array, RecordBatch)> {
        let encoded = self.layout.encode_keys(keys)?;
        let mut found = vec![None; encoded.len()];
        // In the order of the tree, neighbours share blocks.
        let mut order: Vec<usize> = (0..encoded.len()).collect();
        order.sort_unstable_by_key(|row| encoded.key(*row));
        self.forget_read();
        for row in order {
            let key = self.full_key(encoded.key(row))?;
            found[row] = match self.changes.get(&key) {
                Some(change) => change.now.clone(),
                None => {
                    let value = self.stored(&key)?;
                    self.read_bytes += entry_bytes(&key, &value);
                    self.read.insert(key, value.clone());
                    value
                }
            };
        }
        self.memory.resize(self.bytes())?;
        let (places, values): (Vec<u32>, Vec<&[u8]>) =
            (0..).zip(&found).filter_map(|(row, value)| Some((row, value.as_deref()?))).unzip();
        let places = UInt32Array::from(places);
        // The stored keys are the given ones.
        let keys = if values.len() == encoded.len() {
            keys.to_vec()
        } else {
            keys.iter().map(|column| take(column, &places, None)).collect::<Result<_, _>>()?
        };
        let rows = self.layout.decode_with(keys, &values)?;
        Ok((places, rows))
    }

    fn put(&mut self, rows: &RecordBatch) -> Result<()> {
        let rows = self.layout.encode(rows)?;
        for row in 0..rows.keys.len() {
            let (key, value) = rows.row(row);
            self.set(self.full_key(key)?, Some(Slice::new(value)))?;
        }
        self.memory.resize(self.bytes())
    }

    fn remove(&mut self, keys: &[ArrayRef]) -> Result<()> {
        let keys = self.layout.encode_keys(keys)?;
        for row in 0..keys.len() {
            self.set(self.full_key(keys.key(row))?, None)?;
        }
        Ok(())
    }

    fn due(&mut self, at: i64) -> Result<Vec<RecordBatch>> {
        let stored = self.stored_due(at)?;
        let mut due = Decoding::new(self);
        for key in stored {
            // A key that the batch has changed is among the changes.
            if !self.changes.contains_key(&key)
                && let Some(value) = self.stored(&key)?
            {
                due.push(key, value)?;
            }
        }
        for (key, change) in &self.changes {
            if let Some(value) = &change.now
                && self.expiry_of(key, value).is_some_and(|expiry| expiry <= at)
            {
                due.push(key.clone(), value.clone())?;
            }
        }
        due.finish()
    }

    fn scan_next(&mut self, position: &mut ScanPosition) -> Result<Option<RecordBatch>> {
        let after = position.key.as_deref();
        let mut page = Decoding::new(self);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut changes = self.changes.range::<[u8], _>((start, Bound::Unbounded)).peekable();
        let mut last = None;
        let mut stored = self.stored_rows(after);
        let mut next_stored = stored.next().transpose()?;
        // Both are in the order of the keys; of a key that is in both the change counts.
        while page.batches.is_empty() {
            let (key, value) = match (&next_stored, changes.peek()) {
                (None, None) => break,
                (Some((stored_key, _)), changed) if changed.is_none_or(|(key, _)| stored_key < *key) => {
                    let Some((key, value)) = std::mem::replace(&mut next_stored, stored.next().transpose()?) else {
                        break;
                    };
                    (key, Some(value))
                }
                (found, _) => {
                    let Some((key, change)) = changes.next() else { break };
                    if found.as_ref().is_some_and(|(stored_key, _)| stored_key == key) {
                        next_stored = stored.next().transpose()?;
                    }
                    (key.clone(), change.now.clone())
                }
            };
            last = Some(key.clone());
            if let Some(value) = value {
                page.push(key, value)?;
            }
        }
        let mut batches = page.finish()?;
        if let Some(last) = last {
            position.key = Some(last.to_vec());
        }
        debug_assert!(batches.len() <= 1, "a page is one batch");
        Ok(batches.pop())
    }

    fn rows(&self) -> u64 {
        self.rows
    }

    fn bytes(&self) -> u64 {
        (self.changed_bytes + self.read_bytes) as u64 + self.store.share()
    }
}

impl Stored for DiskPartition {
    fn changed_records(&self) -> usize {
        self.changes.len()
    }

    fn changes(&self) -> Result<Changes> {
        let (mut rows, mut removed) = (Vec::new(), Vec::new());
        for (key, Change { before, now }) in self.changes.iter().filter(|(_, change)| change.is_change()) {
            let key = &key[self.prefix.len()..];
            match now {
                Some(value) => rows.push((key, &**value)),
                None if before.is_some() => removed.push(key),
                None => {}
            }
        }
        Ok(Changes { rows: self.layout.decode(rows)?, removed: self.layout.decode_keys(&removed)? })
    }

    fn commit(&mut self) -> Result<()> {
        self.write()?;
        self.forget();
        self.committed_rows = self.rows;
        Ok(())
    }

    fn abort(&mut self) {
        self.forget();
        self.rows = self.committed_rows;
    }

    fn load(&mut self, rows: &EncodedRows) -> Result<()> {
        for start in (0..rows.keys.len()).step_by(WRITE_ROWS) {
            let mut batch = self.store.database.batch();
            for row in start..rows.keys.len().min(start + WRITE_ROWS) {
                let (key, value) = rows.row(row);
                batch.insert(&self.store.rows, self.full_key(key)?, Slice::new(value));
            }
            self.store.check(batch.commit())?;
        }
        Ok(())
    }

    fn unload(&mut self, keys: &EncodedKeys) -> Result<()> {
        let mut batch = self.store.database.batch();
        for row in 0..keys.len() {
            batch.remove(&self.store.rows, self.full_key(keys.key(row))?);
        }
        self.store.check(batch.commit())
    }

    /// Counts the rows, and writes when they expire: while they were loaded, nobody looked what was there of their keys before.
    fn loaded(&mut self) -> Result<()> {
        let mut batch = self.store.database.batch();
        self.rows = 0;
        for row in self.stored_rows(None) {
            let (key, value) = row?;
            self.rows += 1;
            if let Some(expiry) = self.expiry_of(&key, &value) {
                self.first_expiry = self.first_expiry.min(expiry);
                batch.insert(&self.store.expiries, self.expiry_key(expiry, &key), Slice::empty());
                if batch.len() >= WRITE_ROWS {
                    let full = std::mem::replace(&mut batch, self.store.database.batch());
                    self.store.check(full.commit())?;
                }
            }
        }
        self.committed_rows = self.rows;
        self.store.check(batch.commit())
    }

    fn picture(&mut self, _pin: &Arc<()>) -> Picture {
        let prefix = self.prefix.len();
        Picture::Rows(Box::new(self.stored_rows(None).map(move |row| {
            let (key, value) = row?;
            Ok(OwnedRow { key: key[prefix..].into(), value: value[..].into() })
        })))
    }
}
