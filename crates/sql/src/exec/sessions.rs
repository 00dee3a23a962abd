//! Merging the sessions of a batch with the stored ones, one partition of the state at a time.
//!
//! A session has a row in the first state, by its group and its start: its end, and the state of each function. The second state has a row
//! per group: from when to when each of its sessions lasts. That row tells which sessions a new row touches, so that no other session is
//! read or written, and no state is searched.

use std::sync::Arc;

use datafusion::arrow::array::builder::{Int64Builder, ListBuilder};
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch, not, take_arrays};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use perennial_core::plan::{BatchInfo, OperatorProgress};
use perennial_core::sink::OutputMode;
use perennial_core::state::StatePartition;

use super::merge::{Aggregation, expired, expiry_at, groups_accumulator};
use crate::error::external;

/// The two states of one partition.
pub(crate) struct SessionState<'a> {
    /// By group and start: the sessions.
    pub(crate) sessions: &'a mut dyn StatePartition,
    /// By group: starts and ends.
    pub(crate) groups: &'a mut dyn StatePartition,
}

/// The columns of the second state, for groups with these keys: the keys, and the start and the end of each session in turn, in
/// microseconds, ascending.
pub(crate) fn groups_schema(state_schema: &SchemaRef, keys: usize) -> SchemaRef {
    let bounds = Field::new("bounds", DataType::new_list(DataType::Int64, false), false);
    let fields = state_schema.fields()[..keys].iter().cloned().chain([Arc::new(bounds)]);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Runs one partition of the state through one batch, as [`Aggregation::run`].
pub(crate) fn run(
    aggregation: &Aggregation,
    partial: Vec<RecordBatch>,
    mut state: SessionState,
    info: &BatchInfo,
    progress: &mut OperatorProgress,
) -> Result<Vec<RecordBatch>> {
    let rows = concat_batches(&aggregation.state_schema, &partial)?;
    let rows = drop_late(aggregation, rows, info, progress)?;
    if rows.num_rows() > 0 {
        merge(aggregation, &rows, &mut state, progress)?;
    }
    let mut emitted = Vec::new();
    if aggregation.mode == OutputMode::Complete {
        emitted = state.sessions.scan().map_err(external)?;
    } else if aggregation.event.is_some() {
        emitted = remove_ended(aggregation, &mut state, expiry_at(0, info.watermark_ms))?;
        progress.rows_removed += emitted.iter().map(|rows| rows.num_rows() as u64).sum::<u64>();
    }
    progress.rows_total += state.sessions.rows();
    progress.memory_bytes += state.sessions.bytes() + state.groups.bytes();
    Ok(emitted)
}

/// Leaves out sessions of the batch that ended by the late watermark, each judged by itself, and counts them.
fn drop_late(
    aggregation: &Aggregation,
    rows: RecordBatch,
    info: &BatchInfo,
    progress: &mut OperatorProgress,
) -> Result<RecordBatch> {
    let Some(event) = aggregation.event else { return Ok(rows) };
    let late = expired(rows.column(event.key), 0, info.late_watermark_ms)?;
    progress.rows_dropped_by_watermark += late.true_count() as u64;
    if late.true_count() == 0 { Ok(rows) } else { Ok(filter_record_batch(&rows, &not(&late)?)?) }
}

/// A part of a session: a session of the batch, or a stored one.
#[derive(Clone, Copy)]
enum Part {
    /// Its row in the batch.
    New(usize),
    /// Its number among those that are read.
    Stored(usize),
}

/// Which sessions there are now.
#[derive(Default)]
struct Plan {
    /// Stored sessions that go into others: their groups and starts.
    read: (Vec<u32>, Vec<i64>),
    /// Those of them whose start is no longer the start of a session.
    gone: (Vec<u32>, Vec<i64>),
    /// Sessions that are new or other than before: their groups, starts and ends.
    merged: (Vec<u32>, Vec<i64>, Vec<i64>),
    /// What they are made of, in the order of time, and to which of them each part belongs.
    parts: Vec<Part>,
    owners: Vec<usize>,
    /// How many sessions the groups of the batch have.
    sessions: u64,
}

fn merge(
    aggregation: &Aggregation,
    rows: &RecordBatch,
    state: &mut SessionState,
    progress: &mut OperatorProgress,
) -> Result<()> {
    let keys = aggregation.keys - 2;
    let key_schema = aggregation.state_schema.project(&(0..keys).collect::<Vec<_>>())?;
    let mut seen = new_group_values(Arc::new(key_schema), &GroupOrdering::None)?;
    let mut groups = Vec::with_capacity(rows.num_rows());
    seen.intern(&rows.columns()[..keys], &mut groups)?;
    let count = seen.len();
    let group_keys = seen.emit(EmitTo::All)?;

    let (owners, known) = state.groups.get(&group_keys).map_err(external)?;
    let mut bounds_of: Vec<Option<ArrayRef>> = vec![None; count];
    for (row, group) in owners.values().iter().enumerate() {
        bounds_of[*group as usize] = Some(known.column(keys).as_list::<i32>().value(row));
    }
    let starts = as_timestamp_microsecond_array(rows.column(keys))?.values();
    let ends = as_timestamp_microsecond_array(rows.column(keys + 1))?.values();
    let mut order: Vec<usize> = (0..rows.num_rows()).collect();
    order.sort_unstable_by_key(|row| (groups[*row], starts[*row], ends[*row], *row));

    let mut plan = Plan::default();
    let mut bounds = ListBuilder::new(Int64Builder::new()).with_field(Field::new_list_field(DataType::Int64, false));
    let mut rest = order.as_slice();
    for (group, stored) in bounds_of.iter().enumerate() {
        let (of_group, others) = rest.split_at(rest.partition_point(|row| groups[*row] == group));
        rest = others;
        let new = of_group.iter().map(|row| (starts[*row], ends[*row], *row));
        let stored = stored.as_ref().map_or(&[][..], |bounds| bounds.as_primitive::<Int64Type>().values());
        plan.add_group(group as u32, stored, new, bounds.values());
        bounds.append(true);
    }
    progress.rows_updated += plan.sessions;
    progress.rows_removed += plan.gone.0.len() as u64;

    let merged = merge_parts(aggregation, rows, &group_keys, &plan, state.sessions)?;
    state.sessions.put(&merged).map_err(external)?;
    if !plan.gone.0.is_empty() {
        let gone = session_keys(aggregation, &group_keys, plan.gone)?;
        state.sessions.remove(&gone).map_err(external)?;
    }
    let mut columns = group_keys;
    columns.push(Arc::new(bounds.finish()));
    let groups = RecordBatch::try_new(groups_schema(&aggregation.state_schema, keys), columns)?;
    state.groups.put(&groups).map_err(external)
}

impl Plan {
    /// Goes through the sessions of a group in the order of time. `stored` are the starts and ends of the stored ones, `new` those of
    /// the batch; all that then are go to `bounds`.
    fn add_group(
        &mut self,
        group: u32,
        stored: &[i64],
        new: impl Iterator<Item = (i64, i64, usize)>,
        bounds: &mut Int64Builder,
    ) {
        let mut stored = stored.chunks_exact(2).map(|bounds| (bounds[0], bounds[1])).peekable();
        let mut new = new.peekable();
        let mut session: Option<(i64, i64)> = None;
        let mut parts: Vec<(i64, Option<usize>)> = Vec::new();
        loop {
            let next_stored = stored.peek().copied();
            let next = match new.peek() {
                // Stored first: aggregates that depend on the order see them so.
                Some((start, ..)) if next_stored.is_none_or(|(stored, _)| *start < stored) => {
                    new.next().map(|(start, end, row)| (start, end, Some(row)))
                }
                _ => stored.next().map(|(start, end)| (start, end, None)),
            };
            let Some((start, end, row)) = next else { break };
            session = Some(match session {
                // A session ends where the next one may start: they are one.
                Some((first, last)) if start <= last => (first, last.max(end)),
                before => {
                    before.into_iter().for_each(|session| self.finish(group, session, &mut parts, bounds));
                    (start, end)
                }
            });
            parts.push((start, row));
        }
        session.into_iter().for_each(|session| self.finish(group, session, &mut parts, bounds));
    }

    /// Adds a session of which all parts are known: their starts, and their rows where they are of the batch.
    fn finish(
        &mut self,
        group: u32,
        (start, end): (i64, i64),
        parts: &mut Vec<(i64, Option<usize>)>,
        bounds: &mut Int64Builder,
    ) {
        bounds.append_slice(&[start, end]);
        self.sessions += 1;
        let session_start = start;
        if parts.iter().all(|(_, row)| row.is_none()) {
            return parts.clear();
        }
        let number = self.merged.0.len();
        self.merged.0.push(group);
        self.merged.1.push(start);
        self.merged.2.push(end);
        for (start, row) in parts.drain(..) {
            self.owners.push(number);
            match row {
                Some(row) => self.parts.push(Part::New(row)),
                None => {
                    self.parts.push(Part::Stored(self.read.0.len()));
                    self.read.0.push(group);
                    self.read.1.push(start);
                    if start != session_start {
                        self.gone.0.push(group);
                        self.gone.1.push(start);
                    }
                }
            }
        }
    }
}

/// The rows of the sessions that are new or other than before.
fn merge_parts(
    aggregation: &Aggregation,
    rows: &RecordBatch,
    group_keys: &[ArrayRef],
    plan: &Plan,
    sessions: &mut dyn StatePartition,
) -> Result<RecordBatch> {
    let wanted = plan.read.0.len();
    let stored = if wanted == 0 {
        RecordBatch::new_empty(aggregation.state_schema.clone())
    } else {
        sessions.get(&session_keys(aggregation, group_keys, plan.read.clone())?).map_err(external)?.1
    };
    if stored.num_rows() != wanted {
        return internal_err!(
            "{wanted} sessions are known to operator {}, {} of them are stored",
            aggregation.operator,
            stored.num_rows()
        );
    }
    let places: Vec<(usize, usize)> = plan
        .parts
        .iter()
        .map(|part| match part {
            Part::New(row) => (0, *row),
            Part::Stored(row) => (1, *row),
        })
        .collect();
    let parts = interleave_record_batch(&[rows, &stored], &places)?;

    let (groups, starts, ends) = &plan.merged;
    let mut columns = session_keys(aggregation, group_keys, (groups.clone(), starts.clone()))?;
    columns.push(times(aggregation, ends.clone()));
    for (function, range) in aggregation.state_ranges()? {
        let mut accumulator = groups_accumulator(function)?;
        accumulator.merge_batch(&parts.columns()[range], &plan.owners, groups.len())?;
        columns.extend(accumulator.state(EmitTo::All)?);
    }
    Ok(RecordBatch::try_new(aggregation.state_schema.clone(), columns)?)
}

/// The keys of sessions: those of their groups, and their starts.
fn session_keys(
    aggregation: &Aggregation,
    group_keys: &[ArrayRef],
    (groups, starts): (Vec<u32>, Vec<i64>),
) -> Result<Vec<ArrayRef>> {
    let mut keys = take_arrays(group_keys, &UInt32Array::from(groups), None)?;
    keys.push(times(aggregation, starts));
    Ok(keys)
}

/// Starts or ends as their columns have them.
fn times(aggregation: &Aggregation, micros: Vec<i64>) -> ArrayRef {
    let data_type = aggregation.state_schema.field(aggregation.keys - 1).data_type();
    Arc::new(TimestampMicrosecondArray::from(micros).with_data_type(data_type.clone()))
}

/// Takes the sessions that ended by `at` out of the state.
fn remove_ended(aggregation: &Aggregation, state: &mut SessionState, at: i64) -> Result<Vec<RecordBatch>> {
    let keys = aggregation.keys - 2;
    let due = state.sessions.due(at).map_err(external)?;
    if due.is_empty() {
        return Ok(due);
    }
    let key_schema = aggregation.state_schema.project(&(0..keys).collect::<Vec<_>>())?;
    let mut seen = new_group_values(Arc::new(key_schema), &GroupOrdering::None)?;
    for rows in &due {
        seen.intern(&rows.columns()[..keys], &mut Vec::new())?;
        state.sessions.remove(&rows.columns()[..=keys]).map_err(external)?;
    }
    let (_, known) = state.groups.get(&seen.emit(EmitTo::All)?).map_err(external)?;
    let mut bounds = ListBuilder::new(Int64Builder::new()).with_field(Field::new_list_field(DataType::Int64, false));
    let (mut left, mut empty) = (Vec::new(), Vec::new());
    let lists = known.column(keys).as_list::<i32>();
    for row in 0..known.num_rows() {
        let list: ArrayRef = lists.value(row);
        let list: &Int64Array = list.as_primitive();
        // Sessions are apart: those that ended come first.
        let stays = list.values().chunks_exact(2).position(|bounds| bounds[1] > at);
        match stays {
            Some(first) => {
                bounds.values().append_slice(&list.values()[2 * first..]);
                bounds.append(true);
                left.push(row as u32);
            }
            None => empty.push(row as u32),
        }
    }
    if !left.is_empty() {
        let mut columns = take_arrays(&known.columns()[..keys], &UInt32Array::from(left), None)?;
        columns.push(Arc::new(bounds.finish()));
        state.groups.put(&RecordBatch::try_new(known.schema(), columns)?).map_err(external)?;
    }
    if !empty.is_empty() {
        let gone = take_arrays(&known.columns()[..keys], &UInt32Array::from(empty), None)?;
        state.groups.remove(&gone).map_err(external)?;
    }
    Ok(due)
}
