//! Whether a server goes on with what was promoted, or was left by it. Numbers do not tell: two standbys
//! may have been promoted to the same one, and a higher one may be of a server that nobody wanted.

use super::{Epoch, Epochs, Fence, Outcome};
use crate::postgres::control_file::ControlFile;
use crate::postgres::history_file::TimelineHistory;
use crate::wal::recovery_file::RecoveryFile;
use pgark_types::{Lsn, TimelineId};
use std::path::Path;

/// Where the youngest timeline of `history` begins.
#[must_use]
pub fn begins(history: &TimelineHistory) -> Lsn {
    history
        .entries
        .last()
        .map_or(Lsn::INVALID, |last| last.switch)
}

/// Whether the server of `epoch` already was on the timeline that it goes on with: it was left by an epoch
/// before, and somebody decided otherwise.
fn came_back(fence: &Fence, outcome: &Outcome) -> bool {
    fence.timeline == outcome.timeline
}

/// Whether the timeline of `outcome` is that of `history`, or one of its ancestors. Of a server that came
/// back: one that was left later than it took its epoch.
#[must_use]
pub fn follows(history: &TimelineHistory, fence: &Fence, outcome: &Outcome) -> bool {
    if history.timeline == outcome.timeline {
        return begins(history) == outcome.lsn;
    }
    // Each timeline begins where the one before ends.
    let mut begin = Lsn::INVALID;
    for entry in &history.entries {
        if entry.timeline == outcome.timeline {
            let is_before = came_back(fence, outcome) && entry.switch < fence.lsn;
            return begin == outcome.lsn && !is_before;
        }
        begin = entry.switch;
    }
    false
}

/// Whether somebody recovered this server to the past after the promotion of `outcome`: it left that on
/// purpose. `recovered_along`: what `pgark restore` says of it.
fn left_on_purpose(
    history: &TimelineHistory,
    outcome: &Outcome,
    recovered_along: Option<TimelineId>,
) -> bool {
    let children = history.entries.iter().skip(1).map(|entry| entry.timeline);
    let children = children.chain(std::iter::once(history.timeline));
    history.entries.iter().zip(children).any(|(entry, child)| {
        let is_recovery = !entry.is_promotion() || recovered_along == Some(entry.timeline);
        child > outcome.timeline && is_recovery
    })
}

/// Whether `history` is of a server that was left by the promotion of `outcome`, and not on purpose.
#[must_use]
pub fn is_beside(
    history: &TimelineHistory,
    (fence, outcome): (&Fence, &Outcome),
    recovered_along: Option<TimelineId>,
) -> bool {
    // Of a server that came back the number does not tell what was there before: rather said twice.
    let on_purpose =
        !came_back(fence, outcome) && left_on_purpose(history, outcome, recovered_along);
    !follows(history, fence, outcome) && !on_purpose
}

/// The promotion that has left the primary of `directory`, which writes `timeline`. `None`: none has, or it
/// was recovered to the past on purpose since, or nothing tells.
#[must_use]
pub fn left<'a>(
    epochs: &'a Epochs,
    directory: &Path,
    timeline: TimelineId,
) -> Option<(&'a Epoch, &'a Outcome)> {
    let (epoch, outcome) = epochs.promoted()?;
    let history = match own_history(directory, timeline) {
        Some(history) => history,
        // The numbers of ancestors are lower.
        None if timeline < outcome.timeline => TimelineHistory::root(timeline),
        None => return None,
    };
    let plan = RecoveryFile::read(directory).ok().flatten();
    let along = plan.and_then(|plan| plan.recovered_along());
    is_beside(&history, (&epoch.fence, outcome), along).then_some((epoch, outcome))
}

/// The history of `timeline` as the server itself has it; `None` when it is missing or damaged.
#[must_use]
pub fn own_history(directory: &Path, timeline: TimelineId) -> Option<TimelineHistory> {
    if timeline == TimelineId(1) {
        return Some(TimelineHistory::root(timeline));
    }
    let path = directory.join("pg_wal").join(timeline.history_file_name());
    let bytes = std::fs::read(path).ok()?;
    TimelineHistory::parse(timeline, &bytes).ok()
}

/// The timeline that a primary writes. Until the checkpoint after a promotion the second field has it.
#[must_use]
pub fn of_primary(control: &ControlFile) -> TimelineId {
    TimelineId(control.timeline.0.max(control.min_recovery_timeline))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fence::tests::{ID, claimed};
    use ulid::Ulid;

    const END: &str = "no recovery target specified";

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(TimelineId(timeline), text.as_bytes()).unwrap()
    }

    fn promoted(timeline: u32, lsn: u64) -> Outcome {
        Outcome {
            id: Ulid::nil(),
            system_identifier: ID,
            epoch: 1,
            timeline: TimelineId(timeline),
            lsn: Lsn(lsn),
            at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_timeline_is_more_than_its_number() {
        let clock = crate::backup::testdata::SeededClock::shared(1);
        let fence = claimed(1, &clock);
        let follows = |history: &TimelineHistory, outcome| follows(history, &fence, outcome);
        let two = promoted(2, 0x300_0100);
        let at = |lsn: &str| history(2, &format!("1\t{lsn}\t{END}\n"));
        assert!(follows(&at("0/3000100"), &two));
        // Promoted to the same number, elsewhere.
        assert!(!follows(&at("0/3000200"), &two));
        assert!(!follows(&TimelineHistory::root(TimelineId(1)), &two));
        let below = |lsn: &str| history(3, &format!("1\t{lsn}\t{END}\n2\t0/4000000\t{END}\n"));
        assert!(follows(&below("0/3000100"), &two) && !follows(&below("0/3000200"), &two));
        // A higher number beside it.
        assert!(!follows(
            &history(3, &format!("1\t0/3000100\t{END}\n")),
            &two
        ));
        let one = promoted(1, 0);
        assert!(follows(&TimelineHistory::root(TimelineId(1)), &one));
        // The old primary came back, at 0/3000000: whoever had left it by then is left.
        let left_at = |lsn: &str| history(2, &format!("1\t{lsn}\t{END}\n"));
        assert!(follows(&left_at("0/3000000"), &one) && !follows(&left_at("0/2FFFFF8"), &one));
        let recovered = history(2, "1\t0/2FFFFF8\tbefore 2026-11-30 00:00:00+00\n");
        assert!(is_beside(&recovered, (&fence, &one), None));
    }

    /// What the server of a data directory is told, after another one was promoted to timeline 2.
    #[test]
    fn who_is_left_is_told_and_who_left_is_not() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("pg_wal")).unwrap();
        let mut epochs = Epochs::default();
        let is_left = |epochs: &Epochs, timeline| {
            left(epochs, directory.path(), TimelineId(timeline)).is_some()
        };
        assert!(!is_left(&epochs, 1));
        let fence = claimed(1, &crate::backup::testdata::SeededClock::shared(1));
        let outcome = Some(promoted(2, 0x300_0100));
        epochs.known.insert(1, Epoch { fence, outcome });
        let write = |timeline: u32, text: &str| {
            let name = TimelineId(timeline).history_file_name();
            std::fs::write(directory.path().join("pg_wal").join(name), text).unwrap();
        };
        assert!(is_left(&epochs, 1));
        // No history: of a higher number nothing is said.
        assert!(!is_left(&epochs, 2) && !is_left(&epochs, 3));
        write(2, &format!("1\t0/3000100\t{END}\n"));
        assert!(!is_left(&epochs, 2));
        write(2, &format!("1\t0/3000200\t{END}\n"));
        assert!(is_left(&epochs, 2));
        write(3, &format!("1\t0/3000100\t{END}\n"));
        assert!(is_left(&epochs, 3));
        write(3, "1\t0/3000100\tbefore 2026-11-30 00:00:00+00\n");
        assert!(!is_left(&epochs, 3));
        // A restore to the end of the archive gives the reason of a promotion.
        write(3, &format!("1\t0/3000100\t{END}\n"));
        let mut plan = RecoveryFile {
            format: 1,
            cluster: "main".into(),
            system_identifier: ID,
            segment_size: pgark_types::SegmentSize::DEFAULT,
            backup: "20260101T000000Z-AAAA".parse().unwrap(),
            spans: vec![crate::wal::recovery_file::Span {
                timeline: TimelineId(1),
                first: "000000010000000000000001".parse().unwrap(),
                last: None,
            }],
            tails: false,
            standby: false,
        };
        let put = |plan: &RecoveryFile| {
            let path = directory.path().join(crate::wal::recovery_file::FILE_NAME);
            std::fs::write(path, crate::repository::sealed::seal(plan).unwrap()).unwrap();
        };
        put(&plan);
        assert!(!is_left(&epochs, 3));
        // It was restored before the promotion: that is no excuse.
        assert!(is_left(&epochs, 2));
        plan.standby = true;
        put(&plan);
        assert!(is_left(&epochs, 3));
    }
}
