use super::ScheduleError;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron as Pattern;
use croner::parser::{CronParser, Seconds, Year};

/// Longer expressions are a mistake: five fields of the longest useful lists fit.
const CRON_BYTES_MAX: usize = 500;

/// A cron expression of five fields in a time zone.
#[derive(Debug, Clone)]
pub(super) struct Cron {
    pattern: Pattern,
    zone: Tz,
}

fn invalid(text: &str, detail: impl Into<String>) -> ScheduleError {
    let shown: String = text.chars().take(80).collect();
    ScheduleError {
        message: format!("invalid cron expression: \"{shown}\""),
        detail: detail.into(),
        hint: "Five fields: minute hour day-of-month month day-of-week, as in \"0 2 * * *\" for every day at 02:00."
            .to_owned(),
    }
}

impl Cron {
    /// Parses an expression; one that never comes true is refused.
    pub(super) fn parse(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<Self, ScheduleError> {
        if text.len() > CRON_BYTES_MAX {
            return Err(invalid(
                text,
                format!(
                    "It is {} bytes long; at most {CRON_BYTES_MAX} are allowed.",
                    text.len()
                ),
            ));
        }
        // croner also takes @daily, L, W, # and ?; pg_cron and cron(8) do not, or differ.
        let extra = text.chars().find(|c| {
            !(c.is_ascii_alphanumeric() || matches!(c, ' ' | '\t' | '*' | ',' | '-' | '/'))
        });
        if let Some(c) = extra {
            return Err(invalid(
                text,
                format!(
                    "The character {c:?} has no meaning here: digits, names, *, commas, hyphens and slashes do."
                ),
            ));
        }
        let fields = text.split_ascii_whitespace().count();
        if fields != 5 {
            return Err(invalid(text, format!("It has {fields} fields, not 5.")));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let pattern = parser
            .parse(text)
            .map_err(|error| invalid(text, format!("{error}")))?;
        if text
            .split_ascii_whitespace()
            .nth(2)
            .is_some_and(|day| day.to_ascii_uppercase().contains(['L', 'W']))
        {
            return Err(invalid(text, "L and W are not supported."));
        }
        let cron = Self { pattern, zone };
        if cron.next(now).is_none() {
            return Err(invalid(text, "No such day ever comes."));
        }
        Ok(cron)
    }

    /// The first instant after `after`.
    pub(super) fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = after.with_timezone(&self.zone);
        let next = self.pattern.find_next_occurrence(&local, false).ok()?;
        let next = next.with_timezone(&Utc);
        // Whatever the library makes of a zone's oddities: time goes forward.
        (next > after).then_some(next)
    }

    /// The last instant up to `upto`, `upto` included, that is after `after`.
    pub(super) fn last(&self, after: DateTime<Utc>, upto: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // The library's own search backwards does not take a skipped time for the instant after the
        // skip. Forward from ever further back: the steps double, so the work stays small.
        let mut span = TimeDelta::try_hours(1)?;
        loop {
            let begin = upto.checked_sub_signed(span).unwrap_or(after).max(after);
            let mut last = None;
            let mut at = begin;
            while let Some(next) = self.next(at).filter(|next| *next <= upto) {
                last = Some(next);
                at = next;
            }
            if last.is_some() || begin <= after {
                return last;
            }
            span = span.checked_mul(8)?;
        }
    }
}
