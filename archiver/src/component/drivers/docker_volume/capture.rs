//! A backup: every volume, each from where it can be reached.

use super::super::files::notes::Notes;
use super::super::files::rules::{Rules, Where};
use super::super::files::{Files, within};
use super::archive::{self, cut};
use super::engine::Engine;
use super::helper::{Helper, Leftovers};
use super::index::Index;
use super::mapped::{MappedSink, Names};
use super::place::{self, Place};
use super::volume::{User, Volume};
use super::{DockerVolume, hold, volume};
use crate::Result;
use crate::component::{Consistency, Context, Driver as _, Entry, EntryKind, Point, Sink};
use chrono::Utc;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What was stored, over all volumes.
#[derive(Debug, Default)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn add(&mut self, name: &str, more: u64) {
        let count = self.0.entry(name.to_owned()).or_default();
        *count = count.saturating_add(more);
    }
}

/// Captures the section's volumes.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(super) fn capture(
    driver: &DockerVolume,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Point> {
    let engine = driver.engine(None)?;
    let mut notes = sweep(&engine);
    let volumes = volume::chosen(driver, &engine)?;
    let mut places = Vec::new();
    for volume in &volumes {
        places.push((volume, place::of(driver, &engine, volume)?));
    }
    let before = all_users(&engine, &volumes)?;
    let from = Utc::now();
    Index::of(&volumes).store(sink)?;
    let mut counts = Counts::default();
    let ((), expired) = hold::during(driver, || {
        for (volume, place) in &places {
            context.cancel.check()?;
            match place {
                Place::Directory(path) => {
                    let point = from_directory(driver, context, sink, volume, path)?;
                    for (name, count) in point.position.iter().chain(&point.evidence) {
                        counts.add(name, count.as_u64().unwrap_or(0));
                    }
                    notes.extend(point.notes);
                }
                Place::Api => {
                    let users = before.get(&volume.name).map(Vec::as_slice);
                    let users = users.unwrap_or_default();
                    through_api(driver, &engine, context, sink, volume, users, &mut counts)?
                        .lines()
                        .into_iter()
                        .for_each(|line| notes.push(line));
                }
            }
        }
        Ok(())
    })?;
    let until = Utc::now();
    let after = all_users(&engine, &volumes)?;
    if expired {
        notes.push(format!(
            "containers were let go before the capture ended: hold_seconds_max ({}) was over",
            driver.settings.hold_seconds_max
        ));
    }
    let writers = before.values().chain(after.values()).flatten();
    let writers = writers.filter(|user| user.is_at_work());
    let writers: BTreeMap<&str, &User> = writers.map(|user| (user.id.as_str(), user)).collect();
    if !writers.is_empty() {
        notes.push(format!(
            "containers wrote, or may have, while their volumes were read: {}",
            volume::names(writers.into_values())
        ));
    }
    let (how, mut evidence): (BTreeMap<String, Value>, BTreeMap<String, Value>) = (
        places
            .iter()
            .map(|(volume, place)| (volume.name.clone(), json!(place.word())))
            .collect(),
        BTreeMap::new(),
    );
    let mut position = BTreeMap::from([("volumes".to_owned(), json!(how))]);
    for (name, count) in counts.0 {
        match name.as_str() {
            "entries" => evidence.insert(name, json!(count)),
            _ => position.insert(name, json!(count)),
        };
    }
    Ok(Point {
        consistency: consistency(&before, &after, expired),
        from,
        until,
        clock_skew_seconds: None,
        position,
        evidence,
        notes,
        server_version: Some(engine.version.clone()),
    })
}

/// Removes what dead runs left; what cannot be removed fails nothing.
pub(super) fn sweep(engine: &Engine) -> Vec<String> {
    let swept = Leftovers::find(engine).and_then(|left| {
        let said = (!left.is_empty()).then(|| format!("removed {left}"));
        left.remove(engine).map(|()| said)
    });
    match swept {
        Ok(said) => said.into_iter().collect(),
        Err(error) => {
            tracing::warn!(
                code = error.code(),
                "what a dead run left in the engine was not removed: {error}"
            );
            Vec::new()
        }
    }
}

/// By volume: who uses it.
type Users = BTreeMap<String, Vec<User>>;

fn all_users(engine: &Engine, volumes: &[Volume]) -> Result<Users> {
    let volumes = volumes.iter();
    volumes
        .map(|v| Ok((v.name.clone(), volume::users(engine, &v.name)?)))
        .collect()
}

/// How exact it is, by who could write. That they are the same, in the same state, since the same time
/// says that none worked in between.
fn consistency(before: &Users, after: &Users, expired: bool) -> Consistency {
    let mut users = before.values().chain(after.values()).flatten();
    if expired || before != after || users.clone().any(User::is_at_work) {
        Consistency::Fuzzy
    } else if users.any(|user| user.paused) {
        Consistency::CrashConsistent
    } else {
        Consistency::PointInTime
    }
}

/// The two names of a volume's directory.
pub(super) fn names_of(stored: &str, path: &Path) -> Names {
    Names {
        stored: stored.as_bytes().to_vec(),
        host: within(path).to_vec(),
    }
}

/// The `files` driver for the directory of a volume.
pub(super) fn files_of(driver: &DockerVolume, path: &Path) -> Result<Files> {
    Ok(Files::of_tree(path, driver.rules(&path.to_string_lossy())?))
}

fn from_directory(
    driver: &DockerVolume,
    context: &Context<'_>,
    sink: &dyn Sink,
    volume: &Volume,
    path: &Path,
) -> Result<Point> {
    let sink = MappedSink {
        names: names_of(&volume.name, path),
        sink,
    };
    files_of(driver, path)?.capture(context, &sink)
}

fn through_api(
    driver: &DockerVolume,
    engine: &Engine,
    context: &Context<'_>,
    sink: &dyn Sink,
    volume: &Volume,
    users: &[User],
    counts: &mut Counts,
) -> Result<Notes> {
    let image = users.first().map(|user| user.image_id.as_str());
    let helper = Helper::make(engine, context.component, volume, image, true)?;
    let archive = engine.open_archive(helper.id(), &format!("/{}/.", super::helper::MOUNT))?;
    let notes = Notes::default();
    let mut storing = Storing {
        rules: driver.rules(&format!("/{}", volume.name))?,
        volume: &volume.name,
        sink,
        notes: &notes,
        excluded: None,
        counts,
    };
    archive::visit(archive, context.cancel, &mut |header, content| {
        context.cancel.check()?;
        storing.entry(header, content)?;
        Ok(true)
    })?;
    helper.remove()?;
    Ok(notes)
}

struct Storing<'a> {
    rules: Rules,
    volume: &'a str,
    sink: &'a dyn Sink,
    notes: &'a Notes,
    /// The directory that was left out last: with all below it, which comes next.
    excluded: Option<Vec<u8>>,
    counts: &'a mut Counts,
}

impl Storing<'_> {
    fn path(&self, below: &[u8]) -> Vec<u8> {
        stored_path(self.volume, below)
    }

    fn entry(&mut self, header: archive::Header, content: &mut dyn std::io::Read) -> Result<()> {
        let below = header.entry.path.clone();
        if self.leaves_out(&below) {
            return Ok(());
        }
        let path = self.path(&below);
        if header.is_device {
            self.notes.add("devices, which are not backed up", &path);
            return Ok(());
        }
        let mut entry = Entry {
            path,
            ..header.entry
        };
        if let EntryKind::HardLink { to } = &mut entry.kind {
            if leaves_out(&self.rules, self.volume, to) {
                self.notes.add(
                    "left out: other names of files that are excluded (the API has no content for them)",
                    &entry.path,
                );
                return Ok(());
            }
            *to = stored_path(self.volume, to);
        }
        self.counts.add("entries", 1);
        if entry.kind != EntryKind::File {
            return self.sink.entry(entry);
        }
        self.counts.add("files_read", 1);
        let size = entry.size;
        let stored = self.sink.file(entry, content)?;
        match stored.size == size {
            true => Ok(()),
            false => Err(cut()),
        }
    }

    fn leaves_out(&mut self, below: &[u8]) -> bool {
        if let Some(excluded) = &self.excluded {
            let rest = below.strip_prefix(excluded.as_slice());
            if rest.is_some_and(|rest| rest.starts_with(b"/")) {
                return true;
            }
        }
        if leaves_out(&self.rules, self.volume, below) {
            self.excluded = Some(below.to_vec());
            return true;
        }
        false
    }
}

/// The path in a backup of what lies below a volume.
pub(super) fn stored_path(volume: &str, below: &[u8]) -> Vec<u8> {
    match below.is_empty() {
        true => volume.as_bytes().to_vec(),
        false => [volume.as_bytes(), b"/", below].concat(),
    }
}

/// Whether the rules exclude what lies below a volume, or something above it there.
pub(super) fn leaves_out(rules: &Rules, volume: &str, below: &[u8]) -> bool {
    let path = stored_path(volume, below);
    let mut end = path.len();
    while end > volume.len() {
        let at = Where {
            path: path.get(..end).unwrap_or_default(),
            root_len: volume.len(),
        };
        if rules.excludes(at) {
            return true;
        }
        end = at.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str, running: bool, paused: bool, started_at: &str) -> User {
        User {
            id: id.to_owned(),
            name: id.to_owned(),
            image: String::new(),
            image_id: String::new(),
            running,
            paused,
            auto_remove: false,
            started_at: started_at.to_owned(),
        }
    }

    #[test]
    fn consistency_is_never_better_than_what_could_write() {
        let of = |users: Vec<User>| Users::from([("v".to_owned(), users)]);
        let none = || of(Vec::new());
        let stopped = || of(vec![user("a", false, false, "1")]);
        let paused = || of(vec![user("a", true, true, "1")]);
        let running = || of(vec![user("a", true, false, "1")]);
        let again = || of(vec![user("a", true, true, "2")]);
        assert_eq!(
            consistency(&none(), &none(), false),
            Consistency::PointInTime
        );
        assert_eq!(
            consistency(&stopped(), &stopped(), false),
            Consistency::PointInTime
        );
        assert_eq!(
            consistency(&paused(), &paused(), false),
            Consistency::CrashConsistent
        );
        for (before, after, expired) in [
            (running(), running(), false),
            (none(), running(), false),
            (none(), stopped(), false),
            (paused(), running(), false),
            (paused(), again(), false),
            (paused(), paused(), true),
        ] {
            assert_eq!(consistency(&before, &after, expired), Consistency::Fuzzy);
        }
    }

    #[test]
    fn what_is_below_something_excluded_is_so_too() {
        let rules = Rules::new(&[], &["/v/cache".to_owned(), "*.tmp".to_owned()], &[]).unwrap();
        assert!(leaves_out(&rules, "v", b"cache"));
        assert!(leaves_out(&rules, "v", b"cache/a/b"));
        assert!(leaves_out(&rules, "v", b"x.tmp/a"));
        assert!(!leaves_out(&rules, "v", b"a/cache"));
        assert!(!leaves_out(&rules, "v", b""));
    }
}
