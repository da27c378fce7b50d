//! One error type for the whole archiver, in Postgres's manner: what failed on what, then detail
//! and hint.

use std::fmt;

/// What a caller or an operator can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Something that should answer does not (storage, server, disk full): try again later.
    Unavailable,
    /// The request is wrong: arguments, configuration, preconditions. Change it.
    Invalid,
    /// Bytes are not what they must be. Look at the hardware and at `pgark verify`.
    Data,
    /// Two contents claim one name, or two operations claim one place.
    Conflict,
    /// Another writer has taken over.
    Fenced,
    /// A bug in pgark.
    Internal,
}

impl ErrorKind {
    /// The word used in logs and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Invalid => "invalid",
            Self::Data => "data",
            Self::Conflict => "conflict",
            Self::Fenced => "fenced",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later without anybody changing anything. The one place
    /// that decides it.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable)
    }
}

/// An error: `kind` says what to do about it, `code` is stable and greppable
/// (`docs/reference/errors.md`), the rest is for people.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    code: &'static str,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The archiver's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`. `code` is `snake_case`, unique to the situation; `message` is
    /// lower-case, without a period.
    pub fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        let inner = Inner {
            kind,
            code,
            message: message.into(),
            detail: None,
            hint: None,
            source: None,
        };
        Self {
            inner: Box::new(inner),
        }
    }

    /// [`ErrorKind::Unavailable`].
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, code, message)
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, code, message)
    }

    /// [`ErrorKind::Data`].
    pub fn data(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, code, message)
    }

    /// [`ErrorKind::Conflict`].
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, code, message)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, code, message)
    }

    /// An I/O error on `what` ("could not read file \"x\""). Full disks, permission and absence get
    /// codes and hints of their own.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, code, hint) = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => (
                ErrorKind::Unavailable,
                "disk_full",
                Some("Free space on that file system, then run the command again."),
            ),
            Io::PermissionDenied => (
                ErrorKind::Unavailable,
                "permission_denied",
                Some(
                    "Run pgark as the owner of the data directory, and give that user access to the path.",
                ),
            ),
            Io::ReadOnlyFilesystem => (
                ErrorKind::Unavailable,
                "read_only",
                Some("Mount the file system for writing, or use another path."),
            ),
            Io::NotFound => (ErrorKind::Unavailable, "not_found", None),
            _ => (ErrorKind::Unavailable, "io", None),
        };
        let error = Self::new(kind, code, message).with_source(source);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Adds the DETAIL sentence.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.inner.detail = Some(detail.into());
        self
    }

    /// Adds the HINT sentence.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts `context` before the message: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.inner.message = format!("{context}: {}", self.inner.message);
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.inner.code
    }

    /// The primary message, without its cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The DETAIL sentence.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.inner.detail.as_deref()
    }

    /// The HINT sentence.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        let mut cause = self
            .inner
            .source
            .as_ref()
            .map(|s| &**s as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl From<pgark_types::ParseError> for Error {
    fn from(error: pgark_types::ParseError) -> Self {
        Self::invalid("invalid_text", error.to_string())
    }
}
