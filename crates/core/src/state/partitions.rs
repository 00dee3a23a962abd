//! The partitions of a query's operators, in memory or on disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::path::Path;
use tokio::runtime::RuntimeFlavor;

use super::StateSpec;
use super::backend::{Backend, Stored};
use super::disk::{DiskPartition, DiskStore};
use super::file::{self, Content, SCHEMA_VERSION, Section};
use super::memory::MemoryPartition;
use super::row::Layout;
use super::store::StateOptions;
use crate::error::{Error, Result};
use crate::memory::MemoryShare;

pub(super) type Partition = Arc<Mutex<dyn Stored>>;

/// What an operator keeps, and how its rows are encoded.
pub(super) type Format = (StateSpec, Arc<Layout>);

/// The state of one operator.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    pub spec: StateSpec,
    pub layout: Arc<Layout>,
    pub partitions: Vec<Partition>,
}

/// The state of all operators of a query.
#[derive(Debug, Default)]
pub(super) struct Operators {
    pub list: Vec<Operator>,
    /// What the partitions share when they are on disk.
    disk: Option<Arc<DiskStore>>,
}

impl Operators {
    /// Operators without rows, in so many partitions. `rows` tells how many each will have; it is a hint that may be wrong. `name` is a
    /// name for the files that nobody else has.
    pub fn empty(
        options: &StateOptions,
        name: &Path,
        formats: &[Format],
        partitions: usize,
        rows: &[u64],
    ) -> Result<Self> {
        let disk = match &options.backend {
            Backend::Disk(options) if !formats.is_empty() => {
                Some(DiskStore::create(options, name.as_ref(), partitions * formats.len())?)
            }
            _ => None,
        };
        let partition = |operator: usize, number: usize| -> Result<Partition> {
            let layout = Arc::clone(&formats[operator].1);
            let memory = MemoryShare::of(&options.memory);
            if let Some(disk) = &disk {
                return Ok(Arc::new(Mutex::new(DiskPartition::new(
                    layout,
                    Arc::clone(disk),
                    (operator, number),
                    memory,
                )?)));
            }
            let share = rows.get(operator).copied().unwrap_or_default().min(1 << 26) as usize / partitions;
            let mut partition = MemoryPartition::with_layout(layout, memory);
            partition.reserve(share + share / 16);
            Ok(Arc::new(Mutex::new(partition)))
        };
        let operator = |(operator, (spec, layout)): (usize, &Format)| {
            let partitions = (0..partitions).map(|number| partition(operator, number)).collect::<Result<_>>()?;
            Ok(Operator { spec: spec.clone(), layout: Arc::clone(layout), partitions })
        };
        let list = formats.iter().enumerate().map(operator).collect::<Result<_>>()?;
        Ok(Self { list, disk })
    }

    /// All partitions of all operators.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.list.iter().flat_map(|operator| &operator.partitions)
    }

    /// Whether a disk failed, so that what is in the partitions is not known any more.
    pub fn are_broken(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.is_broken())
    }
}

impl Operator {
    pub fn section(&self, partition: usize, content: Content, rows: u64, bytes: &Bytes) -> Section {
        Section {
            operator: self.spec.operator,
            name: self.spec.name.clone(),
            partition,
            content,
            keys: self.spec.keys,
            schema_version: SCHEMA_VERSION,
            rows,
            bytes: bytes.len() as u64,
        }
    }

    /// What the batch changed in a partition, encoded.
    pub fn encode_changes(&self, number: usize, partition: &Partition) -> Result<Vec<(Section, Bytes)>> {
        let changes = lock(partition)?.changes()?;
        let mut sections = Vec::new();
        for (content, schema, batches) in [
            (Content::Rows, self.layout.schema(), changes.rows),
            (Content::Removed, self.layout.key_schema(), changes.removed),
        ] {
            if !batches.is_empty() {
                let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
                let bytes = file::encode_section(schema, &batches)?;
                sections.push((self.section(number, content, rows, &bytes), bytes));
            }
        }
        Ok(sections)
    }
}

/// A partition, for changing or writing it. A thread that panicked may have left it half changed.
pub(super) fn lock(partition: &Partition) -> Result<MutexGuard<'_, dyn Stored + 'static>> {
    partition.lock().map_err(|_| {
        Error::bug("a partition of the state was left behind by a panic: the query must be loaded from its checkpoint")
    })
}

/// A partition, where it does not matter whether a thread panicked with it: the next [`lock`] fails.
pub(super) fn peek(partition: &Partition) -> MutexGuard<'_, dyn Stored + 'static> {
    partition.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work that takes the processor for long on a thread that may be blocked. A runtime of one thread does it itself: it has no other
/// core to give it to, and what happens in it stays in one order.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if tokio::runtime::Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        tokio::task::yield_now().await;
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::bug("work on the state did not end").caused_by(error)),
    }
}
