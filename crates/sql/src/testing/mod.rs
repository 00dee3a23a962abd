//! What the tests of this crate share: state in memory, a batch loop, values as the conformance cases write them.

pub(crate) mod batches;
pub(crate) mod state;
pub(crate) mod values;
