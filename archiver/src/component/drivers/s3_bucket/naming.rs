//! Names of versions within a backup: `<key>/@<version>`, whatever bytes a key has.
//!
//! A key may begin with `/`, end with it, hold `//`, `.` and `..`; a path may not. Parts of keys never begin
//! with `@`, so that no version is taken for a part.

use crate::{Error, Result};
use std::fmt::Write as _;

/// Stands for the version where the server knows none.
const NO_VERSION: &str = "null";

fn escaped(part: &str, out: &mut String) {
    let special = matches!(part, "" | "." | "..");
    if part.is_empty() {
        out.push('%');
    }
    for (at, letter) in part.char_indices() {
        match letter {
            '%' | '\0' | '/' => {
                let _ = write!(out, "%{:02X}", u32::from(letter));
            }
            '@' if at == 0 => out.push_str("%40"),
            '.' if special => out.push_str("%2E"),
            other => out.push(other),
        }
    }
}

/// The path of a version below `root`.
pub(super) fn path(root: &str, key: &str, version: Option<&str>) -> Vec<u8> {
    let mut out = String::with_capacity(root.len() + key.len() + 40);
    out.push_str(root);
    for part in key.split('/') {
        out.push('/');
        escaped(part, &mut out);
    }
    out.push_str("/@");
    for letter in version.unwrap_or(NO_VERSION).chars() {
        match letter {
            '%' | '\0' | '/' => {
                let _ = write!(out, "%{:02X}", u32::from(letter));
            }
            other => out.push(other),
        }
    }
    out.into_bytes()
}

/// The key and the version that a path below `root` stands for.
///
/// # Errors
/// Kind Data, `s3_entry`.
pub(super) fn parse(root: &str, path: &[u8]) -> Result<(String, String)> {
    let malformed = || {
        let path = String::from_utf8_lossy(path);
        Error::data(
            "s3_entry",
            format!("the backup's entry \"{path}\" is no version of an object"),
        )
    };
    let text = std::str::from_utf8(path).map_err(|_| malformed())?;
    let below = text
        .strip_prefix(root)
        .and_then(|text| text.strip_prefix('/'));
    let (key, version) = below
        .and_then(|below| below.rsplit_once("/@"))
        .ok_or_else(malformed)?;
    let mut parts = Vec::new();
    for part in key.split('/') {
        parts.push(match part {
            "%" => String::new(),
            part => plain(part).ok_or_else(malformed)?,
        });
    }
    let version = plain(version).ok_or_else(malformed)?;
    Ok((parts.join("/"), version))
}

fn plain(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '%' => {
                let digits = [rest.next()?, rest.next()?].map(|digit| digit.to_digit(16));
                let [Some(high), Some(low)] = digits else {
                    return None;
                };
                out.push(char::from_u32(high * 16 + low)?);
            }
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::component::check_path;
    use proptest::prelude::*;

    #[test]
    fn every_key_has_a_path_of_its_own() {
        let long = "x".repeat(1024);
        let keys = [
            "a",
            "a/",
            "/a",
            "//",
            "/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "@v",
            "a/@v",
            "%",
            "%40v",
            "a\nb",
            "a\0b",
            "\u{1F600}/\u{e9}",
            "a/b",
            "a/%",
            "a%2Fb",
            &long,
        ];
        let mut seen = std::collections::BTreeSet::new();
        for key in keys {
            for version in ["null", "v", "a/b", "@", "%2F"] {
                let path = path("objects", key, Some(version));
                check_path(&path).unwrap();
                let parsed = parse("objects", &path).unwrap();
                assert_eq!(parsed, (key.to_owned(), version.to_owned()));
                assert!(seen.insert(path));
            }
        }
        for bad in [
            "objects/a",
            "other/a/@v",
            "objects/%4/@v",
            "objects",
            "objects/%zz/@v",
        ] {
            let error = parse("objects", bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "s3_entry", "{bad}");
        }
        assert!(parse("objects", b"objects/\xff/@v").is_err());
    }

    proptest! {
        #[test]
        fn names_come_back(key in ".{0,40}", version in ".{0,20}") {
            let path = path("r/x", &key, Some(&version));
            prop_assert!(check_path(&path).is_ok());
            prop_assert_eq!(parse("r/x", &path).unwrap(), (key, version));
        }
    }
}
