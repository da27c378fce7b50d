//! Volumes of Docker and Podman, through the engine's API.
//!
//! Where a volume's directory can be read by this host it is read as the `files` driver reads a tree: owners,
//! modes, times, extended attributes, hard links and holes are kept, and what did not change is not read
//! again. Elsewhere a container that is created and never started lends its archive API.
//!
//! In a backup each volume is a directory of its own name; what the engine says of the volumes stands in
//! a file that no volume can be called like.

mod api_evidence;
mod archive;
mod capture;
mod check;
mod engine;
mod helper;
mod hold;
mod index;
mod mapped;
mod place;
mod plan;
mod put;
mod restore;
mod volume;

use self::engine::Engine;
use super::files::rules::Rules;
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// `[component.<name>]` with `kind = "docker_volume"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the engine listens.
    #[serde(default = "default_socket")]
    pub socket: String,
    /// Names of volumes, or `label:key=value` for all that have the label.
    pub volumes: Vec<String>,
    /// Neither files nor directories that one of these matches.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What becomes of running containers that use the volumes.
    #[serde(default)]
    pub on_capture: OnCapture,
    /// For how long containers are paused or stopped at most.
    #[serde(default = "default_hold")]
    pub hold_seconds_max: u64,
    /// True: through the engine's archive API; false: from the volume's directory, or not at all. Default: from
    /// the directory where that can be read.
    pub through_api: Option<bool>,
    /// How long the engine may take for an answer.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
}

/// What becomes of running containers while their volumes are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCapture {
    /// They write on.
    #[default]
    Live,
    /// They are frozen.
    Pause,
    /// They are stopped, and started again.
    Stop,
}

/// Where Docker listens by default.
const SOCKET: &str = "unix:///var/run/docker.sock";
/// The longest time that an engine, or a hold, may take.
const SECONDS_MAX: u64 = 24 * 60 * 60;

fn default_socket() -> String {
    SOCKET.to_owned()
}

fn default_hold() -> u64 {
    600
}

fn default_timeout() -> u64 {
    60
}

/// The driver.
#[derive(Debug)]
pub struct DockerVolume {
    settings: Settings,
    /// What it holds right now.
    held: hold::Held,
}

impl DockerVolume {
    /// The driver of a component with these settings.
    ///
    /// # Errors
    /// Kind Invalid: `config_invalid`, `pattern_invalid`.
    pub fn new(settings: Settings) -> Result<Self> {
        let invalid = |what: String| {
            Error::invalid("config_invalid", what)
                .with_hint("docs/guide/components/docker_volume.md lists every key.")
        };
        socket_path(&settings.socket)?;
        if settings.volumes.is_empty() {
            return Err(invalid("volumes is empty".to_owned()));
        }
        for (n, volume) in settings.volumes.iter().enumerate() {
            match volume.strip_prefix("label:") {
                Some("") => return Err(invalid("\"label:\" names no label".to_owned())),
                Some(_) => {}
                None => volume::check_name(volume)?,
            }
            if settings.volumes.iter().take(n).any(|other| other == volume) {
                return Err(invalid(format!("volumes has \"{volume}\" twice")));
            }
        }
        for (key, seconds) in [
            ("hold_seconds_max", settings.hold_seconds_max),
            ("timeout_seconds", settings.timeout_seconds),
        ] {
            if seconds == 0 || seconds > SECONDS_MAX {
                return Err(invalid(format!("{key} must be from 1 to {SECONDS_MAX}")));
            }
        }
        // Only to refuse patterns that are none.
        Rules::new(&[], &settings.exclude, &[])?;
        Ok(Self {
            settings,
            held: hold::Held::default(),
        })
    }

    /// The engine of the section, or another one that `--to` names.
    fn engine(&self, to: Option<&str>) -> Result<Engine> {
        let socket = to.unwrap_or(&self.settings.socket);
        Engine::connect(&socket_path(socket)?, self.settings.timeout_seconds)
    }

    /// The rules for a tree whose root is `root`: a slash in front of a pattern means that.
    fn rules(&self, root: &str) -> Result<Rules> {
        let exclude = self.settings.exclude.iter();
        let exclude = exclude.map(|pattern| match pattern.starts_with('/') {
            true => format!("{}{pattern}", globset::escape(root.trim_end_matches('/'))),
            false => pattern.clone(),
        });
        Rules::new(&[], &exclude.collect::<Vec<_>>(), &[])
    }
}

/// The socket of `unix:///path`.
fn socket_path(socket: &str) -> Result<PathBuf> {
    let path = socket.strip_prefix("unix://").map(PathBuf::from);
    match path.filter(|path| path.is_absolute()) {
        Some(path) => Ok(path),
        None => Err(Error::invalid(
            "config_invalid",
            format!("\"{socket}\" is no socket of an engine"),
        )
        .with_detail("It must be unix:// and an absolute path; TCP and SSH are not spoken.")
        .with_hint(
            "For another host run pgark there, or lead its socket here: ssh -L /run/there.sock:/var/run/docker.sock.",
        )),
    }
}

impl Driver for DockerVolume {
    fn kind(&self) -> &'static str {
        "docker_volume"
    }

    fn stage(&self) -> Stage {
        Stage::Blob
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        context.cancel.check()?;
        Ok(check::check(self))
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        capture::capture(self, context, sink)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        restore::restore(self, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        restore::evidence(self, context, source, request)
    }

    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        volume::ids(self, context, part, visit).map(|()| true)
    }

    /// None: a set's lever is one for many stores; see [`Driver::capture_lever`].
    fn lever(&self, _seconds: u64) -> Option<Lever> {
        None
    }

    fn holds_for_capture(&self) -> bool {
        self.settings.on_capture != OnCapture::Live
    }

    fn capture_lever(&self, context: &Context<'_>) -> Result<Option<Lever>> {
        context.cancel.check()?;
        hold::lever(self)
    }

    fn hold(&self, context: &Context<'_>, lever: &Lever) -> Result<()> {
        hold::hold(self, context, lever)
    }

    fn release(&self, _context: &Context<'_>, lever: &Lever) -> Result<()> {
        hold::release(self, lever)
    }
}
