//! `avg` and `try_avg`: DECIMAL for DECIMAL, rounded half up, DOUBLE for other numbers.

use std::mem::size_of_val;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, i256};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::average::avg_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature, Volatility};

use super::{is_numeric, wrong_count, wrong_type};
use crate::error::failed;
use crate::functions::decimal::{divide_half_up, fit, rescale};
use crate::functions::types::{bounded, is_decimal, sql_name};

/// The functions of this file.
pub(super) fn averages() -> [AggregateUDF; 2] {
    let average = |name, lenient, aliases: &[&str]| {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let signature = Signature::user_defined(Volatility::Immutable);
        AggregateUDF::from(Average { doubles: avg_udaf(), name, lenient, aliases, signature })
    };
    [average("avg", false, &["mean"]), average("try_avg", true, &[])]
}

/// DataFusion's average with decimals of its own.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Average {
    doubles: Arc<AggregateUDF>,
    name: &'static str,
    /// Whether a failure is NULL.
    lenient: bool,
    aliases: Vec<String>,
    signature: Signature,
}

impl AggregateUDFImpl for Average {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        arguments(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match types {
            [DataType::Decimal128(precision, scale)] => bounded(i32::from(*precision) + 4, i32::from(*scale) + 4),
            _ => DataType::Float64,
        })
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let DataType::Decimal128(_, scale) = args.input_fields[0].data_type() else {
            return self.doubles.state_fields(args);
        };
        let field = |part: &str, of| Arc::new(Field::new(format_state_name(args.name, part), of, true));
        Ok(vec![field("sum", DataType::Decimal128(38, *scale)), field("count", DataType::Int64)])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match (args.expr_fields[0].data_type(), args.return_field.data_type()) {
            (DataType::Decimal128(_, scale), DataType::Decimal128(precision, result)) => Ok(Box::new(Decimals {
                sum: Some(0),
                count: 0,
                scale: *scale,
                result: (*precision, *result),
                lenient: self.lenient,
            })),
            _ => self.doubles.accumulator(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !is_decimal(args.return_field.data_type()) && self.doubles.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        self.doubles.create_groups_accumulator(args)
    }
}

fn arguments(types: &[DataType]) -> Result<Vec<DataType>> {
    match types {
        [DataType::Decimal128(..)] => Ok(types.to_vec()),
        [of] if is_numeric(of) => Ok(vec![DataType::Float64]),
        [of] => Err(wrong_type("avg", "a number", of)),
        _ => Err(wrong_count("avg", "1 argument")),
    }
}

#[derive(Debug)]
struct Decimals {
    /// Nothing once it had more digits than a DECIMAL can have.
    sum: Option<i128>,
    count: i64,
    scale: i8,
    /// Precision and scale.
    result: (u8, i8),
    lenient: bool,
}

impl Decimals {
    fn add(&mut self, value: Option<i128>) {
        let total = self.sum.zip(value).map(|(sum, value)| i256::from_i128(sum).wrapping_add(i256::from_i128(value)));
        self.sum = total.and_then(|total| fit(total, 38));
    }
}

impl Accumulator for Decimals {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = values[0].as_primitive::<Decimal128Type>();
        values.iter().flatten().for_each(|value| self.add(Some(value)));
        self.count += (values.len() - values.null_count()) as i64;
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (sums, counts) = (states[0].as_primitive::<Decimal128Type>(), states[1].as_primitive::<Int64Type>());
        for (sum, count) in sums.iter().zip(counts.iter()) {
            if let Some(count) = count.filter(|count| *count > 0) {
                self.add(sum);
                self.count += count;
            }
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal128(self.sum, 38, self.scale), ScalarValue::Int64(Some(self.count))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let (precision, scale) = self.result;
        if self.count == 0 {
            return Ok(ScalarValue::Decimal128(None, precision, scale));
        }
        let average = self.sum.and_then(|sum| {
            let sum = rescale(i256::from_i128(sum), i32::from(self.scale), i32::from(scale))?;
            fit(divide_half_up(sum, i256::from_i128(self.count.into()))?, precision)
        });
        if average.is_none() && !self.lenient {
            let data_type = sql_name(&DataType::Decimal128(precision, scale));
            let message = format!("the average has too many digits for {data_type}: use try_avg() to get NULL");
            return Err(failed("ARITHMETIC_OVERFLOW", message));
        }
        Ok(ScalarValue::Decimal128(average, precision, scale))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}
