//! One value, in memory, or in a file when it is large.

use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Up to here a value is held in memory.
const MEMORY_BYTES_MAX: usize = 32 << 20;

/// Bytes on their way from the backup to the server.
#[derive(Debug)]
pub struct Spool {
    memory: Vec<u8>,
    /// Continues `memory`. It has no name any more.
    file: Option<File>,
    length: u64,
    path: std::path::PathBuf,
}

impl Spool {
    /// An empty one, that may use a file in `scratch`.
    #[must_use]
    pub fn new(scratch: &Path) -> Self {
        Self {
            memory: Vec::new(),
            file: None,
            length: 0,
            path: scratch.join("value"),
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends.
    ///
    /// # Errors
    /// Kind Unavailable when the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        if self.file.is_none() && self.memory.len() + bytes.len() <= MEMORY_BYTES_MAX {
            self.memory.extend_from_slice(bytes);
            return Ok(());
        }
        let failed = |e| Error::io(format!("could not write \"{}\"", self.path.display()), e);
        if self.file.is_none() {
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            let file = options.open(&self.path).map_err(failed)?;
            std::fs::remove_file(&self.path).map_err(failed)?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(failed),
            None => Ok(()),
        }
    }

    /// Hands out all of it in pieces, from the beginning.
    ///
    /// # Errors
    /// Those of `give`; kind Unavailable when the file cannot be read.
    pub fn each(&mut self, mut give: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        give(&self.memory)?;
        let failed = |e| Error::io(format!("could not read \"{}\"", self.path.display()), e);
        if let Some(file) = &mut self.file {
            file.rewind().map_err(failed)?;
            let mut piece = vec![0; 1 << 20];
            loop {
                let read = file.read(&mut piece).map_err(failed)?;
                match piece.get(..read) {
                    None | Some([]) => break,
                    Some(bytes) => give(bytes)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_values_come_back_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path());
        let piece: Vec<u8> = (0..=250).cycle().take(5 << 20).collect();
        for _ in 0..8 {
            spool.write(&piece).unwrap();
        }
        assert!(spool.file.is_some());
        assert_eq!(spool.len(), 40 << 20);
        let mut back = Vec::new();
        spool
            .each(|bytes| {
                back.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        assert!(back.chunks(5 << 20).all(|chunk| chunk == piece));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
