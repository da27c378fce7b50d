//! What went wrong in one attempt: whether to try again, whether it may have worked all the same,
//! and what to tell the operator.

use crate::Error;
use crate::storage::policy::{Failed, Operation};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use chrono::{DateTime, Utc};
use std::time::Duration;

/// The most characters of a server's own words that are passed on.
const WORDS_MAX: usize = 300;

/// Why an operation failed, as the operator must tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) enum Cause {
    Unavailable,
    NotFound,
    /// `If-None-Match` found something.
    Exists,
    /// The server does not know a header we sent.
    NotImplemented,
    RangeNotSatisfiable,
    CredentialsMissing,
    CredentialsExpired,
    CredentialsRejected,
    AccessDenied,
    BucketMissing,
    WrongRegion,
    ClockSkew,
    Tls,
    Full,
    Archived,
    Encryption,
    /// The bucket has no object lock.
    LockUnknown,
    /// The bucket has no lifecycle rules.
    NoRules,
    /// It was asked for before.
    UnderWay,
    /// Not what an S3 server answers.
    Foreign,
    /// Refused, and none of the above.
    Refused,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub(in crate::storage) struct Failure {
    pub(super) cause: Cause,
    /// Whether trying again may help.
    pub(super) retry: bool,
    /// Whether the request may have been carried out all the same.
    pub(super) ambiguous: bool,
    /// What happened, in words without secrets.
    pub(super) text: String,
}

impl Failure {
    fn new(cause: Cause, retry: bool, ambiguous: bool, text: impl Into<String>) -> Self {
        let text: String = text.into();
        Self {
            cause,
            retry,
            ambiguous,
            text: text.chars().take(WORDS_MAX).collect(),
        }
    }

    /// Nothing was sent, or nothing came of it.
    pub(in crate::storage) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(Cause::Unavailable, true, false, text)
    }

    /// A 2xx answer that no S3 server gives: an error in disguise, or a proxy's own page.
    pub(super) fn foreign(text: impl Into<String>) -> Self {
        Self::new(Cause::Foreign, true, true, text)
    }

    /// The same, possibly carried out.
    #[cfg(test)]
    pub(in crate::storage) fn ambiguous(mut self) -> Self {
        self.ambiguous = true;
        self
    }

    /// What the SDK says.
    pub(super) fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match error {
            SdkError::ConstructionFailure(_) => Self::before_sending(error),
            SdkError::DispatchFailure(failure) => {
                if let Some(missing) = Self::credentials(error) {
                    return missing;
                }
                let connector = failure.as_connector_error();
                let text = chain(error);
                if is_tls(&text) {
                    return Self::new(Cause::Tls, false, false, text);
                }
                // Without a connection nothing was sent.
                let sent = connector.is_none_or(|c| c.is_io() || c.is_other() || c.is_timeout())
                    && !text.contains("onnection refused")
                    && !text.contains("dns error");
                Self::new(Cause::Unavailable, true, sent, text)
            }
            SdkError::TimeoutError(_) | SdkError::ResponseError(_) => {
                Self::new(Cause::Unavailable, true, true, chain(error))
            }
            SdkError::ServiceError(service) => {
                let raw = service.raw();
                let answer = Answer {
                    status: raw.status().as_u16(),
                    code: service.err().code().unwrap_or_default(),
                    words: service.err().message().unwrap_or_default(),
                    region: raw.headers().get("x-amz-bucket-region"),
                    date: raw.headers().get("date"),
                };
                answer.failure(Utc::now())
            }
            _ => Self::new(Cause::Unavailable, true, true, chain(error)),
        }
    }

    fn before_sending<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        Self::credentials(error)
            .unwrap_or_else(|| Self::new(Cause::Refused, false, false, chain(error)))
    }

    /// The failure when no credentials could be had: nothing was sent.
    fn credentials<E>(error: &SdkError<E, HttpResponse>) -> Option<Self>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut source: Option<&dyn std::error::Error> = Some(error);
        while let Some(this) = source {
            if let Some(missing) = this.downcast_ref::<CredentialsError>() {
                let retry = matches!(
                    missing,
                    CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_)
                );
                return Some(Self::new(
                    Cause::CredentialsMissing,
                    retry,
                    false,
                    chain(error),
                ));
            }
            source = this.source();
        }
        None
    }
}

impl Failed for Failure {
    fn timeout(limit: Duration) -> Self {
        let text = format!("no answer within {:.1} s", limit.as_secs_f64());
        Self::new(Cause::Unavailable, true, true, text)
    }

    fn may_retry(&self) -> bool {
        self.retry
    }

    fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    fn text(&self) -> &str {
        &self.text
    }

    fn into_error(
        self,
        operation: &Operation,
        place: &str,
        attempts: u32,
        elapsed: Duration,
    ) -> Error {
        let failed = format!(
            "could not {} \"{}\" in {place}",
            operation.verb, operation.subject
        );
        let tried = match attempts {
            1 => "One attempt".to_owned(),
            n => format!("{n} attempts"),
        };
        let words = self.text.trim_end_matches('.');
        explain(self.cause, &failed, operation.permission).with_detail(format!(
            "{words}. {tried} in {:.1} s.",
            elapsed.as_secs_f64()
        ))
    }
}

/// The error of a cause, with what mends it.
fn explain(cause: Cause, failed: &str, permission: &str) -> Error {
    match cause {
        Cause::Unavailable
        | Cause::NotFound
        | Cause::Exists
        | Cause::RangeNotSatisfiable
        | Cause::LockUnknown
        | Cause::NoRules
        | Cause::UnderWay => {
            Error::unavailable("s3_unavailable", format!("{failed}: no answer that helps"))
                .with_hint("Check endpoint in [repository.*], the network and the server; then run the command again.")
        }
        Cause::CredentialsMissing => {
            Error::unavailable("s3_credentials_missing", format!("{failed}: there are no credentials"))
                .with_hint("Set access_key_id and secret_access_key or credentials_file in [repository.*], or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment.")
        }
        Cause::CredentialsExpired => {
            Error::unavailable("s3_credentials_expired", format!("{failed}: the credentials have expired"))
                .with_hint("Renew the session's credentials where [repository.*] says they come from.")
        }
        Cause::CredentialsRejected => {
            Error::unavailable("s3_credentials_rejected", format!("{failed}: the server rejects the credentials"))
                .with_hint("Check access key id and secret access key: the server does not know the one or the other.")
        }
        Cause::AccessDenied => {
            Error::unavailable("s3_access_denied", format!("{failed}: access denied"))
                .with_hint(format!("Grant {permission} on the bucket to these credentials. Reading needs s3:GetObject and s3:ListBucket, writing s3:PutObject too."))
        }
        Cause::BucketMissing => {
            Error::unavailable("s3_bucket_missing", format!("{failed}: there is no such bucket"))
                .with_hint("Check bucket, endpoint and region in [repository.*], or create the bucket: pgark does not.")
        }
        Cause::WrongRegion => {
            Error::unavailable("s3_wrong_region", format!("{failed}: the bucket is in another region"))
                .with_hint("Set region in [repository.*] to the bucket's.")
        }
        Cause::ClockSkew => {
            Error::unavailable("s3_clock_skew", format!("{failed}: the clocks are too far apart"))
                .with_hint("Set this host's clock: run chrony or systemd-timesyncd.")
        }
        Cause::Tls => {
            Error::unavailable("s3_tls", format!("{failed}: no trusted TLS connection"))
                .with_hint("Name the authority that signed the server's certificate with ca_file in [repository.*]; the endpoint must speak TLS.")
        }
        Cause::Full => {
            Error::unavailable("disk_full", format!("{failed}: the server has no room"))
                .with_hint("Free space on the S3 server or raise the quota; then run the command again.")
        }
        Cause::Archived => {
            Error::unavailable("s3_object_archived", format!("{failed}: its storage class is an archive"))
                .with_hint("\"pgark restore --dry-run\" lists what lies in the archive, --retrieve asks for it. For WAL during recovery: retrieve it, then start the server again.")
        }
        Cause::Encryption => {
            Error::unavailable("s3_encryption_refused", format!("{failed}: the server cannot use the key"))
                .with_hint("Check sse and sse_kms_key_id in [repository.*], and the key's policy.")
        }
        Cause::Foreign | Cause::NotImplemented => {
            Error::unavailable("s3_unexpected_reply", format!("{failed}: the answer is not S3's"))
                .with_hint("Check that endpoint in [repository.*] is an S3 server, and what proxies stand before it.")
        }
        Cause::Refused => {
            Error::unavailable("s3_refused", format!("{failed}: refused"))
                .with_hint("The server's words are in the detail; check [repository.*] against them.")
        }
    }
}

/// An error answer.
struct Answer<'a> {
    status: u16,
    code: &'a str,
    words: &'a str,
    region: Option<&'a str>,
    date: Option<&'a str>,
}

impl Answer<'_> {
    fn failure(&self, now: DateTime<Utc>) -> Failure {
        let (cause, retry) = self.cause();
        let mut text = format!("The server answered {} {}", self.status, self.code);
        if !self.words.is_empty() {
            text = format!("{}: {}", text.trim_end(), self.words);
        }
        match (cause, self.region) {
            (Cause::WrongRegion, Some(region)) => {
                text = format!("The bucket is in region {region}")
            }
            (Cause::ClockSkew, _) => text = self.skew(now).unwrap_or(text),
            _ => {}
        }
        // After a 5xx nobody knows; a 4xx is a refusal, but a proxy's time-out is not.
        let ambiguous = self.status >= 500 || matches!(self.status, 200..=299 | 408 | 409 | 429);
        Failure::new(cause, retry, ambiguous, text)
    }

    fn cause(&self) -> (Cause, bool) {
        let by_code = match self.code {
            "NoSuchKey" | "NotFound" | "NoSuchVersion" => Some((Cause::NotFound, false)),
            "NoSuchBucket" => Some((Cause::BucketMissing, false)),
            "PreconditionFailed" => Some((Cause::Exists, false)),
            "InvalidRange" => Some((Cause::RangeNotSatisfiable, false)),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
                Some((Cause::CredentialsExpired, false))
            }
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "UnrecognizedClientException" => Some((Cause::CredentialsRejected, false)),
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => {
                Some((Cause::AccessDenied, false))
            }
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => Some((Cause::WrongRegion, false)),
            "RequestTimeTooSkewed" => Some((Cause::ClockSkew, false)),
            "InvalidObjectState" => Some((Cause::Archived, false)),
            "ObjectLockConfigurationNotFoundError" => Some((Cause::LockUnknown, false)),
            "NoSuchLifecycleConfiguration" => Some((Cause::NoRules, false)),
            "RestoreAlreadyInProgress" => Some((Cause::UnderWay, false)),
            "QuotaExceeded" | "InsufficientCapacity" | "XMinioStorageFull" => {
                Some((Cause::Full, false))
            }
            "NotImplemented" => Some((Cause::NotImplemented, false)),
            "ConditionalRequestConflict"
            | "OperationAborted"
            | "RequestTimeout"
            | "SlowDown"
            | "Throttling"
            | "TooManyRequests"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "IncompleteBody" => Some((Cause::Unavailable, true)),
            code if code.starts_with("KMS.") => Some((Cause::Encryption, false)),
            _ => None,
        };
        by_code.unwrap_or(match self.status {
            // Without S3's own code a 404 may be anybody's: it proves no absence.
            404 => (Cause::Foreign, true),
            301 | 307 => (Cause::WrongRegion, false),
            403 => (Cause::AccessDenied, false),
            412 => (Cause::Exists, false),
            416 => (Cause::RangeNotSatisfiable, false),
            501 => (Cause::NotImplemented, false),
            507 => (Cause::Full, false),
            // An error in a good answer's clothes.
            200..=299 => (Cause::Foreign, true),
            408 | 409 | 425 | 429 | 500.. => (Cause::Unavailable, true),
            _ => (Cause::Refused, false),
        })
    }

    /// How far the clocks are apart.
    fn skew(&self, now: DateTime<Utc>) -> Option<String> {
        let theirs = DateTime::parse_from_rfc2822(self.date?).ok()?;
        let seconds = (now - theirs.to_utc()).num_seconds();
        let how = if seconds < 0 { "behind" } else { "ahead of" };
        Some(format!(
            "This host's clock is {} s {how} the server's",
            seconds.unsigned_abs()
        ))
    }
}

/// An error and its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut source = Some(error);
    while let Some(this) = source {
        let words = this.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        source = this.source();
    }
    text
}

fn is_tls(text: &str) -> bool {
    [
        "certificate",
        "InvalidContentType",
        "HandshakeFailure",
        "tls handshake",
    ]
    .iter()
    .any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> Failure {
        let answer = Answer {
            status,
            code,
            words: "words",
            region: Some("eu-central-1"),
            date: Some("Sat, 21 Nov 2026 10:00:00 GMT"),
        };
        answer.failure("2026-11-21T12:00:00Z".parse().unwrap())
    }

    fn error(failure: Failure) -> Error {
        let operation = Operation {
            verb: "put",
            permission: "s3:PutObject",
            subject: "wal/1".to_owned(),
            attempt: Duration::from_secs(1),
            deadline: Duration::from_secs(1),
            patience: Duration::from_secs(1),
            attempt_patience: Duration::from_secs(1),
        };
        failure.into_error(&operation, "S3 bucket \"b\"", 1, Duration::ZERO)
    }

    #[test]
    fn every_bad_input_has_its_code_and_what_mends_it() {
        for (status, code, expected, word) in [
            (400, "ExpiredToken", "s3_credentials_expired", "Renew"),
            (
                403,
                "InvalidAccessKeyId",
                "s3_credentials_rejected",
                "secret access key",
            ),
            (
                403,
                "SignatureDoesNotMatch",
                "s3_credentials_rejected",
                "secret access key",
            ),
            (403, "AccessDenied", "s3_access_denied", "s3:PutObject"),
            (403, "", "s3_access_denied", "s3:PutObject"),
            (
                404,
                "NoSuchBucket",
                "s3_bucket_missing",
                "create the bucket",
            ),
            (301, "PermanentRedirect", "s3_wrong_region", "region"),
            (
                400,
                "AuthorizationHeaderMalformed",
                "s3_wrong_region",
                "region",
            ),
            (403, "RequestTimeTooSkewed", "s3_clock_skew", "clock"),
            (507, "XMinioStorageFull", "disk_full", "quota"),
            (403, "QuotaExceeded", "disk_full", "quota"),
            (400, "KMS.DisabledException", "s3_encryption_refused", "sse"),
            (400, "InvalidRequest", "s3_refused", "words"),
            (503, "SlowDown", "s3_unavailable", "endpoint"),
        ] {
            let error = error(answer(status, code));
            assert_eq!(error.code(), expected, "{status} {code}");
            assert!(error.hint().unwrap().contains(word), "{:?}", error.hint());
        }
        assert_eq!(
            answer(301, "PermanentRedirect").text,
            "The bucket is in region eu-central-1"
        );
        assert_eq!(
            answer(403, "RequestTimeTooSkewed").text,
            "This host's clock is 7200 s ahead of the server's"
        );
    }

    #[test]
    fn only_s3_itself_proves_absence() {
        assert_eq!(answer(404, "NoSuchKey").cause, Cause::NotFound);
        let proxy = answer(404, "");
        assert_eq!((proxy.cause, proxy.retry), (Cause::Foreign, true));
    }

    #[test]
    fn an_error_in_a_good_answer_is_tried_again() {
        let disguised = answer(200, "InternalError");
        assert!(disguised.retry && disguised.ambiguous);
        assert_eq!(error(disguised).code(), "s3_unexpected_reply");
    }

    #[test]
    fn what_may_have_been_done_is_ambiguous() {
        assert!(answer(500, "InternalError").ambiguous);
        assert!(answer(503, "SlowDown").ambiguous);
        assert!(answer(409, "ConditionalRequestConflict").retry);
        assert!(!answer(403, "AccessDenied").ambiguous);
        assert!(Failure::timeout(Duration::ZERO).ambiguous);
    }
}
