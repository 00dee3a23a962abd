//! What the states of a plan mean, in words that other engines have as well: for taking over what they kept, and for giving them ours.

use std::ops::Range;

use arrow::datatypes::DataType;

/// A stateful operator and the meaning of its states.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorLayout {
    /// Spark's name of it (`stateStoreSave`, `dedupe`, …).
    pub name: String,
    /// Number of its first state in [`QueryPlan::state`](crate::plan::QueryPlan::state); a second one is the next.
    pub state: usize,
    /// What is in them.
    pub content: Content,
}

/// What the columns of an operator's states are.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A row per group: the columns of its key, then those of its aggregates.
    Aggregation {
        /// What the columns of the key are.
        keys: Vec<KeyLayout>,
        /// What the other columns are, aggregate by aggregate.
        aggregates: Vec<AggregateLayout>,
    },
    /// A row per session: the columns of its group, its start and its end, then those of its aggregates. The second state has a row per
    /// group: its columns, and a list of the starts and ends of its sessions in turn, in microseconds, ascending.
    Sessions {
        /// What the columns of the group are.
        keys: Vec<KeyLayout>,
        /// What the columns behind the session are.
        aggregates: Vec<AggregateLayout>,
    },
    /// A row per key that was seen: its columns, and, where rows are remembered for a time, when it is forgotten.
    Deduplication,
    /// A state per side, with the rows that may find a match.
    Join(Box<[SideLayout; 2]>),
    /// Something that no other engine is known to keep in the same way.
    Own,
}

/// What a column of a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLayout {
    /// Name of the column in the query.
    pub name: String,
    /// For the start of a window: the size of the window, in microseconds.
    pub window: Option<i64>,
}

/// An aggregate in a state.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateLayout {
    /// Name of the function, as the engine has it: `sum`, `stddev_pop`.
    pub function: String,
    /// The call, for people: `sum(v)`.
    pub call: String,
    /// Whether it is over distinct values, or in an order of its own: its columns then are of a kind of their own.
    pub plain: bool,
    /// The types of its arguments; empty where they are not known.
    pub arguments: Vec<DataType>,
    /// Its columns in the state.
    pub columns: Range<usize>,
}

/// One side of a join. Columns are those of its state.
#[derive(Debug, Clone, PartialEq)]
pub struct SideLayout {
    /// The columns of the keys; they are the first ones.
    pub keys: usize,
    /// Number of the row among those of its key, from 0 on without gaps.
    pub slot: usize,
    /// In slot 0 how many rows the key has, 0 in the others.
    pub rows: usize,
    /// Whether a row is forgotten with its first match.
    pub once: bool,
    /// Whether the row had a match, where that is kept.
    pub matched: Option<usize>,
    /// When the row goes away, where that is a column of its own: made of [`SideLayout::expiry`].
    pub expires_at: Option<usize>,
    /// The column of the row after which it goes away, a timestamp or a window.
    pub expiry: Option<usize>,
    /// The columns of the row: name, and where it is in the state.
    pub columns: Vec<(String, usize)>,
}
