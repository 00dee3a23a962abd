//! Tables that are read back.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::Schema;
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{OutputMode, SinkFactory};
use perennial_core::table::{StaticTable, TableContext, TableFactory};
use serde_json::{Value, json};

use super::files::FilesTable;
use super::postgres::PostgresTable;
use super::sqlite::SqliteTable;
use crate::format::{self, Format};
use crate::sinks::testing::{all_kinds, batch, context, server, stream_of};

fn settings<T: serde::de::DeserializeOwned>(settings: Value) -> T {
    serde_json::from_value(settings).unwrap()
}

/// A table with all columns of a schema.
fn open(factory: &dyn TableFactory, format: &Format, ddl: &str) -> Result<Box<dyn StaticTable>> {
    let declared = perennial_core::ddl::parse(ddl).unwrap();
    let all: Vec<usize> = (0..declared.fields().len()).collect();
    let decoder = format::decoder(format, &declared, &all).unwrap();
    factory.open(TableContext {
        env: context(Arc::new(Schema::empty()), OutputMode::Append).env,
        job: "greenhouse".into(),
        query: "per_minute".into(),
        table: "plants".into(),
        schema: decoder.schema(),
        not_null: all.into_iter().filter(|column| !declared.field(*column).is_nullable()).collect(),
        decoder,
    })
}

async fn rows(table: &dyn StaticTable) -> Result<RecordBatch> {
    let rows = table.rows().await?;
    Ok(concat_batches(&rows[0].schema(), &rows).unwrap())
}

async fn texts(table: &dyn StaticTable) -> Vec<String> {
    let rows = rows(table).await.unwrap();
    rows.column(0).as_string::<i32>().iter().map(|text| text.unwrap_or("NULL").to_owned()).collect()
}

fn is(error: &Error, class: &'static perennial_core::error::ErrorClass, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.class(), class, "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// The columns of [`all_kinds`] but for TIME, which JSON does not have.
const KINDS: &str = "id BIGINT, b BOOLEAN, i8 TINYINT, i16 SMALLINT, i32 INT, i64 BIGINT, f32 FLOAT, f64 DOUBLE, d DECIMAL(30, 6), \
                     small DECIMAL(10, 2), s STRING, bin BINARY, day DATE, at TIMESTAMP, local TIMESTAMP_NTZ, \
                     nested STRUCT<n: BIGINT, s: STRING>, list ARRAY<INT>";

/// Whether a table gives back what its sink was given.
async fn expect_kinds(sink: &dyn SinkFactory, table: &dyn TableFactory) {
    let written = all_kinds();
    let sink = sink.open(context(written.schema(), OutputMode::Append)).unwrap();
    sink.write(&batch(0), stream_of(vec![written.clone()])).await.unwrap();
    let table = open(table, &Format::default(), KINDS).unwrap();
    table.check().await.unwrap();
    let read = rows(table.as_ref()).await.unwrap();
    for (field, found) in read.schema().fields().iter().zip(read.columns()) {
        let expected = cast(written.column_by_name(field.name()).unwrap(), field.data_type()).unwrap();
        assert_eq!(found, &expected, "{}", field.name());
    }
}

#[tokio::test]
async fn a_sqlite_table_has_every_kind_of_value() {
    let dir = tempfile::tempdir().unwrap();
    let place = json!({"path": dir.path().join("data.db"), "table": "kinds"});
    let sink: crate::sinks::sqlite::SqliteSink = settings(place.clone());
    expect_kinds(&sink, &settings::<SqliteTable>(place)).await;
}

#[tokio::test]
async fn a_sqlite_table_is_read_as_it_is_at_the_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.db");
    let table = settings::<SqliteTable>(json!({"path": path, "table": "plants"}));
    let opened = open(&table, &Format::default(), "name STRING, since TIMESTAMP").unwrap();
    is(&opened.check().await.unwrap_err(), class::STORAGE_NOT_FOUND, &["data.db"]);

    let database = rusqlite::Connection::open(&path).unwrap();
    is(&opened.rows().await.unwrap_err(), class::TARGET_MISSING, &["data.db", "`plants`"]);
    database
        .execute_batch("CREATE TABLE plants (NAME, since, more); INSERT INTO plants VALUES ('fern', 0, x'ff')")
        .unwrap();
    opened.check().await.unwrap();
    assert_eq!(texts(opened.as_ref()).await, ["fern"]);
    database.execute_batch("INSERT INTO plants VALUES (12, '2026-11-21 09:44:23', NULL)").unwrap();
    assert_eq!(texts(opened.as_ref()).await, ["fern", "12"]);
    database.execute_batch("INSERT INTO plants VALUES ('moss', 'soon', NULL)").unwrap();
    is(&opened.rows().await.unwrap_err(), class::MALFORMED_RECORD, &["row 2", "since", "soon"]);

    let other = open(&table, &Format::default(), "name STRING, size INT").unwrap();
    is(&other.check().await.unwrap_err(), class::TARGET_SCHEMA, &["`plants`", "`size`", "since"]);
    let blob = open(&table, &Format::default(), "more STRING").unwrap();
    is(&blob.rows().await.unwrap_err(), class::MALFORMED_RECORD, &["row 0", "`more`", "BLOB", "STRING"]);
    is(&open(&table, &Format::Parquet, "name STRING").err().unwrap(), class::CONFIG_INVALID, &["format"]);
}

#[tokio::test]
async fn a_files_table_is_all_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let table = settings::<FilesTable>(json!({"path": dir.path()}));
    let opened = open(&table, &Format::default(), "name STRING NOT NULL, size INT").unwrap();
    assert!(opened.rows().await.unwrap().is_empty(), "no files, no rows");
    std::fs::write(dir.path().join("a.json"), "{\"name\":\"fern\",\"size\":1}\n{\"name\":\"moss\"}").unwrap();
    std::fs::write(dir.path().join("b.json"), "{\"name\":\"oak\"}").unwrap();
    std::fs::write(dir.path().join("c.json.tmp"), "{\"name\":\"el").unwrap();
    opened.check().await.unwrap();
    let mut found = texts(opened.as_ref()).await;
    found.sort();
    assert_eq!(found, ["fern", "moss", "oak"]);

    std::fs::remove_file(dir.path().join("a.json")).unwrap();
    assert_eq!(texts(opened.as_ref()).await, ["oak"], "the files are those of the moment");
    let mut text = String::new();
    for i in 0..3 {
        writeln!(text, "{{\"name\":\"{i}\"}}").unwrap();
    }
    std::fs::write(dir.path().join("b.json"), text + "{\"size\":1}").unwrap();
    is(&opened.rows().await.unwrap_err(), class::MALFORMED_RECORD, &["b.json at 39", "name"]);

    let gone = settings::<FilesTable>(json!({"path": dir.path().join("gone.csv")}));
    let gone = open(&gone, &Format::default(), "name STRING").unwrap();
    is(&gone.check().await.unwrap_err(), class::STORAGE_NOT_FOUND, &["gone.csv"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run make test"]
async fn a_postgres_table_has_every_kind_of_value() {
    let url = server("PERENNIAL_TEST_POSTGRES");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("DROP SCHEMA IF EXISTS tables CASCADE; CREATE SCHEMA tables").await.unwrap();
    let place = json!({"url": url, "table": "tables.kinds"});
    let sink: crate::sinks::postgres::PostgresSink = settings(place.clone());
    let table = settings::<PostgresTable>(place);
    let missing = open(&table, &Format::default(), "id BIGINT").unwrap();
    is(&missing.check().await.unwrap_err(), class::TARGET_MISSING, &["postgres table", "tables.kinds"]);
    expect_kinds(&sink, &table).await;

    let other = open(&table, &Format::default(), "id BIGINT, size INT").unwrap();
    is(&other.check().await.unwrap_err(), class::TARGET_SCHEMA, &["size"]);
    client
        .batch_execute("ALTER TABLE tables.kinds ALTER COLUMN i32 TYPE numeric; UPDATE tables.kinds SET i32 = 1.5")
        .await
        .unwrap();
    let unfit = open(&table, &Format::default(), "i32 INT").unwrap();
    is(&unfit.rows().await.unwrap_err(), class::MALFORMED_RECORD, &["row 0", "i32"]);
}
