//! Where a checkpoint is, and whether one may change it.

use std::path::Path as FsPath;

use perennial::job_file::{self, JobFile};
use perennial::{Job, env};
use perennial_connectors::registry::SinkConfig;
use perennial_connectors::storage::{self, Lock, Storage, StorageOptions};
use perennial_core::checkpoint::{CheckpointLog, Inspector, Look, Survey};
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::sink::OutputMode;

use super::output::Bar;
use crate::terminal::Failure;

/// So long after the last write a checkpoint in an object store counts as used, in milliseconds.
const QUIET_MS: i64 = 60_000;

/// The checkpoints of a job.
pub struct Place {
    /// The directory or URL.
    pub location: String,
    /// What reads and writes it.
    pub env: Env,
    storage: Storage,
    job: Option<JobFile>,
    /// The query, where the place that was named is that of one query.
    only: Option<String>,
}

/// The right to change a checkpoint, until it is dropped.
pub struct Owned {
    /// Writes under a new epoch.
    pub log: CheckpointLog,
    _lock: Option<Lock>,
}

impl Place {
    /// A job file, a directory or a URL; also the directory of a single query.
    pub async fn open(place: &str) -> Result<Self, Failure> {
        let path = FsPath::new(place);
        if path.is_file() || matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml")) {
            let location = Job::from_file(path)?.checkpoint;
            let settings = job_file::load(path, |_| Vec::new())?.settings;
            return Ok(Self { job: Some(settings), ..Self::at(&location)? });
        }
        let found = Self::at(place)?;
        let listed = found.env.storage.list_with_delimiter(None).await.map_err(Error::from).at(|| place.to_owned())?;
        let is_query = listed.common_prefixes.iter().any(|dir| matches!(dir.filename(), Some("offsets" | "commits")));
        match place.trim_end_matches('/').rsplit_once('/') {
            Some((parent, query)) if is_query && !query.is_empty() => {
                let parent = if parent.is_empty() { "/" } else { parent };
                Ok(Self { only: Some(query.to_owned()), ..Self::at(parent)? })
            }
            None if is_query => Ok(Self { only: Some(place.to_owned()), ..Self::at(".")? }),
            _ => Ok(found),
        }
    }

    /// A directory or URL, whatever is there.
    pub fn at(location: &str) -> Result<Self> {
        let storage = storage::open(location, &StorageOptions::default()).at(|| format!("checkpoint: {location}"))?;
        let env = env(storage.store.clone());
        Ok(Self { location: location.to_owned(), env, storage, job: None, only: None })
    }

    /// The directory from the root on, or the URL: for commands that can be copied.
    pub fn absolute(&self) -> String {
        match &self.storage.local {
            Some(dir) => dir.display().to_string(),
            None => self.location.clone(),
        }
    }

    /// The names of the queries: the one that was named, or all.
    pub async fn queries(&self, named: Option<&str>) -> Result<Vec<String>> {
        let all = Inspector::queries(&self.env).await.at(|| self.location.clone())?;
        let there = if all.is_empty() {
            format!("there is no checkpoint in {}", self.location)
        } else {
            format!("it has {}", all.join(", "))
        };
        match named.or(self.only.as_deref()) {
            Some(name) if all.iter().any(|query| query == name) => Ok(vec![name.to_owned()]),
            Some(name) => Err(Error::new(
                class::STORAGE_NOT_FOUND,
                format!("{} has no checkpoint of a query {name}: {there}", self.location),
            )),
            None if all.is_empty() => Err(Error::new(class::STORAGE_NOT_FOUND, there)),
            None => Ok(all),
        }
    }

    /// The one query that is meant.
    pub async fn query(&self, named: Option<&str>) -> Result<String> {
        match &self.queries(named).await?[..] {
            [only] => Ok(only.clone()),
            all => Err(Error::new(
                class::CONFIG_INVALID,
                format!("{} has several queries, name one: {}", self.location, all.join(", ")),
            )),
        }
    }

    /// What reads the checkpoint of a query.
    pub fn inspector(&self, query: &str) -> Inspector {
        Inspector::new(self.env.clone(), query.into())
    }

    /// The logs of a query.
    pub async fn look(&self, query: &str) -> Result<Look> {
        self.inspector(query).look().await.at(|| self.location.clone())
    }

    /// Reads everything of a query.
    pub async fn survey(&self, query: &str) -> Result<Survey> {
        let inspector = self.inspector(query);
        let look = inspector.look().await.at(|| self.location.clone())?;
        let bar = Bar::bytes(&format!("reading {query}"));
        let survey = inspector.survey_of(look, |done, all| bar.at(done, all)).await;
        survey.at(|| self.location.clone())
    }

    /// The process that uses the checkpoint, where that can be known.
    pub fn holder(&self) -> Result<Option<String>> {
        self.storage.local.as_deref().map_or(Ok(None), storage::holder)
    }

    /// Whether it is on a local disk, where a lock tells whether a process uses it.
    pub fn is_local(&self) -> bool {
        self.storage.local.is_some()
    }

    /// Keeps others from using the checkpoint. On a local disk that is a lock, which a running job has; in an object store a running job is
    /// recognised by what it wrote lately.
    pub async fn lock(&self, query: &str, fence: bool) -> Result<Option<Lock>> {
        if let Some(dir) = &self.storage.local {
            return storage::lock(dir).map(Some);
        }
        let modified = self.look(query).await?.modified_ms();
        let quiet = modified.map_or(i64::MAX, |at| self.env.now_ms().saturating_sub(at));
        if quiet < QUIET_MS && !fence {
            return Err(Error::new(
                class::FENCED,
                format!(
                    "{}/{query} was written {} seconds ago, so a job may be running: stop it and wait a minute, or give --fence, which \
                     stops a job that still runs",
                    self.location,
                    quiet / 1000
                ),
            ));
        }
        Ok(None)
    }

    /// Takes the checkpoint of a query over, for changing it.
    pub async fn own(&self, query: &str, fence: bool) -> Result<Owned> {
        let lock = self.lock(query, fence).await?;
        let log = CheckpointLog::open(self.env.clone(), query).await?;
        Ok(Owned { log, _lock: lock })
    }

    /// Name of the job, if the job file was given.
    pub fn job_name(&self) -> Option<&str> {
        self.job.as_ref()?.name.as_deref()
    }

    /// The sink of a query and its output mode, if the job file was given and has the query.
    pub fn sink(&self, query: &str) -> Option<(&SinkConfig, OutputMode)> {
        let query = self.job.as_ref()?.queries.get(query)?;
        Some((&query.sink, query.output_mode))
    }
}
