//! The registry: which sources, sinks and formats there are.
