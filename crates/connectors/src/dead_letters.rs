//! Places of dead letters besides files.

mod postgres;

pub use postgres::PostgresLetters;
