//! Rows as Spark holds them in memory and in its state (`UnsafeRow`), and Arrow columns.
//!
//! A row has a bit per field that says whether it is NULL, a slot of 8 bytes per field, and then the content of those fields that do not
//! fit into a slot, which holds where it is and how long. Numbers are little-endian.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, ListArray, MapArray, NullArray,
    PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, FieldRef, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use perennial_core::error::{Error, Result};

/// Decimals of more digits than this do not fit into a slot.
const SLOT_DIGITS: u8 = 18;
/// How much room those have, always.
const DECIMAL_ROOM: usize = 16;

/// A value in a row: its bytes, or nothing for NULL.
type Cell<'a> = Option<&'a [u8]>;

/// Why rows cannot be read.
type Broken = &'static str;

/// The columns of rows.
pub(crate) fn decode<'a>(fields: &[FieldRef], rows: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, Broken> {
    let rows: Vec<Cell> = rows.map(Some).collect();
    columns(fields, &rows)
}

fn columns(fields: &[FieldRef], rows: &[Cell]) -> Result<Vec<ArrayRef>, Broken> {
    let nulls = words(fields.len());
    for row in rows.iter().flatten() {
        if row.len() % 8 != 0 || row.len() < nulls + 8 * fields.len() {
            return Err("a row has another number of columns than the schema");
        }
    }
    fields
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let cells = rows.iter().map(|row| match row {
                Some(row) => cell(field.data_type(), row, 0, nulls + 8 * index, index),
                None => Ok(None),
            });
            column(field.data_type(), &cells.collect::<Result<Vec<_>, _>>()?)
        })
        .collect()
}

/// Bytes of the bits of so many fields.
fn words(fields: usize) -> usize {
    fields.div_ceil(64) * 8
}

/// The value at a slot. `bits` is where the NULL bits begin, `bit` the one of the value.
fn cell<'a>(data_type: &DataType, row: &'a [u8], bits: usize, slot: usize, bit: usize) -> Result<Cell<'a>, Broken> {
    let is_null = row.get(bits + bit / 8).ok_or("a row is too short")? >> (bit % 8) & 1 == 1;
    if is_null {
        return Ok(None);
    }
    if let Some(width) = width(data_type) {
        return row.get(slot..slot + width).map(Some).ok_or("a row is too short");
    }
    let place = row.get(slot..slot + 8).ok_or("a row is too short")?;
    let size = u32::from_le_bytes([place[0], place[1], place[2], place[3]]) as usize;
    let offset = u32::from_le_bytes([place[4], place[5], place[6], place[7]]) as usize;
    row.get(offset..offset + size).map(Some).ok_or("a column of a row lies outside of it")
}

/// Bytes of a value that lies in its slot; nothing for those that do not fit there.
fn width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean | DataType::Int8 => Some(1),
        DataType::Int16 => Some(2),
        DataType::Int32 | DataType::Float32 | DataType::Date32 => Some(4),
        DataType::Null | DataType::Int64 | DataType::Float64 | DataType::Timestamp(..) => Some(8),
        DataType::Decimal128(precision, _) if *precision <= SLOT_DIGITS => Some(8),
        _ => None,
    }
}

fn primitive<T: ArrowPrimitiveType, const N: usize>(
    cells: &[Cell],
    read: impl Fn([u8; N]) -> T::Native,
) -> Result<PrimitiveArray<T>, Broken> {
    let value = |cell: &[u8]| Ok(read(cell.try_into().map_err(|_| "a number has another width")?));
    cells.iter().map(|cell| cell.map(value).transpose()).collect()
}

fn column(data_type: &DataType, cells: &[Cell]) -> Result<ArrayRef, Broken> {
    Ok(match data_type {
        DataType::Null => Arc::new(NullArray::new(cells.len())),
        DataType::Boolean => Arc::new(cells.iter().map(|cell| cell.map(|byte| byte != [0])).collect::<BooleanArray>()),
        DataType::Int8 => Arc::new(primitive::<Int8Type, 1>(cells, i8::from_le_bytes)?),
        DataType::Int16 => Arc::new(primitive::<Int16Type, 2>(cells, i16::from_le_bytes)?),
        DataType::Int32 => Arc::new(primitive::<Int32Type, 4>(cells, i32::from_le_bytes)?),
        DataType::Date32 => Arc::new(primitive::<Date32Type, 4>(cells, i32::from_le_bytes)?),
        DataType::Int64 => Arc::new(primitive::<Int64Type, 8>(cells, i64::from_le_bytes)?),
        DataType::Float32 => Arc::new(primitive::<Float32Type, 4>(cells, f32::from_le_bytes)?),
        DataType::Float64 => Arc::new(primitive::<Float64Type, 8>(cells, f64::from_le_bytes)?),
        DataType::Timestamp(..) => {
            let times = primitive::<TimestampMicrosecondType, 8>(cells, i64::from_le_bytes)?;
            Arc::new(times.with_data_type(data_type.clone()))
        }
        DataType::Decimal128(precision, scale) => {
            let values: Decimal128Array = match precision {
                0..=SLOT_DIGITS => primitive::<Decimal128Type, 8>(cells, |bytes| i64::from_le_bytes(bytes).into())?,
                _ => {
                    let value = |cell: &Cell| cell.map(wide_decimal).transpose();
                    cells.iter().map(value).collect::<Result<_, _>>()?
                }
            };
            let values = values.with_precision_and_scale(*precision, *scale);
            let values = values.map_err(|_| "a decimal has a type that is none")?;
            values.validate_decimal_precision(*precision).map_err(|_| "a decimal has more digits than its type")?;
            Arc::new(values)
        }
        DataType::Utf8 => {
            let text = |cell: &[u8]| String::from_utf8(cell.to_vec()).map_err(|_| "a text is not UTF-8");
            let texts = cells.iter().map(|cell| cell.map(text).transpose());
            Arc::new(texts.collect::<Result<StringArray, _>>()?)
        }
        DataType::Binary => Arc::new(cells.iter().copied().collect::<BinaryArray>()),
        DataType::Struct(fields) => {
            let columns = columns(fields, cells)?;
            let nulls = NullBuffer::from_iter(cells.iter().map(Option::is_some));
            let columns = StructArray::try_new_with_length(fields.clone(), columns, Some(nulls), cells.len());
            Arc::new(columns.map_err(|_| "a struct does not fit its type")?)
        }
        DataType::List(element) => {
            let elements = Elements::read(element, cells)?;
            let list = ListArray::try_new(element.clone(), elements.offsets, elements.values, Some(elements.nulls));
            Arc::new(list.map_err(|_| "an array does not fit its type")?)
        }
        DataType::Map(entries, sorted) => {
            let DataType::Struct(pair) = entries.data_type() else { return Err("a map has no entries") };
            let [key, value] = &pair[..] else { return Err("a map has no keys and values") };
            let halves: Vec<(Cell, Cell)> = cells.iter().map(halves).collect::<Result<_, _>>()?;
            let (keys, values): (Vec<Cell>, Vec<Cell>) = halves.into_iter().unzip();
            let (keys, values) = (Elements::read(key, &keys)?, Elements::read(value, &values)?);
            if keys.offsets != values.offsets {
                return Err("a map has more keys than values, or fewer");
            }
            let pairs = StructArray::try_new(pair.clone(), vec![keys.values, values.values], None);
            let pairs = pairs.map_err(|_| "a map does not fit its type")?;
            let map = MapArray::try_new(entries.clone(), keys.offsets, pairs, Some(keys.nulls), *sorted);
            Arc::new(map.map_err(|_| "a map does not fit its type")?)
        }
        _ => return Err("a column has a type that rows of Spark do not have"),
    })
}

/// The unscaled value of a decimal that does not fit into a slot: big-endian, as few bytes as it needs.
fn wide_decimal(bytes: &[u8]) -> Result<i128, Broken> {
    if bytes.is_empty() || bytes.len() > DECIMAL_ROOM {
        return Err("a decimal has another length");
    }
    let mut wide = [if bytes[0] & 0x80 == 0 { 0 } else { 0xff }; DECIMAL_ROOM];
    wide[DECIMAL_ROOM - bytes.len()..].copy_from_slice(bytes);
    Ok(i128::from_be_bytes(wide))
}

/// The array of the keys of a map, and that of its values.
fn halves<'a>(cell: &Cell<'a>) -> Result<(Cell<'a>, Cell<'a>), Broken> {
    let Some(map) = cell else { return Ok((None, None)) };
    let (length, rest) = map.split_first_chunk::<8>().ok_or("a map is too short")?;
    let length = usize::try_from(i64::from_le_bytes(*length)).map_err(|_| "a length is negative")?;
    let (keys, values) = rest.split_at_checked(length).ok_or("a map is too short")?;
    Ok((Some(keys), Some(values)))
}

/// The elements of many arrays, one behind the other.
struct Elements {
    values: ArrayRef,
    offsets: OffsetBuffer<i32>,
    nulls: NullBuffer,
}

impl Elements {
    fn read(element: &Field, arrays: &[Cell]) -> Result<Self, Broken> {
        let mut cells = Vec::new();
        let mut lengths = Vec::with_capacity(arrays.len());
        for array in arrays {
            let before = cells.len();
            if let Some(array) = array {
                let (count, _) = array.split_first_chunk::<8>().ok_or("an array is too short")?;
                let count = usize::try_from(i64::from_le_bytes(*count)).map_err(|_| "a length is negative")?;
                if count > array.len() * 8 {
                    return Err("an array is too short");
                }
                let (first, step) = (8 + words(count), width(element.data_type()).unwrap_or(8));
                for index in 0..count {
                    cells.push(cell(element.data_type(), array, 8, first + index * step, index)?);
                }
            }
            lengths.push(cells.len() - before);
        }
        let nulls = NullBuffer::from_iter(arrays.iter().map(Option::is_some));
        Ok(Self { values: column(element.data_type(), &cells)?, offsets: OffsetBuffer::from_lengths(lengths), nulls })
    }
}

/// Rows of columns, all of the same length.
pub(crate) fn encode(columns: &[ArrayRef], rows: usize) -> Result<Vec<Vec<u8>>> {
    (0..rows).map(|row| encode_row(columns, row)).collect()
}

fn encode_row(columns: &[ArrayRef], row: usize) -> Result<Vec<u8>> {
    let first = words(columns.len());
    let mut out = vec![0; first + 8 * columns.len()];
    for (index, column) in columns.iter().enumerate() {
        let is_null = column.is_null(row) || *column.data_type() == DataType::Null;
        put(column, row, is_null, &mut out, 0, first + 8 * index, index)?;
    }
    Ok(out)
}

/// Writes a value to its slot, and behind all what does not fit there. `bits` is where the NULL bits begin, `bit` the one of the value.
fn put(
    column: &ArrayRef,
    row: usize,
    is_null: bool,
    out: &mut Vec<u8>,
    bits: usize,
    slot: usize,
    bit: usize,
) -> Result<()> {
    let is_wide = matches!(column.data_type(), DataType::Decimal128(precision, _) if *precision > SLOT_DIGITS);
    if is_null {
        out[bits + bit / 8] |= 1 << (bit % 8);
        // Such a decimal keeps its room, so that it can become a value in place.
        if is_wide {
            append(out, slot, &[], DECIMAL_ROOM);
        }
        return Ok(());
    }
    let mut fixed = |bytes: &[u8]| out[slot..slot + bytes.len()].copy_from_slice(bytes);
    match column.data_type() {
        DataType::Boolean => fixed(&[u8::from(column.as_boolean().value(row))]),
        DataType::Int8 => fixed(&column.as_primitive::<Int8Type>().value(row).to_le_bytes()),
        DataType::Int16 => fixed(&column.as_primitive::<Int16Type>().value(row).to_le_bytes()),
        DataType::Int32 => fixed(&column.as_primitive::<Int32Type>().value(row).to_le_bytes()),
        DataType::Date32 => fixed(&column.as_primitive::<Date32Type>().value(row).to_le_bytes()),
        DataType::Int64 => fixed(&column.as_primitive::<Int64Type>().value(row).to_le_bytes()),
        DataType::Float32 => fixed(&column.as_primitive::<Float32Type>().value(row).to_le_bytes()),
        DataType::Float64 => fixed(&column.as_primitive::<Float64Type>().value(row).to_le_bytes()),
        DataType::Timestamp(..) => fixed(&column.as_primitive::<TimestampMicrosecondType>().value(row).to_le_bytes()),
        DataType::Decimal128(..) => {
            let unscaled = column.as_primitive::<Decimal128Type>().value(row);
            if is_wide {
                append(out, slot, &decimal_bytes(unscaled), DECIMAL_ROOM);
            } else {
                fixed(&(unscaled as i64).to_le_bytes());
            }
        }
        DataType::Utf8 => append(out, slot, column.as_string::<i32>().value(row).as_bytes(), 0),
        DataType::Binary => append(out, slot, column.as_binary::<i32>().value(row), 0),
        DataType::Struct(_) => {
            let inner = encode_row(column.as_struct().columns(), row)?;
            append(out, slot, &inner, 0);
        }
        DataType::List(_) => {
            let inner = encode_array(&column.as_list::<i32>().value(row))?;
            append(out, slot, &inner, 0);
        }
        other => return Err(Error::bug(format!("{other} is no type of Spark's state"))),
    }
    Ok(())
}

fn encode_array(elements: &ArrayRef) -> Result<Vec<u8>> {
    let (first, step) = (8 + words(elements.len()), width(elements.data_type()).unwrap_or(8));
    let mut out = vec![0; (first + elements.len() * step).next_multiple_of(8)];
    out[..8].copy_from_slice(&(elements.len() as i64).to_le_bytes());
    for index in 0..elements.len() {
        put(elements, index, elements.is_null(index), &mut out, 8, first + index * step, index)?;
    }
    Ok(out)
}

/// Appends a content of at least so much room, and says in the slot where it is.
fn append(out: &mut Vec<u8>, slot: usize, content: &[u8], room: usize) {
    let place = (out.len() as u64) << 32 | content.len() as u64;
    out[slot..slot + 8].copy_from_slice(&place.to_le_bytes());
    out.extend_from_slice(content);
    let padded = out.len() - content.len() + content.len().max(room).next_multiple_of(8);
    out.resize(padded, 0);
}

/// As few big-endian bytes as the value needs.
pub(crate) fn decimal_bytes(unscaled: i128) -> Vec<u8> {
    let bytes = unscaled.to_be_bytes();
    let sign = if unscaled < 0 { 0xff } else { 0 };
    let is_spare = |pair: &[u8]| pair[0] == sign && (pair[1] ^ sign) & 0x80 == 0;
    let spare = bytes.windows(2).take_while(|pair| is_spare(pair)).count();
    bytes[spare..].to_vec()
}
