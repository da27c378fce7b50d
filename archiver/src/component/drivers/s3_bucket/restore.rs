//! Writing versions into a bucket, each key's oldest first.
//!
//! Nothing that a bucket keeps is ever destroyed: what is missing of the backup's versions is put on top of those
//! that are there, until the newest is the backup's.

use super::Options;
use super::groups::{Group, Keys, Version, groups, targets};
use super::selection::Selection;
use super::spread::spread;
use crate::component::{Context, Source};
use crate::storage::s3::objects::{Listed, Objects, Versioning};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a restore goes.
#[derive(Debug)]
pub(in super::super) struct Target<'a> {
    /// The bucket.
    pub(in super::super) objects: Objects,
    /// How.
    pub(in super::super) options: &'a Options,
    /// It is the component's own: what the backup does not have goes, when all of it is restored.
    pub(in super::super) in_place: bool,
    /// What the backup was confined to: of other keys it says nothing.
    pub(in super::super) within: String,
    /// What is there may be replaced.
    pub(in super::super) overwrite: bool,
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    objects: AtomicU64,
    versions: AtomicU64,
    markers: AtomicU64,
    kept: AtomicU64,
    tagged: AtomicU64,
    removed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Target<'_> {
    /// Restores what `selection` means. `keeps`: the backup's bucket kept versions.
    ///
    /// # Errors
    /// As [`crate::component::Driver::restore`].
    pub(in super::super) fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        root: &str,
        selection: &Selection,
        keeps: bool,
    ) -> Result<Vec<String>> {
        let wanted = targets(source, root, selection, context)?;
        let mut notes = Vec::new();
        let found = self.objects.versioning()?;
        let (extras, is_empty) = match found {
            Some(_) => self.look(context, selection, &wanted)?,
            None => (Vec::new(), true),
        };
        let versioning = match found {
            Some((versioning, _)) => versioning,
            None => {
                self.objects.create()?;
                notes.push(format!("made {}", self.objects.place()));
                if keeps {
                    self.objects.keep_versions()?;
                }
                match keeps {
                    true => Versioning::Enabled,
                    false => Versioning::Never,
                }
            }
        };
        if keeps && versioning != Versioning::Enabled {
            notes.push(format!(
                "{} keeps no versions: of each object the newest was restored",
                self.objects.place()
            ));
        }
        let putting = Putting {
            target: self,
            context,
            source,
            done: Done::default(),
            is_empty,
            versioned: versioning == Versioning::Enabled,
        };
        let all = groups(source, root, selection, context);
        spread(self.options.parallel, all, |group| putting.group(&group))?;
        spread(self.options.parallel, extras.into_iter().map(Ok), |key| {
            context.cancel.check()?;
            self.objects.delete(&key)?;
            count(&putting.done.removed);
            Ok(())
        })?;
        notes.extend(putting.done.lines());
        Ok(notes)
    }

    /// Whether the backup would hold `key` if it had been there.
    pub(super) fn is_about(&self, key: &str) -> bool {
        key.starts_with(&self.options.prefix) && key.starts_with(&self.within)
    }

    /// What is in the bucket already: refuses it, or tells what has to go; and whether it is nothing at all.
    fn look(
        &self,
        context: &Context<'_>,
        selection: &Selection,
        wanted: &Keys,
    ) -> Result<(Vec<String>, bool)> {
        let goes = self.overwrite && self.in_place && selection.is_whole();
        let (mut extras, mut is_empty) = (Vec::new(), true);
        for group in self.objects.versions("") {
            context.cancel.check()?;
            is_empty = false;
            let Some(newest) = group?.into_iter().next().filter(|newest| !newest.is_marker) else {
                continue;
            };
            let key = newest.key;
            match wanted.has(&key) {
                true if !self.overwrite => {
                    return Err(Error::invalid(
                        "component_not_empty",
                        format!("{} holds \"{key}\" already", self.objects.place()),
                    )
                    .with_hint(match self.in_place {
                        true => "Use --yes to replace it, or restore into another bucket with --to.",
                        false => "Use --yes --no-safety-backup to replace it, or restore into an empty bucket.",
                    }));
                }
                false if goes && self.is_about(&key) => extras.push(key),
                _ => {}
            }
        }
        Ok((extras, is_empty))
    }
}

impl Done {
    fn lines(&self) -> Vec<String> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut lines = vec![format!(
            "restored {} objects: {} versions, {} delete markers",
            get(&self.objects),
            get(&self.versions),
            get(&self.markers)
        )];
        for (counter, what) in [
            (&self.kept, "versions were there already"),
            (&self.tagged, "versions got their tags back"),
            (
                &self.removed,
                "objects that the backup does not have were deleted",
            ),
        ] {
            if get(counter) > 0 {
                lines.push(format!("{} {what}", get(counter)));
            }
        }
        lines
    }
}

struct Putting<'a> {
    target: &'a Target<'a>,
    context: &'a Context<'a>,
    source: &'a dyn Source,
    done: Done,
    is_empty: bool,
    versioned: bool,
}

impl Putting<'_> {
    fn group(&self, group: &Group) -> Result<()> {
        self.context.cancel.check()?;
        let Some(newest) = group.versions.last() else {
            return Ok(());
        };
        // Without versions only the newest can be seen, and one that was deleted cannot.
        let versions = match self.versioned {
            true => group.versions.as_slice(),
            false => std::slice::from_ref(newest),
        };
        let mut there = match self.is_empty {
            true => Vec::new(),
            false => self.target.objects.versions_of(&group.target)?,
        };
        there.reverse();
        for version in self.missing(versions, &there, &group.target)? {
            self.put(group, version, there.is_empty())?;
        }
        count(&self.done.objects);
        Ok(())
    }

    /// Which of `versions` have to be put, in order, on top of those that are there, so that all of them are
    /// there in their order and the newest lies on top.
    fn missing<'v>(
        &self,
        versions: &'v [Version],
        there: &[Listed],
        key: &str,
    ) -> Result<&'v [Version]> {
        let mut rest = versions;
        let mut on_top = false;
        for listed in there {
            on_top = false;
            let Some((version, after)) = rest.split_first() else {
                break;
            };
            if self.is(version, listed, key)? {
                rest = after;
                on_top = true;
            }
        }
        let (Some(newest), Some(top)) = (versions.last(), there.last()) else {
            return Ok(rest);
        };
        let kept = versions.len().saturating_sub(rest.len());
        if rest.is_empty() && !on_top && !self.is(newest, top, key)? {
            rest = std::slice::from_ref(newest);
        }
        self.done.kept.fetch_add(kept as u64, Ordering::Relaxed);
        Ok(rest)
    }

    /// Whether the version that is there is this one, metadata and all; it gets its tags back.
    fn is(&self, version: &Version, listed: &Listed, key: &str) -> Result<bool> {
        if !version.looks_like(listed) {
            return Ok(false);
        }
        if version.attributes.is_marker {
            return Ok(true);
        }
        let objects = &self.target.objects;
        let id = listed.version.as_deref().filter(|_| self.versioned);
        if id != Some(version.id.as_str()) || id == Some("null") {
            let head = objects.head(key, id)?;
            if head.is_none_or(|head| head != version.attributes.metadata) {
                return Ok(false);
            }
        }
        if self.target.options.tags != super::Tags::Never {
            let Some(tags) = objects.tags(key, id)? else {
                return Ok(false);
            };
            if tags != version.attributes.tags {
                objects.set_tags(key, id, &version.attributes.tags)?;
                count(&self.done.tagged);
            }
        }
        Ok(true)
    }

    fn put(&self, group: &Group, version: &Version, is_new: bool) -> Result<()> {
        let objects = &self.target.objects;
        let attributes = &version.attributes;
        if attributes.is_marker {
            // Where nothing is, and no versions are kept, there is nothing to delete.
            if self.versioned || !is_new {
                objects.delete(&group.target)?;
                count(&self.done.markers);
            }
            return Ok(());
        }
        let mut content = self.source.read(&version.entry.path)?;
        let written = objects.put(
            &group.target,
            &attributes.metadata,
            &attributes.tags,
            &mut content,
            version.entry.size,
            self.context.cancel,
        )?;
        tracing::debug!(
            key = group.key,
            was = version.id,
            is = written.version,
            etag = written.etag,
            "restored a version"
        );
        count(&self.done.versions);
        Ok(())
    }
}
