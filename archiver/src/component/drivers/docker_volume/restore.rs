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
    let look = |task: &Task| {
        context.cancel.check()?;
        Target::look(driver, &engine, context, source, task, request)
    };
    // Everything that refuses comes before anything is changed.
    let targets: Vec<Target> = tasks.iter().map(look).collect::<Result<_>>()?;
    for (task, target) in tasks.iter().zip(targets) {
        // The volumes before it took their time: containers may have come.
        let target = match target.is_as_it_was(&engine, task)? {
            true => target,
            false => look(task)?,
        };
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
        check_unused(name, &users)?;
        let target = Self {
            empty: is_empty(driver, engine, context, &there, &users)?,
            users,
            there: Some(there),
        };
        // Under another name nothing was saved before.
        let may_replace = request.overwrite && !task.is_renamed();
        if target.empty || may_replace {
            if !target.empty && request.to.is_none() {
                check_saved(driver, engine, name)?;
            }
            target.check_made_anew(driver, engine, context, task)?;
            return Ok(target);
        }
        if task.is_whole() {
            return Err(not_empty(name, task.is_renamed()));
        }
        target.refuse_overwrite(driver, engine, context, source, task)?;
        Ok(target)
    }

    fn is_as_it_was(&self, engine: &Engine, task: &Task) -> Result<bool> {
        let there = engine.volume(&task.target)?;
        let users = match &there {
            Some(_) => volume::users(engine, &task.target)?,
            None => Vec::new(),
        };
        Ok(there == self.there && users == self.users)
    }

    /// Through the API a volume can be emptied by making it anew alone.
    fn check_made_anew(
        &self,
        driver: &DockerVolume,
        engine: &Engine,
        context: &Context<'_>,
        task: &Task,
    ) -> Result<()> {
        let Some(there) = self
            .there
            .as_ref()
            .filter(|_| !self.empty && task.is_whole())
        else {
            return Ok(());
        };
        if place::of(driver, engine, there)? != Place::Api {
            return Ok(());
        }
        if self.users.is_empty() {
            return self.check_excluded(driver, engine, context, there);
        }
        Err(Error::invalid(
            "volume_referenced",
            format!("containers refer to volume \"{}\": {}", there.name, names(&self.users)),
        )
        .with_detail("Through the engine's API nothing can be removed from a volume: it has to be made anew, which its containers, also stopped ones, keep from.")
        .with_hint("Remove these containers (docker compose down, without --volumes), restore under another name, or run pgark where the volume's directory can be read."))
    }

    /// What `exclude` leaves out is in no backup, the safety backup included: it would be gone.
    fn check_excluded(
        &self,
        driver: &DockerVolume,
        engine: &Engine,
        context: &Context<'_>,
        there: &Volume,
    ) -> Result<()> {
        if driver.settings.exclude.is_empty() {
            return Ok(());
        }
        let rules = driver.rules(&format!("/{}", there.name))?;
        put::look(
            engine,
            context,
            there,
            image(&self.users),
            &mut |header, _| {
                if !leaves_out(&rules, &there.name, &header.entry.path) {
                    return Ok(true);
                }
                Err(Error::invalid(
                    "volume_excluded",
                    format!(
                        "\"{}/{}\" is in no backup, and would be lost",
                        there.name,
                        String::from_utf8_lossy(&header.entry.path)
                    ),
                )
                .with_detail("\"exclude\" leaves it out. Through the engine's API nothing can be removed from a volume: it is made anew.")
                .with_hint("Remove it, or copy it away; restore under another name with --rename; or run pgark where the volume's directory can be read."))
            },
        )
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

fn check_unused(name: &str, users: &[User]) -> Result<()> {
    let running: Vec<&User> = users.iter().filter(|user| user.running).collect();
    if running.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(
        "volume_in_use",
        format!("containers use volume \"{name}\": {}", names(running)),
    )
    .with_hint("Stop them (docker stop, docker compose stop), restore, and start them again; or restore under another name with --rename."))
}

/// The safety backup has what the section names today: what it does not name has no other copy.
fn check_saved(driver: &DockerVolume, engine: &Engine, name: &str) -> Result<()> {
    if volume::is_chosen(driver, engine, name)? {
        return Ok(());
    }
    Err(Error::invalid(
        "volume_not_saved",
        format!("volume \"{name}\" holds data, and this component's section does not name it"),
    )
    .with_detail("The backup has it from a time when the section did. A safety backup would not have what would be replaced.")
    .with_hint("Add it to volumes in [component.NAME], restore under another name with --rename, or leave it out with --select; --no-safety-backup does not change this."))
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
    let is_share = is_mounted_on_use(&made);
    let checked = restoring.check_new(&made);
    // A volume that came meanwhile is not ours to remove; what a share holds is not in it.
    let came = |e: &Error| matches!(e.code(), "volume_not_empty" | "volume_in_use");
    let is_ours = is_share || !checked.as_ref().is_err_and(came);
    match checked.and_then(|()| restoring.fill(made, &[], true, true)) {
        Ok(notes) => Ok([vec![format!("made volume \"{name}\"")], notes].concat()),
        Err(error) => {
            // Half of it is of no use to anybody.
            if is_ours && let Err(why) = engine.remove_volume(name) {
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

    /// A share may hold what it held before; and of a name that is taken an engine hands out the volume.
    fn check_new(&self, volume: &Volume) -> Result<()> {
        // Stopped ones may have outlived their volume.
        check_unused(&volume.name, &volume::users(self.engine, &volume.name)?)?;
        match self.is_empty(volume)? {
            true => Ok(()),
            false => Err(not_empty(&volume.name, true)),
        }
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
                let anew = task.is_whole() && !empty;
                if anew {
                    engine.remove_volume(&volume.name)?;
                    crate::fault::point("docker_volume:removed");
                    let name = volume.name.clone();
                    volume = engine.make_volume(&volume).map_err(|e| removed(e, &name))?;
                    if !self.is_empty(&volume).map_err(|e| removed(e, &name))? {
                        return Err(not_empty(&volume.name, true)
                            .with_detail("It was made anew, and its driver kept what was in it."));
                    }
                    notes.push(format!("made volume \"{name}\" anew"));
                }
                let chosen = task.chosen()?;
                // A new directory gets its owner and mode with a part as well.
                let root = task.stored.name.as_bytes();
                let takes = |path: &[u8]| chosen.takes(path) || (is_new && path == root);
                let parts = parts(self.source, task, &takes);
                let put = put::put(engine, self.context, &volume, image(users), &parts);
                put.map_err(|e| if anew { removed(e, &volume.name) } else { e })?;
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

/// Whoever restores has to know that nothing is as it was.
fn removed(error: Error, name: &str) -> Error {
    error.context(format_args!(
        "volume \"{name}\" was removed and is not whole: restore again, this backup or the safety backup"
    ))
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
