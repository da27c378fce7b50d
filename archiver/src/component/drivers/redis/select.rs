//! Which keys a partial restore means, and what they are called afterwards.

use super::rdb::Head;
use crate::{Error, Result};

/// The word that selects the append-only file as it was captured.
pub(super) const APPEND_ONLY: &str = "@aof";

/// Some keys, or all.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Any of them; empty: all keys.
    patterns: Vec<Pattern>,
    rename: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
struct Pattern {
    db: Option<u32>,
    glob: Option<Vec<u8>>,
}

impl Selection {
    /// Parses `session:*` (in every database), `db=2`, `db=2,session:*`; and `old=new`, both ending in `*`
    /// for a prefix.
    ///
    /// # Errors
    /// Kind Invalid, `component_select`.
    pub(super) fn parse(select: &[String], rename: &[(String, String)]) -> Result<Self> {
        let wrong = |what: &str, why: &str| {
            Error::invalid("component_select", format!("\"{what}\" selects no keys: {why}")).with_hint(
                "Write a pattern (\"session:*\"), a database (\"db=2\"), or both (\"db=2,session:*\").",
            )
        };
        let mut patterns = Vec::new();
        for text in select {
            let (db, glob) = match text.strip_prefix("db=") {
                None => (None, Some(text.as_str())),
                Some(rest) => {
                    let (number, glob) = match rest.split_once(',') {
                        Some((number, glob)) => (number, Some(glob)),
                        None => (rest, None),
                    };
                    let db = number
                        .parse()
                        .map_err(|_| wrong(text, "after db= comes a number"))?;
                    (Some(db), glob)
                }
            };
            if glob == Some("") {
                return Err(wrong(text, "the pattern is empty"));
            }
            let glob = glob.map(|glob| glob.as_bytes().to_vec());
            patterns.push(Pattern { db, glob });
        }
        for (old, new) in rename {
            let pair = format!("{old}={new}");
            if old.is_empty() || new.is_empty() {
                return Err(wrong(&pair, "a name is empty"));
            }
            if old.ends_with('*') != new.ends_with('*') {
                return Err(wrong(&pair, "either both names end in *, or none does"));
            }
        }
        let bytes = |text: &String| text.as_bytes().to_vec();
        Ok(Self {
            patterns,
            rename: rename.iter().map(|(o, n)| (bytes(o), bytes(n))).collect(),
        })
    }

    /// Whether everything is meant, under its own name.
    #[must_use]
    pub(super) fn is_all(&self) -> bool {
        self.patterns.is_empty() && self.rename.is_empty()
    }

    /// Whether every key is meant.
    #[must_use]
    pub(super) fn is_every_key(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether keys may get other names.
    #[must_use]
    pub(super) fn renames(&self) -> bool {
        !self.rename.is_empty()
    }

    /// Whether this key is meant.
    #[must_use]
    pub(super) fn takes(&self, key: &Head) -> bool {
        self.takes_name(key.db, &key.name)
    }

    /// Whether the key of this name is meant.
    #[must_use]
    pub(super) fn takes_name(&self, db: u32, name: &[u8]) -> bool {
        self.patterns.is_empty()
            || self.patterns.iter().any(|pattern| {
                pattern.db.is_none_or(|own| own == db)
                    && pattern.glob.as_ref().is_none_or(|g| matches(g, name))
            })
    }

    /// What every name begins with that is meant, where one pattern says so: `document:` of `document:*`.
    /// Empty for a pattern that is a whole name.
    #[must_use]
    pub(super) fn stem(&self) -> Vec<u8> {
        let [
            Pattern {
                glob: Some(glob), ..
            },
        ] = self.patterns.as_slice()
        else {
            return Vec::new();
        };
        let mut stem = Vec::new();
        let mut rest = glob.as_slice();
        loop {
            match rest {
                [] => return Vec::new(),
                [b'*' | b'?' | b'[', ..] => return stem,
                [b'\\', literal, after @ ..] | [literal, after @ ..] => {
                    stem.push(*literal);
                    rest = after;
                }
            }
        }
    }

    /// What the key is called afterwards.
    #[must_use]
    pub(super) fn name(&self, name: &[u8]) -> Vec<u8> {
        for (old, new) in &self.rename {
            match (old.strip_suffix(b"*"), new.strip_suffix(b"*")) {
                (Some(old), Some(new)) => {
                    if let Some(rest) = name.strip_prefix(old) {
                        return [new, rest].concat();
                    }
                }
                _ if old == name => return new.clone(),
                _ => {}
            }
        }
        name.to_vec()
    }
}

/// What one step of a pattern wants, and the pattern after it.
enum Step<'p> {
    Any(&'p [u8]),
    One(bool, &'p [u8]),
}

/// Whether `name` matches Redis's kind of pattern: `* ? [a-z] [^a] \x`. Goes back to the last `*` alone,
/// so that no pattern takes long.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match pattern.split_first() {
            None if name.is_empty() => return true,
            None => Step::One(false, pattern),
            Some((b'*', rest)) => Step::Any(rest),
            Some((first, rest)) => match name.first() {
                None => return false,
                Some(byte) => one(*first, rest, *byte),
            },
        };
        match step {
            Step::Any(rest) => {
                retry = Some((rest, name));
                pattern = rest;
            }
            Step::One(true, rest) => {
                pattern = rest;
                name = name.get(1..).unwrap_or_default();
            }
            Step::One(false, _) => match retry {
                Some((after, from)) if !from.is_empty() => {
                    name = from.get(1..).unwrap_or_default();
                    retry = Some((after, name));
                    pattern = after;
                }
                _ => return false,
            },
        }
    }
}

fn one(first: u8, rest: &[u8], byte: u8) -> Step<'_> {
    match first {
        b'?' => Step::One(true, rest),
        b'\\' => match rest.split_first() {
            Some((literal, rest)) => Step::One(*literal == byte, rest),
            None => Step::One(byte == b'\\', rest),
        },
        b'[' => class(rest, byte),
        literal => Step::One(literal == byte, rest),
    }
}

fn class(mut rest: &[u8], byte: u8) -> Step<'_> {
    let inverted = rest.first() == Some(&b'^');
    if inverted {
        rest = rest.get(1..).unwrap_or_default();
    }
    let mut found = false;
    loop {
        match rest {
            [] => break,
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [b'\\', literal, after @ ..] => {
                found |= *literal == byte;
                rest = after;
            }
            [from, b'-', to, after @ ..] => {
                let (low, high) = (from.min(to), from.max(to));
                found |= (low..=high).contains(&&byte);
                rest = after;
            }
            [literal, after @ ..] => {
                found |= *literal == byte;
                rest = after;
            }
        }
    }
    Step::One(found != inverted, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, name, expected) in [
            ("session:*", "session:1", true),
            ("session:*", "sessio:1", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hxllo", false),
            ("[", "[", false),
            ("a", "ab", false),
            ("ab", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        // Many stars over a long name: in no time.
        assert!(!matches(&b"*a".repeat(50), &[b'a'; 49]));
        assert!(matches(&b"*a".repeat(50), &[b'a'; 5000]));
    }

    #[test]
    fn what_every_selected_name_begins_with() {
        for (pattern, stem) in [
            ("document:*", "document:"),
            ("db=2,document:*:text", "document:"),
            ("a\\*b?c", "a*b"),
            ("a[bc]d", "a"),
            ("*", ""),
            ("document:7", ""),
            ("db=2", ""),
            ("a\\", ""),
        ] {
            let selection = Selection::parse(&[pattern.to_owned()], &[]).unwrap();
            assert_eq!(selection.stem(), stem.as_bytes(), "{pattern}");
        }
        let several = ["a*".to_owned(), "b*".to_owned()];
        assert_eq!(Selection::parse(&several, &[]).unwrap().stem(), b"");
    }

    #[test]
    fn databases_and_names() {
        let head = |db, name: &str| Head {
            db,
            name: name.into(),
            expires_ms: None,
            idle_seconds: None,
            frequency: None,
            kind: 0,
        };
        let select = ["db=2,a*".to_owned(), "b".to_owned()];
        let rename = [
            ("a*".to_owned(), "old:a*".to_owned()),
            ("b".to_owned(), "c".to_owned()),
        ];
        let selection = Selection::parse(&select, &rename).unwrap();
        assert!(selection.takes(&head(2, "a1")));
        assert!(!selection.takes(&head(0, "a1")));
        assert!(selection.takes(&head(0, "b")));
        assert_eq!(selection.name(b"a1"), b"old:a1");
        assert_eq!(selection.name(b"b"), b"c");
        assert_eq!(selection.name(b"bb"), b"bb");
        for wrong in ["", "db=", "db=x", "db=1,"] {
            assert!(
                Selection::parse(&[wrong.to_owned()], &[]).is_err(),
                "{wrong}"
            );
        }
        assert!(Selection::parse(&[], &[("a*".to_owned(), "b".to_owned())]).is_err());
    }
}
