//! `sum` of integers and decimals that stops at an overflow, as Spark's does in ANSI mode; DataFusion's wraps around.

use std::fmt;
use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use datafusion::arrow::compute::{not, nullif};
use datafusion::arrow::datatypes::{
    ArrowNativeTypeOp, ArrowPrimitiveType, DataType, Decimal128Type, Field, FieldRef, Int64Type,
};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use datafusion::physical_expr::NullState;

use super::types::{bounded, is_decimal, is_integral, is_number, is_string, mismatch, sql_name};
use crate::error::{failed, refused_analysis};
use crate::functions::mask;

/// DataFusion's sum of DOUBLE; the others are checked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    sum: Sum,
    signature: Signature,
}

impl CheckedSum {
    pub(crate) fn udf() -> AggregateUDF {
        AggregateUDF::from(Self { sum: Sum::default(), signature: Signature::user_defined(Volatility::Immutable) })
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.sum.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(vec![match types {
            [of] if is_integral(of) => DataType::Int64,
            [of] if is_decimal(of) => of.clone(),
            [of] if is_number(of) || is_string(of) || of.is_null() => DataType::Float64,
            [of] => {
                let message = format!("sum() needs a number, not {}", sql_name(of));
                return Err(mismatch("UNEXPECTED_INPUT_TYPE", message));
            }
            _ => return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "sum() needs 1 argument")),
        }])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match types {
            [DataType::Decimal128(precision, scale)] => bounded(i32::from(*precision) + 10, i32::from(*scale)),
            [of] => of.clone(),
            _ => DataType::Null,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = format_state_name(args.name, "sum");
        Ok(vec![Arc::new(Field::new(name, args.return_type().clone(), true))])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 => Ok(Box::new(OneSum(Sums::<Int64Type>::new(&DataType::Int64)))),
            of @ DataType::Decimal128(..) => Ok(Box::new(OneSum(Sums::<Decimal128Type>::new(of)))),
            _ => self.sum.accumulator(args),
        }
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 => Ok(Box::new(Sums::<Int64Type>::new(&DataType::Int64))),
            of @ DataType::Decimal128(..) => Ok(Box::new(Sums::<Decimal128Type>::new(of))),
            _ => self.sum.create_groups_accumulator(args),
        }
    }
}

/// Sums per group.
struct Sums<T: ArrowPrimitiveType> {
    sums: Vec<T::Native>,
    seen: NullState,
    of: DataType,
    /// No sum is beyond these.
    limits: (T::Native, T::Native),
}

impl<T: ArrowPrimitiveType<Native: ArrowNativeTypeOp> + Send> Sums<T> {
    fn new(of: &DataType) -> Self {
        let mut limits = (T::Native::MIN_TOTAL_ORDER, T::Native::MAX_TOTAL_ORDER);
        if let DataType::Decimal128(precision, _) = of {
            let ten = (0..10).fold(T::Native::ZERO, |ten, _| ten.add_wrapping(T::Native::ONE));
            let above = (0..*precision).fold(T::Native::ONE, |power, _| power.mul_wrapping(ten));
            limits = (above.neg_wrapping().add_wrapping(T::Native::ONE), above.sub_wrapping(T::Native::ONE));
        }
        Self { sums: Vec::new(), seen: NullState::new(), of: of.clone(), limits }
    }

    fn overflow(&self) -> DataFusionError {
        let condition =
            if is_decimal(&self.of) { "NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION" } else { "ARITHMETIC_OVERFLOW" };
        failed(condition, format!("the sum is too large for {}: use try_sum() to get NULL", sql_name(&self.of)))
    }
}

impl<T: ArrowPrimitiveType<Native: ArrowNativeTypeOp> + Send> GroupsAccumulator for Sums<T> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.sums.resize(total, T::Native::ZERO);
        let (sums, (least, most)) = (&mut self.sums, self.limits);
        let mut overflowed = false;
        self.seen.accumulate(groups, values[0].as_primitive::<T>(), filter, total, |group, value| {
            match sums[group].add_checked(value) {
                Ok(sum) if sum.is_ge(least) && sum.is_le(most) => sums[group] = sum,
                _ => overflowed = true,
            }
        });
        if overflowed { Err(self.overflow()) } else { Ok(()) }
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(states, groups, None, total)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let sums = PrimitiveArray::<T>::new(sums.into(), self.seen.build(emit_to));
        Ok(Arc::new(sums.with_data_type(self.of.clone())))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        // The sum of one value is the value; one that the filter leaves out is NULL.
        let values = match filter {
            Some(filter) => nullif(&values[0], &not(&mask(filter))?)?,
            None => values[0].clone(),
        };
        Ok(vec![Arc::new(values.as_primitive::<T>().clone().with_data_type(self.of.clone()))])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<T::Native>() + self.seen.size()
    }
}

/// The sum of an aggregate without groups.
struct OneSum<T: ArrowPrimitiveType>(Sums<T>);

impl<T: ArrowPrimitiveType> fmt::Debug for OneSum<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OneSum({})", self.0.of)
    }
}

impl<T: ArrowPrimitiveType<Native: ArrowNativeTypeOp> + Send> Accumulator for OneSum<T> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if values[0].is_empty() {
            return Ok(());
        }
        self.0.update_batch(values, &vec![0; values[0].len()], None, 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.0.sums.is_empty() {
            return ScalarValue::try_from(&self.0.of);
        }
        let sum = self.0.evaluate(EmitTo::All)?;
        // It may be asked for again.
        self.update_batch(std::slice::from_ref(&sum))?;
        ScalarValue::try_from_array(&sum, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self) + GroupsAccumulator::size(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::Int64Array;

    fn column(values: &[Option<i64>]) -> Vec<ArrayRef> {
        vec![Arc::new(Int64Array::from(values.to_vec()))]
    }

    #[test]
    fn an_overflow_is_an_error() {
        let mut groups = Sums::<Int64Type>::new(&DataType::Int64);
        groups.update_batch(&column(&[Some(i64::MAX), Some(1), None]), &[0, 1, 2], None, 3).unwrap();
        assert!(
            groups.merge_batch(&column(&[Some(1)]), &[0], 3).unwrap_err().to_string().contains("ARITHMETIC_OVERFLOW")
        );

        let mut all = OneSum(Sums::<Int64Type>::new(&DataType::Int64));
        all.update_batch(&column(&[Some(i64::MAX), None])).unwrap();
        assert!(all.update_batch(&column(&[Some(1)])).is_err());
    }

    #[test]
    fn groups_without_values_are_null() {
        let mut groups = Sums::<Int64Type>::new(&DataType::Int64);
        groups.update_batch(&column(&[Some(2), Some(3), None]), &[0, 0, 1], None, 2).unwrap();
        let sums = groups.evaluate(EmitTo::All).unwrap();
        assert_eq!(sums.as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(5), None]);

        let filter = BooleanArray::from(vec![Some(true), Some(false), None]);
        let state = groups.convert_to_state(&column(&[Some(1), Some(2), Some(3)]), Some(&filter)).unwrap();
        assert_eq!(state[0].as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, None]);
    }
}
