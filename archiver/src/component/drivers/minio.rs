//! A MinIO server: its configuration, its users and policies, what is told about its buckets, and their objects.
//!
//! The first three come through the admin API, encrypted as its own clients do it; objects as from any other
//! bucket (`s3_bucket`). Exports hold secrets in clear, and a backup does.

mod admin;
mod archive;
mod crypt;
mod restore;
mod same;
mod selection;
mod sign;

use self::admin::Admin;
use self::restore::Target;
use self::selection::Wanted;
use super::s3_bucket::{self, Options, Tags, capture, connection};
use crate::component::{
    CheckLine, Consistency, Context, Driver, Entry, Evidence, Lever, Point, Request, Sink, Source,
    Stage,
};
use crate::storage::s3::Settings as ServerSettings;
use crate::storage::s3::objects::Objects;
use crate::{Error, Result};
use chrono::Utc;
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The configuration's file.
const CONFIG: &str = "config/config.txt";
/// The folder of users and policies.
const IAM: &str = "iam";
/// The folder of what is told about buckets.
const METADATA: &str = "bucket-metadata";
/// The folder of objects.
const DATA: &str = "data";

/// Parts of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The stored configuration.
    Config,
    /// Users, groups, policies, service accounts.
    Iam,
    /// Policies, rules and settings of buckets.
    BucketMetadata,
    /// Objects.
    Data,
}

/// `[component.<name>]` with `kind = "minio"`, without the keys of the connection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What is captured.
    #[serde(default = "all_parts")]
    pub include: Vec<Part>,
    /// Buckets whose objects are captured, by patterns.
    #[serde(default = "all_buckets")]
    pub buckets: Vec<String>,
    /// Whether a restore of the configuration restarts the server, so that it holds.
    #[serde(default)]
    pub restart: bool,
    /// How long an answer of the admin API may take.
    #[serde(default = "default_timeout")]
    pub admin_timeout_seconds: u64,
    /// As of `s3_bucket`.
    #[serde(default = "s3_bucket::default_parallel")]
    pub parallel: usize,
    /// As of `s3_bucket`.
    #[serde(default = "s3_bucket::default_tags")]
    pub tags: Tags,
    /// As of `s3_bucket`.
    #[serde(default = "s3_bucket::yes")]
    pub exact: bool,
    /// As of `s3_bucket`.
    #[serde(default = "s3_bucket::yes")]
    pub verify_etag: bool,
}

fn all_parts() -> Vec<Part> {
    vec![Part::Config, Part::Iam, Part::BucketMetadata, Part::Data]
}

fn all_buckets() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn default_timeout() -> u64 {
    120
}

/// The driver.
#[derive(Debug)]
pub struct Minio {
    settings: Settings,
    server: ServerSettings,
    options: Options,
    buckets: GlobSet,
}

impl Minio {
    /// The driver of the component `name` with this section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`, `component_settings`, `pattern_invalid`.
    pub fn open(name: &str, section: &toml::Table) -> Result<Self> {
        let (mut connection, rest) = connection::split(section);
        if connection.contains_key("bucket") {
            return Err(Error::invalid(
                "component_settings",
                "a minio component has buckets, not bucket",
            ));
        }
        // The rules for repositories want one; every request names its own.
        connection.insert("bucket".to_owned(), "none".into());
        let settings: Settings = super::parse(name, &rest)?;
        let options = Options {
            prefix: String::new(),
            parallel: settings.parallel,
            tags: settings.tags,
            exact: settings.exact,
            verify_etag: settings.verify_etag,
        };
        let mut buckets = GlobSetBuilder::new();
        for pattern in &settings.buckets {
            buckets.add(Glob::new(pattern).map_err(|e| {
                Error::invalid("pattern_invalid", format!("\"{pattern}\" is no pattern"))
                    .with_source(e)
            })?);
        }
        let buckets = buckets.build().map_err(|e| {
            Error::invalid("pattern_invalid", "the patterns are too large").with_source(e)
        })?;
        let driver = Self {
            server: connection::settings(name, connection)?,
            options: options.check()?,
            settings,
            buckets,
        };
        if driver.server.endpoint.is_none() {
            return Err(Error::invalid(
                "component_settings",
                "a minio component needs endpoint",
            ));
        }
        Ok(driver)
    }

    fn admin(&self, server: &ServerSettings) -> Result<Admin> {
        Admin::new(server, self.settings.admin_timeout_seconds)
    }

    fn has(&self, part: Part) -> bool {
        self.settings.include.contains(&part)
    }

    /// The names of the buckets that are meant.
    fn bucket_names(&self, objects: &Objects) -> Result<Vec<String>> {
        let mut names = objects.buckets()?;
        names.retain(|name| self.buckets.is_match(name));
        names.sort();
        Ok(names)
    }

    fn target(&self, request: &Request) -> Result<Target<'_>> {
        let mut server = self.server.clone();
        if let Some(to) = &request.to {
            let to = to.trim_end_matches('/');
            let host = to
                .strip_prefix("http://")
                .or_else(|| to.strip_prefix("https://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '@'])) {
                return Err(
                    Error::invalid("component_select", format!("\"{to}\" is no server")).with_hint(
                        "Write http(s)://HOST:PORT: the credentials are the component's.",
                    ),
                );
            }
            server.endpoint = Some(to.to_owned());
        }
        Ok(Target {
            admin: self.admin(&server)?,
            objects: Objects::new(server),
            options: &self.options,
            restart: self.settings.restart,
            in_place: request.to.is_none(),
            overwrite: request.overwrite,
            wanted: Wanted::parse(request)?,
        })
    }

    fn capture_admin(
        &self,
        context: &Context<'_>,
        sink: &dyn Sink,
        admin: &Admin,
        evidence: &mut BTreeMap<String, Value>,
    ) -> Result<()> {
        let store = |path: String, content: &[u8]| {
            context.cancel.check()?;
            let mut entry = Entry::file(path);
            entry.size = content.len() as u64;
            sink.file(entry, &mut &*content).map(drop)
        };
        if self.has(Part::Config) {
            let config = admin.config()?;
            let lines = same::essence(CONFIG, &config).lines().count();
            evidence.insert("config_lines".to_owned(), json!(lines));
            store(CONFIG.to_owned(), &config)?;
        }
        for (part, folder) in [(Part::Iam, IAM), (Part::BucketMetadata, METADATA)] {
            if !self.has(part) {
                continue;
            }
            let files = match part {
                Part::Iam => admin.iam()?,
                _ => admin.bucket_metadata()?,
            };
            evidence.insert(format!("{folder}_files"), json!(files.len()));
            for (name, content) in files {
                store(format!("{folder}/{name}"), &content)?;
            }
        }
        Ok(())
    }
}

impl Driver for Minio {
    fn kind(&self) -> &'static str {
        "minio"
    }

    fn stage(&self) -> Stage {
        Stage::Blob
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        const HINT: &str = "Look at endpoint, access_key_id and secret_access_key.";
        const RIGHTS: &str = "Give the user the policy consoleAdmin.";
        let admin = match self.admin(&self.server) {
            Ok(admin) => admin,
            Err(error) => return Ok(vec![CheckLine::failed("server", &error, HINT)]),
        };
        let mut lines = Vec::new();
        match admin.version() {
            Ok(version) => {
                let detail = format!("{version}, {}", admin.name());
                lines.push(CheckLine::well("server", detail));
            }
            Err(error) => return Ok(vec![CheckLine::failed("server", &error, HINT)]),
        }
        for (part, name) in [
            (Part::Config, "configuration"),
            (Part::Iam, "users and policies"),
            (Part::BucketMetadata, "bucket metadata"),
        ] {
            context.cancel.check()?;
            if !self.has(part) {
                continue;
            }
            let read = match part {
                Part::Config => admin.config().map(drop),
                Part::Iam => admin.iam().map(drop),
                _ => admin.bucket_metadata().map(drop),
            };
            lines.push(match read {
                Ok(()) => CheckLine::well(name, "can be read"),
                Err(error) => CheckLine::failed(name, &error, RIGHTS),
            });
        }
        if self.has(Part::Data) {
            let objects = Objects::new(self.server.clone());
            match self.bucket_names(&objects) {
                Err(error) => lines.push(CheckLine::failed("buckets", &error, RIGHTS)),
                Ok(names) => {
                    lines.push(CheckLine::well(
                        "buckets",
                        format!("{} of them", names.len()),
                    ));
                    for name in names {
                        context.cancel.check()?;
                        let bucket = objects.of_bucket(&name);
                        lines.extend(s3_bucket::check_bucket(&bucket, &self.options));
                    }
                }
            }
        }
        Ok(lines)
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        let from = Utc::now();
        let admin = self.admin(&self.server)?;
        let version = admin.version()?;
        let mut evidence = BTreeMap::new();
        self.capture_admin(context, sink, &admin, &mut evidence)?;
        let mut notes = Vec::new();
        if self.has(Part::Config) || self.has(Part::Iam) || self.has(Part::BucketMetadata) {
            notes.push(
                "the exports hold secret keys in clear: keep the repository encrypted".to_owned(),
            );
        }
        let (mut buckets, mut skew) = (serde_json::Map::new(), None);
        if self.has(Part::Data) {
            let objects = Objects::new(self.server.clone());
            for name in self.bucket_names(&objects)? {
                context.cancel.check()?;
                let root = format!("{DATA}/{name}");
                let bucket = objects.of_bucket(&name);
                let captured = capture::bucket(&bucket, &self.options, &root, context, sink)?;
                let mut about = serde_json::Map::new();
                about.insert("versioning".to_owned(), json!(captured.versioning));
                if let Some(cut) = captured.cut {
                    about.insert("cut".to_owned(), json!(cut));
                }
                buckets.insert(name.clone(), Value::Object(about));
                for (what, count) in s3_bucket::counts(&captured) {
                    let all = evidence.entry(what).or_insert(json!(0));
                    *all = json!(all.as_u64().unwrap_or(0) + count.as_u64().unwrap_or(0));
                }
                let own = captured.notes.iter();
                notes.extend(own.map(|note| format!("bucket \"{name}\": {note}")));
                skew = captured.skew.or(skew);
            }
        }
        Ok(Point {
            // Each bucket may be of one instant; all of it is not.
            consistency: Consistency::Fuzzy,
            from,
            until: Utc::now(),
            clock_skew_seconds: skew,
            position: BTreeMap::from([("buckets".to_owned(), Value::Object(buckets))]),
            evidence,
            notes,
            server_version: Some(version),
        })
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        self.target(request)?.restore(context, source)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        let lines = self.target(request)?.evidence(context, source)?;
        Ok(Evidence {
            ok: lines.iter().all(|line| line.ok),
            lines,
        })
    }

    /// Keys of a bucket: `BUCKET` or `BUCKET/PREFIX`.
    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let (bucket, prefix) = part.split_once('/').unwrap_or((part, ""));
        let bucket = connection::bucket_name(bucket).ok_or_else(|| {
            Error::invalid(
                "reconcile_part_unknown",
                format!("\"{part}\" names no bucket of \"{}\"", context.component),
            )
            .with_hint("Write BUCKET or BUCKET/PREFIX as collection in [component.NAME.reconcile].")
        })?;
        let objects = Objects::new(self.server.clone()).of_bucket(&bucket);
        s3_bucket::keys(&objects, context, prefix, visit)?;
        Ok(true)
    }

    /// None: as of `s3_bucket`.
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
