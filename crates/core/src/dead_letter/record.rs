//! A dead letter's record as a JSON object, and back: byte for byte.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{DeadLetter, LetterBatch, Stage, text_or_base64, timestamp_text};
use crate::error::{Error, Result, class};
use crate::records::{RawRecord, RecordPosition};
use crate::sink::BatchId;

/// A dead letter with all that is kept of it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptRecord {
    /// Name of the query.
    pub query: String,
    /// Number of the batch.
    pub batch: BatchId,
    /// Name of the source.
    pub source: String,
    /// The record, byte for byte.
    pub record: RawRecord,
    /// Where it failed.
    pub stage: Stage,
    /// Code of the class of the error.
    pub class: String,
    /// What was wrong.
    pub message: String,
    /// Expectations that it broke.
    pub rules: Vec<String>,
    /// When it failed, in milliseconds since the epoch.
    pub first_seen_ms: i64,
    /// Version of the job.
    pub job_version: String,
}

impl KeptRecord {
    /// What is kept of a letter of a batch.
    pub fn new(batch: &LetterBatch, letter: DeadLetter) -> Self {
        let DeadLetter { source, record, stage, class, message, rules } = letter;
        Self {
            query: batch.query.clone(),
            batch: batch.batch,
            source,
            record,
            stage,
            class: class.code.to_owned(),
            message,
            rules,
            first_seen_ms: batch.timestamp_ms,
            job_version: batch.job_version.clone(),
        }
    }

    /// As a JSON object. Keys and values that are not UTF-8 stand in base64 under `…_base64`.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("query".into(), json!(self.query));
        line.insert("batch_id".into(), json!(self.batch));
        line.insert("source".into(), json!(self.source));
        match &self.record.position {
            RecordPosition::File { path, offset } => {
                line.insert("path".into(), json!(path.as_ref()));
                line.insert("offset".into(), json!(offset));
            }
            RecordPosition::Kafka { topic, partition, offset, timestamp } => {
                line.insert("topic".into(), json!(topic.as_ref()));
                line.insert("partition".into(), json!(partition));
                line.insert("offset".into(), json!(offset));
                line.insert("timestamp_ms".into(), json!(timestamp));
            }
            RecordPosition::Sequence { name, number } => {
                line.insert("sequence".into(), json!(name.as_ref()));
                line.insert("offset".into(), json!(number));
            }
        }
        for (name, bytes) in [("key", &self.record.key), ("value", &self.record.value)] {
            set_bytes(&mut line, name, bytes.as_ref());
        }
        line.insert("stage".into(), json!(self.stage));
        line.insert("error_type".into(), json!(self.class));
        line.insert("message".into(), json!(self.message));
        line.insert("rules".into(), json!(self.rules));
        line.insert("first_seen".into(), json!(timestamp_text(self.first_seen_ms * 1000)));
        line.insert("job_version".into(), json!(self.job_version));
        line
    }
}

/// Puts bytes under a name, as text where they are text.
fn set_bytes(line: &mut Map<String, Value>, name: &str, bytes: Option<&Bytes>) {
    match bytes {
        Some(bytes) => {
            let (suffix, text) = text_or_base64(bytes);
            line.insert(format!("{name}{suffix}"), json!(text));
        }
        None => {
            line.insert(name.into(), Value::Null);
        }
    }
}

/// Replaces the value of a letter's record.
pub fn set_value(line: &mut Map<String, Value>, value: &Bytes) {
    line.remove("value_base64");
    line.remove("value");
    set_bytes(line, "value", Some(value));
}

/// The source and the record of a letter.
///
/// # Errors
/// `CheckpointCorrupt` where it is not what was written.
pub fn decode(line: &Map<String, Value>) -> Result<(String, RawRecord)> {
    let wrong =
        |what: &str| Error::new(class::CHECKPOINT_CORRUPT, format!("a record of the dead letters has no {what}"));
    let text = |name: &str| line.get(name).and_then(Value::as_str);
    let number = |name: &str| line.get(name).and_then(Value::as_i64);
    let bytes = |name: &str| -> Result<Option<Bytes>> {
        if let Some(text) = text(name) {
            return Ok(Some(Bytes::copy_from_slice(text.as_bytes())));
        }
        let Some(coded) = text(&format!("{name}_base64")) else { return Ok(None) };
        STANDARD.decode(coded).map(|bytes| Some(bytes.into())).map_err(|_| wrong(&format!("{name} in base64")))
    };
    let offset = number("offset").ok_or_else(|| wrong("offset"))?;
    let shared = |text: &str| -> Arc<str> { text.into() };
    let position = if let Some(topic) = text("topic") {
        RecordPosition::Kafka {
            topic: shared(topic),
            partition: number("partition").and_then(|p| i32::try_from(p).ok()).ok_or_else(|| wrong("partition"))?,
            offset,
            timestamp: number("timestamp_ms").unwrap_or(-1),
        }
    } else if let Some(path) = text("path") {
        RecordPosition::File { path: shared(path), offset: offset as u64 }
    } else {
        let name = text("sequence").ok_or_else(|| wrong("topic, path or sequence"))?;
        RecordPosition::Sequence { name: shared(name), number: offset as u64 }
    };
    let source = text("source").ok_or_else(|| wrong("source"))?.to_owned();
    Ok((source, RawRecord { key: bytes("key")?, value: bytes("value")?, position }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_byte_for_byte() {
        let positions = [
            RecordPosition::File { path: "in/a.json".into(), offset: 17 },
            RecordPosition::Kafka { topic: "t".into(), partition: 3, offset: 1 << 40, timestamp: -1 },
            RecordPosition::Sequence { name: "s".into(), number: 0 },
        ];
        let values = [
            None,
            Some(Bytes::from_static(b"\x00\xff")),
            Some(Bytes::from_static("{\"ü\": 1}".as_bytes())),
            Some(Bytes::new()),
        ];
        let batch = LetterBatch {
            query: "q".into(),
            batch: 1,
            timestamp_ms: 0,
            last_timestamp_ms: 0,
            records_read: 1,
            job_version: "1".into(),
            again: false,
        };
        for position in positions {
            for value in &values {
                let record = RawRecord { key: value.clone(), value: value.clone(), position: position.clone() };
                let letter = DeadLetter {
                    source: "readings".into(),
                    record,
                    stage: Stage::Sink,
                    class: class::SINK_REJECTED,
                    message: String::new(),
                    rules: Vec::new(),
                };
                let mut line = KeptRecord::new(&batch, letter.clone()).to_json();
                assert_eq!(decode(&line).unwrap(), ("readings".into(), letter.record));
                set_value(&mut line, &Bytes::from_static(b"\xfe"));
                assert_eq!(decode(&line).unwrap().1.value.unwrap(), b"\xfe".as_slice());
            }
        }
        assert_eq!(decode(&Map::new()).unwrap_err().class(), class::CHECKPOINT_CORRUPT);
    }
}
