//! Whether another server was promoted, and this one goes on all the same.

use crate::config::Cluster;
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::Session;
use crate::repository::Repository;
use crate::wal::fence::{Epochs, lineage};
use crate::{Error, ErrorKind, Result};
use std::path::PathBuf;

pub(super) fn check(
    section: &Cluster,
    session: &mut Session,
    control: &ControlFile,
    repositories: &[Repository],
) -> Result<((), String)> {
    let mut epochs = Epochs::default();
    let mut failed = None;
    for repository in repositories {
        match Epochs::read(repository, control.system_identifier) {
            Ok(of_this) => epochs.join(of_this),
            Err(error) => failed = Some(error),
        }
    }
    let Some(newest) = epochs.newest() else {
        let detail = match (failed, epochs.unreadable.last()) {
            (Some(error), _) => format!("cannot be told: {error}"),
            (None, Some(number)) => format!("epoch {number} was taken, and cannot be read"),
            (None, None) => "none was taken".to_owned(),
        };
        return Ok(((), detail));
    };
    let directory = match &section.data_directory {
        Some(directory) => directory.clone(),
        None => PathBuf::from(session.show("data_directory")?),
    };
    let timeline = lineage::of_primary(control);
    let left = lineage::left(&epochs, &directory, timeline);
    match left {
        Some((by, _)) if !session.in_recovery()? => Err(Error::new(
            ErrorKind::Fenced,
            "timeline_left",
            format!("another server was promoted: this one still writes timeline {timeline}"),
        )
        .with_detail(format!("The newest is {by}."))
        .with_hint("Stop this server, see docs/runbooks/wal-past-a-fork.md. When it shall go on instead: \"pgark promote --yes\".")),
        _ => Ok(((), newest.to_string())),
    }
}
