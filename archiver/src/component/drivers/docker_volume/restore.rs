//! A restore: into the same volumes or under other names, into another engine, or into a directory.

use super::super::files::Files;
use super::super::files::rules::Rules;
use super::archive::Header;
use super::capture::{files_of, leaves_out, names_of, sweep};
use super::engine::Engine;
use super::index::Index;
use super::mapped::MappedSource;
use super::place::{self, Place};
use super::plan::{Chosen, Task, Trees, plan};
use super::put::{self, Parts};
use super::volume::{User, Volume, is_mounted_on_use, names};
use super::{DockerVolume, api_evidence, volume};
use crate::component::{Context, Driver as _, Evidence, EvidenceLine, Request, Source};
use crate::{Error, Result};
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// In front of what compose says of a volume.
const COMPOSE: &str = "com.docker.compose.";

/// Restores what is asked for.
///
/// # Errors
/// As [`crate::component::Driver::restore`].
pub(super) fn restore(
    driver: &DockerVolume,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Vec<String>> {
    let index = Index::load(source)?;
    let tasks = plan(context, source, &index, request)?;
    if let Some(files) = as_files(request)? {
        return files.restore(context, &Trees(source), request);
    }
    let engine = driver.engine(request.to.as_deref())?;
    let mut notes = sweep(&engine);
    // Everything that refuses comes before anything is changed.
    let mut targets = Vec::new();
    for task in &tasks {
        context.cancel.check()?;
        targets.push(Target::look(
            driver, &engine, context, source, task, request,
        )?);
    }
    for (task, target) in tasks.iter().zip(targets) {
        context.cancel.check()?;
        notes.extend(one(
            driver, &engine, context, source, request, task, target,
        )?);
    }
    Ok(notes)
}

/// The `files` driver, when the target is a directory.
fn as_files(request: &Request) -> Result<Option<Files>> {
    let Some(to) = &request.to else {
        return Ok(None);
    };
    if !to.starts_with('/') {
        return Ok(None);
    }
    let rules = Rules::new(&[], &[], &[])?;
    Ok(Some(Files::of_tree(Path::new("/"), rules)))
}

/// What is in the place of a task's target.
struct Target {
    /// `None`: it has to be made.
    there: Option<Volume>,
    users: Vec<User>,
    /// It was looked into: nothing is in it.
    empty: bool,
}

impl Target {
    fn look(
        driver: &DockerVolume,
        engine: &Engine,
        context: &Context<'_>,
        source: &dyn Source,
        task: &Task,
        request: &Request,
    ) -> Result<Self> {
        let name = &task.target;
        let Some(there) = engine.volume(name)? else {
            if task.is_renamed() && is_mounted_on_use(&task.stored) {
                return Err(Error::invalid(
                    "volume_same_device",
                    format!(
                        "volume \"{name}\" would be \"{}\" once more",
                        task.stored.name
                    ),
                )
                .with_detail("Its options name a device or a share, which both would have.")
                .with_hint(
                    "Make the new volume yourself, with options of its own, then restore into it.",
                ));
            }
            return Ok(Self {
                there: None,
                users: Vec::new(),
                empty: true,
            });
        };
        let users = volume::users(engine, name)?;
        let running: Vec<&User> = users.iter().filter(|user| user.running).collect();
        if !running.is_empty() {
            return Err(Error::invalid(
                "volume_in_use",
                format!("containers use volume \"{name}\": {}", names(running)),
            )
            .with_hint("Stop them (docker stop, docker compose stop), restore, and start them again; or restore under another name with --rename."));
        }
        let target = Self {
            empty: is_empty(driver, engine, context, &there, &users)?,
            users,
            there: Some(there),
        };
        // Under another name nothing was saved before.
        let may_replace = request.overwrite && !task.is_renamed();
        if target.empty || may_replace {
            target.check_referenced(driver, engine, task)?;
            return Ok(target);
        }
        if task.is_whole() {
            return Err(not_empty(name, task.is_renamed()));
        }
        target.refuse_overwrite(driver, engine, context, source, task)?;
        Ok(target)
    }

    /// Through the API a volume can be emptied by making it anew alone.
    fn check_referenced(&self, driver: &DockerVolume, engine: &Engine, task: &Task) -> Result<()> {
        let Some(there) = self
            .there
            .as_ref()
            .filter(|_| !self.empty && task.is_whole())
        else {
            return Ok(());
        };
        if self.users.is_empty() || place::of(driver, engine, there)? != Place::Api {
            return Ok(());
        }
        Err(Error::invalid(
            "volume_referenced",
            format!("containers refer to volume \"{}\": {}", there.name, names(&self.users)),
        )
        .with_detail("Through the engine's API nothing can be removed from a volume: it has to be made anew, which its containers, also stopped ones, keep from.")
        .with_hint("Remove these containers (docker compose down, without --volumes), restore under another name, or run pgark where the volume's directory can be read."))
    }

    /// A part goes between what is there, and over nothing.
    fn refuse_overwrite(
        &self,
        driver: &DockerVolume,
        engine: &Engine,
        context: &Context<'_>,
        source: &dyn Source,
        task: &Task,
    ) -> Result<()> {
        let Some(there) = &self.there else {
            return Ok(());
        };
        if place::of(driver, engine, there)? != Place::Api {
            // The files driver looks itself, before it changes anything.
            return Ok(());
        }
        let chosen = task.chosen()?;
        let takes = |path: &[u8]| chosen.takes(path);
        let parts = parts(source, task, &takes);
        let mut wanted = HashSet::new();
        parts.each(context, &mut |entry, _| {
            if entry.kind != crate::component::EntryKind::Directory {
                wanted.insert(entry.path);
            }
            Ok(())
        })?;
        put::look(
            engine,
            context,
            there,
            image(&self.users),
            &mut |header, _| {
                if wanted.contains(&header.entry.path) {
                    return Err(Error::invalid(
                    "would_overwrite",
                    format!(
                        "\"{}/{}\" exists",
                        there.name,
                        String::from_utf8_lossy(&header.entry.path)
                    ),
                )
                .with_hint("Restore under another name with --rename, or confirm with --yes that it may be replaced."));
                }
                Ok(true)
            },
        )
    }
}

fn not_empty(name: &str, renamed: bool) -> Error {
    Error::invalid(
        "volume_not_empty",
        format!("volume \"{name}\" holds data already"),
    )
    .with_hint(match renamed {
        true => "Under another name a volume must be new or empty: remove it, or choose another one.",
        false => "Use --yes to replace it (a safety backup is taken first), or --rename for another name.",
    })
}

fn image(users: &[User]) -> Option<&str> {
    users.first().map(|user| user.image_id.as_str())
}

fn parts<'a>(
    source: &'a dyn Source,
    task: &'a Task,
    takes: &'a dyn Fn(&[u8]) -> bool,
) -> Parts<'a> {
    Parts {
        source,
        stored: &task.stored.name,
        takes,
    }
}

fn is_empty(
    driver: &DockerVolume,
    engine: &Engine,
    context: &Context<'_>,
    there: &Volume,
    users: &[User],
) -> Result<bool> {
    let mut empty = true;
    match place::of(driver, engine, there)? {
        Place::Directory(path) => {
            let mut entries = std::fs::read_dir(&path)
                .map_err(|e| Error::io(format!("could not read \"{}\"", path.display()), e))?;
            empty = entries.next().is_none();
        }
        Place::Api => put::look(engine, context, there, image(users), &mut |header, _| {
            empty = header.entry.path.is_empty();
            Ok(empty)
        })?,
    }
    Ok(empty)
}

/// The volume that a task makes.
fn new_volume(task: &Task) -> Volume {
    let mut volume = Volume {
        name: task.target.clone(),
        ..task.stored.clone()
    };
    if task.is_renamed() {
        // Else compose would take it for its project's own.
        volume.labels.retain(|label, _| !label.starts_with(COMPOSE));
    }
    volume
}

fn one(
    driver: &DockerVolume,
    engine: &Engine,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
    task: &Task,
    target: Target,
) -> Result<Vec<String>> {
    let name = &task.target;
    let restoring = Restoring {
        driver,
        engine,
        context,
        source,
        request,
        task,
    };
    if let Some(there) = target.there {
        return restoring.fill(there, &target.users, target.empty, false);
    }
    let made = engine.make_volume(&new_volume(task))?;
    match restoring.fill_new(made) {
        Ok(notes) => Ok([vec![format!("made volume \"{name}\"")], notes].concat()),
        Err(error) => {
            // Half of it is of no use to anybody; what a share holds stays there.
            if let Err(why) = engine.remove_volume(name) {
                tracing::warn!(
                    code = why.code(),
                    "volume \"{name}\" stays, half full: {why}"
                );
            }
            Err(error)
        }
    }
}

/// A task under way.
struct Restoring<'a> {
    driver: &'a DockerVolume,
    engine: &'a Engine,
    context: &'a Context<'a>,
    source: &'a dyn Source,
    request: &'a Request,
    task: &'a Task,
}

impl Restoring<'_> {
    fn is_empty(&self, volume: &Volume) -> Result<bool> {
        is_empty(self.driver, self.engine, self.context, volume, &[])
    }

    fn fill_new(&self, volume: Volume) -> Result<Vec<String>> {
        // A share may hold what it held before.
        if is_mounted_on_use(&volume) && !self.is_empty(&volume)? {
            return Err(not_empty(&volume.name, true));
        }
        self.fill(volume, &[], true, true)
    }

    fn fill(
        &self,
        mut volume: Volume,
        users: &[User],
        empty: bool,
        is_new: bool,
    ) -> Result<Vec<String>> {
        let (driver, engine, task) = (self.driver, self.engine, self.task);
        let mut notes = Vec::new();
        match place::of(driver, engine, &volume)? {
            Place::Directory(path) => {
                notes.extend(self.fill_directory(&path)?);
                if is_new && !task.is_whole() {
                    dress_root(self.source, task, &path)?;
                }
            }
            Place::Api => {
                if task.is_whole() && !empty {
                    engine.remove_volume(&volume.name)?;
                    volume = engine.make_volume(&volume)?;
                    if !self.is_empty(&volume)? {
                        return Err(not_empty(&volume.name, true)
                            .with_detail("It was made anew, and its driver kept what was in it."));
                    }
                    notes.push(format!("made volume \"{}\" anew", volume.name));
                }
                let chosen = task.chosen()?;
                // A new directory gets its owner and mode with a part as well.
                let root = task.stored.name.as_bytes();
                let takes = |path: &[u8]| chosen.takes(path) || (is_new && path == root);
                let parts = parts(self.source, task, &takes);
                put::put(engine, self.context, &volume, image(users), &parts)?;
            }
        }
        Ok(notes)
    }

    fn fill_directory(&self, path: &Path) -> Result<Vec<String>> {
        let task = self.task;
        let source = MappedSource {
            names: names_of(&task.stored.name, path),
            source: self.source,
        };
        let overwrite = self.request.overwrite && !task.is_renamed();
        let request = files_request(task, path, overwrite);
        files_of(self.driver, path)?.restore(self.context, &source, &request)
    }
}

/// The request for the `files` driver.
fn files_request(task: &Task, path: &Path, overwrite: bool) -> Request {
    let root = globset::escape(&path.to_string_lossy());
    Request {
        select: task
            .select
            .iter()
            .map(|below| format!("{root}/{below}"))
            .collect(),
        overwrite,
        ..Request::default()
    }
}

/// Owner and mode of a new volume's own directory, of which only a part was restored.
fn dress_root(source: &dyn Source, task: &Task, path: &Path) -> Result<()> {
    let root = task.stored.name.as_bytes();
    let found = source.entries().find(|entry| match entry {
        Ok(entry) => entry.path == root,
        Err(_) => true,
    });
    let Some(entry) = found.transpose()? else {
        return Ok(());
    };
    let failed = |e| Error::io(format!("could not give away \"{}\"", path.display()), e);
    std::os::unix::fs::chown(path, Some(entry.uid), Some(entry.gid)).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(entry.mode);
    std::fs::set_permissions(path, mode).map_err(failed)
}

/// Compares volumes with the backup that was restored into them.
///
/// # Errors
/// As [`crate::component::Driver::evidence`].
pub(super) fn evidence(
    driver: &DockerVolume,
    context: &Context<'_>,
    source: &dyn Source,
    request: &Request,
) -> Result<Evidence> {
    let index = Index::load(source)?;
    let tasks = plan(context, source, &index, request)?;
    if let Some(files) = as_files(request)? {
        return files.evidence(context, &Trees(source), request);
    }
    let engine = driver.engine(request.to.as_deref())?;
    let mut lines = Vec::new();
    for task in &tasks {
        context.cancel.check()?;
        let found = engine.volume(&task.target)?;
        lines.extend(definition(task, found.as_ref()));
        let Some(volume) = found else { continue };
        let of_it = match place::of(driver, &engine, &volume)? {
            Place::Directory(path) => {
                let source = MappedSource {
                    names: names_of(&task.stored.name, &path),
                    source,
                };
                let request = files_request(task, &path, request.overwrite);
                let evidence = files_of(driver, &path)?.evidence(context, &source, &request)?;
                evidence.lines
            }
            Place::Api => through_api(driver, &engine, context, source, task, &volume)?,
        };
        lines.extend(of_it.into_iter().map(|line| EvidenceLine {
            what: format!("volume {}: {}", task.target, line.what),
            ..line
        }));
    }
    Ok(Evidence {
        ok: lines.iter().all(|line| line.ok),
        lines,
    })
}

/// Driver, options and labels: of a volume that was there before they may be others, which is told.
fn definition(task: &Task, found: Option<&Volume>) -> Option<EvidenceLine> {
    let expected = new_volume(task);
    let show = |volume: &Volume| {
        // Options may be secrets: their names alone.
        let options: Vec<&str> = volume.options.keys().map(String::as_str).collect();
        format!("driver {}, options [{}]", volume.driver, options.join(", "))
    };
    let what = format!("volume {}", task.target);
    match found {
        None => Some(EvidenceLine {
            what,
            expected: show(&expected),
            found: "absent".to_owned(),
            ok: false,
        }),
        Some(found) => Some(EvidenceLine {
            what,
            expected: show(&expected),
            found: show(found),
            // The operator may have chosen another place for it.
            ok: true,
        }),
    }
}

fn through_api(
    driver: &DockerVolume,
    engine: &Engine,
    context: &Context<'_>,
    source: &dyn Source,
    task: &Task,
    volume: &Volume,
) -> Result<Vec<EvidenceLine>> {
    let chosen: Chosen = task.chosen()?;
    let takes = |path: &[u8]| chosen.takes(path);
    let mut comparison = api_evidence::Comparison::begin(context, &parts(source, task, &takes))?;
    let rules = driver.rules(&format!("/{}", volume.name))?;
    let users = volume::users(engine, &volume.name)?;
    put::look(
        engine,
        context,
        volume,
        image(&users),
        &mut |header: Header, content| {
            let excluded = leaves_out(&rules, &volume.name, &header.entry.path);
            let foreign = excluded || header.is_device || !task.is_whole();
            comparison.entry(&header.entry, content, foreign)?;
            Ok(true)
        },
    )?;
    Ok(comparison.finish())
}
