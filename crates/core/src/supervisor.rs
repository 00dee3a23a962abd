//! The supervisor: runs the queries of a job apart from each other, and is the only one who tries again.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::breaker::{Breakers, Part};
use crate::error::{Error, Result};
use crate::job::{JobSpec, QuerySpec, Trigger};
use crate::policy::{Action, Policies, decide};
use crate::progress::QueryState;
use crate::query::{Query, Step};

/// An idle query looks for new records after this long, then after twice as long, up to [`LONGEST_POLL`].
const SHORTEST_POLL: Duration = Duration::from_millis(5);
/// The longest wait between two looks for new records without an interval.
const LONGEST_POLL: Duration = Duration::from_millis(100);

/// While a query waits it asks this often for what waits with it.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// How a query ended.
#[derive(Debug)]
pub struct QueryEnd {
    /// The query.
    pub query: String,
    /// The error that stopped it.
    pub result: Result<()>,
}

/// Runs a job until all its queries ended: with `available_now` when all is processed, else when `stop` is cancelled, which lets the batch
/// at hand finish. A query that fails for good does not stop the others.
pub async fn run(job: JobSpec, stop: CancellationToken) -> Vec<QueryEnd> {
    let mut queries = JoinSet::new();
    for spec in job.queries.clone() {
        let (job, stop) = (job.clone(), stop.clone());
        queries.spawn(async move {
            let query = spec.name.clone();
            let result = Supervised::new(job, spec, stop).run().await;
            QueryEnd { query, result }
        });
    }
    let mut ends = Vec::new();
    while let Some(end) = queries.join_next().await {
        // A query catches its own panics; a join error is the runtime going down.
        ends.extend(end);
    }
    ends
}

struct Supervised {
    job: JobSpec,
    spec: QuerySpec,
    stop: CancellationToken,
    /// Failures in a row.
    attempts: u32,
    /// When the next batch may begin, in microseconds since the epoch.
    next_trigger_micros: i64,
    breakers: Breakers,
    /// The time of the start: in microseconds since the epoch, and monotonic.
    began: (i64, Duration),
}

impl Supervised {
    fn new(job: JobSpec, spec: QuerySpec, stop: CancellationToken) -> Self {
        let read = spec.sources.iter().map(|s| &s.name).chain(spec.tables.iter().map(|t| &t.name));
        let parts = read.map(|name| Part::source(name)).chain([Part::Sink, Part::Storage]);
        let now_micros = job.env.clock.now_micros();
        let breakers = Breakers::new(parts, now_micros);
        let began = (now_micros, job.env.clock.monotonic());
        Self { job, spec, stop, attempts: 0, next_trigger_micros: 0, breakers, began }
    }

    /// A time for breakers, in microseconds since the epoch: unlike the clock's it never jumps.
    fn now_micros(&self) -> i64 {
        let (micros, monotonic) = self.began;
        let since = self.job.env.clock.monotonic().saturating_sub(monotonic);
        micros.saturating_add(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    async fn run(mut self) -> Result<()> {
        self.breakers.iter().for_each(|(part, _)| self.tell(part));
        let result = self.run_to_end().await;
        let state = if result.is_ok() { QueryState::Stopped } else { QueryState::Failed };
        self.job.observer.state(&self.spec.name, state);
        result
    }

    async fn run_to_end(&mut self) -> Result<()> {
        let Some(mut query) = self.start().await? else { return Ok(()) };
        let mut poll = SHORTEST_POLL;
        while !self.stop.is_cancelled() {
            self.wait_for_trigger().await;
            self.wait_while_paused().await;
            if self.stop.is_cancelled() {
                break;
            }
            self.probe();
            match guarded(query.run_batch()).await {
                Ok(Step::Committed(report)) => {
                    self.attempts = 0;
                    if self.worked(|_, _| true) {
                        query.start_small();
                    }
                    poll = SHORTEST_POLL;
                    self.job.observer.committed(&self.spec.name, &report);
                }
                Ok(Step::Idle) => {
                    self.attempts = 0;
                    let is_source = |spec: &QuerySpec, part: &Part| match part {
                        Part::Source(name) => spec.sources.iter().any(|source| *source.name == **name),
                        _ => false,
                    };
                    if self.worked(is_source) {
                        query.start_small();
                    }
                    self.job.observer.state(&self.spec.name, QueryState::Idle);
                    match self.job.trigger {
                        Trigger::AvailableNow => return Ok(()),
                        Trigger::Every(interval) if interval.is_zero() => {
                            self.sleep(poll).await;
                            poll = (poll * 2).min(LONGEST_POLL);
                        }
                        Trigger::Every(_) => {}
                    }
                }
                Err(error) => self.handle(error, Some(&mut query)).await?,
            }
        }
        Ok(())
    }

    /// Opens the query, waiting for what is away. `None`: stopped meanwhile.
    async fn start(&mut self) -> Result<Option<Query>> {
        let observer = self.job.observer.clone();
        while !self.stop.is_cancelled() {
            observer.state(&self.spec.name, QueryState::Starting);
            self.probe();
            let began = self.job.env.clock.monotonic();
            match guarded(Query::open(&self.job, &self.spec)).await {
                Ok(query) => {
                    self.attempts = 0;
                    self.worked(|_, part| *part == Part::Storage);
                    let started = QueryState::Started {
                        next_batch: query.next_batch(),
                        state_rows: query.state_rows(),
                        took: self.job.env.clock.monotonic() - began,
                    };
                    observer.state(&self.spec.name, started);
                    return Ok(Some(query));
                }
                Err(error) => self.handle(error, None).await?,
            }
        }
        Ok(None)
    }

    /// Does what the policy says about an error; gives it back when that is to stop.
    async fn handle(&mut self, error: Error, query: Option<&mut Query>) -> Result<()> {
        self.attempts = self.attempts.saturating_add(1);
        let random = self.job.env.entropy.next_u64() as f64 / u64::MAX as f64;
        let policies = Policies { on_error: &self.spec.on_error, retry: &self.job.retry, breaker: &self.job.breaker };
        // What neither a source nor the sink is to blame for is the checkpoint's or the dead letters'.
        let part = error.part().cloned().unwrap_or(Part::Storage);
        let action = decide(policies, &error, self.attempts, &self.breakers.get(&part), random);
        self.job.observer.failed(&self.spec.name, query.as_deref().map(Query::next_batch), &error, action);
        let (wait, state) = match action {
            Action::Pause => {
                self.job.controls.pause(&self.spec.name);
                self.wait_while_paused().await;
                return Ok(());
            }
            Action::Stop => return Err(error.at(format!("query {}", self.spec.name))),
            Action::Retry { after } => (after, QueryState::BackingOff { wait: after }),
            Action::OpenBreaker { wait } => (wait, QueryState::BreakerOpen { wait }),
        };
        let open_for = matches!(action, Action::OpenBreaker { .. }).then_some(wait);
        self.breakers.failed(&part, self.now_micros(), open_for);
        self.tell(&part);
        self.job.observer.state(&self.spec.name, state);
        self.wait_out(wait, &part, query).await;
        Ok(())
    }

    /// Waits before the next attempt. What comes in meanwhile is asked for, unless it is the source itself that does not answer.
    async fn wait_out(&self, wait: Duration, failed: &Part, query: Option<&mut Query>) {
        let mut query = query.filter(|_| !matches!(failed, Part::Source(_)));
        let mut left = wait;
        while !left.is_zero() && !self.stop.is_cancelled() {
            let step = if query.is_some() { left.min(LAG_INTERVAL) } else { left };
            self.sleep(step).await;
            left -= step;
            if let Some(query) = &mut query {
                let lag = query.ask_for_lag().await;
                self.job.observer.lag(&self.spec.name, &lag);
            }
        }
    }

    /// The next attempt probes the parts whose breakers have been open for long enough: they all have, because one waits for each.
    fn probe(&mut self) {
        for part in self.breakers.probe(self.now_micros()) {
            self.tell(&part);
        }
    }

    /// These parts did what they should. Whether a breaker closed by that.
    fn worked(&mut self, asked: fn(&QuerySpec, &Part) -> bool) -> bool {
        let now_micros = self.now_micros();
        let better = self.breakers.succeeded(|part| asked(&self.spec, part), now_micros);
        better.iter().for_each(|(part, _)| self.tell(part));
        better.iter().any(|(_, closed)| *closed)
    }

    fn tell(&self, part: &Part) {
        self.job.observer.breaker(&self.spec.name, part, &self.breakers.get(part));
    }

    /// Waits for the next multiple of the interval since the epoch, as Spark does: the first batch begins at once, and so does one
    /// whose time passed while the batch before it ran. A failed batch has waited already.
    async fn wait_for_trigger(&mut self) {
        let Trigger::Every(interval) = self.job.trigger else { return };
        if interval.is_zero() || self.attempts > 0 {
            return;
        }
        let now = self.job.env.clock.now_micros();
        if let Ok(wait) = u64::try_from(self.next_trigger_micros - now) {
            self.sleep(Duration::from_micros(wait)).await;
        }
        let (now, interval) = (self.job.env.clock.now_micros(), interval.as_micros() as i64);
        self.next_trigger_micros = now - now.rem_euclid(interval) + interval;
    }

    async fn wait_while_paused(&mut self) {
        if !self.job.controls.is_paused(&self.spec.name) {
            return;
        }
        self.job.observer.state(&self.spec.name, QueryState::Paused);
        tokio::select! {
            () = self.job.controls.resumed(&self.spec.name) => self.attempts = 0,
            () = self.stop.cancelled() => {}
        }
    }

    async fn sleep(&self, wait: Duration) {
        tokio::select! {
            () = self.job.env.clock.sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// A panic is a bug of one query: it becomes an error and leaves the process alone.
async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::bug(format!("a panic: {}", text.unwrap_or_default())))
    })
}
