//! A world for the tests of sources: storage in memory and a clock that is set by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use perennial_core::checkpoint::SourceLog;
use perennial_core::env::{Clock, Entropy, Env};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::records::Input;
use perennial_core::source::{Source, SourceContext};

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms * 1000, Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.now_micros() as u64)
    }

    async fn sleep(&self, _: Duration) {}
}

#[derive(Debug)]
struct Zero;

impl Entropy for Zero {
    fn next_u64(&self) -> u64 {
        0
    }
}

/// What outlives a restart of the source.
pub struct World {
    pub clock: Arc<ManualClock>,
    pub env: Env,
    pub schema: SchemaRef,
}

impl World {
    pub fn new() -> Self {
        let clock = Arc::new(ManualClock(AtomicI64::new(1_767_225_600_000_000)));
        let env = Env {
            clock: clock.clone(),
            entropy: Arc::new(Zero),
            storage: Arc::new(InMemory::new()),
            crash: Default::default(),
        };
        Self { clock, env, schema: Arc::new(Schema::empty()) }
    }

    pub fn log(&self) -> SourceLog {
        SourceLog::new(self.env.clone(), "checkpoint/query/sources/0".into())
    }

    /// The context of the same source of the same query.
    pub fn context(&self) -> SourceContext {
        SourceContext {
            rows: false,
            env: self.env.clone(),
            job: "job".into(),
            query: "query".into(),
            source: "source".into(),
            schema: self.schema.clone(),
            log: self.log(),
        }
    }
}

/// All that a range gives, stream after stream (which are read at the same time).
pub async fn collect(source: &dyn Source, start: Option<&Offset>, end: &Offset, parallelism: usize) -> Vec<Input> {
    try_collect(source, start, end, parallelism).await.unwrap()
}

pub async fn try_collect(
    source: &dyn Source,
    start: Option<&Offset>,
    end: &Offset,
    parallelism: usize,
) -> perennial_core::Result<Vec<Input>> {
    let range = OffsetRange { start: start.cloned(), end: end.clone() };
    let streams = source.read(&range, parallelism).await?;
    assert!(streams.len() <= parallelism);
    let all = streams.into_iter().map(|stream| stream.try_collect::<Vec<_>>()).collect::<Vec<_>>();
    let mut inputs = Vec::new();
    for stream in futures::stream::iter(all).buffered(parallelism.max(1)).collect::<Vec<_>>().await {
        inputs.extend(stream?);
    }
    Ok(inputs)
}
