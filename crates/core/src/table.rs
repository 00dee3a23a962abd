//! The contract of static tables: bounded tables that a query joins its streams with.
//!
//! Within a batch a table has the same rows wherever the query reads it, also when the batch is tried again. Between batches it is read
//! anew as its [`Refresh`] says.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::StreamExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::config::HumanDuration;
use crate::decode::Decoder;
use crate::env::Env;
use crate::error::{Error, Result, ResultExt, class};
use crate::job::DecoderFactory;
use crate::plan::PlanInput;
use crate::records::Input;
use crate::sink::{BatchId, RowStream};

/// A bounded table that can be read whole. No call retries or sleeps: errors go up to the supervisor.
#[async_trait]
pub trait StaticTable: Send + Sync {
    /// All rows that it has now, with the columns of [`TableContext::schema`].
    async fn rows(&self) -> Result<Vec<RecordBatch>>;

    /// Whether it can be read with these settings: connects, authenticates, looks for what is to be read. For `check`.
    async fn check(&self) -> Result<()>;
}

/// What a table gets to live in.
#[derive(Clone)]
pub struct TableContext {
    /// The world.
    pub env: Env,
    /// Name of the job.
    pub job: String,
    /// Name of the query.
    pub query: String,
    /// Name of the table in the job file.
    pub table: String,
    /// The columns that the query uses, with the types of the job file's schema.
    pub schema: SchemaRef,
    /// The columns of `schema` that the job file says are `NOT NULL`.
    pub not_null: Vec<usize>,
    /// Makes rows of these columns out of raw records, for a table that has raw records.
    pub decoder: Arc<dyn Decoder>,
}

impl TableContext {
    /// The rows of a block of the table.
    ///
    /// # Errors
    /// Where a record cannot be decoded or lacks a value that is `NOT NULL`: a table that lacks rows makes results wrong that nobody would
    /// notice.
    pub fn decode(&self, block: Input) -> Result<RecordBatch> {
        let decoded = self.decoder.decode(block)?;
        let (record, class, reason) = match decoded.rejected.first() {
            Some(rejected) => (rejected.record, rejected.class, rejected.reason.clone()),
            None => match self.first_null(&decoded.rows) {
                Some((row, column)) => {
                    let reason = format!("{column} is NULL, and NOT NULL in the schema");
                    (decoded.origin.record_of(row), class::MALFORMED_RECORD, reason)
                }
                None => return Ok(decoded.rows),
            },
        };
        let record = decoded.origin.block.as_ref().and_then(|block| block.record(record));
        let place = record.map(|record| format!("{}: ", record.position)).unwrap_or_default();
        Err(Error::new(class, format!("{place}{reason}; correct it, or the schema of the table")))
    }

    /// The first row that lacks a value it must have, and the column.
    fn first_null(&self, rows: &RecordBatch) -> Option<(usize, &str)> {
        let missing = self.not_null.iter().filter_map(|column| {
            let nulls = rows.columns().get(*column)?.logical_nulls().filter(|nulls| nulls.null_count() > 0)?;
            let row = (0..nulls.len()).find(|row| nulls.is_null(*row))?;
            Some((row, self.schema.fields().get(*column)?.name().as_str()))
        });
        missing.min()
    }
}

/// Makes one [`StaticTable`] per query. Settings are already checked; connecting is left to the first use.
pub trait TableFactory: Send + Sync + fmt::Debug {
    /// Opens the table for one query.
    fn open(&self, context: TableContext) -> Result<Box<dyn StaticTable>>;
}

/// When a table is read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refresh {
    /// For every batch, as Spark does.
    #[default]
    EveryBatch,
    /// By the first batch that begins this long after the last reading, or later.
    After(Duration),
    /// Only when the query starts: the table does not change.
    Never,
}

const EVERY_BATCH: &str = "every_batch";
const NEVER: &str = "never";

impl FromStr for Refresh {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.trim() {
            EVERY_BATCH => Ok(Self::EveryBatch),
            NEVER => Ok(Self::Never),
            text => text.parse().map(|HumanDuration(interval)| Self::After(interval)).map_err(|error: String| {
                format!("{error}; a table is read anew `{EVERY_BATCH}`, after a duration, or `{NEVER}`")
            }),
        }
    }
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EveryBatch => f.write_str(EVERY_BATCH),
            Self::After(interval) => HumanDuration(*interval).fmt(f),
            Self::Never => f.write_str(NEVER),
        }
    }
}

impl Serialize for Refresh {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Refresh {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Refresh {
    fn schema_name() -> Cow<'static, str> {
        "Refresh".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "When a table is read anew: `every_batch`, a duration, or `never` for a table that does not change.",
            "examples": [EVERY_BATCH, "5 minutes", NEVER],
        })
    }
}

/// A static table of a job.
#[derive(Clone)]
pub struct TableSpec {
    /// Its name.
    pub name: String,
    /// Its columns, as the job file has them.
    pub schema: SchemaRef,
    /// What opens it.
    pub factory: Arc<dyn TableFactory>,
    /// How raw records become rows, where it has raw records.
    pub decoder: DecoderFactory,
    /// When it is read anew.
    pub refresh: Refresh,
}

impl TableSpec {
    /// Opens the table for a query whose plan reads it by these `inputs`.
    pub fn open<'a>(
        &self,
        env: &Env,
        job: &str,
        query: &str,
        inputs: impl IntoIterator<Item = &'a PlanInput>,
    ) -> Result<OpenTable> {
        let mut columns: Vec<usize> = inputs.into_iter().flat_map(|input| input.columns.iter().copied()).collect();
        columns.sort_unstable();
        columns.dedup();
        let place = || format!("table {}", self.name);
        let decoder = (self.decoder)(&columns).at(place)?;
        let context = TableContext {
            env: env.clone(),
            job: job.to_owned(),
            query: query.to_owned(),
            table: self.name.clone(),
            schema: decoder.schema(),
            not_null: (0..columns.len()).filter(|at| !self.schema.field(columns[*at]).is_nullable()).collect(),
            decoder,
        };
        let table = self.factory.open(context).at(place)?;
        Ok(OpenTable { name: self.name.clone(), refresh: self.refresh, table, columns, read: None })
    }
}

/// A table of a running query, with the rows that were read last.
pub struct OpenTable {
    name: String,
    refresh: Refresh,
    table: Box<dyn StaticTable>,
    /// The columns that are read: indexes of the table's columns, ascending.
    columns: Vec<usize>,
    read: Option<Reading>,
}

struct Reading {
    rows: Vec<RecordBatch>,
    batch: BatchId,
    at: Duration,
}

impl OpenTable {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it can be read.
    pub async fn check(&self) -> Result<()> {
        self.table.check().await
    }

    /// Makes sure that the rows are those for `batch`: reads them, unless those of the last reading are still good at `now` (a time that
    /// only goes forward).
    pub async fn refresh(&mut self, batch: BatchId, now: Duration) -> Result<()> {
        let good = self.read.as_ref().is_some_and(|read| {
            read.batch == batch
                || match self.refresh {
                    Refresh::EveryBatch => false,
                    Refresh::After(interval) => now < read.at + interval,
                    Refresh::Never => true,
                }
        });
        if !good {
            let rows = self.table.rows().await.at(|| format!("table {}", self.name))?;
            self.read = Some(Reading { rows, batch, at: now });
        }
        Ok(())
    }

    /// The rows of the last reading with just `columns` (indexes of the table's columns).
    pub fn rows(&self, columns: &[usize]) -> Result<RowStream> {
        let projection = columns.iter().map(|column| self.columns.binary_search(column)).collect::<Result<Vec<_>, _>>();
        let projection = projection.map_err(|_| Error::bug("the plan asks for a column that is not read"))?;
        let rows = self.read.as_ref().map(|read| read.rows.clone()).unwrap_or_default();
        let projected = rows.into_iter().map(move |rows| Ok(rows.project(&projection)?));
        Ok(futures::stream::iter(projected).boxed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use futures::TryStreamExt;

    use super::*;

    #[test]
    fn refresh_is_read_as_people_write_it() {
        for text in [EVERY_BATCH, "5 minutes", NEVER] {
            assert_eq!(text.parse::<Refresh>().unwrap().to_string(), text);
        }
        assert_eq!("30s".parse::<Refresh>().unwrap(), Refresh::After(Duration::from_secs(30)));
        let wrong = "hourly".parse::<Refresh>().unwrap_err();
        assert!(wrong.contains("every_batch") && wrong.contains("hourly"), "{wrong}");
    }

    /// A table of one row: how often it was read.
    struct Readings(AtomicI64);

    #[async_trait]
    impl StaticTable for Readings {
        async fn rows(&self) -> Result<Vec<RecordBatch>> {
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
            let n = Int64Array::from(vec![self.0.fetch_add(1, SeqCst) + 1]);
            Ok(vec![RecordBatch::try_new(schema, vec![Arc::new(n)])?])
        }

        async fn check(&self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_table_is_read_when_its_rows_are_no_longer_good() {
        let minute = Duration::from_secs(60);
        for (refresh, expected) in [
            (Refresh::EveryBatch, [1, 1, 2, 3, 4]),
            (Refresh::After(minute), [1, 1, 1, 2, 2]),
            (Refresh::Never, [1, 1, 1, 1, 1]),
        ] {
            let table = Box::new(Readings(AtomicI64::new(0)));
            let mut open = OpenTable { name: "t".into(), refresh, table, columns: vec![3], read: None };
            let mut found = Vec::new();
            // Batch 0 is tried twice, however long that takes.
            for (batch, now) in [(0, 0), (0, 90), (1, 59), (2, 60), (3, 119)] {
                open.refresh(batch, Duration::from_secs(now)).await.unwrap();
                let rows: Vec<RecordBatch> = open.rows(&[3]).unwrap().try_collect().await.unwrap();
                found.push(rows[0].column(0).as_primitive::<Int64Type>().value(0));
            }
            assert_eq!(found, expected, "{refresh}");
        }
    }
}
