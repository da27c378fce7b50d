//! The files of a backup, put back where the nodes can read them.

use super::manifest::{FILES, Manifest, Selection};
use super::place::give;
use crate::component::{Context, Entry, EntryKind, Source, content_error};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How deep directories of a repository are nested, at most.
const DEPTH_MAX: usize = 8;

/// Writes the repository that `selection` needs to `folder`, which is made. Who may read it is what
/// the directory above says: the nodes see that one.
///
/// # Errors
/// The source's; those of the file system; kind Data, `elasticsearch_manifest`, for paths that are none.
pub(super) fn write(
    context: &Context<'_>,
    source: &dyn Source,
    manifest: &Manifest,
    selection: &Selection,
    folder: &Path,
) -> Result<u64> {
    let above = folder.parent().unwrap_or(folder);
    let owner = std::fs::metadata(above).map_err(|e| writing(above, e))?;
    let mode = (owner.mode() & 0o755) | 0o700;
    let left_out = left_out(manifest, selection);
    let mut made = BTreeSet::new();
    let make = |path: &Path, made: &mut BTreeSet<PathBuf>| -> Result<()> {
        if made.insert(path.to_owned()) {
            let mut builder = std::fs::DirBuilder::new();
            builder
                .mode(mode)
                .create(path)
                .map_err(|e| writing(path, e))?;
            give(path, &owner);
        }
        Ok(())
    };
    make(folder, &mut made)?;
    let mut bytes = 0;
    for entry in source.entries() {
        context.cancel.check()?;
        let entry = entry?;
        let Some(parts) = parts_of(&entry)? else {
            continue;
        };
        if parts
            .windows(2)
            .any(|pair| matches!(pair, [a, id] if a == "indices" && left_out.contains(id.as_str())))
        {
            continue;
        }
        let mut path = folder.to_owned();
        for (n, part) in parts.iter().enumerate() {
            path.push(part);
            if n + 1 < parts.len() {
                make(&path, &mut made)?;
            }
        }
        let mut options = File::options();
        options.write(true).create_new(true).mode(mode & 0o666);
        let mut file = options.open(&path).map_err(|e| writing(&path, e))?;
        let mut content = source.read(&entry.path)?;
        bytes += std::io::copy(&mut content, &mut file)
            .map_err(|e| content_error(format!("could not write \"{}\"", path.display()), e))?;
        give(&path, &owner);
    }
    Ok(bytes)
}

/// The parts of the path of a file of the repository.
fn parts_of(entry: &Entry) -> Result<Option<Vec<String>>> {
    let Some(path) = entry.path.strip_prefix(FILES.as_bytes()) else {
        return Ok(None);
    };
    let strange = || {
        Error::data(
            "elasticsearch_manifest",
            format!(
                "\"{}\" of the backup is no file of a snapshot",
                String::from_utf8_lossy(&entry.path)
            ),
        )
    };
    let path = std::str::from_utf8(path).map_err(|_| strange())?;
    let parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    let bad = |part: &String| part.is_empty() || part == ".." || part == "." || part.contains('\0');
    if parts.len() > DEPTH_MAX || parts.iter().any(bad) || entry.kind != EntryKind::File {
        return Err(strange());
    }
    Ok(Some(parts))
}

/// Folders of indices that are not asked for.
fn left_out<'m>(manifest: &'m Manifest, selection: &Selection) -> BTreeSet<&'m str> {
    let wanted: BTreeSet<&String> = selection
        .wanted
        .iter()
        .flat_map(|wanted| wanted.indices.iter().map(|(from, _)| from))
        .collect();
    let others = manifest
        .indices
        .iter()
        .filter(|(name, _)| !wanted.contains(name));
    others.map(|(_, index)| index.folder.as_str()).collect()
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("could not write to \"{}\"", path.display()), error).with_hint(
        "pgark must be able to write to repository_dir, and the nodes to read what it writes there.",
    )
}
