//! The core of Perennial: the words, the contracts and the batch loop.
//!
//! This crate knows what a batch is and how it becomes durable. It does not know SQL, a wire protocol, the wall clock or a
//! disk: those come in through [`Env`](env::Env) and the traits [`Source`](source::Source), [`Decoder`](decode::Decoder),
//! [`QueryPlan`](plan::QueryPlan) and [`Sink`](sink::Sink). Begin with [`query`]: it has the way of a batch, top to bottom.

pub mod alert;
pub mod breaker;
pub mod checkpoint;
pub mod config;
pub mod control;
pub mod crash;
pub mod ddl;
pub mod dead_letter;
pub mod decode;
pub mod env;
pub mod error;
pub mod expectation;
pub mod guarantee;
pub mod intake;
pub mod isolate;
pub mod job;
pub mod layout;
pub mod lease;
pub mod memory;
pub mod meter;
pub mod offset;
pub mod on_error;
pub mod pace;
pub mod plan;
pub mod policy;
pub mod progress;
pub mod query;
pub mod records;
pub mod replay;
pub mod shape;
pub mod sink;
pub mod source;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod table;
pub mod watermark;

pub use error::{Error, ErrorKind, Result};
