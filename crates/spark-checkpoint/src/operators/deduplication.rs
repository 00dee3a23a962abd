//! Deduplication, with and without a time after which keys are forgotten.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use perennial_core::error::Result;

use super::{Operator, Taken, batch, columns_of, fit};
use crate::state::StateReader;
use crate::types::DEFAULT;

/// When a key is forgotten, in Spark's state.
pub(super) const EXPIRES: &str = "expiresAtMicros";

impl Operator<'_> {
    pub(super) async fn take_seen(&self, reader: &StateReader<'_>, partition: usize) -> Result<Vec<Taken>> {
        let store = self.store(DEFAULT);
        let schema = reader.schema(self.number, &store, DEFAULT).await?;
        let stored = reader.read(self.number, partition, &store, &schema).await?;
        self.expect_partition(reader, &stored.keys, partition)?;
        let spec = self.spec(0)?;
        let (keys, others) = spec.schema.fields().split_at(spec.keys);
        let mismatch = || {
            self.refuse(format_args!(
                "the columns that tell duplicates differ: Spark has ({}), the job's query ({})",
                columns_of(&schema.key),
                columns_of(&arrow::datatypes::Schema::new(keys.to_vec()))
            ))
        };
        if keys.len() != stored.keys.len() {
            return Err(mismatch());
        }
        // Spark's order is not always the one that was written: names tell the columns.
        let column = |field: &Arc<arrow::datatypes::Field>| {
            let at = schema.key.index_of(field.name()).ok()?;
            fit(&stored.keys[at], field.data_type())
        };
        let mut columns: Vec<ArrayRef> = keys.iter().map(column).collect::<Option<_>>().ok_or_else(mismatch)?;
        if let [_] = others {
            let at = schema.value.index_of(EXPIRES).map_err(|_| {
                self.refuse(format_args!(
                    "Spark's state does not say when keys are forgotten: ({})",
                    columns_of(&schema.value)
                ))
            })?;
            let times = stored.values[at].as_primitive::<Int64Type>();
            if times.null_count() > 0 {
                return Err(self.refuse("a key is never forgotten"));
            }
            columns.push(Arc::new(TimestampMicrosecondArray::new(times.values().clone(), None)));
        }
        Ok(vec![Taken { state: self.layout.state, rows: batch(spec, columns, stored.rows)? }])
    }
}
