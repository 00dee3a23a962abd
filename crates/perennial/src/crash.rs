//! Dying on purpose: for tests of what a crash leaves behind, outside of the simulator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use perennial_core::crash::{Crash, CrashPoint, CrashPoints};
use perennial_core::error::{Error, Result, class};

/// Names a crash point and, after a colon, at which of its passages the process dies (the first, if it is left out): `sink.published:3`.
const VARIABLE: &str = "PERENNIAL_CRASH_AT";

#[derive(Debug)]
struct DieAt {
    point: CrashPoint,
    /// Passages that are still to come, the last one included.
    left: AtomicU64,
}

impl Crash for DieAt {
    fn dies_at(&self, point: CrashPoint) -> bool {
        if point == self.point && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Nothing is dropped, flushed or told on the way out, as with SIGKILL.
            std::process::abort();
        }
        false
    }
}

/// The crash points of this process: off, unless the environment says where to die.
pub fn from_environment() -> Result<CrashPoints> {
    let Ok(setting) = std::env::var(VARIABLE) else { return Ok(CrashPoints::default()) };
    let wrong = || Error::new(class::CONFIG_INVALID, format!("{VARIABLE}={setting}: it is POINT or POINT:PASSAGE"));
    let (point, passage) = match setting.split_once(':') {
        Some((point, passage)) => (point, passage.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?),
        None => (&*setting, 1),
    };
    let point = point.parse::<CrashPoint>().map_err(|error| error.at(VARIABLE))?;
    tracing::warn!(%point, passage, "this process dies on purpose, because {VARIABLE} says so");
    Ok(CrashPoints::new(Arc::new(DieAt { point, left: AtomicU64::new(passage) })))
}
