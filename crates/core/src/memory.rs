//! The memory of a job: what state and batches hold, against a limit.
//!
//! Whoever holds memory that grows with the data reports it here before or right after it grows: partitions of state, the operators of a
//! plan (through DataFusion's memory pool), rows that wait to be merged. What is bounded by itself (buffers of connectors, the code) is not
//! counted, so a limit should leave it some room.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::ByteSize;
use crate::error::{Error, Result, class};

/// The memory that the queries of a job share.
#[derive(Default)]
pub struct MemoryBudget {
    limit: Option<u64>,
    used: AtomicU64,
    peak: AtomicU64,
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBudget({} of {:?} bytes)", self.used(), self.limit)
    }
}

impl MemoryBudget {
    /// A budget of so many bytes; `None`: counted only.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// The limit in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes held at a time since the last call; from now on it counts anew.
    pub fn take_peak(&self) -> u64 {
        self.peak.swap(self.used(), Ordering::Relaxed)
    }

    /// Counts bytes that are held already, whatever the limit says.
    pub fn grow(&self, bytes: u64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(used, Ordering::Relaxed);
    }

    /// Takes bytes, unless that is more than the limit.
    ///
    /// # Errors
    /// `MemoryLimit`; nothing is taken then.
    pub fn try_grow(&self, bytes: u64) -> Result<()> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(used) => Err(Error::new(
                class::MEMORY_LIMIT,
                format!(
                    "state and batch hold {} and need {} more, which is above `memory.limit` ({}): raise it, make windows, \
                     delays or keys fewer, or keep the state on disk with `state: {{ backend: disk }}`",
                    rough(used),
                    rough(bytes),
                    ByteSize(limit)
                ),
            )),
        }
    }

    /// Gives bytes back.
    pub fn shrink(&self, bytes: u64) {
        // More than was taken cannot come back; a count that wrapped around would block everything.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }
}

/// A size for people, to three digits or so.
fn rough(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// The share of one holder: what it reported last. Given back when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryShare {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl MemoryShare {
    /// A share of a budget, with nothing in it.
    pub fn of(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: budget.clone(), bytes: 0 }
    }

    /// The holder has so many bytes now.
    pub fn settle(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.budget.grow(bytes - self.bytes);
        } else {
            self.budget.shrink(self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// The same, where the holder can give up instead.
    ///
    /// # Errors
    /// `MemoryLimit` when that is more than before and above the limit; the bytes are counted all the same, until the holder lets go.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            self.settle(bytes);
            return Ok(());
        }
        let result = self.budget.try_grow(more);
        if result.is_err() {
            self.budget.grow(more);
        }
        self.bytes = bytes;
        result
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.budget.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_come_back() {
        let budget = MemoryBudget::new(Some(1_000));
        let (mut state, mut batch) = (MemoryShare::of(&budget), MemoryShare::of(&budget));
        state.resize(600).unwrap();
        batch.resize(400).unwrap();
        assert_eq!((budget.used(), budget.take_peak()), (1_000, 1_000));
        let error = batch.resize(401).unwrap_err();
        assert_eq!(error.class(), class::MEMORY_LIMIT);
        assert!(
            error.to_string().contains("hold 1000 B and need 1 B more, which is above `memory.limit` (1 kB)"),
            "{error}"
        );
        batch.resize(100).unwrap();
        drop(state);
        assert_eq!((budget.used(), budget.take_peak(), budget.take_peak()), (100, 1_001, 100));
        drop(batch);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn without_a_limit_it_only_counts() {
        let budget = MemoryBudget::new(None);
        MemoryShare::of(&budget).resize(u64::MAX / 2).unwrap();
        budget.try_grow(1 << 40).unwrap();
        assert_eq!(budget.used(), 1 << 40);
    }
}
