//! From our states to Spark's: aggregations and deduplications.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, NullArray, RecordBatch, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit, TimestampMicrosecondType};
use perennial_core::error::{Error, Result};
use perennial_core::layout::{AggregateLayout, Content, KeyLayout};

use super::deduplication::EXPIRES;
use super::{Operator, buffers, fit, micros};
use crate::types::{DEFAULT, StoreSchema};

/// What the rows of one of our states are in Spark's.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) schema: StoreSchema,
    pub(crate) keys: Vec<ArrayRef>,
    pub(crate) values: Vec<ArrayRef>,
}

impl Operator<'_> {
    /// Our rows as Spark's.
    pub(crate) fn give(&self, rows: &RecordBatch) -> Result<Given> {
        match &self.layout.content {
            Content::Aggregation { keys, aggregates } => self.give_groups(rows, keys, aggregates),
            Content::Deduplication => self.give_seen(rows),
            _ => Err(self.refuse("only the state of aggregations and deduplications is given to Spark")),
        }
    }

    fn give_groups(&self, rows: &RecordBatch, keys: &[KeyLayout], aggregates: &[AggregateLayout]) -> Result<Given> {
        let schema = rows.schema();
        let (mut key_fields, mut key_columns) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < keys.len() {
            let column = rows.column(at);
            let (field, column): (Field, ArrayRef) = match keys[at].window {
                Some(size) => {
                    let start = self.plain(column)?;
                    let times = start.as_primitive::<TimestampMicrosecondType>();
                    let ends: TimestampMicrosecondArray = times.unary(|start| start.saturating_add(size));
                    let ends: ArrayRef = Arc::new(ends.with_data_type(start.data_type().clone()));
                    ("window".to_owned(), window(start, ends)?).into_field()
                }
                None => (keys[at].name.clone(), self.plain(column)?).into_field(),
            };
            key_fields.push(field);
            key_columns.push(column);
            at += 1;
        }
        let (mut value_fields, mut value_columns) = (Vec::new(), Vec::new());
        for of in buffers::all(aggregates, &schema).map_err(|why| self.refuse(why))? {
            value_columns.extend(of.give(rows)?);
            value_fields.extend(of.fields);
        }
        Ok(Given {
            schema: StoreSchema {
                name: DEFAULT.to_owned(),
                key: Schema::new(key_fields),
                value: Schema::new(value_fields),
            },
            keys: key_columns,
            values: value_columns,
        })
    }

    fn give_seen(&self, rows: &RecordBatch) -> Result<Given> {
        let spec = self.spec(0)?;
        let names = spec.schema.fields()[..spec.keys].iter().map(|field| field.name().clone());
        let columns =
            rows.columns()[..spec.keys].iter().map(|column| self.plain(column)).collect::<Result<Vec<_>>>()?;
        let keys = names.zip(columns).map(IntoField::into_field);
        let (key_fields, keys): (Vec<Field>, Vec<ArrayRef>) = keys.unzip();
        let value: (Field, ArrayRef) = match rows.columns().get(spec.keys) {
            Some(expires) => {
                let times: Int64Array = micros(expires).values().iter().copied().collect();
                (EXPIRES.to_owned(), Arc::new(times) as ArrayRef).into_field()
            }
            None => ("__dummy__".to_owned(), Arc::new(NullArray::new(rows.num_rows())) as ArrayRef).into_field(),
        };
        Ok(Given {
            schema: StoreSchema {
                name: DEFAULT.to_owned(),
                key: Schema::new(key_fields),
                value: Schema::new(vec![value.0]),
            },
            keys,
            values: vec![value.1],
        })
    }

    /// A column in the Arrow type that stands for its Spark type.
    fn plain(&self, column: &ArrayRef) -> Result<ArrayRef> {
        let to = spark_type(column.data_type())
            .ok_or_else(|| self.refuse(format_args!("Spark has no keys of the type {}", column.data_type())))?;
        fit(column, &to).ok_or_else(|| Error::bug(format!("{} is no {to}", column.data_type())))
    }
}

/// A name and a column as a field and a column.
trait IntoField {
    fn into_field(self) -> (Field, ArrayRef);
}

impl IntoField for (String, ArrayRef) {
    fn into_field(self) -> (Field, ArrayRef) {
        (Field::new(self.0, self.1.data_type().clone(), true), self.1)
    }
}

fn window(starts: ArrayRef, ends: ArrayRef) -> Result<ArrayRef> {
    let field = |name: &str| Field::new(name, starts.data_type().clone(), true);
    let fields = Fields::from(vec![field("start"), field("end")]);
    let made = StructArray::try_new(fields, vec![starts, ends], None);
    Ok(Arc::new(made.map_err(|error| Error::bug(format!("a window cannot be made: {error}")))?))
}

/// The Arrow type that stands for a Spark type wherever rows of Spark are read or written.
fn spark_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some(perennial_core::ddl::UTC.into()))
        }
        DataType::Timestamp(TimeUnit::Microsecond, None)
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Decimal128(..) => data_type.clone(),
        DataType::Struct(fields) => {
            let field = |field: &Arc<Field>| Some(Field::new(field.name(), spark_type(field.data_type())?, true));
            DataType::Struct(fields.iter().map(field).collect::<Option<Vec<_>>>()?.into())
        }
        DataType::List(element) => {
            DataType::List(Arc::new(Field::new("element", spark_type(element.data_type())?, true)))
        }
        _ => return None,
    })
}
