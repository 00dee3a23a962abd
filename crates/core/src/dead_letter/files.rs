//! Dead letters in files: `failed_batches_YYYYMMDD.json` for people, and beside it the records, whole.
//!
//! The records of a batch and class are one object with a name that follows from the batch, so that writing it again changes nothing.
//! The entry is one line of the day's file, where the day is that of the batch timestamp: a batch that runs again looks for its
//! entries in one file and adds what is missing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::entry::entries_of;
use super::outcome::{self, Mark, Outcome, Standing};
use super::record::KeptRecord;
use super::retention::{file_of, is_daily_file, is_expired};
use super::{DeadLetter, DeadLetterStats, DeadLetters, Entry, EntrySummary, LetterBatch};
use crate::crash::{CrashPoint, CrashPoints};
use crate::error::{Error, Result};

/// A file that only grows, line by line.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Adds lines (each ended by `\n`) to the file `name`; durable when it returns. A last line without its end, left by a crash, is
    /// removed first.
    async fn append(&self, name: &str, lines: String) -> Result<()>;

    /// The content of the file; empty where there is none.
    async fn read(&self, name: &str) -> Result<Bytes>;

    /// Names of the files.
    async fn names(&self) -> Result<Vec<String>>;

    /// Removes the file; one that is not there is fine.
    async fn remove(&self, name: &str) -> Result<()>;
}

/// A journal on any object store, which cannot append: the file is written anew each time, unless somebody else wrote it since it was read.
/// A process that stood still in between, and was taken over, would write its old content over the lines of the other one.
#[async_trait]
impl Journal for Arc<dyn ObjectStore> {
    async fn append(&self, name: &str, lines: String) -> Result<()> {
        let path = Path::from(name);
        loop {
            let (mut content, mode) = match self.get(&path).await {
                Ok(found) => {
                    let version =
                        UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
                    (found.bytes().await?.to_vec(), PutMode::Update(version))
                }
                Err(object_store::Error::NotFound { .. }) => (Vec::new(), PutMode::Create),
                Err(error) => return Err(error.into()),
            };
            content.truncate(content.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1));
            // A client that got no answer writes again by itself, and is told then that somebody was faster.
            if content.windows(lines.len()).any(|part| part == lines.as_bytes()) {
                return Ok(());
            }
            content.extend_from_slice(lines.as_bytes());
            match self.put_opts(&path, content.into(), mode.into()).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        match self.get(&Path::from(name)).await {
            Ok(found) => Ok(found.bytes().await?),
            Err(object_store::Error::NotFound { .. }) => Ok(Bytes::new()),
            Err(error) => Err(error.into()),
        }
    }

    async fn names(&self) -> Result<Vec<String>> {
        let listed = self.list_with_delimiter(None).await?;
        Ok(listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
    }

    async fn remove(&self, name: &str) -> Result<()> {
        delete(self.as_ref(), &Path::from(name)).await
    }
}

/// Deletes an object; one that is not there is fine.
async fn delete(store: &dyn ObjectStore, path: &Path) -> Result<()> {
    match store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Dead letters in a directory or below an object store's prefix.
pub struct FileDeadLetters {
    objects: Arc<dyn ObjectStore>,
    journal: Arc<dyn Journal>,
    directory: String,
    retention: Option<Duration>,
    crash: CrashPoints,
    /// What is there, once it was read; kept up to date. Also makes the queries of a job take turns.
    stats: Mutex<Option<DeadLetterStats>>,
}

impl FileDeadLetters {
    /// Dead letters in `objects`, with the daily files in `journal` (the same place). `directory` is what people are told.
    pub fn new(objects: Arc<dyn ObjectStore>, journal: Arc<dyn Journal>, directory: impl Into<String>) -> Self {
        Self {
            objects,
            journal,
            directory: directory.into(),
            retention: None,
            crash: CrashPoints::default(),
            stats: Mutex::new(None),
        }
    }

    /// Keeps entries for this long, and up to a day longer; without it for ever.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// The same with the crash points of a process.
    #[must_use]
    pub fn with_crash_points(mut self, crash: CrashPoints) -> Self {
        self.crash = crash;
        self
    }

    /// Names of the daily files, oldest first.
    async fn daily_files(&self) -> Result<Vec<String>> {
        let mut names = self.journal.names().await?;
        names.retain(|name| is_daily_file(name));
        names.sort();
        Ok(names)
    }
}

/// The entries of a daily file. Lines that are not entries are somebody else's and are passed over.
fn parse_entries(content: &[u8]) -> impl Iterator<Item = Entry> {
    content.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

fn lines_of<T: serde::Serialize>(all: &[T]) -> Result<String> {
    let mut lines = String::new();
    for one in all {
        lines.push_str(&serde_json::to_string(one).map_err(|e| Error::bug(e.to_string()))?);
        lines.push('\n');
    }
    Ok(lines)
}

fn count(stats: &mut DeadLetterStats, entry: &Entry) {
    let summary = EntrySummary {
        batch_id: entry.batch_id,
        timestamp: entry.timestamp.clone(),
        error_type: entry.error.class.clone(),
    };
    stats.total_entries += 1;
    *stats.error_types.entry(entry.error.class.clone()).or_default() += 1;
    stats.first_error.get_or_insert_with(|| summary.clone());
    stats.last_error = Some(summary);
}

#[async_trait]
impl DeadLetters for FileDeadLetters {
    fn place(&self) -> String {
        self.directory.clone()
    }

    async fn write(&self, batch: &LetterBatch, letters: Vec<DeadLetter>) -> Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        let file = file_of(batch.timestamp_ms);
        let mut entries = Vec::new();
        for (entry, letters) in entries_of(batch, letters) {
            let packed = pack(batch, letters)?;
            self.objects.put(&Path::from(entry.records_object.as_str()), packed.into()).await?;
            entries.push(entry);
        }

        self.crash.pass(CrashPoint::LetterRecords).await;
        let mut stats = self.stats.lock().await;
        if batch.again {
            let known: HashSet<String> = parse_entries(&self.journal.read(&file).await?).map(|e| e.id).collect();
            entries.retain(|entry| !known.contains(&entry.id));
        }
        let lines = lines_of(&entries)?;
        if !lines.is_empty() {
            self.journal.append(&file, lines).await?;
        }
        if let Some(stats) = stats.as_mut() {
            entries.iter().for_each(|entry| count(stats, entry));
        }
        Ok(())
    }

    async fn stats(&self) -> Result<DeadLetterStats> {
        let mut stats = self.stats.lock().await;
        if stats.is_none() {
            let mut counted = DeadLetterStats { dlq_directory: self.directory.clone(), ..Default::default() };
            self.entries().await?.iter().for_each(|entry| count(&mut counted, entry));
            *stats = Some(counted);
        }
        Ok(stats.clone().unwrap_or_default())
    }

    async fn mark(&self, marks: &[Mark]) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let _turn = self.stats.lock().await;
        self.journal.append(outcome::FILE, lines_of(marks)?).await
    }

    // One that is there twice, because a process wrote it while another one took over, is the same and counts once.
    async fn entries(&self) -> Result<Vec<Entry>> {
        let (mut entries, mut known) = (Vec::new(), HashSet::new());
        for name in self.daily_files().await? {
            let content = self.journal.read(&name).await?;
            let found = parse_entries(&content);
            entries.extend(found.filter(|entry| known.insert(entry.id.clone())));
        }
        Ok(entries)
    }

    async fn standings(&self) -> Result<BTreeMap<String, Standing>> {
        let content = self.journal.read(outcome::FILE).await?;
        let marks = content.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Mark>(line).ok());
        let mut standings: BTreeMap<String, Standing> = BTreeMap::new();
        for mark in marks {
            let before = standings.get(&mark.entry).map_or(0, |standing| standing.replays);
            let replays = before + u64::from(mark.outcome == Outcome::Replaying);
            standings.insert(mark.entry.clone(), Standing { mark, replays });
        }
        Ok(standings)
    }

    async fn records(&self, entry: &Entry) -> Result<Vec<Map<String, Value>>> {
        let packed = self.objects.get(&Path::from(entry.records_object.as_str())).await?.bytes().await?;
        let damaged = |what: String| {
            Error::new(crate::error::class::CHECKPOINT_CORRUPT, format!("{}: {what}", entry.records_object))
        };
        let plain = zstd::decode_all(packed.as_ref()).map_err(|e| damaged(format!("does not decompress: {e}")))?;
        let lines = plain.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(|e| damaged(format!("is not JSON: {e}")))).collect()
    }

    async fn purge(&self, gone: &HashSet<String>) -> Result<u64> {
        let mut stats = self.stats.lock().await;
        let mut removed = 0;
        for name in self.daily_files().await? {
            let content = self.journal.read(&name).await?;
            let (go, stay): (Vec<Entry>, Vec<Entry>) =
                parse_entries(&content).partition(|entry| gone.contains(&entry.id));
            if go.is_empty() {
                continue;
            }
            for entry in &go {
                delete(self.objects.as_ref(), &Path::from(entry.records_object.as_str())).await?;
            }
            if stay.is_empty() {
                self.journal.remove(&name).await?;
            } else {
                let lines = lines_of(&stay)?;
                self.objects.put(&Path::from(name.as_str()), lines.into()).await?;
            }
            removed += go.len() as u64;
            *stats = None;
        }
        Ok(removed)
    }

    async fn expire(&self, now_ms: i64) -> Result<u64> {
        let Some(retention) = self.retention else { return Ok(0) };
        let mut stats = self.stats.lock().await;
        let mut removed = 0;
        for name in self.daily_files().await?.iter().filter(|name| is_expired(name, now_ms, retention)) {
            // The records first: as long as the file is there, it is known what is left to remove.
            let entries: Vec<Entry> = parse_entries(&self.journal.read(name).await?).collect();
            for entry in &entries {
                delete(self.objects.as_ref(), &Path::from(entry.records_object.as_str())).await?;
            }
            self.journal.remove(name).await?;
            removed += entries.len() as u64;
            // Counted anew when somebody asks.
            *stats = None;
        }
        Ok(removed)
    }
}

/// The records, one JSON object a line, compressed.
fn pack(batch: &LetterBatch, letters: Vec<DeadLetter>) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    for letter in letters {
        let line = KeptRecord::new(batch, letter).to_json();
        serde_json::to_writer(&mut plain, &line).map_err(|e| Error::bug(e.to_string()))?;
        plain.push(b'\n');
    }
    zstd::encode_all(plain.as_slice(), 3).map_err(|e| Error::bug(format!("dead letters do not compress: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::Stage;
    use crate::error::class;
    use crate::records::{RawRecord, RecordPosition};
    use futures::TryStreamExt;
    use object_store::memory::InMemory;
    use serde_json::json;

    fn letter(offset: i64, value: &'static [u8]) -> DeadLetter {
        DeadLetter {
            source: "readings".into(),
            record: RawRecord {
                key: Some(Bytes::from_static(b"\x00k")),
                value: Some(Bytes::from_static(value)),
                position: RecordPosition::Kafka { topic: "t".into(), partition: 0, offset, timestamp: 5 },
            },
            stage: Stage::Decode,
            class: class::MALFORMED_RECORD,
            message: format!("record {offset} is wrong"),
            rules: vec![],
        }
    }

    fn batch(batch: u64, again: bool) -> LetterBatch {
        LetterBatch {
            query: "q".into(),
            batch,
            timestamp_ms: 1_763_718_330_123,
            last_timestamp_ms: 1_763_718_000_000,
            records_read: 100,
            job_version: "1.0".into(),
            again,
        }
    }

    #[tokio::test]
    async fn letters_are_whole_and_written_once_even_when_a_crash_tore_the_file() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let open = || FileDeadLetters::new(store.clone(), Arc::new(store.clone()), "./dlq");
        let letters = || vec![letter(8, b"\xff\x00"), letter(7, br#"{"steps": 8450}"#)];
        open().write(&batch(1, false), letters()).await.unwrap();
        // The process died while it wrote the entry of batch 2, and runs batch 2 again; batch 1's entry is there already.
        let name = Path::from("failed_batches_20251121.json");
        let mut torn = store.get(&name).await.unwrap().bytes().await.unwrap().to_vec();
        torn.extend_from_slice(br#"{"batch_id": 2, "timest"#);
        store.put(&name, torn.into()).await.unwrap();
        let reopened = open();
        reopened.write(&batch(1, true), letters()).await.unwrap();
        reopened.write(&batch(2, true), letters()).await.unwrap();
        reopened.write(&batch(2, true), letters()).await.unwrap();

        let entries = reopened.entries().await.unwrap();
        assert_eq!(entries.iter().map(|e| e.batch_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(entries[0].timestamp, "2025-11-21T09:45:30.123000");
        assert_eq!(entries[0].error.message, "record 7 is wrong", "in the order of the records");
        assert_eq!(entries[0].sample_records, [json!({"steps": 8450}), json!({"_raw_base64": "/wA="})]);
        let records = reopened.records(&entries[1]).await.unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!((&records[0]["offset"], &records[0]["value"]), (&json!(7), &json!(r#"{"steps": 8450}"#)));
        assert_eq!((&records[1]["value_base64"], &records[1]["key"]), (&json!("/wA="), &json!("\u{0}k")));

        let stats = reopened.stats().await.unwrap();
        assert_eq!(stats.total_entries, 2);
        assert_eq!(stats.error_types["MalformedRecord"], 2);
        assert_eq!(stats.first_error.unwrap().batch_id, 1);
        assert_eq!(stats.last_error.unwrap().batch_id, 2);
    }

    #[tokio::test]
    async fn what_is_older_than_the_retention_goes_whole_and_the_rest_stays() {
        const DAY: u64 = 86_400_000;
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let open = || FileDeadLetters::new(store.clone(), Arc::new(store.clone()), "./dlq");
        let start = batch(0, false).timestamp_ms;
        for day in 0..5 {
            let batch = LetterBatch { timestamp_ms: start + (day * DAY) as i64, ..batch(day, false) };
            open().write(&batch, vec![letter(day as i64, b"x")]).await.unwrap();
        }
        store.put(&Path::from("readme.txt"), "not ours".into()).await.unwrap();
        let after_five_days = start + 5 * DAY as i64;
        assert_eq!(open().expire(after_five_days).await.unwrap(), 0, "for ever, unless it is said for how long");

        let letters = open().with_retention(Duration::from_millis(2 * DAY));
        assert_eq!(letters.stats().await.unwrap().total_entries, 5);
        assert_eq!(letters.expire(after_five_days).await.unwrap(), 3);
        assert_eq!(letters.expire(after_five_days).await.unwrap(), 0);
        let left = letters.entries().await.unwrap();
        assert_eq!(left.iter().map(|entry| entry.batch_id).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(letters.stats().await.unwrap().total_entries, 2);
        assert_eq!(letters.records(&left[0]).await.unwrap().len(), 1);
        let objects: Vec<_> = store.list(None).map_ok(|object| object.location).try_collect().await.unwrap();
        assert_eq!(
            objects.len(),
            2 + 2 + 1,
            "two files, the records of two entries, and what is not ours: {objects:?}"
        );
    }
}
