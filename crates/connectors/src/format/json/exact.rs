//! One record to rows, exactly as Spark's `JacksonParser` does: which errors spoil a field, which a row and which the whole record, and
//! what is kept of the rest. Used for the records that the fast path leaves; it allocates freely.

use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use perennial_core::ddl;

use super::super::columns::Value;
use super::super::temporal::Temporal;
use super::super::text::{excerpt, parse_base64, parse_decimal, parse_decimal_text};
use super::JsonFormat;
use super::tokens::{SyntaxError, Token, Tokens};

/// What became of a record.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Its rows; when something is wrong with it, what could be read all the same.
    pub(super) rows: Vec<Vec<Value>>,
    /// What is wrong with it, for people.
    pub(super) problem: Option<String>,
    /// There is nothing in it but white space.
    pub(super) blank: bool,
}

/// Why a value could not be converted.
#[derive(Debug)]
enum Failure {
    /// The text is no JSON from here on.
    Syntax(SyntaxError),
    /// A value is not of its field's type. The path is built on the way up.
    Mismatch { path: String, expected: String, found: String },
    /// An object or array that holds a bad field; the rest of it is kept.
    Partial(Value, Box<Failure>),
    /// The record as a whole is not what it should be.
    Root(String),
}

type Converted<T> = Result<T, Failure>;

impl From<SyntaxError> for Failure {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error)
    }
}

impl Failure {
    /// Adds the name of the field (or `[]` for an element) around the value.
    fn within(self, name: &str) -> Self {
        match self {
            Self::Mismatch { path, expected, found } => {
                let path = match path.as_str() {
                    "" => name.to_owned(),
                    inner if inner.starts_with('[') => format!("{name}{inner}"),
                    inner => format!("{name}.{inner}"),
                };
                Self::Mismatch { path, expected, found }
            }
            Self::Partial(value, cause) => Self::Partial(value, Box::new(cause.within(name))),
            other => other,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Syntax(error) => format!("not valid JSON at byte {}: {}", error.at, error.what),
            Self::Mismatch { path, expected, found } => {
                format!("column `{path}` should be {}, found {found}", expected.to_uppercase())
            }
            Self::Partial(_, cause) => cause.describe(),
            Self::Root(what) => what.clone(),
        }
    }
}

/// The converter of one decoder: the columns that are wanted, and the options.
#[derive(Debug)]
pub(super) struct Exact<'a> {
    pub(super) fields: &'a Fields,
    pub(super) options: &'a JsonFormat,
    pub(super) temporal: &'a Temporal,
}

impl Exact<'_> {
    /// Reads a record. The rows have a value for each of the fields.
    pub(super) fn record(&self, text: &[u8]) -> Outcome {
        let mut tokens = Tokens::new(text, self.options);
        let (rows, failure, blank) = match self.root(&mut tokens) {
            Ok(Some(rows)) => (rows, None, false),
            Ok(None) => (Vec::new(), None, true),
            Err(Failure::Partial(Value::List(rows), cause)) => (rows, Some(*cause), false),
            Err(Failure::Partial(row, cause)) => (vec![row], Some(*cause), false),
            Err(failure) => (Vec::new(), Some(failure), false),
        };
        let rows = rows.into_iter().map(|row| if let Value::Struct(row) = row { row } else { Vec::new() }).collect();
        Outcome { rows, problem: failure.map(|failure| failure.describe()), blank }
    }

    fn root(&self, tokens: &mut Tokens) -> Converted<Option<Vec<Value>>> {
        match tokens.next()? {
            None => Ok(None),
            Some(Token::StartObject) => Ok(Some(vec![self.object(tokens, self.fields)?])),
            // Every element of an array at the top is a row.
            Some(Token::StartArray) => {
                let row = Field::new("", DataType::Struct(self.fields.clone()), true);
                match self.array(tokens, &row, true)? {
                    Value::List(rows) => Ok(Some(rows)),
                    _ => Ok(None),
                }
            }
            Some(token) => {
                let found = describe(token, tokens)?;
                Err(Failure::Root(format!("a record should be a JSON object, found {found}")))
            }
        }
    }

    /// Reads an object whose opening brace is the current token. A bad field is NULL and the others are kept; an error between the
    /// fields breaks it off.
    fn object(&self, tokens: &mut Tokens, fields: &Fields) -> Converted<Value> {
        let mut row = vec![Value::Null; fields.len()];
        let mut bad = None;
        while !matches!(tokens.next()?, None | Some(Token::EndObject)) {
            // The last of several fields of one name counts, so the first of several columns does, which cannot be.
            let found = tokens.name().and_then(|name| fields.iter().position(|field| field.name() == name));
            let Some(index) = found else {
                tokens.skip_children()?;
                continue;
            };
            match self.value(tokens, fields[index].data_type()) {
                Ok(value) => row[index] = value,
                Err(Failure::Partial(value, cause)) => {
                    row[index] = value;
                    bad.get_or_insert(cause.within(fields[index].name()));
                }
                Err(failure) => {
                    bad.get_or_insert(failure.within(fields[index].name()));
                    tokens.skip_children()?;
                }
            }
        }
        match bad {
            None => Ok(Value::Struct(row)),
            Some(cause) => Err(Failure::Partial(Value::Struct(row), Box::new(cause))),
        }
    }

    /// Reads an array whose opening bracket is the current token. A bad element breaks it off, one that is bad in parts does not.
    fn array(&self, tokens: &mut Tokens, element: &Field, root: bool) -> Converted<Value> {
        let mut values = Vec::new();
        let mut bad: Option<Failure> = None;
        while !matches!(tokens.next()?, None | Some(Token::EndArray)) {
            let place = if root { String::new() } else { format!("[{}]", values.len()) };
            match self.value(tokens, element.data_type()) {
                Ok(Value::Null) if root => {
                    return Err(Failure::Root("a record in an array should be a JSON object, found null".to_owned()));
                }
                Ok(value) => values.push(value),
                Err(Failure::Partial(value, cause)) => {
                    values.push(value);
                    bad.get_or_insert(if root { *cause } else { cause.within(&place) });
                }
                Err(failure) => return Err(if root { failure } else { failure.within(&place) }),
            }
        }
        match bad {
            None => Ok(Value::List(values)),
            Some(cause) => Err(Failure::Partial(Value::List(values), Box::new(cause))),
        }
    }

    /// Reads an object as a map. A bad value makes the whole map bad, once its end is found.
    fn map(&self, tokens: &mut Tokens, value_type: &DataType) -> Converted<Value> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        let mut partial: Option<Failure> = None;
        let mut bad: Option<Failure> = None;
        while !matches!(tokens.next()?, None | Some(Token::EndObject)) {
            let key = tokens.name().unwrap_or_default().to_owned();
            let value = match self.value(tokens, value_type) {
                Ok(value) => value,
                Err(Failure::Partial(value, cause)) => {
                    partial.get_or_insert(cause.within(&key));
                    value
                }
                Err(failure) => {
                    bad.get_or_insert(failure.within(&key));
                    tokens.skip_children()?;
                    continue;
                }
            };
            // The last of several values of one key counts.
            let place = *places.entry(key.clone()).or_insert(entries.len());
            match entries.get_mut(place) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        match (bad, partial) {
            (Some(failure), _) => Err(failure),
            (None, Some(cause)) => Err(Failure::Partial(Value::Map(entries), Box::new(cause))),
            (None, None) => Ok(Value::Map(entries)),
        }
    }

    /// Reads the value at the current token or behind the current field name.
    fn value(&self, tokens: &mut Tokens, data_type: &DataType) -> Converted<Value> {
        while tokens.current() == Some(Token::FieldName) {
            tokens.next()?;
        }
        let token = match tokens.current() {
            None | Some(Token::Null) => return Ok(Value::Null),
            Some(token) => token,
        };
        let value = match (data_type, token) {
            (DataType::Boolean, Token::True) => Some(Value::Boolean(true)),
            (DataType::Boolean, Token::False) => Some(Value::Boolean(false)),
            // Jackson lets 128 to 255 into a byte, as -128 to -1.
            (DataType::Int8, Token::Integer) => {
                integer(tokens, -128, 255)?.map(|value| Value::Int(i64::from(value as i8)))
            }
            (DataType::Int16, Token::Integer) => integer(tokens, i16::MIN.into(), i16::MAX.into())?.map(Value::Int),
            (DataType::Int32, Token::Integer) => integer(tokens, i32::MIN.into(), i32::MAX.into())?.map(Value::Int),
            (DataType::Int64, Token::Integer) => integer(tokens, i64::MIN, i64::MAX)?.map(Value::Int),
            (DataType::Float32, Token::Integer | Token::Float) => float(tokens.text()?).map(Value::Float),
            (DataType::Float64, Token::Integer | Token::Float) => double(tokens.text()?).map(Value::Double),
            (DataType::Float32, Token::String) => {
                self.quoted_not_a_number(tokens)?.map(|value| Value::Float(value as f32))
            }
            (DataType::Float64, Token::String) => self.quoted_not_a_number(tokens)?.map(Value::Double),
            (DataType::Decimal128(precision, scale), Token::Integer | Token::Float) => {
                parse_decimal(tokens.text()?.as_bytes(), *precision, *scale).map(Value::Decimal)
            }
            (DataType::Decimal128(precision, scale), Token::String) => {
                parse_decimal_text(tokens.text()?, *precision, *scale).map(Value::Decimal)
            }
            (DataType::Utf8, Token::String) => Some(Value::Text(tokens.text()?.to_owned())),
            // Any other value goes into text as it is written.
            (DataType::Utf8, _) => Some(Value::Text(String::from_utf8_lossy(tokens.raw()?).into_owned())),
            (DataType::Binary, Token::String) => parse_base64(tokens.text()?.as_bytes()).map(Value::Binary),
            (DataType::Timestamp(_, Some(_)), Token::Integer) => {
                // Seconds since the epoch; Java's multiplication wraps around.
                integer(tokens, i64::MIN, i64::MAX)?.map(|seconds| Value::Int(seconds.wrapping_mul(1_000_000)))
            }
            (DataType::Timestamp(_, Some(_)), Token::String) => self.temporal.timestamp(tokens.text()?).map(Value::Int),
            (DataType::Timestamp(_, None), Token::String) => {
                self.temporal.timestamp_ntz(tokens.text()?).map(Value::Int)
            }
            (DataType::Date32, Token::String) => self.temporal.date(tokens.text()?).map(|days| Value::Int(days.into())),
            (DataType::Struct(fields), Token::StartObject) => Some(self.object(tokens, fields)?),
            (DataType::List(element), Token::StartArray) => Some(self.array(tokens, element, false)?),
            (DataType::Map(entries, _), Token::StartObject) => Some(self.map(tokens, map_value(entries))?),
            _ => None,
        };
        match value {
            Some(value) => Ok(value),
            None => {
                let found = describe(token, tokens)?;
                Err(Failure::Mismatch { path: String::new(), expected: ddl::simple_type(data_type), found })
            }
        }
    }

    fn quoted_not_a_number(&self, tokens: &mut Tokens) -> Converted<Option<f64>> {
        let text = tokens.text()?;
        Ok(if self.options.allow_non_numeric_numbers { not_a_number(text) } else { None })
    }
}

/// The type of a map's values.
pub(super) fn map_value(entries: &FieldRef) -> &DataType {
    match entries.data_type() {
        DataType::Struct(pair) if pair.len() == 2 => pair[1].data_type(),
        other => other,
    }
}

fn integer(tokens: &mut Tokens, min: i64, max: i64) -> Converted<Option<i64>> {
    let value: Option<i64> = tokens.text()?.parse().ok();
    Ok(value.filter(|value| (min..=max).contains(value)))
}

fn double(text: &str) -> Option<f64> {
    if text == "-0" { Some(0.0) } else { not_a_number(text).or_else(|| text.parse().ok()) }
}

fn float(text: &str) -> Option<f32> {
    if text == "-0" { Some(0.0) } else { not_a_number(text).map(|value| value as f32).or_else(|| text.parse().ok()) }
}

fn not_a_number(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "+INF" | "+Infinity" | "Infinity" => Some(f64::INFINITY),
        "-INF" | "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// What was found instead, for people.
fn describe(token: Token, tokens: &mut Tokens) -> Converted<String> {
    Ok(match token {
        Token::String => format!("\"{}\"", excerpt(tokens.text()?.as_bytes())),
        Token::Integer | Token::Float => excerpt(tokens.text()?.as_bytes()),
        Token::True => "true".to_owned(),
        Token::False => "false".to_owned(),
        Token::Null => "null".to_owned(),
        Token::StartObject | Token::StartArray => excerpt(tokens.rest()),
        Token::EndObject | Token::EndArray | Token::FieldName => "the end of an object or array".to_owned(),
    })
}
