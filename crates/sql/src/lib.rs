//! Spark SQL on DataFusion: planning, stateful operators and the checks of expectations.
//!
//! A [`Planner`] turns a SQL text into a [`QueryPlan`](perennial_core::plan::QueryPlan) once, when the job starts; the plan then runs one
//! batch at a time. On the way:
//!
//! 1. `ast`: the SQL is parsed in Spark's dialect, and what only the syntax tree can tell is rewritten;
//! 2. `logical`: DataFusion plans and optimises it; watermarks, windows and stateful aggregates are nodes of that plan;
//! 3. `exec`: the physical operators of those nodes;
//! 4. `query`: the plan that runs batches, with its inputs, its state, and the account of every row; `late` finds the rows that were late.

mod ast;
mod batch;
mod error;
mod exec;
mod functions;
mod late;
mod logical;
mod memory;
mod planner;
mod predicate;
mod query;
mod session;
mod zone;

#[cfg(test)]
mod join_tests;
#[cfg(test)]
mod language_tests;
#[cfg(test)]
mod query_tests;
#[cfg(test)]
mod testing;

pub use planner::{Deduplicate, Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind, UNIQUE_KEY};

// Library users write scalar functions against these types.
pub use datafusion::logical_expr as udf;
