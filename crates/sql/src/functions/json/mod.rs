//! JSON as Spark reads and writes it in expressions: `from_json`, `to_json`, `get_json_object` and their like.

mod decode;
mod encode;
mod path;
mod text;

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ListArray, StringArray, StringBuilder, StructArray};
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::ColumnarValue;

use super::function::{Arg, Args, Call, Spec, returns};
use super::rows;
use super::types::{is_string, list_of, map_types, mismatch, sql_name};
use crate::error::refused_analysis;

pub(super) use decode::{Outcome, Settings, finish_rows, read_cells, schema_of};
pub(super) use encode::Times;
use path::Path;
use text::{Json, Syntax};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("from_json", Args::Custom(from_args), decode::from_json_type, decode::from_json),
    &Spec::new("to_json", Args::Custom(to_args), to_type, encode::to_json),
    &Spec::new("get_json_object", Args::Fixed(2, &[Arg::Text, Arg::Text]), returns::text, |call| {
        let (json, path) = (call.text(0)?, call.text(1)?);
        let mut paths = std::collections::HashMap::new();
        rows::texts(&[&json, &path], |row| {
            let path = paths.entry(path.value(row)).or_insert_with_key(|path| Path::parse(path));
            let Some(path) = path else { return Ok(None) };
            Ok(Json::parse(json.value(row), &Syntax::default()).and_then(|json| path.find(&json)))
        })
    }),
    &Spec::new("json_tuple_rows", Args::Many(2, Arg::Text), tuple_type, tuple),
    &Spec::new("json_array_length", Args::Fixed(1, &[Arg::Text]), returns::int, |call| {
        let json = call.text(0)?;
        let lengths = rows::numbers::<datafusion::arrow::datatypes::Int32Type>(&[&json], |row| {
            Ok(match Json::parse(json.value(row), &Syntax::default()) {
                Some(Json::Array(items)) => Some(items.len() as i32),
                _ => None,
            })
        });
        Ok(Arc::new(lengths?))
    }),
    &Spec::new("json_object_keys", Args::Fixed(1, &[Arg::Text]), returns::texts, |call| {
        let json = call.text(0)?;
        rows::lists(&[&json], |row| {
            Ok(match Json::parse(json.value(row), &Syntax::default()) {
                Some(Json::Object(fields)) => {
                    Some(fields.into_iter().map(|(name, _)| name.into_owned()).collect::<Vec<_>>())
                }
                _ => None,
            })
        })
    }),
    &Spec::new("schema_of_json", Args::Custom(from_args), constant_text, |call| {
        let json = call.text(0)?;
        let options = options(call, 1)?;
        let syntax = Syntax::of(&options);
        let decimals = flag(&options, "prefersDecimal", false);
        rows::texts(&[&json], |row| match Json::parse(json.value(row), &syntax) {
            Some(json) => Ok(Some(decode::inferred(&json, decimals))),
            None => Ok(Some("STRING".to_owned())),
        })
    }),
];

/// The options of a function: a constant map of texts.
pub(super) fn options(call: &Call<'_>, index: usize) -> Result<Vec<(String, String)>> {
    let Some(ColumnarValue::Scalar(ScalarValue::Map(map))) = call.args.get(index) else {
        return match call.args.get(index) {
            None => Ok(Vec::new()),
            Some(_) => exec_err!("INVALID_OPTIONS.NON_MAP_FUNCTION: options are a constant map() of texts"),
        };
    };
    let texts = |column: &ArrayRef| -> Result<StringArray> { super::cast::show::text(column) };
    let entries = map.value(0);
    let (keys, values) = (texts(entries.column(0))?, texts(entries.column(1))?);
    let pairs = keys.iter().zip(values.iter());
    Ok(pairs.filter_map(|(key, value)| Some((key?.to_owned(), value?.to_owned()))).collect())
}

/// The value of an option; their names are case-insensitive.
pub(super) fn option<'a>(options: &'a [(String, String)], name: &str) -> Option<&'a str> {
    options.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

pub(super) fn flag(options: &[(String, String)], name: &str, default: bool) -> bool {
    option(options, name).map_or(default, |value| value.eq_ignore_ascii_case("true"))
}

/// A text, and constants behind it.
pub(super) fn from_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of, rest @ ..] if rest.len() <= 2 && (is_string(of) || of.is_null()) => {
            Ok(std::iter::once(DataType::Utf8).chain(rest.iter().cloned()).collect())
        }
        [of, ..] if types.len() <= 3 => {
            Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("a STRING is needed, not {}", sql_name(of))))
        }
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a text, a schema and options are needed")),
    }
}

pub(super) fn constant_text(_: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match constants.first() {
        Some(None) => Err(mismatch("NON_FOLDABLE_INPUT", "the example must be a constant text")),
        _ => Ok(DataType::Utf8),
    }
}

fn to_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of] | [of, _]
            if matches!(of, DataType::Struct(_) | DataType::List(_) | DataType::Map(..) | DataType::Null) =>
        {
            if let Some((key, _)) = map_types(of)
                && matches!(key.data_type(), DataType::List(_) | DataType::Map(..))
            {
                return Err(mismatch("INVALID_JSON_MAP_KEY_TYPE", "the keys of a map in JSON are texts"));
            }
            Ok(types.to_vec())
        }
        [of] | [of, _] => Err(mismatch(
            "INVALID_JSON_SCHEMA",
            format!("to_json() needs a STRUCT, an ARRAY or a MAP, not {}", sql_name(of)),
        )),
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "to_json() needs 1 or 2 arguments")),
    }
}

fn to_type(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    Ok(DataType::Utf8)
}

fn tuple_type(types: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let fields: Vec<Field> =
        (0..types.len() - 1).map(|at| Field::new(format!("c{at}"), DataType::Utf8, true)).collect();
    Ok(list_of(DataType::Struct(fields.into())))
}

/// One row of fields per text.
fn tuple(call: &Call<'_>) -> Result<ArrayRef> {
    let json = call.text(0)?;
    let names = (1..call.len()).map(|at| call.text(at)).collect::<Result<Vec<_>>>()?;
    let mut columns: Vec<StringBuilder> = names.iter().map(|_| StringBuilder::new()).collect();
    for row in 0..call.rows {
        let parsed = if json.is_valid(row) { Json::parse(json.value(row), &Syntax::default()) } else { None };
        for (name, column) in names.iter().zip(&mut columns) {
            let field = match &parsed {
                Some(Json::Object(fields)) if name.is_valid(row) => {
                    fields.iter().find(|(own, _)| own == name.value(row)).map(|(_, value)| value)
                }
                _ => None,
            };
            column.append_option(field.and_then(Json::as_text));
        }
    }
    let DataType::List(item) = call.returns else { return exec_err!("json_tuple() makes a list") };
    let DataType::Struct(fields) = item.data_type() else { return exec_err!("json_tuple() makes structs") };
    let columns: Vec<ArrayRef> = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
    let structs = StructArray::try_new(fields.clone(), columns, None)?;
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths(std::iter::repeat_n(1, call.rows));
    Ok(Arc::new(ListArray::try_new(item.clone(), offsets, Arc::new(structs), None)?))
}
