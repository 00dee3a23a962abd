//! Looking at a checkpoint without owning it: reads, and never writes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::format::{CommitEntry, Metadata, OffsetEntry};
use super::source_log::fits;
use super::survey::Survey;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result, class};
use crate::sink::BatchId;
use crate::state::StateRef;
use crate::state::inspect::check_file;

/// So many small files are read at a time.
const CONCURRENCY: usize = 16;

/// A file of the checkpoint, as its storage lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMeta {
    /// Size in bytes.
    pub bytes: u64,
    /// When it was written, in milliseconds since the epoch.
    pub modified_ms: i64,
}

/// A file that was looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Checked<T> {
    /// It is as it was written.
    Good(T),
    /// It is not there.
    Missing,
    /// It is not as it was written, and why.
    Damaged(String),
    /// A newer version of the program wrote it.
    Newer(String),
}

impl<T> Checked<T> {
    /// What it holds.
    pub fn good(&self) -> Option<&T> {
        match self {
            Self::Good(value) => Some(value),
            _ => None,
        }
    }

    /// What is wrong with it; `None` when it is good.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Good(_) => None,
            Self::Missing => Some("it is missing"),
            Self::Damaged(why) | Self::Newer(why) => Some(why),
        }
    }

    fn new(read: Result<Option<T>>) -> Result<Self> {
        match read {
            Ok(Some(value)) => Ok(Self::Good(value)),
            Ok(None) => Ok(Self::Missing),
            Err(error) if error.class() == class::CHECKPOINT_NEWER => Ok(Self::Newer(error.message().to_owned())),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Self::Damaged(error.message().to_owned())),
            Err(error) => Err(error),
        }
    }
}

/// The logs of a query and the list of its files.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Name of the query: its directory.
    pub query: String,
    /// All files, by their paths below the query's directory.
    pub files: BTreeMap<String, FileMeta>,
    /// `metadata`.
    pub metadata: Checked<Metadata>,
    /// The copy of `metadata`.
    pub metadata_copy: Checked<Metadata>,
    /// `offsets/N`.
    pub offsets: BTreeMap<BatchId, Checked<OffsetEntry>>,
    /// `commits/N`.
    pub commits: BTreeMap<BatchId, Checked<CommitEntry>>,
    /// The greatest epoch; 0 where there is none.
    pub epoch: u64,
}

impl Look {
    /// The last batch whose commit can be read.
    pub fn last_commit(&self) -> Option<(BatchId, &CommitEntry)> {
        self.commits.iter().rev().find_map(|(batch, entry)| Some((*batch, entry.good()?)))
    }

    /// The files that batches up to `batch` are made of: what has to be copied to continue from there elsewhere. Epochs are left out,
    /// they belong to the place.
    pub fn files_up_to(&self, batch: BatchId) -> Vec<String> {
        let commits =
            self.commits.range(..=batch).filter_map(|(_, commit)| commit.good()?.perennial.as_ref()?.state.as_ref());
        let state: BTreeSet<String> = commits.flat_map(StateRef::files).collect();
        let number = |name: &str, dir: &str| name.strip_prefix(dir)?.parse::<BatchId>().ok();
        let wanted = |name: &&String| {
            if let Some(number) = number(name, "offsets/").or_else(|| number(name, "commits/")) {
                return number <= batch;
            }
            match name.strip_prefix("state/") {
                Some(name) => state.contains(name),
                None => {
                    let places = ["sources/", "_perennial/sources/", "_perennial/plans/"];
                    *name == "metadata"
                        || *name == "_perennial/metadata"
                        || places.iter().any(|dir| name.starts_with(dir))
                }
            }
        };
        self.files.keys().filter(wanted).cloned().collect()
    }

    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// When something was last written, in milliseconds since the epoch.
    pub fn modified_ms(&self) -> Option<i64> {
        self.files.values().map(|file| file.modified_ms).max()
    }
}

/// Reads the checkpoint of one query. It takes no epoch, so a running job does not notice.
#[derive(Debug, Clone)]
pub struct Inspector {
    env: Env,
    root: Path,
}

impl Inspector {
    /// The checkpoint in a directory of the storage.
    pub fn new(env: Env, root: Path) -> Self {
        Self { env, root }
    }

    /// Names of the queries that have a checkpoint in the storage, ascending.
    pub async fn queries(env: &Env) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for dir in env.storage.list_with_delimiter(None).await?.common_prefixes {
            let inside = env.storage.list_with_delimiter(Some(&dir)).await?;
            let is_log = |dir: &Path| matches!(dir.filename(), Some("offsets" | "commits" | "_perennial"));
            let is_metadata = inside.objects.iter().any(|file| file.location.filename() == Some("metadata"));
            if is_metadata || inside.common_prefixes.iter().any(is_log) {
                names.extend(dir.filename().map(str::to_owned));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Where the checkpoint lies in the storage.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its state lies in the storage.
    pub fn state_dir(&self) -> Path {
        self.root.clone().join("state")
    }

    /// A path below the query's directory, in the storage.
    pub fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// A file, `None` where it is not there.
    pub async fn read(&self, relative: &str) -> Result<Option<Bytes>> {
        match self.env.storage.get(&self.path(relative)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the files and reads the logs.
    pub async fn look(&self) -> Result<Look> {
        let listed: Vec<_> = self.env.storage.list(Some(&self.root)).try_collect().await?;
        let mut files = BTreeMap::new();
        for file in listed {
            let parts: Option<Vec<_>> = file
                .location
                .prefix_match(&self.root)
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
            if let Some(parts) = parts {
                let meta = FileMeta { bytes: file.size, modified_ms: file.last_modified.timestamp_millis() };
                files.insert(parts.join("/"), meta);
            }
        }
        let numbers = |dir: &str| -> Vec<u64> {
            let names = files.keys().filter_map(|name| name.strip_prefix(dir)?.strip_prefix('/'));
            names.filter(|name| name.bytes().all(|b| b.is_ascii_digit())).filter_map(|name| name.parse().ok()).collect()
        };
        let epoch = numbers("_perennial/epochs").into_iter().max().unwrap_or(0);
        Ok(Look {
            query: self.root.filename().unwrap_or_default().to_owned(),
            metadata: self.checked("metadata", Metadata::decode).await?,
            metadata_copy: self.checked("_perennial/metadata", Metadata::decode).await?,
            offsets: self.log("offsets", numbers("offsets"), OffsetEntry::decode).await?,
            commits: self.log("commits", numbers("commits"), CommitEntry::decode).await?,
            epoch,
            files,
        })
    }

    async fn log<T>(
        &self,
        dir: &str,
        numbers: Vec<u64>,
        decode: fn(&str) -> Result<T>,
    ) -> Result<BTreeMap<BatchId, Checked<T>>> {
        stream::iter(numbers)
            .map(|number| async move {
                let name = format!("{dir}/{number}");
                Ok((number, self.checked(&name, decode).await?))
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await
    }

    async fn checked<T>(&self, name: &str, decode: fn(&str) -> Result<T>) -> Result<Checked<T>> {
        let text = self.read(name).await?.map(|bytes| String::from_utf8(bytes.to_vec()));
        Checked::new(match text {
            None => Ok(None),
            Some(Ok(text)) => decode(&text).map(Some),
            Some(Err(_)) => Err(Error::new(class::CHECKPOINT_CORRUPT, "it is not text")),
        })
    }

    /// Looks, and reads every file of the state and of the sources' logs.
    pub async fn survey(&self) -> Result<Survey> {
        let look = self.look().await?;
        self.survey_of(look, |_, _| {}).await
    }

    /// Reads every file of the state and of the sources' logs, and says how far it is: bytes read, and all there are to read.
    pub async fn survey_of(&self, look: Look, progress: impl Fn(u64, u64)) -> Result<Survey> {
        let state = |name: &&String| name.starts_with("state/");
        let sources = |name: &&String| name.starts_with("sources/") || name.starts_with("_perennial/sources/");
        let size = |name: &String| look.files.get(name).map_or(0, |file| file.bytes);
        let all: u64 = look.files.keys().filter(|name| state(name) || sources(name)).map(size).sum();
        let mut done = 0;
        let mut checked_state = BTreeMap::new();
        for name in look.files.keys().filter(state) {
            let short = name.trim_start_matches("state/");
            let checked = match check_file(&self.env, &self.state_dir(), short).await {
                Ok(info) => Ok(info),
                Err(error) if error.kind() == ErrorKind::Corrupt || error.class() == class::CHECKPOINT_NEWER => {
                    Err(error.to_string())
                }
                Err(error) => return Err(error),
            };
            checked_state.insert(short.to_owned(), checked);
            done += size(name);
            progress(done, all);
        }
        let mut damaged_sources = BTreeMap::new();
        let logs = look.files.keys().filter(sources).map(|name| name.trim_start_matches("_perennial/").to_owned());
        for name in logs.collect::<BTreeSet<_>>() {
            let (content, sums) = (self.read(&name).await?, self.read(&format!("_perennial/{name}")).await?);
            match (&content, &sums) {
                (None, Some(_)) => drop(damaged_sources.insert(name.clone(), "it is missing, although it was written")),
                (Some(content), Some(sums)) if !fits(content, sums) => {
                    damaged_sources.insert(name.clone(), "its content does not fit its checksum");
                }
                _ => {}
            }
            done += size(&name) + size(&format!("_perennial/{name}"));
            progress(done, all);
        }
        let sources = damaged_sources.into_iter().map(|(name, why)| (name, why.to_owned())).collect();
        Ok(Survey { look, state: checked_state, sources })
    }
}
