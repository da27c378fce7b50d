//! Why there is no plan, and what to do instead.

use super::plan::Request;
use crate::Error;
use crate::repository::format::manifest::Label;
use crate::wal::target::Window;
use chrono::Utc;
use pgark_types::RecoveryTarget;

/// What to do about a backup that is damaged.
pub(super) fn older_may_do(error: Error, label: &Label, labels: &[Label]) -> Error {
    if error.kind() != crate::ErrorKind::Data {
        return error;
    }
    // Oldest first.
    let before = labels.iter().take_while(|other| other.label != label.label);
    let older = before.last();
    let error = error.context(format_args!("backup {}", label.label));
    match older {
        Some(older) => error.with_hint(format!(
            "An older backup may do, with the WAL since then: --backup {}.",
            older.label
        )),
        None => error.with_hint(
            "There is no older backup. \"pgark info\" shows expired ones, which \"pgark undelete\" may bring back; \"pgark verify\" says what else is damaged.",
        ),
    }
}

/// The target lies before the end of `label`, the backup that is left for it; `oldest` is the oldest there is.
pub(super) fn before_every_backup(
    request: &Request,
    label: &Label,
    oldest: &Label,
    window: Option<Window>,
) -> Error {
    let until = match window {
        Some(window) => {
            let time = window
                .to_time
                .map_or_else(|| "unknown".to_owned(), |t| t.to_rfc3339());
            format!("{time} (LSN {})", window.to_lsn)
        }
        None => "unknown, since WAL is missing".to_owned(),
    };
    let after_oldest = match &request.target {
        RecoveryTarget::Time(time) => time.with_timezone(&Utc) >= oldest.stopped_at,
        RecoveryTarget::Lsn(lsn) => *lsn >= oldest.stop_lsn,
        _ => false,
    };
    // Within the window, and still out of reach.
    let hint = match (&request.backup, after_oldest) {
        (Some(_), true) => {
            "The backup that --backup names ended later. Leave --backup out: an older one may serve."
        }
        (None, true) => {
            "WAL is missing between the older backups and the target: see \"pgark wal ranges\". Choose a target before that gap or after the next backup, or a repository that has the WAL."
        }
        (_, false) => "Choose a target within the window, or a repository with older backups.",
    };
    Error::invalid(
            "target_out_of_window",
            "the recovery target lies before the end of every backup that could serve it",
        )
        .with_detail(format!(
            "The window reaches from {} (LSN {}) to {until}; the backup that is left for the target, \"{}\", ends at {} (LSN {}).",
            oldest.stopped_at.to_rfc3339(),
            oldest.stop_lsn,
            label.label,
            label.stopped_at.to_rfc3339(),
            label.stop_lsn,
        ))
        .with_hint(hint)
}
