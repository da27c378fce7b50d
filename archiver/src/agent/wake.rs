//! Waking Postgres's archiver. After three failures it sleeps for up to a minute; a SIGHUP, which
//! also re-reads its configuration, makes it look at once (`pgarch_MainLoop`, `pgarch.c`).

use super::host::Host;
use super::stats::Stats;
use std::os::unix::fs::MetadataExt;

/// Sends SIGHUP to the archiver of the host's cluster, if there is one and it is this user's.
pub(super) fn wake_archiver(host: &Host, stats: &Stats) {
    let Some(pid) = host.postmaster().and_then(archiver_of) else {
        return;
    };
    let Some(process) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    match rustix::process::kill_process(process, rustix::process::Signal::HUP) {
        Ok(()) => {
            stats.wakeups.add();
            tracing::info!("woke Postgres's archiver (process {pid})");
        }
        Err(error) => tracing::warn!("could not wake Postgres's archiver: {error}"),
    }
}

fn archiver_of(postmaster: i32) -> Option<i32> {
    let own = rustix::process::geteuid().as_raw();
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}"));
        let parent = read("stat").ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            rest.split_whitespace().nth(1)?.parse::<i32>().ok()
        });
        parent == Some(postmaster)
            && std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == own)
            && read("cmdline").is_ok_and(|title| is_archiver_title(&title))
    })
}

/// `postgres: [<cluster_name>: ]archiver[ <activity>]`. A client backend's title has its user and
/// database there, and could hold the word too.
fn is_archiver_title(title: &str) -> bool {
    let title = title.trim_end_matches(['\0', ' ']);
    let Some(rest) = title.strip_prefix("postgres: ") else {
        return false;
    };
    let rest = rest.rsplit_once(": ").map_or(rest, |(_, rest)| rest);
    let activity = rest.strip_prefix("archiver");
    activity.is_some_and(|a| {
        a.is_empty()
            || [" archiving ", " last was ", " failed on "]
                .iter()
                .any(|word| a.trim_end_matches(['\0', ' ']).starts_with(word))
    })
}

#[cfg(test)]
mod tests {
    use super::is_archiver_title;

    #[test]
    fn only_the_archiver_is_woken() {
        for title in [
            "postgres: archiver ",
            "postgres: main: archiver last was 000000010000000000000003",
            "postgres: archiver failed on 000000010000000000000003\0",
            "postgres: 17/main: archiver archiving 000000010000000000000003",
        ] {
            assert!(is_archiver_title(title), "{title}");
        }
        for title in [
            "postgres: archiver db [local] idle",
            "postgres: walwriter ",
            "archiver",
            "postgres: archiver_user db 10.0.0.1(5) idle",
        ] {
            assert!(!is_archiver_title(title), "{title}");
        }
    }
}
