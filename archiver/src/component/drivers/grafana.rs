//! Grafana over its HTTP API: folders, data sources, library panels, dashboards, alerting, of one organisation.
//!
//! Every object is a JSON file of the backup, as the API hands it out. The API never hands out secrets: those of
//! data sources and contact points are taken from the component's settings, or have to be set again. Its
//! objects are read one after the other: a backup is fuzzy. Whoever needs more backs up Grafana's database.

mod api;
mod export;
mod import;
mod object;
mod selection;

use super::http::{Access, Http};
use crate::component::{
    CheckLine, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::storage::s3::settings::check_reference;
use crate::{Error, Result};
use api::Api;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `[component.<name>]` with `kind = "grafana"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `http://host:3000`.
    pub url: String,
    /// Where the token of a service account (role Admin) is: `file:/path` or `env:NAME`.
    pub token: Option<String>,
    /// The user, instead of a token.
    pub username: Option<String>,
    /// Where the password is: `file:/path` or `env:NAME`.
    pub password: Option<String>,
    /// The organisation, for a user who is in several. A token belongs to one.
    pub organisation: Option<u64>,
    /// Certificates (PEM) that the server's is signed by. Default: those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// How long one answer may take.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// Secrets that a restore sets, by the uid of a data source or contact point and the name of the field:
    /// `[component.<name>.secrets.<uid>]`, `password = "file:…"`.
    #[serde(default)]
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
}

fn default_timeout() -> u64 {
    60
}

/// The driver.
#[derive(Debug)]
pub struct Grafana {
    settings: Settings,
}

impl Grafana {
    /// The driver of a component with these settings.
    ///
    /// # Errors
    /// Kind Invalid, `component_settings`.
    pub fn new(settings: Settings) -> Result<Self> {
        let wrong = |why: &str| Err(Error::invalid("component_settings", why));
        if settings.username.is_some() != settings.password.is_some() {
            return wrong("username and password belong together");
        }
        if settings.token.is_some() == settings.username.is_some() {
            return wrong("give either token, or username and password");
        }
        for (uid, fields) in &settings.secrets {
            for (field, reference) in fields {
                check_reference(&format!("secrets.{uid}.{field}"), reference)?;
            }
        }
        // A token may come later; an address that is none should not.
        Http::new("Grafana", &settings.url, &Access::default(), None, 1)?;
        Ok(Self { settings })
    }

    fn api(&self, to: Option<&str>) -> Result<Api> {
        let settings = &self.settings;
        let access = Access {
            scheme: settings.token.as_deref().map(|token| ("Bearer", token)),
            basic: settings
                .username
                .as_deref()
                .zip(settings.password.as_deref()),
            ..Access::default()
        };
        let http = Http::new(
            "Grafana",
            to.unwrap_or(&settings.url),
            &access,
            settings.tls_ca_file.as_deref(),
            settings.timeout_seconds,
        )?;
        Ok(Api::new(http, settings.organisation))
    }
}

impl Driver for Grafana {
    fn kind(&self) -> &'static str {
        "grafana"
    }

    fn stage(&self) -> Stage {
        Stage::Derived
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        const HINT: &str = "Look at url, and give the service account the role Admin.";
        let mut lines = Vec::new();
        let api = match self.api(None) {
            Ok(api) => api,
            Err(error) => return Ok(vec![CheckLine::failed("server", &error, HINT)]),
        };
        match api.version() {
            Ok(version) => lines.push(CheckLine::well(
                "server",
                format!("{version}, {}", api.name()),
            )),
            Err(error) => return Ok(vec![CheckLine::failed("server", &error, HINT)]),
        }
        for (name, path) in [
            ("folders", "api/folders"),
            ("data sources", "api/datasources"),
            ("library panels", "api/library-elements"),
            ("dashboards", "api/search"),
            ("alerting", "api/v1/provisioning/policies"),
        ] {
            context.cancel.check()?;
            let segments: Vec<&str> = path.split('/').collect();
            match api.get(&segments, &[]) {
                Ok(_) => lines.push(CheckLine::well(name, "can be read")),
                Err(error) => lines.push(CheckLine::failed(name, &error, HINT)),
            }
        }
        Ok(lines)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        export::capture(&self.api(None)?, context, sink)
    }

    fn vet(&self, context: &Context<'_>, source: &dyn Source, request: &Request) -> Result<()> {
        match request.select.is_empty() {
            true => Ok(()),
            false => selection::Selection::of(context, source, &request.select).map(drop),
        }
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let api = self.api(request.to.as_deref())?;
        import::restore(&api, &self.settings, context, source, request)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        import::evidence(&self.api(request.to.as_deref())?, context, source, request)
    }

    /// None: it has none.
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
