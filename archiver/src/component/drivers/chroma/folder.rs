//! A data directory: the locked copy of a running server's, and putting one back under a stopped server.
//!
//! Chroma 1.x keeps its database in rollback mode. Whoever holds RESERVED (`BEGIN IMMEDIATE`) holds every
//! writer back: it waits in SQLite, and is served when the lock is gone. Readers go on.

use super::stored::{SQLITE, Stored, sqlite};
use crate::cancel::CancelToken;
use crate::component::{Context, Entry, EntryKind, Sink, Source};
use crate::crashsafe::{Fs, RealFs};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{File, Metadata};
use std::io::{Read, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the files stand in a backup.
const PREFIX: &str = "data/";
/// Copies that are begun before we give up on an index that keeps changing.
const ATTEMPTS_MAX: u32 = 8;
/// How long SQLite waits for the lock before we look whether we were cancelled.
const WAIT: Duration = Duration::from_millis(250);
/// What stands in the place of chroma.sqlite3 until a restore is complete. SQLite refuses it, so that a
/// server started too early fails instead of making an empty database.
const PLACEHOLDER: &[u8] =
    b"pgark is restoring into this directory. Run the restore again to complete it.\n";
/// Where the new files are complete before they take the places of the old ones.
const STAGED: &str = ".pgark-restoring";
/// Where the old ones go until the restore is complete.
const REPLACED: &str = ".pgark-replaced";

/// Limits on the lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct LockLimits {
    /// How long to wait for it.
    pub wait_seconds: u64,
    /// How long it may be held.
    pub hold_seconds: u64,
}

/// A copy in the scratch directory.
#[derive(Debug)]
pub(super) struct Copied {
    /// Where.
    pub folder: PathBuf,
    /// When the lock was taken and given back: the copy is of this instant.
    pub locked: (DateTime<Utc>, DateTime<Utc>),
}

fn io_error(what: &str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let message = format!("could not {what} \"{}\"", path.display());
    move |e| Error::io(message.clone(), e)
}

/// Opens the database of a server that may be running.
fn open(data_dir: &Path) -> Result<Connection> {
    let path = data_dir.join(SQLITE);
    if !path.is_file() {
        return Err(Error::unavailable(
            "chroma_data_dir",
            format!("there is no {SQLITE} in \"{}\"", data_dir.display()),
        )
        .with_hint("Is it mounted, and is it the directory that the server was started with?"));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags).map_err(sqlite)?;
    db.busy_timeout(WAIT).map_err(sqlite)?;
    Ok(db)
}

/// Takes the lock that holds writers back.
fn lock(db: &Connection, cancel: &CancelToken, wait_seconds: u64) -> Result<()> {
    let begun = Instant::now();
    loop {
        cancel.check()?;
        let error = match db.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let busy = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        );
        if !busy {
            return Err(sqlite(error));
        }
        if begun.elapsed().as_secs() >= wait_seconds {
            return Err(Error::unavailable(
                "chroma_locked",
                format!("{SQLITE} is locked by somebody else for {wait_seconds} s"),
            )
            .with_hint(
                "Look for a long write or a tool that holds it, or raise lock_wait_seconds.",
            ));
        }
    }
}

/// Whether the lock can be had: taken, and given back at once.
///
/// # Errors
/// As [`copy`].
pub(super) fn try_lock(data_dir: &Path, cancel: &CancelToken, wait_seconds: u64) -> Result<()> {
    let db = open(data_dir)?;
    lock(&db, cancel, wait_seconds)?;
    db.execute_batch("ROLLBACK").map_err(sqlite)
}

/// Copies database and indexes under the lock.
///
/// # Errors
/// Kind Unavailable: `chroma_data_dir`, `chroma_locked`, `chroma_lock_slow`, `chroma_changing`; I/O.
pub(super) fn copy(context: &Context<'_>, data_dir: &Path, limits: LockLimits) -> Result<Copied> {
    let folder = context.scratch.join("data");
    let db = open(data_dir)?;
    for attempt in 1..=ATTEMPTS_MAX {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).map_err(io_error("make directory", &folder))?;
        lock(&db, context.cancel, limits.wait_seconds)?;
        let from = Utc::now();
        let copied = copy_locked(context, &db, data_dir, &folder, limits.hold_seconds);
        // Whatever happened: writers wait for us. Dropping the connection would do it as well.
        db.execute_batch("ROLLBACK").map_err(sqlite)?;
        if copied? {
            return Ok(Copied {
                folder,
                locked: (from, Utc::now()),
            });
        }
        // The server was writing an index to disk, which it does without the lock.
        std::thread::sleep(WAIT * attempt);
    }
    Err(Error::unavailable(
        "chroma_changing",
        format!("the indexes changed during each of {ATTEMPTS_MAX} copies"),
    )
    .with_hint("Back up at a time with fewer writes, or over HTTP (url instead of data_dir)."))
}

/// False: an index changed meanwhile.
fn copy_locked(
    context: &Context<'_>,
    db: &Connection,
    data_dir: &Path,
    folder: &Path,
    hold_seconds: u64,
) -> Result<bool> {
    let begun = Instant::now();
    let in_time = || match begun.elapsed().as_secs() >= hold_seconds {
        true => Err(Error::unavailable(
            "chroma_lock_slow",
            format!("the copy took longer than {hold_seconds} s, and the server's writers waited"),
        )
        .with_hint("Raise lock_hold_seconds, or give pgark a faster disk for its scratch files.")),
        false => Ok(()),
    };
    // Only what a collection refers to: old versions leave the indexes of deleted ones behind.
    let mut statement = db
        .prepare("SELECT id FROM segments WHERE scope = 'VECTOR'")
        .map_err(sqlite)?;
    let segments = statement
        .query_map([], |row| row.get(0))
        .map_err(sqlite)?
        .map(|row| row.map_err(sqlite))
        .collect::<Result<Vec<String>>>()?;
    let before = fingerprint(data_dir, &segments)?;
    crate::fault::point("chroma:locked");
    for (path, _) in &before {
        context.cancel.check()?;
        in_time()?;
        let to = folder.join(path);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(io_error("make directory", parent))?;
        }
        // copy_file_range: a reflink where the file system has them. Never a hard link: Chroma writes
        // into these files in place.
        match std::fs::copy(data_dir.join(path), &to) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(io_error("copy file", &data_dir.join(path))(e)),
        }
    }
    // By SQLite's own means: opening and closing the file ourselves would drop this process's locks on it
    // (fcntl(2), "advisory record locking"), and with them the one that holds writers back.
    let mut copy = Connection::open(folder.join(SQLITE)).map_err(sqlite)?;
    let source = open(data_dir)?;
    let backup = Backup::new(&source, &mut copy).map_err(sqlite)?;
    loop {
        use rusqlite::backup::StepResult;
        in_time()?;
        context.cancel.check()?;
        match backup.step(4096).map_err(sqlite)? {
            StepResult::Done => break,
            StepResult::More => {}
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    drop(backup);
    drop(copy);
    Ok(fingerprint(data_dir, &segments)? == before)
}

/// What tells whether a file was changed.
type Fingerprint = Vec<(PathBuf, (u64, u64, i64, i64))>;

fn fingerprint(data_dir: &Path, segments: &[String]) -> Result<Fingerprint> {
    let mut found = Vec::new();
    for segment in segments {
        // A segment's name becomes a path: nothing but a UUID's characters.
        if !segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(Error::data(
                "chroma_sqlite_damaged",
                format!("\"{segment}\" is not the name of a segment"),
            ));
        }
        let folder = data_dir.join(segment);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // None before the first flush.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("read directory", &folder)(e)),
        };
        for entry in entries {
            let entry = entry.map_err(io_error("read directory", &folder))?;
            let meta = entry
                .metadata()
                .map_err(io_error("look at", &entry.path()))?;
            if meta.is_file() {
                let path = Path::new(segment).join(entry.file_name());
                found.push((
                    path,
                    (meta.len(), meta.ino(), meta.mtime(), meta.mtime_nsec()),
                ));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Hands the copy to the sink, with owners and modes of the originals.
///
/// # Errors
/// I/O; the sink's.
pub(super) fn store(
    context: &Context<'_>,
    copied: &Path,
    data_dir: &Path,
    sink: &dyn Sink,
) -> Result<()> {
    for path in files_below(copied)? {
        context.cancel.check()?;
        let relative = path.strip_prefix(copied).unwrap_or(&path);
        let Some(name) = relative.to_str() else {
            continue;
        };
        let mut entry = Entry::file(format!("{PREFIX}{name}"));
        let original = data_dir.join(relative);
        // It may be gone by now: the lock is not held any more.
        if let Ok(meta) = std::fs::metadata(&original).or_else(|_| std::fs::metadata(&path)) {
            entry.mode = meta.permissions().mode() & 0o7777;
            (entry.uid, entry.gid) = (meta.uid(), meta.gid());
        }
        let mut file = File::open(&path).map_err(io_error("open file", &path))?;
        sink.file(entry, &mut file)?;
    }
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(io_error("read directory", &folder))? {
            let path = entry.map_err(io_error("read directory", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the files of a backup below `folder`, which must be there; every file is synced.
///
/// # Errors
/// I/O; the source's.
pub(super) fn unpack(
    context: &Context<'_>,
    source: &dyn Source,
    folder: &Path,
    owner: Option<&Metadata>,
) -> Result<()> {
    for entry in source.entries() {
        let entry = entry?;
        let name = entry.path.strip_prefix(PREFIX.as_bytes());
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let (EntryKind::File, Some(name)) = (&entry.kind, name) else {
            continue;
        };
        context.cancel.check()?;
        let to = folder.join(name);
        if let Some(parent) = to.parent().filter(|parent| !parent.exists()) {
            std::fs::create_dir(parent).map_err(io_error("make directory", parent))?;
            own(parent, owner)?;
        }
        let failed = io_error("write file", &to);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(entry.mode)
            .open(&to)
            .map_err(&failed)?;
        let mut content = source.read(&entry.path)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            context.cancel.check()?;
            let read = content
                .read(&mut piece)
                .map_err(|e| Error::io(format!("could not read \"{name}\" of the backup"), e))?;
            if read == 0 {
                break;
            }
            file.write_all(piece.get(..read).unwrap_or_default())
                .map_err(&failed)?;
        }
        file.sync_all().map_err(&failed)?;
        own(&to, owner)?;
    }
    Ok(())
}

/// Gives `path` to the owner of the directory that it goes into: containers run as users of their own.
fn own(path: &Path, owner: Option<&Metadata>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
        .map_err(io_error("change the owner of", path))
}

/// Puts the files of a backup into `target`, under a stopped server.
///
/// # Errors
/// Kind Invalid before anything was changed: `chroma_running`, `target_not_empty`; I/O.
pub(super) fn restore(
    context: &Context<'_>,
    source: &dyn Source,
    target: &Path,
    overwrite: bool,
) -> Result<()> {
    if !target.exists() {
        std::fs::create_dir(target).map_err(io_error("make directory", target))?;
    }
    if let Some(pid) = user_of(target) {
        return Err(Error::invalid(
            "chroma_running",
            format!("process {pid} has files of \"{}\" open", target.display()),
        )
        .with_hint("Stop Chroma first; hooks before_restore and after_restore can do it."));
    }
    let failed = io_error("read directory", target);
    let mut there = Vec::new();
    for entry in std::fs::read_dir(target).map_err(&failed)? {
        there.push(entry.map_err(&failed)?.file_name());
    }
    let unfinished = is_unfinished(target);
    let in_the_way = there
        .iter()
        .any(|name| name != STAGED && name != "lost+found");
    if in_the_way && !overwrite && !unfinished {
        return Err(Error::invalid(
            "target_not_empty",
            format!("directory \"{}\" is not empty", target.display()),
        )
        .with_hint(
            "Name another one, or allow it to be replaced (--yes): in place a safety backup is taken first.",
        ));
    }
    let owner = std::fs::metadata(target).map_err(&failed)?;
    let staged = target.join(STAGED);
    remove(&staged)?;
    std::fs::create_dir(&staged).map_err(io_error("make directory", &staged))?;
    own(&staged, Some(&owner))?;
    let unpacked = unpack(context, source, &staged, Some(&owner)).and_then(|()| {
        // Read once as the server would: what is damaged replaces nothing.
        Stored::open(&staged)?.check()
    });
    if let Err(error) = unpacked {
        let _ = remove(&staged);
        return Err(error);
    }
    swap(target, &staged, &owner)
}

/// Whether an earlier restore was interrupted in mid-swap.
fn is_unfinished(target: &Path) -> bool {
    let mut head = Vec::new();
    let file = File::open(target.join(SQLITE));
    file.is_ok_and(|file| {
        let limit = PLACEHOLDER.len() as u64 + 1;
        file.take(limit).read_to_end(&mut head).is_ok() && head == PLACEHOLDER
    })
}

/// New for old. From the first step to the last chroma.sqlite3 is the placeholder: no server starts on a
/// half of it, and a second run begins anew.
fn swap(target: &Path, staged: &Path, owner: &Metadata) -> Result<()> {
    let fs = RealFs;
    let failed = io_error("put files into", target);
    let replaced = target.join(REPLACED);
    let database = target.join(SQLITE);
    fs.sync_file_system(target).map_err(&failed)?;
    if !replaced.exists() {
        fs.create_dir(&replaced, 0o700).map_err(&failed)?;
    }
    if database.exists() && !is_unfinished(target) {
        // A hard link first: the old database has a name at any time.
        let kept = replaced.join(SQLITE);
        if !kept.exists() {
            fs.link(&database, &kept).map_err(&failed)?;
        }
    }
    crate::crashsafe::write_durable(&fs, &database, PLACEHOLDER, 0o600)?;
    let entries: Vec<_> = std::fs::read_dir(target)
        .map_err(&failed)?
        .collect::<Result<_, _>>()
        .map_err(&failed)?;
    for entry in entries {
        let name = entry.file_name();
        let ours = name == SQLITE || name == STAGED || name == REPLACED || name == "lost+found";
        if !ours {
            let to = replaced.join(&name);
            remove(&to)?;
            fs.rename(&entry.path(), &to).map_err(&failed)?;
        }
    }
    let entries: Vec<_> = std::fs::read_dir(staged)
        .map_err(&failed)?
        .collect::<Result<_, _>>()
        .map_err(&failed)?;
    for entry in entries {
        if entry.file_name() != SQLITE {
            fs.rename(&entry.path(), &target.join(entry.file_name()))
                .map_err(&failed)?;
        }
    }
    fs.sync_dir(target).map_err(&failed)?;
    fs.rename(&staged.join(SQLITE), &database)
        .map_err(&failed)?;
    own(&database, Some(owner))?;
    fs.sync_dir(target).map_err(&failed)?;
    remove(staged)?;
    remove(&replaced)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(io_error("remove", path))
}

/// A process that has a file below `folder` open, as far as we may see: Chroma keeps its database open.
fn user_of(folder: &Path) -> Option<u32> {
    let folder = folder.canonicalize().ok()?;
    let me = std::process::id();
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let pid: Option<u32> = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != me) else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let uses = descriptors
            .flatten()
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .any(|path| path.starts_with(&folder));
        if uses {
            return Some(pid);
        }
    }
    None
}
