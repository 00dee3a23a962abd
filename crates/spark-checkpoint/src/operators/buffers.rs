//! The buffers of aggregates: which columns Spark has for them, and how these become ours and the other way round.
//!
//! Only functions stand here whose buffers hold the same in both engines. The others are refused: what they keep is theirs alone (the registers
//! of `approx_count_distinct`, the binary buffers of `collect_list` and `percentile`), or would come back with other last digits (`corr`).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{cast, is_null, nullif};
use arrow::datatypes::{DataType, Decimal128Type, Field, Float64Type, Int64Type, Schema, UInt64Type};
use perennial_core::error::{Error, Result};
use perennial_core::layout::AggregateLayout;

use super::{columns_of, fit};

/// How an aggregate is kept.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// One column that is the same in both.
    Plain(&'static str),
    /// A count, which is never NULL.
    Count,
    /// A sum that has a mark for "nothing was added yet" beside it, because NULL means an overflow. Ours is NULL then.
    Decimal,
    /// The same, where an overflow is no error: ours has a mark for that.
    TrySum,
    /// Sum and count; ours the other way round.
    Average,
    /// The same of decimals, where both keep the same, ours with more digits.
    DecimalAverage,
    /// A value, and whether there was one.
    Edge(&'static str),
    /// Count, mean and the sum of squares of the distances from it.
    Moments,
}

/// An aggregate, and the columns that Spark has for it.
#[derive(Debug, Clone)]
pub(crate) struct Buffers<'a> {
    aggregate: &'a AggregateLayout,
    kind: Kind,
    pub(crate) fields: Vec<Field>,
}

/// Why an aggregate cannot be moved.
pub(crate) type Why = String;

impl<'a> Buffers<'a> {
    /// `state` has the columns of ours.
    pub(crate) fn new(aggregate: &'a AggregateLayout, state: &Schema) -> Result<Self, Why> {
        let unknown = || format!("what `{}` keeps is not the same in both engines", aggregate.call);
        if !aggregate.plain {
            return Err(unknown());
        }
        let own = |index: usize| state.field(aggregate.columns.start + index).data_type().clone();
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        let (kind, fields) = match aggregate.function.as_str() {
            "count" => (Kind::Count, vec![field("count", DataType::Int64)]),
            "sum" => match own(0) {
                decimal @ DataType::Decimal128(..) => {
                    (Kind::Decimal, vec![field("sum", decimal), field("isEmpty", DataType::Boolean)])
                }
                number @ (DataType::Int64 | DataType::Float64) => (Kind::Plain("sum"), vec![field("sum", number)]),
                _ => return Err(unknown()),
            },
            "try_sum" => (Kind::TrySum, vec![field("sum", own(0)), field("isEmpty", DataType::Boolean)]),
            "avg" => {
                let (kind, sum) = match (own(0), own(1), aggregate.arguments.first()) {
                    (DataType::UInt64, DataType::Float64, _) => (Kind::Average, DataType::Float64),
                    // Spark's has as many digits as the argument, and ten more.
                    (DataType::Decimal128(..), DataType::Int64, Some(DataType::Decimal128(digits, scale))) => {
                        (Kind::DecimalAverage, DataType::Decimal128((digits + 10).min(38), *scale))
                    }
                    _ => return Err(unknown()),
                };
                (kind, vec![field("sum", sum), field("count", DataType::Int64)])
            }
            "min" | "bool_and" => (Kind::Plain("min"), vec![field("min", plain(own(0)))]),
            "max" | "bool_or" => (Kind::Plain("max"), vec![field("max", plain(own(0)))]),
            "first_value" => {
                (Kind::Edge("first"), vec![field("first", plain(own(0))), field("valueSet", DataType::Boolean)])
            }
            "last_value" => {
                (Kind::Edge("last"), vec![field("last", plain(own(0))), field("valueSet", DataType::Boolean)])
            }
            "stddev" | "stddev_pop" | "var" | "var_pop" => {
                (Kind::Moments, ["n", "avg", "m2"].map(|name| field(name, DataType::Float64)).to_vec())
            }
            _ => return Err(unknown()),
        };
        Ok(Self { aggregate, kind, fields })
    }

    /// Whether these are its columns in a state of Spark.
    fn fits(&self, fields: &[&Field]) -> bool {
        self.fields.len() == fields.len()
            && self
                .fields
                .iter()
                .zip(fields)
                .all(|(ours, spark)| ours.name() == spark.name() && super::is_same(spark.data_type(), ours.data_type()))
    }

    /// Our columns, made of Spark's.
    pub(crate) fn take(&self, spark: &[ArrayRef], state: &Schema) -> Result<Vec<ArrayRef>, Why> {
        let wanted = |index: usize| state.field(self.aggregate.columns.start + index).data_type();
        let fitted = |column: &ArrayRef, index: usize| {
            fit(column, wanted(index)).ok_or_else(|| format!("`{}` has another type", self.aggregate.call))
        };
        let broken = |what: &str| format!("the buffer of `{}` {what}", self.aggregate.call);
        let overflow = || broken("has overflowed: Spark gives NULL for it, the job would stop");
        match self.kind {
            Kind::Plain(_) => Ok(vec![fitted(&spark[0], 0)?]),
            Kind::Count => match spark[0].null_count() {
                0 => Ok(vec![fitted(&spark[0], 0)?]),
                _ => Err(broken("has a count that is NULL")),
            },
            Kind::Decimal | Kind::TrySum => {
                let empty = spark[1].as_boolean();
                if empty.null_count() > 0 {
                    return Err(broken("does not say whether it is empty"));
                }
                let failed: BooleanArray =
                    (0..empty.len()).map(|row| Some(spark[0].is_null(row) && !empty.value(row))).collect();
                let sum = nullif(&fitted(&spark[0], 0)?, empty).map_err(|error| error.to_string())?;
                match self.kind {
                    Kind::TrySum => Ok(vec![sum, Arc::new(failed)]),
                    _ if failed.true_count() > 0 => Err(overflow()),
                    _ => Ok(vec![sum]),
                }
            }
            Kind::Average => {
                let counts = spark[1].as_primitive::<Int64Type>();
                if counts.null_count() > 0 || counts.values().iter().any(|count| *count < 0) {
                    return Err(broken("has no count"));
                }
                let is_lost = |row: usize| spark[0].is_null(row) && counts.value(row) > 0;
                if (0..counts.len()).any(is_lost) {
                    return Err(overflow());
                }
                // Nothing was added: sum and count are NULL in ours (a count of 0 would be divided by), 0 in Spark's.
                let empty = BooleanArray::from_unary(counts, |count| count == 0);
                let sum = nullif(&spark[0], &empty).map_err(|error| error.to_string())?;
                let counts: UInt64Array = counts.unary(|count| count as u64);
                let counts = nullif(&counts, &empty).map_err(|error| error.to_string())?;
                Ok(vec![counts, sum])
            }
            Kind::DecimalAverage => {
                if spark[1].null_count() > 0 || spark[1].as_primitive::<Int64Type>().values().iter().any(|n| *n < 0) {
                    return Err(broken("has no count"));
                }
                if spark[0].null_count() > 0 {
                    return Err(overflow());
                }
                let sum = cast(&spark[0], wanted(0)).map_err(|error| error.to_string())?;
                Ok(vec![sum, spark[1].clone()])
            }
            Kind::Edge(_) => match spark[1].null_count() {
                0 => Ok(vec![fitted(&spark[0], 0)?, spark[1].clone()]),
                _ => Err(broken("does not say whether it has a value")),
            },
            Kind::Moments => {
                let counts = spark[0].as_primitive::<Float64Type>();
                let is_count = |count: f64| count >= 0.0 && count.fract() == 0.0 && count < 9e15;
                let has_null = spark.iter().any(|column| column.null_count() > 0);
                if has_null || !counts.values().iter().all(|count| is_count(*count)) {
                    return Err(broken("has no count"));
                }
                let counts: UInt64Array = counts.unary(|count| count as u64);
                Ok(vec![Arc::new(counts), spark[1].clone(), spark[2].clone()])
            }
        }
    }

    /// Spark's columns, made of rows of ours.
    pub(crate) fn give(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let ours = &rows.columns()[self.aggregate.columns.clone()];
        let failed = |error: arrow::error::ArrowError| {
            Error::bug(format!("the buffer of `{}` cannot be given away: {error}", self.aggregate.call))
        };
        let fitted = |column: &ArrayRef, index: usize| {
            let to = self.fields[index].data_type();
            fit(column, to).ok_or_else(|| Error::bug(format!("`{}` has another type", self.aggregate.call)))
        };
        Ok(match self.kind {
            Kind::Plain(_) | Kind::Count => vec![fitted(&ours[0], 0)?],
            Kind::Edge(_) => vec![fitted(&ours[0], 0)?, ours[1].clone()],
            Kind::Decimal => {
                let empty = is_null(&ours[0]).map_err(failed)?;
                vec![or_zero(&ours[0]), Arc::new(empty)]
            }
            Kind::TrySum => {
                let overflowed = ours[1].as_boolean();
                let empty: BooleanArray =
                    (0..overflowed.len()).map(|row| Some(ours[0].is_null(row) && !overflowed.value(row))).collect();
                let sum = nullif(&or_zero(&ours[0]), overflowed).map_err(failed)?;
                let sum = match ours[0].data_type() {
                    // A plain sum that is empty is NULL, a decimal one 0.
                    DataType::Decimal128(..) => sum,
                    _ => ours[0].clone(),
                };
                vec![sum, Arc::new(empty)]
            }
            Kind::Average => {
                let counts: Int64Array = ours[0].as_primitive::<UInt64Type>().unary(|count| count as i64);
                let counts: ArrayRef = Arc::new(counts);
                vec![or_zero(&ours[1]), or_zero(&counts)]
            }
            Kind::DecimalAverage => {
                vec![cast(&ours[0], self.fields[0].data_type()).map_err(failed)?, ours[1].clone()]
            }
            Kind::Moments => {
                let counts: Float64Array = ours[0].as_primitive::<UInt64Type>().unary(|count| count as f64);
                let counts: ArrayRef = Arc::new(counts);
                vec![or_zero(&counts), or_zero(&ours[1]), or_zero(&ours[2])]
            }
        })
    }
}

/// A type without what only DataFusion has.
fn plain(data_type: DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        other => other,
    }
}

/// Numbers with 0 in place of NULL.
fn or_zero(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Int64 => {
            Arc::new(column.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect::<Int64Array>())
        }
        DataType::Float64 => Arc::new(
            column.as_primitive::<Float64Type>().iter().map(Option::unwrap_or_default).collect::<Float64Array>(),
        ),
        DataType::Decimal128(..) => {
            let numbers = column.as_primitive::<Decimal128Type>();
            let filled: arrow::array::Decimal128Array =
                numbers.iter().map(|number| Some(number.unwrap_or_default())).collect();
            Arc::new(filled.with_data_type(column.data_type().clone()))
        }
        _ => column.clone(),
    }
}

/// The buffers of all aggregates of an operator.
pub(crate) fn all<'a>(aggregates: &'a [AggregateLayout], state: &Schema) -> Result<Vec<Buffers<'a>>, Why> {
    aggregates.iter().map(|aggregate| Buffers::new(aggregate, state)).collect()
}

/// Our columns for all aggregates, made of the columns of Spark's values, which begin with the first buffer.
pub(crate) fn take_all(
    aggregates: &[AggregateLayout],
    spark: &[&Field],
    columns: &[ArrayRef],
    state: &Schema,
) -> Result<Vec<ArrayRef>, Why> {
    let buffers = all(aggregates, state)?;
    let expected: Vec<Field> = buffers.iter().flat_map(|buffers| buffers.fields.clone()).collect();
    let mut at = 0;
    let mut made = Vec::new();
    for of in &buffers {
        let range = at..at + of.fields.len();
        match spark.get(range.clone()) {
            Some(fields) if of.fits(fields) => made.extend(of.take(&columns[range.clone()], state)?),
            _ => {
                at = usize::MAX;
                break;
            }
        }
        at = range.end;
    }
    if at != spark.len() {
        let there = Schema::new(spark.iter().map(|field| (*field).clone()).collect::<Vec<_>>());
        return Err(format!(
            "the aggregates differ: Spark kept ({}), the job's query needs ({}). They must be the same ones in the same order; Spark keeps \
             equal ones once",
            columns_of(&there),
            columns_of(&Schema::new(expected))
        ));
    }
    Ok(made)
}
