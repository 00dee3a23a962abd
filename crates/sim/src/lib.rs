//! A world that fails on purpose, and jobs to live in it.
//!
//! Everything that Perennial takes from outside ([`Env`](perennial_core::env::Env)) is simulated here: a clock that jumps, randomness
//! from a seed, and storage that fails at a chosen operation, before or after the operation took effect. The tests of this crate run
//! whole queries in this world, crash them at every step and count what arrived.

pub mod job;
pub mod scratch;
pub mod simulator;
pub mod store;
pub mod world;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod simulator_tests;
