use super::*;
use crate::ErrorKind;
use crate::clock::SystemClock;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use crate::wal::container;
use crate::wal::recovery_file::Span;
use crate::wal::repositories::FailedRepository;
use pgark_types::{Lsn, TargetTimeline};
use std::sync::Arc;

const ID: SystemId = SystemId(7);

fn repository() -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::new());
    crate::repository::create(&storage, &SystemClock).unwrap();
    Repository::open("test", storage).unwrap()
}

fn name(timeline: u32, no: u64) -> SegmentName {
    SegmentName::new(TimelineId(timeline), no, SegmentSize::DEFAULT).unwrap()
}

fn store(repo: &Repository, file: ArchiveFile) {
    let bytes = container::encode(repo, ID, file, file.to_string().as_bytes(), 1).unwrap();
    let key = layout::wal(ID, file).unwrap();
    let _ = repo.storage().put_if_absent(&key, &bytes).unwrap();
}

fn repos(stored: &[(u32, u64)]) -> Repositories {
    let repo = repository();
    for (timeline, no) in stored {
        store(&repo, ArchiveFile::Segment(name(*timeline, *no)));
    }
    Repositories {
        open: vec![(repo, true)],
        failed: Vec::new(),
    }
}

fn scope(spans: &[(u32, u64, Option<u64>)]) -> Scope {
    let span = |(timeline, first, last): &(u32, u64, Option<u64>)| Span {
        timeline: TimelineId(*timeline),
        first: name(*timeline, *first),
        last: last.map(|last| name(*timeline, last)),
    };
    let plan = RecoveryFile {
        format: 1,
        cluster: "main".to_owned(),
        system_identifier: ID,
        segment_size: SegmentSize::DEFAULT,
        backup: "20260101T000000Z-ABCD".parse().unwrap(),
        spans: spans.iter().map(span).collect(),
        standby: false,
        tails: false,
    };
    Scope {
        system_id: ID,
        segment_size: SegmentSize::DEFAULT,
        plan: (!spans.is_empty()).then_some(plan),
        follower: None,
    }
}

/// `present`, `absent` or the code of the doubt.
fn ask(repos: &Repositories, scope: &Scope, timeline: u32, no: u64) -> &'static str {
    match answer(repos, scope, ArchiveFile::Segment(name(timeline, no))) {
        Ok(Answer::Present(plain)) => {
            assert_eq!(plain, name(timeline, no).to_string().as_bytes());
            "present"
        }
        Ok(Answer::Absent(_)) => "absent",
        Err(error) => error.code(),
    }
}

#[test]
fn an_open_plan() {
    let repos = repos(&[(1, 3), (1, 4), (1, 7)]);
    let scope = scope(&[(1, 3, None)]);
    for (no, expected) in [
        (2, "wal_missing"),
        (3, "present"),
        (4, "present"),
        (5, IN_FLIGHT),
        (6, IN_FLIGHT),
        (7, "present"),
        (8, "absent"),
    ] {
        assert_eq!(ask(&repos, &scope, 1, no), expected, "segment {no}");
    }
    assert_eq!(ask(&repos, &scope, 2, 4), "absent");
}

#[test]
fn the_first_segment_of_a_plan_is_never_absent() {
    assert_eq!(
        ask(&repos(&[]), &scope(&[(1, 3, None)]), 1, 3),
        "wal_missing"
    );
    assert_eq!(ask(&repos(&[]), &scope(&[(1, 3, None)]), 1, 4), "absent");
}

#[test]
fn a_closed_plan_counts_on_every_segment() {
    let repos = repos(&[(1, 3), (1, 4), (1, 5), (1, 6)]);
    let closed = scope(&[(1, 3, Some(5))]);
    assert_eq!(ask(&repos, &closed, 1, 5), "present");
    assert_eq!(
        ask(&repos, &closed, 1, 6),
        "absent",
        "stored, but beyond the plan"
    );
    let longer = scope(&[(1, 3, Some(9))]);
    assert_eq!(ask(&repos, &longer, 1, 7), "wal_missing");
}

#[test]
fn a_parent_is_not_served_beyond_the_fork() {
    // Timeline 2 forked in segment 5; a zombie went on writing timeline 1.
    let repos = repos(&[(1, 3), (1, 4), (1, 5), (1, 6), (2, 5)]);
    let scope = scope(&[(1, 3, Some(5)), (2, 5, None)]);
    for (timeline, no, expected) in [
        (1, 4, "present"),
        (1, 5, "absent"),
        (1, 6, "absent"),
        (2, 4, "absent"),
        (2, 5, "present"),
        (2, 6, "absent"),
        (3, 5, "absent"),
    ] {
        assert_eq!(
            ask(&repos, &scope, timeline, no),
            expected,
            "{timeline}/{no}"
        );
    }
}

/// A server without a plan, `bytes` into segment `no` of `timeline`.
fn follower(timeline: u32, no: u64, bytes: u64, target: TargetTimeline, standby: bool) -> Scope {
    let lsn = Lsn((no << 24) + bytes);
    Scope {
        follower: Some(Follower {
            position: (TimelineId(timeline), lsn),
            target,
            standby,
        }),
        ..scope(&[])
    }
}

/// A zombie writes timeline 1 up to segment 8. Timeline 2 forked from it in the middle of segment
/// 5, and 3 from 2 in the middle of segment 6.
fn forks(children: &[(u32, u64)]) -> Repositories {
    let mut stored: Vec<(u32, u64)> = (3..=8).map(|no| (1, no)).collect();
    stored.extend(children);
    let repos = repos(&stored);
    for (timeline, text) in [
        (2, "1\t0/5800000\tx\n"),
        (3, "1\t0/5800000\tx\n2\t0/6800000\tx\n"),
    ] {
        let file = ArchiveFile::History(TimelineId(timeline));
        let repo = &repos.open[0].0;
        let bytes = container::encode(repo, ID, file, text.as_bytes(), 1).unwrap();
        let key = layout::wal(ID, file).unwrap();
        let _ = repo.storage().put_if_absent(&key, &bytes).unwrap();
    }
    repos
}

#[test]
fn a_standby_gets_nothing_of_a_zombie() {
    let repos = forks(&[(2, 5), (2, 6)]);
    // Before the fork, on the child, on the grandchild: all of them follow timeline 3.
    for (timeline, position) in [(1, 4), (2, 5), (3, 6)] {
        let standby = follower(timeline, position, 0x90_0000, TargetTimeline::Latest, true);
        for (timeline, no, expected) in [
            (1, 4, "present"),
            (1, 5, "absent"),
            (1, 8, "absent"),
            (1, 9, "absent"),
            (2, 5, "present"),
            (2, 6, "absent"),
            (3, 6, "absent"),
        ] {
            assert_eq!(
                ask(&repos, &standby, timeline, no),
                expected,
                "{timeline}/{no} at {position}"
            );
        }
    }
}

#[test]
fn who_cannot_follow_the_child_stays_on_the_parent() {
    let repos = forks(&[(2, 5)]);
    // Past the fork already: Postgres will not move to the child either.
    let past = follower(1, 5, 0x90_0000, TargetTimeline::Latest, true);
    assert_eq!(ask(&repos, &past, 1, 6), "present");
    let at = follower(1, 5, 0x80_0000, TargetTimeline::Latest, true);
    assert_eq!(ask(&repos, &at, 1, 6), "absent");
    // Told to stay.
    for target in [TargetTimeline::Current, TargetTimeline::Id(TimelineId(1))] {
        let told = follower(1, 4, 0, target, false);
        assert_eq!(ask(&repos, &told, 1, 6), "present");
    }
    // Told to follow 2 and no further: 3 does not count against it.
    let two = follower(1, 4, 0, TargetTimeline::Id(TimelineId(2)), true);
    assert_eq!(ask(&repos, &two, 1, 5), "absent");
    let repos = forks(&[(2, 5), (2, 6), (2, 7)]);
    assert_eq!(ask(&repos, &two, 2, 7), "present");
}

#[test]
fn a_recovery_without_a_plan_stops_at_a_zombie() {
    let recovery = follower(1, 4, 0, TargetTimeline::Latest, false);
    assert_eq!(ask(&forks(&[]), &recovery, 1, 5), "wal_superseded");
    // Without one it ends as it would anywhere: at the end of the archive.
    let at_end = follower(2, 6, 0, TargetTimeline::Latest, false);
    assert_eq!(ask(&forks(&[(2, 5)]), &at_end, 2, 6), "absent");
}

#[test]
fn without_a_plan_the_newest_run_decides() {
    let repos = repos(&[(1, 3), (1, 6), (1, 7)]);
    let scope = scope(&[]);
    for (no, expected) in [
        (2, "wal_missing"),
        (3, "present"),
        (4, "wal_missing"),
        (7, "present"),
        (8, "absent"),
    ] {
        assert_eq!(ask(&repos, &scope, 1, no), expected, "segment {no}");
    }
    assert_eq!(ask(&repos, &scope, 2, 3), "absent");
}

#[test]
fn a_damaged_file_is_doubt_and_never_absent() {
    let repos = repos(&[]);
    let key = layout::wal(ID, ArchiveFile::Segment(name(1, 3))).unwrap();
    let _ = repos.open[0]
        .0
        .storage()
        .put_if_absent(&key, b"junk")
        .unwrap();
    for scope in [
        scope(&[]),
        scope(&[(1, 3, None)]),
        scope(&[(1, 3, Some(4))]),
    ] {
        let file = ArchiveFile::Segment(name(1, 3));
        assert_eq!(
            answer(&repos, &scope, file).unwrap_err().kind(),
            ErrorKind::Data
        );
    }
}

#[test]
fn partials_indexes_and_variants() {
    let repos = repos(&[]);
    let repo = &repos.open[0].0;
    let put = |key| {
        let _ = repo.storage().put_if_absent(&key, b"x").unwrap();
    };
    store(repo, ArchiveFile::Partial(name(1, 9)));
    put(layout::wal_index(ID, name(1, 8), 1).unwrap());
    let open = scope(&[(1, 3, None)]);
    assert_eq!(ask(&repos, &open, 1, 9), "absent");
    // Segment 8 was stored once.
    assert_eq!(ask(&repos, &open, 1, 8), "wal_missing");
    assert_eq!(ask(&repos, &open, 1, 5), "wal_missing");
    let partial = answer(&repos, &open, ArchiveFile::Partial(name(1, 9))).unwrap();
    assert!(matches!(partial, Answer::Present(_)));
    put(layout::wal_variant(ID, ArchiveFile::Segment(name(1, 7)), 1, "0123").unwrap());
    assert_eq!(ask(&repos, &open, 1, 5), IN_FLIGHT);
}

#[test]
fn histories_are_served_whenever_they_exist() {
    let repos = repos(&[]);
    let file = ArchiveFile::History(TimelineId(9));
    let open = scope(&[(1, 3, None)]);
    assert!(matches!(answer(&repos, &open, file), Ok(Answer::Absent(_))));
    store(&repos.open[0].0, file);
    assert!(matches!(
        answer(&repos, &open, file),
        Ok(Answer::Present(_))
    ));
}

#[test]
fn absence_needs_every_required_repository() {
    let mut repos = repos(&[(1, 3)]);
    let open = scope(&[(1, 3, None)]);
    let fail = |required| FailedRepository {
        name: "far".to_owned(),
        required,
        error: Error::unavailable("storage_missing", "not mounted"),
    };
    repos.failed = vec![fail(false)];
    assert_eq!(ask(&repos, &open, 1, 4), "absent");
    repos.failed = vec![fail(true)];
    assert_eq!(ask(&repos, &open, 1, 4), "storage_missing");
    assert_eq!(ask(&repos, &open, 1, 3), "present");
    repos.open.clear();
    repos.failed = vec![fail(false)];
    assert_eq!(ask(&repos, &open, 1, 4), "repository_unreachable");
}

#[test]
fn a_doubt_that_may_pass_comes_before_a_wrong_setting() {
    let mut repos = repos(&[(1, 3)]);
    let open = scope(&[(1, 3, None)]);
    let fail = |error| FailedRepository {
        name: "far".to_owned(),
        required: true,
        error,
    };
    let setting = || fail(Error::invalid("key_wrong", "another key"));
    let away = || fail(Error::unavailable("storage_missing", "not mounted"));
    let other = || fail(Error::invalid("key_required", "no key"));
    for (failed, code) in [
        (vec![setting(), away(), other()], "storage_missing"),
        (vec![away(), setting()], "storage_missing"),
        (vec![setting(), other()], "key_wrong"),
    ] {
        repos.failed = failed;
        assert_eq!(ask(&repos, &open, 1, 4), code);
    }
}

#[test]
fn a_plan_counts_while_its_recovery_is_under_way() {
    const CONTROL: &[u8] = include_bytes!("../../../tests/fixtures/pg_control.15");
    let control = ControlFile::parse(CONTROL).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let read = || Scope::read(directory.path());
    let write_plan = |system_identifier, timeline: TimelineId| {
        let mut plan = scope(&[(timeline.0, 3, None)]).plan.unwrap();
        plan.system_identifier = system_identifier;
        let bytes = crate::repository::sealed::seal(&plan).unwrap();
        let path = directory.path().join(crate::wal::recovery_file::FILE_NAME);
        std::fs::write(path, bytes).unwrap();
    };
    assert!(read().unwrap().is_none());
    write_plan(ID, control.timeline);
    assert_eq!(read().unwrap().unwrap().system_id, ID);

    std::fs::create_dir(directory.path().join("global")).unwrap();
    std::fs::write(directory.path().join("global/pg_control"), CONTROL).unwrap();
    assert_eq!(read().unwrap_err().code(), "recovery_file_mismatch");
    write_plan(control.system_identifier, control.timeline);
    assert!(read().unwrap().unwrap().plan.is_some());
    // Promoted since, and perhaps a standby now: the plan is history.
    write_plan(
        control.system_identifier,
        TimelineId(control.timeline.0 + 1),
    );
    assert!(read().unwrap().unwrap().plan.is_none());
}
