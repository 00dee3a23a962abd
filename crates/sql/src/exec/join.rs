//! The join of two streams: each side's new rows meet the rows that the other side remembers, and are remembered for those to come.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use datafusion::arrow::compute::{
    and_not, concat_batches, filter, filter_record_batch, not, or, prep_null_mask_filter, take, take_record_batch,
};
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, JoinType, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::{TryStreamExt, stream};
use perennial_core::layout::{Content, OperatorLayout};
use perennial_core::plan::{BatchInfo, OperatorProgress};
use perennial_core::state::StateSpec;

use super::exchange::Exchange;
use super::join_buffer::{Buffer, Keyed, Layout, event_times};
use super::merge::{expired, expiry_at};
use super::stateful::Stateful;
use crate::batch::Batch;
use crate::logical::join::{Expiry, preserves};

/// How many pairs of rows are looked at together.
const PAIRS_PER_BATCH: usize = 16_384;

const LEFT: usize = 0;
const RIGHT: usize = 1;

/// A join of two streams, apart from any batch.
#[derive(Debug)]
pub(crate) struct SymmetricJoin {
    /// Number of the operator.
    pub(crate) operator: usize,
    /// Number of the left side's state; the right side's is the next one.
    pub(crate) state: usize,
    /// The watermark that its inputs have, against that of the batch, in milliseconds.
    pub(crate) shift_ms: i64,
    pub(crate) join_type: JoinType,
    pub(crate) sides: [JoinSide; 2],
    /// What must hold for two rows together; its columns are those of the left input, then those of the right one.
    pub(crate) filter: Option<PairFilter>,
    /// The columns of the result.
    pub(crate) schema: SchemaRef,
}

/// One side of a [`SymmetricJoin`]. Columns are indexes of its input.
#[derive(Debug)]
pub(crate) struct JoinSide {
    pub(crate) layout: Layout,
    /// How many columns go on.
    pub(crate) width: usize,
    /// The event time, where rows can be late.
    pub(crate) event: Option<usize>,
    pub(crate) expiry: Option<Expiry>,
    /// What a row must fulfil by itself to have matches.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// Whether no other stateful operator is below.
    pub(crate) first: bool,
}

/// A condition over a row of each side.
#[derive(Debug)]
pub(crate) struct PairFilter {
    predicate: Arc<dyn PhysicalExpr>,
    /// The columns that it reads: the side and the index there.
    columns: Vec<(usize, usize)>,
    schema: SchemaRef,
}

impl PairFilter {
    /// `predicate` is over the columns of `left`, then those of `right`.
    pub(crate) fn new(predicate: Arc<dyn PhysicalExpr>, left: &Schema, right: &Schema) -> Result<Self> {
        let mut read: Vec<usize> = collect_columns(&predicate).iter().map(Column::index).collect();
        read.sort_unstable();
        let width = left.fields().len();
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        for index in &read {
            let (side, index, field) = match index.checked_sub(width) {
                Some(index) => (RIGHT, index, right.field(index)),
                None => (LEFT, *index, left.field(*index)),
            };
            columns.push((side, index));
            fields.push(Field::clone(field).with_nullable(true));
        }
        let predicate = with_columns(predicate, &read)?;
        Ok(Self { predicate, columns, schema: Arc::new(Schema::new(fields)) })
    }

    /// Which of these pairs fulfil it.
    fn holds(&self, rows: [&RecordBatch; 2], pairs: [&UInt32Array; 2]) -> Result<BooleanArray> {
        let columns =
            self.columns.iter().map(|(side, index)| Ok(take(rows[*side].column(*index), pairs[*side], None)?));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(pairs[0].len()));
        let pairs = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        is_true(&self.predicate, &pairs)
    }
}

/// An expression over those columns only that it reads; `read` are their indexes before, ascending.
fn with_columns(expr: Arc<dyn PhysicalExpr>, read: &[usize]) -> Result<Arc<dyn PhysicalExpr>> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    expr.transform_down(|expr| match expr.downcast_ref::<Column>() {
        Some(column) => match read.binary_search(&column.index()) {
            Ok(index) => Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as Arc<dyn PhysicalExpr>)),
            Err(_) => internal_err!("a join's condition reads a column that is not there"),
        },
        None => Ok(Transformed::no(expr)),
    })
    .map(|transformed| transformed.data)
}

fn is_true(predicate: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<BooleanArray> {
    let values = predicate.evaluate(rows)?.into_array(rows.num_rows())?;
    let values = values.as_boolean();
    Ok(if values.nulls().is_some() { prep_null_mask_filter(values) } else { values.clone() })
}

/// Pairs of rows: of the batch, and of the state of the other side.
type Pairs = (UInt32Array, UInt32Array);

/// The rows of a batch beside the rows of the other side's state that have the same keys.
struct Candidates {
    /// Per row of the batch its key.
    keys: Vec<u32>,
    /// Per key where its rows begin in `stored`; one more for the end.
    starts: Vec<u32>,
    /// Rows of the state, key by key.
    stored: Vec<u32>,
    /// The next pair: the row of the batch, and how many rows of the state it has met.
    row: usize,
    met: u32,
}

impl Candidates {
    fn new(keys: Vec<u32>, distinct: usize, of_stored: &[u32]) -> Self {
        let mut starts = vec![0u32; distinct + 1];
        of_stored.iter().for_each(|key| starts[*key as usize + 1] += 1);
        (0..distinct).for_each(|key| starts[key + 1] += starts[key]);
        let mut next = starts.clone();
        let mut stored = vec![0; of_stored.len()];
        for (row, key) in of_stored.iter().enumerate() {
            let at = &mut next[*key as usize];
            stored[*at as usize] = row as u32;
            *at += 1;
        }
        Self { keys, starts, stored, row: 0, met: 0 }
    }
}

impl Iterator for Candidates {
    type Item = Pairs;

    fn next(&mut self) -> Option<Pairs> {
        let (mut new, mut stored) = (Vec::new(), Vec::new());
        while let Some(key) = self.keys.get(self.row) {
            let (start, end) = (self.starts[*key as usize] + self.met, self.starts[*key as usize + 1]);
            let count = ((end - start) as usize).min(PAIRS_PER_BATCH - new.len());
            let rows = &self.stored[start as usize..start as usize + count];
            new.resize(new.len() + count, self.row as u32);
            stored.extend_from_slice(rows);
            if start as usize + count < end as usize {
                self.met += count as u32;
                break;
            }
            self.row += 1;
            self.met = 0;
        }
        (!new.is_empty()).then(|| (new.into(), stored.into()))
    }
}

/// Rows of the result, made when they are asked for.
type Rows = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

impl SymmetricJoin {
    /// Runs one partition of both states through one batch. `rows` are those of the batch in a fixed order.
    fn run(
        self: &Arc<Self>,
        rows: [RecordBatch; 2],
        mut buffers: [Buffer<'_>; 2],
        info: &BatchInfo,
        counted: &mut Counted,
    ) -> Result<Vec<Rows>> {
        let mut output = Vec::new();
        let [left, right] = rows;
        // A left row of a semi join that has a match in its own batch need not be remembered: so the right side comes first.
        let order = match self.join_type {
            JoinType::LeftSemi => [(RIGHT, right), (LEFT, left)],
            _ => [(LEFT, left), (RIGHT, right)],
        };
        for (side, rows) in order {
            let rows = self.drop_late(side, rows, info, counted)?;
            let rows = self.drop_unmatchable(side, rows, &mut output)?;
            if rows.num_rows() > 0 {
                self.meet(side, &rows, &mut buffers, info, &mut output, counted)?;
            }
        }
        for side in [LEFT, RIGHT] {
            self.evict(side, &mut buffers[side], info, &mut output, counted)?;
        }
        for buffer in &buffers {
            counted.progress.rows_total += buffer.state.rows();
            counted.progress.memory_bytes += buffer.state.bytes();
        }
        Ok(output)
    }

    fn drop_late(
        &self,
        side: usize,
        rows: RecordBatch,
        info: &BatchInfo,
        counted: &mut Counted,
    ) -> Result<RecordBatch> {
        let mut late = 0;
        let mut kept = rows;
        if let Some(event) = self.sides[side].event {
            let is_late = expired(&event_times(kept.column(event))?, 0, info.late_watermark_ms)?;
            late = is_late.true_count();
            if late > 0 {
                kept = filter_record_batch(&kept, &not(&is_late)?)?;
            }
        }
        counted.progress.rows_dropped_by_watermark += late as u64;
        if self.sides[side].first {
            counted.late += late;
            counted.held += kept.num_rows();
        }
        Ok(kept)
    }

    /// Rows that fail a condition on their own columns have no match, ever: if they come out without one, then at once.
    fn drop_unmatchable(&self, side: usize, rows: RecordBatch, output: &mut Vec<Rows>) -> Result<RecordBatch> {
        let Some(predicate) = &self.sides[side].filter else { return Ok(rows) };
        let matchable = is_true(predicate, &rows)?;
        if matchable.true_count() == rows.num_rows() {
            return Ok(rows);
        }
        if preserves(self.join_type, side) {
            output.push(once(self.alone(side, &filter_record_batch(&rows, &not(&matchable)?)?)?));
        }
        Ok(filter_record_batch(&rows, &matchable)?)
    }

    /// The new rows of a side meet those that the other side remembers, and are remembered themselves.
    fn meet(
        self: &Arc<Self>,
        side: usize,
        rows: &RecordBatch,
        buffers: &mut [Buffer<'_>; 2],
        info: &BatchInfo,
        output: &mut Vec<Rows>,
        counted: &mut Counted,
    ) -> Result<()> {
        let other = 1 - side;
        let keyed = Keyed::new(&self.sides[side].layout.keys_of(rows))?;
        let (stored, of_stored) = buffers[other].find(&keyed.keys)?;
        let met = self.sides[other].layout.decode(&stored)?;
        let distinct = keyed.keys.first().map_or(0, |column| column.len());
        let candidates = Candidates::new(keyed.of_row.clone(), distinct, &of_stored);

        let flags_needed = self.join_type != JoinType::Inner;
        let mut matched = vec![false; rows.num_rows()];
        if flags_needed {
            let mut met_matched = vec![false; met.num_rows()];
            let mut matches = Vec::new();
            for pairs in candidates {
                let pairs = self.matching(side, rows, &met, pairs)?;
                pairs.0.values().iter().for_each(|row| matched[*row as usize] = true);
                pairs.1.values().iter().for_each(|row| met_matched[*row as usize] = true);
                matches.push(pairs);
            }
            if self.join_type == JoinType::LeftSemi {
                if side == LEFT {
                    let matched = BooleanArray::from(matched.clone());
                    output.push(once(self.result(&filter_record_batch(rows, &matched)?, None)?));
                } else {
                    let met_matched = BooleanArray::from(met_matched);
                    output.push(once(self.result(&filter_record_batch(&met, &met_matched)?, None)?));
                    counted.progress.rows_removed += met_matched.true_count() as u64;
                    buffers[LEFT].remove(&filter_record_batch(&stored, &met_matched)?)?;
                }
            } else {
                if preserves(self.join_type, other) {
                    let before = self.sides[other].layout.matched(&stored)?;
                    let newly = and_not(&BooleanArray::from(met_matched), before)?;
                    buffers[other].set_matched(&filter_record_batch(&stored, &newly)?)?;
                }
                output.push(self.joined(side, rows.clone(), met, matches.into_iter().map(Ok)));
            }
        } else {
            let (join, new, old) = (self.clone(), rows.clone(), met.clone());
            let matches = candidates.map(move |pairs| join.matching(side, &new, &old, pairs));
            output.push(self.joined(side, rows.clone(), met, matches));
        }

        let matched = BooleanArray::from(matched);
        let remembered = self.remembered(side, rows, &matched, info)?;
        let added = match remembered {
            None => {
                buffers[side].add(rows, &keyed, &matched)?;
                rows.num_rows()
            }
            Some(remembered) => {
                let rows = filter_record_batch(rows, &remembered)?;
                let of_row = keyed.of_row.iter().zip(remembered.values());
                let of_row = of_row.filter(|(_, remembered)| *remembered).map(|(key, _)| *key).collect();
                let matched = filter(&matched, &remembered)?;
                buffers[side].add(&rows, &Keyed { keys: keyed.keys, of_row }, matched.as_boolean())?;
                rows.num_rows()
            }
        };
        counted.progress.rows_updated += added as u64;
        Ok(())
    }

    /// Which of the new rows of a side are remembered; nothing says all. A right row that would go away in this batch has met all
    /// that it can meet, unless it must still come out without a match.
    fn remembered(
        &self,
        side: usize,
        rows: &RecordBatch,
        matched: &BooleanArray,
        info: &BatchInfo,
    ) -> Result<Option<BooleanArray>> {
        if side == LEFT {
            return Ok(if self.join_type == JoinType::LeftSemi { Some(not(matched)?) } else { None });
        }
        let (Some(expiry), Some(times)) = (self.sides[side].expiry, self.sides[side].layout.expiry_of(rows)?) else {
            return Ok(None);
        };
        let stays = not(&expired(&times, 0, info.watermark_ms.saturating_add(expiry.lead_ms))?)?;
        Ok(Some(if preserves(self.join_type, side) { or(&stays, &not(matched)?)? } else { stays }))
    }

    /// Forgets the rows that can find no more matches; those that never had one come out where their side is preserved.
    fn evict(
        &self,
        side: usize,
        buffer: &mut Buffer<'_>,
        info: &BatchInfo,
        output: &mut Vec<Rows>,
        counted: &mut Counted,
    ) -> Result<()> {
        let Some(expiry) = self.sides[side].expiry else { return Ok(()) };
        let gone = buffer.due(expiry_at(0, info.watermark_ms.saturating_add(expiry.lead_ms)))?;
        if preserves(self.join_type, side) {
            let unmatched = not(buffer.layout.matched(&gone)?)?;
            let unmatched = buffer.layout.decode(&filter_record_batch(&gone, &unmatched)?)?;
            output.push(once(self.alone(side, &unmatched)?));
        }
        counted.progress.rows_removed += gone.num_rows() as u64;
        buffer.remove(&gone)
    }

    /// Those of the candidates that fulfil the join's condition. `side` is that of the new rows.
    fn matching(&self, side: usize, new: &RecordBatch, stored: &RecordBatch, pairs: Pairs) -> Result<Pairs> {
        let Some(condition) = &self.filter else { return Ok(pairs) };
        let holds = match side {
            LEFT => condition.holds([new, stored], [&pairs.0, &pairs.1])?,
            _ => condition.holds([stored, new], [&pairs.1, &pairs.0])?,
        };
        if holds.true_count() == holds.len() {
            return Ok(pairs);
        }
        let kept = |rows: &UInt32Array| Ok::<_, DataFusionError>(filter(rows, &holds)?.as_primitive().clone());
        Ok((kept(&pairs.0)?, kept(&pairs.1)?))
    }

    /// The result for matches.
    fn joined(
        self: &Arc<Self>,
        side: usize,
        new: RecordBatch,
        stored: RecordBatch,
        matches: impl Iterator<Item = Result<Pairs>> + Send + 'static,
    ) -> Rows {
        let join = self.clone();
        Box::new(matches.map(move |pairs| {
            let pairs = pairs?;
            let (new, stored) = (take_record_batch(&new, &pairs.0)?, take_record_batch(&stored, &pairs.1)?);
            if side == LEFT { join.result(&new, Some(&stored)) } else { join.result(&stored, Some(&new)) }
        }))
    }

    /// The result for rows of one side without a match.
    fn alone(&self, side: usize, rows: &RecordBatch) -> Result<RecordBatch> {
        let nulls = self.schema.fields().iter().map(|field| new_null_array(field.data_type(), rows.num_rows()));
        let width = self.sides[LEFT].width;
        let own = rows.columns()[..self.sides[side].width].iter().cloned();
        let columns = match side {
            LEFT => own.chain(nulls.skip(width)).collect(),
            _ => nulls.take(width).chain(own).collect(),
        };
        self.batch(columns, rows.num_rows())
    }

    /// The result for rows of both sides, one beside the other; for those of the left side alone where the result has only these.
    fn result(&self, left: &RecordBatch, right: Option<&RecordBatch>) -> Result<RecordBatch> {
        let mut columns = left.columns()[..self.sides[LEFT].width].to_vec();
        columns.extend(right.into_iter().flat_map(|right| right.columns()[..self.sides[RIGHT].width].to_vec()));
        self.batch(columns, left.num_rows())
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}

fn once(rows: RecordBatch) -> Rows {
    Box::new(std::iter::once(Ok(rows)))
}

/// What became of the rows of a batch in one partition.
#[derive(Debug, Default)]
struct Counted {
    progress: OperatorProgress,
    held: usize,
    late: usize,
}

/// Runs a [`SymmetricJoin`] with one partition per partition of the states.
#[derive(Debug)]
pub(crate) struct SymmetricJoinExec {
    inputs: [Arc<dyn ExecutionPlan>; 2],
    join: Arc<SymmetricJoin>,
    exchanges: [Exchange; 2],
    properties: Arc<PlanProperties>,
}

impl SymmetricJoinExec {
    pub(crate) fn new(inputs: [Arc<dyn ExecutionPlan>; 2], join: Arc<SymmetricJoin>, partitions: usize) -> Self {
        let properties = super::properties(join.schema.clone(), partitions);
        Self { inputs, join, exchanges: Default::default(), properties }
    }
}

impl Stateful for SymmetricJoinExec {
    fn operator(&self) -> usize {
        self.join.operator
    }

    fn name(&self) -> &'static str {
        "symmetricHashJoin"
    }

    fn state(&self) -> Vec<StateSpec> {
        let sides = self.join.sides.iter().enumerate();
        sides.map(|(side, of)| of.layout.spec(self.join.state + side, Stateful::name(self))).collect()
    }

    fn spread_keys(&self, state: &StateSpec) -> usize {
        // The rows of a key stay together, whatever their slots.
        state.keys - 1
    }

    fn layout(&self) -> OperatorLayout {
        let [left, right] = &self.join.sides;
        let content = Content::Join(Box::new([
            left.layout.describe(self.join.join_type == JoinType::LeftSemi),
            right.layout.describe(false),
        ]));
        OperatorLayout { name: Stateful::name(self).to_owned(), state: self.join.state, content }
    }

    fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!("{:?} join", self.join.join_type)];
        for side in &self.join.sides {
            lines.extend(side.filter.iter().map(|filter| format!("where {filter}")));
            lines.extend(
                side.expiry.map(|expiry| format!("ends {} ms before column {}", -expiry.lead_ms, expiry.column)),
            );
        }
        lines.extend(self.join.filter.iter().map(|filter| format!("where {}", filter.predicate)));
        lines
    }

    fn wants_no_data_batch(&self) -> bool {
        self.join.sides.iter().any(|side| side.expiry.is_some())
    }
}

impl DisplayAs for SymmetricJoinExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "SymmetricJoinExec: operator {}, {:?}", self.join.operator, self.join.join_type)
    }
}

impl ExecutionPlan for SymmetricJoinExec {
    fn name(&self) -> &str {
        "SymmetricJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false, false]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok(inputs) = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children) else {
            return internal_err!("SymmetricJoinExec has two inputs");
        };
        let partitions = self.properties.partitioning.partition_count();
        Ok(Arc::new(Self::new(inputs, self.join.clone(), partitions)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for filter in self.join.sides.iter().filter_map(|side| side.filter.as_ref()) {
            if f(filter)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        match &self.join.filter {
            Some(filter) => f(&filter.predicate),
            None => Ok(TreeNodeRecursion::Continue),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let partitions = self.properties.partitioning.partition_count();
        let (inputs, join, exchanges) = (self.inputs.clone(), self.join.clone(), self.exchanges.clone());
        let rows = async move {
            let side = async |side: usize| {
                let keys = join.sides[side].layout.keys();
                let rows = exchanges[side].take(&inputs[side], keys, (partition, partitions), &context).await?;
                concat_batches(&inputs[side].schema(), &rows).map_err(DataFusionError::from)
            };
            let (left, right) = futures::try_join!(side(LEFT), side(RIGHT))?;
            let mut counted = Counted::default();
            let output = {
                let mut left_state = batch.state(join.state, partition)?;
                let mut right_state = batch.state(join.state + 1, partition)?;
                let buffers = [
                    Buffer { layout: &join.sides[LEFT].layout, state: &mut *left_state },
                    Buffer { layout: &join.sides[RIGHT].layout, state: &mut *right_state },
                ];
                join.run([left, right], buffers, &batch.info_at(join.shift_ms), &mut counted)?
            };
            batch.counters.late(counted.late);
            batch.counters.held(counted.held);
            batch.counters.progress(join.operator, &counted.progress);
            Ok::<_, DataFusionError>(stream::iter(output.into_iter().flatten()))
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(rows).try_flatten())))
    }
}
