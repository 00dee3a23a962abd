//! The text formats of the logs (Spark's, version 1), with a checksum in the field that is ours. What Spark wrote in its version 2 is
//! read, too.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, class};
use crate::offset::Offset;
use crate::replay::Replayed;
use crate::shape::PlanShape;
use crate::state::StateRef;
use crate::watermark::PartitionMarks;

/// The version of what Perennial adds to the formats. A checkpoint with a greater one is refused.
const FORMAT: u64 = 1;
/// Stands in the place of the checksum while it is computed.
const UNSEALED: &str = "00000000";

/// `metadata`: who this checkpoint belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Identity of the query, a UUID; survives restarts.
    pub id: String,
    /// Names of job and query, where Perennial began the checkpoint.
    pub owner: Option<(String, String)>,
}

impl Metadata {
    /// Spark's JSON: `{"id":"…"}`.
    pub fn encode(&self) -> String {
        match &self.owner {
            None => json!({ "id": self.id }).to_string(),
            Some((job, query)) => {
                let ours = json!({ "format": FORMAT, "job": job, "query": query, "crc32c": UNSEALED });
                seal(json!({ "id": self.id, "perennial": ours }).to_string())
            }
        }
    }

    /// As [`Metadata::encode`], the way it was before there was a checksum.
    fn encode_unsealed(&self) -> Option<String> {
        let (job, query) = self.owner.as_ref()?;
        Some(json!({ "id": self.id, "perennial": { "format": FORMAT, "job": job, "query": query } }).to_string())
    }

    /// Reads what [`Metadata::encode`] or Spark wrote.
    pub fn decode(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| corrupt(format!("it is not JSON: {e}")))?;
        let id = value["id"].as_str().ok_or_else(|| corrupt("it has no id"))?.to_owned();
        let owner = |name: &str| value["perennial"][name].as_str().map(str::to_owned);
        let metadata = Self { id, owner: owner("job").zip(owner("query")) };
        if metadata.encode_unsealed().as_deref() != Some(text) {
            verify(text, &value["perennial"])?;
        }
        Ok(metadata)
    }
}

/// `_perennial/plans/<digest>`: what a form of the query keeps.
pub(super) fn encode_shape(shape: &PlanShape) -> Result<String> {
    let shape = serde_json::to_value(shape).map_err(|error| Error::bug("the shape of a plan").caused_by(error))?;
    Ok(seal(json!({ "shape": shape, "perennial": { "format": FORMAT, "crc32c": UNSEALED } }).to_string()))
}

/// Reads what [`encode_shape`] wrote.
pub(super) fn decode_shape(text: &str) -> Result<PlanShape> {
    let mut value: Value = serde_json::from_str(text).map_err(|e| corrupt(format!("it is not JSON: {e}")))?;
    verify(text, &value["perennial"])?;
    serde_json::from_value(value["shape"].take()).map_err(|e| corrupt(format!("it is no shape of a plan: {e}")))
}

/// `offsets/N`: what batch N reads, and the world it runs in.
#[derive(Debug, Clone, PartialEq)]
pub struct OffsetEntry {
    /// The watermark of the batch for emission and eviction, in milliseconds since the epoch.
    pub watermark_ms: i64,
    /// The time of the batch, in milliseconds since the epoch: its `now()`.
    pub timestamp_ms: i64,
    /// Settings that the checkpoint depends on, under Spark's names.
    pub conf: Map<String, Value>,
    /// Where each source's range ends; `None` for a source that has never had an offset.
    pub offsets: Vec<Option<Offset>>,
    /// The epoch of the process that wrote it. 0 where Spark wrote it.
    pub epoch: u64,
    /// Names of the sources, one per offset. Empty where Spark wrote it.
    pub sources: Vec<String>,
    /// Digest of the plan's fingerprint. Empty where Spark wrote it.
    pub plan: String,
    /// How many requests to replay dead letters this batch and those before it have taken.
    pub replays: u64,
}

/// How the records of a batch were accounted for. They add up: see [`BatchCounts::missing`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct BatchCounts {
    /// Records read from all sources.
    pub read: u64,
    /// Rows that the sink has: for a stateless query these are records.
    pub written: u64,
    /// Rows that went into state.
    pub held: u64,
    /// Rows that the query's conditions left out.
    pub filtered: u64,
    /// Rows dropped as late.
    pub late: u64,
    /// Records in the dead letters.
    pub dead_lettered: u64,
    /// Records that expectations or the format were told to drop.
    pub dropped: u64,
    /// Rows that the query made out of one, beyond the first.
    pub multiplied: u64,
    /// Rows of the result of a query with state that the sink refused: they are in the dead letters, the records that they came from are in
    /// the state.
    pub refused: u64,
}

impl BatchCounts {
    /// Records that are unaccounted for: 0, or there is a bug. `stateful`: what the sink got came out of the state, not out of the batch.
    pub fn missing(&self, stateful: bool) -> i64 {
        let passed = if stateful { self.held } else { self.written };
        let accounted = passed + self.filtered + self.late + self.dead_lettered + self.dropped;
        (self.read + self.multiplied) as i64 - accounted as i64
    }
}

/// `commits/N`: batch N is done.
#[derive(Debug, Clone, PartialEq)]
pub struct CommitEntry {
    /// The watermark of the next batch, in milliseconds since the epoch.
    pub next_watermark_ms: i64,
    /// What Perennial keeps beside it; `None` where Spark wrote the entry.
    pub perennial: Option<CommitDetails>,
}

/// What Perennial keeps of a committed batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitDetails {
    /// The epoch of the process that committed.
    pub epoch: u64,
    /// The accounts of the batch.
    pub counts: BatchCounts,
    /// Watermarks of the inputs, in milliseconds since the epoch: a restart goes on with them.
    pub input_watermarks: Vec<Option<i64>>,
    /// What is known of the partitions of the inputs; empty where no watermark follows from partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionMarks>,
    /// Which files hold the state after the batch; `None` for a stateless query.
    pub state: Option<StateRef>,
    /// What became of the dead letters that the batch ran again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replayed: Vec<Replayed>,
}

impl OffsetEntry {
    /// The text of the log file.
    pub fn encode(&self) -> String {
        let mut ours = json!({ "format": FORMAT, "epoch": self.epoch, "sources": self.sources, "plan": self.plan });
        if self.replays > 0 {
            ours["replays"] = self.replays.into();
        }
        ours["crc32c"] = UNSEALED.into();
        let metadata = json!({
            "batchWatermarkMs": self.watermark_ms,
            "batchTimestampMs": self.timestamp_ms,
            "conf": self.conf,
            "perennial": ours,
        });
        let mut text = format!("v1\n{metadata}");
        for offset in &self.offsets {
            text.push('\n');
            text.push_str(offset.as_ref().map_or("-", Offset::as_str));
        }
        seal(text)
    }

    /// Reads what [`OffsetEntry::encode`] or Spark wrote.
    pub fn decode(text: &str) -> Result<Self> {
        let (version, metadata, rest) = body(text)?;
        verify(text, &metadata["perennial"])?;
        let ours = &metadata["perennial"];
        let mut entry = Self {
            watermark_ms: integer(&metadata, "batchWatermarkMs")?,
            timestamp_ms: integer(&metadata, "batchTimestampMs")?,
            conf: metadata["conf"].as_object().cloned().unwrap_or_default(),
            offsets: Vec::new(),
            epoch: ours["epoch"].as_u64().unwrap_or_default(),
            sources: match ours["sources"].as_array() {
                Some(names) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
                None => Vec::new(),
            },
            plan: ours["plan"].as_str().unwrap_or_default().to_owned(),
            replays: ours["replays"].as_u64().unwrap_or_default(),
        };
        let offset = |text: &str| (text != "-").then(|| Offset::from_json(text));
        match version {
            1 => entry.offsets = rest.map(offset).collect(),
            _ => (entry.sources, entry.offsets) = named_offsets(rest.map(|line| line.split_once(':')), offset)?,
        }
        Ok(entry)
    }

    /// Whether Perennial wrote it.
    pub fn is_ours(&self) -> bool {
        self.epoch > 0
    }
}

impl CommitEntry {
    /// The text of the log file.
    pub fn encode(&self) -> Result<String> {
        let mut metadata = json!({ "nextBatchWatermarkMs": self.next_watermark_ms });
        if let Some(details) = &self.perennial {
            let mut ours =
                serde_json::to_value(details).map_err(|e| Error::bug(format!("a commit does not encode: {e}")))?;
            ours["format"] = FORMAT.into();
            ours["crc32c"] = UNSEALED.into();
            metadata["perennial"] = ours;
        }
        Ok(seal(format!("v1\n{metadata}")))
    }

    /// Reads what [`CommitEntry::encode`] or Spark wrote.
    pub fn decode(text: &str) -> Result<Self> {
        let (_, metadata, _) = body(text)?;
        verify(text, &metadata["perennial"])?;
        let perennial = match &metadata["perennial"] {
            Value::Null => None,
            ours => Some(
                serde_json::from_value(ours.clone()).map_err(|e| corrupt(format!("its details do not read: {e}")))?,
            ),
        };
        Ok(Self { next_watermark_ms: integer(&metadata, "nextBatchWatermarkMs")?, perennial })
    }
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(class::CHECKPOINT_CORRUPT, what)
}

/// The offsets of Spark's version 2, whose lines begin with the name of the source. Sources without a name have their number, which says
/// where they stand; those with one stand in the order of the file, which says nothing.
fn named_offsets<'a>(
    lines: impl Iterator<Item = Option<(&'a str, &'a str)>>,
    offset: impl Fn(&str) -> Option<Offset>,
) -> Result<(Vec<String>, Vec<Option<Offset>>)> {
    let mut lines: Vec<(&str, &str)> =
        lines.collect::<Option<_>>().ok_or_else(|| corrupt("a line has no name of a source"))?;
    let numbers: Option<Vec<usize>> = lines.iter().map(|(name, _)| name.parse().ok()).collect();
    let is_numbered = numbers.is_some();
    if let Some(mut numbers) = numbers {
        lines.sort_by_key(|(name, _)| name.parse().unwrap_or(usize::MAX));
        numbers.sort_unstable();
        if numbers.iter().enumerate().any(|(at, number)| at != *number) {
            return Err(corrupt(format!("its sources have the numbers {numbers:?}")));
        }
    }
    let names = if is_numbered { Vec::new() } else { lines.iter().map(|(name, _)| (*name).to_owned()).collect() };
    Ok((names, lines.into_iter().map(|(_, text)| offset(text)).collect()))
}

fn body(text: &str) -> Result<(u64, Value, std::str::Lines<'_>)> {
    let mut lines = text.lines();
    let version = match lines.next() {
        Some("v1") => 1,
        Some("v2") => 2,
        // What a torn file has left of its first line is no format.
        Some(other) if other.strip_prefix('v').and_then(|v| v.parse().ok()).is_some_and(|v: u64| v > 2) => {
            return Err(Error::new(
                class::CHECKPOINT_NEWER,
                format!("its format is {other}; this version reads v1 and v2"),
            ));
        }
        _ => return Err(corrupt("it is empty or torn: the first line is not a version")),
    };
    let json = lines.next().ok_or_else(|| corrupt("it is torn: the second line is missing"))?;
    let value = serde_json::from_str(json).map_err(|e| corrupt(format!("its second line is not JSON: {e}")))?;
    Ok((version, value, lines))
}

fn integer(value: &Value, key: &str) -> Result<i64> {
    value[key].as_i64().ok_or_else(|| corrupt(format!("{key} is missing")))
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

fn marked(sum: &str) -> String {
    format!("\"crc32c\":\"{sum}\"")
}

/// Puts the checksum of the text in its place.
fn seal(text: String) -> String {
    let sum = checksum(&text);
    text.replacen(&marked(UNSEALED), &marked(&sum), 1)
}

fn verify(text: &str, ours: &Value) -> Result<()> {
    check_format(ours)?;
    // Spark wrote no checksum. A checksum without our field around it is ours, damaged.
    if ours.is_null() {
        return if text.contains("crc32c") { Err(corrupt("its field `perennial` is damaged")) } else { Ok(()) };
    }
    let sum = ours["crc32c"].as_str().ok_or_else(|| corrupt("its checksum is missing"))?;
    if checksum(&text.replacen(&marked(sum), &marked(UNSEALED), 1)) != sum {
        return Err(corrupt("its content does not fit its checksum"));
    }
    Ok(())
}

fn check_format(ours: &Value) -> Result<()> {
    match ours["format"].as_u64() {
        Some(newer) if newer > FORMAT => Err(Error::new(
            class::CHECKPOINT_NEWER,
            format!("it was written in format {newer}; this version reads up to {FORMAT}: run a newer version"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets() -> OffsetEntry {
        OffsetEntry {
            watermark_ms: 5,
            timestamp_ms: 1_763_718_330_123,
            conf: Map::from_iter([("spark.sql.shuffle.partitions".to_owned(), json!("2"))]),
            offsets: vec![Some(Offset::from_json(r#"{"t":{"0":23}}"#)), None],
            epoch: 3,
            sources: vec!["a".into(), "b".into()],
            plan: "abc".into(),
            replays: 0,
        }
    }

    fn commit() -> CommitEntry {
        let counts =
            BatchCounts { read: 10, written: 4, held: 7, filtered: 1, late: 1, dead_lettered: 1, ..Default::default() };
        CommitEntry {
            next_watermark_ms: 7,
            perennial: Some(CommitDetails {
                epoch: 3,
                counts,
                input_watermarks: vec![Some(1), None],
                partitions: Vec::new(),
                state: None,
                replayed: Vec::new(),
            }),
        }
    }

    #[test]
    fn entries_come_back_and_look_as_spark_writes_them() {
        let text = offsets().encode();
        assert!(
            text.starts_with("v1\n{\"batchWatermarkMs\":5,\"batchTimestampMs\":1763718330123,\"conf\":{"),
            "{text}"
        );
        assert!(text.ends_with("\n{\"t\":{\"0\":23}}\n-"), "{text}");
        assert_eq!(OffsetEntry::decode(&text).unwrap(), offsets());
        assert_eq!(CommitEntry::decode(&commit().encode().unwrap()).unwrap(), commit());
        let spark = "v1\n{\"batchWatermarkMs\":0,\"batchTimestampMs\":9,\"conf\":{}}\n{\"logOffset\":0}";
        assert_eq!(OffsetEntry::decode(spark).unwrap().offsets, [Some(Offset::from_json("{\"logOffset\":0}"))]);
        assert_eq!(CommitEntry::decode("v1\n{\"nextBatchWatermarkMs\":4}").unwrap().next_watermark_ms, 4);
        for owner in [None, Some(("j".to_owned(), "q".to_owned()))] {
            let metadata = Metadata { id: "x".into(), owner };
            assert_eq!(Metadata::decode(&metadata.encode()).unwrap(), metadata);
            if let Some(unsealed) = metadata.encode_unsealed() {
                assert_eq!(Metadata::decode(&unsealed).unwrap(), metadata, "as it was before there was a checksum");
            }
        }
    }

    #[test]
    fn every_damage_is_noticed() {
        let owner = Some(("job".to_owned(), "query".to_owned()));
        let metadata = Metadata { id: "5b5a1d3c-0000-4000-8000-000000000000".into(), owner };
        type Read = fn(&str) -> Result<()>;
        let files: [(String, Read); 3] = [
            (offsets().encode(), |text| OffsetEntry::decode(text).map(|_| ())),
            (commit().encode().unwrap(), |text| CommitEntry::decode(text).map(|_| ())),
            (metadata.encode(), |text| Metadata::decode(text).map(|_| ())),
        ];
        for (text, read) in files {
            for cut in 0..text.len() {
                let error = read(&text[..cut]).unwrap_err();
                assert_eq!(error.class(), class::CHECKPOINT_CORRUPT, "cut at {cut}");
            }
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                if let Ok(flipped) = String::from_utf8(bytes) {
                    assert!(read(&flipped).is_err(), "a flip at {at} went unnoticed: {flipped}");
                }
            }
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let newer = offsets().encode().replace("\"format\":1", "\"format\":2");
        assert_eq!(OffsetEntry::decode(&newer).unwrap_err().class(), class::CHECKPOINT_NEWER);
        assert_eq!(OffsetEntry::decode("v3\n{}").unwrap_err().class(), class::CHECKPOINT_NEWER);
    }

    #[test]
    fn accounts_close() {
        let counts = commit().perennial.unwrap().counts;
        assert_eq!(counts.missing(true), 0);
        assert_eq!(counts.missing(false), 3);
    }
}
