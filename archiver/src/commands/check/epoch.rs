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
    let epochs = Epochs::of_all(repositories, control.system_identifier);
    let Some(newest) = epochs.newest() else {
        return Ok(((), "none was taken".to_owned()));
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
