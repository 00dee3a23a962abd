//! Giving a query to Spark: the logs, and its state as files of the HDFS-backed provider.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::concat_batches;
use bytes::Bytes;
use perennial_core::checkpoint::{CommitEntry, Look, Metadata, OffsetEntry, Recovery, Survey};
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, class};
use perennial_core::job::QuerySpec;
use perennial_core::offset::Offset;
use perennial_core::query::plan_digest;
use perennial_core::state::inspect::read_rows;
use perennial_core::watermark::WatermarkPolicy;
use serde_json::{Map, Value, json};

use crate::codec::Codec;
use crate::files::Directory;
use crate::operators::Operator;
use crate::sources::PathMap;
use crate::{hash, records, refused, row, sources};

/// A query that is given to Spark.
pub struct Export<'a> {
    /// Where Spark's checkpoint is written: nothing may be there.
    pub to: &'a Directory,
    /// The world; its storage has the checkpoints of the job.
    pub env: &'a Env,
    /// The query.
    pub query: &'a QuerySpec,
    /// Everything in its checkpoint, read.
    pub survey: &'a Survey,
    /// Where Spark will find the files that the sources' logs name.
    pub paths: PathMap,
    /// In how many partitions the state is to be: `spark.sql.shuffle.partitions`. As many as Spark had, or the job has, where nothing is said.
    pub partitions: Option<usize>,
}

/// What was given to Spark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The last batch; Spark goes on with the next one.
    pub last: u64,
    /// In how many partitions the state is.
    pub partitions: usize,
    /// Rows of state by operator.
    pub rows: Vec<(String, u64)>,
}

/// The settings that Spark 4.3 logs, with their defaults, but for the number of partitions. Those that are absent from a log do not always have
/// these values, so that all are written.
const SETTINGS: &[(&str, &str)] = &[
    (
        "spark.sql.streaming.stateStore.providerClass",
        "org.apache.spark.sql.execution.streaming.state.HDFSBackedStateStoreProvider",
    ),
    ("spark.sql.dropDuplicates.deterministicKeyOrder.enabled", "true"),
    ("spark.sql.streaming.stateStore.rocksdb.mergeOperatorVersion", "2"),
    ("spark.sql.streaming.stateStore.rocksdb.formatVersion", "5"),
    ("spark.sql.streaming.queryEvolution.enableSourceEvolution", "false"),
    ("spark.sql.streaming.stateStore.encodingFormat", "unsaferow"),
    ("spark.sql.streaming.statefulOperator.useStrictDistribution", "true"),
    ("spark.sql.streaming.flatMapGroupsWithState.stateFormatVersion", "2"),
    ("spark.sql.streaming.multipleWatermarkPolicy", "min"),
    ("spark.sql.streaming.stateStore.rowChecksum.enabled", "false"),
    ("spark.sql.streaming.statefulOperator.alwaysNullableOutput.enabled", "true"),
    ("spark.sql.streaming.aggregation.stateFormatVersion", "2"),
    ("spark.sql.function.protobufExtensions.enabled", "false"),
    ("spark.sql.streaming.join.stateFormatVersion", "2"),
    ("spark.sql.streaming.stateStore.compression.codec", "lz4"),
    ("spark.sql.optimizer.pruneFiltersCanPruneStreamingSubplan", "false"),
];
const PARTITIONS: &str = "spark.sql.shuffle.partitions";
const POLICY: &str = "spark.sql.streaming.multipleWatermarkPolicy";

impl Export<'_> {
    /// Writes Spark's checkpoint.
    ///
    /// # Errors
    /// `SparkCheckpoint` for state that Spark keeps in another way, `ConfigInvalid` where something is in the way, and what damage gives.
    pub async fn run(&self) -> Result<Exported> {
        let last = match self.survey.recovery()? {
            Recovery::Continue { last } => last,
            Recovery::Fresh => return Err(refused(format!("{} has no batch yet", self.query.name))),
            Recovery::RunAgain { from, .. } => {
                return Err(refused(format!("batch {from} is begun and not committed: run the query until it is")));
            }
        };
        if !self.to.is_empty().await? {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("{} is not empty: name a directory for a new checkpoint", self.to.shown("")),
            ));
        }
        let look = &self.survey.look;
        let damaged = || refused(format!("batch {last} of {} is damaged", self.query.name));
        let offsets = look.offsets.get(&last).and_then(|entry| entry.good()).ok_or_else(damaged)?;
        let commit = look.commits.get(&last).and_then(|entry| entry.good()).ok_or_else(damaged)?;
        let metadata = look.metadata.good().or(look.metadata_copy.good()).ok_or_else(damaged)?;
        let digest = plan_digest(self.query.plan.as_ref());
        if !self.query.plan.state().is_empty() && !offsets.plan.is_empty() && offsets.plan != digest {
            return Err(refused(format!("the query is not the one that {} was written by", self.query.name)));
        }
        let partitions = match self.partitions {
            Some(partitions) => partitions.max(1),
            None => offsets.conf.get(PARTITIONS).and_then(Value::as_str).and_then(|n| n.parse().ok()).unwrap_or(1),
        };
        let rows = self.state(look, commit, last, partitions).await?;
        self.sources().await?;
        let conf = self.settings(&offsets.conf, partitions);
        if let Some(before) = last.checked_sub(1) {
            // Spark looks for it, and goes by the last one.
            let entry = look.offsets.get(&before).and_then(|entry| entry.good()).unwrap_or(offsets);
            self.write(&format!("offsets/{before}"), offsets_text(entry, &conf)).await?;
        }
        self.write(&format!("offsets/{last}"), offsets_text(offsets, &conf)).await?;
        let text = format!("v1\n{}", json!({ "nextBatchWatermarkMs": commit.next_watermark_ms }));
        self.write(&format!("commits/{last}"), text).await?;
        // Last: without it, Spark takes what an interrupted export left for no checkpoint.
        self.write("metadata", Metadata { id: metadata.id.clone(), owner: None }.encode()).await?;
        Ok(Exported { last, partitions, rows })
    }

    async fn write(&self, name: &str, content: impl Into<Bytes>) -> Result<()> {
        self.to.write(name, content.into()).await
    }

    fn settings(&self, logged: &Map<String, Value>, partitions: usize) -> Map<String, Value> {
        // What Spark logged stays, but for what says how the state is kept.
        let mut conf = logged.clone();
        for (key, value) in SETTINGS {
            conf.insert((*key).to_owned(), (*value).into());
        }
        conf.insert(PARTITIONS.to_owned(), partitions.to_string().into());
        if self.query.watermark_policy == WatermarkPolicy::Max {
            conf.insert(POLICY.to_owned(), "max".into());
        }
        conf
    }

    /// Writes the state as snapshots of the version after the last batch.
    async fn state(
        &self,
        look: &Look,
        commit: &CommitEntry,
        last: u64,
        partitions: usize,
    ) -> Result<Vec<(String, u64)>> {
        let layouts = self.query.plan.layout();
        if layouts.is_empty() {
            return Ok(Vec::new());
        }
        let at = commit.perennial.as_ref().and_then(|details| details.state.as_ref());
        let at = at.ok_or_else(|| refused(format!("commits/{last} says nothing of the state")))?;
        let dir = object_store::path::Path::from(look.query.as_str()).join("state");
        let all = read_rows(self.env, &dir, at).await?;
        let mut counts = Vec::new();
        for (number, layout) in (0..).zip(&layouts) {
            let operator = Operator { number, layout, specs: self.query.plan.state(), info: None };
            let spec = &self.query.plan.state()[layout.state];
            let rows = all.get(layout.state).map(|of| of.rows.as_slice()).unwrap_or_default();
            let rows = match rows {
                [] => RecordBatch::new_empty(spec.schema.clone()),
                rows => concat_batches(&rows[0].schema(), rows)
                    .map_err(|error| Error::bug(format!("rows of the state cannot be put together: {error}")))?,
            };
            self.give(&operator, &rows, last + 1, partitions).await?;
            counts.push((layout.name.clone(), rows.num_rows() as u64));
        }
        Ok(counts)
    }

    async fn give(&self, operator: &Operator<'_>, rows: &RecordBatch, version: u64, partitions: usize) -> Result<()> {
        let given = operator.give(rows)?;
        let encode = |columns: &[ArrayRef]| row::encode(columns, rows.num_rows());
        let (keys, values) = (encode(&given.keys)?, encode(&given.values)?);
        let used = if operator.is_single() { 1 } else { partitions };
        let mut spread: Vec<Vec<usize>> = vec![Vec::new(); used];
        for number in 0..rows.num_rows() {
            let place = if used == 1 { 0 } else { hash::partition(&given.keys, number, used)? };
            spread[place].push(number);
        }
        let dir = format!("state/{}", operator.number);
        for (partition, rows) in spread.iter().enumerate() {
            let content = records::write(rows.iter().map(|row| (keys[*row].as_slice(), values[*row].as_slice())));
            let content = Codec::Lz4.compress(&content)?;
            self.write(&format!("{dir}/{partition}/{version}.snapshot"), content).await?;
        }
        self.write(&format!("{dir}/0/_metadata/schema"), given.schema.write()?).await?;
        let description = json!({
            "operatorInfo": { "operatorId": operator.number, "operatorName": operator.layout.name },
            "stateStoreInfo": [{ "storeName": "default", "numColsPrefixKey": 0, "numPartitions": partitions }],
        });
        self.write(&format!("{dir}/_metadata/metadata"), format!("v1\n{description}")).await
    }

    async fn sources(&self) -> Result<()> {
        let from = Directory::new(self.env.storage.clone(), self.survey.look.query.as_str().into(), "");
        for index in 0..self.query.sources.len() {
            let dir = format!("sources/{index}");
            for (name, content) in sources::for_spark(&from, &dir, &self.paths).await? {
                self.write(&format!("{dir}/{name}"), content).await?;
            }
        }
        Ok(())
    }
}

/// `offsets/N` as Spark writes it.
fn offsets_text(entry: &OffsetEntry, conf: &Map<String, Value>) -> String {
    let metadata = json!({
        "batchWatermarkMs": entry.watermark_ms, "batchTimestampMs": entry.timestamp_ms, "conf": conf,
    });
    let offsets = entry.offsets.iter().map(|offset| offset.as_ref().map_or("-", Offset::as_str));
    let lines: Vec<&str> = offsets.collect();
    format!("v1\n{metadata}\n{}", lines.join("\n"))
}
