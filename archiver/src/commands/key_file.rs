//! Key files and recovery kits on disk: written once, durably, and read back.

use crate::crashsafe::{Fs, RealFs, parent_of, write_synced};
use crate::repository::crypto::key_text;
use crate::repository::crypto::keys::NewSlot;
use crate::repository::crypto::secret::Secret;
use crate::repository::crypto::source::{Credential, KeySource};
use crate::{Error, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The files that a run has made for slots. They go with this unless they are kept: one that opens nothing
/// says that it opens every backup, and is in the way of the next run.
#[derive(Debug, Default)]
pub(super) struct Made {
    paths: Vec<PathBuf>,
}

impl Made {
    /// A recovery kit: a key of its own in a file that is to be kept elsewhere, and its slot.
    ///
    /// # Errors
    /// As [`Made::create`].
    pub(super) fn kit(&mut self, path: &Path, repository: &str, id: &[u8; 16]) -> Result<NewSlot> {
        let id = crate::repository::format::to_hex(id);
        let key = self.create(
            path,
            &[
                format!("pgark recovery kit of repository \"{repository}\", id {id}"),
                "Whoever has this can read every backup. Print it or store it away from this host."
                    .to_owned(),
                "To use it: mode = \"key-file\" and key_file = this file in [repository.*.encryption]."
                    .to_owned(),
                "A line: its number, the key, four digits that tell a slip.".to_owned(),
            ],
        )?;
        Ok(NewSlot {
            name: "recovery-kit".to_owned(),
            credential: Credential::Key(key),
        })
    }

    /// After a slot was put: the files stay with it, and also after an error that does not tell whether the
    /// storage has taken it.
    ///
    /// # Errors
    /// That of `put`.
    pub(super) fn kept_unless_refused<T>(self, put: Result<T>) -> Result<T> {
        match &put {
            Err(error) if error.kind() == crate::ErrorKind::Invalid => {}
            Err(_) => {
                for path in &self.paths {
                    tracing::warn!(
                        code = "key_file_stays",
                        "\"{}\" stays: \"pgark key check --kit\" tells whether it opens the repository",
                        path.display()
                    );
                }
                self.keep();
            }
            Ok(_) => self.keep(),
        }
        put
    }

    /// What a new slot is made for; a key file that is not there yet is made.
    ///
    /// # Errors
    /// As [`Made::create`] and [`KeySource::to_wrap`].
    pub(super) fn credential(
        &mut self,
        source: &KeySource,
        repository: &str,
    ) -> Result<Credential> {
        match source {
            KeySource::KeyFile(path) if !path.exists() => {
                let remark =
                    format!("pgark key file of repository \"{repository}\". Keep it secret.");
                self.create(path, &[remark]).map(Credential::Key)
            }
            other => other.to_wrap(),
        }
    }

    /// Leaves the files where they are: there are slots that open with them, or nobody knows whether there
    /// are.
    pub(super) fn keep(mut self) {
        self.paths.clear();
    }

    /// Makes a key and writes it to a new file; what stands there now is read back and compared.
    ///
    /// # Errors
    /// Kind Invalid, code `key_file_exists`; the file system's; kind Data, `key_file_malformed`, when
    /// another text was read back than was written.
    fn create(&mut self, path: &Path, remarks: &[String]) -> Result<Secret> {
        let key = Secret::random_key()?;
        let text = key_text::render(key.key()?, remarks);
        let written = write_synced(&RealFs, path, text.as_bytes(), 0o600);
        if written
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::AlreadyExists)
        {
            return Err(Error::invalid(
                "key_file_exists",
                format!("there is a file \"{}\" already", path.display()),
            )
            .with_hint("No key file is ever replaced: name another one."));
        }
        // Ours also when the disk was full in the middle of it.
        self.paths.push(path.to_owned());
        written.map_err(|e| Error::io(format!("could not write \"{}\"", path.display()), e))?;
        let parent = parent_of(path);
        RealFs
            .sync_dir(parent)
            .map_err(|e| Error::io(format!("could not sync \"{}\"", parent.display()), e))?;
        let read = key_text::parse(Secret::read_file(path)?.bytes())?;
        if read.bytes() != key.bytes() {
            return Err(Error::data(
                "key_file_malformed",
                format!(
                    "\"{}\" does not hold what was written to it",
                    path.display()
                ),
            ));
        }
        Ok(read)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.paths.drain(..) {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(
                    code = "key_file_stays",
                    "\"{}\" opens nothing and could not be removed: {error}",
                    path.display()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refused_run_made_goes_and_what_was_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [key, kit] = ["key", "kit"].map(|name| folder.path().join(name));
        let source = KeySource::KeyFile(key.clone());
        let mut made = Made::default();
        made.credential(&source, "r").unwrap();
        made.kit(&kit, "r", &[1; 16]).unwrap();
        assert!(key.exists() && kit.exists());
        drop(made);
        assert!(!key.exists() && !kit.exists());

        let mut made = Made::default();
        made.credential(&source, "r").unwrap();
        made.keep();
        let text = std::fs::read(&key).unwrap();
        let mut made = Made::default();
        // The one that is there is used, and not this run's to remove; nor is one in the way.
        made.credential(&source, "r").unwrap();
        let refused = made.kit(&key, "r", &[1; 16]).unwrap_err();
        assert_eq!(refused.code(), "key_file_exists");
        drop(made);
        assert_eq!(std::fs::read(&key).unwrap(), text);
    }
}
