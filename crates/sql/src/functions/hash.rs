//! Spark's hash functions: `hash` (Murmur3) and `xxhash64` over values of all types, `crc32`, `md5`, `sha1`, `sha2`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, StringArray};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit,
};
use datafusion::common::{Result, exec_err};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use twox_hash::XxHash64;

use super::function::{Arg, Args, Call, Spec, returns};
use super::types::{is_string, mismatch, sql_name};
use crate::error::refused_analysis;

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("hash", Args::Custom(hashable), returns::int, |call| {
        Ok(Arc::new(Int32Array::from(hashes::<Murmur3>(call)?)))
    }),
    &Spec::new("xxhash64", Args::Custom(hashable), returns::long, |call| {
        Ok(Arc::new(Int64Array::from(hashes::<Xx64>(call)?)))
    }),
    &Spec::new("crc32", Args::Custom(bytes), returns::long, |call| {
        let bytes = call.array(0)?;
        let sums = bytes.as_binary::<i32>().iter().map(|bytes| bytes.map(|bytes| i64::from(crc32fast::hash(bytes))));
        Ok(Arc::new(Int64Array::from_iter(sums)))
    }),
    &Spec::new("md5", Args::Custom(bytes), returns::text, |call| digests(call, shown::<Md5>)),
    &Spec::new("sha1", Args::Custom(bytes), returns::text, |call| digests(call, shown::<Sha1>)).or(&["sha"]),
    &Spec::new("sha2", Args::Fixed(2, &[Arg::Bytes, Arg::Int]), returns::text, sha2),
];

fn hashable(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    fn has_map(data_type: &DataType) -> bool {
        match data_type {
            DataType::Map(..) => true,
            DataType::List(item) => has_map(item.data_type()),
            DataType::Struct(fields) => fields.iter().any(|field| has_map(field.data_type())),
            _ => false,
        }
    }
    if types.is_empty() {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a hash function needs at least 1 argument"));
    }
    match types.iter().find(|data_type| has_map(data_type)) {
        Some(map) => Err(mismatch("HASH_MAP_TYPE", format!("a hash of {} depends on its order", sql_name(map)))),
        None => Ok(types.to_vec()),
    }
}

fn bytes(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of] if is_string(of) || matches!(of, DataType::Binary | DataType::Null) => Ok(vec![DataType::Binary]),
        [of] => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("a digest needs BINARY, not {}", sql_name(of)))),
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a digest needs 1 argument")),
    }
}

fn shown<D: Digest>(bytes: &[u8]) -> String {
    D::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digests(call: &Call<'_>, of: fn(&[u8]) -> String) -> Result<ArrayRef> {
    let bytes = call.array(0)?;
    Ok(Arc::new(StringArray::from_iter(bytes.as_binary::<i32>().iter().map(|bytes| bytes.map(of)))))
}

fn sha2(call: &Call<'_>) -> Result<ArrayRef> {
    let (bytes, lengths) = (call.array(0)?, call.numbers::<Int32Type>(1)?);
    let digests = bytes.as_binary::<i32>().iter().zip(lengths.iter()).map(|pair| {
        let (Some(bytes), Some(length)) = pair else { return None };
        Some(match length {
            224 => shown::<Sha224>(bytes),
            0 | 256 => shown::<Sha256>(bytes),
            384 => shown::<Sha384>(bytes),
            512 => shown::<Sha512>(bytes),
            _ => return None,
        })
    });
    Ok(Arc::new(StringArray::from_iter(digests)))
}

/// A hash function of Spark: the hash of one value is the seed of the next.
trait ValueHash {
    type Hash: Copy;
    const SEED: Self::Hash;
    fn int(value: i32, seed: Self::Hash) -> Self::Hash;
    fn long(value: i64, seed: Self::Hash) -> Self::Hash;
    fn bytes(value: &[u8], seed: Self::Hash) -> Self::Hash;
}

fn hashes<H: ValueHash>(call: &Call<'_>) -> Result<Vec<H::Hash>> {
    let mut hashes = vec![H::SEED; call.rows];
    let rows: Vec<(usize, usize)> = (0..call.rows).map(|row| (row, row)).collect();
    for array in call.arrays()? {
        update::<H>(&array, &rows, &mut hashes)?;
    }
    Ok(hashes)
}

/// Takes values into hashes: of each pair the value at the first index into the hash at the second one. NULL changes nothing.
fn update<H: ValueHash>(array: &ArrayRef, rows: &[(usize, usize)], hashes: &mut [H::Hash]) -> Result<()> {
    let nulls = array.logical_nulls();
    let rows: Vec<(usize, usize)> =
        rows.iter().copied().filter(|(at, _)| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*at))).collect();
    let mut each = |hash: &dyn Fn(usize, H::Hash) -> H::Hash| {
        for (at, into) in &rows {
            hashes[*into] = hash(*at, hashes[*into]);
        }
    };
    match array.data_type() {
        DataType::Null => {}
        DataType::Boolean => {
            let values = array.as_boolean();
            each(&|at, seed| H::int(i32::from(values.value(at)), seed));
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Date32 => {
            let values = compute::cast(array, &DataType::Int32)?;
            let values = values.as_primitive::<Int32Type>();
            each(&|at, seed| H::int(values.value(at), seed));
        }
        DataType::Int64 | DataType::Timestamp(..) => {
            let values = compute::cast(array, &DataType::Int64)?;
            let values = values.as_primitive::<Int64Type>();
            each(&|at, seed| H::long(values.value(at), seed));
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            let bits = |x: f32| if x.is_nan() { f32::NAN } else { x + 0.0 }.to_bits().cast_signed();
            each(&|at, seed| H::int(bits(values.value(at)), seed));
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            let bits = |x: f64| if x.is_nan() { f64::NAN } else { x + 0.0 }.to_bits().cast_signed();
            each(&|at, seed| H::long(bits(values.value(at)), seed));
        }
        DataType::Decimal128(precision, _) => {
            let values = array.as_primitive::<Decimal128Type>();
            let short = *precision <= 18;
            each(&|at, seed| match i64::try_from(values.value(at)) {
                Ok(value) if short => H::long(value, seed),
                _ => H::bytes(shortest(&values.value(at).to_be_bytes()), seed),
            });
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            each(&|at, seed| {
                let value = values.value(at);
                if value.months != 0 {
                    return H::int(value.months, seed);
                }
                H::long(i64::from(value.days) * super::cast::time::DAY + value.nanoseconds / 1_000, seed)
            });
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            each(&|at, seed| H::bytes(values.value(at).as_bytes(), seed));
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            each(&|at, seed| H::bytes(values.value(at), seed));
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let items: Vec<(usize, usize)> = rows
                .iter()
                .flat_map(|(at, into)| (offsets[*at]..offsets[*at + 1]).map(move |item| (item as usize, *into)))
                .collect();
            update::<H>(list.values(), &items, hashes)?;
        }
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                update::<H>(column, &rows, hashes)?;
            }
        }
        other => return exec_err!("a value of type {other} has no hash"),
    }
    Ok(())
}

/// The fewest bytes that hold a number: Java's `BigInteger.toByteArray`.
fn shortest(bytes: &[u8]) -> &[u8] {
    let redundant = bytes.windows(2).take_while(|pair| matches!((pair[0], pair[1] >> 7), (0, 0) | (0xff, 1))).count();
    &bytes[redundant..]
}

struct Xx64;

impl ValueHash for Xx64 {
    type Hash = i64;
    const SEED: i64 = 42;

    fn int(value: i32, seed: i64) -> i64 {
        // Spark hashes the four bytes as they are, without a sign.
        Self::bytes(&value.to_le_bytes(), seed)
    }

    fn long(value: i64, seed: i64) -> i64 {
        Self::bytes(&value.to_le_bytes(), seed)
    }

    fn bytes(value: &[u8], seed: i64) -> i64 {
        XxHash64::oneshot(seed.cast_unsigned(), value).cast_signed()
    }
}

pub(super) struct Murmur3;

impl Murmur3 {
    /// The hash of a number.
    pub(super) fn of_int(value: i32, seed: i32) -> u32 {
        <Self as ValueHash>::int(value, seed).cast_unsigned()
    }

    /// The hash of bytes.
    pub(super) fn of_bytes(value: &[u8], seed: i32) -> u32 {
        <Self as ValueHash>::bytes(value, seed).cast_unsigned()
    }

    fn mix(hash: u32, word: u32) -> u32 {
        let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
        (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
    }

    fn finish(hash: u32, length: u32) -> i32 {
        let mut hash = hash ^ length;
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        (hash ^ hash >> 16).cast_signed()
    }
}

impl ValueHash for Murmur3 {
    type Hash = i32;
    const SEED: i32 = 42;

    fn int(value: i32, seed: i32) -> i32 {
        Self::finish(Self::mix(seed.cast_unsigned(), value.cast_unsigned()), 4)
    }

    fn long(value: i64, seed: i32) -> i32 {
        let bits = value.cast_unsigned();
        let low = Self::mix(seed.cast_unsigned(), bits as u32);
        Self::finish(Self::mix(low, (bits >> 32) as u32), 8)
    }

    fn bytes(value: &[u8], seed: i32) -> i32 {
        let mut words = value.chunks_exact(4);
        let mut hash = words.by_ref().fold(seed.cast_unsigned(), |hash, word| {
            Self::mix(hash, word.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        });
        // Not as in the original: each byte of the rest is a word of its own, with its sign.
        for byte in words.remainder() {
            hash = Self::mix(hash, i32::from(byte.cast_signed()).cast_unsigned());
        }
        Self::finish(hash, value.len() as u32)
    }
}
