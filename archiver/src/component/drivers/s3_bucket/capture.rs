//! Reading a bucket out: every version of every key, those that the parent backup has left alone.

use super::attributes::{Attributes, entry, token};
use super::spread::spread;
use super::{Options, Tags, naming};
use crate::component::{Context, EntryKind, Sink};
use crate::storage::s3::objects::{Listed, Objects, Versioning};
use crate::{Error, Result};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long a server may take until its clock has passed the cut.
const CUT_WAIT: Duration = Duration::from_secs(30);

/// What was captured of a bucket.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Captured {
    /// Whether it keeps versions.
    pub(in super::super) versioning: &'static str,
    /// The instant that all of it is of, by the server's clock.
    pub(in super::super) cut: Option<DateTime<Utc>>,
    /// The server's clock minus ours, in seconds.
    pub(in super::super) skew: Option<f64>,
    /// Keys.
    pub(in super::super) objects: u64,
    /// Versions with content.
    pub(in super::super) versions: u64,
    /// Delete markers.
    pub(in super::super) markers: u64,
    /// Bytes of content.
    pub(in super::super) bytes: u64,
    /// Versions that were not read again.
    pub(in super::super) unchanged: u64,
    /// Versions that went away while they were to be read.
    pub(in super::super) vanished: u64,
    /// Versions with a lock.
    pub(in super::super) locked: u64,
    /// What an operator should know.
    pub(in super::super) notes: Vec<String>,
}

/// A version to be captured.
struct Item {
    listed: Listed,
    order: u64,
    is_latest: bool,
}

/// The bucket's versioning, and the server's time.
fn look(objects: &Objects) -> Result<(Versioning, Option<DateTime<Utc>>)> {
    objects.versioning()?.ok_or_else(|| {
        Error::invalid(
            "component_missing",
            format!("there is no {}", objects.place()),
        )
        .with_hint("Check bucket, endpoint and region in [component.*].")
    })
}

/// Chooses the instant that a bucket with versions is captured at, and waits until it is past: a second after
/// now, so that nothing is missing that was there before the capture began.
fn choose_cut(
    objects: &Objects,
    context: &Context<'_>,
    server: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>> {
    let cut = server + TimeDelta::seconds(1);
    let began = Instant::now();
    while began.elapsed() < CUT_WAIT {
        context.cancel.check()?;
        std::thread::sleep(Duration::from_millis(500));
        // Headers tell whole seconds: what came in the cut's own second has come by now.
        if let (_, Some(now)) = look(objects)?
            && now > cut
        {
            return Ok(Some(cut));
        }
    }
    Ok(None)
}

/// Captures `objects` below the path `root`.
///
/// # Errors
/// As [`crate::component::Driver::capture`].
pub(in super::super) fn bucket(
    objects: &Objects,
    options: &Options,
    root: &str,
    context: &Context<'_>,
    sink: &dyn Sink,
) -> Result<Captured> {
    let untold = objects.untold_tags();
    let (versioning, server) = look(objects)?;
    let mut all = Captured {
        versioning: versioning.as_str(),
        skew: server.map(|at| (at - Utc::now()).as_seconds_f64()),
        ..Captured::default()
    };
    if let (true, Versioning::Enabled, Some(server)) = (options.exact, versioning, server) {
        let uploads = objects.uploads(&options.prefix)?;
        all.cut = choose_cut(objects, context, server)?;
        let uploads = [uploads, objects.uploads(&options.prefix)?];
        if uploads.iter().any(|found| *found != Some(0)) {
            all.cut = None;
            all.notes.push(match uploads {
                [Some(before), Some(after)] => format!(
                    "{} uploads in parts were under way: some servers date an object by its upload's \
                     beginning, so the backup is not of one instant",
                    before.max(after)
                ),
                _ => "the server does not tell whether uploads are under way: the backup is not of one \
                      instant"
                    .to_owned(),
            });
        }
    }
    let cut = all.cut;
    let totals = Mutex::new(all);
    let items = Items {
        groups: objects.versions(&options.prefix),
        cut,
        totals: &totals,
        ready: Vec::new(),
        versioned: versioning != Versioning::Never,
    };
    spread(options.parallel, items, |item| {
        context.cancel.check()?;
        let reading = Reading {
            objects,
            options,
            sink,
            totals: &totals,
        };
        reading.version(root, item)
    })?;
    let mut all = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((before, _)) = objects.versioning()?
        && before != versioning
    {
        all.cut = None;
        all.notes
            .push("whether the bucket keeps versions was changed meanwhile".to_owned());
    }
    if all.vanished > 0 {
        all.cut = None;
        all.notes.push(format!(
            "{} versions were deleted while they were to be read",
            all.vanished
        ));
    }
    let untold = objects.untold_tags().saturating_sub(untold);
    if untold > 0 {
        all.notes.push(format!(
            "the server does not tell the tags of {untold} versions: they are captured without"
        ));
    }
    if all.locked > 0 {
        all.notes.push(format!(
            "{} versions are locked; a restore does not lock them again",
            all.locked
        ));
    }
    Ok(all)
}

/// Versions in the order in which they are listed.
struct Items<'a, 'o> {
    groups: crate::storage::s3::objects::Versions<'o>,
    cut: Option<DateTime<Utc>>,
    totals: &'a Mutex<Captured>,
    ready: Vec<Item>,
    versioned: bool,
}

impl Iterator for Items<'_, '_> {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.ready.pop() {
                return Some(Ok(item));
            }
            let mut group = match self.groups.next()? {
                Ok(group) => group,
                Err(error) => return Some(Err(error)),
            };
            if let Some(cut) = self.cut {
                group.retain(|listed| listed.modified <= cut);
            }
            if !self.versioned {
                // Servers call it null, and some do not take that for a version.
                group.iter_mut().for_each(|listed| listed.version = None);
            }
            let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.objects += u64::from(!group.is_empty());
            for (order, listed) in (0_u64..).zip(group.into_iter().rev()) {
                self.ready.push(Item {
                    listed,
                    order,
                    is_latest: false,
                });
            }
            if let Some(newest) = self.ready.last_mut() {
                newest.is_latest = true;
            }
        }
    }
}

struct Reading<'a> {
    objects: &'a Objects,
    options: &'a Options,
    sink: &'a dyn Sink,
    totals: &'a Mutex<Captured>,
}

impl Reading<'_> {
    fn count(&self, add: impl FnOnce(&mut Captured)) {
        add(&mut self.totals.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn tags(&self, listed: &Listed) -> Result<Option<BTreeMap<String, String>>> {
        match self.options.tags {
            Tags::Never => Ok(Some(BTreeMap::new())),
            Tags::Always | Tags::New => self.objects.tags(&listed.key, listed.version.as_deref()),
        }
    }

    fn version(&self, root: &str, item: Item) -> Result<()> {
        let Item {
            listed,
            order,
            is_latest,
        } = item;
        let version = listed.version.as_deref();
        let path = naming::path(root, &listed.key, version);
        let mut attributes = Attributes {
            order,
            is_latest,
            is_marker: listed.is_marker,
            etag: listed.etag.clone(),
            ..Attributes::default()
        };
        let mut own = entry(path, listed.modified, listed.size, token(&listed));
        if listed.is_marker {
            own.token.clear();
            own.xattrs = attributes.to_xattrs();
            self.sink.file(own, &mut std::io::empty())?;
            self.count(|all| all.markers += 1);
            return Ok(());
        }
        let before = self.sink.before(&own.path).filter(|before| {
            before.kind == EntryKind::File && before.token == own.token && before.size == own.size
        });
        if let Some(before) = before.as_ref().and_then(|b| Attributes::of(b).ok()) {
            attributes.lock = before.lock;
            attributes.metadata = before.metadata;
            attributes.tags = match self.options.tags {
                Tags::Always => match self.tags(&listed)? {
                    Some(tags) => tags,
                    None => return self.gone(&listed),
                },
                _ => before.tags,
            };
            own.xattrs = attributes.to_xattrs();
            if self.sink.unchanged(&own)? {
                self.count(|all| {
                    all.versions += 1;
                    all.unchanged += 1;
                    all.bytes = all.bytes.saturating_add(listed.size);
                    all.locked += u64::from(!attributes.lock.is_empty());
                });
                return Ok(());
            }
        }
        let verify = self.options.verify_etag;
        let Some(opened) = self.objects.open(&listed.key, version, verify)? else {
            return self.gone(&listed);
        };
        let Some(tags) = self.tags(&listed)? else {
            return self.gone(&listed);
        };
        let mut body = opened.body;
        if opened.etag != listed.etag {
            // Replaced since it was listed: what stands there now is taken, and read again next time.
            own.token.clear();
            own.mtime_ns = opened.modified.timestamp_nanos_opt().unwrap_or(0);
        }
        own.size = body.size();
        attributes.etag = opened.etag;
        attributes.lock = opened.lock;
        attributes.metadata = opened.metadata;
        attributes.tags = tags;
        own.xattrs = attributes.to_xattrs();
        let stored = self.sink.file(own, &mut body);
        let stored = stored.map_err(|e| e.context(format_args!("object \"{}\"", listed.key)))?;
        self.count(|all| {
            all.versions += 1;
            all.bytes = all.bytes.saturating_add(stored.size);
            all.locked += u64::from(!attributes.lock.is_empty());
        });
        Ok(())
    }

    /// A version that was listed and is no more.
    fn gone(&self, listed: &Listed) -> Result<()> {
        tracing::debug!(key = listed.key, "gone since it was listed");
        // A server whose listing shows what it cannot give has lost it, and does not say so.
        let there = self.objects.versions_of(&listed.key)?;
        let is_same = |other: &Listed| {
            other.etag == listed.etag
                && other.modified == listed.modified
                && (listed.version.is_none() || other.version == listed.version)
        };
        if there.iter().any(is_same) {
            return Err(Error::data(
                "s3_object_unreadable",
                format!("object \"{}\" is listed, and cannot be read", listed.key),
            )
            .with_detail("The server answers that there is no such object.")
            .with_hint("Repair the bucket's index on the server."));
        }
        // Where no versions are kept that is an object deleted in the bracket, as the listing might have shown.
        if listed.version.is_some() {
            self.count(|all| all.vanished += 1);
        }
        Ok(())
    }
}
