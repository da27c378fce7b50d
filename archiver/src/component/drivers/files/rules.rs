//! Which files, by patterns.
//!
//! A pattern without a slash is about the last name of a path; with a slash in front it is about the
//! absolute path; with another slash about the path below the configured one. What a restore moved aside
//! is met by its former name as well.

use super::aside;
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

    /// Whether `at`, or a directory above it, is excluded. A configured path itself never is.
    pub(super) fn leaves_out(&self, at: Where<'_>) -> bool {
        let below = at.path.iter().enumerate().skip(at.root_len + 1);
        let mut ends = below.filter_map(|(n, b)| (*b == b'/').then_some(n));
        let excludes = |end: usize| {
            let path = at.path.get(..end).unwrap_or_default();
            self.excludes(Where { path, ..at })
        };
        at.path.len() > at.root_len && (ends.any(excludes) || self.excludes(at))
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

/// Refuses what no path can be, and a pattern of gitignore that means something else here.
fn check(pattern: &str) -> Result<()> {
    let mut parts = pattern.strip_prefix('/').unwrap_or(pattern).split('/');
    if !parts.any(|part| matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    let error = Error::invalid(
        "pattern_invalid",
        format!("the pattern \"{pattern}\" matches nothing"),
    );
    let plain = pattern.trim_end_matches('/');
    Err(match (plain.is_empty(), plain.len() < pattern.len()) {
        (true, _) => error.with_hint("Write \"*\" for every name."),
        (_, true) => error.with_hint(format!(
            "Without the slash: \"{plain}\" in exclude leaves out a directory with all in it, \"{plain}/**\" is what lies below it."
        )),
        _ => error.with_hint("Write it without \".\", \"..\" and doubled slashes."),
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
            check(pattern)?;
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
        if self.names.is_empty() && self.absolute.is_empty() && self.below.is_empty() {
            return false;
        }
        if self.meets(at) {
            return true;
        }
        let (root, below) = at.path.split_at_checked(at.root_len).unwrap_or_default();
        aside::former_path(below).is_some_and(|below| {
            let path = &[root, &below].concat();
            self.meets(Where { path, ..at })
        })
    }

    fn meets(&self, at: Where<'_>) -> bool {
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
            // "/" means everything; a variable of a shell that is not set must not.
            if pattern.is_empty() {
                return Err(Error::invalid(
                    "nothing_selected",
                    "an empty selection selects nothing",
                )
                .with_hint("Name a path, or \"/\" for everything."));
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(exclude: &[&str], redact: &[&str]) -> Result<Rules> {
        let own = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        Rules::new(&[], &own(exclude), &own(redact))
    }

    fn at(path: &str) -> Where<'_> {
        Where {
            path: path.as_bytes(),
            root_len: "srv/docs".len(),
        }
    }

    #[test]
    fn what_was_moved_aside_is_met_by_its_former_name() {
        let rules = rules(&["cache/**"], &["*.env", "/srv/docs/secret/**", "keys/*"]).unwrap();
        const ENDING: &str = ".before-20261130T093246123Z";
        for path in ["a/app.env", "secret/deep/x", "keys/x"] {
            assert!(rules.redacts(at(&format!("srv/docs/{path}"))), "{path}");
            assert!(rules.redacts(at(&format!("srv/docs/{path}{ENDING}"))));
        }
        assert!(rules.redacts(at(&format!("srv/docs/secret{ENDING}/deep/x"))));
        assert!(rules.excludes(at(&format!("srv/docs/cache{ENDING}/x"))));
        assert!(!rules.redacts(at("srv/docs/app.env.before-now")));
        assert!(!rules.redacts(at(&format!("srv/docs/plain{ENDING}"))));
    }

    #[test]
    fn what_lies_in_an_excluded_directory_is_left_out() {
        let rules = rules(&["cache", "docs", "x/y"], &[]).unwrap();
        for (path, is_out) in [
            ("srv/docs", false),
            ("srv/docs/a/b", false),
            ("srv/docs/cache", true),
            ("srv/docs/a/cache/deep/b", true),
            ("srv/docs/x/y/z", true),
            ("srv/docs/x/z", false),
        ] {
            assert_eq!(rules.leaves_out(at(path)), is_out, "{path}");
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for pattern in ["", "/", "//", "a/", "/a/", "a//b", "./a", "a/../b"] {
            for (exclude, redact) in [(&[pattern][..], &[][..]), (&[][..], &[pattern][..])] {
                let error = rules(exclude, redact).unwrap_err();
                assert_eq!(error.code(), "pattern_invalid", "{pattern}");
                assert!(error.hint().is_some());
            }
        }
        assert!(rules(&["a", "/a", "a/**", "**/a", "/a/*.tmp", "..a"], &[]).is_ok());
    }
}
