//! Jobs: what is computed about them.

use crate::{error, server};
use pgark_types::job::{Action, JobOptions};
use pgark_types::schedule::ScheduleError;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;
use ulid::Ulid;

#[pg_extern(sql = false)]
fn new_ulid() -> String {
    let Some(random) = server::random() else {
        error::raise(
            PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
            "could not generate random bytes".to_owned(),
            "The operating system gave none.".to_owned(),
            "Look whether /dev/urandom can be read.".to_owned(),
        )
    };
    let milliseconds = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
    Ulid::from_parts(milliseconds, u128::from_le_bytes(random)).to_string()
}

#[pg_extern(sql = false)]
fn check_job_options(action: &str, options: &str) -> String {
    let checked = action
        .parse::<Action>()
        .and_then(|action| JobOptions::parse(action, options));
    match checked {
        Ok(options) => json(&options),
        Err(error) => error::invalid(error),
    }
}

/// A value that was parsed from JSON, as JSON.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_string(value) {
        Ok(text) => text,
        Err(error) => error::raise(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("could not write JSON: {error}"),
            "This is a defect of pgark.".to_owned(),
            "Report it.".to_owned(),
        ),
    }
}

#[pg_extern(sql = false)]
fn shell_quote(word: &str) -> String {
    if word.chars().any(char::is_control) {
        error::invalid(ScheduleError {
            message: "a word of a shell command cannot hold control characters".to_owned(),
            detail: "A line break or an escape could make a terminal or a shell do something else."
                .to_owned(),
            hint: "Leave them out.".to_owned(),
        })
    }
    let plain = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-' | b':' | b'+' | b',')
    };
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[pg_extern(sql = false)]
fn in_transaction_block() -> bool {
    server::in_transaction_block()
}
