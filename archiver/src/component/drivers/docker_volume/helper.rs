//! A container that is made and never started: through it the engine hands out a volume as an archive, and
//! takes one. It goes again whatever happens; what a dead run left is known by its label.

use super::engine::{Engine, short};
use super::volume::Volume;
use crate::{Error, Result};
use chrono::Utc;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// The label of everything that we make in an engine: which process made it.
pub(super) const OWNER: &str = "org.pgark.owner";
/// For people who find one.
const COMPONENT: &str = "org.pgark.component";
/// Where the volume is in a helper, as archives name it: below the root, without a slash in front.
pub(super) const MOUNT: &str = "pgark-volume";
/// Another host's may be at work for so long.
const FOREIGN_SECONDS_MAX: i64 = 24 * 60 * 60;

/// See the module.
pub(super) struct Helper<'e> {
    engine: &'e Engine,
    id: String,
    /// The image that was made for it.
    image: Option<String>,
    gone: bool,
}

impl<'e> Helper<'e> {
    /// Makes one for a volume. `image` is one that the engine has.
    ///
    /// # Errors
    /// The engine's; nothing is left behind then.
    pub(super) fn make(
        engine: &'e Engine,
        component: &str,
        volume: &Volume,
        image: Option<&str>,
        read_only: bool,
    ) -> Result<Self> {
        let owner = Owner::this()?.to_string();
        let made = match image {
            Some(_) => None,
            None => Some(make_image(engine, &owner)?),
        };
        let mut helper = Self {
            engine,
            id: String::new(),
            image: made,
            gone: false,
        };
        let image = image.or(helper.image.as_deref()).unwrap_or_default();
        let body = json!({
            "Image": image,
            // Never run; an image without a command makes no container.
            "Entrypoint": ["/pgark"],
            "Cmd": [],
            "NetworkDisabled": true,
            "Labels": { OWNER: owner, COMPONENT: component },
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [{
                    "Type": "volume",
                    "Source": volume.name,
                    "Target": format!("/{MOUNT}"),
                    "ReadOnly": read_only,
                    // Else an empty volume gets what the image has there.
                    "VolumeOptions": { "NoCopy": true },
                }],
            },
        });
        helper.id = engine.make_container(&body)?;
        crate::fault::point("docker_volume:helper");
        Ok(helper)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Removes it, and says when that fails.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn remove(mut self) -> Result<()> {
        self.gone = true;
        self.clean()
    }

    fn clean(&self) -> Result<()> {
        let container = match self.id.as_str() {
            "" => Ok(()),
            id => self.engine.remove_container(id),
        };
        let image = match &self.image {
            Some(image) => self.engine.remove_image(image),
            None => Ok(()),
        };
        container.and(image)
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if let Err(error) = self.clean() {
            tracing::warn!(
                code = error.code(),
                "container {} of pgark's stays until the next run: {error}",
                short(&self.id)
            );
        }
    }
}

/// An image of one empty file; its name.
fn make_image(engine: &Engine, owner: &str) -> Result<String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = Utc::now().timestamp_micros();
    let (repository, tag) = ("pgark-scratch", format!("{time}-{number}"));
    let failed = |e| Error::internal("scratch_image", "could not make an archive").with_source(e);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o755);
    tar.append_data(&mut header, "pgark", std::io::empty())
        .map_err(failed)?;
    let tar = tar.into_inner().map_err(failed)?;
    let label = format!("LABEL {OWNER}={owner}");
    engine.import_image(repository, &tag, &label, tar)?;
    Ok(format!("{repository}:{tag}"))
}

/// Which process made something.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    boot: String,
    /// The name space of process numbers: containers have their own.
    space: String,
    pid: u32,
    /// Numbers come again.
    started: u64,
}

impl Owner {
    fn this() -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map_err(|e| Error::io(format!("could not read \"{path}\""), e))
        };
        let space = std::fs::read_link("/proc/self/ns/pid")
            .map_err(|e| Error::io("could not read \"/proc/self/ns/pid\"", e))?;
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect();
        let pid = std::process::id();
        Ok(Self {
            boot: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            space: digits(&space.to_string_lossy()),
            pid,
            started: started(pid).unwrap_or(0),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let owner = Self {
            boot: parts.next()?.to_owned(),
            space: parts.next()?.to_owned(),
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(owner)
    }

    /// Whether it may still be at work on what it made so many seconds ago.
    fn lives(&self, this: &Self, age_seconds: i64) -> bool {
        if (&self.boot, &self.space) != (&this.boot, &this.space) {
            return age_seconds < FOREIGN_SECONDS_MAX;
        }
        started(self.pid) == Some(self.started)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            boot,
            space,
            pid,
            started,
        } = self;
        write!(f, "{boot}_{space}_{pid}_{started}")
    }
}

/// When a process began, in ticks since the boot; `None`: there is none of that number.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A name may hold spaces and parentheses: behind the last one comes the third field.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn owner_of(thing: &Value) -> Option<&str> {
    thing.get("Labels")?.get(OWNER)?.as_str()
}

/// Whether a container, or an image, is one of these.
pub(super) fn is_ours(thing: &Value) -> bool {
    owner_of(thing).is_some()
}

/// Whether whoever made it is gone.
fn is_left(thing: &Value, this: &Owner) -> bool {
    let created = thing.get("Created").and_then(Value::as_i64);
    let age = Utc::now()
        .timestamp()
        .saturating_sub(created.unwrap_or_default());
    match owner_of(thing).map(Owner::parse) {
        None => false,
        Some(None) => age >= FOREIGN_SECONDS_MAX,
        Some(Some(owner)) => !owner.lives(this, age),
    }
}

/// What dead runs left.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    containers: Vec<String>,
    images: Vec<String>,
}

impl Leftovers {
    /// # Errors
    /// The engine's.
    pub(super) fn find(engine: &Engine) -> Result<Self> {
        let this = Owner::this()?;
        let filter = json!({ "label": [OWNER] });
        let ids = |things: Vec<Value>| {
            let left = things.iter().filter(|thing| is_left(thing, &this));
            left.filter_map(|thing| thing.get("Id").and_then(Value::as_str))
                .map(str::to_owned)
                .collect()
        };
        Ok(Self {
            containers: ids(engine.containers(&filter)?),
            images: ids(engine.images(&filter)?),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.images.is_empty()
    }

    /// Removes them.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn remove(&self, engine: &Engine) -> Result<()> {
        for id in &self.containers {
            engine.remove_container(id)?;
        }
        for id in &self.images {
            engine.remove_image(id)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Leftovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let containers: Vec<&str> = self.containers.iter().map(|id| short(id)).collect();
        match containers.is_empty() {
            true => write!(f, "{} images of dead runs", self.images.len()),
            false => write!(f, "containers of dead runs: {}", containers.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told_from_the_living() {
        let this = Owner::this().unwrap();
        assert_eq!(Owner::parse(&this.to_string()).as_ref(), Some(&this));
        let now = Utc::now().timestamp();
        let thing =
            |owner: &str, created: i64| json!({"Created": created, "Labels": {OWNER: owner}});
        let own = this.to_string();
        assert!(!is_left(&thing(&own, 0), &this));
        // The same number, begun at another time.
        let earlier = Owner {
            started: this.started + 1,
            ..Owner::this().unwrap()
        };
        assert!(is_left(&thing(&earlier.to_string(), now), &this));
        let elsewhere = Owner {
            boot: "x".to_owned(),
            ..Owner::this().unwrap()
        };
        assert!(!is_left(&thing(&elsewhere.to_string(), now - 60), &this));
        assert!(is_left(&thing(&elsewhere.to_string(), now - 90_000), &this));
        // Not ours at all.
        assert!(!is_left(
            &json!({"Created": 0, "Labels": {"a": "b"}}),
            &this
        ));
        assert!(!is_left(&json!({"Created": 0, "Labels": null}), &this));
        assert!(!is_ours(&json!({"Labels": null})));
    }
}
