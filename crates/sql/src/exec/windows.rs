//! Assigns windows to rows.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use datafusion::arrow::compute::{cast, filter_record_batch, is_not_null, take_arrays};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::StreamExt;

use super::one_input;
use crate::batch::Batch;
use crate::functions::window::WindowSpec;

/// Adds the start of the window to each row, once per window that the row is in.
#[derive(Debug)]
pub(crate) struct WindowsExec {
    input: Arc<dyn ExecutionPlan>,
    time: Arc<dyn PhysicalExpr>,
    spec: WindowSpec,
    /// Whether rows of the input are records of a source, so that the further rows of one count as multiplied.
    counts: bool,
    properties: Arc<PlanProperties>,
}

impl WindowsExec {
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        time: Arc<dyn PhysicalExpr>,
        spec: WindowSpec,
        counts: bool,
        schema: SchemaRef,
    ) -> Self {
        let properties = super::properties(schema, super::partitions(&input));
        Self { input, time, spec, counts, properties }
    }
}

impl DisplayAs for WindowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WindowsExec: {:?} of {}", self.spec, self.time)
    }
}

impl ExecutionPlan for WindowsExec {
    fn name(&self) -> &str {
        "WindowsExec"
    }

    one_input!(input);

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("WindowsExec has one input");
        }
        let input = children.swap_remove(0);
        Ok(Arc::new(Self::new(input, self.time.clone(), self.spec, self.counts, self.schema())))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        f(&self.time)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let (time, spec, counts, schema) = (self.time.clone(), self.spec, self.counts, self.schema());
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let (rows, further) = assign(&rows?, time.as_ref(), spec, &schema)?;
            if counts {
                batch.counters.multiplied(further);
            }
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// The rows with their windows, and how many rows there are beyond one per input row with a window.
fn assign(
    rows: &RecordBatch,
    time: &dyn PhysicalExpr,
    spec: WindowSpec,
    schema: &SchemaRef,
) -> Result<(RecordBatch, usize)> {
    let start_type = schema.field(schema.fields().len() - 1).data_type();
    let mut times = time.evaluate(rows)?.into_array(rows.num_rows())?;
    if times.data_type() != start_type {
        times = cast(&times, start_type)?;
    }
    let mut rows = rows.clone();
    if times.null_count() > 0 {
        // A row without a time has no window.
        let known = is_not_null(&times)?;
        rows = filter_record_batch(&rows, &known)?;
        times = datafusion::arrow::compute::filter(&times, &known)?;
    }
    let times = as_timestamp_microsecond_array(&times)?;

    if spec.slide == spec.size {
        // Rows come roughly in the order of time: most are in the window of the row before, and a division is saved.
        let mut window = 0..0;
        let starts = times.values().iter().map(|time| {
            if !window.contains(time) {
                let start = spec.last_start(*time);
                window = start..start.saturating_add(spec.size);
            }
            window.start
        });
        let starts = TimestampMicrosecondArray::from_iter_values(starts);
        return Ok((with_starts(rows.columns().to_vec(), starts, schema)?, 0));
    }
    let mut origins = Vec::with_capacity(times.len() * spec.windows_per_row() as usize);
    let mut starts = Vec::with_capacity(origins.capacity());
    let mut without = 0;
    for (row, time) in times.values().iter().enumerate() {
        let before = starts.len();
        let mut start = spec.last_start(*time);
        // Windows that still contain the moment; with a slide that does not divide the size their number varies.
        while start.saturating_add(spec.size) > *time && starts.len() - before < spec.windows_per_row() as usize {
            origins.push(row as u32);
            starts.push(start);
            start = start.saturating_sub(spec.slide);
        }
        without += usize::from(starts.len() == before);
    }
    let further = starts.len() - (times.len() - without);
    let columns = take_arrays(rows.columns(), &UInt32Array::from(origins), None)?;
    Ok((with_starts(columns, TimestampMicrosecondArray::from(starts), schema)?, further))
}

fn with_starts(
    mut columns: Vec<ArrayRef>,
    starts: TimestampMicrosecondArray,
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    let start_type = schema.field(schema.fields().len() - 1).data_type().clone();
    columns.push(Arc::new(starts.with_data_type(start_type)));
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
