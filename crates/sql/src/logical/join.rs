//! Joins of two streams: the node, and what is read from the join's condition.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::{DFSchema, DFSchemaRef, JoinType, NullEquality, Result};
use datafusion::logical_expr::expr::Between;
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, Join, LogicalPlan, Operator, Projection, UserDefinedLogicalNodeCore, cast,
};
use perennial_core::sink::OutputMode;

use super::lineage::{EventTime, event_time};
use super::time_bound::lead_ms;
use crate::error::refused;
use crate::functions::keys::GroupingKey;

/// A join of two streams, of which each side remembers its rows for those of the other side that are still to come. Index 0 is the left
/// side, 1 the right one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StreamJoin {
    pub(crate) inputs: [LogicalPlan; 2],
    pub(crate) sides: [Side; 2],
    pub(crate) join_type: JoinType,
    /// What must hold for the two rows of a match together, beyond equal keys; over [`StreamJoin::filter_schema`].
    pub(crate) filter: Option<Expr>,
    /// Number of the operator, from the sink towards the sources.
    pub(crate) operator: usize,
    /// Number of the left side's state; the right side's is the next one.
    pub(crate) state: usize,
    /// How far the watermark of the inputs is ahead of the query's, in milliseconds; `None` where they have none.
    pub(crate) shift_ms: Option<i64>,
    schema: DFSchemaRef,
}

/// One side of a [`StreamJoin`]. Columns are indexes of its input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    /// The columns that equal those of the other side in a match.
    pub(crate) keys: Vec<usize>,
    /// How many columns go on; keys that are expressions are further columns behind these.
    pub(crate) width: usize,
    /// The event time, or the window over it: rows behind the watermark are late.
    pub(crate) event: Option<usize>,
    /// When rows can find no more matches.
    pub(crate) expiry: Option<Expiry>,
    /// What a row must fulfil by itself to have matches.
    pub(crate) filter: Option<Expr>,
    /// Whether no other stateful operator is below.
    pub(crate) first: bool,
}

/// When the rows of a side can find no more matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Expiry {
    /// An event time or a window.
    pub(crate) column: usize,
    /// How many milliseconds the bound is ahead of the watermark.
    pub(crate) lead_ms: i64,
}

/// Whether a side's rows come out without a match, too.
pub(crate) fn preserves(join_type: JoinType, side: usize) -> bool {
    match join_type {
        JoinType::Full => true,
        JoinType::Left => side == 0,
        JoinType::Right => side == 1,
        _ => false,
    }
}

/// The condition of a join, taken apart.
pub(crate) struct Condition {
    /// Equalities of an expression of the left side and one of the right side.
    keys: Vec<(Expr, Expr)>,
    /// Everything else.
    rest: Vec<Expr>,
}

impl Condition {
    pub(crate) fn of(join: &Join) -> Self {
        let mut condition = Self { keys: join.on.clone(), rest: Vec::new() };
        let (left, right) = (join.left.schema(), join.right.schema());
        for conjunct in join.filter.iter().flat_map(split_conjunction) {
            match conjunct {
                Expr::BinaryExpr(BinaryExpr { left: one, op: Operator::Eq, right: other }) => {
                    if reads(one, left) && reads(other, right) {
                        condition.keys.push((one.as_ref().clone(), other.as_ref().clone()));
                    } else if reads(one, right) && reads(other, left) {
                        condition.keys.push((other.as_ref().clone(), one.as_ref().clone()));
                    } else {
                        condition.rest.push(conjunct.clone());
                    }
                }
                Expr::Between(Between { expr, negated: false, low, high }) => {
                    condition.rest.push(expr.as_ref().clone().gt_eq(low.as_ref().clone()));
                    condition.rest.push(expr.as_ref().clone().lt_eq(high.as_ref().clone()));
                }
                other => condition.rest.push(other.clone()),
            }
        }
        condition
    }

    /// Whether an event time, or a window over one, is among the keys; and among the columns of both sides which one.
    fn event_key(&self, left: &LogicalPlan, right: &LogicalPlan) -> Option<usize> {
        let is_event = |expr: &Expr, plan: &LogicalPlan| match expr {
            Expr::Column(column) => plan.schema().maybe_index_of_column(column).is_some_and(|at| is_event(plan, at)),
            _ => false,
        };
        let on_left = self.keys.iter().position(|(key, _)| is_event(key, left));
        on_left.or_else(|| self.keys.iter().position(|(_, key)| is_event(key, right)))
    }
}

fn is_event(plan: &LogicalPlan, column: usize) -> bool {
    matches!(event_time(plan, column), Some(EventTime::At | EventTime::Window))
}

/// Whether an expression reads columns, all of them of this schema.
fn reads(expr: &Expr, schema: &DFSchema) -> bool {
    let columns = expr.column_refs();
    !columns.is_empty() && columns.into_iter().all(|column| schema.has_column(column))
}

/// Refuses what Spark refuses before a query starts: `join` is a join of two streams as it is written.
pub(crate) fn check(join: &Join, mode: OutputMode) -> Result<()> {
    let name = spark_name(join.join_type);
    let outer = matches!(join.join_type, JoinType::Left | JoinType::Right | JoinType::Full);
    match join.join_type {
        JoinType::Left | JoinType::Right | JoinType::Full if mode != OutputMode::Append => {
            return Err(refused(
                NOT_STREAMING,
                format!(
                    "{name} join between two streams is not supported in {mode:?} output mode, only in Append output mode: \
                     a row without a match could not be taken back once one comes. Use append mode"
                ),
            ));
        }
        JoinType::Inner | JoinType::LeftSemi if mode == OutputMode::Complete => {
            return Err(refused(
                NOT_STREAMING,
                format!(
                    "{name} join between two streams is not supported in Complete output mode, only in Append and Update \
                     output modes: use one of these"
                ),
            ));
        }
        JoinType::Left | JoinType::Right | JoinType::Full | JoinType::Inner | JoinType::LeftSemi => {}
        JoinType::LeftAnti => {
            return Err(refused(
                NOT_STREAMING,
                "LeftAnti joins with a streaming DataFrame/Dataset on the right are not supported: use a LEFT JOIN with a time \
                 condition and WHERE … IS NULL on a column of the right side",
            ));
        }
        _ => {
            return Err(refused(
                NOT_STREAMING,
                format!("Join type {name} is not supported with streams: use an inner, outer or left semi join"),
            ));
        }
    }
    if !outer && join.join_type != JoinType::LeftSemi {
        return Ok(());
    }
    let condition = Condition::of(join);
    let bounded = |side: &LogicalPlan, other: &LogicalPlan| lead_ms(&condition.rest, side, other).is_some();
    let has_bound = condition.event_key(&join.left, &join.right).is_some()
        || (join.join_type != JoinType::Right && bounded(&join.left, &join.right))
        || (matches!(join.join_type, JoinType::Right | JoinType::Full) && bounded(&join.right, &join.left));
    if has_bound {
        return Ok(());
    }
    Err(refused(
        NOT_STREAMING,
        format!(
            "Stream-stream {name} join between two streams is not supported without a watermark in the join keys, or a watermark \
             on the nullable side and an appropriate range condition: it would never be known that a row has no match. Give both \
             sources a watermark, and write into ON that the event times are equal, or how far apart they may be, as in \
             `r.ts BETWEEN l.ts AND l.ts + INTERVAL 10 MINUTES`"
        ),
    ))
}

/// Spark's catch-all condition for streaming queries that it does not run.
const NOT_STREAMING: &str = "_LEGACY_ERROR_TEMP_3102";

fn spark_name(join_type: JoinType) -> &'static str {
    match join_type {
        JoinType::Inner => "Inner",
        JoinType::Left => "LeftOuter",
        JoinType::Right => "RightOuter",
        JoinType::Full => "FullOuter",
        JoinType::LeftSemi => "LeftSemi",
        JoinType::LeftAnti => "LeftAnti",
        JoinType::RightSemi => "RightSemi",
        JoinType::RightAnti => "RightAnti",
        JoinType::LeftMark | JoinType::RightMark => "ExistenceJoin",
    }
}

impl StreamJoin {
    /// The node for a join of the optimised plan whose inputs are `left` and `right` now. `numbers` are those of the operator and of its first
    /// state.
    pub(crate) fn new(
        join: &Join,
        [left, right]: [LogicalPlan; 2],
        numbers: (usize, usize),
        shift_ms: Option<i64>,
        first: [bool; 2],
    ) -> Result<Self> {
        let mut condition = Condition::of(join);
        if condition.keys.is_empty() {
            return Err(refused(
                "STREAM_FAILED",
                "Stream-stream join without equality predicate is not supported: write into ON that a column of the left side \
                 equals one of the right side",
            ));
        }
        let event_key = condition.event_key(&left, &right);
        let events = [event_column(&left)?, event_column(&right)?];
        let leads = [lead_ms(&condition.rest, &left, &right), lead_ms(&condition.rest, &right, &left)];

        let mut own = [Vec::new(), Vec::new()];
        let mut both = Vec::new();
        for conjunct in condition.rest.drain(..) {
            if conjunct.is_volatile() {
                both.push(conjunct);
            } else if reads(&conjunct, left.schema()) {
                own[0].push(conjunct);
            } else if reads(&conjunct, right.schema()) {
                own[1].push(conjunct);
            } else {
                both.push(conjunct);
            }
        }
        let (left_keys, right_keys) = aligned(condition.keys, left.schema(), right.schema())?;
        let widths = [left.schema().fields().len(), right.schema().fields().len()];
        let (left, keys_of_left) = with_keys(left, left_keys, "__left_key")?;
        let (right, keys_of_right) = with_keys(right, right_keys, "__right_key")?;

        let [left_filter, right_filter] = own.map(conjunction);
        let side = |number: usize, keys: Vec<usize>, filter: Option<Expr>| Side {
            width: widths[number],
            event: events[number].filter(|_| shift_ms.is_some()),
            expiry: match (event_key, events[number], leads[number]) {
                (Some(key), _, _) => Some(Expiry { column: keys[key], lead_ms: 0 }),
                (None, Some(column), Some(lead_ms)) => Some(Expiry { column, lead_ms }),
                _ => None,
            },
            filter,
            first: first[number],
            keys,
        };
        let sides = [side(0, keys_of_left, left_filter), side(1, keys_of_right, right_filter)];
        Ok(Self {
            inputs: [left, right],
            sides,
            join_type: join.join_type,
            filter: conjunction(both),
            operator: numbers.0,
            state: numbers.1,
            shift_ms,
            schema: join.schema.clone(),
        })
    }

    /// How far the watermark of the output is ahead of the query's, in milliseconds: rows may come out as old as the state still holds.
    pub(crate) fn output_shift_ms(&self) -> Option<i64> {
        let leads = self.sides.iter().filter_map(|side| side.expiry).map(|expiry| expiry.lead_ms);
        let behind = match self.join_type {
            JoinType::LeftSemi => {
                self.sides[0].event?;
                self.sides[0].expiry.map_or(0, |expiry| expiry.lead_ms)
            }
            _ => leads.min().unwrap_or(0),
        };
        Some(self.shift_ms?.saturating_add(behind.min(0)))
    }

    /// Which input column `index` of the output is.
    pub(crate) fn origin(&self, index: usize) -> (&LogicalPlan, usize) {
        match index.checked_sub(self.sides[0].width) {
            Some(index) => (&self.inputs[1], index),
            None => (&self.inputs[0], index),
        }
    }

    /// The columns that [`StreamJoin::filter`] is over: those of the left input, then those of the right one.
    pub(crate) fn filter_schema(&self) -> Result<DFSchema> {
        self.inputs[0].schema().join(self.inputs[1].schema())
    }
}

/// The event time of a plan's rows, or the window over it.
fn event_column(plan: &LogicalPlan) -> Result<Option<usize>> {
    let schema = plan.schema();
    let columns: Vec<usize> = (0..schema.fields().len()).filter(|column| is_event(plan, *column)).collect();
    if columns.len() > 1 {
        let names: Vec<&str> = columns.iter().map(|column| schema.field(*column).name().as_str()).collect();
        return Err(refused(
            "MULTIPLE_EVENT_TIME_COLUMNS",
            format!(
                "More than one event time columns are available: ({}). One side of the join has several event times, and it is \
                 not clear by which of them its rows are late: select only one of them in a subquery",
                names.join(", ")
            ),
        ));
    }
    Ok(columns.first().copied())
}

/// The keys of both sides with the same types.
fn aligned(keys: Vec<(Expr, Expr)>, left: &DFSchema, right: &DFSchema) -> Result<(Vec<Expr>, Vec<Expr>)> {
    let aligned = keys.into_iter().map(|(one, other)| {
        let (one_type, other_type) = (one.get_type(left)?, other.get_type(right)?);
        Ok(match comparison_coercion(&one_type, &other_type).filter(|_| one_type != other_type) {
            Some(common) => (cast(one, common.clone()), cast(other, common)),
            None => (one, other),
        })
    });
    aligned.collect::<Result<Vec<_>>>().map(|keys| keys.into_iter().unzip())
}

/// A plan with its keys as columns, and which these are.
fn with_keys(plan: LogicalPlan, keys: Vec<Expr>, name: &str) -> Result<(LogicalPlan, Vec<usize>)> {
    let schema = plan.schema().clone();
    let mut columns: Vec<Expr> = schema.columns().into_iter().map(Expr::Column).collect();
    let width = columns.len();
    let mut indexes = Vec::with_capacity(keys.len());
    for key in keys {
        if GroupingKey::needed(&key.get_type(&schema)?) {
            columns.push(GroupingKey::call(key).alias(format!("{name}_{}", indexes.len())));
        } else if let Expr::Column(column) = &key {
            indexes.push(schema.index_of_column(column)?);
            continue;
        } else {
            columns.push(key.alias(format!("{name}_{}", indexes.len())));
        }
        indexes.push(columns.len() - 1);
    }
    if columns.len() == width {
        return Ok((plan, indexes));
    }
    Ok((LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?), indexes))
}

/// Keeps rows away from a join's state that have no match because they have a NULL in its condition: Spark filters them below the
/// watermark. What a side gives that is preserved stays, and so do NULLs that a condition takes for equal. `further` are conditions that stand
/// beside those of the join.
pub(crate) fn nulls_never_match(join: &Join, further: &[&Expr]) -> [Vec<Expr>; 2] {
    let filtered = match join.join_type {
        JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi => [true, true],
        JoinType::Left | JoinType::LeftAnti => [false, true],
        JoinType::Right | JoinType::RightAnti => [true, false],
        _ => [false, false],
    };
    if join.null_aware {
        return [Vec::new(), Vec::new()];
    }
    let condition = Condition::of(join);
    let mut needed = Vec::new();
    let equal_nulls = join.null_equality == NullEquality::NullEqualsNull;
    for key in condition.keys.iter().filter(|_| !equal_nulls).flat_map(|(left, right)| [left, right]) {
        if !never_null(key, &mut needed) {
            needed.push(key.clone());
        }
    }
    for comparison in condition.rest.iter().chain(further.iter().copied()) {
        if is_comparison(comparison) {
            never_null(comparison, &mut needed);
        } else if let Expr::Between(Between { expr, low, high, .. }) = comparison {
            for part in [expr, low, high] {
                never_null(part, &mut needed);
            }
        }
    }
    let of_side = |side: usize, plan: &LogicalPlan| {
        needed.iter().filter(|expr| filtered[side] && reads(expr, plan.schema())).cloned().collect()
    };
    [of_side(0, &join.left), of_side(1, &join.right)]
}

fn is_comparison(expr: &Expr) -> bool {
    use Operator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(expr, Expr::BinaryExpr(BinaryExpr { op: Eq | NotEq | Lt | LtEq | Gt | GtEq, .. }))
}

/// Functions that are NULL exactly when one of their arguments is: arithmetic and casts.
const NULL_OF_NULL: &[&str] =
    &["add", "subtract", "multiply", "divide", "div", "remainder", "pmod", "negative", "cast", "grouping_key"];

/// Finds columns that make an expression NULL when they are. Says whether they are all that can.
fn never_null(expr: &Expr, found: &mut Vec<Expr>) -> bool {
    match expr {
        Expr::Column(_) => {
            if !found.contains(expr) {
                found.push(expr.clone());
            }
            true
        }
        Expr::Literal(value, _) => !value.is_null(),
        Expr::Alias(alias) => never_null(&alias.expr, found),
        Expr::Negative(inner) | Expr::Not(inner) => never_null(inner, found),
        Expr::Cast(cast) => never_null(&cast.expr, found),
        Expr::ScalarFunction(call) if NULL_OF_NULL.contains(&call.func.name()) => {
            // Every argument is looked at: each adds what it finds.
            call.args.iter().filter(|arg| !never_null(arg, found)).count() == 0
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if is_comparison(expr)
                || matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide) =>
        {
            let left = never_null(left, found);
            never_null(right, found) && left
        }
        _ => false,
    }
}

impl PartialOrd for StreamJoin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.inputs.partial_cmp(&other.inputs)
    }
}

impl UserDefinedLogicalNodeCore for StreamJoin {
    fn name(&self) -> &str {
        "StreamJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.inputs.iter().collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.sides.iter().filter_map(|side| side.filter.as_ref()).chain(&self.filter).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StreamJoin: operator {}, {:?}", self.operator, self.join_type)?;
        for (side, input, name) in
            [(&self.sides[0], &self.inputs[0], "left"), (&self.sides[1], &self.inputs[1], "right")]
        {
            let column = |column: usize| input.schema().columns()[column].to_string();
            let keys: Vec<String> = side.keys.iter().map(|key| column(*key)).collect();
            write!(f, "; {name} by [{}]", keys.join(", "))?;
            if let Some(filter) = &side.filter {
                write!(f, " where {filter}")?;
            }
            match side.expiry {
                Some(expiry) => {
                    let sign = if expiry.lead_ms < 0 { "-" } else { "+" };
                    let span = std::time::Duration::from_millis(expiry.lead_ms.unsigned_abs());
                    let span = perennial_core::config::HumanDuration(span);
                    write!(f, " until {} <= watermark {sign} {span}", column(expiry.column))?;
                }
                None => write!(f, " for ever")?,
            }
        }
        match &self.filter {
            Some(filter) => write!(f, "; where {filter}"),
            None => Ok(()),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        let mut node = self.clone();
        for filter in node.sides.iter_mut().map(|side| &mut side.filter).chain([&mut node.filter]) {
            if filter.is_some() {
                *filter = exprs.next();
            }
        }
        if let Ok(inputs) = <[LogicalPlan; 2]>::try_from(inputs) {
            node.inputs = inputs;
        }
        Ok(node)
    }
}
