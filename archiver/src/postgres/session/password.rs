//! Where a password comes from when the connection string has none: `PGPASSWORD`, then the password
//! file, by libpq's rules (fe-connect.c, `passwordFromFile`).

use crate::{Error, Result};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Longer than any sensible password file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `PGPASSWORD`.
    pub(super) password: Option<Vec<u8>>,
    /// `PGPASSFILE`.
    pub(super) passfile: Option<PathBuf>,
    /// Where `.pgpass` is looked for.
    pub(super) home: Option<PathBuf>,
    /// Whom the server is asked for when the connection string names nobody.
    pub(super) user: Option<String>,
}

impl Environment {
    /// Of this process.
    pub(super) fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let account = account(rustix::process::geteuid().as_raw());
        let (user, home) = account.unzip();
        Self {
            password: set("PGPASSWORD").map(|value| value.as_bytes().to_vec()),
            passfile: set("PGPASSFILE").map(PathBuf::from),
            home: set("HOME").map(PathBuf::from).or(home),
            user,
        }
    }
}

/// The name and the home of a user, from /etc/passwd.
fn account(uid: u32) -> Option<(String, PathBuf)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, _, _, home, ..] = fields.as_slice() else {
            return None;
        };
        (number.parse() == Ok(uid)).then(|| ((*name).to_owned(), PathBuf::from(*home)))
    })
}

/// Gives `config` a password unless it has one. `default_host` is the socket directory that the
/// password file calls `localhost`.
///
/// # Errors
/// Kind Invalid, `passfile_ambiguous`, when several hosts have different passwords: one would be told
/// another's.
pub(super) fn fill(
    config: &mut Config,
    environment: &Environment,
    default_host: &str,
) -> Result<()> {
    if config
        .get_password()
        .is_some_and(|password| !password.is_empty())
    {
        return Ok(());
    }
    if let Some(password) = &environment.password {
        config.password(password);
        return Ok(());
    }
    let Some(text) = read_passfile(environment) else {
        return Ok(());
    };
    let Some(user) = config.get_user().or(environment.user.as_deref()) else {
        return Ok(());
    };
    let database = config.get_dbname().unwrap_or(user);
    let mut passwords = Vec::new();
    for (host, port) in places(config, default_host) {
        let wanted = [
            host.as_bytes(),
            port.as_bytes(),
            database.as_bytes(),
            user.as_bytes(),
        ];
        passwords.push(lookup(&text, wanted));
    }
    passwords.dedup();
    match passwords.as_slice() {
        [Some(password)] => {
            config.password(password);
            Ok(())
        }
        [] | [None] => Ok(()),
        _ => Err(Error::invalid(
            "passfile_ambiguous",
            "the hosts of the connection string have different passwords in the password file",
        )
        .with_hint("Name one host in \"conninfo\", or give all of them one password.")),
    }
}

/// The hosts and ports as the password file calls them.
fn places(config: &Config, default_host: &str) -> Vec<(String, String)> {
    let mut hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) if path == Path::new(default_host) => "localhost".to_owned(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    if hosts.is_empty() {
        hosts.extend(config.get_hostaddrs().iter().map(ToString::to_string));
    }
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts = hosts.into_iter().enumerate();
    hosts
        .map(|(at, host)| (host, port(at).to_string()))
        .collect()
}

/// The password file; `None` when there is none or it may not be used, which is logged as libpq
/// prints it.
fn read_passfile(environment: &Environment) -> Option<Vec<u8>> {
    let path = match (&environment.passfile, &environment.home) {
        (Some(path), _) => path.clone(),
        (None, Some(home)) => home.join(".pgpass"),
        (None, None) => return None,
    };
    let metadata = std::fs::metadata(&path).ok()?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        tracing::warn!("password file \"{}\" is not a plain file", path.display());
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "password file \"{}\" has group or world access and is ignored; permissions should be u=rw (0600) or less",
            path.display()
        );
        return None;
    }
    match std::fs::read(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::warn!(
                "could not read password file \"{}\": {error}",
                path.display()
            );
            None
        }
    }
}

/// The password of the first line that fits host, port, database and user.
fn lookup(text: &[u8], wanted: [&[u8]; 4]) -> Option<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines.filter(|line| !line.starts_with(b"#"));
    lines.find_map(|line| {
        let mut rest = line;
        for field in wanted {
            rest = matching(rest, field)?;
        }
        Some(unescaped(rest)).filter(|password| !password.is_empty())
    })
}

/// What follows the first field of `line`, when it is `*` or `wanted`. In a field, a backslash stands
/// before a colon or a backslash of its value.
fn matching<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (mut line, mut wanted) = (line, wanted);
    loop {
        match line {
            [b':', rest @ ..] if wanted.is_empty() => return Some(rest),
            [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
                wanted = wanted.strip_prefix(std::slice::from_ref(byte))?;
                line = rest;
            }
            [] => return None,
        }
    }
}

/// The password field: up to the next colon, if somebody has written more.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut password = Vec::new();
    let mut rest = field;
    loop {
        match rest {
            [] | [b':', ..] => return password,
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                password.push(*byte);
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn found(text: &str, wanted: [&str; 4]) -> Option<String> {
        let password = lookup(text.as_bytes(), wanted.map(str::as_bytes));
        password.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# *:*:*:*:comment\n\n\
            db1:5432:app:bob:one\r\n\
            db1:*:*:bob:two\n\
            db\\:2:5432:a\\\\b:bob:three\\:\\\\x:ignored\n\
            db3:5432:app:bob:\n\
            broken line\n\
            *:*:*:alice:four";
        for (wanted, expected) in [
            (["db1", "5432", "app", "bob"], Some("one")),
            (["db1", "5433", "app", "bob"], Some("two")),
            (["db1", "5432", "app2", "bob"], Some("two")),
            (["db:2", "5432", "a\\b", "bob"], Some("three:\\x")),
            (["db3", "5432", "app", "bob"], None),
            (["db1", "5432", "app", "bobby"], None),
            (["anything", "1", "*", "alice"], Some("four")),
            (["db10", "5432", "app", "bob"], None),
            (["db", "5432", "app", "bob"], None),
        ] {
            assert_eq!(found(text, wanted).as_deref(), expected, "{wanted:?}");
        }
        // A star is a wildcard only as the whole field.
        assert_eq!(found("d*:5432:a:b:x", ["db1", "5432", "a", "b"]), None);
        assert_eq!(found("**:1:a:b:x", ["x", "1", "a", "b"]), None);
        for garbage in ["", ":", "\\", "*", "*:*:*:*", "a\\"] {
            assert_eq!(found(garbage, ["a", "1", "a", "b"]), None, "{garbage}");
        }
    }

    fn filled(conninfo: &str, environment: &Environment) -> Result<Option<String>> {
        let mut config: Config = conninfo.parse().unwrap();
        fill(&mut config, environment, "/var/run/postgresql")?;
        let password = config.get_password();
        Ok(password.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
    }

    fn passfile(text: &str, mode: u32) -> (tempfile::TempDir, Environment) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".pgpass");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let environment = Environment {
            home: Some(home.path().to_owned()),
            user: Some("os_user".to_owned()),
            ..Environment::default()
        };
        (home, environment)
    }

    #[test]
    fn the_nearest_source_wins() {
        let (home, mut environment) = passfile("*:*:*:*:home", 0o600);
        let password = |conninfo: &str, environment: &Environment| {
            filled(conninfo, environment).unwrap().unwrap_or_default()
        };
        assert_eq!(password("host=a user=u", &environment), "home");
        let other = home.path().join("other");
        std::fs::write(&other, "*:*:*:*:file").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o400)).unwrap();
        environment.passfile = Some(other);
        assert_eq!(password("host=a user=u", &environment), "file");
        environment.password = Some(b"variable".to_vec());
        assert_eq!(password("host=a user=u", &environment), "variable");
        assert_eq!(password("host=a user=u password=own", &environment), "own");
        // A file that is named and missing is no reason to look at another, nor to fail.
        environment.password = None;
        environment.passfile = Some(home.path().join("missing"));
        assert_eq!(password("host=a user=u", &environment), "");
    }

    #[test]
    fn names_are_those_that_libpq_looks_for() {
        let text = "localhost:5432:os_user:os_user:socket\n\
            /tmp/x:5433:d:u:other\n\
            10.0.0.1:5432:d:u:address\n";
        let (_home, environment) = passfile(text, 0o600);
        let password = |conninfo: &str| filled(conninfo, &environment).unwrap();
        let expected = |text: &str| Some(text.to_owned());
        assert_eq!(password("host=/var/run/postgresql"), expected("socket"));
        assert_eq!(
            password("host=/tmp/x port=5433 user=u dbname=d"),
            expected("other")
        );
        assert_eq!(
            password("hostaddr=10.0.0.1 user=u dbname=d"),
            expected("address")
        );
        assert_eq!(password("host=/tmp/x user=u dbname=d"), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored() {
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            let (_home, environment) = passfile("*:*:*:*:x", mode);
            let password = filled("host=a user=u", &environment).unwrap();
            assert_eq!(password.is_some(), used, "{mode:o}");
        }
        let (home, mut environment) = passfile("*:*:*:*:x", 0o600);
        environment.passfile = Some(home.path().to_owned());
        assert_eq!(filled("host=a user=u", &environment).unwrap(), None);
    }

    /// One password goes to whichever host answers first.
    #[test]
    fn no_host_is_told_the_password_of_another() {
        let (_home, environment) = passfile("a:*:*:*:one\nb:*:*:*:two\n", 0o600);
        let error = filled("host=a,b user=u", &environment).unwrap_err();
        assert_eq!(error.code(), "passfile_ambiguous");
        assert!(filled("host=a,c user=u", &environment).is_err());
        let (_home, environment) = passfile("*:*:*:u:same\n", 0o600);
        let same = filled("host=a,b user=u", &environment).unwrap();
        assert_eq!(same.as_deref(), Some("same"));
        let none = filled("host=a,b user=v", &environment).unwrap();
        assert_eq!(none, None);
    }
}
