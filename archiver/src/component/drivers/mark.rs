//! Names on a server that say that something there is ours, and whose: so that a later run can tell what a
//! dead one has left.
//!
//! Qdrant names snapshots itself, and keeps them until somebody deletes them: an alias with a name of ours
//! stands beside each while it exists. Files that are uploaded for a restore, and collections and databases
//! that a restore fills, have such a name themselves.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// How every such name begins.
const PREFIX: &str = "pgark-";
/// Of another host nobody here can say whether its process lives: after this long it does not.
const FOREIGN_SECONDS_MAX: i64 = 24 * 3600;
/// The names of this process that are in use.
static IN_USE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// An alias: a snapshot of its collection is being made or read.
    Snapshot,
    /// A file that was uploaded for a restore.
    Upload,
    /// A collection or database that a restore fills: a half, which the next restore drops once it is dead.
    Restoring,
    /// The same when it is complete, until it gets the name that is wanted. Nobody but its user drops it.
    Restored,
    /// What had that name until then; likewise its user's.
    Replaced,
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Upload => "upload",
            Self::Restoring => "restoring",
            Self::Restored => "restored",
            Self::Replaced => "replaced",
        }
    }
}

/// A name, taken apart: `pgark-<what>-<host>-<process>-<seconds>-<number>[-<of>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// What it stands for.
    pub what: What,
    host: String,
    process: u32,
    /// When, by the server's clock, in seconds since 1970.
    pub at: i64,
    number: u64,
    /// Which snapshot, once its name is known: [`fingerprint`] of it.
    pub of: Option<String>,
}

impl Mark {
    /// A new one of this process; `at` is the server's time, or ours where it does not tell.
    pub(super) fn new(what: What, at: i64) -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        Self {
            what,
            host: this_host(),
            process: std::process::id(),
            at,
            number: NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            of: None,
        }
    }

    /// As [`Mark::new`], of the snapshot `name`.
    pub(super) fn of(&self, name: &str) -> Self {
        Self {
            of: Some(fingerprint(name)),
            ..self.clone()
        }
    }

    /// The name.
    pub(super) fn name(&self) -> String {
        let (what, of) = (self.what.word(), self.of.as_deref());
        let of = of.map(|of| format!("-{of}")).unwrap_or_default();
        format!(
            "{PREFIX}{what}-{}-{}-{}-{}{of}",
            self.host, self.process, self.at, self.number
        )
    }

    /// What `name` says, if it is one of ours. Uploaded files end in `.snapshot`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".snapshot").unwrap_or(name);
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let what = match parts.next()? {
            "snapshot" => What::Snapshot,
            "upload" => What::Upload,
            "restoring" => What::Restoring,
            "restored" => What::Restored,
            "replaced" => What::Replaced,
            _ => return None,
        };
        let host = parts.next().filter(|host| is_hex(host, 8))?.to_owned();
        let process = parts.next()?.parse().ok()?;
        let at = parts.next()?.parse().ok()?;
        let number = parts.next()?.parse().ok()?;
        let of = match parts.next() {
            None => None,
            Some(of) if is_hex(of, 16) => Some(of.to_owned()),
            Some(_) => return None,
        };
        parts.next().is_none().then_some(Self {
            what,
            host,
            process,
            at,
            number,
            of,
        })
    }

    /// Whether whoever made it may still be at work; `now` is the server's time.
    pub(super) fn is_alive(&self, now: i64) -> bool {
        if self.host != this_host() {
            return now.saturating_sub(self.at) < FOREIGN_SECONDS_MAX;
        }
        if self.process == std::process::id() {
            let base = Self {
                of: None,
                ..self.clone()
            };
            return in_use().contains(&base.name());
        }
        // Not /proc, which may hide the processes of others. They refuse the signal, and so exist.
        let process = i32::try_from(self.process).ok();
        process
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|process| {
                rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH)
            })
    }

    /// Says that this process works with it, until the answer is dropped.
    pub(super) fn hold(&self) -> Held {
        let base = Self {
            of: None,
            ..self.clone()
        };
        let name = base.name();
        in_use().insert(name.clone());
        Held(name)
    }
}

fn in_use() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`Mark::hold`].
#[derive(Debug)]
pub(super) struct Held(String);

impl Drop for Held {
    fn drop(&mut self) {
        in_use().remove(&self.0);
    }
}

/// A short name for a long one: an alias may hold 255 bytes, as a snapshot's name may.
pub(super) fn fingerprint(name: &str) -> String {
    let mut text = hex(&Sha256::digest(name.as_bytes()));
    text.truncate(16);
    text
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Which host this is, without telling its name to everybody who lists aliases. Containers may share name and
/// machine-id and still number their processes each from 1: the namespace of the numbers belongs to it.
fn this_host() -> String {
    let name = rustix::system::uname().nodename().to_bytes().to_vec();
    let id = std::fs::read("/etc/machine-id").unwrap_or_default();
    let numbers = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let mut text = hex(&Sha256::new()
        .chain_update(name)
        .chain_update(id)
        .chain_update(numbers.as_os_str().as_encoded_bytes())
        .finalize());
    text.truncate(8);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_are_not_ours() {
        let mark = Mark::new(What::Snapshot, 1_700_000_000);
        assert_eq!(Mark::parse(&mark.name()), Some(mark.clone()));
        let known = mark.of("docs-1-2026-01-01-00-00-00.snapshot");
        assert_eq!(Mark::parse(&known.name()), Some(known.clone()));
        assert_eq!(known.of.as_deref().map(str::len), Some(16));
        let upload = Mark::new(What::Upload, 5);
        assert_eq!(
            Mark::parse(&format!("{}.snapshot", upload.name())),
            Some(upload)
        );
        for what in [What::Restoring, What::Restored, What::Replaced] {
            let mark = Mark::new(what, 1_700_000_000);
            // Postgres cuts names off.
            assert!(mark.name().len() < 64, "{}", mark.name());
            assert_eq!(Mark::parse(&mark.name()), Some(mark));
        }
        for name in [
            "",
            "docs",
            "pgark-",
            "pgark-docs",
            "pgark-snapshot-x-1-1-1",
            "pgark-snapshot-0123abcd-1-1",
            "pgark-snapshot-0123abcd-1-1-1-short",
            "pgark-snapshot-0123abcd-1-1-1-0123456789abcdef-1",
            "pgark-other-0123abcd-1-1-1",
        ] {
            assert_eq!(Mark::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_dead_are_told_from_the_living() {
        let mark = Mark::new(What::Snapshot, 1000);
        assert!(!mark.is_alive(1000), "nobody in this process holds it");
        let held = mark.hold();
        assert!(mark.is_alive(1000) && mark.of("x").is_alive(1_000_000_000));
        drop(held);
        assert!(!mark.is_alive(1000));
        // Larger than any process id that Linux gives.
        let dead = Mark {
            process: 1 << 23,
            ..mark.clone()
        };
        assert!(!dead.is_alive(1000));
        let none = Mark {
            process: u32::MAX,
            ..mark.clone()
        };
        assert!(!none.is_alive(1000));
        // Another user's, where tests do not run as root.
        let first = Mark {
            process: 1,
            ..mark.clone()
        };
        assert!(first.is_alive(1_000_000_000));
        let foreign = Mark {
            host: "00000000".to_owned(),
            ..mark
        };
        assert!(foreign.is_alive(1000 + 3600) && !foreign.is_alive(1000 + 25 * 3600));
    }
}
