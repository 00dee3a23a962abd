//! Whole jobs, over the real engine, in a world that fails as a seed says.
//!
//! A seed chooses a query, a sink, how many records there are and how they come, and a row of lives of the process: each meets failing
//! calls, lists that lag, and dies at a crash point, at a call or between any two turns of its tasks; some stand still while another
//! process takes over; some leave a disk behind that lied. The last life meets nothing of it. Then [`check`](Simulation::check) looks at
//! what arrived. Everything runs on one thread, and time and randomness come from the seed: one seed, one trace.

mod disk;
mod life;
mod queries;
mod records;
mod sinks;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use parking_lot::Mutex;
use perennial_core::checkpoint::{CheckpointLog, Recovery, recover};
use perennial_core::crash::{CrashPoint, CrashPoints};
use perennial_core::dead_letter::{DeadLetters, FileDeadLetters};
use perennial_core::decode::Decoder;
use perennial_core::env::Env;
use perennial_core::error::{Error, ErrorKind, Result};
use perennial_core::expectation::Expectations;
use perennial_core::guarantee::Guarantee;
use perennial_core::job::{JobSpec, QuerySpec, SourceSpec, Trigger};
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, QueryState};
use perennial_core::sink::BatchId;
use perennial_core::state::{Backend, StateOptions};
use perennial_core::supervisor;
use tokio_util::sync::CancellationToken;

use self::disk::{Disk, LifeStore};
use self::life::{Death, Effect, Fate, Life, Trace};
use self::queries::Planned;
use self::records::{Records, SimSource, TextDecoder};
use self::sinks::{SimSink, SinkKind, Target};
use crate::world::{SimClock, SimEntropy};

/// A bug that is planted on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The batch is committed although the sink has its rows only in memory.
    CommitBeforeSink,
    /// After a start the state is that of the batch before.
    StateVersion,
    /// Rows and the ledger's entry are not one transaction.
    LedgerOutside,
    /// Storage takes writes of a process that was taken over, and nobody tells it.
    MissingFence,
}

/// What a seed came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What it was about.
    pub about: String,
    /// What happened.
    pub trace: Vec<String>,
    /// What should not have happened.
    pub violations: Vec<String>,
    /// How often the process died.
    pub deaths: u64,
    /// How often a second process took over from a living one.
    pub takeovers: u64,
    /// Batches that the sink had already when they came again.
    pub duplicates: u64,
    /// Why the query refused to go on after damage, if it did.
    pub refused: Option<String>,
}

/// Runs seeds.
pub struct Simulator {
    planned: Vec<Planned>,
    runtime: tokio::runtime::Runtime,
}

impl Simulator {
    /// Plans all queries.
    ///
    /// # Errors
    /// Where the engine does not plan them.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| Error::bug("no runtime").caused_by(error))?;
        Ok(Self { planned: runtime.block_on(Planned::all())?, runtime })
    }

    /// Runs one seed.
    ///
    /// # Errors
    /// Where the simulation itself fails, not what it simulates.
    pub fn run(&self, seed: u64, bug: Option<Bug>) -> Result<Outcome> {
        let random = SimEntropy::new(seed);
        let planned = &self.planned[random.below(self.planned.len() as u64) as usize];
        self.runtime.block_on(Simulation::new(seed, planned, bug, random).run())
    }
}

/// Writes down what a life reports.
#[derive(Debug)]
struct Seen {
    trace: Trace,
    life: u64,
}

impl Observer for Seen {
    fn committed(&self, _: &str, report: &BatchReport) {
        self.trace.add(format!("{} batch {} is committed: {:?}", self.life, report.batch, report.counts));
    }

    fn failed(&self, _: &str, batch: Option<BatchId>, error: &Error, action: Action) {
        self.trace.add(format!("{} {batch:?} fails: {error} -> {action:?}", self.life));
    }

    fn state(&self, _: &str, _: QueryState) {}

    fn repaired(&self, _: &str, what: &str) {
        self.trace.add(format!("{} mended: {what}", self.life));
    }
}

struct Simulation<'a> {
    seed: u64,
    planned: &'a Planned,
    bug: Option<Bug>,
    random: Arc<SimEntropy>,
    clock: Arc<SimClock>,
    trace: Trace,
    kind: SinkKind,
    records: Vec<Arc<Records>>,
    per_batch: u64,
    batches_to_retain: u64,
    checkpoint: Arc<Disk>,
    letters: Arc<Disk>,
    target: Arc<Mutex<Target>>,
    lives: u64,
    deaths: u64,
    takeovers: u64,
    /// What was done to the checkpoint's disk.
    damage: Vec<String>,
    refused: Option<String>,
    violations: Vec<String>,
}

/// The name of the query, which is the directory of its checkpoint.
const QUERY: &str = "q";

impl<'a> Simulation<'a> {
    fn new(seed: u64, planned: &'a Planned, bug: Option<Bug>, random: SimEntropy) -> Self {
        let kinds = SinkKind::of(planned.kind.mode);
        let kind = kinds[random.below(kinds.len() as u64) as usize];
        let records = planned.sources.iter().map(|_| Arc::new(Records::new(20 + random.below(60), &random))).collect();
        Self {
            seed,
            planned,
            bug,
            clock: Arc::default(),
            trace: Trace::default(),
            kind,
            records,
            per_batch: 5 + random.below(25),
            batches_to_retain: if random.once_in(3) { 2 } else { 1_000 },
            checkpoint: Arc::default(),
            letters: Arc::default(),
            target: Arc::default(),
            lives: 0,
            deaths: 0,
            takeovers: 0,
            damage: Vec::new(),
            refused: None,
            violations: Vec::new(),
            random: Arc::new(random),
        }
    }

    async fn run(mut self) -> Result<Outcome> {
        let lives = 1 + self.random.below(5);
        // A disk that lies is a world of its own: what it may lose is more than what a crash may.
        let lies = self.random.once_in(4);
        for number in 0..lives {
            if self.refused.is_some() {
                break;
            }
            let share = self.random.below(lives) + number + 1;
            self.live(share.min(lives), lives).await;
            if lies && self.random.once_in(2) {
                self.damage().await?;
            }
        }
        if self.refused.is_none() {
            let last = self.begin_life(Fate::SOUND);
            self.one_life(last, 1, 1).await;
        }
        self.check().await?;
        let target = self.target.lock();
        let violations = self.violations.iter().chain(&target.violations).cloned().collect();
        Ok(Outcome {
            seed: self.seed,
            about: format!("{}, {:?} sink", self.planned.kind.name, self.kind),
            trace: self.trace.lines(),
            violations,
            deaths: self.deaths,
            takeovers: self.takeovers,
            duplicates: target.duplicates,
            refused: self.refused.clone(),
        })
    }

    async fn damage(&mut self) -> Result<()> {
        // That a disk loses what a batch reads, after the sink has its rows, is beyond what can be mended or noticed.
        let target = self.target.clone();
        let spares = |path: &Path| {
            let batch = path.as_ref().split_once("/offsets/").and_then(|(_, batch)| batch.parse().ok());
            batch.is_some_and(|batch| target.lock().has(batch)) || path.as_ref().contains("/epochs/")
        };
        let damage = self.checkpoint.damage(&self.random, spares).await.map_err(Error::from)?;
        if let Some(damage) = damage {
            self.trace.add(format!("damage: {damage}"));
            self.damage.push(damage);
        }
        Ok(())
    }

    fn fate(&self) -> Fate {
        let random = &self.random;
        let effect = if random.once_in(2) { Effect::None } else { Effect::Done };
        let death = match random.below(8) {
            0 => Death::Not,
            1..=4 => {
                let point = CrashPoint::ALL[random.below(CrashPoint::ALL.len() as u64) as usize];
                Death::Point(point, 1 + random.below(3))
            }
            5 | 6 => Death::Call(random.below(150), effect),
            _ => Death::Turn(random.below(600)),
        };
        let errors = [0, 12, 60][random.below(3) as usize];
        let lag = if random.once_in(4) { 3 } else { 0 };
        // One that sleeps while another one works through all batches that are kept, and removes them, can leave a file before a gap.
        let pause = (random.once_in(4) && self.batches_to_retain > 2).then(|| random.below(150));
        Fate { death, errors, lag, pause }
    }

    fn begin_life(&mut self, fate: Fate) -> Arc<Life> {
        self.lives += 1;
        Life::new(self.lives, fate, self.random.clone(), self.clock.clone(), self.trace.clone())
    }

    /// A life with a fate of its own, and perhaps another one that takes over while it stands still. `share` of `of` parts of the records
    /// are there.
    async fn live(&mut self, share: u64, of: u64) {
        let fate = self.fate();
        let first = self.begin_life(fate);
        if fate.pause.is_none() {
            return self.one_life(first, share, of).await;
        }
        let job = self.job(&first, share, of);
        let mut one = Box::pin(run_life(first.clone(), job));
        let stands_still = tokio::select! {
            biased;
            end = &mut one => Some(end),
            () = first.paused.cancelled() => None,
        };
        if let Some(end) = stands_still {
            return self.end_life(&first, end, false);
        }
        self.takeovers += 1;
        let fate = Fate { pause: None, ..self.fate() };
        let second = self.begin_life(fate);
        second.wake_after(self.random.below(200), first.clone());
        let job = self.job(&second, of, of);
        let other = async {
            let end = run_life(second.clone(), job).await;
            first.resume();
            end
        };
        let (one, other) = futures::join!(one, other);
        self.end_life(&first, one, true);
        self.end_life(&second, other, true);
    }

    async fn one_life(&mut self, life: Arc<Life>, share: u64, of: u64) {
        let job = self.job(&life, share, of);
        let end = run_life(life.clone(), job).await;
        self.end_life(&life, end, false);
    }

    /// Keeps what a life left behind; `None`: it died.
    fn end_life(&mut self, life: &Life, end: Option<Result<()>>, contested: bool) {
        life.die("the end");
        let error = match end {
            None => {
                self.deaths += 1;
                return;
            }
            Some(Ok(())) => return,
            Some(Err(error)) => error,
        };
        life.say(&format!("ends: {error}"));
        match error.kind() {
            // A list that lags may show a commit and not its offsets: the next start sees both.
            ErrorKind::Corrupt if life.fate.lag > 0 && self.damage.is_empty() => {}
            ErrorKind::Corrupt if !self.damage.is_empty() => self.refused = Some(error.to_string()),
            // The one that stood still may take the checkpoint back.
            ErrorKind::Fenced if contested => {}
            ErrorKind::Transient | ErrorKind::Throttled | ErrorKind::Fenced if life.fate != SOUND => {}
            _ => self.violations.push(format!("life {} ended: {error:?}", life.number)),
        }
    }

    fn store(&self, name: &'static str, disk: &Arc<Disk>, life: &Arc<Life>) -> LifeStore {
        let bug = self.bug.filter(|_| name == "checkpoint");
        LifeStore { name, disk: disk.clone(), life: life.clone(), bug }
    }

    fn job(&self, life: &Arc<Life>, share: u64, of: u64) -> JobSpec {
        let crash = CrashPoints::new(life.clone());
        let source = |(name, records): (&&'static str, &Arc<Records>)| SourceSpec {
            name: (*name).to_owned(),
            schema: records::schema(),
            factory: Arc::new(SimSource {
                name: (*name).to_owned(),
                records: records.clone(),
                available: records.len() * share / of,
                per_batch: self.per_batch,
                life: life.clone(),
            }),
            decoder: Arc::new(|columns| Ok(Arc::new(TextDecoder::new(columns)?) as Arc<dyn Decoder>)),
            expectations: Expectations::default(),
            per_partition: None,
        };
        let sink = SimSink {
            kind: self.kind,
            keys: self.planned.kind.keys,
            target: self.target.clone(),
            life: life.clone(),
            crash: crash.clone(),
            bug: self.bug,
            held_back: Arc::default(),
        };
        let query = QuerySpec {
            name: QUERY.to_owned(),
            plan: self.planned.plan.clone(),
            sources: self.planned.sources.iter().zip(&self.records).map(source).collect(),
            tables: Vec::new(),
            sink: Arc::new(sink),
            output_mode: self.planned.kind.mode,
            watermark_policy: Default::default(),
            on_error: Default::default(),
            late: None,
            watermark_after_restart: Default::default(),
            no_data_batches: true,
        };
        let letters: Arc<dyn ObjectStore> = Arc::new(self.store("letters", &self.letters, life));
        let letters = FileDeadLetters::new(letters.clone(), Arc::new(letters), "dlq").with_crash_points(crash.clone());
        JobSpec {
            name: "simulated".to_owned(),
            version: "1".to_owned(),
            env: Env {
                clock: self.clock.clone(),
                entropy: self.random.clone(),
                storage: Arc::new(self.store("checkpoint", &self.checkpoint, life)),
                crash,
            },
            queries: vec![query],
            trigger: Trigger::AvailableNow,
            dead_letters: Arc::new(letters),
            retry: Default::default(),
            breaker: Default::default(),
            guarantee: Some(Guarantee::ExactlyOnce),
            batches_to_retain: self.batches_to_retain,
            state: StateOptions {
                backend: Backend::Memory,
                snapshot_after: 2,
                snapshot_bytes: 0,
                max_deltas: 3,
                part_bytes: 512,
                memory: Default::default(),
                conversion: None,
            },
            accept_state_changes: false,
            memory: Default::default(),
            pace: None,
            controls: Default::default(),
            adopt: None,
            observer: Arc::new(Seen { trace: self.trace.clone(), life: life.number }),
        }
    }

    /// Compares what arrived with a plain computation over the same records, and looks whether the logs hang together.
    async fn check(&mut self) -> Result<()> {
        let mut wrong = Vec::new();
        let rows: Vec<&[_]> = self.records.iter().map(|records| &*records.rows).collect();
        let expected = self.planned.expected(&rows);
        let found = self.target.lock().rows();
        if self.refused.is_some() {
            // What is there must be right as far as it goes; an upsert holds results that later records would still change.
            if self.kind != SinkKind::Upsert {
                let (_, more) = differences(&expected, &found);
                wrong.extend(more.iter().map(|row| format!("before the refusal: doubled or made up: {row}")));
            }
            self.violations.extend(wrong);
            return Ok(());
        }
        let (lost, more) = differences(&expected, &found);
        wrong.extend(lost.iter().map(|row| format!("lost: {row}")));
        wrong.extend(more.iter().map(|row| format!("doubled or made up: {row}")));

        let life = self.begin_life(Fate::SOUND);
        let letters: Arc<dyn ObjectStore> = Arc::new(self.store("letters", &self.letters, &life));
        let letters = FileDeadLetters::new(letters.clone(), Arc::new(letters), "dlq");
        let mut dead = Vec::new();
        for entry in letters.entries().await? {
            let records = letters.records(&entry).await?;
            dead.extend(records.iter().filter_map(|record| record["value"].as_str().map(str::to_owned)));
        }
        dead.sort_unstable();
        let mut malformed: Vec<String> =
            self.records.iter().flat_map(|records| records.malformed().map(str::to_owned)).collect();
        malformed.sort_unstable();
        if dead != malformed {
            wrong.push(format!("dead letters {dead:?} instead of {malformed:?}"));
        }

        let env = Env {
            clock: self.clock.clone(),
            entropy: self.random.clone(),
            storage: Arc::new(LifeStore { bug: None, ..self.store("checkpoint", &self.checkpoint, &life) }),
            crash: CrashPoints::default(),
        };
        let log = CheckpointLog::open(env, QUERY).await?;
        let logs = match log.find().await {
            Ok(logs) => logs,
            Err(error) => {
                self.violations.push(format!("the logs cannot be read: {error}"));
                return Ok(());
            }
        };
        let last = logs.offsets.last().copied();
        let decision = recover(&logs);
        if let Err(error) = &decision {
            wrong.push(format!("the checkpoint does not go on: {error}"));
        } else if decision.ok() != Some(last.map_or(Recovery::Fresh, |last| Recovery::Continue { last })) {
            wrong.push(format!("the logs have gaps: {logs:?}"));
        }
        let stateful = !self.planned.plan.state().is_empty();
        let (mut watermark, mut read) = (0, 0);
        for batch in logs.commits {
            let (offsets, commit) = match log.read_batch(batch).await? {
                Ok(read) => read,
                // The batch was mended around, or nobody has to read it any more.
                Err(_) if !self.damage.is_empty() => continue,
                Err(damage) => {
                    wrong.push(damage.to_string());
                    continue;
                }
            };
            if offsets.watermark_ms < watermark || commit.next_watermark_ms < offsets.watermark_ms {
                wrong.push(format!("the watermark of batch {batch} went back"));
            }
            watermark = commit.next_watermark_ms;
            let counts = commit.perennial.map(|details| details.counts).unwrap_or_default();
            read += counts.read;
            let missing = counts.missing(stateful);
            if missing != 0 {
                wrong.push(format!("the accounts of batch {batch} do not close: {missing}"));
            }
        }
        let given: u64 = self.records.iter().map(|records| records.len()).sum();
        if self.batches_to_retain > 2 && self.damage.is_empty() && read != given {
            wrong.push(format!("{read} records in the accounts instead of {given}"));
        }
        self.violations.extend(wrong);
        Ok(())
    }
}

const SOUND: Fate = Fate::SOUND;

/// Runs a life to its end; `None`: it died.
async fn run_life(life: Arc<Life>, job: JobSpec) -> Option<Result<()>> {
    let turns = async {
        if let Death::Turn(turns) = life.fate.death {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            life.die("between two turns");
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        biased;
        () = life.died.cancelled() => None,
        () = turns => None,
        ends = supervisor::run(job, CancellationToken::new()) => ends.into_iter().next().map(|end| end.result),
    };
    // What it left running is dropped before another life begins.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    end
}

/// What is only in the first list, and what only in the second; both are sorted.
fn differences<'a>(one: &'a [String], other: &'a [String]) -> (Vec<&'a String>, Vec<&'a String>) {
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    let (mut only_left, mut only_right) = (Vec::new(), Vec::new());
    loop {
        match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if a == b => {
                left.next();
                right.next();
            }
            (Some(a), b) if b.is_none_or(|b| a < b) => only_left.extend(left.next()),
            (_, Some(_)) => only_right.extend(right.next()),
            _ => return (only_left, only_right),
        }
    }
}
