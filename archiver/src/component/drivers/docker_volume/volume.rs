//! Volumes, who uses them, and which of them a section means.

use super::DockerVolume;
use super::engine::Engine;
use crate::component::Context;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The longest name: that of a directory.
const NAME_BYTES_MAX: usize = 255;

/// What an engine says of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    #[serde(alias = "Name")]
    pub(super) name: String,
    #[serde(alias = "Driver", default = "local")]
    pub(super) driver: String,
    /// `null` when there are none.
    #[serde(alias = "Options", default, deserialize_with = "nullable")]
    pub(super) options: BTreeMap<String, String>,
    #[serde(alias = "Labels", default, deserialize_with = "nullable")]
    pub(super) labels: BTreeMap<String, String>,
    /// Of the host on which it was: means nothing in a backup.
    #[serde(alias = "Mountpoint", default, skip_serializing)]
    pub(super) mountpoint: String,
}

fn local() -> String {
    "local".to_owned()
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Refuses what no engine takes for a volume's name; so it is a name of a directory as well.
///
/// # Errors
/// Kind Invalid, `volume_name`.
pub(super) fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let goes_on = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if begins && goes_on && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(
        "volume_name",
        format!("{name:?} is no name of a volume"),
    )
    .with_detail(format!(
        "Engines take letters, digits, and, not at the beginning, \"_\", \".\" and \"-\": {NAME_BYTES_MAX} at most."
    ))
    .with_hint("\"docker volume ls\" lists the names. A directory of the host is a component of kind files."))
}

/// A container that uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) image: String,
    /// For engines: names may lead to another image by now.
    pub(super) image_id: String,
    pub(super) running: bool,
    pub(super) paused: bool,
    /// It is removed when it stops.
    pub(super) auto_remove: bool,
    pub(super) started_at: String,
}

impl User {
    /// Out of what `inspect` says.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let state = value.get("State")?;
        let is = |key: &str| state.get(key).and_then(Value::as_bool).unwrap_or(false);
        let text = |value: &Value, path: &str| {
            let found = value.pointer(path).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let id = text(value, "/Id");
        if id.is_empty() {
            return None;
        }
        Some(Self {
            id,
            name: text(value, "/Name").trim_start_matches('/').to_owned(),
            image: text(value, "/Config/Image"),
            image_id: text(value, "/Image"),
            running: is("Running") || is("Restarting") || is("Paused"),
            paused: is("Paused"),
            auto_remove: value
                .pointer("/HostConfig/AutoRemove")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            started_at: text(state, "/StartedAt"),
        })
    }

    /// Whether it may write right now.
    pub(super) fn is_at_work(&self) -> bool {
        self.running && !self.paused
    }
}

/// The names of containers, for messages.
pub(super) fn names<'a>(users: impl IntoIterator<Item = &'a User>) -> String {
    let mut names: Vec<&str> = users.into_iter().map(|user| user.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// Containers, running or not, that use a volume; pgark's own helpers left out.
///
/// # Errors
/// The engine's.
pub(super) fn users(engine: &Engine, volume: &str) -> Result<Vec<User>> {
    let mut users = Vec::new();
    for container in engine.containers(&json!({ "volume": [volume] }))? {
        if super::helper::is_ours(&container) || !mounts(&container, volume) {
            continue;
        }
        let id = container.get("Id").and_then(Value::as_str);
        let id = id.ok_or_else(|| engine.not_understood("a container has no id"))?;
        // It may be gone by now.
        users.extend(engine.inspect(id)?);
    }
    users.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(users)
}

/// The filter takes destinations for names as well.
fn mounts(container: &Value, volume: &str) -> bool {
    let Some(mounts) = container.get("Mounts").and_then(Value::as_array) else {
        return true;
    };
    let name = |mount: &Value| mount.get("Name").and_then(Value::as_str) == Some(volume);
    // Podman tells destinations alone.
    mounts.iter().any(name) || mounts.iter().all(Value::is_string)
}

/// The volumes that the section means, by name.
///
/// # Errors
/// Kind Invalid: `component_missing` when there is none of them, `volume_missing` for one of several; the
/// engine's.
pub(super) fn chosen(driver: &DockerVolume, engine: &Engine) -> Result<Vec<Volume>> {
    let mut found: BTreeMap<String, Volume> = BTreeMap::new();
    let mut missing = Vec::new();
    for wanted in &driver.settings.volumes {
        match wanted.strip_prefix("label:") {
            Some(label) => {
                let labelled = engine.labelled(label)?;
                if labelled.is_empty() {
                    missing.push(format!("with the label \"{label}\""));
                }
                for volume in labelled {
                    check_name(&volume.name)?;
                    found.insert(volume.name.clone(), volume);
                }
            }
            None => match engine.volume(wanted)? {
                Some(volume) => drop(found.insert(volume.name.clone(), volume)),
                None => missing.push(format!("\"{wanted}\"")),
            },
        }
    }
    if missing.is_empty() {
        return Ok(found.into_values().collect());
    }
    let (name, missing) = (engine.name(), missing.join(", "));
    // Nothing at all is what a restore may find: it has nothing to save then.
    let error = match found.is_empty() {
        true => Error::invalid(
            "component_missing",
            format!("{name} has no volume {missing}"),
        ),
        false => Error::invalid("volume_missing", format!("{name} has no volume {missing}")),
    };
    Err(error.with_hint("\"docker volume ls\" lists the names (compose puts its project's in front); correct volumes in [component.NAME]."))
}

/// Whether the section means this volume.
///
/// # Errors
/// The engine's.
pub(super) fn is_chosen(driver: &DockerVolume, engine: &Engine, name: &str) -> Result<bool> {
    for wanted in &driver.settings.volumes {
        let is = match wanted.strip_prefix("label:") {
            Some(label) => engine.labelled(label)?.iter().any(|v| v.name == name),
            None => wanted == name,
        };
        if is {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files of a volume, or of a directory in it, as ids.
///
/// # Errors
/// Kind Invalid, `reconcile_part_unknown`; `mountpoint_unreadable`; the engine's.
pub(super) fn ids(
    driver: &DockerVolume,
    context: &Context<'_>,
    part: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let engine = driver.engine(None)?;
    let volumes = chosen(driver, &engine)?;
    let (name, below) = match (part, volumes.as_slice()) {
        ("", [only]) => (only.name.as_str(), ""),
        (part, _) => part.split_once('/').unwrap_or((part, "")),
    };
    let Some(volume) = volumes.iter().find(|volume| volume.name == name) else {
        return Err(Error::invalid(
            "reconcile_part_unknown",
            format!("\"{}\" has no volume \"{name}\"", context.component),
        )
        .with_hint(
            "collection in [component.NAME.reconcile] is a volume, or a path that begins with one.",
        ));
    };
    let root = super::place::readable(driver, &engine, volume)?;
    let path = match below {
        "" => root.clone(),
        below => root.join(below),
    };
    let path = path.to_str().unwrap_or_default();
    let rules = driver.rules(&root.to_string_lossy())?;
    super::super::files::ids::list(std::slice::from_ref(&root), &rules, context, path, visit)
}

/// Whether something is mounted over the volume's directory while a container runs: then the directory
/// alone may be empty.
pub(super) fn is_mounted_on_use(volume: &Volume) -> bool {
    volume.options.contains_key("device")
        || volume
            .options
            .get("type")
            .is_some_and(|kind| !kind.is_empty() && kind != "none")
}

/// The directory of a volume, where the engine has one on a host.
pub(super) fn directory(volume: &Volume) -> Option<&Path> {
    let path = Path::new(&volume.mountpoint);
    (volume.driver == "local" && path.is_absolute() && !is_mounted_on_use(volume)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_engines_take() {
        for good in ["a", "app_data", "A.b-c_1", "0", &"x".repeat(255)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", ".", "..", "_a", "-a", ".a", "a/b", "../a", "a b", "a\nb", "ä", "a:b", &long,
        ] {
            assert_eq!(
                check_name(bad).unwrap_err().code(),
                "volume_name",
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_is_mounted_on_use_has_no_directory() {
        let volume = |driver: &str, options: Value| -> Volume {
            let value = json!({"Name": "v", "Driver": driver, "Mountpoint": "/v/_data",
                "Options": options, "Labels": null});
            serde_json::from_value(value).unwrap()
        };
        assert!(directory(&volume("local", Value::Null)).is_some());
        assert!(directory(&volume("local", json!({"size": "1G"}))).is_some());
        let nfs = json!({"type": "nfs", "device": ":/x", "o": "addr=h"});
        assert!(directory(&volume("local", nfs)).is_none());
        assert!(directory(&volume("local", json!({"type": "tmpfs"}))).is_none());
        assert!(directory(&volume("rclone", Value::Null)).is_none());
    }
}
