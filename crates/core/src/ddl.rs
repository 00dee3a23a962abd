//! Spark DDL schemas.
