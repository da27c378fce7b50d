//! The command line: flags only.

use crate::commands::{self, Output};
use std::path::PathBuf;

/// Backup and point-in-time recovery for Postgres.
///
/// Exit codes: 0 done, 2 usage, 3 findings, 10 invalid request, 20 unavailable, 30 damaged data,
/// 40 conflict, 50 fenced, 70 internal, 134 panic. archive-get has codes of its own: 0 verified
/// bytes, 1 proven absent, above 200 anything else, so that a recovery stops instead of ending
/// early.
#[derive(Debug, clap::Parser)]
#[command(name = "pgark", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "PGARK_CONFIG", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print results as text or as one JSON object.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub output: Output,
    /// How much to log to standard error: error, warn, info, debug, trace.
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "PGARK_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
    /// Log as text or JSON lines.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "PGARK_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make the configured repositories.
    Init(commands::init::Args),
    /// Run the agent: parallel WAL push and get, behind a socket.
    Agent(commands::agent::Args),
    /// Try the whole path from the server's WAL to the repository.
    Check(commands::check::Args),
    /// List backups, WAL, and the window that can be recovered to.
    Info(commands::info::Args),
    /// Store one WAL file: archive_command = 'pgark archive-push %p'.
    ArchivePush(commands::archive_push::Args),
    /// Fetch one WAL file: restore_command = 'pgark archive-get %f %p'.
    ArchiveGet(commands::archive_get::Args),
    /// Take a base backup.
    Backup(commands::backup::Args),
    /// Restore to any point in time.
    Restore(commands::restore::Args),
    /// Verify what is stored, without restoring it.
    Verify(commands::verify::Args),
    /// Search the archived WAL.
    Wal(commands::wal::Args),
    /// Tell the repositories about pg_upgrade.
    Cluster(commands::cluster::Args),
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

/// `pgark config`.
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum ConfigCommand {
    /// Parse the configuration file and report the first mistake.
    Check,
}
