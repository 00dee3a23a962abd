//! Spark's Murmur3, by which keys are spread over partitions. It mixes each byte of a tail as a word of its own.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use perennial_core::error::{Error, Result};

use crate::row::decimal_bytes;

const SEED: u32 = 42;

/// To which of so many partitions row `row` of some key columns belongs.
pub(crate) fn partition(keys: &[ArrayRef], row: usize, partitions: usize) -> Result<usize> {
    let hash = keys.iter().try_fold(SEED, |seed, column| value(column, row, seed))? as i32;
    Ok(i64::from(hash).rem_euclid(partitions as i64) as usize)
}

fn value(column: &ArrayRef, row: usize, seed: u32) -> Result<u32> {
    if column.is_null(row) {
        return Ok(seed);
    }
    let int = |value: i32| mix_int(value, seed);
    Ok(match column.data_type() {
        DataType::Null => seed,
        DataType::Boolean => int(i32::from(column.as_boolean().value(row))),
        DataType::Int8 => int(column.as_primitive::<Int8Type>().value(row).into()),
        DataType::Int16 => int(column.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => int(column.as_primitive::<Int32Type>().value(row)),
        DataType::Date32 => int(column.as_primitive::<Date32Type>().value(row)),
        DataType::Int64 => mix_long(column.as_primitive::<Int64Type>().value(row), seed),
        DataType::Timestamp(..) => mix_long(column.as_primitive::<TimestampMicrosecondType>().value(row), seed),
        // Zero has one hash, whatever its sign.
        DataType::Float32 => int((column.as_primitive::<Float32Type>().value(row) + 0.0).to_bits() as i32),
        DataType::Float64 => mix_long((column.as_primitive::<Float64Type>().value(row) + 0.0).to_bits() as i64, seed),
        DataType::Decimal128(precision, _) => {
            let unscaled = column.as_primitive::<Decimal128Type>().value(row);
            if *precision <= 18 { mix_long(unscaled as i64, seed) } else { mix_bytes(&decimal_bytes(unscaled), seed) }
        }
        DataType::Utf8 => mix_bytes(column.as_string::<i32>().value(row).as_bytes(), seed),
        DataType::Binary => mix_bytes(column.as_binary::<i32>().value(row), seed),
        DataType::Struct(_) => {
            column.as_struct().columns().iter().try_fold(seed, |seed, field| value(field, row, seed))?
        }
        DataType::List(_) => {
            let elements = column.as_list::<i32>().value(row);
            (0..elements.len()).try_fold(seed, |seed, element| value(&elements, element, seed))?
        }
        other => return Err(Error::bug(format!("{other} is no type of a key"))),
    })
}

fn mix_k(word: u32) -> u32 {
    word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593)
}

fn mix_h(hash: u32, word: u32) -> u32 {
    (hash ^ mix_k(word)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

fn finish(hash: u32, length: u32) -> u32 {
    let hash = hash ^ length;
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

fn mix_int(value: i32, seed: u32) -> u32 {
    finish(mix_h(seed, value as u32), 4)
}

fn mix_long(value: i64, seed: u32) -> u32 {
    finish(mix_h(mix_h(seed, value as u32), (value >> 32) as u32), 8)
}

fn mix_bytes(bytes: &[u8], seed: u32) -> u32 {
    let words = bytes.chunks_exact(4);
    let tail = words.remainder();
    let hash = words.fold(seed, |hash, word| mix_h(hash, u32::from_le_bytes([word[0], word[1], word[2], word[3]])));
    let hash = tail.iter().fold(hash, |hash, byte| mix_h(hash, i32::from(*byte as i8) as u32));
    finish(hash, bytes.len() as u32)
}
