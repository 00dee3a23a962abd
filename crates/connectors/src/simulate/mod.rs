//! Simulated records: replayable profiles.
