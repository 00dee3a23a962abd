//! A job, ready to run: what the job file or the builder makes, and what the supervisor takes.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::control::Controls;
use crate::dead_letter::DeadLetters;
use crate::decode::Decoder;
use crate::env::Env;
use crate::error::Result;
use crate::expectation::Expectations;
use crate::guarantee::Guarantee;
use crate::intake::Gate;
use crate::memory::MemoryBudget;
use crate::on_error::OnError;
use crate::pace::PaceSettings;
use crate::plan::{FindLate, QueryPlan};
use crate::policy::{BreakerPolicy, RetryPolicy};
use crate::progress::Observer;
use crate::sink::{OutputMode, SinkFactory};
use crate::source::SourceFactory;
use crate::state::StateOptions;
use crate::table::{OpenTable, Refresh, TableSpec};
use crate::watermark::{PerPartition, WatermarkAfterRestart, WatermarkPolicy};

/// When the next batch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// At multiples of an interval; at once when the batch before took longer. Zero: as soon as there is something new.
    Every(Duration),
    /// Process what is there at the start, in as many batches as the limits make, then end.
    AvailableNow,
}

/// Makes a decoder for the columns (indexes of the source's schema, ascending) that a query uses.
pub type DecoderFactory = Arc<dyn Fn(&[usize]) -> Result<Arc<dyn Decoder>> + Send + Sync>;

/// A source of a job.
#[derive(Clone)]
pub struct SourceSpec {
    /// Its name.
    pub name: String,
    /// All columns, as declared.
    pub schema: SchemaRef,
    /// Where records come from.
    pub factory: Arc<dyn SourceFactory>,
    /// How they become rows.
    pub decoder: DecoderFactory,
    /// What must hold for the rows.
    pub expectations: Expectations,
    /// How the watermark follows from those of the source's partitions, where it does.
    pub per_partition: Option<PerPartition>,
}

/// A query of a job.
#[derive(Clone)]
pub struct QuerySpec {
    /// Its name: also the directory of its checkpoint.
    pub name: String,
    /// The planned SQL.
    pub plan: Arc<dyn QueryPlan>,
    /// The sources that the plan reads, each once, in the order of its inputs.
    pub sources: Vec<SourceSpec>,
    /// The static tables that the plan reads, each once.
    pub tables: Vec<TableSpec>,
    /// Where rows go.
    pub sink: Arc<dyn SinkFactory>,
    /// Which rows.
    pub output_mode: OutputMode,
    /// How several watermarks become one.
    pub watermark_policy: WatermarkPolicy,
    /// What happens with errors of which class.
    pub on_error: OnError,
    /// What tells the rows that were late, where they go to the dead letters.
    pub late: Option<Arc<dyn FindLate>>,
    /// What a restart does to the watermarks of the inputs.
    pub watermark_after_restart: WatermarkAfterRestart,
    /// Whether a batch without data follows one that moved the watermark, where the plan can make use of it.
    pub no_data_batches: bool,
}

impl QuerySpec {
    /// One gate per source, for all its appearances in the plan.
    pub fn gates(&self) -> Result<Vec<Arc<Gate>>> {
        let gate = |source: &SourceSpec| {
            let appearances = self.plan.inputs().iter().filter(|input| input.source == source.name);
            Ok(Arc::new(Gate::new(source, appearances.flat_map(|input| input.columns.iter().copied()))?))
        };
        self.sources.iter().map(gate).collect()
    }

    /// Opens the static tables.
    pub fn open_tables(&self, env: &Env, job: &str) -> Result<Vec<OpenTable>> {
        let open = |table: &TableSpec| {
            let appearances = self.plan.inputs().iter().filter(|input| input.is_static && input.source == table.name);
            table.open(env, job, &self.name, appearances)
        };
        self.tables.iter().map(open).collect()
    }

    /// The tables that may have other rows when a batch is run again.
    pub fn changing_tables(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().filter(|table| table.refresh != Refresh::Never).map(|table| table.name.as_str())
    }
}

/// Takes over checkpoints that another engine wrote.
#[async_trait]
pub trait Adopt: Send + Sync {
    /// Looks at the checkpoint of a query before the query opens it. Where another engine wrote it last, it becomes one that the query can go
    /// on from; a fresh one, and one of ours, stays as it is.
    async fn adopt(&self, job: &JobSpec, query: &QuerySpec) -> Result<()>;
}

/// A job.
#[derive(Clone)]
pub struct JobSpec {
    /// Its name.
    pub name: String,
    /// Its version, for dead letters and people.
    pub version: String,
    /// The world; its storage is the checkpoint.
    pub env: Env,
    /// Its queries, which fail and recover apart.
    pub queries: Vec<QuerySpec>,
    /// When batches begin.
    pub trigger: Trigger,
    /// Where dead letters go.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// How failures are tried again.
    pub retry: RetryPolicy,
    /// When to stop knocking.
    pub breaker: BreakerPolicy,
    /// The guarantee that every query must give, if one is demanded.
    pub guarantee: Option<Guarantee>,
    /// How many batches can be rewound: logs and state of older ones are removed.
    pub batches_to_retain: u64,
    /// Whether a query that changed may drop state that it cannot keep.
    pub accept_state_changes: bool,
    /// How state is kept.
    pub state: StateOptions,
    /// What state and batches may hold.
    pub memory: Arc<MemoryBudget>,
    /// How the size of batches follows their time, where it does.
    pub pace: Option<PaceSettings>,
    /// What people tell it to do while it runs.
    pub controls: Arc<Controls>,
    /// What takes over checkpoints of another engine, if anything does.
    pub adopt: Option<Arc<dyn Adopt>>,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}
