//! The `postgres` sink: a table in PostgreSQL.
//!
//! A batch is one transaction: its entry in the ledger, `COPY` in binary into a temporary staging table, one `INSERT … SELECT` from
//! there into the table, by key in update mode. The ledger's primary key is what makes two writers of the same batch wait for each
//! other, and the second one find it done.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::env::Env;
use perennial_core::error::{Error, ErrorClass, Result, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::columns::{Column, Digest, Kind};
use super::fault::network_class;
use super::table::{self, LEDGER_BATCHES, LEDGER_COLUMNS, Newest, TablePlan, TargetColumn, list, quoted};

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
}

fn connect_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

/// How a connection is encrypted, as PostgreSQL's own clients name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Not encrypted.
    Disable,
    /// Encrypted where the server can; its certificate is not checked.
    #[default]
    Prefer,
    /// Encrypted or not at all; the server's certificate is not checked, so this does not protect from a false server.
    Require,
    /// Encrypted, and the server must show a certificate for its host name from a trusted authority.
    VerifyFull,
}

impl PostgresSink {
    /// The connection's settings and the place they lead to, for messages.
    fn connection(&self) -> Result<(tokio_postgres::Config, SslMode, Option<String>, String)> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("postgres sink: {what}"));
        let mut sslmode = None;
        let mut root_certificate = self.root_certificate.clone();
        let mut config = match &self.url {
            None => tokio_postgres::Config::new(),
            Some(secret) => {
                let mut url = url::Url::parse(secret.expose())
                    .ok()
                    .filter(|url| matches!(url.scheme(), "postgres" | "postgresql"))
                    .ok_or_else(|| {
                        wrong("`url` is not of the form postgres://user:password@host:port/database".to_owned())
                    })?;
                // These two are ours: the client library knows fewer modes.
                let mut rest = Vec::new();
                for (name, value) in url.query_pairs() {
                    match &*name {
                        "sslmode" => {
                            let mode = serde_json::from_value(serde_json::Value::String(value.to_string()));
                            sslmode = Some(mode.map_err(|_| {
                                wrong("`sslmode` in `url` is none of disable, prefer, require, verify-full".to_owned())
                            })?);
                        }
                        "sslrootcert" => root_certificate = root_certificate.or(Some(value.into_owned())),
                        _ => rest.push((name.into_owned(), value.into_owned())),
                    }
                }
                url.set_query(None);
                if !rest.is_empty() {
                    url.query_pairs_mut().extend_pairs(rest);
                }
                url.as_str()
                    .parse()
                    .map_err(|e| wrong("`url` has a part that is not understood".to_owned()).caused_by(e))?
            }
        };
        if self.url.is_some() && (self.host.is_some() || self.port.is_some()) {
            return Err(wrong(
                "`url` already says where the server is; leave out `host` and `port`, or `url`".to_owned(),
            ));
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host(self.host.as_deref().unwrap_or("localhost"));
        }
        self.port.map(|port| config.port(port));
        self.user.as_ref().map(|user| config.user(user));
        self.password.as_ref().map(|password| config.password(password.expose()));
        self.database.as_ref().map(|database| config.dbname(database));
        let sslmode = self.sslmode.or(sslmode).unwrap_or_default();
        if root_certificate.is_some() && sslmode != SslMode::VerifyFull {
            return Err(wrong(
                "`root_certificate` is only looked at with sslmode: verify-full; set that, or leave the certificate out".to_owned(),
            ));
        }
        config.application_name("perennial").connect_timeout(self.connect_timeout.0).ssl_mode(match sslmode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        let hosts = list(config.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        }));
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let database = config.get_dbname().or(config.get_user()).unwrap_or("(default database)");
        let place = format!("{hosts}:{port}/{database}");
        Ok((config, sslmode, root_certificate, place))
    }
}

impl SinkFactory for PostgresSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let (config, sslmode, root_certificate, place) = self.connection()?;
        let table = Name::parse(&self.table, None)?;
        let ledger = Name::parse(&self.ledger_table, table.schema.as_deref())?;
        if table == ledger {
            return Err(Error::new(
                class::CONFIG_INVALID,
                "postgres sink: `table` and `ledger_table` must be two tables",
            ));
        }
        let plan = TablePlan::new("postgres", &context, &self.key)?;
        Ok(Box::new(Postgres {
            create_table: self.create_table,
            config,
            sslmode,
            root_certificate,
            place: format!("{table} in {place}"),
            table,
            ledger,
            plan,
            env: context.env,
            job: context.job,
            query: context.query,
            query_id: context.query_id,
            session: Mutex::new(None),
        }))
    }
}

/// The name of a table.
#[derive(Debug, Clone, PartialEq)]
struct Name {
    schema: Option<String>,
    table: String,
}

impl Name {
    fn parse(text: &str, default_schema: Option<&str>) -> Result<Self> {
        let (schema, table) = match text.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (default_schema, text),
        };
        if table.is_empty() || table.contains('.') || schema.is_some_and(str::is_empty) {
            return Err(Error::new(
                class::CONFIG_INVALID,
                format!("postgres sink: `{text}` is not the name of a table; write `table` or `schema.table`"),
            ));
        }
        Ok(Self { schema: schema.map(str::to_owned), table: table.to_owned() })
    }

    fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.table)),
            None => quoted(&self.table),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.table)
    }
}

struct Postgres {
    config: tokio_postgres::Config,
    sslmode: SslMode,
    root_certificate: Option<String>,
    /// Table and server, for messages.
    place: String,
    table: Name,
    ledger: Name,
    create_table: bool,
    plan: TablePlan,
    env: Env,
    job: String,
    query: String,
    query_id: String,
    /// Taken out while it is used and only put back after success: an error, or a batch that was given up, closes the connection,
    /// and with it the server ends the transaction.
    session: Mutex<Option<Session>>,
}

/// A connection with its staging table and its statements.
struct Session {
    client: Client,
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
        let client = self.connect().await?;
        let fault = |e| self.fault(e);
        let temporary: bool = client
            .query_one("SELECT has_database_privilege(current_database(), 'TEMP')", &[])
            .await
            .map_err(fault)?
            .get(0);
        if !temporary {
            return Err(self.error(
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
        let mut slot = self.session.lock().await;
        let mut session = match slot.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => self.prepare().await?,
        };
        let written = self.write_batch(&mut session, batch, rows).await?;
        *slot = Some(session);
        Ok(written)
    }
}

impl Postgres {
    async fn write_batch(&self, session: &mut Session, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let fault = |e| self.fault(e);
        let Session { client, newest, claim, copy, insert, insert_last, settle, forget } = session;
        let id = batch.id as i64;
        let mut transaction = client.transaction().await.map_err(fault)?;
        let now = UNIX_EPOCH + Duration::from_micros(self.env.clock.now_micros().max(0) as u64);
        // Sent together; the server answers the first before it does the second.
        let epoch = batch.epoch as i64;
        let claim_values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&self.job, &self.query, &self.query_id, &id, &epoch, &now];
        let query_values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&self.job, &self.query, &self.query_id];
        let (newest, claimed) = futures::try_join!(
            transaction.query_one(&*newest, &query_values),
            transaction.execute(&*claim, &claim_values)
        )
        .map_err(fault)?;
        if claimed == 0 {
            return self.leave_out(transaction, batch, rows).await;
        }
        table::may_write(&self.place, batch, Newest { batch: newest.get(0), epoch: newest.get(1) })?;

        let mut copy = pin!(transaction.copy_in::<_, Bytes>(&*copy).await.map_err(fault)?);
        let (mut count, mut bytes, mut digest) = (0u64, 0u64, Digest::default());
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 2));
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            let columns = self.plan.convert(&rows, count)?;
            digest.add(&columns, rows.num_rows());
            for row in 0..rows.num_rows() {
                encode_row(&columns, row, &mut buffer).map_err(|(column, what)| {
                    self.error(
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
                    copy.send(buffer.split().freeze()).await.map_err(fault)?;
                    buffer.reserve(CHUNK_BYTES + (CHUNK_BYTES >> 2));
                }
            }
            count += rows.num_rows() as u64;
        }
        buffer.put_i16(-1);
        bytes += buffer.len() as u64;
        copy.send(buffer.freeze()).await.map_err(fault)?;
        copy.finish().await.map_err(fault)?;

        if self.plan.mode == OutputMode::Complete {
            transaction.batch_execute(&format!("DELETE FROM {}", self.table.quoted())).await.map_err(fault)?;
        }
        match insert_last {
            _ if count == 0 => {}
            None => drop(transaction.execute(&*insert, &[]).await.map_err(fault)?),
            Some(insert_last) => {
                // The server refuses to change a row twice. That is rare, and to sort out always what is rare would be dear.
                let attempt = transaction.savepoint("upsert").await.map_err(fault)?;
                match attempt.execute(&*insert, &[]).await {
                    Ok(_) => attempt.commit().await.map_err(fault)?,
                    Err(e) if e.code() == Some(&SqlState::CARDINALITY_VIOLATION) => {
                        attempt.rollback().await.map_err(fault)?;
                        transaction.execute(&*insert_last, &[]).await.map_err(fault)?;
                    }
                    Err(e) => return Err(fault(e)),
                }
            }
        }
        let digest = digest.to_string();
        let (rows_written, forgotten) = (count as i64, id - LEDGER_BATCHES as i64);
        let settle_values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&self.job, &self.query, &self.query_id, &id, &rows_written, &digest];
        let forget_values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.job, &self.query, &self.query_id, &forgotten];
        futures::try_join!(
            transaction.execute(&*settle, &settle_values),
            transaction.execute(&*forget, &forget_values)
        )
        .map_err(fault)?;
        transaction.commit().await.map_err(fault)?;
        Ok(Written { rows: count, bytes, duplicate: false })
    }

    /// The batch is there: reads the rows to their end, and compares.
    async fn leave_out(&self, transaction: Transaction<'_>, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let earlier = transaction
            .query_one(
                &format!(
                    "SELECT rows, digest FROM {} WHERE job = $1 AND query = $2 AND query_id = $3 AND batch = $4",
                    self.ledger.quoted()
                ),
                &[&self.job, &self.query, &self.query_id, &(batch.id as i64)],
            )
            .await
            .map_err(|e| self.fault(e))?;
        transaction.rollback().await.map_err(|e| self.fault(e))?;
        let (mut count, mut digest) = (0u64, Digest::default());
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            digest.add(&self.plan.convert(&rows, count)?, rows.num_rows());
            count += rows.num_rows() as u64;
        }
        let now = digest.to_string();
        table::compare_digests(&self.place, batch, (earlier.get(0), earlier.get(1)), (count, &now));
        Ok(Written { rows: count, bytes: 0, duplicate: true })
    }

    async fn connect(&self) -> Result<Client> {
        let tls = self.tls()?;
        let (client, connection) = self.config.connect(tls).await.map_err(|e| self.fault(e))?;
        let place = self.place.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to {place} ended: {error}");
            }
        });
        client
            .batch_execute("SET TimeZone = 'UTC'; SET client_min_messages = warning")
            .await
            .map_err(|e| self.fault(e))?;
        Ok(client)
    }

    fn tls(&self) -> Result<MakeRustlsConnect> {
        let failed = |what: String| self.error(class::TLS_FAILED, what);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("TLS cannot be set up".to_owned()).caused_by(e))?;
        let config = if self.sslmode == SslMode::VerifyFull {
            let mut roots = RootCertStore::empty();
            match &self.root_certificate {
                Some(file) => {
                    let unreadable = |e| {
                        failed(format!("the certificates in {file} (root_certificate) cannot be read")).caused_by(e)
                    };
                    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
                        roots.add(certificate.map_err(unreadable)?).map_err(|e| {
                            failed(format!("a certificate in {file} (root_certificate) is not valid")).caused_by(e)
                        })?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
            if roots.is_empty() {
                return Err(failed("there is no certificate to trust; set `root_certificate`".to_owned()));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            let any = Arc::new(AnyCertificate(provider));
            builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
        };
        Ok(MakeRustlsConnect::new(config))
    }

    /// Connects, makes sure that the tables are there and fit, and prepares the statements.
    async fn prepare(&self) -> Result<Session> {
        let mut client = self.connect().await?;
        let fault = |e| self.fault(e);
        let (table, ledger) = (self.table.quoted(), self.ledger.quoted());
        let there = client
            .query_one("SELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL", &[&table, &ledger])
            .await
            .map_err(fault)?;
        let (table_there, ledger_there): (bool, bool) = (there.get(0), there.get(1));
        if !table_there && !self.create_table {
            return Err(self.missing());
        }
        if !table_there || !ledger_there {
            let transaction = client.transaction().await.map_err(fault)?;
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
            transaction.batch_execute(&statements).await.map_err(fault)?;
            transaction.commit().await.map_err(fault)?;
        }
        let casts = self.compare(&client).await?;

        let stage_columns =
            list(self.plan.columns.iter().map(|c| format!("{} {}", quoted(&c.name), staged_type(c.kind))));
        client
            .batch_execute(&format!("CREATE TEMPORARY TABLE _perennial_stage ({stage_columns}) ON COMMIT DELETE ROWS"))
            .await
            .map_err(fault)?;

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
        let prepare = async |sql: String| client.prepare(&sql).await.map_err(fault);
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
        let fault = |e| self.fault(e);
        let there: bool =
            client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&name.quoted()]).await.map_err(fault)?.get(0);
        if there {
            for change in changes {
                let may: bool = client
                    .query_one("SELECT has_table_privilege(to_regclass($1), $2)", &[&name.quoted(), change])
                    .await
                    .map_err(fault)?
                    .get(0);
                if !may {
                    return Err(self.error(
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
        let schema = client
            .query_opt(
                "SELECT nspname::text, has_schema_privilege(oid, 'CREATE') FROM pg_namespace \
                 WHERE nspname = coalesce($1, current_schema())",
                &[&name.schema],
            )
            .await
            .map_err(fault)?;
        match schema {
            Some(row) if row.get(1) => Ok(false),
            Some(row) => Err(self.error(
                class::AUTHORIZATION_FAILED,
                format!("the user may not create table {name}: GRANT CREATE ON SCHEMA {}", quoted(row.get(0))),
            )),
            None => Err(self.error(
                class::TARGET_MISSING,
                format!("the schema of {name} does not exist: CREATE SCHEMA, or correct the name"),
            )),
        }
    }

    /// Compares the table with the query; gives per column the type that staged values are cast to.
    async fn compare(&self, client: &Client) -> Result<Vec<String>> {
        let table = self.table.quoted();
        // Type modifiers are left out: a cast to varchar(3) would cut, an assignment to it refuses.
        let columns = client
            .query(
                "SELECT a.attname::text, format_type(a.atttypid, -1), a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', \
                 a.attgenerated <> '' OR a.attidentity = 'a', t.typname::text, t.typtype::text, t.typcategory::text \
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                 WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
                &[&table],
            )
            .await
            .map_err(|e| self.fault(e))?;
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
        table::compare(&self.place, &self.plan, &target, |a, b| a == b, fits)?;
        if self.plan.mode == OutputMode::Update {
            let mut key: Vec<_> = self.plan.key.iter().map(|i| self.plan.columns[*i].name.clone()).collect();
            key.sort();
            let unique: bool = client
                .query_one(
                    "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique \
                     AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND $2 = \
                     (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                     WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))",
                    &[&table, &key],
                )
                .await
                .map_err(|e| self.fault(e))?
                .get(0);
            if !unique {
                let key = self.plan.key_names();
                return Err(self.error(
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

    fn error(&self, class: &'static ErrorClass, what: impl std::fmt::Display) -> Error {
        Error::new(class, format!("postgres sink: {}: {what}", self.place))
    }

    fn missing(&self) -> Error {
        self.error(class::TARGET_MISSING, "the table does not exist; create it, or set create_table: true")
    }

    /// An error of the client or the server with its class.
    fn fault(&self, error: tokio_postgres::Error) -> Error {
        let Some(answer) = error.as_db_error() else {
            let text = error.to_string();
            let class = network_class(&error).unwrap_or_else(|| {
                if text.contains("TLS") {
                    class::TLS_FAILED
                } else if text.contains("timeout") {
                    class::TIMEOUT
                } else if text.contains("authentication") || text.contains("invalid configuration") {
                    class::AUTHENTICATION_FAILED
                } else {
                    class::CONNECTION_LOST
                }
            });
            return self.error(class, text).caused_by(error);
        };
        let mut text = answer.message().to_owned();
        for more in [answer.detail(), answer.where_().and_then(|w| w.lines().next())].into_iter().flatten() {
            text.push_str(&format!(" ({more})"));
        }
        if let Some(hint) = answer.hint() {
            text.push_str(&format!("; {hint}"));
        }
        self.error(class_of(answer.code()), text).caused_by(error)
    }
}

/// The class of an SQLSTATE.
fn class_of(state: &SqlState) -> &'static ErrorClass {
    let code = state.code();
    match code {
        "28P01" | "28000" => class::AUTHENTICATION_FAILED,
        "42501" => class::AUTHORIZATION_FAILED,
        "3D000" | "3F000" | "42P01" => class::TARGET_MISSING,
        "42703" | "42804" | "42846" | "42P10" => class::TARGET_SCHEMA,
        "53100" | "58030" => class::DISK_FULL,
        "57014" => class::TIMEOUT,
        _ => match &code[..code.len().min(2)] {
            "08" => class::CONNECTION_LOST,
            "23" => class::CONSTRAINT_VIOLATION,
            "22" => class::SINK_REJECTED,
            // Locks, deadlocks, serialisation; resources; shutting down or a standby; the server's own faults.
            "40" | "53" | "55" | "57" | "58" | "25" | "XX" => class::SERVER_UNAVAILABLE,
            _ => class::SINK_REJECTED,
        },
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

/// Takes every certificate: `sslmode` prefer and require encrypt, and do not ask who is on the other side.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
