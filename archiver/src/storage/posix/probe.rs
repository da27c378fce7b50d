//! What the file system below a storage can do, found out by doing it.

use super::write::{cannot_link, cannot_rename_exclusively, random_name};
use super::{DIRECTORY_MODE, FILE_MODE, Inner, TEMPORARY, io_error};
use crate::storage::Capabilities;
use crate::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

/// Rounds of the race for one name. A file system that emulates exclusiveness with a look before
/// the rename loses within the first few.
const RACE_ROUNDS: u32 = 16;

/// Gives a file a second (or another) name unless that is taken.
type NameFile = fn(&Inner, &Path, &Path) -> io::Result<()>;

fn by_link(storage: &Inner, from: &Path, to: &Path) -> io::Result<()> {
    storage.fs.link(from, to)
}

fn by_rename(storage: &Inner, from: &Path, to: &Path) -> io::Result<()> {
    storage.fs.rename_no_replace(from, to)
}

impl Inner {
    pub(super) fn probe(&self) -> Result<Capabilities> {
        if !self.root.is_dir() {
            return Err(self.missing());
        }
        let temporary = self.root.join(TEMPORARY);
        let directory = temporary.join(format!("probe-{}", random_name()?));
        let probed = self
            .make_probe_directory(&temporary, &directory)
            .and_then(|()| {
                if self.probe_case(&directory)? {
                    return Ok(None);
                }
                Ok(Some(Capabilities {
                    exclusive_put: self.probe_exclusive(&directory)?,
                    durable_put: self.probe_durable(&directory)?,
                }))
            });
        self.remove_probe_directory(&directory);
        let probed = probed.map_err(|e| io_error("could not probe directory", &self.root, e))?;
        probed.ok_or_else(|| self.case_insensitive())
    }

    /// Whether a file is found under its name in other letters: of two objects whose keys differ in case
    /// alone the second would be taken for the first.
    fn probe_case(&self, directory: &Path) -> io::Result<bool> {
        self.fs.create_new(&directory.join("case"), FILE_MODE)?;
        match self.fs.open(&directory.join("CASE")) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn case_insensitive(&self) -> Error {
        Error::invalid(
            "case_insensitive",
            format!(
                "the file system of \"{}\" does not tell capital from small letters",
                self.root.display()
            ),
        )
        .with_hint("Mount the share so that names keep their case (SMB: with POSIX extensions, without \"nocase\"), or put the repository on another file system.")
    }

    fn make_probe_directory(&self, temporary: &Path, directory: &Path) -> io::Result<()> {
        match self.fs.create_dir(temporary, DIRECTORY_MODE) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.fs.create_dir(directory, DIRECTORY_MODE)
    }

    fn remove_probe_directory(&self, directory: &Path) {
        // Best effort: what stays behind is in `tmp`, where it is in nobody's way.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let _ = self.fs.remove_file(&entry.path());
        }
        let _ = self.fs.remove_dir(directory);
    }

    /// fsync of a file and of a directory. What lies beneath (a disk that lies, an asynchronous
    /// NFS export) cannot be seen from here.
    fn probe_durable(&self, directory: &Path) -> io::Result<bool> {
        let path = directory.join("fsync");
        let file = self.fs.create_new(&path, FILE_MODE);
        let synced = file.and_then(|file| {
            file.write_at(b"probe", 0)?;
            file.sync()
        });
        match synced.and_then(|()| self.fs.sync_dir(directory)) {
            Ok(()) => Ok(true),
            // A full disk says nothing of what the file system can do.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Err(e)
            }
            Err(_) => Ok(false),
        }
    }

    fn probe_exclusive(&self, directory: &Path) -> io::Result<bool> {
        let name_file = match self.refuses_taken_name(directory, by_link) {
            Ok(true) => by_link as NameFile,
            Ok(false) => return Ok(false),
            Err(e) if cannot_link(&e) => match self.refuses_taken_name(directory, by_rename) {
                Ok(true) => by_rename as NameFile,
                Ok(false) => return Ok(false),
                Err(e) if cannot_rename_exclusively(&e) => return Ok(false),
                Err(e) => return Err(e),
            },
            Err(e) => return Err(e),
        };
        for round in 0..RACE_ROUNDS {
            if !self.race_has_one_winner(directory, round, name_file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Naming works once, and fails with EEXIST the second time.
    fn refuses_taken_name(&self, directory: &Path, name_file: NameFile) -> io::Result<bool> {
        let (a, b) = (
            directory.join(random_part("a")?),
            directory.join(random_part("b")?),
        );
        let to = directory.join(random_part("to")?);
        self.fs.create_new(&a, FILE_MODE)?;
        self.fs.create_new(&b, FILE_MODE)?;
        name_file(self, &a, &to)?;
        let again = name_file(self, &b, &to);
        Ok(again.is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists))
    }

    fn race_has_one_winner(
        &self,
        directory: &Path,
        round: u32,
        name_file: NameFile,
    ) -> io::Result<bool> {
        let to = directory.join(format!("race-{round}"));
        let files: Vec<PathBuf> = ["x", "y"]
            .iter()
            .map(|side| directory.join(format!("race-{round}-{side}")))
            .collect();
        for file in &files {
            self.fs.create_new(file, FILE_MODE)?;
        }
        let start = Barrier::new(files.len());
        let race = |from: &Path| {
            start.wait();
            name_file(self, from, &to).is_ok()
        };
        let winners = std::thread::scope(|scope| {
            let race = &race;
            let threads: Vec<_> = files
                .iter()
                .map(|file| scope.spawn(move || race(file)))
                .collect();
            let won = threads.into_iter().filter_map(|thread| thread.join().ok());
            won.filter(|won| *won).count()
        });
        Ok(winners == 1)
    }
}

fn random_part(what: &str) -> io::Result<String> {
    match random_name() {
        Ok(name) => Ok(format!("{what}-{name}")),
        Err(e) => Err(io::Error::other(e.to_string())),
    }
}
