//! Percentiles, `median` and `mode`: how often each value occurs tells them exactly, also the approximate ones.

use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, UInt32Array, new_empty_array};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{concat, filter, is_not_null, take};
use datafusion::arrow::datatypes::{DataType, Date32Type, Field, Float64Type, Int32Type, Int64Type};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;

use super::{Made, Spec, is_numeric, wrong_count, wrong_type};
use crate::error::failed;
use crate::functions::hash::Murmur3;
use crate::functions::types::{element_of, is_number, is_string, list_of, mismatch};

/// The functions of this file. Those with an order have it as a last argument: whether it descends.
pub(super) static ALL: &[&Spec] = &[
    &Spec {
        name: "percentile",
        aliases: &[],
        arguments: |types| percentile_arguments(types, 3, DataType::Int64),
        returns: fractions_type,
        state: |_| counted_state(&DataType::Float64),
        make: |made| counted(made, Pick::Between, made.types.get(2).map(|_| 2), None),
    },
    &Spec {
        name: "median",
        aliases: &[],
        arguments: |types| match types {
            [of] if is_numeric(of) => Ok(vec![DataType::Float64]),
            [of] => Err(wrong_type("median", "a number", of)),
            _ => Err(wrong_count("median", "1 argument")),
        },
        returns: |_| DataType::Float64,
        state: |_| counted_state(&DataType::Float64),
        make: |made| counted(made, Pick::Between, None, None),
    },
    &Spec {
        name: "percentile_cont",
        aliases: &[],
        arguments: |types| percentile_arguments(types, 3, DataType::Boolean),
        returns: fractions_type,
        state: |_| counted_state(&DataType::Float64),
        make: |made| counted(made, Pick::Between, None, Some(2)),
    },
    &Spec {
        name: "percentile_disc",
        aliases: &[],
        arguments: |types| percentile_arguments(types, 3, DataType::Boolean),
        returns: fractions_type,
        state: |_| counted_state(&DataType::Float64),
        make: |made| counted(made, Pick::At, None, Some(2)),
    },
    &Spec {
        name: "percentile_approx",
        aliases: &["approx_percentile"],
        arguments: approximate_arguments,
        returns: |types| match element_of(&types[1]) {
            Some(_) => list_of(types[0].clone()),
            None => types[0].clone(),
        },
        state: |types| counted_state(&types[0]),
        make: |made| {
            let accuracy = made.constant(2, "the accuracy")?;
            if accuracy.is_some_and(|accuracy| !matches!(accuracy, ScalarValue::Int64(Some(1..=2_147_483_647)))) {
                return Err(out_of_range("the accuracy of percentile_approx() must be from 1 to 2147483647"));
            }
            counted(made, Pick::At, None, None)
        },
    },
    &Spec {
        name: "mode",
        aliases: &[],
        arguments: |types| match types {
            [of] => Ok(vec![of.clone()]),
            // Whether the least one of several counts, and whether that is the greatest one.
            [of, _] => Ok(vec![of.clone(), DataType::Boolean]),
            [of, _, _] => Ok(vec![of.clone(), DataType::Boolean, DataType::Boolean]),
            _ => Err(wrong_count("mode", "1 or 2 arguments")),
        },
        returns: |types| types[0].clone(),
        state: |types| counted_state(&types[0]),
        make: |made| {
            let ordered = matches!(made.constant(1, "the second argument")?, Some(ScalarValue::Boolean(Some(true))));
            counted(made, if ordered { Pick::LeastMode } else { Pick::AnyMode }, None, Some(2))
        },
    },
];

fn out_of_range(message: &str) -> datafusion::common::DataFusionError {
    mismatch("VALUE_OUT_OF_RANGE", message)
}

/// A value, one or several fractions, and a last argument that may be left out.
fn percentile_arguments(types: &[DataType], most: usize, last: DataType) -> Result<Vec<DataType>> {
    if !(2..=most).contains(&types.len()) {
        return Err(wrong_count("a percentile", "a value and which part of the values is below"));
    }
    if !is_numeric(&types[0]) {
        return Err(wrong_type("a percentile", "a number", &types[0]));
    }
    Ok([DataType::Float64, fractions(&types[1])?].into_iter().chain(types.get(2).map(|_| last)).collect())
}

fn approximate_arguments(types: &[DataType]) -> Result<Vec<DataType>> {
    if !(2..=3).contains(&types.len()) {
        return Err(wrong_count("percentile_approx", "a value, which part of the values is below, and an accuracy"));
    }
    let of = match &types[0] {
        of if is_number(of) || matches!(of, DataType::Date32 | DataType::Timestamp(..)) => of.clone(),
        of if is_string(of) || of.is_null() => DataType::Float64,
        of => return Err(wrong_type("percentile_approx", "a number, a date or a time", of)),
    };
    Ok([of, fractions(&types[1])?].into_iter().chain(types.get(2).map(|_| DataType::Int64)).collect())
}

fn fractions(data_type: &DataType) -> Result<DataType> {
    match element_of(data_type) {
        Some(item) if is_numeric(item) => Ok(list_of(DataType::Float64)),
        None if is_numeric(data_type) => Ok(DataType::Float64),
        _ => Err(wrong_type("a percentile", "a fraction or an ARRAY of them", data_type)),
    }
}

fn fractions_type(types: &[DataType]) -> DataType {
    types[1].clone()
}

/// Values, and how often each of them occurs.
fn counted_state(of: &DataType) -> Vec<DataType> {
    vec![list_of(of.clone()), list_of(DataType::Int64)]
}

/// Which of the values is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    /// What lies between the two that are nearest to the fraction.
    Between,
    /// The first one at or above the fraction.
    At,
    /// One of those that occur most often: the one that Spark's hash table has first.
    AnyMode,
    /// The least one of those that occur most often.
    LeastMode,
}

fn counted(
    made: &Made<'_>,
    pick: Pick,
    frequency: Option<usize>,
    descending: Option<usize>,
) -> Result<Box<dyn Accumulator>> {
    let is_mode = matches!(pick, Pick::AnyMode | Pick::LeastMode);
    let (mut fractions, mut several) = (vec![0.5], false);
    if made.types.len() > 1 && !is_mode {
        several = element_of(&made.types[1]).is_some();
        fractions = match made.constant(1, "the fraction")? {
            Some(ScalarValue::Float64(Some(fraction))) => vec![*fraction],
            Some(ScalarValue::List(list)) if list.is_valid(0) && list.value(0).null_count() == 0 => {
                list.value(0).as_primitive::<Float64Type>().values().to_vec()
            }
            _ => return Err(mismatch("UNEXPECTED_NULL", "the fraction of a percentile is NULL")),
        };
        if fractions.iter().any(|fraction| !(0.0..=1.0).contains(fraction)) {
            return Err(out_of_range("the fraction of a percentile must be from 0.0 to 1.0"));
        }
    }
    let descending = match descending {
        Some(at) => matches!(made.constant(at, "the order")?, Some(ScalarValue::Boolean(Some(true)))),
        None => false,
    };
    Ok(Box::new(Counted {
        of: made.types[0].clone(),
        values: Vec::new(),
        counts: Vec::new(),
        pick,
        fractions,
        several,
        frequency,
        descending,
    }))
}

#[derive(Debug)]
struct Counted {
    of: DataType,
    values: Vec<ArrayRef>,
    counts: Vec<ArrayRef>,
    pick: Pick,
    fractions: Vec<f64>,
    /// Whether the result is an array.
    several: bool,
    /// The argument that says how often a value counts.
    frequency: Option<usize>,
    descending: bool,
}

impl Counted {
    /// Brings each value to one place, in order.
    fn compact(&mut self) -> Result<(ArrayRef, Int64Array)> {
        if self.values.is_empty() {
            return Ok((new_empty_array(&self.of), Int64Array::from(Vec::<i64>::new())));
        }
        let all = |pieces: &[ArrayRef]| concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>());
        let (values, counts) = (all(&self.values)?, all(&self.counts)?);
        let counts = counts.as_primitive::<Int64Type>();
        let converter = RowConverter::new(vec![SortField::new(self.of.clone())])?;
        let rows = converter.convert_columns(std::slice::from_ref(&values))?;
        let mut order: Vec<u32> = (0..values.len() as u32).collect();
        order.sort_by(|left, right| rows.row(*left as usize).cmp(&rows.row(*right as usize)));
        let (mut first, mut sums): (Vec<u32>, Vec<i64>) = (Vec::new(), Vec::new());
        for row in order {
            let count = counts.value(row as usize);
            match (first.last(), sums.last_mut()) {
                (Some(last), Some(sum)) if rows.row(*last as usize) == rows.row(row as usize) => *sum += count,
                _ => {
                    first.push(row);
                    sums.push(count);
                }
            }
        }
        let values = take(&values, &UInt32Array::from(first), None)?;
        let counts = Int64Array::from(sums);
        self.values = vec![values.clone()];
        self.counts = vec![Arc::new(counts.clone())];
        Ok((values, counts))
    }

    /// The values at the fractions. `values` are in order, `counts` say how often they occur.
    fn at(&self, values: &ArrayRef, counts: &Int64Array) -> Result<ArrayRef> {
        let total: i64 = counts.values().iter().sum();
        let upto = |wanted: i64| {
            let mut seen = 0;
            counts.values().iter().position(|count| {
                seen += count;
                seen >= wanted
            })
        };
        if self.pick == Pick::At {
            let wanted = self.fractions.iter().map(|fraction| upto((total as f64 * fraction).ceil() as i64));
            let indexes: UInt32Array = wanted.map(|index| index.map(|index| index as u32)).collect();
            return Ok(take(values, &indexes, None)?);
        }
        let numbers = values.as_primitive::<Float64Type>();
        let between = self.fractions.iter().map(|fraction| {
            let position = (total - 1) as f64 * fraction;
            let (lower, upper) = (position.floor(), position.ceil());
            let (low, high) = (upto(lower as i64 + 1)?, upto(upper as i64 + 1)?);
            let (low, high) = (numbers.value(low), numbers.value(high));
            Some(if low == high || lower == upper { low } else { (upper - position) * low + (position - lower) * high })
        });
        Ok(Arc::new(between.collect::<datafusion::arrow::array::Float64Array>()))
    }

    fn mode(&self, values: &ArrayRef, counts: &Int64Array) -> Result<ScalarValue> {
        let most = counts.values().iter().copied().max().unwrap_or(0);
        let mut best = (0..counts.len()).filter(|row| counts.value(*row) == most);
        let chosen = match (self.pick, self.descending) {
            (Pick::LeastMode, true) => best.next_back(),
            (Pick::LeastMode, false) => best.next(),
            _ => {
                let places = places(values);
                best.min_by_key(|row| places.as_ref().map_or(0, |places| places[*row]))
            }
        };
        match chosen {
            Some(row) => ScalarValue::try_from_array(values, row),
            None => ScalarValue::try_from(&self.of),
        }
    }
}

/// The places of values in the hash table that Spark counts them in, for types whose hash is known.
fn places(values: &ArrayRef) -> Option<Vec<u32>> {
    let fold = |bits: u64| (bits ^ bits >> 32) as u32;
    let hashes: Vec<u32> = match values.data_type() {
        DataType::Int32 => values.as_primitive::<Int32Type>().values().iter().map(|v| v.cast_unsigned()).collect(),
        DataType::Date32 => values.as_primitive::<Date32Type>().values().iter().map(|v| v.cast_unsigned()).collect(),
        DataType::Int64 => {
            values.as_primitive::<Int64Type>().values().iter().map(|v| fold(v.cast_unsigned())).collect()
        }
        DataType::Float64 => values.as_primitive::<Float64Type>().values().iter().map(|v| fold(v.to_bits())).collect(),
        DataType::Boolean => values.as_boolean().values().iter().map(|v| if v { 1231 } else { 1237 }).collect(),
        DataType::Utf8 => {
            values.as_string::<i32>().iter().flatten().map(|text| Murmur3::of_bytes(text.as_bytes(), 42)).collect()
        }
        _ => return None,
    };
    // It begins with 64 places and grows when more than 70 % of them are taken.
    let mut size = 64u32;
    while values.len() as f64 > 0.7 * f64::from(size) {
        size = size.checked_mul(2)?;
    }
    Some(hashes.into_iter().map(|hash| Murmur3::of_int(hash.cast_signed(), 0) & (size - 1)).collect())
}

impl Accumulator for Counted {
    fn update_batch(&mut self, arguments: &[ArrayRef]) -> Result<()> {
        let mut kept = is_not_null(&arguments[0])?;
        if let Some(logical) = arguments[0].logical_nulls() {
            kept = logical.inner().clone().into();
        }
        let counts: ArrayRef = match self.frequency {
            Some(at) => {
                let counts = arguments[at].as_primitive::<Int64Type>();
                if let Some(negative) = counts.iter().flatten().find(|count| *count < 0) {
                    let message = format!("the frequency of percentile() is {negative}, and must not be negative");
                    return Err(failed("NEGATIVE_VALUES_IN_FREQUENCY_EXPRESSION", message));
                }
                kept =
                    kept.iter().zip(counts.iter()).map(|(k, c)| Some(k == Some(true) && c.unwrap_or(0) > 0)).collect();
                arguments[at].clone()
            }
            None => Arc::new(Int64Array::from_value(1, arguments[0].len())),
        };
        let values = filter(&arguments[0], &kept)?;
        if !values.is_empty() {
            self.values.push(values);
            self.counts.push(filter(&counts, &kept)?);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (values, counts) = (states[0].as_list::<i32>(), states[1].as_list::<i32>());
        for row in (0..values.len()).filter(|row| values.is_valid(*row) && values.value_length(*row) > 0) {
            self.values.push(values.value(row));
            self.counts.push(counts.value(row));
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let (values, counts) = self.compact()?;
        Ok(vec![one_list(values)?, one_list(Arc::new(counts))?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let (mut values, mut counts) = self.compact()?;
        if matches!(self.pick, Pick::AnyMode | Pick::LeastMode) {
            return self.mode(&values, &counts);
        }
        if values.is_empty() {
            let data_type = if self.several { list_of(self.of.clone()) } else { self.of.clone() };
            return ScalarValue::try_from(&data_type);
        }
        if self.descending {
            let back = UInt32Array::from_iter_values((0..values.len() as u32).rev());
            values = take(&values, &back, None)?;
            counts = take(&counts, &back, None)?.as_primitive::<Int64Type>().clone();
        }
        let found = self.at(&values, &counts)?;
        if self.several { one_list(found) } else { ScalarValue::try_from_array(&found, 0) }
    }

    fn size(&self) -> usize {
        let arrays = self.values.iter().chain(&self.counts);
        size_of_val(self) + arrays.map(|array| array.get_array_memory_size() + size_of::<ArrayRef>()).sum::<usize>()
    }
}

/// Values as one list.
pub(super) fn one_list(values: ArrayRef) -> Result<ScalarValue> {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([values.len()]);
    Ok(ScalarValue::List(Arc::new(ListArray::try_new(field, offsets, values, None)?)))
}
