//! The `postgres` sink: a table in PostgreSQL.
//!
//! A batch is one transaction: its entry in the ledger, `COPY` in binary into a temporary staging table, one `INSERT … SELECT` from
//! there into the table, by key in update mode. The ledger's primary key is what makes two writers of the same batch wait for each
//! other, and the second one find it done.

use std::pin::pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::crash::CrashPoint;
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement, Transaction};

use super::columns::{Column, Digest, Kind};
use super::table::{self, End, LEDGER_BATCHES, LEDGER_COLUMNS, Newest, TablePlan, TargetColumn, list, quoted};
pub use crate::postgres::SslMode;
use crate::postgres::{Address, Connection, Name, Server, connect_timeout, timeout};

/// Writes rows to a table of a PostgreSQL database, exactly once.
///
/// In `update` mode rows are inserted or changed by `key`; of two rows of one batch with the same key the later wins. In
/// `complete` mode the table is replaced, in one transaction. The user needs the right to make temporary tables.
///
/// | type in the query | column of a created table |
/// |---|---|
/// | BOOLEAN | boolean |
/// | TINYINT, SMALLINT | smallint |
/// | INT | integer |
/// | BIGINT | bigint |
/// | FLOAT | real |
/// | DOUBLE | double precision |
/// | DECIMAL(p, s) | numeric(p, s) |
/// | STRING | text |
/// | BINARY | bytea |
/// | DATE | date |
/// | TIMESTAMP | timestamp with time zone |
/// | TIMESTAMP_NTZ | timestamp |
/// | TIME | time |
/// | STRUCT, ARRAY, MAP | jsonb |
///
/// An existing table may have other types that hold these values (`varchar`, `uuid` or an enum for STRING, `numeric` for numbers, …).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSink {
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
    /// Name of the table, `table` or `schema.table`.
    pub table: String,
    /// Columns that tell rows apart: the primary key of a table that the sink creates, and how `output_mode: update` finds the rows
    /// that are there. Required in that mode. Default: none.
    #[serde(default)]
    pub key: Vec<String>,
    /// Whether a missing table is created. Its schema must be there. Default: true.
    #[serde(default = "table::yes")]
    pub create_table: bool,
    /// Name of the table that notes which batches were written, `table` or `schema.table`; without a schema it is in that of `table`.
    /// The sink creates it, and keeps the last 10,000 batches of each query in it. Default: `_perennial_batches`.
    #[serde(default = "table::ledger_table")]
    pub ledger_table: String,
    /// How long to wait for a connection. Default: 10 seconds.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: HumanDuration,
    /// How long the server may take to answer a statement, or to take in more rows, before the batch fails with `Timeout`. The longest
    /// statement copies the rows of a batch into the table. Default: 5 minutes.
    #[serde(default = "timeout")]
    pub timeout: HumanDuration,
}

impl PostgresSink {
    fn server(&self) -> Result<Server> {
        Server::new(Address {
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
            refused: class::SINK_REJECTED,
        })?
        .within(self.timeout)
    }
}

/// What messages call it.
const WHAT: &str = "postgres sink";

impl SinkFactory for PostgresSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let server = self.server()?;
        let table = Name::parse(WHAT, &self.table, None)?;
        let ledger = Name::parse(WHAT, &self.ledger_table, table.schema.as_deref())?;
        if table == ledger {
            return Err(Error::new(
                class::CONFIG_INVALID,
                "postgres sink: `table` and `ledger_table` must be two tables",
            ));
        }
        let plan = TablePlan::new("postgres", &context, &self.key)?;
        Ok(Box::new(Postgres {
            create_table: self.create_table,
            server: server.with(&table),
            table,
            ledger,
            plan,
            env: context.env,
            job: context.job,
            query: context.query,
            query_id: context.query_id,
            connection: Mutex::default(),
        }))
    }
}

struct Postgres {
    server: Server,
    table: Name,
    ledger: Name,
    create_table: bool,
    plan: TablePlan,
    env: Env,
    job: String,
    query: String,
    query_id: String,
    connection: Mutex<Slot>,
}

/// The connection between batches.
#[derive(Default)]
struct Slot {
    /// Taken out while it is used and only put back after success: an error, or a batch that was given up, closes the connection,
    /// and with it the server ends the transaction.
    session: Option<Session>,
    /// The one that was closed so. Where the network is at fault the server does not know yet, and its transaction still holds the batch.
    left: Option<Backend>,
}

/// The server's process for a connection: its number, which another one may have later, and its beginning.
type Backend = (i32, SystemTime);

/// A connection with its staging table and its statements.
struct Session {
    client: Connection,
    backend: Backend,
    newest: Statement,
    claim: Statement,
    copy: Statement,
    insert: Statement,
    /// For update mode: keeps the last of the rows with the same key.
    insert_last: Option<Statement>,
    settle: Statement,
    forget: Statement,
}

const STAGE: &str = "pg_temp._perennial_stage";

/// Bytes of rows that are sent to the server at once.
const CHUNK_BYTES: usize = 256 << 10;

#[async_trait]
impl Sink for Postgres {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        let client = self.server.connect().await?;
        let ask = client.query_one("SELECT has_database_privilege(current_database(), 'TEMP')", &[]);
        let temporary: bool = self.server.answer(ask).await?.get(0);
        if !temporary {
            return Err(self.server.error(
                class::AUTHORIZATION_FAILED,
                "the user may not make temporary tables; GRANT TEMPORARY ON DATABASE",
            ));
        }
        let changes: &[&str] = match self.plan.mode {
            OutputMode::Append => &["INSERT"],
            OutputMode::Update => &["INSERT", "UPDATE", "SELECT"],
            OutputMode::Complete => &["INSERT", "DELETE"],
        };
        if self.may_change(&client, &self.table, changes, self.create_table).await? {
            self.compare(&client).await?;
        }
        self.may_change(&client, &self.ledger, &["INSERT", "UPDATE", "DELETE", "SELECT"], true).await?;
        Ok(())
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

impl Postgres {
    async fn write_or_probe(&self, batch: &SinkBatch, rows: RowStream, end: End) -> Result<Written> {
        let mut slot = self.connection.lock().await;
        let mut session = match slot.session.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => self.prepare(slot.left).await?,
        };
        slot.left = Some(session.backend);
        let written = self.write_batch(&mut session, batch, rows, end).await?;
        *slot = Slot { session: Some(session), left: None };
        Ok(written)
    }

    async fn write_batch(
        &self,
        session: &mut Session,
        batch: &SinkBatch,
        mut rows: RowStream,
        end: End,
    ) -> Result<Written> {
        let Session { client, backend: _, newest, claim, copy, insert, insert_last, settle, forget } = session;
        let id = batch.id as i64;
        let server = &self.server;
        let mut transaction = server.answer(client.transaction()).await?;
        let now = UNIX_EPOCH + Duration::from_micros(self.env.clock.now_micros().max(0) as u64);
        // Sent together; the server answers the first before it does the second.
        let epoch = batch.epoch as i64;
        let claim_values: [&(dyn ToSql + Sync); 6] = [&self.job, &self.query, &self.query_id, &id, &epoch, &now];
        let query_values: [&(dyn ToSql + Sync); 3] = [&self.job, &self.query, &self.query_id];
        let (newest, claimed) = server
            .answer(futures::future::try_join(
                transaction.query_one(&*newest, &query_values),
                transaction.execute(&*claim, &claim_values),
            ))
            .await?;
        if claimed == 0 {
            return self.leave_out(transaction, batch, rows).await;
        }
        table::may_write(&self.server.place, batch, Newest { batch: newest.get(0), epoch: newest.get(1) })?;

        let mut copy = pin!(server.answer(transaction.copy_in::<_, Bytes>(&*copy)).await?);
        let (mut count, mut bytes, mut digest) = (0u64, 0u64, Digest::default());
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 2));
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            let columns = self.plan.convert(&rows, count)?;
            digest.add(&columns, rows.num_rows());
            for row in 0..rows.num_rows() {
                encode_row(&columns, row, &mut buffer).map_err(|(column, what)| {
                    self.server.error(
                        class::SINK_REJECTED,
                        format!(
                            "row {} of the batch: column `{}` {what}",
                            count + row as u64,
                            self.plan.columns[column].name
                        ),
                    )
                })?;
                if buffer.len() >= CHUNK_BYTES {
                    bytes += buffer.len() as u64;
                    server.answer(copy.send(buffer.split().freeze())).await?;
                    buffer.reserve(CHUNK_BYTES + (CHUNK_BYTES >> 2));
                }
            }
            count += rows.num_rows() as u64;
        }
        buffer.put_i16(-1);
        bytes += buffer.len() as u64;
        server.answer(copy.send(buffer.freeze())).await?;
        server.answer(copy.finish()).await?;

        if self.plan.mode == OutputMode::Complete {
            server.answer(transaction.batch_execute(&format!("DELETE FROM {}", self.table.quoted()))).await?;
        }
        match insert_last {
            _ if count == 0 => {}
            None => drop(server.answer(transaction.execute(&*insert, &[])).await?),
            Some(insert_last) => {
                // The server refuses to change a row twice. That is rare, and to sort out always what is rare would be dear.
                let attempt = server.answer(transaction.savepoint("upsert")).await?;
                match server.answer(async { Ok(attempt.execute(&*insert, &[]).await) }).await? {
                    Ok(_) => server.answer(attempt.commit()).await?,
                    Err(e) if e.code() == Some(&SqlState::CARDINALITY_VIOLATION) => {
                        server.answer(attempt.rollback()).await?;
                        server.answer(transaction.execute(&*insert_last, &[])).await?;
                    }
                    Err(e) => return Err(server.fault(e)),
                }
            }
        }
        let digest = digest.to_string();
        let (rows_written, forgotten) = (count as i64, id - LEDGER_BATCHES as i64);
        let settle_values: [&(dyn ToSql + Sync); 6] =
            [&self.job, &self.query, &self.query_id, &id, &rows_written, &digest];
        let forget_values: [&(dyn ToSql + Sync); 4] = [&self.job, &self.query, &self.query_id, &forgotten];
        server
            .answer(futures::future::try_join(
                transaction.execute(&*settle, &settle_values),
                transaction.execute(&*forget, &forget_values),
            ))
            .await?;
        match end {
            End::Commit => {
                self.env.crash.pass(CrashPoint::SinkStaged).await;
                server.answer(transaction.commit()).await?;
                self.env.crash.pass(CrashPoint::SinkPublished).await;
            }
            End::TakeBack => {
                // Constraints may wait for the end of the transaction; a probe must see them.
                server.answer(transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE")).await?;
                server.answer(transaction.rollback()).await?;
            }
        }
        Ok(Written { rows: count, bytes, duplicate: false })
    }

    /// The batch is there: reads the rows to their end, and compares.
    async fn leave_out(&self, transaction: Transaction<'_>, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let entry = format!(
            "SELECT rows, digest FROM {} WHERE job = $1 AND query = $2 AND query_id = $3 AND batch = $4",
            self.ledger.quoted()
        );
        let id = batch.id as i64;
        let values: [&(dyn ToSql + Sync); 4] = [&self.job, &self.query, &self.query_id, &id];
        let earlier = self.server.answer(transaction.query_one(&entry, &values)).await?;
        self.server.answer(transaction.rollback()).await?;
        let (mut count, mut digest) = (0u64, Digest::default());
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            digest.add(&self.plan.convert(&rows, count)?, rows.num_rows());
            count += rows.num_rows() as u64;
        }
        let now = digest.to_string();
        table::compare_digests(&self.server.place, batch, (earlier.get(0), earlier.get(1)), (count, &now));
        Ok(Written { rows: count, bytes: 0, duplicate: true })
    }

    /// Connects, makes sure that the tables are there and fit, and prepares the statements. `left` is the connection before.
    async fn prepare(&self, left: Option<Backend>) -> Result<Session> {
        let mut client = self.server.connect().await?;
        if let Some((pid, started)) = left {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2 \
                       AND usename = current_user AND application_name = 'perennial'";
            self.server.answer(client.query(end, &[&pid, &started])).await?;
        }
        let (table, ledger) = (self.table.quoted(), self.ledger.quoted());
        let there = "SELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL, pid, backend_start FROM pg_stat_activity \
                     WHERE pid = pg_backend_pid()";
        let there = self.server.answer(client.query_one(there, &[&table, &ledger])).await?;
        let (table_there, ledger_there): (bool, bool) = (there.get(0), there.get(1));
        if !table_there && !self.create_table {
            return Err(self.missing());
        }
        if !table_there || !ledger_there {
            let transaction = self.server.answer(client.transaction()).await?;
            // IF NOT EXISTS alone fails when two queries begin at the same time.
            let mut statements = "SELECT pg_advisory_xact_lock(7309453150000)".to_owned();
            if !table_there {
                statements.push_str(&format!("; CREATE TABLE IF NOT EXISTS {table} ({})", self.column_definitions()));
            }
            if !ledger_there {
                statements.push_str(&format!(
                    "; CREATE TABLE IF NOT EXISTS {ledger} (job text NOT NULL, query text NOT NULL, query_id text NOT NULL, \
                     batch bigint NOT NULL, rows bigint NOT NULL, digest text NOT NULL, epoch bigint NOT NULL, \
                     committed_at timestamptz NOT NULL, PRIMARY KEY (job, query, query_id, batch))"
                ));
            }
            self.server.answer(transaction.batch_execute(&statements)).await?;
            self.server.answer(transaction.commit()).await?;
        }
        let casts = self.compare(&client).await?;

        let stage_columns =
            list(self.plan.columns.iter().map(|c| format!("{} {}", quoted(&c.name), staged_type(c.kind))));
        let stage = format!("CREATE TEMPORARY TABLE _perennial_stage ({stage_columns}) ON COMMIT DELETE ROWS");
        self.server.answer(client.batch_execute(&stage)).await?;

        let names = list(self.plan.columns.iter().map(|c| quoted(&c.name)));
        let values = list(self.plan.columns.iter().zip(&casts).map(|(c, cast)| format!("{}::{cast}", quoted(&c.name))));
        let mut insert = format!("INSERT INTO {table} ({names}) SELECT {values} FROM {STAGE}");
        let mut insert_last = None;
        if self.plan.mode == OutputMode::Update {
            let (key, conflict) = (self.plan.key_names(), self.plan.on_conflict());
            // A row's place in the staging table is the order in which it came.
            insert_last = Some(format!(
                "INSERT INTO {table} ({names}) SELECT {values} FROM \
                 (SELECT DISTINCT ON ({key}) * FROM {STAGE} ORDER BY {key}, ctid DESC) last {conflict}"
            ));
            insert = format!("{insert} {conflict}");
        }
        let of_batch = "job = $1 AND query = $2 AND query_id = $3 AND batch";
        let prepare = async |sql: String| self.server.answer(client.prepare(&sql)).await;
        Ok(Session {
            newest: prepare(format!(
                "SELECT max(batch), max(epoch) FROM {ledger} WHERE job = $1 AND query = $2 AND query_id = $3"
            ))
            .await?,
            claim: prepare(format!(
                "INSERT INTO {ledger} ({LEDGER_COLUMNS}) VALUES ($1, $2, $3, $4, 0, '', $5, $6) ON CONFLICT DO NOTHING"
            ))
            .await?,
            copy: prepare(format!("COPY {STAGE} FROM STDIN (FORMAT BINARY)")).await?,
            insert: prepare(insert).await?,
            insert_last: match insert_last {
                Some(sql) => Some(prepare(sql).await?),
                None => None,
            },
            settle: prepare(format!("UPDATE {ledger} SET rows = $5, digest = $6 WHERE {of_batch} = $4")).await?,
            forget: prepare(format!("DELETE FROM {ledger} WHERE {of_batch} <= $4")).await?,
            backend: (there.get(2), there.get(3)),
            client,
        })
    }

    fn column_definitions(&self) -> String {
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
        parts.join(", ")
    }

    /// Whether a table is there; that the user may do `changes` to it, or make it.
    async fn may_change(&self, client: &Client, name: &Name, changes: &[&str], create: bool) -> Result<bool> {
        let quoted_name = name.quoted();
        let there: [&(dyn ToSql + Sync); 1] = [&quoted_name];
        let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &there);
        let there: bool = self.server.answer(there).await?.get(0);
        if there {
            for change in changes {
                let values: [&(dyn ToSql + Sync); 2] = [&quoted_name, change];
                let may = client.query_one("SELECT has_table_privilege(to_regclass($1), $2)", &values);
                let may: bool = self.server.answer(may).await?.get(0);
                if !may {
                    return Err(self.server.error(
                        class::AUTHORIZATION_FAILED,
                        format!("the user may not do that: GRANT {change} ON {}", name.quoted()),
                    ));
                }
            }
            return Ok(true);
        }
        if !create {
            return Err(self.missing());
        }
        let schema = "SELECT nspname::text, has_schema_privilege(oid, 'CREATE') FROM pg_namespace \
                      WHERE nspname = coalesce($1, current_schema())";
        let schema = self.server.answer(client.query_opt(schema, &[&name.schema])).await?;
        match schema {
            Some(row) if row.get(1) => Ok(false),
            Some(row) => Err(self.server.error(
                class::AUTHORIZATION_FAILED,
                format!("the user may not create table {name}: GRANT CREATE ON SCHEMA {}", quoted(row.get(0))),
            )),
            None => Err(self.server.error(
                class::TARGET_MISSING,
                format!("the schema of {name} does not exist: CREATE SCHEMA, or correct the name"),
            )),
        }
    }

    /// Compares the table with the query; gives per column the type that staged values are cast to.
    async fn compare(&self, client: &Client) -> Result<Vec<String>> {
        let table = self.table.quoted();
        // Type modifiers are left out: a cast to varchar(3) would cut, an assignment to it refuses.
        let columns = "SELECT a.attname::text, format_type(a.atttypid, -1), a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
                 a.attgenerated <> '' OR a.attidentity = 'a', t.typname::text, t.typtype::text, t.typcategory::text \
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                 WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let columns = self.server.answer(client.query(columns, &[&table])).await?;
        let target: Vec<_> = columns
            .iter()
            .map(|row| TargetColumn {
                name: row.get(0),
                type_name: row.get(1),
                required: row.get(2),
                generated: row.get(3),
            })
            .collect();
        let fits = |kind: Kind, column: &TargetColumn| {
            columns.iter().find(|row| row.get::<_, &str>(0) == column.name).is_some_and(|row| {
                // Enums, domains and other types that a text may spell.
                let named = row.get::<_, &str>(5) != "b" || matches!(row.get::<_, &str>(6), "I" | "U");
                fits(kind, row.get(4), named)
            })
        };
        table::compare(&self.server.place, &self.plan, &target, |a, b| a == b, fits)?;
        if self.plan.mode == OutputMode::Update {
            let mut key: Vec<_> = self.plan.key.iter().map(|i| self.plan.columns[*i].name.clone()).collect();
            key.sort();
            let unique = "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique \
                     AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND $2 = \
                     (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                     WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))";
            let unique: bool = self.server.answer(client.query_one(unique, &[&table, &key])).await?.get(0);
            if !unique {
                let key = self.plan.key_names();
                return Err(self.server.error(
                    class::TARGET_SCHEMA,
                    format!(
                        "the table cannot be updated by key: it has no unique index on exactly ({key}); create one: \
                         CREATE UNIQUE INDEX ON {table} ({key})"
                    ),
                ));
            }
        }
        Ok(self
            .plan
            .columns
            .iter()
            .map(|c| target.iter().find(|t| t.name == c.name).map_or("text".to_owned(), |t| t.type_name.clone()))
            .collect())
    }

    fn missing(&self) -> Error {
        self.server.error(class::TARGET_MISSING, "the table does not exist; create it, or set create_table: true")
    }
}

fn staged_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Boolean => "boolean",
        Kind::Short => "smallint",
        Kind::Integer => "integer",
        Kind::Long => "bigint",
        Kind::Float => "real",
        Kind::Double => "double precision",
        Kind::Decimal { .. } => "numeric",
        Kind::Text => "text",
        Kind::Binary => "bytea",
        Kind::Date => "date",
        Kind::Timestamp { zoned: true } => "timestamptz",
        Kind::Timestamp { zoned: false } => "timestamp",
        Kind::Time => "time",
        Kind::Json => "jsonb",
    }
}

fn declared_type(kind: Kind) -> String {
    match kind {
        Kind::Decimal { precision, scale } => format!("numeric({precision}, {scale})"),
        other => staged_type(other).to_owned(),
    }
}

/// Whether a column of the type (its internal name) gives back the values that are put into it, or refuses those that it cannot.
fn fits(kind: Kind, target: &str, named: bool) -> bool {
    let text = matches!(target, "text" | "varchar" | "bpchar" | "citext" | "name");
    match kind {
        Kind::Boolean => target == "bool" || text,
        Kind::Short | Kind::Integer | Kind::Long => {
            matches!(target, "int2" | "int4" | "int8" | "numeric" | "float4" | "float8") || text
        }
        Kind::Float | Kind::Double => matches!(target, "float4" | "float8" | "numeric") || text,
        Kind::Decimal { scale, .. } => {
            matches!(target, "numeric" | "float8") || text || (scale == 0 && matches!(target, "int2" | "int4" | "int8"))
        }
        Kind::Text => text || named || matches!(target, "uuid" | "json" | "jsonb" | "xml"),
        Kind::Binary => target == "bytea",
        Kind::Date => matches!(target, "date" | "timestamp" | "timestamptz") || text,
        Kind::Timestamp { .. } => matches!(target, "timestamp" | "timestamptz") || text,
        Kind::Time => target == "time" || text,
        Kind::Json => matches!(target, "json" | "jsonb") || text,
    }
}

/// Microseconds and days from 1970 to 2000, where PostgreSQL begins to count.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;

/// Appends a row in PostgreSQL's binary format. On failure gives the column's index and what is wrong with its value.
fn encode_row(columns: &[Column], row: usize, out: &mut BytesMut) -> Result<(), (usize, &'static str)> {
    out.put_i16(columns.len() as i16);
    for (index, column) in columns.iter().enumerate() {
        if column.is_null(row) {
            out.put_i32(-1);
            continue;
        }
        let too_far = (index, "holds a date that PostgreSQL cannot store");
        match column {
            Column::Boolean(a) => {
                out.put_i32(1);
                out.put_u8(u8::from(a.value(row)));
            }
            Column::Short(a) => {
                out.put_i32(2);
                out.put_i16(a.value(row));
            }
            Column::Integer(a) => {
                out.put_i32(4);
                out.put_i32(a.value(row));
            }
            Column::Long(a) => {
                out.put_i32(8);
                out.put_i64(a.value(row));
            }
            Column::Float(a) => {
                out.put_i32(4);
                out.put_f32(a.value(row));
            }
            Column::Double(a) => {
                out.put_i32(8);
                out.put_f64(a.value(row));
            }
            Column::Decimal(a, scale) => put_numeric(a.value(row), *scale, out),
            Column::Text(a) => {
                let text = a.value(row).as_bytes();
                if memchr::memchr(0, text).is_some() {
                    return Err((
                        index,
                        "holds the character 0x00, which PostgreSQL cannot store; replace it in the query: \
                         translate(column, '\\u0000', '')",
                    ));
                }
                put_bytes(text, out).ok_or((index, "is longer than 2 GB"))?;
            }
            Column::Json(a) => {
                let text = a.value(row).as_bytes();
                let length = i32::try_from(text.len() + 1).map_err(|_| (index, "is longer than 2 GB"))?;
                out.put_i32(length);
                out.put_u8(1);
                out.put_slice(text);
            }
            Column::Binary(a) => put_bytes(a.value(row), out).ok_or((index, "is longer than 2 GB"))?,
            Column::Date(a) => {
                out.put_i32(4);
                out.put_i32(a.value(row).checked_sub(EPOCH_DAYS).ok_or(too_far)?);
            }
            Column::Timestamp(a, _) => {
                out.put_i32(8);
                // The two ends of the range are PostgreSQL's infinities.
                let micros = a.value(row).checked_sub(EPOCH_MICROS).filter(|m| *m != i64::MIN && *m != i64::MAX);
                out.put_i64(micros.ok_or(too_far)?);
            }
            Column::Time(a) => {
                out.put_i32(8);
                out.put_i64(a.value(row));
            }
        }
    }
    Ok(())
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) -> Option<()> {
    out.put_i32(i32::try_from(bytes.len()).ok()?);
    out.put_slice(bytes);
    Some(())
}

/// Appends a `numeric`: digits of base 10,000, those before and behind the point apart.
fn put_numeric(value: i128, scale: u8, out: &mut BytesMut) {
    // At most 39 decimal digits, and at most one group more because of where the point is.
    let mut groups = [0u16; 11];
    let mut count = 0;
    let mut rest = value.unsigned_abs();
    let partial = u32::from(scale % 4);
    if partial > 0 {
        let unit = 10u128.pow(partial);
        groups[0] = (rest % unit) as u16 * 10u16.pow(4 - partial);
        rest /= unit;
        count = 1;
    }
    while rest > 0 {
        groups[count] = match u64::try_from(rest) {
            Ok(small) => {
                rest = u128::from(small / 10_000);
                (small % 10_000) as u16
            }
            Err(_) => {
                let group = (rest % 10_000) as u16;
                rest /= 10_000;
                group
            }
        };
        count += 1;
    }
    while count > 0 && groups[count - 1] == 0 {
        count -= 1;
    }
    let fraction_groups = usize::from(scale).div_ceil(4);
    let first = groups[..count].iter().position(|g| *g != 0).unwrap_or(count);
    let digits = &groups[first..count];
    out.put_i32(8 + 2 * digits.len() as i32);
    out.put_i16(digits.len() as i16);
    out.put_i16(if digits.is_empty() { 0 } else { count as i16 - fraction_groups as i16 - 1 });
    out.put_u16(if value < 0 { 0x4000 } else { 0 });
    out.put_u16(u16::from(scale));
    digits.iter().rev().for_each(|group| out.put_u16(*group));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        all_kinds, batch, context, failing_stream, hanging_stream, numbered, rows_of, server, stream_of,
    };
    use std::sync::Arc;

    use super::*;
    use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use perennial_core::ErrorKind;
    use serde_json::json;

    /// A schema of its own for each test, in the database of `make test`.
    struct Fixture {
        url: String,
        schema: String,
        client: Client,
    }

    impl Fixture {
        async fn new(schema: &str) -> Self {
            let url = server("PERENNIAL_TEST_POSTGRES");
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            let schema = format!("sink_{schema}");
            let create =
                format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; SET search_path = {schema}");
            client.batch_execute(&create).await.unwrap();
            Self { url, schema, client }
        }

        fn settings(&self, more: serde_json::Value) -> PostgresSink {
            let mut settings = json!({"url": self.url, "table": format!("{}.readings", self.schema)});
            settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(settings).unwrap()
        }

        fn sink(&self, rows: &RecordBatch, mode: OutputMode, more: serde_json::Value) -> Box<dyn Sink> {
            self.settings(more).open(context(rows.schema(), mode)).unwrap()
        }

        async fn run(&self, sql: &str) {
            self.client.batch_execute(sql).await.unwrap();
        }

        /// The result of a query as text, one line per row.
        async fn ask(&self, sql: &str) -> Vec<String> {
            let answer = self.client.simple_query(sql).await.unwrap();
            answer
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
                    }
                    _ => None,
                })
                .collect()
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn every_kind_of_value_arrives() {
        let (db, rows) = (Fixture::new("kinds").await, all_kinds());
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        sink.check().await.unwrap();
        assert!(
            db.ask("SELECT 1 FROM pg_tables WHERE schemaname = 'sink_kinds'").await.is_empty(),
            "the check makes nothing"
        );
        let written = sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        assert_eq!((written.rows, written.duplicate), (3, false));
        assert!(written.bytes > 300, "{written:?}");
        sink.check().await.unwrap();
        let nulls = "NULL|".repeat(15);
        db.run("SET TimeZone = 'UTC'").await;
        assert_eq!(
            db.ask("SELECT * FROM readings ORDER BY id").await,
            [
                "1|t|-128|-32768|2147483647|-9223372036854775808|1.5|1e+300|-123456789012345678.901234|12.30|\
                 it's \"ünï\" \\ , = text|\\x00ff|2026-11-21|2026-11-21 09:44:23.120001+00|2026-11-21 09:44:23.120001|\
                 09:44:23.000001|{\"n\": 1, \"s\": \"a \\\"quoted\\\" text\"}|[1, null]",
                "2|f|127|7|-7|0|-0.25|0.1|0.000005|-0.05||\\x|1969-12-31|1969-12-31 23:59:59.999999+00|\
                 1970-01-01 00:00:00|00:00:00|{\"s\": \"x\"}|[]",
                &format!("3|{nulls}{{\"s\": \"y\"}}|NULL"),
            ]
        );
        assert_eq!(
            db.ask(
                "SELECT string_agg(format_type(atttypid, atttypmod), ',' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = 'readings'::regclass AND attnum > 0"
            )
            .await,
            [
                "bigint,boolean,smallint,smallint,integer,bigint,real,double precision,numeric(30,6),numeric(10,2),text,bytea,date,\
              timestamp with time zone,timestamp without time zone,time without time zone,jsonb,jsonb"
            ]
        );
        assert_eq!(
            db.ask(
                "SELECT job, query, query_id, batch, rows, length(digest), epoch, committed_at FROM _perennial_batches"
            )
            .await,
            ["greenhouse|per_minute|0123456789abcdef|0|3|16|1|2026-11-21 09:44:23+00"]
        );
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn numbers_of_all_sizes_arrive() {
        let db = Fixture::new("numbers").await;
        let mut values: Vec<i128> =
            (0..38).flat_map(|n| [10i128.pow(n), 10i128.pow(n) * 9, 10i128.pow(n) - 1]).collect();
        values.extend([0, 10_001, 100_010_000, 99_999_999_999_999_999_999_999_999_999_999_999_999]);
        values.extend(values.clone().iter().map(|v| -v));
        for scale in [0, 1, 2, 3, 4, 7, 37, 38] {
            let array =
                arrow::array::Decimal128Array::from(values.clone()).with_precision_and_scale(38, scale).unwrap();
            let rows = rows_of([("d", Arc::new(array) as _)]);
            let sink = db.sink(&rows, OutputMode::Append, json!({}));
            sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
            let mut expected: Vec<String> = values
                .iter()
                .map(|v| {
                    let mut text = Vec::new();
                    super::super::columns::write_decimal(*v, scale as u8, &mut text);
                    String::from_utf8(text).unwrap()
                })
                .collect();
            expected.sort();
            assert_eq!(
                db.ask("SELECT d FROM readings ORDER BY d::text COLLATE \"C\"").await,
                expected,
                "scale {scale}"
            );
            db.run("DROP TABLE readings, _perennial_batches").await;
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn a_repeated_batch_has_no_effect_and_is_drained() {
        let (db, rows) = (Fixture::new("repeated").await, numbered(0, 3));
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        for repeated in [false, true] {
            let written = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
            assert_eq!((written.rows, written.duplicate), (3, repeated));
        }
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        let written = sink.write(&batch(0), stream_of(vec![numbered(5, 4), numbered(9, 1)])).await.unwrap();
        assert_eq!((written.rows, written.duplicate), (5, true));
        assert_eq!(db.ask("SELECT count(*), sum(id) FROM readings").await, ["3|3"]);
        sink.write(&batch(1), stream_of(vec![])).await.unwrap();
        assert_eq!(db.ask("SELECT batch, rows FROM _perennial_batches ORDER BY 1").await, ["0|3", "1|0"]);

        // Two processes with the same batch at the same time: one of them writes it.
        let sinks: Vec<_> = (0..4).map(|_| db.sink(&rows, OutputMode::Append, json!({}))).collect();
        let batch = batch(2);
        let writes = sinks.iter().map(|sink| sink.write(&batch, stream_of(vec![numbered(100, 50_000)])));
        let written = futures::future::try_join_all(writes).await.unwrap();
        assert_eq!(written.iter().filter(|w| !w.duplicate).count(), 1, "{written:?}");
        assert_eq!(db.ask("SELECT count(*) FROM readings").await, ["50003"]);
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn update_changes_rows_by_key_and_the_later_row_wins() {
        let db = Fixture::new("update").await;
        let rows = |minute: &[i64], sensor: &[&str], value: &[f64]| {
            rows_of([
                ("minute", Arc::new(TimestampMicrosecondArray::from(minute.to_vec()).with_timezone("UTC")) as _),
                ("sensor", Arc::new(StringArray::from(sensor.to_vec())) as _),
                ("value", Arc::new(Float64Array::from(value.to_vec())) as _),
            ])
        };
        let first = rows(&[1, 1, 2], &["a", "b", "a"], &[1.0, 2.0, 3.0]);
        let key = json!({"key": ["sensor", "minute"]});
        let sink = db.sink(&first, OutputMode::Update, key.clone());
        sink.write(&batch(0), stream_of(vec![first.clone()])).await.unwrap();
        sink.write(&batch(1), stream_of(vec![rows(&[2, 3], &["a", "a"], &[30.0, 4.0])])).await.unwrap();
        // The same key again in one batch, over several blocks of rows.
        let again = vec![rows(&[3, 3], &["a", "a"], &[5.0, 6.0]), rows(&[1, 3], &["b", "a"], &[20.0, 7.0])];
        sink.write(&batch(2), stream_of(again)).await.unwrap();
        let all = "SELECT extract(microsecond FROM minute), sensor, value FROM readings ORDER BY 1, 2";
        assert_eq!(db.ask(all).await, ["1|a|1", "1|b|20", "2|a|30", "3|a|7"]);

        let null = rows_of([
            ("minute", Arc::new(TimestampMicrosecondArray::from(vec![Some(7), None]).with_timezone("UTC")) as _),
            ("sensor", Arc::new(StringArray::from(vec!["a", "a"])) as _),
            ("value", Arc::new(Float64Array::from(vec![1.0, 1.0])) as _),
        ]);
        let error = sink.write(&batch(3), stream_of(vec![null])).await.unwrap_err();
        assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
        assert_eq!(db.ask(all).await.len(), 4);

        db.run(
            "DROP TABLE readings; CREATE TABLE readings (minute timestamptz UNIQUE, sensor text, value float8, \
                UNIQUE (minute, sensor, value)); CREATE UNIQUE INDEX part ON readings (minute, sensor) WHERE value > 0",
        )
        .await;
        let sink = db.sink(&first, OutputMode::Update, key);
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(3), stream_of(vec![first.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_SCHEMA);
            assert!(error.to_string().contains("CREATE UNIQUE INDEX"), "{error}");
        }
        db.run("CREATE UNIQUE INDEX ON readings (minute, sensor) INCLUDE (value); ALTER TABLE readings DROP CONSTRAINT readings_minute_key").await;
        sink.check().await.unwrap();
        sink.write(&batch(3), stream_of(vec![first])).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn complete_replaces_and_failures_leave_nothing() {
        let (db, rows) = (Fixture::new("complete").await, numbered(0, 3));
        let sink = db.sink(&rows, OutputMode::Complete, json!({}));
        sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        let error = sink.write(&batch(1), failing_stream(vec![numbered(10, 100_000)])).await.unwrap_err();
        assert!(error.to_string().contains("the source went away"), "{error}");
        assert_eq!(db.ask("SELECT count(*) FROM readings").await, ["3"]);
        // Given up in the middle.
        let waiting = tokio::time::timeout(Duration::from_millis(50), async {
            sink.write(&batch(1), hanging_stream(vec![numbered(10, 100_000)])).await
        });
        assert!(waiting.await.is_err());
        assert_eq!(db.ask("SELECT count(*) FROM readings").await, ["3"]);
        sink.write(&batch(1), stream_of(vec![numbered(10, 2)])).await.unwrap();
        assert_eq!(db.ask("SELECT id FROM readings ORDER BY 1").await, ["10", "11"]);
        // The server ends the connection: the next attempt has a new one.
        db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'perennial' AND query LIKE '%sink_complete%' \
                AND pid <> pg_backend_pid(); DROP TABLE readings")
            .await;
        let _ = sink.write(&batch(2), stream_of(vec![rows.clone()])).await;
        let written = sink.write(&batch(2), stream_of(vec![rows])).await.unwrap();
        assert_eq!(written.rows, 3);
        assert_eq!(db.ask("SELECT count(*) FROM readings").await, ["3"]);
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn targets_that_do_not_fit_are_named_column_by_column() {
        let (db, rows) = (Fixture::new("fit").await, numbered(0, 1));
        let sink = db.sink(&rows, OutputMode::Append, json!({"create_table": false}));
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_MISSING);
        }
        let elsewhere = db.sink(&rows, OutputMode::Append, json!({"table": "no_such_schema.readings"}));
        for error in [
            elsewhere.check().await.unwrap_err(),
            elsewhere.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err(),
        ] {
            assert_eq!(error.class(), class::TARGET_MISSING, "{error}");
        }
        db.run(
            "CREATE TABLE readings (id date, \"Value\" float8, who text NOT NULL, n int NOT NULL DEFAULT 1, \
                number int GENERATED ALWAYS AS IDENTITY)",
        )
        .await;
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        for error in
            [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err()]
        {
            assert_eq!(error.class(), class::TARGET_SCHEMA);
            let text = error.to_string();
            for part in [
                "its column `id` is date, the query gives BIGINT",
                "it has no column `value` (DOUBLE)",
                "its column `who` is NOT NULL and the query does not give it",
            ] {
                assert!(text.contains(part), "{text}");
            }
            assert!(!text.contains("`n`") && !text.contains("`number`"), "{text}");
        }
        // Other types that hold the values.
        db.run(
            "DROP TABLE readings; CREATE TYPE mood AS ENUM ('fine', 'bad'); \
                CREATE TABLE readings (id numeric(10), a mood, b varchar(3), c uuid, d jsonb)",
        )
        .await;
        let text = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as arrow::array::ArrayRef;
        let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        let of = |b: [&str; 2]| {
            rows_of([
                ("id", Arc::new(Int64Array::from(vec![1, 2])) as _),
                ("a", text(["fine", "bad"])),
                ("b", text(b)),
                ("c", text([uuid, uuid])),
                ("d", text(["1", "{}"])),
            ])
        };
        let rows = of(["abc", "x"]);
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        sink.check().await.unwrap();
        sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
        assert_eq!(db.ask("SELECT a, b, d FROM readings ORDER BY id").await, ["fine|abc|1", "bad|x|{}"]);
        let error = sink.write(&batch(1), stream_of(vec![of(["abcd", "x"])])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "too long is refused, not cut: {error}");
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn failures_have_their_class_and_never_show_the_password() {
        let (db, rows) = (Fixture::new("failures").await, numbered(0, 3));
        db.run("CREATE TABLE readings (id bigint, value float8 CONSTRAINT low CHECK (value < 1))").await;
        let sink = db.sink(&rows, OutputMode::Append, json!({}));
        let error = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
        assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
        assert!(error.to_string().contains("low"), "{error}");

        let zero = rows_of([("s", Arc::new(StringArray::from(vec!["fine", "a\0b"])) as _)]);
        let sink = db.sink(&zero, OutputMode::Append, json!({"table": format!("{}.texts", db.schema)}));
        let error = sink.write(&batch(0), stream_of(vec![zero])).await.unwrap_err();
        assert_eq!(error.class(), class::SINK_REJECTED);
        assert!(error.to_string().contains("row 1 of the batch: column `s` holds the character 0x00"), "{error}");

        let far = rows_of([("t", Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN / 2])) as _)]);
        let sink = db.sink(&far, OutputMode::Append, json!({"table": format!("{}.times", db.schema)}));
        assert_eq!(sink.write(&batch(0), stream_of(vec![far])).await.unwrap_err().kind(), ErrorKind::Data);

        // A user of few rights, with a password that must not show.
        db.run("DROP ROLE IF EXISTS sink_failures_reader; CREATE ROLE sink_failures_reader LOGIN PASSWORD 'hunter2'; \
                GRANT USAGE ON SCHEMA sink_failures TO sink_failures_reader; GRANT SELECT ON readings TO sink_failures_reader")
            .await;
        let mut url = url::Url::parse(&db.url).unwrap();
        let mut with = |user: &str, password: &str, port: Option<u16>, host: &str, database: &str| {
            url.set_username(user).unwrap();
            url.set_password(Some(password)).unwrap();
            if let Some(port) = port {
                url.set_port(Some(port)).unwrap();
            }
            url.set_host(Some(host)).unwrap();
            url.set_path(database);
            url.to_string()
        };
        let port = db.url.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().ok();
        // A port at which nothing listens any more.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let reader = "sink_failures_reader";
        for (url, expected) in [
            (with(reader, "hunter2", port, "127.0.0.1", "perennial"), class::AUTHORIZATION_FAILED),
            (with(reader, "hunter2_wrong", port, "127.0.0.1", "perennial"), class::AUTHENTICATION_FAILED),
            (with(reader, "hunter2", port, "127.0.0.1", "no_such_database"), class::TARGET_MISSING),
            (with(reader, "hunter2", Some(closed), "127.0.0.1", "perennial"), class::CONNECTION_REFUSED),
            (with(reader, "hunter2", port, "no-such-host.invalid", "perennial"), class::NAME_NOT_RESOLVED),
        ] {
            let settings = db.settings(json!({"url": url}));
            assert!(!format!("{settings:?}").contains("hunter2"));
            let sink = settings.open(context(rows.schema(), OutputMode::Append)).unwrap();
            for error in [
                sink.check().await.unwrap_err(),
                sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err(),
            ] {
                assert_eq!(error.class(), expected, "{error:?}");
                assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
            }
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run make test"]
    async fn connections_are_encrypted_and_verified_as_asked() {
        let (db, rows) = (Fixture::new("tls").await, numbered(0, 1));
        let authority = server("PERENNIAL_TEST_CA");
        let sink = |mode: &str, certificate: Option<&str>| {
            let table = format!("{}.{}", db.schema, mode.replace('-', "_"));
            let mut settings = json!({"sslmode": mode, "table": table});
            settings["root_certificate"] = certificate.map_or(serde_json::Value::Null, |c| json!(c));
            db.sink(&rows, OutputMode::Append, settings)
        };
        let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                         WHERE application_name = 'perennial' AND query LIKE '%sink_tls%' AND ssl";
        let _ = encrypted;
        for (mode, certificate) in
            [("disable", None), ("prefer", None), ("require", None), ("verify-full", Some(&*authority))]
        {
            sink(mode, certificate).write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        }
        let error = sink("verify-full", None).write(&batch(1), stream_of(vec![rows.clone()])).await.unwrap_err();
        assert_eq!(error.class(), class::TLS_FAILED, "{error:?}");
        // In the URL as well; and what the client library does not know.
        let url = format!("{}?sslmode=verify-full&sslrootcert={authority}", db.url);
        db.sink(&rows, OutputMode::Append, json!({"url": url})).check().await.unwrap();
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let rows = numbered(0, 1);
        for (settings, part) in [
            (json!({"url": "mysql://x:hunter2@h/d"}), "not of the form"),
            (json!({"url": "postgres://x:hunter2@h/d?sslmode=maybe"}), "none of disable"),
            (json!({"url": "postgres://x:hunter2@h/d?colour=red"}), "not understood"),
            (json!({"url": "postgres://x:hunter2@h/d", "host": "h"}), "leave out `host`"),
            (json!({"root_certificate": "ca.pem"}), "verify-full"),
            (json!({"table": "a.b.c"}), "not the name of a table"),
            (json!({"table": "_perennial_batches"}), "two tables"),
        ] {
            let mut all = json!({"table": "readings"});
            all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
            let settings: PostgresSink = serde_json::from_value(all).unwrap();
            let Err(error) = settings.open(context(rows.schema(), OutputMode::Append)) else { panic!("{part}") };
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!format!("{error:?} {settings:?}").contains("hunter2"), "{error}");
        }
        assert!(serde_json::from_str::<PostgresSink>(r#"{"table": "y", "tabel": "z"}"#).is_err());
    }
}
