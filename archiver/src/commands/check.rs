//! `pgark check`: tries the whole path, from the server's WAL to the repository.

mod epoch;
mod room;

use super::output::{Output, print_json, print_text};
use crate::agent::client;
use crate::backup::server::check_layout;
use crate::backup::wal_wait::{self, Needed};
use crate::cancel::CancelToken;
use crate::catalog::Connection;
use crate::clock::{Clock as _, SystemClock};
use crate::component::{drivers, health};
use crate::config::{Cluster, Config};
use crate::gc::lock;
use crate::postgres::control_file::ControlFile;
use crate::postgres::data_directory::{self, OfServer};
use crate::postgres::session::{Session, column};
use crate::repository::Repository;
use crate::repository::backups::{self, Found};
use crate::repository::unfinished::Sessions;
use crate::wal::cluster::{self, Identity, Reason};
use crate::wal::conflicts;
use crate::wal::inventory::Inventory;
use crate::wal::lag::{self, Lag};
use crate::wal::orphan;
use crate::wal::room::human_seconds;
use crate::{Error, Result, exit_code};
use pgark_types::{Lsn, SegmentName, TimelineId};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;
use std::time::Duration;

/// A queue that nobody looks at for this long has no agent.
const QUEUE_WAIT_SECONDS_MAX: i64 = 60;

/// Checks configuration, repositories, server and archiving; forces a WAL switch and waits for it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How long to wait for the switched WAL segment, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// Do not switch WAL: look only.
    #[arg(long)]
    pub no_switch: bool,
}

/// The objects whose locks are looked at: the oldest, a request each.
const LOCKS_LOOKED_AT_MAX: usize = 200;

#[derive(Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    detail: String,
    hint: Option<String>,
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add<T>(&mut self, name: impl Into<String>, result: Result<(T, String)>) -> Option<T> {
        let name = name.into();
        match result {
            Ok((value, detail)) => {
                self.0.push(Check {
                    name,
                    ok: true,
                    detail,
                    hint: None,
                });
                Some(value)
            }
            Err(error) => {
                let detail = match error.detail() {
                    Some(more) => format!("{error}. {more}"),
                    None => error.to_string(),
                };
                let hint = error.hint().map(str::to_owned);
                self.0.push(Check {
                    name,
                    ok: false,
                    detail,
                    hint,
                });
                None
            }
        }
    }
}

/// Runs every check and returns the exit code: 0, or 3 when one failed.
///
/// # Errors
/// Only when nothing could be checked at all.
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    let mut checks = Checks::default();
    let mut repositories = Vec::new();
    let mut down = false;
    for (name, section, storage) in config.storages()? {
        let opened = section.open(&name, storage).and_then(|repository| {
            let probe = repository.storage().probe()?;
            if !probe.exclusive_put || !probe.durable_put {
                return Err(Error::unavailable(
                    "storage_too_weak",
                    format!("the storage lacks what pgark needs: {probe:?}"),
                )
                .with_hint("Use a file system with hard links or renameat2, and working fsync; for S3, see docs/guide/s3.md."));
            }
            if let Some(bucket) = repository.storage().bucket() {
                bucket.check_object_lock()?;
            }
            let detail = repository.storage().describe();
            Ok((repository, detail))
        });
        down |= opened.is_err() && section.required;
        repositories.extend(checks.add(format!("repository {name}"), opened));
    }
    checks.add("agent", agent(config));
    if let Some(section) = &config.cluster {
        server(
            (config, section),
            (&repositories, down),
            args,
            &mut checks,
            cancel,
        );
    }
    components(config, cancel, &mut checks);
    for repository in &repositories {
        let known = backups(config.cluster_name(), repository);
        checks.add(format!("backups {}", repository.name()), known);
        checks.add(
            format!("conflicts {}", repository.name()),
            quarantine(config, repository),
        );
    }
    for repository in &repositories {
        let found = orphans(config, repository);
        checks.add(format!("forks {}", repository.name()), found);
    }
    for repository in &repositories {
        if let Some(found) = locks(repository, cancel).transpose() {
            checks.add(format!("locks {}", repository.name()), found);
        }
    }
    lag(config, &repositories, &mut checks);
    let failed = checks.0.iter().any(|check| !check.ok);
    match output {
        Output::Json => print_json(json!({"checks": checks.0})),
        Output::Text => {
            for check in &checks.0 {
                let mark = if check.ok { "ok    " } else { "FAILED" };
                print_text(format_args!("{mark} {}: {}", check.name, check.detail));
                if let Some(hint) = &check.hint {
                    print_text(format_args!("       HINT: {hint}"));
                }
            }
        }
    }
    Ok(if failed {
        exit_code::FINDINGS
    } else {
        exit_code::DONE
    })
}

/// What each component's driver needs of its store, and what a dead run has left to undo.
fn components(config: &Config, cancel: &CancelToken, checks: &mut Checks) {
    for (name, section) in &config.component {
        let kind = &section.common.kind;
        let driver = drivers::open(name, kind, &section.settings);
        let lines = driver.and_then(|driver| health::check(config, name, driver.as_ref(), cancel));
        match lines {
            Ok(lines) => checks.0.extend(lines.into_iter().map(|line| Check {
                name: format!("component {name}: {}", line.name),
                ok: line.ok,
                detail: line.detail,
                hint: Some(line.hint).filter(|hint| !hint.is_empty()),
            })),
            Err(error) => drop(checks.add::<()>(format!("component {name}"), Err(error))),
        }
    }
}

/// WAL past a fork is stored and not followed. That may be a branch which a recovery has left, so it
/// is told and fails nothing.
fn orphans(config: &Config, repository: &Repository) -> Result<((), String)> {
    let mut found = Vec::new();
    for known in cluster::all(repository, config.cluster_name())? {
        let inventory = Inventory::load(repository, known.system_identifier)?;
        let orphans = orphan::orphans(repository, &inventory, known.segment_size)?;
        found.extend(orphans.iter().map(ToString::to_string));
    }
    Ok(match found.is_empty() {
        true => ((), "no WAL past a fork".to_owned()),
        false => (
            (),
            format!(
                "WAL past a fork: {}. If no recovery has left that timeline, an old primary still writes",
                found.join("; ")
            ),
        ),
    })
}

/// Whether what is needed is locked; `None` where nothing is to be.
fn locks(repository: &Repository, cancel: &CancelToken) -> Result<Option<((), String)>> {
    let found = lock::survey(repository, &SystemClock, cancel, LOCKS_LOOKED_AT_MAX)?;
    let Some(locks) = found else {
        return Ok(None);
    };
    let detail = super::gc::locks_text(&locks);
    match locks.unlocked {
        0 => Ok(Some(((), detail))),
        n => Err(Error::unavailable(
            "objects_not_locked",
            format!("{n} objects that a restore may need are not locked"),
        )
        .with_detail(detail)
        .with_hint("\"pgark repo lock\" locks them; run \"pgark gc\" daily. It needs s3:PutObjectRetention and s3:GetObjectRetention.")),
    }
}

/// Whether a repository lacks what another one has.
fn lag(config: &Config, repositories: &[Repository], checks: &mut Checks) {
    if config.repository.len() < 2 {
        return;
    }
    let all: Vec<&Repository> = repositories.iter().collect();
    match lag::lags(&all, config.cluster_name(), SystemClock.now()) {
        Ok(lags) => {
            for (repository, lag) in all.iter().zip(&lags) {
                let name = repository.name();
                checks.add(format!("lag {name}"), behind(name, lag));
            }
        }
        Err(error) => drop(checks.add::<()>("lag", Err(error))),
    }
}

fn behind(name: &str, lag: &Lag) -> Result<((), String)> {
    if lag.is_none() {
        return Ok(((), "it has what the others have".to_owned()));
    }
    let mut what = Vec::new();
    if let Some(first) = lag.first_missing {
        what.push(format!("{} WAL segments from {first} on", lag.wal_missing));
    }
    if !lag.backups_missing.is_empty() {
        let labels: Vec<String> = lag
            .backups_missing
            .iter()
            .map(ToString::to_string)
            .collect();
        what.push(format!("backups {}", labels.join(", ")));
    }
    let what = what.join(" and ");
    Err(Error::unavailable(
        "repository_lags",
        format!("repository \"{name}\" lacks what another one has: {what}"),
    )
    .with_hint(format!(
        "The agent completes a repository that is not required by itself. \"pgark repo copy --from NAME --to {name}\" does it now."
    )))
}

/// The agent is optional: without one, push and get work by themselves.
fn agent(config: &Config) -> Result<((), String)> {
    let socket = config.agent.socket.display();
    Ok(match client::ping(&config.agent.socket) {
        Ok(version) => ((), format!("{version} answers at {socket}")),
        Err(_) => (
            (),
            format!("no agent at {socket}; WAL is pushed and fetched without one"),
        ),
    })
}

fn server(
    (config, section): (&Config, &Cluster),
    (repositories, down): (&[Repository], bool),
    args: &Args,
    checks: &mut Checks,
    cancel: &CancelToken,
) {
    let session = Session::connect(&section.conninfo, "pgark check");
    let session = session.map(|s| {
        let detail = format!("server version {}", s.server_version_num());
        (s, detail)
    });
    let Some(mut session) = checks.add("server", session) else {
        return;
    };
    let Some(control) = checks.add("data directory", own_directory(section, &mut session)) else {
        return;
    };
    checks.add("archiving", archiving(config, &mut session));
    checks.add("extension", extension(config));
    let room = room::check((config, section), &mut session, &control, down);
    checks.add("pg_wal", room);
    for repository in repositories {
        let identity = Identity {
            system_identifier: control.system_identifier,
            segment_size: control.wal_segment_size,
            postgres_major: control.major(),
        };
        let known = cluster::current(repository, &section.name).and_then(|known| {
            let detail = format!("system identifier {}", control.system_identifier);
            match known {
                Some(_) => cluster::register_or_check(
                    repository,
                    &section.name,
                    identity,
                    Reason::FirstBackup,
                    &SystemClock,
                )
                .map(|()| ((), detail)),
                None => Ok(((), format!("{detail}, not registered yet"))),
            }
        });
        checks.add(format!("identity {}", repository.name()), known);
    }
    let epoch = epoch::check(section, &mut session, &control, repositories);
    checks.add("epoch", epoch);
    if args.no_switch {
        return;
    }
    if let Some(segment) = checks.add("wal switch", switch(&mut session, &control)) {
        for repository in repositories {
            let arrived = arrives(repository, &control, segment, args, cancel);
            checks.add(format!("wal arrives in {}", repository.name()), arrived);
        }
    }
}

/// The extension is optional; where it is, somebody must run its jobs.
fn extension(config: &Config) -> Result<((), String)> {
    let mut connection = match Connection::open(config, "pgark check") {
        Ok(connection) => connection,
        Err(error) if matches!(error.code(), "extension_missing" | "in_recovery") => {
            return Ok(((), format!("not used: {error}")));
        }
        Err(error) => return Err(error),
    };
    let state = connection.queue_state()?;
    if state.waiting_seconds > QUEUE_WAIT_SECONDS_MAX && state.running == 0 {
        return Err(Error::unavailable(
            "queue_stands",
            format!(
                "{} jobs are queued, the first for {}, and none runs",
                state.queued,
                human_seconds(state.waiting_seconds.unsigned_abs())
            ),
        )
        .with_hint("Start \"pgark agent\" on this host, or look into its log."));
    }
    let pending = match state.policy_pending {
        true => "; a change of schedules or retention waits for the agent",
        false => "",
    };
    Ok((
        (),
        format!(
            "version {}, {} jobs queued, {} running{pending}",
            state.version, state.queued, state.running
        ),
    ))
}

fn own_directory(section: &Cluster, session: &mut Session) -> Result<(ControlFile, String)> {
    let OfServer { path, control, .. } =
        data_directory::of_server(session, section.data_directory.as_deref())?;
    check_layout(&control)?;
    Ok((control, path.display().to_string()))
}

fn archiving(config: &Config, session: &mut Session) -> Result<((), String)> {
    let mode = session.show("archive_mode")?;
    if mode == "off" {
        return Err(Error::invalid("archiving_off", "archive_mode is off")
            .with_hint("Set archive_mode = on and archive_command = 'pgark archive-push %p', then restart the server."));
    }
    let library = session.show("archive_library")?;
    if library.ends_with("pgark_archive") && client::ping(&config.agent.socket).is_err() {
        return Err(Error::unavailable(
            "agent_absent",
            "the archive module is loaded, and no agent answers it: WAL waits in pg_wal",
        )
        .with_hint(
            "Start \"pgark agent\"; its socket and pgark_archive.socket must be the same.",
        ));
    }
    let how = if library.is_empty() {
        session.show("archive_command")?
    } else {
        library
    };
    if how.is_empty() || how == "(disabled)" {
        return Err(Error::invalid(
            "archiving_unset",
            "neither archive_command nor archive_library is set",
        )
        .with_hint("Set archive_command = 'pgark archive-push %p' and reload."));
    }
    let row = session.query_one(
        "SELECT failed_count::text, coalesce(last_failed_wal, ''),
                coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)
         FROM pg_stat_archiver",
        &[],
    )?;
    if column::<bool>(&row, 2)? {
        let file: String = column(&row, 1)?;
        return Err(Error::unavailable(
            "archiving_failing",
            format!("the server fails to archive \"{file}\""),
        )
        .with_hint("The server's log has the error of archive_command."));
    }
    Ok(((), format!("archive_mode = {mode}, {how}")))
}

/// Writes a restore point, so that there is something to archive, and switches.
fn switch(session: &mut Session, control: &ControlFile) -> Result<(SegmentName, String)> {
    if session.in_recovery()? {
        return Err(Error::invalid(
            "in_recovery",
            "the server is a standby: it cannot switch WAL segments",
        )
        .with_hint("Run the check on the primary, or with --no-switch."));
    }
    let row = session.query_one("SELECT pg_create_restore_point('pgark check')::text", &[])?;
    let lsn: Lsn = column::<String>(&row, 0)?.parse()?;
    let row = session.query_one(
        "SELECT (SELECT timeline_id FROM pg_control_checkpoint())::text, pg_switch_wal()::text",
        &[],
    )?;
    let timeline: u32 = column::<String>(&row, 0)?
        .parse()
        .unwrap_or(control.timeline.0);
    let size = control.wal_segment_size;
    let segment = SegmentName::new(TimelineId(timeline), size.segment_no_before(lsn), size)?;
    Ok((segment, format!("segment {segment} is complete")))
}

fn arrives(
    repository: &Repository,
    control: &ControlFile,
    segment: SegmentName,
    args: &Args,
    cancel: &CancelToken,
) -> Result<((), String)> {
    let no = segment.number(control.wal_segment_size)?;
    let needed = Needed {
        system_id: control.system_identifier,
        timeline: segment.timeline,
        first: no,
        last: no,
        size: control.wal_segment_size,
    };
    wal_wait::wait(
        repository,
        &needed,
        Duration::from_secs(args.timeout_seconds),
        cancel,
    )?;
    Ok(((), format!("segment {segment} is in the repository")))
}

/// Whether what is stored as backups counts as such.
fn backups(component: &str, repository: &Repository) -> Result<((), String)> {
    let found = backups::list(repository, component)?;
    let sessions = Sessions::list(repository)?;
    let unfinished = sessions.unfinished(repository, component, &found, SystemClock.now())?;
    let mut problems = Vec::new();
    let mut committed = 0_u64;
    for found in &found {
        match found {
            Found::Committed(_) => committed += 1,
            Found::Damaged(label, error) => problems.push(format!("{label} is damaged: {error}")),
            Found::Expired(..) | Found::Uncommitted(..) => {}
        }
    }
    let (bad, fine): (Vec<_>, Vec<_>) = unfinished.iter().partition(|u| u.kind.is_finding());
    problems.extend(bad.iter().map(|u| format!("{}: {}", u.label, u.detail)));
    if !problems.is_empty() {
        let problems = problems.join("; ");
        return Err(Error::data(
            "backup_damaged",
            format!("not every backup is sound: {problems}"),
        )
        .with_hint("Take a backup, then see docs/runbooks/damaged-object.md."));
    }
    let mut detail = format!("{committed} committed");
    for note in fine {
        let _ = write!(detail, "; {}: {}", note.label, note.detail);
    }
    Ok(((), detail))
}

/// A second content of a name, in quarantine, is an alert until an operator has looked.
fn quarantine(config: &Config, repository: &Repository) -> Result<((), String)> {
    let (mut names, mut acknowledged) = (Vec::new(), 0_usize);
    for registration in cluster::all(repository, config.cluster_name())? {
        let found = conflicts::list(repository, registration.system_identifier)?;
        acknowledged += conflicts::count(&found).acknowledged;
        let open = found.iter().filter(|c| c.acknowledgement.is_none());
        names.extend(open.map(|conflict| conflict.key.to_string()));
    }
    if names.is_empty() {
        return Ok((
            (),
            match acknowledged {
                0 => "no WAL is in quarantine".to_owned(),
                n => format!("{n} WAL files in quarantine, all acknowledged"),
            },
        ));
    }
    Err(Error::conflict(
        "wal_conflict",
        format!(
            "{} WAL files are in quarantine: {}",
            names.len(),
            names.join(", ")
        ),
    )
    .with_hint("Two servers archive under one name: see docs/runbooks/wal-conflict.md. \"pgark wal conflicts\" lists them."))
}
