//! An encrypted repository, through the real commands.
//!
//! What: archiving by an agent and without one, a backup, point-in-time recovery, verification with
//! the key and without, a rotated key, a host that can only write, wrong keys; and a search for rows,
//! keys and passphrases where they must not be.
//! Trap: one path that stores in clear, or that reads with a key it should not need, looks right in
//! every other test. A search that cannot find anything passes too: each has a control that is found.
//! Expectation: recovery is as without encryption; a wrong key ends with exit 10 and writes nothing.

use pgark_regress::recovery::{SHORT_WAITS, archived_encrypted, install_encrypted};
use pgark_regress::{Cluster, Major, Pgark, StopMode, TestDirectory, account, tools};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Stands in rows alone, in a table's name too; never compressed to something else whole, for it is
/// short and the rest of each row is random.
const MARKER: &str = "planted_marker_7f3a";

pub(crate) fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

pub(crate) fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

/// Fills a table with rows that do not compress, the marker among them.
pub(crate) fn plant(cluster: &Cluster<'_>) {
    cluster.psql(&format!(
        "CREATE TABLE {MARKER} AS SELECT i, '{MARKER}' || i AS body, \
         (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20) WHERE i = i) AS noise \
         FROM generate_series(1, 500) i"
    ));
}

/// A key file that another tool would have made: right in form, of no repository.
fn stranger(directory: &TestDirectory, pgark: &Pgark) -> PathBuf {
    let other = directory.join("stranger.key");
    let kit = directory.join("stranger.kit");
    let mut wrong = Pgark::new(directory, "stranger", None);
    wrong.configure(&format!(
        "[repository.other]\nkind = \"posix\"\npath = \"{}\"\n\
         [repository.other.encryption]\nmode = \"key-file\"\nkey_file = \"{}\"\n",
        directory.join("other_repository").display(),
        other.display()
    ));
    let arguments = [
        "init",
        "--repository",
        "other",
        "--recovery-kit",
        kit.to_str().unwrap(),
    ];
    wrong.run(&arguments).expect(0);
    let _ = pgark;
    other
}

/// An installation over the same repository, with this encryption section.
pub(crate) fn over(
    directory: &TestDirectory,
    name: &str,
    cluster: Option<&Cluster<'_>>,
    keys: &str,
) -> Pgark {
    let mut pgark = Pgark::new(directory, name, cluster);
    pgark.configure(SHORT_WAITS);
    if !keys.is_empty() {
        pgark.configure(&format!("[repository.local.encryption]\n{keys}\n"));
    }
    pgark
}

pub(crate) fn key_file(path: &Path) -> String {
    format!("mode = \"key-file\"\nkey_file = \"{}\"", path.display())
}

pub(crate) fn body(cluster: &Cluster<'_>) -> String {
    cluster.psql(&format!(
        "SELECT count(*), min(body), md5(string_agg(noise, '' ORDER BY i)) FROM {MARKER}"
    ))
}

#[test]
fn recovery_to_a_point_15() {
    let directory = TestDirectory::new("t410_recovery");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived_encrypted(&directory, builder);
    plant(&cluster);
    pgark.backup();
    let agent = pgark.agent(&[]);
    let truth = body(&cluster);
    cluster.psql("SELECT pg_create_restore_point('here')");
    cluster.psql(&format!("DELETE FROM {MARKER}"));
    let segment = cluster.archive_all();
    assert!(pgark.agent_counter("pushed") > 0, "the agent archives");

    // Neither the repository nor what the agent shows of itself holds a row or a name.
    let repository = directory.join("repository");
    let stored: Vec<u8> = files(&repository).into_values().flatten().collect();
    assert!(holds(&stored, b"PGARKWAL") && holds(&stored, b"PGARKENC"));
    assert!(
        !holds(&stored, MARKER.as_bytes()),
        "a row in the repository"
    );
    let data: Vec<u8> = files(&cluster.data().join("base"))
        .into_values()
        .flatten()
        .collect();
    assert!(
        holds(&data, MARKER.as_bytes()),
        "the search finds what is there"
    );
    for name in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{}/{name}", agent.pid())).unwrap();
        assert!(!holds(&shown, MARKER.as_bytes()));
    }
    assert!(!pgark.agent_log().contains(MARKER));

    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    let found = pgark.run(&["wal", "find", "--relation", MARKER, "--output", "json"]);
    assert!(
        found.expect(0).stdout.contains("delete"),
        "wal find reads encrypted indexes"
    );
    let kept = directory.folder("kept").join(&segment);
    std::fs::copy(cluster.data().join("pg_wal").join(&segment), &kept).unwrap();
    account::give(&kept);
    cluster.stop(StopMode::Fast);
    let restored = pgark.recovered(&directory, Major::Pg15, "b", &["--target-name", "here"]);
    assert_eq!(body(&restored), truth);
    tools::check_running(&restored, "postgres");

    // Without the key: names and stored bytes can be verified, rows cannot be had.
    let keyless = over(&directory, "keyless", None, "");
    keyless.run(&["verify", "--all"]).expect(0);
    keyless
        .run(&["verify", "--all", "--level", "existence"])
        .expect(0);
    let refused = keyless
        .run(&["verify", "--all", "--level", "pages"])
        .expect(10);
    assert!(
        refused.stderr.contains("(code key_required)"),
        "{}",
        refused.stderr
    );
    assert!(
        keyless
            .run(&["--output", "json", "info"])
            .expect(0)
            .stdout
            .contains("root_digest")
    );
    let fetched = directory.folder("fetched").join("RECOVERYXLOG");
    let get = ["archive-get", segment.as_str(), fetched.to_str().unwrap()];
    keyless.run(&get).expect(201);
    let mut flipped = BTreeMap::new();
    for (path, bytes) in files(&repository) {
        let folder = path.strip_prefix(&repository).unwrap();
        let folder = folder.components().next().unwrap().as_os_str().to_owned();
        flipped.entry(folder).or_insert((path, bytes));
    }
    assert!(flipped.len() >= 7, "{:?}", flipped.keys());
    for (path, good) in flipped.values() {
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        std::fs::write(path, &bad).unwrap();
        let code = keyless.run(&["verify", "--all"]).code;
        let expected = if path.ends_with("repository.json") {
            30
        } else {
            3
        };
        assert_eq!(code, expected, "{}", path.display());
        std::fs::write(path, good).unwrap();
    }

    // A wrong key: told as such, and nothing is written.
    let wrong = over(
        &directory,
        "wrong",
        Some(&cluster),
        &key_file(&stranger(&directory, &pgark)),
    );
    let before = files(&repository);
    let target = directory.folder("w").join("data");
    for (arguments, code) in [
        (vec!["verify", "--all"], 10),
        (vec!["info"], 10),
        (vec!["key", "check"], 10),
        (vec!["gc"], 10),
        (
            vec!["restore", "--target-dir", target.to_str().unwrap()],
            10,
        ),
        (get.to_vec(), 201),
        (vec!["archive-push", kept.to_str().unwrap()], 10),
    ] {
        let output = wrong.run(&arguments).expect(code);
        assert!(
            output.stderr.contains("key_wrong"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    assert!(files(&repository) == before, "a wrong key wrote something");
    assert!(!target.exists());
    // A key that is not there keeps nobody from tidying up.
    let absent = key_file(&directory.join("absent.key"));
    let absent = over(&directory, "absent", Some(&cluster), &absent);
    let told = absent.run(&["gc", "--dry-run"]).expect(0).stderr;
    assert!(told.contains("key_file_unreadable"), "{told}");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_rotated_key_15() {
    let directory = TestDirectory::new("t410_rotation");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let (mut cluster, pgark) = archived_encrypted(&directory, builder);
    plant(&cluster);
    pgark.backup();
    cluster.archive_all();
    let truth = body(&cluster);
    let (new, kit) = (directory.join("new.key"), directory.join("new.kit"));
    let rotated = pgark.run(&[
        "--output",
        "json",
        "key",
        "rotate",
        "--key-file",
        new.to_str().unwrap(),
        "--recovery-kit",
        kit.to_str().unwrap(),
    ]);
    let rotated = rotated.expect(0).json();
    assert_eq!(rotated["epoch"], 2);
    // The old key still opens what it wrote; archiving with it goes on and loses nothing.
    let between = cluster.archive_all();
    let after = over(&directory, "after", Some(&cluster), &key_file(&new));
    for slot in rotated["old_slots"].as_array().unwrap() {
        after
            .run(&["key", "remove", slot.as_str().unwrap()])
            .expect(0);
    }
    let refused = pgark.run(&["key", "check"]).expect(10);
    assert!(refused.stderr.contains("key_wrong"), "{}", refused.stderr);
    after.run(&["key", "check"]).expect(0);
    after
        .run(&["key", "check", "--kit", kit.to_str().unwrap()])
        .expect(0);
    after
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    let fetched = directory.folder("fetched").join("RECOVERYXLOG");
    after
        .run(&["archive-get", &between, fetched.to_str().unwrap()])
        .expect(0);
    cluster.stop(StopMode::Fast);
    let restored = after.recovered(&directory, Major::Pg15, "b", &["--target-immediate"]);
    assert_eq!(body(&restored), truth);
    // By the kit alone, as after the loss of everything else.
    let by_kit = over(&directory, "by_kit", Some(&cluster), &key_file(&kit));
    by_kit
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}

#[test]
fn a_host_that_only_writes_15() {
    let directory = TestDirectory::new("t410_writer");
    let builder = Cluster::builder(&directory, Major::Pg15, "a").wal_segment_mib(1);
    let mut cluster = builder.init();
    let owner = install_encrypted(&directory, &cluster);
    let key = directory.join("writer.key");
    let add = [
        "key",
        "add",
        "--name",
        "host",
        "--writer",
        "--key-file",
        key.to_str().unwrap(),
    ];
    owner.run(&add).expect(0);
    let writer = over(&directory, "writer", Some(&cluster), &key_file(&key));
    cluster.configure(&format!(
        "archive_mode = on\narchive_command = '{}'\n",
        writer.shell("archive-push %p")
    ));
    cluster.start();
    plant(&cluster);
    let agent = writer.agent(&[]);
    writer.backup();
    let segment = cluster.archive_all();
    // The same segment again: a duplicate, known by its tag.
    let path = cluster.data().join("pg_wal").join(&segment);
    assert_eq!(agent.terminate(), Some(0));
    writer
        .run(&["archive-push", path.to_str().unwrap()])
        .expect(0);
    // Another content under its name: refused.
    let mut other = std::fs::read(&path).unwrap();
    *other.last_mut().unwrap() ^= 1;
    let folder = directory.folder("forged");
    let forged = folder.join(&segment);
    std::fs::write(&forged, &other).unwrap();
    account::give(&forged);
    let refused = writer
        .run(&["archive-push", forged.to_str().unwrap()])
        .expect(40);
    assert!(
        refused.stderr.contains("(code wal_conflict)"),
        "{}",
        refused.stderr
    );
    writer.run(&["verify", "--all"]).expect(0);
    let fetched = directory.folder("fetched").join("RECOVERYXLOG");
    let target = directory.folder("w").join("data");
    for (arguments, code) in [
        (
            vec!["restore", "--target-dir", target.to_str().unwrap()],
            10,
        ),
        (
            vec!["archive-get", &segment, fetched.to_str().unwrap()],
            201,
        ),
    ] {
        let refused = writer.run(&arguments).expect(code);
        assert!(
            refused.stderr.contains("key_write_only"),
            "{}",
            refused.stderr
        );
    }
    let truth = body(&cluster);
    cluster.stop(StopMode::Fast);
    let restored = owner.recovered(&directory, Major::Pg15, "b", &[]);
    assert_eq!(body(&restored), truth);
}

#[test]
fn init_wants_a_choice_and_a_kit() {
    let directory = TestDirectory::new("t410_init");
    let mut pgark = Pgark::new(&directory, "p", None);
    let says = |pgark: &Pgark, arguments: &[&str], code: &str| {
        let output = pgark.run(arguments).expect(10);
        assert!(
            output.stderr.contains(&format!("(code {code})")),
            "{}",
            output.stderr
        );
    };
    says(&pgark, &["init"], "encryption_choice");
    let key = directory.join("local.key");
    pgark.configure(&format!(
        "[repository.local.encryption]\n{}",
        key_file(&key)
    ));
    says(&pgark, &["init"], "recovery_kit_required");
    let kit = directory.join("kit");
    let kit_text = kit.to_str().unwrap();
    says(
        &pgark,
        &["init", "--no-encryption", "--recovery-kit", kit_text],
        "encryption_choice",
    );
    let taken = directory.file("taken", "");
    says(
        &pgark,
        &["init", "--recovery-kit", taken.to_str().unwrap()],
        "key_file_exists",
    );
    assert!(!directory.join("repository/repository.json").exists());
    assert!(!key.exists(), "a key of nothing");
    pgark.run(&["init", "--recovery-kit", kit_text]).expect(0);
    pgark
        .run(&[
            "init",
            "--recovery-kit",
            directory.join("kit2").to_str().unwrap(),
        ])
        .expect(40);
    assert!(!directory.join("kit2").exists(), "a kit of nothing");
    for path in [&key, &kit] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    pgark.run(&["key", "check"]).expect(0);
    pgark.run(&["key", "check", "--kit", kit_text]).expect(0);
    let slots = pgark
        .run(&["--output", "json", "key", "list"])
        .expect(0)
        .json();
    assert_eq!(slots["slots"].as_array().unwrap().len(), 2);

    // A kit that was cut short, and one that everybody may read.
    let text = std::fs::read_to_string(&kit).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let cut = directory.file("cut", &lines[..lines.len() - 1].join("\n"));
    account::give(&cut);
    std::fs::set_permissions(&cut, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = pgark
        .run(&["key", "check", "--kit", cut.to_str().unwrap()])
        .expect(10);
    assert!(
        output.stderr.contains("line 4 is missing"),
        "{}",
        output.stderr
    );
    std::fs::set_permissions(&cut, std::fs::Permissions::from_mode(0o644)).unwrap();
    says(
        &pgark,
        &["key", "check", "--kit", cut.to_str().unwrap()],
        "key_file_permissions",
    );

    // Typed from the screen, or read by a program: the kit alone.
    let printed = ["--output", "json", "key", "export", "--paper", "-"];
    let printed = pgark.run(&printed).expect(0).json();
    assert!(printed["recovery_kit"].is_null());
    let printed = directory.file("printed", printed["kit"].as_str().unwrap());
    std::fs::set_permissions(&printed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let check = ["key", "check", "--kit", printed.to_str().unwrap()];
    pgark.run(&check).expect(0);
    let unnamed = ["key", "add", "--name", " ", "--recipient", "age1x"];
    says(&pgark, &unnamed, "slot_name");

    // One more kit, removed again; the last slots stay.
    let paper = directory.join("paper");
    let exported = pgark.run(&[
        "--output",
        "json",
        "key",
        "export",
        "--paper",
        paper.to_str().unwrap(),
    ]);
    let slot = exported.expect(0).json()["slot"]
        .as_str()
        .unwrap()
        .to_owned();
    pgark
        .run(&["key", "check", "--kit", paper.to_str().unwrap()])
        .expect(0);
    pgark.run(&["key", "remove", &slot]).expect(0);
    says(
        &pgark,
        &["key", "check", "--kit", paper.to_str().unwrap()],
        "key_wrong",
    );
}

#[test]
fn init_makes_nothing_in_part() {
    let directory = TestDirectory::new("t410_in_part");
    let kit = directory.join("kit");
    let init = ["init", "--recovery-kit", kit.to_str().unwrap()];
    let refused = |pgark: &Pgark, code: &str| {
        let told = pgark.run(&init).expect(10).stderr;
        assert!(told.contains(&format!("(code {code})")), "{told}");
        assert!(!kit.exists(), "a kit of nothing");
        assert!(!directory.join("repository/repository.json").exists());
    };
    // What is to open it does not.
    let identity = directory.file("identity", "no identity\n");
    std::fs::set_permissions(&identity, std::fs::Permissions::from_mode(0o600)).unwrap();
    let recipients = |recipient: &str| {
        format!(
            "mode = \"recipients\"\nrecipients = [\"{recipient}\"]\nidentity_file = \"{}\"",
            identity.display()
        )
    };
    let alice = recipients("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p");
    refused(&over(&directory, "a", None, &alice), "identity_malformed");
    let nobody = recipients("age1nobody");
    refused(&over(&directory, "b", None, &nobody), "recipient");

    // One kit does not open two.
    let key = key_file(&directory.join("local.key"));
    let mut both = over(&directory, "c", None, &key);
    both.configure(&format!(
        "[repository.far]\nkind = \"posix\"\npath = \"{}\"\n[repository.far.encryption]\n{key}\n",
        directory.join("far").display()
    ));
    refused(&both, "recovery_kit_shared");
    assert!(!directory.join("far").exists() && !directory.join("local.key").exists());
    for name in ["local", "far"] {
        let kit = directory.join(&format!("{name}.kit"));
        let kit = kit.to_str().unwrap();
        let one = ["init", "--repository", name, "--recovery-kit", kit];
        both.run(&one).expect(0);
        both.run(&["key", "check", "--repository", name, "--kit", kit])
            .expect(0);
    }
}

/// A file size limit plays the full disk: what could not be written whole is no key file, and not in the way.
#[test]
fn a_key_file_is_whole_or_not_there() {
    let directory = TestDirectory::new("t410_half_a_key");
    let key = key_file(&directory.join("local.key"));
    let pgark = over(&directory, "a", None, &key);
    let kit = directory.join("kit");
    pgark
        .run(&["init", "--recovery-kit", kit.to_str().unwrap()])
        .expect(0);
    let new = directory.join("new.key");
    let add = format!("key add --name n --key-file {}", new.display());
    let limited = format!("trap '' XFSZ; ulimit -f 0; exec {}", pgark.shell(&add));
    let output = pgark_regress::account::command("sh")
        .args(["-c", &limited])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(20), "{told}");
    assert!(
        told.contains("could not write") && told.contains("new.key"),
        "{told}"
    );
    assert!(!new.exists());
    let add: Vec<&str> = add.split(' ').collect();
    pgark.run(&add).expect(0);
}
