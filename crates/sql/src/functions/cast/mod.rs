//! Spark's CAST in ANSI mode: what does not fit is an error, or NULL in `try_cast`.

mod java;
pub(crate) mod numbers;
pub(crate) mod read;
pub(crate) mod show;
pub(crate) mod time;

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, StringArray, StructArray, new_null_array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
};

use super::types::{is_decimal, is_float, is_integral, is_number, is_string, map_types, mismatch, sql_name};
use crate::error::failed;

/// Brings an expression of one type to another one.
///
/// # Errors
/// Where Spark has no cast between the two.
pub(crate) fn cast_to(expr: Expr, from: &DataType, to: &DataType, lenient: bool) -> Result<Expr> {
    if from == to {
        return Ok(expr);
    }
    if !castable(from, to) {
        return Err(mismatch(refusal(from, to), format!("{} cannot be cast to {}", sql_name(from), sql_name(to))));
    }
    // DataFusion knows these well, also when it optimises.
    let widens = match (from, to) {
        (DataType::Null, _) => true,
        (from, to) if is_integral(from) && is_integral(to) => from.primitive_width() <= to.primitive_width(),
        (from, DataType::Float64) => is_integral(from) || *from == DataType::Float32,
        (from, to) if is_string(from) && is_string(to) => true,
        _ => false,
    };
    if widens {
        return Ok(cast(expr, to.clone()));
    }
    // A literal stays one, for functions that want constants; one that cannot be cast fails when a row asks for it.
    if let Expr::Literal(value, metadata) = &expr
        && !from.is_nested()
        && let Ok(cast) = value.to_array().and_then(|array| cast_array(&array, to, lenient))
    {
        return Ok(Expr::Literal(ScalarValue::try_from_array(&cast, 0)?, metadata.clone()));
    }
    Ok(SparkCast::call(expr, to.clone(), lenient))
}

/// Spark's name of the refusal: it knows functions, or a setting, for some of the casts that it does not do.
fn refusal(from: &DataType, to: &DataType) -> &'static str {
    use DataType::{Binary, Boolean, Date32, Timestamp};
    match (from, to) {
        (from, Date32) | (Date32, from) if is_number(from) => "CAST_WITH_FUNC_SUGGESTION",
        (Date32 | Timestamp(..), Boolean) | (Boolean, Timestamp(..)) => "CAST_WITH_CONF_SUGGESTION",
        (from, Binary) if is_integral(from) => "CAST_WITH_CONF_SUGGESTION",
        _ => "CAST_WITHOUT_SUGGESTION",
    }
}

/// Whether Spark casts from one type to the other in ANSI mode.
fn castable(from: &DataType, to: &DataType) -> bool {
    use DataType::{Binary, Boolean, Date32, Duration, Interval, List, Map, Null, Struct, Timestamp};
    match (from, to) {
        (from, to) if from == to => true,
        (Null, _) => true,
        // So DataFusion numbers rows; Spark has no such type.
        (DataType::UInt64, DataType::Int32) => true,
        (List(from), List(to)) => castable(from.data_type(), to.data_type()),
        (Map(..), Map(..)) => match (map_types(from), map_types(to)) {
            (Some((fk, fv)), Some((tk, tv))) => {
                castable(fk.data_type(), tk.data_type()) && castable(fv.data_type(), tv.data_type())
            }
            _ => false,
        },
        (Struct(from), Struct(to)) => {
            from.len() == to.len() && from.iter().zip(to).all(|(from, to)| castable(from.data_type(), to.data_type()))
        }
        (_, to) if is_string(to) => true,
        (from, to) if is_string(from) => {
            is_number(to)
                || matches!(
                    to,
                    Boolean
                        | Date32
                        | Timestamp(..)
                        | Binary
                        | DataType::LargeBinary
                        | DataType::BinaryView
                        | Interval(_)
                )
        }
        // What functions of DataFusion want.
        (Binary, DataType::LargeBinary | DataType::BinaryView) => true,
        (Timestamp(..), Timestamp(..)) => true,
        (from, to) if is_number(from) && is_number(to) => true,
        (from, Boolean) | (Boolean, from) if is_number(from) => true,
        (from, Timestamp(_, Some(_))) | (Timestamp(_, Some(_)), from) if is_number(from) => true,
        (Date32 | Timestamp(..), Date32 | Timestamp(..)) => true,
        (Interval(_) | Duration(_), Interval(_) | Duration(_)) => true,
        _ => false,
    }
}

/// The cast as a function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct SparkCast {
    to: DataType,
    lenient: bool,
    signature: Signature,
}

impl SparkCast {
    fn call(expr: Expr, to: DataType, lenient: bool) -> Expr {
        let udf = ScalarUDF::from(Self { to, lenient, signature: Signature::any(1, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![expr]))
    }
}

impl ScalarUDFImpl for SparkCast {
    fn name(&self) -> &str {
        if self.lenient { "try_cast" } else { "cast" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match &args.args[0] {
            ColumnarValue::Scalar(value) => {
                let cast = cast_array(&value.to_array()?, &self.to, self.lenient)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&cast, 0)?))
            }
            ColumnarValue::Array(array) => Ok(ColumnarValue::Array(cast_array(array, &self.to, self.lenient)?)),
        }
    }
}

/// Casts values. `lenient`: what does not fit is NULL.
pub(crate) fn cast_array(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    use DataType::{Boolean, Date32, List, Map, Struct, Timestamp, Utf8};
    let from = array.data_type();
    if from == to {
        return Ok(array.clone());
    }
    match (from, to) {
        (DataType::Null, _) => Ok(new_null_array(to, array.len())),
        (List(_), List(field)) => {
            let list = array.as_list::<i32>();
            let values = cast_array(list.values(), field.data_type(), lenient)?;
            Ok(Arc::new(ListArray::try_new(field.clone(), list.offsets().clone(), values, list.nulls().cloned())?))
        }
        (Map(..), Map(entries, sorted)) => {
            let map = array.as_map();
            let Struct(fields) = entries.data_type() else {
                return Err(mismatch("CAST_WITHOUT_SUGGESTION", "a map needs keys and values"));
            };
            let columns = fields
                .iter()
                .zip([map.keys(), map.values()])
                .map(|(field, column)| cast_array(column, field.data_type(), lenient))
                .collect::<Result<Vec<_>>>()?;
            let pairs = StructArray::try_new(fields.clone(), columns, None)?;
            let map = MapArray::try_new(entries.clone(), map.offsets().clone(), pairs, map.nulls().cloned(), *sorted)?;
            Ok(Arc::new(map))
        }
        (Struct(_), Struct(fields)) => {
            let of = array.as_struct();
            let columns = fields
                .iter()
                .zip(of.columns())
                .map(|(field, column)| cast_array(column, field.data_type(), lenient))
                .collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, of.nulls().cloned(), of.len())?))
        }
        (from, to) if is_string(from) && is_string(to) => Ok(compute::cast(array, to)?),
        (_, Utf8) => Ok(Arc::new(show::text(array)?)),
        (from, _) if is_string(from) => {
            let text = compute::cast(array, &Utf8)?;
            read::read(text.as_string::<i32>(), to, lenient)
        }
        (Boolean, to) if is_number(to) => {
            let bits = compute::cast(array, &DataType::Int8)?;
            cast_array(&bits, to, lenient)
        }
        (from, Boolean) if is_number(from) => numbers::not_zero(array),
        (from, to) if is_integral(from) && is_integral(to) => numbers::integers(array, to, lenient),
        (from, to) if is_integral(from) && is_float(to) => Ok(compute::cast(array, to)?),
        (from, to) if is_float(from) && is_float(to) => Ok(compute::cast(array, to)?),
        (from, to) if is_float(from) && is_integral(to) => numbers::floats_to_integers(array, to, lenient),
        (from, to) if is_decimal(from) && is_integral(to) => numbers::decimals_to_integers(array, to, lenient),
        (from, to) if is_decimal(from) && is_float(to) => numbers::decimals_to_floats(array, to),
        (from, to) if is_decimal(to) && is_number(from) => numbers::to_decimals(array, to, lenient),
        (from, Timestamp(_, Some(_))) if is_number(from) => time::from_number(array, to, lenient),
        (Timestamp(_, Some(_)), to) if is_number(to) => time::to_number(array, to, lenient),
        (Date32 | Timestamp(..), Date32 | Timestamp(..)) => time::convert(array, to),
        _ => Ok(compute::cast(array, to)?),
    }
}

/// A text that is no value of a type.
fn malformed(text: &str, to: &DataType) -> DataFusionError {
    failed(
        "CAST_INVALID_INPUT",
        format!("the text '{text}' is no {}: correct it, or use try_cast() to get NULL", sql_name(to)),
    )
}

/// A value that is too large for a type.
fn too_large(value: impl std::fmt::Display, from: &DataType, to: &DataType) -> DataFusionError {
    failed(
        "CAST_OVERFLOW",
        format!("the {} {value} does not fit into {}: use try_cast() to get NULL", sql_name(from), sql_name(to)),
    )
}

/// A number with too many digits for a DECIMAL.
fn too_many_digits(value: impl std::fmt::Display, to: &DataType) -> DataFusionError {
    failed(
        "NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION",
        format!("{value} has too many digits for {}: use try_cast() to get NULL", sql_name(to)),
    )
}

/// Texts, with the NULLs of their source.
fn texts(rows: usize, nulls: Option<&NullBuffer>, mut show: impl FnMut(usize, &mut String)) -> StringArray {
    let mut builder = datafusion::arrow::array::StringBuilder::with_capacity(rows, rows * 12);
    let mut text = String::new();
    for row in 0..rows {
        if nulls.is_some_and(|nulls| nulls.is_null(row)) {
            builder.append_null();
        } else {
            text.clear();
            show(row, &mut text);
            builder.append_value(&text);
        }
    }
    builder.finish()
}
