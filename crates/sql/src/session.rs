//! The DataFusion session of one query: Spark's dialect, types and functions.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::config::Dialect;
use datafusion::common::{Result, internal_err, not_impl_err};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder};
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::ensure_requirements::EnsureRequirements;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::ast::{DataType as SqlType, ExactNumberInfo, TimezoneInfo};
use datafusion_spark::SessionStateBuilderSpark;

use crate::exec::gather::StreamsFlowThroughJoins;
use crate::exec::source::StreamTable;
use crate::functions;
use crate::functions::clock::{self, BatchClock};
use crate::functions::operators::SparkOperators;
use crate::functions::session::SessionWindow;
use crate::functions::sum::CheckedSum;
use crate::functions::types::map_of;
use crate::functions::window::{Window, WindowTime};
use crate::logical::not_null::FilterNullsOfJoins;
use crate::memory::BudgetPool;
use crate::planner::{PlannerOptions, StreamQueryPlanner};
use crate::{SourceTable, zone};

/// Optimiser rules that are wrong or of no use for streams: those that make an input disappear or two inputs one would change what a
/// batch reads, and those that drop or split the keys of an aggregate would change its state; those that move the fields of a struct down move
/// them through nodes that make the struct.
const LEFT_OUT: &[&str] = &[
    "unions_to_filter",
    "eliminate_filter",
    "eliminate_limit",
    "propagate_empty_relation",
    "single_distinct_aggregation_to_group_by",
    "eliminate_group_by_constant",
    "extract_leaf_expressions",
    "push_down_leaf_projections",
];

/// Spark's names of aggregate functions that DataFusion has under another one.
const AGGREGATE_ALIASES: &[(&str, &[&str])] = &[
    ("approx_distinct", &["approx_count_distinct"]),
    ("first_value", &["first", "any_value"]),
    ("last_value", &["last"]),
    ("collect_list", &["array_agg"]),
    ("bool_and", &["every"]),
    ("bool_or", &["some", "any"]),
    ("stddev", &["std", "stddev_samp"]),
    ("var", &["variance", "var_sample", "var_samp"]),
];

/// Makes the session of one query. `now()` reads `clock`.
pub(crate) fn session(
    options: &PlannerOptions,
    clock: &Arc<BatchClock>,
    sources: &[SourceTable],
) -> Result<SessionState> {
    let session_zone: Arc<str> = Arc::from(options.time_zone.as_str());
    let mut config = SessionConfig::new()
        .with_target_partitions(options.parallelism.max(1))
        .with_round_robin_repartition(false)
        .with_repartition_aggregations(false)
        .with_repartition_joins(false)
        .with_repartition_sorts(false)
        .with_repartition_windows(false)
        .with_collect_statistics(false);
    let settings = config.options_mut();
    settings.execution.time_zone = Some(options.time_zone.clone());
    settings.execution.enable_ansi_mode = true;
    settings.sql_parser.dialect = Dialect::Spark;
    settings.sql_parser.enable_ident_normalization = false;
    settings.sql_parser.map_string_types_to_utf8view = false;
    settings.sql_parser.parse_float_as_decimal = true;
    // An ORDER BY that has no effect is refused over a stream all the same.
    settings.sql_parser.enable_subquery_sort_elimination = false;
    // Spark: NULL first when ascending, last when descending.
    settings.sql_parser.default_null_ordering = "nulls_min".to_owned();

    let mut optimizer = Optimizer::new();
    optimizer.rules.retain(|rule| !LEFT_OUT.contains(&rule.name()));
    // Where a join is what it stays, and before filters move down.
    let push_down = optimizer.rules.iter().position(|rule| rule.name() == "push_down_filter");
    optimizer.rules.insert(push_down.unwrap_or_default(), Arc::new(FilterNullsOfJoins));
    let placement: Arc<dyn PhysicalOptimizerRule + Send + Sync> = Arc::new(EnsureRequirements::new());
    let pool = Arc::new(BudgetPool(options.memory.clone()));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?;
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_spark_features()
        .with_type_planner(Arc::new(SparkTypes { zone: session_zone.clone() }))
        .with_optimizer_rules(optimizer.rules)
        .with_physical_optimizer_rules(vec![Arc::new(StreamsFlowThroughJoins), placement])
        .with_query_planner(Arc::new(StreamQueryPlanner));
    let own = functions::scalar(&session_zone);
    let named = |name: &str, of: &[Arc<ScalarUDF>]| of.iter().find(|function| function.name() == name).cloned();
    let functions: Vec<Arc<ScalarUDF>> =
        builder.scalar_functions().iter().flatten().cloned().chain(own.into_iter().map(Arc::new)).rev().collect();
    let (Some(concat), Some(date_add), Some(date_sub), Some(field)) = (
        named("concat", &functions),
        named("date_add", &functions),
        named("date_sub", &functions),
        named("get_field", &functions),
    ) else {
        return internal_err!("a function behind an operator is missing");
    };
    // Planners are asked in their order.
    let of_times = |function: &Arc<ScalarUDF>| {
        let name = function.name();
        name.starts_with("time_") || name.starts_with("interval_")
    };
    let times = functions.iter().filter(|function| of_times(function)).cloned().collect();
    let operators = SparkOperators { concat, date_add, date_sub, times, field };
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(operators));
    let mut state = builder.build();
    for function in functions::scalar(&session_zone) {
        state.register_udf(Arc::new(function))?;
    }
    for function in functions::higher_order::all() {
        state.register_higher_order_function(Arc::new(function))?;
    }

    state.register_udaf(Arc::new(CheckedSum::udf()))?;
    for function in functions::aggregates::all() {
        state.register_udaf(Arc::new(function))?;
    }
    for (name, aliases) in AGGREGATE_ALIASES {
        if let Some(function) = state.aggregate_functions().get(*name).cloned() {
            let function = AggregateUDF::clone(&function).with_aliases(aliases.iter().copied());
            state.register_udaf(Arc::new(function))?;
        }
    }
    state.register_udf(Arc::new(Window::udf(&session_zone)))?;
    state.register_udf(Arc::new(WindowTime::udf()))?;
    state.register_udf(Arc::new(SessionWindow::udf(&session_zone)))?;
    for function in clock::functions(clock, &session_zone) {
        state.register_udf(Arc::new(function))?;
    }
    for function in &options.functions {
        state.register_udf(function.clone())?;
    }

    let schema = state.schema_for_ref("any")?;
    for source in sources {
        let columns = zone::in_session(&source.schema, &options.time_zone);
        let table = StreamTable::new(&source.name, columns, options.parallelism.max(1), source.kind);
        schema.register_table(source.name.clone(), Arc::new(table))?;
    }
    Ok(state)
}

/// Spark's names of types.
#[derive(Debug)]
struct SparkTypes {
    zone: Arc<str>,
}

impl TypePlanner for SparkTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        let data_type = match sql_type {
            SqlType::Timestamp(_, TimezoneInfo::None) => {
                DataType::Timestamp(TimeUnit::Microsecond, Some(self.zone.clone()))
            }
            SqlType::Decimal(ExactNumberInfo::None) | SqlType::Dec(ExactNumberInfo::None) => {
                DataType::Decimal128(10, 0)
            }
            SqlType::TimestampNtz(None) => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::Float(_) => DataType::Float32,
            SqlType::TimestampNtz(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
            SqlType::Map(key, value) => {
                let of = |sql_type: &SqlType| -> Result<DataType> {
                    match self.plan_type_field(sql_type)? {
                        Some(field) => Ok(field.data_type().clone()),
                        None => plain_type(sql_type),
                    }
                };
                map_of(of(key)?, of(value)?)
            }
            SqlType::Custom(name, arguments) if arguments.is_empty() => {
                match name.to_string().to_lowercase().as_str() {
                    "byte" => DataType::Int8,
                    "short" => DataType::Int16,
                    "long" => DataType::Int64,
                    "timestamp_ltz" => DataType::Timestamp(TimeUnit::Microsecond, Some(self.zone.clone())),
                    "timestamp_ntz" => DataType::Timestamp(TimeUnit::Microsecond, None),
                    _ => return Ok(None),
                }
            }
            SqlType::Binary(None) => DataType::Binary,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}

/// The types of maps that DataFusion's planner would know by itself.
fn plain_type(sql_type: &SqlType) -> Result<DataType> {
    Ok(match sql_type {
        SqlType::String(_) | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Text => DataType::Utf8,
        SqlType::Boolean => DataType::Boolean,
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) => DataType::Int32,
        SqlType::BigInt(_) => DataType::Int64,
        SqlType::Double(_) => DataType::Float64,
        SqlType::Date => DataType::Date32,
        other => return not_impl_err!("a map of {other}"),
    })
}
