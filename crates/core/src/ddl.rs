//! Spark DDL schemas.

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

use crate::error::{Error, Result, class};

/// Reads a schema.
pub fn parse(text: &str) -> Result<Schema> {
    let mut fields = Vec::new();
    for column in text.split(',') {
        let words: Vec<&str> = column.split_whitespace().collect();
        let [name, kind, rest @ ..] = words.as_slice() else {
            return Err(Error::new(class::CONFIG_INVALID, format!("`{}` is not a column and a type", column.trim())));
        };
        let kind = match kind.to_ascii_uppercase().as_str() {
            "STRING" => DataType::Utf8,
            "INT" => DataType::Int32,
            "BIGINT" => DataType::Int64,
            "DOUBLE" => DataType::Float64,
            "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            other => {
                return Err(Error::new(class::CONFIG_INVALID, format!("column `{name}`: there is no type `{other}`")));
            }
        };
        fields.push(Field::new(*name, kind, rest.is_empty()));
    }
    Ok(Schema::new(fields))
}
