//! Session windows. Spark has a row per session, by its group and its start; ours has beside it the times of all sessions of a group.

use std::sync::Arc;

use arrow::array::builder::{Int64Builder, ListBuilder};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Schema};
use perennial_core::error::Result;
use perennial_core::layout::{AggregateLayout, KeyLayout};

use super::{Operator, Taken, batch, buffers, columns_of, fit, grouped, micros, picked};
use crate::state::StateReader;
use crate::types::{DEFAULT, is_window};

impl Operator<'_> {
    pub(super) async fn take_sessions(
        &self,
        reader: &StateReader<'_>,
        partition: usize,
        keys: &[KeyLayout],
        aggregates: &[AggregateLayout],
    ) -> Result<Vec<Taken>> {
        let store = self.store(DEFAULT);
        let schema = reader.schema(self.number, &store, DEFAULT).await?;
        let stored = reader.read(self.number, partition, &store, &schema).await?;
        let unknown = || {
            self.refuse(format_args!(
                "its state is not as Spark keeps sessions: keys ({}), values ({})",
                columns_of(&schema.key),
                columns_of(&schema.value)
            ))
        };
        let groups = schema.key.fields().len().checked_sub(1).ok_or_else(unknown)?;
        let values = schema.value.fields();
        // The keys of the group stand in the values, too, with the session where the query has it.
        let session =
            values.iter().take(groups + 1).position(|field| is_window(field.data_type())).ok_or_else(unknown)?;
        let window = stored.values[session].as_struct();
        let [starts, ends] = [micros(window.column(0)), micros(window.column(1))];
        if !matches!(schema.key.field(groups).data_type(), DataType::Timestamp(..)) {
            return Err(unknown());
        }
        if micros(&stored.keys[groups])
            != starts.clone().with_data_type(micros(&stored.keys[groups]).data_type().clone())
            || ends.null_count() > 0
        {
            return Err(self.refuse("a session in Spark's state has another start than its key says"));
        }
        self.expect_partition(reader, &stored.keys[..groups], partition)?;

        let (sessions, bounds) = (self.spec(0)?, self.spec(1)?);
        let group_schema = Schema::new(schema.key.fields()[..groups].to_vec());
        let group_keys = self.key_columns(keys, &group_schema, &stored.keys[..groups], &sessions.schema)?;
        let mut columns = group_keys.clone();
        for (times, at) in [(window.column(0), keys.len()), (window.column(1), keys.len() + 1)] {
            columns.push(fit(times, sessions.schema.field(at).data_type()).ok_or_else(unknown)?);
        }
        let fields: Vec<&Field> = values.iter().skip(groups + 1).map(AsRef::as_ref).collect();
        let taken = buffers::take_all(aggregates, &fields, &stored.values[groups + 1..], &sessions.schema);
        columns.extend(taken.map_err(|why| self.refuse(why))?);

        let by_group = grouped(&group_keys, stored.rows)?;
        let mut times = ListBuilder::new(Int64Builder::new()).with_field(Field::new_list_field(DataType::Int64, false));
        for rows in &by_group {
            let mut of_group: Vec<(i64, i64)> = rows.iter().map(|row| (starts.value(*row), ends.value(*row))).collect();
            of_group.sort_unstable();
            of_group.iter().for_each(|(start, end)| times.values().append_slice(&[*start, *end]));
            times.append(true);
        }
        let mut of_groups: Vec<ArrayRef> = picked(&group_keys, by_group.iter().map(|rows| rows[0]))?;
        of_groups.push(Arc::new(times.finish()));
        let state = self.layout.state;
        Ok(vec![
            Taken { state, rows: batch(sessions, columns, stored.rows)? },
            Taken { state: state + 1, rows: batch(bounds, of_groups, by_group.len())? },
        ])
    }
}
