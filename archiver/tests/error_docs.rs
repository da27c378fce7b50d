//! Every error code in the source stands in `docs/reference/errors.md`, and every exit code in
//! `docs/reference/exit-codes.md`. `PGARK_BLESS=1 cargo test --test error_docs` rewrites the first.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use pgark_archiver::{Error, ErrorKind, exit_code};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const HEAD: &str = "# Error codes\n\n\
    Every error ends in `(code …)`. Codes are stable: scripts may match them, and a code is never reused for something else. The kind\n\
    decides the exit code ([exit codes](exit-codes.md)); archive-get has exit codes of its own. The messages are examples: one code can\n\
    have several. Generated from the source; `archiver/tests/error_docs.rs` compares.\n\n\
    | code | kind | exit code | message, for example |\n|---|---|---|---|\n";

#[derive(Debug, Default)]
struct Entry {
    kinds: BTreeSet<String>,
    message: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "testdata.rs" {
            found.push(path);
        }
    }
    found.sort();
}

/// The first string literal of `text`, and what follows it. Escaped quotes are part of it.
fn literal(text: &str) -> Option<(String, &str)> {
    let (_, rest) = text.split_once('"')?;
    let mut end = 0;
    let bytes = rest.as_bytes();
    while bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some((rest[..end].to_owned(), &rest[end + 1..]))
}

/// Notes the calls of `constructor` in `text`, whose first argument after `kind` is the code.
fn collect(text: &str, constructor: &str, kind: &str, found: &mut BTreeMap<String, Entry>) {
    for (at, _) in text.match_indices(constructor) {
        let mut rest = &text[at + constructor.len()..];
        let mut kind = kind.to_owned();
        if kind.is_empty() {
            let (first, after) = rest.split_once(',').unwrap();
            // A kind that comes from elsewhere: a reply of the agent.
            kind = match first.trim() {
                "kind" => "as reported".to_owned(),
                first => first.rsplit("::").next().unwrap().to_lowercase(),
            };
            rest = after;
        }
        // Not a literal: the code of another error, passed on.
        if !rest.trim_start().starts_with('"') {
            continue;
        }
        let Some((code, rest)) = literal(rest) else {
            continue;
        };
        let entry = found.entry(code).or_default();
        entry.kinds.insert(kind);
        if entry.message.is_empty()
            && let Some((message, _)) = literal(rest)
        {
            entry.message = message.replace("\\\"", "\"").replace('|', "\\|");
        }
    }
}

fn codes() -> BTreeMap<String, Entry> {
    let mut files = Vec::new();
    sources(&root().join("archiver/src"), &mut files);
    // Compiled into no release.
    files.retain(|path| !path.ends_with("storage/faulty.rs"));
    assert!(files.len() > 60);
    let mut found = BTreeMap::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for kind in ["unavailable", "invalid", "data", "conflict", "internal"] {
            collect(text, &format!("Error::{kind}("), kind, &mut found);
        }
        collect(text, "Error::new(", "", &mut found);
    }
    // Error::io decides by the operating system's error.
    for (code, message) in [
        ("disk_full", "… : no space left on device"),
        ("permission_denied", "… : permission denied"),
        ("read_only", "… : read-only file system"),
        ("not_found", "… : no such file or directory"),
        ("io", "… : what the operating system says"),
    ] {
        let entry = found.entry(code.to_owned()).or_default();
        entry.kinds.insert("unavailable".to_owned());
        if entry.message.is_empty() {
            message.clone_into(&mut entry.message);
        }
    }
    found
}

fn exit_code_of(kind: &str) -> String {
    let kinds = [
        ErrorKind::Unavailable,
        ErrorKind::Invalid,
        ErrorKind::Data,
        ErrorKind::Conflict,
        ErrorKind::Fenced,
        ErrorKind::Internal,
    ];
    let kind = kinds.into_iter().find(|k| k.as_str() == kind);
    kind.map_or_else(
        || "by kind".to_owned(),
        |kind| exit_code::of(&Error::new(kind, "x", "x")).to_string(),
    )
}

#[test]
fn every_error_code_is_documented() {
    let codes = codes();
    assert!(
        codes.len() > 80,
        "{} codes: the search is broken",
        codes.len()
    );
    for code in [
        "disk_full",
        "wal_gap",
        "target_out_of_window",
        "repository_missing",
        "cancelled",
    ] {
        assert!(codes.contains_key(code), "{code}: the search is broken");
    }
    let mut page = HEAD.to_owned();
    for (code, entry) in &codes {
        let kinds: Vec<&str> = entry.kinds.iter().map(String::as_str).collect();
        let exits: BTreeSet<String> = kinds.iter().map(|kind| exit_code_of(kind)).collect();
        let exits: Vec<String> = exits.into_iter().collect();
        page.push_str(&format!(
            "| `{code}` | {} | {} | {} |\n",
            kinds.join(", "),
            exits.join(", "),
            entry.message
        ));
    }
    let path = root().join("docs/reference/errors.md");
    if std::env::var_os("PGARK_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let first = page.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        page == written,
        "docs/reference/errors.md is out of date; PGARK_BLESS=1 rewrites it. First difference: {first:?}"
    );
}

#[test]
fn every_exit_code_is_documented() {
    let path = root().join("docs/reference/exit-codes.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut codes = vec![
        exit_code::DONE,
        exit_code::ABSENT,
        exit_code::USAGE,
        exit_code::FINDINGS,
        exit_code::GET_USAGE,
    ];
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Invalid,
        ErrorKind::Data,
        ErrorKind::Conflict,
        ErrorKind::Fenced,
        ErrorKind::Internal,
    ] {
        let error = Error::new(kind, "x", "x");
        codes.extend([exit_code::of(&error), exit_code::of_archive_get(&error)]);
    }
    for code in codes {
        let row = format!("| {code} |");
        assert!(page.contains(&row), "exit code {code} has no row");
    }
    assert!(page.contains("134"), "a panic");
}
