//! One decision about a session, whatever happens to it on the way.

use super::fixture::*;
use crate::ErrorKind;
use crate::repository::session::{End, Session, read_end};
use crate::repository::{Repository, layout, sealed};
use crate::storage::faulty::{Faults, FaultyStorage};
use crate::storage::{Key, Put, SharedStorage};
use pgark_types::BackupLabel;
use std::sync::{Arc, Barrier};

const OPEN_AND_BEGIN_CALLS: u32 = 2;

fn label() -> BackupLabel {
    "20260102T030405Z-AB12".parse().unwrap()
}

fn begin(repository: &Repository) -> Session {
    Session::begin(repository, clock(), COMPONENT, &label()).unwrap()
}

fn commit(session: Session) -> crate::Result<()> {
    session.commit(&Key::new("m").unwrap(), &blake3::hash(b"m"))
}

fn is_commit(end: Option<&End>) -> bool {
    matches!(end, Some(End::Commit { .. }))
}

#[test]
fn a_session_commits_or_aborts() {
    let (_, repository) = repository();
    let session = begin(&repository);
    let ulid = session.ulid();
    assert_eq!(read_end(&repository, ulid).unwrap(), None);
    commit(session).unwrap();
    assert!(is_commit(read_end(&repository, ulid).unwrap().as_ref()));

    let session = begin(&repository);
    let ulid = session.ulid();
    drop(session);
    assert!(matches!(
        read_end(&repository, ulid).unwrap(),
        Some(End::Abort { .. })
    ));
}

#[test]
fn of_two_decisions_exactly_one_wins() {
    let (_, repository) = repository();
    let mut commits = 0;
    for _ in 0..200 {
        let session = begin(&repository);
        let ulid = session.ulid();
        let start = Barrier::new(2);
        let (committed, aborted) = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let end = sealed::seal(&End::Abort {
                    reason: "given up".into(),
                })
                .unwrap();
                let key = layout::session(ulid, "end").unwrap();
                start.wait();
                repository.storage().put_if_absent(&key, &end).unwrap() == Put::Created
            });
            start.wait();
            (commit(session), other.join().unwrap())
        });
        assert_ne!(committed.is_ok(), aborted);
        assert_eq!(
            is_commit(read_end(&repository, ulid).unwrap().as_ref()),
            committed.is_ok()
        );
        match committed {
            Ok(()) => commits += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced),
        }
    }
    assert!(commits <= 200);
}

/// What a commit answers, and what then stands, when the calls from the commit on meet `faults`.
fn commit_under(faults: &str) -> (crate::Result<()>, Option<End>) {
    let (memory, sound) = repository();
    let faults = Faults::parse(faults).unwrap();
    let storage: SharedStorage = Arc::new(FaultyStorage::new(Arc::new(memory), faults));
    let session = begin(&Repository::open("faulty", storage).unwrap());
    let ulid = session.ulid();
    let result = commit(session);
    (result, read_end(&sound, ulid).unwrap())
}

#[test]
fn a_lost_reply_is_no_lost_backup() {
    let put = OPEN_AND_BEGIN_CALLS + 1;
    let (result, end) = commit_under(&format!("lost-reply:{put}"));
    result.unwrap();
    assert!(is_commit(end.as_ref()));

    let (result, end) = commit_under(&format!("fail-at:{put}"));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(
        matches!(end, Some(End::Abort { .. })),
        "the session's end aborts it"
    );

    // Neither the reply nor a look arrives: an error, and the abort that follows changes nothing.
    let (result, end) = commit_under(&format!("lost-reply:{put},fail-at:{}", put + 1));
    assert!(result.is_err());
    assert!(is_commit(end.as_ref()));

    let (result, end) = commit_under(&format!("fail-after:{OPEN_AND_BEGIN_CALLS}"));
    assert!(result.is_err() && end.is_none());
}
