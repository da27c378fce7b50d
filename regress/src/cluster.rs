//! A Postgres cluster of a test: made, started, stopped, killed, promoted, asked.

use crate::directory::TestDirectory;
use crate::major::Major;
use crate::server_log::ServerLog;
use crate::session::Session;
use crate::{account, process};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a server may take to start or stop before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends the sessions, writes a checkpoint, archives what is ready.
    Fast,
    /// Without a checkpoint: the next start recovers.
    Immediate,
}

/// What a new cluster is to be like.
#[derive(Debug)]
pub struct ClusterBuilder<'a> {
    directory: &'a TestDirectory,
    major: Major,
    name: String,
    wal_segment_mib: u32,
    checksums: bool,
    settings: Vec<String>,
}

impl<'a> ClusterBuilder<'a> {
    /// `wal_segment_size` in MiB; 16 unless told otherwise.
    #[must_use]
    pub fn wal_segment_mib(mut self, mib: u32) -> Self {
        self.wal_segment_mib = mib;
        self
    }

    /// Data checksums; on unless told otherwise.
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// A line of `postgresql.conf`, for example `archive_mode = on`.
    #[must_use]
    pub fn setting(mut self, line: impl Into<String>) -> Self {
        self.settings.push(line.into());
        self
    }

    /// Runs `initdb` and starts the server.
    pub fn start(self) -> Cluster<'a> {
        let mut cluster = self.init();
        cluster.start();
        cluster
    }

    /// Runs `initdb`.
    pub fn init(self) -> Cluster<'a> {
        let cluster = Cluster::over(self.directory, self.major, &self.name);
        let mut initdb = self.major.command("initdb");
        initdb.arg("-D").arg(&cluster.data);
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]);
        initdb.arg(format!("--wal-segsize={}", self.wal_segment_mib));
        match (self.checksums, self.major.checksums_by_default()) {
            (true, false) => drop(initdb.arg("-k")),
            (false, true) => drop(initdb.arg("--no-data-checksums")),
            (true, true) | (false, false) => {}
        }
        run(&mut initdb);
        let mut text = String::from(
            "# the harness's settings\nfsync = off\nshared_buffers = 16MB\nmax_connections = 30\n\
             wal_level = replica\nmax_wal_senders = 5\nlog_line_prefix = '%m [%p] %b '\n\
             autovacuum_naptime = 1d\n",
        );
        for line in &self.settings {
            text.push_str(line);
            text.push('\n');
        }
        cluster.configure(&text);
        cluster
    }
}

/// A cluster: a data directory with a name of its own within the test, running or not.
#[derive(Debug)]
pub struct Cluster<'a> {
    major: Major,
    data: PathBuf,
    sockets: PathBuf,
    log: ServerLog,
    options: String,
    _directory: &'a TestDirectory,
}

impl<'a> Cluster<'a> {
    /// Begins a new cluster. `name` is short: it becomes part of a socket's path.
    pub fn builder(directory: &'a TestDirectory, major: Major, name: &str) -> ClusterBuilder<'a> {
        ClusterBuilder {
            directory,
            major,
            name: name.to_owned(),
            wal_segment_mib: 16,
            checksums: true,
            settings: Vec::new(),
        }
    }

    /// The cluster `name` over the data directory `<test directory>/<name>/data`, which something
    /// else fills: a restore, a base backup.
    pub fn over(directory: &'a TestDirectory, major: Major, name: &str) -> Self {
        let home = directory.folder(name);
        Self {
            major,
            data: home.join("data"),
            sockets: directory.folder(&format!("{name}/s")),
            log: ServerLog::new(home.join("server.log")),
            options: String::new(),
            _directory: directory,
        }
    }

    /// A standby of this cluster, from `pg_basebackup -R`; not started. It streams.
    pub fn standby(&self, directory: &'a TestDirectory, name: &str) -> Cluster<'a> {
        let standby = Self::over(directory, self.major, name);
        let mut copy = self.major.command("pg_basebackup");
        copy.args(["-R", "-X", "stream", "-c", "fast", "-U", "postgres", "-h"]);
        run(copy.arg(&self.sockets).arg("-D").arg(&standby.data));
        standby
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of the server's socket.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// The major version.
    pub fn major(&self) -> Major {
        self.major
    }

    /// A libpq connection string for the superuser.
    pub fn conninfo(&self, database: &str) -> String {
        format!(
            "host={} user=postgres dbname={database}",
            self.sockets.display()
        )
    }

    /// Appends lines to `postgresql.conf`; they count from the next start or reload on.
    pub fn configure(&self, text: &str) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Adds to the server's command line, from the next start on: `-c name=value`, quoted for the
    /// shell.
    pub fn option(&mut self, option: &str) {
        self.options.push(' ');
        self.options.push_str(option);
    }

    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(message) = self.try_start() {
            panic!("{message}\n{}", self.log.tail(40));
        }
    }

    /// Starts the server; the error is what `pg_ctl` says.
    ///
    /// # Errors
    /// The server did not come up within a minute.
    pub fn try_start(&mut self) -> Result<(), String> {
        let output = self.start_command(true).output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr))
    }

    /// Starts the server without waiting for anything.
    pub fn start_only(&mut self) {
        run(&mut self.start_command(false));
    }

    fn start_command(&self, wait: bool) -> Command {
        // On the command line, since a copied or restored data directory brings the settings of
        // the cluster it comes from.
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c unix_socket_permissions=0700 \
             -c port=5432 -c logging_collector=off -c log_destination=stderr{}",
            self.sockets.display(),
            self.options
        );
        let mut command = self.pg_ctl("start");
        command
            .arg("-l")
            .arg(self.log.path())
            .arg("-o")
            .arg(options);
        command.arg(if wait { "-w" } else { "-W" });
        command
    }

    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = self.major.command("pg_ctl");
        command.arg(action).arg("-D").arg(&self.data);
        command
            .arg("-t")
            .arg(PATIENCE.as_secs().to_string())
            .arg("-s");
        command
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&mut self, mode: StopMode) {
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        run(self.pg_ctl("stop").args(["-w", "-m", mode]));
    }

    /// Stops and starts.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(StopMode::Fast);
        self.start();
    }

    /// Kills every process of the server with SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        process::kill_tree(self.postmaster().expect("the server runs"));
    }

    /// The postmaster's process id, while it runs.
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        process::is_alive(pid).then_some(pid)
    }

    /// Waits until the server has ended by itself, as after a recovery that fails.
    #[track_caller]
    pub fn wait_for_end(&self, limit: Duration) {
        process::wait_until("the server ends", limit, || self.postmaster().is_none());
    }

    /// Makes the server read its configuration again.
    #[track_caller]
    pub fn reload(&self) {
        run(&mut self.pg_ctl("reload"));
    }

    /// Ends recovery and waits until the server is a primary.
    #[track_caller]
    pub fn promote(&self) {
        run(self.pg_ctl("promote").arg("-w"));
    }

    /// Runs SQL in the database `postgres`; rows by lines, columns by `|`.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// Runs SQL in `database`.
    #[track_caller]
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        match self.try_psql(database, sql) {
            Ok(output) => output,
            Err(message) => panic!("{sql}: {message}"),
        }
    }

    /// Runs SQL; the error is what psql says.
    ///
    /// # Errors
    /// The server refused the connection or a statement.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = self
            .psql_command(database)
            .args(["-c", sql])
            .output()
            .unwrap();
        if output.status.success() {
            let text = String::from_utf8(output.stdout).unwrap();
            return Ok(text.trim_end_matches('\n').to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a script as pg_regress does: psql echoes it, goes on after errors, and errors stand where
    /// they happen.
    #[track_caller]
    pub fn psql_script(&self, database: &str, script: &str) -> String {
        use std::io::Write;
        let mut command = account::command("/bin/sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 2>&1"])
            .args(["/usr/lib/postgresql/15/bin/psql", "-X", "-a", "-q"])
            .args(["-U", "postgres", "-d", database, "-h"])
            .arg(&self.sockets)
            .current_dir("/")
            .env("PGOPTIONS", "")
            .env("PGTZ", "UTC")
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let text = script.to_owned();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// A session that stays open.
    pub fn session(&self, database: &str) -> Session {
        Session::start(self.psql_command(database))
    }

    // The host's psql serves every major: SQL over the socket is the same to all of them.
    fn psql_command(&self, database: &str) -> Command {
        let mut command = account::command("/usr/lib/postgresql/15/bin/psql");
        command.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
            "-h",
        ]);
        command
            .arg(&self.sockets)
            .current_dir("/")
            .env("PGOPTIONS", "");
        command
    }

    /// Waits until `sql` answers `expected`.
    #[track_caller]
    pub fn wait_for(&self, sql: &str, expected: &str, limit: Duration) {
        let what = format!("{sql} = {expected}");
        process::wait_until(&what, limit, || {
            self.try_psql("postgres", sql)
                .is_ok_and(|answer| answer == expected)
        });
    }

    /// Waits until the server holds the WAL file `name` for archived: it is `.done`, or was and is
    /// recycled since.
    #[track_caller]
    pub fn wait_archived(&self, name: &str, limit: Duration) {
        let status = self.data.join("pg_wal/archive_status");
        process::wait_until(&format!("{name} is archived"), limit, || {
            let done = status.join(format!("{name}.done")).exists();
            let there = self.data.join("pg_wal").join(name).exists();
            (done || !there) && !status.join(format!("{name}.ready")).exists()
        });
    }

    /// The server's log.
    pub fn log(&self) -> &ServerLog {
        &self.log
    }

    /// The server's log, to allow lines in it.
    pub fn log_mut(&mut self) -> &mut ServerLog {
        &mut self.log
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.postmaster() {
            process::kill_tree(pid);
        }
        if !std::thread::panicking() {
            self.log.assert_clean();
        }
    }
}

/// Runs a command to its end; it must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
