//! The `sqlite` sink.
