//! `pgark archive-get %f %p`: Postgres's `restore_command`.
//!
//! Postgres takes every exit code from 1 to 125 for "the archive ends here" and promotes. So: 0 for
//! verified bytes, 1 for a proven absence, above 125 for doubt (invariant 4).

use crate::agent::client;
use crate::agent::protocol::{Fetch, Reply, Request};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::postgres::wal_page::{self, LONG_HEADER_BYTES};
use crate::repository::layout;
use crate::wal::answer::{Answer, IN_FLIGHT, Place, Scope, answer_by, is_wrong_setting};
use crate::wal::fork;
use crate::wal::get::{self, Taker};
use crate::wal::repositories::Repositories;
use crate::{Error, ErrorKind, Result, exit_code, fault};
use pgark_types::ArchiveFile;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A spooled file is read and hashed in pieces of this size: they stay in the cache.
const PIECE_BYTES: usize = 256 << 10;

/// Fetches one WAL file from the repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The file's name: Postgres's %f.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where to put it: Postgres's %p.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Fetches a file and returns the exit code.
#[must_use]
pub fn run(config_path: Option<&Path>, args: &Args) -> u8 {
    let Ok(file) = args.name.parse::<ArchiveFile>() else {
        tracing::error!(
            code = "bad_name",
            "\"{}\" is not named like a WAL file",
            args.name
        );
        return exit_code::GET_USAGE;
    };
    let get = Get {
        config_path,
        file,
        path: &args.path,
        data_directory: data_directory_of(&args.path),
    };
    get.run(&SystemClock)
}

/// How long doubt is retried.
struct Budgets {
    doubt: Duration,
    in_flight: Duration,
    standby: Duration,
}

impl Budgets {
    /// Those of the configuration; the defaults when it cannot be read.
    fn of(config_path: Option<&Path>) -> Self {
        let wal = Config::load(config_path).map(|c| c.wal).unwrap_or_default();
        Self {
            doubt: Duration::from_secs(wal.get_retry_seconds),
            in_flight: Duration::from_secs(wal.inflight_wait_seconds),
            standby: Duration::from_secs(wal.standby_retry_seconds),
        }
    }
}

struct Get<'a> {
    config_path: Option<&'a Path>,
    file: ArchiveFile,
    path: &'a Path,
    data_directory: PathBuf,
}

impl Get<'_> {
    fn run(&self, clock: &dyn Clock) -> u8 {
        let started = Instant::now();
        let mut warned = false;
        loop {
            let error = match self.attempt() {
                Ok(Found::Delivered) => return exit_code::DONE,
                Ok(Found::Absent(why)) => {
                    tracing::info!("WAL file {} is not in the archive: {why}", self.file);
                    return exit_code::ABSENT;
                }
                Err(error) => error,
            };
            let standby = fork::is_standby(&self.data_directory);
            let budget = self.budget(&error, standby);
            if started.elapsed() >= budget {
                return self.give_up(&error, standby);
            }
            if !std::mem::replace(&mut warned, true) {
                tracing::warn!(
                    code = error.code(),
                    "retrying WAL file {} for {} s: {error}",
                    self.file,
                    budget.as_secs()
                );
            }
            clock.sleep(RETRY_PAUSE.min(budget.saturating_sub(started.elapsed())));
        }
    }

    fn budget(&self, error: &Error, standby: bool) -> Duration {
        let budgets = Budgets::of(self.config_path);
        if error.code() == "config_invalid"
            || error.code() == "config_unreadable"
            || is_wrong_setting(error)
        {
            return Duration::ZERO;
        }
        match (standby, error.code()) {
            (true, _) => budgets.standby,
            (false, IN_FLIGHT) => budgets.in_flight,
            (false, _) => budgets.doubt,
        }
    }

    /// A standby asks again by itself, and an outage of the repository must not kill it; any other
    /// recovery must stop rather than promote.
    fn give_up(&self, error: &Error, standby: bool) -> u8 {
        let file = self.file;
        let (detail, hint) = (
            error.detail().unwrap_or_default(),
            error.hint().unwrap_or_default(),
        );
        if standby {
            tracing::error!(
                alert = "archive_get_doubt",
                code = error.code(),
                detail,
                hint,
                "could not get WAL file {file}, the standby will ask again: {error}"
            );
            return exit_code::ABSENT;
        }
        tracing::error!(
            alert = "archive_get_doubt",
            code = error.code(),
            detail,
            hint,
            "could not get WAL file {file}, recovery must stop: {error}"
        );
        exit_code::of_archive_get(error)
    }

    fn attempt(&self) -> Result<Found> {
        let config = Config::load(self.config_path)?;
        let scope = Scope::read(&self.data_directory)?;
        if let Some(scope) = &scope
            && let Some(found) = self.quickly(&config, scope)?
        {
            return Ok(found);
        }
        let repos = Repositories::open(&config)?;
        let scope = match scope {
            Some(scope) => scope,
            None => Scope::registered(&repos, config.cluster_name())?,
        };
        let mut delivery = Delivery::to(self.path);
        let answer = answer_by(&repos, &scope, self.file, &mut |repo| {
            get::fetch_to(repo, scope.system_id, self.file, &mut delivery)
        });
        match (answer, delivery.trouble.take()) {
            (Ok(Answer::Present(())), _) => self.deliver(&scope, delivery),
            // Not the repository's trouble: a file that is there, and no room for it, is not absent.
            (_, Some(trouble)) => Err(delivery.could_not("write", trouble)),
            (Ok(Answer::Absent(why)), None) => Ok(Found::Absent(why)),
            (Err(error), None) => Err(error),
        }
    }

    /// What needs no repository: names outside the plan, and what the agent holds already.
    fn quickly(&self, config: &Config, scope: &Scope) -> Result<Option<Found>> {
        if let ArchiveFile::Segment(segment) = self.file
            && let Place::Outside(why) = scope.place(segment)?
        {
            return Ok(Some(Found::Absent(why)));
        }
        match self.ask_agent(config, scope) {
            Ok(found) => Ok(found),
            // The agent is an accelerator: its troubles are not the archive's.
            Err(error) => {
                tracing::debug!("getting {} without the agent: {error}", self.file);
                Ok(None)
            }
        }
    }

    fn ask_agent(&self, config: &Config, scope: &Scope) -> Result<Option<Found>> {
        let Some(stream) = client::connect(&config.agent.socket) else {
            return Ok(None);
        };
        // The agent knows no recovery: whether this one may have the segment is judged here.
        if let (ArchiveFile::Segment(segment), Some(_)) = (self.file, &scope.follower)
            && fork::superseding(&Repositories::open(config)?, scope, segment)?.is_some()
        {
            return Ok(None);
        }
        let request = Request::Fetch(Fetch {
            file: self.file,
            cluster: Some((scope.system_id, scope.segment_size)),
            last: scope.last_segment(self.file.timeline()),
            prefetch: !runs_under_pg_rewind(),
        });
        // Absence is for this process to prove: only bytes are taken from the agent.
        let Reply::Ok(spooled) = client::ask(stream, request, AGENT_TIMEOUT)? else {
            return Ok(None);
        };
        if spooled.contains('/') || spooled.starts_with('.') {
            return Ok(None);
        }
        let spool = config.agent.state_dir.join("get").join(&spooled);
        self.check(scope, &read_spooled(&spool, &spooled, &mut |_| Ok(()))?)?;
        fault::point("get:before_rename");
        if std::fs::rename(&spool, self.path).is_err() {
            // Another file system.
            let mut delivery = Delivery::to(self.path);
            delivery.restart()?;
            read_spooled(&spool, &spooled, &mut |piece| delivery.take(piece))?;
            self.deliver(scope, delivery)?;
            let _ = std::fs::remove_file(&spool);
        }
        fault::point("get:after_rename");
        Ok(Some(Found::Delivered))
    }

    /// Gives the file its final name in one step. No fsync: Postgres asks again after a crash.
    fn deliver(&self, scope: &Scope, delivery: Delivery<'_>) -> Result<Found> {
        self.check(scope, &delivery.seen)?;
        fault::point("get:before_rename");
        delivery.rename()?;
        fault::point("get:after_rename");
        Ok(Found::Delivered)
    }

    /// A segment's header must fit its name, its cluster and its size.
    fn check(&self, scope: &Scope, seen: &Seen) -> Result<()> {
        let (ArchiveFile::Segment(segment) | ArchiveFile::Partial(segment)) = self.file else {
            return Ok(());
        };
        let header = wal_page::validate_start(&seen.head, seen.bytes, segment)?;
        if header.system_identifier != scope.system_id || header.segment_size != scope.segment_size
        {
            return Err(Error::new(
                ErrorKind::Data,
                "wal_foreign",
                format!("WAL file {segment} belongs to another cluster"),
            ));
        }
        Ok(())
    }
}

enum Found {
    Delivered,
    Absent(String),
}

/// What a segment is judged by once its pieces are gone.
#[derive(Default)]
struct Seen {
    /// The long page header, or all there is.
    head: Vec<u8>,
    bytes: u64,
}

impl Seen {
    fn see(&mut self, piece: &[u8]) {
        let missing = LONG_HEADER_BYTES.saturating_sub(self.head.len());
        self.head.extend(piece.iter().take(missing));
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
    }
}

/// The file under its temporary name, which goes when this does.
struct Delivery<'a> {
    path: &'a Path,
    temporary: PathBuf,
    file: Option<File>,
    seen: Seen,
    /// Why it could not be written.
    trouble: Option<io::Error>,
}

impl<'a> Delivery<'a> {
    /// Creates nothing yet: there may be nothing to deliver.
    fn to(path: &'a Path) -> Self {
        let mut temporary = OsString::from(path);
        temporary.push(".pgark");
        Self {
            path,
            temporary: PathBuf::from(temporary),
            file: None,
            seen: Seen::default(),
            trouble: None,
        }
    }

    fn could_not(&self, what: &str, e: io::Error) -> Error {
        Error::io(format!("could not {what} \"{}\"", self.path.display()), e)
    }

    fn not_written(&mut self, e: io::Error) -> Error {
        let again = e.raw_os_error().map(io::Error::from_raw_os_error);
        self.trouble = Some(again.unwrap_or_else(|| e.kind().into()));
        self.could_not("write", e)
    }

    fn rename(mut self) -> Result<()> {
        std::fs::rename(&self.temporary, self.path).map_err(|e| self.could_not("rename", e))?;
        self.file = None;
        Ok(())
    }
}

impl Taker for Delivery<'_> {
    fn restart(&mut self) -> Result<()> {
        let created = File::create(&self.temporary);
        self.file = Some(created.map_err(|e| self.not_written(e))?);
        self.seen = Seen::default();
        Ok(())
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        if let Some(file) = &mut self.file
            && let Err(e) = file.write_all(piece)
        {
            return Err(self.not_written(e));
        }
        self.seen.see(piece);
        Ok(())
    }
}

impl Drop for Delivery<'_> {
    /// Bytes that nobody has vouched for do not stay.
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Reads the agent's file `name` at `path` in pieces, and checks that its content is what its name
/// says.
fn read_spooled(
    path: &Path,
    name: &str,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Seen> {
    let could_not = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
    let mut file = File::open(path).map_err(could_not)?;
    let mut hasher = blake3::Hasher::new();
    let mut seen = Seen::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut piece).map_err(could_not)?;
        let Some(part) = piece.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        hasher.update(part);
        seen.see(part);
        each(part)?;
    }
    if !name.ends_with(&layout::short_digest(&hasher.finalize())) {
        return Err(Error::data(
            "spool_damaged",
            format!("spool file \"{}\" is damaged", path.display()),
        ));
    }
    Ok(seen)
}

/// The data directory: where Postgres runs us, or, for pg_rewind, the parent of %p's `pg_wal`.
fn data_directory_of(path: &Path) -> PathBuf {
    let here = PathBuf::from(".");
    if path.is_absolute() || !here.join("global").exists() {
        return super::archive_push::data_directory_of(path);
    }
    here
}

/// Whether pg_rewind started us, through a shell perhaps. It reads backwards and here and there:
/// what would be fetched ahead for it is junk.
fn runs_under_pg_rewind() -> bool {
    let mut pid = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    for _ in 0..3 {
        let Some(ancestor) = pid else { return false };
        let comm = std::fs::read_to_string(format!("/proc/{ancestor}/comm")).unwrap_or_default();
        if comm.trim_end() == "pg_rewind" {
            return true;
        }
        // "pid (comm) state ppid …": comm may hold anything, the last ")" ends it.
        let stat = std::fs::read_to_string(format!("/proc/{ancestor}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
        pid = rest
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
            .filter(|pid| *pid > 1);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_another_configuration_changes_is_not_waited_for() {
        let get = Get {
            config_path: Some(Path::new("/nowhere/pgark.toml")),
            file: "000000010000000000000001".parse().unwrap(),
            path: Path::new("RECOVERYXLOG"),
            data_directory: PathBuf::from("."),
        };
        for standby in [true, false] {
            let budget = |code| get.budget(&Error::invalid(code, "x"), standby);
            assert_eq!(budget("key_required"), Duration::ZERO);
            assert_eq!(budget("config_invalid"), Duration::ZERO);
            assert!(budget("storage_missing") > Duration::ZERO);
        }
    }

    #[test]
    fn nothing_is_left_when_the_file_cannot_be_put_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("in the way"), "").unwrap();
        let deliver = || {
            let mut delivery = Delivery::to(&path);
            delivery.restart()?;
            delivery.take(b"wa")?;
            delivery.take(b"l")?;
            delivery.rename()
        };
        assert!(deliver().is_err());
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1, "more than what was in the way");
        std::fs::remove_dir_all(&path).unwrap();
        deliver().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"wal");
    }

    #[test]
    fn bytes_that_nobody_vouched_for_do_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        let mut delivery = Delivery::to(&path);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        delivery.restart().unwrap();
        delivery.take(b"wrong").unwrap();
        delivery.restart().unwrap();
        delivery.take(b"right").unwrap();
        let temporary = delivery.temporary.clone();
        assert_eq!(std::fs::read(temporary).unwrap(), b"right");
        assert_eq!(
            (&*delivery.seen.head, delivery.seen.bytes),
            (&b"right"[..], 5)
        );
        drop(delivery);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_remembered() {
        let path = Path::new("/dev/null/RECOVERYXLOG");
        let mut delivery = Delivery::to(path);
        assert!(delivery.restart().is_err());
        assert!(delivery.trouble.is_some());
    }

    #[test]
    fn a_damaged_spool_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let plain = vec![7; PIECE_BYTES + 1];
        let name = format!("x-{}", layout::short_digest(&blake3::hash(&plain)));
        let path = directory.path().join(&name);
        std::fs::write(&path, &plain).unwrap();
        let mut copy = Vec::new();
        let seen = read_spooled(&path, &name, &mut |piece| {
            copy.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(seen.unwrap().bytes, plain.len() as u64);
        assert_eq!(copy, plain);
        for at in [0, PIECE_BYTES - 1, PIECE_BYTES] {
            let mut damaged = plain.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let error = read_spooled(&path, &name, &mut |_| Ok(())).err().unwrap();
            assert_eq!(error.code(), "spool_damaged", "byte {at}");
        }
    }
}
