//! The entries of a batch: one for each class of error.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{DeadLetter, Entry, EntryContext, EntryError, LetterBatch, text_or_base64, timestamp_text};
use crate::error::ErrorClass;
use crate::records::RecordPosition;

/// The entries of a batch with their letters, which are in the order of the records: cores decode in any order.
pub fn entries_of(batch: &LetterBatch, letters: Vec<DeadLetter>) -> Vec<(Entry, Vec<DeadLetter>)> {
    let mut by_class: BTreeMap<&'static str, (&'static ErrorClass, Vec<DeadLetter>)> = BTreeMap::new();
    for letter in letters {
        by_class.entry(letter.class.code).or_insert_with(|| (letter.class, Vec::new())).1.push(letter);
    }
    let with_entry = |(class, mut letters): (&'static ErrorClass, Vec<DeadLetter>)| {
        letters.sort_by(|a, b| position_key(a).cmp(&position_key(b)));
        (entry(batch, class, &letters), letters)
    };
    by_class.into_values().map(with_entry).collect()
}

fn position_key(letter: &DeadLetter) -> (&str, i64, u64) {
    match &letter.record.position {
        RecordPosition::File { path, offset } => (path, 0, *offset),
        RecordPosition::Kafka { topic, partition, offset, .. } => (topic, i64::from(*partition), *offset as u64),
        RecordPosition::Sequence { name, number } => (name, 0, *number),
    }
}

fn entry(batch: &LetterBatch, class: &'static ErrorClass, letters: &[DeadLetter]) -> Entry {
    Entry {
        batch_id: batch.batch,
        timestamp: timestamp_text(batch.timestamp_ms * 1000),
        error: EntryError {
            class: class.code.into(),
            message: letters.first().map(|l| l.message.clone()).unwrap_or_default(),
            recommendation: class.recommendation.into(),
            action: "Continue to next batch".into(),
        },
        context: EntryContext {
            batch_id: batch.batch,
            last_ts: timestamp_text(batch.last_timestamp_ms * 1000),
            records_queried: batch.records_read,
        },
        sample_records: letters.iter().take(5).map(sample).collect(),
        id: format!("{}-{}-{}", batch.query, batch.batch, class.code),
        query: batch.query.clone(),
        records: letters.len() as u64,
        records_object: format!("records/{}/{:020}-{}.jsonl.zst", batch.query, batch.batch, class.code),
        job_version: batch.job_version.clone(),
    }
}

/// A record as people want to see it: the JSON itself where it is JSON.
fn sample(letter: &DeadLetter) -> Value {
    let Some(value) = &letter.record.value else { return Value::Null };
    serde_json::from_slice(value).unwrap_or_else(|_| {
        let (suffix, text) = text_or_base64(value);
        json!({ format!("_raw{suffix}"): text })
    })
}
