//! Perennial.

pub mod http;
pub mod job;
pub mod job_file;
