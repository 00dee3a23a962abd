//! The log of files seen, in the format of Spark's file source.
//!
//! Entry `n` is the file `n` (from 0 on, without gaps): `v1`, then one line per file. Every tenth one is named `<n>.compact` and holds
//! all lines so far, oldest first, so that the older files of the log can go. Perennial adds the size of each file.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use perennial_core::checkpoint::SourceLog;
use perennial_core::error::{Error, Result, class};
use serde::{Deserialize, Serialize};

use super::listing::Found;

const VERSION: &str = "v1";
/// Spark's `fileSource.log.compactInterval`.
const COMPACT_INTERVAL: u64 = 10;
/// So many entries stay behind the last compact one, as in Spark: for eyes, and for a process that was paused and still reads them.
const RETAINED: u64 = 100;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `file:///…`
    pub path: Arc<str>,
    /// Time of the file's last change, in milliseconds since the epoch.
    pub timestamp: i64,
    /// Number of the log entry that first had the file.
    #[serde(rename = "batchId")]
    pub batch_id: u64,
    /// Size in bytes; Spark's own logs lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Entry {
    /// Gives the path the spelling that it has in a listing: Spark escapes other characters, and files are known by their paths.
    fn spell_path(&mut self) {
        if self.size.is_none()
            && let Ok(path) = self.to_path()
            && let Ok(url) = url::Url::from_file_path(path)
        {
            self.path = String::from(url).into();
        }
    }

    pub(super) fn to_path(&self) -> Result<PathBuf> {
        url::Url::parse(&self.path).ok().and_then(|url| url.to_file_path().ok()).ok_or_else(|| {
            Error::new(
                class::CHECKPOINT_MISMATCH,
                format!("the log of files names {}, which is not a local file", self.path),
            )
        })
    }
}

/// The log, and in memory all that it holds.
#[derive(Debug)]
pub(super) struct FileLog {
    log: SourceLog,
    entries: Vec<Entry>,
    seen: Arc<HashSet<Arc<str>>>,
    /// Number of the next entry.
    next: u64,
    /// Number of the oldest file of the log that is still there.
    oldest: u64,
}

impl FileLog {
    pub(super) async fn load(log: SourceLog) -> Result<Self> {
        let mut plain = Vec::new();
        let mut compact = Vec::new();
        for name in log.names().await? {
            match (name.parse(), name.strip_suffix(".compact").map(str::parse)) {
                (Ok(number), _) => plain.push(number),
                (_, Some(Ok(number))) => compact.push(number),
                // Checksums and temporary files of other writers.
                _ => {}
            }
        }
        plain.sort_unstable();
        let oldest = plain.iter().chain(&compact).copied().min().unwrap_or(0);
        let mut loaded = Self { log, entries: Vec::new(), seen: Arc::default(), next: 0, oldest };
        let last_compact: Option<u64> = compact.iter().copied().max();
        if let Some(number) = last_compact {
            let entries = loaded.read(&format!("{number}.compact")).await?;
            loaded.extend(entries);
            loaded.next = number + 1;
        }
        for number in plain.into_iter().filter(|number| last_compact.is_none_or(|compact| *number > compact)) {
            if number != loaded.next {
                return Err(loaded.missing(loaded.next));
            }
            let entries = loaded.read(&number.to_string()).await?;
            loaded.extend(entries);
            loaded.next = number + 1;
        }
        Ok(loaded)
    }

    async fn read(&self, name: &str) -> Result<Vec<Entry>> {
        let corrupt =
            |what: String| Error::new(class::CHECKPOINT_CORRUPT, format!("log of files, entry {name}: {what}"));
        let content = self.log.read(name).await?.ok_or_else(|| corrupt("it vanished while it was read".into()))?;
        let text = std::str::from_utf8(&content).map_err(|e| corrupt(e.to_string()))?;
        let mut lines = text.lines();
        match lines.next() {
            Some(VERSION) => {}
            version => {
                let found = version.unwrap_or_default();
                return Err(corrupt(format!("its version is `{found}`, and only `{VERSION}` is known")));
            }
        }
        lines
            .map(|line| {
                let mut entry: Entry = serde_json::from_str(line)
                    .map_err(|e| corrupt(format!("the line `{line}` is not of this log: {e}")))?;
                entry.spell_path();
                Ok(entry)
            })
            .collect()
    }

    fn extend(&mut self, entries: Vec<Entry>) {
        // Shared with a listing only while one is under way, which never is while the log grows.
        Arc::make_mut(&mut self.seen).extend(entries.iter().map(|entry| entry.path.clone()));
        self.entries.extend(entries);
    }

    fn missing(&self, number: u64) -> Error {
        Error::new(
            class::CHECKPOINT_CORRUPT,
            format!(
                "entry {number} of the log of files is missing, so it is not known which files were read; restore it"
            ),
        )
    }

    /// Number of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Paths of all files that were ever logged.
    pub(super) fn seen(&self) -> Arc<HashSet<Arc<str>>> {
        self.seen.clone()
    }

    /// Refuses an offset that the log does not reach.
    pub(super) fn expect_up_to(&self, next: u64) -> Result<()> {
        if next > self.next { Err(self.missing(self.next)) } else { Ok(()) }
    }

    /// Files of the entries `from..to`.
    pub(super) fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>> {
        self.expect_up_to(to)?;
        let at = |number| self.entries.partition_point(|entry| entry.batch_id < number);
        Ok(self.entries[at(from)..at(to).max(at(from))].to_vec())
    }

    /// Logs files as the next entry; durable when it returns.
    pub(super) async fn append(&mut self, files: &[Found]) -> Result<()> {
        let number = self.next;
        let new: Vec<_> = files
            .iter()
            .map(|file| Entry {
                path: file.url.clone(),
                timestamp: file.modified_ms,
                batch_id: number,
                size: Some(file.size),
            })
            .collect();
        let compact = (number + 1).is_multiple_of(COMPACT_INTERVAL);
        if compact {
            let all = render(self.entries.iter().chain(&new))?;
            self.log.write(&format!("{number}.compact"), all.into()).await?;
        } else {
            self.log.write(&number.to_string(), render(&new)?.into()).await?;
        }
        self.extend(new);
        self.next = number + 1;
        if compact {
            self.remove_before(number.saturating_sub(RETAINED)).await;
        }
        Ok(())
    }

    /// Removes entries that a compact one holds. What cannot be removed now costs room, but nothing else.
    async fn remove_before(&mut self, end: u64) {
        while self.oldest < end {
            for name in [self.oldest.to_string(), format!("{}.compact", self.oldest)] {
                if let Err(error) = self.log.delete(&name).await {
                    tracing::warn!(%error, entry = name, "an old entry of the log of files cannot be removed");
                    return;
                }
            }
            self.oldest += 1;
        }
    }
}

fn render<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<String> {
    let mut text = VERSION.to_owned();
    for entry in entries {
        text.push('\n');
        text.push_str(
            &serde_json::to_string(entry).map_err(|e| Error::bug(format!("a log entry does not encode: {e}")))?,
        );
    }
    Ok(text)
}
