//! Spark's rules about types: names, the common type of two values, the types of decimal arithmetic (ANSI mode).

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::DataFusionError;
use perennial_core::error::{Error, class};

use crate::error::external;

/// Greatest number of digits of a DECIMAL, and greatest scale.
pub(crate) const MAX_PRECISION: i32 = 38;
/// Digits behind the point that a result keeps where digits must be given up.
const MIN_ADJUSTED_SCALE: i32 = 6;

/// A type as Spark's messages write it.
pub(crate) fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "VOID".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BINARY".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP_NTZ".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::Interval(_) | DataType::Duration(_) => "INTERVAL".into(),
        DataType::List(field) => format!("ARRAY<{}>", sql_name(field.data_type())),
        DataType::Map(..) => match map_types(data_type) {
            Some((key, value)) => format!("MAP<{}, {}>", sql_name(key.data_type()), sql_name(value.data_type())),
            None => "MAP".into(),
        },
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{}: {}", field.name(), sql_name(field.data_type()))).collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// The type as Spark's `typeof` and schemas write it.
pub(crate) fn simple_name(data_type: &DataType) -> String {
    match data_type {
        DataType::List(field) => format!("array<{}>", simple_name(field.data_type())),
        DataType::Map(..) => match map_types(data_type) {
            Some((key, value)) => format!("map<{},{}>", simple_name(key.data_type()), simple_name(value.data_type())),
            None => "map".into(),
        },
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{}:{}", field.name(), simple_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(","))
        }
        other => sql_name(other).to_lowercase(),
    }
}

/// Key and value of a map type.
pub(crate) fn map_types(data_type: &DataType) -> Option<(&FieldRef, &FieldRef)> {
    match data_type {
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => match fields.as_ref() {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// The map type with these keys and values.
pub(crate) fn map_of(key: DataType, value: DataType) -> DataType {
    let fields = vec![Field::new("key", key, false), Field::new("value", value, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(fields.into()), false)), false)
}

/// The list type with these elements.
pub(crate) fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", element, true)))
}

/// The type of an array's elements.
pub(crate) fn element_of(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            Some(field.data_type())
        }
        _ => None,
    }
}

/// The TIMESTAMP of a session.
pub(crate) fn timestamp(zone: &Arc<str>) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone()))
}

pub(crate) fn is_string(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

pub(crate) fn is_integral(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64)
}

pub(crate) fn is_float(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64)
}

pub(crate) fn is_decimal(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Decimal128(..))
}

pub(crate) fn is_number(data_type: &DataType) -> bool {
    is_integral(data_type) || is_float(data_type) || is_decimal(data_type)
}

/// Precision and scale of a number that is not a floating-point one.
pub(crate) fn as_decimal(data_type: &DataType) -> Option<(i32, i32)> {
    Some(match data_type {
        DataType::Int8 => (3, 0),
        DataType::Int16 => (5, 0),
        DataType::Int32 => (10, 0),
        DataType::Int64 => (20, 0),
        DataType::Decimal128(precision, scale) => (i32::from(*precision), i32::from(*scale)),
        _ => return None,
    })
}

/// A DECIMAL that is cut to the limits.
pub(crate) fn bounded(precision: i32, scale: i32) -> DataType {
    DataType::Decimal128(precision.clamp(1, MAX_PRECISION) as u8, scale.clamp(0, MAX_PRECISION) as i8)
}

/// A DECIMAL that gives up digits behind the point, but not the last six, where there are too many.
pub(crate) fn adjusted(precision: i32, scale: i32) -> DataType {
    if precision <= MAX_PRECISION {
        return bounded(precision, scale);
    }
    let whole = precision - scale;
    bounded(MAX_PRECISION, (MAX_PRECISION - whole).max(scale.min(MIN_ADJUSTED_SCALE)))
}

/// The type to which both can be brought without a cast by the user.
pub(crate) fn common(left: &DataType, right: &DataType) -> Option<DataType> {
    use DataType::{
        Binary, Boolean, Date32, Float32, Float64, Int64, Interval, List, Map, Null, Struct, Timestamp, Utf8,
    };
    if left == right {
        return Some(left.clone());
    }
    Some(match (left, right) {
        (Null, other) | (other, Null) => other.clone(),
        (text, other) | (other, text) if is_string(text) => match other {
            other if is_string(other) => Utf8,
            other if is_integral(other) => Int64,
            other if is_float(other) || is_decimal(other) => Float64,
            Date32 | Timestamp(..) | Boolean | Binary | Interval(_) => other.clone(),
            _ => return None,
        },
        (left, right) if is_integral(left) && is_integral(right) => {
            if left.primitive_width() >= right.primitive_width() { left.clone() } else { right.clone() }
        }
        (Float32, Float32) => Float32,
        (left, right) if is_number(left) && is_number(right) && (is_float(left) || is_float(right)) => Float64,
        (left, right) if is_number(left) && is_number(right) => {
            let ((p1, s1), (p2, s2)) = (as_decimal(left)?, as_decimal(right)?);
            let scale = s1.max(s2);
            bounded((p1 - s1).max(p2 - s2) + scale, scale)
        }
        (Date32, Timestamp(..)) => right.clone(),
        (Timestamp(..), Date32) => left.clone(),
        (Timestamp(unit, Some(zone)), Timestamp(..)) | (Timestamp(..), Timestamp(unit, Some(zone))) => {
            Timestamp(*unit, Some(zone.clone()))
        }
        (List(l), List(r)) => list_of(common(l.data_type(), r.data_type())?),
        (Map(..), Map(..)) => {
            let ((lk, lv), (rk, rv)) = (map_types(left)?, map_types(right)?);
            map_of(common(lk.data_type(), rk.data_type())?, common(lv.data_type(), rv.data_type())?)
        }
        (Struct(l), Struct(r)) if l.len() == r.len() => {
            let fields: Option<Vec<Field>> = l
                .iter()
                .zip(r)
                .map(|(l, r)| Some(Field::new(l.name(), common(l.data_type(), r.data_type())?, true)))
                .collect();
            Struct(fields?.into())
        }
        _ => return None,
    })
}

/// The type to which all can be brought; VOID for none.
pub(crate) fn common_of<'a>(types: impl IntoIterator<Item = &'a DataType>) -> Option<DataType> {
    types.into_iter().try_fold(DataType::Null, |so_far, next| common(&so_far, next))
}

/// A refusal because of types, in Spark's words.
pub(crate) fn mismatch(kind: &str, message: impl std::fmt::Display) -> DataFusionError {
    external(Error::new(class::ANALYSIS, format!("DATATYPE_MISMATCH.{kind}: {message}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_types_are_sparks() {
        use DataType::*;
        let of = |l: &DataType, r: &DataType| common(l, r).map(|t| simple_name(&t));
        assert_eq!(of(&Int32, &Int64).as_deref(), Some("bigint"));
        assert_eq!(of(&Int32, &Float32).as_deref(), Some("double"));
        assert_eq!(of(&Utf8, &Int8).as_deref(), Some("bigint"));
        assert_eq!(of(&Utf8, &Decimal128(5, 2)).as_deref(), Some("double"));
        assert_eq!(of(&Decimal128(10, 2), &Int32).as_deref(), Some("decimal(12,2)"));
        assert_eq!(of(&Decimal128(38, 10), &Decimal128(38, 0)).as_deref(), Some("decimal(38,10)"));
        assert_eq!(of(&list_of(Int32), &list_of(Null)).as_deref(), Some("array<int>"));
        assert_eq!(of(&Int32, &Boolean), None);
    }
}
