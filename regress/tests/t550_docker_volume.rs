//! Volumes of a real Docker engine, whose socket and folders are the test's own. Needs root, as the engine
//! does; what only an engine can show that does whatever a test wants is in `t551_docker_holds`.
//!
//! What: a volume with every kind of entry is backed up while something writes into it, unchanged again, and
//! restored into an empty engine, in place after it was wrecked, under another name and in part: once in its
//! directory, once through the engine's archive API. pgark is killed while its helper is there.
//! Trap: the volume's own directory with another owner; what an image has at the volume's place copied into
//! a restored one; a helper, an image or an anonymous volume left in the engine; a label that compose misses.
//! Expectation: the tools of the system see no difference; the engine holds what it held before.

use crate::component::{Bench, driver, text};
use pgark_archiver::component::{Consistency, Driver, Request, Source};
use pgark_regress::docker_server::DockerServer;
use pgark_regress::tmpfs::Tmpfs;
use pgark_regress::{Pgark, tier};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

fn volumes(engine: &DockerServer, more: &str) -> Box<dyn Driver> {
    let settings = format!(
        "socket = \"{}\"\nvolumes = [\"app_data\"]\n{more}",
        engine.url()
    );
    driver("docker_volume", &settings)
}

/// Fills a volume. `rich`: with what the archive API does not keep.
fn fill(data: &Path, rich: bool) {
    let write = |name: &str, content: &[u8], mode: u32, owner: u32| {
        let path = data.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("docs/report.txt", &b"a report\n".repeat(3000), 0o640, 999);
    write("docs/deep/er/x", b"x", 0o2755, 999);
    write("empty", b"", 0o600, 70);
    write(&"n".repeat(200), b"long", 0o600, 3_000_000);
    let odd = data.join(OsStr::from_bytes(b"line\nfeed\xff"));
    std::fs::write(&odd, b"odd").unwrap();
    std::fs::hard_link(data.join("docs/report.txt"), data.join("same")).unwrap();
    symlink("/etc/shadow", data.join("outside")).unwrap();
    for n in 0..200 {
        write(
            &format!("many/{n}"),
            format!("file {n}").as_bytes(),
            0o600,
            1000,
        );
    }
    if rich {
        let sparse = std::fs::File::create(data.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 16 << 20).unwrap();
        let set = Command::new("setfattr")
            .args(["-n", "user.kept", "-v", "yes"])
            .arg(data.join("empty"))
            .status();
        // Without the tool the attribute is not there, before and after.
        drop(set);
    }
    chown(data.join("docs"), Some(999), Some(999)).unwrap();
    chown(data, Some(999), Some(998)).unwrap();
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o2750)).unwrap();
    let old =
        SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, if rich { 987_654_321 } else { 0 });
    for entry in walk(data).into_iter().chain([data.to_owned()]) {
        if !entry.is_symlink() {
            std::fs::File::open(&entry)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

/// Names, kinds, modes, owners, sizes, times, links and content; of symbolic links no times, which engines
/// do not keep.
fn picture(tree: &Path) -> String {
    let script = "cd \"$1\" && find . -printf '%P|%y|%m|%U:%G|%l|%n|' \\( -type f -printf '%T@|%s' -exec sha256sum -b {} \\; -o -type d -printf '%T@\\n' -o -printf '\\n' \\) | LC_ALL=C sort";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(tree)
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with the lines that differ alone.
#[track_caller]
fn same(found: &str, expected: &str) {
    let lines = |a: &str, b: &str| -> Vec<String> {
        let b: std::collections::BTreeSet<&str> = b.lines().collect();
        let lines = a.lines().filter(|line| !b.contains(line));
        lines.map(str::to_owned).collect()
    };
    let (more, less) = (lines(found, expected), lines(expected, found));
    assert!(
        more.is_empty() && less.is_empty(),
        "found {more:#?}\nexpected {less:#?}"
    );
}

fn to(engine: &DockerServer) -> Request {
    Request {
        to: Some(engine.url()),
        ..Request::default()
    }
}

#[track_caller]
fn proven(
    bench: &Bench,
    it: &dyn Driver,
    backup: &pgark_archiver::component::memory::MemorySource,
    request: &Request,
) {
    let evidence = bench.evidence(it, backup, request);
    assert!(evidence.ok, "{evidence:#?}");
}

#[test]
fn volumes_come_back_in_their_directory_and_through_the_api() {
    if !tier::needs_root() {
        return;
    }
    for (name, more, rich) in [
        ("t550_directory", "through_api = false\n", true),
        ("t550_api", "through_api = true\n", false),
    ] {
        let bench = Bench::new(name);
        let engine = DockerServer::start(&bench.directory, "engine");
        engine.image("app", &[("data/from-image", "x")]);
        let labels =
            json!({"com.docker.compose.project": "shop", "com.docker.compose.volume": "data"});
        let data = engine.volume("app_data", &Value::Null, &labels);
        fill(&data, rich);
        let before = picture(&data);
        let container = engine.container("web", "app", "app_data", "true");
        let things = engine.things();
        let it = volumes(&engine, more);
        let lines = it.check(&bench.context()).unwrap();
        assert!(lines.iter().all(|line| line.ok), "{lines:?}");
        let backup = bench.capture(it.as_ref());
        assert_eq!(backup.point().consistency, Consistency::PointInTime);
        assert_eq!(engine.things(), things, "nothing is left in the engine");
        same(&picture(&data), &before);

        // Into an empty engine: nothing is there to lend its image.
        let target = DockerServer::start(&bench.directory, "target");
        bench.restore(it.as_ref(), &backup, &to(&target));
        let there = target.directory_of("app_data").unwrap();
        same(&picture(&there), &before);
        assert_eq!(target.things(), Vec::<String>::new());
        let told = target.must("GET", "/volumes/app_data", &Value::Null);
        assert_eq!(told["Labels"], labels);
        proven(&bench, it.as_ref(), &backup, &to(&target));
        // Each change is seen.
        std::fs::write(there.join("many/7"), "file x").unwrap();
        assert!(!bench.evidence(it.as_ref(), &backup, &to(&target)).ok);
        std::fs::remove_file(there.join("many/7")).unwrap();
        assert!(!bench.evidence(it.as_ref(), &backup, &to(&target)).ok);
        drop(target);

        // In place, wrecked.
        std::fs::remove_dir_all(data.join("docs")).unwrap();
        std::fs::write(data.join("later"), "x").unwrap();
        std::fs::write(data.join("many/1"), "torn").unwrap();
        chown(&data, Some(0), Some(0)).unwrap();
        let refused = bench.try_restore(it.as_ref(), &backup, &Request::default());
        assert_eq!(refused.unwrap_err().code(), "volume_not_empty");
        let overwrite = Request {
            overwrite: true,
            ..Request::default()
        };
        if !rich {
            // A volume can be made anew only when no container, stopped or not, refers to it.
            let refused = bench
                .try_restore(it.as_ref(), &backup, &overwrite)
                .unwrap_err();
            assert_eq!(refused.code(), "volume_referenced", "{}", text(&refused));
            assert!(data.join("later").exists(), "nothing was changed");
            engine.remove(&container);
        }
        bench.restore(it.as_ref(), &backup, &overwrite);
        let data = engine.directory_of("app_data").unwrap();
        same(&picture(&data), &before);
        proven(&bench, it.as_ref(), &backup, &overwrite);
        let told = engine.must("GET", "/volumes/app_data", &Value::Null);
        assert_eq!(told["Labels"], labels);

        // A part of it, under another name, and between what is there.
        let part = Request {
            select: vec!["app_data/docs".to_owned(), "app_data/many/1*".to_owned()],
            rename: vec![("app_data".to_owned(), "copy".to_owned())],
            ..Request::default()
        };
        bench.restore(it.as_ref(), &backup, &part);
        let copy = engine.directory_of("copy").unwrap();
        assert!(copy.join("docs/report.txt").exists() && !copy.join("empty").exists());
        assert!(copy.join("many/11").exists() && !copy.join("many/2").exists());
        let root = std::fs::metadata(&copy).unwrap();
        assert_eq!(
            (root.uid(), root.gid(), root.mode() & 0o7777),
            (999, 998, 0o2750)
        );
        proven(&bench, it.as_ref(), &backup, &part);
        std::fs::write(data.join("docs/report.txt"), "mine").unwrap();
        std::fs::write(data.join("empty"), "mine").unwrap();
        let one = Request {
            select: vec!["app_data/docs/report.txt".to_owned()],
            ..Request::default()
        };
        let refused = bench.try_restore(it.as_ref(), &backup, &one).unwrap_err();
        assert_eq!(refused.code(), "would_overwrite", "{}", text(&refused));
        let one = Request {
            overwrite: true,
            ..one
        };
        bench.restore(it.as_ref(), &backup, &one);
        assert_eq!(std::fs::read_to_string(data.join("empty")).unwrap(), "mine");
        assert!(
            std::fs::read_to_string(data.join("docs/report.txt"))
                .unwrap()
                .starts_with("a report")
        );
        proven(&bench, it.as_ref(), &backup, &one);
        let images: Vec<String> = engine.things();
        assert!(
            images.iter().all(|thing| things.contains(thing)),
            "{images:?}"
        );

        // What did not change is not read again; through the API there is no telling.
        if rich {
            // What changed a moment ago could change again in the same tick.
            std::thread::sleep(Duration::from_secs(3));
        }
        let first = bench.capture(it.as_ref());
        let again = bench.capture_after(it.as_ref(), first);
        let position = &again.point().position;
        let way = if rich { "directory" } else { "api" };
        assert_eq!(position["volumes"]["app_data"], way);
        let unchanged = position.get("files_unchanged").and_then(Value::as_u64);
        assert_eq!(unchanged.unwrap_or(0) > 200, rich, "{position:?}");
    }
}

/// A writer that puts whole files in place: each one that a backup holds must be whole.
#[test]
fn a_volume_is_captured_while_it_is_written_to() {
    if !tier::needs_root() {
        return;
    }
    let bench = Bench::new("t550_load");
    let engine = DockerServer::start(&bench.directory, "engine");
    let data = engine.volume("app_data", &Value::Null, &Value::Null);
    fill(&data, false);
    let end = AtomicBool::new(false);
    // Also when an assertion fails: the writer must not go on for ever.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let _end = End(&end);
        scope.spawn(|| {
            for n in 0_u64.. {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let content = format!("{n}\n").repeat(4000);
                let new = data.join("new");
                std::fs::write(&new, content).unwrap();
                std::fs::rename(&new, data.join(format!("w{}", n % 20))).unwrap();
            }
        });
        for more in ["", "through_api = true\n"] {
            let it = volumes(&engine, &format!("exclude = [\"new\"]\n{more}"));
            let mut taken = bench.try_capture(it.as_ref());
            for _ in 0..20 {
                // Engines break off when a file gets shorter; that is told, and nothing is left.
                if !matches!(&taken, Err(e) if e.code() == "volume_archive") {
                    break;
                }
                taken = bench.try_capture(it.as_ref());
            }
            let backup = taken.unwrap_or_else(|e| panic!("{}", text(&e)));
            let mut whole = 0;
            for path in backup.paths() {
                if path.starts_with("app_data/w") {
                    let content = backup.content(path.as_bytes()).unwrap();
                    let content = String::from_utf8(content.to_vec()).unwrap();
                    let first = content.lines().next().unwrap();
                    assert_eq!(content, format!("{first}\n").repeat(4000), "{path}");
                    whole += 1;
                }
            }
            assert!(whole > 0);
            assert_eq!(engine.things(), Vec::<String>::new());
        }
    });
}

/// pgark as another user, through the API, with a repository: killed while its helper is there; then a
/// backup, a safety backup, and the restore in place.
#[test]
fn leftovers_of_the_dead_are_removed_and_the_command_line_restores() {
    if !tier::needs_root() {
        return;
    }
    let bench = Bench::new("t550_leftovers");
    let directory = &bench.directory;
    let engine = DockerServer::start(directory, "engine");
    let data = engine.volume("app_data", &Value::Null, &Value::Null);
    fill(&data, false);
    let before = picture(&data);
    let mut pgark = Pgark::new(directory, "host", None);
    pgark.configure(&format!(
        "[component.volumes]\nkind = \"docker_volume\"\nsocket = \"{}\"\nvolumes = [\"app_data\"]\nthrough_api = true\n",
        engine.url()
    ));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let crash = [("PGARK_FAULT_CRASH", "docker_volume:helper")];
    let killed = pgark.run_with(&["backup", "--component", "volumes"], &crash);
    assert_eq!(killed.code, 137, "{}", killed.stderr);
    assert_eq!(engine.things().len(), 2, "{:?}", engine.things());
    let it = volumes(&engine, "");
    let lines = it.check(&bench.context()).unwrap();
    let left = lines.iter().find(|line| line.name == "leftovers").unwrap();
    assert!(left.detail.contains("dead runs"), "{left:?}");
    pgark.run(&["backup", "--component", "volumes"]).expect(0);
    assert_eq!(engine.things(), Vec::<String>::new());

    std::fs::write(data.join("many/3"), "wrecked").unwrap();
    // Engines keep whole seconds.
    let seconds = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let file = std::fs::File::open(data.join("many/3")).unwrap();
    file.set_modified(seconds).unwrap();
    let wrecked = picture(&data);
    let restored = pgark
        .run(&["restore", "--component", "volumes", "--yes"])
        .expect(0);
    let data = engine.directory_of("app_data").unwrap();
    same(&picture(&data), &before);
    assert!(
        restored
            .stdout
            .contains("what was replaced or removed is in backup"),
        "{}",
        restored.stdout
    );
    // The safety backup undoes it.
    let info = pgark
        .run(&["--output", "json", "info", "--component", "volumes"])
        .expect(0)
        .json();
    let backups = info["components"][0]["backups"].as_array().unwrap();
    let safety = backups.last().unwrap()["label"].as_str().unwrap();
    pgark
        .run(&[
            "restore",
            "--component",
            "volumes",
            "--backup",
            safety,
            "--yes",
        ])
        .expect(0);
    same(
        &picture(&engine.directory_of("app_data").unwrap()),
        &wrecked,
    );
    // Killed when the volume is gone: the same command brings it back.
    let restore = ["restore", "--component", "volumes", "--yes"];
    let crash = [("PGARK_FAULT_CRASH", "docker_volume:removed")];
    let killed = pgark.run_with(&restore, &crash);
    assert_eq!(killed.code, 137, "{}", killed.stderr);
    assert!(engine.directory_of("app_data").is_none());
    pgark.run(&restore).expect(0);
    same(&picture(&engine.directory_of("app_data").unwrap()), &before);
    assert_eq!(engine.things(), Vec::<String>::new());
}

/// Where this machine lets containers run: a real one is paused and stopped, and let go after a SIGKILL.
#[test]
fn a_running_container_is_paused_and_let_go() {
    if !tier::needs_root() {
        return;
    }
    let bench = Bench::new("t550_pause");
    let directory = &bench.directory;
    let engine = DockerServer::start(directory, "engine");
    engine.image("app", &[]);
    engine.volume("app_data", &Value::Null, &Value::Null);
    // The first process of a container ignores the signal otherwise.
    let script = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n > /data/a; echo $n > /data/b; done";
    let web = engine.container("web", "app", "app_data", script);
    if let Err(why) = engine.run(&web) {
        tier::skip(&format!("no container can run here: {why}"));
        return;
    }
    let mut pgark = Pgark::new(directory, "host", None);
    let section = |on_capture: &str| {
        format!(
            "[component.volumes]\nkind = \"docker_volume\"\nsocket = \"{}\"\nvolumes = [\"app_data\"]\non_capture = \"{on_capture}\"\n",
            engine.url()
        )
    };
    pgark.configure(&section("pause"));
    pgark.run(&["init", "--no-encryption"]).expect(0);
    let crash = [("PGARK_FAULT_CRASH", "component:captured")];
    let killed = pgark.run_with(&["backup", "--component", "volumes"], &crash);
    assert_eq!(killed.code, 137, "{}", killed.stderr);
    assert_eq!(engine.state(&web), "paused");
    pgark.run(&["backup", "--component", "volumes"]).expect(0);
    assert_eq!(engine.state(&web), "running");
    let info = pgark
        .run(&["--output", "json", "info", "--component", "volumes"])
        .expect(0)
        .json();
    assert_eq!(
        info["components"][0]["backups"][0]["consistency"],
        "crash_consistent"
    );
    let in_use = pgark.run(&[
        "restore",
        "--component",
        "volumes",
        "--yes",
        "--no-safety-backup",
    ]);
    assert_ne!(in_use.code, 0);
    assert!(in_use.stderr.contains("volume_in_use"), "{}", in_use.stderr);
    // Frozen, both files are of one moment: the second may lag one step behind.
    let it = volumes(&engine, "on_capture = \"pause\"\n");
    let lever = it.capture_lever(&bench.context()).unwrap().unwrap();
    it.hold(&bench.context(), &lever).unwrap();
    let backup = bench.capture(it.as_ref());
    it.release(&bench.context(), &lever).unwrap();
    let number = |path: &str| -> u64 {
        let content = backup.content(path.as_bytes()).unwrap();
        String::from_utf8_lossy(content).trim().parse().unwrap_or(0)
    };
    let (a, b) = (number("app_data/a"), number("app_data/b"));
    // A file that is being written may be empty.
    assert!(a == 0 || b == 0 || a == b || a == b + 1, "{a} {b}");
    assert_eq!(engine.state(&web), "running");
    // Stopped, it is of one instant.
    let it = volumes(&engine, "on_capture = \"stop\"\n");
    let lever = it.capture_lever(&bench.context()).unwrap().unwrap();
    it.hold(&bench.context(), &lever).unwrap();
    assert_eq!(engine.state(&web), "exited");
    let backup = bench.capture(it.as_ref());
    assert_eq!(backup.point().consistency, Consistency::PointInTime);
    it.release(&bench.context(), &lever).unwrap();
    assert_eq!(engine.state(&web), "running");
}

/// A restore that the engine's disk has no room for: told as such, and nothing of ours stays.
#[test]
fn a_full_disk_is_told() {
    if !tier::needs_root() {
        return;
    }
    let bench = Bench::new("t550_full");
    let engine = DockerServer::start(&bench.directory, "engine");
    let data = engine.volume("app_data", &Value::Null, &Value::Null);
    for n in 0..12_u8 {
        std::fs::write(data.join(format!("{n}")), vec![n + 1; 4 << 20]).unwrap();
    }
    let it = volumes(&engine, "through_api = true\n");
    let backup = bench.capture(it.as_ref());
    let small = bench.directory.folder("small");
    let disk = Tmpfs::mount(small.clone(), "size=40m");
    let target = DockerServer::start_in(small);
    let refused = bench
        .try_restore(it.as_ref(), &backup, &to(&target))
        .unwrap_err();
    assert_eq!(refused.code(), "engine_disk_full", "{}", text(&refused));
    assert_eq!(target.things(), Vec::<String>::new());
    assert!(target.directory_of("app_data").is_none());
    let it = volumes(&engine, "through_api = false\n");
    let refused = bench
        .try_restore(it.as_ref(), &backup, &to(&target))
        .unwrap_err();
    assert_eq!(refused.code(), "disk_full", "{}", text(&refused));
    assert!(target.directory_of("app_data").is_none());
    drop(target);
    drop(disk);
}
