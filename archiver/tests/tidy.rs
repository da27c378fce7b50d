//! House rules that the compiler does not know: file lengths, layers, names. They read the sources
//! of the whole workspace.

#![allow(clippy::unwrap_used)] // A test may fail loudly.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Above this a file needs a reason in [`LONG_FILES`].
const LINES_WITHOUT_REASON_MAX: usize = 600;

/// Above this no reason helps.
const LINES_MAX: usize = 1000;

/// Files above 600 lines: path and reason.
const LONG_FILES: &[(&str, &str)] = &[
    (
        "archiver/src/config.rs",
        "the settings of pgark.toml in one place: half of it is their documentation",
    ),
    (
        "regress/tests/t300_bad_input.rs",
        "one table of wrong inputs, a few lines each",
    ),
];

/// Names that say nothing about what a module holds.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "helpers", "common", "misc", "manager"];

struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The part before the unit tests, which stand last by our convention: what the rules on
    /// layers are about.
    fn code(&self) -> &str {
        self.text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["archiver", "extension", "regress"] {
        collect(&workspace().join(folder), folder, &mut found);
    }
    assert!(found.len() > 40, "only {} sources found", found.len());
    found
}

fn collect(folder: &Path, relative: &str, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let relative = format!("{relative}/{name}");
        if entry.file_type().unwrap().is_dir() {
            if !["target", "artifacts", "results"].contains(&name.as_str()) {
                collect(&entry.path(), &relative, found);
            }
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            found.push(Source {
                path: relative,
                text,
            });
        }
    }
}

/// Fails with every breach at once.
fn assert_none(rule: &str, breaches: impl Iterator<Item = String>) {
    let mut text = String::new();
    for breach in breaches {
        writeln!(text, "  {breach}").unwrap();
    }
    assert!(text.is_empty(), "{rule}:\n{text}");
}

/// The lines of the code that hold one of `words`, comments left out.
fn lines_with(source: &Source, words: &[&str]) -> Vec<String> {
    source
        .code()
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(at, line)| format!("{}:{}: {}", source.path, at + 1, line.trim()))
        .collect()
}

#[test]
fn files_are_short() {
    let mut breaches = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        let reason = LONG_FILES.iter().find(|(path, _)| *path == source.path);
        match reason {
            _ if lines > LINES_MAX => breaches.push(format!(
                "{}: {lines} lines, more than {LINES_MAX}",
                source.path
            )),
            None if lines > LINES_WITHOUT_REASON_MAX => breaches.push(format!(
                "{}: {lines} lines, and no reason in LONG_FILES",
                source.path
            )),
            Some(_) if lines <= LINES_WITHOUT_REASON_MAX => breaches.push(format!(
                "{}: {lines} lines: its reason is out of date",
                source.path
            )),
            Some((path, reason)) => println!("{path}: {lines} lines: {reason}"),
            None => {}
        }
    }
    for (path, _) in LONG_FILES {
        if !workspace().join(path).exists() {
            breaches.push(format!("{path}: does not exist"));
        }
    }
    assert_none("files are short", breaches.into_iter());
}

#[test]
fn modules_are_named_for_what_they_hold() {
    assert_none(
        "no module has an empty name",
        sources()
            .into_iter()
            .map(|source| source.path)
            .filter(|path| {
                path.trim_end_matches(".rs")
                    .split('/')
                    .any(|part| EMPTY_NAMES.contains(&part))
            }),
    );
}

#[test]
fn types_do_no_input_or_output() {
    let words = [
        "std::fs",
        "std::net",
        "std::process",
        "std::os",
        "std::io",
        "tokio",
        "pgrx",
    ];
    assert_none(
        "archiver/types does no I/O",
        sources()
            .iter()
            .filter(|source| source.path.starts_with("archiver/types/src/"))
            .flat_map(|source| lines_with(source, &words)),
    );
}

#[test]
fn on_disk_types_have_no_logic() {
    let words = ["crate::", "std::fs", "std::io", "super::super"];
    assert_none(
        "repository/format imports no logic",
        sources()
            .iter()
            .filter(|source| {
                source.path.starts_with("archiver/src/repository/format/")
                    || source.path == "archiver/src/repository/format.rs"
            })
            .flat_map(|source| lines_with(source, &words))
            // Its own types, and the reason why bytes are not what they should be.
            .filter(|line| {
                !line.contains("crate::repository::format")
                    && !line.contains("crate::Result")
                    && !line.contains("crate::Error")
                    && !line.contains("crate::{Error, Result}")
            }),
    );
}

#[test]
fn keys_are_built_in_one_place() {
    assert_none(
        "only repository/layout.rs builds keys",
        sources()
            .iter()
            .filter(|source| {
                source.path.starts_with("archiver/src/")
                    && source.path != "archiver/src/repository/layout.rs"
                    && !source.path.starts_with("archiver/src/storage")
                    // Keys of ciphers, not of objects.
                    && !source.path.starts_with("archiver/src/repository/crypto/")
                    && !source.path.starts_with("archiver/src/component/drivers/minio/")
                    && !source.is_test()
            })
            .flat_map(|source| lines_with(source, &["Key::new("])),
    );
}

#[test]
fn no_test_is_switched_off() {
    // Put together here, so that this file does not find itself.
    let ignore = concat!("#[", "ignore");
    assert_none(
        "no test is ignored",
        sources().iter().flat_map(|source| {
            source
                .text
                .lines()
                .enumerate()
                .filter(|(_, line)| line.trim_start().starts_with(ignore))
                .map(|(at, _)| format!("{}:{}", source.path, at + 1))
                .collect::<Vec<_>>()
        }),
    );
}

/// Unsafe code stands in the archive module alone; the other crates forbid it in so many words.
#[test]
fn unsafe_code_stands_in_one_crate() {
    // Put together here, so that this file does not find itself.
    let words = [
        concat!("unsafe", " {"),
        concat!("unsafe", " fn"),
        concat!("unsafe", " impl"),
        concat!("unsafe", " extern"),
    ];
    assert_none(
        "unsafe code stands in extension/archive and extension/src/server.rs alone",
        sources()
            .iter()
            .filter(|source| !source.path.starts_with("extension/archive/"))
            .filter(|source| source.path != "extension/src/server.rs")
            .flat_map(|source| lines_with(source, &words)),
    );
}

/// One case that must fail, so that a green run means that somebody looked.
#[test]
fn the_rules_find_breaches() {
    let source = Source {
        path: "archiver/src/x.rs".to_owned(),
        text: "// Key::new( in a comment\nlet k = Key::new(\"a\");\n#[cfg(test)]\nmod tests { Key::new(\"b\"); }\n"
            .to_owned(),
    };
    assert_eq!(
        lines_with(&source, &["Key::new("]),
        ["archiver/src/x.rs:2: let k = Key::new(\"a\");"]
    );
}
