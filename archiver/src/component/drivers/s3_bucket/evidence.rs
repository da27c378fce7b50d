//! Reading a bucket again, and comparing every byte of it with the backup.

use super::groups::{Group, Keys, Version, groups};
use super::restore::Target;
use super::selection::Selection;
use super::spread::spread;
use crate::Result;
use crate::component::{Context, EvidenceLine, Source, content_error};
use crate::storage::s3::objects::{Listed, Metadata, Versioning};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// Keys that are named when they differ.
const NAMES_MAX: usize = 3;

/// The sum of digests of which each stands for one key: whatever order they come in.
#[derive(Debug, Clone, Copy, Default)]
struct Sum([u8; 32]);

impl Sum {
    fn add(&mut self, digest: &blake3::Hash) {
        let mut carry = 0_u16;
        for (sum, byte) in self.0.iter_mut().zip(digest.as_bytes()) {
            let all = u16::from(*sum) + u16::from(*byte) + carry;
            [*sum, _] = all.to_le_bytes();
            carry = all >> 8;
        }
    }

    fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    versions: u64,
    same: u64,
    different: Vec<String>,
    expected: Sum,
    found: Sum,
}

/// One side of a comparison.
struct Side<'a> {
    digest: blake3::Hasher,
    key: &'a str,
}

impl<'a> Side<'a> {
    fn new(key: &'a str) -> Self {
        let mut digest = blake3::Hasher::new();
        digest.update(key.as_bytes());
        Self { digest, key }
    }

    fn add(&mut self, about: &str, content: &mut dyn Read) -> Result<()> {
        self.digest.update(&(about.len() as u64).to_le_bytes());
        self.digest.update(about.as_bytes());
        let mut own = blake3::Hasher::new();
        own.update_reader(content)
            .map_err(|e| content_error(format!("could not read object \"{}\"", self.key), e))?;
        self.digest.update(own.finalize().as_bytes());
        Ok(())
    }
}

impl Target<'_> {
    /// Compares what `selection` means with the bucket.
    ///
    /// # Errors
    /// As [`crate::component::Driver::evidence`].
    pub(in super::super) fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        root: &str,
        selection: &Selection,
    ) -> Result<Vec<EvidenceLine>> {
        let Some((versioning, _)) = self.objects.versioning()? else {
            return Ok(vec![EvidenceLine {
                what: "bucket".to_owned(),
                expected: self.objects.place(),
                found: "none".to_owned(),
                ok: false,
            }]);
        };
        let versioned = versioning == Versioning::Enabled;
        let found = Mutex::new(Found::default());
        let all = groups(source, root, selection, context);
        spread(self.options.parallel, all, |group| {
            context.cancel.check()?;
            self.compare(source, &group, versioned, &found)
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut lines = found.lines();
        if self.in_place && self.overwrite && selection.is_whole() {
            lines.push(self.extras(context, source, root, selection)?);
        }
        Ok(lines)
    }

    fn compare(
        &self,
        source: &dyn Source,
        group: &Group,
        versioned: bool,
        found: &Mutex<Found>,
    ) -> Result<()> {
        let Some(newest) = group.versions.last() else {
            return Ok(());
        };
        let versions = match versioned {
            true => group.versions.as_slice(),
            false => std::slice::from_ref(newest),
        };
        let mut there = self.objects.versions_of(&group.target)?;
        there.reverse();
        let matched = align(versions, &there, versioned);
        let mut expected = Side::new(&group.target);
        let mut actual = Side::new(&group.target);
        for (at, version) in versions.iter().enumerate() {
            let mut content = source.read(&version.entry.path)?;
            expected.add(&about(version), &mut content)?;
            if let Some(Some(listed)) = matched.get(at) {
                self.add_found(&mut actual, &group.target, listed, versioned)?;
            }
        }
        // A deleted object of a bucket without versions is one that is not there.
        let absent = !versioned && newest.attributes.is_marker;
        if absent && there.is_empty() {
            actual.add(&about(newest), &mut std::io::empty())?;
        }
        let (expected, actual) = (expected.digest.finalize(), actual.digest.finalize());
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.versions += versions.len() as u64;
        found.expected.add(&expected);
        found.found.add(&actual);
        match expected == actual {
            true => found.same += versions.len() as u64,
            false if found.different.len() < NAMES_MAX => {
                found.different.push(group.target.clone());
            }
            false => {}
        }
        Ok(())
    }

    fn add_found(
        &self,
        side: &mut Side<'_>,
        key: &str,
        listed: &Listed,
        versioned: bool,
    ) -> Result<()> {
        if listed.is_marker {
            return side.add(MARKER, &mut std::io::empty());
        }
        let id = listed.version.as_deref().filter(|_| versioned);
        let tags = match self.options.tags {
            super::Tags::Never => None,
            _ => self.objects.tags(key, id)?,
        };
        let Some(mut opened) = self.objects.open(key, id, false)? else {
            return Ok(());
        };
        let about = described(&opened.metadata, &tags.unwrap_or_default());
        side.add(&about, &mut opened.body)
    }

    fn extras(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
        root: &str,
        selection: &Selection,
    ) -> Result<EvidenceLine> {
        let mut wanted = Keys::default();
        for group in groups(source, root, selection, context) {
            wanted.add(&group?.target);
        }
        let (mut extras, mut first) = (0_u64, None);
        super::keys(&self.objects, context, &self.options.prefix, &mut |key| {
            if self.is_about(&key) && !wanted.has(&key) {
                extras += 1;
                first.get_or_insert(key);
            }
            Ok(())
        })?;
        Ok(EvidenceLine {
            what: "objects that the backup does not have".to_owned(),
            expected: "0".to_owned(),
            found: match first {
                Some(first) => format!("{extras}, among them \"{first}\""),
                None => extras.to_string(),
            },
            ok: extras == 0,
        })
    }
}

/// What stands for a delete marker.
const MARKER: &str = "delete marker";

fn described(metadata: &Metadata, tags: &BTreeMap<String, String>) -> String {
    format!("{:?} {:?} {tags:?}", metadata.headers, metadata.user)
}

fn about(version: &Version) -> String {
    match version.attributes.is_marker {
        true => MARKER.to_owned(),
        false => described(&version.attributes.metadata, &version.attributes.tags),
    }
}

/// For each version of the backup the one of the bucket that stands for it, the newest for the newest: the others
/// below it in their order, whatever else lies between them.
fn align<'l>(
    versions: &[Version],
    there: &'l [Listed],
    versioned: bool,
) -> Vec<Option<&'l Listed>> {
    let mut matched = Vec::with_capacity(versions.len());
    let mut below = there.iter().rev();
    for (at, version) in versions.iter().rev().enumerate() {
        matched.push(match at {
            0 => below.next(),
            _ if versioned => {
                let own = below
                    .clone()
                    .position(|listed| listed.version.as_ref() == Some(&version.id));
                match own {
                    Some(at) => below.nth(at),
                    None => below.find(|listed| may_be(version, listed)),
                }
            }
            _ => None,
        });
    }
    matched.reverse();
    matched
}

/// ETags of objects in parts depend on the parts: then by size.
fn may_be(version: &Version, listed: &Listed) -> bool {
    let in_parts = |etag: &str| etag.contains('-');
    version.looks_like(listed)
        || version.attributes.is_marker == listed.is_marker
            && version.entry.size == listed.size
            && (in_parts(&listed.etag) || in_parts(&version.attributes.etag))
}

impl Found {
    fn lines(&self) -> Vec<EvidenceLine> {
        let mut found = self.same.to_string();
        if !self.different.is_empty() {
            let names: Vec<String> = self.different.iter().map(|k| format!("{k:?}")).collect();
            found = format!("{found} (among those that differ: {})", names.join(", "));
        }
        let short = |sum: &Sum| sum.hex().chars().take(32).collect::<String>();
        vec![
            EvidenceLine {
                what: "versions with the same content, metadata and tags, in order".to_owned(),
                expected: self.versions.to_string(),
                found,
                ok: self.same == self.versions,
            },
            EvidenceLine {
                what: "digest of all of them".to_owned(),
                expected: short(&self.expected),
                found: short(&self.found),
                ok: self.expected.0 == self.found.0,
            },
        ]
    }
}
