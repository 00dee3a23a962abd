//! Tests of the state as its users see it: partitions against a model, versions through storage, damage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::*;
use arrow::compute::take_record_batch;
use arrow::datatypes::*;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::sync::Semaphore;

use super::backend::Stored;
use super::partitions::{Operators, lock};
use super::row::Layout;
use super::*;
use crate::env::{Clock, Entropy, Env};
use crate::error::class;

/// What is promised holds wherever the rows are.
macro_rules! on_both_backends {
    ($($name:ident,)*) => {
        mod in_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(&super::Backend::Memory).await;
                }
            )*
        }
        mod on_disk {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(&super::Temporary::backend()).await;
                }
            )*
        }
    };
}

on_both_backends! {
    a_partition_behaves_as_a_map_with_undo,
    a_key_twice_in_one_call_keeps_the_last_row,
    all_types_come_back_as_they_went_in,
    every_version_can_be_reopened_with_any_number_of_partitions,
    a_batch_writes_what_it_changed_and_nothing_else,
    damage_is_repaired_exactly_or_refused,
    the_beginning_stands_in_for_the_first_snapshot,
    another_query_and_a_newer_format_are_told_apart_from_damage,
    a_second_writer_of_the_same_epoch_is_fenced,
    an_attempt_that_failed_can_be_repeated_with_other_rows,
    a_snapshot_is_exact_though_batches_go_on_while_it_is_written,
    a_snapshot_that_fails_or_saw_an_aborted_batch_does_not_count,
    lives_in_a_directory,
    the_fixture_of_format_1_is_readable,
}

/// Directories that go with the test.
#[derive(Debug)]
struct Temporary {
    directory: tempfile::TempDir,
    given: AtomicU64,
}

impl Temporary {
    /// In memory where there is such a directory: nothing is proved by waiting for a disk.
    fn backend() -> Backend {
        let memory = std::path::Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let scratch = Self { directory: directory.unwrap(), given: AtomicU64::new(0) };
        Backend::Disk(DiskOptions { scratch: Arc::new(scratch), cache_bytes: 16 << 20 })
    }
}

impl Scratch for Temporary {
    fn empty(&self, name: &str) -> Result<std::path::PathBuf> {
        Ok(self.directory.path().join(name).join(self.given.fetch_add(1, Ordering::Relaxed).to_string()))
    }
}

/// A partition without rows.
fn partition(backend: &Backend, spec: &StateSpec) -> Arc<std::sync::Mutex<dyn Stored>> {
    let formats = [(spec.clone(), Arc::new(Layout::new(spec, 5).unwrap()))];
    let operators = Operators::empty(&eager(backend), &Path::from("partition"), &formats, 1, &[]).unwrap();
    operators.list[0].partitions[0].clone()
}

/// A clock that stands still.
#[derive(Debug)]
struct NoTime;

#[async_trait]
impl Clock for NoTime {
    fn now_micros(&self) -> i64 {
        0
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    async fn sleep(&self, _: Duration) {}
}

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Debug)]
struct Seeded(AtomicU64);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    fn below(&self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

impl Entropy for Seeded {
    fn next_u64(&self) -> u64 {
        let z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn env(storage: Arc<dyn ObjectStore>) -> Env {
    Env { clock: Arc::new(NoTime), entropy: Arc::new(Seeded::new(1)), storage, crash: Default::default() }
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// A windowed aggregate whose values have different sizes.
fn aggregate() -> StateSpec {
    StateSpec {
        operator: 0,
        name: "stateStoreSave".into(),
        schema: Arc::new(Schema::new(vec![
            field("sensor", DataType::Utf8),
            field("window", micros()),
            field("note", DataType::Utf8),
            field("count", DataType::Int64),
            field("sum", DataType::Float64),
        ])),
        keys: 2,
        expiry: Some(1),
    }
}

/// A global aggregate.
fn global() -> StateSpec {
    StateSpec {
        operator: 1,
        name: "global".into(),
        schema: Arc::new(Schema::new(vec![field("count", DataType::Int64)])),
        keys: 0,
        expiry: None,
    }
}

/// A deduplication: keys without values, with an expiry that is not part of the key.
fn dedupe() -> StateSpec {
    StateSpec {
        operator: 2,
        name: "dedupe".into(),
        schema: Arc::new(Schema::new(vec![field("id", DataType::Int64), field("until", DataType::Int64)])),
        keys: 1,
        expiry: Some(1),
    }
}

/// Each row as text.
fn texts(batch: &RecordBatch, columns: usize) -> Vec<String> {
    let options = FormatOptions::default().with_null("∅");
    let columns = batch.columns()[..columns].iter();
    let columns: Vec<_> = columns.map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let row = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(row).collect()
}

fn all_texts(batches: &[RecordBatch]) -> Vec<String> {
    batches.iter().flat_map(|batch| texts(batch, batch.num_columns())).collect()
}

/// The partition of a key by its text.
fn partition_of(_operator: usize, keys: &[ArrayRef], partitions: usize) -> Result<Vec<u32>> {
    let batch =
        RecordBatch::try_from_iter(keys.iter().enumerate().map(|(i, key)| (i.to_string(), key.clone()))).unwrap();
    let place = |text: String| text.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Ok(texts(&batch, keys.len()).into_iter().map(|text| place(text) % partitions as u32).collect())
}

/// Rows by key, all as text, with the expiry.
type Model = BTreeMap<String, (String, Option<i64>)>;

fn expiry(spec: &StateSpec, batch: &RecordBatch, row: usize) -> Option<i64> {
    let column = batch.column(spec.expiry?);
    let numbers = arrow::compute::cast(column, &DataType::Int64).unwrap();
    numbers.is_valid(row).then(|| numbers.as_primitive::<Int64Type>().value(row))
}

fn model_put(model: &mut Model, spec: &StateSpec, batch: &RecordBatch) {
    let (keys, rows) = (texts(batch, spec.keys), texts(batch, batch.num_columns()));
    for (row, (key, text)) in keys.into_iter().zip(rows).enumerate() {
        model.insert(key, (text, expiry(spec, batch, row)));
    }
}

fn model_rows(model: &Model) -> BTreeSet<String> {
    model.values().map(|(row, _)| row.clone()).collect()
}

/// Random rows of one of the specs above, with different keys; some values are large when there may be many rows.
fn random_rows(random: &Seeded, spec: &StateSpec, keys: u64, most: u64) -> RecordBatch {
    let count = 1 + random.below(most);
    let large = most >= 40;
    let columns: Vec<ArrayRef> = match spec.operator {
        0 => {
            let chosen: BTreeSet<_> = (0..count).map(|_| (random.below(keys), random.below(4))).collect();
            let sensors = chosen
                .iter()
                .map(|(key, _)| (*key > 0).then(|| format!("sensor {key} {}", "x".repeat(*key as usize % 40))));
            let windows = chosen.iter().map(|(_, window)| (*window > 0).then_some(*window as i64 * 60_000_000));
            let note = |_| match random.below(1_000) {
                0 if large => Some("y".repeat(270_000)),
                1..300 => None,
                length => Some("z".repeat(length as usize / 5)),
            };
            vec![
                Arc::new(sensors.collect::<StringArray>()),
                Arc::new(windows.collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
                Arc::new(chosen.iter().map(note).collect::<StringArray>()),
                Arc::new(
                    chosen.iter().map(|_| random.chance(90).then(|| random.below(5) as i64)).collect::<Int64Array>(),
                ),
                Arc::new(chosen.iter().map(|_| Some(random.below(100) as f64 / 8.0)).collect::<Float64Array>()),
            ]
        }
        1 => vec![Arc::new(Int64Array::from(vec![random.below(1_000) as i64]))],
        _ => {
            let chosen: BTreeSet<i64> = (0..count).map(|_| random.below(keys) as i64).collect();
            let until = chosen.iter().map(|_| random.chance(80).then(|| random.below(1_000) as i64));
            vec![
                Arc::new(until.clone().zip(&chosen).map(|(_, id)| Some(*id)).collect::<Int64Array>()),
                Arc::new(until.collect::<Int64Array>()),
            ]
        }
    };
    RecordBatch::try_new(spec.schema.clone(), columns).unwrap()
}

fn keys_of(spec: &StateSpec, rows: &RecordBatch) -> Vec<ArrayRef> {
    rows.columns()[..spec.keys].to_vec()
}

async fn a_partition_behaves_as_a_map_with_undo(backend: &Backend) {
    for (seed, spec) in [aggregate(), global(), dedupe(), aggregate(), dedupe()].into_iter().enumerate() {
        let random = Seeded::new(seed as u64);
        let partition = partition(backend, &spec);
        let mut partition = lock(&partition).unwrap();
        let (mut model, mut committed) = (Model::new(), Model::new());
        for step in 0..400 {
            let rows = random_rows(&random, &spec, 60, 40);
            let keys = keys_of(&spec, &rows);
            match random.below(20) {
                0..8 => {
                    partition.put(&rows).unwrap();
                    model_put(&mut model, &spec, &rows);
                }
                8..11 => {
                    partition.remove(&keys).unwrap();
                    texts(&rows, spec.keys).iter().for_each(|key| drop(model.remove(key)));
                }
                11..14 => {
                    let (places, found) = partition.get(&keys).unwrap();
                    let expected: Vec<_> = (0u32..)
                        .zip(texts(&rows, spec.keys))
                        .take(if spec.keys == 0 { 1 } else { usize::MAX })
                        .filter_map(|(place, key)| Some((place, model.get(&key)?.0.clone())))
                        .collect();
                    let found: Vec<_> =
                        places.values().iter().copied().zip(texts(&found, found.num_columns())).collect();
                    assert_eq!(found, expected, "seed {seed} step {step}");
                }
                14..17 => {
                    let at = random.below(1_100) as i64 * if spec.operator == 0 { 200_000 } else { 1 } - 1;
                    let mut due = all_texts(&partition.due(at).unwrap());
                    due.sort();
                    let is_due = |expiry: &Option<i64>| expiry.is_some_and(|expiry| expiry <= at);
                    let mut expected: Vec<_> =
                        model.values().filter(|(_, e)| is_due(e)).map(|(row, _)| row.clone()).collect();
                    expected.sort();
                    assert_eq!(due, expected, "seed {seed} step {step} due at {at}");
                }
                17..19 => {
                    assert_changes(&*partition, &spec, &committed, &model);
                    partition.commit().unwrap();
                    assert_eq!(partition.changed_records(), 0);
                    committed = model.clone();
                }
                _ => {
                    partition.abort();
                    model = committed.clone();
                }
            }
            assert_eq!(partition.rows(), model.len() as u64, "seed {seed} step {step}");
            if step % 5 != 0 {
                continue;
            }
            let rows = all_texts(&partition.scan().unwrap());
            assert_eq!(rows.len(), model.len());
            assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), model_rows(&model), "seed {seed} step {step}");
        }
    }
}

/// The changes lead from what is committed to what is there now, and each key is in them once.
fn assert_changes(partition: &dyn Stored, spec: &StateSpec, committed: &Model, model: &Model) {
    let changes = partition.changes().unwrap();
    let mut seen = BTreeSet::new();
    let mut state = committed.clone();
    for batch in &changes.rows {
        assert!(texts(batch, spec.keys).into_iter().all(|key| seen.insert(key)), "a key is there twice");
        model_put(&mut state, spec, batch);
    }
    for batch in &changes.removed {
        for key in if spec.keys == 0 { vec![String::new(); batch.num_rows()] } else { texts(batch, spec.keys) } {
            assert!(state.remove(&key).is_some(), "{key} was not there");
            assert!(seen.insert(key), "a key is there twice");
        }
    }
    assert_eq!(&state, model);
}

async fn a_key_twice_in_one_call_keeps_the_last_row(backend: &Backend) {
    let spec = dedupe();
    let partition = partition(backend, &spec);
    let mut partition = lock(&partition).unwrap();
    let rows = |pairs: &[(i64, i64)]| {
        let (ids, until): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        RecordBatch::try_new(
            spec.schema.clone(),
            vec![Arc::new(Int64Array::from(ids)), Arc::new(Int64Array::from(until))],
        )
        .unwrap()
    };
    partition.put(&rows(&[(1, 1), (2, 2), (1, 3)])).unwrap();
    partition.put(&rows(&[(2, 4), (2, 5)])).unwrap();
    assert_eq!(all_texts(&partition.scan().unwrap()), ["1|3", "2|5"]);
    partition.abort();
    assert_eq!(partition.rows(), 0);
}

#[test]
fn memory_of_removed_rows_is_used_again_and_given_back() {
    let spec = dedupe();
    let schema = Arc::new(Schema::new(vec![
        field("id", DataType::Int64),
        field("until", DataType::Int64),
        field("text", DataType::Utf8),
    ]));
    let spec = StateSpec { schema: schema.clone(), ..spec };
    let mut partition = MemoryPartition::new(&spec, 5).unwrap();
    let rows = |range: std::ops::Range<i64>| {
        let text: StringArray = range.clone().map(|id| Some(format!("{id:0>800}"))).collect();
        let ids: ArrayRef = Arc::new(range.collect::<Int64Array>());
        RecordBatch::try_new(schema.clone(), vec![ids.clone(), ids, Arc::new(text)]).unwrap()
    };
    partition.put(&rows(0..8_000)).unwrap();
    partition.commit();
    let full = partition.bytes();
    for round in 1..10 {
        // The window moves on.
        let due = partition.due(round * 2_000 - 1).unwrap();
        due.iter().for_each(|batch| partition.remove(&batch.columns()[..1]).unwrap());
        partition.commit();
        partition.put(&rows(round * 2_000 + 6_000..round * 2_000 + 8_000)).unwrap();
        partition.commit();
        assert_eq!(partition.rows(), 8_000);
        assert!(partition.bytes() < full + full / 10, "round {round}: {} after {full}", partition.bytes());
    }
    partition.remove(&rows(18_000..25_000).columns()[..1]).unwrap();
    partition.commit();
    assert!(partition.bytes() < full / 4, "{} after {full}", partition.bytes());
    assert_eq!(all_texts(&partition.scan().unwrap()).len(), 1_000);
    assert_eq!(all_texts(&partition.due(25_399).unwrap()).len(), 400);
    let (places, _) = partition.get(&rows(24_800..25_200).columns()[..1]).unwrap();
    assert_eq!(places.values().iter().copied().collect::<Vec<_>>(), (200..400).collect::<Vec<u32>>());
}

/// One column of every type that Spark has, three rows, the last one NULL.
fn columns_of_all_types() -> Vec<(&'static str, ArrayRef)> {
    let list = {
        let mut builder = ListBuilder::new(StringBuilder::new());
        builder.append_value([Some("a"), None, Some("")]);
        builder.append_value::<[Option<&str>; 0], _>([]);
        builder.append_null();
        builder.finish()
    };
    let points = StructArray::try_new(
        vec![Field::new("x", DataType::Int32, false), field("names", list.data_type().clone())].into(),
        vec![Arc::new(Int32Array::from(vec![1, 2, 3])), Arc::new(list.clone())],
        Some(vec![true, true, false].into()),
    )
    .unwrap();
    let map = {
        let mut builder = MapBuilder::new(None, StringBuilder::new(), Float64Builder::new());
        builder.keys().append_value("k");
        builder.values().append_value(-0.0);
        builder.append(true).unwrap();
        builder.append(true).unwrap();
        builder.append(false).unwrap();
        builder.finish()
    };
    let structs = {
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0, 1]);
        ListArray::try_new(Arc::new(field("item", points.data_type().clone())), offsets, Arc::new(points.clone()), None)
            .unwrap()
    };
    vec![
        ("boolean", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("tinyint", Arc::new(Int8Array::from(vec![Some(i8::MIN), Some(1), None]))),
        ("smallint", Arc::new(Int16Array::from(vec![Some(i16::MAX), Some(1), None]))),
        ("int", Arc::new(Int32Array::from(vec![Some(i32::MIN), Some(1), None]))),
        ("bigint", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(1), None]))),
        ("float", Arc::new(Float32Array::from(vec![Some(f32::NAN), Some(-0.0), None]))),
        ("double", Arc::new(Float64Array::from(vec![Some(f64::NEG_INFINITY), Some(0.1), None]))),
        (
            "decimal",
            Arc::new(
                Decimal128Array::from(vec![Some(i128::MAX / 2), Some(-1), None])
                    .with_precision_and_scale(38, 10)
                    .unwrap(),
            ),
        ),
        ("string", Arc::new(StringArray::from(vec![Some(""), Some("grün und länger als zweiunddreißig Bytes"), None]))),
        (
            "string view",
            Arc::new(StringViewArray::from(vec![Some("short"), Some("not as short as the other one"), None])),
        ),
        ("binary", Arc::new(BinaryArray::from(vec![Some(&[0u8, 255][..]), Some(&[]), None]))),
        ("date", Arc::new(Date32Array::from(vec![Some(-1), Some(20_000), None]))),
        ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), Some(1), None]).with_timezone("UTC"))),
        ("timestamp_ntz", Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), Some(1), None]))),
        ("year-month interval", Arc::new(IntervalYearMonthArray::from(vec![Some(-13), Some(1), None]))),
        ("day-time interval", Arc::new(DurationMicrosecondArray::from(vec![Some(-13), Some(1), None]))),
        ("void", Arc::new(NullArray::new(3))),
        ("array", Arc::new(list)),
        ("struct", Arc::new(points)),
        ("map", Arc::new(map)),
        ("array of structs", Arc::new(structs)),
    ]
}

async fn all_types_come_back_as_they_went_in(backend: &Backend) {
    let env = env(Arc::new(InMemory::new()));
    for (name, column) in columns_of_all_types() {
        // As key and as value; the number makes keys of a NULL column differ.
        let number: ArrayRef = Arc::new(Int32Array::from(vec![0, 1, 2]));
        let schema = Arc::new(Schema::new(vec![
            field("key", column.data_type().clone()),
            field("number", DataType::Int32),
            field("value", column.data_type().clone()),
        ]));
        let rows = RecordBatch::try_new(schema.clone(), vec![column.clone(), number, column]).unwrap();
        let spec = StateSpec { schema, keys: 2, ..dedupe() };
        let spec = StateSpec { expiry: None, ..spec };

        let dir = Path::from(name);
        let mut store = open(backend, &env, &dir, std::slice::from_ref(&spec), 2, None).await.unwrap().0;
        put(&store, 0, &spec, &rows);
        let state = store.stage(1, 1).await.unwrap();
        store.commit();
        let store = open(backend, &env, &dir, std::slice::from_ref(&spec), 1, Some(&state)).await.unwrap().0;
        let partition = &store.partitions()[0][0];
        let (places, found) = partition.lock().unwrap().get(&keys_of(&spec, &rows)).unwrap();
        assert_eq!(places.len(), 3, "{name}");
        assert_eq!(found, rows, "{name}");
        let scanned = partition.lock().unwrap().scan().unwrap();
        let scanned = arrow::compute::concat_batches(&spec.schema, &scanned).unwrap();
        let order = arrow::compute::sort_to_indices(scanned.column(1), None, None).unwrap();
        assert_eq!(take_record_batch(&scanned, &order).unwrap(), rows, "{name}");
    }
}

#[tokio::test]
async fn a_type_that_state_cannot_hold_is_refused_at_open() {
    let backend = &Backend::Memory;
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let nested = DataType::List(Arc::new(field("item", dictionary.clone())));
    for (column, data_type) in [(0, dictionary), (1, nested)] {
        let mut fields = vec![field("first", DataType::Int64), field("second", DataType::Int64)];
        fields[column] = field("odd", data_type);
        let spec = StateSpec { schema: Arc::new(Schema::new(fields)), expiry: None, ..dedupe() };
        let error =
            open(backend, &env(Arc::new(InMemory::new())), &Path::from("s"), &[spec], 1, None).await.unwrap_err();
        assert_eq!(error.class(), class::STATE_UNSUPPORTED);
        for part in ["operator 2 (dedupe)", "`odd`", "Dictionary", ["key", "value"][column]] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

/// Snapshots as often as possible, in many small files.
fn eager(backend: &Backend) -> StateOptions {
    StateOptions {
        backend: backend.clone(),
        snapshot_after: 2,
        snapshot_bytes: 0,
        max_deltas: 4,
        part_bytes: 1,
        memory: Default::default(),
        conversion: None,
    }
}

/// No snapshots.
fn lazy(backend: &Backend) -> StateOptions {
    StateOptions { snapshot_after: usize::MAX, max_deltas: usize::MAX, ..eager(backend) }
}

async fn open_with(
    env: &Env,
    dir: &Path,
    specs: &[StateSpec],
    partitions: usize,
    at: Option<&StateRef>,
    options: StateOptions,
) -> Result<(StateStore, RestoreReport)> {
    StateStore::open(env, dir.clone(), specs, partitions, Arc::new(partition_of), at, options).await
}

async fn open(
    backend: &Backend,
    env: &Env,
    dir: &Path,
    specs: &[StateSpec],
    partitions: usize,
    at: Option<&StateRef>,
) -> Result<(StateStore, RestoreReport)> {
    open_with(env, dir, specs, partitions, at, lazy(backend)).await
}

/// Rows by the partition that they belong to.
fn divide(operator: usize, spec: &StateSpec, rows: &RecordBatch, partitions: usize) -> Vec<(usize, RecordBatch)> {
    if spec.keys == 0 {
        return vec![(0, rows.clone())];
    }
    let targets = partition_of(operator, &keys_of(spec, rows), partitions).unwrap();
    let of = |partition| {
        (0u32..).zip(&targets).filter(|(_, t)| **t as usize == partition).map(|(row, _)| row).collect::<Vec<_>>()
    };
    (0..partitions).map(|p| (p, take_record_batch(rows, &UInt32Array::from(of(p))).unwrap())).collect()
}

fn put(store: &StateStore, operator: usize, spec: &StateSpec, rows: &RecordBatch) {
    let state = store.partitions();
    for (partition, rows) in divide(operator, spec, rows, state[operator].len()) {
        state[operator][partition].lock().unwrap().put(&rows).unwrap();
    }
}

fn remove(store: &StateStore, operator: usize, spec: &StateSpec, rows: &RecordBatch) {
    let state = store.partitions();
    for (partition, rows) in divide(operator, spec, rows, state[operator].len()) {
        state[operator][partition].lock().unwrap().remove(&keys_of(spec, &rows)).unwrap();
    }
}

/// All rows of an operator; each must lie where its key belongs.
fn contents(store: &StateStore, operator: usize, spec: &StateSpec) -> BTreeSet<String> {
    let state = store.partitions();
    let mut all = BTreeSet::new();
    for (number, partition) in state[operator].iter().enumerate() {
        for batch in partition.lock().unwrap().scan().unwrap() {
            for (target, rows) in divide(operator, spec, &batch, state[operator].len()) {
                assert!(target == number || rows.num_rows() == 0, "a row of partition {target} is in {number}");
            }
            for row in all_texts(&[batch]) {
                assert!(all.insert(row.clone()), "{row} is there twice");
            }
        }
    }
    all
}

fn assert_contents(store: &StateStore, specs: &[StateSpec], models: &[Model], what: &str) {
    for (operator, (spec, model)) in specs.iter().zip(models).enumerate() {
        assert_eq!(contents(store, operator, spec), model_rows(model), "operator {operator}, {what}");
    }
    assert_eq!(store.rows(), models.iter().map(|model| model.len() as u64).sum::<u64>());
}

/// One random batch on all operators and their models.
fn random_batch(random: &Seeded, store: &StateStore, specs: &[StateSpec], models: &mut [Model], keys: u64) {
    for (operator, (spec, model)) in specs.iter().zip(models).enumerate() {
        for _ in 0..random.below(4) {
            let rows = random_rows(random, spec, keys, 30);
            if random.chance(70) {
                put(store, operator, spec, &rows);
                model_put(model, spec, &rows);
            } else {
                remove(store, operator, spec, &rows);
                texts(&rows, spec.keys).iter().for_each(|key| drop(model.remove(key)));
            }
        }
    }
}

async fn every_version_can_be_reopened_with_any_number_of_partitions(backend: &Backend) {
    let specs = [aggregate(), global(), dedupe()];
    for seed in 0..2 {
        let random = Seeded::new(100 + seed);
        let env = env(Arc::new(InMemory::new()));
        let dir = Path::from("query/state");
        let (mut store, _) = open_with(&env, &dir, &specs, 3, None, eager(backend)).await.unwrap();
        let mut models = vec![Model::new(); 3];
        let mut versions: Vec<(StateRef, Vec<Model>)> = Vec::new();
        let mut epoch = 1;
        for version in 1..=25 {
            let before = models.clone();
            while random.chance(30) {
                random_batch(&random, &store, &specs, &mut models, 50);
                if random.chance(50) {
                    store.stage(version, epoch).await.unwrap();
                }
                store.abort();
                models = before.clone();
                assert_contents(&store, &specs, &models, "after an abort");
            }
            random_batch(&random, &store, &specs, &mut models, 50);
            if random.chance(30) {
                store.finish_snapshot().await;
            }
            let state = store.stage(version, epoch).await.unwrap();
            // What the commit log does with it.
            let state: StateRef = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            store.commit();
            assert_eq!(store.current(), &state);
            versions.push((state.clone(), models.clone()));

            if random.chance(40) {
                epoch += 1;
                let partitions = 1 + random.below(5) as usize;
                let (opened, report) =
                    open_with(&env, &dir, &specs, partitions, Some(&state), eager(backend)).await.unwrap();
                assert_eq!((report.version, report.repairs.len()), (version, 0));
                assert_eq!(report.rows, models.iter().map(|model| model.len() as u64).sum::<u64>());
                store = opened;
            }
            assert_contents(&store, &specs, &models, &format!("seed {seed} version {version}"));
        }
        assert!(versions.iter().any(|(state, _)| state.snapshots.len() == 2), "snapshots were written");
        let oldest = 5 + random.below(15) as usize;
        store.retain(&versions[oldest].0).await.unwrap();
        for (state, models) in &versions[oldest..] {
            let (opened, _) = open(backend, &env, &dir, &specs, 2, Some(state)).await.unwrap();
            assert_contents(&opened, &specs, models, &format!("seed {seed}, going back to version {}", state.version));
        }
    }
}

async fn a_batch_writes_what_it_changed_and_nothing_else(backend: &Backend) {
    let storage = Arc::new(InMemory::new());
    let env = env(storage.clone());
    let dir = Path::from("state");
    let specs = [dedupe()];
    let rows = |range: std::ops::Range<i64>, until: i64| {
        let untils: ArrayRef = Arc::new(range.clone().map(|_| until).collect::<Int64Array>());
        RecordBatch::try_new(specs[0].schema.clone(), vec![Arc::new(range.collect::<Int64Array>()), untils]).unwrap()
    };
    let (mut store, _) = open(backend, &env, &dir, &specs, 2, None).await.unwrap();
    put(&store, 0, &specs[0], &rows(0..20_000, 1));
    store.stage(1, 1).await.unwrap();
    store.commit();
    assert_eq!(store.last_stage().rows, 20_000);
    let whole = store.last_stage().bytes;

    put(&store, 0, &specs[0], &rows(0..20_000, 1));
    put(&store, 0, &specs[0], &rows(5..7, 2));
    put(&store, 0, &specs[0], &rows(5..7, 3));
    put(&store, 0, &specs[0], &rows(30_000..30_002, 3));
    remove(&store, 0, &specs[0], &rows(7..10, 0));
    remove(&store, 0, &specs[0], &rows(30_000..30_001, 0));
    store.stage(2, 1).await.unwrap();
    store.commit();
    assert_eq!(
        (store.last_stage().rows, store.last_stage().removed),
        (3, 3),
        "rows that were put unchanged are not written"
    );
    assert!(store.last_stage().bytes < whole / 5, "{} of {whole}", store.last_stage().bytes);

    let state = store.stage(3, 1).await.unwrap();
    store.commit();
    assert_eq!(store.last_stage(), StageStats::default());
    assert_eq!(names(&storage).await, ["state/1.1.delta", "state/2.1.delta"], "nothing changed, nothing written");
    let (opened, report) = open(backend, &env, &dir, &specs, 1, Some(&state)).await.unwrap();
    assert_eq!((report.version, report.deltas, opened.rows()), (3, 2, 19_998));
}

async fn names(storage: &dyn ObjectStore) -> Vec<String> {
    let mut names: Vec<_> =
        storage.list(None).map_ok(|object| object.location.to_string()).try_collect().await.unwrap();
    names.sort();
    names
}

/// A checkpoint with two snapshots and deltas before, between and after them.
async fn checkpoint(backend: &Backend, storage: Arc<dyn ObjectStore>, specs: &[StateSpec]) -> (StateRef, Vec<Model>) {
    let env = env(storage);
    let random = Seeded::new(77);
    let (mut store, _) = open_with(&env, &Path::from("state"), specs, 2, None, eager(backend)).await.unwrap();
    let mut models = vec![Model::new(); specs.len()];
    loop {
        random_batch(&random, &store, specs, &mut models, 30);
        let version = store.current().version + 1;
        let state = store.stage(version, 4).await.unwrap();
        store.commit();
        store.finish_snapshot().await;
        if state.snapshots.len() == 2 && state.deltas_behind(state.snapshots[0].version).count() == 2 {
            return (state, models);
        }
    }
}

const DAMAGES: usize = 15;

async fn damage_is_repaired_exactly_or_refused(backend: &Backend) {
    let specs = [aggregate(), global(), dedupe()];
    let storage: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (state, models) = checkpoint(backend, storage.clone(), &specs).await;
    let env = env(storage.clone());
    let dir = Path::from("state");
    StateStore::retain(&open(backend, &env, &dir, &specs, 2, Some(&state)).await.unwrap().0, &state).await.unwrap();
    let files = names(&*storage).await;
    let newest = state.snapshots[0];
    let (mut repaired, mut refused, mut unneeded) = (0, 0, 0);
    for (number, name) in files.iter().enumerate() {
        let path = Path::from(name.as_str());
        let good = storage.get(&path).await.unwrap().bytes().await.unwrap();
        let cut = |length: usize| Some(good.slice(..length));
        let flip = |at: usize| {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1 << (at % 8);
            Some(Bytes::from(bytes))
        };
        let end = good.len();
        let other =
            storage.get(&Path::from(files[(number + 1) % files.len()].as_str())).await.unwrap().bytes().await.unwrap();
        let damages = [
            ("missing", None),
            ("empty", cut(0)),
            ("torn in the prefix", cut(9)),
            ("torn in the header", cut(40)),
            ("torn in the middle", cut(end / 2)),
            ("one byte short", cut(end - 1)),
            ("one byte long", Some([&good[..], b"\0"].concat().into())),
            ("flipped magic", flip(3)),
            ("flipped format", flip(8)),
            ("flipped length", flip(13)),
            ("flipped header", flip(60)),
            ("flipped data", flip(end * 2 / 3)),
            ("flipped checksum", flip(end - 2)),
            ("zeros", Some(vec![0; end].into())),
            ("another file", Some(other)),
        ];
        // The files are read in the same way for both; what differs is what becomes of a load that fails half way.
        let is_whole = matches!(backend, Backend::Memory) && (name.ends_with("delta") || name.ends_with(".0.snapshot"));
        let every = if is_whole { 1 } else { DAMAGES / 3 };
        assert_eq!(damages.len(), DAMAGES);
        for (damage, bytes) in damages.into_iter().step_by(every) {
            match bytes {
                Some(bytes) => drop(storage.put(&path, bytes.into()).await.unwrap()),
                None => storage.delete(&path).await.unwrap(),
            }
            match open(backend, &env, &dir, &specs, 3, Some(&state)).await {
                Ok((store, report)) => {
                    assert_contents(&store, &specs, &models, &format!("{name} {damage}"));
                    if name.starts_with(&format!("state/{}.4.", newest.version)) && name.ends_with("snapshot") {
                        assert_eq!(report.repairs.len(), 1, "{name} {damage}");
                        assert!(report.repairs[0].contains(name), "{name} {damage}: {:?}", report.repairs);
                        assert_eq!(report.snapshot, Some(state.snapshots[1].version));
                        assert_eq!(store.current().snapshots, state.snapshots[1..], "the damaged one is forgotten");
                        repaired += 1;
                    } else {
                        // Only needed for going back, or when the newest snapshot is damaged.
                        assert_eq!(report.repairs, [""; 0], "{name} {damage}");
                        unneeded += 1;
                    }
                }
                Err(error) => {
                    assert_eq!(error.class(), class::CHECKPOINT_CORRUPT, "{name} {damage}: {error}");
                    assert!(error.to_string().contains(name.as_str()), "{name} {damage}: {error}");
                    assert!(error.to_string().contains("can: restore the file"), "{error}");
                    refused += 1;
                }
            }
        }
        storage.put(&path, good.into()).await.unwrap();
    }
    let each = if matches!(backend, Backend::Memory) { DAMAGES } else { 3 };
    assert_eq!(refused, 2 * each, "each of the two deltas after the newest snapshot, with each damage");
    assert!(repaired >= each && unneeded >= each, "{repaired} {unneeded}");

    // Both snapshots damaged: nothing exact is left.
    for snapshot in &state.snapshots {
        storage.delete(&Path::from(format!("state/{}.4.0.snapshot", snapshot.version))).await.unwrap();
    }
    let error = open(backend, &env, &dir, &specs, 3, Some(&state)).await.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_CORRUPT);
    assert!(
        state
            .snapshots
            .iter()
            .all(|s| error.to_string().contains(&format!("state/{}.4.0.snapshot is missing", s.version))),
        "{error}"
    );
}

async fn the_beginning_stands_in_for_the_first_snapshot(backend: &Backend) {
    let specs = [dedupe()];
    let storage = Arc::new(InMemory::new());
    let env = env(storage.clone());
    let random = Seeded::new(3);
    let (mut store, _) = open_with(&env, &Path::from("state"), &specs, 2, None, eager(backend)).await.unwrap();
    let mut models = vec![Model::new()];
    while store.current().snapshots.is_empty() {
        random_batch(&random, &store, &specs, &mut models, 30);
        store.stage(store.current().version + 1, 1).await.unwrap();
        store.commit();
        store.finish_snapshot().await;
    }
    let state = store.current().clone();
    let snapshot = names(&*storage).await.into_iter().find(|name| name.ends_with("snapshot")).unwrap();
    storage.delete(&Path::from(snapshot)).await.unwrap();
    let (store, report) = open(backend, &env, &Path::from("state"), &specs, 2, Some(&state)).await.unwrap();
    assert_eq!((report.repairs.len(), report.snapshot), (1, None));
    assert_contents(&store, &specs, &models, "from the beginning");
}

async fn another_query_and_a_newer_format_are_told_apart_from_damage(backend: &Backend) {
    let specs = [aggregate(), global(), dedupe()];
    let storage: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (state, _) = checkpoint(backend, storage.clone(), &specs).await;
    let env = env(storage.clone());
    let dir = Path::from("state");

    let retyped = Arc::new(Schema::new(vec![field("count", DataType::Float64)]));
    let others: [(Vec<StateSpec>, &str); 4] = [
        (specs[..2].to_vec(), "3 operators, the query has 2"),
        (
            vec![specs[0].clone(), StateSpec { schema: retyped, ..global() }, specs[2].clone()],
            "has the columns Int64, the query keeps Float64",
        ),
        (
            vec![specs[0].clone(), StateSpec { name: "other".into(), ..global() }, specs[2].clone()],
            "operator 1 (global, 0 key columns)",
        ),
        (
            vec![specs[0].clone(), specs[1].clone(), StateSpec { keys: 2, ..dedupe() }],
            "operator 2 (dedupe, 1 key columns)",
        ),
    ];
    for (specs, expected) in others {
        let error = open(backend, &env, &dir, &specs, 2, Some(&state)).await.unwrap_err();
        assert_eq!(error.class(), class::CHECKPOINT_MISMATCH, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }

    let path = Path::from(format!("state/{}.4.0.snapshot", state.snapshots[0].version));
    let mut bytes = storage.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let end = bytes.len() - 4;
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    storage.put(&path, bytes.into()).await.unwrap();
    let error = open(backend, &env, &dir, &specs, 2, Some(&state)).await.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_NEWER);
    assert!(error.to_string().contains(path.as_ref()), "{error}");
}

async fn a_second_writer_of_the_same_epoch_is_fenced(backend: &Backend) {
    let specs = [dedupe()];
    let env = env(Arc::new(InMemory::new()));
    let dir = Path::from("state");
    let random = Seeded::new(8);
    let (mut first, _) = open(backend, &env, &dir, &specs, 1, None).await.unwrap();
    let (mut second, _) = open(backend, &env, &dir, &specs, 1, None).await.unwrap();
    let (mut third, _) = open(backend, &env, &dir, &specs, 1, None).await.unwrap();
    let rows = random_rows(&random, &specs[0], 30, 30);
    put(&first, 0, &specs[0], &rows);
    let staged = first.stage(1, 1).await.unwrap();
    first.commit();

    put(&second, 0, &specs[0], &rows);
    assert_eq!(second.stage(1, 1).await.unwrap(), staged, "the same content: an earlier attempt got as far");
    put(&third, 0, &specs[0], &random_rows(&random, &specs[0], 30, 30));
    let error = third.stage(1, 1).await.unwrap_err();
    assert_eq!(error.class(), class::FENCED);
    assert!(error.to_string().contains("state/1.1.delta"), "{error}");

    third.stage(1, 2).await.unwrap();
    third.commit();
    let (opened, _) = open(backend, &env, &dir, &specs, 1, Some(&staged)).await.unwrap();
    assert_eq!(
        contents(&opened, 0, &specs[0]),
        all_texts(&[rows]).into_iter().collect(),
        "another epoch changes nothing"
    );
    assert_eq!(third.stage(1, 2).await.unwrap_err().class(), class::INTERNAL, "a version is staged once");
}

async fn an_attempt_that_failed_can_be_repeated_with_other_rows(backend: &Backend) {
    let specs = [dedupe()];
    let storage = Arc::new(Gated::default());
    let env = env(storage.clone());
    let random = Seeded::new(9);
    let (mut store, _) = open(backend, &env, &Path::from("state"), &specs, 2, None).await.unwrap();
    for version in 1..=5 {
        put(&store, 0, &specs[0], &random_rows(&random, &specs[0], 90, 30));
        // The file is written, but the answer is lost.
        storage.lose_answers.store(true, Ordering::Relaxed);
        assert_eq!(store.stage(version, 1).await.unwrap_err().class(), class::STORAGE_UNAVAILABLE);
        storage.lose_answers.store(false, Ordering::Relaxed);
        store.abort();
        put(&store, 0, &specs[0], &random_rows(&random, &specs[0], 90, 30));
        let state = store.stage(version, 1).await.unwrap();
        store.commit();
        let (opened, _) = open(backend, &env, &Path::from("state"), &specs, 1, Some(&state)).await.unwrap();
        assert_eq!(contents(&opened, 0, &specs[0]), contents(&store, 0, &specs[0]));
    }
}

/// Storage in memory whose snapshots wait for a permit per file, and whose answers can be lost.
#[derive(Debug)]
struct Gated {
    inner: InMemory,
    snapshots: Semaphore,
    /// A permit for each file whose permit was taken.
    taken: Semaphore,
    fail_snapshots: AtomicBool,
    lose_answers: AtomicBool,
}

impl Default for Gated {
    fn default() -> Self {
        Self {
            inner: InMemory::new(),
            snapshots: Semaphore::new(0),
            taken: Semaphore::new(0),
            fail_snapshots: false.into(),
            lose_answers: false.into(),
        }
    }
}

impl std::fmt::Display for Gated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("gated")
    }
}

fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "gated", source: "the answer is lost".into() }
}

#[async_trait]
impl ObjectStore for Gated {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        if path.as_ref().ends_with("snapshot") {
            self.snapshots.acquire().await.unwrap().forget();
            self.taken.add_permits(1);
            if self.fail_snapshots.load(Ordering::Relaxed) {
                return Err(lost());
            }
        }
        let result = self.inner.put_opts(path, payload, options).await?;
        if self.lose_answers.load(Ordering::Relaxed) { Err(lost()) } else { Ok(result) }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Rows large enough that a partition has many chunks.
fn large_rows(random: &Seeded, spec: &StateSpec, keys: std::ops::Range<i64>) -> RecordBatch {
    let chosen: Vec<i64> = keys.filter(|_| random.chance(60)).collect();
    let values = chosen
        .iter()
        .map(|key| Some(format!("{}{}", random.below(1_000_000), "v".repeat(1_500 + (*key as usize % 3) * 10))));
    RecordBatch::try_new(
        spec.schema.clone(),
        vec![Arc::new(chosen.iter().copied().collect::<Int64Array>()), Arc::new(values.collect::<StringArray>())],
    )
    .unwrap()
}

async fn a_snapshot_is_exact_though_batches_go_on_while_it_is_written(backend: &Backend) {
    let schema = Arc::new(Schema::new(vec![field("id", DataType::Int64), field("text", DataType::Utf8)]));
    let spec = StateSpec { schema, expiry: None, ..dedupe() };
    let specs = [spec.clone()];
    for seed in 0..2 {
        let random = Seeded::new(seed);
        let storage = Arc::new(Gated::default());
        let env = env(storage.clone());
        let dir = Path::from("state");
        let mut models = [Model::new()];
        let (mut store, _) = open_with(&env, &dir, &specs, 2, None, eager(backend)).await.unwrap();
        let mut batch = |store: &StateStore, share: i64| {
            let start = random.below(4_000) as i64;
            let rows = large_rows(&random, &spec, start..start + share);
            put(store, 0, &spec, &rows);
            model_put(&mut models[0], &spec, &rows);
            let gone = random_rows(&random, &dedupe(), 4_000, 100);
            remove(store, 0, &spec, &gone);
            texts(&gone, 1).iter().for_each(|key| drop(models[0].remove(key)));
            models.clone()
        };
        while store.running_snapshot().is_none() {
            batch(&store, 3_000);
            store.stage(store.current().version + 1, 1).await.unwrap();
            store.commit();
        }
        let from = store.current().version;
        // One file at a time, with batches in between: each sees the rows of another moment.
        let mut models = [Model::new()];
        for part in 0.. {
            if !store.current().snapshots.is_empty() {
                break;
            }
            if part < 3 {
                storage.snapshots.add_permits(1);
                storage.taken.acquire().await.unwrap().forget();
            } else {
                storage.snapshots.add_permits(1_000);
                store.finish_snapshot().await;
            }
            models = batch(&store, 300);
            let state = store.stage(store.current().version + 1, 1).await.unwrap();
            store.commit();
            let (opened, report) = open(backend, &env, &dir, &specs, 3, Some(&state)).await.unwrap();
            assert_contents(&opened, &specs, &models, &format!("seed {seed} version {}", state.version));
            assert_eq!(report.snapshot, state.snapshots.first().map(|snapshot| snapshot.version));
        }
        let snapshot = store.current().snapshots[0];
        assert_eq!(snapshot.version, from);
        assert!(snapshot.parts >= 4, "{snapshot:?}");
        assert!(store.current().version > from + 3, "batches went on: {:?}", store.current());
        assert_contents(&store, &specs, &models, "in memory");
    }
}

async fn a_snapshot_that_fails_or_saw_an_aborted_batch_does_not_count(backend: &Backend) {
    let specs = [aggregate(), global(), dedupe()];
    let storage = Arc::new(Gated::default());
    let env = env(storage.clone());
    let dir = Path::from("state");
    let random = Seeded::new(5);
    let mut models = vec![Model::new(); 3];
    let (mut store, _) = open_with(&env, &dir, &specs, 2, None, eager(backend)).await.unwrap();

    storage.snapshots.add_permits(1_000);
    storage.fail_snapshots.store(true, Ordering::Relaxed);
    while store.snapshots().failed < 2 {
        random_batch(&random, &store, &specs, &mut models, 30);
        store.stage(store.current().version + 1, 1).await.unwrap();
        store.commit();
        store.finish_snapshot().await;
    }
    assert!(store.current().snapshots.is_empty());
    let (opened, _) = open(backend, &env, &dir, &specs, 2, Some(store.current())).await.unwrap();
    assert_contents(&opened, &specs, &models, "without snapshots");
    storage.fail_snapshots.store(false, Ordering::Relaxed);

    while store.running_snapshot().is_none() {
        random_batch(&random, &store, &specs, &mut models, 30);
        store.stage(store.current().version + 1, 1).await.unwrap();
        store.commit();
    }
    // The snapshot is finished within a batch, and a version with it is staged, but never committed.
    let before = models.clone();
    random_batch(&random, &store, &specs, &mut models, 30);
    put(&store, 1, &specs[1], &random_rows(&random, &specs[1], 1, 1));
    store.finish_snapshot().await;
    assert_eq!(store.stage(store.current().version + 1, 1).await.unwrap().snapshots.len(), 1);
    store.abort();
    models = before;
    assert_eq!(store.snapshots().discarded, 1);

    let state = store.stage(store.current().version + 1, 1).await.unwrap();
    assert!(state.snapshots.is_empty());
    store.commit();
    let (opened, _) = open(backend, &env, &dir, &specs, 2, Some(&state)).await.unwrap();
    assert_contents(&opened, &specs, &models, "after the abort");
}

#[test]
fn small_states_get_snapshots_rarely_and_large_ones_by_their_deltas() {
    let options = StateOptions::default();
    let deltas_until_snapshot =
        |delta: u64, snapshot: u64| (1..).find(|n| options.is_due(*n, *n as u64 * delta, snapshot)).unwrap();
    assert_eq!(deltas_until_snapshot(2_000, 0), 58, "small deltas, no snapshot yet");
    assert_eq!(deltas_until_snapshot(2_000, 50_000), 58, "a small state");
    assert_eq!(deltas_until_snapshot(6 << 20, 300 << 20), 50, "a large state, 2% of it changing per batch");
    assert_eq!(deltas_until_snapshot(2_000, 300 << 20), 500, "a large state, hardly changing");
    assert_eq!(deltas_until_snapshot(300 << 20, 300 << 20), 10, "a large state, all of it changing");
}

async fn lives_in_a_directory(backend: &Backend) {
    let directory = tempfile::tempdir().unwrap();
    let storage: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap());
    let specs = [aggregate(), global(), dedupe()];
    let (state, models) = checkpoint(backend, storage.clone(), &specs).await;
    let env = env(storage.clone());
    let (store, report) = open(backend, &env, &Path::from("state"), &specs, 4, Some(&state)).await.unwrap();
    assert_eq!((report.snapshot, report.deltas), (Some(state.snapshots[0].version), 2));
    assert_contents(&store, &specs, &models, "from a directory");
    let before = names(&*storage).await.len();
    store.retain(&state).await.unwrap();
    assert!(names(&*storage).await.len() < before);
    open(backend, &env, &Path::from("state"), &specs, 1, Some(&state)).await.unwrap();
}

/// What the first format looks like is in the tree, with the rows that are in it: it stays readable.
///
/// With `PERENNIAL_WRITE_FIXTURES` set, the directory is written anew; do so for a new format under a new name only.
async fn the_fixture_of_format_1_is_readable(backend: &Backend) {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/state/format-1");
    let specs = [aggregate(), global(), dedupe()];
    let put_text = |storage: Arc<dyn ObjectStore>, name: &'static str, text: String| async move {
        storage.put(&Path::from(name), text.into()).await.unwrap();
    };
    let rows_text = |store: &StateStore| {
        let operators =
            specs.iter().enumerate().map(|(operator, spec)| contents(store, operator, spec)).collect::<Vec<_>>();
        serde_json::to_string_pretty(&operators).unwrap()
    };
    if std::env::var_os("PERENNIAL_WRITE_FIXTURES").is_some() {
        let storage: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&directory).unwrap());
        let (state, _) = checkpoint(backend, storage.clone(), &specs).await;
        let (store, _) =
            open(backend, &env(storage.clone()), &Path::from("state"), &specs, 2, Some(&state)).await.unwrap();
        store.retain(&state).await.unwrap();
        put_text(storage.clone(), "state.json", serde_json::to_string_pretty(&state).unwrap()).await;
        put_text(storage, "rows.json", rows_text(&store)).await;
    }
    let storage: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&directory).unwrap());
    let read = |name: &'static str| {
        let storage = storage.clone();
        async move { storage.get(&Path::from(name)).await.unwrap().bytes().await.unwrap() }
    };
    let state: StateRef = serde_json::from_slice(&read("state.json").await).unwrap();
    let (store, report) =
        open(backend, &env(storage.clone()), &Path::from("state"), &specs, 3, Some(&state)).await.unwrap();
    assert_eq!((report.repairs.len(), report.deltas), (0, 2));
    assert_eq!(rows_text(&store).as_bytes(), read("rows.json").await);

    // What it takes to read a section with nothing but Arrow.
    let newest = state.newest.unwrap();
    let file = storage
        .get(&Path::from(format!("state/{}.{}.delta", newest.version, newest.epoch)))
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    let length = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[16..16 + length]).unwrap();
    let section = &header["sections"][0];
    let stream = &file[16 + length..][..section["bytes"].as_u64().unwrap() as usize];
    let batches: Vec<_> =
        arrow::ipc::reader::StreamReader::try_new(stream, None).unwrap().map(|batch| batch.unwrap()).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>(), section["rows"].as_u64().unwrap());
}
