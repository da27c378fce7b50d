use super::*;

fn command(words: &[&str]) -> Vec<u8> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    super::super::connection::command(&words)
}

fn problem(bytes: &[u8]) -> (u64, Option<String>) {
    let scan = scan(bytes).unwrap();
    (scan.good_bytes, scan.problem)
}

#[test]
fn whole_commands_and_remarks() {
    let bytes = [
        command(&["SELECT", "0"]),
        b"#TS:1700000000\r\n".to_vec(),
        command(&["SET", "a", "x\r\ny"]),
        command(&["MULTI"]),
        command(&["SET", "b", "1"]),
        command(&["EXEC"]),
    ]
    .concat();
    let scan = scan(&bytes[..]).unwrap();
    assert_eq!(scan.good_bytes, bytes.len() as u64);
    assert_eq!((scan.commands, scan.problem), (5, None));
    assert_eq!(scan.newest_seconds, Some(1_700_000_000));
    assert_eq!(problem(b""), (0, None));
}

#[test]
fn every_cut_ends_at_the_last_whole_command() {
    let first = command(&["SET", "a", "1"]);
    let second = command(&["SET", "bb", "22"]);
    let bytes = [&first[..], &second].concat();
    for cut in 0..bytes.len() {
        let expected = if cut < first.len() { 0 } else { first.len() };
        let (good, problem) = problem(&bytes[..cut]);
        assert_eq!(good, expected as u64, "{cut}");
        assert_eq!(problem.is_none(), cut == expected, "{cut}: {problem:?}");
    }
}

#[test]
fn an_open_transaction_does_not_count() {
    let first = command(&["SET", "a", "1"]);
    let bytes = [
        first.clone(),
        command(&["multi"]),
        command(&["SET", "b", "1"]),
    ]
    .concat();
    let (good, problem) = problem(&bytes);
    assert_eq!(good, first.len() as u64);
    assert!(problem.unwrap().contains("transaction"));
}

#[test]
fn garbage_is_told_by_its_place() {
    let first = command(&["SET", "a", "1"]);
    for garbage in [
        &b"hello\r\n"[..],
        b"*0\r\n",
        b"*x\r\n",
        b"*1\r\n+3\r\nSET\r\n",
        b"*1\r\n$2\r\nSET\r\n",
        b"*1\r\n$99999999999999\r\n",
        &[b'x'; 5000],
    ] {
        let (good, problem) = problem(&[&first[..], garbage].concat());
        assert_eq!(good, first.len() as u64);
        assert!(problem.is_some(), "{garbage:?}");
    }
}

fn folder_with(parts: &[(&str, &str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join(DIRECTORY);
    std::fs::create_dir(&directory).unwrap();
    let mut manifest = String::new();
    for (seq, (name, kind, bytes)) in parts.iter().enumerate() {
        std::fs::write(directory.join(name), bytes).unwrap();
        manifest += &format!("file {name} seq {seq} type {kind} startoffset 0\n");
    }
    std::fs::write(directory.join("appendonly.aof.manifest"), manifest).unwrap();
    folder
}

#[test]
fn a_torn_tail_is_cut_and_the_original_kept() {
    let good = command(&["SET", "a", "1"]);
    let torn = [&good[..], b"*3\r\n$3\r\nSE"].concat();
    let folder = folder_with(&[("one.aof", "i", &good), ("two.aof", "i", &torn)]);
    let scratch = tempfile::tempdir().unwrap();
    let State::Repairable(flaw) = check(folder.path(), scratch.path()).unwrap() else {
        panic!("not repairable");
    };
    assert_eq!((flaw.good_bytes, flaw.lost_bytes), (good.len() as u64, 10));
    let done = repair(folder.path(), scratch.path(), DateTime::UNIX_EPOCH).unwrap();
    let Repair::Cut { path, original, .. } = done else {
        panic!("{done:?}");
    };
    assert_eq!(std::fs::read(path).unwrap(), good);
    assert_eq!(std::fs::read(original).unwrap(), torn);
    let again = repair(folder.path(), scratch.path(), DateTime::UNIX_EPOCH).unwrap();
    assert_eq!(again, Repair::Nothing);
}

#[test]
fn damage_before_the_last_file_needs_a_restore() {
    let good = command(&["SET", "a", "1"]);
    let torn = &good[..5];
    let scratch = tempfile::tempdir().unwrap();
    let base = b"REDIS0011\xff\x00\x00\x00\x00\x00\x00\x00\x00";
    for parts in [
        [
            ("b.rdb", "b", &base[..]),
            ("one.aof", "i", torn),
            ("two.aof", "i", &good),
        ],
        [
            ("b.rdb", "b", &base[..12]),
            ("one.aof", "i", &good),
            ("two.aof", "i", &good),
        ],
        [
            ("b.rdb", "b", &good),
            ("one.aof", "i", &good),
            ("two.aof", "i", &good),
        ],
    ] {
        let folder = folder_with(&parts);
        let error = repair(folder.path(), scratch.path(), DateTime::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.code(), "aof_lost");
    }
    let folder = folder_with(&[("b.rdb", "b", &base[..]), ("one.aof", "i", &good)]);
    assert!(matches!(
        check(folder.path(), scratch.path()).unwrap(),
        State::Whole(_)
    ));
    std::fs::remove_file(folder.path().join("appendonlydir/one.aof")).unwrap();
    assert!(matches!(
        check(folder.path(), scratch.path()).unwrap(),
        State::Lost(_)
    ));
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    let folder = folder_with(&[]);
    let path = folder.path().join("appendonlydir/appendonly.aof.manifest");
    for text in [
        "",
        "file\n",
        "file a seq 1 type x\n",
        "file ../a seq 1 type b\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Layout::find(folder.path()).unwrap_err();
        assert_eq!(error.code(), "aof_manifest", "{text:?}");
    }
}

use chrono::DateTime;

#[test]
fn what_a_restore_moved_aside_is_no_append_only_file() {
    let folder = folder_with(&[("a.aof", "i", b"")]);
    let own = folder.path().join(DIRECTORY);
    let moved = aside(&own, chrono::Utc::now());
    std::fs::rename(&own, &moved).unwrap();
    assert_eq!(Layout::find(folder.path()).unwrap(), None);
    std::fs::create_dir(&own).unwrap();
    let manifest = format!("{NAME}{MANIFEST_ENDING}");
    std::fs::copy(moved.join(&manifest), own.join(&manifest)).unwrap();
    let found = Layout::find(folder.path()).unwrap().unwrap();
    assert_eq!(found.directory, own);
    // One that only looks like it may be the server's.
    let other = folder.path().join("x.before-lunch");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(moved.join(&manifest), other.join(&manifest)).unwrap();
    let refused = Layout::find(folder.path()).unwrap_err();
    assert_eq!(refused.code(), "aof_manifest");
}
