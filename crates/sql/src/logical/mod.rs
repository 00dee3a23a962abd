//! Operators of streams as nodes of DataFusion's logical plan, and what is done to the plan as a whole.

pub(crate) mod analyse;
pub(crate) mod arrivals;
pub(crate) mod check;
pub(crate) mod inputs;
pub(crate) mod join;
pub(crate) mod lazy;
pub(crate) mod limits;
pub(crate) mod lineage;
pub(crate) mod nodes;
pub(crate) mod not_null;
pub(crate) mod rewrite;
pub(crate) mod stateful;
pub(crate) mod tables;
pub(crate) mod time_bound;
