//! The ledger: what Kafka knows of the batches of a query, and what follows for the batch at hand.

use std::time::Duration;

use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{BatchId, SinkBatch};
use serde::{Deserialize, Serialize};

use super::LostLedger;

/// The newest entry: an offset committed to the ledger's consumer group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The offset: all batches below are in the topic.
    pub next: BatchId,
    /// What was noted with it.
    pub note: Note,
}

/// The metadata of the committed offset, for comparison and for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    pub job: String,
    pub query: String,
    /// Epoch of the writer.
    pub epoch: u64,
    /// Rows of the batch.
    pub rows: u64,
    /// Digest of the batch's records.
    pub digest: String,
}

impl Note {
    /// As text of at most about 600 bytes: brokers refuse more than `offset.metadata.max.bytes` (4096).
    pub fn encode(&self) -> String {
        let short = |name: &str| name.chars().take(60).collect();
        let note = Self { job: short(&self.job), query: short(&self.query), ..self.clone() };
        serde_json::to_string(&note).unwrap_or_default()
    }

    /// Text that a person's tool wrote, or none, says nothing.
    pub fn decode(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// Where the ledger is, for messages.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub brokers: String,
    pub group: String,
    pub topic: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "consumer group {}, partition 0 of topic {} at {}", self.group, self.topic, self.brokers)
    }
}

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is not in the topic.
    Write,
    /// It is.
    LeaveOut,
    /// The ledger is empty, which proves that the batch is not in the topic only if an entry of it would still be there.
    Unproven,
}

/// What the ledger says about a batch. `Fenced` when a later run has written, `CheckpointMismatch` when it contradicts the checkpoint.
pub(super) fn judge(place: &Place, batch: &SinkBatch, entry: Option<&Entry>) -> Result<Verdict> {
    let Some(entry) = entry else {
        return Ok(if batch.again { Verdict::Unproven } else { Verdict::Write });
    };
    if entry.next > batch.id && !batch.again {
        return Err(set_back(place, batch, entry));
    }
    if entry.note.epoch > batch.epoch {
        return Err(Error::new(
            class::FENCED,
            format!(
                "a later run of this query (epoch {}) has written to Kafka ({place}), this one has epoch {}: stop one of the two \
                 processes",
                entry.note.epoch, batch.epoch
            ),
        ));
    }
    Ok(if entry.next > batch.id { Verdict::LeaveOut } else { Verdict::Write })
}

fn set_back(place: &Place, batch: &SinkBatch, entry: &Entry) -> Error {
    Error::new(
        class::CHECKPOINT_MISMATCH,
        format!(
            "the batches up to {} of this query are in Kafka already ({place}), but the checkpoint has never begun batch {}: it was set \
             back. Restore a newer checkpoint; or, to have the rows from here on written again beside those that are there, remove \
             the entry: kafka-consumer-groups.sh --bootstrap-server {} --delete-offsets --group {} --topic {}",
            entry.next - 1,
            batch.id,
            place.brokers,
            place.group,
            place.topic
        ),
    )
}

/// Clocks of the brokers and of the job may differ by as much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(3600);

/// What to do with a batch that is [`Verdict::Unproven`]. An entry of it would be younger than the batch; where brokers keep entries
/// longer than the batch is old, there never was one.
pub(super) fn settle(
    place: &Place,
    batch: &SinkBatch,
    now_ms: i64,
    kept: Duration,
    lost: LostLedger,
) -> Result<Verdict> {
    let margin = CLOCKS_DIFFER.as_millis() as i64;
    // A batch of the future has no age: the clock was set back since.
    let age = u64::try_from(now_ms - batch.timestamp_ms + margin).map(Duration::from_millis).unwrap_or(kept);
    if age < kept {
        return Ok(Verdict::Write);
    }
    match lost {
        LostLedger::Write => Ok(Verdict::Write),
        LostLedger::LeaveOut => Ok(Verdict::LeaveOut),
        LostLedger::Fail => Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "batch {} was begun {} hours ago and not committed, and Kafka no longer knows whether it was written: the ledger is \
                 empty ({place}), and brokers keep its entries for {} hours only (offsets.retention.minutes). Look into the topic for \
                 the rows of the batch, then start once with `lost_ledger: write` if they are missing, or with `lost_ledger: \
                 leave_out` if they are there",
                batch.id,
                (age.as_secs() / 3600).saturating_sub(1),
                kept.as_secs() / 3600
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { brokers: "b:9092".into(), group: "perennial-q".into(), topic: "t".into() }
    }

    fn batch(id: BatchId, again: bool) -> SinkBatch {
        SinkBatch { id, epoch: 3, timestamp_ms: 1_000_000, again }
    }

    #[test]
    fn the_ledger_decides_about_every_batch() {
        let entry = |next| Some(Entry { next, note: Note { epoch: 3, ..Note::default() } });
        for (id, again, entry, expected) in [
            (0, false, None, Verdict::Write),
            (9, false, None, Verdict::Write),
            (0, true, None, Verdict::Unproven),
            (9, true, None, Verdict::Unproven),
            (9, false, entry(9), Verdict::Write),
            (9, true, entry(9), Verdict::Write),
            (9, true, entry(5), Verdict::Write),
            (9, true, entry(10), Verdict::LeaveOut),
            (9, true, entry(12), Verdict::LeaveOut),
        ] {
            assert_eq!(judge(&place(), &batch(id, again), entry.as_ref()).unwrap(), expected, "{id} {again} {entry:?}");
        }
        let error = judge(&place(), &batch(9, false), entry(10).as_ref()).unwrap_err();
        assert_eq!(error.class(), class::CHECKPOINT_MISMATCH);
        assert!(error.to_string().contains("--delete-offsets --group perennial-q --topic t"), "{error}");
        let later = Entry { next: 9, note: Note { epoch: 4, ..Note::default() } };
        assert_eq!(judge(&place(), &batch(9, true), Some(&later)).unwrap_err().class(), class::FENCED);
    }

    #[test]
    fn an_empty_ledger_proves_something_as_long_as_entries_are_kept() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let at = |age: Duration, lost| {
            settle(&place(), &batch(7, true), 1_000_000 + age.as_millis() as i64, hours(168), lost)
        };
        assert_eq!(at(hours(1), LostLedger::Fail).unwrap(), Verdict::Write);
        assert_eq!(at(hours(166), LostLedger::LeaveOut).unwrap(), Verdict::Write, "what is known needs no decision");
        assert_eq!(at(hours(168), LostLedger::Write).unwrap(), Verdict::Write);
        assert_eq!(at(hours(168), LostLedger::LeaveOut).unwrap(), Verdict::LeaveOut);
        let error = at(hours(170), LostLedger::Fail).unwrap_err();
        assert_eq!(error.class(), class::CHECKPOINT_MISMATCH);
        assert!(
            error.to_string().contains("begun 170 hours ago") && error.to_string().contains("lost_ledger"),
            "{error}"
        );
    }

    #[test]
    fn notes_are_short_and_read_back() {
        let note = Note { job: "j".repeat(5000), query: "q".into(), epoch: 7, rows: 5, digest: "00ff".into() };
        let text = note.encode();
        assert!(text.len() < 600, "{text}");
        assert_eq!(Note::decode(&text), Note { job: "j".repeat(60), ..note });
        assert_eq!(Note::decode("by hand"), Note::default());
    }
}
