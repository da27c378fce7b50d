//! Copies into a repository whose own retention has removed something: nothing that it gave up comes
//! back, and all that it misses does. A local repository that keeps everything, a spare one with a policy
//! of its own, and a clock that is set by hand; backups without content, and WAL that is all header.

use super::super::*;
use crate::gc::tests::world::{self, COMPONENT, HandClock, SYSTEM};
use crate::gc::{self, Settings as GcSettings};
use crate::repository::notes::{self, Note};
use crate::repository::sets::{self, MemberOutcome, Set, SetMember, SetStage};
use crate::repository::{layout, tombs};
use crate::retention;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Put, SharedStorage};
use crate::wal::cluster::{Identity, Reason};
use crate::wal::inventory::Inventory;
use crate::wal::lag::{self, Lag};
use crate::wal::push;
use pgark_types::retention::{Age, RetentionPolicy};
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, TimelineId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Segments a day.
const A_DAY: u64 = 3;
const SETTINGS: Settings = Settings {
    wal_level: 1,
    pack_level: 1,
    threads: 1,
};

struct Scene {
    hands: HandClock,
    clock: SharedClock,
    local: Repository,
    spare: Repository,
    days: u64,
}

fn identity() -> Identity {
    Identity {
        system_identifier: SYSTEM,
        segment_size: SegmentSize::DEFAULT,
        postgres_major: Some(17),
    }
}

fn segment(no: u64) -> SegmentName {
    SegmentName::new(TimelineId(1), no, SegmentSize::DEFAULT).unwrap()
}

/// A WAL segment that is all header.
fn content(no: u64) -> Arc<Vec<u8>> {
    let size = SegmentSize::DEFAULT;
    let mut bytes = vec![0; usize::try_from(size.bytes()).unwrap()];
    bytes[..2].copy_from_slice(&0xD116_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&size.segment_start(no).0.to_le_bytes());
    bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32::try_from(size.bytes()).unwrap().to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    Arc::new(bytes)
}

impl Scene {
    fn new(seed: u64) -> Self {
        let hands = HandClock::new(seed);
        let clock: SharedClock = Arc::new(hands.clone());
        let [local, spare] = ["local", "spare"].map(|name| repository(name, &clock));
        for each in [&local, &spare] {
            let reason = Reason::FirstPush;
            cluster::register_or_check(each, COMPONENT, identity(), reason, &hands).unwrap();
        }
        Self {
            hands,
            clock,
            local,
            spare,
            days: 0,
        }
    }

    fn hours(&self, hours: i64) {
        self.hands.advance(hours * 3600);
    }

    /// WAL and a backup of one more day, in the middle of its WAL; into the spare as well unless that is
    /// `away`.
    fn day(&mut self, away: bool) -> BackupLabel {
        let first = self.days * A_DAY + 1;
        self.days += 1;
        for no in first..first + A_DAY {
            let file = ArchiveFile::Segment(segment(no));
            let places = [&self.local, &self.spare];
            for each in &places[..if away { 1 } else { 2 }] {
                push::copy_into(each, identity(), file, &content(no), 1, &self.clock).unwrap();
            }
        }
        let backup = world::back_up(&self.local, &self.clock, &[], first + 1, &mut |_| Ok(()));
        let label = backup.unwrap().label;
        if !away {
            let report = self.copy(&named(&label));
            assert_eq!(report.findings.len(), 0, "{report:?}");
            assert_eq!(report.backups[0].outcome, Arrived::Copied);
        }
        self.hours(24);
        label
    }

    fn copy(&self, request: &Request) -> Report {
        let cancel = CancelToken::default();
        let (from, to) = (&self.local, &self.spare);
        run(from, to, request, SETTINGS, &self.clock, &cancel).unwrap()
    }

    fn catch_up(&self) -> Report {
        self.copy(&Request {
            newer_only: true,
            ..Request::default()
        })
    }

    fn policy(&self, repository: &Repository, policy: RetentionPolicy) {
        retention::set(repository, &self.hands, COMPONENT, policy).unwrap();
    }

    /// Expires by the policy; what went.
    fn expire(&self, repository: &Repository) -> Vec<BackupLabel> {
        let request = retention::Request::default();
        let done = retention::expire(repository, &self.hands, COMPONENT, &request);
        done.unwrap().expired
    }

    /// gc after gc, a day apart, until nothing is left to do.
    fn gc(&self, repository: &Repository) {
        for _ in 0..20 {
            let (settings, cancel) = (GcSettings::default(), CancelToken::default());
            let report = gc::run(repository, &self.hands, &settings, &cancel).unwrap();
            assert_eq!(report.left, [""; 0]);
            if report.plan.is_none() && report.swept.is_none() {
                return;
            }
            self.hours(25);
        }
        panic!("gc finds no end");
    }
}

fn repository(name: &str, clock: &SharedClock) -> Repository {
    let storage: SharedStorage = Arc::new(MemoryStorage::with_clock(SharedClock::clone(clock)));
    crate::repository::create(&storage, clock.as_ref()).unwrap();
    Repository::open(name, storage).unwrap()
}

fn named(label: &BackupLabel) -> Request {
    Request {
        backups: vec![label.clone()],
        ..Request::default()
    }
}

fn labels(repository: &Repository) -> Vec<BackupLabel> {
    let records = backups::committed(repository, COMPONENT).unwrap();
    records.into_iter().map(|record| record.label).collect()
}

fn kinds(findings: &[Finding]) -> Vec<(&str, &str)> {
    let findings = findings.iter();
    findings.map(|f| (f.object.as_str(), f.kind)).collect()
}

fn objects(repository: &Repository) -> BTreeSet<String> {
    let all = repository.storage().list("").unwrap();
    all.into_iter().map(|o| o.key.to_string()).collect()
}

fn keep_last(n: u32) -> RetentionPolicy {
    RetentionPolicy {
        keep_last: Some(n),
        ..RetentionPolicy::default()
    }
}

/// What the other repository has expired is told of, not called a copy; so is what gc has removed.
#[test]
fn a_backup_that_was_removed_there_is_not_called_copied() {
    let mut scene = Scene::new(1);
    let old = scene.day(false);
    let new = scene.day(false);
    scene.policy(&scene.spare, keep_last(1));
    assert_eq!(scene.expire(&scene.spare), std::slice::from_ref(&old));
    let note = Note::Annotate {
        key: "why".to_owned(),
        value: Some("audit".to_owned()),
    };
    notes::add(&scene.local, &scene.hands, COMPONENT, &old, note).unwrap();
    let object = format!("backup {old}");
    let check = |kind: &'static str, hint: &str| {
        let before = objects(&scene.spare);
        // Of everything: told of, and no fault.
        let report = scene.copy(&Request::default());
        assert_eq!(kinds(&report.left), [(object.as_str(), kind)]);
        assert!(report.left[0].hint.as_ref().unwrap().contains(hint));
        assert_eq!(kinds(&report.findings), []);
        let told: Vec<_> = report
            .backups
            .iter()
            .map(|b| (&b.label, b.outcome))
            .collect();
        assert_eq!(told, [(&new, Arrived::Present)]);
        // By name: a fault.
        let report = scene.copy(&named(&old));
        assert_eq!(kinds(&report.findings), [(object.as_str(), kind)]);
        assert!(report.backups.is_empty() && report.left.is_empty());
        assert_eq!(report.wal_copied + report.wal_present, 0);
        // To catch up: nothing at all.
        let report = scene.catch_up();
        assert!(report.left.is_empty() && report.findings.is_empty());
        assert_eq!(labels(&scene.spare), std::slice::from_ref(&new));
        let added: Vec<String> = objects(&scene.spare).difference(&before).cloned().collect();
        assert!(added.iter().all(|key| key.starts_with("wal/")), "{added:?}");
    };
    check("expired_there", "pgark undelete --repository spare");
    scene.hours(24 * 8);
    scene.gc(&scene.spare);
    let folder = format!("{}{old}/", layout::backups_prefix(COMPONENT));
    assert_eq!(scene.spare.storage().list(&folder).unwrap(), []);
    check("removed_there", "pgark pin");
}

/// Undeleted there, it counts: there is nothing to refuse.
#[test]
fn an_undeleted_backup_is_there() {
    let mut scene = Scene::new(2);
    let old = scene.day(false);
    scene.day(false);
    scene.policy(&scene.spare, keep_last(1));
    assert_eq!(scene.expire(&scene.spare), std::slice::from_ref(&old));
    tombs::undo(&scene.spare, &scene.hands, COMPONENT, &old).unwrap();
    let report = scene.copy(&named(&old));
    assert!(report.findings.is_empty(), "{report:?}");
    assert_eq!(report.backups[0].outcome, Arrived::Present);
}

/// Where the decision about it cannot be read, nothing is written: it may be gone for good.
#[test]
fn a_damaged_tomb_is_a_finding() {
    let mut scene = Scene::new(3);
    let old = scene.day(true);
    scene.day(false);
    tombs::bury(&scene.spare, &scene.hands, COMPONENT, &old, "test").unwrap();
    let decision = layout::tomb_final(COMPONENT, &old, 1).unwrap();
    let put = scene
        .spare
        .storage()
        .put_if_absent(&decision, b"?")
        .unwrap();
    assert_eq!(put, Put::Created);
    let report = scene.copy(&named(&old));
    let object = format!("backup {old}");
    assert_eq!(kinds(&report.findings), [(object.as_str(), "tomb_damaged")]);
    assert_eq!(labels(&scene.spare).len(), 1);
}

/// A set of which the other repository has removed a backup is not whole there, and is not copied.
#[test]
fn a_set_that_lost_a_backup_there_is_told_of() {
    let mut scene = Scene::new(4);
    let old = scene.day(false);
    let new = scene.day(false);
    let member = |label: &BackupLabel| {
        let mut member = SetMember::new(COMPONENT, "postgres", SetStage::Base);
        member.outcome = MemberOutcome::Committed;
        member.label = Some(label.clone());
        member
    };
    let set = |n: u32, members: Vec<SetMember>| {
        let now = scene.clock.now();
        let quiesce = crate::config::component::Quiesce::None;
        let mut set = Set::new(BackupLabel::new(now, n), now, quiesce);
        set.members = members;
        sets::seal(&scene.local, &set, |_| true).unwrap();
        set.label
    };
    let of_both = set(1, vec![member(&new), member(&old)]);
    let of_new = set(2, vec![member(&new)]);
    scene.policy(&scene.spare, keep_last(1));
    scene.expire(&scene.spare);
    let report = scene.copy(&Request::default());
    let copied: Vec<_> = report.sets.iter().map(|s| (&s.label, s.outcome)).collect();
    assert_eq!(copied, [(&of_new, Arrived::Copied)]);
    let (backup, whole) = (format!("backup {old}"), format!("set {of_both}"));
    let expired = [
        (backup.as_str(), "expired_there"),
        (whole.as_str(), "expired_there"),
    ];
    assert_eq!(kinds(&report.left), expired);
}

/// The last backup of each of four weeks, and three days without a gap.
fn weekly() -> RetentionPolicy {
    RetentionPolicy {
        weekly: Some(4),
        window: Some(days(3)),
        ..RetentionPolicy::default()
    }
}

fn days(n: u64) -> Age {
    Age::seconds(n * 86_400)
}

impl Scene {
    /// As long as the spare's policy needs to thin out what it has: WAL and a backup every day, and expiry
    /// and gc in the evening.
    fn lived(seed: u64, local: Option<RetentionPolicy>) -> Self {
        let mut scene = Self::new(seed);
        scene.policy(&scene.spare, weekly());
        if let Some(policy) = local {
            scene.policy(&scene.local, policy);
        }
        scene.live(30);
        let (segments, backups) = scene.apart();
        assert!(segments.len() > 10 && backups.len() > 5, "{segments:?}");
        scene
    }

    fn live(&mut self, days: usize) {
        for _ in 0..days {
            self.day(false);
            for each in [&self.local, &self.spare] {
                if retention::current(each, COMPONENT).unwrap().is_none() {
                    continue;
                }
                self.expire(each);
                let (settings, cancel) = (GcSettings::default(), CancelToken::default());
                gc::run(each, &self.hands, &settings, &cancel).unwrap();
            }
        }
    }

    /// What the local one has and the spare has not, although it is newer than the oldest thing there.
    fn apart(&self) -> (Vec<SegmentName>, Vec<BackupLabel>) {
        let (here, there) = (segments(&self.local), segments(&self.spare));
        let oldest = there.first().unwrap();
        let missing = here.difference(&there).filter(|s| *s > oldest);
        let kept = labels(&self.spare);
        let backups = labels(&self.local).into_iter();
        let backups = backups.filter(|l| *l > kept[0] && !kept.contains(l));
        (missing.copied().collect(), backups.collect())
    }

    fn lags(&self) -> [Lag; 2] {
        let both = [&self.local, &self.spare];
        let lags = lag::lags(&both, COMPONENT, self.clock.now()).unwrap();
        lags.try_into().unwrap()
    }

    #[track_caller]
    fn assert_level(&self) {
        let [local, spare] = self.lags();
        assert!(local.is_none() && spare.is_none(), "{local:?} {spare:?}");
        let before = objects(&self.spare);
        let report = self.catch_up();
        assert_eq!(
            (report.wal_copied, report.findings.len()),
            (0, 0),
            "{report:?}"
        );
        let mut backups = report.backups.iter();
        assert!(backups.all(|b| b.outcome == Arrived::Present));
        assert_eq!(objects(&self.spare), before);
    }
}

fn segments(repository: &Repository) -> BTreeSet<SegmentName> {
    let inventory = Inventory::load(repository, SYSTEM).unwrap();
    inventory.segments(TimelineId(1)).collect()
}

#[test]
fn what_retention_gave_up_does_not_come_back_and_is_not_missed() {
    let mut scene = Scene::lived(11, None);
    scene.assert_level();
    // Nor with a copy of everything, which says what it leaves out.
    let (gone, expired) = scene.apart();
    let report = scene.copy(&Request::default());
    assert_eq!((report.wal_copied, report.findings.len()), (0, 0));
    assert!(report.wal_given_up >= gone.len() as u64, "{report:?}");
    assert!(report.left.len() >= expired.len());
    // An outage: what was missed is missed, and comes, and nothing else does.
    let had = segments(&scene.spare);
    let missed: Vec<BackupLabel> = (0..3).map(|_| scene.day(true)).collect();
    let new: BTreeSet<SegmentName> = segments(&scene.local).split_off(&segment(30 * A_DAY + 1));
    assert_eq!(new.len() as u64, 3 * A_DAY);
    let [local, spare] = scene.lags();
    assert!(local.is_none());
    assert_eq!(spare.wal_missing, new.len());
    assert_eq!(spare.first_missing.as_ref(), new.first());
    assert!(spare.backups_missing.contains(&missed[2]));
    let report = scene.catch_up();
    assert_eq!(report.findings.len(), 0, "{report:?}");
    assert_eq!(report.wal_copied, new.len() as u64);
    let have = segments(&scene.spare);
    assert_eq!(have.difference(&had).copied().collect::<BTreeSet<_>>(), new);
    let copied = report
        .backups
        .iter()
        .filter(|b| b.outcome == Arrived::Copied);
    let copied: Vec<&BackupLabel> = copied.map(|b| &b.label).collect();
    let all = spare.backups_missing.iter().collect::<Vec<_>>();
    assert_eq!(copied, all);
    assert!(copied.iter().all(|label| missed.contains(label)));
    scene.assert_level();
    scene.live(8);
    scene.assert_level();
}

/// Two that are required, each with a policy of its own: neither lags for what it gave up.
#[test]
fn neither_of_two_policies_is_behind_the_other() {
    let scene = Scene::lived(12, Some(keep_last(20)));
    assert!(labels(&scene.local).len() < 25);
    scene.assert_level();
}

/// A window made longer needs WAL that had been given up: it comes, floor or not.
#[test]
fn wal_that_a_longer_window_needs_comes_back() {
    let scene = Scene::lived(13, None);
    let longer = RetentionPolicy {
        window: Some(days(15)),
        ..weekly()
    };
    scene.policy(&scene.spare, longer);
    let begin = days(15).before(scene.clock.now());
    let backups = backups::committed(&scene.spare, COMPONENT).unwrap();
    let start = backups.iter().rfind(|b| b.stopped_at <= begin).unwrap();
    let hole = || {
        let all = segments(&scene.local).split_off(&start.first_segment);
        let missing = all.difference(&segments(&scene.spare)).count();
        (all.len(), missing)
    };
    let (_, missing) = hole();
    assert!(missing > 0);
    let inventory = Inventory::load(&scene.spare, SYSTEM).unwrap();
    let first = start.first_segment.number(SegmentSize::DEFAULT).unwrap();
    assert!(
        inventory.floor(TimelineId(1)) > first,
        "or the test shows nothing"
    );
    let [_, spare] = scene.lags();
    assert_eq!(spare.wal_missing, missing);
    assert_eq!(scene.catch_up().wal_copied, missing as u64);
    assert_eq!(hole().1, 0);
    scene.assert_level();
}

/// Without a policy that can be read, what gc has removed tells; what a backup needs comes all the same.
#[test]
fn without_a_decision_the_floor_tells() {
    let scene = Scene::lived(14, None);
    let n = retention::current(&scene.spare, COMPONENT)
        .unwrap()
        .unwrap()
        .n;
    let key = layout::policy(COMPONENT, n + 1).unwrap();
    let put = scene.spare.storage().put_if_absent(&key, b"junk");
    assert_eq!(put.unwrap(), Put::Created);
    assert!(retention::current(&scene.spare, COMPONENT).is_err());
    scene.assert_level();
    // The WAL of the oldest backup there, far below the floor, and some above it.
    let oldest = backups::committed(&scene.spare, COMPONENT)
        .unwrap()
        .remove(0);
    let lost = [oldest.first_segment, segment(30 * A_DAY - 2)];
    let earlier = scene
        .spare
        .storage()
        .list(&layout::wal_prefix(SYSTEM))
        .unwrap();
    for object in earlier {
        if lost
            .iter()
            .any(|s| object.key.as_str().contains(&s.to_string()))
        {
            scene.spare.storage().delete(&object.key).unwrap();
        }
    }
    let [_, spare] = scene.lags();
    assert_eq!(spare.wal_missing, 2, "{spare:?}");
    assert_eq!(scene.catch_up().wal_copied, 2);
    scene.assert_level();
}
