//! Restores of the synthetic cluster of `backup::testdata`, for the crash and flip tests.

use super::{Archiving, Destination, Execution, Outcome, Plan, Request};
use crate::Result;
use crate::backup::testdata::{NAME, TABLESPACE, tree};
use crate::cancel::CancelToken;
use crate::crashsafe::SharedFs;
use crate::repository::Repository;
use crate::repository::backups::Backup;
use pgark_types::{RecoveryTarget, TargetAction, TargetTimeline};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// By path: mode and content.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Plans to restore the newest backup to the end of the WAL.
pub(crate) fn plan(repository: &Repository) -> Result<(Plan, Backup)> {
    let request = Request {
        component: NAME.to_owned(),
        backup: None,
        target: RecoveryTarget::Latest,
        inclusive: true,
        timeline: TargetTimeline::Latest,
        end_before_gap: false,
    };
    super::plan(repository, &request)
}

/// Restores to `<host>/target`, the tablespace to `<host>/tablespace`.
pub(crate) fn restore(
    plan: &Plan,
    backup: &Backup,
    host: &Path,
    fs: SharedFs,
    delta: bool,
) -> Result<Outcome> {
    let map = BTreeMap::from([(TABLESPACE.to_string(), host.join("tablespace"))]);
    let destination = Destination::new(&host.join("target"), &plan.manifest.tablespaces, &map)?;
    let execution = Execution {
        plan,
        destination: &destination,
        fs,
        delta,
        archiving: Archiving::Off,
        action: TargetAction::Promote,
        standby: None,
        restore_command: "pgark archive-get %f %p".to_owned(),
        threads: 1,
    };
    super::run(backup, &execution, &CancelToken::default())
}

/// What is on `host`, comparable with other hosts. The tablespace's link and map name a directory
/// of this host, and `backup_manifest` holds the time and a checksum of the map: it is left out.
pub(crate) fn state(host: &Path) -> Tree {
    let mut state = tree(host);
    let place = host.join("tablespace").display().to_string();
    for (_, content) in state.values_mut() {
        if let Ok(text) = std::str::from_utf8(content)
            && text.contains(&place)
        {
            *content = text.replace(&place, "TABLESPACE").into_bytes();
        }
    }
    state.remove(Path::new("target/backup_manifest"));
    state
}

/// The names in which two states differ, for messages.
pub(crate) fn differences(a: &Tree, b: &Tree) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = names
        .into_iter()
        .filter(|path| a.get(*path) != b.get(*path));
    differ
        .map(|path| match (a.get(path), b.get(path)) {
            (Some(_), None) => format!("+{}", path.display()),
            (None, Some(_)) => format!("-{}", path.display()),
            _ => path.display().to_string(),
        })
        .collect()
}
