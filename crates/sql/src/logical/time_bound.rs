//! What the condition of a join says about time: from when on the rows of one side can find no more matches.
//!
//! The rules are those of Spark's `StreamingJoinHelper`: a bound is read from comparisons of sums of one column of each side and
//! constants, in any algebraic shape. What cannot be read gives no bound; then the state is kept.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, LogicalPlan, Operator, TryCast};

use super::lineage::{EventTime, event_time};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// How many milliseconds the state of `side` is ahead of the watermark (behind it, where negative): rows of it with an event time up to
/// there match no row of `other` whose event time is past the watermark. `conditions` must all hold for a match.
pub(crate) fn lead_ms(conditions: &[Expr], side: &LogicalPlan, other: &LogicalPlan) -> Option<i64> {
    conditions.iter().filter_map(|condition| bound(condition, side, other)).min()
}

fn bound(condition: &Expr, side: &LogicalPlan, other: &LogicalPlan) -> Option<i64> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = condition else { return None };
    let (less, greater, inclusive) = match op {
        Operator::Lt => (left, right, false),
        Operator::LtEq => (left, right, true),
        Operator::Gt => (right, left, false),
        Operator::GtEq => (right, left, true),
        _ => return None,
    };
    // less - greater < 0, as a sum of terms.
    let mut terms = Vec::new();
    collect(less, false, &mut terms)?;
    collect(greater, true, &mut terms)?;

    let mut micros: i64 = 0;
    let (mut of_side, mut of_other) = (Vec::new(), Vec::new());
    for (negative, term) in &terms {
        match term {
            Term::Constant(constant) => {
                micros = micros.checked_add(if *negative { constant.checked_neg()? } else { *constant })?;
            }
            Term::Column(column) if side.schema().has_column(column) => of_side.push(*negative),
            Term::Column(column) => of_other.push((*negative, other.schema().maybe_index_of_column(column)?)),
        }
    }
    // other's time + micros < side's time
    let ([true], [(false, time)]) = (of_side.as_slice(), of_other.as_slice()) else { return None };
    if event_time(other, *time) != Some(EventTime::At) {
        return None;
    }
    // A row exactly at an inclusive bound may still match.
    Some(micros.div_euclid(1_000) - i64::from(inclusive))
}

#[derive(Debug, PartialEq)]
enum Term {
    Column(Column),
    /// In microseconds.
    Constant(i64),
}

/// The terms of a sum, each with whether it is subtracted. Equal terms count once, as in Spark.
fn collect(expr: &Expr, negative: bool, terms: &mut Vec<(bool, Term)>) -> Option<()> {
    let term = match expr {
        Expr::Alias(alias) => return collect(&alias.expr, negative, terms),
        Expr::Negative(inner) => return collect(inner, !negative, terms),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus, right }) => {
            collect(left, negative, terms)?;
            return collect(right, negative, terms);
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) => {
            collect(left, negative, terms)?;
            return collect(right, !negative, terms);
        }
        // Spark's arithmetic and casts are functions, because of their errors.
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            ("add" | "time_add", [left, right]) => {
                collect(left, negative, terms)?;
                return collect(right, negative, terms);
            }
            ("subtract" | "time_subtract" | "time_between", [left, right]) => {
                collect(left, negative, terms)?;
                return collect(right, !negative, terms);
            }
            ("negative", [inner]) => return collect(inner, !negative, terms),
            ("cast" | "try_cast", [inner]) if is_time(&func.inner().return_type(&[]).ok()?) => {
                return collect(inner, negative, terms);
            }
            _ => return None,
        },
        Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) if is_time(field.data_type()) => {
            return collect(expr, negative, terms);
        }
        Expr::Column(column) => Term::Column(column.clone()),
        Expr::Literal(value, _) => Term::Constant(micros(value)?),
        _ => return None,
    };
    let term = (negative, term);
    if !terms.contains(&term) {
        terms.push(term);
    }
    Some(())
}

fn is_time(data_type: &DataType) -> bool {
    data_type.is_numeric() || matches!(data_type, DataType::Timestamp(_, _))
}

/// A constant as microseconds: intervals without months; numbers are seconds.
fn micros(value: &ScalarValue) -> Option<i64> {
    let seconds = |seconds: f64| {
        let micros = seconds * MICROS_PER_SECOND as f64;
        (micros.abs() < i64::MAX as f64).then_some(micros as i64)
    };
    match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => {
            i64::from(interval.days).checked_mul(MICROS_PER_DAY)?.checked_add(interval.nanoseconds / 1_000)
        }
        ScalarValue::IntervalDayTime(Some(interval)) => {
            i64::from(interval.days).checked_mul(MICROS_PER_DAY)?.checked_add(i64::from(interval.milliseconds) * 1_000)
        }
        ScalarValue::DurationSecond(Some(value)) => value.checked_mul(MICROS_PER_SECOND),
        ScalarValue::DurationMillisecond(Some(value)) => value.checked_mul(1_000),
        ScalarValue::DurationMicrosecond(Some(value)) => Some(*value),
        ScalarValue::DurationNanosecond(Some(value)) => Some(value / 1_000),
        ScalarValue::Int8(Some(value)) => Some(i64::from(*value) * MICROS_PER_SECOND),
        ScalarValue::Int16(Some(value)) => Some(i64::from(*value) * MICROS_PER_SECOND),
        ScalarValue::Int32(Some(value)) => Some(i64::from(*value) * MICROS_PER_SECOND),
        ScalarValue::Int64(Some(value)) => value.checked_mul(MICROS_PER_SECOND),
        ScalarValue::Float32(Some(value)) => seconds(f64::from(*value)),
        ScalarValue::Float64(Some(value)) => seconds(*value),
        ScalarValue::Decimal128(Some(value), _, scale) => seconds(*value as f64 / 10f64.powi(i32::from(*scale))),
        _ => None,
    }
}
