//! Functions about types, and those that fail on purpose.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, NullArray, StringArray};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::function::{Arg, Args, Call, Spec, returns};
use super::types::{common_of, mismatch, simple_name};
use crate::ast::CAST_OPERAND;
use crate::error::{failed, refused_analysis};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("typeof", Args::Fixed(1, &[Arg::Any]), returns::text, |call| {
        let name = simple_name(&call.args[0].data_type());
        Ok(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(name, call.rows))))
    }),
    &Spec::new(CAST_OPERAND, Args::Fixed(2, &[Arg::Any, Arg::Any]), returns::first, |call| call.array(0)),
    &Spec::new("assert_true", Args::Fixed(1, &[Arg::Bool, Arg::Text]), void, assert_true),
    &Spec::new("raise_error", Args::Fixed(1, &[Arg::Text]), void, |call| match call.text(0)?.iter().flatten().next() {
        Some(message) => Err(failed("USER_RAISED_EXCEPTION", message)),
        None if call.rows > 0 => Err(failed("USER_RAISED_EXCEPTION", "null")),
        None => Ok(Arc::new(NullArray::new(0))),
    }),
];

/// `coalesce`: DataFusion's with Spark's common types.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Coalesce {
    inner: Arc<ScalarUDF>,
    signature: Signature,
}

impl Coalesce {
    pub(super) fn udf() -> ScalarUDF {
        let signature = Signature::user_defined(Volatility::Immutable);
        ScalarUDF::from(Self { inner: datafusion::functions::core::coalesce(), signature })
    }
}

impl ScalarUDFImpl for Coalesce {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.is_empty() {
            let message = "coalesce() needs at least 1 argument";
            return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", message));
        }
        match common_of(types) {
            Some(common) => Ok(vec![common; types.len()]),
            None => Err(mismatch("DATA_DIFF_TYPES", "coalesce() needs values of one type: cast them")),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(common_of(types).unwrap_or(DataType::Null))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.invoke_with_args(args)
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn short_circuits(&self) -> bool {
        true
    }
}

fn void(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    Ok(DataType::Null)
}

fn assert_true(call: &Call<'_>) -> Result<ArrayRef> {
    let condition = call.array(0)?;
    let condition = condition.as_boolean();
    if let Some(row) = (0..condition.len()).find(|row| condition.is_null(*row) || !condition.value(*row)) {
        let messages = call.text_or(1, "the condition of assert_true() is not true")?;
        return Err(failed("USER_RAISED_EXCEPTION", if messages.is_null(row) { "null" } else { messages.value(row) }));
    }
    Ok(Arc::new(NullArray::new(condition.len())))
}
