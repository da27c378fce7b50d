//! Schedules: checked, and evaluated at instants.

use crate::error;
use crate::jobs::json;
use chrono::{DateTime, Utc};
use pgark_types::schedule::Definition;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

/// 2000-01-01, where Postgres's timestamps begin, in microseconds since 1970.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// An instant; infinities become the ends of time.
pub(crate) fn instant(at: TimestampWithTimeZone) -> DateTime<Utc> {
    match at.into_inner() {
        i64::MAX => DateTime::<Utc>::MAX_UTC,
        i64::MIN => DateTime::<Utc>::MIN_UTC,
        micros => micros
            .checked_add(EPOCH_MICROSECONDS)
            .and_then(DateTime::from_timestamp_micros)
            .unwrap_or(if micros < 0 {
                DateTime::<Utc>::MIN_UTC
            } else {
                DateTime::<Utc>::MAX_UTC
            }),
    }
}

pub(crate) fn timestamp(at: DateTime<Utc>) -> Option<TimestampWithTimeZone> {
    let micros = at.timestamp_micros().checked_sub(EPOCH_MICROSECONDS)?;
    TimestampWithTimeZone::try_from(micros).ok()
}

fn parse(definition: &str) -> Definition {
    match Definition::parse(definition, Utc::now()) {
        Ok(definition) => definition,
        Err(error) => error::invalid(error),
    }
}

#[pg_extern(sql = false)]
fn check_schedule(definition: &str) -> String {
    json(&parse(definition))
}

#[pg_extern(sql = false)]
fn schedule_due(
    definition: &str,
    after: TimestampWithTimeZone,
    upto: TimestampWithTimeZone,
) -> Option<TimestampWithTimeZone> {
    let due = parse(definition).due(instant(after), instant(upto));
    due.and_then(timestamp)
}

#[pg_extern(sql = false)]
fn schedule_next(definition: &str, after: TimestampWithTimeZone) -> Option<TimestampWithTimeZone> {
    let next = parse(definition).next(instant(after));
    next.and_then(timestamp)
}
