//! `pgark backup`, from the first question to the commit.

use super::complete::{self, Finished};
use super::configuration;
use super::copy::{self, Shared};
use super::coverage::Coverage;
use super::outlets::Outlets;
use super::scan::{self, Found, Scan};
use super::server::{self, Server};
use super::throttle::Throttle;
use super::wal_wait::{self, Needed};
use crate::cancel::CancelToken;
use crate::clock::{SharedClock, deadline};
use crate::config::Config;
use crate::postgres::backup_label::BackupLabelFile;
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::Session as SqlSession;
use crate::progress::{Meter, Progress};
use crate::repository::Repository;
use crate::repository::format::manifest::Label;
use crate::repository::session::{Session, WalPin};
use crate::wal::cluster::{self, Identity, Reason};
use crate::wal::commit_index::relmap;
use crate::wal::fence::{Epochs, lineage};
use crate::wal::relnames;
use crate::{Error, Result};
use pgark_types::{BackupLabel, Lsn, SegmentName};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

const WATCH_EVERY: Duration = Duration::from_secs(1);
const PARALLEL_MAX: usize = 8;

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Notes kept with the backup.
    pub annotations: BTreeMap<String, String>,
    /// Let the server spread the first checkpoint instead of forcing it.
    pub spread_checkpoint: bool,
    /// Overrides `backup.parallel`.
    pub parallel: Option<usize>,
    /// Overrides `backup.read_bytes_per_second_max`.
    pub read_bytes_per_second_max: Option<u64>,
    /// Shows to another thread how far it is.
    pub meter: Option<Meter>,
}

/// A backup that exists in at least one repository.
#[derive(Debug)]
pub struct Outcome {
    /// Its label record in the first repository that has it.
    pub label: Label,
    /// Pages that were caught half written and read again.
    pub pages_reread: u64,
    /// That repository.
    pub repository: Repository,
    /// Every repository that was to get it, by name: its label record there, or why it did not.
    pub repositories: Vec<(String, Result<Label>)>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Takes a base backup of the configured cluster into every one of `repositories`. The data
/// directory is read once. Each repository has its own session and commit, under one label; one
/// that fails does not keep the backup from the others.
///
/// # Errors
/// Whatever stands in its way in the server; or the first repository's error, when none has it. Then
/// there is no backup, only bytes for gc.
pub fn run(
    config: &Config,
    repositories: &[Repository],
    options: &Options,
    clock: &SharedClock,
    cancel: &CancelToken,
) -> Result<Outcome> {
    let began = Instant::now();
    let section = config.require_cluster()?;
    let mut sql = SqlSession::connect(&section.conninfo, "pgark backup")?;
    let (server, control) = server::inspect(&mut sql, section)?;
    crate::places::holds_no_repository(config, &server.data_directory)?;
    let label = new_label(clock);
    let begin = |repository: &Repository| -> Result<Session> {
        repository.require_key()?;
        register(repository, config, &server, &control, clock)?;
        let clock = SharedClock::clone(clock);
        Session::begin(repository, clock, &section.name, &label)
    };
    let mut outlets = Outlets::begin(repositories, begin)?;
    warn_if_left(&server, &control, repositories);
    let mut job = Job {
        config,
        options,
        clock,
        cancel,
        server,
        control,
        sql,
        pages_reread: 0,
        coverage: None,
    };
    let names: Vec<&str> = repositories.iter().map(Repository::name).collect();
    tracing::info!(backup = %label, repository = names.join(", "), "backup begins");
    job.take(&mut outlets, &label)?;
    job.relnames(&outlets);
    crate::fault::point("backup:before_commit");
    cancel.check()?;
    let key = crate::repository::layout::manifest(&section.name, &label)?;
    outlets.commit(&key);
    crate::fault::point("backup:after_commit");
    if let Some(coverage) = &job.coverage {
        let repositories = outlets.repositories();
        repositories.for_each(|repository| coverage.store(repository, cancel));
    }
    let (repository, record, repositories) = outlets.outcome()?;
    tracing::info!(backup = %label, bytes_source = record.bytes_source, bytes_stored = record.bytes_stored, "backup is complete");
    Ok(Outcome {
        label: record,
        pages_reread: job.pages_reread,
        repository,
        repositories,
        elapsed: began.elapsed(),
    })
}

/// A server that another one's promotion has left is backed up all the same: epochs refuse nothing. But
/// nobody should take the backup for one of the cluster that goes on.
fn warn_if_left(server: &Server, control: &ControlFile, repositories: &[Repository]) {
    if server.in_recovery {
        return;
    }
    let epochs = Epochs::of_all(repositories, control.system_identifier);
    let timeline = lineage::of_primary(control);
    if let Some((by, _)) = lineage::left(&epochs, &server.data_directory, timeline) {
        tracing::warn!(
            code = "timeline_left",
            "another server was promoted, and this backup is of the one that was left, which still writes timeline {timeline}; the newest is {by}. See docs/runbooks/wal-past-a-fork.md"
        );
    }
}

fn new_label(clock: &SharedClock) -> BackupLabel {
    let [a, b, c, d, ..] = clock.random();
    BackupLabel::new(clock.now(), u32::from_le_bytes([a, b, c, d]))
}

fn register(
    repository: &Repository,
    config: &Config,
    server: &Server,
    control: &ControlFile,
    clock: &SharedClock,
) -> Result<()> {
    let identity = identity(server, control);
    let name = config.cluster_name();
    cluster::register_or_check(
        repository,
        name,
        identity,
        Reason::FirstBackup,
        clock.as_ref(),
    )
}

/// Who the server is.
pub(super) fn identity(server: &Server, control: &ControlFile) -> Identity {
    Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size,
        postgres_major: Some(server.version_num / 10_000),
    }
}

/// Everything that belongs into a backup, sorted by path.
///
/// # Errors
/// As [`scan::scan`].
pub(super) fn scan_all(server: &Server, control: &ControlFile) -> Result<Scan> {
    let version = server::version_directory(server, control);
    let mut scan = scan::scan(&server.data_directory, &version)?;
    configuration::complete(&mut scan, server)?;
    scan.entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scan)
}

struct Job<'a> {
    config: &'a Config,
    options: &'a Options,
    clock: &'a SharedClock,
    cancel: &'a CancelToken,
    server: Server,
    control: ControlFile,
    sql: SqlSession,
    pages_reread: u64,
    /// The moment after the stop, on a primary.
    coverage: Option<Coverage>,
}

impl Job<'_> {
    fn take(&mut self, outlets: &mut Outlets, label: &BackupLabel) -> Result<()> {
        let fast = !self.options.spread_checkpoint;
        self.phase("waiting for checkpoint to finish");
        let started = self.start_on_server(label, fast)?;
        let pin = WalPin {
            system_identifier: self.control.system_identifier,
            timeline: server::timeline(&self.control, self.server.in_recovery),
            start_lsn: started.lsn,
        };
        outlets.each(|outlet| outlet.session()?.pin_wal(&pin))?;
        crate::fault::point("backup:started");
        self.phase("estimating backup size");
        let scan = scan_all(&self.server, &self.control)?;
        self.phase("streaming database files");
        self.copy(&scan, outlets)?;
        crate::fault::point("backup:copied");
        // pg_control comes last: on a standby its minRecoveryPoint is where the copy becomes
        // consistent.
        server::still_the_same(&mut self.sql, &self.server)?;
        let (control, control_bytes) = ControlFile::read(&self.server.data_directory)?;
        self.same_timeline(&control)?;
        let stopped = server::stop(&mut self.sql)?;
        crate::fault::point("backup:stopped");
        let label_file = BackupLabelFile::parse(&stopped.backup_label)?;
        let size = control.wal_segment_size;
        let timeline = label_file.start_timeline;
        let last = size.segment_no_before(stopped.lsn);
        let last_segment = SegmentName::new(timeline, last, size)?;
        // A page changed since the start is written whole in the backup's WAL, and replay replaces it.
        // An LSN beyond the stop is no proof of that but damage itself.
        let replaced = started.lsn..=stopped.lsn;
        let mut reported = false;
        outlets.each(|outlet| {
            let copy = outlet.copy_mut()?;
            copy.corrupt.retain(|(_, _, lsn)| !replaced.contains(lsn));
            if !std::mem::replace(&mut reported, true) {
                report_corrupt(&scan.entries, &copy.corrupt);
            }
            Ok(())
        })?;
        let switched = !self.server.in_recovery || self.switch_on_primary();
        let needed = Needed {
            system_id: control.system_identifier,
            timeline,
            first: label_file.start_segment.number(size)?,
            last,
            size,
        };
        if !self.server.in_recovery {
            self.coverage = Coverage::of(&mut self.sql, &stopped, needed);
        }
        let give_up = deadline(self.archive_timeout());
        self.phase("waiting for wal archiving to finish");
        outlets.each(|outlet| {
            let (repository, copy) = outlet.take_copy()?;
            self.wait_for_wal(&repository, &needed, switched, give_up)?;
            let finished = Finished {
                component: self.config.cluster_name(),
                label,
                scan: &scan.entries,
                tablespaces: scan.tablespaces.clone(),
                copy,
                server: &self.server,
                control: &control,
                control_bytes: control_bytes.clone(),
                started: started.clone(),
                stopped: stopped.clone(),
                label_file: label_file.clone(),
                last_segment,
                annotations: self.options.annotations.clone(),
            };
            let record = complete::write(&repository, self.clock, outlet.session()?, finished)?;
            outlet.written(record);
            Ok(())
        })
    }

    /// In the words of `pg_stat_progress_basebackup`.
    fn phase(&self, phase: &'static str) {
        if let Some(meter) = &self.options.meter {
            meter.phase(phase);
        }
    }

    /// `pg_backup_start` may wait for a checkpoint for minutes: Ctrl-C cancels it on the server.
    fn start_on_server(&mut self, label: &BackupLabel, fast: bool) -> Result<server::Started> {
        let canceller = self.sql.canceller()?;
        let done = CancelToken::default();
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !done.is_cancelled() {
                    if self.cancel.is_cancelled() {
                        let _ = canceller.cancel();
                        return;
                    }
                    std::thread::park_timeout(Duration::from_millis(200));
                }
            });
            let result = server::start(&mut self.sql, label.as_str(), fast);
            done.cancel();
            watcher.thread().unpark();
            self.cancel.check()?;
            result
        })
    }

    fn copy(&mut self, scan: &Scan, outlets: &mut Outlets) -> Result<()> {
        let total = scan.entries.iter().map(|found| found.size).sum();
        let limit = self.options.read_bytes_per_second_max;
        let cancel = CancelToken::default();
        let shared = Shared {
            targets: outlets.targets(),
            clock: SharedClock::clone(self.clock),
            cancel: cancel.clone(),
            throttle: Throttle::new(limit.unwrap_or(self.config.backup.read_bytes_per_second_max)),
            progress: Progress::start_metered("backup", total, self.options.meter.clone()),
            data_checksums: self.control.data_checksum_version != 0,
            segment_blocks: self.control.segment_blocks,
            compression_level: self.config.backup.compression_level,
            pages_reread: AtomicU64::new(0),
        };
        let threads = threads(self.options.parallel.unwrap_or(self.config.backup.parallel))
            // Each holds a pack for every repository, and the metadata one more.
            .min(outlets.writers_max());
        let result = std::thread::scope(|scope| {
            let work = scope.spawn(|| copy::copy(&shared, &scan.entries, threads));
            let watched = self.watch(&work, &cancel);
            let copied = work
                .join()
                .map_err(|_| Error::internal("thread_panicked", "the copying threads panicked"));
            watched.and(copied)
        });
        shared.progress.finish();
        self.pages_reread = shared.pages_reread.into_inner();
        outlets.copied(result??)
    }

    /// Watches the session while others copy: a lost session is a failed backup, and better known
    /// at once.
    fn watch<T>(
        &mut self,
        work: &std::thread::ScopedJoinHandle<'_, T>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut next = Instant::now() + WATCH_EVERY;
        while !work.is_finished() {
            if self.cancel.is_cancelled() {
                cancel.cancel();
                return self.cancel.check();
            }
            if Instant::now() >= next {
                next = Instant::now() + WATCH_EVERY;
                if let Err(error) = server::still_the_same(&mut self.sql, &self.server) {
                    cancel.cancel();
                    return Err(error);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn same_timeline(&self, control: &ControlFile) -> Result<()> {
        let now = server::timeline(control, self.server.in_recovery);
        let then = server::timeline(&self.control, self.server.in_recovery);
        if now == then || !self.server.in_recovery {
            return Ok(());
        }
        Err(Error::unavailable(
            "timeline_changed",
            format!("the standby moved from timeline {then} to {now} during the backup"),
        )
        .with_hint("Take the backup again."))
    }

    fn archive_timeout(&self) -> Duration {
        let seconds = self.config.backup.archive_timeout_seconds;
        tracing::info!("waiting until the backup's WAL is archived, {seconds} s at most");
        Duration::from_secs(seconds)
    }

    fn wait_for_wal(
        &self,
        repository: &Repository,
        needed: &Needed,
        switched: bool,
        give_up: Instant,
    ) -> Result<()> {
        let left = give_up.saturating_duration_since(Instant::now());
        wal_wait::wait(repository, needed, left, self.cancel).map_err(|error| {
            if switched || error.code() != "wal_not_archived" {
                return error;
            }
            error.with_hint("A standby cannot end its primary's WAL segment: set primary_conninfo in [cluster], run pg_switch_wal() on the primary meanwhile, or raise backup.archive_timeout_seconds.")
        })
    }

    /// A standby cannot switch segments; its primary can, when it can be reached. Whether it did.
    fn switch_on_primary(&self) -> bool {
        let Some(conninfo) = self
            .config
            .cluster
            .as_ref()
            .and_then(|c| c.primary_conninfo.as_ref())
        else {
            tracing::info!("no primary_conninfo: the primary has to fill its WAL segment");
            return false;
        };
        let switch = || -> Result<()> {
            let mut primary = SqlSession::connect(conninfo, "pgark backup")?;
            server::text(&mut primary, "SELECT pg_switch_wal()::text").map(drop)
        };
        switch()
            .inspect_err(|error| {
                tracing::warn!(%error, "could not switch the WAL segment on the primary: waiting until it is full");
            })
            .is_ok()
    }

    /// Names of relations at this moment, for searches in the commit index. A cache: its failure
    /// fails nothing.
    fn relnames(&mut self, outlets: &Outlets) {
        if self.server.in_recovery {
            return;
        }
        let Some(section) = &self.config.cluster else {
            return;
        };
        let stored = relnames::take(section, &mut self.sql).and_then(|names| {
            let mut repositories = outlets.repositories();
            repositories.try_for_each(|to| relmap::store(to, &section.name, &names))
        });
        if let Err(error) = stored {
            tracing::warn!(%error, "could not store the names of relations");
        }
    }
}

fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(PARALLEL_MAX),
        n => n.min(64),
    }
}

fn report_corrupt(scan: &[Found], corrupt: &[(usize, u32, Lsn)]) {
    for (file, block, _) in corrupt {
        let path = scan.get(*file).map_or("?", |found| found.path.0.as_str());
        tracing::error!(
            code = "page_corrupt",
            path,
            block,
            "a page of the data directory fails its checksum"
        );
    }
}
