//! A component of kind `files`: captured while it changes, stored once, restored with all it had.
//!
//! What: a tree with every kind of entry, names that are no text, a hole of 64 MiB. It is backed up while a
//! program writes into it; unchanged again; restored elsewhere, one path of it, and in place after it was
//! wrecked, with the safety backup that undoes just that.
//! Trap: a file that is torn or lost without a word; an unchanged file read or stored again; a restore that
//! follows a planted link, forgets a mode or a time, or puts masked secrets over real ones.
//! Expectation: `diff` and `stat` see no difference; each bad input is an error of its own, with a hint.

use pgark_regress::{Output, Pgark, TestDirectory, account};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn json(pgark: &Pgark, arguments: &[&str], code: i32) -> Value {
    let all = [&["--output", "json"], arguments].concat();
    pgark.run(&all).expect(code).json()
}

#[track_caller]
fn refused(pgark: &Pgark, arguments: &[&str], code: &str) -> Output {
    let output = pgark.run(arguments);
    assert_ne!(output.code, 0, "{}", output.stdout);
    let said = format!("(code {code})");
    assert!(output.stderr.contains(&said), "{}", output.stderr);
    output
}

/// The backups of the component, oldest first.
fn backups(pgark: &Pgark) -> Vec<Value> {
    let info = json(pgark, &["info", "--component", "documents"], 0);
    let component = &info["components"][0];
    assert_eq!(component["kind"], "files");
    component["backups"].as_array().unwrap().clone()
}

fn newest(pgark: &Pgark) -> Value {
    backups(pgark).pop().unwrap()
}

fn back_up(pgark: &Pgark) -> Value {
    pgark.run(&["backup", "--component", "documents"]).expect(0);
    newest(pgark)
}

/// Writes as the account that pgark runs as.
fn write(path: &Path, content: &[u8], mode: u32) {
    let parent = path.parent().unwrap();
    std::fs::create_dir_all(parent).unwrap();
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Gives everything to the account.
fn give_all(path: &Path) {
    if account::account().change {
        let owner = format!("{}:{}", account::account().uid, account::account().gid);
        let done = std::process::Command::new("chown")
            .arg("-Rh")
            .arg(owner)
            .arg(path)
            .status();
        assert!(done.unwrap().success());
    }
}

fn grow(tree: &Path) {
    write(
        &tree.join("docs/report.txt"),
        &b"a report\n".repeat(1000),
        0o640,
    );
    write(&tree.join("docs/deep/er/x"), b"x", 0o2755);
    write(&tree.join("app.env"), b"TOKEN=hunter2\n", 0o600);
    write(
        &tree.join(OsStr::from_bytes(b"line\nfeed\xff")),
        b"odd",
        0o600,
    );
    write(&tree.join("n".repeat(255)), b"long", 0o600);
    std::fs::hard_link(tree.join("docs/report.txt"), tree.join("same")).unwrap();
    symlink("/etc/shadow", tree.join("outside")).unwrap();
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    for n in 0..500 {
        write(
            &tree.join(format!("many/{n}")),
            format!("file {n}").as_bytes(),
            0o600,
        );
    }
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 987_654_321);
    let file = std::fs::File::open(tree.join("docs/report.txt")).unwrap();
    file.set_modified(old).unwrap();
    std::fs::File::open(tree.join("docs/deep"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    give_all(tree);
}

/// Names, kinds, modes, owners, sizes, times, links and content, as tools of the system see them.
fn picture(tree: &Path) -> String {
    let script = "cd \"$1\" && find . -printf '%P|%y|%m|%U:%G|%l|%n|%T@|' \\( -type f -printf '%s' -exec sha256sum -b {} \\; -o -printf '\\n' \\) | LC_ALL=C sort";
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(tree)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Scene {
    pgark: Pgark,
    tree: PathBuf,
    directory: TestDirectory,
}

impl Scene {
    fn new(name: &str, more: &str) -> Self {
        let directory = TestDirectory::new(name);
        let tree = directory.folder("tree");
        let mut pgark = Pgark::new(&directory, "host", None);
        let path = tree.display();
        pgark.configure(&format!(
            "[component.documents]\nkind = \"files\"\npaths = [\"{path}\"]\n{more}"
        ));
        pgark.run(&["init", "--no-encryption"]).expect(0);
        Self {
            pgark,
            tree,
            directory,
        }
    }

    /// Where a tree lies that was restored to `place`.
    fn below(&self, place: &Path) -> PathBuf {
        place.join(self.tree.strip_prefix("/").unwrap())
    }
}

/// What is restored by another account than its owner's does not run as that account.
#[test]
fn set_id_bits_go_where_owners_cannot() {
    let scene = Scene::new("t500_set_id", "");
    let program = scene.tree.join("bin/program");
    write(&program, b"#!/bin/sh\n", 0o4755);
    let shared = scene.tree.join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o2775)).unwrap();
    let own = scene.tree.join("own");
    write(&own, b"#!/bin/sh\n", 0o755);
    give_all(&own);
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o4755)).unwrap();
    back_up(&scene.pgark);
    let place = scene.directory.folder("elsewhere");
    let to = place.display().to_string();
    let restore = ["restore", "--component", "documents", "--to", &to];
    let done = json(&scene.pgark, &restore, 0);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    let mode = |name: &str| {
        let there = scene.below(&place).join(name).metadata().unwrap();
        there.permissions().mode() & 0o7777
    };
    // As root the test owns what pgark's account does not.
    let (program, shared) = match account::account().change {
        true => (0o755, 0o775),
        false => (0o4755, 0o2775),
    };
    assert_eq!(mode("bin/program"), program);
    assert_eq!(mode("shared"), shared);
    assert_eq!(mode("own"), 0o4755);
}

/// Restores with the independent reader, from an empty folder.
fn read_by_page(scene: &Scene, label: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::process::Command::new(sources.join("setup/python.sh"))
        .arg("--path")
        .output()
        .unwrap();
    assert!(asked.status.success(), "run regress/setup/python.sh");
    let python = String::from_utf8(asked.stdout).unwrap();
    let text = std::fs::read_to_string(sources.join("reader/pgark_reader.py")).unwrap();
    let reader = scene.directory.file("pgark_reader.py", &text);
    let target = scene.directory.folder("by_reader");
    let mut command = account::command(python.trim());
    command
        .arg(reader)
        .arg("restore")
        .arg(scene.directory.join("repository"));
    command
        .args(["documents", label])
        .arg(&target)
        .current_dir("/");
    let _ = Output::from(command.output().unwrap()).expect(0);
    target
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let scene = Scene::new("files_tree", "redact = [\"*.env\"]\n");
    let (pgark, tree) = (&scene.pgark, &scene.tree);
    grow(tree);
    // A file that changed within the last two seconds is read again the next time.
    std::thread::sleep(Duration::from_millis(3500));
    let first = back_up(pgark);
    assert!(first["bytes_stored"].as_u64().unwrap() < 1 << 20, "{first}");
    let second = back_up(pgark);
    // At the most a table in which the other name of "same" comes first.
    let stored = second["bytes_stored"].as_u64().unwrap();
    assert!(stored < 100_000, "{stored} bytes of what did not change");
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
    let before = picture(tree);
    // Elsewhere.
    let place = scene.directory.folder("elsewhere");
    let to = place.display().to_string();
    let restore = ["restore", "--component", "documents"];
    let plan = json(pgark, &[&restore[..], &["--dry-run"]].concat(), 0);
    assert_eq!(plan["backup"], second["label"]);
    assert_eq!(plan["in_place"], true);
    assert_eq!(plan["point"]["position"]["files_read"], 1, "what is masked");
    let done = json(pgark, &[&restore[..], &["--to", &to]].concat(), 0);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    assert_eq!(done["safety_backup"], Value::Null);
    assert!(done["notes"].to_string().contains("app.env"), "{done}");
    let there = scene.below(&place);
    assert_eq!(
        std::fs::read(there.join("app.env")).unwrap(),
        b"TOKEN=********\n"
    );
    let without_secret = |picture: String| {
        let lines = picture.lines().filter(|line| !line.starts_with("app.env|"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        without_secret(picture(&there)),
        without_secret(before.clone())
    );
    assert!(there.join("sparse").metadata().unwrap().blocks() < 1 << 10);
    refused(
        pgark,
        &[&restore[..], &["--to", &to]].concat(),
        "would_overwrite",
    );
    // Nothing is saved there before: --yes alone does not say that nothing need be.
    let anyhow = [&restore[..], &["--to", &to, "--yes"]].concat();
    refused(pgark, &anyhow, "would_overwrite");
    let done = json(pgark, &[&anyhow[..], &["--no-safety-backup"]].concat(), 0);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    // And by who knows the format from its page alone.
    let label = second["label"].as_str().unwrap();
    let by_reader = read_by_page(&scene, label);
    assert_eq!(picture(&scene.below(&by_reader)), picture(&there));
    // In place, after it was wrecked.
    std::fs::remove_dir_all(tree.join("many")).unwrap();
    write(&tree.join("docs/report.txt"), b"garbage", 0o666);
    write(&tree.join("junk/file"), b"junk", 0o600);
    give_all(tree);
    let wrecked = picture(tree);
    refused(pgark, &restore, "confirmation_required");
    let done = json(pgark, &[&restore[..], &["--yes"]].concat(), 0);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    let safety = done["safety_backup"].as_str().unwrap().to_owned();
    assert_eq!(picture(tree), before, "the real secret included");
    assert_eq!(newest(pgark)["label"], safety.as_str());
    assert!(newest(pgark)["annotations"]["safety"].is_string());
    // And back, for whoever was wrong about it.
    let back = ["--backup", &safety, "--yes", "--no-safety-backup"];
    json(pgark, &[&restore[..], &back].concat(), 0);
    assert_eq!(picture(tree), wrecked);
}

/// No backup has the values of masked files: a restore in place keeps them, and says where.
#[test]
fn masked_values_are_kept_beside() {
    let scene = Scene::new("files_masked", "redact = [\"*.env\"]\n");
    let (pgark, tree) = (&scene.pgark, &scene.tree);
    write(&tree.join("app.env"), b"TOKEN=hunter2\n", 0o600);
    write(&tree.join("docs/a.txt"), b"a", 0o600);
    give_all(tree);
    back_up(pgark);
    write(&tree.join("docs/fresh.env"), b"TOKEN=fresh\n", 0o600);
    give_all(tree);
    let restore = ["restore", "--component", "documents", "--yes"];
    let done = pgark.run(&restore).expect(0);
    let left = done
        .stdout
        .lines()
        .find(|line| line.contains("left, though"));
    assert!(
        left.is_some_and(|line| line.contains("fresh.env")),
        "{}",
        done.stdout
    );
    assert!(
        !done.stdout.contains("what was there is in"),
        "{}",
        done.stdout
    );
    let fresh = std::fs::read(tree.join("docs/fresh.env")).unwrap();
    assert_eq!(fresh, b"TOKEN=fresh\n");
    let path = tree.join("app.env").display().to_string();
    let done = pgark
        .run(&[&restore[..], &["--select", &path]].concat())
        .expect(0);
    assert_eq!(std::fs::read(&path).unwrap(), b"TOKEN=********\n");
    let names = std::fs::read_dir(tree).unwrap();
    let names = names.map(|one| one.unwrap().file_name().into_string().unwrap());
    let mut names = names.filter(|name| name.starts_with("app.env.before-"));
    let aside = names.next().expect("nothing was moved aside");
    assert!(done.stdout.contains(&aside), "{}", done.stdout);
    assert_eq!(
        std::fs::read(tree.join(&aside)).unwrap(),
        b"TOKEN=hunter2\n"
    );
    let mode = tree.join(&aside).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nor does the next backup have them.
    back_up(pgark);
    let place = scene.directory.folder("elsewhere");
    let to = place.display().to_string();
    let restore = ["restore", "--component", "documents", "--to", &to];
    json(pgark, &restore, 0);
    let there = std::fs::read(scene.below(&place).join(&aside)).unwrap();
    assert_eq!(there, b"TOKEN=********\n");
    // What would be replaced is named where it is, and so are both options that are needed.
    let output = refused(pgark, &restore, "would_overwrite");
    assert!(output.stderr.contains(&to), "{}", output.stderr);
    assert!(
        output.stderr.contains("--yes --no-safety-backup"),
        "{}",
        output.stderr
    );
}

#[test]
fn one_path_and_what_changes_meanwhile() {
    let scene = Scene::new("files_parts", "exclude = [\"*.tmp\"]\n");
    let (pgark, tree) = (&scene.pgark, &scene.tree);
    for n in 0..20 {
        write(&tree.join(format!("a/{n}")), &[n; 5000], 0o600);
    }
    write(&tree.join("b/note.tmp"), b"not wanted", 0o600);
    give_all(tree);
    // Files come, grow and go while they are captured: it succeeds, and nothing is torn in silence.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                n += 1;
                let path = tree.join(format!("moving/{}", n % 50));
                write(&path, &n.to_le_bytes().repeat(500), 0o644);
                if n.is_multiple_of(3) {
                    let _ = std::fs::remove_file(tree.join(format!("moving/{}", n % 7)));
                }
            }
        });
        for _ in 0..3 {
            back_up(pgark);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    give_all(tree);
    let path = tree.join("a/7").display().to_string();
    std::fs::remove_dir_all(tree.join("a")).unwrap();
    let one = [
        "restore",
        "--component",
        "documents",
        "--select",
        &path,
        "--yes",
    ];
    let done = json(pgark, &one, 0);
    assert_eq!(done["evidence"]["ok"], true, "{done}");
    let names = std::fs::read_dir(tree.join("a")).unwrap().count();
    assert_eq!(names, 1);
    assert_eq!(std::fs::read(tree.join("a/7")).unwrap(), [7; 5000]);
    assert_eq!(
        std::fs::read(tree.join("b/note.tmp")).unwrap(),
        b"not wanted"
    );
    // Retention, a pin, and gc have no trouble with it.
    let policy = [
        "retention",
        "set",
        "--component",
        "documents",
        "--keep-last",
        "1",
    ];
    pgark.run(&policy).expect(0);
    let oldest = backups(pgark)[0]["label"].as_str().unwrap().to_owned();
    let pin = [
        "pin",
        "--component",
        "documents",
        &oldest,
        "--reason",
        "a test",
    ];
    pgark.run(&pin).expect(0);
    pgark.run(&["expire", "--component", "documents"]).expect(0);
    let left: Vec<Value> = backups(pgark).iter().map(|b| b["label"].clone()).collect();
    // The pinned one, the newest, and the safety backup, which takes no place.
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&Value::from(oldest)));
    pgark.run(&["gc"]).expect(0);
    pgark
        .run(&["verify", "--all", "--level", "pages"])
        .expect(0);
}

#[test]
fn bad_input_is_told_apart() {
    let scene = Scene::new("files_bad", "");
    let (pgark, tree) = (&scene.pgark, &scene.tree);
    let backup = ["backup", "--component", "documents"];
    refused(
        pgark,
        &["restore", "--component", "documents", "--yes"],
        "backup_missing",
    );
    refused(
        pgark,
        &["restore", "--component", "nothing"],
        "component_unknown",
    );
    write(&tree.join("locked/file"), b"x", 0o600);
    give_all(tree);
    let close = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(tree.join("locked"), permissions).unwrap();
    };
    close(0o000);
    let output = refused(pgark, &backup, "permission_denied");
    assert!(output.stderr.contains("locked"), "{}", output.stderr);
    close(0o700);
    pgark.run(&backup).expect(0);
    // A link in a directory's place leads nowhere.
    let outside = scene.directory.folder("outside");
    write(&outside.join("file"), b"not yours", 0o666);
    std::fs::remove_dir_all(tree.join("locked")).unwrap();
    symlink(&outside, tree.join("locked")).unwrap();
    give_all(tree);
    let path = tree.join("locked/file").display().to_string();
    let one = [
        "restore",
        "--component",
        "documents",
        "--yes",
        "--select",
        &path,
    ];
    refused(pgark, &one, "symlink_in_target");
    assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"not yours");
    let nothing = [
        "restore",
        "--component",
        "documents",
        "--yes",
        "--select",
        "/nowhere",
    ];
    refused(pgark, &nothing, "nothing_selected");
    let time = [
        "restore",
        "--component",
        "documents",
        "--target-time",
        "2026-01-01T00:00:00Z",
    ];
    refused(pgark, &time, "option_of_clusters");
    std::fs::remove_dir_all(tree).unwrap();
    refused(pgark, &backup, "all_paths_missing");
    symlink("/etc", tree).unwrap();
    refused(pgark, &backup, "path_is_symlink");
}
