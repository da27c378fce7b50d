//! Elasticsearch and OpenSearch: a snapshot into a repository of its own, whose files become the backup.
//!
//! Snapshots are the only way that either of them supports. Each backup registers a fresh `fs` repository
//! in a directory that the nodes and this host see, takes one snapshot into it, reads its files and
//! removes all of it again. A fresh repository holds nothing but that snapshot, so every file in it is one
//! that the snapshot refers to; segments that did not change have the same bytes, and are stored once.

mod about;
mod capture;
mod check;
mod contents;
mod digest;
mod evidence;
mod lever;
mod lucene;
mod manifest;
mod place;
mod registration;
mod restore;
mod scan;
mod server;
mod shards;
mod stage;

use self::place::Place;
use self::server::Server;
use super::http::{Access, Http};
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// `[component.<name>]` with `kind = "elasticsearch"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where a node is: `https://host:9200`.
    pub url: String,
    /// A directory for snapshot repositories, as this host sees it: below `path.repo` of every node.
    pub repository_dir: PathBuf,
    /// The same directory as the nodes see it, where its path differs there.
    pub repository_location: Option<String>,
    /// The user.
    pub username: Option<String>,
    /// Where the password is: `file:/path` or `env:NAME`.
    pub password: Option<String>,
    /// Where an API key is, in its encoded form: `file:/path` or `env:NAME`. Instead of a user.
    pub api_key: Option<String>,
    /// Certificates (PEM) that the server's is signed by. Default: those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// Indices and data streams, `*` stands for any characters; with a `-` before it: not these. Names that
    /// begin with a dot are meant by patterns that do.
    #[serde(default = "default_indices")]
    pub indices: Vec<String>,
    /// Whether persistent settings, templates, pipelines and policies are in the backup.
    #[serde(default = "default_true")]
    pub global_state: bool,
    /// Features whose system indices are in the backup (Elasticsearch: `security`, `kibana`, …).
    #[serde(default)]
    pub feature_states: Vec<String>,
    /// Whether every document is read after the snapshot, so that a restore can be compared with it.
    #[serde(default = "default_true")]
    pub digest: bool,
    /// Whether `quiesce` may block writes: writers get an error for as long.
    #[serde(default)]
    pub write_block: bool,
    /// How many bytes a second and node a snapshot or a restore may move. Default: the server's own limit.
    pub bytes_per_second: Option<u64>,
    /// How long one answer may take.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// How long a snapshot or a restore may go on without getting any further.
    #[serde(default = "default_stall")]
    pub stall_seconds: u64,
}

fn default_indices() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn default_true() -> bool {
    true
}

const fn default_timeout() -> u64 {
    60
}

const fn default_stall() -> u64 {
    300
}

/// The driver.
#[derive(Debug)]
pub struct Elasticsearch {
    settings: Settings,
}

impl Elasticsearch {
    /// The driver of a component with these settings.
    ///
    /// # Errors
    /// Kind Invalid, `component_settings`; that of the address.
    pub fn new(settings: Settings) -> Result<Self> {
        let wrong = |why: &str| Err(Error::invalid("component_settings", why));
        if settings.username.is_some() != settings.password.is_some() {
            return wrong("username and password belong together");
        }
        if settings.api_key.is_some() && settings.username.is_some() {
            return wrong("give either api_key, or username and password");
        }
        if !settings.repository_dir.is_absolute() {
            return wrong("repository_dir must be an absolute path");
        }
        if settings
            .repository_location
            .as_ref()
            .is_some_and(|location| !location.starts_with('/'))
        {
            return wrong("repository_location must be an absolute path");
        }
        if settings.indices.is_empty() {
            return wrong("indices must name something: \"*\" stands for all");
        }
        if settings.timeout_seconds == 0 || settings.stall_seconds == 0 {
            return wrong("timeout_seconds and stall_seconds must be at least 1");
        }
        if settings.bytes_per_second == Some(0) {
            return wrong("bytes_per_second must be at least 1");
        }
        // A password may come later; an address that is none should not.
        Http::new("Elasticsearch", &settings.url, &Access::default(), None, 1)?;
        Ok(Self { settings })
    }

    fn server(&self, to: Option<&str>) -> Result<Server> {
        let settings = &self.settings;
        let access = Access {
            scheme: settings.api_key.as_deref().map(|key| ("ApiKey", key)),
            basic: settings
                .username
                .as_deref()
                .zip(settings.password.as_deref()),
            ..Access::default()
        };
        Ok(Server {
            http: Http::new(
                "Elasticsearch",
                to.unwrap_or(&settings.url),
                &access,
                settings.tls_ca_file.as_deref(),
                settings.timeout_seconds,
            )?,
        })
    }

    fn place(&self, component: &str) -> Place {
        let settings = &self.settings;
        let dir = settings.repository_dir.clone();
        let location = settings
            .repository_location
            .clone()
            .unwrap_or_else(|| dir.display().to_string());
        Place::new(component, dir, &location)
    }
}

impl Driver for Elasticsearch {
    fn kind(&self) -> &'static str {
        "elasticsearch"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        let server = match self.server(None) {
            Ok(server) => server,
            Err(error) => return Ok(vec![CheckLine::failed("server", &error, check::HINT)]),
        };
        let place = self.place(context.component);
        check::check(&self.settings, &server, &place, context)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        let place = self.place(context.component);
        capture::capture(&self.settings, &self.server(None)?, &place, context, sink)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let server = self.server(request.to.as_deref())?;
        let place = self.place(context.component);
        restore::restore(&self.settings, &server, &place, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        let server = self.server(request.to.as_deref())?;
        evidence::compare(&server, context, source, request)
    }

    /// The `_id`s of an index, an alias or a data stream.
    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let server = self.server(None)?;
        let names = match part {
            "" => {
                let names = server.names()?;
                let chosen = capture::choose(&self.settings, &names).indices.into_iter();
                let is_open = |name: &String| names.indices.get(name).is_some_and(|i| !i.closed);
                chosen.filter(is_open).collect()
            }
            part if server.exists(part)? => vec![part.to_owned()],
            part => {
                return Err(Error::invalid(
                    "selection_unknown",
                    format!("{} has no index \"{part}\"", server.http.name()),
                ));
            }
        };
        for name in names {
            server.refresh(&name)?;
            let mut scan = scan::Scan::open(&server, &name, false)?;
            scan.each(context, &mut |hit| visit(hit.id.clone().into_owned()))?;
        }
        Ok(true)
    }

    /// None, unless the settings allow it: what is blocked fails its writers, it does not make them wait.
    fn lever(&self, _seconds: u64) -> Option<Lever> {
        self.settings.write_block.then(lever::of)
    }

    fn hold(&self, context: &Context<'_>, _lever: &Lever) -> Result<()> {
        lever::hold(&self.settings, &self.server(None)?, context)
    }

    fn release(&self, context: &Context<'_>, _lever: &Lever) -> Result<()> {
        lever::release(&self.server(None)?, context)
    }
}
