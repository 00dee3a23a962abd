//! What is done to a plan before DataFusion optimises it: watermarks above the sources that have one, windows and grouping keys as
//! plain columns.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, ExprSchemable, Filter, GroupingSet, LogicalPlan, Projection, lit,
};

use super::lineage::{EventTime, expression_event_time, group_exprs, is_session};
use super::nodes::{
    AssignWindows, Deduplicate, SESSION_START, SESSION_STOP, SessionAggregate, WINDOW_START, Watermark, extension,
};
use crate::SourceTable;
use crate::error::{refused, unsupported};
use crate::functions::cast::cast_to;
use crate::functions::keys::GroupingKey;
use crate::functions::session::{
    SESSION_BETWEEN, SESSION_WINDOW, SessionEnd, WindowBetween, WindowEnd, check_gap, is_never,
};
use crate::functions::window::{WINDOW, WindowOf, WindowSpec, WindowTime, time_type};

/// Puts a [`Watermark`] above every source that has one, and a [`Deduplicate`] above that.
pub(crate) fn add_watermarks(plan: LogicalPlan, sources: &[SourceTable]) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = &node else { return Ok(Transformed::no(node)) };
        let Some(source) = sources.iter().find(|source| source.name == scan.table_name.table()) else {
            return Ok(Transformed::no(node));
        };
        let mut plan = node.clone();
        if let Some(watermark) = &source.watermark {
            plan = extension(Watermark {
                source: source.name.clone(),
                column: watermark.column.clone(),
                delay: watermark.delay_micros,
                number: None,
                input: plan,
            });
        }
        if let Some(deduplicate) = &source.deduplicate {
            let column = |name: &str| {
                let (table, field) = plan.schema().qualified_field_with_unqualified_name(name)?;
                Ok::<_, DataFusionError>(Expr::Column(Column::from((table, field))))
            };
            let keys = deduplicate.columns.iter().map(|name| column(name)).collect::<Result<_>>()?;
            let within = match &source.watermark {
                Some(watermark) if deduplicate.within_watermark => {
                    Some((column(&watermark.column)?, watermark.delay_micros))
                }
                _ => None,
            };
            // Columns that nobody reads end here, as in Spark: without the event time no row is late.
            let columns = plan.schema().columns().into_iter().map(Expr::Column).collect();
            let input = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?);
            plan = extension(Deduplicate { keys, within, place: None, input });
        }
        Ok(Transformed::yes(plan))
    })
    .map(|transformed| transformed.data)
}

/// Makes windows and grouping keys plain columns: `window(…)` becomes [`AssignWindows`] below its node and [`WindowOf`] above, DISTINCT
/// becomes an aggregate, keys of floating point are made comparable.
pub(crate) fn expand(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        Ok(match node {
            LogicalPlan::Projection(projection) => expand_projection(projection)?,
            LogicalPlan::Filter(filter) => expand_filter(filter)?,
            LogicalPlan::Aggregate(aggregate) => expand_aggregate(aggregate)?,
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let keys = input.schema().columns().into_iter().map(Expr::Column).collect();
                let aggregate = expand_aggregate(Aggregate::try_new(input, keys, vec![])?)?;
                Transformed::yes(aggregate.data)
            }
            other => {
                let mut windows = Vec::new();
                for expr in other.expressions() {
                    window_calls(&expr, &mut windows)?;
                }
                if let Some(WindowCall { call, .. }) = windows.first() {
                    return Err(refused(
                        "UNSUPPORTED_EXPR_FOR_OPERATOR",
                        format!("{call} is not supported here: compute the window in a subquery and use its columns"),
                    ));
                }
                Transformed::no(other)
            }
        })
    })
    .map(|transformed| transformed.data)
}

/// A `window(…)` or `session_window(…)` call.
struct WindowCall {
    call: Expr,
    time: Expr,
    kind: WindowKind,
}

enum WindowKind {
    /// Windows of fixed size.
    Fixed(WindowSpec),
    /// A session, with its gap.
    Session(Expr),
}

/// The windows of a node, made columns of its input.
struct Assigned {
    /// The call, and the window that it becomes.
    call: Expr,
    window: Expr,
    /// The input with the columns of which the window is made.
    input: LogicalPlan,
    /// The size of the windows, where it is fixed.
    size: Option<i64>,
}

/// The calls in an expression.
fn window_calls(expr: &Expr, found: &mut Vec<WindowCall>) -> Result<()> {
    expr.apply(|inner| {
        if let Expr::ScalarFunction(ScalarFunction { func, args }) = inner
            && matches!(func.name(), WINDOW | SESSION_WINDOW)
        {
            if !found.iter().any(|known| known.call == *inner) {
                let kind = match func.name() {
                    WINDOW => WindowKind::Fixed(WindowSpec::from_arguments(&args[1..])?),
                    _ => WindowKind::Session(args[1].clone()),
                };
                found.push(WindowCall { call: inner.clone(), time: args[0].clone(), kind });
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The one window of a node, or nothing.
fn assign(input: &Arc<LogicalPlan>, exprs: &[&Expr]) -> Result<Option<Assigned>> {
    let mut calls = Vec::new();
    for expr in exprs {
        window_calls(expr, &mut calls)?;
    }
    let Some(WindowCall { call, time, kind }) = calls.pop() else { return Ok(None) };
    if !calls.is_empty() {
        return Err(several_windows());
    }
    // A window as the time means the window's last moment.
    let time = match time.get_type(input.schema())? {
        DataType::Struct(_) => Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(WindowTime::udf()), vec![time])),
        DataType::Timestamp(..) => time,
        other => cast_to(time, &other, &time_type(&call.get_type(input.schema())?)?, false)?,
    };
    Ok(Some(match kind {
        WindowKind::Fixed(spec) => Assigned {
            call,
            window: WindowOf::call(column(WINDOW_START), spec.size),
            input: extension(AssignWindows::new(input.as_ref().clone(), time, spec)?),
            size: Some(spec.size),
        },
        WindowKind::Session(gap) => Assigned {
            call,
            window: WindowBetween::call(column(SESSION_START), column(SESSION_STOP), true),
            input: assign_sessions(input, time, gap)?,
            size: None,
        },
    }))
}

fn several_windows() -> DataFusionError {
    refused(
        "_LEGACY_ERROR_TEMP_1039",
        "several windows in one SELECT would pair every window with every other one: use one per SELECT",
    )
}

/// Gives each row the session that it makes alone, in two columns. A row without a time, or whose gap is NULL or not longer than 0, has
/// no session and ends here.
fn assign_sessions(input: &Arc<LogicalPlan>, time: Expr, gap: Expr) -> Result<LogicalPlan> {
    check_gap(&gap, input.schema())?;
    let never = is_never(&gap)?;
    let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(time.clone().alias(SESSION_START));
    columns.push(SessionEnd::call(time, gap).alias(SESSION_STOP));
    let sessions = Projection::try_new(columns, input.clone())?;
    let lasts = if never { lit(false) } else { column(SESSION_STOP).gt(column(SESSION_START)) };
    Ok(LogicalPlan::Filter(Filter::try_new(lasts, Arc::new(LogicalPlan::Projection(sessions)))?))
}

/// Replaces the call by the window made of the new columns.
fn replace(expr: Expr, assigned: &Assigned) -> Result<Expr> {
    let name = expr.schema_name().to_string();
    let replaced = expr
        .transform_up(|inner| {
            Ok(if inner == assigned.call { Transformed::yes(assigned.window.clone()) } else { Transformed::no(inner) })
        })?
        .data;
    // The column keeps its name for those above.
    if replaced.schema_name().to_string() == name { Ok(replaced) } else { Ok(replaced.alias(name)) }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn expand_projection(projection: Projection) -> Result<Transformed<LogicalPlan>> {
    let Some(assigned) = assign(&projection.input, &projection.expr.iter().collect::<Vec<_>>())? else {
        return Ok(Transformed::no(LogicalPlan::Projection(projection)));
    };
    let exprs = projection.expr.into_iter().map(|expr| replace(expr, &assigned)).collect::<Result<_>>()?;
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(assigned.input))?)))
}

fn expand_filter(filter: Filter) -> Result<Transformed<LogicalPlan>> {
    let Some(assigned) = assign(&filter.input, &[&filter.predicate])? else {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    };
    let columns: Vec<Expr> = filter.input.schema().columns().into_iter().map(Expr::Column).collect();
    let predicate = replace(filter.predicate, &assigned)?.unalias();
    let filter = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(assigned.input))?);
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(filter))?)))
}

/// How a key of an aggregate is made of the keys that take its place.
enum Key {
    /// It is one of them.
    Plain(usize),
    /// It is the window of this size that starts at one of them.
    WindowOf(usize, i64),
    /// It is the window between two of them.
    Between(usize, usize),
    /// It is the session between the last two.
    Session,
}

/// Moves windows and floating-point keys out of an aggregate; a projection above gives its columns their old names and values.
fn expand_aggregate(aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
    let all: Vec<&Expr> = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).collect();
    let assigned = assign(&aggregate.input, &all)?;
    let before = aggregate.schema.clone();
    let Aggregate { input, group_expr, aggr_expr, .. } = aggregate.clone();
    let input = assigned.as_ref().map_or(input, |assigned| Arc::new(assigned.input.clone()));

    let mut changed = assigned.is_some();
    let mut keys =
        Keys { assigned: assigned.as_ref(), input: &input, exprs: Vec::new(), of: Vec::new(), session: None };
    let group_expr = match group_expr.as_slice() {
        [Expr::GroupingSet(set)] => vec![Expr::GroupingSet(keys.grouping_set(set, &group_exprs(&aggregate))?)],
        _ => {
            group_expr.into_iter().try_for_each(|key| keys.add(key))?;
            std::mem::take(&mut keys.exprs)
        }
    };
    let Keys { of, session, .. } = keys;
    let rewritten = |(index, key): (usize, &Key)| !matches!(key, Key::Plain(at) if *at == index);
    changed |= of.iter().enumerate().any(rewritten) || group_expr != aggregate.group_expr;
    if !changed {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }

    let keys_before = of.len();
    let mut group_expr = group_expr;
    let sessions = session.is_some();
    group_expr.extend(session.into_iter().flatten());
    let aggr_expr = match &assigned {
        Some(assigned) => aggr_expr.into_iter().map(|expr| replace(expr, assigned)).collect::<Result<Vec<_>>>()?,
        None => aggr_expr,
    };
    let aggregate = Aggregate::try_new(input, group_expr, aggr_expr)?;
    let after: Vec<Expr> = aggregate.schema.columns().into_iter().map(Expr::Column).collect();
    let added = after.len() - before.fields().len();
    let last_key = keys_before + added - 1;
    let restored = (0..before.fields().len())
        .map(|index| {
            let value = match of.get(index) {
                Some(Key::Plain(at)) => after[*at].clone(),
                Some(Key::WindowOf(at, size)) => WindowOf::call(after[*at].clone(), *size),
                Some(Key::Between(start, end)) => {
                    WindowBetween::call(after[*start].clone(), after[*end].clone(), false)
                }
                Some(Key::Session) => WindowBetween::call(after[last_key - 1].clone(), after[last_key].clone(), true),
                None => after[index + added].clone(),
            };
            named_as(value, &before, index)
        })
        .collect();
    let mut plan = LogicalPlan::Aggregate(aggregate);
    if sessions {
        plan = extension(SessionAggregate { input: plan });
    }
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(restored, Arc::new(plan))?)))
}

/// The keys that take the place of those of an aggregate.
struct Keys<'a> {
    assigned: Option<&'a Assigned>,
    input: &'a LogicalPlan,
    exprs: Vec<Expr>,
    /// Per key of before how it is made.
    of: Vec<Key>,
    /// Start and end of the session among the keys: they become the last keys.
    session: Option<[Expr; 2]>,
}

impl Keys<'_> {
    fn add(&mut self, key: Expr) -> Result<()> {
        let at = self.exprs.len();
        if let Some(Assigned { call, size: Some(size), .. }) = self.assigned
            && key.clone().unalias() == *call
        {
            self.exprs.push(column(WINDOW_START));
            self.of.push(Key::WindowOf(at, *size));
            return Ok(());
        }
        let key = self.rewrite(key)?;
        let session = is_session(&key, self.input);
        if !session && expression_event_time(&key, self.input) != Some(EventTime::Window) {
            self.exprs.push(key);
            self.of.push(Key::Plain(at));
            return Ok(());
        }
        // A window is no event time; its end is.
        let window = key.unalias();
        let [start, end] = match &window {
            Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == SESSION_BETWEEN => {
                [args[0].clone(), args[1].clone()]
            }
            _ => [get_field(window.clone(), "start"), WindowEnd::call(window)],
        };
        if session {
            if self.session.replace([start, end]).is_some() {
                return Err(several_windows());
            }
            self.of.push(Key::Session);
        } else {
            self.exprs.extend([start, end]);
            self.of.push(Key::Between(at, at + 1));
        }
        Ok(())
    }

    /// The key over the new input, comparable.
    fn rewrite(&self, key: Expr) -> Result<Expr> {
        let key = match self.assigned {
            Some(assigned) => replace(key, assigned)?,
            None => key,
        };
        let is_float = key.get_type(self.input.schema()).is_ok_and(|data_type| GroupingKey::needed(&data_type));
        Ok(if is_float { GroupingKey::call(key) } else { key })
    }

    /// Grouping sets keep their keys, of which a window of fixed size can be one.
    fn grouping_set(&mut self, set: &GroupingSet, keys: &[Expr]) -> Result<GroupingSet> {
        for (at, key) in keys.iter().enumerate() {
            let rewritten = self.rewrite(key.clone())?;
            if is_session(&rewritten, self.input) {
                return Err(unsupported(format!(
                    "{key}: sessions in ROLLUP, CUBE or GROUPING SETS are not supported: group by them plainly"
                )));
            }
            self.of.push(match self.assigned {
                Some(Assigned { call, size: Some(size), .. }) if key.clone().unalias() == *call => {
                    Key::WindowOf(at, *size)
                }
                _ => Key::Plain(at),
            });
        }
        let rewrite = |key: &Expr| match self.assigned {
            Some(assigned) if key.clone().unalias() == assigned.call => Ok(column(WINDOW_START)),
            _ => self.rewrite(key.clone()),
        };
        let rewrite_all = |keys: &Vec<Expr>| keys.iter().map(rewrite).collect::<Result<Vec<_>>>();
        Ok(match set {
            GroupingSet::Rollup(keys) => GroupingSet::Rollup(rewrite_all(keys)?),
            GroupingSet::Cube(keys) => GroupingSet::Cube(rewrite_all(keys)?),
            GroupingSet::GroupingSets(sets) => {
                GroupingSet::GroupingSets(sets.iter().map(rewrite_all).collect::<Result<_>>()?)
            }
        })
    }
}

fn get_field(window: Expr, name: &str) -> Expr {
    datafusion::functions::core::get_field().call(vec![window, lit(name)])
}

fn named_as(value: Expr, schema: &DFSchema, index: usize) -> Expr {
    let (table, field) = schema.qualified_field(index);
    match &value {
        Expr::Column(column) if column.relation.as_ref() == table && column.name == *field.name() => value,
        _ => value.alias_qualified(table.cloned(), field.name()),
    }
}
