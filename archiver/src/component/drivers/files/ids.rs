//! The files below a path, as ids that a reconcile compares with rows.

use crate::component::Context;
use crate::{Error, Result};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The paths of regular files below `part`, relative to it. Without a part, below the only path.
pub(in crate::component::drivers) fn list(
    paths: &[PathBuf],
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
    if !plain || !paths.iter().any(|path| root.starts_with(path)) {
        return Err(Error::invalid(
            "reconcile_part_unknown",
            format!(
                "\"{}\" is not within the paths of \"{}\"",
                root.display(),
                context.component
            ),
        ));
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
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let own = path.strip_prefix(root).unwrap_or(&path);
                visit(String::from_utf8_lossy(own.as_os_str().as_bytes()).into_owned())?;
            }
        }
    }
    Ok(())
}
