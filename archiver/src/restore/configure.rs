//! The settings that make a restored cluster recover to the target, and no further.

use super::plan::Plan;
use pgark_types::{TargetAction, TargetTimeline};
use std::fmt::Write as _;
use std::path::Path;

/// Settings of an earlier recovery: they must not outlive it.
const STALE: &[&str] = &[
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "restore_command",
    "recovery_end_command",
    "archive_cleanup_command",
];

/// What to do about `archive_mode` and the like in the restored cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Archiving {
    /// Off: a clone must not write into the archive of the original.
    #[default]
    Off,
    /// As the backup's configuration says.
    Keep,
}

/// The restored `postgresql.auto.conf`: what was in it, less stale recovery settings, then ours.
#[must_use]
pub(super) fn auto_conf(
    before: &str,
    plan: &Plan,
    restore_command: &str,
    archiving: Archiving,
    action: TargetAction,
    standby: Option<TargetTimeline>,
) -> String {
    let mut text = String::new();
    for line in before.lines() {
        if !is_stale(line, archiving) {
            text.push_str(line);
            text.push('\n');
        }
    }
    let mut set = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    };
    set("restore_command", restore_command);
    // A recovery gets the number that was planned; a standby must be able to follow a promotion.
    let timeline = match standby {
        Some(TargetTimeline::Latest) => "latest".to_owned(),
        _ => plan.timeline.to_string(),
    };
    set("recovery_target_timeline", &timeline);
    if plan.immediate {
        set("recovery_target", "immediate");
        set("recovery_target_action", action.as_str());
    } else if let Some(lsn) = plan.target_lsn {
        set("recovery_target_lsn", &lsn.to_string());
        set(
            "recovery_target_inclusive",
            if plan.inclusive { "on" } else { "off" },
        );
        set("recovery_target_action", action.as_str());
    }
    if archiving == Archiving::Off {
        set("archive_mode", "off");
    }
    text
}

fn is_stale(line: &str, archiving: Archiving) -> bool {
    let name = line
        .split(['=', ' ', '\t'])
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    STALE.iter().any(|stale| name.eq_ignore_ascii_case(stale))
        || (archiving == Archiving::Off && name.eq_ignore_ascii_case("archive_mode"))
}

/// The `restore_command` of this binary and configuration.
#[must_use]
pub fn restore_command(binary: &Path, config: &Path) -> String {
    let quote = |path: &Path| shell_quote(&path.display().to_string().replace('%', "%%"));
    format!(
        "{} --config {} archive-get %f %p",
        quote(binary),
        quote(config)
    )
}

/// Quotes for the shell, only where it needs it.
#[must_use]
pub(super) fn shell_quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-=:,@%+".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The command that starts the restored cluster.
#[must_use]
pub(super) fn start_command(plan: &Plan, target: &Path) -> String {
    let major = plan.manifest.postgres.version_num / 10_000;
    let debian = Path::new("/usr/lib/postgresql")
        .join(major.to_string())
        .join("bin/pg_ctl");
    let pg_ctl = if debian.exists() {
        debian.display().to_string()
    } else {
        "pg_ctl".to_owned()
    };
    let directory = shell_quote(&target.display().to_string());
    let Some(config_file) = &plan.manifest.postgres.config_file else {
        return format!("{pg_ctl} start -w -D {directory}");
    };
    // The configuration was outside the data directory, and names the original's files.
    let config = target.join(super::destination::CONFIG_DIRECTORY);
    let captured = |name: &str| {
        config
            .join(name.trim_start_matches('/'))
            .display()
            .to_string()
    };
    let folder = Path::new(config_file)
        .parent()
        .unwrap_or(Path::new("/"))
        .display()
        .to_string();
    let options = format!(
        "-c config_file={} -c data_directory={} -c hba_file={} -c ident_file={}",
        captured(config_file),
        target.display(),
        captured(&format!("{folder}/pg_hba.conf")),
        captured(&format!("{folder}/pg_ident.conf")),
    );
    format!(
        "{pg_ctl} start -w -D {directory} -o {}",
        shell_quote(&options)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_settings_go() {
        assert!(is_stale("recovery_target_lsn = '0/1'", Archiving::Keep));
        assert!(is_stale("  Restore_Command='x'", Archiving::Keep));
        assert!(is_stale("archive_mode = on", Archiving::Off));
        assert!(!is_stale("archive_mode = on", Archiving::Keep));
        assert!(!is_stale("recovery_prefetch = off", Archiving::Off));
        assert!(!is_stale("# restore_command", Archiving::Off));
    }

    #[test]
    fn quoting() {
        assert_eq!(shell_quote("/usr/bin/pgark"), "/usr/bin/pgark");
        assert_eq!(shell_quote("a b'c"), "'a b'\\''c'");
        let command = restore_command(Path::new("/opt/50% off/pgark"), Path::new("/etc/p.toml"));
        assert_eq!(
            command,
            "'/opt/50%% off/pgark' --config /etc/p.toml archive-get %f %p"
        );
    }
}
