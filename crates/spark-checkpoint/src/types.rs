//! Spark's schemas: the JSON of its types, and the files in which the state says what its rows are.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use perennial_core::ddl;
use perennial_core::error::{Error, Result};
use serde_json::{Value, json};

use crate::{damaged, refused};

/// What the rows of a store, or of a column family in it, are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoreSchema {
    /// Name of the column family; `default` where there is one.
    pub(crate) name: String,
    pub(crate) key: Schema,
    pub(crate) value: Schema,
}

impl StoreSchema {
    /// The content of a schema file.
    pub(crate) fn read(path: &str, bytes: &[u8]) -> Result<Vec<Self>> {
        let mut file = SchemaFile { path, rest: bytes };
        let schemas = match file.utf()? {
            "v1" => vec![Self {
                name: DEFAULT.to_owned(),
                key: parse_schema(path, file.utf()?)?,
                value: parse_schema(path, file.utf()?)?,
            }],
            "v2" => vec![Self {
                name: DEFAULT.to_owned(),
                key: parse_schema(path, &file.chunks()?)?,
                value: parse_schema(path, &file.chunks()?)?,
            }],
            "v3" => {
                let count = file.int()?;
                (0..count)
                    .map(|_| {
                        let name = file.utf()?.to_owned();
                        file.take(2)?;
                        let key = parse_schema(path, &file.chunks()?)?;
                        file.take(2)?;
                        let value = parse_schema(path, &file.chunks()?)?;
                        // How keys are encoded, and a schema of the user's own keys.
                        file.chunks()?;
                        file.chunks()?;
                        Ok(Self { name, key, value })
                    })
                    .collect::<Result<_>>()?
            }
            other => return Err(refused(format!("{path}: schemas of the version `{other}` are not known"))),
        };
        if !file.rest.is_empty() {
            return Err(damaged(path, "something stands behind its end"));
        }
        Ok(schemas)
    }

    /// The content of a schema file of version 2.
    pub(crate) fn write(&self) -> Result<Vec<u8>> {
        /// `writeUTF` takes 65535 bytes at most.
        const CHUNK: usize = 65_535 / 3;
        let mut out = Vec::new();
        let utf = |text: &str, out: &mut Vec<u8>| {
            out.extend_from_slice(&(text.len() as u16).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        };
        utf("v2", &mut out);
        for schema in [&self.key, &self.value] {
            let text = schema_json(schema)?.to_string();
            let characters: Vec<char> = text.chars().collect();
            let chunks: Vec<String> = characters.chunks(CHUNK).map(|chunk| chunk.iter().collect()).collect();
            out.extend_from_slice(&(chunks.len() as i32).to_be_bytes());
            chunks.iter().for_each(|chunk| utf(chunk, &mut out));
        }
        Ok(out)
    }
}

/// Name of a store, and of a column family, that is the only one.
pub(crate) const DEFAULT: &str = "default";

struct SchemaFile<'a> {
    path: &'a str,
    rest: &'a [u8],
}

impl<'a> SchemaFile<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| damaged(self.path, "it is torn"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i32> {
        let bytes = self.take(4)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn utf(&mut self) -> Result<&'a str> {
        let length = self.take(2)?;
        let bytes = self.take(usize::from(u16::from_be_bytes([length[0], length[1]])))?;
        std::str::from_utf8(bytes).map_err(|_| damaged(self.path, "a text is not UTF-8"))
    }

    fn chunks(&mut self) -> Result<String> {
        (0..self.int()?).map(|_| self.utf()).collect()
    }
}

fn parse_schema(path: &str, text: &str) -> Result<Schema> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| damaged(path, format!("a schema is not JSON: {error}")))?;
    Ok(Schema::new(parse_fields(path, &json)?))
}

fn parse_fields(path: &str, json: &Value) -> Result<Vec<Field>> {
    let fields = json["fields"].as_array().ok_or_else(|| damaged(path, "a schema has no fields"))?;
    fields
        .iter()
        .map(|field| {
            let name = field["name"].as_str().ok_or_else(|| damaged(path, "a field has no name"))?;
            let data_type = parse_type(&field["type"])
                .map_err(|what| refused(format!("{path}: the column `{name}` has {what}")))?;
            Ok(Field::new(name, data_type, true))
        })
        .collect()
}

/// The Arrow type of one of Spark's; the error completes "the column has …".
fn parse_type(json: &Value) -> Result<DataType, String> {
    let unknown = || Err(format!("the type {json}, which is not known"));
    if let Some(name) = json.as_str() {
        return match name {
            "void" | "null" => Ok(DataType::Null),
            "byte" => Ok(DataType::Int8),
            "short" => Ok(DataType::Int16),
            "integer" => Ok(DataType::Int32),
            "long" => Ok(DataType::Int64),
            // The other names are those of DDL. Collations compare in another way than by bytes, so these are none of them.
            "boolean" | "float" | "double" | "string" | "binary" | "date" | "timestamp" | "timestamp_ntz" => {
                simple(name)
            }
            name if ["decimal(", "varchar(", "char("].iter().any(|start| name.starts_with(start)) => simple(name),
            _ => unknown(),
        };
    }
    match json["type"].as_str() {
        Some("struct") => {
            let fields = json["fields"].as_array().ok_or("a struct without fields")?;
            let field = |field: &Value| {
                let name = field["name"].as_str().ok_or("a field without a name")?;
                Ok::<_, String>(Field::new(name, parse_type(&field["type"])?, true))
            };
            Ok(DataType::Struct(fields.iter().map(field).collect::<Result<Fields, _>>()?))
        }
        Some("array") => {
            let element = parse_type(&json["elementType"])?;
            Ok(DataType::List(Arc::new(Field::new("element", element, true))))
        }
        Some("map") => {
            let key = Field::new("key", parse_type(&json["keyType"])?, false);
            let value = Field::new("value", parse_type(&json["valueType"])?, true);
            let entries = Field::new("entries", DataType::Struct(vec![key, value].into()), false);
            Ok(DataType::Map(Arc::new(entries), false))
        }
        _ => unknown(),
    }
}

/// A type that is called in DDL as in JSON.
fn simple(name: &str) -> Result<DataType, String> {
    match ddl::parse(&format!("c {name}")) {
        Ok(schema) => Ok(schema.field(0).data_type().clone()),
        Err(_) => Err(format!("the type {name}, which is not known")),
    }
}

/// The JSON of a schema. All is nullable, as Spark has it for states.
pub(crate) fn schema_json(schema: &Schema) -> Result<Value> {
    fields_json(schema.fields())
}

fn fields_json(fields: &Fields) -> Result<Value> {
    let field = |field: &Arc<Field>| {
        let data_type = type_json(field.data_type())?;
        Ok(json!({ "name": field.name(), "type": data_type, "nullable": true, "metadata": {} }))
    };
    Ok(json!({ "type": "struct", "fields": fields.iter().map(field).collect::<Result<Vec<_>>>()? }))
}

fn type_json(data_type: &DataType) -> Result<Value> {
    Ok(match data_type {
        DataType::Null => "void".into(),
        DataType::Int8 => "byte".into(),
        DataType::Int16 => "short".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "long".into(),
        DataType::Boolean
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Decimal128(..)
        | DataType::Timestamp(TimeUnit::Microsecond, _) => ddl::simple_type(data_type).into(),
        DataType::Struct(fields) => fields_json(fields)?,
        DataType::List(element) => {
            json!({ "type": "array", "elementType": type_json(element.data_type())?, "containsNull": true })
        }
        other => return Err(Error::bug(format!("{other} is no type of Spark's state"))),
    })
}

/// Whether a column is a window: a struct of a start and an end.
pub(crate) fn is_window(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else { return false };
    let is_time = |field: &Arc<Field>| matches!(field.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _));
    matches!(&fields[..], [start, end] if start.name() == "start" && end.name() == "end" && is_time(start) && is_time(end))
}
