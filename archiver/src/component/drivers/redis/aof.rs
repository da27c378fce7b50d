//! Append-only files: which belong together, whether they are whole, and how they are cut back to the last
//! whole command (Redis, `src/aof.c`; since 7.0 several files and a manifest, before one file).

mod commands;
mod repair;

pub use commands::{Scan, scan};
pub use repair::{Repair, repair};

use super::rdb;
use crate::{Error, Result};
use chrono::{DateTime, NaiveDateTime, Utc};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Redis's own name for the directory and for the files in it, unless `appenddirname` and
/// `appendfilename` say otherwise.
pub const DIRECTORY: &str = "appendonlydir";
/// As [`DIRECTORY`].
pub const NAME: &str = "appendonly.aof";
const MANIFEST_ENDING: &str = ".manifest";
/// What a restore puts behind the name of what it moves aside, and the time after it.
const ASIDE: &str = ".before-";
const ASIDE_TIME: &str = "%Y%m%dT%H%M%S%3fZ";
/// A manifest names a handful of files.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What a file of the manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The data set to begin with.
    Base,
    /// Commands since.
    Increment,
    /// No longer needed.
    History,
}

/// A line of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file, in the manifest's directory.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The line.
    line: String,
}

/// The files of one data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where they are.
    pub directory: PathBuf,
    /// The manifest's name; `None`: one file, as before 7.0.
    pub manifest: Option<String>,
    /// In the order in which they are loaded, without history.
    pub parts: Vec<Part>,
}

impl Layout {
    /// Finds the append-only file in the server's directory; `None`: there is none.
    ///
    /// # Errors
    /// Kind Data, `aof_manifest`; kind Unavailable when it cannot be read.
    pub fn find(data_dir: &Path) -> Result<Option<Self>> {
        let mut manifests = Vec::new();
        for entry in read_dir(data_dir)? {
            let path = entry.path();
            if path.is_dir() && !is_aside(&path) {
                // A directory that we may not read is not the server's.
                let names = std::fs::read_dir(&path).into_iter().flatten().flatten();
                manifests.extend(names.map(|e| e.path()).filter(|p| is_manifest(p)));
            }
        }
        manifests.sort();
        match manifests.as_slice() {
            [] => {}
            [one] => return Self::read(one).map(Some),
            [one, other, ..] => {
                return Err(Error::data(
                    "aof_manifest",
                    format!("\"{}\" holds several append-only files", data_dir.display()),
                )
                .with_detail(format!(
                    "There are \"{}\" and \"{}\".",
                    one.display(),
                    other.display()
                ))
                .with_hint("Move away the one that the server does not use."));
            }
        }
        let single = Part {
            name: NAME.to_owned(),
            kind: Kind::Increment,
            line: String::new(),
        };
        Ok(data_dir.join(NAME).is_file().then(|| Self {
            directory: data_dir.to_owned(),
            manifest: None,
            parts: vec![single],
        }))
    }

    fn read(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
        let wrong = |why: &str| {
            Error::data(
                "aof_manifest",
                format!("the manifest \"{}\" is damaged: {why}", path.display()),
            )
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MANIFEST_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let mut parts = Vec::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            parts.push(parse_line(line).ok_or_else(|| wrong(line))?);
        }
        parts.retain(|part| part.kind != Kind::History);
        if parts.is_empty() {
            return Err(wrong("it names no file"));
        }
        let name = path.file_name().and_then(|name| name.to_str());
        Ok(Self {
            directory: path.parent().unwrap_or(path).to_owned(),
            manifest: Some(
                name.ok_or_else(|| wrong("its name is not UTF-8"))?
                    .to_owned(),
            ),
            parts,
        })
    }

    /// The files again, as they are now.
    ///
    /// # Errors
    /// As [`Layout::find`].
    pub fn again(&self) -> Result<Self> {
        match &self.manifest {
            Some(name) => Self::read(&self.directory.join(name)),
            None => Ok(self.clone()),
        }
    }

    /// The text of the manifest, without history.
    #[must_use]
    pub fn manifest_text(&self) -> String {
        self.parts
            .iter()
            .map(|part| format!("{}\n", part.line))
            .collect()
    }
}

/// What a restore calls a file or directory that it moves aside.
#[must_use]
pub fn aside(path: &Path, now: DateTime<Utc>) -> PathBuf {
    let mut aside = path.to_owned().into_os_string();
    aside.push(format!("{ASIDE}{}", now.format(ASIDE_TIME)));
    aside.into()
}

/// Whether a restore moved it aside: no server loads that.
fn is_aside(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let time = name.and_then(|name| name.rsplit_once(ASIDE));
    time.is_some_and(|(_, time)| NaiveDateTime::parse_from_str(time, ASIDE_TIME).is_ok())
}

fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(MANIFEST_ENDING) && !name.starts_with("temp"))
}

/// `file appendonly.aof.1.base.rdb seq 1 type b`, and pairs that later versions add.
fn parse_line(line: &str) -> Option<Part> {
    let mut words = line.split_ascii_whitespace();
    let (mut name, mut kind) = (None, None);
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        match key {
            // A name with odd characters is quoted: nobody has such names.
            "file" if !value.contains(['/', '"', '\\']) => name = Some(value.to_owned()),
            "file" => return None,
            "type" => {
                kind = Some(match value {
                    "b" => Kind::Base,
                    "i" => Kind::Increment,
                    "h" => Kind::History,
                    _ => return None,
                });
            }
            _ => {}
        }
    }
    Some(Part {
        name: name?,
        kind: kind?,
        line: line.to_owned(),
    })
}

/// The manifest of a data set that is one RDB file.
#[must_use]
pub fn manifest_of_base(base: &str) -> String {
    format!("file {base} seq 1 type b\n")
}

fn read_dir(path: &Path) -> Result<Vec<std::fs::DirEntry>> {
    let failed = |e| {
        Error::io(
            format!("could not read directory \"{}\"", path.display()),
            e,
        )
    };
    let entries = std::fs::read_dir(path).map_err(failed)?;
    entries.collect::<Result<_, _>>().map_err(failed)
}

/// What is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
    /// Everything before this byte is whole commands.
    pub good_bytes: u64,
    /// Bytes after it.
    pub lost_bytes: u64,
}

/// How an append-only file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Absent,
    /// The server loads it; so many bytes.
    Whole(u64),
    /// Cut back to the last whole command it is whole again: what follows is lost.
    Repairable(Flaw),
    /// Nothing can be cut away: it needs a restore from a backup.
    Lost(Flaw),
}

/// Reads every byte of the append-only file in `data_dir`.
///
/// # Errors
/// Kind Unavailable when it cannot be read; Data, `aof_manifest`.
pub fn check(data_dir: &Path, scratch: &Path) -> Result<State> {
    let Some(layout) = Layout::find(data_dir)? else {
        return Ok(State::Absent);
    };
    let last = layout.parts.len().saturating_sub(1);
    let mut total = 0;
    for (at, part) in layout.parts.iter().enumerate() {
        let path = layout.directory.join(&part.name);
        let (flaw, bytes) = check_part(&path, part.kind, scratch)?;
        total += bytes;
        match flaw {
            None => {}
            // Only what comes last can be cut: later commands build on earlier ones.
            Some(flaw) if at == last && part.kind != Kind::Base && flaw.good_bytes > 0 => {
                return Ok(State::Repairable(flaw));
            }
            // Nothing but a torn first command; a file that is missing has no bytes to lose.
            Some(flaw)
                if at == last && at > 0 && part.kind == Kind::Increment && flaw.lost_bytes > 0 =>
            {
                return Ok(State::Repairable(flaw));
            }
            Some(flaw) => return Ok(State::Lost(flaw)),
        }
    }
    Ok(State::Whole(total))
}

fn check_part(path: &Path, kind: Kind, scratch: &Path) -> Result<(Option<Flaw>, u64)> {
    let failed = |e| Error::io(format!("could not read \"{}\"", path.display()), e);
    let flaw = |why: String, good_bytes: u64, bytes: u64| Flaw {
        path: path.to_owned(),
        why,
        good_bytes,
        lost_bytes: bytes - good_bytes.min(bytes),
    };
    let mut file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok((Some(flaw("it is missing".to_owned(), 0, 0)), 0));
        }
        other => other.map_err(failed)?,
    };
    let bytes = file.metadata().map_err(failed)?.len();
    let preamble = match preamble_bytes(&mut file, scratch) {
        Ok(preamble) => preamble,
        Err(error) if error.kind() == crate::ErrorKind::Data => {
            let why = error.detail().unwrap_or_default();
            return Ok((Some(flaw(format!("{error}: {why}"), 0, bytes)), bytes));
        }
        Err(error) => return Err(error),
    };
    if preamble.is_none() && kind == Kind::Base && path.extension().is_some_and(|e| e == "rdb") {
        return Ok((Some(flaw("it is no RDB file".to_owned(), 0, bytes)), bytes));
    }
    let begin = preamble.unwrap_or(0);
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(begin)).map_err(failed)?;
    let scan = scan(std::io::BufReader::with_capacity(1 << 20, file)).map_err(failed)?;
    let good = begin + scan.good_bytes;
    Ok((scan.problem.map(|why| flaw(why, good, bytes)), bytes))
}

/// The bytes of the RDB file that an append-only file may begin with.
fn preamble_bytes(file: &mut File, scratch: &Path) -> Result<Option<u64>> {
    let mut begin = [0; 5];
    let failed = |e| Error::io("could not read the append-only file", e);
    let magic = file.read_exact(&mut begin).is_ok() && matches!(&begin, b"REDIS" | b"VALKE");
    std::io::Seek::rewind(file).map_err(failed)?;
    if !magic {
        return Ok(None);
    }
    let mut reader = rdb::Reader::new(&mut *file, scratch)?;
    while reader.next(|_| false)?.is_some() {}
    Ok(Some(reader.offset()))
}

#[cfg(test)]
mod tests;
