//! The directory that the nodes and this host see, the names within it, and its files.

use crate::cancel::CancelToken;
use crate::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What all names of ours begin with.
pub(super) const PREFIX: &str = "pgark-";

/// Where repositories lie.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// As this host sees it.
    pub(super) dir: PathBuf,
    /// As the nodes see it, without a slash at its end.
    pub(super) location: String,
    /// `pgark-<component>-`.
    prefix: String,
}

impl Place {
    pub(super) fn new(component: &str, dir: PathBuf, location: &str) -> Self {
        Self {
            dir,
            location: location.trim_end_matches('/').to_owned(),
            prefix: format!("{PREFIX}{}-", component.to_lowercase()),
        }
    }

    /// A name that nothing has had: of a repository, of its directory and of the snapshot in it.
    pub(super) fn fresh_name(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let micros = chrono::Utc::now().timestamp_micros();
        let number = NEXT.fetch_add(1, Ordering::Relaxed) & 0xff;
        let process = std::process::id() & 0xffff;
        format!("{}{micros:x}{process:04x}{number:02x}", self.prefix)
    }

    /// Whether [`Place::fresh_name`] of this component, in whatever process, made it.
    pub(super) fn is_ours(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|stamp| {
            stamp.len() >= 16
                && stamp
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    }

    /// The directory of a repository, as this host sees it.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as the nodes see it.
    pub(super) fn location_of(&self, name: &str) -> String {
        format!("{}/{name}", self.location)
    }

    /// Makes the directory of a repository, so that it is ours to remove: what the nodes make in it is
    /// removed by themselves but for an empty directory. Who may write there is what the directory above
    /// says. Where pgark may not, the nodes make it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn make_folder(&self, name: &str) -> Result<()> {
        let above = std::fs::metadata(&self.dir).map_err(|e| reading(&self.dir, e))?;
        let folder = self.folder(name);
        match std::fs::create_dir(&folder) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
            Err(e) => {
                return Err(Error::io(
                    format!("could not make \"{}\"", folder.display()),
                    e,
                ));
            }
        }
        give(&folder, &above);
        // Whatever the umask is; after the group, whose change takes set-id bits away.
        let mode = std::fs::Permissions::from_mode((above.mode() & 0o7777) | 0o700);
        std::fs::set_permissions(&folder, mode).map_err(|e| {
            Error::io(
                format!("could not set the mode of \"{}\"", folder.display()),
                e,
            )
        })
    }

    /// Names in the directory that are ours.
    ///
    /// # Errors
    /// Kind Unavailable when it cannot be read.
    pub(super) fn folders(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| reading(&self.dir, e))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| self.is_ours(name)).collect())
    }

    /// Takes the place for this component's work: what is found there under our names is then nobody's.
    /// It waits for at most `limit`.
    ///
    /// # Errors
    /// Kind Unavailable: `elasticsearch_busy`, or that the directory is not there.
    pub(super) fn lock(&self, cancel: &CancelToken, limit: Duration) -> Result<File> {
        // Of the directory itself: nothing is left in it, and no right to write is needed.
        let dir = File::open(&self.dir).map_err(|e| reading(&self.dir, e))?;
        let began = Instant::now();
        loop {
            cancel.check()?;
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(dir),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() >= limit => {
                    return Err(Error::unavailable(
                        "elasticsearch_busy",
                        format!("\"{}\" is in use by another pgark", self.dir.display()),
                    )
                    .with_hint("Wait for the other backup or restore to end."));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                // Some network file systems lock no directories. What a lock would tell apart is then
                // two runs of one component at once, which the agent does not start.
                Err(error) => {
                    tracing::warn!(%error, "could not lock \"{}\"", self.dir.display());
                    return Ok(dir);
                }
            }
        }
    }
}

/// Gives `path` to the owner of `like` and its group: as root, or to the group within our own; else
/// everything is ours.
pub(super) fn give(path: &Path, like: &std::fs::Metadata) {
    use std::os::unix::fs::chown;
    if chown(path, Some(like.uid()), Some(like.gid())).is_err() {
        let _ = chown(path, None, Some(like.gid()));
    }
}

/// An error of reading.
pub(super) fn reading(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("could not read \"{}\"", path.display()), error).with_hint(
        "repository_dir must be the nodes' own directory, as this host sees it, and pgark must be able to \
         read what they write there: run it as a member of their group.",
    )
}

/// The regular files below `root`, relative to it, sorted, with their sizes.
///
/// # Errors
/// Kind Unavailable when one cannot be read; Data for what is neither file nor directory.
pub(super) fn files(root: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in std::fs::read_dir(&path).map_err(|e| reading(&path, e))? {
            let entry = entry.map_err(|e| reading(&path, e))?;
            let strange = || {
                Error::data(
                    "elasticsearch_damaged",
                    format!("\"{}\" is nothing of a snapshot", entry.path().display()),
                )
            };
            let name = entry.file_name().into_string().map_err(|_| strange())?;
            let relative = match folder.as_str() {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            let meta = entry.metadata().map_err(|e| reading(&entry.path(), e))?;
            match (meta.is_dir(), meta.is_file()) {
                (true, _) => folders.push(relative),
                (_, true) => found.push((relative, meta.len())),
                _ => return Err(strange()),
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        let place = |component: &str| Place::new(component, "/x".into(), "/y/");
        let (search, longer) = (place("Search"), place("search-a"));
        let (one, other) = (search.fresh_name(), search.fresh_name());
        assert_ne!(one, other);
        assert!(one.starts_with("pgark-search-"), "{one}");
        assert!(search.is_ours(&one) && search.is_ours(&other));
        let name = longer.fresh_name();
        assert!(!search.is_ours(&name) && !longer.is_ours(&one), "{name}");
        for name in [
            "pgark-search-",
            "pgark-search-abc",
            "nightly",
            "pgark-search-000000000000000G",
        ] {
            assert!(!search.is_ours(name), "{name}");
        }
        assert_eq!(search.location_of("n"), "/y/n");
        assert_eq!(search.folder("n"), Path::new("/x/n"));
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new("a", dir.path().to_owned(), "/y");
        let cancel = CancelToken::default();
        let held = place.lock(&cancel, Duration::ZERO).unwrap();
        let busy = place.lock(&cancel, Duration::ZERO).unwrap_err();
        assert_eq!(busy.code(), "elasticsearch_busy");
        drop(held);
        place.lock(&cancel, Duration::ZERO).unwrap();
        let gone = Place::new("a", dir.path().join("gone"), "/y");
        assert_eq!(
            gone.lock(&cancel, Duration::ZERO).unwrap_err().code(),
            "not_found"
        );
    }

    #[test]
    fn files_are_listed_and_links_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        std::fs::write(dir.path().join("b/c/d"), "12").unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        let found = files(dir.path()).unwrap();
        assert_eq!(found, [("a".to_owned(), 0), ("b/c/d".to_owned(), 2)]);
        std::os::unix::fs::symlink("/etc", dir.path().join("b/link")).unwrap();
        assert_eq!(
            files(dir.path()).unwrap_err().code(),
            "elasticsearch_damaged"
        );
    }
}
