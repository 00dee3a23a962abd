//! What went wrong on the way to a server, by its root cause.

use std::error::Error as StdError;
use std::io;

use perennial_core::error::{ErrorClass, class};

/// The class of a network failure, read from the innermost cause that says something; `None` where nothing in the chain does.
pub(crate) fn network_class(error: &(dyn StdError + 'static)) -> Option<&'static ErrorClass> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            found = Some(class::TLS_FAILED);
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            found = io_class(io).or(found);
            // An `io::Error` hides the error that it was made of from `source()`, and clients wrap one in another.
            let mut hidden = io.get_ref();
            while let Some(inner) = hidden {
                if inner.is::<rustls::Error>() {
                    found = Some(class::TLS_FAILED);
                }
                hidden = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            }
        }
        // The resolver's errors have no type or kind of their own.
        if error.to_string().contains("failed to lookup address") || error.to_string().starts_with("dns error") {
            found = Some(class::NAME_NOT_RESOLVED);
        }
        next = error.source();
    }
    found
}

/// The words of the innermost cause: wrappers say that something failed, this one says what.
pub(crate) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut root = error;
    while let Some(inner) = root.source() {
        root = inner;
    }
    root.to_string()
}

fn io_class(error: &io::Error) -> Option<&'static ErrorClass> {
    Some(match error.kind() {
        // A missing unix socket is a server that does not run.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => class::CONNECTION_REFUSED,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::NotConnected => class::CONNECTION_LOST,
        io::ErrorKind::TimedOut => class::TIMEOUT,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            class::SERVER_UNAVAILABLE
        }
        _ => return None,
    })
}
