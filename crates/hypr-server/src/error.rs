//! [`hypr_common::ErrorKind`] to gRPC status codes and back, and the one place where a request's error is logged.
//!
//! Invariant: a status carries the client's message only; the source chain goes to the log and nowhere else.

use std::error::Error as StdError;

use arrow_flight::error::FlightError;
use hypr_common::{Error, ErrorKind};
use tonic::{Code, Status};

/// The code that tells a client what to do about an error of `kind`.
pub fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Busy | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Corrupted => Code::DataLoss,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The kind a client's code reads back from a status.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => ErrorKind::InvalidInput,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::Aborted => ErrorKind::Conflict,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::DataLoss => ErrorKind::Corrupted,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::PermissionDenied,
        Code::Cancelled | Code::DeadlineExceeded => ErrorKind::Cancelled,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::Ok | Code::Unknown | Code::Internal => ErrorKind::Internal,
    }
}

/// Logs the error of a request once, with its whole source chain, and makes the client's status.
///
/// Errors the client can correct are logged at debug level, defects and damage at error level.
pub(crate) fn to_status(error: Error) -> Status {
    let chain = source_chain(&error);
    match error.kind() {
        ErrorKind::Internal | ErrorKind::Corrupted => {
            tracing::error!(kind = ?error.kind(), message = error.message(), %chain, "request failed");
        }
        ErrorKind::ResourceExhausted | ErrorKind::Unavailable | ErrorKind::Busy => {
            tracing::warn!(kind = ?error.kind(), message = error.message(), %chain, "request refused");
        }
        _ => tracing::debug!(kind = ?error.kind(), message = error.message(), %chain, "request rejected"),
    }
    Status::new(code_of(error.kind()), error.message())
}

/// An error that reached a client, with the server's own message.
pub(crate) fn from_status(status: Status) -> Error {
    let message = match status.message() {
        "" => format!("the server answered {:?} without a message", status.code()),
        message => message.to_owned(),
    };
    Error::new(kind_of(status.code()), message).with_source(status)
}

/// A client-side Flight failure: the server's status where there is one, else what went wrong on the way.
pub(crate) fn from_flight(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => from_status(*status),
        FlightError::Arrow(error) => error.into(),
        other => Error::internal(format!("the Flight connection failed: {other}")).with_source(other),
    }
}

/// A failure in the stream a client sends us: its bytes are wrong, or it went away.
pub(crate) fn from_incoming(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => from_status(*status),
        other => Error::invalid(format!("the uploaded Arrow data cannot be read: {other}")).with_source(other),
    }
}

fn source_chain(error: &Error) -> String {
    let mut chain = String::new();
    let mut cause = error.source();
    while let Some(current) = cause {
        if !chain.is_empty() {
            chain.push_str(": ");
        }
        chain.push_str(&current.to_string());
        cause = current.source();
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_shows_the_message_and_never_the_source() {
        let status = to_status(Error::corrupted("shard 3 is damaged").with_source("secret path /data"));
        assert_eq!(status.code(), Code::DataLoss);
        assert_eq!(status.message(), "shard 3 is damaged");
        assert!(StdError::source(&status).is_none());
    }

    #[test]
    fn kinds_survive_the_wire_but_for_busy() {
        for kind in [
            ErrorKind::InvalidInput,
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::Conflict,
            ErrorKind::ResourceExhausted,
            ErrorKind::Corrupted,
            ErrorKind::Unsupported,
            ErrorKind::PermissionDenied,
            ErrorKind::Cancelled,
            ErrorKind::Unavailable,
            ErrorKind::Internal,
        ] {
            assert_eq!(from_status(to_status(Error::new(kind, "m"))).kind(), kind);
        }
    }
}
