//! The files below a path, as ids that a reconcile compares with rows.

use super::rules::{Rules, Where};
use super::within;
use crate::component::Context;
use crate::component::drivers::id;
use crate::{Error, Result};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The paths of regular files below `part`, relative to it, of those that a backup takes. Without a part,
/// below the only path.
pub(in crate::component::drivers) fn list(
    paths: &[PathBuf],
    rules: &Rules,
    context: &Context<'_>,
    part: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let root = match (part, paths) {
        ("", [only]) => only.as_path(),
        ("", _) => {
            return Err(Error::invalid(
                "reconcile_part_unknown",
                format!("\"{}\" has several paths", context.component),
            )
            .with_hint("Name one of them as collection in [component.NAME.reconcile]."));
        }
        (part, _) => Path::new(part),
    };
    let plain = root
        .components()
        .all(|c| !matches!(c, std::path::Component::ParentDir));
    let top = paths.iter().find(|path| root.starts_with(path));
    let Some(top) = top.filter(|_| plain) else {
        return Err(Error::invalid(
            "reconcile_part_unknown",
            format!(
                "\"{}\" is not within the paths of \"{}\"",
                root.display(),
                context.component
            ),
        ));
    };
    let root_len = within(top).len();
    let excluded = |path: &Path| {
        let path = within(path);
        rules.excludes(Where { path, root_len })
    };
    let mut above = root.ancestors().take_while(|path| *path != top.as_path());
    if above.any(excluded) {
        return Ok(());
    }
    // Directories that are to be read; files are handed on at once.
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        context.cancel.check()?;
        let failed = |e| Error::io(format!("could not read \"{}\"", directory.display()), e);
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            if excluded(&path) {
                continue;
            }
            let at = Where {
                path: within(&path),
                root_len,
            };
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() && rules.includes(at) {
                let own = path.strip_prefix(root).unwrap_or(&path);
                visit(id::text(own.as_os_str().as_bytes()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelToken;
    use std::ffi::OsStr;
    use std::fs;

    #[test]
    fn names_stay_apart_and_what_no_backup_takes_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("docs");
        for folder in ["in", "cache/deep"] {
            fs::create_dir_all(top.join(folder)).unwrap();
        }
        let odd = [&b"in/odd-\xff"[..], b"in/odd-\xfe"];
        let names = [
            &b"7"[..],
            b"note.tmp",
            b"in/8",
            b"cache/deep/9",
            odd[0],
            odd[1],
        ];
        for name in names {
            fs::write(top.join(OsStr::from_bytes(name)), "x").unwrap();
        }
        let rules = Rules::new(&[], &["*.tmp".to_owned(), "cache".to_owned()], &[]).unwrap();
        let ids = |part: &str| {
            let cancel = CancelToken::default();
            let context = Context {
                component: "docs",
                cancel: &cancel,
                scratch: directory.path(),
            };
            let mut ids = Vec::new();
            let paths = [top.clone()];
            let listed = list(&paths, &rules, &context, part, &mut |id| {
                ids.push(id);
                Ok(())
            });
            ids.sort();
            listed.map(|()| ids)
        };
        let all = ["7", "in/8", "in/odd-\\xfe", "in/odd-\\xff"];
        assert_eq!(ids("").unwrap(), all);
        let part = |below: &str| top.join(below).to_str().unwrap().to_owned();
        assert_eq!(ids(&part("in")).unwrap(), ["8", "odd-\\xfe", "odd-\\xff"]);
        assert_eq!(ids(&part("cache/deep")).unwrap(), Vec::<String>::new());
        let outside = ids(&part("../other")).unwrap_err();
        assert_eq!(outside.code(), "reconcile_part_unknown");
    }
}
