//! Rows as bytes: how keys and values are kept in memory.
//!
//! The encoding is Arrow's row format: one byte for NULL and the big-endian value of a fixed-width column, padded blocks for strings.
//! Two keys are equal exactly when their bytes are. Fixed-width columns come first, whatever their order in the schema, so that
//! each lies at a place that is the same in all rows, and rows without other columns all have the same length.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::row::{RowConverter, RowParser, Rows, SortField};
use foldhash::fast::FixedState;

use super::StateSpec;
use crate::error::{Error, Result, class};

/// How the rows of one operator are encoded and hashed; shared by its partitions.
#[derive(Debug)]
pub(super) struct Layout {
    schema: SchemaRef,
    key_schema: SchemaRef,
    keys: RowFormat,
    values: RowFormat,
    expiry: Option<ExpiryPlace>,
    hasher: FixedState,
}

/// Where the expiry column lies in an encoded row.
#[derive(Debug, Clone, Copy)]
enum ExpiryPlace {
    Key(usize),
    Value(usize),
}

/// Encoded keys and their hashes.
pub(super) struct EncodedKeys {
    bytes: Encoded,
    hashes: Vec<u32>,
}

/// Encoded rows: keys with the values that belong to them.
pub(super) struct EncodedRows {
    /// The keys.
    pub keys: EncodedKeys,
    values: Encoded,
}

/// What one key and its value are as bytes.
pub(super) type KeyValue<'a> = (&'a [u8], &'a [u8]);

impl Layout {
    /// The layout for an operator. Fails with the class `StateUnsupported` when a column's type cannot be kept.
    ///
    /// `seed` makes the hashes unpredictable for whoever makes up the keys.
    pub fn new(spec: &StateSpec, seed: u64) -> Result<Self> {
        let fields = spec.schema.fields();
        if spec.keys > fields.len() {
            return Err(Error::bug(format!(
                "operator {} ({}): {} key columns of {}",
                spec.operator,
                spec.name,
                spec.keys,
                fields.len()
            )));
        }
        for (column, field) in fields.iter().enumerate() {
            if let Some(part) = unsupported(field.data_type()) {
                let what = if column < spec.keys { "key" } else { "value" };
                return Err(Error::new(
                    class::STATE_UNSUPPORTED,
                    format!(
                        "operator {} ({}): the {what} `{}` has a type that state cannot hold ({part}): cast it to a plain type",
                        spec.operator,
                        spec.name,
                        field.name()
                    ),
                ));
            }
        }
        let (key_fields, value_fields) = fields.split_at(spec.keys);
        let keys = RowFormat::new(key_fields)?;
        let values = RowFormat::new(value_fields)?;
        let expiry = spec
            .expiry
            .map(|column| {
                let field = fields.get(column).filter(|field| is_expiry(field.data_type())).ok_or_else(|| {
                    Error::bug(format!(
                        "operator {} ({}): column {column} cannot tell when rows expire: BIGINT or a timestamp is needed",
                        spec.operator, spec.name
                    ))
                })?;
                let place = if column < spec.keys {
                    keys.place_of(column).map(ExpiryPlace::Key)
                } else {
                    values.place_of(column - spec.keys).map(ExpiryPlace::Value)
                };
                place.ok_or_else(|| Error::bug(format!("column `{}` has no fixed place", field.name())))
            })
            .transpose()?;
        Ok(Self {
            schema: spec.schema.clone(),
            key_schema: Arc::new(Schema::new(key_fields.to_vec())),
            keys,
            values,
            expiry,
            hasher: FixedState::with_seed(seed),
        })
    }

    /// All columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The key columns alone.
    pub fn key_schema(&self) -> &SchemaRef {
        &self.key_schema
    }

    /// Whether rows expire.
    pub fn has_expiry(&self) -> bool {
        self.expiry.is_some()
    }

    /// Encodes keys. Without key columns there is one key, the empty one.
    pub fn encode_keys(&self, columns: &[ArrayRef]) -> Result<EncodedKeys> {
        self.encode_key_rows(columns, columns.first().map_or(1, |column| column.len()))
    }

    /// Encodes whole rows.
    pub fn encode(&self, rows: &RecordBatch) -> Result<EncodedRows> {
        let width = self.schema.fields().len();
        if rows.num_columns() != width {
            return Err(Error::bug(format!("a row of state has {width} columns, not {}", rows.num_columns())));
        }
        let (keys, values) = rows.columns().split_at(self.keys.width());
        Ok(EncodedRows {
            keys: self.encode_key_rows(keys, rows.num_rows())?,
            values: self.values.encode(values, rows.num_rows())?,
        })
    }

    fn encode_key_rows(&self, columns: &[ArrayRef], rows: usize) -> Result<EncodedKeys> {
        let bytes = self.keys.encode(columns, rows)?;
        let hashes = (0..rows).map(|row| self.hash(bytes.row(row))).collect();
        Ok(EncodedKeys { bytes, hashes })
    }

    /// The hash of an encoded key.
    pub fn hash(&self, key: &[u8]) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        (hasher.finish() >> 32) as u32
    }

    /// The expiry of an encoded row; `None` when it is NULL or rows of this operator do not expire.
    pub fn expiry(&self, (key, value): KeyValue<'_>) -> Option<i64> {
        let (bytes, at) = match self.expiry? {
            ExpiryPlace::Key(at) => (key, at),
            ExpiryPlace::Value(at) => (value, at),
        };
        let (valid, rest) = bytes.get(at..)?.split_first()?;
        let number = i64::from_be_bytes(*rest.first_chunk()?) ^ i64::MIN;
        (*valid == 1).then_some(number)
    }

    /// The values of rows whose keys are at hand as columns.
    pub fn decode_with(&self, keys: Vec<ArrayRef>, values: &[&[u8]]) -> Result<RecordBatch> {
        let mut columns = keys;
        columns.extend(self.values.decode(values)?);
        let options = RecordBatchOptions::new().with_row_count(Some(values.len()));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    /// Decodes rows into batches of a moderate size.
    pub fn decode<'a>(&self, rows: impl IntoIterator<Item = KeyValue<'a>>) -> Result<Vec<RecordBatch>> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut batches = Vec::new();
        let mut bytes = 0;
        for (key, value) in rows {
            keys.push(key);
            values.push(value);
            bytes += key.len() + value.len();
            if keys.len() == BATCH_ROWS || bytes >= BATCH_BYTES {
                batches.push(self.decode_with(self.keys.decode(&keys)?, &values)?);
                keys.clear();
                values.clear();
                bytes = 0;
            }
        }
        if !keys.is_empty() {
            batches.push(self.decode_with(self.keys.decode(&keys)?, &values)?);
        }
        Ok(batches)
    }

    /// Decodes keys into batches of a moderate size, with the key columns alone.
    pub fn decode_keys(&self, keys: &[&[u8]]) -> Result<Vec<RecordBatch>> {
        keys.chunks(BATCH_ROWS)
            .map(|keys| {
                let options = RecordBatchOptions::new().with_row_count(Some(keys.len()));
                let columns = self.keys.decode(keys)?;
                Ok(RecordBatch::try_new_with_options(self.key_schema.clone(), columns, &options)?)
            })
            .collect()
    }
}

/// Batches that leave the state have at most this many rows, and stop growing at this many bytes.
pub(super) const BATCH_ROWS: usize = 16_384;
pub(super) const BATCH_BYTES: usize = 64 << 20;

impl EncodedKeys {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The bytes of a key.
    pub fn key(&self, row: usize) -> &[u8] {
        self.bytes.row(row)
    }

    /// The hash of a key.
    pub fn hash(&self, row: usize) -> u32 {
        self.hashes[row]
    }
}

impl EncodedRows {
    /// Key and value of a row.
    pub fn row(&self, row: usize) -> KeyValue<'_> {
        (self.keys.key(row), self.values.row(row))
    }
}

/// The encoding of some columns.
#[derive(Debug)]
struct RowFormat {
    /// Per encoded column its place in the schema: fixed-width columns first.
    order: Vec<usize>,
    /// Per column of the schema its byte in the encoded row, for fixed-width ones.
    places: Vec<Option<usize>>,
    converter: RowConverter,
    parser: RowParser,
}

/// Encoded rows; the converter cannot count rows without columns.
enum Encoded {
    Rows(Rows),
    Empty,
}

impl Encoded {
    fn row(&self, row: usize) -> &[u8] {
        match self {
            Self::Rows(rows) => rows.row(row).data(),
            Self::Empty => &[],
        }
    }
}

impl RowFormat {
    fn new(fields: &[FieldRef]) -> Result<Self> {
        let (fixed, variable): (Vec<usize>, Vec<usize>) =
            (0..fields.len()).partition(|column| fixed_width(fields[*column].data_type()).is_some());
        let mut places = vec![None; fields.len()];
        let mut next = 0;
        for &column in &fixed {
            places[column] = Some(next);
            next += fixed_width(fields[column].data_type()).unwrap_or_default();
        }
        let order = [fixed, variable].concat();
        let sort = order.iter().map(|&column| SortField::new(fields[column].data_type().clone())).collect();
        let converter = RowConverter::new(sort)?;
        Ok(Self { order, places, parser: converter.parser(), converter })
    }

    fn width(&self) -> usize {
        self.order.len()
    }

    fn place_of(&self, column: usize) -> Option<usize> {
        self.places.get(column).copied().flatten()
    }

    fn encode(&self, columns: &[ArrayRef], rows: usize) -> Result<Encoded> {
        if columns.len() != self.width() {
            return Err(Error::bug(format!("{} columns of state expected, not {}", self.width(), columns.len())));
        }
        if columns.is_empty() {
            return Ok(Encoded::Empty);
        }
        debug_assert!(columns.iter().all(|column| column.len() == rows));
        let ordered: Vec<ArrayRef> = self.order.iter().map(|&column| columns[column].clone()).collect();
        Ok(Encoded::Rows(self.converter.convert_columns(&ordered)?))
    }

    fn decode(&self, rows: &[&[u8]]) -> Result<Vec<ArrayRef>> {
        // String and list columns count their bytes in 32 bits.
        if rows.iter().map(|row| row.len()).sum::<usize>() > i32::MAX as usize {
            return Err(Error::new(
                class::MEMORY_LIMIT,
                format!("{} rows of state have more than 2 GiB: make the batches smaller", rows.len()),
            ));
        }
        let ordered = self.converter.convert_rows(rows.iter().map(|row| self.parser.parse(row)))?;
        let mut columns: Vec<(usize, ArrayRef)> = self.order.iter().copied().zip(ordered).collect();
        columns.sort_unstable_by_key(|(column, _)| *column);
        Ok(columns.into_iter().map(|(_, array)| array).collect())
    }
}

/// Bytes of the encoded column, when they are the same for all values.
fn fixed_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(2),
        other => other.primitive_width().map(|width| 1 + width),
    }
}

/// A type whose values are 64-bit numbers that can be compared with a watermark.
fn is_expiry(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::Timestamp(_, _))
}

/// The part of a type that does not come back from the encoding as it went in.
fn unsupported(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::Dictionary(_, _) | DataType::RunEndEncoded(_, _) | DataType::Union(_, _) => Some(data_type),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => unsupported(field.data_type()),
        DataType::Struct(fields) => fields.iter().find_map(|field| unsupported(field.data_type())),
        _ => None,
    }
}
