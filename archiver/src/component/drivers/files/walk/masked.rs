//! Files whose values are masked.

use super::super::REDACTED;
use super::super::redact::redact;
use super::{Directory, VANISHED, Walk, open};
use crate::component::Entry;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::sync::atomic::Ordering;

/// The largest file whose values are masked.
const REDACT_BYTES_MAX: u64 = 16 << 20;

impl Walk<'_> {
    /// Stores a file with its values masked. False: it is gone.
    pub(super) fn redacted(
        &self,
        directory: &Directory,
        name: &OsStr,
        entry: Entry,
    ) -> Result<bool> {
        let Some((file, stat)) = open(directory, name, &entry.path)? else {
            self.notes.add(VANISHED, &entry.path);
            return Ok(false);
        };
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        if u64::try_from(stat.st_size).unwrap_or(u64::MAX) > REDACT_BYTES_MAX {
            return Err(Error::invalid(
                "redact_too_large",
                format!(
                    "\"/{path}\" is too large to mask its values: {REDACT_BYTES_MAX} bytes at most"
                ),
            )
            .with_hint("Correct redact in [component.NAME], or exclude the file."));
        }
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, REDACT_BYTES_MAX), &mut plain)
            .map_err(|e| Error::io(format!("could not read \"/{path}\""), e))?;
        let masked = redact(&plain);
        self.notes.add("values were masked (redact)", &entry.path);
        let entry = Entry {
            size: masked.len() as u64,
            token: REDACTED.to_owned(),
            ..entry
        };
        self.sink.file(entry, &mut masked.as_slice())?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }
}
