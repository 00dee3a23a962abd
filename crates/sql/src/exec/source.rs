//! The leaf of a plan: an appearance of a source.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::{StreamExt, TryStreamExt, stream};

use crate::TableKind;
use crate::batch::{Batch, input_error};

/// The column with the number of each row in its batch, where rows are to be found.
pub(crate) const ROW_NUMBER: &str = "__row_number";

/// A source as a table. It has rows only inside a batch.
#[derive(Debug)]
pub(crate) struct StreamTable {
    source: String,
    columns: SchemaRef,
    partitions: usize,
    kind: TableKind,
    number: Option<usize>,
}

impl StreamTable {
    pub(crate) fn new(source: &str, columns: SchemaRef, partitions: usize, kind: TableKind) -> Self {
        Self { source: source.to_owned(), columns, partitions, kind, number: None }
    }

    /// The same source as input `number` of a plan.
    pub(crate) fn numbered(&self, number: usize) -> Self {
        Self {
            source: self.source.clone(),
            columns: self.columns.clone(),
            partitions: self.partitions,
            kind: self.kind,
            number: Some(number),
        }
    }

    /// The same input with [`ROW_NUMBER`] behind the columns of the source.
    pub(crate) fn with_row_numbers(&self) -> Self {
        let number: Arc<Field> = Arc::new(Field::new(ROW_NUMBER, DataType::UInt64, true));
        let columns: Vec<_> = self.columns.fields().iter().cloned().chain([number]).collect();
        Self {
            source: self.source.clone(),
            columns: Arc::new(Schema::new(columns)),
            partitions: self.partitions,
            kind: self.kind,
            number: self.number,
        }
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    pub(crate) fn number(&self) -> Option<usize> {
        self.number
    }

    pub(crate) fn kind(&self) -> TableKind {
        self.kind
    }
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        self.columns.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(number) = self.number else {
            return internal_err!("the input of source {} has no number", self.source);
        };
        let all: Vec<usize> = (0..self.columns.fields().len()).collect();
        let wanted = projection.unwrap_or(&all);
        // Inputs give their columns in ascending order, whatever order the plan wants.
        let mut given = wanted.clone();
        given.sort_unstable();
        let order: Vec<usize> = wanted.iter().filter_map(|column| given.binary_search(column).ok()).collect();
        let schema = Arc::new(self.columns.project(wanted)?);
        Ok(Arc::new(SourceExec {
            source: self.source.clone(),
            number,
            kind: self.kind,
            order,
            properties: super::properties(schema, self.partitions),
        }))
    }
}

/// Reads the streams of one input of the batch. Each partition polls its own ones, so that they are decoded on all cores.
#[derive(Debug)]
pub(crate) struct SourceExec {
    source: String,
    number: usize,
    kind: TableKind,
    /// Per column of the output its index in the rows of the input.
    order: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl SourceExec {
    /// Whether it reads a table that is given whole for each batch.
    pub(crate) fn is_static(&self) -> bool {
        self.kind == TableKind::Static
    }
}

impl DisplayAs for SourceExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "SourceExec: input {} ({})", self.number, self.source)
    }
}

impl ExecutionPlan for SourceExec {
    fn name(&self) -> &str {
        "SourceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let schema = self.schema();
        let order = self.order.clone();
        let source = self.source.clone();
        let streams = batch.take_streams(self.number, partition, self.properties.partitioning.partition_count());
        let columns = schema.clone();
        let counts = !self.is_static();
        let rows = stream::iter(streams).flatten().map_err(input_error).map(move |rows| {
            let rows = rows?;
            if counts {
                batch.counters.read(rows.num_rows());
            }
            conform(&rows, &order, &columns, &source)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// The rows of an input with the plan's columns. Types differ at most in the time zone, which costs nothing to change.
fn conform(rows: &RecordBatch, order: &[usize], schema: &SchemaRef, source: &str) -> Result<RecordBatch> {
    if rows.num_columns() != order.len() {
        return internal_err!("source {source} gave {} columns, the plan reads {}", rows.num_columns(), order.len());
    }
    let mut columns = Vec::with_capacity(order.len());
    for (index, field) in order.iter().zip(schema.fields()) {
        let column = rows.column(*index);
        columns.push(if column.data_type() == field.data_type() {
            column.clone()
        } else {
            cast(column, field.data_type())?
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
