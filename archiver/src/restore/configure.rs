//! The settings that make a restored cluster recover to the target, and no further.

use super::plan::Plan;
use crate::repository::format::manifest::PostgresInfo;
use pgark_types::{TargetAction, TargetTimeline};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

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

/// Settings that the configuration files of the original may hold from an earlier recovery, or from
/// its life as a standby. Postgres allows one target alone, and a stale one would end recovery
/// early. Emptied before ours is set: Postgres applies them in the order of the file, and an empty
/// one behind ours counts as a second target.
const EMPTIED: &[&str] = &[
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
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
    for name in EMPTIED {
        set(name, "");
    }
    if standby.is_none() {
        set("recovery_min_apply_delay", "0");
    }
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
    } else if let Some(last) = plan.last_record
        && standby.is_none()
        && action != TargetAction::Promote
    {
        // Postgres acts at a target alone: without one it would promote, whatever the action says.
        set("recovery_target_lsn", &last.to_string());
        set("recovery_target_inclusive", "on");
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
    let options = layout_options(&plan.manifest.postgres, target);
    if options.is_empty() {
        return format!("{pg_ctl} start -w -D {directory}");
    }
    format!(
        "{pg_ctl} start -w -D {directory} -o {}",
        shell_quote(&options.join(" "))
    )
}

/// The server's options that lead it to configuration which was outside the data directory: what
/// is in those files names the original's places. Quoted for the shell that `pg_ctl` runs.
fn layout_options(postgres: &PostgresInfo, target: &Path) -> Vec<String> {
    let config = target.join(super::destination::CONFIG_DIRECTORY);
    let original = Path::new(&postgres.data_directory);
    let outside = |file: &str| !Path::new(file).starts_with(original);
    let place = |file: &str| match Path::new(file).strip_prefix(original) {
        Ok(within) => target.join(within),
        Err(_) => config.join(file.trim_start_matches('/')),
    };
    let option = |name: &str, path: &Path| shell_quote(&format!("--{name}={}", path.display()));
    let mut options = Vec::new();
    if let Some(file) = &postgres.config_file {
        options.push(option("config_file", &place(file)));
        options.push(option("data_directory", target));
        // Debian's names a file of the original, which a copy must not overwrite.
        options.push("--external_pid_file=".to_owned());
    }
    for (name, file) in [
        ("hba_file", &postgres.hba_file),
        ("ident_file", &postgres.ident_file),
    ] {
        if let Some(file) = file
            && (postgres.config_file.is_some() || outside(file))
        {
            options.push(option(name, &place(file)));
        }
    }
    options
}

/// The directories that `include_dir` lines of the configuration file at `path` name relative to
/// it. Debian's is empty at first, so nothing of it is in the backup, and without it the server
/// does not start.
pub(super) fn include_directories(path: &Path, text: &str) -> Vec<PathBuf> {
    let parent = path.parent().unwrap_or(path);
    let named = text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix("include_dir")?;
        let value = rest
            .trim_start_matches(['=', ' ', '\t'])
            .strip_prefix('\'')?;
        let (value, _) = value.split_once('\'')?;
        let plain = Path::new(value)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        (plain && !value.is_empty()).then(|| parent.join(value))
    });
    named.collect()
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

    #[test]
    fn included_directories() {
        let text = "include_dir = 'conf.d' # more\n  include_dir 'x/y'\n#include_dir = 'no'\n\
                    include_dir = '/abs'\ninclude_dir='../up'\ninclude 'file'\n";
        assert_eq!(
            include_directories(Path::new("/t/etc/postgresql.conf"), text),
            [Path::new("/t/etc/conf.d"), Path::new("/t/etc/x/y")]
        );
    }
}
