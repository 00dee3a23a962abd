//! From a job to what the supervisor runs: plans the SQL, compiles the expectations, opens storage and dead letters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use perennial_connectors::format;
use perennial_connectors::journal::LocalJournal;
use perennial_connectors::storage::{self, Lock, Storage, StorageOptions};
use perennial_core::checkpoint::SourceLog;
use perennial_core::control::Controls;
use perennial_core::crash::CrashPoints;
use perennial_core::dead_letter::{DeadLetters, FileDeadLetters, Journal};
use perennial_core::env::Env;
use perennial_core::error::{Error, ErrorKind, Result, ResultExt};
use perennial_core::expectation::{Expectation, Expectations};
use perennial_core::guarantee::{self, Computed};
use perennial_core::job::{JobSpec, QuerySpec, SourceSpec};
use perennial_core::memory::MemoryBudget;
use perennial_core::plan::QueryPlan;
use perennial_core::progress::Observer;
use perennial_core::sink::{OutputMode, Sink, SinkContext};
use perennial_core::source::{Source, SourceContext};
use perennial_core::state::{Backend, DiskOptions, StateOptions};
use perennial_core::table::{OpenTable, TableSpec};
use perennial_core::watermark::{OnLate, PerPartition};
use perennial_spark_checkpoint::Adopter;
use perennial_sql::{Deduplicate, Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind};

use crate::crash;
use crate::job::{Job, JobQuery, JobSource, JobTable};
use crate::job_file::StateBackend;
use crate::scratch::LocalScratch;
use crate::world;

/// What is wrong with a setting of a job: its path in the job file, and the error.
pub(crate) struct Fault {
    pub path: String,
    pub error: Error,
}

/// The fault of a setting.
fn fault(path: impl Into<String>) -> impl FnOnce(Error) -> Fault {
    let path = path.into();
    |error| Fault { path, error }
}

/// A job whose SQL is planned. It has touched nothing outside.
pub(crate) struct Planned {
    pub queries: Vec<QuerySpec>,
    /// What the queries share.
    pub memory: Arc<MemoryBudget>,
}

impl Planned {
    /// Plans all queries and compiles all expectations.
    pub async fn new(job: &Job) -> Result<Self, Fault> {
        let memory = MemoryBudget::new(job.memory.limit.map(|limit| limit.0));
        let planner = Planner::new(PlannerOptions {
            time_zone: job.time_zone.clone(),
            parallelism: job.parallelism,
            functions: job.functions.clone(),
            memory: memory.clone(),
        });
        let tables = tables_of(job);
        let mut queries = Vec::new();
        for (name, query) in &job.queries {
            queries.push(plan_query(job, &planner, &tables, name, query).await?);
        }
        Ok(Self { queries, memory })
    }
}

/// What queries can read.
fn tables_of(job: &Job) -> Vec<SourceTable> {
    let streams = job.sources.iter().map(|(name, source)| stream_table(name, source));
    streams.chain(job.tables.iter().map(|(name, table)| static_table(name, table))).collect()
}

fn stream_table(name: &str, source: &JobSource) -> SourceTable {
    SourceTable {
        name: name.to_owned(),
        schema: source.schema.clone(),
        watermark: source.watermark.as_ref().map(|watermark| SourceWatermark {
            column: watermark.column.clone(),
            delay_micros: i64::try_from(watermark.delay.0.as_micros()).unwrap_or(i64::MAX),
        }),
        deduplicate: source.deduplicate.as_ref().map(|deduplicate| Deduplicate {
            columns: deduplicate.columns.clone(),
            within_watermark: deduplicate.within_watermark,
        }),
        kind: TableKind::Stream,
    }
}

fn static_table(name: &str, table: &JobTable) -> SourceTable {
    SourceTable {
        name: name.to_owned(),
        schema: table.schema.clone(),
        watermark: None,
        deduplicate: None,
        kind: TableKind::Static,
    }
}

async fn plan_query(
    job: &Job,
    planner: &Planner,
    tables: &[SourceTable],
    name: &str,
    query: &JobQuery,
) -> Result<QuerySpec, Fault> {
    let plan =
        planner.plan(&query.sql, tables, query.output_mode).await.map_err(fault(format!("queries.{name}.sql")))?;
    let mut sources: Vec<SourceSpec> = Vec::new();
    let mut static_tables: Vec<TableSpec> = Vec::new();
    for input in plan.inputs() {
        let known = sources.iter().map(|source| &source.name).chain(static_tables.iter().map(|table| &table.name));
        if known.into_iter().any(|name| *name == input.source) {
            continue;
        }
        if let Some(table) = job.tables.get(&input.source) {
            static_tables.push(table_spec(&input.source, table));
            continue;
        }
        let source = job.sources.get(&input.source);
        let unknown = || Error::bug(format!("the plan reads {}, which the job does not have", input.source));
        let source = source.ok_or_else(unknown).map_err(fault(format!("queries.{name}.sql")))?;
        sources.push(source_spec(planner, &input.source, source)?);
    }
    let late = match query.late {
        OnLate::Drop => None,
        OnLate::DeadLetter => Some(plan.late_rows().await.map_err(fault(format!("queries.{name}.late")))?),
    };
    Ok(QuerySpec {
        name: name.to_owned(),
        plan,
        sources,
        tables: static_tables,
        sink: query.sink.clone(),
        output_mode: query.output_mode,
        late,
        watermark_policy: query.watermark_policy,
        watermark_after_restart: query.watermark_after_restart,
        no_data_batches: query.no_data_batches,
        on_error: query.on_error.clone().or(&job.on_error),
    })
}

fn table_spec(name: &str, table: &JobTable) -> TableSpec {
    let (format, schema) = (table.format.clone(), table.schema.clone());
    TableSpec {
        name: name.to_owned(),
        schema: schema.clone(),
        factory: table.factory.clone(),
        decoder: Arc::new(move |columns| format::decoder(&format, &schema, columns)),
        refresh: table.refresh,
    }
}

fn source_spec(planner: &Planner, name: &str, source: &JobSource) -> Result<SourceSpec, Fault> {
    let mut rules = Vec::new();
    for (rule, expectation) in &source.expectations {
        let check = planner.predicate(&expectation.check, &source.schema);
        let check = check.map_err(fault(format!("sources.{name}.expectations.{rule}.check")))?;
        rules.push(Expectation { name: rule.clone(), check, on_violation: expectation.on_violation });
    }
    let per_partition = source.watermark.as_ref().filter(|watermark| watermark.per_partition).and_then(|watermark| {
        let idle_after = watermark.idle_after.map(|after| i64::try_from(after.0.as_millis()).unwrap_or(i64::MAX));
        Some(PerPartition { column: source.schema.index_of(&watermark.column).ok()?, idle_after_ms: idle_after })
    });
    let (format, schema) = (source.format.clone(), source.schema.clone());
    Ok(SourceSpec {
        name: name.to_owned(),
        schema: source.schema.clone(),
        factory: source.factory.clone(),
        decoder: Arc::new(move |columns| format::decoder(&format, &schema, columns)),
        expectations: Expectations::new(&source.schema, rules),
        per_partition,
    })
}

impl Job {
    /// Its queries, planned. Nothing outside is touched.
    ///
    /// # Errors
    /// Where a setting or the SQL is wrong.
    pub async fn queries(&self) -> Result<Vec<QuerySpec>> {
        Ok(Planned::new(self).await.map_err(|fault| fault.error.at(fault.path))?.queries)
    }

    /// The job, planned and wired, in a world of one's own: for tests and simulations, which run its batches themselves with
    /// [`Query`](perennial_core::query::Query). The storage of `env` is the checkpoint.
    ///
    /// # Errors
    /// Where a setting or the SQL is wrong.
    pub async fn plan(
        &self,
        env: Env,
        dead_letters: Arc<dyn DeadLetters>,
        observer: Arc<dyn Observer>,
    ) -> Result<JobSpec> {
        let planned = Planned::new(self).await.map_err(|fault| fault.error.at(fault.path))?;
        let state = StateOptions { memory: planned.memory.clone(), ..StateOptions::default() };
        Ok(spec(self, planned, env, dead_letters, observer, state))
    }
}

fn spec(
    job: &Job,
    planned: Planned,
    env: Env,
    dead_letters: Arc<dyn DeadLetters>,
    observer: Arc<dyn Observer>,
    state: StateOptions,
) -> JobSpec {
    JobSpec {
        name: job.name.clone(),
        version: job.version.clone(),
        queries: planned.queries,
        memory: planned.memory,
        pace: job.backpressure,
        trigger: job.trigger.into(),
        dead_letters,
        retry: job.retry,
        breaker: job.circuit_breaker,
        guarantee: job.guarantee,
        controls: Arc::default(),
        batches_to_retain: job.batches_to_retain,
        accept_state_changes: job.accept_state_changes,
        state,
        adopt: Some(Arc::new(Adopter)),
        observer,
        env,
    }
}

/// A job with its storage open: checkpoint and dead letters.
#[derive(Clone)]
pub(crate) struct Opened {
    pub env: Env,
    pub dead_letters: Arc<dyn DeadLetters>,
    pub controls: Arc<Controls>,
    /// The directory of the checkpoint, where it is on a local disk.
    pub local: Option<PathBuf>,
}

impl Opened {
    /// Opens checkpoint and dead letters. Nobody else is kept off them yet.
    pub fn new(job: &Job) -> Result<Self> {
        let checkpoint = open_storage(&job.checkpoint, "checkpoint")?;
        let mut env = world::env(checkpoint.store);
        env.crash = crash::from_environment()?;
        let dead_letters = job.dead_letters_with(env.crash.clone())?;
        Ok(Self { env, dead_letters, controls: Arc::default(), local: checkpoint.local })
    }

    /// Keeps other processes off a checkpoint on a local disk.
    pub fn lock(&self) -> Result<Option<Lock>> {
        self.local.as_deref().map(storage::lock).transpose()
    }

    /// What the supervisor runs.
    pub fn spec(&self, job: &Job, planned: Planned, observer: Arc<dyn Observer>) -> Result<JobSpec> {
        let state = state(job, &planned.memory)?;
        let spec = spec(job, planned, self.env.clone(), self.dead_letters.clone(), observer, state);
        Ok(JobSpec { controls: self.controls.clone(), ..spec })
    }
}

fn open_storage(path: &str, setting: &str) -> Result<Storage> {
    storage::open(path, &StorageOptions::default()).at(|| format!("{setting}: {path}"))
}

fn state(job: &Job, memory: &Arc<MemoryBudget>) -> Result<StateOptions> {
    let backend = match job.state.backend {
        StateBackend::Memory => Backend::Memory,
        StateBackend::Disk => {
            let directory = job.state.directory.clone().unwrap_or_else(|| format!("./state/{}", job.name));
            let scratch = match LocalScratch::new(Path::new(&directory)) {
                // The process that this one takes over from stands still and has it: there is one beside it.
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    LocalScratch::new(Path::new(&format!("{directory}.standby")))
                }
                scratch => scratch,
            };
            let scratch = scratch.at(|| format!("state.directory: {directory}"))?;
            Backend::Disk(DiskOptions { scratch: Arc::new(scratch), cache_bytes: job.state.cache.0 })
        }
    };
    Ok(StateOptions { backend, memory: memory.clone(), ..Default::default() })
}

impl Job {
    /// The dead letters of the job, for looking into them.
    ///
    /// # Errors
    /// Where they cannot be opened.
    pub fn open_dead_letters(&self) -> Result<Arc<dyn DeadLetters>> {
        self.dead_letters_with(CrashPoints::default())
    }

    fn dead_letters_with(&self, crash: CrashPoints) -> Result<Arc<dyn DeadLetters>> {
        let retention = self.dead_letters.retention.0;
        if let Some(postgres) = &self.dead_letters.postgres {
            return postgres.open(&self.name, retention, crash).at(|| "dead_letters.postgres".into());
        }
        let path = self.dead_letters.directory().unwrap_or_default();
        let storage = open_storage(path, "dead_letters.path")?;
        let journal: Arc<dyn Journal> = match &storage.local {
            Some(dir) => Arc::new(LocalJournal::new(dir)),
            None => Arc::new(storage.store.clone()),
        };
        let letters = FileDeadLetters::new(storage.store, journal, path);
        Ok(Arc::new(letters.with_retention(retention).with_crash_points(crash)))
    }

    /// The world in which the job's checkpoint is, for leaving requests in it.
    pub fn checkpoint_env(&self) -> Result<Env> {
        Ok(world::env(open_storage(&self.checkpoint, "checkpoint")?.store))
    }

    /// A plan of other SQL over the job's sources, in one partition.
    pub(crate) async fn plan_sql(&self, sql: &str) -> Result<Arc<dyn QueryPlan>> {
        let planner = Planner::new(PlannerOptions {
            time_zone: self.time_zone.clone(),
            parallelism: 1,
            functions: self.functions.clone(),
            memory: Arc::default(),
        });
        planner.plan(sql, &tables_of(self), OutputMode::Append).await
    }
}

/// The sources and the sink of a query, opened in a world without a checkpoint: to look at, not to read from.
pub(crate) struct Looked {
    pub sources: Vec<(String, Box<dyn Source>)>,
    pub tables: Vec<OpenTable>,
    pub sink: Box<dyn Sink>,
}

impl Looked {
    pub fn new(job: &Job, query: &QuerySpec) -> Result<Self, Fault> {
        let storage: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let env = world::env(storage);
        let mut sources = Vec::new();
        for (source, gate) in query.sources.iter().zip(query.gates().map_err(fault(format!("queries.{}", query.name)))?)
        {
            let context = SourceContext {
                env: env.clone(),
                job: job.name.clone(),
                query: query.name.clone(),
                source: source.name.clone(),
                schema: gate.schema(),
                rows: gate.takes_rows(),
                log: SourceLog::new(env.clone(), "check".into()),
            };
            let opened = source.factory.open(context).map_err(fault(format!("sources.{}", source.name)))?;
            sources.push((source.name.clone(), opened));
        }
        let tables = query.open_tables(&env, &job.name).map_err(fault(format!("queries.{}", query.name)))?;
        let context = SinkContext {
            query_id: env.uuid(),
            env,
            job: job.name.clone(),
            query: query.name.clone(),
            schema: query.plan.schema(),
            output_mode: query.output_mode,
        };
        let sink = query.sink.open(context).map_err(fault(format!("queries.{}.sink", query.name)))?;
        Ok(Self { sources, tables, sink })
    }

    /// The guarantee of the query; an error where the job demands more.
    pub fn guarantee(&self, job: &Job, query: &QuerySpec) -> Result<Computed, Fault> {
        let replays = self.sources.iter().map(|(name, source)| (name.as_str(), source.replay()));
        let sink = (query.name.as_str(), self.sink.delivery());
        let computed =
            guarantee::compute(replays, query.plan.deterministic(), query.changing_tables(), sink, query.output_mode);
        computed.demand(job.guarantee).map_err(fault("guarantee"))?;
        Ok(computed)
    }
}
