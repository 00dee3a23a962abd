//! Spark's arithmetic in ANSI mode: `/` is never an integer division, decimals have Spark's types, overflow and division by zero are
//! errors; the `try_` forms give NULL instead.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::{
    ArrowNativeTypeOp, ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type,
};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;

use super::decimal::Scales;
use super::types::{
    adjusted, as_decimal, bounded, common, is_decimal, is_integral, is_number, is_string, mismatch, sql_name,
};
use crate::error::failed;

/// A binary operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// `div`: the whole part, as BIGINT.
    DivideWhole,
    Remainder,
    /// The remainder that is not negative.
    Modulus,
}

use Operation::{Add, Divide, DivideWhole, Modulus, Multiply, Remainder, Subtract};

/// `left operation right`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Arithmetic {
    operation: Operation,
    /// Whether a failure is NULL.
    lenient: bool,
    signature: Signature,
    aliases: Vec<String>,
}

impl Arithmetic {
    fn udf(operation: Operation, lenient: bool) -> ScalarUDF {
        let aliases = if operation == Remainder && !lenient { vec!["mod".to_owned()] } else { vec![] };
        ScalarUDF::from(Self { operation, lenient, signature: Signature::user_defined(Volatility::Immutable), aliases })
    }

    /// The call; `lenient`: where a failure is NULL.
    pub(crate) fn call(operation: Operation, lenient: bool, left: Expr, right: Expr) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(Self::udf(operation, lenient)), vec![left, right]))
    }

    /// All of them, as functions.
    pub(crate) fn all() -> Vec<ScalarUDF> {
        let strict = [Add, Subtract, Multiply, Divide, DivideWhole, Remainder, Modulus].map(|o| Self::udf(o, false));
        let lenient = [Add, Subtract, Multiply, Divide, Remainder].map(|operation| Self::udf(operation, true));
        strict.into_iter().chain(lenient).collect()
    }

    fn symbol(&self) -> &'static str {
        match self.operation {
            Add => "+",
            Subtract => "-",
            Multiply => "*",
            Divide => "/",
            DivideWhole => "div",
            Remainder | Modulus => "%",
        }
    }

    fn wrong_types(&self, left: &DataType, right: &DataType) -> datafusion::common::DataFusionError {
        let kind = if left == right || is_number(left) && is_number(right) {
            "BINARY_OP_WRONG_TYPE"
        } else {
            "BINARY_OP_DIFF_TYPES"
        };
        mismatch(kind, format!("`{}` does not work on {} and {}", self.symbol(), sql_name(left), sql_name(right)))
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        match (self.operation, self.lenient) {
            (Add, false) => "add",
            (Subtract, false) => "subtract",
            (Multiply, false) => "multiply",
            (Divide, false) => "divide",
            (DivideWhole, _) => "div",
            (Remainder, false) => "remainder",
            (Modulus, _) => "pmod",
            (Add, true) => "try_add",
            (Subtract, true) => "try_subtract",
            (Multiply, true) => "try_multiply",
            (Divide, true) => "try_divide",
            (Remainder, true) => "try_mod",
        }
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right] = types else {
            return Err(crate::error::refused_analysis(
                "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
                format!("{}() needs 2 arguments", self.name()),
            ));
        };
        let both = |data_type: DataType| Ok(vec![data_type.clone(), data_type]);
        // Text is what the other side is.
        let read = |text: &DataType, other: &DataType| match text {
            text if !is_string(text) => Some(text.clone()),
            _ if is_integral(other) => Some(DataType::Int64),
            _ if is_number(other) || other.is_null() => Some(DataType::Float64),
            _ => None,
        };
        let (Some(l), Some(r)) = (read(left, right), read(right, left)) else {
            return Err(self.wrong_types(left, right));
        };
        if l.is_null() && r.is_null() {
            return both(if self.operation == DivideWhole { DataType::Int64 } else { DataType::Float64 });
        }
        if !(is_number(&l) || l.is_null()) || !(is_number(&r) || r.is_null()) {
            return Err(self.wrong_types(left, right));
        }
        let l = if l.is_null() { r.clone() } else { l };
        let r = if r.is_null() { l.clone() } else { r };
        let decimals = (is_decimal(&l) || is_decimal(&r)) && as_decimal(&l).is_some() && as_decimal(&r).is_some();
        if decimals {
            let decimal = |data_type: &DataType| match as_decimal(data_type) {
                Some((precision, scale)) => bounded(precision, scale),
                None => data_type.clone(),
            };
            return Ok(vec![decimal(&l), decimal(&r)]);
        }
        match self.operation {
            Divide => both(DataType::Float64),
            DivideWhole if is_integral(&l) && is_integral(&r) => both(DataType::Int64),
            DivideWhole => Err(self.wrong_types(left, right)),
            _ => match common(&l, &r) {
                Some(common) => both(common),
                None => Err(self.wrong_types(left, right)),
            },
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let [left, right] = types else { return exec_err!("{} needs two arguments", self.name()) };
        if self.operation == DivideWhole {
            return Ok(DataType::Int64);
        }
        if !is_decimal(left) {
            return Ok(left.clone());
        }
        let (Some((p1, s1)), Some((p2, s2))) = (as_decimal(left), as_decimal(right)) else {
            return exec_err!("{} needs two decimals", self.name());
        };
        let scale = s1.max(s2);
        Ok(match self.operation {
            Add | Subtract => adjusted((p1 - s1).max(p2 - s2) + scale + 1, scale),
            Multiply => adjusted(p1 + p2 + 1, s1 + s2),
            Divide => {
                let scale = (s1 + p2 + 1).max(6);
                adjusted(p1 - s1 + s2 + scale, scale)
            }
            Remainder => adjusted((p1 - s1).min(p2 - s2) + scale, scale),
            Modulus => adjusted((p1 - s1).min(p2 - s2) + scale, scale),
            DivideWhole => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let returns = args.return_field.data_type().clone();
        if let (Add | Subtract | Multiply, false, true) = (self.operation, self.lenient, !is_decimal(&returns)) {
            return apply(&args.args[0], &args.args[1], |left, right| match self.operation {
                Add => numeric::add(left, right),
                Subtract => numeric::sub(left, right),
                _ => numeric::mul(left, right),
            })
            .map_err(|_| overflow(self.operation, &returns));
        }
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let (left, right) = (args.args[0].to_array(rows)?, args.args[1].to_array(rows)?);
        let result = self.evaluate(&left, &right, &returns)?;
        if constant {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

impl Arithmetic {
    fn evaluate(&self, left: &ArrayRef, right: &ArrayRef, returns: &DataType) -> Result<ArrayRef> {
        match left.data_type() {
            DataType::Int8 => self.integers::<Int8Type>(left, right),
            DataType::Int16 => self.integers::<Int16Type>(left, right),
            DataType::Int32 => self.integers::<Int32Type>(left, right),
            DataType::Int64 => self.integers::<Int64Type>(left, right),
            DataType::Float32 => self.floats::<Float32Type>(left, right),
            DataType::Float64 => self.floats::<Float64Type>(left, right),
            DataType::Decimal128(..) => self.decimals(left, right, returns),
            other => exec_err!("`{}` does not work on {other}", self.symbol()),
        }
    }

    /// What a failure is: an error, or NULL.
    fn failure<T>(&self, error: impl FnOnce() -> datafusion::common::DataFusionError) -> Result<Option<T>> {
        if self.lenient { Ok(None) } else { Err(error()) }
    }

    fn by_zero<T>(&self) -> Result<Option<T>> {
        match self.operation {
            Remainder | Modulus => self
                .failure(|| failed("REMAINDER_BY_ZERO", "the remainder of a division by 0: use try_mod() to get NULL")),
            _ => self.failure(divided_by_zero),
        }
    }

    fn integers<T>(&self, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef>
    where
        T: ArrowPrimitiveType<Native: ArrowNativeTypeOp>,
    {
        self.zip::<T, T>(left, right, |l, r| {
            let result = match self.operation {
                Add => l.add_checked(r),
                Subtract => l.sub_checked(r),
                Multiply => l.mul_checked(r),
                _ if r.is_zero() => return self.by_zero(),
                Divide | DivideWhole => l.div_checked(r),
                // The only overflow is MIN % -1, which is 0.
                Remainder => Ok(l.mod_wrapping(r)),
                Modulus => {
                    let remainder = l.mod_wrapping(r);
                    Ok(if remainder.is_lt(T::Native::ZERO) {
                        remainder.add_wrapping(r).mod_wrapping(r)
                    } else {
                        remainder
                    })
                }
            };
            match result {
                Ok(value) => Ok(Some(value)),
                Err(_) => self.failure(|| overflow(self.operation, &T::DATA_TYPE)),
            }
        })
    }

    fn floats<T>(&self, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef>
    where
        T: ArrowPrimitiveType<Native: ArrowNativeTypeOp>,
    {
        self.zip::<T, T>(left, right, |l, r| {
            Ok(Some(match self.operation {
                Add => l.add_wrapping(r),
                Subtract => l.sub_wrapping(r),
                Multiply => l.mul_wrapping(r),
                // Both zeros are zero.
                _ if !(r.is_lt(T::Native::ZERO) || r.is_gt(T::Native::ZERO)) || r.neg_wrapping() == r => {
                    return self.by_zero();
                }
                Divide | DivideWhole => l.div_wrapping(r),
                Remainder => l.mod_wrapping(r),
                Modulus => {
                    let remainder = l.mod_wrapping(r);
                    if remainder.is_lt(T::Native::ZERO) { remainder.add_wrapping(r).mod_wrapping(r) } else { remainder }
                }
            }))
        })
    }

    fn decimals(&self, left: &ArrayRef, right: &ArrayRef, returns: &DataType) -> Result<ArrayRef> {
        let scale = |array: &ArrayRef| match array.data_type() {
            DataType::Decimal128(_, scale) => i32::from(*scale),
            _ => 0,
        };
        let (result, precision) = match returns {
            DataType::Decimal128(precision, scale) => (i32::from(*scale), *precision),
            _ => (0, 38),
        };
        let scales = Scales { left: scale(left), right: scale(right), result, precision };
        if self.operation == DivideWhole {
            return self.zip::<Decimal128Type, Int64Type>(left, right, |l, r| {
                if r == 0 {
                    return self.by_zero();
                }
                match scales.whole(l, r) {
                    Some(whole) => Ok(Some(whole)),
                    None => self.failure(|| overflow(self.operation, &DataType::Int64)),
                }
            });
        }
        let results = self.zip::<Decimal128Type, Decimal128Type>(left, right, |l, r| {
            let value = match self.operation {
                Add => scales.add(l, r),
                Subtract => scales.subtract(l, r),
                Multiply => scales.multiply(l, r),
                _ if r == 0 => return self.by_zero(),
                Divide | DivideWhole => scales.divide(l, r),
                Remainder => scales.remainder(l, r),
                Modulus => scales.remainder(l, r).and_then(|remainder| {
                    if remainder >= 0 {
                        return Some(remainder);
                    }
                    let sum = Scales { left: scales.result, ..scales }.add(remainder, r)?;
                    Scales { left: scales.result, ..scales }.remainder(sum, r)
                }),
            };
            match value {
                Some(value) => Ok(Some(value)),
                None => self.failure(|| out_of_range(returns)),
            }
        })?;
        Ok(Arc::new(results.as_primitive::<Decimal128Type>().clone().with_data_type(returns.clone())))
    }

    fn zip<T: ArrowPrimitiveType, R: ArrowPrimitiveType>(
        &self,
        left: &ArrayRef,
        right: &ArrayRef,
        operation: impl Fn(T::Native, T::Native) -> Result<Option<R::Native>>,
    ) -> Result<ArrayRef> {
        let (left, right) = (left.as_primitive::<T>(), right.as_primitive::<T>());
        let results: Result<PrimitiveArray<R>> = left
            .iter()
            .zip(right.iter())
            .map(|pair| match pair {
                (Some(l), Some(r)) => operation(l, r),
                _ => Ok(None),
            })
            .collect();
        Ok(Arc::new(results?))
    }
}

fn divided_by_zero() -> datafusion::common::DataFusionError {
    datafusion::common::DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None)
}

fn overflow(operation: Operation, data_type: &DataType) -> datafusion::common::DataFusionError {
    let hint = match operation {
        Add => ": use try_add() to get NULL",
        Subtract => ": use try_subtract() to get NULL",
        Multiply => ": use try_multiply() to get NULL",
        _ => "",
    };
    failed("ARITHMETIC_OVERFLOW", format!("the result is too large for {}{hint}", sql_name(data_type)))
}

fn out_of_range(data_type: &DataType) -> datafusion::common::DataFusionError {
    failed(
        "NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION",
        format!("the result has too many digits for {}", sql_name(data_type)),
    )
}
