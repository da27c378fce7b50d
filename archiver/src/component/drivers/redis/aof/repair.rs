//! Cutting a damaged append-only file back. The original is kept.

use super::{State, check};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Nothing had to be.
    Nothing,
    /// The file was cut.
    Cut {
        /// The file.
        path: PathBuf,
        /// As it was before.
        original: PathBuf,
        /// Bytes cut off.
        lost_bytes: u64,
    },
}

/// Cuts the append-only file in `data_dir` back to its last whole command. The server must be down. The
/// damaged file is copied aside first; a crash in between leaves both.
///
/// # Errors
/// Kind Data, `aof_lost`, when it needs a restore; Unavailable when the disk is full, with nothing
/// changed.
pub fn repair(data_dir: &Path, scratch: &Path, now: DateTime<Utc>) -> Result<Repair> {
    let flaw = match check(data_dir, scratch)? {
        State::Absent | State::Whole(_) => return Ok(Repair::Nothing),
        State::Repairable(flaw) => flaw,
        State::Lost(flaw) => {
            return Err(Error::data(
                "aof_lost",
                format!(
                    "\"{}\" cannot be repaired: {}",
                    flaw.path.display(),
                    flaw.why
                ),
            )
            .with_hint("Restore the component from a backup."));
        }
    };
    let mut original = flaw.path.clone().into_os_string();
    original.push(now.format(".damaged-%Y%m%dT%H%M%SZ").to_string());
    let original = PathBuf::from(original);
    keep(&flaw.path, &original)?;
    let failed = |e| Error::io(format!("could not cut \"{}\"", flaw.path.display()), e);
    let file = File::options()
        .write(true)
        .open(&flaw.path)
        .map_err(failed)?;
    file.set_len(flaw.good_bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(Repair::Cut {
        path: flaw.path,
        original,
        lost_bytes: flaw.lost_bytes,
    })
}

/// A durable copy, with the owner of the original where we may set it.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("could not write \"{}\"", to.display()), e);
    let mut source = File::open(from)
        .map_err(|e| Error::io(format!("could not read \"{}\"", from.display()), e))?;
    let meta = source.metadata().map_err(failed)?;
    let mut options = File::options();
    let mut copy = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(failed)?;
    let copied = std::io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all());
    if let Err(error) = copied {
        // Half a copy is no original.
        let _ = std::fs::remove_file(to);
        return Err(failed(error));
    }
    // Ours alone when we may not give it away.
    let _ = std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()));
    let folder = to.parent().unwrap_or(to);
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(failed)
}
