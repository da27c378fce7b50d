//! `pgark cluster`.

use super::output::{Output, print_json, print_text};
use crate::Result;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::postgres::control_file::ControlFile;
use crate::postgres::session::Session;
use crate::wal::cluster::{self, Identity};
use serde_json::json;
use std::path::PathBuf;

/// The cluster's identity in the repositories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Register the cluster's new system identifier after pg_upgrade, under the same name.
    #[command(after_help = crate::examples::UPGRADE)]
    Upgrade,
}

/// Runs the subcommand.
///
/// # Errors
/// As [`cluster::upgrade`]; or the data directory cannot be read.
pub fn run(config: &Config, args: &Args, output: Output) -> Result<()> {
    let Command::Upgrade = args.command;
    let section = config.require_cluster()?;
    let directory = match &section.data_directory {
        Some(directory) => directory.clone(),
        None => PathBuf::from(
            Session::connect(&section.conninfo, "pgark cluster upgrade")?.show("data_directory")?,
        ),
    };
    let (control, _) = ControlFile::read(&directory)?;
    let identity = Identity {
        system_identifier: control.system_identifier,
        segment_size: control.wal_segment_size,
        postgres_major: control.major(),
    };
    for (name, repository, storage) in config.storages()? {
        let repository = repository.open(&name, storage)?;
        cluster::upgrade(&repository, &section.name, identity, &SystemClock)?;
        if output == Output::Text {
            print_text(format_args!(
                "cluster \"{}\" has system identifier {} in repository \"{name}\"; take a backup now",
                section.name, control.system_identifier
            ));
        }
    }
    if output == Output::Json {
        print_json(
            json!({"cluster": section.name, "system_identifier": control.system_identifier}),
        );
    }
    Ok(())
}
