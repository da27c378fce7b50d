//! Retention against restores: a cluster lives through backups, lost segments, recoveries to the past and a
//! pg_upgrade; then policies are applied, day after day. What could be restored before, and is promised,
//! can be restored after. The simulation knows nothing of rules: a moment can be restored when some backup
//! that ended before it is there, with every segment from its begin to the moment, along the lineage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use pgark_types::retention::*;
use pgark_types::{BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;

fn end() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap()
}

/// Random choices from one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn maybe<T>(&mut self, percent: u64, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(percent).then(|| value(self))
    }
}

/// The end of a segment, as the one who wrote it knew it.
type Moment = (SystemId, TimelineId, u64);

/// What is in the repository, and how it came there.
#[derive(Clone, Default)]
struct Repository {
    backups: Vec<BackupFacts>,
    stored: BTreeSet<Moment>,
    /// When each segment was full, lost ones too.
    written: BTreeMap<Moment, DateTime<Utc>>,
    /// Whence each timeline comes, oldest first: timeline, and the segment it was left in.
    lineages: BTreeMap<(SystemId, TimelineId), Vec<(TimelineId, u64)>>,
    /// When each began: the moment the one before was left. What is stored tells of it then or later.
    begun: BTreeMap<(SystemId, TimelineId), DateTime<Utc>>,
    pins: Vec<Pin>,
}

/// Where a timeline is left within a segment: behind backups that ended there.
fn switch(segment: u64) -> Lsn {
    Lsn(segment * MIB + 500)
}

impl Repository {
    fn lived(r: &mut Random) -> Self {
        let mut it = Self::default();
        let days = 5 + r.below(40) as i64;
        let mut now = end() - TimeDelta::days(days);
        let (mut system, mut timeline, mut at) = (SystemId(1), TimelineId(1), 1);
        it.lineages.insert((system, timeline), Vec::new());
        it.begun.insert((system, timeline), now);
        let mut lost = 0_u64;
        while now < end() {
            now += TimeDelta::minutes(60 + r.below(900) as i64);
            if r.chance(5) {
                // Nobody changes anything.
                now += TimeDelta::days(1 + r.below(15) as i64);
            }
            let moment = (system, timeline, at);
            it.written.insert(moment, now);
            if lost == 0 && !r.chance(3) {
                it.stored.insert(moment);
            }
            lost = lost.saturating_sub(1);
            at += 1;
            match r.below(100) {
                0..18 => {
                    let first = at;
                    for _ in 0..=r.below(2) {
                        now += TimeDelta::minutes(30);
                        it.written.insert((system, timeline, at), now);
                        if !r.chance(5) {
                            it.stored.insert((system, timeline, at));
                        }
                        at += 1;
                    }
                    it.back_up(r, (system, timeline), (first, at - 1), now);
                }
                18..22 => {
                    // Back to a moment of the present lineage.
                    let left = 1 + r.below(at);
                    let mut lineage = it.lineages[&(system, timeline)].clone();
                    lineage.push((timeline, at));
                    let of = *lineage.iter().find(|(_, until)| left <= *until).unwrap();
                    lineage.retain(|(_, until)| *until < left);
                    lineage.retain(|(t, _)| *t != of.0);
                    lineage.push((of.0, left));
                    let numbers = it.lineages.keys().filter(|(s, _)| *s == system);
                    timeline = TimelineId(numbers.map(|(_, t)| t.0).max().unwrap() + 1);
                    it.lineages.insert((system, timeline), lineage);
                    it.begun.insert((system, timeline), now);
                    at = left;
                    // Its first segments come late, or never.
                    lost = r.maybe(30, |r| r.below(6)).unwrap_or(0);
                }
                22 if system == SystemId(1) => {
                    (system, timeline, at) = (SystemId(2), TimelineId(1), 1);
                    it.lineages.insert((system, timeline), Vec::new());
                    it.begun.insert((system, timeline), now);
                }
                _ => {}
            }
        }
        it
    }

    fn back_up(
        &mut self,
        r: &mut Random,
        (system_id, timeline): (SystemId, TimelineId),
        (first, last): (u64, u64),
        stopped_at: DateTime<Utc>,
    ) {
        let label = BackupLabel::new(stopped_at, self.backups.len() as u32);
        if r.chance(8) {
            let until = r.maybe(50, |_| stopped_at + TimeDelta::days(20));
            let (label, reason) = (label.clone(), "audit".to_owned());
            self.pins.push(Pin {
                label,
                reason,
                until,
            });
        }
        self.backups.push(BackupFacts {
            label,
            system_id,
            timeline,
            start_lsn: Lsn(first * MIB + 40),
            stop_lsn: Lsn(last * MIB + 400),
            stopped_at,
            health: match r.chance(8) {
                true => Health::CorruptPages,
                false => Health::Good,
            },
            state: match r.chance(8) {
                true => BackupState::Expired,
                false => BackupState::Live,
            },
        });
    }

    fn history(&self) -> History {
        let newest = self.lineages.keys().map(|(system, _)| *system).max();
        let mut clusters: BTreeMap<SystemId, ClusterFacts> = BTreeMap::new();
        for ((system, timeline), lineage) in &self.lineages {
            let own = self.stored.iter();
            let own = own.filter(|(s, t, _)| (s, t) == (system, timeline));
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for (_, _, no) in own.clone() {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 == *no => *last = *no,
                    _ => runs.push((*no, *no)),
                }
            }
            // Its history file is stored when it begins; the first timeline has none.
            let history = self.begun[&(*system, *timeline)];
            let history = (!lineage.is_empty()).then_some(history);
            let oldest = own.clone().map(|moment| self.written[moment]).min();
            let facts = clusters.entry(*system).or_insert(ClusterFacts {
                system_id: *system,
                segment_size: SegmentSize::new(MIB).unwrap(),
                current: Some(*system) == newest,
                timelines: Vec::new(),
            });
            let ancestor = |(timeline, left): &(TimelineId, u64)| Ancestor {
                timeline: *timeline,
                switch: switch(*left),
            };
            facts.timelines.push(TimelineFacts {
                timeline: *timeline,
                ancestors: Some(lineage.iter().map(ancestor).collect()),
                runs,
                begun_at: history.or(oldest),
                newest_at: own.map(|moment| self.written[moment]).max(),
                covered_until: None,
            });
        }
        History {
            backups: self.backups.clone(),
            clusters: clusters.into_values().collect(),
            pins: self.pins.clone(),
            wal_pins: Vec::new(),
        }
    }

    /// The timelines that wrote what leads to the end of `no` on `timeline`, segment by segment.
    fn writer(&self, system: SystemId, timeline: TimelineId, no: u64) -> TimelineId {
        let lineage = &self.lineages[&(system, timeline)];
        // The younger one wrote the segment of the switch anew.
        let older = lineage.iter().find(|(_, left)| no < *left);
        older.map_or(timeline, |(older, _)| *older)
    }

    fn restores(&self, backup: &BackupFacts, (system, timeline, no): Moment) -> bool {
        let lineage = &self.lineages[&(system, timeline)];
        let left = lineage.iter().find(|(t, _)| *t == backup.timeline);
        let on_the_way = match left {
            _ if backup.timeline == timeline => true,
            Some((_, left)) => backup.stop_lsn <= switch(*left),
            None => false,
        };
        let (first, last) = (backup.start_lsn.0 / MIB, backup.stop_lsn.0 / MIB);
        // Its own WAL is of its own timeline; what follows of whoever wrote it.
        let own = (first..=last).all(|n| self.stored.contains(&(system, backup.timeline, n)));
        backup.system_id == system
            && backup.state == BackupState::Live
            && backup.health == Health::Good
            && on_the_way
            && last <= no
            && own
            && (first..=no).all(|n| {
                let writer = self.writer(system, timeline, n);
                self.stored.contains(&(system, writer, n))
            })
    }

    /// When somebody turned from a timeline to another one; `None`: it is the one that counts.
    fn left(&self, of: (SystemId, TimelineId)) -> Option<DateTime<Utc>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let next = self.begun.range((Excluded(of), Unbounded)).next();
        next.map(|(_, at)| *at)
    }

    /// Whether a restore can follow a timeline: from its begin, or from a backup of its own.
    fn has_begun(&self, of: (SystemId, TimelineId)) -> bool {
        let begin = self.lineages[&of]
            .last()
            .map(|(_, left)| (of.0, of.1, *left));
        let own = |b: &BackupFacts| {
            (b.system_id, b.timeline) == of && self.restores(b, (of.0, of.1, b.stop_lsn.0 / MIB))
        };
        let first = begin.is_none_or(|begin| self.stored.contains(&begin));
        self.last(of).is_some() && (first || self.backups.iter().any(own))
    }

    /// The last segment of a timeline.
    fn last(&self, (system, timeline): (SystemId, TimelineId)) -> Option<Moment> {
        let own = (system, timeline, 0)..=(system, timeline, u64::MAX);
        self.stored.range(own).next_back().copied()
    }

    /// Every moment that can be restored.
    fn reachable(&self) -> BTreeSet<Moment> {
        let moments = self.stored.iter().copied();
        let reached = moments.filter(|m| self.backups.iter().any(|b| self.restores(b, *m)));
        reached.collect()
    }

    /// What is left when `decisions` are carried out; how many backups and segments go.
    fn applied(&self, decisions: &Decisions) -> (Self, usize, usize) {
        let mut left = self.clone();
        let goes = |b: &BackupFacts| {
            let of = decisions.backups.iter().find(|d| d.label == b.label);
            b.state == BackupState::Live && of.is_some_and(|d| !d.keep)
        };
        left.backups.retain(|b| !goes(b));
        for line in decisions.wal.iter().filter(|line| !line.keep) {
            let size = SegmentSize::new(MIB).unwrap();
            for no in line.first.number(size).unwrap()..=line.last.number(size).unwrap() {
                left.stored.remove(&(line.system_id, line.timeline, no));
            }
        }
        let backups = self.backups.len() - left.backups.len();
        let segments = self.stored.len() - left.stored.len();
        (left, backups, segments)
    }
}

fn policy(r: &mut Random) -> RetentionPolicy {
    let age = |r: &mut Random| Age::seconds(r.below(40) * 43_200);
    RetentionPolicy {
        keep_last: r.maybe(40, |r| r.below(4) as u32),
        keep_within: r.maybe(20, age),
        daily: r.maybe(25, |r| r.below(5) as u32),
        weekly: r.maybe(20, |r| r.below(3) as u32),
        window: r.maybe(50, age),
        ..RetentionPolicy::default()
    }
}

/// A life, a policy, and some days of it; how many backups and segments went.
fn live_with(seed: u64) -> (usize, usize) {
    let mut r = Random(seed);
    let mut repository = Repository::lived(&mut r);
    let policy = policy(&mut r);
    let (mut backups, mut segments) = (0, 0);
    let mut now = end();
    for day in 0..4 {
        let Ok(decisions) = decide(&policy, &repository.history(), now) else {
            assert!(!policy.keeps_something());
            return (0, 0);
        };
        let (left, b, s) = repository.applied(&decisions);
        check(&repository, &left, &policy, now)
            .unwrap_or_else(|broken| panic!("seed {seed}, day {day}, {policy}: {broken}"));
        (backups, segments) = (backups + b, segments + s);
        // What could be undeleted is gone some day.
        repository = left;
        if day == 1 {
            let live = |b: &BackupFacts| b.state == BackupState::Live;
            repository.backups.retain(live);
        }
        now += TimeDelta::hours(24 + r.below(100) as i64);
    }
    (backups, segments)
}

/// Whether everything that was promised of `before` holds in `after`.
fn check(
    before: &Repository,
    after: &Repository,
    policy: &RetentionPolicy,
    now: DateTime<Utc>,
) -> Result<(), String> {
    let (was, is) = (before.reachable(), after.reachable());
    let kept = || after.backups.iter();
    // Backups that stay can be restored as far as they go by themselves; without a window as far as ever.
    for moment in &was {
        for backup in kept().filter(|b| before.restores(b, *moment)) {
            let own = moment.1 == backup.timeline && moment.2 == backup.stop_lsn.0 / MIB;
            if (own || policy.window.is_none()) && !after.restores(backup, *moment) {
                return Err(format!("{} no longer reaches {moment:?}", backup.label));
            }
        }
    }
    let begin = policy
        .window
        .map(|window| now - TimeDelta::seconds(window.as_seconds() as i64));
    let promised = |moment: &&Moment| match begin {
        Some(begin) => before.written[*moment] >= begin,
        None => !policy.has_rules(),
    };
    if let Some(lost) = was.iter().filter(promised).find(|m| !is.contains(m)) {
        return Err(format!("{lost:?} was promised"));
    }
    // What was the state of an idle database at some time of the window: the end of each timeline that was
    // not left before.
    for of in before.lineages.keys() {
        let counted = begin.is_some_and(|begin| before.left(*of).is_none_or(|at| at >= begin));
        let end = before.last(*of).filter(|_| counted);
        if let Some(lost) = end.filter(|end| was.contains(end) && !is.contains(end)) {
            return Err(format!("{lost:?} is where an idle timeline ended"));
        }
    }
    // Whatever the rules: the end of the newest timeline that a restore can follow, of the cluster that
    // counts. Where it has none of its own WAL yet, that of the one before.
    let newest = before
        .lineages
        .keys()
        .next_back()
        .map(|(system, _)| *system);
    let mut timelines = before.lineages.keys().rev();
    let newest = timelines.find(|of| Some(of.0) == newest && before.has_begun(**of));
    let newest = newest.and_then(|of| before.last(*of));
    match newest.filter(|end| was.contains(end) && !is.contains(end)) {
        Some(lost) => Err(format!("{lost:?} is the newest there is")),
        None => Ok(()),
    }
}

/// The test must meet cases in which something goes.
#[test]
fn things_go() {
    let (mut backups, mut segments) = (0, 0);
    for seed in 0..200 {
        let (b, s) = live_with(seed);
        backups += usize::from(b > 0);
        segments += usize::from(s > 0);
    }
    assert!(backups > 60, "backups went in {backups} of 200 lives");
    assert!(segments > 60, "WAL went in {segments} of 200 lives");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn what_is_promised_can_be_restored(seed in any::<u64>()) {
        live_with(seed);
    }
}
