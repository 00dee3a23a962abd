//! Where the time of a batch goes: clocks for work that overlaps.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use crate::env::Clock;

/// Adds up the time of one kind of work, on whichever cores it is done.
#[derive(Debug)]
pub struct Meter {
    clock: Arc<dyn Clock>,
    micros: AtomicU64,
}

impl Meter {
    /// A meter at zero.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, micros: AtomicU64::new(0) })
    }

    /// The time so far.
    pub fn total(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.micros.store(0, Ordering::Relaxed);
    }

    /// Counts the time that `work` takes.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = self.clock.monotonic();
        let result = work();
        self.add(began);
        result
    }

    fn add(&self, began: Duration) {
        let took = self.clock.monotonic().saturating_sub(began);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The stream, of which the time is counted that one waits for its items.
    pub fn waits<T: Send + 'static>(self: &Arc<Self>, stream: BoxStream<'static, T>) -> BoxStream<'static, T> {
        Waited { stream, meter: self.clone(), since: None }.boxed()
    }
}

struct Waited<T> {
    stream: BoxStream<'static, T>,
    meter: Arc<Meter>,
    /// When the item that is waited for was asked for.
    since: Option<Duration>,
}

impl<T> Stream for Waited<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        let began = this.since.unwrap_or_else(|| this.meter.clock.monotonic());
        this.since = Some(began);
        let polled = this.stream.as_mut().poll_next(context);
        if polled.is_ready() {
            this.since = None;
            this.meter.add(began);
        }
        polled
    }
}
