//! Merging the partial aggregates of a batch with the stored ones, one partition of the state at a time.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray, UInt32Array,
};
use datafusion::arrow::compute::kernels::cmp::lt_eq;
use datafusion::arrow::compute::{concat_batches, filter_record_batch, not, prep_null_mask_filter, take_record_batch};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use perennial_core::plan::{BatchInfo, OperatorProgress};
use perennial_core::sink::OutputMode;
use perennial_core::state::StatePartition;

use crate::error::external;
use crate::logical::nodes::EventKey;

/// Spreads keys over the partitions of the state. Not the seed of DataFusion's hash tables, whose buckets would fill unevenly.
const PARTITION_SEED: RandomState = RandomState::with_seed(0x7065_7265_6e6e_6961);

/// To which of `partitions` each key belongs. All rows of an aggregate without keys are in partition 0.
pub(crate) fn partition_of(keys: &[ArrayRef], partitions: usize) -> Result<Vec<u32>> {
    let Some(rows) = keys.first().map(|column| column.len()) else { return Ok(vec![0]) };
    if partitions <= 1 {
        return Ok(vec![0; rows]);
    }
    let mut hashes = vec![0; rows];
    create_hashes(keys, &PARTITION_SEED, &mut hashes)?;
    Ok(hashes.into_iter().map(|hash| (hash % partitions as u64) as u32).collect())
}

/// Splits rows by the partition of their keys, which are the columns at `keys`.
pub(crate) fn split(rows: &RecordBatch, keys: &[usize], partitions: usize) -> Result<Vec<(usize, RecordBatch)>> {
    if partitions == 1 || keys.is_empty() {
        return Ok(vec![(0, rows.clone())]);
    }
    let keys: Vec<ArrayRef> = keys.iter().map(|key| rows.column(*key).clone()).collect();
    let mut indexes: Vec<Vec<u32>> = vec![Vec::new(); partitions];
    for (row, partition) in partition_of(&keys, partitions)?.into_iter().enumerate() {
        indexes[partition as usize].push(row as u32);
    }
    indexes
        .into_iter()
        .enumerate()
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(partition, indexes)| Ok((partition, take_record_batch(rows, &UInt32Array::from(indexes))?)))
        .collect()
}

/// Which of these event times, `span` microseconds later, the watermark has reached. NULL never is.
pub(crate) fn expired(times: &ArrayRef, span: i64, watermark_ms: i64) -> Result<BooleanArray> {
    let at = TimestampMicrosecondArray::new_scalar(expiry_at(span, watermark_ms));
    let times = match times.data_type() {
        DataType::Timestamp(_, None) => times.clone(),
        // The zone of a type does not matter for instants.
        _ => Arc::new(
            as_timestamp_microsecond_array(times)?
                .clone()
                .with_data_type(DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, None)),
        ),
    };
    let reached = lt_eq(&times, &at)?;
    Ok(if reached.nulls().is_some() { prep_null_mask_filter(&reached) } else { reached })
}

/// The greatest value of the event-time key whose group ends by the watermark.
pub(crate) fn expiry_at(span: i64, watermark_ms: i64) -> i64 {
    watermark_ms.saturating_mul(1_000).saturating_sub(span)
}

/// A stateful aggregate, apart from any batch.
#[derive(Debug)]
pub(crate) struct Aggregation {
    /// Number of the operator.
    pub(crate) operator: usize,
    /// Number of its state.
    pub(crate) state: usize,
    /// The watermark that its input has, against that of the batch, in milliseconds.
    pub(crate) shift_ms: i64,
    /// How many columns are the key.
    pub(crate) keys: usize,
    /// Whether the last two of them are the start and the end of a session: such are merged by [`super::sessions`].
    pub(crate) sessions: bool,
    pub(crate) functions: Vec<Arc<AggregateFunctionExpr>>,
    /// The keys, then the state of each function: what partial aggregation gives and what is stored.
    pub(crate) state_schema: SchemaRef,
    /// The keys, then the results.
    pub(crate) result_schema: SchemaRef,
    pub(crate) event: Option<EventKey>,
    /// Per key the size of the window that starts there, in microseconds, where one does.
    pub(crate) windows: Vec<Option<i64>>,
    pub(crate) mode: OutputMode,
}

impl Aggregation {
    /// Runs one partition of the state through one batch. `partial` are the partial aggregates of the batch in a fixed order. Gives
    /// rows in the state's schema of which [`Aggregation::results`] makes the output.
    pub(crate) fn run(
        &self,
        partial: Vec<RecordBatch>,
        state: &mut dyn StatePartition,
        info: &BatchInfo,
        progress: &mut OperatorProgress,
    ) -> Result<Vec<RecordBatch>> {
        let partial = self.drop_late(partial, info, progress)?;
        let touched = if self.keys == 0 { self.merge_global(&partial, state)? } else { self.merge(&partial, state)? };
        let updated = touched.as_ref().map_or(0, RecordBatch::num_rows) as u64;

        let mut removed = 0;
        let mut emitted = match self.mode {
            OutputMode::Append => Vec::new(),
            OutputMode::Update => touched.into_iter().collect(),
            OutputMode::Complete => state.scan().map_err(external)?,
        };
        if let Some(event) = self.event {
            let due = state.due(expiry_at(event.span, info.watermark_ms)).map_err(external)?;
            for rows in &due {
                state.remove(&rows.columns()[..self.keys]).map_err(external)?;
                removed += rows.num_rows() as u64;
            }
            if self.mode == OutputMode::Append {
                emitted = due;
            }
        }
        progress.rows_updated += updated;
        progress.rows_removed += removed;
        progress.rows_total += state.rows();
        progress.memory_bytes += state.bytes();
        Ok(emitted)
    }

    /// The output for rows of the state.
    pub(crate) fn results(&self, state: &RecordBatch) -> Result<RecordBatch> {
        let rows = state.num_rows();
        let mut columns = state.columns()[..self.keys].to_vec();
        if self.keys == 0 {
            for (function, range) in self.state_ranges()? {
                let mut accumulator = function.create_accumulator()?;
                accumulator.merge_batch(&state.columns()[range])?;
                columns.push(accumulator.evaluate()?.to_array()?);
            }
        } else {
            let groups: Vec<usize> = (0..rows).collect();
            for (function, range) in self.state_ranges()? {
                let mut accumulator = groups_accumulator(function)?;
                accumulator.merge_batch(&state.columns()[range], &groups, rows)?;
                columns.push(accumulator.evaluate(EmitTo::All)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.result_schema.clone(), columns, &options)?)
    }

    /// Leaves out groups that ended by the late watermark, and counts them.
    fn drop_late(
        &self,
        partial: Vec<RecordBatch>,
        info: &BatchInfo,
        progress: &mut OperatorProgress,
    ) -> Result<Vec<RecordBatch>> {
        let Some(event) = self.event else { return Ok(partial) };
        let mut late_groups: Option<Box<dyn GroupValues>> = None;
        let mut groups = Vec::new();
        let mut kept = Vec::with_capacity(partial.len());
        for rows in partial {
            let late = expired(rows.column(event.key), event.span, info.late_watermark_ms)?;
            if late.true_count() == 0 {
                kept.push(rows);
                continue;
            }
            // A group of several input partitions counts once.
            let dropped = filter_record_batch(&rows, &late)?;
            let seen = match &mut late_groups {
                Some(seen) => seen,
                none => none.insert(self.group_values()?),
            };
            groups.clear();
            seen.intern(&dropped.columns()[..self.keys], &mut groups)?;
            kept.push(filter_record_batch(&rows, &not(&late)?)?);
        }
        progress.rows_dropped_by_watermark += late_groups.map_or(0, |seen| seen.len()) as u64;
        Ok(kept)
    }

    /// Merges partial aggregates into the stored ones; gives the new rows of the groups that they touch.
    fn merge(&self, partial: &[RecordBatch], state: &mut dyn StatePartition) -> Result<Option<RecordBatch>> {
        let mut seen = self.group_values()?;
        let mut groups_of = Vec::with_capacity(partial.len());
        for rows in partial {
            let mut groups = Vec::new();
            seen.intern(&rows.columns()[..self.keys], &mut groups)?;
            groups_of.push(groups);
        }
        let groups = seen.len();
        if groups == 0 {
            return Ok(None);
        }
        let mut columns = seen.emit(EmitTo::All)?;
        let (owners, stored) = state.get(&columns).map_err(external)?;
        // The stored rows first: aggregates that depend on the order (first, last, collect_list) stay right. All at once: an accumulator
        // takes each group that it is told of for one that has a row.
        let mut group_of: Vec<usize> = owners.values().iter().map(|group| *group as usize).collect();
        group_of.extend(groups_of.iter().flatten());
        let rows: Vec<&RecordBatch> = std::iter::once(&stored).chain(partial).collect();
        let states = concat_batches(&self.state_schema, rows)?;
        for (function, range) in self.state_ranges()? {
            let mut accumulator = groups_accumulator(function)?;
            accumulator.merge_batch(&states.columns()[range], &group_of, groups)?;
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        let rows = RecordBatch::try_new(self.state_schema.clone(), columns)?;
        state.put(&rows).map_err(external)?;
        Ok(Some(rows))
    }

    /// The same for an aggregate without keys, which has one row, always.
    fn merge_global(&self, partial: &[RecordBatch], state: &mut dyn StatePartition) -> Result<Option<RecordBatch>> {
        if partial.is_empty() {
            return Ok(None);
        }
        let (_, stored) = state.get(&[]).map_err(external)?;
        let mut columns = Vec::with_capacity(self.state_schema.fields().len());
        for (function, range) in self.state_ranges()? {
            let mut accumulator: Box<dyn Accumulator> = function.create_accumulator()?;
            for rows in std::iter::once(&stored).chain(partial).filter(|rows| rows.num_rows() > 0) {
                accumulator.merge_batch(&rows.columns()[range.clone()])?;
            }
            for value in accumulator.state()? {
                columns.push(value.to_array()?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        let rows = RecordBatch::try_new_with_options(self.state_schema.clone(), columns, &options)?;
        state.put(&rows).map_err(external)?;
        Ok(Some(rows))
    }

    /// A table of the groups seen.
    fn group_values(&self) -> Result<Box<dyn GroupValues>> {
        let keys: Vec<usize> = (0..self.keys).collect();
        new_group_values(Arc::new(self.state_schema.project(&keys)?), &GroupOrdering::None)
    }

    /// Per function the columns of its state.
    pub(crate) fn state_ranges(&self) -> Result<Vec<(&Arc<AggregateFunctionExpr>, std::ops::Range<usize>)>> {
        let mut start = self.keys;
        let mut ranges = Vec::with_capacity(self.functions.len());
        for function in &self.functions {
            let end = start + function.state_fields()?.len();
            ranges.push((function, start..end));
            start = end;
        }
        if start != self.state_schema.fields().len() {
            return internal_err!("the state of operator {} has {start} columns, not as planned", self.operator);
        }
        Ok(ranges)
    }
}

pub(crate) fn groups_accumulator(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = function.clone();
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int64Array, StringArray};

    #[test]
    fn every_key_has_one_partition() {
        let keys: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter((0..1000).map(|i| (i % 7 != 0).then_some(i % 100)))),
            Arc::new(StringArray::from_iter_values((0..1000).map(|i| format!("sensor-{}", i % 10)))),
        ];
        let all = partition_of(&keys, 4).unwrap();
        let mut seen = std::collections::HashMap::new();
        for (row, partition) in all.iter().enumerate() {
            let key = (keys[0].is_valid(row).then_some(row % 100), row % 10);
            assert_eq!(seen.entry(key).or_insert(*partition), partition);
        }
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(partition_of(&[], 4).unwrap(), [0]);
    }

    #[test]
    fn splitting_keeps_every_row_where_its_key_belongs() {
        let schema = datafusion::arrow::datatypes::Schema::new(vec![datafusion::arrow::datatypes::Field::new(
            "k",
            DataType::Int64,
            true,
        )]);
        let rows =
            RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from_iter_values(0..100))]).unwrap();
        let parts = split(&rows, &[0], 3).unwrap();
        assert_eq!(parts.iter().map(|(_, rows)| rows.num_rows()).sum::<usize>(), 100);
        for (partition, rows) in parts {
            assert!(partition_of(rows.columns(), 3).unwrap().iter().all(|p| *p as usize == partition));
        }
    }

    #[test]
    fn an_event_time_is_expired_when_the_watermark_reaches_the_end() {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(0), Some(1), None, Some(i64::MIN)]));
        let expired = expired(&times, 5_000, 5).unwrap();
        assert_eq!(expired.iter().collect::<Vec<_>>(), [Some(true), Some(false), Some(false), Some(true)]);
    }
}
