//! `pgark expire`: the policy applied. Tombs are written, nothing is removed.

use super::history::{self, Loaded};
use super::policy::{self, Kept};
use crate::clock::Clock;
use crate::repository::{Repository, audit, backups, tombs};
use crate::{Error, ErrorKind, Result};
use chrono::{DateTime, Utc};
use pgark_types::BackupLabel;
use pgark_types::retention::{
    BackupDecision, BackupFacts, BackupState, Decisions, Health, Pin, Refusal, WalDecision, decide,
    last_of,
};

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Only this backup, whatever the policy says.
    pub backup: Option<BackupLabel>,
    /// Go on although a timeline is not explained; for one backup, although the newest whole set needs it.
    pub confirm: bool,
}

/// What was decided, and done.
#[derive(Debug)]
pub struct Expired {
    /// The policy; `None`: none was ever set, and nothing expires.
    pub policy: Option<Kept>,
    /// Every decision.
    pub decisions: Decisions,
    /// The backups that were expired now.
    pub expired: Vec<BackupLabel>,
    /// What was read.
    pub loaded: Loaded,
}

/// Decides without doing anything.
///
/// # Errors
/// When there is no decision: kind Invalid, `policy_keeps_nothing`; Data, `backup_unreadable` and
/// `history_missing`; or the storage's.
pub fn preview(repository: &Repository, component: &str, now: DateTime<Utc>) -> Result<Expired> {
    let policy = policy::current(repository, component)?;
    let loaded = history::load(repository, component)?;
    let decisions = decisions(policy.as_ref(), &loaded, now)?;
    Ok(Expired {
        policy,
        decisions,
        expired: Vec::new(),
        loaded,
    })
}

/// The decisions of `policy` about what was loaded.
///
/// # Errors
/// As [`preview`].
pub(crate) fn decisions(
    policy: Option<&Kept>,
    loaded: &Loaded,
    now: DateTime<Utc>,
) -> Result<Decisions> {
    let mut retention = policy.map(|kept| kept.retention).unwrap_or_default();
    if loaded.is_component() && retention.window.take().is_some() && !retention.has_rules() {
        // A window is of WAL, which a component has not: as if there were no rule, everything stays.
        tracing::warn!("a window means nothing for a component without WAL: use --keep-within");
    }
    let decided = decide(&retention, &loaded.history, now).map(|mut decisions| {
        if loaded.is_component() {
            decisions.wal.clear();
        }
        decisions
    });
    decided.map_err(|refusal| match refusal {
        Refusal::KeepsNothing => policy::keeps_nothing(),
        Refusal::UnknownHistory { timeline, .. } => Error::data(
            "history_missing",
            format!("{refusal}: nothing can be decided"),
        )
        .with_hint(format!(
            "Push \"pg_wal/{}\" of a server on that timeline with \"pgark archive-push\".",
            timeline.history_file_name()
        )),
        Refusal::UnknownCluster { .. } => Error::data(
            "cluster_unreadable",
            format!("{refusal}: nothing can be decided"),
        )
        .with_hint("Run \"pgark verify --all\": a record below clusters/ is missing."),
    })
}

/// The decisions of `policy` about WAL. A backup that no rule keeps, and that nobody has expired yet,
/// counts until then: it is marked as expired in `loaded`.
///
/// # Errors
/// As [`preview`].
pub(crate) fn wal_decisions(
    policy: &Kept,
    loaded: &mut Loaded,
    now: DateTime<Utc>,
) -> Result<Vec<WalDecision>> {
    let first = decisions(Some(policy), loaded, now)?;
    for backup in &mut loaded.history.backups {
        let goes = |d: &BackupDecision| d.label == backup.label && !d.keep;
        if first.backups.iter().any(goes) {
            backup.state = BackupState::Expired;
        }
    }
    Ok(decisions(Some(policy), loaded, now)?.wal)
}

/// Applies the policy of `component`, or expires the one backup that was asked for.
///
/// # Errors
/// As [`preview`]; kind Conflict, `timeline_unexplained`, when the cluster went back in time and
/// nobody confirmed it, and `expire_raced`, when another expire left too little, so that this one took
/// its own back; Invalid, for a backup that was named: `backup_missing`, and `last_good_backup`,
/// `backup_pinned` or `backup_in_newest_set` when it must stay; Unavailable, `clock_skew`; or the
/// storage's.
pub fn expire(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    request: &Request,
) -> Result<Expired> {
    let subject = match &request.backup {
        Some(label) => format!("{component} {label}"),
        None => component.to_owned(),
    };
    crate::fault::point("expire:begun");
    audit::write(repository, clock, "expire", &subject)?;
    if let Some(label) = &request.backup {
        return one(repository, clock, component, label, request.confirm);
    }
    let mut outcome = preview(repository, component, clock.now())?;
    let Some(policy) = &outcome.policy else {
        return Ok(outcome);
    };
    let unexplained = outcome.loaded.unexplained(policy);
    if !unexplained.is_empty() {
        if !request.confirm {
            return Err(suspended(component, &unexplained));
        }
        policy::confirm(repository, clock, component, &unexplained)?;
    }
    let going: Vec<BackupLabel> = going(&outcome).collect();
    newest_is_whole(repository, component, &outcome.loaded, &going)?;
    let reason = format!("policy {}: {}", policy.n, policy.retention);
    for label in going {
        crate::fault::point("expire:tomb");
        tombs::bury(repository, clock, component, &label, &reason)?;
        outcome.expired.push(label);
    }
    take_back_unless_enough_stays(repository, clock, component, &outcome.expired)?;
    Ok(outcome)
}

/// What stays must be worth it: of the newest good backup among it, the manifest is read. That of the others
/// is for verify.
fn newest_is_whole(
    repository: &Repository,
    component: &str,
    loaded: &Loaded,
    going: &[BackupLabel],
) -> Result<()> {
    let good = |b: &&BackupFacts| b.state == BackupState::Live && b.health == Health::Good;
    let backups = loaded.history.backups.iter().filter(good);
    let stays = backups.filter(|backup| !going.contains(&backup.label));
    let newest = stays.max_by_key(|backup| backup.stopped_at);
    let Some(newest) = newest.filter(|_| !going.is_empty()) else {
        return Ok(());
    };
    match backups::check_manifest(repository, component, &newest.label) {
        Err(error) if error.kind() == ErrorKind::Data => {
            Err(history::unreadable(component, &newest.label, error))
        }
        checked => checked,
    }
}

/// The live backups that no rule keeps.
fn going(outcome: &Expired) -> impl Iterator<Item = BackupLabel> {
    use pgark_types::retention::Reason;
    let gone = outcome.decisions.backups.iter().filter(|d| !d.keep);
    let live = gone.filter(|d| !d.reasons.contains(&Reason::ExpiredBefore));
    live.map(|d| d.label.clone())
}

pub(crate) fn suspended(
    component: &str,
    unexplained: &[(pgark_types::SystemId, pgark_types::TimelineId)],
) -> Error {
    let names: Vec<String> = unexplained.iter().map(|(_, t)| t.to_string()).collect();
    Error::conflict(
        "timeline_unexplained",
        format!("\"{component}\" was recovered to the past: retention is suspended"),
    )
    .with_detail(format!(
        "No promotion explains timeline {}: what looks old may be what somebody is about to need.",
        names.join(", ")
    ))
    .with_hint("Look at \"pgark expire --dry-run\"; when the recovery is done with, run \"pgark expire --confirm\".")
}

/// Expires one backup by name.
fn one(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    label: &BackupLabel,
    confirm: bool,
) -> Result<Expired> {
    let mut loaded = history::load_sound(repository, component)?;
    if confirm {
        let pin = loaded.set_pin.take();
        loaded
            .history
            .pins
            .retain(|other| Some(other) != pin.as_ref());
    }
    may_go(repository, component, label, &loaded, clock.now())?;
    // Of two that are torn either can be given up: nothing is lost with it.
    let torn = backups::check_manifest(repository, component, label);
    if !torn.is_err_and(|error| error.kind() == ErrorKind::Data) {
        newest_is_whole(repository, component, &loaded, std::slice::from_ref(label))?;
    }
    crate::fault::point("expire:tomb");
    tombs::bury(repository, clock, component, label, "expired by name")?;
    let ours = vec![label.clone()];
    take_back_unless_enough_stays(repository, clock, component, &ours)?;
    Ok(Expired {
        policy: None,
        decisions: Decisions::default(),
        expired: ours,
        loaded: Loaded::default(),
    })
}

/// Refuses a backup that is not there, that nothing takes the place of, or that somebody keeps.
fn may_go(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
    loaded: &Loaded,
    now: DateTime<Utc>,
) -> Result<()> {
    let history = &loaded.history;
    let is = |b: &BackupFacts| b.label == *label && b.state == BackupState::Live;
    if !history.backups.iter().any(is) && !loaded.damaged.contains(label) {
        return Err(Error::invalid(
            "backup_missing",
            format!(
                "there is no backup \"{label}\" of \"{component}\" in repository \"{}\"",
                repository.name()
            ),
        )
        .with_hint("\"pgark info\" lists the backups there are."));
    }
    if let Some((last, _)) = last_of(history, std::slice::from_ref(label)) {
        return Err(Error::invalid(
            "last_good_backup",
            format!("backup \"{label}\" of \"{component}\" must stay: it is {last}"),
        )
        .with_hint("Take another backup first."));
    }
    let holds = |pin: &&Pin| pin.label == *label && pin.until.is_none_or(|until| until > now);
    let own = |pin: &&Pin| loaded.set_pin.as_ref() != Some(*pin);
    if history.pins.iter().filter(own).any(|pin| holds(&pin)) {
        return Err(Error::invalid(
            "backup_pinned",
            format!("backup \"{label}\" of \"{component}\" is pinned"),
        )
        .with_hint(format!("Take the pin away first: pgark unpin {label}.")));
    }
    match loaded.set_pin.as_ref().filter(holds) {
        None => Ok(()),
        Some(pin) => Err(Error::invalid(
            "backup_in_newest_set",
            format!("backup \"{label}\" of \"{component}\" is {}", pin.reason),
        )
        .with_detail("Without it no set could be restored as a whole.")
        .with_hint(
            "Take another set first: pgark backup. When sets are no longer taken: --confirm.",
        )),
    }
}

/// Looks again once the tombs of `ours` stand: what was to stay may have been expired by somebody else
/// in the same moment. Of two at once the one whose tomb came later sees both, so that one of them at
/// least takes its own back. One that dies before that leaves it to gc, which keeps the last good backup.
fn take_back_unless_enough_stays(
    repository: &Repository,
    clock: &dyn Clock,
    component: &str,
    ours: &[BackupLabel],
) -> Result<()> {
    if ours.is_empty() {
        return Ok(());
    }
    crate::fault::point("expire:buried");
    let mut history = history::load_sound(repository, component)?.history;
    for backup in &mut history.backups {
        if ours.contains(&backup.label) {
            backup.state = BackupState::Live;
        }
    }
    let Some((last, label)) = last_of(&history, ours) else {
        return Ok(());
    };
    for label in ours {
        match tombs::undo(repository, clock, component, label) {
            // Somebody else took it back.
            Err(error) if error.code() == "backup_not_expired" => {}
            done => done?,
        }
    }
    Err(Error::conflict(
        "expire_raced",
        format!("nothing of \"{component}\" was expired: backup \"{label}\" is {last} by now"),
    )
    .with_detail("Something else expired backups in the same moment.")
    .with_hint("Look at \"pgark info\", and run the command again."))
}
