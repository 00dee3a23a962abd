//! The catalogue of error classes: one row each.

use super::ErrorKind;

/// One class of errors: what it is called, what it means and what to do about it.
///
/// `code` is what people see as `type` in dead letters, in `errors_by_type` and in metrics, so it never changes.
#[derive(Debug, PartialEq, Eq)]
pub struct ErrorClass {
    /// The name, stable for ever.
    pub code: &'static str,
    /// What sort of failure it is; decides the default action.
    pub kind: ErrorKind,
    /// When it happens.
    pub meaning: &'static str,
    /// What a person should do.
    pub recommendation: &'static str,
}

/// The recommendation of classes that have none of their own.
const REVIEW: &str = "Review stack trace and DLQ entry";

macro_rules! catalogue {
    ($($name:ident = $code:literal, $kind:ident, $meaning:literal, $recommendation:expr;)*) => {
        /// The classes by name.
        pub mod class {
            #![allow(missing_docs, reason = "each is described by its row")]
            use super::*;
            $(pub static $name: &ErrorClass = &ErrorClass {
                code: $code, kind: ErrorKind::$kind, meaning: $meaning, recommendation: $recommendation,
            };)*
        }
        /// All classes, in the order of the documentation.
        pub static CATALOGUE: &[&ErrorClass] = &[$(class::$name),*];
    };
}

catalogue! {
    // Classes that people know from their PySpark jobs; names and recommendations are fixed.
    SERVER_SELECTION_TIMEOUT = "ServerSelectionTimeoutError", Transient, "MongoDB cannot be reached", "Retry after 30 seconds - Check MongoDB connection";
    TIMEOUT = "Timeout", Transient, "a remote call timed out", "Retry after 60 seconds - Check API availability";
    ANALYSIS = "AnalysisException", Config, "the SQL does not parse or does not fit the schemas", "Check data schema and collection structure";
    SCHEMA = "SchemaError", Schema, "the schema of the data does not fit the query", "Check data schema and collection structure";

    // Records.
    MALFORMED_RECORD = "MalformedRecord", Data, "a record cannot be decoded by the source's format and schema", "Look at the raw bytes in the dead letter - Mend the producer or the schema, then replay";
    EXPECTATION_FAILED = "ExpectationFailed", Data, "a record breaks an expectation of its source", "Look at the broken rules in the dead letter - Mend the data or the rule, then replay";
    EXPRESSION_FAILED = "ExpressionFailed", Data, "an expression of the query fails on a row (cast, overflow, division by zero)", "Use the try_ form of the function, or on_error: dead_letter";
    LATE_RECORD = "LateRecord", Data, "a record came when the watermark had already passed its event time (late: dead_letter)", "Give the watermark of the source a longer delay - Replay the record into a query that still takes it";
    CONSTRAINT_VIOLATION = "ConstraintViolation", Data, "the sink's target refuses a row: a constraint of the table", "Look at the row in the dead letter - Mend the data or the constraint, then replay";
    DATA_LOSS = "DataLoss", Data, "records that the query has not read are no longer in the source", "Check the retention of the topic - Set fail_on_data_loss: false to go on from the oldest record that is left";

    // Sources and sinks.
    CONNECTION_REFUSED = "ConnectionRefused", Transient, "nothing listens at the address", "Check that the server runs and that address and port are right";
    CONNECTION_LOST = "ConnectionLost", Transient, "the connection broke in the middle of work", "Check the network and the server's log - It is tried again by itself";
    NAME_NOT_RESOLVED = "NameNotResolved", Transient, "the host name is unknown", "Check the host name and the DNS";
    TLS_FAILED = "TlsFailed", Config, "the TLS handshake failed", "Check certificates, their dates and the trusted authorities";
    AUTHENTICATION_FAILED = "AuthenticationFailed", Config, "user or password are refused", "Check the credentials";
    AUTHORIZATION_FAILED = "AuthorizationFailed", Config, "the user may not do this", "Grant the right to the job's user";
    THROTTLED = "Throttled", Throttled, "the server asks for fewer requests", "Nothing to do - Lower the batch size when it stays";
    SERVER_UNAVAILABLE = "ServerUnavailable", Transient, "the server answers that it cannot work now", "Check the server's health";
    TARGET_MISSING = "TargetMissing", Config, "the topic, table, database or directory does not exist", "Create it, or correct its name in the job file";
    TARGET_SCHEMA = "TargetSchema", Schema, "the target's columns do not fit the query's", "Compare the columns of the query with those of the target";
    OFFSET_OUT_OF_RANGE = "OffsetOutOfRange", Data, "the source does not have the asked offset", "Check the retention of the topic";
    SINK_REJECTED = "SinkRejected", Data, "the sink's target refuses the rows", "Look at the message of the target";

    // Storage.
    STORAGE_UNAVAILABLE = "StorageUnavailable", Transient, "the storage of the checkpoint or of files does not answer", "Check the disk or the object store";
    STORAGE_NOT_FOUND = "StorageNotFound", Config, "a file or directory does not exist", "Check the path";
    STORAGE_PERMISSION_DENIED = "StoragePermissionDenied", Config, "the process may not read or write there", "Grant the right to the job's user";
    STORAGE_AUTHENTICATION_FAILED = "StorageAuthenticationFailed", Config, "the object store refuses the credentials", "Check the credentials";
    DISK_FULL = "DiskFull", Transient, "there is no room left", "Free some room - The query goes on by itself";

    // The job and its checkpoint.
    CONFIG_INVALID = "ConfigInvalid", Config, "the job file is wrong", "Correct the job file";
    CHECKPOINT_MISMATCH = "CheckpointMismatch", Config, "the checkpoint belongs to another job or to another form of the query", "Use another checkpoint directory, or restore the query";
    CHECKPOINT_CORRUPT = "CheckpointCorrupt", Corrupt, "a file of the checkpoint is damaged or missing", "Do not delete the checkpoint - Look at the named file";
    CHECKPOINT_NEWER = "CheckpointNewer", Config, "the checkpoint was written by a newer version", "Run that version or a newer one";
    SPARK_CHECKPOINT = "SparkCheckpoint", Config, "a checkpoint cannot be taken over from Spark, or given to it", "Look up in docs/spark-checkpoints.md what can be taken over";
    FENCED = "Fenced", Fenced, "another process took over the checkpoint", "Look for a second process with this checkpoint";
    GUARANTEE_NOT_MET = "GuaranteeNotMet", Config, "the parts of the query give less than the demanded guarantee", "Change the weakest part, or demand less";
    MEMORY_LIMIT = "MemoryLimit", Config, "state and batch need more memory than the limit", "Raise the limit, or make windows and keys fewer";
    STATE_UNSUPPORTED = "StateUnsupported", Config, "this query cannot be run incrementally", "Rewrite the query as the message says";
    UNSUPPORTED_OPERATION = "UnsupportedOperation", Config, "Spark Structured Streaming refuses this query, and so does Perennial", "Rewrite the query as the message says";
    INTERNAL = "InternalError", Bug, "an assertion of Perennial failed", REVIEW;
}
