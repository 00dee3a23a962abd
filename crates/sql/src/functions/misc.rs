//! Functions about types, and those that fail on purpose.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, NullArray, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};

use super::function::{Arg, Args, Call, Spec, returns};
use super::types::simple_name;
use crate::ast::CAST_OPERAND;
use crate::error::failed;

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
