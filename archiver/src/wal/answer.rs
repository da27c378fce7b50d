//! The three answers of archive-get (invariant 4): the verified bytes, "proven absent", or doubt.
//!
//! Postgres ends recovery and promotes on "absent", so that answer needs proof: every required
//! repository answered, and the file lies outside the plan or above everything stored.

use crate::postgres::control_file::ControlFile;
use crate::repository::{Repository, layout};
use crate::wal::cluster;
use crate::wal::fork::{self, Follower, Fork};
use crate::wal::get;
use crate::wal::recovery_file::RecoveryFile;
use crate::wal::repositories::Repositories;
use crate::{Error, Result};
use pgark_types::{ArchiveFile, SegmentName, SegmentSize, SystemId, TimelineId};
use std::collections::BTreeSet;
use std::path::Path;

/// The code of the doubt that a segment may be on its way: newer ones are stored.
pub const IN_FLIGHT: &str = "wal_in_flight";

/// An answer that is certain. Doubt is the error beside it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<T = Vec<u8>> {
    /// The content, verified, or what was made of it.
    Present(T),
    /// Proven absent, and why.
    Absent(String),
}

/// For which recovery the question is asked.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The cluster.
    pub system_id: SystemId,
    /// Its WAL segment size.
    pub segment_size: SegmentSize,
    /// The plan that `pgark restore` left, while it is under way.
    pub plan: Option<RecoveryFile>,
    /// The server that asks, when it has no plan.
    pub follower: Option<Follower>,
}

impl Scope {
    /// Reads the scope from the data directory; `None` when neither a plan nor a control file is
    /// there.
    ///
    /// A plan ends with the recovery it was made for: once the cluster is on a timeline outside
    /// the plan's lineage it says nothing about what that cluster may read. A standby has none:
    /// it follows its primary onto timelines that nobody knew of when it was restored.
    ///
    /// # Errors
    /// A damaged plan or control file, or a plan that belongs to another cluster.
    pub fn read(data_directory: &Path) -> Result<Option<Self>> {
        let plan = RecoveryFile::read(data_directory)?;
        if !data_directory.join("global/pg_control").exists() {
            return Ok(plan.map(|plan| Self {
                system_id: plan.system_identifier,
                segment_size: plan.segment_size,
                plan: Some(plan),
                follower: None,
            }));
        }
        let (control, _) = ControlFile::read(data_directory)?;
        if let Some(plan) = &plan
            && plan.system_identifier != control.system_identifier
        {
            return Err(Error::invalid(
                "recovery_file_mismatch",
                "pgark_recovery.json belongs to another cluster than the data directory",
            )
            .with_hint(
                "Restore again, or remove the file if this cluster was not restored by pgark.",
            ));
        }
        let under_way = |plan: &RecoveryFile| {
            let mut timelines = plan.spans.iter().map(|span| span.timeline);
            timelines.any(|timeline| timeline == control.timeline)
                && !fork::is_standby(data_directory)
        };
        let plan = plan.filter(under_way);
        let follower = plan
            .is_none()
            .then(|| Follower::read(data_directory, &control));
        Ok(Some(Self {
            system_id: control.system_identifier,
            segment_size: control.wal_segment_size,
            plan,
            follower,
        }))
    }

    /// The scope of the cluster registered under `name`, for a directory that says nothing.
    ///
    /// # Errors
    /// Kind Invalid, `cluster_unknown`; why a required repository did not open; or the storage's
    /// error.
    pub fn registered(repos: &Repositories, name: &str) -> Result<Self> {
        for (repo, _) in &repos.open {
            if let Some(known) = cluster::current(repo, name)? {
                return Ok(Self {
                    system_id: known.system_identifier,
                    segment_size: known.segment_size,
                    plan: None,
                    follower: None,
                });
            }
        }
        // One that did not open may know it: why it did not is what helps.
        if let Some(failed) = repos.failed.iter().find(|failed| failed.required) {
            return Err(failed.to_error());
        }
        Err(Error::invalid(
            "cluster_unknown",
            format!("no repository knows a cluster \"{name}\""),
        )
        .with_hint(
            "Run archive-get from a data directory, as Postgres does, or set [cluster] name.",
        ))
    }

    /// Where `segment` stands in the plan.
    ///
    /// # Errors
    /// A name that is impossible with this segment size.
    pub fn place(&self, segment: SegmentName) -> Result<Place> {
        let no = segment.number(self.segment_size)?;
        let Some(plan) = &self.plan else {
            return Ok(Place::Open { run_from: None });
        };
        let outside = |why: String| Ok(Place::Outside(why));
        let span = plan
            .spans
            .iter()
            .position(|s| s.timeline == segment.timeline);
        let Some((at, span)) = span.and_then(|at| Some((at, plan.spans.get(at)?))) else {
            return outside(format!(
                "timeline {} is not in the lineage of this recovery",
                segment.timeline
            ));
        };
        for child in plan.spans.iter().skip(at + 1) {
            if child.first.number(self.segment_size)? <= no {
                return outside(format!(
                    "timeline {} supersedes it from segment {} on",
                    child.timeline, child.first
                ));
            }
        }
        let first = span.first.number(self.segment_size)?;
        if no < first && at > 0 {
            return outside(format!("timeline {} begins later", segment.timeline));
        }
        if let Some(last) = span.last {
            if no > last.number(self.segment_size)? {
                return outside(format!("this recovery ends with segment {last}"));
            }
            return Ok(Place::Planned);
        }
        // The backup cannot be recovered without its first segment, so that one was archived.
        if at == 0 && no <= first {
            return Ok(Place::Planned);
        }
        Ok(Place::Open {
            run_from: Some(first),
        })
    }

    /// The last segment of `timeline` that this recovery may read; `None` = no limit known.
    #[must_use]
    pub fn last_segment(&self, timeline: TimelineId) -> Option<SegmentName> {
        let plan = self.plan.as_ref()?;
        plan.spans.iter().find(|s| s.timeline == timeline)?.last
    }
}

/// Where a segment stands in a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Not part of it, and why: absent, whatever is stored.
    Outside(String),
    /// The plan counts on it: its absence is doubt.
    Planned,
    /// It may or may not exist: the frontier decides.
    Open {
        /// Number of a segment of the run that the frontier ends; absent: the newest run.
        run_from: Option<u64>,
    },
}

/// Asks every repository for `file`.
///
/// # Errors
/// Doubt: the storage's error, a damaged file, or kind Data with code `wal_missing` or
/// [`IN_FLIGHT`].
pub fn answer(repos: &Repositories, scope: &Scope, file: ArchiveFile) -> Result<Answer> {
    answer_by(repos, scope, file, &mut |repo| {
        get::fetch(repo, scope.system_id, file)
    })
}

/// As [`answer`], with `fetch` to get `file` from one repository. It may be asked more than once.
///
/// # Errors
/// As [`answer`], and what `fetch` returns.
pub fn answer_by<T>(
    repos: &Repositories,
    scope: &Scope,
    file: ArchiveFile,
    fetch: &mut dyn FnMut(&Repository) -> Result<Option<T>>,
) -> Result<Answer<T>> {
    let place = match file {
        ArchiveFile::Segment(segment) => match scope.place(segment)? {
            Place::Outside(why) => return Ok(Answer::Absent(why)),
            place => {
                if let Some(fork) = fork::superseding(repos, scope, segment)? {
                    return past_the_fork(repos, scope, segment, fork);
                }
                Some((segment, place))
            }
        },
        ArchiveFile::Partial(_) | ArchiveFile::Backup(..) | ArchiveFile::History(_) => None,
    };
    let mut doubt: Option<Error> = None;
    let mut proof: Option<String> = None;
    for (repo, required) in &repos.open {
        match ask(repo, scope, place.as_ref(), fetch) {
            Ok(Answer::Present(plain)) => {
                if let Some(error) = doubt {
                    tracing::warn!(
                        code = error.code(),
                        "served {file} from repository \"{}\": {error}",
                        repo.name()
                    );
                }
                return Ok(Answer::Present(plain));
            }
            Ok(Answer::Absent(why)) if *required => proof = Some(why),
            Ok(Answer::Absent(_)) => {}
            Err(error) => {
                let error = error.context(format!("repository \"{}\"", repo.name()));
                // A best-effort repository may lack anything: its troubles prove nothing.
                if *required {
                    note(&mut doubt, error);
                } else {
                    tracing::warn!(code = error.code(), "{error}");
                }
            }
        }
    }
    for failed in &repos.failed {
        if failed.required {
            note(&mut doubt, failed.to_error());
        }
    }
    match (doubt, proof) {
        (Some(error), _) => Err(error),
        (None, Some(why)) => Ok(Answer::Absent(why)),
        (None, None) => Err(Error::unavailable(
            "repository_unreachable",
            format!("no required repository could be asked for {file}"),
        )),
    }
}

/// Whether the configuration must be changed before the same question is worth asking: the key is none, or
/// not the one that reads.
#[must_use]
pub fn is_wrong_setting(error: &Error) -> bool {
    matches!(
        error.code(),
        "key_required"
            | "key_wrong"
            | "key_write_only"
            | "encryption_mismatch"
            | "identity_missing"
    )
}

/// The first doubt counts, but one that may pass comes before one that will not: as long as some required
/// repository may have an answer yet, it is worth asking again.
fn note(doubt: &mut Option<Error>, error: Error) {
    match doubt {
        Some(known) if !is_wrong_setting(known) || is_wrong_setting(&error) => {}
        _ => *doubt = Some(error),
    }
}

/// What a server gets that asks for a parent's segment past the fork: never the segment.
fn past_the_fork<T>(
    repos: &Repositories,
    scope: &Scope,
    segment: SegmentName,
    fork: Fork,
) -> Result<Answer<T>> {
    let why = format!(
        "timeline {} supersedes it from {} on",
        fork.child, fork.switch
    );
    if scope.follower.is_some_and(|follower| follower.standby) {
        return Ok(Answer::Absent(why));
    }
    for (repo, _) in &repos.open {
        let stored = StoredSegments::load(repo, scope, segment.timeline)?;
        if stored.numbers.range(fork.first..).next().is_some() {
            // Whether the recovery may end here cannot be told from outside: the child's own
            // segment has not come, and somebody goes on writing the parent.
            return Err(Error::data(
                "wal_superseded",
                format!("WAL segment {segment} is not served: {why}"),
            )
            .with_detail(format!(
                "WAL of timeline {} past the fork is stored; timeline {}'s own is not there yet.",
                segment.timeline, fork.child
            ))
            .with_hint("Recover with \"pgark restore\", which plans the lineage; for the old timeline, with --target-timeline."));
        }
    }
    match repos.failed.iter().find(|failed| failed.required) {
        Some(failed) => Err(failed.to_error()),
        None => Ok(Answer::Absent(why)),
    }
}

fn ask<T>(
    repo: &Repository,
    scope: &Scope,
    place: Option<&(SegmentName, Place)>,
    fetch: &mut dyn FnMut(&Repository) -> Result<Option<T>>,
) -> Result<Answer<T>> {
    if let Some(plain) = fetch(repo)? {
        return Ok(Answer::Present(plain));
    }
    let Some((segment, place)) = place else {
        return Ok(Answer::Absent("it is not stored".to_owned()));
    };
    let stored = StoredSegments::load(repo, scope, segment.timeline)?;
    let no = segment.number(scope.segment_size)?;
    if stored.numbers.contains(&no) {
        // It arrived between the two looks, or it is listed and cannot be had.
        return match fetch(repo)? {
            Some(plain) => Ok(Answer::Present(plain)),
            None => Err(missing(*segment, "it is listed and cannot be read")),
        };
    }
    stored.judge(scope, *segment, no, place)
}

/// The numbers of the segments stored of one timeline.
struct StoredSegments {
    numbers: BTreeSet<u64>,
    /// The largest number that has a commit index: that segment was stored once.
    newest_indexed: Option<u64>,
    /// Below it gc may have removed segments.
    floor: u64,
}

impl StoredSegments {
    fn load(repo: &Repository, scope: &Scope, timeline: TimelineId) -> Result<Self> {
        let prefix = layout::wal_timeline_prefix(scope.system_id, timeline);
        let objects = repo.storage().list(&prefix)?;
        let numbered = |name: &str, kind: &str| -> Option<u64> {
            // `<segment>`, a variant `<segment>.r<n>-<b3>`, or an index `<segment>.idx<n>`; not
            // `.partial`, `.backup`.
            let (name, rest) = name.split_once('.').unwrap_or((name, "r0"));
            let counts = rest
                .strip_prefix(kind)?
                .starts_with(|c: char| c.is_ascii_digit());
            let name: SegmentName = name.parse().ok()?;
            name.number(scope.segment_size).ok().filter(|_| counts)
        };
        let names = || objects.iter().map(|o| o.key.file_name());
        let numbers = names().filter_map(|name| numbered(name, "r"));
        let newest_indexed = names().filter_map(|name| numbered(name, "idx")).max();
        let floors = objects.iter().filter_map(|o| layout::floor_number(&o.key));
        Ok(Self {
            numbers: numbers.collect(),
            newest_indexed,
            floor: floors.max().unwrap_or(0),
        })
    }

    /// What the absence of segment `no` means.
    fn judge<T>(
        &self,
        scope: &Scope,
        segment: SegmentName,
        no: u64,
        place: &Place,
    ) -> Result<Answer<T>> {
        if no < self.floor && !matches!(place, Place::Outside(_)) {
            // It was there once: nobody may take it for the end of the WAL.
            return Err(Error::data(
                "wal_expired",
                format!("WAL segment {segment} is not stored any more: retention removed it"),
            )
            .with_hint("Restore with \"pgark restore\" from a backup that \"pgark info\" lists."));
        }
        let run_from = match place {
            Place::Outside(why) => return Ok(Answer::Absent(why.clone())),
            Place::Planned => return Err(missing(segment, "this recovery counts on it")),
            Place::Open { run_from } => *run_from,
        };
        let Some(newest) = self.numbers.last().copied().filter(|newest| *newest > no) else {
            if self.newest_indexed.is_some_and(|indexed| indexed >= no) {
                // An index is stored after its segment: the archive has lost what is asked for.
                return Err(missing(
                    segment,
                    "an index of it or of a later one is stored",
                ));
            }
            return Ok(Answer::Absent(
                "it lies above every stored segment of its timeline".to_owned(),
            ));
        };
        let newest = SegmentName::new(segment.timeline, newest, scope.segment_size)?;
        match run_from {
            Some(from) if no > from => Err(Error::data(
                IN_FLIGHT,
                format!("WAL segment {segment} is missing, while {newest} is stored"),
            )
            .with_detail("It lies between the archive's frontier and its newest segment: on its way, or lost.")
            .with_hint("If the primary still has it, it will be archived. To recover up to the gap only, restore again with --end-before-gap.")),
            _ => Err(missing(segment, &format!("{newest} is stored"))),
        }
    }
}

fn missing(segment: SegmentName, why: &str) -> Error {
    Error::data("wal_missing", format!("WAL segment {segment} is missing, and {why}")).with_hint(
        "\"pgark info\" shows the gaps. To recover up to the gap only, restore again with --end-before-gap.",
    )
}

#[cfg(test)]
mod tests;
