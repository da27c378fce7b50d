//! Qdrant, a single server of version 1: a snapshot of each collection, or each shard as a stream.
//!
//! Aliases are in no snapshot, and what is made on the server for a backup or a restore stays there until
//! somebody removes it: both are this driver's to do.

mod archive;
mod capture;
mod evidence;
mod leftovers;
mod manifest;
mod point;
mod remote;
mod restore;
mod upload;
mod version;

use self::manifest::Method;
use self::remote::Remote;
use super::http::{Access, Http};
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// `[component.<name>]` with `kind = "qdrant"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server's address: that of its REST interface, usually port 6333.
    pub url: String,
    /// A key that may do everything: `file:/path` or `env:NAME`.
    pub api_key: Option<String>,
    /// Certificates (PEM) to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `snapshot`: the server makes a file for each collection, with a checksum, and needs room for it.
    /// `stream`: it hands out each shard without a file and without a checksum.
    #[serde(default)]
    pub method: Method,
    /// Read every point before and after its collection's snapshot, so that a restore can be compared
    /// with it point by point.
    #[serde(default = "default_read_points")]
    pub read_points: bool,
    /// Restore snapshots of older minor versions too, which the vendor does not promise to work.
    #[serde(default)]
    pub restore_from_older: bool,
    /// How long the server may be silent.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// How long the server may take to make a snapshot of a collection.
    #[serde(default = "default_long")]
    pub snapshot_seconds: u64,
    /// How long sending a snapshot to the server, and its recovery there, may take.
    #[serde(default = "default_long")]
    pub restore_seconds: u64,
}

const fn default_read_points() -> bool {
    true
}

const fn default_timeout() -> u64 {
    120
}

const fn default_long() -> u64 {
    6 * 3600
}

/// The driver.
pub struct Qdrant {
    settings: Settings,
}

impl Qdrant {
    /// Of a component's section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`.
    pub fn new(settings: Settings) -> Result<Self> {
        let times = [
            settings.timeout_seconds,
            settings.snapshot_seconds,
            settings.restore_seconds,
        ];
        if times.contains(&0) {
            return Err(Error::invalid(
                "config_invalid",
                "timeout_seconds, snapshot_seconds and restore_seconds must be at least 1",
            ));
        }
        // A key may come later; an address that is none should not.
        Http::new("Qdrant", &settings.url, &Access::default(), None, 1)?;
        Ok(Self { settings })
    }

    fn remote(&self, request: &Request) -> Result<Remote> {
        let settings = &self.settings;
        let url = request.to.as_deref().unwrap_or(&settings.url);
        let key = settings.api_key.as_deref();
        let access = Access {
            header: key.map(|key| ("api-key", key)),
            ..Access::default()
        };
        let ca_file = settings.ca_file.as_deref();
        let http = Http::new("Qdrant", url, &access, ca_file, settings.timeout_seconds)?;
        Ok(Remote {
            http: Arc::new(http),
        })
    }

    fn own(&self) -> Result<Remote> {
        self.remote(&Request::default())
    }
}

fn line(name: &str, result: Result<String>) -> CheckLine {
    match result {
        Ok(detail) => CheckLine::well(name, detail),
        Err(error) => CheckLine::failed(name, &error, "Look at the server's log."),
    }
}

impl Driver for Qdrant {
    fn kind(&self) -> &'static str {
        "qdrant"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, _context: &Context<'_>) -> Result<Vec<CheckLine>> {
        let server = self.own().and_then(|remote| {
            let version = remote.version()?;
            remote.single()?;
            let (collections, aliases) = (remote.collections()?, remote.aliases()?);
            let shown = format!(
                "{}, version {version}, {} collections, {} aliases",
                remote.http.name(),
                collections.len(),
                aliases.len()
            );
            Ok((remote, shown))
        });
        let (remote, shown) = match server {
            Ok(found) => found,
            Err(error) => return Ok(vec![line("qdrant server", Err(error))]),
        };
        let rights = remote.may_write();
        let rights = rights.map(|()| "snapshots and aliases may be made".to_owned());
        let left = leftovers::find(&remote).map(|left| match left.len() {
            0 => "nothing of interrupted runs".to_owned(),
            count => format!("{count} of interrupted runs: the next backup removes them"),
        });
        Ok(vec![
            line("qdrant server", Ok(shown)),
            line("qdrant rights", rights),
            line("qdrant leftovers", left),
        ])
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        capture::capture(&self.settings, &self.own()?, context, sink)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let remote = self.remote(request)?;
        restore::restore(&self.settings, &remote, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        evidence::evidence(&self.remote(request)?, context, source, request)
    }

    /// A part is a collection or an alias. Of all of them: `collection/id`.
    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let remote = self.own()?;
        if part.is_empty() {
            for name in remote.collections()? {
                remote.ids(context, &name, &mut |id| visit(format!("{name}/{id}")))?;
            }
            return Ok(true);
        }
        if remote.collection(part)?.is_none() {
            return Err(Error::invalid(
                "selection_unknown",
                format!("{} has no collection \"{part}\"", remote.http.name()),
            ));
        }
        remote.ids(context, part, &mut |id| visit(id.to_string()))?;
        Ok(true)
    }

    /// None: Qdrant has nothing that holds writers back.
    fn lever(&self, _seconds: u64) -> Option<Lever> {
        None
    }

    fn hold(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }

    fn release(&self, _context: &Context<'_>, _lever: &Lever) -> Result<()> {
        Ok(())
    }
}
