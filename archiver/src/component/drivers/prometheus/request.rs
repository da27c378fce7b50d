//! A request for a snapshot, noted before it is made.
//!
//! The server names a snapshot in its answer, and makes it whoever still listens. Without the answer nothing but the
//! note tells which one is ours: the one that was not there before, and whose name is of the time of the request.

use super::snapshot::{FOLDER, MARK, marking};
use crate::Result;
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How the names of notes begin.
const NOTE: &str = "pgark.request-";
/// The largest note that is read.
const NOTE_BYTES_MAX: u64 = 16 << 20;
/// How often a new note is begun, when a backup of another pgark takes it for a leftover.
const BEGINNINGS_MAX: u32 = 10;
/// For how long after a request of a pgark that was killed the server may have begun.
const BEGIN_SECONDS_MAX: i64 = 60;

/// What stands in a note.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// When the server was asked.
    from: DateTime<Utc>,
    /// When its answer was given up.
    until: Option<DateTime<Utc>>,
    /// The snapshots that were there before.
    before: BTreeSet<String>,
}

/// A noted request. Dropping it removes the note: what it asked for is known.
#[derive(Debug)]
pub(super) struct Request {
    data_dir: PathBuf,
    path: PathBuf,
    /// Locked until the end: the note of a pgark that lives is no leftover.
    file: File,
    note: Note,
    keep: bool,
}

impl Request {
    /// Writes the note.
    ///
    /// # Errors
    /// When it cannot be written: then a snapshot could not be removed either.
    pub(super) fn note(data_dir: &Path) -> Result<Self> {
        // The server makes the folder with its first snapshot; ours might not be its own to write to.
        let folder = data_dir.join(FOLDER);
        let place = match folder.is_dir() {
            true => folder,
            false => data_dir.to_owned(),
        };
        let (path, file) = begin(&place).map_err(|e| marking(&place, e))?;
        let mut request = Self {
            data_dir: data_dir.to_owned(),
            path,
            file,
            note: Note {
                from: Utc::now(),
                until: None,
                before: snapshots(data_dir),
            },
            keep: false,
        };
        request.write().map_err(|e| marking(&place, e))?;
        Ok(request)
    }

    fn write(&mut self) -> std::io::Result<()> {
        let text = serde_json::to_vec(&self.note)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.set_len(0)?;
        self.file.write_all(&text)
    }

    /// The server failed: it makes nothing any more, and may have begun.
    pub(super) fn failed(mut self) {
        self.note.until = Some(Utc::now());
        remove(&self.data_dir, &self.note);
    }

    /// Nobody knows what became of it. What there is goes now; the note stays for the next backup, since the
    /// server may still be at work.
    pub(super) fn lost(mut self) {
        self.note.until = Some(Utc::now());
        // Whoever removes ours of several leaves one, which must not pass for ours then.
        let several = remove(&self.data_dir, &self.note);
        self.note.before.extend(several);
        self.keep = true;
        if let Err(error) = self.write() {
            tracing::warn!("could not write to \"{}\": {error}", self.path.display());
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes the file of a note, and locks it.
fn begin(place: &Path) -> std::io::Result<(PathBuf, File)> {
    for n in 0..BEGINNINGS_MAX {
        let now = Utc::now().timestamp_nanos_opt().unwrap_or_default();
        let path = place.join(format!("{NOTE}{}-{now}-{n}", std::process::id()));
        let file = File::create_new(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path) => return Ok((path, file)),
            // Until it is locked it looks like a leftover.
            Ok(()) | Err(Errno::WOULDBLOCK) => {
                let _ = std::fs::remove_file(&path);
            }
            Err(error) => {
                let _ = std::fs::remove_file(&path);
                return Err(error.into());
            }
        }
    }
    Err(Errno::WOULDBLOCK.into())
}

/// Whether `file` is what `path` names: not when somebody else has removed it meanwhile.
fn is_at(file: &File, path: &Path) -> bool {
    let there = std::fs::symlink_metadata(path);
    let same = file.metadata().and_then(|own| Ok((own, there?)));
    same.is_ok_and(|(own, there)| (own.dev(), own.ino()) == (there.dev(), there.ino()))
}

/// The names of the snapshots below `data_dir`.
pub(super) fn snapshots(data_dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(data_dir.join(FOLDER));
    let entries = entries.into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// When the server began with the snapshot of this name (`20260101T000000Z-<hexadecimal>`,
/// Prometheus's `web/api/v1/api.go`).
fn begun(name: &str) -> Option<DateTime<Utc>> {
    let (time, random) = name.split_once('-')?;
    if random.is_empty() || !random.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let time = NaiveDateTime::parse_from_str(time, "%Y%m%dT%H%M%SZ").ok()?;
    Some(time.and_utc())
}

/// Removes the snapshot that was made for a request. Where several may be it none is removed: the others are of
/// other programs; their names.
fn remove(data_dir: &Path, note: &Note) -> BTreeSet<String> {
    let until = note.until.unwrap_or_else(|| {
        let most = TimeDelta::seconds(BEGIN_SECONDS_MAX);
        note.from.checked_add_signed(most).unwrap_or(note.from)
    });
    let folder = data_dir.join(FOLDER);
    let mut ours = snapshots(data_dir);
    ours.retain(|name| {
        // Names are of whole seconds.
        let is_of_the_time = |at: DateTime<Utc>| {
            at.timestamp() >= note.from.timestamp() && at.timestamp() <= until.timestamp()
        };
        !note.before.contains(name)
            && begun(name).is_some_and(is_of_the_time)
            && !folder.join(name).join(MARK).exists()
    });
    if ours.len() > 1 {
        let names: Vec<&str> = ours.iter().map(String::as_str).collect();
        tracing::warn!(
            "one of these snapshots in \"{}\" was made for pgark, and is not needed: {}",
            folder.display(),
            names.join(", ")
        );
        return ours;
    }
    for name in ours {
        let path = folder.join(name);
        match std::fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!("removed the unused snapshot \"{}\"", path.display()),
            Err(error) => tracing::warn!(
                "could not remove the unused snapshot \"{}\": {error}",
                path.display()
            ),
        }
    }
    BTreeSet::new()
}

/// Removes what requests have left whose answers nobody got.
///
/// # Errors
/// Kind Unavailable when a note cannot be removed.
pub(super) fn sweep(data_dir: &Path) -> Result<()> {
    for folder in [data_dir.join(FOLDER), data_dir.to_owned()] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in entries {
            let is_note = entry
                .file_name()
                .to_str()
                .is_some_and(|n| n.starts_with(NOTE));
            if !is_note || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let path = entry.path();
            let Ok(file) = File::options().read(true).write(true).open(&path) else {
                continue;
            };
            // The request may have gone well meanwhile, and its note with it.
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
                || !is_at(&file, &path)
            {
                continue;
            }
            let mut text = Vec::new();
            let read = (&file).take(NOTE_BYTES_MAX).read_to_end(&mut text);
            // One that was not written to its end was of a request that was not made.
            if let (Ok(_), Ok(note)) = (read, serde_json::from_slice::<Note>(&text)) {
                remove(data_dir, &note);
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(marking(&path, e)),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(data_dir: &Path, at: DateTime<Utc>, random: &str) -> String {
        let name = format!("{}-{random}", at.format("%Y%m%dT%H%M%SZ"));
        std::fs::create_dir_all(data_dir.join(FOLDER).join(&name).join("block")).unwrap();
        name
    }

    #[test]
    fn what_was_made_for_a_lost_request_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path();
        let earlier = made(data_dir, Utc::now(), "1f");
        let request = Request::note(data_dir).unwrap();
        let now = request.note.from;
        let ours = made(data_dir, now, "abc0");
        let marked = made(data_dir, now, "abc1");
        std::fs::write(data_dir.join(FOLDER).join(&marked).join(MARK), "").unwrap();
        let later = made(data_dir, now + TimeDelta::hours(1), "2");
        std::fs::create_dir(data_dir.join(FOLDER).join("theirs")).unwrap();
        // A run that is under way sweeps nothing of another one's.
        sweep(data_dir).unwrap();
        assert!(snapshots(data_dir).contains(&ours));
        request.lost();
        let kept = BTreeSet::from([earlier, marked, later, "theirs".to_owned()]);
        assert_eq!(snapshots(data_dir), kept);
        // The server was still at it: the next run removes what has come since.
        made(data_dir, now, "abc2");
        sweep(data_dir).unwrap();
        assert_eq!(snapshots(data_dir), kept);
        let left = std::fs::read_dir(data_dir.join(FOLDER)).unwrap().count();
        assert_eq!(left, kept.len(), "the note is gone");
    }

    #[test]
    fn of_two_that_may_be_ours_none_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path();
        // Before the first snapshot there is no folder.
        let request = Request::note(data_dir).unwrap();
        let both: BTreeSet<String> = ["1", "2"]
            .map(|n| made(data_dir, request.note.from, n))
            .into();
        request.failed();
        assert_eq!(snapshots(data_dir), both);
        assert_eq!(std::fs::read_dir(data_dir).unwrap().count(), 1);
    }

    #[test]
    fn once_ours_of_two_was_removed_by_hand_the_other_one_stays() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path();
        let request = Request::note(data_dir).unwrap();
        let now = request.note.from;
        let [ours, theirs] = ["1", "2"].map(|n| made(data_dir, now, n));
        request.lost();
        std::fs::remove_dir_all(data_dir.join(FOLDER).join(ours)).unwrap();
        made(data_dir, now, "3");
        sweep(data_dir).unwrap();
        assert_eq!(snapshots(data_dir), BTreeSet::from([theirs]));
        assert_eq!(std::fs::read_dir(data_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_note_that_was_removed_or_replaced_is_told() {
        let place = tempfile::tempdir().unwrap();
        let (path, file) = begin(place.path()).unwrap();
        assert!(is_at(&file, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path));
        std::fs::write(&path, "").unwrap();
        assert!(!is_at(&file, &path));
    }

    #[test]
    fn only_notes_are_swept() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path();
        std::fs::write(data_dir.join("lock"), "theirs").unwrap();
        let note = format!("{NOTE}1-2-0");
        // Written to by nobody: of a request that was not made.
        std::fs::write(data_dir.join(&note), "").unwrap();
        std::os::unix::fs::symlink("lock", data_dir.join(format!("{NOTE}link"))).unwrap();
        sweep(data_dir).unwrap();
        assert!(!data_dir.join(&note).exists());
        assert_eq!(
            std::fs::read_to_string(data_dir.join("lock")).unwrap(),
            "theirs"
        );
        assert_eq!(std::fs::read_dir(data_dir).unwrap().count(), 2);
    }
}
