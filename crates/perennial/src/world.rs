//! The real world: wall clock, the system's randomness, and storage at a path or URL.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use object_store::ObjectStore;
use perennial_core::env::{Clock, Entropy, Env};

/// The wall clock.
#[derive(Debug)]
struct WallClock {
    started: Instant,
}

#[async_trait]
impl Clock for WallClock {
    fn now_micros(&self) -> i64 {
        // A clock before 1970 counts backwards rather than failing.
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        }
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Randomness of the operating system.
#[derive(Debug)]
struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}

/// The real world with this storage.
pub fn env(storage: Arc<dyn ObjectStore>) -> Env {
    Env {
        clock: Arc::new(WallClock { started: Instant::now() }),
        entropy: Arc::new(SystemEntropy),
        storage,
        crash: Default::default(),
    }
}
