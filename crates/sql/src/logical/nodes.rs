//! The logical nodes of streams.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DFSchema, DFSchemaRef, Result, plan_err};
use datafusion::logical_expr::{Expr, ExprSchemable, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use perennial_core::sink::OutputMode;

use crate::functions::window::{WindowSpec, time_type};

/// Name of the column that [`AssignWindows`] adds: the start of the row's window.
pub(crate) const WINDOW_START: &str = "__window_start";
/// Name of the column with the start of the session that a row makes alone.
pub(crate) const SESSION_START: &str = "__session_start";
/// Name of the column with the end of the session that a row makes alone.
pub(crate) const SESSION_STOP: &str = "__session_end";

/// Watches the event time of the rows that pass, for the watermark of the next batch.
///
/// Predicates on other columns move below it, those on the event time do not: that is Spark's rule for which rows move the watermark.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Watermark {
    pub(crate) input: LogicalPlan,
    /// Name of the source.
    pub(crate) source: String,
    /// Name of the event-time column.
    pub(crate) column: String,
    /// Delay in microseconds.
    pub(crate) delay: i64,
    /// Number of the input of the plan, once the plan is optimised.
    pub(crate) number: Option<usize>,
}

impl Watermark {
    /// Where the event time is in the rows that pass now.
    pub(crate) fn index(&self) -> Result<usize> {
        match self.input.schema().fields().iter().position(|field| *field.name() == self.column) {
            Some(index) => Ok(index),
            None => plan_err!("the watermark's column {} of source {} is not in the plan", self.column, self.source),
        }
    }
}

/// Gives each row the start of its window in an additional column, and once per window where windows overlap. Rows without a time have
/// no window and end here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AssignWindows {
    pub(crate) input: LogicalPlan,
    pub(crate) time: Expr,
    pub(crate) spec: WindowSpec,
    schema: DFSchemaRef,
}

impl AssignWindows {
    pub(crate) fn new(input: LogicalPlan, time: Expr, spec: WindowSpec) -> Result<Self> {
        let start_type = time_type(&time.get_type(input.schema())?)?;
        let start: (_, Arc<Field>) = (None, Arc::new(Field::new(WINDOW_START, start_type, false)));
        let fields =
            input.schema().iter().map(|(table, field)| (table.cloned(), field.clone())).chain([start]).collect();
        let schema = Arc::new(DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?);
        Ok(Self { input, time, spec, schema })
    }
}

/// Which key of an aggregate is the event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EventKey {
    /// Index among the keys.
    pub(crate) key: usize,
    /// How many microseconds after the key's value the group ends: the size of the window, 0 for a plain event time.
    pub(crate) span: i64,
}

/// Where a stateful operator stands in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Number of the operator, from the sink towards the sources.
    pub(crate) operator: usize,
    /// Number of its (first) state.
    pub(crate) state: usize,
    /// How far the watermark of its input is ahead of the query's, in milliseconds: 0, or less above an operator that holds rows back.
    /// `None` where its input has no watermark.
    pub(crate) shift_ms: Option<i64>,
    /// Whether no other stateful operator is below.
    pub(crate) first: bool,
}

/// Lets of the rows with equal keys the first one pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Deduplicate {
    pub(crate) input: LogicalPlan,
    /// Columns whose values together tell duplicates.
    pub(crate) keys: Vec<Expr>,
    /// For deduplication within the watermark: the event time, and for how many microseconds after it a row is remembered.
    pub(crate) within: Option<(Expr, i64)>,
    /// Its place and the column of its input that is the event time, once the plan is optimised.
    pub(crate) place: Option<(Place, Option<usize>)>,
}

/// Marks an aggregate whose last two keys are the start and the end of a session: groups whose sessions touch are one. Its input is the
/// [`LogicalPlan::Aggregate`] itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionAggregate {
    pub(crate) input: LogicalPlan,
}

/// Lets the first rows of a stream pass, over all batches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StatefulLimit {
    pub(crate) input: LogicalPlan,
    /// How many rows pass.
    pub(crate) limit: u64,
    /// Its place, once the plan is optimised.
    pub(crate) place: Option<Place>,
}

/// Marks an aggregate whose groups live longer than a batch. Its input is the [`LogicalPlan::Aggregate`] itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StatefulAggregate {
    pub(crate) input: LogicalPlan,
    pub(crate) place: Place,
    /// Whether the last two keys are the start and the end of a session.
    pub(crate) sessions: bool,
    /// The event time among the keys, where there is one that counts: none in complete mode.
    pub(crate) event: Option<EventKey>,
    /// Per key of the group the size of the window that starts there, in microseconds, where one does.
    pub(crate) windows: Vec<Option<i64>>,
    pub(crate) mode: OutputMode,
}

/// Wraps a node into a plan.
pub(crate) fn extension(node: impl UserDefinedLogicalNodeCore) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(node) })
}

/// The node of a plan, if it is a `T`.
pub(crate) fn node_of<T: UserDefinedLogicalNodeCore>(plan: &LogicalPlan) -> Option<&T> {
    match plan {
        LogicalPlan::Extension(Extension { node }) => node.as_any().downcast_ref::<T>(),
        _ => None,
    }
}

macro_rules! compare_by_input {
    ($($node:ty),*) => {$(
        impl PartialOrd for $node {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                self.input.partial_cmp(&other.input)
            }
        }
    )*};
}
compare_by_input!(Watermark, AssignWindows, Deduplicate, SessionAggregate, StatefulLimit, StatefulAggregate);

impl UserDefinedLogicalNodeCore for Watermark {
    fn name(&self) -> &str {
        "Watermark"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([self.column.clone()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let delay = perennial_core::config::HumanDuration(std::time::Duration::from_micros(self.delay.unsigned_abs()));
        write!(f, "Watermark: {}.{}, delay {delay}", self.source, self.column)
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(Self { input: inputs.swap_remove(0), ..self.clone() })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut columns = output_columns.to_vec();
        columns.push(self.index().ok()?);
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }
}

impl UserDefinedLogicalNodeCore for AssignWindows {
    fn name(&self) -> &str {
        "AssignWindows"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.time.clone()]
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        HashSet::from([WINDOW_START.to_owned()])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let show = |micros: i64| {
            let sign = if micros < 0 { "-" } else { "" };
            let span = std::time::Duration::from_micros(micros.unsigned_abs());
            format!("{sign}{}", perennial_core::config::HumanDuration(span))
        };
        write!(f, "Windows: of {}, size {}", self.time, show(self.spec.size))?;
        if self.spec.slide != self.spec.size {
            write!(f, ", slide {}", show(self.spec.slide))?;
        }
        if self.spec.start != 0 {
            write!(f, ", start {}", show(self.spec.start))?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Self::new(inputs.swap_remove(0), exprs.swap_remove(0), self.spec)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let schema = self.input.schema();
        let mut columns: Vec<usize> = output_columns.iter().copied().filter(|at| *at < schema.fields().len()).collect();
        for column in self.time.column_refs() {
            columns.push(schema.index_of_column(column).ok()?);
        }
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }
}

impl UserDefinedLogicalNodeCore for Deduplicate {
    fn name(&self) -> &str {
        "Deduplicate"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        self.keys.iter().chain(self.within.iter().map(|(time, _)| time)).cloned().collect()
    }

    /// A filter below would change which row is the first one.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.input.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "Deduplicate: by {}", keys.join(", "))?;
        match &self.within {
            Some((_, delay)) => {
                let span = std::time::Duration::from_micros(delay.unsigned_abs());
                write!(f, ", remembered for {}", perennial_core::config::HumanDuration(span))
            }
            None => Ok(()),
        }
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let within = match (&self.within, exprs.len() > self.keys.len()) {
            (Some((_, delay)), true) => exprs.pop().map(|time| (time, *delay)),
            _ => None,
        };
        Ok(Self { input: inputs.swap_remove(0), keys: exprs, within, place: self.place })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let mut columns = output_columns.to_vec();
        for expr in self.expressions() {
            for column in expr.column_refs() {
                columns.push(self.input.schema().index_of_column(column).ok()?);
            }
        }
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }
}

impl UserDefinedLogicalNodeCore for SessionAggregate {
    fn name(&self) -> &str {
        "Sessions"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Sessions")
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(Self { input: inputs.swap_remove(0) })
    }

    /// Filters on keys move below, as in Spark: one on the start or the end of a session then looks at each row's own session.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        let keys = match &self.input {
            LogicalPlan::Aggregate(aggregate) => self.input.schema().fields().len() - aggregate.aggr_expr.len(),
            _ => 0,
        };
        self.input.schema().fields().iter().skip(keys).map(|field| field.name().clone()).collect()
    }

    /// All keys tell the group, whether they are used above or not.
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        let LogicalPlan::Aggregate(aggregate) = &self.input else { return None };
        let keys = self.input.schema().fields().len() - aggregate.aggr_expr.len();
        let mut columns: Vec<usize> = (0..keys).chain(output_columns.iter().copied()).collect();
        columns.sort_unstable();
        columns.dedup();
        Some(vec![columns])
    }
}

impl UserDefinedLogicalNodeCore for StatefulLimit {
    fn name(&self) -> &str {
        "StatefulLimit"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    /// A filter below would change which rows are the first ones.
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.input.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StatefulLimit: {} rows of all batches together", self.limit)
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(Self { input: inputs.swap_remove(0), ..self.clone() })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}

impl UserDefinedLogicalNodeCore for StatefulAggregate {
    fn name(&self) -> &str {
        "StatefulAggregate"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let what = if self.sessions { "Stateful sessions" } else { "Stateful" };
        write!(f, "{what}: operator {}, {:?} mode", self.place.operator, self.mode)?;
        match self.event {
            Some(_) if self.sessions => write!(f, ", a session ends when the watermark reaches its end"),
            Some(EventKey { span: 0, .. }) => write!(f, ", a group ends when the watermark reaches its event time"),
            Some(_) => write!(f, ", a group ends when the watermark reaches the end of its window"),
            None => write!(f, ", groups are kept for ever"),
        }
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(Self { input: inputs.swap_remove(0), ..self.clone() })
    }
}

/// Checks that an event-time column is a timestamp.
pub(crate) fn is_event_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(_, _))
}
