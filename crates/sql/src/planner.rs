//! From SQL to a plan that runs batches.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, DataFusionError, Result as DfResult, ScalarValue, internal_err, plan_err};
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, Projection, ScalarUDF, UserDefinedLogicalNode, cast,
    physical_planning_context::PhysicalPlanningContext,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::parser::ParserError;
use perennial_core::Result;
use perennial_core::error::{Error, class};
use perennial_core::memory::MemoryBudget;
use perennial_core::plan::{Predicate, QueryPlan};
use perennial_core::sink::OutputMode;

use crate::ast;
use crate::error::{planning_error, syntax_error};
use crate::exec::aggregate::StatefulAggregateExec;
use crate::exec::count::{CountExec, Counted, count_past_state};
use crate::exec::dedup::{DeduplicateExec, Deduplication};
use crate::exec::gather::in_order_and_to_the_end;
use crate::exec::join::{JoinSide, PairFilter, SymmetricJoin, SymmetricJoinExec};
use crate::exec::join_buffer::Layout;
use crate::exec::limit::StatefulLimitExec;
use crate::exec::merge::Aggregation;
use crate::exec::stateful::is_stateful;
use crate::exec::watermark::WatermarkExec;
use crate::exec::windows::WindowsExec;
use crate::functions::clock::BatchClock;
use crate::logical::join::{StreamJoin, preserves};
use crate::logical::nodes::{self, AssignWindows, StatefulAggregate, StatefulLimit, Watermark};
use crate::logical::{analyse, check, inputs, lazy, limits, rewrite, stateful, tables};
use crate::predicate::SqlPredicate;
use crate::query::StreamQuery;
use crate::session::session;
use crate::zone;

/// Key in the metadata of a plan's schema: the names, separated by commas, of output columns whose values together are different in
/// every row of a batch. Absent where no such columns are known.
pub const UNIQUE_KEY: &str = "perennial.unique_key";

/// Settings of a [`Planner`].
#[derive(Clone)]
pub struct PlannerOptions {
    /// The session's time zone, an IANA name or an offset (`UTC`, `Europe/Berlin`, `+02:00`): what `hour()`, `date_trunc()` and casts
    /// between text and TIMESTAMP go by.
    pub time_zone: String,
    /// In how many partitions the work is done and the state is kept; the number of cores by default.
    pub parallelism: usize,
    /// Further scalar functions. One with the name of a built-in function replaces it.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// What the operators may hold while a batch runs.
    pub memory: Arc<MemoryBudget>,
}

impl Default for PlannerOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self { time_zone: "UTC".to_owned(), parallelism: cores, functions: Vec::new(), memory: Arc::default() }
    }
}

impl fmt::Debug for PlannerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<&str> = self.functions.iter().map(|function| function.name()).collect();
        f.debug_struct("PlannerOptions")
            .field("time_zone", &self.time_zone)
            .field("parallelism", &self.parallelism)
            .field("functions", &functions)
            .field("memory", &self.memory)
            .finish()
    }
}

/// The watermark of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceWatermark {
    /// The event-time column, a TIMESTAMP.
    pub column: String,
    /// How late rows may come, in microseconds.
    pub delay_micros: i64,
}

/// Dropping the duplicates of a source (`dropDuplicates`, `dropDuplicatesWithinWatermark`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deduplicate {
    /// The columns whose values together tell duplicates.
    pub columns: Vec<String>,
    /// Whether a row is only remembered until the watermark is past its event time by the watermark's delay. Otherwise it is remembered until
    /// the watermark reaches its event time, where that is among the columns, and for ever where it is not.
    pub within_watermark: bool,
}

/// How often the rows of a table are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableKind {
    /// A stream: each batch has its own rows.
    #[default]
    Stream,
    /// A bounded table: each batch has all of its rows.
    Static,
}

/// A source as a query sees it: a table with a name.
#[derive(Debug, Clone)]
pub struct SourceTable {
    /// The name in the job file, and in the SQL.
    pub name: String,
    /// All columns of the source; a plan then says which of them it uses.
    pub schema: SchemaRef,
    /// The watermark, where the source has one.
    pub watermark: Option<SourceWatermark>,
    /// Whether its duplicates are dropped, behind the watermark.
    pub deduplicate: Option<Deduplicate>,
    /// Stream or table.
    pub kind: TableKind,
}

/// Plans queries and predicates in Spark's dialect.
#[derive(Debug, Clone)]
pub struct Planner {
    options: PlannerOptions,
}

impl Planner {
    /// A planner with these settings.
    pub fn new(options: PlannerOptions) -> Self {
        Self { options }
    }

    /// Plans one query over `sources`.
    ///
    /// # Errors
    /// `AnalysisException` for SQL that does not parse or does not fit the sources, with Spark's condition, the position and the nearest
    /// known names; `UnsupportedOperation` for what Spark refuses to run as a stream; `StateUnsupported` for what Spark runs and this
    /// engine does not.
    pub async fn plan(
        &self,
        sql: &str,
        sources: &[SourceTable],
        output_mode: OutputMode,
    ) -> Result<Arc<dyn QueryPlan>> {
        self.check_time_zone()?;
        for source in sources {
            check::source(source)?;
        }
        let clock = Arc::new(BatchClock::default());
        let bad_session = |error| planning_error(error, sql).at("the settings of the query");
        let state = session(&self.options, &clock, sources).map_err(bad_session)?;
        let query = plan_query(&state, sql, sources, output_mode, self.options.parallelism.max(1), clock)
            .await
            .map_err(|error| planning_error(error, sql))?;
        Ok(Arc::new(query))
    }

    /// Compiles a predicate over the columns of a source: an expectation's check.
    ///
    /// # Errors
    /// As [`Planner::plan`]; also where the expression is not BOOLEAN or would not give the same answer for the same row each time.
    pub fn predicate(&self, sql: &str, schema: &Schema) -> Result<Arc<dyn Predicate>> {
        self.check_time_zone()?;
        let state = session(&self.options, &Arc::default(), &[]).map_err(|error| planning_error(error, sql))?;
        let predicate = SqlPredicate::compile(&state, sql, schema, &self.options.time_zone)
            .map_err(|error| planning_error(error, sql))?;
        Ok(Arc::new(predicate))
    }

    fn check_time_zone(&self) -> Result<()> {
        match self.options.time_zone.parse::<Tz>() {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                class::CONFIG_INVALID,
                format!(
                    "`{}` is not a time zone: write a name such as `Europe/Berlin` or an offset such as `+02:00`",
                    self.options.time_zone
                ),
            )),
        }
    }
}

/// Parses the one query of a SQL text.
fn parse(sql: &str, sources: &[SourceTable]) -> DfResult<Statement> {
    let statements = ast::parse_statements(sql).map_err(|error| external_syntax(&error))?;
    let mut statements = statements.into_iter();
    let (Some(statement), None) = (statements.next(), statements.next()) else {
        return plan_err!("PARSE_SYNTAX_ERROR: a query is exactly one SELECT statement");
    };
    let SqlStatement::Query(mut query) = statement else {
        return plan_err!("PARSE_SYNTAX_ERROR: a query is a SELECT statement; its sink is set in the job file");
    };
    ast::rewrite_query(&mut query, sources)?;
    Ok(Statement::Statement(Box::new(SqlStatement::Query(query))))
}

pub(crate) fn external_syntax(error: &ParserError) -> DataFusionError {
    crate::error::external(syntax_error(error))
}

async fn plan_query(
    state: &SessionState,
    sql: &str,
    sources: &[SourceTable],
    mode: OutputMode,
    parallelism: usize,
    clock: Arc<BatchClock>,
) -> DfResult<StreamQuery> {
    let statement = parse(sql, sources)?;
    let plan = analyse::plan(tables::expand(state.statement_to_plan(statement).await?)?)?;
    check::planned(&plan, mode)?;
    let plan = limits::over_streams(limits::except_tables(plan)?, mode, &|expr| constant(state, expr))?;
    let plan = rewrite::expand(rewrite::add_watermarks(plan, sources)?)?;
    check::joins(&plan, mode)?;
    let (plan, inputs) = inputs::number_inputs(state.optimize(&plan)?)?;
    let plan = stateful::mark(plan, mode)?;
    check::optimised(&plan, mode)?;
    let plan = lazy::guard(plan)?;
    let physical = state.query_planner().create_physical_plan(&with_sink_types(plan.clone())?, state).await?;
    let physical = in_order_and_to_the_end(count_past_state(physical, false)?)?;
    StreamQuery::new(&plan, physical, inputs, parallelism, clock, state)
}

/// The value of an expression without columns.
fn constant(state: &SessionState, expr: &Expr) -> DfResult<ScalarValue> {
    let one_row = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &one_row)?;
    match state.create_physical_expr(expr.clone(), &DFSchema::empty())?.evaluate(&row)? {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(values) => ScalarValue::try_from_array(&values, 0),
    }
}

/// Gives the result the types that sinks know.
fn with_sink_types(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    let mut changed = false;
    let columns = plan
        .schema()
        .iter()
        .map(|(table, field)| {
            let column = Expr::Column((table, field).into());
            let wanted = zone::for_sinks(field.data_type());
            if wanted == *field.data_type() {
                return column;
            }
            changed = true;
            cast(column, wanted).alias_qualified(table.cloned(), field.name())
        })
        .collect();
    if !changed {
        return Ok(plan);
    }
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

/// DataFusion's physical planner with the operators of streams.
#[derive(Debug)]
pub(crate) struct StreamQueryPlanner;

#[async_trait]
impl QueryPlanner for StreamQueryPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(StreamOperators)])
            .create_physical_plan(plan, session)
            .await
    }
}

struct StreamOperators;

#[async_trait]
impl ExtensionPlanner for StreamOperators {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let partitions = session.config().target_partitions();
        if let Some(node) = node.as_any().downcast_ref::<StreamJoin>() {
            let expr = |expr: &Expr, schema: &DFSchema| planner.create_physical_expr(expr, schema, session, context);
            return Ok(Some(stream_join(node, physical_inputs, expr, partitions)?));
        }
        let ([logical], [input]) = (logical_inputs, physical_inputs) else { return Ok(None) };
        if let Some(watermark) = node.as_any().downcast_ref::<Watermark>() {
            let Some(number) = watermark.number else {
                return internal_err!("the watermark of source {} has no input", watermark.source);
            };
            return Ok(Some(Arc::new(WatermarkExec::new(input.clone(), number, watermark.index()?))));
        }
        if let Some(windows) = node.as_any().downcast_ref::<AssignWindows>() {
            let time = planner.create_physical_expr(&windows.time, logical.schema(), session, context)?;
            let schema = UserDefinedLogicalNode::schema(windows).inner().clone();
            let counts = !is_stateful(input);
            return Ok(Some(Arc::new(WindowsExec::new(input.clone(), time, windows.spec, counts, schema))));
        }
        if let Some(stateful) = node.as_any().downcast_ref::<StatefulAggregate>() {
            return Ok(Some(stateful_aggregate(stateful, input, partitions)?));
        }
        if let Some(node) = node.as_any().downcast_ref::<nodes::Deduplicate>() {
            return Ok(Some(deduplicate(node, input, partitions)?));
        }
        if let Some(StatefulLimit { limit, place, .. }) = node.as_any().downcast_ref::<StatefulLimit>() {
            let Some(place) = place else { return internal_err!("a limit has no place in its plan") };
            return Ok(Some(Arc::new(StatefulLimitExec::new(input.clone(), *place, *limit))));
        }
        Ok(None)
    }
}

fn stream_join(
    node: &StreamJoin,
    inputs: &[Arc<dyn ExecutionPlan>],
    physical_expr: impl Fn(&Expr, &DFSchema) -> DfResult<Arc<dyn PhysicalExpr>>,
    partitions: usize,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let [left, right] = inputs else { return internal_err!("a join of streams has two inputs") };
    let side = |number: usize| -> DfResult<JoinSide> {
        let (side, input) = (&node.sides[number], &inputs[number]);
        let filter =
            side.filter.as_ref().map(|filter| physical_expr(filter, node.inputs[number].schema())).transpose()?;
        let expiry = side.expiry.map(|expiry| expiry.column);
        Ok(JoinSide {
            layout: Layout::new(input.schema(), &side.keys, expiry, preserves(node.join_type, number)),
            width: side.width,
            event: side.event,
            expiry: side.expiry,
            filter,
            first: side.first,
        })
    };
    let filter = node.filter.as_ref().map(|filter| {
        let predicate = physical_expr(filter, &node.filter_schema()?)?;
        PairFilter::new(predicate, &left.schema(), &right.schema())
    });
    let join = SymmetricJoin {
        operator: node.operator,
        state: node.state,
        shift_ms: node.shift_ms.unwrap_or_default(),
        join_type: node.join_type,
        sides: [side(0)?, side(1)?],
        filter: filter.transpose()?,
        schema: UserDefinedLogicalNode::schema(node).inner().clone(),
    };
    Ok(Arc::new(SymmetricJoinExec::new([left.clone(), right.clone()], Arc::new(join), partitions)))
}

fn deduplicate(
    node: &nodes::Deduplicate,
    input: &Arc<dyn ExecutionPlan>,
    partitions: usize,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let Some((place, event)) = node.place else { return internal_err!("a deduplication has no place in its plan") };
    let keys = node.keys.iter().flat_map(Expr::column_refs).map(|column| node.input.schema().index_of_column(column));
    let keys = keys.collect::<DfResult<_>>()?;
    let within = node.within.as_ref().map(|(_, delay)| *delay);
    let deduplication = Deduplication { place, keys, event, within };
    Ok(Arc::new(DeduplicateExec::new(input.clone(), deduplication, partitions)))
}

/// Takes DataFusion's two-stage aggregation apart: the partial stage stays, the final stage becomes ours.
fn stateful_aggregate(
    node: &StatefulAggregate,
    planned: &Arc<dyn ExecutionPlan>,
    partitions: usize,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let two_stages = planned
        .downcast_ref::<AggregateExec>()
        .and_then(|last| last.input().downcast_ref::<AggregateExec>().map(|first| (last, first)));
    let Some((last, first)) = two_stages.filter(|(_, first)| *first.mode() == AggregateMode::Partial) else {
        return internal_err!("an aggregate is not planned in two stages");
    };
    // What an aggregate does not take is known when it is made.
    for function in last.aggr_expr() {
        function.create_accumulator()?;
    }
    let keys = last.group_expr().num_group_exprs();
    let event = node.event.and_then(|event| {
        let (time, _) = first.group_expr().expr().get(event.key)?;
        Some((time.clone(), event.span))
    });
    let mut input = first.input().clone();
    if node.place.first {
        input = Arc::new(CountExec::new(input, Counted::Held(event)));
    }
    let partial = AggregateExec::try_new(
        AggregateMode::Partial,
        first.group_expr().clone(),
        first.aggr_expr().to_vec(),
        first.filter_expr().to_vec(),
        input,
        first.input_schema(),
    )?;
    let aggregation = Aggregation {
        operator: node.place.operator,
        state: node.place.state,
        shift_ms: node.place.shift_ms.unwrap_or_default(),
        keys,
        sessions: node.sessions,
        functions: last.aggr_expr().to_vec(),
        state_schema: partial.schema(),
        result_schema: last.schema(),
        event: node.event,
        windows: node.windows.clone(),
        mode: node.mode,
    };
    Ok(Arc::new(StatefulAggregateExec::new(Arc::new(partial), Arc::new(aggregation), partitions)))
}
