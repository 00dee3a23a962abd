//! Watermarks per partition: what stands in a slow partition is not late because another one is ahead.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use perennial::records::{Input, Payload, Position, RecordBlock};
use perennial::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use perennial::{Job, JobQuery, JobSource, Result, schema};
use perennial_core::dead_letter::FileDeadLetters;
use perennial_core::env::Env;
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::progress::Observers;
use perennial_core::query::{Query, Step};
use perennial_sim::world;

/// Partitions and values of the records of a batch.
type Unit = Vec<(&'static str, &'static str)>;

/// Records in partitions: those of a unit are a batch.
#[derive(Debug, Clone, Default)]
struct Partitioned(Arc<Mutex<Vec<Unit>>>);

impl SourceFactory for Partitioned {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Source for Partitioned {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, _: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        match self.0.lock().len() {
            0 => Ok(None),
            units => Offset::encode(&units).map(Some),
        }
    }

    async fn read(&self, range: &OffsetRange, _: usize) -> Result<Vec<InputStream>> {
        let start: usize = range.start.as_ref().map_or(Ok(0), Offset::decode)?;
        let units = self.0.lock()[start..range.end.decode()?].concat();
        let block = |(partition, time): (&'static str, &'static str)| {
            let payload = Payload::Lines(format!("{{\"at\":\"2026-01-01T{time}:00Z\"}}").into());
            let position = Position::Sequence { name: partition.into(), first: 0 };
            stream::iter([Ok(Input::Records(RecordBlock { payload, position }))]).boxed()
        };
        Ok(units.into_iter().map(block).collect())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Nowhere;

impl SinkFactory for Nowhere {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Sink for Nowhere {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, _: &SinkBatch, rows: RowStream) -> Result<Written> {
        let rows: Vec<_> = rows.try_collect().await?;
        Ok(Written { rows: rows.iter().map(|rows| rows.num_rows() as u64).sum(), ..Written::default() })
    }
}

async fn query(env: &Env, source: JobSource) -> Query {
    let sql = "SELECT window.start, count(*) AS n FROM events GROUP BY window(at, '10 minutes')";
    let job = Job::builder("partitions").source("events", source).query("q", JobQuery::new(sql, Nowhere));
    let letters: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
    let letters = Arc::new(FileDeadLetters::new(letters.clone(), Arc::new(letters), "letters"));
    let spec = job.build().unwrap().plan(env.clone(), letters, Arc::new(Observers(Vec::new()))).await.unwrap();
    Query::open(&spec, &spec.queries[0]).await.unwrap()
}

/// Gives the units, each a batch; gives back per unit the late rows and the time that the watermark then has reached.
async fn run(per_partition: bool, restarts: bool) -> Vec<(u64, String)> {
    let env = world::env(Arc::new(InMemory::new()), 0);
    let records = Partitioned::default();
    let mut source = JobSource::new(records.clone(), schema("at TIMESTAMP").unwrap()).watermark("at", Duration::ZERO);
    if per_partition {
        source = source.watermark_per_partition(Some(Duration::from_secs(60)));
    }
    let mut running = query(&env, source.clone()).await;
    let mut found = Vec::new();
    for (after, unit) in [
        (1, vec![("p0", "10:00"), ("p1", "10:00")]),
        // One partition is ahead, as after a downtime.
        (1, vec![("p0", "12:00"), ("p1", "10:05")]),
        (1, vec![("p1", "10:20")]),
        // The other one has fallen silent.
        (120, vec![("p0", "12:30")]),
    ] {
        env.clock.sleep(Duration::from_secs(after)).await;
        records.0.lock().push(unit);
        let (mut late, mut watermark) = (0, 0);
        loop {
            if restarts {
                running = query(&env, source.clone()).await;
            }
            match running.run_batch().await.unwrap() {
                Step::Committed(report) => {
                    late += report.counts.late;
                    watermark = report.next_watermark_ms.unwrap_or_default() / 60_000 % 1440;
                }
                Step::Idle => break,
            }
        }
        found.push((late, format!("{:02}:{:02}", watermark / 60, watermark % 60)));
    }
    found
}

#[tokio::test]
async fn a_partition_that_is_ahead_makes_nothing_late_in_the_others() {
    let is = |found: Vec<(u64, String)>, expected: [(u64, &str); 4]| {
        assert_eq!(found.iter().map(|(late, mark)| (*late, mark.as_str())).collect::<Vec<_>>(), expected);
    };
    is(run(false, false).await, [(0, "10:00"), (0, "12:00"), (1, "12:00"), (0, "12:30")]);
    for restarts in [false, true] {
        is(run(true, restarts).await, [(0, "10:00"), (0, "10:05"), (0, "10:20"), (0, "12:30")]);
    }
}
