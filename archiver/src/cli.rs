//! The command line: flags only.

use crate::commands::{self, Output};
use crate::examples;
use std::path::PathBuf;

/// Keeps the options of every command apart from those of the one at hand.
const GLOBAL: &str = "Options of every command";

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
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", env = "PGARK_CONFIG", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print results as text or as one JSON object.
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: Output,
    /// How much to log to standard error.
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "LEVEL",
        value_enum,
        env = "PGARK_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: LogLevel,
    /// Log as text or as JSON lines.
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "FORMAT",
        value_enum,
        env = "PGARK_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The least important log lines that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may fail soon.
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
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
    /// Create the configured repositories.
    #[command(after_help = examples::INIT)]
    Init(commands::init::Args),
    /// Run the agent: pushes and fetches WAL in parallel, behind a socket.
    #[command(after_help = examples::AGENT)]
    Agent(commands::agent::Args),
    /// Check configuration, server and repositories; switch WAL and wait until it is archived.
    #[command(after_help = examples::CHECK)]
    Check(commands::check::Args),
    /// Say what is wrong with the extension, its jobs and the server's settings. Exit code 3 then.
    #[command(after_help = examples::DOCTOR)]
    Doctor(commands::doctor::Args),
    /// List backups, WAL, and the window that a restore can reach.
    #[command(after_help = examples::INFO)]
    Info(commands::info::Args),
    /// Store one WAL file: archive_command = 'pgark archive-push %p'.
    #[command(after_help = examples::ARCHIVE_PUSH)]
    ArchivePush(commands::archive_push::Args),
    /// Fetch one WAL file: restore_command = 'pgark archive-get %f %p'.
    #[command(after_help = examples::ARCHIVE_GET)]
    ArchiveGet(commands::archive_get::Args),
    /// Back up the cluster and other components, several as one set.
    #[command(after_help = examples::BACKUP)]
    Backup(commands::backup::Args),
    /// Restore the cluster into a directory, to any point that its WAL reaches.
    #[command(after_help = examples::RESTORE)]
    Restore(commands::restore::Args),
    /// Restore the cluster and other components to one moment: a set's, or any.
    #[command(after_help = examples::RESTORE_SET)]
    RestoreSet(commands::restore_set::Args),
    /// Say what can be reached, what is damaged, and which backup to go back to. Exit code 3 when
    /// something is wrong.
    #[command(after_help = examples::ASSESS)]
    Assess(commands::assess::Args),
    /// Compare a component's ids with a Postgres query. Exit code 3 when they differ.
    #[command(after_help = examples::RECONCILE)]
    Reconcile(commands::reconcile::Args),
    /// Copy backups and WAL from one repository to another.
    Repo(commands::repo::Args),
    /// Verify what is stored, without restoring it. Exit code 3 when something is wrong.
    #[command(after_help = examples::VERIFY)]
    Verify(commands::verify::Args),
    /// Say what to keep: backups by number, age and calendar, and a window of WAL.
    #[command(subcommand)]
    Retention(commands::retention::Command),
    /// Apply the retention policy.
    #[command(after_help = examples::EXPIRE)]
    Expire(commands::expire::Args),
    /// Take the expiry of a backup back, until gc has removed it.
    #[command(after_help = examples::UNDELETE)]
    Undelete(commands::mark::Which),
    /// Keep a backup, whatever the retention policy says.
    #[command(after_help = examples::PIN)]
    Pin(commands::mark::Pin),
    /// Leave a pinned backup to the retention policy again.
    #[command(after_help = examples::UNPIN)]
    Unpin(commands::mark::Which),
    /// Note something about a backup.
    #[command(after_help = examples::ANNOTATE)]
    Annotate(commands::mark::Annotate),
    /// Remove what nothing refers to: expired backups, their WAL, what crashes left.
    #[command(after_help = examples::GC)]
    Gc(commands::gc::Args),
    /// The tables of the extension, a cache of the repositories.
    #[command(subcommand)]
    Catalog(commands::catalog::Command),
    /// Search the archived WAL: gaps, and what happened to a table.
    Wal(commands::wal::Args),
    /// Tell the repositories about a pg_upgrade.
    Cluster(commands::cluster::Args),
    /// Promote the standby of this host, so that every repository knows which server goes on.
    #[command(after_help = examples::PROMOTE)]
    Promote(commands::promote::Args),
    /// List, add, remove, rotate and prove the keys of an encrypted repository.
    Key(commands::key::Args),
    /// Look at the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `pgark config`.
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum ConfigCommand {
    /// Parse the configuration file and report the first mistake.
    #[command(after_help = examples::CONFIG_CHECK)]
    Check,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    fn check(command: &clap::Command, path: &str) {
        let verbs = command.get_subcommands().filter(|c| c.get_name() != "help");
        for verb in verbs {
            let path = format!("{path} {}", verb.get_name());
            if verb.has_subcommands() {
                check(verb, &path);
                continue;
            }
            let help = verb.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let examples: Vec<&str> = help.lines().filter_map(|l| l.strip_prefix("  ")).collect();
            assert!(!examples.is_empty(), "{path} has no examples");
            for example in examples {
                assert!(example.starts_with(&path), "{example:?} below {path}");
                let parsed = Cli::try_parse_from(example.split_whitespace());
                assert!(parsed.is_ok(), "{example:?}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn every_verb_has_examples_that_parse() {
        check(&Cli::command(), "pgark");
    }
}
