//! A restore into the directory of a server that is down.
//!
//! With `appendonly yes` a server loads its append-only file and ignores `dump.rdb`; when the append-only file
//! is missing, it starts empty. So the data set goes to where this server looks: into an append-only file
//! of its own as well, or, without one, an old append-only file is moved out of the way.

use super::aof;
use super::capture::{APPEND_ONLY, SNAPSHOT};
use super::connection::{Connection, Reply};
use super::restore::copy_out;
use super::select;
use super::settings::{Address, Settings};
use super::summary;
use crate::component::{Context, EntryKind, Request, Source};
use crate::{Error, Result};
use chrono::Utc;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Restores into `folder`.
///
/// # Errors
/// Kind Invalid, before anything was changed: `redis_running`, `component_not_empty`, `component_select`; those
/// of the source; kind Unavailable when the disk is full.
pub(super) fn restore(
    settings: &Settings,
    folder: &Path,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let append_only_alone =
        matches!(request.select.as_slice(), [one] if one == select::APPEND_ONLY);
    if !request.rename.is_empty() || !(request.select.is_empty() || append_only_alone) {
        return Err(Error::invalid(
            "component_select",
            "keys can be selected and renamed only in a running server",
        )
        .with_hint("Start the server, and restore without naming a directory."));
    }
    refuse_when_running(settings, folder, context)?;
    // Every byte is looked at before anything is moved.
    let summary = summary::read(source.read(SNAPSHOT.as_bytes())?, context.scratch)?;
    let captured = captured_append_only(source)?;
    if append_only_alone && captured.is_empty() {
        return Err(Error::invalid(
            "component_select",
            "the backup holds no append-only file",
        ));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(folder)
        .map_err(|e| writing(folder, e))?;
    let occupied = occupied(folder)?;
    if let Some(first) = occupied.first()
        && !request.overwrite
    {
        return Err(Error::invalid(
            "component_not_empty",
            format!("\"{}\" is there already", first.display()),
        )
        .with_hint(format!(
            "Use {}: what is there is moved aside.",
            request.overwrite_options()
        )));
    }
    let mut lines = Vec::new();
    let now = Utc::now();
    for path in occupied {
        let aside = aof::aside(&path, now);
        std::fs::rename(&path, &aside).map_err(|e| writing(&path, e))?;
        lines.push(format!("moved {} to {}", path.display(), aside.display()));
    }
    let position = &source.point().position;
    let had = position
        .get("append_only")
        .and_then(serde_json::Value::as_bool);
    let append_only = append_only_alone || settings.append_only.or(had).unwrap_or(false);
    let major = position.get("major").and_then(serde_json::Value::as_u64);
    let mut place = Place::new(folder)?;
    if append_only_alone {
        for path in &captured {
            place.copy(source, path, &in_folder(path))?;
        }
        lines.push(format!(
            "restored the append-only file: {} files",
            captured.len()
        ));
    } else if append_only {
        match major {
            Some(0..=6) => place.copy(source, SNAPSHOT.as_bytes(), aof::NAME)?,
            _ => place.base(source)?,
        }
        lines.push(
            "wrote the data set as an append-only file, for a server with appendonly yes".into(),
        );
    }
    if !append_only_alone {
        // Last: a server without an append-only file looks for this one alone.
        place.copy(source, SNAPSHOT.as_bytes(), SNAPSHOT)?;
        let keys: u64 = summary.databases.values().map(|db| db.keys).sum();
        lines.push(format!(
            "wrote {} with {keys} keys",
            folder.join(SNAPSHOT).display()
        ));
    }
    if !append_only {
        lines.push(
            "the server must start with appendonly no: with appendonly yes it would ignore dump.rdb and \
             start empty (then set append_only = true and restore again)"
                .to_owned(),
        );
    }
    lines.extend(place.finish()?);
    Ok(lines)
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("could not write \"{}\"", path.display()), error)
}

/// A server that answers must not run on this directory.
pub(super) fn refuse_when_running(
    settings: &Settings,
    folder: &Path,
    context: &Context<'_>,
) -> Result<()> {
    let running = |why: &str| {
        Error::invalid(
            "redis_running",
            format!("a Redis server runs on \"{}\"", folder.display()),
        )
        .with_detail(why.to_owned())
        .with_hint("Stop it first: it would overwrite what is restored.")
    };
    let address = Address::parse(&settings.url)?;
    let mut connection = match Connection::open(settings, &address, context.cancel) {
        Ok(connection) => connection,
        Err(error) if error.code() == "redis_unreachable" => return Ok(()),
        // It is there, whatever it says.
        Err(error) => {
            return Err(running(&format!(
                "The server at {address} answers: {error}."
            )));
        }
    };
    let dir = match connection.ask(&["CONFIG", "GET", "dir"])? {
        Reply::Array(parts) => match parts.get(1) {
            Some(Reply::Bulk(Some(dir))) => {
                Some(PathBuf::from(String::from_utf8_lossy(dir).as_ref()))
            }
            _ => None,
        },
        _ => None,
    };
    let same = |a: &Path, b: &Path| {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        real(a) == real(b)
    };
    match dir {
        Some(dir) if same(&dir, folder) => Err(running(&format!(
            "The server at {address} has it as its dir."
        ))),
        Some(_) => Ok(()),
        // It does not say which: the component's own directory is its.
        None if settings
            .data_dir
            .as_deref()
            .is_some_and(|own| same(own, folder)) =>
        {
            Err(running(&format!("The server at {address} answers.")))
        }
        None => Ok(()),
    }
}

/// What a server would load from here, or what stands in our way.
fn occupied(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in [SNAPSHOT, aof::NAME, aof::DIRECTORY] {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok() {
            found.push(path);
        }
    }
    if let Some(layout) = aof::Layout::find(folder)? {
        let other = layout.directory != *folder && !found.contains(&layout.directory);
        if other {
            found.push(layout.directory);
        }
    }
    Ok(found)
}

/// The paths of the append-only file within the backup.
pub(super) fn captured_append_only(source: &dyn Source) -> Result<Vec<Vec<u8>>> {
    let prefix = format!("{APPEND_ONLY}/");
    let mut paths = Vec::new();
    for entry in source.entries() {
        let entry = entry?;
        if entry.kind == EntryKind::File && entry.path.starts_with(prefix.as_bytes()) {
            paths.push(entry.path);
        }
    }
    Ok(paths)
}

/// Where a file of the backup's append-only file goes.
pub(super) fn in_folder(path: &[u8]) -> String {
    let name = path.strip_prefix(APPEND_ONLY.as_bytes()).unwrap_or(path);
    let name = String::from_utf8_lossy(name);
    match name.trim_start_matches('/') {
        name if name == aof::NAME => name.to_owned(),
        name => format!("{}/{name}", aof::DIRECTORY),
    }
}

/// The directory that is written to, as its owner.
struct Place<'f> {
    folder: &'f Path,
    owner: (u32, u32),
    foreign: bool,
}

impl<'f> Place<'f> {
    fn new(folder: &'f Path) -> Result<Self> {
        let meta = std::fs::metadata(folder).map_err(|e| writing(folder, e))?;
        Ok(Self {
            folder,
            owner: (meta.uid(), meta.gid()),
            foreign: false,
        })
    }

    fn give(&mut self, path: &Path) {
        let (uid, gid) = self.owner;
        let mine = rustix::process::geteuid().as_raw() == uid;
        if std::os::unix::fs::chown(path, Some(uid), Some(gid)).is_err() && !mine {
            self.foreign = true;
        }
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        if !path.is_dir() {
            std::fs::DirBuilder::new()
                .mode(0o750)
                .create(&path)
                .map_err(|e| writing(&path, e))?;
            self.give(&path);
        }
        Ok(())
    }

    fn create(&mut self, name: &str) -> Result<(File, PathBuf)> {
        if let Some((directory, _)) = name.split_once('/') {
            self.directory(directory)?;
        }
        let path = self.folder.join(name);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o640);
        let file = options.open(&path).map_err(|e| writing(&path, e))?;
        self.give(&path);
        Ok((file, path))
    }

    fn copy(&mut self, source: &dyn Source, from: &[u8], to: &str) -> Result<()> {
        let (mut file, path) = self.create(to)?;
        let copied = copy_out(source, from, &mut file)
            .and_then(|_| file.sync_all().map_err(|e| writing(&path, e)));
        if copied.is_err() {
            // Half a file would be loaded.
            let _ = std::fs::remove_file(&path);
        }
        copied
    }

    /// The data set as the base of an append-only file. The manifest comes last: without it there is none.
    fn base(&mut self, source: &dyn Source) -> Result<()> {
        let base = format!("{}.1.base.rdb", aof::NAME);
        self.copy(
            source,
            SNAPSHOT.as_bytes(),
            &format!("{}/{base}", aof::DIRECTORY),
        )?;
        let name = format!("{}/{}.manifest", aof::DIRECTORY, aof::NAME);
        let (mut file, path) = self.create(&name)?;
        let text = aof::manifest_of_base(&base);
        std::io::Write::write_all(&mut file, text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|e| writing(&path, e))
    }

    /// Makes the names durable; what an operator has to do.
    fn finish(self) -> Result<Option<String>> {
        for path in [self.folder.join(aof::DIRECTORY), self.folder.to_owned()] {
            if path.is_dir() {
                File::open(&path)
                    .and_then(|folder| folder.sync_all())
                    .map_err(|e| writing(&path, e))?;
            }
        }
        let (uid, gid) = self.owner;
        Ok(self.foreign.then(|| {
            format!(
                "give the files to the server's user: chown -R {uid}:{gid} {}",
                self.folder.display()
            )
        }))
    }
}
