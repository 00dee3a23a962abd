//! `session_window`, and the functions of the plan that it becomes.

use std::sync::Arc;

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::types::{IntervalMonthDayNanoType, TimestampMicrosecondType};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StructArray, TimestampMicrosecondArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use datafusion::common::cast::{as_struct_array, as_timestamp_microsecond_array};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{ExprSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::window::{calendar_interval, time_of_argument, time_type, window_type};
use crate::error::refused;

/// Name of the function that a person writes.
pub(crate) const SESSION_WINDOW: &str = "session_window";
/// Name of [`SessionEnd`].
pub(crate) const SESSION_END: &str = "session_end";
/// Name of [`WindowEnd`].
pub(crate) const WINDOW_END: &str = "window_end";
/// Name of [`WindowBetween`] for windows that are merged where they touch.
pub(crate) const SESSION_BETWEEN: &str = "session_between";
/// Name of [`WindowBetween`] for other windows.
pub(crate) const WINDOW_BETWEEN: &str = "window_between";

/// `session_window(time, gap)`. It stands for an operator: the planner replaces it before anything is run.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionWindow {
    signature: Signature,
    zone: Arc<str>,
}

impl SessionWindow {
    pub(crate) fn udf(zone: &Arc<str>) -> ScalarUDF {
        ScalarUDF::from(Self { signature: Signature::any(2, Volatility::Immutable), zone: zone.clone() })
    }
}

impl ScalarUDFImpl for SessionWindow {
    fn name(&self) -> &str {
        SESSION_WINDOW
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(window_type(&time_of_argument(&arg_types[0], &self.zone)?))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(refused(
            "UNSUPPORTED_EXPR_FOR_OPERATOR",
            "session_window() is only supported in SELECT, WHERE and GROUP BY: compute it in a subquery and use its columns",
        ))
    }
}

/// Checks the gap of a session as Spark does: it is an interval, as text or of `make_interval()`.
pub(crate) fn check_gap(gap: &Expr, schema: &dyn ExprSchema) -> Result<()> {
    let wrong = |what: &str| {
        Err(refused(
            "_LEGACY_ERROR_TEMP_1040",
            format!("the gap of session_window() is {what}, not an interval as text: write for example '5 minutes'"),
        ))
    };
    match gap.get_type(schema)? {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => Ok(()),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let literal = |inner: &Expr| Ok(matches!(inner, Expr::Literal(ScalarValue::IntervalMonthDayNano(_), _)));
            if gap.exists(literal)? { wrong("an INTERVAL of days to seconds") } else { Ok(()) }
        }
        other => wrong(&format!("of type {other}")),
    }
}

/// Whether a gap is constant and no interval: then there are no sessions at all.
pub(crate) fn is_never(gap: &Expr) -> Result<bool> {
    match gap {
        Expr::Literal(gap, _) => Ok(constant_gap(gap)?.is_none()),
        _ => Ok(false),
    }
}

/// `session_end(time, gap)`: the end of the session that a single row makes. NULL where the gap is NULL or is not an interval.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionEnd {
    signature: Signature,
}

impl SessionEnd {
    /// The call.
    pub(crate) fn call(time: Expr, gap: Expr) -> Expr {
        let udf = ScalarUDF::from(Self { signature: Signature::any(2, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![time, gap]))
    }
}

impl ScalarUDFImpl for SessionEnd {
    fn name(&self) -> &str {
        SESSION_END
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        time_type(&arg_types[0])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let data_type = args.return_field.data_type();
        let DataType::Timestamp(TimeUnit::Microsecond, zone) = data_type else {
            return exec_err!("session_end() gives a TIMESTAMP, not {data_type}");
        };
        let zone: Tz = zone.as_deref().unwrap_or("UTC").parse()?;
        let times = args.args[0].to_array(args.number_rows)?;
        let times = as_timestamp_microsecond_array(&times)?;
        let end = |time: i64, gap: IntervalMonthDayNano| TimestampMicrosecondType::add_month_day_nano(time, gap, zone);
        let ends: TimestampMicrosecondArray = match &args.args[1] {
            ColumnarValue::Scalar(gap) => match constant_gap(gap)? {
                // Without months and days there is no calendar to look at.
                Some(gap) if gap.months == 0 && gap.days == 0 => {
                    times.unary_opt(|time| time.checked_add(gap.nanoseconds / 1_000))
                }
                Some(gap) => times.unary_opt(|time| end(time, gap)),
                None => TimestampMicrosecondArray::new_null(times.len()),
            },
            ColumnarValue::Array(gaps) => {
                let gaps = interval_array(gaps)?;
                let rows = times.iter().zip(gaps.as_primitive::<IntervalMonthDayNanoType>());
                rows.map(|(time, gap)| end(time?, gap?)).collect()
            }
        };
        Ok(ColumnarValue::Array(Arc::new(ends.with_data_type(data_type.clone()))))
    }
}

fn constant_gap(gap: &ScalarValue) -> Result<Option<IntervalMonthDayNano>> {
    let gap = interval_array(&gap.to_array()?)?;
    Ok(gap.as_primitive::<IntervalMonthDayNanoType>().iter().next().flatten())
}

/// Intervals out of text, NULL where a text is none; intervals as they are.
fn interval_array(gaps: &ArrayRef) -> Result<ArrayRef> {
    if gaps.data_type().is_null() || matches!(gaps.data_type(), DataType::Interval(IntervalUnit::MonthDayNano)) {
        return Ok(cast(gaps, &DataType::Interval(IntervalUnit::MonthDayNano))?);
    }
    let texts = cast(gaps, &DataType::Utf8)?;
    // Gaps are few and different: the text of the row before is most often that of this row.
    let mut last: Option<(&str, Option<IntervalMonthDayNano>)> = None;
    let gaps = texts.as_string::<i32>().iter().map(|text| {
        let text = text?;
        match last {
            Some((same, gap)) if same == text => gap,
            _ => {
                let gap = calendar_interval(text).ok().flatten();
                last = Some((text, gap));
                gap
            }
        }
    });
    let gaps: datafusion::arrow::array::IntervalMonthDayNanoArray = gaps.collect();
    Ok(Arc::new(gaps))
}

/// `window_end(window)`: the end of a window, for lateness and eviction. (A person's `window.end` is not an event time, for Spark.)
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowEnd {
    signature: Signature,
}

impl WindowEnd {
    /// The call.
    pub(crate) fn call(window: Expr) -> Expr {
        let udf = ScalarUDF::from(Self { signature: Signature::any(1, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![window]))
    }
}

impl ScalarUDFImpl for WindowEnd {
    fn name(&self) -> &str {
        WINDOW_END
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        time_type(&arg_types[0])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let windows = args.args[0].to_array(args.number_rows)?;
        let windows = as_struct_array(&windows)?;
        // With the NULLs of the windows themselves.
        let (fields, mut columns) = windows.flatten();
        match fields.find("end") {
            Some((end, _)) => Ok(ColumnarValue::Array(columns.swap_remove(end))),
            None => exec_err!("window_end() needs a window, not {}", windows.data_type()),
        }
    }
}

/// The window from `start` to `end`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowBetween {
    signature: Signature,
    name: &'static str,
}

impl WindowBetween {
    /// The call. A `session` is merged with those that it touches wherever it is a grouping key.
    pub(crate) fn call(start: Expr, end: Expr, session: bool) -> Expr {
        let name = if session { SESSION_BETWEEN } else { WINDOW_BETWEEN };
        let udf = ScalarUDF::from(Self { signature: Signature::any(2, Volatility::Immutable), name });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![start, end]))
    }
}

impl ScalarUDFImpl for WindowBetween {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(window_type(&time_type(&arg_types[0])?))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let DataType::Struct(fields) = args.return_field.data_type() else {
            return plan_err!("{} gives a window", self.name);
        };
        let start = args.args[0].to_array(args.number_rows)?;
        let end = args.args[1].to_array(args.number_rows)?;
        // A window that is not there is NULL, not a window of NULLs.
        let nulls = start.nulls().cloned();
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(fields.clone(), vec![start, end], nulls)?)))
    }
}
