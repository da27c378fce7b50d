//! Two copies of one cluster archive under one name, and stored copies that are damaged.
//!
//! The copies write the same records up to a last one, so that names, sizes, headers and almost all
//! bytes of a segment agree. Trap: whoever compares less than everything acknowledges the second,
//! and one of the two clusters cannot be recovered.

use crate::archive::{archiving, get, names, object, system_id};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Writes one record, ends the segment and returns the file.
fn last_record(cluster: &Cluster<'_>, text: &str) -> (String, PathBuf) {
    let name = cluster.psql(&format!(
        "SELECT pg_logical_emit_message(false, 'test', '{text}');
         SELECT pg_walfile_name(pg_switch_wal())"
    ));
    let name = name.lines().last().unwrap().to_owned();
    let path = cluster.data().join("pg_wal").join(&name);
    (name, path)
}

fn flip(path: &std::path::Path) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn two_copies_of_one_cluster() {
    let directory = TestDirectory::new("t202_copies");
    let mut first = archiving(&directory, Major::Pg15, "a").start();
    first.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n; CHECKPOINT");
    first.psql("SELECT pg_switch_wal()");
    first.stop(StopMode::Fast);
    let mut second = Cluster::over(&directory, Major::Pg15, "b");
    let copied = pgark_regress::account::command("cp")
        .arg("-a")
        .args([first.data(), second.data()])
        .status()
        .unwrap();
    assert!(copied.success());
    let pgark = Pgark::new(&directory, "p", Some(&first));
    let _ = pgark.run(&["init", "--no-encryption"]).expect(0);
    for cluster in [&mut first, &mut second] {
        cluster.log_mut().allow("yet archiving is not configured");
        cluster.start();
    }
    let (name, one) = last_record(&first, "one");
    let (other_name, two) = last_record(&second, "two");
    assert_eq!(name, other_name);
    let (one_bytes, two_bytes) = (std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    let differs: Vec<usize> = (0..one_bytes.len())
        .filter(|at| one_bytes[*at] != two_bytes[*at])
        .collect();
    let (from, to) = (differs[0], differs[differs.len() - 1]);
    assert!(to - from < 128, "they differ in one record: {from} to {to}");

    let push = |path: &PathBuf| pgark.run(&["archive-push", path.to_str().unwrap()]);
    let _ = push(&one).expect(0);
    for _ in 0..2 {
        let refused = push(&two).expect(40);
        assert!(
            refused.stderr.contains("alert=\"wal_conflict\""),
            "{refused:?}"
        );
        assert!(refused.stderr.contains("code wal_conflict"));
        assert!(refused.stderr.contains("HINT:"));
    }
    let _ = push(&one).expect(0);
    assert!(get(&directory, &pgark, &name) == one_bytes);

    let id = system_id(&first);
    let repository = directory.join("repository");
    let quarantine = repository.join(format!("wal/{id}/conflict/{name}"));
    assert_eq!(
        names(&quarantine, "").len(),
        2,
        "kept once, with a note of who pushed it"
    );
    let info = pgark.run(&["info", "--output", "json"]).expect(0).json();
    assert_eq!(info["components"][0]["conflicts"], 1);
    assert!(pgark.run(&["info"]).stdout.contains("wal_conflict"));
    let check = pgark.run(&["check", "--no-switch", "--output", "json"]);
    let checks = check.expect(3).json();
    let found = checks["checks"].as_array().unwrap().iter();
    let conflict = found
        .clone()
        .find(|c| c["name"] == "conflicts local")
        .unwrap();
    assert_eq!(conflict["ok"], false);
    assert!(conflict["detail"].as_str().unwrap().contains(&name));

    let listed = pgark
        .run(&["wal", "conflicts", "--output", "json"])
        .expect(0)
        .json();
    let pushed = &listed["conflicts"][0]["pushed"];
    assert_eq!(pushed["plain_bytes"], one_bytes.len());
    let difference = pushed["difference"].as_str().unwrap();
    assert!(
        difference.contains(&format!("byte {from} on")),
        "{difference}"
    );
    let _ = pgark
        .run(&["wal", "conflicts", "--acknowledge", &name])
        .expect(2);
    let acknowledge = [
        "wal",
        "conflicts",
        "--acknowledge",
        &name,
        "--reason",
        "a copy",
    ];
    let settled = pgark.run(&acknowledge).expect(0);
    assert!(settled.stdout.contains(": a copy"), "{settled:?}");
    let conflict_line = || {
        let check = pgark
            .run(&["check", "--no-switch", "--output", "json"])
            .json();
        let checks = check["checks"].as_array().unwrap().clone();
        checks
            .into_iter()
            .find(|c| c["name"] == "conflicts local")
            .unwrap()
    };
    let line = conflict_line();
    assert_eq!(
        (&line["ok"], &line["detail"]),
        (
            &true.into(),
            &"1 WAL files in quarantine, all acknowledged".into()
        )
    );
    // The copy goes on archiving: the operator hears of it again.
    let _ = push(&two).expect(40);
    assert_eq!(conflict_line()["ok"], false);
    assert_eq!(
        names(&quarantine, "").len(),
        5,
        "two contents, two notes, one acknowledgement"
    );

    // The stored copy is damaged: it is served to nobody until a good one lies beside it.
    let stored = object(&repository, &id, &name);
    flip(&stored);
    let place = directory.folder("out").join("file");
    let arguments = ["archive-get", &name, place.to_str().unwrap()];
    let mut impatient = Pgark::new(&directory, "q", Some(&first));
    impatient.configure("[wal]\nget_retry_seconds = 0\n");
    let refused = impatient.run(&arguments).expect(203);
    assert!(
        refused.stderr.contains("wal_container_damaged"),
        "{refused:?}"
    );
    assert!(!place.exists());
    let mended = push(&one).expect(0);
    assert!(
        mended.stderr.contains("alert=\"wal_damaged\""),
        "{mended:?}"
    );
    let folder = stored.parent().unwrap();
    let variants = names(folder, &format!("{name}.r1-"));
    assert_eq!(variants.len(), 1, "{:?}", names(folder, &name));
    assert!(get(&directory, &pgark, &name) == one_bytes);
    let _ = push(&one).expect(0);
    assert_eq!(names(folder, &format!("{name}.r")).len(), 1);
    let _ = push(&two).expect(40);
    assert!(get(&directory, &pgark, &name) == one_bytes);
    // The variant is damaged too.
    flip(&folder.join(&variants[0]));
    let _ = impatient.run(&arguments).expect(203);
    let _ = push(&one).expect(0);
    assert_eq!(names(folder, &format!("{name}.r")).len(), 2);
    assert!(get(&directory, &pgark, &name) == one_bytes);
}
