//! Where timelines fork: which WAL of a parent a server without a plan may still have.
//!
//! Postgres that follows a timeline asks for its segment first and, when it does not get it, for the
//! parent's segment of the same number: it looks at where a timeline begins and never at where its
//! parent ends (`XLogFileReadAnyTLI`, `xlogrecovery.c`). What an old primary archives after a
//! promotion would be replayed. `docs/decisions/0014-wal-past-a-fork.md` has the rule.

use crate::postgres::control_file::ControlFile;
use crate::postgres::history_file::TimelineHistory;
use crate::repository::{Repository, layout};
use crate::wal::answer::Scope;
use crate::wal::get;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, Lsn, SegmentName, SystemId, TargetTimeline, TimelineId};
use std::collections::BTreeSet;
use std::path::Path;

/// The files that Postgres reads settings from, the one that counts first.
const SETTINGS_FILES: [&str; 2] = ["postgresql.auto.conf", "postgresql.conf"];

/// A server that recovers or follows without a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// How far its data directory has come, at least.
    pub position: (TimelineId, Lsn),
    /// Its `recovery_target_timeline`.
    pub target: TargetTimeline,
    /// Whether it asks again by itself (`standby.signal`).
    pub standby: bool,
}

impl Follower {
    /// What `data_directory` says.
    #[must_use]
    pub fn read(data_directory: &Path, control: &ControlFile) -> Self {
        let position = match control.min_recovery_timeline {
            0 => (control.timeline, control.redo),
            timeline => (TimelineId(timeline), control.min_recovery_point),
        };
        Self {
            position,
            target: target_timeline(data_directory),
            standby: is_standby(data_directory),
        }
    }

    /// The stored timeline it follows, or would move to: for `latest` the newest one that descends
    /// from where it is. `None` when no history tells.
    fn followed(&self, archive: &Histories<'_>) -> Result<Option<TimelineHistory>> {
        let (timeline, lsn) = self.position;
        match self.target {
            TargetTimeline::Current => return archive.read(timeline),
            TargetTimeline::Id(timeline) => return archive.read(timeline),
            TargetTimeline::Latest => {}
        }
        for candidate in archive.timelines.iter().rev() {
            let Some(history) = archive.read(*candidate)? else {
                continue;
            };
            let descends = history.switch_point(timeline).is_some_and(|s| lsn <= s);
            if *candidate == timeline || descends {
                return Ok(Some(history));
            }
        }
        Ok(None)
    }
}

/// Whether the data directory is a standby's.
#[must_use]
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join("standby.signal").exists()
}

/// A child timeline that supersedes a segment of its ancestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The child.
    pub child: TimelineId,
    /// Where the ancestor ends.
    pub switch: Lsn,
    /// Number of the first segment that is the child's.
    pub first: u64,
}

/// The fork that keeps `segment` from the server of `scope`; `None` when it may have it.
///
/// # Errors
/// A damaged history; or no repository answers.
pub fn superseding(
    repos: &Repositories,
    scope: &Scope,
    segment: SegmentName,
) -> Result<Option<Fork>> {
    let Some(follower) = &scope.follower else {
        return Ok(None);
    };
    let archive = Histories::list(repos, scope.system_id)?;
    // The usual case: nothing ever forked from it.
    if archive
        .timelines
        .last()
        .is_none_or(|t| *t <= segment.timeline)
    {
        return Ok(None);
    }
    let Some(history) = follower.followed(&archive)? else {
        return Ok(None);
    };
    let Some(switch) = history.switch_point(segment.timeline) else {
        return Ok(None);
    };
    let first = scope.segment_size.segment_no(switch);
    let superseded = segment.number(scope.segment_size)? >= first;
    Ok(superseded.then_some(Fork {
        child: history.timeline,
        switch,
        first,
    }))
}

/// The history files of a cluster, in whatever repository answers.
struct Histories<'a> {
    repos: &'a [(Repository, bool)],
    system_id: SystemId,
    timelines: BTreeSet<TimelineId>,
}

impl<'a> Histories<'a> {
    fn list(repos: &'a Repositories, system_id: SystemId) -> Result<Self> {
        let mut timelines = BTreeSet::new();
        let mut failure = repos.failed.first().map(|failed| failed.to_error());
        let mut answered = false;
        for (repo, _) in &repos.open {
            match repo.storage().list(&layout::history_prefix(system_id)) {
                Ok(objects) => {
                    answered = true;
                    let names = objects.iter().map(|object| object.key.file_name());
                    timelines.extend(names.filter_map(timeline_of));
                }
                Err(error) => failure = Some(error),
            }
        }
        match (answered, failure) {
            (false, Some(error)) => Err(error),
            _ => Ok(Self {
                repos: &repos.open,
                system_id,
                timelines,
            }),
        }
    }

    fn read(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let mut failure: Option<Error> = None;
        for (repo, _) in self.repos {
            match get::fetch(repo, self.system_id, ArchiveFile::History(timeline)) {
                Ok(Some(bytes)) => return TimelineHistory::parse(timeline, &bytes).map(Some),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

/// The timeline of `<8 hex>.history` or of a variant of it.
pub(super) fn timeline_of(name: &str) -> Option<TimelineId> {
    let (stem, rest) = name.split_once('.')?;
    let is_history = rest == "history" || rest.starts_with("history.r");
    TimelineId::from_hex(stem).ok().filter(|_| is_history)
}

/// `recovery_target_timeline` as the data directory's own files set it. A configuration elsewhere
/// or on the command line is not seen: `latest`, Postgres's default, is the careful guess.
fn target_timeline(data_directory: &Path) -> TargetTimeline {
    let mut texts = SETTINGS_FILES
        .iter()
        .filter_map(|name| std::fs::read_to_string(data_directory.join(name)).ok());
    texts
        .find_map(|text| setting(&text, "recovery_target_timeline"))
        .and_then(|value| value.parse().ok())
        .unwrap_or_default()
}

/// The last value that a configuration file gives to `name`.
fn setting(text: &str, name: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let line = line.trim_start();
        let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))?;
        let (found, rest) = line.split_at_checked(end)?;
        if !found.eq_ignore_ascii_case(name) {
            return None;
        }
        let rest = rest.trim_start().strip_prefix('=').unwrap_or(rest);
        let rest = rest.trim_start();
        let value = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split('\'').next()?,
            None => rest.split([' ', '\t', '#']).next()?,
        };
        Some(value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_files() {
        let text = "# recovery_target_timeline = '9'\nRecovery_Target_Timeline='3' # x\n\
                    recovery_target_timeline_x = 7\nrecovery_target_timeline 5\nport = 1\n";
        let value = |text| setting(text, "recovery_target_timeline");
        assert_eq!(value(text).as_deref(), Some("5"));
        assert_eq!(
            value("recovery_target_timeline = 'current'").unwrap(),
            "current"
        );
        assert_eq!(value("port = 1\n"), None);
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(target_timeline(directory.path()), TargetTimeline::Latest);
        let write = |name: &str, text| std::fs::write(directory.path().join(name), text).unwrap();
        write("postgresql.conf", "recovery_target_timeline = '2'\n");
        let two = TargetTimeline::Id(TimelineId(2));
        assert_eq!(target_timeline(directory.path()), two);
        write(
            "postgresql.auto.conf",
            "recovery_target_timeline = 'current'\n",
        );
        assert_eq!(target_timeline(directory.path()), TargetTimeline::Current);
    }

    #[test]
    fn history_names() {
        assert_eq!(timeline_of("0000000A.history"), Some(TimelineId(10)));
        assert_eq!(timeline_of("00000002.history.r1-00ff"), Some(TimelineId(2)));
        assert_eq!(timeline_of("00000002.historic"), None);
    }
}
