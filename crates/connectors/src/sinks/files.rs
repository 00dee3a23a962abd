//! The `files` sink: Parquet, JSON lines and CSV, on a local disk or in S3.
//!
//! A batch becomes one file per partition value, whose name follows from the batch alone. Files are written out of sight and put
//! in place at the end, all together; a repeated batch puts the same files in the same places. So readers see whole files, and each
//! row once.
//!
//! Encoding is the work: the columns of a Parquet file, and the lines of a text file, are encoded by all cores, while the next rows
//! are being computed.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::json::writer::LineDelimited;
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use bytes::BytesMut;
use flate2::write::GzEncoder;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::ZstdLevel;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use perennial_core::crash::{CrashPoint, CrashPoints};
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::task::{JoinHandle, JoinSet};

use super::columns::{Column, Kind};
use crate::storage::{self, Storage, StorageOptions};

/// Writes rows to files, exactly once: one file per batch (and partition value), `part-<batch>-<query>.<format>`.
///
/// Only `output_mode: append`: a file is never changed. An empty batch writes none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSink {
    /// Directory, `file://` URL or `s3://bucket/prefix`. It is created if it is missing.
    pub path: String,
    /// Format of the files. Default: `parquet`.
    #[serde(default)]
    pub format: FileFormat,
    /// Columns whose values become directories, as Hive and Spark lay them out (`day=2026-11-21/`), and are left out of the files.
    /// Default: none.
    #[serde(default)]
    pub partition_by: Vec<String>,
    /// Compression: `zstd`, `snappy` or `none` for Parquet, `gzip`, `zstd` or `none` for JSON and CSV. Default: `zstd` for Parquet,
    /// `none` for JSON and CSV.
    #[serde(default)]
    pub compression: Option<FileCompression>,
    /// Rows per row group of a Parquet file. A group ends earlier when it has 64 MB. Default: 1,000,000.
    #[serde(default = "row_group_rows")]
    pub row_group_rows: usize,
    /// Most partition values that one batch may have: each is a file. Default: 500.
    #[serde(default = "max_partitions")]
    pub max_partitions: usize,
    /// How the storage is reached.
    #[serde(default)]
    pub storage: StorageOptions,
}

fn row_group_rows() -> usize {
    1_000_000
}

fn max_partitions() -> usize {
    500
}

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// Apache Parquet.
    #[default]
    Parquet,
    /// One JSON object per line; a NULL is left out, BINARY is hexadecimal.
    Json,
    /// Comma-separated values under a line of column names; NULL is empty, BINARY is hexadecimal. No STRUCT, ARRAY or MAP.
    Csv,
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileCompression {
    /// Not at all.
    None,
    /// Snappy, inside of Parquet.
    Snappy,
    /// Gzip; a file may have several members, as the format allows.
    Gzip,
    /// Zstandard; a file may have several frames, as the format allows.
    Zstd,
}

impl SinkFactory for FilesSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("files sink: {what}"));
        if context.output_mode != OutputMode::Append {
            return Err(wrong(
                "files are never changed, so it takes `output_mode: append` only; for update and complete use a database sink, or \
                 give the query a watermark and let it append final rows"
                    .to_owned(),
            ));
        }
        if self.path.is_empty() {
            return Err(wrong("`path` is empty".to_owned()));
        }
        if self.row_group_rows == 0 || self.max_partitions == 0 {
            return Err(wrong("`row_group_rows` and `max_partitions` must be at least 1".to_owned()));
        }
        let fields = context.schema.fields();
        let mut partitions: Vec<(usize, Kind)> = Vec::new();
        for name in &self.partition_by {
            let index = fields.iter().position(|f| f.name() == name).ok_or_else(|| {
                let names: Vec<_> = fields.iter().map(|f| f.name().as_str()).collect();
                wrong(format!(
                    "partition_by names `{name}`, which the query does not give; it gives {}",
                    names.join(", ")
                ))
            })?;
            if partitions.iter().any(|(other, _)| *other == index) {
                return Err(wrong(format!("partition_by names `{name}` twice")));
            }
            match Kind::of(fields[index].data_type()) {
                Some(kind) if kind != Kind::Json && kind != Kind::Binary => partitions.push((index, kind)),
                _ => {
                    return Err(wrong(format!(
                        "column `{name}` cannot be in partition_by: its values make no directory names"
                    )));
                }
            }
        }
        let data: Vec<usize> = (0..fields.len()).filter(|i| partitions.iter().all(|(p, _)| p != i)).collect();
        if data.is_empty() {
            return Err(wrong("all columns are in partition_by; none is left for the files".to_owned()));
        }
        let mut data_fields = Vec::new();
        for index in &data {
            let field = &fields[*index];
            let kind = Kind::of(field.data_type());
            if kind.is_none() || (self.format == FileFormat::Csv && kind == Some(Kind::Json)) {
                return Err(wrong(format!(
                    "column `{}` has the type {}, which {:?} files cannot hold; cast it in the query, for example to_json or STRING",
                    field.name(),
                    field.data_type(),
                    self.format
                )));
            }
            if data_fields.iter().any(|f: &Field| f.name() == field.name()) {
                return Err(wrong(format!("the query has two columns `{}`; name one otherwise (AS)", field.name())));
            }
            data_fields.push(Field::new(field.name(), file_type(field.data_type()), field.is_nullable()));
        }
        let schema = Arc::new(Schema::new(data_fields));
        let compression = match (self.format, self.compression) {
            (FileFormat::Parquet, None) => FileCompression::Zstd,
            (_, None) => FileCompression::None,
            (FileFormat::Parquet, Some(FileCompression::Gzip)) => {
                return Err(wrong("Parquet is compressed with zstd, snappy or none, not gzip".to_owned()));
            }
            (FileFormat::Json | FileFormat::Csv, Some(FileCompression::Snappy)) => {
                return Err(wrong("JSON and CSV are compressed with gzip, zstd or none, not snappy".to_owned()));
            }
            (_, Some(compression)) => compression,
        };
        let encoding = match self.format {
            FileFormat::Parquet => Encoding::Parquet(ParquetLayout::new(&schema, compression, self.row_group_rows)?),
            FileFormat::Json => Encoding::Json(compression),
            FileFormat::Csv => Encoding::Csv(compression),
        };
        let layout = Layout { data, schema, partitions, names: self.partition_by.clone(), encoding };
        Ok(Box::new(Files {
            settings: self.clone(),
            layout: Arc::new(layout),
            query: context.query_id.chars().take(8).collect(),
            crash: context.env.crash,
            storage: OnceCell::new(),
        }))
    }
}

/// The type that a column has in files: Spark knows timestamps of microseconds only.
fn file_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Null => DataType::Utf8,
        other => other.clone(),
    }
}

/// What goes into the files, and where.
struct Layout {
    /// Indexes of the columns in the files.
    data: Vec<usize>,
    /// Columns in the files.
    schema: SchemaRef,
    partitions: Vec<(usize, Kind)>,
    names: Vec<String>,
    encoding: Encoding,
}

enum Encoding {
    Parquet(ParquetLayout),
    Json(FileCompression),
    Csv(FileCompression),
}

impl Encoding {
    fn extension(&self) -> &'static str {
        match self {
            Self::Parquet(_) => "parquet",
            Self::Json(FileCompression::Gzip) => "json.gz",
            Self::Json(FileCompression::Zstd) => "json.zst",
            Self::Json(_) => "json",
            Self::Csv(FileCompression::Gzip) => "csv.gz",
            Self::Csv(FileCompression::Zstd) => "csv.zst",
            Self::Csv(_) => "csv",
        }
    }
}

struct Files {
    settings: FilesSink,
    layout: Arc<Layout>,
    /// The beginning of the query's identity: queries that write to the same directory keep apart.
    query: String,
    crash: CrashPoints,
    storage: OnceCell<Storage>,
}

/// Rows that a file gathers before they are encoded: enough to keep all cores busy for some milliseconds.
const CHUNK_ROWS: usize = 64 << 10;
/// Bytes of rows that all files of a batch together gather.
const GATHERED_BYTES: usize = 64 << 20;
/// Encoded bytes after which a row group ends.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Bytes of a part of an upload (S3 asks for at least 5 MB).
const PART_BYTES: usize = 8 << 20;
/// Files that are finished and put in place at the same time.
const CONCURRENT_FILES: usize = 16;

#[async_trait]
impl Sink for Files {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        storage::check_writable(self.storage().await?).await.at(|| self.place())
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
        let store = self.storage().await?.store.clone();
        let mut files = HashMap::new();
        let name = format!("part-{:020}-{}", batch.id, self.query);
        let written = match self.write_files(&store, &name, rows, &mut files).await {
            Ok(written) => written,
            Err(error) => {
                for file in files.into_values() {
                    file.abandon().await;
                }
                return Err(error);
            }
        };
        if batch.again {
            let current: HashSet<_> = files.into_values().map(|file| file.location).collect();
            self.remove_stale(&store, &name, &current).await.at(|| self.place())?;
        }
        Ok(written)
    }
}

impl Files {
    fn place(&self) -> String {
        format!("files sink: {}", self.settings.path)
    }

    async fn storage(&self) -> Result<&Storage> {
        self.storage
            .get_or_try_init(|| async {
                let (path, options) = (self.settings.path.clone(), self.settings.storage.clone());
                tokio::task::spawn_blocking(move || storage::open(&path, &options)).await.map_err(task_died)?
            })
            .await
            .at(|| self.place())
    }

    async fn write_files(
        &self,
        store: &Arc<dyn ObjectStore>,
        name: &str,
        mut rows: RowStream,
        files: &mut HashMap<String, PartFile>,
    ) -> Result<Written> {
        let mut written = Written::default();
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            written.rows += rows.num_rows() as u64;
            for (directory, rows) in self.layout.split(&rows)? {
                if !files.contains_key(&directory) {
                    if files.len() == self.settings.max_partitions {
                        return Err(Error::new(
                            class::CONFIG_INVALID,
                            format!(
                                "{}: a batch has more than {} values of partition_by ({}), each of which is a file: partition by \
                                 something coarser, or raise max_partitions",
                                self.place(),
                                self.settings.max_partitions,
                                self.layout.names.join(", ")
                            ),
                        ));
                    }
                    let location = format!("{directory}{name}.{}", self.layout.encoding.extension());
                    let location = Path::parse(&location).map_err(|e| {
                        Error::new(class::CONFIG_INVALID, format!("{}: no file can be called {location}", self.place()))
                            .caused_by(e)
                    })?;
                    files.insert(directory.clone(), PartFile::new(location, self.layout.clone(), store.clone()));
                }
                if let Some(file) = files.get_mut(&directory) {
                    file.push(rows).await.at(|| self.place())?;
                }
            }
            if files.values().map(|file| file.gathered_bytes).sum::<usize>() > GATHERED_BYTES {
                for file in files.values_mut() {
                    file.encode().await.at(|| self.place())?;
                }
            }
        }
        // One file is put in place by one call. Several are first all written out of sight, so that they appear close together.
        let stage = files.len() > 1;
        let everything = async {
            stream::iter(files.values_mut().map(Ok))
                .try_for_each_concurrent(CONCURRENT_FILES, |file| file.finish(stage))
                .await?;
            self.crash.pass(CrashPoint::SinkStaged).await;
            stream::iter(files.values_mut().map(Ok))
                .try_for_each_concurrent(CONCURRENT_FILES, |file| async {
                    file.publish().await?;
                    self.crash.pass(CrashPoint::SinkHalf).await;
                    Ok(())
                })
                .await
        };
        everything.await.at(|| self.place())?;
        self.crash.pass(CrashPoint::SinkPublished).await;
        written.bytes = files.values().map(|file| file.bytes).sum();
        Ok(written)
    }

    /// Removes files that an earlier attempt at the batch wrote and this one did not.
    async fn remove_stale(&self, store: &Arc<dyn ObjectStore>, name: &str, current: &HashSet<Path>) -> Result<()> {
        let prefix = format!("{name}.");
        let found: Vec<_> = store
            .list(None)
            .try_filter_map(|file| {
                let stale = file.location.filename().is_some_and(|name| name.starts_with(&prefix))
                    && !current.contains(&file.location);
                futures::future::ready(Ok(stale.then_some(file.location)))
            })
            .try_collect()
            .await?;
        store.delete_stream(stream::iter(found.into_iter().map(Ok)).boxed()).try_for_each(|_| async { Ok(()) }).await?;
        Ok(())
    }
}

fn task_died(error: tokio::task::JoinError) -> Error {
    Error::bug("files sink: a task died").caused_by(error)
}

impl Layout {
    /// Rows by the directory that they belong to (empty, or ending in `/`), with the columns and types of the files.
    fn split(&self, rows: &RecordBatch) -> Result<Vec<(String, RecordBatch)>> {
        if rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let data = self
            .data
            .iter()
            .zip(self.schema.fields())
            .map(|(index, field)| {
                let array = rows.column(*index);
                Ok(if array.data_type() == field.data_type() { array.clone() } else { cast(array, field.data_type())? })
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let data = RecordBatch::try_new(self.schema.clone(), data)?;
        if self.partitions.is_empty() {
            return Ok(vec![(String::new(), data)]);
        }
        let columns: Vec<_> = self.partitions.iter().map(|(index, _)| rows.column(*index).clone()).collect();
        let converter =
            RowConverter::new(columns.iter().map(|c| SortField::new(c.data_type().clone())).collect::<Vec<_>>())?;
        let keys = converter.convert_columns(&columns)?;
        let mut groups: HashMap<&[u8], Vec<u32>> = HashMap::new();
        for (row, key) in keys.iter().enumerate() {
            groups.entry(key.data()).or_default().push(row as u32);
        }
        let values = columns
            .iter()
            .zip(&self.partitions)
            .map(|(array, (_, kind))| Column::new(array, *kind))
            .collect::<Result<Vec<_>>>()?;
        let single = groups.len() == 1;
        groups
            .into_values()
            .map(|members| {
                let directory = self.directory(&values, members[0] as usize);
                let rows = if single { data.clone() } else { take_record_batch(&data, &UInt32Array::from(members))? };
                Ok((directory, rows))
            })
            .collect()
    }

    /// `a=1/b=x/`
    fn directory(&self, values: &[Column], row: usize) -> String {
        let mut directory = String::new();
        let mut text = Vec::new();
        for (name, column) in self.names.iter().zip(values) {
            text.clear();
            if !column.is_null(row) {
                column.write_text(row, &mut text);
            }
            escape(name, &mut directory);
            directory.push('=');
            match &*String::from_utf8_lossy(&text) {
                "" => directory.push_str("__HIVE_DEFAULT_PARTITION__"),
                value => escape(value, &mut directory),
            }
            directory.push('/');
        }
        directory
    }
}

/// Escapes the characters that Hive and Spark escape in the names of partition directories.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        if c.is_ascii_control() || "\"#%'*/:=?\\{[]^".contains(c) {
            out.push_str(&format!("%{:02X}", c as u32));
        } else {
            out.push(c);
        }
    }
}

/// One file of a batch in the making.
struct PartFile {
    location: Path,
    layout: Arc<Layout>,
    store: Arc<dyn ObjectStore>,
    gathered: Vec<RecordBatch>,
    gathered_rows: usize,
    gathered_bytes: usize,
    /// The encoder, which is away while it works.
    encoding: Option<JoinHandle<Result<Encoder>>>,
    encoder: Option<Encoder>,
    /// Encoded bytes that are not uploaded yet.
    ready: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
    bytes: u64,
}

impl PartFile {
    fn new(location: Path, layout: Arc<Layout>, store: Arc<dyn ObjectStore>) -> Self {
        Self {
            location,
            layout,
            store,
            gathered: Vec::new(),
            gathered_rows: 0,
            gathered_bytes: 0,
            encoding: None,
            encoder: None,
            ready: BytesMut::new(),
            upload: None,
            parts: JoinSet::new(),
            bytes: 0,
        }
    }

    async fn push(&mut self, rows: RecordBatch) -> Result<()> {
        self.gathered_rows += rows.num_rows();
        self.gathered_bytes += rows.get_array_memory_size();
        self.gathered.push(rows);
        if self.gathered_rows >= CHUNK_ROWS { self.encode().await } else { Ok(()) }
    }

    /// Begins to encode what is gathered, as soon as the encoder is done with what came before.
    async fn encode(&mut self) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let encoder = self.encoder().await?;
        let rows = std::mem::take(&mut self.gathered);
        (self.gathered_rows, self.gathered_bytes) = (0, 0);
        self.encoding = Some(tokio::spawn(encoder.encode(rows)));
        Ok(())
    }

    /// The encoder when it is done; what it made is on its way to the storage.
    async fn encoder(&mut self) -> Result<Encoder> {
        let mut encoder = match (self.encoding.take(), self.encoder.take()) {
            (Some(working), _) => working.await.map_err(task_died)??,
            (None, Some(encoder)) => encoder,
            (None, None) => Encoder::new(&self.layout)?,
        };
        for bytes in encoder.take_output() {
            self.ready.extend_from_slice(&bytes);
        }
        while self.ready.len() >= PART_BYTES {
            let part = self.ready.split_to(PART_BYTES).freeze();
            self.upload_part(part.into()).await?;
        }
        Ok(encoder)
    }

    async fn upload_part(&mut self, part: PutPayload) -> Result<()> {
        if self.upload.is_none() {
            self.upload = Some(self.store.put_multipart(&self.location).await?);
        }
        if let Some(upload) = &mut self.upload {
            self.bytes += part.content_length() as u64;
            self.parts.spawn(upload.put_part(part));
        }
        // A part that is being written and one that waits: more would only take memory.
        while self.parts.len() > 2 {
            self.join_part().await?;
        }
        Ok(())
    }

    async fn join_part(&mut self) -> Result<()> {
        match self.parts.join_next().await {
            Some(part) => Ok(part.map_err(task_died)??),
            None => Ok(()),
        }
    }

    /// Encodes the rest. A file that is `stage`d, or of which a part has been uploaded, is then in the storage but for its name;
    /// another one waits in memory.
    async fn finish(&mut self, stage: bool) -> Result<()> {
        self.encode().await?;
        let encoder = self.encoder().await?;
        self.encoder = Some(encoder.finish().await?);
        self.encoder().await?;
        if stage || self.upload.is_some() {
            let rest = self.ready.split().freeze();
            self.upload_part(rest.into()).await?;
        }
        while !self.parts.is_empty() {
            self.join_part().await?;
        }
        Ok(())
    }

    /// Gives the file its name.
    async fn publish(&mut self) -> Result<()> {
        match &mut self.upload {
            Some(upload) => {
                upload.complete().await?;
            }
            None => {
                let content = self.ready.split().freeze();
                self.bytes += content.len() as u64;
                self.store.put(&self.location, content.into()).await?;
            }
        }
        Ok(())
    }

    /// Removes what is in the storage of a file that will not be finished.
    async fn abandon(mut self) {
        self.parts.shutdown().await;
        if let Some(mut upload) = self.upload {
            // The upload may be complete, or the storage gone, which is the error that is reported.
            let _ = upload.abort().await;
        }
    }
}

/// Encodes rows to the bytes of one file.
enum Encoder {
    Parquet(Box<ParquetFile>),
    Text(TextFile),
}

impl Encoder {
    fn new(layout: &Arc<Layout>) -> Result<Self> {
        Ok(match &layout.encoding {
            Encoding::Parquet(parquet) => Self::Parquet(Box::new(ParquetFile::new(parquet)?)),
            Encoding::Json(_) | Encoding::Csv(_) => {
                Self::Text(TextFile { layout: layout.clone(), begun: false, output: Vec::new() })
            }
        })
    }

    async fn encode(self, rows: Vec<RecordBatch>) -> Result<Self> {
        Ok(match self {
            Self::Parquet(file) => Self::Parquet(file.encode(rows).await?),
            Self::Text(file) => Self::Text(file.encode(rows).await?),
        })
    }

    async fn finish(self) -> Result<Self> {
        Ok(match self {
            Self::Parquet(file) => Self::Parquet(file.finish().await?),
            text => text,
        })
    }

    fn take_output(&mut self) -> Vec<Vec<u8>> {
        match self {
            Self::Parquet(file) => vec![std::mem::take(file.writer.inner_mut())],
            Self::Text(file) => std::mem::take(&mut file.output),
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Does `work` on each of the jobs, on as many threads as there are cores; the results are in the order of the jobs.
async fn on_all_cores<J: Send + 'static, R: Send + 'static>(
    jobs: Vec<J>,
    threads: usize,
    work: impl Fn(J) -> Result<R> + Send + Sync + 'static,
) -> Result<Vec<R>> {
    let count = jobs.len();
    let queue = Arc::new(Mutex::new(jobs.into_iter().enumerate()));
    let work = Arc::new(work);
    let mut workers: JoinSet<Result<Vec<(usize, R)>>> = JoinSet::new();
    for _ in 0..threads.clamp(1, count.max(1)) {
        let (queue, work) = (queue.clone(), work.clone());
        workers.spawn_blocking(move || {
            let mut done = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, job)) = next else { return Ok(done) };
                done.push((index, work(job)?));
            }
        });
    }
    let mut done = Vec::with_capacity(count);
    while let Some(results) = workers.join_next().await {
        done.extend(results.map_err(task_died)??);
    }
    done.sort_by_key(|(index, _): &(usize, R)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// What all Parquet files of a query have in common.
struct ParquetLayout {
    schema: SchemaRef,
    root: parquet::schema::types::TypePtr,
    properties: Arc<WriterProperties>,
    row_group_rows: usize,
    /// Per column of the schema how many Parquet columns it has: a nested one has several.
    leaves: Vec<usize>,
}

impl ParquetLayout {
    fn new(schema: &SchemaRef, compression: FileCompression, row_group_rows: usize) -> Result<Self> {
        let compression = match compression {
            FileCompression::Zstd => parquet::basic::Compression::ZSTD(ZstdLevel::default()),
            FileCompression::Snappy => parquet::basic::Compression::SNAPPY,
            FileCompression::None | FileCompression::Gzip => parquet::basic::Compression::UNCOMPRESSED,
        };
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_created_by(concat!("perennial ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let description = ArrowSchemaConverter::new().convert(schema).map_err(|e| {
            Error::new(class::CONFIG_INVALID, "files sink: Parquet cannot hold the columns of the query").caused_by(e)
        })?;
        let mut leaves = vec![0; schema.fields().len()];
        for leaf in 0..description.num_columns() {
            leaves[description.get_column_root_idx(leaf)] += 1;
        }
        Ok(Self {
            schema: schema.clone(),
            root: description.root_schema_ptr(),
            properties: Arc::new(properties),
            row_group_rows,
            leaves,
        })
    }
}

/// A Parquet file whose columns are encoded side by side.
struct ParquetFile {
    schema: SchemaRef,
    leaves: Vec<usize>,
    row_group_rows: usize,
    writer: SerializedFileWriter<Vec<u8>>,
    factory: ArrowRowGroupWriterFactory,
    /// Writers of the current row group, per column of the schema; empty between groups.
    columns: Vec<Vec<ArrowColumnWriter>>,
    rows_in_group: usize,
}

fn parquet_error(error: ParquetError) -> Error {
    Error::bug("files sink: rows cannot be encoded as Parquet").caused_by(error)
}

/// A column of the current row group: its writers and its values.
struct ColumnJob {
    field: Arc<Field>,
    writers: Vec<ArrowColumnWriter>,
    values: Vec<ArrayRef>,
}

impl ColumnJob {
    fn write(&mut self) -> Result<(), ParquetError> {
        for values in self.values.drain(..) {
            for (leaf, writer) in compute_leaves(&self.field, &values)?.iter().zip(&mut self.writers) {
                writer.write(leaf)?;
            }
        }
        Ok(())
    }
}

impl ParquetFile {
    fn new(layout: &ParquetLayout) -> Result<Self> {
        let writer = SerializedFileWriter::new(Vec::new(), layout.root.clone(), layout.properties.clone())
            .map_err(parquet_error)?;
        Ok(Self {
            schema: layout.schema.clone(),
            leaves: layout.leaves.clone(),
            row_group_rows: layout.row_group_rows,
            factory: ArrowRowGroupWriterFactory::new(&writer, layout.schema.clone()),
            writer,
            columns: Vec::new(),
            rows_in_group: 0,
        })
    }

    async fn encode(mut self: Box<Self>, rows: Vec<RecordBatch>) -> Result<Box<Self>> {
        let mut rest = std::collections::VecDeque::from(rows);
        while !rest.is_empty() {
            // The rows that go into the current group.
            let mut group = Vec::new();
            let mut room = self.row_group_rows - self.rows_in_group;
            while let Some(rows) = rest.pop_front() {
                if rows.num_rows() > room {
                    rest.push_front(rows.slice(room, rows.num_rows() - room));
                    group.push(rows.slice(0, room));
                    room = 0;
                    break;
                }
                room -= rows.num_rows();
                group.push(rows);
                if room == 0 {
                    break;
                }
            }
            let count: usize = group.iter().map(RecordBatch::num_rows).sum();
            let jobs = self.jobs(&group)?;
            // A few rows are encoded sooner than threads are woken.
            let threads = if count < 4096 { 1 } else { cores() };
            self.columns = on_all_cores(jobs, threads, |mut job| {
                job.write().map_err(parquet_error)?;
                Ok(job.writers)
            })
            .await?;
            self.rows_in_group += count;
            let bytes: usize = self.columns.iter().flatten().map(ArrowColumnWriter::get_estimated_total_bytes).sum();
            if room == 0 || bytes >= ROW_GROUP_BYTES {
                self.end_group().await?;
            }
        }
        Ok(self)
    }

    fn jobs(&mut self, rows: &[RecordBatch]) -> Result<Vec<ColumnJob>> {
        if self.columns.is_empty() {
            let number = self.writer.flushed_row_groups().len();
            let mut writers = self.factory.create_column_writers(number).map_err(parquet_error)?.into_iter();
            self.columns = self.leaves.iter().map(|count| writers.by_ref().take(*count).collect()).collect();
        }
        Ok(std::mem::take(&mut self.columns)
            .into_iter()
            .enumerate()
            .map(|(i, writers)| ColumnJob {
                field: self.schema.fields()[i].clone(),
                writers,
                values: rows.iter().map(|rows| rows.column(i).clone()).collect(),
            })
            .collect())
    }

    async fn end_group(&mut self) -> Result<()> {
        let threads = if self.rows_in_group < 4096 { 1 } else { cores() };
        let columns = std::mem::take(&mut self.columns);
        let chunks: Vec<Vec<ArrowColumnChunk>> = on_all_cores(columns, threads, |writers| {
            writers.into_iter().map(|writer| writer.close().map_err(parquet_error)).collect()
        })
        .await?;
        let mut group = self.writer.next_row_group().map_err(parquet_error)?;
        for chunk in chunks.into_iter().flatten() {
            chunk.append_to_row_group(&mut group).map_err(parquet_error)?;
        }
        group.close().map_err(parquet_error)?;
        self.rows_in_group = 0;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Box<Self>> {
        if self.rows_in_group > 0 {
            self.end_group().await?;
        }
        self.writer.finish().map_err(parquet_error)?;
        Ok(self)
    }
}

/// A file of lines, of which slices are encoded and compressed side by side.
struct TextFile {
    layout: Arc<Layout>,
    /// Whether the file has its first lines.
    begun: bool,
    output: Vec<Vec<u8>>,
}

impl TextFile {
    async fn encode(mut self, rows: Vec<RecordBatch>) -> Result<Self> {
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        let threads = if count < 4096 { 1 } else { cores() };
        // Batches, cut where a slice ends.
        let slice = count.div_ceil(threads).max(1);
        let mut jobs: Vec<Vec<RecordBatch>> = vec![Vec::new()];
        let mut room = slice;
        for rows in rows {
            let mut start = 0;
            while start < rows.num_rows() {
                if room == 0 {
                    jobs.push(Vec::new());
                    room = slice;
                }
                let length = room.min(rows.num_rows() - start);
                if let Some(job) = jobs.last_mut() {
                    job.push(rows.slice(start, length));
                }
                start += length;
                room -= length;
            }
        }
        let layout = self.layout.clone();
        let begun = std::mem::replace(&mut self.begun, true);
        let jobs = jobs.into_iter().enumerate().map(|(i, rows)| (i == 0 && !begun, rows)).collect();
        self.output.extend(on_all_cores(jobs, threads, move |(first, rows)| layout.lines(first, &rows)).await?);
        Ok(self)
    }
}

impl Layout {
    /// The lines of some rows, compressed.
    fn lines(&self, first: bool, rows: &[RecordBatch]) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let compression = match &self.encoding {
            Encoding::Csv(compression) => {
                let mut writer = arrow::csv::WriterBuilder::new().with_header(first).build(&mut text);
                rows.iter().try_for_each(|rows| writer.write(rows))?;
                *compression
            }
            Encoding::Json(compression) => {
                let mut writer = arrow::json::WriterBuilder::new().build::<_, LineDelimited>(&mut text);
                rows.iter().try_for_each(|rows| writer.write(rows))?;
                writer.finish()?;
                *compression
            }
            Encoding::Parquet(_) => return Err(Error::bug("Parquet has no lines")),
        };
        let compressed = match compression {
            FileCompression::Gzip => {
                let mut gzip = GzEncoder::new(Vec::with_capacity(text.len() / 4), flate2::Compression::default());
                gzip.write_all(&text).and_then(|()| gzip.finish())
            }
            FileCompression::Zstd => zstd::encode_all(&*text, zstd::DEFAULT_COMPRESSION_LEVEL),
            FileCompression::None | FileCompression::Snappy => Ok(text),
        };
        compressed.map_err(|e| Error::bug("files sink: lines cannot be compressed").caused_by(e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        all_kinds, batch, context, failing_stream, hanging_stream, numbered, rows_of, stream_of,
    };
    use super::*;
    use arrow::array::{AsArray, Date32Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{Float64Type, Int64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use serde_json::json;
    use std::io::Read;
    use std::path::{Path as FsPath, PathBuf};

    fn settings(dir: &FsPath, more: serde_json::Value) -> FilesSink {
        let mut all = json!({"path": dir.join("out").to_str().unwrap(), "storage": {"fsync": false}});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn open(dir: &FsPath, rows: &RecordBatch, more: serde_json::Value) -> Box<dyn Sink> {
        settings(dir, more).open(context(rows.schema(), OutputMode::Append)).unwrap()
    }

    /// Files below a directory, hidden ones too, relative and sorted.
    fn files(dir: &FsPath) -> Vec<String> {
        fn walk(dir: &FsPath, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()) {
                if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
            }
        }
        let root = dir.join("out");
        let mut found = Vec::new();
        walk(&root, &mut found);
        let mut names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    fn read(path: PathBuf) -> RecordBatch {
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
        let schema = reader.schema().clone();
        let batches: Vec<_> = reader.build().unwrap().map(|b| b.unwrap()).collect();
        concat_batches(&schema, &batches).unwrap()
    }

    const FIRST: &str = "part-00000000000000000000-01234567";

    #[tokio::test]
    async fn parquet_is_read_back_with_all_types() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), all_kinds());
        for compression in ["zstd", "snappy", "none"] {
            let sink = open(dir.path(), &rows, json!({"compression": compression}));
            sink.check().await.unwrap();
            let written = sink.write(&batch(0), stream_of(vec![rows.clone(), rows.slice(1, 1)])).await.unwrap();
            assert_eq!(files(dir.path()), [format!("{FIRST}.parquet")]);
            let path = dir.path().join("out").join(format!("{FIRST}.parquet"));
            assert_eq!(written.rows, 4);
            assert_eq!(written.bytes, std::fs::metadata(&path).unwrap().len());
            let found = read(path);
            assert_eq!(found.num_rows(), 4);
            let type_of = |name: &str| found.schema().field_with_name(name).unwrap().data_type().clone();
            assert_eq!(type_of("at"), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
            assert_eq!(type_of("local"), DataType::Timestamp(TimeUnit::Microsecond, None));
            assert_eq!(type_of("d"), DataType::Decimal128(30, 6));
            assert_eq!(type_of("i8"), DataType::Int8);
            assert_eq!(type_of("s"), DataType::Utf8);
            for name in ["id", "b", "f64", "d", "small", "bin", "day", "at", "time", "list"] {
                let (expected, found) = (rows.column_by_name(name).unwrap(), found.column_by_name(name).unwrap());
                assert_eq!(expected.to_data(), found.slice(0, 3).to_data(), "{name}");
            }
            assert_eq!(found["s"].as_string::<i32>().value(0), "it's \"ünï\" \\ , = text");
            assert_eq!(found["nested"].as_struct().column(0).as_primitive::<Int64Type>().value(0), 1);
        }
    }

    #[tokio::test]
    async fn big_files_have_row_groups_and_all_rows_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let rows = numbered(0, 100_000);
        let sink = open(dir.path(), &rows, json!({"row_group_rows": 70_000}));
        let blocks: Vec<_> = (0..37).map(|i| numbered(i * 7_777, 7_777)).collect();
        sink.write(&batch(3), stream_of(blocks)).await.unwrap();
        let path = dir.path().join("out/part-00000000000000000003-01234567.parquet");
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap();
        let groups: Vec<_> = reader.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
        assert_eq!(groups, [70_000, 70_000, 70_000, 70_000, 37 * 7_777 - 280_000]);
        let found = read(path);
        let ids: Vec<i64> = found["id"].as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(ids, (0..37 * 7_777).collect::<Vec<_>>());
        assert_eq!(found["value"].as_primitive::<Float64Type>().value(200_001), 100_000.5);
    }

    #[tokio::test]
    async fn lines_are_whole_in_all_compressions() {
        let rows = rows_of([
            ("id", Arc::new(Int64Array::from(vec![Some(1), Some(2)])) as _),
            ("s", Arc::new(StringArray::from(vec![Some("a,\"b\"\n"), None])) as _),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![1_795_254_263_120_000, 0]).with_timezone("UTC")) as _),
        ]);
        let json = "{\"id\":1,\"s\":\"a,\\\"b\\\"\\n\",\"at\":\"2026-11-21T09:44:23.120Z\"}\n{\"id\":2,\"at\":\"1970-01-01T00:00:00Z\"}\n";
        let csv = "1,\"a,\"\"b\"\"\n\",2026-11-21T09:44:23.120Z\n2,,1970-01-01T00:00:00Z\n";
        for (format, header, two) in [("json", "", json), ("csv", "id,s,at\n", csv)] {
            for (compression, extension) in [("none", ""), ("gzip", ".gz"), ("zstd", ".zst")] {
                let dir = tempfile::tempdir().unwrap();
                let sink = open(dir.path(), &rows, json!({"format": format, "compression": compression}));
                // Enough rows for several slices and chunks.
                let blocks = vec![rows.clone(); 70_000];
                let written = sink.write(&batch(0), stream_of(blocks)).await.unwrap();
                let name = format!("{FIRST}.{format}{extension}");
                assert_eq!(files(dir.path()), std::slice::from_ref(&name));
                let packed = std::fs::read(dir.path().join("out").join(name)).unwrap();
                assert_eq!((written.rows, written.bytes), (140_000, packed.len() as u64));
                let mut text = String::new();
                match extension {
                    ".gz" => drop(flate2::read::MultiGzDecoder::new(&*packed).read_to_string(&mut text).unwrap()),
                    ".zst" => drop(zstd::Decoder::new(&*packed).unwrap().read_to_string(&mut text).unwrap()),
                    _ => text = String::from_utf8(packed).unwrap(),
                }
                assert_eq!(text, format!("{header}{}", two.repeat(70_000)));
            }
        }
    }

    #[tokio::test]
    async fn partitions_become_directories_as_in_hive() {
        let dir = tempfile::tempdir().unwrap();
        let rows = rows_of([
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5, 6])) as _),
            (
                "a b",
                Arc::new(StringArray::from(vec![Some("x"), Some("50%/ä:=\t"), None, Some(""), Some("x"), Some("x")]))
                    as _,
            ),
            ("day", Arc::new(Date32Array::from(vec![20_778, 20_778, 20_778, 20_778, 20_778, 0])) as _),
        ]);
        let sink = open(dir.path(), &rows, json!({"partition_by": ["day", "a b"]}));
        let written = sink.write(&batch(0), stream_of(vec![rows.clone(), rows.slice(0, 1)])).await.unwrap();
        let found = files(dir.path());
        assert_eq!(
            found,
            [
                format!("day=1970-01-01/a b=x/{FIRST}.parquet"),
                format!("day=2026-11-21/a b=50%25%2Fä%3A%3D%09/{FIRST}.parquet"),
                format!("day=2026-11-21/a b=__HIVE_DEFAULT_PARTITION__/{FIRST}.parquet"),
                format!("day=2026-11-21/a b=x/{FIRST}.parquet"),
            ]
        );
        let numbers: Vec<Vec<i64>> = found
            .iter()
            .map(|name| {
                let rows = read(dir.path().join("out").join(name));
                assert_eq!(rows.num_columns(), 1, "partition columns are not in the files");
                let mut numbers = rows["n"].as_primitive::<Int64Type>().values().to_vec();
                numbers.sort_unstable();
                numbers
            })
            .collect();
        assert_eq!(numbers, [vec![6], vec![2], vec![3, 4], vec![1, 1, 5]]);
        let sizes: u64 =
            found.iter().map(|name| std::fs::metadata(dir.path().join("out").join(name)).unwrap().len()).sum();
        assert_eq!(written.bytes, sizes);

        let few = open(dir.path(), &rows, json!({"partition_by": ["a b"], "max_partitions": 2}));
        let error = few.write(&batch(1), stream_of(vec![rows])).await.unwrap_err();
        assert!(error.to_string().contains("max_partitions"), "{error}");
        assert_eq!(files(dir.path()), found, "and nothing of the batch is left");
    }

    #[tokio::test]
    async fn a_repeated_batch_replaces_its_files_and_removes_stale_ones() {
        let dir = tempfile::tempdir().unwrap();
        let of = |days: &[i32], numbers: &[i64]| {
            rows_of([
                ("n", Arc::new(Int64Array::from(numbers.to_vec())) as _),
                ("day", Arc::new(Date32Array::from(days.to_vec())) as _),
            ])
        };
        let rows = of(&[0, 1, 2], &[1, 2, 3]);
        let sink = open(dir.path(), &rows, json!({"partition_by": ["day"]}));
        sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        sink.write(&batch(1), stream_of(vec![of(&[0], &[9])])).await.unwrap();
        // A first run does not look for files to remove; a repeated one does, and only for its own.
        let again = SinkBatch { again: true, ..batch(0) };
        sink.write(&again, stream_of(vec![of(&[0, 1], &[1, 2])])).await.unwrap();
        let second = "part-00000000000000000001-01234567";
        let left = [
            format!("day=1970-01-01/{FIRST}.parquet"),
            format!("day=1970-01-01/{second}.parquet"),
            format!("day=1970-01-02/{FIRST}.parquet"),
        ];
        assert_eq!(files(dir.path()), left);
        sink.write(&again, stream_of(vec![])).await.unwrap();
        assert_eq!(files(dir.path()), [left[1].clone()], "an empty batch writes nothing");
        // Another query in the same directory.
        let mut other = context(rows.schema(), OutputMode::Append);
        other.query_id = "another-query".to_owned();
        let other = settings(dir.path(), json!({"partition_by": ["day"]})).open(other).unwrap();
        other.write(&again, stream_of(vec![of(&[0], &[5])])).await.unwrap();
        sink.write(&again, stream_of(vec![])).await.unwrap();
        assert_eq!(files(dir.path()).len(), 2);
    }

    #[tokio::test]
    async fn a_batch_that_fails_or_is_given_up_shows_no_file() {
        let rows = numbered(0, 70_000);
        for more in
            [json!({}), json!({"partition_by": ["value"], "max_partitions": 1_000_000}), json!({"format": "json"})]
        {
            let dir = tempfile::tempdir().unwrap();
            let rows = if more["partition_by"].is_array() { numbered(0, 100) } else { rows.clone() };
            let sink = open(dir.path(), &rows, more);
            // So many that parts are in the storage already.
            let blocks = vec![rows; 40];
            let error = sink.write(&batch(0), failing_stream(blocks.clone())).await.unwrap_err();
            assert!(error.to_string().contains("the source went away"), "{error}");
            let visible = || files(dir.path()).into_iter().find(|name| !name.contains("/.") && !name.starts_with('.'));
            assert_eq!(visible(), None);
            // What was at work on a thread, out of sight, removes its file when it is done.
            let gone = async {
                while !files(dir.path()).is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            let gone = tokio::time::timeout(std::time::Duration::from_secs(60), gone).await;
            assert!(gone.is_ok(), "{:?}", files(dir.path()));
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(300), async {
                sink.write(&batch(0), hanging_stream(blocks.clone())).await
            });
            assert!(waiting.await.is_err());
            assert_eq!(visible(), None);
        }
    }

    #[tokio::test]
    async fn settings_that_cannot_work_are_refused() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), all_kinds());
        for (more, part) in [
            (json!({"partition_by": ["nothing"]}), "does not give"),
            (json!({"partition_by": ["nested"]}), "cannot be in partition_by"),
            (json!({"partition_by": ["id", "id"]}), "twice"),
            (json!({"format": "csv"}), "`nested`"),
            (json!({"compression": "gzip"}), "not gzip"),
            (json!({"format": "json", "compression": "snappy"}), "not snappy"),
            (json!({"row_group_rows": 0}), "at least 1"),
            (json!({"path": ""}), "is empty"),
        ] {
            let Err(error) = settings(dir.path(), more).open(context(rows.schema(), OutputMode::Append)) else {
                panic!("{part}")
            };
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{error}");
        }
        for mode in [OutputMode::Update, OutputMode::Complete] {
            let Err(error) = settings(dir.path(), json!({})).open(context(rows.schema(), mode)) else { panic!() };
            assert!(error.to_string().contains("append"), "{error}");
        }
        // A directory that cannot be one.
        std::fs::write(dir.path().join("out"), "a file").unwrap();
        let sink = open(dir.path(), &rows, json!({}));
        assert_eq!(sink.check().await.unwrap_err().class(), class::CONFIG_INVALID);
        assert_eq!(sink.write(&batch(0), stream_of(vec![rows])).await.unwrap_err().class(), class::CONFIG_INVALID);
    }
}
