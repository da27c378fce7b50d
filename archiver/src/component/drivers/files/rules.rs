//! Which files, by patterns.
//!
//! A pattern without a slash is about the last name of a path; with a slash in front it is about the
//! absolute path; with another slash about the path below the configured one.

use crate::{Error, Result};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What is included, excluded and masked.
#[derive(Debug)]
pub(in crate::component::drivers) struct Rules {
    include: Option<Patterns>,
    exclude: Patterns,
    redact: Patterns,
}

/// Where a file is.
#[derive(Debug, Clone, Copy)]
pub(in crate::component::drivers) struct Where<'a> {
    /// The path within the backup: the absolute one without its first slash.
    pub(in crate::component::drivers) path: &'a [u8],
    /// How much of it belongs to the configured path.
    pub(in crate::component::drivers) root_len: usize,
}

impl Rules {
    pub(in crate::component::drivers) fn new(
        include: &[String],
        exclude: &[String],
        redact: &[String],
    ) -> Result<Self> {
        Ok(Self {
            include: match include {
                [] => None,
                include => Some(Patterns::new(include)?),
            },
            exclude: Patterns::new(exclude)?,
            redact: Patterns::new(redact)?,
        })
    }

    /// Whether a directory, or anything else, is left out with all below it.
    pub(in crate::component::drivers) fn excludes(&self, at: Where<'_>) -> bool {
        self.exclude.matches(at)
    }

    /// Whether a file counts, which is not excluded.
    pub(super) fn includes(&self, at: Where<'_>) -> bool {
        self.include
            .as_ref()
            .is_none_or(|include| include.matches(at))
    }

    pub(super) fn redacts(&self, at: Where<'_>) -> bool {
        self.redact.matches(at)
    }
}

#[derive(Debug)]
struct Patterns {
    names: GlobSet,
    absolute: GlobSet,
    below: GlobSet,
}

pub(super) fn glob(pattern: &str) -> Result<Glob> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map_err(|e| {
        Error::invalid("pattern_invalid", format!("\"{pattern}\" is no pattern")).with_source(e)
    })
}

impl Patterns {
    fn new(patterns: &[String]) -> Result<Self> {
        let [mut names, mut absolute, mut below] = [(); 3].map(|()| GlobSetBuilder::new());
        for pattern in patterns {
            let kind = match pattern.find('/') {
                None => &mut names,
                Some(0) => &mut absolute,
                Some(_) => &mut below,
            };
            kind.add(glob(pattern)?);
        }
        let build = |set: &GlobSetBuilder| {
            set.build().map_err(|e| {
                Error::invalid("pattern_invalid", "the patterns are too large").with_source(e)
            })
        };
        Ok(Self {
            names: build(&names)?,
            absolute: build(&absolute)?,
            below: build(&below)?,
        })
    }

    fn matches(&self, at: Where<'_>) -> bool {
        fn path(bytes: &[u8]) -> &Path {
            Path::new(OsStr::from_bytes(bytes))
        }
        let name = at.path.rsplit(|b| *b == b'/').next().unwrap_or(at.path);
        if !self.names.is_empty() && self.names.is_match(path(name)) {
            return true;
        }
        if !self.absolute.is_empty() {
            let absolute = [b"/", at.path].concat();
            if self.absolute.is_match(path(&absolute)) {
                return true;
            }
        }
        let below = at.path.get(at.root_len..).unwrap_or_default();
        let below = below.strip_prefix(b"/").unwrap_or(below);
        !self.below.is_empty() && self.below.is_match(path(below))
    }
}

/// What a request selects: paths with all below them, or patterns.
pub(in crate::component::drivers) struct Selection {
    patterns: Vec<(Vec<u8>, globset::GlobMatcher)>,
    hit: Vec<std::cell::Cell<bool>>,
}

impl Selection {
    pub(in crate::component::drivers) fn new(select: &[String]) -> Result<Self> {
        let patterns = select.iter().map(|pattern| {
            let text = pattern.trim_start_matches('/').trim_end_matches('/');
            Ok((text.as_bytes().to_vec(), glob(text)?.compile_matcher()))
        });
        let patterns: Vec<_> = patterns.collect::<Result<_>>()?;
        Ok(Self {
            hit: patterns
                .iter()
                .map(|_| std::cell::Cell::new(false))
                .collect(),
            patterns,
        })
    }

    pub(in crate::component::drivers) fn is_all(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` is selected.
    pub(in crate::component::drivers) fn takes(&self, path: &[u8]) -> bool {
        if self.is_all() {
            return true;
        }
        let mut taken = false;
        for ((text, pattern), hit) in self.patterns.iter().zip(&self.hit) {
            let below = path.strip_prefix(text.as_slice());
            // "/" itself has everything below it.
            let is_below = text.is_empty()
                || below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
            let mut above = path;
            let mut found = is_below;
            while !found {
                found = pattern.is_match(Path::new(OsStr::from_bytes(above)));
                match above.iter().rposition(|b| *b == b'/') {
                    Some(at) if !found => above = above.get(..at).unwrap_or_default(),
                    _ => break,
                }
            }
            if found {
                hit.set(true);
                taken = true;
            }
        }
        taken
    }

    /// Whether `path` itself is named, not only something above it or a pattern.
    pub(in crate::component::drivers) fn names(&self, path: &[u8]) -> bool {
        self.patterns.iter().any(|(text, _)| text == path)
    }

    /// Refuses a selection of which a part met nothing.
    ///
    /// # Errors
    /// Kind Invalid, `nothing_selected`.
    pub(in crate::component::drivers) fn check(&self) -> Result<()> {
        for ((text, _), hit) in self.patterns.iter().zip(&self.hit) {
            if !hit.get() {
                return Err(Error::invalid(
                    "nothing_selected",
                    format!(
                        "the backup holds nothing that \"{}\" selects",
                        String::from_utf8_lossy(text)
                    ),
                )
                .with_hint("Name a path as it was on the host, or a pattern with * and **."));
            }
        }
        Ok(())
    }
}
