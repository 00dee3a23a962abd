//! `listagg`: texts of a group, one behind the other.

use std::mem::size_of_val;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use datafusion::arrow::compute::{SortOptions, concat, filter, is_not_null, take};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;

use super::percentiles::one_list;
use super::{Made, Spec, wrong_count, wrong_type};
use crate::functions::types::list_of;

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[&Spec {
    name: "listagg",
    aliases: &["string_agg"],
    arguments,
    returns: |_| DataType::Utf8,
    state: |types| std::iter::once(list_of(DataType::Utf8)).chain(types.get(2).cloned().map(list_of)).collect(),
    make,
}];

/// A text, what stands between the texts, and the key of their order with whether it descends.
fn arguments(types: &[DataType]) -> Result<Vec<DataType>> {
    let (text, rest) = match types {
        [text, rest @ ..] if rest.len() < 4 => (text, rest),
        _ => return Err(wrong_count("listagg", "1 or 2 arguments")),
    };
    if text.is_nested() {
        return Err(wrong_type("listagg", "STRING", text));
    }
    let rest = rest.iter().enumerate().map(|(at, of)| match at {
        0 => DataType::Utf8,
        1 => of.clone(),
        _ => DataType::Boolean,
    });
    Ok(std::iter::once(DataType::Utf8).chain(rest).collect())
}

fn make(made: &Made<'_>) -> Result<Box<dyn Accumulator>> {
    let delimiter = match made.constant(1, "the delimiter")? {
        Some(ScalarValue::Utf8(Some(delimiter))) => delimiter.clone(),
        _ => String::new(),
    };
    let descending = matches!(made.constant(3, "the order")?, Some(ScalarValue::Boolean(Some(true))));
    Ok(Box::new(Texts { texts: Vec::new(), keys: Vec::new(), key: made.types.get(2).cloned(), delimiter, descending }))
}

#[derive(Debug)]
struct Texts {
    texts: Vec<ArrayRef>,
    keys: Vec<ArrayRef>,
    /// The type of the keys that tell the order, where it is not that of the rows.
    key: Option<DataType>,
    delimiter: String,
    descending: bool,
}

fn all(pieces: &[ArrayRef], of: &DataType) -> Result<ArrayRef> {
    if pieces.is_empty() {
        return Ok(datafusion::arrow::array::new_empty_array(of));
    }
    Ok(concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?)
}

impl Accumulator for Texts {
    fn update_batch(&mut self, arguments: &[ArrayRef]) -> Result<()> {
        let kept = is_not_null(&arguments[0])?;
        if kept.true_count() > 0 {
            self.texts.push(filter(&arguments[0], &kept)?);
            if self.key.is_some() {
                self.keys.push(filter(&arguments[2], &kept)?);
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let texts = states[0].as_list::<i32>();
        for row in (0..texts.len()).filter(|row| texts.is_valid(*row) && texts.value_length(*row) > 0) {
            self.texts.push(texts.value(row));
            if self.key.is_some() {
                self.keys.push(states[1].as_list::<i32>().value(row));
            }
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut state = vec![one_list(all(&self.texts, &DataType::Utf8)?)?];
        if let Some(key) = &self.key {
            state.push(one_list(all(&self.keys, key)?)?);
        }
        Ok(state)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.texts.is_empty() {
            return Ok(ScalarValue::Utf8(None));
        }
        let mut texts = all(&self.texts, &DataType::Utf8)?;
        if let Some(key) = &self.key {
            let options = SortOptions { descending: self.descending, nulls_first: !self.descending };
            let converter = RowConverter::new(vec![SortField::new_with_options(key.clone(), options)])?;
            let rows = converter.convert_columns(&[all(&self.keys, key)?])?;
            let mut order: Vec<u32> = (0..texts.len() as u32).collect();
            order.sort_by(|left, right| rows.row(*left as usize).cmp(&rows.row(*right as usize)));
            texts = take(&texts, &UInt32Array::from(order), None)?;
        }
        let joined: Vec<&str> = texts.as_string::<i32>().iter().flatten().collect();
        Ok(ScalarValue::Utf8(Some(joined.join(&self.delimiter))))
    }

    fn size(&self) -> usize {
        let arrays = self.texts.iter().chain(&self.keys);
        size_of_val(self) + arrays.map(|array| array.get_array_memory_size()).sum::<usize>()
    }
}
