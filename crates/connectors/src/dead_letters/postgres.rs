//! Dead letters in PostgreSQL: a table of entries, which also says how they stand, and a table of their records.
//!
//! The letters of a batch are one transaction. An attempt at the same batch, known by its number and its timestamp, replaces what an
//! earlier one wrote; how an entry stands is left as it is.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::crash::{CrashPoint, CrashPoints};
use perennial_core::dead_letter::{
    DeadLetter, DeadLetterStats, DeadLetters, Entry, EntrySummary, KeptRecord, LetterBatch, Mark, Stage, Standing,
    entries_of, timestamp_text,
};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{RawRecord, RecordPosition};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::postgres::{Address, Connection, Name, Server, SslMode, connect_timeout};

/// Dead letters in two tables of a PostgreSQL database. They are created where they are missing; many jobs may share them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresLetters {
    /// Where the database is, in one line: `postgres://user:password@host:port/database?sslmode=…`. `user`, `password`, `database`
    /// and `sslmode` override its parts; `host` and `port` are for jobs without it. Default: none.
    #[serde(default)]
    pub url: Option<Secret>,
    /// Host name or address, or the directory of a unix socket. Default: `localhost`.
    #[serde(default)]
    pub host: Option<String>,
    /// Port. Default: 5432.
    #[serde(default)]
    pub port: Option<u16>,
    /// User. Default: the user that runs the job.
    #[serde(default)]
    pub user: Option<String>,
    /// Password. Default: none.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Database. Default: the one named like the user.
    #[serde(default)]
    pub database: Option<String>,
    /// Whether the connection is encrypted, and the server's certificate checked. Default: `prefer`.
    #[serde(default)]
    pub sslmode: Option<SslMode>,
    /// File with the certificates (PEM) of the authorities that `sslmode: verify-full` trusts. Default: those of the system.
    #[serde(default)]
    pub root_certificate: Option<String>,
    /// Name of the table of the entries, `table` or `schema.table`. That of their records has `_records` at its end. Default:
    /// `perennial_dead_letters`.
    #[serde(default = "default_table")]
    pub table: String,
    /// How long to wait for a connection. Default: 10 seconds.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: HumanDuration,
}

fn default_table() -> String {
    "perennial_dead_letters".into()
}

/// What messages call it.
const WHAT: &str = "dead letters in postgres";

/// The end of the name of the table of the records.
const RECORDS: &str = "_records";

/// The longest name that the server does not cut off.
const LONGEST_NAME: usize = 63;

impl PostgresLetters {
    /// The dead letters of a job. Nothing is connected yet.
    ///
    /// # Errors
    /// `ConfigInvalid` where a setting is wrong.
    pub fn open(&self, job: &str, retention: Duration, crash: CrashPoints) -> Result<Arc<dyn DeadLetters>> {
        let name = Name::parse(WHAT, &self.table, None)?;
        if name.table.len() + RECORDS.len() > LONGEST_NAME {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("{WHAT}: the name of the table {name} is longer than {} bytes", LONGEST_NAME - RECORDS.len()),
            ));
        }
        let server = Server::new(Address {
            what: WHAT,
            url: self.url.as_ref(),
            host: self.host.as_deref(),
            port: self.port,
            user: self.user.as_deref(),
            password: self.password.as_ref(),
            database: self.database.as_deref(),
            sslmode: self.sslmode,
            root_certificate: self.root_certificate.as_deref(),
            connect_timeout: self.connect_timeout,
            refused: class::STORAGE_UNAVAILABLE,
        })?;
        let records = Name { schema: name.schema.clone(), table: format!("{}{RECORDS}", name.table) };
        Ok(Arc::new(Letters {
            server: server.with(&name),
            entries: name.quoted(),
            records: records.quoted(),
            job: job.to_owned(),
            retention,
            crash,
            client: Mutex::new(None),
        }))
    }
}

struct Letters {
    server: Server,
    /// The tables, as they stand in SQL.
    entries: String,
    records: String,
    job: String,
    retention: Duration,
    crash: CrashPoints,
    /// Taken out while it is used and only put back after success: an error, or work that was given up, closes the connection, and with
    /// it the server ends the transaction. The queries of a job take turns.
    client: Mutex<Option<Connection>>,
}

/// The columns of the table of the records, with their types.
const COLUMNS: [(&str, Type); 20] = [
    ("job", Type::TEXT),
    ("entry", Type::TEXT),
    ("number", Type::INT8),
    ("query", Type::TEXT),
    ("batch", Type::INT8),
    ("source", Type::TEXT),
    ("topic", Type::TEXT),
    ("partition", Type::INT4),
    ("path", Type::TEXT),
    ("sequence", Type::TEXT),
    ("record_offset", Type::INT8),
    ("record_time", Type::TIMESTAMPTZ),
    ("key", Type::BYTEA),
    ("value", Type::BYTEA),
    ("stage", Type::TEXT),
    ("class", Type::TEXT),
    ("message", Type::TEXT),
    ("rules", Type::TEXT_ARRAY),
    ("first_seen", Type::TIMESTAMPTZ),
    ("job_version", Type::TEXT),
];

type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Letters {
    /// A connection, and where it is put back after success.
    async fn client(&self) -> Result<(MutexGuard<'_, Option<Connection>>, Connection)> {
        let mut slot = self.client.lock().await;
        let client = match slot.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.server.in_time(self.connect()).await?,
        };
        Ok((slot, client))
    }

    async fn query(&self, sql: &str, values: Values<'_>) -> Result<Vec<Row>> {
        let (mut slot, client) = self.client().await?;
        let rows = self.server.answer(client.query(sql, values)).await?;
        *slot = Some(client);
        Ok(rows)
    }

    async fn execute(&self, sql: &str, values: Values<'_>) -> Result<u64> {
        let (mut slot, client) = self.client().await?;
        let changed = self.server.answer(client.execute(sql, values)).await?;
        *slot = Some(client);
        Ok(changed)
    }

    /// The first entry in an order.
    async fn first(&self, order: &str) -> Result<Option<EntrySummary>> {
        let sql = format!(
            "SELECT batch, at, class FROM {} WHERE job = $1 ORDER BY at {order}, id {order} LIMIT 1",
            self.entries
        );
        let rows = self.query(&sql, &[&self.job]).await?;
        Ok(rows.first().map(|row| EntrySummary {
            batch_id: row.get::<_, i64>(0) as u64,
            timestamp: timestamp_text(row.get::<_, DateTime<Utc>>(1).timestamp_micros()),
            error_type: row.get(2),
        }))
    }

    /// Connects, and makes the tables where they are missing.
    async fn connect(&self) -> Result<Connection> {
        let mut client = self.server.connect().await?;
        let fault = |e| self.server.fault(e);
        let Self { entries, records, .. } = self;
        let there = client
            .query_one("SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL", &[entries, records])
            .await
            .map_err(fault)?;
        if !there.get::<_, bool>(0) {
            let columns: String = COLUMNS
                .iter()
                .map(|(name, kind)| format!("{name} {}, ", kind.name().replace("_text", "text[]")))
                .collect();
            let transaction = client.transaction().await.map_err(fault)?;
            // IF NOT EXISTS alone fails when two begin at the same time.
            transaction
                .batch_execute(&format!(
                    "SELECT pg_advisory_xact_lock(7309453150001); \
                     CREATE TABLE IF NOT EXISTS {entries} (job text NOT NULL, id text NOT NULL, query text NOT NULL, \
                     batch bigint NOT NULL, at timestamptz NOT NULL, class text NOT NULL, message text NOT NULL, \
                     records bigint NOT NULL, job_version text NOT NULL, entry json NOT NULL, outcome text, outcome_at text, \
                     failed bigint NOT NULL DEFAULT 0, note text, replays bigint NOT NULL DEFAULT 0, PRIMARY KEY (job, id)); \
                     CREATE TABLE IF NOT EXISTS {records} ({columns}PRIMARY KEY (job, entry, number), \
                     FOREIGN KEY (job, entry) REFERENCES {entries} ON DELETE CASCADE)"
                ))
                .await
                .map_err(fault)?;
            transaction.commit().await.map_err(fault)?;
        }
        Ok(client)
    }

    async fn write_batch(&self, client: &mut Client, batch: &LetterBatch, letters: Vec<DeadLetter>) -> Result<()> {
        let fault = |e| self.server.fault(e);
        let Self { entries, records, job, .. } = self;
        let transaction = client.transaction().await.map_err(fault)?;
        let (number, at) = (number(batch.batch), time(batch.timestamp_ms));
        // Another attempt at the batch, of a process that was taken over from, waits or is waited for.
        let turn = format!("{job}\n{}\n{number}", batch.query);
        transaction.query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&turn]).await.map_err(fault)?;
        let there = transaction
            .query(
                &format!("SELECT id, at = $4 FROM {entries} WHERE job = $1 AND query = $2 AND batch = $3"),
                &[job, &batch.query, &number, &at],
            )
            .await
            .map_err(fault)?;
        let there: BTreeMap<String, bool> = there.iter().map(|row| (row.get(0), row.get(1))).collect();

        let mut new = entries_of(batch, letters);
        for (entry, _) in &mut new {
            // Of a batch with the same number and another timestamp: the job began anew, with another checkpoint.
            if there.get(&entry.id) == Some(&false) {
                entry.id = format!("{}-{}", entry.id, batch.timestamp_ms);
            }
            entry.records_object = self.records.replace('"', "");
        }
        let is_new = |id: &str| new.iter().any(|(entry, _)| entry.id == id);
        let own: Vec<&String> = there.iter().filter(|(_, own)| **own).map(|(id, _)| id).collect();
        let gone: Vec<&String> = own.iter().copied().filter(|id| !is_new(id)).collect();
        transaction
            .execute(&format!("DELETE FROM {records} WHERE job = $1 AND entry = ANY($2)"), &[job, &own])
            .await
            .map_err(fault)?;
        transaction
            .execute(&format!("DELETE FROM {entries} WHERE job = $1 AND id = ANY($2)"), &[job, &gone])
            .await
            .map_err(fault)?;
        let insert = transaction
            .prepare(&format!(
                "INSERT INTO {entries} (job, id, query, batch, at, class, message, records, job_version, entry) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (job, id) DO UPDATE SET \
                 message = excluded.message, records = excluded.records, job_version = excluded.job_version, entry = excluded.entry"
            ))
            .await
            .map_err(fault)?;
        for (entry, _) in &new {
            let (class, message) = (&entry.error.class, text(&entry.error.message));
            let whole = serde_json::to_value(entry).map_err(|e| Error::bug(e.to_string()))?;
            let count = self::number(entry.records);
            let values: Values<'_> =
                &[job, &entry.id, &batch.query, &number, &at, class, &message, &count, &entry.job_version, &whole];
            transaction.execute(&insert, values).await.map_err(fault)?;
        }

        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        let copy = format!("COPY {records} ({}) FROM STDIN BINARY", names.join(", "));
        let types: Vec<Type> = COLUMNS.iter().map(|(_, kind)| kind.clone()).collect();
        let mut writer =
            pin!(BinaryCopyInWriter::new(transaction.copy_in::<_, Bytes>(&copy).await.map_err(fault)?, &types));
        for (entry, letters) in new {
            for (number, letter) in letters.into_iter().enumerate() {
                let kept = KeptRecord::new(batch, letter);
                let place = Place::of(&kept.record.position);
                let stage = serde_json::to_value(kept.stage).map_err(|e| Error::bug(e.to_string()))?;
                let (key, value) = (kept.record.key.as_deref(), kept.record.value.as_deref());
                let rules: Vec<String> = kept.rules.iter().map(|rule| text(rule)).collect();
                let values: Values<'_> = &[
                    job,
                    &entry.id,
                    &(number as i64),
                    &kept.query,
                    &self::number(kept.batch),
                    &kept.source,
                    &place.topic,
                    &place.partition,
                    &place.path,
                    &place.sequence,
                    &place.offset,
                    &place.time,
                    &key,
                    &value,
                    &stage.as_str(),
                    &kept.class,
                    &text(&kept.message),
                    &rules,
                    &time(kept.first_seen_ms),
                    &kept.job_version,
                ];
                writer.as_mut().write(values).await.map_err(fault)?;
            }
        }
        writer.as_mut().finish().await.map_err(fault)?;
        self.crash.pass(CrashPoint::LetterRecords).await;
        transaction.commit().await.map_err(fault)
    }

    fn record(&self, row: &Row) -> Result<KeptRecord> {
        let get = |name: &str| -> Result<Option<String>> { row.try_get(name).map_err(|e| self.server.fault(e)) };
        let wanted = |name: &str| {
            get(name)?.ok_or_else(|| self.server.error(class::CHECKPOINT_CORRUPT, format!("a record has no {name}")))
        };
        let bytes = |name: &str| -> Result<Option<Bytes>> {
            let bytes: Option<Vec<u8>> = row.try_get(name).map_err(|e| self.server.fault(e))?;
            Ok(bytes.map(Bytes::from))
        };
        let place = Place {
            topic: get("topic")?,
            partition: row.try_get("partition").map_err(|e| self.server.fault(e))?,
            path: get("path")?,
            sequence: get("sequence")?,
            offset: row.try_get("record_offset").map_err(|e| self.server.fault(e))?,
            time: row.try_get("record_time").map_err(|e| self.server.fault(e))?,
        };
        let stage = wanted("stage")?;
        let first_seen: DateTime<Utc> = row.try_get("first_seen").map_err(|e| self.server.fault(e))?;
        Ok(KeptRecord {
            query: wanted("query")?,
            batch: row.try_get::<_, i64>("batch").map_err(|e| self.server.fault(e))? as u64,
            source: wanted("source")?,
            record: RawRecord { key: bytes("key")?, value: bytes("value")?, position: place.position() },
            stage: Stage::deserialize(Value::from(stage.as_str())).map_err(|_| {
                self.server.error(class::CHECKPOINT_CORRUPT, format!("a record has the unknown stage {stage}"))
            })?,
            class: wanted("class")?,
            message: wanted("message")?,
            rules: row.try_get("rules").map_err(|e| self.server.fault(e))?,
            first_seen_ms: first_seen.timestamp_millis(),
            job_version: wanted("job_version")?,
        })
    }
}

/// Where a record was, in columns.
#[derive(Debug, Default, Clone, PartialEq)]
struct Place {
    topic: Option<String>,
    partition: Option<i32>,
    path: Option<String>,
    sequence: Option<String>,
    offset: i64,
    time: Option<DateTime<Utc>>,
}

impl Place {
    fn of(position: &RecordPosition) -> Self {
        match position {
            RecordPosition::File { path, offset } => {
                Self { path: Some(path.to_string()), offset: number(*offset), ..Self::default() }
            }
            RecordPosition::Kafka { topic, partition, offset, timestamp } => Self {
                topic: Some(topic.to_string()),
                partition: Some(*partition),
                offset: *offset,
                // Brokers say -1 for none.
                time: (*timestamp >= 0).then(|| time(*timestamp)),
                ..Self::default()
            },
            RecordPosition::Sequence { name, number: at } => {
                Self { sequence: Some(name.to_string()), offset: number(*at), ..Self::default() }
            }
        }
    }

    fn position(self) -> RecordPosition {
        let offset = self.offset as u64;
        match (self.topic, self.path) {
            (Some(topic), _) => RecordPosition::Kafka {
                topic: topic.into(),
                partition: self.partition.unwrap_or_default(),
                offset: self.offset,
                timestamp: self.time.map_or(-1, |time| time.timestamp_millis()),
            },
            (None, Some(path)) => RecordPosition::File { path: path.into(), offset },
            (None, None) => RecordPosition::Sequence { name: self.sequence.unwrap_or_default().into(), number: offset },
        }
    }
}

/// A number as the server has it.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

/// Text that the server takes: it has no character 0, which a message that quotes a record may have.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[async_trait]
impl DeadLetters for Letters {
    fn place(&self) -> String {
        self.server.place.clone()
    }

    async fn write(&self, batch: &LetterBatch, letters: Vec<DeadLetter>) -> Result<()> {
        // An earlier attempt may have had some, with other settings.
        if letters.is_empty() && !batch.again {
            return Ok(());
        }
        let (mut slot, mut client) = self.client().await?;
        self.server.in_time(self.write_batch(&mut client, batch, letters)).await?;
        *slot = Some(client);
        Ok(())
    }

    async fn mark(&self, marks: &[Mark]) -> Result<()> {
        for mark in marks {
            let (outcome, failed) = (mark.outcome.name(), number(mark.failed));
            let (at, note) = (&mark.timestamp, mark.note.as_deref().map(text));
            let sql = format!(
                "UPDATE {} SET outcome = $3, outcome_at = $4, failed = $5, note = $6, \
                 replays = replays + (CASE WHEN $3 = 'replaying' THEN 1 ELSE 0 END) \
                 WHERE job = $1 AND id = $2 AND (outcome, outcome_at) IS DISTINCT FROM ($3, $4)",
                self.entries
            );
            self.execute(&sql, &[&self.job, &mark.entry, &outcome, at, &failed, &note]).await?;
        }
        Ok(())
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        let sql = format!("SELECT entry FROM {} WHERE job = $1 ORDER BY at, id", self.entries);
        let rows = self.query(&sql, &[&self.job]).await?;
        let damaged =
            |e: serde_json::Error| self.server.error(class::CHECKPOINT_CORRUPT, format!("an entry is not one: {e}"));
        rows.iter()
            .map(|row| {
                let entry: Value = row.try_get(0).map_err(|e| self.server.fault(e))?;
                serde_json::from_value(entry).map_err(damaged)
            })
            .collect()
    }

    async fn standings(&self) -> Result<BTreeMap<String, Standing>> {
        let sql = format!(
            "SELECT id, outcome, outcome_at, failed, note, replays FROM {} WHERE job = $1 AND outcome IS NOT NULL",
            self.entries
        );
        let rows = self.query(&sql, &[&self.job]).await?;
        rows.iter()
            .map(|row| {
                let (id, outcome): (String, String) = (row.get(0), row.get(1));
                let unknown = |_: serde_json::Error| {
                    self.server
                        .error(class::CHECKPOINT_CORRUPT, format!("the entry {id} has the unknown outcome {outcome}"))
                };
                let mark = Mark {
                    entry: id.clone(),
                    outcome: serde_json::from_value(Value::from(outcome.as_str())).map_err(unknown)?,
                    timestamp: row.get::<_, Option<String>>(2).unwrap_or_default(),
                    failed: row.get::<_, i64>(3) as u64,
                    note: row.get(4),
                };
                Ok((id, Standing { mark, replays: row.get::<_, i64>(5) as u64 }))
            })
            .collect()
    }

    async fn records(&self, entry: &Entry) -> Result<Vec<Map<String, Value>>> {
        let sql = format!("SELECT * FROM {} WHERE job = $1 AND entry = $2 ORDER BY number", self.records);
        let rows = self.query(&sql, &[&self.job, &entry.id]).await?;
        rows.iter().map(|row| Ok(self.record(row)?.to_json())).collect()
    }

    async fn purge(&self, gone: &HashSet<String>) -> Result<u64> {
        let gone: Vec<&String> = gone.iter().collect();
        let sql = format!("DELETE FROM {} WHERE job = $1 AND id = ANY($2)", self.entries);
        self.execute(&sql, &[&self.job, &gone]).await
    }

    async fn stats(&self) -> Result<DeadLetterStats> {
        let of_class = format!("SELECT class, count(*) FROM {} WHERE job = $1 GROUP BY class", self.entries);
        let classes = self.query(&of_class, &[&self.job]).await?;
        let error_types: BTreeMap<String, u64> =
            classes.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as u64)).collect();
        Ok(DeadLetterStats {
            total_entries: error_types.values().sum(),
            error_types,
            first_error: self.first("ASC").await?,
            last_error: self.first("DESC").await?,
            dlq_directory: self.place(),
        })
    }

    async fn expire(&self, now_ms: i64) -> Result<u64> {
        let retention = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        // What no time can be older than is kept for ever.
        let Some(oldest) =
            DateTime::from_timestamp_millis(now_ms.saturating_sub(retention)).filter(|t| t.timestamp() > 0)
        else {
            return Ok(0);
        };
        self.execute(&format!("DELETE FROM {} WHERE job = $1 AND at < $2", self.entries), &[&self.job, &oldest]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_from_their_columns() {
        for position in [
            RecordPosition::File { path: "in/a.json".into(), offset: 17 },
            RecordPosition::Kafka { topic: "t".into(), partition: 3, offset: 1 << 40, timestamp: 1_763_718_330_123 },
            RecordPosition::Kafka { topic: "t".into(), partition: 0, offset: 0, timestamp: -1 },
            RecordPosition::Sequence { name: "s".into(), number: 4 },
        ] {
            assert_eq!(Place::of(&position).position(), position);
        }
    }

    #[test]
    fn a_name_that_the_server_would_cut_off_is_refused() {
        let open = |table: String| {
            let letters: PostgresLetters = serde_json::from_value(serde_json::json!({ "table": table })).unwrap();
            letters.open("job", Duration::ZERO, CrashPoints::default()).map(|letters| letters.place())
        };
        assert!(open("t".repeat(55)).unwrap().starts_with("ttt"));
        assert_eq!(open("t".repeat(56)).unwrap_err().class(), class::CONFIG_INVALID);
    }
}
