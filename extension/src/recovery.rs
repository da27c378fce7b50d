//! Retention and restores, decided from what the catalog holds.

use crate::error;
use crate::schedules::instant;
use pgark_types::restore::{NoPlan, Target, plan};
use pgark_types::retention::{
    Ancestor, BackupFacts, BackupState, ClusterFacts, Health, History, Pin, RetentionPolicy,
    TimelineFacts, decide,
};
use pgark_types::schedule::ScheduleError;
use pgark_types::{BackupLabel, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use pgrx::PgSqlErrorCode;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde::Deserialize;

/// A policy longer than this is a mistake.
const POLICY_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
struct RawHistory {
    backups: Vec<RawBackup>,
    clusters: Vec<RawCluster>,
    #[serde(default)]
    pins: Vec<RawPin>,
}

#[derive(Deserialize)]
struct RawBackup {
    label: BackupLabel,
    system_identifier: i64,
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    stopped_at: chrono::DateTime<chrono::Utc>,
    corrupt: bool,
    expired: bool,
}

#[derive(Deserialize)]
struct RawCluster {
    system_identifier: i64,
    segment_bytes: SegmentSize,
    current: bool,
    timelines: Vec<RawTimeline>,
}

#[derive(Deserialize)]
struct RawTimeline {
    timeline: TimelineId,
    ancestors: Option<Vec<RawAncestor>>,
    runs: Vec<(SegmentName, SegmentName)>,
    #[serde(default)]
    begun_at: Option<chrono::DateTime<chrono::Utc>>,
    newest_at: Option<chrono::DateTime<chrono::Utc>>,
    #[serde(default)]
    covered_until: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Deserialize)]
struct RawAncestor {
    timeline: TimelineId,
    switch: Lsn,
}

#[derive(Deserialize)]
struct RawPin {
    label: BackupLabel,
    reason: String,
    until: Option<chrono::DateTime<chrono::Utc>>,
}

fn system_id(signed: i64) -> SystemId {
    SystemId(u64::from_ne_bytes(signed.to_ne_bytes()))
}

fn timeline(raw: RawTimeline, size: SegmentSize) -> Result<TimelineFacts, String> {
    let number = |name: SegmentName| name.number(size).map_err(|e| e.to_string());
    let mut runs = Vec::new();
    for (first, last) in raw.runs {
        runs.push((number(first)?, number(last)?));
    }
    runs.sort_unstable();
    let ancestors = raw.ancestors.map(|ancestors| {
        let ancestors = ancestors.into_iter();
        let ancestor = |a: RawAncestor| Ancestor {
            timeline: a.timeline,
            switch: a.switch,
        };
        ancestors.map(ancestor).collect()
    });
    Ok(TimelineFacts {
        timeline: raw.timeline,
        ancestors,
        runs,
        begun_at: raw.begun_at,
        newest_at: raw.newest_at,
        covered_until: raw.covered_until,
    })
}

fn history(json: &str) -> History {
    match parse(json) {
        Ok(history) => history,
        Err(problem) => error::raise(
            PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            "the catalog holds something that pgark does not understand".to_owned(),
            format!("{problem}."),
            "It is a cache: rebuild it with \"pgark catalog rebuild\".".to_owned(),
        ),
    }
}

fn parse(json: &str) -> Result<History, String> {
    let raw: RawHistory = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let mut history = History::default();
    for raw in raw.clusters {
        let timelines = raw.timelines.into_iter();
        let timelines = timelines.map(|t| timeline(t, raw.segment_bytes));
        history.clusters.push(ClusterFacts {
            system_id: system_id(raw.system_identifier),
            segment_size: raw.segment_bytes,
            current: raw.current,
            timelines: timelines.collect::<Result<_, _>>()?,
        });
    }
    history.backups = raw.backups.into_iter().map(backup).collect();
    let pins = raw.pins.into_iter();
    history.pins = pins
        .map(|pin| Pin {
            label: pin.label,
            reason: pin.reason,
            until: pin.until,
        })
        .collect();
    Ok(history)
}

fn backup(raw: RawBackup) -> BackupFacts {
    BackupFacts {
        label: raw.label,
        system_id: system_id(raw.system_identifier),
        timeline: raw.timeline,
        start_lsn: raw.start_lsn,
        stop_lsn: raw.stop_lsn,
        stopped_at: raw.stopped_at,
        health: if raw.corrupt {
            Health::CorruptPages
        } else {
            Health::Good
        },
        state: if raw.expired {
            BackupState::Expired
        } else {
            BackupState::Live
        },
    }
}

fn policy(json: &str) -> RetentionPolicy {
    let refuse = |detail: String| -> ! {
        error::invalid(ScheduleError {
            message: "invalid retention policy".to_owned(),
            detail,
            hint: "The rules are keep_last, hourly, daily, weekly, monthly, yearly (numbers), keep_within and window ('12h', '7d', '4w'), utc_offset ('+02:00'); {} keeps everything.".to_owned(),
        })
    };
    if json.len() > POLICY_BYTES_MAX {
        refuse(format!(
            "It has {} bytes; at most {POLICY_BYTES_MAX} are allowed.",
            json.len()
        ));
    }
    // Of an array the fields would be taken in their order.
    if !json.trim_start().starts_with('{') {
        refuse("It is no JSON object.".to_owned());
    }
    let policy: RetentionPolicy = match serde_json::from_str(json) {
        Ok(policy) => policy,
        Err(error) => refuse(format!("{error}.")),
    };
    if !policy.keeps_something() {
        refuse("Every rule of it is zero: it would keep nothing.".to_owned());
    }
    policy
}

#[pg_extern(sql = false)]
fn check_retention(policy: &str) -> String {
    crate::jobs::json(&self::policy(policy))
}

type Line = (&'static str, String, String, bool, String);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // pgrx wants the columns spelled out.
fn decide_retention(
    policy: &str,
    history: &str,
    now: TimestampWithTimeZone,
) -> TableIterator<
    'static,
    (
        name!(object, &'static str),
        name!(first, String),
        name!(last, String),
        name!(keep, bool),
        name!(reasons, String),
    ),
> {
    let history = self::history(history);
    let decisions = match decide(&self::policy(policy), &history, instant(now)) {
        Ok(decisions) => decisions,
        Err(refusal) => error::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("cannot decide what to keep: {refusal}"),
            "Nothing would be removed.".to_owned(),
            "See docs/guide/retention.md, \"When it refuses\".".to_owned(),
        ),
    };
    let mut lines: Vec<Line> = Vec::new();
    for decision in decisions.backups {
        let reasons: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
        let label = decision.label.to_string();
        lines.push((
            "backup",
            label.clone(),
            label,
            decision.keep,
            reasons.join("; "),
        ));
    }
    for wal in decisions.wal {
        // What stands for components without WAL.
        if wal.system_id.0 == 0 {
            continue;
        }
        lines.push((
            "wal",
            wal.first.to_string(),
            wal.last.to_string(),
            wal.keep,
            wal.reason.to_string(),
        ));
    }
    TableIterator::new(lines)
}

type PlanLine = (
    String,
    i32,
    String,
    String,
    i64,
    Option<String>,
    Option<String>,
);

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)] // pgrx wants the columns spelled out.
fn plan_restore(
    history: &str,
    target: &str,
) -> TableIterator<
    'static,
    (
        name!(backup, String),
        name!(timeline, i32),
        name!(first_wal, String),
        name!(last_wal, String),
        name!(segments, i64),
        name!(missing_wal, Option<String>),
        name!(problem, Option<String>),
    ),
> {
    let target: Target = match serde_json::from_str(target) {
        Ok(target) => target,
        Err(error) => error::invalid(ScheduleError {
            message: "invalid recovery target".to_owned(),
            detail: format!("{error}."),
            hint: "Name a time, an LSN, or a restore point.".to_owned(),
        }),
    };
    let line: PlanLine = match plan(&self::history(history), &target) {
        Ok(plan) => (
            plan.backup.to_string(),
            i32::try_from(plan.timeline.0).unwrap_or(i32::MAX),
            plan.first.to_string(),
            plan.last.to_string(),
            i64::try_from(plan.segments).unwrap_or(i64::MAX),
            plan.missing.map(|name| name.to_string()),
            None,
        ),
        Err(no) => {
            let problem = match no {
                NoPlan::NoBackup => "no_backup",
                NoPlan::TooEarly => "too_early",
                NoPlan::TooLate => "too_late",
            };
            let nothing = String::new;
            (
                nothing(),
                0,
                nothing(),
                nothing(),
                0,
                None,
                Some(problem.to_owned()),
            )
        }
    };
    TableIterator::once(line)
}
