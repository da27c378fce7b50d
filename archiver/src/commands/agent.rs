//! `pgark agent`.

use crate::config::Config;
use crate::{Result, agent};
use std::path::Path;

/// Runs the agent of this host's cluster in the foreground.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// As [`agent::run`].
pub fn run(config_path: Option<&Path>, _args: &Args) -> Result<()> {
    agent::run(Config::load(config_path)?)
}
