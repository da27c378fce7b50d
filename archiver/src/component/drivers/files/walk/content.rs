//! A file's content, with a look at its end whether it is still what it was at its beginning; holes are
//! not read.

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// What tells that a file did not change.
pub(super) fn stamp(stat: &Stat) -> impl PartialEq + use<> {
    (
        (stat.st_dev, stat.st_ino, stat.st_size),
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
    )
}

/// See the module.
pub(super) struct Guarded {
    file: File,
    before: Stat,
    /// Whether a change is an error; else it is only remembered.
    strict: bool,
    changed: bool,
    at: u64,
    /// Up to here there is data, or with `hole` there is none.
    until: u64,
    hole: bool,
    sparse: bool,
}

impl Guarded {
    pub(super) fn new(file: File, before: &Stat, strict: bool) -> Self {
        let blocks = u64::try_from(before.st_blocks).unwrap_or(u64::MAX);
        let size = u64::try_from(before.st_size).unwrap_or(0);
        Self {
            file,
            before: *before,
            strict,
            changed: false,
            at: 0,
            until: 0,
            hole: false,
            sparse: blocks.saturating_mul(512) < size,
        }
    }

    /// Whether it changed while it was read.
    pub(super) fn changed(&self) -> bool {
        self.changed
    }

    /// Finds out what lies at the present place.
    fn extent(&mut self) -> io::Result<()> {
        if !self.sparse {
            self.until = u64::MAX;
            return Ok(());
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) if data > self.at => {
                self.hole = true;
                self.until = data;
            }
            Ok(data) => {
                self.hole = false;
                self.until = rustix::fs::seek(&self.file, SeekFrom::Hole(data))?;
            }
            // No more data: a hole up to the end.
            Err(Errno::NXIO) => {
                let now = rustix::fs::fstat(&self.file)?;
                let size = u64::try_from(now.st_size).unwrap_or(0);
                self.hole = size > self.at;
                self.until = if self.hole { size } else { u64::MAX };
            }
            Err(_) => {
                self.sparse = false;
                self.until = u64::MAX;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<usize> {
        let now = rustix::fs::fstat(&self.file)?;
        self.changed = stamp(&now) != stamp(&self.before);
        match self.changed && self.strict {
            true => Err(io::Error::other("the file changed while it was read")),
            false => Ok(0),
        }
    }
}

impl Read for Guarded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.at >= self.until {
            self.hole = false;
            self.extent()?;
        }
        let left = usize::try_from(self.until.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let room = buffer.get_mut(..most).unwrap_or_default();
        let len = if self.hole {
            room.fill(0);
            most
        } else {
            self.file.read_at(room, self.at)?
        };
        self.at = self.at.saturating_add(len as u64);
        match len {
            0 => self.end(),
            len => Ok(len),
        }
    }
}
