//! Aggregation by keys, or over all.

use perennial_core::error::Result;
use perennial_core::layout::{AggregateLayout, KeyLayout};

use super::{Operator, Taken, batch, buffers};
use crate::state::StateReader;
use crate::types::DEFAULT;

impl Operator<'_> {
    pub(super) async fn take_groups(
        &self,
        reader: &StateReader<'_>,
        partition: usize,
        keys: &[KeyLayout],
        aggregates: &[AggregateLayout],
    ) -> Result<Vec<Taken>> {
        let store = self.store(DEFAULT);
        let schema = reader.schema(self.number, &store, DEFAULT).await?;
        let stored = reader.read(self.number, partition, &store, &schema).await?;
        self.expect_partition(reader, &stored.keys, partition)?;
        let spec = self.spec(0)?;
        let mut columns = self.key_columns(keys, &schema.key, &stored.keys, &spec.schema)?;
        let skipped = if reader.settings.aggregate_has_keys()? { schema.key.fields().len() } else { 0 };
        let fields: Vec<_> = schema.value.fields().iter().skip(skipped).map(AsRef::as_ref).collect();
        let values = stored.values.get(skipped..).unwrap_or_default();
        let taken = buffers::take_all(aggregates, &fields, values, &spec.schema);
        columns.extend(taken.map_err(|why| self.refuse(why))?);
        Ok(vec![Taken { state: self.layout.state, rows: batch(spec, columns, stored.rows)? }])
    }
}
