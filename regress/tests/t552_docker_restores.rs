//! Restores of `docker_volume`, and engines of every kind: on the fake engine of `t551_docker_holds`.
//!
//! What: volumes are made, renamed, filled in part and in place, in use, in the way; archives are packed and
//! unpacked by the system's own tar; engines speak other versions, are elsewhere, are not there.
//! Trap: a restore under the feet of a running container, over what nobody saved, out of the volume; an archive
//! that broke off taken for a backup; a directory of this host taken for that of another one.
//! Expectation: what comes back is the same; each refusal is an error of its own and changes nothing.

use crate::component::{Bench, driver, text};
use crate::t551_docker_holds::{engine, host, volumes, write};
use pgark_archiver::component::Request;
use pgark_regress::fake_docker::FakeDocker;
use pgark_regress::{TestDirectory, account};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

#[test]
fn a_restore_makes_what_is_missing_and_disturbs_nobody() {
    let bench = Bench::new("t551_restore");
    let (source, data) = engine(&bench.directory);
    let labels = json!({"com.docker.compose.project": "shop", "com.docker.compose.volume": "data", "tier": "gold"});
    source.state().volumes.get_mut("app_data").unwrap()["Labels"] = labels.clone();
    source.state().volumes.get_mut("app_data").unwrap()["Options"] = json!({"size": "1G"});
    let from = volumes(&source, "exclude = [\"/uploads/*.tmp\"]\n");
    write(&data, "uploads/x.tmp", "x");
    let backup = bench.capture(from.as_ref());
    assert_eq!(
        backup.paths(),
        [
            ".pgark-volumes.json",
            "app_data",
            "app_data/b.txt",
            "app_data/uploads",
            "app_data/uploads/a.txt"
        ]
    );
    let refused = |request: &Request, code: &str| {
        let error = bench
            .try_restore(from.as_ref(), &backup, request)
            .unwrap_err();
        assert_eq!(error.code(), code, "{}", text(&error));
        text(&error)
    };
    let overwrite = Request {
        overwrite: true,
        ..Request::default()
    };
    assert!(refused(&overwrite, "volume_in_use").contains("web"));
    for container in source.state().containers.values_mut() {
        container.running = false;
    }
    refused(&Request::default(), "volume_not_empty");
    let select = |path: &str| Request {
        select: vec![path.to_owned()],
        ..Request::default()
    };
    refused(&select("app_data/../../etc"), "path_outside");
    refused(&select("app_data/nothing"), "nothing_selected");
    refused(&select("app_data/b.txt"), "would_overwrite");
    let rename = |old: &str, new: &str| Request {
        rename: vec![(old.to_owned(), new.to_owned())],
        ..overwrite.clone()
    };
    refused(&rename("app_data", "../x"), "volume_name");
    refused(&rename("other", "x"), "rename_unknown");
    let taken = source.volume("taken", &Value::Null);
    write(&taken, "mine", "mine");
    refused(&rename("app_data", "taken"), "volume_not_empty");

    // Into an empty engine: with everything that belongs to the volume.
    let target = FakeDocker::start(&bench.directory, "target.sock");
    let elsewhere = Request {
        to: Some(target.url()),
        ..Request::default()
    };
    bench.restore(from.as_ref(), &backup, &elsewhere);
    let made = target.state().volumes["app_data"].clone();
    assert_eq!(
        (&made["Labels"], &made["Options"]),
        (&labels, &json!({"size": "1G"}))
    );
    let evidence = bench.evidence(from.as_ref(), &backup, &elsewhere);
    assert!(evidence.ok, "{evidence:?}");
    let there = Path::new(made["Mountpoint"].as_str().unwrap()).to_owned();
    std::fs::write(there.join("b.txt"), "c").unwrap();
    let evidence = bench.evidence(from.as_ref(), &backup, &elsewhere);
    assert!(!evidence.ok, "a changed byte is seen");

    // The disk of an engine is full.
    let full = (
        500,
        "mkdir /var/lib/docker/volumes/new: no space left on device".to_owned(),
    );
    source.state().fails.insert("make new".to_owned(), full);
    let error = bench.try_restore(from.as_ref(), &backup, &rename("app_data", "new"));
    assert_eq!(error.unwrap_err().code(), "engine_disk_full");
    // Under another name: no other project's.
    let copy = rename("app_data", "copy");
    bench.restore(from.as_ref(), &backup, &copy);
    let labels = source.state().volumes["copy"]["Labels"].clone();
    assert_eq!(labels, json!({"tier": "gold"}));
    assert!(bench.evidence(from.as_ref(), &backup, &copy).ok);
    // A container that is stopped may have outlived its volume.
    source.container("old", "app", "lost");
    for container in source.state().containers.values_mut() {
        container.running = false;
    }
    bench.restore(from.as_ref(), &backup, &rename("app_data", "lost"));
    // A part, in place: the rest stays.
    std::fs::write(data.join("uploads/a.txt"), "changed").unwrap();
    std::fs::write(data.join("b.txt"), "changed").unwrap();
    let part = Request {
        overwrite: true,
        ..select("app_data/uploads")
    };
    bench.restore(from.as_ref(), &backup, &part);
    assert_eq!(
        std::fs::read_to_string(data.join("uploads/a.txt")).unwrap(),
        "a"
    );
    assert_eq!(
        std::fs::read_to_string(data.join("b.txt")).unwrap(),
        "changed"
    );
    assert!(bench.evidence(from.as_ref(), &backup, &part).ok);
    // All of it, in place: what came later goes, what is excluded stays.
    write(&data, "later", "x");
    bench.restore(from.as_ref(), &backup, &overwrite);
    assert!(!data.join("later").exists());
    assert!(data.join("uploads/x.tmp").exists());
    assert_eq!(std::fs::read_to_string(data.join("b.txt")).unwrap(), "b");
    // Another section's by now, which no safety backup would save.
    let moved = driver(
        "docker_volume",
        &format!("socket = \"{}\"\nvolumes = [\"taken\"]\n", source.url()),
    );
    let error = bench.try_restore(moved.as_ref(), &backup, &overwrite);
    assert_eq!(error.unwrap_err().code(), "volume_not_saved");
    assert_eq!(std::fs::read_to_string(data.join("b.txt")).unwrap(), "b");
    // Into a directory: without an engine.
    let folder = bench.directory.folder("plain");
    let plain = Request {
        to: Some(folder.display().to_string()),
        ..Request::default()
    };
    bench.restore(from.as_ref(), &backup, &plain);
    assert_eq!(
        std::fs::read_to_string(folder.join("app_data/b.txt")).unwrap(),
        "b"
    );
    assert!(!folder.join(".pgark-volumes.json").exists());
    // A share must not become two volumes.
    let device = json!({"type": "nfs", "device": ":/srv", "o": "addr=192.0.2.1"});
    let mut shared = backup;
    let index = shared.content_mut(b".pgark-volumes.json").unwrap();
    let mut value: Value = serde_json::from_slice(index).unwrap();
    value["volumes"]["app_data"]["options"] = device;
    *index = serde_json::to_vec(&value).unwrap();
    let error = bench
        .try_restore(from.as_ref(), &shared, &rename("app_data", "again"))
        .unwrap_err();
    assert_eq!(error.code(), "volume_same_device");
}

/// The archive API, with the system's own tar in the place of the engine's.
#[test]
fn what_is_packed_by_others_is_read_and_the_other_way_round() {
    let bench = Bench::new("t551_api");
    let (source, data) = engine(&bench.directory);
    source.state().containers.clear();
    std::os::unix::fs::symlink("../../outside", data.join("link")).unwrap();
    std::fs::hard_link(data.join("b.txt"), data.join("same")).unwrap();
    write(&data, &format!("long/{}", "n".repeat(220)), "long");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o2750)).unwrap();
    let it = volumes(&source, "through_api = true\nexclude = [\"a.txt\"]\n");
    let backup = bench.capture(it.as_ref());
    let mut paths = backup.paths();
    paths.retain(|path| !path.contains("nnn"));
    let expected = [
        ".pgark-volumes.json",
        "app_data",
        "app_data/b.txt",
        "app_data/link",
        "app_data/long",
    ];
    assert_eq!(paths[..5], expected);
    assert_eq!(paths[5..], ["app_data/same", "app_data/uploads"]);
    assert_eq!(source.take_acts(), ["remove helper"]);
    assert!(source.state().images.is_empty());

    let target = FakeDocker::start(&bench.directory, "target.sock");
    let elsewhere = Request {
        to: Some(target.url()),
        ..Request::default()
    };
    bench.restore(it.as_ref(), &backup, &elsewhere);
    // The first one looks whether the new volume is empty.
    assert_eq!(
        target.take_acts(),
        ["remove helper", "remove helper that writes"]
    );
    assert!(target.state().images.is_empty());
    let evidence = bench.evidence(it.as_ref(), &backup, &elsewhere);
    assert!(evidence.ok, "{evidence:#?}");
    let made = target.state().volumes["app_data"]["Mountpoint"].clone();
    let made = Path::new(made.as_str().unwrap()).to_owned();
    assert_eq!(
        std::fs::metadata(&made).unwrap().permissions().mode() & 0o7777,
        0o2750
    );
    let inode = |name: &str| std::fs::metadata(made.join(name)).unwrap().ino();
    assert_eq!(inode("same"), inode("b.txt"));
    for (name, content) in [("b.txt", "c"), ("more", "x")] {
        write(&made, name, content);
        let evidence = bench.evidence(it.as_ref(), &backup, &elsewhere);
        assert!(!evidence.ok, "{name} is seen");
    }
    // A link whose first name is not wanted is a file of its own.
    let alone = Request {
        select: vec!["app_data/same".to_owned()],
        rename: vec![("app_data".to_owned(), "alone".to_owned())],
        ..elsewhere.clone()
    };
    bench.restore(it.as_ref(), &backup, &alone);
    assert!(bench.evidence(it.as_ref(), &backup, &alone).ok);
    // Over what is there: not without being asked, and made anew when all of it is meant.
    let refused = |request: &Request, code: &str| {
        let error = bench
            .try_restore(it.as_ref(), &backup, request)
            .unwrap_err();
        assert_eq!(error.code(), code, "{}", text(&error));
    };
    refused(&elsewhere, "volume_not_empty");
    let part = Request {
        select: vec!["app_data/b.txt".to_owned()],
        ..elsewhere.clone()
    };
    refused(&part, "would_overwrite");
    let all = Request {
        overwrite: true,
        ..elsewhere
    };
    target.container("old", "app", "app_data");
    for container in target.state().containers.values_mut() {
        container.running = false;
    }
    refused(&all, "volume_referenced");
    assert!(made.join("more").exists());
    target.state().containers.clear();
    // What no backup has is not removed with the volume.
    write(&made, "uploads/a.txt", "of no backup");
    refused(&all, "volume_excluded");
    std::fs::remove_file(made.join("uploads/a.txt")).unwrap();
    bench.restore(it.as_ref(), &backup, &all);
    assert!(!made.join("more").exists());
    assert!(bench.evidence(it.as_ref(), &backup, &all).ok);

    // An archive that breaks off is no backup, wherever it does.
    for cut in [0, 600, 1536, 4096, 10_000] {
        source.state().cut = Some(cut);
        let error = bench.try_capture(it.as_ref()).unwrap_err();
        assert_eq!(error.code(), "volume_archive", "{cut}");
        assert!(source.state().containers.is_empty() && source.state().images.is_empty());
    }
}

#[test]
fn engines_of_every_kind_are_told_apart() {
    let bench = Bench::new("t551_engines");
    let (engine, _) = engine(&bench.directory);
    let it = volumes(&engine, "");
    let code = || bench.try_capture(it.as_ref()).err().map(|e| e.code());
    let api =
        |newest: &str, oldest: &str| engine.state().api = (newest.to_owned(), oldest.to_owned());
    for (newest, oldest, spoken) in [
        ("1.41", "1.12", Some("v1.41")),
        ("1.52", "1.44", Some("v1.47")),
        ("1.39", "1.12", None),
        ("1.60", "1.50", None),
        ("x", "1.12", None),
    ] {
        api(newest, oldest);
        engine.state().requests.clear();
        match spoken {
            Some(version) => {
                assert_eq!(code(), None, "{newest}");
                let requests = engine.state().requests.clone();
                let mut spoken = requests.iter().filter(|r| *r != "GET /version");
                assert!(
                    spoken.all(|r| r.contains(&format!("/{version}/"))),
                    "{requests:?}"
                );
            }
            None if newest == "x" => assert_eq!(code(), Some("component_answer")),
            None => assert_eq!(code(), Some("engine_version"), "{newest}"),
        }
    }
    api("1.41", "1.12");

    // A directory of the same name on this host is not the engine's, when that is elsewhere.
    engine.state().host = "somewhere-else".to_owned();
    let local = volumes(&engine, "through_api = false\n");
    assert!(bench.try_capture(local.as_ref()).is_ok());
    engine.state().component = "Podman Engine".to_owned();
    assert_eq!(code(), Some("podman_archive"));
    engine.state().component = "Engine".to_owned();
    engine.state().host = rustix_nodename();
    // A driver without a directory.
    engine.state().volumes.get_mut("app_data").unwrap()["Driver"] = json!("rclone");
    let error = bench.try_capture(local.as_ref()).unwrap_err();
    assert_eq!(error.code(), "mountpoint_unreadable");
    assert!(text(&error).contains("rclone"), "{}", text(&error));
    engine.state().volumes.get_mut("app_data").unwrap()["Driver"] = json!("local");

    // Missing: alone, and as one of several.
    let missing = |list: &str| {
        let settings = format!("socket = \"{}\"\nvolumes = {list}", engine.url());
        let error = bench.try_capture(driver("docker_volume", &settings).as_ref());
        error.unwrap_err().code()
    };
    assert_eq!(missing("[\"gone\"]"), "component_missing");
    assert_eq!(missing("[\"app_data\", \"gone\"]"), "volume_missing");
    assert_eq!(missing("[\"label:no=one\"]"), "component_missing");

    // Nobody there, nobody listening, not for us.
    let at = |socket: &Path| {
        let settings = format!(
            "socket = \"unix://{}\"\nvolumes = [\"v\"]",
            socket.display()
        );
        let error = bench.try_capture(driver("docker_volume", &settings).as_ref());
        error.unwrap_err()
    };
    assert_eq!(
        at(&bench.directory.join("none.sock")).code(),
        "engine_unreachable"
    );
    let dead = bench.directory.join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert_eq!(at(&dead).code(), "engine_unreachable");
    if account::account().change {
        let directory = TestDirectory::new("t551_denied");
        let (engine, _) = crate::t551_docker_holds::engine(&directory);
        std::os::unix::fs::chown(directory.join("docker.sock"), Some(0), Some(0)).unwrap();
        let pgark = host(&directory, &engine, "");
        let denied = pgark.run(&["backup", "--component", "volumes"]);
        assert_ne!(denied.code, 0);
        assert!(denied.stderr.contains("engine_denied"), "{}", denied.stderr);
    }
}

fn rustix_nodename() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn sections_that_mean_nothing_are_refused() {
    let refuse = |settings: &str, code: &str| {
        let settings = settings.parse().unwrap();
        let error = pgark_archiver::component::drivers::open("it", "docker_volume", &settings);
        assert_eq!(error.err().unwrap().code(), code, "{settings}");
    };
    refuse("volumes = []", "config_invalid");
    refuse("", "config_invalid");
    refuse("volumes = [\"a\", \"a\"]", "config_invalid");
    refuse("volumes = [\"label:\"]", "config_invalid");
    refuse("volumes = [\"a/../b\"]", "volume_name");
    refuse(
        "volumes = [\"a\"]\nsocket = \"tcp://h:2375\"",
        "config_invalid",
    );
    refuse(
        "volumes = [\"a\"]\nsocket = \"unix://run/x\"",
        "config_invalid",
    );
    refuse("volumes = [\"a\"]\non_capture = \"kill\"", "config_invalid");
    refuse("volumes = [\"a\"]\nhold_seconds_max = 0", "config_invalid");
    refuse("volumes = [\"a\"]\nexclude = [\"[\"]", "pattern_invalid");
}
