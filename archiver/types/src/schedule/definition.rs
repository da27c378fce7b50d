use super::cron::Cron;
use crate::job::{Action, JobOptions};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Shorter intervals are no backups but a load.
const EVERY_SECONDS_MIN: u64 = 60;
/// Longer ones are a mistake.
const EVERY_SECONDS_MAX: u64 = 400 * 86_400;
/// Attempts that a job of a schedule may have.
const ATTEMPTS_MAX: u32 = 100;
/// Components and groups that a schedule may name.
const COMPONENTS_MAX: usize = 1000;
/// Before this year nobody had schedules, and calendars are odd.
const FIRST_YEAR_SECONDS: i64 = 946_684_800;

/// What is wrong with a schedule or with a job's options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// What it is, in Postgres's style.
    pub message: String,
    /// More, as sentences.
    pub detail: String,
    /// What to do, as sentences.
    pub hint: String,
}

impl ScheduleError {
    pub(crate) fn new(
        message: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            message: message.into(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

/// What becomes of an occurrence that nobody was there to start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The last one missed is run on return, once.
    #[default]
    Run,
    /// Nothing: the next one counts.
    Skip,
}

/// A schedule, as the tables, the repository and the agent have it. Made by [`Definition::parse`]
/// alone, so that what exists is valid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// A cron expression; or `every_seconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// An interval, counted from `anchor`; or `cron`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Where an interval begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<DateTime<Utc>>,
    /// What to do.
    pub action: Action,
    /// Components or groups; `None`: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<String>>,
    /// The zone of `cron`.
    pub time_zone: String,
    /// What becomes of missed occurrences.
    pub missed: Missed,
    /// How often a job is tried; `None`: as the setting says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts_max: Option<u32>,
    /// One repository; `None`: every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The options of the jobs.
    pub options: JobOptions,
    #[serde(skip)]
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Cron(Box<Cron>),
    Every { seconds: u64, anchor: DateTime<Utc> },
}

impl PartialEq for Rule {
    // It follows from the other fields.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What comes in: the options of schedule and job may stand together, as SQL takes them, or apart.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default)]
    cron: Option<String>,
    #[serde(default)]
    every_seconds: Option<u64>,
    #[serde(default)]
    anchor: Option<DateTime<Utc>>,
    action: String,
    #[serde(default)]
    components: Option<Vec<String>>,
    #[serde(default)]
    time_zone: Option<String>,
    #[serde(default)]
    missed: Option<Missed>,
    #[serde(default)]
    attempts_max: Option<u32>,
    #[serde(default)]
    repository: Option<String>,
    #[serde(default)]
    options: Map<String, Value>,
}

/// The options that are the schedule's own; the others are its jobs'.
const OWN_OPTIONS: [&str; 4] = ["time_zone", "missed", "attempts_max", "repository"];

impl Definition {
    /// Parses and checks a definition in JSON. `now` tells whether a cron expression ever comes true.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn parse(json: &str, now: DateTime<Utc>) -> Result<Self, ScheduleError> {
        let malformed = |error: serde_json::Error| {
            ScheduleError::new(
                "invalid definition of a schedule",
                format!("{error}."),
                "See docs/guide/scheduling.md for what a schedule has.",
            )
        };
        let mut raw: Value = serde_json::from_str(json).map_err(malformed)?;
        lift_own_options(&mut raw)?;
        let raw: Raw = serde_json::from_value(raw).map_err(malformed)?;
        raw.check(now)
    }

    /// The first instant after `after` at which it is due.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let after = in_range(after)?;
        match &self.rule {
            Rule::Cron(cron) => cron.next(after),
            Rule::Every { seconds, anchor } => {
                let every = i64::try_from(*seconds).ok()?;
                let since = after.signed_duration_since(*anchor).num_seconds();
                let next = if after < *anchor {
                    0
                } else {
                    since.div_euclid(every).checked_add(1)?
                };
                at(*anchor, every, next)
            }
        }
    }

    /// The last instant after `after` and up to `upto` at which it was due: several that were
    /// missed are one.
    #[must_use]
    pub fn due(&self, after: DateTime<Utc>, upto: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (after, upto) = (in_range(after)?, in_range(upto)?);
        let due = match &self.rule {
            Rule::Cron(cron) => cron.last(after, upto),
            Rule::Every { seconds, anchor } => {
                let every = i64::try_from(*seconds).ok()?;
                let since = upto.signed_duration_since(*anchor).num_seconds();
                (upto >= *anchor)
                    .then(|| at(*anchor, every, since.div_euclid(every)))
                    .flatten()
            }
        };
        due.filter(|due| *due > after && *due <= upto)
    }
}

fn at(anchor: DateTime<Utc>, every: i64, n: i64) -> Option<DateTime<Utc>> {
    let delta = TimeDelta::try_seconds(every.checked_mul(n)?)?;
    anchor.checked_add_signed(delta)
}

/// Instants that calendars can compute with, not before the year 2000.
fn in_range(at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let seconds = at.timestamp();
    if seconds > 253_402_300_799 {
        return None;
    }
    if seconds < FIRST_YEAR_SECONDS {
        return DateTime::from_timestamp(FIRST_YEAR_SECONDS, 0);
    }
    Some(at)
}

fn lift_own_options(raw: &mut Value) -> Result<(), ScheduleError> {
    let Some(raw) = raw.as_object_mut() else {
        return Ok(());
    };
    let mut lifted = Map::new();
    if let Some(Value::Object(options)) = raw.get_mut("options") {
        for key in OWN_OPTIONS {
            if let Some(value) = options.remove(key) {
                lifted.insert(key.to_owned(), value);
            }
        }
    }
    for (key, value) in lifted {
        if raw
            .insert(key.clone(), value)
            .is_some_and(|old| !old.is_null())
        {
            return Err(ScheduleError::new(
                format!("option \"{key}\" of a schedule is there twice"),
                "It stands beside the options and among them.",
                "Leave one of them out.",
            ));
        }
    }
    Ok(())
}

impl Raw {
    fn check(self, now: DateTime<Utc>) -> Result<Definition, ScheduleError> {
        let scheduled = || Action::ALL.into_iter().filter(|a| a.can_be_scheduled());
        let action = self.action.parse::<Action>();
        let action = action.map_err(|_| Action::unknown(&self.action, scheduled()))?;
        if !action.can_be_scheduled() {
            return Err(ScheduleError::new(
                format!("action \"{action}\" cannot be scheduled"),
                "It is asked for once.",
                "Request it: SELECT pgark.request_restore(component);",
            ));
        }
        let options = JobOptions::parse_map(action, self.options)?;
        let time_zone = self.time_zone.unwrap_or_else(|| "UTC".to_owned());
        let zone: Tz = time_zone.parse().map_err(|_| {
            let shown: String = time_zone.chars().take(80).collect();
            ScheduleError::new(
                format!("time zone \"{shown}\" is not known"),
                "The zones are those of the IANA database, as this version of pgark holds it.",
                "Name one like \"Europe/Berlin\" or \"UTC\".",
            )
        })?;
        if let Some(n) = self
            .attempts_max
            .filter(|n| !(1..=ATTEMPTS_MAX).contains(n))
        {
            return Err(ScheduleError::new(
                format!("{n} is outside the valid range for option \"attempts_max\""),
                format!("The range is 1 to {ATTEMPTS_MAX}."),
                "Leave it out for what pgark.job_attempts_max says.",
            ));
        }
        if self
            .components
            .as_ref()
            .is_some_and(|c| c.is_empty() || c.len() > COMPONENTS_MAX)
        {
            return Err(ScheduleError::new(
                "invalid list of components",
                format!("1 to {COMPONENTS_MAX} are allowed."),
                "Leave it out for every component.",
            ));
        }
        let anchor = self.anchor.map(|anchor| anchor.trunc_subsecs(0));
        let rule = match (&self.cron, self.every_seconds, anchor) {
            (Some(text), None, None) => Rule::Cron(Box::new(Cron::parse(text, zone, now)?)),
            (None, Some(seconds), Some(anchor)) => {
                if !(EVERY_SECONDS_MIN..=EVERY_SECONDS_MAX).contains(&seconds) {
                    return Err(ScheduleError::new(
                        "the interval of a schedule is outside the valid range",
                        format!("It is {seconds} seconds; 1 minute to 400 days are allowed."),
                        "Choose another interval, or a cron expression.",
                    ));
                }
                Rule::Every { seconds, anchor }
            }
            _ => {
                return Err(ScheduleError::new(
                    "a schedule has either a cron expression, or an interval and its anchor",
                    "The definition has another combination of \"cron\", \"every_seconds\" and \"anchor\".",
                    "See docs/guide/scheduling.md for what a schedule has.",
                ));
            }
        };
        Ok(Definition {
            name: self.name,
            cron: self.cron,
            every_seconds: self.every_seconds,
            anchor,
            action,
            components: self.components,
            time_zone,
            missed: self.missed.unwrap_or_default(),
            attempts_max: self.attempts_max,
            repository: self.repository,
            options,
            rule,
        })
    }
}
