//! Running and checking a job: what the command line and the library share.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perennial_core::ddl;
use perennial_core::error::{Error, Result};
use perennial_core::guarantee::Computed;
use perennial_core::job::{JobSpec, QuerySpec};
use perennial_core::progress::Observers;
use perennial_core::sink::OutputMode;
use perennial_core::status::{Status, StatusBoard};
use perennial_core::supervisor::{self, QueryEnd};
use tokio_util::sync::CancellationToken;

use crate::alerts::Watchman;
use crate::history::Recorder;
use crate::http::{self, Heartbeat, HttpContext, Listener, Server, Tls};
use crate::job::Job;
use crate::job_file::{Problem, Trigger};
use crate::progress::ProgressBook;
use crate::progress_log::ProgressLog;
use crate::wire::{Fault, Looked, Planned, Ready};

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

    /// Answers from now on, about what `board` hears, and takes what the job is told. Must be called on the runtime that the job runs on: its
    /// heart is what `/health/live` listens to.
    fn serve(
        self,
        job: &Job,
        spec: &JobSpec,
        board: Arc<StatusBoard>,
        progress: Arc<ProgressBook>,
        stop: CancellationToken,
    ) -> Result<Option<Watching>> {
        let Some((listener, tls)) = self.listener else { return Ok(None) };
        let heartbeat = Heartbeat::new();
        let beating = tokio::spawn(heartbeat.clone().keep_beating());
        let context = HttpContext {
            board,
            progress,
            heartbeat,
            dead_letters: spec.dead_letters.clone(),
            controls: spec.controls.clone(),
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
        let (mut board, mut book) = (None, None);
        let memory = planned.memory.clone();
        let ready = Ready::new(self, planned, |env| {
            let names = self.queries.keys().map(String::as_str);
            let window = self.health.error_window.0;
            let interval = match self.trigger {
                Trigger::Every(interval) => interval.0,
                Trigger::AsFastAsPossible | Trigger::AvailableNow => Duration::ZERO,
            };
            let new = StatusBoard::new(env.clock.clone(), &*self.name, &*self.version, names, window);
            let new = Arc::new(new.with_trigger(interval).with_memory(memory));
            let progress = Arc::new(ProgressBook::new(self, env));
            (board, book) = (Some(new.clone()), Some(progress.clone()));
            Arc::new(Observers(vec![new, progress, Arc::new(ProgressLog::default())]))
        })?;
        let (Some(board), Some(book)) = (board, book) else { return Err(Error::bug("the job has no status board")) };
        let _watching = watch.serve(self, &ready.spec, board.clone(), book, stop.clone())?;
        let mut recorder = Recorder::new(self, &ready.spec.env, board.clone());
        let mut watchman = Watchman::new(self, board.clone(), ready.spec.env.clock.clone())?;
        let ends = tokio::select! {
            ends = supervisor::run(ready.spec.clone(), stop.clone()) => ends,
            () = recorder.keep_writing() => Vec::new(),
            () = watchman.watch() => Vec::new(),
        };
        if ends.iter().any(|end| end.result.is_err()) {
            // The last thing that this process can tell is that it gave up.
            watchman.look().await;
        }
        recorder.end(stop.is_cancelled(), &ends).await;
        Ok(RunSummary { status: board.snapshot(), ends })
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
