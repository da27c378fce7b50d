//! All object keys of a repository. No other module builds one.

use crate::Result;
use crate::storage::Key;
use pgark_types::{ArchiveFile, BackupLabel, Lsn, SegmentName, SystemId, TimelineId};
use ulid::Ulid;

/// The first 16 bytes of an object's BLAKE3, as 32 hex digits.
#[must_use]
pub fn short_digest(digest: &blake3::Hash) -> String {
    digest.to_hex().chars().take(32).collect()
}

/// `repository.json`.
///
/// # Errors
/// None in fact: the text is constant.
pub fn repository() -> Result<Key> {
    Key::new("repository.json")
}

/// `packs/<2hex>/<ulid>-<b3>.pack`.
///
/// # Errors
/// None in fact.
pub fn pack(ulid: Ulid, b3: &str) -> Result<Key> {
    Key::new(format!(
        "packs/{}/{ulid}-{b3}.pack",
        b3.get(0..2).unwrap_or("00")
    ))
}

/// `meta/<2hex>/<ulid>-<b3>.meta`.
///
/// # Errors
/// None in fact.
pub fn meta(ulid: Ulid, b3: &str) -> Result<Key> {
    Key::new(format!(
        "meta/{}/{ulid}-{b3}.meta",
        b3.get(0..2).unwrap_or("00")
    ))
}

/// `components/<name>/backups/`.
#[must_use]
pub fn backups_prefix(component: &str) -> String {
    format!("components/{component}/backups/")
}

/// `components/<name>/backups/<label>/manifest`.
///
/// # Errors
/// A component name that is no key part.
pub fn manifest(component: &str, label: &BackupLabel) -> Result<Key> {
    Key::new(format!("components/{component}/backups/{label}/manifest"))
}

/// The component and the label in a key that [`manifest`] made; `None` for any other text.
#[must_use]
pub fn backup_of_manifest(key: &str) -> Option<(String, BackupLabel)> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["components", component, "backups", label, "manifest"] => {
            Some(((*component).to_owned(), label.parse().ok()?))
        }
        _ => None,
    }
}

/// `components/<name>/backups/<label>/label.json`.
///
/// # Errors
/// A component name that is no key part.
pub fn label(component: &str, label: &BackupLabel) -> Result<Key> {
    Key::new(format!("components/{component}/backups/{label}/label.json"))
}

/// `components/<name>/relmap/<lsn>.json`, the LSN as 16 hex digits.
///
/// # Errors
/// A component name that is no key part.
pub fn relmap(component: &str, lsn: Lsn) -> Result<Key> {
    Key::new(format!("components/{component}/relmap/{:016X}.json", lsn.0))
}

/// `components/<name>/relmap/`.
#[must_use]
pub fn relmap_prefix(component: &str) -> String {
    format!("components/{component}/relmap/")
}

/// `wal/<sysid>/`.
#[must_use]
pub fn wal_prefix(system_id: SystemId) -> String {
    format!("wal/{system_id}/")
}

/// `wal/<sysid>/<tli>/`.
#[must_use]
pub fn wal_timeline_prefix(system_id: SystemId, timeline: TimelineId) -> String {
    format!("wal/{system_id}/{}/", timeline.hex())
}

/// `wal/<sysid>/<tli>/<log>/`.
#[must_use]
pub fn wal_log_prefix(system_id: SystemId, timeline: TimelineId, log: u32) -> String {
    format!("wal/{system_id}/{}/{log:08X}/", timeline.hex())
}

/// `wal/<sysid>/<tli>/<log>/<file>` for segments, partials and backup history files;
/// `wal/<sysid>/history/<tli>.history` for history files.
///
/// # Errors
/// None in fact.
pub fn wal(system_id: SystemId, file: ArchiveFile) -> Result<Key> {
    match file {
        ArchiveFile::History(_) => Key::new(format!("wal/{system_id}/history/{file}")),
        ArchiveFile::Segment(s) | ArchiveFile::Partial(s) | ArchiveFile::Backup(s, _) => Key::new(
            format!("{}{file}", wal_log_prefix(system_id, s.timeline, s.log)),
        ),
    }
}

/// `<wal key>.r<n>-<b3>`: a good copy beside a damaged one.
///
/// # Errors
/// None in fact.
pub fn wal_variant(system_id: SystemId, file: ArchiveFile, n: u32, b3: &str) -> Result<Key> {
    Key::new(format!("{}.r{n}-{b3}", wal(system_id, file)?))
}

/// The cluster and the WAL file whose content the object called `key` holds; `None` for any other object.
#[must_use]
pub fn wal_of(key: &Key) -> Option<(SystemId, ArchiveFile)> {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let (system_id, name) = match parts.as_slice() {
        ["wal", system_id, "history", name] => (system_id, name),
        ["wal", system_id, "conflict", name, _] if !key.file_name().contains('.') => {
            (system_id, name)
        }
        ["wal", system_id, timeline, log, name] if timeline.len() == 8 && log.len() == 8 => {
            (system_id, name)
        }
        _ => return None,
    };
    let name = name.split_once(".r").map_or(*name, |(name, _)| name);
    Some((system_id.parse().ok()?, name.parse().ok()?))
}

/// `wal/<sysid>/<tli>/<log>/<segment>.idx<v>`: the commit index of a segment.
///
/// # Errors
/// None in fact.
pub fn wal_index(system_id: SystemId, segment: SegmentName, version: u32) -> Result<Key> {
    Key::new(format!(
        "{}.idx{version}",
        wal(system_id, ArchiveFile::Segment(segment))?
    ))
}

/// `wal/<sysid>/history/`.
#[must_use]
pub fn history_prefix(system_id: SystemId) -> String {
    format!("wal/{system_id}/history/")
}

/// `wal/<sysid>/conflict/<file>/<ulid>-<b3>`: quarantine for a second content of one name.
///
/// # Errors
/// None in fact.
pub fn wal_conflict(system_id: SystemId, file: ArchiveFile, ulid: Ulid, b3: &str) -> Result<Key> {
    Key::new(format!("wal/{system_id}/conflict/{file}/{ulid}-{b3}"))
}

/// `wal/<sysid>/conflict/`.
#[must_use]
pub fn wal_conflict_prefix(system_id: SystemId) -> String {
    format!("wal/{system_id}/conflict/")
}

/// `<quarantined object>.json`: who pushed it.
///
/// # Errors
/// None in fact.
pub fn wal_conflict_refusal(conflict: &Key) -> Result<Key> {
    Key::new(format!("{conflict}.json"))
}

/// `<quarantined object>.ack`: somebody has looked at it.
///
/// # Errors
/// None in fact.
pub fn wal_conflict_acknowledgement(conflict: &Key) -> Result<Key> {
    Key::new(format!("{conflict}.ack"))
}

/// `wal/<sysid>/<tli>/covered/<lsn>-<unix_ms>.json`, the LSN as 16 hex digits, the milliseconds as
/// 15 decimal ones: "at this instant of the database's clock, WAL had been inserted up to this LSN".
/// The time is in the name because an idle cluster has many samples of one LSN.
///
/// # Errors
/// None in fact.
pub fn covered(
    system_id: SystemId,
    timeline: TimelineId,
    lsn: Lsn,
    time: chrono::DateTime<chrono::Utc>,
) -> Result<Key> {
    let prefix = covered_prefix(system_id, timeline);
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0);
    Key::new(format!("{prefix}{:016X}-{millis:015}.json", lsn.0))
}

/// `wal/<sysid>/<tli>/covered/`.
#[must_use]
pub fn covered_prefix(system_id: SystemId, timeline: TimelineId) -> String {
    format!("{}covered/", wal_timeline_prefix(system_id, timeline))
}

/// `clusters/<name>.json.<n>`: the system identifiers of a cluster over its life.
///
/// # Errors
/// A cluster name that is no key part.
pub fn cluster(name: &str, n: u32) -> Result<Key> {
    Key::new(format!("clusters/{name}.json.{n:06}"))
}

/// `clusters/`.
#[must_use]
pub fn clusters_prefix() -> &'static str {
    "clusters/"
}

/// `clusters/<name>.json.`.
#[must_use]
pub fn cluster_prefix(name: &str) -> String {
    format!("clusters/{name}.json.")
}

/// `fence/<sysid>/<epoch>.json`: who took an epoch.
///
/// # Errors
/// None in fact.
pub fn fence(system_id: SystemId, epoch: u32) -> Result<Key> {
    let number = fence_number(epoch);
    Key::new(format!("{}{number}.json", fence_prefix(system_id)))
}

/// `fence/<sysid>/<epoch>.timeline`: what came of it.
///
/// # Errors
/// None in fact.
pub fn fence_outcome(system_id: SystemId, epoch: u32) -> Result<Key> {
    let number = fence_number(epoch);
    Key::new(format!("{}{number}.timeline", fence_prefix(system_id)))
}

/// An epoch as names have it.
#[must_use]
pub fn fence_number(epoch: u32) -> String {
    format!("{epoch:06}")
}

/// `fence/<sysid>/`.
#[must_use]
pub fn fence_prefix(system_id: SystemId) -> String {
    format!("fence/{system_id}/")
}

/// `sessions/`.
#[must_use]
pub fn sessions_prefix() -> &'static str {
    "sessions/"
}

/// `sessions/<ulid>/<what>`; `what` is `begin`, `hb-<n>`, `wal-pin` or `end`.
///
/// # Errors
/// None in fact.
pub fn session(ulid: Ulid, what: &str) -> Result<Key> {
    Key::new(format!("sessions/{ulid}/{what}"))
}

/// `sessions/<ulid>/`.
#[must_use]
pub fn session_prefix(ulid: Ulid) -> String {
    format!("{}{ulid}/", sessions_prefix())
}

/// `components/<name>/notes/<label>/<n>.json`: pins and annotations that came after the backup.
///
/// # Errors
/// A component name that is no key part.
pub fn note(component: &str, label: &BackupLabel, n: u32) -> Result<Key> {
    Key::new(format!("components/{component}/notes/{label}/{n:06}.json"))
}

/// `components/<name>/notes/`.
#[must_use]
pub fn notes_prefix(component: &str) -> String {
    format!("components/{component}/notes/")
}

/// `policy/<cluster>/<n>.json`: the highest counts.
///
/// # Errors
/// A component name that is no key part.
pub fn policy(component: &str, n: u32) -> Result<Key> {
    Key::new(format!("policy/{component}/{n:06}.json"))
}

/// `policy/`.
pub const POLICIES_PREFIX: &str = "policy/";

/// `policy/<cluster>/`.
#[must_use]
pub fn policy_prefix(component: &str) -> String {
    format!("policy/{component}/")
}

/// The component and the number in a key that [`policy`] made; `None` for any other key.
#[must_use]
pub fn policy_of(key: &Key) -> Option<(String, u32)> {
    let rest = key.as_str().strip_prefix(POLICIES_PREFIX)?;
    let (component, name) = rest.split_once('/')?;
    let n = name.strip_suffix(".json")?.parse().ok()?;
    (policy(component, n).ok()? == *key).then(|| (component.to_owned(), n))
}

/// `sets/<label>.json`: a backup set.
///
/// # Errors
/// None in fact.
pub fn set(label: &BackupLabel) -> Result<Key> {
    Key::new(format!("{}{label}.json", sets_prefix()))
}

/// `sets/`.
#[must_use]
pub fn sets_prefix() -> &'static str {
    "sets/"
}

/// The label in a key that [`set`] made; `None` for any other key.
#[must_use]
pub fn set_of(key: &Key) -> Option<BackupLabel> {
    let name = key.as_str().strip_prefix(sets_prefix())?;
    name.strip_suffix(".json")?.parse().ok()
}

/// `occurrences/<cluster>/<schedule>/<due>.json`: who runs this occurrence of a schedule; the time in UTC
/// as `YYYYMMDDTHHMMSSZ`.
///
/// # Errors
/// A name that is no key part; SQL lets none in.
pub fn occurrence(
    cluster: &str,
    schedule: &str,
    due_at: chrono::DateTime<chrono::Utc>,
) -> Result<Key> {
    let due = due_at.format("%Y%m%dT%H%M%SZ");
    let prefix = occurrence_prefix(cluster);
    Key::new(format!("{prefix}{schedule}/{due}.json"))
}

/// `occurrences/<cluster>/`.
#[must_use]
pub fn occurrence_prefix(cluster: &str) -> String {
    format!("{OCCURRENCES_PREFIX}{cluster}/")
}

/// `occurrences/`.
pub const OCCURRENCES_PREFIX: &str = "occurrences/";

/// `tomb/<component>/<label>/<n>.json`: the backup is expired.
///
/// # Errors
/// A component name that is no key part.
pub fn tomb(component: &str, label: &BackupLabel, n: u32) -> Result<Key> {
    Key::new(format!("tomb/{component}/{label}/{n:06}.json"))
}

/// `tomb/<component>/<label>/<n>.final`: what became of that.
///
/// # Errors
/// A component name that is no key part.
pub fn tomb_final(component: &str, label: &BackupLabel, n: u32) -> Result<Key> {
    Key::new(format!("tomb/{component}/{label}/{n:06}.final"))
}

/// `tomb/<component>/<label>/<n>.undo`: the tomb was undone although a `.final` that does not count
/// stands in the place of that.
///
/// # Errors
/// A component name that is no key part.
pub fn tomb_undo(component: &str, label: &BackupLabel, n: u32) -> Result<Key> {
    Key::new(format!("tomb/{component}/{label}/{n:06}.undo"))
}

/// `tomb/<component>/`.
#[must_use]
pub fn tomb_prefix(component: &str) -> String {
    format!("tomb/{component}/")
}

/// `gc/<n>/<what>`; `what` is `begin`, `plan`, `sweep` or `done`.
///
/// # Errors
/// None in fact.
pub fn gc(n: u32, what: &str) -> Result<Key> {
    Key::new(format!("gc/{n:06}/{what}"))
}

/// `wal/<sysid>/<tli>/floor/<segno>`, the number as 16 hex digits: every segment of the timeline
/// below it may have been deleted.
///
/// # Errors
/// None in fact.
pub fn wal_floor(system_id: SystemId, timeline: TimelineId, number: u64) -> Result<Key> {
    let prefix = wal_timeline_prefix(system_id, timeline);
    Key::new(format!("{prefix}floor/{number:016X}"))
}

/// The number in a key that [`wal_floor`] made; `None` for any other key.
#[must_use]
pub fn floor_number(key: &Key) -> Option<u64> {
    let (place, digits) = key.as_str().rsplit_once('/')?;
    if !place.ends_with("/floor") || digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// `audit/<ulid>.json`.
///
/// # Errors
/// None in fact.
pub fn audit(ulid: Ulid) -> Result<Key> {
    Key::new(format!("audit/{ulid}.json"))
}

/// `audit/`.
#[must_use]
pub fn audit_prefix() -> &'static str {
    "audit/"
}

/// `verify/<ulid>.json`.
///
/// # Errors
/// None in fact.
pub fn verify_record(ulid: Ulid) -> Result<Key> {
    Key::new(format!("verify/{ulid}.json"))
}

/// `verify/`.
#[must_use]
pub fn verify_prefix() -> &'static str {
    "verify/"
}

/// A key that a record of the repository names.
///
/// # Errors
/// Kind Data for a text that is no key.
pub fn recorded(text: &str) -> Result<Key> {
    Key::new(text)
}

/// `keys/`.
pub const KEYS_PREFIX: &str = "keys/";

/// `keys/<slot>.json`: a key slot.
///
/// # Errors
/// None in fact.
pub fn key_slot(slot: Ulid) -> Result<Key> {
    Key::new(format!("{KEYS_PREFIX}{slot}.json"))
}

/// Whether `key` is that of a key slot.
#[must_use]
pub fn is_key_slot(key: &Key) -> bool {
    let name = key.as_str().strip_prefix(KEYS_PREFIX);
    let name = name.and_then(|name| name.strip_suffix(".json"));
    name.is_some_and(|name| Ulid::from_string(name).is_ok())
}

/// `keys/removed/<slot>-`: the records of a slot's removal.
#[must_use]
pub fn removals_prefix(slot: Ulid) -> String {
    format!("{KEYS_PREFIX}removed/{slot}-")
}

/// `keys/removed/<slot>-<ulid>.json`.
///
/// # Errors
/// None in fact.
pub fn removal(slot: Ulid, ulid: Ulid) -> Result<Key> {
    Key::new(format!("{}{ulid}.json", removals_prefix(slot)))
}

/// The slot whose removal `key` records.
#[must_use]
pub fn removed_slot(key: &Key) -> Option<Ulid> {
    let name = key.as_str().strip_prefix(KEYS_PREFIX)?;
    let name = name.strip_prefix("removed/")?.strip_suffix(".json")?;
    Ulid::from_string(name.split_once('-')?.0).ok()
}

/// `keys/epoch/<n>-<repository>.json`: the master key's epochs.
///
/// # Errors
/// None in fact.
pub fn key_epoch(number: u32, repository: &[u8; 16]) -> Result<Key> {
    let id = super::format::to_hex(repository);
    Key::new(format!("{KEYS_PREFIX}epoch/{number:06}-{id}.json"))
}

/// Whether `key` is that of an epoch of the repository.
#[must_use]
pub fn is_key_epoch(key: &Key, repository: &[u8; 16]) -> bool {
    let id = super::format::to_hex(repository);
    let name = key.as_str().strip_prefix(KEYS_PREFIX);
    let name = name.and_then(|name| name.strip_prefix("epoch/"));
    name.is_some_and(|name| name.ends_with(&format!("-{id}.json")))
}

/// `keys/dek/`.
pub const DATA_KEYS_PREFIX: &str = "keys/dek/";

/// `keys/dek/<epoch>-`.
#[must_use]
pub fn data_keys_prefix(epoch: u32) -> String {
    format!("{DATA_KEYS_PREFIX}{epoch:06}-")
}

/// `keys/dek/<epoch>-<ulid>.json`: a data key.
///
/// # Errors
/// None in fact.
pub fn data_key(epoch: u32, ulid: Ulid) -> Result<Key> {
    Key::new(format!("{}{ulid}.json", data_keys_prefix(epoch)))
}

/// The data key whose record `key` is.
#[must_use]
pub fn data_key_of(key: &Key) -> Option<Ulid> {
    let name = key.file_name().strip_suffix(".json")?;
    Ulid::from_string(name.split_once('-')?.1).ok()
}

/// What an object holds, as far as a storage has a choice to make for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectClass {
    /// WAL and what belongs to it.
    Wal,
    /// Packs of data.
    Pack,
    /// Everything else: small, and read by every command.
    Metadata,
}

/// The class of the object called `key`.
#[must_use]
pub fn object_class(key: &str) -> ObjectClass {
    match key.split('/').next() {
        Some("wal") => ObjectClass::Wal,
        Some("packs") => ObjectClass::Pack,
        _ => ObjectClass::Metadata,
    }
}

/// Whether the object called `key` is put under an object lock where the configuration asks for one:
/// what a restore cannot do without, and what nobody may take away before its time. Records of work
/// under way, caches and marks stay free.
#[must_use]
pub fn is_locked_class(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["repository.json"] | ["keys" | "packs" | "meta" | "sets" | "clusters", ..] => true,
        ["components", _, "backups", ..] | ["sessions", _, "begin" | "end"] => true,
        ["wal", _, "history" | "conflict", ..] => true,
        ["wal", _, _, log, name] => log.len() == 8 && !name.contains(".idx"),
        _ => false,
    }
}

/// Whether the name of the object called `key` was drawn at random, so that nobody can have taken it.
#[must_use]
pub fn has_random_name(key: &str) -> bool {
    key.starts_with("packs/") || key.starts_with("meta/")
}

#[cfg(test)]
mod tests;
