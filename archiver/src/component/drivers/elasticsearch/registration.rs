//! A repository that the cluster knows of for as long as we need it.

use super::place::{PREFIX, Place};
use super::server::{Server, text};
use crate::{Error, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long it is tried to clean up: a snapshot that is being made takes a while to end.
const CLEANUP: Duration = Duration::from_secs(30);
/// How often, when nobody listens at all.
const REFUSALS_MAX: u32 = 8;
/// A failure that comes as fast is no time-out.
const REFUSED_WITHIN: Duration = Duration::from_millis(200);

/// A repository under a name of ours. Dropping it removes it, what is in it too.
pub(super) struct Registration<'a> {
    server: &'a Server,
    place: &'a Place,
    pub(super) name: String,
    removed: bool,
}

impl<'a> Registration<'a> {
    /// Registers the repository `name`. Unless it is read only, every node proves that it can write there.
    ///
    /// # Errors
    /// The client's; `elasticsearch_path_repo` and `elasticsearch_repository` for a directory that will not do.
    pub(super) fn make(
        server: &'a Server,
        place: &'a Place,
        name: String,
        readonly: bool,
        bytes_per_second: Option<u64>,
    ) -> Result<Self> {
        let mut settings = json!({
            "location": place.location_of(&name),
            "compress": true,
            "readonly": readonly,
        });
        if let (Some(bytes), Some(map)) = (bytes_per_second, settings.as_object_mut()) {
            let limit = Value::from(format!("{bytes}b"));
            map.insert("max_snapshot_bytes_per_sec".to_owned(), limit.clone());
            map.insert("max_restore_bytes_per_sec".to_owned(), limit);
        }
        let body = json!({ "type": "fs", "settings": settings });
        // From here on: a server that answers too late may have registered it.
        let registration = Self {
            server,
            place,
            name,
            removed: false,
        };
        let path = ["_snapshot", &registration.name];
        server.call(Method::PUT, &path, &[], Some(&body))?;
        Ok(registration)
    }

    /// Removes its snapshots, the registration and its files.
    ///
    /// # Errors
    /// Kind Unavailable, `elasticsearch_left_behind`: the next backup or restore removes it then.
    pub(super) fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.clean()
    }

    fn clean(&self) -> Result<()> {
        let began = Instant::now();
        let mut refusals = 0;
        loop {
            let attempt = Instant::now();
            let result = remove(self.server, self.place, &self.name);
            let unreachable = |error: &Error| error.code() == "component_unreachable";
            if result.as_ref().is_err_and(unreachable) && attempt.elapsed() < REFUSED_WITHIN {
                refusals += 1;
            }
            match result {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() >= CLEANUP || refusals >= REFUSALS_MAX => {
                    return Err(Error::unavailable(
                        "elasticsearch_left_behind",
                        format!(
                            "the snapshot repository \"{}\" is left behind on {}",
                            self.name,
                            self.server.http.name()
                        ),
                    )
                    .with_source(error)
                    .with_hint("The next backup of this component removes it."));
                }
                Err(error) => {
                    tracing::debug!(code = error.code(), "cleaning up is tried again: {error}");
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(error) = self.clean() {
            tracing::warn!(code = error.code(), "{error}");
        }
    }
}

/// Removes a repository of ours: what is not there any more is fine. A snapshot that is being made is
/// ended by its removal.
fn remove(server: &Server, place: &Place, name: &str) -> Result<()> {
    let url = server.url(&["_snapshot", name], &[]);
    let (status, known) = server.http.answer(server.http.request(Method::GET, url))?;
    let mut emptied = Ok(());
    if status != StatusCode::NOT_FOUND {
        if !status.is_success() {
            return Err(server.refused(status, &known));
        }
        let readonly = known
            .get(name)
            .and_then(|repository| repository.pointer("/settings/readonly"));
        if !readonly.is_some_and(|value| *value == json!(true) || *value == json!("true")) {
            // On a full disk this fails, and removing the directory does not.
            emptied = remove_snapshots(server, name);
        }
        server.http.delete(&["_snapshot", name])?;
    }
    let folder = place.folder(name);
    match std::fs::remove_dir_all(&folder) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // Theirs, where we may not write: without its snapshot it holds a few hundred bytes.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::info!("pgark may not remove \"{}\"", folder.display());
            emptied
        }
        Err(e) => Err(Error::io(
            format!("could not remove \"{}\"", folder.display()),
            e,
        )),
    }
}

fn remove_snapshots(server: &Server, name: &str) -> Result<()> {
    let answer = server.get(&["_snapshot", name, "_all"], &[("verbose", "false")])?;
    let snapshots = answer.get("snapshots").and_then(Value::as_array);
    for snapshot in snapshots.into_iter().flatten() {
        let snapshot = text(snapshot, "snapshot");
        if snapshot.starts_with(PREFIX) {
            server.http.delete(&["_snapshot", name, snapshot])?;
        }
    }
    Ok(())
}

/// Repositories of this component, whose directory is in this place.
///
/// # Errors
/// The client's.
pub(super) fn leftovers(server: &Server, place: &Place) -> Result<Vec<String>> {
    let all = server.get(&["_snapshot"], &[])?;
    let mut found = Vec::new();
    for (name, repository) in all.as_object().into_iter().flatten() {
        let location = repository.pointer("/settings/location");
        let location = location.and_then(Value::as_str).unwrap_or_default();
        if place.is_ours(name) && location == place.location_of(name) {
            found.push(name.clone());
        }
    }
    Ok(found)
}

/// Removes what a crash of ours left. The place must be locked.
///
/// # Errors
/// The client's.
pub(super) fn sweep(server: &Server, place: &Place) -> Result<()> {
    let mut names = leftovers(server, place)?;
    names.extend(place.folders()?);
    names.sort();
    names.dedup();
    for name in names {
        tracing::info!("removing what an earlier run left: repository \"{name}\"");
        remove(server, place, &name)?;
    }
    Ok(())
}
