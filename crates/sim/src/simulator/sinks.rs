//! Models of the sinks, one per way in which a sink keeps a batch from counting twice. Their target outlives the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use async_trait::async_trait;
use futures::TryStreamExt;
use parking_lot::Mutex;
use perennial_core::crash::{CrashPoint, CrashPoints};
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};

use super::Bug;
use super::life::{Effect, Life, lost};

/// How a sink writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkKind {
    /// Rows and an entry in the ledger are one transaction (sqlite, postgres).
    Ledger,
    /// Rows are staged and published together with the batch number, in two steps (a transactional producer).
    Staged,
    /// Files whose names follow from the batch, put in place one by one (files).
    Files,
    /// Rows overwrite those of their key, without a ledger (influxdb).
    Keyed,
    /// Rows overwrite those of their key; they and an entry in the ledger are one transaction (sqlite and postgres with a key).
    Upsert,
}

impl SinkKind {
    /// The kinds that take rows of this mode.
    pub fn of(mode: OutputMode) -> &'static [Self] {
        match mode {
            OutputMode::Append => &[Self::Ledger, Self::Staged, Self::Files, Self::Keyed],
            _ => &[Self::Upsert],
        }
    }
}

/// What arrived.
#[derive(Debug, Default)]
pub struct Target {
    /// Rows of tables and logs, in the order of their arrival.
    appended: Vec<String>,
    /// Rows by batch and file.
    files: BTreeMap<(u64, usize), Vec<String>>,
    /// Rows by key.
    keyed: BTreeMap<String, String>,
    /// Per batch what was written of it.
    ledger: BTreeMap<u64, Vec<String>>,
    /// What is staged, by epoch and batch.
    staged: BTreeMap<(u64, u64), Vec<String>>,
    /// The greatest epoch that wrote.
    epoch: u64,
    /// Batches that were offered and there already.
    pub duplicates: u64,
    pub violations: BTreeSet<String>,
}

impl Target {
    /// All rows that readers see, sorted.
    pub fn rows(&self) -> Vec<String> {
        let files = self.files.values().flatten();
        let mut rows: Vec<String> = self.appended.iter().chain(files).chain(self.keyed.values()).cloned().collect();
        rows.sort_unstable();
        rows
    }

    /// Whether the sink has rows of a batch.
    pub fn has(&self, batch: u64) -> bool {
        self.ledger.contains_key(&batch) || self.files.keys().any(|(there, _)| *there == batch)
    }

    /// Somebody changes something.
    fn change(&mut self, batch: &SinkBatch) {
        if batch.epoch < self.epoch {
            self.violations.insert(format!(
                "a fenced writer (epoch {}) changed batch {} after epoch {} had written",
                batch.epoch, batch.id, self.epoch
            ));
        }
        self.epoch = self.epoch.max(batch.epoch);
    }

    /// Whether the ledger has the batch already; refuses writers that are fenced or far behind.
    fn known(&mut self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        if let Some(there) = self.ledger.get(&batch.id) {
            if there != rows {
                self.violations.insert(format!("batch {} came again with other rows", batch.id));
            }
            self.duplicates += 1;
            return Ok(true);
        }
        if batch.epoch < self.epoch {
            return Err(Error::new(class::FENCED, "a later run of this query has written"));
        }
        if self.ledger.last_key_value().is_some_and(|(newest, _)| *newest > batch.id) {
            self.violations.insert(format!("batch {} came after a later one", batch.id));
        }
        Ok(false)
    }
}

/// A batch that a sink was offered, and its rows.
pub type Offered = (SinkBatch, Vec<String>);

#[derive(Debug, Clone)]
pub struct SimSink {
    pub kind: SinkKind,
    /// So many of the first columns are the key.
    pub keys: usize,
    pub target: Arc<Mutex<Target>>,
    pub life: Arc<Life>,
    pub crash: CrashPoints,
    pub bug: Option<Bug>,
    /// What it said to be durable and is not, where it lies.
    pub held_back: Arc<Mutex<Option<Offered>>>,
}

impl SimSink {
    /// A step in the target; it may take effect although the sink is told that it failed.
    async fn step<T>(&self, what: &str, step: impl FnOnce(&mut Target) -> Result<T>) -> Result<T> {
        match self.life.begin("sink", what).await {
            Some(Effect::None) => Err(lost()),
            None => step(&mut self.target.lock()),
            Some(Effect::Done) => {
                let done = step(&mut self.target.lock());
                self.life.lose_answer().await;
                done.and(Err(lost()))
            }
        }
    }

    /// One transaction: the ledger is asked, rows are written, the ledger gets its entry.
    async fn transaction(&self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        self.crash.pass(CrashPoint::SinkStaged).await;
        let outside = self.bug == Some(Bug::LedgerOutside);
        let known = self.step("transaction", |target| {
            if target.known(batch, rows)? {
                return Ok(true);
            }
            target.change(batch);
            match self.kind {
                SinkKind::Upsert => target.keyed.extend(rows.iter().map(|row| (self.key(row), row.clone()))),
                _ => target.appended.extend_from_slice(rows),
            }
            if !outside {
                target.ledger.insert(batch.id, rows.to_vec());
            }
            Ok(false)
        });
        let known = known.await?;
        self.crash.pass(CrashPoint::SinkPublished).await;
        if outside && !known {
            self.step("ledger", |target| {
                target.ledger.insert(batch.id, rows.to_vec());
                Ok(())
            })
            .await?;
        }
        Ok(known)
    }

    async fn stage_and_publish(&self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        let place = (batch.epoch, batch.id);
        self.step("stage", |target| {
            // A transaction that an earlier process left open is given up.
            target.staged.retain(|(epoch, _), _| *epoch >= batch.epoch);
            target.staged.insert(place, rows.to_vec());
            Ok(())
        })
        .await?;
        self.crash.pass(CrashPoint::SinkStaged).await;
        let known = self.step("publish", |target| {
            let Some(rows) = target.staged.remove(&place) else {
                return Err(Error::new(class::FENCED, "the transaction was given up by a later process"));
            };
            if target.known(batch, &rows)? {
                return Ok(true);
            }
            target.change(batch);
            target.appended.extend_from_slice(&rows);
            target.ledger.insert(batch.id, rows);
            Ok(false)
        });
        let known = known.await?;
        self.crash.pass(CrashPoint::SinkPublished).await;
        Ok(known)
    }

    async fn put_files(&self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        self.crash.pass(CrashPoint::SinkStaged).await;
        let half = rows.len() / 2;
        for (file, rows) in [&rows[..half], &rows[half..]].into_iter().enumerate() {
            self.step("file", |target| {
                if target.files.get(&(batch.id, file)).is_none_or(|there| there != rows) {
                    target.change(batch);
                    target.files.insert((batch.id, file), rows.to_vec());
                }
                Ok(())
            })
            .await?;
            self.crash.pass(CrashPoint::SinkHalf).await;
        }
        self.crash.pass(CrashPoint::SinkPublished).await;
        Ok(false)
    }

    async fn overwrite(&self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        let half = rows.len() / 2;
        for rows in [&rows[..half], &rows[half..]] {
            self.step("points", |target| {
                for row in rows {
                    if target.keyed.get(&self.key(row)) != Some(row) {
                        target.change(batch);
                        target.keyed.insert(self.key(row), row.clone());
                    }
                }
                Ok(())
            })
            .await?;
            self.crash.pass(CrashPoint::SinkHalf).await;
        }
        self.crash.pass(CrashPoint::SinkPublished).await;
        Ok(false)
    }

    fn key(&self, row: &str) -> String {
        row.split('|').take(self.keys).collect::<Vec<_>>().join("|")
    }

    async fn put(&self, batch: &SinkBatch, rows: &[String]) -> Result<bool> {
        match self.kind {
            SinkKind::Ledger | SinkKind::Upsert => self.transaction(batch, rows).await,
            SinkKind::Staged => self.stage_and_publish(batch, rows).await,
            SinkKind::Files => self.put_files(batch, rows).await,
            SinkKind::Keyed => self.overwrite(batch, rows).await,
        }
    }
}

#[async_trait]
impl Sink for SimSink {
    fn delivery(&self) -> Delivery {
        match self.kind {
            SinkKind::Keyed => Delivery::IdempotentByKey,
            _ => Delivery::IdempotentByBatch,
        }
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        let mut rows = Vec::new();
        for batch in &batches {
            rows.extend(texts(batch)?);
        }
        rows.sort_unstable();
        self.life.say(&format!("batch {} has {rows:?}", batch.id));
        let count = rows.len() as u64;
        let duplicate = if self.bug == Some(Bug::CommitBeforeSink) {
            let before = self.held_back.lock().replace((batch.clone(), rows));
            match before {
                Some((batch, rows)) => self.put(&batch, &rows).await?,
                None => false,
            }
        } else {
            self.put(batch, &rows).await?
        };
        Ok(Written { rows: count, bytes: 0, duplicate })
    }
}

impl SinkFactory for SimSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(self.clone()))
    }
}

/// Rows as texts: times in microseconds, fields with a `|` between them.
fn texts(rows: &RecordBatch) -> Result<Vec<String>> {
    let mut texts = vec![String::new(); rows.num_rows()];
    for (number, column) in rows.columns().iter().enumerate() {
        let values = match column.data_type() {
            DataType::Timestamp(..) => {
                let micros = cast(column, &DataType::Int64)?;
                let micros = micros.as_primitive::<Int64Type>();
                micros.iter().map(|value| value.map(|micros| micros.to_string())).collect::<Vec<_>>()
            }
            _ => {
                let strings = cast(column, &DataType::Utf8)?;
                strings.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect()
            }
        };
        for (text, value) in texts.iter_mut().zip(values) {
            if number > 0 {
                text.push('|');
            }
            text.push_str(&value.unwrap_or_else(|| "NULL".to_owned()));
        }
    }
    Ok(texts)
}
