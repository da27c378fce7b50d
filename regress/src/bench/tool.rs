//! The two tools behind one interface, each with the configuration that the fairness rules ask for.

use super::s3::Buckets;
use crate::pgark::{Agent, binary};
use crate::{Cluster, Major, Pgark, TestDirectory, account};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tool under measurement: pgark, or pgBackRest at one compression level.
pub(super) trait Tool {
    /// `pgark` or `pgbackrest`: the name of its processes too.
    fn name(&self) -> &'static str;
    /// What tells configurations of one tool apart.
    fn variant(&self) -> String;
    /// The configuration file, as text.
    fn config(&self) -> String;
    /// What `--version` says.
    fn version(&self) -> String;
    /// Makes a new, empty repository in the place of whatever is there.
    fn fresh(&mut self);
    /// Starts what runs in the background, if anything does.
    fn start(&mut self);
    /// Ends what [`Tool::start`] started.
    fn stop(&mut self);
    /// The process id of what runs in the background.
    fn agent(&self) -> Option<i32>;
    /// The value of `archive_command`.
    fn archive_command(&self) -> String;
    /// A full backup.
    fn backup(&self) -> Command;
    /// A restore of the newest backup to the end of WAL, or with a recovery that pauses at an LSN.
    fn restore(&self, target: &Path, until: Option<&str>) -> Command;
    /// One WAL file; `inline` without anything in the background.
    fn archive_get(&self, data: &Path, name: &str, path: &str, inline: bool) -> Command;
    /// The repository's directory.
    fn repository(&self) -> PathBuf;
    /// Bytes of the disk that the backup takes, and that WAL takes.
    fn disk_bytes(&self) -> (u64, u64);
    /// What the tool says that the newest backup takes.
    fn told_bytes(&self, info: &Value) -> Option<u64>;
    /// The tool's own `info`, as JSON.
    fn info(&self) -> Value;

    /// Puts the repository aside.
    fn park(&self) {
        let parked = parked(&self.repository());
        let _ = std::fs::remove_dir_all(&parked);
        std::fs::rename(self.repository(), parked).unwrap();
    }

    /// Brings back what [`Tool::park`] put aside.
    fn unpark(&self) {
        let _ = std::fs::remove_dir_all(self.repository());
        std::fs::rename(parked(&self.repository()), self.repository()).unwrap();
    }
}

fn parked(repository: &Path) -> PathBuf {
    repository.with_extension("parked")
}

/// pgark with its default configuration and its agent.
pub(super) struct PgarkTool {
    pgark: Pgark,
    repository: PathBuf,
    agent: Option<Agent>,
    s3: Option<Buckets>,
}

impl PgarkTool {
    pub(super) fn new(directory: &TestDirectory, cluster: &Cluster<'_>) -> Self {
        Self {
            pgark: Pgark::new(directory, "pgark", Some(cluster)),
            repository: directory.join("repository"),
            agent: None,
            s3: None,
        }
    }

    /// The same in buckets.
    pub(super) fn on_s3(
        directory: &TestDirectory,
        cluster: &Cluster<'_>,
        name: &str,
        s3: Buckets,
    ) -> Self {
        Self {
            pgark: Pgark::new(directory, name, Some(cluster)),
            repository: PathBuf::new(),
            agent: None,
            s3: Some(s3),
        }
    }

    /// The socket that the archive module is told.
    pub(super) fn socket(&self) -> PathBuf {
        self.pgark.socket()
    }
}

impl Tool for PgarkTool {
    fn name(&self) -> &'static str {
        "pgark"
    }

    fn variant(&self) -> String {
        match self.s3 {
            Some(_) => "s3".to_owned(),
            None => "default".to_owned(),
        }
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.pgark.config()).unwrap()
    }

    fn version(&self) -> String {
        crate::cluster::run(account::command(binary()).arg("--version"))
            .trim()
            .to_owned()
    }

    fn fresh(&mut self) {
        self.stop();
        match &mut self.s3 {
            Some(s3) => {
                s3.fresh("pgark");
                self.pgark.set_repository(&s3.pgark());
            }
            None => drop(std::fs::remove_dir_all(&self.repository)),
        }
        self.pgark.run(&["init", "--no-encryption"]).expect(0);
        self.start();
    }

    fn start(&mut self) {
        if self.agent.is_none() {
            self.agent = Some(self.pgark.agent(&[]));
        }
    }

    fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.terminate();
        }
    }

    fn agent(&self) -> Option<i32> {
        self.agent.as_ref().map(Agent::pid)
    }

    fn archive_command(&self) -> String {
        self.pgark.shell("archive-push %p")
    }

    fn backup(&self) -> Command {
        self.pgark.command(&["backup"])
    }

    fn restore(&self, target: &Path, until: Option<&str>) -> Command {
        let mut command = self.pgark.command(&["restore", "--target-dir"]);
        command.arg(target);
        if let Some(lsn) = until {
            command.args(["--target-lsn", lsn, "--target-action", "pause"]);
        }
        command
    }

    fn archive_get(&self, data: &Path, name: &str, path: &str, _inline: bool) -> Command {
        let mut command = self.pgark.command(&["archive-get", name, path]);
        command.current_dir(data);
        command
    }

    fn repository(&self) -> PathBuf {
        self.repository.clone()
    }

    fn disk_bytes(&self) -> (u64, u64) {
        if let Some(s3) = &self.s3 {
            return s3.bytes("wal/");
        }
        let wal = disk_bytes(&self.repository.join("wal"));
        (disk_bytes(&self.repository) - wal, wal)
    }

    fn told_bytes(&self, info: &Value) -> Option<u64> {
        let backups = info["components"][0]["backups"].as_array()?;
        backups.last()?["bytes_stored"].as_u64()
    }

    fn info(&self) -> Value {
        self.pgark
            .run(&["info", "--output", "json"])
            .expect(0)
            .json()
    }
}

/// pgBackRest with one zstd level.
pub(super) struct PgBackRest {
    home: PathBuf,
    config: PathBuf,
    level: u32,
    s3: Option<Buckets>,
}

const STANZA: &str = "--stanza=main";

impl PgBackRest {
    pub(super) fn new(directory: &TestDirectory, cluster: &Cluster<'_>, level: u32) -> Self {
        Self::named(directory, cluster, &format!("pgbackrest-{level}"), level)
    }

    /// The same in buckets.
    pub(super) fn on_s3(
        directory: &TestDirectory,
        cluster: &Cluster<'_>,
        name: &str,
        s3: Buckets,
    ) -> Self {
        Self {
            s3: Some(s3),
            ..Self::named(directory, cluster, name, 1)
        }
    }

    fn named(directory: &TestDirectory, cluster: &Cluster<'_>, name: &str, level: u32) -> Self {
        let home = directory.folder(name);
        for folder in ["log", "lock", "spool", "repository"] {
            directory.folder(&format!("{name}/{folder}"));
        }
        let at = home.display();
        let text = format!(
            "[global]\nrepo1-path={at}/repository\nrepo1-retention-full=9\nlog-path={at}/log\n\
             lock-path={at}/lock\nspool-path={at}/spool\nlog-level-console=warn\nlog-level-file=off\n\
             start-fast=y\nprocess-max=2\ncompress-type=zst\ncompress-level={level}\nchecksum-page=y\n\
             archive-async=y\n\n[main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n\
             pg1-port=5432\n",
            cluster.data().display(),
            cluster.sockets().display(),
        );
        let config = directory.file(&format!("{name}/pgbackrest.conf"), &text);
        Self {
            home,
            config,
            level,
            s3: None,
        }
    }

    /// Where repository 1 is, from now on.
    fn repoint(&self, lines: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let rest = text.lines().filter(|line| {
            !["repo1-path", "repo1-type", "repo1-s3", "repo1-storage"]
                .iter()
                .any(|key| line.starts_with(key))
        });
        let rest: Vec<&str> = rest.collect();
        let text = rest
            .join("\n")
            .replacen("[global]\n", &format!("[global]\n{lines}"), 1);
        std::fs::write(&self.config, text + "\n").unwrap();
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = account::command("/usr/bin/pgbackrest");
        command.arg(format!("--config={}", self.config.display()));
        command.args([STANZA, verb]);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn shell(&self, verb: &str) -> String {
        let config = self.config.display();
        format!("/usr/bin/pgbackrest --config={config} {STANZA} {verb}")
    }
}

impl Tool for PgBackRest {
    fn name(&self) -> &'static str {
        "pgbackrest"
    }

    fn variant(&self) -> String {
        match self.s3 {
            Some(_) => format!("s3-zst-{}", self.level),
            None => format!("zst-{}", self.level),
        }
    }

    fn config(&self) -> String {
        std::fs::read_to_string(&self.config).unwrap()
    }

    fn version(&self) -> String {
        crate::cluster::run(account::command("/usr/bin/pgbackrest").arg("version"))
            .trim()
            .to_owned()
    }

    fn fresh(&mut self) {
        for folder in ["repository", "spool"] {
            let path = self.home.join(folder);
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            account::give(&path);
        }
        if let Some(s3) = &mut self.s3 {
            s3.fresh("pgbackrest");
            let lines = s3.pgbackrest();
            self.repoint(&lines);
        }
        crate::cluster::run(&mut self.command("stanza-create"));
    }

    fn start(&mut self) {
        let spool = self.home.join("spool");
        let _ = std::fs::remove_dir_all(&spool);
        std::fs::create_dir(&spool).unwrap();
        account::give(&spool);
    }

    fn stop(&mut self) {}

    fn agent(&self) -> Option<i32> {
        None
    }

    fn archive_command(&self) -> String {
        self.shell("archive-push %p")
    }

    fn backup(&self) -> Command {
        let mut command = self.command("backup");
        command.arg("--type=full");
        command
    }

    fn restore(&self, target: &Path, until: Option<&str>) -> Command {
        std::fs::create_dir_all(target).unwrap();
        account::give(target);
        let mut command = self.command("restore");
        command.arg(format!("--pg1-path={}", target.display()));
        if let Some(lsn) = until {
            command.args(["--type=lsn", "--target-action=pause"]);
            command.arg(format!("--target={lsn}"));
        }
        command
    }

    fn archive_get(&self, data: &Path, name: &str, path: &str, inline: bool) -> Command {
        let mut command = self.command("archive-get");
        command.arg(format!("--pg1-path={}", data.display()));
        if inline {
            command.arg("--no-archive-async");
        }
        command.args([name, path]).current_dir(data);
        command
    }

    fn repository(&self) -> PathBuf {
        self.home.join("repository")
    }

    fn disk_bytes(&self) -> (u64, u64) {
        if let Some(s3) = &self.s3 {
            return s3.bytes("repository/archive/");
        }
        let wal = disk_bytes(&self.repository().join("archive"));
        (disk_bytes(&self.repository()) - wal, wal)
    }

    fn told_bytes(&self, info: &Value) -> Option<u64> {
        let backups = info[0]["backup"].as_array()?;
        backups.last()?["info"]["repository"]["size"].as_u64()
    }

    fn info(&self) -> Value {
        let mut command = self.command("info");
        serde_json::from_str(&crate::cluster::run(command.arg("--output=json"))).unwrap()
    }
}

/// The disk space of everything below `path`, as du has it.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let mut sum = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            sum += disk_bytes(&entry.unwrap().path());
        }
    }
    sum
}

/// All process ids, in order.
pub(super) fn pids() -> Vec<i32> {
    let mut pids: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// Whether `pid` is a process of `tool` that works for the test directory `directory`.
pub(super) fn is_process_of(pid: i32, tool: &str, directory: &Path) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim_end() != tool {
        return false;
    }
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(directory.to_str().unwrap())
}

/// The processes of `tool`, and those that have ended and wait for us to reap them.
pub(super) fn processes(tool: &str, directory: &Path) -> Vec<i32> {
    let me = std::process::id().to_string();
    let ended = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(&format!("({tool}) Z {me} "))
    };
    pids()
        .into_iter()
        .filter(|pid| is_process_of(*pid, tool, directory) || ended(*pid))
        .collect()
}

/// The major that the bench runs on.
pub(super) const MAJOR: Major = Major::Pg15;
