//! Where the paths of a backup go on this host.

use crate::repository::format::manifest::{PathText, Tablespace};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Where captured configuration from outside the data directory goes.
pub const CONFIG_DIRECTORY: &str = "pgark_config";

/// The target directory and its tablespaces.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The data directory to be.
    pub target: PathBuf,
    /// Tablespaces outside it, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

impl Destination {
    /// Places `tablespaces` by `map`, whose keys are OIDs or original paths; unmapped ones go
    /// where they were.
    ///
    /// # Errors
    /// Kind Invalid: relative paths, a map entry that fits no tablespace, two for one, a place within
    /// the target directory or around it, two tablespaces at one place.
    pub fn new(
        target: &Path,
        tablespaces: &[Tablespace],
        map: &BTreeMap<String, PathBuf>,
    ) -> Result<Self> {
        let invalid = |message: String| {
            Error::invalid("tablespace_map", message).with_hint(
                "Give every tablespace a place of its own with --tablespace-map OLD=NEW.",
            )
        };
        if !target.is_absolute() {
            return Err(Error::invalid(
                "target_relative",
                "the target directory must be an absolute path",
            ));
        }
        // As paths: a slash more or less does not make it another directory.
        let names = |name: &String, t: &Tablespace| {
            Path::new(name) == Path::new(&t.path) || *name == t.oid.to_string()
        };
        let known = |name: &String| tablespaces.iter().any(|t| names(name, t));
        if let Some(unknown) = map.keys().find(|name| !known(name)) {
            return Err(invalid(format!("the backup has no tablespace \"{unknown}\""))
                .with_hint("Name a tablespace by its original path or its OID; \"pgark restore --dry-run\" lists them."));
        }
        let mut places = BTreeMap::new();
        for tablespace in tablespaces {
            let mut mapped = map.iter().filter(|(name, _)| names(name, tablespace));
            let place = mapped.next().map(|(_, place)| place.clone());
            if mapped.any(|(_, other)| Some(other) != place.as_ref()) {
                return Err(invalid(format!(
                    "tablespace {} is mapped to two places",
                    tablespace.oid
                )));
            }
            let place = place.unwrap_or_else(|| PathBuf::from(&tablespace.path));
            let plain =
                place.is_absolute() && !place.components().any(|c| c == Component::ParentDir);
            if !plain {
                return Err(invalid(format!(
                    "\"{}\" is not an absolute path",
                    place.display()
                )));
            }
            if place.starts_with(target) {
                return Err(invalid(format!(
                    "tablespace {} must not lie within the target directory",
                    tablespace.oid
                )));
            }
            if target.starts_with(&place) {
                return Err(invalid(format!(
                    "the target directory must not lie within \"{}\", the place of tablespace {}",
                    place.display(),
                    tablespace.oid
                )));
            }
            if places.values().any(|other| other == &place) {
                return Err(invalid(format!(
                    "two tablespaces would share \"{}\"",
                    place.display()
                )));
            }
            places.insert(tablespace.oid, place);
        }
        Ok(Self {
            target: target.to_path_buf(),
            tablespaces: places,
        })
    }

    /// Where a path of the data directory goes.
    ///
    /// # Errors
    /// Kind Data for a path that would leave the target: a damaged or hostile file table.
    pub fn path(&self, path: &PathText) -> Result<PathBuf> {
        let relative = decode(path)?;
        let plain = relative
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        if !plain || relative.as_os_str().is_empty() {
            return Err(Error::data(
                "path_malformed",
                format!("the backup holds a malformed path \"{}\"", path.0),
            ));
        }
        if let Some(place) = oid_of(&relative).and_then(|oid| self.tablespaces.get(&oid)) {
            let within: PathBuf = relative.components().skip(2).collect();
            return Ok(place.join(within));
        }
        Ok(self.target.join(relative))
    }

    /// Where captured configuration goes: below [`CONFIG_DIRECTORY`], by its original path.
    ///
    /// # Errors
    /// Kind Data for a malformed path.
    pub fn config_path(&self, path: &PathText) -> Result<PathBuf> {
        let original = decode(path)?;
        let below: PathBuf = original
            .components()
            .filter(|c| matches!(c, Component::Normal(_)))
            .collect();
        if below.as_os_str().is_empty() || original.components().any(|c| c == Component::ParentDir)
        {
            return Err(Error::data(
                "path_malformed",
                format!("the backup holds a malformed path \"{}\"", path.0),
            ));
        }
        Ok(self.target.join(CONFIG_DIRECTORY).join(below))
    }
}

/// The tablespace that a path of the data directory leads into.
///
/// # Errors
/// Kind Data when it is malformed.
pub(super) fn tablespace_of(path: &PathText) -> Result<Option<u32>> {
    decode(path).map(|path| oid_of(&path))
}

fn oid_of(relative: &Path) -> Option<u32> {
    let mut parts = relative.components();
    let first = parts.next()?;
    let oid = parts.next()?.as_os_str().to_str()?;
    (first.as_os_str() == "pg_tblspc").then(|| oid.parse().ok())?
}

/// The path that `text` stands for.
///
/// # Errors
/// Kind Data when it is malformed.
pub(super) fn decode(text: &PathText) -> Result<PathBuf> {
    let Some(hex) = text.0.strip_prefix("hex:") else {
        return Ok(PathBuf::from(&text.0));
    };
    let malformed = || {
        Error::data(
            "path_malformed",
            format!("the backup holds a malformed path \"{}\"", text.0),
        )
    };
    let digit = |b: u8| char::from(b).to_digit(16);
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
        return Err(malformed());
    };
    let bytes = pairs.iter().map(|[a, b]| {
        let value = digit(*a)? * 16 + digit(*b)?;
        u8::try_from(value).ok().filter(|b| *b != 0)
    });
    let bytes: Option<Vec<u8>> = bytes.collect();
    Ok(PathBuf::from(OsString::from_vec(
        bytes.ok_or_else(malformed)?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_target() {
        let there = Destination::new(
            Path::new("/t"),
            &[Tablespace {
                oid: 7,
                path: "/old".into(),
            }],
            &BTreeMap::from([("/old".to_owned(), PathBuf::from("/new"))]),
        )
        .unwrap();
        let path = |text: &str| there.path(&PathText(text.to_owned()));
        assert_eq!(path("base/1/2").unwrap(), Path::new("/t/base/1/2"));
        assert_eq!(
            path("pg_tblspc/7/PG_15_1/5/6").unwrap(),
            Path::new("/new/PG_15_1/5/6")
        );
        assert_eq!(path("hex:6261ff").unwrap().as_os_str().len(), 6);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "base/../../x",
            "hex:2e2e2f78",
            "hex:zz",
            "hex:6",
            "hex:00",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert_eq!(
            there
                .config_path(&PathText("/etc/postgresql/15/main/pg_hba.conf".into()))
                .unwrap(),
            Path::new("/t/pgark_config/etc/postgresql/15/main/pg_hba.conf")
        );
        assert!(there.config_path(&PathText("/etc/../x".into())).is_err());
    }

    #[test]
    fn maps_are_of_paths() {
        let tablespaces = [Tablespace {
            oid: 7,
            path: "/ts1".into(),
        }];
        let place = |map: &[(&str, &str)]| {
            let map = map.iter();
            let map = map.map(|(old, new)| ((*old).to_owned(), PathBuf::from(new)));
            Destination::new(Path::new("/data/t"), &tablespaces, &map.collect())
                .map(|d| d.tablespaces[&7].clone())
                .map_err(|e| e.code())
        };
        for old in ["/ts1", "/ts1/", "//ts1", "7"] {
            assert_eq!(place(&[(old, "/new")]), Ok("/new".into()), "{old}");
        }
        assert_eq!(
            place(&[("7", "/new"), ("/ts1/", "/new/")]),
            Ok("/new".into())
        );
        let refused = Err("tablespace_map");
        assert_eq!(place(&[("7", "/new"), ("/ts1/", "/other")]), refused);
        assert_eq!(place(&[("/ts", "/new")]), refused);
        for around in ["/data", "/data/", "/data/t", "/", "/data/t/x"] {
            assert_eq!(place(&[("7", around)]), refused, "{around}");
        }
        assert_eq!(place(&[("7", "/data/t2")]), Ok("/data/t2".into()));
    }
}
