//! The `console` sink.
