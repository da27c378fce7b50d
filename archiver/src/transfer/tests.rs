//! Copies between repositories, over the synthetic cluster of `backup::testdata`.

mod retention;

use super::*;
use crate::backup::testdata::{self, NAME, SeededClock, Source};
use crate::config::component::Quiesce;
use crate::repository::notes::{self, Note};
use crate::repository::sets::{self, MemberOutcome, Set, SetMember, SetStage};
use crate::repository::{layout, session};
use crate::restore::testdata as restores;
use crate::storage::faulty::{Faults, FaultyStorage};
use crate::storage::memory::MemoryStorage;
use crate::storage::{Put, SharedStorage, Storage as _};
use crate::verify::{Level, Scope, verify};
use crate::wal::commit_index::testdata as wal_data;
use crate::wal::{get, inventory::Inventory};
use pgark_types::ArchiveFile;
use std::sync::Arc;

const SETTINGS: Settings = Settings {
    wal_level: 1,
    pack_level: 1,
    threads: 1,
};

/// Two repositories with keys of their own.
struct Pair {
    clock: SharedClock,
    from: Repository,
    to: Repository,
    memory: MemoryStorage,
}

fn repository(name: &str, clock: &SharedClock) -> (MemoryStorage, Repository) {
    let memory = MemoryStorage::new();
    let storage: SharedStorage = Arc::new(memory.clone());
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    (memory, Repository::open(name, storage).unwrap())
}

impl Pair {
    /// The first one holds WAL and a backup, the second nothing.
    fn new(source: &Source, seed: u64) -> Self {
        let clock = SeededClock::shared(seed);
        let (_, from) = repository("a", &clock);
        for (file, bytes) in testdata::wal_files() {
            testdata::push(&from, file, &bytes, &clock).unwrap();
        }
        source.back_up(&from, &clock).unwrap();
        let (memory, to) = repository("b", &clock);
        assert_ne!(from.digest_key(), to.digest_key());
        Self {
            clock,
            from,
            to,
            memory,
        }
    }

    fn copy_as(&self, to: &Repository, request: &Request) -> Result<Report> {
        let cancel = CancelToken::default();
        run(&self.from, to, request, SETTINGS, &self.clock, &cancel)
    }

    fn copy(&self, request: &Request) -> Report {
        self.copy_as(&self.to, request).unwrap()
    }

    /// The second repository behind faults.
    fn faulty(&self, faults: &str) -> (FaultyStorage, Repository) {
        let inner: SharedStorage = Arc::new(self.memory.clone());
        let storage = FaultyStorage::new(inner, Faults::parse(faults).unwrap());
        let repository = Repository::open("b", Arc::new(storage.clone())).unwrap();
        (storage, repository)
    }

    /// The second repository is whole to the last page, and restores to what the first one does.
    #[track_caller]
    fn assert_copied(&self, situation: &str) {
        let now = self.clock.now();
        let cancel = CancelToken::default();
        let report = verify(&self.to, &Scope::All, Level::Pages, now, &cancel).unwrap();
        assert_eq!(report.findings, [], "{situation}");
        for (file, bytes) in testdata::wal_files() {
            let stored = get::fetch(&self.to, wal_data::system_id(), file).unwrap();
            assert!(stored == Some(bytes), "{situation}: {file}");
        }
        assert_eq!(
            restored(&self.from),
            restored(&self.to),
            "{situation}: the restores differ"
        );
    }
}

fn restored(repository: &Repository) -> restores::Tree {
    let host = testdata::in_memory();
    let (plan, backup) = restores::plan(repository).unwrap();
    let fs = Arc::new(crate::crashsafe::RealFs);
    restores::restore(&plan, &backup, host.path(), fs, false).unwrap();
    restores::state(host.path())
}

#[test]
fn a_copy_holds_all_and_a_second_one_does_nothing() {
    let source = Source::new();
    let pair = Pair::new(&source, 1);
    let report = pair.copy(&Request::default());
    let files = testdata::wal_files().len() as u64;
    assert_eq!((report.wal_copied, report.wal_present), (files, 0));
    assert_eq!(report.backups.len(), 1);
    assert_eq!(report.backups[0].outcome, Arrived::Copied);
    pair.assert_copied("first");
    let objects = pair.memory.list("").unwrap();
    let report = pair.copy(&Request::default());
    assert_eq!((report.wal_copied, report.wal_present), (0, files));
    assert_eq!(report.backups[0].outcome, Arrived::Present);
    assert_eq!(
        pair.memory.list("").unwrap(),
        objects,
        "nothing was written"
    );
    // Every file read and compared.
    let compare = Request {
        compare: true,
        ..Request::default()
    };
    let report = pair.copy(&compare);
    assert_eq!((report.wal_copied, report.wal_present), (0, files));
    // The label is the same, the session and the digests are not.
    let label = |repository: &Repository| backups::committed(repository, NAME).unwrap().remove(0);
    let (a, b) = (label(&pair.from), label(&pair.to));
    assert!(a.label == b.label && a.session != b.session && a.root_digest != b.root_digest);
}

#[test]
fn a_crash_or_an_error_at_every_call_is_mended_by_the_next_run() {
    let source = Source::new();
    let whole = Pair::new(&source, 2);
    let (counter, to) = whole.faulty("");
    let opened = counter.calls();
    whole.copy_as(&to, &Request::default()).unwrap();
    let calls = counter.calls();
    assert!(calls > 40, "{calls} calls");
    let mut outcomes = std::collections::BTreeMap::new();
    for n in opened + 1..=calls {
        // `fail-after` is a process that dies: no call of its own after that does anything.
        for fault in ["fail-after", "lost-reply"] {
            let at = if fault == "fail-after" { n - 1 } else { n };
            let situation = format!("{fault}:{at} of {calls}");
            let pair = Pair::new(&source, n);
            let (_, to) = pair.faulty(&format!("{fault}:{at}"));
            let died = pair.copy_as(&to, &Request::default());
            let report = pair.copy(&Request::default());
            assert_eq!(report.findings.len(), 0, "{situation}: {report:?}");
            let outcome = report.backups[0].outcome;
            *outcomes.entry(format!("{outcome:?}")).or_insert(0) += 1;
            if died.is_ok() {
                assert_eq!(outcome, Arrived::Present, "{situation}");
            }
            pair.assert_copied(&situation);
        }
    }
    println!("cases: {outcomes:?}");
    // Each way was taken: the tests above would hold without the repair, too.
    for outcome in ["Copied", "Completed", "Present"] {
        assert!(outcomes.contains_key(outcome), "{outcomes:?}");
    }
}

#[test]
fn another_content_is_refused_and_kept_apart() {
    let source = Source::new();
    let pair = Pair::new(&source, 3);
    pair.copy(&Request::default());
    // The same name with another content in the second one alone.
    let (_, other) = repository("b", &pair.clock);
    let (segment, mut bytes) = wal_data::segment(wal_data::SEGMENTS[1]);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let file = ArchiveFile::Segment(segment);
    testdata::push(&other, file, &bytes, &pair.clock).unwrap();
    let compare = Request {
        compare: true,
        ..Request::default()
    };
    let report = pair.copy_as(&other, &compare).unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(report.findings[0].kind, "wal_conflict");
    let stored = get::fetch(&other, wal_data::system_id(), file).unwrap();
    assert!(stored == Some(bytes), "nothing is replaced");
    let conflicts = crate::wal::conflicts::list(&other, wal_data::system_id()).unwrap();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(report.backups[0].outcome, Arrived::Copied);
}

#[test]
fn another_cluster_of_that_name_is_refused_before_anything_is_written() {
    let source = Source::new();
    let pair = Pair::new(&source, 4);
    let identity = cluster::Identity {
        system_identifier: pgark_types::SystemId(9),
        ..testdata::identity()
    };
    let reason = cluster::Reason::FirstPush;
    cluster::register_or_check(&pair.to, NAME, identity, reason, pair.clock.as_ref()).unwrap();
    let objects = pair.memory.list("").unwrap();
    let error = pair.copy_as(&pair.to, &Request::default()).unwrap_err();
    assert_eq!(error.code(), "cluster_mismatch");
    assert_eq!(pair.memory.list("").unwrap(), objects);
}

/// A copy that has lost its manifest is not filled up with another one's: its label would stand for that.
#[test]
fn a_copy_without_its_manifest_is_left_alone() {
    let source = Source::new();
    let pair = Pair::new(&source, 6);
    let _ = pair.copy(&Request::default());
    let label = backups::committed(&pair.to, NAME).unwrap().remove(0).label;
    let key = layout::manifest(NAME, &label).unwrap();
    pair.to.storage().delete(&key).unwrap();
    let objects = pair.memory.list("").unwrap();
    for _ in 0..2 {
        let report = pair.copy(&Request::default());
        let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
        assert_eq!(kinds, ["manifest_missing"], "{report:?}");
        assert_eq!(pair.memory.list("").unwrap(), objects);
        assert!(backups::committed(&pair.to, NAME).unwrap().is_empty());
    }
}

#[test]
fn damage_is_a_finding_and_the_rest_is_copied() {
    let source = Source::new();
    let pair = Pair::new(&source, 5);
    let storage = pair.from.storage();
    let spoil = |key: &crate::storage::Key| {
        let mut bytes = storage.get(key, u64::MAX).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        storage.delete(key).unwrap();
        assert_eq!(storage.put_if_absent(key, &bytes).unwrap(), Put::Created);
    };
    // A pack: the backup must not be copied in part, nor listed.
    let packs = storage.list("packs/").unwrap();
    packs.iter().for_each(|pack| spoil(&pack.key));
    // A segment that the backup does not need.
    let last = wal_data::segment(wal_data::SEGMENTS[2]).0;
    let key = layout::wal(wal_data::system_id(), ArchiveFile::Segment(last)).unwrap();
    spoil(&key);
    let report = pair.copy(&Request::default());
    let kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert_eq!(report.findings.len(), 2, "{report:?}");
    assert!(kinds[0].starts_with("wal_"), "{kinds:?}");
    assert!(backups::committed(&pair.to, NAME).unwrap().is_empty());
    let inventory = Inventory::load(&pair.to, wal_data::system_id()).unwrap();
    assert!(!inventory.contains(last));
    assert_eq!(report.wal_copied, testdata::wal_files().len() as u64 - 1);
}

#[test]
fn an_uncommitted_backup_is_not_copied() {
    let source = Source::new();
    let pair = Pair::new(&source, 6);
    let label = backups::committed(&pair.from, NAME).unwrap().remove(0);
    let end = layout::session(label.session, "end").unwrap();
    pair.from.storage().delete(&end).unwrap();
    assert_eq!(session::read_end(&pair.from, label.session).unwrap(), None);
    let report = pair.copy(&Request::default());
    assert_eq!(report.backups.len(), 0);
    assert_eq!(pair.memory.list("components/").unwrap(), []);
    assert_eq!(pair.memory.list("packs/").unwrap(), []);
}

#[test]
fn what_to_copy_can_be_chosen() {
    let source = Source::new();
    let pair = Pair::new(&source, 7);
    let wal_only = Request {
        wal_only: true,
        ..Request::default()
    };
    let report = pair.copy(&wal_only);
    assert!(report.wal_copied > 0 && report.backups.is_empty());
    let unknown = Request {
        components: vec!["other".to_owned()],
        ..Request::default()
    };
    let error = pair.copy_as(&pair.to, &unknown).unwrap_err();
    assert_eq!(error.code(), "component_unknown");
    let missing = Request {
        backups: vec!["20260102T030405Z-AB12".parse().unwrap()],
        ..Request::default()
    };
    let error = pair.copy_as(&pair.to, &missing).unwrap_err();
    assert_eq!(error.code(), "backup_missing");
    let error = pair.copy_as(&pair.from, &Request::default()).unwrap_err();
    assert_eq!(error.code(), "same_repository");
    // By label, into an empty one: the WAL that it needs comes along, older WAL does not.
    let label = backups::committed(&pair.from, NAME).unwrap().remove(0);
    let (_, empty) = repository("c", &pair.clock);
    let one = Request {
        backups: vec![label.label.clone()],
        ..Request::default()
    };
    let report = pair.copy_as(&empty, &one).unwrap();
    assert_eq!(report.backups[0].outcome, Arrived::Copied);
    let inventory = Inventory::load(&empty, wal_data::system_id()).unwrap();
    let first = label.first_segment;
    assert!(inventory.contains(first));
    assert!(inventory.segments(first.timeline).all(|s| s >= first));
}

/// A set of the backup `label`, and of what else `members` says.
fn set(clock: &SharedClock, n: u32, label: &BackupLabel, members: Vec<SetMember>) -> Set {
    let mut set = Set::new(BackupLabel::new(clock.now(), n), clock.now(), Quiesce::None);
    let mut own = SetMember::new(NAME, "postgres", SetStage::Base);
    own.outcome = MemberOutcome::Committed;
    own.label = Some(label.clone());
    set.members.push(own);
    set.members.extend(members);
    set
}

fn other(outcome: MemberOutcome) -> SetMember {
    let mut member = SetMember::new("cache", "redis", SetStage::Derived);
    member.outcome = outcome;
    member.label = Some("20260101T000000Z-AAAA".parse().unwrap());
    member
}

#[test]
fn sets_come_along_once_their_backups_are_there() {
    let source = Source::new();
    let pair = Pair::new(&source, 21);
    let first = backups::committed(&pair.from, NAME).unwrap()[0]
        .label
        .clone();
    source.change();
    let second = source.back_up(&pair.from, &pair.clock).unwrap().label;
    let whole = set(
        &pair.clock,
        1,
        &first,
        vec![SetMember::new("x", "redis", SetStage::Derived)],
    );
    // One member has gone in the first repository too, and cannot come any more.
    let gone = set(
        &pair.clock,
        2,
        &first,
        vec![other(MemberOutcome::Committed)],
    );
    let later = set(&pair.clock, 3, &second, Vec::new());
    for set in [&whole, &gone, &later] {
        sets::seal(&pair.from, set, |_| true).unwrap();
    }
    let wal = Request {
        wal_only: true,
        ..Request::default()
    };
    assert!(pair.copy(&wal).sets.is_empty());
    let one = Request {
        backups: vec![first.clone()],
        ..Request::default()
    };
    let outcomes = |report: &Report| -> Vec<(String, Arrived)> {
        assert!(report.findings.is_empty(), "{report:?}");
        let sets = report.sets.iter();
        sets.map(|s| (s.label.to_string(), s.outcome)).collect()
    };
    let label = |set: &Set| set.label.to_string();
    let copied = outcomes(&pair.copy(&one));
    assert_eq!(
        copied,
        [
            (label(&whole), Arrived::Copied),
            (label(&gone), Arrived::Copied)
        ]
    );
    assert_eq!(
        sets::find(&pair.to, &whole.label).unwrap(),
        Some(whole.clone())
    );
    let without = sets::find(&pair.to, &gone.label).unwrap().unwrap();
    assert_eq!(without.members[1].outcome, MemberOutcome::Elsewhere);
    assert_eq!(sets::find(&pair.to, &later.label).unwrap(), None);
    let copied = outcomes(&pair.copy(&Request::default()));
    let present = |set: &Set| (label(set), Arrived::Present);
    assert_eq!(
        copied,
        [
            present(&whole),
            present(&gone),
            (label(&later), Arrived::Copied)
        ]
    );
    pair.assert_copied("with sets");
    // A set is found from the copy alone, and another one of that label is told of.
    assert_eq!(sets::newest_whole(&pair.to).unwrap(), Some(later));
    let (_, third) = repository("c", &pair.clock);
    let mut different = whole.clone();
    different.members[0].label = Some(second);
    sets::seal(&third, &different, |_| true).unwrap();
    let report = pair.copy_as(&third, &one).unwrap();
    let kinds: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.object.clone(), f.kind))
        .collect();
    assert_eq!(kinds, [(format!("set {}", whole.label), "copies_differ")]);
}

#[test]
fn a_set_waits_for_a_member_that_the_first_repository_has() {
    let source = Source::new();
    let pair = Pair::new(&source, 22);
    let first = backups::committed(&pair.from, NAME).unwrap()[0]
        .label
        .clone();
    source.change();
    let second = source.back_up(&pair.from, &pair.clock).unwrap().label;
    // Both of one cluster here; what counts is that one of them is not there yet.
    let mut member = other(MemberOutcome::Elsewhere);
    member.component = NAME.to_owned();
    member.label = Some(second.clone());
    let both = set(&pair.clock, 1, &first, vec![member]);
    sets::seal(&pair.from, &both, |_| true).unwrap();
    let only = |label: &BackupLabel| Request {
        backups: vec![label.clone()],
        ..Request::default()
    };
    assert!(pair.copy(&only(&first)).sets.is_empty());
    assert_eq!(pair.copy(&only(&second)).sets.len(), 1);
    // The copy has what the record of the first one said was elsewhere.
    let copied = sets::find(&pair.to, &both.label).unwrap().unwrap();
    assert_eq!(copied.members[1].outcome, MemberOutcome::Committed);
}

#[test]
fn pins_and_annotations_come_along() {
    let pair = Pair::new(&Source::new(), 23);
    let label = backups::committed(&pair.from, NAME).unwrap()[0]
        .label
        .clone();
    let note = |repository: &Repository, text: &str| {
        let note = Note::Annotate {
            key: "why".to_owned(),
            value: Some(text.to_owned()),
        };
        notes::add(repository, pair.clock.as_ref(), NAME, &label, note).unwrap();
    };
    let pin = Note::Pin {
        reason: "audit".to_owned(),
        until: None,
    };
    notes::add(&pair.from, pair.clock.as_ref(), NAME, &label, pin).unwrap();
    note(&pair.from, "one");
    let of = |repository: &Repository| notes::all(repository, NAME).unwrap();
    pair.copy(&Request::default());
    assert_eq!(of(&pair.to), of(&pair.from));
    assert_eq!(of(&pair.to)[&label].pin.as_ref().unwrap().reason, "audit");
    // What is noted later follows with the next copy, until the other one has notes of its own.
    note(&pair.from, "two");
    pair.copy(&Request::default());
    assert_eq!(of(&pair.to), of(&pair.from));
    note(&pair.to, "mine");
    note(&pair.from, "three");
    note(&pair.from, "four");
    pair.copy(&Request::default());
    let annotation = &of(&pair.to)[&label].annotations["why"];
    assert_eq!(annotation.as_deref(), Some("mine"));
}
