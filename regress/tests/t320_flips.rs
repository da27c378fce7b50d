//! Flipped bits of a real repository, through the real commands.
//!
//! What: one bit of one object at a time, seeded, as many of each class; `pgark verify`, a restore
//! and archive-get look at it. Trap: the engine's checks are tested in process
//! (`archiver/src/verify/flip_tests.rs`), but a command may forget one, or turn it into the exit
//! code that makes Postgres promote. Expectation: verify exits 3 (30 when the repository's identity
//! is hit); a restore exits 0 with the same bytes or refuses; archive-get exits 0 with the same
//! bytes or above 200.

use pgark_regress::recovery::{archived, archived_encrypted};
use pgark_regress::{Cluster, Major, Pgark, TestDirectory, tier, tools};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// (flips in `make test`, flips in the full tier)
const FLIPS: (usize, usize) = (20, 300);

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The part of the key that tells the class.
fn class(repository: &Path, path: &Path) -> String {
    let key = path.strip_prefix(repository).unwrap();
    let first_part = key.components().next().unwrap();
    let first = first_part.as_os_str();
    let name = path.file_name().unwrap().to_str().unwrap();
    let kind = match name {
        _ if name.contains(".idx") => "idx",
        _ if name.len() == 24 => "segment",
        _ => name.rsplit('.').next().unwrap(),
    };
    let second = key.components().nth(1).unwrap_or(first_part).as_os_str();
    let kind = match first.to_str() {
        Some("wal" | "components" | "sessions") => kind,
        Some("keys") if second == "dek" || second == "epoch" => second.to_str().unwrap(),
        _ => "",
    };
    format!(
        "{} {}",
        first.to_str().unwrap(),
        kind.trim_matches(|c: char| c.is_ascii_digit())
    )
}

fn random(n: usize) -> usize {
    let digest = blake3::hash(&n.to_le_bytes());
    usize::from_le_bytes(*digest.as_bytes().first_chunk().unwrap())
}

/// What a restore wrote, but for `backup_manifest`, which holds the time.
fn content(target: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let found = files(target).into_iter();
    let found = found.filter(|path| !path.ends_with("backup_manifest"));
    found
        .map(|path| {
            let digest = blake3::hash(&std::fs::read(&path).unwrap());
            (path, digest)
        })
        .collect()
}

fn restore(pgark: &Pgark, target: &Path) -> i32 {
    let _ = std::fs::remove_dir_all(target);
    let code = pgark
        .run(&["restore", "--target-dir", target.to_str().unwrap()])
        .code;
    assert_eq!(code == 0, target.join("global/pg_control").exists());
    code
}

#[test]
fn flips_through_the_commands() {
    let directory = TestDirectory::new("t320_flips");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived(&directory, builder);
    flips(&directory, &cluster, &pgark, 12);
}

/// As above, and the records of keys are classes of their own.
#[test]
fn flips_of_an_encrypted_repository() {
    let directory = TestDirectory::new("t320_flips_encrypted");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (cluster, pgark) = archived_encrypted(&directory, builder);
    flips(&directory, &cluster, &pgark, 15);
}

fn flips(directory: &TestDirectory, cluster: &Cluster<'_>, pgark: &Pgark, least: usize) {
    pgark.backup();
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 5000) AS i");
    let segment = cluster.archive_all();
    let repository = directory.join("repository");
    let target = directory.folder("r").join("data");
    assert_eq!(restore(pgark, &target), 0);
    tools::verify_backup(Major::Pg15, &target);
    let truth = content(&target);
    let wal = std::fs::read(cluster.data().join("pg_wal").join(&segment)).unwrap();
    pgark.run(&["verify", "--all"]).expect(0);

    let mut classes: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files(&repository) {
        classes
            .entry(class(&repository, &path))
            .or_default()
            .push(path);
    }
    assert!(classes.len() >= least, "{:?}", classes.keys());
    let full = tier::is_full();
    let count = if full { FLIPS.1 } else { FLIPS.0 };
    let (mut unharmed, mut refused) = (0, 0);
    for n in 0..count {
        let (class, objects) = classes.iter().nth(n % classes.len()).unwrap();
        let mut path = &objects[random(n) % objects.len()];
        let asked = repository_file(&repository, &segment);
        if class.ends_with("segment") {
            path = &asked;
        }
        let good = std::fs::read(path).unwrap();
        let mut bad = good.clone();
        let at = random(n + 1_000_000) % (bad.len() * 8);
        bad[at / 8] ^= 1 << (at % 8);
        let what = format!("bit {at} of {}", path.display());
        std::fs::write(path, &bad).unwrap();
        let code = pgark.run(&["verify", "--all"]).code;
        match path.strip_prefix(&repository).unwrap().to_str().unwrap() {
            "repository.json" => assert_eq!(code, 30, "{what}"),
            // The epoch's record and the slot in use: the repository does not open.
            key if key.starts_with("keys/") => assert!([3, 30].contains(&code), "{what}"),
            _ => assert_eq!(code, 3, "{what}"),
        }
        match restore(pgark, &target) {
            0 => {
                assert!(content(&target) == truth, "{what}: another content");
                unharmed += 1;
            }
            10 | 30 => refused += 1,
            code => panic!("{what}: restore exits {code}"),
        }
        let fetched = directory.path().join("r/RECOVERYXLOG");
        let get = ["archive-get", segment.as_str(), fetched.to_str().unwrap()];
        match pgark.run(&get).code {
            0 => assert!(std::fs::read(&fetched).unwrap() == wal, "{what}: wrong WAL"),
            code => assert!(code > 200, "{what}: archive-get exits {code}"),
        }
        std::fs::write(path, &good).unwrap();
    }
    assert!(
        unharmed > 0 && refused > 0,
        "{unharmed} unharmed, {refused} refused"
    );
    pgark.run(&["verify", "--all"]).expect(0);
    println!("cases: flips through commands {count}");
}

fn repository_file(repository: &Path, name: &str) -> PathBuf {
    let found = files(repository).into_iter();
    let mut found = found.filter(|path| path.file_name().is_some_and(|n| n == name));
    found.next().unwrap()
}
