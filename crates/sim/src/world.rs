//! Simulated time and randomness.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;
use perennial_core::env::{Clock, Entropy, Env};

/// 2025-11-21T09:00:00Z, in microseconds since the epoch.
pub const START_MICROS: i64 = 1_763_715_600_000_000;

/// A clock that only moves when somebody sleeps, and then jumps.
#[derive(Debug)]
pub struct SimClock(AtomicI64);

impl Default for SimClock {
    fn default() -> Self {
        Self(AtomicI64::new(START_MICROS))
    }
}

impl SimClock {
    /// Lets time pass for all.
    pub fn advance(&self, micros: i64) {
        self.0.fetch_add(micros, SeqCst);
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now_micros(&self) -> i64 {
        self.0.load(SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros((self.0.load(SeqCst) - START_MICROS).unsigned_abs())
    }

    async fn sleep(&self, duration: Duration) {
        self.0.fetch_add(duration.as_micros() as i64, SeqCst);
        // Others get their turn, as they would while one sleeps.
        tokio::task::yield_now().await;
    }
}

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
pub struct SimEntropy(AtomicU64);

impl SimEntropy {
    /// All that it gives follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Whether something happens that happens once in `times`; never where that is 0.
    pub fn once_in(&self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

impl Entropy for SimEntropy {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A world with this storage, whose randomness follows from `seed`.
pub fn env(storage: Arc<dyn ObjectStore>, seed: u64) -> Env {
    Env {
        clock: Arc::new(SimClock::default()),
        entropy: Arc::new(SimEntropy::new(seed)),
        storage,
        crash: Default::default(),
    }
}
