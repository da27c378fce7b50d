//! Retention against an oracle: the rules written once more, plainly, backup by backup and segment by
//! segment, over random policies and histories with gaps, branches, pg_upgrade, pins and expired backups.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use chrono::{DateTime, Datelike, TimeDelta, TimeZone, Utc};
use pgark_types::retention::*;
use pgark_types::{BackupLabel, Lsn, SegmentSize, SystemId, TimelineId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 21, 12, 0, 0).unwrap()
}

/// Random choices from one seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn maybe<T>(&mut self, percent: u64, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.chance(percent).then(|| value(self))
    }
}

fn policy(r: &mut Random) -> RetentionPolicy {
    let age = |r: &mut Random| Age::seconds(r.below(40) * 43_200);
    let offsets = ["Z", "+02:00", "-03:30", "+13:45"];
    RetentionPolicy {
        keep_last: r.maybe(40, |r| r.below(4) as u32),
        keep_within: r.maybe(30, age),
        hourly: r.maybe(15, |r| r.below(5) as u32),
        daily: r.maybe(25, |r| r.below(5) as u32),
        weekly: r.maybe(25, |r| r.below(4) as u32),
        monthly: r.maybe(25, |r| r.below(4) as u32),
        yearly: r.maybe(15, |r| r.below(3) as u32),
        window: r.maybe(50, age),
        utc_offset: offsets[r.below(4) as usize].parse().unwrap(),
    }
}

fn cluster(r: &mut Random, id: u64, current: bool) -> ClusterFacts {
    let mut timelines: Vec<TimelineFacts> = Vec::new();
    for number in 1..=1 + r.below(4) as u32 {
        let mut ancestors = Vec::new();
        if number > 1 {
            let parent = &timelines[r.below(u64::from(number) - 1) as usize];
            let switch = Lsn((2 + r.below(60)) * MIB + r.below(MIB));
            let older = parent.ancestors.clone().unwrap().into_iter();
            ancestors.extend(older.filter(|a| a.switch <= switch));
            ancestors.push(Ancestor {
                timeline: parent.timeline,
                switch,
            });
        }
        let stored: BTreeSet<u64> = (1..70).filter(|_| !r.chance(4)).collect();
        let stored = match r.below(8) {
            0 => BTreeSet::new(),
            1 => stored.into_iter().filter(|n| *n > 30).collect(),
            _ => stored,
        };
        timelines.push(TimelineFacts {
            timeline: TimelineId(number),
            ancestors: Some(ancestors),
            runs: runs(&stored),
            begun_at: r.maybe(80, |r| now() - TimeDelta::hours(r.below(900) as i64)),
            newest_at: r.maybe(80, |r| now() - TimeDelta::hours(r.below(900) as i64)),
            covered_until: r.maybe(20, |r| now() - TimeDelta::hours(r.below(900) as i64)),
        });
    }
    ClusterFacts {
        system_id: SystemId(id),
        segment_size: size(),
        current,
        timelines,
    }
}

fn runs(stored: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for no in stored {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *no => *last = *no,
            _ => runs.push((*no, *no)),
        }
    }
    runs
}

fn history(r: &mut Random) -> History {
    // One in three clusters went through pg_upgrade.
    let mut history = History::default();
    if r.chance(33) {
        history.clusters.push(cluster(r, 1, false));
    }
    history.clusters.push(cluster(r, 2, true));
    for n in 0..r.below(14) {
        let cluster = r.below(history.clusters.len() as u64) as usize;
        let cluster = &history.clusters[cluster];
        let timeline = 1 + r.below(cluster.timelines.len() as u64) as u32;
        let start = Lsn(r.below(68) * MIB + MIB + r.below(MIB));
        // Some in the future: a clock that was wrong.
        let minutes = r.below(60 * 24 * 60) as i64 - 60;
        history.backups.push(BackupFacts {
            label: BackupLabel::new(now(), n as u32),
            system_id: cluster.system_id,
            timeline: TimelineId(timeline),
            start_lsn: start,
            stop_lsn: Lsn(start.0 + 1 + r.below(3 * MIB)),
            stopped_at: now() - TimeDelta::minutes(minutes),
            health: if r.chance(12) {
                Health::CorruptPages
            } else {
                Health::Good
            },
            state: if r.chance(15) {
                BackupState::Expired
            } else {
                BackupState::Live
            },
        });
    }
    for n in 0..r.below(3) {
        history.pins.push(Pin {
            label: BackupLabel::new(now(), n as u32 * 3),
            reason: "audit".into(),
            until: r.maybe(50, |r| now() + TimeDelta::hours(r.below(20) as i64 - 10)),
        });
    }
    if r.chance(25) {
        history.wal_pins.push(WalPin {
            system_id: SystemId(2),
            timeline: TimelineId(1),
            start_lsn: Lsn(r.below(70) * MIB),
        });
    }
    history
}

/// The rules once more.
struct Oracle<'a> {
    policy: &'a RetentionPolicy,
    history: &'a History,
    stored: BTreeSet<(SystemId, TimelineId, u64)>,
}

impl<'a> Oracle<'a> {
    fn new(policy: &'a RetentionPolicy, history: &'a History) -> Self {
        let mut stored = BTreeSet::new();
        for cluster in &history.clusters {
            for timeline in &cluster.timelines {
                for (a, b) in &timeline.runs {
                    stored.extend((*a..=*b).map(|n| (cluster.system_id, timeline.timeline, n)));
                }
            }
        }
        Self {
            policy,
            history,
            stored,
        }
    }

    fn has_rules(&self) -> bool {
        let p = self.policy;
        p.keep_last.is_some()
            || p.keep_within.is_some()
            || [p.hourly, p.daily, p.weekly, p.monthly, p.yearly]
                .iter()
                .any(Option::is_some)
            || p.window.is_some()
    }

    fn own(b: &BackupFacts) -> std::ops::RangeInclusive<u64> {
        b.start_lsn.0 / MIB..=(b.stop_lsn.0 - 1) / MIB
    }

    fn good(&self, b: &BackupFacts) -> bool {
        b.state == BackupState::Live
            && b.health == Health::Good
            && Self::own(b).all(|n| self.stored.contains(&(b.system_id, b.timeline, n)))
    }

    fn live(&self) -> impl Iterator<Item = &'a BackupFacts> {
        let backups = self.history.backups.iter();
        backups.filter(|b| b.state == BackupState::Live)
    }

    fn newer(a: &BackupFacts, b: &BackupFacts) -> bool {
        (a.stopped_at, &a.label) > (b.stopped_at, &b.label)
    }

    fn counts(&self, b: &BackupFacts) -> bool {
        self.good(b) && b.stopped_at <= now()
    }

    /// A number for the calendar period, by arithmetic.
    fn period(&self, which: usize, at: DateTime<Utc>) -> i64 {
        let text = self.policy.utc_offset.to_string();
        let sign = if text.starts_with('-') { -1 } else { 1 };
        let (h, m) = text[1..].split_once(':').unwrap();
        let offset = sign * (h.parse::<i64>().unwrap() * 3600 + m.parse::<i64>().unwrap() * 60);
        let local = at.timestamp() + offset;
        let day = local.div_euclid(86_400);
        let date = DateTime::from_timestamp(local, 0).unwrap();
        match which {
            0 => local.div_euclid(3600),
            1 => day,
            // 1970-01-01 was a Thursday.
            2 => (day + 3).div_euclid(7),
            3 => i64::from(date.year()) * 12 + i64::from(date.month()),
            _ => i64::from(date.year()),
        }
    }

    /// The timeline whose file recovery along `of` reads for segment `no`.
    fn file(of: &TimelineFacts, no: u64) -> TimelineId {
        let mut begins = 0;
        let mut steps = Vec::new();
        for a in of.ancestors.iter().flatten() {
            steps.push((begins, a.timeline));
            begins = a.switch.0 / MIB;
        }
        steps.push((begins, of.timeline));
        steps.iter().rev().find(|(b, _)| *b <= no).unwrap().1
    }

    fn leads(b: &BackupFacts, to: &TimelineFacts) -> bool {
        b.timeline == to.timeline
            || to
                .ancestors
                .iter()
                .flatten()
                .any(|a| a.timeline == b.timeline && b.stop_lsn <= a.switch)
    }

    /// Whether a restore can follow the timeline.
    fn has_begun(&self, of: &ClusterFacts, t: &TimelineFacts) -> bool {
        let key = |no| (of.system_id, t.timeline, no);
        let first = match t.ancestors.as_ref().unwrap().last() {
            Some(parent) => self.stored.contains(&key(parent.switch.0 / MIB)),
            None => self.stored.range(key(0)..=key(u64::MAX)).next().is_some(),
        };
        let own = |b: &BackupFacts| b.system_id == of.system_id && b.timeline == t.timeline;
        first || self.live().any(|b| own(b) && self.good(b))
    }

    /// Whether somebody may have worked on the timeline since `begin`.
    fn alive(&self, of: &ClusterFacts, t: &TimelineFacts, begin: DateTime<Utc>) -> bool {
        let written = [t.newest_at, t.covered_until];
        if t.newest_at.is_none() || written.iter().flatten().any(|at| *at >= begin) {
            return true;
        }
        let mut heirs: Vec<&TimelineFacts> = of.timelines.iter().collect();
        heirs.retain(|x| x.timeline > t.timeline && self.has_begun(of, x));
        let mut signs: Vec<DateTime<Utc>> = heirs.iter().filter_map(|x| x.begun_at).collect();
        if heirs.is_empty() {
            if of.current {
                return true;
            }
            for other in self.history.clusters.iter().filter(|c| c.current) {
                let begun = other.timelines.iter().filter(|x| self.has_begun(other, x));
                signs.extend(begun.filter_map(|x| x.begun_at));
                let backups = self.history.backups.iter();
                let backups = backups.filter(|b| b.system_id == other.system_id);
                signs.extend(backups.map(|b| b.stopped_at));
            }
        }
        // Left with the first sign of an heir, and never without one.
        !signs.iter().any(|sign| *sign < begin)
    }

    /// Labels that the window needs.
    fn window(&self) -> BTreeSet<BackupLabel> {
        let mut needed = BTreeSet::new();
        let Some(window) = self.policy.window else {
            return needed;
        };
        let begin = now() - TimeDelta::seconds(window.as_seconds() as i64);
        for cluster in &self.history.clusters {
            for timeline in &cluster.timelines {
                if !self.alive(cluster, timeline, begin) {
                    continue;
                }
                let mut leading: Vec<&BackupFacts> = self
                    .live()
                    .filter(|b| {
                        b.system_id == cluster.system_id && self.good(b) && Self::leads(b, timeline)
                    })
                    .collect();
                leading.sort_by_key(|b| (b.stopped_at, b.label.clone()));
                let old = leading.iter().filter(|b| b.stopped_at <= begin).count();
                let mut base: Option<&BackupFacts> = None;
                for b in leading.into_iter().skip(old.saturating_sub(1)) {
                    let reached = base.is_some_and(|base| {
                        (*Self::own(base).start()..=*Self::own(b).end()).all(|no| {
                            let file = Self::file(timeline, no);
                            self.stored.contains(&(cluster.system_id, file, no))
                        })
                    });
                    if !reached {
                        needed.insert(b.label.clone());
                        base = Some(b);
                    }
                }
            }
        }
        needed
    }

    fn keeps(&self, b: &BackupFacts) -> bool {
        if b.state == BackupState::Expired {
            return false;
        }
        if !self.has_rules() || b.stopped_at > now() {
            return true;
        }
        let newest = |of: &dyn Fn(&BackupFacts) -> bool| {
            of(b) && !self.live().any(|other| of(other) && Self::newer(other, b))
        };
        if newest(&|_| true) || newest(&|b| self.good(b)) {
            return true;
        }
        for cluster in self.history.clusters.iter().filter(|c| c.current) {
            let last = |of: &dyn Fn(&TimelineFacts) -> bool| {
                let all = cluster.timelines.iter().filter(|t| of(t));
                all.max_by_key(|t| t.timeline)
            };
            // What "latest" is, and what it will be once the first segment has come.
            let has_wal = |t: &TimelineFacts| {
                let key = |no| (cluster.system_id, t.timeline, no);
                self.stored.range(key(0)..=key(u64::MAX)).next().is_some()
            };
            let begun = last(&|t| has_wal(t) && self.has_begun(cluster, t));
            for last in [begun, last(&has_wal)].into_iter().flatten() {
                if newest(&|b| {
                    self.good(b) && b.system_id == cluster.system_id && Self::leads(b, last)
                }) {
                    return true;
                }
            }
        }
        let before = |n: u32| {
            let newer = self.live().filter(|o| self.counts(o) && Self::newer(o, b));
            newer.count() < n as usize
        };
        if self.policy.keep_last.is_some_and(before) {
            return true;
        }
        let age = (now() - b.stopped_at).num_seconds();
        if self
            .policy
            .keep_within
            .is_some_and(|d| age <= d.as_seconds() as i64)
        {
            return true;
        }
        let p = self.policy;
        let periods = [p.hourly, p.daily, p.weekly, p.monthly, p.yearly];
        for (which, n) in periods.into_iter().enumerate() {
            let Some(n) = n else { continue };
            let of = |b: &BackupFacts| self.period(which, b.stopped_at);
            let others = || self.live().filter(|o| self.counts(o) && Self::newer(o, b));
            let first = self.counts(b) && !others().any(|o| of(o) == of(b));
            let periods: BTreeSet<i64> = others().map(of).collect();
            if first && periods.len() < n as usize {
                return true;
            }
        }
        let pinned = self
            .history
            .pins
            .iter()
            .any(|pin| pin.label == b.label && pin.until.is_none_or(|until| until > now()));
        pinned || self.window().contains(&b.label)
    }

    fn needs(&self, kept: &BTreeSet<BackupLabel>, id: SystemId, t: TimelineId, no: u64) -> bool {
        if !self.has_rules() {
            return true;
        }
        let clusters = &self.history.clusters;
        let cluster = clusters.iter().find(|c| c.system_id == id).unwrap();
        let timeline = cluster.timelines.iter().find(|x| x.timeline == t).unwrap();
        let any = |id| self.history.backups.iter().any(|b| b.system_id == id);
        let upgraded = !cluster.current && clusters.iter().any(|c| c.current && any(c.system_id));
        if !any(id) && !upgraded {
            return true;
        }
        let begin = self
            .policy
            .window
            .map(|w| now() - TimeDelta::seconds(w.as_seconds() as i64));
        let window = self.window();
        let backups = self.history.backups.iter();
        let stays: Vec<&BackupFacts> = backups
            .filter(|b| b.system_id == id)
            .filter(|b| kept.contains(&b.label) || b.state == BackupState::Expired)
            .collect();
        let goes_on = |b: &&&BackupFacts| {
            begin.is_none_or(|begin| b.stopped_at >= begin)
                || (kept.contains(&b.label) && window.contains(&b.label))
        };
        let child = |of: TimelineId, from: Lsn| {
            let mut ancestors = timeline.ancestors.iter().flatten();
            t != of && ancestors.any(|a| a.timeline == of && from <= a.switch)
        };
        let mut led = false;
        for b in stays.iter().filter(goes_on) {
            led |= Self::leads(b, timeline);
            if (b.timeline == t && no >= b.start_lsn.0 / MIB) || child(b.timeline, b.stop_lsn) {
                return true;
            }
        }
        for pin in self.history.wal_pins.iter().filter(|p| p.system_id == id) {
            if (pin.timeline == t && no >= pin.start_lsn.0 / MIB)
                || child(pin.timeline, pin.start_lsn)
            {
                return true;
            }
        }
        if stays
            .iter()
            .any(|b| b.timeline == t && Self::own(b).contains(&no))
        {
            return true;
        }
        let recent = match begin {
            Some(begin) => self.alive(cluster, timeline, begin),
            None => timeline.newest_at.is_none(),
        };
        !led && recent
    }
}

fn judge(seed: u64) -> (usize, usize) {
    let mut r = Random(seed);
    let (policy, history) = (policy(&mut r), history(&mut r));
    let decisions = match decide(&policy, &history, now()) {
        Ok(decisions) => decisions,
        Err(Refusal::KeepsNothing) => {
            assert!(!policy.keeps_something(), "seed {seed}: {policy}");
            return (0, 0);
        }
        Err(refusal) => panic!("seed {seed}: {refusal}"),
    };
    let oracle = Oracle::new(&policy, &history);
    let mut kept = BTreeSet::new();
    assert_eq!(decisions.backups.len(), history.backups.len());
    for decision in &decisions.backups {
        let b = history.backups.iter().find(|b| b.label == decision.label);
        assert!(!decision.reasons.is_empty(), "seed {seed}: no reason");
        assert_eq!(
            decision.keep,
            oracle.keeps(b.unwrap()),
            "seed {seed}: {policy}: {decision:?}"
        );
        if decision.keep {
            kept.insert(decision.label.clone());
        }
    }
    let mut decided: BTreeMap<(SystemId, TimelineId, u64), bool> = BTreeMap::new();
    for line in &decisions.wal {
        let first = line.first.number(size()).unwrap();
        for no in first..=line.last.number(size()).unwrap() {
            let key = (line.system_id, line.timeline, no);
            assert!(
                decided.insert(key, line.keep).is_none(),
                "seed {seed}: twice"
            );
        }
    }
    let stored: Vec<_> = decided.keys().copied().collect();
    assert_eq!(stored, oracle.stored.iter().copied().collect::<Vec<_>>());
    for ((id, t, no), keep) in &decided {
        let needed = oracle.needs(&kept, *id, *t, *no);
        assert_eq!(
            *keep, needed,
            "seed {seed}: {policy}: segment {no} of timeline {t} of cluster {id}"
        );
    }
    let removed = decisions.backups.iter().filter(|d| !d.keep).count();
    (removed, decided.values().filter(|keep| !**keep).count())
}

/// The test must meet cases in which something goes.
#[test]
fn the_oracle_sees_things_go() {
    let (mut backups, mut segments) = (0, 0);
    for seed in 0..600 {
        let (b, s) = judge(seed);
        backups += usize::from(b > 0);
        segments += usize::from(s > 0);
    }
    assert!(backups > 150, "backups went in {backups} of 600 cases");
    assert!(segments > 150, "WAL went in {segments} of 600 cases");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn decisions_are_those_of_the_plain_rules(seed in any::<u64>()) {
        judge(seed);
    }
}
