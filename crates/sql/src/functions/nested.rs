//! Parts of structs, arrays and maps.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, ListArray, StructArray, UInt32Array, new_null_array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{self, take};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::function::{Arg, Args, Call, Spec, returns};
use super::types::{common, element_of, is_integral, is_string, list_of, map_of, map_types, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("get_field", Args::Fixed(2, &[Arg::Any, Arg::Text]), field_type, field),
    &Spec::new("subscript", Args::Custom(subscript_args), subscript_type, subscript),
    &Spec::new("get", Args::Fixed(2, &[Arg::Array, Arg::Int]), returns::element, |call| {
        let (list, index) = (call.array(0)?, call.numbers::<Int32Type>(1)?);
        at(&list, call.returns, |row, _| {
            Ok((index.is_valid(row) && index.value(row) >= 0).then(|| index.value(row) as usize))
        })
    }),
    &Spec::new("element_at", Args::Custom(subscript_args), subscript_type, |call| element_at(call, false)),
    &Spec::new("try_element_at", Args::Custom(subscript_args), subscript_type, |call| element_at(call, true)),
    &Spec::new(
        "array",
        Args::Common(0),
        |types, _, _| Ok(list_of(types.first().cloned().unwrap_or(DataType::Null))),
        array,
    ),
    &Spec::new("named_struct", Args::Many(0, Arg::Any), struct_type, named_struct),
    &Spec::new("map", Args::Custom(map_args), map_type, map),
    &Spec::new("size", Args::Fixed(1, &[Arg::Any]), returns::int, size).or(&["cardinality"]),
    &Spec::new("field_at", Args::Fixed(2, &[Arg::Any, Arg::Int]), field_at_type, field_at),
    &Spec::new(
        "explode_rows",
        Args::Fixed(1, &[Arg::Any]),
        |types, _, _| rows_type(types, false),
        |call| rows_of(call, false),
    ),
    &Spec::new(
        "posexplode_rows",
        Args::Fixed(1, &[Arg::Any]),
        |types, _, _| rows_type(types, true),
        |call| rows_of(call, true),
    ),
    &Spec::new("inline_rows", Args::Fixed(1, &[Arg::Array]), returns::first, |call| call.array(0)),
    &Spec::new("array_size", Args::Fixed(1, &[Arg::Array]), returns::int, size),
];

fn struct_field<'a>(data_type: &'a DataType, name: &str) -> Option<(usize, &'a Field)> {
    let DataType::Struct(fields) = data_type else { return None };
    let position = fields
        .iter()
        .position(|field| field.name() == name)
        .or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name)))?;
    Some((position, fields[position].as_ref()))
}

fn constant_name<'a>(constants: &[Option<&'a ScalarValue>]) -> Result<&'a str> {
    match constants.get(1) {
        Some(Some(ScalarValue::Utf8(Some(name)))) => Ok(name),
        _ => Err(refused_analysis("INVALID_EXTRACT_FIELD_TYPE", "the name of a field must be a constant text")),
    }
}

fn no_field(of: &DataType, name: &str) -> datafusion::common::DataFusionError {
    match of {
        DataType::Struct(fields) => {
            let names: Vec<String> = fields.iter().map(|field| format!("`{}`", field.name())).collect();
            refused_analysis("FIELD_NOT_FOUND", format!("there is no field `{name}` among {}", names.join(", ")))
        }
        other => refused_analysis(
            "INVALID_EXTRACT_BASE_FIELD_TYPE",
            format!("{} has no field `{name}`: only a STRUCT, or an ARRAY of them, has fields", sql_name(other)),
        ),
    }
}

fn field_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let name = constant_name(constants)?;
    match &types[0] {
        DataType::List(item) => match struct_field(item.data_type(), name) {
            Some((_, field)) => Ok(list_of(field.data_type().clone())),
            None => Err(no_field(item.data_type(), name)),
        },
        DataType::Map(..) => match map_types(&types[0]) {
            Some((_, value)) => Ok(value.data_type().clone()),
            None => Err(no_field(&types[0], name)),
        },
        of => match struct_field(of, name) {
            Some((_, field)) => Ok(field.data_type().clone()),
            None => Err(no_field(of, name)),
        },
    }
}

/// One column of structs; NULL where the struct is.
fn column(of: &StructArray, name: &str) -> Result<ArrayRef> {
    let Some((position, _)) = struct_field(of.data_type(), name) else { return Err(no_field(of.data_type(), name)) };
    let column = of.column(position);
    if of.nulls().is_none() {
        return Ok(column.clone());
    }
    let nulls = NullBuffer::union(of.nulls(), column.logical_nulls().as_ref());
    if column.data_type().is_null() {
        return Ok(column.clone());
    }
    Ok(datafusion::arrow::array::make_array(column.to_data().into_builder().nulls(nulls).build()?))
}

fn field(call: &Call<'_>) -> Result<ArrayRef> {
    let Some(name) = call.constant_text(1) else { return exec_err!("the name of a field is not constant") };
    let of = call.array(0)?;
    match of.data_type() {
        DataType::Struct(_) => column(of.as_struct(), name),
        DataType::List(_) => {
            let list = of.as_list::<i32>();
            let values = column(list.values().as_struct(), name)?;
            let DataType::List(item) = call.returns else { return exec_err!("fields of an array are an array") };
            Ok(Arc::new(ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned())?))
        }
        DataType::Map(..) => element_at(call, true),
        other => Err(no_field(other, name)),
    }
}

/// The key of `x[key]` and of `element_at(x, key)`.
fn subscript_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, key] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "an element has one index or key"));
    };
    let wanted = match of {
        DataType::List(_) if is_integral(key) || key.is_null() => DataType::Int32,
        DataType::Map(..) => match map_types(of).and_then(|(own, _)| common(own.data_type(), key)) {
            Some(_) => map_types(of).map(|(own, _)| own.data_type().clone()).unwrap_or(DataType::Null),
            None => {
                return Err(mismatch(
                    "MAP_FUNCTION_DIFF_TYPES",
                    format!("{} has no key of type {}", sql_name(of), sql_name(key)),
                ));
            }
        },
        DataType::Struct(_) if is_string(key) => key.clone(),
        _ => {
            return Err(mismatch(
                "UNEXPECTED_INPUT_TYPE",
                format!("{} has no element of index or key {}", sql_name(of), sql_name(key)),
            ));
        }
    };
    Ok(vec![of.clone(), wanted])
}

fn subscript_type(types: &[DataType], constants: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
    match &types[0] {
        DataType::List(item) => Ok(item.data_type().clone()),
        DataType::Map(..) => Ok(map_types(&types[0]).map_or(DataType::Null, |(_, value)| value.data_type().clone())),
        DataType::Struct(_) => field_type(types, constants, zone),
        _ => Ok(DataType::Null),
    }
}

/// Takes from each list the element that `index` names, given the row and the list's length; NULL where it names none.
fn at(list: &ArrayRef, returns: &DataType, index: impl Fn(usize, usize) -> Result<Option<usize>>) -> Result<ArrayRef> {
    let Some(list) = list.as_list_opt::<i32>() else { return Ok(new_null_array(returns, list.len())) };
    let offsets = list.value_offsets();
    let positions: Result<UInt32Array> = (0..list.len())
        .map(|row| {
            if list.is_null(row) {
                return Ok(None);
            }
            let (start, length) = (offsets[row] as usize, (offsets[row + 1] - offsets[row]) as usize);
            Ok(index(row, length)?.filter(|index| *index < length).map(|index| (start + index) as u32))
        })
        .collect();
    Ok(take(list.values(), &positions?, None)?)
}

fn out_of_bounds(condition: &str, index: i32, length: usize, hint: &str) -> datafusion::common::DataFusionError {
    failed(condition, format!("the index {index} is out of bounds of an array of {length}: use {hint} to get NULL"))
}

fn subscript(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    match of.data_type() {
        DataType::List(_) => {
            let index = call.numbers::<Int32Type>(1)?;
            at(&of, call.returns, |row, length| {
                if index.is_null(row) {
                    return Ok(None);
                }
                match usize::try_from(index.value(row)) {
                    Ok(index) if index < length => Ok(Some(index)),
                    _ => Err(out_of_bounds("INVALID_ARRAY_INDEX", index.value(row), length, "get()")),
                }
            })
        }
        DataType::Struct(_) => field(call),
        _ => element_at(call, true),
    }
}

fn element_at(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let of = call.array(0)?;
    match of.data_type() {
        DataType::List(_) => {
            let index = call.numbers::<Int32Type>(1)?;
            at(&of, call.returns, |row, length| {
                if index.is_null(row) {
                    return Ok(None);
                }
                let wanted = index.value(row);
                if wanted == 0 {
                    return Err(failed("INVALID_INDEX_OF_ZERO", "the index of element_at() begins at 1"));
                }
                let magnitude = wanted.unsigned_abs() as usize;
                if magnitude > length {
                    if lenient {
                        return Ok(None);
                    }
                    return Err(out_of_bounds("INVALID_ARRAY_INDEX_IN_ELEMENT_AT", wanted, length, "try_element_at()"));
                }
                Ok(Some(if wanted > 0 { magnitude - 1 } else { length - magnitude }))
            })
        }
        DataType::Map(..) => {
            let map = of.as_map();
            let wanted = call.array(1)?;
            let converter = RowConverter::new(vec![SortField::new(map.keys().data_type().clone())])?;
            let keys = converter.convert_columns(&[map.keys().clone()])?;
            let wanted_rows = converter.convert_columns(std::slice::from_ref(&wanted))?;
            let offsets = map.value_offsets();
            let positions: UInt32Array = (0..map.len())
                .map(|row| {
                    if map.is_null(row) || wanted.is_null(row) {
                        return None;
                    }
                    // The last of equal keys counts.
                    (offsets[row]..offsets[row + 1])
                        .rev()
                        .find(|entry| keys.row(*entry as usize) == wanted_rows.row(row))
                        .map(|entry| entry as u32)
                })
                .collect();
            Ok(take(map.values(), &positions, None)?)
        }
        _ => Ok(new_null_array(call.returns, call.rows)),
    }
}

fn array(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(item) = call.returns else { return exec_err!("array() makes an array") };
    let width = call.len();
    if width == 0 {
        let empty = new_null_array(item.data_type(), 0);
        let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths(std::iter::repeat_n(0, call.rows));
        return Ok(Arc::new(ListArray::try_new(item.clone(), offsets, empty, None)?));
    }
    let columns = call.arrays()?;
    let refs: Vec<&dyn Array> = columns.iter().map(AsRef::as_ref).collect();
    let order: Vec<(usize, usize)> =
        (0..call.rows).flat_map(|row| (0..width).map(move |column| (column, row))).collect();
    let values = compute::interleave(&refs, &order)?;
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths(std::iter::repeat_n(width, call.rows));
    Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, None)?))
}

fn struct_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    if !types.len().is_multiple_of(2) {
        return Err(refused_analysis(
            "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
            "named_struct() needs pairs of name and value",
        ));
    }
    let fields: Result<Vec<Field>> = types
        .chunks(2)
        .zip(constants.chunks(2))
        .map(|(types, constants)| match (types, constants) {
            ([_, value], [Some(ScalarValue::Utf8(Some(name))), _]) => Ok(Field::new(name, value.clone(), true)),
            _ => {
                Err(mismatch("CREATE_NAMED_STRUCT_WITHOUT_FOLDABLE_STRING", "the names of a struct are constant texts"))
            }
        })
        .collect();
    Ok(DataType::Struct(fields?.into()))
}

fn named_struct(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::Struct(fields) = call.returns else { return exec_err!("named_struct() makes a struct") };
    let columns = (1..call.len()).step_by(2).map(|index| call.array(index)).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, None, call.rows)?))
}

fn map_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    if !types.len().is_multiple_of(2) {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "map() needs pairs of key and value"));
    }
    let of = |offset: usize| super::types::common_of(types.iter().skip(offset).step_by(2));
    match (of(0), of(1)) {
        (Some(key), Some(value)) => {
            Ok((0..types.len()).map(|at| if at % 2 == 0 { key.clone() } else { value.clone() }).collect())
        }
        _ => Err(mismatch("CREATE_MAP_KEY_DIFF_TYPES", "the keys of a map have one type, and so have its values")),
    }
}

fn map_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let of = |at: usize| types.get(at).cloned().unwrap_or(DataType::Null);
    Ok(map_of(of(0), of(1)))
}

fn map(call: &Call<'_>) -> Result<ArrayRef> {
    let columns = call.arrays()?;
    let pairs = columns.len() / 2;
    let DataType::Map(entries, _) = call.returns else { return exec_err!("map() makes a map") };
    let DataType::Struct(fields) = entries.data_type() else { return exec_err!("a map needs keys and values") };
    let gather = |offset: usize| -> Result<ArrayRef> {
        let columns: Vec<&dyn Array> = columns.iter().skip(offset).step_by(2).map(AsRef::as_ref).collect();
        if columns.is_empty() {
            return Ok(new_null_array(fields[offset].data_type(), 0));
        }
        let order: Vec<(usize, usize)> =
            (0..call.rows).flat_map(|row| (0..pairs).map(move |column| (column, row))).collect();
        Ok(compute::interleave(&columns, &order)?)
    };
    let lengths = vec![pairs; call.rows];
    build_map(call.returns, gather(0)?, gather(1)?, &lengths, None)
}

/// Maps out of their keys and values, one after the other.
///
/// # Errors
/// Where a key is NULL, or there twice.
pub(crate) fn build_map(
    data_type: &DataType,
    keys: ArrayRef,
    values: ArrayRef,
    lengths: &[usize],
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let DataType::Map(entries, sorted) = data_type else { return exec_err!("{data_type} is no map") };
    let DataType::Struct(fields) = entries.data_type() else { return exec_err!("a map needs keys and values") };
    if keys.logical_null_count() > 0 {
        return Err(failed("NULL_MAP_KEY", "a key of a map cannot be NULL"));
    }
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest > 1 {
        let converter = RowConverter::new(vec![SortField::new(keys.data_type().clone())])?;
        let rows = converter.convert_columns(std::slice::from_ref(&keys))?;
        let mut start = 0;
        for length in lengths {
            let mut seen = std::collections::HashSet::with_capacity(*length);
            for row in start..start + length {
                if !seen.insert(rows.row(row)) {
                    let mut key = String::new();
                    if let Ok(text) = super::cast::show::text(&keys.slice(row, 1)) {
                        key.push_str(text.value(0));
                    }
                    return Err(failed("DUPLICATED_MAP_KEY", format!("the key {key} is in the map twice")));
                }
            }
            start += length;
        }
    }
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths(lengths.iter().copied());
    let pairs = StructArray::try_new(fields.clone(), vec![keys, values], None)?;
    Ok(Arc::new(datafusion::arrow::array::MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted)?))
}

fn size(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let lengths = |offsets: &[i32]| -> ArrayRef {
        let lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]).enumerate();
        Arc::new(Int32Array::from_iter(lengths.map(|(row, length)| of.is_valid(row).then_some(length))))
    };
    Ok(match of.data_type() {
        DataType::List(_) => lengths(of.as_list::<i32>().value_offsets()),
        DataType::Map(..) => lengths(of.as_map().value_offsets()),
        DataType::Null => new_null_array(&DataType::Int32, call.rows),
        other => {
            return Err(mismatch(
                "UNEXPECTED_INPUT_TYPE",
                format!("size() needs an ARRAY or a MAP, not {}", sql_name(other)),
            ));
        }
    })
}

/// The type of an array's elements, or VOID.
pub(crate) fn element_type(data_type: &DataType) -> DataType {
    element_of(data_type).cloned().unwrap_or(DataType::Null)
}

/// The index of `field_at(struct, index)`.
fn position(constant: Option<&ScalarValue>) -> Result<usize> {
    match constant {
        Some(ScalarValue::Int32(Some(at))) => Ok(usize::try_from(*at).unwrap_or(0)),
        Some(ScalarValue::Int64(Some(at))) => Ok(usize::try_from(*at).unwrap_or(0)),
        _ => exec_err!("the index of a field is not constant"),
    }
}

fn field_at_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let at = position(constants.get(1).copied().flatten())?;
    match &types[0] {
        DataType::Struct(fields) if at < fields.len() => Ok(fields[at].data_type().clone()),
        DataType::Struct(fields) => Err(refused_analysis(
            "UDTF_ALIAS_NUMBER_MISMATCH",
            format!("the generator makes {} columns, and AS names more", fields.len()),
        )),
        other => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("a generator does not work on {}", sql_name(other)))),
    }
}

fn field_at(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let at = match call.args.get(1) {
        Some(datafusion::logical_expr::ColumnarValue::Scalar(index)) => position(Some(index))?,
        _ => return exec_err!("the index of a field is not constant"),
    };
    let DataType::Struct(fields) = of.data_type() else { return exec_err!("{} has no fields", of.data_type()) };
    column(of.as_struct(), fields[at].name())
}

/// The rows of `explode` and `posexplode`: a list of structs.
fn rows_type(types: &[DataType], position: bool) -> Result<DataType> {
    let mut fields = if position { vec![Field::new("pos", DataType::Int32, true)] } else { vec![] };
    match &types[0] {
        DataType::List(item) => fields.push(Field::new("col", item.data_type().clone(), true)),
        DataType::Map(..) => {
            if let Some((key, value)) = map_types(&types[0]) {
                fields.push(Field::new("key", key.data_type().clone(), true));
                fields.push(Field::new("value", value.data_type().clone(), true));
            }
        }
        other => {
            return Err(mismatch(
                "UNEXPECTED_INPUT_TYPE",
                format!("explode() needs an ARRAY or a MAP, not {}", sql_name(other)),
            ));
        }
    }
    Ok(list_of(DataType::Struct(fields.into())))
}

fn rows_of(call: &Call<'_>, position: bool) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let DataType::List(item) = call.returns else { return exec_err!("explode() makes a list") };
    let DataType::Struct(fields) = item.data_type() else { return exec_err!("explode() makes structs") };
    let (offsets, values, nulls) = match of.data_type() {
        DataType::List(_) => {
            let list = of.as_list::<i32>();
            (list.offsets().clone(), vec![list.values().clone()], list.nulls().cloned())
        }
        DataType::Map(..) => {
            let map = of.as_map();
            (map.offsets().clone(), vec![map.keys().clone(), map.values().clone()], map.nulls().cloned())
        }
        other => return exec_err!("explode() needs an array, not {other}"),
    };
    let mut columns = Vec::with_capacity(fields.len());
    if position {
        let mut positions = vec![0; values[0].len()];
        for pair in offsets.windows(2) {
            for at in pair[0]..pair[1] {
                positions[at as usize] = at - pair[0];
            }
        }
        columns.push(Arc::new(Int32Array::from(positions)) as ArrayRef);
    }
    columns.extend(values);
    let structs = StructArray::try_new(fields.clone(), columns, None)?;
    Ok(Arc::new(ListArray::try_new(item.clone(), offsets, Arc::new(structs), nulls)?))
}
