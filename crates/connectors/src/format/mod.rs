//! Formats: decoders from raw records to rows.
