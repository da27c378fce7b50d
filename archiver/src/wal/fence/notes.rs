//! What this host has begun, in the agent's state directory: a run that died is continued by the next one.

use super::Fence;
use crate::crashsafe::{RealFs, write_durable};
use crate::repository::sealed;
use crate::{Error, Result};
use pgark_types::SystemId;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Losing them loses no more than that: the next run has to be told --yes.
#[derive(Debug, Clone)]
pub(super) struct Notes {
    state: PathBuf,
}

impl Notes {
    pub(super) fn new(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.state.join("promotion.json")
    }

    /// The epoch of `system_id` that this host has begun to take.
    ///
    /// # Errors
    /// The file cannot be read. One that is damaged is none.
    pub(super) fn claim(&self, system_id: SystemId) -> Result<Option<Fence>> {
        let path = self.path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                return Err(Error::io(
                    format!("could not read \"{}\"", path.display()),
                    e,
                ));
            }
        };
        match sealed::open::<Fence>(&path.display().to_string(), &bytes) {
            Ok(fence) => Ok(Some(fence).filter(|f| f.system_identifier == system_id)),
            Err(error) => {
                tracing::warn!(code = error.code(), "a note is passed over: {error}");
                Ok(None)
            }
        }
    }

    pub(super) fn note(&self, fence: &Fence) -> Result<()> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state);
        made.map_err(|e| {
            Error::io(format!("could not create \"{}\"", self.state.display()), e)
                .with_hint("It is agent.state_dir: what was begun is noted there.")
        })?;
        write_durable(&RealFs, &self.path(), &sealed::seal(fence)?, 0o600)
    }

    /// One that stays is no harm: an epoch that was ended is not continued.
    pub(super) fn forget(&self) {
        let _ = std::fs::remove_file(self.path());
    }
}
