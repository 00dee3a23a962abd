//! `sum` of integers that stops at an overflow, as Spark's does in ANSI mode; DataFusion's wraps around.

use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array};
use datafusion::arrow::compute::{not, nullif, prep_null_mask_filter, sum_checked};
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature};
use datafusion::physical_expr::NullState;

/// DataFusion's sum with checked BIGINT; all other types are as they are there.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    sum: Sum,
}

impl CheckedSum {
    pub(crate) fn udf() -> AggregateUDF {
        AggregateUDF::from(Self::default())
    }
}

fn is_checked(args: &AccumulatorArgs) -> bool {
    !args.is_distinct && *args.return_field.data_type() == DataType::Int64
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.sum.name()
    }

    fn signature(&self) -> &Signature {
        self.sum.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.sum.return_type(arg_types)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.sum.state_fields(args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if is_checked(&args) { Ok(Box::new(SumAccumulator { sum: None })) } else { self.sum.accumulator(args) }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.sum.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        if !is_checked(&args) {
            return self.sum.create_groups_accumulator(args);
        }
        Ok(Box::new(SumGroups::default()))
    }
}

fn overflow() -> ArrowError {
    ArrowError::ArithmeticOverflow(
        "ARITHMETIC_OVERFLOW: the sum is too large for BIGINT: use try_sum() to get NULL".into(),
    )
}

#[derive(Debug)]
struct SumAccumulator {
    sum: Option<i64>,
}

impl Accumulator for SumAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if let Some(sum) = sum_checked(values[0].as_primitive::<Int64Type>()).map_err(|_| overflow())? {
            self.sum = Some(self.sum.unwrap_or(0).checked_add(sum).ok_or_else(overflow)?);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(self.sum))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// Sums per group.
#[derive(Default)]
struct SumGroups {
    sums: Vec<i64>,
    seen: NullState,
}

impl GroupsAccumulator for SumGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.sums.resize(total, 0);
        let sums = &mut self.sums;
        let mut overflowed = false;
        self.seen.accumulate(groups, values[0].as_primitive::<Int64Type>(), filter, total, |group, value| {
            let (sum, over) = sums[group].overflowing_add(value);
            sums[group] = sum;
            overflowed |= over;
        });
        if overflowed { Err(overflow().into()) } else { Ok(()) }
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(states, groups, None, total)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        Ok(Arc::new(Int64Array::new(sums.into(), self.seen.build(emit_to))))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        // The sum of one value is the value; one that the filter leaves out is NULL.
        Ok(vec![match filter {
            Some(filter) => nullif(&values[0], &not(&prep_null_mask_filter(filter))?)?,
            None => values[0].clone(),
        }])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i64>() + self.seen.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(values: &[Option<i64>]) -> Vec<ArrayRef> {
        vec![Arc::new(Int64Array::from(values.to_vec()))]
    }

    #[test]
    fn an_overflow_is_an_error() {
        let mut groups = SumGroups::default();
        groups.update_batch(&column(&[Some(i64::MAX), Some(1), None]), &[0, 1, 2], None, 3).unwrap();
        assert!(
            groups.merge_batch(&column(&[Some(1)]), &[0], 3).unwrap_err().to_string().contains("ARITHMETIC_OVERFLOW")
        );

        let mut all = SumAccumulator { sum: None };
        all.update_batch(&column(&[Some(i64::MAX), None])).unwrap();
        assert!(all.update_batch(&column(&[Some(1)])).is_err());
    }

    #[test]
    fn groups_without_values_are_null() {
        let mut groups = SumGroups::default();
        groups.update_batch(&column(&[Some(2), Some(3), None]), &[0, 0, 1], None, 2).unwrap();
        let sums = groups.evaluate(EmitTo::All).unwrap();
        assert_eq!(sums.as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(5), None]);

        let filter = BooleanArray::from(vec![Some(true), Some(false), None]);
        let state = groups.convert_to_state(&column(&[Some(1), Some(2), Some(3)]), Some(&filter)).unwrap();
        assert_eq!(state[0].as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, None]);
    }
}
