//! JSON into values of a schema, column by column.

use std::sync::Arc;

use base64::Engine;
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, ListArray, MapArray, PrimitiveArray, StringArray, StructArray,
    new_null_array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, FieldRef, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, Schema, TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::text::{Json, Syntax};
use super::{flag, option, options};
use crate::error::{failed, refused_analysis};
use crate::functions::cast::cast_array;
use crate::functions::cast::numbers::exact;
use crate::functions::cast::read::{date, parse_zone, timestamp};
use crate::functions::cast::time;
use crate::functions::function::Call;
use crate::functions::patterns::Pattern;
use crate::functions::types::{mismatch, sql_name};
use crate::zone;

/// The type that a schema in DDL says: that of one value, or of a struct.
pub(in crate::functions) fn schema_of(constant: Option<&ScalarValue>, zone_name: &str) -> Result<DataType> {
    let Some(ScalarValue::Utf8(Some(ddl))) = constant else {
        return Err(refused_analysis(
            "INVALID_SCHEMA.NON_STRING_LITERAL",
            "the schema must be a constant text, such as 'a INT, b STRING'",
        ));
    };
    let value = perennial_core::ddl::parse(&format!("value {ddl}"));
    let schema = match &value {
        Ok(schema) if schema.fields().len() == 1 => schema.clone(),
        _ => {
            let fields = perennial_core::ddl::parse(ddl)
                .map_err(|error| refused_analysis("PARSE_SYNTAX_ERROR", format!("'{ddl}' is no schema: {error}")))?;
            Schema::new(vec![Field::new("value", DataType::Struct(fields.fields().clone()), true)])
        }
    };
    Ok(nullable(zone::in_session(&schema, zone_name).field(0).data_type()))
}

/// Everything can be NULL, whatever the schema says.
fn nullable(data_type: &DataType) -> DataType {
    let field =
        |field: &FieldRef| -> FieldRef { Arc::new(Field::new(field.name(), nullable(field.data_type()), true)) };
    match data_type {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::List(item) => DataType::List(field(item)),
        DataType::Map(..) => match crate::functions::types::map_types(data_type) {
            Some((key, value)) => {
                crate::functions::types::map_of(nullable(key.data_type()), nullable(value.data_type()))
            }
            None => data_type.clone(),
        },
        other => other.clone(),
    }
}

pub(super) fn from_json_type(_: &[DataType], constants: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
    match schema_of(constants.get(1).copied().flatten(), zone)? {
        found @ (DataType::Struct(_) | DataType::List(_) | DataType::Map(..)) => Ok(found),
        other => Err(mismatch(
            "INVALID_JSON_SCHEMA",
            format!("from_json() gives a STRUCT, an ARRAY or a MAP, not {}", sql_name(&other)),
        )),
    }
}

/// What becomes of a text that does not fit, and how times are written.
pub(in crate::functions) struct Settings {
    fail_fast: bool,
    corrupt_column: String,
    timestamp_format: Option<Pattern>,
    local_format: Option<Pattern>,
    date_format: Option<Pattern>,
    zone: Option<Tz>,
    primitives_as_text: bool,
}

impl Settings {
    pub(in crate::functions) fn of(options: &[(String, String)], zone: Tz) -> Result<Self> {
        let pattern = |name| option(options, name).map(|format| Pattern::compile(format, true)).transpose();
        let fail_fast = match option(options, "mode").map(str::to_uppercase).as_deref() {
            None | Some("PERMISSIVE") => false,
            Some("FAILFAST") => true,
            Some(other) => {
                return Err(failed(
                    "PARSE_MODE_UNSUPPORTED",
                    format!("the mode {other} is not for expressions: use PERMISSIVE or FAILFAST"),
                ));
            }
        };
        Ok(Self {
            fail_fast,
            corrupt_column: option(options, "columnNameOfCorruptRecord").unwrap_or("_corrupt_record").to_owned(),
            timestamp_format: pattern("timestampFormat")?,
            local_format: pattern("timestampNTZFormat")?,
            date_format: pattern("dateFormat")?,
            zone: Some(match option(options, "timeZone") {
                Some(name) => {
                    parse_zone(name).ok_or_else(|| failed("INVALID_TIMEZONE", format!("'{name}' is no time zone")))?
                }
                None => zone,
            }),
            primitives_as_text: flag(options, "primitivesAsString", false),
        })
    }

    pub(in crate::functions) fn moment(&self, text: &str, has_zone: bool) -> Option<i64> {
        let zone = self.zone.filter(|_| has_zone);
        let pattern = if has_zone { &self.timestamp_format } else { &self.local_format };
        match pattern {
            Some(pattern) => pattern.read(text).map(|read| read.micros(zone)),
            None => timestamp(text, zone),
        }
    }

    pub(in crate::functions) fn day(&self, text: &str) -> Option<i32> {
        match &self.date_format {
            Some(pattern) => pattern.read(text).map(|read| time::days_of(read.local.date())),
            None => date(text).map(time::days_of),
        }
    }
}

/// Whether a value fits its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::functions) enum Outcome {
    Fine,
    /// It is NULL instead.
    Bad,
    /// It is there, and something in it is NULL instead.
    Partly,
}

type Column = (ArrayRef, Vec<Outcome>);

/// Values that are read one by one: nothing for what does not fit, NULL for NULL.
fn leaves<T>(values: &[Option<&Json<'_>>], read: impl Fn(&Json<'_>) -> Option<T>) -> (Vec<Option<T>>, Vec<Outcome>) {
    values
        .iter()
        .map(|value| match value {
            None | Some(Json::Null) => (None, Outcome::Fine),
            Some(value) => match read(value) {
                Some(read) => (Some(read), Outcome::Fine),
                None => (None, Outcome::Bad),
            },
        })
        .unzip()
}

fn numbers<T: ArrowPrimitiveType>(
    values: &[Option<&Json<'_>>],
    data_type: &DataType,
    read: impl Fn(&Json<'_>) -> Option<T::Native>,
) -> Column {
    let (read, outcomes) = leaves(values, read);
    (Arc::new(PrimitiveArray::<T>::from_iter(read).with_data_type(data_type.clone())), outcomes)
}

fn whole<T: TryFrom<i64>>(json: &Json<'_>) -> Option<T> {
    match json {
        Json::Int(digits) => digits.parse::<i64>().ok().and_then(|value| T::try_from(value).ok()),
        _ => None,
    }
}

fn float(json: &Json<'_>) -> Option<f64> {
    match json {
        Json::Int(digits) | Json::Float(digits) => digits.parse().ok(),
        Json::Text(text) => match text.as_ref() {
            "NaN" => Some(f64::NAN),
            "+INF" | "INF" | "+Infinity" | "Infinity" => Some(f64::INFINITY),
            "-INF" | "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn column(values: &[Option<&Json<'_>>], data_type: &DataType, settings: &Settings) -> Result<Column> {
    Ok(match data_type {
        DataType::Boolean => {
            let (read, outcomes) = leaves(values, |json| match json {
                Json::Bool(value) => Some(*value),
                _ => None,
            });
            (Arc::new(BooleanArray::from_iter(read)), outcomes)
        }
        // Jackson takes bytes without a sign, too.
        DataType::Int8 => numbers::<Int8Type>(values, data_type, |json| {
            whole::<i16>(json).filter(|value| (-128..=255).contains(value)).map(|value| value as i8)
        }),
        DataType::Int16 => numbers::<Int16Type>(values, data_type, whole::<i16>),
        DataType::Int32 => numbers::<Int32Type>(values, data_type, whole::<i32>),
        DataType::Int64 => numbers::<Int64Type>(values, data_type, whole::<i64>),
        DataType::Float32 => numbers::<Float32Type>(values, data_type, |json| match json {
            Json::Int(digits) | Json::Float(digits) => digits.parse().ok(),
            other => float(other).map(|value| value as f32),
        }),
        DataType::Float64 => numbers::<Float64Type>(values, data_type, float),
        DataType::Decimal128(precision, scale) => numbers::<Decimal128Type>(values, data_type, |json| match json {
            Json::Int(text) | Json::Float(text) | Json::Text(text) => exact(text, *precision, i32::from(*scale)),
            _ => None,
        }),
        DataType::Utf8 => {
            let (read, outcomes) = leaves(values, |json| match json {
                Json::Int(digits) | Json::Float(digits) if settings.primitives_as_text => Some(digits.to_string()),
                json => json.as_text(),
            });
            (Arc::new(StringArray::from_iter(read)), outcomes)
        }
        DataType::Binary => {
            let (read, outcomes) = leaves(values, |json| match json {
                Json::Text(text) => base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok(),
                _ => None,
            });
            (Arc::new(BinaryArray::from_iter(read)), outcomes)
        }
        DataType::Date32 => numbers::<Date32Type>(values, data_type, |json| match json {
            Json::Text(text) => settings.day(text),
            _ => None,
        }),
        DataType::Timestamp(_, zone) => numbers::<TimestampMicrosecondType>(values, data_type, |json| match json {
            Json::Text(text) => settings.moment(text, zone.is_some()),
            Json::Int(digits) if zone.is_some() => digits.parse::<i64>().ok()?.checked_mul(time::SECOND),
            _ => None,
        }),
        DataType::Struct(fields) => {
            let mut outcomes: Vec<Outcome> = values
                .iter()
                .map(|value| match value {
                    None | Some(Json::Null | Json::Object(_)) => Outcome::Fine,
                    Some(_) => Outcome::Bad,
                })
                .collect();
            let valid: NullBuffer = values.iter().map(|value| matches!(value, Some(Json::Object(_)))).collect();
            let mut columns = Vec::with_capacity(fields.len());
            for field in fields {
                let of_field: Vec<Option<&Json<'_>>> = values
                    .iter()
                    .map(|value| match value {
                        // The last of equal names counts.
                        Some(Json::Object(fields)) => {
                            fields.iter().rev().find(|(name, _)| name == field.name()).map(|(_, value)| value)
                        }
                        _ => None,
                    })
                    .collect();
                let (column, of_column) = column(&of_field, field.data_type(), settings)?;
                for (outcome, inner) in outcomes.iter_mut().zip(of_column) {
                    if inner != Outcome::Fine && *outcome == Outcome::Fine {
                        *outcome = Outcome::Partly;
                    }
                }
                columns.push(column);
            }
            let structs = StructArray::try_new_with_length(fields.clone(), columns, Some(valid), values.len())?;
            (Arc::new(structs), outcomes)
        }
        DataType::List(item) => {
            let items = |value: &Option<&Json<'_>>| match value {
                Some(Json::Array(items)) => items.len(),
                _ => 0,
            };
            let lengths: Vec<usize> = values.iter().map(items).collect();
            let elements: Vec<Option<&Json<'_>>> = values
                .iter()
                .flat_map(|value| match value {
                    Some(Json::Array(items)) => items.iter().map(Some).collect::<Vec<_>>(),
                    _ => Vec::new(),
                })
                .collect();
            let (column, of_elements) = column(&elements, item.data_type(), settings)?;
            let outcomes = container(values, &lengths, &of_elements, |json| matches!(json, Json::Array(_)));
            let valid = there(values, &outcomes);
            let offsets = OffsetBuffer::from_lengths(lengths);
            (Arc::new(ListArray::try_new(item.clone(), offsets, column, Some(valid))?), outcomes)
        }
        DataType::Map(entries, sorted) => {
            let DataType::Struct(fields) = entries.data_type() else { return exec_err!("a map has keys and values") };
            let pairs: Vec<&[(std::borrow::Cow<'_, str>, Json<'_>)]> = values
                .iter()
                .map(|value| match value {
                    Some(Json::Object(fields)) => fields.as_slice(),
                    _ => &[],
                })
                .collect();
            let lengths: Vec<usize> = pairs.iter().map(|pairs| pairs.len()).collect();
            let names: Vec<&str> = pairs.iter().flat_map(|pairs| pairs.iter().map(|(name, _)| name.as_ref())).collect();
            let names = StringArray::from(names);
            let elements: Vec<Option<&Json<'_>>> =
                pairs.iter().flat_map(|pairs| pairs.iter().map(|(_, value)| Some(value))).collect();
            let (column, of_elements) = column(&elements, fields[1].data_type(), settings)?;
            let outcomes = container(values, &lengths, &of_elements, |json| matches!(json, Json::Object(_)));
            let valid = there(values, &outcomes);
            let keys = cast_array(&(Arc::new(names) as ArrayRef), fields[0].data_type(), false)?;
            let structs = StructArray::try_new(fields.clone(), vec![keys, column], None)?;
            let offsets = OffsetBuffer::from_lengths(lengths);
            (Arc::new(MapArray::try_new(entries.clone(), offsets, structs, Some(valid), *sorted)?), outcomes)
        }
        DataType::Null => (new_null_array(data_type, values.len()), vec![Outcome::Fine; values.len()]),
        other => return exec_err!("UNSUPPORTED_DATATYPE: JSON has no {}", sql_name(other)),
    })
}

/// Of arrays and maps: one bad element makes all of it bad.
fn container(
    values: &[Option<&Json<'_>>],
    lengths: &[usize],
    elements: &[Outcome],
    fits: impl Fn(&Json<'_>) -> bool,
) -> Vec<Outcome> {
    let mut start = 0;
    values
        .iter()
        .zip(lengths)
        .map(|(value, length)| {
            let inner = &elements[start..start + length];
            start += length;
            match value {
                Some(json) if **json != Json::Null && !fits(json) => Outcome::Bad,
                _ if inner.contains(&Outcome::Bad) => Outcome::Bad,
                _ if inner.contains(&Outcome::Partly) => Outcome::Partly,
                _ => Outcome::Fine,
            }
        })
        .collect()
}

fn there(values: &[Option<&Json<'_>>], outcomes: &[Outcome]) -> NullBuffer {
    let is_value = |value: &Option<&Json<'_>>| value.is_some_and(|json| *json != Json::Null);
    values.iter().zip(outcomes).map(|(value, outcome)| is_value(value) && *outcome != Outcome::Bad).collect()
}

pub(super) fn from_json(call: &Call<'_>) -> Result<ArrayRef> {
    let texts = call.text(0)?;
    let options = options(call, 2)?;
    let settings = Settings::of(&options, call.tz()?)?;
    let syntax = Syntax::of(&options);
    let parsed: Vec<Option<Json<'_>>> = texts
        .iter()
        .map(|text| {
            let json = Json::parse(text?, &syntax)?;
            // One object where a list of them is asked for is a list.
            match (call.returns, json) {
                (DataType::List(item), json @ Json::Object(_)) if matches!(item.data_type(), DataType::Struct(_)) => {
                    Some(Json::Array(vec![json]))
                }
                (_, json) => Some(json),
            }
        })
        .collect();
    let values: Vec<Option<&Json<'_>>> = parsed.iter().map(Option::as_ref).collect();
    let (column, outcomes) = column(&values, call.returns, &settings)?;
    let outcomes = outcomes
        .into_iter()
        .enumerate()
        .map(|(row, outcome)| match &parsed[row] {
            None if texts.is_valid(row) => Outcome::Bad,
            _ => outcome,
        })
        .collect();
    let blank = |row: usize| texts.is_null(row) || texts.value(row).trim().is_empty();
    finish_rows(&column, outcomes, &texts, &settings, blank)
}

/// The rows of a struct: those that do not fit are there with their text in the column for it, or fail the query.
pub(in crate::functions) fn finish_rows(
    column: &ArrayRef,
    outcomes: Vec<Outcome>,
    texts: &StringArray,
    settings: &Settings,
    missing: impl Fn(usize) -> bool,
) -> Result<ArrayRef> {
    let bad = |row: usize| outcomes[row] != Outcome::Fine && !missing(row);
    if settings.fail_fast
        && let Some(row) = (0..texts.len()).find(|row| bad(*row))
    {
        return Err(failed(
            "MALFORMED_RECORD_IN_PARSING.WITHOUT_SUGGESTION",
            format!("the text '{}' does not fit the schema: use the mode PERMISSIVE to get NULL", texts.value(row)),
        ));
    }
    let (DataType::Struct(fields), Some(rows)) = (column.data_type(), column.as_any().downcast_ref::<StructArray>())
    else {
        return Ok(column.clone());
    };
    let columns = fields
        .iter()
        .zip(rows.columns())
        .map(|(field, column)| {
            if *field.name() == settings.corrupt_column && *field.data_type() == DataType::Utf8 {
                let texts: StringArray =
                    (0..texts.len()).map(|row| bad(row).then(|| texts.value(row).to_owned())).collect();
                Arc::new(texts) as ArrayRef
            } else {
                column.clone()
            }
        })
        .collect();
    let valid: NullBuffer = (0..texts.len()).map(|row| !missing(row)).collect();
    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, Some(valid), texts.len())?))
}

/// Cells of text as values of a type, for `from_csv`: nothing for what does not fit.
pub(in crate::functions) fn read_cells(
    cells: &StringArray,
    data_type: &DataType,
    settings: &Settings,
) -> Result<Column> {
    let read = match data_type {
        DataType::Date32 => {
            let days = cells.iter().map(|cell| cell.and_then(|cell| settings.day(cell)));
            Arc::new(PrimitiveArray::<Date32Type>::from_iter(days)) as ArrayRef
        }
        DataType::Timestamp(_, zone) => {
            let moments = cells.iter().map(|cell| cell.and_then(|cell| settings.moment(cell, zone.is_some())));
            let moments = PrimitiveArray::<TimestampMicrosecondType>::from_iter(moments);
            Arc::new(moments.with_data_type(data_type.clone()))
        }
        _ => cast_array(&(Arc::new(cells.clone()) as ArrayRef), data_type, true)?,
    };
    let outcomes = (0..cells.len())
        .map(|row| if cells.is_valid(row) && read.is_null(row) { Outcome::Bad } else { Outcome::Fine })
        .collect();
    Ok((read, outcomes))
}

/// The type of an example, in DDL.
pub(super) fn inferred(json: &Json<'_>, decimals: bool) -> String {
    Inferred::of(json, decimals).ddl()
}

#[derive(Debug, Clone, PartialEq)]
enum Inferred {
    Null,
    Bool,
    Long,
    Decimal(u8, i8),
    Double,
    Text,
    Array(Box<Inferred>),
    Struct(Vec<(String, Inferred)>),
}

impl Inferred {
    fn of(json: &Json<'_>, decimals: bool) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(_) => Self::Bool,
            Json::Int(digits) if digits.parse::<i64>().is_ok() => Self::Long,
            Json::Int(digits) => match digits.trim_start_matches('-').len() {
                length if length <= 38 => Self::Decimal(length as u8, 0),
                _ => Self::Double,
            },
            Json::Float(digits) if decimals && !digits.contains(['e', 'E', 'N', 'I']) => {
                let digits = digits.trim_start_matches('-').trim_start_matches('0');
                let scale = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
                let length = digits.len().saturating_sub(1).max(scale);
                if length <= 38 { Self::Decimal(length as u8, scale as i8) } else { Self::Double }
            }
            Json::Float(_) => Self::Double,
            Json::Text(_) => Self::Text,
            Json::Array(items) => {
                let of_items = items.iter().map(|item| Self::of(item, decimals));
                Self::Array(Box::new(of_items.fold(Self::Null, Self::merge)))
            }
            Json::Object(fields) => {
                let mut fields: Vec<(String, Self)> =
                    fields.iter().map(|(name, value)| (name.to_string(), Self::of(value, decimals))).collect();
                fields.sort_by(|left, right| left.0.cmp(&right.0));
                Self::Struct(fields)
            }
        }
    }

    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (left, right) if left == right => left,
            (Self::Null, other) | (other, Self::Null) => other,
            (Self::Long | Self::Double | Self::Decimal(..), Self::Long | Self::Double | Self::Decimal(..)) => {
                Self::Double
            }
            (Self::Array(left), Self::Array(right)) => Self::Array(Box::new(left.merge(*right))),
            (Self::Struct(left), Self::Struct(right)) => {
                let mut fields = left;
                for (name, of_right) in right {
                    match fields.iter_mut().find(|(own, _)| *own == name) {
                        Some((_, of_left)) => {
                            let merged = std::mem::replace(of_left, Self::Null).merge(of_right);
                            *of_left = merged;
                        }
                        None => fields.push((name, of_right)),
                    }
                }
                fields.sort_by(|left, right| left.0.cmp(&right.0));
                Self::Struct(fields)
            }
            _ => Self::Text,
        }
    }

    fn ddl(&self) -> String {
        match self {
            Self::Null | Self::Text => "STRING".to_owned(),
            Self::Bool => "BOOLEAN".to_owned(),
            Self::Long => "BIGINT".to_owned(),
            Self::Decimal(precision, scale) => format!("DECIMAL({precision},{scale})"),
            Self::Double => "DOUBLE".to_owned(),
            Self::Array(item) => format!("ARRAY<{}>", item.ddl()),
            Self::Struct(fields) => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, of)| {
                        let plain = !name.is_empty()
                            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                            && !name.starts_with(|c: char| c.is_ascii_digit());
                        if plain { format!("{name}: {}", of.ddl()) } else { format!("`{name}`: {}", of.ddl()) }
                    })
                    .collect();
                format!("STRUCT<{}>", fields.join(", "))
            }
        }
    }
}
