//! Where a volume is reached: in its directory on this host, or through the engine.

use super::DockerVolume;
use super::engine::Engine;
use super::volume::{Volume, directory};
use crate::{Error, Result};
use std::path::PathBuf;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Directory(PathBuf),
    Api,
}

impl Place {
    /// The word for it in a point.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Api => "api",
        }
    }
}

/// How a volume is reached.
///
/// # Errors
/// Kind Invalid: `mountpoint_unreadable`, `podman_archive`; the engine's.
pub(super) fn of(driver: &DockerVolume, engine: &Engine, volume: &Volume) -> Result<Place> {
    let unreadable = match driver.settings.through_api {
        Some(true) => None,
        Some(false) => return readable(driver, engine, volume).map(Place::Directory),
        None => match readable(driver, engine, volume) {
            Ok(path) => return Ok(Place::Directory(path)),
            Err(error) if error.code() == "mountpoint_unreadable" => Some(error),
            Err(error) => return Err(error),
        },
    };
    if !engine.is_podman {
        return Ok(Place::Api);
    }
    let error = Error::invalid(
        "podman_archive",
        format!(
            "volume \"{}\" cannot be read through Podman's API",
            volume.name
        ),
    )
    .with_detail("Podman's archives say that root owns every file.")
    .with_hint(
        "Run pgark as the user that runs Podman, where the volume's directory can be read, without through_api.",
    );
    Err(match unreadable {
        Some(cause) => error.with_source(cause),
        None => error,
    })
}

/// The directory of a volume, when this host can read it.
///
/// # Errors
/// Kind Invalid, `mountpoint_unreadable`; the engine's.
pub(super) fn readable(driver: &DockerVolume, engine: &Engine, volume: &Volume) -> Result<PathBuf> {
    let refused = |why: String| {
        Error::invalid(
            "mountpoint_unreadable",
            format!(
                "the directory of volume \"{}\" cannot be read here",
                volume.name
            ),
        )
        .with_detail(why)
        .with_hint("Run pgark as root on the engine's host, or set through_api = true.")
    };
    let Some(path) = directory(volume) else {
        return Err(refused(format!(
            "Driver \"{}\" with its options mounts it only while a container uses it.",
            volume.driver
        )));
    };
    // A socket may lead to another host, which has directories of the same names.
    if driver.settings.through_api != Some(false) {
        let here = rustix::system::uname();
        let here = here.nodename().to_string_lossy().into_owned();
        let there = engine.host()?;
        if here != there {
            return Err(refused(format!(
                "The engine is on the host \"{there}\", and this one is \"{here}\". If they are one, as with \
                 pgark in a container, set through_api = false."
            )));
        }
    }
    let found = std::fs::symlink_metadata(path);
    match found.and_then(|found| std::fs::read_dir(path).map(|_| found.is_dir())) {
        Ok(true) => Ok(path.to_owned()),
        Ok(false) => Err(refused(format!("\"{}\" is no directory.", path.display()))),
        Err(e) => Err(refused(format!("\"{}\": {e}.", path.display()))),
    }
}
