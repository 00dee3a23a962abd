//! The planned query: runs batches and accounts for their rows.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::StreamExt;
use futures::stream;
use perennial_core::Result;
use perennial_core::error::Error;
use perennial_core::layout::OperatorLayout;
use perennial_core::plan::{BatchInfo, BatchState, Execution, FindLate, OperatorProgress, PlanInput, QueryPlan};
use perennial_core::shape::PlanShape;
use perennial_core::sink::RowStream;
use perennial_core::state::StateSpec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::batch::Batch;
use crate::error::{execution_error, planning_error};
use crate::exec::merge;
use crate::exec::stateful::{Stateful, is_stateful, operators, shape};
use crate::functions::clock::{BatchClock, CLOCK_FUNCTIONS};
use crate::late::LateFinder;
use crate::logical::lineage;
use crate::planner::UNIQUE_KEY;

/// Rows that wait per partition for the sink: enough that a core does not wait for its neighbour, few enough to stay small.
const OUTPUT_BUFFER: usize = 2;

/// Aggregates whose result depends on the order of their input.
const ORDER_SENSITIVE: &[&str] = &[
    "first_value",
    "last_value",
    "nth_value",
    "array_agg",
    "collect_list",
    "collect_set",
    "listagg",
    "min_by",
    "max_by",
];

/// A query that is planned and ready to run batches.
pub(crate) struct StreamQuery {
    logical: LogicalPlan,
    physical: Arc<dyn ExecutionPlan>,
    inputs: Vec<PlanInput>,
    schema: SchemaRef,
    /// Names of the stateful operators.
    operators: Vec<&'static str>,
    wants_no_data_batch: bool,
    state: Vec<StateSpec>,
    layout: Vec<OperatorLayout>,
    /// Per state how many of its keys tell the partition.
    spread_keys: Vec<usize>,
    parallelism: usize,
    clock: Arc<BatchClock>,
    session: SessionState,
    deterministic: bool,
    expands: bool,
    fingerprint: String,
    shape: PlanShape,
    explain: String,
}

impl StreamQuery {
    pub(crate) fn new(
        logical: &LogicalPlan,
        physical: Arc<dyn ExecutionPlan>,
        inputs: Vec<PlanInput>,
        parallelism: usize,
        clock: Arc<BatchClock>,
        session: &SessionState,
    ) -> DfResult<Self> {
        let mut operators = operators(&physical);
        operators.sort_by_key(|operator| operator.operator());
        let mut state: Vec<(StateSpec, usize)> = Vec::new();
        for operator in &operators {
            state.extend(operator.state().into_iter().map(|spec| (spec.clone(), operator.spread_keys(&spec))));
        }
        state.sort_by_key(|(spec, _)| spec.operator);
        let (state, spread_keys): (Vec<_>, Vec<_>) = state.into_iter().unzip();

        let mut schema = Schema::clone(&physical.schema());
        schema.metadata = unique_key(logical).map(|key| (UNIQUE_KEY.to_owned(), key)).into_iter().collect();
        Ok(Self {
            fingerprint: fingerprint(&operators, &inputs),
            shape: PlanShape { operators: operators.iter().map(|operator| shape(*operator)).collect() },
            explain: explain(logical, &inputs, &state),
            deterministic: deterministic(logical)?,
            operators: operators.iter().map(|operator| operator.name()).collect(),
            layout: operators.iter().map(|operator| operator.layout()).collect(),
            wants_no_data_batch: operators.iter().any(|operator| operator.wants_no_data_batch()),
            expands: logical.exists(|node| Ok(matches!(node, LogicalPlan::Unnest(_) | LogicalPlan::Join(_))))?,
            schema: Arc::new(schema),
            session: session.clone(),
            logical: logical.clone(),
            physical,
            inputs,
            state,
            spread_keys,
            parallelism,
            clock,
        })
    }

    /// What a batch must come with.
    fn check(&self, inputs: &[Vec<RowStream>], state: &BatchState) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            return Err(Error::bug(format!("the plan has {} inputs, the batch {}", self.inputs.len(), inputs.len())));
        }
        let partitions: Vec<usize> = state.iter().map(Vec::len).collect();
        if partitions != vec![self.parallelism; self.state.len()] {
            return Err(Error::bug(format!(
                "the plan has {} states in {} partitions, the batch has partitions {partitions:?}",
                self.state.len(),
                self.parallelism
            )));
        }
        Ok(())
    }
}

#[async_trait]
impl QueryPlan for StreamQuery {
    fn inputs(&self) -> &[PlanInput] {
        &self.inputs
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn state(&self) -> &[StateSpec] {
        &self.state
    }

    fn layout(&self) -> Vec<OperatorLayout> {
        self.layout.clone()
    }

    fn deterministic(&self) -> bool {
        self.deterministic
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn shape(&self) -> PlanShape {
        self.shape.clone()
    }

    fn empty_state(&self) -> Result<Vec<Option<RecordBatch>>> {
        let operators = operators(&self.physical);
        let of = |spec: &StateSpec| {
            let owner =
                operators.iter().find(|operator| operator.state().iter().any(|own| own.operator == spec.operator));
            owner.map_or(Ok(None), |owner| owner.empty(spec)).map_err(execution_error)
        };
        self.state.iter().map(of).collect()
    }

    fn explain(&self) -> String {
        self.explain.clone()
    }

    fn wants_no_data_batch(&self) -> bool {
        self.wants_no_data_batch
    }

    fn parallelism(&self) -> usize {
        self.parallelism
    }

    fn partition_of(&self, state: usize, keys: &[ArrayRef], partitions: usize) -> Result<Vec<u32>> {
        let Some(spread_keys) = self.spread_keys.get(state) else {
            return Err(Error::bug(format!("the plan has no state {state}")));
        };
        merge::partition_of(&keys[..*spread_keys], partitions).map_err(execution_error)
    }

    async fn late_rows(&self) -> Result<Arc<dyn FindLate>> {
        let finder = LateFinder::new(&self.logical, self.clock.clone(), &self.session).await;
        Ok(Arc::new(finder.map_err(|error| planning_error(error, ""))?))
    }

    async fn execute(&self, info: BatchInfo, inputs: Vec<Vec<RowStream>>, state: BatchState) -> Result<Execution> {
        self.check(&inputs, &state)?;
        self.clock.set(info.timestamp_ms);
        let operators = self
            .operators
            .iter()
            .map(|name| OperatorProgress { name: (*name).to_owned(), ..OperatorProgress::default() })
            .collect();
        let batch = Arc::new(Batch::new(info, inputs, state, operators));
        // Operators keep metrics and what they exchange: each batch gets its own.
        let plan = reset_plan_states(self.physical.clone()).map_err(execution_error)?;
        let context = task_context(&self.session, &batch);
        let drained = Arc::new(AtomicBool::new(false));
        let rows = run(&plan, &context, batch.clone(), self.schema.clone(), drained.clone());
        let (expands, stateful) = (self.expands, !self.state.is_empty());
        let outcome = move || {
            if !drained.load(Ordering::Acquire) {
                return Err(Error::bug("the outcome of a batch was asked for before its rows were drained"));
            }
            batch.counters.outcome(expands, stateful).map_err(execution_error)
        };
        Ok(Execution { rows, outcome: Box::new(outcome) })
    }
}

/// What the operators of a plan are told of the batch.
pub(crate) fn task_context(session: &SessionState, batch: &Arc<Batch>) -> Arc<TaskContext> {
    Arc::new(TaskContext::new(
        None,
        format!("batch {}", batch.info.id),
        session.config().clone().with_extension(batch.clone()),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        session.runtime_env().clone(),
    ))
}

/// The output of a running plan.
struct Output {
    partitions: Vec<Option<mpsc::Receiver<DfResult<RecordBatch>>>>,
    next: usize,
    tasks: JoinSet<()>,
    batch: Arc<Batch>,
    schema: SchemaRef,
    /// Rows come out of state and were counted on their way in.
    stateful: bool,
    drained: Arc<AtomicBool>,
}

/// Runs each partition of a plan on its own task. The partitions take turns in the output, so that its order does not depend on which
/// of them is faster.
fn run(
    plan: &Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
    batch: Arc<Batch>,
    schema: SchemaRef,
    drained: Arc<AtomicBool>,
) -> RowStream {
    let mut tasks = JoinSet::new();
    let mut partitions = Vec::new();
    for partition in 0..plan.output_partitioning().partition_count() {
        let (sender, receiver) = mpsc::channel(OUTPUT_BUFFER);
        let (plan, context) = (plan.clone(), context.clone());
        tasks.spawn(async move {
            let mut rows = match plan.execute(partition, context) {
                Ok(rows) => rows,
                Err(error) => return drop(sender.send(Err(error)).await),
            };
            while let Some(rows) = rows.next().await {
                let failed = rows.is_err();
                // A receiver that is gone no longer wants rows.
                if sender.send(rows).await.is_err() || failed {
                    return;
                }
            }
        });
        partitions.push(Some(receiver));
    }
    let stateful = is_stateful(plan);
    let output = Output { partitions, next: 0, tasks, batch, schema, stateful, drained };
    stream::unfold(Some(output), |output| async move {
        let mut output = output?;
        match output.next().await {
            Ok(Some(rows)) => Some((Ok(rows), Some(output))),
            Ok(None) => None,
            // After an error nothing more comes: what the other partitions have is of no use.
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Output {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while !self.partitions.is_empty() {
            self.next %= self.partitions.len();
            let Some(receiver) = &mut self.partitions[self.next] else {
                self.partitions.remove(self.next);
                continue;
            };
            match receiver.recv().await {
                Some(Ok(rows)) if rows.num_rows() == 0 => self.next += 1,
                Some(Ok(rows)) => {
                    self.next += 1;
                    if !self.stateful {
                        self.batch.counters.written(rows.num_rows());
                    }
                    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
                    let columns = rows.columns().to_vec();
                    return Ok(Some(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?));
                }
                Some(Err(error)) => return Err(execution_error(error)),
                None => self.partitions[self.next] = None,
            }
        }
        // A task that panicked closed its channel as if it were done.
        while let Some(done) = self.tasks.join_next().await {
            if let Err(error) = done {
                return Err(Error::bug("a task of the batch panicked").caused_by(error));
            }
        }
        self.batch.drain().await.map_err(execution_error)?;
        self.drained.store(true, Ordering::Release);
        Ok(None)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.batch.forget();
    }
}

/// The output columns that together tell the group: one per key of the topmost aggregate.
fn unique_key(plan: &LogicalPlan) -> Option<String> {
    let keys = lineage::top_key_count(plan)?;
    let mut columns: Vec<Option<&str>> = vec![None; keys];
    for (index, field) in plan.schema().fields().iter().enumerate() {
        for key in lineage::aggregate_keys(plan, index) {
            columns[key].get_or_insert(field.name());
        }
    }
    let columns: Option<Vec<&str>> = columns.into_iter().collect();
    let mut columns = columns.filter(|columns| !columns.is_empty())?;
    // One column can tell several keys.
    let mut seen = HashSet::new();
    columns.retain(|column| seen.insert(*column));
    Some(columns.join(","))
}

/// Whether the same input gives the same rows.
pub(crate) fn deterministic(plan: &LogicalPlan) -> DfResult<bool> {
    let mut deterministic = true;
    plan.apply_with_subqueries(|node| {
        for expr in node.expressions() {
            expr.apply(|inner| {
                deterministic &= match inner {
                    Expr::ScalarFunction(call) => {
                        call.func.signature().volatility != Volatility::Volatile
                            || CLOCK_FUNCTIONS.contains(&call.func.name())
                    }
                    Expr::AggregateFunction(call) => {
                        !ORDER_SENSITIVE.contains(&call.func.name()) || !call.params.order_by.is_empty()
                    }
                    _ => true,
                };
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(deterministic)
}

/// What the state depends on, and nothing else: sources, keys, functions and the columns in which they are stored.
fn fingerprint(operators: &[&dyn Stateful], inputs: &[PlanInput]) -> String {
    let streams = inputs.iter().filter(|input| !input.is_static);
    let sources: Vec<&str> = streams.map(|input| input.source.as_str()).collect();
    let mut text = format!("sources: {}", sources.join(", "));
    for operator in operators {
        let _ = write!(text, "\noperator {}: {}", operator.operator(), operator.name());
        for state in operator.state() {
            for (index, field) in state.schema.fields().iter().enumerate() {
                let kind = if index < state.keys { "key" } else { "value" };
                let _ = write!(text, "\n  {kind} {}: {}", field.name(), field.data_type());
            }
        }
        operator.describe().iter().for_each(|line| _ = write!(text, "\n  {line}"));
    }
    text
}

/// The plan for people.
fn explain(plan: &LogicalPlan, inputs: &[PlanInput], state: &[StateSpec]) -> String {
    let mut text = plan.display_indent().to_string();
    for (number, input) in inputs.iter().enumerate() {
        let _ = write!(text, "\nInput {number}: source {}, {} columns", input.source, input.columns.len());
    }
    for spec in state {
        let columns = |range: std::ops::Range<usize>| {
            let fields = spec.schema.fields()[range].iter();
            fields.map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
        };
        let _ = write!(
            text,
            "\nState {} ({}): by [{}] [{}]",
            spec.operator,
            spec.name,
            columns(0..spec.keys),
            columns(spec.keys..spec.schema.fields().len())
        );
    }
    text
}
