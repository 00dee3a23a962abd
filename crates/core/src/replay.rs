//! Dead letters that go through a query once more.
//!
//! A request is a file in the checkpoint of the query, `_perennial/replays/N`, numbered without gaps, made by `perennial dlq replay`. The query
//! takes it into a batch as one more range: the offset log says up to which request a batch reads, so a batch that runs again reads the same
//! records, and a request is in exactly one committed batch. Its records go the way of all records of their source.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::BinaryArray;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::dead_letter::{DeadLetter, decode_record};
use crate::decode::Decoder;
use crate::error::{Error, Result, class};
use crate::intake::Gate;
use crate::records::{Input, Payload, Position, RawRecord, RecordBlock, RecordPosition};
use crate::source::InputStream;

/// An entry of the dead letters in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayedEntry {
    /// Its identity.
    pub id: String,
    /// Its records, as the dead letters have them.
    pub records: Vec<Map<String, Value>>,
}

/// A request to run dead letters again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplayRequest {
    /// The entries, each whole or in part.
    pub entries: Vec<ReplayedEntry>,
}

/// What became of an entry in the batch that ran it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Identity of the entry.
    pub id: String,
    /// Records that failed again.
    pub failed: u64,
}

impl ReplayRequest {
    /// The text of the file, with a checksum.
    pub fn encode(&self) -> Result<String> {
        let body = serde_json::to_string(self).map_err(|error| Error::bug(error.to_string()))?;
        Ok(format!(
            "{}\n{body}\n",
            json!({ "format": 1, "crc32c": format!("{:08x}", crc32c::crc32c(body.as_bytes())) })
        ))
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `CheckpointCorrupt`.
    pub fn decode(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::new(class::CHECKPOINT_CORRUPT, format!("a request to replay {what}"));
        let (head, body) = text.split_once('\n').ok_or_else(|| wrong("has no head"))?;
        let body = body.strip_suffix('\n').ok_or_else(|| wrong("is cut off"))?;
        let head: Value = serde_json::from_str(head).map_err(|_| wrong("has a head that is not JSON"))?;
        if head["crc32c"].as_str() != Some(&format!("{:08x}", crc32c::crc32c(body.as_bytes()))) {
            return Err(wrong("does not have the checksum that it was written with"));
        }
        serde_json::from_str(body).map_err(|error| wrong(&format!("does not read: {error}")))
    }

    /// The records of one source.
    fn records_of(&self, source: &str) -> Result<Vec<RawRecord>> {
        let records = self.entries.iter().flat_map(|entry| &entry.records).map(decode_record);
        records.filter(|found| !matches!(found, Ok((of, _)) if of != source)).map(|found| Ok(found?.1)).collect()
    }

    /// A stream of the records of a source, for the gate that decodes them; `None` where there are none.
    pub fn stream(&self, source: &str, gate: &Gate) -> Result<Option<InputStream>> {
        let records = self.records_of(source)?;
        if records.is_empty() {
            return Ok(None);
        }
        let mut inputs = Vec::new();
        for record in records {
            inputs.push(Ok(input_of(record, gate.decoder())?));
        }
        Ok(Some(stream::iter(inputs).boxed()))
    }

    /// What became of the entries, given the letters of the batch that ran them.
    pub fn outcomes(&self, letters: &[DeadLetter]) -> Result<Vec<Replayed>> {
        let failed: HashSet<(&str, String)> =
            letters.iter().map(|letter| (letter.source.as_str(), letter.record.position.to_string())).collect();
        let outcome = |entry: &ReplayedEntry| {
            let mut count = 0;
            for record in &entry.records {
                let (source, record) = decode_record(record)?;
                count += u64::from(failed.contains(&(source.as_str(), record.position.to_string())));
            }
            Ok(Replayed { id: entry.id.clone(), failed: count })
        };
        self.entries.iter().map(outcome).collect()
    }
}

/// A block with one record, at its place.
fn block_of(record: RawRecord) -> RecordBlock {
    let one = |bytes: Option<&[u8]>| BinaryArray::from(vec![bytes]);
    let position = match record.position {
        RecordPosition::File { path, offset } => Position::File { path, offset },
        RecordPosition::Sequence { name, number } => Position::Sequence { name, first: number },
        RecordPosition::Kafka { topic, partition, offset, timestamp } => Position::Kafka {
            topic,
            partition,
            offsets: Arc::from([offset]),
            timestamps: Arc::from([timestamp]),
            keys: one(record.key.as_deref()),
        },
    };
    RecordBlock { payload: Payload::Values(one(record.value.as_deref())), position }
}

/// A record as what a decoder takes: a block of one, or the row that was kept as JSON because its source has no raw records.
pub fn input_of(record: RawRecord, decoder: &dyn Decoder) -> Result<Input> {
    if !decoder.takes_rows() {
        return Ok(Input::Records(block_of(record)));
    }
    let value = record.value.clone().unwrap_or_default();
    let position = block_of(record).position;
    let mut reader = arrow::json::ReaderBuilder::new(decoder.schema()).build(value.as_ref())?;
    let rows = reader.next().transpose()?;
    let rows = rows.ok_or_else(|| Error::new(class::CHECKPOINT_CORRUPT, "a row of the dead letters has no value"))?;
    Ok(Input::Rows(rows, position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_and_damage_is_noticed() {
        let record = json!({ "source": "s", "topic": "t", "partition": 1, "offset": 5, "value": "{}\n", "key": null });
        let entry = ReplayedEntry { id: "q-1-X".into(), records: vec![record.as_object().unwrap().clone()] };
        let request = ReplayRequest { entries: vec![entry] };
        let text = request.encode().unwrap();
        assert_eq!(ReplayRequest::decode(&text).unwrap(), request);
        for cut in 0..text.len() {
            assert!(ReplayRequest::decode(&text[..cut]).is_err(), "cut at {cut}");
        }
        assert!(ReplayRequest::decode(&text.replace("\"t\"", "\"u\"")).is_err());
    }
}
