//! Files in a directory: each new one exactly once, oldest first.
//!
//! `latest` lists the directory, logs the files of the next batch in the source's own log (Spark's format, see [`log`]) and returns the
//! number of that log entry; `read` reads exactly the logged files, and of each exactly the bytes that it had when it was logged.

mod all;
mod listing;
mod log;
mod parquet;
mod text;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::source::{InputStream, Lag, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

pub(crate) use self::all::AllFiles;
use self::listing::{Found, Listing};
use self::log::{Entry, FileLog};
use super::stream::{Output, read_ahead};

/// Files of a local directory, each read exactly once, oldest first. The format is that of the source (`format: json | csv | parquet`); text
/// may be compressed (`.gz`, `.zst`).
///
/// Not read are: hidden files and directories (names that begin with `.` or `_`), names that end in `.tmp`, `.part` or `.inprogress`,
/// empty files, and files that changed within the last `settle`. Who writes files for this source best writes them under such a name and
/// renames them. A file is known by its path: what is appended or replaced after it was read is not read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// A directory, a file, or a glob (`*`, `?`, `[a-z]`, and `**` for directories at any depth): `./data`, `/in/2026-*/*.json.gz`.
    pub path: String,
    /// Whether directories inside a directory are read, too. Default: false.
    #[serde(default)]
    pub recursive: bool,
    /// At most this many files in one batch. Default: no limit.
    #[serde(default)]
    pub max_files_per_batch: Option<u64>,
    /// At most this many bytes (as stored, so compressed ones count as they are) in one batch, but always at least one file.
    /// Default: no limit.
    #[serde(default)]
    pub max_bytes_per_batch: Option<u64>,
    /// How long a file must not have changed before it is read, so that files that are still being written are not read half. `0s`
    /// where files only ever appear whole (by rename). Default: 1 second.
    #[serde(default = "default_settle")]
    pub settle: HumanDuration,
}

fn default_settle() -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs(1))
}

impl FilesSource {
    /// The settings of a directory or glob, all others at their defaults.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            recursive: false,
            max_files_per_batch: None,
            max_bytes_per_batch: None,
            settle: default_settle(),
        }
    }
}

impl SourceFactory for FilesSource {
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        let settings = self;
        for (name, limit) in [
            ("max_files_per_batch", settings.max_files_per_batch),
            ("max_bytes_per_batch", settings.max_bytes_per_batch),
        ] {
            if limit == Some(0) {
                return Err(Error::new(
                    class::CONFIG_INVALID,
                    format!("{name} is 0: give at least 1, or leave it out"),
                ));
            }
        }
        let listing = Listing::new(&settings.path, settings.recursive, settings.settle.0)?;
        Ok(Box::new(Files { log: Mutex::new(None), listing: Arc::new(listing), settings: settings.clone(), context }))
    }
}

/// Spark's offset of a file source: all entries of the log up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LogOffset {
    #[serde(rename = "logOffset")]
    entry: u64,
}

impl LogOffset {
    /// Number of the entry behind an offset.
    fn next(offset: Option<&Offset>) -> Result<u64> {
        offset.map_or(Ok(0), |offset| Ok(offset.decode::<Self>()?.entry + 1))
    }
}

struct Files {
    settings: FilesSource,
    context: SourceContext,
    listing: Arc<Listing>,
    /// Read from the checkpoint at the first use.
    log: Mutex<Option<FileLog>>,
}

impl Files {
    /// Files that are not in the log yet, oldest first.
    async fn new_files(&self, log: &FileLog) -> Result<Vec<Found>> {
        let (listing, seen) = (self.listing.clone(), log.seen());
        let now_us = self.context.env.clock.now_micros();
        blocking(move || listing.list(&seen, now_us)).await
    }

    /// How many of the files, from the front, make the next batch: as many as the limits allow, but at least one.
    fn batch_len(&self, files: &[Found], limit: &ReadLimit) -> usize {
        // Records cannot be counted before they are read: with a limit on them, a single file is the smallest step.
        let most_files =
            if limit.max_records.is_some() { 1 } else { self.settings.max_files_per_batch.unwrap_or(u64::MAX) };
        let most_bytes = self.settings.max_bytes_per_batch.unwrap_or(u64::MAX);
        let mut bytes = 0_u64;
        let fitting = files.iter().take(usize::try_from(most_files).unwrap_or(usize::MAX)).take_while(|file| {
            bytes = bytes.saturating_add(file.size);
            bytes <= most_bytes
        });
        fitting.count().max(1)
    }

    async fn locked(&self) -> Result<tokio::sync::MappedMutexGuard<'_, FileLog>> {
        let mut guard = self.log.lock().await;
        if guard.is_none() {
            *guard = Some(FileLog::load(self.context.log.clone()).await?);
        }
        tokio::sync::MutexGuard::try_map(guard, Option::as_mut)
            .map_err(|_| Error::bug("the log of files was not loaded"))
    }
}

#[async_trait]
impl Source for Files {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        let next = LogOffset::next(start)?;
        if let Some(until) = &limit.until
            && LogOffset::next(Some(until))? <= next
        {
            return Ok(start.cloned());
        }
        let mut log = self.locked().await?;
        log.expect_up_to(next)?;
        // An entry without a batch: the process ended between the two, or an `available_now` run logged ahead.
        if log.next() == next {
            let files = self.new_files(&log).await?;
            if files.is_empty() {
                return Ok(start.cloned());
            }
            let count = self.batch_len(&files, limit);
            log.append(&files[..count]).await?;
        }
        Offset::encode(&LogOffset { entry: next }).map(Some)
    }

    async fn newest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        let mut log = self.locked().await?;
        log.expect_up_to(LogOffset::next(start)?)?;
        let files = self.new_files(&log).await?;
        let (unsettled, settle) = (self.listing.unsettled(), self.settings.settle);
        if unsettled > 0 {
            let path = &self.settings.path;
            tracing::info!(
                "{unsettled} files in {path} changed within the last {settle} (`settle`) and are left for the next run"
            );
        }
        let mut rest = &files[..];
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(self.batch_len(rest, limit));
            log.append(batch).await?;
            rest = behind;
        }
        match log.next() {
            0 => Ok(None),
            next => Offset::encode(&LogOffset { entry: next - 1 }).map(Some),
        }
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let (from, to) = (LogOffset::next(range.start.as_ref())?, LogOffset::next(Some(&range.end))?);
        let entries = {
            let log = self.locked().await?;
            log.expect_up_to(to)?;
            log.entries(from, to)?
        };
        let (rows, schema) = (self.context.rows, self.context.schema.clone());
        let shares = blocking(move || {
            let mut units = Vec::new();
            for entry in &entries {
                units.extend(Unit::of_file(entry, rows)?);
            }
            Ok(share_out(units, parallelism.max(1)))
        })
        .await?;
        Ok(shares
            .into_iter()
            .map(|units| {
                let schema = schema.clone();
                read_ahead(move |output| read_units(&units, &schema, output))
            })
            .collect())
    }

    async fn lag(&self, end: Option<&Offset>) -> Result<Option<Lag>> {
        let log = self.locked().await?;
        let logged: usize = log.entries(LogOffset::next(end)?, log.next())?.len();
        let found = self.new_files(&log).await?.len();
        let waiting = (logged + found) as u64;
        Ok(Some(Lag { records: None, partitions: vec![("files".to_owned(), waiting)] }))
    }

    async fn check(&self) -> Result<()> {
        let log = self.locked().await?;
        self.new_files(&log).await.map(|_| ())
    }
}

/// Runs file-system calls on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::bug(format!("a file-system call broke down: {panic}"))),
    }
}

/// A logged file on disk.
#[derive(Debug)]
struct LoggedFile {
    path: PathBuf,
    /// The path, as messages and positions show it.
    shown: Arc<str>,
    /// How many of its bytes belong to the query: those it had when it was logged.
    size: u64,
}

impl LoggedFile {
    fn new(entry: &Entry) -> Result<Self> {
        let path = entry.to_path()?;
        let shown: Arc<str> = path.to_string_lossy().into();
        let mut file = Self { path, shown, size: 0 };
        let now = file.open()?.metadata().map_err(|e| io_error("read", &file.path, e))?.len();
        file.size = entry.size.unwrap_or(now);
        if now < file.size {
            return Err(file.lost(&format!("has {now} bytes now and had {} when the query saw it", file.size)));
        }
        if now > file.size {
            tracing::warn!(
                file = &*file.shown,
                read = file.size,
                now,
                "the file has grown since the query saw it; what was appended is not read: write under a hidden name and rename"
            );
        }
        Ok(file)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.lost("is gone"),
            _ => io_error("read", &self.path, error),
        })
    }

    fn lost(&self, what: &str) -> Error {
        Error::new(
            class::DATA_LOSS,
            format!(
                "{} {what}: the query has logged this file and cannot go on without it; put it back as it was",
                self.shown
            ),
        )
    }

    /// An error in the middle of reading; an end that comes too early is a file that shrank.
    fn read_error(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.lost("has shrunk while it was read"),
            _ => io_error("read", &self.path, error),
        }
    }
}

/// What one core reads in one go.
#[derive(Debug)]
enum Unit {
    /// The lines that begin in a part of a file.
    Lines { file: Arc<LoggedFile>, start: u64, end: u64 },
    /// All lines of a compressed file.
    Compressed { file: Arc<LoggedFile>, codec: text::Codec },
    /// A row group of a Parquet file.
    RowGroup(parquet::RowGroup),
}

impl Unit {
    /// The units of a file, in order.
    fn of_file(entry: &Entry, rows: bool) -> Result<Vec<Self>> {
        let file = Arc::new(LoggedFile::new(entry)?);
        Ok(match (rows, text::Codec::of(&file.path)) {
            (true, _) => parquet::row_groups(&file)?.into_iter().map(Self::RowGroup).collect(),
            (false, Some(codec)) => vec![Self::Compressed { file, codec }],
            (false, None) => {
                text::parts(file.size).map(|(start, end)| Self::Lines { file: file.clone(), start, end }).collect()
            }
        })
    }

    /// How much work it is, in bytes.
    fn weight(&self) -> u64 {
        match self {
            Self::Lines { start, end, .. } => end - start,
            // Text usually shrinks to a fifth.
            Self::Compressed { file, .. } => file.size * 5,
            Self::RowGroup(group) => group.bytes,
        }
    }
}

/// Gives each unit, in order, to the stream with the least work: the same streams at every replay.
fn share_out(units: Vec<Unit>, parallelism: usize) -> Vec<Vec<Unit>> {
    let mut shares: Vec<(u64, Vec<Unit>)> = (0..parallelism).map(|_| (0, Vec::new())).collect();
    for unit in units {
        if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
            *load += unit.weight().max(1);
            share.push(unit);
        }
    }
    shares.into_iter().map(|(_, share)| share).filter(|share| !share.is_empty()).collect()
}

fn read_units(units: &[Unit], schema: &SchemaRef, output: &Output) -> Result<()> {
    let mut open: Option<(Arc<LoggedFile>, File)> = None;
    for unit in units {
        let go_on = match unit {
            Unit::Lines { file, start, end } => {
                // Parts of one file follow each other: it stays open.
                let handle = match &mut open {
                    Some((current, handle)) if Arc::ptr_eq(current, file) => handle,
                    _ => &mut open.insert((file.clone(), file.open()?)).1,
                };
                text::read_part(file, handle, *start, *end)?.is_none_or(|block| output.send(block))
            }
            Unit::Compressed { file, codec } => text::read_compressed(file, *codec, output)?,
            Unit::RowGroup(group) => group.read(schema, output)?,
        };
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// An error of the file system, with the path and, where it is about rights, the user.
fn io_error(action: &str, path: &Path, error: io::Error) -> Error {
    let shown = path.display();
    let (class, message) = match error.kind() {
        io::ErrorKind::NotFound => (class::STORAGE_NOT_FOUND, format!("{shown} does not exist: check the path")),
        io::ErrorKind::PermissionDenied => (
            class::STORAGE_PERMISSION_DENIED,
            format!("user {} may not {action} {shown}: grant the right to read it", user()),
        ),
        _ => (class::STORAGE_UNAVAILABLE, format!("cannot {action} {shown}: {error}")),
    };
    Error::new(class, message).caused_by(error)
}

/// The user that the process runs as, for messages.
fn user() -> String {
    #[cfg(unix)]
    if let Ok(this) = std::fs::metadata("/proc/self") {
        let uid = std::os::unix::fs::MetadataExt::uid(&this).to_string();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        });
        return name.unwrap_or_else(|| format!("with the id {uid}"));
    }
    std::env::var("USER").unwrap_or_else(|_| "of this process".to_owned())
}

#[cfg(test)]
mod tests;
