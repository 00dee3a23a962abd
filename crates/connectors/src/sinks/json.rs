//! Values as JSON, all in one buffer.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{Field, FieldRef};
use arrow::json::writer::{EncoderOptions, make_encoder};
use perennial_core::error::{Error, Result};

/// The JSON text of each value. A NULL stays one; inside of a STRUCT a NULL field is left out.
pub(super) fn json_values(array: &ArrayRef, options: &EncoderOptions) -> Result<BinaryArray> {
    let field: FieldRef = Arc::new(Field::new("value", array.data_type().clone(), true));
    let mut encoder = make_encoder(&field, array, options)?;
    let mut text = Vec::with_capacity(array.len() * 64);
    let mut offsets = Vec::with_capacity(array.len() + 1);
    offsets.push(0);
    for row in 0..array.len() {
        if !array.is_null(row) {
            encoder.encode(row, &mut text);
        }
        offsets.push(i32::try_from(text.len()).map_err(|_| Error::bug("rows of more than 2 GB at once as JSON"))?);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(BinaryArray::try_new(offsets, Buffer::from_vec(text), array.nulls().cloned())?)
}
