//! Running and checking a job: what the command line and the library share.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perennial_connectors::storage::Lock;
use perennial_core::ddl;
use perennial_core::error::{Error, Result};
use perennial_core::guarantee::Computed;
use perennial_core::job::QuerySpec;
use perennial_core::lease::Lease;
use perennial_core::progress::{Observer, Observers};
use perennial_core::sink::OutputMode;
use perennial_core::status::{Role, Status, StatusBoard};
use perennial_core::supervisor::{self, QueryEnd};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::alerts::Watchman;
use crate::history::Recorder;
use crate::http::{self, Heartbeat, HttpContext, Listener, Server, Tls};
use crate::job::Job;
use crate::job_file::{Problem, Trigger};
use crate::progress::ProgressBook;
use crate::progress_log::ProgressLog;
use crate::standby::{self, Tenure};
use crate::telemetry::{self, Exporter};
use crate::wire::{Fault, Looked, Opened, Planned};

/// How often a port that another process has is tried again.
const PORT_INTERVAL: Duration = Duration::from_secs(1);

/// A runtime for jobs: one worker per core.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("perennial").build();
    built.map_err(|error| Error::bug(format!("the runtime does not start: {error}")))
}

/// How a run of a job went.
#[derive(Debug)]
pub struct RunSummary {
    /// The counts of this run.
    pub status: Status,
    /// How each query ended.
    pub ends: Vec<QueryEnd>,
    /// Whether it stopped because another process took the job over.
    pub taken_over: bool,
}

impl RunSummary {
    /// Queries that ended with an error.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.ends.iter().filter_map(|end| Some((end.query.as_str(), end.result.as_ref().err()?)))
    }
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, query) in &self.status.queries {
            let (c, last) = (&query.counts, &query.last_batch);
            let last = last.as_ref().map_or_else(String::new, |batch| format!(", the last is batch {}", batch.id));
            writeln!(f, "{name}: {} batches committed in this run{last}", query.batches)?;
            writeln!(
                f,
                "  {} records read: {} rows written, {} held in state, {} filtered, {} late, {} dropped, {} dead-lettered",
                c.read, c.written, c.held, c.filtered, c.late, c.dropped, c.dead_lettered
            )?;
        }
        if self.taken_over {
            writeln!(f, "Another process took the job over.")?;
        }
        for (name, error) in self.failed() {
            writeln!(f, "{name} failed: {error}\n  = {} ({})", error.class().recommendation, error.class().code)?;
        }
        Ok(())
    }
}

/// The HTTP side of a running job: the port is bound before the job starts and free when it has ended.
pub struct Watch {
    listener: Option<(Listener, Option<Tls>)>,
}

impl Watch {
    /// Binds the port of the job, where it has one.
    pub fn bind(job: &Job) -> Result<Self> {
        let setting = match job.file() {
            Some(file) => format!("`http.listen` in {file}"),
            None => "the job's `http` settings".to_owned(),
        };
        if !job.http.enabled {
            return Ok(Self { listener: None });
        }
        let tls = job.http.tls.as_ref().map(|tls| Tls::read(Path::new(&tls.certificate), Path::new(&tls.key)));
        Ok(Self { listener: Some((http::bind(&job.http.listen, &setting)?, tls.transpose()?)) })
    }

    /// Answers from now on, about what those who are told hear, and takes what the job is told. Must be called on the runtime that the job runs on: its
    /// heart is what `/health/live` listens to.
    fn serve(self, job: &Job, opened: &Opened, told: &Told, stop: CancellationToken) -> Result<Option<Watching>> {
        let Some((listener, tls)) = self.listener else { return Ok(None) };
        let heartbeat = Heartbeat::new();
        let beating = tokio::spawn(heartbeat.clone().keep_beating());
        let context = HttpContext {
            board: told.board.clone(),
            progress: told.book.clone(),
            heartbeat,
            dead_letters: opened.dead_letters.clone(),
            controls: opened.controls.clone(),
            stop,
            job: Arc::new(job.clone()),
            runtime: tokio::runtime::Handle::current(),
        };
        let server = listener.serve(http::router(context), tls)?;
        tracing::info!(health = %format!("{}/health", server.url()), metrics = %format!("{}/metrics", server.url()), "http");
        Ok(Some(Watching { server, beating }))
    }
}

/// The HTTP server of a running job; dropping it ends it.
#[derive(Debug)]
pub struct Watching {
    server: Server,
    beating: tokio::task::JoinHandle<()>,
}

impl Watching {
    /// Where it listens.
    pub fn url(&self) -> String {
        self.server.url()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// A server that may have to wait for its port.
type PatientlyWatching = (Option<Watching>, Option<AbortOnDropHandle<Option<Watching>>>);

/// Who is told how a job goes, and can be asked.
#[derive(Clone)]
struct Told {
    board: Arc<StatusBoard>,
    book: Arc<ProgressBook>,
}

impl Told {
    fn new(job: &Job, opened: &Opened, planned: &Planned) -> Self {
        let names = job.queries.keys().map(String::as_str);
        let interval = match job.trigger {
            Trigger::Every(interval) => interval.0,
            Trigger::AsFastAsPossible | Trigger::AvailableNow => Duration::ZERO,
        };
        let board =
            StatusBoard::new(opened.env.clock.clone(), &*job.name, &*job.version, names, job.health.error_window.0);
        Self {
            board: Arc::new(board.with_trigger(interval).with_memory(planned.memory.clone())),
            book: Arc::new(ProgressBook::new(job, &opened.env)),
        }
    }
}

/// How to check a job.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Do not connect to sources and sinks.
    pub offline: bool,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// What is right, section by section, for people.
    pub sections: Vec<String>,
    /// What cannot be reached, by source or sink.
    pub unreachable: Vec<(String, Error)>,
}

impl CheckReport {
    /// Whether the job can run.
    pub fn passed(&self) -> bool {
        self.unreachable.is_empty()
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.sections {
            writeln!(f, "{}", section.trim_end())?;
        }
        for (name, error) in &self.unreachable {
            writeln!(f, "{name}: {error}\n  = {} ({})", error.class().recommendation, error.class().code)?;
        }
        writeln!(f, "{}", if self.passed() { "The job can run." } else { "The job cannot run." })
    }
}

impl Job {
    /// Runs the job until it ends by itself or `stop` is cancelled, which lets the batch at hand finish.
    ///
    /// An error means that the job did not begin. Errors of queries are in the summary.
    pub async fn run(&self, stop: CancellationToken) -> Result<RunSummary> {
        let watch = Watch::bind(self)?;
        let planned = Planned::new(self).await.map_err(|fault| self.wrong(fault))?;
        let opened = Opened::new(self)?;
        let lock = opened.lock()?;
        let told = Told::new(self, &opened, &planned);
        let _watching = watch.serve(self, &opened, &told, stop.clone())?;
        self.run_term(planned, opened, told, (None, lock), stop).await
    }

    /// Stands by: waits beside the process that runs the job until that one stops, dies or gives no more signs of life, and then runs it as
    /// [`Job::run`] does.
    ///
    /// Where the port of `http` is another process's, it is tried again until it is free.
    pub async fn stand_by(&self, stop: CancellationToken) -> Result<RunSummary> {
        let planned = Planned::new(self).await.map_err(|fault| self.wrong(fault))?;
        let opened = Opened::new(self)?;
        let told = Told::new(self, &opened, &planned);
        told.board.take_role(Role::Standby);
        let _watching = self.watch_patiently(&opened, &told, &stop)?;
        let Some(taken) = standby::wait(self, &opened, &stop).await? else {
            return Ok(RunSummary { status: told.board.snapshot(), ends: Vec::new(), taken_over: false });
        };
        told.board.take_role(Role::Active);
        self.run_term(planned, opened, told, taken, stop).await
    }

    /// Answers about a job, as soon as its port is free.
    fn watch_patiently(&self, opened: &Opened, told: &Told, stop: &CancellationToken) -> Result<PatientlyWatching> {
        let error = match Watch::bind(self) {
            Ok(watch) => return Ok((watch.serve(self, opened, told, stop.clone())?, None)),
            Err(error) => error,
        };
        tracing::warn!(%error, "health and metrics are not shown before the port is free");
        let (job, opened, told, stop) = (self.clone(), opened.clone(), told.clone(), stop.clone());
        let bind_later = async move {
            loop {
                tokio::time::sleep(PORT_INTERVAL).await;
                if let Ok(watch) = Watch::bind(&job) {
                    let served = watch.serve(&job, &opened, &told, stop);
                    return served.unwrap_or_else(|error| {
                        tracing::warn!(%error, "health and metrics are not shown");
                        None
                    });
                }
            }
        };
        Ok((None, Some(AbortOnDropHandle::new(tokio::spawn(bind_later)))))
    }

    /// Runs the job, with signs of life.
    async fn run_term(
        &self,
        planned: Planned,
        opened: Opened,
        Told { board, book }: Told,
        (lease, lock): (Option<Lease>, Option<Lock>),
        stop: CancellationToken,
    ) -> Result<RunSummary> {
        let mut exporter = Exporter::new(self, board.clone(), &opened.env)?;
        let mut observers: Vec<Arc<dyn Observer>> = vec![board.clone(), book, Arc::new(ProgressLog::default())];
        observers.extend(exporter.as_ref().and_then(Exporter::observer));
        let observer = Arc::new(Observers(observers));
        let mut recorder = Recorder::new(self, &opened.env, board.clone());
        let mut watchman = Watchman::new(self, board.clone(), opened.env.clock.clone())?;
        let spec = opened.spec(self, planned, observer)?;
        // Whoever takes over ends this term, which must not look like a wish of the caller.
        let term = stop.child_token();
        let tenure = Tenure::begin(self, &opened, lease, lock, term.clone());
        let ends = tokio::select! {
            ends = supervisor::run(spec, term) => ends,
            () = recorder.keep_writing() => Vec::new(),
            () = watchman.watch() => Vec::new(),
            () = telemetry::keep_sending(exporter.as_mut()) => Vec::new(),
        };
        if ends.iter().any(|end| end.result.is_err()) {
            // The last thing that this process can tell is that it gave up.
            watchman.look().await;
        }
        let taken_over = tenure.is_lost();
        let stopped =
            if taken_over { Some("another process took over") } else { stop.is_cancelled().then_some("stopped") };
        recorder.end(stopped, &ends).await;
        tenure.end().await;
        if let Some(exporter) = exporter {
            exporter.end().await;
        }
        Ok(RunSummary { status: board.snapshot(), ends, taken_over })
    }

    /// Looks whether the job can run: plans its SQL, computes its guarantees and, unless told otherwise, connects to everything.
    ///
    /// An error means that the job file is wrong; what cannot be reached is in the report.
    pub async fn check(&self, options: CheckOptions) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let planned = Planned::new(self).await.map_err(|fault| self.wrong(fault))?;
        let mut connected = BTreeSet::new();
        for query in &planned.queries {
            let looked = Looked::new(self, query).map_err(|fault| self.wrong(fault))?;
            let guarantee = looked.guarantee(self, query).map_err(|fault| self.wrong(fault))?;
            report.sections.push(describe(query, &self.queries[&query.name].sink_name, &guarantee));
            if options.offline {
                continue;
            }
            for (name, source) in &looked.sources {
                if connected.insert(name.clone())
                    && let Err(error) = source.check().await
                {
                    report.unreachable.push((format!("sources.{name}"), error));
                }
            }
            for table in &looked.tables {
                if connected.insert(table.name().to_owned())
                    && let Err(error) = table.check().await
                {
                    report.unreachable.push((format!("tables.{}", table.name()), error));
                }
            }
            if let Err(error) = looked.sink.check().await {
                report.unreachable.push((format!("queries.{}.sink", query.name), error));
            }
        }
        Ok(report)
    }
}

impl Job {
    /// The error for a setting that is wrong: caused by a [`JobFileError`](crate::job_file::JobFileError), which shows the place.
    fn wrong(&self, fault: Fault) -> Error {
        let help = Some(format!("{} ({})", fault.error.class().recommendation, fault.error.class().code));
        let problem = Problem { at: None, path: fault.path, message: fault.error.to_string(), help };
        let shown = self.error(vec![problem]);
        Error::new(fault.error.class(), shown.to_string()).caused_by(shown)
    }
}

/// A query for people: plan, columns, guarantee.
fn describe(query: &QuerySpec, sink: &str, computed: &Computed) -> String {
    let mut text = format!("query {}: {} rows to {sink}\n", query.name, mode_name(query.output_mode));
    for line in query.plan.explain().lines() {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(text, "  columns: {}", ddl::format(&query.plan.schema()));
    let _ = match &computed.weakest {
        Some(weakest) => writeln!(text, "  guarantee: {}, because {weakest}", computed.guarantee),
        None => writeln!(text, "  guarantee: {}", computed.guarantee),
    };
    text
}

fn mode_name(mode: OutputMode) -> &'static str {
    match mode {
        OutputMode::Append => "append",
        OutputMode::Update => "update",
        OutputMode::Complete => "complete",
    }
}
