//! Writing a backup into a server: the configuration, users and policies, what is told about buckets, then objects;
//! and comparing.

use super::admin::Admin;
use super::archive::Files;
use super::selection::Wanted;
use super::{CONFIG, DATA, IAM, METADATA, same};
use crate::component::drivers::s3_bucket::connection::bucket_name;
use crate::component::drivers::s3_bucket::{Options, restore};
use crate::component::{Context, EntryKind, EvidenceLine, Source, read_whole};
use crate::storage::s3::objects::Objects;
use crate::{Error, Result};
use serde_json::{Value, json};

/// The largest file of an export.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Where a restore goes.
pub(super) struct Target<'a> {
    pub(super) admin: Admin,
    pub(super) objects: Objects,
    pub(super) options: &'a Options,
    pub(super) restart: bool,
    pub(super) in_place: bool,
    pub(super) overwrite: bool,
    pub(super) wanted: Wanted,
}

/// What a backup has beside objects.
struct Exports {
    config: Option<Vec<u8>>,
    iam: Files,
    metadata: Files,
    /// Every bucket that something is told about.
    buckets: Vec<String>,
    /// Those whose objects were captured: of the others it is not known what they should hold.
    data: Vec<String>,
}

/// The bucket that a file of metadata is about.
fn bucket_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

impl Exports {
    fn of(context: &Context<'_>, source: &dyn Source, wanted: &Wanted) -> Result<Self> {
        let mut own = Self {
            config: None,
            iam: Files::new(),
            metadata: Files::new(),
            buckets: Vec::new(),
            data: Vec::new(),
        };
        let buckets = source.point().position.get("buckets");
        for (bucket, _) in buckets.and_then(Value::as_object).into_iter().flatten() {
            own.add_bucket(bucket)?;
        }
        own.data.clone_from(&own.buckets);
        own.data.retain(|bucket| wanted.data_of(bucket));
        for entry in source.entries() {
            context.cancel.check()?;
            let entry = entry?;
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            if entry.kind != EntryKind::File || path.starts_with(&format!("{DATA}/")) {
                continue;
            }
            if path == CONFIG {
                own.config = Some(read_whole(source, &entry.path, FILE_BYTES_MAX)?)
                    .filter(|_| wanted.config);
            } else if let Some(name) = path.strip_prefix(&format!("{IAM}/")) {
                if wanted.iam {
                    own.iam.insert(
                        name.to_owned(),
                        read_whole(source, &entry.path, FILE_BYTES_MAX)?,
                    );
                }
            } else if let Some(name) = path.strip_prefix(&format!("{METADATA}/")) {
                own.add_bucket(bucket_of(name))?;
                if wanted.metadata_of(bucket_of(name)) {
                    own.metadata.insert(
                        name.to_owned(),
                        read_whole(source, &entry.path, FILE_BYTES_MAX)?,
                    );
                }
            }
        }
        wanted.check(&own.buckets)?;
        Ok(own)
    }

    fn add_bucket(&mut self, bucket: &str) -> Result<()> {
        let bucket = bucket_name(bucket).ok_or_else(|| {
            Error::data(
                "s3_entry",
                format!("the backup holds a bucket of the impossible name {bucket:?}"),
            )
        })?;
        if !self.buckets.contains(&bucket) {
            self.buckets.push(bucket);
        }
        Ok(())
    }
}

fn occupied(what: &str) -> Error {
    Error::invalid("component_not_empty", format!("MinIO has {what} already"))
        .with_hint("Use --yes to replace it, or restore a part with --select.")
}

impl Target<'_> {
    /// A bucket that objects go to.
    fn bucket(&self, name: &str) -> restore::Target<'_> {
        restore::Target {
            objects: self.objects.of_bucket(self.wanted.target(name)),
            options: self.options,
            // Under another name nothing is in its place.
            in_place: self.in_place && self.wanted.target(name) == name,
            within: String::new(),
            overwrite: self.overwrite,
        }
    }

    /// Restores.
    ///
    /// # Errors
    /// As [`crate::component::Driver::restore`].
    pub(super) fn restore(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
    ) -> Result<Vec<String>> {
        let exports = Exports::of(context, source, &self.wanted)?;
        // Reached, and let in, before anything is changed.
        let version = self.admin.version()?;
        let there = self.there(&exports)?;
        if !self.overwrite {
            self.refuse(&exports, &there)?;
        }
        let mut notes = Vec::new();
        if let Some(before) = &source.point().server_version
            && *before != version
        {
            notes.push(format!(
                "the backup is of {before}, the server is {version}"
            ));
        }
        if let Some(config) = &exports.config {
            notes.extend(self.put_config(context, config, &there)?);
        }
        if !exports.iam.is_empty() {
            let imported = self.admin.set_iam(&exports.iam)?;
            notes.extend(imported.notes);
            not_taken(&imported.failed)?;
            notes.push("restored users, groups and policies".to_owned());
        }
        let (metadata, left_out): (Files, Files) = exports
            .metadata
            .into_iter()
            .partition(|(name, _)| same::is_imported(name));
        if !metadata.is_empty() {
            let failed = self.admin.set_bucket_metadata(&metadata)?;
            not_taken(&failed)?;
            notes.push(format!("restored {} settings of buckets", metadata.len()));
        }
        if !left_out.is_empty() {
            notes.push(format!(
                "MinIO imports no replication: set it up again ({})",
                left_out.into_keys().collect::<Vec<_>>().join(", ")
            ));
        }
        for bucket in &exports.data {
            context.cancel.check()?;
            let root = format!("{DATA}/{bucket}");
            let selection = self.wanted.keys(bucket)?;
            let lines = self
                .bucket(bucket)
                .restore(context, source, &root, &selection, keeps(source, bucket))
                .map_err(|e| e.context(format_args!("bucket \"{bucket}\"")))?;
            notes.extend(
                lines
                    .into_iter()
                    .map(|line| format!("bucket \"{bucket}\": {line}")),
            );
        }
        Ok(notes)
    }

    /// What the server has of the parts that are meant.
    fn there(&self, exports: &Exports) -> Result<Exports> {
        Ok(Exports {
            config: match exports.config {
                Some(_) => Some(self.admin.config()?),
                None => None,
            },
            iam: match exports.iam.is_empty() {
                true => Files::new(),
                false => self.admin.iam()?,
            },
            metadata: match self.wanted.any_metadata() && !exports.metadata.is_empty() {
                true => self.admin.bucket_metadata()?,
                false => Files::new(),
            },
            buckets: Vec::new(),
            data: Vec::new(),
        })
    }

    /// Refuses to replace what the server has of its own.
    fn refuse(&self, exports: &Exports, there: &Exports) -> Result<()> {
        if let (Some(own), Some(found)) = (&exports.config, &there.config)
            && same::essence(CONFIG, own) != same::essence(CONFIG, found)
            && self.admin.config_changes()? > 0
        {
            return Err(occupied("a configuration"));
        }
        for (name, own) in &exports.iam {
            let found = there.iam.get(name);
            if let Some(who) = found.and_then(|found| same::conflict(own, found)) {
                return Err(occupied(&format!("\"{who}\" in {name}")));
            }
        }
        for (name, own) in &exports.metadata {
            let found = there.metadata.get(name);
            if found.is_some_and(|found| same::essence(name, own) != same::essence(name, found)) {
                return Err(occupied(name));
            }
        }
        Ok(())
    }

    fn put_config(
        &self,
        context: &Context<'_>,
        config: &[u8],
        there: &Exports,
    ) -> Result<Vec<String>> {
        let found = there.config.as_deref().unwrap_or_default();
        if same::essence(CONFIG, config) == same::essence(CONFIG, found) {
            return Ok(vec!["the configuration is the backup's already".to_owned()]);
        }
        self.admin.set_config(config)?;
        let mut notes = vec![
            "restored the configuration; what the server's environment sets is not in it"
                .to_owned(),
        ];
        match self.restart {
            true => {
                self.admin.restart(context.cancel)?;
                notes.push("restarted the server".to_owned());
            }
            false => {
                notes.push("restart the server: the configuration holds from then on".to_owned())
            }
        }
        Ok(notes)
    }

    /// Compares.
    ///
    /// # Errors
    /// As [`crate::component::Driver::evidence`].
    pub(super) fn evidence(
        &self,
        context: &Context<'_>,
        source: &dyn Source,
    ) -> Result<Vec<EvidenceLine>> {
        let exports = Exports::of(context, source, &self.wanted)?;
        let there = self.there(&exports)?;
        let mut lines = Vec::new();
        if let (Some(own), Some(found)) = (&exports.config, &there.config) {
            let digest = |text: &[u8]| {
                let essence = same::essence(CONFIG, text);
                blake3::hash(essence.as_bytes())
                    .to_hex()
                    .chars()
                    .take(32)
                    .collect::<String>()
            };
            let (expected, found) = (digest(own), digest(found));
            lines.push(EvidenceLine {
                what: "digest of the configuration".to_owned(),
                ok: expected == found,
                expected,
                found,
            });
        }
        for (name, own) in &exports.iam {
            let found = there.iam.get(name).map(Vec::as_slice);
            let (count, different) = same::differing(own, found);
            lines.push(counted(format!("same in {name}"), count, &different));
        }
        let metadata = exports.metadata.iter();
        let metadata: Vec<_> = metadata
            .filter(|(name, _)| same::is_imported(name))
            .collect();
        if !metadata.is_empty() {
            let differs = |(name, own): &&(&String, &Vec<u8>)| {
                let found = there.metadata.get(*name);
                found.is_none_or(|found| same::essence(name, own) != same::essence(name, found))
            };
            let different = metadata.iter().filter(differs);
            let different: Vec<String> = different.map(|(name, _)| (*name).clone()).collect();
            let what = "settings of buckets with the same content".to_owned();
            lines.push(counted(what, metadata.len(), &different));
        }
        for bucket in &exports.data {
            let root = format!("{DATA}/{bucket}");
            let selection = self.wanted.keys(bucket)?;
            let own = self
                .bucket(bucket)
                .evidence(context, source, &root, &selection)?;
            lines.extend(own.into_iter().map(|line| EvidenceLine {
                what: format!("bucket \"{bucket}\": {}", line.what),
                ..line
            }));
        }
        Ok(lines)
    }
}

/// Whether the backup's bucket kept versions.
fn keeps(source: &dyn Source, bucket: &str) -> bool {
    let buckets = source.point().position.get("buckets");
    let about = buckets.and_then(|buckets| buckets.get(bucket));
    about.and_then(|about| about.get("versioning")) != Some(&json!("never"))
}

fn not_taken(failed: &[String]) -> Result<()> {
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::invalid(
            "minio_import",
            "MinIO has not taken all of what was imported",
        )
        .with_detail(format!("{}.", failed.join("; ")))
        .with_hint("What is referred to must be there first: targets of notifications are in the configuration, which holds after a restart.")),
    }
}

fn counted(what: String, expected: usize, different: &[String]) -> EvidenceLine {
    let mut found = expected.saturating_sub(different.len()).to_string();
    if let Some(first) = different.first() {
        found = format!("{found} (among those that differ: \"{first}\")");
    }
    EvidenceLine {
        what,
        expected: expected.to_string(),
        found,
        ok: different.is_empty(),
    }
}
