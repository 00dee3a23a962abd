//! The program as people use it: one test binary, a module per subject.

mod cli;
#[cfg(feature = "kafka")]
mod recovery;
mod support;
