use super::*;
use crate::crashsafe::{CrashFs, RealFs};
use std::io;
use std::sync::Arc;

const PLENTY: u64 = 1 << 30;

fn identity(id: u64) -> Identity {
    Identity {
        system_identifier: SystemId(id),
        segment_size: SegmentSize::DEFAULT,
        postgres_major: Some(17),
    }
}

fn file(name: &str) -> ArchiveFile {
    name.parse().unwrap()
}

fn open(state: &Path, bytes_max: u64) -> Backlog {
    Backlog::open(state, bytes_max, Arc::new(RealFs)).unwrap()
}

fn names(backlog: &Backlog, repository: &str) -> Vec<String> {
    let waiting = backlog.waiting(repository).unwrap();
    waiting.iter().map(|w| w.file.to_string()).collect()
}

const ONE: &str = "000000010000000000000001";
const TWO: &str = "000000010000000000000002";

#[test]
fn files_wait_for_their_repository_in_order() {
    let state = tempfile::tempdir().unwrap();
    let backlog = open(state.path(), PLENTY);
    let label = format!("{ONE}.00000028.backup");
    let partial = format!("{TWO}.partial");
    for name in [TWO, &label, &partial, ONE, "00000002.history"] {
        backlog
            .keep("far", identity(7), file(name), name.as_bytes())
            .unwrap();
    }
    let old = Identity {
        postgres_major: None,
        ..identity(8)
    };
    backlog.keep("other", old, file(ONE), b"x").unwrap();
    assert_eq!(
        names(&backlog, "far"),
        ["00000002.history", ONE, &label, TWO, &partial]
    );
    // What an agent finds that was started anew.
    let again = open(state.path(), PLENTY);
    assert_eq!(
        again.waiting("far").unwrap(),
        backlog.waiting("far").unwrap()
    );
    for waiting in again.waiting("far").unwrap() {
        assert_eq!(waiting.identity, identity(7));
        assert_eq!(
            again.read(&waiting).unwrap(),
            waiting.file.to_string().as_bytes()
        );
        again.remove(&waiting).unwrap();
    }
    assert_eq!(names(&again, "far"), [""; 0]);
    assert_eq!(again.waiting("other").unwrap()[0].identity, old);
    assert_eq!(names(&again, "nowhere"), [""; 0]);
    let mode = std::fs::metadata(&again.waiting("other").unwrap()[0].path).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
}

#[test]
fn the_limit_counts_for_all_of_them() {
    let state = tempfile::tempdir().unwrap();
    let backlog = open(state.path(), 100);
    backlog
        .keep("far", identity(7), file(ONE), &[1; 60])
        .unwrap();
    // The same again costs nothing.
    backlog
        .keep("far", identity(7), file(ONE), &[1; 60])
        .unwrap();
    let error = backlog
        .keep("other", identity(7), file(TWO), &[1; 41])
        .unwrap_err();
    assert_eq!(error.code(), "late_spool_full");
    assert!(error.detail().unwrap().starts_with("60 bytes wait already"));
    backlog
        .keep("other", identity(7), file(TWO), &[1; 40])
        .unwrap();
    assert_eq!(backlog.bytes().unwrap(), 100);
    // What was sent makes room.
    backlog.remove(&backlog.waiting("far").unwrap()[0]).unwrap();
    backlog
        .keep("far", identity(7), file(TWO), &[2; 60])
        .unwrap();
    let none = open(state.path(), 0);
    let error = none.keep("far", identity(7), file(ONE), b"x").unwrap_err();
    assert_eq!(error.code(), "late_spool_full");
}

#[test]
fn what_the_disk_has_spoilt_is_not_sent() {
    let state = tempfile::tempdir().unwrap();
    let backlog = open(state.path(), PLENTY);
    backlog
        .keep("far", identity(7), file(ONE), b"content")
        .unwrap();
    let waiting = &backlog.waiting("far").unwrap()[0];
    for spoilt in [&b"contenT"[..], b"", b"contents"] {
        std::fs::write(&waiting.path, spoilt).unwrap();
        let error = backlog.read(waiting).unwrap_err();
        assert_eq!(error.code(), "late_file_damaged");
        assert!(is_lost(&error));
    }
    // Gone is another matter than damaged.
    std::fs::remove_file(&waiting.path).unwrap();
    assert!(!is_lost(&backlog.read(waiting).unwrap_err()));
}

#[test]
fn strange_files_are_cleared_away() {
    let state = tempfile::tempdir().unwrap();
    drop(open(state.path(), PLENTY));
    let folder = state.path().join("late/far");
    std::fs::create_dir(&folder).unwrap();
    let b3 = "00112233445566778899aabbccddeeff";
    for name in [
        ".x.pgark-1-2-3",
        "x",
        &format!("7-3-17-{ONE}-{b3}"),
        &format!("7-16777216-17-../x-{b3}").replace('/', "_"),
        &format!("7-16777216-17-{ONE}-{b3}-{b3}"),
    ] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    assert_eq!(names(&open(state.path(), PLENTY), "far"), [""; 0]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

/// Power is lost at every operation of keeping two files and removing one: what was kept is there with
/// its content, and nothing else is.
#[test]
fn a_crash_at_any_moment_keeps_what_was_kept() {
    for seed in 0..8 {
        // The first operation is that of opening.
        for crash_at in 2.. {
            let place = tempfile::tempdir().unwrap();
            let (state, graveyard) = (place.path().join("state"), place.path().join("dead"));
            std::fs::create_dir(&graveyard).unwrap();
            std::fs::create_dir(&state).unwrap();
            let fs = CrashFs::new(graveyard, seed);
            let backlog = Backlog::open(&state, PLENTY, Arc::new(fs.clone())).unwrap();
            fs.crash_after(crash_at);
            let kept = [ONE, TWO].map(|name| {
                let kept = backlog.keep("far", identity(7), file(name), &[7; 9000]);
                kept.is_ok()
            });
            let first = backlog
                .waiting("far")
                .unwrap_or_default()
                .into_iter()
                .next();
            let removed = first.filter(|w| kept[0] && w.file == file(ONE));
            let removed = removed.is_some_and(|w| backlog.remove(&w).is_ok() || fs.is_down());
            let over = !fs.is_down();
            fs.settle().unwrap();
            let again = open(&state, PLENTY);
            let found = names(&again, "far");
            for (n, name) in [ONE, TWO].into_iter().enumerate() {
                let must = kept[n] && !(n == 0 && removed);
                assert!(
                    !must || found.iter().any(|f| f == name),
                    "{crash_at}: {found:?}"
                );
            }
            for waiting in again.waiting("far").unwrap() {
                match again.read(&waiting) {
                    Ok(bytes) => assert_eq!(bytes, [7; 9000]),
                    Err(error) => {
                        assert_eq!(error.code(), "late_file_damaged");
                        assert!(!kept[usize::from(waiting.file == file(TWO))], "{crash_at}");
                    }
                }
            }
            if over {
                assert!(crash_at > 8, "it took {crash_at} operations");
                break;
            }
        }
    }
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let mut failures = 0;
    for fail_at in 1..12 {
        let place = tempfile::tempdir().unwrap();
        let (state, graveyard) = (place.path().join("state"), place.path().join("dead"));
        std::fs::create_dir(&graveyard).unwrap();
        std::fs::create_dir(&state).unwrap();
        let fs = CrashFs::new(graveyard, 1);
        let backlog = Backlog::open(&state, PLENTY, Arc::new(fs.clone())).unwrap();
        fs.fail_at(fail_at, io::ErrorKind::StorageFull);
        if let Err(error) = backlog.keep("far", identity(7), file(ONE), &[7; 9000]) {
            failures += 1;
            assert_eq!(error.code(), "disk_full");
            let found: Vec<_> = list(&state.join("late/far")).unwrap();
            // But for a failed fsync of the directory, the last step: the file is whole then.
            assert!(found.iter().all(|path| parse(path).is_some()), "{found:?}");
        }
        // There is room again.
        backlog
            .keep("far", identity(7), file(ONE), &[7; 9000])
            .unwrap();
        assert_eq!(backlog.bytes().unwrap(), 9000);
    }
    assert!(failures > 3, "{failures}");
}
