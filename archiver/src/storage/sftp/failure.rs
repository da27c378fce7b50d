//! What went wrong: whether to try again, and what to tell the operator.

use crate::Error;
use crate::storage::policy::{Failed, Operation};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::StatusCode;
use std::time::Duration;

/// The most characters of a server's own words that are passed on.
const WORDS_MAX: usize = 300;

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection, or it did not hold: trying again may help.
    Lost {
        /// What happened.
        text: String,
        /// Whether a request may have been carried out all the same.
        ambiguous: bool,
    },
    /// Trying again at once does not help.
    Final(Error),
}

impl Failure {
    /// No connection came about: nothing was asked for.
    pub(super) fn unreached(text: impl std::fmt::Display) -> Self {
        Self::Lost {
            text: words(&text.to_string()),
            ambiguous: false,
        }
    }

    /// The connection broke, or what came over it made no sense.
    pub(super) fn broken(text: impl std::fmt::Display) -> Self {
        Self::Lost {
            text: words(&text.to_string()),
            ambiguous: true,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Failed for Failure {
    fn timeout(limit: Duration) -> Self {
        Self::broken(format_args!(
            "no answer within {:.1} s",
            limit.as_secs_f64()
        ))
    }

    fn may_retry(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Lost { ambiguous, .. } if *ambiguous)
    }

    fn text(&self) -> &str {
        match self {
            Self::Lost { text, .. } => text,
            Self::Final(error) => error.message(),
        }
    }

    fn into_error(
        self,
        operation: &Operation,
        place: &str,
        attempts: u32,
        elapsed: Duration,
    ) -> Error {
        let text = match self {
            Self::Final(error) => return error,
            Self::Lost { text, .. } => text,
        };
        let tried = match attempts {
            1 => "One attempt".to_owned(),
            n => format!("{n} attempts"),
        };
        Error::unavailable(
            "sftp_unavailable",
            format!(
                "could not {} \"{}\" in {place}: no answer that helps",
                operation.verb, operation.subject
            ),
        )
        .with_detail(format!(
            "{}. {tried} in {:.1} s.",
            text.trim_end_matches('.'),
            elapsed.as_secs_f64()
        ))
        .with_hint("Check host and port in [repository.*], the network and the server; then run the command again.")
    }
}

/// What the server answered to one request, when it was not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such file or directory.
    Absent,
    /// Behind the last byte or the last name.
    End,
    /// Permission denied.
    Denied,
    /// The server does not know such a request.
    Unsupported,
    /// SFTP has one word for a full disk, a name that is taken, and much else.
    Failed(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("no such file"),
            Self::End => f.write_str("unexpected end of file"),
            Self::Denied => f.write_str("permission denied"),
            Self::Unsupported => f.write_str("operation unsupported"),
            Self::Failed(words) => f.write_str(words),
        }
    }
}

/// The end of one request that was not answered with what it asked for.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server refused.
    Refused(Refusal),
    /// There was no answer.
    Lost(String),
}

impl From<SftpError> for Fault {
    fn from(error: SftpError) -> Self {
        let SftpError::Status(status) = error else {
            return Self::Lost(words(&error.to_string()));
        };
        Self::Refused(match status.status_code {
            StatusCode::NoSuchFile => Refusal::Absent,
            StatusCode::Eof => Refusal::End,
            StatusCode::PermissionDenied => Refusal::Denied,
            StatusCode::OpUnsupported => Refusal::Unsupported,
            StatusCode::NoConnection | StatusCode::ConnectionLost => {
                return Self::Lost("the server reports a lost connection".to_owned());
            }
            StatusCode::Ok | StatusCode::Failure | StatusCode::BadMessage => {
                Refusal::Failed(words(&status.error_message))
            }
        })
    }
}

/// What a server said, without what could command a terminal, and not too much of it.
pub(super) fn words(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let text: String = clean.take(WORDS_MAX).collect();
    match text.trim() {
        "" => "Failure".to_owned(),
        text => text.to_owned(),
    }
}
