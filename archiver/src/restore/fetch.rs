//! Writing a batch: threads take frames in the order of the objects, check every page against its
//! digest, and write it where it belongs.

use super::files::{Batch, ChunkFile, PageFrame, Target, WantedPage};
use super::obstacles;
use crate::cancel::CancelToken;
use crate::crashsafe::{FsFile, SharedFs};
use crate::progress::Progress;
use crate::repository::backups::{Backup, cut};
use crate::repository::format::FrameClass;
use crate::repository::format::manifest::FrameRef;
use crate::{Error, Result};
use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many frames a thread takes at a time: neighbours in one object.
const FRAMES_AT_ONCE: usize = 16;
const FILES_AT_ONCE: usize = 32;
/// How much of a file is read at a time to see whether it is right already.
const HELD_READ_BYTES: usize = 256 << 10;
/// After so many bytes of a file the thread that wrote the last of them waits for the disk. The
/// kernel by itself begins to write only when a tenth of the memory is dirty, and everything would
/// be left to the sync at the end, while disk and processors took turns at being idle.
const SYNC_EVERY_BYTES: u64 = 32 << 20;

/// What the writers of a restore share.
pub(super) struct Writer<'a> {
    pub(super) backup: &'a Backup,
    pub(super) fs: &'a SharedFs,
    pub(super) cancel: &'a CancelToken,
    pub(super) progress: &'a Progress,
    /// Keep pages that are right already.
    pub(super) delta: bool,
    pub(super) threads: usize,
    /// Bytes that were written.
    pub(super) bytes_written: AtomicU64,
}

struct Open<'a> {
    target: &'a Target,
    file: Box<dyn FsFile>,
    /// Length of the file before; its content counts in a delta restore.
    old_len: u64,
    written: AtomicU64,
}

impl Writer<'_> {
    /// Writes `batch`.
    ///
    /// # Errors
    /// The first error of any thread.
    pub(super) fn write(&self, batch: &Batch) -> Result<()> {
        let mut open = Vec::with_capacity(batch.targets.len());
        for target in &batch.targets {
            open.push(self.open(target)?);
        }
        let frames = batch.frames.len().div_ceil(FRAMES_AT_ONCE);
        let files = batch.chunk_files.len().div_ceil(FILES_AT_ONCE);
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let stop = CancelToken::default();
        let work = |buffers: &mut Buffers, task: usize| -> Result<()> {
            self.cancel.check()?;
            crate::fault::point("restore:writing");
            if task < frames {
                let from = task * FRAMES_AT_ONCE;
                let to = (from + FRAMES_AT_ONCE).min(batch.frames.len());
                let frames = batch.frames.get(from..to).unwrap_or_default();
                return self.page_frames(frames, &open, buffers);
            }
            let from = (task - frames) * FILES_AT_ONCE;
            let files = batch.chunk_files.iter().skip(from).take(FILES_AT_ONCE);
            files
                .into_iter()
                .try_for_each(|file| self.chunk_file(file, &open, buffers))
        };
        std::thread::scope(|scope| {
            // One more than asked for: at most times one of them waits for the disk.
            for _ in 0..=self.threads.max(1) {
                scope.spawn(|| {
                    let mut buffers = Buffers::default();
                    loop {
                        let task = next.fetch_add(1, Ordering::Relaxed);
                        if task >= frames + files || stop.is_cancelled() {
                            return;
                        }
                        if let Err(error) = work(&mut buffers, task) {
                            stop.cancel();
                            if let Ok(mut slot) = failed.lock() {
                                slot.get_or_insert(error);
                            }
                            return;
                        }
                    }
                });
            }
        });
        match failed.into_inner() {
            Ok(None) => {}
            Ok(Some(error)) => return Err(error),
            Err(_) => {
                return Err(Error::internal(
                    "thread_panicked",
                    "a restoring thread panicked",
                ));
            }
        }
        open.iter().try_for_each(|open| self.complete(open))
    }

    fn open<'a>(&self, target: &'a Target) -> Result<Open<'a>> {
        let error = |e| {
            Error::io(
                format!("could not create file \"{}\"", target.path.display()),
                e,
            )
        };
        if self.delta
            && let Some(file) = obstacles::open_own(self.fs.as_ref(), &target.path, target.mode)?
        {
            let old_len = file.len().map_err(error)?;
            file.set_len(target.size).map_err(error)?;
            self.fs.set_mode(&target.path, target.mode).map_err(error)?;
            return Ok(Open {
                target,
                file,
                old_len,
                written: AtomicU64::new(0),
            });
        }
        let file = self
            .fs
            .create_new(&target.path, target.mode)
            .map_err(error)?;
        file.set_len(target.size).map_err(error)?;
        Ok(Open {
            target,
            file,
            old_len: 0,
            written: AtomicU64::new(0),
        })
    }

    /// Zero pages and tail: what no frame holds.
    fn complete(&self, open: &Open<'_>) -> Result<()> {
        let target = open.target;
        let page_size = u64::from(target.page_size);
        for (block, count) in &target.zero_runs {
            for block in *block..*block + *count {
                let offset = u64::from(block) * page_size;
                if offset < open.old_len && !self.is_zero(open, offset)? {
                    self.put(open, &vec![0; target.page_size as usize], offset)?;
                }
            }
            self.progress.add(u64::from(*count) * page_size);
        }
        if !target.tail.is_empty() {
            let offset = target.size - target.tail.len() as u64;
            self.put(open, &target.tail, offset)?;
        }
        Ok(())
    }

    fn is_zero(&self, open: &Open<'_>, offset: u64) -> Result<bool> {
        let mut page = vec![0; open.target.page_size as usize];
        let got = read_full(open, &mut page, offset)?;
        Ok(page.iter().take(got).all(|b| *b == 0))
    }

    /// Writes the wanted pages of frames that are in order. Frames that follow one another in
    /// their object are read at once: a read of its own for each would open the object each time,
    /// and the kernel would never read ahead.
    fn page_frames(
        &self,
        frames: &[PageFrame],
        open: &[Open<'_>],
        buffers: &mut Buffers,
    ) -> Result<()> {
        let mut wanted = Vec::with_capacity(frames.len());
        for frame in frames {
            let pages = self.wanted_pages(frame, open)?;
            if pages.is_empty() {
                self.progress.add(plain_bytes(frame));
            } else {
                wanted.push((frame, pages));
            }
        }
        for run in wanted.chunk_by(|(a, _), (b, _)| a.frame.is_followed_by(b.frame)) {
            let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
                continue;
            };
            let stored = self.backup.frames(first.frame, last.frame)?;
            for (frame, pages) in run {
                self.cancel.check()?;
                stored.decode(frame.frame, FrameClass::Pages, &mut buffers.plain)?;
                self.put_pages(frame, pages, open, &buffers.plain)?;
                self.progress.add(plain_bytes(frame));
            }
        }
        Ok(())
    }

    /// All pages of a frame, or in a delta restore those that are not right already.
    fn wanted_pages<'p>(
        &self,
        frame: &'p PageFrame,
        open: &[Open<'_>],
    ) -> Result<Cow<'p, [WantedPage]>> {
        if !self.delta {
            return Ok(Cow::Borrowed(&frame.pages));
        }
        let stale = frame.pages.iter().filter_map(|page| {
            let open = open.get(page.target as usize)?;
            self.is_stale(open, page, frame.page_size)
                .map(|s| s.then_some(*page))
                .transpose()
        });
        stale.collect::<Result<_>>().map(Cow::Owned)
    }

    /// Checks pages against their digests and writes them.
    fn put_pages(
        &self,
        wanted: &PageFrame,
        pages: &[WantedPage],
        open: &[Open<'_>],
        plain: &[u8],
    ) -> Result<()> {
        let page_size = wanted.page_size as usize;
        let key = self.backup.repository().digest_key();
        let mut run: Option<(WantedPage, usize)> = None;
        for page in pages {
            let at = usize::from(page.place) * page_size;
            let bytes = plain.get(at..at + page_size);
            let sound = bytes.is_some_and(|b| crate::backup::page_digest(key, b) == page.digest);
            if !sound {
                return Err(Error::data(
                    "page_damaged",
                    "a page in the repository does not match its digest",
                )
                .with_hint("Run \"pgark verify\"; restore from another repository or backup."));
            }
            // Pages that follow one another in frame and file are written at once.
            run = match run {
                Some((first, count))
                    if first.target == page.target
                        && first.block as usize + count == page.block as usize
                        && usize::from(first.place) + count == usize::from(page.place) =>
                {
                    Some((first, count + 1))
                }
                Some((first, count)) => {
                    self.put_run(open, plain, first, count, page_size)?;
                    Some((*page, 1))
                }
                None => Some((*page, 1)),
            };
        }
        match run {
            Some((first, count)) => self.put_run(open, plain, first, count, page_size),
            None => Ok(()),
        }
    }

    fn put_run(
        &self,
        open: &[Open<'_>],
        plain: &[u8],
        first: WantedPage,
        count: usize,
        page_size: usize,
    ) -> Result<()> {
        let at = usize::from(first.place) * page_size;
        let bytes = plain.get(at..at + count * page_size).unwrap_or_default();
        let open = open.get(first.target as usize);
        let open = open.ok_or_else(|| Error::internal("lost_target", "a file was lost"))?;
        self.put(open, bytes, u64::from(first.block) * page_size as u64)
    }

    /// Whether the page on disk is not the one wanted.
    fn is_stale(&self, open: &Open<'_>, page: &WantedPage, page_size: u32) -> Result<bool> {
        let offset = u64::from(page.block) * u64::from(page_size);
        if offset + u64::from(page_size) > open.old_len {
            return Ok(true);
        }
        let mut bytes = vec![0; page_size as usize];
        let got = read_full(open, &mut bytes, offset)?;
        let key = self.backup.repository().digest_key();
        Ok(got < bytes.len() || crate::backup::page_digest(key, &bytes) != page.digest)
    }

    fn chunk_file(&self, file: &ChunkFile, open: &[Open<'_>], buffers: &mut Buffers) -> Result<()> {
        let open = open.get(file.target as usize);
        let open = open.ok_or_else(|| Error::internal("lost_target", "a file was lost"))?;
        if self.delta && self.holds(file, open)? {
            self.progress.add(open.target.size);
            return Ok(());
        }
        let key = self.backup.repository().digest_key();
        let mut hasher = blake3::Hasher::new_keyed(key);
        let mut offset = 0;
        for slice in &file.slices {
            if buffers.held != Some(slice.frame) {
                buffers.held = None;
                self.backup
                    .frame(slice.frame, FrameClass::Chunks, &mut buffers.chunk)?;
                buffers.held = Some(slice.frame);
            }
            let bytes = cut(&buffers.chunk, *slice)?;
            hasher.update(bytes);
            self.put(open, bytes, offset)?;
            offset += bytes.len() as u64;
            self.progress.add(bytes.len() as u64);
        }
        if hasher.finalize().to_hex().as_str() == file.digest {
            return Ok(());
        }
        Err(Error::data(
            "file_damaged",
            format!(
                "the content of \"{}\" does not match its digest",
                open.target.path.display()
            ),
        ))
    }

    /// Whether a file that is no relation has its content already.
    fn holds(&self, file: &ChunkFile, open: &Open<'_>) -> Result<bool> {
        if open.old_len != open.target.size {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new_keyed(self.backup.repository().digest_key());
        let mut buffer = vec![0; HELD_READ_BYTES];
        let mut offset = 0;
        while offset < open.target.size {
            let got = read_full(open, &mut buffer, offset)?;
            if got == 0 {
                return Ok(false);
            }
            hasher.update(buffer.get(..got).unwrap_or_default());
            offset += got as u64;
        }
        Ok(hasher.finalize().to_hex().as_str() == file.digest)
    }

    fn put(&self, open: &Open<'_>, bytes: &[u8], offset: u64) -> Result<()> {
        let length = bytes.len() as u64;
        self.bytes_written.fetch_add(length, Ordering::Relaxed);
        let error = |e| {
            Error::io(
                format!("could not write file \"{}\"", open.target.path.display()),
                e,
            )
        };
        open.file.write_at(bytes, offset).map_err(error)?;
        let before = open.written.fetch_add(length, Ordering::Relaxed);
        if before / SYNC_EVERY_BYTES != (before + length) / SYNC_EVERY_BYTES {
            open.file.sync().map_err(error)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Buffers {
    plain: Vec<u8>,
    chunk: Vec<u8>,
    /// The frame whose plain bytes `chunk` holds: small files share frames.
    held: Option<FrameRef>,
}

fn plain_bytes(frame: &PageFrame) -> u64 {
    frame.pages.len() as u64 * u64::from(frame.page_size)
}

fn read_full(open: &Open<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match open.file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) => {
                let path = open.target.path.display();
                return Err(Error::io(format!("could not read file \"{path}\""), e));
            }
        }
    }
    Ok(got)
}
