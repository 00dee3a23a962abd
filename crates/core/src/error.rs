//! The one public error, and the catalogue of error classes behind it.
//!
//! Modules are free to have a finer error inside. At a border it becomes an [`Error`]: a class from [`CATALOGUE`] (which says what
//! kind of failure this is, what to do about it and what the supervisor does by itself), a message that says what happened and
//! where, and the root cause. Classification looks at the root cause, never at the wrapper.

mod catalogue;

use std::fmt;
use std::time::Duration;

use crate::breaker::Part;

pub use catalogue::{CATALOGUE, ErrorClass, class};

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure a class is. Few and closed: the policy of the supervisor is written in terms of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Goes away by itself: a connection lost, a server that restarts.
    Transient,
    /// The other side asks for less.
    Throttled,
    /// Records that cannot be processed, whatever is tried.
    Data,
    /// The data's or the target's schema does not fit the query.
    Schema,
    /// The job file, its credentials or its environment are wrong: a person must act.
    Config,
    /// Another process owns the checkpoint.
    Fenced,
    /// Something that Perennial wrote is not as it was written.
    Corrupt,
    /// An assertion of Perennial failed.
    Bug,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Data => "data",
            Self::Schema => "schema",
            Self::Config => "config",
            Self::Fenced => "fenced",
            Self::Corrupt => "corrupt",
            Self::Bug => "bug",
        })
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What happened, where, and what to do.
///
/// `Display` gives the message with its places, outermost first, and the root cause: `query per_minute: sink: …`. The recommendation
/// is the class's.
pub struct Error(Box<Inner>);

struct Inner {
    class: &'static ErrorClass,
    message: String,
    places: Vec<String>,
    cause: Option<Cause>,
    retry_after: Option<Duration>,
    part: Option<Part>,
}

impl Error {
    /// An error of `class`; `message` says what happened and, where a person can do something, what.
    pub fn new(class: &'static ErrorClass, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { class, message, places: Vec::new(), cause: None, retry_after: None, part: None }))
    }

    /// An assertion of Perennial that did not hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(class::INTERNAL, message)
    }

    /// Adds the error that this one came from.
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Adds a place around the error: a stage, a file, a query. The latest comes first in the message.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.places.push(place.into());
        self
    }

    /// Adds the server's own wish for when to try again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Says which part of the query it is that failed, where that is not known yet.
    pub fn of(mut self, part: Part) -> Self {
        self.0.part.get_or_insert(part);
        self
    }

    /// The part of the query that failed, where that is known.
    pub fn part(&self) -> Option<&Part> {
        self.0.part.as_ref()
    }

    /// The row of the catalogue.
    pub fn class(&self) -> &'static ErrorClass {
        self.0.class
    }

    /// The kind of the class.
    pub fn kind(&self) -> ErrorKind {
        self.0.class.kind
    }

    /// The message without places and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// When the server wants to be asked again, if it said so.
    pub fn retry_hint(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The first `T` in the chain of causes.
    pub fn find_cause<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<T>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.places.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        // The innermost cause: what wraps it says little. One that the message already quotes adds nothing.
        let mut root = self.0.cause.as_deref().map(|c| c as &(dyn std::error::Error + 'static));
        while let Some(inner) = root.and_then(std::error::Error::source) {
            root = Some(inner);
        }
        if let Some(text) = root.map(ToString::to_string).filter(|text| !self.0.message.contains(text)) {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.class.code)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_deref().map(|c| c as _)
    }
}

/// Adds a place to the error of a `Result`.
pub trait ResultExt<T> {
    /// As [`Error::at`]; the place is only made when there is an error.
    fn at(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.at(place()))
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        let class = match &error {
            arrow::error::ArrowError::ArithmeticOverflow(_) | arrow::error::ArrowError::DivideByZero => {
                class::EXPRESSION_FAILED
            }
            arrow::error::ArrowError::CastError(_) | arrow::error::ArrowError::ParseError(_) => {
                class::EXPRESSION_FAILED
            }
            _ => class::INTERNAL,
        };
        Self::new(class, error.to_string()).caused_by(error)
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        // What the object store wraps decides: a full disk is not a lost connection.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut class = class::STORAGE_UNAVAILABLE;
        match &error {
            object_store::Error::NotFound { .. } => class = class::STORAGE_NOT_FOUND,
            object_store::Error::PermissionDenied { .. } => class = class::STORAGE_PERMISSION_DENIED,
            object_store::Error::Unauthenticated { .. } => class = class::STORAGE_AUTHENTICATION_FAILED,
            object_store::Error::InvalidPath { .. } | object_store::Error::NotSupported { .. } => {
                class = class::CONFIG_INVALID
            }
            _ => {}
        }
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                class = match io.kind() {
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => class::DISK_FULL,
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                        class::STORAGE_PERMISSION_DENIED
                    }
                    std::io::ErrorKind::NotFound => class::STORAGE_NOT_FOUND,
                    _ => class,
                };
            }
            cause = inner.source();
        }
        Self::new(class, error.to_string()).caused_by(error)
    }
}
