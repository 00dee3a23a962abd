//! The `delta` sink: a table of Delta Lake, on a local disk or in S3.
//!
//! A batch is one commit of the table. It carries Delta's application transaction identifier (`txn`), the identity of the query and the
//! number of the batch, as Spark's own Delta sink writes it: a batch that is written again finds its number in the table and has no
//! effect. The protocol is the Delta kernel's (<https://github.com/delta-io/delta-kernel-rs>); the epoch of the writer is a second
//! identifier, so that a process that was left behind is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{cast_with_options, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use delta_kernel::committer::FileSystemCommitter;
use delta_kernel::engine::arrow_conversion::scalar::extract_primitive_scalar;
use delta_kernel::engine::arrow_conversion::{TryFromArrow, TryIntoArrow};
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::expressions::Scalar;
use delta_kernel::schema::StructType;
use delta_kernel::snapshot::{Snapshot, SnapshotRef};
use delta_kernel::transaction::create_table::create_table;
use delta_kernel::transaction::data_layout::DataLayout;
use delta_kernel::transaction::{CommitResult, Transaction, UpdateTableOperation, WriteState};
use delta_kernel::{Engine, KernelError};
use delta_kernel_default_engine::executor::tokio::TokioMultiThreadExecutor;
use delta_kernel_default_engine::{DefaultEngine, DefaultEngineBuilder};
use futures::StreamExt;
use perennial_core::crash::CrashPoint;
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use url::Url;

use super::table::{self, Newest, list, may_write};
use crate::storage::{self, Storage, StorageOptions};

/// Writes rows to a Delta table, exactly once: one commit of the table per batch.
///
/// `output_mode: append` adds files, `complete` replaces what the table holds, in one commit. Other writers may use the table at the same
/// time; a commit that they were faster with is tried again on top of theirs. STRUCT, ARRAY and MAP stay what they are; TIME is
/// not a type of Delta. Files that a failed batch left behind belong to no version of the table, and VACUUM removes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaSink {
    /// Directory of the table, `file://` URL or `s3://bucket/prefix`.
    pub path: String,
    /// Columns that a table which the sink creates is partitioned by. An existing table keeps its own. Default: none.
    #[serde(default)]
    pub partition_by: Vec<String>,
    /// Whether a missing table is created. Default: true.
    #[serde(default = "table::yes")]
    pub create_table: bool,
    /// After how many versions the table gets a Delta checkpoint, from which readers start; 0: never. Default: 10, as in Delta.
    #[serde(default = "checkpoint_interval")]
    pub checkpoint_interval: u64,
    /// Most partition values that one batch may have: each is a file. Default: 500.
    #[serde(default = "max_partitions")]
    pub max_partitions: usize,
    /// How the storage is reached.
    #[serde(default)]
    pub storage: StorageOptions,
}

fn checkpoint_interval() -> u64 {
    10
}

fn max_partitions() -> usize {
    500
}

/// How many bytes of rows, as they are in memory, make a data file.
const FILE_BYTES: usize = 256 << 20;

/// How often a commit is tried when others commit at the same time.
const ATTEMPTS: usize = 50;

const ENGINE: &str = concat!("perennial/", env!("CARGO_PKG_VERSION"));

/// The table's root inside of a store, which is rooted there itself. By the scheme the kernel knows whether lists come in order.
fn root(storage: &Storage) -> &'static str {
    if storage.local.is_some() { "file:///" } else { "memory:///" }
}

impl SinkFactory for DeltaSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("delta sink: {what}"));
        if context.output_mode == OutputMode::Update {
            return Err(wrong(
                "changing single rows of a table is not supported: use `output_mode: append` (with a watermark, final rows only) or \
                 `complete`"
                    .to_owned(),
            ));
        }
        if self.path.is_empty() {
            return Err(wrong("`path` is empty".to_owned()));
        }
        let names: Vec<&str> = context.schema.fields().iter().map(|field| field.name().as_str()).collect();
        if let Some(unknown) = self.partition_by.iter().find(|name| !names.contains(&name.as_str())) {
            let all = names.join(", ");
            return Err(wrong(format!(
                "partition_by names `{unknown}`, which the query does not give; it gives {all}"
            )));
        }
        let fields = context.schema.fields().iter().map(|field| delta_field(field)).collect::<Result<Vec<_>>>()?;
        let target = Target {
            settings: self.clone(),
            schema: Arc::new(Schema::new(fields)),
            mode: context.output_mode,
            env: context.env,
            application: format!("perennial/{}", context.query_id),
            open: Mutex::new(None),
        };
        Ok(Box::new(Delta(Arc::new(target))))
    }
}

/// A column of the query as Delta has it: microseconds, UTC, no views. `ConfigInvalid` where it has no such type.
fn delta_field(field: &Field) -> Result<Field> {
    let data_type = delta_type(field.data_type()).map_err(|data_type| {
        Error::new(
            class::CONFIG_INVALID,
            format!(
                "delta sink: column `{}` has the type {data_type}, which Delta does not have; cast it in the query",
                field.name()
            ),
        )
    })?;
    Ok(Field::new(field.name(), data_type, true))
}

fn delta_type(data_type: &DataType) -> Result<DataType, DataType> {
    let inner = |field: &FieldRef| -> Result<FieldRef, DataType> {
        Ok(Arc::new(Field::new(field.name(), delta_type(field.data_type())?, field.is_nullable())))
    };
    Ok(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Decimal128(..) => data_type.clone(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect::<Result<_, _>>()?),
        DataType::List(item) | DataType::LargeList(item) => DataType::List(inner(item)?),
        DataType::Map(entries, sorted) => DataType::Map(inner(entries)?, *sorted),
        other => return Err(other.clone()),
    })
}

struct Delta(Arc<Target>);

#[async_trait]
impl Sink for Delta {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        let target = self.0.clone();
        blocking(move || target.check()).await
    }

    async fn write(&self, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let (sender, receiver) = mpsc::channel(4);
        let (target, batch) = (self.0.clone(), batch.clone());
        let writer = tokio::spawn(blocking(move || target.write(&batch, receiver)));
        let outcome = loop {
            match rows.next().await {
                Some(Ok(rows)) => {
                    if sender.send(Some(rows)).await.is_err() {
                        // A closed channel: the writer failed, and says how below.
                        break Ok(());
                    }
                }
                Some(Err(error)) => break Err(error),
                None => {
                    let _ = sender.send(None).await;
                    break Ok(());
                }
            }
        };
        drop(sender);
        let written = writer.await.map_err(thread_died)?;
        outcome.and(written)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    threads()?.spawn_blocking(work).await.map_err(thread_died)?
}

fn thread_died(error: tokio::task::JoinError) -> Error {
    Error::bug("delta sink: the writing thread died").caused_by(error)
}

type KernelEngine = DefaultEngine<TokioMultiThreadExecutor>;

/// Where the kernel and its I/O run. The kernel waits for its I/O on the calling thread, which not every runtime allows; so it has threads
/// of its own, for all sinks together and for as long as the process lives: a runtime cannot be ended where sinks are dropped.
fn threads() -> Result<&'static Handle> {
    static THREADS: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let make =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("delta").enable_all().build();
    match THREADS.get_or_init(make) {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(Error::new(class::STORAGE_UNAVAILABLE, format!("delta sink: no threads: {error}"))),
    }
}

fn kernel(storage: Storage) -> Result<KernelEngine> {
    let executor = TokioMultiThreadExecutor::new(threads()?.clone());
    Ok(DefaultEngineBuilder::new(storage.store).with_task_executor(Arc::new(executor)).build())
}

struct Target {
    settings: DeltaSink,
    /// The columns of the query, with Delta's types.
    schema: SchemaRef,
    mode: OutputMode,
    env: Env,
    /// The application of Delta's transaction identifiers.
    application: String,
    open: Mutex<Option<Open>>,
}

/// The table as it was seen last.
#[derive(Clone)]
struct Open {
    engine: Arc<KernelEngine>,
    snapshot: SnapshotRef,
}

/// How the query's columns go into the table.
struct Mapping {
    /// Columns of the data files: the place in the query's rows, and the table's field.
    data: Vec<(Option<usize>, FieldRef)>,
    schema: SchemaRef,
    /// The columns that the table is partitioned by: name, and place in the query's rows.
    partitions: Vec<(String, usize)>,
}

impl Target {
    /// The kernel over the table's storage, and the table's root in it.
    fn engine(&self) -> Result<(Arc<KernelEngine>, &'static str)> {
        let storage = storage::open(&self.settings.path, &self.settings.storage)?;
        let root = root(&storage);
        Ok((Arc::new(kernel(storage)?), root))
    }

    /// The table, or nothing where there is none.
    fn load(&self, engine: &KernelEngine, root: &str) -> Result<Option<SnapshotRef>> {
        let log = parse(root)?.join("_delta_log/").map_err(|error| Error::bug(error.to_string()))?;
        match engine.storage_handler().list_from(&log).map_err(fault)?.next() {
            None | Some(Err(KernelError::FileNotFound(_))) => Ok(None),
            Some(Err(error)) => Err(fault(error)),
            Some(Ok(_)) => Snapshot::builder_for(root).build(engine).map(Some).map_err(fault),
        }
    }

    fn missing(&self) -> Error {
        Error::new(
            class::TARGET_MISSING,
            format!("there is no Delta table in {}: create it, or set create_table: true", self.settings.path),
        )
    }

    fn check(&self) -> Result<()> {
        let (engine, root) = self.engine()?;
        match self.load(&engine, root).at(|| self.settings.path.clone())? {
            Some(snapshot) => self.mapping(&engine, &snapshot).map(drop),
            None if self.settings.create_table => self.kernel_schema().map(drop),
            None => Err(self.missing()),
        }
    }

    fn kernel_schema(&self) -> Result<Arc<StructType>> {
        let schema = StructType::try_from_arrow(self.schema.as_ref());
        Ok(Arc::new(schema.map_err(|error| Error::new(class::CONFIG_INVALID, format!("delta sink: {error}")))?))
    }

    fn open(&self) -> Result<Open> {
        let (engine, root) = self.engine()?;
        if let Some(snapshot) = self.load(&engine, root)? {
            return Ok(Open { engine, snapshot });
        }
        if !self.settings.create_table {
            return Err(self.missing());
        }
        let mut builder = create_table(root, self.kernel_schema()?, ENGINE, false);
        if !self.settings.partition_by.is_empty() {
            builder = builder.with_data_layout(DataLayout::partitioned(self.settings.partition_by.iter()));
        }
        let created = builder
            .build(engine.as_ref(), Box::new(FileSystemCommitter::new()))
            .and_then(|transaction| transaction.commit(engine.as_ref()));
        // Whoever else created it in the meantime: that table is taken.
        match (self.load(&engine, root)?, created) {
            (Some(snapshot), _) => Ok(Open { engine, snapshot }),
            (None, Err(error)) => Err(fault(error)),
            (None, Ok(_)) => Err(self.missing()),
        }
    }

    fn mapping(&self, engine: &KernelEngine, snapshot: &SnapshotRef) -> Result<Mapping> {
        let partitioned_by = self.transaction(engine, snapshot)?.logical_partition_columns().to_vec();
        let table: Schema = snapshot.schema().as_ref().try_into_arrow()?;
        let place = |name: &str| self.schema.fields().iter().position(|field| field.name().eq_ignore_ascii_case(name));
        let mut differences = Vec::new();
        let (mut data, mut partitions) = (Vec::new(), Vec::new());
        for field in table.fields() {
            let index = place(field.name());
            match index {
                Some(index) if !fits(self.schema.field(index).data_type(), field.data_type()) => {
                    differences.push(format!(
                        "its column `{}` is {}, the query gives {}",
                        field.name(),
                        field.data_type(),
                        self.schema.field(index).data_type()
                    ))
                }
                None if !field.is_nullable() || partitioned_by.contains(field.name()) => differences
                    .push(format!("its column `{}` must have a value and the query does not give it", field.name())),
                _ => {}
            }
            match (partitioned_by.contains(field.name()), index) {
                (true, Some(index)) => partitions.push((field.name().clone(), index)),
                _ => data.push((index, field.clone())),
            }
        }
        for field in self.schema.fields() {
            if !table.fields().iter().any(|found| found.name().eq_ignore_ascii_case(field.name())) {
                differences.push(format!("it has no column `{}` ({})", field.name(), field.data_type()));
            }
        }
        if !differences.is_empty() {
            return Err(Error::new(
                class::TARGET_SCHEMA,
                format!(
                    "the Delta table {} does not fit the query: {}; change the query (cast, AS) or the table",
                    self.settings.path,
                    differences.join("; ")
                ),
            ));
        }
        if !self.settings.partition_by.is_empty() && self.settings.partition_by != partitioned_by {
            tracing::warn!(table = %self.settings.path, "the table is partitioned by {}; `partition_by` is for a table that the sink creates", list(&partitioned_by));
        }
        let schema = Arc::new(Schema::new(data.iter().map(|(_, field)| field.clone()).collect::<Vec<_>>()));
        Ok(Mapping { data, schema, partitions })
    }

    fn transaction(&self, engine: &KernelEngine, snapshot: &SnapshotRef) -> Result<Transaction> {
        let operation = snapshot.clone().update_table(UpdateTableOperation::Write, ENGINE, true);
        operation.build(engine, Box::new(FileSystemCommitter::new())).map_err(fault)
    }

    fn write(&self, batch: &SinkBatch, mut rows: mpsc::Receiver<Option<RecordBatch>>) -> Result<Written> {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Put back only after success: after an error the next attempt looks at the table anew.
        let mut open = match guard.take() {
            Some(open) => Open { snapshot: refresh(&open.engine, &open.snapshot)?, ..open },
            None => self.open().at(|| self.settings.path.clone())?,
        };
        let mut written = Written { duplicate: self.has(&open, batch)?, ..Written::default() };
        let mapping = self.mapping(&open.engine, &open.snapshot)?;
        let mut files = Files {
            engine: open.engine.clone(),
            state: self.transaction(&open.engine, &open.snapshot)?.write_state().map_err(fault)?,
            max_partitions: self.settings.max_partitions,
            gathered: HashMap::new(),
            bytes: 0,
            added: Vec::new(),
        };
        loop {
            match rows.blocking_recv() {
                Some(Some(rows)) => {
                    written.rows += rows.num_rows() as u64;
                    if !written.duplicate && rows.num_rows() > 0 {
                        files.add(&mapping, &rows)?;
                    }
                }
                Some(None) => break,
                None => return Err(Error::new(class::CONNECTION_LOST, "delta sink: the batch was given up")),
            }
        }
        if !written.duplicate {
            files.flush()?;
            if written.rows > 0 || self.mode == OutputMode::Complete {
                self.env.crash.pass_blocking(CrashPoint::SinkStaged)?;
                written.duplicate = !self.commit(&mut open, batch, &files.added)?;
                self.env.crash.pass_blocking(CrashPoint::SinkPublished)?;
                written.bytes = files.added.iter().map(file_bytes).sum();
            }
        } else {
            tracing::info!(batch = batch.id, table = %self.settings.path, "the batch is in the table already; it is left out");
        }
        *guard = Some(open);
        Ok(written)
    }

    /// Whether the table has the batch. `Fenced` when a later run of the query has written to it.
    fn has(&self, open: &Open, batch: &SinkBatch) -> Result<bool> {
        let version =
            |application: &str| open.snapshot.get_app_id_version(application, open.engine.as_ref()).map_err(fault);
        let epoch = version(&self.epoch_application())?;
        may_write(&self.settings.path, batch, Newest { batch: None, epoch })?;
        Ok(version(&self.application)?.is_some_and(|newest| newest >= batch.id as i64))
    }

    fn epoch_application(&self) -> String {
        format!("{}/epoch", self.application)
    }

    /// Commits the files, on top of what others committed in the meantime. False where another attempt at this batch was faster.
    fn commit(&self, open: &mut Open, batch: &SinkBatch, added: &[RecordBatch]) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            let engine = open.engine.clone();
            let mut transaction = self
                .transaction(&engine, &open.snapshot)?
                .with_transaction_id(self.application.clone(), batch.id as i64)
                .with_transaction_id(self.epoch_application(), batch.epoch as i64);
            for added in added {
                transaction.add_files(Box::new(ArrowEngineData::new(added.clone())));
            }
            if self.mode == OutputMode::Complete {
                let scan = open.snapshot.clone().scan_builder().build().map_err(fault)?;
                for found in scan.scan_metadata(engine.as_ref()).map_err(fault)? {
                    transaction.remove_files(found.map_err(fault)?.scan_files);
                }
            }
            match transaction.commit(engine.as_ref()).map_err(fault)? {
                CommitResult::Committed(committed) => {
                    open.snapshot = match committed.post_commit_snapshot() {
                        Some(snapshot) => snapshot.clone(),
                        None => refresh(&engine, &open.snapshot)?,
                    };
                    self.checkpoint(open);
                    return Ok(true);
                }
                CommitResult::Conflicted(_) => {
                    open.snapshot = refresh(&engine, &open.snapshot)?;
                    if self.has(open, batch)? {
                        return Ok(false);
                    }
                    // Columns may have changed with it.
                    self.mapping(&engine, &open.snapshot)?;
                }
                CommitResult::Retryable(failed) => return Err(fault(failed.error)),
            }
        }
        Err(Error::new(
            class::SERVER_UNAVAILABLE,
            format!(
                "{}: others commit to the table all the time; {ATTEMPTS} attempts were too slow",
                self.settings.path
            ),
        ))
    }

    /// Lets readers start at this version. The batch is there without it.
    fn checkpoint(&self, open: &mut Open) {
        let interval = self.settings.checkpoint_interval;
        if interval == 0 || open.snapshot.version() == 0 || !open.snapshot.version().is_multiple_of(interval) {
            return;
        }
        match open.snapshot.checkpoint(open.engine.as_ref(), None) {
            Ok((_, snapshot)) => open.snapshot = snapshot,
            Err(error) => {
                tracing::warn!(table = %self.settings.path, %error, "the table got no checkpoint; readers read more of its log");
            }
        }
    }
}

/// Rows on their way into data files.
struct Files {
    engine: Arc<KernelEngine>,
    state: Arc<WriteState>,
    max_partitions: usize,
    /// By their partition values.
    gathered: HashMap<Vec<u8>, Part>,
    bytes: usize,
    /// The files' entries for the commit.
    added: Vec<RecordBatch>,
}

/// The rows of a partition.
#[derive(Default)]
struct Part {
    values: HashMap<String, Scalar>,
    rows: Vec<RecordBatch>,
}

impl Files {
    fn add(&mut self, mapping: &Mapping, rows: &RecordBatch) -> Result<()> {
        let data = mapping.data.iter().map(|(index, field)| match index {
            Some(index) => convert(rows.column(*index), field.data_type()),
            None => Ok(new_null_array(field.data_type(), rows.num_rows())),
        });
        let data = RecordBatch::try_new(mapping.schema.clone(), data.collect::<Result<_>>()?)?;
        self.bytes += data.get_array_memory_size();
        if mapping.partitions.is_empty() {
            self.gathered.entry(Vec::new()).or_default().rows.push(data);
        } else {
            self.partition(mapping, rows, &data)?;
        }
        if self.bytes >= FILE_BYTES { self.flush() } else { Ok(()) }
    }

    fn partition(&mut self, mapping: &Mapping, rows: &RecordBatch, data: &RecordBatch) -> Result<()> {
        let types = mapping.partitions.iter().map(|(_, index)| delta_type(rows.column(*index).data_type()));
        let columns = mapping.partitions.iter().zip(types).map(|((_, index), data_type)| {
            let data_type = data_type.map_err(|other| Error::bug(format!("a partition of the type {other}")))?;
            convert(rows.column(*index), &data_type)
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let sorts = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let keys = RowConverter::new(sorts)?.convert_columns(&columns)?;
        let mut groups: HashMap<&[u8], Vec<u32>> = HashMap::new();
        for (row, key) in keys.iter().enumerate() {
            groups.entry(key.data()).or_default().push(row as u32);
        }
        for (key, members) in groups {
            if !self.gathered.contains_key(key) {
                if self.gathered.len() == self.max_partitions {
                    return Err(Error::new(
                        class::CONFIG_INVALID,
                        format!(
                            "delta sink: a batch has more than {} partition values, each of which is a file: partition by something coarser, \
                             or raise max_partitions",
                            self.max_partitions
                        ),
                    ));
                }
                let value = |((name, _), column): (&(String, usize), &ArrayRef)| {
                    Ok((name.clone(), extract_primitive_scalar(column.as_ref(), members[0] as usize).map_err(fault)?))
                };
                let values = mapping.partitions.iter().zip(&columns).map(value).collect::<Result<_>>()?;
                self.gathered.insert(key.to_vec(), Part { values, rows: Vec::new() });
            }
            if let Some(part) = self.gathered.get_mut(key) {
                part.rows.push(take_record_batch(data, &UInt32Array::from(members))?);
            }
        }
        Ok(())
    }

    /// A file of each partition's rows.
    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        for Part { values, rows } in self.gathered.drain().map(|(_, part)| part) {
            let Some(first) = rows.first() else { continue };
            let rows = concat_batches(&first.schema(), &rows)?;
            let mut context = self.state.write_context_builder();
            if !values.is_empty() {
                context = context.with_partition_values(values);
            }
            let (engine, context) = (self.engine.clone(), context.build().map_err(fault)?);
            let write = async move { engine.write_parquet(&ArrowEngineData::new(rows), &context).await };
            let added = threads()?.block_on(write).map_err(fault)?;
            let added = ArrowEngineData::try_from_engine_data(added).map_err(fault)?;
            self.added.push(added.record_batch().clone());
        }
        Ok(())
    }
}

/// The bytes of the files of an entry.
fn file_bytes(added: &RecordBatch) -> u64 {
    use arrow::array::AsArray;
    let sizes = added.column_by_name("size").and_then(|sizes| sizes.as_primitive_opt::<arrow::datatypes::Int64Type>());
    sizes.and_then(arrow::compute::sum).unwrap_or_default() as u64
}

/// Whether values of the query's type can be written to a column of the table without a loss.
fn fits(query: &DataType, table: &DataType) -> bool {
    use DataType::{Decimal128, Float32, Float64, Int8, Int16, Int32, Int64, List, Map, Struct};
    let width = |data_type: &DataType| [Int8, Int16, Int32, Int64].iter().position(|other| other == data_type);
    match (query, table) {
        (Struct(query), Struct(table)) => {
            query.len() == table.len()
                && query.iter().zip(table).all(|(q, t)| q.name() == t.name() && fits(q.data_type(), t.data_type()))
        }
        (List(query), List(table)) | (Map(query, _), Map(table, _)) => match (query.data_type(), table.data_type()) {
            // Names of a map's entries are not Delta's business.
            (Struct(query), Struct(table)) if matches!(table.len(), 2) => {
                query.iter().zip(table).all(|(q, t)| fits(q.data_type(), t.data_type()))
            }
            (query, table) => fits(query, table),
        },
        (Float32, Float64) => true,
        (Decimal128(p, s), Decimal128(precision, scale)) => {
            s <= scale && i16::from(*p) - i16::from(*s) <= i16::from(*precision) - i16::from(*scale)
        }
        (query, table) => query == table || matches!((width(query), width(table)), (Some(q), Some(t)) if q <= t),
    }
}

fn convert(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if column.data_type() == data_type {
        return Ok(column.clone());
    }
    let exact = arrow::compute::CastOptions { safe: false, ..Default::default() };
    Ok(cast_with_options(column, data_type, &exact)?)
}

fn refresh(engine: &KernelEngine, snapshot: &SnapshotRef) -> Result<SnapshotRef> {
    Snapshot::builder_from(snapshot.clone()).build(engine).map_err(fault)
}

fn parse(url: &str) -> Result<Url> {
    Url::parse(url).map_err(|error| Error::bug(format!("{url}: {error}")))
}

/// What went wrong in the kernel: where the storage is at fault, its own error.
fn fault(error: KernelError) -> Error {
    match error {
        KernelError::Backtraced { source, .. } => fault(*source),
        KernelError::ObjectStore(error) => error.into(),
        KernelError::Arrow(error) => error.into(),
        KernelError::IOError(error) => object_store::Error::Generic { store: "delta", source: Box::new(error) }.into(),
        KernelError::FileNotFound(file) => Error::new(
            class::STORAGE_NOT_FOUND,
            format!(
                "{file}, which the table's log names, is not there: was it removed by a VACUUM, or the table deleted?"
            ),
        ),
        error => {
            Error::new(class::SINK_REJECTED, format!("the Delta table cannot be written: {error}")).caused_by(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::Int64Type;
    use perennial_core::error::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::sinks::testing::{all_kinds, batch, context, failing_stream, numbered, rows_of, stream_of};

    fn open(path: &Path, rows: &RecordBatch, mode: OutputMode, more: serde_json::Value) -> Result<Box<dyn Sink>> {
        let mut all = json!({"path": path});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<DeltaSink>(all).unwrap().open(context(rows.schema(), mode))
    }

    fn append(path: &Path, rows: &RecordBatch) -> Box<dyn Sink> {
        open(path, rows, OutputMode::Append, json!({})).unwrap()
    }

    /// The table as a reader sees it.
    fn read(path: &Path) -> RecordBatch {
        let path = path.to_owned();
        std::thread::spawn(move || read_here(&path)).join().unwrap()
    }

    fn read_here(path: &Path) -> RecordBatch {
        let storage = storage::open(&path.display().to_string(), &StorageOptions::default()).unwrap();
        let root = root(&storage);
        let engine = Arc::new(kernel(storage).unwrap());
        let snapshot = Snapshot::builder_for(root).build(engine.as_ref()).unwrap();
        let schema: Schema = snapshot.schema().as_ref().try_into_arrow().unwrap();
        let scan = snapshot.scan_builder().build().unwrap();
        let found: Vec<RecordBatch> = scan
            .execute(engine)
            .unwrap()
            .map(|data| ArrowEngineData::try_from_engine_data(data.unwrap()).unwrap().record_batch().clone())
            .collect();
        concat_batches(found.first().map_or(&Arc::new(schema), |first| first.schema_ref()), &found).unwrap()
    }

    fn ids(path: &Path) -> Vec<i64> {
        let mut ids = read(path).column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec();
        ids.sort_unstable();
        ids
    }

    fn log(path: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(path.join("_delta_log"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_batch_is_one_commit_and_a_repeated_one_has_no_effect() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("table");
        let rows = numbered(0, 1000);
        let sink = append(path, &rows);
        sink.check().await.unwrap();
        let written = sink.write(&batch(0), stream_of(vec![rows.slice(0, 400), rows.slice(400, 600)])).await.unwrap();
        assert_eq!((written.rows, written.duplicate, written.bytes > 0), (1000, false, true));
        assert_eq!(ids(path), (0..1000).collect::<Vec<_>>());
        // Repeated by the same process, and by one that was started anew.
        for sink in [sink, append(path, &rows)] {
            let again = SinkBatch { again: true, ..batch(0) };
            let repeated = sink.write(&again, stream_of(vec![rows.clone()])).await.unwrap();
            assert_eq!((repeated.rows, repeated.bytes, repeated.duplicate), (1000, 0, true));
        }
        // A failed batch leaves nothing that counts; an empty one makes no version.
        let sink = append(path, &rows);
        assert!(sink.write(&batch(1), failing_stream(vec![numbered(5000, 10)])).await.is_err());
        assert_eq!(sink.write(&batch(1), stream_of(vec![rows.slice(0, 0)])).await.unwrap(), Written::default());
        sink.write(&batch(2), stream_of(vec![numbered(1000, 10)])).await.unwrap();
        assert_eq!(ids(path), (0..1010).collect::<Vec<_>>());
        assert_eq!(log(path).len(), 3, "the table was created, and two batches were written: {:?}", log(path));
    }

    #[tokio::test]
    async fn writers_at_the_same_time_follow_each_other_and_a_later_epoch_fences() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("table");
        let rows = numbered(0, 10);
        let other = |name: &str| {
            let settings: DeltaSink = serde_json::from_value(json!({"path": path})).unwrap();
            settings.open(SinkContext { query_id: name.into(), ..context(rows.schema(), OutputMode::Append) }).unwrap()
        };
        append(path, &rows).write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        let sinks: Vec<_> = (0..4).map(|n| other(&format!("query-{n}"))).collect();
        let writes = sinks.iter().enumerate().map(|(n, sink)| async move {
            for id in 0..5 {
                let rows = numbered(100 + (n as i64) * 100 + id as i64 * 10, 10);
                assert!(!sink.write(&batch(id), stream_of(vec![rows])).await.unwrap().duplicate);
            }
        });
        futures::future::join_all(writes).await;
        assert_eq!(ids(path).len(), 10 + 4 * 50);
        // Readers have a checkpoint to start at.
        assert!(
            log(path).iter().any(|name| name.contains(".checkpoint.") && name.starts_with("00000000000000000020")),
            "{:?}",
            log(path)
        );

        // Two processes of one query: both have the batch ready, one of them commits it.
        let (one, two) = (other("query-0"), other("query-0"));
        let (left, right) = (numbered(900, 10), numbered(900, 10));
        let (id, later) = (batch(5), SinkBatch { epoch: 2, ..batch(5) });
        let written = [one.write(&id, stream_of(vec![left])), two.write(&later, stream_of(vec![right]))];
        let written = futures::future::join_all(written).await;
        assert_eq!(ids(path).iter().filter(|id| **id >= 900).count(), 10, "{written:?}");
        two.write(&SinkBatch { epoch: 2, ..batch(6) }, stream_of(vec![numbered(950, 1)])).await.unwrap();
        let error = one.write(&batch(6), stream_of(vec![numbered(950, 1)])).await.unwrap_err();
        assert_eq!((error.class(), error.kind()), (class::FENCED, ErrorKind::Fenced), "{error}");
    }

    #[tokio::test]
    async fn partitions_are_directories_and_complete_replaces_the_table() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("table");
        let rows = rows_of([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef),
            ("site", Arc::new(StringArray::from(vec![Some("north"), Some("a b/c"), None, Some("north")]))),
        ]);
        let by = json!({"partition_by": ["site"]});
        let sink = open(path, &rows, OutputMode::Append, by.clone()).unwrap();
        sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        assert!(path.join("site=north").is_dir());
        let found = read(path);
        assert_eq!((ids(path), found.column_by_name("site").unwrap().null_count()), (vec![1, 2, 3, 4], 1));

        let few = json!({"partition_by": ["site"], "max_partitions": 2});
        let sink = open(path, &rows, OutputMode::Append, few).unwrap();
        let error = sink.write(&batch(1), stream_of(vec![rows.clone()])).await.unwrap_err();
        assert!(error.to_string().contains("more than 2 partition values"), "{error}");

        let sink = open(path, &rows, OutputMode::Complete, by).unwrap();
        sink.write(&batch(1), stream_of(vec![rows.slice(1, 2)])).await.unwrap();
        assert_eq!(ids(path), [2, 3]);
        sink.write(&batch(2), stream_of(vec![rows.slice(0, 0)])).await.unwrap();
        assert_eq!(ids(path), [0i64; 0]);
    }

    #[tokio::test]
    async fn every_kind_of_value_arrives() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("table");
        let rows = all_kinds();
        let error = open(path, &rows, OutputMode::Append, json!({})).err().unwrap();
        assert!(error.to_string().contains("column `time`"), "{error}");
        let time = rows.schema().index_of("time").unwrap();
        let rest: Vec<usize> = (0..rows.num_columns()).filter(|index| *index != time).collect();
        let rows = rows.project(&rest).unwrap();
        append(path, &rows).write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        let found = read(path);
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            let found = found.column_by_name(field.name()).unwrap();
            assert_eq!(&convert(column, found.data_type()).unwrap(), found, "{}", field.name());
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("table");
        let rows = numbered(0, 10);
        let refused = |mode, more| open(path, &rows, mode, more).err().unwrap().to_string();
        assert!(refused(OutputMode::Update, json!({})).contains("output_mode: append"));
        assert!(refused(OutputMode::Append, json!({"partition_by": ["day"]})).contains("it gives id, value"));
        let missing = open(path, &rows, OutputMode::Append, json!({"create_table": false})).unwrap();
        assert_eq!(missing.check().await.unwrap_err().class(), class::TARGET_MISSING);
        append(path, &rows).write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
        let other = rows_of([
            ("id", Arc::new(StringArray::from(vec!["x"])) as ArrayRef),
            ("more", Arc::new(Int64Array::from(vec![1]))),
        ]);
        let error = append(path, &other).check().await.unwrap_err();
        assert_eq!(error.class(), class::TARGET_SCHEMA);
        for difference in ["its column `id` is Int64, the query gives Utf8", "it has no column `more`"] {
            assert!(error.to_string().contains(difference), "{error}");
        }
        // Columns in another order, and one that the query does not give.
        let fewer = rows_of([("id", Arc::new(Int64Array::from(vec![77])) as ArrayRef)]);
        append(path, &fewer).write(&batch(1), stream_of(vec![fewer.clone()])).await.unwrap();
        assert!(ids(path).contains(&77));
    }
}
