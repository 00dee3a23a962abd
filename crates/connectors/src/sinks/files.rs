//! The `files` sink.
