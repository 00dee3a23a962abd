//! `min_by` and `max_by`, and `min` and `max` of values that DataFusion orders otherwise: floating-point ones, where NaN is the greatest,
//! and those of several parts.

use std::cmp::Ordering;
use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, make_comparator};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{SortOptions, not, nullif};
use datafusion::arrow::datatypes::{
    ArrowNativeTypeOp, ArrowPrimitiveType, DataType, FieldRef, Float32Type, Float64Type,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use super::{Spec, wrong_count};
use crate::functions::mask;
use crate::functions::types::{mismatch, sql_name};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec {
        name: "min_by",
        aliases: &[],
        arguments: by_arguments,
        returns: |types| types[0].clone(),
        state: <[DataType]>::to_vec,
        make: |made| Extreme::by(&made.types, Ordering::Less),
    },
    &Spec {
        name: "max_by",
        aliases: &[],
        arguments: by_arguments,
        returns: |types| types[0].clone(),
        state: <[DataType]>::to_vec,
        make: |made| Extreme::by(&made.types, Ordering::Greater),
    },
];

/// Refuses keys without an order.
fn ordered(function: &str, key: &DataType) -> Result<()> {
    fn has_order(data_type: &DataType) -> bool {
        match data_type {
            DataType::Map(..) => false,
            DataType::List(item) => has_order(item.data_type()),
            DataType::Struct(fields) => fields.iter().all(|field| has_order(field.data_type())),
            _ => true,
        }
    }
    if has_order(key) {
        return Ok(());
    }
    Err(mismatch("INVALID_ORDERING_TYPE", format!("{function}() cannot order values of {}", sql_name(key))))
}

fn by_arguments(types: &[DataType]) -> Result<Vec<DataType>> {
    let [_, key] = types else { return Err(wrong_count("min_by and max_by", "2 arguments")) };
    ordered("min_by or max_by", key)?;
    Ok(types.to_vec())
}

/// The value whose key is the most extreme one; of equal keys the last one counts.
#[derive(Debug)]
struct Extreme {
    value: ScalarValue,
    key: ScalarValue,
    wanted: Ordering,
    /// Whether the values are their own keys.
    alone: bool,
}

impl Extreme {
    fn by(types: &[DataType], wanted: Ordering) -> Result<Box<dyn Accumulator>> {
        let (value, key) = (ScalarValue::try_from(&types[0])?, ScalarValue::try_from(&types[1])?);
        Ok(Box::new(Self { value, key, wanted, alone: false }))
    }
}

/// As Spark orders values: NULL inside of them first.
fn compare(left: &ArrayRef, right: &ArrayRef) -> Result<impl Fn(usize, usize) -> Ordering> {
    Ok(make_comparator(left, right, SortOptions { descending: false, nulls_first: true })?)
}

impl Accumulator for Extreme {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let keys = if self.alone { &values[0] } else { &values[1] };
        let nulls = keys.logical_nulls();
        if nulls.as_ref().is_some_and(|nulls| nulls.null_count() == keys.len()) {
            return Ok(());
        }
        let order = compare(keys, keys)?;
        let rows = (0..keys.len()).filter(|row| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row)));
        let best = rows.reduce(|best, row| if order(best, row) == self.wanted { best } else { row });
        let Some(best) = best else { return Ok(()) };
        let known = self.key.to_array()?;
        if self.key.is_null() || compare(&known, keys)?(0, best) != self.wanted {
            self.key = ScalarValue::try_from_array(keys, best)?;
            if !self.alone {
                self.value = ScalarValue::try_from_array(&values[0], best)?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        if self.alone {
            return Ok(vec![self.key.clone()]);
        }
        Ok(vec![self.value.clone(), self.key.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(if self.alone { self.key.clone() } else { self.value.clone() })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.value.size() + self.key.size()
    }
}

/// `min` and `max`.
pub(super) fn least_and_greatest() -> [AggregateUDF; 2] {
    let signature = || Signature::user_defined(Volatility::Immutable);
    [
        AggregateUDF::from(MinMax { inner: min_udaf(), wanted: Ordering::Less, signature: signature() }),
        AggregateUDF::from(MinMax { inner: max_udaf(), wanted: Ordering::Greater, signature: signature() }),
    ]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct MinMax {
    inner: Arc<AggregateUDF>,
    wanted: Ordering,
    signature: Signature,
}

/// Whether values are compared as Spark has it only here.
fn compared_here(data_type: &DataType) -> bool {
    data_type.is_nested() || matches!(data_type, DataType::Float32 | DataType::Float64)
}

impl AggregateUDFImpl for MinMax {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [of] = types else { return Err(wrong_count(self.name(), "1 argument")) };
        ordered(self.name(), of)?;
        Ok(types.to_vec())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[0].clone())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let of = args.return_field.data_type();
        if !compared_here(of) {
            return self.inner.accumulator(args);
        }
        let key = ScalarValue::try_from(of)?;
        Ok(Box::new(Extreme { value: ScalarValue::Null, key, wanted: self.wanted, alone: true }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        let of = args.return_field.data_type();
        !of.is_nested() && (compared_here(of) || self.inner.groups_accumulator_supported(args))
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        match args.return_field.data_type() {
            DataType::Float32 => Ok(Box::new(FloatGroups::<Float32Type>::new(self.wanted))),
            DataType::Float64 => Ok(Box::new(FloatGroups::<Float64Type>::new(self.wanted))),
            _ => self.inner.create_groups_accumulator(args),
        }
    }
}

/// The extreme of floating-point numbers per group.
struct FloatGroups<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    seen: Vec<bool>,
    wanted: Ordering,
}

impl<T: ArrowPrimitiveType> FloatGroups<T> {
    fn new(wanted: Ordering) -> Self {
        Self { values: Vec::new(), seen: Vec::new(), wanted }
    }
}

impl<T: ArrowPrimitiveType<Native: ArrowNativeTypeOp>> GroupsAccumulator for FloatGroups<T> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.values.resize(total, T::Native::default());
        self.seen.resize(total, false);
        let counts = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        for (row, (value, group)) in values[0].as_primitive::<T>().iter().zip(groups).enumerate() {
            let Some(value) = value.filter(|_| counts(row)) else { continue };
            // In the total order NaN is the greatest.
            if !self.seen[*group] || value.compare(self.values[*group]) == self.wanted {
                self.values[*group] = value;
                self.seen[*group] = true;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(states, groups, None, total)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (values, seen) = (emit_to.take_needed(&mut self.values), emit_to.take_needed(&mut self.seen));
        Ok(Arc::new(PrimitiveArray::<T>::new(values.into(), Some(NullBuffer::from(seen)))))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        Ok(vec![match filter {
            Some(filter) => nullif(&values[0], &not(&mask(filter))?)?,
            None => values[0].clone(),
        }])
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.seen.capacity()
    }
}
