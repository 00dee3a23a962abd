//! The world outside: time, randomness and storage, handed in so that a simulator can be the world.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;

use crate::crash::CrashPoints;

/// Time. The wall clock in a job, a manual one in tests.
#[async_trait]
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Microseconds since the Unix epoch, UTC.
    fn now_micros(&self) -> i64;

    /// Time that only goes forward, for measuring; its zero is arbitrary.
    fn monotonic(&self) -> Duration;

    /// Returns after `duration`.
    async fn sleep(&self, duration: Duration);
}

/// Randomness: for identities and jitter, never for secrets.
pub trait Entropy: Send + Sync + std::fmt::Debug {
    /// A uniformly distributed number.
    fn next_u64(&self) -> u64;
}

/// All that comes in from outside. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Storage of the checkpoint. A `put` is durable when it returns (fsync on a local disk), atomic, and honours
    /// [`PutMode::Create`](object_store::PutMode::Create).
    pub storage: Arc<dyn ObjectStore>,
    /// Where the process can be made to die, in tests.
    pub crash: CrashPoints,
}

impl Env {
    /// Milliseconds since the Unix epoch, UTC.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_micros().div_euclid(1000)
    }

    /// A random (version 4) UUID.
    pub fn uuid(&self) -> String {
        let bits = (u128::from(self.entropy.next_u64()) << 64) | u128::from(self.entropy.next_u64());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string()
    }
}
