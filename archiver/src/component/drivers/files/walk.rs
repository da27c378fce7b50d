//! The capture of a tree: directories are read by several threads, through descriptors, so that nobody
//! who moves things about while it runs can lead it elsewhere.

mod content;
mod links;
mod masked;
mod probe;

use self::content::Guarded;
use self::links::Links;
pub(super) use self::probe::probe;
use super::notes::Notes;
use super::place::{stat_in, xattrs};
use super::rules::Where;
use super::{Files, within};
use crate::component::{Consistency, Context, Entry, EntryKind, Point, Sink};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How often a file is read again that changed while it was read.
const ATTEMPTS: u32 = 3;
/// A file that changed so shortly before cannot be told from one that changes again in the same tick.
const RACY_SECONDS: i64 = 2;
/// Names of a directory that one thread takes at a time.
const NAMES_AT_ONCE: usize = 256;

/// The user that the backup was taken by, in its position.
const USER: &str = "uid";

fn user() -> serde_json::Value {
    rustix::process::geteuid().as_raw().into()
}

fn parts(path: &Path) -> (&Path, &OsStr) {
    let parent = path.parent().unwrap_or(Path::new("/"));
    (parent, path.file_name().unwrap_or_default())
}

fn unreadable(path: &[u8], e: Errno) -> Error {
    let error = Error::io(
        format!("could not read \"/{}\"", String::from_utf8_lossy(path)),
        e.into(),
    );
    match e {
        Errno::ACCESS | Errno::PERM => error.with_hint(
            "Give the user that runs pgark access to it (group, ACL, CAP_DAC_READ_SEARCH), or exclude it.",
        ),
        _ => error,
    }
}

/// A directory that is being read.
struct Directory {
    fd: OwnedFd,
    path: Vec<u8>,
    root_len: usize,
    device: u64,
}

enum Task {
    /// A directory in another one: opened when its turn comes, so that few are open at once.
    Enter(Arc<Directory>, Vec<u8>, Box<Entry>),
    Names(Arc<Directory>, Vec<Vec<u8>>),
}

#[derive(Default)]
struct Queue {
    /// The last first: the depth of the tree bounds how many directories are open.
    tasks: Vec<Task>,
    busy: usize,
    failed: Option<Error>,
}

struct Walk<'a> {
    files: &'a Files,
    context: &'a Context<'a>,
    sink: &'a dyn Sink,
    notes: Notes,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Files of several names.
    links: Mutex<Links>,
    now_seconds: i64,
    /// Whether the parent backup was taken by the user that we are.
    same_user: bool,
    entries: AtomicU64,
    read: AtomicU64,
    unchanged: AtomicU64,
    /// Of these: those whose extended attributes are the parent's.
    kept: AtomicU64,
}

pub(super) fn capture(files: &Files, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
    let from = Utc::now();
    let walk = Walk {
        files,
        context,
        sink,
        notes: Notes::default(),
        queue: Mutex::default(),
        wake: Condvar::new(),
        links: Mutex::default(),
        now_seconds: from.timestamp(),
        same_user: sink
            .parent()
            .is_some_and(|parent| parent.position.get(USER) == Some(&user())),
        entries: AtomicU64::new(0),
        read: AtomicU64::new(0),
        unchanged: AtomicU64::new(0),
        kept: AtomicU64::new(0),
    };
    walk.roots()?;
    std::thread::scope(|scope| {
        for _ in 0..files.threads {
            scope.spawn(|| walk.work());
        }
    });
    walk.finish(from)
}

impl Walk<'_> {
    fn roots(&self) -> Result<()> {
        let mut missing = 0;
        for path in &self.files.paths {
            match probe(path) {
                Ok(_) => {}
                Err(error) if error.code() == "path_missing" => {
                    missing += 1;
                    if missing == self.files.paths.len() {
                        return Err(Error::invalid(
                            "all_paths_missing",
                            "none of the component's paths exists",
                        )
                        .with_hint(
                            "Is a file system not mounted? Else correct paths in [component.NAME].",
                        )
                        .with_source(error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        for path in &self.files.paths {
            probe(path)?;
            let (parent, name) = parts(path);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(CWD, parent, flags, Mode::empty())
                .map_err(|e| unreadable(within(parent), e))?;
            let stat = stat_in(&fd, name)?;
            let root_len = within(path).len();
            let directory = Directory {
                fd,
                path: within(parent).to_vec(),
                root_len,
                device: stat.map_or(0, |stat| stat.st_dev),
            };
            let names = vec![name.as_bytes().to_vec()];
            self.push([Task::Names(Arc::new(directory), names)]);
        }
        Ok(())
    }

    fn finish(self, from: DateTime<Utc>) -> Result<Point> {
        let queue = self
            .queue
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = queue.failed {
            return Err(error);
        }
        let count = |n: AtomicU64| serde_json::Value::from(n.into_inner());
        Ok(Point {
            consistency: Consistency::Fuzzy,
            from,
            until: Utc::now(),
            clock_skew_seconds: None,
            position: BTreeMap::from([
                ("files_read".to_owned(), count(self.read)),
                ("files_unchanged".to_owned(), count(self.unchanged)),
                ("attributes_kept".to_owned(), count(self.kept)),
                (USER.to_owned(), user()),
            ]),
            evidence: BTreeMap::from([("entries".to_owned(), count(self.entries))]),
            notes: self.notes.lines(),
            server_version: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, tasks: impl IntoIterator<Item = Task>) {
        self.lock().tasks.extend(tasks);
        self.wake.notify_all();
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if queue.failed.is_some() {
                return;
            }
            if let Some(task) = queue.tasks.pop() {
                queue.busy += 1;
                drop(queue);
                let result = self.task(task);
                queue = self.lock();
                queue.busy -= 1;
                if let Err(error) = result {
                    queue.failed.get_or_insert(error);
                }
                self.wake.notify_all();
                continue;
            }
            if queue.busy == 0 {
                return;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn task(&self, task: Task) -> Result<()> {
        self.context.cancel.check()?;
        match task {
            Task::Enter(above, name, entry) => self.enter(&above, &name, *entry),
            Task::Names(directory, names) => {
                let mut found = Vec::new();
                for name in &names {
                    self.name(&directory, name, &mut found)?;
                }
                // The first of them is gone into first: the parent's table is read in its order.
                self.push(found.into_iter().rev());
                Ok(())
            }
        }
    }

    fn list(&self, directory: &Arc<Directory>) -> Result<()> {
        let failed = |e| unreadable(&directory.path, e);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        // In order: what the parent backup says of neighbours stands side by side.
        names.sort_unstable();
        let batches = names.chunks(NAMES_AT_ONCE).rev();
        let tasks = batches.map(|names| Task::Names(Arc::clone(directory), names.to_vec()));
        self.push(tasks.collect::<Vec<_>>());
        Ok(())
    }

    /// `found` gets the directories.
    fn name(&self, directory: &Arc<Directory>, name: &[u8], found: &mut Vec<Task>) -> Result<()> {
        self.context.cancel.check()?;
        let path = match directory.path.is_empty() {
            true => name.to_vec(),
            false => [&directory.path, &b"/"[..], name].concat(),
        };
        let at = Where {
            path: &path,
            root_len: directory.root_len,
        };
        let is_root = path.len() == directory.root_len;
        if !is_root && self.files.rules.excludes(at) {
            return Ok(());
        }
        let os_name = OsStr::from_bytes(name);
        let Some(stat) = stat_in(&directory.fd, os_name)? else {
            self.notes.add(VANISHED, &path);
            return Ok(());
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && !is_root && !self.files.rules.includes(at) {
            return Ok(());
        }
        let entry_kind = match kind {
            FileType::Directory => EntryKind::Directory,
            FileType::RegularFile => EntryKind::File,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Symlink => match rustix::fs::readlinkat(&directory.fd, os_name, Vec::new()) {
                Ok(target) => EntryKind::Symlink {
                    target: target.into_bytes(),
                },
                Err(Errno::NOENT | Errno::INVAL) => {
                    self.notes.add(VANISHED, &path);
                    return Ok(());
                }
                Err(e) => return Err(unreadable(&path, e)),
            },
            FileType::Socket => {
                self.notes.add("sockets, which hold nothing", &path);
                return Ok(());
            }
            _ => {
                self.notes.add("devices, which are not backed up", &path);
                return Ok(());
            }
        };
        let entry = Entry {
            kind: entry_kind,
            ..self.entry(path, &stat)
        };
        if kind == FileType::RegularFile
            && stat.st_nlink < 2
            && self.is_as_before(directory, &entry)?
        {
            return Ok(());
        }
        let Some(entry) = self.with_xattrs(directory, os_name, entry)? else {
            return Ok(());
        };
        match kind {
            FileType::Directory => {
                let task = self.directory(directory, os_name, entry, &stat)?;
                found.extend(task);
                Ok(())
            }
            FileType::RegularFile => self.file(directory, os_name, entry, &stat),
            _ => self.add(entry),
        }
    }

    /// Whether the parent backup has a file as it is: then that was added, and its attributes were not read.
    /// A change of these moves the ctime in the token. What another user may not see would be missing.
    fn is_as_before(&self, directory: &Directory, entry: &Entry) -> Result<bool> {
        let at = Where {
            path: &entry.path,
            root_len: directory.root_len,
        };
        if !self.same_user || self.files.rules.redacts(at) {
            return Ok(false);
        }
        let added = self.sink.unchanged_with_attributes(entry)?;
        if added {
            self.entries.fetch_add(1, Ordering::Relaxed);
            self.unchanged.fetch_add(1, Ordering::Relaxed);
            self.kept.fetch_add(1, Ordering::Relaxed);
        }
        Ok(added)
    }

    /// `None`: it is gone.
    fn with_xattrs(
        &self,
        directory: &Directory,
        name: &OsStr,
        entry: Entry,
    ) -> Result<Option<Entry>> {
        match xattrs(&directory.fd, name) {
            Ok(xattrs) => Ok(Some(Entry { xattrs, ..entry })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.notes.add(VANISHED, &entry.path);
                Ok(None)
            }
            Err(e) => {
                let path = String::from_utf8_lossy(&entry.path);
                let what = format!("could not read the extended attributes of \"/{path}\"");
                Err(Error::io(what, e))
            }
        }
    }

    fn add(&self, entry: Entry) -> Result<()> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.sink.entry(entry)
    }

    fn entry(&self, path: Vec<u8>, stat: &Stat) -> Entry {
        let nanoseconds = |seconds: i64, nanoseconds: i64| {
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds)
        };
        let mtime_ns = nanoseconds(stat.st_mtime, signed(stat.st_mtime_nsec));
        let ctime_ns = nanoseconds(stat.st_ctime, signed(stat.st_ctime_nsec));
        let settled = stat.st_ctime.saturating_add(RACY_SECONDS) < self.now_seconds;
        Entry {
            path,
            kind: EntryKind::File,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_ns,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            xattrs: Vec::new(),
            token: match settled {
                true => format!(
                    "{:x}:{:x}:{ctime_ns:x}:{mtime_ns:x}",
                    stat.st_dev, stat.st_ino
                ),
                false => String::new(),
            },
        }
    }

    fn directory(
        &self,
        above: &Arc<Directory>,
        name: &OsStr,
        entry: Entry,
        stat: &Stat,
    ) -> Result<Option<Task>> {
        let entry = Entry {
            size: 0,
            token: String::new(),
            ..entry
        };
        if stat.st_dev != above.device && !self.files.cross_file_systems {
            self.notes
                .add("other file systems, not gone into", &entry.path);
            return self.add(entry).map(|()| None);
        }
        let name = name.as_bytes().to_vec();
        let task = Task::Enter(Arc::clone(above), name, Box::new(entry));
        Ok(Some(task))
    }

    fn enter(&self, above: &Directory, name: &[u8], entry: Entry) -> Result<()> {
        let path = entry.path.clone();
        let name = OsStr::from_bytes(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&above.fd, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.notes.add(VANISHED, &path);
                return Ok(());
            }
            other => other.map_err(|e| unreadable(&path, e))?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(&path, e))?;
        self.add(entry)?;
        self.list(&Arc::new(Directory {
            fd,
            path,
            root_len: above.root_len,
            device: stat.st_dev,
        }))
    }

    /// Stores a file with its content. False: it is gone.
    fn content(
        &self,
        directory: &Directory,
        name: &OsStr,
        entry: Entry,
        stat: &Stat,
    ) -> Result<bool> {
        let at = Where {
            path: &entry.path,
            root_len: directory.root_len,
        };
        if self.files.rules.redacts(at) {
            return self.redacted(directory, name, entry);
        }
        if self.sink.unchanged(&entry)? {
            self.entries.fetch_add(1, Ordering::Relaxed);
            self.unchanged.fetch_add(1, Ordering::Relaxed);
            return Ok(true);
        }
        let mut entry = entry;
        let mut stat = *stat;
        for attempt in 1..=ATTEMPTS {
            let Some((file, now)) = open(directory, name, &entry.path)? else {
                self.notes.add(VANISHED, &entry.path);
                return Ok(false);
            };
            let last = attempt == ATTEMPTS;
            if last || content::stamp(&now) != content::stamp(&stat) {
                // What it is now; and nothing vouches for it.
                let (path, xattrs) = (entry.path.clone(), std::mem::take(&mut entry.xattrs));
                entry = Entry {
                    xattrs,
                    ..self.entry(path, &now)
                };
                stat = now;
            }
            if last {
                entry.token.clear();
            }
            let mut content = Guarded::new(file, &stat, !last);
            match self.sink.file(entry.clone(), &mut content) {
                Ok(_) => {
                    if last && content.changed() {
                        self.notes
                            .add("files that changed while they were read", &entry.path);
                    }
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    self.read.fetch_add(1, Ordering::Relaxed);
                    return Ok(true);
                }
                Err(_) if !last && content.changed() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

const VANISHED: &str = "gone before they were read";

fn signed(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(0)
}

/// Opens a regular file; `None` when it is gone, or something else by now.
fn open(directory: &Directory, name: &OsStr, path: &[u8]) -> Result<Option<(File, Stat)>> {
    // A FIFO that took the file's place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&directory.fd, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        other => other.map_err(|e| unreadable(path, e))?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(path, e))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_file.then(|| (File::from(fd), stat)))
}
