//! Backups without `end`. The traps are both ways: a committed backup that vanishes because one
//! small object did, and an alarm for every backup that somebody interrupted.

use super::fixture::*;
use crate::cancel::CancelToken;
use crate::repository::backups::list;
use crate::repository::session::Session;
use crate::repository::unfinished::{Sessions, Unfinished, Verdict};
use crate::repository::{Repository, layout, sealed};
use crate::storage::{Put, Storage};
use crate::verify::{Level, Report, Scope, verify};
use chrono::{DateTime, TimeDelta, Utc};
use pgark_types::BackupLabel;

fn in_minutes(minutes: i64) -> DateTime<Utc> {
    clock().now() + TimeDelta::minutes(minutes)
}

fn unfinished(repository: &Repository, now: DateTime<Utc>) -> Vec<Unfinished> {
    let found = list(repository, COMPONENT).unwrap();
    let sessions = Sessions::list(repository).unwrap();
    assert_eq!(sessions.components(repository).unwrap(), [COMPONENT]);
    sessions
        .unfinished(repository, COMPONENT, &found, now)
        .unwrap()
}

fn verdicts(repository: &Repository, now: DateTime<Utc>) -> Vec<Verdict> {
    unfinished(repository, now).iter().map(|u| u.kind).collect()
}

fn report(repository: &Repository, level: Level, now: DateTime<Utc>) -> Report {
    verify(repository, &Scope::All, level, now, &CancelToken::default()).unwrap()
}

fn beat(repository: &Repository, session: ulid::Ulid, n: u32, at: DateTime<Utc>) {
    let key = layout::session(session, &format!("hb-{n}")).unwrap();
    let bytes = sealed::seal(&serde_json::json!({"at": at})).unwrap();
    let put = repository.storage().put_if_absent(&key, &bytes).unwrap();
    assert_eq!(put, Put::Created);
}

#[test]
fn a_lost_end_is_a_finding_at_every_level() {
    let (memory, repository) = repository();
    let lost = small_backup(&repository, true);
    assert_eq!(verdicts(&repository, in_minutes(300)), []);
    memory
        .delete(&layout::session(lost.session, "end").unwrap())
        .unwrap();
    for level in [Level::Existence, Level::Bytes, Level::Pages] {
        let report = report(&repository, level, in_minutes(300));
        let key = layout::label(COMPONENT, &lost.label).unwrap();
        let [finding] = report.findings.as_slice() else {
            panic!("{:?}", report.findings);
        };
        assert_eq!(finding.object, key.as_str());
        assert_eq!(finding.kind, "uncommitted_backup");
        assert!(finding.detail.contains("either"), "{}", finding.detail);
        assert!(report.notes.is_empty());
    }
    // Asked for by its name.
    let scope = Scope::Backup(COMPONENT.to_owned(), lost.label.clone());
    let cancel = CancelToken::default();
    let report = verify(&repository, &scope, Level::Bytes, in_minutes(300), &cancel).unwrap();
    assert_eq!(report.findings[0].kind, "uncommitted_backup");
    // The label is lost too: the manifest still tells.
    let key = layout::label(COMPONENT, &lost.label).unwrap();
    memory.delete(&key).unwrap();
    assert_eq!(
        verdicts(&repository, in_minutes(300)),
        [Verdict::Uncommitted]
    );
}

/// `begin` is written first and deleted by nobody: no need to wait two hours.
#[test]
fn a_lost_session_is_a_finding_at_once() {
    let (memory, repository) = repository();
    let lost = small_backup(&repository, true);
    for what in ["end", "begin"] {
        memory
            .delete(&layout::session(lost.session, what).unwrap())
            .unwrap();
    }
    assert_eq!(verdicts(&repository, in_minutes(0)), [Verdict::Uncommitted]);
}

#[test]
fn a_writer_that_may_still_commit_is_a_note() {
    let (memory, repository) = repository();
    let label = small_backup(&repository, true);
    memory
        .delete(&layout::session(label.session, "end").unwrap())
        .unwrap();
    assert_eq!(verdicts(&repository, in_minutes(119)), [Verdict::UnderWay]);
    assert_eq!(
        verdicts(&repository, in_minutes(121)),
        [Verdict::Uncommitted]
    );
    // The newest heartbeat counts, by number and not by name.
    for n in 1..=11 {
        beat(&repository, label.session, n, in_minutes(i64::from(n) * 10));
    }
    assert_eq!(verdicts(&repository, in_minutes(229)), [Verdict::UnderWay]);
    let late = report(&repository, Level::Bytes, in_minutes(229));
    assert_eq!((late.findings.len(), late.notes.len()), (0, 1));
    assert_eq!(
        verdicts(&repository, in_minutes(231)),
        [Verdict::Uncommitted]
    );
    // A clock that was wrong by years hides nothing for years.
    beat(&repository, label.session, 12, in_minutes(3_000_000));
    assert_eq!(
        verdicts(&repository, in_minutes(231)),
        [Verdict::Uncommitted]
    );
}

/// A crash in the middle, or an abort, harms nothing: no finding, however old.
#[test]
fn an_interrupted_backup_is_a_note_for_ever() {
    let (memory, repository) = repository();
    let aborted = small_backup(&repository, false);
    assert_eq!(verdicts(&repository, in_minutes(900)), []);
    let label: BackupLabel = "20260102T030405Z-AB12".parse().unwrap();
    let mut session = Session::begin(&repository, clock(), COMPONENT, &label).unwrap();
    session.abort("a test").unwrap();
    memory
        .delete(&layout::session(session.ulid(), "end").unwrap())
        .unwrap();
    assert_eq!(verdicts(&repository, in_minutes(0)), [Verdict::UnderWay]);
    assert_eq!(
        verdicts(&repository, in_minutes(900)),
        [Verdict::Interrupted]
    );
    let report = report(&repository, Level::Pages, in_minutes(900));
    assert_eq!(report.findings, []);
    assert_eq!(report.notes[0].kind, "backup_interrupted");
    assert!(report.notes[0].object.contains(&label.to_string()));
    assert_ne!(aborted.label, label);
}
