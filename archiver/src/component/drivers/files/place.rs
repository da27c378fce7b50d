//! Where the entries of a backup belong, and how to get there without being led elsewhere.
//!
//! The configured paths, and the directory that `--to` names, are the operator's and are resolved as any
//! path. Below them no symbolic link is followed: whoever owns a directory there could lead a restore
//! by root out of it.

use super::{Files, within};
use crate::component::Request;
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// See the module.
pub(super) struct Places {
    /// Path within the backup that the place is for, and the directory that stands in the place of its
    /// beginning, so many bytes of it.
    roots: Vec<Root>,
    pub(super) in_place: bool,
}

struct Root {
    prefix: Vec<u8>,
    base: PathBuf,
    strip: usize,
}

/// An entry's place: the directory, opened, and its name in it.
pub(super) struct Place {
    pub(super) directory: std::sync::Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
}

/// The directory that was opened last.
#[derive(Default)]
pub(super) struct Last(Option<(PathBuf, Vec<u8>, std::sync::Arc<OwnedFd>)>);

impl Places {
    /// # Errors
    /// Kind Invalid, `rename_unsupported`, `target_not_absolute`.
    pub(super) fn new(files: &Files, request: &Request) -> Result<Self> {
        if !request.rename.is_empty() {
            return Err(Error::invalid(
                "rename_unsupported",
                "files are restored under their own names",
            )
            .with_hint("--to puts them into another directory."));
        }
        let Some(to) = &request.to else {
            let roots = files.paths.iter().map(|path| {
                let prefix = within(path).to_vec();
                let base = path.parent().unwrap_or(Path::new("/")).to_owned();
                let strip = within(&base).len();
                Root {
                    prefix,
                    base,
                    strip,
                }
            });
            return Ok(Self {
                roots: roots.collect(),
                in_place: true,
            });
        };
        let base = PathBuf::from(to);
        if !base.is_absolute() {
            return Err(Error::invalid(
                "target_not_absolute",
                format!("\"{to}\" is no absolute path"),
            ));
        }
        Ok(Self {
            roots: vec![Root {
                prefix: Vec::new(),
                base,
                strip: 0,
            }],
            in_place: false,
        })
    }

    /// The directories that are written to.
    pub(super) fn bases(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(|root| root.base.as_path())
    }

    fn root(&self, path: &[u8]) -> Result<&Root> {
        let mut roots = self.roots.iter();
        let found = roots.find(|root| {
            let rest = path.strip_prefix(root.prefix.as_slice());
            rest.is_some_and(|rest| {
                root.prefix.is_empty() || rest.is_empty() || rest.starts_with(b"/")
            })
        });
        found.ok_or_else(|| {
            Error::invalid(
                "entry_without_place",
                format!(
                    "\"/{}\" of the backup lies outside of the configured paths",
                    String::from_utf8_lossy(path)
                ),
            )
            .with_detail("The backup was made with other paths.")
            .with_hint(
                "Restore to another directory with --to, or correct paths in [component.NAME].",
            )
        })
    }

    /// Whether there is a place for `path`.
    ///
    /// # Errors
    /// Kind Invalid, `entry_without_place`.
    pub(super) fn check(&self, path: &[u8]) -> Result<()> {
        self.root(path).map(drop)
    }

    /// How much of `path` belongs to the configured path. In place only.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(super) fn root_len(&self, path: &[u8]) -> Result<usize> {
        self.root(path).map(|root| root.prefix.len())
    }

    /// Where `path` of the backup belongs, for a message.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        let found = self.root(path).map(|root| {
            let rest = path.get(root.strip..).unwrap_or_default();
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            root.base.join(OsStr::from_bytes(rest))
        });
        match found {
            Ok(place) => place.display().to_string(),
            Err(_) => format!("/{}", String::from_utf8_lossy(path)),
        }
    }

    /// Opens the directory of `path`, making what is missing when `make`. `None`: it is not there.
    ///
    /// # Errors
    /// Kind Invalid: `entry_without_place`, `symlink_in_target`; that of the file system.
    pub(super) fn find(&self, path: &[u8], make: bool, last: &mut Last) -> Result<Option<Place>> {
        let root = self.root(path)?;
        let rest = path.get(root.strip..).unwrap_or_default();
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let (parent, name) = match rest.iter().rposition(|b| *b == b'/') {
            Some(at) => (
                rest.get(..at).unwrap_or_default(),
                rest.get(at.saturating_add(1)..).unwrap_or_default(),
            ),
            None => (&[][..], rest),
        };
        let name = name.to_vec();
        if let Some((base, held, directory)) = &last.0
            && *base == root.base
            && held == parent
        {
            let directory = std::sync::Arc::clone(directory);
            return Ok(Some(Place { directory, name }));
        }
        let Some(directory) = root.open(parent, make)? else {
            return Ok(None);
        };
        let directory = std::sync::Arc::new(directory);
        last.0 = Some((
            root.base.clone(),
            parent.to_vec(),
            std::sync::Arc::clone(&directory),
        ));
        Ok(Some(Place { directory, name }))
    }
}

impl Root {
    fn open(&self, parent: &[u8], make: bool) -> Result<Option<OwnedFd>> {
        let failed = |e: Errno| {
            let below = String::from_utf8_lossy(parent);
            let path = self.base.join(&*below);
            if matches!(e, Errno::LOOP | Errno::NOTDIR) {
                return Error::invalid(
                    "symlink_in_target",
                    format!(
                        "\"{}\" leads over something that is no directory",
                        path.display()
                    ),
                )
                .with_detail("A symbolic link there is not followed.")
                .with_hint("Move it away, or restore to another directory with --to.");
            }
            Error::io(
                format!("could not open directory \"{}\"", path.display()),
                e.into(),
            )
        };
        if make {
            std::fs::create_dir_all(&self.base).map_err(|e| {
                Error::io(
                    format!("could not make directory \"{}\"", self.base.display()),
                    e,
                )
            })?;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let mut directory = match rustix::fs::openat(CWD, &self.base, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(failed)?,
        };
        for part in parent.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let part = OsStr::from_bytes(part);
            let next = rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty());
            directory = match next {
                Err(Errno::NOENT) if make => {
                    match rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(failed(e)),
                    }
                    rustix::fs::openat(&directory, part, DIRECTORY, Mode::empty())
                        .map_err(failed)?
                }
                Err(Errno::NOENT) => return Ok(None),
                other => other.map_err(failed)?,
            };
        }
        Ok(Some(directory))
    }
}

impl Place {
    pub(super) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// What is there, symbolic links not followed.
    ///
    /// # Errors
    /// That of the file system.
    pub(super) fn stat(&self) -> Result<Option<Stat>> {
        stat_in(self.directory.as_fd(), self.name())
    }
}

/// What `name` in `directory` is, symbolic links not followed; `None`: nothing.
///
/// # Errors
/// That of the file system.
pub(super) fn stat_in(directory: impl AsFd, name: &OsStr) -> Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(Error::io(
            format!("could not examine \"{}\"", name.display()),
            e.into(),
        )),
    }
}

/// The extended attributes of `name` in `directory`, in order of their names, symbolic links not
/// followed. What the file system does not support is none.
///
/// # Errors
/// That of the file system.
pub(super) fn xattrs(
    directory: impl AsFd,
    name: &OsStr,
) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use std::os::fd::AsRawFd as _;
    // There is no call that takes a directory and a name: the kernel's own link to the directory does.
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    let path = path.as_slice();
    let mut names = vec![0; 512];
    let len = loop {
        match rustix::fs::llistxattr(path, &mut *names) {
            Ok(len) => break len,
            Err(Errno::RANGE) if names.len() < 1 << 17 => names.resize(names.len() * 4, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
    };
    let mut found = Vec::new();
    let names = names.get(..len).unwrap_or_default();
    for attribute in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 256];
        let len = loop {
            match rustix::fs::lgetxattr(path, attribute, &mut *value) {
                Ok(len) => break Some(len),
                Err(Errno::RANGE) if value.len() < 1 << 17 => value.resize(value.len() * 4, 0),
                // Taken away meanwhile, or not for us: trusted.* is root's.
                Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => break None,
                Err(e) => return Err(e.into()),
            }
        };
        if let Some(len) = len {
            value.truncate(len);
            found.push((attribute.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}
