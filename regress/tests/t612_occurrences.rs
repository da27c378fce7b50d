//! An occurrence of a schedule runs once.
//!
//! What: pg_cron, the worker and the agent evaluate one schedule at the same instant, and somebody is killed;
//! the server is down when an occurrence is due, and the agent runs it; the tables forget an occurrence that
//! the repository remembers.
//! Trap: two of them queue it, or run it; one that ran while the server was down runs again when it is back.
//! Expectation: one backup, or one run in the audit, for each instant.

use crate::t610_jobs::{committed, installed};
use pgark_regress::process::{kill, wait_until};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

fn rounds() -> u32 {
    if tier::is_full() { 100 } else { 3 }
}

/// Claims in the repository, whoever made them.
fn claims(directory: &TestDirectory, schedule: &str) -> Vec<serde_json::Value> {
    let folder = directory.join("repository/occurrences/main").join(schedule);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    entries.map(read).collect()
}

/// Everybody evaluates the schedule at once, as at the `n`-th full minute after `base`: the clock's own minute
/// may end between two of them.
fn all_at_once(cluster: &Cluster<'_>, base: &str, n: u32) {
    let sources = ["pg_cron", "worker", "agent"];
    std::thread::scope(|scope| {
        for source in sources {
            scope.spawn(move || {
                // A killed server refuses; whoever is left does it.
                let _ = cluster.try_psql("postgres", &format!(
                    "SELECT pgark.tick_at(timestamptz '{base}' + interval '{n} minutes 1 second', '{source}')"
                ));
            });
        }
    });
}

#[test]
fn once_with_everybody_alive() {
    let directory = TestDirectory::new("t612_once");
    let (mut cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    cluster.log_mut().allow("ERROR:  ");
    cluster.log_mut().allow("terminating connection");
    let mut agent = Some(pgark.agent(&[]));
    cluster.psql("SELECT pgark.schedule('often', '* * * * *', 'backup')");
    cluster.wait_for(
        "SELECT bool_and(in_effect) FROM pgark.schedule",
        "t",
        PATIENCE,
    );
    // A minute that nobody counts on.
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now()");
    let base = cluster.psql("SELECT date_trunc('minute', now())");
    for round in 1..=rounds() {
        all_at_once(&cluster, &base, round);
        // Whoever dies, dies at some moment of the job.
        let moment = Duration::from_millis(u64::from(round) * 337 % 2000);
        match round % 3 {
            1 => {
                std::thread::sleep(moment);
                kill(agent.take().unwrap().pid());
                agent = Some(pgark.agent(&[]));
            }
            2 => {
                std::thread::sleep(moment);
                cluster.kill();
                cluster.start();
            }
            _ => {}
        }
        // What was lost before it was queued is due still.
        all_at_once(&cluster, &base, round);
        let open = "SELECT count(*) FROM pgark.job WHERE state IN ('queued', 'running')";
        wait_until("the queue is empty", PATIENCE, || {
            let _ = cluster.try_psql(
                "postgres",
                "UPDATE pgark.queue_job SET not_before = NULL WHERE not_before IS NOT NULL",
            );
            cluster.try_psql("postgres", open).is_ok_and(|n| n == "0")
        });
    }
    let rounds = usize::try_from(rounds()).unwrap();
    let jobs = "SELECT count(*), count(DISTINCT due_at), count(*) FILTER (WHERE state = 'succeeded') FROM pgark.job";
    assert_eq!(cluster.psql(jobs), format!("{rounds}|{rounds}|{rounds}"));
    assert_eq!(claims(&directory, "often").len(), rounds);
    assert_eq!(committed(&pgark), rounds, "a backup for each occurrence");
    drop(agent);
}

/// Runs of the schedule that the repository's audit tells of.
fn expired(directory: &TestDirectory) -> usize {
    let Ok(entries) = std::fs::read_dir(directory.join("repository/audit")) else {
        return 0;
    };
    let texts = entries.map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
    texts
        .filter(|text| text.contains("\"action\":\"expire\""))
        .count()
}

/// Whether the agent knows, even after its death, that the schedule's last occurrence ran.
fn noted(pgark: &Pgark, schedule: &str) -> bool {
    let text = std::fs::read_to_string(pgark.state().join("schedules.json")).unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(&text)
        .is_ok_and(|state| state["done"].get(schedule).is_some())
}

/// The agent believes that it last saw the server an hour ago.
fn an_hour_ago(pgark: &Pgark) {
    let path = pgark.state().join("schedules.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let seen: chrono::DateTime<chrono::Utc> = state["seen_at"].as_str().unwrap().parse().unwrap();
    state["seen_at"] = (seen - chrono::TimeDelta::hours(1)).to_rfc3339().into();
    std::fs::write(&path, state.to_string()).unwrap();
}

#[test]
fn while_the_server_is_down() {
    let directory = TestDirectory::new("t612_down");
    let (mut cluster, pgark) = installed(&directory, Major::Pg15);
    cluster.psql("CREATE EXTENSION pgark");
    pgark.backup();
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "1", PATIENCE);
    cluster.psql("SELECT pgark.set_retention('main', '{\"keep_last\": 5}')");
    cluster.psql("SELECT pgark.schedule('tidy', '0 * * * *', 'expire'), pgark.schedule('full', '0 * * * *', 'backup')");
    cluster.wait_for(
        "SELECT count(*) FROM pgark.schedule WHERE in_effect",
        "2",
        PATIENCE,
    );
    let state = pgark.state().join("schedules.json");
    wait_until("the agent knows the schedules", PATIENCE, || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains("tidy"))
    });
    drop(agent);
    cluster.stop(StopMode::Fast);
    // It goes by what it knows: the occurrence of the last full hour was missed.
    an_hour_ago(&pgark);
    let agent = pgark.agent(&[("PGARK_FAULT_CRASH", "occurrence:claim")]);
    wait_until("the agent dies before it has claimed", PATIENCE, || {
        !pgark_regress::process::is_alive(agent.pid())
    });
    drop(agent);
    assert_eq!(expired(&directory), 0);
    let agent = pgark.agent(&[("PGARK_FAULT_CRASH", "expire:begun")]);
    wait_until("the agent dies after it has claimed", PATIENCE, || {
        !pgark_regress::process::is_alive(agent.pid())
    });
    drop(agent);
    assert_eq!(
        (claims(&directory, "tidy").len(), expired(&directory)),
        (1, 0)
    );
    // It knows its own claim again.
    let agent = pgark.agent(&[]);
    wait_until("expire runs without the server", PATIENCE, || {
        expired(&directory) == 1
    });
    // Killed before it has written that down, it would run it again: harmless, and not the point here.
    wait_until("the agent has noted that it ran", PATIENCE, || {
        noted(&pgark, "tidy")
    });
    // The cluster's backup needs its server.
    assert_eq!(claims(&directory, "full").len(), 0);
    drop(agent);
    let agent = pgark.agent(&[]);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(expired(&directory), 1);
    // The server is back: SQL learns what ran, and runs what did not.
    cluster.start();
    cluster.wait_for(
        "SELECT outcome FROM pgark.queue_occurrence WHERE schedule = 'tidy'",
        "elsewhere",
        PATIENCE,
    );
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '1 hour'; SELECT pgark.tick()");
    cluster.wait_for(
        "SELECT string_agg(schedule || state, ' ') FROM pgark.job",
        "fullsucceeded",
        PATIENCE,
    );
    // A table that has forgotten it is told by the repository.
    cluster.psql(
        "DELETE FROM pgark.queue_occurrence; DELETE FROM pgark.queue_job; SELECT pgark.tick()",
    );
    cluster.wait_for("SELECT string_agg(schedule || ' ' || state || ' ' || coalesce(error_code, ''), ' ' ORDER BY schedule) FROM pgark.job",
        "full succeeded  tidy canceled occurrence_taken", PATIENCE);
    assert_eq!((committed(&pgark), expired(&directory)), (2, 1));
    drop(agent);
}

/// The agent dies while it runs an occurrence without the server, and the server is back before the agent.
fn the_agent_dies_without_the_server(name: &str, fault: &str, who_is_first: &str) {
    let directory = TestDirectory::new(name);
    let (mut cluster, mut pgark) = installed(&directory, Major::Pg15);
    let folder = directory.folder("cold");
    std::fs::write(folder.join("one"), "1").unwrap();
    pgark.configure(&format!(
        "[component.cold]\nkind = \"files\"\npaths = [\"{}\"]\n",
        folder.display()
    ));
    cluster.psql("CREATE EXTENSION pgark");
    let agent = pgark.agent(&[]);
    cluster.wait_for("SELECT count(*) FROM pgark.component", "2", PATIENCE);
    cluster.psql("SELECT pgark.schedule('cold', '0 * * * *', 'backup', ARRAY['cold'])");
    let holds = "SELECT bool_and(in_effect) FROM pgark.schedule";
    cluster.wait_for(holds, "t", PATIENCE);
    wait_until("the agent knows the schedule", PATIENCE, || {
        let state = std::fs::read_to_string(pgark.state().join("schedules.json"));
        state.is_ok_and(|text| text.contains("cold"))
    });
    drop(agent);
    cluster.psql("UPDATE pgark.config_schedule SET effective_at = now() - interval '1 hour'");
    cluster.stop(StopMode::Fast);
    an_hour_ago(&pgark);
    let agent = pgark.agent(&[("PGARK_FAULT_CRASH", fault)]);
    wait_until("the agent dies", PATIENCE, || {
        !pgark_regress::process::is_alive(agent.pid())
    });
    drop(agent);
    assert_eq!(claims(&directory, "cold").len(), 1);
    assert!(!noted(&pgark, "cold"));
    let made = committed(&pgark);
    assert_eq!(made, usize::from(fault == "schedule:ran"));

    cluster.start();
    if who_is_first == "tick" {
        assert_eq!(cluster.psql("SELECT pgark.tick()"), "1");
    }
    let agent = pgark.agent(&[]);
    let ended = "SELECT string_agg(state || ' ' || attempts || ' ' || (result ? 'elsewhere'), ', ') FROM pgark.job";
    let elsewhere = made == 1;
    cluster.wait_for(ended, &format!("succeeded 1 {elsewhere}"), PATIENCE);
    let row = "SELECT string_agg(schedule || ' ' || outcome, ', ') FROM pgark.queue_occurrence";
    assert_eq!(cluster.psql(row), "cold queued");
    assert_eq!(
        (committed(&pgark), claims(&directory, "cold").len()),
        (1, 1)
    );
    drop(agent);
}

#[test]
fn what_was_made_is_not_made_again() {
    for first in ["tick", "agent"] {
        let name = format!("t612_made_{first}");
        the_agent_dies_without_the_server(&name, "schedule:ran", first);
    }
}

#[test]
fn what_was_begun_is_not_lost() {
    for first in ["tick", "agent"] {
        let name = format!("t612_begun_{first}");
        the_agent_dies_without_the_server(&name, "component:captured", first);
    }
}
