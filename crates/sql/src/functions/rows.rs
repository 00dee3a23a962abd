//! Columns made row by row: NULL where an argument is.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanArray, ListBuilder, PrimitiveArray, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::ArrowPrimitiveType;
use datafusion::common::Result;

use super::function::any_null;

/// The number of rows of columns.
fn height(of: &[&dyn Array]) -> usize {
    of.first().map_or(0, |array| array.len())
}

/// A column of texts.
pub(crate) fn texts<T: AsRef<str>>(
    of: &[&dyn Array],
    mut value: impl FnMut(usize) -> Result<Option<T>>,
) -> Result<ArrayRef> {
    let rows = height(of);
    let mut out = StringBuilder::with_capacity(rows, rows * 16);
    for row in 0..rows {
        match if any_null(of, row) { None } else { value(row)? } {
            Some(text) => out.append_value(text),
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// A column of BINARY.
pub(crate) fn bytes<T: AsRef<[u8]>>(
    of: &[&dyn Array],
    mut value: impl FnMut(usize) -> Result<Option<T>>,
) -> Result<ArrayRef> {
    let rows = height(of);
    let mut out = BinaryBuilder::with_capacity(rows, rows * 16);
    for row in 0..rows {
        match if any_null(of, row) { None } else { value(row)? } {
            Some(bytes) => out.append_value(bytes),
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// A column of numbers, dates or moments.
pub(crate) fn numbers<T: ArrowPrimitiveType>(
    of: &[&dyn Array],
    mut value: impl FnMut(usize) -> Result<Option<T::Native>>,
) -> Result<PrimitiveArray<T>> {
    (0..height(of)).map(|row| if any_null(of, row) { Ok(None) } else { value(row) }).collect()
}

/// A column of BOOLEAN.
pub(crate) fn bools(of: &[&dyn Array], mut value: impl FnMut(usize) -> Result<Option<bool>>) -> Result<ArrayRef> {
    let values: Result<BooleanArray> =
        (0..height(of)).map(|row| if any_null(of, row) { Ok(None) } else { value(row) }).collect();
    Ok(Arc::new(values?))
}

/// A column of lists of texts.
pub(crate) fn lists<T: AsRef<str>>(
    of: &[&dyn Array],
    mut value: impl FnMut(usize) -> Result<Option<Vec<T>>>,
) -> Result<ArrayRef> {
    let mut out = ListBuilder::new(StringBuilder::new());
    for row in 0..height(of) {
        match if any_null(of, row) { None } else { value(row)? } {
            Some(items) => {
                items.iter().for_each(|item| out.values().append_value(item));
                out.append(true);
            }
            None => out.append(false),
        }
    }
    Ok(Arc::new(out.finish()))
}

/// A column of texts out of one.
pub(crate) fn text_of<T: AsRef<str>>(of: &StringArray, value: impl Fn(&str) -> T) -> Result<ArrayRef> {
    texts(&[of], |row| Ok(Some(value(of.value(row)))))
}
