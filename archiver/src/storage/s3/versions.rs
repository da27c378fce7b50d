//! Where objects are locked, the first version of a name counts, whatever was put on top of it: nothing
//! in a repository is ever replaced, so later versions and "deleted" marks are somebody else's doing. The
//! first one is the one that its lock protects. (`docs/decisions/0040-first-version-counts.md`)

use super::failure::Failure;
use super::requests::{Found, size, time};
use super::{Inner, TEMPORARY};
use crate::repository::layout;
use crate::storage::bucket::Covered;
use crate::storage::{Key, Put};
use crate::{Error, Result};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Version ids that are remembered; above it they are looked up again.
const KNOWN_MAX: usize = 200_000;
/// Entries per page when one name is looked up.
const ONE_NAME_ENTRIES: i32 = 50;

/// Which version of an object is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    /// The newest: versions do not count here.
    Current,
    /// This one.
    Exactly(String),
    /// There is none.
    Absent,
}

impl Version {
    pub(super) fn id(&self) -> Option<String> {
        match self {
            Self::Exactly(id) => Some(id.clone()),
            Self::Current | Self::Absent => None,
        }
    }
}

/// What is known of versions in this process.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Whether the first version counts, once that is known.
    count: OnceLock<bool>,
    /// The credentials may not list versions.
    denied: AtomicBool,
    /// The first version of a name.
    first: Mutex<HashMap<String, String>>,
}

/// A version, or a mark of deletion.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) is_mark: bool,
    is_latest: bool,
    found: Found,
}

/// What there is of one name.
#[derive(Debug)]
struct History {
    /// The first version; `None` when only marks are left.
    first: Option<(String, Found)>,
    later: u32,
    hidden: bool,
    at: DateTime<Utc>,
}

impl Inner {
    /// Whether the first version of a name counts: where the configuration asks for locks, and where
    /// `repository.json` turned out to be locked.
    pub(super) fn first_version_counts(&self) -> bool {
        let known = self.versions.count.get().copied();
        (self.settings.object_lock.is_some() || known.unwrap_or(false))
            && !self.versions.denied.load(Ordering::SeqCst)
    }

    /// Looks once whether the repository was made with a lock, when the configuration does not say so:
    /// `versioned` is what the answer for `repository.json` told. Whether the first version counts.
    pub(super) fn learn_of_lock(&self, name: &str, versioned: bool) -> bool {
        if self.settings.object_lock.is_some() || self.versions.count.get().is_some() {
            return self.first_version_counts();
        }
        let locked = versioned && self.first_is_locked(name).unwrap_or(false);
        if locked {
            tracing::info!("{}: objects are locked, first versions count", self.place);
        }
        let _ = self.versions.count.set(locked);
        self.first_version_counts()
    }

    fn first_is_locked(&self, name: &str) -> Result<bool> {
        let histories = self.histories(name, true)?;
        let first = histories.get(name).and_then(|h| h.first.as_ref());
        let Some((id, _)) = first else {
            return Ok(false);
        };
        let state = self.state(name, &Version::Exactly(id.clone()))?;
        Ok(state.is_some_and(|state| state.lock_mode.is_some()))
    }

    /// The version of `name` that counts.
    pub(super) fn version(&self, name: &str) -> Result<Version> {
        if name.starts_with(TEMPORARY) || !self.first_version_counts() {
            return Ok(Version::Current);
        }
        let known = self.lock_first().get(name).cloned();
        match known {
            Some(id) => Ok(Version::Exactly(id)),
            None => Ok(match self.first_of(name)? {
                Looked::Denied => Version::Current,
                Looked::Absent => Version::Absent,
                Looked::Found(id, _) => Version::Exactly(id),
            }),
        }
    }

    /// The version that was thought to be the first is gone.
    pub(super) fn forget_version(&self, name: &str) {
        self.lock_first().remove(name);
    }

    /// The first version of `name`, asked from the server.
    pub(super) fn first_of(&self, name: &str) -> Result<Looked> {
        let mut histories = match self.histories(name, true) {
            Err(error) if self.is_denied(&error) => return Ok(Looked::Denied),
            histories => histories?,
        };
        let first = histories.remove(name).and_then(|history| history.first);
        Ok(first.map_or(Looked::Absent, |(id, found)| Looked::Found(id, found)))
    }

    /// Every name that starts with `prefix` and has a version; `None` when that may not be asked.
    pub(super) fn first_versions(&self, prefix: &str) -> Result<Option<Vec<(String, Found)>>> {
        let histories = match self.histories(prefix, false) {
            Err(error) if self.is_denied(&error) => return Ok(None),
            histories => histories?,
        };
        let there = histories
            .into_iter()
            .filter_map(|(name, history)| Some((name, history.first?.1)));
        Ok(Some(there.collect()))
    }

    /// Without the right to list versions there is still a way to read, so that a restore is not refused
    /// for it.
    fn is_denied(&self, error: &Error) -> bool {
        if error.code() != "s3_access_denied" {
            return false;
        }
        if !self.versions.denied.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                code = "s3_versions_denied",
                hint = "Grant s3:ListBucketVersions and s3:GetObjectVersion.",
                "{}: the credentials may not list versions: what was overwritten or deleted is not seen as it was",
                self.place
            );
        }
        true
    }

    /// After a put that was answered "created": whether ours is the first version. A mark of deletion
    /// makes a name look free.
    pub(super) fn confirm_first(&self, name: &str, nonce: &str) -> Result<Put> {
        if name.starts_with(TEMPORARY)
            || layout::has_random_name(name)
            || !self.first_version_counts()
        {
            return Ok(Put::Created);
        }
        let entries = match self.entries(name, true) {
            Err(error) if self.is_denied(&error) => return Ok(Put::Created),
            entries => entries?,
        };
        let versions = entries.iter().filter(|e| !e.is_mark && e.name == name);
        let versions: Vec<&Entry> = versions.collect();
        let Some(first) = versions.last() else {
            return Err(Error::unavailable(
                "s3_listing_late",
                format!("{} does not list what was just put", self.place),
            )
            .with_hint("A bucket whose objects are locked needs listings that are up to date: pgark cannot use this one."));
        };
        self.remember(name, &first.id);
        if versions.len() == 1 || self.nonce_of(name, &first.id)?.as_deref() == Some(nonce) {
            return Ok(Put::Created);
        }
        tracing::warn!(
            code = "s3_object_covered",
            "object \"{name}\" in {} had been deleted by somebody: its first version counts",
            self.place
        );
        Ok(Put::Exists)
    }

    /// What somebody has put on top of objects.
    pub(super) fn covered(&self) -> Result<Vec<Covered>> {
        if !self.first_version_counts() {
            return Ok(Vec::new());
        }
        let histories = match self.histories("", false) {
            Err(error) if self.is_denied(&error) => return Ok(Vec::new()),
            histories => histories?,
        };
        let covered = histories.into_iter().filter_map(|(name, history)| {
            let is_covered = history.first.is_some() && (history.later > 0 || history.hidden);
            if !is_covered || name.starts_with(TEMPORARY) {
                return None;
            }
            Some(Covered {
                key: Key::new(name).ok()?,
                later_versions: history.later,
                hidden: history.hidden,
                at: history.at,
            })
        });
        Ok(covered.collect())
    }

    /// All entries of `name`, marks first, then versions from the newest to the first: the order in
    /// which they can be removed without another one's becoming the first.
    pub(super) fn entries_of(&self, name: &str) -> Result<Vec<Entry>> {
        let mut entries = self.entries(name, true)?;
        entries.retain(|entry| entry.name == name);
        entries.sort_by_key(|entry| !entry.is_mark);
        Ok(entries)
    }

    fn histories(&self, prefix: &str, one: bool) -> Result<BTreeMap<String, History>> {
        let mut histories: BTreeMap<String, History> = BTreeMap::new();
        // Newest first, so that the last version of a name is its first.
        for entry in self.entries(prefix, one)? {
            let at = entry.found.modified;
            let history = histories.entry(entry.name).or_insert(History {
                first: None,
                later: 0,
                hidden: false,
                at,
            });
            history.at = history.at.max(at);
            if entry.is_mark {
                history.hidden |= entry.is_latest;
            } else if history.first.replace((entry.id, entry.found)).is_some() {
                history.later = history.later.saturating_add(1);
            }
        }
        for (name, history) in &histories {
            if let Some((id, _)) = &history.first {
                self.remember(name, id);
            }
        }
        Ok(histories)
    }

    fn remember(&self, name: &str, id: &str) {
        let mut first = self.lock_first();
        if first.len() >= KNOWN_MAX {
            first.clear();
        }
        first.insert(name.to_owned(), id.to_owned());
    }

    fn lock_first(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.versions
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries whose name starts with `prefix`; with `one`, at least those called `prefix`.
    fn entries(&self, prefix: &str, one: bool) -> Result<Vec<Entry>> {
        let mut all: Vec<Entry> = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let (entries, next) = self.versions_page(prefix, marker.as_ref(), one)?;
            let beyond = one && entries.iter().any(|entry| entry.name != prefix);
            all.extend(entries);
            match next {
                None => return Ok(all),
                Some(_) if beyond => return Ok(all),
                next if next == marker => {
                    return Err(Error::unavailable(
                        "s3_unexpected_reply",
                        format!("the listing of the versions of \"{prefix}\" in {} does not end", self.place),
                    )
                    .with_hint("The server answers one page again and again: check it with another client."));
                }
                next => marker = next,
            }
        }
    }

    #[allow(clippy::type_complexity)] // Entries, and where the next page begins.
    fn versions_page(
        &self,
        prefix: &str,
        marker: Option<&(String, String)>,
        one: bool,
    ) -> Result<(Vec<Entry>, Option<(String, String)>)> {
        let operation = self.operation("list", "s3:ListBucketVersions", prefix, 1 << 20);
        let full = self.full(prefix);
        let below = self.full("");
        self.block(&operation, async |client, _| {
            let request = client
                .list_object_versions()
                .bucket(&self.settings.bucket)
                .prefix(&full)
                .set_key_marker(marker.map(|(key, _)| key.clone()))
                .set_version_id_marker(marker.map(|(_, id)| id.clone()).filter(|id| !id.is_empty()))
                .set_max_keys(one.then_some(ONE_NAME_ENTRIES));
            let answer = Box::pin(request.send())
                .await
                .map_err(|error| Failure::from_sdk(&error))?;
            if answer.name().is_none() && answer.prefix().is_none() {
                return Err(Failure::foreign("The answer to LIST is no listing"));
            }
            let mut entries = Vec::new();
            for version in answer.versions() {
                let name = version.key().and_then(|k| k.strip_prefix(below.as_str()));
                let (Some(name), Some(id)) = (name, version.version_id()) else {
                    continue;
                };
                entries.push(Entry {
                    name: name.to_owned(),
                    id: id.to_owned(),
                    is_mark: false,
                    is_latest: version.is_latest().unwrap_or(false),
                    found: Found {
                        size: size(version.size())?,
                        modified: time(version.last_modified()),
                        class: version.storage_class().map(|c| c.as_str().to_owned()),
                    },
                });
            }
            for mark in answer.delete_markers() {
                let name = mark.key().and_then(|k| k.strip_prefix(below.as_str()));
                let (Some(name), Some(id)) = (name, mark.version_id()) else {
                    continue;
                };
                entries.push(Entry {
                    name: name.to_owned(),
                    id: id.to_owned(),
                    is_mark: true,
                    is_latest: mark.is_latest().unwrap_or(false),
                    found: Found {
                        size: 0,
                        modified: time(mark.last_modified()),
                        class: None,
                    },
                });
            }
            let next = match (answer.is_truncated(), answer.next_key_marker()) {
                (Some(true), None) => {
                    return Err(Failure::foreign("The listing goes on without saying where"));
                }
                (Some(true), Some(key)) => Some((
                    key.to_owned(),
                    answer
                        .next_version_id_marker()
                        .unwrap_or_default()
                        .to_owned(),
                )),
                _ => None,
            };
            Ok((entries, next))
        })
    }
}

/// The answer of [`Inner::first_of`].
#[derive(Debug)]
pub(super) enum Looked {
    /// It may not be asked.
    Denied,
    /// There is no version.
    Absent,
    /// The first version.
    Found(String, Found),
}
