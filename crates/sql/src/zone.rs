//! Time zones and other types at the border: sources and sinks have TIMESTAMP in UTC; inside, its type carries the session's zone, so
//! that `hour()`, `date_trunc()` and casts see local time. The instants are the same.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

/// The columns of a source inside a session of `zone`. All of them can be NULL, as Spark has it for streams: what NOT NULL means is for
/// the expectations to say.
pub(crate) fn in_session(schema: &Schema, zone: &str) -> SchemaRef {
    let zone: Arc<str> = Arc::from(zone);
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = map_type(field.data_type(), &|leaf| match leaf {
                DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some(zone.clone())),
                other => other.clone(),
            });
            Arc::new(Field::new(field.name(), data_type, true))
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// The type that a result of this type has for sinks: Spark's types only, TIMESTAMP in UTC.
pub(crate) fn for_sinks(data_type: &DataType) -> DataType {
    map_type(data_type, &|leaf| match leaf {
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Dictionary(_, value) => for_sinks(value),
        other => other.clone(),
    })
}

/// Replaces the leaves of a type.
fn map_type(data_type: &DataType, leaf: &dyn Fn(&DataType) -> DataType) -> DataType {
    let map = |field: &FieldRef| -> FieldRef {
        let mapped = map_type(field.data_type(), leaf);
        Arc::new(Field::clone(field).with_data_type(mapped))
    };
    match data_type {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(map).collect()),
        DataType::List(field) => DataType::List(map(field)),
        DataType::LargeList(field) | DataType::ListView(field) | DataType::LargeListView(field) => {
            DataType::List(map(field))
        }
        DataType::FixedSizeList(field, _) => DataType::List(map(field)),
        DataType::Map(field, sorted) => DataType::Map(map(field), *sorted),
        other => leaf(other),
    }
}
