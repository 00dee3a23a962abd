//! Grouping keys of floating point: Spark makes -0.0 and 0.0 one group, and all NaN one group.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// `grouping_key(x)`: `x` with one zero and one NaN.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupingKey {
    signature: Signature,
}

impl GroupingKey {
    /// The call.
    pub(crate) fn call(expr: Expr) -> Expr {
        let udf = ScalarUDF::from(Self { signature: Signature::any(1, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![expr]))
    }

    /// Whether keys of this type need it.
    pub(crate) fn needed(data_type: &DataType) -> bool {
        matches!(data_type, DataType::Float32 | DataType::Float64)
    }
}

impl ScalarUDFImpl for GroupingKey {
    fn name(&self) -> &str {
        "grouping_key"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let keys = args.args[0].to_array(args.number_rows)?;
        if !Self::needed(keys.data_type()) {
            return exec_err!("grouping_key() needs a floating-point column, not {}", keys.data_type());
        }
        Ok(ColumnarValue::Array(normalise(&keys)?))
    }
}

/// Values with one zero and one NaN; what has neither stays as it is.
pub(crate) fn normalise(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        // Adding 0.0 turns -0.0 into 0.0.
        DataType::Float32 => Arc::new(
            array
                .as_primitive::<Float32Type>()
                .unary::<_, Float32Type>(|x| if x.is_nan() { f32::NAN } else { x + 0.0 }),
        ),
        DataType::Float64 => Arc::new(
            array
                .as_primitive::<Float64Type>()
                .unary::<_, Float64Type>(|x| if x.is_nan() { f64::NAN } else { x + 0.0 }),
        ),
        _ => array.clone(),
    })
}
