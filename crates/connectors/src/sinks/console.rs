//! The `console` sink: batches as tables on standard output, for looking at a query while it is being written.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::columns::{Column, Kind};

/// Prints each batch as a table on standard output, as Spark's console sink does. A batch that is run again is printed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleSink {
    /// How many rows of a batch are printed. Default: 20.
    pub rows: usize,
    /// How many characters of a value are printed; 0 prints all. Default: 20.
    pub truncate: usize,
}

impl Default for ConsoleSink {
    fn default() -> Self {
        Self { rows: 20, truncate: 20 }
    }
}

impl SinkFactory for ConsoleSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Console::new(self, &context, std::io::stdout())?))
    }
}

struct Console<W> {
    settings: ConsoleSink,
    names: Vec<String>,
    kinds: Vec<Kind>,
    out: Mutex<W>,
}

impl<W> Console<W> {
    fn new(settings: &ConsoleSink, context: &SinkContext, out: W) -> Result<Self> {
        let kinds = context
            .schema
            .fields()
            .iter()
            .map(|field| {
                Kind::of(field.data_type()).ok_or_else(|| {
                    Error::new(
                        class::CONFIG_INVALID,
                        format!(
                            "console sink: column `{}` has the type {}, which cannot be printed; cast it to STRING",
                            field.name(),
                            field.data_type()
                        ),
                    )
                })
            })
            .collect::<Result<_>>()?;
        let names = context.schema.fields().iter().map(|f| f.name().clone()).collect();
        Ok(Self { settings: settings.clone(), names, kinds, out: Mutex::new(out) })
    }
}

#[async_trait]
impl<W: Write + Send> Sink for Console<W> {
    fn delivery(&self) -> Delivery {
        Delivery::Append
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let (mut count, mut shown) = (0u64, Vec::new());
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            let wanted = rows.num_rows().min(self.settings.rows - shown.len());
            count += rows.num_rows() as u64;
            if wanted > 0 {
                let columns = Column::all(&rows.slice(0, wanted), &self.kinds)?;
                shown.extend((0..wanted).map(|row| columns.iter().map(|c| self.cell(c, row)).collect::<Vec<_>>()));
            }
        }
        let text = self.table(batch, &shown, count);
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| {
            Error::new(class::CONNECTION_LOST, "console sink: standard output cannot be written").caused_by(e)
        })?;
        Ok(Written { rows: count, bytes: text.len() as u64, duplicate: false })
    }
}

impl<W> Console<W> {
    fn cell(&self, column: &Column, row: usize) -> String {
        if column.is_null(row) {
            return "NULL".to_owned();
        }
        let mut text = Vec::new();
        column.write_text(row, &mut text);
        // A line break would break the table.
        let text = String::from_utf8_lossy(&text).replace('\n', "\\n").replace('\r', "\\r");
        let limit = self.settings.truncate;
        if limit == 0 || text.chars().count() <= limit {
            text
        } else if limit < 4 {
            text.chars().take(limit).collect()
        } else {
            text.chars().take(limit - 3).chain("...".chars()).collect()
        }
    }

    fn table(&self, batch: &SinkBatch, rows: &[Vec<String>], count: u64) -> String {
        let width_of = |text: &String| text.chars().count();
        let widths: Vec<_> = (0..self.names.len())
            .map(|i| rows.iter().map(|row| width_of(&row[i])).chain([width_of(&self.names[i]), 3]).max().unwrap_or(3))
            .collect();
        let rule: String = widths.iter().map(|w| format!("+{}", "-".repeat(*w))).collect::<String>() + "+\n";
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).map(|(cell, &width)| {
                // Cut values are aligned to the right, whole ones to the left, as Spark does.
                if self.settings.truncate > 0 { format!("|{cell:>width$}") } else { format!("|{cell:<width$}") }
            });
            cells.collect::<String>() + "|\n"
        };
        let bar = "-".repeat(43);
        let mut text = format!("{bar}\nBatch: {}\n{bar}\n{rule}{}{rule}", batch.id, line(&self.names));
        rows.iter().for_each(|row| text.push_str(&line(row)));
        text.push_str(&rule);
        if count > rows.len() as u64 {
            let s = if rows.len() == 1 { "" } else { "s" };
            text.push_str(&format!("only showing top {} row{s}\n", rows.len()));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{batch, context, failing_stream, rows_of, stream_of};
    use super::*;
    use arrow::array::{Float64Array, StringArray, TimestampMicrosecondArray};
    use perennial_core::sink::OutputMode;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_batch_is_printed_as_spark_prints_it() {
        let rows = rows_of([
            ("sensor", Arc::new(StringArray::from(vec![Some("a"), None, Some("a sensor with a long name")])) as _),
            ("value", Arc::new(Float64Array::from(vec![1.0, 2.5, f64::NAN])) as _),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![0, 500_000, 1]).with_timezone("UTC")) as _),
        ]);
        let context = context(rows.schema(), OutputMode::Append);
        let sink = Console::new(&ConsoleSink::default(), &context, Vec::new()).unwrap();
        let written = sink.write(&batch(7), stream_of(vec![rows.clone()])).await.unwrap();
        assert_eq!(written.rows, 3);
        let expected = "\
-------------------------------------------
Batch: 7
-------------------------------------------
+--------------------+-----+--------------------+
|              sensor|value|                  at|
+--------------------+-----+--------------------+
|                   a|  1.0| 1970-01-01 00:00:00|
|                NULL|  2.5|1970-01-01 00:00:...|
|a sensor with a l...|  NaN|1970-01-01 00:00:...|
+--------------------+-----+--------------------+

";
        assert_eq!(String::from_utf8(sink.out.into_inner().unwrap()).unwrap(), expected);

        let few = Console::new(&ConsoleSink { rows: 1, truncate: 0 }, &context, Vec::new()).unwrap();
        let written = few.write(&batch(8), stream_of(vec![rows.clone(), rows.clone()])).await.unwrap();
        assert_eq!(written.rows, 6, "rows that are not printed are counted");
        let text = String::from_utf8(few.out.into_inner().unwrap()).unwrap();
        assert!(text.contains("|a     |1.0  |1970-01-01 00:00:00|\n"), "{text}");
        assert!(text.ends_with("only showing top 1 row\n\n"), "{text}");

        let failing = Console::new(&ConsoleSink::default(), &context, Vec::new()).unwrap();
        failing.write(&batch(9), failing_stream(vec![rows])).await.unwrap_err();
        assert!(failing.out.into_inner().unwrap().is_empty(), "half a batch is not printed");
    }
}
