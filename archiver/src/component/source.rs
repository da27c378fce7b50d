//! A component's backup to restore from. What comes out of it was verified; what one repository has lost
//! comes from another one's copy.

use super::{Entry, EntryKind, Point, Source};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::repository::component::{ComponentBackup, Line, Piece};
use crate::repository::format::component::{
    Chunk, ComponentLabel, ComponentManifest, EntryLine, LineKind, Record,
};
use crate::repository::session::Session;
use crate::repository::{Repository, backups};
use crate::wal::repositories::Repositories;
use crate::{Error, ErrorKind, Result};
use pgark_types::BackupLabel;
use std::io::Read;
use std::sync::{Arc, OnceLock};

/// Zeros that are handed out at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A backup, opened.
pub struct OpenSource {
    first: ComponentBackup,
    others: Vec<Repository>,
    /// The same backup in the others, once it was needed.
    copies: OnceLock<Vec<ComponentBackup>>,
    _pin: Option<Session>,
}

impl std::fmt::Debug for OpenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let manifest = &self.first.manifest;
        write!(f, "OpenSource({}, {})", manifest.component, manifest.label)
    }
}

/// Opens a backup of `component`: `label`, else the newest one that any repository has, safety backups left
/// out. Only in
/// `repository`, when one is named. While the source lives gc leaves the backup alone.
///
/// # Errors
/// Kind Invalid: `backup_missing`, `repository_unknown`; Data when no repository has it whole enough to be
/// opened; Unavailable when none can be reached.
pub fn open(
    config: &Config,
    repository: Option<&str>,
    component: &str,
    label: Option<&BackupLabel>,
    clock: &SharedClock,
) -> Result<OpenSource> {
    let (mut open, failed) = Repositories::open(config)?.in_order();
    if let Some(name) = repository {
        if !config.repository.contains_key(name) {
            return Err(Error::invalid(
                "repository_unknown",
                format!("the configuration has no repository \"{name}\""),
            )
            .with_hint("Repositories are the [repository.NAME] sections."));
        }
        open.retain(|(open, _)| open.name() == name);
    }
    let repositories: Vec<Repository> = open.into_iter().map(|(open, _)| open).collect();
    open_in(&repositories, failed, component, label, clock)
}

/// As [`open`], in `repositories`, in this order. `failed`: why another one is not among them.
///
/// # Errors
/// As [`open`].
pub fn open_in(
    repositories: &[Repository],
    failed: Option<Error>,
    component: &str,
    label: Option<&BackupLabel>,
    clock: &SharedClock,
) -> Result<OpenSource> {
    let mut failure = failed;
    let mut found: Option<(&Repository, ComponentLabel)> = None;
    for repository in repositories {
        let records = match backups::records(repository, component) {
            Ok(records) => records,
            Err(error) => {
                failure.get_or_insert(error);
                continue;
            }
        };
        let mut own = records.into_iter().rev().filter_map(Record::into_component);
        let wanted = |own: &ComponentLabel| match label {
            Some(label) => own.label == *label,
            // The newest may be of what a restore replaced: nobody means that one.
            None => !own.safety,
        };
        let Some(own) = own.find(wanted) else {
            continue;
        };
        // The first of those that have it: they are in order of preference.
        if found
            .as_ref()
            .is_none_or(|(_, best)| own.started_at > best.started_at)
        {
            found = Some((repository, own));
        }
    }
    let Some((chosen, record)) = found else {
        return Err(failure.unwrap_or_else(|| missing(component, label)));
    };
    let in_order = std::iter::once(chosen).chain(
        repositories
            .iter()
            .filter(|other| other.name() != chosen.name()),
    );
    for repository in in_order {
        match ComponentBackup::open(repository, component, &record.label) {
            Ok(first) => {
                if let Some(error) = failure {
                    tracing::warn!(
                        alert = "restore_failover",
                        code = error.code(),
                        "the restore reads repository \"{}\", which may hold less: {error}",
                        repository.name()
                    );
                }
                let others = repositories
                    .iter()
                    .filter(|o| o.name() != repository.name());
                return Ok(OpenSource {
                    others: others.cloned().collect(),
                    copies: OnceLock::new(),
                    _pin: pin(repository, component, &record.label, clock)?,
                    first,
                });
            }
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    Err(failure.unwrap_or_else(|| missing(component, label)))
}

fn missing(component: &str, label: Option<&BackupLabel>) -> Error {
    let what = match label {
        Some(label) => format!("there is no backup \"{label}\" of \"{component}\""),
        None => format!("there is no backup of \"{component}\""),
    };
    Error::invalid("backup_missing", what).with_hint("\"pgark info\" lists the backups there are.")
}

/// Keeps gc from the backup while it is read. With read access alone that cannot be done: then a backup
/// stays for a week after it was expired, and a day after gc has planned to remove it.
fn pin(
    repository: &Repository,
    component: &str,
    label: &BackupLabel,
    clock: &SharedClock,
) -> Result<Option<Session>> {
    match Session::begin_reading(repository, SharedClock::clone(clock), component, label) {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.code() == "parent_expired" => Err(error),
        Err(error) => {
            tracing::info!(code = error.code(), "the backup is not pinned: {error}");
            Ok(None)
        }
    }
}

/// Whether two manifests tell of one capture. Their objects differ: digests and chunks are keyed by
/// repository.
pub(crate) fn is_copy(a: &ComponentManifest, b: &ComponentManifest) -> bool {
    let facts = |m: &ComponentManifest| {
        (
            (m.component.clone(), m.label.clone(), m.kind.clone()),
            (m.started_at, m.stopped_at, m.set.clone()),
            (m.entry_count, m.file_count, m.bytes_source),
        )
    };
    facts(a) == facts(b) && a.point == b.point
}

/// Whether another repository may do better.
fn falls_over(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Data | ErrorKind::Unavailable) && error.code() != "cancelled"
}

impl OpenSource {
    /// What the first repository's manifest says.
    #[must_use]
    pub fn manifest(&self) -> &ComponentManifest {
        &self.first.manifest
    }

    /// The repository that is read first.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.first.repository().name()
    }

    /// The backup in the `number`th repository that has it.
    fn copy(&self, number: usize) -> Option<&ComponentBackup> {
        let Some(number) = number.checked_sub(1) else {
            return Some(&self.first);
        };
        let copies = self.copies.get_or_init(|| {
            let wanted = &self.first.manifest;
            let copies = self.others.iter().filter_map(|other| {
                let copy = ComponentBackup::open(other, &wanted.component, &wanted.label);
                let copy = copy.inspect_err(|error| {
                    tracing::debug!(
                        code = error.code(),
                        "repository \"{}\": {error}",
                        other.name()
                    );
                });
                copy.ok().filter(|copy| is_copy(&copy.manifest, wanted))
            });
            copies.collect()
        });
        copies.get(number)
    }

    /// The next copy after the `number`th, which has failed with `error`.
    fn next(&self, number: usize, error: Error) -> Result<usize> {
        if !falls_over(&error) {
            return Err(error);
        }
        let next = number.saturating_add(1);
        let Some(copy) = self.copy(next) else {
            return Err(error);
        };
        tracing::warn!(
            alert = "restore_failover",
            code = error.code(),
            "backup {} cannot be served whole: the restore goes on with repository \"{}\": {error}",
            self.first.manifest.label,
            copy.repository().name()
        );
        Ok(next)
    }

    fn find(&self, path: &[u8]) -> Result<(usize, EntryLine)> {
        let mut number = 0;
        loop {
            let found = match self.copy(number) {
                Some(copy) => copy.find(path),
                None => Ok(None),
            };
            match found {
                Ok(Some(line)) => return Ok((number, line)),
                Ok(None) => {
                    return Err(Error::invalid(
                        "entry_missing",
                        format!("the backup holds no {:?}", String::from_utf8_lossy(path)),
                    ));
                }
                Err(error) => number = self.next(number, error)?,
            }
        }
    }
}

impl Source for OpenSource {
    fn point(&self) -> &Point {
        &self.first.manifest.point
    }

    fn entries(&self) -> Box<dyn Iterator<Item = Result<Entry>> + '_> {
        Box::new(Entries {
            source: self,
            number: 0,
            frame: 0,
            lines: Arc::default(),
            at: 0,
            last: None,
            failed: false,
        })
    }

    fn read(&self, path: &[u8]) -> Result<Box<dyn Read + Send + '_>> {
        crate::fault::point("component:read");
        let (number, line) = self.find(path)?;
        if line.kind != LineKind::File {
            return Err(Error::invalid(
                "entry_missing",
                format!(
                    "{:?} is no file in the backup",
                    String::from_utf8_lossy(path)
                ),
            ));
        }
        Ok(Box::new(Content {
            source: self,
            path: path.to_vec(),
            number,
            line,
            chunk: 0,
            offset: 0,
            now: Now::Nothing,
        }))
    }
}

/// The entry of a line.
pub(crate) fn entry_of(line: &Line) -> Result<Entry> {
    let malformed = || {
        Error::data(
            "entry_table_damaged",
            format!("the entry \"{}\" is malformed", line.line.path.0),
        )
    };
    let target = || {
        let target = line.line.target.as_ref().ok_or_else(malformed)?;
        target.bytes().ok_or_else(malformed)
    };
    let xattrs = line.line.xattrs.iter().map(|(name, value)| {
        let value = crate::repository::format::manifest::PathText(format!("hex:{value}"));
        Ok((
            name.bytes().ok_or_else(malformed)?,
            value.bytes().ok_or_else(malformed)?,
        ))
    });
    Ok(Entry {
        path: line.path.clone(),
        kind: match line.line.kind {
            LineKind::Directory => EntryKind::Directory,
            LineKind::File => EntryKind::File,
            LineKind::Symlink => EntryKind::Symlink { target: target()? },
            LineKind::HardLink => {
                let to = target()?;
                crate::repository::component::check_path(&to)?;
                EntryKind::HardLink { to }
            }
            LineKind::Fifo => EntryKind::Fifo,
        },
        mode: line.line.mode & 0o7777,
        uid: line.line.uid,
        gid: line.line.gid,
        mtime_ns: line.line.mtime_ns,
        size: line.line.size,
        xattrs: xattrs.collect::<Result<_>>()?,
        token: line.line.token.clone(),
    })
}

/// Every entry; after a failure the rest from another copy.
struct Entries<'a> {
    source: &'a OpenSource,
    number: usize,
    frame: usize,
    lines: Arc<Vec<Line>>,
    at: usize,
    last: Option<Vec<u8>>,
    failed: bool,
}

impl Entries<'_> {
    fn step(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(line) = self.lines.get(self.at) {
                self.at += 1;
                if self.last.as_ref().is_some_and(|last| line.path <= *last) {
                    continue;
                }
                self.last = Some(line.path.clone());
                return entry_of(line).map(Some);
            }
            let Some(copy) = self.source.copy(self.number) else {
                return Ok(None);
            };
            if self.frame >= copy.table_len() {
                return Ok(None);
            }
            match copy.table_frame(self.frame) {
                Ok(lines) => {
                    self.lines = lines;
                    self.at = 0;
                    self.frame += 1;
                }
                Err(error) => {
                    self.number = self.source.next(self.number, error)?;
                    let copy = self.source.copy(self.number);
                    let last = self.last.as_deref().unwrap_or_default();
                    self.frame = copy.map_or(0, |copy| copy.frame_of(last));
                }
            }
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.step().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// What is being handed out.
enum Now {
    Nothing,
    Zeros(u64),
    Piece(Piece, usize),
}

/// The content of a file.
struct Content<'a> {
    source: &'a OpenSource,
    path: Vec<u8>,
    number: usize,
    line: EntryLine,
    chunk: usize,
    /// Bytes handed out, or about to be.
    offset: u64,
    now: Now,
}

impl Content<'_> {
    /// The next chunk. False: there is none.
    fn advance(&mut self) -> Result<bool> {
        loop {
            let Some(chunk) = self.line.chunks.get(self.chunk) else {
                if self.offset == self.line.size {
                    return Ok(false);
                }
                let error = Error::data(
                    "file_damaged",
                    format!("the content of \"{}\" has another length", self.line.path.0),
                );
                if self.fail_over(error)? {
                    return Ok(true);
                }
                continue;
            };
            let len = chunk.len();
            self.now = match chunk {
                Chunk::Zero { zero } => Now::Zeros(*zero),
                Chunk::Stored { .. } => {
                    let copy = self.source.copy(self.number);
                    let copy =
                        copy.ok_or_else(|| Error::internal("lost_copy", "a copy is gone"))?;
                    match copy.piece(&self.line, chunk) {
                        Ok(piece) => Now::Piece(piece, 0),
                        Err(error) => {
                            if self.fail_over(error)? {
                                return Ok(true);
                            }
                            continue;
                        }
                    }
                }
            };
            self.offset = self.offset.saturating_add(len);
            self.chunk += 1;
            return Ok(true);
        }
    }

    /// Goes on at the same place of another copy, whose chunks are others. Whether there is something to
    /// hand out now: the rest of a chunk.
    fn fail_over(&mut self, error: Error) -> Result<bool> {
        let (mut error, offset) = (error, self.offset);
        loop {
            self.number = self.source.next(self.number, error)?;
            self.offset = offset;
            match self.position() {
                Ok(()) => return Ok(!matches!(self.now, Now::Nothing)),
                Err(next) => error = next,
            }
        }
    }

    fn position(&mut self) -> Result<()> {
        let copy = self.source.copy(self.number);
        let copy = copy.ok_or_else(|| Error::internal("lost_copy", "a copy is gone"))?;
        let line = copy
            .find(&self.path)?
            .filter(|line| line.size == self.line.size);
        self.line = line.ok_or_else(|| {
            Error::data(
                "copies_differ",
                format!(
                    "\"{}\" is another file in another repository",
                    self.line.path.0
                ),
            )
        })?;
        // From the beginning of the chunk that holds the place; what was handed out is skipped.
        let (mut begin, mut chunk) = (0_u64, 0);
        while let Some(next) = self.line.chunks.get(chunk) {
            let end = begin.saturating_add(next.len());
            if end > self.offset {
                break;
            }
            begin = end;
            chunk += 1;
        }
        self.chunk = chunk;
        let skip = self.offset.saturating_sub(begin);
        self.offset = begin;
        self.skip(skip)
    }

    fn skip(&mut self, skip: u64) -> Result<()> {
        if skip == 0 {
            return Ok(());
        }
        let copy = self.source.copy(self.number);
        let copy = copy.ok_or_else(|| Error::internal("lost_copy", "a copy is gone"))?;
        let Some(chunk) = self.line.chunks.get(self.chunk) else {
            return Ok(());
        };
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX);
        self.now = match chunk {
            Chunk::Zero { zero } => Now::Zeros(zero.saturating_sub(skip)),
            Chunk::Stored { .. } => Now::Piece(copy.piece(&self.line, chunk)?, skipped),
        };
        self.offset = self.offset.saturating_add(chunk.len());
        self.chunk += 1;
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let (len, rest) = match &mut self.now {
                Now::Nothing => (0, false),
                Now::Zeros(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX);
                    let bytes = ZEROS.get(..most.min(ZEROS.len())).unwrap_or_default();
                    let len = copy_into(buffer, bytes);
                    *left = left.saturating_sub(len as u64);
                    (len, *left > 0)
                }
                Now::Piece(piece, at) => {
                    let bytes = piece.bytes().get(*at..).unwrap_or_default();
                    let len = copy_into(buffer, bytes);
                    *at += len;
                    (len, len < bytes.len())
                }
            };
            if !rest {
                self.now = Now::Nothing;
            }
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            if !self.advance().map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
    }
}

fn copy_into(buffer: &mut [u8], bytes: &[u8]) -> usize {
    let len = buffer.len().min(bytes.len());
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
    len
}
