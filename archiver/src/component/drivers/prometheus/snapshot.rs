//! A snapshot in the server's data directory: made by the server, removed by us.
//!
//! It is marked as ours and locked while it is read, so that one which a crash left behind can be told from
//! one that somebody is reading, and from those of other programs.

use super::super::http::Http;
use super::request::{self, Request};
use super::{line, text};
use crate::component::CheckLine;
use crate::{Error, Result};
use reqwest::StatusCode;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};

pub(super) const FOLDER: &str = "snapshots";
/// In a snapshot's directory: it is ours.
pub(super) const MARK: &str = "pgark.lock";

/// A snapshot that is there. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Snapshot {
    path: PathBuf,
    /// Its name, as the server chose it.
    pub(super) name: String,
    /// Held until the end.
    _lock: File,
}

impl Snapshot {
    /// Has one made.
    ///
    /// # Errors
    /// Kind Invalid: `prometheus_admin_api` when the server may not, `prometheus_data_dir` when it does not
    /// appear where it should; those of the server.
    pub(super) fn make(http: &Http, data_dir: &Path) -> Result<Self> {
        sweep(data_dir)?;
        request::sweep(data_dir)?;
        let request = Request::note(data_dir)?;
        let url = http.url(&["api", "v1", "admin", "tsdb", "snapshot"]);
        let answer = http.answer(http.request(reqwest::Method::POST, url));
        crate::fault::point("prometheus:snapshot_made");
        let (status, answer) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // It may have made one, or be at it.
                request.lost();
                return Err(error);
            }
        };
        let why = text(&answer, "error");
        let is_disabled = why.contains("admin APIs disabled");
        match status {
            // Of a proxy: the server may be at it.
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => request.lost(),
            // What it had begun it leaves there. Of what it turned away at the door there is nothing.
            failed if failed.is_server_error() && !is_disabled => request.failed(),
            _ => {}
        }
        if is_disabled {
            return Err(Error::invalid(
                "prometheus_admin_api",
                format!("{} may not make snapshots", http.name()),
            )
            .with_detail(format!("It said: {why}."))
            .with_hint("Start Prometheus with --web.enable-admin-api."));
        }
        if !status.is_success() {
            return Err(http.refusal(status, &answer));
        }
        let name = answer
            .get("data")
            .map(|data| text(data, "name"))
            .unwrap_or_default();
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(http.not_understood("it names no snapshot"));
        }
        let path = data_dir.join(FOLDER).join(name);
        if !path.is_dir() {
            return Err(Error::invalid(
                "prometheus_data_dir",
                format!("the snapshot \"{name}\" is not below \"{}\"", data_dir.display()),
            )
            .with_hint(
                "Set data_dir to the server's --storage.tsdb.path as this host sees it, and remove the \
                 snapshot there.",
            ));
        }
        let failed = |e| marking(&path, e);
        let marked = File::create_new(path.join(MARK))
            .and_then(|lock| {
                flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
                Ok(lock)
            })
            .map_err(failed);
        match marked {
            Ok(lock) => Ok(Self {
                name: name.to_owned(),
                path,
                _lock: lock,
            }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    /// The files of its blocks, relative to it, sorted.
    ///
    /// # Errors
    /// Kind Unavailable when it cannot be read.
    pub(super) fn files(&self) -> Result<Vec<(String, u64)>> {
        files(&self.path)
    }

    /// Opens one of them.
    ///
    /// # Errors
    /// Kind Unavailable when it cannot be read.
    pub(super) fn open(&self, file: &str) -> Result<File> {
        let path = self.path.join(file);
        File::open(&path)
            .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))
    }

    /// Removes it, and says when that fails.
    ///
    /// # Errors
    /// Kind Unavailable.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).map_err(|e| {
            Error::io(
                format!("could not remove the snapshot \"{}\"", self.path.display()),
                e,
            )
        })
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

pub(super) fn marking(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("could not write to \"{}\"", path.display()), error)
        .with_hint("pgark must be able to write there: it has to remove the snapshot.")
}

/// The regular files below `root`, relative, sorted; without our mark.
pub(super) fn files(root: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let failed = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| {
                Error::data("prometheus_block", "a file of a block has no readable name")
            })?;
            let relative = match folder.as_str() {
                "" => name.to_owned(),
                folder => format!("{folder}/{name}"),
            };
            let meta = entry.metadata().map_err(failed)?;
            if meta.is_dir() {
                folders.push(relative);
            } else if meta.is_file() && relative != MARK {
                found.push((relative, meta.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what a crash of ours left behind.
fn sweep(data_dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(data_dir.join(FOLDER)) else {
        // Before the first snapshot there is no such folder.
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(mark) = File::options().write(true).open(path.join(MARK)) else {
            continue;
        };
        if flock(&mark, FlockOperation::NonBlockingLockExclusive).is_ok() {
            std::fs::remove_dir_all(&path).map_err(|e| {
                Error::io(
                    format!("could not remove the old snapshot \"{}\"", path.display()),
                    e,
                )
            })?;
        }
    }
    Ok(())
}

/// Whether we can read the data directory and remove snapshots.
pub(super) fn check(data_dir: &Path) -> CheckLine {
    const NAME: &str = "data_dir";
    const HINT: &str = "Set data_dir to the server's --storage.tsdb.path as this host sees it, and run pgark as \
        the server's user.";
    if let Err(error) = std::fs::read_dir(data_dir) {
        return line(
            NAME,
            false,
            format!("{}: {error}", data_dir.display()),
            HINT,
        );
    }
    let folder = data_dir.join(FOLDER);
    let place = if folder.is_dir() { &folder } else { data_dir };
    let writable = rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_ok();
    let left = request::snapshots(data_dir).len();
    let detail = match (writable, left) {
        (false, _) => format!(
            "{} is not writable: snapshots could not be removed",
            place.display()
        ),
        (true, 0) => data_dir.display().to_string(),
        (true, left) => format!("{}, with {left} snapshots of others", data_dir.display()),
    };
    line(NAME, writable, detail, HINT)
}
