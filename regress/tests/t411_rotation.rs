//! A key that is rotated while the repository is in use.
//!
//! What: a server commits and an agent archives, a backup is under way; the key is rotated, a backup is
//! taken with the old configuration and one with the new; the old slots are removed under the running
//! agent, then it is restarted with the new key. The same with a host that can only write.
//! Trap: an agent holds the old key in memory and its data keys with it; a slot that is removed is gone
//! for whoever opens the repository next; what was written under the old key has to be read by who
//! never had it.
//! Expectation: archiving never stops, or says that it needs the new key; each backup, older than the
//! rotation or younger, restores with the new key alone, to the byte.

use crate::t410_encryption::{body, key_file, over, plant};
use pgark_regress::process::wait_until;
use pgark_regress::recovery::{PATIENCE, archived_encrypted, install_encrypted};
use pgark_regress::{Cluster, Ledger, Major, Pgark, StopMode, TestDirectory, ledger, tools};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(1);

/// Rotates; the slots that were there before.
fn rotate(directory: &TestDirectory, pgark: &Pgark) -> Vec<String> {
    let (key, kit) = (directory.join("new.key"), directory.join("new.kit"));
    let (key, kit) = (key.to_str().unwrap(), kit.to_str().unwrap());
    let rotate = ["key", "rotate", "--key-file", key, "--recovery-kit", kit];
    let all = [&["--output", "json"], &rotate[..]].concat();
    let rotated = pgark.run(&all).expect(0).json();
    let slots = rotated["old_slots"].as_array().unwrap().iter();
    slots
        .map(|slot| slot.as_str().unwrap().to_owned())
        .collect()
}

fn label(backup: &Value) -> String {
    backup["label"].as_str().unwrap().to_owned()
}

/// Ends the segment; whether it was archived, or the installation said that its key is no good.
fn goes_on_or_says(cluster: &Cluster<'_>, pgark: &Pgark) -> bool {
    cluster.psql("SELECT pg_logical_emit_message(false, 'test', 'x')");
    let segment = cluster.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let archived = || {
        let last = cluster.psql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver");
        last >= segment
    };
    let told = || {
        let log = pgark.agent_log() + &cluster.log().text();
        log.contains("key_outdated") || log.contains("key_wrong")
    };
    wait_until("archived, or told why not", PATIENCE, || {
        archived() || told()
    });
    archived()
}

/// The server archives with another installation from now on.
fn archive_with(cluster: &Cluster<'_>, pgark: &Pgark) {
    let command = pgark.shell("archive-push %p");
    cluster.configure(&format!("archive_command = '{command}'\n"));
    cluster.reload();
}

/// Whoever opens the repository with the old key from now on is told so.
#[track_caller]
fn assert_key_wrong(pgark: &Pgark, arguments: &[&str]) {
    let refused = pgark.run(arguments).expect(10);
    let told = &refused.stderr;
    assert!(told.contains("(code key_wrong)"), "{arguments:?}: {told}");
}

fn remove(pgark: &Pgark, slots: &[String]) {
    assert!(slots.len() >= 2, "{slots:?}");
    for slot in slots {
        pgark.run(&["key", "remove", slot]).expect(0);
    }
}

#[test]
fn a_key_is_rotated_in_use_15() {
    let directory = TestDirectory::new("t411_in_use");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived_encrypted(&directory, builder);
    let agent = pgark.agent(&[]);
    plant(&cluster);
    let workload = Ledger::start(&directory, &cluster, 2, PAUSE);
    workload.advance(50);
    let old = label(&pgark.backup());
    workload.advance(50);
    let early = workload.mark(&cluster);
    let truth = body(&cluster);

    // While a backup is under way: it ends under the key that it began with.
    let mut under_way = pgark.command(&["--output", "json", "backup"]);
    let under_way = under_way.stdout(std::process::Stdio::piped());
    let under_way = under_way.spawn().unwrap();
    let slots = rotate(&directory, &pgark);
    let under_way = under_way.wait_with_output().unwrap();
    assert!(under_way.status.success(), "{under_way:?}");
    let across = label(&serde_json::from_slice(&under_way.stdout).unwrap());
    workload.advance(100);
    assert!(goes_on_or_says(&cluster, &pgark), "the old agent archives");

    // Backups from a host that does not know yet, and from one that does.
    let unaware = label(&pgark.backup());
    let after = over(
        &directory,
        "after",
        Some(&cluster),
        &key_file(&directory.join("new.key")),
    );
    let aware = label(&after.backup());
    workload.advance(100);

    // The old slots go, the agent is still there.
    remove(&after, &slots);
    assert_key_wrong(&pgark, &["info"]);
    assert_key_wrong(&pgark, &["backup"]);
    let went_on = goes_on_or_says(&cluster, &pgark);
    println!("without its slot the agent went on: {went_on}");
    workload.advance(100);
    // It is restarted with the new key, and nothing of before is missing.
    assert_eq!(agent.terminate(), Some(0));
    std::fs::remove_file(directory.join("local.key")).unwrap();
    archive_with(&cluster, &after);
    let agent = after.agent(&[]);
    workload.advance(100);
    let finished = workload.stop();
    cluster.archive_all();
    assert!(after.agent_counter("pushed") + after.agent_counter("lookahead_hits") > 0);
    let last = label(&after.backup());
    after
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    cluster.stop(StopMode::Fast);
    assert_eq!(agent.terminate(), Some(0));

    let lsn = ["--target-lsn", early.lsn.as_str(), "--target-exclusive"];
    let at = [&["--backup", old.as_str()], &lsn[..]].concat();
    judge(&directory, &after, "early", &at, &truth, &early.counts);
    for (name, backup) in [
        ("old", &old),
        ("across", &across),
        ("unaware", &unaware),
        ("aware", &aware),
        ("last", &last),
    ] {
        let arguments = ["--backup", backup.as_str()];
        let counts = finished.counts();
        judge(&directory, &after, name, &arguments, &truth, &counts);
    }
}

fn judge(
    directory: &TestDirectory,
    pgark: &Pgark,
    name: &str,
    arguments: &[&str],
    truth: &str,
    counts: &std::collections::BTreeMap<u32, u32>,
) {
    println!("{name}: {arguments:?}");
    let mut restored = pgark.recovered(directory, Major::Pg15, name, arguments);
    assert_eq!(body(&restored), truth, "{name}");
    ledger::assert_counts(&restored, counts);
    tools::check_running(&restored, "postgres");
    restored.stop(StopMode::Fast);
    std::fs::remove_dir_all(restored.data()).unwrap();
}

/// Adds a writer's slot with a key of its own.
fn add_writer(owner: &Pgark, name: &str, key: &Path) {
    let key = key.to_str().unwrap();
    let add = ["key", "add", "--name", name, "--writer", "--key-file", key];
    owner.run(&add).expect(0);
}

#[test]
fn a_writer_lives_through_a_rotation_15() {
    let directory = TestDirectory::new("t411_writer");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let mut cluster = builder.init();
    let owner = install_encrypted(&directory, &cluster);
    let key = directory.join("writer.key");
    add_writer(&owner, "host", &key);
    let writer = over(&directory, "writer", Some(&cluster), &key_file(&key));
    let command = writer.shell("archive-push %p");
    cluster.configure(&format!("archive_command = '{command}'\n"));
    cluster.start();
    let agent = writer.agent(&[]);
    plant(&cluster);
    let before = label(&writer.backup());
    let slots = rotate(&directory, &owner);

    // The writer knows of nothing and goes on; what it writes opens with the new key.
    let workload = Ledger::start(&directory, &cluster, 2, PAUSE);
    workload.advance(100);
    assert!(
        goes_on_or_says(&cluster, &writer),
        "the old writer archives"
    );
    let unaware = label(&writer.backup());
    let new_owner = over(
        &directory,
        "owner2",
        Some(&cluster),
        &key_file(&directory.join("new.key")),
    );
    let key = directory.join("writer2.key");
    add_writer(&new_owner, "host2", &key);
    remove(&new_owner, &slots);
    assert_key_wrong(&writer, &["backup"]);
    assert_key_wrong(&owner, &["info"]);
    let went_on = goes_on_or_says(&cluster, &writer);
    println!("without its slot the writer's agent went on: {went_on}");
    assert_eq!(agent.terminate(), Some(0));

    let writer = over(&directory, "writer2", Some(&cluster), &key_file(&key));
    archive_with(&cluster, &writer);
    let agent = writer.agent(&[]);
    workload.advance(100);
    let after = label(&writer.backup());
    let finished = workload.stop();
    let segment = cluster.archive_all();
    writer.run(&["verify", "--all"]).expect(0);
    let fetched = directory.folder("fetched").join("RECOVERYXLOG");
    let get = ["archive-get", &segment, fetched.to_str().unwrap()];
    let refused = writer.run(&get).expect(201);
    assert!(
        refused.stderr.contains("key_write_only"),
        "{}",
        refused.stderr
    );
    let truth = body(&cluster);
    cluster.stop(StopMode::Fast);
    assert_eq!(agent.terminate(), Some(0));

    for old in ["local.key", "writer.key", "writer2.key"] {
        std::fs::remove_file(directory.join(old)).unwrap();
    }
    new_owner
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    for (name, backup) in [
        ("before", &before),
        ("unaware", &unaware),
        ("after", &after),
    ] {
        let arguments = ["--backup", backup.as_str()];
        let counts = finished.counts();
        judge(&directory, &new_owner, name, &arguments, &truth, &counts);
    }
}

/// Who may not rotate leaves nothing that says it opens every backup, or is in the way of who may; and a
/// lost record of the new epoch is no wrong key.
#[test]
fn a_refused_rotation_and_a_lost_epoch() {
    let directory = TestDirectory::new("t411_refused");
    let first = key_file(&directory.join("local.key"));
    let owner = over(&directory, "owner", None, &first);
    let kit = directory.join("first.kit");
    let init = ["init", "--recovery-kit", kit.to_str().unwrap()];
    owner.run(&init).expect(0);
    let key = directory.join("writer.key");
    add_writer(&owner, "host", &key);
    let writer = over(&directory, "writer", None, &key_file(&key));

    let [new, kit] = ["new.key", "new.kit"].map(|name| directory.join(name));
    let (new_text, kit_text) = (new.to_str().unwrap(), kit.to_str().unwrap());
    let rotate = [
        "key",
        "rotate",
        "--repository",
        "local",
        "--key-file",
        new_text,
        "--recovery-kit",
        kit_text,
    ];
    let add = ["key", "add", "--name", "x", "--key-file", new_text];
    let export = ["key", "export", "--paper", kit_text];
    let refused = |pgark: &Pgark, code: &str| {
        for arguments in [&rotate[..], &add, &export] {
            let told = pgark.run(arguments).expect(10).stderr;
            assert!(told.contains(code), "{arguments:?}: {told}");
            assert!(!new.exists() && !kit.exists(), "{arguments:?}");
        }
    };
    refused(&writer, "(code key_write_only)");
    // A kit in the way: the key of the same run goes too, and what was there stays.
    let taken = directory.file("new.kit", "mine");
    let told = owner.run(&rotate).expect(10).stderr;
    assert!(told.contains("(code key_file_exists)"), "{told}");
    assert!(!new.exists());
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "mine");
    std::fs::remove_file(&taken).unwrap();

    let printed = owner.run(&rotate).expect(0).stdout;
    assert!(
        printed.contains("  pgark key remove --repository local 01"),
        "{printed}"
    );
    let after = over(&directory, "after", None, &key_file(&new));
    let epochs = directory.join("repository/keys/epoch");
    let mut epochs = std::fs::read_dir(epochs)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let lost = epochs
        .find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("000002-")
        })
        .unwrap();
    let aside = directory.join("aside");
    std::fs::rename(&lost, &aside).unwrap();
    for arguments in [&["key", "check"][..], &["info"], &["verify", "--all"]] {
        let told = after.run(arguments).expect(30).stderr;
        assert!(
            told.contains("(code keys_missing)"),
            "{arguments:?}: {told}"
        );
    }
    std::fs::rename(&aside, &lost).unwrap();
    after.run(&["key", "check"]).expect(0);

    // The old key again: outdated.
    let [new, kit] = ["late.key", "late.kit"].map(|name| directory.join(name));
    let (key, kit_text) = (new.to_str().unwrap(), kit.to_str().unwrap());
    let late = [
        "key",
        "rotate",
        "--key-file",
        key,
        "--recovery-kit",
        kit_text,
    ];
    let told = owner.run(&late).expect(10).stderr;
    assert!(told.contains("(code key_outdated)"), "{told}");
    assert!(!new.exists() && !kit.exists());
}
