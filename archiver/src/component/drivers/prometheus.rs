//! Prometheus: the snapshot of its TSDB, block by block.
//!
//! A snapshot is made through its API and lies in its data directory: there is no other way to get it and no way
//! to have it removed, so pgark reads the directory and removes the snapshot itself. Blocks never change,
//! so those that the parent backup has are not read again.

mod block;
mod capture;
mod request;
mod restore;
mod snapshot;

use super::http::{Access, Http};
use crate::component::{
    CheckLine, Context, Driver, Evidence, Ground, Lever, Point, Request, Sink, Source, Stage,
};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// `[component.<name>]` with `kind = "prometheus"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `http://host:9090`.
    pub url: String,
    /// Its data directory (`--storage.tsdb.path`), as this host sees it.
    pub data_dir: PathBuf,
    /// Where a bearer token is: `file:/path` or `env:NAME`.
    pub token: Option<String>,
    /// The user, where the server asks for one.
    pub username: Option<String>,
    /// Where the password is: `file:/path` or `env:NAME`.
    pub password: Option<String>,
    /// Certificates (PEM) that the server's is signed by. Default: those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// How long the server may take; it makes a snapshot before it answers.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
}

fn default_timeout() -> u64 {
    600
}

/// The driver.
#[derive(Debug)]
pub struct Prometheus {
    settings: Settings,
}

impl Prometheus {
    /// The driver of a component with these settings.
    ///
    /// # Errors
    /// Kind Invalid, `component_settings`.
    pub fn new(settings: Settings) -> Result<Self> {
        if settings.username.is_some() != settings.password.is_some() {
            return Err(Error::invalid(
                "component_settings",
                "username and password belong together",
            ));
        }
        if !settings.data_dir.is_absolute() {
            return Err(Error::invalid(
                "component_settings",
                "data_dir must be an absolute path",
            ));
        }
        // A token may come later; an address that is none should not.
        Http::new("Prometheus", &settings.url, &Access::default(), None, 1)?;
        Ok(Self { settings })
    }

    fn http(&self) -> Result<Http> {
        let settings = &self.settings;
        let access = Access {
            scheme: settings.token.as_deref().map(|token| ("Bearer", token)),
            basic: settings
                .username
                .as_deref()
                .zip(settings.password.as_deref()),
            ..Access::default()
        };
        Http::new(
            "Prometheus",
            &settings.url,
            &access,
            settings.tls_ca_file.as_deref(),
            settings.timeout_seconds,
        )
    }
}

/// A value of an answer: `{"status": "success", "data": …}`.
fn data(http: &Http, segments: &[&str]) -> Result<Value> {
    let mut answer = http.get(segments)?;
    match answer.get_mut("data").map(Value::take) {
        Some(data) => Ok(data),
        None => Err(http.not_understood("it has no data")),
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn line(name: &str, ok: bool, detail: impl Into<String>, hint: &str) -> CheckLine {
    match ok {
        true => CheckLine::well(name, detail),
        false => CheckLine::wrong(name, detail, hint),
    }
}

impl Driver for Prometheus {
    fn kind(&self) -> &'static str {
        "prometheus"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        context.cancel.check()?;
        let mut lines = Vec::new();
        let asked = self.http().and_then(|http| {
            let build = data(&http, &["api", "v1", "status", "buildinfo"])?;
            let flags = data(&http, &["api", "v1", "status", "flags"])?;
            let runtime = data(&http, &["api", "v1", "status", "runtimeinfo"])?;
            Ok((http, build, flags, runtime))
        });
        match asked {
            Err(error) => {
                const HINT: &str = "Look whether it runs, and at url of the component.";
                lines.push(CheckLine::failed("server", &error, HINT));
            }
            Ok((http, build, flags, runtime)) => {
                let version = text(&build, "version");
                lines.push(line(
                    "server",
                    true,
                    format!("{version}, {}", http.name()),
                    "",
                ));
                let admin = text(&flags, "web.enable-admin-api") == "true";
                let admin = line(
                    "admin API",
                    admin,
                    if admin {
                        "on"
                    } else {
                        "off: no snapshot can be made"
                    },
                    "Start Prometheus with --web.enable-admin-api.",
                );
                lines.push(admin.of(Ground::Setup));
                let corruptions = runtime.get("corruptionCount").and_then(Value::as_u64);
                lines.push(line(
                    "corruptions",
                    corruptions.unwrap_or(0) == 0,
                    format!("{} since it started", corruptions.unwrap_or(0)),
                    "Look at the server's log.",
                ));
                let retention = text(&flags, "storage.tsdb.retention.time");
                lines.push(line(
                    "retention",
                    true,
                    format!("{retention} (0s: 15 days)"),
                    "",
                ));
            }
        }
        lines.push(snapshot::check(&self.settings.data_dir).of(Ground::Setup));
        Ok(lines)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        capture::capture(&self.settings, &self.http()?, context, sink)
    }

    fn vet(&self, context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
        restore::vet(context, source, request)
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        restore::restore(&self.settings, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        restore::evidence(&self.settings, context, source, request)
    }

    /// None: a snapshot is of one instant.
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
