//! A restore through the engine's API: an archive that is unpacked in a helper, whose volume is the target.

use super::archive::{self, Writer};
use super::engine::Engine;
use super::helper::{Helper, MOUNT};
use super::volume::Volume;
use crate::component::{Context, Entry, EntryKind, Source, content_error};
use crate::{Error, Result};
use reqwest::blocking::Body;
use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::sync::Mutex;

/// Between the archive and the connection.
const BUFFER_BYTES: usize = 1 << 20;

/// What of a backup goes into a volume.
pub(super) struct Parts<'a> {
    pub(super) source: &'a dyn Source,
    /// The volume's name in the backup.
    pub(super) stored: &'a str,
    /// Whether a path of the backup is wanted.
    pub(super) takes: &'a dyn Fn(&[u8]) -> bool,
}

impl Parts<'_> {
    /// Wanted entries, with paths relative to the volume; hard links last. A link whose first name is not
    /// wanted is a file. With each comes the path to read its content from.
    ///
    /// # Errors
    /// The source's; `cancelled`.
    pub(super) fn each(
        &self,
        context: &Context<'_>,
        visit: &mut dyn FnMut(Entry, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut links = Vec::new();
        // Files whose own names are not wanted, by path: how long they are.
        let mut lengths: HashMap<Vec<u8>, u64> = HashMap::new();
        for entry in self.source.entries() {
            context.cancel.check()?;
            let entry = entry?;
            if let EntryKind::HardLink { to } = &entry.kind
                && (self.takes)(&entry.path)
                && !(self.takes)(to)
            {
                lengths.insert(to.clone(), 0);
            }
        }
        for entry in self.source.entries() {
            context.cancel.check()?;
            let entry = entry?;
            if let Some(length) = lengths.get_mut(&entry.path) {
                *length = entry.size;
            }
            let Some(below) = self.below(&entry.path) else {
                continue;
            };
            if !(self.takes)(&entry.path) {
                continue;
            }
            let stored = entry.path.clone();
            let entry = Entry {
                path: below,
                ..entry
            };
            match &entry.kind {
                EntryKind::HardLink { to } => {
                    let to = to.clone();
                    links.push((entry, to));
                }
                _ => visit(entry, &stored)?,
            }
        }
        for (entry, to) in links {
            let kind = match (lengths.get(&to), self.below(&to)) {
                (Some(_), _) => EntryKind::File,
                (None, Some(below)) => EntryKind::HardLink { to: below },
                (None, None) => {
                    return Err(Error::data(
                        "volume_index",
                        "a hard link of the backup leads out of its volume",
                    ));
                }
            };
            let size = lengths.get(&to).copied().unwrap_or(0);
            visit(
                Entry {
                    kind,
                    size,
                    ..entry
                },
                &to,
            )?;
        }
        Ok(())
    }

    fn below(&self, path: &[u8]) -> Option<Vec<u8>> {
        match path.strip_prefix(self.stored.as_bytes())? {
            b"" => Some(Vec::new()),
            rest => rest.strip_prefix(b"/").map(<[u8]>::to_vec),
        }
    }
}

/// Puts parts of a backup into a volume.
///
/// # Errors
/// The source's, the engine's: `engine_disk_full`; `cancelled`.
pub(super) fn put(
    engine: &Engine,
    context: &Context<'_>,
    volume: &Volume,
    image: Option<&str>,
    parts: &Parts<'_>,
) -> Result<()> {
    let helper = Helper::make(engine, context.component, volume, image, false)?;
    let (reader, writer) = std::io::pipe().map_err(|e| Error::io("could not make a pipe", e))?;
    let failure = Mutex::new(None);
    let sent = std::thread::scope(|scope| {
        let id = helper.id();
        let sending = scope.spawn(move || engine.put_archive(id, "/", Body::new(reader)));
        if let Err(error) = write(context, parts, writer) {
            // Without its end the engine takes the archive for broken.
            let mut failure = failure
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *failure = Some(error);
        }
        sending
            .join()
            .unwrap_or_else(|_| Err(Error::internal("thread_panicked", "a thread ended early")))
    });
    let failure = failure
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let removed = helper.remove();
    match (failure, sent) {
        // That nobody reads any more is the engine's doing: what it says counts.
        (Some(error), Err(_)) if error.code() != "volume_unwritten" => Err(error),
        (_, Err(error)) => Err(error),
        (Some(error), Ok(())) => Err(error),
        (None, Ok(())) => removed,
    }
}

fn write(context: &Context<'_>, parts: &Parts<'_>, to: impl Write) -> Result<()> {
    let unwritten = |e| {
        Error::unavailable("volume_unwritten", "the engine does not take the archive")
            .with_source(e)
    };
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, to));
    parts.each(context, &mut |entry, stored| {
        let result = match entry.kind {
            EntryKind::File => {
                let mut content = Noting {
                    content: parts.source.read(stored)?,
                    failed: None,
                };
                let result = writer.add(&entry, &mut content);
                if let Some(e) = content.failed {
                    let path = String::from_utf8_lossy(stored);
                    return Err(content_error(format!("could not restore \"{path}\""), e));
                }
                result
            }
            _ => writer.add(&entry, &mut std::io::empty()),
        };
        result.map_err(unwritten)
    })?;
    writer.finish().map_err(unwritten)
}

/// Tells a failure of the content from one of whatever takes it.
struct Noting<R> {
    content: R,
    failed: Option<std::io::Error>,
}

impl<R: std::io::Read> std::io::Read for Noting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.content.read(buffer).map_err(|e| {
            let again = std::io::Error::from(e.kind());
            self.failed = Some(e);
            again
        })
    }
}

/// Whether a volume holds anything; and calls `visit` with all there is, until it says false.
///
/// # Errors
/// The engine's; what `visit` returns.
pub(super) fn look(
    engine: &Engine,
    context: &Context<'_>,
    volume: &Volume,
    image: Option<&str>,
    visit: &mut dyn FnMut(archive::Header, &mut dyn std::io::Read) -> Result<bool>,
) -> Result<()> {
    let helper = Helper::make(engine, context.component, volume, image, true)?;
    let archive = engine.open_archive(helper.id(), &format!("/{MOUNT}/."))?;
    archive::visit(archive, context.cancel, visit)?;
    helper.remove()
}
