//! The plan: what nothing refers to, by one look at everything.

use super::live::{self, Live};
use super::sessions::{self, Seen};
use super::{Begin, Candidate, Done, Plan, Report, Run, Waiting, Why, expired, lock, running, wal};
use crate::clock::new_ulid;
use crate::repository::crypto::removal;
use crate::repository::session::{End, read_end};
use crate::repository::{audit, layout, sets, tombs};
use crate::retention;
use crate::storage::ObjectMeta;
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use ulid::Ulid;

/// How many gc records stay.
const RUNS_KEPT: usize = 100;

/// Begins the gc `n` and writes its plan.
pub(super) fn make(
    run: &Run<'_>,
    n: u32,
    known: &BTreeMap<u32, BTreeSet<String>>,
    report: &mut Report,
) -> Result<()> {
    let begin = Begin {
        at: run.clock.now(),
        by: audit::by(),
        run: new_ulid(run.clock),
    };
    if !run.decide(n, "begin", &begin)? {
        return Err(running(n));
    }
    crate::fault::point("gc:begun");
    let plan = survey(run, known, report)?;
    run.is_newest(n)?;
    if plan.candidates.is_empty() && plan.condemned.is_empty() {
        let nothing = Done {
            objects: 0,
            bytes: 0,
        };
        return run.decide(n, "done", &nothing).map(drop);
    }
    if !run.decide(n, "plan", &plan)? {
        return Err(running(n));
    }
    crate::fault::point("gc:planned");
    report.plan = Some(waiting(run, n, plan, run.now));
    Ok(())
}

/// A plan that waits.
pub(super) fn waiting(run: &Run<'_>, n: u32, plan: Plan, made: DateTime<Utc>) -> Waiting {
    Waiting {
        gc: n,
        not_before: Some(made + run.settings.settle),
        backups: plan.condemned.iter().map(ToString::to_string).collect(),
        sessions: plan.sessions.iter().map(ToString::to_string).collect(),
        candidates: plan.candidates,
    }
}

/// Looks at everything. The order is what makes it safe: tombs, then what backups refer to, then what
/// is there, then sessions once more.
pub(super) fn survey(
    run: &Run<'_>,
    known: &BTreeMap<u32, BTreeSet<String>>,
    report: &mut Report,
) -> Result<Plan> {
    let before = sessions::list(run)?;
    let pinned = sessions::pinned(run, &before)?;
    let mut condemned = expired::condemned(run, &pinned, &mut report.left)?;
    lock::spare_backups(run, &mut condemned, &mut report.left)?;
    let live = live::read(run, &condemned)?;
    let cutoff = cutoff(run, &before);
    let mut candidates = Vec::new();
    unreferenced(run, &live, cutoff, &mut candidates)?;
    never_committed(run, &live, cutoff, &mut candidates)?;
    ended_sessions(run, &before, &mut candidates)?;
    sets_gone(run, &live, cutoff, &mut candidates)?;
    superseded(run, known, &mut candidates)?;
    outdated(run, &mut candidates)?;
    policies(run, &mut candidates)?;
    let removed = removal::garbage(run.repository)?.into_iter();
    candidates.extend(removed.map(|object| candidate(object, Why::KeyRemoved)));
    let expired = wal::expired(run, &condemned, &mut report.left)?;
    candidates.extend(expired.candidates);
    report.locked = lock::spare(run, &mut candidates)?;
    if candidates.len() > run.settings.candidates_max {
        report.left.push(format!(
            "{} objects: one plan names at most {}",
            candidates.len() - run.settings.candidates_max,
            run.settings.candidates_max
        ));
        candidates.truncate(run.settings.candidates_max);
    }
    // What began since then has seen the tombs.
    let after = sessions::list(run)?;
    let open = after.iter().filter(|(_, seen)| seen.is_open());
    Ok(Plan {
        at: run.clock.now(),
        candidates,
        condemned,
        sessions: open.map(|(ulid, _)| *ulid).collect(),
        floors: expired.floors,
    })
}

/// What is younger belongs, or may belong, to a session that is open.
fn cutoff(run: &Run<'_>, sessions: &BTreeMap<Ulid, Seen>) -> DateTime<Utc> {
    let open = sessions.values().filter(|seen| seen.is_open());
    let oldest = open.filter_map(Seen::begun).min();
    let by_age = run.now - run.settings.age_min;
    oldest.map_or(by_age, |oldest| oldest.min(by_age))
}

fn candidate(object: ObjectMeta, why: Why) -> Candidate {
    Candidate {
        key: object.key.to_string(),
        size: object.size,
        why,
    }
}

/// Packs and meta objects that no backup refers to.
fn unreferenced(
    run: &Run<'_>,
    live: &Live,
    cutoff: DateTime<Utc>,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for prefix in ["packs/", "meta/"] {
        run.cancel.check()?;
        for object in run.repository.storage().list(prefix)? {
            if object.modified < cutoff && !live.objects.contains(object.key.as_str()) {
                candidates.push(candidate(object, Why::Unreferenced));
            }
        }
    }
    Ok(())
}

/// Manifests and labels of backups that never were.
fn never_committed(
    run: &Run<'_>,
    live: &Live,
    cutoff: DateTime<Utc>,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for (component, label) in &live.uncommitted {
        let folder = format!("{}{label}/", layout::backups_prefix(component));
        let objects = run.repository.storage().list(&folder)?;
        if objects.iter().all(|object| object.modified < cutoff) {
            let objects = objects.into_iter();
            candidates.extend(objects.map(|o| candidate(o, Why::NeverCommitted)));
        }
    }
    Ok(())
}

/// What sessions leave behind: heartbeats and pins; what an aborted one announced. The `end` of an
/// aborted one stays: a writer that was stopped for a month must still find it. That of a committed one
/// goes when its backup is gone for good.
fn ended_sessions(
    run: &Run<'_>,
    sessions: &BTreeMap<Ulid, Seen>,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    let old = |o: &ObjectMeta| o.modified + run.settings.age_min <= run.now;
    for (ulid, seen) in sessions.iter().filter(|(_, seen)| !seen.is_open()) {
        let only_end = seen.objects.len() == 1;
        if !seen.objects.iter().all(old) {
            continue;
        }
        let stay: &[&str] = match read_end(run.repository, *ulid) {
            Ok(Some(End::Abort { .. })) if only_end => continue,
            Ok(Some(End::Abort { .. })) => &["end"],
            Ok(Some(End::Commit { manifest, .. })) if is_gone(run, &manifest)? => &[],
            Ok(_) => &["end", "begin"],
            Err(error) if error.kind().is_retryable() => return Err(error),
            // Damaged: verify tells.
            Err(_) => continue,
        };
        let mut objects: Vec<&ObjectMeta> = seen.objects.iter().collect();
        // Its `end` last: without it the rest would look like a session that is open.
        objects.sort_by_key(|o| o.key.file_name() == "end");
        objects.retain(|o| !stay.contains(&o.key.file_name()));
        let objects = objects.into_iter().cloned();
        candidates.extend(objects.map(|o| candidate(o, Why::SessionEnded)));
    }
    Ok(())
}

/// Whether the backup of a manifest was removed for good, with everything below its label.
fn is_gone(run: &Run<'_>, manifest: &str) -> Result<bool> {
    let Some((component, label)) = layout::backup_of_manifest(manifest) else {
        return Ok(false);
    };
    let tomb = tombs::of(run.repository, &component, &label)?;
    if tomb.is_none_or(|tomb| tomb.state != tombs::State::Final) {
        return Ok(false);
    }
    let folder = format!("{}{label}/", layout::backups_prefix(&component));
    Ok(run.repository.storage().list(&folder)?.is_empty())
}

/// Sets none of whose backups is there any more. Their records are written after their members, so that
/// an old record's members are there or gone.
fn sets_gone(
    run: &Run<'_>,
    live: &Live,
    cutoff: DateTime<Utc>,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    for object in run.repository.storage().list(layout::sets_prefix())? {
        run.cancel.check()?;
        let Some(label) = layout::set_of(&object.key) else {
            continue;
        };
        if object.modified >= cutoff {
            continue;
        }
        match sets::find(run.repository, &label) {
            Ok(Some(set)) if !live.has_member_of(&set) => {
                candidates.push(candidate(object, Why::SetGone));
            }
            Ok(_) => {}
            // Damaged: verify tells.
            Err(error) if error.kind() == crate::ErrorKind::Data => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Records of what was done long ago.
fn outdated(run: &Run<'_>, candidates: &mut Vec<Candidate>) -> Result<()> {
    let records = run.settings.records_age_max;
    for (prefix, age_max) in [
        (layout::audit_prefix(), records),
        (layout::verify_prefix(), records),
        (layout::OCCURRENCES_PREFIX, run.settings.occurrences_age_max),
    ] {
        for object in run.repository.storage().list(prefix)? {
            if object.modified + age_max <= run.now {
                candidates.push(candidate(object, Why::Superseded));
            }
        }
    }
    Ok(())
}

/// Old records of gc itself. The newest ones stay: their numbers are never used again.
fn superseded(
    run: &Run<'_>,
    known: &BTreeMap<u32, BTreeSet<String>>,
    candidates: &mut Vec<Candidate>,
) -> Result<()> {
    let old = known.iter().rev().skip(RUNS_KEPT);
    for (n, have) in old.filter(|(_, have)| have.contains("done") || !have.contains("plan")) {
        let mut have: Vec<&String> = have.iter().collect();
        // `done` last: a plan without it would wait to be carried out.
        have.sort_by_key(|what| *what == "done");
        for what in have {
            let key = layout::gc(*n, what)?;
            let object = run.repository.storage().head(&key)?;
            candidates.extend(object.map(|o| candidate(o, Why::Superseded)));
        }
    }
    Ok(())
}

/// Policies that newer ones have replaced long ago. The highest number of each component counts, and who
/// sets the next one starts from it; the ones before it tell what was in force when.
fn policies(run: &Run<'_>, candidates: &mut Vec<Candidate>) -> Result<()> {
    let mut by_component: BTreeMap<String, BTreeMap<u32, ObjectMeta>> = BTreeMap::new();
    for object in run.repository.storage().list(layout::POLICIES_PREFIX)? {
        if let Some((component, n)) = layout::policy_of(&object.key) {
            by_component.entry(component).or_default().insert(n, object);
        }
    }
    let kept = usize::try_from(retention::POLICIES_KEPT).unwrap_or(usize::MAX);
    for records in by_component.into_values() {
        let old = records.into_values().rev().skip(kept);
        let old = old.filter(|object| object.modified + run.settings.age_min <= run.now);
        candidates.extend(old.map(|object| candidate(object, Why::Superseded)));
    }
    Ok(())
}

/// The plan of the gc `n`, and when it was made, by the storage's clock.
pub(super) fn read(run: &Run<'_>, n: u32) -> Result<(Plan, DateTime<Utc>)> {
    let key = layout::gc(n, "plan")?;
    let damaged = |source: Option<Error>| {
        let error = Error::data(
            "gc_plan_damaged",
            format!("the plan of gc {n} cannot be read: it is not carried out"),
        );
        match source {
            Some(source) => error.with_source(source),
            None => error,
        }
    };
    match crate::repository::record::read(run.repository, &key) {
        Ok(Some(plan)) => {
            let stored = run.repository.storage().head(&key)?;
            let made = stored.map_or(run.now, |stored| stored.modified);
            Ok((plan, made))
        }
        Ok(None) => Err(damaged(None)),
        Err(error) if error.kind() == crate::ErrorKind::Data => Err(damaged(Some(error))),
        Err(error) => Err(error),
    }
}
