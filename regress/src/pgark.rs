//! Runs the real `pgark` binary with a configuration of the test's own.

use crate::account;
use crate::cluster::Cluster;
use crate::directory::{self, TestDirectory, test_root};
use crate::major::Major;
use crate::process::wait_until;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// Longer than any run of the tests.
const COPY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code; a signal counts as 128 plus its number, as the shell has it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Fails the test unless the command ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// Standard output as JSON (`--output json`).
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr),
        }
    }
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            code: output.status.code().or(signal).unwrap(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// One installation of pgark: configuration, repository, state and socket below one folder.
#[derive(Debug)]
pub struct Pgark {
    home: PathBuf,
    config: PathBuf,
    cluster_section: String,
    agent_lines: String,
    more: String,
}

impl Pgark {
    /// An installation for `cluster` in the folder `name` of the test's directory. The repository
    /// lies in the test's directory under `repository`, so that two installations share it.
    pub fn new(directory: &TestDirectory, name: &str, cluster: Option<&Cluster<'_>>) -> Self {
        let home = directory.folder(name);
        let pgark = Self {
            config: home.join("pgark.toml"),
            cluster_section: cluster.map(cluster_section).unwrap_or_default(),
            agent_lines: String::new(),
            more: format!("[repository.local]\n{}", directory.repository()),
            home,
        };
        pgark.write();
        pgark
    }

    /// Appends sections to the configuration, `[wal]` for example.
    pub fn configure(&mut self, sections: &str) {
        self.more.push_str(sections);
        self.more.push('\n');
        self.write();
    }

    /// Another repository from now on: the keys of its section. Sections added before are gone.
    pub fn set_repository(&mut self, section: &str) {
        self.more = format!("[repository.local]\n{section}");
        self.write();
    }

    /// Points the installation at another cluster: one restored, or promoted.
    pub fn attach(&mut self, cluster: &Cluster<'_>) {
        self.cluster_section = cluster_section(cluster);
        self.write();
    }

    /// Appends a line to the section `[cluster]`.
    pub fn in_cluster(&mut self, line: &str) {
        self.cluster_section.push_str(line);
        self.cluster_section.push('\n');
        self.write();
    }

    /// Appends a line to the section `[agent]`.
    pub fn in_agent(&mut self, line: &str) {
        self.agent_lines.push_str(line);
        self.agent_lines.push('\n');
        self.write();
    }

    fn write(&self) {
        let text = format!(
            "{}\n[agent]\nsocket = \"{}\"\nstate_dir = \"{}\"\nhttp = \"127.0.0.1:0\"\n{}\n{}",
            self.cluster_section,
            self.socket().display(),
            self.state().display(),
            self.agent_lines,
            self.more
        );
        // In one step: a server may be running commands with it.
        let new = self.home.join("pgark.toml.new");
        std::fs::write(&new, text).unwrap();
        account::give(&new);
        std::fs::rename(&new, &self.config).unwrap();
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.home.join("agent.sock")
    }

    /// The agent's `state_dir`.
    pub fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// A command line for `archive_command` and `restore_command`: `pgark --config … <verb>`. It
    /// means the same on the host and in the chroot.
    pub fn shell(&self, verb: &str) -> String {
        format!(
            "{} --config {} {verb}",
            binary().display(),
            self.config.display()
        )
    }

    /// A command as the account, on the host.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = account::command(binary());
        command.arg("--config").arg(&self.config).args(arguments);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// As [`Pgark::command`], where `major` runs.
    pub fn command_on(&self, major: Major, arguments: &[&str]) -> Command {
        let mut command = major.run(binary());
        command.arg("--config").arg(&self.config).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    /// Runs a verb to its end with extra environment variables, such as fault switches.
    pub fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        command.output().unwrap().into()
    }

    /// The same installation with folder, socket and state of its own, as on another host: see
    /// [`Pgark::agent_on`].
    pub fn beside(&self, directory: &TestDirectory, name: &str) -> Self {
        let home = directory.folder(name);
        let pgark = Self {
            config: home.join("pgark.toml"),
            cluster_section: self.cluster_section.clone(),
            agent_lines: self.agent_lines.clone(),
            more: self.more.clone(),
            home,
        };
        pgark.write();
        pgark
    }

    /// Starts `pgark agent` and waits until its socket answers connections.
    pub fn agent(&self, environment: &[(&str, &str)]) -> Agent {
        self.start_agent(self.command(&["agent"]), environment)
    }

    /// As [`Pgark::agent`], on a host whose name is `node`.
    pub fn agent_on(&self, node: &str, environment: &[(&str, &str)]) -> Agent {
        let account = account::account();
        let mut command = Command::new("unshare");
        let change = if account.change {
            format!(
                "setpriv --reuid {} --regid {} --clear-groups",
                account.uid, account.gid
            )
        } else {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
            String::new()
        };
        let enter = format!("hostname \"$0\" && exec {change} \"$@\"");
        command.args(["--uts", "--", "sh", "-c", &enter, node]);
        command.arg(binary()).arg("--config").arg(&self.config);
        command.arg("agent").current_dir("/").stdin(Stdio::null());
        self.start_agent(command, environment)
    }

    fn start_agent(&self, mut command: Command, environment: &[(&str, &str)]) -> Agent {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.join("agent.log"))
            .unwrap();
        command.envs(environment.iter().copied());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let socket = self.socket();
        wait_until("the agent listens", Duration::from_secs(20), || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {ended:?}");
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Agent { child }
    }

    /// A counter of the running agent (`PGARK1 STATS`), such as `prefetch_hits`.
    #[track_caller]
    pub fn agent_counter(&self, name: &str) -> u64 {
        // The agent talks to its own user only, so root asks through a program of the account's.
        let mut asking = account::command("/usr/bin/perl");
        asking
            .args(["-MIO::Socket::UNIX", "-e"])
            .arg(
                "my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!; \
                 print $s \"PGARK1 STATS\\n\"; print scalar <$s>;",
            )
            .arg(self.socket());
        let answer = crate::cluster::run(&mut asking);
        let text = answer.trim_end().strip_prefix("OK ").expect("OK");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value[name].as_u64().expect(name)
    }

    /// What the agent logged so far.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.home.join("agent.log")).unwrap_or_default()
    }
}

fn cluster_section(cluster: &Cluster<'_>) -> String {
    format!(
        "[cluster]\nname = \"main\"\nconninfo = \"{}\"\ndata_directory = \"{}\"\n",
        cluster.conninfo("postgres"),
        cluster.data().display()
    )
}

/// A running agent; dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it with SIGTERM and returns its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        crate::process::signal(self.pid(), rustix::process::Signal::TERM);
        wait_until("the agent ends", Duration::from_secs(20), || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test, in a place that the account and the chroot can reach: `PGARK_BIN`, else
/// the one that Cargo built beside this test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = std::env::var_os("PGARK_BIN").map_or_else(
            || {
                // target/debug/deps/main-<hash>
                let test = std::env::current_exe().unwrap();
                test.parent().unwrap().parent().unwrap().join("pgark")
            },
            PathBuf::from,
        );
        let metadata = std::fs::metadata(&built)
            .unwrap_or_else(|error| panic!("{}: {error}; run make test", built.display()));
        let age = metadata
            .modified()
            .unwrap()
            .duration_since(UNIX_EPOCH)
            .unwrap();
        let name = format!("bin-{:x}-{:x}", metadata.len(), age.as_nanos());
        remove_old_copies(&name);
        let folder = test_root().join(name);
        let copy = folder.join("pgark");
        if !copy.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let new = folder.join(format!("pgark.{}", std::process::id()));
            directory::copy_program(&built, &new);
            check_faults(&new);
            std::fs::rename(&new, &copy).unwrap();
        }
        copy
    })
}

static MEASURING: AtomicBool = AtomicBool::new(false);

/// From now on this process measures: [`binary`] must be as users have it, without faults.
pub fn measure_release() {
    MEASURING.store(true, Ordering::Relaxed);
}

/// A binary without faults would let a test of a crash pass without a crash; one with them is not
/// what a bench is to measure.
fn check_faults(binary: &Path) {
    let bytes = std::fs::read(binary).unwrap();
    let mark = b"PGARK_FAULT_CRASH";
    let faults = bytes.windows(mark.len()).any(|window| window == mark);
    if MEASURING.load(Ordering::Relaxed) {
        assert!(
            !faults,
            "{} was built with the feature fault-injection; run make bench",
            binary.display()
        );
    } else {
        assert!(
            faults,
            "{} was built without the feature fault-injection; run make test",
            binary.display()
        );
    }
}

/// Removes copies of earlier builds that nobody can be running any more.
fn remove_old_copies(current: &str) {
    for entry in std::fs::read_dir(test_root()).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let made = entry.metadata().and_then(|metadata| metadata.modified());
        let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > COPY_LIFETIME));
        if name.starts_with("bin-") && name != current && old {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
