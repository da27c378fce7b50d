//! Repositories that go away while WAL is archived, and come back.
//!
//! Traps: an outage of one required repository must not keep WAL from the other, must not be
//! acknowledged, and must end with it, not a minute later; a repository that is not required must
//! never hold up an acknowledgement; a repository that hangs must not hold up the server.

use crate::archive::{SOON, TRIES_AGAIN, archive_with, archiving, counter, object, switch};
use crate::archive::{switches, system_id, wait_until_it_sleeps, within};
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory};
use std::time::Duration;

const FIVE_SECONDS: Duration = Duration::from_secs(5);

fn second_repository(directory: &TestDirectory, pgark: &mut Pgark, required: bool) {
    let path = directory.join("far");
    pgark.configure(&format!(
        "[repository.far]\nkind = \"posix\"\npath = \"{}\"\nrequired = {required}\n",
        path.display()
    ));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
}

fn is_ready(cluster: &Cluster<'_>, segment: &str) -> bool {
    let ready = format!("pg_wal/archive_status/{segment}.ready");
    cluster.data().join(ready).exists()
}

/// One of two required repositories is not mounted.
#[test]
fn a_required_one_is_away() {
    let directory = TestDirectory::new("t201_required");
    let mut cluster = archiving(&directory, Major::Pg15, "a").start();
    for line in [TRIES_AGAIN, "code agent_refused"] {
        cluster.log_mut().allow(line);
    }
    let mut pgark = Pgark::new(&directory, "p", Some(&cluster));
    second_repository(&directory, &mut pgark, true);
    let _agent = pgark.agent(&[]);
    archive_with(&cluster, &pgark);
    let segment = switch(&cluster);
    cluster.wait_archived(&segment, SOON);
    let id = system_id(&cluster);
    let (near, far) = (directory.join("repository"), directory.join("far"));
    assert!(object(&near, &id, &segment).exists() && object(&far, &id, &segment).exists());

    let away = directory.join("away");
    std::fs::rename(&far, &away).unwrap();
    let pending = switches(&cluster, 3);
    wait_until_it_sleeps(&cluster);
    wait_until("the other one has it", SOON, || {
        object(&near, &id, &pending[0]).exists()
    });
    assert!(is_ready(&cluster, &pending[0]), "it is not acknowledged");
    let log = pgark.agent_log();
    assert!(log.contains("alert=\"push_failed\"") && log.contains("code=\"storage_missing\""));
    wait_until("the backlog is an alert", SOON, || {
        pgark.agent_log().contains("alert=\"archiving_blocked\"")
    });
    assert!(!far.exists(), "nothing is made where a mount is missing");

    let wakeups = counter(&directory, &pgark, "wakeups");
    std::fs::rename(&away, &far).unwrap();
    within("WAL flows again", Duration::from_secs(10), || {
        for segment in &pending {
            cluster.wait_archived(segment, SOON);
        }
    });
    assert!(counter(&directory, &pgark, "wakeups") > wakeups);
    for segment in &pending {
        assert!(object(&near, &id, segment).exists() && object(&far, &id, segment).exists());
    }
}

/// A best-effort repository hangs: it costs two seconds once, and what was under way arrives when
/// it answers again.
#[test]
fn a_best_effort_one_hangs() {
    let directory = TestDirectory::new("t201_best_effort");
    let cluster = archiving(&directory, Major::Pg15, "a").start();
    let mut pgark = Pgark::new(&directory, "p", Some(&cluster));
    second_repository(&directory, &mut pgark, false);
    let switch_file = directory.join("hung");
    let hang = format!("hang-if-exists:{}", switch_file.display());
    let faults = [
        ("PGARK_FAULT_REPOSITORY", "far"),
        ("PGARK_FAULT_STORAGE", &hang),
    ];
    let agent = pgark.agent(&faults);
    archive_with(&cluster, &pgark);
    let first = switch(&cluster);
    cluster.wait_archived(&first, SOON);
    let id = system_id(&cluster);
    let far = |segment: &str| object(&directory.join("far"), &id, segment).exists();
    assert!(far(&first));

    directory.file("hung", "");
    let hung = switch(&cluster);
    within("the first push beside it", FIVE_SECONDS, || {
        cluster.wait_archived(&hung, SOON);
    });
    let many = switches(&cluster, 4);
    within("the following ones", FIVE_SECONDS, || {
        for segment in &many {
            cluster.wait_archived(segment, SOON);
        }
    });
    assert!(!far(&hung) && !many.iter().any(|segment| far(segment)));
    assert!(pgark.agent_log().contains("alert=\"best_effort_late\""));
    assert_eq!(
        cluster.psql("SELECT failed_count FROM pg_stat_archiver"),
        "0"
    );

    std::fs::remove_file(&switch_file).unwrap();
    wait_until("it answers again", SOON, || {
        let segment = switch(&cluster);
        cluster.wait_archived(&segment, SOON);
        far(&segment)
    });
    drop(agent);

    // The same without an agent.
    directory.file("hung", "");
    let segment = switch(&cluster);
    cluster.wait_archived(&segment, SOON);
    let path = cluster.data().join("pg_wal").join(switch(&cluster));
    let arguments = ["archive-push", path.to_str().unwrap()];
    let pushed = within("archive-push beside it", FIVE_SECONDS, || {
        pgark.run_with(&arguments, &faults)
    });
    assert!(pushed.expect(0).stderr.contains("best_effort_late"));
}

/// The archive module over a repository that hangs. The archiver takes part in process signal
/// barriers, so a push that blocks would hold up DROP DATABASE and the like.
fn a_hung_repository(major: Major) {
    let directory = TestDirectory::new(&format!("t201_hung_{major}"));
    let mut cluster = archiving(&directory, major, "a")
        .setting("archive_library = 'pgark_archive'")
        .init();
    cluster.log_mut().allow(TRIES_AGAIN);
    cluster.log_mut().allow("yet archiving is not configured");
    let pgark = Pgark::new(&directory, "p", Some(&cluster));
    let socket = pgark.socket();
    cluster.configure(&format!("pgark_archive.socket = '{}'\n", socket.display()));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    let hang = format!("hang-if-exists:{}", directory.join("hung").display());
    let _agent = pgark.agent(&[("PGARK_FAULT_STORAGE", &hang)]);
    cluster.start();
    let segment = switch(&cluster);
    cluster.wait_archived(&segment, SOON);
    cluster.psql("CREATE DATABASE doomed");
    cluster.psql("CREATE DATABASE moving");
    let space = directory.folder("space");
    let location = space.display();
    cluster.psql(&format!("CREATE TABLESPACE space LOCATION '{location}'"));

    directory.file("hung", "");
    let pending = switch(&cluster);
    let blocked = || {
        let title = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'archiver'";
        assert_eq!(cluster.psql(title), "1");
        assert!(is_ready(&cluster, &pending), "it is not acknowledged");
    };
    for (what, sql) in [
        ("DROP DATABASE", "DROP DATABASE doomed"),
        (
            "ALTER DATABASE SET TABLESPACE",
            "ALTER DATABASE moving SET TABLESPACE space",
        ),
    ] {
        blocked();
        within(what, FIVE_SECONDS, || cluster.psql(sql));
    }
    blocked();
    within("reload", FIVE_SECONDS, || {
        cluster.configure("log_checkpoints = off\n");
        cluster.reload();
        cluster.wait_for("SHOW log_checkpoints", "off", SOON);
    });
    wait_until_it_sleeps(&cluster);
    std::fs::remove_file(directory.join("hung")).unwrap();
    within("WAL flows again", FIVE_SECONDS, || {
        cluster.wait_archived(&pending, SOON);
    });
    assert!(counter(&directory, &pgark, "wakeups") >= 1);

    directory.file("hung", "");
    let left = switch(&cluster);
    within("fast shutdown", FIVE_SECONDS, || {
        cluster.stop(StopMode::Fast)
    });
    assert!(is_ready(&cluster, &left), "it is not acknowledged");
    std::fs::remove_file(directory.join("hung")).unwrap();
    cluster.start();
    cluster.wait_archived(&left, SOON);
    assert!(object(&directory.join("repository"), &system_id(&cluster), &left).exists());
}

#[test]
fn a_hung_repository_15() {
    a_hung_repository(Major::Pg15);
}

#[test]
fn a_hung_repository_17() {
    if pgark_regress::tier::needs_full() {
        a_hung_repository(Major::Pg17);
    }
}
