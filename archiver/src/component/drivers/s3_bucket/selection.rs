//! Which objects of a backup a restore means, under which names, and which of their versions.

use crate::{Error, Result};
use chrono::{DateTime, Utc};

/// The longest key there is.
const KEY_BYTES_MAX: usize = 1024;

/// Keys, as `--select` and `--rename` name them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// This one.
    Key(String),
    /// Those that begin so.
    Prefix(String),
}

impl Pattern {
    /// `KEY`, `PREFIX*`, `FOLDER/`; `key=` and `prefix=` before what would mean something else.
    fn parse(text: &str) -> Self {
        if let Some(key) = text.strip_prefix("key=") {
            return Self::Key(key.to_owned());
        }
        if let Some(prefix) = text.strip_prefix("prefix=") {
            return Self::Prefix(prefix.to_owned());
        }
        match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None if text.ends_with('/') => Self::Prefix(text.to_owned()),
            None => Self::Key(text.to_owned()),
        }
    }

    /// What comes after a prefix that `key` has; nothing after the key itself.
    fn rest<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self {
            Self::Key(own) => (own == key).then_some(""),
            Self::Prefix(prefix) => key.strip_prefix(prefix.as_str()),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Prefix(text) => text,
        }
    }
}

/// What a restore is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Selection {
    keys: Vec<Pattern>,
    renames: Vec<(Pattern, String)>,
    /// As of this time.
    pub(super) until: Option<DateTime<Utc>>,
    /// This version alone.
    pub(super) version: Option<String>,
}

fn wrong(text: &str, why: &str) -> Error {
    Error::invalid(
        "component_select",
        format!("\"{text}\" selects no objects: {why}"),
    )
    .with_hint("Write KEY, PREFIX* or FOLDER/, and with it until=2026-01-01T00:00:00Z or version=ID; key=… takes every letter as it is.")
}

impl Selection {
    /// Of a request.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`.
    pub(in super::super) fn parse(select: &[String], rename: &[(String, String)]) -> Result<Self> {
        let mut own = Self::default();
        for text in select {
            if let Some(time) = text.strip_prefix("until=") {
                let time = DateTime::parse_from_rfc3339(time);
                let time = time.map_err(|e| wrong(text, &format!("the time is none ({e})")))?;
                own.until = Some(time.to_utc());
            } else if let Some(version) = text.strip_prefix("version=") {
                own.version = Some(version.to_owned());
            } else if text.is_empty() {
                return Err(wrong(text, "it is empty"));
            } else {
                own.keys.push(Pattern::parse(text));
            }
        }
        let one = matches!(own.keys.as_slice(), [Pattern::Key(_)]);
        if own.version.is_some() && (!one || own.until.is_some()) {
            return Err(wrong("version=", "a version is one of a single key"));
        }
        for (old, new) in rename {
            let (from, to) = (Pattern::parse(old), Pattern::parse(new));
            let same = matches!(
                (&from, &to),
                (Pattern::Key(_), Pattern::Key(_)) | (Pattern::Prefix(_), Pattern::Prefix(_))
            );
            if !same {
                return Err(wrong(
                    old,
                    "both sides of a renaming end with *, or neither",
                ));
            }
            own.renames.push((from, to.text().to_owned()));
        }
        Ok(own)
    }

    /// Whether all of the backup is meant, as it is.
    pub(in super::super) fn is_whole(&self) -> bool {
        self.keys.is_empty() && self.renames.is_empty() && self.until.is_none()
    }

    /// The key that `key` is restored under; `None`: it is not.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`, for a name that is none.
    pub(in super::super) fn target(&self, key: &str) -> Result<Option<String>> {
        let taken = self.keys.is_empty() || self.keys.iter().any(|own| own.rest(key).is_some());
        if !taken {
            return Ok(None);
        }
        let renamed = self.renames.iter().find_map(|(from, to)| {
            let rest = from.rest(key)?;
            Some(format!("{to}{rest}"))
        });
        let target = renamed.unwrap_or_else(|| key.to_owned());
        if target.is_empty() || target.len() > KEY_BYTES_MAX {
            return Err(wrong(
                key,
                "its new name is empty, or longer than 1,024 bytes",
            ));
        }
        Ok(Some(target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(select: &[&str], rename: &[(&str, &str)]) -> Result<Selection> {
        let select: Vec<String> = select.iter().map(|s| (*s).to_owned()).collect();
        let rename: Vec<_> = rename
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        Selection::parse(&select, &rename)
    }

    fn target(selection: &Selection, key: &str) -> Option<String> {
        selection.target(key).unwrap()
    }

    #[test]
    fn keys_prefixes_and_names() {
        let all = parse(&[], &[]).unwrap();
        assert!(all.is_whole());
        assert_eq!(target(&all, "x").unwrap(), "x");
        let some = parse(&["a", "b*", "c/", "key=d*", "prefix=e="], &[]).unwrap();
        for (key, taken) in [
            ("a", true),
            ("ab", false),
            ("b", true),
            ("bc", true),
            ("c", false),
            ("c/", true),
            ("c/x", true),
            ("d*", true),
            ("dx", false),
            ("e=1", true),
        ] {
            assert_eq!(target(&some, key).is_some(), taken, "{key}");
        }
        let renamed = parse(&[], &[("a/*", "b/*"), ("x", "y"), ("old/", "new/")]).unwrap();
        assert!(!renamed.is_whole());
        for (key, new) in [("a/1", "b/1"), ("x", "y"), ("xx", "xx"), ("old/1", "new/1")] {
            assert_eq!(target(&renamed, key).unwrap(), new);
        }
        let until = parse(&["until=2026-01-01T00:00:00Z"], &[]).unwrap();
        assert!(until.until.is_some() && !until.is_whole());
        assert!(parse(&["a", "version=v1"], &[]).is_ok());
        let long = "x".repeat(1100);
        let too_long = parse(&[], &[("a*", &format!("{long}*"))]).unwrap();
        assert_eq!(too_long.target("a").unwrap_err().code(), "component_select");
    }

    #[test]
    fn nonsense_is_refused() {
        for (select, rename) in [
            (vec![""], vec![]),
            (vec!["until=yesterday"], vec![]),
            (vec!["version=v"], vec![]),
            (vec!["a*", "version=v"], vec![]),
            (vec![], vec![("a*", "b")]),
        ] {
            let error = parse(&select, &rename).unwrap_err();
            assert_eq!(error.code(), "component_select");
            assert!(error.hint().is_some());
        }
    }
}
