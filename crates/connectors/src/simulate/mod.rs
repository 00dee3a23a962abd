//! Simulated records: replayable profiles, as a source and as a producer.
//!
//! One [`Generator`] computes record `i` of a [`Recipe`] from `i` alone, so that the `simulate` source replays exactly and a test knows
//! what a producer sent without keeping it. [`SimulateSource`] reads it in a job; [`produce()`](produce::produce) sends it to Kafka,
//! files or standard output.

mod generator;
pub mod produce;
mod profiles;
mod source;

pub use generator::{Generated, Generator, Malformation, Recipe, Timeliness};
pub use produce::{Progress, Run, Target, produce};
pub use profiles::Profile;
pub use source::{Rate, SimulateSource};
