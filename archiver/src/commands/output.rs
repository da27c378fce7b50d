//! What a verb prints: text for people, one JSON object for programs.

use crate::config::{Config, RepositoryConfig};
use crate::repository::Repository;
use crate::storage::SharedStorage;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object with `"format": 1`.
    Json,
}

/// The pairs of an option that may be given several times; a key that comes twice is a slip.
///
/// # Errors
/// Kind Invalid, code `option_twice`.
pub(super) fn once_each<T: Clone>(
    pairs: &[(String, T)],
    option: &str,
) -> Result<BTreeMap<String, T>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone()).is_some() {
            return Err(
                Error::invalid("option_twice", format!("{option} names \"{key}\" twice"))
                    .with_hint("Which of the two is meant cannot be told: give it once."),
            );
        }
    }
    Ok(map)
}

/// Why a result could not be printed; the first failure.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// The failure to print a result, if there was one. A reader that has seen enough and closed the
/// pipe is none.
#[must_use]
pub fn lost() -> Option<Error> {
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    if lost.kind() == io::ErrorKind::BrokenPipe {
        return None;
    }
    let error = Error::io("could not print the result", lost);
    Some(error.with_hint("What was to be done is done: only its report is lost."))
}

/// Prints a line. What fails is kept for [`lost`]: nobody's backup ends because of the output, and
/// `println!` would panic.
fn print_line(line: &dyn std::fmt::Display) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.is_none() {
        *lost = writeln!(io::stdout().lock(), "{line}").err();
    }
}

/// Prints `value`, an object, with `"format": 1` added.
pub(super) fn print_json(mut value: Value) {
    if let Value::Object(fields) = &mut value {
        fields.insert("format".to_owned(), json!(1));
    }
    print_line(&format_args!("{value:#}"));
}

/// Prints lines for people.
pub fn print_text(text: impl std::fmt::Display) {
    print_line(&visible(&text.to_string()));
}

/// `text` with control characters as escapes, line ends and tabs left alone: names and notes come
/// from elsewhere, and must not command a terminal.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The same for a text that must stay on its line.
pub(super) fn on_one_line(text: &str) -> String {
    visible(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// Opens the repository called `name`; without a name the first required one.
///
/// # Errors
/// Kind Invalid for a name that the configuration does not have; or as [`Repository::open`].
pub(super) fn open_repository(config: &Config, name: Option<&str>) -> Result<Repository> {
    let (name, section, storage) = choose_repository(config, name)?;
    section.open(&name, storage)
}

/// The repository called `name`, not opened; without a name the first required one.
///
/// # Errors
/// Kind Invalid for a name that the configuration does not have.
pub(super) fn choose_repository(
    config: &Config,
    name: Option<&str>,
) -> Result<(String, RepositoryConfig, SharedStorage)> {
    let mut storages = config.storages()?;
    let wanted = match name {
        Some(name) => storages
            .iter()
            .position(|(n, ..)| n == name)
            .ok_or_else(|| repository_unknown(name))?,
        None => storages
            .iter()
            .position(|(_, section, _)| section.required)
            .unwrap_or(0),
    };
    Ok(storages.swap_remove(wanted))
}

/// Does something in the repository called `name`, or in every one. One that fails does not keep it
/// from the others.
///
/// # Errors
/// The first one, after all were tried.
pub(super) fn each_repository(
    config: &Config,
    name: Option<&str>,
    action: impl FnMut(&Repository) -> Result<()>,
) -> Result<()> {
    let keyless = |name: &str, _: &RepositoryConfig, storage| -> Result<Repository> {
        Repository::open(name, storage)
    };
    each(config, name, keyless, action)
}

/// As [`each_repository`], with the configured key. Without it less can be told, and that is all.
///
/// # Errors
/// As [`each_repository`]; kind Invalid, `key_wrong`: that is somebody else's repository.
pub(super) fn each_unlocked_repository(
    config: &Config,
    name: Option<&str>,
    action: impl FnMut(&Repository) -> Result<()>,
) -> Result<()> {
    let unlocked = |name: &str, section: &RepositoryConfig, storage: SharedStorage| match section
        .open(name, SharedStorage::clone(&storage))
    {
        Err(error) if error.code() != "key_wrong" => {
            let repository = Repository::open(name, storage)?;
            tracing::warn!(
                code = error.code(),
                "repository \"{name}\" is looked at without a key: {error}"
            );
            Ok(repository)
        }
        opened => opened,
    };
    each(config, name, unlocked, action)
}

fn each(
    config: &Config,
    name: Option<&str>,
    open: impl Fn(&str, &RepositoryConfig, SharedStorage) -> Result<Repository>,
    mut action: impl FnMut(&Repository) -> Result<()>,
) -> Result<()> {
    let storages = config.storages()?;
    if let Some(wanted) = name
        && !storages.iter().any(|(n, ..)| n == wanted)
    {
        return Err(repository_unknown(wanted));
    }
    let mut failure = None;
    for (of, section, storage) in storages {
        if name.is_some_and(|wanted| wanted != of) {
            continue;
        }
        let done = open(&of, &section, storage).and_then(|repository| action(&repository));
        if let Err(error) = done {
            let error = error.context(format!("repository \"{of}\""));
            if failure.is_some() {
                tracing::error!(code = error.code(), "{error}");
            } else {
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The configuration has no repository called `name`.
pub(super) fn repository_unknown(name: &str) -> Error {
    Error::invalid(
        "repository_unknown",
        format!("the configuration has no repository \"{name}\""),
    )
    .with_hint("Repositories are the [repository.NAME] sections.")
}

/// Bytes for people.
pub(super) fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_reaches_a_terminal() {
        let foreign = "a\u{1b}[2Jb\u{9b}c\rd\n\tä";
        assert_eq!(visible(foreign), "a\\u{1b}[2Jb\\u{9b}c\\rd\n\tä");
        assert_eq!(on_one_line("a\nALERT"), "a\\nALERT");
    }
}
