//! The restore of a tree. Each file is written beside its place and then takes it; directories get their
//! modes and times last.

use super::place::{Last, Place, Places, stat_in};
use super::rules::{Selection, Where};
use super::{Files, REDACTED, aside, prune};
use crate::component::drivers::files::notes::Notes;
use crate::component::{Context, Entry, EntryKind, Request, Source, content_error};
use crate::{Error, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;

/// Zeros from this length on become holes.
const HOLE_BYTES: usize = 4096;
const READ_BYTES: usize = 1 << 20;

/// The paths of a backup, as hashes: a million of them take little room, and one that is taken for another
/// keeps a file.
pub(super) struct Known {
    hasher: RandomState,
    paths: HashSet<u64>,
    /// Those of them that are masked.
    masked: HashSet<u64>,
}

impl Known {
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.paths.contains(&self.hasher.hash_one(path))
    }

    fn masks(&self, path: &[u8]) -> bool {
        self.masked.contains(&self.hasher.hash_one(path))
    }
}

/// # Errors
/// Kind Invalid before anything was changed: `would_overwrite`, `nothing_selected`,
/// `entry_without_place`; then `symlink_in_target`; the file system's; the source's.
pub(super) fn restore(
    files: &Files,
    places: &Places,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let selection = Selection::new(&request.select)?;
    let known = survey(places, context, source, &selection, request)?;
    let mut writer = Writer {
        files,
        known: &known,
        ending: aside::ending(chrono::Utc::now()),
        places,
        source,
        last: Last::default(),
        notes: Notes::default(),
        directories: Vec::new(),
        links: Vec::new(),
        selection: &selection,
        buffer: vec![0; READ_BYTES],
    };
    crate::fault::point("files:before_write");
    for entry in source.entries() {
        context.cancel.check()?;
        let entry = entry?;
        if selection.takes(&entry.path) {
            writer.entry(entry)?;
        }
    }
    for (entry, to) in std::mem::take(&mut writer.links) {
        context.cancel.check()?;
        writer.hard_link(&entry, &to)?;
    }
    if places.in_place && selection.is_all() {
        prune::prune(files, context, &known, &writer.notes)?;
    }
    // Those inside first: a directory may be closed to us by its own mode.
    for entry in std::mem::take(&mut writer.directories).into_iter().rev() {
        writer.close(&entry)?;
    }
    for base in places.bases() {
        let opened = File::open(base).and_then(|base| Ok(rustix::fs::syncfs(base)?));
        opened
            .map_err(|e| Error::io(format!("could not make \"{}\" durable", base.display()), e))?;
    }
    Ok(writer.notes.lines())
}

/// A look at everything before anything is changed.
fn survey(
    places: &Places,
    context: &Context<'_>,
    source: &dyn Source,
    selection: &Selection,
    request: &Request,
) -> Result<Known> {
    let mut known = Known {
        hasher: RandomState::new(),
        paths: HashSet::new(),
        masked: HashSet::new(),
    };
    let mut last = Last::default();
    for entry in source.entries() {
        context.cancel.check()?;
        let entry = entry?;
        let hash = known.hasher.hash_one(entry.path.as_slice());
        if entry.token == REDACTED {
            known.masked.insert(hash);
        }
        if !selection.takes(&entry.path) {
            continue;
        }
        places.check(&entry.path)?;
        known.paths.insert(hash);
        if request.overwrite {
            continue;
        }
        let Some(place) = places.find(&entry.path, false, &mut last)? else {
            continue;
        };
        let there = place
            .stat()?
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        let fits = match there {
            None => true,
            Some(there) => there == FileType::Directory && entry.kind == EntryKind::Directory,
        };
        if !fits {
            return Err(Error::invalid(
                "would_overwrite",
                format!("\"{}\" exists", places.shown(&entry.path)),
            )
            .with_hint(match places.in_place {
                true => "Restore to another directory with --to, or confirm with --yes that it may be replaced.",
                false => "Choose an empty directory. Nothing is saved before a restore with --to: --yes --no-safety-backup together say that what is there may be replaced.",
            }));
        }
    }
    selection.check()?;
    Ok(known)
}

struct Writer<'a> {
    files: &'a Files,
    known: &'a Known,
    /// Of what is moved aside.
    ending: Vec<u8>,
    places: &'a Places,
    source: &'a dyn Source,
    last: Last,
    notes: Notes,
    /// To get their modes and times.
    directories: Vec<Entry>,
    links: Vec<(Entry, Vec<u8>)>,
    selection: &'a Selection,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn place(&mut self, path: &[u8]) -> Result<Place> {
        let place = self.places.find(path, true, &mut self.last)?;
        place.ok_or_else(|| Error::internal("lost_directory", "a directory was not made"))
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        let place = self.place(&entry.path)?;
        match &entry.kind {
            EntryKind::Directory => {
                self.directory(&place, &entry)?;
                self.directories.push(entry);
                Ok(())
            }
            EntryKind::File => self.file(&place, &entry, &entry.path),
            EntryKind::HardLink { to } => {
                let to = to.clone();
                self.links.push((entry, to));
                Ok(())
            }
            EntryKind::Symlink { target } => {
                let target = OsStr::from_bytes(target);
                self.special(&place, &entry, |name| {
                    rustix::fs::symlinkat(target, &place.directory, name)
                })
            }
            EntryKind::Fifo => self.special(&place, &entry, |name| {
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(&place.directory, name, FileType::Fifo, mode, 0)
            }),
        }
    }

    fn directory(&self, place: &Place, entry: &Entry) -> Result<()> {
        let failed = |e| self.failed("could not make directory", entry, e);
        match place
            .stat()?
            .map(|stat| FileType::from_raw_mode(stat.st_mode))
        {
            Some(FileType::Directory) => return Ok(()),
            Some(there) if self.set_aside(place, entry, there)? => {}
            Some(_) => remove(place).map_err(failed)?,
            None => {}
        }
        let mode = Mode::from_raw_mode(0o700);
        rustix::fs::mkdirat(&place.directory, place.name(), mode).map_err(failed)
    }

    /// Writes the content of `from` under the name of `entry`.
    fn file(&mut self, place: &Place, entry: &Entry, from: &[u8]) -> Result<()> {
        let there = place.stat()?;
        if entry.token == REDACTED {
            // The masked file is of no use to anybody who has the real one.
            if there.is_some() && !self.selection.names(&entry.path) {
                self.notes.add(
                    "left as they are, for the backup has only masked values",
                    &entry.path,
                );
                return Ok(());
            }
            self.notes
                .add("restored with masked values: set them", &entry.path);
        }
        let temporary = temporary();
        let name = OsStr::from_bytes(&temporary);
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&place.directory, name, flags, mode)
            .map_err(|e| self.failed("could not write", entry, e))?;
        let file = File::from(file);
        let written = self.fill(&file, entry, from).and_then(|()| {
            self.belongings(&file, entry)?;
            self.take_place(place, name, entry)
        });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&place.directory, name, AtFlags::empty());
        }
        written
    }

    fn fill(&mut self, file: &File, entry: &Entry, from: &[u8]) -> Result<()> {
        let what = || format!("could not restore \"{}\"", self.places.shown(&entry.path));
        let mut content = self.source.read(from)?;
        let mut at = 0_u64;
        loop {
            let mut len = 0;
            while let Some(room) = self.buffer.get_mut(len..).filter(|room| !room.is_empty()) {
                match content.read(room) {
                    Ok(0) => break,
                    Ok(more) => len += more,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(content_error(what(), e)),
                }
            }
            let bytes = self.buffer.get(..len).unwrap_or_default();
            for block in bytes.chunks(HOLE_BYTES) {
                if block.iter().any(|b| *b != 0) {
                    // Neighbours in one call would be faster; the page cache gathers them.
                    file.write_all_at(block, at)
                        .map_err(|e| Error::io(what(), e))?;
                }
                at = at.saturating_add(block.len() as u64);
            }
            if len < self.buffer.len() {
                break;
            }
        }
        file.set_len(at).map_err(|e| Error::io(what(), e))
    }

    /// Owner, mode, attributes and times of an open file.
    fn belongings(&self, file: &File, entry: &Entry) -> Result<()> {
        let owner = (
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        );
        let mode = match rustix::fs::fchown(file, owner.0, owner.1) {
            Ok(()) => entry.mode & 0o7777,
            Err(Errno::PERM) => {
                self.notes.add(OWNER, &entry.path);
                // It would run as whoever restores it.
                entry.mode & 0o1777
            }
            Err(e) => return Err(self.failed("could not give away", entry, e)),
        };
        for (name, value) in &entry.xattrs {
            let set = rustix::fs::fsetxattr(
                file,
                name.as_slice(),
                value,
                rustix::fs::XattrFlags::empty(),
            );
            self.attribute(entry, set)?;
        }
        // Behind the owner, whose change takes the set-id bits away.
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
            .map_err(|e| self.failed("could not set the mode of", entry, e))?;
        rustix::fs::futimens(file, &times(entry))
            .map_err(|e| self.failed("could not set the times of", entry, e))
    }

    fn attribute(&self, entry: &Entry, set: rustix::io::Result<()>) -> Result<()> {
        match set {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::NOTSUP | Errno::ACCESS) => {
                self.notes
                    .add("extended attributes could not be set", &entry.path);
                Ok(())
            }
            Err(e) => Err(self.failed("could not set the attributes of", entry, e)),
        }
    }

    /// Gives what was written under `temporary` its name.
    fn take_place(&self, place: &Place, temporary: &OsStr, entry: &Entry) -> Result<()> {
        let failed = |e| self.failed("could not write", entry, e);
        let there = place
            .stat()?
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        if let Some(there) = there
            && !self.set_aside(place, entry, there)?
            && there == FileType::Directory
        {
            prune::clear(&place.directory, place.name())?;
        }
        let (directory, name) = (&place.directory, place.name());
        rustix::fs::renameat(directory, temporary, directory, name).map_err(failed)
    }

    /// Moves aside what is in the place of an entry when the safety backup cannot have it as it is. False:
    /// nothing was moved.
    fn set_aside(&self, place: &Place, entry: &Entry, there: FileType) -> Result<bool> {
        if !self.places.in_place {
            return Ok(false);
        }
        let root_len = self.places.root_len(&entry.path)?;
        let at = Where {
            path: &entry.path,
            root_len,
        };
        let unsaved = match there {
            FileType::Directory => {
                let directory = (&*place.directory, place.name());
                self.files.rules.leaves_out(at)
                    || prune::holds_unsaved(self.files, directory, &entry.path, root_len)?
            }
            there => prune::is_unsaved(self.files, there, at),
        };
        if !unsaved {
            return Ok(false);
        }
        let failed = |e| self.failed("could not move aside what is at", entry, e);
        let name = aside::name(place.name(), &self.ending);
        if stat_in(&place.directory, &name)?.is_some() {
            return Err(failed(Errno::EXIST));
        }
        rustix::fs::renameat(&place.directory, place.name(), &place.directory, &name)
            .map_err(failed)?;
        self.notes.add(
            "moved aside, for no backup has it as it was (redact, exclude, include)",
            &[entry.path.as_slice(), &self.ending].concat(),
        );
        Ok(true)
    }

    /// Makes something without content, then its owner and times.
    fn special(
        &self,
        place: &Place,
        entry: &Entry,
        make: impl Fn(&OsStr) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let temporary = temporary();
        let name = OsStr::from_bytes(&temporary);
        make(name).map_err(|e| self.failed("could not make", entry, e))?;
        let done = self
            .dress(place, name, entry)
            .and_then(|()| self.take_place(place, name, entry));
        if done.is_err() {
            let _ = rustix::fs::unlinkat(&place.directory, name, AtFlags::empty());
        }
        done
    }

    fn dress(&self, place: &Place, name: &OsStr, entry: &Entry) -> Result<()> {
        let (directory, nofollow) = (&place.directory, AtFlags::SYMLINK_NOFOLLOW);
        let owner = (
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        );
        match rustix::fs::chownat(directory, name, owner.0, owner.1, nofollow) {
            Ok(()) => {}
            Err(Errno::PERM) => self.notes.add(OWNER, &entry.path),
            Err(e) => return Err(self.failed("could not give away", entry, e)),
        }
        if entry.kind == EntryKind::Fifo {
            let mode = Mode::from_raw_mode(entry.mode & 0o7777);
            rustix::fs::chmodat(directory, name, mode, AtFlags::empty())
                .map_err(|e| self.failed("could not set the mode of", entry, e))?;
        }
        rustix::fs::utimensat(directory, name, &times(entry), nofollow)
            .map_err(|e| self.failed("could not set the times of", entry, e))
    }

    fn hard_link(&mut self, entry: &Entry, to: &[u8]) -> Result<()> {
        let place = self.place(&entry.path)?;
        if self.known.masks(to) {
            // An older backup: a link to a masked file is none to the real one.
            let token = REDACTED.to_owned();
            let entry = Entry {
                token,
                ..entry.clone()
            };
            return self.file(&place, &entry, to);
        }
        if !self.selection.takes(to) {
            // Its first name is not wanted: the content is.
            return self.file(&place, entry, to);
        }
        let first = self.place(to)?;
        let temporary = temporary();
        let name = OsStr::from_bytes(&temporary);
        rustix::fs::linkat(
            &first.directory,
            first.name(),
            &place.directory,
            name,
            AtFlags::empty(),
        )
        .map_err(|e| self.failed("could not link", entry, e))?;
        let done = self.take_place(&place, name, entry);
        // rename(2) does nothing when both names are of one file already.
        let _ = rustix::fs::unlinkat(&place.directory, name, AtFlags::empty());
        done
    }

    fn failed(&self, what: &str, entry: &Entry, e: Errno) -> Error {
        let place = self.places.shown(&entry.path);
        Error::io(format!("{what} \"{place}\""), e.into())
    }

    fn close(&mut self, entry: &Entry) -> Result<()> {
        let place = self.place(&entry.path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&place.directory, place.name(), flags, Mode::empty())
            .map_err(|e| self.failed("could not open directory", entry, e))?;
        self.belongings(&File::from(directory), entry)
    }
}

const OWNER: &str = "owners could not be restored, which root alone may do";

fn times(entry: &Entry) -> Timestamps {
    let seconds = entry.mtime_ns.div_euclid(1_000_000_000);
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn temporary() -> Vec<u8> {
    let mut random = [0_u8; 16];
    // A short read cannot happen below 256 bytes (getrandom(2)); O_EXCL guards the name anyway.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    format!(".pgark-{}", crate::repository::format::to_hex(&random)).into_bytes()
}

/// Removes what is no directory.
fn remove(place: &Place) -> rustix::io::Result<()> {
    rustix::fs::unlinkat(&place.directory, place.name(), AtFlags::empty())
}
