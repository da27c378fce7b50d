//! What a verb prints: text for people, one JSON object for programs.

use crate::config::Config;
use crate::repository::Repository;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object with `"format": 1`.
    Json,
}

/// Prints `value`, an object, with `"format": 1` added.
pub(super) fn print_json(mut value: Value) {
    if let Value::Object(fields) = &mut value {
        fields.insert("format".to_owned(), json!(1));
    }
    print_text(format_args!("{value:#}"));
}

/// Prints lines for people. Whoever reads them may have read enough (`pgark info | head -1`): that
/// ends neither the work nor the exit code.
pub(super) fn print_text(text: impl std::fmt::Display) {
    if let Err(e) = write_line(&mut std::io::stdout().lock(), text) {
        tracing::error!("could not write to standard output: {e}");
    }
}

fn write_line(out: &mut impl Write, text: impl std::fmt::Display) -> std::io::Result<()> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Opens the repository called `name`; without a name the first required one.
///
/// # Errors
/// Kind Invalid for a name that the configuration does not have; or as [`Repository::open`].
pub(super) fn open_repository(config: &Config, name: Option<&str>) -> Result<Repository> {
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
    let (name, _, storage) = storages.swap_remove(wanted);
    Repository::open(&name, storage)
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
    use std::io::ErrorKind;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        assert!(write_line(&mut Failing(ErrorKind::BrokenPipe), "x").is_ok());
        let full = write_line(&mut Failing(ErrorKind::StorageFull), "x");
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
        let mut out = Vec::new();
        write_line(&mut out, "x").unwrap();
        assert_eq!(out, b"x\n");
    }
}
