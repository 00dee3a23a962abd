//! The `postgres` table: a table or view of a PostgreSQL database.

use std::pin::pin;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use futures::TryStreamExt;
use perennial_core::config::{HumanDuration, Secret};
use perennial_core::error::{Result, class};
use perennial_core::table::{StaticTable, TableContext, TableFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;

use super::rows::{Rows, expect_no_format};
use crate::postgres::{Address, Connection, Name, Server, SslMode, connect_timeout, timeout};
use crate::sinks::table::{list, quoted};

/// A table or view of a PostgreSQL database.
///
/// The columns of the schema are read by their names. The server gives its values as JSON (binary ones in base64), and what the JSON format
/// takes for a type of the schema is taken here: BIGINT from any integer, STRING from everything, STRUCT, ARRAY and MAP from `json`, `jsonb`,
/// arrays and composite types. A value that does not fit the type of its column fails the batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresTable {
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
    /// Name of the table or view, `table` or `schema.table`.
    pub table: String,
    /// How long to wait for a connection. Default: 10 seconds.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: HumanDuration,
    /// How long the server may take to answer before the batch fails with `Timeout`. Default: 5 minutes.
    #[serde(default = "timeout")]
    pub timeout: HumanDuration,
}

/// What messages call it.
const WHAT: &str = "postgres table";

impl TableFactory for PostgresTable {
    fn open(&self, context: TableContext) -> Result<Box<dyn StaticTable>> {
        expect_no_format(&context)?;
        let name = Name::parse(WHAT, &self.table, None)?;
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
            refused: class::SCHEMA,
        })?
        .within(self.timeout)?;
        let columns =
            list(context.schema.fields().iter().map(|field| match (quoted(field.name()), field.data_type()) {
                // The server breaks the lines of base64.
                (name, DataType::Binary) => format!("translate(encode({name}, 'base64'), E'\\n', '') AS {name}"),
                (name, _) => name,
            }));
        // Without an alias of its own a column of the table might be taken for the row.
        let query = format!("SELECT row_to_json(_row)::text FROM (SELECT {columns} FROM {}) AS _row", name.quoted());
        Ok(Box::new(Postgres { server: server.with(&name), query, context, client: Mutex::new(None) }))
    }
}

struct Postgres {
    server: Server,
    query: String,
    context: TableContext,
    /// Taken out while it is used and only put back after success.
    client: Mutex<Option<Connection>>,
}

#[async_trait]
impl StaticTable for Postgres {
    async fn rows(&self) -> Result<Vec<RecordBatch>> {
        let mut slot = self.client.lock().await;
        let client = match slot.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.server.connect().await?,
        };
        let mut rows = Rows::new(&self.context);
        let none: [&(dyn ToSql + Sync); 0] = [];
        let mut answer = pin!(self.server.answer(client.query_raw(&self.query, none)).await?);
        while let Some(row) = self.server.answer(answer.try_next()).await? {
            rows.push(row.try_get::<_, &str>(0).map_err(|e| self.server.fault(e))?.as_bytes())?;
        }
        *slot = Some(client);
        rows.finish()
    }

    async fn check(&self) -> Result<()> {
        let client = self.server.connect().await?;
        self.server.answer(client.query(&format!("{} LIMIT 0", self.query), &[])).await?;
        Ok(())
    }
}
