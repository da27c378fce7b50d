//! A bucket of any S3 server: objects, their versions and delete markers, metadata and tags.
//!
//! Every version is a file of the backup, what is told about it stands in the file's attributes. Versions never
//! change, so those that the parent backup has are not read again. A bucket that keeps versions is captured
//! as it was at one instant; another one object by object.

mod attributes;
pub(super) mod capture;
pub(super) mod connection;
mod evidence;
mod groups;
mod naming;
pub(super) mod restore;
pub(super) mod selection;
pub(super) mod spread;

use self::capture::Captured;
use self::restore::Target;
use self::selection::Selection;
use crate::component::{
    CheckLine, Consistency, Context, Driver, Evidence, Lever, Point, Request, Sink, Source, Stage,
};
use crate::storage::s3::objects::{Objects, Versioning};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// The folder of a backup that versions lie in.
const ROOT: &str = "objects";

/// When tags are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tags {
    /// Of every version in every backup: tags change without a trace in the listing.
    Always,
    /// Of versions that are read.
    New,
    /// Not at all.
    Never,
}

/// How a bucket is captured and restored.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Only keys that begin with this.
    #[serde(default)]
    pub prefix: String,
    /// Objects that are read or written at once.
    #[serde(default = "default_parallel")]
    pub parallel: usize,
    /// When tags are read.
    #[serde(default = "default_tags")]
    pub tags: Tags,
    /// Whether a bucket that keeps versions is captured as of one instant, two seconds after the beginning.
    #[serde(default = "yes")]
    pub exact: bool,
    /// Whether content is compared with an ETag that is its MD5.
    #[serde(default = "yes")]
    pub verify_etag: bool,
}

pub(super) const fn default_parallel() -> usize {
    8
}

pub(super) const fn default_tags() -> Tags {
    Tags::Always
}

pub(super) const fn yes() -> bool {
    true
}

impl Options {
    /// Refuses what makes no sense.
    pub(super) fn check(self) -> Result<Self> {
        match self.parallel {
            1..=64 => Ok(self),
            _ => Err(Error::invalid(
                "component_settings",
                "parallel must be between 1 and 64",
            )),
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct S3Bucket {
    objects: Objects,
    options: Options,
}

impl S3Bucket {
    /// The driver of the component `name` with this section.
    ///
    /// # Errors
    /// Kind Invalid, `config_invalid`, `component_settings`.
    pub fn open(name: &str, section: &toml::Table) -> Result<Self> {
        let (connection, rest) = connection::split(section);
        let options: Options = super::parse(name, &rest)?;
        Ok(Self {
            objects: Objects::new(connection::settings(name, connection)?),
            options: options.check()?,
        })
    }

    fn target(&self, source: &dyn Source, request: &Request) -> Result<Target<'_>> {
        let objects = match &request.to {
            Some(to) => connection::elsewhere(&self.objects, to)?,
            None => self.objects.clone(),
        };
        Ok(Target {
            objects,
            options: &self.options,
            in_place: request.to.is_none(),
            within: match source.point().position.get("prefix") {
                Some(serde_json::Value::String(prefix)) => prefix.clone(),
                _ => String::new(),
            },
            overwrite: request.overwrite,
        })
    }
}

/// The point of what was captured of one bucket.
fn point(
    captured: &Captured,
    driver: &S3Bucket,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Point {
    let consistency = match captured.cut {
        Some(_) => Consistency::PointInTime,
        None => Consistency::Fuzzy,
    };
    let mut position = BTreeMap::from([
        ("bucket".to_owned(), json!(driver.objects.bucket())),
        ("prefix".to_owned(), json!(driver.options.prefix)),
        ("versioning".to_owned(), json!(captured.versioning)),
    ]);
    if let Some(cut) = captured.cut {
        position.insert("cut".to_owned(), json!(cut));
    }
    Point {
        consistency,
        from,
        until,
        clock_skew_seconds: captured.skew,
        position,
        evidence: counts(captured),
        notes: captured.notes.clone(),
        server_version: None,
    }
}

/// What was captured, in numbers.
pub(super) fn counts(captured: &Captured) -> BTreeMap<String, serde_json::Value> {
    let numbers = [
        ("objects", captured.objects),
        ("versions", captured.versions),
        ("delete_markers", captured.markers),
        ("bytes", captured.bytes),
        ("unchanged", captured.unchanged),
    ];
    numbers
        .into_iter()
        .map(|(name, n)| (name.to_owned(), json!(n)))
        .collect()
}

/// What `check` says of a bucket.
pub(super) fn check_bucket(objects: &Objects, options: &Options) -> Vec<CheckLine> {
    const HINT: &str = "Look at bucket, endpoint and the credentials of the component.";
    let mut lines = Vec::new();
    match objects.versioning() {
        Err(error) => return vec![CheckLine::failed("bucket", &error, HINT)],
        Ok(None) => {
            let detail = format!("there is no {}", objects.place());
            return vec![CheckLine::wrong("bucket", detail, HINT)];
        }
        Ok(Some((versioning, server))) => {
            let how = match versioning {
                Versioning::Enabled => "keeps versions: backups are of one instant",
                Versioning::Suspended => "keeps old versions and no new ones: backups are fuzzy",
                Versioning::Never => "keeps no versions: backups are fuzzy",
            };
            let detail = format!("{}, {how}", objects.place());
            lines.push(CheckLine::well("bucket", detail));
            if let Some(server) = server {
                let seconds = (server - Utc::now()).num_seconds();
                lines.push(CheckLine::well(
                    "clock",
                    format!("the server's is {seconds} s from this host's"),
                ));
            }
        }
    }
    let first = match objects.versions(&options.prefix).next().transpose() {
        Err(error) => {
            const RIGHTS: &str = "Grant s3:ListBucket and s3:ListBucketVersions.";
            lines.push(CheckLine::failed("listing", &error, RIGHTS));
            return lines;
        }
        Ok(first) => first.unwrap_or_default(),
    };
    let what = match first.is_empty() {
        true => "can be read, and is empty",
        false => "can be read",
    };
    lines.push(CheckLine::well("listing", what));
    if let Some(found) = first.iter().find(|found| !found.is_marker) {
        let version = found
            .version
            .as_deref()
            .filter(|version| *version != "null");
        const RIGHTS: &str =
            "Grant s3:GetObject, s3:GetObjectVersion and s3:GetObjectVersionTagging.";
        let read = objects.open(&found.key, version, false);
        let read = read.and_then(|_| match options.tags {
            Tags::Never => Ok(None),
            Tags::Always | Tags::New => objects.tags(&found.key, version),
        });
        lines.push(match read {
            Ok(_) => CheckLine::well("objects", "can be read"),
            Err(error) => CheckLine::failed("objects", &error, RIGHTS),
        });
    }
    lines
}

/// Calls `visit` with every key that there is now.
pub(super) fn keys(
    objects: &Objects,
    context: &Context<'_>,
    prefix: &str,
    visit: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    for group in objects.versions(prefix) {
        context.cancel.check()?;
        if let Some(newest) = group?.into_iter().next()
            && !newest.is_marker
        {
            visit(newest.key)?;
        }
    }
    Ok(())
}

impl Driver for S3Bucket {
    fn kind(&self) -> &'static str {
        "s3_bucket"
    }

    fn stage(&self) -> Stage {
        Stage::Blob
    }

    fn check(&self, context: &Context<'_>) -> Result<Vec<CheckLine>> {
        context.cancel.check()?;
        Ok(check_bucket(&self.objects, &self.options))
    }

    fn capture(&self, context: &Context<'_>, sink: &dyn Sink) -> Result<Point> {
        let from = Utc::now();
        let captured = capture::bucket(&self.objects, &self.options, ROOT, context, sink)?;
        Ok(point(&captured, self, from, Utc::now()))
    }

    fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Vec<String>> {
        let target = self.target(source, request)?;
        let selection = Selection::parse(&request.select, &request.rename)?;
        let keeps = source.point().position.get("versioning") != Some(&json!("never"));
        target.restore(context, source, ROOT, &selection, keeps)
    }

    fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        request: &Request,
    ) -> Result<Evidence> {
        let target = self.target(source, request)?;
        let selection = Selection::parse(&request.select, &request.rename)?;
        let lines = target.evidence(context, source, ROOT, &selection)?;
        Ok(Evidence {
            ok: lines.iter().all(|line| line.ok),
            lines,
        })
    }

    fn ids(
        &self,
        context: &Context<'_>,
        part: &str,
        visit: &mut dyn FnMut(String) -> Result<()>,
    ) -> Result<bool> {
        let prefix = match part {
            "" => &self.options.prefix,
            part => part,
        };
        keys(&self.objects, context, prefix, visit)?;
        Ok(true)
    }

    /// None: a bucket that keeps versions is of one instant without it, and a policy that denies puts would
    /// stop readers of another kind as well.
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
