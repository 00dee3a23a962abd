//! The runs of a job, in its checkpoint: when it ran, why it ended, and what it did.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use perennial_core::dead_letter::timestamp_text;
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt};
use perennial_core::status::StatusBoard;
use perennial_core::supervisor::QueryEnd;
use serde::{Deserialize, Serialize};

use crate::job::Job;

/// So many runs are kept.
const KEPT: usize = 100;
/// How often a run that goes on writes down how far it is, so that one that dies leaves nearly all.
const EVERY: Duration = Duration::from_secs(60);

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its identity.
    pub run_id: String,
    /// Name of the job.
    pub job: String,
    /// Version of the job.
    pub job_version: String,
    /// Version of the program.
    pub version: String,
    /// When it began.
    pub start: String,
    /// When this was written.
    pub last_seen: String,
    /// When it ended; nothing for a run that goes on, or that died.
    pub end: Option<String>,
    /// Why it ended.
    pub reason: Option<String>,
    /// Batches committed.
    pub batches: u64,
    /// Records read.
    pub records: u64,
    /// Errors.
    pub errors: u64,
}

impl Run {
    /// Why it ended, for people. A run that did not write down its end died, unless it is the last one and goes on.
    pub fn outcome(&self, last: bool) -> &str {
        match &self.reason {
            Some(reason) => reason,
            None if last => "running, or died",
            None => "died",
        }
    }
}

/// The runs in a checkpoint.
#[derive(Debug, Clone)]
pub struct History {
    env: Env,
}

impl History {
    /// Those of the checkpoint that `env` stores.
    pub fn new(env: Env) -> Self {
        Self { env }
    }

    fn directory() -> Path {
        Path::from("_perennial/runs")
    }

    /// All runs that are kept, oldest first.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for path in self.paths().await? {
            let text = self.env.storage.get(&path).await.map_err(Error::from)?.bytes().await.map_err(Error::from)?;
            // One that was cut short by a death says nothing.
            runs.extend(serde_json::from_slice::<Run>(&text));
        }
        Ok(runs)
    }

    async fn paths(&self) -> Result<Vec<Path>> {
        let listed = self.env.storage.list(Some(&Self::directory()));
        let mut paths: Vec<Path> = listed.map_ok(|object| object.location).try_collect().await.map_err(Error::from)?;
        paths.sort();
        Ok(paths)
    }

    async fn write(&self, path: &Path, run: &Run) -> Result<()> {
        let text = serde_json::to_vec(run).map_err(|error| Error::bug(error.to_string()))?;
        self.env.storage.put(path, text.into()).await.map_err(Error::from).at(|| path.to_string())?;
        Ok(())
    }

    async fn forget_old(&self) -> Result<()> {
        let paths = self.paths().await?;
        for path in paths.iter().take(paths.len().saturating_sub(KEPT)) {
            self.env.storage.delete(path).await.map_err(Error::from)?;
        }
        Ok(())
    }
}

/// Writes down a run while it goes on. What cannot be written is told in the log, and changes nothing for the job.
pub(crate) struct Recorder {
    history: History,
    path: Path,
    run: Run,
    board: Arc<StatusBoard>,
}

impl Recorder {
    pub fn new(job: &Job, env: &Env, board: Arc<StatusBoard>) -> Self {
        let micros = env.clock.now_micros();
        let start = timestamp_text(micros);
        let run = Run {
            run_id: env.uuid(),
            job: job.name.clone(),
            job_version: job.version.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            last_seen: start.clone(),
            start,
            end: None,
            reason: None,
            batches: 0,
            records: 0,
            errors: 0,
        };
        // The identity tells two apart that began at the same time.
        let name = format!("{micros:020}-{}.json", &run.run_id[..8]);
        Self { history: History::new(env.clone()), path: History::directory().join(name), run, board }
    }

    /// Writes now and then, for as long as it is polled.
    pub async fn keep_writing(&mut self) {
        if let Err(error) = self.history.forget_old().await {
            tracing::warn!(%error, "old entries of the run history were not removed");
        }
        loop {
            self.write().await;
            self.history.env.clock.sleep(EVERY).await;
        }
    }

    /// Writes down the end; `stopped` says why, where the queries did not end by themselves.
    pub async fn end(mut self, stopped: Option<&str>, ends: &[QueryEnd]) {
        let failed = ends.iter().filter_map(|end| Some((&end.query, end.result.as_ref().err()?)));
        let failed: Vec<String> = failed.map(|(query, error)| format!("{query}: {}", error.class().code)).collect();
        self.run.reason = Some(match (&failed[..], stopped) {
            ([], stopped) => stopped.unwrap_or("completed").to_owned(),
            (failed, _) => format!("failed ({})", failed.join(", ")),
        });
        self.run.end = Some(timestamp_text(self.history.env.clock.now_micros()));
        self.write().await;
    }

    async fn write(&mut self) {
        let status = self.board.snapshot();
        self.run.last_seen = timestamp_text(status.now_micros);
        (self.run.batches, self.run.records) = (status.batches(), status.records());
        self.run.errors = status.errors_by_type().values().sum();
        if let Err(error) = self.history.write(&self.path, &self.run).await {
            tracing::warn!(%error, "the run history was not written");
        }
    }
}
