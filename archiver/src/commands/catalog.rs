//! `pgark catalog`.

use super::output::{Output, print_json, print_text};
use crate::catalog::policy::{self, Here};
use crate::catalog::{Catalog, Connection, Mended, Occasion};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::wal::repositories::Repositories;
use crate::{Result, exit_code};
use serde_json::json;
use std::path::PathBuf;

/// `pgark catalog`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Fill the extension's tables from the repositories: backups, WAL, recovery windows, alerts, audit,
    /// schedules and retention. The agent does so by itself; nothing in a repository changes but a
    /// policy or an audit record that SQL has and it has not.
    #[command(after_help = crate::examples::CATALOG_REBUILD)]
    Rebuild(Rebuild),
}

/// `pgark catalog rebuild`.
#[derive(Debug, Clone, clap::Args)]
pub struct Rebuild {}

/// Rebuilds; the exit code is 3 when a repository could not be read.
///
/// # Errors
/// Kind Invalid, `extension_missing`; Unavailable, `in_recovery` or `server_unreachable`; or the server's.
pub fn run(config: &Config, command: &Command, output: Output) -> Result<u8> {
    let Command::Rebuild(Rebuild {}) = command;
    let mut connection = Connection::open(config, "pgark catalog")?;
    let section = config.require_cluster()?;
    let data_directory = match &section.data_directory {
        Some(path) => path.clone(),
        None => PathBuf::from(connection.show("data_directory")?),
    };
    let repositories = Repositories::open(config)?;
    let here = Here::ask(&mut connection, &data_directory)?;
    let synced = policy::sync(
        &mut connection,
        &section.name,
        &repositories,
        &here,
        &SystemClock,
    )?;
    let mut occurrences = 0;
    for (repository, _) in &repositories.open {
        let now = SystemClock.now();
        occurrences += connection.learn_occurrences(repository, &section.name, now, |_| false)?;
    }
    let mut catalog = Catalog::new(&crate::repository::audit::node()).patient();
    let mut mended = catalog.refresh(
        config,
        &mut connection,
        SystemClock.now(),
        Occasion::Thorough,
    )?;
    // A refresh takes a share of the audit alone.
    loop {
        let more = catalog.refresh(
            config,
            &mut connection,
            SystemClock.now(),
            Occasion::Routine,
        )?;
        mended.audit_loaded += more.audit_loaded;
        mended.audit_stored += more.audit_stored;
        if more.audit_loaded + more.audit_stored == 0 {
            break;
        }
    }
    match output {
        Output::Json => print_json(json!({
            "tables": mended.tables.iter().map(|(name, changed)| json!({
                "name": name, "written": changed.written, "removed": changed.removed,
            })).collect::<Vec<_>>(),
            "policy_rows": synced.imported,
            "policy_stored": synced.stored,
            "policy_rewound": synced.rewound,
            "occurrences": occurrences,
            "audit_loaded": mended.audit_loaded,
            "audit_stored": mended.audit_stored,
            "alerts": mended.alerts,
            "unreadable_repositories": mended.unknown,
        })),
        Output::Text => text(&mended, synced, occurrences),
    }
    Ok(match mended.unknown.is_empty() {
        true => exit_code::DONE,
        false => exit_code::FINDINGS,
    })
}

fn text(mended: &Mended, synced: policy::Synced, occurrences: usize) {
    for (name, changed) in &mended.tables {
        if changed.written + changed.removed > 0 {
            print_text(format_args!(
                "{name}: {} rows written, {} removed",
                changed.written, changed.removed
            ));
        }
    }
    if synced.rewound {
        print_text(
            "the tables were rewound or copied: the repository's schedules and retention count",
        );
    }
    if synced.imported > 0 {
        print_text(format_args!(
            "schedules and retention: {} rows from the repository",
            synced.imported
        ));
    }
    if synced.stored {
        print_text("schedules and retention: put into the repository");
    }
    if occurrences > 0 {
        print_text(format_args!(
            "{occurrences} occurrences of schedules were run already"
        ));
    }
    if mended.audit_loaded + mended.audit_stored > 0 {
        print_text(format_args!(
            "audit: {} records from the repository, {} put into it",
            mended.audit_loaded, mended.audit_stored
        ));
    }
    for name in &mended.unknown {
        print_text(format_args!(
            "repository {name} cannot be read: its rows are as before (see the view pgark.alert)"
        ));
    }
    print_text(format_args!(
        "the catalog is complete; {} alerts hold",
        mended.alerts
    ));
}
