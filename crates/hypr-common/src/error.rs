//! One error type across crate boundaries. [`ErrorKind`] tells the caller what to do next, the message is
//! safe to show to a client, and the source chain is for the log.

use std::error::Error as StdError;
use std::fmt;

/// The result of every fallible operation that crosses a crate boundary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error; each front end maps these onto its own status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; changing it will help, retrying will not.
    InvalidInput,
    /// A named thing does not exist.
    NotFound,
    /// A named thing, or a row with this key, exists already.
    AlreadyExists,
    /// Another writer came first; read again and retry.
    Conflict,
    /// A bounded queue is full; retry later.
    Busy,
    /// A configured limit, the disk or the memory budget is exhausted; the message names which.
    ResourceExhausted,
    /// Stored bytes fail their checksum or their format; the message names the file.
    Corrupted,
    /// Valid, and not built yet or not available in this configuration.
    Unsupported,
    /// The principal may not do this.
    PermissionDenied,
    /// The caller stopped waiting.
    Cancelled,
    /// The server is starting, draining or gone.
    Unavailable,
    /// A defect in Hyprstream.
    Internal,
}

/// An error with a kind for the program, a message for the client and a source for the log.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind` that tells the client `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps `source` for the log; the client never sees it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Corrupted`].
    pub fn corrupted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupted, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An I/O failure while doing `what`; a full disk becomes [`ErrorKind::ResourceExhausted`] and a
    /// missing file [`ErrorKind::NotFound`].
    pub fn io(what: impl fmt::Display, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied => ErrorKind::PermissionDenied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::ResourceExhausted,
            Io::InvalidData | Io::UnexpectedEof => ErrorKind::Corrupted,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{what}: {error}")).with_source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<arrow_schema::ArrowError> for Error {
    fn from(error: arrow_schema::ArrowError) -> Self {
        use arrow_schema::ArrowError as Arrow;
        let kind = match &error {
            Arrow::NotYetImplemented(_) => ErrorKind::Unsupported,
            Arrow::CastError(_) | Arrow::ParseError(_) | Arrow::InvalidArgumentError(_) | Arrow::DivideByZero => {
                ErrorKind::InvalidInput
            }
            Arrow::IpcError(_) => ErrorKind::Corrupted,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}
