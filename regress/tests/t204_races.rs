//! Two agents of one cluster identity race on one repository: a primary and a copy of it that somebody
//! started, writing the same WAL but for the last record of each segment.
//!
//! What: for each segment name both are told to store theirs at the same instant, each by its own agent,
//! over a directory, an SSH server and an S3 server (Ceph's in the full tier).
//! Trap: who looks and then writes replaces the other's; who compares names, sizes or headers says
//! success to both; and one of the two clusters cannot be recovered.
//! Expectation: exactly one content under each name, whole; its agent says success and goes on saying it;
//! the other is refused, with an alert, and its content is kept in quarantine.

use crate::archive::{archiving, get};
use pgark_regress::s3_server::{S3Server, section};
use pgark_regress::sftp_server::SftpServer;
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, tier};
use std::path::{Path, PathBuf};
use std::sync::Barrier;

const ROUNDS: usize = 64;

/// The cluster and its copy, with segments of equal names that differ in one record each.
struct Twins<'a> {
    first: Cluster<'a>,
    second: Cluster<'a>,
    names: Vec<String>,
}

fn twins<'a>(directory: &'a TestDirectory, rounds: usize) -> Twins<'a> {
    // Nothing writes WAL but what is told to, and nothing of it is removed. archive_mode is off: what is
    // stored is for the test to say.
    let mut first = archiving(directory, Major::Pg15, "a")
        .setting("archive_mode = off")
        .setting("wal_level = minimal")
        .setting("max_wal_senders = 0")
        .setting("wal_keep_size = 500MB")
        .setting("max_wal_size = 1GB")
        .setting("checkpoint_timeout = 1d")
        .setting("autovacuum = off")
        .start();
    first.psql("SELECT pg_switch_wal()");
    first.stop(StopMode::Fast);
    let mut second = Cluster::over(directory, Major::Pg15, "b");
    let copied = pgark_regress::account::command("cp")
        .arg("-a")
        .args([first.data(), second.data()])
        .status()
        .unwrap();
    assert!(copied.success());
    let mut written = Vec::new();
    for (cluster, word) in [(&mut first, "one"), (&mut second, "two")] {
        cluster.start();
        let names: Vec<String> = (0..rounds)
            .map(|n| {
                let answer = cluster.psql(&format!(
                    "SELECT pg_logical_emit_message(false, 'test', '{word} {n:04}');
                     SELECT pg_walfile_name(pg_switch_wal())"
                ));
                answer.lines().last().unwrap().to_owned()
            })
            .collect();
        written.push(names);
    }
    assert_eq!(written[0], written[1], "the copies write the same names");
    Twins {
        first,
        second,
        names: written.remove(0),
    }
}

fn segment(cluster: &Cluster<'_>, name: &str) -> PathBuf {
    cluster.data().join("pg_wal").join(name)
}

/// An installation of `cluster` over the repository of this section.
fn installation(directory: &TestDirectory, name: &str, cluster: &Cluster<'_>, keys: &str) -> Pgark {
    let pgark = Pgark::new(directory, name, Some(cluster));
    let text = std::fs::read_to_string(pgark.config()).unwrap();
    let (head, _) = text.split_once("[repository.local]").unwrap();
    std::fs::write(pgark.config(), format!("{head}[repository.local]\n{keys}")).unwrap();
    pgark
}

fn race(directory: &TestDirectory, twins: &Twins<'_>, storage: &str, keys: &str, rounds: usize) {
    let sides = [("one", &twins.first), ("two", &twins.second)].map(|(side, cluster)| {
        (
            installation(directory, &format!("{storage}-{side}"), cluster, keys),
            cluster,
        )
    });
    let _ = sides[0].0.run(&["init", "--no-encryption"]).expect(0);
    // The identity is registered, and both agents have found out what the storage can do.
    let agents = [sides[0].0.agent(&[]), sides[1].0.agent(&[])];
    let mut won = [0_usize; 2];
    for name in &twins.names[..rounds] {
        let contents = [0, 1].map(|n| std::fs::read(segment(sides[n].1, name)).unwrap());
        let differs: Vec<usize> = (0..contents[0].len())
            .filter(|at| contents[0][*at] != contents[1][*at])
            .collect();
        let spread = differs[differs.len() - 1] - differs[0];
        assert!(
            spread < 128,
            "{name} differs in more than one record: {spread}"
        );
        let push = |n: usize| {
            let (pgark, cluster) = &sides[n];
            let path = segment(cluster, name);
            pgark.run(&["archive-push", path.to_str().unwrap()])
        };
        let start = Barrier::new(2);
        let answers = std::thread::scope(|scope| {
            let racing = [0, 1].map(|n| {
                let (start, push) = (&start, &push);
                scope.spawn(move || {
                    start.wait();
                    push(n)
                })
            });
            racing.map(|thread| thread.join().unwrap())
        });
        let winners: Vec<usize> = (0..2).filter(|n| answers[*n].code == 0).collect();
        assert_eq!(winners.len(), 1, "{storage} {name}: {answers:?}");
        let (winner, loser) = (winners[0], 1 - winners[0]);
        won[winner] += 1;
        let told = &answers[loser];
        assert_eq!(told.code, 40, "{storage} {name}: {told:?}");
        assert!(told.stderr.contains("wal_conflict"), "{told:?}");
        assert!(told.stderr.contains("/conflict/"), "{told:?}");
        let stored = get(directory, &sides[loser].0, name);
        assert!(
            stored == contents[winner],
            "{storage} {name}: not the winner's"
        );
    }
    println!("cases: races of two agents on {storage} {rounds}");
    // It stays so: the winner's last one is a success again, and its quarantined rival's is not.
    let listed = sides[0].0.run(&["wal", "conflicts", "--output", "json"]);
    let listed = listed.expect(0).json();
    assert_eq!(
        listed["conflicts"].as_array().unwrap().len(),
        rounds,
        "{listed}"
    );
    for (n, lost) in [(0, won[1]), (1, won[0])] {
        let log = sides[n].0.agent_log();
        let alerts = log.matches("alert=\"wal_conflict\"").count();
        assert!(
            alerts >= lost,
            "{storage}: {alerts} alerts for {lost} lost races"
        );
        assert!(!log.contains("panicked"), "{log}");
    }
    let check = sides[0].0.run(&["check", "--no-switch"]);
    assert!(check.stdout.contains("FAILED conflicts"), "{check:?}");
    for agent in agents {
        assert_eq!(agent.terminate(), Some(0));
    }
}

fn posix(directory: &TestDirectory) -> String {
    let path: &Path = &directory.join("raced");
    format!("kind = \"posix\"\npath = \"{}\"\n", path.display())
}

#[test]
fn one_content_for_each_name() {
    let directory = TestDirectory::new("t204_races");
    let twins = twins(&directory, ROUNDS);
    let some = if tier::is_full() { ROUNDS } else { 8 };
    race(&directory, &twins, "posix", &posix(&directory), ROUNDS);
    {
        let server = SftpServer::start(&directory, "");
        let path = directory.folder("srv").join("raced");
        let keys = server.section(server.port(), &path);
        race(&directory, &twins, "sftp", &keys, some);
    }
    let server = match tier::is_full() {
        true => S3Server::radosgw(&directory),
        false => S3Server::moto(&directory),
    };
    server.create_bucket("raced");
    let keys = section(&directory, &server.endpoint(), "raced");
    race(&directory, &twins, "s3", &keys, some);
}
