//! `pgark promote`: takes the next epoch, then promotes, then writes down the new timeline. What was begun
//! is noted in the agent's state directory before anything else, so that a run that died is continued.

use super::lineage::{begins, follows, left, own_history};
use super::notes::Notes;
use super::position::Position;
use super::{Epoch, Epochs, Fence, Outcome, claim, finish, spread, take};
use crate::cancel::CancelToken;
use crate::clock::Clock;
use crate::config::{Cluster, Config};
use crate::fault::point;
use crate::postgres::data_directory;
use crate::postgres::history_file::TimelineHistory;
use crate::postgres::session::{Session, column};
use crate::wal::cluster::{self, Identity};
use crate::wal::fork::is_standby;
use crate::wal::get;
use crate::wal::repositories::Repositories;
use crate::{Error, ErrorKind, Result};
use pgark_types::{ArchiveFile, Lsn, TimelineId};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the server is asked whether it has come out of recovery.
const POLL: Duration = Duration::from_millis(100);
const AGAIN: &str = "Run \"pgark promote\" again: it goes on from here.";

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Although another server was promoted, or may be at this moment.
    pub confirmed: bool,
    /// How long the server may take to come out of recovery.
    pub timeout: Duration,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Promotion {
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier.
    pub system_identifier: pgark_types::SystemId,
    /// The epoch that was taken, or would be.
    pub epoch: u32,
    /// The timeline that the server was on.
    pub from_timeline: TimelineId,
    /// How far the standby had replayed; `None`: it was promoted before.
    pub replayed_lsn: Option<Lsn>,
    /// What it had received from a primary: all of it is replayed first. `None`: nothing since it started.
    pub received_lsn: Option<Lsn>,
    /// What was received and not replayed.
    pub lag_bytes: Option<u64>,
    /// The timeline it is on now; `None`: a dry run.
    pub timeline: Option<TimelineId>,
    /// Where that begins.
    pub lsn: Option<Lsn>,
    /// An earlier run had taken the epoch.
    pub continued: bool,
    /// The server was a primary already.
    pub promoted_before: bool,
    /// The repositories.
    pub repositories: Vec<Asked>,
}

/// A repository, and whether it has the epoch.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Whether nobody is promoted without it.
    pub required: bool,
    /// Why it did not open.
    pub code: Option<String>,
    /// Whether it has the epoch; false in a dry run.
    pub has_epoch: bool,
}

/// Promotes the standby of this host.
///
/// # Errors
/// Kind Fenced, `epoch_taken` and `timeline_left`, when another server was promoted, or may be at this
/// moment; Invalid: `not_a_standby`, `cluster_mismatch`; Unavailable when a required repository or the
/// server does not answer: the same command then goes on where it stopped.
pub fn run(
    config: &Config,
    request: &Request,
    clock: &dyn Clock,
    cancel: &CancelToken,
) -> Result<Promotion> {
    let section = config.require_cluster()?;
    let mut sql = Session::connect(&section.conninfo, "pgark promote")?;
    // The primary of a standby, and every copy, has the same system identifier: on one host it must not be
    // taken for this one.
    let own = data_directory::of_server(&mut sql, section.data_directory.as_deref())?;
    let identity = Identity::of(&own.control);
    let repositories = Repositories::open(config)?;
    if let Some(failed) = repositories.failed.iter().find(|f| f.required) {
        return Err(failed.to_error().with_hint(
            "An epoch is taken in every required repository. When there is no time for that, \"pg_ctl promote\" promotes without one.",
        ));
    }
    // What is written without the key nobody could prove.
    for (repository, _) in repositories.open.iter().filter(|(_, required)| *required) {
        repository.require_key()?;
    }
    is_of_repositories(section, identity, &repositories)?;
    let epochs = Epochs::of_required(&repositories, identity.system_identifier)?;
    let mut here = Here {
        section,
        sql,
        directory: own.path,
        notes: Notes::new(&config.agent.state_dir),
        epochs,
        repositories,
        identity,
        clock,
        cancel,
    };
    if here.sql.in_recovery()? {
        here.promote(request)
    } else {
        here.was_promoted(request)
    }
}

/// Checks that the required repositories know this cluster by its name, or none.
fn is_of_repositories(
    section: &Cluster,
    identity: Identity,
    repositories: &Repositories,
) -> Result<()> {
    // Those that are not required must not hold it up.
    for (repository, _) in repositories.open.iter().filter(|(_, required)| *required) {
        match cluster::current(repository, &section.name) {
            Ok(Some(known)) => cluster::check(repository, &known, identity)?,
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Data => {
                tracing::warn!(code = error.code(), "{error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Here<'a> {
    section: &'a Cluster,
    sql: Session,
    directory: PathBuf,
    notes: Notes,
    epochs: Epochs,
    repositories: Repositories,
    identity: Identity,
    clock: &'a dyn Clock,
    cancel: &'a CancelToken,
}

impl Here<'_> {
    fn promote(&mut self, request: &Request) -> Result<Promotion> {
        if !is_standby(&self.directory) {
            return Err(Error::invalid(
                "not_a_standby",
                "the server is in recovery, and no standby: there is no standby.signal",
            )
            .with_hint("A recovery to a target takes no epoch: end it with pg_promote() or pg_wal_replay_resume()."));
        }
        self.may_promote()?;
        let position = Position::of(&mut self.sql, &self.directory, self.identity)?;
        let begun = self.begun()?;
        let newest = self.epochs.newest().map(|epoch| epoch.fence.id);
        let is_newest = begun.as_ref().is_some_and(|f| Some(f.id) == newest);
        if !is_newest && !request.confirmed {
            self.refuse_left(position.timeline)?;
        }
        // Where something unreadable has a higher number, a higher one still is taken.
        let begun = begun.filter(|f| f.epoch == self.epochs.highest);
        let begun = begun.filter(|f| !request.confirmed || !self.epochs.is_disputed(f.epoch));
        let continued = begun.is_some();
        let mut promotion = self.report(
            (self.epoch_of(begun.as_ref()), position.timeline),
            Some(&position),
        );
        promotion.continued = continued;
        if request.dry_run {
            return Ok(promotion);
        }
        let from = (position.timeline, position.replayed);
        let fence = self.taken(begun, from)?;
        self.cancel.check()?;
        self.ask()?;
        point("promote:asked");
        let told = |error: Error| {
            error.context("the server was told to promote, and is a primary or will be")
        };
        self.leave_recovery(request.timeout).map_err(told)?;
        point("promote:promoted");
        let outcome = self.outcome(&fence).map_err(told)?;
        self.end(&fence, &outcome, promotion)
    }

    /// Before an epoch is taken for nothing.
    fn may_promote(&mut self) -> Result<()> {
        let query = "SELECT has_function_privilege('pg_promote(boolean,integer)', 'EXECUTE'), current_user::text";
        let row = self.sql.query_one(query, &[])?;
        if column::<bool>(&row, 0)? {
            return Ok(());
        }
        let user: &str = column(&row, 1)?;
        Err(Error::invalid(
            "promote_denied",
            format!("user \"{user}\" of the server may not call pg_promote()"),
        )
        .with_hint(
            "On the primary: GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO that user.",
        ))
    }

    /// The epoch of `begun`, or the next one, once every required repository has it and no newer one.
    fn taken(&self, begun: Option<Fence>, from: (TimelineId, Lsn)) -> Result<Fence> {
        self.cancel.check()?;
        let fence = match begun {
            Some(fence) => fence,
            None => {
                let cluster = (self.identity.system_identifier, self.section.name.as_str());
                let fence = claim(cluster, self.epoch_of(None), from, self.clock);
                self.notes.note(&fence)?;
                fence
            }
        };
        point("promote:noted");
        self.cancel.check()?;
        take(&self.repositories, &fence)?;
        point("promote:taken");
        // The last look before the point of no return.
        let epochs = Epochs::of_required(&self.repositories, self.identity.system_identifier)?;
        if let Some(number) = epochs.unreadable.iter().find(|n| **n >= fence.epoch) {
            return Err(Error::data(
                "fence_unreadable",
                format!("epoch {number} was taken meanwhile, and who has it cannot be read"),
            )
            .with_hint("Look whether another server is being promoted. If not, run \"pgark promote\" again: it takes a later epoch."));
        }
        match epochs.newest() {
            Some(newest) if newest.fence.id == fence.id => Ok(fence),
            Some(newest) => Err(fenced(
                "epoch_taken",
                format!("epoch {} was taken meanwhile", newest.fence.epoch),
                newest,
            )
            .with_hint(
                "Look at that server. When it will not go on, promote this one with --yes.",
            )),
            None => Err(
                Error::unavailable("record_vanished", "the epoch was taken, and is gone")
                    .with_hint(AGAIN),
            ),
        }
    }

    /// The epoch that an earlier run on this host has taken and not ended. One that it only noted was taken
    /// nowhere.
    fn begun(&self) -> Result<Option<Fence>> {
        let noted = self.notes.claim(self.identity.system_identifier)?;
        Ok(noted.filter(|noted| {
            let known = self.epochs.known.get(&noted.epoch);
            known.is_some_and(|epoch| epoch.fence.id == noted.id && epoch.outcome.is_none())
        }))
    }

    fn epoch_of(&self, begun: Option<&Fence>) -> u32 {
        begun.map_or(self.epochs.highest.saturating_add(1), |f| f.epoch)
    }

    /// Refuses a standby that does not follow the server that was promoted last, or may be at this moment.
    fn refuse_left(&self, timeline: TimelineId) -> Result<()> {
        let Some(newest) = self.epochs.newest() else {
            return Ok(());
        };
        let Some(outcome) = &newest.outcome else {
            return Err(fenced(
                "epoch_taken",
                "another server has taken the newest epoch, and may be promoted at this moment"
                    .to_owned(),
                newest,
            )
            .with_hint(
                "Look at that server. When it will not go on, promote this one with --yes.",
            ));
        };
        let is_left = match self.history(timeline)? {
            Some(history) => !follows(&history, &newest.fence, outcome),
            None => timeline < outcome.timeline,
        };
        match is_left {
            true => Err(timeline_left(newest, timeline)),
            false => Ok(()),
        }
    }

    /// The history of `timeline`: the server's, or one that is stored.
    fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        if let Some(own) = own_history(&self.directory, timeline) {
            return Ok(Some(own));
        }
        let required = self.repositories.open.iter().filter(|(_, r)| *r);
        for (repository, _) in required {
            let file = ArchiveFile::History(timeline);
            if let Some(bytes) = get::fetch(repository, self.identity.system_identifier, file)? {
                return TimelineHistory::parse(timeline, &bytes).map(Some);
            }
        }
        Ok(None)
    }

    /// Tells the server to promote.
    fn ask(&mut self) -> Result<()> {
        let asked = self.sql.query_one("SELECT pg_promote(false)", &[]);
        let row = asked.map_err(|e| e.context("the server may have been told to promote"))?;
        match column::<bool>(&row, 0)? {
            true => Ok(()),
            false => Err(Error::unavailable(
                "promotion_failed",
                "the server could not be told to promote",
            )
            .with_hint(AGAIN)),
        }
    }

    fn leave_recovery(&mut self, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        while self.sql.in_recovery()? {
            self.cancel
                .check()
                .map_err(|error| error.with_hint(AGAIN))?;
            if began.elapsed() >= timeout {
                return Err(Error::unavailable(
                    "promotion_slow",
                    format!(
                        "the server is still in recovery after {} s",
                        timeout.as_secs()
                    ),
                )
                .with_detail("It replays what it has received before it is a primary.")
                .with_hint(AGAIN));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// A server that is no standby any more: by an earlier run, perhaps.
    fn was_promoted(&mut self, request: &Request) -> Result<Promotion> {
        let own = self.written()?;
        let timeline = own.timeline;
        let newest = self.epochs.promoted();
        let is_left = newest.is_some_and(|(by, outcome)| !follows(&own, &by.fence, outcome));
        let begun = self.begun()?;
        let is_disputed = |f: &Fence| request.confirmed && self.epochs.is_disputed(f.epoch);
        let stands_against = begun.as_ref().is_some_and(is_disputed);
        if let Some(fence) = begun.filter(|_| !stands_against)
            && (fence.timeline == timeline || own.switch_point(fence.timeline).is_some())
            && newest.is_none_or(|(epoch, _)| epoch.fence.epoch < fence.epoch)
        {
            let mut promotion = self.report((fence.epoch, fence.timeline), None);
            promotion.continued = true;
            if request.dry_run {
                return Ok(promotion);
            }
            // Required repositories that an error had kept from it.
            take(&self.repositories, &fence)?;
            let outcome = self.outcome(&fence)?;
            return self.end(&fence, &outcome, promotion);
        }
        if stands_against {
            return self.goes_on(request, timeline);
        }
        let Some((epoch, outcome)) = newest else {
            return Err(not_a_standby());
        };
        if !is_left && outcome.timeline == timeline {
            let promotion = self.report((epoch.fence.epoch, epoch.fence.timeline), None);
            let (fence, outcome) = (epoch.fence.clone(), outcome.clone());
            return match request.dry_run {
                true => Ok(promotion),
                // Repositories that an error had kept from it, or that are required since.
                false => {
                    take(&self.repositories, &fence)?;
                    self.end(&fence, &outcome, promotion)
                }
            };
        }
        if !is_left {
            return Err(not_a_standby());
        }
        if !request.confirmed {
            return Err(match left(&self.epochs, &self.directory, timeline) {
                Some((epoch, _)) => timeline_left(epoch, timeline),
                // It was recovered to the past on purpose.
                None => not_a_standby().with_detail("It was recovered to the past since the last promotion. With --yes it takes an epoch of its own: the repositories then know that it goes on."),
            });
        }
        self.goes_on(request, timeline)
    }

    /// Which server goes on, people know: this one, a primary.
    fn goes_on(&mut self, request: &Request, timeline: TimelineId) -> Result<Promotion> {
        let promotion = self.report((self.epoch_of(None), timeline), None);
        if request.dry_run {
            return Ok(promotion);
        }
        let row = self
            .sql
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?;
        let lsn = column::<&str>(&row, 0)?.parse()?;
        let fence = self.taken(None, (timeline, lsn))?;
        let outcome = self.outcome(&fence)?;
        self.end(&fence, &outcome, promotion)
    }

    /// Writes down what came of `fence`, in all repositories that answer.
    fn end(&self, fence: &Fence, outcome: &Outcome, promotion: Promotion) -> Result<Promotion> {
        finish(&self.repositories, fence, outcome).map_err(|error| {
            let message = format!(
                "the server is promoted to timeline {}; that could not be written down",
                outcome.timeline
            );
            match error.kind() {
                ErrorKind::Unavailable => error.context(message).with_hint(AGAIN),
                _ => error.context(message),
            }
        })?;
        point("promote:finished");
        Ok(self.ended(fence, outcome, promotion))
    }

    /// The required repositories have it: tells the others, which hold nothing up.
    fn ended(&self, fence: &Fence, outcome: &Outcome, mut promotion: Promotion) -> Promotion {
        self.notes.forget();
        let late = spread(&self.repositories, fence, outcome);
        for repository in &mut promotion.repositories {
            repository.has_epoch = !late.contains(&repository.name);
        }
        promotion.timeline = Some(outcome.timeline);
        promotion.lsn = Some(outcome.lsn);
        promotion
    }

    /// The timeline that a primary writes, with its ancestors.
    fn written(&mut self) -> Result<TimelineHistory> {
        let row = self.sql.query_one(
            "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)",
            &[],
        )?;
        let timeline = TimelineId::from_hex(column(&row, 0)?)?;
        // The server writes it before it leaves recovery.
        own_history(&self.directory, timeline).ok_or_else(|| {
            Error::data(
                "history_file_missing",
                format!(
                    "the server writes timeline {timeline}, and \"pg_wal/{}\" is missing",
                    timeline.history_file_name()
                ),
            )
            .with_hint("Look at pg_wal of this server: what its timeline descends from stands in that file alone.")
        })
    }

    /// What came of `fence`, asked of the server that took it.
    fn outcome(&mut self, fence: &Fence) -> Result<Outcome> {
        let own = self.written()?;
        Ok(Outcome {
            id: fence.id,
            system_identifier: fence.system_identifier,
            epoch: fence.epoch,
            timeline: own.timeline,
            lsn: begins(&own),
            at: self.clock.now(),
        })
    }

    fn report(
        &self,
        (epoch, from_timeline): (u32, TimelineId),
        position: Option<&Position>,
    ) -> Promotion {
        let received = position.and_then(|p| p.received);
        let open = self.repositories.open.iter().map(|(r, required)| Asked {
            name: r.name().to_owned(),
            required: *required,
            code: None,
            has_epoch: false,
        });
        let failed = self.repositories.failed.iter().map(|f| Asked {
            name: f.name.clone(),
            required: f.required,
            code: Some(f.error.code().to_owned()),
            has_epoch: false,
        });
        Promotion {
            cluster: self.section.name.clone(),
            system_identifier: self.identity.system_identifier,
            epoch,
            from_timeline,
            replayed_lsn: position.map(|p| p.replayed),
            received_lsn: received,
            lag_bytes: position
                .zip(received)
                .map(|(p, received)| received.0.saturating_sub(p.replayed.0)),
            timeline: None,
            lsn: None,
            continued: false,
            promoted_before: position.is_none(),
            repositories: open.chain(failed).collect(),
        }
    }
}

fn fenced(code: &'static str, message: String, by: &Epoch) -> Error {
    Error::new(ErrorKind::Fenced, code, message).with_detail(format!("The newest is {by}."))
}

fn timeline_left(by: &Epoch, timeline: TimelineId) -> Error {
    fenced(
        "timeline_left",
        format!("another server was promoted: this one's timeline {timeline} was left"),
        by,
    )
    .with_hint("Let this server follow the other one: docs/guide/standby.md. When this one shall go on instead, add --yes.")
}

fn not_a_standby() -> Error {
    Error::invalid("not_a_standby", "the server is a primary, and no standby")
        .with_hint("Run \"pgark promote\" on the host of the standby that shall take over.")
}
