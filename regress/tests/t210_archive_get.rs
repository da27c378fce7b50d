//! archive-get under a recovery. Postgres takes most failures of `restore_command` for the end of
//! WAL and promotes; what it must not lose may never look like that.
//!
//! One primary, one backup and one restored directory serve all the cases; each gets a copy of the
//! directory. A case damages the archive, starts its copy, and expects that the server ends by itself on its
//! old timeline with the exit code of its kind in the log, and that the same copy recovers
//! everything once the archive is whole again.

use crate::archive::{SOON, archive_with, archiving, object, switch, system_id};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, account, tier};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// To a standby the table comes a moment later; asking for its rows before that is an error in its log.
fn wait_for_table(standby: &Cluster<'_>) {
    standby.wait_for("SELECT to_regclass('t') IS NOT NULL", "t", SOON);
}

const ROWS: &str = "SELECT string_agg(n::text, ',' ORDER BY n) FROM t";
const END: Duration = Duration::from_secs(30);

/// An archive with a backup, ten rows in as many segments after it, and a restored directory.
struct Scene<'a> {
    directory: &'a TestDirectory,
    major: Major,
    /// Gives up after a second.
    hasty: Pgark,
    /// The same with a cluster, so that it can have an agent.
    beside: Pgark,
    repository: PathBuf,
    system_id: String,
    /// The segment that row n stands in is `segments[n - 1]`.
    segments: Vec<String>,
    restored: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(directory: &'a TestDirectory, major: Major) -> Self {
        let mut primary = archiving(directory, major, "a").start();
        let pgark = Pgark::new(directory, "p", Some(&primary));
        let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
        archive_with(&primary, &pgark);
        primary.psql("CREATE TABLE t (n int)");
        let _ = pgark.run(&["backup"]).expect(0);
        let segments: Vec<String> = (1..=10)
            .map(|n| {
                primary.psql(&format!("INSERT INTO t VALUES ({n})"));
                switch(&primary)
            })
            .collect();
        primary.wait_archived(&segments[9], SOON);
        let system_id = system_id(&primary);
        primary.stop(StopMode::Fast);
        let mut hasty = Pgark::new(directory, "q", None);
        let mut beside = Pgark::new(directory, "h", Some(&primary));
        for pgark in [&mut hasty, &mut beside] {
            pgark.configure(
                "[wal]\nget_retry_seconds = 1\ninflight_wait_seconds = 1\nstandby_retry_seconds = 1\n",
            );
        }
        let restored = directory.join("restored");
        let target = restored.to_str().unwrap();
        let _ = hasty.run(&["restore", "--target-dir", target]).expect(0);
        Self {
            directory,
            major,
            hasty,
            beside,
            repository: directory.join("repository"),
            system_id,
            segments,
            restored,
        }
    }

    /// A copy of the restored directory; `settings` are added to it.
    fn copy(&self, name: &str, settings: &str) -> Cluster<'a> {
        let cluster = Cluster::over(self.directory, self.major, name);
        let copied = account::command("cp")
            .arg("-a")
            .args([&self.restored, cluster.data()])
            .status()
            .unwrap();
        assert!(copied.success());
        let auto = cluster.data().join("postgresql.auto.conf");
        let mut auto = std::fs::File::options().append(true).open(auto).unwrap();
        auto.write_all(settings.as_bytes()).unwrap();
        cluster
    }

    fn segment(&self, row: usize) -> PathBuf {
        object(&self.repository, &self.system_id, &self.segments[row - 1])
    }

    /// Starts `cluster`, whose recovery must stop, and tell why by `signs` in its log.
    #[track_caller]
    fn stops(&self, cluster: &mut Cluster<'a>, signs: &[&str]) {
        for line in [
            "could not restore file",
            "startup process",
            "aborting startup",
        ] {
            cluster.log_mut().allow(line);
        }
        cluster.start_only();
        wait_until("the server tries", SOON, || {
            cluster.log().contains("database system was interrupted")
        });
        cluster.wait_for_end(END);
        for sign in signs {
            let log = cluster.log();
            assert!(log.contains(sign), "no {sign:?} in:\n{}", log.tail(30));
        }
        assert!(!cluster.log().contains("archive recovery complete"));
        assert!(!cluster.log().contains("selected new timeline"));
        assert!(!cluster.data().join("pg_wal/00000002.history").exists());
        assert_eq!(timeline(cluster), "1");
    }

    /// Starts `cluster`, which must recover everything and be promoted.
    #[track_caller]
    fn recovers(&self, cluster: &mut Cluster<'a>) {
        cluster.start();
        cluster.wait_for("SELECT pg_is_in_recovery()", "f", END);
        assert_eq!(cluster.psql(ROWS), "1,2,3,4,5,6,7,8,9,10");
        assert!(cluster.data().join("pg_wal/00000002.history").exists());
        cluster.stop(StopMode::Fast);
        assert_eq!(timeline(cluster), "2");
    }
}

/// The timeline of the control file.
fn timeline(cluster: &Cluster<'_>) -> String {
    let mut command = cluster.major().command("pg_controldata");
    let output = command.arg("-D").arg(cluster.data()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("TimeLineID"));
    line.unwrap().rsplit(' ').next().unwrap().to_owned()
}

fn with_flipped_byte(path: &Path, action: impl FnOnce()) {
    let good = std::fs::read(path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x40;
    std::fs::write(path, bad).unwrap();
    action();
    std::fs::write(path, good).unwrap();
}

fn with_moved(path: &Path, action: impl FnOnce()) {
    let away = path.with_extension("away");
    std::fs::rename(path, &away).unwrap();
    action();
    std::fs::rename(&away, path).unwrap();
}

#[test]
fn recoveries_that_must_stop() {
    let directory = TestDirectory::new("t210_stops");
    let scene = Scene::new(&directory, Major::Pg15);

    // Nothing is wrong: the recovery ends above the newest segment, by itself.
    scene.recovers(&mut scene.copy("ok", ""));

    let mut cluster = scene.copy("gone", "");
    with_moved(&scene.repository, || {
        scene.stops(&mut cluster, &["exit code 202", "storage_missing"]);
    });
    scene.recovers(&mut cluster);

    let mut cluster = scene.copy("locked", "");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&scene.repository, permissions).unwrap();
    };
    mode(0);
    scene.stops(&mut cluster, &["exit code 202"]);
    mode(0o750);
    scene.recovers(&mut cluster);

    let mut cluster = scene.copy("flipped", "");
    with_flipped_byte(&scene.segment(4), || {
        scene.stops(&mut cluster, &["exit code 203", "wal_container_damaged"]);
    });
    scene.recovers(&mut cluster);

    // Below the frontier: the backup's own first segment.
    let mut cluster = scene.copy("hole", "");
    let label = std::fs::read_to_string(scene.restored.join("backup_label")).unwrap();
    let first = label.split("(file ").nth(1).unwrap();
    let first = first.split(')').next().unwrap();
    with_moved(&object(&scene.repository, &scene.system_id, first), || {
        scene.stops(&mut cluster, &["exit code 203", "wal_missing"]);
    });
    scene.recovers(&mut cluster);

    // A real panic, in the code that reads the repository.
    let command = scene.hasty.shell("archive-get %f %p");
    let panics = format!("restore_command = 'PGARK_FAULT_PANIC=get:panic {command}'\n");
    let mut cluster = scene.copy("panic", &panics);
    scene.stops(&mut cluster, &["injected panic at get:panic"]);
    let log = cluster.log();
    assert!(log.contains("exit code 134") || log.contains("terminated by signal 6"));

    // The configuration is broken: not a reason to end a recovery either.
    let broken = format!(
        "restore_command = '{} '\n",
        command.replace("pgark.toml", "no.toml")
    );
    let mut cluster = scene.copy("broken", &broken);
    scene.stops(&mut cluster, &["exit code 201"]);
}

/// The same through the agent, which fetches ahead: a damaged archive looks no better from there. Each case
/// has an agent of its own, which has nothing in its spool yet.
#[test]
fn recoveries_that_must_stop_with_an_agent() {
    let directory = TestDirectory::new("t210_agent");
    let scene = Scene::new(&directory, Major::Pg17);
    let command = scene.beside.shell("archive-get %f %p");
    let command = format!("restore_command = '{command}'\n");
    let count = |name| scene.beside.agent_counter(name);

    let agent = scene.beside.agent(&[]);
    scene.recovers(&mut scene.copy("ok", &command));
    assert!(count("fetched") > 0 && count("prefetch_hits") > 0);
    drop(agent);

    let mut cluster = scene.copy("gone", &command);
    let agent = scene.beside.agent(&[]);
    with_moved(&scene.repository, || {
        scene.stops(&mut cluster, &["exit code 202", "storage_missing"]);
    });
    scene.recovers(&mut cluster);
    drop(agent);

    let mut cluster = scene.copy("flipped", &command);
    let agent = scene.beside.agent(&[]);
    with_flipped_byte(&scene.segment(4), || {
        scene.stops(&mut cluster, &["exit code 203", "wal_container_damaged"]);
    });
    assert!(count("fetched") > 0, "nothing went through the agent");
    scene.recovers(&mut cluster);
    drop(agent);

    let mut cluster = scene.copy("late", &command);
    let agent = scene.beside.agent(&[]);
    with_moved(&scene.segment(5), || {
        scene.stops(&mut cluster, &["exit code 203", "wal_in_flight"]);
    });
    scene.recovers(&mut cluster);
    drop(agent);

    // A real panic in one of the agent's threads ends the agent, and is no answer: the recovery goes on
    // without it, to its proper end.
    let agent = scene.beside.agent(&[("PGARK_FAULT_PANIC", "get:panic")]);
    scene.recovers(&mut scene.copy("panic", &command));
    assert!(
        scene
            .beside
            .agent_log()
            .contains("injected panic at get:panic")
    );
    wait_until("the agent is gone", SOON, || {
        std::os::unix::net::UnixStream::connect(scene.beside.socket()).is_err()
    });
    drop(agent);
}

/// A segment is missing while newer ones are there: it may be on its way. Doubt comes after
/// `inflight_wait_seconds`; when it arrives before, the recovery goes on with it.
#[test]
fn out_of_order() {
    let directory = TestDirectory::new("t210_order");
    let scene = Scene::new(&directory, Major::Pg15);
    let mut cluster = scene.copy("late", "");
    with_moved(&scene.segment(5), || {
        scene.stops(&mut cluster, &["exit code 203", "wal_in_flight"]);
    });
    scene.recovers(&mut cluster);

    let mut patient = Pgark::new(&directory, "r", None);
    patient.configure("[wal]\ninflight_wait_seconds = 60\nget_retry_seconds = 1\n");
    let command = patient.shell("archive-get %f %p");
    let mut cluster = scene.copy("waits", &format!("restore_command = '{command}'\n"));
    let waiting = format!("retrying WAL file {} for 60 s", scene.segments[4]);
    with_moved(&scene.segment(5), || {
        cluster.start_only();
        wait_until("it waits", SOON, || cluster.log().contains(&waiting));
    });
    wait_until("it goes on", SOON, || {
        cluster.log().contains("archive recovery complete")
    });
    cluster.wait_for(ROWS, "1,2,3,4,5,6,7,8,9,10", SOON);
}

/// Both sides of a failover go on: the old primary archives rows that must never be seen by those
/// who follow the new one. The new one's first segment comes late, which is when Postgres asks for
/// the old one's.
#[test]
fn a_zombie() {
    let directory = TestDirectory::new("t210_zombie");
    let zombie = archiving(&directory, Major::Pg15, "a").start();
    let mut pgark = Pgark::new(&directory, "p", Some(&zombie));
    pgark.configure(
        "[wal]\nget_retry_seconds = 1\ninflight_wait_seconds = 1\nstandby_retry_seconds = 1\n",
    );
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&zombie, &pgark);
    zombie.psql("CREATE TABLE t (n int)");
    let _ = pgark.run(&["backup"]).expect(0);
    // A standby fed from the archive alone.
    let mut follower = Cluster::over(&directory, Major::Pg15, "f");
    let target = follower.data().to_str().unwrap();
    let _ = pgark
        .run(&["restore", "--standby", "--target-dir", target])
        .expect(0);
    follower.start();
    let mut heir = zombie.standby(&directory, "b");
    heir.log_mut().allow("terminating walreceiver process");
    let archive = pgark.shell("archive-push %p");
    let flag = directory.join("complete");
    heir.configure(&format!(
        "archive_command = 'case %f in *.history) ;; *) test -e {} || exit 1;; esac; {archive}'\n",
        flag.display()
    ));
    heir.log_mut().allow(crate::archive::TRIES_AGAIN);
    heir.start();
    zombie.psql("INSERT INTO t VALUES (1)");
    let common = switch(&zombie);
    zombie.wait_archived(&common, SOON);
    wait_for_table(&follower);
    follower.wait_for(ROWS, "1", SOON);
    wait_for_table(&heir);
    heir.wait_for(ROWS, "1", SOON);
    // Both have row 2, which no archive has yet: it stands in the segment that the fork is in.
    zombie.psql("INSERT INTO t VALUES (2)");
    heir.wait_for(ROWS, "1,2", SOON);
    heir.promote();

    zombie.psql("INSERT INTO t VALUES (666)");
    let forked = switch(&zombie);
    zombie.psql("INSERT INTO t VALUES (667)");
    let beyond = switch(&zombie);
    zombie.wait_archived(&beyond, SOON);
    let id = system_id(&zombie);
    assert!(object(&directory.join("repository"), &id, &forked).exists());
    let refused = format!("WAL file {forked} is not in the archive: timeline 2 supersedes it");
    wait_until(
        "the zombie's segment is asked for and refused",
        SOON,
        || follower.log().contains(&refused),
    );
    assert_eq!(follower.psql(ROWS), "1", "nothing of the zombie's");

    heir.psql("INSERT INTO t VALUES (3)");
    directory.file("complete", "");
    let good = switch(&heir);
    heir.reload();
    heir.wait_archived(&good, SOON);
    follower.wait_for(ROWS, "1,2,3", SOON);
    assert!(follower.psql("SELECT pg_is_in_recovery()") == "t");
    zombie.psql("INSERT INTO t VALUES (668)");
    let later = switch(&zombie);
    zombie.wait_archived(&later, SOON);
    heir.psql("INSERT INTO t VALUES (4)");
    let good = switch(&heir);
    heir.wait_archived(&good, SOON);
    follower.wait_for(ROWS, "1,2,3,4", SOON);

    // A planned recovery follows the same lineage, to the new one's end.
    let mut restored = Cluster::over(&directory, Major::Pg15, "c");
    let target = restored.data().to_str().unwrap();
    let _ = pgark.run(&["restore", "--target-dir", target]).expect(0);
    restored.start();
    restored.wait_for("SELECT pg_is_in_recovery()", "f", END);
    assert_eq!(restored.psql(ROWS), "1,2,3,4");
    // Told to follow the old timeline it gets the old one's rows.
    let mut old = Cluster::over(&directory, Major::Pg15, "o");
    let target = old.data().to_str().unwrap();
    let arguments = ["restore", "--target-timeline", "1", "--target-dir", target];
    let _ = pgark.run(&arguments).expect(0);
    old.start();
    old.wait_for("SELECT pg_is_in_recovery()", "f", END);
    assert_eq!(old.psql(ROWS), "1,2,666,667,668");

    // A recovery set up by hand, without a plan: it stops rather than choose.
    let manual = Cluster::over(&directory, Major::Pg15, "m");
    let target = manual.data().to_str().unwrap();
    let _ = pgark.run(&["restore", "--target-dir", target]).expect(0);
    std::fs::remove_file(manual.data().join("pgark_recovery.json")).unwrap();
    let auto = manual.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    std::fs::write(&auto, text.replace("recovery_target_timeline = '2'", "")).unwrap();
    let ask = |name: &str| {
        let place = "pg_wal/RECOVERYXLOG";
        let mut command = pgark.command(&["archive-get", name, place]);
        let output = command.current_dir(manual.data()).output().unwrap();
        pgark_regress::Output::from(output)
    };
    let refused = ask(&forked).expect(203);
    assert!(refused.stderr.contains("wal_superseded"), "{refused:?}");
    let _ = ask(&common).expect(0);
    let _ = ask(&good).expect(0);
}

/// An archive-fed hot standby loses its repository for a while, ten minutes in the full tier: its
/// postmaster stays, it answers queries, says why it waits, and catches up.
#[test]
fn a_standby_without_its_repository() {
    let full = tier::is_full();
    let cut = Duration::from_secs(if full { 600 } else { 15 });
    let directory = TestDirectory::new("t210_cut");
    let mut primary = archiving(&directory, Major::Pg15, "a").start();
    for line in [crate::archive::TRIES_AGAIN, "code storage_missing"] {
        primary.log_mut().allow(line);
    }
    let mut pgark = Pgark::new(&directory, "p", Some(&primary));
    pgark.configure("[wal]\nstandby_retry_seconds = 1\n");
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    archive_with(&primary, &pgark);
    primary.psql("CREATE TABLE t (n int)");
    let _ = pgark.run(&["backup"]).expect(0);
    let mut standby = Cluster::over(&directory, Major::Pg15, "s");
    let target = standby.data().to_str().unwrap();
    let _ = pgark
        .run(&["restore", "--standby", "--target-dir", target])
        .expect(0);
    standby.start();
    primary.psql("INSERT INTO t VALUES (1)");
    let segment = switch(&primary);
    primary.wait_archived(&segment, SOON);
    wait_for_table(&standby);
    standby.wait_for(ROWS, "1", SOON);

    let postmaster = standby.postmaster();
    let waiting = || {
        standby
            .log()
            .text()
            .matches("the standby will ask again")
            .count()
    };
    let began = std::time::Instant::now();
    with_moved(&directory.join("repository"), || {
        primary.psql("INSERT INTO t VALUES (2)");
        let _ = switch(&primary);
        let before = waiting();
        wait_until("it asks again and again", cut + END, || {
            waiting() >= before + 3 && began.elapsed() >= cut
        });
        assert_eq!(standby.psql(ROWS), "1");
        assert!(standby.log().contains("alert=\"archive_get_doubt\""));
    });
    assert_eq!(standby.postmaster(), postmaster);
    primary.reload();
    standby.wait_for(ROWS, "1,2", Duration::from_secs(30));
    assert_eq!(standby.postmaster(), postmaster);
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
}

/// pg_rewind reads the old primary's WAL backwards, here from the archive, past the fork too. What
/// is fetched ahead for it would be junk: the agent does not.
#[test]
fn pg_rewind() {
    let directory = TestDirectory::new("t210_rewind");
    let mut old = archiving(&directory, Major::Pg15, "a").start();
    let pgark = Pgark::new(&directory, "p", Some(&old));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let command = pgark.shell("archive-get %f %p");
    old.configure(&format!("restore_command = '{command}'\n"));
    archive_with(&old, &pgark);
    let mut heir = old.standby(&directory, "b");
    for cluster in [&mut old, &mut heir] {
        cluster.log_mut().allow("terminating walreceiver process");
    }
    heir.configure("archive_command = '/bin/true'\n");
    heir.start();
    old.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    wait_for_table(&heir);
    heir.wait_for(ROWS, "1", SOON);
    heir.promote();
    // pg_rewind reads the new timeline in the control file.
    heir.psql("INSERT INTO t VALUES (2); CHECKPOINT");
    let apart: Vec<String> = (0..5)
        .map(|_| {
            old.psql("INSERT INTO t VALUES (666)");
            switch(&old)
        })
        .collect();
    old.wait_archived(&apart[4], SOON);
    old.stop(StopMode::Fast);
    for segment in &apart {
        // The checkpoint of the shutdown may have recycled it.
        let _ = std::fs::remove_file(old.data().join("pg_wal").join(segment));
    }
    let agent = pgark.agent(&[]);
    let mut rewind = Major::Pg15.command("pg_rewind");
    rewind.args(["--restore-target-wal", "--write-recovery-conf"]);
    rewind.arg("--target-pgdata").arg(old.data());
    rewind.arg("--source-server").arg(heir.conninfo("postgres"));
    let output = rewind.current_dir(directory.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let count = |name| crate::archive::counter(&directory, &pgark, name);
    let stats = crate::archive::ask(&directory, &pgark, 0, b"PGARK1 STATS\n");
    assert!(count("fetched") >= 4, "{stats} {output:?}");
    assert_eq!(count("prefetch_hits"), 0);
    let spool = std::fs::read_dir(pgark.state().join("get")).unwrap();
    assert_eq!(spool.count(), 0, "nothing was fetched ahead");
    drop(agent);
    old.start();
    old.wait_for(ROWS, "1,2", SOON);
    old.stop(StopMode::Fast);
}
