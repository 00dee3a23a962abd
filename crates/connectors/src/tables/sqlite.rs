//! The `sqlite` table: a table or view of a file.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine};
use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use perennial_core::table::{StaticTable, TableContext, TableFactory};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::rows::{Rows, expect_no_format};
use crate::sinks::columns::{Kind, write_iso_timestamp};
use crate::sinks::sqlite::fault;
use crate::sinks::table::{list, quoted};

/// A table or view of an SQLite file.
///
/// The columns of the schema are read by their names, and their values as the `sqlite` sink writes them: times are ISO text (a TIMESTAMP
/// may also be an INTEGER, in microseconds since 1970), BOOLEAN is 0 and 1, BINARY is a BLOB, STRUCT, ARRAY and MAP are JSON text. A value
/// that does not fit the type of its column fails the batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteTable {
    /// Path of the database file. It is not written.
    pub path: String,
    /// Name of the table or view.
    pub table: String,
    /// How long to wait for a writer of the file before the batch fails (and is tried again by the retry policy). Default: 10 seconds.
    #[serde(default = "busy_timeout")]
    pub busy_timeout: HumanDuration,
}

fn busy_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

impl TableFactory for SqliteTable {
    fn open(&self, context: TableContext) -> Result<Box<dyn StaticTable>> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("sqlite table: {what}"));
        expect_no_format(&context)?;
        if self.path.is_empty() || self.path == ":memory:" {
            return Err(wrong("`path` must be a file".to_owned()));
        }
        if self.table.is_empty() {
            return Err(wrong("`table` is empty".to_owned()));
        }
        let kinds = context.schema.fields().iter().map(|field| {
            let unknown = || {
                format!("column `{}` has the type {}, which is not read from SQLite", field.name(), field.data_type())
            };
            Kind::of(field.data_type()).ok_or_else(|| wrong(unknown()))
        });
        let kinds = kinds.collect::<Result<_>>()?;
        Ok(Box::new(Sqlite(Arc::new(Table { settings: self.clone(), kinds, context }))))
    }
}

struct Sqlite(Arc<Table>);

#[async_trait]
impl StaticTable for Sqlite {
    async fn rows(&self) -> Result<Vec<RecordBatch>> {
        let table = self.0.clone();
        tokio::task::spawn_blocking(move || table.rows()).await.map_err(thread_died)?
    }

    async fn check(&self) -> Result<()> {
        let table = self.0.clone();
        tokio::task::spawn_blocking(move || table.connect()?.query(|_| Ok(()))).await.map_err(thread_died)?
    }
}

fn thread_died(error: tokio::task::JoinError) -> Error {
    Error::bug("sqlite table: the reading thread died").caused_by(error)
}

struct Table {
    settings: SqliteTable,
    kinds: Vec<Kind>,
    context: TableContext,
}

/// A table with an open connection.
struct Open<'t> {
    table: &'t Table,
    connection: Connection,
}

impl Table {
    fn fault(&self, error: rusqlite::Error) -> Error {
        let SqliteTable { path, table, busy_timeout } = &self.settings;
        fault("sqlite table", path, table, *busy_timeout, error)
    }

    fn connect(&self) -> Result<Open<'_>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.settings.path, flags).map_err(|e| self.fault(e))?;
        connection.busy_timeout(self.settings.busy_timeout.0).map_err(|e| self.fault(e))?;
        Ok(Open { table: self, connection })
    }

    fn rows(&self) -> Result<Vec<RecordBatch>> {
        let names: Vec<Vec<u8>> = self.context.schema.fields().iter().map(|field| json_text(field.name())).collect();
        let mut rows = Rows::new(&self.context);
        let mut object = Vec::new();
        self.connect()?.query(|row| {
            object.clear();
            object.push(b'{');
            for (index, (name, kind)) in names.iter().zip(&self.kinds).enumerate() {
                if index > 0 {
                    object.push(b',');
                }
                object.extend_from_slice(name);
                object.push(b':');
                let value = row.get_ref(index).map_err(|e| self.fault(e))?;
                write_value(*kind, value, &mut object).map_err(|what| {
                    let column = self.context.schema.field(index).name();
                    let message = format!(
                        "sqlite table: row {} of `{}` in {}: column `{column}` holds {what}, and the schema says {kind}; correct the \
                         schema, or cast the column in a view",
                        rows.next(),
                        self.settings.table,
                        self.settings.path
                    );
                    Error::new(class::MALFORMED_RECORD, message)
                })?;
            }
            object.push(b'}');
            rows.push(&object)
        })?;
        rows.finish()
    }
}

impl Open<'_> {
    /// Gives all rows to `each`, with the columns of the schema.
    fn query(mut self, mut each: impl FnMut(&rusqlite::Row<'_>) -> Result<()>) -> Result<()> {
        let Self { table, connection } = &mut self;
        let fault = |e| table.fault(e);
        let transaction = connection.transaction().map_err(fault)?;
        table.expect_columns(&transaction)?;
        let columns = match table.kinds.is_empty() {
            // A query may only count the rows.
            true => "NULL".to_owned(),
            false => list(table.context.schema.fields().iter().map(|field| quoted(field.name()))),
        };
        let mut statement =
            transaction.prepare(&format!("SELECT {columns} FROM {}", quoted(&table.settings.table))).map_err(fault)?;
        let mut rows = statement.query([]).map_err(fault)?;
        while let Some(row) = rows.next().map_err(fault)? {
            each(row)?;
        }
        Ok(())
    }
}

impl Table {
    /// SQLite takes the quoted name of a column that is not there for a text.
    fn expect_columns(&self, connection: &Connection) -> Result<()> {
        let SqliteTable { path, table, .. } = &self.settings;
        let found = connection
            .prepare("SELECT name FROM pragma_table_xinfo(?1)")
            .and_then(|mut s| s.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>())
            .map_err(|e| self.fault(e))?;
        if found.is_empty() {
            let message = format!("sqlite table: {path} has no table `{table}`; create it, or correct the name");
            return Err(Error::new(class::TARGET_MISSING, message));
        }
        let fields = self.context.schema.fields().iter();
        let missing = fields.filter(|field| !found.iter().any(|name| name.eq_ignore_ascii_case(field.name())));
        let missing = list(missing.map(|field| format!("`{}`", field.name())));
        if missing.is_empty() {
            return Ok(());
        }
        let found = list(found);
        let message =
            format!("sqlite table: table `{table}` in {path} lacks columns of the schema: {missing}; it has {found}");
        Err(Error::new(class::TARGET_SCHEMA, message))
    }
}

/// Writes a value as JSON of a kind. What cannot be one is left to the decoder, which says what is wrong with it; the error is for what
/// has no form in JSON.
fn write_value(kind: Kind, value: ValueRef<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match (kind, value) {
        (_, ValueRef::Null) => out.extend_from_slice(b"null"),
        (Kind::Boolean, ValueRef::Integer(truth @ (0 | 1))) => {
            out.extend_from_slice(if truth == 1 { b"true" } else { b"false" });
        }
        (Kind::Timestamp { zoned }, ValueRef::Integer(micros)) => {
            out.push(b'"');
            write_iso_timestamp(micros, zoned, out);
            out.push(b'"');
        }
        (Kind::Text, ValueRef::Integer(number)) => out.extend_from_slice(format!("\"{number}\"").as_bytes()),
        (_, ValueRef::Integer(number)) => out.extend_from_slice(number.to_string().as_bytes()),
        (Kind::Text, ValueRef::Real(number)) => out.extend_from_slice(format!("\"{number:?}\"").as_bytes()),
        (_, ValueRef::Real(number)) if number.is_finite() => out.extend_from_slice(format!("{number:?}").as_bytes()),
        (_, ValueRef::Real(number)) => {
            let text: &[u8] = if number > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" };
            out.extend_from_slice(text);
        }
        (Kind::Binary, ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => write_base64(bytes, out),
        (_, ValueRef::Blob(_)) => return Err("a BLOB"),
        (kind, ValueRef::Text(text)) => {
            let text = std::str::from_utf8(text).map_err(|_| "text that is not UTF-8")?;
            let verbatim = match kind {
                Kind::Json => serde_json::from_str::<IgnoredAny>(text).is_ok(),
                Kind::Short | Kind::Integer | Kind::Long | Kind::Float | Kind::Double | Kind::Decimal { .. } => {
                    serde_json::from_str::<serde_json::Number>(text).is_ok()
                }
                _ => false,
            };
            match verbatim {
                true => out.extend_from_slice(text.as_bytes()),
                false => out.extend_from_slice(&json_text(text)),
            }
        }
    }
    Ok(())
}

fn json_text(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(BASE64_STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}
