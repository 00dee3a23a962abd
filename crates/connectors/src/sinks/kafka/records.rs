//! Rows as records: keys, values and what else a record has, each as one array.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit};
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{OutputMode, SinkContext};
use rdkafka::message::{Header, OwnedHeaders};

use super::{KafkaFormat, KafkaSink, json};
use crate::sinks::columns::{Column, Kind};
use crate::sinks::json::json_values;

/// Which columns become what.
#[derive(Debug)]
pub(super) struct Layout {
    value: Value,
    key: Vec<usize>,
    key_required: bool,
    topic: Option<usize>,
    partition: Option<usize>,
    timestamp: Option<usize>,
    headers: Option<usize>,
}

#[derive(Debug)]
enum Value {
    /// The row as JSON.
    Row,
    /// A column as it is.
    Column(usize),
}

impl Layout {
    /// Fits the query's columns, its output mode and the settings together.
    pub(super) fn new(settings: &KafkaSink, context: &SinkContext) -> Result<Self> {
        let wrong = |what: String| Err(Error::new(class::CONFIG_INVALID, what));
        let fields = context.schema.fields();
        let names = || fields.iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        let find = |setting: &str, name: &String| {
            fields.iter().position(|f| f.name() == name).ok_or_else(|| {
                let message = format!("{setting} names `{name}`, which the query does not give; it gives {}", names());
                Error::new(class::CONFIG_INVALID, message)
            })
        };
        let timestamp = settings.timestamp.as_ref().map(|name| find("timestamp", name)).transpose()?;
        if let Some(at) = timestamp
            && !matches!(fields[at].data_type(), DataType::Timestamp(..))
        {
            return wrong(format!("timestamp names `{}`, which is no TIMESTAMP", fields[at].name()));
        }
        let update = context.output_mode == OutputMode::Update;
        if settings.format == KafkaFormat::Json {
            let key = settings.key.iter().map(|name| find("key", name)).collect::<Result<Vec<_>>>()?;
            if update && key.is_empty() {
                return wrong(
                    "output_mode: update writes changed rows, and needs `key`: the columns that tell rows apart (usually those of \
                     GROUP BY), so that for each key the last record counts"
                        .to_owned(),
                );
            }
            for field in fields {
                if Kind::of(field.data_type()).is_none() {
                    return wrong(format!(
                        "column `{}` has the type {}, which JSON does not take; cast it in the query, for example to STRING",
                        field.name(),
                        field.data_type()
                    ));
                }
                if fields.iter().filter(|other| other.name() == field.name()).count() > 1 {
                    return wrong(format!("the query has two columns `{}`; name one otherwise (AS)", field.name()));
                }
            }
            // Types that JSON has no form for are noticed now, not with the first row.
            let none: ArrayRef = Arc::new(StructArray::from(RecordBatch::new_empty(context.schema.clone())));
            if let Err(error) = json_values(&none, &json::options()) {
                return wrong(format!("the rows cannot be written as JSON: {error}; cast the column in the query"));
            }
            let (topic, partition, headers) = (None, None, None);
            return Ok(Self { value: Value::Row, key, key_required: update, topic, partition, timestamp, headers });
        }
        if !settings.key.is_empty() {
            return wrong(
                "with `format: columns` the key is in the column `key`; leave the setting `key` out".to_owned(),
            );
        }
        let part = |name: &str, fits: &dyn Fn(&DataType) -> bool, types: &str| {
            let Some(at) = fields.iter().position(|f| f.name().eq_ignore_ascii_case(name)) else { return Ok(None) };
            match fits(fields[at].data_type()) {
                true => Ok(Some(at)),
                false => Err(Error::new(
                    class::CONFIG_INVALID,
                    format!(
                        "column `{}` has the type {}; it must be {types}",
                        fields[at].name(),
                        fields[at].data_type()
                    ),
                )),
            }
        };
        let bytes = |t: &DataType| matches!(Kind::of(t), Some(Kind::Text | Kind::Binary));
        let text = |t: &DataType| matches!(Kind::of(t), Some(Kind::Text));
        let number = |t: &DataType| matches!(t, DataType::Int32 | DataType::Int16 | DataType::Int8);
        let Some(value) = part("value", &bytes, "STRING or BINARY")? else {
            return wrong(format!(
                "`format: columns` needs a column `value` (STRING or BINARY); the query gives {}",
                names()
            ));
        };
        let key = part("key", &bytes, "STRING or BINARY")?;
        let topic = part("topic", &text, "STRING")?;
        let partition = part("partition", &number, "INT")?;
        let headers = part("headers", &are_headers, "ARRAY<STRUCT<key STRING, value BINARY>>")?;
        if topic.is_none() && settings.topic.is_none() {
            return wrong("no topic: set `topic`, or give a column `topic`".to_owned());
        }
        if update && key.is_none() {
            return wrong("output_mode: update writes changed rows, and needs a column `key`".to_owned());
        }
        let used = [Some(value), key, topic, partition, headers, timestamp];
        if let Some(unused) = (0..fields.len()).find(|at| !used.contains(&Some(*at))) {
            return wrong(format!(
                "column `{}` has no place in a record: `format: columns` takes value, key, topic, partition and headers; leave it out, \
                 or write whole rows with `format: json`",
                fields[unused].name()
            ));
        }
        let key = key.into_iter().collect();
        Ok(Self { value: Value::Column(value), key, key_required: update, topic, partition, timestamp, headers })
    }

    /// The records of some rows; `first_row` is the number of the first one in the batch, for messages.
    pub(super) fn records(&self, rows: &RecordBatch, first_row: u64) -> Result<Records> {
        let column = |at: Option<usize>| at.map(|at| rows.column(at));
        let values = match self.value {
            Value::Row => {
                let rows: ArrayRef = Arc::new(StructArray::from(rows.clone()));
                json_values(&rows, &json::options())?
            }
            Value::Column(at) => bytes_of(rows.column(at))?,
        };
        let keys = match self.key.as_slice() {
            [] => None,
            [at] => Some(key_of(rows.column(*at))?),
            several => {
                let keys: ArrayRef = Arc::new(StructArray::from(rows.project(several)?));
                Some(json_values(&keys, &json::options())?)
            }
        };
        if self.key_required {
            self.refuse_null_keys(rows, first_row)?;
        }
        let as_type = |array: Option<&ArrayRef>, wanted| array.map(|array| cast(array, wanted)).transpose();
        Ok(Records {
            values,
            keys,
            topics: as_type(column(self.topic), &DataType::Utf8)?.map(|array| array.as_string().clone()),
            partitions: as_type(column(self.partition), &DataType::Int32)?
                .map(|array| array.as_primitive::<Int32Type>().clone()),
            timestamps: column(self.timestamp).map(timestamps_of).transpose()?,
            headers: column(self.headers).map(Headers::new).transpose()?,
            first_row,
        })
    }

    fn refuse_null_keys(&self, rows: &RecordBatch, first_row: u64) -> Result<()> {
        for at in &self.key {
            let array = rows.column(*at);
            if array.logical_null_count() == 0 {
                continue;
            }
            let nulls = array.logical_nulls();
            let row = nulls.and_then(|nulls| (0..nulls.len()).find(|row| nulls.is_null(*row))).unwrap_or_default();
            let schema = rows.schema();
            let name = schema.field(*at).name();
            return Err(Error::new(
                class::CONSTRAINT_VIOLATION,
                format!(
                    "row {} of the batch has NULL in `{name}`, which is part of the key; leave such rows out in the query (WHERE {name} \
                     IS NOT NULL) or give them a value (coalesce)",
                    first_row + row as u64
                ),
            ));
        }
        Ok(())
    }
}

fn are_headers(data_type: &DataType) -> bool {
    let DataType::List(item) = data_type else { return false };
    let DataType::Struct(parts) = item.data_type() else { return false };
    let kinds: Vec<_> = parts.iter().map(|part| Kind::of(part.data_type())).collect();
    matches!(kinds.as_slice(), [Some(Kind::Text), Some(Kind::Binary | Kind::Text)])
}

/// STRING and BINARY as they are.
fn bytes_of(array: &ArrayRef) -> Result<BinaryArray> {
    let array = match array.data_type() {
        DataType::Utf8 | DataType::Binary => array.clone(),
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => cast(array, &DataType::Binary)?,
        _ if Kind::of(array.data_type()) == Some(Kind::Text) => cast(array, &DataType::Utf8)?,
        _ => cast(array, &DataType::Binary)?,
    };
    Ok(cast(&array, &DataType::Binary)?.as_binary().clone())
}

/// A key of one column: its text.
fn key_of(array: &ArrayRef) -> Result<BinaryArray> {
    match Kind::of(array.data_type()) {
        Some(Kind::Text | Kind::Binary) => bytes_of(array),
        Some(Kind::Json) => json_values(array, &json::options()),
        Some(kind) => {
            let column = Column::new(array, kind)?;
            let mut keys = BinaryBuilder::with_capacity(array.len(), array.len() * 16);
            let mut text = Vec::new();
            for row in 0..array.len() {
                if column.is_null(row) {
                    keys.append_null();
                } else {
                    text.clear();
                    column.write_text(row, &mut text);
                    keys.append_value(&text);
                }
            }
            Ok(keys.finish())
        }
        None => Err(Error::bug("a key of a type that no target takes")),
    }
}

fn timestamps_of(array: &ArrayRef) -> Result<Int64Array> {
    let zone = match array.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let millis = cast(array, &DataType::Timestamp(TimeUnit::Millisecond, zone))?;
    Ok(cast(&millis, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// The headers of some records.
#[derive(Debug)]
struct Headers {
    lists: ListArray,
    keys: StringArray,
    values: BinaryArray,
}

impl Headers {
    fn new(array: &ArrayRef) -> Result<Self> {
        let lists = array.as_list::<i32>().clone();
        let parts = lists.values().as_struct();
        let keys = cast(parts.column(0), &DataType::Utf8)?.as_string().clone();
        let values = bytes_of(parts.column(1))?;
        Ok(Self { lists, keys, values })
    }

    fn of(&self, row: usize) -> Option<OwnedHeaders> {
        if self.lists.is_null(row) {
            return None;
        }
        let offsets = self.lists.value_offsets();
        let range = offsets[row] as usize..offsets[row + 1] as usize;
        let mut headers = OwnedHeaders::new_with_capacity(range.len());
        for at in range {
            let value = self.values.is_valid(at).then(|| self.values.value(at));
            headers = headers.insert(Header { key: self.keys.value(at), value });
        }
        Some(headers)
    }
}

/// Records to be sent.
#[derive(Debug)]
pub(super) struct Records {
    values: BinaryArray,
    keys: Option<BinaryArray>,
    topics: Option<StringArray>,
    partitions: Option<Int32Array>,
    timestamps: Option<Int64Array>,
    headers: Option<Headers>,
    first_row: u64,
}

impl Records {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// What a repeated batch must have alike.
    pub(super) fn columns(&self) -> Vec<Column> {
        [Some(&self.values), self.keys.as_ref()].into_iter().flatten().cloned().map(Column::Binary).collect()
    }

    pub(super) fn value(&self, row: usize) -> Option<&[u8]> {
        self.values.is_valid(row).then(|| self.values.value(row))
    }

    pub(super) fn key(&self, row: usize) -> Option<&[u8]> {
        self.keys.as_ref().filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row))
    }

    /// The topic that a row names.
    pub(super) fn topic(&self, row: usize) -> Result<&str> {
        match self.topics.as_ref().filter(|topics| topics.is_valid(row)) {
            Some(topics) => Ok(topics.value(row)),
            None => Err(Error::new(
                class::CONSTRAINT_VIOLATION,
                format!(
                    "row {} of the batch has NULL in `topic`; give it a value (coalesce), or set `topic` for all rows",
                    self.first_row + row as u64
                ),
            )),
        }
    }

    pub(super) fn partition(&self, row: usize) -> Option<i32> {
        self.partitions.as_ref().filter(|partitions| partitions.is_valid(row)).map(|partitions| partitions.value(row))
    }

    pub(super) fn timestamp_ms(&self, row: usize) -> Option<i64> {
        self.timestamps.as_ref().filter(|times| times.is_valid(row)).map(|times| times.value(row))
    }

    pub(super) fn headers(&self, row: usize) -> Option<OwnedHeaders> {
        self.headers.as_ref().and_then(|headers| headers.of(row))
    }
}
