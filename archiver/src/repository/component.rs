//! A committed backup of a component beside Postgres, opened for reading: its entries, one by one or
//! all in order, and their content.

use super::Repository;
use super::backups::committed_manifest;
use super::format::component::{AnyManifest, Chunk, ComponentManifest, EntryLine, LineKind};
use super::format::manifest::FrameRef;
use super::format::{FrameClass, from_hex};
use super::held::Held;
use super::reader::{ObjectTable, fetch_frame};
use crate::{Error, Result};
use pgark_types::BackupLabel;
use std::cell::Cell;
use std::sync::Arc;

/// Decoded frames of the entry table that are kept: neighbours are asked for one after the other, by as many
/// threads as walk a tree.
const TABLE_FRAMES_HELD: usize = 10;
/// Decoded frames of content that are kept: small files share them.
const CONTENT_FRAMES_HELD: usize = 4;

/// An entry and the bytes of its path.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its path.
    pub path: Vec<u8>,
    /// What the table says of it.
    pub line: EntryLine,
}

/// Where an entry stands in the table.
#[derive(Debug)]
pub struct Located {
    /// The lines of its frame.
    pub lines: Arc<Vec<Line>>,
    /// The frame's number.
    pub frame: usize,
    /// Which line it is.
    pub at: usize,
}

impl Located {
    /// What the table says of it.
    #[must_use]
    pub fn line(&self) -> Option<&EntryLine> {
        self.lines.get(self.at).map(|line| &line.line)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.lines
            .get(self.at)
            .map_or(&[][..], |line| line.path.as_slice())
    }
}

/// A committed backup of a component.
#[derive(Debug)]
pub struct ComponentBackup {
    /// Its manifest.
    pub manifest: ComponentManifest,
    /// BLAKE3-256 of the stored manifest.
    pub root_digest: blake3::Hash,
    repository: Repository,
    objects: ObjectTable,
    /// The first path of every frame of the table.
    firsts: Vec<Vec<u8>>,
    table: Held<usize, Vec<Line>>,
    content: Held<FrameRef, Vec<u8>>,
}

impl ComponentBackup {
    /// Opens a backup and checks its manifest against the digest its session committed.
    ///
    /// # Errors
    /// Kind Invalid: `backup_missing` when there is no such committed backup, `cluster_backup` when it
    /// is of a Postgres cluster; Data when it is damaged; or the storage's.
    pub fn open(repository: &Repository, component: &str, label: &BackupLabel) -> Result<Self> {
        let (manifest, root_digest) = committed_manifest(repository, component, label)?;
        let AnyManifest::Component(manifest) = manifest else {
            return Err(Error::invalid(
                "cluster_backup",
                format!("backup \"{label}\" of \"{component}\" is of a Postgres cluster"),
            )
            .with_hint("\"pgark restore --target-dir DIR\" restores a cluster."));
        };
        let objects = ObjectTable::new(&manifest.objects)?;
        let mut firsts: Vec<Vec<u8>> = Vec::with_capacity(manifest.entry_table.len());
        for frame in &manifest.entry_table {
            let first = frame
                .first
                .bytes()
                .ok_or_else(|| path_malformed(&frame.first.0))?;
            if firsts.last().is_some_and(|before| *before >= first) {
                return Err(table_damaged("its frames are not in order"));
            }
            firsts.push(first);
        }
        Ok(Self {
            manifest,
            root_digest,
            repository: repository.clone(),
            objects,
            firsts,
            table: Held::new(TABLE_FRAMES_HELD),
            content: Held::new(CONTENT_FRAMES_HELD),
        })
    }

    /// The repository it is in.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Its objects.
    #[must_use]
    pub fn objects(&self) -> &ObjectTable {
        &self.objects
    }

    /// How many frames the entry table has.
    #[must_use]
    pub fn table_len(&self) -> usize {
        self.firsts.len()
    }

    /// The entries of frame `number` of the table, checked.
    ///
    /// # Errors
    /// Kind Data when it is damaged, or the storage's.
    pub fn table_frame(&self, number: usize) -> Result<Arc<Vec<Line>>> {
        let next = number.saturating_add(1);
        let next = (next < self.table_len()).then_some(next);
        self.table
            .get_with_next(number, next, |number| self.read_table_frame(number))
    }

    fn read_table_frame(&self, number: usize) -> Result<Vec<Line>> {
        let Some(frame) = self.manifest.entry_table.get(number) else {
            return Ok(Vec::new());
        };
        let mut plain = Vec::new();
        fetch_frame(
            &self.repository,
            &self.objects,
            frame.frame,
            FrameClass::FileTable,
            &mut plain,
        )?;
        if !is_digest(self.repository.digest_key(), &plain, &frame.digest) {
            return Err(table_damaged("a frame does not match its digest"));
        }
        let mut lines: Vec<Line> = Vec::new();
        for text in plain.split(|b| *b == b'\n').filter(|text| !text.is_empty()) {
            let line: EntryLine = serde_json::from_slice(text)
                .map_err(|e| table_damaged("a line of it is malformed").with_source(e))?;
            let path = line
                .path
                .bytes()
                .ok_or_else(|| path_malformed(&line.path.0))?;
            check_path(&path)?;
            if lines.last().is_some_and(|before| before.path >= path) {
                return Err(table_damaged("its lines are not in order"));
            }
            lines.push(Line { path, line });
        }
        let bounds = (
            self.firsts.get(number),
            self.firsts.get(number.saturating_add(1)),
        );
        let first = lines.first().map(|line| &line.path);
        let last = lines.last().map(|line| &line.path);
        if first != bounds.0 || bounds.1.is_some_and(|next| last >= Some(next)) {
            return Err(table_damaged("a frame is not where it belongs"));
        }
        Ok(lines)
    }

    /// The number of the frame that holds the entry called `path`, if any does.
    #[must_use]
    pub fn frame_of(&self, path: &[u8]) -> usize {
        let behind = self
            .firsts
            .partition_point(|first| first.as_slice() <= path);
        behind.saturating_sub(1)
    }

    /// The first path of frame `number` of the table.
    #[must_use]
    pub fn first_path(&self, number: usize) -> Option<&[u8]> {
        self.firsts.get(number).map(Vec::as_slice)
    }

    /// Where the entry called `path` stands.
    ///
    /// # Errors
    /// As [`ComponentBackup::table_frame`].
    pub fn locate(&self, path: &[u8]) -> Result<Option<Located>> {
        let frame = self.frame_of(path);
        let lines = self.table_frame(frame)?;
        Ok(find_line(&lines, path).map(|at| Located { lines, frame, at }))
    }

    /// The entry called `path`.
    ///
    /// # Errors
    /// As [`ComponentBackup::table_frame`].
    pub fn find(&self, path: &[u8]) -> Result<Option<EntryLine>> {
        let found = self.locate(path)?;
        Ok(found.and_then(|found| found.line().cloned()))
    }

    /// Every entry, in order. Memory: one frame of the table.
    pub fn lines(&self) -> impl Iterator<Item = Result<Line>> + '_ {
        let mut failed = false;
        let frames = (0..self.table_len()).map(|number| self.read_table_frame(number));
        let lines = frames.flat_map(|frame| match frame {
            Ok(lines) => lines.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        // What comes behind damage would look like all there is.
        lines.take_while(move |line| !std::mem::replace(&mut failed, line.is_err()))
    }

    /// The bytes of a stored chunk of `line`, checked against their digest.
    ///
    /// # Errors
    /// Kind Data when they are damaged, or the storage's.
    pub fn piece(&self, line: &EntryLine, chunk: &Chunk) -> Result<Piece> {
        let Chunk::Stored {
            frame,
            at,
            len,
            digest,
        } = chunk
        else {
            return Err(table_damaged("a run of zeros has no bytes"));
        };
        let plain = self.content.get(*frame, || {
            let mut plain = Vec::new();
            fetch_frame(
                &self.repository,
                &self.objects,
                *frame,
                FrameClass::Chunks,
                &mut plain,
            )?;
            Ok(plain)
        })?;
        let (from, len) = (*at as usize, *len as usize);
        let piece = Piece { plain, from, len };
        let bytes = piece
            .checked_bytes()
            .ok_or_else(|| Error::data("slice_malformed", "a slice lies outside its frame"))?;
        // Without one of its own the piece is the whole file.
        let expected = match (digest.is_empty(), line.chunks.as_slice()) {
            (true, [_]) => &line.digest,
            _ => digest,
        };
        if !is_digest(self.repository.digest_key(), bytes, expected) {
            return Err(Error::data(
                "file_damaged",
                format!(
                    "the content of \"{}\" does not match its digest",
                    line.path.0
                ),
            )
            .with_hint("Run \"pgark verify\"; another repository may have it whole."));
        }
        Ok(piece)
    }

    /// Reads a file's content to its end, and compares it with its digest, its checksum and its size.
    ///
    /// # Errors
    /// As [`ComponentBackup::piece`].
    pub fn check_content(&self, line: &EntryLine) -> Result<()> {
        if line.kind != LineKind::File {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new_keyed(self.repository.digest_key());
        let (mut crc, mut size) = (0, 0_u64);
        let zeros = vec![0_u8; 1 << 16];
        for chunk in &line.chunks {
            size = size.saturating_add(chunk.len());
            if let Chunk::Zero { zero } = chunk {
                let mut left = *zero;
                while left > 0 {
                    let now = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                    let bytes = zeros.get(..now).unwrap_or_default();
                    hasher.update(bytes);
                    crc = crc32c::crc32c_append(crc, bytes);
                    left = left.saturating_sub(now as u64);
                }
                continue;
            }
            let piece = self.piece(line, chunk)?;
            hasher.update(piece.bytes());
            crc = crc32c::crc32c_append(crc, piece.bytes());
        }
        let sound = hasher.finalize().to_hex().as_str() == line.digest
            && format!("{crc:08x}") == line.crc32c
            && size == line.size;
        match sound {
            true => Ok(()),
            false => Err(Error::data(
                "file_damaged",
                format!(
                    "the content of \"{}\" does not match its digest",
                    line.path.0
                ),
            )),
        }
    }
}

/// Where `path` stands in `lines`. A thread that walks a tree asks for one line after the other.
fn find_line(lines: &[Line], path: &[u8]) -> Option<usize> {
    thread_local! { static NEXT: Cell<usize> = const { Cell::new(0) }; }
    let next = NEXT.get();
    let at = match lines.get(next) {
        Some(line) if line.path == path => next,
        _ => lines
            .binary_search_by(|line| line.path.as_slice().cmp(path))
            .ok()?,
    };
    NEXT.set(at.saturating_add(1));
    Some(at)
}

/// A part of a decoded frame.
#[derive(Debug)]
pub struct Piece {
    plain: Arc<Vec<u8>>,
    from: usize,
    len: usize,
}

impl Piece {
    fn checked_bytes(&self) -> Option<&[u8]> {
        self.plain.get(self.from..)?.get(..self.len)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.checked_bytes().unwrap_or_default()
    }
}

/// Whether `digest` is that of `bytes` under `key`.
fn is_digest(key: &[u8; 32], bytes: &[u8], digest: &str) -> bool {
    from_hex::<32>(digest)
        .is_some_and(|digest| *blake3::keyed_hash(key, bytes).as_bytes() == digest)
}

/// Refuses a path that is none: empty, absolute, with empty parts, `.` or `..`, or a zero byte.
///
/// # Errors
/// Kind Data, code `path_malformed`.
pub fn check_path(path: &[u8]) -> Result<()> {
    let bad = |part: &[u8]| matches!(part, b"" | b"." | b"..");
    if path.split(|b| *b == b'/').any(bad) || path.contains(&0) {
        return Err(path_malformed(&String::from_utf8_lossy(path)));
    }
    Ok(())
}

fn path_malformed(text: &str) -> Error {
    Error::data(
        "path_malformed",
        format!("the backup holds a malformed path {text:?}"),
    )
}

fn table_damaged(detail: &str) -> Error {
    Error::data(
        "entry_table_damaged",
        format!("the backup's entry table is damaged: {detail}"),
    )
}
