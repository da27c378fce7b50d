//! `pgark promote`: who goes on with a cluster stands in the repository.
//!
//! What: a primary with two standbys, all on one repository. Promotions that die at each step and are
//! continued; an old primary that writes on; a standby that is promoted without pgark; a second failover
//! right after the first; a server that was left and shall go on after all; a record, an error or a hung
//! repository between the epoch and the promotion.
//! Traps: two epochs for one promotion; a standby that is promoted although another one was, or although
//! nobody can tell; WAL of the old primary that is refused, and so fills its disk; `latest` that changes
//! because of a mark; a standby that follows the new primary and passes for one that does not.

use crate::archive::{SOON, archive_with, archiving, names, object, switch, system_id};
use crate::t440_several_repositories::repository;
use pgark_regress::process::wait_until;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Agents look each second.
const OFTEN: &str = "[wal]\nfork_check_seconds = 1\n";

struct Scene<'a> {
    directory: &'a TestDirectory,
    primary: Cluster<'a>,
    pgark: Pgark,
}

impl<'a> Scene<'a> {
    fn new(directory: &'a TestDirectory, major: Major) -> Self {
        let mut primary = archiving(directory, major, "a").start();
        for line in ["terminating walsender process", "code storage_missing"] {
            primary.log_mut().allow(line);
        }
        let mut pgark = Pgark::new(directory, "p", Some(&primary));
        pgark.configure(OFTEN);
        let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
        archive_with(&primary, &pgark);
        Self {
            directory,
            primary,
            pgark,
        }
    }

    /// A standby that streams and will archive, and its installation.
    fn standby(&self, name: &str) -> (Cluster<'a>, Pgark) {
        let mut standby = self.primary.standby(self.directory, name);
        for line in [
            "terminating walreceiver process",
            "terminating walsender process",
            "could not receive data from WAL stream",
            "could not connect to the primary server",
            "streaming replication receiver",
            "yet archiving is not configured",
            "could not restore file",
            "code storage_missing",
        ] {
            standby.log_mut().allow(line);
        }
        let mut pgark = Pgark::new(self.directory, &format!("p{name}"), Some(&standby));
        pgark.configure(OFTEN);
        standby.configure(&format!(
            "archive_command = '{}'\nrestore_command = '{}'\n",
            pgark.shell("archive-push %p"),
            pgark.shell("archive-get %f %p")
        ));
        standby.start();
        streams(&standby);
        (standby, pgark)
    }

    fn repository(&self) -> PathBuf {
        self.directory.join("repository")
    }

    fn fence_directory(&self) -> PathBuf {
        self.repository()
            .join("fence")
            .join(system_id(&self.primary))
    }

    fn fences(&self) -> Vec<String> {
        names(&self.fence_directory(), "")
    }
}

fn streams(standby: &Cluster<'_>) {
    standby.wait_for("SELECT status FROM pg_stat_wal_receiver", "streaming", SOON);
}

fn caught_up(standby: &Cluster<'_>, primary: &Cluster<'_>) {
    let end = primary.psql("SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(
        &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"),
        "t",
        SOON,
    );
}

fn in_recovery(cluster: &Cluster<'_>) -> bool {
    cluster.psql("SELECT pg_is_in_recovery()") == "t"
}

fn stored(repository: &Path, id: &str, name: &str) -> bool {
    object(repository, id, name).exists()
}

fn promote(pgark: &Pgark, arguments: &[&str]) -> serde_json::Value {
    let arguments = [&["promote", "--output", "json"], arguments].concat();
    pgark.run(&arguments).expect(0).json()
}

#[track_caller]
fn refused(pgark: &Pgark, arguments: &[&str], code: i32, texts: &[&str]) {
    let arguments = [&["promote"], arguments].concat();
    let refused = pgark.run(&arguments).expect(code);
    for text in texts {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }
}

fn crashes(pgark: &Pgark, at: &str) {
    let _ = pgark
        .run_with(&["promote"], &[("PGARK_FAULT_CRASH", at)])
        .expect(137);
}

#[track_caller]
fn check(pgark: &Pgark, code: i32, text: &str) {
    let check = pgark.run(&["check", "--no-switch"]).expect(code);
    assert!(check.stdout.contains(text), "{}", check.stdout);
}

fn promoted_once(major: Major) {
    let directory = TestDirectory::new(&format!("t222_promote_{major}"));
    let scene = Scene::new(&directory, major);
    let (standby, beside) = scene.standby("b");
    let (other, third) = scene.standby("c");
    let _ = scene
        .pgark
        .run(&["backup", "--component", "main"])
        .expect(0);
    let _old = scene.pgark.agent(&[]);
    scene.primary.wait_archived(&switch(&scene.primary), SOON);
    caught_up(&standby, &scene.primary);
    caught_up(&other, &scene.primary);
    let id = system_id(&scene.primary);

    refused(&scene.pgark, &[], 10, &["not_a_standby", "HINT"]);
    refused(&scene.pgark, &["--yes"], 10, &["not_a_standby"]);
    let asked = promote(&beside, &["--dry-run"]);
    assert_eq!(asked["epoch"], 1);
    assert_eq!(asked["from_timeline"], 1);
    assert_eq!(asked["lag_bytes"], 0, "{asked}");
    assert!(asked["timeline"].is_null() && asked["received_lsn"].is_string());
    assert_eq!(asked["repositories"][0]["name"], "local");
    // It dies before it has the epoch, and then with the epoch taken.
    crashes(&beside, "promote:noted");
    assert_eq!(scene.fences(), [""; 0]);
    crashes(&beside, "promote:taken");
    assert_eq!(scene.fences(), ["000001.json"]);
    assert!(in_recovery(&standby));
    refused(&third, &[], 50, &["epoch_taken", "--yes"]);
    refused(&third, &["--dry-run"], 50, &["epoch_taken"]);
    assert_eq!(promote(&beside, &["--dry-run"])["continued"], true);
    // And with the server promoted.
    crashes(&beside, "promote:promoted");
    assert!(!in_recovery(&standby));
    assert_eq!(scene.fences(), ["000001.json"]);
    let done = promote(&beside, &[]);
    assert_eq!(done["epoch"], 1, "{done}");
    assert_eq!(
        (&done["continued"], &done["promoted_before"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&done["from_timeline"], &done["timeline"]),
        (&1.into(), &2.into())
    );
    for _ in 0..2 {
        let again = promote(&beside, &[]);
        assert_eq!(
            (&again["epoch"], &again["promoted_before"]),
            (&1.into(), &true.into())
        );
        assert_eq!(again["lsn"], done["lsn"]);
    }
    assert_eq!(scene.fences(), ["000001.json", "000001.timeline"]);
    check(&beside, 0, "epoch 1, taken by");

    // The old primary: told, and not refused.
    wait_until(
        "the old primary's agent alerts",
        Duration::from_secs(30),
        || scene.pgark.agent_log().contains("alert=\"fenced\""),
    );
    assert_eq!(scene.pgark.agent_counter("fence_alerts"), 1);
    let last = switch(&scene.primary);
    scene.primary.wait_archived(&last, SOON);
    assert!(last.starts_with("00000001") && stored(&scene.repository(), &id, &last));
    check(&scene.pgark, 3, "FAILED epoch: another server was promoted");
    let info = scene.pgark.run(&["info"]).expect(0);
    assert!(info.stdout.contains("epoch 1, taken by"), "{}", info.stdout);
    for server in [&scene.pgark, &third] {
        refused(server, &[], 50, &["timeline_left", "--yes"]);
    }

    // Somebody promotes the third all the same, and takes no epoch: its timeline has the higher number.
    standby.psql("CREATE TABLE after_promotion AS SELECT 1 AS n");
    standby.wait_archived(&switch(&standby), SOON);
    caught_up(&other, &scene.primary);
    other.promote();
    other.psql("CREATE TABLE beside AS SELECT 1 AS n");
    let last = switch(&other);
    other.wait_archived(&last, SOON);
    assert!(last.starts_with("00000003"), "{last}");
    check(&third, 3, "FAILED epoch: another server was promoted");
    check(&beside, 0, "epoch 1, taken by");
    refused(&third, &[], 50, &["timeline_left"]);
    // "Latest" is the newest timeline, with a warning; the other one can be had.
    let restore = |name: &str, arguments: &[&str]| {
        let mut restored = Cluster::over(&directory, major, name);
        let target = restored.data().to_str().unwrap().to_owned();
        let arguments = [&["restore", "--target-dir", &target], arguments].concat();
        let output = beside.run(&arguments).expect(0);
        restored.recover();
        (restored, format!("{}{}", output.stdout, output.stderr))
    };
    let warning = "which does not descend from the last promotion (epoch 1";
    let (restored, output) = restore("r", &[]);
    assert!(
        output.contains(warning) && output.contains("--target-timeline 2"),
        "{output}"
    );
    assert_eq!(restored.psql("SELECT n FROM beside"), "1");
    let (restored, output) = restore("s", &["--target-timeline", "2"]);
    assert!(!output.contains(warning), "{output}");
    assert_eq!(restored.psql("SELECT n FROM after_promotion"), "1");
    // The third shall go on after all.
    let taken = promote(&third, &["--yes"]);
    assert_eq!(
        (&taken["epoch"], &taken["timeline"]),
        (&2.into(), &3.into())
    );
    check(&third, 0, "epoch 2, taken by");
    check(&beside, 3, "FAILED epoch: another server was promoted");
    let _ = beside.run(&["verify"]).expect(0);
    // Who backs up a server that was left is told, and has the backup.
    let told = beside.run(&["backup", "--component", "main"]).expect(0);
    assert!(told.stderr.contains("timeline_left"), "{}", told.stderr);
}

#[test]
fn promoted_once_15() {
    promoted_once(Major::Pg15);
}

#[test]
fn promoted_once_17() {
    if tier::needs_full() {
        promoted_once(Major::Pg17);
    }
}

#[test]
fn a_second_failover() {
    let directory = TestDirectory::new("t222_second");
    let mut scene = Scene::new(&directory, Major::Pg15);
    let (mut standby, beside) = scene.standby("b");
    let (other, third) = scene.standby("c");
    caught_up(&standby, &scene.primary);
    caught_up(&other, &scene.primary);
    scene.primary.stop(StopMode::Immediate);
    // It dies once the server was asked.
    crashes(&beside, "promote:asked");
    wait_until("the standby is promoted", SOON, || !in_recovery(&standby));
    let first = promote(&beside, &[]);
    assert_eq!(
        (&first["epoch"], &first["timeline"]),
        (&1.into(), &2.into())
    );
    // The third follows, and loses that one too, before it has had a checkpoint.
    other.configure(&format!(
        "primary_conninfo = '{}'\n",
        standby.conninfo("postgres")
    ));
    // pg_basebackup -R wrote the old one there.
    other.psql("ALTER SYSTEM RESET primary_conninfo");
    other.reload();
    streams(&other);
    standby.psql("CREATE TABLE second AS SELECT 1 AS n");
    caught_up(&other, &standby);
    standby.stop(StopMode::Immediate);
    // It dies with everything written down.
    assert_eq!(promote(&third, &["--dry-run"])["from_timeline"], 2);
    crashes(&third, "promote:finished");
    let second = promote(&third, &[]);
    assert_eq!(
        (
            &second["epoch"],
            &second["from_timeline"],
            &second["timeline"]
        ),
        (&2.into(), &2.into(), &3.into()),
        "{second}"
    );
    assert_eq!(other.psql("SELECT n FROM second"), "1");
    // The one before comes back as it was.
    standby.start();
    check(&beside, 3, "FAILED epoch: another server was promoted");
    refused(&beside, &[], 50, &["timeline_left", "epoch 2"]);
    assert_eq!(promote(&beside, &["--yes", "--dry-run"])["epoch"], 3);
    // Whoever decides dies on the way, and it is continued.
    let _ = beside
        .run_with(
            &["promote", "--yes"],
            &[("PGARK_FAULT_CRASH", "promote:taken")],
        )
        .expect(137);
    let back = promote(&beside, &[]);
    assert_eq!((&back["epoch"], &back["timeline"]), (&3.into(), &2.into()));
    check(&beside, 0, "epoch 3, taken by");
    check(&third, 3, "FAILED epoch: another server was promoted");
}

/// Runs it up to a point, does something, lets it go on; whether `repository` answers from then on decides the
/// file `fault`.
fn held(
    directory: &TestDirectory,
    pgark: &Pgark,
    (point, repository): (&str, &str),
    then: &dyn Fn(),
) -> (i32, String) {
    let [gate, fault, passed] = ["gate", "fault", "passed"].map(|name| directory.join(name));
    let mut command = pgark.command(&["promote"]);
    command.env("PGARK_FAULT_GATE", format!("{point}={}", gate.display()));
    command.env("PGARK_FAULT_COUNT", &passed);
    command.env("PGARK_FAULT_REPOSITORY", repository);
    let fail = format!("fail-if-exists:{}", fault.display());
    command.env("PGARK_FAULT_STORAGE", fail);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the point is reached", SOON, || {
        let passed = std::fs::read_to_string(&passed).unwrap_or_default();
        passed.contains(&format!("point {point}\n"))
    });
    then();
    std::fs::write(&gate, b"").unwrap();
    let output = child.wait_with_output().unwrap();
    for path in [&gate, &passed] {
        std::fs::remove_file(path).unwrap();
    }
    let _ = std::fs::remove_file(&fault);
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

/// Two repositories that are required: one fails once the server is promoted. A user who may not promote
/// takes no epoch; one without the key writes nothing.
#[test]
fn written_down_everywhere() {
    let directory = TestDirectory::new("t222_everywhere");
    let scene = Scene::new(&directory, Major::Pg15);
    scene
        .primary
        .psql("CREATE ROLE weak LOGIN; GRANT pg_monitor TO weak");
    let (standby, mut beside) = scene.standby("b");
    repository(&directory, &mut beside, "second", true);
    caught_up(&standby, &scene.primary);

    let strong = std::fs::read_to_string(beside.config()).unwrap();
    let weak = strong.replace("user=postgres", "user=weak");
    assert_ne!(weak, strong);
    std::fs::write(beside.config(), &weak).unwrap();
    for arguments in [&["--dry-run"][..], &[]] {
        refused(&beside, arguments, 10, &["promote_denied", "GRANT EXECUTE"]);
    }
    std::fs::write(beside.config(), &strong).unwrap();
    assert_eq!(scene.fences(), [""; 0]);

    // Its primary has the same system identifier, and is on this host.
    let own = format!("data_directory = \"{}\"", standby.data().display());
    let primary = format!("data_directory = \"{}\"", scene.primary.data().display());
    let wrong = strong.replace(&own, &primary);
    assert_ne!(wrong, strong);
    std::fs::write(beside.config(), &wrong).unwrap();
    refused(
        &beside,
        &["--yes"],
        10,
        &["data_directory_mismatch", "It is a copy"],
    );
    std::fs::write(beside.config(), &strong).unwrap();
    assert_eq!(scene.fences(), [""; 0]);

    let fault = directory.join("fault");
    let at = ("promote:promoted", "second");
    let (code, text) = held(&directory, &beside, at, &|| {
        std::fs::write(&fault, b"").unwrap();
    });
    assert_eq!(code, 20, "{text}");
    assert!(
        text.contains("the server is promoted to timeline 2"),
        "{text}"
    );
    let second = directory.join("second/fence").join(system_id(&standby));
    assert_eq!(scene.fences(), ["000001.json", "000001.timeline"]);
    assert_eq!(names(&second, ""), ["000001.json"]);
    for _ in 0..2 {
        let done = promote(&beside, &[]);
        assert_eq!(done["promoted_before"], true);
        assert!(
            done["repositories"]
                .as_array()
                .unwrap()
                .iter()
                .all(|r| r["has_epoch"] == true)
        );
        assert_eq!(names(&second, ""), ["000001.json", "000001.timeline"]);
    }
}

/// Between the epoch and the promotion nothing is let through; who is not required holds nothing up.
#[test]
fn what_comes_between() {
    let directory = TestDirectory::new("t222_between");
    let scene = Scene::new(&directory, Major::Pg15);
    let (standby, mut beside) = scene.standby("b");
    repository(&directory, &mut beside, "spare", false);
    let fault = directory.join("fault");
    let meanwhile = |then: &dyn Fn()| {
        let done = held(&directory, &beside, ("promote:taken", "local"), then);
        assert!(in_recovery(&standby));
        done
    };
    let (code, text) = meanwhile(&|| std::fs::write(&fault, b"").unwrap());
    assert_eq!(code, 20, "{text}");
    // The same epoch: it goes on. Then something that nobody can read takes a later one.
    let put = |name: &str| std::fs::write(scene.fence_directory().join(name), b"x").unwrap();
    let (code, text) = meanwhile(&|| put("000002.json"));
    assert_eq!(code, 30, "{text}");
    assert!(text.contains("fence_unreadable"), "{text}");
    // A number that nobody comes to counts for nothing.
    put("4294967295.json");
    let hang = [
        ("PGARK_FAULT_REPOSITORY", "spare"),
        ("PGARK_FAULT_STORAGE", "hang"),
    ];
    let began = Instant::now();
    let done = beside.run_with(&["promote", "--output", "json"], &hang);
    let done = done.expect(0).json();
    assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
    assert_eq!((&done["epoch"], &done["timeline"]), (&3.into(), &2.into()));
    let has = |done: &serde_json::Value, name: &str| {
        let all = done["repositories"].as_array().unwrap();
        let found = all.iter().find(|r| r["name"] == name).unwrap();
        found["has_epoch"].as_bool().unwrap()
    };
    assert!(has(&done, "local") && !has(&done, "spare"), "{done}");
    let again = promote(&beside, &[]);
    assert!(has(&again, "local") && has(&again, "spare"), "{again}");
    let spare = directory.join("spare/fence").join(system_id(&standby));
    assert_eq!(names(&spare, ""), ["000003.json", "000003.timeline"]);
    // Both are told of, and neither is in the way.
    let _ = beside.run(&["verify", "--repository", "spare"]).expect(0);
    let found = beside.run(&["verify", "--repository", "local"]).expect(3);
    for (name, told) in [("000002", true), ("4294967295", true), ("000003", false)] {
        let told_of = found.stdout.contains(&format!("/{name}."));
        assert_eq!(told_of, told, "{name}: {}", found.stdout);
    }
}
