//! Finding and running Postgres's own programs: pg_dump, pg_dumpall, pg_restore, psql.

use super::wire::Address;
use crate::component::Context;
use crate::storage::s3::settings::secret;
use crate::{Error, Result};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where Debian has the programs of every major version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The last lines that a program said are shown up to so many characters.
const SAID_CHARS_MAX: usize = 800;
const POLL: Duration = Duration::from_millis(20);

/// The programs of one version.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    bin: PathBuf,
    prefix: Vec<String>,
}

impl Programs {
    /// Those in `bin`, or the oldest installed ones that are not older than the server: an older pg_dump
    /// refuses a newer server, and what a newer one writes may ask too much of this one.
    ///
    /// # Errors
    /// Kind Invalid: `programs_missing`, `programs_old`.
    pub(super) fn find(bin: Option<&Path>, prefix: &[String], major: u32) -> Result<Self> {
        let found = match bin {
            Some(bin) => bin.to_owned(),
            None => installed(Path::new(DEBIAN), major).ok_or_else(|| {
                Error::invalid(
                    "programs_missing",
                    format!("no pg_dump of Postgres {major} or newer was found"),
                )
                .with_detail(format!("Looked below {DEBIAN}."))
                .with_hint(format!(
                    "Install postgresql-client-{major}, or set bin_dir to where its programs are."
                ))
            })?,
        };
        let programs = Self {
            bin: found,
            prefix: prefix.to_vec(),
        };
        let said = programs.version("pg_dump")?;
        let own = said
            .rsplit_once(") ")
            .and_then(|(_, version)| {
                let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<u32>().ok()
            })
            .unwrap_or(0);
        if own < major {
            return Err(Error::invalid(
                "programs_old",
                format!("{said} is older than the server, which is of version {major}"),
            )
            .with_hint(format!(
                "Install postgresql-client-{major}, and correct bin_dir."
            )));
        }
        Ok(programs)
    }

    fn version(&self, program: &str) -> Result<String> {
        let path = self.bin.join(program);
        let output = self.command(program).arg("--version").output();
        let said = output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        said.ok_or_else(|| {
            Error::invalid(
                "programs_missing",
                format!("could not run \"{}\"", path.display()),
            )
            .with_hint("Set bin_dir to the directory that pg_dump and pg_restore are in.")
        })
    }

    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        match self.prefix.split_first() {
            None => Command::new(path),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(path);
                command
            }
        }
    }

    /// Runs a program against a server, to its end.
    ///
    /// # Errors
    /// Kind Unavailable, `cancelled`; `program_failed`, with what it said; I/O.
    pub(super) fn run(
        &self,
        context: &Context<'_>,
        server: &Server<'_>,
        run: &Run<'_>,
    ) -> Result<()> {
        let said = context.scratch.join("program.log");
        let log = File::create(&said).map_err(|e| Error::io("could not make a log file", e))?;
        let mut command = self.command(run.program);
        server.prepare(context, &mut command)?;
        let child = command
            .args(&run.arguments)
            .current_dir(context.scratch)
            .stdin(run.input.map_or_else(|| Ok(Stdio::null()), stdio)?)
            .stdout(run.output.map_or_else(|| Ok(Stdio::null()), stdio)?)
            .stderr(log)
            // A group of its own: Ctrl-C is ours to pass on, and workers end with it.
            .process_group(0)
            .spawn();
        let child = child.map_err(|e| {
            Error::invalid(
                "programs_missing",
                format!("could not run \"{}\"", self.bin.join(run.program).display()),
            )
            .with_source(e)
        })?;
        wait(context, child, run.program, &said)
    }
}

fn stdio(file: &File) -> Result<Stdio> {
    let copy = file.try_clone();
    copy.map(Stdio::from)
        .map_err(|e| Error::io("could not pass a file on", e))
}

/// A program and what it gets.
pub(super) struct Run<'a> {
    /// Its name.
    pub program: &'static str,
    /// Without what says where the server is.
    pub arguments: Vec<String>,
    /// Its standard input.
    pub input: Option<&'a File>,
    /// Its standard output.
    pub output: Option<&'a File>,
}

/// The server and the database that a program works on.
pub(super) struct Server<'a> {
    /// Where it is.
    pub address: &'a Address,
    /// Which database.
    pub database: &'a str,
}

impl Server<'_> {
    /// Says where the server is: by the environment, the password by a file that nobody else may read.
    /// Neither shows in a list of processes.
    fn prepare(&self, context: &Context<'_>, command: &mut Command) -> Result<()> {
        // What is set for other programs must not lead this one elsewhere.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        let address = self.address;
        command
            .env("PGHOST", &address.host)
            .env("PGPORT", address.port.to_string())
            .env("PGUSER", &address.user)
            .env("PGDATABASE", self.database)
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGAPPNAME", "pgark dump")
            // A certificate and key in the home directory are somebody else's.
            .env("PGSSLCERT", "/nonexistent")
            .env("LC_ALL", "C");
        if !address.is_socket() {
            command.env("PGSSLMODE", address.tls.sslmode());
            if let Some(path) = &address.ca_file {
                command.env("PGSSLROOTCERT", path);
            }
        }
        let Some(reference) = &address.password else {
            command.env("PGPASSFILE", "/dev/null");
            return Ok(());
        };
        let path = context.scratch.join("passfile");
        if !path.exists() {
            let password = secret("password", reference)?;
            let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
            let failed = |e| Error::io("could not write a password file", e);
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            file.write_all(format!("*:*:*:*:{escaped}\n").as_bytes())
                .map_err(failed)?;
        }
        command.env("PGPASSFILE", path);
        Ok(())
    }
}

/// The directory of the oldest version that is not older than `major`.
fn installed(below: &Path, major: u32) -> Option<PathBuf> {
    let versions = std::fs::read_dir(below).ok()?.flatten();
    let usable = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        (version >= major && bin.join("pg_dump").exists()).then_some((version, bin))
    });
    usable.min().map(|(_, bin)| bin)
}

fn wait(context: &Context<'_>, mut child: Child, program: &str, said: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("could not wait for {program}"), e);
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            if status.success() {
                return Ok(());
            }
            let text = std::fs::read_to_string(said).unwrap_or_default();
            let skip = text.chars().count().saturating_sub(SAID_CHARS_MAX);
            let text: String = text.trim().chars().skip(skip).collect();
            return Err(Error::unavailable(
                "program_failed",
                format!("{program} failed: {status}"),
            )
            .with_detail(format!("It said: {text}")));
        }
        if let Err(cancelled) = context.cancel.check() {
            kill_group(&child);
            let _ = child.wait();
            return Err(cancelled);
        }
        std::thread::sleep(POLL);
    }
}

fn kill_group(child: &Child) {
    let group = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_is_not_too_old_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["14", "15", "17", "x"] {
            let bin = folder.path().join(version).join("bin");
            std::fs::create_dir_all(&bin).unwrap();
            if version != "15" {
                std::fs::write(bin.join("pg_dump"), "").unwrap();
            }
        }
        let found = |major| installed(folder.path(), major);
        assert_eq!(found(14), Some(folder.path().join("14/bin")));
        assert_eq!(found(15), Some(folder.path().join("17/bin")));
        assert_eq!(found(18), None);
    }
}
