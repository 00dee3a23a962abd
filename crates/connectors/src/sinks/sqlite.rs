//! The `sqlite` sink: a table in a file.
//!
//! Rows and an entry in the ledger are one transaction, so a batch is in the table once or not at all, however often it is
//! written. The database is in WAL mode: readers never wait for the sink and never see half a batch.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt;
use perennial_core::config::HumanDuration;
use perennial_core::crash::CrashPoint;
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Statement, TransactionBehavior, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::columns::{Column, Digest, Kind, write_date, write_decimal, write_iso_timestamp, write_time};
use super::table::{self, End, LEDGER_BATCHES, LEDGER_COLUMNS, Newest, TablePlan, TargetColumn, list, quoted};

/// Writes rows to a table of an SQLite file, exactly once.
///
/// In `update` mode rows are inserted or changed by `key`; of two rows of one batch with the same key the later wins. In
/// `complete` mode the table is replaced, in one transaction.
///
/// | type in the query | column of a created table | values |
/// |---|---|---|
/// | BOOLEAN | BOOLEAN | 0 and 1 |
/// | TINYINT, SMALLINT, INT, BIGINT | INTEGER | |
/// | FLOAT, DOUBLE | REAL | NaN becomes NULL: SQLite has none |
/// | DECIMAL(p, s) | NUMERIC up to 15 digits, else TEXT | exact |
/// | STRING | TEXT | |
/// | BINARY | BLOB | |
/// | DATE | TEXT | `2026-11-21` |
/// | TIMESTAMP | TEXT | `2026-11-21T09:44:23.000000Z`, in UTC; sorts as text, and SQLite's date functions read it |
/// | TIMESTAMP_NTZ | TEXT | the same without the `Z` |
/// | TIME | TEXT | `09:44:23.000000` |
/// | STRUCT, ARRAY, MAP | TEXT | JSON |
///
/// An existing table may have other types that hold these values; a timestamp goes to an INTEGER column as microseconds since
/// 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteSink {
    /// Path of the database file; it and its directory are created if they are missing.
    pub path: String,
    /// Name of the table.
    pub table: String,
    /// Columns that tell rows apart: the primary key of a table that the sink creates, and how `output_mode: update` finds the rows
    /// that are there. Required in that mode. Default: none.
    #[serde(default)]
    pub key: Vec<String>,
    /// Whether a missing table is created. Default: true.
    #[serde(default = "table::yes")]
    pub create_table: bool,
    /// Name of the table in the same file that notes which batches were written. The sink creates it, and keeps the last 10,000
    /// batches of each query in it. Default: `_perennial_batches`.
    #[serde(default = "table::ledger_table")]
    pub ledger_table: String,
    /// How long to wait for another writer of the file before the batch fails (and is tried again by the retry policy).
    /// Default: 10 seconds.
    #[serde(default = "busy_timeout")]
    pub busy_timeout: HumanDuration,
}

fn busy_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

impl SinkFactory for SqliteSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let wrong = |what: &str| Err(Error::new(class::CONFIG_INVALID, format!("sqlite sink: {what}")));
        if self.path.is_empty() || self.path == ":memory:" {
            return wrong("`path` must be a file: what is in memory is not durable");
        }
        if self.table.is_empty() {
            return wrong("`table` is empty");
        }
        if self.table.eq_ignore_ascii_case(&self.ledger_table) {
            return wrong("`table` and `ledger_table` must be two tables");
        }
        let plan = TablePlan::new("sqlite", &context, &self.key)?;
        let target = Target {
            settings: self.clone(),
            plan,
            env: context.env,
            job: context.job,
            query: context.query,
            query_id: context.query_id,
            connection: Mutex::new(None),
        };
        Ok(Box::new(Sqlite(Arc::new(target))))
    }
}

struct Sqlite(Arc<Target>);

/// What the async side tells the writing thread. A channel that closes without `End` means that the batch failed or was given up.
enum Message {
    Rows(RecordBatch),
    End,
}

#[async_trait]
impl Sink for Sqlite {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        let target = self.0.clone();
        tokio::task::spawn_blocking(move || target.check()).await.map_err(thread_died)?
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
        self.write_or_probe(batch, rows, End::Commit).await
    }

    fn can_probe(&self) -> bool {
        true
    }

    async fn probe(&self, batch: &SinkBatch, rows: RowStream) -> Result<()> {
        self.write_or_probe(batch, rows, End::TakeBack).await.map(drop)
    }
}

impl Sqlite {
    async fn write_or_probe(&self, batch: &SinkBatch, mut rows: RowStream, end: End) -> Result<Written> {
        let (sender, receiver) = mpsc::channel(4);
        let (target, batch) = (self.0.clone(), batch.clone());
        let writer = tokio::task::spawn_blocking(move || target.write(&batch, receiver, end));
        let outcome = loop {
            match rows.next().await {
                Some(Ok(rows)) => {
                    if sender.send(Message::Rows(rows)).await.is_err() {
                        // A closed channel: the writer failed, and says how below.
                        break Ok(());
                    }
                }
                Some(Err(error)) => break Err(error),
                None => {
                    let _ = sender.send(Message::End).await;
                    break Ok(());
                }
            }
        };
        drop(sender);
        let written = writer.await.map_err(thread_died)?;
        outcome.and(written)
    }
}

fn thread_died(error: tokio::task::JoinError) -> Error {
    Error::bug("sqlite sink: the writing thread died").caused_by(error)
}

struct Target {
    settings: SqliteSink,
    plan: TablePlan,
    env: Env,
    job: String,
    query: String,
    query_id: String,
    connection: Mutex<Option<Prepared>>,
}

/// A connection whose tables are there and fit.
struct Prepared {
    connection: Connection,
    insert: String,
    /// Per column: whether timestamps go there as integers.
    integers: Vec<bool>,
}

/// How many bytes of rows are gathered before the transaction begins. The file has one writer at a time, so it should not wait for
/// rows that are still being computed.
const GATHERED_BYTES: usize = 16 << 20;

impl Target {
    fn write(&self, batch: &SinkBatch, mut rows: mpsc::Receiver<Message>, end: End) -> Result<Written> {
        let mut gathered = Vec::new();
        let (mut bytes, mut ended) = (0, false);
        while bytes < GATHERED_BYTES && !ended {
            match rows.blocking_recv() {
                Some(Message::Rows(rows)) => {
                    bytes += rows.get_array_memory_size();
                    gathered.push(rows);
                }
                Some(Message::End) => ended = true,
                None => return Err(given_up()),
            }
        }
        let mut guard = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // Put back only after success: after an error the next attempt begins with a new connection.
        let mut prepared = match guard.take() {
            Some(prepared) => prepared,
            None => self.prepare()?,
        };
        let mut incoming = gathered.into_iter().map(Ok).chain(std::iter::from_fn(|| match ended {
            true => None,
            false => match rows.blocking_recv() {
                Some(Message::Rows(rows)) => Some(Ok(rows)),
                Some(Message::End) => {
                    ended = true;
                    None
                }
                None => Some(Err(given_up())),
            },
        }));
        let written = self.write_rows(&mut prepared, batch, &mut incoming, end)?;
        *guard = Some(prepared);
        Ok(written)
    }

    fn write_rows(
        &self,
        prepared: &mut Prepared,
        batch: &SinkBatch,
        incoming: &mut dyn Iterator<Item = Result<RecordBatch>>,
        end: End,
    ) -> Result<Written> {
        let fault = |e| self.fault(e);
        let Prepared { connection, insert, integers } = prepared;
        let ledger = quoted(&self.settings.ledger_table);
        let identity = params![self.job, self.query, self.query_id, batch.id as i64];
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;

        let (mut count, mut digest) = (0u64, Digest::default());
        let earlier: Option<(i64, String)> = transaction
            .prepare_cached(&format!(
                "SELECT rows, digest FROM {ledger} WHERE job = ?1 AND query = ?2 AND query_id = ?3 AND batch = ?4"
            ))
            .and_then(|mut s| s.query_row(identity, |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(fault)?;
        if let Some((rows_before, digest_before)) = earlier {
            // Nothing to write: others may.
            drop(transaction);
            for rows in incoming {
                let rows = rows?;
                digest.add(&self.plan.convert(&rows, count)?, rows.num_rows());
                count += rows.num_rows() as u64;
            }
            let now = digest.to_string();
            table::compare_digests(&self.settings.table, batch, (rows_before, &digest_before), (count, &now));
            return Ok(Written { rows: count, bytes: 0, duplicate: true });
        }
        let newest = transaction
            .prepare_cached(&format!(
                "SELECT max(batch), max(epoch) FROM {ledger} WHERE job = ?1 AND query = ?2 AND query_id = ?3"
            ))
            .and_then(|mut s| {
                s.query_row(params![self.job, self.query, self.query_id], |row| {
                    Ok(Newest { batch: row.get(0)?, epoch: row.get(1)? })
                })
            })
            .map_err(fault)?;
        table::may_write(&self.settings.table, batch, newest)?;

        if self.plan.mode == OutputMode::Complete {
            transaction.execute(&format!("DELETE FROM {}", quoted(&self.settings.table)), []).map_err(fault)?;
        }
        {
            let mut statement = transaction.prepare_cached(insert).map_err(fault)?;
            let mut text = Vec::new();
            for rows in incoming {
                let rows = rows?;
                let columns = self.plan.convert(&rows, count)?;
                digest.add(&columns, rows.num_rows());
                for row in 0..rows.num_rows() {
                    let mut bind = || -> rusqlite::Result<()> {
                        for (i, column) in columns.iter().enumerate() {
                            bind(&mut statement, i + 1, column, row, integers[i], &mut text)?;
                        }
                        statement.raw_execute().map(drop)
                    };
                    bind().map_err(fault).at(|| format!("row {} of the batch", count + row as u64))?;
                }
                count += rows.num_rows() as u64;
            }
        }
        transaction
            .prepare_cached(&format!("INSERT INTO {ledger} ({LEDGER_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"))
            .and_then(|mut s| {
                let mut now = Vec::new();
                write_iso_timestamp(self.env.clock.now_micros(), true, &mut now);
                s.execute(params![
                    self.job,
                    self.query,
                    self.query_id,
                    batch.id as i64,
                    count as i64,
                    digest.to_string(),
                    batch.epoch as i64,
                    String::from_utf8_lossy(&now),
                ])
            })
            .map_err(fault)?;
        transaction
            .prepare_cached(&format!(
                "DELETE FROM {ledger} WHERE job = ?1 AND query = ?2 AND query_id = ?3 AND batch <= ?4"
            ))
            .and_then(|mut s| {
                let forgotten = batch.id as i64 - LEDGER_BATCHES as i64;
                s.execute(params![self.job, self.query, self.query_id, forgotten])
            })
            .map_err(fault)?;
        match end {
            End::Commit => {
                self.env.crash.pass_blocking(CrashPoint::SinkStaged)?;
                transaction.commit().map_err(fault)?;
                self.env.crash.pass_blocking(CrashPoint::SinkPublished)?;
            }
            End::TakeBack => transaction.rollback().map_err(fault)?,
        }
        Ok(Written { rows: count, bytes: 0, duplicate: false })
    }

    fn connect(&self, create: bool) -> rusqlite::Result<Connection> {
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let connection = Connection::open_with_flags(&self.settings.path, flags)?;
        connection.busy_timeout(self.settings.busy_timeout.0)?;
        Ok(connection)
    }

    /// Opens the file and makes sure that the tables are there.
    fn prepare(&self) -> Result<Prepared> {
        let fault = |e| self.fault(e);
        if let Some(dir) = Path::new(&self.settings.path).parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| self.directory_fault(dir, e))?;
        }
        let mut connection = self.connect(true).map_err(fault)?;
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(fault)?;
        if mode != "wal" {
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(fault)?;
        }
        // A commit is on the disk when it returns.
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(fault)?;

        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
        transaction
            .execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {} (job TEXT NOT NULL, query TEXT NOT NULL, query_id TEXT NOT NULL, \
                 batch INTEGER NOT NULL, rows INTEGER NOT NULL, digest TEXT NOT NULL, epoch INTEGER NOT NULL, \
                 committed_at TEXT NOT NULL, PRIMARY KEY (job, query, query_id, batch)) WITHOUT ROWID",
                quoted(&self.settings.ledger_table)
            ))
            .map_err(fault)?;
        if self.target_columns(&transaction).map_err(fault)?.is_none() {
            self.refuse_unless_created()?;
            transaction.execute_batch(&self.create_statement()).map_err(fault)?;
        }
        let integers = self.compare(&transaction)?;
        transaction.commit().map_err(fault)?;

        let names = list(self.plan.columns.iter().map(|c| quoted(&c.name)));
        let marks = list((1..=self.plan.columns.len()).map(|i| format!("?{i}")));
        let mut insert = format!("INSERT INTO {} ({names}) VALUES ({marks})", quoted(&self.settings.table));
        if self.plan.mode == OutputMode::Update {
            insert.push(' ');
            insert.push_str(&self.plan.on_conflict());
        }
        Ok(Prepared { connection, insert, integers })
    }

    fn check(&self) -> Result<()> {
        let fault = |e| self.fault(e);
        let path = Path::new(&self.settings.path);
        if !path.exists() {
            self.refuse_unless_created()?;
            let absolute = std::path::absolute(path).map_err(|e| self.directory_fault(path, e))?;
            let Some(dir) = absolute.ancestors().skip(1).find(|dir| dir.exists()) else { return Ok(()) };
            // Only the attempt tells whether a file can be made there.
            let probe = dir.join(format!(".perennial-check-{}", std::process::id()));
            std::fs::File::create_new(&probe).map_err(|e| self.directory_fault(dir, e))?;
            return std::fs::remove_file(&probe).map_err(|e| self.directory_fault(dir, e));
        }
        let mut connection = self.connect(false).map_err(fault)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
        match self.target_columns(&transaction).map_err(fault)? {
            Some(_) => self.compare(&transaction).map(drop),
            None => self.refuse_unless_created(),
        }
    }

    fn refuse_unless_created(&self) -> Result<()> {
        if self.settings.create_table {
            return Ok(());
        }
        Err(Error::new(
            class::TARGET_MISSING,
            format!(
                "sqlite sink: {} has no table `{}`; create it, or set create_table: true",
                self.settings.path, self.settings.table
            ),
        ))
    }

    fn create_statement(&self) -> String {
        let mut parts: Vec<_> = self
            .plan
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let required = if self.plan.key.contains(&i) || !column.nullable { " NOT NULL" } else { "" };
                format!("{} {}{required}", quoted(&column.name), declared_type(column.kind))
            })
            .collect();
        if !self.plan.key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", self.plan.key_names()));
        }
        format!("CREATE TABLE {} ({})", quoted(&self.settings.table), parts.join(", "))
    }

    /// The columns of the table; `None` where there is no such table.
    fn target_columns(&self, connection: &Connection) -> rusqlite::Result<Option<Vec<TargetColumn>>> {
        let mut statement = connection.prepare(
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1)",
        )?;
        let columns: Vec<_> = statement
            .query_map([&self.settings.table], |row| {
                let type_name: String = row.get(1)?;
                // A column that is an alias of the row id gets a value by itself.
                let row_id = row.get::<_, i64>(4)? > 0 && type_name.eq_ignore_ascii_case("INTEGER");
                Ok(TargetColumn {
                    name: row.get(0)?,
                    required: row.get(2)? && !row.get::<_, bool>(3)? && !row_id,
                    generated: row.get::<_, i64>(5)? > 1,
                    type_name,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok((!columns.is_empty()).then_some(columns))
    }

    /// Compares the table with the query; tells per column whether timestamps go there as integers.
    fn compare(&self, connection: &Connection) -> Result<Vec<bool>> {
        let fault = |e| self.fault(e);
        let target = self.target_columns(connection).map_err(fault)?.unwrap_or_default();
        let same_name = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let name = format!("`{}` in {}", self.settings.table, self.settings.path);
        table::compare(&name, &self.plan, &target, same_name, |kind, column| {
            fits(kind, Affinity::of(&column.type_name))
        })?;
        if self.plan.mode == OutputMode::Update && !self.has_unique_key(connection).map_err(fault)? {
            let key = self.plan.key_names();
            return Err(Error::new(
                class::TARGET_SCHEMA,
                format!(
                    "table {name} cannot be updated by key: it has no unique index on exactly ({key}); create one: \
                     CREATE UNIQUE INDEX … ON {} ({key})",
                    quoted(&self.settings.table)
                ),
            ));
        }
        Ok(self
            .plan
            .columns
            .iter()
            .map(|column| {
                target
                    .iter()
                    .find(|t| same_name(&t.name, &column.name))
                    .is_some_and(|t| Affinity::of(&t.type_name) == Affinity::Integer)
            })
            .collect())
    }

    fn has_unique_key(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let mut key: Vec<_> = self.plan.key.iter().map(|i| self.plan.columns[*i].name.to_lowercase()).collect();
        key.sort();
        // The primary key (which may be the row id and have no index), and every unique index of all rows.
        let mut statement = connection.prepare(
            "SELECT 'primary key', lower(name) FROM pragma_table_info(?1) WHERE pk > 0 \
             UNION ALL SELECT 'index ' || l.name, lower(i.name) FROM pragma_index_list(?1) l, pragma_index_info(l.name) i \
             WHERE l.\"unique\" AND NOT l.partial ORDER BY 1, 2",
        )?;
        let columns: Vec<(String, Option<String>)> = statement
            .query_map([&self.settings.table], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(columns
            .chunk_by(|a, b| a.0 == b.0)
            .any(|index| index.iter().map(|(_, name)| name.as_deref()).eq(key.iter().map(|k| Some(k.as_str())))))
    }

    fn directory_fault(&self, dir: &Path, error: std::io::Error) -> Error {
        let class = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                class::STORAGE_PERMISSION_DENIED
            }
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => class::DISK_FULL,
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => class::CONFIG_INVALID,
            _ => class::STORAGE_UNAVAILABLE,
        };
        let place = dir.display();
        Error::new(class, format!("sqlite sink: {} cannot be created in {place}", self.settings.path)).caused_by(error)
    }

    fn fault(&self, error: rusqlite::Error) -> Error {
        fault(WHAT, &self.settings.path, &self.settings.table, self.settings.busy_timeout, error)
    }
}

/// What messages call it.
const WHAT: &str = "sqlite sink";

/// An error of SQLite with its class. `what` is for the message.
pub(crate) fn fault(what: &str, path: &str, table: &str, busy_timeout: HumanDuration, error: rusqlite::Error) -> Error {
    let text = error.to_string();
    let (class, text) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            class::SERVER_UNAVAILABLE,
            format!("{path} was locked by another writer for longer than busy_timeout ({busy_timeout})"),
        ),
        Some(ErrorCode::DiskFull) => (class::DISK_FULL, format!("there is no room left for {path}")),
        Some(ErrorCode::ConstraintViolation) => {
            (class::CONSTRAINT_VIOLATION, format!("table `{table}` in {path} refuses a row: {text}"))
        }
        Some(ErrorCode::TypeMismatch) => {
            (class::TARGET_SCHEMA, format!("a value does not fit its column of table `{table}` in {path}: {text}"))
        }
        Some(ErrorCode::TooBig) => (class::SINK_REJECTED, format!("a row is too big for {path}")),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            (class::STORAGE_PERMISSION_DENIED, format!("{path} cannot be written"))
        }
        Some(ErrorCode::CannotOpen) => (
            class::STORAGE_NOT_FOUND,
            format!("{path} cannot be opened; check that it is a file that this user may read and write"),
        ),
        Some(ErrorCode::NotADatabase) => (class::CONFIG_INVALID, format!("{path} is not an SQLite database")),
        Some(ErrorCode::DatabaseCorrupt) => {
            (class::CONFIG_INVALID, format!("{path} is damaged; restore it from a backup"))
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed | ErrorCode::NoLargeFileSupport) => {
            (class::STORAGE_UNAVAILABLE, format!("{path} cannot be read or written: {text}"))
        }
        _ if text.contains("no such table") => {
            (class::TARGET_MISSING, format!("{path}: {text}; it was removed while the query ran"))
        }
        _ if text.contains("no such column") || text.contains("has no column") => {
            (class::TARGET_SCHEMA, format!("{path}: {text}; the table was changed while the query ran"))
        }
        _ => (class::SINK_REJECTED, format!("{path}, table `{table}`: {text}")),
    };
    Error::new(class, format!("{what}: {text}")).caused_by(error)
}

/// The stream of rows failed, or nobody waits for the result any more; nothing is committed.
fn given_up() -> Error {
    Error::new(class::CONNECTION_LOST, "sqlite sink: the batch was given up before all of its rows were there")
}

fn declared_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Boolean => "BOOLEAN",
        Kind::Short | Kind::Integer | Kind::Long => "INTEGER",
        Kind::Float | Kind::Double => "REAL",
        Kind::Decimal { precision, .. } if precision <= 15 => "NUMERIC",
        Kind::Decimal { .. } | Kind::Text | Kind::Date | Kind::Timestamp { .. } | Kind::Time | Kind::Json => "TEXT",
        Kind::Binary => "BLOB",
    }
}

/// What SQLite does to values of a column, by its declared type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    /// SQLite's own rules, in their order.
    fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Self::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || declared.is_empty() {
            Self::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Numeric
        }
    }
}

/// Whether a column gives back the values that are put into it.
fn fits(kind: Kind, affinity: Affinity) -> bool {
    match affinity {
        Affinity::Blob => true,
        Affinity::Integer => {
            matches!(kind, Kind::Boolean | Kind::Short | Kind::Integer | Kind::Long | Kind::Timestamp { .. })
                || matches!(kind, Kind::Decimal { precision, scale: 0 } if precision <= 18)
        }
        Affinity::Text => matches!(
            kind,
            Kind::Text | Kind::Json | Kind::Date | Kind::Time | Kind::Timestamp { .. } | Kind::Decimal { .. }
        ),
        Affinity::Real => {
            matches!(kind, Kind::Float | Kind::Double | Kind::Short | Kind::Integer)
                || matches!(kind, Kind::Decimal { precision, .. } if precision <= 15)
        }
        Affinity::Numeric => match kind {
            Kind::Text | Kind::Binary | Kind::Json => false,
            Kind::Decimal { precision, .. } => precision <= 15,
            _ => true,
        },
    }
}

/// Binds one value; `text` is a buffer that is used again and again.
fn bind(
    statement: &mut Statement<'_>,
    index: usize,
    column: &Column,
    row: usize,
    integer: bool,
    text: &mut Vec<u8>,
) -> rusqlite::Result<()> {
    if column.is_null(row) {
        return statement.raw_bind_parameter(index, Null);
    }
    text.clear();
    match column {
        Column::Boolean(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Short(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Integer(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Long(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Float(a) => return statement.raw_bind_parameter(index, f64::from(a.value(row))),
        Column::Double(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Text(a) | Column::Json(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Binary(a) => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Timestamp(a, _) if integer => return statement.raw_bind_parameter(index, a.value(row)),
        Column::Timestamp(a, zoned) => write_iso_timestamp(a.value(row), *zoned, text),
        Column::Decimal(a, scale) => write_decimal(a.value(row), *scale, text),
        Column::Date(a) => write_date(i64::from(a.value(row)), text),
        Column::Time(a) => write_time(a.value(row), true, text),
    }
    statement.raw_bind_parameter(index, ToSqlOutput::Borrowed(ValueRef::Text(text)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        all_kinds, batch, context, failing_stream, hanging_stream, numbered, rows_of, stream_of,
    };
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray};
    use perennial_core::ErrorKind;

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> String {
            self.dir.path().join("sub/data.db").to_str().unwrap().to_owned()
        }

        fn settings(&self, more: serde_json::Value) -> SqliteSink {
            let mut settings = serde_json::json!({"path": self.path(), "table": "readings", "busy_timeout": "10 ms"});
            settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(settings).unwrap()
        }

        fn sink(&self, rows: &RecordBatch, mode: OutputMode, more: serde_json::Value) -> Result<Box<dyn Sink>> {
            self.settings(more).open(context(rows.schema(), mode))
        }

        /// Runs a statement of a test, creating the file.
        fn run(&self, sql: &str) {
            std::fs::create_dir_all(self.dir.path().join("sub")).unwrap();
            Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
        }

        /// The result of a query, one line per row.
        fn ask(&self, sql: &str) -> Vec<String> {
            let connection = Connection::open(self.path()).unwrap();
            let mut statement = connection.prepare(sql).unwrap();
            let columns = statement.column_count();
            let rows = statement.query_map([], |row| {
                let cells = (0..columns).map(|i| {
                    Ok(match row.get_ref(i)? {
                        ValueRef::Null => "NULL".to_owned(),
                        ValueRef::Integer(i) => i.to_string(),
                        ValueRef::Real(r) => format!("{r:?}"),
                        ValueRef::Text(t) => format!("'{}'", std::str::from_utf8(t).unwrap()),
                        ValueRef::Blob(b) => format!("{b:?}"),
                    })
                });
                Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
            });
            rows.unwrap().map(Result::unwrap).collect()
        }
    }

    #[tokio::test]
    async fn every_kind_of_value_arrives() {
        let (db, rows) = (Fixture::new(), all_kinds());
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        sink.check().await.unwrap();
        assert!(!Path::new(&db.path()).exists(), "the check leaves nothing behind");
        let written = sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        assert_eq!((written.rows, written.duplicate), (3, false));
        sink.check().await.unwrap();
        let nulls = "NULL|".repeat(15);
        assert_eq!(
            db.ask("SELECT * FROM readings ORDER BY id"),
            [
                "1|1|-128|-32768|2147483647|-9223372036854775808|1.5|1e300|'-123456789012345678.901234'|12.3|\
                 'it's \"ünï\" \\ , = text'|[0, 255]|'2026-11-21'|'2026-11-21T09:44:23.120001Z'|'2026-11-21T09:44:23.120001'|\
                 '09:44:23.000001'|'{\"n\":1,\"s\":\"a \\\"quoted\\\" text\"}'|'[1,null]'",
                "2|0|127|7|-7|0|-0.25|0.1|'0.000005'|-0.05|''|[]|'1969-12-31'|'1969-12-31T23:59:59.999999Z'|\
                 '1970-01-01T00:00:00.000000'|'00:00:00.000000'|'{\"s\":\"x\"}'|'[]'",
                &format!("3|{nulls}'{{\"s\":\"y\"}}'|NULL"),
            ]
        );
        assert_eq!(db.ask("SELECT datetime(at) FROM readings WHERE id = 1"), ["'2026-11-21 09:44:23'"]);
        assert_eq!(
            db.ask(
                "SELECT job, query, query_id, batch, rows, length(digest), epoch, committed_at FROM _perennial_batches"
            ),
            ["'greenhouse'|'per_minute'|'0123456789abcdef'|0|3|16|1|'2026-11-21T09:44:23.000000Z'"]
        );
    }

    #[tokio::test]
    async fn a_repeated_batch_has_no_effect_and_is_drained() {
        let (db, rows) = (Fixture::new(), numbered(0, 3));
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        for repeated in [false, true] {
            let written = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
            assert_eq!(written, Written { rows: 3, bytes: 0, duplicate: repeated });
        }
        // Nor after a restart, nor with other rows.
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let drained = stream_of(vec![numbered(5, 4)])
            .chain(futures::stream::once(async move {
                sender.send(()).unwrap();
                Ok(numbered(9, 1))
            }))
            .boxed();
        let written = sink.write(&batch(0), drained).await.unwrap();
        assert_eq!(written, Written { rows: 5, bytes: 0, duplicate: true });
        receiver.await.unwrap();
        assert_eq!(db.ask("SELECT count(*), sum(id) FROM readings"), ["3|3"]);
        assert_eq!(db.ask("SELECT batch, rows FROM _perennial_batches"), ["0|3"]);
        // A query of the same name with another checkpoint is another query.
        let mut other = context(rows.schema(), OutputMode::Append);
        other.query_id = "another".to_owned();
        let sink = db.settings(serde_json::json!({})).open(other).unwrap();
        assert!(!sink.write(&batch(0), stream_of(vec![rows])).await.unwrap().duplicate);
        assert_eq!(db.ask("SELECT count(*) FROM readings"), ["6"]);
    }

    #[tokio::test]
    async fn update_changes_rows_by_key_and_the_later_row_wins() {
        let db = Fixture::new();
        let rows = |minute: &[i64], sensor: &[&str], value: &[f64]| {
            rows_of([
                ("minute", Arc::new(Int64Array::from(minute.to_vec())) as _),
                ("sensor", Arc::new(StringArray::from(sensor.to_vec())) as _),
                ("value", Arc::new(Float64Array::from(value.to_vec())) as _),
            ])
        };
        let first = rows(&[1, 1, 2], &["a", "b", "a"], &[1.0, 2.0, 3.0]);
        let key = serde_json::json!({"key": ["minute", "sensor"]});
        let sink = db.sink(&first, OutputMode::Update, key.clone()).unwrap();
        sink.write(&batch(0), stream_of(vec![first.clone()])).await.unwrap();
        let second = rows(&[2, 3, 3], &["a", "a", "a"], &[30.0, 4.0, 5.0]);
        sink.write(&batch(1), stream_of(vec![second])).await.unwrap();
        let all = "SELECT * FROM readings ORDER BY 1, 2";
        assert_eq!(db.ask(all), ["1|'a'|1.0", "1|'b'|2.0", "2|'a'|30.0", "3|'a'|5.0"]);

        let null = rows_of([
            ("minute", Arc::new(Int64Array::from(vec![Some(7), None])) as _),
            ("sensor", Arc::new(StringArray::from(vec!["a", "a"])) as _),
            ("value", Arc::new(Float64Array::from(vec![1.0, 1.0])) as _),
        ]);
        let error = sink.write(&batch(2), stream_of(vec![null])).await.unwrap_err();
        assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
        assert!(error.to_string().contains("row 1 of the batch has NULL in `minute`"), "{error}");
        assert_eq!(db.ask(all).len(), 4);

        // A table that is there already needs a unique index on the key.
        let db = Fixture::new();
        db.run("CREATE TABLE readings (minute INTEGER, sensor TEXT, value REAL, UNIQUE (minute))");
        let sink = db.sink(&first, OutputMode::Update, key).unwrap();
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![first.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_SCHEMA);
            assert!(error.to_string().contains("CREATE UNIQUE INDEX"), "{error}");
        }
        db.run(
            "CREATE UNIQUE INDEX readings_key ON readings (sensor, minute); DROP TABLE readings; \
                CREATE TABLE readings (minute INTEGER, sensor TEXT, value REAL); \
                CREATE UNIQUE INDEX readings_key ON readings (sensor, minute)",
        );
        sink.check().await.unwrap();
        sink.write(&batch(0), stream_of(vec![first])).await.unwrap();
    }

    #[tokio::test]
    async fn complete_replaces_the_table() {
        let (db, rows) = (Fixture::new(), numbered(0, 3));
        let sink = db.sink(&rows, OutputMode::Complete, serde_json::json!({})).unwrap();
        sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        sink.write(&batch(1), failing_stream(vec![numbered(10, 2)])).await.unwrap_err();
        assert_eq!(db.ask("SELECT id FROM readings ORDER BY id"), ["0", "1", "2"]);
        sink.write(&batch(1), stream_of(vec![numbered(10, 2)])).await.unwrap();
        assert_eq!(db.ask("SELECT id FROM readings ORDER BY id"), ["10", "11"]);
        sink.write(&batch(2), stream_of(vec![])).await.unwrap();
        assert!(db.ask("SELECT id FROM readings").is_empty());
    }

    #[tokio::test]
    async fn a_batch_that_fails_or_is_given_up_leaves_nothing() {
        let (db, rows) = (Fixture::new(), numbered(0, 3));
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        let error = sink.write(&batch(1), failing_stream(vec![numbered(3, 3)])).await.unwrap_err();
        assert!(error.to_string().contains("the source went away"), "{error}");
        // More than is gathered before the transaction begins.
        let big: Vec<_> = (0..3).map(|i| numbered(10 + i * 500_000, 500_000)).collect();
        sink.write(&batch(1), failing_stream(big.clone())).await.unwrap_err();
        let mut waiting = tokio::spawn(async move {
            let outcome = sink.write(&batch(1), hanging_stream(big)).await;
            outcome.map(drop)
        });
        tokio::select! {
            _ = &mut waiting => panic!("the stream has no end"),
            () = tokio::task::yield_now() => waiting.abort(),
        }
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(db.ask("SELECT count(*) FROM readings"), ["3"]);
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({"busy_timeout": "1 minute"})).unwrap();
        sink.write(&batch(1), stream_of(vec![numbered(3, 3)])).await.unwrap();
        assert_eq!(db.ask("SELECT count(*) FROM readings"), ["6"]);
        assert_eq!(db.ask("SELECT batch FROM _perennial_batches ORDER BY 1"), ["0", "1"]);
    }

    #[tokio::test]
    async fn targets_that_do_not_fit_are_named_column_by_column() {
        let (db, rows) = (Fixture::new(), numbered(0, 1));
        let error = db
            .sink(&rows, OutputMode::Append, serde_json::json!({"create_table": false}))
            .unwrap()
            .check()
            .await
            .unwrap_err();
        assert_eq!(error.class(), class::TARGET_MISSING);
        db.run(
            "CREATE TABLE readings (ID TEXT, who TEXT NOT NULL, n INTEGER NOT NULL DEFAULT 0, \
                twice REAL AS (value * 2), value REAL)",
        );
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_SCHEMA);
            let text = error.to_string();
            assert!(text.contains("its column `ID` is TEXT, the query gives BIGINT"), "{text}");
            assert!(text.contains("its column `who` is NOT NULL and the query does not give it"), "{text}");
            assert!(!text.contains("`n`") && !text.contains("`value`"), "{text}");
        }
        // Columns that nobody gives are filled by the table; timestamps go to integers as microseconds.
        db.run("DROP TABLE readings; CREATE TABLE readings (number INTEGER PRIMARY KEY, at INTEGER, note TEXT DEFAULT 'x')");
        let times = all_kinds().project(&[13]).unwrap();
        let sink = db.sink(&times, OutputMode::Append, serde_json::json!({})).unwrap();
        sink.check().await.unwrap();
        sink.write(&batch(0), stream_of(vec![times])).await.unwrap();
        assert_eq!(db.ask("SELECT * FROM readings"), ["1|1795254263120001|'x'", "2|-1|'x'", "3|NULL|'x'"]);
    }

    #[tokio::test]
    async fn failures_have_their_class() {
        let (db, rows) = (Fixture::new(), numbered(0, 3));
        db.run("CREATE TABLE readings (id INTEGER, value REAL CHECK (value < 1))");
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        let error = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
        assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
        assert!(error.to_string().contains("row 2 of the batch"), "{error}");
        assert!(db.ask("SELECT * FROM readings").is_empty());

        // Another writer has the file.
        let other = Connection::open(db.path()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = sink.write(&batch(0), stream_of(vec![numbered(0, 1)])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
        assert!(error.to_string().contains("busy_timeout"), "{error}");
        other.execute_batch("ROLLBACK").unwrap();
        sink.write(&batch(0), stream_of(vec![numbered(0, 1)])).await.unwrap();

        // The table goes away while the connection is open.
        db.run("DROP TABLE readings");
        let error = sink.write(&batch(1), stream_of(vec![numbered(0, 1)])).await.unwrap_err();
        assert_eq!(error.class(), class::TARGET_MISSING, "{error:?}");
        // And the next attempt makes it again.
        sink.write(&batch(1), stream_of(vec![numbered(0, 1)])).await.unwrap();

        std::fs::write(db.dir.path().join("text"), "this is no database, but it is long enough to be looked at")
            .unwrap();
        let mut settings = db.settings(serde_json::json!({}));
        settings.path = db.dir.path().join("text").to_str().unwrap().to_owned();
        let sink = settings.open(context(rows.schema(), OutputMode::Append)).unwrap();
        assert_eq!(sink.check().await.unwrap_err().class(), class::CONFIG_INVALID);
        settings.path = db.dir.path().join("text/x.db").to_str().unwrap().to_owned();
        let sink = settings.open(context(rows.schema(), OutputMode::Append)).unwrap();
        assert_eq!(sink.check().await.unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(sink.write(&batch(0), stream_of(vec![rows])).await.unwrap_err().kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn a_later_epoch_and_a_checkpoint_set_back_are_noticed() {
        let (db, rows) = (Fixture::new(), numbered(0, 1));
        let sink = db.sink(&rows, OutputMode::Append, serde_json::json!({})).unwrap();
        sink.write(&SinkBatch { epoch: 3, ..batch(20_000) }, stream_of(vec![rows.clone()])).await.unwrap();
        let error =
            sink.write(&SinkBatch { epoch: 2, ..batch(20_001) }, stream_of(vec![rows.clone()])).await.unwrap_err();
        assert_eq!(error.class(), class::FENCED);
        sink.write(&SinkBatch { epoch: 4, ..batch(30_000) }, stream_of(vec![rows.clone()])).await.unwrap();
        assert_eq!(db.ask("SELECT batch FROM _perennial_batches"), ["30000"], "old batches are forgotten");
        let error = sink.write(&SinkBatch { epoch: 4, ..batch(20_000) }, stream_of(vec![rows])).await.unwrap_err();
        assert_eq!(error.class(), class::CHECKPOINT_MISMATCH);
        assert_eq!(db.ask("SELECT count(*) FROM readings"), ["2"]);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let (db, rows) = (Fixture::new(), numbered(0, 1));
        let twice = rows_of([("a", rows.column(0).clone()), ("A", rows.column(0).clone())]);
        for (rows, mode, settings, part) in [
            (&rows, OutputMode::Update, serde_json::json!({}), "needs `key`"),
            (&rows, OutputMode::Append, serde_json::json!({"key": ["nothing"]}), "it gives id, value"),
            (&rows, OutputMode::Append, serde_json::json!({"key": ["id", "id"]}), "twice"),
            (&rows, OutputMode::Append, serde_json::json!({"path": ":memory:"}), "must be a file"),
            (&rows, OutputMode::Append, serde_json::json!({"ledger_table": "Readings"}), "two tables"),
            (&twice, OutputMode::Append, serde_json::json!({}), "two columns `A`"),
        ] {
            let Err(error) = db.sink(rows, mode, settings) else { panic!("{part}") };
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(serde_json::from_str::<SqliteSink>(r#"{"path": "x", "table": "y", "tabel": "z"}"#).is_err());
    }
}
