//! The file `tablespace_map` of a base backup: one `<oid> <path>` line per tablespace, with `\n`,
//! `\r` and `\` in the path escaped by a backslash before them (`do_pg_backup_start` in `xlog.c`,
//! `read_tablespace_map` in `xlogrecovery.c`).

use crate::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where the tablespaces of a backup were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// OID (the name of the link in `pg_tblspc`) and location. Relative only for an in-place
    /// tablespace.
    pub entries: Vec<(u32, PathBuf)>,
}

fn unreadable(detail: impl std::fmt::Display) -> Error {
    Error::data("tablespace_map_unreadable", "tablespace_map is not valid")
        .with_detail(format!("{detail}."))
}

impl TablespaceMap {
    /// Parses the file. An empty one has no entries.
    ///
    /// # Errors
    /// Kind Data, code `tablespace_map_unreadable`: a line that is no `<oid> <path>`, an OID twice,
    /// no line break at the end.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut entries: Vec<(u32, PathBuf)> = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for &byte in bytes {
            match byte {
                _ if escaped => {
                    line.push(byte);
                    escaped = false;
                }
                b'\\' => escaped = true,
                b'\n' | b'\r' if line.is_empty() => {}
                b'\n' | b'\r' => {
                    let (oid, path) = parse_line(&line)?;
                    if entries.iter().any(|(other, _)| *other == oid) {
                        return Err(unreadable(format_args!("It names tablespace {oid} twice")));
                    }
                    entries.push((oid, path));
                    line.clear();
                }
                _ => line.push(byte),
            }
        }
        if escaped || !line.is_empty() {
            return Err(unreadable("It ends within a line"));
        }
        Ok(Self { entries })
    }

    /// The file's bytes, as Postgres writes them.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (oid, path) in &self.entries {
            bytes.extend_from_slice(format!("{oid} ").as_bytes());
            for &byte in path.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

fn parse_line(line: &[u8]) -> Result<(u32, PathBuf)> {
    let shown = || {
        unreadable(format_args!(
            "A line reads {:?}",
            String::from_utf8_lossy(line)
        ))
    };
    let space = line.iter().position(|b| *b == b' ').ok_or_else(shown)?;
    let (oid, path) = line.split_at(space);
    let path = path.get(1..).unwrap_or_default();
    let digits = std::str::from_utf8(oid).ok();
    let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|d| d.parse().ok()) {
        Some(oid) if oid != 0 && !path.is_empty() && !path.contains(&0) => {
            Ok((oid, PathBuf::from(OsString::from_vec(path.to_vec()))))
        }
        _ => Err(shown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let map = TablespaceMap::parse(b"16384 /srv/a b\n16385 /x\\\ny\\\\z\\\r\n").unwrap();
        let expected = [(16384, "/srv/a b"), (16385, "/x\ny\\z\r")];
        let expected = expected.map(|(oid, path)| (oid, PathBuf::from(path)));
        assert_eq!(map.entries, expected);
        assert_eq!(map.render(), b"16384 /srv/a b\n16385 /x\\\ny\\\\z\\\r\n");
        assert_eq!(TablespaceMap::parse(b"").unwrap(), TablespaceMap::default());
    }

    #[test]
    fn damage_is_an_error() {
        for bad in [
            "16384 /a",
            "16384 \n",
            "16384\n",
            " /a\n",
            "x /a\n",
            "0 /a\n",
            "-1 /a\n",
            "+1 /a\n",
            "4294967296 /a\n",
            "1 /a\\",
            "1 /a\n1 /b\n",
            "1 /a\0b\n",
        ] {
            let error = TablespaceMap::parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "tablespace_map_unreadable", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>()) {
            let _ = TablespaceMap::parse(&bytes);
        }

        #[test]
        fn round_trips(paths in proptest::collection::btree_map(
            1_u32.., proptest::collection::vec(1_u8.., 1..40), 0..5))
        {
            let entries = paths
                .into_iter()
                .map(|(oid, path)| (oid, PathBuf::from(OsString::from_vec(path))))
                .collect();
            let map = TablespaceMap { entries };
            prop_assert_eq!(TablespaceMap::parse(&map.render()).unwrap(), map);
        }
    }
}
