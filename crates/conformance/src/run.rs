//! Running a case: the real planner, operators, state store, checkpoint and batch loop, in a simulated world.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::FutureExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use perennial_core::dead_letter::{DeadLetters, FileDeadLetters};
use perennial_core::env::Env;
use perennial_core::error::{Error, class};
use perennial_core::job::JobSpec;
use perennial_core::progress::{BatchReport, Observers};
use perennial_core::query::{Query, Step as Ran};
use perennial_core::state::{Backend, DiskOptions, StateOptions};
use perennial_core::watermark::WatermarkAfterRestart;
use perennial_sim::scratch::TemporaryScratch;
use perennial_sim::world;

use crate::case::{Case, Step};
use crate::compare;
use crate::job::{Outside, job};

/// More batches than this without new input, and the query is taken to run for ever.
const MOST_BATCHES: usize = 100;

/// How long a case may take.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Where state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StateBackend {
    /// In memory.
    #[default]
    Memory,
    /// On disk.
    Disk,
}

/// How cases are run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Stop the query and restore it from its checkpoint after every batch.
    pub restart_every_batch: bool,
    /// Where state is kept.
    pub state_backend: StateBackend,
    /// Compare also what an implementation may choose: the counts of single operators, the names of error conditions.
    pub details: bool,
}

/// A case that gave what Spark gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// With the options that were asked for.
    AsAsked,
    /// Only because the restarts that Spark made forget the watermarks of the single sources, as Spark's did.
    Forgetful,
}

/// Runs a case. The error tells the first difference.
///
/// Restarts that are recorded forget the watermarks of single sources as Spark does. With `restart_every_batch` no restart forgets
/// anything; a case that then differs, and can differ for that reason, is run once more with the recorded restarts forgetful.
pub async fn run(case: &Case, options: Options) -> Result<Passed, String> {
    if !options.restart_every_batch {
        return once(case, options, WatermarkAfterRestart::Spark).await.map(|()| Passed::AsAsked);
    }
    match once(case, options, WatermarkAfterRestart::Keep).await {
        Err(_) if records_forgetting(case) => {
            once(case, options, WatermarkAfterRestart::Spark).await.map(|()| Passed::Forgetful)
        }
        result => result.map(|()| Passed::AsAsked),
    }
}

/// Whether Spark was restarted while it had several watermarks to forget.
fn records_forgetting(case: &Case) -> bool {
    let watermarks = case.sources.values().filter(|source| source.watermark.is_some()).count();
    watermarks > 1 && !(case.restart_before_step.is_empty() && case.fail_sink_in_step.is_empty())
}

async fn once(case: &Case, options: Options, recorded_restarts: WatermarkAfterRestart) -> Result<(), String> {
    let run = AssertUnwindSafe(in_new_world(case, options, recorded_restarts)).catch_unwind();
    match tokio::time::timeout(TIME_LIMIT, run).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(format!("it panicked: {}", panic_text(panic.as_ref()))),
        Err(_) => Err(format!("it is not done after {} seconds", TIME_LIMIT.as_secs())),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

async fn in_new_world(case: &Case, options: Options, recorded_restarts: WatermarkAfterRestart) -> Result<(), String> {
    let world = World::new(case, options.state_backend).map_err(|error| show(&error))?;
    if case.is_refused() {
        return refused(case, world, options).await;
    }
    let mut running = match Running::start(world, WatermarkAfterRestart::Keep).await {
        Ok(running) => running,
        // What Spark only notices in the first batch, the check here says before: then it must be the same thing.
        Err(refusal) => {
            let same = case.stops_at_once().is_some_and(|condition| refusal.to_string().contains(condition));
            return if same { Ok(()) } else { Err(show(&refusal)) };
        }
    };
    compare::schema(case, &running.spec.queries[0].plan.schema())?;
    for (number, step) in case.steps.iter().enumerate() {
        let restarts = Restarts {
            before_step: case.restart_before_step.contains(&number),
            after_sink_failure: case.fail_sink_in_step.contains(&number),
            recorded: recorded_restarts,
            every_batch: options.restart_every_batch,
        };
        let ran = running.step(step, restarts).await.map_err(|error| format!("step {number}: {error}"))?;
        compare::step(case, step, &ran, options.details).map_err(|error| format!("step {number}: {error}"))?;
    }
    Ok(())
}

/// A query that Spark refuses, at the latest when its first batch is planned.
async fn refused(case: &Case, world: World<'_>, options: Options) -> Result<(), String> {
    let refusal = match Running::start(world, WatermarkAfterRestart::Keep).await {
        Err(refusal) => refusal,
        Ok(mut running) => {
            let mut refusal = None;
            for step in &case.steps {
                refusal = refusal.or(running.step(step, Restarts::default()).await?.error);
            }
            let said = || case.error_message_first_line.clone().unwrap_or_default();
            refusal.ok_or_else(|| format!("it is not refused; Spark: {}", said()))?
        }
    };
    compare::refusal(case.error_class.as_ref().and_then(Option::as_deref), &[], &refusal, options.details)
}

/// An error for a line of the report.
pub fn show(error: &Error) -> String {
    format!("{} ({})", error.to_string().replace('\n', " "), error.class().code)
}

/// What a query lives in, and what survives its restarts.
struct World<'c> {
    case: &'c Case,
    outside: Outside,
    env: Env,
    dead_letters: Arc<dyn DeadLetters>,
    state: StateOptions,
}

impl<'c> World<'c> {
    fn new(case: &'c Case, state: StateBackend) -> Result<Self, Error> {
        let backend = match state {
            StateBackend::Memory => Backend::Memory,
            StateBackend::Disk => {
                Backend::Disk(DiskOptions { scratch: Arc::new(TemporaryScratch::new()?), cache_bytes: 16 << 20 })
            }
        };
        let letters: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Ok(Self {
            case,
            outside: Outside::new(case),
            env: world::env(Arc::new(InMemory::new()), 0),
            dead_letters: Arc::new(FileDeadLetters::new(letters.clone(), Arc::new(letters), "dead letters")),
            state: StateOptions { backend, ..Default::default() },
        })
    }
}

/// When the query is stopped and restored from its checkpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Restarts {
    /// Before the step's input arrives.
    before_step: bool,
    /// After the sink failed in the step's first batch.
    after_sink_failure: bool,
    /// What these two do to the watermarks of the single sources.
    recorded: WatermarkAfterRestart,
    /// Before every batch, forgetting nothing.
    every_batch: bool,
}

/// What ran in a step.
#[derive(Debug, Default)]
pub struct StepRan {
    /// The batches.
    pub batches: Vec<BatchRan>,
    /// How many of them ran before the input arrived.
    pub before_input: usize,
    /// The error that stopped the query.
    pub error: Option<Error>,
}

/// A batch that was committed.
#[derive(Debug)]
pub struct BatchRan {
    /// What the sink got.
    pub rows: Vec<RecordBatch>,
    /// The engine's own account of it.
    pub report: BatchReport,
}

struct Running<'c> {
    world: World<'c>,
    spec: JobSpec,
    query: Query,
}

impl<'c> Running<'c> {
    /// Plans the job and recovers its query from the checkpoint, as a process that starts does.
    async fn start(world: World<'c>, watermarks: WatermarkAfterRestart) -> Result<Self, Error> {
        let (spec, query) = open(&world, watermarks).await?;
        Ok(Self { world, spec, query })
    }

    async fn restart(&mut self, watermarks: WatermarkAfterRestart) -> Result<(), String> {
        let opened = open(&self.world, watermarks).await;
        (self.spec, self.query) = opened.map_err(|error| format!("the restart failed: {}", show(&error)))?;
        Ok(())
    }

    /// Gives the step's input and runs batches until there is nothing more to do.
    async fn step(&mut self, step: &Step, restarts: Restarts) -> Result<StepRan, String> {
        let mut ran = StepRan::default();
        if restarts.before_step {
            self.restart(restarts.recorded).await?;
            self.run_to_idle(Restarts { every_batch: false, ..restarts }, &mut ran).await?;
            ran.before_input = ran.batches.len();
        }
        for (source, lines) in step.units() {
            let stream =
                self.world.outside.streams.get(source).ok_or_else(|| format!("there is no source {source}"))?;
            stream.push(lines);
        }
        if restarts.after_sink_failure {
            self.world.outside.target.fail_next();
            match self.query.run_batch().await {
                Err(_) => self.restart(restarts.recorded).await?,
                Ok(_) => return Err("the sink's failure did not stop the batch".into()),
            }
        }
        self.run_to_idle(restarts, &mut ran).await?;
        Ok(ran)
    }

    async fn run_to_idle(&mut self, restarts: Restarts, ran: &mut StepRan) -> Result<(), String> {
        // What a recorded restart forgot is forgotten for good only when the next batch is committed.
        let mut restarted = restarts.before_step || restarts.after_sink_failure;
        for _ in 0..MOST_BATCHES {
            if restarts.every_batch && !std::mem::take(&mut restarted) {
                self.restart(WatermarkAfterRestart::Keep).await?;
            }
            self.world.env.clock.sleep(Duration::from_secs(1)).await;
            match self.query.run_batch().await {
                Ok(Ran::Idle) => return Ok(()),
                Ok(Ran::Committed(report)) => {
                    ran.batches.push(BatchRan { rows: self.world.outside.target.take(report.batch), report: *report });
                }
                Err(error) => {
                    ran.error = Some(error);
                    return Ok(());
                }
            }
        }
        Err(format!("it runs batches without end: {MOST_BATCHES} without new input"))
    }
}

async fn open(world: &World<'_>, watermarks: WatermarkAfterRestart) -> Result<(JobSpec, Query), Error> {
    let job = job(world.case, &world.outside).map_err(|refusal| Error::new(class::CONFIG_INVALID, refusal))?;
    let observer = Arc::new(Observers(Vec::new()));
    let mut spec = job.plan(world.env.clone(), world.dead_letters.clone(), observer).await?;
    spec.queries[0].watermark_after_restart = watermarks;
    spec.state = world.state.clone();
    let query = Query::open(&spec, &spec.queries[0]).await?;
    Ok((spec, query))
}

/// Cases by name, each with its result, in the order of the names.
pub type Results = BTreeMap<String, Result<Passed, String>>;
