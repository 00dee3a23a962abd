//! Parquet files: rows, row group by row group.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions, StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Position};

use super::super::stream::Output;
use super::LoggedFile;

/// Rows of a block.
const BATCH_ROWS: usize = 16_384;

/// A row group of a logged file.
#[derive(Debug)]
pub(super) struct RowGroup {
    file: Arc<LoggedFile>,
    metadata: ArrowReaderMetadata,
    index: usize,
    first_row: u64,
    /// Uncompressed size.
    pub bytes: u64,
}

/// The row groups of a file, in order.
pub(super) fn row_groups(file: &Arc<LoggedFile>) -> Result<Vec<RowGroup>> {
    // The types of the Parquet schema, not those that the writer happened to have in memory.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load(&Bounded::open(file)?, options).map_err(|e| damaged(file, e))?;
    let mut first_row = 0;
    let groups = metadata.metadata().row_groups().iter().enumerate().map(|(index, group)| {
        let (file, metadata) = (file.clone(), metadata.clone());
        let bytes = u64::try_from(group.total_byte_size()).unwrap_or(0);
        let this = RowGroup { file, metadata, index, first_row, bytes };
        first_row += u64::try_from(group.num_rows()).unwrap_or(0);
        this
    });
    Ok(groups.collect())
}

impl RowGroup {
    /// Sends the rows, with the columns of `schema` (all of them nullable: what must not be null is for the query to say). `false`:
    /// nobody listens any more.
    pub(super) fn read(&self, schema: &SchemaRef, output: &Output) -> Result<bool> {
        let file = &self.file;
        let columns: Vec<Option<usize>> = schema
            .fields()
            .iter()
            .map(|field| column(self.metadata.schema().fields(), field.name()))
            .collect::<Result<_, String>>()
            .map_err(|what| mismatch(file, &what))?;
        let roots = columns.iter().flatten().copied();
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(Bounded::open(file)?, self.metadata.clone())
            .with_row_groups(vec![self.index])
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|e| damaged(file, e))?;
        let nullable: Vec<_> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let schema = Arc::new(Schema::new(nullable));
        let mut row = self.first_row;
        for rows in reader {
            let rows = rows.map_err(|e| damaged(file, ParquetError::ArrowError(e.to_string())))?;
            let arrays = schema
                .fields()
                .iter()
                .zip(&columns)
                .map(|(field, source)| match source {
                    // The reader gives the columns in the file's order.
                    Some(_) => match column(rows.schema().fields(), field.name())? {
                        Some(at) => adapt(rows.column(at), field),
                        None => Err(format!("the column {} was not read", field.name())),
                    },
                    None => Ok(new_null_array(field.data_type(), rows.num_rows())),
                })
                .collect::<Result<Vec<_>, String>>()
                .map_err(|what| mismatch(file, &what))?;
            let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            let adapted = RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?;
            let position = Position::File { path: file.shown.clone(), offset: row };
            row += adapted.num_rows() as u64;
            if !output.send(Input::Rows(adapted, position)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where a column is: by its exact name, or by the only one that differs in case, as in Spark.
fn column(fields: &Fields, name: &str) -> Result<Option<usize>, String> {
    if let Some(at) = fields.iter().position(|field| field.name() == name) {
        return Ok(Some(at));
    }
    let folded = name.to_lowercase();
    let mut alike = fields.iter().enumerate().filter(|(_, field)| field.name().to_lowercase() == folded);
    match (alike.next(), alike.next()) {
        (None, _) => Ok(None),
        (Some((at, _)), None) => Ok(Some(at)),
        (Some((_, one)), Some((_, other))) => {
            Err(format!("the column {name} could be {} or {}", one.name(), other.name()))
        }
    }
}

/// An array in the type of the job's schema, where that loses nothing.
fn adapt(array: &ArrayRef, to: &Field) -> Result<ArrayRef, String> {
    let from = array.data_type();
    match (from, to.data_type()) {
        (from, to) if from == to => Ok(array.clone()),
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let array = array.as_struct();
            let children = fields
                .iter()
                .map(|field| match column(array.fields(), field.name())? {
                    Some(at) => adapt(array.column(at), field),
                    None => Ok(new_null_array(field.data_type(), array.len())),
                })
                .collect::<Result<Vec<_>, String>>()?;
            let built = match children.is_empty() {
                true => Ok(StructArray::new_empty_fields(array.len(), array.nulls().cloned())),
                false => StructArray::try_new(fields.clone(), children, array.nulls().cloned()),
            };
            built.map(|a| Arc::new(a) as ArrayRef).map_err(|e| format!("the column {}: {e}", to.name()))
        }
        (DataType::List(_), DataType::List(item)) => {
            let array = array.as_list::<i32>();
            let values = adapt(array.values(), item)?;
            ListArray::try_new(item.clone(), array.offsets().clone(), values, array.nulls().cloned())
                .map(|a| Arc::new(a) as ArrayRef)
                .map_err(|e| format!("the column {}: {e}", to.name()))
        }
        (DataType::Map(..), DataType::Map(entries, sorted)) => {
            let array = array.as_map();
            // Key and value have other names in other places.
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(format!("the column {} is a map without entries", to.name()));
            };
            let children = array.entries().columns().iter().zip(fields).map(|(child, field)| adapt(child, field));
            let children = children.collect::<Result<Vec<_>, String>>()?;
            StructArray::try_new(fields.clone(), children, None)
                .and_then(|e| {
                    MapArray::try_new(entries.clone(), array.offsets().clone(), e, array.nulls().cloned(), *sorted)
                })
                .map(|a| Arc::new(a) as ArrayRef)
                .map_err(|e| format!("the column {}: {e}", to.name()))
        }
        (from, target) if widens(from, target) => {
            let options = CastOptions { safe: false, ..Default::default() };
            cast_with_options(array, target, &options).map_err(|e| format!("the column {}: {e}", to.name()))
        }
        (from, target) => Err(format!("the column {} is {from} in the file and {target} in the schema", to.name())),
    }
}

/// Whether every value of `from` has its equal in `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    let is_text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let is_bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView | FixedSizeBinary(_));
    // How many bits an integer has for its amount.
    let bits = |t: &DataType| match t {
        Int8 => Some(7),
        UInt8 => Some(8),
        Int16 => Some(15),
        UInt16 => Some(16),
        Int32 => Some(31),
        UInt32 => Some(32),
        Int64 => Some(63),
        UInt64 => Some(64),
        _ => None,
    };
    match (from, to) {
        (Dictionary(_, values), to) => values.as_ref() == to || widens(values, to),
        (Null, _) => true,
        (from, to) if is_text(from) => is_text(to) || is_bytes(to),
        (from, to) if is_bytes(from) => is_bytes(to) && !matches!(to, FixedSizeBinary(_)),
        (Float16, Float32 | Float64) | (Float32, Float64) => true,
        (from, Float64) => bits(from).is_some_and(|bits| bits <= 32),
        (from, Float32) => bits(from).is_some_and(|bits| bits <= 16),
        (Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s), Decimal128(to_p, to_s)) => {
            to_s >= s && i16::from(*to_p) - i16::from(*to_s) >= i16::from(*p) - i16::from(*s)
        }
        (Timestamp(..), Timestamp(..)) => true,
        (from, to) => matches!((bits(from), bits(to)), (Some(from), Some(to)) if from <= to),
    }
}

fn mismatch(file: &LoggedFile, what: &str) -> Error {
    Error::new(class::SCHEMA, format!("{}: {what}: correct the source's schema, or the file", file.shown))
}

fn damaged(file: &LoggedFile, error: ParquetError) -> Error {
    let message = format!(
        "{} cannot be read as Parquet: {error}; replace it by a sound file, or take it away and start with another checkpoint",
        file.shown
    );
    Error::new(class::MALFORMED_RECORD, message).caused_by(error)
}

/// The file as it was when it was logged: a Parquet file is read from its end.
struct Bounded {
    file: File,
    size: u64,
}

impl Bounded {
    fn open(logged: &LoggedFile) -> Result<Self> {
        Ok(Self { file: logged.open()?, size: logged.size })
    }

    fn at(&self, start: u64) -> parquet::errors::Result<File> {
        // Clones share the position of the file: as for `File` itself, readers seek before each use and one at a time.
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(file)
    }
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Bounded {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(self.at(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let mut buffer = Vec::with_capacity(length);
        let read = self.at(start)?.take(length as u64).read_to_end(&mut buffer)?;
        if read < length {
            return Err(ParquetError::EOF(format!("{read} of {length} bytes at {start}")));
        }
        Ok(buffer.into())
    }
}
