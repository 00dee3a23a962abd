//! Joins of two streams. Spark has per side how many rows a key has, and the rows by key and number; ours has both in one.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Int64Type};
use perennial_core::error::Result;
use perennial_core::layout::SideLayout;

use super::{Operator, Taken, batch, columns_of, fit, grouped, micros, picked};
use crate::state::{StateReader, StoreInfo};
use crate::types::{DEFAULT, StoreSchema};

/// Whether a row had a match, in Spark's state.
const MATCHED: &str = "matched";

impl Operator<'_> {
    pub(super) async fn take_buffers(
        &self,
        reader: &StateReader<'_>,
        partition: usize,
        sides: &[SideLayout; 2],
    ) -> Result<Vec<Taken>> {
        let version = reader.settings.join_version()?;
        if !(1..=4).contains(&version) {
            return Err(self.refuse(format_args!("the state of joins has the format {version}; 1 to 4 are known")));
        }
        let [left, right] = sides;
        Ok(vec![
            self.take_side(reader, partition, "left", left, 0, version).await?,
            self.take_side(reader, partition, "right", right, 1, version).await?,
        ])
    }

    /// A store of a side: one by itself, or a column family.
    async fn side_store(&self, reader: &StateReader<'_>, name: &str) -> Result<(StoreInfo, StoreSchema)> {
        let shared = self.info.iter().flat_map(|info| &info.stores).find(|store| store.families);
        let store = shared.cloned().unwrap_or_else(|| self.store(name));
        let family = if shared.is_some() { name } else { DEFAULT };
        let schema = reader.schema(self.number, &store, family).await?;
        Ok((store, schema))
    }

    async fn take_side(
        &self,
        reader: &StateReader<'_>,
        partition: usize,
        name: &str,
        side: &SideLayout,
        index: usize,
        version: u64,
    ) -> Result<Taken> {
        let family = if version == 4 { "keyWithTsToValues" } else { "keyWithIndexToValue" };
        let (store, schema) = self.side_store(reader, &format!("{name}-{family}")).await?;
        let mut stored = match version {
            4 => reader.read_lists(self.number, partition, &store, &schema).await?,
            _ => reader.read(self.number, partition, &store, &schema).await?,
        };
        let counted = match version {
            // Rows have no numbers, so nothing counts them: they are numbered in their order.
            4 => None,
            _ => {
                let (store, schema) = self.side_store(reader, &format!("{name}-keyToNumValues")).await?;
                Some(reader.read(self.number, partition, &store, &schema).await?)
            }
        };
        if counted.is_none() {
            let mut numbers = vec![0; stored.rows];
            for of_key in grouped(&stored.keys, stored.rows)? {
                (0..).zip(of_key).for_each(|(number, row): (i64, usize)| numbers[row] = number);
            }
            stored.keys.push(Arc::new(Int64Array::from(numbers)));
        }
        let spec = self.spec(index)?;
        let unknown = || {
            self.refuse(format_args!(
                "its {name} side is not as Spark keeps joins: keys ({}), values ({})",
                columns_of(&schema.key),
                columns_of(&schema.value)
            ))
        };
        let has_index = stored.keys.last().is_some_and(|index| *index.data_type() == DataType::Int64);
        if stored.keys.len() != side.keys + 1 || !has_index {
            return Err(unknown());
        }
        let (keys, index) = stored.keys.split_at(side.keys);
        self.expect_partition(reader, keys, partition)?;
        let index = index[0].as_primitive::<Int64Type>();
        let counts = match &counted {
            Some(counted) if counted.keys.len() != side.keys => return Err(unknown()),
            Some(counted) => Some(counted.values[0].as_primitive_opt::<Int64Type>().ok_or_else(unknown)?),
            None => None,
        };

        let matched = match (schema.value.index_of(MATCHED), version) {
            (Ok(at), 2..) => stored.values[at].as_boolean_opt().ok_or_else(unknown)?.clone(),
            _ if side.matched.is_some() || side.once => {
                return Err(self.refuse(
                    "Spark kept it in a format that does not say which rows had a match, and this join needs to know",
                ));
            }
            _ => BooleanArray::from(vec![false; stored.rows]),
        };

        // Which rows stay, in which order, and where each key begins.
        let by_key = grouped(keys, stored.rows)?;
        let broken = |what: &str| {
            let dir = reader.dir.shown(&format!("state/{}/{partition}", self.number));
            crate::damaged(&dir, format!("the {name} side of the join {what}"))
        };
        if let Some(counts) = counts {
            if by_key.len() != counts.iter().filter(|count| *count > Some(0)).count() {
                return Err(broken("has other keys than it counts"));
            }
            if counts.iter().flatten().sum::<i64>() != stored.rows as i64 {
                return Err(broken("has another number of rows than it counts"));
            }
        }
        let (mut order, mut slots, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for mut of_key in by_key {
            of_key.sort_unstable_by_key(|row| index.value(*row));
            if of_key.iter().zip(0..).any(|(row, slot)| index.is_null(*row) || index.value(*row) != slot) {
                return Err(broken("lacks a row of a key"));
            }
            if side.once {
                of_key.retain(|row| !matched.value(*row));
            }
            for (slot, row) in (0..).zip(&of_key) {
                order.push(*row);
                slots.push(slot);
                rows.push(if slot == 0 { of_key.len() as i32 } else { 0 });
            }
        }
        let mut columns: Vec<Option<ArrayRef>> = vec![None; spec.schema.fields().len()];
        for (at, key) in keys.iter().enumerate() {
            columns[at] = fit(key, spec.schema.field(at).data_type());
            if columns[at].is_none() {
                return Err(self.refuse(format_args!(
                    "the keys of the join differ: Spark's are ({}), the job's begin with {}",
                    columns_of(&schema.key),
                    columns_of(&spec.schema)
                )));
            }
        }
        for (name, at) in &side.columns {
            let same = schema.value.fields().iter().filter(|field| field.name() == name).count();
            let found = schema.value.index_of(name).ok().filter(|_| same == 1).map(|at| &stored.values[at]);
            let fitted = found.and_then(|column| fit(column, spec.schema.field(*at).data_type()));
            match (&columns[*at], fitted) {
                // A key is one of the row's columns: both must say the same, or Spark's keys come in another order.
                (Some(key), Some(column)) if *at < side.keys => {
                    if key.to_data() != column.to_data() {
                        return Err(self
                            .refuse(format_args!("the key of the join is not the column `{name}` in Spark's query")));
                    }
                }
                (Some(_), _) => {}
                (None, Some(column)) => columns[*at] = Some(column),
                (None, None) => {
                    return Err(self.refuse(format_args!(
                        "Spark does not keep the column `{name}` that the job's query needs, or keeps it in another type: it has ({})",
                        columns_of(&schema.value)
                    )));
                }
            }
        }
        columns[side.slot] = Some(Arc::new(index.clone()));
        columns[side.rows] = columns[side.slot].clone();
        if let Some(at) = side.matched {
            columns[at] = Some(Arc::new(matched));
        }
        if let (Some(at), Some(expiry)) = (side.expires_at, side.expiry) {
            columns[at] = columns[expiry].as_ref().map(event_times).transpose()?;
        }
        let columns: Vec<ArrayRef> = columns.into_iter().collect::<Option<_>>().ok_or_else(unknown)?;
        let mut columns = picked(&columns, order.iter().copied())?;
        columns[side.slot] = Arc::new(Int32Array::from(slots));
        columns[side.rows] = Arc::new(Int32Array::from(rows));
        let state = self.layout.state + usize::from(name == "right");
        Ok(Taken { state, rows: batch(spec, columns, order.len())? })
    }
}

/// Timestamps, or the ends of windows, without a zone.
fn event_times(column: &ArrayRef) -> Result<ArrayRef> {
    let times = match column.data_type() {
        DataType::Struct(_) => {
            let window = column.as_struct();
            let ends = micros(window.column(1));
            match window.nulls() {
                Some(nulls) => {
                    let gone = BooleanArray::new(!nulls.inner(), None);
                    let ends = nullif(&ends, &gone).map_err(|e| perennial_core::Error::bug(e.to_string()))?;
                    micros(&ends)
                }
                None => ends,
            }
        }
        _ => micros(column),
    };
    Ok(Arc::new(times.with_data_type(DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None))))
}
