//! The generated reference pages say what the code says. `PGARK_BLESS=1 cargo test -p
//! pgark-archiver --test reference` writes them again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A test may fail loudly.

#[path = "reference/cli_page.rs"]
mod cli_page;
#[path = "reference/config_page.rs"]
mod config_page;

use pgark_archiver::{Error, ErrorKind, exit_code};
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap_or_default()
}

/// Compares a page with what it must be; writes it when `PGARK_BLESS` is set.
#[track_caller]
fn assert_page(path: &str, expected: &str) {
    if std::env::var_os("PGARK_BLESS").is_some() {
        std::fs::write(workspace().join(path), expected).unwrap();
        return;
    }
    let found = read(path);
    let line = found
        .lines()
        .zip(expected.lines())
        .position(|(a, b)| a != b)
        .unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    assert!(
        found == expected,
        "{path} is out of date from line {} on: run this test with PGARK_BLESS=1",
        line + 1
    );
}

#[test]
fn the_page_of_commands_is_current() {
    assert_page("docs/reference/cli.md", &cli_page::render());
}

#[test]
fn the_page_of_settings_is_current() {
    let source = read("archiver/src/config.rs") + &read("archiver/src/config/component.rs");
    assert_page("docs/reference/config.md", &config_page::render(&source));
}

/// Every constant of `exit_code.rs` and the codes of every kind of error stand in the page, in rows
/// that begin with the number and then the name.
#[test]
fn the_page_of_exit_codes_names_every_code() {
    let page = read("docs/reference/exit-codes.md");
    let mut rows = Vec::new();
    for line in read("archiver/src/exit_code.rs").lines() {
        if let Some((name, value)) = line
            .strip_prefix("pub const ")
            .and_then(|rest| rest.strip_suffix(';')?.split_once(": u8 = "))
        {
            rows.push((value.parse().unwrap(), name.to_owned()));
        }
    }
    assert!(rows.len() >= 5, "only {rows:?} found in exit_code.rs");
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Invalid,
        ErrorKind::Data,
        ErrorKind::Conflict,
        ErrorKind::Fenced,
        ErrorKind::Internal,
    ] {
        let error = Error::new(kind, "any", "any");
        rows.push((exit_code::of(&error), kind.as_str().to_owned()));
        rows.push((exit_code::of_archive_get(&error), kind.as_str().to_owned()));
    }
    for (code, name) in rows {
        let row = format!("| {code} | `{name}` |");
        assert!(
            page.contains(&row),
            "docs/reference/exit-codes.md has no row {row}"
        );
    }
}

/// The documentation's links to files of this clone lead somewhere.
#[test]
fn links_lead_to_files() {
    let mut pages = vec![workspace()];
    let mut broken = Vec::new();
    let mut count = 0;
    while let Some(path) = pages.pop() {
        if path.is_dir() {
            let top = path == workspace();
            for entry in std::fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap().path();
                let is_page = entry.extension().is_some_and(|e| e == "md");
                if is_page || (entry.is_dir() && (!top || entry.ends_with("docs"))) {
                    pages.push(entry);
                }
            }
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            count += 1;
            if !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(count > 20, "only {count} links found");
    assert!(broken.is_empty(), "broken links: {broken:#?}");
}
