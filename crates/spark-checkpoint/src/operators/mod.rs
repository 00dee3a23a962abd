//! From the state of Spark's operators to that of ours, and back.

mod aggregation;
mod buffers;
mod deduplication;
mod give;
mod join;
mod sessions;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{cast, take_arrays};
use arrow::datatypes::{DataType, Schema, TimestampMicrosecondType};
use arrow::row::{Row, RowConverter, SortField};
use perennial_core::ddl;
use perennial_core::error::{Error, Result};
use perennial_core::layout::{Content, KeyLayout, OperatorLayout};
use perennial_core::state::StateSpec;

use crate::state::{OperatorInfo, StateReader, StoreInfo};
use crate::types::is_window;
use crate::{hash, refused};

/// Rows for one of our states.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Number of the state.
    pub(crate) state: usize,
    pub(crate) rows: RecordBatch,
}

/// A stateful operator: Spark's and ours.
pub(crate) struct Operator<'a> {
    /// Its number in both.
    pub(crate) number: u64,
    pub(crate) layout: &'a OperatorLayout,
    /// Our states of all operators.
    pub(crate) specs: &'a [StateSpec],
    pub(crate) info: Option<OperatorInfo>,
}

impl Operator<'_> {
    /// Our state number `index` of this operator.
    fn spec(&self, index: usize) -> Result<&StateSpec> {
        let spec = self.specs.get(self.layout.state + index);
        spec.ok_or_else(|| Error::bug(format!("operator {} has no state {index}", self.number)))
    }

    /// A store of Spark's operator.
    fn store(&self, name: &str) -> StoreInfo {
        let found = self.info.iter().flat_map(|info| &info.stores).find(|store| store.name == name);
        found.cloned().unwrap_or_else(|| StoreInfo::named(name))
    }

    /// For messages.
    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        refused(format!("operator {} ({}): {what}", self.number, self.layout.name))
    }

    /// Reads a partition of Spark's state as rows of ours.
    pub(crate) async fn take(&self, reader: &StateReader<'_>, partition: usize) -> Result<Vec<Taken>> {
        if let Some(info) = &self.info
            && info.name != self.layout.name
        {
            return Err(self.refuse(format_args!(
                "Spark's query has `{}` in its place: the job's query must do the same, in the same order",
                info.name
            )));
        }
        match &self.layout.content {
            Content::Aggregation { keys, aggregates } => self.take_groups(reader, partition, keys, aggregates).await,
            Content::Sessions { keys, aggregates } => self.take_sessions(reader, partition, keys, aggregates).await,
            Content::Deduplication => self.take_seen(reader, partition).await,
            Content::Join(sides) => self.take_buffers(reader, partition, sides).await,
            Content::Own => Err(self.refuse("its state is not taken over")),
        }
    }

    /// Whether the operator has but one partition, whatever the settings say: there is no key to spread rows by.
    pub(crate) fn is_single(&self) -> bool {
        match &self.layout.content {
            Content::Aggregation { keys, .. } | Content::Sessions { keys, .. } => keys.is_empty(),
            _ => false,
        }
    }

    /// Refuses keys that lie in a partition where Spark would not look for them: files that were mixed up.
    fn expect_partition(&self, reader: &StateReader<'_>, keys: &[ArrayRef], partition: usize) -> Result<()> {
        if !reader.settings.strict_distribution() || keys.is_empty() {
            return Ok(());
        }
        let partitions = reader.settings.partitions()?;
        for row in 0..keys.first().map_or(0, |column| column.len()) {
            let right = hash::partition(keys, row, partitions)?;
            if right != partition {
                let dir = reader.dir.shown(&format!("state/{}/{partition}", self.number));
                return Err(crate::damaged(
                    &dir,
                    format!(
                        "it holds a key of partition {right}: the files of the state were mixed up, or are damaged"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Columns of our key, made of those of Spark's.
    fn key_columns(&self, keys: &[KeyLayout], of: &Schema, columns: &[ArrayRef], to: &Schema) -> Result<Vec<ArrayRef>> {
        let names: Vec<&String> = of.fields().iter().map(|field| field.name()).collect();
        let mismatch = |what: String| {
            let ours: Vec<String> =
                keys.iter().zip(to.fields()).map(|(key, field)| shown(&key.name, field.data_type())).collect();
            let spark: Vec<String> = of.fields().iter().map(|f| shown(f.name(), f.data_type())).collect();
            self.refuse(format_args!(
                "{what}: Spark's key is ({}), the job's is ({})",
                spark.join(", "),
                ours.join(", ")
            ))
        };
        // The same columns in another order are told by their names.
        let all_named = keys.len() == names.len()
            && keys.iter().all(|key| names.iter().filter(|name| ***name == key.name).count() == 1);
        let mut next = 0;
        let mut made: Vec<ArrayRef> = Vec::new();
        while made.len() < keys.len() {
            let key = &keys[made.len()];
            let at = if all_named { names.iter().position(|name| **name == key.name).unwrap_or(next) } else { next };
            let Some(column) = columns.get(at) else { return Err(mismatch("the keys differ".into())) };
            next += 1;
            let wanted = to.field(made.len()).data_type();
            let is_split = is_window(column.data_type()) && matches!(wanted, DataType::Timestamp(..));
            if !is_split {
                let fitted = fit(column, wanted).ok_or_else(|| mismatch("the keys differ".into()))?;
                made.push(fitted);
                continue;
            }
            let window = column.as_struct();
            let (starts, ends) = (window.column(0), window.column(1));
            let bad = || mismatch(format!("`{}` is no window of the job's size", key.name));
            match key.window {
                Some(size) => {
                    let (from, to) = (micros(starts), micros(ends));
                    let fits = from.iter().zip(to.iter()).all(|(from, to)| match (from, to) {
                        (Some(from), Some(to)) => to.checked_sub(from) == Some(size),
                        _ => false,
                    });
                    if !fits {
                        return Err(bad());
                    }
                    made.push(fit(starts, wanted).ok_or_else(bad)?);
                }
                // A window that came from below is two columns of the key: its start and its end.
                None if made.len() + 1 < keys.len() => {
                    made.push(fit(starts, wanted).ok_or_else(bad)?);
                    made.push(fit(ends, to.field(made.len()).data_type()).ok_or_else(bad)?);
                }
                None => return Err(bad()),
            }
        }
        if next != columns.len() {
            return Err(mismatch("the keys differ".into()));
        }
        Ok(made)
    }
}

fn shown(name: &str, data_type: &DataType) -> String {
    format!("{name} {}", ddl::simple_type(data_type))
}

/// The columns of a schema for messages.
fn columns_of(schema: &Schema) -> String {
    let columns: Vec<String> = schema.fields().iter().map(|field| shown(field.name(), field.data_type())).collect();
    columns.join(", ")
}

/// Timestamps as numbers, whatever their zone.
fn micros(times: &ArrayRef) -> TimestampMicrosecondArray {
    times.as_primitive::<TimestampMicrosecondType>().clone()
}

/// A column in another Arrow type of the same Spark type; nothing where they are different types.
fn fit(column: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    if column.data_type() == to {
        return Some(column.clone());
    }
    if !is_same(column.data_type(), to) {
        return None;
    }
    match to {
        // A cast would read the clock of the zone.
        DataType::Timestamp(..) => Some(Arc::new(micros(column).with_data_type(to.clone()))),
        DataType::Struct(fields) => {
            let from = column.as_struct();
            let columns = from.columns().iter().zip(fields).map(|(column, field)| fit(column, field.data_type()));
            let made = arrow::array::StructArray::try_new_with_length(
                fields.clone(),
                columns.collect::<Option<_>>()?,
                from.nulls().cloned(),
                from.len(),
            );
            Some(Arc::new(made.ok()?))
        }
        DataType::List(element) => {
            let from = column.as_list::<i32>();
            let values = fit(from.values(), element.data_type())?;
            let made = arrow::array::ListArray::try_new(
                element.clone(),
                from.offsets().clone(),
                values,
                from.nulls().cloned(),
            );
            Some(Arc::new(made.ok()?))
        }
        _ => cast(column, to).ok(),
    }
}

/// Whether two Arrow types are the same one of Spark's.
fn is_same(one: &DataType, other: &DataType) -> bool {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, List, Struct, Timestamp, Utf8, Utf8View};
    match (one, other) {
        (Utf8, Utf8View | LargeUtf8) | (Utf8View | LargeUtf8, Utf8) => true,
        (Binary, BinaryView | LargeBinary) | (BinaryView | LargeBinary, Binary) => true,
        (Timestamp(unit, zone), Timestamp(other_unit, other_zone)) => {
            unit == other_unit && zone.is_some() == other_zone.is_some()
        }
        (Struct(fields), Struct(others)) => {
            let same = |(one, other): (&Arc<_>, &Arc<_>)| {
                let (one, other): (&arrow::datatypes::Field, &arrow::datatypes::Field) = (one, other);
                is_same(one.data_type(), other.data_type())
            };
            fields.len() == others.len() && fields.iter().zip(others).all(same)
        }
        (List(element), List(other)) => is_same(element.data_type(), other.data_type()),
        (one, other) => one == other,
    }
}

/// Rows of a state; the schema's word on NULL is kept to.
fn batch(spec: &StateSpec, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(spec.schema.clone(), columns, &options)
        .map_err(|error| refused(format!("rows do not fit the state of `{}`: {error}", spec.name)))
}

/// The numbers of rows that have the same key, each key's in their order; keys in the order of their first rows.
fn grouped(keys: &[ArrayRef], rows: usize) -> Result<Vec<Vec<usize>>> {
    if keys.is_empty() {
        return Ok(if rows == 0 { Vec::new() } else { vec![(0..rows).collect()] });
    }
    let bug = |error| Error::bug(format!("keys cannot be compared: {error}"));
    let fields = keys.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let rows = RowConverter::new(fields).and_then(|converter| converter.convert_columns(keys)).map_err(bug)?;
    let mut places: HashMap<Row<'_>, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (number, key) in rows.iter().enumerate() {
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    Ok(groups)
}

/// Rows of columns, by their numbers.
fn picked(columns: &[ArrayRef], rows: impl IntoIterator<Item = usize>) -> Result<Vec<ArrayRef>> {
    let rows = UInt32Array::from_iter_values(rows.into_iter().map(|row| row as u32));
    take_arrays(columns, &rows, None).map_err(|error| Error::bug(format!("rows cannot be taken: {error}")))
}
