//! Files: directories and single files of this host, with owner, mode, times, extended attributes, hard
//! links and holes. Symbolic links are kept as such and never followed.

mod aside;
mod compare;
pub(super) mod ids;
pub(super) mod notes;
mod place;
mod prune;
mod redact;
pub(super) mod rules;
mod walk;
mod write;

use self::place::Places;
use self::rules::Rules;
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::Deserialize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The kind, in the configuration.
pub const KIND: &str = "files";

/// The token of a file whose values were masked. It does not tell whether they changed.
pub(in crate::component) const REDACTED: &str = "redacted";

/// The most threads that read, unless the section says so.
const PARALLEL_MAX: usize = 8;

/// How many threads read: two for each processor, for the disk keeps one of them waiting.
fn threads() -> usize {
    let processors = std::thread::available_parallelism();
    let processors = processors.map_or(1, std::num::NonZero::get);
    processors.saturating_mul(2).min(PARALLEL_MAX)
}

/// `[component.<name>]` of kind `files`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    /// Absolute paths of directories and files.
    paths: Vec<PathBuf>,
    /// Only files that one of these matches.
    #[serde(default)]
    include: Vec<String>,
    /// Neither files nor directories that one of these matches.
    #[serde(default)]
    exclude: Vec<String>,
    /// Files whose values are masked.
    #[serde(default)]
    redact: Vec<String>,
    /// Go down into other file systems that are mounted below the paths.
    #[serde(default)]
    cross_file_systems: bool,
    /// Threads that read; 0: two for each processor, eight at most.
    #[serde(default)]
    parallel: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    rules: Rules,
    cross_file_systems: bool,
    threads: usize,
}

impl Files {
    /// The driver of a section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`.
    pub fn open(name: &str, settings: &toml::Table) -> Result<Self> {
        let invalid = |what: String| {
            Error::invalid("config_invalid", format!("component.{name}: {what}"))
                .with_hint("docs/guide/files.md lists every key.")
        };
        let section: Section = settings
            .clone()
            .try_into()
            .map_err(|e: toml::de::Error| invalid(e.message().to_owned()))?;
        if section.paths.is_empty() {
            return Err(invalid("paths is empty".to_owned()));
        }
        let mut paths = section.paths;
        paths.sort();
        for path in &paths {
            let plain = crate::repository::component::check_path(within(path));
            if !path.is_absolute() || plain.is_err() {
                let path = path.display();
                return Err(invalid(format!(
                    "\"{path}\" is no absolute path without \".\", \"..\" and a slash at its end"
                )));
            }
        }
        for pair in paths.windows(2) {
            if let [outer, inner] = pair
                && inner.starts_with(outer)
            {
                let (outer, inner) = (outer.display(), inner.display());
                return Err(invalid(format!("\"{inner}\" lies within \"{outer}\"")));
            }
        }
        let threads = match section.parallel {
            0 => threads(),
            n if n <= 64 => n,
            n => return Err(invalid(format!("parallel must be at most 64, not {n}"))),
        };
        Ok(Self {
            paths,
            rules: Rules::new(&section.include, &section.exclude, &section.redact).map_err(
                |e| {
                    let error = invalid(e.to_string());
                    match e.hint() {
                        Some(hint) => error.with_hint(hint),
                        None => error,
                    }
                },
            )?,
            cross_file_systems: section.cross_file_systems,
            threads,
        })
    }

    /// The tree of another driver, whose root is `path`.
    pub(super) fn of_tree(path: &Path, rules: Rules) -> Self {
        Self {
            paths: vec![path.to_owned()],
            rules,
            cross_file_systems: false,
            threads: threads(),
        }
    }
}

/// The path within a backup of an absolute path.
pub(super) fn within(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

impl Driver for Files {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn stage(&self) -> Stage {
        Stage::Blob
    }

    fn check(&self, _context: &Context<'_>) -> Result<Vec<CheckLine>> {
        let lines = self.paths.iter().map(|path| {
            let name = format!("path {}", path.display());
            match walk::probe(path) {
                Ok(what) => CheckLine::well(&name, what),
                Err(error) => CheckLine::failed(&name, &error, ""),
            }
        });
        Ok(lines.collect())
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        walk::capture(self, context, sink)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let places = Places::new(self, request)?;
        write::restore(self, &places, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        let places = Places::new(self, request)?;
        compare::evidence(&places, context, source, request)
    }

    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        ids::list(&self.paths, &self.rules, context, part, visit).map(|()| true)
    }

    fn lever(&self, _seconds: u64) -> Option<Lever> {
        None
    }

    fn hold(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }

    fn release(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
