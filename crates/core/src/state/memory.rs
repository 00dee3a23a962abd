//! The memory-resident partition of state.
//!
//! Keys and values lie in an arena; a hash table of 8 bytes per entry finds them. A value is overwritten in its place where it has the
//! same size, and its former bytes are kept until the batch is committed or taken back. The work per batch is that of the rows it
//! touches, never that of the rows held; only when more than half of the memory is free places is the rest moved together.

use std::sync::{Arc, Weak};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::arena::{Arena, Flags, Location, Record, live_records};
use super::backend::{Changes, Picture, Stored};
use super::expiry::ExpiryIndex;
use super::row::{BATCH_BYTES, BATCH_ROWS, EncodedKeys, EncodedRows, KeyValue, Layout};
use super::{ScanPosition, StatePartition, StateSpec};
use crate::error::Result;
use crate::memory::MemoryShare;

/// Keys are looked up in groups of this size: large enough for the cache misses of a group to overlap, small enough for its
/// records to stay in the cache until they are written.
const GROUP: usize = 1_024;

/// Memory is moved together when at least this many bytes are free places, and more than are used.
const COMPACT_BYTES: usize = 4 << 20;

/// The log of changes keeps its memory from batch to batch up to this many bytes.
const KEEP_BYTES: usize = 1 << 20;

/// A partition of state in memory.
///
/// Changes of a batch are seen at once; [`MemoryPartition::commit`] makes them final and [`MemoryPartition::abort`] takes them back, each at
/// the cost of the changes. Durability is the [store](super::StateStore)'s.
#[derive(Debug)]
pub struct MemoryPartition {
    layout: Arc<Layout>,
    table: HashTable<Slot>,
    arena: Arena,
    expiry: ExpiryIndex,
    /// What happened since the last commit, in order. Places of removed records are only reused after the commit.
    log: Vec<Change>,
    /// The former values of [`Change::Replace`], one behind the other.
    former: Vec<u8>,
    /// While somebody holds the other end, records stay in the chunk where they are.
    pin: Weak<()>,
    /// What all this counts for in the memory of the job.
    share: MemoryShare,
}

/// An entry of the hash table.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    at: Location,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    /// A new record.
    Insert(Location),
    /// The first change of a value in its place; the former value has this many bytes.
    Replace(Location, u32),
    /// A value of another size: a new record, and the former one.
    Move(Location, Location),
    /// The record does not count any more.
    Remove(Location),
}

/// The table wants 64 bits and uses the lowest and the highest ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl MemoryPartition {
    /// An empty partition. Fails with the class `StateUnsupported` when a column has a type that cannot be kept (dictionaries, unions and
    /// run-end encoded columns, also inside others). `seed` makes the hashes of keys unpredictable.
    pub fn new(spec: &StateSpec, seed: u64) -> Result<Self> {
        Ok(Self::with_layout(Arc::new(Layout::new(spec, seed)?), MemoryShare::default()))
    }

    pub(super) fn with_layout(layout: Arc<Layout>, share: MemoryShare) -> Self {
        Self {
            layout,
            table: HashTable::new(),
            arena: Arena::default(),
            expiry: ExpiryIndex::default(),
            log: Vec::new(),
            former: Vec::new(),
            pin: Weak::new(),
            share,
        }
    }

    /// Makes room for this many rows.
    pub(super) fn reserve(&mut self, rows: usize) {
        self.table.reserve(rows, |slot| spread(slot.hash));
    }

    /// Makes the changes since the last commit final.
    pub fn commit(&mut self) {
        for change in &self.log {
            let written = match *change {
                Change::Insert(at) | Change::Replace(at, _) => at,
                Change::Move(at, former) => {
                    self.arena.free(former);
                    at
                }
                Change::Remove(at) => {
                    self.arena.free(at);
                    continue;
                }
            };
            let live = self.arena.record(written).flags.live;
            self.arena.set_flags(written, Flags { live, ..Flags::default() });
        }
        self.forget();
        if self.pin.strong_count() == 0 && self.arena.free_bytes() > self.arena.used_bytes().max(COMPACT_BYTES) {
            self.compact();
        } else if self.expiry.entries() > 2 * self.table.len() + GROUP {
            self.index_expiry();
        }
    }

    /// Takes back the changes since the last commit.
    pub fn abort(&mut self) {
        while let Some(change) = self.log.pop() {
            match change {
                Change::Insert(at) => {
                    self.take_slot(at);
                    self.arena.free(at);
                }
                Change::Replace(at, length) => {
                    let former = self.former.split_off(self.former.len() - length as usize);
                    self.arena.overwrite(at, &former);
                    self.revive(at, Flags { live: true, ..Flags::default() });
                }
                Change::Move(at, former) => {
                    if let Some(slot) = self.take_slot(at) {
                        self.table
                            .insert_unique(spread(slot.hash), Slot { at: former, ..slot }, |slot| spread(slot.hash));
                    }
                    self.arena.free(at);
                    let flags = self.arena.record(former).flags;
                    self.revive(former, Flags { live: true, ..flags });
                }
                Change::Remove(at) => {
                    let record = self.arena.record(at);
                    let (hash, flags) = (self.layout.hash(record.key), record.flags);
                    self.table.insert_unique(spread(hash), Slot { hash, at }, |slot| spread(slot.hash));
                    self.revive(at, Flags { live: true, ..flags });
                }
            }
        }
        self.forget();
    }

    /// A record counts again as it is. Its entry in the index of expiries may have been dropped as stale, so it gets one.
    fn revive(&mut self, at: Location, flags: Flags) {
        self.arena.set_flags(at, flags);
        if let Some(expiry) = self.layout.expiry(self.arena.record(at).bytes()) {
            self.expiry.insert(expiry, at);
        }
    }

    fn forget(&mut self) {
        self.log.clear();
        self.former.clear();
        self.log.shrink_to(KEEP_BYTES / size_of::<Change>());
        self.former.shrink_to(KEEP_BYTES);
        self.share.settle(StatePartition::bytes(self));
    }

    /// Takes a live record's entry out of the table.
    fn take_slot(&mut self, at: Location) -> Option<Slot> {
        let hash = self.layout.hash(self.arena.key(at));
        let entry = self.table.find_entry(spread(hash), |slot| slot.at == at).ok()?;
        Some(entry.remove().0)
    }

    fn find(&self, hash: u32, key: &[u8]) -> Option<Location> {
        let same = |slot: &Slot| slot.hash == hash && self.arena.key(slot.at) == key;
        self.table.find(spread(hash), same).map(|slot| slot.at)
    }

    /// The records of a range of keys. First all of them in the table, by their hashes alone, then all in the arena: in short loops the
    /// processor overlaps the cache misses of several keys.
    fn find_all(&self, keys: &EncodedKeys, range: std::ops::Range<usize>, found: &mut Vec<Option<Location>>) {
        let start = found.len();
        found.extend(range.clone().map(|row| {
            let hash = keys.hash(row);
            self.table.find(spread(hash), |slot| slot.hash == hash).map(|slot| slot.at)
        }));
        for (row, at) in range.zip(&mut found[start..]) {
            if at.is_some_and(|at| self.arena.key(at) != keys.key(row)) {
                *at = self.find(keys.hash(row), keys.key(row));
            }
        }
    }

    /// Inserts or replaces rows. Without `logged` the change is final at once: for loading.
    pub(super) fn put_encoded(&mut self, rows: &EncodedRows, logged: bool) -> Result<()> {
        let mut found = Vec::with_capacity(GROUP);
        for start in (0..rows.keys.len()).step_by(GROUP) {
            if start % (16 * GROUP) == 0 {
                self.share.resize(StatePartition::bytes(self))?;
            }
            let range = start..rows.keys.len().min(start + GROUP);
            found.clear();
            self.find_all(&rows.keys, range.clone(), &mut found);
            for (row, at) in range.zip(&found) {
                match at {
                    // Not live: a row of the same call has moved it.
                    Some(at) if self.arena.record(*at).flags.live => self.replace(*at, rows.row(row), logged)?,
                    _ => self.insert(rows.keys.hash(row), rows.row(row), logged)?,
                }
            }
        }
        self.share.resize(StatePartition::bytes(self))
    }

    fn insert(&mut self, hash: u32, row: KeyValue<'_>, logged: bool) -> Result<()> {
        let same = |slot: &Slot| slot.hash == hash && self.arena.key(slot.at) == row.0;
        match self.table.entry(spread(hash), same, |slot| spread(slot.hash)) {
            Entry::Occupied(entry) => {
                let at = entry.get().at;
                self.replace(at, row, logged)
            }
            Entry::Vacant(entry) => {
                let at = self.arena.insert(row, Flags { live: true, fresh: logged, changed: logged })?;
                entry.insert(Slot { hash, at });
                if logged {
                    self.log.push(Change::Insert(at));
                }
                if let Some(expiry) = self.layout.expiry(row) {
                    self.expiry.insert(expiry, at);
                }
                Ok(())
            }
        }
    }

    fn replace(&mut self, at: Location, row: KeyValue<'_>, logged: bool) -> Result<()> {
        let record = self.arena.record(at);
        if record.value == row.1 {
            return Ok(());
        }
        let flags = record.flags;
        let expired = self.layout.expiry(record.bytes());
        // Kept before it is overwritten; thrown away again where it turns out that the record moves.
        let length = record.value.len();
        let first = logged && !flags.changed;
        if first {
            self.former.extend_from_slice(record.value);
        }
        let moved = !self.arena.overwrite(at, row.1);
        let now_at = if moved {
            if first {
                self.former.truncate(self.former.len() - length);
            }
            let new = self.arena.insert(row, Flags { live: true, changed: logged, ..flags })?;
            let hash = self.layout.hash(row.0);
            if let Some(slot) = self.table.find_mut(spread(hash), |slot| slot.at == at) {
                slot.at = new;
            }
            if logged {
                self.arena.set_flags(at, Flags { live: false, ..flags });
                self.log.push(Change::Move(new, at));
            } else {
                self.arena.free(at);
            }
            new
        } else {
            if first {
                self.arena.set_flags(at, Flags { changed: true, ..flags });
                self.log.push(Change::Replace(at, length as u32));
            }
            at
        };
        if let Some(expiry) = self.layout.expiry(row)
            && (moved || expired != Some(expiry))
        {
            self.expiry.insert(expiry, now_at);
        }
        Ok(())
    }

    /// Removes keys. Without `logged` the change is final at once: for loading.
    pub(super) fn remove_encoded(&mut self, keys: &EncodedKeys, logged: bool) {
        for row in 0..keys.len() {
            let (hash, key) = (keys.hash(row), keys.key(row));
            let same = |slot: &Slot| slot.hash == hash && self.arena.key(slot.at) == key;
            let Ok(entry) = self.table.find_entry(spread(hash), same) else { continue };
            let at = entry.remove().0.at;
            if logged {
                let flags = self.arena.record(at).flags;
                self.arena.set_flags(at, Flags { live: false, ..flags });
                self.log.push(Change::Remove(at));
            } else {
                self.arena.free(at);
            }
        }
    }

    /// Moves the records together and builds everything that points at them anew. The memory of a chunk is given back as soon as
    /// its records are moved.
    fn compact(&mut self) {
        let former = std::mem::take(&mut self.arena);
        let mut table = HashTable::with_capacity(self.table.len());
        for chunk in former.into_chunks() {
            for record in live_records(&chunk) {
                // Cannot fail: there are at most half as many bytes as fitted before.
                let Ok(at) = self.arena.insert(record.bytes(), record.flags) else { continue };
                let hash = self.layout.hash(record.key);
                table.insert_unique(spread(hash), Slot { hash, at }, |slot: &Slot| spread(slot.hash));
            }
        }
        debug_assert_eq!(table.len(), self.table.len());
        self.table = table;
        self.index_expiry();
        self.share.settle(StatePartition::bytes(self));
    }

    fn index_expiry(&mut self) {
        self.expiry = ExpiryIndex::default();
        if self.layout.has_expiry() {
            for (at, record) in self.arena.live() {
                if let Some(expiry) = self.layout.expiry(record.bytes()) {
                    self.expiry.insert(expiry, at);
                }
            }
        }
    }
}

/// The rows in a copy of a chunk, without those that the running batch has changed.
pub(super) fn committed_rows(layout: &Layout, chunk: &[u8]) -> Result<Vec<RecordBatch>> {
    let records = live_records(chunk);
    layout.decode(records.filter(|record| !record.flags.changed).map(|record| record.bytes()))
}

impl StatePartition for MemoryPartition {
    fn get(&mut self, keys: &[ArrayRef]) -> Result<(UInt32Array, RecordBatch)> {
        let encoded = self.layout.encode_keys(keys)?;
        let mut found = Vec::with_capacity(encoded.len());
        self.find_all(&encoded, 0..encoded.len(), &mut found);
        let (places, values): (Vec<u32>, Vec<&[u8]>) =
            (0..).zip(&found).filter_map(|(row, at)| at.map(|at| (row, self.arena.record(at).value))).unzip();
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
        self.put_encoded(&rows, true)
    }

    fn remove(&mut self, keys: &[ArrayRef]) -> Result<()> {
        let keys = self.layout.encode_keys(keys)?;
        self.remove_encoded(&keys, true);
        Ok(())
    }

    fn due(&mut self, at: i64) -> Result<Vec<RecordBatch>> {
        let (arena, layout) = (&self.arena, &self.layout);
        let due = self.expiry.due(at, |at, expiry| {
            let current = |record: Record| record.flags.live && layout.expiry(record.bytes()) == Some(expiry);
            arena.record_if_any(at).is_some_and(current)
        });
        self.layout.decode(due.into_iter().map(|at| self.arena.record(at).bytes()))
    }

    fn scan_next(&mut self, position: &mut ScanPosition) -> Result<Option<RecordBatch>> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        for (next, record) in self.arena.live_from(position.place) {
            position.place = next;
            rows.push(record.bytes());
            bytes += record.key.len() + record.value.len();
            if rows.len() == BATCH_ROWS || bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(self.layout.decode(rows)?.pop())
    }

    fn rows(&self) -> u64 {
        self.table.len() as u64
    }

    fn bytes(&self) -> u64 {
        let log = self.log.capacity() * size_of::<Change>() + self.former.capacity();
        (self.table.allocation_size() + self.arena.allocated_bytes() + self.expiry.allocated_bytes() + log) as u64
    }
}

impl Stored for MemoryPartition {
    fn changed_records(&self) -> usize {
        self.log.len()
    }

    fn changes(&self) -> Result<Changes> {
        let mut removed = Vec::new();
        let mut rows = Vec::new();
        for change in &self.log {
            match *change {
                // A key is in the log several times when it was removed and came back, or moved; one of its records is live at most.
                Change::Insert(at) | Change::Replace(at, _) | Change::Move(at, _) => {
                    let record = self.arena.record(at);
                    if record.flags.live {
                        rows.push(record.bytes());
                    }
                }
                Change::Remove(at) => {
                    let record = self.arena.record(at);
                    if !record.flags.fresh && self.find(self.layout.hash(record.key), record.key).is_none() {
                        removed.push(record.key);
                    }
                }
            }
        }
        Ok(Changes { rows: self.layout.decode(rows)?, removed: self.layout.decode_keys(&removed)? })
    }

    fn commit(&mut self) -> Result<()> {
        Self::commit(self);
        Ok(())
    }

    fn abort(&mut self) {
        Self::abort(self);
    }

    fn load(&mut self, rows: &EncodedRows) -> Result<()> {
        self.put_encoded(rows, false)
    }

    fn unload(&mut self, keys: &EncodedKeys) -> Result<()> {
        self.remove_encoded(keys, false);
        Ok(())
    }

    fn loaded(&mut self) -> Result<()> {
        Ok(())
    }

    /// Until all ends of `pin` are dropped, no row leaves its chunk but by a change of a batch.
    fn picture(&mut self, pin: &Arc<()>) -> Picture {
        self.pin = Arc::downgrade(pin);
        Picture::Chunks(0..self.arena.chunks())
    }

    fn copy_chunk(&self, chunk: usize) -> Vec<u8> {
        self.arena.chunk(chunk).to_vec()
    }
}
